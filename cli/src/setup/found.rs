//! What there is: Stripe's objects as far as setup compares them, and the stack's secrets.

use std::collections::BTreeMap;

use miniserde::{Deserialize, json::Number};
use sha2::{Digest, Sha256};
use tokentill::{domain::price_list::Interval, ports::Secret};

/// The metadata by which a plan's product is found again.
pub(super) const PLAN: &str = "tokentill_plan";
/// The metadata of an endpoint that setup made: the fingerprint of its secret once that is stored, until then [`NOT_STORED`].
pub(super) const SECRET: &str = "tokentill_secret";
/// What [`SECRET`] says until the secret is stored.
pub(super) const NOT_STORED: &str = "not stored yet";
/// The metadata of an endpoint that names those it replaces.
pub(super) const REPLACES: &str = "tokentill_replaces";

/// Everything that setup looks at.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) meters: Vec<Meter>,
    pub(super) products: Vec<Product>,
    pub(super) prices: Vec<Price>,
    /// The portal's default configuration, or else any.
    pub(super) portal: Option<Portal>,
    pub(super) endpoints: Vec<Endpoint>,
    /// The signing secrets in SSM.
    pub(super) webhook_secrets: Vec<Secret>,
    pub(super) has_service_token: bool,
    /// The functions' key in SSM.
    pub(super) stripe_key: Option<Secret>,
}

/// What a page of a list holds.
#[derive(Deserialize)]
pub(super) struct List<T> {
    pub(super) data: Option<Vec<T>>,
    pub(super) has_more: Option<bool>,
}

/// An object of Stripe's.
pub(super) trait Object: Deserialize {
    fn id(&self) -> &str;
    /// `None` where Stripe does not say.
    fn livemode(&self) -> Option<bool>;
}

macro_rules! object {
    ($($name:ident),*) => {$(
        impl Object for $name {
            fn id(&self) -> &str {
                &self.id
            }

            fn livemode(&self) -> Option<bool> {
                self.livemode
            }
        }
    )*};
}
object!(Meter, Product, Price, Portal, Endpoint, Customer);

/// A billing meter.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Meter {
    pub(super) id: String,
    livemode: Option<bool>,
    status: Option<String>,
    pub(super) event_name: String,
    event_time_window: Option<String>,
    default_aggregation: Option<Aggregation>,
    customer_mapping: Option<Mapping>,
    value_settings: Option<ValueSettings>,
}

#[derive(Debug, Clone, Deserialize)]
struct Aggregation {
    formula: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Mapping {
    r#type: Option<String>,
    event_payload_key: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct ValueSettings {
    event_payload_key: Option<String>,
}

impl Meter {
    pub(super) fn is_active(&self) -> bool {
        self.status.as_deref() == Some("active")
    }

    /// What of it is not as the reporter sends usage, none of which can be changed.
    pub(super) fn misfits(&self) -> Vec<String> {
        let mapping = self.customer_mapping.as_ref();
        let is = [
            ("default_aggregation.formula", self.default_aggregation.as_ref().and_then(|it| it.formula.as_deref()), Some("sum")),
            ("customer_mapping.type", mapping.and_then(|it| it.r#type.as_deref()), Some("by_id")),
            (
                "customer_mapping.event_payload_key",
                mapping.and_then(|it| it.event_payload_key.as_deref()),
                Some("stripe_customer_id"),
            ),
            (
                "value_settings.event_payload_key",
                self.value_settings.as_ref().and_then(|it| it.event_payload_key.as_deref()),
                Some("value"),
            ),
            ("event_time_window", self.event_time_window.as_deref(), None),
        ];
        let misfit = |(name, is, wanted): (&str, Option<&str>, Option<&str>)| {
            format!("{name} is {}, not {}", is.unwrap_or("unset"), wanted.unwrap_or("unset"))
        };
        is.into_iter().filter(|(_, is, wanted)| is != wanted).map(misfit).collect()
    }
}

/// A product.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Product {
    pub(super) id: String,
    livemode: Option<bool>,
    pub(super) active: bool,
    pub(super) name: String,
    metadata: Option<BTreeMap<String, String>>,
}

impl Product {
    /// The plan whose product it is said to be.
    pub(super) fn plan(&self) -> Option<&str> {
        self.metadata.as_ref()?.get(PLAN).map(String::as_str)
    }
}

/// A price.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Price {
    pub(super) id: String,
    livemode: Option<bool>,
    pub(super) active: bool,
    pub(super) lookup_key: Option<String>,
    pub(super) product: String,
    currency: String,
    billing_scheme: Option<String>,
    unit_amount: Option<i64>,
    unit_amount_decimal: Option<String>,
    recurring: Option<Recurring>,
    transform_quantity: Option<Transform>,
}

#[derive(Debug, Clone, Deserialize)]
struct Recurring {
    interval: Option<String>,
    interval_count: Option<Number>,
    usage_type: Option<String>,
    meter: Option<String>,
}

/// Only that there is one matters.
#[derive(Debug, Clone, Deserialize)]
struct Transform {}

/// What a price costs: all that cannot be changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) amount: String,
    pub(super) currency: String,
    pub(super) interval: String,
    /// The id of the meter.
    pub(super) meter: Option<String>,
}

impl std::fmt::Display for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { amount, currency, interval, meter } = self;
        match meter {
            None => write!(f, "{amount} minor units of {currency} a {interval}"),
            Some(meter) => write!(f, "{amount} minor units of {currency} for each unit of {meter}, invoiced each {interval}"),
        }
    }
}

/// A decimal number without the zeros at its end that mean nothing.
pub(super) fn plain_decimal(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, fraction)) => {
            let fraction = fraction.trim_end_matches('0');
            if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") }
        }
        None => text.to_owned(),
    }
}

pub(super) fn interval_name(interval: Interval) -> &'static str {
    match interval {
        Interval::Day => "day",
        Interval::Week => "week",
        Interval::Month => "month",
        Interval::Year => "year",
    }
}

impl Price {
    /// Its terms; what the price list cannot say (tiers, packages, other counts of intervals) is in the words.
    pub(super) fn terms(&self) -> Terms {
        let recurring = self.recurring.as_ref();
        let amount = match (&self.unit_amount_decimal, self.unit_amount) {
            (Some(decimal), _) => plain_decimal(decimal),
            (None, Some(amount)) => amount.to_string(),
            (None, None) => "no fixed amount of".to_owned(),
        };
        let tiers = self.billing_scheme.as_deref().is_some_and(|scheme| scheme != "per_unit");
        let odd = match (tiers, &self.transform_quantity) {
            (true, _) => " in tiers,",
            (false, Some(_)) => " for a package,",
            (false, None) => "",
        };
        let count = recurring.and_then(|it| it.interval_count.as_ref()).map_or("1".to_owned(), Number::to_string);
        let interval = recurring.and_then(|it| it.interval.as_deref()).unwrap_or("single payment");
        let meter = recurring.and_then(|it| it.meter.clone());
        let metered = recurring.and_then(|it| it.usage_type.as_deref()) == Some("metered");
        Terms {
            amount: format!("{amount}{odd}"),
            currency: self.currency.clone(),
            interval: if count == "1" { interval.to_owned() } else { format!("{count} {interval}s") },
            meter: if metered { Some(meter.unwrap_or_else(|| "no meter".to_owned())) } else { meter },
        }
    }
}

/// A configuration of the portal.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Portal {
    pub(super) id: String,
    livemode: Option<bool>,
    pub(super) is_default: bool,
    default_return_url: Option<String>,
    features: Option<Features>,
}

#[derive(Debug, Clone, Deserialize)]
struct Features {
    invoice_history: Option<Switch>,
    payment_method_update: Option<Switch>,
    subscription_cancel: Option<Cancel>,
    subscription_update: Option<Switch>,
}

#[derive(Debug, Clone, Deserialize)]
struct Switch {
    enabled: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct Cancel {
    enabled: Option<bool>,
    mode: Option<String>,
}

impl Portal {
    /// What of it has to change, in words.
    pub(super) fn misfits(&self, return_url: Option<&str>) -> Vec<&'static str> {
        let features = self.features.as_ref();
        let on = |switch: Option<&Switch>| switch.and_then(|switch| switch.enabled) == Some(true);
        let cancel = features.and_then(|it| it.subscription_cancel.as_ref());
        let checks = [
            ("offers changing the payment method", on(features.and_then(|it| it.payment_method_update.as_ref()))),
            ("shows invoices", on(features.and_then(|it| it.invoice_history.as_ref()))),
            ("offers cancelling", cancel.and_then(|it| it.enabled) == Some(true)),
            // At once there would be no last invoice, and the usage of the period would not be billed.
            ("cancels at the period's end", cancel.and_then(|it| it.mode.as_deref()) == Some("at_period_end")),
            // Stripe's portal cannot change a subscription of several products or with metered prices.
            ("leaves plans alone", !on(features.and_then(|it| it.subscription_update.as_ref()))),
            ("leads back to the given URL", return_url.is_none_or(|url| self.default_return_url.as_deref() == Some(url))),
        ];
        checks.into_iter().filter(|(_, fits)| !fits).map(|(what, _)| what).collect()
    }
}

/// A webhook endpoint.
#[derive(Clone, Deserialize)]
pub(super) struct Endpoint {
    pub(super) id: String,
    livemode: Option<bool>,
    /// When Stripe made it, in Unix seconds.
    pub(super) created: i64,
    pub(super) url: String,
    pub(super) api_version: Option<String>,
    enabled_events: Vec<String>,
    status: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    /// Only told at creation.
    pub(super) secret: Option<String>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Endpoint {
    fn metadata(&self, name: &str) -> Option<&str> {
        self.metadata.as_ref()?.get(name).map(String::as_str)
    }

    pub(super) fn is_enabled(&self) -> bool {
        self.status.as_deref() == Some("enabled")
    }

    pub(super) fn has_events(&self, wanted: &[&str]) -> bool {
        let mut is: Vec<&str> = self.enabled_events.iter().map(String::as_str).collect();
        let mut wanted = wanted.to_vec();
        is.sort_unstable();
        wanted.sort_unstable();
        is == wanted
    }

    /// Where its secret stands.
    pub(super) fn secret_is(&self, stored: &[Secret]) -> SecretIs {
        match self.metadata(SECRET) {
            None => SecretIs::Unknown,
            Some(NOT_STORED) => SecretIs::Unfinished,
            Some(print) if stored.iter().any(|secret| fingerprint(secret) == print) => SecretIs::Stored,
            Some(_) => SecretIs::Lost,
        }
    }

    pub(super) fn replaces(&self) -> impl Iterator<Item = &str> {
        self.metadata(REPLACES).unwrap_or_default().split(' ').filter(|id| !id.is_empty())
    }
}

/// Where an endpoint's signing secret stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SecretIs {
    /// SSM has it.
    Stored,
    /// SSM had it and has it no more.
    Lost,
    /// Setup made the endpoint and was interrupted before it could say that the secret is stored.
    Unfinished,
    /// Somebody else made the endpoint.
    Unknown,
}

/// By what a secret is recognised without being told: too little to find one by trying, since a secret has far more than 128
/// random bits.
pub(super) fn fingerprint(secret: &Secret) -> String {
    let digest = Sha256::digest(format!("tokentill webhook secret {}", secret.expose()).as_bytes());
    hex::encode(digest).chars().take(16).collect()
}

/// A customer, as far as import reads it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Customer {
    pub(crate) id: String,
    pub(crate) livemode: Option<bool>,
    metadata: Option<BTreeMap<String, String>>,
}

impl Customer {
    /// The user that its metadata names.
    pub(crate) fn user_id(&self) -> Option<&str> {
        self.metadata.as_ref()?.get("user_id").map(String::as_str).filter(|user| !user.is_empty())
    }
}
