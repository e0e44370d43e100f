//! Events that Stripe could not deliver, or that no endpoint asked for, become hints as if they had come by webhook.

use std::collections::{BTreeMap, BTreeSet};

use tokentill::{
    domain::{
        account::Account,
        envelope,
        hint::{Hint, Relevance, relevance},
        id::{CustomerId, EventId},
        repair,
        time::{DAY_SECS, EpochSecs, HOUR_SECS, MINUTE_SECS},
    },
    ports::{
        AccountBatches, Clock, CustomerStanding, EventList, EventWindow, Hints, StripeError, StripeLists, SweeperMemory,
        SweeperState,
    },
};

use super::{Ended, Invocation, Repair, Repaired};

/// Stripe lists events for so long.
const LISTED_SECS: i64 = 30 * DAY_SECS;
/// What is younger may just be on its way, and is left for the next run.
const ON_ITS_WAY_SECS: i64 = 5 * MINUTE_SECS;
/// So far each run looks back behind the checkpoint, for events that were listed late.
const OVERLAP_SECS: i64 = HOUR_SECS;
/// The most pages of a run; the next one goes on.
const MOST_PAGES: usize = 100;
/// So many queued events are kept in mind, the latest; others would be queued once more, which does no harm.
const MOST_QUEUED: usize = 500;

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Queues what was not delivered, page by page. A page is passed only once it is queued.
    pub(super) async fn events(
        &self,
        memory: &mut SweeperMemory,
        now: EpochSecs,
        invocation: &Invocation,
        run: &mut Repaired,
    ) -> Result<(), Ended> {
        let mut window = match memory.events_window.clone().or_else(|| next_window(memory, now)) {
            Some(window) => window,
            None => return Ok(()),
        };
        let mut is_anew = false;
        for _ in 0..MOST_PAGES {
            if self.is_over(invocation) {
                return Ok(());
            }
            let page = match self.stripe.events(&window).await {
                // Older than 30 days meanwhile, and so is what came after it.
                Err(StripeError::NotFound { .. }) if window.after.is_some() && !is_anew => {
                    is_anew = true;
                    window.after = None;
                    memory.events_window = Some(window.clone());
                    self.remember(memory).await?;
                    continue;
                }
                page => page?,
            };
            self.queue(memory, &page.data, now, run).await?;
            let is_done = match (page.next, window.list) {
                (Some(after), _) => {
                    window.after = Some(after);
                    false
                }
                (None, EventList::AllOfFirstTypes) => {
                    window = EventWindow { list: EventList::AllOfOtherTypes, after: None, ..window };
                    false
                }
                (None, EventList::Undelivered | EventList::AllOfOtherTypes) => true,
            };
            if is_done {
                memory.events_window = None;
                memory.events_through = Some(window.until);
                // Up to where the endpoint was seen to be mended, somebody may have asked for nothing.
                let asked_since = memory.endpoint_mended_at.filter(|mended_at| window.until >= *mended_at);
                if window.list == EventList::AllOfOtherTypes {
                    memory.endpoint_good_at = None;
                    if asked_since.is_some() {
                        memory.events_unasked = false;
                        memory.endpoint_mended_at = None;
                    }
                }
            } else {
                memory.events_window = Some(window.clone());
            }
            self.remember(memory).await?;
            if is_done {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Queues what a page holds and nobody has dealt with.
    async fn queue(&self, memory: &mut SweeperMemory, page: &[String], now: EpochSecs, run: &mut Repaired) -> Result<(), Ended> {
        let known: BTreeSet<EventId> = memory.events_queued.iter().map(|(event, _)| event.clone()).collect();
        let (mut hints, mut unreadable) = (Vec::new(), 0_u64);
        for event in page {
            match envelope::read(event.as_bytes(), now, self.mode.livemode()) {
                Ok(hint) => hints.push(Hint { swept: true, ..hint }),
                Err(_) => unreadable = unreadable.saturating_add(1),
            }
        }
        if unreadable > 0 {
            let line = self.line("events of Stripe's list cannot be read").field("events", unreadable);
            line.count("NeedsAttention", unreadable).write(&self.clock);
            run.unreadable = run.unreadable.saturating_add(unreadable);
        }
        hints.retain(|hint| {
            let is_of_use = relevance(&hint.kind) == Relevance::AccountChange && hint.livemode == self.mode.livemode();
            is_of_use && !known.contains(&hint.event_id)
        });
        if hints.is_empty() {
            return Ok(());
        }
        let processed = self.stored.processed(&hints.iter().map(|hint| hint.event_id.clone()).collect()).await?;
        hints.retain(|hint| !processed.contains(&hint.event_id));
        let accounts = self.accounts_of(&hints).await?;
        for hint in &hints {
            self.hints.send(hint, hint.event_id.as_str()).await?;
            run.queued = run.queued.saturating_add(1);
            // What `sync` skipped, since it had fetched the customer after it, has no mark and was not missed.
            let account = hint.customer.as_ref().and_then(|customer| accounts.get(customer));
            // And what names no customer, as a guest's payment, concerns no user.
            if hint.customer.is_some() && !account.is_some_and(|account| repair::was_seen(account, hint)) {
                run.events = run.events.saturating_add(1);
                self.line("an event that was not delivered is queued")
                    .field("event_id", hint.event_id.as_str())
                    .field("type", hint.kind.as_str())
                    .maybe("customer", hint.customer.as_ref())
                    .count("NeedsAttention", 1)
                    .write(&self.clock);
            }
        }
        memory.events_queued.extend(hints.into_iter().map(|hint| (hint.event_id, hint.created)));
        memory.events_queued.sort_by_key(|(_, created)| std::cmp::Reverse(*created));
        memory.events_queued.truncate(MOST_QUEUED);
        Ok(())
    }

    /// The accounts of the customers that events are about, as far as they have one.
    async fn accounts_of(&self, hints: &[Hint]) -> Result<BTreeMap<CustomerId, Account>, Ended> {
        let customers: BTreeSet<CustomerId> = hints.iter().filter_map(|hint| hint.customer.clone()).collect();
        let records = self.stored.customers(&customers).await?;
        let joined = records.into_values().flatten().filter(|record| record.standing == CustomerStanding::Joined);
        let users: BTreeMap<CustomerId, _> = joined.filter_map(|record| Some((record.customer_id, record.user_id?))).collect();
        let accounts = self.stored.accounts(&users.values().cloned().collect()).await?;
        let account = |(customer, user)| match accounts.get(&user) {
            Some(Ok(account)) if account.customer_id == customer => Some((customer, account.clone())),
            _ => None,
        };
        Ok(users.into_iter().filter_map(account).collect())
    }
}

/// The window that follows on from what was looked through; `None` if nothing does.
fn next_window(memory: &SweeperMemory, now: EpochSecs) -> Option<EventWindow> {
    let until = now.plus_secs(ON_ITS_WAY_SECS.saturating_neg());
    let list = if memory.events_unasked { EventList::AllOfFirstTypes } else { EventList::Undelivered };
    let earliest = now.plus_secs(LISTED_SECS.saturating_neg());
    let from = match memory.events_through {
        Some(through) if through >= until => return None,
        Some(through) => through.plus_secs(OVERLAP_SECS.saturating_neg()),
        // What happened before there was an endpoint is the comparison's and the import's business.
        None if memory.events_unasked => until.plus_secs(OVERLAP_SECS.saturating_neg()),
        None => earliest,
    };
    // While nobody could look at the endpoint, only what was undelivered was listed, and that is not what nobody asked for.
    let unasked_since = memory.endpoint_good_at.filter(|_| memory.events_unasked);
    let from = unasked_since.map_or(from, |good_at| from.min(good_at)).max(earliest);
    Some(EventWindow { from, until, list, after: None })
}
