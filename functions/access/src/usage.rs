//! `GET /v1/usage`: what was counted by day, and what became of it in total.

use std::collections::BTreeMap;

use lambda_http::{Request, RequestExt};
use serde_json::{Value, json};
use tokentill::{
    domain::{
        id::{MeterId, UserId},
        report::{Book, MeterBook, Tally},
        time::{DAY_SECS, EpochSecs, UtcDay, calendar_month},
    },
    ports::{Accounts, Clock, Reported, Secrets, Tallies},
};

use crate::{AccessApi, Answer, Problem, user_id};

/// The longest range of one answer.
const MAX_RANGE_SECS: i64 = 400 * DAY_SECS;

impl<S: Secrets, T: Accounts + Tallies + Reported, C: Clock> AccessApi<S, T, C> {
    /// Days are UTC days of the account's own time; a day that the range touches is shown whole.
    pub(crate) async fn usage(&self, request: &Request) -> Answer {
        let user_id = user_id(request)?;
        let (first, last) = days(request, self.clock.now())?;
        let (tallies, books) =
            futures_util::join!(self.store.tallies(&user_id, first, last), self.store.books(&user_id, first, last));
        Ok(shown(&user_id, &tallies?, &books?))
    }
}

/// The first and the last day of the range that is asked for; the present month, if none is.
fn days(request: &Request, now: EpochSecs) -> Result<(UtcDay, UtcDay), Problem> {
    let query = request.query_string_parameters();
    match query.first("by") {
        None | Some("day") => {}
        Some(_) => return Err(Problem::bad_request("by must be day".to_owned())),
    }
    let moment = |name: &str, otherwise: EpochSecs| match query.first(name) {
        None => Ok(otherwise),
        Some(text) => EpochSecs::parse_rfc3339(text)
            .ok_or_else(|| Problem::bad_request(format!("{name} must be RFC 3339, as 2026-11-22T12:00:00Z"))),
    };
    let (month_start, _) = calendar_month(now);
    let from = moment("from", month_start)?;
    let to = moment("to", now.plus_secs(1))?;
    match to.secs_since(from) {
        length if length <= 0 => Err(Problem::bad_request("from must lie before to".to_owned())),
        length if length > MAX_RANGE_SECS => Err(Problem::bad_request("a range has at most 400 days".to_owned())),
        _ => Ok((from.day(), to.plus_secs(-1).day())),
    }
}

fn shown(user_id: &UserId, tallies: &[Tally], books: &[Book]) -> Value {
    let mut by_day: BTreeMap<UtcDay, BTreeMap<&MeterId, u64>> = BTreeMap::new();
    let mut counted: BTreeMap<&MeterId, u64> = BTreeMap::new();
    for tally in tallies {
        for (meter, quantity) in &tally.counted {
            for sum in [by_day.entry(tally.day).or_default().entry(meter).or_insert(0), counted.entry(meter).or_insert(0)] {
                *sum = sum.saturating_add(*quantity);
            }
        }
    }
    let sum = |meter: &MeterId, part: fn(&MeterBook) -> u64| {
        books.iter().filter_map(|book| book.meters.get(meter)).fold(0_u64, |sum, book| sum.saturating_add(part(book)))
    };
    let totals: BTreeMap<&MeterId, Value> = counted
        .into_iter()
        .map(|(meter, counted)| {
            let total = json!({
                "counted": counted,
                "reported": sum(meter, |book| book.reported),
                "carried": 0,
                "quarantined": sum(meter, |book| book.quarantined),
                "rejected": 0,
            });
            (meter, total)
        })
        .collect();
    let series: Vec<Value> =
        by_day.into_iter().map(|(day, counted)| json!({"start": day.start().to_string(), "counted": counted})).collect();
    json!({"user_id": user_id, "by": "day", "series": series, "totals": totals})
}
