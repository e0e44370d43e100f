//! The customer portal: its configurations and sessions.
//!
//! Sources: SDK types `billing_portal.Configuration`, `ConfigurationCreateParams`, `ConfigurationUpdateParams`,
//! `billing_portal.Session` and `SessionCreateParams`; API reference, "Customer portal". The message of a session without a
//! configuration was seen in the field, and so was that the first configuration becomes the default and stays active.

use serde_json::{Value, json};

use crate::error::{ApiError, Reply};
use crate::form::Params;
use crate::world::{Page, Texts, World, new_id};
use crate::{customers, events};

/// What customers may change about themselves. Source: `features.customer_update.allowed_updates`.
const CUSTOMER_UPDATES: [&str; 6] = ["address", "email", "name", "phone", "shipping", "tax_id"];
/// Why customers may say that they cancel. Source: `features.subscription_cancel.cancellation_reason.options`.
const REASONS: [&str; 8] = [
    "customer_service",
    "low_quality",
    "missing_features",
    "other",
    "switched_service",
    "too_complex",
    "too_expensive",
    "unused",
];

/// What the portal offers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Features {
    customer_update: bool,
    allowed_updates: Vec<String>,
    invoice_history: bool,
    payment_method_update: bool,
    cancel: bool,
    cancel_at_once: bool,
    cancel_prorations: bool,
    ask_reason: bool,
    reasons: Vec<String>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            customer_update: false,
            allowed_updates: Vec::new(),
            invoice_history: false,
            payment_method_update: false,
            cancel: false,
            cancel_at_once: false,
            cancel_prorations: false,
            ask_reason: false,
            reasons: ["too_expensive", "missing_features", "switched_service", "unused", "other"].map(str::to_owned).to_vec(),
        }
    }
}

/// A configuration of the portal.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    id: String,
    created: i64,
    updated: i64,
    active: bool,
    is_default: bool,
    name: Option<String>,
    headline: Option<String>,
    privacy_policy_url: Option<String>,
    terms_of_service_url: Option<String>,
    default_return_url: Option<String>,
    login_page: bool,
    metadata: Texts,
    features: Features,
}

impl Configuration {
    fn render(&self) -> Value {
        let features = &self.features;
        json!({
            "id": self.id,
            "object": "billing_portal.configuration",
            "active": self.active,
            "application": null,
            "business_profile": {
                "headline": self.headline, "privacy_policy_url": self.privacy_policy_url,
                "terms_of_service_url": self.terms_of_service_url,
            },
            "created": self.created,
            "default_return_url": self.default_return_url,
            "features": {
                "customer_update": {"allowed_updates": features.allowed_updates, "enabled": features.customer_update},
                "invoice_history": {"enabled": features.invoice_history},
                "payment_method_update": {"enabled": features.payment_method_update, "payment_method_configuration": null},
                "subscription_cancel": {
                    "cancellation_reason": {"enabled": features.ask_reason, "options": features.reasons},
                    "enabled": features.cancel,
                    "mode": if features.cancel_at_once { "immediately" } else { "at_period_end" },
                    "proration_behavior": if features.cancel_prorations { "create_prorations" } else { "none" },
                },
                "subscription_update": {
                    "billing_cycle_anchor": null, "default_allowed_updates": [], "enabled": false,
                    "proration_behavior": "none", "schedule_at_period_end": {"conditions": []},
                    "trial_update_behavior": "end_trial",
                },
            },
            "is_default": self.is_default,
            "livemode": false,
            "login_page": {
                "enabled": self.login_page,
                "url": self.login_page.then(|| format!("https://billing.stripe.com/p/login/{}", self.id)),
            },
            "metadata": self.metadata,
            "name": self.name,
            "updated": self.updated,
        })
    }
}

/// A URL with a scheme; anything else is refused.
fn check_url(param: &str, url: Option<&String>) -> Result<(), ApiError> {
    if url.is_none_or(|url| reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))) {
        return Ok(());
    }
    Err(ApiError { code: Some("url_invalid"), ..ApiError::invalid_param(param, "Not a valid URL") })
}

/// Reads one feature's switch. A new configuration needs it wherever anything of the feature is given.
fn switch(params: &mut Params, feature: &str, new: bool, now: &mut bool) -> Result<(), ApiError> {
    let name = format!("features[{feature}][enabled]");
    match params.boolean(&name)? {
        Some(enabled) => *now = enabled,
        None if new && params.has_below(&format!("features[{feature}]")) => return Err(ApiError::missing(&name)),
        None => {}
    }
    Ok(())
}

/// Reads a list out of fixed words; an empty text empties it.
fn words(params: &mut Params, name: &str, allowed: &[&str], now: &mut Vec<String>) -> Result<(), ApiError> {
    if params.unsettable(name) == Some(None) {
        now.clear();
    }
    let given = params.texts(name)?;
    for (index, word) in given.iter().enumerate() {
        if !allowed.contains(&word.as_str()) {
            let param = format!("{name}[{index}]");
            return Err(ApiError::invalid_param(&param, format!("Invalid {param}: must be one of {}", allowed.join(", "))));
        }
    }
    if !given.is_empty() {
        *now = given;
    }
    Ok(())
}

/// Reads `features` on top of what is there.
fn read_features(params: &mut Params, new: bool, features: &mut Features) -> Result<(), ApiError> {
    switch(params, "customer_update", new, &mut features.customer_update)?;
    let updates = "features[customer_update][allowed_updates]";
    words(params, updates, &CUSTOMER_UPDATES, &mut features.allowed_updates)?;
    switch(params, "invoice_history", new, &mut features.invoice_history)?;
    switch(params, "payment_method_update", new, &mut features.payment_method_update)?;
    switch(params, "subscription_cancel", new, &mut features.cancel)?;
    if let Some(mode) = params.one_of("features[subscription_cancel][mode]", &["at_period_end", "immediately"])? {
        features.cancel_at_once = mode == "immediately";
    }
    let prorations = "features[subscription_cancel][proration_behavior]";
    if let Some(behaviour) = params.one_of(prorations, &["none", "create_prorations"])? {
        features.cancel_prorations = behaviour == "create_prorations";
    }
    let reason = "features[subscription_cancel][cancellation_reason]";
    let reason_given = params.has_below(reason);
    let (enabled, options) = (format!("{reason}[enabled]"), format!("{reason}[options]"));
    match params.boolean(&enabled)? {
        Some(ask) => features.ask_reason = ask,
        None if reason_given => return Err(ApiError::missing(&enabled)),
        None => {}
    }
    let options_given = params.has_below(&options);
    words(params, &options, &REASONS, &mut features.reasons)?;
    if new && reason_given && !options_given {
        return Err(ApiError::missing(&options));
    }
    let mut subscription_update = false;
    switch(params, "subscription_update", new, &mut subscription_update)?;
    if subscription_update {
        let name = "features[subscription_update][enabled]";
        return Err(ApiError::invalid_param(name, "The sandbox does not play changes of subscriptions in the portal."));
    }
    if features.customer_update && features.allowed_updates.is_empty() {
        return Err(ApiError::missing(updates));
    }
    // Source: `features.subscription_cancel.proration_behavior`: prorations go with `immediately` alone.
    if features.cancel_prorations && !features.cancel_at_once {
        return Err(ApiError::invalid_param(prorations, "create_prorations is only compatible with mode=immediately."));
    }
    Ok(())
}

/// Reads what both a new configuration and a change may say beside the features.
fn read_rest(params: &mut Params, configuration: &mut Configuration) -> Result<(), ApiError> {
    for (name, field) in [
        ("business_profile[headline]", &mut configuration.headline),
        ("business_profile[privacy_policy_url]", &mut configuration.privacy_policy_url),
        ("business_profile[terms_of_service_url]", &mut configuration.terms_of_service_url),
        ("default_return_url", &mut configuration.default_return_url),
        ("name", &mut configuration.name),
    ] {
        if let Some(value) = params.unsettable(name) {
            *field = value;
        }
        if name.contains("url") {
            check_url(name, field.as_ref())?;
        }
    }
    // Source: `business_profile.headline`: at most 60 characters.
    if configuration.headline.as_ref().is_some_and(|headline| headline.chars().count() > 60) {
        return Err(ApiError::invalid_param("business_profile[headline]", "A headline can have at most 60 characters."));
    }
    let login_page = params.boolean("login_page[enabled]")?;
    configuration.login_page = login_page.unwrap_or(configuration.login_page);
    params.metadata("metadata")?.apply(&mut configuration.metadata);
    Ok(())
}

/// `POST /v1/billing_portal/configurations`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    for required in ["features", "business_profile"] {
        if !params.has_below(required) {
            return Err(ApiError::missing(required));
        }
    }
    let now = world.wall_secs;
    let mut configuration = Configuration {
        id: new_id("bpc"),
        created: now,
        updated: now,
        active: true,
        is_default: world.settings.first_portal_is_default && world.configurations.values().next().is_none(),
        name: None,
        headline: None,
        privacy_policy_url: None,
        terms_of_service_url: None,
        default_return_url: None,
        login_page: false,
        metadata: Texts::new(),
        features: Features::default(),
    };
    read_features(params, true, &mut configuration.features)?;
    read_rest(params, &mut configuration)?;
    params.finish()?;
    let rendered = configuration.render();
    world.configurations.insert(&configuration.id.clone(), configuration);
    events::emit(world, "billing_portal.configuration.created", None, rendered.clone(), None);
    Ok(rendered)
}

fn find<'a>(world: &'a World, id: &str) -> Result<&'a Configuration, ApiError> {
    world.configurations.get(id).ok_or_else(|| ApiError::not_found("configuration", id))
}

/// `GET /v1/billing_portal/configurations/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    find(world, id).map(Configuration::render)
}

/// `POST /v1/billing_portal/configurations/{id}`: what is not named stays.
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let before = find(world, id)?.render();
    let mut configuration = find(world, id)?.clone();
    read_features(params, false, &mut configuration.features)?;
    read_rest(params, &mut configuration)?;
    let active = params.boolean("active")?;
    params.finish()?;
    if active == Some(false) && configuration.is_default {
        return Err(ApiError::invalid_param("active", "You cannot deactivate the default portal configuration."));
    }
    configuration.active = active.unwrap_or(configuration.active);
    configuration.updated = world.wall_secs;
    let after = configuration.render();
    world.configurations.insert(id, configuration);
    let previous = events::previous_attributes(&before, &after);
    events::emit(world, "billing_portal.configuration.updated", None, after.clone(), previous);
    Ok(after)
}

/// `GET /v1/billing_portal/configurations`
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let active = params.boolean("active")?;
    let is_default = params.boolean("is_default")?;
    params.finish()?;
    page.cut(
        &world.configurations,
        "configuration",
        "/v1/billing_portal/configurations",
        |configuration| {
            active.is_none_or(|active| configuration.active == active)
                && is_default.is_none_or(|is_default| configuration.is_default == is_default)
        },
        Configuration::render,
    )
}

/// `POST /v1/billing_portal/sessions`: of a customer that is there, with a configuration or the default one.
pub(crate) fn create_session(world: &mut World, params: &mut Params) -> Reply {
    let customer = params.required("customer")?;
    let configuration = params.text("configuration")?;
    let return_url = params.text("return_url")?;
    params.finish()?;
    customers::live(world, &customer, "customer")?;
    check_url("return_url", return_url.as_ref())?;
    let configuration = match &configuration {
        Some(id) => {
            let named = world.configurations.get(id).ok_or_else(|| ApiError::no_such("configuration", "configuration", id))?;
            if !named.active {
                return Err(ApiError::invalid_param("configuration", "The portal configuration is inactive."));
            }
            named
        }
        None => world.configurations.values().find(|configuration| configuration.is_default).ok_or_else(|| {
            ApiError::invalid(
                "No configuration provided and your test mode default configuration has not been created. Provide a \
                 configuration or create your default by saving your customer portal settings in test mode at \
                 https://dashboard.stripe.com/test/settings/billing/portal.",
            )
        })?,
    };
    let id = new_id("bps");
    let session = json!({
        "id": id,
        "object": "billing_portal.session",
        "configuration": configuration.id,
        "created": world.wall_secs,
        "customer": customer,
        "customer_account": null,
        "flow": null,
        "livemode": false,
        "locale": null,
        "on_behalf_of": null,
        "return_url": return_url.or_else(|| configuration.default_return_url.clone()),
        "url": format!("https://billing.stripe.com/p/session/test_{id}"),
    });
    events::emit(world, "billing_portal.session.created", None, session.clone(), None);
    Ok(session)
}
