//! The account: what we keep of a user, its customer, subscription, plan and grace.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    access::State,
    facts::{PausedBy, Status},
    id::{CustomerId, InvoiceId, PlanId, SubscriptionId, UserId},
    price_list::PriceList,
    segment::Segment,
    time::EpochSecs,
};

/// Joins a user to a customer. Written only under its version, by `sync` and the sweeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Whose it is.
    pub user_id: UserId,
    /// Grows by one with each commit; a commit holds only under the version that was read (G2).
    pub version: u64,
    /// Stripe's customer.
    pub customer_id: CustomerId,
    /// The subscription that counts, if there ever was one.
    pub subscription: Option<Subscription>,
    /// The open invoices of that subscription whose payment failed.
    #[serde(default)]
    pub overdue: BTreeMap<InvoiceId, Overdue>,
    /// Its segments, oldest first; those that late usage may still fall into, and the present one.
    #[serde(default)]
    pub segments: Vec<Segment>,
    /// For each subscription the moment up to which its usage is invoiced for good: the end of the newest usage period whose
    /// invoice is no draft any more. It only ever moves later.
    #[serde(default)]
    pub final_through: BTreeMap<SubscriptionId, EpochSecs>,
    /// Why the subscription is paused, if it is.
    #[serde(default)]
    pub paused_by: Option<PausedBy>,
    /// Of a cancelled subscription whose invoice was paid after its end: the end of the period that was paid for. Access goes on
    /// until then (G7).
    #[serde(default)]
    pub paid_until: Option<EpochSecs>,
    /// A test clock's moment minus the real one when it was read; 0 without a test clock. Every decision about this account
    /// uses now plus this.
    #[serde(default)]
    pub clock_offset_secs: i64,
    /// When the fetch began from which this was decided, in milliseconds since 1970 by our own clock.
    pub fetched_at_ms: i64,
    /// What notices have told of this account.
    #[serde(default)]
    pub announced: Announced,
    /// The real moment up to which it is told what is due. Whoever asks later by an earlier moment, such as a sweep that its event
    /// dates before the last fetch, is answered by this one, so that nothing is taken back that was told.
    #[serde(default)]
    pub told_at: Option<EpochSecs>,
    /// The end of the trial whose coming end was told last.
    #[serde(default)]
    pub trial_end_told: Option<EpochSecs>,
    /// Other customers that claimed the user while it was bound to this one. They are looked at again once it no longer is.
    #[serde(default)]
    pub refused_claimants: BTreeSet<CustomerId>,
}

/// The subscription that counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: SubscriptionId,
    /// Its status; never one that we do not know, since the last known one is kept.
    pub status: Status,
    /// The plan its prices belong to; the last known one, if they are unknown.
    pub plan: Option<PlanId>,
    /// When the trial ends.
    pub trial_end: Option<EpochSecs>,
    /// When it is going to end.
    pub cancel_at: Option<EpochSecs>,
    /// When it ended.
    pub ended_at: Option<EpochSecs>,
    /// Whether it bills usage before a price switch (`billing_mode=flexible`).
    pub flexible: bool,
}

/// An open invoice whose payment failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overdue {
    /// The earliest known failure: the earliest `created` of a payment failure seen for it, or the first fetch that showed it
    /// open and attempted. It only ever moves earlier.
    pub since: EpochSecs,
}

/// What notices have told, so that each change is told once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Announced {
    /// The state that was told last.
    pub state: Option<State>,
    /// The plan that was told last.
    pub plan: Option<PlanId>,
    /// How many reminders of the present grace period were sent.
    #[serde(default)]
    pub reminders: u8,
    /// The announced end of the subscription, if its end was told.
    #[serde(default)]
    pub ending_at: Option<EpochSecs>,
    /// The state in which the end of access was told, as long as nothing was told since but what the ended subscription owes.
    #[serde(default)]
    pub end_told: Option<State>,
}

impl Announced {
    /// The state that was told last of access: what is owed of a subscription whose end was told gives none.
    #[must_use]
    pub fn of_access(&self) -> Option<State> {
        self.end_told.or(self.state)
    }
}

impl Account {
    /// The moment the account lives in: the given one, moved by its test clock.
    #[must_use]
    pub fn local_time(&self, now: EpochSecs) -> EpochSecs {
        now.plus_secs(self.clock_offset_secs)
    }

    /// A moment reported by an AI service, in the account's own time.
    ///
    /// Without a test clock the two are one. With one, services report by the real clock and whoever plays a story reports by
    /// the test clock, and neither says which; the moment is read by the clock it is nearer to.
    #[must_use]
    pub fn reported_moment(&self, reported: EpochSecs, now: EpochSecs) -> EpochSecs {
        let local_now = self.local_time(now);
        let moved = self.local_time(reported);
        let distance = |moment: EpochSecs| local_now.secs_since(moment).unsigned_abs();
        if distance(moved) <= distance(reported) { moved } else { reported }
    }

    /// Whether the user is bound to this customer (G2: another claimant is then quarantined).
    #[must_use]
    pub fn has_live_subscription(&self) -> bool {
        self.subscription.as_ref().is_some_and(|subscription| subscription.status.is_live())
    }

    /// When the present grace period began: the earliest failure of any open invoice.
    #[must_use]
    pub fn overdue_since(&self) -> Option<EpochSecs> {
        self.first_overdue().map(|(_, since)| since)
    }

    /// The open invoice whose payment failed first, and when that was.
    #[must_use]
    pub fn first_overdue(&self) -> Option<(&InvoiceId, EpochSecs)> {
        self.overdue.iter().map(|(invoice, overdue)| (invoice, overdue.since)).min_by_key(|(_, since)| *since)
    }

    /// The moment at which access ends if nothing is paid.
    #[must_use]
    pub fn grace_deadline(&self, prices: &PriceList) -> Option<EpochSecs> {
        self.overdue_since().map(|since| since.plus_days(i64::from(prices.grace.days)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::{id::MeterId, period::Cycle, price_list::Interval};

    /// An account on the plan `pro` whose monthly periods began at the given moment.
    pub(crate) fn subscribed(since: &str) -> Account {
        let start = EpochSecs::parse_rfc3339(since).unwrap();
        let cycle = Cycle { anchor: start, interval: Interval::Month, count: 1 };
        let plan = Some(PlanId::new("pro").unwrap());
        Account {
            user_id: UserId::new("ada").unwrap(),
            version: 1,
            customer_id: CustomerId::new("cus_1").unwrap(),
            subscription: Some(Subscription {
                id: SubscriptionId::new("sub_1").unwrap(),
                status: Status::Active,
                plan: plan.clone(),
                trial_end: None,
                cancel_at: None,
                ended_at: None,
                flexible: true,
            }),
            overdue: BTreeMap::new(),
            segments: vec![Segment {
                subscription: SubscriptionId::new("sub_1").unwrap(),
                customer: CustomerId::new("cus_1").unwrap(),
                plan: plan.clone(),
                billed: ["requests", "tokens_in", "tokens_out"].map(|id| MeterId::new(id).unwrap()).into(),
                start,
                end: cycle.boundary(1),
                renews: Some(cycle),
                is_trial: false,
            }],
            final_through: BTreeMap::new(),
            paused_by: None,
            paid_until: None,
            clock_offset_secs: 0,
            fetched_at_ms: start.as_secs() * 1000,
            announced: Announced { state: Some(State::Active), plan, ..Announced::default() },
            told_at: None,
            trial_end_told: None,
            refused_claimants: BTreeSet::new(),
        }
    }

    #[test]
    fn a_reported_moment_is_read_by_the_clock_it_is_nearer_to() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let now = EpochSecs::new(1_000_000);
        assert_eq!(account.reported_moment(now.plus_secs(-60), now), now.plus_secs(-60));
        account.clock_offset_secs = 86_400;
        assert_eq!(account.reported_moment(now.plus_secs(-60), now), now.plus_secs(86_340), "by the real clock");
        assert_eq!(account.reported_moment(now.plus_secs(86_340), now), now.plus_secs(86_340), "by the test clock");
    }

    #[test]
    fn the_earliest_failure_of_any_open_invoice_starts_the_grace_period() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let prices = PriceList::shipped().unwrap();
        assert_eq!(account.grace_deadline(&prices), None);
        for (invoice, since) in [("in_2", 2_000), ("in_1", 1_000), ("in_3", 3_000)] {
            account.overdue.insert(InvoiceId::new(invoice).unwrap(), Overdue { since: EpochSecs::new(since) });
        }
        assert_eq!(account.grace_deadline(&prices), Some(EpochSecs::new(1_000 + 7 * 86_400)));
    }
}
