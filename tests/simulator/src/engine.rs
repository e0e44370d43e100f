//! The embedded DynamoDB, called by the SDK's own HTTP connector without a socket, so that a world lives on one thread.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    rc::Rc,
    sync::Arc,
    time::UNIX_EPOCH,
};

use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Region, StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig},
};
use aws_smithy_async::{rt::sleep::TokioSleep, time::StaticTimeSource};
use aws_smithy_runtime::client::retries::{RetryPartition, TokenBucket};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use dynoxide::{
    AttributeValue, Database, DynoxideError,
    actions::{get_item::GetItemRequest, scan::ScanRequest},
};
use handlers::Template;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    hub::{Carried, Fault, Hub},
    mail::Stream,
    story::Broken,
};

/// How long an index may lag behind its table.
const INDEX_LAGS_MS: i64 = 5_000;

const READS: [Fault; 8] = [
    Fault::LoseRequest,
    Fault::LoseReply,
    Fault::Slow,
    Fault::Throttle,
    Fault::Fail,
    Fault::CrashBefore,
    Fault::CrashAfter,
    Fault::Stale,
];
const WRITES: [Fault; 9] = [
    Fault::LoseRequest,
    Fault::LoseReply,
    Fault::LoseReply,
    Fault::Slow,
    Fault::Throttle,
    Fault::Conflict,
    Fault::FailAfter,
    Fault::CrashBefore,
    Fault::CrashAfter,
];

const OUTBOX: &str = "tokentill-outbox";
/// The tables whose items have a version, which every write raises by one.
const VERSIONED: [&str; 3] = ["tokentill-accounts", "tokentill-customers", "tokentill-books"];

thread_local! {
    /// The template, read once a thread.
    static TEMPLATE: Rc<Template> = Rc::new(Template::read());
    /// The engine of this thread's world, out of reach of what has to be `Send`.
    static HERE: RefCell<Option<Engine>> = const { RefCell::new(None) };
}

/// The template's tables and functions.
#[must_use]
pub(crate) fn template() -> Rc<Template> {
    TEMPLATE.with(Rc::clone)
}

/// One world's database. Clones are the same.
#[derive(Clone)]
pub(crate) struct Engine {
    database: Database,
    hub: Hub,
    /// When each item was last written, by its table and key.
    written_ms: Rc<RefCell<HashMap<String, i64>>>,
    history: Rc<RefCell<History>>,
    stream: Stream,
    broken: Broken,
}

/// What the writes say of themselves.
#[derive(Debug, Default)]
struct History {
    writes: u64,
    /// Every item that has a version, as it is.
    versioned: HashMap<String, Item>,
    /// The notices that were written.
    notices: BTreeSet<String>,
    /// What a write did that no write may do.
    wrong: Option<String>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

/// An item as the checks read it.
pub(crate) type Item = HashMap<String, AttributeValue>;

impl Engine {
    /// An empty database, and the SDK's client on it as a function has it.
    pub(crate) async fn start(hub: &Hub, broken: Broken) -> (Self, Client) {
        let database = Database::memory().expect("an engine opens in memory");
        let engine = Self {
            database,
            hub: hub.clone(),
            written_ms: Rc::default(),
            history: Rc::default(),
            stream: Stream::default(),
            broken,
        };
        HERE.set(Some(engine.clone()));
        // The functions' own limits, by a clock that stands still. Its idempotency tokens are random, which nothing here depends on.
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(std::time::Duration::from_secs(3))
            .operation_timeout(std::time::Duration::from_secs(6))
            .build();
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-central-1"))
            // A signature that nobody looks at is a tenth of a call.
            .allow_no_auth()
            .endpoint_url("http://dynamodb.invalid")
            .retry_config(RetryConfig::standard().with_max_attempts(3))
            // Its own: the default one outlives the world and would carry what happened in one to the next.
            .retry_partition(RetryPartition::custom("simulator").token_bucket(TokenBucket::default()).build())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .sleep_impl(TokioSleep::new())
            .time_source(StaticTimeSource::new(UNIX_EPOCH))
            .http_client(Wire(Arc::new(hub.clone())))
            .build();
        let client = Client::from_conf(config);
        template().create_tables(&client).await;
        (engine, client)
    }

    /// Every item of a table.
    #[must_use]
    pub(crate) fn items(&self, table: &str) -> Vec<Item> {
        let request = ScanRequest { table_name: format!("tokentill-{table}"), ..ScanRequest::default() };
        self.database.scan(request).expect("a table can be scanned").items.unwrap_or_default()
    }

    /// How many writes there were, so that nobody looks twice at the same.
    #[must_use]
    pub(crate) fn writes(&self) -> u64 {
        self.history.borrow().writes
    }

    /// What a write did that none may do, if any did.
    #[must_use]
    pub(crate) fn wrong(&self) -> Option<String> {
        self.history.borrow().wrong.clone()
    }

    /// The outbox's stream.
    #[must_use]
    pub(crate) fn stream(&self) -> Stream {
        self.stream.clone()
    }

    /// An item as it is now.
    fn item(&self, table: &str, key: &Value) -> Item {
        let request = json!({"TableName": table, "Key": key, "ConsistentRead": true});
        let request: GetItemRequest = serde_json::from_value(request).expect("a key names an item");
        self.database.get_item(request).expect("an item can be read").item.unwrap_or_default()
    }

    /// Answers one request.
    fn answer(&self, operation: &str, body: &[u8], is_stale: bool) -> (u16, String) {
        let db = &self.database;
        let broken = self.broken.breaks(body);
        let body = broken.as_deref().unwrap_or(body);
        let answer = match operation {
            "GetItem" => reply(body, |request| db.get_item(request)),
            "Query" => reply(body, |request| db.query(request)),
            "PutItem" => reply(body, |request| db.put_item(request)),
            "UpdateItem" => reply(body, |request| db.update_item(request)),
            "TransactWriteItems" => reply(body, |request| db.transact_write_items(request)),
            "BatchGetItem" => reply(body, |request| db.batch_get_item(request)),
            "TransactGetItems" => reply(body, |request| db.transact_get_items(request)),
            "CreateTable" => reply(body, |request| db.create_table(request)),
            "DescribeTable" => reply(body, |request| db.describe_table(request)),
            other => panic!("no function of ours asks for {other}"),
        };
        match answer {
            Ok(body_of_answer) => {
                self.remember(operation, body);
                let shown = if is_stale { self.without_the_newest(body, body_of_answer) } else { body_of_answer };
                (200, shown)
            }
            Err(error) => (error.status_code(), error.to_json()),
        }
    }

    fn remember(&self, operation: &str, body: &[u8]) {
        if !matches!(operation, "PutItem" | "UpdateItem" | "TransactWriteItems") {
            return;
        }
        let now_ms = self.hub.now_ms();
        let body: Value = serde_json::from_slice(body).expect("a request is JSON");
        let of_transaction = body["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        let parts = of_transaction.iter().filter_map(|part| part.as_object()?.values().next());
        let single = of_transaction.is_empty().then_some(&body);
        let mut history = self.history.borrow_mut();
        history.writes += 1;
        for part in parts.chain(single) {
            let whole = part.get("Key").or(part.get("Item")).unwrap_or(&Value::Null);
            let table = part["TableName"].as_str().unwrap_or_default();
            let name = name_of(table, whole);
            self.written_ms.borrow_mut().insert(name.clone(), now_ms);
            if VERSIONED.contains(&table) {
                let item = self.item(table, &key_of(table, whole));
                let before = history.versioned.insert(name.clone(), item.clone()).unwrap_or_default();
                let versions = (number(&before, "version"), number(&item, "version"));
                // A transaction that is asked for once more under its token changes nothing.
                if before != item && versions.1 != versions.0 + 1 {
                    let wrong = format!("G2: {name:?} went from version {} to {}", versions.0, versions.1);
                    history.wrong.get_or_insert(wrong);
                }
            }
            if table == OUTBOX {
                let item = self.item(table, &key_of(table, whole));
                let notice_id = text(&item, "notice_id").to_owned();
                let user = json!({"S": text(&item, "user_id")});
                if history.notices.insert(notice_id.clone()) {
                    let commits = body["TransactItems"].as_array().into_iter().flatten();
                    let accounts = commits.filter_map(|part| part.get("Update"));
                    let mut accounts = accounts.filter(|update| update["TableName"] == "tokentill-accounts");
                    if !accounts.any(|update| update["Key"]["user_id"] == user) {
                        history.wrong.get_or_insert(format!("G8: {notice_id} came without a change of its account"));
                    }
                    self.stream.put(&notice_id, now_ms);
                } else if item.contains_key("woken_at_ms") {
                    self.stream.put(&notice_id, now_ms);
                }
            }
        }
    }

    /// An index's answer without what was written in the last seconds.
    fn without_the_newest(&self, request: &[u8], answer: String) -> String {
        let request: Value = serde_json::from_slice(request).expect("a request is JSON");
        let (Some(table), true) = (request["TableName"].as_str(), request["IndexName"].is_string()) else { return answer };
        let mut answer: Value = serde_json::from_str(&answer).expect("an answer is JSON");
        let (now_ms, written_ms) = (self.hub.now_ms(), self.written_ms.borrow());
        if let Some(items) = answer["Items"].as_array_mut() {
            items.retain(|item| written_ms.get(&name_of(table, item)).is_none_or(|at_ms| now_ms - at_ms > INDEX_LAGS_MS));
            let left = items.len();
            answer["Count"] = json!(left);
        }
        answer.to_string()
    }
}

impl Broken {
    /// A request as a broken store understands it; `None` if it does as it should.
    fn breaks(self, body: &[u8]) -> Option<Vec<u8>> {
        if !matches!(self, Self::Conditions(_) | Self::Transactions) {
            return None;
        }
        let mut request: Value = serde_json::from_slice(body).expect("a request is JSON");
        match self {
            Self::Transactions => {
                let parts = request["TransactItems"].as_array_mut()?;
                parts.truncate(parts.len().div_ceil(2));
            }
            Self::Conditions(tables) => {
                let is_broken = |write: &Value| {
                    let table = write["TableName"].as_str().unwrap_or_default();
                    tables.contains(&table.trim_start_matches("tokentill-"))
                };
                let writes: Vec<&mut Value> = match request.get("TransactItems").is_some() {
                    true => {
                        let parts = request["TransactItems"].as_array_mut()?.iter_mut();
                        parts.filter_map(|part| part.as_object_mut()?.values_mut().next()).collect()
                    }
                    false => vec![&mut request],
                };
                for write in writes.into_iter().filter(|write| is_broken(write)) {
                    if let Some(Value::String(condition)) = write.get_mut("ConditionExpression") {
                        *condition = format!("({condition}) OR attribute_not_exists(nothing_is_called_so)");
                    }
                }
            }
            _ => {}
        }
        Some(request.to_string().into_bytes())
    }
}

/// The attributes of a table's primary key.
fn keys_of(table: &str) -> &'static [&'static str] {
    match table.trim_start_matches("tokentill-") {
        "accounts" | "gates" => &["user_id"],
        "customers" => &["customer_id"],
        "processed" => &["event_id"],
        "outbox" => &["notice_id"],
        "ledger" => &["request_key", "row"],
        "tallies" => &["user_id", "tally_key"],
        "books" => &["user_id", "book_key"],
        "quarantine" => &["day_shard", "quarantine_id"],
        _ => &["name"],
    }
}

/// A name for an item, made of its table and its primary key.
fn name_of(table: &str, item: &Value) -> String {
    keys_of(table).iter().fold(table.to_owned(), |name, key| format!("{name}\n{}", item[*key]["S"]))
}

/// The primary key alone.
fn key_of(table: &str, item: &Value) -> Value {
    keys_of(table).iter().map(|key| ((*key).to_owned(), item[*key].clone())).collect::<serde_json::Map<_, _>>().into()
}

fn reply<Q: DeserializeOwned, A: Serialize>(
    body: &[u8],
    work: impl FnOnce(Q) -> Result<A, DynoxideError>,
) -> Result<String, DynoxideError> {
    let request = serde_json::from_slice(body).expect("a request of the SDK's can be read");
    work(request).map(|answer| serde_json::to_string(&answer).expect("an answer can be written"))
}

/// The SDK's HTTP client: no socket, only the hub.
#[derive(Debug, Clone)]
struct Wire(Arc<Hub>);

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let operation = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = operation.rsplit('.').next().unwrap_or_default().to_owned();
        let body = request.body().bytes().unwrap_or_default().to_vec();
        let is_write = matches!(operation.as_str(), "PutItem" | "UpdateItem" | "TransactWriteItems");
        let engine = HERE.with_borrow(Clone::clone).expect("a world has an engine");
        let operations = if operation == "TransactWriteItems" { count_operations(&body) } else { 0 };
        let name = operation.clone();
        let carried = self
            .0
            .carry(&operation, if is_write { &WRITES } else { &READS }, move |is_stale| engine.answer(&name, &body, is_stale));
        HttpConnectorFuture::new(async move {
            let (status, body) = match carried.await {
                Carried::Answer(answer) => answer,
                Carried::NoAnswer => return Err(ConnectorError::io("no answer".into())),
                Carried::Refused(fault) => refusal(fault, operations),
            };
            let status = StatusCode::try_from(status).expect("a status of HTTP");
            let mut response = HttpResponse::new(status, SdkBody::from(body));
            response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
            Ok(response)
        })
    }
}

fn count_operations(body: &[u8]) -> usize {
    let body: Value = serde_json::from_slice(body).expect("a request is JSON");
    body["TransactItems"].as_array().map_or(0, Vec::len)
}

/// What DynamoDB answers if it does not do what was asked.
fn refusal(fault: Fault, operations: usize) -> (u16, String) {
    let named = |kind: &str| json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{kind}"), "message": "injected"});
    let (status, body) = match fault {
        Fault::Conflict | Fault::Throttle if operations > 0 => {
            let code = if fault == Fault::Conflict { "TransactionConflict" } else { "ThrottlingError" };
            let reasons: Vec<Value> = (0..operations)
                .map(|index| json!({"Code": if index + 1 == operations { code } else { "None" }, "Message": "injected"}))
                .collect();
            let mut body = named("TransactionCanceledException");
            body["CancellationReasons"] = json!(reasons);
            (400, body)
        }
        Fault::Conflict => (400, named("TransactionConflictException")),
        Fault::Throttle => (400, named("ProvisionedThroughputExceededException")),
        _ => (500, named("InternalServerError")),
    };
    (status, body.to_string())
}

/// An attribute's text.
#[must_use]
pub(crate) fn text<'a>(item: &'a Item, name: &str) -> &'a str {
    match item.get(name) {
        Some(AttributeValue::S(text)) => text,
        _ => "",
    }
}

/// An attribute's whole number; 0 if it has none.
#[must_use]
pub(crate) fn number(item: &Item, name: &str) -> i64 {
    item.get(name).map_or(0, whole)
}

/// A value's whole number; 0 if it is none.
#[must_use]
pub(crate) fn whole(value: &AttributeValue) -> i64 {
    match value {
        AttributeValue::N(digits) => digits.parse().unwrap_or(0),
        _ => 0,
    }
}

/// An attribute's map of whole numbers.
#[must_use]
pub(crate) fn numbers(item: &Item, name: &str) -> BTreeMap<String, i64> {
    match item.get(name) {
        Some(AttributeValue::M(map)) => map.iter().map(|(name, value)| (name.clone(), whole(value))).collect(),
        _ => BTreeMap::new(),
    }
}
