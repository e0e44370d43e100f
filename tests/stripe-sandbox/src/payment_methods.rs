//! The well-known test payment methods. Source: "Test card numbers" (PaymentMethods tab).

use serde_json::{Value, json};

use crate::error::{ApiError, Reply};
use crate::events;
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Texts, World, new_id};

/// What a charge comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The money is there.
    Paid,
    /// The issuer declined; a later automatic attempt may be made.
    Declined,
    /// The cardholder has to authenticate.
    ActionRequired,
    /// A bank is asked, and says days later whether there is money.
    Debit {
        /// What it is going to say.
        succeeds: bool,
    },
}

/// What a payment method is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A card: charged at once.
    Card,
    /// A bank account: debited within days. Source: "ACH Direct Debit".
    BankAccount,
}

impl Kind {
    /// Stripe's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Card => "card",
            Self::BankAccount => "us_bank_account",
        }
    }
}

impl Outcome {
    /// The error a caller sees if the charge was asked for by a request.
    pub(crate) fn error(self) -> Option<ApiError> {
        match self {
            Self::Paid | Self::Debit { .. } => None,
            Self::Declined => Some(ApiError::card_declined("card_declined", Some("generic_decline"))),
            Self::ActionRequired => Some(ApiError::card_declined("authentication_required", None)),
        }
    }
}

/// A payment method of a customer.
#[derive(Clone, Debug)]
pub(crate) struct PaymentMethod {
    /// Its id.
    pub(crate) id: String,
    created: i64,
    /// What it is.
    pub(crate) kind: Kind,
    brand: &'static str,
    last4: &'static str,
    /// What every charge of it comes to.
    pub(crate) outcome: Outcome,
    /// Its customer, for as long as it is attached.
    pub(crate) customer: Option<String>,
    metadata: Texts,
}

impl PaymentMethod {
    /// The payment method in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        let details = match self.kind {
            Kind::Card => json!({
                "brand": self.brand, "checks": null, "country": "US", "display_brand": self.brand, "exp_month": 12,
                "exp_year": 2034, "fingerprint": null, "funding": "credit", "last4": self.last4, "networks": null,
                "three_d_secure_usage": {"supported": true}, "wallet": null,
            }),
            Kind::BankAccount => json!({
                "account_holder_type": "individual", "account_type": "checking", "bank_name": self.brand,
                "financial_connections_account": null, "fingerprint": null, "last4": self.last4, "networks": null,
                "routing_number": "110000000", "status_details": {},
            }),
        };
        let mut rendered = json!({
            "id": self.id,
            "object": "payment_method",
            "allow_redisplay": "unspecified",
            "billing_details": {"address": null, "email": null, "name": null, "phone": null, "tax_id": null},
            "created": self.created,
            "customer": self.customer,
            "customer_account": null,
            "livemode": false,
            "metadata": self.metadata,
            "type": self.kind.name(),
        });
        if let Some(map) = rendered.as_object_mut() {
            map.insert(self.kind.name().to_owned(), details);
        }
        rendered
    }
}

/// A test token: what it is attached as, and what its charges come to.
fn token(name: &str) -> Option<(&'static str, &'static str, Result<Outcome, ApiError>)> {
    let declined_at_once = || Err(ApiError::card_declined("card_declined", Some("generic_decline")));
    Some(match name {
        "pm_card_visa" => ("visa", "4242", Ok(Outcome::Paid)),
        "pm_card_mastercard" => ("mastercard", "4444", Ok(Outcome::Paid)),
        "pm_card_amex" => ("amex", "8431", Ok(Outcome::Paid)),
        // Attaching succeeds, charging the customer fails.
        "pm_card_chargeCustomerFail" => ("visa", "0341", Ok(Outcome::Declined)),
        "pm_card_authenticationRequired" => ("visa", "3184", Ok(Outcome::ActionRequired)),
        // Bank accounts: taken at once, settled or sent back days later. Source: "ACH Direct Debit", "Test your integration".
        "pm_usBankAccount_success" => ("STRIPE TEST BANK", "6789", Ok(Outcome::Debit { succeeds: true })),
        "pm_usBankAccount_insufficientFunds" => ("STRIPE TEST BANK", "2227", Ok(Outcome::Debit { succeeds: false })),
        "pm_card_visa_chargeDeclined" | "pm_card_chargeDeclined" => ("visa", "0002", declined_at_once()),
        _ => return None,
    })
}

/// Attaches a test token, or an unattached payment method, to a customer; gives the id of what is attached.
pub(crate) fn attach_to(world: &mut World, name: &str, customer: &str, param: &str) -> Result<String, ApiError> {
    let owner = world
        .customers
        .get(customer)
        .filter(|owner| !owner.deleted)
        .ok_or_else(|| ApiError::no_such("customer", "customer", customer))?;
    let clock = owner.clock.clone();
    world.check_clock_ready(clock.as_deref())?;
    if let Some(method) = world.payment_methods.get(name) {
        if method.customer.as_deref() == Some(customer) {
            return Ok(name.to_owned());
        }
        return Err(ApiError::invalid_param(param, "The payment method you provided has already been attached to a customer."));
    }
    let (brand, last4, outcome) = token(name).ok_or_else(|| ApiError::no_such("PaymentMethod", param, name))?;
    let outcome = outcome?;
    let id = new_id("pm");
    let method = PaymentMethod {
        id: id.clone(),
        created: world.now(clock.as_deref()),
        kind: if matches!(outcome, Outcome::Debit { .. }) { Kind::BankAccount } else { Kind::Card },
        brand,
        last4,
        outcome,
        customer: Some(customer.to_owned()),
        metadata: Texts::new(),
    };
    let rendered = method.render();
    world.payment_methods.insert(&id, method);
    events::emit(world, "payment_method.attached", clock.as_deref(), rendered, None);
    Ok(id)
}

/// Whether a token may be attached at all, without attaching it: what must be known before anything is changed.
pub(crate) fn check_token(world: &World, name: &str, param: &str) -> Result<(), ApiError> {
    if world.payment_methods.get(name).is_some() {
        return Ok(());
    }
    match token(name) {
        Some((_, _, Ok(_))) => Ok(()),
        Some((_, _, Err(declined))) => Err(declined),
        None => Err(ApiError::no_such("PaymentMethod", param, name)),
    }
}

/// What charging this test token or payment method would come to.
pub(crate) fn outcome_of(world: &World, name: &str) -> Option<Outcome> {
    match world.payment_methods.get(name) {
        Some(method) => Some(method.outcome),
        None => token(name)?.2.ok(),
    }
}

/// Refuses a payment method that is not attached to the customer.
pub(crate) fn check_attached(world: &World, method: &str, customer: &str, param: &str) -> Result<(), ApiError> {
    let attached = world.payment_methods.get(method).is_some_and(|found| found.customer.as_deref() == Some(customer));
    if attached {
        return Ok(());
    }
    Err(ApiError {
        code: Some("resource_missing"),
        ..ApiError::invalid_param(
            param,
            format!(
                "The customer does not have a payment method with the ID {method}. The payment method must be attached to the customer."
            ),
        )
    })
}

/// `GET /v1/payment_methods/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "payment_method")?;
    params.finish()?;
    let method = world.payment_methods.get(id).ok_or_else(|| ApiError::not_found("PaymentMethod", id))?;
    Ok(expand.apply(world, method.render()))
}

/// `POST /v1/payment_methods/{id}/attach`: a test token becomes a payment method of its own.
pub(crate) fn attach(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let customer = params.required("customer")?;
    let expand = Expand::from_params(params, "payment_method")?;
    params.finish()?;
    let attached = attach_to(world, id, &customer, "payment_method")?;
    let method = world.payment_methods.get(&attached).ok_or_else(|| ApiError::not_found("PaymentMethod", id))?;
    Ok(expand.apply(world, method.render()))
}
