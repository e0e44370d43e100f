//! The webhook endpoint at Stripe: whether it is there, switched on, of our API version, and asks for what is of use.
//!
//! Nothing is switched on by itself: what made Stripe or a person switch it off is to be mended first.

use tokentill::{
    domain::{
        hint::snapshot_events,
        repair::endpoint_problem,
        time::{DAY_SECS, EpochSecs},
    },
    ports::{AccountBatches, Clock, Hints, StripeError, StripeLists, SweeperMemory, SweeperState},
};

use super::{Ended, Repair, Repaired};

/// What a key without permission is told by, in place of a problem.
const NOT_PERMITTED: &str = "not permitted";

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Looks at the endpoint. A problem is told when it comes up, and then once a day.
    pub(super) async fn endpoint(&self, memory: &mut SweeperMemory, now: EpochSecs, run: &mut Repaired) -> Result<(), Ended> {
        let endpoints = match self.stripe.endpoints().await {
            Ok(endpoints) => endpoints,
            // A restricted key need not be allowed to look: that is said once, and is no failure.
            Err(error @ StripeError::Unauthorised { status: 403, .. }) => {
                if memory.endpoint_told.as_ref().is_none_or(|(told, _)| told != NOT_PERMITTED) {
                    let line = self.line("the webhook endpoint is not looked at: the Stripe key may not list webhook endpoints");
                    line.field("error", error.to_string()).write(&self.clock);
                    memory.endpoint_told = Some((NOT_PERMITTED.to_owned(), now));
                    self.remember(memory).await?;
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let wanted = snapshot_events(self.mode.livemode());
        let problem = endpoint_problem(&self.settings.webhook_url, &endpoints, self.stripe.api_version(), &wanted);
        let Some(problem) = problem else {
            let was_told = memory.endpoint_told.take().is_some();
            let is_mended = memory.events_unasked && memory.endpoint_mended_at.is_none();
            if is_mended {
                memory.endpoint_mended_at = Some(now);
            }
            if was_told {
                self.line("the webhook endpoint is as it should be again").write(&self.clock);
            }
            return if was_told || is_mended { self.remember(memory).await } else { Ok(()) };
        };
        let text = problem.to_string();
        let told = memory.endpoint_told.as_ref();
        let is_due = told.is_none_or(|(told, told_at)| *told != text || now.secs_since(*told_at) >= DAY_SECS);
        let loses_events = problem.loses_events();
        let is_new = loses_events && (!memory.events_unasked || memory.endpoint_mended_at.is_some());
        if is_due {
            let line = self.line("the webhook endpoint needs to be mended").field("problem", text.as_str());
            line.count("NeedsAttention", 1).write(&self.clock);
            run.told = run.told.saturating_add(1);
            memory.endpoint_told = Some((text, now));
        }
        if loses_events {
            memory.events_unasked = true;
            memory.endpoint_mended_at = None;
        }
        if is_due || is_new { self.remember(memory).await } else { Ok(()) }
    }
}
