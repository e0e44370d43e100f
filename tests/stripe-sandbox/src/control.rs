//! The sandbox's own API under `/_sandbox`: what Stripe does by hand, by chance, or not at all.

use serde_json::{Value, json};

use crate::calendar::DAY_SECS;
use crate::error::{ApiError, Reply};
use crate::form::Params;
use crate::invoices::{self, RETRY_DAYS};
use crate::limits;
use crate::meters::{self, Rejection};
use crate::webhooks::{self, Delivery, DeliveryMode, Dispatch};
use crate::world::World;

/// What becomes of a subscription when all retries have failed. Source: "Automate payment retries".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AfterRetries {
    /// It stays past due.
    #[default]
    PastDue,
    /// It becomes unpaid.
    Unpaid,
    /// It is cancelled.
    Canceled,
}

/// Which failed payment of a renewal pauses a subscription of the flexible billing mode. Source: changelog 2026-09-30.endive,
/// "pause on payment failure".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum PauseOnFailure {
    /// None.
    #[default]
    Never,
    /// The first.
    First,
    /// The last, instead of what [`AfterRetries`] says.
    Final,
}

/// What the sandbox was told to do differently.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// How events reach the endpoints.
    pub(crate) delivery: DeliveryMode,
    /// What becomes of a subscription when all retries have failed.
    pub(crate) after_retries: AfterRetries,
    /// Which failed payment pauses a subscription.
    pub(crate) pause_on_failure: PauseOnFailure,
    /// How many days a bank takes to say whether there is money.
    pub(crate) debit_days: i64,
    /// Whether an event's `created` is the time of its object's test clock; Stripe's is the real time.
    pub(crate) events_in_clock_time: bool,
    /// How long a meter event takes to show in the summaries.
    pub(crate) summary_lag_secs: i64,
    /// How long the identifier of a meter event is known. Source: "within a rolling period of at least 24 hours".
    pub(crate) identifier_ttl_secs: i64,
    /// How long a meter event is being taken; a second one of its customer and meter that comes meanwhile is one too many.
    pub(crate) meter_call_ms: u64,
    /// How long after the first meter event that is thrown away a thin event tells of it and of all others until then.
    pub(crate) meter_error_delay_ms: u64,
    /// Calls a second over all; 0 is no limit.
    pub(crate) global_rate: u32,
    /// Calls a second at each endpoint; 0 is no limit.
    pub(crate) endpoint_rate: u32,
    /// Whether the first configuration of the portal becomes the default one.
    pub(crate) first_portal_is_default: bool,
    retry_days: Vec<i64>,
    /// Faults that are still to be played.
    faults: Vec<Fault>,
    /// Meter events that are to be thrown away.
    pub(crate) rejections: Vec<Rejection>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            delivery: DeliveryMode::default(),
            after_retries: AfterRetries::default(),
            pause_on_failure: PauseOnFailure::default(),
            debit_days: 4,
            events_in_clock_time: false,
            summary_lag_secs: 0,
            identifier_ttl_secs: DAY_SECS,
            meter_call_ms: 3,
            meter_error_delay_ms: 1_000,
            global_rate: 25,
            endpoint_rate: 25,
            first_portal_is_default: true,
            retry_days: RETRY_DAYS.to_vec(),
            faults: Vec::new(),
            rejections: Vec::new(),
        }
    }
}

impl Settings {
    /// The time of the next automatic attempt.
    pub(crate) fn next_retry(&self, first_attempt_at: i64, attempts: u32) -> Option<i64> {
        invoices::retry_time(&self.retry_days, first_attempt_at, attempts)
    }
}

/// A fault that the next matching requests meet. The default is none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    method: Option<String>,
    path: String,
    /// The status to answer with.
    status: Option<u16>,
    /// Which rate limit a 429 is said to come from.
    limited_by: Option<&'static str>,
    /// Whether the connection is dropped instead of an answer.
    pub(crate) drop: bool,
    /// How long it takes: before the effect, or after it.
    pub(crate) delay_ms: u64,
    /// Whether the request takes effect first, whatever is answered.
    pub(crate) after_effect: bool,
    /// How many matching requests go by before the first one meets it.
    skip: i64,
    left: i64,
}

impl Fault {
    /// What is answered instead of the truth.
    pub(crate) fn answer(&self) -> Option<Reply> {
        Some(Err(match (self.status?, self.limited_by) {
            (429, Some(limit)) => ApiError::rate_limited(limit),
            (429, None) => ApiError::lock_timeout(),
            (status, _) => {
                let message = "An unknown error occurred (the sandbox was told so).";
                ApiError { status, kind: "api_error", ..ApiError::invalid(message) }
            }
        }))
    }
}

/// Takes the fault that this request is to meet.
pub(crate) fn take_fault(world: &mut World, method: &str, path: &str) -> Option<Fault> {
    let fault = world.settings.faults.iter_mut().find(|fault| {
        fault.left > 0 && fault.method.as_deref().is_none_or(|wanted| wanted == method) && path.starts_with(&fault.path)
    })?;
    if fault.skip > 0 {
        fault.skip -= 1;
        return None;
    }
    fault.left -= 1;
    Some(fault.clone())
}

/// One request to the API, as `/_sandbox/requests` shows it. No key and no body.
#[derive(Clone, Debug)]
pub(crate) struct RequestRecord {
    /// The HTTP method.
    pub(crate) method: String,
    /// The path, without its query.
    pub(crate) path: String,
    /// The status that was answered; 0 where the connection was dropped.
    pub(crate) status: u16,
    /// The `Idempotency-Key`.
    pub(crate) idempotency_key: Option<String>,
    /// The `Stripe-Version`.
    pub(crate) stripe_version: Option<String>,
    /// The `Request-Id` of the answer.
    pub(crate) request_id: String,
    /// When it came in, in real Unix seconds.
    pub(crate) at: i64,
}

impl RequestRecord {
    fn render(&self) -> Value {
        json!({
            "method": self.method, "path": self.path, "status": self.status, "idempotency_key": self.idempotency_key,
            "stripe_version": self.stripe_version, "request_id": self.request_id, "at": self.at,
        })
    }
}

/// The control API.
pub(crate) fn route(world: &mut World, method: &str, path: &[&str], params: &mut Params) -> Reply {
    match (method, path) {
        ("GET", ["health"]) => Ok(json!({"status": "ok"})),
        ("POST", ["reset"]) => {
            world.reset();
            Ok(json!({"reset": true}))
        }
        ("GET", ["deliveries"]) => {
            let deliveries: Vec<Value> = world.deliveries.iter().map(Delivery::render).collect();
            Ok(json!({"data": deliveries}))
        }
        ("GET", ["requests"]) => {
            let requests: Vec<Value> = world.requests.iter().map(RequestRecord::render).collect();
            Ok(json!({"data": requests}))
        }
        ("GET", ["meter_events"]) => {
            let events: Vec<Value> = world.meter_events.iter().map(meters::MeterEvent::render_for_control).collect();
            Ok(json!({"data": events}))
        }
        ("POST", ["checkout", "sessions", id, "complete"]) => crate::checkout::complete(world, id, params),
        ("POST", ["invoices", id, "payment"]) => invoices::end_payment_by_order(world, id, params),
        ("GET", ["invoices", id, "charges"]) => crate::charges::of_invoice(world, id, params),
        ("POST", ["charges", id, "dispute"]) => crate::disputes::open(world, id, params),
        ("POST", ["disputes", id]) => crate::disputes::decide(world, id, params),
        ("POST", ["delivery"]) => {
            let mode = params.required("mode")?;
            params.finish()?;
            world.settings.delivery = DeliveryMode::parse(&mode)
                .ok_or_else(|| ApiError::invalid_param("mode", "mode must be one of normal, twice, reversed, drop"))?;
            Ok(json!({"mode": mode}))
        }
        ("POST", ["events", id, "resend"]) => resend(world, id, params),
        ("POST", ["settings"]) => set(world, params),
        ("POST", ["faults"]) => add_fault(world, params),
        ("GET", ["faults"]) => {
            let left = |fault: &Fault| json!({"method": fault.method, "path": fault.path, "left": fault.left});
            let faults: Vec<Value> = world.settings.faults.iter().map(left).collect();
            Ok(json!({"data": faults}))
        }
        ("POST", ["meter_rejections"]) => meters::add_rejection(world, params),
        ("POST", ["event_destinations"]) => webhooks::create_thin(world, params),
        _ => Err(ApiError::unknown_route(method, &format!("/_sandbox/{}", path.join("/")))),
    }
}

/// Delivers an event again to every endpoint that wants it, whatever was told about deliveries.
fn resend(world: &mut World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    let kind = world.events.get(id).ok_or_else(|| ApiError::not_found("event", id))?.kind().to_owned();
    let dispatches: Vec<Dispatch> = world
        .endpoints
        .iter()
        .filter(|(_, endpoint)| endpoint.wants(&kind))
        .map(|(endpoint, _)| Dispatch { event: id.to_owned(), endpoint: endpoint.to_owned() })
        .collect();
    let count = dispatches.len();
    world.resent.extend(dispatches);
    Ok(json!({"resent": count}))
}

fn set(world: &mut World, params: &mut Params) -> Reply {
    let after_retries = params.one_of("after_retries", &["past_due", "unpaid", "canceled"])?;
    let pause_on_failure = params.one_of("pause_on_payment_failure", &["never", "first", "final"])?;
    let events_created = params.one_of("events_created", &["clock", "real"])?;
    let old = &world.settings;
    let debit_days = number(params, "debit_days", old.debit_days)?;
    let summary_lag_secs = number(params, "summary_lag_secs", old.summary_lag_secs)?;
    let identifier_ttl_secs = number(params, "identifier_ttl_secs", old.identifier_ttl_secs)?;
    let meter_call_ms = number(params, "meter_call_ms", old.meter_call_ms)?;
    let meter_error_delay_ms = number(params, "meter_error_delay_ms", old.meter_error_delay_ms)?;
    let global_rate = number(params, "global_rate", old.global_rate)?;
    let endpoint_rate = number(params, "endpoint_rate", old.endpoint_rate)?;
    let first_portal_is_default = params.boolean("first_portal_is_default")?.unwrap_or(old.first_portal_is_default);
    let retry_days = params.text("retry_days")?;
    params.finish()?;
    let retry_days = retry_days
        .map(|text| {
            text.split(',')
                .map(|day| {
                    day.trim()
                        .parse::<i64>()
                        .map_err(|_| ApiError::invalid_param("retry_days", "retry_days is a list like 3,5,7"))
                })
                .collect::<Result<Vec<i64>, ApiError>>()
        })
        .transpose()?;
    let settings = &mut world.settings;
    match after_retries.as_deref() {
        Some("unpaid") => settings.after_retries = AfterRetries::Unpaid,
        Some("canceled") => settings.after_retries = AfterRetries::Canceled,
        Some(_) => settings.after_retries = AfterRetries::PastDue,
        None => {}
    }
    match pause_on_failure.as_deref() {
        Some("first") => settings.pause_on_failure = PauseOnFailure::First,
        Some("final") => settings.pause_on_failure = PauseOnFailure::Final,
        Some(_) => settings.pause_on_failure = PauseOnFailure::Never,
        None => {}
    }
    settings.debit_days = debit_days;
    if let Some(created) = events_created {
        settings.events_in_clock_time = created == "clock";
    }
    settings.summary_lag_secs = summary_lag_secs;
    settings.identifier_ttl_secs = identifier_ttl_secs;
    settings.meter_call_ms = meter_call_ms;
    settings.meter_error_delay_ms = meter_error_delay_ms;
    settings.global_rate = global_rate;
    settings.endpoint_rate = endpoint_rate;
    settings.first_portal_is_default = first_portal_is_default;
    if let Some(days) = retry_days {
        settings.retry_days = days;
    }
    Ok(json!({
        "events_created": if settings.events_in_clock_time { "clock" } else { "real" },
        "retry_days": settings.retry_days, "debit_days": settings.debit_days,
        "summary_lag_secs": summary_lag_secs, "identifier_ttl_secs": identifier_ttl_secs, "meter_call_ms": meter_call_ms,
        "meter_error_delay_ms": meter_error_delay_ms, "global_rate": global_rate, "endpoint_rate": endpoint_rate,
        "first_portal_is_default": first_portal_is_default,
    }))
}

/// A number that is not negative, or else what it is now.
fn number<T: From<u32>>(params: &mut Params, name: &str, now: T) -> Result<T, ApiError> {
    let Some(number) = params.int(name)? else { return Ok(now) };
    u32::try_from(number).map(T::from).map_err(|_| ApiError::invalid_param(name, format!("{name} is negative or too large")))
}

/// The next `count` requests whose path begins with `path` meet a fault: `status=…` (a 429 is a lock, or with `limited_by=…` a
/// rate limit), or `drop=true` for a connection that ends without an answer, or only `delay_ms=…`, which may also come with
/// them; `after_effect=true` lets the request take effect first, and `skip` lets so many go by before.
fn add_fault(world: &mut World, params: &mut Params) -> Reply {
    let path = params.required("path")?;
    let method = params.text("method")?;
    let status = params.int("status")?;
    let limited_by = params.one_of("limited_by", &limits::REASONS)?;
    let drop = params.boolean("drop")?.unwrap_or(false);
    let delay_ms = number(params, "delay_ms", 0)?;
    let after_effect = params.boolean("after_effect")?.unwrap_or(false);
    let skip = params.int("skip")?.unwrap_or(0);
    let left = params.int("count")?.unwrap_or(1);
    params.finish()?;
    if status.is_some() == drop && (drop || delay_ms == 0) {
        return Err(ApiError::invalid_param("status", "Give either status, or drop=true, or only delay_ms."));
    }
    let bad_status = || ApiError::invalid_param("status", "status must be 400 to 599");
    let status = status
        .map(|status| u16::try_from(status).ok().filter(|status| (400..600).contains(status)).ok_or_else(bad_status))
        .transpose()?;
    let limited_by = limits::REASONS.into_iter().find(|reason| limited_by.as_deref() == Some(*reason));
    world.settings.faults.push(Fault { method, path, status, limited_by, drop, delay_ms, after_effect, skip, left });
    Ok(json!({"faults": world.settings.faults.len()}))
}
