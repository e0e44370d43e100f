//! The reporter: what is counted reaches Stripe's meters exactly once, whatever breaks in between.

use std::cell::Cell;

use expect_test::expect;
use handlers::{Fault, Faulty, Meters, TestClock, WireFault, World, cancelled};
use reporter::{Reporter, Run};
use serde_json::json;
use tokentill::{
    domain::{price_list::PriceList, time::DAY_SECS},
    dynamodb::Store,
    ports::{Books, Clock, StripeError, Unavailable},
    records::isolated,
    schedule::ScheduledEvent,
};

use crate::{
    samples::{SCHEDULED, at, commit, subscriber, user},
    usage::{call, count, with},
};

type Function = Reporter<Faulty<Store>, Meters, Faulty<Store>, TestClock, Box<dyn Fn() -> String>>;

struct Bench {
    world: World,
    reporter: Function,
}

fn function(world: &World, name: &'static str) -> Function {
    let made = Cell::new(0);
    let identifiers = move || {
        made.set(made.get() + 1);
        format!("{name}-{}", made.get())
    };
    Reporter {
        books: world.store_of("reporter"),
        meters: world.meters.clone(),
        quarantine: world.store_of("reporter"),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        identifiers: Box::new(identifiers),
    }
}

/// A world in which ada is on the plan `pro`, and three of her calls are counted.
async fn bench() -> Bench {
    let world = World::start().await;
    commit(&world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    count(&world, "inv", &[call("ada", "req_1"), call("ada", "req_2"), call("ada", "req_3")]).await;
    let reporter = function(&world, "id");
    Bench { world, reporter }
}

impl Bench {
    async fn run(&self) -> Run {
        self.reporter.run(self.world.clock.now()).await.unwrap()
    }

    /// Runs as a fresh process would that a fault may end anywhere.
    async fn run_and_break(&self) -> Option<Result<Run, Unavailable>> {
        isolated(self.reporter.run(self.world.clock.now())).await.ok()
    }

    /// What Stripe's meters show for ada: requests, tokens in, tokens out.
    fn metered(&self) -> [u64; 3] {
        let totals = self.world.meters.totals("cus_Ada");
        ["requests", "tokens_in", "tokens_out"].map(|meter| totals.get(meter).copied().unwrap_or(0))
    }

    async fn settled_through(&self) -> String {
        let hour = self.world.store().settled_through().await.unwrap();
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
    let bench = bench().await;
    let event: ScheduledEvent = serde_json::from_str(SCHEDULED).unwrap();
    let moment = event.moment().unwrap();
    assert_eq!(moment, bench.world.clock.now());
    let run = bench.reporter.run(moment).await.unwrap();
    assert_eq!(run, Run { tallies: 1, delivered: 3, ..Run::default() });
    assert_eq!(bench.metered(), THREE_CALLS);
    assert_eq!(bench.run().await, Run { tallies: 1, ..Run::default() });
    assert_eq!(bench.world.meters.attempts().len(), 3);
    expect![[r#"
        {"book_key":"2026-11-22/6:billed/7:sub_Ada/10:1794268800/16:7fb1b4d849779f3c","meters":{"requests":{"confirmed_in_last_minute":3,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":3},"tokens_in":{"confirmed_in_last_minute":2436,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":2436},"tokens_out":{"confirmed_in_last_minute":720,"intent":null,"last_minute":1795348800,"quarantined":0,"reported":720}},"user_id":"ada","version":2}
        {"name":"reporter","settled_through":1795345200}"#]].assert_eq(&format!("{}\n{}", bench.book().await, bench.world.item("control").await));
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
const CALLS: [(&str, usize); 6] = [("save", 1), ("send", 1), ("send", 2), ("send", 3), ("save", 2), ("set_settled_through", 1)];

async fn broken_at(call: (&'static str, usize), fault: Fault, clean_runs_after_secs: i64) {
    let bench = bench().await;
    // With a checkpoint it need not look through the past 36 days.
    bench.world.store().set_settled_through(at("2026-11-22T10:00:00Z")).await.unwrap();
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
    for error in [not_available(), unauthorised, unreadable] {
        (0..3).for_each(|_| bench.world.meters.refuse_next(error.clone()));
        let run = bench.run().await;
        assert_eq!((run.delivered, run.pending, run.errors.len()), (0, 3, 1));
        let settled_through = bench.settled_through().await;
        assert!(settled_through.as_str() <= "2026-11-22T12:00:00Z", "its hour stays open: {settled_through}");
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
    for _ in 0..2 {
        let run = bench.run().await;
        assert_eq!((run.delivered, run.overdue), (0, 3), "{run:?}");
        bench.world.clock.advance_ms(DAY_SECS * 1000);
    }
    assert_eq!(bench.world.meters.attempts().len(), 6);
    assert_eq!(bench.settled_through().await, "2026-11-22T12:00:00Z", "it is not forgotten");
}

#[tokio::test]
async fn a_refused_report_is_quarantined_and_settled_and_the_others_are_not_held_up() {
    let bench = bench().await;
    bench.world.meters.refuse_next(StripeError::Refused {
        status: 400,
        code: "archived_meter".to_owned(),
        message: "This meter is archived".to_owned(),
        request_id: "req_1".to_owned(),
    });
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
async fn a_refused_report_whose_quarantine_fails_is_neither_lost_nor_kept_twice() {
    let bench = bench().await;
    let refused = StripeError::Refused {
        status: 400,
        code: "archived_meter".to_owned(),
        message: String::new(),
        request_id: "req_1".to_owned(),
    };
    for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashAfter] {
        bench.world.meters.refuse_next(refused.clone());
        bench.reporter.quarantine.faults.at("keep", 1, fault);
        let _ = bench.run_and_break().await;
    }
    bench.world.meters.refuse_next(refused);
    bench.run().await;
    assert_eq!(bench.world.items("quarantine").await.len(), 1);
    assert_eq!((bench.metered(), &bench.book().await["meters"]["requests"]["quarantined"]), ([0, 2_436, 720], &json!(3)));
}

#[tokio::test]
async fn a_reporter_that_loses_the_race_for_the_book_sends_nothing() {
    let bench = bench().await;
    let other = function(&bench.world, "other");
    let clock = bench.world.clock.clone();
    bench.reporter.books.faults.meanwhile("save", 1, async move {
        other.run(clock.now()).await.unwrap();
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
    let now = bench.world.clock.now();
    let runs = others.iter().map(|reporter| reporter.run(now));
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
async fn the_checkpoint_moves_only_past_hours_that_are_settled_and_never_back() {
    let bench = bench().await;
    assert_eq!(bench.settled_through().await, "-");
    bench.world.meters.faults.at("send", 1, Fault::LoseRequest);
    bench.world.clock.set("2026-11-22T15:10:00Z");
    bench.run().await;
    assert_eq!(bench.settled_through().await, "2026-11-22T12:00:00Z", "one meter of that hour is open");
    bench.run().await;
    assert_eq!(bench.settled_through().await, "2026-11-22T14:00:00Z", "the hour before stays open");
    assert_eq!(bench.reporter.run(at("2026-11-22T13:00:00Z")).await.unwrap(), Run::default());
    assert_eq!(bench.settled_through().await, "2026-11-22T14:00:00Z", "a late event does not move it back");
    bench.world.clock.set("2026-11-25T00:00:00Z");
    assert_eq!(bench.run().await.tallies, 0, "settled hours are not looked at again");
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
    let bench = bench().await;
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
