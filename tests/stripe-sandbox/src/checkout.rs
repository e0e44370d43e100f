//! Checkout sessions of mode `subscription`. Source: SDK type `checkout.Session` and its parameter types.

use serde_json::{Value, json};

use crate::calendar::{DAY_SECS, HOUR_SECS};
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::payment_methods::{self, Outcome};
use crate::subscriptions::{self, NewSubscription, WantedItem};
use crate::world::{Page, Texts, World, nested_list, new_id};
use crate::{customers, events};

/// A checkout session.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    id: String,
    created: i64,
    expires_at: i64,
    status: &'static str,
    payment_status: &'static str,
    client_reference_id: Option<String>,
    customer: Option<String>,
    customer_email: Option<String>,
    success_url: String,
    cancel_url: Option<String>,
    metadata: Texts,
    items: Vec<WantedItem>,
    currency: String,
    amount: i64,
    flexible: bool,
    trial_end: Option<i64>,
    trial_days: Option<i64>,
    description: Option<String>,
    subscription_metadata: Texts,
    subscription: Option<String>,
    invoice: Option<String>,
}

impl Session {
    /// The session in Stripe's form; line items are only included when they are expanded.
    pub(crate) fn render(&self) -> Value {
        let open = self.status == "open";
        json!({
            "id": self.id,
            "object": "checkout.session",
            "adaptive_pricing": null,
            "after_expiration": null,
            "allow_promotion_codes": null,
            "amount_subtotal": self.amount,
            "amount_total": self.amount,
            "automatic_tax": {"enabled": false, "liability": null, "provider": null, "status": null},
            "billing_address_collection": null,
            "cancel_url": self.cancel_url,
            "client_reference_id": self.client_reference_id,
            "client_secret": null,
            "collected_information": null,
            "consent": null,
            "consent_collection": null,
            "created": self.created,
            "currency": self.currency,
            "currency_conversion": null,
            "custom_fields": [],
            "custom_text": {
                "after_submit": null, "shipping_address": null, "submit": null, "terms_of_service_acceptance": null,
            },
            "customer": self.customer,
            "customer_account": null,
            "customer_creation": if self.customer.is_some() { Value::Null } else { json!("always") },
            "customer_details": (!open || self.customer_email.is_some()).then(|| json!({
                "address": null, "email": self.customer_email, "name": null, "phone": null, "tax_exempt": "none",
                "tax_ids": null,
            })),
            "customer_email": self.customer_email,
            "discounts": [],
            "expires_at": self.expires_at,
            "invoice": self.invoice,
            "invoice_creation": null,
            "livemode": false,
            "locale": null,
            "metadata": self.metadata,
            "mode": "subscription",
            "origin_context": null,
            "payment_intent": null,
            "payment_link": null,
            "payment_method_collection": "always",
            "payment_method_configuration_details": null,
            "payment_method_options": {},
            "payment_method_types": ["card"],
            "payment_status": self.payment_status,
            "permissions": null,
            "phone_number_collection": {"enabled": false},
            "recovered_from": null,
            "saved_payment_method_options": {
                "allow_redisplay_filters": ["always"], "payment_method_remove": "disabled", "payment_method_save": null,
            },
            "setup_intent": null,
            "shipping_address_collection": null,
            "shipping_cost": null,
            "shipping_options": [],
            "status": self.status,
            "submit_type": null,
            "subscription": self.subscription,
            "success_url": self.success_url,
            "total_details": {"amount_discount": 0, "amount_shipping": 0, "amount_tax": 0},
            "ui_mode": "hosted_page",
            "url": open.then(|| format!("https://checkout.stripe.com/c/pay/{}", self.id)),
            "wallet_options": null,
        })
    }

    /// The line items, as their expansion shows them.
    pub(crate) fn render_line_items(&self, world: &World) -> Value {
        let items = self
            .items
            .iter()
            .filter_map(|item| {
                let price = world.prices.get(&item.price)?;
                let amount = match price.meter {
                    Some(_) => 0,
                    None => price.amount(item.quantity.unwrap_or(1)),
                };
                Some(json!({
                    "id": format!("li_{}", price.id), "object": "item", "amount_discount": 0, "amount_subtotal": amount,
                    "amount_tax": 0, "amount_total": amount, "currency": price.currency, "description": price.label(),
                    "price": price.render(), "quantity": item.quantity,
                }))
            })
            .collect();
        nested_list(&format!("/v1/checkout/sessions/{}/line_items", self.id), items)
    }
}

/// `POST /v1/checkout/sessions`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let mode = params.required("mode")?;
    let mut items = Vec::new();
    for name in params.elements("line_items") {
        items.push(WantedItem {
            price: params.required(&format!("{name}[price]"))?,
            quantity: params.int(&format!("{name}[quantity]"))?,
            metadata: Texts::new(),
        });
    }
    let success_url = params.required("success_url")?;
    let cancel_url = params.text("cancel_url")?;
    let client_reference_id = params.text("client_reference_id")?;
    let customer = params.text("customer")?;
    let customer_email = params.text("customer_email")?;
    let metadata = params.metadata("metadata")?.into_new();
    let subscription_metadata = params.metadata("subscription_data[metadata]")?.into_new();
    let flexible = subscriptions::read_billing_mode(params, "subscription_data[billing_mode][type]")?;
    let trial_end = params.int("subscription_data[trial_end]")?;
    let trial_days = params.int("subscription_data[trial_period_days]")?;
    let description = params.text("subscription_data[description]")?;
    let expires_at = params.int("expires_at")?;
    let _ = params.one_of("payment_method_collection", &["always"])?;
    let _ = params.one_of("ui_mode", &["hosted_page"])?;
    let expand = Expand::from_params(params, "checkout.session")?;
    params.finish()?;
    if mode != "subscription" {
        return Err(ApiError::invalid_param("mode", "The sandbox only plays sessions of mode subscription."));
    }
    if client_reference_id.as_ref().is_some_and(|id| id.chars().count() > 200) {
        return Err(ApiError::invalid_param("client_reference_id", "A client reference id can have at most 200 characters."));
    }
    for (param, url) in [("success_url", Some(&success_url)), ("cancel_url", cancel_url.as_ref())] {
        if url.is_some_and(|url| !url.starts_with("https://") && !url.starts_with("http://")) {
            return Err(ApiError { code: Some("url_invalid"), ..ApiError::invalid_param(param, "Not a valid URL") });
        }
    }
    subscriptions::check_items(world, &items, "line_items", true)?;
    let owner = match (&customer, &customer_email) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid_param(
                "customer",
                "You may only specify one of these parameters: customer, customer_email.",
            ));
        }
        (Some(id), None) => Some(customers::live(world, id, "customer")?),
        (None, _) => None,
    };
    let clock = owner.and_then(|owner| owner.clock.clone());
    subscriptions::read_trial(trial_end, trial_days, world.now(clock.as_deref()))?;
    let now = world.wall_secs;
    // Source: `SessionCreateParams.expires_at`: 30 minutes to 24 hours; 24 hours by default.
    let expires_at = expires_at.unwrap_or(now + DAY_SECS);
    if !(now + HOUR_SECS / 2..=now + DAY_SECS).contains(&expires_at) {
        return Err(ApiError::invalid_param(
            "expires_at",
            "The expires_at timestamp must be between 30 minutes and 24 hours from Checkout Session creation.",
        ));
    }
    let currency =
        items.first().and_then(|item| world.prices.get(&item.price)).map(|price| price.currency.clone()).unwrap_or_default();
    let mut session = Session {
        id: new_id("cs_test"),
        created: now,
        expires_at,
        status: "open",
        payment_status: "unpaid",
        client_reference_id,
        customer,
        customer_email,
        success_url,
        cancel_url,
        metadata,
        items,
        currency,
        amount: 0,
        flexible,
        trial_end,
        trial_days,
        description,
        subscription_metadata,
        subscription: None,
        invoice: None,
    };
    session.amount = subscriptions::first_amount(world, &wanted(&session, String::new(), now));
    let (id, rendered) = (session.id.clone(), session.render());
    world.sessions.insert(&id, session);
    Ok(expand.apply(world, rendered))
}

/// The subscription that a session leads to.
fn wanted(session: &Session, customer: String, now: i64) -> NewSubscription {
    NewSubscription {
        customer,
        items: session.items.clone(),
        flexible: session.flexible,
        trial_end: session.trial_end.or_else(|| session.trial_days.map(|days| now + days * DAY_SECS)),
        missing_payment_method: subscriptions::MissingPaymentMethod::default(),
        default_payment_method: None,
        description: session.description.clone(),
        metadata: session.subscription_metadata.clone(),
    }
}

fn rendered(world: &World, id: &str, expand: &Expand) -> Reply {
    let session = world.sessions.get(id).ok_or_else(|| ApiError::not_found("checkout.session", id))?;
    Ok(expand.apply(world, session.render()))
}

/// `GET /v1/checkout/sessions/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "checkout.session")?;
    params.finish()?;
    rendered(world, id, &expand)
}

/// `GET /v1/checkout/sessions`. Source: `SessionListParams`.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status = params.one_of("status", &["open", "complete", "expired"])?;
    let email = params.text("customer_details[email]")?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "checkout.session")?;
    params.finish()?;
    let list = page.cut(
        &world.sessions,
        "checkout.session",
        "/v1/checkout/sessions",
        |session| {
            (customer.is_none() || session.customer == customer)
                && (subscription.is_none() || session.subscription == subscription)
                && (email.is_none() || session.customer_email == email)
                && status.as_deref().is_none_or(|status| session.status == status)
                && created.is_none_or(|range| range.contains(session.created))
        },
        Session::render,
    )?;
    Ok(expand.apply_to_list(world, list))
}

fn change(world: &mut World, id: &str, event: &str, change: impl FnOnce(&mut Session)) {
    let Some(session) = world.sessions.get_mut(id) else {
        return;
    };
    change(session);
    let rendered = session.render();
    let clock = session.customer.as_ref().and_then(|customer| world.customers.get(customer)?.clock.clone());
    events::emit(world, event, clock.as_deref(), rendered, None);
}

/// `POST /v1/checkout/sessions/{id}/expire`
pub(crate) fn expire(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "checkout.session")?;
    params.finish()?;
    check_open(world, id)?;
    change(world, id, "checkout.session.expired", |session| {
        session.status = "expired";
    });
    rendered(world, id, &expand)
}

/// Expires what was open for too long, by the real time.
pub(crate) fn expire_old(world: &mut World) {
    let old: Vec<String> = world
        .sessions
        .iter()
        .filter(|(_, session)| session.status == "open" && session.expires_at <= world.wall_secs)
        .map(|(id, _)| id.to_owned())
        .collect();
    for id in old {
        change(world, &id, "checkout.session.expired", |session| {
            session.status = "expired";
        });
    }
}

fn check_open<'a>(world: &'a World, id: &str) -> Result<&'a Session, ApiError> {
    let session = world.sessions.get(id).ok_or_else(|| ApiError::not_found("checkout.session", id))?;
    if session.status != "open" {
        return Err(ApiError::invalid(format!(
            "This Checkout Session is {}; only open sessions can be changed.",
            session.status
        )));
    }
    Ok(session)
}

/// Control API: completes an open session as a payer would. A card that cannot be charged is declined, and the session
/// stays open, as on the page.
pub(crate) fn complete(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let token = params.text("payment_method")?.unwrap_or_else(|| "pm_card_visa".to_owned());
    let email = params.text("email")?;
    params.finish()?;
    let session = check_open(world, id)?.clone();
    payment_methods::check_token(world, &token, "payment_method")?;
    let clock = match &session.customer {
        Some(customer) => {
            let owner = customers::live(world, customer, "customer")?;
            world.check_clock_ready(owner.clock.as_deref())?;
            subscriptions::check_room(world, customer)?;
            owner.clock.clone()
        }
        None => None,
    };
    let now = world.now(clock.as_deref());
    if matches!(payment_methods::outcome_of(world, &token), Some(Outcome::Debit { .. })) {
        return Err(ApiError::invalid_param("payment_method", "The session takes cards only (`payment_method_types`)."));
    }
    if session.amount > 0
        && let Some(error) = payment_methods::outcome_of(world, &token).and_then(Outcome::error)
    {
        return Err(error);
    }
    let email = session.customer_email.clone().or(email).unwrap_or_else(|| "payer@example.com".to_owned());
    let customer = match &session.customer {
        Some(customer) => customer.clone(),
        None => customers::from_checkout(world, Some(email.clone())),
    };
    let method = payment_methods::attach_to(world, &token, &customer, "payment_method")?;
    let mut new = wanted(&session, customer.clone(), now);
    new.default_payment_method = Some(method);
    let paid = subscriptions::first_amount(world, &new) > 0;
    let subscription =
        subscriptions::open(world, new, true).ok_or_else(|| ApiError::invalid("The subscription could not be created."))?;
    let invoice = world.subscriptions.get(&subscription).and_then(|subscription| subscription.latest_invoice.clone());
    change(world, id, "checkout.session.completed", |session| {
        session.status = "complete";
        session.payment_status = if paid { "paid" } else { "no_payment_required" };
        session.customer = Some(customer);
        session.customer_email.get_or_insert(email);
        session.subscription = Some(subscription);
        session.invoice = invoice;
    });
    rendered(world, id, &Expand::default())
}
