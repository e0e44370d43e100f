//! How an account's segments follow from what Stripe shows: renewals, price switches, anchor resets, trials and ends (G6).
//!
//! Stripe shows a subscription's present period and prices, and nothing of how it came to them. A moment that Stripe names is
//! taken to the second: the beginning of a period, a trial's end, a cancellation. A switch of prices within a period has no
//! moment there; it is the one of the fetch that saw it.
//!
//! **Invariant:** segments are ordered and never overlap, and the same facts once more change nothing.

use std::collections::BTreeSet;

use super::{
    account::{Account, Subscription},
    facts::{CustomerFacts, Status, SubscriptionFacts},
    id::{MeterId, SubscriptionId},
    period::Cycle,
    price_list::PriceList,
    segment::Segment,
    time::{DAY_SECS, EpochSecs},
};

/// How long a segment is kept after its end: Stripe takes meter events up to 35 days old.
const SEGMENT_KEPT_SECS: i64 = 40 * DAY_SECS;

/// The segments that late usage may still fall into, with the present one as Stripe has it.
///
/// `chosen` is the subscription that counts and `subscription` what the account makes of it. `now` is the fetch's moment in the
/// account's time.
pub(super) fn segments(
    prices: &PriceList,
    before: Option<&Account>,
    facts: &CustomerFacts,
    chosen: Option<&SubscriptionFacts>,
    subscription: Option<&Subscription>,
    now: EpochSecs,
) -> Vec<Segment> {
    let mut segments = before.map(|account| account.segments.clone()).unwrap_or_default();
    if let Some((ended, end)) = end_of_last(&segments, facts, subscription, now) {
        end_segments(&mut segments, &ended, end);
    }
    if let (Some(chosen), Some(subscription)) = (chosen, subscription)
        && subscription.status.is_live()
        && let Some(present) = Present::of(prices, before, facts, chosen, subscription, segments.last())
    {
        present.enter(&mut segments, facts, now);
    }
    forget(&mut segments, now);
    segments
}

/// The last segment's subscription and its end, if it is over: as Stripe shows it, or, of a deleted customer, as we keep it.
fn end_of_last(
    segments: &[Segment],
    facts: &CustomerFacts,
    kept: Option<&Subscription>,
    now: EpochSecs,
) -> Option<(SubscriptionId, EpochSecs)> {
    let last = &segments.last()?.subscription;
    let shown = facts.subscriptions.iter().find(|shown| shown.id == *last && shown.status == Status::Canceled);
    let kept = kept.filter(|kept| kept.id == *last && kept.status == Status::Canceled);
    let ended_at = shown.map(|shown| shown.ended_at).or(kept.map(|kept| kept.ended_at))?;
    Some((last.clone(), ended_at.unwrap_or(now)))
}

/// Ends a subscription's segments at a moment. Renewals that nobody told of are renewals all the same: the last period is a
/// segment of its own, and the cycle still reaches those between.
fn end_segments(segments: &mut Vec<Segment>, subscription: &SubscriptionId, end: EpochSecs) {
    // A switch that was seen later than the end, by a clock ahead of Stripe's, leaves nothing behind it.
    while let [.., before, last] = segments.as_slice()
        && before.subscription == *subscription
        && last.subscription == *subscription
        && last.start >= end
    {
        segments.pop();
    }
    let Some(last) = segments.last_mut().filter(|last| last.subscription == *subscription) else { return };
    match last.renews {
        Some(cycle) if end > last.end => {
            let (start, _) = cycle.period_containing(end.plus_secs(-1));
            let start = start.max(last.end);
            // A trial's cycle begins where the trial ends.
            let closing = Segment { start, end, renews: None, is_trial: false, ..last.clone() };
            segments.push(closing);
        }
        _ => {
            last.end = last.end.min(end).max(last.start);
            last.renews = None;
        }
    }
}

/// Drops the segments that no usage can fall into any more. A segment reaches to where the next one begins.
fn forget(segments: &mut Vec<Segment>, now: EpochSecs) {
    let ends: Vec<Option<EpochSecs>> = segments
        .iter()
        .zip(segments.iter().skip(1).map(|next| Some(next.start)).chain([None]))
        .map(|(segment, next_start)| next_start.or(segment.renews.is_none().then_some(segment.end)))
        .collect();
    let mut ends = ends.into_iter();
    segments.retain(|_| ends.next().flatten().is_none_or(|end| now.secs_since(end) < SEGMENT_KEPT_SECS));
}

/// The present segment of a live subscription, with what is known of its past.
struct Present {
    segment: Segment,
    cycle: Cycle,
    /// When it began at Stripe, or its trial ended: before that nothing is billed.
    billed_since: EpochSecs,
    /// Whether this is its first period.
    is_first: bool,
    /// Whether the account was on this subscription when it was looked at before.
    continues: bool,
}

impl Present {
    fn of(
        prices: &PriceList,
        before: Option<&Account>,
        facts: &CustomerFacts,
        chosen: &SubscriptionFacts,
        subscription: &Subscription,
        last: Option<&Segment>,
    ) -> Option<Self> {
        // The metered prices share one interval, so any of them tells the period; without one, the flat price does.
        let item = chosen.items.iter().find(|item| item.metered).or_else(|| chosen.items.first())?;
        let known: Vec<_> = chosen.items.iter().filter_map(|item| prices.price(item.lookup_key.as_deref()?)).collect();
        let mut billed: BTreeSet<MeterId> = known.iter().filter_map(|(_, price)| price.meter().cloned()).collect();
        if known.len() < chosen.items.len()
            && let Some(last) = last.filter(|last| last.subscription == chosen.id)
        {
            // With the last known plan its meters are kept too: an unknown price must not switch billing off.
            billed.extend(last.billed.iter().cloned());
        }
        let (mut start, mut end) = item.period;
        // A trial's end parts what is free from what is paid, whether or not Stripe begins a period there.
        if let Some(trial_end) = subscription.trial_end.filter(|trial_end| start < *trial_end && *trial_end < end) {
            *(if subscription.status == Status::Trialing { &mut end } else { &mut start }) = trial_end;
        }
        // A cancellation that is known ends the segment when it comes, whether or not Stripe's word of it does.
        let cancelled_at = subscription.cancel_at.filter(|cancel_at| *cancel_at <= end);
        let segment = Segment {
            subscription: chosen.id.clone(),
            customer: facts.customer.clone(),
            plan: subscription.plan.clone(),
            billed,
            start,
            end: cancelled_at.unwrap_or(end).max(start),
            renews: cancelled_at.is_none().then_some(item.cycle),
            is_trial: subscription.trial_end.is_some_and(|trial_end| end <= trial_end),
        };
        let previous =
            before.filter(|account| account.customer_id == facts.customer).and_then(|account| account.subscription.as_ref());
        Some(Self {
            segment,
            cycle: item.cycle,
            billed_since: subscription.trial_end.filter(|trial_end| *trial_end <= start).unwrap_or(chosen.created),
            is_first: chosen.created >= item.period.0,
            continues: previous.is_some_and(|previous| previous.id == chosen.id),
        })
    }

    /// Enters it after the last segment.
    fn enter(self, segments: &mut Vec<Segment>, facts: &CustomerFacts, now: EpochSecs) {
        match segments.last() {
            Some(last) if last.subscription == self.segment.subscription => self.follow_itself(segments, now),
            Some(_) => self.follow_another(segments, facts, now),
            None => self.begin(segments, now),
        }
    }

    /// The first segment of a subscription. One that is older than the period it was first seen in has a past, too: usage that
    /// waited for its user may be of then.
    fn begin(self, segments: &mut Vec<Segment>, now: EpochSecs) {
        let free_from = segments.last().map_or(self.billed_since, |last| last.end);
        let since = self.billed_since.max(free_from).max(now.plus_secs(SEGMENT_KEPT_SECS.saturating_neg()));
        if since < self.segment.start {
            let end = self.cycle.period_containing(since).1.min(self.segment.start);
            segments.push(Segment { start: since, end, renews: Some(self.cycle), is_trial: false, ..self.segment.clone() });
        }
        segments.push(self.segment);
    }

    fn follow_another(mut self, segments: &mut Vec<Segment>, facts: &CustomerFacts, now: EpochSecs) {
        let Some(last) = segments.last() else { return };
        let runs_on = facts.subscriptions.iter().any(|shown| shown.id == last.subscription && shown.status.is_live());
        if !runs_on && last.renews.is_none() {
            self.segment.start = self.segment.start.max(last.end);
            self.segment.end = self.segment.end.max(self.segment.start);
            return self.begin(segments, now);
        }
        // Two at once. A new one counts from its first second, an older one from when it was seen to count.
        if !self.is_first || self.segment.start <= last.start {
            self.segment.start = now.max(last.start.plus_secs(1));
            self.segment.end = self.segment.end.max(self.segment.start);
        }
        let former = last.subscription.clone();
        end_segments(segments, &former, self.segment.start);
        segments.push(self.segment);
    }

    fn follow_itself(mut self, segments: &mut Vec<Segment>, now: EpochSecs) {
        self.name_unknown(segments);
        let Some(last) = segments.last_mut() else { return };
        if self.segment.end <= last.start {
            return;
        }
        if !self.continues && last.renews.is_none() {
            // It left this user and came back: what was between is not its.
            self.segment.start = self.segment.start.max(last.end);
            self.segment.end = self.segment.end.max(self.segment.start);
        }
        let same_prices = last.billed == self.segment.billed && last.plan == self.segment.plan;
        if self.segment.start <= last.start {
            if same_prices {
                // The same period, or what a switch left of it: its start stays, its end is what Stripe says now.
                last.end = self.segment.end;
                last.renews = self.segment.renews;
                last.is_trial = self.segment.is_trial;
                return;
            }
            // Other prices within the period: what was counted before stays where it was, from now on the new segment counts.
            self.segment.start = now.max(last.start.plus_secs(1)).min(self.segment.end);
        }
        if self.segment.start < last.end {
            // A switch, or a period that Stripe began anew: an anchor reset, a trial that ended early.
            last.end = self.segment.start;
            last.renews = None;
        } else if self.segment.start > last.end && self.continues {
            // Renewals that nobody told of are reached by the last one's cycle, also where it was expected to end.
            last.renews = last.renews.or(Some(self.cycle));
        }
        segments.push(self.segment);
    }

    /// Prices that were unknown from the beginning and are known now were these all the time.
    fn name_unknown(&self, segments: &mut [Segment]) {
        let present = &self.segment;
        if present.plan.is_none() {
            return;
        }
        let unknown = |segment: &&mut Segment| segment.subscription == present.subscription && segment.plan.is_none();
        for segment in segments.iter_mut().rev().take_while(unknown) {
            segment.plan.clone_from(&present.plan);
            segment.billed.clone_from(&present.billed);
        }
    }
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{
        facts::ItemFacts,
        id::PlanId,
        price_list::{Interval, Price},
        segment::{Place, place},
        sync::{
            Decision, Failures, decide,
            tests::{facts, prices, pro, user},
        },
    };

    /// A moment, or a day's first second.
    fn at(text: &str) -> EpochSecs {
        let midnight = if text.len() == 10 { "T00:00:00Z" } else { "" };
        EpochSecs::parse_rfc3339(&format!("{text}{midnight}")).unwrap()
    }

    /// The shipped list with two more plans: `max` has other prices for the meters of `pro`, `lite` has requests alone.
    fn list() -> PriceList {
        let mut list = prices();
        let pro = list.plans.iter().find(|plan| plan.id.as_str() == "pro").unwrap().clone();
        for (id, metered) in [("max", 3), ("lite", 1)] {
            let mut plan = pro.clone();
            plan.id = PlanId::new(id).unwrap();
            plan.prices.truncate(1 + metered);
            for price in &mut plan.prices {
                let (Price::Flat { lookup_key, .. } | Price::Metered { lookup_key, .. }) = price;
                *lookup_key = lookup_key.replace("pro_", &format!("{id}_"));
            }
            list.plans.push(plan);
        }
        list
    }

    fn cycle(anchor: &str, interval: Interval) -> Cycle {
        Cycle { anchor: at(anchor), interval, count: 1 }
    }

    fn monthly(anchor: &str) -> Cycle {
        cycle(anchor, Interval::Month)
    }

    /// The prices of a plan in a period; those of `new` are in no list.
    fn items(plan: &str, cycle: Cycle, period: (EpochSecs, EpochSecs)) -> Vec<ItemFacts> {
        let keys: &[&str] = if plan == "lite" { &["base", "requests"] } else { &["base", "requests", "tokens_in", "tokens_out"] };
        let item = |key: &&str| ItemFacts { lookup_key: Some(format!("{plan}_{key}")), metered: *key != "base", period, cycle };
        keys.iter().map(item).collect()
    }

    /// A subscription to a plan as Stripe shows it in the period that begins at `start`, made at its anchor.
    fn on(plan: &str, cycle: Cycle, start: &str) -> SubscriptionFacts {
        let period = (at(start), cycle.period_containing(at(start)).1);
        SubscriptionFacts {
            created: cycle.anchor.min(at(start)),
            billing_cycle_anchor: cycle.anchor,
            items: items(plan, cycle, period),
            ..pro("sub_1", Status::Active, "2026-11-10T00:00:00Z")
        }
    }

    fn sub_2(created: &str, facts: SubscriptionFacts) -> SubscriptionFacts {
        SubscriptionFacts { id: SubscriptionId::new("sub_2").unwrap(), created: at(created), ..facts }
    }

    fn on_trial(plan: &str, start: &str, end: &str) -> SubscriptionFacts {
        let mut trial = on(plan, monthly(end), start);
        trial.items = items(plan, monthly(end), (at(start), at(end)));
        SubscriptionFacts { status: Status::Trialing, trial_end: Some(at(end)), ..trial }
    }

    fn after_trial(trial_end: &str, facts: SubscriptionFacts) -> SubscriptionFacts {
        SubscriptionFacts { trial_end: Some(at(trial_end)), ..facts }
    }

    fn cancelled(ended_at: &str, facts: SubscriptionFacts) -> SubscriptionFacts {
        SubscriptionFacts { status: Status::Canceled, ended_at: Some(at(ended_at)), ..facts }
    }

    fn ending(cancel_at: &str, facts: SubscriptionFacts) -> SubscriptionFacts {
        SubscriptionFacts { cancel_at: Some(at(cancel_at)), ..facts }
    }

    fn look(before: Option<&Account>, subscriptions: &[SubscriptionFacts], now: EpochSecs) -> Account {
        let seen = facts("cus_1", subscriptions.to_vec());
        match decide(&list(), before, &user("ada"), &seen, &Failures::new(), now.as_secs() * 1000) {
            Decision::Commit { account, .. } => *account,
            Decision::SecondClaimant { held_by, .. } => panic!("a second claimant, held by {held_by}"),
        }
    }

    /// Segments as `plan start..end`, `+` where it renews, and the subscription where it is another than `sub_1`.
    fn shown(account: &Account) -> Vec<String> {
        let segments = account.segments.iter().map(|segment| {
            let plan = segment.plan.as_ref().map_or("?", PlanId::as_str);
            let renews = if segment.renews.is_some() { "+" } else { "" };
            let trial = if segment.is_trial { "trial " } else { "" };
            let text = format!("{} {trial}{plan} {}..{}{renews}", segment.subscription, segment.start, segment.end);
            text.replace("sub_1 ", "").replace("T00:00:00Z", "")
        });
        segments.collect()
    }

    /// Looks at each in turn; a second look at the same changes nothing.
    fn check(looks: &[(&str, Vec<SubscriptionFacts>)], expected: &[&str]) -> Account {
        let mut account = None;
        for (now, subscriptions) in looks {
            let first = look(account.as_ref(), subscriptions, at(now));
            let again = look(Some(&first), subscriptions, at(now));
            assert_eq!(shown(&again), shown(&first), "the same facts once more");
            account = Some(again);
        }
        let account = account.unwrap();
        assert_eq!(shown(&account), expected);
        account
    }

    fn placed(account: &Account, moment: &str) -> String {
        match place(Some(account), &list(), at(moment)) {
            Place::Billed(span) => {
                let plan = span.plan.as_ref().map_or("?", PlanId::as_str);
                format!("{} {plan} {}..{}", span.subscription, span.start, span.end)
                    .replace("sub_1 ", "")
                    .replace("T00:00:00Z", "")
            }
            Place::Free { .. } => "free".to_owned(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn renewals_that_nobody_told_of_are_placed_by_the_cycle_whatever_its_length() {
        let month = monthly("2026-10-31");
        let account = check(
            &[
                ("2026-10-31T00:00:05Z", vec![on("pro", month, "2026-10-31")]),
                ("2027-01-31", vec![on("pro", month, "2027-01-31")]),
            ],
            &["pro 2026-10-31..2026-11-30+", "pro 2027-01-31..2027-02-28+"],
        );
        for (moment, expected) in [
            ("2026-11-29T23:59:59Z", "pro 2026-10-31..2026-11-30"),
            ("2026-12-05", "pro 2026-11-30..2026-12-31"),
            ("2027-01-30T23:59:59Z", "pro 2026-12-31..2027-01-31"),
            ("2027-01-31", "pro 2027-01-31..2027-02-28"),
            ("2027-03-30T23:59:59Z", "pro 2027-02-28..2027-03-31"),
        ] {
            assert_eq!(placed(&account, moment), expected, "{moment}");
        }
        let week = cycle("2026-11-02", Interval::Week);
        let account = check(
            &[("2026-11-02", vec![on("pro", week, "2026-11-02")]), ("2026-11-25", vec![on("pro", week, "2026-11-23")])],
            &["pro 2026-11-02..2026-11-09+", "pro 2026-11-23..2026-11-30+"],
        );
        assert_eq!(placed(&account, "2026-11-15T23:59:59Z"), "pro 2026-11-09..2026-11-16");
        let year = cycle("2024-02-29", Interval::Year);
        let account = check(
            &[("2027-03-01", vec![on("pro", year, "2027-02-28")])],
            &["pro 2027-01-20..2027-02-28+", "pro 2027-02-28..2028-02-29+"],
        );
        assert_eq!(placed(&account, "2029-02-28"), "pro 2029-02-28..2030-02-28");
    }

    #[test]
    fn a_switch_cuts_at_the_fetch_that_saw_it_and_stripes_older_period_does_not_reopen_what_is_cut() {
        let month = monthly("2026-11-10");
        let (pro, max, lite) = (on("pro", month, "2026-11-10"), on("max", month, "2026-11-10"), on("lite", month, "2026-11-10"));
        let two_switches = [
            ("2026-11-10", vec![pro.clone()]),
            ("2026-11-20T12:00:00Z", vec![max]),
            ("2026-11-21", vec![lite.clone()]),
            ("2026-11-25", vec![lite.clone()]),
        ];
        let cut =
            ["pro 2026-11-10..2026-11-20T12:00:00Z", "max 2026-11-20T12:00:00Z..2026-11-21", "lite 2026-11-21..2026-12-10+"];
        let account = check(&two_switches, &cut);
        assert_eq!(account.segments.iter().map(|segment| segment.billed.len()).collect::<Vec<_>>(), [3, 3, 1]);
        assert_eq!(placed(&account, "2026-11-20T11:59:59Z"), "pro 2026-11-10..2026-11-20T12:00:00Z");
        assert_eq!(placed(&account, "2026-12-10"), "lite 2026-12-10..2027-01-10");
        // Two within a second, by a clock that stands still.
        check(
            &[("2026-11-20", vec![pro.clone()]), ("2026-11-20", vec![lite.clone()]), ("2026-11-20", vec![pro.clone()])],
            &["pro 2026-11-10..2026-11-20", "lite 2026-11-20..2026-11-20T00:00:01Z", "pro 2026-11-20T00:00:01Z..2026-12-10+"],
        );
        // Seen after the period's end by our clock, which is ahead of Stripe's.
        check(
            &[("2026-11-10", vec![pro]), ("2026-12-10T00:00:03Z", vec![lite])],
            &["pro 2026-11-10..2026-12-10+", "lite 2026-12-10..2026-12-10+"],
        );
    }

    #[test]
    fn a_switch_at_a_renewal_is_one_boundary_to_the_second() {
        let month = monthly("2026-11-10");
        let account = check(
            &[
                ("2026-11-10", vec![on("pro", month, "2026-11-10")]),
                ("2026-12-10T00:07:00Z", vec![on("lite", month, "2026-12-10")]),
            ],
            &["pro 2026-11-10..2026-12-10+", "lite 2026-12-10..2027-01-10+"],
        );
        assert_eq!(placed(&account, "2026-12-10"), "lite 2026-12-10..2027-01-10");
        assert_eq!(placed(&account, "2026-12-09T23:59:59Z"), "pro 2026-11-10..2026-12-10");
    }

    #[test]
    fn a_period_that_stripe_begins_anew_cuts_at_its_first_second() {
        let month = monthly("2026-11-10");
        let reset = |plan| on(plan, monthly("2026-11-20T12:00:07Z"), "2026-11-20T12:00:07Z");
        let (reset_pro, reset_lite) = (sub_1_since("2026-11-10", reset("pro")), sub_1_since("2026-11-10", reset("lite")));
        let account = check(
            &[("2026-11-10", vec![on("pro", month, "2026-11-10")]), ("2026-11-20T12:03:00Z", vec![reset_pro])],
            &["pro 2026-11-10..2026-11-20T12:00:07Z", "pro 2026-11-20T12:00:07Z..2026-12-20T12:00:07Z+"],
        );
        assert_eq!(placed(&account, "2026-11-20T12:00:06Z"), "pro 2026-11-10..2026-11-20T12:00:07Z");
        // With other prices at once: Stripe names the moment, so the fetch's is not needed.
        check(
            &[("2026-11-10", vec![on("pro", month, "2026-11-10")]), ("2026-11-20T12:03:00Z", vec![reset_lite.clone()])],
            &["pro 2026-11-10..2026-11-20T12:00:07Z", "lite 2026-11-20T12:00:07Z..2026-12-20T12:00:07Z+"],
        );
        // Right after a switch.
        let looks = [
            ("2026-11-10", vec![on("pro", month, "2026-11-10")]),
            ("2026-11-20T12:00:02Z", vec![on("lite", month, "2026-11-10")]),
            ("2026-11-20T12:00:09Z", vec![reset_lite]),
        ];
        check(
            &looks,
            &[
                "pro 2026-11-10..2026-11-20T12:00:02Z",
                "lite 2026-11-20T12:00:02Z..2026-11-20T12:00:07Z",
                "lite 2026-11-20T12:00:07Z..2026-12-20T12:00:07Z+",
            ],
        );
    }

    fn sub_1_since(created: &str, facts: SubscriptionFacts) -> SubscriptionFacts {
        SubscriptionFacts { created: at(created), ..facts }
    }

    #[test]
    fn a_trials_end_begins_a_segment_to_the_second_whether_or_not_anybody_tells() {
        let trial = on_trial("pro", "2026-11-10", "2026-11-24T06:00:00Z");
        let untold = check(&[("2026-11-10", vec![trial.clone()])], &["trial pro 2026-11-10..2026-11-24T06:00:00Z+"]);
        assert_eq!(placed(&untold, "2026-11-24T05:59:59Z"), "pro 2026-11-10..2026-11-24T06:00:00Z");
        assert_eq!(placed(&untold, "2026-11-24T06:00:00Z"), "pro 2026-11-24T06:00:00Z..2026-12-24T06:00:00Z");
        // Told late, and told by a Stripe that lags.
        let paid = on("pro", monthly("2026-11-24T06:00:00Z"), "2026-11-24T06:00:00Z");
        let paid = sub_1_since("2026-11-10", after_trial("2026-11-24T06:00:00Z", paid));
        let looks = [
            ("2026-11-10", vec![trial.clone()]),
            ("2026-11-24T06:00:03Z", vec![trial.clone()]),
            ("2026-11-26", vec![paid.clone()]),
        ];
        check(&looks, &["trial pro 2026-11-10..2026-11-24T06:00:00Z+", "pro 2026-11-24T06:00:00Z..2026-12-24T06:00:00Z+"]);
        // Cancelled after it, before anybody told of its end.
        let ended = cancelled("2026-12-01", paid.clone());
        check(
            &[("2026-11-10", vec![trial.clone()]), ("2026-12-01T00:00:05Z", vec![ended])],
            &["trial pro 2026-11-10..2026-11-24T06:00:00Z+", "pro 2026-11-24T06:00:00Z..2026-12-01"],
        );
        // Who is joined after it has no billed past in the trial.
        check(&[("2026-11-26", vec![paid])], &["pro 2026-11-24T06:00:00Z..2026-12-24T06:00:00Z+"]);
        // Ended early, at the second that Stripe names.
        let early = on("pro", monthly("2026-11-15T01:02:03Z"), "2026-11-15T01:02:03Z");
        let early = sub_1_since("2026-11-10", after_trial("2026-11-15T01:02:03Z", early));
        check(
            &[("2026-11-10", vec![trial.clone()]), ("2026-11-15T01:04:00Z", vec![early])],
            &["trial pro 2026-11-10..2026-11-15T01:02:03Z", "pro 2026-11-15T01:02:03Z..2026-12-15T01:02:03Z+"],
        );
        // Paused at its end, with Stripe's period as it was; and extended.
        let paused = SubscriptionFacts { status: Status::Paused, ..trial.clone() };
        check(
            &[("2026-11-10", vec![trial.clone()]), ("2026-11-25", vec![paused])],
            &["trial pro 2026-11-10..2026-11-24T06:00:00Z+"],
        );
        let extended = on_trial("pro", "2026-11-10", "2026-12-01");
        check(&[("2026-11-10", vec![trial]), ("2026-11-20", vec![extended])], &["trial pro 2026-11-10..2026-12-01+"]);
    }

    #[test]
    fn a_trial_within_a_period_of_stripes_ends_within_it() {
        let month = monthly("2026-12-10");
        let period = (at("2026-11-10"), at("2026-12-10"));
        let whole = SubscriptionFacts { items: items("pro", month, period), ..on("pro", month, "2026-11-10") };
        let paid = after_trial("2026-11-24", whole);
        let trial = SubscriptionFacts { status: Status::Trialing, ..paid.clone() };
        let untold = check(&[("2026-11-10", vec![trial.clone()])], &["trial pro 2026-11-10..2026-11-24+"]);
        assert_eq!(placed(&untold, "2026-11-25"), "pro 2026-11-24..2026-12-10");
        check(
            &[("2026-11-10", vec![trial]), ("2026-11-25", vec![paid])],
            &["trial pro 2026-11-10..2026-11-24+", "pro 2026-11-24..2026-12-10+"],
        );
    }

    #[test]
    fn a_cancellation_ends_it_at_once_at_the_periods_end_or_at_a_date() {
        let pro = on("pro", monthly("2026-11-10"), "2026-11-10");
        for (looks, expected) in [
            (vec![("2026-11-20", cancelled("2026-11-20", pro.clone()))], vec!["pro 2026-11-10..2026-11-20"]),
            (vec![("2026-11-20", ending("2026-12-10", pro.clone()))], vec!["pro 2026-11-10..2026-12-10"]),
            (vec![("2026-11-20", ending("2026-12-01", pro.clone()))], vec!["pro 2026-11-10..2026-12-01"]),
            // Beyond this period: `place` ends it, and Stripe's word later.
            (vec![("2026-11-20", ending("2027-01-05", pro.clone()))], vec!["pro 2026-11-10..2026-12-10+"]),
            (
                vec![
                    ("2026-11-20", ending("2027-01-05", pro.clone())),
                    ("2027-01-05T00:00:02Z", cancelled("2027-01-05", pro.clone())),
                ],
                vec!["pro 2026-11-10..2026-12-10+", "pro 2026-12-10..2027-01-05"],
            ),
            // Announced and then revoked, and seen only two renewals later.
            (
                vec![
                    ("2026-11-20", ending("2026-12-10", pro.clone())),
                    ("2027-01-12", on("pro", monthly("2026-11-10"), "2027-01-10")),
                ],
                vec!["pro 2026-11-10..2026-12-10+", "pro 2027-01-10..2027-02-10+"],
            ),
            // A switch that a clock ahead of Stripe's saw after the end leaves nothing behind.
            (
                vec![
                    ("2026-11-20T00:00:09Z", on("lite", monthly("2026-11-10"), "2026-11-10")),
                    ("2026-11-20T00:00:10Z", cancelled("2026-11-20T00:00:05Z", pro.clone())),
                ],
                vec!["pro 2026-11-10..2026-11-20T00:00:05Z"],
            ),
        ] {
            let mut all = vec![("2026-11-10", vec![pro.clone()])];
            all.extend(looks.into_iter().map(|(now, facts)| (now, vec![facts])));
            let account = check(&all, &expected);
            let end = account.segments.last().unwrap().end;
            let is_over = account.segments.last().unwrap().renews.is_none();
            assert_eq!(placed(&account, &end.to_string()) == "free", is_over);
        }
    }

    #[test]
    fn a_new_subscription_begins_where_the_former_ended() {
        let former = on("pro", monthly("2026-11-10"), "2026-11-10");
        let noon = "2026-11-20T12:00:00Z";
        let next = sub_2(noon, on("lite", monthly(noon), noon));
        let ended = cancelled(noon, former.clone());
        let in_one_second = ["pro 2026-11-10..2026-11-20T12:00:00Z", "sub_2 lite 2026-11-20T12:00:00Z..2026-12-20T12:00:00Z+"];
        let begun = ("2026-11-10", vec![former.clone()]);
        // Cancelled and subscribed again in the same second, seen in one look, in two, and in the order of a Stripe that lags.
        let both = (noon, vec![next.clone(), ended.clone()]);
        let account = check(&[begun.clone(), both.clone()], &in_one_second);
        assert_eq!(placed(&account, "2026-11-20T11:59:59Z"), "pro 2026-11-10..2026-11-20T12:00:00Z");
        assert!(placed(&account, noon).starts_with("sub_2 lite"));
        check(&[begun.clone(), (noon, vec![ended.clone()]), both.clone()], &in_one_second);
        check(&[begun.clone(), (noon, vec![former.clone(), next.clone()]), both], &in_one_second);
        // Subscribed, cancelled and subscribed within one second.
        let at_once = cancelled("2026-11-10", former.clone());
        let again = sub_2("2026-11-10", on("lite", monthly("2026-11-10"), "2026-11-10"));
        check(&[("2026-11-10", vec![at_once, again])], &["sub_2 lite 2026-11-10..2026-12-10+"]);
        // With days between them, and seen late: in between it is free. (What is older than 40 days is forgotten.)
        let gap = cancelled("2026-11-15", former);
        let account = check(
            &[begun, ("2027-01-02", vec![next_period(next), gap])],
            &["sub_2 lite 2026-11-23..2026-12-20T12:00:00Z+", "sub_2 lite 2026-12-20T12:00:00Z..2027-01-20T12:00:00Z+"],
        );
        assert_eq!(placed(&account, "2026-11-15"), "free");
    }

    fn next_period(facts: SubscriptionFacts) -> SubscriptionFacts {
        let cycle = facts.items[0].cycle;
        SubscriptionFacts { items: items("lite", cycle, (cycle.boundary(1), cycle.boundary(2))), ..facts }
    }

    #[test]
    fn of_two_at_once_a_new_one_counts_from_its_first_second_and_an_older_one_from_when_it_is_seen() {
        let older = on("pro", monthly("2026-11-10"), "2026-11-10");
        let newer = sub_2("2026-11-20", on("lite", monthly("2026-11-20"), "2026-11-20"));
        let overdue = SubscriptionFacts { status: Status::PastDue, ..newer.clone() };
        let looks = [
            ("2026-11-10", vec![older.clone()]),
            ("2026-11-20T00:05:00Z", vec![older.clone(), newer]),
            ("2026-11-25", vec![older, overdue]),
        ];
        check(&looks, &["pro 2026-11-10..2026-11-20", "sub_2 lite 2026-11-20..2026-11-25", "pro 2026-11-25..2026-12-10+"]);
        // Also where the older one's period is the later one.
        let renewed = on("pro", monthly("2026-11-10"), "2026-12-10");
        let looks = [looks[0].clone(), looks[1].clone(), ("2026-12-15", vec![renewed, looks[2].1[1].clone()])];
        check(&looks, &["pro 2026-11-10..2026-11-20", "sub_2 lite 2026-11-20..2026-12-15", "pro 2026-12-15..2027-01-10+"]);
    }

    #[test]
    fn a_subscription_that_was_first_seen_after_a_renewal_has_a_past() {
        let month = monthly("2026-11-10");
        let account = check(
            &[("2026-12-12", vec![on("pro", month, "2026-12-10")])],
            &["pro 2026-11-10..2026-12-10+", "pro 2026-12-10..2027-01-10+"],
        );
        assert_eq!(placed(&account, "2026-11-09T23:59:59Z"), "free");
        // No further back than usage is taken.
        check(
            &[("2027-06-12", vec![on("pro", month, "2027-06-10")])],
            &["pro 2027-05-03..2027-05-10+", "pro 2027-06-10..2027-07-10+"],
        );
    }

    #[test]
    fn the_past_of_what_is_first_seen_with_its_end_announced_or_on_trial_renewed_and_was_paid_for() {
        let month = monthly("2026-11-10");
        let account = check(
            &[("2027-01-12", vec![ending("2027-02-10", on("pro", month, "2027-01-10"))])],
            &["pro 2026-12-03..2026-12-10+", "pro 2027-01-10..2027-02-10"],
        );
        assert_eq!(placed(&account, "2026-12-20"), "pro 2026-12-10..2027-01-10");
        let given_a_trial = SubscriptionFacts { created: at("2026-11-10"), ..on_trial("pro", "2026-11-20", "2026-12-20") };
        check(&[("2026-11-25", vec![given_a_trial])], &["pro 2026-11-10..2026-11-20+", "trial pro 2026-11-20..2026-12-20+"]);
    }

    #[test]
    fn a_new_subscription_counts_from_its_first_second_though_the_former_one_would_have_run_longer() {
        let former = on("pro", monthly("2026-11-10"), "2026-11-10");
        let next = sub_2("2026-11-20", on("lite", monthly("2026-11-20"), "2026-11-20"));
        let expected = ["pro 2026-11-10..2026-11-20", "sub_2 lite 2026-11-20..2026-12-20+"];
        // Not shown any more, without an end that anybody named; and live, with one that Stripe announced.
        check(&[("2026-11-10", vec![former.clone()]), ("2026-11-20T00:05:00Z", vec![next.clone()])], &expected);
        let ending = ending("2026-12-10", former);
        check(&[("2026-11-10", vec![ending.clone()]), ("2026-11-20T00:05:00Z", vec![ending, next])], &expected);
    }

    #[test]
    fn a_period_that_follows_an_announced_end_at_once_leaves_that_end_where_it_was() {
        let month = monthly("2026-11-10");
        let looks = [
            ("2026-11-10", vec![ending("2026-12-10", on("pro", month, "2026-11-10"))]),
            ("2026-12-10T00:05:00Z", vec![on("pro", month, "2026-12-10")]),
        ];
        check(&looks, &["pro 2026-11-10..2026-12-10", "pro 2026-12-10..2027-01-10+"]);
    }

    #[test]
    fn an_unknown_price_that_becomes_known_was_that_price_from_its_beginning() {
        let month = monthly("2026-11-10");
        let unknown = |start| ("2026-11-10", vec![on("new", month, start)]);
        let account = check(&[unknown("2026-11-10")], &["? 2026-11-10..2026-12-10+"]);
        assert!(account.segments[0].billed.is_empty());
        let account = check(
            &[unknown("2026-11-10"), ("2026-11-20", vec![on("pro", month, "2026-11-10")])],
            &["pro 2026-11-10..2026-12-10+"],
        );
        assert_eq!(account.segments[0].billed.len(), 3);
        // Over a renewal it is both periods.
        let renewed = ("2026-12-10", vec![on("new", month, "2026-12-10")]);
        check(
            &[unknown("2026-11-10"), renewed, ("2026-12-20", vec![on("pro", month, "2026-12-10")])],
            &["pro 2026-11-10..2026-12-10+", "pro 2026-12-10..2027-01-10+"],
        );
        // What was known before stays what it was.
        let looks = [
            ("2026-11-10", vec![on("pro", month, "2026-11-10")]),
            ("2026-11-15", vec![on("new", month, "2026-11-10")]),
            ("2026-11-20", vec![on("lite", month, "2026-11-10")]),
        ];
        check(&looks, &["pro 2026-11-10..2026-11-20", "lite 2026-11-20..2026-12-10+"]);
    }

    #[test]
    fn a_test_clock_moves_the_moment_of_a_switch() {
        let month = monthly("2026-11-10");
        let real_now = at("2026-11-10T00:00:30Z").as_secs() * 1000;
        let mut account = None;
        for (clock, plan) in [("2026-11-10", "pro"), ("2026-12-01", "lite")] {
            let mut seen = facts("cus_1", vec![on(plan, month, "2026-11-10")]);
            seen.test_clock = Some(at(clock));
            let Decision::Commit { account: next, .. } =
                decide(&list(), account.as_ref(), &user("ada"), &seen, &Failures::new(), real_now)
            else {
                panic!("a second claimant")
            };
            account = Some(*next);
        }
        assert_eq!(shown(&account.unwrap()), ["pro 2026-11-10..2026-12-01", "lite 2026-12-01..2026-12-10+"]);
    }

    #[test]
    fn what_left_the_user_and_comes_back_does_not_reopen_what_was_ended() {
        let pro = on("pro", monthly("2026-11-10"), "2026-11-10");
        let account = check(&[("2026-11-10", vec![pro.clone()])], &["pro 2026-11-10..2026-12-10+"]);
        let (released, ..) = crate::domain::sync::release(&list(), &account, at("2026-11-20").as_secs() * 1000);
        let back = look(Some(&released), &[pro], at("2026-11-25"));
        assert_eq!(shown(&back), ["pro 2026-11-10..2026-11-20", "pro 2026-11-20..2026-12-10+"]);
        let later = look(Some(&released), &[on("pro", monthly("2026-11-10"), "2026-12-10")], at("2026-12-12"));
        assert_eq!(shown(&later), ["pro 2026-11-10..2026-11-20", "pro 2026-12-10..2027-01-10+"]);
        assert_eq!(placed(&later, "2026-11-25"), "free");
    }

    #[test]
    fn a_deleted_customers_segment_ends_with_it() {
        let pro = on("pro", monthly("2026-11-10"), "2026-11-10");
        let account = check(&[("2026-11-10", vec![pro])], &["pro 2026-11-10..2026-12-10+"]);
        let mut deleted = facts("cus_1", Vec::new());
        deleted.deleted = true;
        let mut ended = account;
        for now in ["2026-11-20", "2026-11-21"] {
            let at_ms = at(now).as_secs() * 1000;
            let Decision::Commit { account, .. } = decide(&list(), Some(&ended), &user("ada"), &deleted, &Failures::new(), at_ms)
            else {
                panic!("a second claimant")
            };
            ended = *account;
            assert_eq!(shown(&ended), ["pro 2026-11-10..2026-11-20"], "{now}");
        }
    }

    #[test]
    fn an_older_period_than_the_known_one_changes_nothing() {
        let month = monthly("2026-11-10");
        let renewed = check(
            &[("2026-11-10", vec![on("pro", month, "2026-11-10")]), ("2026-12-10", vec![on("pro", month, "2026-12-10")])],
            &["pro 2026-11-10..2026-12-10+", "pro 2026-12-10..2027-01-10+"],
        );
        let stale = look(Some(&renewed), &[on("lite", month, "2026-11-10")], at("2026-12-10T00:00:01Z"));
        assert_eq!(stale.segments, renewed.segments);
    }

    /// What may happen at Stripe, and how many seconds later.
    #[derive(Debug, Clone)]
    enum Step {
        Switch(&'static str),
        Reset,
        Trial(i64),
        CancelAt(i64),
        Revoke,
        Cancel,
        Resubscribe(&'static str),
        Nothing,
    }

    fn step() -> impl Strategy<Value = (Step, i64, bool)> {
        let plan = prop_oneof![Just("pro"), Just("max"), Just("lite"), Just("new")];
        let what = prop_oneof![
            3 => plan.clone().prop_map(Step::Switch),
            2 => Just(Step::Reset),
            1 => (1_i64..40 * DAY_SECS).prop_map(Step::Trial),
            1 => (1_i64..80 * DAY_SECS).prop_map(Step::CancelAt),
            1 => Just(Step::Revoke),
            1 => Just(Step::Cancel),
            2 => plan.prop_map(Step::Resubscribe),
            3 => Just(Step::Nothing),
        ];
        let later = prop_oneof![0_i64..3, 0_i64..DAY_SECS, 0_i64..50 * DAY_SECS];
        (what, later, any::<bool>())
    }

    /// Stripe, as far as one subscription's periods go.
    struct Model {
        number: u32,
        plan: &'static str,
        cycle: Cycle,
        created: EpochSecs,
        start: EpochSecs,
        trial_end: Option<EpochSecs>,
        cancel_at: Option<EpochSecs>,
        ended_at: Option<EpochSecs>,
        former: Vec<SubscriptionFacts>,
    }

    impl Model {
        fn new(plan: &'static str, now: EpochSecs, interval: Interval) -> Self {
            let cycle = Cycle { anchor: now, interval, count: 1 };
            let (trial_end, cancel_at, ended_at) = (None, None, None);
            Self { number: 1, plan, cycle, created: now, start: now, trial_end, cancel_at, ended_at, former: Vec::new() }
        }

        fn is_on_trial(&self) -> bool {
            self.trial_end.is_some_and(|end| self.start < end)
        }

        fn end(&self) -> EpochSecs {
            if self.is_on_trial() { self.cycle.anchor } else { self.cycle.period_containing(self.start).1 }
        }

        fn pass(&mut self, now: EpochSecs) {
            while self.ended_at.is_none() && self.end() <= now && self.cancel_at.is_none_or(|at| self.end() < at) {
                self.start = self.end();
            }
            if let Some(at) = self.cancel_at.filter(|at| *at <= now && self.ended_at.is_none()) {
                self.ended_at = Some(at);
            }
        }

        fn begin_anew(&mut self, now: EpochSecs, anchor: EpochSecs) {
            self.start = now;
            self.cycle.anchor = anchor;
        }

        fn take(&mut self, step: &Step, now: EpochSecs) {
            match step {
                Step::Resubscribe(plan) if self.ended_at.is_some() => {
                    let interval = self.cycle.interval;
                    let mut next = Self { number: self.number + 1, ..Self::new(plan, now, interval) };
                    next.former = std::mem::take(&mut self.former);
                    next.former.push(self.facts());
                    *self = next;
                }
                _ if self.ended_at.is_some() => {}
                Step::Switch(plan) => self.plan = plan,
                Step::Reset => {
                    self.trial_end = None;
                    self.begin_anew(now, now);
                }
                Step::Trial(secs) => {
                    self.trial_end = Some(now.plus_secs(*secs));
                    self.begin_anew(now, now.plus_secs(*secs));
                }
                Step::CancelAt(secs) => self.cancel_at = Some(now.plus_secs(*secs)),
                Step::Revoke => self.cancel_at = None,
                Step::Cancel => self.ended_at = Some(now),
                Step::Resubscribe(_) | Step::Nothing => {}
            }
        }

        fn facts(&self) -> SubscriptionFacts {
            let status = match self.ended_at {
                Some(_) => Status::Canceled,
                None if self.is_on_trial() => Status::Trialing,
                None => Status::Active,
            };
            SubscriptionFacts {
                id: SubscriptionId::new(format!("sub_{}", self.number)).unwrap(),
                status,
                created: self.created,
                items: items(self.plan, self.cycle, (self.start, self.end())),
                billing_cycle_anchor: self.cycle.anchor,
                trial_end: self.trial_end,
                cancel_at: self.cancel_at,
                ended_at: self.ended_at,
                ..pro("sub_1", Status::Active, "2026-11-10T00:00:00Z")
            }
        }
    }

    proptest! {
        /// Whatever happens and however much of it is seen: segments are ordered and never overlap, the same look twice changes
        /// nothing, and what is used at the moment of a look is placed where Stripe would bill it.
        #[test]
        fn segments_are_ordered_never_overlap_and_follow_stripe(
            steps in proptest::collection::vec(step(), 1..25), unit in 0..4_usize,
        ) {
            let interval = [Interval::Day, Interval::Week, Interval::Month, Interval::Year][unit];
            let mut now = at("2026-01-31T10:00:05Z");
            let mut stripe = Model::new("pro", now, interval);
            let mut account: Option<Account> = None;
            for (step, later, is_seen) in steps {
                now = now.plus_secs(later);
                stripe.pass(now);
                stripe.take(&step, now);
                stripe.pass(now);
                if !is_seen {
                    continue;
                }
                let shown = [stripe.former.as_slice(), &[stripe.facts()]].concat();
                let seen = look(account.as_ref(), &shown, now);
                let again = look(Some(&seen), &shown, now);
                prop_assert_eq!(&again.segments, &seen.segments);
                for pair in seen.segments.windows(2) {
                    prop_assert!(pair[0].start <= pair[1].start && pair[0].end <= pair[1].start, "{:#?}", seen.segments);
                }
                prop_assert!(seen.segments.iter().all(|segment| segment.start <= segment.end), "{:#?}", seen.segments);
                // Switches within one second count from one of the next.
                let moment = seen.segments.last().map_or(now, |last| last.start.max(now));
                match place(Some(&seen), &list(), moment) {
                    _ if stripe.ended_at.is_none() && (stripe.end() <= moment) => {}
                    Place::Billed(span) => {
                        prop_assert!(stripe.ended_at.is_none());
                        prop_assert_eq!(span.subscription.as_str(), format!("sub_{}", stripe.number));
                        prop_assert!(stripe.start <= span.start, "{span:?}");
                        prop_assert_eq!(seen.segments.last().unwrap().is_trial, stripe.is_on_trial());
                        prop_assert_eq!(span.end, stripe.cancel_at.map_or(stripe.end(), |at| at.min(stripe.end())));
                        if stripe.plan != "new" {
                            prop_assert_eq!(span.plan, Some(PlanId::new(stripe.plan).unwrap()));
                        }
                    }
                    place => prop_assert!(stripe.ended_at.is_some() || stripe.cancel_at.is_some_and(|at| at <= moment), "{place:?}"),
                }
                account = Some(again);
            }
        }
    }
}
