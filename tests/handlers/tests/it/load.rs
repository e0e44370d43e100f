//! The usage function under great load: a hot user, many users at once, a full batch. What a partition key takes is counted and
//! limited on the wire, and transactions meet each other there, since the embedded engine does neither.

use std::{
    collections::{BTreeMap, HashMap},
    process::Command,
    time::Instant,
};

use aws_lambda_events::sqs::SqsEvent;
use aws_sdk_dynamodb::types::{AttributeValue, PutRequest, WriteRequest};
use handlers::{Accidents, Lists, PartitionKey, Units, WireFault, World};
use serde_json::{Value, json};
use sweeper::{repair::Invocation, sweep};
use tokentill::{
    domain::{
        counting::TIME_SHARDS,
        facts::Status,
        id::{MeterId, SubscriptionId, composite_key, shard_of},
    },
    ports::{Clock, SweeperMemory, SweeperState as _, Tallies},
};

use crate::{
    repair,
    samples::{commit, customer, overdue, sqs_event, subscriber, user},
    usage::{function, several, with},
};

/// What DynamoDB takes on one partition key in a second.
const UNITS_OF_A_KEY: u64 = 1_000;
/// How many events one invocation gets, each a message of its own, as the template has it.
const BATCH: usize = 500;

async fn world() -> World {
    let world = World::start().await;
    commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    world
}

/// A call as services report it: ids as long as UUIDs, every optional field.
fn call(user_id: &str, n: usize) -> Value {
    let event = json!({
        "request_id": format!("req_01JD3A-7c9e-4b1d-9f00-{n:012}"), "user_id": user_id, "endpoint": "/v1/chat/completions",
        "model": "claude-sonnet-4-5-20250929", "tokens_in": 812, "tokens_out": 240, "tokens_cached": 512, "success": true,
        "timestamp": "2026-11-22T12:00:00Z", "attempt": 1,
    });
    with(with(event, "units", json!({"images": 1})), "outcome", "end_turn")
}

/// An invocation's batch: messages by their ids.
type Messages = Vec<(String, Value)>;

/// A batch as Lambda hands it over.
fn sent(batch: &Messages, sent_at_ms: i64) -> SqsEvent {
    let records: Vec<_> = batch.iter().map(|(id, body)| (Some(id.as_str()), body.to_string(), sent_at_ms, 1)).collect();
    sqs_event(&records)
}

/// Handles a batch; which messages have to come again.
async fn handle(world: &World, invocation: &str, batch: &Messages) -> Vec<String> {
    let answer = function(world).handle(sent(batch, world.clock.now_ms()), invocation, i64::MAX).await.unwrap();
    answer.batch_item_failures.into_iter().map(|failure| failure.item_identifier).collect()
}

/// Answers transactions as if they were carried out, so that only the function's side is at work.
fn without_engine(world: &World) {
    world.wire.whenever("TransactWriteItems", "", WireFault::Answer { status: 200, body: "{}".to_owned() });
}

fn shown(((of, key), units): &(PartitionKey, u64)) -> String {
    format!("{units} on {key} of {of}")
}

fn print(what: &str, events: usize, units: &Units, calls: usize) {
    let tables = ["ledger", "ledger/by_time", "tallies", "tallies/touched"];
    let by_table: BTreeMap<&str, u64> = tables.map(|table| (table, units.total(table))).into();
    println!("{what}: {events} events, {calls} calls, units {by_table:?}, at most {}", shown(&units.largest()));
}

#[tokio::test]
async fn ten_thousand_events_of_one_user_fit_the_limit_of_every_key() {
    let world = world().await;
    without_engine(&world);
    world.wire.load(None);
    let before = world.wire.calls("TransactWriteItems");
    let messages: Messages = (0..10_000).map(|n| (format!("m{n}"), call("ada", n))).collect();
    for (n, batch) in messages.chunks(BATCH).map(<[_]>::to_vec).enumerate() {
        assert_eq!(handle(&world, &format!("inv_{n}"), &batch).await, Vec::<String>::new());
    }
    let (units, ..) = world.wire.counted();
    print("one user", 10_000, &units, world.wire.calls("TransactWriteItems") - before);
    assert_eq!(units.sum("tallies", "counted:requests"), 10_000);
    assert_eq!((units.total("ledger"), units.total("ledger/by_time")), (20_000, 10_000), "a row fits one kilobyte");
    let largest = units.largest();
    assert!(largest.1 <= UNITS_OF_A_KEY, "{}", shown(&largest));
}

/// A fifth of ten thousand users and of the limit, as each is a transaction of its own and the tests are not optimised.
#[tokio::test]
async fn ten_thousand_users_at_once_fit_the_limit_of_every_key() {
    const USERS: usize = 2_000;
    let world = world().await;
    // Everybody has ada's account.
    let account = world.client.get_item().table_name("tokentill-accounts").key("user_id", text("ada")).send().await.unwrap();
    let account: Value = serde_dynamo::from_item(account.item.unwrap()).unwrap();
    let account = json!({"Item": wire_item(&account)["M"]}).to_string();
    world.wire.whenever("GetItem", "", WireFault::Answer { status: 200, body: account });
    without_engine(&world);
    world.wire.load(None);
    let messages = |prefix: &str, first: usize| -> Vec<Messages> {
        let message = |n: usize| (format!("{prefix}{n}"), call(&format!("user_{n}"), first + n));
        (0..USERS).map(message).collect::<Messages>().chunks(BATCH).map(<[_]>::to_vec).collect()
    };
    let before = world.wire.calls("TransactWriteItems") + world.wire.calls("GetItem");
    for (n, batch) in messages("m", 0).iter().enumerate() {
        assert_eq!(handle(&world, &format!("inv_{n}"), batch).await, Vec::<String>::new());
    }
    let (units, ..) = world.wire.counted();
    let calls = world.wire.calls("TransactWriteItems") + world.wire.calls("GetItem") - before;
    print("many users", USERS, &units, calls);
    assert_eq!((units.keys("tallies").len(), units.sum("tallies", "counted:requests")), (USERS, USERS as u64));
    // In the next hour each user's entry of the index of touched tallies moves, which is two writes.
    world.clock.advance_ms(3_600_000);
    world.wire.load_again();
    for (n, batch) in messages("n", USERS).iter().enumerate() {
        assert_eq!(handle(&world, &format!("inv_later_{n}"), batch).await, Vec::<String>::new());
    }
    let (later, ..) = world.wire.counted();
    print("an hour later", USERS, &later, calls);
    assert_eq!(later.total("tallies/touched"), 2 * USERS as u64);
    for units in [units, later] {
        let largest = units.largest();
        assert!(largest.1 * 10_000 <= UNITS_OF_A_KEY * USERS as u64, "{}", shown(&largest));
    }
}

fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

/// JSON in DynamoDB's own form.
fn wire_item(value: &Value) -> Value {
    match value {
        Value::Null => json!({"NULL": true}),
        Value::Bool(value) => json!({ "BOOL": value }),
        Value::Number(number) => json!({"N": number.to_string()}),
        Value::String(text) => json!({ "S": text }),
        Value::Array(list) => json!({"L": list.iter().map(wire_item).collect::<Vec<_>>()}),
        Value::Object(map) => {
            json!({"M": map.iter().map(|(name, value)| (name.clone(), wire_item(value))).collect::<serde_json::Map<_, _>>()})
        }
    }
}

/// Fewer events under a tenth of the limit, and all on two keys of the time index: the embedded engine is slower than DynamoDB,
/// and the keys shall be hot. Two transactions a second are all that they take.
#[tokio::test]
async fn a_hot_users_usage_is_counted_exactly_through_conflicts_and_throttling() {
    let world = world().await;
    const EVENTS: usize = 600;
    let accidents = Accidents { conflicts_percent: 20, units_per_second: UNITS_OF_A_KEY / 10, seed: 7 };
    world.wire.load(Some(accidents));
    let began = Instant::now();
    let on_two_keys = |(_, event): &(String, Value)| shard_of(event["request_id"].as_str().unwrap(), TIME_SHARDS) < 2;
    let calls = (0..).map(|n| (format!("m{n}"), call("ada", n))).filter(on_two_keys).take(EVENTS);
    let mut batches: Vec<Messages> = calls.collect::<Messages>().chunks(EVENTS / 3).map(<[_]>::to_vec).collect();
    // The last is a repetition of the first under other names.
    batches.push(batches[0].iter().map(|(id, body)| (format!("again_{id}"), body.clone())).collect());
    let reports: usize = batches.iter().map(Vec::len).sum();
    let (mut deliveries, mut round) = (0, 0);
    while !batches.is_empty() {
        round += 1;
        deliveries += batches.len();
        let runs = batches.iter().enumerate().map(|(n, batch)| {
            let (world, invocation) = (&world, format!("inv_{round}_{n}"));
            async move { handle(world, &invocation, batch).await }
        });
        // Four functions at once, as many as the template allows.
        let again: Vec<Vec<String>> = futures_util::stream::StreamExt::collect(futures_util::stream::StreamExt::buffered(
            futures_util::stream::iter(runs),
            4,
        ))
        .await;
        batches = batches
            .into_iter()
            .zip(again)
            .map(|(batch, again)| batch.into_iter().filter(|(id, _)| again.contains(id)).collect())
            .filter(|batch: &Messages| !batch.is_empty())
            .collect();
        assert!(round <= 10, "a message is tried ten times");
    }
    let (units, throttled, conflicts) = world.wire.counted();
    let calls = world.wire.calls("TransactWriteItems");
    print("a hot user", EVENTS, &units, calls);
    println!("{throttled} throttled, {conflicts} conflicts, {deliveries} deliveries, {:.1} s", began.elapsed().as_secs_f64());
    assert!(throttled > 0 && conflicts > 0, "it was hot");
    // An invocation tries each of its transactions six times, and the SDK each of these four times.
    assert!(calls <= deliveries * (EVENTS / 3).div_ceil(98) * 6 * 4, "{calls} calls");

    let now = world.clock.now();
    let tallies = world.store().tallies(&user("ada"), now.day(), now.day()).await.unwrap();
    let totals: Vec<u64> = tallies.iter().flat_map(|tally| tally.counted.values().copied()).collect();
    assert_eq!(totals, [EVENTS as u64, EVENTS as u64 * 812, EVENTS as u64 * 240]);
    let rows = world.items("ledger").await;
    assert_eq!(rows.len(), EVENTS, "every row once");
    let seen: u64 = rows.iter().filter_map(|row| row["seen"].as_u64()).sum();
    assert!(seen >= reports as u64, "{seen}");
    assert!(world.items("quarantine").await.is_empty());
}

/// Set in the process that measures itself.
const MEASURED: &str = "TOKENTILL_MEASURED";

#[tokio::test]
async fn a_full_batch_is_handled_in_a_fraction_of_the_functions_memory() {
    if std::env::var_os(MEASURED).is_none() {
        // The most memory is told of a process as a whole, so it has to be one that does nothing else.
        let name = "load::a_full_batch_is_handled_in_a_fraction_of_the_functions_memory";
        let mut alone = Command::new(std::env::current_exe().unwrap());
        let output = alone.args(["--exact", name, "--nocapture"]).env(MEASURED, "1").output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
        println!("{}", printed.lines().find(|line| line.contains("MB before")).expect("it measured"));
        return;
    }
    let world = world().await;
    without_engine(&world);
    // SQS hands over at most 6 MB: as many messages of 1,000 events, of 50 users.
    let events = |m: usize| several(&(0..1_000).map(|n| call(&format!("user_{}", n % 50), m * 1_000 + n)).collect::<Vec<_>>());
    let length = events(0).to_string().len();
    let count = 6_000_000 / length;
    let now_ms = world.clock.now_ms();
    let ids: Vec<String> = (0..count).map(|m| format!("m{m}")).collect();
    let records: Vec<_> = ids.iter().enumerate().map(|(m, id)| (Some(id.as_str()), events(m).to_string(), now_ms, 1)).collect();
    let event = sqs_event(&records);
    drop(records);
    // What the test itself needed at most is forgotten.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = most_memory_mb();
    let began = Instant::now();
    let answer = function(&world).handle(event, "inv", i64::MAX).await.unwrap();
    assert!(answer.batch_item_failures.is_empty());
    let after = most_memory_mb();
    let seconds = began.elapsed().as_secs_f64();
    println!("{count} messages, {} events: {before} MB before, {after} MB at most, {seconds:.1} s", count * 1_000);
    assert!(after < 160, "of the 256 MB that the function has, with the test's own share: {after} MB");
}

/// The most memory this process ever had, in MB.
fn most_memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1_024
}

#[tokio::test]
async fn a_message_of_a_thousand_events_of_a_thousand_users_is_handled_whole() {
    let world = world().await;
    let users: Vec<String> = (0..1_000).map(|n| composite_key(&["user", &n.to_string()])).collect();
    let events: Vec<Value> = users.iter().enumerate().map(|(n, user_id)| call(user_id, n)).collect();
    let batch = vec![("m".to_owned(), several(&events))];
    assert_eq!(handle(&world, "inv", &batch).await, Vec::<String>::new());
    let tallies = world.items("tallies").await;
    assert_eq!(tallies.len(), 1_000);
    assert!(tallies.iter().all(|tally| tally["counted:requests"] == 1));
}

/// CPU seconds this process has used, all threads, those of the embedded engine too.
fn cpu_secs() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    // Clock ticks of user and system time, a hundred in a second.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// A stream of events through the real function, a few of each batch repeated in the next: first with the real engine, then
/// answered on the wire, so that the function's own part is seen. 5,000 events unless `TOKENTILL_EVENTS` says otherwise;
/// docs/performance.md has what a million took.
#[tokio::test]
async fn a_long_stream_is_counted_exactly_and_costs_the_same_to_its_end() {
    let total: usize = std::env::var("TOKENTILL_EVENTS").ok().map_or(5_000, |events| events.parse().unwrap());
    let users = (total / 500).clamp(10, 200);
    let world = world().await;
    for n in 0..users {
        let facts = subscriber(&format!("cus_{n}"), &format!("user_{n}"), "2026-11-10T00:00:00Z");
        commit(&world, &format!("user_{n}"), &facts).await;
    }
    stream(&world, total, users, "engine included").await;
    let requests = MeterId::new("requests").unwrap();
    let mut counted = 0;
    for n in 0..users {
        let tallies = world.store().tallies(&user(&format!("user_{n}")), world.clock.now().day(), world.clock.now().day()).await;
        counted += tallies.unwrap().iter().flat_map(|tally| tally.counted.get(&requests)).sum::<u64>();
    }
    assert_eq!(counted, total as u64);
    without_engine(&world);
    stream(&world, total, users, "without the engine's writes").await;
}

/// Handles so many events of so many users in batches of 5,000, and prints how fast and at what cost, each time twice as many
/// were handled.
async fn stream(world: &World, total: usize, users: usize, what: &str) {
    let event = |n: usize| (format!("m{n}"), call(&format!("user_{}", n / 100 % users), n));
    let (mut handled, mut next_print) = (0, (total / 100).max(1_000));
    let (mut cpu, mut elapsed, mut since) = (0.0, 0.0, 0);
    while handled < total {
        let until = (handled + 5_000).min(total);
        let mut batch: Messages = (handled..until).map(event).collect();
        batch.extend((handled.saturating_sub(50)..handled).map(|n| (format!("again{n}"), event(n).1)));
        let sent = sent(&batch, world.clock.now_ms());
        // What the test itself does to make the batch is not counted.
        let (cpu_before, began) = (cpu_secs(), Instant::now());
        let answer = function(world).handle(sent, &format!("inv_{handled}"), i64::MAX).await.unwrap();
        (cpu, elapsed) = (cpu + cpu_secs() - cpu_before, elapsed + began.elapsed().as_secs_f64());
        assert!(answer.batch_item_failures.is_empty());
        handled = until;
        if handled >= next_print || handled == total {
            let events = (handled - since) as f64;
            let (cpu_us, per_sec) = (cpu * 1e6 / events, events / elapsed);
            println!("{what}: {handled} events: {per_sec:.0} events a second, {cpu_us:.0} µs of CPU an event");
            (cpu, elapsed, since) = (0.0, 0.0, handled);
            next_print = handled * 2;
        }
    }
}

// ---- A sweep over very many accounts ----

/// So many accounts.
const ACCOUNTS: usize = 100_000;
/// So many of them are compared. With all of them it is five times as many calls, and the test takes minutes.
const COMPARED: usize = 20_000;
/// So many of them are due.
const DUE: usize = 100;

/// Puts items by 25, many requests at a time.
async fn fill(world: &World, table: &str, items: usize, item: impl Fn(usize) -> HashMap<String, AttributeValue>) {
    let name = format!("tokentill-{table}");
    let put = async |begin: usize| {
        let requests = (begin..items.min(begin + 25)).map(|n| {
            let put = PutRequest::builder().set_item(Some(item(n))).build().unwrap();
            WriteRequest::builder().put_request(put).build()
        });
        let sent = world.client.batch_write_item().request_items(&name, requests.collect()).send().await.unwrap();
        assert!(sent.unprocessed_items.unwrap_or_default().is_empty());
    };
    let all = futures_util::stream::iter((0..items).step_by(25));
    futures_util::StreamExt::for_each_concurrent(all, 16, put).await;
}

#[tokio::test]
async fn a_sweep_over_a_hundred_thousand_accounts_reads_what_is_due_and_a_comparison_a_hundred_at_a_time() {
    let world = World::start().await;
    let facts = subscriber("cus_000000", "user_000000", "2026-11-10T00:00:00Z");
    world.clock.set("2026-11-15T12:00:00Z");
    commit(&world, "user_000000", &overdue(facts.clone(), "in_1", "2026-11-15T11:00:00Z")).await;
    let text = |text: String| AttributeValue::S(text);
    let due = world.backup("accounts").await.remove(0);
    world.clock.set("2026-11-15T12:00:01Z");
    commit(&world, "user_000000", &facts).await;
    let (paid, record) = (world.backup("accounts").await.remove(0), world.backup("customers").await.remove(0));
    assert!(due.contains_key("due_at") && !paid.contains_key("due_at"));
    fill(&world, "accounts", ACCOUNTS, |n| {
        let mut account = if n < DUE { due.clone() } else { paid.clone() };
        account.insert("user_id".to_owned(), text(format!("user_{n:06}")));
        account.insert("customer_id".to_owned(), text(format!("cus_{n:06}")));
        let Some(AttributeValue::M(subscription)) = account.get_mut("subscription") else { panic!("it has a subscription") };
        subscription.insert("id".to_owned(), text(format!("sub_{n:06}")));
        account
    })
    .await;
    fill(&world, "customers", COMPARED, |n| {
        let mut record = record.clone();
        record.insert("user_id".to_owned(), text(format!("user_{n:06}")));
        record.insert("customer_id".to_owned(), text(format!("cus_{n:06}")));
        record
    })
    .await;
    let lists = Lists::new(repair::URL);
    for n in 0..COMPARED {
        let mut listed = repair::listed(&facts);
        listed.customer = customer(&format!("cus_{n:06}"));
        if n < DUE {
            listed.facts.status = Status::PastDue;
        }
        listed.facts.id = SubscriptionId::new(format!("sub_{n:06}")).unwrap();
        listed.facts.user_id = None;
        lists.add_subscription(Ok(listed));
    }

    // An hour: what is due, and a look at Stripe that finds nothing.
    world.clock.set("2026-11-18T12:00:00Z");
    let (sweeper, repair) = (crate::sweeper::function(&world), repair::function(&world, &lists));
    let calls = |operation: &str| world.wire.calls(operation);
    let before = ["Query", "GetItem", "BatchGetItem", "Scan"].map(calls);
    let mut compared = SweeperMemory { compared_on: Some(world.clock.now().day()), ..SweeperMemory::default() };
    world.store().remember_sweep(&mut compared).await.unwrap();
    world.wire.load(None);
    let invocation = repair::invocation(&world, "inv_hour");
    let (run, repaired) = sweep(&sweeper, &repair, world.clock.now(), &invocation).await.unwrap();
    assert_eq!((run.due, run.notices, repaired.failed), (DUE as u64, DUE as u64, 0));
    let after = ["Query", "GetItem", "BatchGetItem", "Scan"].map(calls);
    let read: Vec<usize> = after.iter().zip(before).map(|(after, before)| after - before).collect();
    let units = world.wire.counted().0.reads_in_all();
    println!("an hour: {read:?} queries, gets, batches, scans; {units} read units");
    assert_eq!((read[0], read[2], read[3]), (32, 0, 0), "one query for each shard of the two indexes, and no scan");
    assert!(read[1] <= DUE + 10 && units <= 150.0, "{read:?} {units}");

    // A day: every subscription once, a hundred at a time.
    world.clock.set("2026-11-19T00:00:00Z");
    let before = (lists.faults.calls("all_subscriptions"), calls("BatchGetItem"), world.wire.counted().0.reads_in_all());
    let all_day = Invocation { stop_at_ms: i64::MAX, ..repair::invocation(&world, "inv_day") };
    let repaired = repair.run(world.clock.now(), &all_day).await;
    assert_eq!((repaired.compared, repaired.failed), (COMPARED as u64, 0), "{repaired:?}");
    let batches = calls("BatchGetItem") - before.1;
    let units = world.wire.counted().0.reads_in_all() - before.2;
    println!("a day: {batches} batches, {units} read units, {} differences", repaired.differences);
    assert_eq!((lists.faults.calls("all_subscriptions") - before.0, batches), (COMPARED / 100, 2 * COMPARED / 100));
    assert_eq!(calls("Scan"), after[3]);
    assert_eq!(repaired.differences, 0);
    assert!(units <= 1.01 * COMPARED as f64, "half a unit for a customer and half a unit for an account: {units}");
}
