//! Prices: recurring, licensed or metered by a billing meter. Source: SDK type `Price` and its parameter types.

use serde_json::{Value, json};

use crate::calendar::Interval;
use crate::error::{ApiError, Reply};
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Page, Texts, World, new_id};
use crate::{events, products};

/// An amount of money per unit, in 10⁻¹² of the currency's minor unit, so that it is exact.
/// Source: `PriceCreateParams.unit_amount_decimal`: at most 12 decimal places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UnitAmount(i128);

const SCALE: i128 = 1_000_000_000_000;

impl UnitAmount {
    fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 12 || whole.len() > 12 {
            return None;
        }
        let fraction: i128 = format!("{fraction:0<12}").parse().ok()?;
        Some(Self(whole.parse::<i128>().ok()? * SCALE + fraction))
    }

    fn whole(self) -> Option<i128> {
        (self.0 % SCALE == 0).then_some(self.0 / SCALE)
    }

    fn decimal(self) -> String {
        let fraction = format!("{:012}", self.0 % SCALE);
        let fraction = fraction.trim_end_matches('0');
        let whole = self.0 / SCALE;
        if fraction.is_empty() { whole.to_string() } else { format!("{whole}.{fraction}") }
    }

    /// The price of a quantity in minor units, half a unit rounded up; a negative quantity costs nothing.
    /// Source: "Record usage for billing": a negative total of a period is billed as 0.
    fn times(self, quantity: i64) -> i64 {
        let exact = i128::from(quantity.max(0)) * self.0;
        i64::try_from((exact + SCALE / 2) / SCALE).unwrap_or(i64::MAX)
    }
}

/// A recurring price.
#[derive(Clone, Debug)]
pub(crate) struct Price {
    /// Its id.
    pub(crate) id: String,
    created: i64,
    active: bool,
    /// Its currency.
    pub(crate) currency: String,
    /// The product it is a price of.
    pub(crate) product: String,
    nickname: Option<String>,
    lookup_key: Option<String>,
    metadata: Texts,
    unit_amount: UnitAmount,
    /// How often it is billed.
    pub(crate) interval: Interval,
    /// Every how many intervals.
    pub(crate) interval_count: i64,
    /// The meter whose usage is billed; licensed prices have none.
    pub(crate) meter: Option<String>,
    transform: Option<(i64, bool)>,
}

impl Price {
    /// The price in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        json!({
            "id": self.id,
            "object": "price",
            "active": self.active,
            "billing_scheme": "per_unit",
            "created": self.created,
            "currency": self.currency,
            "custom_unit_amount": null,
            "livemode": false,
            "lookup_key": self.lookup_key,
            "metadata": self.metadata,
            "nickname": self.nickname,
            "product": self.product,
            "recurring": {
                "interval": self.interval.name(),
                "interval_count": self.interval_count,
                "meter": self.meter,
                "trial_period_days": null,
                "usage_type": self.usage_type(),
            },
            "tax_behavior": "unspecified",
            "tiers_mode": null,
            "transform_quantity": self.transform.map(|(divide_by, up)| json!({
                "divide_by": divide_by, "round": if up { "up" } else { "down" },
            })),
            "type": "recurring",
            "unit_amount": self.unit_amount.whole().and_then(|whole| i64::try_from(whole).ok()),
            "unit_amount_decimal": self.unit_amount.decimal(),
        })
    }

    /// The legacy `plan` that subscription items still carry. Source: SDK type `SubscriptionItem.plan`.
    pub(crate) fn render_plan(&self) -> Value {
        json!({
            "id": self.id, "object": "plan", "active": self.active,
            "amount": self.unit_amount.whole().and_then(|whole| i64::try_from(whole).ok()),
            "amount_decimal": self.unit_amount.decimal(), "billing_scheme": "per_unit", "created": self.created,
            "currency": self.currency, "interval": self.interval.name(), "interval_count": self.interval_count,
            "livemode": false, "metadata": self.metadata, "meter": self.meter, "nickname": self.nickname,
            "product": self.product, "tiers_mode": null, "transform_usage": null, "trial_period_days": null,
            "usage_type": self.usage_type(),
        })
    }

    fn usage_type(&self) -> &'static str {
        if self.meter.is_some() { "metered" } else { "licensed" }
    }

    /// The price of a quantity in minor units.
    pub(crate) fn amount(&self, quantity: i64) -> i64 {
        let packs = match self.transform {
            None => quantity,
            Some((divide_by, up)) => {
                let quantity = quantity.max(0);
                let spare = i64::from(up && quantity % divide_by != 0);
                quantity / divide_by + spare
            }
        };
        self.unit_amount.times(packs)
    }

    /// The price of one unit, as invoices show it.
    pub(crate) fn unit_amount_decimal(&self) -> String {
        self.unit_amount.decimal()
    }

    /// What an invoice calls it.
    pub(crate) fn label(&self) -> &str {
        self.nickname.as_deref().or(self.lookup_key.as_deref()).unwrap_or(&self.product)
    }
}

/// A price that can be sold, named by a parameter.
pub(crate) fn sellable<'a>(world: &'a World, id: &str, param: &str) -> Result<&'a Price, ApiError> {
    let price = world.prices.get(id).ok_or_else(|| ApiError::no_such("price", param, id))?;
    if !price.active {
        return Err(ApiError::invalid_param(param, "The price specified is inactive. This field only accepts active prices."));
    }
    Ok(price)
}

fn read_recurring(world: &World, params: &mut Params) -> Result<(Interval, i64, Option<String>), ApiError> {
    let interval = params.required("recurring[interval]")?;
    let interval = Interval::parse(&interval).ok_or_else(|| {
        ApiError::invalid_param("recurring[interval]", "Invalid recurring[interval]: must be one of day, week, month, or year")
    })?;
    let interval_count = params.int("recurring[interval_count]")?.unwrap_or(1);
    if !(1..=36).contains(&interval_count) {
        return Err(ApiError::invalid_param("recurring[interval_count]", "A price's interval can be at most three years."));
    }
    let usage_type = params.one_of("recurring[usage_type]", &["licensed", "metered"])?;
    let meter = params.text("recurring[meter]")?;
    match (usage_type.as_deref(), &meter) {
        // Source: changelog 2025-03-31.basil, "Removes legacy usage-based billing": metered prices need a meter.
        (Some("metered"), None) => {
            return Err(ApiError::invalid_param(
                "recurring[meter]",
                "Metered prices must be backed by meters: recurring[meter] is required.",
            ));
        }
        (Some("metered"), Some(id)) => {
            let meter = world.meters.get(id).ok_or_else(|| ApiError::no_such("meter", "recurring[meter]", id))?;
            if !meter.active {
                return Err(ApiError::invalid_param("recurring[meter]", "The meter is inactive."));
            }
        }
        (_, Some(_)) => {
            return Err(ApiError::invalid_param(
                "recurring[meter]",
                "A meter can only be given together with recurring[usage_type]=metered.",
            ));
        }
        (_, None) => {}
    }
    Ok((interval, interval_count, meter))
}

/// Takes a lookup key for a new owner. Source: `PriceCreateParams.transfer_lookup_key`; a key is unique among prices.
fn claim_lookup_key(world: &mut World, key: &str, transfer: bool) -> Result<(), ApiError> {
    let holder = world.prices.values().find(|price| price.lookup_key.as_deref() == Some(key)).map(|price| price.id.clone());
    let Some(holder) = holder else {
        return Ok(());
    };
    if !transfer {
        return Err(ApiError {
            code: Some("resource_already_exists"),
            ..ApiError::invalid_param("lookup_key", format!("A price ({holder}) already uses that lookup key."))
        });
    }
    change(world, &holder, |price| price.lookup_key = None);
    Ok(())
}

fn change(world: &mut World, id: &str, change: impl FnOnce(&mut Price)) {
    let Some(price) = world.prices.get_mut(id) else {
        return;
    };
    let before = price.render();
    change(price);
    let after = price.render();
    if let Some(previous) = events::previous_attributes(&before, &after) {
        events::emit(world, "price.updated", None, after, Some(previous));
    }
}

/// `POST /v1/prices`: recurring prices per unit only; tiers and one-time prices are refused.
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let currency = params.required("currency")?;
    let (interval, interval_count, meter) = read_recurring(world, params)?;
    let unit_amount = params.int("unit_amount")?;
    let decimal = params.text("unit_amount_decimal")?;
    let text = match (unit_amount, decimal) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid_param(
                "unit_amount",
                "You may only specify one of these parameters: unit_amount, unit_amount_decimal.",
            ));
        }
        (Some(amount), None) => amount.to_string(),
        (None, Some(decimal)) => decimal,
        (None, None) => return Err(ApiError::missing("unit_amount")),
    };
    let unit_amount =
        UnitAmount::parse(&text).ok_or_else(|| ApiError::invalid_param("unit_amount", format!("Invalid amount: {text}")))?;
    let transform = match params.int("transform_quantity[divide_by]")? {
        None => None,
        Some(divide_by) if divide_by > 0 => {
            let round = params
                .one_of("transform_quantity[round]", &["up", "down"])?
                .ok_or_else(|| ApiError::missing("transform_quantity[round]"))?;
            Some((divide_by, round == "up"))
        }
        Some(divide_by) => {
            return Err(ApiError::invalid_param("transform_quantity[divide_by]", format!("Invalid divisor: {divide_by}")));
        }
    };
    let product = params.text("product")?;
    let product_name = params.text("product_data[name]")?;
    let product_metadata = params.metadata("product_data[metadata]")?.into_new();
    let nickname = params.text("nickname")?;
    let lookup_key = params.text("lookup_key")?;
    let transfer = params.boolean("transfer_lookup_key")?.unwrap_or(false);
    let active = params.boolean("active")?.unwrap_or(true);
    let metadata = params.metadata("metadata")?.into_new();
    let _ = params.one_of("billing_scheme", &["per_unit"])?;
    let expand = Expand::from_params(params, "price")?;
    params.finish()?;
    if currency.len() != 3 || !currency.bytes().all(|b| b.is_ascii_lowercase()) {
        return Err(ApiError::invalid_param(
            "currency",
            format!("Invalid currency: {currency}. Use a three-letter ISO code in lower case."),
        ));
    }
    if lookup_key.as_ref().is_some_and(|key| key.len() > 200) {
        return Err(ApiError::invalid_param("lookup_key", "A lookup key can have at most 200 characters."));
    }
    match (&product, &product_name) {
        (Some(id), None) => {
            if world.products.get(id).is_none_or(|product| !product.active) {
                return Err(ApiError::no_such("product", "product", id));
            }
        }
        (None, Some(_)) => {}
        _ => {
            return Err(ApiError::invalid_param(
                "product",
                "You must specify either product or product_data when creating a price.",
            ));
        }
    }
    if let Some(key) = &lookup_key {
        claim_lookup_key(world, key, transfer)?;
    }
    let product = match (product, product_name) {
        (Some(product), _) => product,
        (None, name) => products::insert(world, None, name.unwrap_or_default(), None, product_metadata),
    };
    let id = new_id("price");
    let price = Price {
        id: id.clone(),
        created: world.wall_secs,
        active,
        currency,
        product,
        nickname,
        lookup_key,
        metadata,
        unit_amount,
        interval,
        interval_count,
        meter,
        transform,
    };
    let rendered = price.render();
    world.prices.insert(&id, price);
    events::emit(world, "price.created", None, rendered.clone(), None);
    Ok(expand.apply(world, rendered))
}

/// `GET /v1/prices/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let expand = Expand::from_params(params, "price")?;
    params.finish()?;
    let price = world.prices.get(id).ok_or_else(|| ApiError::not_found("price", id))?;
    Ok(expand.apply(world, price.render()))
}

/// `POST /v1/prices/{id}`: what a price costs never changes.
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let active = params.boolean("active")?;
    let nickname = params.unsettable("nickname");
    let lookup_key = params.unsettable("lookup_key");
    let transfer = params.boolean("transfer_lookup_key")?.unwrap_or(false);
    let metadata = params.metadata("metadata")?;
    let expand = Expand::from_params(params, "price")?;
    params.finish()?;
    let holds = world.prices.get(id).ok_or_else(|| ApiError::not_found("price", id))?.lookup_key.clone();
    if let Some(Some(key)) = &lookup_key
        && Some(key) != holds.as_ref()
    {
        claim_lookup_key(world, key, transfer)?;
    }
    change(world, id, |price| {
        price.active = active.unwrap_or(price.active);
        if let Some(nickname) = nickname {
            price.nickname = nickname;
        }
        if let Some(lookup_key) = lookup_key {
            price.lookup_key = lookup_key;
        }
        metadata.apply(&mut price.metadata);
    });
    let price = world.prices.get(id).ok_or_else(|| ApiError::not_found("price", id))?;
    Ok(expand.apply(world, price.render()))
}

/// `GET /v1/prices`: without `active` only those that are. Source: "Returns a list of your active prices … For the list of inactive
/// prices, set active to false"; `PriceListParams`; at most 10 lookup keys.
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let active = params.boolean("active")?.unwrap_or(true);
    let lookup_keys = params.texts("lookup_keys")?;
    let product = params.text("product")?;
    let currency = params.text("currency")?;
    let kind = params.one_of("type", &["one_time", "recurring"])?;
    let expand = Expand::from_list_params(params, "price")?;
    params.finish()?;
    if lookup_keys.len() > 10 {
        return Err(ApiError::invalid_param("lookup_keys", "You may pass at most 10 lookup keys."));
    }
    let list = page.cut(
        &world.prices,
        "price",
        "/v1/prices",
        |price| {
            price.active == active
                && (lookup_keys.is_empty() || price.lookup_key.as_ref().is_some_and(|key| lookup_keys.contains(key)))
                && product.as_ref().is_none_or(|product| price.product == *product)
                && currency.as_ref().is_none_or(|currency| price.currency == *currency)
                && kind.as_deref().is_none_or(|kind| kind == "recurring")
        },
        Price::render,
    )?;
    Ok(expand.apply_to_list(world, list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_a_minor_unit_are_exact_and_round_half_up() {
        let price = UnitAmount::parse("0.0002").unwrap();
        assert_eq!(price.times(1_000_000), 200);
        assert_eq!(price.times(2_500), 1, "0.5 rounds up");
        assert_eq!(price.times(2_499), 0);
        assert_eq!(price.times(-5), 0, "a negative total is billed as nothing");
        assert_eq!(price.decimal(), "0.0002");
        assert_eq!(UnitAmount::parse("1900").unwrap().decimal(), "1900");
    }

    #[test]
    fn amounts_that_are_no_amounts_are_refused() {
        for text in ["", "-1", "1e3", "0.0000000000001", "1.", ".5", "NaN"] {
            assert!(UnitAmount::parse(text).is_none(), "{text}");
        }
    }
}
