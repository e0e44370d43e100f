//! Who may call the model right now: the state table of the contract (3.3), as one function of the account and the moment.
//!
//! **Invariant:** access is computed when it is asked. Nothing has to run for it to be right: no timer, no sweep (G7).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    account::Account,
    facts::Status,
    id::{MeterId, PlanId, UserId},
    price_list::PriceList,
    segment::{Place, place},
    time::EpochSecs,
};

/// The state a user is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// On the free tier.
    Free,
    /// Without any access.
    None,
    /// On trial.
    Trialing,
    /// Subscribed and paid.
    Active,
    /// A payment failed; access goes on until the deadline.
    Grace,
    /// Access has ended.
    Ended,
}

impl State {
    /// Whether the state alone allows a call.
    #[must_use]
    pub fn allows(self) -> bool {
        matches!(self, Self::Free | Self::Trialing | Self::Active | Self::Grace)
    }
}

/// Why a call is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nobody knows the user, and there is no free tier.
    UnknownUser,
    /// The first payment is still missing.
    PaymentIncomplete,
    /// The grace period is over and the invoice still open.
    PaymentOverdue,
    /// The subscription is paused.
    Paused,
    /// The subscription has ended.
    SubscriptionEnded,
    /// The segment's quota of a meter is used up.
    QuotaExceeded,
    /// This minute's requests are used up.
    RateLimited,
}

/// What follows from Stripe's truth and the moment alone, before quotas and rates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The state.
    pub state: State,
    /// Why it allows nothing, if so.
    pub reason: Option<Reason>,
    /// When it will change by itself, as far as that ends access.
    pub access_until: Option<EpochSecs>,
    /// The plan whose limits hold.
    pub plan: Option<PlanId>,
}

/// The state table. `now` is the real moment; the account's test clock moves it.
#[must_use]
pub fn standing(account: Option<&Account>, prices: &PriceList, now: EpochSecs) -> Standing {
    let Some(account) = account else { return without_subscription(prices, Reason::UnknownUser) };
    let Some(subscription) = &account.subscription else { return without_subscription(prices, Reason::UnknownUser) };
    let now = account.local_time(now);
    let with = |state, access_until| Standing { state, reason: None, access_until, plan: subscription.plan.clone() };
    let ended =
        |reason| Standing { state: State::Ended, reason: Some(reason), access_until: None, plan: subscription.plan.clone() };
    // Grace ends exactly at the deadline: the second before it still has access, the deadline itself has not.
    let overdue = || match account.grace_deadline(prices) {
        Some(deadline) if now < deadline => with(State::Grace, Some(deadline)),
        _ => ended(Reason::PaymentOverdue),
    };
    match &subscription.status {
        Status::Incomplete | Status::IncompleteExpired => without_subscription(prices, Reason::PaymentIncomplete),
        Status::Trialing | Status::Active if subscription.cancel_at.is_some_and(|end| end <= now) => {
            without_subscription(prices, Reason::SubscriptionEnded)
        }
        // A trial that is over is paid time until Stripe says otherwise, as a renewal is.
        Status::Trialing if subscription.trial_end.is_some_and(|end| now < end) => {
            with(State::Trialing, earliest(subscription.trial_end, subscription.cancel_at))
        }
        Status::Trialing | Status::Active => with(State::Active, subscription.cancel_at),
        Status::PastDue | Status::Unpaid => overdue(),
        Status::Paused => ended(Reason::Paused),
        Status::Canceled if !account.overdue.is_empty() => overdue(),
        Status::Canceled => without_subscription(prices, Reason::SubscriptionEnded),
        // Never stored (the last known status is kept); were it, a paying user would not be locked out.
        Status::Other(_) => with(State::Active, subscription.cancel_at),
    }
}

fn without_subscription(prices: &PriceList, reason: Reason) -> Standing {
    match prices.free_plan() {
        Some(plan) => Standing { state: State::Free, reason: None, access_until: None, plan: Some(plan.id.clone()) },
        None => {
            let state = if reason == Reason::SubscriptionEnded { State::Ended } else { State::None };
            Standing { state, reason: Some(reason), access_until: None, plan: None }
        }
    }
}

fn earliest(a: Option<EpochSecs>, b: Option<EpochSecs>) -> Option<EpochSecs> {
    [a, b].into_iter().flatten().min()
}

/// The answer of the access API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Access {
    /// Whose access it is.
    pub user_id: UserId,
    /// Whether a call is allowed.
    pub allowed: bool,
    /// The state.
    pub state: State,
    /// Why not, if not.
    pub reason: Option<Reason>,
    /// The plan whose limits hold.
    pub plan: Option<PlanId>,
    /// When access ends by itself, RFC 3339.
    pub access_until: Option<String>,
    /// The rate limit.
    pub rate_limit: Option<RateLimit>,
    /// The quotas.
    pub quotas: BTreeMap<MeterId, Quota>,
}

/// The plan's rate limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// The most requests granted in one UTC minute.
    pub requests_per_minute: u32,
    /// How many of them are left of this minute, where a check asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u32>,
}

/// A quota of the present segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// The most the segment allows.
    pub limit: u64,
    /// What is used.
    pub used: u64,
    /// What is left.
    pub remaining: u64,
    /// When the next segment begins, RFC 3339.
    pub resets_at: String,
}

/// The next moment at which access changes although nothing is committed: a deadline, the end of a trial, of a subscription, of a
/// segment or of the free tier's month. A real moment; `None` if there is none.
#[must_use]
pub fn next_change(account: Option<&Account>, prices: &PriceList, now: EpochSecs) -> Option<EpochSecs> {
    let offset_secs = account.map_or(0, |account| account.clock_offset_secs);
    let at = |moment: EpochSecs| {
        let local = moment.plus_secs(offset_secs);
        (standing(account, prices, moment), place(account, prices, local))
    };
    let local_now = now.plus_secs(offset_secs);
    let present = at(now);
    let mut moments = Vec::new();
    match &present.1 {
        Place::Billed(span) => moments.push(span.end),
        Place::Free { end, .. } => moments.push(*end),
        Place::NoSubscription | Place::UnknownUser => {}
    }
    if let Some(account) = account {
        let subscription = account.subscription.as_ref();
        moments.extend(subscription.and_then(|subscription| subscription.trial_end));
        moments.extend(subscription.and_then(|subscription| subscription.cancel_at));
        moments.extend(account.grace_deadline(prices));
        moments.extend(account.segments.iter().map(|segment| segment.start));
    }
    moments.sort();
    let ahead = moments.into_iter().filter(|moment| local_now < *moment);
    ahead.map(|moment| moment.plus_secs(offset_secs.saturating_neg())).find(|moment| at(*moment) != present)
}

#[cfg(test)]
#[allow(clippy::as_conversions, reason = "a part of some seconds needs no exactness")]
mod tests {
    use super::*;
    use crate::domain::{
        account::{Overdue, tests::subscribed},
        id::InvoiceId,
        time::DAY_SECS,
    };
    use proptest::prelude::*;

    const START: &str = "2026-11-10T00:00:00Z";

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    fn lists() -> (PriceList, PriceList) {
        let with_free = PriceList::shipped().unwrap();
        let mut without_free = with_free.clone();
        without_free.plans.retain(|plan| !plan.prices.is_empty());
        (with_free, without_free)
    }

    fn shown(account: Option<&Account>, now: EpochSecs) -> String {
        let (with_free, without_free) = lists();
        let show = |prices: &PriceList| {
            let standing = standing(account, prices, now);
            let word = |value: serde_json::Value| value.as_str().unwrap_or("-").to_owned();
            let until = standing.access_until.map_or("-".to_owned(), |until| until.to_string());
            format!(
                "{} {} {until}",
                word(serde_json::to_value(standing.state).unwrap()),
                word(serde_json::to_value(standing.reason).unwrap())
            )
        };
        let (a, b) = (show(&with_free), show(&without_free));
        if a == b { a } else { format!("{a} | {b}") }
    }

    fn with_status(status: Status, overdue_since: Option<&str>) -> Account {
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().status = status;
        if let Some(since) = overdue_since {
            account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at(since) });
        }
        account
    }

    /// The contract's table, row by row; where the price list has no free plan, the answer after the bar.
    #[test]
    fn the_state_table_of_the_contract() {
        let failed = Some("2026-11-20T12:00:00Z");
        let before = at("2026-11-27T11:59:59Z");
        let deadline = at("2026-11-27T12:00:00Z");
        for (status, overdue, now, expected) in [
            (Status::Incomplete, None, before, "free - - | none payment_incomplete -"),
            (Status::IncompleteExpired, None, before, "free - - | none payment_incomplete -"),
            (Status::Active, None, before, "active - -"),
            (Status::Active, failed, deadline, "active - -"),
            (Status::PastDue, failed, before, "grace - 2026-11-27T12:00:00Z"),
            (Status::PastDue, failed, deadline, "ended payment_overdue -"),
            (Status::Unpaid, failed, before, "grace - 2026-11-27T12:00:00Z"),
            (Status::Unpaid, failed, deadline, "ended payment_overdue -"),
            (Status::Paused, None, before, "ended paused -"),
            (Status::Canceled, failed, before, "grace - 2026-11-27T12:00:00Z"),
            (Status::Canceled, failed, deadline, "ended payment_overdue -"),
            (Status::Canceled, None, before, "free - - | ended subscription_ended -"),
        ] {
            let account = with_status(status.clone(), overdue);
            assert_eq!(shown(Some(&account), now), expected, "{status:?} {overdue:?} {now}");
        }
        assert_eq!(shown(None, before), "free - - | none unknown_user -");
        let mut never = subscribed(START);
        never.subscription = None;
        assert_eq!(shown(Some(&never), before), "free - - | none unknown_user -");
    }

    #[test]
    fn a_trial_ends_at_its_end_and_a_cancellation_at_its_moment() {
        let mut account = with_status(Status::Trialing, None);
        account.subscription.as_mut().unwrap().trial_end = Some(at("2026-11-24T00:00:00Z"));
        assert_eq!(shown(Some(&account), at("2026-11-23T23:59:59Z")), "trialing - 2026-11-24T00:00:00Z");
        assert_eq!(shown(Some(&account), at("2026-11-24T00:00:00Z")), "active - -");
        let mut account = with_status(Status::Active, None);
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(shown(Some(&account), at("2026-12-09T23:59:59Z")), "active - 2026-12-10T00:00:00Z");
        assert_eq!(shown(Some(&account), at("2026-12-10T00:00:00Z")), "free - - | ended subscription_ended -");
    }

    #[test]
    fn a_test_clock_moves_the_moment() {
        let mut account = with_status(Status::PastDue, Some("2026-11-20T12:00:00Z"));
        account.clock_offset_secs = -86_400;
        assert_eq!(shown(Some(&account), at("2026-11-28T11:59:59Z")), "grace - 2026-11-27T12:00:00Z");
        account.clock_offset_secs = 0;
        assert_eq!(shown(Some(&account), at("2026-11-28T11:59:59Z")), "ended payment_overdue -");
    }

    /// An account of any kind: any status, one to three segments with or without renewals, any moments, also on a test clock.
    fn any_account() -> impl Strategy<Value = Account> {
        let status = prop::sample::select(vec![
            Status::Incomplete,
            Status::Trialing,
            Status::Active,
            Status::PastDue,
            Status::Unpaid,
            Status::Paused,
            Status::Canceled,
        ]);
        // In days and seconds around the moment that is asked about.
        let moment = || (-40_i64..60, 0_i64..DAY_SECS).prop_map(|(days, secs)| at(START).plus_days(days).plus_secs(secs));
        let maybe = || prop::option::of(moment());
        let segments = prop::collection::vec((moment(), 1_i64..40, any::<bool>()), 0..4);
        let offset = prop_oneof![Just(0), -400 * DAY_SECS..400 * DAY_SECS];
        (status, (maybe(), maybe(), maybe()), segments, offset).prop_map(|(status, moments, segments, offset)| {
            let mut account = with_status(status, None);
            let subscription = account.subscription.as_mut().unwrap();
            (subscription.trial_end, subscription.cancel_at) = (moments.0, moments.1);
            if let Some(since) = moments.2 {
                account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since });
            }
            let template = account.segments.remove(0);
            for (start, days, renews) in segments {
                let mut segment = template.clone();
                (segment.start, segment.end) = (start, start.plus_days(days));
                segment.renews = segment.renews.filter(|_| renews);
                account.segments.push(segment);
            }
            account.segments.sort_by_key(|segment| segment.start);
            account.clock_offset_secs = offset;
            account
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn nothing_changes_before_the_next_change_and_something_does_then(
            account in prop::option::weighted(0.95, any_account()), part in 0.0_f64..1.0, with_free in any::<bool>(),
        ) {
            let (a, b) = lists();
            let prices = if with_free { a } else { b };
            let account = account.as_ref();
            let offset = account.map_or(0, |account| account.clock_offset_secs);
            let now = at(START).plus_secs(-offset);
            let seen = |moment: EpochSecs| (standing(account, &prices, moment), place(account, &prices, moment.plus_secs(offset)));
            let next = next_change(account, &prices, now);
            let far = next.unwrap_or(now.plus_days(4_000));
            prop_assert!(now < far);
            let secs = far.secs_since(now) - 1;
            for secs in [secs, (secs as f64 * part) as i64] {
                prop_assert_eq!(seen(now.plus_secs(secs)), seen(now), "after {} s", secs);
            }
            if let Some(next) = next {
                prop_assert_ne!(seen(next), seen(now));
            }
        }
    }

    #[test]
    fn the_next_change_is_the_deadline_the_end_of_a_trial_a_cancellation_a_period_or_the_month() {
        let (prices, without_free) = lists();
        let next = |account: Option<&Account>| {
            next_change(account, &prices, at("2026-11-22T12:00:00Z")).map(|moment| moment.to_string())
        };
        assert_eq!(next(None).as_deref(), Some("2026-12-01T00:00:00Z"));
        assert_eq!(next_change(None, &without_free, at(START)), None);
        let mut account = subscribed(START);
        assert_eq!(next(Some(&account)).as_deref(), Some("2026-12-10T00:00:00Z"));
        account.clock_offset_secs = 3_600;
        assert_eq!(next(Some(&account)).as_deref(), Some("2026-12-09T23:00:00Z"), "by the real clock");
        account = with_status(Status::PastDue, Some("2026-11-20T12:00:00Z"));
        assert_eq!(next(Some(&account)).as_deref(), Some("2026-11-27T12:00:00Z"));
        account = with_status(Status::Trialing, None);
        account.subscription.as_mut().unwrap().trial_end = Some(at("2026-11-24T00:00:00Z"));
        assert_eq!(next(Some(&account)).as_deref(), Some("2026-11-24T00:00:00Z"));
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-11-23T00:00:00Z"));
        assert_eq!(next(Some(&account)).as_deref(), Some("2026-11-23T00:00:00Z"));
    }
}
