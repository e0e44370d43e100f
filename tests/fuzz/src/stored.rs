//! Stored items, as another version, a restore or a person may have left them: read by the adapter itself, through the real AWS
//! SDK, whose HTTP connector answers with the input.

use std::{
    cell::RefCell,
    sync::{Arc, Mutex},
};

use aws_sdk_dynamodb::{
    Client,
    config::{
        BehaviorVersion, Credentials, IdentityCache, Region, StalledStreamProtectionConfig, retry::RetryConfig,
        timeout::TimeoutConfig,
    },
};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        runtime_components::RuntimeComponents,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tokentill::{
    domain::{
        access::{next_change, standing},
        account::Account,
        counting::{self, Repetition, RowKey},
        event::DomainEvent,
        gate::{Gate, Granted},
        id::{CustomerId, MeterId, UserId},
        notice,
        price_list::PriceList,
        report::{self, Book, Tally},
        segment::{Place, place},
        time::{DAY_SECS, EpochSecs},
    },
    dynamodb::{Store, Tables},
    ports::{Accounts, Books, Gates, Ledger, Outbox, ReporterState, SweeperState},
};

use crate::targets::NOW;

/// An SDK's client whose every call is answered with the same text.
struct Table {
    runtime: tokio::runtime::Runtime,
    store: Store,
    answer: Arc<Mutex<Vec<u8>>>,
    prices: PriceList,
}

thread_local! {
    static TABLE: RefCell<Table> = RefCell::new(Table::new());
}

#[derive(Debug, Clone)]
struct Wire(Arc<Mutex<Vec<u8>>>);

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
        let mut response = HttpResponse::new(StatusCode::try_from(200).unwrap(), SdkBody::from(self.0.lock().unwrap().clone()));
        response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
        HttpConnectorFuture::ready(Ok(response))
    }
}

impl Table {
    fn new() -> Self {
        let answer = Arc::<Mutex<Vec<u8>>>::default();
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .identity_cache(IdentityCache::no_cache())
            .endpoint_url("http://dynamodb.invalid")
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(Wire(answer.clone()))
            .build();
        let name = || "a-table".to_owned();
        let tables = Tables {
            accounts: name(),
            customers: name(),
            processed: name(),
            outbox: name(),
            ledger: name(),
            tallies: name(),
            books: name(),
            quarantine: name(),
            control: name(),
            gates: name(),
        };
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            store: Store::new(Client::from_conf(config), tables),
            answer,
            prices: PriceList::shipped().unwrap(),
        }
    }
}

/// A letter that says what is read, and the item as plain JSON. What is read is the same once it was written and read again, and
/// nothing that is asked of it panics or contradicts itself.
pub(crate) fn stored_item(data: &[u8]) -> bool {
    let Some((kind, item)) = data.split_first() else { return false };
    let Ok(Value::Object(item)) = serde_json::from_slice(item) else { return false };
    let item: Value = item.into_iter().map(|(name, value)| (name, typed(value))).collect();
    TABLE.with_borrow(|table| {
        let answer = if *kind == b't' { json!({"Items": [item]}) } else { json!({"Item": item}) };
        *table.answer.lock().unwrap() = answer.to_string().into_bytes();
        let (store, prices) = (&table.store, &table.prices);
        let user = UserId::new("ada").unwrap();
        let nothing = RowKey { request_key: "3:ada/1:r".to_owned(), row: "request".to_owned() };
        table.runtime.block_on(async {
            let mut is_taken = true;
            match kind {
                b'a' => {
                    if let Ok(Some(account)) = store.account(&user).await {
                        kept(&account);
                        of_account(&account, prices);
                    } else {
                        is_taken = false;
                    }
                }
                b'c' => {
                    if let Ok(Some(record)) = store.customer(&CustomerId::new("cus_1").unwrap()).await {
                        kept(&record);
                    } else {
                        is_taken = false;
                    }
                }
                b'r' => {
                    if let Ok(Some(row)) = Ledger::row(store, &nothing).await {
                        kept(&row);
                        let told = counting::repetition(&row, &row.quantities, &row.last_seen_by, "another invocation");
                        assert!(matches!(told, Repetition::Redelivery | Repetition::OwnWrite), "{told:?}");
                        if let Some(judged) = counting::recount(&row, None, prices) {
                            assert!(!judged.row.verdict.is_parked());
                            assert_eq!(judged.row.key(), row.key(), "a row stays itself");
                        }
                    } else {
                        is_taken = false;
                    }
                }
                b'b' => {
                    if let Ok(book) = store.book(&user, "2026-11-22/4:free").await {
                        kept(&book);
                        of_book(book);
                    } else {
                        is_taken = false;
                    }
                }
                b't' => {
                    if let Ok(Some(tally)) = store.tally(&user, "2026-11-22/4:free").await {
                        of_tally(&tally, prices);
                    } else {
                        is_taken = false;
                    }
                }
                b'g' => {
                    if let Ok(granted) = store.granted(&user).await {
                        let gate = Gate::new(&user, None, prices, NOW.moment());
                        let answer = gate.answer(gate.denial(None, &granted, None), &granted, None, true);
                        let quota = answer.quotas.values().next().expect("the free tier has a quota");
                        assert_eq!(quota.remaining, quota.limit.saturating_sub(quota.used));
                        assert!(answer.allowed == (quota.remaining > 0), "{answer:?}");
                    } else {
                        is_taken = false;
                    }
                }
                b'o' => {
                    if let Ok(Some(row)) = Outbox::row(store, "an id").await {
                        let event = DomainEvent::of(&row.notice, row.committed_at_ms, false);
                        assert_eq!(event.id, row.notice.notice_id, "an event is sent under one id");
                        serde_json::to_string(&event).unwrap();
                    } else {
                        is_taken = false;
                    }
                }
                b'm' => {
                    if let Ok(memory) = store.memory().await {
                        kept(&memory);
                    } else {
                        is_taken = false;
                    }
                    if let Ok(memory) = store.sweeper_memory().await {
                        kept(&memory);
                    } else {
                        is_taken = false;
                    }
                }
                _ => is_taken = false,
            }
            is_taken
        })
    })
}

/// A value as DynamoDB speaks of it, with its type.
fn typed(value: Value) -> Value {
    match value {
        Value::Null => json!({"NULL": true}),
        Value::Bool(is) => json!({"BOOL": is}),
        Value::Number(number) => json!({"N": number.to_string()}),
        Value::String(text) => json!({"S": text}),
        Value::Array(values) => json!({"L": values.into_iter().map(typed).collect::<Vec<_>>()}),
        Value::Object(fields) => {
            json!({"M": fields.into_iter().map(|(name, value)| (name, typed(value))).collect::<Map<_, _>>()})
        }
    }
}

/// What is read is the same once it was written and read again.
fn kept<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) {
    let item: serde_dynamo::Item = serde_dynamo::to_item(value).expect("what was read can be written");
    let again: T = serde_dynamo::from_item(item).expect("and read again");
    assert_eq!(again, *value);
}

/// Whatever an account says: access ends when it says so, each change of it is ahead and is one, what is due is told once, and
/// usage lies in the period it is counted in.
fn of_account(account: &Account, prices: &PriceList) {
    let mut moments = vec![NOW.moment(), NOW.moment().plus_secs(400 * DAY_SECS), EpochSecs::new(0)];
    moments.extend(account.segments.iter().flat_map(|segment| [segment.start, segment.end, segment.end.plus_secs(-1)]));
    moments.extend(account.grace_deadline(prices).into_iter().flat_map(|end| [end, end.plus_secs(-1)]));
    for now in moments.into_iter().take(12) {
        assert_eq!(EpochSecs::parse_rfc3339(&now.to_string()), Some(now), "a moment can be written");
        let stands = standing(Some(account), prices, now);
        if stands.is_grace() {
            let deadline = account.grace_deadline(prices).expect("grace has a deadline");
            assert!(account.local_time(now) < deadline, "grace at {now}, after its deadline {deadline}");
        }
        if let Some(change) = next_change(Some(account), prices, now) {
            assert!(change > now, "the next change, {change}, is not ahead of {now}");
        }
        if let Place::Billed(span) = place(Some(account), prices, now) {
            // After the last moment there is none that a period could end at.
            let is_before_end = now < span.end || now == EpochSecs::new(i64::MAX);
            assert!(span.start <= now && is_before_end, "{now} is not in {span:?}");
        }
        let gate = Gate::new(&account.user_id, Some(account), prices, now);
        let granted = Granted::default();
        let answer = gate.answer(gate.denial(None, &granted, None), &granted, None, true);
        assert!(!answer.allowed || stands.allows(), "more is allowed than the state does: {answer:?}");
        serde_json::to_string(&answer).unwrap();

        let mut told = account.clone();
        let notices = notice::due(&mut told, prices, now);
        let ids: std::collections::BTreeSet<&str> = notices.iter().map(|notice| notice.notice_id.as_str()).collect();
        assert_eq!(ids.len(), notices.len(), "each notice has an id of its own");
        assert_eq!(notice::due(&mut told.clone(), prices, now), Vec::new(), "what is due is told once: {notices:?}");
        let _ = notice::next_due(&told, prices);
        kept(&told);
    }
}

/// Whatever a book says: what is replayed is replayed once, and what is set aside stays counted.
fn of_book(mut book: Book) {
    let meter = MeterId::new("requests").unwrap();
    let before = book.totals(&meter);
    let _: bool = book.replay();
    let after = book.totals(&meter);
    assert_eq!(after.reported, before.reported, "a replay takes back nothing that is reported");
    assert!(after.rejected == 0 || before.rejected == u64::MAX, "what was rejected is reported once more: {after:?}");
    let mut other = book.clone();
    report::set_aside(&mut other, &meter, 5);
    assert!(other.totals(&meter).quarantined >= after.quarantined);
    let rejected = report::reject(&mut other, &meter, 7);
    assert!(rejected <= 7 && rejected <= after.reported, "more is rejected than was reported");
    let _ = report::under_way(&other, true, NOW.moment());
}

/// Whatever a tally says: what is to be reported of it is at most what was counted, and is under way once.
fn of_tally(tally: &Tally, prices: &PriceList) {
    let mut book = Book::default();
    let left = report::unreported(tally, &book);
    assert!(left.iter().all(|(meter, quantity)| tally.counted.get(meter).is_some_and(|counted| quantity <= counted)));
    let now = NOW.moment();
    report::intend(tally, &mut book, prices, now.minute(), now, || "an identifier".to_owned());
    for (meter, report) in report::under_way(&book, true, now).to_send {
        assert!(report.quantity <= left[&meter] && report.quantity <= report::MAX_REPORT_QUANTITY);
    }
    assert!(!report::intend(tally, &mut book, prices, now.minute(), now, || "another".to_owned()), "it is under way already");
}
