//! Subscriptions and their state machine.
//!
//! Sources: "How subscriptions work" (statuses), "Flexible billing mode", "Prorations", "Cancel subscriptions", SDK type
//! `Subscription` and its parameter types; stripe.md's list of moved fields in this repository's design notes.

mod lifecycle;
mod pause;
mod update;

pub(crate) use lifecycle::{
    cancel_as_planned, cancel_now, expire, invoice_settled, next_due, payment_failed, payment_processing, renew, trial_will_end,
};
pub(crate) use pause::{CollectionPause, collection_pause, pause_by_request, resume, resume_collection};
pub(crate) use update::update;

use serde_json::{Value, json};

use crate::calendar::{DAY_SECS, Interval, boundary};
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::invoices::{self, Draft, Line};
use crate::payment_methods::{self, Outcome};
use crate::prices::{self, Price};
use crate::world::{Page, Texts, World, nested_list, new_id};
use crate::{customers, events};
use lifecycle::finish;
pub(crate) use pause::MissingPaymentMethod;
use pause::PauseReason;
use update::{Cancellation, apply_cancellation, read_prorations};

/// A subscription's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The first payment has not come.
    Incomplete,
    /// It never came within 23 hours.
    IncompleteExpired,
    /// Nothing is charged yet.
    Trialing,
    /// All is well.
    Active,
    /// The latest invoice could not be collected.
    PastDue,
    /// All retries failed, and the account leaves it at that.
    Unpaid,
    /// It rests: no invoices, no renewals, until it is resumed.
    Paused,
    /// It is over.
    Canceled,
}

impl Status {
    /// Stripe's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Paused => "paused",
            Self::Canceled => "canceled",
        }
    }

    /// Whether nothing can happen to it any more.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::IncompleteExpired | Self::Canceled)
    }
}

/// One price of a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    id: String,
    created: i64,
    price: String,
    quantity: Option<i64>,
    metadata: Texts,
    /// Since when usage of a metered price is billed with the present period.
    usage_from: i64,
}

/// A subscription.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    id: String,
    created: i64,
    /// Its customer.
    pub(crate) customer: String,
    /// Its status.
    pub(crate) status: Status,
    items: Vec<Item>,
    flexible: bool,
    anchor: i64,
    /// The present period ends at the `cycle`-th boundary after the anchor.
    cycle: i64,
    /// The unit of its billing period.
    pub(crate) interval: Interval,
    /// How many of these a period has.
    pub(crate) interval_count: i64,
    period_start: i64,
    period_end: i64,
    /// Its currency.
    pub(crate) currency: String,
    cancel_at_period_end: bool,
    cancel_at: Option<i64>,
    canceled_at: Option<i64>,
    ended_at: Option<i64>,
    cancellation_reason: Option<&'static str>,
    trial: Option<(i64, i64)>,
    trial_notice_sent: bool,
    /// What is done at a trial's end where there is nothing to charge.
    missing_payment_method: MissingPaymentMethod,
    /// Since when and why it is paused.
    paused: Option<(i64, PauseReason)>,
    /// What becomes of its invoices while its collection is paused, and until when that is.
    pause_collection: Option<(CollectionPause, Option<i64>)>,
    /// What its invoices are charged to, before the customer's default.
    pub(crate) default_payment_method: Option<String>,
    description: Option<String>,
    /// Its metadata.
    pub(crate) metadata: Texts,
    /// Its newest invoice.
    pub(crate) latest_invoice: Option<String>,
    /// The test clock of its customer.
    pub(crate) clock: Option<String>,
    /// Lines that wait for the next invoice: prorations, and usage of prices that are gone.
    pending: Vec<Line>,
}

impl Subscription {
    /// The subscription in Stripe's form.
    pub(crate) fn render(&self, world: &World) -> Value {
        let items = self.items.iter().map(|item| self.render_item(world, item)).collect();
        json!({
            "id": self.id,
            "object": "subscription",
            "application": null,
            "application_fee_percent": null,
            "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null},
            "billing_cycle_anchor": self.anchor,
            "billing_cycle_anchor_config": null,
            "billing_mode": {
                "flexible": self.flexible.then(|| json!({"proration_discounts": "included"})),
                "type": if self.flexible { "flexible" } else { "classic" },
                "updated_at": null,
            },
            "billing_schedules": [],
            "billing_thresholds": null,
            "cancel_at": self.cancel_at,
            "cancel_at_period_end": self.cancel_at_period_end,
            "canceled_at": self.canceled_at,
            "cancellation_details": {
                "comment": null, "feedback": null, "reason": self.cancellation_reason,
            },
            "collection_method": "charge_automatically",
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "customer_account": null,
            "days_until_due": null,
            "default_payment_method": self.default_payment_method,
            "default_source": null,
            "default_tax_rates": [],
            "description": self.description,
            "discounts": [],
            "ended_at": self.ended_at,
            "invoice_settings": {"account_tax_ids": null, "issuer": {"type": "self"}},
            "items": nested_list(&format!("/v1/subscription_items?subscription={}", self.id), items),
            "latest_invoice": self.latest_invoice,
            "livemode": false,
            "metadata": self.metadata,
            "next_pending_invoice_item_invoice": null,
            "on_behalf_of": null,
            "pause_collection": self.pause_collection.map(|(behaviour, resumes_at)| json!({
                "behavior": behaviour.name(), "resumes_at": resumes_at,
            })),
            "payment_settings": {
                "payment_method_options": null, "payment_method_types": null, "save_default_payment_method": "off",
            },
            "pending_invoice_item_interval": null,
            "pending_setup_intent": null,
            "pending_update": null,
            "schedule": null,
            "start_date": self.created,
            "status": self.status.name(),
            "status_details": self.paused.map(|(at, reason)| json!({
                "paused": {"subscription": {"type": reason.name()}, "transitioned_at": at, "type": "subscription"},
            })),
            "test_clock": self.clock,
            "transfer_data": null,
            "trial_end": self.trial.map(|(_, end)| end),
            "trial_settings": {"end_behavior": {"missing_payment_method": self.missing_payment_method.name()}},
            "trial_start": self.trial.map(|(start, _)| start),
        })
    }

    fn render_item(&self, world: &World, item: &Item) -> Value {
        let price = world.prices.get(&item.price);
        let mut rendered = json!({
            "id": item.id,
            "object": "subscription_item",
            "billed_until": null,
            "billing_thresholds": null,
            "created": item.created,
            // Since 2025-03-31.basil the period stands here, and only here.
            "current_period_end": self.period_end,
            "current_period_start": self.period_start,
            "discounts": [],
            "metadata": item.metadata,
            "plan": price.map(Price::render_plan),
            "price": price.map(Price::render),
            "subscription": self.id,
            "tax_rates": [],
        });
        if let (Some(quantity), Some(map)) = (item.quantity, rendered.as_object_mut()) {
            map.insert("quantity".to_owned(), json!(quantity));
        }
        rendered
    }

    fn trialing_until(&self) -> Option<i64> {
        let (_, end) = self.trial?;
        (self.status == Status::Trialing).then_some(end)
    }
}

/// Changes a subscription and tells the change, if it was one.
pub(crate) fn change(world: &mut World, id: &str, change: impl FnOnce(&mut Subscription)) {
    let Some(before) = world.subscriptions.get(id).map(|found| found.render(world)) else {
        return;
    };
    if let Some(subscription) = world.subscriptions.get_mut(id) {
        change(subscription);
    }
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let after = subscription.render(world);
    let clock = subscription.clock.clone();
    if let Some(previous) = events::previous_attributes(&before, &after) {
        events::emit(world, "customer.subscription.updated", clock.as_deref(), after, Some(previous));
    }
}

fn tell(world: &mut World, id: &str, event: &str) {
    if let Some(subscription) = world.subscriptions.get(id) {
        let (rendered, clock) = (subscription.render(world), subscription.clock.clone());
        events::emit(world, event, clock.as_deref(), rendered, None);
    }
}

// ---- What a new subscription is made of ----

/// A price and how much of it.
#[derive(Clone, Debug)]
pub(crate) struct WantedItem {
    /// The price.
    pub(crate) price: String,
    /// Units of a licensed price.
    pub(crate) quantity: Option<i64>,
    /// The item's metadata.
    pub(crate) metadata: Texts,
}

/// What is to be done about the first invoice. Source: `SubscriptionCreateParams.payment_behavior`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PaymentBehaviour {
    Allow,
    LeaveOpen,
    Refuse,
}

/// A new subscription, checked.
#[derive(Clone, Debug)]
pub(crate) struct NewSubscription {
    /// Its customer.
    pub(crate) customer: String,
    /// Its items.
    pub(crate) items: Vec<WantedItem>,
    /// Whether it is of the flexible billing mode.
    pub(crate) flexible: bool,
    /// The end of its trial.
    pub(crate) trial_end: Option<i64>,
    /// What is done at the trial's end where there is nothing to charge.
    pub(crate) missing_payment_method: MissingPaymentMethod,
    /// Its own payment method.
    pub(crate) default_payment_method: Option<String>,
    /// What the customer reads.
    pub(crate) description: Option<String>,
    /// Its metadata.
    pub(crate) metadata: Texts,
}

/// The prices of items must be recurring, of one currency and of one interval, each at most once.
///
/// Stripe allows mixed intervals in flexible mode; we are stricter, because a segment has one period.
pub(crate) fn check_items(world: &World, items: &[WantedItem], param: &str, for_checkout: bool) -> Result<(), ApiError> {
    if items.is_empty() {
        return Err(ApiError::missing(param));
    }
    if items.len() > 20 {
        return Err(ApiError::invalid_param(param, "A subscription can have at most 20 items."));
    }
    let mut seen: Vec<&Price> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let name = format!("{param}[{index}]");
        let price = prices::sellable(world, &item.price, &format!("{name}[price]"))?;
        if seen.iter().any(|other| other.id == price.id) {
            return Err(ApiError::invalid_param(
                &name,
                format!("Cannot add multiple subscription items with the same plan: {}", price.id),
            ));
        }
        let differs = seen.first().is_some_and(|first| {
            first.currency != price.currency || first.interval != price.interval || first.interval_count != price.interval_count
        });
        if differs {
            return Err(ApiError::invalid_param(
                &name,
                "All prices of a subscription must have the same currency and billing interval.",
            ));
        }
        match (&price.meter, item.quantity) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid_param(
                    &format!("{name}[quantity]"),
                    format!("Quantity should not be specified where usage_type is `metered`. Remove quantity from `{name}`."),
                ));
            }
            (None, None) if for_checkout => {
                return Err(ApiError::invalid_param(
                    &format!("{name}[quantity]"),
                    format!("Quantity is required. Add `quantity` to `{name}`."),
                ));
            }
            _ => {}
        }
        seen.push(price);
    }
    Ok(())
}

/// Reads `prefix[billing_mode][type]`; flexible is the default since 2025-09-30.clover.
pub(crate) fn read_billing_mode(params: &mut Params, prefix: &str) -> Result<bool, ApiError> {
    let mode = params.one_of(prefix, &["classic", "flexible"])?;
    Ok(mode.is_none_or(|mode| mode == "flexible"))
}

/// Reads a trial: its end, or its days from `now`.
pub(crate) fn read_trial(end: Option<i64>, days: Option<i64>, now: i64) -> Result<Option<i64>, ApiError> {
    match (end, days) {
        (Some(_), Some(_)) => Err(ApiError::invalid_param(
            "trial_end",
            "You may only specify one of these parameters: trial_end, trial_period_days.",
        )),
        (Some(end), None) if end <= now => {
            Err(ApiError::invalid_param("trial_end", "Invalid timestamp: must be an integer Unix timestamp in the future."))
        }
        (None, Some(days)) if !(1..=730).contains(&days) => {
            Err(ApiError::invalid_param("trial_period_days", "A trial takes 1 to 730 days."))
        }
        (end, days) => Ok(end.or_else(|| days.map(|days| now + days * DAY_SECS))),
    }
}

/// Source: "API and advanced usage", Limitations: three subscriptions per customer on a clock.
pub(crate) fn check_room(world: &World, customer: &str) -> Result<(), ApiError> {
    let on_clock = world.customers.get(customer).is_some_and(|customer| customer.clock.is_some());
    let live = world
        .subscriptions
        .values()
        .filter(|subscription| subscription.customer == customer && !subscription.status.is_terminal())
        .count();
    if on_clock && live >= 3 {
        return Err(ApiError::invalid_param(
            "customer",
            "You have reached the limit of 3 subscriptions for a customer on a test clock.",
        ));
    }
    Ok(())
}

/// What the first invoice comes to, before any credit.
pub(crate) fn first_amount(world: &World, new: &NewSubscription) -> i64 {
    if new.trial_end.is_some() {
        return 0;
    }
    new.items
        .iter()
        .filter_map(|item| {
            let price = world.prices.get(&item.price)?;
            let licensed = price.meter.is_none();
            licensed.then(|| price.amount(item.quantity.unwrap_or(1)))
        })
        .sum()
}

/// Opens a checked subscription, with its first invoice; `collect` says whether that is charged.
pub(crate) fn open(world: &mut World, new: NewSubscription, collect: bool) -> Option<String> {
    let clock = world.customers.get(&new.customer)?.clock.clone();
    let now = world.now(clock.as_deref());
    let first_price = world.prices.get(&new.items.first()?.price)?;
    let (interval, interval_count) = (first_price.interval, first_price.interval_count);
    let currency = first_price.currency.clone();
    let amount = first_amount(world, &new);
    let id = new_id("sub");
    let items = new.items.into_iter().map(|wanted| new_item(world, wanted, now)).collect();
    // A trial's end is the 0th boundary after the anchor, and becomes the anchor of what follows.
    let (anchor, cycle, period_end) = match new.trial_end {
        Some(end) => (end, 0, end),
        None => (now, 1, boundary(now, interval, interval_count)),
    };
    let status = match new.trial_end {
        Some(_) => Status::Trialing,
        None if amount == 0 => Status::Active,
        // Even where the payment succeeds at once it was incomplete for a moment, and the events show it.
        None => Status::Incomplete,
    };
    let subscription = Subscription {
        id: id.clone(),
        created: now,
        customer: new.customer.clone(),
        status,
        items,
        flexible: new.flexible,
        anchor,
        cycle,
        interval,
        interval_count,
        period_start: now,
        period_end,
        currency: currency.clone(),
        cancel_at_period_end: false,
        cancel_at: None,
        canceled_at: None,
        ended_at: None,
        cancellation_reason: None,
        trial: new.trial_end.map(|end| (now, end)),
        trial_notice_sent: false,
        missing_payment_method: new.missing_payment_method,
        paused: None,
        pause_collection: None,
        default_payment_method: new.default_payment_method,
        description: new.description,
        metadata: new.metadata,
        latest_invoice: None,
        clock,
        pending: Vec::new(),
    };
    let lines = first_lines(world, &subscription);
    world.subscriptions.insert(&id, subscription);
    customers::settle_currency(world, &new.customer, &currency);
    let invoice = invoices::create_draft(
        world,
        Draft {
            subscription: id.clone(),
            billing_reason: "subscription_create",
            lines,
            period: (now, now),
            finalises_itself: false,
        },
    );
    if let Some(subscription) = world.subscriptions.get_mut(&id) {
        subscription.latest_invoice.clone_from(&invoice);
    }
    tell(world, &id, "customer.subscription.created");
    if let Some(invoice) = invoice {
        if collect || amount == 0 {
            invoices::finalise_and_charge(world, &invoice);
        } else {
            invoices::finalise(world, &invoice);
        }
    }
    Some(id)
}

fn new_item(world: &World, wanted: WantedItem, now: i64) -> Item {
    let licensed = world.prices.get(&wanted.price).is_some_and(|price| price.meter.is_none());
    Item {
        id: new_id("si"),
        created: now,
        price: wanted.price,
        quantity: licensed.then(|| wanted.quantity.unwrap_or(1)),
        metadata: wanted.metadata,
        usage_from: now,
    }
}

/// Lines of the first invoice. In the flexible mode metered prices have none before they have usage.
fn first_lines(world: &World, subscription: &Subscription) -> Vec<Line> {
    let trial = subscription.trial.is_some();
    subscription
        .items
        .iter()
        .filter_map(|item| {
            let price = world.prices.get(&item.price)?;
            let metered = price.meter.is_some();
            if metered && subscription.flexible {
                return None;
            }
            let mut line = licensed_line(price, item, subscription.period_start, subscription.period_end);
            if metered {
                line.quantity = 0;
                line.amount = 0;
            }
            if trial {
                line.amount = 0;
                line.description = format!("Trial period for {}", price.label());
            }
            Some(line)
        })
        .collect()
}

fn licensed_line(price: &Price, item: &Item, from: i64, to: i64) -> Line {
    let quantity = item.quantity.unwrap_or(1);
    Line {
        id: new_id("il"),
        item: item.id.clone(),
        price: price.id.clone(),
        quantity,
        amount: price.amount(quantity),
        description: format!("{quantity} × {}", price.label()),
        from,
        to,
        proration: false,
        metered: false,
    }
}

fn metered_line(price: &Price, item: &Item, to: i64) -> Line {
    Line {
        id: new_id("il"),
        item: item.id.clone(),
        price: price.id.clone(),
        quantity: 0,
        amount: 0,
        description: format!("Usage of {}", price.label()),
        from: item.usage_from,
        to,
        proration: false,
        metered: true,
    }
}

// ---- The API ----

fn rendered(world: &World, id: &str, expand: &Expand) -> Reply {
    let subscription = world.subscriptions.get(id).ok_or_else(|| ApiError::not_found("subscription", id))?;
    Ok(expand.apply(world, subscription.render(world)))
}

/// A subscription that a request wants to change.
fn changeable<'a>(world: &'a World, id: &str) -> Result<&'a Subscription, ApiError> {
    let subscription = world.subscriptions.get(id).ok_or_else(|| ApiError::not_found("subscription", id))?;
    world.check_clock_ready(subscription.clock.as_deref())?;
    Ok(subscription)
}

/// Only `charge_automatically` is played.
fn check_collection_method(params: &mut Params) -> Result<(), ApiError> {
    params.one_of("collection_method", &["charge_automatically"]).map(|_| ())
}

fn read_payment_behaviour(params: &mut Params) -> Result<PaymentBehaviour, ApiError> {
    let name = params.one_of("payment_behavior", &["allow_incomplete", "default_incomplete", "error_if_incomplete"])?;
    Ok(match name.as_deref() {
        Some("default_incomplete") => PaymentBehaviour::LeaveOpen,
        Some("error_if_incomplete") => PaymentBehaviour::Refuse,
        _ => PaymentBehaviour::Allow,
    })
}

/// `POST /v1/subscriptions`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let customer = params.required("customer")?;
    let mut items = Vec::new();
    for name in params.elements("items") {
        items.push(WantedItem {
            price: params.required(&format!("{name}[price]"))?,
            quantity: params.int(&format!("{name}[quantity]"))?,
            metadata: params.metadata(&format!("{name}[metadata]"))?.into_new(),
        });
    }
    let flexible = read_billing_mode(params, "billing_mode[type]")?;
    let trial_end = params.int("trial_end")?;
    let trial_days = params.int("trial_period_days")?;
    let missing_payment_method = MissingPaymentMethod::read(params)?.unwrap_or_default();
    let cancellation = Cancellation::read(params)?;
    let method = params.text("default_payment_method")?;
    let behaviour = read_payment_behaviour(params)?;
    let description = params.text("description")?;
    let metadata = params.metadata("metadata")?.into_new();
    let currency = params.text("currency")?;
    check_collection_method(params)?;
    let _ = params.boolean("off_session")?;
    let _ = read_prorations(params)?;
    let expand = Expand::from_params(params, "subscription")?;
    params.finish()?;
    let owner = customers::live(world, &customer, "customer")?;
    let (clock, own_method) = (owner.clock.clone(), owner.default_payment_method.clone());
    world.check_clock_ready(clock.as_deref())?;
    check_room(world, &customer)?;
    check_items(world, &items, "items", false)?;
    if let Some(currency) = &currency {
        let fits = items.iter().filter_map(|item| world.prices.get(&item.price)).all(|price| price.currency == *currency);
        if !fits {
            return Err(ApiError::invalid_param("currency", "The prices specified are not in this currency."));
        }
    }
    if let Some(method) = &method {
        payment_methods::check_attached(world, method, &customer, "default_payment_method")?;
    }
    let now = world.now(clock.as_deref());
    let trial_end = read_trial(trial_end, trial_days, now)?;
    cancellation.check(now)?;
    let charged_to = method.clone().or(own_method);
    let new = NewSubscription {
        customer,
        items,
        flexible,
        trial_end,
        missing_payment_method,
        default_payment_method: method,
        description,
        metadata,
    };
    let amount = first_amount(world, &new);
    let collect = behaviour != PaymentBehaviour::LeaveOpen;
    if amount > 0 && collect {
        let Some(charged_to) = charged_to else {
            return Err(ApiError {
                code: Some("resource_missing"),
                ..ApiError::invalid(
                    "This customer has no attached payment source or default payment method. Please consider adding a default payment method.",
                )
            });
        };
        let outcome = payment_methods::outcome_of(world, &charged_to);
        if behaviour == PaymentBehaviour::Refuse
            && let Some(error) = outcome.and_then(Outcome::error)
        {
            return Err(error);
        }
    }
    let id = open(world, new, collect).ok_or_else(|| ApiError::invalid("The subscription could not be created."))?;
    apply_cancellation(world, &id, &cancellation);
    rendered(world, &id, &expand)
}

/// `GET /v1/subscriptions/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "subscription")?;
    params.finish()?;
    rendered(world, id, &expand)
}

/// `GET /v1/subscriptions`. Source: `SubscriptionListParams`: without a status all that are not canceled; those with test
/// clocks only if the customer or the clock is named.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let customer = params.text("customer")?;
    let price = params.text("price")?;
    let clock = params.text("test_clock")?;
    let status = params.one_of(
        "status",
        &["active", "all", "canceled", "ended", "incomplete", "incomplete_expired", "past_due", "paused", "trialing", "unpaid"],
    )?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "subscription")?;
    params.finish()?;
    if let Some(customer) = &customer {
        customers::known(world, customer, "customer")?;
    }
    let list = page.cut(
        &world.subscriptions,
        "subscription",
        "/v1/subscriptions",
        |subscription| {
            let status_fits = match status.as_deref() {
                None => subscription.status != Status::Canceled,
                Some("all") => true,
                Some("ended") => subscription.status.is_terminal(),
                Some(status) => subscription.status.name() == status,
            };
            let clock_fits = match (&clock, &customer) {
                (Some(_), _) => subscription.clock == clock,
                (None, Some(_)) => true,
                (None, None) => subscription.clock.is_none(),
            };
            status_fits
                && clock_fits
                && customer.as_ref().is_none_or(|customer| subscription.customer == *customer)
                && price.as_ref().is_none_or(|price| subscription.items.iter().any(|item| item.price == *price))
                && created.is_none_or(|range| range.contains(subscription.created))
        },
        |subscription| subscription.render(world),
    )?;
    Ok(expand.apply_to_list(world, list))
}

/// `DELETE /v1/subscriptions/{id}`. Source: `SubscriptionCancelParams`: usage that is not invoiced yet is only invoiced with
/// `invoice_now`.
pub(crate) fn cancel(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let invoice_now = params.boolean("invoice_now")?.unwrap_or(false);
    let expand = Expand::from_params(params, "subscription")?;
    params.finish()?;
    let subscription = changeable(world, id)?;
    if subscription.status.is_terminal() {
        return Err(ApiError::not_found("subscription", id));
    }
    finish(world, id, "cancellation_requested", invoice_now.then_some(false));
    rendered(world, id, &expand)
}
