//! Which period unreported usage is billed in: its own while that one's invoice is open, else the user's present one (G6).
//!
//! Chosen when a report is fixed, not when usage is counted, because only then it is known what Stripe can still bill.

use super::{
    account::Account,
    counting::{Billing, tally_key},
    price_list::PriceList,
    report::{Tally, reporting_day, reporting_minute},
    segment::{Place, place},
    time::{DAY_SECS, EpochSecs, MINUTE_SECS},
};

/// How long before its invoice is final a period is taken for closed: a report may be sent that much after it was fixed.
const CLOSED_BEFORE_SECS: i64 = 5 * MINUTE_SECS;
/// Usage older than this is no longer reported under its own day: Stripe takes meter events of the past 35 days, and a report of
/// unknown fate may have to be sent again for a day.
const OWN_DAY_FOR_SECS: i64 = 33 * DAY_SECS;

/// Where a tally's unreported quantities go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// To Stripe, into their own period, under this minute.
    Own(EpochSecs),
    /// Nowhere yet: no whole minute of theirs has begun, or the account is not known.
    Later,
    /// Into this book of the user's present period, as far as it bills their meters; the rest nowhere.
    Carry {
        /// Whose book: the tally's key.
        tally_key: String,
        /// How that period is billed.
        billing: Billing,
    },
    /// Nowhere: their period is invoiced for good, and the customer has no present one.
    Nowhere,
}

/// Where the unreported quantities of a billed tally go at the real moment `now`, if an invoice is final at the latest
/// `final_after_secs` after its period's end.
#[must_use]
pub fn destination(
    tally: &Tally,
    billing: &Billing,
    account: Option<&Account>,
    prices: &PriceList,
    now: EpochSecs,
    final_after_secs: i64,
) -> Destination {
    let Some(account) = account else { return Destination::Later };
    let local_now = account.local_time(now);
    let end = known_end(billing, account, prices);
    let on_trial = is_on_trial(billing, account);
    if on_trial || !is_closed(billing, account, end, local_now, final_after_secs) {
        match reporting_minute(tally.day, billing.segment_start, end, local_now) {
            Some(minute) if local_now.secs_since(minute) < OWN_DAY_FOR_SECS => return Destination::Own(minute),
            // Its day, or what the period has of it, is still to come to a whole minute.
            None if local_now < end.min(tally.day.end()) => return Destination::Later,
            _ => {}
        }
    }
    // What was free must not come to be paid for.
    if on_trial {
        return Destination::Nowhere;
    }
    carried(tally, billing, account, prices, local_now)
}

/// Whether a report that was fixed for a tally's own period would still be billed there.
#[must_use]
pub fn is_open(billing: &Billing, account: &Account, prices: &PriceList, now: EpochSecs, final_after_secs: i64) -> bool {
    let end = known_end(billing, account, prices);
    is_on_trial(billing, account) || !is_closed(billing, account, end, account.local_time(now), final_after_secs)
}

/// The end of a tally's period as it is known now; it may have moved since the tally was counted.
fn known_end(billing: &Billing, account: &Account, prices: &PriceList) -> EpochSecs {
    match place(Some(account), prices, billing.segment_start) {
        Place::Billed(span) if span.subscription == billing.subscription_id && span.start == billing.segment_start => span.end,
        _ => billing.segment_end,
    }
}

/// Whether Stripe bills no more usage of the period that ends at `end`.
fn is_closed(billing: &Billing, account: &Account, end: EpochSecs, local_now: EpochSecs, final_after_secs: i64) -> bool {
    let invoiced = account.final_through.get(&billing.subscription_id).is_some_and(|through| *through >= end);
    let waited = local_now.secs_since(end) >= final_after_secs.saturating_sub(CLOSED_BEFORE_SECS).max(0);
    // At a switch of prices within a period Stripe bills what it has of the old ones, there and then.
    invoiced || waited || (end <= local_now && was_cut(billing, account, end))
}

/// Whether the period is a trial. Stripe takes its usage at any time and bills nothing for it.
fn is_on_trial(billing: &Billing, account: &Account) -> bool {
    let segment = account.segments.iter().rfind(|segment| segment.start <= billing.segment_start);
    segment.is_some_and(|segment| {
        segment.is_trial && segment.subscription == billing.subscription_id && billing.segment_start < segment.end
    })
}

/// Whether the period was cut at `end` by a switch of prices, rather than ended where its cycle ends it.
fn was_cut(billing: &Billing, account: &Account, end: EpochSecs) -> bool {
    let Some(index) = account.segments.iter().rposition(|segment| segment.start <= billing.segment_start) else { return false };
    let (Some(segment), Some(next)) = (account.segments.get(index), account.segments.get(index.saturating_add(1))) else {
        return false;
    };
    let other_prices = next.billed != segment.billed || next.plan != segment.plan;
    let is_switch = next.subscription == billing.subscription_id && other_prices;
    is_switch && next.start == end && segment.renews.is_none_or(|cycle| cycle.period_containing(end).0 != end)
}

fn carried(tally: &Tally, billing: &Billing, account: &Account, prices: &PriceList, local_now: EpochSecs) -> Destination {
    let present = place(Some(account), prices, local_now);
    let Some(segment_key) = present.segment_key() else { return Destination::Nowhere };
    // Another customer is another payer, who owes nothing for this.
    let Place::Billed(span) = present else { return Destination::Nowhere };
    if span.customer != billing.customer_id {
        return Destination::Nowhere;
    }
    let present = Billing {
        customer_id: span.customer,
        subscription_id: span.subscription,
        plan: span.plan,
        billed: span.billed,
        segment_start: span.start,
        segment_end: span.end,
        clock_offset_secs: account.clock_offset_secs,
    };
    // What was to be paid for must not come to be free.
    if is_on_trial(&present, account) {
        return Destination::Nowhere;
    }
    let day = reporting_day(local_now.day(), present.segment_start, present.segment_end);
    let tally_key = tally_key(day, &segment_key);
    if tally_key == tally.tally_key { Destination::Later } else { Destination::Carry { tally_key, billing: present } }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{
        account::tests::subscribed,
        id::{CustomerId, MeterId, SubscriptionId},
        time::{HOUR_SECS, UtcDay},
    };

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    /// A tally of the account's first period, which is 10 November to 10 December.
    fn tally(account: &Account, day: &str) -> Tally {
        let segment = &account.segments[0];
        let billing = Billing {
            customer_id: segment.customer.clone(),
            subscription_id: segment.subscription.clone(),
            plan: segment.plan.clone(),
            billed: segment.billed.clone(),
            segment_start: segment.start,
            segment_end: at("2026-12-10T08:30:15Z"),
            clock_offset_secs: 0,
        };
        Tally {
            user_id: account.user_id.clone(),
            tally_key: format!("{day}/segment"),
            day: UtcDay::parse(day).unwrap(),
            billing: Some(billing),
            counted: BTreeMap::new(),
        }
    }

    fn shown(account: &Account, day: &str, now: &str) -> String {
        let tally = tally(account, day);
        let billing = tally.billing.as_ref().unwrap();
        match destination(&tally, billing, Some(account), &PriceList::shipped().unwrap(), at(now), HOUR_SECS) {
            Destination::Own(minute) => format!("own {minute}"),
            Destination::Later => "later".to_owned(),
            Destination::Carry { tally_key, billing } => {
                format!("carry {} {} {}", &tally_key[..10], billing.segment_start, billing.billed.len())
            }
            Destination::Nowhere => "nowhere".to_owned(),
        }
    }

    const START: &str = "2026-11-10T08:30:15Z";

    #[test]
    fn late_usage_goes_to_its_own_period_until_that_one_s_invoice_is_final() {
        let mut account = subscribed(START);
        assert_eq!(shown(&account, "2026-12-09", "2026-12-09T12:00:10Z"), "own 2026-12-09T12:00:00Z");
        assert_eq!(shown(&account, "2026-12-10", "2026-12-10T08:30:15Z"), "own 2026-12-10T08:30:00Z");
        assert_eq!(shown(&account, "2026-12-09", "2026-12-10T09:25:14Z"), "own 2026-12-09T23:59:00Z");
        // An hour after its end Stripe finalises it, whether or not that was heard of; what is fixed now is sent before that.
        assert_eq!(shown(&account, "2026-12-09", "2026-12-10T09:25:15Z"), "carry 2026-12-10 2026-12-10T08:30:15Z 3");
        // And it may be final before.
        account.final_through.insert(SubscriptionId::new("sub_1").unwrap(), at("2026-12-10T08:30:14Z"));
        assert_eq!(shown(&account, "2026-12-09", "2026-12-10T08:40:00Z"), "own 2026-12-09T23:59:00Z");
        account.final_through.insert(SubscriptionId::new("sub_1").unwrap(), at("2026-12-10T08:30:15Z"));
        assert_eq!(shown(&account, "2026-12-09", "2026-12-10T08:40:00Z"), "carry 2026-12-10 2026-12-10T08:30:15Z 3");
        account.final_through = BTreeMap::from([(SubscriptionId::new("sub_2").unwrap(), at("2026-12-10T08:30:15Z"))]);
        assert_eq!(shown(&account, "2026-12-09", "2026-12-10T08:40:00Z"), "own 2026-12-09T23:59:00Z");
    }

    #[test]
    fn what_was_unreported_at_a_switch_of_prices_is_carried_as_far_as_the_new_ones_bill_it() {
        let mut account = subscribed(START);
        let mut next = account.segments[0].clone();
        next.start = at("2026-11-20T12:00:00Z");
        next.billed.remove(&MeterId::new("requests").unwrap());
        account.segments[0].end = next.start;
        account.segments.push(next);
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:00:00Z"), "carry 2026-11-20 2026-11-20T12:00:00Z 2");
        assert_eq!(shown(&account, "2026-11-19", "2026-11-21T00:00:00Z"), "carry 2026-11-21 2026-11-20T12:00:00Z 2");
        // A test clock that was set back, or a switch that is only planned.
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T11:59:59Z"), "own 2026-11-20T11:59:00Z");
    }

    #[test]
    fn a_switch_between_plans_of_the_same_meters_is_one_and_a_period_begun_anew_is_none() {
        let mut account = subscribed(START);
        let mut next = account.segments[0].clone();
        next.start = at("2026-11-20T12:00:00Z");
        account.segments[0].end = next.start;
        account.segments[0].renews = None;
        account.segments.push(next);
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:00:10Z"), "own 2026-11-20T11:59:00Z");
        account.segments[1].plan = None;
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:00:10Z"), "carry 2026-11-20 2026-11-20T12:00:00Z 3");
    }

    #[test]
    fn what_was_free_on_trial_is_never_carried_into_a_period_that_is_paid() {
        let mut account = subscribed(START);
        account.segments[0].is_trial = true;
        for told in [false, true] {
            assert_eq!(shown(&account, "2026-12-09", "2026-12-20T00:00:00Z"), "own 2026-12-09T23:59:00Z", "{told}");
            assert_eq!(shown(&account, "2026-12-09", "2027-01-20T00:00:00Z"), "nowhere", "{told}");
            let mut paid = account.segments[0].clone();
            paid.start = account.segments[0].end;
            paid.end = at("2027-01-10T08:30:15Z");
            paid.is_trial = false;
            account.segments.push(paid);
        }
        // Usage after the trial's end that was counted before anybody told of it.
        account.segments.truncate(1);
        let mut late = tally(&account, "2026-12-11");
        let billing = late.billing.as_mut().unwrap();
        billing.segment_start = account.segments[0].end;
        let billing = billing.clone();
        let goes =
            destination(&late, &billing, Some(&account), &PriceList::shipped().unwrap(), at("2027-01-20T00:00:00Z"), HOUR_SECS);
        assert!(matches!(goes, Destination::Carry { .. }), "{goes:?}");
    }

    #[test]
    fn without_a_present_period_of_the_same_customer_it_goes_nowhere() {
        let mut account = subscribed(START);
        account.segments[0].end = at("2026-11-20T12:00:00Z");
        account.segments[0].renews = None;
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:54:59Z"), "own 2026-11-20T11:59:00Z", "its last invoice is open");
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:55:00Z"), "nowhere");
        // Usage of a later day, counted before the end was known, has no minute in the period.
        assert_eq!(shown(&account, "2026-11-21", "2026-11-20T12:10:00Z"), "nowhere");
        let mut next = account.segments[0].clone();
        next.start = at("2026-11-20T12:00:00Z");
        next.end = at("2026-12-20T12:00:00Z");
        next.subscription = SubscriptionId::new("sub_2").unwrap();
        account.segments.push(next);
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:55:00Z"), "carry 2026-11-20 2026-11-20T12:00:00Z 3");
        account.segments[1].customer = CustomerId::new("cus_2").unwrap();
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T12:55:00Z"), "nowhere", "somebody else pays now");
    }

    #[test]
    fn what_is_to_be_paid_for_is_never_carried_into_a_trial() {
        let mut account = subscribed(START);
        account.segments[0].end = at("2026-11-20T12:00:00Z");
        account.segments[0].renews = None;
        let mut trial = account.segments[0].clone();
        trial.start = at("2026-11-20T12:00:00Z");
        trial.end = at("2026-12-20T12:00:00Z");
        trial.subscription = SubscriptionId::new("sub_2").unwrap();
        trial.is_trial = true;
        account.segments.push(trial);
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T13:00:00Z"), "nowhere");
        account.segments[1].is_trial = false;
        assert_eq!(shown(&account, "2026-11-20", "2026-11-20T13:00:00Z"), "carry 2026-11-20 2026-11-20T12:00:00Z 3");
    }

    #[test]
    fn usage_that_stripe_would_find_too_old_is_carried_within_a_long_period() {
        let mut account = subscribed(START);
        account.segments[0].end = at("2027-11-10T08:30:15Z");
        assert_eq!(shown(&account, "2026-11-20", "2026-12-23T23:58:59Z"), "own 2026-11-20T23:59:00Z");
        assert_eq!(shown(&account, "2026-11-20", "2026-12-23T23:59:00Z"), "carry 2026-12-23 2026-11-10T08:30:15Z 3");
    }

    #[test]
    fn what_has_no_minute_yet_or_no_account_waits() {
        let account = subscribed(START);
        assert_eq!(shown(&account, "2026-11-21", "2026-11-20T12:00:00Z"), "later");
        let tally = tally(&account, "2026-11-20");
        let billing = tally.billing.as_ref().unwrap();
        let unknown = destination(&tally, billing, None, &PriceList::shipped().unwrap(), at("2027-01-01T00:00:00Z"), HOUR_SECS);
        assert_eq!(unknown, Destination::Later);
        // A period of twenty seconds never comes to a whole minute.
        let mut short = account;
        short.segments[0].end = at("2026-11-10T08:30:35Z");
        short.segments[0].renews = None;
        assert_eq!(shown(&short, "2026-11-10", "2026-11-10T08:30:34Z"), "later");
        assert_eq!(shown(&short, "2026-11-10", "2026-11-10T08:30:35Z"), "nowhere");
    }

    #[test]
    fn a_period_is_open_until_five_minutes_before_its_invoice_is_final_and_a_trial_always() {
        let (mut account, prices) = (subscribed(START), PriceList::shipped().unwrap());
        let billing = tally(&account, "2026-12-09").billing.unwrap();
        let is_open = |account: &Account, now| is_open(&billing, account, &prices, at(now), HOUR_SECS);
        assert!(is_open(&account, "2026-12-10T09:25:14Z"));
        assert!(!is_open(&account, "2026-12-10T09:25:15Z"));
        account.segments[0].is_trial = true;
        assert!(is_open(&account, "2026-12-20T00:00:00Z"));
    }

    #[test]
    fn a_period_ends_where_the_account_has_it_now_and_where_it_was_counted_if_the_account_has_it_no_more() {
        let (mut account, prices) = (subscribed(START), PriceList::shipped().unwrap());
        let billing = tally(&account, "2026-11-19").billing.unwrap();
        account.segments[0].end = at("2026-11-20T12:00:00Z");
        account.segments[0].renews = None;
        assert_eq!(known_end(&billing, &account, &prices), at("2026-11-20T12:00:00Z"));
        let later = Billing { segment_start: at("2026-11-12T00:00:00Z"), ..billing.clone() };
        assert_eq!(known_end(&later, &account, &prices), billing.segment_end, "it began elsewhere");
        let other = Billing { subscription_id: SubscriptionId::new("sub_2").unwrap(), ..billing.clone() };
        assert_eq!(known_end(&other, &account, &prices), billing.segment_end, "another subscription's");
    }
}
