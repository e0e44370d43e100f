//! The webhook endpoint at Stripe: whether it is there, switched on, of our API version, and asks for what is of use.
//!
//! Nothing is switched on by itself: what made Stripe or a person switch it off is to be mended first.

use tokentill::{
    domain::{
        hint::snapshot_events,
        repair::{EndpointProblem, endpoint_problem},
        time::{DAY_SECS, EpochSecs, HOUR_SECS},
    },
    ports::{AccountBatches, Clock, EventList, Hints, StripeError, StripeLists, SweeperMemory, SweeperState},
};

use super::{Ended, Repair, Repaired};

/// What a key without permission is told by, in place of a problem.
const NOT_PERMITTED: &str = "not permitted";
/// For so many hours a delivery counts as recent, where no silence is told.
const RECENT_HOURS: u32 = 48;

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Looks at the endpoint. A problem is told when it comes up, and then once a day. The moment up to which events were asked for,
    /// if they are.
    pub(super) async fn endpoint(
        &self,
        memory: &mut SweeperMemory,
        now: EpochSecs,
        run: &mut Repaired,
    ) -> Result<Option<EpochSecs>, Ended> {
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
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let wanted = snapshot_events(self.mode.livemode());
        let problem = endpoint_problem(&self.settings.webhook_url, &endpoints, self.stripe.api_version(), &wanted);
        // What delivers may be a destination of thin events, which is not among the endpoints.
        let delivered_at = match problem {
            Some(EndpointProblem::Missing) => self.recently_heard_at(now).await?,
            _ => None,
        };
        let Some(problem) = problem.filter(|_| delivered_at.is_none()) else {
            let was_told = memory.endpoint_told.take().is_some();
            let is_mended = memory.events_unasked && memory.endpoint_mended_at.is_none();
            if is_mended {
                memory.endpoint_mended_at = Some(now);
            }
            if was_told {
                self.line("the webhook endpoint is as it should be again").write(&self.clock);
            }
            if was_told || is_mended {
                self.remember(memory).await?;
            }
            return Ok(Some(delivered_at.unwrap_or(now)));
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
        if is_new {
            // It would end without what nobody asked for.
            memory.events_window = memory.events_window.take().filter(|window| window.list != EventList::Undelivered);
        }
        if is_due || is_new {
            self.remember(memory).await?;
        }
        Ok((!loses_events).then_some(now))
    }

    /// When Stripe was last heard of, if that is recent.
    async fn recently_heard_at(&self, now: EpochSecs) -> Result<Option<EpochSecs>, Ended> {
        let hours = match self.settings.silence_hours {
            0 => RECENT_HOURS,
            hours => hours,
        };
        let recent_secs = i64::from(hours).saturating_mul(HOUR_SECS);
        Ok(self.stored.heard_at().await?.filter(|heard_at| now.secs_since(*heard_at) < recent_secs))
    }
}
