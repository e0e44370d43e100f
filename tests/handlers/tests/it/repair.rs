//! Repair: what Stripe never delivered is found and looked at, once, whatever breaks, and what keeps it from delivering is told.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use handlers::{Fault, Faulty, Lists, Queue, TestClock, World, event};
use serde_json::json;
use sweeper::{
    repair::{Invocation, Repair, Repaired, Settings},
    sweep,
};
use tokentill::{
    config::StripeMode,
    domain::{
        facts::{CustomerFacts, Status},
        hint::{Hint, SNAPSHOT_EVENTS},
        id::InvoiceId,
        notice::Payment,
        price_list::PriceList,
        repair::{Endpoint, InvoiceStanding, ListedInvoice, ListedSubscription},
    },
    dynamodb::Store,
    ports::{Accounts as _, Clock, EventList, Heard as _, Hints as _, PaymentFacts, StripeError, SweeperState as _},
};

use crate::{
    samples::{SCHEDULED, at, commit, customer, hint, overdue, parsed, sqs_event, subscriber, user},
    sync::function as sync,
};

/// Everything begins here.
const NOW: &str = "2026-11-22T12:00:00Z";
const SINCE: &str = "2026-11-10T00:00:00Z";
pub(crate) const URL: &str = "https://api.example.com/webhooks/stripe";

pub(crate) type Function = Repair<Lists, Faulty<Store>, Queue, TestClock>;

struct Bench {
    world: World,
    lists: Lists,
    repair: Function,
}

pub(crate) fn function(world: &World, lists: &Lists) -> Function {
    Repair {
        stripe: lists.clone(),
        stored: world.store_of("sweeper"),
        hints: world.queue.clone(),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        mode: StripeMode::Test,
        settings: Settings { webhook_url: URL.to_owned(), silence_hours: 48, compare_every_days: 1 },
    }
}

pub(crate) fn invocation(world: &World, id: &str) -> Invocation {
    let now_ms = world.clock.now_ms();
    Invocation { id: id.to_owned(), stop_at_ms: now_ms + 240_000, ends_at_ms: now_ms + 300_000 }
}

/// A world in which a first run has found nothing.
async fn bench() -> Bench {
    let world = World::start().await;
    let lists = Lists::new(URL);
    let repair = function(&world, &lists);
    let bench = Bench { world, lists, repair };
    bench.world.clock.set(NOW);
    assert_eq!(bench.run().await, Repaired::default());
    bench
}

impl Bench {
    async fn run(&self) -> Repaired {
        self.run_as(&format!("inv_{}", self.world.clock.now_ms())).await
    }

    async fn run_as(&self, id: &str) -> Repaired {
        self.repair.run(self.world.clock.now(), &invocation(&self.world, id)).await
    }

    async fn run_at(&self, moment: &str) -> Repaired {
        self.world.clock.set(moment);
        self.run().await
    }

    fn lost(&self, id: &str, created: &str) {
        self.lists.add_event(event(id, "invoice.paid", at(created), "cus_Ada"), true);
    }

    fn queued(&self) -> Vec<String> {
        self.world.queue.hints().iter().map(|hint| hint.event_id.to_string()).collect()
    }

    async fn memory(&self) -> tokentill::ports::SweeperMemory {
        self.world.store().sweeper_memory().await.unwrap()
    }
}

/// What Stripe lists of the only subscription of a customer.
pub(crate) fn listed(facts: &CustomerFacts) -> ListedSubscription {
    let subscription = facts.subscriptions[0].clone();
    let invoice = facts.open_invoices.first().map(|open| ListedInvoice {
        id: open.id.clone(),
        standing: if open.attempted { InvoiceStanding::Overdue } else { InvoiceStanding::Other },
    });
    let changed_at = subscription.ended_at.unwrap_or(subscription.created);
    ListedSubscription {
        customer: facts.customer.clone(),
        customer_deleted: facts.deleted,
        customer_user: facts.user_id.clone(),
        has_more_items: false,
        facts: subscription,
        invoice,
        changed_at,
    }
}

// ---- Undelivered events ----

#[tokio::test]
async fn an_event_that_was_not_delivered_becomes_the_hint_that_the_webhook_would_have_made() {
    let bench = bench().await;
    bench.lost("evt_1", "2026-11-22T12:01:00Z");
    let run = bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(run, Repaired { queued: 1, events: 1, ..Repaired::default() });
    let mut as_delivered = hint("evt_1", "invoice.paid", "2026-11-22T12:01:00Z", "in_evt_1", Some("cus_Ada"));
    as_delivered.invoice = Some(InvoiceId::new("in_evt_1").unwrap());
    as_delivered.swept = true;
    assert_eq!(bench.world.queue.hints(), [as_delivered]);
    // It is listed for 30 days; it is queued once.
    for hour in 14..18 {
        assert_eq!(bench.run_at(&format!("2026-11-22T{hour}:00:00Z")).await, Repaired::default());
    }
    assert_eq!(bench.queued(), ["evt_1"]);
}

#[tokio::test]
async fn the_first_run_of_all_looks_back_as_far_as_stripe_lists() {
    let world = World::start().await;
    let lists = Lists::new(URL);
    for (id, created) in [("evt_old", "2026-10-23T12:00:00Z"), ("evt_older", "2026-10-23T11:59:59Z")] {
        lists.add_event(event(id, "invoice.paid", at(created), "cus_Ada"), true);
    }
    let bench = Bench { repair: function(&world, &lists), world, lists };
    bench.run_at(NOW).await;
    assert_eq!(bench.queued(), ["evt_old"]);
}

#[tokio::test]
async fn what_is_younger_than_five_minutes_is_left_for_the_next_run_and_what_was_listed_late_is_found() {
    let bench = bench().await;
    bench.lost("evt_young", "2026-11-22T12:55:01Z");
    bench.lost("evt_old", "2026-11-22T12:55:00Z");
    bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(bench.queued(), ["evt_old"]);
    // They were made before the checkpoint, and nobody could see them then.
    bench.lost("evt_late", "2026-11-22T11:55:00Z");
    bench.lost("evt_too_late", "2026-11-22T11:54:59Z");
    bench.run_at("2026-11-22T14:00:00Z").await;
    assert_eq!(bench.queued(), ["evt_old", "evt_late", "evt_young"], "an hour is the overlap");
}

#[tokio::test]
async fn what_was_processed_is_not_queued_and_what_was_seen_is_not_counted() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", SINCE);
    bench.world.stripe.set(facts.clone());
    bench.world.clock.set("2026-11-22T12:30:00Z");
    // Delivered to us, and not to another program's endpoint.
    let handled = hint("evt_handled", "invoice.paid", "2026-11-22T12:29:59Z", "in_1", Some("cus_Ada"));
    sync(&bench.world).hint(&handled, bench.world.clock.now_ms()).await.unwrap();
    bench.lost("evt_handled", "2026-11-22T12:29:59Z");
    // Skipped by `sync`, which leaves no mark, since the customer was fetched after it.
    bench.lost("evt_skipped", "2026-11-22T12:20:00Z");
    bench.lost("evt_missed", "2026-11-22T12:40:00Z");
    let run = bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(run, Repaired { queued: 2, events: 1, ..Repaired::default() });
    assert_eq!(bench.queued(), ["evt_missed", "evt_skipped"]);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_counted_and_stops_no_other() {
    let bench = bench().await;
    bench.lists.page_size(2);
    bench.lost("evt_1", "2026-11-22T12:01:00Z");
    let created = at("2026-11-22T12:02:00Z").as_secs();
    for strange in [json!({"type": 7, "id": "evt_strange"}), json!({"id": "", "type": "invoice.paid"})] {
        let mut body = strange;
        body["created"] = created.into();
        bench.lists.add_event(body, true);
    }
    bench.lost("evt_2", "2026-11-22T12:03:00Z");
    let run = bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!((run.queued, run.events, run.unreadable, run.failed), (2, 2, 2, 0));
    assert_eq!(bench.queued(), ["evt_2", "evt_1"]);
}

#[tokio::test]
async fn events_of_no_use_and_of_the_other_mode_are_passed_over_and_a_test_clocks_is_not() {
    let bench = bench().await;
    let created = at("2026-11-22T12:01:00Z");
    bench.lists.add_event(event("evt_useless", "invoice.sent", created, "cus_Ada"), true);
    let mut live = event("evt_live", "invoice.paid", created, "cus_Ada");
    live["livemode"] = true.into();
    bench.lists.add_event(live, true);
    let clock = json!({
        "id": "evt_clock", "object": "event", "type": "test_helpers.test_clock.ready", "created": created.as_secs(),
        "livemode": false, "data": {"object": {"id": "clock_1", "object": "test_helpers.test_clock"}},
    });
    bench.lists.add_event(clock, true);
    bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(bench.queued(), ["evt_clock"]);
    assert_eq!((bench.world.queue.hints()[0].object_id.as_str(), &bench.world.queue.hints()[0].customer), ("clock_1", &None));
}

/// What is lost in the story that is cut below: more than two pages.
fn story(bench: &Bench) -> BTreeSet<String> {
    bench.lists.page_size(3);
    (1..=7)
        .map(|n| {
            bench.lost(&format!("evt_{n}"), &format!("2026-11-22T12:{:02}:00Z", n * 5));
            format!("evt_{n}")
        })
        .collect()
}

/// Runs once with a fault at a port's call; `None` if the run did not come so far. The function may end with it.
async fn run_with(bench: &Bench, call: &'static str, nth: usize, fault: Fault) -> Option<Repaired> {
    use futures_util::FutureExt as _;
    let faults = match call {
        "events" | "all_subscriptions" | "endpoints" => &bench.lists.faults,
        "send" => &bench.world.queue.faults,
        _ => &bench.repair.stored.faults,
    };
    let before = faults.calls(call);
    faults.at(call, nth, fault);
    let run = std::panic::AssertUnwindSafe(bench.run()).catch_unwind().await.unwrap_or_default();
    faults.clear();
    (faults.calls(call) >= before + nth).then_some(run)
}

const FAULTS: [Fault; 4] = [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter];
const CALLS: [&str; 10] = [
    "sweeper_memory",
    "remember_sweep",
    "endpoints",
    "heard_at",
    "events",
    "processed",
    "customers",
    "accounts",
    "send",
    "all_subscriptions",
];

#[tokio::test]
async fn a_run_cut_at_any_point_passes_no_event_over_and_the_next_one_queues_the_rest_once() {
    let mut cut = 0;
    for call in CALLS {
        for fault in FAULTS {
            for nth in 1.. {
                let bench = bench().await;
                let all = story(&bench);
                bench.world.clock.set("2026-11-22T13:00:00Z");
                if run_with(&bench, call, nth, fault).await.is_none() {
                    break;
                }
                cut += 1;
                let (memory, queued) = (bench.memory().await, bench.queued());
                let is_queued = |n: i64| queued.contains(&format!("evt_{n}"));
                let passed = |n: i64| {
                    let created = at(NOW).plus_secs(n * 300);
                    // Passed by the checkpoint, or by the window, which goes back in time.
                    let after = memory.events_window.as_ref().and_then(|window| window.after.as_deref());
                    memory.events_through.is_some_and(|through| created <= through && through > at(NOW))
                        || after.is_some_and(|after| after <= format!("evt_{n}").as_str())
                };
                assert!((1..=7).all(|n| !passed(n) || is_queued(n)), "{call} {nth} {fault:?}: {memory:?} {queued:?}");
                let run = bench.run_at("2026-11-22T14:00:00Z").await;
                assert_eq!((run.failed, run.others_at_work), (0, false), "{call} {nth} {fault:?}");
                let queued = bench.queued();
                assert_eq!(queued.iter().cloned().collect::<BTreeSet<_>>(), all, "{call} {nth} {fault:?}");
                assert_eq!(queued.len(), all.len(), "each once");
            }
        }
    }
    assert!(cut > 100, "{cut}");
}

#[tokio::test]
async fn a_write_whose_reply_was_lost_is_known_again() {
    let bench = bench().await;
    story(&bench);
    bench.world.clock.set("2026-11-22T13:00:00Z");
    bench.world.wire.at("UpdateItem", 1, handlers::WireFault::LoseReply);
    bench.world.wire.at("UpdateItem", 4, handlers::WireFault::LoseReply);
    let run = bench.run().await;
    assert_eq!((run.failed, run.others_at_work, run.events), (0, false, 7));
}

#[tokio::test]
async fn sweepers_side_by_side_queue_each_event_once_and_ask_stripe_once() {
    let bench = bench().await;
    let all = story(&bench);
    bench.world.clock.set("2026-11-22T13:00:00Z");
    let others =
        [function(&bench.world, &bench.lists), function(&bench.world, &bench.lists), function(&bench.world, &bench.lists)];
    let before = bench.lists.windows().len();
    let invocations: Vec<_> = (0..3).map(|n| invocation(&bench.world, &format!("inv_{n}"))).collect();
    let now = bench.world.clock.now();
    let runs = others.iter().zip(&invocations).map(|(repair, invocation)| repair.run(now, invocation));
    let runs = futures_util::future::join_all(runs).await;
    assert_eq!(runs.iter().filter(|run| run.others_at_work).count(), 2, "{runs:?}");
    assert_eq!(bench.lists.windows().len() - before, 3, "three pages");
    assert_eq!(bench.queued().into_iter().collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn a_sweeper_that_was_taken_for_dead_writes_no_more() {
    let bench = bench().await;
    let all = story(&bench);
    bench.world.clock.set("2026-11-22T13:00:00Z");
    let (other, clock) = (function(&bench.world, &bench.lists), bench.world.clock.clone());
    let later = Invocation { id: "inv_other".to_owned(), stop_at_ms: i64::MAX, ends_at_ms: i64::MAX };
    // What is asserted in there would be taken for a part that panics.
    let runs = Rc::new(RefCell::new(Vec::new()));
    let seen = runs.clone();
    bench.lists.faults.meanwhile("events", 2, async move {
        clock.advance_ms(299_999);
        let early = other.run(clock.now(), &later).await;
        clock.advance_ms(1);
        let late = other.run(clock.now(), &later).await;
        seen.borrow_mut().extend([early, late]);
    });
    let run = bench.run_as("inv_first").await;
    assert!(run.others_at_work, "{run:?}");
    let others: Vec<_> = runs.borrow().iter().map(|run| (run.others_at_work, run.failed)).collect();
    assert_eq!(others, [(true, 0), (false, 0)], "the first's time is over only at its end");
    let memory = bench.memory().await;
    assert_eq!((memory.owner.as_str(), memory.events_through), ("inv_other", Some(at("2026-11-22T12:55:00Z"))));
    assert_eq!(bench.queued().into_iter().collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn a_late_run_moves_nothing_back_and_one_ahead_of_the_clock_passes_nothing() {
    let bench = bench().await;
    bench.run_at("2026-11-22T13:00:00Z").await;
    let through = bench.memory().await.events_through;
    bench.repair.run(at("2026-11-22T12:30:00Z"), &invocation(&bench.world, "inv_late")).await;
    assert_eq!(bench.memory().await.events_through, through);
    bench.repair.run(at("2027-01-01T00:00:00Z"), &invocation(&bench.world, "inv_ahead")).await;
    assert_eq!(bench.memory().await.events_through, through, "13:00 less five minutes");
    bench.lost("evt_1", "2026-11-22T13:30:00Z");
    // Days later.
    bench.run_at("2026-11-29T00:00:00Z").await;
    assert_eq!(bench.queued(), ["evt_1"]);
}

#[tokio::test]
async fn what_there_is_no_time_for_is_done_by_the_next_run() {
    let bench = bench().await;
    let all = story(&bench);
    bench.world.clock.set("2026-11-22T13:00:00Z");
    let clock = bench.world.clock.clone();
    bench.lists.faults.meanwhile("events", 2, async move { clock.advance_ms(240_000) });
    let run = bench.run().await;
    assert_eq!((run.events, run.failed), (6, 0), "two pages");
    assert_eq!(bench.memory().await.events_through, Some(at("2026-11-22T11:55:00Z")));
    // What came meanwhile belongs to the next window.
    bench.lost("evt_8", "2026-11-22T13:01:00Z");
    bench.run_at("2026-11-22T14:00:00Z").await;
    assert_eq!(bench.queued().into_iter().collect::<BTreeSet<_>>(), all);
    bench.run_at("2026-11-22T15:00:00Z").await;
    assert_eq!(bench.queued().last().unwrap(), "evt_8");
}

#[tokio::test]
async fn a_page_that_cannot_be_followed_since_stripe_forgot_its_last_event_is_begun_anew() {
    let bench = bench().await;
    let all = story(&bench);
    bench.world.clock.set("2026-11-22T13:00:00Z");
    let lists = bench.lists.clone();
    bench.lists.faults.meanwhile("events", 2, async move { lists.remove_event("evt_5") });
    let run = bench.run().await;
    assert_eq!((run.failed, bench.queued().len()), (0, 7));
    assert_eq!(bench.queued().into_iter().collect::<BTreeSet<_>>(), all);
}

#[tokio::test]
async fn lost_events_of_a_failure_end_in_the_account_that_their_delivery_would_have_made() {
    let mut accounts = Vec::new();
    for is_delivered in [true, false] {
        let bench = bench().await;
        let facts = subscriber("cus_Ada", "ada", SINCE);
        commit(&bench.world, "ada", &facts).await;
        bench.world.stripe.set(overdue(facts, "in_1", "2026-11-22T12:10:00Z"));
        let mut failed = event("evt_failed", "invoice.payment_failed", at("2026-11-22T12:11:00Z"), "cus_Ada");
        failed["data"]["object"]["id"] = "in_1".into();
        let mut again = event("evt_again", "invoice.payment_failed", at("2026-11-22T12:31:00Z"), "cus_Ada");
        again["data"]["object"]["id"] = "in_1".into();
        for body in [failed, again] {
            bench.lists.add_event(body.clone(), !is_delivered);
            if is_delivered {
                let hint = tokentill::domain::envelope::read(body.to_string().as_bytes(), at(NOW), false).unwrap();
                bench.world.queue.send(&hint, hint.event_id.as_str()).await.unwrap();
            }
        }
        bench.run_at("2026-11-22T13:00:00Z").await;
        for hint in bench.world.queue.hints() {
            sync(&bench.world).hint(&hint, bench.world.clock.now_ms()).await.unwrap();
        }
        let account = bench.world.store().account(&user("ada")).await.unwrap().unwrap();
        assert_eq!(account.overdue[&InvoiceId::new("in_1").unwrap()].since, at("2026-11-22T12:11:00Z"));
        accounts.push(account);
    }
    assert_eq!(accounts[0], accounts[1]);
}

// ---- Parts ----

#[tokio::test]
async fn a_part_that_fails_stops_no_other_and_what_is_due_comes_first() {
    for (call, done) in [("endpoints", (1, 1)), ("events", (0, 1)), ("all_subscriptions", (1, 0))] {
        for fault in [Fault::LoseRequest, Fault::CrashBefore] {
            let bench = bench().await;
            bench.lost("evt_1", "2026-11-22T12:01:00Z");
            bench.lists.add_subscription(Ok(listed(&subscriber("cus_Bob", "bob", SINCE))));
            bench.world.clock.set("2026-11-15T12:00:00Z");
            let facts = subscriber("cus_Ada", "ada", SINCE);
            commit(&bench.world, "ada", &overdue(facts, "in_1", "2026-11-15T11:00:00Z")).await;
            bench.world.clock.set("2026-11-23T00:00:00Z");
            bench.lists.faults.always(call, fault);
            let sweeper = crate::sweeper::function(&bench.world);
            let now = bench.world.clock.now();
            let (run, repaired) = sweep(&sweeper, &bench.repair, now, &invocation(&bench.world, "inv")).await.unwrap();
            assert_eq!((run.due, run.notices), (1, 1));
            assert_eq!((repaired.failed, (repaired.events, repaired.differences)), (1, done), "{call} {fault:?}");
        }
    }
    for fault in [Fault::LoseRequest, Fault::CrashBefore] {
        let bench = bench().await;
        bench.lost("evt_1", "2026-11-22T12:01:00Z");
        bench.world.clock.set("2026-11-22T13:00:00Z");
        let sweeper = crate::sweeper::function(&bench.world);
        sweeper.accounts.faults.always("due", fault);
        let now = bench.world.clock.now();
        assert!(sweep(&sweeper, &bench.repair, now, &invocation(&bench.world, "inv")).await.is_err());
        assert_eq!(bench.queued(), ["evt_1"], "the repairs are done all the same");
    }
}

#[tokio::test]
async fn what_a_newer_version_keeps_in_the_sweepers_memory_survives() {
    let bench = bench().await;
    bench.world.set_attribute("control", ("name", "sweeper"), "note_of_the_future", "kept").await;
    bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(bench.world.item("control").await["note_of_the_future"], "kept");
}

// ---- The endpoint ----

#[tokio::test]
async fn a_bad_endpoint_is_told_when_it_comes_up_when_it_changes_and_once_a_day() {
    let bench = bench().await;
    let good = bench.lists.endpoints_now();
    bench.lists.set_endpoints(Ok(vec![Endpoint { enabled: false, ..good[0].clone() }]));
    for (moment, told) in [
        ("2026-11-22T13:00:00Z", 1),
        ("2026-11-22T14:00:00Z", 0),
        ("2026-11-23T12:59:59Z", 0),
        ("2026-11-23T13:00:00Z", 1),
        ("2026-11-23T14:00:00Z", 0),
    ] {
        assert_eq!(bench.run_at(moment).await.told, told, "{moment}");
    }
    bench.lists.set_endpoints(Ok(vec![]));
    assert_eq!(bench.run_at("2026-11-23T15:00:00Z").await.told, 1, "another problem");
    bench.lists.set_endpoints(Ok(good.clone()));
    assert_eq!(bench.run_at("2026-11-23T16:00:00Z").await.told, 0);
    bench.lists.set_endpoints(Ok(vec![]));
    assert_eq!(bench.run_at("2026-11-23T17:00:00Z").await.told, 1, "once more");
    let calls = ["set_enabled", "update_endpoint"].map(|call| bench.lists.faults.calls(call));
    assert_eq!(calls, [0; 2], "nothing is switched on by itself");
}

#[tokio::test]
async fn a_key_that_may_not_list_endpoints_is_told_of_in_the_log_and_is_no_failure() {
    let bench = bench().await;
    let refused = |status| StripeError::Unauthorised { status, code: "permission".to_owned(), request_id: "req_1".to_owned() };
    bench.lists.set_endpoints(Err(refused(403)));
    assert_eq!(bench.run_at("2026-11-22T13:00:00Z").await, Repaired::default());
    let told = bench.memory().await.endpoint_told.unwrap();
    assert_eq!(told.1, at("2026-11-22T13:00:00Z"));
    assert_eq!(bench.run_at("2026-11-24T13:00:00Z").await, Repaired::default());
    assert_eq!(bench.memory().await.endpoint_told.unwrap(), told, "once");
    // A key that is none is a failure.
    bench.lists.set_endpoints(Err(refused(401)));
    assert_eq!(bench.run_at("2026-11-24T14:00:00Z").await.failed, 1);
}

#[tokio::test]
async fn events_that_no_endpoint_asked_for_are_found_until_one_does_again() {
    let bench = bench().await;
    let good = bench.lists.endpoints_now();
    // Stripe has nobody to deliver these to, and so does not list them as undelivered.
    let unasked = |id: &str, kind: &str, created: &str| bench.lists.add_event(event(id, kind, at(created), "cus_Ada"), false);
    unasked("evt_first", "invoice.paid", "2026-11-22T12:30:00Z");
    unasked("evt_other", SNAPSHOT_EVENTS[25], "2026-11-22T12:31:00Z");
    bench.lists.set_endpoints(Ok(vec![Endpoint { enabled: false, ..good[0].clone() }]));
    assert_eq!(bench.run_at("2026-11-22T13:00:00Z").await.queued, 2);
    unasked("evt_between", "invoice.paid", "2026-11-22T13:57:00Z");
    bench.lists.set_endpoints(Ok(good));
    assert_eq!(bench.run_at("2026-11-22T14:00:00Z").await.queued, 0, "it is too young");
    assert_eq!(bench.run_at("2026-11-22T15:00:00Z").await.queued, 1);
    let of_undelivered = |list: EventList| list == EventList::Undelivered;
    let before = bench.lists.windows().len();
    bench.run_at("2026-11-22T16:00:00Z").await;
    assert!(
        bench.lists.windows()[before..].iter().all(|window| of_undelivered(window.list)),
        "what was asked for since is listed"
    );
    assert_eq!(bench.queued(), ["evt_first", "evt_other", "evt_between"]);
}

#[tokio::test]
async fn events_that_nobody_asked_for_while_nobody_could_look_at_the_endpoint_are_found() {
    let bench = bench().await;
    let good = bench.lists.endpoints_now();
    let unasked = |id: &str, created: &str| bench.lists.add_event(event(id, "invoice.paid", at(created), "cus_Ada"), false);
    bench.lists.faults.always("endpoints", Fault::LoseRequest);
    unasked("evt_early", "2026-11-22T12:10:00Z");
    for hour in 13..18 {
        assert_eq!(bench.run_at(&format!("2026-11-22T{hour}:00:00Z")).await.failed, 1);
    }
    assert_eq!(bench.memory().await.endpoint_good_at, Some(at(NOW)));
    bench.lists.faults.clear();
    bench.lists.set_endpoints(Ok(vec![Endpoint { enabled: false, ..good[0].clone() }]));
    assert_eq!(bench.run_at("2026-11-22T18:00:00Z").await.queued, 1);
    // Once all was listed, an hour is enough again.
    bench.run_at("2026-11-22T19:00:00Z").await;
    let from = bench.lists.windows().last().unwrap().from;
    assert_eq!(from, at("2026-11-22T16:55:00Z"));
    assert_eq!(bench.queued(), ["evt_early"]);
}

#[tokio::test]
async fn a_look_at_undelivered_events_that_was_cut_does_not_go_on_once_nobody_asks_for_events() {
    let bench = bench().await;
    let all = story(&bench);
    let good = bench.lists.endpoints_now();
    bench.lists.add_event(event("evt_unasked", "invoice.paid", at("2026-11-22T12:59:00Z"), "cus_Ada"), false);
    bench.world.clock.set("2026-11-22T13:10:00Z");
    let clock = bench.world.clock.clone();
    bench.lists.faults.meanwhile("events", 2, async move { clock.advance_ms(240_000) });
    bench.run().await;
    assert!(bench.memory().await.events_window.is_some());
    bench.lists.set_endpoints(Ok(vec![Endpoint { enabled: false, ..good[0].clone() }]));
    bench.run_at("2026-11-22T15:00:00Z").await;
    let queued: BTreeSet<_> = bench.queued().into_iter().collect();
    assert!(queued.contains("evt_unasked") && all.is_subset(&queued), "{queued:?}");
}

#[tokio::test]
async fn where_something_delivers_a_missing_endpoint_is_no_problem_until_that_is_long_ago() {
    let bench = bench().await;
    bench.lists.set_endpoints(Ok(vec![]));
    bench.world.store().note_heard(at("2026-11-22T12:30:00Z")).await.unwrap();
    assert_eq!(bench.run_at("2026-11-22T13:00:00Z").await.told, 0, "a destination of thin events delivers");
    let memory = bench.memory().await;
    assert_eq!((memory.events_unasked, memory.endpoint_good_at), (false, Some(at("2026-11-22T12:30:00Z"))));
    assert_eq!(bench.run_at("2026-11-24T12:29:59Z").await.told, 0);
    // What came after the last delivery is found.
    bench.lists.add_event(event("evt_1", "invoice.paid", at("2026-11-22T12:31:00Z"), "cus_Ada"), false);
    let run = bench.run_at("2026-11-24T12:30:00Z").await;
    assert_eq!((run.told, run.queued), (1, 1));
}

#[tokio::test]
async fn an_event_that_names_no_customer_is_queued_and_not_counted_as_missed() {
    let bench = bench().await;
    let mut guest = event("evt_guest", "charge.refunded", at("2026-11-22T12:01:00Z"), "cus_Ada");
    guest["data"]["object"]["customer"] = serde_json::Value::Null;
    bench.lists.add_event(guest, true);
    let run = bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!((run.queued, run.events), (1, 0));
}

#[tokio::test]
async fn an_endpoint_of_another_version_still_delivers() {
    let bench = bench().await;
    let good = bench.lists.endpoints_now();
    bench.lists.set_endpoints(Ok(vec![Endpoint { api_version: None, ..good[0].clone() }]));
    assert_eq!(bench.run_at("2026-11-22T13:00:00Z").await.told, 1);
    assert!(!bench.memory().await.events_unasked);
}

// ---- Silence ----

#[tokio::test]
async fn silence_is_told_once_a_day_while_subscriptions_are_live_and_ends_with_a_delivery() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", SINCE);
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.run_at("2026-11-25T12:00:00Z").await.told, 0, "nobody is subscribed, as far as the comparison knows");
    bench.lists.add_subscription(Ok(listed(&facts)));
    bench.run_at("2026-11-26T00:00:00Z").await;
    for (moment, told) in [("2026-11-26T01:00:00Z", 1), ("2026-11-26T02:00:00Z", 0), ("2026-11-27T01:00:00Z", 1)] {
        assert_eq!(bench.run_at(moment).await.told, told, "{moment}");
    }
    bench.world.store().note_heard(at("2026-11-27T01:30:00Z")).await.unwrap();
    for (moment, told) in [("2026-11-29T01:29:59Z", 0), ("2026-11-29T01:30:00Z", 1)] {
        assert_eq!(bench.run_at(moment).await.told, told, "{moment}");
    }
    let quiet = Repair {
        settings: Settings { silence_hours: 0, ..bench.repair.settings.clone() },
        ..function(&bench.world, &bench.lists)
    };
    bench.world.clock.set("2026-12-29T01:30:00Z");
    assert_eq!(quiet.run(bench.world.clock.now(), &invocation(&bench.world, "inv")).await.told, 0, "0 is never");
}

#[tokio::test]
async fn a_delivery_is_noted_at_most_every_ten_minutes_and_what_nobody_delivered_is_none() {
    let bench = bench().await;
    bench.world.stripe.set(subscriber("cus_Ada", "ada", SINCE));
    let function = sync(&bench.world);
    let deliver = async |hint: &Hint, sent: &str| {
        bench.world.clock.set(sent);
        let message = (Some(hint.event_id.as_str()), json!(hint).to_string(), at(sent).as_secs() * 1000, 1);
        assert!(function.handle(sqs_event(&[message]), i64::MAX).await.unwrap().batch_item_failures.is_empty());
        bench.world.store().heard_at().await.unwrap()
    };
    let paid = |id: &str| hint(id, "invoice.paid", NOW, "in_1", Some("cus_Ada"));
    let ours = Hint { kind: "tokentill.difference".to_owned(), ..paid("evt_ours") };
    for silent in [ours, Hint { replay: true, ..paid("evt_replay") }, Hint { swept: true, ..paid("evt_swept") }] {
        assert_eq!(deliver(&silent, "2026-11-22T13:00:00Z").await, None, "{silent:?}");
    }
    let other_mode = Hint { livemode: true, ..paid("evt_live") };
    assert_eq!(deliver(&other_mode, "2026-11-22T13:00:00Z").await, None);
    for (id, sent, noted) in [
        ("evt_1", "2026-11-22T13:00:00Z", "2026-11-22T13:00:00Z"),
        ("evt_2", "2026-11-22T13:09:59Z", "2026-11-22T13:00:00Z"),
        ("evt_3", "2026-11-22T13:10:00Z", "2026-11-22T13:10:00Z"),
        ("evt_4", "2026-11-22T13:15:00Z", "2026-11-22T13:10:00Z"),
    ] {
        assert_eq!(deliver(&paid(id), sent).await, Some(at(noted)), "{id}");
    }
    assert_eq!(function.meter_errors.faults.calls("note_heard"), 2);
    // Another instance is behind, and a store that fails fails no hint.
    bench.world.store().note_heard(at("2026-11-22T12:00:00Z")).await.unwrap();
    function.meter_errors.faults.always("note_heard", Fault::LoseRequest);
    assert_eq!(deliver(&paid("evt_5"), "2026-11-22T13:30:00Z").await, Some(at("2026-11-22T13:10:00Z")));
    function.meter_errors.faults.clear();
    assert_eq!(deliver(&paid("evt_6"), "2026-11-22T13:31:00Z").await, Some(at("2026-11-22T13:31:00Z")));
}

// ---- The comparison ----

/// Accounts and subscriptions of so many users, which agree.
async fn agreeing(bench: &Bench, users: usize) -> Vec<CustomerFacts> {
    let mut all = Vec::new();
    for n in 0..users {
        let facts = subscriber(&format!("cus_{n:03}"), &format!("user_{n:03}"), SINCE);
        commit(&bench.world, &format!("user_{n:03}"), &facts).await;
        bench.lists.add_subscription(Ok(listed(&facts)));
        bench.world.stripe.set(facts.clone());
        all.push(facts);
    }
    all
}

#[tokio::test]
async fn only_what_differs_is_queued_and_looking_at_it_makes_it_agree() {
    let bench = bench().await;
    let all = agreeing(&bench, 5).await;
    let now_cancelled = crate::samples::cancelled(all[2].clone(), "2026-11-22T13:00:00Z");
    bench.world.stripe.set(now_cancelled.clone());
    bench.lists.change_subscriptions(|subscriptions| subscriptions[2] = Ok(listed(&now_cancelled)));
    let unknown = subscriber("cus_New", "new", SINCE);
    bench.world.stripe.set(unknown.clone());
    bench.lists.add_subscription(Ok(listed(&unknown)));
    assert_eq!(bench.run_at("2026-11-22T23:59:59Z").await, Repaired::default(), "it was compared today");
    let run = bench.run_at("2026-11-23T00:00:00Z").await;
    assert_eq!(run, Repaired { compared: 6, differences: 2, ..Repaired::default() });
    let hints = bench.world.queue.hints();
    let shown: Vec<_> = hints.iter().map(|hint| (hint.kind.as_str(), hint.customer.clone().unwrap(), hint.replay)).collect();
    assert_eq!(shown, [("tokentill.difference", customer("cus_New"), true), ("tokentill.difference", customer("cus_002"), true)]);
    for hint in &hints {
        sync(&bench.world).hint(hint, bench.world.clock.now_ms()).await.unwrap();
    }
    let account = bench.world.store().account(&user("user_002")).await.unwrap().unwrap();
    assert_eq!(account.subscription.unwrap().status, Status::Canceled);
    assert_eq!(bench.memory().await.live_subscriptions, 5);
    assert_eq!(bench.run_at("2026-11-24T00:00:00Z").await, Repaired { compared: 6, ..Repaired::default() }, "all agree");
}

/// Whom a payment link's customer belongs to is told by its checkout session alone, which the list of subscriptions does not show.
#[tokio::test]
async fn a_customer_of_which_only_a_refund_was_heard_is_looked_at() {
    let bench = bench().await;
    agreeing(&bench, 1).await;
    let mut by_link = subscriber("cus_Link", "link", SINCE);
    by_link.checkout_users.extend(by_link.user_id.take());
    bench.world.stripe.set(by_link.clone());
    bench.lists.add_subscription(Ok(listed(&by_link)));
    let payment = Payment {
        charge_id: "ch_1".to_owned(),
        dispute_id: None,
        status: "refunded".to_owned(),
        amount_minor: 100,
        currency: "usd".to_owned(),
    };
    bench.world.stripe.set_payment("ch_1", PaymentFacts { customer: Some(customer("cus_Link")), payment: Some(payment) });
    let refund = hint("evt_refund", "charge.refunded", SINCE, "ch_1", Some("cus_Link"));
    let sync = sync(&bench.world);
    assert_eq!(sync.hint(&refund, 0).await, Ok(sync::Outcome::PaymentOfNobody { is_kept: true }));
    let run = bench.run_at("2026-11-23T00:00:00Z").await;
    assert_eq!(run, Repaired { compared: 2, differences: 1, ..Repaired::default() });
    let queued = bench.world.queue.hints();
    assert_eq!(queued[0].customer, Some(customer("cus_Link")));
    sync.hint(&queued[0], bench.world.clock.now_ms()).await.unwrap();
    assert!(bench.world.store().account(&user("link")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_comparison_is_made_on_every_so_many_days_and_a_missed_day_is_caught_up() {
    let bench = bench().await;
    agreeing(&bench, 1).await;
    let compared = async |moment: &str| bench.run_at(moment).await.compared;
    assert_eq!(compared("2026-11-23T05:00:00Z").await, 1);
    assert_eq!(compared("2026-11-23T23:00:00Z").await, 0);
    assert_eq!(compared("2026-11-26T17:00:00Z").await, 1);
    assert_eq!(compared("2026-11-27T00:00:00Z").await, 1);
    let weekly = Settings { compare_every_days: 7, ..bench.repair.settings.clone() };
    let weekly = Repair { settings: weekly, ..function(&bench.world, &bench.lists) };
    for (moment, expected) in [("2026-12-03T23:59:59Z", 0), ("2026-12-04T00:00:00Z", 1), ("2026-12-10T23:00:00Z", 0)] {
        bench.world.clock.set(moment);
        let run = weekly.run(bench.world.clock.now(), &invocation(&bench.world, moment)).await;
        assert_eq!(run.compared, expected, "{moment}");
    }
}

#[tokio::test]
async fn a_comparison_over_several_runs_misses_nothing_that_was_there_while_others_come_and_go() {
    let bench = bench().await;
    bench.lists.page_size(3);
    let all = agreeing(&bench, 10).await;
    for facts in &all {
        bench.world.stripe.set(crate::samples::cancelled(facts.clone(), "2026-11-22T13:00:00Z"));
    }
    bench.lists.change_subscriptions(|subscriptions| {
        for subscription in subscriptions.iter_mut().flatten() {
            subscription.facts.status = Status::Canceled;
        }
    });
    bench.world.clock.set("2026-11-23T00:00:00Z");
    let (clock, lists) = (bench.world.clock.clone(), bench.lists.clone());
    bench.lists.faults.meanwhile("all_subscriptions", 2, async move {
        clock.advance_ms(240_000);
        // A newer one, and one that goes before it was reached.
        lists.add_subscription(Ok(listed(&subscriber("cus_New", "new", "2026-11-23T00:00:00Z"))));
        lists.change_subscriptions(|subscriptions| drop(subscriptions.remove(0)));
    });
    let run = bench.run().await;
    assert_eq!((run.compared, run.differences), (6, 6));
    assert_eq!(bench.memory().await.compared_on, Some(at(NOW).day()), "it goes on");
    // The next day's run goes on with this one first, and the day after is compared by the one after it.
    let run = bench.run_at("2026-11-23T01:00:00Z").await;
    assert_eq!((run.compared, run.differences), (3, 3));
    assert_eq!(bench.memory().await.compared_on, Some(at("2026-11-23T00:00:00Z").day()));
    let looked_at: BTreeSet<_> = bench.world.queue.hints().iter().filter_map(|hint| hint.customer.clone()).collect();
    assert!(all[1..].iter().all(|facts| looked_at.contains(&facts.customer)));
}

#[tokio::test]
async fn a_comparison_whose_place_is_gone_begins_anew() {
    let bench = bench().await;
    bench.lists.page_size(2);
    agreeing(&bench, 5).await;
    bench.world.clock.set("2026-11-23T00:00:00Z");
    let lists = bench.lists.clone();
    bench.lists.faults.meanwhile("all_subscriptions", 2, async move {
        // The one after which the next page begins.
        lists.change_subscriptions(|subscriptions| drop(subscriptions.remove(3)));
    });
    let run = bench.run().await;
    assert_eq!((run.compared, run.failed), (2 + 4, 0));
    assert_eq!(bench.memory().await.live_subscriptions, 4, "each is counted once");
}

#[tokio::test]
async fn a_comparison_cut_at_any_point_is_ended_by_the_next_run() {
    let mut cut = 0;
    for call in ["sweeper_memory", "remember_sweep", "all_subscriptions", "customers", "accounts", "send"] {
        for fault in FAULTS {
            for nth in 1.. {
                let bench = bench().await;
                bench.lists.page_size(2);
                agreeing(&bench, 4).await;
                for n in 0..3 {
                    bench.lists.add_subscription(Ok(listed(&subscriber(&format!("cus_new_{n}"), "new", SINCE))));
                }
                bench.world.clock.set("2026-11-23T00:00:00Z");
                if run_with(&bench, call, nth, fault).await.is_none() {
                    break;
                }
                cut += 1;
                let run = bench.run_at("2026-11-23T01:00:00Z").await;
                assert_eq!((run.failed, run.others_at_work), (0, false), "{call} {nth} {fault:?}");
                let memory = bench.memory().await;
                assert_eq!((memory.compared_on, memory.live_subscriptions), (Some(at("2026-11-23T00:00:00Z").day()), 7));
                assert_eq!(bench.queued().len(), 3, "{call} {nth} {fault:?}: each once, and none missed");
            }
        }
    }
    assert!(cut > 50, "{cut}");
}

#[tokio::test]
async fn what_cannot_be_read_is_counted_and_the_rest_is_compared() {
    let bench = bench().await;
    agreeing(&bench, 3).await;
    bench.lists.add_subscription(Err("subscription sub_odd has no status".to_owned()));
    // An account of a newer version.
    bench.world.set_attribute("accounts", ("user_id", "user_001"), "segments", "of another kind").await;
    bench.lists.add_subscription(Ok(listed(&subscriber("cus_New", "new", SINCE))));
    let run = bench.run_at("2026-11-23T00:00:00Z").await;
    assert_eq!(run, Repaired { compared: 4, differences: 1, unreadable: 2, ..Repaired::default() });
}

#[tokio::test]
async fn keys_that_dynamodb_leaves_unread_are_asked_for_again() {
    let bench = bench().await;
    agreeing(&bench, 3).await;
    let unread = json!({"Responses": {}, "UnprocessedKeys": {"tokentill-customers": {"Keys": [
        {"customer_id": {"S": "cus_000"}}, {"customer_id": {"S": "cus_001"}}, {"customer_id": {"S": "cus_002"}},
    ]}}});
    let left = || handlers::WireFault::Answer { status: 200, body: unread.to_string() };
    bench.world.wire.at("BatchGetItem", 1, left());
    bench.world.wire.at("BatchGetItem", 2, left());
    assert_eq!(bench.run_at("2026-11-23T00:00:00Z").await, Repaired { compared: 3, ..Repaired::default() });
    for nth in 1..=5 {
        bench.world.wire.at("BatchGetItem", nth, left());
    }
    let run = bench.run_at("2026-11-24T00:00:00Z").await;
    assert_eq!((run.compared, run.failed), (0, 1), "what is not read is not taken for missing");
    assert_eq!(bench.run_at("2026-11-24T01:00:00Z").await.compared, 3);
}

#[tokio::test]
async fn the_sample_event_repairs_at_its_own_moment() {
    let bench = bench().await;
    let event: tokentill::schedule::ScheduledEvent = serde_json::from_value(parsed(SCHEDULED)).unwrap();
    bench.world.clock.set("2027-01-01T00:00:00Z");
    bench.repair.run(event.moment().unwrap(), &invocation(&bench.world, "inv")).await;
    assert!(bench.memory().await.events_through < Some(event.moment().unwrap()));
}
