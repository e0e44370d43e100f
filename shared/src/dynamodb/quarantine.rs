//! The quarantine: one item for each piece of input, in a partition for each day and shard.

use super::{Store, number, text, to_item, unavailable};
use crate::{
    domain::{
        id::shard_of,
        time::{DAY_SECS, EpochSecs},
    },
    ports::{Quarantine, Quarantined, Unavailable},
};

/// How many keys a day's entries are spread over.
const SHARDS: u8 = 16;
/// How long an entry is kept: as long as the audit by default.
const KEPT_SECS: i64 = 400 * DAY_SECS;

impl Quarantine for Store {
    async fn keep(&self, entry: &Quarantined) -> Result<(), Unavailable> {
        const WHAT: &str = "putting something into quarantine";
        let at = EpochSecs::from_ms(entry.at_ms);
        let mut item = to_item(WHAT, entry)?;
        let shard = shard_of(&entry.quarantine_id, SHARDS);
        item.insert("day_shard".to_owned(), text(format!("{}/{shard:02}", at.day())));
        item.insert("expires_at".to_owned(), number(at.plus_secs(KEPT_SECS).as_secs()));
        let request = self.client.put_item().table_name(&self.tables.quarantine).set_item(Some(item));
        request.send().await.map(|_| ()).map_err(unavailable(WHAT))
    }
}
