//! That Stripe's deliveries arrive is noted for the sweeper, which tells of it if they no longer do.

use std::sync::atomic::{AtomicI64, Ordering};

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use tokentill::{
    config::StripeMode,
    domain::{
        hint::Hint,
        time::{EpochSecs, MINUTE_SECS},
    },
    log::Line,
    ports::{Clock, Heard},
    records,
};

/// So often it is noted by one running function.
const EVERY_SECS: i64 = 10 * MINUTE_SECS;

/// What a running function has noted. Forgotten with it, which costs a write.
#[derive(Debug, Default)]
pub struct Listener {
    noted_secs: AtomicI64,
}

impl Listener {
    /// Notes the latest delivery of a batch, unless one was noted a little before. A hint that nobody delivered is none: our own,
    /// a replay, or one that the sweeper found. If it cannot be noted, the hints are handled all the same.
    pub(crate) async fn listen(&self, event: &SqsEvent, heard: &impl Heard, clock: &impl Clock, mode: StripeMode) {
        let Some(latest) = event.records.iter().filter_map(|record| delivered_at(record, mode)).max() else { return };
        let latest = latest.min(clock.now());
        if latest.as_secs() < self.noted_secs.load(Ordering::Relaxed).saturating_add(EVERY_SECS) {
            return;
        }
        match heard.note_heard(latest).await {
            Ok(()) => self.noted_secs.store(latest.as_secs(), Ordering::Relaxed),
            Err(error) => Line::new("sync", "a delivery was not noted").field("error", error.to_string()).write(clock),
        }
    }
}

/// When the webhook queued what Stripe delivered.
fn delivered_at(record: &SqsMessage, mode: StripeMode) -> Option<EpochSecs> {
    let hint: Hint = serde_json::from_str(record.body.as_deref()?).ok()?;
    let is_delivered = hint.was_delivered() && hint.livemode == mode.livemode();
    records::number_attribute(record, "SentTimestamp").filter(|_| is_delivered).map(EpochSecs::from_ms)
}
