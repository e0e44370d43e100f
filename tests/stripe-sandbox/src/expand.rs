//! `expand[]`: ids replaced by their objects, for the expansions the sandbox supports. Others are refused.
//!
//! Source: API reference, "Expanding responses": at most four levels, `data.` first on lists.

use serde_json::Value;

use crate::error::ApiError;
use crate::form::Params;
use crate::world::{World, nested_list};

/// (type, field path, type of what it expands to)
const EXPANSIONS: &[(&str, &str, &str)] = &[
    ("subscription", "customer", "customer"),
    ("subscription", "latest_invoice", "invoice"),
    ("subscription", "default_payment_method", "payment_method"),
    ("subscription", "test_clock", "test_helpers.test_clock"),
    ("subscription", "items.data.price.product", "product"),
    ("invoice", "customer", "customer"),
    ("invoice", "default_payment_method", "payment_method"),
    ("invoice", "test_clock", "test_helpers.test_clock"),
    ("invoice", "parent.subscription_details.subscription", "subscription"),
    ("invoice", "payments", "list"),
    ("charge", "customer", "customer"),
    ("dispute", "charge", "charge"),
    ("invoice", "lines.data.pricing.price_details.price", "price"),
    ("checkout.session", "customer", "customer"),
    ("checkout.session", "subscription", "subscription"),
    ("checkout.session", "invoice", "invoice"),
    ("checkout.session", "line_items", "list"),
    ("customer", "test_clock", "test_helpers.test_clock"),
    ("customer", "subscriptions", "list"),
    ("customer", "invoice_settings.default_payment_method", "payment_method"),
    ("payment_method", "customer", "customer"),
    ("price", "product", "product"),
];

/// Expansions that were asked for and are supported.
#[derive(Debug, Default)]
pub(crate) struct Expand {
    paths: Vec<Vec<&'static str>>,
}

impl Expand {
    /// Reads `expand` for an object of this type.
    pub(crate) fn from_params(params: &mut Params, object: &str) -> Result<Self, ApiError> {
        Self::read(params, object, false)
    }

    /// Reads `expand` for a list of objects of this type.
    pub(crate) fn from_list_params(params: &mut Params, object: &str) -> Result<Self, ApiError> {
        Self::read(params, object, true)
    }

    fn read(params: &mut Params, object: &str, list: bool) -> Result<Self, ApiError> {
        let mut paths = Vec::new();
        for path in params.texts("expand")? {
            if path.split('.').count() > 4 && !path.contains("data.") {
                return Err(ApiError::invalid_param("expand", "You cannot expand more than 4 levels of a property."));
            }
            let rest = if list { path.strip_prefix("data.") } else { Some(path.as_str()) };
            let steps = rest.and_then(|rest| steps(object, rest)).ok_or_else(|| {
                ApiError::invalid_param(
                    "expand",
                    format!("This property cannot be expanded ({path}). You may want to try expanding another property."),
                )
            })?;
            paths.push(steps);
        }
        Ok(Self { paths })
    }

    /// Expands an object.
    pub(crate) fn apply(&self, world: &World, mut object: Value) -> Value {
        for path in &self.paths {
            expand(world, &mut object, path);
        }
        object
    }

    /// Expands each object of a list.
    pub(crate) fn apply_to_list(&self, world: &World, mut list: Value) -> Value {
        if let Some(Value::Array(data)) = list.get_mut("data") {
            for object in data {
                *object = self.apply(world, object.take());
            }
        }
        list
    }
}

/// Cuts a path into known expansions, each a field path of [`EXPANSIONS`].
fn steps(object: &str, path: &str) -> Option<Vec<&'static str>> {
    EXPANSIONS.iter().find_map(|(kind, field, target)| {
        if *kind != object {
            return None;
        }
        let rest = path.strip_prefix(field)?;
        if rest.is_empty() {
            return Some(vec![*field]);
        }
        let mut steps_after = steps(target, rest.strip_prefix('.')?)?;
        steps_after.insert(0, field);
        Some(steps_after)
    })
}

fn expand(world: &World, object: &mut Value, path: &[&'static str]) {
    let Some((field, rest)) = path.split_first() else {
        return;
    };
    if let Some(included) = include(world, object, field) {
        if let Some(map) = object.as_object_mut() {
            map.insert((*field).to_owned(), included);
        }
        return;
    }
    descend(world, object, field, rest);
}

/// Follows a dotted field path, through lists, and expands what is at its end.
fn descend(world: &World, value: &mut Value, field: &str, rest: &[&'static str]) {
    if let Value::Array(elements) = value {
        for element in elements {
            descend(world, element, field, rest);
        }
        return;
    }
    let (first, tail) = match field.split_once('.') {
        Some((first, tail)) => (first, Some(tail)),
        None => (field, None),
    };
    let Some(inner) = value.get_mut(first) else {
        return;
    };
    if let Some(tail) = tail {
        descend(world, inner, tail, rest);
        return;
    }
    if let Some(found) = inner.as_str().and_then(|id| lookup(world, id)) {
        *inner = found;
    }
    expand(world, inner, rest);
}

/// The object of an id, by its prefix.
fn lookup(world: &World, id: &str) -> Option<Value> {
    let (prefix, _) = id.split_once('_')?;
    match prefix {
        "cus" => Some(world.customers.get(id)?.render()),
        "sub" => Some(world.subscriptions.get(id)?.render(world)),
        "in" => Some(world.invoices.get(id)?.render()),
        "pm" => Some(world.payment_methods.get(id)?.render()),
        "ch" | "py" => Some(world.charges.get(id)?.render()),
        "price" => Some(world.prices.get(id)?.render()),
        "prod" => Some(world.products.get(id)?.render()),
        "clock" => Some(world.clocks.get(id)?.render()),
        _ => None,
    }
}

/// Fields that are only there when they are asked for.
fn include(world: &World, object: &Value, field: &str) -> Option<Value> {
    let id = object.get("id")?.as_str()?;
    match (object.get("object")?.as_str()?, field) {
        ("checkout.session", "line_items") => Some(world.sessions.get(id)?.render_line_items(world)),
        ("invoice", "payments") => Some(crate::charges::render_payments(world, id)),
        ("customer", "subscriptions") => {
            let subscriptions = world
                .subscriptions
                .values()
                .rev()
                .filter(|subscription| subscription.customer == id && !subscription.status.is_terminal())
                .map(|subscription| subscription.render(world))
                .collect();
            Some(nested_list(&format!("/v1/customers/{id}/subscriptions"), subscriptions))
        }
        _ => None,
    }
}
