//! A customer on a test clock and what it subscribes to, driven over HTTP as the sandbox's users drive it.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "each test file uses its part, and a test's helpers fail by panicking, as its body does"
)]

use serde_json::Value;
use stripe_sandbox::Sandbox;

pub const HOUR: i64 = 3_600;
pub const DAY: i64 = 24 * HOUR;
/// 2027-01-31 12:00:00 UTC: a month's end, so that periods are clamped.
pub const START: i64 = 1_801_396_800;
/// 2027-02-28 12:00:00 UTC
pub const FEBRUARY: i64 = START + 28 * DAY;
/// 2027-03-31 12:00:00 UTC
pub const MARCH: i64 = FEBRUARY + 31 * DAY;

pub type Form<'a> = &'a [(&'a str, &'a str)];

pub struct Stripe {
    pub sandbox: Sandbox,
    pub http: reqwest::Client,
}

impl Stripe {
    /// Without rate limits, which a test of something else would meet by chance.
    pub async fn start() -> Self {
        let stripe = Self::start_limited().await;
        stripe.set(&[("global_rate", "0"), ("endpoint_rate", "0")]).await;
        stripe
    }

    pub async fn start_limited() -> Self {
        Self { sandbox: Sandbox::start(0).await.unwrap(), http: reqwest::Client::new() }
    }

    pub async fn set(&self, settings: Form<'_>) {
        self.post("/_sandbox/settings", settings).await;
    }

    pub async fn fault(&self, fault: Form<'_>) {
        self.post("/_sandbox/faults", fault).await;
    }

    /// How many customers there are.
    pub async fn customers(&self) -> usize {
        self.get("/v1/customers").await["data"].as_array().unwrap().len()
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.bearer_auth("sk_test_lifecycle").send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap())
    }

    pub async fn try_post(&self, path: &str, form: Form<'_>) -> (u16, Value) {
        self.send(self.http.post(format!("{}{path}", self.sandbox.url())).form(form)).await
    }

    pub async fn post(&self, path: &str, form: Form<'_>) -> Value {
        let (status, body) = self.try_post(path, form).await;
        assert_eq!(status, 200, "POST {path}: {body}");
        body
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, body) = self.send(self.http.get(format!("{}{path}", self.sandbox.url()))).await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    /// Advances a clock and waits for it.
    pub async fn advance(&self, clock: &str, to: i64) {
        self.post(&format!("/v1/test_helpers/test_clocks/{clock}/advance"), &[("frozen_time", &to.to_string())]).await;
        for _ in 0..500 {
            let clock = self.get(&format!("/v1/test_helpers/test_clocks/{clock}")).await;
            if clock["status"] == "ready" {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the clock never became ready");
    }

    /// The types of the events about an object, oldest first.
    pub async fn event_types(&self, object: &str) -> Vec<String> {
        let events = self.get("/v1/events?limit=100").await;
        let mut types: Vec<String> = events["data"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["data"]["object"]["id"] == object)
            .map(|event| id(&event["type"]))
            .collect();
        types.reverse();
        types
    }
}

pub fn id(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A customer on a clock with a subscription of a flat price (19.00) and a metered one (0.25 cents a request).
pub struct Month {
    pub stripe: Stripe,
    pub clock: String,
    pub customer: String,
    pub good: String,
    pub bad: String,
    pub base: String,
    pub metered: String,
    pub meter: String,
}

impl Month {
    pub async fn begin() -> Self {
        let stripe = Stripe::start().await;
        let meter = stripe
            .post(
                "/v1/billing/meters",
                &[("display_name", "Requests"), ("event_name", "requests"), ("default_aggregation[formula]", "sum")],
            )
            .await;
        let meter = id(&meter["id"]);
        let base = stripe
            .post(
                "/v1/prices",
                &[("currency", "usd"), ("unit_amount", "1900"), ("recurring[interval]", "month"), ("product_data[name]", "Pro")],
            )
            .await;
        let metered = stripe
            .post(
                "/v1/prices",
                &[
                    ("currency", "usd"),
                    ("unit_amount_decimal", "0.25"),
                    ("recurring[interval]", "month"),
                    ("recurring[usage_type]", "metered"),
                    ("recurring[meter]", &meter),
                    ("product", base["product"].as_str().unwrap()),
                ],
            )
            .await;
        let clock = stripe.post("/v1/test_helpers/test_clocks", &[("frozen_time", &START.to_string())]).await;
        let clock = id(&clock["id"]);
        let customer = id(&stripe.post("/v1/customers", &[("test_clock", &clock)]).await["id"]);
        let mut methods = Vec::new();
        for token in ["pm_card_visa", "pm_card_chargeCustomerFail"] {
            let path = format!("/v1/payment_methods/{token}/attach");
            methods.push(id(&stripe.post(&path, &[("customer", &customer)]).await["id"]));
        }
        let bad = methods.pop().unwrap();
        let good = methods.pop().unwrap();
        Self { stripe, clock, customer, good, bad, base: id(&base["id"]), metered: id(&metered["id"]), meter }
    }

    pub async fn pay_with(&self, method: &str) {
        let path = format!("/v1/customers/{}", self.customer);
        self.stripe.post(&path, &[("invoice_settings[default_payment_method]", method)]).await;
    }

    pub async fn subscribe(&self, more: Form<'_>) -> Value {
        let mut form = vec![
            ("customer", self.customer.as_str()),
            ("items[0][price]", self.base.as_str()),
            ("items[1][price]", self.metered.as_str()),
        ];
        form.extend_from_slice(more);
        self.stripe.post("/v1/subscriptions", &form).await
    }

    pub async fn use_requests(&self, value: &str, at: i64) {
        let form = [
            ("event_name", "requests"),
            ("timestamp", &at.to_string()),
            ("payload[stripe_customer_id]", &self.customer),
            ("payload[value]", value),
        ];
        self.stripe.post("/v1/billing/meter_events", &form).await;
    }

    pub async fn subscription(&self, subscription: &Value) -> Value {
        let path = format!("/v1/subscriptions/{}?expand[]=latest_invoice", subscription["id"].as_str().unwrap());
        self.stripe.get(&path).await
    }
}

pub fn period(subscription: &Value) -> (i64, i64) {
    let item = &subscription["items"]["data"][0];
    (item["current_period_start"].as_i64().unwrap(), item["current_period_end"].as_i64().unwrap())
}
