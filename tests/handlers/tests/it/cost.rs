//! What things cost, by counted calls and units: the tables in `docs/cost.md` are these tests' own.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use ::sweeper::sweep;
use handlers::{Lists, WireFault, World};
use serde_json::Value;
use tokentill::ports::{Clock as _, ReporterMemory, ReporterState as _};

use crate::{
    repair,
    reporter::{function as reporter, invocation},
    samples::{at, commit, sqs_event, subscriber},
    sweeper::function as sweeper,
    usage::{call, count, function, with},
};

// What AWS asks for, in dollars: as published for us-east-1 in 2026.
const DOLLARS_A_MILLION_WRITES: f64 = 0.625;
const DOLLARS_A_MILLION_READS: f64 = 0.125;
const DOLLARS_A_MILLION_SQS_REQUESTS: f64 = 0.40;
const DOLLARS_A_MILLION_INVOCATIONS: f64 = 0.20;
const DOLLARS_A_GB_STORED: f64 = 0.25;
/// Point-in-time recovery, of tables only.
const DOLLARS_A_GB_RECOVERABLE: f64 = 0.20;
const DOLLARS_A_METRIC: f64 = 0.30;
const DOLLARS_AN_ALARM: f64 = 0.10;
const SECS_A_MONTH: f64 = 730.0 * 3_600.0;
/// `LedgerRetentionDays` as shipped, in months.
const MONTHS_KEPT: f64 = 400.0 / 30.4;
const DAYS_ACTIVE: u64 = 22;
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

/// How a service uses Tokentill.
struct Load {
    name: &'static str,
    users: u64,
    /// On how many hours of each of the month's 22 active days a user is active, and how many calls are made in each.
    hours: u64,
    calls_an_hour: u64,
    /// How many calls of a user come together in one batch.
    together: u64,
    /// How many calls, each a message of its own, one invocation takes, of all users.
    in_an_invocation: u64,
}

const LOADS: [Load; 3] = [
    Load { name: "light", users: 50, hours: 5, calls_an_hour: 9, together: 1, in_an_invocation: 1 },
    Load { name: "typical", users: 1_000, hours: 6, calls_an_hour: 15, together: 1, in_an_invocation: 10 },
    Load { name: "heavy", users: 10_000, hours: 10, calls_an_hour: 45, together: 2, in_an_invocation: 500 },
];

/// What was counted of a user's day.
#[derive(Default, Clone, Copy)]
struct Counted {
    events: f64,
    writes: f64,
    reads: f64,
    sent: f64,
    read_back: f64,
    /// Stored for as long as the ledger is kept: all of it, and what is not a copy in an index.
    stored: f64,
    recoverable: f64,
}

impl Load {
    fn events_a_month(&self) -> f64 {
        (self.users * DAYS_ACTIVE * self.hours * self.calls_an_hour) as f64
    }

    /// SQS requests for each event: it is sent alone, and received and deleted with those of its invocation, ten at a time.
    fn sqs_requests(&self) -> f64 {
        1.0 + 2.0 / self.in_an_invocation.min(10) as f64
    }

    /// One user's day from noon on, through the real functions: usage as it comes, the reporter every 15 minutes, until the day
    /// has been read back. `calls_an_hour` of nothing is what the same day costs without the user.
    async fn day(&self, calls_an_hour: u64) -> Counted {
        let world = World::start().await;
        world.wire.load(None);
        commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
        let memory = ReporterMemory { settled_through: Some(at("2026-11-22T11:00:00Z")), ..ReporterMemory::default() };
        world.store().remember(&memory).await.unwrap();
        let mut reporter = reporter(&world, "id");
        reporter.settings.interval_secs = 900;
        world.wire.load_again();
        let reads_before = world.wire.counted().0.reads_in_all();
        let mut events = 0;
        for quarter in 0..self.hours * 4 {
            let of_hour = |quarters: u64| calls_an_hour * quarters / 4;
            let mut left = of_hour(quarter % 4 + 1) - of_hour(quarter % 4);
            while left > 0 {
                let together: Vec<Value> =
                    (0..left.min(self.together)).map(|n| now_of(&world, &format!("req_{}", events + n))).collect();
                count(&world, &format!("inv_{events}"), &together).await;
                left -= together.len() as u64;
                events += together.len() as u64;
            }
            world.clock.advance_ms(900_000);
            reporter.run(world.clock.now(), None, &invocation(&world, "inv")).await.unwrap();
        }
        for moment in ["2026-11-23T00:15:00Z", "2026-11-23T02:15:00Z"] {
            world.clock.set(moment);
            reporter.run(world.clock.now(), None, &invocation(&world, "inv")).await.unwrap();
        }
        let (units, ..) = world.wire.counted();
        let ledger = units.stored_bytes("ledger") as f64;
        Counted {
            events: events as f64,
            writes: units.writes_in_all() as f64,
            reads: units.reads_in_all() - reads_before,
            sent: world.meters.attempts().len() as f64,
            read_back: world.meters.faults.calls("total") as f64,
            // The time index has all of a row.
            stored: 2.0 * ledger,
            recoverable: ledger,
        }
    }

    /// What a million events take, the share of the reporter's looks left out that is spent in any case.
    async fn a_million(&self) -> Counted {
        let (active, idle) = (self.day(self.calls_an_hour).await, self.day(0).await);
        assert_eq!((active.events, idle.events), ((self.hours * self.calls_an_hour) as f64, 0.0));
        let of = |active: f64, idle: f64| (active - idle) * 1e6 / (self.hours * self.calls_an_hour) as f64;
        Counted {
            events: 1e6,
            writes: of(active.writes, idle.writes),
            reads: of(active.reads, idle.reads),
            sent: of(active.sent, idle.sent),
            read_back: of(active.read_back, idle.read_back),
            stored: of(active.stored, idle.stored),
            recoverable: of(active.recoverable, idle.recoverable),
        }
    }
}

/// A call of ada's that is made now.
fn now_of(world: &World, request_id: &str) -> Value {
    with(call("ada", request_id), "timestamp", world.clock.now().to_string())
}

/// A number of things, short: `6.0 million`, `49,500`.
fn many(count: f64) -> String {
    if count >= 1e6 {
        return format!("{:.2} million", count / 1e6);
    }
    let digits = format!("{count:.0}");
    let (head, tail) = digits.split_at(digits.len().saturating_sub(3));
    if head.is_empty() { tail.to_owned() } else { format!("{head},{tail}") }
}

async fn loads() -> String {
    let [light, typical, heavy] = [&LOADS[0], &LOADS[1], &LOADS[2]];
    let mut table =
        format!("| | {} | {} | {} | one call for each event |\n|---|---|---|---|---|\n", light.name, typical.name, heavy.name);
    let mut row = |what: &str, of: &dyn Fn(usize) -> String, beside: &str| {
        let _ = writeln!(table, "| {what} | {} | {} | {} | {beside} |", of(0), of(1), of(2));
    };
    let counted = [light.a_million().await, typical.a_million().await, heavy.a_million().await];
    let load = |n: usize| &LOADS[n];
    let months = |n: usize| load(n).events_a_month() / 1e6;
    row("events a month", &|n| many(load(n).events_a_month()), "");
    row("paying users; hours each is active on 22 days", &|n| format!("{}; {}", many(load(n).users as f64), load(n).hours), "");
    row("events of a user in a batch; of all users", &|n| format!("{}; {}", load(n).together, load(n).in_an_invocation), "1; 1");
    row("**for a million events**", &|_| String::new(), "");
    row("write units", &|n| many(counted[n].writes), "nothing is kept");
    row("read units", &|n| many(counted[n].reads), "");
    row("SQS requests", &|n| many(load(n).sqs_requests() * 1e6), "");
    row("invocations of `usage`", &|n| many(1e6 / load(n).in_an_invocation as f64), "1.00 million");
    row("meter events to Stripe", &|n| many(counted[n].sent), "3.00 million");
    row("summaries read from Stripe", &|n| many(counted[n].read_back), "0");
    row("**dollars a month**", &|_| String::new(), "");
    let dynamo =
        |n: usize| months(n) * (counted[n].writes * DOLLARS_A_MILLION_WRITES + counted[n].reads * DOLLARS_A_MILLION_READS) / 1e6;
    let sqs = |n: usize| months(n) * load(n).sqs_requests() * DOLLARS_A_MILLION_SQS_REQUESTS;
    let lambda = |n: usize| months(n) / load(n).in_an_invocation as f64 * DOLLARS_A_MILLION_INVOCATIONS;
    let storage = |n: usize| {
        let kept = months(n) * MONTHS_KEPT / 1e9;
        kept * (counted[n].stored * DOLLARS_A_GB_STORED + counted[n].recoverable * DOLLARS_A_GB_RECOVERABLE)
    };
    row("DynamoDB's writes and reads", &|n| format!("{:.2}", dynamo(n)), "");
    row("SQS", &|n| format!("{:.2}", sqs(n)), "");
    row("Lambda's invocations", &|n| format!("{:.2}", lambda(n)), "");
    row("storage and recovery, once 400 days are kept", &|n| format!("{:.2}", storage(n)), "");
    row("**sum**", &|n| format!("**{:.2}**", dynamo(n) + sqs(n) + lambda(n) + storage(n)), "");
    for counted in counted {
        assert!(
            counted.writes <= 7e6,
            "at most 2 units for a row, 1 for its index, 2 for a tally, and what is spent by the hour"
        );
    }
    table
}

/// The template's resources.
fn resources() -> Vec<yaml_serde::Value> {
    let template: yaml_serde::Value = yaml_serde::from_str(include_str!("../../../../template.yaml")).unwrap();
    template["Resources"].as_mapping().unwrap().iter().map(|(_, resource)| resource.clone()).collect()
}

fn of_type(kind: &str) -> Vec<yaml_serde::Value> {
    resources().into_iter().filter(|resource| resource["Type"].as_str() == Some(kind)).collect()
}

/// How often an hour a schedule runs as shipped, by the parameter that holds it.
fn runs_an_hour(parameter: &str) -> f64 {
    let template: yaml_serde::Value = yaml_serde::from_str(include_str!("../../../../template.yaml")).unwrap();
    match template["Parameters"][parameter]["Default"].as_str().unwrap() {
        "rate(1 minute)" => 60.0,
        "rate(1 hour)" => 1.0,
        other => panic!("what is {other}?"),
    }
}

/// The names of our own metrics that the functions write, as their calls of `Line::count` have them.
fn metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![root.join("functions"), root.join("shared/src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(path).unwrap();
                // The unit tests' are no metrics.
                let source = source.split("#[cfg(test)]").next().unwrap_or_default();
                let calls = source.split(".count(").skip(1).filter_map(|rest| rest.trim_start().strip_prefix('"'));
                names.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
            }
        }
    }
    names
}

#[test]
fn there_are_at_most_ten_custom_metrics_and_each_that_an_alarm_looks_at_is_written() {
    let written = metrics();
    assert!(written.len() <= 10, "CloudWatch gives ten away, and asks $0.30 a month for each further one: {written:?}");
    let alarms = of_type("AWS::CloudWatch::Alarm");
    let ours = alarms.iter().map(|alarm| &alarm["Properties"]).filter(|alarm| alarm["Namespace"].as_str() == Some("Tokentill"));
    let looked_at: BTreeSet<String> = ours.map(|alarm| alarm["MetricName"].as_str().unwrap().to_owned()).collect();
    assert!(!looked_at.is_empty() && looked_at.is_subset(&written), "{looked_at:?} of {written:?}");
}

/// An hour's sweep that finds nothing and compares nothing: read units, write units, calls to Stripe.
async fn sweep_of_an_hour(world: &World) -> [f64; 3] {
    let lists = Lists::new(repair::URL);
    let repair = repair::function(world, &lists);
    let sweep = async |id: &str| {
        let now = world.clock.now();
        sweep(&sweeper(world), &repair, now, &repair::invocation(world, id)).await.unwrap();
        let calls = ["events", "all_subscriptions", "endpoints"].map(|call| lists.faults.calls(call));
        let (units, ..) = world.wire.counted();
        [units.reads_in_all(), units.writes_in_all() as f64, calls.iter().sum::<usize>() as f64]
    };
    // The first of a day compares.
    let before = sweep("inv_first").await;
    world.clock.advance_ms(3_600_000);
    let after = sweep("inv_second").await;
    [0, 1, 2].map(|at| after[at] - before[at])
}

/// What repair asks Stripe and reads, for so many subscriptions of which none differs.
async fn repair_rows() -> String {
    let world = World::start().await;
    world.wire.load(None);
    let [reads, writes, calls] = sweep_of_an_hour(&world).await;
    let mut table =
        String::from("| what | calls to Stripe | read units | write units | dollars a month |\n|---|---|---|---|---|\n");
    let mut row = |what: &str, times: f64, [reads, writes, calls]: [f64; 3]| {
        let dollars = times * (reads * DOLLARS_A_MILLION_READS + writes * DOLLARS_A_MILLION_WRITES) / 1e6;
        let _ = writeln!(table, "| {what} | {} | {} | {} | {dollars:.2} |", many(calls), many(reads), many(writes));
    };
    row("an hour that finds nothing", 730.0, [reads, writes, calls]);
    // A day's comparison of 300, less an hour that compares nothing: each page costs the same.
    let pages = 3;
    let lists = Lists::new(repair::URL);
    for n in 0..pages * 100 {
        let (customer, user) = (format!("cus_{n}"), format!("user_{n}"));
        let facts = subscriber(&customer, &user, "2026-11-10T00:00:00Z");
        commit(&world, &user, &facts).await;
        lists.add_subscription(Ok(repair::listed(&facts)));
    }
    world.clock.advance_ms(86_400_000);
    let repair = repair::function(&world, &lists);
    let (units, ..) = world.wire.counted();
    let before = [units.reads_in_all(), units.writes_in_all() as f64];
    let run = repair.run(world.clock.now(), &repair::invocation(&world, "inv_day")).await;
    assert_eq!((run.compared, run.differences, run.failed), (300, 0, 0));
    let (units, ..) = world.wire.counted();
    let asked = lists.faults.calls("all_subscriptions");
    assert_eq!(asked, pages);
    let a_page = [
        (units.reads_in_all() - before[0] - reads) / pages as f64,
        (units.writes_in_all() as f64 - before[1] - writes) / pages as f64,
    ];
    for subscriptions in [1_000.0, 10_000.0, 100_000.0] {
        let pages = subscriptions / 100.0;
        let what = format!("a day's comparison of {} subscriptions", many(subscriptions));
        row(&what, 30.4, [a_page[0] * pages, a_page[1] * pages, pages]);
    }
    table
}

#[tokio::test]
async fn what_repair_asks_for_in_the_cost_page_is_counted() {
    expect_between("repair", &repair_rows().await);
}

/// What a stack costs a month in which nothing happens, of what is not free.
async fn idle() -> String {
    let world = World::start().await;
    world.wire.load(None);
    let memory = ReporterMemory { settled_through: Some(at("2026-11-22T11:00:00Z")), ..ReporterMemory::default() };
    world.store().remember(&memory).await.unwrap();
    let mut reporter = reporter(&world, "id");
    reporter.settings.interval_secs = 900;
    // An hour has both kinds of looks as often as they come.
    world.wire.load_again();
    let reads_before = world.wire.counted().0.reads_in_all();
    let looks = runs_an_hour("ReportSchedule");
    for _ in 0..60 {
        reporter.run(world.clock.now(), None, &invocation(&world, "inv")).await.unwrap();
        world.clock.advance_ms(60_000);
    }
    let (units, ..) = world.wire.counted();
    let (reads, writes) = (units.reads_in_all() - reads_before, units.writes_in_all() as f64);
    let [sweeps, sweep_writes, _] = sweep_of_an_hour(&world).await;
    let writes = writes + sweep_writes;

    let functions = of_type("AWS::Serverless::Function");
    let queues = functions.iter().filter_map(|function| function["Properties"]["Events"].as_mapping());
    let queues = queues.flat_map(|events| events.iter()).filter(|(_, event)| event["Type"].as_str() == Some("SQS")).count();
    // Lambda polls each queue five times at once, 20 seconds long.
    let polls = queues as f64 * 5.0 * SECS_A_MONTH / 20.0;
    let alarms = of_type("AWS::CloudWatch::Alarm").len();
    let metrics = metrics().len();
    let (hours, runs) = (730.0, (looks + runs_an_hour("SweepSchedule")) * 730.0);
    let reads_a_month = hours * (reads + sweeps);
    let dynamo = (reads_a_month * DOLLARS_A_MILLION_READS + hours * writes * DOLLARS_A_MILLION_WRITES) / 1e6;
    let mut table = String::from("| what | how much a month | dollars | beyond the account's free tiers |\n|---|---|---|---|\n");
    let mut sums = (0.0, 0.0);
    let mut row = |what: &str, much: String, least: f64, most: f64| {
        sums = (sums.0 + least, sums.1 + most);
        let _ = writeln!(table, "| {what} | {much} | {least:.2} | {most:.2} |");
    };
    let sqs = polls * DOLLARS_A_MILLION_SQS_REQUESTS / 1e6;
    let free = (polls - 1e6).max(0.0) * DOLLARS_A_MILLION_SQS_REQUESTS / 1e6;
    row(
        &format!("Lambda's polling of {queues} queues"),
        format!("{} SQS requests, the first million free", many(polls)),
        free,
        sqs,
    );
    let much = format!("{} read and {} write units", many(reads_a_month), many(hours * writes));
    row("the reporter's and the sweeper's looks", much, dynamo, dynamo);
    let invocations = runs * DOLLARS_A_MILLION_INVOCATIONS / 1e6;
    row("their runs", format!("{} invocations, the first million free", many(runs)), 0.0, invocations);
    let all = alarms as f64 * DOLLARS_AN_ALARM;
    row("alarms", format!("{alarms}, of which ten are free"), (all - 10.0 * DOLLARS_AN_ALARM).max(0.0), all);
    row("custom metrics, with traffic", format!("{metrics}, of which ten are free"), 0.0, metrics as f64 * DOLLARS_A_METRIC);
    let _ = writeln!(table, "| **sum** | | **{:.2}** | **{:.2}** |", sums.0, sums.1);
    table
}

#[tokio::test]
async fn the_idle_costs_in_the_cost_page_are_those_of_the_template() {
    expect_between("idle", &idle().await);
}

#[tokio::test]
async fn the_three_loads_in_the_cost_page_are_counted() {
    expect_between("loads", &loads().await);
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
    expect_between("counted", &tables);
}

/// The page holds this between the two marks of that name; `UPDATE_EXPECT=1` writes it there.
fn expect_between(mark: &str, tables: &str) {
    // Tests beside this one may be writing their own part.
    static PAGE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _alone = PAGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cost.md");
    let page = std::fs::read_to_string(path).unwrap();
    let begin = format!("<!-- {mark}: begin -->\n");
    let begin = page.find(&begin).expect("the page has the mark") + begin.len();
    let end = page.find(&format!("<!-- {mark}: end -->")).expect("the page has the end's mark");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, format!("{}{tables}{}", &page[..begin], &page[end..])).unwrap();
        return;
    }
    assert_eq!(&page[begin..end], tables, "run it with UPDATE_EXPECT=1, and look at what has changed");
}
