//! Account changes: a hint comes in, and the account is what Stripe's present state makes of it.

use expect_test::expect;
use handlers::{Fault, Faulty, Queue, RecountQueue, StripeTruth, TestClock, World};
use serde_json::{Value, json};
use sync::{Again, Listener, Outcome, Sync};
use tokentill::{
    config::StripeMode,
    domain::{
        account::Account,
        facts::{CustomerFacts, LatestInvoice, Status},
        hint::Hint,
        id::{EventId, InvoiceId, UserId},
        notice::Payment,
        price_list::PriceList,
        sync::Alarm,
    },
    dynamodb::Store,
    ports::{Accounts, Clock, MeterErrors, PaymentFacts, StripeError},
};

use crate::samples::{
    ACCOUNT_CHANGE, BODY_MARK, at, cancelled, commit, customer, hint, overdue, parsed, sqs_event, subscriber, user,
};

const SINCE: &str = "2026-11-10T00:00:00Z";

pub(crate) type Function = Sync<StripeTruth, Faulty<Store>, Queue, RecountQueue, Faulty<Store>, Faulty<Store>, TestClock>;

struct Bench {
    world: World,
    sync: Function,
}

pub(crate) fn function(world: &World) -> Function {
    Sync {
        stripe: world.stripe.clone(),
        accounts: world.store_of("sync"),
        queue: world.queue.clone(),
        recounts: world.recounts.clone(),
        quarantine: world.store_of("sync"),
        meter_errors: world.store_of("sync"),
        listener: Listener::default(),
        clock: world.clock.clone().moving_by_itself(),
        prices: PriceList::shipped().unwrap(),
        mode: StripeMode::Test,
    }
}

async fn bench() -> Bench {
    let world = World::start().await;
    let sync = function(&world);
    Bench { world, sync }
}

impl Bench {
    /// Delivers hints as one batch, each sent now; which messages have to come again. Message ids are the hints' event ids.
    async fn deliver(&self, hints: &[&Hint]) -> Vec<String> {
        let bodies: Vec<_> = hints.iter().map(|hint| (hint.event_id.as_str(), json!(hint).to_string())).collect();
        let messages: Vec<_> = bodies.iter().map(|(id, body)| (Some(*id), body.clone())).collect();
        self.deliver_messages(&messages, 1).await
    }

    async fn deliver_messages(&self, messages: &[(Option<&str>, String)], received: u32) -> Vec<String> {
        let now_ms = self.world.clock.now_ms();
        let messages: Vec<_> = messages.iter().map(|(id, body)| (*id, body.clone(), now_ms, received)).collect();
        let answer = self.sync.handle(sqs_event(&messages), i64::MAX).await.unwrap();
        answer.batch_item_failures.into_iter().map(|failure| failure.item_identifier).collect()
    }

    async fn hint(&self, hint: &Hint) -> Result<Outcome, Again> {
        self.sync.hint(hint, self.world.clock.now_ms()).await
    }

    async fn account(&self) -> Account {
        self.world.store().account(&user("ada")).await.unwrap().expect("ada has an account")
    }

    async fn is_processed(&self, hint: &Hint) -> bool {
        self.world.store().is_processed(&hint.event_id).await.unwrap()
    }

    async fn notices(&self) -> Vec<String> {
        let items = self.world.items("outbox").await;
        items.iter().map(|item| item["notice_id"].as_str().unwrap().to_owned()).collect()
    }

    async fn quarantined(&self) -> Vec<(String, String)> {
        let items = self.world.items("quarantine").await;
        let text = |item: &Value, field: &str| item[field].as_str().unwrap().to_owned();
        items.iter().map(|item| (text(item, "reason"), text(item, "quarantine_id"))).collect()
    }
}

fn ada() -> CustomerFacts {
    subscriber("cus_Ada", "ada", SINCE)
}

fn provision() -> Hint {
    hint("evt_provision", "checkout.session.completed", SINCE, "cs_1", Some("cus_Ada"))
}

fn paid(event_id: &str) -> Hint {
    hint(event_id, "invoice.paid", "2026-11-22T11:59:59Z", "in_1", Some("cus_Ada"))
}

fn failed(event_id: &str, created: &str) -> Hint {
    hint(event_id, "invoice.payment_failed", created, "in_1", Some("cus_Ada"))
}

fn committed(notices: usize) -> Outcome {
    Outcome::Committed { user_id: user("ada"), notices, alarms: Vec::new() }
}

fn not_available() -> StripeError {
    StripeError::Unavailable { reason: "500".to_owned(), retry_after_secs: None, request_id: "req_1".to_owned() }
}

fn with_two_more_looks(first: &Hint) -> Vec<Hint> {
    vec![first.clone(), paid("evt_look_1"), paid("evt_look_2")]
}

#[tokio::test]
async fn the_sample_hint_provisions_the_account_with_its_mark_its_notice_and_its_customer() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let event = serde_json::from_value(parsed(ACCOUNT_CHANGE)).unwrap();
    assert!(bench.sync.handle(event, i64::MAX).await.unwrap().batch_item_failures.is_empty());
    let mut stored = Vec::new();
    for table in ["accounts", "customers", "processed", "outbox", "quarantine"] {
        stored.push((table, bench.world.items(table).await));
    }
    expect![[r#"
        accounts [{"announced":{"end_told":null,"ending_at":null,"plan":"pro","reminders":0,"state":"active"},"clock_offset_secs":0,"customer_id":"cus_Ada","fetched_at_ms":1795348800000,"final_through":{},"overdue":{},"paid_until":null,"paused_by":null,"refused_claimants":[],"segments":[{"billed":["requests","tokens_in","tokens_out"],"customer":"cus_Ada","end":1796860800,"is_trial":false,"plan":"pro","renews":{"anchor":1794268800,"count":1,"interval":"month"},"start":1794268800,"subscription":"sub_Ada"}],"subscription":{"cancel_at":null,"ended_at":null,"flexible":true,"id":"sub_Ada","plan":"pro","status":"active","trial_end":null},"told_at":1795348800,"trial_end_told":null,"user_id":"ada","version":1}]
        customers [{"customer_id":"cus_Ada","failures":{},"seen_at_ms":1795348800000,"seen_before_ms":0,"standing":"joined","unfailed":{"fetched_at_ms":1795348800000,"invoices":[]},"untold":{},"user_id":"ada","version":1}]
        processed [{"event_id":"evt_1TWcheckout","expires_at":1798372800,"processed_at_ms":1795348800000}]
        outbox [{"access_until":null,"at":1795348800,"committed_at_ms":1795348800000,"customer_id":"cus_Ada","day":null,"expires_at":1803124800,"invoice_id":null,"kind":"account.provisioned","notice_id":"3:ada/1:1/19:account.provisioned","payment":null,"pending_shard":"11","plan":"pro","previous_plan":null,"reason":null,"state":"active","user_id":"ada"}]
        quarantine []"#]]
    .assert_eq(&stored.iter().map(|(table, items)| format!("{table} {}", json!(items))).collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn a_redelivered_hint_is_skipped_by_its_mark_without_asking_stripe() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    assert_eq!(bench.hint(&provision()).await, Ok(committed(1)));
    let asked = bench.world.stripe.faults.calls("customer");
    for _ in 0..3 {
        bench.world.clock.advance_ms(86_400_000);
        assert_eq!(bench.hint(&provision()).await, Ok(Outcome::Skipped));
    }
    assert_eq!(bench.world.stripe.faults.calls("customer"), asked);
    assert_eq!(bench.account().await.version, 1);
}

#[tokio::test]
async fn a_hint_is_skipped_if_the_fetch_began_at_least_2_s_after_it_was_sent() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let fetched_ms = bench.account().await.fetched_at_ms;
    let sent_before = |ms: i64| fetched_ms - ms;
    assert_eq!(bench.sync.hint(&paid("evt_1"), sent_before(2_000)).await, Ok(Outcome::Skipped));
    assert_eq!(bench.sync.hint(&paid("evt_2"), sent_before(1_999)).await, Ok(committed(0)));
    assert!(!bench.is_processed(&paid("evt_1")).await && bench.is_processed(&paid("evt_2")).await);
}

#[tokio::test]
async fn a_failure_that_begins_the_grace_period_earlier_is_never_skipped() {
    let bench = bench().await;
    bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-21T00:00:00Z"));
    bench.hint(&failed("evt_late", "2026-11-22T11:00:00Z")).await.unwrap();
    let since = async || bench.account().await.overdue[&InvoiceId::new("in_1").unwrap()].since;
    assert_eq!(since().await, at("2026-11-22T11:00:00Z"));
    let long_ago = bench.account().await.fetched_at_ms - 60_000;
    let earlier = failed("evt_early", "2026-11-22T10:00:00Z");
    assert!(matches!(bench.sync.hint(&earlier, long_ago).await, Ok(Outcome::Committed { .. })));
    assert_eq!(since().await, at("2026-11-22T10:00:00Z"));
    let later = failed("evt_later", "2026-11-22T11:30:00Z");
    assert_eq!(bench.sync.hint(&later, long_ago).await, Ok(Outcome::Skipped), "it tells nothing new");
}

/// What is told is told by the moment of the fetch; what becomes due before the commit is left to the sweeper, which must find it.
#[tokio::test]
async fn a_deadline_that_passes_during_the_fetch_is_due_at_once() {
    let bench = bench().await;
    bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
    bench.hint(&failed("evt_1", "2026-11-22T11:30:00Z")).await.unwrap();
    bench.world.clock.set("2026-11-29T11:29:59Z");
    let clock = bench.world.clock.clone();
    bench.world.stripe.faults.meanwhile("customer", 1, async move {
        clock.set("2026-11-29T11:30:01Z");
    });
    bench.hint(&paid("evt_2")).await.unwrap();
    assert_eq!(bench.world.clock.now(), at("2026-11-29T11:30:01Z"));
    assert_eq!(bench.world.item("accounts").await["due_at"], at("2026-11-29T11:30:00Z").as_secs());
    assert!(bench.notices().await.iter().all(|notice| !notice.ends_with("access.ended")));
}

/// G2: while a bank is asked the invoice is open and no failure of it is known; the one that is told then is news.
#[tokio::test]
async fn a_failure_of_an_invoice_that_was_open_without_one_is_never_skipped() {
    let bench = bench().await;
    let mut asked = overdue(ada(), "in_1", "2026-11-21T00:00:00Z");
    asked.subscriptions[0].status = Status::Active;
    bench.world.stripe.set(asked.clone());
    bench.hint(&provision()).await.unwrap();
    let long_ago = bench.account().await.fetched_at_ms - 60_000;
    let failure = failed("evt_1", "2026-11-22T11:00:00Z");
    assert_eq!(bench.sync.hint(&failure, long_ago).await, Ok(committed(0)), "no status tells of it yet");
    let record = async || bench.world.store().customer(&customer("cus_Ada")).await.unwrap().unwrap();
    assert_eq!(record().await.failures.values().next(), Some(&at("2026-11-22T11:00:00Z")));
    // Nor where the fetch that is known of was one by an older version, which leaves what an earlier fetch showed.
    bench.world.stripe.set(ada());
    bench.hint(&paid("evt_2")).await.unwrap();
    let mut stale = record().await;
    stale.unfailed.as_mut().unwrap().fetched_at_ms -= 1;
    bench.world.stripe.set(asked);
    stale.version += 1;
    let marked = EventId::new("evt_older_version").unwrap();
    assert_eq!(bench.world.store().record(&stale, &marked).await.unwrap(), tokentill::ports::Commit::Done);
    assert_eq!(bench.sync.hint(&failed("evt_3", "2026-11-22T11:00:00Z"), long_ago).await, Ok(committed(0)));
}

#[tokio::test]
async fn fifty_failures_of_an_invoice_that_is_paid_cost_three_fetches_at_most() {
    for (batch, apart_ms) in [(10, 0), (1, 0), (10, 100), (1, 100)] {
        let bench = bench().await;
        bench.world.stripe.set(ada());
        let failures = |name: &str| -> Vec<_> {
            let of = |n: i64| (n * apart_ms, failed(&format!("evt_{name}_{n}"), "2026-11-22T11:00:00Z"));
            (0..50).map(of).collect()
        };
        let joined = bench.fetches_of(&failures("joined"), batch).await;
        bench.world.clock.advance_ms(60_000);
        bench.world.stripe.set(CustomerFacts { user_id: None, ..subscriber("cus_Nobody", "nobody", SINCE) });
        let of_nobody = |(ms, hint): (i64, Hint)| (ms, Hint { customer: Some(customer("cus_Nobody")), ..hint });
        let nobody = bench.fetches_of(&failures("nobody").into_iter().map(of_nobody).collect::<Vec<_>>(), batch).await;
        assert!(joined <= 3 && nobody <= 3, "{batch} a batch, {apart_ms} ms apart: {joined}, {nobody}");
    }
}

#[tokio::test]
async fn a_batch_of_thin_events_asks_once_whose_an_object_is() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.stripe.set_object("sub_Ada", &customer("cus_Ada"));
    let thin: Vec<_> = (0..10)
        .map(|n| (n * 10, hint(&format!("evt_{n}"), "customer.subscription.updated", "2026-11-22T12:00:00Z", "sub_Ada", None)))
        .collect();
    assert!(bench.fetches_of(&thin, 10).await <= 3);
    assert_eq!(bench.world.stripe.faults.calls("customer_of"), 1);
    // The next batch asks again.
    let next = hint("evt_next", "customer.subscription.updated", "2026-11-22T12:00:00Z", "sub_Ada", None);
    bench.fetches_of(&[(60_000, next)], 10).await;
    assert_eq!(bench.world.stripe.faults.calls("customer_of"), 2);
}

#[tokio::test]
async fn a_replay_is_never_skipped_and_tells_nothing_twice() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let replay = Hint { replay: true, ..provision() };
    let long_ago = bench.world.clock.now_ms() - 60_000;
    for version in 2..4 {
        assert_eq!(bench.sync.hint(&replay, long_ago).await, Ok(committed(0)));
        assert_eq!(bench.account().await.version, version);
    }
    assert_eq!(bench.notices().await.len(), 1);
}

#[tokio::test]
async fn a_lost_race_starts_again_and_the_newest_fetch_wins() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    // Ours fetches an active subscription; before it commits, the payment fails and another function commits that.
    let (other, stripe) = (function(&bench.world), bench.world.stripe.clone());
    let clock = bench.world.clock.clone();
    bench.sync.accounts.faults.meanwhile("commit", 1, async move {
        stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
        clock.advance_ms(10);
        let failure = failed("evt_failed", "2026-11-22T11:30:00Z");
        other.hint(&failure, clock.now_ms()).await.unwrap();
    });
    let asked = bench.world.stripe.faults.calls("customer");
    assert_eq!(bench.hint(&paid("evt_racing")).await, Ok(committed(0)));
    let account = bench.account().await;
    assert_eq!(account.subscription.unwrap().status, Status::PastDue, "not the older fetch's");
    assert_eq!(account.overdue[&InvoiceId::new("in_1").unwrap()].since, at("2026-11-22T11:30:00Z"));
    assert_eq!((account.version, bench.world.stripe.faults.calls("customer") - asked), (3, 3));
    assert!(bench.is_processed(&paid("evt_racing")).await);
}

#[tokio::test]
async fn a_commit_that_loses_every_race_leaves_nothing_and_comes_again() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
    for nth in 1..=5 {
        let (other, clock, stripe) = (function(&bench.world), bench.world.clock.clone(), bench.world.stripe.clone());
        bench.sync.accounts.faults.meanwhile("commit", nth, async move {
            stripe.set(ada());
            let look = Hint { replay: true, ..paid("evt_other") };
            other.hint(&look, clock.now_ms()).await.unwrap();
            stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
        });
    }
    let racing = failed("evt_racing", "2026-11-22T11:30:00Z");
    assert_eq!(bench.hint(&racing).await, Err(Again::Races));
    assert!(!bench.is_processed(&racing).await, "neither its mark");
    assert_eq!(bench.notices().await.len(), 1, "nor its notice");
    assert!(bench.account().await.overdue.is_empty(), "nor its state");
    assert_eq!(bench.hint(&racing).await, Ok(committed(1)));
}

#[tokio::test]
async fn two_first_hints_at_once_provision_once_and_are_told_once() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let others: Vec<Function> = (0..4).map(|_| function(&bench.world)).collect();
    let now_ms = bench.world.clock.now_ms();
    let hints: Vec<Hint> = (0..4).map(|n| hint(&format!("evt_{n}"), "invoice.paid", SINCE, "in_1", Some("cus_Ada"))).collect();
    let outcomes = futures_util::future::join_all(others.iter().zip(&hints).map(|(sync, hint)| sync.hint(hint, now_ms))).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Outcome::Committed { .. }))), "{outcomes:?}");
    assert_eq!(bench.account().await.version, 4);
    assert_eq!(bench.notices().await, ["3:ada/1:1/19:account.provisioned"]);
}

#[tokio::test]
async fn one_hint_five_times_at_once_has_one_effect() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let functions: Vec<Function> = (0..5).map(|_| function(&bench.world)).collect();
    let (now_ms, provision) = (bench.world.clock.now_ms(), provision());
    let outcomes = futures_util::future::join_all(functions.iter().map(|sync| sync.hint(&provision, now_ms))).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(bench.notices().await, ["3:ada/1:1/19:account.provisioned"]);
    assert_eq!((bench.world.items("accounts").await.len(), bench.world.items("processed").await.len()), (1, 1));
    let version = bench.account().await.version;
    assert_eq!(bench.hint(&provision).await, Ok(Outcome::Skipped));
    assert_eq!(bench.account().await.version, version);
}

/// G2: read after the fetch, the version would be that of a newer account, which an older fetch would then undo.
#[tokio::test]
async fn whenever_another_commit_comes_an_older_fetch_undoes_nothing() {
    for call in ["is_processed", "customer", "account", "commit"] {
        let bench = bench().await;
        bench.world.stripe.set(ada());
        bench.hint(&provision()).await.unwrap();
        bench.world.clock.advance_ms(60_000);
        let (other, stripe, now_ms) = (function(&bench.world), bench.world.stripe.clone(), bench.world.clock.now_ms());
        bench.sync.accounts.faults.meanwhile(call, 1, async move {
            stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
            let late = Hint { replay: true, ..failed("evt_failed", "2026-11-22T11:30:00Z") };
            other.hint(&late, now_ms).await.unwrap();
        });
        bench.hint(&paid("evt_racing")).await.unwrap();
        assert_eq!(bench.account().await.subscription.unwrap().status, Status::PastDue, "{call}");
        assert_eq!(overdue_since(&bench).await, "2026-11-22T11:30:00Z", "{call}");
    }
}

#[tokio::test]
async fn an_end_a_late_update_and_a_creation_of_one_second_end_as_stripe_shows_in_any_order() {
    let about = |event_id: &str, kind: &str| hint(event_id, kind, "2026-11-22T11:00:00Z", "sub_Ada", Some("cus_Ada"));
    let hints = [
        about("evt_1", "customer.subscription.created"),
        about("evt_2", "customer.subscription.updated"),
        about("evt_3", "customer.subscription.deleted"),
    ];
    let mut ends = std::collections::BTreeSet::new();
    for order in permutations(hints.len()) {
        let bench = bench().await;
        bench.world.stripe.set(cancelled(ada(), "2026-11-22T11:00:00Z"));
        for index in order {
            bench.world.clock.advance_ms(10_000);
            assert_eq!(bench.deliver(&[&hints[index]]).await, Vec::<String>::new());
        }
        let account = bench.account().await;
        let subscription = account.subscription.unwrap();
        ends.insert(format!("{:?} {:?} {:?}", subscription.status, subscription.ended_at, account.announced));
    }
    assert_eq!(ends.len(), 1, "{ends:#?}");
    assert!(ends.first().unwrap().starts_with("Canceled"), "{ends:?}");
}

/// The queue's clock and those of three functions, up to five minutes apart: what decides is a version, and Stripe's own moments.
#[tokio::test]
async fn functions_whose_clocks_differ_by_five_minutes_make_the_same_account_and_tell_once() {
    let mut ends = std::collections::BTreeSet::new();
    for order in permutations(3) {
        let bench = bench().await;
        let functions: Vec<Function> = [-300_000, 0, 300_000]
            .map(|skew_ms| {
                let sync = function(&bench.world);
                let clock = TestClock::at("2026-11-22T12:00:00Z");
                clock.advance_ms(skew_ms);
                Function { clock, ..sync }
            })
            .into();
        bench.world.stripe.set(ada());
        functions[order[0]].hint(&provision(), bench.world.clock.now_ms()).await.unwrap();
        bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
        for (place, which) in order.into_iter().enumerate() {
            let at = ["2026-11-22T11:30:00Z", "2026-11-22T11:40:00Z", "2026-11-22T11:50:00Z"][place];
            // Sent when the function's own clock says so: it has seen nothing since.
            let sent_at_ms = functions[which].clock.now_ms() + 600_000;
            functions[which].hint(&failed(&format!("evt_{place}"), at), sent_at_ms).await.unwrap();
        }
        let account = bench.account().await;
        let mut told = bench.notices().await;
        told.iter_mut().for_each(|notice| *notice = notice.rsplit(':').next().unwrap().to_owned());
        told.sort();
        ends.insert(format!("{:?} {:?} {told:?}", account.subscription.unwrap().status, account.overdue));
    }
    assert_eq!(ends.len(), 1, "{ends:#?}");
    let end = ends.first().unwrap();
    assert!(end.ends_with(r#"["account.provisioned", "grace.started"]"#), "{end}");
    assert!(end.contains("since: 2026-11-22T11:30:00Z"), "{end}");
}

#[tokio::test]
async fn account_mark_notice_and_customer_commit_together_or_not_at_all() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    for fault in [Fault::LoseRequest, Fault::LoseReply] {
        bench.sync.accounts.faults.at("commit", 1, fault);
        assert!(matches!(bench.hint(&provision()).await, Err(Again::Store(_))));
        let mut counts = Vec::new();
        for table in ["accounts", "customers", "processed", "outbox"] {
            counts.push(bench.world.items(table).await.len());
        }
        let expected = if fault == Fault::LoseReply { [1; 4] } else { [0; 4] };
        assert_eq!(counts, expected, "{fault:?}");
    }
    assert_eq!(bench.world.wire.calls("TransactWriteItems"), 1, "all of them are in one transaction");
}

#[tokio::test]
async fn a_commit_whose_reply_was_lost_is_recognised_when_the_hint_comes_again() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.sync.accounts.faults.at("commit", 1, Fault::LoseReply);
    assert_eq!(bench.deliver(&[&provision()]).await, ["evt_provision"]);
    let before = bench.account().await;
    assert_eq!(bench.deliver(&[&provision()]).await, Vec::<String>::new());
    assert_eq!(bench.account().await, before);
    assert_eq!(bench.notices().await, ["3:ada/1:1/19:account.provisioned"]);
}

#[tokio::test]
async fn a_commit_whose_reply_was_lost_on_the_wire_is_repeated_by_the_sdk_without_a_second_effect() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.wire.at("TransactWriteItems", 1, handlers::WireFault::LoseReply);
    assert_eq!(bench.hint(&provision()).await, Ok(committed(1)));
    assert_eq!(bench.world.wire.calls("TransactWriteItems"), 2);
    assert_eq!((bench.account().await.version, bench.notices().await.len()), (1, 1));
}

#[tokio::test]
async fn a_conflicting_transaction_is_a_lost_race_and_throttling_is_not() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.wire.at("TransactWriteItems", 1, handlers::cancelled(&["TransactionConflict", "None", "None", "None"]));
    assert_eq!(bench.hint(&provision()).await, Ok(committed(1)), "it starts again at once");
    bench.world.wire.at("TransactWriteItems", 1, handlers::cancelled(&["None", "ThrottlingError", "None"]));
    assert!(matches!(bench.hint(&paid("evt_1")).await, Err(Again::Store(_))), "it backs off");
    assert_eq!(bench.account().await.version, 1);
}

#[tokio::test]
async fn a_customer_that_stripe_does_not_know_is_recorded_and_acknowledged() {
    let bench = bench().await;
    let stranger = hint("evt_1", "customer.updated", SINCE, "cus_Nobody", Some("cus_Nobody"));
    assert_eq!(bench.deliver(&[&stranger]).await, Vec::<String>::new());
    assert_eq!(bench.world.item("customers").await["standing"], "not_found");
    assert!(bench.is_processed(&stranger).await);
    assert!(bench.world.items("accounts").await.is_empty());
}

#[tokio::test]
async fn a_customer_without_a_user_is_recorded_and_acknowledged_and_joined_once_it_has_one() {
    let bench = bench().await;
    bench.world.stripe.set(CustomerFacts { user_id: None, ..ada() });
    assert_eq!(bench.deliver(&[&provision()]).await, Vec::<String>::new());
    assert_eq!(bench.world.item("customers").await["standing"], "no_user");
    assert!(bench.is_processed(&provision()).await && bench.world.items("accounts").await.is_empty());
    bench.world.stripe.set(ada());
    assert_eq!(bench.hint(&hint("evt_2", "customer.updated", SINCE, "cus_Ada", Some("cus_Ada"))).await, Ok(committed(1)));
    assert_eq!(bench.world.item("customers").await["standing"], "joined");
}

#[tokio::test]
async fn a_second_claimant_is_quarantined_and_recorded_and_the_first_keeps_the_user() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let before = bench.account().await;
    bench.world.stripe.set(subscriber("cus_Other", "ada", "2026-11-20T00:00:00Z"));
    for event_id in ["evt_claim_1", "evt_claim_2"] {
        let claim = hint(event_id, "checkout.session.completed", "2026-11-20T00:00:00Z", "cs_2", Some("cus_Other"));
        assert_eq!(bench.hint(&claim).await, Ok(Outcome::SecondClaimant { user_id: user("ada") }));
        assert!(bench.is_processed(&claim).await);
    }
    let after = bench.account().await;
    assert_eq!(
        (&after.customer_id, &after.subscription, &after.segments),
        (&before.customer_id, &before.subscription, &before.segments)
    );
    assert_eq!(after.refused_claimants.iter().map(ToString::to_string).collect::<Vec<_>>(), ["cus_Other"]);
    let entries = bench.quarantined().await;
    assert_eq!(entries, [("second_claimant".to_owned(), "15:second_claimant/3:ada/9:cus_Other".to_owned())]);
    let record = bench.world.store().customer(&customer("cus_Other")).await.unwrap().unwrap();
    assert_eq!((json!(record.standing), record.user_id), (json!("second_claimant"), Some(user("ada"))));
}

/// G2: the holder's end may be on its way, in another group of the queue.
#[tokio::test]
async fn a_claim_that_overtakes_the_holders_end_is_granted_all_the_same() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let mut ended = ada();
    ended.subscriptions[0].status = Status::Canceled;
    ended.subscriptions[0].ended_at = Some(at("2026-11-20T00:00:00Z"));
    bench.world.stripe.set(ended);
    bench.world.stripe.set(subscriber("cus_Other", "ada", "2026-11-20T00:00:00Z"));
    let claim = hint("evt_claim", "checkout.session.completed", "2026-11-20T00:00:00Z", "cs_2", Some("cus_Other"));
    assert!(matches!(bench.hint(&claim).await, Ok(Outcome::Committed { .. })));
    let account = bench.account().await;
    assert_eq!((account.customer_id.as_str(), account.has_live_subscription()), ("cus_Other", true));
    assert!(bench.quarantined().await.is_empty());
}

/// G2: in the other order the claim was refused rightly; it is looked at again when the holder ends.
#[tokio::test]
async fn a_refused_claimant_is_looked_at_again_when_the_holder_ends() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    bench.world.stripe.set(subscriber("cus_Other", "ada", "2026-11-20T00:00:00Z"));
    let claim = hint("evt_claim", "checkout.session.completed", "2026-11-20T00:00:00Z", "cs_2", Some("cus_Other"));
    assert_eq!(bench.hint(&claim).await, Ok(Outcome::SecondClaimant { user_id: user("ada") }));
    let mut ended = ada();
    ended.subscriptions[0].status = Status::Canceled;
    ended.subscriptions[0].ended_at = Some(at("2026-11-21T00:00:00Z"));
    bench.world.stripe.set(ended);
    let end = hint("evt_end", "customer.subscription.deleted", "2026-11-21T00:00:00Z", "sub_Ada", Some("cus_Ada"));
    bench.hint(&end).await.unwrap();
    let queued = bench.world.queue.hints();
    assert_eq!(queued.iter().map(|hint| hint.customer.clone().unwrap().to_string()).collect::<Vec<_>>(), ["cus_Other"]);
    bench.hint(&queued[0]).await.unwrap();
    assert_eq!(bench.account().await.customer_id.as_str(), "cus_Other");
}

#[tokio::test]
async fn a_customer_that_names_another_user_leaves_the_first_and_one_that_names_nobody_stays() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let mut nameless = ada();
    nameless.user_id = None;
    nameless.subscriptions[0].user_id = None;
    bench.world.stripe.set(nameless);
    let updated = |event_id: &str| hint(event_id, "customer.updated", "2026-11-20T00:00:00Z", "cus_Ada", Some("cus_Ada"));
    let Ok(Outcome::Committed { user_id, alarms, .. }) = bench.hint(&updated("evt_nobody")).await else {
        panic!("not committed")
    };
    assert_eq!((user_id, alarms), (user("ada"), vec![Alarm::UserNoLongerNamed]));
    assert!(bench.account().await.has_live_subscription());
    bench.world.stripe.set(subscriber("cus_Ada", "bob", SINCE));
    bench.hint(&updated("evt_bob")).await.unwrap();
    assert!(!bench.account().await.has_live_subscription(), "ada's access must not outlive her customer");
    let bob = bench.world.store().account(&user("bob")).await.unwrap().unwrap();
    assert_eq!((bob.customer_id.as_str(), bob.has_live_subscription()), ("cus_Ada", true));
}

#[tokio::test]
async fn another_customer_takes_over_once_the_first_has_no_live_subscription() {
    let bench = bench().await;
    commit(&bench.world, "ada", &ada()).await;
    commit(&bench.world, "ada", &cancelled(ada(), "2026-11-15T00:00:00Z")).await;
    bench.world.stripe.set(subscriber("cus_Other", "ada", "2026-11-20T00:00:00Z"));
    let claim = hint("evt_claim", "checkout.session.completed", "2026-11-20T00:00:00Z", "cs_2", Some("cus_Other"));
    assert!(matches!(bench.hint(&claim).await, Ok(Outcome::Committed { .. })));
    let account = bench.account().await;
    assert_eq!((account.customer_id, account.version), (customer("cus_Other"), 3));
    let customers: Vec<_> = account.segments.iter().map(|segment| segment.customer.as_str()).collect();
    assert_eq!(customers, ["cus_Ada", "cus_Other"], "late usage is still billed to the customer it belongs to");
    assert!(bench.quarantined().await.is_empty());
}

#[tokio::test]
async fn an_unknown_price_keeps_the_last_known_plan_and_alarms() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let mut facts = ada();
    facts.subscriptions[0].items.truncate(1);
    facts.subscriptions[0].items[0].lookup_key = Some("enterprise".to_owned());
    bench.world.stripe.set(facts);
    let alarms = vec![Alarm::UnknownPrice { lookup_key: Some("enterprise".to_owned()) }];
    let expected = Outcome::Committed { user_id: user("ada"), notices: 0, alarms };
    assert_eq!(bench.hint(&paid("evt_1")).await, Ok(expected));
    assert_eq!(bench.account().await.subscription.unwrap().plan.unwrap().as_str(), "pro");
}

#[tokio::test]
async fn every_order_of_the_same_hints_ends_in_the_same_account() {
    let hints = [
        provision(),
        failed("evt_failed_1", "2026-11-22T08:00:00Z"),
        failed("evt_failed_2", "2026-11-22T10:00:00Z"),
        hint("evt_updated", "customer.subscription.updated", "2026-11-22T10:00:01Z", "sub_Ada", Some("cus_Ada")),
    ];
    let mut ends = std::collections::BTreeSet::new();
    for order in permutations(hints.len()) {
        let bench = bench().await;
        bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T07:00:00Z"));
        for (place, index) in order.iter().enumerate() {
            bench.world.clock.advance_ms(500 * i64::try_from(place).unwrap());
            assert_eq!(bench.deliver(&[&hints[*index]]).await, Vec::<String>::new());
            // Every hint comes twice, as Stripe may have it.
            assert_eq!(bench.deliver(&[&hints[*index]]).await, Vec::<String>::new());
        }
        let mut account = serde_json::to_value(bench.account().await).unwrap();
        let mut notices = bench.notices().await;
        for counter in ["version", "fetched_at_ms", "told_at"] {
            account[counter].take();
        }
        notices.iter_mut().for_each(|notice| *notice = notice.rsplit(':').next().unwrap().to_owned());
        ends.insert(format!("{account} {notices:?}"));
    }
    assert_eq!(ends.len(), 1, "{ends:#?}");
    let end = ends.first().unwrap();
    assert!(end.contains(&format!(r#""overdue":{{"in_1":{{"since":{}}}}}"#, at("2026-11-22T08:00:00Z").as_secs())), "{end}");
}

#[tokio::test]
async fn after_a_payment_every_order_of_the_same_hints_ends_without_grace() {
    let hints = [provision(), failed("evt_1", "2026-11-22T08:00:00Z"), failed("evt_2", "2026-11-22T10:00:00Z"), paid("evt_3")];
    for order in permutations(hints.len()) {
        let bench = bench().await;
        for (place, index) in order.iter().enumerate() {
            // Stripe's state moves on while the hints arrive: it is paid before the last one does.
            let paid_by_now = place + 1 == order.len();
            bench.world.stripe.set(if paid_by_now { ada() } else { overdue(ada(), "in_1", "2026-11-22T07:00:00Z") });
            bench.world.clock.advance_ms(10_000);
            assert_eq!(bench.deliver(&[&hints[*index]]).await, Vec::<String>::new());
        }
        let account = bench.account().await;
        assert_eq!((account.subscription.unwrap().status, account.overdue.len()), (Status::Active, 0), "{order:?}");
    }
}

fn permutations(length: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for _ in 0..length {
        let longer =
            |some: Vec<usize>| (0..length).filter(|n| !some.contains(n)).map(|n| [some.clone(), vec![n]].concat()).collect();
        all = all.into_iter().flat_map(|some| -> Vec<Vec<usize>> { longer(some) }).collect();
    }
    all
}

#[tokio::test]
async fn a_thin_event_finds_its_customer_by_its_object() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.stripe.set_object("sub_Ada", &customer("cus_Ada"));
    let thin = hint("evt_thin", "customer.subscription.past_due", SINCE, "sub_Ada", None);
    assert_eq!(bench.hint(&thin).await, Ok(committed(1)));
    let gone = hint("evt_gone", "customer.subscription.past_due", SINCE, "sub_Gone", None);
    assert_eq!(bench.deliver(&[&gone]).await, Vec::<String>::new(), "an object that is gone blocks nothing");
}

#[tokio::test]
async fn a_test_clock_queues_each_of_its_customers_once() {
    let bench = bench().await;
    bench.world.stripe.set_clock("clock_1", vec![customer("cus_Ada"), customer("cus_Bob")]);
    let advanced = hint("evt_clock", "test_helpers.test_clock.ready", SINCE, "clock_1", None);
    for _ in 0..2 {
        assert_eq!(bench.hint(&advanced).await, Ok(Outcome::FannedOut { customers: 2 }));
    }
    let hints = bench.world.queue.hints();
    let customers: Vec<_> = hints.iter().map(|hint| hint.customer.as_ref().unwrap().as_str()).collect();
    assert_eq!(customers, ["cus_Ada", "cus_Bob"]);
    assert!(hints.iter().all(|hint| hint.replay), "each is looked at afresh");
    bench.world.stripe.set(CustomerFacts { test_clock: Some(at("2026-12-25T00:00:00Z")), ..ada() });
    assert_eq!(bench.hint(&hints[0]).await, Ok(committed(1)));
    let offset_secs = at("2026-12-25T00:00:00Z").secs_since(at("2026-11-22T12:00:00Z"));
    assert_eq!(bench.account().await.clock_offset_secs, offset_secs);
}

#[tokio::test]
async fn a_test_clock_whose_fan_out_breaks_off_comes_again() {
    let bench = bench().await;
    bench.world.stripe.set_clock("clock_1", vec![customer("cus_Ada"), customer("cus_Bob")]);
    bench.world.queue.faults.at("send", 2, Fault::LoseRequest);
    let advanced = hint("evt_clock", "test_helpers.test_clock.ready", SINCE, "clock_1", None);
    assert_eq!(bench.deliver(&[&advanced]).await, ["evt_clock"]);
    assert_eq!(bench.deliver(&[&advanced]).await, Vec::<String>::new());
    assert_eq!(bench.world.queue.hints().len(), 2);
}

#[tokio::test]
async fn a_hint_of_a_newer_version_waits_for_a_newer_function() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let mut newer = json!(provision());
    newer["v"] = 2.into();
    let unrecognisable = json!({"v": 3, "shape": "unknown"});
    let messages = [(Some("m1"), newer.to_string()), (Some("m2"), unrecognisable.to_string())];
    assert_eq!(bench.deliver_messages(&messages, 1).await, ["m1", "m2"]);
    assert!(bench.world.items("accounts").await.is_empty() && bench.quarantined().await.is_empty());
}

#[tokio::test]
async fn a_hint_with_fields_that_this_version_does_not_know_is_read() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let mut newer = json!(provision());
    newer["reason"] = "a newer webhook says more".into();
    assert_eq!(bench.deliver_messages(&[(Some("m1"), newer.to_string())], 1).await, Vec::<String>::new());
    assert_eq!(bench.account().await.version, 1);
}

#[tokio::test]
async fn an_unreadable_body_is_quarantined_and_the_others_commit() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let bad = [String::new(), "not json".to_owned(), "[]".to_owned(), json!({"v": 1, "secret": BODY_MARK}).to_string()];
    let mut messages: Vec<_> = ["b1", "b2", "b3", "b4"].into_iter().map(Some).zip(bad).collect();
    messages.push((Some("good"), json!(provision()).to_string()));
    assert_eq!(bench.deliver_messages(&messages, 1).await, Vec::<String>::new());
    assert_eq!(bench.account().await.version, 1);
    let entries = bench.quarantined().await;
    assert_eq!(entries.len(), 4);
    assert!(entries.iter().all(|(reason, _)| reason == "invalid"), "{entries:?}");
    assert_eq!(bench.deliver_messages(&messages, 2).await, Vec::<String>::new());
    assert_eq!(bench.quarantined().await.len(), 4, "once, however often it comes");
}

#[tokio::test]
async fn unreadable_bodies_without_a_message_id_are_each_kept() {
    let bench = bench().await;
    let long = "not json ".repeat(1_000);
    for id in [None, Some("")] {
        let messages = ["not json", "neither this", long.as_str()].map(|body| (id, body.to_owned()));
        assert_eq!(bench.deliver_messages(&messages, 1).await, Vec::<String>::new());
        assert_eq!(bench.quarantined().await.len(), 3);
    }
}

#[tokio::test]
async fn a_transient_error_puts_its_hint_off_longer_each_time_and_only_that_hint_comes_again() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.stripe.set(subscriber("cus_Bob", "bob", SINCE));
    let bob = hint("evt_bob", "invoice.paid", SINCE, "in_9", Some("cus_Bob"));
    for received in [1, 2, 3, 9, 10, 500] {
        bench.world.stripe.fail_next(not_available());
        let messages = [(Some("failing"), json!(provision()).to_string()), (Some("bob"), json!(bob).to_string())];
        assert_eq!(bench.deliver_messages(&messages, received).await, ["failing"]);
    }
    let postponed: Vec<u32> = bench.world.queue.postponed().iter().map(|(_, secs)| *secs).collect();
    assert_eq!(postponed, [2, 4, 8, 512, 900, 900]);
    assert!(bench.world.queue.postponed().iter().all(|(handle, _)| handle == "handle of failing"));
    assert!(bench.world.store().account(&user("bob")).await.unwrap().is_some());
    assert!(!bench.is_processed(&provision()).await);
    assert_eq!(bench.deliver(&[&provision()]).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_hint_that_cannot_even_be_put_off_still_comes_again() {
    let bench = bench().await;
    bench.world.stripe.fail_next(not_available());
    bench.world.queue.faults.at("postpone", 1, Fault::LoseRequest);
    assert_eq!(bench.deliver(&[&provision()]).await, ["evt_provision"]);
}

#[tokio::test]
async fn every_stripe_error_but_not_found_comes_again() {
    let bench = bench().await;
    let request_id = || "req_1".to_owned();
    let (status, code) = (401, "invalid".to_owned());
    for error in [
        not_available(),
        StripeError::Unauthorised { status, code: code.clone(), request_id: request_id() },
        StripeError::Unreadable { reason: "customer".to_owned(), request_id: request_id() },
        StripeError::Refused { status: 400, code, message: BODY_MARK.to_owned(), request_id: request_id() },
    ] {
        bench.world.stripe.fail_next(error);
        assert_eq!(bench.deliver(&[&provision()]).await, ["evt_provision"]);
    }
    assert!(!bench.is_processed(&provision()).await);
}

#[tokio::test]
async fn a_crash_in_one_hint_fails_only_that_hint() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.stripe.set(subscriber("cus_Bob", "bob", SINCE));
    for fault in [Fault::CrashBefore, Fault::CrashAfter] {
        bench.sync.accounts.faults.at("commit", 1, fault);
        let bob = hint(&format!("evt_bob_{fault:?}"), "invoice.paid", SINCE, "in_9", Some("cus_Bob"));
        let ada = Hint { replay: true, ..provision() };
        assert_eq!(bench.deliver(&[&ada, &bob]).await, ["evt_provision"], "{fault:?}");
    }
    assert_eq!(bench.deliver(&[&provision()]).await, Vec::<String>::new());
    assert_eq!((bench.account().await.version, bench.notices().await.len()), (1, 2), "ada's and bob's");
}

#[tokio::test]
async fn what_is_not_reached_in_time_comes_again_without_being_put_off() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let hints = [provision(), paid("evt_late")];
    let now_ms = bench.world.clock.now_ms();
    let clock = bench.world.clock.clone();
    bench.sync.accounts.faults.meanwhile("commit", 1, async move { clock.advance_ms(10_000) });
    let messages: Vec<_> = hints.iter().map(|hint| (Some(hint.event_id.as_str()), json!(hint).to_string(), now_ms, 1)).collect();
    let answer = bench.sync.handle(sqs_event(&messages), now_ms + 9_000).await.unwrap();
    let again: Vec<_> = answer.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect();
    assert_eq!(again, ["evt_late"]);
    let postponed: Vec<u32> = bench.world.queue.postponed().into_iter().map(|(_, secs)| secs).collect();
    assert_eq!(postponed, [0], "at once, rather than when the queue's visibility timeout is over");
}

#[tokio::test]
async fn a_failed_record_without_a_message_id_fails_the_batch_loudly() {
    let bench = bench().await;
    bench.world.stripe.fail_next(not_available());
    let nameless = sqs_event(&[(None, json!(provision()).to_string(), 0, 1)]);
    assert!(bench.sync.handle(nameless.clone(), i64::MAX).await.is_err());
    bench.world.stripe.set(ada());
    assert!(bench.sync.handle(nameless, i64::MAX).await.unwrap().batch_item_failures.is_empty());
}

#[tokio::test]
async fn what_a_newer_version_keeps_beside_an_account_survives_a_commit() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    bench.world.set_attribute("accounts", ("user_id", "ada"), "note_of_the_future", "kept").await;
    bench.world.set_attribute("customers", ("customer_id", "cus_Ada"), "note_of_the_future", "kept").await;
    bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T11:00:00Z"));
    assert_eq!(bench.hint(&failed("evt_1", "2026-11-22T11:30:00Z")).await, Ok(committed(1)));
    for table in ["accounts", "customers"] {
        assert_eq!(bench.world.item(table).await["note_of_the_future"], "kept", "{table}");
    }
    assert_eq!(bench.account().await.version, 2);
}

#[tokio::test]
async fn an_account_that_an_older_version_wrote_is_read_and_committed() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    // What was added since the first version has defaults.
    let newer = ["overdue", "segments", "clock_offset_secs", "announced"];
    bench.world.remove_attributes("accounts", ("user_id", "ada"), &newer).await;
    assert!(matches!(bench.hint(&paid("evt_1")).await, Ok(Outcome::Committed { .. })));
    assert_eq!(bench.account().await.segments.len(), 1);
}

#[tokio::test]
async fn a_hint_of_the_other_mode_changes_nothing() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    let live = Hint { livemode: true, ..provision() };
    assert_eq!(bench.deliver(&[&live]).await, Vec::<String>::new());
    assert!(bench.world.items("accounts").await.is_empty());
    assert_eq!(bench.world.stripe.faults.calls("customer"), 0);
}

#[tokio::test]
async fn users_whose_keys_look_alike_have_accounts_of_their_own() {
    let bench = bench().await;
    let users = ["a/1:b", "a", "a/", "1:a", "ada/3:ada", crate::samples::EMAIL, "ü".repeat(128).as_str()].map(str::to_owned);
    for (n, user_id) in users.iter().enumerate() {
        let customer_id = format!("cus_{n}");
        bench.world.stripe.set(subscriber(&customer_id, user_id, SINCE));
        let hint = hint(&format!("evt_{n}"), "invoice.paid", SINCE, "in_1", Some(&customer_id));
        assert!(matches!(bench.hint(&hint).await, Ok(Outcome::Committed { notices: 1, .. })));
    }
    for (n, user_id) in users.iter().enumerate() {
        let account = bench.world.store().account(&UserId::new(user_id.as_str()).unwrap()).await.unwrap().unwrap();
        assert_eq!(account.customer_id, customer(&format!("cus_{n}")));
    }
    assert_eq!(bench.notices().await.len(), users.len());
}

#[tokio::test]
async fn repeated_looks_at_an_unchanged_customer_tell_nothing() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    for hint in with_two_more_looks(&provision()) {
        bench.hint(&hint).await.unwrap();
    }
    let marks = bench.world.items("processed").await.len();
    assert_eq!((bench.account().await.version, bench.notices().await.len(), marks), (3, 1, 3));
    assert!(EventId::new("evt_provision").is_ok());
}

fn with_newest_invoice(status_is_final: bool, period_end: &str) -> CustomerFacts {
    let mut facts = ada();
    let id = InvoiceId::new("in_1").unwrap();
    facts.subscriptions[0].latest_invoice =
        Some(LatestInvoice { id, is_final: status_is_final, period: Some((at(SINCE), at(period_end))), written_off: None });
    facts
}

/// Usage may be reported into a period until its invoice is final, and the two hints of that invoice tell.
#[tokio::test]
async fn the_hints_of_an_invoice_tell_which_period_is_final() {
    let bench = bench().await;
    bench.world.stripe.set(with_newest_invoice(true, SINCE));
    bench.hint(&provision()).await.unwrap();
    let through = async || bench.account().await.final_through.values().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(through().await, [SINCE]);
    for (kind, is_final, expected) in [
        ("invoice.created", false, SINCE),
        ("invoice.finalized", true, "2026-12-10T00:00:00Z"),
        ("invoice.voided", true, "2026-12-10T00:00:00Z"),
    ] {
        bench.world.clock.advance_ms(3_600_000);
        bench.world.stripe.set(with_newest_invoice(is_final, "2026-12-10T00:00:00Z"));
        let hint = hint(&format!("evt_{kind}"), kind, "2026-12-10T00:00:00Z", "in_1", Some("cus_Ada"));
        assert_eq!(bench.deliver(&[&hint]).await, Vec::<String>::new());
        assert_eq!(through().await, [expected], "{kind}");
    }
}

#[tokio::test]
async fn the_first_account_of_a_user_is_committed_only_after_a_recount_was_queued() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    // Whatever becomes of the recount's request, of its reply or of the function: no account without a recount.
    for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
        bench.world.recounts.faults.at("recount", 1, fault);
        assert_eq!(bench.deliver(&[&provision()]).await, ["evt_provision"], "{fault:?}");
        assert!(bench.world.items("accounts").await.is_empty(), "{fault:?}");
    }
    let queued_at_commit = std::rc::Rc::new(std::cell::Cell::new(0));
    let (recounts, seen) = (bench.world.recounts.clone(), queued_at_commit.clone());
    bench.sync.accounts.faults.meanwhile("commit", 1, async move { seen.set(recounts.users().len()) });
    assert_eq!(bench.deliver(&[&provision()]).await, Vec::<String>::new());
    // Those whose reply was lost are there as well; once too often does no harm.
    assert_eq!((queued_at_commit.get(), bench.account().await.version), (3, 1));
    assert!(bench.world.recounts.users().iter().all(|queued| *queued == user("ada")));
    // Afterwards there is nothing parked that could be counted.
    assert_eq!(bench.deliver(&[&paid("evt_later")]).await, Vec::<String>::new());
    assert_eq!((bench.world.recounts.users().len(), bench.account().await.version), (3, 2));
}

#[tokio::test]
async fn a_price_that_becomes_known_bills_its_segment_from_the_start_and_queues_a_recount() {
    let bench = bench().await;
    let mut unknown = ada();
    for item in &mut unknown.subscriptions[0].items {
        item.lookup_key = Some("enterprise".to_owned());
    }
    bench.world.stripe.set(unknown);
    bench.hint(&provision()).await.unwrap();
    let segment = async || bench.account().await.segments.remove(0);
    assert_eq!((segment().await.plan, segment().await.billed.len()), (None, 0));
    assert_eq!(bench.world.recounts.users().len(), 1, "the first account");
    bench.world.stripe.set(ada());
    bench.world.clock.advance_ms(60_000);
    bench.world.recounts.faults.at("recount", 1, Fault::LoseRequest);
    assert_eq!(bench.deliver(&[&paid("evt_known")]).await, ["evt_known"]);
    assert_eq!(segment().await.plan, None, "not before the recount is queued");
    assert_eq!(bench.deliver(&[&paid("evt_known")]).await, Vec::<String>::new());
    let known = segment().await;
    assert_eq!((known.plan.unwrap().as_str(), known.billed.len(), known.start), ("pro", 3, at(SINCE)));
    assert_eq!((bench.account().await.segments.len(), bench.world.recounts.users().len()), (1, 2));
}

#[tokio::test]
async fn stripes_word_of_rejected_usage_is_kept_for_the_reporter() {
    let bench = bench().await;
    let rejected = |event_id: &str, kind: &str, created: &str| hint(event_id, kind, created, "mtr_1", None);
    let kept = async || bench.world.store().rejections().await.unwrap().map(|said| said.last_at);
    let noon = at("2026-11-22T12:00:00Z");
    for (event_id, kind, created, expected) in [
        ("evt_1", "v1.billing.meter.error_report_triggered", "2026-11-22T11:00:00Z", at("2026-11-22T11:00:00Z")),
        ("evt_2", "v1.billing.meter.no_meter_found", "2026-11-22T11:30:00Z", at("2026-11-22T11:30:00Z")),
        ("evt_3", "v1.billing.meter.error_report_triggered", "2026-11-22T10:00:00Z", at("2026-11-22T11:30:00Z")),
        ("evt_4", "v1.billing.meter.error_report_triggered", "2036-01-01T00:00:00Z", noon),
    ] {
        let hint = rejected(event_id, kind, created);
        let expected_outcome = Outcome::UsageRejected { event_id: hint.event_id.clone() };
        assert_eq!(bench.hint(&hint).await, Ok(expected_outcome), "{event_id}");
        assert_eq!(kept().await, Some(expected), "{event_id}");
    }
    let first = bench.world.store().rejections().await.unwrap().map(|said| said.first_at);
    assert_eq!(first, Some(at("2026-11-22T10:00:00Z")), "one that comes late may be the first");
    assert_eq!(bench.world.stripe.faults.calls("customer_of"), 0, "it is no customer's");
    bench.world.clock.advance_ms(1_000);
    let later = rejected("evt_5", "v1.billing.meter.no_meter_found", "2026-11-22T12:00:01Z");
    assert_eq!(bench.hint(&Hint { livemode: true, ..later.clone() }).await, Ok(Outcome::NoCustomer));
    bench.sync.meter_errors.faults.at("note_meter_error", 1, Fault::LoseRequest);
    assert_eq!(bench.deliver(&[&later]).await, ["evt_5"]);
    assert_eq!(kept().await, Some(noon));
    assert_eq!(bench.deliver(&[&later]).await, Vec::<String>::new());
    assert_eq!(kept().await, Some(noon.plus_secs(1)));
}

#[tokio::test]
async fn a_classic_subscription_is_alarmed_at_every_look_and_shown_in_the_account() {
    let bench = bench().await;
    let mut classic = ada();
    classic.subscriptions[0].flexible = false;
    bench.world.stripe.set(classic);
    for (hint, notices) in [(provision(), 1), (paid("evt_look"), 0)] {
        let expected = Outcome::Committed { user_id: user("ada"), notices, alarms: vec![Alarm::NotFlexible] };
        assert_eq!(bench.hint(&hint).await, Ok(expected));
        assert_eq!(bench.world.item("accounts").await["subscription"]["flexible"], false);
    }
    bench.world.stripe.set(ada());
    assert_eq!(bench.hint(&paid("evt_migrated")).await, Ok(committed(0)));
    assert_eq!(bench.world.item("accounts").await["subscription"]["flexible"], true);
}

impl Bench {
    /// Delivers hints that were each sent at a moment after now, in batches, each once its last one was sent. How often Stripe
    /// was asked for the customer.
    async fn fetches_of(&self, hints: &[(i64, Hint)], batch: usize) -> usize {
        let (begin_ms, asked) = (self.world.clock.now_ms(), self.world.stripe.faults.calls("customer"));
        for hints in hints.chunks(batch) {
            let sent_at = |after_ms: &i64| begin_ms + after_ms;
            let last_ms = hints.iter().map(|(after_ms, _)| sent_at(after_ms)).max().unwrap();
            self.world.clock.advance_ms((last_ms - self.world.clock.now_ms()).max(0));
            let messages: Vec<_> = hints
                .iter()
                .map(|(after_ms, hint)| (Some(hint.event_id.as_str()), json!(hint).to_string(), sent_at(after_ms), 1))
                .collect();
            let answer = self.sync.handle(sqs_event(&messages), i64::MAX).await.unwrap();
            assert!(answer.batch_item_failures.is_empty());
        }
        self.world.stripe.faults.calls("customer") - asked
    }
}

#[tokio::test]
async fn a_burst_of_fifty_hints_of_one_customer_costs_three_fetches_at_most() {
    for (batch, apart_ms) in [(10, 0), (1, 0), (10, 20), (1, 20), (10, 100), (1, 100)] {
        let burst: Vec<_> = (0..50).map(|n| (n * apart_ms, paid(&format!("evt_{n}")))).collect();
        // A customer that is new, one whose account is known, and one that no user is joined to.
        let bench = bench().await;
        bench.world.stripe.set(ada());
        let new = bench.fetches_of(&burst, batch).await;
        bench.world.clock.advance_ms(60_000);
        let again: Vec<_> = burst.iter().map(|(ms, hint)| (*ms, paid(&format!("{}_again", hint.event_id)))).collect();
        let known = bench.fetches_of(&again, batch).await;
        bench.world.stripe.set(CustomerFacts { user_id: None, ..subscriber("cus_Nobody", "nobody", SINCE) });
        let nobodys = |n: i64| hint(&format!("evt_nobody_{n}"), "invoice.paid", SINCE, "in_1", Some("cus_Nobody"));
        let nobody = bench.fetches_of(&(0..50).map(|n| (n * apart_ms, nobodys(n))).collect::<Vec<_>>(), batch).await;
        assert!(new <= 3 && known <= 3 && nobody <= 3, "{batch} a batch, {apart_ms} ms apart: {new}, {known}, {nobody}");
        assert!(new >= 2 && known >= 2 && nobody >= 2, "the last of them is fetched for, too: {new}, {known}, {nobody}");
    }
}

#[tokio::test]
async fn fifty_failures_of_different_moments_cost_few_fetches_and_the_earliest_counts() {
    for batch in [1, 10] {
        let bench = bench().await;
        bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T10:00:00Z"));
        // One after the other as a batch's order may be: in sevens, so that earlier ones come later.
        let failures: Vec<_> = (0..50)
            .map(|n| (0, failed(&format!("evt_{n}"), &at("2026-11-22T11:00:00Z").plus_secs((n * 7) % 50).to_string())))
            .rev()
            .collect();
        let fetches = bench.fetches_of(&failures, batch).await;
        assert!(fetches <= if batch == 1 { 9 } else { 5 }, "{batch} a batch: {fetches}");
        let since = bench.account().await.overdue[&InvoiceId::new("in_1").unwrap()].since;
        assert_eq!(since, at("2026-11-22T11:00:00Z"));
    }
}

#[tokio::test]
async fn a_hint_that_waits_for_its_burst_holds_up_no_other_and_never_waits_beyond_the_functions_time() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.world.stripe.set(subscriber("cus_Bob", "bob", SINCE));
    bench.hint(&provision()).await.unwrap();
    let now_ms = bench.world.clock.now_ms();
    let bob = hint("evt_bob", "invoice.paid", "2026-11-22T12:00:00Z", "in_9", Some("cus_Bob"));
    let message = |hint: &Hint| (Some(hint.event_id.as_str().to_owned()), json!(hint).to_string());
    let [(a, ada_body), (b, bob_body)] = [message(&paid("evt_ada")), message(&bob)];
    let batch = [(a.as_deref(), ada_body, now_ms, 1), (b.as_deref(), bob_body, now_ms, 1)];
    // It would wait for two seconds, and there is one.
    let answer = bench.sync.handle(sqs_event(&batch), now_ms + 1_000).await.unwrap();
    let again: Vec<_> = answer.batch_item_failures.iter().map(|failure| failure.item_identifier.as_str()).collect();
    assert_eq!((again, bench.world.clock.now_ms()), (vec!["evt_ada"], now_ms + 1_000));
    let fetched_ms = bench.world.store().account(&user("bob")).await.unwrap().unwrap().fetched_at_ms;
    assert_eq!(fetched_ms, now_ms, "bob's was handled meanwhile");
    assert_eq!(bench.world.queue.postponed().into_iter().map(|(_, secs)| secs).collect::<Vec<_>>(), [0]);
    let answer = bench.sync.handle(sqs_event(&batch), i64::MAX).await.unwrap();
    assert!(answer.batch_item_failures.is_empty());
    assert_eq!(bench.account().await.fetched_at_ms, now_ms + 2_000, "two seconds after it was sent");
}

async fn overdue_since(bench: &Bench) -> String {
    bench.account().await.overdue_since().unwrap().to_string()
}

/// G2: a failure that is heard before its customer has a user is not forgotten.
#[tokio::test]
async fn a_failure_heard_before_the_customer_is_joined_begins_the_grace_period() {
    let bench = bench().await;
    let unpaid = overdue(ada(), "in_1", "2026-11-22T07:00:00Z");
    bench.world.stripe.set(CustomerFacts { user_id: None, ..unpaid.clone() });
    assert_eq!(bench.hint(&failed("evt_1", "2026-11-22T10:00:00Z")).await, Ok(Outcome::NoUser));
    assert_eq!(bench.hint(&failed("evt_2", "2026-11-22T09:00:00Z")).await, Ok(Outcome::NoUser));
    bench.world.clock.advance_ms(86_400_000);
    bench.world.stripe.set(unpaid);
    bench.hint(&provision()).await.unwrap();
    assert_eq!(overdue_since(&bench).await, "2026-11-22T09:00:00Z");
}

/// G2: nor is the first look that showed the invoice open and attempted, where no failure was heard at all.
#[tokio::test]
async fn the_first_look_at_an_unpaid_invoice_counts_also_where_the_customer_had_no_user_then() {
    let bench = bench().await;
    let unpaid = overdue(ada(), "in_1", "2026-11-22T07:00:00Z");
    bench.world.stripe.set(CustomerFacts { user_id: None, ..unpaid.clone() });
    assert_eq!(bench.hint(&provision()).await, Ok(Outcome::NoUser));
    bench.world.clock.advance_ms(86_400_000);
    bench.world.stripe.set(unpaid);
    bench.hint(&paid("evt_later")).await.unwrap();
    assert_eq!(overdue_since(&bench).await, "2026-11-22T12:00:00Z");
}

/// Ada's subscription, and another one that is past due since an invoice of 22 November, 7 o'clock.
fn with_second_subscription() -> CustomerFacts {
    let mut facts = ada();
    let second = overdue(subscriber("cus_Second", "ada", SINCE), "in_1", "2026-11-22T07:00:00Z");
    facts.subscriptions.extend(second.subscriptions);
    facts.open_invoices = second.open_invoices;
    facts
}

/// G2: a failure of a subscription that does not count yet is not forgotten.
#[tokio::test]
async fn a_failure_of_a_subscription_that_counts_only_later_begins_its_grace_period() {
    let bench = bench().await;
    let mut two = with_second_subscription();
    bench.world.stripe.set(two.clone());
    bench.hint(&failed("evt_1", "2026-11-22T10:00:00Z")).await.unwrap();
    assert_eq!(bench.account().await.overdue.len(), 0, "the one that is paid counts");
    bench.world.clock.advance_ms(86_400_000);
    two.subscriptions[0].status = Status::Canceled;
    two.subscriptions[0].ended_at = Some(at("2026-11-23T11:00:00Z"));
    bench.world.stripe.set(two);
    bench.hint(&paid("evt_2")).await.unwrap();
    assert_eq!(overdue_since(&bench).await, "2026-11-22T10:00:00Z");
}

/// G2: nor is one of a customer whose claim was refused when it was heard.
#[tokio::test]
async fn a_failure_of_a_second_claimant_begins_the_grace_period_once_the_claim_is_granted() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    bench.world.stripe.set(overdue(subscriber("cus_Other", "ada", SINCE), "in_9", "2026-11-22T07:00:00Z"));
    let failure = hint("evt_1", "invoice.payment_failed", "2026-11-22T10:00:00Z", "in_9", Some("cus_Other"));
    assert_eq!(bench.hint(&failure).await, Ok(Outcome::SecondClaimant { user_id: user("ada") }));
    bench.world.clock.advance_ms(86_400_000);
    bench.world.stripe.set(cancelled(ada(), "2026-11-23T11:00:00Z"));
    bench.hint(&paid("evt_2")).await.unwrap();
    bench.hint(&bench.world.queue.hints()[0]).await.unwrap();
    assert_eq!(bench.account().await.customer_id.as_str(), "cus_Other");
    assert_eq!(overdue_since(&bench).await, "2026-11-22T10:00:00Z");
}

#[tokio::test]
async fn looks_at_one_customer_at_the_same_time_lose_no_failure() {
    let bench = bench().await;
    let unpaid = overdue(ada(), "in_1", "2026-11-22T07:00:00Z");
    bench.world.stripe.set(CustomerFacts { user_id: None, ..unpaid.clone() });
    bench.hint(&failed("evt_1", "2026-11-22T11:00:00Z")).await.unwrap();
    // Another function hears of an earlier failure between our look and our record.
    let (other, now_ms) = (function(&bench.world), bench.world.clock.now_ms());
    bench.sync.accounts.faults.meanwhile("record", 1, async move {
        other.hint(&failed("evt_2", "2026-11-22T09:00:00Z"), now_ms).await.unwrap();
    });
    assert_eq!(bench.hint(&failed("evt_3", "2026-11-22T10:00:00Z")).await, Ok(Outcome::NoUser));
    let record = bench.world.store().customer(&customer("cus_Ada")).await.unwrap().unwrap();
    assert_eq!((record.version, record.failures.values().next()), (3, Some(&at("2026-11-22T09:00:00Z"))));
    // Nor do those of a joined customer.
    bench.world.stripe.set(unpaid);
    let (other, now_ms) = (function(&bench.world), bench.world.clock.now_ms());
    bench.sync.accounts.faults.meanwhile("commit", 1, async move {
        other.hint(&failed("evt_4", "2026-11-22T08:00:00Z"), now_ms).await.unwrap();
    });
    bench.hint(&provision()).await.unwrap();
    assert_eq!(overdue_since(&bench).await, "2026-11-22T08:00:00Z");
}

#[tokio::test]
async fn failures_are_forgotten_once_their_invoice_is_no_longer_open() {
    let bench = bench().await;
    bench.world.stripe.set(overdue(ada(), "in_1", "2026-11-22T07:00:00Z"));
    bench.hint(&failed("evt_1", "2026-11-22T11:00:00Z")).await.unwrap();
    let failures = async || bench.world.item("customers").await["failures"].clone();
    assert_eq!(failures().await, json!({"in_1": at("2026-11-22T11:00:00Z").as_secs()}));
    bench.world.stripe.set(ada());
    bench.hint(&paid("evt_2")).await.unwrap();
    assert_eq!(failures().await, json!({}));
}

#[tokio::test]
async fn a_customer_that_an_older_version_recorded_is_read_and_committed() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    bench.hint(&provision()).await.unwrap();
    let newer = ["version", "failures", "seen_before_ms", "untold", "unfailed"];
    bench.world.remove_attributes("customers", ("customer_id", "cus_Ada"), &newer).await;
    assert_eq!(bench.hint(&paid("evt_1")).await, Ok(committed(0)));
    assert_eq!(bench.world.item("customers").await["version"], 1);
    // It dated a look by its end, so of a customer without an account nothing can be told from it.
    bench.world.stripe.set(CustomerFacts { user_id: None, ..subscriber("cus_Nobody", "nobody", SINCE) });
    let nobodys = |event_id: &str| hint(event_id, "invoice.paid", SINCE, "in_1", Some("cus_Nobody"));
    assert_eq!(bench.hint(&nobodys("evt_2")).await, Ok(Outcome::NoUser));
    let long_ago = bench.world.clock.now_ms() - 60_000;
    assert_eq!(bench.sync.hint(&nobodys("evt_3"), long_ago).await, Ok(Outcome::Skipped));
    bench.world.remove_attributes("customers", ("customer_id", "cus_Nobody"), &newer).await;
    assert_eq!(bench.sync.hint(&nobodys("evt_4"), long_ago).await, Ok(Outcome::NoUser));
    // Nor once a refund was heard of.
    bench.world.remove_attributes("customers", ("customer_id", "cus_Nobody"), &newer).await;
    let payment = Payment {
        charge_id: "ch_1".to_owned(),
        dispute_id: None,
        status: "refunded".to_owned(),
        amount_minor: 100,
        currency: "usd".to_owned(),
    };
    bench.world.stripe.set_payment("ch_1", PaymentFacts { customer: Some(customer("cus_Nobody")), payment: Some(payment) });
    let refund = hint("evt_5", "charge.refunded", SINCE, "ch_1", Some("cus_Nobody"));
    assert_eq!(bench.hint(&refund).await, Ok(Outcome::PaymentOfNobody { is_kept: true }));
    assert_eq!(bench.sync.hint(&nobodys("evt_6"), long_ago).await, Ok(Outcome::NoUser));
}
