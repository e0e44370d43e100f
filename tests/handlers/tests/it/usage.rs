//! Usage messages: every event is audited, what is billable is counted once (the contract, 3.2).

use std::collections::BTreeMap;

use aws_lambda_events::sqs::SqsEvent;
use expect_test::expect;
use handlers::{Fault, Faulty, TestClock, WireFault, World};
use serde_json::{Value, json};
use tokentill::{
    domain::{
        account::Account,
        counting::{self, Batch, Intake, Verdict},
        id::{RequestId, shard_of},
        price_list::PriceList,
        time::DAY_SECS,
        usage::{Message, read_message, recount_message},
    },
    dynamodb::Store,
    ports::{AccountChange, Accounts, Audit, Clock, Commit, Ledger, Tallies, Written},
};
use usage::Usage;

use crate::samples::{BODY_MARK, USAGE, USAGE_BATCH, at, cancelled, commit, parsed, sqs_event, subscriber, user};

const NOON: &str = "2026-11-22T12:00:00Z";

pub(crate) type Function = Usage<Faulty<Store>, Faulty<Store>, Faulty<Store>, TestClock>;

pub(crate) fn function(world: &World) -> Function {
    Usage {
        accounts: world.store_of("usage"),
        ledger: world.store_of("usage"),
        quarantine: world.store_of("usage"),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        retention_days: 400,
    }
}

struct Bench {
    world: World,
    usage: Function,
}

/// A world in which ada is on the plan `pro` since 10 November.
async fn bench() -> Bench {
    let world = World::start().await;
    commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    let usage = function(&world);
    Bench { world, usage }
}

/// One call: 812 tokens in, 240 out, at noon.
pub(crate) fn call(user_id: &str, request_id: &str) -> Value {
    json!({"request_id": request_id, "user_id": user_id, "endpoint": "/v1/summarise", "tokens_in": 812, "tokens_out": 240,
           "success": true, "timestamp": NOON})
}

pub(crate) fn with(mut event: Value, field: &str, value: impl Into<Value>) -> Value {
    event[field] = value.into();
    event
}

pub(crate) fn several(events: &[Value]) -> Value {
    json!({ "events": events })
}

/// Counts events, each invocation by another name.
pub(crate) async fn count(world: &World, invocation: &str, events: &[Value]) {
    assert_eq!(hand_over(&function(world), world, invocation, events).await, Vec::<String>::new());
}

/// Hands events to a usage function in one message; which messages have to come again.
pub(crate) async fn hand_over(usage: &Function, world: &World, invocation: &str, events: &[Value]) -> Vec<String> {
    handle(usage, messages(world, &[("m", several(events))]), invocation).await
}

fn messages(world: &World, bodies: &[(&str, Value)]) -> SqsEvent {
    let now_ms = world.clock.now_ms();
    let messages: Vec<_> = bodies.iter().map(|(id, body)| (Some(*id), body.to_string(), now_ms, 1)).collect();
    sqs_event(&messages)
}

async fn handle(usage: &Function, event: SqsEvent, invocation: &str) -> Vec<String> {
    let answer = usage.handle(event, invocation, i64::MAX).await.unwrap();
    answer.batch_item_failures.into_iter().map(|failure| failure.item_identifier).collect()
}

impl Bench {
    /// Delivers messages in an invocation of their own; which of them have to come again.
    async fn deliver(&self, invocation: &str, bodies: &[(&str, Value)]) -> Vec<String> {
        handle(&self.usage, messages(&self.world, bodies), invocation).await
    }

    /// What is counted of a user, over all days and shards: requests, tokens in, tokens out.
    async fn totals(&self, user_id: &str) -> [u64; 3] {
        let now = self.world.clock.now();
        let store = self.world.store();
        let tallies = store.tallies(&user(user_id), now.plus_days(-60).day(), now.plus_days(60).day()).await.unwrap();
        ["requests", "tokens_in", "tokens_out"].map(|meter| {
            let of_meter = |tally: &BTreeMap<_, u64>| {
                tally.iter().find(|(id, _): &(&tokentill::domain::id::MeterId, _)| id.as_str() == meter).map_or(0, |(_, n)| *n)
            };
            tallies.iter().map(|tally| of_meter(&tally.counted)).sum()
        })
    }

    /// Each row of a request: what was decided, and how often it was reported.
    async fn rows(&self, user_id: &str, request_id: &str) -> Vec<(Verdict, u64)> {
        let request_id = RequestId::new(request_id).unwrap();
        let rows = self.world.store().rows_of_request(&user(user_id), &request_id, None, 1_000).await.unwrap();
        rows.iter().rev().map(|row| (row.verdict, row.seen)).collect()
    }

    async fn quarantined(&self) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for item in self.world.items("quarantine").await {
            *reasons.entry(item["reason"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        reasons
    }
}

const NOTHING: Vec<String> = Vec::new();

fn none() -> BTreeMap<String, usize> {
    BTreeMap::new()
}

fn only(reason: &str, count: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(reason.to_owned(), count)])
}

#[tokio::test]
async fn the_sample_message_is_audited_and_counted_in_one_tally() {
    let bench = bench().await;
    assert_eq!(handle(&bench.usage, serde_json::from_value(parsed(USAGE)).unwrap(), "inv").await, NOTHING);
    let stored = format!("{}\n{}", bench.world.item("ledger").await, bench.world.item("tallies").await);
    expect![[r#"
        {"at_key":"001795348800","attempt":1,"counted":{"requests":1,"tokens_in":812,"tokens_out":240},"endpoint":"/v1/summarise","expires_at":1829908800,"extra":null,"extra_cut":false,"last_seen_by":"cc711e06077ba4e4","model":"claude-sonnet","outcome":null,"received_at_ms":1795348800000,"request_id":"req_01JD3A","request_key":"3:ada/10:req_01JD3A","row":"request","seen":1,"success":true,"tally_key":"2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c","time_key":"3:ada/2:12","timestamp":1795348800,"tokens_cached":0,"tokens_in":812,"tokens_out":240,"units":{"images":1},"user_id":"ada","verdict":"counted","written_by":"inv"}
        {"billing":{"billed":["requests","tokens_in","tokens_out"],"clock_offset_secs":0,"customer_id":"cus_Ada","plan":"pro","segment_end":1796860800,"segment_start":1794268800,"subscription_id":"sub_Ada"},"counted:requests":1,"counted:tokens_in":812,"counted:tokens_out":240,"counted_at_hour":"2026-11-22T12:00:00Z","segment_end":1796860800,"tally_key":"2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c/00","touched_at":"2026-11-22T12:00:00Z","touched_key":"02","user_id":"ada"}"#]].assert_eq(&stored);
    assert!(bench.world.items("quarantine").await.is_empty());
}

#[tokio::test]
async fn the_sample_batch_counts_each_request_once_and_a_stranger_on_the_free_tier() {
    let bench = bench().await;
    assert_eq!(handle(&bench.usage, serde_json::from_value(parsed(USAGE_BATCH)).unwrap(), "inv").await, NOTHING);
    assert_eq!(bench.totals("ada").await, [2, 1624, 480]);
    assert_eq!(bench.totals("grace").await, [1, 812, 240]);
    assert_eq!(bench.rows("ada", "req_01JD3B").await, [(Verdict::NotBillable, 1), (Verdict::Counted, 1)]);
    let tallies = bench.world.items("tallies").await;
    let free: Vec<_> = tallies.iter().filter(|tally| tally["user_id"] == "grace").collect();
    assert!(free[0].get("touched_key").is_none() && free[0].get("billing").is_none(), "never to be reported: {}", free[0]);
}

#[tokio::test]
async fn a_request_counts_once_however_often_and_by_whomever_it_is_reported() {
    let bench = bench().await;
    let event = call("ada", "req_1");
    let earlier = with(event.clone(), "timestamp", "2026-11-20T00:00:00Z");
    let renamed = with(with(event.clone(), "endpoint", "/v2"), "attempt", 2);
    let twice = several(&[event.clone(), earlier.clone()]);
    // In one message, in two messages of a batch, and in a later invocation.
    assert_eq!(bench.deliver("inv_1", &[("m1", twice), ("m2", renamed.clone())]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 3)]);
    assert_eq!(bench.deliver("inv_2", &[("m3", earlier), ("m4", several(&[renamed.clone(), renamed]))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [1, 812, 240]);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 6)]);
    assert_eq!(bench.quarantined().await, none());
}

#[tokio::test]
async fn a_repetition_days_later_counts_nothing() {
    let bench = bench().await;
    bench.deliver("inv_1", &[("m1", call("ada", "req_1"))]).await;
    bench.world.clock.advance_ms(14 * DAY_SECS * 1000);
    assert_eq!(bench.deliver("inv_2", &[("m1", call("ada", "req_1"))]).await, NOTHING);
    let now_dated = with(call("ada", "req_1"), "timestamp", bench.world.clock.now().to_string());
    assert_eq!(bench.deliver("inv_3", &[("m2", now_dated)]).await, NOTHING);
    // The first message was redelivered, the second is a further report.
    assert_eq!((bench.totals("ada").await, bench.rows("ada", "req_1").await), ([1, 812, 240], vec![(Verdict::Counted, 2)]));
}

#[tokio::test]
async fn the_same_events_handled_side_by_side_count_once() {
    let bench = bench().await;
    let events: Vec<Value> = (0..150).map(|n| call("ada", &format!("req_{n}"))).collect();
    let functions: Vec<Function> = (0..4).map(|_| function(&bench.world)).collect();
    let runs = functions.iter().enumerate().map(|(n, usage)| {
        let mut events = events.clone();
        events.rotate_left(n * 37);
        let event = messages(&bench.world, &[("m", several(&events))]);
        async move { handle(usage, event, &format!("inv_{n}")).await }
    });
    for again in futures_util::future::join_all(runs).await {
        assert_eq!(again, NOTHING);
    }
    assert_eq!(bench.totals("ada").await, [150, 150 * 812, 150 * 240]);
    let seen: u64 = bench.world.items("ledger").await.iter().map(|row| row["seen"].as_u64().unwrap()).sum();
    assert_eq!(seen, 600, "each report is seen");
}

#[tokio::test]
async fn failures_are_audited_and_never_counted_and_do_not_use_the_request_up() {
    let bench = bench().await;
    let failure = |attempt: u64| with(with(call("ada", "req_1"), "success", false), "attempt", attempt);
    assert_eq!(bench.deliver("inv_1", &[("m1", several(&[failure(1), failure(2), failure(1)]))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [0, 0, 0]);
    assert_eq!(bench.deliver("inv_2", &[("m2", with(call("ada", "req_1"), "attempt", 3)), ("m3", failure(4))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [1, 812, 240]);
    let rows = bench.rows("ada", "req_1").await;
    assert_eq!(rows.iter().filter(|(verdict, _)| *verdict == Verdict::NotBillable).map(|(_, seen)| *seen).sum::<u64>(), 4);
    assert_eq!(rows.len(), 4);
    assert_eq!(bench.quarantined().await, none());
}

#[tokio::test]
async fn the_same_request_with_other_quantities_is_quarantined_and_the_first_stands() {
    let bench = bench().await;
    let other = with(call("ada", "req_1"), "tokens_in", 9);
    assert_eq!(bench.deliver("inv_1", &[("m1", several(&[call("ada", "req_1"), other.clone()]))]).await, NOTHING);
    assert_eq!(bench.quarantined().await, only("conflict", 1), "within one message");
    assert_eq!(bench.deliver("inv_2", &[("m2", with(other, "tokens_out", 1))]).await, NOTHING);
    assert_eq!(bench.quarantined().await, only("conflict", 2), "and later");
    assert_eq!(bench.totals("ada").await, [1, 812, 240]);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 1)]);
}

#[tokio::test]
async fn a_quarantined_event_that_comes_again_on_another_day_is_kept_once() {
    let bench = bench().await;
    let old = with(call("ada", "req_2"), "timestamp", "2026-01-01T00:00:00Z");
    let conflict = with(call("ada", "req_1"), "tokens_in", 9);
    let sent_ms = bench.world.clock.now_ms();
    let body = several(&[call("ada", "req_1"), conflict, old, json!({"no": "event"})]).to_string();
    for received in 1..4 {
        let event = sqs_event(&[(Some("m1"), body.clone(), sent_ms, received)]);
        assert_eq!(handle(&bench.usage, event, &format!("inv_{received}")).await, NOTHING);
        bench.world.clock.advance_ms(DAY_SECS * 1000);
    }
    let entries = bench.world.items("quarantine").await;
    assert_eq!(entries.len(), 3, "{entries:#?}");
    let conflict = entries.iter().find(|entry| entry["reason"] == "conflict").unwrap();
    let Ok(Message::Events(input)) = read_message(conflict["input"].as_str().unwrap()) else { panic!("{conflict}") };
    let event = input[0].as_ref().expect("it can be replayed");
    assert_eq!((event.quantities.tokens_in, &event.extra), (9, &None), "as it came");
}

#[tokio::test]
async fn what_cannot_be_read_is_quarantined_and_the_rest_is_counted() {
    let bench = bench().await;
    let good = call("ada", "req_1");
    let bad = [
        json!(7),
        json!({}),
        with(good.clone(), "tokens_in", -1),
        with(good.clone(), "tokens_in", 1.5),
        with(good.clone(), "tokens_in", "7"),
        with(good.clone(), "tokens_out", 1_000_000_000_000_000_u64),
        with(good.clone(), "success", "yes"),
        with(good.clone(), "timestamp", 1_795_348_800_000_u64),
        with(good.clone(), "user_id", ""),
        with(good.clone(), "request_id", "x".repeat(129)),
        with(good.clone(), "endpoint", Value::Null),
        with(good.clone(), "units", json!({"images": -1})),
    ];
    let mut mixed = bad.to_vec();
    mixed.insert(5, good.clone());
    let whole = ["", "not json", "[]", "{\"events\":7}", BODY_MARK];
    let now_ms = bench.world.clock.now_ms();
    let mut records = vec![(Some("mixed"), several(&mixed).to_string(), now_ms, 1)];
    let ids = ["w0", "w1", "w2", "w3", "w4"];
    records.extend(ids.iter().zip(whole).map(|(id, body)| (Some(*id), body.to_owned(), now_ms, 1)));
    for invocation in ["inv_1", "inv_2"] {
        assert_eq!(handle(&bench.usage, sqs_event(&records), invocation).await, NOTHING);
        assert_eq!(bench.quarantined().await, only("invalid", bad.len() + whole.len()), "once, however often it comes");
    }
    assert_eq!(bench.totals("ada").await, [1, 812, 240]);
    let entries = bench.world.items("quarantine").await;
    assert!(entries.iter().any(|entry| entry["input"] == BODY_MARK), "as it came");
}

#[tokio::test]
async fn a_timestamp_outside_the_window_is_quarantined_and_the_edges_are_counted() {
    let bench = bench().await;
    let now = bench.world.clock.now();
    let dated =
        |request_id: &str, offset_secs: i64| with(call("ada", request_id), "timestamp", now.plus_secs(offset_secs).as_secs());
    let events =
        [dated("oldest", -35 * DAY_SECS), dated("too_old", -35 * DAY_SECS - 1), dated("furthest", 300), dated("too_far", 301)];
    assert_eq!(bench.deliver("inv", &[("m1", several(&events))]).await, NOTHING);
    let expected = [("timestamp_in_future".to_owned(), 1), ("timestamp_too_old".to_owned(), 1)];
    assert_eq!(bench.quarantined().await, expected.into());
    assert_eq!(bench.totals("ada").await[0], 2);
    assert_eq!(bench.rows("ada", "too_old").await, []);
}

#[tokio::test]
async fn a_record_without_a_message_id_is_handled_and_never_answered_with_an_empty_name() {
    let bench = bench().await;
    let now_ms = bench.world.clock.now_ms();
    for (id, request_id) in [(None, "req_1"), (Some(""), "req_2")] {
        let good = sqs_event(&[(id, call("ada", request_id).to_string(), now_ms, 1), (id, "not json".to_owned(), now_ms, 1)]);
        assert_eq!(handle(&bench.usage, good, request_id).await, NOTHING);
        let failing = sqs_event(&[(id, call("ada", request_id).to_string(), now_ms, 1)]);
        bench.usage.accounts.faults.at("account", 1, Fault::LoseRequest);
        assert!(bench.usage.handle(failing, "inv", i64::MAX).await.is_err(), "the whole batch comes again, loudly");
    }
    assert_eq!(bench.totals("ada").await[0], 2);
    assert_eq!(bench.quarantined().await, only("invalid", 1));
}

#[tokio::test]
async fn one_message_holds_up_to_1000_events_and_more_are_refused_whole() {
    let bench = bench().await;
    let events = |count: usize| several(&(0..count).map(|n| call("ada", &format!("req_{n}"))).collect::<Vec<_>>());
    assert_eq!(bench.deliver("inv_1", &[("m1", events(1_001))]).await, NOTHING);
    assert_eq!((bench.totals("ada").await[0], bench.quarantined().await), (0, only("invalid", 1)));
    let before = bench.world.wire.calls("TransactWriteItems");
    assert_eq!(bench.deliver("inv_2", &[("m2", events(1_000))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [1_000, 812_000, 240_000]);
    assert_eq!(bench.world.wire.calls("TransactWriteItems") - before, 11, "98 rows and their tally to a transaction");
}

#[tokio::test]
async fn many_users_in_one_batch_are_each_counted_on_their_own() {
    let bench = bench().await;
    let events: Vec<Value> = (0..300).map(|n| call(&format!("user_{}", n % 30), &format!("req_{n}"))).collect();
    assert_eq!(bench.deliver("inv", &[("m1", several(&events))]).await, NOTHING);
    for n in 0..30 {
        assert_eq!(bench.totals(&format!("user_{n}")).await, [10, 8_120, 2_400]);
    }
}

#[tokio::test]
async fn ids_that_look_alike_never_count_for_each_other() {
    let bench = bench().await;
    let wide = "💶".repeat(128);
    let pairs = [
        ("a", "b/1:c"),
        ("a/1:b", "c"),
        ("a/1", "b:c"),
        ("1:a", "c"),
        ("a", "1:a/1:c"),
        ("a#b", "c"),
        ("a%2Fb", "c"),
        ("a/b", "c"),
        (wide.as_str(), wide.as_str()),
    ];
    let events: Vec<Value> = pairs.iter().map(|(user_id, request_id)| call(user_id, request_id)).collect();
    assert_eq!(bench.deliver("inv", &[("m1", several(&events))]).await, NOTHING);
    assert_eq!(bench.world.items("ledger").await.len(), pairs.len());
    for (user_id, count) in [("a", 2), ("a/1:b", 1), ("a/1", 1), ("1:a", 1), ("a#b", 1), ("a%2Fb", 1), ("a/b", 1), (&wide, 1)] {
        assert_eq!(bench.totals(user_id).await[0], count, "{user_id}");
    }
}

#[tokio::test]
async fn usage_over_a_renewal_lands_in_two_segments_to_the_second() {
    let bench = bench().await;
    bench.world.clock.set("2026-12-10T00:00:30Z");
    let dated = |request_id: &str, timestamp: &str| with(call("ada", request_id), "timestamp", timestamp);
    let events =
        [dated("last", "2026-12-09T23:59:59Z"), dated("first", "2026-12-10T00:00:00Z"), dated("second", "2026-12-10T00:00:01Z")];
    assert_eq!(bench.deliver("inv", &[("m1", several(&events))]).await, NOTHING);
    let tallies = bench.world.items("tallies").await;
    let shown: Vec<_> = tallies.iter().map(|tally| format!("{} {}", tally["tally_key"], tally["counted:requests"])).collect();
    expect![[r#"
        "2026-12-09/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c/00" 1
        "2026-12-10/6:billed/7:sub_Ada/10:1796860800/16:7fb1b4d849779f3c/00" 2"#]]
    .assert_eq(&shown.join("\n"));
}

#[tokio::test]
async fn usage_after_a_subscriptions_end_goes_to_the_free_tier_and_is_never_reported() {
    let bench = bench().await;
    let facts = cancelled(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "2026-11-22T11:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    let before = with(call("ada", "before"), "timestamp", "2026-11-22T10:59:59Z");
    assert_eq!(bench.deliver("inv", &[("m1", several(&[before, call("ada", "after")]))]).await, NOTHING);
    let tallies = bench.world.items("tallies").await;
    let billed: Vec<_> = tallies.iter().map(|tally| tally.get("billing").is_some()).collect();
    assert_eq!((billed.len(), billed.iter().filter(|billed| **billed).count()), (2, 1), "{tallies:#?}");
}

#[tokio::test]
async fn without_a_free_plan_a_stranger_is_parked_and_a_former_subscriber_is_only_audited() {
    let mut bench = bench().await;
    bench.usage.prices.plans.retain(|plan| !plan.prices.is_empty());
    let facts = cancelled(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "2026-11-22T11:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.deliver("inv", &[("m1", several(&[call("ada", "req_1"), call("grace", "req_1")]))]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::NoSubscription, 1)]);
    assert_eq!(bench.rows("grace", "req_1").await, [(Verdict::UnknownUser, 1)]);
    assert!(bench.world.items("tallies").await.is_empty());
}

#[tokio::test]
async fn a_transaction_whose_reply_was_lost_is_recognised_as_our_own_and_counted_once() {
    let bench = bench().await;
    bench.usage.ledger.faults.at("write", 1, Fault::LoseReply);
    let events = several(&[call("ada", "req_1"), call("ada", "req_2"), call("ada", "req_1")]);
    assert_eq!(bench.deliver("inv", &[("m1", events)]).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [2, 1_624, 480]);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 2)]);
    assert_eq!(bench.rows("ada", "req_2").await, [(Verdict::Counted, 1)]);
}

#[tokio::test]
async fn a_transaction_whose_reply_was_lost_on_the_wire_is_repeated_by_the_sdk_and_counted_once() {
    let bench = bench().await;
    bench.world.wire.at("TransactWriteItems", 1, WireFault::LoseReply);
    bench.world.wire.at("TransactWriteItems", 3, WireFault::LoseRequest);
    let events = |prefix: &str| several(&(0..50).map(|n| call("ada", &format!("{prefix}_{n}"))).collect::<Vec<_>>());
    assert_eq!(bench.deliver("inv", &[("m1", events("a"))]).await, NOTHING);
    assert_eq!(bench.deliver("inv", &[("m2", events("b"))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await[0], 100);
}

#[tokio::test]
async fn a_transaction_that_never_arrives_is_tried_again_and_then_handed_back() {
    let bench = bench().await;
    bench.usage.ledger.faults.at("write", 1, Fault::LoseRequest);
    bench.usage.ledger.faults.at("write", 2, Fault::LoseRequest);
    assert_eq!(bench.deliver("inv_1", &[("m1", call("ada", "req_1"))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await[0], 1);
    bench.usage.ledger.faults.always("write", Fault::LoseRequest);
    let batch = [("m2", call("ada", "req_2")), ("m3", json!({"events": []}))];
    assert_eq!(bench.deliver("inv_2", &batch).await, ["m2"]);
    bench.usage.ledger.faults.clear();
    assert_eq!(bench.deliver("inv_3", &batch).await, NOTHING);
    assert_eq!(bench.totals("ada").await[0], 2);
}

#[tokio::test]
async fn conflicts_and_throttling_are_retried_on_another_shard_and_the_totals_are_exact() {
    let bench = bench().await;
    // Two rows and their tally: each reason in turn, on a row or on the tally.
    let reasons: [&[&str]; 4] = [
        &["None", "None", "TransactionConflict"],
        &["TransactionConflict", "None", "None"],
        &["None", "ThrottlingError", "None"],
        &["None", "None", "ProvisionedThroughputExceeded"],
    ];
    for (n, reasons) in reasons.into_iter().enumerate() {
        bench.world.wire.at("TransactWriteItems", 1, handlers::cancelled(reasons));
        let events = several(&[call("ada", &format!("req_{n}_a")), call("ada", &format!("req_{n}_b"))]);
        assert_eq!(bench.deliver(&format!("inv_{n}"), &[("m", events)]).await, NOTHING);
    }
    assert_eq!(bench.totals("ada").await, [8, 8 * 812, 8 * 240]);
    let tallies = bench.world.items("tallies").await;
    assert!(tallies.iter().all(|tally| tally.get("billing").is_some() && tally.get("touched_key").is_some()));
    // A shard drawn by chance may be the first again, but hardly four times.
    assert!(tallies.len() > 1, "{tallies:#?}");
}

#[tokio::test]
async fn a_transaction_that_others_stay_in_the_way_of_is_tried_six_times_and_handed_back() {
    let bench = bench().await;
    for nth in 1..=6 {
        bench.world.wire.at("TransactWriteItems", nth, handlers::cancelled(&["None", "TransactionConflict"]));
    }
    let before = bench.world.wire.calls("TransactWriteItems");
    assert_eq!(bench.deliver("inv_1", &[("m1", call("ada", "req_1"))]).await, ["m1"]);
    assert_eq!(bench.world.wire.calls("TransactWriteItems") - before, 6);
    assert_eq!(bench.deliver("inv_2", &[("m1", call("ada", "req_1"))]).await, NOTHING);
    assert_eq!((bench.totals("ada").await[0], bench.rows("ada", "req_1").await), (1, vec![(Verdict::Counted, 1)]));
}

#[tokio::test]
async fn a_cancelled_transaction_that_does_not_show_the_row_that_stands_is_tried_again() {
    let bench = bench().await;
    bench.world.wire.at("TransactWriteItems", 1, handlers::cancelled(&["ConditionalCheckFailed", "None"]));
    assert_eq!(bench.deliver("inv", &[("m1", call("ada", "req_1"))]).await, NOTHING);
    assert_eq!((bench.totals("ada").await[0], bench.rows("ada", "req_1").await), (1, vec![(Verdict::Counted, 1)]));
}

#[tokio::test]
async fn a_row_that_dynamodb_can_never_hold_is_quarantined_alone_and_the_rest_is_counted() {
    let bench = bench().await;
    let too_large = handlers::refused("ValidationException", "Item size has exceeded the maximum allowed size");
    bench.world.wire.whenever("TransactWriteItems", "req_bad", too_large);
    bench.world.wire.whenever("TransactWriteItems", "req_worse", handlers::cancelled(&["ValidationError", "None"]));
    let mut events: Vec<Value> = (0..150).map(|n| call("ada", &format!("req_{n}"))).collect();
    events.insert(60, call("ada", "req_bad"));
    let before = bench.world.wire.calls("TransactWriteItems");
    let batch = [("m1", several(&events)), ("m2", call("ada", "req_worse")), ("m3", call("ada", "req_bad"))];
    assert_eq!(bench.deliver("inv", &batch).await, NOTHING);
    assert_eq!(bench.totals("ada").await, [150, 150 * 812, 150 * 240]);
    assert_eq!(bench.quarantined().await, only("unstorable", 2), "two reports of the same are one entry");
    let entries = bench.world.items("quarantine").await;
    assert!(entries.iter().any(|entry| entry["detail"].as_str().unwrap().contains("maximum allowed size")), "{entries:#?}");
    let calls = bench.world.wire.calls("TransactWriteItems") - before;
    assert!(calls <= 2 + 2 * 2 * 7, "halved until they stood alone: {calls}");
}

#[tokio::test]
async fn what_can_never_be_stored_is_told_apart_from_what_may_be_later() {
    let bench = bench().await;
    let store = bench.world.store();
    let Ok(Message::Events(mut entries)) = read_message(&call("ada", "req_1").to_string()) else { panic!("no event") };
    let event = entries.remove(0).unwrap();
    let intake = Intake { received_at_ms: bench.world.clock.now_ms(), written_by: "inv".to_owned(), retention_days: 400 };
    let good = counting::judge(&event, event.timestamp, None, &bench.world.prices, &intake);
    let (mut large, mut wide) = (good.clone(), good.clone());
    // Beyond 400 KB, and beyond the 2,048 bytes of a key. Events cannot become so; a later version's rows might.
    large.row.extra = Some("x".repeat(500_000));
    wide.row.request_key = "x".repeat(2_049);
    for bad in [large, wide] {
        let written = store.write(&Batch { rows: vec![good.clone(), bad] }, 0, bench.world.clock.now()).await.unwrap();
        assert!(matches!(&written, Written::Unstorable(reason) if !reason.is_empty()), "{written:?}");
    }
    assert_eq!(store.write(&Batch { rows: vec![good] }, 0, bench.world.clock.now()).await.unwrap(), Written::All);
}

#[tokio::test]
async fn what_comes_after_the_deadline_is_handed_back_unwritten() {
    let bench = bench().await;
    let event = messages(&bench.world, &[("m1", call("ada", "req_1")), ("m2", call("grace", "req_1"))]);
    let answer = bench.usage.handle(event, "inv", bench.world.clock.now_ms()).await.unwrap();
    assert_eq!(answer.batch_item_failures.len(), 2);
    assert_eq!(bench.world.wire.calls("TransactWriteItems"), 1, "ada's account, and nothing else");
}

#[tokio::test]
async fn a_duplicate_among_many_in_a_cancelled_transaction_is_dropped_and_the_rest_counted() {
    let bench = bench().await;
    bench.deliver("inv_1", &[("m1", call("ada", "req_50"))]).await;
    let events: Vec<Value> = (0..98).map(|n| call("ada", &format!("req_{n}"))).collect();
    assert_eq!(bench.deliver("inv_2", &[("m2", several(&events))]).await, NOTHING);
    assert_eq!(bench.totals("ada").await[0], 98);
    assert_eq!(bench.rows("ada", "req_50").await, [(Verdict::Counted, 2)]);
}

#[tokio::test]
async fn at_the_deadline_the_rest_is_handed_back_and_counted_once_when_it_comes_again() {
    let bench = bench().await;
    let now_ms = bench.world.clock.now_ms();
    let clock = bench.world.clock.clone();
    bench.usage.ledger.faults.meanwhile("write", 2, async move { clock.advance_ms(60_000) });
    let events: Vec<Value> = (0..400).map(|n| call("ada", &format!("req_{n}"))).collect();
    let batch = messages(&bench.world, &[("m1", several(&events))]);
    let answer = bench.usage.handle(batch.clone(), "inv_1", now_ms + 50_000).await.unwrap();
    assert_eq!(answer.batch_item_failures.len(), 1);
    assert_eq!(bench.totals("ada").await[0], 196, "two transactions were written");
    assert_eq!(handle(&bench.usage, batch, "inv_2").await, NOTHING);
    assert_eq!(bench.totals("ada").await, [400, 400 * 812, 400 * 240]);
}

#[tokio::test]
async fn one_users_unreadable_account_hands_back_only_that_users_messages() {
    let bench = bench().await;
    bench.usage.accounts.faults.at("account", 1, Fault::LoseRequest);
    let batch = [
        ("ada", call("ada", "req_1")),
        ("grace", call("grace", "req_1")),
        ("both", several(&[call("ada", "req_2"), call("grace", "req_2")])),
    ];
    assert_eq!(bench.deliver("inv_1", &batch).await, ["ada", "both"]);
    assert_eq!(bench.totals("grace").await[0], 2);
    assert_eq!(bench.deliver("inv_2", &batch[..1]).await, NOTHING);
    assert_eq!(bench.deliver("inv_2", &batch[2..]).await, NOTHING);
    assert_eq!((bench.totals("ada").await[0], bench.totals("grace").await[0]), (2, 2));
}

#[tokio::test]
async fn a_crash_while_writing_one_users_usage_fails_only_its_messages_and_counts_once() {
    let bench = bench().await;
    for (n, fault) in [Fault::CrashBefore, Fault::CrashAfter].into_iter().enumerate() {
        bench.usage.ledger.faults.at("write", 1, fault);
        let (ada, grace) = (call("ada", &format!("req_{n}")), call("grace", &format!("req_{n}")));
        let batch = [("ada", ada), ("grace", grace)];
        assert_eq!(bench.deliver(&format!("inv_{n}"), &batch).await, ["ada"], "{fault:?}");
        assert_eq!(bench.deliver(&format!("inv_{n}_again"), &batch).await, NOTHING);
        let count = u64::try_from(n).unwrap() + 1;
        assert_eq!((bench.totals("ada").await[0], bench.totals("grace").await[0]), (count, count));
    }
}

#[tokio::test]
async fn a_quarantine_that_is_not_reachable_hands_the_message_back() {
    let bench = bench().await;
    for (n, bad) in [json!({}), with(call("ada", "old"), "timestamp", "2020-01-01T00:00:00Z")].into_iter().enumerate() {
        bench.usage.quarantine.faults.at("keep", 1, Fault::LoseRequest);
        let id = format!("bad_{n}");
        let batch = [(id.as_str(), bad), ("good", call("ada", &format!("req_{n}")))];
        assert_eq!(bench.deliver("inv_1", &batch).await, [id.as_str()]);
        assert_eq!(bench.deliver("inv_2", &batch[..1]).await, NOTHING);
    }
    assert_eq!((bench.totals("ada").await[0], bench.quarantined().await.values().sum::<usize>()), (2, 2));
}

#[tokio::test]
async fn a_test_clocks_user_is_counted_in_the_accounts_own_time() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Ada", "ada", "2027-02-10T00:00:00Z");
    facts.test_clock = Some(at("2027-02-15T12:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.deliver("inv", &[("m1", call("ada", "req_1"))]).await, NOTHING);
    let tally = bench.world.item("tallies").await;
    assert!(tally["tally_key"].as_str().unwrap().starts_with("2027-02-15/6:billed/"), "{tally}");
}

#[tokio::test]
async fn rows_of_the_largest_kind_fit_their_transaction() {
    let bench = bench().await;
    // 50 units of 64 wide characters each, 8 KB of unknown fields, the longest endpoint.
    let units: serde_json::Map<String, Value> =
        (0..50).map(|n| (format!("{}{n:02}", "💶".repeat(62)), json!(999_999_999_999_999_u64))).collect();
    let large = |n: usize| {
        let event = with(call("ada", &format!("req_{n}")), "units", Value::Object(units.clone()));
        with(with(event, "note", "x".repeat(8_000)), "endpoint", "💶".repeat(1_024))
    };
    let bodies: Vec<(String, Value)> =
        (0..7).map(|m| (format!("m{m}"), several(&(m * 14..m * 14 + 14).map(large).collect::<Vec<_>>()))).collect();
    let bodies: Vec<(&str, Value)> = bodies.iter().map(|(id, body)| (id.as_str(), body.clone())).collect();
    assert_eq!(bench.deliver("inv", &bodies).await, NOTHING);
    assert_eq!(bench.totals("ada").await[0], 98);
}

#[tokio::test]
async fn a_repetition_is_recognised_whatever_timestamp_it_carries() {
    let bench = bench().await;
    let dated = |request_id: &str, timestamp: &str| with(call("ada", request_id), "timestamp", timestamp);
    let failure = with(with(dated("req_2", "2026-11-22T11:00:00Z"), "success", false), "attempt", 1);
    bench.deliver("inv_1", &[("m1", several(&[call("ada", "req_1"), failure.clone()]))]).await;
    // Far out of the window, both ways, and once with other quantities.
    let other = with(dated("req_1", "2020-01-01T00:00:00Z"), "tokens_in", 9);
    let odd = [
        other,
        dated("req_1", "2020-01-01T00:00:00Z"),
        dated("req_1", "2027-12-31T23:59:59Z"),
        dated("req_3", "2020-01-01T00:00:00Z"),
    ];
    assert_eq!(bench.deliver("inv_2", &[("m2", several(&odd))]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 3)]);
    let expected: BTreeMap<String, usize> = [("conflict".to_owned(), 1), ("timestamp_too_old".to_owned(), 1)].into();
    assert_eq!(bench.quarantined().await, expected, "and what has no row is too old");
    // Redelivered, it is seen no more often than it was reported.
    assert_eq!(bench.deliver("inv_3", &[("m2", several(&odd))]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_1").await, [(Verdict::Counted, 3)]);
    // Beside one that is in the window, it is a report of the same request.
    let both = [dated("req_4", "2020-01-01T00:00:00Z"), call("ada", "req_4")];
    assert_eq!(bench.deliver("inv_4", &[("m3", several(&both))]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_4").await, [(Verdict::Counted, 2)]);
    // A failed attempt's row has its own moment, and grows out of the window.
    bench.world.clock.advance_ms(36 * DAY_SECS * 1000);
    assert_eq!(bench.deliver("inv_5", &[("m4", failure)]).await, NOTHING);
    assert_eq!(bench.rows("ada", "req_2").await, [(Verdict::NotBillable, 2)]);
    assert_eq!((bench.totals("ada").await[0], bench.quarantined().await), (2, expected));
}

#[tokio::test]
async fn a_repetition_outside_the_window_that_cannot_be_looked_up_is_handed_back() {
    let bench = bench().await;
    bench.deliver("inv_1", &[("m1", call("ada", "req_1"))]).await;
    bench.usage.ledger.faults.at("row", 1, Fault::LoseRequest);
    let old = with(call("ada", "req_1"), "timestamp", "2020-01-01T00:00:00Z");
    assert_eq!(bench.deliver("inv_2", &[("m2", old.clone())]).await, ["m2"]);
    assert_eq!(bench.deliver("inv_3", &[("m2", old)]).await, NOTHING);
    assert_eq!((bench.rows("ada", "req_1").await, bench.quarantined().await), (vec![(Verdict::Counted, 2)], none()));
}

#[tokio::test]
async fn a_report_is_seen_once_however_often_its_message_comes() {
    let bench = bench().await;
    let seen = async || bench.rows("ada", "req_1").await[0].1;
    for invocation in ["inv_1", "inv_2"] {
        assert_eq!(bench.deliver(invocation, &[("m1", call("ada", "req_1"))]).await, NOTHING);
        assert_eq!(seen().await, 1, "{invocation}");
    }
    // Raised, but nobody heard of it; then again, and on the wire.
    bench.usage.ledger.faults.at("seen_again", 1, Fault::LoseReply);
    assert_eq!(bench.deliver("inv_3", &[("m2", call("ada", "req_1"))]).await, ["m2"]);
    assert_eq!(bench.deliver("inv_4", &[("m2", call("ada", "req_1"))]).await, NOTHING);
    assert_eq!(seen().await, 2);
    bench.world.wire.at("UpdateItem", 1, WireFault::LoseReply);
    assert_eq!(bench.deliver("inv_5", &[("m3", call("ada", "req_1"))]).await, NOTHING);
    assert_eq!(seen().await, 3);
    // A crash between raising and answering, and several reports together, in whatever order they come again.
    bench.usage.ledger.faults.at("seen_again", 1, Fault::CrashAfter);
    let both = [("m4", call("ada", "req_1")), ("m5", call("ada", "req_1"))];
    assert_eq!(bench.deliver("inv_6", &both).await, ["m4", "m5"]);
    let turned = [both[1].clone(), both[0].clone()];
    assert_eq!(bench.deliver("inv_7", &turned).await, NOTHING);
    assert_eq!((seen().await, bench.totals("ada").await[0]), (5, 1));
}

#[tokio::test]
async fn a_request_that_is_reported_over_and_over_is_one_update_for_each_batch() {
    let bench = bench().await;
    for batch in ["a", "b"] {
        let ids: Vec<String> = (0..500).map(|n| format!("{batch}_{n}")).collect();
        let messages: Vec<(&str, Value)> = ids.iter().map(|id| (id.as_str(), call("ada", "constant"))).collect();
        assert_eq!(bench.deliver(batch, &messages).await, NOTHING);
    }
    assert_eq!(bench.rows("ada", "constant").await, [(Verdict::Counted, 1_000)]);
    assert_eq!(bench.world.wire.calls("UpdateItem"), 1, "the second batch's");
    assert_eq!(bench.world.wire.calls("TransactWriteItems"), 3, "ada's account, and one for each batch");
}

#[tokio::test]
async fn at_the_deadline_repetitions_are_handed_back_too_and_seen_when_they_come_again() {
    let bench = bench().await;
    let events = several(&(0..98).map(|n| call("ada", &format!("req_{n}"))).collect::<Vec<_>>());
    bench.deliver("inv_1", &[("m1", events.clone())]).await;
    let now_ms = bench.world.clock.now_ms();
    let clock = bench.world.clock.clone();
    bench.usage.ledger.faults.meanwhile("seen_again", 1, async move { clock.advance_ms(60_000) });
    let batch = messages(&bench.world, &[("m2", events)]);
    let answer = bench.usage.handle(batch.clone(), "inv_2", now_ms + 50_000).await.unwrap();
    assert_eq!((answer.batch_item_failures.len(), bench.usage.ledger.faults.calls("seen_again")), (1, 1));
    assert_eq!(handle(&bench.usage, batch, "inv_3").await, NOTHING);
    let seen: u64 = bench.world.items("ledger").await.iter().map(|row| row["seen"].as_u64().unwrap()).sum();
    assert_eq!(seen, 2 * 98);
}

#[tokio::test]
async fn at_the_deadline_nothing_more_is_put_into_quarantine_either() {
    let bench = bench().await;
    let now_ms = bench.world.clock.now_ms();
    let old = |n: usize| with(call("ada", &format!("req_{n}")), "timestamp", "2020-01-01T00:00:00Z");
    let other = |n: u64| with(call("ada", "req_1"), "tokens_in", n);
    let bodies = [
        several(&(0..100).map(|n| json!({ "no event": n })).collect::<Vec<_>>()),
        several(&(2..102).map(old).collect::<Vec<_>>()),
        several(&(0..100).map(other).collect::<Vec<_>>()),
    ];
    for (n, body) in bodies.into_iter().enumerate() {
        let clock = bench.world.clock.clone();
        bench.usage.quarantine.faults.meanwhile("keep", 1, async move { clock.set("2026-11-22T12:05:00Z") });
        let batch = messages(&bench.world, &[(&format!("m{n}"), body)]);
        let before = bench.usage.quarantine.faults.calls("keep");
        let answer = bench.usage.handle(batch.clone(), &format!("inv_{n}"), now_ms + 50_000).await.unwrap();
        assert_eq!((answer.batch_item_failures.len(), bench.usage.quarantine.faults.calls("keep") - before), (1, 1), "{n}");
        bench.world.clock.set(NOON);
        assert_eq!(handle(&bench.usage, batch, &format!("inv_again_{n}")).await, NOTHING);
    }
    let expected = [("conflict".to_owned(), 99), ("invalid".to_owned(), 100), ("timestamp_too_old".to_owned(), 100)];
    assert_eq!(bench.quarantined().await, expected.into());
}

/// A world whose price list has no free tier, in which grace is unknown and 120 of her calls are parked.
async fn parked_bench() -> Bench {
    let mut bench = bench().await;
    bench.usage.prices = without_free_tier();
    let mut events: Vec<Value> = (0..120).map(|n| call("grace", &format!("req_{n}"))).collect();
    events.push(with(call("grace", "failed"), "success", false));
    events.push(with(call("grace", "early"), "timestamp", "2026-11-09T23:59:59Z"));
    assert_eq!(bench.deliver("inv_parked", &[("m_parked", several(&events))]).await, NOTHING);
    assert_eq!(bench.rows("grace", "req_7").await, [(Verdict::UnknownUser, 1)]);
    bench
}

fn without_free_tier() -> PriceList {
    let mut prices = PriceList::shipped().unwrap();
    prices.plans.retain(|plan| !plan.prices.is_empty());
    prices
}

async fn join_grace(world: &World) -> Account {
    commit(world, "grace", &subscriber("cus_Grace", "grace", "2026-11-10T00:00:00Z")).await
}

fn recount(user_id: &str) -> Value {
    serde_json::from_str(&recount_message(&user(user_id))).unwrap()
}

#[tokio::test]
async fn parked_usage_is_counted_once_when_its_user_is_joined() {
    let bench = parked_bench().await;
    join_grace(&bench.world).await;
    for invocation in ["inv_1", "inv_2"] {
        assert_eq!(bench.deliver(invocation, &[("r", recount("grace"))]).await, NOTHING);
        assert_eq!(bench.totals("grace").await, [120, 120 * 812, 120 * 240], "{invocation}");
    }
    assert_eq!(bench.rows("grace", "req_7").await, [(Verdict::Counted, 1)]);
    assert_eq!(bench.rows("grace", "failed").await, [(Verdict::NotBillable, 1)]);
    assert_eq!(bench.rows("grace", "early").await, [(Verdict::UnknownUser, 1)], "before her subscription nothing counts");
    let tallies = bench.world.items("tallies").await;
    assert!(tallies.iter().all(|tally| tally.get("touched_key").is_some() && tally.get("billing").is_some()), "to be reported");
    let ledger = bench.world.items("ledger").await;
    let row = ledger.iter().find(|row| row["request_id"] == "req_7").unwrap();
    assert_eq!(row["counted"], json!({"requests": 1, "tokens_in": 812, "tokens_out": 240}));
    assert!(tallies[0]["tally_key"].as_str().unwrap().starts_with(row["tally_key"].as_str().unwrap()), "{row}");
    assert_eq!(bench.quarantined().await, none());
}

#[tokio::test]
async fn a_recount_waits_a_quarter_of_an_hour_for_the_account_and_is_then_dropped() {
    let bench = parked_bench().await;
    let event = messages(&bench.world, &[("r", recount("grace"))]);
    bench.world.clock.advance_ms(15 * 60_000 - 1);
    assert_eq!(handle(&bench.usage, event.clone(), "inv_1").await, ["r"]);
    bench.world.clock.advance_ms(1);
    assert_eq!(handle(&bench.usage, event, "inv_2").await, NOTHING);
    assert_eq!(bench.totals("grace").await, [0, 0, 0]);
    // The next one, however late, finds what is parked.
    bench.world.clock.advance_ms(36 * DAY_SECS * 1000);
    join_grace(&bench.world).await;
    assert_eq!(bench.deliver("inv_3", &[("r2", recount("grace"))]).await, NOTHING);
    assert_eq!(bench.totals("grace").await[0], 120);
}

#[tokio::test]
async fn a_recount_counts_once_through_every_fault() {
    for call in ["parked", "recount"] {
        for nth in [1, 2] {
            for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
                let bench = parked_bench().await;
                join_grace(&bench.world).await;
                bench.usage.ledger.faults.at(call, nth, fault);
                let mut again = bench.deliver("inv_1", &[("r", recount("grace"))]).await;
                while !again.is_empty() {
                    again = bench.deliver("inv_2", &[("r", recount("grace"))]).await;
                }
                assert_eq!(bench.totals("grace").await, [120, 120 * 812, 120 * 240], "{call} {nth} {fault:?}");
            }
        }
    }
}

#[tokio::test]
async fn recounts_side_by_side_count_once() {
    let bench = parked_bench().await;
    join_grace(&bench.world).await;
    let functions: Vec<Function> = (0..3).map(|_| Usage { prices: without_free_tier(), ..function(&bench.world) }).collect();
    let runs = functions.iter().map(|usage| handle(usage, messages(&bench.world, &[("r", recount("grace"))]), "inv"));
    for again in futures_util::future::join_all(runs).await {
        assert_eq!(again, NOTHING);
    }
    assert_eq!(bench.totals("grace").await, [120, 120 * 812, 120 * 240]);
}

#[tokio::test]
async fn at_the_deadline_a_recount_is_handed_back_and_goes_on_when_it_comes_again() {
    let bench = parked_bench().await;
    join_grace(&bench.world).await;
    let now_ms = bench.world.clock.now_ms();
    let clock = bench.world.clock.clone();
    bench.usage.ledger.faults.meanwhile("recount", 2, async move { clock.advance_ms(60_000) });
    let event = messages(&bench.world, &[("r", recount("grace"))]);
    let answer = bench.usage.handle(event.clone(), "inv_1", now_ms + 50_000).await.unwrap();
    let counted = bench.totals("grace").await[0];
    assert!(answer.batch_item_failures.len() == 1 && (1..120).contains(&counted), "{counted}");
    assert_eq!(handle(&bench.usage, event, "inv_2").await, NOTHING);
    assert_eq!(bench.totals("grace").await[0], 120);
}

#[tokio::test]
async fn a_recount_reads_page_after_page() {
    let mut bench = bench().await;
    bench.usage.prices = without_free_tier();
    // All in one shard of the time index, and more than the megabyte of a page.
    let ids = (0..).map(|n| format!("req_{n}")).filter(|id| shard_of(id, counting::TIME_SHARDS) == 0).take(150);
    let events: Vec<Value> = ids.map(|id| with(call("grace", &id), "note", "x".repeat(8_000))).collect();
    assert_eq!(bench.deliver("inv_1", &[("m1", several(&events))]).await, NOTHING);
    join_grace(&bench.world).await;
    assert_eq!(bench.deliver("inv_2", &[("r", recount("grace"))]).await, NOTHING);
    assert_eq!(bench.totals("grace").await[0], 150);
    assert!(bench.usage.ledger.faults.calls("parked") > usize::from(counting::TIME_SHARDS), "more than one page");
}

#[tokio::test]
async fn usage_that_is_parked_while_its_user_is_being_joined_is_counted() {
    let mut bench = bench().await;
    bench.usage.prices = without_free_tier();
    let elsewhere = World::start().await;
    let account = join_grace(&elsewhere).await;
    let (store, at_ms) = (bench.world.store(), bench.world.clock.now_ms());
    let join = async move {
        let change = AccountChange { account: &account, next_due: None, notices: &[], processed: None, at_ms };
        assert_eq!(store.commit(&change).await.unwrap(), Commit::Done);
    };
    // Between reading the account and writing the rows; no recount comes.
    bench.usage.ledger.faults.meanwhile("write", 1, join);
    assert_eq!(bench.deliver("inv", &[("m1", call("grace", "req_1"))]).await, NOTHING);
    assert_eq!(bench.rows("grace", "req_1").await, [(Verdict::Counted, 1)]);
    assert_eq!(bench.totals("grace").await, [1, 812, 240]);
}

#[tokio::test]
async fn a_repetition_of_a_parked_request_counts_it_once_its_user_is_known() {
    let bench = parked_bench().await;
    join_grace(&bench.world).await;
    bench.usage.ledger.faults.at("recount", 1, Fault::CrashAfter);
    let batch = [("m1", call("grace", "req_1"))];
    assert_eq!(bench.deliver("inv_1", &batch).await, ["m1"]);
    assert_eq!(bench.deliver("inv_2", &batch).await, NOTHING);
    assert_eq!(bench.rows("grace", "req_1").await, [(Verdict::Counted, 2)]);
    assert_eq!(bench.totals("grace").await, [1, 812, 240]);
    // With the recount beside it in one batch.
    let batch = [("m2", call("grace", "req_new")), ("r", recount("grace"))];
    assert_eq!(bench.deliver("inv_3", &batch).await, NOTHING);
    assert_eq!(bench.totals("grace").await[0], 121);
}

#[tokio::test]
async fn usage_of_unknown_prices_is_parked_and_counted_when_they_are_known() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Grace", "grace", "2026-11-10T00:00:00Z");
    for item in &mut facts.subscriptions[0].items {
        item.lookup_key = Some("unheard_of".to_owned());
    }
    let unknown = commit(&bench.world, "grace", &facts).await;
    let segment = &unknown.segments[0];
    assert!(segment.plan.is_none() && segment.billed.is_empty(), "{segment:?}");
    let failed = with(call("grace", "req_2"), "success", false);
    assert_eq!(bench.deliver("inv_1", &[("m1", several(&[call("grace", "req_1"), failed]))]).await, NOTHING);
    assert_eq!(bench.rows("grace", "req_1").await, [(Verdict::UnknownPlan, 1)]);
    assert_eq!(bench.rows("grace", "req_2").await, [(Verdict::NotBillable, 1)]);
    // As long as they are unknown a young recount waits, and an old one is dropped.
    let event = messages(&bench.world, &[("r", recount("grace"))]);
    assert_eq!(handle(&bench.usage, event.clone(), "inv_2").await, ["r"]);
    bench.world.clock.advance_ms(15 * 60_000);
    assert_eq!(handle(&bench.usage, event, "inv_3").await, NOTHING);
    assert_eq!(bench.totals("grace").await, [0, 0, 0]);
    join_grace(&bench.world).await;
    assert_eq!(bench.deliver("inv_4", &[("r2", recount("grace"))]).await, NOTHING);
    assert_eq!(bench.totals("grace").await, [1, 812, 240]);
}
