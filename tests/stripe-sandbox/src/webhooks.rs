//! Webhook endpoints, signatures and deliveries.
//!
//! Sources: "Receive Stripe events in your webhook endpoint", "Resolve webhook signature verification errors", SDK type
//! `WebhookEndpoint`.

use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::error::{ApiError, Reply};
use crate::events::DeliveryState;
use crate::form::Params;
use crate::http::{self, Shared};
use crate::meters;
use crate::world::{Page, Texts, World, new_id};

/// The types that an event destination for thin events can ask for.
const THIN_TYPES: &[&str] = &["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"];

/// The types an endpoint can ask for: what the sandbox emits, and what Tokentill listens to besides. Thin types are not
/// among them: an endpoint of this API only gets snapshots.
const EVENT_TYPES: &[&str] = &[
    "billing.meter.created",
    "billing.meter.deactivated",
    "billing.meter.reactivated",
    "billing.meter.updated",
    "billing_portal.configuration.created",
    "billing_portal.configuration.updated",
    "billing_portal.session.created",
    "charge.dispute.closed",
    "charge.dispute.created",
    "charge.dispute.funds_reinstated",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.updated",
    "charge.failed",
    "charge.pending",
    "charge.refunded",
    "charge.succeeded",
    "checkout.session.completed",
    "checkout.session.expired",
    "customer.created",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "customer.updated",
    "invoice.created",
    "invoice.finalization_failed",
    "invoice.finalized",
    "invoice.marked_uncollectible",
    "invoice.overdue",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.payment_succeeded",
    "invoice.upcoming",
    "invoice.updated",
    "invoice.voided",
    "payment_method.attached",
    "price.created",
    "price.updated",
    "product.created",
    "product.updated",
    "refund.created",
    "test_helpers.test_clock.advancing",
    "test_helpers.test_clock.created",
    "test_helpers.test_clock.deleted",
    "test_helpers.test_clock.internal_failure",
    "test_helpers.test_clock.ready",
];

/// A webhook endpoint, or a destination of thin events.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    id: String,
    created: i64,
    url: String,
    secret: String,
    enabled_events: Vec<String>,
    api_version: Option<String>,
    description: Option<String>,
    metadata: Texts,
    /// Whether it gets thin events. Source: "Event destinations": a destination gets either those or snapshots.
    thin: bool,
    enabled: bool,
    deleted: bool,
}

impl Endpoint {
    /// The endpoint in Stripe's form; its secret is only told at creation.
    fn render(&self) -> Value {
        json!({
            "id": self.id, "object": "webhook_endpoint", "api_version": self.api_version, "application": null,
            "created": self.created, "description": self.description, "enabled_events": self.enabled_events,
            "livemode": false, "metadata": self.metadata, "status": if self.enabled { "enabled" } else { "disabled" },
            "url": self.url,
        })
    }

    /// Whether it gets events of this type.
    pub(crate) fn wants(&self, kind: &str) -> bool {
        let fits = self.thin == THIN_TYPES.contains(&kind);
        fits && self.enabled && !self.deleted && self.enabled_events.iter().any(|wanted| wanted == "*" || wanted == kind)
    }
}

/// How events reach the endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum DeliveryMode {
    /// Each once, side by side, in no particular order.
    #[default]
    Normal,
    /// Each twice at the same time.
    Twice,
    /// The newest first.
    Reversed,
    /// Not at all.
    Drop,
}

impl DeliveryMode {
    /// The mode of its name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "normal" => Self::Normal,
            "twice" => Self::Twice,
            "reversed" => Self::Reversed,
            "drop" => Self::Drop,
            _ => return None,
        })
    }
}

/// An event on its way to an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Dispatch {
    /// The event.
    pub(crate) event: String,
    /// The endpoint.
    pub(crate) endpoint: String,
}

/// One attempt to deliver an event.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    event: String,
    kind: String,
    endpoint: String,
    attempt: usize,
    status: Option<u16>,
    error: Option<String>,
    at: i64,
}

impl Delivery {
    /// The attempt as `/_sandbox/deliveries` shows it.
    pub(crate) fn render(&self) -> Value {
        json!({
            "event": self.event, "type": self.kind, "endpoint": self.endpoint, "attempt": self.attempt,
            "status": self.status, "error": self.error, "at": self.at,
        })
    }
}

/// The `Stripe-Signature` of a body: HMAC-SHA256 over `t.body` with the whole secret as key.
pub(crate) fn signature(secret: &str, body: &str, at: i64) -> String {
    // An HMAC takes a key of any length, so the error arm is never taken.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else {
        return String::new();
    };
    mac.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes()))
}

// ---- The API ----

fn read_events(params: &mut Params, known: &[&str]) -> Result<Vec<String>, ApiError> {
    let enabled = params.texts("enabled_events")?;
    for (index, kind) in enabled.iter().enumerate() {
        if kind != "*" && !known.contains(&kind.as_str()) {
            return Err(ApiError::invalid_param(
                &format!("enabled_events[{index}]"),
                format!("Invalid enabled_events[{index}]: {kind} is not a type the sandbox knows."),
            ));
        }
    }
    Ok(enabled)
}

fn check_url(url: &str) -> Result<(), ApiError> {
    if reqwest::Url::parse(url).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
        return Ok(());
    }
    Err(ApiError {
        code: Some("url_invalid"),
        ..ApiError::invalid_param("url", "Invalid URL: An explicit scheme (such as https) must be provided.")
    })
}

/// `POST /v1/webhook_endpoints`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let api_version = params.text("api_version")?;
    let description = params.text("description")?;
    let metadata = params.metadata("metadata")?.into_new();
    if let Some(version) = &api_version
        && !http::is_supported_version(version)
    {
        return Err(ApiError::invalid_param("api_version", format!("Invalid API version: {version}")));
    }
    let endpoint = Endpoint { api_version, description, metadata, ..read_new(world, params, "we", EVENT_TYPES)? };
    Ok(add(world, endpoint))
}

/// `POST /_sandbox/event_destinations`: makes a destination of thin events, as a person does in Stripe's dashboard.
pub(crate) fn create_thin(world: &mut World, params: &mut Params) -> Reply {
    let endpoint = Endpoint { thin: true, ..read_new(world, params, "ed", THIN_TYPES)? };
    Ok(add(world, endpoint))
}

/// What every new destination has; it reads the last of the parameters.
fn read_new(world: &World, params: &mut Params, prefix: &str, known: &[&str]) -> Result<Endpoint, ApiError> {
    let url = params.required("url")?;
    let enabled_events = read_events(params, known)?;
    params.finish()?;
    check_url(&url)?;
    if enabled_events.is_empty() {
        return Err(ApiError::missing("enabled_events"));
    }
    Ok(Endpoint {
        id: new_id(prefix),
        created: world.wall_secs,
        url,
        secret: new_id("whsec"),
        enabled_events,
        api_version: None,
        description: None,
        metadata: Texts::new(),
        thin: false,
        enabled: true,
        deleted: false,
    })
}

/// Adds it; its secret is told once.
fn add(world: &mut World, endpoint: Endpoint) -> Value {
    let mut rendered = endpoint.render();
    if let Some(map) = rendered.as_object_mut() {
        map.insert("secret".to_owned(), json!(endpoint.secret));
    }
    world.endpoints.insert(&endpoint.id.clone(), endpoint);
    rendered
}

fn find<'a>(world: &'a mut World, id: &str) -> Result<&'a mut Endpoint, ApiError> {
    let endpoint = world.endpoints.get_mut(id).filter(|endpoint| !endpoint.deleted && !endpoint.thin);
    endpoint.ok_or_else(|| ApiError::not_found("webhook endpoint", id))
}

/// `GET /v1/webhook_endpoints/{id}`
pub(crate) fn retrieve(world: &mut World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    find(world, id).map(|endpoint| endpoint.render())
}

/// `GET /v1/webhook_endpoints`
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    params.finish()?;
    let listed = |endpoint: &Endpoint| !endpoint.deleted && !endpoint.thin;
    page.cut(&world.endpoints, "webhook endpoint", "/v1/webhook_endpoints", listed, Endpoint::render)
}

/// `POST /v1/webhook_endpoints/{id}`; the API version cannot change. Source: `WebhookEndpointUpdateParams`.
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let url = params.text("url")?;
    let enabled_events = read_events(params, EVENT_TYPES)?;
    let disabled = params.boolean("disabled")?;
    let description = params.unsettable("description");
    let metadata = params.metadata("metadata")?;
    params.finish()?;
    if let Some(url) = &url {
        check_url(url)?;
    }
    let endpoint = find(world, id)?;
    if let Some(url) = url {
        endpoint.url = url;
    }
    if !enabled_events.is_empty() {
        endpoint.enabled_events = enabled_events;
    }
    if let Some(disabled) = disabled {
        endpoint.enabled = !disabled;
    }
    if let Some(description) = description {
        endpoint.description = description;
    }
    metadata.apply(&mut endpoint.metadata);
    Ok(endpoint.render())
}

/// `DELETE /v1/webhook_endpoints/{id}`
pub(crate) fn delete(world: &mut World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    find(world, id)?.deleted = true;
    Ok(json!({"id": id, "object": "webhook_endpoint", "deleted": true}))
}

// ---- Deliveries ----

/// The pauses between attempts. Stripe's are minutes to hours; a test cannot wait that long.
const PAUSES_MS: [u64; 6] = [100, 300, 900, 2_000, 4_000, 8_000];
/// How long the newest-first mode waits for more events before it delivers what it has.
const HOLD_MS: u64 = 400;

/// Hands what waits in the world to delivery tasks. Call it whenever the world has been changed.
pub(crate) fn hand_out(shared: &Arc<Shared>, world: &mut World) {
    for dispatch in std::mem::take(&mut world.resent) {
        shared.spawn(deliver(Arc::clone(shared), dispatch));
    }
    for meter in std::mem::take(&mut world.reports_due) {
        shared.spawn(report_rejected(Arc::clone(shared), meter, world.settings.meter_error_delay_ms));
    }
    let outgoing = std::mem::take(&mut world.outgoing);
    if outgoing.is_empty() {
        return;
    }
    match world.settings.delivery {
        DeliveryMode::Drop => {
            for dispatch in outgoing {
                note(world, &dispatch, 0, None, Some("dropped".to_owned()));
                finish(world, &dispatch, DeliveryState::Failed);
            }
        }
        DeliveryMode::Reversed => {
            world.held.extend(outgoing);
            let held = world.held.len();
            shared.spawn(release_reversed(Arc::clone(shared), held));
        }
        mode => {
            for dispatch in outgoing {
                if mode == DeliveryMode::Twice {
                    shared.spawn(deliver(Arc::clone(shared), dispatch.clone()));
                }
                shared.spawn(deliver(Arc::clone(shared), dispatch));
            }
        }
    }
}

/// Tells of a meter's thrown away events, once Stripe is said to have found them.
async fn report_rejected(shared: Arc<Shared>, meter: Option<String>, delay_ms: u64) {
    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    shared.with_world(|world| {
        meters::report_rejected(world, meter);
        hand_out(&shared, world);
    });
}

/// Delivers what is held, newest first, once nothing has been added for a while.
async fn release_reversed(shared: Arc<Shared>, held_then: usize) {
    tokio::time::sleep(Duration::from_millis(HOLD_MS)).await;
    let held =
        shared.with_world(|world| if world.held.len() == held_then { std::mem::take(&mut world.held) } else { Vec::new() });
    for dispatch in held.into_iter().rev() {
        if !attempt(&shared, &dispatch, 1).await {
            shared.spawn(retry(Arc::clone(&shared), dispatch));
        }
    }
}

async fn deliver(shared: Arc<Shared>, dispatch: Dispatch) {
    // A little chance, so that nobody comes to rely on an order. Stripe guarantees none.
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..15))).await;
    if !attempt(&shared, &dispatch, 1).await {
        retry(shared, dispatch).await;
    }
}

async fn retry(shared: Arc<Shared>, dispatch: Dispatch) {
    for (number, pause_ms) in (2..).zip(PAUSES_MS) {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        if attempt(&shared, &dispatch, number).await {
            return;
        }
    }
    shared.with_world(|world| finish(world, &dispatch, DeliveryState::Failed));
}

/// One attempt, with a fresh signature; whether it is over (delivered, or nobody is there any more).
async fn attempt(shared: &Arc<Shared>, dispatch: &Dispatch, number: usize) -> bool {
    let prepared = shared.with_world(|world| {
        let endpoint = world.endpoints.get(&dispatch.endpoint).filter(|endpoint| !endpoint.deleted)?;
        let event = world.events.get(&dispatch.event)?;
        let body = event.render(endpoint.api_version.as_deref()).to_string();
        let signature = signature(&endpoint.secret, &body, world.wall_secs);
        Some((endpoint.url.clone(), body, signature))
    });
    let Some((url, body, signature)) = prepared else {
        return true;
    };
    let answer = shared
        .client
        .post(url)
        .header("content-type", "application/json; charset=utf-8")
        .header("user-agent", "Stripe/1.0 (+https://stripe.com/docs/webhooks)")
        .header("stripe-signature", signature)
        .body(body)
        .send()
        .await;
    let (status, error) = match answer {
        Ok(answer) => (Some(answer.status().as_u16()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    // Anything but 2xx is a failure, redirects included.
    let delivered = status.is_some_and(|status| (200..300).contains(&status));
    shared.with_world(|world| {
        note(world, dispatch, number, status, error);
        if delivered {
            finish(world, dispatch, DeliveryState::Delivered);
        }
    });
    delivered
}

fn note(world: &mut World, dispatch: &Dispatch, attempt: usize, status: Option<u16>, error: Option<String>) {
    let kind = world.events.get(&dispatch.event).map(|event| event.kind().to_owned()).unwrap_or_default();
    world.deliveries.push(Delivery {
        event: dispatch.event.clone(),
        kind,
        endpoint: dispatch.endpoint.clone(),
        attempt,
        status,
        error,
        at: world.wall_secs,
    });
}

fn finish(world: &mut World, dispatch: &Dispatch, state: DeliveryState) {
    if let Some(event) = world.events.get_mut(&dispatch.event) {
        for (endpoint, target) in &mut event.targets {
            if *endpoint == dispatch.endpoint && *target != DeliveryState::Delivered {
                *target = state;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_the_hmac_of_time_and_body() {
        // Computed with the official Python package's WebhookSignature.
        assert_eq!(
            signature("whsec_test_secret", "{\"id\":\"evt_1\"}", 1_700_000_000),
            "t=1700000000,v1=248a374f50f943a28b0f6ab50faf9a7e7e29b710fa26df9fb1618b9bf8ea9c9a"
        );
    }
}
