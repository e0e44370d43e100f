//! What a version stored and sent stays readable: `events/versions/N` holds it as version N wrote it, and every later one goes on
//! from there (G11).

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use handlers::{Fault, World};
use lambda_http::Body;
use serde_json::{Map, Value, json};
use tokentill::{
    domain::{
        access::{State, standing},
        hint::Hint,
        report::MeterReport,
        time::EpochSecs,
        usage::recount_message,
    },
    ports::{Accounts, Clock, MeterSink},
};

use crate::{
    access::api,
    check::check_request,
    reporter,
    samples::{at, commit, customer, hint, overdue, sqs_event, subscriber, user},
    usage::{call, count, function, with},
};

const TABLES: [&str; 10] =
    ["accounts", "books", "control", "customers", "gates", "ledger", "outbox", "processed", "quarantine", "tallies"];
/// The version that the present code is.
const PRESENT: &str = "1";
const SINCE: &str = "2026-11-10T00:00:00Z";

fn folder(version: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/versions").join(version)
}

fn frozen(version: &str, file: &str) -> Value {
    let path = folder(version).join(file);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A customer whose prices the price list does not name yet.
fn unknown_prices() -> tokentill::domain::facts::CustomerFacts {
    let mut facts = subscriber("cus_Carol", "carol", SINCE);
    for item in &mut facts.subscriptions[0].items {
        item.lookup_key = item.lookup_key.as_ref().map(|key| key.replace("pro_", "gold_"));
    }
    facts
}

/// Something of everything that is stored: ada pays, calls, and has a report whose answer was lost; bob's payment failed; carol's
/// usage waits for her prices to be known.
async fn story(world: &World) {
    commit(world, "ada", &subscriber("cus_Ada", "ada", SINCE)).await;
    commit(world, "bob", &overdue(subscriber("cus_Bob", "bob", SINCE), "in_1", "2026-11-20T00:00:00Z")).await;
    commit(world, "carol", &unknown_prices()).await;
    let events = [
        call("ada", "req_1"),
        call("ada", "req_2"),
        with(call("ada", "req_3"), "success", false),
        call("carol", "req_1"),
        call("dora", "req_1"),
    ];
    count(world, "inv_1", &events).await;
    count(world, "inv_2", &[with(call("ada", "req_1"), "tokens_in", 7)]).await;
    assert_eq!(checked(world).await, 599);
    world.meters.faults.at("send", 1, Fault::LoseReply);
    let reporter = reporter::function(world, "frozen");
    let run = reporter.run(world.clock.now(), None, &reporter::invocation(world, "inv")).await.unwrap();
    assert_eq!((run.delivered, run.pending), (2, 1));
}

/// What is left of ada's minute after one more check.
async fn checked(world: &World) -> u64 {
    let response = api(world, 0).handle(check_request(r#"{"user_id":"ada"}"#)).await;
    let Body::Text(body) = response.body() else { panic!("{:?}", response.body()) };
    serde_json::from_str::<Value>(body).unwrap()["rate_limit"]["remaining"].as_u64().unwrap()
}

async fn items(world: &World) -> Value {
    let mut tables = Map::new();
    for table in TABLES {
        let mut items = world.items(table).await;
        for item in &mut items {
            // Names of this world's tables: in another one they would mean that a table was restored.
            item.as_object_mut().unwrap().remove("table_ids");
        }
        tables.insert(table.to_owned(), items.into());
    }
    tables.into()
}

fn messages(world: &World) -> Value {
    let report = |report: MeterReport| {
        json!({"identifier": report.identifier, "event_name": report.event_name, "customer": report.customer,
               "quantity": report.quantity, "minute": report.minute})
    };
    json!({
        "hint": hint("evt_1", "invoice.paid", "2026-11-22T12:00:00Z", "in_1", Some("cus_Bob")),
        "recount": serde_json::from_str::<Value>(&recount_message(&user("carol"))).unwrap(),
        "reports": world.meters.taken().into_iter().map(report).collect::<Vec<_>>(),
    })
}

/// A world in which a version left off.
async fn gone_on_from(version: &str) -> World {
    let world = World::start().await;
    let tables = frozen(version, "items.json");
    for (table, items) in tables.as_object().unwrap() {
        for item in items.as_array().unwrap() {
            let item: HashMap<String, AttributeValue> = serde_dynamo::to_item(item).unwrap();
            let put = world.client.put_item().table_name(format!("tokentill-{table}")).set_item(Some(item));
            put.send().await.unwrap();
        }
    }
    for report in frozen(version, "messages.json")["reports"].as_array().unwrap() {
        let text = |name: &str| report[name].as_str().unwrap().to_owned();
        let report = MeterReport {
            customer: customer(&text("customer")),
            event_name: text("event_name"),
            identifier: text("identifier"),
            quantity: report["quantity"].as_u64().unwrap(),
            minute: EpochSecs::new(report["minute"].as_i64().unwrap()),
        };
        world.meters.send(&report).await.unwrap();
    }
    world
}

/// If this fails, what is stored changed its form: freeze it as the next version (`TOKENTILL_FREEZE=2 cargo test -p handlers
/// versions`), set `PRESENT`, and leave the older ones as they are.
#[tokio::test]
async fn what_is_stored_and_sent_is_as_it_was_frozen() {
    let world = World::start().await;
    story(&world).await;
    let found = [("items.json", items(&world).await), ("messages.json", messages(&world))];
    for (file, found) in found {
        if let Ok(version) = std::env::var("TOKENTILL_FREEZE") {
            std::fs::create_dir_all(folder(&version)).unwrap();
            std::fs::write(folder(&version).join(file), format!("{found:#}\n")).unwrap();
        }
        assert_eq!(format!("{found:#}"), format!("{:#}", frozen(PRESENT, file)), "{file}");
    }
}

#[tokio::test]
async fn every_version_that_ever_was_is_gone_on_from() {
    let versions = std::fs::read_dir(folder("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    for version in versions {
        println!("version {version}");
        goes_on_from(&version).await;
    }
}

async fn goes_on_from(version: &str) {
    let world = gone_on_from(version).await;
    // The minute's grants are where they were.
    assert_eq!(checked(&world).await, 598);
    // What was counted is known again, also with what is new beside it, and what came twice is seen to have come twice.
    world.clock.set("2026-11-22T12:30:00Z");
    count(&world, "inv_3", &[call("ada", "req_1"), call("ada", "req_2"), call("ada", "req_4")]).await;
    let tallies: Vec<_> = world.items("tallies").await.into_iter().filter(|tally| tally["user_id"] == "ada").collect();
    assert_eq!((tallies.len(), &tallies[0]["counted:requests"]), (1, &json!(3)));
    // The report whose answer was lost goes out under its identifier, and is known to Stripe; then what is new.
    let before = world.meters.taken();
    let reporter = reporter::function(&world, "later");
    for _ in 0..2 {
        reporter.run(world.clock.now(), None, &reporter::invocation(&world, "inv_4")).await.unwrap();
    }
    let totals = world.meters.totals("cus_Ada");
    assert_eq!((totals["requests"], totals["tokens_in"], totals["tokens_out"]), (3, 3 * 812, 3 * 240));
    assert_eq!(world.meters.taken()[..before.len()], before);
    // Bob's grace period is as long as it was, and a payment ends it.
    let access = async |user_id: &str, moment: &str| {
        let account = world.store().account(&user(user_id)).await.unwrap();
        standing(account.as_ref(), &world.prices, at(moment)).state
    };
    assert_eq!(access("bob", "2026-11-29T11:59:59Z").await, State::Grace);
    assert_eq!(access("bob", "2026-11-29T12:00:00Z").await, State::Ended);
    commit(&world, "bob", &subscriber("cus_Bob", "bob", SINCE)).await;
    assert_eq!(access("bob", "2026-11-29T12:00:00Z").await, State::Active);
    // Carol's usage was parked, and is counted once her prices are known.
    commit(&world, "carol", &subscriber("cus_Carol", "carol", SINCE)).await;
    let messages = frozen(version, "messages.json");
    let recount = sqs_event(&[(Some("r"), messages["recount"].to_string(), world.clock.now_ms(), 1)]);
    let answer = function(&world).handle(recount, "inv_5", i64::MAX).await.unwrap();
    assert!(answer.batch_item_failures.is_empty());
    let ledger = world.items("ledger").await;
    let verdicts: Vec<&Value> = ledger.iter().filter(|row| row["user_id"] == "carol").map(|row| &row["verdict"]).collect();
    assert_eq!(verdicts, ["counted"]);
    // A hint that is under way is read.
    let hint: Hint = serde_json::from_value(messages["hint"].clone()).unwrap();
    assert_eq!((hint.kind.as_str(), hint.customer), ("invoice.paid", Some(customer("cus_Bob"))));
}
