//! Invoices of subscriptions: drafts, finalisation, charges, retries.
//!
//! Sources: "How invoices work" (invoice lifecycle), "Automate payment retries", SDK type `Invoice`.

use serde_json::{Value, json};

use crate::calendar::{DAY_SECS, HOUR_SECS};
use crate::clock::{Due, Happening};
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::payment_methods::{self, Outcome};
use crate::subscriptions::CollectionPause;
use crate::world::{Page, Texts, World, nested_list, new_id};
use crate::{charges, customers, events, meters, subscriptions};

/// Where an invoice is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// It can still change.
    Draft,
    /// It is final and to be paid.
    Open,
    /// It is paid.
    Paid,
    /// It was written off; it can still be paid.
    Uncollectible,
    /// It was withdrawn.
    Void,
}

impl Status {
    /// Stripe's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Open => "open",
            Self::Paid => "paid",
            Self::Uncollectible => "uncollectible",
            Self::Void => "void",
        }
    }
}

/// One line of an invoice.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Its id.
    pub(crate) id: String,
    /// The subscription item it bills.
    pub(crate) item: String,
    /// The price of that item at the time.
    pub(crate) price: String,
    /// Units billed.
    pub(crate) quantity: i64,
    /// Minor units of the currency.
    pub(crate) amount: i64,
    /// What the customer reads.
    pub(crate) description: String,
    /// What it is for: `[from, to)`.
    pub(crate) from: i64,
    /// The end of that.
    pub(crate) to: i64,
    /// Whether it corrects a change within a period.
    pub(crate) proration: bool,
    /// Metered lines take their quantity from the meter until the invoice is final.
    pub(crate) metered: bool,
}

impl Line {
    fn render(&self, world: &World, invoice: &str, subscription: &str, currency: &str) -> Value {
        let price = world.prices.get(&self.price);
        json!({
            "id": self.id,
            "object": "line_item",
            "amount": self.amount,
            "currency": currency,
            "description": self.description,
            "discount_amounts": [],
            "discountable": !self.proration,
            "discounts": [],
            "invoice": invoice,
            "livemode": false,
            "metadata": {},
            "parent": {
                "invoice_item_details": null,
                "subscription_item_details": {
                    "invoice_item": null,
                    "proration": self.proration,
                    "proration_details": {"credited_items": null},
                    "subscription": subscription,
                    "subscription_item": self.item,
                },
                "type": "subscription_item_details",
            },
            "period": {"start": self.from, "end": self.to},
            "pretax_credit_amounts": [],
            "pricing": {
                "price_details": {"price": self.price, "product": price.map(|price| &price.product)},
                "type": "price_details",
                "unit_amount_decimal": price.map(crate::prices::Price::unit_amount_decimal),
            },
            "quantity": self.quantity,
            "subtotal": self.amount,
            "taxes": [],
        })
    }
}

/// What an open invoice's payment waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Awaiting {
    /// Nothing is under way.
    Nothing,
    /// The cardholder is to authenticate.
    Authentication {
        /// The card.
        method: String,
    },
    /// A bank is to say whether there is money.
    Debit {
        /// The charge under way.
        charge: String,
        /// When the bank is going to say.
        until: i64,
        /// What it is going to say.
        succeeds: bool,
    },
}

/// An invoice of a subscription.
#[derive(Clone, Debug)]
pub(crate) struct Invoice {
    /// Its id.
    pub(crate) id: String,
    created: i64,
    /// Where it is in its life.
    pub(crate) status: Status,
    /// The subscription it bills.
    pub(crate) subscription: String,
    subscription_metadata: Texts,
    /// Its customer.
    pub(crate) customer: String,
    customer_email: Option<String>,
    /// The test clock of its customer.
    pub(crate) clock: Option<String>,
    billing_reason: &'static str,
    /// Its currency.
    pub(crate) currency: String,
    lines: Vec<Line>,
    /// The lines as they were last rendered, because prices can be renamed later but invoices never change.
    rendered_lines: Vec<Value>,
    period_start: i64,
    period_end: i64,
    number: Option<String>,
    applied_balance: i64,
    amount_paid: i64,
    attempted: bool,
    attempt_count: u32,
    first_failed_at: Option<i64>,
    next_payment_attempt: Option<i64>,
    awaiting: Awaiting,
    /// What its charges name. Source: `Invoice.payments`: made when the invoice is finalised.
    pub(crate) payment_intent: Option<String>,
    auto_advance: bool,
    finalises_at: Option<i64>,
    /// When it became final.
    pub(crate) finalised_at: Option<i64>,
    paid_at: Option<i64>,
    voided_at: Option<i64>,
    uncollectible_at: Option<i64>,
    metadata: Texts,
}

impl Invoice {
    fn total(&self) -> i64 {
        self.lines.iter().map(|line| line.amount).sum()
    }

    /// What is to be paid: a negative total becomes credit, and credit is used up first.
    pub(crate) fn amount_due(&self) -> i64 {
        (self.total() + self.applied_balance).max(0)
    }

    /// When the bank is going to say what became of the debit under way.
    fn debited_until(&self) -> Option<i64> {
        match self.awaiting {
            Awaiting::Debit { until, .. } => Some(until),
            Awaiting::Nothing | Awaiting::Authentication { .. } => None,
        }
    }

    /// The status of its payment, and when that was paid.
    pub(crate) fn payment_state(&self) -> (&'static str, Option<i64>) {
        match self.status {
            Status::Paid => ("paid", self.paid_at),
            Status::Void => ("canceled", None),
            Status::Draft | Status::Open | Status::Uncollectible => ("open", None),
        }
    }

    /// The invoice in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        let total = self.total();
        let due = self.amount_due();
        let url = format!("https://invoice.stripe.com/i/{}", self.id);
        let final_url = self.finalised_at.map(|_| url);
        json!({
            "id": self.id,
            "object": "invoice",
            "account_country": "US",
            "account_name": "Sandbox",
            "account_tax_ids": null,
            "amount_due": due,
            "amount_overpaid": 0,
            "amount_paid": self.amount_paid,
            "amount_remaining": due - self.amount_paid,
            "amount_shipping": 0,
            "application": null,
            "attempt_count": self.attempt_count,
            "attempted": self.attempted,
            "auto_advance": self.auto_advance,
            "automatic_tax": {"disabled_reason": null, "enabled": false, "liability": null, "provider": null, "status": null},
            "automatically_finalizes_at": self.finalises_at,
            "billing_reason": self.billing_reason,
            "collection_method": "charge_automatically",
            "created": self.created,
            "currency": self.currency,
            "custom_fields": null,
            "customer": self.customer,
            "customer_account": null,
            "customer_address": null,
            "customer_email": self.customer_email,
            "customer_name": null,
            "customer_phone": null,
            "customer_shipping": null,
            "customer_tax_exempt": "none",
            "customer_tax_ids": [],
            "default_payment_method": null,
            "default_source": null,
            "default_tax_rates": [],
            "description": null,
            "discounts": [],
            "due_date": null,
            "effective_at": self.finalised_at,
            "ending_balance": self.finalised_at.map(|_| 0),
            "footer": null,
            "from_invoice": null,
            "hosted_invoice_url": final_url,
            "invoice_pdf": final_url.as_ref().map(|url| format!("{url}/pdf")),
            "issuer": {"type": "self"},
            "last_finalization_error": null,
            "latest_revision": null,
            "lines": nested_list(&format!("/v1/invoices/{}/lines", self.id), self.rendered_lines.clone()),
            "livemode": false,
            "metadata": self.metadata,
            "next_payment_attempt": self.next_payment_attempt,
            "number": self.number,
            "on_behalf_of": null,
            "parent": {
                "quote_details": null,
                "subscription_details": {
                    "metadata": self.subscription_metadata,
                    "subscription": self.subscription,
                },
                "type": "subscription_details",
            },
            "payment_settings": {"default_mandate": null, "payment_method_options": null, "payment_method_types": null},
            "period_end": self.period_end,
            "period_start": self.period_start,
            "post_payment_credit_notes_amount": 0,
            "pre_payment_credit_notes_amount": 0,
            "receipt_number": null,
            "rendering": null,
            "shipping_cost": null,
            "shipping_details": null,
            "starting_balance": self.applied_balance,
            "statement_descriptor": null,
            "status": self.status.name(),
            "status_transitions": {
                "finalized_at": self.finalised_at,
                "marked_uncollectible_at": self.uncollectible_at,
                "paid_at": self.paid_at,
                "voided_at": self.voided_at,
            },
            "subtotal": total,
            "subtotal_excluding_tax": total,
            "test_clock": self.clock,
            "threshold_reason": null,
            "total": total,
            "total_discount_amounts": [],
            "total_excluding_tax": total,
            "total_pretax_credit_amounts": [],
            "total_taxes": [],
            "webhooks_delivered_at": self.created,
        })
    }
}

/// What a new invoice is made of.
#[derive(Debug)]
pub(crate) struct Draft {
    /// The subscription it bills.
    pub(crate) subscription: String,
    /// Stripe's `billing_reason`.
    pub(crate) billing_reason: &'static str,
    /// Its lines.
    pub(crate) lines: Vec<Line>,
    /// The period it closes.
    pub(crate) period: (i64, i64),
    /// Whether it finalises by itself an hour later.
    pub(crate) finalises_itself: bool,
}

/// Makes a draft. The caller makes it the latest invoice of its subscription, as part of what it changes there.
///
/// Source: "API and advanced usage" of test clocks: a renewal's invoice is a draft for one hour; "Configure an invoice
/// finalization grace period": one hour by default.
pub(crate) fn create_draft(world: &mut World, draft: Draft) -> Option<String> {
    let subscription = world.subscriptions.get(&draft.subscription)?;
    let customer = world.customers.get(&subscription.customer)?;
    let clock = subscription.clock.clone();
    let now = world.now(clock.as_deref());
    let id = new_id("in");
    let invoice = Invoice {
        id: id.clone(),
        created: now,
        status: Status::Draft,
        subscription: draft.subscription.clone(),
        subscription_metadata: subscription.metadata.clone(),
        customer: subscription.customer.clone(),
        customer_email: customer.email().cloned(),
        clock,
        billing_reason: draft.billing_reason,
        currency: subscription.currency.clone(),
        lines: draft.lines,
        rendered_lines: Vec::new(),
        period_start: draft.period.0,
        period_end: draft.period.1,
        number: None,
        applied_balance: 0,
        amount_paid: 0,
        attempted: false,
        attempt_count: 0,
        first_failed_at: None,
        next_payment_attempt: None,
        awaiting: Awaiting::Nothing,
        payment_intent: None,
        auto_advance: draft.finalises_itself,
        finalises_at: draft.finalises_itself.then_some(now + HOUR_SECS),
        finalised_at: None,
        paid_at: None,
        voided_at: None,
        uncollectible_at: None,
        metadata: Texts::new(),
    };
    world.invoices.insert(&id, invoice);
    refresh_lines(world, &id);
    tell(world, &id, "invoice.created");
    Some(id)
}

/// Takes metered quantities from the meters and renders the lines anew; only drafts are refreshed.
fn refresh_lines(world: &mut World, id: &str) {
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    let mut lines = invoice.lines.clone();
    for line in lines.iter_mut().filter(|line| line.metered) {
        let Some(price) = world.prices.get(&line.price) else {
            continue;
        };
        if let Some(meter) = &price.meter {
            line.quantity = meters::usage(world, meter, &invoice.customer, line.from, line.to);
            line.amount = price.amount(line.quantity);
        }
    }
    let rendered_lines = lines.iter().map(|line| line.render(world, id, &invoice.subscription, &invoice.currency)).collect();
    if let Some(invoice) = world.invoices.get_mut(id) {
        invoice.lines = lines;
        invoice.rendered_lines = rendered_lines;
    }
}

fn tell(world: &mut World, id: &str, event: &str) {
    if let Some(invoice) = world.invoices.get(id) {
        let (rendered, clock) = (invoice.render(), invoice.clock.clone());
        events::emit(world, event, clock.as_deref(), rendered, None);
    }
}

/// Changes an invoice, and tells it under `event` if one is given.
fn change(world: &mut World, id: &str, event: Option<&str>, change: impl FnOnce(&mut Invoice)) {
    if let Some(invoice) = world.invoices.get_mut(id) {
        change(invoice);
    }
    if let Some(event) = event {
        tell(world, id, event);
    }
}

/// The next thing that happens by itself to an invoice of this clock.
pub(crate) fn next_due(world: &World, clock: &str) -> Option<Due> {
    world
        .invoices
        .values()
        .filter(|invoice| invoice.clock.as_deref() == Some(clock))
        .filter_map(|invoice| match (invoice.status, invoice.debited_until()) {
            // A debit under way ends whatever becomes of the subscription.
            (Status::Open, Some(at)) => Some(Due { at, what: Happening::DebitEnds(invoice.id.clone()) }),
            _ if !invoice.auto_advance => None,
            (Status::Draft, _) => Some(Due { at: invoice.finalises_at?, what: Happening::Finalise(invoice.id.clone()) }),
            (Status::Open, None) => Some(Due { at: invoice.next_payment_attempt?, what: Happening::Retry(invoice.id.clone()) }),
            _ => None,
        })
        .min_by_key(|due| due.at)
}

/// Makes a draft final: from now on its usage is what it is. Nothing is charged yet.
pub(crate) fn finalise(world: &mut World, id: &str) {
    refresh_lines(world, id);
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    if invoice.status != Status::Draft {
        return;
    }
    let now = world.now(invoice.clock.as_deref());
    let (customer, total) = (invoice.customer.clone(), invoice.total());
    world.invoice_count += 1;
    let number = format!("SANDBOX-{:04}", world.invoice_count);
    let applied = customers::use_balance(world, &customer, total);
    let payment_intent = new_id("pi");
    change(world, id, Some("invoice.finalized"), |invoice| {
        invoice.status = Status::Open;
        invoice.number = Some(number);
        invoice.applied_balance = applied;
        invoice.payment_intent = (invoice.amount_due() > 0).then_some(payment_intent);
        invoice.finalises_at = None;
        invoice.finalised_at = Some(now);
        invoice.auto_advance = true;
    });
}

/// Makes a draft final and collects it, unless its subscription's collection is paused.
///
/// Source: "Pause payment collection": what becomes of the invoices is the behaviour that was asked for.
pub(crate) fn finalise_and_charge(world: &mut World, id: &str) {
    finalise(world, id);
    let Some(subscription) = world.invoices.get(id).map(|invoice| invoice.subscription.clone()) else {
        return;
    };
    match subscriptions::collection_pause(world, &subscription) {
        None => {
            let method = method_of(world, id);
            let _ = charge(world, id, method.as_deref(), true);
        }
        Some(CollectionPause::KeepAsDraft) => {}
        Some(CollectionPause::MarkUncollectible) => write_off(world, id),
        Some(CollectionPause::Void) => {
            withdraw(world, id);
            subscriptions::invoice_settled(world, &subscription, id);
        }
    }
}

/// The next automatic attempt.
pub(crate) fn retry(world: &mut World, id: &str) {
    let method = method_of(world, id);
    let _ = charge(world, id, method.as_deref(), true);
}

/// Source: "Default payment methods": the subscription's own, then the customer's.
fn method_of(world: &World, id: &str) -> Option<String> {
    let invoice = world.invoices.get(id)?;
    let own = world.subscriptions.get(&invoice.subscription).and_then(|subscription| subscription.default_payment_method.clone());
    own.or_else(|| world.customers.get(&invoice.customer)?.default_payment_method.clone())
}

/// Charges an open invoice; an invoice of nothing is paid without a charge.
fn charge(world: &mut World, id: &str, method: Option<&str>, automatic: bool) -> Result<(), ApiError> {
    let Some(invoice) = world.invoices.get(id) else {
        return Ok(());
    };
    if invoice.amount_due() == 0 {
        settle(world, id);
        return Ok(());
    }
    let outcome = method.and_then(|method| world.payment_methods.get(method)).map(|method| method.outcome);
    let now = world.now(invoice.clock.as_deref());
    let subscription = invoice.subscription.clone();
    // Source: `Invoice.attempt_count`: the first attempt counts, after it only automatic ones.
    let counts = automatic || invoice.attempt_count == 0;
    change(world, id, None, |invoice| {
        invoice.attempted = true;
        invoice.attempt_count += u32::from(counts);
        invoice.awaiting = Awaiting::Nothing;
    });
    let method = method.unwrap_or_default();
    match outcome {
        Some(Outcome::Paid) => {
            charges::record(world, id, method, charges::Status::Succeeded);
            settle(world, id);
            return Ok(());
        }
        Some(Outcome::Debit { succeeds }) => {
            let until = now + world.settings.debit_days * DAY_SECS;
            let charge = charges::record(world, id, method, charges::Status::Pending).unwrap_or_default();
            change(world, id, None, |invoice| {
                invoice.next_payment_attempt = None;
                invoice.awaiting = Awaiting::Debit { charge, until, succeeds };
            });
            subscriptions::payment_processing(world, &subscription);
            return Ok(());
        }
        Some(Outcome::ActionRequired) => {
            let method = method.to_owned();
            change(world, id, None, |invoice| invoice.awaiting = Awaiting::Authentication { method });
        }
        Some(Outcome::Declined) => {
            charges::record(world, id, method, charges::Status::Failed);
        }
        None => {}
    }
    failed(world, id, outcome, counts);
    match outcome.and_then(Outcome::error) {
        Some(error) => Err(error),
        None => Err(ApiError::invalid(
            "There is no `default_payment_method` set on this Customer or Invoice. Please set a `default_payment_method`.",
        )),
    }
}

/// An attempt did not bring the money: when the next one is, what is told, and what it does to the subscription.
fn failed(world: &mut World, id: &str, outcome: Option<Outcome>, counts: bool) {
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    let first_failed_at = invoice.first_failed_at.unwrap_or(world.now(invoice.clock.as_deref()));
    // First invoices are not retried: the subscription expires instead. Source: "Subscription statuses", `incomplete`.
    // Without a payment method there is no retry. Source: "Automate payment retries".
    let retries = invoice.billing_reason != "subscription_create" && outcome.is_some();
    let next = world.settings.next_retry(first_failed_at, invoice.attempt_count).filter(|_| retries && invoice.auto_advance);
    let exhausted = counts && retries && next.is_none();
    let (customer, subscription) = (invoice.customer.clone(), invoice.subscription.clone());
    change(world, id, None, |invoice| {
        invoice.first_failed_at = Some(first_failed_at);
        if counts {
            invoice.next_payment_attempt = next;
        }
    });
    customers::change(world, &customer, |customer| customer.delinquent = true);
    if outcome == Some(Outcome::ActionRequired) {
        tell(world, id, "invoice.payment_action_required");
    }
    tell(world, id, "invoice.payment_failed");
    subscriptions::payment_failed(world, &subscription, exhausted);
}

/// Ends a payment that is under way: the cardholder has authenticated or not, or the bank has said.
fn end_payment(world: &mut World, id: &str, succeeded: bool) {
    let Some(invoice) = world.invoices.get_mut(id) else {
        return;
    };
    match std::mem::replace(&mut invoice.awaiting, Awaiting::Nothing) {
        Awaiting::Nothing => {}
        Awaiting::Authentication { method } => {
            let status = if succeeded { charges::Status::Succeeded } else { charges::Status::Failed };
            charges::record(world, id, &method, status);
            if succeeded {
                settle(world, id);
            } else {
                failed(world, id, Some(Outcome::Declined), false);
            }
        }
        Awaiting::Debit { charge, .. } => {
            charges::complete(world, &charge, succeeded);
            if succeeded {
                settle(world, id);
            } else {
                failed(world, id, Some(Outcome::Declined), true);
            }
        }
    }
}

/// A bank says what a debit came to.
pub(crate) fn debit_ends(world: &mut World, id: &str) {
    let said = world.invoices.get(id).and_then(|invoice| match invoice.awaiting {
        Awaiting::Debit { succeeds, .. } => Some(succeeds),
        _ => None,
    });
    if let Some(succeeds) = said {
        end_payment(world, id, succeeds);
    }
}

/// Control API: the cardholder authenticates (`outcome=succeeded`) or fails to, or the bank says so of a debit, now.
pub(crate) fn end_payment_by_order(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let outcome = params.one_of("outcome", &["succeeded", "failed"])?.ok_or_else(|| ApiError::missing("outcome"))?;
    params.finish()?;
    let invoice = changeable(world, id)?;
    if invoice.status != Status::Open || invoice.awaiting == Awaiting::Nothing {
        return Err(ApiError::invalid("No payment of this invoice is under way."));
    }
    end_payment(world, id, outcome == "succeeded");
    rendered(world, id, &Expand::default())
}

/// The money is there.
fn settle(world: &mut World, id: &str) {
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    let now = world.now(invoice.clock.as_deref());
    let (customer, subscription) = (invoice.customer.clone(), invoice.subscription.clone());
    change(world, id, Some("invoice.paid"), |invoice| {
        invoice.status = Status::Paid;
        invoice.attempted = true;
        invoice.amount_paid = invoice.amount_due();
        invoice.next_payment_attempt = None;
        invoice.awaiting = Awaiting::Nothing;
        invoice.auto_advance = false;
        invoice.paid_at = Some(now);
    });
    tell(world, id, "invoice.payment_succeeded");
    customers::change(world, &customer, |customer| customer.delinquent = false);
    subscriptions::invoice_settled(world, &subscription, id);
}

/// Stops the automatic collection of a subscription's final invoices. Source: API reference, "Cancel a subscription".
pub(crate) fn stop_collecting(world: &mut World, subscription: &str) {
    let open: Vec<String> = world
        .invoices
        .iter()
        .filter(|(_, invoice)| invoice.subscription == subscription && invoice.status == Status::Open)
        .map(|(id, _)| id.to_owned())
        .collect();
    for id in open {
        change(world, &id, None, |invoice| {
            invoice.auto_advance = false;
            invoice.next_payment_attempt = None;
        });
    }
}

/// The newest final invoice of a subscription.
pub(crate) fn latest_final<'a>(world: &'a World, subscription: &str) -> Option<&'a Invoice> {
    world.invoices.values().rev().find(|invoice| invoice.subscription == subscription && invoice.status != Status::Draft)
}

/// Withdraws an open invoice.
pub(crate) fn withdraw(world: &mut World, id: &str) {
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    let now = world.now(invoice.clock.as_deref());
    change(world, id, Some("invoice.voided"), |invoice| {
        invoice.status = Status::Void;
        invoice.next_payment_attempt = None;
        invoice.awaiting = Awaiting::Nothing;
        invoice.auto_advance = false;
        invoice.voided_at = Some(now);
    });
}

fn rendered(world: &World, id: &str, expand: &Expand) -> Reply {
    let invoice = world.invoices.get(id).ok_or_else(|| ApiError::not_found("invoice", id))?;
    Ok(expand.apply(world, invoice.render()))
}

/// `GET /v1/invoices/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "invoice")?;
    params.finish()?;
    rendered(world, id, &expand)
}

/// `GET /v1/invoices`. Source: `InvoiceListParams`.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let customer = params.text("customer")?;
    let subscription = params.text("subscription")?;
    let status = params.one_of("status", &["draft", "open", "paid", "uncollectible", "void"])?;
    let method = params.one_of("collection_method", &["charge_automatically", "send_invoice"])?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "invoice")?;
    params.finish()?;
    if let Some(customer) = &customer {
        customers::known(world, customer, "customer")?;
    }
    let list = page.cut(
        &world.invoices,
        "invoice",
        "/v1/invoices",
        |invoice| {
            customer.as_ref().is_none_or(|customer| invoice.customer == *customer)
                && subscription.as_ref().is_none_or(|subscription| invoice.subscription == *subscription)
                && status.as_deref().is_none_or(|status| invoice.status.name() == status)
                && method.as_deref().is_none_or(|method| method == "charge_automatically")
                && created.is_none_or(|range| range.contains(invoice.created))
        },
        Invoice::render,
    )?;
    Ok(expand.apply_to_list(world, list))
}

/// An invoice that a request wants to change.
fn changeable<'a>(world: &'a World, id: &str) -> Result<&'a Invoice, ApiError> {
    let invoice = world.invoices.get(id).ok_or_else(|| ApiError::not_found("invoice", id))?;
    world.check_clock_ready(invoice.clock.as_deref())?;
    Ok(invoice)
}

/// An invoice that a request wants to settle: not while a bank is being asked.
fn settled_by_hand<'a>(world: &'a World, id: &str) -> Result<&'a Invoice, ApiError> {
    let invoice = changeable(world, id)?;
    match invoice.awaiting {
        Awaiting::Debit { .. } => Err(ApiError::invalid("This invoice has a payment that is being processed.")),
        Awaiting::Nothing | Awaiting::Authentication { .. } => Ok(invoice),
    }
}

/// `POST /v1/invoices/{id}/pay`
pub(crate) fn pay(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let method = params.text("payment_method")?;
    let out_of_band = params.boolean("paid_out_of_band")?.unwrap_or(false);
    let _ = params.boolean("off_session")?;
    let expand = Expand::from_params(params, "invoice")?;
    params.finish()?;
    let invoice = settled_by_hand(world, id)?;
    match invoice.status {
        Status::Paid => return Err(ApiError::invalid("Invoice is already paid")),
        Status::Void => {
            return Err(ApiError::invalid("You can only pay open or uncollectible invoices. This invoice is void."));
        }
        Status::Draft | Status::Open | Status::Uncollectible => {}
    }
    if let Some(method) = &method {
        payment_methods::check_attached(world, method, &invoice.customer, "payment_method")?;
    }
    let method = method.or_else(|| method_of(world, id));
    if method.is_none() && invoice.amount_due() > 0 && !out_of_band {
        return Err(ApiError {
            code: Some("resource_missing"),
            ..ApiError::invalid(
                "There is no `default_payment_method` set on this Customer or Invoice. Please set a `default_payment_method`.",
            )
        });
    }
    finalise(world, id);
    if out_of_band {
        settle(world, id);
    } else {
        charge(world, id, method.as_deref(), false)?;
    }
    rendered(world, id, &expand)
}

/// `POST /v1/invoices/{id}/finalize`: with automatic collection on, the charge follows at once.
pub(crate) fn finalise_by_request(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let auto_advance = params.boolean("auto_advance")?.unwrap_or(true);
    let expand = Expand::from_params(params, "invoice")?;
    params.finish()?;
    let invoice = changeable(world, id)?;
    if invoice.status != Status::Draft {
        return Err(ApiError::invalid("This invoice is already finalized, you can't re-finalize a non-draft invoice."));
    }
    if auto_advance {
        finalise_and_charge(world, id);
    } else {
        finalise(world, id);
        change(world, id, None, |invoice| invoice.auto_advance = false);
    }
    rendered(world, id, &expand)
}

/// `POST /v1/invoices/{id}/void`
pub(crate) fn void(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "invoice")?;
    params.finish()?;
    let invoice = settled_by_hand(world, id)?;
    if !matches!(invoice.status, Status::Open | Status::Uncollectible) {
        return Err(ApiError::invalid(format!(
            "You can only void open or uncollectible invoices. This invoice is {}.",
            invoice.status.name()
        )));
    }
    let subscription = invoice.subscription.clone();
    withdraw(world, id);
    subscriptions::invoice_settled(world, &subscription, id);
    rendered(world, id, &expand)
}

/// Writes an open invoice off. It can still be paid.
fn write_off(world: &mut World, id: &str) {
    let Some(invoice) = world.invoices.get(id) else {
        return;
    };
    let now = world.now(invoice.clock.as_deref());
    let subscription = invoice.subscription.clone();
    change(world, id, Some("invoice.marked_uncollectible"), |invoice| {
        invoice.status = Status::Uncollectible;
        invoice.next_payment_attempt = None;
        invoice.awaiting = Awaiting::Nothing;
        invoice.auto_advance = false;
        invoice.uncollectible_at = Some(now);
    });
    subscriptions::invoice_settled(world, &subscription, id);
}

/// `POST /v1/invoices/{id}/mark_uncollectible`
pub(crate) fn mark_uncollectible(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "invoice")?;
    params.finish()?;
    let invoice = settled_by_hand(world, id)?;
    if invoice.status != Status::Open {
        return Err(ApiError::invalid(format!(
            "You can only mark open invoices as uncollectible. This invoice is {}.",
            invoice.status.name()
        )));
    }
    write_off(world, id);
    rendered(world, id, &expand)
}

/// The days after the first failed attempt on which Stripe tries again; a stand-in for Smart Retries, whose times are not
/// published.
pub(crate) const RETRY_DAYS: [i64; 3] = [3, 5, 7];

/// The time of the attempt after `attempts` attempts.
pub(crate) fn retry_time(days: &[i64], first_attempt_at: i64, attempts: u32) -> Option<i64> {
    let done = usize::try_from(attempts.checked_sub(1)?).ok()?;
    Some(first_attempt_at + days.get(done)? * DAY_SECS)
}
