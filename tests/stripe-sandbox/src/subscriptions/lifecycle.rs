//! What happens to a subscription by itself: renewals, trials, planned ends, and what its invoices do to it.

use super::pause::{CollectionPause, MissingPaymentMethod, PauseReason, has_payment_method, pause, resumed_by_payment};
use super::{Status, Subscription, change, licensed_line, metered_line, tell};
use crate::calendar::{DAY_SECS, HOUR_SECS, boundary};
use crate::clock::{Due, Happening};
use crate::control::{AfterRetries, PauseOnFailure};
use crate::invoices::{self, Draft, Line};
use crate::world::World;

/// The next thing that happens by itself to a subscription of this clock.
pub(crate) fn next_due(world: &World, clock: &str) -> Option<Due> {
    world
        .subscriptions
        .values()
        .filter(|subscription| subscription.clock.as_deref() == Some(clock) && !subscription.status.is_terminal())
        .filter_map(|subscription| {
            let id = subscription.id.clone();
            // Source: "Pause payment collection": it resumes by itself at `resumes_at`.
            let resumes_at = subscription.pause_collection.and_then(|(_, resumes_at)| resumes_at);
            let resumes = resumes_at.map(|at| Due { at, what: Happening::ResumeCollection(id.clone()) });
            resumes.into_iter().chain(next_of(subscription)).min_by_key(|due| due.at)
        })
        .min_by_key(|due| due.at)
}

/// The next thing that happens by itself to a subscription that is not over, its collection's pause apart.
fn next_of(subscription: &Subscription) -> Option<Due> {
    let id = subscription.id.clone();
    // Source: "How subscriptions work": 23 hours for the first payment.
    if subscription.status == Status::Incomplete {
        return Some(Due { at: subscription.created + 23 * HOUR_SECS, what: Happening::Expire(id) });
    }
    // Source: event type `customer.subscription.trial_will_end`: three days before the trial's end.
    if let Some(end) = subscription.trialing_until()
        && !subscription.trial_notice_sent
    {
        return Some(Due { at: end - 3 * DAY_SECS, what: Happening::TrialWillEnd(id) });
    }
    match subscription.cancel_at {
        Some(at) if at <= subscription.period_end || subscription.status == Status::Paused => {
            Some(Due { at, what: Happening::Cancel(id) })
        }
        // Source: "Pause subscriptions": a paused one generates no invoices.
        _ if subscription.status == Status::Paused => None,
        _ => Some(Due { at: subscription.period_end, what: Happening::PeriodEnd(id) }),
    }
}

/// Tells that a trial is about to end.
pub(crate) fn trial_will_end(world: &mut World, id: &str) {
    if let Some(subscription) = world.subscriptions.get_mut(id) {
        subscription.trial_notice_sent = true;
    }
    tell(world, id, "customer.subscription.trial_will_end");
}

/// The first payment never came.
pub(crate) fn expire(world: &mut World, id: &str) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let now = world.now(subscription.clock.as_deref());
    let invoice = subscription.latest_invoice.clone();
    if let Some(invoice) = invoice {
        invoices::withdraw(world, &invoice);
    }
    change(world, id, |subscription| {
        subscription.status = Status::IncompleteExpired;
        subscription.ended_at = Some(now);
    });
}

/// A billing period or a trial ends, and the next one begins.
pub(crate) fn renew(world: &mut World, id: &str) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    // Source: `SubscriptionCreateParams.trial_settings`: what a trial that ends without a payment method comes to.
    if subscription.status == Status::Trialing && !has_payment_method(world, subscription) {
        match subscription.missing_payment_method {
            MissingPaymentMethod::CreateInvoice => {}
            MissingPaymentMethod::Pause => return pause(world, id, PauseReason::TrialEndWithoutPaymentMethod),
            MissingPaymentMethod::Cancel => return cancel_now(world, id, "cancellation_requested"),
        }
    }
    let closed = (subscription.period_start, subscription.period_end);
    let cycle = subscription.cycle + 1;
    let next_end = boundary(subscription.anchor, subscription.interval, subscription.interval_count.saturating_mul(cycle));
    // Source: "How subscriptions work", `unpaid`: its invoices stay drafts.
    // Source: "Pause payment collection", `keep_as_draft`.
    let kept = subscription.pause_collection.is_some_and(|(behaviour, _)| behaviour == CollectionPause::KeepAsDraft);
    let finalises_itself = subscription.status != Status::Unpaid && !kept;
    let mut lines = closing_lines(world, subscription);
    for item in &subscription.items {
        if let Some(price) = world.prices.get(&item.price)
            && price.meter.is_none()
        {
            lines.push(licensed_line(price, item, closed.1, next_end));
        }
    }
    let invoice = invoices::create_draft(
        world,
        Draft { subscription: id.to_owned(), billing_reason: "subscription_cycle", lines, period: closed, finalises_itself },
    );
    change(world, id, |subscription| {
        if subscription.status == Status::Trialing {
            subscription.status = Status::Active;
        }
        subscription.period_start = closed.1;
        subscription.period_end = next_end;
        subscription.cycle = cycle;
        subscription.latest_invoice = invoice;
        subscription.pending.clear();
        for item in &mut subscription.items {
            item.usage_from = closed.1;
        }
    });
}

/// What the end of a period bills for it: what is pending, and usage. A trial's usage is free.
fn closing_lines(world: &World, subscription: &Subscription) -> Vec<Line> {
    let mut lines = subscription.pending.clone();
    if subscription.status == Status::Trialing {
        return lines;
    }
    for item in &subscription.items {
        if let Some(price) = world.prices.get(&item.price)
            && price.meter.is_some()
        {
            lines.push(metered_line(price, item, subscription.period_end));
        }
    }
    lines
}

/// A planned cancellation takes effect, with a last invoice for usage.
pub(crate) fn cancel_as_planned(world: &mut World, id: &str) {
    let Some(subscription) = world.subscriptions.get_mut(id) else {
        return;
    };
    if let Some(at) = subscription.cancel_at {
        subscription.period_end = subscription.period_end.min(at);
    }
    finish(world, id, "cancellation_requested", Some(true));
}

/// Cancels at once, without a last invoice.
pub(crate) fn cancel_now(world: &mut World, id: &str, reason: &'static str) {
    finish(world, id, reason, None);
}

/// Ends a subscription. `last_invoice`: none, one that waits its hour (`true`), or one that is collected now (`false`).
pub(super) fn finish(world: &mut World, id: &str, reason: &'static str, last_invoice: Option<bool>) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let now = world.now(subscription.clock.as_deref());
    let period = (subscription.period_start, subscription.period_end.min(now));
    let mut lines = closing_lines(world, subscription);
    for line in lines.iter_mut().filter(|line| line.metered) {
        line.to = line.to.min(now);
    }
    let draft = last_invoice.filter(|_| !lines.is_empty()).and_then(|waits| {
        invoices::create_draft(
            world,
            Draft {
                subscription: id.to_owned(),
                billing_reason: if waits { "subscription_cycle" } else { "manual" },
                lines,
                period,
                finalises_itself: waits,
            },
        )
    });
    if let Some(subscription) = world.subscriptions.get_mut(id) {
        subscription.status = Status::Canceled;
        subscription.paused = None;
        subscription.pause_collection = None;
        subscription.ended_at = Some(now);
        subscription.canceled_at.get_or_insert(now);
        subscription.cancellation_reason.get_or_insert(reason);
        subscription.pending.clear();
        if draft.is_some() {
            subscription.latest_invoice.clone_from(&draft);
        }
    }
    invoices::stop_collecting(world, id);
    if let Some(draft) = draft
        && last_invoice == Some(false)
    {
        invoices::finalise_and_charge(world, &draft);
    }
    tell(world, id, "customer.subscription.deleted");
}

/// A bank is being asked for one of its invoices: until it says no, all is well.
///
/// Source: "ACH Direct Debit", subscriptions: active while the payment is being processed.
pub(crate) fn payment_processing(world: &mut World, id: &str) {
    change(world, id, |subscription| {
        if subscription.status == Status::Incomplete {
            subscription.status = Status::Active;
        }
    });
}

/// A charge of one of its invoices failed. `exhausted`: no automatic attempt will follow.
pub(crate) fn payment_failed(world: &mut World, id: &str, exhausted: bool) {
    let pauses =
        world.subscriptions.get(id).filter(|subscription| subscription.flexible).map(|_| world.settings.pause_on_failure);
    let ran = |subscription: &Subscription| matches!(subscription.status, Status::Active | Status::Trialing);
    if pauses == Some(PauseOnFailure::First) && world.subscriptions.get(id).is_some_and(ran) {
        return pause(world, id, PauseReason::FirstPaymentFailure);
    }
    change(world, id, |subscription| {
        if ran(subscription) {
            subscription.status = Status::PastDue;
        }
    });
    let overdue = world.subscriptions.get(id).is_some_and(|subscription| subscription.status == Status::PastDue);
    if !exhausted || !overdue {
        return;
    }
    match (pauses, world.settings.pause_on_failure) {
        (Some(PauseOnFailure::Final), _) => return pause(world, id, PauseReason::FinalPaymentFailure),
        // Source: changelog 2026-09-30.endive: where the final pause is impossible it is cancelled.
        (None, PauseOnFailure::Final) => return cancel_now(world, id, "payment_failed"),
        _ => {}
    }
    match world.settings.after_retries {
        AfterRetries::PastDue => {}
        AfterRetries::Unpaid => {
            change(world, id, |subscription| subscription.status = Status::Unpaid);
        }
        AfterRetries::Canceled => cancel_now(world, id, "payment_failed"),
    }
}

/// An invoice of it was paid, withdrawn or written off.
///
/// Source: "How subscriptions work": it is active again once its most recent invoice is settled.
pub(crate) fn invoice_settled(world: &mut World, id: &str, invoice: &str) {
    let Some(subscription) = world.subscriptions.get(id) else {
        return;
    };
    let paid = world.invoices.get(invoice).is_some_and(|invoice| invoice.status == invoices::Status::Paid);
    let latest_settled = invoices::latest_final(world, id).is_some_and(|latest| latest.status != invoices::Status::Open);
    match subscription.status {
        Status::Incomplete if paid => {
            change(world, id, |subscription| subscription.status = Status::Active);
        }
        Status::Incomplete => {
            let now = world.now(subscription.clock.as_deref());
            change(world, id, |subscription| {
                subscription.status = Status::IncompleteExpired;
                subscription.ended_at = Some(now);
            });
        }
        Status::Paused if paid && latest_settled => resumed_by_payment(world, id),
        Status::PastDue | Status::Unpaid if latest_settled => {
            change(world, id, |subscription| subscription.status = Status::Active);
        }
        _ => {}
    }
}
