//! Reports: what is sent to Stripe of what was counted, and how it is never sent twice (G3, G4).
//!
//! A report is fixed before it is sent: the reporter writes the intent (identifier, quantity, minute), then sends it, then
//! confirms it. Whatever crashes between these steps, the same report is sent again under the same identifier, and Stripe
//! takes it once. An intent whose fate is unknown for too long is not resent blindly, because Stripe forgets identifiers; that
//! one minute's meter summary decides it.
//!
//! A book balances: counted + carried in + replayed = reported + quarantined + carried out + under way + [`unreported`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    counting::Billing,
    id::{CustomerId, MeterId, UserId},
    price_list::PriceList,
    time::{EpochSecs, HOUR_SECS, MINUTE_SECS, UtcDay},
};

/// The greatest quantity of one report: Stripe takes 15 digits.
pub const MAX_REPORT_QUANTITY: u64 = 999_999_999_999_999;
/// After this long since its first attempt an intent of unknown fate is not resent: Stripe keeps identifiers for at least 24
/// hours, and clocks and queues take their share.
pub const RESEND_WITHIN_SECS: i64 = 20 * HOUR_SECS;
/// How long Stripe's summaries may take to show what arrived.
pub const SUMMARY_SETTLES_SECS: i64 = HOUR_SECS;

/// One report as it is sent: one meter event. Fixed before the first attempt, and the same at every further one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterReport {
    /// The customer that pays.
    pub customer: CustomerId,
    /// The meter's name at Stripe.
    pub event_name: String,
    /// The identifier by which Stripe knows it again, for at least 24 hours.
    pub identifier: String,
    /// How much, at least 1 and at most 15 digits.
    pub quantity: u64,
    /// A whole UTC minute inside the segment.
    pub minute: EpochSecs,
}

/// A tally as the reporter reads it: all shards of one user's day within one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Whose it is.
    pub user_id: UserId,
    /// Day and segment, without the shard.
    pub tally_key: String,
    /// The UTC day.
    pub day: UtcDay,
    /// How it is billed; `None` on the free tier.
    pub billing: Option<Billing>,
    /// What was counted, per meter.
    pub counted: BTreeMap<MeterId, u64>,
}

/// What the reporter knows of a tally. Only the reporter writes it, under its version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Book {
    /// Grows by one with each write; 0 before the first.
    #[serde(default)]
    pub version: u64,
    /// Per meter.
    #[serde(default)]
    pub meters: BTreeMap<MeterId, MeterBook>,
    /// How the segment is billed, where quantities were carried into this book; it may have no tally of its own.
    #[serde(default)]
    pub billing: Option<Billing>,
    /// What was handed to other books, because this one's period was invoiced for good before it could be reported.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub carried_out: BTreeMap<MeterId, u64>,
    /// What was handed to this book so, by the key of the tally it comes from.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub carried_in: BTreeMap<MeterId, BTreeMap<String, u64>>,
    /// What Stripe took and then threw away, of what was reported. Never decreases.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<MeterId, u64>,
    /// What is to be reported once more, of what was rejected or quarantined. Never decreases.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replayed: BTreeMap<MeterId, u64>,
    /// When a report that was under way before was last sent again, by our own clock.
    #[serde(default)]
    pub resent_at: Option<EpochSecs>,
    /// When the earliest of what was confirmed was first sent, by our own clock: Stripe may have taken it long before we knew.
    #[serde(default)]
    pub first_sent_at: Option<EpochSecs>,
    /// When something was last confirmed, by our own clock.
    #[serde(default)]
    pub confirmed_at: Option<EpochSecs>,
    /// The meters of which Stripe may have thrown usage away, by its own word, and that were not read back since.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub suspects: BTreeSet<MeterId>,
    /// The meters of which nobody knows what was reported in which minute, so that a minute's summary decides nothing: a person took
    /// what Stripe has for what was reported.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub undecidable: BTreeSet<MeterId>,
    /// When the reporter has to come back to it although nothing is counted, a real moment.
    #[serde(default)]
    pub due_at: Option<EpochSecs>,
    /// What Stripe's meters showed when they were last read back.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub checked: BTreeMap<MeterId, Check>,
}

/// What a meter showed for a customer and UTC day, beside what we know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// When it was read, by our own clock.
    pub at: EpochSecs,
    /// What was counted then, with what was carried in and without what was carried out.
    pub counted: u64,
    /// What was reported and not rejected then.
    pub reported: u64,
    /// What Stripe had.
    pub stripe: u64,
}

/// What became of a book's quantities of one meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BookTotals {
    /// What Stripe has taken and not thrown away.
    pub reported: u64,
    /// What was handed on to another book.
    pub carried: u64,
    /// What Stripe refused, or could be billed to nobody, and is not replayed.
    pub quarantined: u64,
    /// What Stripe took, then threw away, and is not replayed.
    pub rejected: u64,
}

impl Book {
    /// What became of a meter's quantities.
    #[must_use]
    pub fn totals(&self, meter: &MeterId) -> BookTotals {
        let entry = self.meters.get(meter);
        let (reported, quarantined) = entry.map_or((0, 0), |entry| (entry.reported, entry.quarantined));
        let (rejected, replayed) = (of(&self.rejected, meter), of(&self.replayed, meter));
        // A replay takes the rejected quantities first, then the quarantined ones.
        BookTotals {
            reported: reported.saturating_sub(rejected),
            carried: of(&self.carried_out, meter),
            quarantined: quarantined.saturating_sub(replayed.saturating_sub(rejected)),
            rejected: rejected.saturating_sub(replayed),
        }
    }

    /// Whether a report of a meter is under way.
    #[must_use]
    pub fn is_under_way(&self, meter: &MeterId) -> bool {
        self.meters.get(meter).is_some_and(|entry| entry.intent.is_some())
    }

    /// Whether a report of any meter is under way.
    #[must_use]
    pub fn has_something_under_way(&self) -> bool {
        self.meters.values().any(|entry| entry.intent.is_some())
    }

    /// Has everything reported once more that Stripe threw away or refused. Returns whether there is anything.
    pub fn replay(&mut self) -> bool {
        let mut any = false;
        let meters: BTreeSet<MeterId> = self.meters.keys().chain(self.rejected.keys()).cloned().collect();
        for meter in meters {
            let totals = self.totals(&meter);
            let again = totals.rejected.saturating_add(totals.quarantined);
            if again > 0 {
                add(&mut self.replayed, &meter, again);
                any = true;
            }
        }
        any
    }
}

fn of(map: &BTreeMap<MeterId, u64>, meter: &MeterId) -> u64 {
    map.get(meter).copied().unwrap_or(0)
}

fn add(map: &mut BTreeMap<MeterId, u64>, meter: &MeterId, quantity: u64) {
    let sum = map.entry(meter.clone()).or_insert(0);
    *sum = sum.saturating_add(quantity);
}

impl Tally {
    /// A tally of which nothing is counted: what a book has that only holds carried quantities.
    #[must_use]
    pub fn without_usage(user_id: &UserId, tally_key: &str, day: UtcDay, billing: Billing) -> Self {
        let (user_id, tally_key) = (user_id.clone(), tally_key.to_owned());
        Self { user_id, tally_key, day, billing: Some(billing), counted: BTreeMap::new() }
    }

    /// What the tally has to account for of a meter: what was counted, and what was carried here.
    #[must_use]
    pub fn owed(&self, book: &Book, meter: &MeterId) -> u64 {
        let carried_in = book.carried_in.get(meter).into_iter().flat_map(BTreeMap::values);
        carried_in.fold(of(&self.counted, meter), |sum, quantity| sum.saturating_add(*quantity))
    }
}

/// What is neither reported nor quarantined nor handed on nor under way of a billed tally, for each meter that has any.
#[must_use]
pub fn unreported(tally: &Tally, book: &Book) -> BTreeMap<MeterId, u64> {
    let Some(billing) = &tally.billing else { return BTreeMap::new() };
    let meters: BTreeSet<&MeterId> = billing.billed.iter().chain(book.carried_in.keys()).collect();
    let left = |meter: &MeterId| {
        let entry = book.meters.get(meter);
        let under_way = entry.and_then(|entry| entry.intent.as_ref()).map_or(0, |intent| intent.quantity);
        let settled = entry.map_or(0, |entry| entry.reported.saturating_add(entry.quarantined));
        let gone = settled.saturating_add(of(&book.carried_out, meter)).saturating_add(under_way);
        tally.owed(book, meter).saturating_add(of(&book.replayed, meter)).saturating_sub(gone)
    };
    meters.into_iter().map(|meter| (meter.clone(), left(meter))).filter(|(_, quantity)| *quantity > 0).collect()
}

/// What the reporter knows of one meter of a tally.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MeterBook {
    /// What Stripe has confirmed.
    #[serde(default)]
    pub reported: u64,
    /// What Stripe refused for good; it is in the quarantine.
    #[serde(default)]
    pub quarantined: u64,
    /// The report under way.
    pub intent: Option<Intent>,
    /// The minute of the last confirmed report.
    pub last_minute: Option<EpochSecs>,
    /// What was confirmed in that minute.
    #[serde(default)]
    pub confirmed_in_last_minute: u64,
    /// The last minute in which Stripe may lack something that was confirmed, because it threw something away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_through: Option<EpochSecs>,
}

impl MeterBook {
    /// Whether Stripe may have something of it.
    #[must_use]
    pub fn may_be_at_stripe(&self) -> bool {
        self.reported > 0 || self.intent.is_some()
    }
}

/// A report under way, with everything that is sent. Immutable once it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The customer that pays.
    pub customer: CustomerId,
    /// The meter's name at Stripe.
    pub event_name: String,
    /// The identifier of the meter event.
    pub identifier: String,
    /// How much.
    pub quantity: u64,
    /// The meter event's timestamp.
    pub minute: EpochSecs,
    /// What was confirmed in that minute before: with that minute's summary it decides whether this report arrived.
    pub confirmed_before: u64,
    /// When it was written, by our own clock, just before the first attempt.
    pub first_attempt_at: EpochSecs,
}

impl Intent {
    /// The report as it is sent, at every attempt.
    #[must_use]
    pub fn report(&self) -> MeterReport {
        MeterReport {
            customer: self.customer.clone(),
            event_name: self.event_name.clone(),
            identifier: self.identifier.clone(),
            quantity: self.quantity,
            minute: self.minute,
        }
    }
}

/// What became of sending a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Stripe has it.
    Delivered,
    /// Stripe will never take it.
    Refused,
    /// Stripe never got it: its quantity is to be reported anew.
    Lost,
    /// Nobody knows, or not yet: the intent stays.
    Unknown,
}

/// Writes an intent for every meter of which something is unreported and nothing under way. `minute` is what the reports
/// carry, unless one that carries a later one was confirmed by a clock that is ahead, and `now` the real moment. Returns whether the
/// book changed.
pub fn intend(
    tally: &Tally,
    book: &mut Book,
    prices: &PriceList,
    minute: EpochSecs,
    now: EpochSecs,
    mut identifier: impl FnMut() -> String,
) -> bool {
    let Some(billing) = &tally.billing else { return false };
    let mut changed = false;
    for (meter, quantity) in unreported(tally, book) {
        // A meter that is no longer in the price list stays unsettled, and is seen as such, until it is there again.
        let Some(event_name) = prices.meter(&meter).map(|meter| meter.event_name.clone()) else { continue };
        let entry = book.meters.get(&meter).cloned().unwrap_or_default();
        if entry.intent.is_some() {
            continue;
        }
        let quantity = quantity.min(MAX_REPORT_QUANTITY);
        // Never an earlier minute again: what was confirmed in it is not kept.
        let minute = entry.last_minute.map_or(minute, |last| last.max(minute));
        let confirmed_before = if entry.last_minute == Some(minute) { entry.confirmed_in_last_minute } else { 0 };
        let intent = Intent {
            customer: billing.customer_id.clone(),
            event_name,
            identifier: identifier(),
            quantity,
            minute,
            confirmed_before,
            first_attempt_at: now,
        };
        book.meters.insert(meter, MeterBook { intent: Some(intent), ..entry });
        changed = true;
    }
    changed
}

/// The reports under way that may be sent now, in the order of their meters, and those of unknown fate that may not any more:
/// their first attempt was too long ago, or their period is closed (`is_open` is false) and would not be billed.
#[must_use]
pub fn under_way(book: &Book, is_open: bool, now: EpochSecs) -> UnderWay {
    let mut under_way = UnderWay::default();
    for (meter, entry) in &book.meters {
        let Some(intent) = &entry.intent else { continue };
        if is_open && now.secs_since(intent.first_attempt_at) < RESEND_WITHIN_SECS {
            under_way.to_send.push((meter.clone(), intent.report()));
        } else {
            under_way.overdue.push((meter.clone(), intent.clone()));
        }
    }
    under_way
}

/// A book's reports under way, each with its meter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UnderWay {
    /// Those that may be sent.
    pub to_send: Vec<(MeterId, MeterReport)>,
    /// Those of unknown fate that may not be sent again.
    pub overdue: Vec<(MeterId, Intent)>,
}

/// Whether a minute's summary, read now, tells what became of a report that is not sent any more: its last attempt is long
/// enough ago, and what was confirmed in that minute before is there.
#[must_use]
pub fn can_be_decided(book: &Book, meter: &MeterId, intent: &Intent, now: EpochSecs) -> bool {
    let last_attempt_at = book.resent_at.map_or(intent.first_attempt_at, |resent_at| resent_at.max(intent.first_attempt_at));
    let rejected_through = book.meters.get(meter).and_then(|entry| entry.rejected_through);
    let is_known = !book.undecidable.contains(meter) && rejected_through.is_none_or(|through| through < intent.minute);
    is_known && now.secs_since(last_attempt_at) >= SUMMARY_SETTLES_SECS
}

/// Whether nothing that this book reported of a meter can lie in a minute. Nothing is under way, and either all of it was confirmed in
/// one other minute, or the last of it before a report could carry that minute, which is never more than one ahead of the customer's
/// clock. That clock is a `clock_offset_secs` ahead of ours on a test clock, of which nobody knows what it was then.
#[must_use]
pub fn is_silent_in(book: &Book, meter: &MeterId, minute: EpochSecs, clock_offset_secs: i64) -> bool {
    // After a restore nobody knows what a book had reported.
    if book.undecidable.contains(meter) {
        return false;
    }
    let Some(entry) = book.meters.get(meter) else { return true };
    let was_over = |at: EpochSecs| clock_offset_secs == 0 && at.plus_secs(2 * MINUTE_SECS) < minute;
    let is_all_in_another = entry.reported == entry.confirmed_in_last_minute && entry.last_minute != Some(minute);
    entry.intent.is_none() && (is_all_in_another || book.confirmed_at.is_some_and(was_over))
}

/// What became of an overdue report, by what Stripe's meter has in its minute. Anything but the two sums it can be leaves it
/// to a person.
#[must_use]
pub fn decided(intent: &Intent, in_minute: u64) -> Fate {
    if in_minute == intent.confirmed_before {
        Fate::Lost
    } else if in_minute == intent.confirmed_before.saturating_add(intent.quantity) {
        Fate::Delivered
    } else {
        Fate::Unknown
    }
}

/// Hands what is unreported of the given meters from one book to another.
pub fn carry(tally: &Tally, from: &mut Book, to: &mut Book, quantities: &BTreeMap<MeterId, u64>) {
    for (meter, quantity) in quantities {
        add(&mut from.carried_out, meter, *quantity);
        let note = to.carried_in.entry(meter.clone()).or_default().entry(tally.tally_key.clone()).or_insert(0);
        *note = note.saturating_add(*quantity);
    }
}

/// Takes what Stripe has of a meter for what was reported of it in these books: a person's decision after a restore. Reports of
/// unknown fate are dropped, since what arrived of them is in what Stripe has. More is given to the books that lack it, and the
/// rest to the first; less is taken from what they reported.
pub fn adopt<'a>(books: impl Iterator<Item = (&'a Tally, &'a mut Book)>, meter: &MeterId, stripe: u64) {
    let mut books: Vec<_> = books.collect();
    for (_, book) in &mut books {
        book.meters.entry(meter.clone()).or_default().intent = None;
        book.undecidable.insert(meter.clone());
    }
    let reported = books.iter().map(|(_, book)| book.totals(meter).reported).fold(0, u64::saturating_add);
    let (mut more, mut less) = (stripe.saturating_sub(reported), reported.saturating_sub(stripe));
    for (tally, book) in &mut books {
        let lacking = unreported(tally, book).get(meter).copied().unwrap_or(0).min(more);
        raise_reported(book, meter, lacking);
        more = more.saturating_sub(lacking);
        less = less.saturating_sub(reject(book, meter, less));
    }
    if let Some((_, book)) = books.first_mut() {
        raise_reported(book, meter, more);
    }
}

fn raise_reported(book: &mut Book, meter: &MeterId, quantity: u64) {
    let entry = book.meters.entry(meter.clone()).or_default();
    entry.reported = entry.reported.saturating_add(quantity);
}

/// Enters what Stripe threw away, as far as this book has reported it. Returns how much that is.
pub fn reject(book: &mut Book, meter: &MeterId, missing: u64) -> u64 {
    let rejected = missing.min(book.totals(meter).reported);
    if rejected > 0 {
        add(&mut book.rejected, meter, rejected);
        if let Some(entry) = book.meters.get_mut(meter) {
            entry.rejected_through = entry.last_minute;
        }
    }
    rejected
}

/// Enters that of what counts as rejected so much did arrive after all: as if it had been replayed. Returns how much that is.
pub fn recover(book: &mut Book, meter: &MeterId, surplus: u64) -> u64 {
    let recovered = surplus.min(book.totals(meter).rejected);
    if recovered > 0 {
        raise_reported(book, meter, recovered);
        add(&mut book.replayed, meter, recovered);
    }
    recovered
}

/// Enters what can be billed to nobody.
pub fn set_aside(book: &mut Book, meter: &MeterId, quantity: u64) {
    let entry = book.meters.entry(meter.clone()).or_default();
    entry.quarantined = entry.quarantined.saturating_add(quantity);
}

/// Enters what became of a meter's report.
pub fn settle(book: &mut Book, meter: &MeterId, fate: Fate) {
    let Some(entry) = book.meters.get_mut(meter) else { return };
    if fate == Fate::Unknown {
        return;
    }
    let Some(intent) = entry.intent.take() else { return };
    match fate {
        Fate::Delivered => {
            entry.reported = entry.reported.saturating_add(intent.quantity);
            entry.last_minute = Some(intent.minute);
            entry.confirmed_in_last_minute = intent.confirmed_before.saturating_add(intent.quantity);
            let sent_at = intent.first_attempt_at;
            book.first_sent_at = Some(book.first_sent_at.map_or(sent_at, |first| first.min(sent_at)));
        }
        Fate::Refused => entry.quarantined = entry.quarantined.saturating_add(intent.quantity),
        Fate::Lost | Fate::Unknown => {}
    }
}

/// Whether nothing of the tally is left to report and nothing is under way.
#[must_use]
pub fn is_settled(tally: &Tally, book: &Book) -> bool {
    tally.billing.is_none() || (!book.has_something_under_way() && unreported(tally, book).is_empty())
}

/// Whether all that is left of a book are reports that are not sent any more, and what can only be reported after them: it waits for
/// what decides about them, perhaps a person.
#[must_use]
pub fn waits(tally: &Tally, book: &Book, now: EpochSecs) -> bool {
    let under_way = under_way(book, true, now);
    !under_way.overdue.is_empty()
        && under_way.to_send.is_empty()
        && unreported(tally, book).keys().all(|meter| book.is_under_way(meter))
}

/// The day whose tally counts usage of that day within a segment: the day itself, unless what the segment has of it holds no
/// whole minute (it begins in the day's last minute) and so could never be reported; then the day after.
#[must_use]
pub fn reporting_day(day: UtcDay, segment_start: EpochSecs, segment_end: EpochSecs) -> UtcDay {
    let first = segment_start.max(day.start());
    let has_minute = first_whole_minute(first) < segment_end.min(day.end());
    if has_minute || segment_end <= day.end() { day } else { day.next() }
}

fn first_whole_minute(from: EpochSecs) -> EpochSecs {
    from.plus_secs(MINUTE_SECS.saturating_sub(1)).minute()
}

/// The minute a report of this tally carries: whole, inside the segment, on the tally's own day, and the latest that has
/// begun. So no two tallies of a customer ever share a minute, and a minute's summary speaks of one book alone.
///
/// A slice without a whole minute that has begun takes its first whole minute, which may lie up to a minute ahead (Stripe takes
/// five). `None` if the slice holds no whole minute that has begun.
pub(super) fn reporting_minute(
    day: UtcDay,
    segment_start: EpochSecs,
    segment_end: EpochSecs,
    local_now: EpochSecs,
) -> Option<EpochSecs> {
    let first = segment_start.max(day.start());
    let last = segment_end.min(day.end()).plus_secs(-1);
    let latest = last.min(local_now).minute();
    if latest >= first {
        return Some(latest);
    }
    let first_whole = first_whole_minute(first);
    (first_whole <= last && first_whole.secs_since(local_now) <= MINUTE_SECS).then_some(first_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::id::{PlanId, SubscriptionId};
    use proptest::prelude::*;

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    #[test]
    fn a_book_is_silent_in_a_minute_that_none_of_its_reports_can_carry() {
        let (requests, minute) = (MeterId::new("requests").unwrap(), at("2026-11-22T12:00:00Z"));
        let book = |entry: MeterBook, confirmed_at: &str| Book {
            meters: [(requests.clone(), entry)].into(),
            confirmed_at: Some(at(confirmed_at)),
            ..Book::default()
        };
        let entry = |last_minute: &str, reported: u64| MeterBook {
            reported,
            last_minute: Some(at(last_minute)),
            confirmed_in_last_minute: 2,
            ..MeterBook::default()
        };
        let is_silent = |book: &Book| is_silent_in(book, &requests, minute, 0);
        assert!(
            is_silent(&Book::default()) && is_silent(&book(MeterBook::default(), "2026-11-22T12:00:30Z")),
            "it reported nothing"
        );
        assert!(is_silent(&book(entry("2026-11-22T12:05:00Z", 2), "2026-11-22T12:05:01Z")), "all of it in another minute");
        assert!(!is_silent(&book(entry("2026-11-22T12:00:00Z", 2), "2026-11-22T12:00:01Z")), "in this one");
        let several = entry("2026-11-22T11:50:00Z", 3);
        assert!(is_silent(&book(several.clone(), "2026-11-22T11:57:59Z")), "that minute was not to come for a while");
        assert!(!is_silent(&book(several.clone(), "2026-11-22T11:58:00Z")), "a report's minute may be the next one");
        assert!(!is_silent_in(&book(several.clone(), "2026-11-22T11:57:59Z"), &requests, minute, 60), "a test clock's differ");
        let mut restored = book(several.clone(), "2026-11-22T10:00:00Z");
        restored.undecidable.insert(requests.clone());
        assert!(!is_silent(&restored), "after a restore");
        let mut fixed = tally("2026-11-22", ("2026-11-10T00:00:00Z", "2026-12-10T00:00:00Z"), 5);
        fixed.billing.as_mut().unwrap().clock_offset_secs = 0;
        let mut under_way = book(entry("2026-11-22T11:50:00Z", 2), "2026-11-22T10:00:00Z");
        assert!(intend(&fixed, &mut under_way, &PriceList::shipped().unwrap(), minute, minute, || "id".to_owned()));
        assert!(!is_silent(&under_way), "something is under way");
    }

    fn tally(day: &str, segment: (&str, &str), requests: u64) -> Tally {
        let requests_meter = MeterId::new("requests").unwrap();
        Tally {
            user_id: UserId::new("ada").unwrap(),
            tally_key: "key".into(),
            day: UtcDay::parse(day).unwrap(),
            billing: Some(Billing {
                customer_id: CustomerId::new("cus_1").unwrap(),
                subscription_id: SubscriptionId::new("sub_1").unwrap(),
                plan: Some(PlanId::new("pro").unwrap()),
                billed: BTreeSet::from([requests_meter.clone()]),
                segment_start: at(segment.0),
                segment_end: at(segment.1),
                clock_offset_secs: 0,
            }),
            counted: BTreeMap::from([(requests_meter, requests), (MeterId::new("unbilled").unwrap(), 9)]),
        }
    }

    const SEGMENT: (&str, &str) = ("2026-11-10T08:30:15Z", "2026-12-10T08:30:15Z");

    fn minute(day: &str, now: &str) -> String {
        let day = UtcDay::parse(day).unwrap();
        reporting_minute(day, at(SEGMENT.0), at(SEGMENT.1), at(now)).map_or("-".into(), |minute| minute.to_string())
    }

    #[test]
    fn a_report_carries_a_whole_minute_inside_its_segment_on_its_day() {
        for (day, now, expected) in [
            ("2026-11-20", "2026-11-20T12:34:56Z", "2026-11-20T12:34:00Z"),
            ("2026-11-20", "2026-11-25T00:00:00Z", "2026-11-20T23:59:00Z"),
            ("2026-12-10", "2026-12-11T00:00:00Z", "2026-12-10T08:30:00Z"),
            ("2026-11-10", "2026-11-10T08:30:20Z", "2026-11-10T08:31:00Z"),
            ("2026-11-10", "2026-11-10T08:31:00Z", "2026-11-10T08:31:00Z"),
            ("2026-11-20", "2026-11-19T00:00:00Z", "-"),
        ] {
            assert_eq!(minute(day, now), expected, "{day} at {now}");
        }
        let day = UtcDay::parse("2026-11-10").unwrap();
        let short = reporting_minute(day, at("2026-11-10T08:30:15Z"), at("2026-11-10T08:30:59Z"), at("2026-11-11T00:00:00Z"));
        assert_eq!(short, None);
    }

    #[test]
    fn usage_of_a_days_last_minute_is_reported_with_the_next_day() {
        let day =
            |segment: (&str, &str)| reporting_day(UtcDay::parse("2026-11-10").unwrap(), at(segment.0), at(segment.1)).to_string();
        assert_eq!(day(SEGMENT), "2026-11-10");
        assert_eq!(day(("2026-11-10T23:59:00Z", "2026-12-10T23:59:00Z")), "2026-11-10");
        assert_eq!(day(("2026-11-10T23:59:01Z", "2026-12-10T23:59:01Z")), "2026-11-11");
        assert_eq!(day(("2026-10-10T00:00:30Z", "2026-11-10T00:00:30Z")), "2026-11-10");
        // A segment of seconds stays where it is: it can never be reported, and the reporter shows it as pending.
        assert_eq!(day(("2026-11-10T08:30:15Z", "2026-11-10T08:30:59Z")), "2026-11-10");
    }

    #[test]
    fn an_intent_is_fixed_until_its_fate_is_known() {
        let now = at("2026-11-20T12:00:30Z");
        let requests = MeterId::new("requests").unwrap();
        let prices = PriceList::shipped().unwrap();
        let mut book = Book::default();
        let mut tally = tally("2026-11-20", SEGMENT, 10);
        assert!(intend(&tally, &mut book, &prices, now.minute(), now, || "id-1".into()));
        let sent = under_way(&book, true, now).to_send;
        assert_eq!(sent[0].1.identifier, "id-1");
        assert_eq!((sent.len(), sent[0].1.quantity, sent[0].1.minute), (1, 10, at("2026-11-20T12:00:00Z")));

        // More is counted meanwhile, and the fate of the first report stays unknown: it is sent again as it was.
        tally.counted.insert(requests.clone(), 15);
        settle(&mut book, &requests, Fate::Unknown);
        assert!(!intend(&tally, &mut book, &prices, now.minute(), now.plus_secs(600), || "id-2".into()));
        assert_eq!(under_way(&book, true, now.plus_secs(600)).to_send, sent);
        assert_eq!(under_way(&book, false, now).overdue.len(), 1, "in a period that closed meanwhile it is not sent again");
        assert!(!is_settled(&tally, &book));

        settle(&mut book, &requests, Fate::Delivered);
        assert!(intend(&tally, &mut book, &prices, now.minute(), now, || "id-2".into()));
        let intent = book.meters[&requests].intent.clone().unwrap();
        assert_eq!((intent.quantity, intent.confirmed_before), (5, 10));
        settle(&mut book, &requests, Fate::Delivered);
        assert!(is_settled(&tally, &book));
        assert_eq!((book.meters[&requests].reported, book.meters[&requests].confirmed_in_last_minute), (15, 15));
    }

    #[test]
    fn a_clock_that_is_behind_reports_in_no_minute_before_the_last_one() {
        let last = at("2026-11-20T12:00:00Z");
        let entry = MeterBook { reported: 4, last_minute: Some(last), confirmed_in_last_minute: 4, ..MeterBook::default() };
        for (now, minute, confirmed_before) in [(-1, last, 4), (0, last, 4), (60, last.plus_secs(60), 0)] {
            let mut book = Book { meters: [(meter(), entry.clone())].into(), ..Book::default() };
            let (tally, now) = (tally("2026-11-20", SEGMENT, 10), last.plus_secs(now));
            assert!(intend(&tally, &mut book, &PriceList::shipped().unwrap(), now.minute(), now, || "id".into()));
            let intent = book.meters[&meter()].intent.clone().unwrap();
            assert_eq!((intent.minute, intent.confirmed_before, intent.quantity), (minute, confirmed_before, 6));
        }
    }

    #[test]
    fn an_intent_of_unknown_fate_is_not_resent_after_20_hours() {
        let now = at("2026-11-20T12:00:30Z");
        let (mut book, tally) = (Book::default(), tally("2026-11-20", SEGMENT, 10));
        let prices = PriceList::shipped().unwrap();
        intend(&tally, &mut book, &prices, now.minute(), now, || "id-1".into());
        let last = now.plus_secs(RESEND_WITHIN_SECS - 1);
        let counts = |at| (under_way(&book, true, at).to_send.len(), under_way(&book, true, at).overdue.len());
        assert_eq!(counts(last), (1, 0));
        let late = now.plus_secs(RESEND_WITHIN_SECS);
        assert_eq!(counts(late), (0, 1));
        assert!(
            !intend(&tally, &mut book, &prices, late.minute(), late, || "id-2".into()),
            "and nothing new is reported past it"
        );
    }

    fn meter() -> MeterId {
        MeterId::new("requests").unwrap()
    }

    /// A book that has reported so much.
    fn reported(quantity: u64) -> Book {
        let entry = MeterBook { reported: quantity, ..MeterBook::default() };
        Book { meters: [(meter(), entry)].into(), ..Book::default() }
    }

    #[test]
    fn a_minutes_summary_decides_an_hour_after_the_last_attempt_and_tells_what_arrived() {
        let first = at("2026-11-20T12:00:30Z");
        let mut book = Book::default();
        intend(&tally("2026-11-20", SEGMENT, 10), &mut book, &PriceList::shipped().unwrap(), first.minute(), first, || {
            "id".into()
        });
        let mut intent = book.meters[&meter()].intent.clone().unwrap();
        let decidable = |book: &Book, secs: i64| can_be_decided(book, &meter(), &intent, first.plus_secs(secs));
        assert_eq!((decidable(&book, 3_599), decidable(&book, 3_600)), (false, true));
        let resent = Book { resent_at: Some(first.plus_secs(60)), ..book.clone() };
        assert_eq!(
            (decidable(&resent, 3_659), decidable(&resent, 3_660)),
            (false, true),
            "after the last attempt, not the first"
        );
        let otherwise = Book { undecidable: [meter()].into(), ..book };
        assert!(!decidable(&otherwise, 86_400), "where something else stands in the way a person decides");
        let rejected_in = |minute: EpochSecs| {
            let mut book = otherwise.clone();
            book.undecidable.clear();
            let entry = book.meters.get_mut(&meter()).unwrap();
            (entry.reported, entry.last_minute) = (3, Some(minute));
            reject(&mut book, &meter(), 3);
            book.meters.get_mut(&meter()).unwrap().last_minute = Some(first.minute());
            book
        };
        assert!(!decidable(&rejected_in(first.minute()), 86_400), "what was thrown away may have been in that minute");
        assert!(decidable(&rejected_in(first.minute().plus_secs(-60)), 86_400), "what was thrown away was in another minute");
        intent.confirmed_before = 4;
        let fates = [4, 14, 13, 15, 0].map(|in_minute| decided(&intent, in_minute));
        assert_eq!(fates, [Fate::Lost, Fate::Delivered, Fate::Unknown, Fate::Unknown, Fate::Unknown]);
        assert_eq!(RESEND_WITHIN_SECS, 72_000);
    }

    #[test]
    fn what_is_carried_leaves_one_book_and_is_owed_by_the_other() {
        let (late, present) = (tally("2026-11-20", SEGMENT, 10), tally("2026-12-11", SEGMENT, 0));
        let (mut from, mut to) = (reported(3), Book::default());
        let left = unreported(&late, &from);
        assert_eq!(left, [(meter(), 7)].into());
        carry(&late, &mut from, &mut to, &left);
        assert_eq!((unreported(&late, &from), from.totals(&meter()).carried), (BTreeMap::new(), 7));
        assert_eq!((present.owed(&to, &meter()), unreported(&present, &to)), (7, left), "double entry");
        assert!(is_settled(&late, &from) && !is_settled(&present, &to));
    }

    #[test]
    fn what_stripe_threw_away_is_rejected_as_far_as_it_was_reported_and_what_arrived_late_recovered() {
        let mut book = reported(5);
        assert_eq!((reject(&mut book, &meter(), 0), book.rejected.len()), (0, 0), "nothing missing is nothing");
        assert_eq!(reject(&mut book, &meter(), 7), 5, "no more than was reported");
        let totals = book.totals(&meter());
        assert_eq!((totals.reported, totals.rejected), (0, 5));
        let known = book.clone();
        assert_eq!(recover(&mut book, &meter(), 0), 0);
        assert_eq!(book, known);
        assert_eq!(recover(&mut book, &meter(), 2), 2);
        let totals = book.totals(&meter());
        assert_eq!((totals.reported, totals.rejected), (2, 3));
        assert_eq!(recover(&mut book, &meter(), 9), 3, "no more than was rejected");
        let totals = book.totals(&meter());
        assert_eq!((totals.reported, totals.rejected), (5, 0));
    }

    #[test]
    fn what_can_be_billed_to_nobody_is_settled_and_quarantined() {
        let late = tally("2026-11-20", SEGMENT, 10);
        let mut book = reported(3);
        set_aside(&mut book, &meter(), 7);
        let totals = book.totals(&meter());
        assert_eq!((totals.reported, totals.quarantined), (3, 7));
        assert!(is_settled(&late, &book));
    }

    #[test]
    fn an_order_to_adopt_takes_what_stripe_has_for_what_was_reported() {
        let adopted = |stripe: u64| {
            let tallies = [tally("2026-11-20", SEGMENT, 10), tally("2026-11-21", SEGMENT, 10)];
            let mut books = [reported(4), reported(2)];
            let intent = Intent {
                customer: CustomerId::new("cus_1").unwrap(),
                event_name: "requests".into(),
                identifier: "id".into(),
                quantity: 1,
                minute: at("2026-11-20T12:00:00Z"),
                confirmed_before: 0,
                first_attempt_at: at("2026-11-20T12:00:00Z"),
            };
            books[0].meters.get_mut(&meter()).unwrap().intent = Some(intent);
            adopt(tallies.iter().zip(&mut books), &meter(), stripe);
            assert!(books.iter().all(|book| book.meters[&meter()].intent.is_none() && book.undecidable.contains(&meter())));
            books.map(|book| book.totals(&meter()).reported)
        };
        assert_eq!(adopted(6), [4, 2], "as the books say");
        assert_eq!(adopted(9), [7, 2], "more is given to the books that lack it");
        assert_eq!(adopted(18), [10, 8]);
        assert_eq!(adopted(25), [15, 10], "and the rest to the first");
        assert_eq!(adopted(1), [0, 1], "less is taken from what they reported");
    }

    #[test]
    fn the_free_tier_is_never_reported_and_a_refusal_is_quarantined() {
        let now = at("2026-11-20T12:00:30Z");
        let requests = MeterId::new("requests").unwrap();
        let prices = PriceList::shipped().unwrap();
        let mut free = tally("2026-11-20", SEGMENT, 10);
        free.billing = None;
        let mut book = Book::default();
        assert!(!intend(&free, &mut book, &prices, now.minute(), now, || unreachable!()) && is_settled(&free, &book));
        let billed = tally("2026-11-20", SEGMENT, 10);
        intend(&billed, &mut book, &prices, now.minute(), now, || "id-1".into());
        settle(&mut book, &requests, Fate::Refused);
        assert_eq!((book.meters[&requests].reported, book.meters[&requests].quarantined), (0, 10));
        assert!(is_settled(&billed, &book));
    }

    proptest! {
        /// G3: whatever is counted, sent, lost and refused, in any order, what is reported never exceeds what was counted, and
        /// at rest nothing is missing.
        #[test]
        fn reported_never_exceeds_counted_and_at_rest_nothing_is_missing(steps in proptest::collection::vec((0_u64..50, 0_u8..3), 1..60)) {
            let requests = MeterId::new("requests").unwrap();
            let prices = PriceList::shipped().unwrap();
            let mut tally = tally("2026-11-20", SEGMENT, 0);
            let mut book = Book::default();
            let mut now = at("2026-11-20T00:00:00Z");
            let mut next = 0_u32;
            for (counted, fate) in steps {
                *tally.counted.get_mut(&requests).unwrap() += counted;
                now = now.plus_secs(61);
                intend(&tally, &mut book, &prices, now.minute(), now, || { next += 1; next.to_string() });
                settle(&mut book, &requests, [Fate::Delivered, Fate::Refused, Fate::Unknown][usize::from(fate)]);
                let entry = book.meters.get(&requests).cloned().unwrap_or_default();
                let under_way = entry.intent.as_ref().map_or(0, |intent| intent.quantity);
                prop_assert!(entry.reported + entry.quarantined + under_way <= tally.counted[&requests]);
            }
            for _ in 0..2 {
                intend(&tally, &mut book, &prices, now.minute(), now, || { next += 1; next.to_string() });
                settle(&mut book, &requests, Fate::Delivered);
            }
            let entry = book.meters.get(&requests).cloned().unwrap_or_default();
            prop_assert_eq!(entry.reported + entry.quarantined, tally.counted[&requests]);
            prop_assert!(is_settled(&tally, &book));
        }
    }
}
