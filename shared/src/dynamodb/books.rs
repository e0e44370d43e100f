//! The reporter's books: what it knows of each tally.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::{
    error::SdkError,
    types::{AttributeValue, TransactWriteItem},
};
use serde::Deserialize;

use super::{
    Changes, Item, Store, from_item,
    ledger::{TOUCHED_SHARDS, touched_key, unsharded_key},
    lost_race, number, put, quarantine, text, to_item, unavailable, update,
};
use crate::{
    domain::{
        id::{UserId, shard_of},
        report::{Book, Tally},
        time::{EpochSecs, UtcDay},
    },
    ports::{Books, Commit, Quarantined, Reported, Touched, Unavailable},
};

const BOOK: &str = "reading a book";
const SAVE: &str = "saving a book";
/// How many keys the index of due books is spread over: the reporter alone writes them, far slower than one key takes, and reads
/// them all every minute.
const DUE_SHARDS: u8 = 2;

#[derive(Deserialize)]
struct TouchedKey {
    user_id: UserId,
    tally_key: String,
    touched_at: String,
    segment_end: Option<EpochSecs>,
}

#[derive(Deserialize)]
struct BookKey {
    user_id: UserId,
    book_key: String,
}

impl Books for Store {
    async fn touched(&self, since: EpochSecs, until: EpochSecs) -> Result<Vec<Touched>, Unavailable> {
        const WHAT: &str = "looking for touched tallies";
        let mut touched: BTreeMap<(UserId, String), (EpochSecs, EpochSecs)> = BTreeMap::new();
        // A schedule's event that comes late may lie before the checkpoint; DynamoDB refuses a range that ends before it begins.
        if until.hour() < since.hour() {
            return Ok(Vec::new());
        }
        for shard in 0..TOUCHED_SHARDS {
            let mut start = None;
            loop {
                let query = self
                    .client
                    .query()
                    .table_name(&self.tables.tallies)
                    .index_name("touched")
                    .key_condition_expression("touched_key = :key AND touched_at BETWEEN :since AND :until")
                    .expression_attribute_values(":key", text(touched_key(shard)))
                    .expression_attribute_values(":since", text(since.hour().to_string()))
                    .expression_attribute_values(":until", text(until.hour().to_string()))
                    .set_exclusive_start_key(start);
                let page = query.send().await.map_err(unavailable(WHAT))?;
                for item in page.items.unwrap_or_default() {
                    let key: TouchedKey = from_item(WHAT, item)?;
                    let (Some(tally_key), Some(hour)) =
                        (unsharded_key(&key.tally_key), EpochSecs::parse_rfc3339(&key.touched_at))
                    else {
                        return Err(Unavailable { what: WHAT, reason: "a key is not of a version we know".to_owned() });
                    };
                    let end = key.segment_end.unwrap_or(EpochSecs::new(i64::MAX));
                    let earliest = touched.entry((key.user_id, tally_key.to_owned())).or_insert((hour, end));
                    *earliest = (hour.min(earliest.0), end.min(earliest.1));
                }
                start = page.last_evaluated_key;
                if start.is_none() {
                    break;
                }
            }
        }
        let touched = touched.into_iter();
        Ok(touched.map(|((user_id, tally_key), (hour, segment_end))| Touched { user_id, tally_key, hour, segment_end }).collect())
    }

    async fn due_books(&self, until: EpochSecs) -> Result<Vec<(UserId, String)>, Unavailable> {
        const WHAT: &str = "looking for books that are due";
        let mut due = Vec::new();
        for shard in 0..DUE_SHARDS {
            let mut start = None;
            loop {
                let query = self
                    .client
                    .query()
                    .table_name(&self.tables.books)
                    .index_name("due")
                    .key_condition_expression("due_shard = :shard AND due_at <= :until")
                    .expression_attribute_values(":shard", text(format!("{shard:02}")))
                    .expression_attribute_values(":until", number(until.as_secs()))
                    .set_exclusive_start_key(start);
                let page = query.send().await.map_err(unavailable(WHAT))?;
                for item in page.items.unwrap_or_default() {
                    let key: BookKey = from_item(WHAT, item)?;
                    due.push((key.user_id, key.book_key));
                }
                start = page.last_evaluated_key;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(due)
    }

    async fn tally(&self, user_id: &UserId, tally_key: &str) -> Result<Option<Tally>, Unavailable> {
        // The slash keeps a segment apart from one whose name merely begins alike.
        let bounds = [(":prefix", format!("{tally_key}/")), (":unused", String::new())];
        let mut tallies = self.query_tallies(user_id, "begins_with(tally_key, :prefix)", bounds, true).await?;
        Ok(tallies.pop())
    }

    async fn book(&self, user_id: &UserId, tally_key: &str) -> Result<Book, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.books).consistent_read(true);
        let request = request.key("user_id", text(user_id.as_str())).key("book_key", text(tally_key));
        let answer = request.send().await.map_err(unavailable(BOOK))?;
        answer.item.map_or(Ok(Book::default()), |item| from_item(BOOK, item))
    }

    async fn book_keys(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<String>, Unavailable> {
        let items = self.query_books(user_id, from, to, true).await?;
        items.into_iter().map(|item| from_item::<BookKey>(BOOK, item).map(|key| key.book_key)).collect()
    }

    async fn save(&self, user_id: &UserId, tally_key: &str, book: &mut Book) -> Result<Commit, Unavailable> {
        let changes = changes(user_id, book)?;
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.books)
            .key("user_id", text(user_id.as_str()))
            .key("book_key", text(tally_key))
            .update_expression(changes.0.expression())
            .condition_expression(changes.1)
            .set_expression_attribute_names(Some(changes.0.names))
            .set_expression_attribute_values(Some(changes.0.values));
        match request.send().await {
            Ok(_) => {
                book.version = book.version.saturating_add(1);
                Ok(Commit::Done)
            }
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(Commit::LostRace),
            Err(error) => Err(unavailable(SAVE)(error)),
        }
    }

    async fn save_both(&self, user_id: &UserId, one: (&str, &mut Book), other: (&str, &mut Book)) -> Result<Commit, Unavailable> {
        let mut items = Vec::new();
        for (tally_key, book) in [(one.0, &*one.1), (other.0, &*other.1)] {
            let (changes, condition) = changes(user_id, book)?;
            let key = ("user_id", user_id.as_str());
            let update = update(&self.tables.books, &[key, ("book_key", tally_key)], changes, Some(condition))?;
            items.push(TransactWriteItem::builder().update(update).build());
        }
        self.save_all(items, [one.1, other.1]).await
    }

    async fn save_and_quarantine(
        &self,
        user_id: &UserId,
        tally_key: &str,
        book: &mut Book,
        entries: &[Quarantined],
    ) -> Result<Commit, Unavailable> {
        let (changes, condition) = changes(user_id, book)?;
        let key = [("user_id", user_id.as_str()), ("book_key", tally_key)];
        let update = update(&self.tables.books, &key, changes, Some(condition))?;
        let mut items = vec![TransactWriteItem::builder().update(update).build()];
        for entry in entries {
            let put = put(&self.tables.quarantine, quarantine::item(entry)?)?;
            items.push(TransactWriteItem::builder().put(put).build());
        }
        self.save_all(items, [book]).await
    }
}

/// What saving a book changes, and the condition it holds under.
fn changes(user_id: &UserId, book: &Book) -> Result<(Changes, String), Unavailable> {
    let mut changes = Changes::default();
    let condition = changes.if_version("user_id", book.version);
    let saved = Book { version: book.version.saturating_add(1), ..book.clone() };
    let (present, absent): (Vec<_>, Vec<_>) =
        to_item(SAVE, &saved)?.into_iter().partition(|(_, value)| !matches!(value, AttributeValue::Null(_)));
    changes.set_all(present.into_iter().collect(), &[]);
    // An index takes no null, and what is absent reads the same.
    for (attribute, _) in absent {
        changes.remove(&attribute);
    }
    // The one set that becomes empty again: what is not written would stay.
    if book.suspects.is_empty() {
        changes.remove("suspects");
    }
    match book.due_at {
        Some(_) => changes.set("due_shard", text(format!("{:02}", shard_of(user_id.as_str(), DUE_SHARDS)))),
        None => changes.remove("due_shard"),
    }
    Ok((changes, condition))
}

impl Store {
    /// Writes all of it or nothing; the books' versions grow with it.
    async fn save_all<const N: usize>(
        &self,
        items: Vec<TransactWriteItem>,
        books: [&mut Book; N],
    ) -> Result<Commit, Unavailable> {
        match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
            Ok(_) => {
                for book in books {
                    book.version = book.version.saturating_add(1);
                }
                Ok(Commit::Done)
            }
            Err(SdkError::ServiceError(error)) if lost_race(error.err()) => Ok(Commit::LostRace),
            Err(error) => Err(unavailable(SAVE)(error)),
        }
    }

    async fn query_books(&self, user_id: &UserId, from: UtcDay, to: UtcDay, consistent: bool) -> Result<Vec<Item>, Unavailable> {
        let mut books = Vec::new();
        let mut start = None;
        loop {
            let query = self
                .client
                .query()
                .table_name(&self.tables.books)
                .key_condition_expression("user_id = :user AND book_key BETWEEN :from AND :to")
                .expression_attribute_values(":user", text(user_id.as_str()))
                .expression_attribute_values(":from", text(format!("{from}/")))
                .expression_attribute_values(":to", text(format!("{to}0")))
                .consistent_read(consistent)
                .set_exclusive_start_key(start);
            let page = query.send().await.map_err(unavailable(BOOK))?;
            books.extend(page.items.unwrap_or_default());
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(books);
            }
        }
    }
}

impl Reported for Store {
    async fn books(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<BTreeMap<String, Book>, Unavailable> {
        let items = self.query_books(user_id, from, to, false).await?;
        let keyed = |item: Item| Ok((from_item::<BookKey>(BOOK, item.clone())?.book_key, from_item(BOOK, item)?));
        items.into_iter().map(keyed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_of_an_older_version_without_new_fields_is_read() {
        let item = [("version".to_owned(), number(3)), ("meters".to_owned(), AttributeValue::M([].into()))].into();
        let book: Book = from_item(BOOK, item).unwrap();
        assert_eq!(book, Book { version: 3, ..Book::default() });
    }
}
