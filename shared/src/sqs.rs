//! The adapters to the account-changes queue and, for recounts, to the usage queue.

use std::sync::Arc;

use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::SendMessageBatchRequestEntry,
};

use crate::{
    domain::{hint::Hint, id::UserId, usage::recount_message},
    ports::{Hints, Postpone, Recounts, Unavailable, UsageMessages},
    producer::UsageSink,
};

/// How long a recount waits: it is queued before the commit that makes it worth while, and should not come before it.
const RECOUNT_DELAY_SECS: i32 = 10;

/// The account-changes queue: FIFO, one group for each customer.
#[derive(Debug, Clone)]
pub struct HintQueue {
    client: Client,
    url: String,
}

impl HintQueue {
    /// The queue at this URL.
    #[must_use]
    pub fn new(client: Client, url: String) -> Self {
        Self { client, url }
    }
}

impl Hints for HintQueue {
    async fn send(&self, hint: &Hint, deduplication_id: &str) -> Result<(), Unavailable> {
        const WHAT: &str = "queueing a hint";
        let body = serde_json::to_string(hint).map_err(|error| Unavailable { what: WHAT, reason: error.to_string() })?;
        let request = self
            .client
            .send_message()
            .queue_url(&self.url)
            .message_body(body)
            .message_group_id(fifo_name(hint.group()))
            .message_deduplication_id(fifo_name(deduplication_id));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) => Err(unavailable(WHAT, &error)),
        }
    }
}

impl Postpone for HintQueue {
    async fn postpone(&self, receipt_handle: &str, secs: u32) -> Result<(), Unavailable> {
        let secs = i32::try_from(secs).unwrap_or(i32::MAX);
        let request = self.client.change_message_visibility().queue_url(&self.url).receipt_handle(receipt_handle);
        let sent = request.visibility_timeout(secs).send().await;
        sent.map(|_| ()).map_err(|error| unavailable("putting a hint off", &error))
    }
}

/// The usage queue, for those that put something on it: a service's [`crate::producer`], and whoever asks for a recount.
#[derive(Debug, Clone)]
pub struct UsageQueue {
    client: Client,
    url: String,
}

impl UsageQueue {
    /// The queue at this URL.
    #[must_use]
    pub fn new(client: Client, url: String) -> Self {
        Self { client, url }
    }
}

impl Recounts for UsageQueue {
    async fn recount(&self, user_id: &UserId) -> Result<(), Unavailable> {
        let request = self.client.send_message().queue_url(&self.url).message_body(recount_message(user_id));
        let sent = request.delay_seconds(RECOUNT_DELAY_SECS).send().await;
        sent.map(|_| ()).map_err(|error| unavailable("queueing a recount", &error))
    }
}

impl UsageSink for UsageQueue {
    async fn send(&self, bodies: &[Arc<str>]) -> Result<Vec<usize>, Unavailable> {
        const WHAT: &str = "sending usage events";
        if let [body] = bodies {
            let sent = self.client.send_message().queue_url(&self.url).message_body(&**body).send().await;
            return sent.map(|_| vec![0]).map_err(|error| unavailable(WHAT, &error));
        }
        let entry = |(place, body): (usize, &Arc<str>)| {
            SendMessageBatchRequestEntry::builder().id(place.to_string()).message_body(&**body).build()
        };
        let entries: Result<Vec<_>, _> = bodies.iter().enumerate().map(entry).collect();
        let entries = entries.map_err(|error| Unavailable { what: WHAT, reason: error.to_string() })?;
        let sent = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries)).send().await;
        let sent = sent.map_err(|error| unavailable(WHAT, &error))?;
        if let (Some(refused), []) = (sent.failed().first(), sent.successful()) {
            return Err(Unavailable { what: WHAT, reason: refused.code().to_owned() });
        }
        Ok(sent.successful().iter().filter_map(|taken| taken.id().parse().ok()).collect())
    }
}

impl UsageMessages for UsageQueue {
    async fn send(&self, body: &str) -> Result<(), Unavailable> {
        let sent = self.client.send_message().queue_url(&self.url).message_body(body).send().await;
        sent.map(|_| ()).map_err(|error| unavailable("queueing usage", &error))
    }
}

fn unavailable<E: ProvideErrorMetadata, R>(what: &'static str, error: &SdkError<E, R>) -> Unavailable {
    let reason = match (error.code(), error) {
        (Some(code), _) => code.to_owned(),
        (None, SdkError::TimeoutError(_)) => "timed out".to_owned(),
        (None, _) => "not reachable".to_owned(),
    };
    Unavailable { what, reason }
}

/// SQS takes 1 to 128 ASCII letters, digits and punctuation as a group or deduplication id. Stripe's ids are that; what is not
/// is named by its bytes, so that it stays distinct as far as 128 characters can.
fn fifo_name(name: &str) -> String {
    if !name.is_empty() && name.len() <= 128 && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return name.to_owned();
    }
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_ids_stay_as_they_are_and_others_become_valid_and_distinct() {
        assert_eq!(fifo_name("cus_123"), "cus_123");
        assert_eq!(fifo_name(&"x".repeat(128)).len(), 128);
        let odd = [fifo_name("a b"), fifo_name("a  b"), fifo_name(""), fifo_name(&"x".repeat(129)), fifo_name("ü")];
        assert!(odd.iter().all(|name| name.len() == 64 && name.is_ascii()));
        assert_eq!(odd.iter().collect::<std::collections::BTreeSet<_>>().len(), odd.len());
    }
}
