//! Charges of invoices, what maps them to their invoices, and refunds.
//!
//! Sources: SDK types `Charge`, `InvoicePayment`, `Refund` and their parameter types; "Refund and cancel payments"; the change
//! of 2025-03-31.basil by which a charge no longer names its invoice: an invoice's payments name the payment intent, and so does
//! the charge.

use serde_json::{Value, json};

use crate::error::{ApiError, Reply};
use crate::events;
use crate::expand::Expand;
use crate::form::Params;
use crate::payment_methods::Kind;
use crate::world::{Page, Texts, World, nested_list, new_id};

/// What a charge came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// The money is there.
    Succeeded,
    /// A bank has still to say.
    Pending,
    /// It was declined.
    Failed,
}

impl Status {
    fn name(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Pending => "pending",
            Self::Failed => "failed",
        }
    }
}

/// One attempt to collect an invoice from a payment method.
#[derive(Clone, Debug)]
pub(crate) struct Charge {
    id: String,
    created: i64,
    /// Minor units.
    pub(crate) amount: i64,
    /// Minor units given back so far.
    pub(crate) amount_refunded: i64,
    /// Its currency.
    pub(crate) currency: String,
    customer: String,
    /// What maps it to its invoice.
    pub(crate) payment_intent: String,
    payment_method: String,
    kind: Kind,
    /// What it came to.
    pub(crate) status: Status,
    /// Whether the payer's bank ever disputed it.
    pub(crate) disputed: bool,
    /// The test clock of its customer.
    pub(crate) clock: Option<String>,
}

impl Charge {
    /// The charge in Stripe's form. It names no invoice.
    pub(crate) fn render(&self) -> Value {
        let paid = self.status != Status::Failed;
        let failure = (!paid).then_some(match self.kind {
            Kind::Card => "card_declined",
            Kind::BankAccount => "insufficient_funds",
        });
        json!({
            "id": self.id,
            "object": "charge",
            "amount": self.amount,
            "amount_captured": if paid { self.amount } else { 0 },
            "amount_refunded": self.amount_refunded,
            "application": null,
            "application_fee": null,
            "application_fee_amount": null,
            "balance_transaction": null,
            "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null},
            "calculated_statement_descriptor": "SANDBOX",
            "captured": paid,
            "created": self.created,
            "currency": self.currency,
            "customer": self.customer,
            "description": "Subscription",
            "disputed": self.disputed,
            "failure_balance_transaction": null,
            "failure_code": failure,
            "failure_message": failure.map(|_| "The payment was declined."),
            "fraud_details": {},
            "livemode": false,
            "metadata": {},
            "on_behalf_of": null,
            "outcome": null,
            "paid": paid,
            "payment_intent": self.payment_intent,
            "payment_method": self.payment_method,
            "payment_method_details": {"type": self.kind.name()},
            "presentment_details": null,
            "radar_options": {},
            "receipt_email": null,
            "receipt_number": null,
            "receipt_url": null,
            // Whole only. Source: `Charge.refunded`.
            "refunded": self.amount_refunded == self.amount && self.amount > 0,
            "review": null,
            "shipping": null,
            "source": null,
            "source_transfer": null,
            "statement_descriptor": null,
            "statement_descriptor_suffix": null,
            "status": self.status.name(),
            "transfer_data": null,
            "transfer_group": null,
        })
    }
}

/// A refund.
#[derive(Clone, Debug)]
pub(crate) struct Refund {
    id: String,
    created: i64,
    amount: i64,
    charge: String,
    payment_intent: String,
    currency: String,
    reason: Option<String>,
    metadata: Texts,
}

impl Refund {
    /// The refund in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        json!({
            "id": self.id, "object": "refund", "amount": self.amount, "balance_transaction": null, "charge": self.charge,
            "created": self.created, "currency": self.currency, "destination_details": null, "metadata": self.metadata,
            "payment_intent": self.payment_intent, "reason": self.reason, "receipt_number": null,
            "source_transfer_reversal": null, "status": "succeeded", "transfer_reversal": null,
        })
    }
}

/// Records an attempt to collect an invoice, and tells it.
pub(crate) fn record(world: &mut World, invoice: &str, method: &str, status: Status) -> Option<String> {
    let invoice = world.invoices.get(invoice)?;
    let method = world.payment_methods.get(method)?;
    let id = new_id(match method.kind {
        Kind::Card => "ch",
        Kind::BankAccount => "py",
    });
    let charge = Charge {
        id: id.clone(),
        created: world.now(invoice.clock.as_deref()),
        amount: invoice.amount_due(),
        amount_refunded: 0,
        currency: invoice.currency.clone(),
        customer: invoice.customer.clone(),
        payment_intent: invoice.payment_intent.clone()?,
        payment_method: method.id.clone(),
        kind: method.kind,
        status,
        disputed: false,
        clock: invoice.clock.clone(),
    };
    world.charges.insert(&id, charge);
    tell(world, &id, &format!("charge.{}", status.name()), None);
    Some(id)
}

/// The bank has said what a pending charge comes to.
pub(crate) fn complete(world: &mut World, id: &str, succeeded: bool) {
    let status = if succeeded { Status::Succeeded } else { Status::Failed };
    if let Some(charge) = world.charges.get_mut(id) {
        charge.status = status;
    }
    tell(world, id, &format!("charge.{}", status.name()), None);
}

/// Changes a charge, and tells it under `event` with what it was before.
pub(crate) fn change(world: &mut World, id: &str, event: &str, change: impl FnOnce(&mut Charge)) {
    let Some(charge) = world.charges.get_mut(id) else {
        return;
    };
    let before = charge.render();
    change(charge);
    let previous = events::previous_attributes(&before, &charge.render());
    tell(world, id, event, previous);
}

fn tell(world: &mut World, id: &str, event: &str, previous: Option<Value>) {
    if let Some(charge) = world.charges.get(id) {
        let (rendered, clock) = (charge.render(), charge.clock.clone());
        events::emit(world, event, clock.as_deref(), rendered, previous);
    }
}

/// The one payment of an invoice, in Stripe's form; `None` before it is final. Source: SDK type `InvoicePayment`: made when the
/// invoice is finalised, `paid` or `canceled` with it.
pub(crate) fn render_payment(world: &World, invoice: &str) -> Option<Value> {
    let invoice = world.invoices.get(invoice)?;
    let intent = invoice.payment_intent.as_ref()?;
    let (status, paid_at) = invoice.payment_state();
    Some(json!({
        "id": intent.replacen("pi_", "inpay_", 1), "object": "invoice_payment",
        "amount_paid": paid_at.map(|_| invoice.amount_due()), "amount_requested": invoice.amount_due(),
        "created": invoice.finalised_at, "currency": invoice.currency, "invoice": invoice.id, "is_default": true,
        "livemode": false, "payment": {"payment_intent": intent, "type": "payment_intent"}, "status": status,
        "status_transitions": {"canceled_at": null, "paid_at": paid_at},
    }))
}

/// The payments of an invoice, as their expansion shows them.
pub(crate) fn render_payments(world: &World, invoice: &str) -> Value {
    nested_list(&format!("/v1/invoices/{invoice}/payments"), render_payment(world, invoice).into_iter().collect())
}

// ---- The API ----

fn find<'a>(world: &'a World, id: &str) -> Result<&'a Charge, ApiError> {
    world.charges.get(id).ok_or_else(|| ApiError::not_found("charge", id))
}

/// `GET /v1/charges/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "charge")?;
    params.finish()?;
    Ok(expand.apply(world, find(world, id)?.render()))
}

/// `GET /v1/charges`. Source: `ChargeListParams`.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let customer = params.text("customer")?;
    let intent = params.text("payment_intent")?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "charge")?;
    params.finish()?;
    let wanted = |charge: &Charge| {
        customer.as_ref().is_none_or(|customer| charge.customer == *customer)
            && intent.as_ref().is_none_or(|intent| charge.payment_intent == *intent)
            && created.is_none_or(|range| range.contains(charge.created))
    };
    let list = page.cut(&world.charges, "charge", "/v1/charges", wanted, Charge::render)?;
    Ok(expand.apply_to_list(world, list))
}

/// `GET /v1/invoice_payments`. Source: `InvoicePaymentListParams`.
pub(crate) fn list_payments(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let invoice = params.text("invoice")?;
    let status = params.one_of("status", &["open", "paid", "canceled"])?;
    params.finish()?;
    let list = page.cut(
        &world.invoices,
        "invoice_payment",
        "/v1/invoice_payments",
        |other| {
            other.payment_intent.is_some()
                && invoice.as_ref().is_none_or(|invoice| other.id == *invoice)
                && status.as_deref().is_none_or(|status| other.payment_state().0 == status)
        },
        |invoice| render_payment(world, &invoice.id).unwrap_or_default(),
    )?;
    Ok(list)
}

/// `POST /v1/refunds`: of the whole rest unless an amount is given. Source: `RefundCreateParams`; codes `charge_already_refunded`
/// and `charge_disputed`: "Error codes".
pub(crate) fn refund(world: &mut World, params: &mut Params) -> Reply {
    let charge = params.text("charge")?;
    let intent = params.text("payment_intent")?;
    let amount = params.int("amount")?;
    let reason = params.one_of("reason", &["duplicate", "fraudulent", "requested_by_customer"])?;
    let metadata = params.metadata("metadata")?.into_new();
    params.finish()?;
    let charge = match (charge, intent) {
        (Some(id), None) => world.charges.get(&id).ok_or_else(|| ApiError::no_such("charge", "charge", &id))?,
        (None, Some(intent)) => world
            .charges
            .values()
            .rev()
            .find(|charge| charge.payment_intent == intent && charge.status == Status::Succeeded)
            .ok_or_else(|| ApiError::no_such("payment_intent", "payment_intent", &intent))?,
        _ => return Err(ApiError::invalid("One of the following params should be provided: payment_intent or charge.")),
    };
    let (id, left) = (charge.id.clone(), charge.amount - charge.amount_refunded);
    world.check_clock_ready(charge.clock.as_deref())?;
    if charge.status != Status::Succeeded {
        return Err(ApiError::invalid(format!("Charge {id} is not succeeded, and so cannot be refunded.")));
    }
    if charge.disputed {
        return Err(ApiError {
            code: Some("charge_disputed"),
            ..ApiError::invalid(format!("Charge {id} has been charged back; cannot issue a refund."))
        });
    }
    if left == 0 {
        return Err(ApiError {
            code: Some("charge_already_refunded"),
            ..ApiError::invalid(format!("Charge {id} has already been refunded."))
        });
    }
    let amount = amount.unwrap_or(left);
    if !(1..=left).contains(&amount) {
        return Err(ApiError::invalid_param(
            "amount",
            format!("Refund amount ({amount}) is not between 1 and the unrefunded amount on charge ({left})."),
        ));
    }
    let (now, clock) = (world.now(charge.clock.as_deref()), charge.clock.clone());
    let refund = Refund {
        id: new_id("re"),
        created: now,
        amount,
        charge: id.clone(),
        payment_intent: charge.payment_intent.clone(),
        currency: charge.currency.clone(),
        reason,
        metadata,
    };
    let rendered = refund.render();
    world.refunds.insert(&refund.id.clone(), refund);
    events::emit(world, "refund.created", clock.as_deref(), rendered.clone(), None);
    change(world, &id, "charge.refunded", |charge| charge.amount_refunded += amount);
    Ok(rendered)
}

/// `GET /v1/refunds/{id}`
pub(crate) fn retrieve_refund(world: &World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    world.refunds.get(id).map(Refund::render).ok_or_else(|| ApiError::not_found("refund", id))
}

/// Control API: the charges of an invoice, newest first, for who does not want to go by its payment intent.
pub(crate) fn of_invoice(world: &World, invoice: &str, params: &mut Params) -> Reply {
    params.finish()?;
    let invoice = world.invoices.get(invoice).ok_or_else(|| ApiError::not_found("invoice", invoice))?;
    let charges: Vec<Value> = world
        .charges
        .values()
        .rev()
        .filter(|charge| invoice.payment_intent.as_ref() == Some(&charge.payment_intent))
        .map(Charge::render)
        .collect();
    Ok(json!({"data": charges}))
}
