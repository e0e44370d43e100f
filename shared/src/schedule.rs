//! Scheduled events: what a schedule sends to its function.

use serde::Deserialize;

use crate::domain::time::EpochSecs;

/// A schedule's event, of which only the moment matters: time is an input, also for scheduled functions.
#[derive(Debug, Clone, Deserialize)]
pub struct ScheduledEvent {
    time: String,
}

/// The event has no moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the scheduled event's `time` is not RFC 3339: send an EventBridge scheduled event, as in events/scheduled.json")]
pub struct NoMoment;

impl ScheduledEvent {
    /// The moment the schedule fired for.
    ///
    /// # Errors
    /// [`NoMoment`] if `time` cannot be read.
    pub fn moment(&self) -> Result<EpochSecs, NoMoment> {
        EpochSecs::parse_rfc3339(&self.time).ok_or(NoMoment)
    }
}
