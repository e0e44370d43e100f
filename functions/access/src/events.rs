//! `GET /v1/usage/events`: the ledger, newest first, page by page; or one request's rows.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use lambda_http::Request;
use serde_json::{Value, json};
use tokentill::{
    domain::{
        audit::{CountedIn, Position, SegmentName, moment},
        counting::LedgerRow,
        id::{RequestId, UserId},
        time::EpochSecs,
    },
    ports::{Accounts, Audit, Clock, Gates, Reported, Secrets, Tallies},
};

use crate::{AccessApi, Answer, Problem, query::Query};

/// How many events a page has, if nobody says.
const DEFAULT_LIMIT: usize = 100;
/// The most events of a page.
const MAX_LIMIT: usize = 1_000;
/// How many days back the events go, if nobody says.
const DEFAULT_DAYS: i64 = 30;
/// A page ends early where its events are longer than this as JSON. Lambda answers 6 MB at most, with the body as JSON text in
/// JSON, which may double it.
const MAX_PAGE_BYTES: usize = 2_500_000;
/// The version of what a cursor holds.
const CURSOR_VERSION: u8 = 1;
/// The longest sort key that DynamoDB takes, in bytes.
const MAX_ROW_KEY_BYTES: usize = 1_024;

impl<S: Secrets, T: Accounts + Tallies + Reported + Audit + Gates, C: Clock, L> AccessApi<S, T, C, L> {
    /// Events are found by their moment in the account's own time.
    pub(crate) async fn events(&self, request: &Request) -> Answer {
        let query = Query::of(request);
        let user_id = query.user_id()?;
        let limit = query.limit(DEFAULT_LIMIT, MAX_LIMIT)?;
        let after = query.text("cursor").map(|cursor| read_cursor(cursor, &user_id)).transpose()?;
        // One more than is shown tells whether there is a further page.
        let most = limit.saturating_add(1);
        let rows = match query.request_id()? {
            Some(request_id) => {
                if after.as_ref().is_some_and(|after| after.request_id != request_id) {
                    return Err(broken_cursor());
                }
                let after = after.as_ref().map(|after| after.row.as_str());
                self.store.rows_of_request(&user_id, &request_id, after, most).await?
            }
            None => {
                let until = query.moment("to")?.unwrap_or(EpochSecs::new(i64::MAX));
                let from = match query.moment("from")? {
                    Some(from) => from,
                    None => self.local_now(&user_id).await?.min(until).plus_days(-DEFAULT_DAYS),
                };
                if until <= from {
                    return Err(Problem::bad_request("from must lie before to".to_owned()));
                }
                self.store.rows_by_time(&user_id, from..until, after.as_ref(), most).await?
            }
        };
        page(&user_id, &rows, limit)
    }
}

/// As many of the rows as a page holds, and where the next one begins.
fn page(user_id: &UserId, rows: &[LedgerRow], limit: usize) -> Answer {
    let mut events = Vec::new();
    let mut bytes = 0_usize;
    let mut last = None;
    for row in rows {
        let event = shown(row)?;
        bytes = bytes.saturating_add(event.to_string().len());
        if events.len() >= limit || (bytes > MAX_PAGE_BYTES && !events.is_empty()) {
            break;
        }
        events.push(event);
        last = Some(row);
    }
    let cursor = match last.filter(|_| events.len() < rows.len()) {
        Some(row) => Some(cursor(user_id, &Position::of(row).ok_or_else(unknown_row)?)),
        None => None,
    };
    Ok(json!({"user_id": user_id, "events": events, "cursor": cursor}))
}

fn shown(row: &LedgerRow) -> Result<Value, Problem> {
    let counted_in = row.tally_key.as_deref().map(|key| CountedIn::read(key).ok_or_else(unknown_row)).transpose()?;
    let segment = counted_in.as_ref().map(|counted_in| match &counted_in.segment {
        SegmentName::Billed { subscription, start } => {
            json!({"kind": "billed", "subscription": subscription, "start": start.to_string()})
        }
        SegmentName::Free { start } => json!({"kind": "free", "start": start.to_string()}),
    });
    // What was kept of it as JSON once is JSON still.
    let extra: Option<Value> = row.extra.as_deref().and_then(|extra| serde_json::from_str(extra).ok());
    Ok(json!({
        "request_id": row.request_id,
        "timestamp": row.timestamp.to_string(),
        "at": moment(&row.at_key).ok_or_else(unknown_row)?.to_string(),
        "received_at": EpochSecs::from_ms(row.received_at_ms).to_string(),
        "endpoint": row.endpoint,
        "model": row.model,
        "tokens_in": row.quantities.tokens_in,
        "tokens_out": row.quantities.tokens_out,
        "tokens_cached": row.quantities.tokens_cached,
        "units": row.quantities.units,
        "success": row.success,
        "attempt": row.attempt,
        "outcome": row.outcome,
        "extra": extra,
        "extra_cut": row.extra_cut,
        "verdict": row.verdict,
        "counted": row.counted,
        "day": counted_in.map(|counted_in| counted_in.day),
        "segment": segment,
        "seen": row.seen,
    }))
}

/// A position as callers carry it. It names its user, so that it is taken for no other.
fn cursor(user_id: &UserId, position: &Position) -> String {
    let Position { at, request_id, row } = position;
    URL_SAFE_NO_PAD.encode(json!([CURSOR_VERSION, user_id, at.as_secs(), request_id, row]).to_string())
}

fn read_cursor(text: &str, user_id: &UserId) -> Result<Position, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| broken_cursor())?;
    let parts: (u8, String, i64, String, String) = serde_json::from_slice(&bytes).map_err(|_| broken_cursor())?;
    let (CURSOR_VERSION, user, at, request_id, row) = parts else { return Err(broken_cursor()) };
    let is_key = (1..=MAX_ROW_KEY_BYTES).contains(&row.len());
    match RequestId::new(request_id) {
        Ok(request_id) if user == user_id.as_str() && is_key => Ok(Position { at: EpochSecs::new(at), request_id, row }),
        _ => Err(broken_cursor()),
    }
}

fn broken_cursor() -> Problem {
    Problem::bad_request(
        "cursor is none of this question's: send the one of the page before, unchanged, or none to begin at the top".to_owned(),
    )
}

fn unknown_row() -> Problem {
    Problem::unavailable("a ledger row's keys are not of a version we know".to_owned())
}
