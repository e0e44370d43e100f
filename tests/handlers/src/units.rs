//! What requests cost DynamoDB: write units for each partition key of a table or an index, and read units, told from the requests.
//!
//! It keeps each item as the requests made it, since the cost of an update depends on what stands. Sizes are DynamoDB's: names
//! and texts by their bytes, numbers by their digits, rounded up to 1 KB; doubled for the table in a transaction.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

/// A table or an index (`ledger`, `ledger/by_time`), and a partition key of it.
pub type PartitionKey = (String, String);

type Attributes = BTreeMap<String, Value>;

struct TableShape {
    name: &'static str,
    key: &'static [&'static str],
    /// Name, partition key, sort key, and what is projected; nothing means all.
    index: Option<(&'static str, &'static str, &'static str, &'static [&'static str])>,
}

const TABLES: [TableShape; 6] = [
    TableShape { name: "ledger", key: &["request_key", "row"], index: Some(("by_time", "time_key", "at_key", &[])) },
    TableShape {
        name: "tallies",
        key: &["user_id", "tally_key"],
        index: Some(("touched", "touched_key", "touched_at", &["segment_end"])),
    },
    TableShape { name: "quarantine", key: &["day_shard", "quarantine_id"], index: None },
    TableShape { name: "gates", key: &["user_id"], index: None },
    TableShape { name: "books", key: &["user_id", "book_key"], index: Some(("due", "due_shard", "due_at", &["due_at"])) },
    TableShape { name: "control", key: &["name"], index: None },
];

/// Every item that was written, as the requests made it.
#[derive(Debug, Clone, Default)]
pub struct Units {
    items: BTreeMap<(&'static str, String), Attributes>,
    /// Units spent so far.
    pub spent: BTreeMap<PartitionKey, u64>,
    /// Half read units spent so far.
    half_reads: u32,
}

/// One operation of a request: which item it makes, and what it costs where.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    item: ((&'static str, String), Attributes),
    pub(crate) costs: Vec<(PartitionKey, u64)>,
}

impl Units {
    /// The greatest number of units that one partition key took, and which that was.
    #[must_use]
    pub fn largest(&self) -> (PartitionKey, u64) {
        self.spent
            .iter()
            .max_by_key(|(_, units)| **units)
            .map(|(key, units)| (key.clone(), *units))
            .expect("something was written")
    }

    /// All write units.
    #[must_use]
    pub fn writes_in_all(&self) -> u64 {
        self.spent.values().sum()
    }

    /// All read units. Each answer, and each item of a batch, is taken to be of at most 4 KB.
    #[must_use]
    pub fn reads_in_all(&self) -> f64 {
        f64::from(self.half_reads) / 2.0
    }

    /// The bytes of a table's items, and of their copies in its index if that has all of them, as DynamoDB stores them: with 100
    /// bytes beside each.
    #[must_use]
    pub fn stored_bytes(&self, table: &str) -> u64 {
        self.items.iter().filter(|((of, _), _)| *of == table).map(|(_, item)| size(item) + 100).sum()
    }

    /// Counts a request's reads.
    pub(crate) fn read(&mut self, operation: &str, body: &Value) {
        if operation == "BatchGetItem" {
            let tables = body["RequestItems"].as_object().into_iter().flatten();
            let keys = tables.filter_map(|(_, wanted)| wanted["Keys"].as_array()).map(Vec::len).sum::<usize>();
            self.half_reads += u32::try_from(keys).unwrap_or(u32::MAX);
        }
        if matches!(operation, "GetItem" | "Query") {
            self.half_reads += if body["ConsistentRead"] == true { 2 } else { 1 };
        }
    }

    /// All units of a table or an index.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.spent.iter().filter(|((of, _), _)| of == name).map(|(_, units)| *units).sum()
    }

    /// An attribute's sum over a table's items.
    #[must_use]
    pub fn sum(&self, table: &str, attribute: &str) -> u64 {
        let items = self.items.iter().filter(|((of, _), _)| *of == table);
        items.filter_map(|(_, item)| item.get(attribute)).map(number).sum()
    }

    /// The writes of a request, if it is one.
    pub(crate) fn writes(&self, operation: &str, body: &Value) -> Vec<Write> {
        let operations: Vec<(&Value, u64)> = match operation {
            "TransactWriteItems" => {
                let items = body["TransactItems"].as_array().expect("a transaction has items");
                items.iter().map(|item| (item.get("Put").or(item.get("Update")).expect("a put or an update"), 2)).collect()
            }
            "PutItem" | "UpdateItem" => vec![(body, 1)],
            _ => Vec::new(),
        };
        operations.into_iter().filter_map(|(operation, factor)| self.write(operation, factor)).collect()
    }

    fn write(&self, operation: &Value, factor: u64) -> Option<Write> {
        let name = operation["TableName"].as_str()?.strip_prefix("tokentill-")?;
        let table = TABLES.iter().find(|table| table.name == name)?;
        let given = operation.get("Item").or(operation.get("Key"))?.as_object()?;
        let of_key: Vec<String> = table.key.iter().map(|attribute| text(&given[*attribute])).collect();
        let key = (table.name, of_key.join("\n"));
        let before = self.items.get(&key);
        let after = match operation.get("Item") {
            Some(_) => attributes(given),
            None => {
                let mut item = before.cloned().unwrap_or_else(|| attributes(given));
                update(&mut item, operation);
                item
            }
        };
        let mut costs = vec![((table.name.to_owned(), text(&given[table.key[0]])), factor * size(&after).div_ceil(1_024))];
        if let Some((index, partition, sort, projected)) = table.index {
            let entry = |item: &Attributes| -> Option<(String, Attributes)> {
                let is_key = |name: &str| table.key.contains(&name) || [partition, sort].contains(&name);
                let shown = |name: &str| projected.is_empty() || is_key(name) || projected.contains(&name);
                let entry = item.iter().filter(|(name, _)| shown(name)).map(|(name, value)| (name.clone(), value.clone()));
                Some((text(item.get(partition)?), entry.collect()))
            };
            let (before, after) = (before.and_then(entry), entry(&after));
            if before != after {
                let moved = before.as_ref().is_some_and(|(key, old)| {
                    after.as_ref().is_none_or(|(now, new)| key != now || old.get(sort) != new.get(sort))
                });
                let touched = before.filter(|_| moved).into_iter().chain(after);
                costs.extend(touched.map(|(key, entry)| ((format!("{name}/{index}"), key), size(&entry).div_ceil(1_024))));
            }
        }
        Some(Write { item: (key, after), costs })
    }

    pub(crate) fn spend(&mut self, writes: &[Write]) {
        for (key, units) in writes.iter().flat_map(|write| &write.costs) {
            *self.spent.entry(key.clone()).or_default() += units;
        }
    }

    pub(crate) fn apply(&mut self, writes: Vec<Write>) {
        self.items.extend(writes.into_iter().map(|write| write.item));
    }

    /// The keys of a table's items.
    #[must_use]
    pub fn keys(&self, table: &str) -> BTreeSet<&str> {
        self.items.keys().filter(|(of, _)| *of == table).map(|(_, key)| key.as_str()).collect()
    }
}

fn attributes(item: &Map<String, Value>) -> Attributes {
    item.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn text(value: &Value) -> String {
    value["S"].as_str().expect("keys are text").to_owned()
}

fn number(value: &Value) -> u64 {
    value["N"].as_str().and_then(|number| number.parse().ok()).expect("a number")
}

/// Carries an update expression out, as far as ours go: `SET #a = :b, … ADD #c :d, … REMOVE #e`.
fn update(item: &mut Attributes, operation: &Value) {
    let expression = operation["UpdateExpression"].as_str().expect("an update has an expression");
    let mut words = expression.split([' ', ',']).filter(|word| !word.is_empty() && *word != "=");
    let mut keyword = "";
    while let Some(word) = words.next() {
        let Some(name) = operation["ExpressionAttributeNames"][word].as_str() else {
            keyword = word;
            continue;
        };
        let mut value = || operation["ExpressionAttributeValues"][words.next().expect("a value")].clone();
        match keyword {
            "SET" => drop(item.insert(name.to_owned(), value())),
            "ADD" => {
                let sum = item.get(name).map_or(0, number) + number(&value());
                item.insert(name.to_owned(), serde_json::json!({"N": sum.to_string()}));
            }
            "REMOVE" => drop(item.remove(name)),
            other => panic!("{other} in {expression}"),
        }
    }
}

fn size(item: &Attributes) -> u64 {
    item.iter().map(|(name, value)| length(name) + value_size(value)).sum()
}

fn value_size(value: &Value) -> u64 {
    let (kind, value) = value.as_object().and_then(|value| value.iter().next()).expect("a value has a type");
    match (kind.as_str(), value) {
        ("S", Value::String(text)) => length(text),
        ("N", Value::String(digits)) => length(digits).div_ceil(2) + 1,
        ("M", Value::Object(map)) => 3 + map.iter().map(|(name, value)| 1 + length(name) + value_size(value)).sum::<u64>(),
        ("L", Value::Array(list)) => 3 + list.iter().map(|value| 1 + value_size(value)).sum::<u64>(),
        ("BOOL" | "NULL", _) => 1,
        other => panic!("no size is known of {other:?}"),
    }
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}
