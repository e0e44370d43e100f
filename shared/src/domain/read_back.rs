//! Reading back: whether what was reported is what Stripe has, by customer, meter and UTC day.
//!
//! Every report carries a minute of its tally's own day, so a day's meter summary speaks of that day's books alone, wherever
//! periods begin and end within it. Nothing is corrected here: a difference is shown, and what Stripe itself said it threw
//! away is entered as rejected.

use super::{
    counting::Billing,
    id::MeterId,
    report::{Book, Check, SUMMARY_SETTLES_SECS, Tally},
    time::{DAY_SECS, EpochSecs, HOUR_SECS, MINUTE_SECS},
};

/// How long after its day a book is read back.
const AFTER_DAY_SECS: i64 = 2 * HOUR_SECS;
/// How long before its invoice is final the last days of a period are read back, and reported if anything is left.
pub const BEFORE_FINAL_SECS: i64 = 15 * MINUTE_SECS;
/// How long a difference is looked at again, day by day.
const WATCHED_FOR_SECS: i64 = 35 * DAY_SECS;
/// How far Stripe's clock and ours may be apart.
const CLOCKS_DIFFER_SECS: i64 = 5 * MINUTE_SECS;
/// How much older than Stripe's word of an asynchronous rejection a report may be that it speaks of.
const REJECTED_WITHIN_SECS: i64 = 25 * HOUR_SECS;

/// When a book is to be read back at the latest, a real moment: two hours after its day, and in time before its period's invoice
/// is final.
#[must_use]
pub fn due_at(tally: &Tally, billing: &Billing, offset_secs: i64, now: EpochSecs, final_after_secs: i64) -> EpochSecs {
    let after_day = tally.day.end().plus_secs(AFTER_DAY_SECS);
    let in_time = billing.segment_end.plus_secs(final_after_secs.saturating_sub(BEFORE_FINAL_SECS));
    let real = after_day.min(in_time.max(tally.day.start())).plus_secs(offset_secs.saturating_neg());
    // What is reported late is read back once Stripe's summaries can show it.
    if real > now { real } else { now.plus_secs(SUMMARY_SETTLES_SECS) }
}

/// Whether something was confirmed since the book was last read back.
#[must_use]
pub fn is_unchecked(book: &Book) -> bool {
    let Some(confirmed_at) = book.confirmed_at else { return false };
    let reported = book.meters.iter().filter(|(_, entry)| entry.reported > 0);
    reported.map(|(meter, _)| book.checked.get(meter)).any(|check| check.is_none_or(|check| check.at < confirmed_at))
}

/// Whether Stripe had something else than was reported when the book was last read back.
#[must_use]
pub fn differs(book: &Book) -> bool {
    book.checked.values().any(|check| check.stripe != check.reported)
}

/// Whether something counts as rejected that may have been late only: it is looked at once more when the book is due.
#[must_use]
pub fn may_recover(book: &Book) -> bool {
    book.rejected.keys().any(|meter| book.totals(meter).rejected > 0)
}

/// When Stripe said that it threw usage away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejections {
    /// The first time that was not followed up.
    pub first_at: EpochSecs,
    /// The last time.
    pub last_at: EpochSecs,
}

/// Whether what Stripe threw away may be of this book. Stripe's word names samples only, so whatever it may have taken in the time
/// before it may be meant: from when the first of it was sent until it was last confirmed, or until now if the fate of something is
/// unknown.
#[must_use]
pub fn may_be_rejected(book: &Book, rejections: &Rejections) -> bool {
    let under_way = book.meters.values().filter_map(|entry| entry.intent.as_ref()).map(|intent| intent.first_attempt_at).min();
    let confirmed = book.first_sent_at.or(book.confirmed_at);
    let Some(first) = confirmed.into_iter().chain(under_way).min() else { return false };
    let is_recent = |last: EpochSecs| last >= rejections.first_at.plus_secs(-REJECTED_WITHIN_SECS);
    let may_be_last = under_way.is_some() || book.confirmed_at.is_some_and(is_recent);
    first <= rejections.last_at.plus_secs(CLOCKS_DIFFER_SECS) && may_be_last
}

/// Notes that what Stripe threw away may be of this book.
pub fn suspect(book: &mut Book) {
    let meters = book.meters.iter().filter(|(_, entry)| entry.may_be_at_stripe());
    book.suspects.extend(meters.map(|(meter, _)| meter.clone()));
}

/// Whether a meter was read back within the past day, nothing was confirmed since, and it is not suspect.
#[must_use]
pub fn is_fresh(book: &Book, meter: &MeterId, now: EpochSecs) -> bool {
    let Some(check) = book.checked.get(meter) else { return false };
    let is_newest = book.confirmed_at.is_none_or(|confirmed_at| check.at >= confirmed_at);
    is_newest && !book.suspects.contains(meter) && now.secs_since(check.at) < DAY_SECS
}

/// Whether Stripe's summaries are still of use for a day.
#[must_use]
pub fn is_watched(tally: &Tally, now: EpochSecs) -> bool {
    now.secs_since(tally.day.end()) < WATCHED_FOR_SECS
}

/// What a comparison comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Stripe has what was reported.
    Equal,
    /// It may not show yet what was confirmed last.
    TooEarly,
    /// Stripe has less, and had said that it threw usage away.
    Rejected(u64),
    /// Stripe has less or more.
    Different,
}

/// Compares a check. `confirmed_at` is when anything of that day was last confirmed; `is_suspect`, whether Stripe said that it
/// threw usage away that may be of that day and meter.
#[must_use]
pub fn compare(check: &Check, confirmed_at: Option<EpochSecs>, is_suspect: bool) -> Finding {
    if check.stripe == check.reported {
        return Finding::Equal;
    }
    if confirmed_at.is_some_and(|confirmed_at| check.at.secs_since(confirmed_at) < SUMMARY_SETTLES_SECS) {
        return Finding::TooEarly;
    }
    let missing = check.reported.saturating_sub(check.stripe);
    if missing > 0 && is_suspect { Finding::Rejected(missing) } else { Finding::Different }
}

/// Whether a difference is worth an alarm: a thousandth of what was reported, and at least one.
#[must_use]
pub fn is_alarming(check: &Check) -> bool {
    check.stripe.abs_diff(check.reported) >= check.reported.div_ceil(1_000).max(1)
}

/// When a book that was read back has to be read back again: after `again_in_secs`, if it could not be told, daily while something
/// differs; and no more once Stripe's summaries are of no use.
#[must_use]
pub fn next_look(tally: &Tally, book: &Book, again_in_secs: Option<i64>, now: EpochSecs) -> Option<EpochSecs> {
    let again_in_secs = again_in_secs.or_else(|| differs(book).then_some(DAY_SECS));
    again_in_secs.filter(|_| is_watched(tally, now)).map(|secs| now.plus_secs(secs))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::{
        account::tests::subscribed,
        price_list::PriceList,
        report::{self, MeterBook},
        time::UtcDay,
    };

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    fn tally(day: &str) -> Tally {
        let account = subscribed("2026-11-10T08:30:15Z");
        let segment = &account.segments[0];
        let billing = Billing {
            customer_id: segment.customer.clone(),
            subscription_id: segment.subscription.clone(),
            plan: None,
            billed: segment.billed.clone(),
            segment_start: segment.start,
            segment_end: segment.end,
            clock_offset_secs: 0,
        };
        Tally::without_usage(&account.user_id, "key", UtcDay::parse(day).unwrap(), billing)
    }

    #[test]
    fn a_book_is_read_back_after_its_day_and_before_its_invoice_is_final() {
        for (day, now, expected) in [
            ("2026-11-20", "2026-11-20T12:00:00Z", "2026-11-21T02:00:00Z"),
            ("2026-12-10", "2026-12-10T08:00:00Z", "2026-12-10T09:15:15Z"),
            ("2026-12-09", "2026-12-09T08:00:00Z", "2026-12-10T02:00:00Z"),
            ("2026-11-20", "2026-11-25T12:00:00Z", "2026-11-25T13:00:00Z"),
            ("2026-11-20", "2026-11-21T02:00:00Z", "2026-11-21T03:00:00Z"),
        ] {
            let tally = tally(day);
            let due = due_at(&tally, tally.billing.as_ref().unwrap(), 0, at(now), HOUR_SECS);
            assert_eq!(due.to_string(), expected, "{day} at {now}");
        }
        let tally = tally("2027-11-20");
        let offset = 365 * DAY_SECS;
        let due = due_at(&tally, tally.billing.as_ref().unwrap(), offset, at("2026-11-20T12:00:00Z"), HOUR_SECS);
        assert_eq!(due.to_string(), "2026-11-20T13:00:00Z", "that test clock's period is long over");
    }

    fn check(reported: u64, stripe: u64) -> Check {
        Check { at: at("2026-11-21T02:00:00Z"), counted: reported, reported, stripe }
    }

    #[test]
    fn only_what_stripe_said_it_threw_away_is_rejected_and_only_once_its_summaries_can_tell() {
        let confirmed = Some(at("2026-11-21T01:00:00Z"));
        let early = Some(at("2026-11-21T01:00:01Z"));
        assert_eq!(compare(&check(10, 10), early, true), Finding::Equal);
        assert_eq!(compare(&check(10, 7), early, true), Finding::TooEarly);
        assert_eq!(compare(&check(10, 7), confirmed, true), Finding::Rejected(3));
        assert_eq!(compare(&check(10, 7), confirmed, false), Finding::Different);
    }

    #[test]
    fn whatever_was_sent_and_confirmed_in_the_day_before_stripes_word_may_be_meant() {
        let rejections = |first, last| Rejections { first_at: at(first), last_at: at(last) };
        let book = Book {
            first_sent_at: Some(at("2026-11-21T08:00:00Z")),
            confirmed_at: Some(at("2026-11-21T20:00:00Z")),
            ..Book::default()
        };
        for (first, last, expected) in [
            ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z", true),
            ("2026-11-21T07:55:00Z", "2026-11-21T07:55:00Z", true),
            ("2026-11-21T07:54:59Z", "2026-11-21T07:54:59Z", false),
            ("2026-11-22T21:00:00Z", "2026-11-25T00:00:00Z", true),
            ("2026-11-22T21:00:01Z", "2026-11-25T00:00:00Z", false),
            ("2026-11-20T00:00:00Z", "2026-11-25T00:00:00Z", true),
        ] {
            assert_eq!(may_be_rejected(&book, &rejections(first, last)), expected, "{first} {last}");
        }
        let word = |moment| rejections(moment, moment);
        assert!(!may_be_rejected(&Book::default(), &word("2026-11-21T10:00:00Z")));
        // Of unknown fate since eight o'clock, and nothing was ever confirmed.
        let mut under_way = Book::default();
        let mut tally = tally("2026-11-21");
        tally.counted.insert(MeterId::new("requests").unwrap(), 12);
        let sent_at = at("2026-11-21T08:00:00Z");
        assert!(report::intend(&tally, &mut under_way, &PriceList::shipped().unwrap(), sent_at, sent_at, || "id".to_owned()));
        assert!(
            may_be_rejected(&under_way, &word("2026-11-21T07:55:00Z"))
                && may_be_rejected(&under_way, &word("2026-11-25T00:00:00Z"))
        );
        assert!(!may_be_rejected(&under_way, &word("2026-11-21T07:54:59Z")));
    }

    #[test]
    fn more_than_was_reported_is_different_too() {
        let confirmed = Some(at("2026-11-21T00:59:59Z"));
        assert_eq!(compare(&check(10, 11), confirmed, true), Finding::Different);
    }

    #[test]
    fn a_thousandth_is_alarming_and_so_is_one() {
        for (reported, stripe, expected) in
            [(0, 0, false), (0, 1, true), (10, 9, true), (5_000, 4_996, false), (5_000, 4_995, true), (5_000, 5_005, true)]
        {
            assert_eq!(is_alarming(&check(reported, stripe)), expected, "{reported} {stripe}");
        }
    }

    #[test]
    fn what_is_rejected_or_refused_is_reported_once_more_when_it_is_replayed() {
        let requests = MeterId::new("requests").unwrap();
        let mut tally = tally("2026-11-20");
        tally.counted.insert(requests.clone(), 12);
        let entry = MeterBook { reported: 10, quarantined: 2, ..MeterBook::default() };
        let mut book = Book { meters: BTreeMap::from([(requests.clone(), entry)]), ..Book::default() };
        assert_eq!(report::reject(&mut book, &requests, 11), 10, "no more than was reported");
        assert_eq!((book.totals(&requests).reported, book.totals(&requests).rejected), (0, 10));
        assert!(book.replay());
        assert_eq!(report::unreported(&tally, &book)[&requests], 12);
        assert_eq!((book.totals(&requests).rejected, book.totals(&requests).quarantined), (0, 0));
        assert!(!book.replay(), "once");
    }

    #[test]
    fn a_difference_is_looked_at_daily_and_what_was_confirmed_since_is_unchecked() {
        let requests = MeterId::new("requests").unwrap();
        let now = at("2026-11-21T02:00:00Z");
        let entry = MeterBook { reported: 10, ..MeterBook::default() };
        let mut book = Book { meters: BTreeMap::from([(requests.clone(), entry)]), ..Book::default() };
        book.confirmed_at = Some(at("2026-11-20T23:00:00Z"));
        assert!(is_unchecked(&book));
        book.checked.insert(requests.clone(), check(10, 10));
        assert!(!is_unchecked(&book));
        assert_eq!(next_look(&tally("2026-11-20"), &book, None, now), None);
        book.checked.insert(requests, check(10, 9));
        assert_eq!(next_look(&tally("2026-11-20"), &book, None, now), Some(at("2026-11-22T02:00:00Z")));
        let after_35_days = at("2026-12-26T00:00:00Z");
        assert_eq!(
            next_look(&tally("2026-11-20"), &book, Some(60), after_35_days.plus_secs(-1)),
            Some(at("2026-12-26T00:00:59Z"))
        );
        assert_eq!(next_look(&tally("2026-11-20"), &book, Some(60), after_35_days), None);
        book.confirmed_at = Some(at("2026-11-21T02:00:01Z"));
        assert!(is_unchecked(&book));
        book.confirmed_at = Some(at("2026-11-21T02:00:00Z"));
        assert!(!is_unchecked(&book));
        book.meters.insert(MeterId::new("tokens_in").unwrap(), MeterBook::default());
        assert!(!is_unchecked(&book), "of what was never reported there is nothing to check");
    }
}
