//! The adapter to SES. It tries each e-mail once: the SDK's own retries are switched off, because SES has no way to tell a
//! repetition.

use std::time::Duration;

use aws_sdk_sesv2::{
    Client,
    config::{retry::RetryConfig, timeout::TimeoutConfig},
    error::{BuildError, ProvideErrorMetadata, SdkError},
    types::{Body, Content, Destination, EmailContent, Message, MessageTag},
};
use tokentill::{
    connection::{Connections, NoTls},
    ports::{Email, Mailer, NotSent},
};

const CHARSET: &str = "UTF-8";
/// How long the one attempt may take: with a second one it would be less.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of that a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
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
    /// SES with this configuration, but for its retries, of which there are none, and the time that its one attempt has.
    #[must_use]
    pub fn new(config: impl Into<aws_sdk_sesv2::config::Builder>, sender: Sender) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(ATTEMPT_TIMEOUT)
            .build();
        let config = config.into().retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
        Self { client: Client::from_conf(config), sender }
    }
}

/// Takes a new connection for every request. After a Lambda function was frozen a pooled one may be gone without anybody knowing, and
/// the one attempt would be spent on it.
///
/// # Errors
/// [`NoTls`].
pub fn unpooled() -> Result<Connections, NoTls> {
    Connections::unpooled(CONNECT_TIMEOUT)
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
    use std::{
        io::{BufRead as _, BufReader, Read as _, Write as _},
        net::{TcpListener, TcpStream},
        sync::mpsc,
    };

    use aws_sdk_sesv2::config::{BehaviorVersion, Config, Credentials, Region};

    use super::*;

    fn sender() -> Sender {
        let from = "billing@example.com".to_owned();
        Sender { from, from_name: "Acme".to_owned(), reply_to: None, configuration_set: None }
    }

    fn config() -> aws_sdk_sesv2::config::Builder {
        Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .http_client(unpooled().unwrap())
    }

    /// Answers requests on a connection for as long as it is kept.
    fn answer(stream: TcpStream) {
        let mut reader = BufReader::new(stream);
        loop {
            let mut length = 0;
            loop {
                let mut header = String::new();
                if reader.read_line(&mut header).unwrap_or(0) == 0 {
                    return;
                }
                if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if header.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            let body = r#"{"MessageId":"m1"}"#;
            let kind = "Content-Type: application/json";
            write!(reader.get_mut(), "HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        }
    }

    #[tokio::test]
    async fn every_email_has_a_connection_of_its_own() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (connected, connections) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                connected.send(()).unwrap();
                std::thread::spawn(move || answer(stream.unwrap()));
            }
        });
        let ses = Ses::new(config().endpoint_url(url), sender());
        let text = || "x".to_owned();
        let email =
            Email { email_id: "e1".to_owned(), to: "ada@example.com".to_owned(), subject: text(), html: text(), text: text() };
        for _ in 0..2 {
            assert_eq!(ses.send(&email).await.unwrap(), "m1");
        }
        assert_eq!(connections.try_iter().count(), 2);
    }

    #[test]
    fn the_one_attempt_has_longer_than_other_calls() {
        let others = TimeoutConfig::builder().operation_attempt_timeout(Duration::from_secs(3)).build();
        let ses = Ses::new(config().timeout_config(others), sender());
        let timeouts = ses.client.config().timeout_config().unwrap();
        let of_all = [timeouts.operation_attempt_timeout(), timeouts.operation_timeout()];
        assert_eq!(of_all, [Some(ATTEMPT_TIMEOUT); 2]);
    }

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
