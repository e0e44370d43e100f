//! The quarantine: one item for each piece of input, in a partition for each day and shard.

use futures_util::future::try_join_all;

use super::{Changes, Item, Store, from_item, number, text, to_item, unavailable};
use crate::{
    domain::{
        id::shard_of,
        time::{DAY_SECS, EpochSecs, UtcDay},
    },
    ports::{Quarantine, QuarantineEntries, QuarantineEntry, Quarantined, Unavailable},
};

/// How many keys a day's entries are spread over.
const SHARDS: u8 = 16;
const KEEP: &str = "putting something into quarantine";
/// How long an entry is kept: as long as the audit by default.
const KEPT_SECS: i64 = 400 * DAY_SECS;

impl Quarantine for Store {
    async fn keep(&self, entry: &Quarantined) -> Result<(), Unavailable> {
        let request = self.client.put_item().table_name(&self.tables.quarantine).set_item(Some(item(entry)?));
        request.send().await.map(|_| ()).map_err(unavailable(KEEP))
    }
}

/// An entry as it is stored.
pub(super) fn item(entry: &Quarantined) -> Result<Item, Unavailable> {
    let at = EpochSecs::from_ms(entry.at_ms);
    let mut item = to_item(KEEP, entry)?;
    item.insert("day_shard".to_owned(), text(day_shard_of(at.day(), &entry.quarantine_id)));
    item.insert("expires_at".to_owned(), number(at.plus_secs(KEPT_SECS).as_secs()));
    Ok(item)
}

impl QuarantineEntries for Store {
    async fn entries(&self, day: UtcDay) -> Result<Vec<QuarantineEntry>, Unavailable> {
        let shards = try_join_all((0..SHARDS).map(|shard| self.quarantine_shard(day_shard(day, shard)))).await?;
        let mut entries: Vec<_> = shards.into_iter().flatten().collect();
        entries.sort_by(|a, b| a.quarantined.quarantine_id.cmp(&b.quarantined.quarantine_id));
        Ok(entries)
    }

    async fn entry(&self, day: UtcDay, quarantine_id: &str) -> Result<Option<QuarantineEntry>, Unavailable> {
        const WHAT: &str = "reading an entry of the quarantine";
        let request = self
            .client
            .get_item()
            .table_name(&self.tables.quarantine)
            .key("day_shard", text(day_shard_of(day, quarantine_id)))
            .key("quarantine_id", text(quarantine_id))
            .consistent_read(true);
        let found = request.send().await.map_err(unavailable(WHAT))?;
        found.item.map(|item| from_item(WHAT, item)).transpose()
    }

    async fn mark_retried(&self, entry: &Quarantined, retried_at: EpochSecs) -> Result<(), Unavailable> {
        let day = EpochSecs::from_ms(entry.at_ms).day();
        let mut changes = Changes::default();
        changes.set("retried_at", number(retried_at.as_secs()));
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.quarantine)
            .key("day_shard", text(day_shard_of(day, &entry.quarantine_id)))
            .key("quarantine_id", text(&entry.quarantine_id))
            .update_expression(changes.expression())
            // An entry that expired meanwhile is not made anew.
            .condition_expression("attribute_exists(quarantine_id)")
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        request.send().await.map(|_| ()).map_err(unavailable("marking an entry of the quarantine"))
    }
}

impl Store {
    async fn quarantine_shard(&self, day_shard: String) -> Result<Vec<QuarantineEntry>, Unavailable> {
        const WHAT: &str = "reading the quarantine";
        let mut entries = Vec::new();
        let mut pages = self
            .client
            .query()
            .table_name(&self.tables.quarantine)
            .key_condition_expression("day_shard = :key")
            .expression_attribute_values(":key", text(day_shard))
            .into_paginator()
            .items()
            .send();
        while let Some(item) = pages.next().await {
            entries.push(from_item(WHAT, item.map_err(unavailable(WHAT))?)?);
        }
        Ok(entries)
    }
}

fn day_shard(day: UtcDay, shard: u8) -> String {
    format!("{day}/{shard:02}")
}

fn day_shard_of(day: UtcDay, quarantine_id: &str) -> String {
    day_shard(day, shard_of(quarantine_id, SHARDS))
}
