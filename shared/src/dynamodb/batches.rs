//! Accounts, customers and marks of processed events, up to a hundred in one request.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_dynamodb::types::KeysAndAttributes;
use serde::{Deserialize, de::DeserializeOwned};

use super::{Item, Store, from_item, text, unavailable};
use crate::{
    domain::{
        account::Account,
        id::{CustomerId, EventId, UserId},
    },
    ports::{AccountBatches, CustomerRecord, Readable, Unavailable},
};

/// The most keys of a request, DynamoDB's own bound.
const MOST_KEYS: usize = 100;
/// How often in a row DynamoDB may leave keys of a request unread before it counts as unavailable.
const MOST_ROUNDS: usize = 5;

#[derive(Deserialize)]
struct Marked {
    event_id: EventId,
}

impl AccountBatches for Store {
    async fn processed(&self, events: &BTreeSet<EventId>) -> Result<BTreeSet<EventId>, Unavailable> {
        const WHAT: &str = "reading processed marks";
        let items = self.batch(WHAT, &self.tables.processed, "event_id", events.iter().map(EventId::as_str)).await?;
        items.into_iter().map(|item| Ok(from_item::<Marked>(WHAT, item)?.event_id)).collect()
    }

    async fn customers(
        &self,
        customers: &BTreeSet<CustomerId>,
    ) -> Result<BTreeMap<CustomerId, Readable<CustomerRecord>>, Unavailable> {
        const WHAT: &str = "reading customers";
        let ids = customers.iter().map(CustomerId::as_str);
        let items = self.batch(WHAT, &self.tables.customers, "customer_id", ids).await?;
        Ok(by_key(WHAT, "customer_id", items, |id| CustomerId::new(id).ok()))
    }

    async fn accounts(&self, users: &BTreeSet<UserId>) -> Result<BTreeMap<UserId, Readable<Account>>, Unavailable> {
        const WHAT: &str = "reading accounts";
        let items = self.batch(WHAT, &self.tables.accounts, "user_id", users.iter().map(UserId::as_str)).await?;
        Ok(by_key(WHAT, "user_id", items, |id| UserId::new(id).ok()))
    }
}

/// Each item by its key, or why it cannot be read.
fn by_key<K: Ord, T: DeserializeOwned>(
    what: &'static str,
    key: &str,
    items: Vec<Item>,
    id: impl Fn(&str) -> Option<K>,
) -> BTreeMap<K, Readable<T>> {
    let read = |item: Item| {
        let id = item.get(key).and_then(|value| value.as_s().ok()).and_then(|text| id(text))?;
        Some((id, from_item(what, item)))
    };
    items.into_iter().filter_map(read).collect()
}

impl Store {
    /// The items of these keys that there are.
    async fn batch<'a>(
        &self,
        what: &'static str,
        table: &str,
        key: &str,
        ids: impl Iterator<Item = &'a str>,
    ) -> Result<Vec<Item>, Unavailable> {
        let keys: Vec<Item> = ids.map(|id| Item::from([(key.to_owned(), text(id))])).collect();
        let mut found = Vec::with_capacity(keys.len());
        for chunk in keys.chunks(MOST_KEYS) {
            let mut left = chunk.to_vec();
            for _ in 0..MOST_ROUNDS {
                if left.is_empty() {
                    break;
                }
                let wanted = KeysAndAttributes::builder().set_keys(Some(left)).build();
                let wanted = wanted.map_err(|error| Unavailable { what, reason: error.to_string() })?;
                let request = self.client.batch_get_item().request_items(table, wanted);
                let mut answer = request.send().await.map_err(unavailable(what))?;
                found.extend(answer.responses.as_mut().and_then(|tables| tables.remove(table)).unwrap_or_default());
                let unread = answer.unprocessed_keys.and_then(|mut tables| tables.remove(table));
                left = unread.map(|unread| unread.keys).unwrap_or_default();
            }
            if !left.is_empty() {
                return Err(Unavailable { what, reason: "keys were left unread again and again".to_owned() });
            }
        }
        Ok(found)
    }
}
