//! What stands in for the world: ports that answer at once, and made-up input of the size that services really send.

use aws_lambda_events::sqs::SqsEvent;
use hmac::{Hmac, KeyInit, Mac};
use lambda_http::{Body, Request};
use serde_json::{Value, json};
use tokentill::{
    config::StripeMode,
    domain::{
        account::Account,
        counting::{Batch, LedgerRow, RowKey},
        facts::{CustomerFacts, ItemFacts, Status, SubscriptionFacts},
        hint::Hint,
        id::{CustomerId, EventId, SubscriptionId, UserId},
        period::Cycle,
        price_list::{Interval, PriceList},
        sync::{Decision, Failures, decide},
        time::EpochSecs,
    },
    ports::{
        AccountChange, Accounts, Clock, Commit, CustomerRecord, Hints, Ledger, Parked, ParkedPlace, Quarantine, Quarantined,
        Secret, SecretUnavailable, Secrets, Unavailable, Written,
    },
};
use usage::Usage;
use webhook::Webhook;

/// The moment at which everything happens: that of the samples under `events/`.
pub const NOW_MS: i64 = 1_795_348_800_000;
/// What signs the samples.
pub const WEBHOOK_SECRET: &str = "whsec_Benchmark";
/// The user of most samples.
pub const USER: &str = "ada";

/// A clock that stands still.
#[derive(Debug, Clone, Copy)]
pub struct Still;

impl Clock for Still {
    fn now_ms(&self) -> i64 {
        NOW_MS
    }
}

/// Ports that answer at once: every user has the same account, and every write succeeds.
#[derive(Debug, Clone)]
pub struct Ports {
    account: Account,
}

impl Accounts for Ports {
    async fn account(&self, _: &UserId) -> Result<Option<Account>, Unavailable> {
        Ok(Some(self.account.clone()))
    }

    async fn customer(&self, _: &CustomerId) -> Result<Option<CustomerRecord>, Unavailable> {
        Ok(None)
    }

    async fn is_processed(&self, _: &EventId) -> Result<bool, Unavailable> {
        Ok(false)
    }

    async fn commit(&self, _: &AccountChange<'_>) -> Result<Commit, Unavailable> {
        Ok(Commit::Done)
    }

    async fn record(&self, _: &CustomerRecord, _: &EventId) -> Result<Commit, Unavailable> {
        Ok(Commit::Done)
    }
}

impl Ledger for Ports {
    async fn write(&self, batch: &Batch, _: u8, _: EpochSecs) -> Result<Written, Unavailable> {
        // The sums are a part of the work, not of the call.
        std::hint::black_box(batch.tallies());
        Ok(Written::All)
    }

    async fn row(&self, _: &RowKey) -> Result<Option<LedgerRow>, Unavailable> {
        Ok(None)
    }

    async fn seen_again(&self, _: &RowKey, _: u64, _: &str) -> Result<(), Unavailable> {
        Ok(())
    }
}

impl Parked for Ports {
    async fn parked(&self, _: &ParkedPlace, _: EpochSecs) -> Result<(Vec<LedgerRow>, Option<ParkedPlace>), Unavailable> {
        Ok((Vec::new(), None))
    }

    async fn recount(&self, _: &Batch, _: u8, _: EpochSecs) -> Result<Written, Unavailable> {
        Ok(Written::All)
    }
}

impl Quarantine for Ports {
    async fn keep(&self, _: &Quarantined) -> Result<(), Unavailable> {
        Ok(())
    }
}

impl Hints for Ports {
    async fn send(&self, _: &Hint, _: &str) -> Result<(), Unavailable> {
        Ok(())
    }
}

impl Secrets for Ports {
    async fn secret(&self) -> Result<Secret, SecretUnavailable> {
        Ok(Secret::new(WEBHOOK_SECRET))
    }
}

/// The samples' price list, facts and account, and the functions over ports that answer at once.
#[derive(Debug)]
pub struct World {
    /// What is sold.
    pub prices: PriceList,
    /// A customer with one subscription to the plan `pro`, as Stripe shows it.
    pub facts: CustomerFacts,
    /// What `sync` makes of these facts.
    pub account: Account,
}

impl World {
    /// # Errors
    /// The samples do not go with the price list.
    pub fn new() -> anyhow::Result<Self> {
        let prices = PriceList::shipped()?;
        let facts = facts()?;
        let decision = decide(&prices, None, &UserId::new(USER)?, &facts, &Failures::default(), NOW_MS);
        let Decision::Commit { account, .. } = decision else { anyhow::bail!("the sample customer has no account") };
        Ok(Self { prices, facts, account: *account })
    }

    fn ports(&self) -> Ports {
        Ports { account: self.account.clone() }
    }

    /// The usage function.
    #[must_use]
    pub fn usage(&self) -> Usage<Ports, Ports, Ports, Still> {
        Usage {
            accounts: self.ports(),
            ledger: self.ports(),
            quarantine: self.ports(),
            clock: Still,
            prices: self.prices.clone(),
            retention_days: 400,
        }
    }

    /// The webhook function.
    #[must_use]
    pub fn webhook(&self) -> Webhook<Ports, Ports, Still> {
        Webhook { secrets: self.ports(), hints: self.ports(), clock: Still, mode: StripeMode::Test }
    }
}

fn facts() -> anyhow::Result<CustomerFacts> {
    let since = EpochSecs::from_ms(NOW_MS).plus_days(-12);
    let cycle = Cycle { anchor: since, interval: Interval::Month, count: 1 };
    let item = |lookup_key: &str, metered| ItemFacts {
        lookup_key: Some(lookup_key.to_owned()),
        metered,
        period: (cycle.boundary(0), cycle.boundary(1)),
        cycle,
    };
    let items = [("pro_base", false), ("pro_requests", true), ("pro_tokens_in", true), ("pro_tokens_out", true)]
        .map(|(key, metered)| item(key, metered));
    Ok(CustomerFacts {
        customer: CustomerId::new("cus_Benchmark")?,
        deleted: false,
        user_id: Some(UserId::new(USER)?),
        test_clock: None,
        subscriptions: vec![SubscriptionFacts {
            id: SubscriptionId::new("sub_Benchmark")?,
            status: Status::Active,
            paused_by: None,
            created: since,
            user_id: None,
            items: items.into(),
            billing_cycle_anchor: since,
            trial_end: None,
            cancel_at: None,
            ended_at: None,
            latest_invoice: None,
            flexible: true,
        }],
        open_invoices: Vec::new(),
        paid_invoices: Vec::new(),
        checkout_users: Vec::new(),
    })
}

/// A call as services report it: ids as long as UUIDs, every optional field.
#[must_use]
pub fn call(user_id: &str, n: usize) -> Value {
    json!({
        "request_id": format!("req_01JD3A-7c9e-4b1d-9f00-{n:012}"), "user_id": user_id, "endpoint": "/v1/chat/completions",
        "model": "claude-sonnet-4-5-20250929", "tokens_in": 812, "tokens_out": 240, "tokens_cached": 512, "success": true,
        "timestamp": "2026-11-22T12:00:00Z", "units": {"images": 1}, "attempt": 1, "outcome": "end_turn",
    })
}

/// The payload with which Lambda hands messages of these bodies to `usage`.
#[must_use]
pub fn payload(first: usize, bodies: impl Iterator<Item = String>) -> Value {
    let record = |(n, body): (usize, String)| {
        json!({
            "messageId": format!("19dd0b57-b21e-4ac1-bd88-{:012}", first.saturating_add(n)),
            "receiptHandle": "MessageReceiptHandle", "body": body,
            "attributes": {"ApproximateReceiveCount": "1", "SentTimestamp": NOW_MS.to_string(), "SenderId": "AIDACKCEVSQ6C2EXAMPLE",
                "ApproximateFirstReceiveTimestamp": NOW_MS.to_string()},
            "messageAttributes": {}, "md5OfBody": "7b270e59b47ff90a553787216d55d91d", "eventSource": "aws:sqs",
            "eventSourceARN": "arn:aws:sqs:eu-central-1:123456789012:tokentill-usage", "awsRegion": "eu-central-1",
        })
    };
    json!({"Records": bodies.enumerate().map(record).collect::<Vec<_>>()})
}

/// A payload of so many events, each a message of its own.
#[must_use]
pub fn single_events(first: usize, count: usize, user_of: impl Fn(usize) -> String) -> Vec<u8> {
    let bodies = (first..first.saturating_add(count)).map(|n| call(&user_of(n), n).to_string());
    payload(first, bodies).to_string().into_bytes()
}

/// The most that SQS hands over at once: 6 MB of messages of 1,000 events each, of 50 users; and how many events these are.
#[must_use]
pub fn largest_payload() -> (Vec<u8>, usize) {
    const EACH: usize = 1_000;
    let message = |m: usize| {
        let events = (0..EACH).map(|n| call(&format!("user_{}", n % 50), m.saturating_mul(EACH).saturating_add(n)));
        json!({"events": events.collect::<Vec<_>>()}).to_string()
    };
    let count = 6_000_000_usize.checked_div(message(0).len()).unwrap_or(1);
    (payload(0, (0..count).map(message)).to_string().into_bytes(), count.saturating_mul(EACH))
}

/// Lambda's payload as the function gets it.
///
/// # Errors
/// It is none.
pub fn sqs_event(payload: &[u8]) -> serde_json::Result<SqsEvent> {
    serde_json::from_slice(payload)
}

/// The value of `Stripe-Signature` for a body at a moment.
///
/// # Errors
/// HMAC takes keys of any length, so there is none.
pub fn signed(body: &[u8], now_secs: i64) -> anyhow::Result<String> {
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes())?;
    mac.update(format!("{now_secs}.").as_bytes());
    mac.update(body);
    Ok(format!("t={now_secs},v1={}", hex::encode(mac.finalize().into_bytes())))
}

/// A Stripe event of about so many bytes: an invoice with its lines, as Stripe sends it.
#[must_use]
pub fn stripe_event(n: usize, bytes: usize) -> Vec<u8> {
    let line = |n: usize| {
        json!({
            "id": format!("il_1TWq{n:016}"), "object": "line_item", "amount": 1_900, "currency": "eur", "discountable": true,
            "description": "1 × Pro (at €19.00 / month)", "livemode": false, "metadata": {}, "quantity": 1,
            "period": {"end": 1_797_940_800, "start": 1_795_348_800}, "subscription": "sub_1TWq0123456789", "taxes": [],
        })
    };
    let lines = bytes.saturating_sub(700).checked_div(line(0).to_string().len().saturating_add(1)).unwrap_or(0);
    json!({
        "id": format!("evt_1TWq{n:016}"), "object": "event", "api_version": "2026-09-30.endive", "created": 1_795_348_800,
        "livemode": false, "pending_webhooks": 1, "request": {"id": null, "idempotency_key": null},
        "type": "invoice.payment_failed",
        "data": {"object": {
            "id": "in_1TWq0123456789", "object": "invoice", "customer": "cus_Ada", "amount_due": 1_900, "amount_paid": 0,
            "attempt_count": 1, "attempted": true, "currency": "eur", "status": "open", "lines": {"object": "list", "has_more": false,
            "data": (0..lines).map(line).collect::<Vec<_>>()},
        }},
    })
    .to_string()
    .into_bytes()
}

/// A request of Stripe's to the webhook.
///
/// # Errors
/// The signature is no header.
pub fn webhook_request(body: Vec<u8>) -> anyhow::Result<Request> {
    let header = signed(&body, EpochSecs::from_ms(NOW_MS).as_secs())?;
    let mut request = Request::new(Body::Binary(body));
    request.headers_mut().insert("stripe-signature", header.parse()?);
    Ok(request)
}
