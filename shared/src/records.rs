//! The records of an SQS batch, each with an outcome of its own.

use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

use aws_lambda_events::sqs::{BatchItemFailure, SqsBatchResponse, SqsMessage};
use futures_util::FutureExt;
use sha2::{Digest, Sha256};

/// A record's handling panicked. Only that record fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("handling the record panicked")]
pub struct Panicked;

/// A record that has to come again carries no message id, so it cannot be named in the answer: the whole batch has to come
/// again. What was done of it is recognised then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record without a message id has to come again, so the whole batch has to")]
pub struct Nameless;

/// Runs a future so that a panic in it is an error of its own.
///
/// # Errors
/// [`Panicked`] if it did.
pub async fn isolated<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked)
}

/// The answer that names the records that have to come again, and no others.
///
/// # Errors
/// [`Nameless`] if one of them has no id; an empty one in the answer would make the queue redeliver everything silently.
pub fn answer<'a>(again: impl IntoIterator<Item = &'a SqsMessage>) -> Result<SqsBatchResponse, Nameless> {
    let failure = |message: &SqsMessage| {
        let id = message.message_id.as_deref().filter(|id| !id.is_empty()).ok_or(Nameless)?;
        let mut failure = BatchItemFailure::default();
        failure.item_identifier = id.to_owned();
        Ok(failure)
    };
    let mut response = SqsBatchResponse::default();
    response.batch_item_failures = again.into_iter().map(failure).collect::<Result<_, _>>()?;
    Ok(response)
}

/// When to stop taking up work, in milliseconds since 1970: at four fifths of the time to the invocation's deadline. The rest
/// is kept for finishing what was begun and handing back what was not.
#[must_use]
pub fn stop_at_ms(now_ms: i64, deadline_ms: u64) -> i64 {
    let left_ms = i64::try_from(deadline_ms).unwrap_or(i64::MAX).saturating_sub(now_ms);
    now_ms.saturating_add(left_ms.saturating_div(5).saturating_mul(4))
}

/// How long is left until work has to stop, at most a quarter of an hour.
#[must_use]
pub fn time_left(now_ms: i64, stop_at_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(stop_at_ms.saturating_sub(now_ms)).unwrap_or(0).min(900_000))
}

/// A short name for a message, the same whenever it comes: made of its id, or of its body where it has none.
#[must_use]
pub fn name_of(message: &SqsMessage) -> String {
    let named_by = message.message_id.as_deref().filter(|id| !id.is_empty()).or(message.body.as_deref()).unwrap_or_default();
    hex::encode(Sha256::digest(named_by.as_bytes()).get(..16).unwrap_or_default())
}

/// A record's attribute that holds a number: `SentTimestamp`, `ApproximateReceiveCount`.
#[must_use]
pub fn number_attribute(message: &SqsMessage, name: &str) -> Option<i64> {
    message.attributes.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(id: Option<&str>) -> SqsMessage {
        let mut message = SqsMessage::default();
        message.message_id = id.map(str::to_owned);
        message
    }

    #[test]
    fn only_named_records_are_answered() {
        let [a, b] = [message(Some("a")), message(Some("b"))];
        let response = answer([&a, &b]).unwrap();
        let named: Vec<_> = response.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect();
        assert_eq!(named, ["a", "b"]);
        assert_eq!(answer([&a, &message(Some(""))]).unwrap_err(), Nameless);
        assert_eq!(answer([&message(None)]).unwrap_err(), Nameless);
    }

    #[test]
    fn a_message_is_named_by_its_id_or_else_by_its_body() {
        let with_body = |id: Option<&str>, body: &str| {
            let mut message = message(id);
            message.body = Some(body.to_owned());
            name_of(&message)
        };
        assert_eq!(with_body(Some("a"), "one"), with_body(Some("a"), "two"));
        assert_ne!(with_body(Some("a"), "one"), with_body(Some("b"), "one"));
        assert_eq!(with_body(Some(""), "one"), with_body(None, "one"));
        assert_ne!(with_body(None, "one"), with_body(None, "two"));
    }

    #[test]
    fn a_fifth_of_the_time_is_kept_back() {
        assert_eq!(stop_at_ms(1_000, 61_000), 49_000);
        assert!(stop_at_ms(1_000, 0) < 1_000, "and past the deadline nothing is taken up");
    }

    #[tokio::test]
    async fn a_panic_stays_with_its_record() {
        assert_eq!(isolated(async { panic!("one record") }).await, Err::<(), _>(Panicked));
        assert_eq!(isolated(async { 7 }).await, Ok(7));
    }
}
