//! Who may call the model right now: the state table of the contract (3.3), as one function of the account and the moment.
//!
//! **Invariant:** access is computed when it is asked. Nothing has to run for it to be right: no timer, no sweep (G7).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    account::Account,
    facts::{PausedBy, Status},
    id::{MeterId, PlanId, UserId},
    price_list::{GraceAccess, PriceList},
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
    /// Why it allows nothing, if so; also in a grace period that is worth nothing on its plan.
    pub reason: Option<Reason>,
    /// When it will change by itself, as far as that ends access.
    pub access_until: Option<EpochSecs>,
    /// The plan whose limits hold.
    pub plan: Option<PlanId>,
}

impl Standing {
    /// Whether it allows a call, before quotas and rates.
    #[must_use]
    pub fn allows(&self) -> bool {
        self.state.allows() && self.reason.is_none()
    }

    /// Whether the plan's limits are those of a grace period.
    #[must_use]
    pub fn is_grace(&self) -> bool {
        self.state == State::Grace
    }
}

/// The state table. `now` is the real moment; the account's test clock moves it.
///
/// | Stripe's status of the subscription that counts | state | until | then |
/// |---|---|---|---|
/// | none, `incomplete`, `incomplete_expired` | `free`, else `none` | | |
/// | `trialing` | `trialing` | `trial_end`, or `cancel_at` if that is earlier | `active`; after `cancel_at` as cancelled |
/// | `active` | `active` | `cancel_at`, if set | as cancelled |
/// | `past_due`, `unpaid` | `grace` | the deadline | `ended`, `payment_overdue` |
/// | `paused` by a failed payment, its invoice still open | `grace` | the deadline | `ended`, `paused` |
/// | `paused` otherwise | `ended`, `paused` | | |
/// | `canceled`, an overdue invoice still open | `grace` | the deadline | `ended`, `payment_overdue` |
/// | `canceled`, an invoice of it paid after its end | `active` | the end of what that invoice paid for | as cancelled |
/// | `canceled` otherwise | `free`, else `ended`, `subscription_ended` | | |
/// | newer than we know | as it was | | |
///
/// The deadline is so many days after the earliest known failure of any open invoice of the subscription. In `grace` the plan says
/// what access is worth: all, less, or nothing, with the reason `payment_overdue`. `pause_collection` changes no status at Stripe,
/// and nothing here: who collects nothing for a while gives access away.
///
/// Which subscription counts is for [`decide`](super::sync::decide) to say: the best status first, then the newest.
#[must_use]
pub fn standing(account: Option<&Account>, prices: &PriceList, now: EpochSecs) -> Standing {
    let Some(account) = account else { return without_subscription(prices, Reason::UnknownUser) };
    let Some(subscription) = &account.subscription else { return without_subscription(prices, Reason::UnknownUser) };
    let now = account.local_time(now);
    let with = |state, access_until| Standing { state, reason: None, access_until, plan: subscription.plan.clone() };
    let ended =
        |reason| Standing { state: State::Ended, reason: Some(reason), access_until: None, plan: subscription.plan.clone() };
    // Grace ends exactly at the deadline: the second before it still has access, the deadline itself has not.
    let grace_or_ended = |reason| match account.grace_deadline(prices) {
        Some(deadline) if now < deadline => {
            let reason = grace_is_worth_nothing(subscription.plan.as_ref(), prices).then_some(Reason::PaymentOverdue);
            Standing { reason, ..with(State::Grace, Some(deadline)) }
        }
        _ => ended(reason),
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
        Status::PastDue | Status::Unpaid => grace_or_ended(Reason::PaymentOverdue),
        // Without an open invoice there is no deadline, so it has ended.
        Status::Paused if account.paused_by.as_ref().is_some_and(PausedBy::is_a_failed_payment) => grace_or_ended(Reason::Paused),
        Status::Paused => ended(Reason::Paused),
        Status::Canceled if !account.overdue.is_empty() => grace_or_ended(Reason::PaymentOverdue),
        Status::Canceled => match account.paid_until.filter(|until| now < *until) {
            Some(until) => with(State::Active, Some(until)),
            None => without_subscription(prices, Reason::SubscriptionEnded),
        },
        // Never stored (the last known status is kept); were it, a paying user would not be locked out.
        Status::Other(_) => with(State::Active, subscription.cancel_at),
    }
}

/// Whether the plan allows nothing while a payment is overdue.
pub(super) fn grace_is_worth_nothing(plan: Option<&PlanId>, prices: &PriceList) -> bool {
    plan.and_then(|plan| prices.plan(plan)).is_some_and(|plan| plan.grace == GraceAccess::None)
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

/// The next moment at which access changes although nothing is committed: a deadline, the end of a trial, of a subscription, of
/// what was paid for late, of a segment or of the free tier's month. A real moment; `None` if there is none.
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
        moments.extend(account.paid_until);
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

    #[test]
    fn four_states_allow_a_call() {
        let states = [State::Free, State::None, State::Trialing, State::Active, State::Grace, State::Ended];
        assert_eq!(states.map(State::allows), [true, false, true, true, true, false]);
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
    fn a_pause_ends_access_and_one_by_a_failed_payment_only_at_the_deadline_of_its_open_invoice() {
        let failed = Some("2026-11-20T12:00:00Z");
        let (before, deadline) = (at("2026-11-27T11:59:59Z"), at("2026-11-27T12:00:00Z"));
        let grace = "grace - 2026-11-27T12:00:00Z";
        for (reason, overdue, now, expected) in [
            ("first_payment_failure", failed, before, grace),
            ("first_payment_failure", failed, deadline, "ended paused -"),
            ("final_payment_failure", failed, before, grace),
            ("final_payment_failure", failed, deadline, "ended paused -"),
            ("final_payment_failure", None, before, "ended paused -"),
            ("pause_requested", failed, before, "ended paused -"),
            ("system", failed, before, "ended paused -"),
            ("trial_end_without_payment_method", failed, before, "ended paused -"),
            ("newer_than_we_know", failed, before, "ended paused -"),
        ] {
            let mut account = with_status(Status::Paused, overdue);
            account.paused_by = Some(PausedBy::from(reason.to_owned()));
            assert_eq!(shown(Some(&account), now), expected, "{reason} {overdue:?} {now}");
        }
        assert_eq!(shown(Some(&with_status(Status::Paused, failed)), before), "ended paused -", "nothing says why");
    }

    #[test]
    fn what_was_paid_for_after_the_end_is_had_to_the_second_unless_another_invoice_is_overdue() {
        let mut account = with_status(Status::Canceled, None);
        account.paid_until = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(shown(Some(&account), at("2026-12-09T23:59:59Z")), "active - 2026-12-10T00:00:00Z");
        assert_eq!(shown(Some(&account), at("2026-12-10T00:00:00Z")), "free - - | ended subscription_ended -");
        account.overdue.insert(InvoiceId::new("in_2").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        assert_eq!(shown(Some(&account), at("2026-11-26T00:00:00Z")), "grace - 2026-11-27T12:00:00Z");
        assert_eq!(shown(Some(&account), at("2026-11-28T00:00:00Z")), "ended payment_overdue -");
        // A subscription that goes on is not restored by it, and needs no such thing.
        for status in [Status::PastDue, Status::Paused] {
            let mut account = with_status(status, None);
            account.paid_until = Some(at("2026-12-10T00:00:00Z"));
            assert!(shown(Some(&account), at("2026-12-09T23:59:59Z")).starts_with("ended"));
        }
    }

    #[test]
    fn a_grace_period_that_is_worth_nothing_allows_nothing_and_ends_at_the_same_moment() {
        let account = with_status(Status::PastDue, Some("2026-11-20T12:00:00Z"));
        let (mut prices, _) = lists();
        let seen = |prices: &PriceList, now: &str| {
            let standing = standing(Some(&account), prices, at(now));
            (standing.state, standing.reason, standing.allows(), standing.access_until.map(|until| until.to_string()))
        };
        let until = Some("2026-11-27T12:00:00Z".to_owned());
        assert_eq!(seen(&prices, "2026-11-21T00:00:00Z"), (State::Grace, None, true, until.clone()));
        for plan in &mut prices.plans {
            plan.grace = GraceAccess::None;
        }
        let refused = Some(Reason::PaymentOverdue);
        assert_eq!(seen(&prices, "2026-11-21T00:00:00Z"), (State::Grace, refused, false, until));
        assert_eq!(seen(&prices, "2026-11-27T12:00:00Z"), (State::Ended, refused, false, None));
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
        (status, (maybe(), maybe(), maybe(), maybe()), segments, offset).prop_map(|(status, moments, segments, offset)| {
            let mut account = with_status(status, None);
            let subscription = account.subscription.as_mut().unwrap();
            (subscription.trial_end, subscription.cancel_at) = (moments.0, moments.1);
            account.paid_until = moments.3;
            account.paused_by = moments.0.map(|_| PausedBy::FinalPaymentFailure);
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
