//! `cargo till`: the quarantine is looked at and its input sent again, on any later day, and counted at most once.

use std::{cell::RefCell, rc::Rc};

use handlers::{Fault, Faulty, Queue, TestClock, World};
use serde_json::{Value, json};
use till::{Filter, Refused, Retried, Retry, Till, explain, list, parse_reason};
use tokentill::{
    domain::{
        counting::QuarantineReason,
        hint::Hint,
        time::{DAY_SECS, EpochSecs, UtcDay},
    },
    dynamodb::Store,
    ports::{Clock, Quarantine, QuarantineEntries, Quarantined, Unavailable, UsageMessages},
    records::isolated,
};

use crate::{
    samples::{at, hint, parsed},
    usage::{call, count, function, hand_over, with},
};

/// The usage queue, as far as the command sees it.
#[derive(Debug, Clone, Default)]
struct Sent(Rc<RefCell<Vec<String>>>);

impl UsageMessages for Sent {
    async fn send(&self, body: &str) -> Result<(), Unavailable> {
        self.0.borrow_mut().push(body.to_owned());
        Ok(())
    }
}

struct Bench {
    world: World,
    sent: Sent,
    till: Till<Faulty<Store>, Store, Store, Sent, Queue, TestClock>,
}

/// A world at noon on 22 November 2026, without accounts: everybody is on the free tier.
async fn bench() -> Bench {
    let world = World::start().await;
    let sent = Sent::default();
    let till = Till {
        quarantine: Faulty::new(world.store()),
        ledger: world.store(),
        accounts: world.store(),
        usage: sent.clone(),
        hints: world.queue.clone(),
        clock: world.clock.clone(),
        stack: "tokentill".to_owned(),
        ledger_days: 45,
    };
    Bench { world, sent, till }
}

fn noon() -> UtcDay {
    at("2026-11-22T12:00:00Z").day()
}

fn with_timestamp(timestamp: EpochSecs) -> Retry {
    Retry { timestamp: Some(timestamp), ..Retry::default() }
}

impl Bench {
    /// The id of the one entry of a reason.
    async fn id_of(&self, reason: &str) -> String {
        let entries = self.till.quarantine.entries(noon()).await.unwrap();
        let mut of_reason = entries.iter().filter(|entry| entry.quarantined.reason == parse_reason(reason).unwrap());
        let id = of_reason.next().unwrap().quarantined.quarantine_id.clone();
        assert!(of_reason.next().is_none());
        id
    }

    async fn retry(&self, id: &str, retry: &Retry) -> Result<Retried, Refused> {
        self.till.retry(id, noon(), retry).await
    }

    async fn refused(&self, id: &str, retry: &Retry) -> String {
        let Err(Refused::Useless(text)) = self.retry(id, retry).await else { panic!("{id} was not refused") };
        text
    }

    async fn is_marked(&self, id: &str) -> bool {
        self.till.quarantine.port.entry(noon(), id).await.unwrap().unwrap().retried_at.is_some()
    }

    /// Delivers what was sent, every message twice; how much is counted of all users since the beginning.
    async fn counted(&self) -> u64 {
        let bodies: Vec<Value> = self.sent.0.take().iter().map(|body| parsed(body)).collect();
        for (n, body) in bodies.iter().chain(&bodies).enumerate() {
            count(&self.world, &format!("inv_{n}_{}", self.world.clock.now_ms()), std::slice::from_ref(body)).await;
        }
        let tallies = self.world.items("tallies").await;
        tallies.iter().map(|tally| tally["counted:requests"].as_u64().unwrap_or(0)).sum()
    }

    fn days_later(&self, days: i64) {
        self.world.clock.advance_ms(days * DAY_SECS * 1000);
    }

    /// Puts an entry there as a function does, at noon.
    async fn keep(&self, id: &str, reason: QuarantineReason, user_id: Option<&str>, input: &Value) {
        let entry = Quarantined {
            quarantine_id: id.to_owned(),
            reason,
            detail: "what is wrong".to_owned(),
            user_id: user_id.map(str::to_owned),
            input: input.to_string(),
            at_ms: noon().start().plus_secs(12 * 3_600).as_secs() * 1000,
        };
        self.world.store().keep(&entry).await.unwrap();
    }
}

#[tokio::test]
async fn the_list_has_every_shard_newest_day_first_and_takes_a_reason_and_a_user() {
    let bench = bench().await;
    let bad: Vec<Value> = (0..40).map(|n| json!({ "no": n })).collect();
    count(&bench.world, "inv_1", &bad).await;
    bench.days_later(1);
    let old = with(call("grace", "req_1"), "timestamp", "2026-01-01T00:00:00Z");
    count(&bench.world, "inv_2", &[old, json!({"no": "event"})]).await;
    let days = [noon().next(), noon()];
    let shown = async |filter: Filter| list(&bench.till.quarantine, &days, &filter).await.unwrap();
    let all = shown(Filter::default()).await;
    let columns: Vec<(&str, &str)> = all.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!(columns.iter().filter(|(day, _)| *day == "2026-11-22").count(), 40, "{all}");
    assert!(columns[0].0 == "DAY" && columns[1..3].iter().all(|(day, _)| *day == "2026-11-23"), "{all}");
    for filter in [
        Filter { reason: Some(QuarantineReason::TimestampTooOld), user_id: None },
        Filter { reason: None, user_id: Some("grace".to_owned()) },
    ] {
        let one = shown(filter).await;
        assert!(one.lines().count() == 2 && one.contains("timestamp_too_old  grace"), "{one}");
    }
    assert!(shown(Filter { reason: None, user_id: Some("ada".to_owned()) }).await.contains("nothing"));
    assert!(parse_reason("old").unwrap_err().contains("timestamp_too_old"));
}

#[tokio::test]
async fn an_entry_is_explained_with_its_input_and_nothing_a_terminal_obeys() {
    let bench = bench().await;
    bench.keep("one", QuarantineReason::Conflict, Some("a\u{1b}[2Jda"), &call("ada", "req_1")).await;
    let shown = explain(&till::entry(&bench.till.quarantine, "one", noon()).await.unwrap());
    assert!(shown.contains("--as-other-request") && shown.contains(r#""request_id":"req_1""#), "{shown}");
    assert!(shown.contains(r"a\u{1b}[2Jda") && shown.contains("2026-11-22T12:00:00Z"), "{shown}");
    let missing = till::entry(&bench.till.quarantine, "two", noon()).await.unwrap_err();
    assert!(missing.to_string().contains("list --day 2026-11-22"), "{missing}");
}

/// Every reason of usage, on days 2, 13 and 40 after it came in: counted once, or said why not.
#[tokio::test]
async fn usage_is_retried_on_any_later_day_and_counted_once_and_what_cannot_be_counted_is_said() {
    for days in [2, 13, 40] {
        let mut bench = bench().await;
        let unreadable = with(call("grace", "req_invalid"), "success", "yes");
        let readable = with(unreadable.clone(), "success", true);
        let events = [
            unreadable,
            with(call("grace", "req_future"), "timestamp", "2026-11-22T13:00:00Z"),
            with(call("grace", "req_old"), "timestamp", "2026-10-17T12:00:00Z"),
            call("grace", "req_conflict"),
            with(call("grace", "req_conflict"), "tokens_in", 9),
        ];
        count(&bench.world, "inv", &events).await;
        bench.keep("unstorable", QuarantineReason::Unstorable, Some("grace"), &call("grace", "req_unstorable")).await;
        bench.days_later(days);
        let now = bench.world.clock.now();
        let corrected = Retry { input: Some(readable.to_string()), ..Retry::default() };
        let other = Retry { as_other_request: true, ..Retry::default() };
        let mut counted = 1;
        for (reason, request, plain) in [
            ("invalid", "req_invalid", corrected),
            ("timestamp_in_future", "req_future", Retry::default()),
            ("timestamp_too_old", "req_old", Retry::default()),
            ("conflict", "quarantine-", other),
            ("unstorable", "req_unstorable", Retry::default()),
        ] {
            let id = bench.id_of(reason).await;
            let mut retry = plain;
            if reason == "timestamp_too_old" || days == 40 {
                let why = bench.refused(&id, &retry).await;
                assert!(why.contains("--timestamp") && why.contains("Bill it by hand"), "{days} {reason}: {why}");
                retry.timestamp = Some(now);
            }
            if reason == "timestamp_too_old" && days > 2 {
                // It may have been counted 45 days before: only a ledger that goes back further can tell.
                let why = bench.refused(&id, &retry).await;
                assert!(why.contains("--ledger-days"), "{days} {reason}: {why}");
                bench.till.ledger_days = 400;
            }
            assert!(!bench.is_marked(&id).await, "{days} {reason}: a refusal marks nothing");
            // Twice before the queue is read, and once more after it.
            for _ in 0..2 {
                let Ok(Retried::Sent { requests }) = bench.retry(&id, &retry).await else { panic!("{days} {reason}") };
                assert!(requests.len() == 1 && requests[0].starts_with(request), "{days} {reason}: {requests:?}");
            }
            bench.till.ledger_days = 45;
            counted += 1;
            assert_eq!(bench.counted().await, counted, "{days} {reason}");
            assert_eq!(bench.retry(&id, &retry).await, Ok(Retried::KnownBefore), "{days} {reason}");
            assert_eq!(bench.counted().await, counted, "{days} {reason}");
            assert!(bench.is_marked(&id).await, "{days} {reason}");
        }
        assert_eq!(bench.world.items("quarantine").await.len(), 5, "day {days}: nothing is deleted, and nothing came back");
    }
}

#[tokio::test]
async fn what_would_come_straight_back_is_refused() {
    let bench = bench().await;
    let conflict = with(call("grace", "req_1"), "tokens_in", 9);
    let ahead = with(call("grace", "req_2"), "timestamp", "2026-11-22T13:00:00Z");
    count(&bench.world, "inv", &[call("grace", "req_1"), conflict.clone(), ahead, json!({"recount": {"user_id": "grace"}})])
        .await;
    for (reason, retry, why) in [
        ("invalid", Retry::default(), "--input"),
        ("invalid", Retry { input: Some("{".to_owned()), ..Retry::default() }, "not JSON"),
        ("invalid", Retry { input: Some(conflict.to_string()), ..Retry::default() }, "first report stands"),
        ("timestamp_in_future", Retry::default(), "5 minutes ahead"),
        ("timestamp_in_future", Retry { input: Some(conflict.to_string()), ..Retry::default() }, "--input is for"),
        ("timestamp_in_future", Retry { as_other_request: true, ..Retry::default() }, "--as-other-request is for"),
        ("conflict", Retry::default(), "--as-other-request"),
        ("conflict", with_timestamp(bench.world.clock.now()), "first report stands"),
    ] {
        let text = bench.refused(&bench.id_of(reason).await, &retry).await;
        assert!(text.contains(why), "{reason}: {text}");
    }
    assert!(bench.sent.0.borrow().is_empty());
    // What waits in the queue must not grow too old there.
    let edge = with(call("grace", "req_3"), "timestamp", "2026-10-18T12:05:00Z");
    bench.keep("edge", QuarantineReason::Unstorable, Some("grace"), &edge).await;
    assert!(bench.refused("edge", &Retry::default()).await.contains("35 days"));
}

#[tokio::test]
async fn a_request_that_the_ledger_may_have_forgotten_is_not_sent() {
    let bench = bench().await;
    bench.keep("one", QuarantineReason::Unstorable, Some("grace"), &call("grace", "req_1")).await;
    bench.days_later(43);
    let retry = with_timestamp(bench.world.clock.now());
    assert!(matches!(bench.retry("one", &retry).await, Ok(Retried::Sent { .. })));
    bench.days_later(1);
    assert!(bench.refused("one", &with_timestamp(bench.world.clock.now())).await.contains("--ledger-days"));
    // Nor one that is only now known to be that old: another moment makes it no younger.
    bench.keep("two", QuarantineReason::Invalid, None, &json!("unreadable")).await;
    bench.world.clock.set("2026-11-24T12:00:00Z");
    let corrected = with(call("grace", "req_2"), "timestamp", "2026-08-01T00:00:00Z").to_string();
    let retry = Retry { input: Some(corrected), ..with_timestamp(bench.world.clock.now()) };
    assert!(bench.refused("two", &retry).await.contains("--ledger-days"));
}

#[tokio::test]
async fn a_crash_between_sending_and_marking_counts_nothing_twice() {
    for fault in [Fault::CrashBefore, Fault::LoseRequest, Fault::LoseReply] {
        for is_read_meanwhile in [false, true] {
            let bench = bench().await;
            bench.keep("one", QuarantineReason::Unstorable, Some("grace"), &call("grace", "req_1")).await;
            bench.till.quarantine.faults.at("mark_retried", 1, fault);
            match isolated(bench.retry("one", &Retry::default())).await {
                Err(_) => assert_eq!(fault, Fault::CrashBefore),
                Ok(result) => assert!(matches!(result, Err(Refused::NotMarked(_))), "{result:?}"),
            }
            if is_read_meanwhile {
                assert_eq!(bench.counted().await, 1);
            }
            assert_eq!(bench.is_marked("one").await, fault == Fault::LoseReply);
            let again = bench.retry("one", &Retry::default()).await.unwrap();
            assert_eq!(again == Retried::KnownBefore, is_read_meanwhile, "{again:?}");
            assert!(bench.is_marked("one").await);
            assert_eq!(bench.counted().await, 1, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn several_events_of_one_message_are_sent_together_or_not_at_all() {
    let bench = bench().await;
    bench.keep("one", QuarantineReason::Invalid, None, &json!("no message")).await;
    let input = |events: &[Value]| Retry { input: Some(json!({ "events": events }).to_string()), ..Retry::default() };
    let old = with(call("grace", "req_2"), "timestamp", "2026-01-01T00:00:00Z");
    assert!(bench.refused("one", &input(&[call("grace", "req_1"), old])).await.contains("req_2"));
    let both = input(&[call("grace", "req_1"), call("ada", "req_1")]);
    assert!(matches!(bench.retry("one", &both).await, Ok(Retried::Sent { requests }) if requests.len() == 2));
    let body = parsed(&bench.sent.0.take()[0]);
    let events = body["events"].as_array().unwrap();
    assert_eq!(hand_over(&function(&bench.world), &bench.world, "inv", events).await, Vec::<String>::new());
    assert_eq!(bench.retry("one", &both).await, Ok(Retried::KnownBefore));
}

#[tokio::test]
async fn a_second_claimant_is_looked_at_again_however_often_it_is_asked_for() {
    let bench = bench().await;
    let claim = hint("evt_1", "checkout.session.completed", "2026-11-22T12:00:00Z", "cs_2", Some("cus_Other"));
    bench.keep("claim", QuarantineReason::SecondClaimant, Some("ada"), &serde_json::to_value(&claim).unwrap()).await;
    for days in [2, 11, 27] {
        bench.days_later(days);
        assert!(matches!(bench.retry("claim", &Retry::default()).await, Ok(Retried::Looking { .. })));
    }
    let hints = bench.world.queue.hints();
    assert_eq!(hints.len(), 3, "the queue takes each for another one");
    for sent in hints {
        assert_eq!(Hint { event_id: claim.event_id.clone(), replay: false, ..sent.clone() }, claim);
        assert!(sent.replay && sent.event_id != claim.event_id);
    }
    assert!(bench.is_marked("claim").await);
}

#[tokio::test]
async fn what_stripe_refused_is_left_to_the_reporter_whose_order_is_printed() {
    let bench = bench().await;
    let input = json!({"meter": "requests", "quantity": 3, "tally_key": "2026-11-22/6:billed/1:x"});
    for (id, reason) in [("refused", QuarantineReason::Refused), ("closed", QuarantineReason::PeriodClosed)] {
        bench.keep(id, reason, Some("o'ada"), &input).await;
        let Ok(Retried::Order(command)) = bench.retry(id, &Retry::default()).await else { panic!("{id}") };
        assert!(command.contains("--function-name 'tokentill-reporter'"), "{command}");
        let payload = command.split_once("--payload '").unwrap().1.strip_suffix("' /dev/stdout").unwrap();
        let event: reporter::ReportEvent = serde_json::from_str(&payload.replace(r"'\''", "'")).unwrap();
        let tally_key = Some("2026-11-22/6:billed/1:x".to_owned());
        assert_eq!(event.order, Some(reporter::Order::Replay { user_id: crate::samples::user("o'ada"), tally_key }));
        assert!(!bench.is_marked(id).await, "nobody knows whether it was given");
    }
    assert!(bench.refused("refused", &with_timestamp(bench.world.clock.now())).await.contains("usage events"));
}

#[test]
fn the_queues_are_named_as_the_template_names_them() {
    const TEMPLATE: &str = include_str!("../../../../template.yaml");
    for queue in [till::Queue::Usage, till::Queue::AccountChanges] {
        for name in [queue.name("${AWS::StackName}"), queue.dead_name("${AWS::StackName}")] {
            assert!(TEMPLATE.contains(&format!("QueueName: !Sub {name}\n")), "{name}");
        }
    }
}
