//! Accounts, with the customers, processed marks and notices that commit with them.

use aws_sdk_dynamodb::{
    error::SdkError,
    operation::transact_write_items::TransactWriteItemsError,
    types::{Put, TransactWriteItem, Update},
};

use super::{Changes, Item, Store, from_item, lost_race, number, put, text, to_item, unavailable, update};
use crate::{
    domain::{
        account::Account,
        id::{CustomerId, EventId, UserId, shard_of},
        notice::Notice,
        time::{DAY_SECS, EpochSecs},
    },
    ports::{AccountChange, Accounts, Commit, CustomerRecord, DueAccounts, PaymentNotices, Told, Unavailable},
};

/// How many keys the indexes of due accounts and of pending notices are spread over.
pub(super) const INDEX_SHARDS: u8 = 16;
/// How long a processed mark is kept: Stripe resends for up to 30 days.
const PROCESSED_KEPT_SECS: i64 = 35 * DAY_SECS;
/// How long a notice is kept after it was committed.
const NOTICE_KEPT_SECS: i64 = 90 * DAY_SECS;

const ACCOUNT: &str = "reading an account";
const CUSTOMER: &str = "reading a customer";
const COMMIT: &str = "committing an account";
const TELL: &str = "writing a notice";
const RECORD: &str = "recording a customer";

impl Accounts for Store {
    async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.accounts).key("user_id", text(user_id.as_str()));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(ACCOUNT))?;
        answer.item.map(|item| from_item(ACCOUNT, item)).transpose()
    }

    async fn customer(&self, customer: &CustomerId) -> Result<Option<CustomerRecord>, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.customers).key("customer_id", text(customer.as_str()));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(CUSTOMER))?;
        answer.item.map(|item| from_item(CUSTOMER, item)).transpose()
    }

    async fn is_processed(&self, event_id: &EventId) -> Result<bool, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.processed).key("event_id", text(event_id.as_str()));
        let answer = request.send().await.map_err(unavailable("reading a processed mark"))?;
        Ok(answer.item.is_some())
    }

    async fn commit(&self, change: &AccountChange<'_>) -> Result<Commit, Unavailable> {
        let mut items = vec![transact_update(self.account_update(change)?)];
        if let Some(processed) = change.processed {
            // Only an event can join a customer; the sweeper commits what time alone has changed.
            items.push(transact_update(self.customer_update(processed.customer)?));
            items.push(transact_put(self.processed_put(processed.event_id, change.at_ms)?));
        }
        for notice in change.notices {
            items.push(transact_put(put(&self.tables.outbox, outbox_row(notice, change.at_ms)?)?));
        }
        self.commit_all(COMMIT, items).await
    }

    async fn record(&self, record: &CustomerRecord, processed: &EventId) -> Result<Commit, Unavailable> {
        let items =
            vec![transact_update(self.customer_update(record)?), transact_put(self.processed_put(processed, record.seen_at_ms)?)];
        self.commit_all(RECORD, items).await
    }
}

impl PaymentNotices for Store {
    async fn tell(&self, notice: Option<&Notice>, processed: &EventId, at_ms: i64) -> Result<Told, Unavailable> {
        let mark = transact_put(self.processed_put(processed, at_ms)?);
        if let Some(notice) = notice {
            // One that is there may have been sent, and must not be sent again.
            let mut row = put(&self.tables.outbox, outbox_row(notice, at_ms)?)?;
            row.condition_expression = Some("attribute_not_exists(notice_id)".to_owned());
            let items = vec![transact_put(row), mark.clone()];
            match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
                Ok(_) => return Ok(Told::Now),
                Err(SdkError::ServiceError(error)) if is_refused(error.err()) => {}
                Err(error) => return Err(unavailable(TELL)(error)),
            }
        }
        let sent = self.client.transact_write_items().transact_items(mark).send().await;
        sent.map(|_| Told::Not).map_err(unavailable(TELL))
    }

    async fn keep_untold(&self, record: &CustomerRecord, processed: &EventId, at_ms: i64) -> Result<Commit, Unavailable> {
        let items = vec![transact_update(self.customer_update(record)?), transact_put(self.processed_put(processed, at_ms)?)];
        self.commit_all(RECORD, items).await
    }
}

/// Whether the first item of a transaction is the reason why it was cancelled: its condition did not hold.
fn is_refused(error: &TransactWriteItemsError) -> bool {
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error else { return false };
    let first = cancelled.cancellation_reasons().first();
    first.is_some_and(|reason| reason.code() == Some("ConditionalCheckFailed"))
}

fn outbox_row(notice: &Notice, at_ms: i64) -> Result<Item, Unavailable> {
    let mut item = to_item(TELL, notice)?;
    item.insert("pending_shard".to_owned(), text(format!("{:02}", shard_of(&notice.notice_id, INDEX_SHARDS))));
    item.insert("committed_at_ms".to_owned(), number(at_ms));
    item.insert("expires_at".to_owned(), number(EpochSecs::from_ms(at_ms).plus_secs(NOTICE_KEPT_SECS).as_secs()));
    Ok(item)
}

impl DueAccounts for Store {
    async fn due(&self, now: EpochSecs, limit: usize) -> Result<Vec<UserId>, Unavailable> {
        const WHAT: &str = "looking for accounts that are due";
        let mut due = Vec::new();
        for shard in 0..INDEX_SHARDS {
            let mut start = None;
            loop {
                let query = self
                    .client
                    .query()
                    .table_name(&self.tables.accounts)
                    .index_name("due")
                    .key_condition_expression("due_shard = :shard AND due_at <= :now")
                    .expression_attribute_values(":shard", text(format!("{shard:02}")))
                    .expression_attribute_values(":now", number(now.as_secs()))
                    .set_exclusive_start_key(start);
                let page = query.send().await.map_err(unavailable(WHAT))?;
                for item in page.items.unwrap_or_default() {
                    if due.len() >= limit {
                        return Ok(due);
                    }
                    due.push(from_item::<DueKey>(WHAT, item)?.user_id);
                }
                start = page.last_evaluated_key;
                if start.is_none() {
                    break;
                }
            }
        }
        Ok(due)
    }
}

#[derive(serde::Deserialize)]
struct DueKey {
    user_id: UserId,
}

impl Store {
    fn account_update(&self, change: &AccountChange<'_>) -> Result<Update, Unavailable> {
        let account = change.account;
        let mut changes = Changes::default();
        changes.set_all(to_item(COMMIT, account)?, &["user_id"]);
        match change.next_due {
            Some(due) => {
                changes.set("due_shard", text(format!("{:02}", shard_of(account.user_id.as_str(), INDEX_SHARDS))));
                changes.set("due_at", number(due.as_secs()));
            }
            None => {
                changes.remove("due_shard");
                changes.remove("due_at");
            }
        }
        let condition = changes.if_version("user_id", account.version.saturating_sub(1));
        update(&self.tables.accounts, &[("user_id", account.user_id.as_str())], changes, Some(condition))
    }

    fn customer_update(&self, record: &CustomerRecord) -> Result<Update, Unavailable> {
        let mut changes = Changes::default();
        changes.set_all(to_item(RECORD, record)?, &["customer_id"]);
        // A record that an older version wrote has no version yet.
        let condition = changes.if_version("version", record.version.saturating_sub(1));
        update(&self.tables.customers, &[("customer_id", record.customer_id.as_str())], changes, Some(condition))
    }

    async fn commit_all(&self, what: &'static str, items: Vec<TransactWriteItem>) -> Result<Commit, Unavailable> {
        match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
            Ok(_) => Ok(Commit::Done),
            Err(SdkError::ServiceError(error)) if lost_race(error.err()) => Ok(Commit::LostRace),
            Err(error) => Err(unavailable(what)(error)),
        }
    }

    fn processed_put(&self, event_id: &EventId, at_ms: i64) -> Result<Put, Unavailable> {
        let expires_at = EpochSecs::from_ms(at_ms).plus_secs(PROCESSED_KEPT_SECS).as_secs();
        let item = Item::from([
            ("event_id".to_owned(), text(event_id.as_str())),
            ("processed_at_ms".to_owned(), number(at_ms)),
            ("expires_at".to_owned(), number(expires_at)),
        ]);
        put(&self.tables.processed, item)
    }
}

fn transact_update(update: Update) -> TransactWriteItem {
    TransactWriteItem::builder().update(update).build()
}

fn transact_put(put: Put) -> TransactWriteItem {
    TransactWriteItem::builder().put(put).build()
}
