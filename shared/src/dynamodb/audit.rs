//! The ledger read back: by time through the sharded index, and by request.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use futures_util::future::try_join_all;
use serde::Deserialize;

use super::{Item, Store, from_item, text, unavailable};
use crate::{
    domain::{
        audit::{ByHour, Position, moment},
        counting::{LedgerRow, TIME_SHARDS, at_key, time_key},
        id::{MeterId, RequestId, UserId, composite_key},
        time::EpochSecs,
    },
    ports::{Audit, Unavailable},
};

const BY_TIME: &str = "reading usage by time";
const OF_REQUEST: &str = "reading a request's usage";
const BY_HOUR: &str = "reading usage by hour";

impl Audit for Store {
    async fn rows_by_time(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        after: Option<&Position>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable> {
        let mut shards: Vec<Shard> = (0..TIME_SHARDS).map(|shard| Shard::new(user_id, shard, &moments, after, most)).collect();
        let mut rows = Vec::new();
        while rows.len() < most {
            // A shard that ran dry may hold the next row, so it is read on before anything else is taken.
            let missing = most.saturating_sub(rows.len());
            try_join_all(shards.iter_mut().filter(|shard| shard.is_dry()).map(|shard| self.fill(shard, missing))).await?;
            while rows.len() < most && !shards.iter().any(Shard::is_dry) {
                // Of several the first: rows of one second go by shard.
                let newest = shards.iter_mut().filter(|shard| !shard.rows.is_empty()).min_by(|a, b| b.newest().cmp(&a.newest()));
                let Some(row) = newest.and_then(|shard| shard.rows.pop_front()) else { return Ok(rows) };
                rows.push(row);
            }
        }
        Ok(rows)
    }

    async fn rows_of_request(
        &self,
        user_id: &UserId,
        request_id: &RequestId,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable> {
        let key = composite_key(&[user_id.as_str(), request_id.as_str()]);
        let mut start = after.map(|row| Item::from([("request_key".to_owned(), text(&key)), ("row".to_owned(), text(row))]));
        let mut rows: Vec<LedgerRow> = Vec::new();
        while rows.len() < most {
            let query = self
                .client
                .query()
                .table_name(&self.tables.ledger)
                .key_condition_expression("request_key = :key")
                .expression_attribute_values(":key", text(&key))
                .scan_index_forward(false)
                .consistent_read(true)
                .limit(limit(most.saturating_sub(rows.len())))
                .set_exclusive_start_key(start);
            let page = query.send().await.map_err(unavailable(OF_REQUEST))?;
            for item in page.items.unwrap_or_default() {
                rows.push(from_item(OF_REQUEST, item)?);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                break;
            }
        }
        Ok(rows)
    }

    async fn counted_by_hour(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        most: usize,
    ) -> Result<Option<ByHour>, Unavailable> {
        if moments.is_empty() {
            return Ok(Some(ByHour::new()));
        }
        let left = RowsLeft(AtomicUsize::new(most));
        let shards = (0..TIME_SHARDS).map(|shard| self.hours_of_shard(time_key(user_id, shard), &moments, &left));
        let mut sums = ByHour::new();
        for shard in try_join_all(shards).await? {
            let Some(shard) = shard else { return Ok(None) };
            for (hour, counted) in shard {
                add(&mut sums, hour, counted);
            }
        }
        Ok(Some(sums))
    }
}

impl Store {
    /// One shard's rows of the time index from one moment to another, both included.
    fn of_shard(&self, time_key: &str, first: EpochSecs, last: EpochSecs) -> QueryFluentBuilder {
        self.client
            .query()
            .table_name(&self.tables.ledger)
            .index_name("by_time")
            .key_condition_expression("time_key = :key AND at_key BETWEEN :first AND :last")
            .expression_attribute_values(":key", text(time_key))
            .expression_attribute_values(":first", text(at_key(first)))
            .expression_attribute_values(":last", text(at_key(last)))
    }

    /// Reads a shard's next page, of at most as many rows as are still wanted.
    async fn fill(&self, shard: &mut Shard, wanted: usize) -> Result<(), Unavailable> {
        let query = self
            .of_shard(&shard.time_key, shard.first, shard.last)
            .scan_index_forward(false)
            .limit(limit(shard.page.min(wanted)))
            .set_exclusive_start_key(shard.start.take());
        let page = query.send().await.map_err(unavailable(BY_TIME))?;
        for item in page.items.unwrap_or_default() {
            shard.rows.push_back(from_item(BY_TIME, item)?);
        }
        shard.start = page.last_evaluated_key;
        shard.ended = shard.start.is_none();
        // Where more rows are than were to be expected the next page is larger, so that few requests follow one another.
        shard.page = shard.page.saturating_mul(2);
        Ok(())
    }

    /// What was counted of one shard's rows by hour; `None` as soon as there are too many to read of all shards.
    async fn hours_of_shard(
        &self,
        time_key: String,
        moments: &Range<EpochSecs>,
        left: &RowsLeft,
    ) -> Result<Option<ByHour>, Unavailable> {
        let mut sums = ByHour::new();
        let mut start = None;
        loop {
            let query = self
                .of_shard(&time_key, moments.start, moments.end.plus_secs(-1))
                .filter_expression("verdict = :counted")
                .expression_attribute_values(":counted", text("counted"))
                .projection_expression("at_key, counted")
                .set_exclusive_start_key(start);
            let page = query.send().await.map_err(unavailable(BY_HOUR))?;
            if !left.take(usize::try_from(page.scanned_count).unwrap_or(0)) {
                return Ok(None);
            }
            for item in page.items.unwrap_or_default() {
                let row: CountedRow = from_item(BY_HOUR, item)?;
                let unknown = || Unavailable { what: BY_HOUR, reason: "a row's moment is not of a version we know".to_owned() };
                add(&mut sums, moment(&row.at_key).ok_or_else(unknown)?.hour(), row.counted);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(Some(sums));
            }
        }
    }
}

/// One shard of the time index while it is read, newest first.
struct Shard {
    time_key: String,
    first: EpochSecs,
    last: EpochSecs,
    /// Where its next page begins, if not at `last`.
    start: Option<Item>,
    /// What was read and not taken yet.
    rows: VecDeque<LedgerRow>,
    /// How many rows its next page has.
    page: usize,
    /// There is no further page.
    ended: bool,
}

impl Shard {
    fn new(user_id: &UserId, shard: u8, moments: &Range<EpochSecs>, after: Option<&Position>, most: usize) -> Self {
        let time_key = time_key(user_id, shard);
        let (first, mut last) = (moments.start, moments.end.plus_secs(-1));
        let mut start = None;
        if let Some(after) = after.filter(|after| after.at <= last) {
            // Rows of one second go by shard: in an earlier one all of that second are shown, in a later one none.
            last = if shard < after.shard() { after.at.plus_secs(-1) } else { after.at };
            start = (shard == after.shard()).then(|| {
                let request_key = composite_key(&[user_id.as_str(), after.request_id.as_str()]);
                let index_keys = [("time_key", time_key.clone()), ("at_key", at_key(after.at))];
                let keys = index_keys.into_iter().chain([("request_key", request_key), ("row", after.row.clone())]);
                keys.map(|(name, value)| (name.to_owned(), text(value))).collect()
            });
        }
        // A shard's share and a little more, since the shards are not filled quite evenly.
        let page = (most / usize::from(TIME_SHARDS)).saturating_add(most / 64).saturating_add(4);
        Self { time_key, first, last, start, rows: VecDeque::new(), page, ended: last < first }
    }

    fn is_dry(&self) -> bool {
        self.rows.is_empty() && !self.ended
    }

    fn newest(&self) -> Option<&str> {
        self.rows.front().map(|row| row.at_key.as_str())
    }
}

/// How many rows may still be read, of all shards together.
struct RowsLeft(AtomicUsize);

impl RowsLeft {
    /// Takes so many off; false once there are not so many left, and from then on.
    fn take(&self, rows: usize) -> bool {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(rows)));
        taken.is_ok_and(|before| before >= rows)
    }
}

/// What is read of a row to add it to its hour.
#[derive(Deserialize)]
struct CountedRow {
    at_key: String,
    #[serde(default)]
    counted: BTreeMap<MeterId, u64>,
}

fn add(sums: &mut ByHour, hour: EpochSecs, counted: BTreeMap<MeterId, u64>) {
    for (meter, quantity) in counted {
        let sum = sums.entry(hour).or_default().entry(meter).or_insert(0);
        *sum = sum.saturating_add(quantity);
    }
}

/// As many rows as a page may hold.
fn limit(rows: usize) -> i32 {
    i32::try_from(rows).unwrap_or(i32::MAX)
}
