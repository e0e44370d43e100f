//! Billing meters, their events and the summaries of them.
//!
//! Sources: "Record usage for billing with the API"; SDK types `billing.Meter`, `MeterEventCreateParams`,
//! `MeterListEventSummariesParams`; changelog 2026-04-22.dahlia, "billing meter event values validation".

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::calendar::{DAY_SECS, HOUR_SECS};
use crate::error::{ApiError, Reply};
use crate::form::Params;
use crate::world::{Page, Shelf, Texts, World, new_id};
use crate::{customers, events};

/// Why Stripe may throw a meter event away after it has taken it. Source: SDK type of the event
/// `v1.billing.meter.error_report_triggered`, an open list.
const REJECTION_CODES: [&str; 10] = [
    "archived_meter",
    "meter_event_customer_not_found",
    "meter_event_dimension_count_too_high",
    "meter_event_invalid_value",
    "meter_event_no_customer_defined",
    "meter_event_value_too_many_digits",
    "missing_dimension_payload_keys",
    NO_METER,
    "timestamp_in_future",
    "timestamp_too_far_in_past",
];
const NO_METER: &str = "no_meter";
/// The most sample errors of one code that an event shows.
const MOST_SAMPLES: usize = 3;

/// How the events of a period become one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Formula {
    Sum,
    Count,
    Last,
}

impl Formula {
    const ALL: [(&'static str, Self); 3] = [("sum", Self::Sum), ("count", Self::Count), ("last", Self::Last)];

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(_, formula)| *formula == self).map_or("sum", |(name, _)| name)
    }

    fn apply<'a>(self, events: impl Iterator<Item = &'a MeterEvent>) -> i64 {
        match self {
            Self::Sum => events.map(|event| event.value).sum(),
            Self::Count => events.map(|_| 1).sum(),
            // The latest timestamp wins, and of equal ones the event that came in last.
            Self::Last => events.max_by_key(|event| event.timestamp).map_or(0, |event| event.value),
        }
    }
}

/// A meter.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    id: String,
    created: i64,
    updated: i64,
    display_name: String,
    event_name: String,
    event_time_window: Option<String>,
    customer_key: String,
    value_key: String,
    formula: Formula,
    deactivated_at: Option<i64>,
    /// Whether it takes events.
    pub(crate) active: bool,
}

impl Meter {
    fn render(&self) -> Value {
        json!({
            "id": self.id,
            "object": "billing.meter",
            "created": self.created,
            "customer_mapping": {"event_payload_key": self.customer_key, "type": "by_id"},
            "default_aggregation": {"formula": self.formula.name()},
            "display_name": self.display_name,
            "event_name": self.event_name,
            "event_time_window": self.event_time_window,
            "livemode": false,
            "status": if self.active { "active" } else { "inactive" },
            "status_transitions": {"deactivated_at": self.deactivated_at},
            "updated": self.updated,
            "value_settings": {"event_payload_key": self.value_key},
        })
    }
}

/// A meter event that was answered with 200.
#[derive(Clone, Debug)]
pub(crate) struct MeterEvent {
    identifier: String,
    event_name: String,
    /// The meter of that name, if there is one.
    meter: Option<String>,
    customer: String,
    value: i64,
    timestamp: i64,
    received_secs: i64,
    /// Why it was not recorded after all: a code of `v1.billing.meter.error_report_triggered`.
    rejected: Option<&'static str>,
}

impl MeterEvent {
    /// The event as the control API shows it.
    pub(crate) fn render_for_control(&self) -> Value {
        json!({
            "identifier": self.identifier, "event_name": self.event_name, "customer": self.customer,
            "value": self.value, "timestamp": self.timestamp, "recorded": self.rejected.is_none(),
            "error": self.rejected,
        })
    }
}

fn find<'a>(world: &'a World, id: &str) -> Result<&'a Meter, ApiError> {
    world.meters.get(id).ok_or_else(|| ApiError::not_found("meter", id))
}

/// `POST /v1/billing/meters`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let display_name = params.required("display_name")?;
    let event_name = params.required("event_name")?;
    let formula_name = params.required("default_aggregation[formula]")?;
    let formula =
        Formula::ALL.into_iter().find(|(name, _)| *name == formula_name).map(|(_, formula)| formula).ok_or_else(|| {
            ApiError::invalid_param(
                "default_aggregation[formula]",
                "Invalid default_aggregation[formula]: must be one of count, last, or sum",
            )
        })?;
    let customer_key = params.text("customer_mapping[event_payload_key]")?;
    let mapping_type = params.one_of("customer_mapping[type]", &["by_id"])?;
    if customer_key.is_some() != mapping_type.is_some() {
        return Err(ApiError::missing(if customer_key.is_some() {
            "customer_mapping[type]"
        } else {
            "customer_mapping[event_payload_key]"
        }));
    }
    let value_key = params.text("value_settings[event_payload_key]")?;
    // With a time window only the last event of each window would count. The sandbox does not play that, so it refuses.
    params.finish()?;
    if event_name.len() > 100 {
        return Err(ApiError::invalid_param("event_name", "An event name can have at most 100 characters."));
    }
    if display_name.len() > 250 {
        return Err(ApiError::invalid_param("display_name", "A display name can have at most 250 characters."));
    }
    if world.meters.values().any(|meter| meter.active && meter.event_name == event_name) {
        return Err(ApiError::invalid_param("event_name", format!("A meter with event name {event_name} already exists.")));
    }
    let id = new_id("mtr");
    let meter = Meter {
        id: id.clone(),
        created: world.wall_secs,
        updated: world.wall_secs,
        display_name,
        event_name,
        event_time_window: None,
        customer_key: customer_key.unwrap_or_else(|| "stripe_customer_id".to_owned()),
        value_key: value_key.unwrap_or_else(|| "value".to_owned()),
        formula,
        deactivated_at: None,
        active: true,
    };
    let rendered = meter.render();
    world.meters.insert(&id, meter);
    events::emit(world, "billing.meter.created", None, rendered.clone(), None);
    Ok(rendered)
}

/// `GET /v1/billing/meters/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    find(world, id).map(Meter::render)
}

/// `GET /v1/billing/meters`
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let status = params.one_of("status", &["active", "inactive"])?;
    params.finish()?;
    page.cut(
        &world.meters,
        "meter",
        "/v1/billing/meters",
        |meter| status.as_deref().is_none_or(|status| (status == "active") == meter.active),
        Meter::render,
    )
}

/// Changes a meter and tells it under `event`.
fn change(world: &mut World, id: &str, event: &str, change: impl FnOnce(&mut Meter)) -> Reply {
    let now = world.wall_secs;
    let meter = world.meters.get_mut(id).ok_or_else(|| ApiError::not_found("meter", id))?;
    let before = meter.render();
    change(meter);
    meter.updated = now;
    let after = meter.render();
    let previous = events::previous_attributes(&before, &after);
    events::emit(world, event, None, after.clone(), previous);
    Ok(after)
}

/// `POST /v1/billing/meters/{id}`: only the display name can change. Source: `MeterModifyParams`.
pub(crate) fn update(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let display_name = params.text("display_name")?;
    params.finish()?;
    change(world, id, "billing.meter.updated", |meter| {
        meter.display_name = display_name.unwrap_or_else(|| meter.display_name.clone());
    })
}

/// `POST /v1/billing/meters/{id}/deactivate` and `…/reactivate`
pub(crate) fn set_active(world: &mut World, id: &str, active: bool, params: &mut Params) -> Reply {
    params.finish()?;
    let event_name = find(world, id)?.event_name.clone();
    let taken = world.meters.iter().any(|(other, meter)| other != id && meter.active && meter.event_name == event_name);
    if active && taken {
        return Err(ApiError::invalid(format!("A meter with event name {event_name} already exists.")));
    }
    let now = world.wall_secs;
    let event = if active { "billing.meter.reactivated" } else { "billing.meter.deactivated" };
    change(world, id, event, |meter| {
        meter.active = active;
        meter.deactivated_at = (!active).then_some(now);
    })
}

fn meter_for<'a>(meters: &'a Shelf<Meter>, event_name: &str) -> Option<&'a Meter> {
    let named = || meters.values().filter(|meter| meter.event_name == event_name);
    named().find(|meter| meter.active).or_else(|| named().next())
}

/// What a meter event locks while it is taken: one call at a time per customer and meter. Source: "Rate limits".
pub(crate) fn lock_of(world: &World, params: &Params) -> Option<(String, String)> {
    let event_name = params.peek("event_name")?;
    let key = meter_for(&world.meters, event_name).map_or("stripe_customer_id", |meter| meter.customer_key.as_str());
    let customer = params.peek(&format!("payload[{key}]"))?;
    Some((event_name.to_owned(), customer.to_owned()))
}

/// A whole number of at most 15 digits.
fn read_value(text: &str) -> Result<i64, ApiError> {
    let refused = |message: String| ApiError::invalid_param("payload", message);
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refused(format!("Invalid value for payload: '{text}' is not a whole number.")));
    }
    if digits.trim_start_matches('0').len() > 15 {
        return Err(refused("Meter event values can have at most 15 significant digits.".to_owned()));
    }
    text.parse().map_err(|_| refused("Meter event values can have at most 15 significant digits.".to_owned()))
}

/// `POST /v1/billing/meter_events`. A 200 means that the event was taken, not that it was recorded: what Stripe finds out
/// later (no such customer, no such meter, an inactive one) is told by a thin event.
pub(crate) fn record(world: &mut World, params: &mut Params) -> Reply {
    let event_name = params.required("event_name")?;
    let payload = params.map("payload");
    let identifier = params.text("identifier")?;
    let timestamp = params.int("timestamp")?;
    params.finish()?;
    if payload.is_empty() {
        return Err(ApiError::missing("payload"));
    }
    if event_name.len() > 100 {
        return Err(ApiError::invalid_param("event_name", "An event name can have at most 100 characters."));
    }
    let identifier = identifier.unwrap_or_else(|| new_id("mevt"));
    if identifier.len() > 100 {
        return Err(ApiError::invalid_param("identifier", "An identifier can have at most 100 characters."));
    }
    let mut event = judge(world, &event_name, &payload)?;
    let now = world.now(clock_of(world, &event.customer).as_deref());
    let timestamp = timestamp.unwrap_or(now);
    check_timestamp(timestamp, now)?;
    let fresh_since = world.wall_secs - world.settings.identifier_ttl_secs;
    let known = world.meter_events.iter().any(|known| known.identifier == identifier && known.received_secs > fresh_since);
    if known {
        // Seen in the field without a `code`: langfuse/langfuse#16292.
        return Err(ApiError::invalid(format!("An event already exists with identifier {identifier}.")));
    }
    event.identifier.clone_from(&identifier);
    event.timestamp = timestamp;
    event.rejected = event.rejected.or_else(|| ordered_rejection(world, &event));
    if let Some(code) = event.rejected {
        note_rejected(world, &event, code);
    }
    world.meter_events.push(event);
    Ok(json!({
        "object": "billing.meter_event",
        "created": world.wall_secs,
        "event_name": event_name,
        "identifier": identifier,
        "livemode": false,
        "payload": payload,
        "timestamp": timestamp,
    }))
}

/// The event without its identifier and time, with what makes Stripe throw it away later.
fn judge(world: &World, event_name: &str, payload: &Texts) -> Result<MeterEvent, ApiError> {
    let meter = meter_for(&world.meters, event_name);
    let (customer_key, value_key, formula) = meter.map_or(("stripe_customer_id", "value", Formula::Sum), |meter| {
        (meter.customer_key.as_str(), meter.value_key.as_str(), meter.formula)
    });
    let value = match (payload.get(value_key), formula) {
        (Some(text), _) => read_value(text)?,
        (None, Formula::Count) => 1,
        (None, _) => return Err(ApiError::missing(&format!("payload[{value_key}]"))),
    };
    let customer = payload.get(customer_key).cloned().unwrap_or_default();
    let rejected = match meter {
        None => Some(NO_METER),
        Some(meter) if !meter.active => Some("archived_meter"),
        Some(_) if customer.is_empty() => Some("meter_event_no_customer_defined"),
        Some(_) => customers::live(world, &customer, "customer").is_err().then_some("meter_event_customer_not_found"),
    };
    Ok(MeterEvent {
        identifier: String::new(),
        event_name: event_name.to_owned(),
        meter: meter.map(|meter| meter.id.clone()),
        customer,
        value,
        timestamp: 0,
        received_secs: world.wall_secs,
        rejected,
    })
}

// ---- Thrown away later ----

/// Which meter events are to be thrown away, and why.
#[derive(Clone, Debug)]
pub(crate) struct Rejection {
    event_name: Option<String>,
    customer: Option<String>,
    identifier: Option<String>,
    code: &'static str,
    left: i64,
}

/// `POST /_sandbox/meter_rejections`: the next `count` events of this name, customer or identifier are taken, and thrown away
/// with this code.
pub(crate) fn add_rejection(world: &mut World, params: &mut Params) -> Reply {
    let (event_name, customer, identifier) = (params.text("event_name")?, params.text("customer")?, params.text("identifier")?);
    let code = params.required("code")?;
    let left = params.int("count")?.unwrap_or(1);
    params.finish()?;
    let known = REJECTION_CODES.into_iter().find(|known| *known == code);
    let code = known.ok_or_else(|| ApiError::invalid_param("code", format!("code must be one of {REJECTION_CODES:?}")))?;
    world.settings.rejections.push(Rejection { event_name, customer, identifier, code, left });
    Ok(json!({"rejections": world.settings.rejections.len()}))
}

fn ordered_rejection(world: &mut World, event: &MeterEvent) -> Option<&'static str> {
    let fits = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    let rejection = world.settings.rejections.iter_mut().find(|rejection| {
        rejection.left > 0
            && fits(&rejection.event_name, &event.event_name)
            && fits(&rejection.customer, &event.customer)
            && fits(&rejection.identifier, &event.identifier)
    })?;
    rejection.left -= 1;
    Some(rejection.code)
}

/// Events of one meter that were thrown away and are not told of yet.
#[derive(Debug)]
pub(crate) struct Rejected {
    since: i64,
    /// The identifiers by code.
    identifiers: BTreeMap<&'static str, Vec<String>>,
}

/// Remembers an event until its meter's next report, and orders that report if none is under way.
fn note_rejected(world: &mut World, event: &MeterEvent, code: &'static str) {
    let meter = event.meter.clone().filter(|_| code != NO_METER);
    if !world.rejected.contains_key(&meter) {
        world.reports_due.push(meter.clone());
    }
    let now = world.wall_secs;
    let rejected = world.rejected.entry(meter).or_insert_with(|| Rejected { since: now, identifiers: BTreeMap::new() });
    rejected.identifiers.entry(code).or_default().push(event.identifier.clone());
}

/// Tells of what was thrown away, by samples. Source: SDK types of the two events and of their `data`.
pub(crate) fn report_rejected(world: &mut World, meter: Option<String>) {
    let Some(rejected) = world.rejected.remove(&meter) else { return };
    let types: Vec<Value> = rejected
        .identifiers
        .iter()
        .map(|(code, identifiers)| {
            // Of several never all, so that nobody comes to rely on it.
            let shown = MOST_SAMPLES.min(identifiers.len().saturating_sub(1)).max(1);
            let message = format!("The event was not recorded: {code}.");
            let sample = |identifier| json!({"error_message": message, "request": {"identifier": identifier}});
            let samples: Vec<Value> = identifiers.iter().take(shown).map(sample).collect();
            json!({"code": code, "error_count": identifiers.len(), "sample_errors": samples})
        })
        .collect();
    let count: usize = rejected.identifiers.values().map(Vec::len).sum();
    let data = json!({
        "developer_message_summary": format!("There are {count} invalid meter events."),
        "reason": {"error_count": count, "error_types": types},
        "validation_start": events::rfc3339(rejected.since),
        "validation_end": events::rfc3339(world.wall_secs),
    });
    let (kind, related) = match meter {
        Some(id) => {
            let url = format!("/v1/billing/meters/{id}");
            ("v1.billing.meter.error_report_triggered", json!({"id": id, "type": "billing.meter", "url": url}))
        }
        None => ("v1.billing.meter.no_meter_found", Value::Null),
    };
    events::emit_thin(world, kind, related, data);
}

fn clock_of(world: &World, customer: &str) -> Option<String> {
    world.customers.get(customer)?.clock.clone()
}

/// Source: `MeterEventCreateParams.timestamp`: within the past 35 days, at most 5 minutes ahead.
/// The message about the past was seen in the field: the-answerai/theanswer#624.
fn check_timestamp(timestamp: i64, now: i64) -> Result<(), ApiError> {
    let oldest = now - 35 * DAY_SECS;
    let newest = now + 5 * 60;
    if timestamp < oldest {
        return Err(ApiError::invalid_param(
            "timestamp",
            format!(
                "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to {oldest}."
            ),
        ));
    }
    if timestamp > newest {
        return Err(ApiError::invalid_param(
            "timestamp",
            format!(
                "The event timestamp cannot be more than 5 minutes in the future. Expected a timestamp less than or equal to {newest}."
            ),
        ));
    }
    Ok(())
}

/// A customer's recorded events of a meter in `[from, to)`.
fn recorded<'a>(
    world: &'a World,
    meter: &'a Meter,
    customer: &'a str,
    from: i64,
    to: i64,
) -> impl Iterator<Item = &'a MeterEvent> {
    world.meter_events.iter().filter(move |event| {
        event.rejected.is_none()
            && event.meter.as_ref() == Some(&meter.id)
            && event.customer == customer
            && (from..to).contains(&event.timestamp)
    })
}

/// The usage a meter's price bills for `[from, to)`.
pub(crate) fn usage(world: &World, meter: &str, customer: &str, from: i64, to: i64) -> i64 {
    world.meters.get(meter).map_or(0, |meter| meter.formula.apply(recorded(world, meter, customer, from, to)))
}

/// `GET /v1/billing/meters/{id}/event_summaries`: newest window first; windows without events are left out.
pub(crate) fn summaries(world: &World, id: &str, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    let customer = params.required("customer")?;
    let start = params.required_int("start_time")?;
    let end = params.required_int("end_time")?;
    let window = params.one_of("value_grouping_window", &["hour", "day"])?;
    params.finish()?;
    let meter = find(world, id)?;
    // The deleted form is no customer here either.
    customers::live(world, &customer, "customer")?;
    let (step, unit) = match window.as_deref() {
        None => (60, "minute"),
        Some("hour") => (HOUR_SECS, "hour"),
        Some(_) => (DAY_SECS, "UTC day"),
    };
    for (param, at) in [("start_time", start), ("end_time", end)] {
        if at.rem_euclid(step) != 0 {
            return Err(ApiError::invalid_param(param, format!("{param} must be aligned with {unit} boundaries.")));
        }
    }
    if start >= end {
        return Err(ApiError::invalid_param("end_time", "end_time must be after start_time."));
    }
    let visible_until = world.wall_secs - world.settings.summary_lag_secs;
    let mut windows: BTreeMap<i64, Vec<&MeterEvent>> = BTreeMap::new();
    for event in recorded(world, meter, &customer, start, end) {
        if event.received_secs > visible_until {
            continue;
        }
        let window_start = if window.is_some() { event.timestamp - event.timestamp.rem_euclid(step) } else { start };
        windows.entry(window_start).or_default().push(event);
    }
    let mut shelf = Shelf::default();
    for (window_start, events) in windows {
        let window_end = if window.is_some() { window_start + step } else { end };
        // The id names the window, so that pagination can continue from it.
        let summary = format!("mtrusg_{}_{window_start}_{window_end}", meter.id);
        let value = meter.formula.apply(events.into_iter());
        shelf.insert(
            &summary,
            json!({
                "id": summary,
                "object": "billing.meter_event_summary",
                "aggregated_value": float(value),
                "end_time": window_end,
                "livemode": false,
                "meter": meter.id,
                "start_time": window_start,
            }),
        );
    }
    page.cut(&shelf, "meter_event_summary", &format!("/v1/billing/meters/{id}/event_summaries"), |_| true, Value::clone)
}

/// Source: SDK type `MeterEventSummary.aggregated_value` is a float. Written with its point, so that no client may take it
/// for an integer by luck.
fn float(value: i64) -> Value {
    serde_json::from_str(&format!("{value}.0")).unwrap_or(Value::Null)
}
