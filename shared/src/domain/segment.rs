//! Segments: which billing period, on which prices, a moment of usage belongs to (G6).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    account::Account,
    id::{CustomerId, MeterId, PlanId, SubscriptionId, composite_key, stable_hash},
    period::Cycle,
    price_list::PriceList,
    time::{EpochSecs, calendar_month},
};

/// A user's time on one set of metered prices within one billing period, as the account keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The subscription that bills it.
    pub subscription: SubscriptionId,
    /// The customer that pays.
    pub customer: CustomerId,
    /// The plan, unless its prices were unknown.
    pub plan: Option<PlanId>,
    /// What is billed.
    pub billed: BTreeSet<MeterId>,
    /// Its first second.
    pub start: EpochSecs,
    /// The first second after it, as far as it is known.
    pub end: EpochSecs,
    /// How it renews. `None` once it is known to have ended for good.
    pub renews: Option<Cycle>,
    /// Whether it is a trial: what is used in it is free, and stays so however late it is reported.
    #[serde(default)]
    pub is_trial: bool,
}

/// Where a moment of usage belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Into a segment that is billed.
    Billed(Span),
    /// Onto the free tier: into that calendar month.
    Free {
        /// The free plan.
        plan: PlanId,
        /// The month's first second.
        start: EpochSecs,
        /// The first second after it.
        end: EpochSecs,
    },
    /// Nowhere: there was no subscription then, and there is no free tier.
    NoSubscription,
    /// Nowhere yet: nobody knows the user, and there is no free tier.
    UnknownUser,
}

/// The period of a billed segment that a moment lies in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The subscription that bills it.
    pub subscription: SubscriptionId,
    /// The customer that pays.
    pub customer: CustomerId,
    /// The plan, unless its prices were unknown.
    pub plan: Option<PlanId>,
    /// What is billed.
    pub billed: BTreeSet<MeterId>,
    /// Its first second.
    pub start: EpochSecs,
    /// The first second after it.
    pub end: EpochSecs,
}

impl Place {
    /// The segment's part of a tally's key. A billed segment is named by its subscription, its first second, which Stripe and our
    /// own arithmetic agree on, and what is billed: a switch of prices at a renewal that was counted before it was known must not
    /// mix two sets of prices in one tally. The free tier's month follows from the day.
    #[must_use]
    pub fn segment_key(&self) -> Option<String> {
        match self {
            Self::Billed(span) => {
                let meters: Vec<&str> = span.billed.iter().map(MeterId::as_str).collect();
                let prices = format!("{:016x}", stable_hash(&composite_key(&meters)));
                Some(composite_key(&["billed", span.subscription.as_str(), &span.start.as_secs().to_string(), &prices]))
            }
            Self::Free { start, .. } => Some(composite_key(&["free", &start.as_secs().to_string()])),
            Self::NoSubscription | Self::UnknownUser => None,
        }
    }
}

/// Finds where usage at `at` (in the account's time) belongs. Periods are contiguous, so a renewal needs no word from Stripe.
#[must_use]
pub fn place(account: Option<&Account>, prices: &PriceList, at: EpochSecs) -> Place {
    let segments = account.map(|account| account.segments.as_slice()).unwrap_or_default();
    // The newest segment that had begun; the one after it, if any, cuts it short.
    let begun = segments.iter().rposition(|segment| segment.start <= at);
    if let Some(segment) = begun.and_then(|index| segments.get(index)) {
        let next_start = begun.and_then(|index| segments.get(index.saturating_add(1))).map(|next| next.start);
        // A cancellation that is announced ends it too, however many renewals come before.
        let subscription = account.and_then(|account| account.subscription.as_ref());
        let cancel_at = subscription.filter(|kept| kept.id == segment.subscription).and_then(|kept| kept.cancel_at);
        let cut = [next_start, cancel_at].into_iter().flatten().min();
        if let Some((start, end)) = segment.period_at(at, cut) {
            return Place::Billed(Span {
                subscription: segment.subscription.clone(),
                customer: segment.customer.clone(),
                plan: segment.plan.clone(),
                billed: segment.billed.clone(),
                start,
                end,
            });
        }
    }
    match prices.free_plan() {
        Some(plan) => {
            let (start, end) = calendar_month(at);
            Place::Free { plan: plan.id.clone(), start, end }
        }
        None if account.is_some() => Place::NoSubscription,
        None => Place::UnknownUser,
    }
}

impl Segment {
    /// The period that `at` lies in, if it lies before the moment at which the segment is cut short.
    fn period_at(&self, at: EpochSecs, cut: Option<EpochSecs>) -> Option<(EpochSecs, EpochSecs)> {
        if cut.is_some_and(|cut| cut <= at) {
            return None;
        }
        let (start, end) = if at < self.end { (self.start, self.end) } else { self.renews?.period_containing(at) };
        // A renewed period begins no earlier than the known one ended, and ends no later than the next segment begins.
        let start = if at < self.end { start } else { start.max(self.end) };
        Some((start, cut.map_or(end, |cut| end.min(cut))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::account::tests::subscribed;

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    fn shown(account: Option<&Account>, moment: &str) -> String {
        match place(account, &PriceList::shipped().unwrap(), at(moment)) {
            Place::Billed(span) => format!("{} {} {}", span.subscription, span.start, span.end),
            Place::Free { plan, start, end } => format!("{plan} {start} {end}"),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn usage_lands_in_its_period_to_the_second_and_renewals_need_no_event() {
        let account = subscribed("2026-11-10T08:30:15Z");
        for (moment, expected) in [
            ("2026-11-10T08:30:14Z", "free 2026-11-01T00:00:00Z 2026-12-01T00:00:00Z"),
            ("2026-11-10T08:30:15Z", "sub_1 2026-11-10T08:30:15Z 2026-12-10T08:30:15Z"),
            ("2026-12-10T08:30:14Z", "sub_1 2026-11-10T08:30:15Z 2026-12-10T08:30:15Z"),
            ("2026-12-10T08:30:15Z", "sub_1 2026-12-10T08:30:15Z 2027-01-10T08:30:15Z"),
            ("2027-02-09T00:00:00Z", "sub_1 2027-01-10T08:30:15Z 2027-02-10T08:30:15Z"),
        ] {
            assert_eq!(shown(Some(&account), moment), expected, "{moment}");
        }
    }

    #[test]
    fn after_the_end_usage_is_free_again_and_a_switch_cuts_the_segment() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let mut next = account.segments[0].clone();
        next.start = at("2026-11-20T12:00:00Z");
        next.end = at("2026-12-05T00:00:00Z");
        next.renews = None;
        account.segments.push(next);
        assert_eq!(shown(Some(&account), "2026-11-20T11:59:59Z"), "sub_1 2026-11-10T00:00:00Z 2026-11-20T12:00:00Z");
        assert_eq!(shown(Some(&account), "2026-11-20T12:00:00Z"), "sub_1 2026-11-20T12:00:00Z 2026-12-05T00:00:00Z");
        assert_eq!(shown(Some(&account), "2026-12-05T00:00:00Z"), "free 2026-12-01T00:00:00Z 2027-01-01T00:00:00Z");
    }

    #[test]
    fn an_announced_cancellation_ends_a_segment_however_many_renewals_come_before() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2027-01-20T00:00:00Z"));
        for (moment, expected) in [
            ("2026-12-09T23:59:59Z", "sub_1 2026-11-10T00:00:00Z 2026-12-10T00:00:00Z"),
            ("2027-01-19T23:59:59Z", "sub_1 2027-01-10T00:00:00Z 2027-01-20T00:00:00Z"),
            ("2027-01-20T00:00:00Z", "free 2027-01-01T00:00:00Z 2027-02-01T00:00:00Z"),
        ] {
            assert_eq!(shown(Some(&account), moment), expected, "{moment}");
        }
    }

    #[test]
    fn without_a_free_tier_nobody_is_placed_there() {
        let mut prices = PriceList::shipped().unwrap();
        prices.plans.retain(|plan| !plan.prices.is_empty());
        let account = subscribed("2026-11-10T00:00:00Z");
        assert_eq!(place(None, &prices, at("2026-11-12T00:00:00Z")), Place::UnknownUser);
        assert_eq!(place(Some(&account), &prices, at("2026-11-09T00:00:00Z")), Place::NoSubscription);
    }
}
