//! A subscription's life where it is cut: `sync` is killed, or loses a request or a reply, at every call of a port, and the hint
//! comes again. The end is the one without the accident. Also what is told of payments, which change no account.

use std::collections::{BTreeMap, BTreeSet};

use handlers::{Fault, Faults, World};
use serde_json::{Value, json};
use sync::Outcome;
use tokentill::{
    domain::{
        access::State,
        facts::{CustomerFacts, PaidInvoice, PausedBy, Status},
        hint::Hint,
        notice::Payment,
        price_list::PriceList,
    },
    ports::{Accounts, Clock, PaymentFacts, StripeError},
};

use crate::{
    samples::{at, cancelled, customer, hint, overdue, sqs_event, subscriber, user},
    sync::{Function, function},
};

const SINCE: &str = "2026-11-10T00:00:00Z";

struct Bench {
    world: World,
    sync: Function,
}

async fn bench() -> Bench {
    let world = World::start().await;
    let sync = function(&world);
    Bench { world, sync }
}

impl Bench {
    /// Delivers a hint once, sent now; whether it is done.
    async fn deliver(&self, hint: &Hint) -> bool {
        self.deliver_sent(hint, self.world.clock.now_ms()).await
    }

    /// The same, sent at a moment in milliseconds since 1970.
    async fn deliver_sent(&self, hint: &Hint, sent_at_ms: i64) -> bool {
        let messages = [(Some("m1"), json!(hint).to_string(), sent_at_ms, 1)];
        self.sync.handle(sqs_event(&messages), i64::MAX).await.unwrap().batch_item_failures.is_empty()
    }

    async fn done(&self, hint: &Hint) {
        assert!(self.deliver(hint).await, "{hint:?}");
    }

    /// The ports by the calls that `sync` makes of them.
    fn ports(&self) -> [(&Faults, &'static [&'static str]); 6] {
        [
            (&self.world.stripe.faults, &["customer", "customer_of", "payment"]),
            (&self.sync.accounts.faults, &["is_processed", "customer", "account", "commit", "record", "tell", "keep_untold"]),
            (&self.world.queue.faults, &["send"]),
            (&self.world.recounts.faults, &["recount"]),
            (&self.sync.quarantine.faults, &["keep"]),
            (&self.sync.meter_errors.faults, &[]),
        ]
    }

    /// Everything that is kept and queued, without what counts looks and names their moments.
    async fn end(&self) -> Value {
        let mut end = json!({});
        for table in ["accounts", "customers", "processed", "outbox", "quarantine"] {
            let mut items = self.world.items(table).await;
            for item in &mut items {
                let fields = item.as_object_mut().unwrap();
                for field in [
                    "version",
                    "fetched_at_ms",
                    "told_at",
                    "unfailed",
                    "seen_at_ms",
                    "seen_before_ms",
                    "processed_at_ms",
                    "committed_at_ms",
                    "expires_at",
                    "at",
                ] {
                    fields.remove(field);
                }
                if table == "outbox" {
                    fields.remove("pending_shard");
                    fields.remove("notice_id");
                }
            }
            items.sort_by_key(Value::to_string);
            end[table] = items.into();
        }
        let queued: BTreeSet<String> = self.world.queue.hints().into_iter().map(|hint| hint.event_id.to_string()).collect();
        let recounted: BTreeSet<String> = self.world.recounts.users().into_iter().map(|user| user.to_string()).collect();
        end["queued"] = json!([queued, recounted]);
        end
    }
}

/// What happens before, and the hint that is cut.
#[derive(Debug, Clone, Copy)]
enum Story {
    SignUp,
    FailureOfNobody,
    Failure,
    PausedByFailure,
    CancelledByDunning,
    LatePayment,
    SecondClaim,
    Takeover,
    AnotherUser,
    Refund,
    Dispute,
    RefundOfNobody,
    SignUpAfterRefund,
    ThinPastDue,
}

const STORIES: [Story; 14] = [
    Story::SignUp,
    Story::FailureOfNobody,
    Story::Failure,
    Story::PausedByFailure,
    Story::CancelledByDunning,
    Story::LatePayment,
    Story::SecondClaim,
    Story::Takeover,
    Story::AnotherUser,
    Story::Refund,
    Story::Dispute,
    Story::RefundOfNobody,
    Story::SignUpAfterRefund,
    Story::ThinPastDue,
];

fn ada() -> CustomerFacts {
    subscriber("cus_Ada", "ada", SINCE)
}

fn unpaid() -> CustomerFacts {
    overdue(ada(), "in_1", "2026-11-22T07:00:00Z")
}

fn about(event_id: &str, kind: &str, object_id: &str) -> Hint {
    hint(event_id, kind, "2026-11-22T10:00:00Z", object_id, Some("cus_Ada"))
}

fn payment(dispute: Option<&str>, status: &str, amount_minor: u64) -> PaymentFacts {
    let payment = Payment {
        charge_id: "ch_1".to_owned(),
        dispute_id: dispute.map(str::to_owned),
        status: status.to_owned(),
        amount_minor,
        currency: "usd".to_owned(),
    };
    PaymentFacts { customer: Some(customer("cus_Ada")), payment: Some(payment) }
}

/// Cancelled by dunning, and then its invoice is paid after all.
fn paid_late() -> CustomerFacts {
    let mut facts = cancelled(ada(), "2026-11-22T11:00:00Z");
    facts.paid_invoices = vec![PaidInvoice {
        subscription: facts.subscriptions[0].id.clone(),
        paid_at: at("2026-11-22T11:30:00Z"),
        paid_for_until: at("2026-12-10T00:00:00Z"),
    }];
    facts
}

impl Story {
    async fn prepare(self, bench: &Bench) -> Hint {
        let stripe = &bench.world.stripe;
        let sign_up = about("evt_sign_up", "checkout.session.completed", "cs_1");
        let failure = about("evt_failed", "invoice.payment_failed", "in_1");
        let refund = about("evt_refund", "charge.refunded", "ch_1");
        stripe.set(ada());
        stripe.set_payment("ch_1", payment(None, "refunded", 4_900));
        match self {
            Self::SignUp => return sign_up,
            Self::RefundOfNobody => return refund,
            Self::SignUpAfterRefund => {
                bench.done(&refund).await;
                return sign_up;
            }
            Self::FailureOfNobody => {
                stripe.set(CustomerFacts { user_id: None, ..unpaid() });
                return failure;
            }
            _ => bench.done(&sign_up).await,
        }
        bench.world.clock.advance_ms(60_000);
        match self {
            Self::SignUp | Self::FailureOfNobody | Self::RefundOfNobody | Self::SignUpAfterRefund => {
                unreachable!("returned above")
            }
            Self::Failure => {
                stripe.set(unpaid());
                failure
            }
            Self::PausedByFailure => {
                let mut paused = unpaid();
                (paused.subscriptions[0].status, paused.subscriptions[0].paused_by) =
                    (Status::Paused, Some(PausedBy::FirstPaymentFailure));
                stripe.set(paused);
                about("evt_paused", "customer.subscription.paused", "sub_Ada")
            }
            Self::CancelledByDunning | Self::LatePayment => {
                stripe.set(unpaid());
                bench.done(&failure).await;
                bench.world.clock.advance_ms(60_000);
                let mut ended = cancelled(unpaid(), "2026-11-22T11:00:00Z");
                ended.subscriptions[0].latest_invoice = None;
                stripe.set(ended);
                let end = about("evt_deleted", "customer.subscription.deleted", "sub_Ada");
                if matches!(self, Self::CancelledByDunning) {
                    return end;
                }
                bench.done(&end).await;
                bench.world.clock.advance_ms(60_000);
                stripe.set(paid_late());
                about("evt_paid", "invoice.paid", "in_1")
            }
            Self::SecondClaim | Self::Takeover => {
                stripe.set(subscriber("cus_Other", "ada", "2026-11-20T00:00:00Z"));
                let claim = hint("evt_claim", "checkout.session.completed", "2026-11-22T10:00:00Z", "cs_2", Some("cus_Other"));
                if matches!(self, Self::SecondClaim) {
                    return claim;
                }
                bench.done(&claim).await;
                bench.world.clock.advance_ms(60_000);
                stripe.set(cancelled(ada(), "2026-11-22T11:00:00Z"));
                about("evt_deleted", "customer.subscription.deleted", "sub_Ada")
            }
            Self::AnotherUser => {
                stripe.set(subscriber("cus_Ada", "bob", SINCE));
                about("evt_bob", "customer.updated", "cus_Ada")
            }
            Self::Refund => refund,
            Self::Dispute => {
                stripe.set_payment("du_1", payment(Some("du_1"), "needs_response", 4_900));
                hint("evt_dispute", "charge.dispute.created", "2026-11-22T10:00:00Z", "du_1", None)
            }
            Self::ThinPastDue => {
                stripe.set(unpaid());
                stripe.set_object("sub_Ada", &customer("cus_Ada"));
                hint("evt_thin", "customer.subscription.past_due", "2026-11-22T10:00:00Z", "sub_Ada", None)
            }
        }
    }
}

/// How long after it was sent a hint is handled, and handled again.
const HANDLED_AFTER_MS: i64 = 3_000;

#[tokio::test]
async fn a_cut_at_any_call_of_a_port_changes_nothing_in_the_end() {
    let mut cuts = 0;
    for story in STORIES {
        // Once without an accident: which calls are made, and what the end is.
        let clean = bench().await;
        let hint = story.prepare(&clean).await;
        clean.world.clock.advance_ms(HANDLED_AFTER_MS);
        let before = clean.ports().map(|(faults, calls)| calls.iter().map(|call| faults.calls(call)).collect::<Vec<_>>());
        clean.done(&hint).await;
        let expected = clean.end().await;
        let made = clean.ports().into_iter().zip(before).enumerate().flat_map(|(port, ((faults, calls), before))| {
            let of_call = |(call, before): (&&'static str, usize)| {
                (1..=faults.calls(call) - before).map(|nth| (port, *call, nth)).collect::<Vec<_>>()
            };
            calls.iter().zip(before).flat_map(of_call).collect::<Vec<_>>()
        });
        for (port, call, nth) in made.collect::<Vec<_>>() {
            for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
                let bench = bench().await;
                let hint = story.prepare(&bench).await;
                // Sent once, and so long ago that whatever fetches now has seen what it tells.
                let sent_at_ms = bench.world.clock.now_ms();
                bench.world.clock.advance_ms(HANDLED_AFTER_MS);
                bench.ports()[port].0.at(call, nth, fault);
                assert!(!bench.deliver_sent(&hint, sent_at_ms).await, "{story:?} {call} {nth} {fault:?} was no accident");
                assert!(bench.deliver_sent(&hint, sent_at_ms).await, "{story:?} {call} {nth} {fault:?}");
                assert_eq!(bench.end().await, expected, "{story:?} {call} {nth} {fault:?}");
                cuts += 1;
            }
        }
    }
    assert!(cuts > 250, "{cuts}");
}

async fn told(bench: &Bench) -> Vec<String> {
    let rows = bench.world.items("outbox").await;
    let mut told: Vec<_> = rows.iter().map(|row| format!("{} {}", row["kind"].as_str().unwrap(), row["payment"])).collect();
    told.retain(|told| told.starts_with("payment."));
    told
}

#[tokio::test]
async fn each_state_of_a_refund_and_of_a_dispute_is_told_once_and_changes_no_account() {
    let bench = bench().await;
    let provision = Story::Refund.prepare(&bench).await;
    let account = bench.world.item("accounts").await;
    for (event_id, kind, object, shown, expected) in [
        ("evt_1", "charge.refunded", "ch_1", payment(None, "partially_refunded", 100), 1),
        // Delivered before the second refund, and handled after it: both tell what is true now.
        ("evt_2", "charge.refunded", "ch_1", payment(None, "refunded", 4_900), 2),
        ("evt_3", "charge.refunded", "ch_1", payment(None, "refunded", 4_900), 2),
        ("evt_4", "charge.dispute.created", "du_1", payment(Some("du_1"), "needs_response", 4_900), 3),
        ("evt_5", "charge.dispute.funds_withdrawn", "du_1", payment(Some("du_1"), "needs_response", 4_900), 3),
        ("evt_6", "charge.dispute.closed", "du_1", payment(Some("du_1"), "lost", 4_900), 4),
    ] {
        bench.world.stripe.set_payment(object, shown);
        let hint = about(event_id, kind, object);
        for _ in 0..2 {
            bench.done(&hint).await;
            bench.done(&Hint { replay: true, ..hint.clone() }).await;
        }
        assert_eq!(told(&bench).await.len(), expected, "{event_id}");
        assert!(bench.world.store().is_processed(&hint.event_id).await.unwrap());
    }
    let first = r#"payment.refunded {"amount_minor":100,"charge_id":"ch_1","currency":"usd","dispute_id":null,"status":"partially_refunded"}"#;
    assert!(told(&bench).await.contains(&first.to_owned()), "{:?}", told(&bench).await);
    assert_eq!(bench.world.item("accounts").await, account);
    assert_eq!(provision.object_id, "ch_1");
}

/// A row that was sent has left the index of pending ones; the same state of the payment heard again must not put it back.
#[tokio::test]
async fn a_payments_notice_that_was_sent_is_not_sent_again() {
    let bench = bench().await;
    let hint = Story::Refund.prepare(&bench).await;
    bench.done(&hint).await;
    let rows = bench.world.items("outbox").await;
    let id = rows.iter().find(|row| row["kind"] == "payment.refunded").unwrap()["notice_id"].as_str().unwrap().to_owned();
    bench.world.remove_attributes("outbox", ("notice_id", &id), &["pending_shard"]).await;
    let again = about("evt_again", "charge.refunded", "ch_1");
    assert_eq!(bench.sync.hint(&again, 0).await, Ok(Outcome::Payment { user_id: Some(user("ada")), is_new: false }));
    let rows = bench.world.items("outbox").await;
    let row = rows.iter().find(|row| row["notice_id"] == id.as_str()).unwrap();
    assert!(row["pending_shard"].is_null(), "{row}");
}

#[tokio::test]
async fn a_payment_of_no_customer_or_that_is_gone_is_acknowledged_and_one_that_cannot_be_read_comes_again() {
    let bench = bench().await;
    bench.world.stripe.set_payment("ch_1", PaymentFacts { customer: None, payment: None });
    let of_no_customer = about("evt_2", "charge.refunded", "ch_1");
    assert_eq!(bench.sync.hint(&of_no_customer, 0).await, Ok(Outcome::NoCustomer));
    let gone = about("evt_3", "charge.refunded", "ch_gone");
    assert_eq!(bench.sync.hint(&gone, 0).await, Ok(Outcome::NotFound));
    let live = Hint { livemode: true, ..about("evt_4", "charge.refunded", "ch_1") };
    assert_eq!(bench.sync.hint(&live, 0).await, Ok(Outcome::NoCustomer));
    bench.world.stripe.fail_next(StripeError::Unavailable {
        reason: "500".to_owned(),
        retry_after_secs: None,
        request_id: "req_1".to_owned(),
    });
    assert!(!bench.deliver(&about("evt_5", "charge.refunded", "ch_1")).await, "it comes again");
    assert!(bench.world.items("outbox").await.is_empty());
}

#[tokio::test]
async fn a_refund_and_a_dispute_heard_before_their_customer_has_an_account_are_told_once_with_its_first_commit() {
    let bench = bench().await;
    let ada_without_user = CustomerFacts { user_id: None, ..unpaid() };
    assert!(ada_without_user.subscriptions.iter().all(|subscription| subscription.user_id.is_none()));
    let kept = Ok(Outcome::PaymentOfNobody { is_kept: true });
    let refund = about("evt_1", "charge.refunded", "ch_1");
    bench.world.stripe.set_payment("ch_1", payment(None, "partially_refunded", 100));
    assert_eq!(bench.sync.hint(&refund, 0).await, kept, "before anybody looked at the customer");
    bench.world.stripe.set(ada_without_user);
    assert_eq!(bench.sync.hint(&about("evt_2", "invoice.paid", "in_1"), 0).await, Ok(Outcome::NoUser));
    bench.world.stripe.set_payment("ch_1", payment(None, "refunded", 4_900));
    bench.world.stripe.set_payment("du_1", payment(Some("du_1"), "needs_response", 4_900));
    assert_eq!(bench.sync.hint(&about("evt_3", "charge.refunded", "ch_1"), 0).await, kept);
    assert_eq!(bench.sync.hint(&about("evt_4", "charge.dispute.created", "du_1"), 0).await, kept);
    assert!(bench.world.store().is_processed(&refund.event_id).await.unwrap());
    assert!(told(&bench).await.is_empty());

    bench.world.stripe.set(ada());
    let joined = bench.sync.hint(&about("evt_5", "checkout.session.completed", "cs_1"), i64::MAX).await;
    assert_eq!(joined, Ok(Outcome::Committed { user_id: user("ada"), notices: 3, alarms: Vec::new() }));
    let mut once = told(&bench).await;
    once.sort();
    assert_eq!(
        once,
        [
            r#"payment.disputed {"amount_minor":4900,"charge_id":"ch_1","currency":"usd","dispute_id":"du_1","status":"needs_response"}"#,
            r#"payment.refunded {"amount_minor":4900,"charge_id":"ch_1","currency":"usd","dispute_id":null,"status":"refunded"}"#
        ],
        "each as it was last seen"
    );
    assert_eq!(bench.world.item("customers").await["untold"], json!({}));
    // And never again: neither with the next commit, nor when the event comes once more.
    bench.done(&Hint { replay: true, ..about("evt_5", "checkout.session.completed", "cs_1") }).await;
    let again = Hint { replay: true, ..about("evt_3", "charge.refunded", "ch_1") };
    assert_eq!(bench.sync.hint(&again, 0).await, Ok(Outcome::Payment { user_id: Some(user("ada")), is_new: false }));
    assert_eq!(told(&bench).await.len(), 2);
}

#[tokio::test]
async fn a_refund_that_is_heard_while_its_customer_is_being_joined_is_told_once() {
    // The join comes between the refund's look and its record, and the other way round.
    for call in ["keep_untold", "commit"] {
        let bench = bench().await;
        let other = function(&bench.world);
        let refund = Story::RefundOfNobody.prepare(&bench).await;
        let sign_up = about("evt_sign_up", "checkout.session.completed", "cs_1");
        let (first, second) = if call == "commit" { (sign_up, refund) } else { (refund, sign_up) };
        bench.sync.accounts.faults.meanwhile(call, 1, async move {
            other.hint(&second, i64::MAX).await.unwrap();
        });
        bench.sync.hint(&first, i64::MAX).await.unwrap();
        assert_eq!(told(&bench).await.len(), 1, "{call}");
    }
}

#[tokio::test]
async fn of_a_customer_without_an_account_twenty_refunds_are_remembered_and_then_it_needs_a_person() {
    let bench = bench().await;
    bench.world.stripe.set(ada());
    for n in 1..=21 {
        let charge = format!("ch_{n}");
        let mut shown = payment(None, "refunded", 100);
        shown.payment.as_mut().unwrap().charge_id.clone_from(&charge);
        bench.world.stripe.set_payment(&charge, shown);
        let refund = about(&format!("evt_{n}"), "charge.refunded", &charge);
        assert_eq!(bench.sync.hint(&refund, 0).await, Ok(Outcome::PaymentOfNobody { is_kept: n <= 20 }));
        assert!(bench.world.store().is_processed(&refund.event_id).await.unwrap(), "it does not come for ever");
    }
    bench.done(&about("evt_sign_up", "checkout.session.completed", "cs_1")).await;
    assert_eq!(told(&bench).await.len(), 20);
}

/// DynamoDB removes what has expired up to two days late, so nothing that access depends on may expire at all.
#[tokio::test]
async fn no_account_and_no_customer_ever_expires() {
    let bench = bench().await;
    let paid = Story::LatePayment.prepare(&bench).await;
    bench.done(&paid).await;
    let template: yaml_serde::Value = yaml_serde::from_str(include_str!("../../../../template.yaml")).unwrap();
    let expiry = |table: &str| template["Resources"][table]["Properties"]["TimeToLiveSpecification"].clone();
    assert!(!expiry("ProcessedTable").is_null(), "this is how the template would say so");
    for (table, resource) in [("accounts", "AccountsTable"), ("customers", "CustomersTable")] {
        assert_eq!(bench.world.item(table).await.get("expires_at"), None, "{table}");
        assert!(template["Resources"][resource].is_mapping() && expiry(resource).is_null(), "{resource}");
    }
}

/// G7: seven times 24 hours, whatever the calendar and the clocks of some countries do meanwhile.
#[test]
fn a_grace_period_is_as_long_over_leap_days_month_ends_and_changes_of_clocks() {
    let prices = PriceList::shipped().unwrap();
    for (failed, deadline) in [
        ("2028-02-26T23:59:59Z", "2028-03-04T23:59:59Z"),
        ("2027-02-26T23:59:59Z", "2027-03-05T23:59:59Z"),
        ("2028-02-29T00:00:00Z", "2028-03-07T00:00:00Z"),
        ("2026-12-31T12:00:00Z", "2027-01-07T12:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-02-07T12:00:00Z"),
        // Summer time begins and ends in Europe, and in America.
        ("2027-03-27T12:00:00Z", "2027-04-03T12:00:00Z"),
        ("2027-10-30T12:00:00Z", "2027-11-06T12:00:00Z"),
        ("2027-03-13T12:00:00Z", "2027-03-20T12:00:00Z"),
    ] {
        let facts = overdue(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "in_1", failed);
        let fetched_at_ms = at(failed).as_secs() * 1000;
        let failures = tokentill::domain::sync::failures(&BTreeMap::new(), &facts, None, fetched_at_ms);
        let decision = tokentill::domain::sync::decide(&prices, None, &user("ada"), &facts, &failures, fetched_at_ms);
        let tokentill::domain::sync::Decision::Commit { account, .. } = decision else { panic!("{decision:?}") };
        let state = |moment| tokentill::domain::access::standing(Some(&account), &prices, moment);
        assert_eq!(state(at(failed)).access_until, Some(at(deadline)), "{failed}");
        let around = [at(deadline).plus_secs(-1), at(deadline)].map(|moment| state(moment).state);
        assert_eq!(around, [State::Grace, State::Ended], "{failed}");
    }
}

/// G7: a lapse from the failed payment to the late one, by what `sync` commits.
#[tokio::test]
async fn a_late_payment_after_dunning_cancelled_restores_access_to_the_end_of_what_it_paid_for() {
    let bench = bench().await;
    let paid = Story::LatePayment.prepare(&bench).await;
    let account = async || bench.world.store().account(&user("ada")).await.unwrap().unwrap();
    let standing = |account: &tokentill::domain::account::Account, now: &str| {
        let standing = tokentill::domain::access::standing(Some(account), &bench.world.prices, at(now));
        let state = serde_json::to_value(standing.state).unwrap();
        format!("{} {}", state.as_str().unwrap(), standing.access_until.map(|until| until.to_string()).unwrap_or_default())
    };
    let in_grace = account().await;
    assert_eq!(standing(&in_grace, "2026-11-29T09:59:59Z"), "grace 2026-11-29T10:00:00Z");
    assert_eq!(standing(&in_grace, "2026-11-29T10:00:00Z"), "ended ");
    bench.world.clock.set("2026-12-01T00:00:00Z");
    bench.done(&paid).await;
    let restored = account().await;
    assert_eq!(standing(&restored, "2026-12-09T23:59:59Z"), "active 2026-12-10T00:00:00Z");
    assert_eq!(standing(&restored, "2026-12-10T00:00:00Z"), "free ");
    let due = bench.world.items("accounts").await[0]["due_at"].as_i64();
    assert_eq!(due, Some(at("2026-12-10T00:00:00Z").as_secs()), "its end is told when it comes");
}
