//! What the notifier is triggered by: the outbox's stream, and what the mail service tells through the default event bus.

use serde::Deserialize;
use tokentill::domain::email::{Feedback, FeedbackKind};

/// The mail service's own words are cut here.
const CODE_CHARS: usize = 60;

/// What the function was triggered by.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "Event")]
pub enum Trigger {
    /// A batch of the outbox's stream.
    Stream(Vec<Record>),
    /// What the mail service tells of an e-mail.
    Mail(Told),
    /// Something else.
    Unknown,
}

/// What the mail service tells of an e-mail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Of one of ours.
    Of {
        /// The name it was sent under.
        email_id: String,
        /// What it tells.
        feedback: Feedback,
    },
    /// Of one that is not ours, or something that we do not record.
    Nothing,
}

/// A record of the outbox's stream. Only the row's key is taken from it; the row itself is read, since it may have changed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Record {
    #[serde(default)]
    dynamodb: Option<Change>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Change {
    #[serde(rename = "Keys", default)]
    keys: Option<Keys>,
    #[serde(rename = "SequenceNumber", default)]
    sequence_number: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Keys {
    #[serde(default)]
    notice_id: Option<Text>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Text {
    #[serde(rename = "S", default)]
    text: Option<String>,
}

impl Record {
    /// The notice whose row it is of.
    #[must_use]
    pub fn notice_id(&self) -> Option<&str> {
        let key = self.dynamodb.as_ref()?.keys.as_ref()?.notice_id.as_ref()?;
        key.text.as_deref().filter(|id| !id.is_empty())
    }

    /// Its name in the stream.
    #[must_use]
    pub fn sequence_number(&self) -> Option<&str> {
        self.dynamodb.as_ref()?.sequence_number.as_deref().filter(|number| !number.is_empty())
    }
}

/// Either of the two, as AWS sends it.
#[derive(Deserialize)]
struct Event {
    #[serde(rename = "Records", default)]
    records: Option<Vec<Record>>,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    detail: Option<Detail>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Detail {
    #[serde(default)]
    event_type: Option<String>,
    #[serde(default)]
    mail: Option<Mail>,
    #[serde(default)]
    bounce: Option<Bounce>,
    #[serde(default)]
    complaint: Option<Complaint>,
    #[serde(default)]
    reject: Option<Reject>,
}

#[derive(Deserialize)]
struct Mail {
    #[serde(default)]
    tags: Option<Tags>,
}

#[derive(Deserialize)]
struct Tags {
    #[serde(default)]
    email_id: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bounce {
    #[serde(default)]
    bounce_type: Option<String>,
    #[serde(default)]
    bounce_sub_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complaint {
    #[serde(default)]
    complaint_feedback_type: Option<String>,
}

#[derive(Deserialize)]
struct Reject {
    #[serde(default)]
    reason: Option<String>,
}

impl From<Event> for Trigger {
    fn from(event: Event) -> Self {
        match event {
            Event { records: Some(records), .. } => Self::Stream(records),
            Event { source: Some(source), detail: Some(detail), .. } if source == "aws.ses" => Self::Mail(detail.told()),
            _ => Self::Unknown,
        }
    }
}

impl Detail {
    fn told(self) -> Told {
        let tagged = self.mail.and_then(|mail| mail.tags).and_then(|tags| tags.email_id);
        let Some(email_id) = tagged.and_then(|ids| ids.into_iter().next()).filter(|id| !id.is_empty()) else {
            return Told::Nothing;
        };
        let (kind, words) = match self.event_type.as_deref() {
            Some("Bounce") => {
                let bounce = self.bounce.map(|bounce| [bounce.bounce_type, bounce.bounce_sub_type]);
                (FeedbackKind::Bounced, bounce.into_iter().flatten().flatten().collect::<Vec<_>>())
            }
            Some("Complaint") => {
                let complaint = self.complaint.and_then(|complaint| complaint.complaint_feedback_type);
                (FeedbackKind::Complained, complaint.into_iter().collect())
            }
            Some("Reject") => (FeedbackKind::Rejected, self.reject.and_then(|reject| reject.reason).into_iter().collect()),
            _ => return Told::Nothing,
        };
        Told::Of { email_id, feedback: Feedback { kind, code: code_of(&words) } }
    }
}

/// The mail service's words as one code: nothing that could be an address is in it.
fn code_of(words: &[String]) -> String {
    let joined = words.join("/");
    let code: String =
        joined.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '/' | ' ')).take(CODE_CHARS).collect();
    if code.is_empty() { "unknown".to_owned() } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Trigger {
        serde_json::from_str(text).unwrap()
    }

    fn told(detail: &str) -> Trigger {
        read(&format!(r#"{{"source":"aws.ses","detail":{detail}}}"#))
    }

    #[test]
    fn a_code_is_no_address_and_not_long() {
        let Trigger::Mail(Told::Of { feedback, .. }) = told(
            r#"{"eventType":"Reject","reject":{"reason":"to ada@example.com was bad, and very, very, very, very, very, very long"},"mail":{"tags":{"email_id":["e1"]}}}"#,
        ) else {
            panic!()
        };
        assert!(!feedback.code.contains('@') && feedback.code.len() <= CODE_CHARS, "{feedback:?}");
    }

    #[test]
    fn what_is_not_ours_or_not_recorded_is_nothing() {
        for detail in [
            "{}",
            r#"{"eventType":"Bounce"}"#,
            r#"{"eventType":"Bounce","mail":{"tags":{}}}"#,
            r#"{"eventType":"Bounce","mail":{"tags":{"email_id":[]}}}"#,
            r#"{"eventType":"Delivery","mail":{"tags":{"email_id":["e1"]}}}"#,
        ] {
            assert_eq!(told(detail), Trigger::Mail(Told::Nothing), "{detail}");
        }
        for event in ["{}", r#"{"source":"aws.ses"}"#, r#"{"source":"aws.s3","detail":{}}"#] {
            assert_eq!(read(event), Trigger::Unknown, "{event}");
        }
    }

    #[test]
    fn a_record_without_its_key_or_its_number_is_read_all_the_same() {
        let Trigger::Stream(records) =
            read(r#"{"Records":[{},{"dynamodb":{}},{"dynamodb":{"Keys":{"notice_id":{"S":""}},"SequenceNumber":""}}]}"#)
        else {
            panic!()
        };
        assert!(records.iter().all(|record| record.notice_id().is_none() && record.sequence_number().is_none()));
    }
}
