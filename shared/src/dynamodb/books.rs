//! The reporter's books: what it knows of each tally.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::{error::SdkError, types::AttributeValue};
use serde::Deserialize;

use super::{
    Changes, Store, from_item,
    ledger::{TOUCHED_SHARDS, touched_key, unsharded_key},
    number, text, unavailable, unreadable,
};
use crate::{
    domain::{
        id::UserId,
        report::{Book, Tally},
        time::{EpochSecs, UtcDay},
    },
    ports::{Books, Commit, Reported, Touched, Unavailable},
};

const BOOK: &str = "reading a book";
const SAVE: &str = "saving a book";
/// The checkpoint's name in the control table.
const CHECKPOINT: &str = "reporter";

#[derive(Deserialize)]
struct TouchedKey {
    user_id: UserId,
    tally_key: String,
    touched_at: String,
}

impl Books for Store {
    async fn touched(&self, since: EpochSecs, until: EpochSecs) -> Result<Vec<Touched>, Unavailable> {
        const WHAT: &str = "looking for touched tallies";
        let mut touched: BTreeMap<(UserId, String), EpochSecs> = BTreeMap::new();
        // A schedule's event that comes late may lie before the checkpoint; DynamoDB refuses a range that ends before it begins.
        if until.hour() < since.hour() {
            return Ok(Vec::new());
        }
        let mut day = since.day();
        while day <= until.day() {
            for shard in 0..TOUCHED_SHARDS {
                let mut start = None;
                loop {
                    let query = self
                        .client
                        .query()
                        .table_name(&self.tables.tallies)
                        .index_name("touched")
                        .key_condition_expression("touched_key = :key AND touched_at BETWEEN :since AND :until")
                        .expression_attribute_values(":key", text(touched_key(day, shard)))
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
                        let earliest = touched.entry((key.user_id, tally_key.to_owned())).or_insert(hour);
                        *earliest = hour.min(*earliest);
                    }
                    start = page.last_evaluated_key;
                    if start.is_none() {
                        break;
                    }
                }
            }
            day = day.next();
        }
        Ok(touched.into_iter().map(|((user_id, tally_key), hour)| Touched { user_id, tally_key, hour }).collect())
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

    async fn save(&self, user_id: &UserId, tally_key: &str, book: &mut Book) -> Result<Commit, Unavailable> {
        let mut changes = Changes::default();
        let meters: AttributeValue = serde_dynamo::to_attribute_value(&book.meters).map_err(unreadable(SAVE))?;
        changes.set("meters", meters);
        let condition = changes.if_version("user_id", book.version);
        let next_version = book.version.saturating_add(1);
        changes.set("version", number(next_version));
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.books)
            .key("user_id", text(user_id.as_str()))
            .key("book_key", text(tally_key))
            .update_expression(changes.expression())
            .condition_expression(condition)
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        match request.send().await {
            Ok(_) => {
                book.version = next_version;
                Ok(Commit::Done)
            }
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(Commit::LostRace),
            Err(error) => Err(unavailable(SAVE)(error)),
        }
    }

    async fn settled_through(&self) -> Result<Option<EpochSecs>, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(CHECKPOINT)).consistent_read(true);
        let answer = request.send().await.map_err(unavailable("reading the reporter's checkpoint"))?;
        let hour = answer.item.as_ref().and_then(|item| item.get("settled_through")).and_then(|hour| hour.as_n().ok());
        Ok(hour.and_then(|hour| hour.parse().ok()).map(EpochSecs::new))
    }

    async fn set_settled_through(&self, hour: EpochSecs) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.set("settled_through", number(hour.as_secs()));
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.control)
            .key("name", text(CHECKPOINT))
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        request.send().await.map(|_| ()).map_err(unavailable("writing the reporter's checkpoint"))
    }
}

impl Reported for Store {
    async fn books(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<Book>, Unavailable> {
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
                .set_exclusive_start_key(start);
            let page = query.send().await.map_err(unavailable(BOOK))?;
            for item in page.items.unwrap_or_default() {
                books.push(from_item(BOOK, item)?);
            }
            start = page.last_evaluated_key;
            if start.is_none() {
                return Ok(books);
            }
        }
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
