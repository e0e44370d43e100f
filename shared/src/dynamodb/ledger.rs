//! The ledger and the tallies: a batch's rows and sums are written in one transaction, so that a request is counted exactly
//! when its row is written (G3, G4).

use std::collections::BTreeMap;

use aws_sdk_dynamodb::{
    error::{ProvideErrorMetadata, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, CancellationReason, Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem, Update},
};
use serde::Deserialize;

use super::{Changes, Item, Store, from_item, number, text, to_item, unavailable, unreadable};
use crate::{
    domain::{
        counting::{Batch, Billing, Judged, LedgerRow, RowKey, TallyChange, Verdict, at_key, day_of},
        id::{MeterId, UserId, shard_of},
        report::Tally,
        time::{EpochSecs, UtcDay},
    },
    ports::{Ledger, Parked, ParkedPlace, RowProblem, Tallies, Unavailable, Written},
};

/// How many keys the index of touched tallies is spread over: 10,000 users who are all busy as an hour begins put 20,000 writes
/// on them, since each one's entry moves.
pub(super) const TOUCHED_SHARDS: u8 = 32;
/// What precedes a meter's name in the attribute that holds its total.
const COUNTED: &str = "counted:";

const WRITE: &str = "writing usage";
const RECOUNT: &str = "counting parked usage";
const TALLIES: &str = "reading tallies";

impl Ledger for Store {
    async fn write(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable> {
        let mut items = Vec::with_capacity(batch.rows.len().saturating_add(1));
        for judged in &batch.rows {
            items.push(TransactWriteItem::builder().put(self.row_put(judged)?).build());
        }
        self.transact(WRITE, items, batch, tally_shard, now).await
    }

    async fn row(&self, key: &RowKey) -> Result<Option<LedgerRow>, Unavailable> {
        const WHAT: &str = "reading a row of the ledger";
        let request = self.client.get_item().table_name(&self.tables.ledger).consistent_read(true);
        let request = request.key("request_key", text(&key.request_key)).key("row", text(&key.row));
        let answer = request.send().await.map_err(unavailable(WHAT))?;
        answer.item.map(|item| from_item(WHAT, item)).transpose()
    }

    async fn seen_again(&self, key: &RowKey, times: u64, seen_by: &str) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.add("seen", times);
        changes.set("last_seen_by", text(seen_by));
        // The audit may have forgotten the row meanwhile; it must not come back as a mere number.
        let condition = format!(
            "attribute_exists({}) AND {} <> {}",
            changes.name("request_key"),
            changes.name("last_seen_by"),
            changes.value(text(seen_by)),
        );
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.ledger)
            .key("request_key", text(&key.request_key))
            .key("row", text(&key.row))
            .condition_expression(condition)
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(()),
            Err(error) => Err(unavailable("raising how often a request was seen")(error)),
        }
    }
}

impl Parked for Store {
    async fn parked(&self, place: &ParkedPlace, since: EpochSecs) -> Result<(Vec<LedgerRow>, Option<ParkedPlace>), Unavailable> {
        const WHAT: &str = "looking for parked usage";
        let [unknown_user, unknown_plan] = parked_verdicts(WHAT)?;
        let start = place.after.as_ref().map(|(key, at_key)| {
            let parts = [("request_key", &key.request_key), ("row", &key.row), ("time_key", &place.time_key), ("at_key", at_key)];
            parts.map(|(name, value)| (name.to_owned(), text(value))).into()
        });
        let query = self
            .client
            .query()
            .table_name(&self.tables.ledger)
            .index_name("by_time")
            .key_condition_expression("time_key = :key AND at_key >= :since")
            .filter_expression("verdict IN (:unknown_user, :unknown_plan)")
            .expression_attribute_values(":key", text(&place.time_key))
            .expression_attribute_values(":since", text(at_key(since)))
            .expression_attribute_values(":unknown_user", unknown_user)
            .expression_attribute_values(":unknown_plan", unknown_plan)
            .set_exclusive_start_key(start);
        let page = query.send().await.map_err(unavailable(WHAT))?;
        let rows = page.items.unwrap_or_default().into_iter().map(|item| from_item(WHAT, item)).collect::<Result<_, _>>()?;
        let next = page.last_evaluated_key.map(|key| from_item::<IndexKey>(WHAT, key)).transpose()?;
        let next = next.map(|key| ParkedPlace {
            time_key: key.time_key,
            after: Some((RowKey { request_key: key.request_key, row: key.row }, key.at_key)),
        });
        Ok((rows, next))
    }

    async fn recount(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable> {
        let mut items = Vec::with_capacity(batch.rows.len().saturating_add(1));
        for judged in &batch.rows {
            items.push(TransactWriteItem::builder().update(self.row_recount(judged)?).build());
        }
        self.transact(RECOUNT, items, batch, tally_shard, now).await
    }
}

/// A key of the time index, with the table's own.
#[derive(Deserialize)]
struct IndexKey {
    request_key: String,
    row: String,
    time_key: String,
    at_key: String,
}

/// The verdicts of parked rows, as they are stored.
fn parked_verdicts(what: &'static str) -> Result<[AttributeValue; 2], Unavailable> {
    let [a, b] = Verdict::PARKED.map(|verdict| serde_dynamo::to_attribute_value(verdict).map_err(unreadable(what)));
    Ok([a?, b?])
}

impl Store {
    /// Sends a transaction: one operation for each row of the batch, in order, and the additions to its tallies.
    async fn transact(
        &self,
        what: &'static str,
        mut items: Vec<TransactWriteItem>,
        batch: &Batch,
        tally_shard: u8,
        now: EpochSecs,
    ) -> Result<Written, Unavailable> {
        for tally in batch.tallies() {
            items.push(TransactWriteItem::builder().update(self.tally_update(&tally, tally_shard, now)?).build());
        }
        match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
            Ok(_) => Ok(Written::All),
            Err(SdkError::ServiceError(error)) if is_cancelled(error.err()) => {
                let TransactWriteItemsError::TransactionCanceledException(cancelled) = error.into_err() else {
                    return Err(Unavailable { what, reason: "cancelled without reasons".to_owned() });
                };
                read_reasons(what, batch, cancelled.cancellation_reasons.unwrap_or_default())
            }
            // A row or the whole is too large, or something of it is not as DynamoDB wants it: asking again would not help.
            Err(SdkError::ServiceError(error)) if error.err().code() == Some("ValidationException") => {
                Ok(Written::Unstorable(error.err().message().unwrap_or_default().to_owned()))
            }
            Err(error) => Err(unavailable(what)(error)),
        }
    }

    fn row_put(&self, judged: &Judged) -> Result<Put, Unavailable> {
        Put::builder()
            .table_name(&self.tables.ledger)
            .set_item(Some(to_item(WRITE, &judged.row)?))
            .condition_expression("attribute_not_exists(request_key)")
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
            .map_err(|error| Unavailable { what: WRITE, reason: error.to_string() })
    }

    /// A parked row's verdict changes once, and what was counted comes with it.
    fn row_recount(&self, judged: &Judged) -> Result<Update, Unavailable> {
        let LedgerRow { verdict, counted, tally_key, .. } = &judged.row;
        let mut changes = Changes::default();
        changes.set("verdict", serde_dynamo::to_attribute_value(verdict).map_err(unreadable(RECOUNT))?);
        changes.set("counted", serde_dynamo::to_attribute_value(counted).map_err(unreadable(RECOUNT))?);
        changes.set("tally_key", serde_dynamo::to_attribute_value(tally_key).map_err(unreadable(RECOUNT))?);
        let parked = parked_verdicts(RECOUNT)?.map(|verdict| changes.value(verdict)).join(", ");
        let condition = format!("{} IN ({parked})", changes.name("verdict"));
        Update::builder()
            .table_name(&self.tables.ledger)
            .key("request_key", text(&judged.row.request_key))
            .key("row", text(&judged.row.row))
            .condition_expression(condition)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values))
            .build()
            .map_err(|error| Unavailable { what: RECOUNT, reason: error.to_string() })
    }

    fn tally_update(&self, tally: &TallyChange, shard: u8, now: EpochSecs) -> Result<Update, Unavailable> {
        let mut changes = Changes::default();
        for (meter, quantity) in &tally.added {
            changes.add(&format!("{COUNTED}{meter}"), *quantity);
        }
        changes.set("counted_at_hour", text(now.hour().to_string()));
        if let Some(billing) = &tally.billing {
            // In the index beside the key, so that the reporter finds what is to be reported at its segment's end.
            changes.set("segment_end", number(billing.segment_end.as_secs()));
            let billing = serde_dynamo::to_attribute_value::<_, AttributeValue>(billing);
            changes.set("billing", billing.map_err(unreadable(WRITE))?);
            // These change at most once an hour, so the index is written at most once an hour and tally. The free tier is
            // never reported and stays out of it.
            changes.set("touched_key", text(touched_key(shard_of(tally.user_id.as_str(), TOUCHED_SHARDS))));
            changes.set("touched_at", text(now.hour().to_string()));
        }
        Update::builder()
            .table_name(&self.tables.tallies)
            .key("user_id", text(tally.user_id.as_str()))
            .key("tally_key", text(sharded_key(&tally.tally_key, shard)))
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values))
            .build()
            .map_err(|error| Unavailable { what: WRITE, reason: error.to_string() })
    }

    pub(super) async fn query_tallies(
        &self,
        user_id: &UserId,
        condition: &str,
        bounds: [(&str, String); 2],
        consistent: bool,
    ) -> Result<Vec<Tally>, Unavailable> {
        let mut sums: BTreeMap<String, Tally> = BTreeMap::new();
        let mut start = None;
        loop {
            let mut query = self
                .client
                .query()
                .table_name(&self.tables.tallies)
                .key_condition_expression(format!("user_id = :user AND {condition}"))
                .expression_attribute_values(":user", text(user_id.as_str()))
                .consistent_read(consistent)
                .set_exclusive_start_key(start);
            for (name, bound) in &bounds {
                if condition.contains(name) {
                    query = query.expression_attribute_values(*name, text(bound));
                }
            }
            let page = query.send().await.map_err(unavailable(TALLIES))?;
            for item in page.items.unwrap_or_default() {
                add_shard(&mut sums, user_id, item)?;
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(sums.into_values().collect());
            }
        }
    }
}

impl Tallies for Store {
    async fn tallies(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<Tally>, Unavailable> {
        // Keys begin with the day and a slash; '0' is the character after it.
        let bounds = [(":from", format!("{from}/")), (":to", format!("{to}0"))];
        self.query_tallies(user_id, "tally_key BETWEEN :from AND :to", bounds, false).await
    }
}

/// A tally's key with its shard at the end.
pub(super) fn sharded_key(tally_key: &str, shard: u8) -> String {
    format!("{tally_key}/{shard:02}")
}

/// A tally's key without its shard.
pub(super) fn unsharded_key(sharded: &str) -> Option<&str> {
    sharded.rsplit_once('/').map(|(tally_key, _)| tally_key)
}

/// The partition key of the index of touched tallies. Without a day, as its sort key is the hour: any stretch of time is as many
/// queries.
pub(super) fn touched_key(shard: u8) -> String {
    format!("{shard:02}")
}

#[derive(Deserialize)]
struct StoredTally {
    tally_key: String,
    billing: Option<Billing>,
}

fn add_shard(sums: &mut BTreeMap<String, Tally>, user_id: &UserId, item: Item) -> Result<(), Unavailable> {
    let unreadable = |reason: &str| Unavailable { what: TALLIES, reason: reason.to_owned() };
    let mut counted = Vec::new();
    for (attribute, value) in &item {
        let Some(meter) = attribute.strip_prefix(COUNTED) else { continue };
        let total = value.as_n().ok().and_then(|total| total.parse::<u64>().ok());
        let total = total.ok_or_else(|| unreadable("a total is no whole number below 2^64"))?;
        counted.push((MeterId::new(meter).map_err(|_| unreadable("a total has no meter"))?, total));
    }
    let stored: StoredTally = from_item(TALLIES, item)?;
    let tally_key = unsharded_key(&stored.tally_key).ok_or_else(|| unreadable("a key has no shard"))?.to_owned();
    let day = day_of(&tally_key).ok_or_else(|| unreadable("a key has no day"))?;
    let sum = sums.entry(tally_key.clone()).or_insert_with(|| Tally {
        user_id: user_id.clone(),
        tally_key,
        day,
        billing: None,
        counted: BTreeMap::new(),
    });
    if stored.billing.is_some() {
        sum.billing = stored.billing;
    }
    for (meter, total) in counted {
        let entry = sum.counted.entry(meter).or_insert(0);
        *entry = entry.checked_add(total).ok_or_else(|| unreadable("a total reaches 2^64"))?;
    }
    Ok(())
}

fn is_cancelled(error: &TransactWriteItemsError) -> bool {
    matches!(error, TransactWriteItemsError::TransactionCanceledException(cancelled) if cancelled.cancellation_reasons.is_some())
}

/// Reads a cancelled transaction by its reasons: one for each operation, in order, the rows' first.
fn read_reasons(what: &'static str, batch: &Batch, reasons: Vec<CancellationReason>) -> Result<Written, Unavailable> {
    let mut problems = Vec::with_capacity(batch.rows.len());
    let mut others_contended = false;
    for (index, reason) in reasons.into_iter().enumerate() {
        let is_row = index < batch.rows.len();
        let problem = match reason.code.as_deref() {
            None | Some("None") => RowProblem::None,
            Some("ConditionalCheckFailed") if is_row => match reason.item {
                Some(item) => RowProblem::Exists(Box::new(from_item(what, item)?)),
                // Without the old row nothing can be said of it; the next try will tell.
                None => RowProblem::Contended,
            },
            Some("TransactionConflict" | "ThrottlingError" | "ProvisionedThroughputExceeded") => RowProblem::Contended,
            Some("ValidationError") => return Ok(Written::Unstorable(reason.message.unwrap_or_default())),
            Some(code) => {
                let message = reason.message.unwrap_or_default();
                return Err(Unavailable { what, reason: format!("{code}: {message}") });
            }
        };
        if is_row {
            problems.push(problem);
        } else {
            others_contended |= problem == RowProblem::Contended;
        }
    }
    problems.resize(batch.rows.len(), RowProblem::None);
    // A contended tally concerns every row; it is enough to mark the first that has no problem of its own.
    if others_contended && let Some(free) = problems.iter_mut().find(|problem| **problem == RowProblem::None) {
        *free = RowProblem::Contended;
    }
    Ok(Written::Nothing(problems))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_taken_off_as_it_was_put_on() {
        let key = "2026-11-22/6:billed/5:sub/1/10:1794268800";
        assert_eq!(unsharded_key(&sharded_key(key, 7)), Some(key));
    }
}
