//! Sample input: the files under `events/`, signed afresh where they are signed, and what most tests begin with.

use aws_lambda_events::sqs::SqsEvent;
use handlers::World;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use tokentill::{
    domain::{
        account::Account,
        facts::{CustomerFacts, InvoiceFacts, ItemFacts, LatestInvoice, Status, SubscriptionFacts},
        hint::{HINT_VERSION, Hint},
        id::{CustomerId, EventId, InvoiceId, SubscriptionId, UserId},
        notice,
        period::Cycle,
        price_list::Interval,
        sync::{Decision, Unfailed, decide, failures},
        time::EpochSecs,
    },
    ports::{AccountChange, Accounts, Clock, Commit, CustomerRecord, CustomerStanding, Processed},
};

pub(crate) const CHECKOUT_COMPLETED: &str = include_str!("../../../../events/webhook-checkout-completed.json");
pub(crate) const PAYMENT_FAILED: &str = include_str!("../../../../events/webhook-payment-failed.json");
pub(crate) const THIN: &str = include_str!("../../../../events/webhook-thin.json");
pub(crate) const METER_ERROR: &str = include_str!("../../../../events/webhook-meter-error.json");
pub(crate) const ACCOUNT_CHANGE: &str = include_str!("../../../../events/account-change.json");
pub(crate) const USAGE: &str = include_str!("../../../../events/usage.json");
pub(crate) const USAGE_BATCH: &str = include_str!("../../../../events/usage-batch.json");
pub(crate) const SCHEDULED: &str = include_str!("../../../../events/scheduled.json");
pub(crate) const ACCESS: &str = include_str!("../../../../events/access.json");
pub(crate) const CHECK: &str = include_str!("../../../../events/check.json");
pub(crate) const USAGE_QUERY: &str = include_str!("../../../../events/usage-query.json");
pub(crate) const USAGE_EVENTS: &str = include_str!("../../../../events/usage-events.json");
pub(crate) const USAGE_OF_REQUEST: &str = include_str!("../../../../events/usage-of-request.json");
pub(crate) const CHECKOUT: &str = include_str!("../../../../events/checkout.json");
pub(crate) const PORTAL: &str = include_str!("../../../../events/portal.json");

/// Planted in requests and parameters; `logs` looks for them in everything that is printed.
pub(crate) const WEBHOOK_SECRET: &str = "whsec_PlantedSecret";
pub(crate) const SERVICE_TOKEN: &str = "token_PlantedToken";
pub(crate) const EMAIL: &str = "planted@example.com";
pub(crate) const BODY_MARK: &str = "PlantedInABody";

pub(crate) fn at(text: &str) -> EpochSecs {
    EpochSecs::parse_rfc3339(text).unwrap()
}

pub(crate) fn user(text: &str) -> UserId {
    UserId::new(text).unwrap()
}

pub(crate) fn customer(text: &str) -> CustomerId {
    CustomerId::new(text).unwrap()
}

pub(crate) fn parsed(sample: &str) -> Value {
    serde_json::from_str(sample).unwrap()
}

/// Stripe's signature of a body, in hexadecimal.
pub(crate) fn signature(secret: &str, t: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{t}.").as_bytes());
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A customer with one subscription to the plan `pro`, whose monthly periods are counted from `since`.
pub(crate) fn subscriber(customer_id: &str, user_id: &str, since: &str) -> CustomerFacts {
    let cycle = Cycle { anchor: at(since), interval: Interval::Month, count: 1 };
    let item = |lookup_key: &str, metered| ItemFacts {
        lookup_key: Some(lookup_key.to_owned()),
        metered,
        period: (cycle.boundary(0), cycle.boundary(1)),
        cycle,
    };
    CustomerFacts {
        customer: customer(customer_id),
        deleted: false,
        user_id: Some(user(user_id)),
        test_clock: None,
        subscriptions: vec![SubscriptionFacts {
            id: SubscriptionId::new(customer_id.replace("cus_", "sub_")).unwrap(),
            status: Status::Active,
            paused_by: None,
            created: at(since),
            user_id: None,
            items: vec![
                item("pro_base", false),
                item("pro_requests", true),
                item("pro_tokens_in", true),
                item("pro_tokens_out", true),
            ],
            billing_cycle_anchor: at(since),
            trial_end: None,
            cancel_at: None,
            ended_at: None,
            latest_invoice: None,
            flexible: true,
        }],
        open_invoices: Vec::new(),
        paid_invoices: Vec::new(),
        checkout_users: Vec::new(),
    }
}

/// The same, but past due with an open invoice.
pub(crate) fn overdue(mut facts: CustomerFacts, invoice: &str, created: &str) -> CustomerFacts {
    let subscription = &mut facts.subscriptions[0];
    subscription.status = Status::PastDue;
    let latest = LatestInvoice {
        id: InvoiceId::new(invoice).unwrap(),
        is_final: true,
        period: Some((at(created), at(created))),
        written_off: None,
    };
    subscription.latest_invoice = Some(latest);
    facts.open_invoices = vec![InvoiceFacts {
        id: InvoiceId::new(invoice).unwrap(),
        subscription: Some(subscription.id.clone()),
        created: at(created),
        attempted: true,
    }];
    facts
}

/// The same, but cancelled.
pub(crate) fn cancelled(mut facts: CustomerFacts, ended_at: &str) -> CustomerFacts {
    facts.subscriptions[0].status = Status::Canceled;
    facts.subscriptions[0].ended_at = Some(at(ended_at));
    facts
}

/// Commits what the facts make of an account at the world's moment, as `sync` does.
pub(crate) async fn commit(world: &World, user_id: &str, facts: &CustomerFacts) -> Account {
    let store = world.store();
    let before = store.account(&user(user_id)).await.unwrap();
    let known = store.customer(&facts.customer).await.unwrap();
    let (version, seen_before_ms) = known.as_ref().map_or((0, 0), |known| (known.version, known.seen_at_ms));
    let failures = failures(&known.map(|known| known.failures).unwrap_or_default(), facts, None, world.clock.now_ms());
    let unfailed = Unfailed::of(facts, &failures, world.clock.now_ms());
    let decision = decide(&world.prices, before.as_ref(), &user(user_id), facts, &failures, world.clock.now_ms());
    let Decision::Commit { account, notices, .. } = decision else { panic!("{decision:?}") };
    let event_id = EventId::new(format!("evt_{user_id}_{}", account.version)).unwrap();
    let record = CustomerRecord {
        customer_id: facts.customer.clone(),
        version: version + 1,
        standing: CustomerStanding::Joined,
        user_id: Some(user(user_id)),
        seen_at_ms: world.clock.now_ms(),
        seen_before_ms,
        failures,
        untold: std::collections::BTreeMap::new(),
        unfailed: Some(unfailed),
    };
    let change = AccountChange {
        account: &account,
        next_due: notice::next_due(&account, &world.prices),
        notices: &notices,
        processed: Some(Processed { event_id: &event_id, customer: &record }),
        at_ms: world.clock.now_ms(),
    };
    assert_eq!(store.commit(&change).await.unwrap(), Commit::Done);
    *account
}

/// A hint as the webhook queues it.
pub(crate) fn hint(event_id: &str, kind: &str, created: &str, object_id: &str, customer_id: Option<&str>) -> Hint {
    Hint {
        v: HINT_VERSION,
        event_id: EventId::new(event_id).unwrap(),
        kind: kind.to_owned(),
        created: at(created),
        object_id: object_id.to_owned(),
        customer: customer_id.map(customer),
        invoice: object_id.starts_with("in_").then(|| InvoiceId::new(object_id).unwrap()),
        livemode: false,
        replay: false,
        swept: false,
    }
}

/// A batch of messages, each an id (or none), a body, when it was sent and how often it was received.
pub(crate) fn sqs_event(messages: &[(Option<&str>, String, i64, u32)]) -> SqsEvent {
    let record = |(id, body, sent_at_ms, received): &(Option<&str>, String, i64, u32)| {
        json!({
            "messageId": id, "receiptHandle": format!("handle of {}", id.unwrap_or("nobody")), "body": body,
            "attributes": {"SentTimestamp": sent_at_ms.to_string(), "ApproximateReceiveCount": received.to_string()},
            "eventSource": "aws:sqs", "awsRegion": "eu-central-1",
        })
    };
    serde_json::from_value(json!({"Records": messages.iter().map(record).collect::<Vec<_>>()})).unwrap()
}
