//! The gate: how many requests a check may take, of this minute and of this segment, and what is left of them.
//!
//! **Invariant:** what was granted only grows within a minute and within a segment. So what is known of it, however old, is a
//! lower bound: it may deny, and only the store, in one conditional update, grants.

use std::collections::BTreeMap;

use super::{
    access::{Access, Quota, RateLimit, Reason, Standing, standing},
    account::Account,
    id::{MeterId, UserId, composite_key, composite_parts},
    price_list::{Counts, Interval, Limits, Plan, Price, PriceList},
    report::Tally,
    segment::{Place, place},
    time::{EpochSecs, MINUTE_SECS, UtcDay, calendar_month},
};

/// The most requests of one check: as many as any plan allows in a minute.
pub const MAX_REQUESTS: u32 = 30_000;

/// How many segments are kept beside the present one and the present month.
const OTHER_SEGMENTS_KEPT: usize = 3;
/// How long after its segment's end an item is kept that nobody asks about any more, and at least from its last grant on: longer
/// than a calendar month, whose grants hold again after a subscription that ends within it.
const KEPT_DAYS: i64 = 40;
/// The kind of segment that a month on the free tier is, as [`Place::segment_key`] names it.
const FREE: &str = "free";
/// The kind of segment where usage has none: a subscription that nobody placed yet.
const UNPLACED: &str = "none";

/// What one check asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// How many requests, 1 to [`MAX_REQUESTS`]: these are taken.
    pub requests: u32,
    /// How much of other meters, by their ids: only tested.
    pub others: BTreeMap<MeterId, u64>,
}

/// What was granted to a user, as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Granted {
    /// Requests by UTC minute, each named by its first second since 1970.
    pub minutes: BTreeMap<i64, u64>,
    /// Requests by segment.
    pub segments: BTreeMap<String, u64>,
}

/// What was counted of a user, by segment and meter, over a range of days.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// The first day that was read.
    pub from: UtcDay,
    /// The last day that was read.
    pub to: UtcDay,
    segments: BTreeMap<String, BTreeMap<MeterId, u64>>,
}

impl Counted {
    /// The sums of a user's tallies of these days, both included.
    #[must_use]
    pub fn of(tallies: Vec<Tally>, from: UtcDay, to: UtcDay) -> Self {
        let mut segments: BTreeMap<String, BTreeMap<MeterId, u64>> = BTreeMap::new();
        for tally in tallies {
            // Day, slash, segment.
            let Some((_, segment)) = tally.tally_key.split_once('/') else { continue };
            let sums = segments.entry(segment.to_owned()).or_default();
            for (meter, quantity) in tally.counted {
                let sum = sums.entry(meter).or_insert(0);
                *sum = sum.saturating_add(quantity);
            }
        }
        Self { from, to, segments }
    }
}

/// The days whose tallies a quota may need, before it is known whose they are: from the earliest first day of any plan's segment
/// with a quota. `None` if no plan has a quota.
///
/// For an account on a test clock, or one whose segment is longer than its plan says, other days are needed: see [`Gate::days`].
#[must_use]
pub fn usual_days(prices: &PriceList, now: EpochSecs) -> Option<(UtcDay, UtcDay)> {
    let start = |plan: &Plan| {
        let metered = plan.prices.iter().find(|price| price.meter().is_some());
        match metered.or(plan.prices.first()).map(Price::interval) {
            None => calendar_month(now).0,
            Some(Interval::Day) => now.plus_days(-1),
            Some(Interval::Week) => now.plus_days(-7),
            Some(Interval::Month) => now.plus_days(-31),
            Some(Interval::Year) => now.plus_days(-366),
        }
    };
    let earliest = prices.plans.iter().filter(|plan| plan.limited_meters().next().is_some()).map(start).min()?;
    Some((earliest.day(), now.day().next()))
}

/// The segment that grants are counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    key: String,
    start: EpochSecs,
    end: EpochSecs,
}

impl Window {
    fn of(place: &Place, local_now: EpochSecs) -> Self {
        let (start, end) = match place {
            Place::Billed(span) => (span.start, span.end),
            Place::Free { start, end, .. } => (*start, *end),
            // Usage has no segment here; should a plan with a quota hold all the same, it holds by the month.
            Place::NoSubscription | Place::UnknownUser => calendar_month(local_now),
        };
        let unplaced = || composite_key(&[UNPLACED, &start.as_secs().to_string()]);
        Self { key: place.segment_key().unwrap_or_else(unplaced), start, end }
    }
}

/// A segment's part in a [`Take`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentTake<'a> {
    /// The segment's key.
    pub key: &'a str,
    /// The most that may be granted in it.
    pub limit: u64,
    /// What was counted in it, where that is more than is known to be granted: there are calls that never asked. They have used
    /// the quota as if they had been granted, so what is granted continues from there.
    pub counted: Option<u64>,
}

/// One conditional update: grants the requests, or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take<'a> {
    /// Whose.
    pub user_id: &'a UserId,
    /// How many requests.
    pub requests: u32,
    /// The UTC minute, by its first second since 1970.
    pub minute: i64,
    /// The most that may be granted in that minute.
    pub per_minute: u32,
    /// What the segment's quota on requests says; `None` where the plan has none.
    pub segment: Option<SegmentTake<'a>>,
    /// Minutes that are over, to be forgotten in passing.
    pub stale_minutes: Vec<i64>,
    /// Segments that are over, likewise.
    pub stale_segments: Vec<String>,
    /// From when on the whole is of no use to anybody, a real moment.
    pub expires_at: EpochSecs,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// Granted; what is granted now, this included.
    Granted(Granted),
    /// Refused; what was granted before, and still is.
    Refused(Granted),
}

/// One user at one moment: the standing, the plan's limits, the minute and the segment they hold in.
#[derive(Debug)]
pub struct Gate<'a> {
    user_id: &'a UserId,
    prices: &'a PriceList,
    standing: Standing,
    limits: Option<Limits<'a>>,
    window: Window,
    local_now: EpochSecs,
    now: EpochSecs,
}

impl<'a> Gate<'a> {
    /// A user's gate. The segment is of the account's time, which a test clock may have moved; the minute is one of the real
    /// clock, since it protects what is real: the service behind the gate.
    #[must_use]
    pub fn new(user_id: &'a UserId, account: Option<&Account>, prices: &'a PriceList, now: EpochSecs) -> Self {
        let local_now = account.map_or(now, |account| account.local_time(now));
        let standing = standing(account, prices, now);
        let plan = standing.plan.as_ref().and_then(|id| prices.plan(id));
        let limits = plan.map(|plan| plan.limits(standing.is_grace()));
        let window = Window::of(&place(account, prices, local_now), local_now);
        Self { user_id, prices, standing, limits, window, local_now, now }
    }

    /// Whether anything that was counted matters: whether the plan has a quota.
    #[must_use]
    pub fn has_quotas(&self) -> bool {
        self.limits.as_ref().is_some_and(|limits| !limits.quotas.is_empty())
    }

    /// The days, in the account's time, whose tallies the segment needs.
    #[must_use]
    pub fn days(&self) -> (UtcDay, UtcDay) {
        (self.window.start.day(), self.local_now.day().next())
    }

    /// Whether what was counted of these days is all that the segment needs.
    #[must_use]
    pub fn is_covered_by(&self, counted: &Counted) -> bool {
        let (from, to) = self.days();
        counted.from <= from && to <= counted.to
    }

    /// Why nothing is allowed, if so: the state before the quota, the quota before the rate. Without anything asked for, as much
    /// as is left of every quota must be one at least, and the rate does not matter.
    #[must_use]
    pub fn denial(&self, asked: Option<&Asked>, granted: &Granted, counted: Option<&Counted>) -> Option<Reason> {
        if !self.standing.allows() {
            return self.standing.reason;
        }
        let rate = || {
            let per_minute = u64::from(self.limits.as_ref()?.requests_per_minute);
            let wanted = self.granted_in_minute(granted).saturating_add(u64::from(asked?.requests));
            (wanted > per_minute).then_some(Reason::RateLimited)
        };
        self.exceeded(asked, granted, counted).or_else(rate)
    }

    /// Whether a quota does not hold what is asked for.
    #[must_use]
    pub fn exceeded(&self, asked: Option<&Asked>, granted: &Granted, counted: Option<&Counted>) -> Option<Reason> {
        let exceeds = |(meter, limit): (&&MeterId, &u64)| {
            let wanted = match asked {
                Some(asked) if self.is_of_requests(meter) => u64::from(asked.requests),
                // A call that does not say how much it is going to use will use something.
                Some(asked) => asked.others.get(meter).copied().unwrap_or(1),
                None => 1,
            };
            self.used(meter, granted, counted).saturating_add(wanted) > *limit
        };
        self.limits.as_ref()?.quotas.iter().any(exceeds).then_some(Reason::QuotaExceeded)
    }

    /// What is to be taken for a check; `None` where no plan limits anything.
    #[must_use]
    pub fn take<'b>(&'b self, asked: &Asked, granted: &Granted, counted: Option<&Counted>) -> Option<Take<'b>> {
        let limits = self.limits.as_ref()?;
        let of_requests = limits.quotas.iter().filter(|(meter, _)| self.is_of_requests(meter));
        let segment = of_requests.min_by_key(|(_, limit)| **limit).map(|(meter, limit)| {
            let counted = self.counted(meter, counted);
            let in_segment = granted.segments.get(&self.window.key).copied().unwrap_or(0);
            SegmentTake {
                key: self.window.key.as_str(),
                limit: *limit,
                counted: Some(counted).filter(|counted| *counted > in_segment),
            }
        });
        // In the real time, in which an item expires.
        let ahead_secs = self.window.end.secs_since(self.local_now).max(0);
        Some(Take {
            user_id: self.user_id,
            requests: asked.requests,
            minute: self.minute(),
            per_minute: limits.requests_per_minute,
            segment,
            stale_minutes: self.stale_minutes(granted),
            stale_segments: self.stale_segments(granted),
            expires_at: self.now.plus_secs(ahead_secs).plus_days(KEPT_DAYS),
        })
    }

    /// The answer. `rate` tells what is left of this minute, too.
    #[must_use]
    pub fn answer(&self, reason: Option<Reason>, granted: &Granted, counted: Option<&Counted>, rate: bool) -> Access {
        let quota = |(meter, limit): (&&MeterId, &u64)| {
            let used = self.used(meter, granted, counted);
            let remaining = limit.saturating_sub(used);
            ((*meter).clone(), Quota { limit: *limit, used, remaining, resets_at: self.window.end.to_string() })
        };
        Access {
            user_id: self.user_id.clone(),
            allowed: self.standing.allows() && reason.is_none(),
            state: self.standing.state,
            reason,
            plan: self.standing.plan.clone(),
            access_until: self.standing.access_until.map(|until| until.to_string()),
            rate_limit: self.limits.as_ref().map(|limits| RateLimit {
                requests_per_minute: limits.requests_per_minute,
                remaining: rate.then(|| self.remaining(limits, granted)),
            }),
            quotas: self.limits.iter().flat_map(|limits| &limits.quotas).map(quota).collect(),
        }
    }

    /// Seconds until the next UTC minute, 1 to 60.
    #[must_use]
    pub fn next_minute_secs(&self) -> i64 {
        MINUTE_SECS.saturating_sub(self.now.secs_since(self.now.minute()))
    }

    fn remaining(&self, limits: &Limits<'_>, granted: &Granted) -> u32 {
        let granted = u32::try_from(self.granted_in_minute(granted)).unwrap_or(u32::MAX);
        limits.requests_per_minute.saturating_sub(granted)
    }

    fn minute(&self) -> i64 {
        self.now.minute().as_secs()
    }

    fn granted_in_minute(&self, granted: &Granted) -> u64 {
        granted.minutes.get(&self.minute()).copied().unwrap_or(0)
    }

    /// The larger of granted and counted: a call that failed was granted and is never counted, one that never asked was counted
    /// and never granted.
    fn used(&self, meter: &MeterId, granted: &Granted, counted: Option<&Counted>) -> u64 {
        let granted = granted.segments.get(&self.window.key).filter(|_| self.is_of_requests(meter)).copied();
        self.counted(meter, counted).max(granted.unwrap_or(0))
    }

    fn counted(&self, meter: &MeterId, counted: Option<&Counted>) -> u64 {
        let of_segment = counted.and_then(|counted| counted.segments.get(&self.window.key));
        of_segment.and_then(|meters| meters.get(meter)).copied().unwrap_or(0)
    }

    fn is_of_requests(&self, meter: &MeterId) -> bool {
        self.prices.meter(meter).is_some_and(|meter| meter.counts == Counts::Requests)
    }

    /// The minute before this one is kept: the clock of another instance may still be in it.
    fn stale_minutes(&self, granted: &Granted) -> Vec<i64> {
        let kept_from = self.minute().saturating_sub(MINUTE_SECS);
        granted.minutes.keys().copied().filter(|minute| *minute < kept_from).collect()
    }

    /// A month is over at its end, and is kept until then: after a subscription that ends within it, its grants hold again.
    /// When another segment is over cannot be told by its name; those that begun last are kept.
    fn stale_segments(&self, granted: &Granted) -> Vec<String> {
        let mut stale = Vec::new();
        let mut others = Vec::new();
        for key in granted.segments.keys().filter(|key| **key != self.window.key) {
            match segment_start(key) {
                Some((FREE | UNPLACED, start)) if self.local_now < calendar_month(start).1 => {}
                Some((FREE | UNPLACED, _)) => stale.push(key.clone()),
                Some((_, start)) => others.push((start, key)),
                // A newer version's: it knows what to do with it.
                None => {}
            }
        }
        others.sort_by(|a, b| b.cmp(a));
        stale.extend(others.into_iter().skip(OTHER_SEGMENTS_KEPT).map(|(_, key)| key.clone()));
        stale
    }
}

/// A segment's kind and first second, by its key.
fn segment_start(key: &str) -> Option<(&str, EpochSecs)> {
    let parts = composite_parts(key)?;
    let (kind, start) = match parts.as_slice() {
        [kind, start] | [kind, _, start, ..] => (*kind, *start),
        _ => return None,
    };
    Some((kind, EpochSecs::new(start.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        account::{Overdue, tests::subscribed},
        facts::Status,
        id::{InvoiceId, PlanId},
        period::Cycle,
        price_list::{GraceAccess, ReducedLimits},
        time::DAY_SECS,
    };
    use expect_test::expect;
    use proptest::prelude::*;

    const NOW: &str = "2026-11-22T12:00:31Z";

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    fn ada() -> UserId {
        UserId::new("ada").unwrap()
    }

    fn meter(id: &str) -> MeterId {
        MeterId::new(id).unwrap()
    }

    /// The shipped list, and quotas on the plan `pro`.
    fn with_quotas(quotas: &[(&str, u64)]) -> PriceList {
        let mut prices = PriceList::shipped().unwrap();
        let pro = prices.plans.iter_mut().find(|plan| plan.id.as_str() == "pro").unwrap();
        pro.quotas = quotas.iter().map(|(id, limit)| (meter(id), *limit)).collect();
        prices
    }

    fn asked(requests: u32, others: &[(&str, u64)]) -> Asked {
        Asked { requests, others: others.iter().map(|(id, quantity)| (meter(id), *quantity)).collect() }
    }

    fn granted(minute: &str, in_minute: u64, segment: &str, in_segment: u64) -> Granted {
        Granted { minutes: [(at(minute).as_secs(), in_minute)].into(), segments: [(segment.to_owned(), in_segment)].into() }
    }

    fn counted(segment: &str, of_meters: &[(&str, u64)]) -> Counted {
        let tally = |(day, (id, quantity)): (usize, &(&str, u64))| Tally {
            user_id: ada(),
            tally_key: format!("2026-11-{:02}/{segment}", day + 1),
            day: at(NOW).day(),
            billing: None,
            counted: [(meter(id), *quantity)].into(),
        };
        Counted::of(of_meters.iter().enumerate().map(tally).collect(), at("2026-11-01T00:00:00Z").day(), at(NOW).day().next())
    }

    const NOVEMBER: &str = "4:free/10:1793491200";

    #[test]
    fn used_is_the_larger_of_granted_and_counted_and_the_last_request_is_the_last() {
        let (prices, user) = (PriceList::shipped().unwrap(), ada());
        let gate = Gate::new(&user, None, &prices, at(NOW));
        let told = |granted: &Granted, counted: Option<&Counted>| {
            let reason = gate.denial(Some(&asked(1, &[])), granted, counted);
            serde_json::to_string(&gate.answer(reason, granted, counted, true)).unwrap()
        };
        let nothing = Granted::default();
        expect![[r#"{"user_id":"ada","allowed":true,"state":"free","reason":null,"plan":"free","access_until":null,"rate_limit":{"requests_per_minute":60,"remaining":60},"quotas":{"requests":{"limit":100,"used":0,"remaining":100,"resets_at":"2026-12-01T00:00:00Z"}}}"#]]
            .assert_eq(&told(&nothing, None));
        expect![[r#"{"user_id":"ada","allowed":true,"state":"free","reason":null,"plan":"free","access_until":null,"rate_limit":{"requests_per_minute":60,"remaining":57},"quotas":{"requests":{"limit":100,"used":99,"remaining":1,"resets_at":"2026-12-01T00:00:00Z"}}}"#]]
            .assert_eq(&told(&granted("2026-11-22T12:00:00Z", 3, NOVEMBER, 12), Some(&counted(NOVEMBER, &[("requests", 90), ("requests", 9)]))));
        expect![[r#"{"user_id":"ada","allowed":false,"state":"free","reason":"quota_exceeded","plan":"free","access_until":null,"rate_limit":{"requests_per_minute":60,"remaining":60},"quotas":{"requests":{"limit":100,"used":101,"remaining":0,"resets_at":"2026-12-01T00:00:00Z"}}}"#]]
            .assert_eq(&told(&granted("2026-11-22T11:59:00Z", 60, NOVEMBER, 99), Some(&counted(NOVEMBER, &[("requests", 101)]))));
        // Another month's, and another meter's, are none of these.
        assert_eq!(
            gate.denial(None, &granted(NOW, 0, "4:free/10:1790812800", 100), Some(&counted(NOVEMBER, &[("tokens_in", 500)]))),
            None
        );
    }

    #[test]
    fn a_plan_with_a_quota_needs_all_days_of_its_segment() {
        let (prices, user) = (PriceList::shipped().unwrap(), ada());
        let gate = Gate::new(&user, None, &prices, at(NOW));
        let day = |text: &str| UtcDay::parse(text).unwrap();
        assert_eq!((gate.has_quotas(), gate.days()), (true, (day("2026-11-01"), day("2026-11-23"))));
        let covers = |from: &str, to: &str| gate.is_covered_by(&Counted::of(Vec::new(), day(from), day(to)));
        assert!(covers("2026-11-01", "2026-11-23") && covers("2026-10-31", "2026-11-24"));
        assert!(!covers("2026-11-02", "2026-11-23") && !covers("2026-11-01", "2026-11-22"));
        let account = subscribed("2026-11-10T00:00:00Z");
        assert!(!Gate::new(&user, Some(&account), &prices, at(NOW)).has_quotas(), "the plan has none");
    }

    #[test]
    fn days_are_read_from_the_first_that_any_plans_segment_may_begin_on() {
        let usual = |interval: Interval| {
            let mut prices = with_quotas(&[("requests", 5)]);
            prices.plans.retain(|plan| !plan.prices.is_empty());
            for price in prices.plans.iter_mut().flat_map(|plan| &mut plan.prices) {
                let (Price::Flat { interval: own, .. } | Price::Metered { interval: own, .. }) = price;
                *own = interval;
            }
            let (from, to) = usual_days(&prices, at(NOW)).unwrap();
            format!("{from} {to}")
        };
        assert_eq!(usual(Interval::Day), "2026-11-21 2026-11-23");
        assert_eq!(usual(Interval::Week), "2026-11-15 2026-11-23");
        assert_eq!(usual(Interval::Month), "2026-10-22 2026-11-23");
        assert_eq!(usual(Interval::Year), "2025-11-21 2026-11-23");
        assert_eq!(usual_days(&PriceList::shipped().unwrap(), at(NOW)).unwrap().0.to_string(), "2026-11-01", "the free month's");
    }

    #[test]
    fn only_usage_beyond_what_was_granted_is_made_up_for() {
        let (prices, user) = (PriceList::shipped().unwrap(), ada());
        let gate = Gate::new(&user, None, &prices, at(NOW));
        let made_up = |in_segment: u64| {
            let (granted, counted) = (granted(NOW, 0, NOVEMBER, in_segment), counted(NOVEMBER, &[("requests", 9)]));
            gate.take(&asked(1, &[]), &granted, Some(&counted)).unwrap().segment.unwrap().counted
        };
        assert_eq!((made_up(8), made_up(9), made_up(10)), (Some(9), None, None));
    }

    #[test]
    fn in_a_grace_period_the_lowered_limits_hold_and_are_told() {
        let (mut prices, user) = (with_quotas(&[("requests", 1_000)]), ada());
        let reduced =
            ReducedLimits { requests_per_minute: Some(60), quotas: [(meter("requests"), 100), (meter("tokens_in"), 5)].into() };
        let pro = prices.plans.iter_mut().find(|plan| plan.id.as_str() == "pro").unwrap();
        pro.grace = GraceAccess::Reduced(reduced);
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let key = place(Some(&account), &prices, at(NOW)).segment_key().unwrap();
        let seen = |account: &Account, in_minute: u64, in_segment: u64| {
            let gate = Gate::new(&user, Some(account), &prices, at(NOW));
            let granted = granted("2026-11-22T12:00:00Z", in_minute, &key, in_segment);
            let reason = gate.denial(Some(&asked(1, &[])), &granted, None);
            let take = gate.take(&asked(1, &[]), &granted, None).unwrap();
            let answer = gate.answer(reason, &granted, None, true);
            let limits: Vec<_> = answer.quotas.iter().map(|(meter, quota)| format!("{meter} {}", quota.limit)).collect();
            assert_eq!(
                (take.per_minute, take.segment.unwrap().limit),
                (answer.rate_limit.unwrap().requests_per_minute, answer.quotas[&meter("requests")].limit)
            );
            format!("{reason:?} {} {}", take.per_minute, limits.join(" "))
        };
        assert_eq!(seen(&account, 60, 100), "None 600 requests 1000");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        assert_eq!(seen(&account, 59, 99), "None 60 requests 100 tokens_in 5");
        assert_eq!(seen(&account, 60, 99), "Some(RateLimited) 60 requests 100 tokens_in 5");
        assert_eq!(seen(&account, 0, 100), "Some(QuotaExceeded) 60 requests 100 tokens_in 5");
        // Where it is worth nothing, nothing is taken.
        prices.plans.iter_mut().for_each(|plan| plan.grace = GraceAccess::None);
        let gate = Gate::new(&user, Some(&account), &prices, at(NOW));
        let reason = gate.denial(Some(&asked(1, &[])), &Granted::default(), None);
        assert_eq!(reason, Some(Reason::PaymentOverdue));
        assert!(!gate.answer(reason, &Granted::default(), None, true).allowed);
        assert_eq!(gate.denial(None, &Granted::default(), None), Some(Reason::PaymentOverdue));
    }

    #[test]
    fn a_quota_of_grace_periods_alone_has_its_days_read() {
        let mut prices = with_quotas(&[]);
        prices.plans.retain(|plan| !plan.prices.is_empty());
        assert_eq!(usual_days(&prices, at(NOW)), None);
        let reduced = ReducedLimits { requests_per_minute: None, quotas: [(meter("requests"), 100)].into() };
        prices.plans[0].grace = GraceAccess::Reduced(reduced);
        assert!(usual_days(&prices, at(NOW)).is_some());
    }

    #[test]
    fn the_state_is_told_before_the_quota_and_the_quota_before_the_rate() {
        let (prices, user) = (with_quotas(&[("requests", 1_000), ("tokens_in", 50)]), ada());
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let key = place(Some(&account), &prices, at(NOW)).segment_key().unwrap();
        let all = granted("2026-11-22T12:00:00Z", 600, &key, 1_000);
        let denial = |account: &Account, granted: &Granted, counted: Option<&Counted>, of: Option<&Asked>| {
            Gate::new(&user, Some(account), &prices, at(NOW)).denial(of, granted, counted)
        };
        let one = asked(1, &[]);
        assert_eq!(denial(&account, &all, None, Some(&one)), Some(Reason::QuotaExceeded));
        assert_eq!(
            denial(&account, &granted("2026-11-22T12:00:00Z", 600, &key, 999), None, Some(&one)),
            Some(Reason::RateLimited)
        );
        assert_eq!(
            denial(&account, &granted("2026-11-22T12:00:00Z", 600, &key, 999), None, None),
            None,
            "access ignores the rate"
        );
        assert_eq!(denial(&account, &granted("2026-11-22T12:00:00Z", 599, &key, 999), None, Some(&one)), None);
        assert_eq!(
            denial(&account, &granted("2026-11-22T12:00:00Z", 599, &key, 9), None, Some(&asked(2, &[]))),
            Some(Reason::RateLimited)
        );
        assert_eq!(
            denial(&account, &granted("2026-11-22T12:00:00Z", 5, &key, 999), None, Some(&asked(2, &[]))),
            Some(Reason::QuotaExceeded)
        );
        let tokens = |used: u64| counted(&key, &[("tokens_in", used)]);
        let none = Granted::default();
        for (used, of, expected) in [
            (40, asked(1, &[("tokens_in", 10)]), None),
            (41, asked(1, &[("tokens_in", 10)]), Some(Reason::QuotaExceeded)),
            (49, one.clone(), None),
            (50, one.clone(), Some(Reason::QuotaExceeded)),
            (0, asked(1, &[("tokens_in", u64::MAX)]), Some(Reason::QuotaExceeded)),
            (50, asked(1, &[("tokens_out", u64::MAX)]), Some(Reason::QuotaExceeded)),
            (0, asked(1, &[("tokens_out", u64::MAX)]), None),
        ] {
            assert_eq!(denial(&account, &none, Some(&tokens(used)), Some(&of)), expected, "{used} {of:?}");
        }
        account.subscription.as_mut().unwrap().status = Status::Paused;
        assert_eq!(denial(&account, &all, None, Some(&one)), Some(Reason::Paused));
    }

    #[test]
    fn a_plan_that_the_price_list_does_not_know_limits_nothing() {
        let (prices, user) = (PriceList::shipped().unwrap(), ada());
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().plan = Some(PlanId::new("gone").unwrap());
        let gate = Gate::new(&user, Some(&account), &prices, at(NOW));
        assert_eq!(
            (gate.denial(Some(&asked(1, &[])), &Granted::default(), None), gate.take(&asked(1, &[]), &Granted::default(), None)),
            (None, None)
        );
    }

    #[test]
    fn a_grant_names_its_minute_by_the_real_clock_and_its_segment_by_the_accounts() {
        let (prices, user) = (with_quotas(&[("requests", 1_000)]), ada());
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.clock_offset_secs = 60 * DAY_SECS;
        let gate = Gate::new(&user, Some(&account), &prices, at(NOW));
        let take = gate.take(&asked(3, &[]), &Granted::default(), None).unwrap();
        assert_eq!(EpochSecs::new(take.minute), at("2026-11-22T12:00:00Z"));
        let SegmentTake { key: segment, limit, .. } = take.segment.unwrap();
        assert_eq!(segment_start(segment), Some(("billed", at("2027-01-10T00:00:00Z"))));
        // The segment ends on 10 February by its own clock, 60 days earlier by the real one.
        assert_eq!((limit, take.expires_at), (1_000, at("2026-12-12T00:00:00Z").plus_days(40)));
        assert_eq!(
            (
                gate.next_minute_secs(),
                gate.answer(None, &Granted::default(), None, false).quotas[&meter("requests")].resets_at.as_str()
            ),
            (29, "2027-02-10T00:00:00Z")
        );
    }

    #[test]
    fn what_is_over_is_forgotten_and_what_may_hold_again_is_not() {
        let (prices, user) = (with_quotas(&[("requests", 1_000)]), ada());
        let account = subscribed("2026-11-10T00:00:00Z");
        let gate = Gate::new(&user, Some(&account), &prices, at(NOW));
        let key = place(Some(&account), &prices, at(NOW)).segment_key().unwrap();
        let old =
            |n: i64| composite_key(&["billed", "sub_0", &at("2025-01-10T00:00:00Z").plus_days(n).as_secs().to_string(), "x"]);
        let october = composite_key(&["free", &at("2026-10-01T00:00:00Z").as_secs().to_string()]);
        let segments =
            [key, NOVEMBER.to_owned(), october.clone(), old(0), old(9), old(100), old(10), old(11), "newer".to_owned()];
        let minutes = [
            "2026-11-22T12:00:00Z",
            "2026-11-22T11:59:00Z",
            "2026-11-22T11:58:00Z",
            "2026-11-20T00:00:00Z",
            "2026-11-22T12:01:00Z",
        ];
        let granted = Granted {
            minutes: minutes.into_iter().map(|minute| (at(minute).as_secs(), 1)).collect(),
            segments: segments.into_iter().map(|key| (key, 1)).collect(),
        };
        let take = gate.take(&asked(1, &[]), &granted, None).unwrap();
        assert_eq!(take.stale_minutes, [minutes[3], minutes[2]].map(|minute| at(minute).as_secs()));
        assert_eq!(take.stale_segments, [october, old(9), old(0)]);
    }

    proptest! {
        /// Whoever has a plan's ordinary segment needs one read: what is usual covers it.
        #[test]
        fn the_usual_days_hold_every_segment_of_a_months_length(since in 0_i64..2_000_000_000, after in 0_i64..100_000_000, subscribes in any::<bool>()) {
            let (prices, user) = (with_quotas(&[("requests", 1_000)]), ada());
            let mut account = subscribed("2026-11-10T00:00:00Z");
            let cycle = Cycle { anchor: EpochSecs::new(since), interval: Interval::Month, count: 1 };
            (account.segments[0].start, account.segments[0].end) = (cycle.boundary(0), cycle.boundary(1));
            account.segments[0].renews = Some(cycle);
            let now = EpochSecs::new(since + after);
            let gate = Gate::new(&user, Some(&account).filter(|_| subscribes), &prices, now);
            let (from, to) = usual_days(&prices, now).unwrap();
            prop_assert!(gate.is_covered_by(&Counted::of(Vec::new(), from, to)), "{:?} not in {from} to {to}", gate.days());
        }
    }

    #[test]
    fn days_are_read_only_as_far_back_as_a_quota_reaches() {
        let shown = |prices: &PriceList| usual_days(prices, at(NOW)).map(|(from, to)| format!("{from} {to}"));
        assert_eq!(shown(&PriceList::shipped().unwrap()).as_deref(), Some("2026-11-01 2026-11-23"), "the free tier's month");
        assert_eq!(shown(&with_quotas(&[("requests", 9)])).as_deref(), Some("2026-10-22 2026-11-23"));
        let mut none = PriceList::shipped().unwrap();
        none.plans.retain(|plan| !plan.prices.is_empty());
        assert_eq!(shown(&none), None);
    }
}
