//! The comparison: on every so many days all subscriptions at Stripe, page by page, against the accounts.

use std::collections::BTreeSet;

use tokentill::{
    domain::{
        hint::Hint,
        id::{CustomerId, UserId},
        repair::{Difference, Known, ListedSubscription, differs},
        time::{DAY_SECS, EpochSecs},
    },
    ports::{
        AccountBatches, Clock, Comparison, CustomerRecord, CustomerStanding, Hints, StripeError, StripeLists, SweeperMemory,
        SweeperState,
    },
};

use super::{Ended, Invocation, Repair, Repaired};

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Compares as many pages as there is time for; the next run goes on.
    pub(super) async fn comparison(
        &self,
        memory: &mut SweeperMemory,
        now: EpochSecs,
        invocation: &Invocation,
        run: &mut Repaired,
    ) -> Result<(), Ended> {
        let mut comparison = match memory.comparison.clone() {
            Some(comparison) => comparison,
            None if self.is_due(memory, now) => begun(now),
            None => return Ok(()),
        };
        let mut is_anew = false;
        while !self.is_over(invocation) {
            let listed_at_ms = self.clock.now_ms();
            let page = match self.stripe.all_subscriptions(comparison.after.as_deref()).await {
                // A subscription only goes with a Stripe account's test data. From the beginning, since nobody knows where it was.
                Err(StripeError::NotFound { .. }) if comparison.after.is_some() && !is_anew => {
                    is_anew = true;
                    comparison = begun(now);
                    memory.comparison = Some(comparison.clone());
                    self.remember(memory).await?;
                    continue;
                }
                page => page?,
            };
            self.page(&mut comparison, &page.data, listed_at_ms, run).await?;
            comparison.after = page.next;
            let is_done = comparison.after.is_none();
            if is_done {
                memory.comparison = None;
                memory.compared_on = Some(comparison.day);
                memory.live_subscriptions = comparison.live;
            } else {
                memory.comparison = Some(comparison.clone());
            }
            self.remember(memory).await?;
            if is_done {
                self.line("all subscriptions were compared")
                    .field("subscriptions", comparison.subscriptions)
                    .field("live_subscriptions", comparison.live)
                    .field("differences", comparison.differences)
                    .write(&self.clock);
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_due(&self, memory: &SweeperMemory, now: EpochSecs) -> bool {
        let every_secs = i64::from(self.settings.compare_every_days).saturating_mul(DAY_SECS);
        memory.compared_on.is_none_or(|day| now.day().start().secs_since(day.start()) >= every_secs)
    }

    /// Compares a page in two reads, and queues the customers that differ.
    async fn page(
        &self,
        comparison: &mut Comparison,
        page: &[Result<ListedSubscription, String>],
        listed_at_ms: i64,
        run: &mut Repaired,
    ) -> Result<(), Ended> {
        let mut listed = Vec::with_capacity(page.len());
        for subscription in page {
            match subscription {
                Ok(subscription) => listed.push(subscription),
                Err(reason) => self.unreadable(run, reason),
            }
        }
        let customers: BTreeSet<CustomerId> = listed.iter().map(|listed| listed.customer.clone()).collect();
        let records = self.stored.customers(&customers).await?;
        let users: BTreeSet<UserId> = records.values().flatten().filter_map(|record| joined_user(record).cloned()).collect();
        let accounts = self.stored.accounts(&users).await?;
        let mut queued = BTreeSet::new();
        for listed in listed {
            comparison.subscriptions = comparison.subscriptions.saturating_add(1);
            comparison.live = comparison.live.saturating_add(u64::from(listed.facts.status.is_live()));
            run.compared = run.compared.saturating_add(1);
            let known = match records.get(&listed.customer) {
                Some(Err(error)) => {
                    self.unreadable(run, &error.to_string());
                    continue;
                }
                None => Known::Nothing,
                Some(Ok(record)) => match (record.standing, joined_user(record)) {
                    (CustomerStanding::Joined, Some(user)) => match accounts.get(user) {
                        Some(Err(error)) => {
                            self.unreadable(run, &error.to_string());
                            continue;
                        }
                        Some(Ok(account)) => Known::Joined(user, Some(account)),
                        None => Known::Joined(user, None),
                    },
                    (CustomerStanding::SecondClaimant, _) => Known::Refused,
                    // Nobody has looked whom it names, where only a payment of it was heard of.
                    (CustomerStanding::NoUser, _) if record.seen_at_ms > 0 => Known::NoUser,
                    (CustomerStanding::Joined | CustomerStanding::NotFound | CustomerStanding::NoUser, _) => Known::Nothing,
                },
            };
            let Some(difference) = differs(known, listed, &self.prices, listed_at_ms) else { continue };
            if queued.insert(&listed.customer) {
                self.look_at(&listed.customer, EpochSecs::from_ms(listed_at_ms)).await?;
                self.differs(listed, difference);
                comparison.differences = comparison.differences.saturating_add(1);
                run.differences = run.differences.saturating_add(1);
            }
        }
        Ok(())
    }

    async fn look_at(&self, customer: &CustomerId, found_at: EpochSecs) -> Result<(), Ended> {
        let Ok(hint) = Hint::of_difference(customer, found_at, self.mode.livemode()) else { return Ok(()) };
        Ok(self.hints.send(&hint, hint.event_id.as_str()).await?)
    }

    fn differs(&self, listed: &ListedSubscription, difference: Difference) {
        self.line("what is stored is not what Stripe has: the customer is queued")
            .field("difference", difference.as_str())
            .field("customer", listed.customer.as_str())
            .field("subscription", listed.facts.id.as_str())
            .count("NeedsAttention", 1)
            .write(&self.clock);
    }

    fn unreadable(&self, run: &mut Repaired, reason: &str) {
        run.unreadable = run.unreadable.saturating_add(1);
        let line = self.line("a subscription cannot be compared").field("error", reason);
        line.count("NeedsAttention", 1).write(&self.clock);
    }
}

fn begun(now: EpochSecs) -> Comparison {
    Comparison { day: now.day(), after: None, subscriptions: 0, live: 0, differences: 0 }
}

fn joined_user(record: &CustomerRecord) -> Option<&UserId> {
    record.user_id.as_ref().filter(|_| record.standing == CustomerStanding::Joined)
}
