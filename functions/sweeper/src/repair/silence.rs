//! Silence: nothing was heard of Stripe for long, although there are subscriptions.

use tokentill::{
    domain::time::{DAY_SECS, EpochSecs, HOUR_SECS},
    ports::{AccountBatches, Clock, Hints, StripeLists, SweeperMemory, SweeperState},
};

use super::{Ended, Repair, Repaired};

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Tells of a silence once a day while it lasts.
    pub(super) async fn silence(&self, memory: &mut SweeperMemory, now: EpochSecs, run: &mut Repaired) -> Result<(), Ended> {
        if self.settings.silence_hours == 0 || memory.live_subscriptions == 0 {
            return Ok(());
        }
        // Before the first run nobody listened for it.
        let Some(heard_at) = self.stored.heard_at().await?.max(memory.first_run_at) else { return Ok(()) };
        let silent_secs = now.secs_since(heard_at);
        if silent_secs < i64::from(self.settings.silence_hours).saturating_mul(HOUR_SECS) {
            return Ok(());
        }
        if memory.silence_told_at.is_some_and(|told_at| told_at > heard_at && now.secs_since(told_at) < DAY_SECS) {
            return Ok(());
        }
        self.line("nothing was heard of Stripe: no delivery arrived")
            .field("hours", silent_secs.saturating_div(HOUR_SECS))
            .field("live_subscriptions", memory.live_subscriptions)
            .count("NeedsAttention", 1)
            .write(&self.clock);
        run.told = run.told.saturating_add(1);
        memory.silence_told_at = Some(now);
        self.remember(memory).await
    }
}
