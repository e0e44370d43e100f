//! `GET /v1/usage`: what was counted by day or by hour, and what became of it in total.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use lambda_http::Request;
use serde_json::{Value, json};
use tokentill::{
    domain::{
        audit::ByHour,
        id::{CustomerId, MeterId, UserId},
        report::{Book, BookTotals, Check, Tally},
        time::{DAY_SECS, EpochSecs, HOUR_SECS, UtcDay, calendar_month},
    },
    ports::{Accounts, Audit, Clock, Gates, Reported, Secrets, Tallies},
};

use crate::{AccessApi, Answer, Problem, query::Query};

/// The longest range of one answer by day.
const MAX_DAYS: i64 = 400;
/// The longest range of one answer by hour.
const MAX_DAYS_BY_HOUR: i64 = 7;
/// The most ledger rows that are read for one answer by hour.
const MAX_ROWS_BY_HOUR: usize = 200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Day,
    Hour,
}

impl<S: Secrets, T: Accounts + Tallies + Reported + Audit + Gates, C: Clock, L> AccessApi<S, T, C, L> {
    /// Days and hours are UTC ones of the account's own time; one that the range touches is shown whole. The totals are of whole
    /// days in any case, since what was reported is known by day only.
    pub(crate) async fn usage(&self, request: &Request) -> Answer {
        let query = Query::of(request);
        let user_id = query.user_id()?;
        let by = match query.text("by") {
            None | Some("day") => By::Day,
            Some("hour") => By::Hour,
            Some(_) => return Err(Problem::bad_request("by must be day or hour".to_owned())),
        };
        let (from, to) = (query.moment("from")?, query.moment("to")?);
        // Only what is left to us depends on the account's present moment.
        let now = if from.is_none() || to.is_none() { self.local_now(&user_id).await? } else { self.clock.now() };
        let range = range(by, from, to, now)?;
        let (first, last) = (range.start.day(), range.end.plus_secs(-1).day());
        let (tallies, books, series) = futures_util::join!(
            self.store.tallies(&user_id, first, last),
            self.store.books(&user_id, first, last),
            self.hours(&user_id, by, &range),
        );
        let (tallies, books) = (tallies?, books?);
        let (by, series) = match series? {
            Some(hours) => ("hour", shown(hours.iter().map(|(hour, counted)| (*hour, counted)))),
            None => ("day", shown(by_day(&tallies).iter().map(|(day, counted)| (day.start(), counted)))),
        };
        Ok(json!({"user_id": user_id, "by": by, "series": series, "totals": totals(&tallies, &books)}))
    }

    /// What was counted by hour; nothing, if that is not asked for.
    async fn hours(&self, user_id: &UserId, by: By, range: &Range<EpochSecs>) -> Result<Option<ByHour>, Problem> {
        if by == By::Day {
            return Ok(None);
        }
        let whole = range.start.hour()..range.end.plus_secs(HOUR_SECS.saturating_sub(1)).hour();
        match self.store.counted_by_hour(user_id, whole, MAX_ROWS_BY_HOUR).await? {
            Some(hours) => Ok(Some(hours)),
            None => Err(Problem::bad_request(format!(
                "there are more than {MAX_ROWS_BY_HOUR} usage events in this range: ask for fewer hours at once, or by=day"
            ))),
        }
    }
}

/// The range that is asked for. What is missing of it is the account's present month, or by hour its present day.
fn range(by: By, from: Option<EpochSecs>, to: Option<EpochSecs>, now: EpochSecs) -> Result<Range<EpochSecs>, Problem> {
    let (max_days, start) = match by {
        By::Day => (MAX_DAYS, calendar_month(now).0),
        By::Hour => (MAX_DAYS_BY_HOUR, now.day().start()),
    };
    let range = from.unwrap_or(start)..to.unwrap_or(now.plus_secs(1));
    if range.is_empty() {
        return Err(Problem::bad_request("from must lie before to".to_owned()));
    }
    if range.end.secs_since(range.start) > max_days.saturating_mul(DAY_SECS) {
        let asked = if by == By::Hour { " by hour" } else { "" };
        return Err(Problem::bad_request(format!("a range{asked} has at most {max_days} days")));
    }
    Ok(range)
}

fn by_day(tallies: &[Tally]) -> BTreeMap<UtcDay, BTreeMap<MeterId, u64>> {
    let mut days: BTreeMap<UtcDay, BTreeMap<MeterId, u64>> = BTreeMap::new();
    for tally in tallies {
        for (meter, quantity) in &tally.counted {
            add(days.entry(tally.day).or_default().entry(meter.clone()).or_insert(0), *quantity);
        }
    }
    days
}

fn shown<'a>(series: impl Iterator<Item = (EpochSecs, &'a BTreeMap<MeterId, u64>)>) -> Vec<Value> {
    series.map(|(start, counted)| json!({"start": start.to_string(), "counted": counted})).collect()
}

/// What became of one meter's quantities.
#[derive(Default)]
struct Total<'a> {
    counted: u64,
    carried_in: u64,
    of_books: BookTotals,
    /// The newest check of each day and customer: the books of one day are checked together, and each of them keeps it.
    checks: BTreeMap<(&'a str, Option<&'a CustomerId>), Check>,
}

fn totals<'a>(tallies: &'a [Tally], books: &'a BTreeMap<String, Book>) -> BTreeMap<&'a MeterId, Value> {
    let mut totals: BTreeMap<&MeterId, Total> = BTreeMap::new();
    let mut customers: BTreeMap<&str, &CustomerId> = BTreeMap::new();
    for tally in tallies {
        customers.extend(tally.billing.as_ref().map(|billing| (tally.tally_key.as_str(), &billing.customer_id)));
        for (meter, quantity) in &tally.counted {
            add(&mut totals.entry(meter).or_default().counted, *quantity);
        }
    }
    for (tally_key, book) in books {
        let customer = customers.get(tally_key.as_str()).copied();
        let customer = customer.or(book.billing.as_ref().map(|billing| &billing.customer_id));
        let day = tally_key.split('/').next().unwrap_or_default();
        let of_book = book.meters.keys().chain(book.carried_in.keys()).chain(book.carried_out.keys()).chain(book.checked.keys());
        let meters: BTreeSet<&MeterId> = of_book.collect();
        for meter in meters {
            let total = totals.entry(meter).or_default();
            let BookTotals { reported, carried, quarantined, rejected } = book.totals(meter);
            let carried_in = book.carried_in.get(meter).into_iter().flat_map(BTreeMap::values);
            add(&mut total.carried_in, carried_in.copied().fold(0, u64::saturating_add));
            add(&mut total.of_books.reported, reported);
            add(&mut total.of_books.carried, carried);
            add(&mut total.of_books.quarantined, quarantined);
            add(&mut total.of_books.rejected, rejected);
            if let Some(check) = book.checked.get(meter) {
                let newest = total.checks.entry((day, customer)).or_insert(*check);
                if newest.at < check.at {
                    *newest = *check;
                }
            }
        }
    }
    totals.into_iter().map(|(meter, total)| (meter, total.shown())).collect()
}

impl Total<'_> {
    fn shown(&self) -> Value {
        let mut shown = json!({
            "counted": self.counted,
            "reported": self.of_books.reported,
            "carried": self.of_books.carried,
            "quarantined": self.of_books.quarantined,
            "rejected": self.of_books.rejected,
        });
        let mut also = |name: &str, value: Value| shown.as_object_mut().map(|shown| shown.insert(name.to_owned(), value));
        if self.carried_in > 0 {
            also("carried_in", self.carried_in.into());
        }
        if let Some(at) = self.checks.values().map(|check| check.at).max() {
            let sum = |part: fn(&Check) -> u64| self.checks.values().map(part).fold(0, u64::saturating_add);
            let (stripe, reported) = (sum(|check| check.stripe), sum(|check| check.reported));
            let difference = stripe.checked_signed_diff(reported);
            also("checked", json!({"at": at.to_string(), "stripe": stripe, "reported": reported, "difference": difference}));
        }
        shown
    }
}

fn add(sum: &mut u64, quantity: u64) {
    *sum = sum.saturating_add(quantity);
}
