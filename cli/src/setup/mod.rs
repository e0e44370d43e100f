//! `cargo till setup`: what Stripe and SSM have to hold for a deployment to sell, count and bill by the price list.
//!
//! It looks at everything, compares, and makes one change after the other; a second run finds nothing to do. It may be
//! interrupted between any two calls: what there is, is found again by event name, lookup key, metadata or URL, and a secret is
//! stored before what it replaces is removed.
//!
//! **Invariants:** no secret is ever part of a plan, a line of progress or an error; nothing that bills somebody is changed.

mod account;
mod found;
mod parameters;
mod plan;

use std::collections::BTreeSet;

use tokentill::{
    domain::{hint::THIN_EVENTS, id::PlanId, price_list::PriceList},
    ports::{Clock, Secret, StripeError, Unavailable},
    stripe::{FixedKey, InvalidKey, InvalidStripeClient, KeySource, Limits, SecretKey, StripeClient},
};

pub(crate) use account::Account;
pub use account::api_version;
use found::Found;
pub use parameters::{Parameters, Ssm};
use plan::Action;
pub use plan::Plan;

/// How often a call of this command is made: a person waits, and a test account lets 25 calls a second through.
const ATTEMPTS: u32 = 8;

/// What is to be set up beside the price list.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where Stripe's events go: the stack's output `WebhookUrl`. Without it no endpoint is looked at.
    pub webhook_url: Option<String>,
    /// Whether a new endpoint is made in place of those that deliver to this URL now.
    pub rotate_webhook: bool,
    /// A signing secret of a destination that was made by hand, to be stored beside the others.
    pub further_webhook_secret: Option<Secret>,
    /// The key that the functions are to use, if it is to be stored.
    pub store_key: Option<Secret>,
    /// Where the portal leads back to.
    pub return_url: Option<String>,
    /// The stack's `WebhookSecretsParameter`.
    pub webhook_secrets_parameter: String,
    /// The stack's `ServiceTokensParameter`.
    pub service_tokens_parameter: String,
    /// The stack's `StripeKeyParameter`.
    pub stripe_key_parameter: String,
    /// The stack's `SecretsTtlSeconds`: how long a function may go on with the secrets it has read.
    pub secrets_ttl_secs: u16,
}

/// What is added to the life of a secret in a function's memory until a new one is certain to be known: setup itself takes a while,
/// and its clock need not be Stripe's.
const MARGIN_SECS: i64 = 300;

impl Options {
    /// How old an endpoint has to be for its secret to be known to every function, in seconds.
    fn until_known_secs(&self) -> i64 {
        i64::from(self.secrets_ttl_secs) + MARGIN_SECS
    }
}

impl Default for Options {
    /// The template's parameter names, and nothing that has to be asked for.
    fn default() -> Self {
        Self {
            webhook_url: None,
            rotate_webhook: false,
            further_webhook_secret: None,
            store_key: None,
            return_url: None,
            webhook_secrets_parameter: "/tokentill/webhook-secrets".to_owned(),
            service_tokens_parameter: "/tokentill/service-tokens".to_owned(),
            stripe_key_parameter: "/tokentill/stripe-key".to_owned(),
            secrets_ttl_secs: 300,
        }
    }
}

/// Why setup did not do it all. No text of it holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Stripe did not do it.
    #[error("{doing}: {error}{}", message_of(.error))]
    Stripe {
        /// What was being done.
        doing: String,
        /// What Stripe said.
        error: StripeError,
    },
    /// SSM did not do it.
    #[error(transparent)]
    Parameters(#[from] Unavailable),
    /// A person has to settle something first.
    #[error("nothing was changed, because these have to be settled first:\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    /// Stripe took a change that it then did not show.
    #[error("{0}: Stripe answered as if it were done, and it is not; nothing further was done")]
    NoEffect(String),
}

/// Stripe's words; a refusal's alone say what to mend.
fn message_of(error: &StripeError) -> String {
    match error {
        StripeError::Refused { message, .. } => format!(": {message}"),
        _ => String::new(),
    }
}

/// Which of Stripe's modes a key is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No money moves.
    Test,
    /// Money moves.
    Live,
}

/// Why a key is not taken. The texts do not hold it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefused {
    /// There is none.
    #[error(
        "set STRIPE_API_KEY to a secret key of your Stripe account, sk_test_… at first; it is read from the environment alone"
    )]
    Missing,
    /// No API key at all.
    #[error("STRIPE_API_KEY: {0}")]
    Invalid(#[from] InvalidKey),
    /// Another kind of key.
    #[error("STRIPE_API_KEY is no secret key: those begin with sk_test_, rk_test_, sk_live_ or rk_live_")]
    NoSecretKey,
    /// A live key, and nobody said so.
    #[error("STRIPE_API_KEY is a live key: what this makes is sold for real money. Give --live if that is meant")]
    Live,
    /// `--live`, and the key is a test key.
    #[error("--live was given, and STRIPE_API_KEY is a test key")]
    Test,
    /// The base URL cannot be used.
    #[error("TOKENTILL_STRIPE_URL: {0}")]
    Url(#[from] InvalidStripeClient),
}

impl Mode {
    /// The mode of a key.
    ///
    /// # Errors
    /// [`KeyRefused::NoSecretKey`].
    pub fn of_key(key: &str) -> Result<Self, KeyRefused> {
        let is_of = |mode: &str| ["sk", "rk"].iter().any(|kind| key.starts_with(&format!("{kind}_{mode}_")));
        match (is_of("test"), is_of("live")) {
            (true, _) => Ok(Self::Test),
            (_, true) => Ok(Self::Live),
            _ => Err(KeyRefused::NoSecretKey),
        }
    }

    pub(crate) fn livemode(self) -> bool {
        self == Self::Live
    }
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Test => "test",
            Self::Live => "live",
        })
    }
}

/// A client for the key of an operator's command, and the key's mode. A live key needs `live`.
///
/// # Errors
/// [`KeyRefused`].
pub fn client(key: Option<&str>, live: bool, base_url: Option<&str>) -> Result<(StripeClient<FixedKey>, Mode), KeyRefused> {
    let key = key.map(str::trim).filter(|key| !key.is_empty()).ok_or(KeyRefused::Missing)?;
    let secret = SecretKey::new(key)?;
    let mode = Mode::of_key(key)?;
    match (mode, live) {
        (Mode::Live, false) => return Err(KeyRefused::Live),
        (Mode::Test, true) => return Err(KeyRefused::Test),
        _ => {}
    }
    let limits = Limits { attempts: ATTEMPTS, ..Limits::default() };
    Ok((StripeClient::new(base_url, FixedKey(secret))?.with_limits(limits), mode))
}

/// Setup, with what it needs of the world.
pub struct Setup<K, P, C> {
    /// Stripe.
    pub stripe: StripeClient<K>,
    /// The mode of its key.
    pub mode: Mode,
    /// SSM.
    pub parameters: P,
    /// The time.
    pub clock: C,
    /// What is sold.
    pub list: PriceList,
    /// What else is wanted.
    pub options: Options,
}

impl<K: KeySource, P: Parameters, C: Clock> Setup<K, P, C> {
    /// Looks at everything and says what there is and what would be done. Changes nothing.
    ///
    /// # Errors
    /// [`SetupError`] if it cannot be looked at.
    pub async fn plan(&self) -> Result<Plan, SetupError> {
        let found = self.look().await?;
        Ok(self.compare(&self.rotated(&found), &found))
    }

    /// As [`plan`](Self::plan), once it was applied: an endpoint that was just made is not to be replaced again.
    ///
    /// # Errors
    /// [`SetupError`] if it cannot be looked at.
    pub async fn plan_after(&self) -> Result<Plan, SetupError> {
        Ok(self.compare(&BTreeSet::new(), &self.look().await?))
    }

    /// Makes everything as it should be, but for what is open; `tell` gets a line before each change.
    ///
    /// # Errors
    /// [`SetupError`]. [`SetupError::Refused`] comes before anything is changed. After any other one, run it again: it goes on
    /// from what there is.
    pub async fn apply(&self, mut tell: impl FnMut(&str)) -> Result<(), SetupError> {
        let mut found = self.look().await?;
        let rotated = self.rotated(&found);
        let mut last = None;
        loop {
            let plan = self.compare(&rotated, &found);
            // Only what was there before is for a person to settle.
            if last.is_none() && !plan.refused().is_empty() {
                return Err(SetupError::Refused(plan.refused()));
            }
            let Some((action, line)) = plan.next() else {
                let refused = plan.refused();
                return if refused.is_empty() { Ok(()) } else { Err(SetupError::NoEffect(refused.join("; "))) };
            };
            if last.as_ref() == Some(&action) {
                return Err(SetupError::NoEffect(line));
            }
            tell(&line);
            self.act(&action, &mut found).await.map_err(|error| named(error, &line))?;
            last = Some(action);
        }
    }

    /// What is left for a person: Stripe has no API for it, or this command should not have the say.
    #[must_use]
    pub fn left_to_do(&self) -> String {
        let Options { webhook_url, webhook_secrets_parameter, stripe_key_parameter, .. } = &self.options;
        let url = webhook_url.as_deref().unwrap_or("the stack's output WebhookUrl");
        let endpoint = if webhook_url.is_some() {
            ""
        } else {
            "- The webhook endpoint, once the stack is deployed: this command again, with --webhook-url and the stack's output WebhookUrl.\n"
        };
        let dashboard = match self.mode {
            Mode::Test => "https://dashboard.stripe.com/test",
            Mode::Live => "https://dashboard.stripe.com",
        };
        format!(
            "Left to do by hand in Stripe's dashboard ({dashboard}), for which Stripe has no API that this command can use:\n\
             {endpoint}\
             - Rejected usage. Workbench, Webhooks, Add destination: your account, payload style thin, the events {thin}, \
             destination {url}. Then, so that its signing secret is stored beside the others:\n    \
             TOKENTILL_WEBHOOK_SECRET=whsec_… cargo till setup --apply\n\
             - Grace before invoices are final. Settings, Billing, Invoices: the longest, 72 hours, so that usage which is late is still billed. \
             Then deploy with InvoiceFinalAfterSeconds=259200.\n\
             - Failed payments. Settings, Billing, Revenue recovery: Smart Retries for longer than the {days} days of grace, and afterwards \
             cancel the subscription or leave it past due.\n\
             - The functions' key. Developers, API keys, Create restricted key: write Meter events, Customers, Checkout Sessions and \
             Customer portal; read Subscriptions, Invoices, Charges, Disputes, Prices, Meters, Events, Webhook Endpoints and, in test mode, \
             Test clocks; nothing else. Then:\n    \
             TOKENTILL_FUNCTIONS_KEY=rk_… cargo till setup --store-key --apply   (or write {stripe_key_parameter} yourself)\n\
             - E-mails. Settings, Billing, Subscriptions and emails: with EmailFrom Tokentill writes when a payment fails, and you switch \
             Stripe's e-mails about failed payments off, so that nobody is told twice. Without EmailFrom it writes none: leave them on.\n\
             The signing secrets are in {webhook_secrets_parameter}. Test mode and live mode have meters, prices, endpoints and portals of their own: \
             this was {mode} mode.\n",
            thin = THIN_EVENTS.join(" and "),
            days = self.list.grace.days,
            mode = self.mode,
        )
    }

    fn account(&self) -> Account<'_, K> {
        Account::new(&self.stripe, self.mode)
    }

    fn compare(&self, rotated: &BTreeSet<String>, found: &Found) -> Plan {
        let Self { list, options, mode, .. } = self;
        plan::compare(&plan::Wanted { list, options, rotated, mode: *mode, now: self.clock.now() }, found)
    }

    fn rotated(&self, found: &Found) -> BTreeSet<String> {
        let rotate = |url: &String| self.options.rotate_webhook && self.options.webhook_url.as_ref() == Some(url);
        found.endpoints.iter().filter(|endpoint| rotate(&endpoint.url)).map(|endpoint| endpoint.id.clone()).collect()
    }

    async fn look(&self) -> Result<Found, SetupError> {
        let account = self.account();
        let looking = |what: &'static str| move |error| SetupError::Stripe { doing: format!("looking at {what}"), error };
        let keys: Vec<&str> =
            self.list.plans.iter().flat_map(|plan| &plan.prices).map(tokentill::domain::price_list::Price::lookup_key).collect();
        let options = &self.options;
        // One after the other: a test account lets 25 calls a second through.
        Ok(Found {
            meters: account.meters().await.map_err(looking("meters"))?,
            products: account.products().await.map_err(looking("products"))?,
            prices: account.prices(&keys).await.map_err(looking("prices"))?,
            portal: account.portal().await.map_err(looking("the portal"))?,
            endpoints: match &options.webhook_url {
                Some(_) => account.endpoints().await.map_err(looking("webhook endpoints"))?,
                None => Vec::new(),
            },
            webhook_secrets: self
                .parameters
                .get(&options.webhook_secrets_parameter)
                .await?
                .map(|value| parameters::split(&value))
                .unwrap_or_default(),
            has_service_token: self
                .parameters
                .get(&options.service_tokens_parameter)
                .await?
                .is_some_and(|value| !parameters::split(&value).is_empty()),
            stripe_key: self.parameters.get(&options.stripe_key_parameter).await?.filter(|key| !key.expose().is_empty()),
        })
    }

    /// Makes one change, and puts what came of it in its place.
    async fn act(&self, action: &Action, found: &mut Found) -> Result<(), SetupError> {
        let account = self.account();
        let options = &self.options;
        let return_url = options.return_url.as_deref();
        match action {
            Action::CreateMeter(event_name) => {
                if let Some(meter) = self.list.meters.iter().find(|meter| meter.event_name == *event_name) {
                    found.meters.insert(0, account.create_meter(meter).await?);
                }
            }
            Action::ReactivateMeter(id) => put(&mut found.meters, account.reactivate_meter(id).await?),
            Action::CreateProduct(plan) => {
                if let Some(plan) = self.plan_of(plan) {
                    found.products.insert(0, account.create_product(plan).await?);
                }
            }
            Action::UpdateProduct(id, plan) => {
                if let Some(plan) = self.plan_of(plan) {
                    put(&mut found.products, account.update_product(id, plan).await?);
                }
            }
            Action::CreatePrice(lookup_key) => {
                if let Some((plan, price)) = self.list.price(lookup_key)
                    && let Some(product) = plan::product(&self.list, found, plan)
                {
                    let meter = plan::meter_of(&self.list, found, price);
                    let created = account.create_price(price, &product.id, meter.as_deref()).await?;
                    found.prices.insert(0, created);
                }
            }
            Action::ActivatePrice(id) => put(&mut found.prices, account.activate_price(id).await?),
            Action::CreatePortal => found.portal = Some(account.create_portal(return_url).await?),
            Action::UpdatePortal(id) => found.portal = Some(account.update_portal(id, return_url).await?),
            Action::CreateServiceToken => {
                // The operating system's randomness, 122 bits of it in each.
                let token = format!("tt_{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
                self.parameters.put(&options.service_tokens_parameter, &Secret::new(&token)).await?;
                found.has_service_token = true;
            }
            Action::StoreKey => {
                if let Some(key) = &options.store_key {
                    self.parameters.put(&options.stripe_key_parameter, key).await?;
                    found.stripe_key = Some(key.clone());
                }
            }
            Action::AddWebhookSecret => {
                if let Some(secret) = &options.further_webhook_secret {
                    found.webhook_secrets = self.store(secret).await?;
                }
            }
            Action::CreateEndpoint(replaces) => {
                if let Some(url) = &options.webhook_url {
                    self.create_endpoint(url, replaces, found).await?;
                }
            }
            Action::UpdateEndpoint(id) => put(&mut found.endpoints, account.update_endpoint(id, &plan::events(self.mode)).await?),
            Action::DeleteEndpoint(id) => {
                account.delete_endpoint(id).await?;
                found.endpoints.retain(|endpoint| endpoint.id != *id);
            }
        }
        Ok(())
    }

    /// Makes an endpoint, stores its secret, and only then notes on it that this is done. Interrupted anywhere, the next run finds
    /// an endpoint without that note and makes another in its place.
    async fn create_endpoint(&self, url: &str, replaces: &str, found: &mut Found) -> Result<(), SetupError> {
        let account = self.account();
        let created = account.create_endpoint(url, &plan::events(self.mode), replaces).await?;
        let Some(secret) = created.secret.as_deref().filter(|secret| !secret.is_empty()).map(Secret::new) else {
            return Err(SetupError::NoEffect(format!("the secret of webhook endpoint {}", created.id)));
        };
        found.webhook_secrets = self.store(&secret).await?;
        found.endpoints.insert(0, account.mark_endpoint(&created.id, &found::fingerprint(&secret)).await?);
        Ok(())
    }

    async fn store(&self, secret: &Secret) -> Result<Vec<Secret>, Unavailable> {
        parameters::append(&self.parameters, &self.options.webhook_secrets_parameter, secret).await
    }

    fn plan_of(&self, id: &str) -> Option<&tokentill::domain::price_list::Plan> {
        self.list.plan(&PlanId::new(id).ok()?)
    }
}

/// Puts an object in the place of what it was before.
fn put<T: found::Object>(objects: &mut [T], changed: T) {
    if let Some(object) = objects.iter_mut().find(|object| object.id() == changed.id()) {
        *object = changed;
    }
}

impl From<StripeError> for SetupError {
    fn from(error: StripeError) -> Self {
        Self::Stripe { doing: String::new(), error }
    }
}

/// Names what was being done when it failed.
fn named(error: SetupError, line: &str) -> SetupError {
    match error {
        SetupError::Stripe { error, .. } => {
            let doing = line.split_whitespace().collect::<Vec<_>>().join(" ");
            SetupError::Stripe { doing, error }
        }
        other => other,
    }
}
