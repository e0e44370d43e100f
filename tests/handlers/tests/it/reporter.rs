//! The reporter: what is counted reaches Stripe's meters exactly once, whatever breaks in between.

use std::cell::Cell;

use expect_test::expect;
use handlers::{Fault, Faulty, Meters, TestClock, WireFault, World, cancelled};
use reporter::{Invocation, Order, ReportEvent, Reporter, Run, Settings};
use serde_json::json;
use tokentill::{
    domain::{
        id::MeterId,
        price_list::PriceList,
        report::{Book, BookTotals, Intent, MeterBook},
        time::{DAY_SECS, UtcDay},
    },
    dynamodb::Store,
    ports::{
        AccountChange, Accounts, Books, Clock, Commit, MeterErrors, MeterSummaries, Reported, ReporterMemory, ReporterState,
        StripeError, Unavailable,
    },
    records::isolated,
};

use crate::{
    samples::{SCHEDULED, at, cancelled as cancelled_subscription, commit, customer, subscriber, user},
    usage::{call, count, with},
};

pub(crate) type Function = Reporter<Faulty<Store>, Faulty<Store>, Meters, TestClock, Box<dyn Fn() -> String>>;

struct Bench {
    world: World,
    reporter: Function,
}

pub(crate) fn function(world: &World, name: &'static str) -> Function {
    let made = Cell::new(0);
    let identifiers = move || {
        made.set(made.get() + 1);
        format!("{name}-{}", made.get())
    };
    Reporter {
        books: world.store_of("reporter"),
        accounts: world.store_of("reporter"),
        meters: world.meters.clone(),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        identifiers: Box::new(identifiers),
        // Every run looks at everything.
        settings: Settings { interval_secs: 0, final_after_secs: 3_600, calls_per_sec: 100_000 },
    }
}

/// What Stripe says of a report to a meter that was archived.
fn archived_meter() -> StripeError {
    StripeError::Refused {
        status: 400,
        code: "archived_meter".to_owned(),
        message: "This meter is archived".to_owned(),
        request_id: "req_1".to_owned(),
    }
}

/// An invocation that has twelve minutes.
pub(crate) fn invocation(world: &World, id: &str) -> Invocation {
    Invocation { id: id.to_owned(), stop_at_ms: world.clock.now_ms() + 720_000 }
}

/// A world in which ada is on the plan `pro`, and three of her calls are counted. The reporter has run before, so that it need
/// not look through the past 36 days.
async fn bench() -> Bench {
    let bench = fresh_bench().await;
    let memory = ReporterMemory { settled_through: Some(at("2026-11-22T10:00:00Z")), ..ReporterMemory::default() };
    bench.world.store().remember(&memory).await.unwrap();
    bench
}

/// The same before the reporter's first run.
async fn fresh_bench() -> Bench {
    let world = World::start().await;
    commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    count(&world, "inv", &[call("ada", "req_1"), call("ada", "req_2"), call("ada", "req_3")]).await;
    let reporter = function(&world, "id");
    Bench { world, reporter }
}

impl Bench {
    async fn run(&self) -> Run {
        self.order(None).await
    }

    async fn order(&self, order: Option<Order>) -> Run {
        self.reporter.run(self.world.clock.now(), order.as_ref(), &invocation(&self.world, "inv")).await.unwrap()
    }

    /// Runs as a fresh process would that a fault may end anywhere.
    async fn run_and_break(&self) -> Option<Result<Run, Unavailable>> {
        isolated(self.reporter.run(self.world.clock.now(), None, &invocation(&self.world, "inv"))).await.ok()
    }

    /// What Stripe's meters show for ada: requests, tokens in, tokens out.
    fn metered(&self) -> [u64; 3] {
        let totals = self.world.meters.totals("cus_Ada");
        ["requests", "tokens_in", "tokens_out"].map(|meter| totals.get(meter).copied().unwrap_or(0))
    }

    async fn settled_through(&self) -> String {
        let hour = self.world.store().memory().await.unwrap().settled_through;
        hour.map_or("-".to_owned(), |hour| hour.to_string())
    }

    async fn book(&self) -> serde_json::Value {
        self.world.item("books").await
    }
}

const THREE_CALLS: [u64; 3] = [3, 3 * 812, 3 * 240];

fn not_available() -> StripeError {
    StripeError::Unavailable { reason: "500".to_owned(), retry_after_secs: None, request_id: "req_1".to_owned() }
}

#[tokio::test]
async fn what_is_counted_is_reported_once_per_meter_and_a_second_run_reports_nothing() {
    let bench = fresh_bench().await;
    let event: ReportEvent = serde_json::from_str(SCHEDULED).unwrap();
    let moment = event.scheduled.moment().unwrap();
    assert_eq!((moment, &event.order), (bench.world.clock.now(), &None));
    let run = bench.reporter.run(moment, None, &invocation(&bench.world, "inv")).await.unwrap();
    assert_eq!(run, Run { tallies: 1, delivered: 3, ..Run::default() });
    assert_eq!(bench.metered(), THREE_CALLS);
    assert_eq!(bench.run().await, Run { tallies: 1, ..Run::default() });
    assert_eq!(bench.world.meters.attempts().len(), 3);
    expect![[r#"
        {"book_key":"2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c","confirmed_at":1795348800,"due_at":1795399200,"due_shard":"00","first_sent_at":1795348800,"meters":{"requests":{"confirmed_in_last_minute":3,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":3},"tokens_in":{"confirmed_in_last_minute":2436,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":2436},"tokens_out":{"confirmed_in_last_minute":720,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":720}},"user_id":"ada","version":2}
        2026-11-22T11:00:00Z"#]].assert_eq(&format!("{}\n{}", bench.book().await, bench.settled_through().await));
}

#[tokio::test]
async fn a_report_carries_a_whole_minute_inside_its_segment_and_its_day() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-22T12:34:56Z");
    bench.run().await;
    assert!(bench.world.meters.taken().iter().all(|report| report.minute == at("2026-11-22T12:34:00Z")));
    // A day later, usage of the first day still carries a minute of that day.
    bench.world.clock.set("2026-11-23T08:00:00Z");
    count(&bench.world, "late", &[call("ada", "req_late")]).await;
    bench.run().await;
    let minutes: Vec<_> = bench.world.meters.taken().iter().skip(3).map(|report| report.minute.to_string()).collect();
    assert_eq!(minutes, ["2026-11-22T23:59:00Z"; 3]);
}

#[tokio::test]
async fn the_intent_is_in_the_book_when_the_report_is_sent() {
    let bench = bench().await;
    let (store, meters) = (bench.world.store(), bench.world.meters.clone());
    let key = bench.world.item("tallies").await["tally_key"].as_str().unwrap().strip_suffix("/00").unwrap().to_owned();
    for nth in 1..=3 {
        let (store, key, meters) = (store.clone(), key.clone(), meters.clone());
        bench.world.meters.faults.meanwhile("send", nth, async move {
            let sending = meters.attempts().pop().unwrap();
            let book = store.book(&user("ada"), &key).await.unwrap();
            let intents: Vec<_> = book.meters.values().filter_map(|meter| meter.intent.clone()).collect();
            let intent = intents.iter().find(|intent| intent.identifier == sending.identifier).expect("it is in the book");
            assert_eq!((intent.quantity, intent.minute), (sending.quantity, sending.minute));
        });
    }
    bench.run().await;
    assert_eq!(bench.world.meters.faults.calls("send"), 3);
}

/// Every call of a first run that changes something, and what may befall it.
const CALLS: [(&str, usize); 8] =
    [("save", 1), ("send", 1), ("send", 2), ("send", 3), ("save", 2), ("remember", 1), ("take_lease", 1), ("give_lease_back", 1)];

async fn broken_at(call: (&'static str, usize), fault: Fault, clean_runs_after_secs: i64) {
    let bench = bench().await;
    let faults = if call.0 == "send" { &bench.world.meters.faults } else { &bench.reporter.books.faults };
    faults.at(call.0, call.1, fault);
    let _ = bench.run_and_break().await;
    let counted = THREE_CALLS;
    assert!(bench.metered().iter().zip(counted).all(|(metered, counted)| *metered <= counted), "never more than was counted");
    bench.world.clock.advance_ms(clean_runs_after_secs * 1000);
    for _ in 0..2 {
        bench.run().await;
    }
    assert_eq!(bench.metered(), counted, "{call:?} {fault:?}");
    assert_eq!(bench.world.meters.taken().len(), 3, "one identifier per meter: {call:?} {fault:?}");
    let book = bench.book().await;
    for meter in ["requests", "tokens_in", "tokens_out"] {
        assert!(book["meters"][meter]["intent"].is_null(), "{call:?} {fault:?}: {book}");
    }
    // What comes after is reported by the difference, whatever happened before.
    count(&bench.world, "later", &[call_at_now(&bench.world, "req_later")]).await;
    bench.run().await;
    assert_eq!(bench.metered(), [4, 4 * 812, 4 * 240], "{call:?} {fault:?}");
}

fn call_at_now(world: &World, request_id: &str) -> serde_json::Value {
    with(call("ada", request_id), "timestamp", world.clock.now().to_string())
}

#[tokio::test]
async fn a_crash_at_any_point_reports_each_quantity_exactly_once() {
    for call in CALLS {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            broken_at(call, fault, 60).await;
        }
    }
}

#[tokio::test]
async fn a_lost_request_or_reply_at_any_point_reports_each_quantity_exactly_once() {
    for call in CALLS {
        for fault in [Fault::LoseRequest, Fault::LoseReply] {
            broken_at(call, fault, 3 * 3_600).await;
        }
    }
}

#[tokio::test]
async fn a_report_of_unknown_fate_is_sent_again_as_it_was_and_confirmed_once_stripe_knows_it() {
    let bench = bench().await;
    bench.world.meters.faults.at("send", 1, Fault::LoseReply);
    let run = bench.run().await;
    assert_eq!((run.delivered, run.pending), (2, 1));
    count(&bench.world, "more", &[call("ada", "req_more")]).await;
    bench.world.clock.advance_ms(600_000);
    assert_eq!(bench.run().await.delivered, 1 + 3, "the old report, then the difference");
    let attempts = bench.world.meters.attempts();
    assert_eq!(attempts[3], attempts[0], "identifier, quantity and minute are as they were");
    assert_eq!(bench.metered(), [4, 4 * 812, 4 * 240]);
}

#[tokio::test]
async fn while_stripe_is_not_available_reports_wait_under_their_identifiers() {
    let bench = bench().await;
    let unauthorised = StripeError::Unauthorised { status: 401, code: "invalid_key".to_owned(), request_id: "req_1".to_owned() };
    let unreadable = StripeError::Unreadable { reason: "meter event".to_owned(), request_id: "req_1".to_owned() };
    // After a key that is not accepted nothing else is tried.
    for (error, tried) in [(not_available(), 3), (unauthorised, 1), (unreadable, 3)] {
        (0..tried).for_each(|_| bench.world.meters.refuse_next(error.clone()));
        let run = bench.run().await;
        assert_eq!((run.delivered, run.pending, run.errors.len()), (0, 3, 1));
        assert!(bench.book().await["due_at"].is_number(), "and are come back to");
        bench.world.clock.advance_ms(6 * 3_600_000);
    }
    assert_eq!(bench.run().await.delivered, 3);
    let mut identifiers: Vec<_> = bench.world.meters.attempts().iter().map(|report| report.identifier.clone()).collect();
    identifiers.sort();
    identifiers.dedup();
    assert_eq!((identifiers.len(), bench.metered()), (3, THREE_CALLS));
    assert!(bench.world.items("quarantine").await.is_empty());
}

#[tokio::test]
async fn a_report_of_unknown_fate_is_not_resent_from_20_hours_after_its_first_attempt_on() {
    let bench = bench().await;
    bench.world.meters.faults.always("send", Fault::LoseRequest);
    assert_eq!(bench.run().await.pending, 3);
    bench.world.clock.advance_ms(19 * 3_600_000 + 3_599_000);
    assert_eq!(bench.run().await.pending, 3, "a second before, it is sent");
    assert_eq!(bench.world.meters.attempts().len(), 6);
    bench.world.meters.faults.clear();
    bench.world.clock.advance_ms(1_000);
    let run = bench.run().await;
    assert_eq!((run.delivered, run.overdue, bench.world.meters.faults.calls("total")), (0, 3, 0), "{run:?}");
    bench.world.clock.advance_ms(3_598_000);
    assert_eq!(bench.run().await.overdue, 3, "a second before an hour after its last attempt");
    assert_eq!((bench.world.meters.attempts().len(), bench.world.meters.faults.calls("total")), (6, 0));
    bench.world.clock.advance_ms(1_000);
    assert_eq!(bench.run().await.delivered, 3, "it never arrived, so it is reported anew");
    assert_eq!(bench.metered(), THREE_CALLS);
}

/// A report of unknown fate, 21 hours after its first attempt, when its minute's summary can decide it.
async fn undecided(fault: Fault) -> Bench {
    undecided_after(fault, 21).await
}

async fn undecided_after(fault: Fault, hours: i64) -> Bench {
    let bench = bench().await;
    bench.world.meters.faults.always("send", fault);
    bench.run().await;
    bench.world.meters.faults.clear();
    // Stripe has forgotten it: sent again under the same identifier it would be counted twice.
    bench.world.meters.forget_identifiers();
    bench.world.clock.advance_ms(hours * 3_600_000);
    bench
}

#[tokio::test]
async fn a_report_that_never_arrived_is_reported_anew_after_21_hours() {
    for hours in [21, 25, 15 * 24] {
        let bench = undecided_after(Fault::LoseRequest, hours).await;
        let run = bench.run().await;
        assert_eq!((run.delivered, run.overdue), (3, 0), "{hours} hours: {run:?}");
        assert_eq!(bench.metered(), THREE_CALLS, "{hours} hours");
        let identifiers: std::collections::BTreeSet<_> =
            bench.world.meters.attempts().into_iter().map(|report| report.identifier).collect();
        assert_eq!(identifiers.len(), 6, "under new identifiers");
    }
}

#[tokio::test]
async fn a_report_that_did_arrive_is_confirmed_by_its_minute_after_21_hours() {
    for hours in [21, 25, 15 * 24] {
        let bench = undecided_after(Fault::LoseReply, hours).await;
        let run = bench.run().await;
        assert_eq!((run.delivered, run.overdue, bench.world.meters.attempts().len()), (3, 0, 3), "{hours} hours: {run:?}");
        assert_eq!(bench.metered(), THREE_CALLS, "{hours} hours");
        assert_eq!(bench.book().await["meters"]["requests"]["reported"], 3);
    }
}

#[tokio::test]
async fn what_a_minute_does_not_tell_is_left_to_a_person() {
    let bench = undecided(Fault::LoseRequest).await;
    bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), 1);
    for _ in 0..2 {
        let run = bench.run().await;
        assert_eq!(run.overdue, 1, "{run:?}");
        bench.world.clock.advance_ms(DAY_SECS * 1000);
    }
    assert_eq!(bench.metered(), [0, 3 * 812, 3 * 240]);
    // A second book of that day, of whose usage nothing is there to tell whose it was, may have reported in that minute too.
    let reported = MeterBook { reported: 1, last_minute: Some(at("2026-11-22T12:00:00Z")), ..MeterBook::default() };
    for (entry, overdue) in [(reported, 1), (MeterBook::default(), 0)] {
        let other = undecided(Fault::LoseRequest).await;
        let mut book = Book::default();
        book.meters.insert(MeterId::new("requests").unwrap(), entry);
        other.world.store().save(&user("ada"), "2026-11-22/other", &mut book).await.unwrap();
        assert_eq!(other.run().await.overdue, overdue);
    }
}

/// Found by the simulator: a subscription that followed another one on the same day had its report of unknown fate left to a person,
/// for the first one's usage was counted when nobody knew that it would end so soon.
#[tokio::test]
async fn another_book_of_the_day_that_was_silent_in_the_minute_leaves_the_report_to_be_decided() {
    let bench = bench().await;
    bench.run().await;
    bench.world.clock.set("2026-11-22T13:00:00Z");
    let mut facts = cancelled_subscription(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "2026-11-22T13:00:00Z");
    let next = subscriber("cus_Next", "ada", "2026-11-22T13:00:00Z").subscriptions.remove(0);
    facts.subscriptions.push(next);
    commit(&bench.world, "ada", &facts).await;
    bench.world.clock.set("2026-11-22T13:10:00Z");
    count(&bench.world, "next", &[call_at_now(&bench.world, "req_next")]).await;
    bench.world.meters.faults.always("send", Fault::LoseRequest);
    assert_eq!(bench.run().await.pending, 3);
    bench.world.meters.faults.clear();
    bench.world.clock.advance_ms(21 * 3_600_000);
    assert_eq!((bench.run().await.delivered, bench.metered()), (3, [4, 4 * 812, 4 * 240]));
}

#[tokio::test]
async fn a_refused_report_is_quarantined_and_settled_and_the_others_are_not_held_up() {
    let bench = bench().await;
    bench.world.meters.refuse_next(archived_meter());
    let run = bench.run().await;
    assert_eq!((run.delivered, run.refused), (2, 1));
    bench.world.clock.advance_ms(7_200_000);
    assert_eq!(bench.run().await, Run { tallies: 1, ..Run::default() }, "it is never sent again");
    assert_eq!(bench.metered(), [0, 3 * 812, 3 * 240]);
    let entry = bench.world.item("quarantine").await;
    assert_eq!((&entry["reason"], &entry["user_id"]), (&json!("refused"), &json!("ada")));
    expect![[r#"{"customer":"cus_Ada","event_name":"requests","identifier":"id-1","meter":"requests","minute":1795348800,"quantity":3,"tally_key":"2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c"}"#]].assert_eq(entry["input"].as_str().unwrap());
    let requests = &bench.book().await["meters"]["requests"];
    assert_eq!((&requests["reported"], &requests["quarantined"]), (&json!(0), &json!(3)));
    assert_eq!(bench.settled_through().await, "2026-11-22T13:00:00Z");
}

#[tokio::test]
async fn a_refused_report_is_in_the_quarantine_or_billed_and_never_both() {
    for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
        let bench = bench().await;
        bench.world.meters.refuse_next(archived_meter());
        bench.reporter.books.faults.at("save_and_quarantine", 1, fault);
        let _ = bench.run_and_break().await;
        assert_eq!(bench.world.wire.calls("PutItem"), 0, "only with the book");
        // The reporter is away for so long that the report is not sent again: its minute has nothing of it, so it is reported anew.
        bench.world.clock.advance_ms(25 * 3_600_000);
        bench.run().await;
        bench.world.clock.advance_ms(3_600_000);
        bench.run().await;
        let kept = bench.world.items("quarantine").await.len();
        assert!(matches!((kept, bench.metered()), (1, [0, 2_436, 720]) | (0, THREE_CALLS)), "{fault:?}: {kept}");
        assert_eq!(bench.book().await["meters"]["requests"]["quarantined"], 3 * kept, "{fault:?}");
    }
}

#[tokio::test]
async fn a_refused_report_whose_quarantine_fails_again_and_again_is_kept_once() {
    let bench = bench().await;
    for fault in [Fault::LoseRequest, Fault::CrashBefore, Fault::LoseReply] {
        bench.world.meters.refuse_next(archived_meter());
        bench.reporter.books.faults.at("save_and_quarantine", 1, fault);
        let _ = bench.run_and_break().await;
    }
    bench.run().await;
    assert_eq!(bench.world.items("quarantine").await.len(), 1);
    assert_eq!((bench.metered(), &bench.book().await["meters"]["requests"]["quarantined"]), ([0, 2_436, 720], &json!(3)));
}

#[tokio::test]
async fn a_reporter_that_loses_the_race_for_the_book_sends_nothing() {
    let bench = bench().await;
    let other = function(&bench.world, "other");
    // One that believes to hold the same lease: the book's version alone keeps them apart.
    let (now, invocation) = (bench.world.clock.now(), invocation(&bench.world, "inv"));
    bench.reporter.books.faults.meanwhile("save", 1, async move {
        other.run(now, None, &invocation).await.unwrap();
    });
    assert_eq!(bench.run().await, Run { tallies: 1, ..Run::default() });
    let attempts = bench.world.meters.attempts();
    assert!(attempts.iter().all(|report| report.identifier.starts_with("other")), "{attempts:#?}");
    assert_eq!(bench.metered(), THREE_CALLS);
}

#[tokio::test]
async fn reporters_side_by_side_report_each_quantity_once() {
    let bench = bench().await;
    let others = [function(&bench.world, "a"), function(&bench.world, "b"), function(&bench.world, "c")];
    let (now, invocation) = (bench.world.clock.now(), invocation(&bench.world, "inv"));
    let runs = others.iter().map(|reporter| reporter.run(now, None, &invocation));
    futures_util::future::join_all(runs).await.into_iter().for_each(|run| drop(run.unwrap()));
    bench.run().await;
    assert_eq!(bench.metered(), THREE_CALLS);
}

#[tokio::test]
async fn a_tally_that_grows_is_reported_by_the_difference_of_all_its_shards() {
    let bench = bench().await;
    bench.run().await;
    bench.world.wire.at("TransactWriteItems", 1, cancelled(&["None", "TransactionConflict"]));
    count(&bench.world, "more", &[call("ada", "req_4")]).await;
    bench.world.wire.at("TransactWriteItems", 1, WireFault::LoseReply);
    count(&bench.world, "most", &[with(call("ada", "req_5"), "tokens_out", 0)]).await;
    bench.run().await;
    let reports = bench.world.meters.taken().into_iter().skip(3);
    let shown: Vec<_> = reports.map(|report| format!("{} {}", report.event_name, report.quantity)).collect();
    assert_eq!(shown, ["requests 2", "tokens_in 1624", "tokens_out 240"]);
    assert_eq!(bench.metered(), [5, 5 * 812, 4 * 240]);
}

#[tokio::test]
async fn what_is_zero_is_not_reported() {
    let bench = bench().await;
    bench.run().await;
    let empty = with(with(call("ada", "req_4"), "tokens_in", 0), "tokens_out", 0);
    count(&bench.world, "more", &[empty]).await;
    assert_eq!(bench.run().await.delivered, 1, "only the request");
}

#[tokio::test]
async fn the_free_tier_is_never_reported() {
    let bench = bench().await;
    count(&bench.world, "free", &[call("grace", "req_1"), call("grace", "req_2")]).await;
    assert_eq!(bench.run().await.tallies, 1);
    assert!(bench.world.meters.attempts().iter().all(|report| report.customer.as_str() == "cus_Ada"));
    // Nor after she subscribes: what was free stays free.
    commit(&bench.world, "grace", &subscriber("cus_Grace", "grace", "2026-11-22T12:00:01Z")).await;
    bench.world.clock.advance_ms(60_000);
    bench.run().await;
    assert!(bench.world.meters.totals("cus_Grace").is_empty());
    count(&bench.world, "paid", &[with(call("grace", "req_3"), "timestamp", "2026-11-22T12:00:30Z")]).await;
    bench.run().await;
    assert_eq!(bench.world.meters.totals("cus_Grace")["requests"], 1);
}

#[tokio::test]
async fn many_users_are_reported_each_to_its_own_customer() {
    let bench = bench().await;
    for n in 0..10 {
        let (user_id, customer_id) = (format!("user/{n}"), format!("cus_{n}"));
        commit(&bench.world, &user_id, &subscriber(&customer_id, &user_id, "2026-11-10T00:00:00Z")).await;
        count(&bench.world, &format!("inv_{n}"), &vec![call(&user_id, "req"); 1 + n]).await;
    }
    let run = bench.run().await;
    assert_eq!((run.tallies, run.delivered), (11, 33));
    for n in 0..10 {
        assert_eq!(bench.world.meters.totals(&format!("cus_{n}"))["requests"], 1);
    }
}

#[tokio::test]
async fn the_checkpoint_moves_past_hours_whose_tallies_are_settled_or_have_a_due_book_and_never_back() {
    let bench = fresh_bench().await;
    assert_eq!(bench.settled_through().await, "-");
    bench.world.meters.faults.always("send", Fault::LoseRequest);
    bench.reporter.books.faults.at("save", 1, Fault::LoseRequest);
    bench.world.clock.set("2026-11-22T15:10:00Z");
    bench.run().await;
    assert_eq!(bench.settled_through().await, "2026-11-22T12:00:00Z", "nothing else knows of that tally");
    bench.run().await;
    assert_eq!(bench.settled_through().await, "2026-11-22T14:00:00Z", "its book is due; the hour before stays open");
    bench.world.clock.set("2026-11-22T16:10:00Z");
    assert_eq!((bench.run().await.pending, bench.settled_through().await.as_str()), (3, "2026-11-22T15:00:00Z"));
    let run = bench.reporter.run(at("2026-11-22T13:00:00Z"), None, &invocation(&bench.world, "inv")).await.unwrap();
    assert_eq!(run, Run::default());
    assert_eq!(bench.settled_through().await, "2026-11-22T15:00:00Z", "a late event does not move it back");
    bench.world.meters.faults.clear();
    assert_eq!((bench.run().await.delivered, bench.metered()), (3, THREE_CALLS));
    bench.world.clock.set("2026-11-22T23:00:00Z");
    assert_eq!(bench.run().await.tallies, 0, "settled tallies are not looked at again");
}

#[tokio::test]
async fn a_schedules_event_from_the_future_passes_nothing_that_is_still_to_be_counted() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-22T15:10:00Z");
    let ahead = bench.reporter.run(at("2026-11-22T23:10:00Z"), None, &invocation(&bench.world, "inv")).await.unwrap();
    assert_eq!((ahead.delivered, bench.settled_through().await.as_str()), (3, "2026-11-22T14:00:00Z"));
    // A call of now: in an hour that the event's moment has long passed.
    bench.world.clock.set("2026-11-22T16:20:00Z");
    count(&bench.world, "now", &[call_at_now(&bench.world, "req_now")]).await;
    assert_eq!((bench.run().await.delivered, bench.metered()[0]), (3, 4));
}

#[tokio::test]
async fn new_usage_in_a_tally_of_a_settled_hour_is_found() {
    let bench = bench().await;
    bench.run().await;
    bench.world.clock.set("2026-11-24T09:30:00Z");
    bench.run().await;
    assert_eq!(bench.settled_through().await, "2026-11-24T08:00:00Z");
    // A call of two days ago, into the tally of that day.
    count(&bench.world, "late", &[call("ada", "req_late")]).await;
    assert_eq!(bench.run().await.delivered, 3);
    assert_eq!((bench.world.items("tallies").await.len(), bench.metered()), (1, [4, 4 * 812, 4 * 240]));
}

#[tokio::test]
async fn a_first_run_finds_usage_of_the_past_35_days() {
    let bench = fresh_bench().await;
    bench.world.clock.advance_ms(35 * DAY_SECS * 1000);
    assert_eq!(bench.run().await.delivered, 3);
}

#[tokio::test]
async fn a_book_that_cannot_be_read_holds_up_only_its_own_tally() {
    let bench = bench().await;
    commit(&bench.world, "bob", &subscriber("cus_Bob", "bob", "2026-11-10T00:00:00Z")).await;
    count(&bench.world, "bob", &[call("bob", "req_1")]).await;
    bench.reporter.books.faults.at("book", 1, Fault::LoseRequest);
    let run = bench.run().await;
    assert_eq!((run.tallies, run.delivered, run.errors.len()), (2, 3, 1));
    assert_eq!(bench.run().await.delivered, 3);
    assert_eq!((bench.metered(), bench.world.meters.totals("cus_Bob")["requests"]), (THREE_CALLS, 1));
}

#[tokio::test]
async fn what_a_newer_version_keeps_beside_a_book_survives() {
    let bench = bench().await;
    bench.world.meters.faults.at("send", 1, Fault::LoseRequest);
    bench.run().await;
    let key = bench.book().await["book_key"].as_str().unwrap().to_owned();
    let request = bench.world.client.update_item().table_name("tokentill-books");
    let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
    let request =
        request.key("user_id", text("ada")).key("book_key", text(&key)).update_expression("SET note_of_the_future = :kept");
    request.expression_attribute_values(":kept", text("kept")).send().await.unwrap();
    assert_eq!(bench.run().await.delivered, 1);
    assert_eq!(bench.book().await["note_of_the_future"], "kept");
}

#[tokio::test]
async fn a_test_clocks_usage_is_reported_in_the_accounts_own_time() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Tess", "tess", "2027-02-10T00:00:00Z");
    facts.test_clock = Some(at("2027-02-15T12:00:00Z"));
    commit(&bench.world, "tess", &facts).await;
    count(&bench.world, "tess", &[call("tess", "req_1")]).await;
    bench.run().await;
    let report = bench.world.meters.taken().into_iter().find(|report| report.customer.as_str() == "cus_Tess").unwrap();
    assert_eq!(report.minute, at("2027-02-15T12:00:00Z"));
}

#[tokio::test]
async fn usage_of_a_closed_period_is_carried_once_whatever_breaks() {
    for (call, nth) in [("save_both", 1), ("save", 1), ("send", 1), ("save", 2)] {
        for fault in [Fault::CrashBefore, Fault::CrashAfter, Fault::LoseRequest, Fault::LoseReply] {
            let bench = bench().await;
            // The period ends on 10 December; an hour later its invoice is final, and these three calls are not reported.
            bench.world.clock.set("2026-12-10T12:00:30Z");
            let faults = if call == "send" { &bench.world.meters.faults } else { &bench.reporter.books.faults };
            faults.at(call, nth, fault);
            let _ = bench.run_and_break().await;
            bench.world.clock.advance_ms(60_000);
            for _ in 0..3 {
                bench.run().await;
            }
            assert_eq!(bench.metered(), THREE_CALLS, "{call} {nth} {fault:?}");
            assert_eq!(bench.world.meters.taken().len(), 3, "{call} {nth} {fault:?}");
            assert!(
                bench.world.meters.taken().iter().all(|report| report.minute >= at("2026-12-10T12:00:00Z")),
                "{call} {fault:?}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_carried_is_noted_in_both_books_and_they_balance() {
    let bench = bench().await;
    bench.world.clock.set("2026-12-10T12:00:30Z");
    let before = bench.world.wire.calls("TransactWriteItems");
    let run = bench.run().await;
    assert_eq!((run.carried, run.delivered, run.tallies), (3, 3, 2));
    assert_eq!(bench.world.wire.calls("TransactWriteItems") - before, 1, "out of one book and into the other at once");
    let requests = MeterId::new("requests").unwrap();
    let books = bench
        .world
        .store()
        .books(&user("ada"), at("2026-11-01T00:00:00Z").day(), at("2026-12-31T00:00:00Z").day())
        .await
        .unwrap();
    let books: Vec<Book> = books.into_values().collect();
    let shown: Vec<_> = books.iter().map(|book| book.totals(&requests)).collect();
    let totals = |reported, carried| BookTotals { reported, carried, ..BookTotals::default() };
    assert_eq!(shown, [totals(0, 3), totals(3, 0)]);
    let from: Vec<_> = books[1].carried_in[&requests].iter().collect();
    expect![[r#"[("2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c", 3)]"#]].assert_eq(&format!("{from:?}"));
    // What is counted late after that is carried too, and only that.
    count(&bench.world, "late", &[call("ada", "req_late")]).await;
    assert_eq!(bench.run().await.delivered, 3);
    assert_eq!(bench.metered(), [4, 4 * 812, 4 * 240]);
    // Later that day ada's own usage of the present period joins it in one book.
    count(&bench.world, "own", &[call_at_now(&bench.world, "req_own")]).await;
    assert_eq!((bench.run().await.delivered, bench.metered()), (3, [5, 5 * 812, 5 * 240]));
}

#[tokio::test]
async fn an_invoice_that_is_known_to_be_final_closes_its_period_at_once() {
    let bench = bench().await;
    bench.world.clock.set("2026-12-10T00:00:30Z");
    let mut facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    for item in &mut facts.subscriptions[0].items {
        item.period = (item.cycle.boundary(1), item.cycle.boundary(2));
    }
    let mut account = commit(&bench.world, "ada", &facts).await;
    account.version += 1;
    account.final_through.insert(facts.subscriptions[0].id.clone(), at("2026-12-10T00:00:00Z"));
    let change = AccountChange { account: &account, next_due: None, notices: &[], processed: None, at_ms: 0 };
    assert_eq!(bench.world.store().commit(&change).await.unwrap(), Commit::Done);
    assert_eq!(bench.run().await.carried, 3);
    assert!(bench.world.meters.taken().iter().all(|report| report.minute == at("2026-12-10T00:00:00Z")));
}

#[tokio::test]
async fn what_can_be_billed_in_no_period_is_quarantined_once_and_can_be_replayed() {
    for fault in [None, Some(Fault::LoseReply), Some(Fault::CrashAfter), Some(Fault::CrashBefore)] {
        let bench = bench().await;
        let facts = cancelled_subscription(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "2026-11-22T12:30:00Z");
        commit(&bench.world, "ada", &facts).await;
        bench.world.clock.set("2026-11-22T13:30:00Z");
        if let Some(fault) = fault {
            bench.reporter.books.faults.at("save_and_quarantine", 1, fault);
            let _ = bench.run_and_break().await;
        }
        bench.run().await;
        assert_eq!(bench.run().await.delivered, 0);
        let entries = bench.world.items("quarantine").await;
        assert_eq!((entries.len(), &entries[0]["reason"]), (3, &json!("period_closed")), "{fault:?}");
        assert_eq!(bench.book().await["meters"]["requests"]["quarantined"], 3, "{fault:?}");
        // She subscribes again, and a person decides that it is to be billed there.
        commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-22T13:00:00Z")).await;
        bench.world.clock.advance_ms(60_000);
        assert_eq!(bench.run().await.delivered, 0, "not by itself");
        bench.order(Some(Order::Replay { user_id: user("ada"), tally_key: None })).await;
        assert_eq!((bench.metered(), bench.world.meters.taken().len()), (THREE_CALLS, 3), "{fault:?}");
        bench.order(Some(Order::Replay { user_id: user("ada"), tally_key: None })).await;
        assert_eq!(bench.metered(), THREE_CALLS, "once");
    }
}

/// Found by the simulator: a reporter ended between the quarantine and the book, and there was a period to bill in by the next run.
#[tokio::test]
async fn what_is_set_aside_is_in_the_quarantine_or_billed_and_never_both() {
    for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
        let bench = bench().await;
        let facts = cancelled_subscription(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "2026-11-22T12:30:00Z");
        commit(&bench.world, "ada", &facts).await;
        bench.world.clock.set("2026-11-22T13:30:00Z");
        bench.reporter.books.faults.at("save_and_quarantine", 1, fault);
        let _ = bench.run_and_break().await;
        assert_eq!(bench.world.wire.calls("PutItem"), 0, "only with the book");
        commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-22T13:00:00Z")).await;
        for _ in 0..2 {
            bench.world.clock.advance_ms(3_600_000);
            bench.run().await;
        }
        let set_aside = bench.world.items("quarantine").await.len();
        assert!(matches!((set_aside, bench.metered()), (3, [0, 0, 0]) | (0, THREE_CALLS)), "{fault:?}: {set_aside}");
    }
}

#[tokio::test]
async fn a_refused_report_is_reported_once_more_when_it_is_replayed() {
    let bench = bench().await;
    bench.world.meters.refuse_next(archived_meter());
    bench.run().await;
    assert_eq!(bench.metered(), [0, 3 * 812, 3 * 240]);
    bench.world.clock.advance_ms(60_000);
    bench.order(Some(Order::Replay { user_id: user("ada"), tally_key: None })).await;
    assert_eq!(bench.metered(), THREE_CALLS);
}

impl Bench {
    /// With the shipped interval of a quarter of an hour.
    fn unhurried(mut self) -> Self {
        self.reporter.settings.interval_secs = 900;
        self
    }
}

#[tokio::test]
async fn between_two_intervals_only_what_is_urgent_is_reported() {
    let bench = bench().await.unhurried();
    assert_eq!(bench.run().await.delivered, 3);
    bench.world.clock.set("2026-11-22T12:14:00Z");
    count(&bench.world, "more", &[call_at_now(&bench.world, "req_4")]).await;
    let leases = bench.reporter.books.faults.calls("take_lease");
    assert_eq!(bench.run().await, Run::default());
    assert_eq!(bench.reporter.books.faults.calls("take_lease"), leases, "a look that finds nothing writes nothing");
    bench.world.clock.set("2026-11-22T12:15:00Z");
    assert_eq!(bench.run().await.delivered, 3);
    // Usage of a period's last seconds goes at once after its end, and what comes late 15 minutes before its invoice is final.
    bench.world.clock.set("2026-12-09T23:55:00Z");
    bench.run().await;
    count(&bench.world, "last", &[call_at_now(&bench.world, "req_last")]).await;
    bench.world.clock.set("2026-12-10T00:00:59Z");
    assert_eq!(bench.run().await.tallies, 0);
    bench.world.clock.set("2026-12-10T00:01:00Z");
    assert_eq!(bench.run().await.delivered, 3);
    bench.world.clock.set("2026-12-10T00:44:00Z");
    bench.run().await;
    let late = with(call("ada", "req_late"), "timestamp", "2026-12-09T23:59:30Z");
    count(&bench.world, "late", &[late]).await;
    bench.world.clock.set("2026-12-10T00:44:59Z");
    assert_eq!(bench.run().await.delivered, 0);
    bench.world.clock.set("2026-12-10T00:45:00Z");
    assert_eq!(bench.run().await.delivered, 3);
    assert!(bench.world.meters.taken().iter().all(|report| report.minute < at("2026-12-10T00:00:00Z")), "into its own period");
    // An order reports at any time.
    count(&bench.world, "now", &[call_at_now(&bench.world, "req_now")]).await;
    assert_eq!(bench.run().await.delivered, 0);
    assert_eq!(bench.order(Some(Order::Report)).await.delivered, 3);
}

#[tokio::test]
async fn while_another_reporter_holds_the_lease_nothing_is_done() {
    let bench = bench().await;
    let now_ms = bench.world.clock.now_ms();
    let store = bench.world.store();
    assert!(store.take_lease("other", now_ms, now_ms + 60_000).await.unwrap());
    assert_eq!(bench.run().await, Run { leased: true, ..Run::default() });
    bench.world.clock.advance_ms(59_999);
    assert!(bench.run().await.leased);
    // It expired, so its holder is dead; whoever takes it now holds it, and the dead one gives nothing back.
    bench.world.clock.advance_ms(1);
    let now_ms = bench.world.clock.now_ms();
    assert!(store.take_lease("third", now_ms, now_ms + 60_000).await.unwrap());
    assert!(store.take_lease("third", now_ms, now_ms + 60_000).await.unwrap(), "its own lost reply is recognised");
    store.give_lease_back("other").await.unwrap();
    assert!(bench.run().await.leased);
    store.give_lease_back("third").await.unwrap();
    assert_eq!(bench.run().await.delivered, 3);
    assert_eq!(bench.run().await.tallies, 1, "a run gives it back");
}

#[tokio::test]
async fn after_a_reporter_was_killed_the_next_goes_on_once_its_lease_of_30_seconds_is_over() {
    // Before Stripe has anything, and when it has the first report or two, of which no book says so.
    for nth in 1..=3 {
        let bench = bench().await;
        let stripe = &bench.world.meters.faults;
        stripe.meanwhile("send", nth, std::future::pending());
        let invocation = invocation(&bench.world, "killed");
        let killed = bench.reporter.run(bench.world.clock.now(), None, &invocation);
        let sending = async {
            while stripe.calls("send") < nth {
                tokio::task::yield_now().await;
            }
        };
        // The process is gone: it neither confirms nor gives back.
        drop(futures_util::future::select(Box::pin(killed), Box::pin(sending)).await);
        assert_eq!(bench.world.meters.taken().len(), nth - 1);
        bench.world.clock.advance_ms(29_999);
        assert!(bench.run().await.leased, "killed at call {nth}");
        bench.world.clock.advance_ms(1);
        assert_eq!((bench.run().await.delivered, bench.metered()), (3, THREE_CALLS), "killed at call {nth}");
        assert_eq!(bench.world.meters.taken().len(), 3, "killed at call {nth}: one identifier per meter");
    }
}

#[tokio::test]
async fn a_run_longer_than_its_lease_keeps_it() {
    // Whatever becomes of a single renewal, the next is early enough.
    for fault in [None, Some(Fault::LoseRequest), Some(Fault::LoseReply)] {
        let bench = bench().await;
        if let Some(fault) = fault {
            bench.reporter.books.faults.at("renew_lease", 2, fault);
        }
        for nth in 1..=3 {
            let (clock, faults) = (bench.world.clock.clone(), bench.reporter.books.faults.clone());
            let other = function(&bench.world, "other");
            // Each of Stripe's answers takes 34 seconds.
            bench.world.meters.faults.meanwhile("send", nth, async move {
                for _ in 0..2 {
                    let renewals = faults.calls("renew_lease");
                    clock.advance_ms(15_000);
                    faults.until_over("renew_lease", renewals + 1).await;
                    clock.advance_ms(2_000);
                    let invocation = Invocation { id: "other".to_owned(), stop_at_ms: i64::MAX };
                    assert!(other.run(clock.now(), None, &invocation).await.unwrap().leased, "call {nth}, {fault:?}");
                }
            });
        }
        let run = bench.run().await;
        assert_eq!((run.delivered, run.leased, &run.errors), (3, false, &vec![]), "{fault:?}");
        assert_eq!(bench.world.meters.attempts().len(), 3, "{fault:?}");
        let renewals = bench.reporter.books.faults.calls("renew_lease");
        assert_eq!(renewals, if fault.is_some() { 7 } else { 6 }, "one for each half of a lease, and one more: {fault:?}");
        assert!(!lease(&bench.world).await.as_object().unwrap().contains_key("until_ms"), "it is given back");
    }
}

/// The item that is the lease.
async fn lease(world: &World) -> serde_json::Value {
    let items = world.items("control").await;
    items.into_iter().find(|item| item["name"] == "reporter-lease").expect("there is a lease")
}

#[tokio::test]
async fn a_run_that_loses_its_lease_calls_stripe_and_writes_no_more() {
    let bench = bench().await;
    let (clock, store, faults) = (bench.world.clock.clone(), bench.world.store(), bench.reporter.books.faults.clone());
    bench.world.meters.faults.meanwhile("send", 2, async move {
        // It stood still for so long that its lease ended and another reporter took it.
        let later_ms = clock.now_ms() + 30_000;
        assert!(store.take_lease("other", later_ms, later_ms + 30_000).await.unwrap());
        clock.advance_ms(30_000);
        faults.until_over("renew_lease", 1).await;
        tokio::task::yield_now().await;
    });
    let run = bench.run().await;
    assert_eq!((run.leased, run.delivered), (true, 1), "{run:?}");
    assert_eq!(bench.world.meters.attempts().len(), 2, "the third meter's report is not sent");
    assert_eq!(bench.reporter.books.faults.calls("save"), 1, "what was sent is not confirmed: only the intent was saved");
    assert_eq!(bench.reporter.books.faults.calls("remember"), 0);
    assert_eq!(lease(&bench.world).await["owner"], "other", "and it gives back nothing");
    bench.world.clock.advance_ms(30_000);
    assert_eq!((bench.run().await.delivered, bench.metered()), (3, THREE_CALLS));
    assert_eq!(bench.world.meters.taken().len(), 3, "under the identifiers that were fixed");
}

#[tokio::test]
async fn a_run_that_cannot_renew_its_lease_ends_when_the_lease_does() {
    let bench = bench().await;
    bench.reporter.books.faults.always("renew_lease", Fault::LoseRequest);
    let (clock, faults) = (bench.world.clock.clone(), bench.reporter.books.faults.clone());
    bench.world.meters.faults.meanwhile("send", 2, async move {
        clock.advance_ms(15_000);
        for renewals in 1..20 {
            faults.until_over("renew_lease", renewals).await;
            clock.advance_ms(2_000);
        }
    });
    let begun_ms = bench.world.clock.now_ms();
    let error = bench.reporter.run(bench.world.clock.now(), None, &invocation(&bench.world, "inv")).await.unwrap_err();
    assert_eq!(error.to_string(), "renew_lease: the request was lost");
    let lasted_ms = bench.world.clock.now_ms() - begun_ms;
    assert!((30_000..=32_000).contains(&lasted_ms), "{lasted_ms} ms");
    assert_eq!(bench.reporter.books.faults.calls("save"), 1);
    bench.reporter.books.faults.clear();
    let next = bench.reporter.run(bench.world.clock.now(), None, &invocation(&bench.world, "next")).await.unwrap();
    assert_eq!((next.delivered, bench.metered()), (3, THREE_CALLS));
}

#[tokio::test]
async fn a_renewal_that_arrives_after_the_lease_was_given_back_or_taken_holds_nobody_up() {
    let bench = bench().await;
    let (store, now_ms) = (bench.world.store(), bench.world.clock.now_ms());
    assert!(store.take_lease("late", now_ms, now_ms + 30_000).await.unwrap());
    assert!(store.renew_lease("late", now_ms + 45_000).await.unwrap());
    assert!(store.renew_lease("late", now_ms + 60_000).await.unwrap(), "its own lost reply is no loss");
    assert!(!store.renew_lease("other", now_ms + 60_000).await.unwrap());
    bench.world.clock.advance_ms(59_999);
    assert!(bench.run().await.leased);
    store.give_lease_back("late").await.unwrap();
    assert!(!store.renew_lease("late", now_ms + 90_000).await.unwrap());
    assert_eq!(bench.run().await.delivered, 3);
}

#[tokio::test]
async fn a_run_whose_time_is_over_leaves_the_rest_to_the_next() {
    let bench = bench().await.unhurried();
    let over = Invocation { stop_at_ms: bench.world.clock.now_ms(), ..invocation(&bench.world, "inv") };
    let run = bench.reporter.run(bench.world.clock.now(), None, &over).await.unwrap();
    assert_eq!((run.delivered, bench.world.meters.attempts().len()), (0, 0));
    bench.world.clock.advance_ms(60_000);
    assert_eq!(bench.run().await.delivered, 3, "at its next look, not only after an interval");
}

#[tokio::test]
async fn three_days_without_stripe_lose_and_double_nothing_and_cost_few_calls() {
    let bench = bench().await.unhurried();
    for n in 0..5 {
        let (user_id, customer_id) = (format!("user_{n}"), format!("cus_{n}"));
        commit(&bench.world, &user_id, &subscriber(&customer_id, &user_id, "2026-11-10T00:00:00Z")).await;
        count(&bench.world, &format!("first_{n}"), &[call(&user_id, "req")]).await;
    }
    // Some requests are lost on their way there, some on their way back.
    bench.world.meters.faults.always("send", Fault::LoseReply);
    for hour in (0..72).step_by(3) {
        if hour == 9 {
            bench.world.meters.faults.always("send", Fault::LoseRequest);
        }
        if hour % 24 == 0 {
            count(&bench.world, &format!("hour_{hour}"), &[call_at_now(&bench.world, &format!("req_{hour}"))]).await;
        }
        let before = bench.world.meters.attempts().len();
        bench.run().await;
        let calls = bench.world.meters.attempts().len() - before;
        assert!(calls <= 9, "a run gives up after a few calls without an answer: {calls}");
        bench.world.clock.advance_ms(3 * 3_600_000);
    }
    bench.world.meters.faults.clear();
    bench.world.meters.forget_identifiers();
    for _ in 0..10 {
        bench.run().await;
        bench.world.clock.advance_ms(3 * 3_600_000);
    }
    assert_eq!(bench.metered(), [6, 6 * 812, 6 * 240]);
    for n in 0..5 {
        assert_eq!(bench.world.meters.totals(&format!("cus_{n}"))["tokens_in"], 812, "user {n}");
    }
    assert!(bench.world.items("quarantine").await.is_empty());
}

#[tokio::test]
async fn stripes_wish_to_wait_and_a_bad_key_end_a_run() {
    let wait =
        StripeError::Unavailable { reason: "429".to_owned(), retry_after_secs: Some(3_600), request_id: "req_1".to_owned() };
    let key = StripeError::Unauthorised { status: 401, code: "invalid_key".to_owned(), request_id: "req_1".to_owned() };
    for error in [wait, key] {
        let bench = bench().await;
        bench.world.meters.refuse_next(error);
        let run = bench.run().await;
        assert_eq!((run.delivered, bench.world.meters.attempts().len()), (0, 1), "{run:?}");
        bench.world.clock.advance_ms(60_000);
        assert_eq!((bench.run().await.delivered, bench.metered()), (3, THREE_CALLS));
    }
}

#[tokio::test]
async fn a_day_is_read_back_and_a_difference_stays_visible_until_it_is_gone() {
    let bench = bench().await;
    bench.run().await;
    bench.world.meters.stray("tokens_out", at("2026-11-22T18:00:00Z"), 1);
    bench.world.clock.set("2026-11-23T01:59:59Z");
    assert_eq!((bench.run().await.checked, bench.world.meters.faults.calls("total")), (0, 0));
    bench.world.clock.set("2026-11-23T02:00:00Z");
    let run = bench.run().await;
    assert_eq!((run.checked, run.differences, run.rejected), (3, 1, 0));
    let checked = bench.book().await["checked"].clone();
    expect![[r#"{"requests":{"at":1795399200,"counted":3,"reported":3,"stripe":3},"tokens_in":{"at":1795399200,"counted":2436,"reported":2436,"stripe":2436},"tokens_out":{"at":1795399200,"counted":720,"reported":720,"stripe":721}}"#]].assert_eq(&checked.to_string());
    assert_eq!(bench.run().await.checked, 0);
    bench.world.clock.set("2026-11-24T02:00:00Z");
    assert_eq!(bench.run().await.differences, 1, "it is looked at every day");
    bench.world.meters.stray("tokens_out", at("2026-11-22T18:00:00Z"), -1);
    bench.world.clock.set("2026-11-25T02:00:00Z");
    assert_eq!((bench.run().await.differences, &bench.book().await["due_at"]), (0, &serde_json::Value::Null));
    assert_eq!(bench.metered(), THREE_CALLS, "nothing was corrected");
}

#[tokio::test]
async fn the_last_day_of_a_period_is_read_back_before_its_invoice_is_final() {
    let bench = bench().await.unhurried();
    bench.world.clock.set("2026-12-09T23:00:00Z");
    count(&bench.world, "last", &[call_at_now(&bench.world, "req_last")]).await;
    bench.run().await;
    bench.world.meters.stray("requests", at("2026-12-09T23:00:00Z"), 2);
    bench.world.clock.set("2026-12-10T00:44:00Z");
    assert_eq!(bench.run().await.differences, 0);
    bench.world.clock.set("2026-12-10T00:45:00Z");
    assert_eq!(bench.run().await.differences, 1);
}

/// A world in which Stripe took all reports and then threw one request away.
async fn thrown_away() -> Bench {
    let bench = bench().await;
    bench.run().await;
    bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), -1);
    bench.world.clock.set("2026-11-22T12:20:00Z");
    bench.world.store().note_meter_error(bench.world.clock.now()).await.unwrap();
    bench
}

#[tokio::test]
async fn what_stripe_took_and_threw_away_is_found_an_hour_later_and_replayed_by_order() {
    for checked_before in [false, true] {
        let bench = if checked_before {
            let bench = bench().await;
            bench.run().await;
            bench.world.clock.set("2026-11-23T02:00:00Z");
            assert_eq!(bench.run().await.checked, 3);
            bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), -1);
            bench.world.clock.set("2026-11-23T10:00:00Z");
            bench.world.store().note_meter_error(bench.world.clock.now()).await.unwrap();
            bench
        } else {
            thrown_away().await
        };
        bench.world.clock.advance_ms(3_599_000);
        assert_eq!(bench.run().await.rejected, 0, "Stripe's summaries may be behind");
        bench.world.clock.advance_ms(1_000);
        let run = bench.run().await;
        assert_eq!((run.rejected, run.differences), (1, 0), "{run:?}");
        let book: Book = serde_json::from_value(bench.book().await).unwrap();
        let requests = MeterId::new("requests").unwrap();
        assert_eq!(book.totals(&requests), BookTotals { reported: 2, rejected: 1, ..BookTotals::default() });
        assert_eq!(book.meters[&requests].reported, 3, "what was reported never decreases");
        assert_eq!(bench.run().await.rejected, 0, "once");
        let calls = bench.world.meters.faults.calls("total");
        bench.world.clock.advance_ms(3_600_000);
        bench.run().await;
        assert_eq!(bench.world.meters.faults.calls("total"), calls, "Stripe's word is followed up once");
        bench.order(Some(Order::Replay { user_id: user("ada"), tally_key: None })).await;
        assert_eq!(bench.metered(), [4, 3 * 812, 3 * 240], "of which Stripe kept three");
        let book: Book = serde_json::from_value(bench.book().await).unwrap();
        assert_eq!(book.totals(&requests), BookTotals { reported: 3, ..BookTotals::default() });
        bench.world.clock.advance_ms(2 * DAY_SECS * 1000);
        let run = bench.run().await;
        assert_eq!((run.differences, run.rejected), (0, 0), "{run:?}");
    }
}

/// Found by the simulator: Stripe took a report, its answer was lost, and Stripe threw it away and said so before it was confirmed.
#[tokio::test]
async fn what_stripe_threw_away_before_it_was_confirmed_is_rejected_all_the_same() {
    // Confirmed when Stripe's word is followed up, or only afterwards.
    for stays_unknown in [false, true] {
        let bench = bench().await;
        bench.world.meters.faults.at("send", 1, Fault::LoseReply);
        assert_eq!(bench.run().await.pending, 1);
        bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), -3);
        bench.world.clock.set("2026-11-22T12:20:00Z");
        bench.world.store().note_meter_error(bench.world.clock.now()).await.unwrap();
        bench.world.clock.advance_ms(3_600_000);
        if stays_unknown {
            bench.world.meters.faults.at("send", bench.world.meters.faults.calls("send") + 1, Fault::LoseReply);
        }
        let mut rejected = bench.run().await.rejected;
        for _ in 0..2 {
            bench.world.clock.advance_ms(3_600_000);
            rejected += bench.run().await.rejected;
        }
        assert_eq!((rejected, bench.metered()), (1, THREE_CALLS), "{stays_unknown}: one meter, as it was sent once");
        let book: Book = serde_json::from_value(bench.book().await).unwrap();
        let requests = MeterId::new("requests").unwrap();
        assert_eq!(book.totals(&requests), BookTotals { rejected: 3, ..BookTotals::default() });
    }
}

/// Found by the simulator: the run that followed Stripe's word up could not read the tally, and no run looked again.
#[tokio::test]
async fn what_could_not_be_looked_at_after_stripes_word_is_looked_at_by_the_next_run_for_two_days() {
    for (hours, rejected) in [(1, 1), (48, 1), (49, 0)] {
        let bench = thrown_away().await;
        // Nobody looked for a while.
        bench.world.clock.advance_ms(5 * DAY_SECS * 1000);
        bench.reporter.books.faults.always("tally", Fault::LoseRequest);
        for hour in 1..=hours {
            bench.world.clock.advance_ms(3_600_000);
            let run = bench.run().await;
            assert_eq!((run.errors.len(), run.rejected), (1, 0), "hour {hour}");
        }
        bench.reporter.books.faults.clear();
        bench.world.clock.advance_ms(60_000);
        assert_eq!(bench.run().await.rejected, rejected, "{hours}");
    }
}

/// Found by the simulator: the answer to a book's write was lost, the SDK wrote it once more and lost the race against itself.
#[tokio::test]
async fn a_book_whose_race_is_lost_after_stripes_word_is_looked_at_by_the_next_run() {
    let bench = thrown_away().await;
    bench.world.clock.advance_ms(5 * DAY_SECS * 1000);
    let store = bench.world.store();
    let [key] = store
        .book_keys(&user("ada"), UtcDay::parse("2026-11-01").unwrap(), UtcDay::parse("2026-12-31").unwrap())
        .await
        .unwrap()
        .try_into()
        .unwrap();
    bench.reporter.books.faults.meanwhile("save", 1, async move {
        let mut book = store.book(&user("ada"), &key).await.unwrap();
        assert_eq!(store.save(&user("ada"), &key, &mut book).await.unwrap(), Commit::Done);
    });
    assert_eq!(bench.run().await.errors, Vec::<String>::new());
    assert!(bench.book().await.get("rejected").is_none());
    bench.world.clock.advance_ms(60_000);
    assert_eq!(bench.run().await.rejected, 1);
    assert_eq!(bench.book().await["rejected"]["requests"], 1);
}

/// A report of the hour at which `thrown_away` begins.
fn unknown_fate(event_name: &str, quantity: u64) -> Intent {
    Intent {
        identifier: "id-unknown".to_owned(),
        event_name: event_name.to_owned(),
        customer: customer("cus_Ada"),
        quantity,
        minute: at("2026-11-22T12:00:00Z"),
        first_attempt_at: at("2026-11-22T12:00:00Z"),
        confirmed_before: 0,
    }
}

/// Found by the simulator: what Stripe threw away was found of no meter of the day, for as long as the fate of another one's report
/// was not known.
#[tokio::test]
async fn a_report_of_unknown_fate_does_not_keep_the_days_other_meters_from_being_read_back() {
    for is_in_its_own_book in [false, true] {
        let bench = thrown_away().await;
        let (store, ada, day) = (bench.world.store(), user("ada"), UtcDay::parse("2026-11-22").unwrap());
        let key = store.book_keys(&ada, day, day).await.unwrap().remove(0);
        let billing = store.tally(&ada, &key).await.unwrap().unwrap().billing;
        let (its_key, mut book) = match is_in_its_own_book {
            true => (key.clone(), store.book(&ada, &key).await.unwrap()),
            false => ("2026-11-22/other".to_owned(), Book { billing, ..Book::default() }),
        };
        let tokens_out = MeterId::new("tokens_out").unwrap();
        let entry = book.meters.entry(tokens_out.clone()).or_default();
        // More than it was counted, and waits with it.
        entry.reported = entry.reported.saturating_sub(20);
        entry.intent = Some(unknown_fate("tokens_out", 7));
        book.undecidable.insert(tokens_out);
        store.save(&ada, &its_key, &mut book).await.unwrap();
        // It cannot be sent again, and its minute does not tell.
        bench.world.clock.set("2026-11-23T08:20:00Z");
        let run = bench.run().await;
        assert_eq!((run.rejected, run.checked, run.overdue), (1, 2, u64::from(is_in_its_own_book)), "{run:?}");
        let book = store.book(&ada, &key).await.unwrap();
        let suspects: Vec<_> = book.suspects.iter().map(MeterId::as_str).collect();
        assert_eq!(suspects, ["tokens_out"], "it is still to be looked at");
        assert_eq!(book.checked.keys().map(MeterId::as_str).collect::<Vec<_>>(), ["requests", "tokens_in"]);
        // Each whole run comes to what waits for a person, since the alarm counts it.
        let soonest = bench.world.clock.now().plus_secs(if is_in_its_own_book { 0 } else { 3_600 });
        assert_eq!(book.due_at, Some(soonest));
        // It asks Stripe for the others again a day later, and for 35 days at most.
        let asked = bench.world.meters.faults.calls("total");
        for _ in 0..3 {
            bench.world.clock.advance_ms(3_600_000);
            bench.run().await;
        }
        assert_eq!(bench.world.meters.faults.calls("total"), asked);
        bench.world.clock.advance_ms(DAY_SECS * 1000);
        assert_eq!(bench.run().await.checked, 2);
        bench.world.clock.set("2026-12-28T00:00:00Z");
        bench.run().await;
        let checked = store.book(&ada, &key).await.unwrap().checked;
        bench.world.clock.advance_ms(2 * DAY_SECS * 1000);
        bench.run().await;
        assert_eq!(store.book(&ada, &key).await.unwrap().checked, checked);
    }
}

#[tokio::test]
async fn a_meter_that_could_not_be_asked_for_stays_suspect_in_its_book() {
    let bench = thrown_away().await;
    bench.world.clock.advance_ms(5 * DAY_SECS * 1000);
    bench.world.meters.faults.at("total", 1, Fault::LoseRequest);
    let run = bench.run().await;
    assert_eq!((run.errors.len(), run.rejected), (1, 0), "{run:?}");
    assert_eq!(bench.world.store().rejections().await.unwrap(), None, "no run has to look at everything for it");
    let day = UtcDay::parse("2026-11-22").unwrap();
    let books = || async { bench.world.store().books(&user("ada"), day, day).await.unwrap() };
    assert_eq!(books().await.values().next().unwrap().suspects.len(), 3);
    bench.world.clock.advance_ms(3_600_000);
    assert_eq!(bench.run().await.rejected, 1);
    assert!(books().await.values().all(|book| book.suspects.is_empty()), "stored so, too");
}

/// Stripe promises no time within which its summaries are whole.
#[tokio::test]
async fn what_was_rejected_is_looked_at_once_more_a_day_later_and_taken_back_if_it_was_only_late() {
    let bench = thrown_away().await;
    bench.world.clock.advance_ms(3_600_000);
    assert_eq!((bench.run().await.rejected, bench.book().await["rejected"]["requests"].clone()), (1, json!(1)));
    bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), 1);
    bench.world.clock.advance_ms(60_000);
    bench.run().await;
    bench.world.clock.advance_ms(DAY_SECS * 1000);
    assert_eq!(bench.run().await.checked, 3);
    let day = UtcDay::parse("2026-11-22").unwrap();
    let book = bench.world.store().books(&user("ada"), day, day).await.unwrap().into_values().next().unwrap();
    assert_eq!(book.totals(&MeterId::new("requests").unwrap()), BookTotals { reported: 3, ..BookTotals::default() });
    assert_eq!(book.due_at, None);
}

#[tokio::test]
async fn what_arrived_of_a_report_of_unknown_fate_is_not_taken_for_what_was_thrown_away() {
    let bench = thrown_away().await;
    bench.world.clock.advance_ms(3_600_000);
    assert_eq!(bench.run().await.rejected, 1);
    let (store, ada) = (bench.world.store(), user("ada"));
    let day = UtcDay::parse("2026-11-22").unwrap();
    let key = store.book_keys(&ada, day, day).await.unwrap().remove(0);
    let mut book = store.book(&ada, &key).await.unwrap();
    let requests = MeterId::new("requests").unwrap();
    book.meters.get_mut(&requests).unwrap().intent = Some(unknown_fate("requests", 5));
    store.save(&ada, &key, &mut book).await.unwrap();
    bench.world.meters.stray("requests", at("2026-11-22T13:00:00Z"), 5);
    let order = Order::Replay { user_id: ada.clone(), tally_key: None };
    let refused = bench.reporter.run(bench.world.clock.now(), Some(&order), &invocation(&bench.world, "inv")).await;
    assert!(refused.unwrap_err().to_string().contains("try again"));
    assert_eq!(store.book(&ada, &key).await.unwrap(), book);
}

#[tokio::test]
async fn after_a_restore_nothing_is_reported_until_stripe_has_what_the_books_say() {
    let bench = bench().await;
    bench.run().await;
    count(&bench.world, "more", &[call("ada", "req_4")]).await;
    let backup = bench.world.backup("books").await;
    bench.run().await;
    assert_eq!(bench.metered(), [4, 4 * 812, 4 * 240]);
    // The books forget the last report; sent again under a new identifier it would be billed twice.
    bench.world.restore("books", backup).await;
    let run = bench.run().await;
    assert!(run.held && run.delivered == 0, "{run:?}");
    bench.world.clock.advance_ms(3_599_000);
    assert_eq!((bench.run().await.held, bench.world.meters.faults.calls("total")), (true, 0), "its summaries may be behind");
    bench.world.clock.advance_ms(1_000);
    for _ in 0..2 {
        let run = bench.run().await;
        assert_eq!((run.held, run.differences, run.delivered), (true, 3, 0), "{run:?}");
    }
    // A person takes what Stripe has for what was reported.
    let run = bench.order(Some(Order::Adopt)).await;
    assert_eq!((run.held, run.delivered), (false, 0), "{run:?}");
    count(&bench.world, "later", &[call("ada", "req_5")]).await;
    bench.run().await;
    assert_eq!(bench.metered(), [5, 5 * 812, 5 * 240]);
    // A restore that lost nothing is over by itself.
    let backup = bench.world.backup("tallies").await;
    bench.world.restore("tallies", backup).await;
    assert!(bench.run().await.held);
    bench.world.clock.advance_ms(3_600_000);
    assert!(!bench.run().await.held);
    count(&bench.world, "last", &[call("ada", "req_6")]).await;
    assert_eq!(bench.run().await.delivered, 3);
}

#[tokio::test]
async fn a_restore_that_lost_a_carried_book_is_noticed_and_nothing_is_billed_twice() {
    let bench = bench().await;
    let backup = bench.world.backup("books").await;
    bench.run().await;
    bench.world.clock.set("2026-12-10T12:00:30Z");
    count(&bench.world, "late", &[call("ada", "req_late")]).await;
    let run = bench.run().await;
    assert_eq!((run.carried, bench.metered()), (3, [4, 4 * 812, 4 * 240]));
    bench.world.restore("books", backup).await;
    bench.run().await;
    bench.world.clock.advance_ms(3_600_000);
    let run = bench.run().await;
    assert_eq!((run.held, run.differences), (true, 3));
    assert!(!bench.order(Some(Order::Adopt)).await.held);
    for _ in 0..2 {
        bench.world.clock.advance_ms(3_600_000);
        bench.run().await;
    }
    assert_eq!(bench.metered(), [4, 4 * 812, 4 * 240]);
    count(&bench.world, "new", &[call_at_now(&bench.world, "req_new")]).await;
    bench.run().await;
    assert_eq!(bench.metered(), [5, 5 * 812, 5 * 240]);
}

/// Ada's period is renewed in the middle of 10 December, and each part of that day has a book.
async fn renewal_day() -> Bench {
    let bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T12:00:00Z")).await;
    bench.run().await;
    bench.world.clock.set("2026-12-10T12:30:30Z");
    let early = |id: &str| with(call("ada", id), "timestamp", "2026-12-10T08:00:00Z");
    count(&bench.world, "early", &[early("req_early_1"), early("req_early_2")]).await;
    count(&bench.world, "late", &[call_at_now(&bench.world, "req_late")]).await;
    bench
}

#[tokio::test]
async fn a_restore_of_a_day_with_two_books_is_adopted_whatever_stripe_has() {
    // Stripe has both books' reports, one of them, or less than either.
    for thrown_away in [0, -1, -3] {
        let bench = renewal_day().await;
        let backup = bench.world.backup("books").await;
        bench.run().await;
        assert_eq!(bench.metered(), [6, 6 * 812, 6 * 240]);
        bench.world.meters.stray("requests", at("2026-12-10T11:59:00Z"), thrown_away.max(-2));
        bench.world.meters.stray("requests", at("2026-12-10T12:30:00Z"), thrown_away.min(-2) + 2);
        bench.world.restore("books", backup).await;
        bench.run().await;
        bench.world.clock.advance_ms(3_600_000);
        assert!(!bench.order(Some(Order::Adopt)).await.held, "{thrown_away}");
        bench.world.clock.advance_ms(60_000);
        bench.run().await;
        let metered = bench.metered();
        assert_eq!(metered[1..], [6 * 812, 6 * 240], "{thrown_away}");
        assert!(
            metered[0] <= 6 + thrown_away.unsigned_abs(),
            "{thrown_away}: what it threw away is missing, no more: {metered:?}"
        );
        let requests = MeterId::new("requests").unwrap();
        let days = (at("2026-11-01T00:00:00Z").day(), at("2026-12-31T00:00:00Z").day());
        let books = bench.world.store().books(&user("ada"), days.0, days.1).await.unwrap();
        let reported: u64 = books.values().map(|book| book.totals(&requests).reported).sum();
        let has = bench.world.meters.total("requests", &customer("cus_Ada"), days.0.start(), days.1.end()).await.unwrap();
        assert_eq!(reported, has, "{thrown_away}");
        assert!(reported <= 6, "{thrown_away}");
    }
}

#[tokio::test]
async fn an_overdue_report_of_a_renewal_day_is_decided_by_its_own_minute() {
    let bench = renewal_day().await;
    bench.world.meters.faults.always("send", Fault::LoseReply);
    bench.run().await;
    bench.world.meters.faults.clear();
    bench.world.meters.forget_identifiers();
    bench.world.clock.advance_ms(21 * 3_600_000);
    for _ in 0..2 {
        bench.run().await;
    }
    assert_eq!((bench.metered(), bench.run().await.overdue), ([6, 6 * 812, 6 * 240], 0));
}

#[tokio::test]
async fn a_report_of_unknown_fate_is_not_resent_into_a_period_that_closed_meanwhile() {
    for fault in [Fault::LoseRequest, Fault::LoseReply] {
        let bench = bench().await;
        bench.run().await;
        bench.world.clock.set("2026-12-09T23:50:00Z");
        count(&bench.world, "last", &[call_at_now(&bench.world, "req_last")]).await;
        bench.world.meters.faults.always("send", fault);
        bench.run().await;
        bench.world.clock.set("2026-12-10T00:54:00Z");
        bench.run().await;
        let attempts = bench.world.meters.attempts().len();
        bench.world.meters.faults.clear();
        // Five minutes before its invoice is final nothing more is sent into that period.
        bench.world.clock.set("2026-12-10T00:55:00Z");
        let run = bench.run().await;
        assert_eq!((run.overdue, bench.world.meters.attempts().len()), (3, attempts), "{fault:?}");
        bench.world.clock.set("2026-12-10T01:54:00Z");
        let run = bench.run().await;
        let carried = if fault == Fault::LoseRequest { 3 } else { 0 };
        assert_eq!((run.carried, run.overdue, bench.metered()), (carried, 0, [4, 4 * 812, 4 * 240]), "{fault:?}");
        let last = bench.world.meters.taken().pop().unwrap().minute;
        assert_eq!(last >= at("2026-12-10T00:00:00Z"), fault == Fault::LoseRequest, "it is billed where it can be");
    }
}

#[tokio::test]
async fn what_stripe_threw_away_of_a_user_who_keeps_calling_is_rejected_in_the_end() {
    let bench = thrown_away().await;
    for hour in 13..24 {
        bench.world.clock.set(&format!("2026-11-22T{hour}:30:00Z"));
        count(&bench.world, &format!("hour_{hour}"), &[call_at_now(&bench.world, &format!("req_{hour}"))]).await;
        let run = bench.run().await;
        assert_eq!((run.delivered, run.rejected, run.differences), (3, 0, 0), "{hour}: {run:?}");
    }
    bench.world.clock.set("2026-11-23T02:00:00Z");
    let mut rejected = 0;
    for _ in 0..3 {
        let run = bench.run().await;
        rejected += run.rejected;
        assert_eq!(run.differences, 0, "{run:?}");
        bench.world.clock.advance_ms(3_600_000);
    }
    assert_eq!(rejected, 1);
}

#[tokio::test]
async fn stripes_words_that_do_not_end_are_followed_up_all_the_same() {
    let bench = thrown_away().await;
    let mut rejected = 0;
    for _ in 0..6 {
        bench.world.clock.advance_ms(900_000);
        bench.world.store().note_meter_error(bench.world.clock.now()).await.unwrap();
        rejected += bench.run().await.rejected;
    }
    assert_eq!(rejected, 1);
}

#[tokio::test]
async fn what_was_late_rather_than_thrown_away_is_not_replayed() {
    for looked_at_meanwhile in [false, true] {
        let bench = thrown_away().await;
        bench.world.clock.advance_ms(3_600_000);
        assert_eq!(bench.run().await.rejected, 1);
        // Stripe's summary catches up.
        bench.world.meters.stray("requests", at("2026-11-22T12:00:00Z"), 1);
        if looked_at_meanwhile {
            bench.world.clock.advance_ms(DAY_SECS * 1000);
            assert_eq!(bench.run().await.differences, 0);
        }
        let run = bench.order(Some(Order::Replay { user_id: user("ada"), tally_key: None })).await;
        assert_eq!((run.replayed, bench.metered()), (0, THREE_CALLS));
        let book: Book = serde_json::from_value(bench.book().await).unwrap();
        let totals = book.totals(&MeterId::new("requests").unwrap());
        assert_eq!(totals, BookTotals { reported: 3, ..BookTotals::default() }, "{looked_at_meanwhile}");
    }
}

#[tokio::test]
async fn one_tally_can_be_replayed_alone() {
    let bench = bench().await;
    let refused = |_| bench.world.meters.refuse_next(archived_meter());
    (0..3).for_each(refused);
    bench.run().await;
    bench.world.clock.set("2026-11-23T12:00:00Z");
    count(&bench.world, "next", &[call_at_now(&bench.world, "req_next")]).await;
    (0..3).for_each(refused);
    bench.run().await;
    let tally_key = bench.world.items("books").await[1]["book_key"].as_str().map(str::to_owned);
    let run = bench.order(Some(Order::Replay { user_id: user("ada"), tally_key })).await;
    assert_eq!((run.replayed, bench.metered()), (1, [1, 812, 240]));
}
