//! Sales: prices, a customer's subscriptions and checkout sessions, and the links to Stripe's pages.

use std::collections::{BTreeMap, HashMap};

use miniserde::{Deserialize, json::Value};
use stripe_billing::{
    billing_portal_session::CreateBillingPortalSession,
    subscription::{ListSubscription, ListSubscriptionStatus},
};
use stripe_checkout::checkout_session::{
    CreateCheckoutSession, CreateCheckoutSessionLineItems, CreateCheckoutSessionSubscriptionData,
    CreateCheckoutSessionSubscriptionDataBillingMode, CreateCheckoutSessionSubscriptionDataBillingModeType,
    ExpireCheckoutSession, ListCheckoutSession,
};
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeRequest as _};
use stripe_core::customer::{CreateCustomer, RetrieveCustomer};
use stripe_product::price::ListPrice;

use super::{
    Answered, Stripe,
    decode::{Customer, Listed, id_of, need},
    key::KeySource,
    state::{CHECKOUT_SESSIONS, CUSTOMER, CUSTOMERS, Longer, PAGE, SUBSCRIPTIONS, page_of, read, unreadable},
};
use crate::{
    chance,
    domain::{
        facts::Status,
        id::{CheckoutSessionId, CustomerId, PriceId, UserId},
        selling::{Buyer, CheckoutSession, HeldSubscription, Link, Offer, OpenSession, ReturnUrl},
        time::EpochSecs,
    },
    ports::{CheckoutSessions, Portal, Sales, StripeError},
};

const PRICES: &str = "/v1/prices";
const EXPIRE: &str = "/v1/checkout/sessions/{id}/expire";
const PORTAL_SESSIONS: &str = "/v1/billing_portal/sessions";

/// The most lookup keys of one question, Stripe's own bound.
const KEYS_AT_ONCE: usize = 10;
/// Under which key a session's metadata holds its offer's name.
const OFFER: &str = "tokentill_offer";

impl<K: KeySource> Sales for Stripe<K> {
    async fn price_ids(&self, lookup_keys: &[&str]) -> Result<BTreeMap<String, PriceId>, StripeError> {
        let mut ids = BTreeMap::new();
        for keys in lookup_keys.chunks(KEYS_AT_ONCE) {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let list = ListPrice::new().lookup_keys(keys).active(true).limit(PAGE);
            let pages = self.list(PRICES, Longer::IsAnError, page_of!(list)).await?;
            ids.extend(read(pages, Price::read)?.into_iter().flatten());
        }
        Ok(ids)
    }

    async fn buyer(&self, customer: &CustomerId) -> Result<Buyer, StripeError> {
        let retrieve = RetrieveCustomer::new(customer.as_str()).build().customize::<Customer>();
        let (found, subscriptions, sessions) =
            tokio::join!(self.client.send(CUSTOMER, retrieve), self.held_subscriptions(customer), self.sessions(customer));
        let gone = match found {
            Ok(found) => found.value.is_deleted(),
            Err(StripeError::NotFound { .. }) => true,
            Err(error) => return Err(error),
        };
        // Lists of a deleted customer may be refused, and what they hold no longer matters.
        if gone {
            return Ok(Buyer { gone, ..Buyer::default() });
        }
        Ok(Buyer { gone, subscriptions: subscriptions?, sessions: sessions? })
    }

    async fn make_customer(&self, user_id: &UserId, key: &str) -> Result<CustomerId, StripeError> {
        let request = making(user_id).customize::<Customer>().request_strategy(under(key)?);
        let made = self.client.send(CUSTOMERS, request).await?;
        made.value.customer_id().map_err(|reason| unreadable(reason, &made.request_id))
    }
}

impl<K: KeySource> CheckoutSessions for Stripe<K> {
    async fn open_session(&self, customer: &CustomerId, offer: &Offer, key: &str) -> Result<(), StripeError> {
        let request = opening(customer, offer).customize::<Ignored>().request_strategy(under(key)?);
        self.client.send(CHECKOUT_SESSIONS, request).await.map(drop)
    }

    async fn expire_session(&self, session: &CheckoutSessionId) -> Result<(), StripeError> {
        // Without an idempotency key, and so at most once: under a key Stripe would also repeat its own failure for a day.
        let request = ExpireCheckoutSession::new(session.as_str()).build().customize::<Ignored>();
        self.client.send(EXPIRE, request).await.map(drop)
    }
}

impl<K: KeySource> Portal for Stripe<K> {
    async fn portal(&self, customer: &CustomerId, return_url: &ReturnUrl) -> Result<Link, StripeError> {
        // A link too many does no harm; the key only lets the request be repeated.
        let request = visiting(customer, return_url).customize::<PortalSession>().request_strategy(under(&chance::identifier())?);
        match self.client.send(PORTAL_SESSIONS, request).await {
            Ok(session) => {
                let url = need(session.value.url, "a portal session", "url");
                url.map(Link::new).map_err(|reason| unreadable(reason, &session.request_id))
            }
            // Nothing else that the request names could be missing.
            Err(StripeError::Refused { code, request_id, .. }) if code == "resource_missing" => {
                Err(StripeError::NotFound { request_id })
            }
            Err(error) => Err(error),
        }
    }
}

impl<K: KeySource> Stripe<K> {
    async fn held_subscriptions(&self, customer: &CustomerId) -> Result<Vec<HeldSubscription>, StripeError> {
        let list = ListSubscription::new()
            .customer(customer.as_str())
            .status(ListSubscriptionStatus::All)
            .expand(["data.latest_invoice".to_owned()])
            .limit(PAGE);
        let pages: Vec<Answered<Vec<Subscription>>> = self.list(SUBSCRIPTIONS, Longer::IsAnError, page_of!(list)).await?;
        read(pages, Subscription::read)
    }

    /// The newest sessions, open or not: none is open for longer than a day, and nobody opens a thousand in a day.
    async fn sessions(&self, customer: &CustomerId) -> Result<Vec<CheckoutSession>, StripeError> {
        let list = ListCheckoutSession::new().customer(customer.as_str()).limit(PAGE);
        let pages: Vec<Answered<Vec<Session>>> = self.list(CHECKOUT_SESSIONS, Longer::IsCut, page_of!(list)).await?;
        read(pages, Session::read)
    }
}

/// The request that opens a session. Its builder is of many kilobytes and is moved at every step, so it has no place in a future.
fn opening(customer: &CustomerId, offer: &Offer) -> RequestBuilder {
    let items: Vec<_> = offer
        .items
        .iter()
        .map(|item| {
            let mut line = CreateCheckoutSessionLineItems::new();
            line.price = Some(item.price.as_str().to_owned());
            line.quantity = item.quantity;
            line
        })
        .collect();
    let mut subscription = CreateCheckoutSessionSubscriptionData::new();
    subscription.metadata = Some(names_user(&offer.user_id));
    // Only flexible subscriptions bill the usage before a switch of prices.
    subscription.billing_mode = Some(CreateCheckoutSessionSubscriptionDataBillingMode::new(
        CreateCheckoutSessionSubscriptionDataBillingModeType::Flexible,
    ));
    let mut metadata = names_user(&offer.user_id);
    metadata.insert("plan".to_owned(), offer.plan.as_str().to_owned());
    metadata.insert(OFFER.to_owned(), offer.name());
    CreateCheckoutSession::new()
        .mode(stripe_checkout::CheckoutSessionMode::Subscription)
        .customer(customer.as_str())
        .client_reference_id(offer.user_id.as_str())
        .line_items(items)
        .subscription_data(subscription)
        .metadata(metadata)
        .success_url(offer.success_url.as_str())
        .cancel_url(offer.cancel_url.as_str())
        .build()
}

/// The request that makes a customer.
fn making(user_id: &UserId) -> RequestBuilder {
    CreateCustomer::new().metadata(names_user(user_id)).build()
}

/// The request for a link to the portal.
fn visiting(customer: &CustomerId, return_url: &ReturnUrl) -> RequestBuilder {
    CreateBillingPortalSession::new().customer(customer.as_str()).return_url(return_url.as_str()).build()
}

fn names_user(user_id: &UserId) -> HashMap<String, String> {
    HashMap::from([("user_id".to_owned(), user_id.as_str().to_owned())])
}

fn under(key: &str) -> Result<RequestStrategy, StripeError> {
    match IdempotencyKey::new(key) {
        Ok(key) => Ok(RequestStrategy::Idempotent(key)),
        Err(error) => Err(unreadable(format!("an idempotency key of our own is none: {error}"), "none")),
    }
}

/// An answer of which nothing is read.
#[derive(Deserialize)]
struct Ignored {}

#[derive(Deserialize)]
struct PortalSession {
    url: Option<String>,
}

#[derive(Deserialize)]
struct Price {
    id: Option<String>,
    lookup_key: Option<String>,
}

impl Price {
    fn read(self) -> Result<Option<(String, PriceId)>, String> {
        let id = id_of(self.id.as_deref(), "a price", PriceId::new)?;
        Ok(self.lookup_key.map(|key| (key, id)))
    }
}

#[derive(Deserialize)]
struct Subscription {
    id: Option<String>,
    latest_invoice: Option<Value>,
    status: Option<String>,
}

impl Subscription {
    fn read(self) -> Result<HeldSubscription, String> {
        let status = Status::from(need(self.status, "a subscription", "status")?);
        let page = match &self.latest_invoice {
            Some(Value::Object(invoice)) => invoice.get("hosted_invoice_url"),
            _ => None,
        };
        let payment_page = match page {
            Some(Value::String(url)) => Some(Link::new(url.clone())),
            _ => None,
        };
        Ok(HeldSubscription { status, payment_page })
    }
}

#[derive(Deserialize)]
struct Session {
    expires_at: Option<i64>,
    id: Option<String>,
    metadata: Option<SessionMetadata>,
    mode: Option<String>,
    status: Option<String>,
    url: Option<String>,
}

#[derive(Deserialize)]
struct SessionMetadata {
    tokentill_offer: Option<String>,
}

impl Session {
    fn read(self) -> Result<CheckoutSession, String> {
        let id = id_of(self.id.as_deref(), "a checkout session", CheckoutSessionId::new)?;
        let what = format!("checkout session {id}");
        let is_open = need(self.status, &what, "status")? == "open";
        if !is_open || need(self.mode, &what, "mode")? != "subscription" {
            return Ok(CheckoutSession { id, open: None });
        }
        let offer = self.metadata.and_then(|metadata| metadata.tokentill_offer);
        let expires_at = EpochSecs::new(need(self.expires_at, &what, "expires_at")?);
        // A session that is embedded in another program's page has no page of its own.
        let page = self.url.map(Link::new);
        Ok(CheckoutSession { id, open: Some(OpenSession { offer, page, expires_at }) })
    }
}

impl Listed for Price {
    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Listed for Subscription {
    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl Listed for Session {
    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}
