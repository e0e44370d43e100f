//! Disputes of charges. What a payer's bank does comes from `/_sandbox`.
//!
//! Sources: SDK type `Dispute`; "How disputes work" (inquiries begin with `warning_` and withdraw nothing); event types
//! `charge.dispute.*`.

use serde_json::{Value, json};

use crate::charges;
use crate::error::{ApiError, Reply};
use crate::events;
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Page, World, new_id};

/// The statuses that a dispute does not leave.
const CLOSED: [&str; 4] = ["won", "lost", "warning_closed", "prevented"];
/// The statuses before them: inquiries first.
const OPEN: [&str; 4] = ["warning_needs_response", "warning_under_review", "needs_response", "under_review"];

/// A dispute. It names its charge, and no customer.
#[derive(Clone, Debug)]
pub(crate) struct Dispute {
    id: String,
    created: i64,
    amount: i64,
    charge: String,
    payment_intent: String,
    currency: String,
    reason: String,
    status: &'static str,
    withdrawn: bool,
    clock: Option<String>,
}

impl Dispute {
    /// The dispute in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        json!({
            "id": self.id,
            "object": "dispute",
            "amount": self.amount,
            "balance_transactions": [],
            "charge": self.charge,
            "created": self.created,
            "currency": self.currency,
            "enhanced_eligibility_types": [],
            "evidence": {},
            "evidence_details": {
                "due_by": null, "enhanced_eligibility": {}, "has_evidence": false, "past_due": false, "submission_count": 0,
            },
            "is_charge_refundable": self.is_inquiry(),
            "livemode": false,
            "metadata": {},
            "network_reason_code": null,
            "payment_intent": self.payment_intent,
            "payment_method_details": null,
            "reason": self.reason,
            "status": self.status,
        })
    }

    fn is_inquiry(&self) -> bool {
        self.status.starts_with("warning_")
    }

    fn is_closed(&self) -> bool {
        CLOSED.contains(&self.status)
    }
}

fn tell(world: &mut World, id: &str, event: &str, previous: Option<Value>) {
    if let Some(dispute) = world.disputes.get(id) {
        let (rendered, clock) = (dispute.render(), dispute.clock.clone());
        events::emit(world, event, clock.as_deref(), rendered, previous);
    }
}

/// Moves it to a status, and tells what Stripe tells then.
fn set(world: &mut World, id: &str, status: &'static str) {
    let Some(dispute) = world.disputes.get_mut(id) else {
        return;
    };
    let before = dispute.render();
    dispute.status = status;
    let previous = events::previous_attributes(&before, &dispute.render());
    let event = if dispute.is_closed() { "charge.dispute.closed" } else { "charge.dispute.updated" };
    tell(world, id, event, previous);
    withdraw_or_reinstate(world, id);
}

/// A dispute withdraws the money until it is won; an inquiry does not.
fn withdraw_or_reinstate(world: &mut World, id: &str) {
    let Some(dispute) = world.disputes.get_mut(id) else {
        return;
    };
    let is_due = matches!(dispute.status, "needs_response" | "under_review" | "lost");
    let event = match (dispute.withdrawn, is_due) {
        (false, true) => "charge.dispute.funds_withdrawn",
        (true, false) => "charge.dispute.funds_reinstated",
        _ => return,
    };
    dispute.withdrawn = is_due;
    let charge = dispute.charge.clone();
    if is_due && let Some(charge) = world.charges.get_mut(&charge) {
        charge.disputed = true;
    }
    tell(world, id, event, None);
}

fn read_status(params: &mut Params) -> Result<Option<&'static str>, ApiError> {
    let allowed: Vec<&'static str> = OPEN.into_iter().chain(CLOSED).collect();
    let status = params.one_of("status", &allowed)?;
    Ok(allowed.into_iter().find(|known| status.as_deref() == Some(*known)))
}

/// Control API: the payer's bank disputes a charge, or asks about it (`status=warning_needs_response`).
pub(crate) fn open(world: &mut World, charge_id: &str, params: &mut Params) -> Reply {
    let status = read_status(params)?.unwrap_or("needs_response");
    let amount = params.int("amount")?;
    let reason = params.text("reason")?.unwrap_or_else(|| "fraudulent".to_owned());
    params.finish()?;
    let charge = world.charges.get(charge_id).ok_or_else(|| ApiError::not_found("charge", charge_id))?;
    if charge.status != charges::Status::Succeeded {
        return Err(ApiError::invalid("Only a charge that succeeded can be disputed."));
    }
    if world.disputes.values().any(|dispute| dispute.charge == charge_id) {
        return Err(ApiError::invalid("The sandbox disputes a charge once."));
    }
    let amount = amount.unwrap_or(charge.amount);
    if !(1..=charge.amount).contains(&amount) || CLOSED.contains(&status) {
        return Err(ApiError::invalid("A dispute begins open, and is of the charge's amount at most."));
    }
    let dispute = Dispute {
        id: new_id("du"),
        created: world.now(charge.clock.as_deref()),
        amount,
        charge: charge_id.to_owned(),
        payment_intent: charge.payment_intent.clone(),
        currency: charge.currency.clone(),
        reason,
        status,
        withdrawn: false,
        clock: charge.clock.clone(),
    };
    let id = dispute.id.clone();
    world.disputes.insert(&id, dispute);
    tell(world, &id, "charge.dispute.created", None);
    withdraw_or_reinstate(world, &id);
    rendered(world, &id, &Expand::default())
}

/// Control API: the bank goes on (`status=under_review`, or an inquiry that becomes a dispute) or decides (`status=won`, …).
pub(crate) fn decide(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let status = read_status(params)?.ok_or_else(|| ApiError::missing("status"))?;
    params.finish()?;
    let dispute = world.disputes.get(id).ok_or_else(|| ApiError::not_found("dispute", id))?;
    if dispute.is_closed() || dispute.status == status || (!dispute.is_inquiry() && status.starts_with("warning_")) {
        return Err(ApiError::invalid(format!("A dispute does not go from {} to {status}.", dispute.status)));
    }
    set(world, id, status);
    rendered(world, id, &Expand::default())
}

fn rendered(world: &World, id: &str, expand: &Expand) -> Reply {
    let dispute = world.disputes.get(id).ok_or_else(|| ApiError::not_found("dispute", id))?;
    Ok(expand.apply(world, dispute.render()))
}

/// `GET /v1/disputes/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "dispute")?;
    params.finish()?;
    rendered(world, id, &expand)
}

/// `GET /v1/disputes`. Source: `DisputeListParams`.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let charge = params.text("charge")?;
    let intent = params.text("payment_intent")?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "dispute")?;
    params.finish()?;
    let wanted = |dispute: &Dispute| {
        charge.as_ref().is_none_or(|charge| dispute.charge == *charge)
            && intent.as_ref().is_none_or(|intent| dispute.payment_intent == *intent)
            && created.is_none_or(|range| range.contains(dispute.created))
    };
    let list = page.cut(&world.disputes, "dispute", "/v1/disputes", wanted, Dispute::render)?;
    Ok(expand.apply_to_list(world, list))
}

/// `POST /v1/disputes/{id}/close`: the seller gives in. Source: API reference, "Close a dispute": it is lost.
pub(crate) fn close(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "dispute")?;
    params.finish()?;
    let dispute = world.disputes.get(id).ok_or_else(|| ApiError::not_found("dispute", id))?;
    if dispute.is_closed() {
        return Err(ApiError::invalid("This dispute is already closed"));
    }
    let status = if dispute.is_inquiry() { "warning_closed" } else { "lost" };
    set(world, id, status);
    rendered(world, id, &expand)
}
