//! What things cost, by counted calls and units: the table in `docs/cost.md` is this test's own.

use std::fmt::Write as _;

use handlers::{WireFault, World};
use serde_json::Value;

use crate::{
    reporter::{function as reporter, invocation},
    samples::{commit, sqs_event, subscriber},
    usage::{call, count, function, with},
};

const COST: &str = include_str!("../../../../docs/cost.md");
const BEGIN: &str = "<!-- counted: begin -->\n";
const END: &str = "<!-- counted: end -->";
/// On demand, in dollars for a million, as docs/cost.md names them.
const DOLLARS_A_MILLION_WRITES: f64 = 0.625;
const EVENTS: usize = 490;

/// What a million events cost if each batch holds so many of a user.
async fn usage_row(of_a_user: usize) -> String {
    let world = World::start().await;
    let users = EVENTS / of_a_user;
    for n in 0..users {
        commit(&world, &format!("user_{n}"), &subscriber(&format!("cus_{n}"), &format!("user_{n}"), "2026-11-10T00:00:00Z"))
            .await;
    }
    world.wire.load(None);
    world.wire.whenever("TransactWriteItems", "", WireFault::Answer { status: 200, body: "{}".to_owned() });
    let bodies: Vec<Value> = (0..users * of_a_user).map(|n| call(&format!("user_{}", n % users), &format!("req_{n}"))).collect();
    let reads = world.wire.calls("GetItem");
    let messages: Vec<_> = bodies.iter().enumerate().map(|(n, body)| (Some(format!("m{n}")), body.to_string())).collect();
    let now_ms = tokentill::ports::Clock::now_ms(&world.clock);
    let records: Vec<_> = messages.iter().map(|(id, body)| (id.as_deref(), body.clone(), now_ms, 1)).collect();
    let answer = function(&world).handle(sqs_event(&records), "inv", i64::MAX).await.unwrap();
    assert!(answer.batch_item_failures.is_empty());
    let (units, _, _) = world.wire.counted();
    let events = bodies.len() as f64;
    let per_event = |name: &str| units.total(name) as f64 / events;
    let parts = ["ledger", "ledger/by_time", "tallies", "tallies/touched"].map(per_event);
    let sum: f64 = parts.iter().sum();
    assert!(parts[0] <= 2.0 && parts[1] <= 1.0, "a row takes two units, its index one: {parts:?}");
    assert!(parts[2] * of_a_user as f64 <= 2.0, "a tally takes two for a user and batch: {parts:?}");
    let reads = (world.wire.calls("GetItem") - reads) as f64 / events;
    let [row, index, tally, touched] = parts;
    let dollars = sum * DOLLARS_A_MILLION_WRITES;
    format!("| {of_a_user} | {row:.2} | {index:.2} | {tally:.2} | {touched:.2} | **{sum:.2}** | {reads:.2} | {dollars:.2} |\n")
}

/// The calls of the reporter's runs, for one user's tally.
async fn reporter_rows() -> String {
    let world = World::start().await;
    commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    count(&world, "inv", &[call("ada", "req_1")]).await;
    let mut reporter = reporter(&world, "id");
    reporter.settings.interval_secs = 900;
    let mut table = String::new();
    let first = tokentill::ports::Clock::now(&world.clock);
    for (secs, what) in [
        (0, "the first run of all, with one tally to report; it looks 36 days back"),
        (60, "a look that finds nothing"),
        (900, "a whole run with a tally that grew"),
        (1_800, "a whole run with nothing new"),
        (14 * 3_600 + 60, "the run that reads a day back"),
    ] {
        let operations = ["Query", "GetItem", "UpdateItem"];
        world.clock.set(&first.plus_secs(secs).to_string());
        if secs == 900 {
            let event = with(call("ada", "req_2"), "timestamp", first.plus_secs(secs).to_string());
            count(&world, "more", &[event]).await;
        }
        let before: Vec<usize> = operations.iter().map(|operation| world.wire.calls(operation)).collect();
        let (sent, read) = (world.meters.attempts().len(), world.meters.faults.calls("total"));
        reporter.run(first.plus_secs(secs), None, &invocation(&world, "inv")).await.unwrap();
        let calls = operations.iter().zip(before).map(|(operation, before)| world.wire.calls(operation) - before);
        let calls: Vec<String> = calls.map(|calls| calls.to_string()).collect();
        let (sent, read) = (world.meters.attempts().len() - sent, world.meters.faults.calls("total") - read);
        let _ = writeln!(table, "| {what} | {} | {sent} | {read} |", calls.join(" | "));
    }
    table
}

#[tokio::test]
async fn the_counted_tables_in_the_cost_page_are_true() {
    let mut tables = String::from(
        "| events of a user in a batch | ledger | its index | tally | index of touched tallies | write units an event | account reads an event | dollars for a million |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for of_a_user in [1, 2, 10, 98] {
        tables.push_str(&usage_row(of_a_user).await);
    }
    tables.push_str("\n| the reporter, for one user with three meters | queries | reads | writes | meter events | summaries |\n|---|---|---|---|---|---|\n");
    tables.push_str(&reporter_rows().await);
    let begin = COST.find(BEGIN).expect("the page has the mark") + BEGIN.len();
    let end = COST.find(END).expect("the page has the end's mark");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let page = format!("{}{tables}{}", &COST[..begin], &COST[end..]);
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cost.md"), page).unwrap();
        return;
    }
    assert_eq!(&COST[begin..end], tables, "run it with UPDATE_EXPECT=1, and look at what has changed");
}
