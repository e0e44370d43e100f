//! A life story of a subscription: played once on the Stripe sandbox, and recorded.
//!
//! A [`Stage`] drives the sandbox through its API, as a person, a bank or the passing of time would. After each step it asks the
//! real Stripe adapter for the customer's state, and takes down every event that the step caused. What comes of it, a [`Story`],
//! needs no HTTP any more: an order of deliveries is played by handing the events out and answering each fetch with the state of
//! the step it falls into.
//!
//! The customer lives on a test clock, without which the sandbox has no time; the record leaves the clock out and has the events
//! stamped by it, so that the story reads as one of live mode.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::Value;
use stripe_sandbox::Sandbox;
use tokentill::{
    domain::{
        facts::CustomerFacts,
        hint::{self, Relevance},
        id::CustomerId,
        price_list::PriceList,
        time::EpochSecs,
    },
    ports::{PaymentFacts, Payments, StripeState},
    stripe::{FixedKey, SecretKey, Stripe, StripeClient},
};

/// When every story begins: 2027-01-31 12:00 UTC, a month's last day, so that the next period ends on 28 February.
pub const START: i64 = 1_801_396_800;
/// The user of every story.
pub const USER: &str = "ada";

/// What Stripe showed after a step, and when.
#[derive(Debug, Clone)]
pub struct Step {
    /// What happened.
    pub name: String,
    /// The moment that Stripe lives in after it.
    pub at: EpochSecs,
    /// The customer's state, as the adapter reads it.
    pub facts: CustomerFacts,
    /// The same state in Stripe's own JSON: the subscriptions, and all invoices.
    pub subscriptions: Vec<Value>,
    /// Newest first.
    pub invoices: Vec<Value>,
    /// The charges that were told of so far, as the adapter reads them.
    pub payments: BTreeMap<String, PaymentFacts>,
}

/// An event that a step caused.
#[derive(Debug, Clone)]
pub struct Told {
    /// The step that caused it. It can be delivered in this step or in any later one.
    pub step: usize,
    /// The event as a webhook endpoint would get it.
    pub payload: Value,
}

impl Told {
    /// A text of the event: `id`, `type`.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.payload[field].as_str().expect("an event has its fields")
    }

    /// Whether it is about a payment alone, and nobody looks at the customer because of it.
    #[must_use]
    pub fn is_about_a_payment(&self) -> bool {
        self.text("type").starts_with("charge.")
    }

    /// The invoice whose payment failed, and when, if that is what it tells.
    #[must_use]
    pub fn failure(&self) -> Option<(&str, i64)> {
        let invoice = self.payload["data"]["object"]["id"].as_str().filter(|_| self.text("type") == "invoice.payment_failed")?;
        Some((invoice, self.payload["created"].as_i64()?))
    }
}

/// A story that was played.
#[derive(Debug, Clone)]
pub struct Story {
    /// Its name.
    pub name: &'static str,
    /// Whose it is.
    pub customer: CustomerId,
    /// What Stripe showed, step by step.
    pub steps: Vec<Step>,
    /// Every event of use to us, in the order in which Stripe made them.
    pub events: Vec<Told>,
    /// What is sold.
    pub prices: PriceList,
}

/// The shipped price list with a dearer plan, `max`, beside `pro`: something to switch to.
///
/// # Panics
/// If the shipped list no longer has `pro` as its last plan.
#[must_use]
pub fn prices() -> PriceList {
    let shipped = include_str!("../../../shared/price-list.toml");
    let (_, pro) = shipped.rsplit_once("[[plans]]").expect("the list has plans");
    let max = pro.replace("pro", "max").replace("Pro", "Max").replace("4900", "9900");
    PriceList::parse(&format!("{shipped}\n[[plans]]{max}")).expect("the list is good")
}

/// The lookup keys of a plan's prices.
fn lookup_keys(plan: &str) -> [String; 4] {
    ["base", "requests", "tokens_in", "tokens_out"].map(|price| format!("{plan}_{price}"))
}

/// The sandbox with one customer on it, and what was recorded so far.
#[derive(Debug)]
pub struct Stage {
    sandbox: Sandbox,
    http: reqwest::Client,
    clock: String,
    customer: String,
    seen: BTreeSet<String>,
    story: Story,
}

type Form<'a> = &'a [(&'a str, &'a str)];

impl Stage {
    /// A customer that names its user, with a good card. The plans' prices are there.
    ///
    /// # Panics
    /// If the sandbox refuses anything, as do all methods here.
    pub async fn begin(name: &'static str) -> Self {
        let sandbox = Sandbox::start(0).await.expect("the sandbox starts");
        let customer = CustomerId::new("cus_none").expect("an id");
        let story = Story { name, customer, steps: Vec::new(), events: Vec::new(), prices: prices() };
        let http = reqwest::Client::new();
        let mut stage = Self { sandbox, http, clock: String::new(), customer: String::new(), seen: BTreeSet::new(), story };
        stage.post("/_sandbox/settings", &[("global_rate", "0"), ("endpoint_rate", "0"), ("events_created", "clock")]).await;
        stage.sell().await;
        let clock = stage.post("/v1/test_helpers/test_clocks", &[("frozen_time", &START.to_string())]).await;
        stage.clock = text(&clock["id"]);
        let customer = stage.post("/v1/customers", &[("test_clock", &stage.clock), ("metadata[user_id]", USER)]).await;
        stage.customer = text(&customer["id"]);
        stage.story.customer = CustomerId::new(stage.customer.as_str()).expect("an id");
        stage.pay_with("pm_card_visa").await;
        stage
    }

    /// Meters, and the prices of both plans.
    async fn sell(&self) {
        let product = text(&self.post("/v1/products", &[("name", "Plans")]).await["id"]);
        let mut meters = Vec::new();
        for meter in ["requests", "tokens_in", "tokens_out"] {
            let form = [("display_name", meter), ("event_name", meter), ("default_aggregation[formula]", "sum")];
            meters.push(text(&self.post("/v1/billing/meters", &form).await["id"]));
        }
        for (plan, amount) in [("pro", "4900"), ("max", "9900")] {
            for (lookup_key, meter) in lookup_keys(plan).iter().zip([None].into_iter().chain(meters.iter().map(Some))) {
                let mut form = vec![
                    ("product", product.as_str()),
                    ("currency", "usd"),
                    ("lookup_key", lookup_key),
                    ("recurring[interval]", "month"),
                ];
                match meter {
                    None => form.push(("unit_amount", amount)),
                    Some(meter) => form.extend([
                        ("unit_amount_decimal", "0.1"),
                        ("recurring[usage_type]", "metered"),
                        ("recurring[meter]", meter.as_str()),
                    ]),
                }
                self.post("/v1/prices", &form).await;
            }
        }
    }

    /// The prices of a plan, the flat one first.
    pub async fn prices_of(&self, plan: &str) -> Vec<String> {
        let mut prices = Vec::new();
        for lookup_key in lookup_keys(plan) {
            let found = self.get(&format!("/v1/prices?lookup_keys[]={lookup_key}")).await;
            prices.push(text(&found["data"][0]["id"]));
        }
        prices
    }

    /// Posts a form.
    pub async fn post(&self, path: &str, form: Form<'_>) -> Value {
        self.answer(path, self.http.post(format!("{}{path}", self.sandbox.url())).form(form)).await
    }

    /// Gets an object or a list.
    pub async fn get(&self, path: &str) -> Value {
        self.answer(path, self.http.get(format!("{}{path}", self.sandbox.url()))).await
    }

    /// A whole list, newest first.
    async fn list(&self, path: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        loop {
            let after = all.last().map_or(String::new(), |last| format!("&starting_after={}", text(&last["id"])));
            let page = self.get(&format!("{path}&limit=100{after}")).await;
            all.extend(page["data"].as_array().expect("a list has data").iter().cloned());
            if page["has_more"] != true {
                return all;
            }
        }
    }

    /// Deletes, or cancels.
    pub async fn delete(&self, path: &str) -> Value {
        self.answer(path, self.http.delete(format!("{}{path}", self.sandbox.url()))).await
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Value {
        let answer = request.bearer_auth("sk_test_stories").send().await.expect("the sandbox answers");
        let (status, body) = (answer.status(), answer.json::<Value>().await.expect("in JSON"));
        assert!(status.is_success(), "{}: {path}: {body}", self.story.name);
        body
    }

    /// The customer's id.
    #[must_use]
    pub fn customer(&self) -> &str {
        &self.customer
    }

    /// Attaches a test payment method, and has everything charged to it from now on.
    pub async fn pay_with(&self, token: &str) {
        let attach = format!("/v1/payment_methods/{token}/attach");
        let attached = text(&self.post(&attach, &[("customer", &self.customer)]).await["id"]);
        let customer = format!("/v1/customers/{}", self.customer);
        self.post(&customer, &[("invoice_settings[default_payment_method]", &attached)]).await;
    }

    /// Subscribes the customer to a plan; gives the subscription's id.
    pub async fn subscribe(&self, plan: &str) -> String {
        let prices = self.prices_of(plan).await;
        let names: Vec<String> = (0..prices.len()).map(|place| format!("items[{place}][price]")).collect();
        let mut form = vec![("customer", self.customer.as_str())];
        form.extend(names.iter().map(String::as_str).zip(prices.iter().map(String::as_str)));
        text(&self.post("/v1/subscriptions", &form).await["id"])
    }

    /// Moves a subscription to another plan, item by item, as a portal does.
    pub async fn switch(&self, subscription: &str, plan: &str) {
        let path = format!("/v1/subscriptions/{subscription}");
        let items = self.get(&path).await["items"]["data"].take();
        let mut form = Vec::new();
        for (place, (item, price)) in items.as_array().expect("a list").iter().zip(self.prices_of(plan).await).enumerate() {
            form.push((format!("items[{place}][id]"), text(&item["id"])));
            form.push((format!("items[{place}][price]"), price));
        }
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.post(&path, &form).await;
    }

    /// Reports usage of the customer, at the clock's moment.
    pub async fn use_of(&self, meter: &str, quantity: u32) {
        let clock = self.get(&format!("/v1/test_helpers/test_clocks/{}", self.clock)).await;
        let (value, timestamp) = (quantity.to_string(), clock["frozen_time"].to_string());
        let form = [
            ("event_name", meter),
            ("identifier", meter),
            ("timestamp", &timestamp),
            ("payload[stripe_customer_id]", &self.customer),
            ("payload[value]", &value),
        ];
        self.post("/v1/billing/meter_events", &form).await;
    }

    /// The newest invoice of a subscription.
    pub async fn invoice_of(&self, subscription: &str) -> String {
        text(&self.get(&format!("/v1/subscriptions/{subscription}")).await["latest_invoice"])
    }

    /// Lets time pass until so many seconds after the beginning.
    pub async fn until(&self, secs: i64) {
        let path = format!("/v1/test_helpers/test_clocks/{}", self.clock);
        self.post(&format!("{path}/advance"), &[("frozen_time", &(START + secs).to_string())]).await;
        for _ in 0..2_000 {
            if self.get(&path).await["status"] == "ready" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{}: the clock never became ready", self.story.name);
    }

    /// Ends a step: records what Stripe shows now, and what it told since the last one.
    pub async fn step(&mut self, name: &str) {
        let clock = self.get(&format!("/v1/test_helpers/test_clocks/{}", self.clock)).await;
        let at = EpochSecs::new(clock["frozen_time"].as_i64().expect("a moment"));
        assert!(self.story.steps.last().is_none_or(|last| last.at < at), "{name}: a step takes time");
        let key = FixedKey(SecretKey::new("sk_test_stories").expect("a key"));
        let stripe = Stripe::new(StripeClient::new(Some(&self.sandbox.url()), key).expect("a client"));
        let mut facts = stripe.customer(&self.story.customer).await.expect("the adapter reads it");
        facts.test_clock = None;
        let of_customer = format!("customer={}", self.customer);
        let subscriptions = self.list(&format!("/v1/subscriptions?{of_customer}&status=all")).await;
        let invoices = self.list(&format!("/v1/invoices?{of_customer}")).await;
        let step = self.story.steps.len();
        let mut told = self.list("/v1/events?").await;
        told.reverse();
        for payload in told {
            if self.seen.insert(text(&payload["id"])) && self.is_of_use(&payload) {
                self.story.events.push(Told { step, payload });
            }
        }
        let mut payments = BTreeMap::new();
        for told in self.story.events.iter().filter(|told| told.is_about_a_payment()) {
            let charge = text(&told.payload["data"]["object"]["id"]);
            let payment = stripe.payment(&charge).await.expect("the adapter reads it").expect("it is a charge");
            payments.insert(charge, payment);
        }
        self.story.steps.push(Step { name: name.to_owned(), at, facts, subscriptions, invoices, payments });
    }

    /// Events about the customer of types that the webhook takes; its prices and its clock are none of them.
    fn is_of_use(&self, event: &Value) -> bool {
        let object = &event["data"]["object"];
        let kind = event["type"].as_str().expect("a type");
        let is_ours = object["customer"] == self.customer.as_str() || object["id"] == self.customer.as_str();
        is_ours && hint::relevance(kind) == Relevance::AccountChange
    }

    /// The story that was played.
    pub async fn end(self) -> Story {
        self.sandbox.shutdown().await;
        self.story
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}
