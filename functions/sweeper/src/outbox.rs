//! Notices that the outbox's stream lost, or that could not be delivered when it carried them: they are woken, so that the stream carries
//! them to the notifier once more. The sweeper itself sends nothing.

use tokentill::{
    domain::time::{EpochSecs, HOUR_SECS, MINUTE_SECS},
    ports::{PendingNotices, Unavailable},
};

use crate::Run;

/// A notice that is pending for so long is woken: the notifier's own retries are over by then.
const WOKEN_AFTER_SECS: i64 = 15 * MINUTE_SECS;
/// One that is pending for so long needs a person.
const STUCK_AFTER_SECS: i64 = HOUR_SECS;
/// How many notices one run wakes; what is left is pending at the next.
const MAX_WOKEN: usize = 500;

/// Wakes what is pending for too long at `now`. One that fails holds up no other.
pub(crate) async fn wake(outbox: &impl PendingNotices, now: EpochSecs, run: &mut Run) -> Result<(), Unavailable> {
    let ms = |moment: EpochSecs| moment.as_secs().saturating_mul(1000);
    let stuck_before_ms = ms(now.plus_secs(-STUCK_AFTER_SECS));
    let mut failed = None;
    for notice in outbox.pending(ms(now.plus_secs(-WOKEN_AFTER_SECS)), MAX_WOKEN).await? {
        // Delivered meanwhile, or the index is behind: nothing to wake.
        match outbox.wake(&notice.notice_id, ms(now)).await {
            Ok(true) => run.woken = run.woken.saturating_add(1),
            Ok(false) => continue,
            Err(error) => failed = Some(error),
        }
        if notice.committed_at_ms <= stuck_before_ms {
            run.stuck = run.stuck.saturating_add(1);
        }
    }
    failed.map_or(Ok(()), Err)
}
