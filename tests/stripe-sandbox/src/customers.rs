//! Customers. Source: SDK type `Customer` and its parameter types.

use serde_json::{Value, json};

use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Page, Texts, World, new_id};
use crate::{clock, events, payment_methods, subscriptions};

/// A customer.
#[derive(Clone, Debug)]
pub(crate) struct Customer {
    id: String,
    created: i64,
    email: Option<String>,
    name: Option<String>,
    description: Option<String>,
    phone: Option<String>,
    metadata: Texts,
    invoice_prefix: String,
    currency: Option<String>,
    /// Minor units; negative is credit.
    balance: i64,
    /// Whether the latest charge of an invoice failed.
    pub(crate) delinquent: bool,
    /// What invoices are charged to unless the subscription has its own.
    pub(crate) default_payment_method: Option<String>,
    /// The test clock the customer lives on.
    pub(crate) clock: Option<String>,
    /// Deleted customers stay, as a stub.
    pub(crate) deleted: bool,
}

impl Customer {
    /// The customer in Stripe's form; of a deleted one only the stub is left.
    pub(crate) fn render(&self) -> Value {
        if self.deleted {
            return json!({"id": self.id, "object": "customer", "deleted": true});
        }
        json!({
            "id": self.id,
            "object": "customer",
            "address": null,
            "balance": self.balance,
            "created": self.created,
            "currency": self.currency,
            "customer_account": null,
            "default_source": null,
            "delinquent": self.delinquent,
            "description": self.description,
            "email": self.email,
            "invoice_prefix": self.invoice_prefix,
            "invoice_settings": {
                "custom_fields": null,
                "default_payment_method": self.default_payment_method,
                "footer": null,
                "rendering_options": null,
            },
            "livemode": false,
            "metadata": self.metadata,
            "name": self.name,
            "next_invoice_sequence": 1,
            "phone": self.phone,
            "preferred_locales": [],
            "shipping": null,
            "tax_exempt": "none",
            "test_clock": self.clock,
        })
    }

    /// The e-mail address, which invoices and sessions repeat.
    pub(crate) fn email(&self) -> Option<&String> {
        self.email.as_ref()
    }
}

/// A customer that is there and not deleted, named by a parameter.
pub(crate) fn live<'a>(world: &'a World, id: &str, param: &str) -> Result<&'a Customer, ApiError> {
    world.customers.get(id).filter(|customer| !customer.deleted).ok_or_else(|| ApiError::no_such("customer", param, id))
}

/// Changes a customer and tells the change, if it was one.
pub(crate) fn change(world: &mut World, id: &str, change: impl FnOnce(&mut Customer)) {
    let Some(customer) = world.customers.get_mut(id) else {
        return;
    };
    let before = customer.render();
    change(customer);
    let after = customer.render();
    let clock = customer.clock.clone();
    if let Some(previous) = events::previous_attributes(&before, &after) {
        events::emit(world, "customer.updated", clock.as_deref(), after, Some(previous));
    }
}

/// Makes a customer of what Checkout knows about its payer.
pub(crate) fn from_checkout(world: &mut World, email: Option<String>) -> String {
    insert(world, email, None, |_| ())
}

fn insert(world: &mut World, email: Option<String>, clock: Option<String>, fill: impl FnOnce(&mut Customer)) -> String {
    let id = new_id("cus");
    let mut customer = Customer {
        id: id.clone(),
        created: world.now(clock.as_deref()),
        email,
        name: None,
        description: None,
        phone: None,
        metadata: Texts::new(),
        invoice_prefix: new_id("p").chars().skip(2).take(8).collect::<String>().to_uppercase(),
        currency: None,
        balance: 0,
        delinquent: false,
        default_payment_method: None,
        clock,
        deleted: false,
    };
    fill(&mut customer);
    let (rendered, clock) = (customer.render(), customer.clock.clone());
    world.customers.insert(&id, customer);
    events::emit(world, "customer.created", clock.as_deref(), rendered, None);
    id
}

/// `POST /v1/customers`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let email = params.text("email")?;
    let name = params.text("name")?;
    let description = params.text("description")?;
    let phone = params.text("phone")?;
    let metadata = params.metadata("metadata")?.into_new();
    let clock = params.text("test_clock")?;
    let method = params.text("payment_method")?;
    let default_method = params.text("invoice_settings[default_payment_method]")?;
    let expand = Expand::from_params(params, "customer")?;
    params.finish()?;
    if let Some(clock) = &clock {
        clock::check_room(world, clock)?;
    }
    if let Some(method) = &method {
        payment_methods::check_token(world, method, "payment_method")?;
        if world.payment_methods.get(method).is_some() {
            return Err(ApiError::invalid_param(
                "payment_method",
                "The payment method you provided has already been attached to a customer.",
            ));
        }
    }
    if default_method.is_some() && default_method != method {
        return Err(ApiError {
            code: Some("resource_missing"),
            ..ApiError::invalid_param(
                "invoice_settings[default_payment_method]",
                "The payment method must be attached to the customer: name it as payment_method, too.",
            )
        });
    }
    let id = insert(world, email, clock, |customer| {
        customer.name = name;
        customer.description = description;
        customer.phone = phone;
        customer.metadata = metadata;
    });
    if let Some(method) = method {
        let attached = payment_methods::attach_to(world, &method, &id, "payment_method")?;
        if default_method.is_some()
            && let Some(customer) = world.customers.get_mut(&id)
        {
            customer.default_payment_method = Some(attached);
        }
    }
    rendered(world, &id, &expand)
}

fn rendered(world: &World, id: &str, expand: &Expand) -> Reply {
    let customer = world.customers.get(id).ok_or_else(|| ApiError::not_found("customer", id))?;
    Ok(expand.apply(world, customer.render()))
}

/// `GET /v1/customers/{id}`: a deleted customer is answered with its stub and status 200.
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "customer")?;
    params.finish()?;
    rendered(world, id, &expand)
}

/// `POST /v1/customers/{id}`
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let email = params.unsettable("email");
    let name = params.unsettable("name");
    let description = params.unsettable("description");
    let phone = params.unsettable("phone");
    let metadata = params.metadata("metadata")?;
    let default_method = params.unsettable("invoice_settings[default_payment_method]");
    let expand = Expand::from_params(params, "customer")?;
    params.finish()?;
    let customer =
        world.customers.get(id).filter(|customer| !customer.deleted).ok_or_else(|| ApiError::not_found("customer", id))?;
    world.check_clock_ready(customer.clock.as_deref())?;
    if let Some(Some(method)) = &default_method {
        payment_methods::check_attached(world, method, id, "invoice_settings[default_payment_method]")?;
    }
    change(world, id, |customer| {
        for (field, value) in [
            (&mut customer.email, email),
            (&mut customer.name, name),
            (&mut customer.description, description),
            (&mut customer.phone, phone),
            (&mut customer.default_payment_method, default_method),
        ] {
            if let Some(value) = value {
                *field = value;
            }
        }
        metadata.apply(&mut customer.metadata);
    });
    rendered(world, id, &expand)
}

/// Deletes a customer: its subscriptions are cancelled at once. Source: API reference, "Delete a customer".
pub(crate) fn remove(world: &mut World, id: &str) {
    let live: Vec<String> = world
        .subscriptions
        .iter()
        .filter(|(_, subscription)| subscription.customer == id && !subscription.status.is_terminal())
        .map(|(subscription, _)| subscription.to_owned())
        .collect();
    for subscription in live {
        subscriptions::cancel_now(world, &subscription, "cancellation_requested");
    }
    let Some(customer) = world.customers.get_mut(id) else {
        return;
    };
    let rendered = customer.render();
    let clock = customer.clock.clone();
    customer.deleted = true;
    events::emit(world, "customer.deleted", clock.as_deref(), rendered, None);
}

/// `DELETE /v1/customers/{id}`
pub(crate) fn delete(world: &mut World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    let customer =
        world.customers.get(id).filter(|customer| !customer.deleted).ok_or_else(|| ApiError::not_found("customer", id))?;
    world.check_clock_ready(customer.clock.as_deref())?;
    remove(world, id);
    Ok(json!({"id": id, "object": "customer", "deleted": true}))
}

/// `GET /v1/customers`. Source: `CustomerListParams`: customers with test clocks only when their clock is named; the
/// e-mail filter is case-sensitive.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let email = params.text("email")?;
    let clock = params.text("test_clock")?;
    let created = params.time_range("created")?;
    let expand = Expand::from_list_params(params, "customer")?;
    params.finish()?;
    let list = page.cut(
        &world.customers,
        "customer",
        "/v1/customers",
        |customer| {
            !customer.deleted
                && customer.clock == clock
                && (email.is_none() || customer.email == email)
                && created.is_none_or(|range| range.contains(customer.created))
        },
        Customer::render,
    )?;
    Ok(expand.apply_to_list(world, list))
}

/// The currency of a customer is fixed by its first subscription. Source: `Customer.currency`.
pub(crate) fn settle_currency(world: &mut World, id: &str, currency: &str) {
    if let Some(customer) = world.customers.get_mut(id) {
        customer.currency.get_or_insert_with(|| currency.to_owned());
    }
}

/// A customer that is there, deleted or not, named by a parameter.
pub(crate) fn known<'a>(world: &'a World, id: &str, param: &str) -> Result<&'a Customer, ApiError> {
    world.customers.get(id).ok_or_else(|| ApiError::no_such("customer", param, id))
}

/// Applies a customer's credit to an invoice's total, or keeps a negative total as credit; gives what was applied.
/// Source: "Customer credit balance".
pub(crate) fn use_balance(world: &mut World, id: &str, total: i64) -> i64 {
    let Some(customer) = world.customers.get(id) else {
        return 0;
    };
    let applied = if total < 0 { -total } else { customer.balance.max(-total).min(0) };
    change(world, id, |customer| customer.balance -= applied);
    applied
}
