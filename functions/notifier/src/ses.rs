//! The adapter to SES. It tries each e-mail once: the SDK's own retries are switched off, because SES has no way to tell a
//! repetition.

use aws_sdk_sesv2::{
    Client,
    config::retry::RetryConfig,
    error::{BuildError, ProvideErrorMetadata, SdkError},
    types::{Body, Content, Destination, EmailContent, Message, MessageTag},
};
use tokentill::ports::{Email, Mailer, NotSent};

const CHARSET: &str = "UTF-8";
/// The tag under which an e-mail carries its name; SES hands it back with a bounce.
const EMAIL_ID: &str = "email_id";

/// How e-mails are sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The address they come from.
    pub from: String,
    /// The name beside it.
    pub from_name: String,
    /// Where answers go, if not there.
    pub reply_to: Option<String>,
    /// The SES configuration set, by which bounces are told.
    pub configuration_set: Option<String>,
}

/// SES.
#[derive(Debug, Clone)]
pub struct Ses {
    client: Client,
    sender: Sender,
}

impl Ses {
    /// SES with this configuration, but for its retries: there are none.
    #[must_use]
    pub fn new(config: impl Into<aws_sdk_sesv2::config::Builder>, sender: Sender) -> Self {
        let config = config.into().retry_config(RetryConfig::disabled()).build();
        Self { client: Client::from_conf(config), sender }
    }
}

impl Mailer for Ses {
    async fn send(&self, email: &Email) -> Result<String, NotSent> {
        let body = Body::builder().text(content(&email.text)?).html(content(&email.html)?).build();
        let message = Message::builder().subject(content(&email.subject)?).body(body).build();
        let tag = MessageTag::builder().name(EMAIL_ID).value(&email.email_id).build().map_err(unusable)?;
        let request = self
            .client
            .send_email()
            .from_email_address(mailbox(&self.sender.from_name, &self.sender.from))
            .destination(Destination::builder().to_addresses(&email.to).build())
            .set_reply_to_addresses(self.sender.reply_to.clone().map(|address| vec![address]))
            .set_configuration_set_name(self.sender.configuration_set.clone())
            .email_tags(tag)
            .content(EmailContent::builder().simple(message).build());
        match request.send().await {
            Ok(sent) => Ok(sent.message_id.unwrap_or_default()),
            Err(error) => Err(fate_of(&error)),
        }
    }
}

/// What an error says of the e-mail. Only what SES itself refused, in its own words, is certain.
fn fate_of<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> NotSent
where
    SdkError<E, R>: Status,
{
    let unknown = |reason: &str| NotSent::Unknown { reason: reason.to_owned() };
    match error {
        SdkError::ConstructionFailure(_) => NotSent::Refused { code: "not_sent".to_owned() },
        SdkError::TimeoutError(_) => unknown("timed out"),
        SdkError::DispatchFailure(_) => unknown("not reachable"),
        SdkError::ServiceError(_) => match (error.status(), error.code()) {
            (Some(400..=499), Some(code)) => NotSent::Refused { code: code.to_owned() },
            (Some(400..=499), None) => NotSent::Refused { code: "unknown".to_owned() },
            (status, _) => NotSent::Unknown { reason: format!("HTTP {}", status.unwrap_or_default()) },
        },
        _ => unknown("no usable answer"),
    }
}

/// The status of the answer that an error came with.
trait Status {
    /// HTTP's status, if there was an answer.
    fn status(&self) -> Option<u16>;
}

impl<E> Status for SdkError<E, aws_sdk_sesv2::config::http::HttpResponse> {
    fn status(&self) -> Option<u16> {
        self.raw_response().map(|response| response.status().as_u16())
    }
}

fn content(text: &str) -> Result<Content, NotSent> {
    Content::builder().data(text).charset(CHARSET).build().map_err(unusable)
}

fn unusable(_: BuildError) -> NotSent {
    NotSent::Refused { code: "not_sent".to_owned() }
}

/// A name and an address as a header holds them. The name is an encoded word (RFC 2047), in pieces short enough, unless it is plain.
fn mailbox(name: &str, address: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == ' ';
    let name = name.trim();
    if name.is_empty() {
        return address.to_owned();
    }
    if name.chars().all(plain) {
        return format!("{name} <{address}>");
    }
    // A piece is at most 75 characters, and no character is parted.
    let mut words = vec![String::new()];
    let mut length = 0_usize;
    for c in name.chars() {
        let mut bytes = [0; 4];
        let encoded: String = c.encode_utf8(&mut bytes).bytes().map(encoded_byte).collect();
        if length.saturating_add(encoded.len()) > 60 {
            words.push(String::new());
            length = 0;
        }
        length = length.saturating_add(encoded.len());
        if let Some(word) = words.last_mut() {
            word.push_str(&encoded);
        }
    }
    let words: Vec<String> = words.iter().map(|word| format!("=?UTF-8?Q?{word}?=")).collect();
    format!("{} <{address}>", words.join(" "))
}

fn encoded_byte(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("={byte:02X}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_senders_name_cannot_become_another_header() {
        for (name, header) in [
            ("", "billing@example.com"),
            ("Acme AI", "Acme AI <billing@example.com>"),
            ("Acme, Inc.", "=?UTF-8?Q?Acme=2C=20Inc=2E?= <billing@example.com>"),
            (
                "Ünï <eve@example.com>\r\nBcc: x",
                "=?UTF-8?Q?=C3=9Cn=C3=AF=20=3Ceve=40example=2Ecom=3E=0D=0ABcc=3A=20x?= <billing@example.com>",
            ),
        ] {
            assert_eq!(mailbox(name, "billing@example.com"), header);
        }
        let long = mailbox(&"ü".repeat(80), "billing@example.com");
        assert!(long.split(' ').all(|word| word.len() <= 75), "{long}");
    }
}
