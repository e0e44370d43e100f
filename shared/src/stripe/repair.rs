//! What Stripe lists of everybody: events, subscriptions, and the endpoints that events are delivered to.

use miniserde::{
    Deserialize,
    json::{self, Value},
};
use stripe_billing::subscription::{ListSubscription, ListSubscriptionStatus};
use stripe_client_core::{StripeRequest as _, VERSION};
use stripe_core::event::ListEvent;
use stripe_misc::webhook_endpoint::ListWebhookEndpoint;
use stripe_types::{RangeBoundsTs, RangeQueryTs};

use super::{
    Answered, Stripe,
    decode::{self, List, Listed, id_of, named, need},
    key::KeySource,
    state::{Longer, PAGE, SUBSCRIPTIONS, page_of, read, unreadable},
};
use crate::{
    domain::{
        hint::SNAPSHOT_EVENTS,
        id::{CustomerId, InvoiceId},
        repair::{Endpoint, InvoiceStanding, ListedInvoice, ListedSubscription},
        time::EpochSecs,
    },
    ports::{EventList, EventWindow, StripeError, StripeLists, StripePage},
};

const EVENTS: &str = "/v1/events";
const ENDPOINTS: &str = "/v1/webhook_endpoints";
/// The most types that Stripe lists events of.
const MOST_TYPES: usize = 20;

impl<K: KeySource> StripeLists for Stripe<K> {
    async fn events(&self, window: &EventWindow) -> Result<StripePage<String>, StripeError> {
        let bounds =
            RangeBoundsTs { gte: Some(window.from.as_secs()), lte: Some(window.until.as_secs()), ..RangeBoundsTs::default() };
        let mut list = ListEvent::new().created(RangeQueryTs::Bounds(bounds)).limit(PAGE);
        let (first, others) = SNAPSHOT_EVENTS.split_at(MOST_TYPES.min(SNAPSHOT_EVENTS.len()));
        let texts = |types: &[&str]| types.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>();
        list = match window.list {
            // Without types: few are undelivered, and one list is one call less for every run.
            EventList::Undelivered => list.delivery_success(false),
            EventList::AllOfFirstTypes => list.types(texts(first)),
            EventList::AllOfOtherTypes => list.types(texts(others)),
        };
        if let Some(after) = &window.after {
            list = list.starting_after(after.as_str());
        }
        let answer = self.client.send(EVENTS, list.build().customize::<List<Value>>()).await?;
        page(EVENTS, answer, json::to_string)
    }

    async fn all_subscriptions(
        &self,
        after: Option<&str>,
    ) -> Result<StripePage<Result<ListedSubscription, String>>, StripeError> {
        let list = ListSubscription::new()
            .status(ListSubscriptionStatus::All)
            .expand(["data.customer".to_owned(), "data.latest_invoice".to_owned()])
            .limit(PAGE);
        let list = match after {
            Some(after) => list.starting_after(after),
            None => list,
        };
        let answer = self.client.send(SUBSCRIPTIONS, list.build().customize::<List<Value>>()).await?;
        page(SUBSCRIPTIONS, answer, |subscription| listed_subscription(&json::to_string(subscription)))
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, StripeError> {
        let list = ListWebhookEndpoint::new().limit(PAGE);
        let pages = self.list(ENDPOINTS, Longer::IsAnError, page_of!(list));
        read(pages.await?, WebhookEndpoint::read)
    }

    fn api_version(&self) -> &'static str {
        VERSION.as_str()
    }
}

/// A page, each object read on its own: one that cannot be read is no reason not to see the others.
fn page<T>(route: &'static str, answer: Answered<List<Value>>, read: impl Fn(&Value) -> T) -> Result<StripePage<T>, StripeError> {
    let Some(data) = answer.value.data else {
        return Err(unreadable(format!("{route}: the list has no data"), &answer.request_id));
    };
    let next = match (answer.value.has_more, data.last()) {
        (Some(true), last) => {
            let id = named(last).map(str::to_owned);
            Some(id.ok_or_else(|| unreadable(format!("{route}: a page leads nowhere"), &answer.request_id))?)
        }
        _ => None,
    };
    Ok(StripePage { data: data.iter().map(read).collect(), next })
}

/// What a listed subscription has beside what every look at a customer reads of it.
#[derive(Deserialize)]
struct Beside {
    canceled_at: Option<i64>,
    customer: Option<Value>,
    latest_invoice: Option<Value>,
}

/// What is read of its newest invoice.
#[derive(Deserialize)]
struct BesideInvoice {
    attempt_count: Option<u64>,
    attempted: Option<bool>,
    created: Option<i64>,
    id: Option<String>,
    status: Option<String>,
}

/// Reads the text of a subscription.
fn listed_subscription(text: &str) -> Result<ListedSubscription, String> {
    let subscription = json::from_str::<decode::Subscription>(text).map_err(|_| strange(text))?;
    let has_more_items = subscription.has_more_items();
    let facts = subscription.read()?;
    let beside: Beside = json::from_str(text).map_err(|_| strange(text))?;
    let what = format!("subscription {}", facts.id);
    let customer = need(named(beside.customer.as_ref()), &what, "customer")?;
    let (customer_deleted, customer_user) = match &beside.customer {
        Some(Value::Object(_)) => {
            let text = json::to_string(&beside.customer);
            let customer = json::from_str::<decode::Customer>(&text).map_err(|_| format!("{what}: its customer is none"))?;
            (customer.is_deleted(), customer.user_id())
        }
        _ => (false, None),
    };
    let invoice = match &beside.latest_invoice {
        Some(Value::Object(_)) => {
            let text = json::to_string(&beside.latest_invoice);
            Some(json::from_str::<BesideInvoice>(&text).map_err(|_| format!("{what}: its latest_invoice is none"))?)
        }
        _ => None,
    };
    let periods = facts.items.iter().map(|item| item.period.0.as_secs());
    let moments = [Some(facts.created.as_secs()), beside.canceled_at, facts.ended_at.map(EpochSecs::as_secs)];
    let invoiced_at = invoice.as_ref().and_then(|invoice| invoice.created);
    let changed_at = moments.into_iter().flatten().chain(invoiced_at).chain(periods).max().unwrap_or_default();
    Ok(ListedSubscription {
        customer: CustomerId::new(customer).map_err(|error| error.to_string())?,
        customer_deleted,
        customer_user,
        has_more_items,
        invoice: invoice.map(BesideInvoice::read).transpose()?,
        changed_at: EpochSecs::new(changed_at),
        facts,
    })
}

/// What is no subscription as we know it, by its id alone.
fn strange(text: &str) -> String {
    let id = json::from_str::<Value>(text).ok().as_ref().and_then(|value| named(Some(value)).map(str::to_owned));
    format!("{} has a field of a type that we do not know", id.as_deref().unwrap_or("a subscription without an id"))
}

impl BesideInvoice {
    fn read(self) -> Result<ListedInvoice, String> {
        let was_attempted = self.attempted == Some(true) || self.attempt_count.is_some_and(|count| count > 0);
        let standing = match self.status.as_deref() {
            Some("open") if was_attempted => InvoiceStanding::Overdue,
            Some("paid" | "void") => InvoiceStanding::Settled,
            Some("uncollectible") => InvoiceStanding::WrittenOff,
            _ => InvoiceStanding::Other,
        };
        Ok(ListedInvoice { id: id_of(self.id.as_deref(), "an invoice", InvoiceId::new)?, standing })
    }
}

#[derive(Deserialize)]
struct WebhookEndpoint {
    id: Option<String>,
    api_version: Option<String>,
    enabled_events: Option<Vec<String>>,
    status: Option<String>,
    url: Option<String>,
}

impl Listed for WebhookEndpoint {
    fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl WebhookEndpoint {
    fn read(self) -> Result<Endpoint, String> {
        let id = need(self.id, "a webhook endpoint", "id")?;
        let what = format!("webhook endpoint {id}");
        Ok(Endpoint {
            url: need(self.url, &what, "url")?,
            api_version: self.api_version,
            enabled: need(self.status, &what, "status")? == "enabled",
            events: need(self.enabled_events, &what, "enabled_events")?,
            id,
        })
    }
}
