//! Stripe's public API as the local stack and the demo use it: the price list's meters and prices, the webhook endpoint, and
//! what a payer does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::place::checkout;
use crate::progress::poll;

/// The version of Stripe's API that the functions are written for; the webhook endpoint is pinned to it.
pub const API_VERSION: &str = "2026-09-30.endive";

/// The snapshot events of contract 3.1 that matter to us.
pub const EVENTS: [&str; 26] = [
    "checkout.session.completed",
    "customer.updated",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.trial_will_end",
    "invoice.created",
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    "invoice.finalization_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "test_helpers.test_clock.ready",
];

/// The thin events of contract 3.1 that no snapshot tells.
const THIN_EVENTS: [&str; 2] = ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"];

/// How long a call may meet rate limits, and how long it waits each time.
const LET_THROUGH: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);

/// Form fields, in Stripe's notation (`recurring[interval]`).
pub type Fields<'a> = &'a [(&'a str, &'a str)];

/// A client of Stripe's API.
#[derive(Debug, Clone)]
pub struct Stripe {
    url: String,
    key: String,
    http: reqwest::Client,
}

impl Stripe {
    pub(crate) fn new(url: &str, key: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key: key.to_owned(), http })
    }

    /// Reads.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn get(&self, path: &str, query: Fields<'_>) -> Result<Value> {
        self.send(path, self.http.get(format!("{}{path}", self.url)).query(query)).await
    }

    /// Creates or changes.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn post(&self, path: &str, fields: Fields<'_>) -> Result<Value> {
        self.send(path, self.http.post(format!("{}{path}", self.url)).form(fields)).await
    }

    /// A test account lets 25 calls a second through, ours and the functions' together. One too many had no effect: it comes again.
    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value> {
        let request = request.bearer_auth(&self.key).header("stripe-version", API_VERSION);
        poll(&format!("Stripe to let {path} through"), LET_THROUGH, PAUSE, || async {
            let request = request.try_clone().context("a request that cannot be repeated")?;
            let answer = request.send().await.with_context(|| format!("Stripe: {path}: no answer"))?;
            let status = answer.status();
            if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
                return Ok(None);
            }
            let text = answer.text().await?;
            ensure!(status.is_success(), "Stripe: {path}: {status}: {text}");
            serde_json::from_str(&text).map(Some).with_context(|| format!("Stripe: {path}: no JSON"))
        })
        .await
    }

    /// Whether this is our sandbox, which lets us act as a payer.
    pub(crate) async fn is_sandbox(&self) -> bool {
        self.http.get(format!("{}/_sandbox/health", self.url)).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Makes what the shipped price list names and this account does not have yet.
    pub(crate) async fn seed(&self) -> Result<()> {
        let path = checkout().join("shared/price-list.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let list: PriceList = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;

        let present = self.get("/v1/billing/meters", &[("limit", "100"), ("status", "active")]).await?;
        let mut meters = Vec::new();
        for meter in &list.meters {
            let found = data(&present).find(|one| text_of(one, "event_name") == Some(meter.event_name.as_str()));
            let id = match found.and_then(|one| text_of(one, "id")) {
                Some(id) => id.to_owned(),
                None => id_of(&self.create_meter(meter).await?)?,
            };
            meters.push((meter.id.as_str(), id));
        }
        for plan in list.plans.iter().filter(|plan| !plan.prices.is_empty()) {
            let mut product = None;
            for price in &plan.prices {
                if self.price(&price.lookup_key).await?.is_some() {
                    continue;
                }
                let product = match &product {
                    Some(product) => product,
                    None => product.insert(id_of(&self.post("/v1/products", &[("name", &plan.name)]).await?)?),
                };
                let meter = match &price.meter {
                    Some(name) => {
                        let known = meters.iter().find(|(meter, _)| meter == name);
                        Some(known.map(|(_, id)| id.as_str()).with_context(|| format!("{name} is no meter of the price list"))?)
                    }
                    None => None,
                };
                self.create_price(product, price, meter).await?;
            }
        }
        Ok(())
    }

    async fn create_meter(&self, meter: &Meter) -> Result<Value> {
        let fields = [
            ("display_name", meter.id.as_str()),
            ("event_name", &meter.event_name),
            ("default_aggregation[formula]", "sum"),
            ("customer_mapping[type]", "by_id"),
            ("customer_mapping[event_payload_key]", "stripe_customer_id"),
            ("value_settings[event_payload_key]", "value"),
        ];
        self.post("/v1/billing/meters", &fields).await
    }

    async fn create_price(&self, product: &str, price: &Price, meter: Option<&str>) -> Result<Value> {
        let minor = price.unit_amount_minor.map(|minor| minor.to_string());
        let mut fields = vec![
            ("product", product),
            ("currency", &price.currency),
            ("lookup_key", &price.lookup_key),
            ("billing_scheme", "per_unit"),
            ("recurring[interval]", &price.interval),
        ];
        if let Some(minor) = &minor {
            fields.push(("unit_amount", minor));
        }
        if let Some(decimal) = &price.unit_amount_decimal_minor {
            fields.push(("unit_amount_decimal", decimal));
        }
        if let Some(meter) = meter {
            fields.extend([("recurring[usage_type]", "metered"), ("recurring[meter]", meter)]);
        }
        self.post("/v1/prices", &fields).await
    }

    /// A price's id by its lookup key.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn price(&self, lookup_key: &str) -> Result<Option<String>> {
        let found = self.get("/v1/prices", &[("lookup_keys[]", lookup_key), ("active", "true")]).await?;
        Ok(data(&found).next().and_then(|price| text_of(price, "id")).map(str::to_owned))
    }

    /// Registers the webhook endpoint; answers its signing secret.
    pub(crate) async fn register_webhook(&self, url: &str) -> Result<String> {
        let mut fields = vec![("url", url), ("api_version", API_VERSION)];
        fields.extend(EVENTS.iter().map(|event| ("enabled_events[]", *event)));
        let endpoint = self.post("/v1/webhook_endpoints", &fields).await?;
        secret_of(&endpoint)
    }

    /// Has our sandbox send thin events there too, by a destination of their own; answers its signing secret.
    pub(crate) async fn register_thin(&self, url: &str) -> Result<String> {
        let mut fields = vec![("url", url)];
        fields.extend(THIN_EVENTS.iter().map(|event| ("enabled_events[]", *event)));
        secret_of(&self.post("/_sandbox/event_destinations", &fields).await?)
    }
}

/// The entries of one of Stripe's lists.
pub fn data(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("data").and_then(Value::as_array).into_iter().flatten()
}

/// A field that holds text.
#[must_use]
pub fn text_of<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field)?.as_str()
}

fn secret_of(endpoint: &Value) -> Result<String> {
    Ok(text_of(endpoint, "secret").context("Stripe: a webhook endpoint without a secret")?.to_owned())
}

/// An object's id.
///
/// # Errors
/// It has none.
pub fn id_of(object: &Value) -> Result<String> {
    Ok(text_of(object, "id").context("Stripe: an object without an id")?.to_owned())
}

/// What is sold, as far as Stripe has to know it.
#[derive(Debug, Deserialize)]
struct PriceList {
    meters: Vec<Meter>,
    plans: Vec<Plan>,
}

#[derive(Debug, Deserialize)]
struct Meter {
    id: String,
    event_name: String,
}

#[derive(Debug, Deserialize)]
struct Plan {
    name: String,
    #[serde(default)]
    prices: Vec<Price>,
}

#[derive(Debug, Deserialize)]
struct Price {
    lookup_key: String,
    meter: Option<String>,
    interval: String,
    currency: String,
    unit_amount_minor: Option<u64>,
    unit_amount_decimal_minor: Option<String>,
}
