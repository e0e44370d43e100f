//! Pauses: of a subscription, which then rests, and of the collection of its invoices, which leaves its status alone.
//!
//! Sources: "Pause subscriptions"; API reference, "Pause a subscription" and "Resume a subscription"; "Pause payment collection";
//! SDK types `Subscription.status_details` and `SubscriptionCreateParams.trial_settings`; changelog 2026-09-30.endive.

use super::update::prorated;
use super::{Status, Subscription, change, changeable, licensed_line, metered_line, rendered, tell};
use crate::calendar::boundary;
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::invoices::{self, Draft, Line};
use crate::prices::Price;
use crate::world::World;

/// What is done at the end of a trial where there is nothing to charge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum MissingPaymentMethod {
    /// The invoice is made, and its payment fails.
    #[default]
    CreateInvoice,
    /// The subscription is paused.
    Pause,
    /// It is cancelled.
    Cancel,
}

impl MissingPaymentMethod {
    const ALL: [Self; 3] = [Self::CreateInvoice, Self::Pause, Self::Cancel];

    /// Stripe's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::CreateInvoice => "create_invoice",
            Self::Pause => "pause",
            Self::Cancel => "cancel",
        }
    }

    pub(super) fn read(params: &mut Params) -> Result<Option<Self>, ApiError> {
        let name = params.one_of("trial_settings[end_behavior][missing_payment_method]", &Self::ALL.map(Self::name))?;
        Ok(Self::ALL.into_iter().find(|known| name.as_deref() == Some(known.name())))
    }
}

/// Why a subscription is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PauseReason {
    /// The first payment of a renewal failed.
    FirstPaymentFailure,
    /// The last attempt failed, too.
    FinalPaymentFailure,
    /// It was asked for.
    PauseRequested,
    /// A trial ended, and there was nothing to charge.
    TrialEndWithoutPaymentMethod,
}

impl PauseReason {
    /// Stripe's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::FirstPaymentFailure => "first_payment_failure",
            Self::FinalPaymentFailure => "final_payment_failure",
            Self::PauseRequested => "pause_requested",
            Self::TrialEndWithoutPaymentMethod => "trial_end_without_payment_method",
        }
    }
}

/// What becomes of invoices while the collection is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CollectionPause {
    /// They stay drafts.
    KeepAsDraft,
    /// They are written off.
    MarkUncollectible,
    /// They are withdrawn.
    Void,
}

impl CollectionPause {
    const ALL: [Self; 3] = [Self::KeepAsDraft, Self::MarkUncollectible, Self::Void];

    /// Stripe's word for it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::KeepAsDraft => "keep_as_draft",
            Self::MarkUncollectible => "mark_uncollectible",
            Self::Void => "void",
        }
    }
}

/// Reads `pause_collection`: not given, or ended by an empty text, or begun.
#[expect(clippy::type_complexity, reason = "each layer is one question: was it given, is it set, does it end by itself")]
pub(super) fn read_collection_pause(params: &mut Params) -> Result<Option<Option<(CollectionPause, Option<i64>)>>, ApiError> {
    match params.unsettable("pause_collection") {
        Some(None) => return Ok(Some(None)),
        Some(Some(_)) => return Err(ApiError::invalid_param("pause_collection", "Invalid object")),
        None => {}
    }
    let name = params.one_of("pause_collection[behavior]", &CollectionPause::ALL.map(CollectionPause::name))?;
    let resumes_at = params.int("pause_collection[resumes_at]")?;
    let behaviour = CollectionPause::ALL.into_iter().find(|known| name.as_deref() == Some(known.name()));
    match (behaviour, resumes_at) {
        (None, Some(_)) => Err(ApiError::missing("pause_collection[behavior]")),
        (behaviour, resumes_at) => Ok(behaviour.map(|behaviour| Some((behaviour, resumes_at)))),
    }
}

/// What becomes of its invoices, if its collection is paused.
pub(crate) fn collection_pause(world: &World, id: &str) -> Option<CollectionPause> {
    world.subscriptions.get(id)?.pause_collection.map(|(behaviour, _)| behaviour)
}

/// The pause of its collection is over. What was kept as a draft stays one.
pub(crate) fn resume_collection(world: &mut World, id: &str) {
    change(world, id, |subscription| subscription.pause_collection = None);
}

/// Whether there is something to charge.
pub(super) fn has_payment_method(world: &World, subscription: &Subscription) -> bool {
    let of_customer = || world.customers.get(&subscription.customer)?.default_payment_method.as_ref();
    subscription.default_payment_method.is_some() || of_customer().is_some()
}

/// Pauses it, and tells so.
pub(super) fn pause(world: &mut World, id: &str, reason: PauseReason) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let now = world.now(subscription.clock.as_deref());
    change(world, id, |subscription| {
        subscription.status = Status::Paused;
        subscription.paused = Some((now, reason));
    });
    tell(world, id, "customer.subscription.paused");
}

/// The invoice whose payment failed was paid after all: within its period the subscription goes on. After it there is nothing to
/// go on with, and it waits to be resumed.
pub(super) fn resumed_by_payment(world: &mut World, id: &str) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let for_failure =
        matches!(subscription.paused, Some((_, PauseReason::FirstPaymentFailure | PauseReason::FinalPaymentFailure)));
    if for_failure && world.now(subscription.clock.as_deref()) < subscription.period_end {
        change(world, id, |subscription| {
            subscription.status = Status::Active;
            subscription.paused = None;
        });
        tell(world, id, "customer.subscription.resumed");
    }
}

/// What a pause leaves for the next invoice: the usage until now, and credit for the unused time, each if it is wanted.
fn pending_of_pause(world: &World, subscription: &Subscription, now: i64, usage: bool, credit: bool) -> Vec<Line> {
    let priced = |price: &str| world.prices.get(price);
    subscription
        .items
        .iter()
        .filter_map(|item| {
            let price: &Price = priced(&item.price)?;
            if price.meter.is_some() {
                return usage.then(|| metered_line(price, item, now));
            }
            let mut line = licensed_line(price, item, now, subscription.period_end);
            line.amount = -prorated(line.amount, subscription, now);
            line.description = format!("Unused time on {}", line.description);
            line.proration = true;
            credit.then_some(line)
        })
        .collect()
}

/// `POST /v1/subscriptions/{id}/pause`
pub(crate) fn pause_by_request(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let _ = params.one_of("type", &["subscription"])?;
    let _ = params.one_of("invoicing_behavior", &["pending_invoice_item"])?;
    let usage = params.one_of("bill_for[outstanding_usage_through][type]", &["now", "none"])?;
    let credit = params.one_of("bill_for[unused_time_from][type]", &["now", "none"])?;
    let expand = Expand::from_params(params, "subscription")?;
    params.finish()?;
    let subscription = changeable(world, id)?;
    if !subscription.flexible {
        return Err(ApiError::invalid("Only subscriptions with billing_mode=flexible can be paused."));
    }
    if !matches!(subscription.status, Status::Active | Status::PastDue) {
        return Err(ApiError::invalid(format!("A subscription that is {} cannot be paused.", subscription.status.name())));
    }
    let now = world.now(subscription.clock.as_deref());
    let pending = pending_of_pause(world, subscription, now, usage.as_deref() != Some("none"), credit.as_deref() != Some("none"));
    if let Some(subscription) = world.subscriptions.get_mut(id) {
        subscription.pending.extend(pending);
        for item in &mut subscription.items {
            item.usage_from = now;
        }
    }
    pause(world, id, PauseReason::PauseRequested);
    rendered(world, id, &expand)
}

/// `POST /v1/subscriptions/{id}/resume`: a new period begins now, and its invoice is final and charged at once. With the default
/// `payment_behavior` the attempt alone makes it active, and a failure then past due.
pub(crate) fn resume(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let _ = params.one_of("payment_behavior", &["resume_on_payment_attempt"])?;
    let _ = params.one_of("billing_cycle_anchor[type]", &["now"])?;
    let _ = params.one_of("proration_behavior", &["create_prorations", "none"])?;
    let expand = Expand::from_params(params, "subscription")?;
    params.finish()?;
    let subscription = changeable(world, id)?;
    if subscription.status != Status::Paused {
        return Err(ApiError::invalid(format!(
            "Only a paused subscription can be resumed; this one is {}.",
            subscription.status.name()
        )));
    }
    if !has_payment_method(world, subscription) {
        return Err(ApiError {
            code: Some("resource_missing"),
            ..ApiError::invalid("This customer has no attached payment source or default payment method.")
        });
    }
    let now = world.now(subscription.clock.as_deref());
    let period_end = boundary(now, subscription.interval, subscription.interval_count);
    let mut lines = subscription.pending.clone();
    for item in &subscription.items {
        if let Some(price) = world.prices.get(&item.price)
            && price.meter.is_none()
        {
            lines.push(licensed_line(price, item, now, period_end));
        }
    }
    let draft = Draft {
        subscription: id.to_owned(),
        billing_reason: "subscription_update",
        lines,
        period: (now, now),
        finalises_itself: false,
    };
    let invoice = invoices::create_draft(world, draft);
    change(world, id, |subscription| {
        subscription.status = Status::Active;
        subscription.paused = None;
        subscription.anchor = now;
        subscription.cycle = 1;
        subscription.period_start = now;
        subscription.period_end = period_end;
        subscription.pending.clear();
        subscription.latest_invoice.clone_from(&invoice);
        for item in &mut subscription.items {
            item.usage_from = now;
        }
    });
    tell(world, id, "customer.subscription.resumed");
    if let Some(invoice) = invoice {
        invoices::finalise_and_charge(world, &invoice);
    }
    rendered(world, id, &expand)
}
