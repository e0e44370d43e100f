//! Notices that the outbox's stream lost, or that could not be delivered when it carried them: they are woken, so that the stream carries
//! them to the notifier once more. The sweeper itself sends nothing.

use std::collections::VecDeque;

use tokentill::{
    domain::time::{EpochSecs, HOUR_SECS, MINUTE_SECS},
    ports::{Clock, PendingNotices, Unavailable},
};

use crate::Run;

/// A notice that is pending for so long is woken: the notifier's own retries are over by then.
const WOKEN_AFTER_SECS: i64 = 15 * MINUTE_SECS;
/// One that is pending for so long needs a person: it was woken before, by the hourly run, and an hour later was pending still.
const STUCK_AFTER_SECS: i64 = 2 * HOUR_SECS + 15 * MINUTE_SECS;
/// How many notices of a shard are woken before it is the next one's turn.
const SHARE: u8 = 32;

/// Wakes what is pending for too long at `now`, the oldest of each shard first, until nothing is left or the time is over. A share of
/// each shard in turn: one that is full of what cannot be delivered must not hide the others. One that fails holds up no other.
pub(crate) async fn wake(
    outbox: &impl PendingNotices,
    clock: &impl Clock,
    now: EpochSecs,
    stop_at_ms: i64,
    run: &mut Run,
) -> Result<(), Unavailable> {
    let ms = |moment: EpochSecs| moment.as_secs().saturating_mul(1000);
    let stuck_before_ms = ms(now.plus_secs(-STUCK_AFTER_SECS));
    let until_ms = ms(now.plus_secs(-WOKEN_AFTER_SECS));
    let mut failed = None;
    let mut shards: VecDeque<_> = (0..shards_of(outbox)).map(|shard| (shard, None)).collect();
    let is_over = || clock.now_ms() >= stop_at_ms;
    while let Some((shard, after)) = shards.pop_front().filter(|_| !is_over()) {
        let found = match outbox.pending(shard, until_ms, after.as_ref(), SHARE).await {
            Ok(found) => found,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        for notice in &found {
            if is_over() {
                break;
            }
            match outbox.wake(&notice.notice_id, ms(now)).await {
                Ok(true) => run.woken = run.woken.saturating_add(1),
                // Delivered meanwhile, or the index is behind: nothing to wake.
                Ok(false) => continue,
                Err(error) => failed = Some(error),
            }
            if notice.committed_at_ms <= stuck_before_ms {
                run.stuck = run.stuck.saturating_add(1);
            }
        }
        if found.len() >= usize::from(SHARE) {
            shards.push_back((shard, found.into_iter().next_back()));
        }
    }
    failed.map_or(Ok(()), Err)
}

fn shards_of<O: PendingNotices>(_: &O) -> u8 {
    O::SHARDS
}
