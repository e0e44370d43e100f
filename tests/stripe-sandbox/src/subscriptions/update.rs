//! Changes to a running subscription: planned cancellations, items and prices, prorations.

use super::pause::{MissingPaymentMethod, read_collection_pause};
use super::{
    Item, Status, Subscription, WantedItem, change, changeable, check_collection_method, check_items, licensed_line,
    metered_line, new_item, read_payment_behaviour, rendered, renew,
};
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::{MetadataChange, Params};
use crate::invoices::{self, Line};
use crate::world::{Texts, World};
use crate::{payment_methods, prices};

/// What a request says about a planned cancellation.
#[derive(Clone, Debug)]
pub(super) struct Cancellation {
    at_period_end: Option<bool>,
    /// Unset, or a time, or the end of the period.
    at: Option<Option<CancelAt>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CancelAt {
    Time(i64),
    PeriodEnd,
}

impl Cancellation {
    pub(super) fn read(params: &mut Params) -> Result<Self, ApiError> {
        let at_period_end = params.boolean("cancel_at_period_end")?;
        let at = match params.unsettable("cancel_at") {
            None => None,
            Some(None) => Some(None),
            Some(Some(text)) if text == "min_period_end" || text == "max_period_end" => Some(Some(CancelAt::PeriodEnd)),
            Some(Some(text)) => Some(Some(CancelAt::Time(
                text.parse().map_err(|_| ApiError::invalid_param("cancel_at", format!("Invalid timestamp: {text}")))?,
            ))),
        };
        if at_period_end == Some(true) && matches!(at, Some(Some(_))) {
            return Err(ApiError::invalid_param(
                "cancel_at",
                "You may only specify one of these parameters: cancel_at, cancel_at_period_end.",
            ));
        }
        Ok(Self { at_period_end, at })
    }

    pub(super) fn check(&self, now: i64) -> Result<(), ApiError> {
        match self.at {
            Some(Some(CancelAt::Time(at))) if at <= now => {
                Err(ApiError::invalid_param("cancel_at", "Invalid timestamp: must be an integer Unix timestamp in the future."))
            }
            _ => Ok(()),
        }
    }
}

/// Plans or withdraws a cancellation that was checked.
pub(super) fn apply_cancellation(world: &mut World, id: &str, cancellation: &Cancellation) {
    let now = world.subscriptions.get(id).map_or(0, |subscription| world.now(subscription.clock.as_deref()));
    change(world, id, |subscription| cancellation.apply(subscription, now));
}

impl Cancellation {
    /// Source: "Cancel subscriptions": the status stays, `cancel_at` is the period's end, `canceled_at` the request's time.
    fn apply(&self, subscription: &mut Subscription, now: i64) {
        let planned = match (self.at_period_end, self.at) {
            (Some(true), _) => Some(CancelAt::PeriodEnd),
            (_, Some(Some(at))) => Some(at),
            (Some(false), _) | (_, Some(None)) => {
                subscription.cancel_at = None;
                subscription.cancel_at_period_end = false;
                subscription.canceled_at = None;
                subscription.cancellation_reason = None;
                return;
            }
            (None, None) => return,
        };
        subscription.cancel_at_period_end = self.at_period_end == Some(true);
        subscription.cancel_at = planned.map(|planned| match planned {
            CancelAt::Time(at) => at,
            CancelAt::PeriodEnd => subscription.period_end,
        });
        subscription.canceled_at = Some(now);
        subscription.cancellation_reason = Some("cancellation_requested");
    }
}

/// Reads `proration_behavior`; invoicing at once is not played.
pub(super) fn read_prorations(params: &mut Params) -> Result<bool, ApiError> {
    let behaviour = params.one_of("proration_behavior", &["create_prorations", "none"])?;
    Ok(behaviour.is_none_or(|behaviour| behaviour == "create_prorations"))
}

/// What a request does to one item.
#[derive(Debug)]
struct ItemChange {
    id: Option<String>,
    price: Option<String>,
    quantity: Option<i64>,
    deleted: bool,
    metadata: MetadataChange,
}

fn read_item_changes(params: &mut Params) -> Result<Vec<ItemChange>, ApiError> {
    let mut changes = Vec::new();
    for name in params.elements("items") {
        changes.push(ItemChange {
            id: params.text(&format!("{name}[id]"))?,
            price: params.text(&format!("{name}[price]"))?,
            quantity: params.int(&format!("{name}[quantity]"))?,
            deleted: params.boolean(&format!("{name}[deleted]"))?.unwrap_or(false),
            metadata: params.metadata(&format!("{name}[metadata]"))?,
        });
    }
    Ok(changes)
}

/// The items after the changes, or why they cannot be. An item without an id is a new one (the classic mistake of an
/// update that meant to replace a price).
fn changed_items(world: &World, subscription: &Subscription, changes: Vec<ItemChange>, now: i64) -> Result<Vec<Item>, ApiError> {
    let mut items = subscription.items.clone();
    for (index, change) in changes.into_iter().enumerate() {
        let Some(id) = change.id else {
            let price = change.price.ok_or_else(|| ApiError::missing(&format!("items[{index}][price]")))?;
            let mut item =
                new_item(world, WantedItem { price, quantity: change.quantity, metadata: change.metadata.into_new() }, now);
            if !subscription.flexible {
                item.usage_from = subscription.period_start;
            }
            items.push(item);
            continue;
        };
        if change.deleted {
            let before = items.len();
            items.retain(|item| item.id != id);
            if items.len() == before {
                return Err(ApiError::no_such("subscription_item", &format!("items[{index}][id]"), &id));
            }
            continue;
        }
        let item = items
            .iter_mut()
            .find(|item| item.id == id)
            .ok_or_else(|| ApiError::no_such("subscription_item", &format!("items[{index}][id]"), &id))?;
        if let Some(price) = change.price
            && price != item.price
        {
            let metered = prices::sellable(world, &price, &format!("items[{index}][price]"))?.meter.is_some();
            item.price = price;
            item.quantity = match (metered, change.quantity) {
                (true, quantity) => quantity,
                (false, quantity) => quantity.or(item.quantity).or(Some(1)),
            };
            if subscription.flexible {
                item.usage_from = now;
            }
        } else if change.quantity.is_some() {
            item.quantity = change.quantity;
        }
        change.metadata.apply(&mut item.metadata);
    }
    let wanted: Vec<WantedItem> = items
        .iter()
        .map(|item| WantedItem { price: item.price.clone(), quantity: item.quantity, metadata: Texts::new() })
        .collect();
    check_items(world, &wanted, "items", false)?;
    let fits = items.iter().filter_map(|item| world.prices.get(&item.price)).all(|price| {
        price.interval == subscription.interval
            && price.interval_count == subscription.interval_count
            && price.currency == subscription.currency
    });
    if !fits {
        return Err(ApiError::invalid_param("items", "The sandbox does not change a subscription's interval or currency."));
    }
    Ok(items)
}

/// What a change within a period leaves for the next invoice: prorations of licensed prices, and, in the flexible mode,
/// the usage of metered prices that are gone. Source: "Prorations"; "Flexible billing mode".
fn pending_of_change(world: &World, subscription: &Subscription, items: &[Item], now: i64, prorate: bool) -> Vec<Line> {
    if subscription.status == Status::Trialing {
        return Vec::new();
    }
    let same = |a: &Item, b: &Item| a.id == b.id && a.price == b.price && a.quantity == b.quantity;
    let mut lines = Vec::new();
    let gone = subscription.items.iter().filter(|old| !items.iter().any(|new| same(old, new))).map(|old| (old, true));
    let come = items.iter().filter(|new| !subscription.items.iter().any(|old| same(old, new))).map(|new| (new, false));
    for (item, is_gone) in gone.chain(come) {
        let Some(price) = world.prices.get(&item.price) else {
            continue;
        };
        if price.meter.is_some() {
            if is_gone && subscription.flexible {
                lines.push(metered_line(price, item, now));
            }
        } else if prorate {
            let mut line = licensed_line(price, item, now, subscription.period_end);
            let share = prorated(line.amount, subscription, now);
            line.amount = if is_gone { -share } else { share };
            let verb = if is_gone { "Unused" } else { "Remaining" };
            line.description = format!("{verb} time on {}", line.description);
            line.proration = true;
            lines.push(line);
        }
    }
    lines
}

/// The share of an amount for the rest of the period, by the second, half a unit rounded up.
pub(super) fn prorated(amount: i64, subscription: &Subscription, now: i64) -> i64 {
    let whole = i128::from(subscription.period_end - subscription.period_start).max(1);
    let rest = i128::from((subscription.period_end - now).max(0));
    let share = (i128::from(amount) * rest * 2 + whole) / (whole * 2);
    i64::try_from(share).unwrap_or(amount)
}

/// `POST /v1/subscriptions/{id}`
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let changes = read_item_changes(params)?;
    let prorate = read_prorations(params)?;
    let cancellation = Cancellation::read(params)?;
    let method = params.text("default_payment_method")?;
    let description = params.unsettable("description");
    let metadata = params.metadata("metadata")?;
    let trial_end = params.text("trial_end")?;
    let missing_payment_method = MissingPaymentMethod::read(params)?;
    let collection = read_collection_pause(params)?;
    check_collection_method(params)?;
    let _ = read_payment_behaviour(params)?;
    let _ = params.boolean("off_session")?;
    let expand = Expand::from_params(params, "subscription")?;
    let only_metadata = params.entries().keys().all(|key| key.starts_with("metadata") || key.starts_with("expand"));
    params.finish()?;
    let subscription = changeable(world, id)?;
    if subscription.status.is_terminal() && !only_metadata {
        return Err(ApiError::invalid("A canceled subscription can only update its cancellation_details and metadata."));
    }
    if let Some(method) = &method {
        payment_methods::check_attached(world, method, &subscription.customer, "default_payment_method")?;
    }
    let now = world.now(subscription.clock.as_deref());
    cancellation.check(now)?;
    if let Some(Some((_, Some(resumes_at)))) = collection
        && resumes_at <= now
    {
        return Err(ApiError::invalid_param("pause_collection[resumes_at]", "Invalid timestamp: must be in the future."));
    }
    let end_trial = match trial_end.as_deref() {
        None => false,
        Some("now") if subscription.status == Status::Trialing => true,
        Some(_) => {
            return Err(ApiError::invalid_param("trial_end", "The sandbox only ends a running trial with trial_end=now."));
        }
    };
    let items = changed_items(world, subscription, changes, now)?;
    let pending = pending_of_change(world, subscription, &items, now, prorate);
    change(world, id, |subscription| {
        subscription.items = items;
        subscription.pending.extend(pending);
        if let Some(method) = method {
            subscription.default_payment_method = Some(method);
        }
        if let Some(missing) = missing_payment_method {
            subscription.missing_payment_method = missing;
        }
        if let Some(collection) = collection {
            subscription.pause_collection = collection;
        }
        if let Some(description) = description {
            subscription.description = description;
        }
        metadata.apply(&mut subscription.metadata);
        cancellation.apply(subscription, now);
    });
    if end_trial {
        end_trial_now(world, id, now);
    }
    rendered(world, id, &expand)
}

/// Ends a trial at once; its first period is invoiced and collected at once, too.
fn end_trial_now(world: &mut World, id: &str, now: i64) {
    if let Some(subscription) = world.subscriptions.get_mut(id) {
        subscription.trial = subscription.trial.map(|(start, _)| (start, now));
        subscription.anchor = now;
        subscription.period_end = now;
    }
    renew(world, id);
    let latest = world
        .subscriptions
        .get(id)
        .filter(|subscription| subscription.status == Status::Active)
        .and_then(|subscription| subscription.latest_invoice.clone());
    if let Some(invoice) = latest {
        invoices::finalise_and_charge(world, &invoice);
    }
}
