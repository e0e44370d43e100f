//! The notifier: a domain event at least once under one id, an e-mail at most once, and an unknown fate recorded (G8).

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use handlers::{Addresses, EventLog, Fault, Faulty, Letterbox, TestClock, Wire, WireFault, World};
use notifier::{
    Notifier, Post, RandomNames, Response,
    bus::Bus,
    event::{Told, Trigger},
    ses::{Sender, Ses},
};
use serde_json::{Value, json};
use tokentill::{
    domain::{
        access::{Reason, State},
        account::Account,
        email::{Fate, FeedbackKind, Letterhead},
        event::DomainEvent,
        id::{CustomerId, InvoiceId},
        notice::{Notice, NoticeKind, Payment, of_payment},
        price_list::PriceList,
        sync::{Decision, Failures, decide},
    },
    dynamodb::Store,
    ports::{
        AccountChange, Accounts, Clock, Commit, Email, EmailAttempts, EventBus, Mailer, NotSent, Noted, Outbox,
        PendingNotices as _,
    },
};

use crate::{
    samples::{EMAIL, at, parsed, subscriber, user},
    schema::allows,
};

const SCHEMA: &str = include_str!("../../../../events/domain-event.schema.json");
const STREAM: &str = include_str!("../../../../events/outbox-stream.json");
const BOUNCE: &str = include_str!("../../../../events/email-bounce.json");
const COMPLAINT: &str = include_str!("../../../../events/email-complaint.json");
const REJECT: &str = include_str!("../../../../events/email-reject.json");

type Function = Notifier<Faulty<Store>, EventLog, Addresses, Letterbox, RandomNames, TestClock>;

const KINDS: [NoticeKind; 13] = [
    NoticeKind::AccountProvisioned,
    NoticeKind::PlanChanged,
    NoticeKind::GraceStarted,
    NoticeKind::GraceReminder,
    NoticeKind::GraceCleared,
    NoticeKind::AccessEnded,
    NoticeKind::AccessRestored,
    NoticeKind::SubscriptionEnding,
    NoticeKind::SubscriptionContinued,
    NoticeKind::SubscriptionEnded,
    NoticeKind::TrialEnding,
    NoticeKind::PaymentRefunded,
    NoticeKind::PaymentDisputed,
];

struct Bench {
    world: World,
    bus: EventLog,
    mail: Letterbox,
    stripe: Addresses,
    notifier: Function,
}

/// A world in which ada's payment has just failed, and Stripe knows her address.
async fn bench() -> Bench {
    let bench = quiet_bench().await;
    bench.commit(&[notice(NoticeKind::GraceStarted)]).await;
    bench
}

/// A world in which nothing was told yet.
async fn quiet_bench() -> Bench {
    let world = World::start().await;
    let (bus, mail, stripe) = (EventLog::default(), Letterbox::default(), Addresses::default());
    stripe.set("cus_Ada", Some(EMAIL), Some("Ada"));
    stripe.set_bill("in_1", true);
    let notifier = function(&world, &bus, &mail, &stripe);
    Bench { world, bus, mail, stripe, notifier }
}

fn function(world: &World, bus: &EventLog, mail: &Letterbox, stripe: &Addresses) -> Function {
    let letterhead = Letterhead { product: "Acme AI".to_owned(), support: Some("help@example.com".to_owned()) };
    Notifier {
        outbox: world.store_of("notifier"),
        bus: bus.clone(),
        stripe: stripe.clone(),
        post: Some(Post { letterhead, mailer: mail.clone() }),
        names: RandomNames,
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        livemode: false,
    }
}

fn notice(kind: NoticeKind) -> Notice {
    Notice {
        notice_id: format!("3:ada/1:1/{}:{}", kind.as_str().len(), kind.as_str()),
        kind,
        user_id: user("ada"),
        customer_id: Some(CustomerId::new("cus_Ada").unwrap()),
        at: at("2026-11-22T12:00:00Z"),
        state: State::Grace,
        reason: None,
        plan: Some("pro".to_owned()),
        previous_plan: None,
        access_until: Some(at("2026-11-29T12:00:00Z")),
        invoice_id: Some(InvoiceId::new("in_1").unwrap()),
        day: None,
        payment: None,
    }
}

/// A batch of the stream for these rows.
fn batch(notice_ids: &[&str]) -> Trigger {
    let record = |(number, id): (usize, &&str)| json!({"eventName": "INSERT", "dynamodb": {"Keys": {"notice_id": {"S": id}}, "SequenceNumber": number.to_string()}});
    serde_json::from_value(json!({"Records": notice_ids.iter().enumerate().map(record).collect::<Vec<_>>()})).unwrap()
}

impl Bench {
    /// Commits notices as `sync` does, with the change of an account.
    async fn commit(&self, notices: &[Notice]) {
        let (store, now_ms) = (self.world.store(), self.world.clock.now_ms());
        let before = store.account(&user("ada")).await.unwrap();
        let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
        let decision = decide(&self.world.prices, before.as_ref(), &user("ada"), &facts, &Failures::new(), now_ms);
        let Decision::Commit { account, .. } = decision else { panic!("{decision:?}") };
        let change = AccountChange { account: &account, next_due: None, notices, processed: None, at_ms: now_ms };
        assert_eq!(store.commit(&change).await.unwrap(), Commit::Done);
    }

    fn stop_at_ms(&self) -> i64 {
        self.world.clock.now_ms() + 48_000
    }

    /// Hands the rows to the notifier; which of them have to come again.
    async fn deliver(&self, notice_ids: &[&str]) -> Vec<String> {
        let response = self.notifier.handle(batch(notice_ids), self.stop_at_ms()).await.unwrap();
        response.batch_item_failures.into_iter().map(|failure| failure.item_identifier).collect()
    }

    /// Hands in whatever is pending.
    async fn deliver_pending(&self) -> Vec<String> {
        let rows = self.world.items("outbox").await;
        let pending: Vec<&str> =
            rows.iter().filter(|row| row["pending_shard"].is_string()).map(|row| row["notice_id"].as_str().unwrap()).collect();
        self.deliver(&pending).await
    }

    async fn row(&self) -> Value {
        self.world.item("outbox").await
    }

    fn minutes_pass(&self, minutes: i64) {
        self.world.clock.advance_ms(minutes * 60_000);
    }
}

#[tokio::test]
async fn a_notice_becomes_one_event_and_one_email_and_is_then_done() {
    let bench = bench().await;
    assert_eq!(bench.deliver_pending().await, Vec::<String>::new());
    let row = bench.row().await;
    assert_eq!((&row["email_state"], &row["email_message_id"]), (&json!("sent"), &json!("ses-1")));
    assert!(row["pending_shard"].is_null() && row["published_at_ms"].is_i64(), "{row}");
    let sent = bench.mail.sent();
    assert_eq!((sent.len(), sent[0].to.as_str(), &json!(sent[0].email_id)), (1, EMAIL, &row["email_id"]));
    for part in ["49.00 EUR", "29 November 2026 at 12:00 UTC", "https://invoice.stripe.com/i/in_1", "Pro"] {
        assert!(sent[0].html.contains(part) && sent[0].text.contains(part), "{part}");
    }
    // Neither address nor link is kept.
    assert!(!row.to_string().contains(EMAIL) && !row.to_string().contains("invoice.stripe.com"), "{row}");
    // The record may come any number of times.
    for _ in 0..3 {
        assert_eq!(bench.deliver(&[row["notice_id"].as_str().unwrap()]).await, Vec::<String>::new());
    }
    assert_eq!((bench.bus.events().len(), bench.mail.sent().len()), (1, 1));
}

#[tokio::test]
async fn the_sample_record_of_the_stream_names_its_row() {
    let bench = quiet_bench().await;
    let mut told = notice(NoticeKind::GraceStarted);
    told.notice_id = parsed(STREAM)["Records"][0]["dynamodb"]["Keys"]["notice_id"]["S"].as_str().unwrap().to_owned();
    bench.commit(&[told]).await;
    let response = bench.notifier.handle(serde_json::from_str(STREAM).unwrap(), bench.stop_at_ms()).await.unwrap();
    assert_eq!((response, bench.bus.ids().len(), bench.mail.sent().len()), (Response::default(), 1, 1));
}

/// Every port call, cut in every way; then the stream and the sweeper bring the notice again.
#[tokio::test]
async fn cut_at_any_point_nothing_is_lost_and_no_email_is_sent_twice() {
    const CALLS: [&str; 9] = [
        "row_of_notice",
        "publish",
        "note_published",
        "addressee",
        "bill",
        "claim_email",
        "send_email",
        "settle_email",
        "finish",
    ];
    const FAULTS: [Fault; 4] = [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter];
    for call in CALLS {
        for fault in FAULTS {
            let case = format!("{fault:?} of {call}");
            let bench = bench().await;
            for faults in [&bench.notifier.outbox.faults, &bench.bus.faults, &bench.mail.faults, &bench.stripe.faults] {
                faults.at(call, 1, fault);
            }
            let again = bench.deliver_pending().await;
            let is_attempt = call == "send_email";
            assert!(again.len() == 1 || is_attempt, "{case} goes by unnoticed");
            for _ in 0..2 {
                bench.deliver_pending().await;
            }
            bench.minutes_pass(16);
            bench.deliver_pending().await;
            let row = bench.row().await;
            assert!(row["pending_shard"].is_null(), "{case}: {row}");
            assert_eq!(bench.bus.ids(), [row["notice_id"].as_str().unwrap()], "{case}");
            // What was certain before the attempt is sent; afterwards nobody tries again, and what is not known is recorded.
            let sent = bench.mail.sent().len();
            let expected = match (call, fault) {
                ("claim_email", Fault::LoseReply | Fault::CrashAfter) => ("unknown", 0),
                ("send_email", Fault::LoseRequest | Fault::CrashBefore) => ("unknown", 0),
                ("send_email", Fault::LoseReply | Fault::CrashAfter) => ("unknown", 1),
                ("settle_email", Fault::LoseRequest | Fault::CrashBefore) => ("unknown", 1),
                _ => ("sent", 1),
            };
            assert_eq!((row["email_state"].as_str().unwrap(), sent), expected, "{case}");
        }
    }
}

#[tokio::test]
async fn notifiers_side_by_side_send_one_email() {
    let bench = bench().await;
    let others: Vec<Function> = (0..4).map(|_| function(&bench.world, &bench.bus, &bench.mail, &bench.stripe)).collect();
    let id = notice(NoticeKind::GraceStarted).notice_id;
    let work = others.iter().map(|other| other.handle(batch(&[&id]), bench.stop_at_ms()));
    for response in futures_util::future::join_all(work).await {
        assert_eq!(response.unwrap(), Response::default());
    }
    bench.deliver_pending().await;
    let row = bench.row().await;
    assert_eq!((bench.mail.sent().len(), bench.bus.ids().len(), &row["email_state"]), (1, 1, &json!("sent")));
    assert!(row["pending_shard"].is_null(), "{row}");
}

#[tokio::test]
async fn an_attempt_that_is_under_way_is_left_alone_and_one_that_is_over_is_unknown_until_its_fate_is_told() {
    for (minutes, meanwhile) in [(9, Value::Null), (11, json!("unknown"))] {
        let bench = bench().await;
        let id = notice(NoticeKind::GraceStarted).notice_id;
        // While the e-mail is being sent, the row comes to another notifier; the clock may have gone on.
        let other = function(&bench.world, &bench.bus, &bench.mail, &bench.stripe);
        let (clock, store, trigger, seen) = (bench.world.clock.clone(), bench.world.store(), batch(&[&id]), id.clone());
        let state = std::rc::Rc::new(std::cell::RefCell::new(None));
        let noted = state.clone();
        bench.mail.faults.meanwhile("send_email", 1, async move {
            clock.advance_ms(minutes * 60_000);
            let stop_at_ms = clock.now_ms() + 48_000;
            assert_eq!(other.handle(trigger, stop_at_ms).await.unwrap(), Response::default());
            *noted.borrow_mut() = store.row(&seen).await.unwrap().unwrap().email_state;
        });
        bench.deliver(&[&id]).await;
        assert_eq!(json!(*state.borrow()), meanwhile, "after {minutes} minutes");
        // Who made the attempt knows better.
        let row = bench.row().await;
        assert_eq!((&row["email_state"], bench.mail.sent().len()), (&json!("sent"), 1), "after {minutes} minutes");
    }
}

#[tokio::test]
async fn a_bus_that_fails_holds_up_no_email_and_never_doubles_it() {
    let bench = bench().await;
    bench.bus.faults.always("publish", Fault::LoseRequest);
    for _ in 0..3 {
        assert_eq!(bench.deliver_pending().await, ["0"]);
    }
    assert_eq!((bench.bus.events().len(), bench.mail.sent().len()), (0, 1));
    let row = bench.row().await;
    assert!(row["pending_shard"].is_string() && row["email_state"] == "sent", "{row}");
    bench.bus.faults.clear();
    assert_eq!(bench.deliver_pending().await, Vec::<String>::new());
    assert_eq!((bench.bus.events().len(), bench.mail.sent().len()), (1, 1));
}

#[tokio::test]
async fn an_email_that_fails_in_any_way_never_stops_the_event() {
    for (error, state, code) in [
        (NotSent::Refused { code: "MessageRejected".to_owned() }, "refused", json!("MessageRejected")),
        (NotSent::Unknown { reason: "timed out".to_owned() }, "unknown", Value::Null),
    ] {
        let bench = bench().await;
        bench.mail.refuse_next(error);
        for _ in 0..2 {
            assert_eq!(bench.deliver_pending().await, Vec::<String>::new());
        }
        let row = bench.row().await;
        assert_eq!((&row["email_state"], &row["email_code"], bench.mail.sent().len()), (&json!(state), &code, 0));
        assert!(row["pending_shard"].is_null() && bench.bus.ids().len() == 1, "{row}");
    }
    for (address, invoice_is_open, state) in
        [(None, true, "no_address"), (Some("not an address"), true, "refused"), (Some(EMAIL), false, "outdated")]
    {
        let bench = bench().await;
        bench.stripe.set("cus_Ada", address, None);
        bench.stripe.set_bill("in_1", invoice_is_open);
        bench.deliver_pending().await;
        let row = bench.row().await;
        assert_eq!((&row["email_state"], bench.mail.sent().len(), bench.bus.ids().len()), (&json!(state), 0, 1));
        assert!(row["pending_shard"].is_null() && row["email_id"].is_null(), "{row}");
        assert_eq!(bench.mail.faults.calls("send_email"), 0, "{state}");
    }
}

#[tokio::test]
async fn an_account_that_is_deleted_at_stripe_gets_its_event_and_no_email() {
    let bench = quiet_bench().await;
    let mut told = notice(NoticeKind::GraceStarted);
    told.customer_id = Some(CustomerId::new("cus_Gone").unwrap());
    bench.commit(&[told]).await;
    assert_eq!(bench.deliver_pending().await, Vec::<String>::new());
    assert_eq!((&bench.row().await["email_state"], bench.bus.ids().len()), (&json!("no_address"), 1));
}

#[tokio::test]
async fn stripe_being_down_costs_no_attempt() {
    let bench = bench().await;
    bench.stripe.faults.always("addressee", Fault::LoseRequest);
    assert_eq!(bench.deliver_pending().await, ["0"]);
    let row = bench.row().await;
    assert!(row["email_id"].is_null() && row["published_at_ms"].is_i64(), "{row}");
    bench.stripe.faults.clear();
    bench.minutes_pass(5 * 60);
    bench.deliver_pending().await;
    assert_eq!((&bench.row().await["email_state"], bench.mail.sent().len(), bench.bus.events().len()), (&json!("sent"), 1, 1));
}

#[tokio::test]
async fn all_events_of_a_batch_are_sent_before_stripe_is_asked_for_the_first_email() {
    let bench = quiet_bench().await;
    bench.commit(&KINDS.map(notice)).await;
    // It takes all of the function's time.
    let (clock, bus) = (bench.world.clock.clone(), bench.bus.clone());
    let events = std::rc::Rc::new(std::cell::RefCell::new(0));
    let seen = events.clone();
    bench.stripe.faults.meanwhile("addressee", 1, async move {
        *seen.borrow_mut() = bus.ids().len();
        clock.advance_ms(60_000);
    });
    let again = bench.deliver_pending().await;
    assert_eq!((*events.borrow(), bench.mail.sent().len()), (KINDS.len(), 0));
    assert!(!again.is_empty());
    bench.deliver_pending().await;
    assert_eq!(bench.bus.events().len(), KINDS.len(), "and none of them again");
}

#[tokio::test]
async fn an_email_that_comes_a_day_late_is_not_sent() {
    let bench = bench().await;
    bench.minutes_pass(24 * 60 + 1);
    bench.deliver_pending().await;
    assert_eq!((&bench.row().await["email_state"], bench.bus.ids().len()), (&json!("outdated"), 1));
    assert_eq!(bench.stripe.faults.calls("addressee"), 0);
}

#[tokio::test]
async fn without_a_sender_there_are_events_only_and_stripe_is_not_asked() {
    let mut bench = quiet_bench().await;
    bench.notifier.post = None;
    bench.commit(&KINDS.map(notice)).await;
    assert_eq!(bench.deliver_pending().await, Vec::<String>::new());
    assert_eq!(bench.bus.ids().len(), KINDS.len());
    let rows = bench.world.items("outbox").await;
    assert!(rows.iter().all(|row| row["email_state"] == "off" && row["pending_shard"].is_null()), "{rows:#?}");
    assert_eq!((bench.mail.sent().len(), bench.stripe.faults.calls("addressee")), (0, 0));
}

#[tokio::test]
async fn seven_kinds_of_notices_have_an_email() {
    let bench = quiet_bench().await;
    let mut notices = KINDS.map(notice);
    for notice in &mut notices {
        if notice.kind == NoticeKind::AccessEnded {
            (notice.state, notice.reason) = (State::Ended, Some(Reason::PaymentOverdue));
        }
        if notice.kind == NoticeKind::AccessRestored {
            notice.state = State::Active;
        }
    }
    bench.commit(&notices).await;
    bench.deliver_pending().await;
    let rows = bench.world.items("outbox").await;
    let sent: BTreeSet<&str> =
        rows.iter().filter(|row| row["email_state"] == "sent").map(|row| row["kind"].as_str().unwrap()).collect();
    let expected = [
        "access.ended",
        "access.restored",
        "grace.reminder",
        "grace.started",
        "plan.changed",
        "subscription.ending",
        "trial.ending",
    ];
    assert_eq!(sent, BTreeSet::from(expected));
    assert_eq!((bench.mail.sent().len(), bench.bus.ids().len()), (7, 13));
}

#[tokio::test]
async fn one_bad_record_harms_no_other_and_only_what_failed_comes_again() {
    let bench = quiet_bench().await;
    let kinds =
        [NoticeKind::GraceCleared, NoticeKind::AccountProvisioned, NoticeKind::SubscriptionEnded, NoticeKind::PlanChanged];
    bench.commit(&kinds.map(notice)).await;
    let ids = kinds.map(|kind| notice(kind).notice_id);
    bench.bus.faults.at("publish", 2, Fault::CrashBefore);
    bench.bus.faults.at("publish", 3, Fault::LoseRequest);
    let mut event = json!({"Records": [{"dynamodb": {}}, {}]});
    let record = |(number, id): (usize, &String)| json!({"dynamodb": {"Keys": {"notice_id": {"S": id}}, "SequenceNumber": number.to_string()}});
    event["Records"].as_array_mut().unwrap().extend(ids.iter().enumerate().map(record));
    let response = bench.notifier.handle(serde_json::from_value(event).unwrap(), bench.stop_at_ms()).await.unwrap();
    assert_eq!(
        serde_json::to_value(&response).unwrap(),
        json!({"batchItemFailures": [{"itemIdentifier": "1"}, {"itemIdentifier": "2"}]})
    );
    bench.deliver_pending().await;
    assert_eq!((bench.bus.ids().len(), bench.mail.sent().len()), (4, 1));
}

#[tokio::test]
async fn a_failed_record_without_a_number_brings_the_whole_batch_again() {
    let bench = bench().await;
    bench.bus.faults.at("publish", 1, Fault::LoseRequest);
    let id = notice(NoticeKind::GraceStarted).notice_id;
    let event = json!({"Records": [{"dynamodb": {"Keys": {"notice_id": {"S": id}}}}]});
    assert!(bench.notifier.handle(serde_json::from_value(event).unwrap(), bench.stop_at_ms()).await.is_err());
}

#[tokio::test]
async fn no_attempt_begins_without_the_time_to_see_its_end() {
    let bench = bench().await;
    let id = notice(NoticeKind::GraceStarted).notice_id;
    let now_ms = bench.world.clock.now_ms();
    for (left_ms, calls) in [(0, 0), (21_999, 0), (22_000, 1)] {
        let response = bench.notifier.handle(batch(&[&id]), now_ms + left_ms).await.unwrap();
        assert_eq!((response.batch_item_failures.len(), bench.mail.faults.calls("send_email")), (1 - calls, calls), "{left_ms}");
    }
}

#[tokio::test]
async fn what_a_newer_version_keeps_beside_a_notice_stays() {
    let bench = bench().await;
    let id = notice(NoticeKind::GraceStarted).notice_id;
    bench.world.set_attribute("outbox", ("notice_id", &id), "note_of_the_future", "kept").await;
    bench.deliver_pending().await;
    let row = bench.row().await;
    assert_eq!((&row["note_of_the_future"], &row["email_state"]), (&json!("kept"), &json!("sent")));
}

#[tokio::test]
async fn a_row_that_has_expired_is_not_made_again() {
    let bench = quiet_bench().await;
    assert_eq!(bench.deliver(&["3:ada/1:1/13:grace.started"]).await, Vec::<String>::new());
    let store = bench.world.store();
    store.note_published("gone", 1).await.unwrap();
    assert!(!store.claim_email("gone", "e1", 1).await.unwrap() && !store.finish("gone").await.unwrap());
    assert!(!store.settle_email("gone", None, &Fate::Off, 1).await.unwrap() && !store.wake("gone", 1).await.unwrap());
    assert_eq!(bench.world.items("outbox").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_claim_whose_reply_was_lost_is_ours_and_nobody_elses() {
    let bench = bench().await;
    let (store, id) = (bench.world.store(), notice(NoticeKind::GraceStarted).notice_id);
    // The SDK asks again, and the condition no longer holds: by our own doing.
    bench.world.wire.at("UpdateItem", 1, WireFault::LoseReply);
    assert!(store.claim_email(&id, "e1", 1).await.unwrap());
    assert!(!store.claim_email(&id, "e2", 2).await.unwrap(), "the one attempt is taken");
    assert_eq!(bench.row().await["email_id"], "e1");
}

#[tokio::test]
async fn a_notice_leaves_the_index_only_when_both_parts_are_settled_and_a_known_fate_stays() {
    let bench = bench().await;
    let (store, id) = (bench.world.store(), notice(NoticeKind::GraceStarted).notice_id);
    assert!(!store.finish(&id).await.unwrap(), "nothing is settled");
    store.note_published(&id, 5).await.unwrap();
    assert!(!store.finish(&id).await.unwrap(), "the e-mail is not");
    store.note_published(&id, 9).await.unwrap();
    assert!(store.claim_email(&id, "e1", 6).await.unwrap());
    let sent = Fate::Sent { message_id: "m1".to_owned() };
    assert!(!store.settle_email(&id, Some("e2"), &sent, 7).await.unwrap(), "another's attempt");
    assert!(!store.settle_email(&id, None, &Fate::Off, 7).await.unwrap(), "an attempt is under way");
    assert!(store.settle_email(&id, Some("e1"), &sent, 7).await.unwrap());
    assert!(!store.settle_email(&id, Some("e1"), &Fate::Unknown, 8).await.unwrap(), "it is known");
    assert!(!store.claim_email(&id, "e3", 9).await.unwrap());
    assert!(store.finish(&id).await.unwrap());
    let row = bench.row().await;
    assert_eq!((&row["published_at_ms"], &row["email_state"], &row["pending_shard"]), (&json!(5), &json!("sent"), &Value::Null));
    // One that was settled without an attempt has none afterwards.
    let other = Notice { notice_id: "other".to_owned(), ..notice(NoticeKind::GraceStarted) };
    bench.commit(&[other]).await;
    assert!(store.settle_email("other", None, &Fate::Outdated, 1).await.unwrap());
    assert!(!store.claim_email("other", "e4", 2).await.unwrap());
}

// ---------------------------------------------------------------------------------------------------------------------------
// What the stream lost

#[tokio::test]
async fn what_the_stream_lost_is_woken_after_a_quarter_of_an_hour_and_needs_a_person_once_that_did_not_help() {
    let bench = bench().await;
    let sweeper = crate::sweeper::function(&bench.world);
    let sweep = async |minutes: i64| {
        bench.minutes_pass(minutes);
        let run = sweeper.run(bench.world.clock.now(), i64::MAX).await.unwrap();
        (run.woken, run.stuck)
    };
    assert_eq!(sweep(14).await, (0, 0));
    assert_eq!(sweep(1).await, (1, 0));
    let woken = bench.row().await["woken_at_ms"].clone();
    assert!(woken.is_i64(), "the stream carries it again");
    assert_eq!(sweep(59).await, (1, 0), "nobody has seen whether the wake of an hour before helped, if there was one");
    assert_eq!(sweep(60).await, (1, 0));
    assert_eq!(sweep(1).await, (1, 1));
    assert_ne!(bench.row().await["woken_at_ms"], woken, "every wake is a change, or the stream would not carry it");
    bench.deliver_pending().await;
    assert_eq!((bench.bus.ids().len(), bench.mail.sent().len()), (1, 1));
    assert_eq!(sweep(60).await, (0, 0), "what is delivered is not woken");
    assert!(bench.row().await["woken_at_ms"].is_null());
}

#[tokio::test]
async fn one_notice_that_cannot_be_woken_holds_up_no_other() {
    let bench = quiet_bench().await;
    bench.commit(&KINDS.map(notice)).await;
    bench.minutes_pass(20);
    let sweeper = crate::sweeper::function(&bench.world);
    sweeper.accounts.faults.at("wake", 3, Fault::LoseRequest);
    let run = sweeper.run(bench.world.clock.now(), i64::MAX).await.unwrap();
    assert_eq!((run.woken, run.failed), (12, 1));
}

/// 70 notices in one shard of the index, and one in its last.
async fn a_full_shard(bench: &Bench) {
    let in_shard = |shard: u8, count: usize| {
        let ids = (0..).map(|n| format!("n{n}")).filter(move |id| tokentill::domain::id::shard_of(id, 16) == shard);
        ids.take(count).map(|notice_id| Notice { notice_id, ..notice(NoticeKind::PlanChanged) })
    };
    bench.commit(&in_shard(3, 70).chain(in_shard(15, 1)).collect::<Vec<_>>()).await;
    bench.minutes_pass(20);
}

#[tokio::test]
async fn a_sweep_wakes_all_that_is_pending_however_full_a_shard_is() {
    let bench = quiet_bench().await;
    a_full_shard(&bench).await;
    let sweeper = crate::sweeper::function(&bench.world);
    assert_eq!(sweeper.run(bench.world.clock.now(), i64::MAX).await.unwrap().woken, 71);
    let rows = bench.world.items("outbox").await;
    assert!(rows.iter().all(|row| row["woken_at_ms"].is_i64()), "{rows:#?}");
}

#[tokio::test]
async fn a_sweep_wakes_a_share_of_each_shard_in_turn_until_its_time_is_over() {
    let bench = quiet_bench().await;
    a_full_shard(&bench).await;
    let sweeper = crate::sweeper::function(&bench.world);
    let clock = bench.world.clock.clone();
    sweeper.accounts.faults.meanwhile("wake", 40, async move { clock.advance_ms(1_000) });
    let stop_at_ms = bench.world.clock.now_ms() + 1_000;
    assert_eq!(sweeper.run(bench.world.clock.now(), stop_at_ms).await.unwrap().woken, 40);
    let rows = bench.world.items("outbox").await;
    let woken = rows.iter().filter(|row| row["woken_at_ms"].is_i64());
    let last = woken.filter(|row| row["pending_shard"] == "15").count();
    assert_eq!(last, 1, "behind the full one");
}

/// The stream's filter: new rows and woken ones, and nothing that the notifier writes.
#[tokio::test]
async fn the_notifiers_own_writes_do_not_call_it_again() {
    for call in ["note_published", "claim_email", "settle_email", "finish"] {
        let bench = bench().await;
        bench.minutes_pass(16);
        let id = notice(NoticeKind::GraceStarted).notice_id;
        assert!(bench.world.store().wake(&id, bench.world.clock.now_ms()).await.unwrap());
        // Ends after this one change and before the next.
        bench.notifier.outbox.faults.at(call, 1, Fault::CrashAfter);
        bench.deliver(&[&id]).await;
        assert!(bench.row().await["woken_at_ms"].is_null(), "after {call}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// What the mail service tells afterwards

/// A sample of the mail service's events, about the e-mail of this name.
fn told(sample: &str, email_id: &str) -> Trigger {
    let mut event = parsed(sample);
    event["detail"]["mail"]["tags"]["email_id"] = json!([email_id]);
    serde_json::from_value(event).unwrap()
}

#[tokio::test]
async fn a_bounce_a_complaint_and_a_rejection_are_noted_once_and_stop_nothing() {
    for (sample, attribute, code) in [
        (BOUNCE, "email_bounced", "Permanent/General"),
        (COMPLAINT, "email_complained", "abuse"),
        (REJECT, "email_rejected", "Bad content"),
    ] {
        let bench = bench().await;
        bench.deliver_pending().await;
        let email_id = bench.mail.sent()[0].email_id.clone();
        for _ in 0..2 {
            let response = bench.notifier.handle(told(sample, &email_id), bench.stop_at_ms()).await.unwrap();
            assert_eq!(response, Response::default());
        }
        let row = bench.row().await;
        assert_eq!((&row[attribute], &row["email_state"]), (&json!(code), &json!("sent")));
        assert!(!row.to_string().contains("ada@example.com"), "{row}");
        assert_eq!(bench.notifier.outbox.faults.calls("note_feedback"), 2);
        // The second time nothing was written, so that nobody is called twice.
        let Trigger::Mail(Told::Of { feedback, .. }) = told(sample, &email_id) else { panic!("{sample}") };
        assert_eq!(bench.world.store().note_feedback(&email_id, &feedback).await, Ok(Noted::Before));
    }
}

#[tokio::test]
async fn a_bounce_of_an_email_whose_fate_was_unknown_is_found_too() {
    let bench = bench().await;
    bench.mail.faults.at("send_email", 1, Fault::LoseReply);
    bench.deliver_pending().await;
    let row = bench.row().await;
    assert_eq!(row["email_state"], "unknown");
    bench.notifier.handle(told(BOUNCE, row["email_id"].as_str().unwrap()), bench.stop_at_ms()).await.unwrap();
    assert_eq!(bench.row().await["email_bounced"], "Permanent/General");
}

#[tokio::test]
async fn a_bounce_of_nobodys_email_changes_nothing() {
    let bench = bench().await;
    for trigger in [Trigger::Mail(Told::Nothing), Trigger::Unknown] {
        assert_eq!(bench.notifier.handle(trigger, bench.stop_at_ms()).await.unwrap(), Response::default());
    }
    let row = bench.row().await;
    assert!(row["email_bounced"].is_null(), "{row}");
    // One with a name of ours that is not found yet comes again.
    assert!(bench.notifier.handle(told(BOUNCE, "nobodys"), bench.stop_at_ms()).await.is_err());
    // A table that is out of reach is another matter: the event comes again.
    bench.deliver_pending().await;
    let email_id = bench.mail.sent()[0].email_id.clone();
    bench.notifier.outbox.faults.at("note_feedback", 1, Fault::LoseRequest);
    assert!(bench.notifier.handle(told(BOUNCE, &email_id), bench.stop_at_ms()).await.is_err());
}

#[test]
fn the_samples_of_the_mail_service_are_read() {
    for (sample, kind) in
        [(BOUNCE, FeedbackKind::Bounced), (COMPLAINT, FeedbackKind::Complained), (REJECT, FeedbackKind::Rejected)]
    {
        let Trigger::Mail(Told::Of { email_id, feedback }) = serde_json::from_str(sample).unwrap() else { panic!("{sample}") };
        assert_eq!((email_id.as_str(), feedback.kind), ("email_sample", kind));
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// The domain events

/// An account with a live subscription to `pro`.
async fn subscribed() -> Account {
    let bench = quiet_bench().await;
    bench.commit(&[]).await;
    bench.world.store().account(&user("ada")).await.unwrap().unwrap()
}

#[tokio::test]
async fn every_kind_of_event_has_a_sample_that_is_as_the_schema_says_and_as_it_is_sent() {
    let schema = parsed(SCHEMA);
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../events/domain-events");
    let count = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(count, KINDS.len(), "one sample for each kind");
    for kind in KINDS {
        let name = kind.as_str();
        let sample = parsed(&std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap());
        let detail = &sample["detail"];
        assert_eq!(
            (&sample["detail-type"], &sample["source"], &detail["type"]),
            (&json!(name), &json!("tokentill"), &json!(name))
        );
        assert!(allows(&schema, &schema, detail), "{name}: {detail}");
        let moment = |field: &str| detail[field].as_str().map(at);
        let text = |field: &str| detail[field].as_str().map(str::to_owned);
        let notice = Notice {
            notice_id: text("id").unwrap(),
            kind,
            user_id: user(detail["user_id"].as_str().unwrap()),
            customer_id: text("customer_id").map(|id| CustomerId::new(id).unwrap()),
            at: moment("at").unwrap(),
            state: serde_json::from_value(detail["state"].clone()).unwrap(),
            reason: serde_json::from_value(detail["reason"].clone()).unwrap(),
            plan: text("plan"),
            previous_plan: text("previous_plan"),
            access_until: moment("access_until"),
            invoice_id: text("invoice_id").map(|id| InvoiceId::new(id).unwrap()),
            day: serde_json::from_value(detail["day"].clone()).unwrap(),
            payment: serde_json::from_value::<Option<Payment>>(detail["payment"].clone()).unwrap(),
        };
        if let Some(payment) = &notice.payment {
            // As a payment's notice is made, so that its id is the one that is sent.
            let mut account = subscribed().await;
            account.user_id = notice.user_id.clone();
            let made = of_payment(
                &account,
                notice.customer_id.as_ref().unwrap(),
                payment.clone(),
                &PriceList::shipped().unwrap(),
                notice.at,
            );
            assert_eq!(made, notice, "{name}");
        }
        let committed_at_ms = moment("committed_at").unwrap().as_secs() * 1000;
        assert_eq!(serde_json::to_value(DomainEvent::of(&notice, committed_at_ms, false)).unwrap(), *detail, "{name}");
        // Every field is always there, and no other type will do.
        for field in schema["required"].as_array().unwrap() {
            let mut less = detail.clone();
            less.as_object_mut().unwrap().remove(field.as_str().unwrap());
            assert!(!allows(&schema, &schema, &less), "{name} without {field}");
        }
        let mut future = detail.clone();
        future["version"] = json!(2);
        assert!(!allows(&schema, &schema, &future));
    }
}

#[tokio::test]
async fn an_account_on_a_test_clock_says_both_times() {
    let bench = quiet_bench().await;
    let mut told = notice(NoticeKind::SubscriptionEnding);
    (told.at, told.access_until) = (at("2027-03-01T00:00:00Z"), Some(at("2027-04-01T00:00:00Z")));
    bench.commit(&[told]).await;
    bench.deliver_pending().await;
    let event = bench.bus.events().remove(0);
    assert_eq!((&event["at"], &event["committed_at"]), (&json!("2027-03-01T00:00:00Z"), &json!("2026-11-22T12:00:00Z")));
    assert!(bench.mail.sent()[0].text.contains("1 April 2027 at 00:00 UTC"));
}

#[test]
fn in_grace_that_is_worth_nothing_an_event_says_that_nothing_is_allowed() {
    let mut told = notice(NoticeKind::GraceStarted);
    assert!(DomainEvent::of(&told, 0, true).allowed);
    told.reason = Some(Reason::PaymentOverdue);
    assert!(!DomainEvent::of(&told, 0, true).allowed);
}

// ---------------------------------------------------------------------------------------------------------------------------
// The adapters, on a wire that answers what AWS may

/// Nothing listens there: what is not answered on the wire is not reachable.
const NOWHERE: &str = "http://127.0.0.1:9";

fn answer(status: u16, body: &Value) -> WireFault {
    WireFault::Answer { status, body: body.to_string() }
}

fn bus_on(wire: &Wire) -> Bus {
    let retries = aws_sdk_eventbridge::config::retry::RetryConfig::standard()
        .with_max_attempts(3)
        .with_initial_backoff(Duration::from_millis(1));
    let config = aws_sdk_eventbridge::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(NOWHERE)
        .retry_config(retries)
        .http_client(wire.clone())
        .build();
    Bus::new(aws_sdk_eventbridge::Client::from_conf(config), "tokentill-domain-events".to_owned())
}

#[tokio::test]
async fn an_event_that_the_bus_does_not_take_is_seen_though_the_call_succeeds() {
    let wire = Wire::default();
    let event = DomainEvent::of(&notice(NoticeKind::GraceStarted), 0, false);
    let taken = json!({"FailedEntryCount": 0, "Entries": [{"EventId": "e1"}]});
    let failed = json!({"FailedEntryCount": 1, "Entries": [{"ErrorCode": "InternalFailure", "ErrorMessage": "x"}]});
    wire.at("PutEvents", 1, answer(200, &taken));
    assert_eq!(bus_on(&wire).publish(&event).await, Ok(()));
    wire.at("PutEvents", 1, answer(200, &failed));
    assert_eq!(bus_on(&wire).publish(&event).await.unwrap_err().reason, "InternalFailure");
    wire.at("PutEvents", 1, answer(200, &json!({"FailedEntryCount": 1, "Entries": []})));
    assert!(bus_on(&wire).publish(&event).await.is_err());
    // A lost call is made again: an event may come twice.
    wire.at("PutEvents", 1, WireFault::LoseRequest);
    wire.at("PutEvents", 2, answer(200, &taken));
    assert_eq!(bus_on(&wire).publish(&event).await, Ok(()));
}

fn ses_on(wire: &Wire) -> Ses {
    let retries =
        aws_sdk_sesv2::config::retry::RetryConfig::standard().with_max_attempts(3).with_initial_backoff(Duration::from_millis(1));
    let config = aws_sdk_sesv2::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url(NOWHERE)
        // What the function's other clients have: it must not hold for e-mails.
        .retry_config(retries)
        .http_client(wire.clone());
    let from = "billing@example.com".to_owned();
    Ses::new(config, Sender { from, from_name: "Acme".to_owned(), reply_to: None, configuration_set: Some("set".to_owned()) })
}

#[tokio::test]
async fn the_mail_service_is_asked_once_whatever_it_answers() {
    let email = Email {
        email_id: "e1".to_owned(),
        to: EMAIL.to_owned(),
        subject: "s".to_owned(),
        html: "<p>h</p>".to_owned(),
        text: "t".to_owned(),
    };
    let refused = |kind: &str| json!({"__type": kind, "message": format!("about {EMAIL}")});
    for (fault, expected) in [
        (answer(200, &json!({"MessageId": "m1"})), "m1"),
        (answer(400, &refused("MessageRejected")), "the mail service refused the e-mail: MessageRejected"),
        (answer(429, &refused("TooManyRequestsException")), "the mail service refused the e-mail: TooManyRequestsException"),
        (answer(403, &json!({"message": "?"})), "the mail service refused the e-mail: unknown"),
        (answer(500, &refused("InternalFailure")), "nobody knows whether the e-mail was sent: HTTP 500"),
        (answer(503, &json!({})), "nobody knows whether the e-mail was sent: HTTP 503"),
        (WireFault::LoseRequest, "nobody knows whether the e-mail was sent: not reachable"),
    ] {
        let wire = Wire::default();
        // REST calls have no name on the wire.
        wire.at("", 1, fault.clone());
        let said = match ses_on(&wire).send(&email).await {
            Ok(id) => id,
            Err(error) => error.to_string(),
        };
        assert_eq!((said.as_str(), wire.calls("")), (expected, 1), "{fault:?}");
    }
}

#[test]
fn an_email_is_not_shown() {
    let email = Email {
        email_id: "e1".to_owned(),
        to: EMAIL.to_owned(),
        subject: "secret".to_owned(),
        html: "secret".to_owned(),
        text: "secret".to_owned(),
    };
    assert_eq!(format!("{email:?}"), "Email(e1)");
}
