//! The calls of Stripe's API that setup and import make.

use std::collections::HashMap;

use stripe_billing::{
    BillingMeterStatus,
    billing_meter::{
        CreateBillingMeter, CreateBillingMeterCustomerMapping, CreateBillingMeterCustomerMappingType,
        CreateBillingMeterDefaultAggregation, CreateBillingMeterDefaultAggregationFormula, CreateBillingMeterValueSettings,
        ListBillingMeter, ReactivateBillingMeter,
    },
    billing_portal_configuration::{
        CreateBillingPortalConfiguration, CreateBillingPortalConfigurationBusinessProfile,
        CreateBillingPortalConfigurationFeatures, CreateBillingPortalConfigurationFeaturesCustomerUpdate,
        CreateBillingPortalConfigurationFeaturesCustomerUpdateAllowedUpdates,
        CreateBillingPortalConfigurationFeaturesSubscriptionCancel,
        CreateBillingPortalConfigurationFeaturesSubscriptionCancelMode, InvoiceListParam, ListBillingPortalConfiguration,
        PaymentMethodUpdateParam, UpdateBillingPortalConfiguration, UpdateBillingPortalConfigurationFeatures,
        UpdateBillingPortalConfigurationFeaturesSubscriptionCancel,
        UpdateBillingPortalConfigurationFeaturesSubscriptionCancelMode,
        UpdateBillingPortalConfigurationFeaturesSubscriptionCancelProrationBehavior,
        UpdateBillingPortalConfigurationFeaturesSubscriptionUpdate,
    },
};
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeRequest as _, VERSION};
use stripe_core::customer::ListCustomer;
use stripe_misc::webhook_endpoint::{
    CreateWebhookEndpoint, CreateWebhookEndpointEnabledEvents, DeleteWebhookEndpoint, ListWebhookEndpoint, UpdateWebhookEndpoint,
    UpdateWebhookEndpointEnabledEvents,
};
use stripe_product::{
    price::{
        CreatePrice, CreatePriceRecurring, CreatePriceRecurringInterval, CreatePriceRecurringUsageType, ListPrice, UpdatePrice,
    },
    product::{CreateProduct, ListProduct, UpdateProduct},
};
use tokentill::{
    domain::price_list::{self, Interval},
    ports::StripeError,
    stripe::{KeySource, StripeClient},
};

use super::Mode;
use super::found::{Customer, Endpoint, List, Meter, NOT_STORED, Object, PLAN, Portal, Price, Product, REPLACES, SECRET};

/// The version of Stripe's API in which events are delivered: the one this build reads.
#[must_use]
pub fn api_version() -> String {
    VERSION.as_str().to_owned()
}

/// The most objects of a page, and the most lookup keys of a question: Stripe's own bounds.
const PAGE: i64 = 100;
const LOOKUP_KEYS: usize = 10;

const METERS: &str = "/v1/billing/meters";
const PRODUCTS: &str = "/v1/products";
const PRODUCT: &str = "/v1/products/{id}";
const PRICES: &str = "/v1/prices";
const ENDPOINTS: &str = "/v1/webhook_endpoints";
const ENDPOINT: &str = "/v1/webhook_endpoints/{id}";
const PORTALS: &str = "/v1/billing_portal/configurations";

/// An account at Stripe, through a key of one mode.
pub(crate) struct Account<'a, K> {
    client: &'a StripeClient<K>,
    livemode: bool,
}

/// Something that was deleted.
#[derive(miniserde::Deserialize)]
struct Deleted {}

impl<'a, K: KeySource> Account<'a, K> {
    /// The account that the client's key is of, in the key's mode.
    pub(crate) fn new(client: &'a StripeClient<K>, mode: Mode) -> Self {
        Self { client, livemode: mode.livemode() }
    }

    /// The meters, active ones first. Both kinds are asked for: what Stripe lists unasked is not the same for all objects.
    pub(super) async fn meters(&self) -> Result<Vec<Meter>, StripeError> {
        let mut meters = Vec::new();
        for status in [BillingMeterStatus::Active, BillingMeterStatus::Inactive] {
            let list = ListBillingMeter::new().limit(PAGE).status(status);
            let page =
                |after: Option<&str>| after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build());
            add(&mut meters, self.all(METERS, page).await?);
        }
        Ok(meters)
    }

    /// The products, active ones first.
    pub(super) async fn products(&self) -> Result<Vec<Product>, StripeError> {
        let mut products = Vec::new();
        for active in [true, false] {
            let list = ListProduct::new().limit(PAGE).active(active);
            let page =
                |after: Option<&str>| after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build());
            add(&mut products, self.all(PRODUCTS, page).await?);
        }
        Ok(products)
    }

    /// The prices of these lookup keys, archived ones among them, which Stripe lists only if it is asked for them.
    pub(super) async fn prices(&self, lookup_keys: &[&str]) -> Result<Vec<Price>, StripeError> {
        let mut prices = Vec::new();
        for (keys, active) in lookup_keys.chunks(LOOKUP_KEYS).flat_map(|keys| [(keys, true), (keys, false)]) {
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let list = ListPrice::new().limit(PAGE).lookup_keys(keys).active(active);
            let page =
                |after: Option<&str>| after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build());
            add(&mut prices, self.all(PRICES, page).await?);
        }
        Ok(prices)
    }

    /// The portal's default configuration; where there is none, the newest other one.
    pub(super) async fn portal(&self) -> Result<Option<Portal>, StripeError> {
        let list = ListBillingPortalConfiguration::new().active(true).limit(PAGE);
        let page = |after: Option<&str>| after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build());
        let mut all: Vec<Portal> = self.all(PORTALS, page).await?;
        // Stable: of those that are no default, the first is the newest.
        all.sort_by_key(|portal| !portal.is_default);
        Ok(all.into_iter().next())
    }

    pub(super) async fn endpoints(&self) -> Result<Vec<Endpoint>, StripeError> {
        let list = ListWebhookEndpoint::new().limit(PAGE);
        self.all(ENDPOINTS, |after| after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build())).await
    }

    /// A page of customers, newest first, and whether there are more.
    pub(crate) async fn customers(&self, after: Option<&str>) -> Result<(Vec<Customer>, bool), StripeError> {
        let list = ListCustomer::new().limit(PAGE);
        let request = after.map_or_else(|| list.build(), |after| list.clone().starting_after(after).build());
        self.page("/v1/customers", request).await
    }

    pub(super) async fn create_meter(&self, meter: &price_list::Meter) -> Result<Meter, StripeError> {
        let sum = CreateBillingMeterDefaultAggregation::new(CreateBillingMeterDefaultAggregationFormula::Sum);
        let by_id = CreateBillingMeterCustomerMappingType::ById;
        let request = CreateBillingMeter::new(sum, meter.id.as_str(), &meter.event_name)
            .customer_mapping(CreateBillingMeterCustomerMapping::new("stripe_customer_id", by_id))
            .value_settings(CreateBillingMeterValueSettings::new("value"));
        self.write(METERS, request.build()).await
    }

    pub(super) async fn reactivate_meter(&self, id: &str) -> Result<Meter, StripeError> {
        self.write("/v1/billing/meters/{id}/reactivate", ReactivateBillingMeter::new(id).build()).await
    }

    pub(super) async fn create_product(&self, plan: &price_list::Plan) -> Result<Product, StripeError> {
        let request = CreateProduct::new(&plan.name).metadata(of_plan(plan));
        self.write(PRODUCTS, request.build()).await
    }

    pub(super) async fn update_product(&self, id: &str, plan: &price_list::Plan) -> Result<Product, StripeError> {
        let request = UpdateProduct::new(id).active(true).name(&plan.name).metadata(of_plan(plan));
        self.write(PRODUCT, request.build()).await
    }

    pub(super) async fn create_price(
        &self,
        price: &price_list::Price,
        product: &str,
        meter: Option<&str>,
    ) -> Result<Price, StripeError> {
        let mut recurring = CreatePriceRecurring::new(match price.interval() {
            Interval::Day => CreatePriceRecurringInterval::Day,
            Interval::Week => CreatePriceRecurringInterval::Week,
            Interval::Month => CreatePriceRecurringInterval::Month,
            Interval::Year => CreatePriceRecurringInterval::Year,
        });
        if let Some(meter) = meter {
            recurring.usage_type = Some(CreatePriceRecurringUsageType::Metered);
            recurring.meter = Some(meter.to_owned());
        }
        let (price_list::Price::Flat { currency, .. } | price_list::Price::Metered { currency, .. }) = price;
        // Its error is that there is none.
        let Ok(currency) = currency.parse::<stripe_types::Currency>();
        let request = CreatePrice::new(currency)
            .product(product)
            .lookup_key(price.lookup_key())
            .recurring(recurring)
            .unit_amount_decimal(super::plan::amount_of(price));
        self.write(PRICES, request.build()).await
    }

    pub(super) async fn activate_price(&self, id: &str) -> Result<Price, StripeError> {
        self.write("/v1/prices/{id}", UpdatePrice::new(id).active(true).build()).await
    }

    pub(super) async fn create_portal(&self, return_url: Option<&str>) -> Result<Portal, StripeError> {
        let mut customer = CreateBillingPortalConfigurationFeaturesCustomerUpdate::new(true);
        customer.allowed_updates = Some(vec![CreateBillingPortalConfigurationFeaturesCustomerUpdateAllowedUpdates::Email]);
        let mut cancel = CreateBillingPortalConfigurationFeaturesSubscriptionCancel::new(true);
        cancel.mode = Some(CreateBillingPortalConfigurationFeaturesSubscriptionCancelMode::AtPeriodEnd);
        let features = CreateBillingPortalConfigurationFeatures {
            customer_update: Some(customer),
            invoice_history: Some(InvoiceListParam::new(true)),
            payment_method_update: Some(PaymentMethodUpdateParam::new(true)),
            subscription_cancel: Some(cancel),
            subscription_update: None,
        };
        let mut profile = CreateBillingPortalConfigurationBusinessProfile::new();
        profile.headline = Some("Your plan, payment method and invoices".to_owned());
        let mut request = CreateBillingPortalConfiguration::new(features).business_profile(profile);
        if let Some(url) = return_url {
            request = request.default_return_url(url);
        }
        self.write(PORTALS, request.build()).await
    }

    /// What customers may change about themselves, and what the portal says of the business, stays as it is.
    pub(super) async fn update_portal(&self, id: &str, return_url: Option<&str>) -> Result<Portal, StripeError> {
        let mut cancel = UpdateBillingPortalConfigurationFeaturesSubscriptionCancel::new();
        cancel.enabled = Some(true);
        cancel.mode = Some(UpdateBillingPortalConfigurationFeaturesSubscriptionCancelMode::AtPeriodEnd);
        cancel.proration_behavior = Some(UpdateBillingPortalConfigurationFeaturesSubscriptionCancelProrationBehavior::None);
        let mut update = UpdateBillingPortalConfigurationFeaturesSubscriptionUpdate::new();
        update.enabled = Some(false);
        let features = UpdateBillingPortalConfigurationFeatures {
            customer_update: None,
            invoice_history: Some(InvoiceListParam::new(true)),
            payment_method_update: Some(PaymentMethodUpdateParam::new(true)),
            subscription_cancel: Some(cancel),
            subscription_update: Some(update),
        };
        let mut request = UpdateBillingPortalConfiguration::new(id).features(features);
        if let Some(url) = return_url {
            request = request.default_return_url(url);
        }
        self.write("/v1/billing_portal/configurations/{id}", request.build()).await
    }

    /// The endpoint, with its secret.
    pub(super) async fn create_endpoint(&self, url: &str, events: &[&str], replaces: &str) -> Result<Endpoint, StripeError> {
        let events: Vec<CreateWebhookEndpointEnabledEvents> = parsed(events);
        let metadata = HashMap::from([(SECRET.to_owned(), NOT_STORED.to_owned()), (REPLACES.to_owned(), replaces.to_owned())]);
        let request = CreateWebhookEndpoint::new(events, url).api_version(VERSION).description("Tokentill").metadata(metadata);
        self.write(ENDPOINTS, request.build()).await
    }

    /// Notes on the endpoint that its secret is stored.
    pub(super) async fn mark_endpoint(&self, id: &str, fingerprint: &str) -> Result<Endpoint, StripeError> {
        let metadata = HashMap::from([(SECRET.to_owned(), fingerprint.to_owned())]);
        self.write(ENDPOINT, UpdateWebhookEndpoint::new(id).metadata(metadata).build()).await
    }

    /// Gives the endpoint these events, and has it called again if it was switched off.
    pub(super) async fn update_endpoint(&self, id: &str, events: &[&str]) -> Result<Endpoint, StripeError> {
        let events: Vec<UpdateWebhookEndpointEnabledEvents> = parsed(events);
        self.write(ENDPOINT, UpdateWebhookEndpoint::new(id).enabled_events(events).disabled(false).build()).await
    }

    pub(super) async fn delete_endpoint(&self, id: &str) -> Result<(), StripeError> {
        match self.write_any::<Deleted>(ENDPOINT, DeleteWebhookEndpoint::new(id).build()).await {
            // A repetition of a call whose answer was lost.
            Ok(_) | Err(StripeError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Every object of a list.
    async fn all<T: Object>(
        &self,
        route: &'static str,
        page_after: impl Fn(Option<&str>) -> RequestBuilder,
    ) -> Result<Vec<T>, StripeError> {
        let mut all: Vec<T> = Vec::new();
        loop {
            let (page, more) = self.page(route, page_after(all.last().map(T::id))).await?;
            let is_empty = page.is_empty();
            all.extend(page);
            if !more || is_empty {
                return Ok(all);
            }
        }
    }

    async fn page<T: Object>(&self, route: &'static str, request: RequestBuilder) -> Result<(Vec<T>, bool), StripeError> {
        let answer = self.client.send(route, request.customize::<List<T>>()).await?;
        let Some(data) = answer.value.data else {
            let reason = format!("{route}: the list has no data");
            return Err(StripeError::Unreadable { reason, request_id: answer.request_id });
        };
        data.iter().try_for_each(|object| self.check_mode(route, object, &answer.request_id))?;
        Ok((data, answer.value.has_more == Some(true)))
    }

    async fn write<T: Object>(&self, route: &'static str, request: RequestBuilder) -> Result<T, StripeError> {
        self.write_any(route, request).await
    }

    /// Under an idempotency key of its own, so that the client may repeat it: an answer that was lost comes again, a call that met a
    /// rate limit is let through later. A later run has other keys and looks before it writes.
    async fn write_any<T: miniserde::Deserialize>(&self, route: &'static str, request: RequestBuilder) -> Result<T, StripeError> {
        let key = IdempotencyKey::new(format!("till-setup-{}", uuid::Uuid::new_v4())).map_err(|error| StripeError::Refused {
            status: 400,
            code: "not_sent".to_owned(),
            message: error.to_string(),
            request_id: "none".to_owned(),
        })?;
        let request = request.customize::<T>().request_strategy(RequestStrategy::Idempotent(key));
        Ok(self.client.send(route, request).await?.value)
    }

    /// A key says its mode, and every object does: if they disagree, the key was not read right, and nothing is to be written.
    fn check_mode<T: Object>(&self, route: &str, object: &T, request_id: &str) -> Result<(), StripeError> {
        if object.livemode().is_none_or(|livemode| livemode == self.livemode) {
            return Ok(());
        }
        let reason = format!("{route}: {} is of the other mode than the API key", object.id());
        Err(StripeError::Unreadable { reason, request_id: request_id.to_owned() })
    }
}

/// Adds what is not there yet: an object that changes between two lists is in both.
fn add<T: Object>(all: &mut Vec<T>, further: Vec<T>) {
    for object in further {
        if !all.iter().any(|other| other.id() == object.id()) {
            all.push(object);
        }
    }
}

fn of_plan(plan: &price_list::Plan) -> HashMap<String, String> {
    HashMap::from([(PLAN.to_owned(), plan.id.as_str().to_owned())])
}

/// The builders' own words for event types; those they do not know stay text, so the error is none.
fn parsed<E: std::str::FromStr<Err = std::convert::Infallible>>(events: &[&str]) -> Vec<E> {
    events.iter().filter_map(|event| event.parse().ok()).collect()
}
