//! The adapters to DynamoDB: one table for each kind of item, one module for each group of tables that is written together.
//!
//! **Invariant:** items are changed by `UpdateItem` on the attributes this version knows, never replaced whole (G11); what
//! an older or newer version keeps beside them stays. Ledger rows and notices are written once and only ever added to.
//!
//! **Rule for later versions:** what is nested in an attribute (a book's `meters`, an account's `subscription`) is written as a
//! whole by every version, so a new field there would be lost to an older function during a deployment. A new fact gets a new
//! attribute of the item.

mod accounts;
mod audit;
mod batches;
mod books;
mod control;
mod gates;
mod ledger;
mod outbox;
mod quarantine;

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    Client,
    error::{BuildError, ProvideErrorMetadata, SdkError},
    operation::transact_write_items::TransactWriteItemsError,
    types::{AttributeValue, Put, Update},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::ports::Unavailable;

/// An item as the SDK has it.
type Item = HashMap<String, AttributeValue>;

/// The tables a function was given. A function names only those that it may use; the others' names stay empty, and a call
/// that needs one of them fails.
#[derive(Debug, Clone, Default)]
pub struct Tables {
    /// Accounts by user.
    pub accounts: String,
    /// What is known of customers.
    pub customers: String,
    /// Marks of processed events.
    pub processed: String,
    /// Notices to be sent.
    pub outbox: String,
    /// Usage events with what was decided about them.
    pub ledger: String,
    /// Totals by user, day and segment.
    pub tallies: String,
    /// What the reporter knows of them.
    pub books: String,
    /// Input that could be neither counted nor refused.
    pub quarantine: String,
    /// Checkpoints of scheduled functions.
    pub control: String,
    /// What was granted to each user.
    pub gates: String,
}

/// All stores, in DynamoDB. It implements every port that stores something; a function's IAM role decides which of them it
/// may use.
#[derive(Debug, Clone)]
pub struct Store {
    client: Client,
    tables: Tables,
}

impl Store {
    /// A store on these tables.
    #[must_use]
    pub fn new(client: Client, tables: Tables) -> Self {
        Self { client, tables }
    }
}

/// An SDK error as we keep it: the service's code and message, never the request or an item.
fn unavailable<E: ProvideErrorMetadata, R>(what: &'static str) -> impl FnOnce(SdkError<E, R>) -> Unavailable {
    move |error| {
        let reason = match (error.code(), &error) {
            (Some(code), _) => format!("{code}: {}", error.message().unwrap_or_default()),
            (None, SdkError::TimeoutError(_)) => "timed out".to_owned(),
            (None, SdkError::DispatchFailure(_)) => "not reachable".to_owned(),
            (None, _) => "no usable answer".to_owned(),
        };
        Unavailable { what, reason }
    }
}

/// An item could not be read: most likely a newer version wrote it, so that a newer function has to take the work.
fn unreadable(what: &'static str) -> impl FnOnce(serde_dynamo::Error) -> Unavailable {
    move |error| Unavailable { what, reason: format!("the item is not of a version we know: {error}") }
}

fn to_item<T: Serialize>(what: &'static str, value: &T) -> Result<Item, Unavailable> {
    serde_dynamo::to_item(value).map_err(unreadable(what))
}

fn from_item<T: DeserializeOwned>(what: &'static str, item: Item) -> Result<T, Unavailable> {
    serde_dynamo::from_item(item).map_err(unreadable(what))
}

fn text(value: impl Into<String>) -> AttributeValue {
    AttributeValue::S(value.into())
}

fn number(value: impl ToString) -> AttributeValue {
    AttributeValue::N(value.to_string())
}

/// An update as a part of a transaction.
fn update(table: &str, key: &[(&str, &str)], changes: Changes, condition: Option<String>) -> Result<Update, Unavailable> {
    let key = key.iter().map(|(name, value)| ((*name).to_owned(), text(*value))).collect();
    Update::builder()
        .table_name(table)
        .set_key(Some(key))
        .update_expression(changes.expression())
        .set_condition_expression(condition)
        .set_expression_attribute_names(Some(changes.names))
        .set_expression_attribute_values(Some(changes.values))
        .build()
        .map_err(|error| unbuilt(&error))
}

/// An item to be written whole, as a part of a transaction.
fn put(table: &str, item: Item) -> Result<Put, Unavailable> {
    Put::builder().table_name(table).set_item(Some(item)).build().map_err(|error| unbuilt(&error))
}

fn unbuilt(error: &BuildError) -> Unavailable {
    Unavailable { what: "building a transaction", reason: error.to_string() }
}

/// Whether somebody else committed first: a condition on a version did not hold, or another transaction was at the items.
fn lost_race(error: &TransactWriteItemsError) -> bool {
    let TransactWriteItemsError::TransactionCanceledException(cancelled) = error else { return false };
    let codes = cancelled.cancellation_reasons().iter().filter_map(|reason| reason.code());
    let mut codes = codes.filter(|code| *code != "None").peekable();
    codes.peek().is_some() && codes.all(|code| matches!(code, "ConditionalCheckFailed" | "TransactionConflict"))
}

/// An update expression under construction: which attributes are set, added to or removed.
#[derive(Default)]
struct Changes {
    set: Vec<String>,
    add: Vec<String>,
    remove: Vec<String>,
    names: HashMap<String, String>,
    values: Item,
}

impl Changes {
    fn name(&mut self, attribute: &str) -> String {
        let placeholder = format!("#n{}", self.names.len());
        self.names.insert(placeholder.clone(), attribute.to_owned());
        placeholder
    }

    fn value(&mut self, value: AttributeValue) -> String {
        let placeholder = format!(":v{}", self.values.len());
        self.values.insert(placeholder.clone(), value);
        placeholder
    }

    fn set(&mut self, attribute: &str, value: AttributeValue) {
        let clause = format!("{} = {}", self.name(attribute), self.value(value));
        self.set.push(clause);
    }

    /// Sets an attribute that is not there yet.
    fn set_once(&mut self, attribute: &str, value: AttributeValue) {
        let (name, value) = (self.name(attribute), self.value(value));
        self.set.push(format!("{name} = if_not_exists({name}, {value})"));
    }

    /// Sets an attribute to what another one holds.
    fn copy(&mut self, from: &str, to: &str) {
        let clause = format!("{} = {}", self.name(to), self.name(from));
        self.set.push(clause);
    }

    fn add(&mut self, attribute: &str, quantity: u64) {
        let clause = format!("{} {}", self.name(attribute), self.value(number(quantity)));
        self.add.push(clause);
    }

    fn remove(&mut self, attribute: &str) {
        let name = self.name(attribute);
        self.remove.push(name);
    }

    /// Sets every attribute of an item but its keys.
    fn set_all(&mut self, item: Item, keys: &[&str]) {
        let mut attributes: Vec<_> = item.into_iter().filter(|(attribute, _)| !keys.contains(&attribute.as_str())).collect();
        attributes.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (attribute, value) in attributes {
            self.set(&attribute, value);
        }
    }

    /// A condition that holds if the stored version is the one that was read: absent if that was 0.
    fn if_version(&mut self, key: &str, version_read: u64) -> String {
        if version_read == 0 {
            format!("attribute_not_exists({})", self.name(key))
        } else {
            format!("{} = {}", self.name("version"), self.value(number(version_read)))
        }
    }

    fn expression(&self) -> String {
        [("SET", &self.set), ("ADD", &self.add), ("REMOVE", &self.remove)]
            .into_iter()
            .filter(|(_, clauses)| !clauses.is_empty())
            .map(|(keyword, clauses)| format!("{keyword} {}", clauses.join(", ")))
            .collect::<Vec<_>>()
            .join(" ")
    }
}
