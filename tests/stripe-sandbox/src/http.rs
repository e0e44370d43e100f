//! The HTTP side: authentication, versions, idempotency, routing, answers.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::control::{self, RequestRecord};
use crate::error::{ApiError, Reply};
use crate::events::{ACCOUNT_API_VERSION, Cause};
use crate::form::Params;
use crate::world::{World, new_id};
use crate::{
    charges, checkout, clock, customers, disputes, events, invoices, limits, meters, payment_methods, portal, prices, products,
    subscriptions, webhooks,
};

/// The largest body that is read.
const MAX_BODY_BYTES: usize = 1 << 20;
/// How long a test clock takes before it begins to move.
const ADVANCE_DELAY_MS: u64 = 20;

/// An answer that is given again under the same idempotency key.
#[derive(Clone, Debug)]
pub(crate) struct SavedAnswer {
    method: String,
    path: String,
    params: BTreeMap<String, String>,
    status: u16,
    body: Value,
}

/// What requests and background tasks share.
#[derive(Debug)]
pub(crate) struct Shared {
    world: Mutex<World>,
    /// For deliveries. Redirects are not followed: for Stripe they are failures.
    pub(crate) client: reqwest::Client,
    tasks: Mutex<JoinSet<()>>,
}

impl Shared {
    /// An empty sandbox.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let client =
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).timeout(Duration::from_secs(20)).build()?;
        Ok(Self { world: Mutex::new(World::default()), client, tasks: Mutex::new(JoinSet::new()) })
    }

    /// Works on the world, at the present real time.
    pub(crate) fn with_world<T>(&self, work: impl FnOnce(&mut World) -> T) -> T {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.wall_secs = real_time();
        work(&mut world)
    }

    /// Runs a task until the sandbox is shut down.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Ends all tasks.
    pub(crate) fn abort_tasks(&self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place where the sandbox reads the real clock")]
fn real_time() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A version the fixed layout of the sandbox is right for: the release train endive, from 2026-09-30 on.
pub(crate) fn is_supported_version(version: &str) -> bool {
    version.split_once('.').is_some_and(|(date, name)| {
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = date.split('-').collect();
        let dated = matches!(parts.as_slice(), [year, month, day]
            if [year.len(), month.len(), day.len()] == [4, 2, 2] && [year, month, day].iter().all(|part| digits(part)));
        dated && date >= "2026-09-30" && name == "endive"
    })
}

/// What the answer to a request is made of.
struct Answer {
    status: u16,
    body: Value,
    replayed: bool,
    limited_by: Option<&'static str>,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        let (status, body, limited_by) = match reply {
            Ok(body) => (200, body, None),
            Err(error) => (error.status, error.body(), error.limited_by),
        };
        Self { status, body, replayed: false, limited_by }
    }
}

/// A request, read.
struct Call {
    method: String,
    path: String,
    request_id: String,
    idempotency_key: Option<String>,
    stripe_version: Option<String>,
}

/// Answers every request. A caller that goes away ends only its own waiting: what it asked for happens all the same.
pub(crate) async fn handle(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let (send, answer) = tokio::sync::oneshot::channel();
    let serving = Arc::clone(&shared);
    shared.spawn(async move {
        // Nobody may be there any more to take it.
        let _ = send.send(answer_to(&serving, request).await);
    });
    answer.await.unwrap_or_else(|_| lost_answer())
}

async fn answer_to(shared: &Arc<Shared>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let call = Call {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        request_id: new_id("req"),
        idempotency_key: text("idempotency-key"),
        stripe_version: text("stripe-version"),
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(body, MAX_BODY_BYTES)
        .await
        .map_err(|_| ApiError { status: 413, ..ApiError::invalid("The request is too large.") })
        .and_then(|bytes| String::from_utf8(bytes.to_vec()).map_err(|_| ApiError::invalid("Invalid form encoding.")));
    let is_api = call.path.starts_with("/v1/") || call.path.starts_with("/v2/");
    let read = body.and_then(|body| {
        if is_api {
            check_headers(&parts.headers, &call, !body.is_empty())?;
        }
        Params::parse(&query, &body)
    });
    let answer = match read {
        Err(error) => Some(Answer::from(Err(error))),
        Ok(params) if is_api => serve(shared, &call, params).await,
        Ok(mut params) => Some(Answer::from(shared.with_world(|world| {
            let segments: Vec<&str> = call.path.trim_matches('/').split('/').collect();
            let reply = match segments.split_first() {
                Some((&"_sandbox", rest)) => control::route(world, &call.method, rest, &mut params),
                _ => Err(ApiError::unknown_route(&call.method, &call.path)),
            };
            webhooks::hand_out(shared, world);
            reply
        }))),
    };
    if is_api {
        shared.with_world(|world| {
            world.requests.push(RequestRecord {
                method: call.method.clone(),
                path: call.path.clone(),
                status: answer.as_ref().map_or(0, |answer| answer.status),
                idempotency_key: call.idempotency_key.clone(),
                stripe_version: call.stripe_version.clone(),
                request_id: call.request_id.clone(),
                at: world.wall_secs,
            });
        });
    }
    match answer {
        Some(answer) => respond(&call, &answer),
        None => lost_answer(),
    }
}

/// Key, version and content type.
fn check_headers(headers: &HeaderMap, call: &Call, has_body: bool) -> Result<(), ApiError> {
    let key = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(api_key);
    match key {
        None => {
            return Err(ApiError::unauthorised(
                "You did not provide an API key. You need to provide your API key in the Authorization header.",
            ));
        }
        Some(key) => {
            let secret = key.strip_prefix("sk_test_").or_else(|| key.strip_prefix("rk_test_"));
            if secret.is_none_or(str::is_empty) {
                return Err(ApiError::unauthorised("Invalid API Key provided."));
            }
        }
    }
    if let Some(version) = &call.stripe_version
        && !is_supported_version(version)
    {
        return Err(ApiError::invalid(format!(
            "Invalid Stripe API version: {version}. This sandbox speaks the release train endive, from 2026-09-30.endive on."
        )));
    }
    let form = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/x-www-form-urlencoded"));
    if has_body && !form {
        return Err(ApiError::invalid(
            "Invalid request (check that your POST content type is application/x-www-form-urlencoded).",
        ));
    }
    Ok(())
}

/// The key of `Bearer …` or of Basic authentication's user name.
fn api_key(value: &str) -> Option<String> {
    let (scheme, credentials) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.trim().to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(base64(credentials.trim())?).ok()?;
    Some(decoded.split_once(':')?.0.to_owned())
}

fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for symbol in text.trim_end_matches('=').bytes() {
        let value = ALPHABET.iter().position(|known| *known == symbol)?;
        bits = (bits << 6) | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// Serves one call of the API; `None` if the caller is not to get an answer.
async fn serve(shared: &Arc<Shared>, call: &Call, mut params: Params) -> Option<Answer> {
    let fault = shared.with_world(|world| {
        limits::check(world, &call.method, &call.path).map(|()| control::take_fault(world, &call.method, &call.path))
    });
    let fault = match fault {
        Ok(fault) => fault.unwrap_or_default(),
        Err(error) => return Some(Answer::from(Err(error))),
    };
    // Source: "Idempotent requests": POST only; a saved answer is given again, 500s included; other parameters are an error.
    let key = call.idempotency_key.clone().filter(|_| call.method == "POST");
    if let Some(key) = &key {
        let claimed = shared.with_world(|world| claim_key(world, key, call, &params));
        match claimed {
            Ok(None) => {}
            Ok(Some(saved)) => return Some(saved).filter(|_| !fault.drop),
            Err(error) => return Some(Answer::from(Err(error))),
        }
    }
    let late = Duration::from_millis(fault.delay_ms);
    if !fault.after_effect {
        tokio::time::sleep(late).await;
    }
    let mut answer = fault.answer().map(Answer::from);
    let is_ordered = answer.is_some();
    if fault.after_effect || (answer.is_none() && !fault.drop) {
        let performed = Answer::from(perform(shared, call, &mut params).await);
        answer.get_or_insert(performed);
    }
    if let Some(key) = &key {
        shared.with_world(|world| {
            world.keys_in_use.remove(key);
            if let Some(answer) = &answer
                && is_saved(answer.status, is_ordered || params.are_accepted())
            {
                world.saved_answers.insert(
                    key.clone(),
                    SavedAnswer {
                        method: call.method.clone(),
                        path: call.path.clone(),
                        params: params.entries().clone(),
                        status: answer.status,
                        body: answer.body.clone(),
                    },
                );
            }
        });
    }
    if fault.after_effect {
        tokio::time::sleep(late).await;
    }
    // A lost answer was given, and is given again under its key.
    answer.filter(|_| !fault.drop)
}

/// Whatever a call came to once it was being executed is saved; failed validation, conflicts and limits are not.
fn is_saved(status: u16, was_executed: bool) -> bool {
    was_executed && !matches!(status, 401 | 409 | 429)
}

/// Claims a key for a request under way, or finds its saved answer.
fn claim_key(world: &mut World, key: &str, call: &Call, params: &Params) -> Result<Option<Answer>, ApiError> {
    if key.is_empty() || key.len() > 255 {
        return Err(ApiError::invalid("An idempotency key has 1 to 255 characters."));
    }
    if let Some(saved) = world.saved_answers.get(key) {
        if saved.method != call.method || saved.path != call.path || &saved.params != params.entries() {
            return Err(ApiError {
                kind: "idempotency_error",
                ..ApiError::invalid(format!(
                    "Keys for idempotent requests can only be used with the same parameters they were first used with. \
                     Try using a key other than '{key}' if you meant to execute a different request."
                ))
            });
        }
        return Ok(Some(Answer { status: saved.status, body: saved.body.clone(), replayed: true, limited_by: None }));
    }
    if !world.keys_in_use.insert(key.to_owned()) {
        return Err(ApiError {
            status: 409,
            kind: "idempotency_error",
            code: Some("idempotency_key_in_use"),
            ..ApiError::invalid("There is currently another in-progress request using this Idempotent Key.")
        });
    }
    Ok(None)
}

/// Does what the call asks for.
async fn perform(shared: &Arc<Shared>, call: &Call, params: &mut Params) -> Reply {
    let segments: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
    let meter_lock = if (call.method.as_str(), segments.as_slice()) == ("POST", &["v1", "billing", "meter_events"]) {
        shared.with_world(|world| match meters::lock_of(world, params) {
            Some(lock) if !world.meter_locks.insert(lock.clone()) => Err(ApiError::lock_timeout()),
            lock => Ok(lock.map(|lock| (lock, world.settings.meter_call_ms))),
        })?
    } else {
        None
    };
    if let Some((_, call_ms)) = meter_lock {
        tokio::time::sleep(Duration::from_millis(call_ms)).await;
    }
    let reply = shared.with_world(|world| {
        if let Some((lock, _)) = &meter_lock {
            world.meter_locks.remove(lock);
        }
        world.cause = Some(Cause { request_id: call.request_id.clone(), idempotency_key: call.idempotency_key.clone() });
        checkout::expire_old(world);
        let reply = route(world, &call.method, &segments, params);
        world.cause = None;
        webhooks::hand_out(shared, world);
        reply
    });
    if let ("POST", ["v1", "test_helpers", "test_clocks", id, "advance"], Ok(_)) =
        (call.method.as_str(), segments.as_slice(), &reply)
    {
        shared.spawn(advance(Arc::clone(shared), (*id).to_owned()));
    }
    reply
}

/// Moves a clock, one happening at a time, so that what lies between can be seen.
async fn advance(shared: Arc<Shared>, clock: String) {
    tokio::time::sleep(Duration::from_millis(ADVANCE_DELAY_MS)).await;
    loop {
        let more = shared.with_world(|world| {
            let more = clock::step(world, &clock);
            webhooks::hand_out(&shared, world);
            more
        });
        if !more {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// Every route of the API.
fn route(world: &mut World, method: &str, path: &[&str], params: &mut Params) -> Reply {
    let resource = match path {
        ["v1", resource @ ..] => resource,
        ["v2", "core", "events", id] if method == "GET" => return events::retrieve_thin(world, id, params),
        _ => &[],
    };
    match (method, resource) {
        ("POST", ["customers"]) => customers::create(world, params),
        ("GET", ["customers"]) => customers::list(world, params),
        ("GET", ["customers", id]) => customers::retrieve(world, id, params),
        ("POST", ["customers", id]) => customers::update(world, id, params),
        ("DELETE", ["customers", id]) => customers::delete(world, id, params),
        ("GET", ["payment_methods", id]) => payment_methods::retrieve(world, id, params),
        ("POST", ["payment_methods", id, "attach"]) => payment_methods::attach(world, id, params),
        ("POST", ["products"]) => products::create(world, params),
        ("GET", ["products"]) => products::list(world, params),
        ("GET", ["products", id]) => products::retrieve(world, id, params),
        ("POST", ["products", id]) => products::update(world, id, params),
        ("POST", ["prices"]) => prices::create(world, params),
        ("GET", ["prices"]) => prices::list(world, params),
        ("GET", ["prices", id]) => prices::retrieve(world, id, params),
        ("POST", ["prices", id]) => prices::update(world, id, params),
        ("POST", ["billing", "meters"]) => meters::create(world, params),
        ("GET", ["billing", "meters"]) => meters::list(world, params),
        ("GET", ["billing", "meters", id]) => meters::retrieve(world, id, params),
        ("POST", ["billing", "meters", id]) => meters::update(world, id, params),
        ("POST", ["billing", "meters", id, "deactivate"]) => meters::set_active(world, id, false, params),
        ("POST", ["billing", "meters", id, "reactivate"]) => meters::set_active(world, id, true, params),
        ("GET", ["billing", "meters", id, "event_summaries"]) => meters::summaries(world, id, params),
        ("POST", ["billing", "meter_events"]) => meters::record(world, params),
        ("POST", ["billing_portal", "configurations"]) => portal::create(world, params),
        ("GET", ["billing_portal", "configurations"]) => portal::list(world, params),
        ("GET", ["billing_portal", "configurations", id]) => portal::retrieve(world, id, params),
        ("POST", ["billing_portal", "configurations", id]) => portal::update(world, id, params),
        ("POST", ["billing_portal", "sessions"]) => portal::create_session(world, params),
        ("POST", ["checkout", "sessions"]) => checkout::create(world, params),
        ("GET", ["checkout", "sessions"]) => checkout::list(world, params),
        ("GET", ["checkout", "sessions", id]) => checkout::retrieve(world, id, params),
        ("POST", ["checkout", "sessions", id, "expire"]) => checkout::expire(world, id, params),
        ("GET", ["charges"]) => charges::list(world, params),
        ("GET", ["charges", id]) => charges::retrieve(world, id, params),
        ("GET", ["invoice_payments"]) => charges::list_payments(world, params),
        ("POST", ["refunds"]) => charges::refund(world, params),
        ("GET", ["refunds", id]) => charges::retrieve_refund(world, id, params),
        ("GET", ["disputes"]) => disputes::list(world, params),
        ("GET", ["disputes", id]) => disputes::retrieve(world, id, params),
        ("POST", ["disputes", id, "close"]) => disputes::close(world, id, params),
        ("POST", ["subscriptions"]) => subscriptions::create(world, params),
        ("GET", ["subscriptions"]) => subscriptions::list(world, params),
        ("GET", ["subscriptions", id]) => subscriptions::retrieve(world, id, params),
        ("POST", ["subscriptions", id]) => subscriptions::update(world, id, params),
        ("POST", ["subscriptions", id, "pause"]) => subscriptions::pause_by_request(world, id, params),
        ("POST", ["subscriptions", id, "resume"]) => subscriptions::resume(world, id, params),
        ("DELETE", ["subscriptions", id]) => subscriptions::cancel(world, id, params),
        ("GET", ["invoices"]) => invoices::list(world, params),
        ("GET", ["invoices", id]) => invoices::retrieve(world, id, params),
        ("POST", ["invoices", id, "pay"]) => invoices::pay(world, id, params),
        ("POST", ["invoices", id, "void"]) => invoices::void(world, id, params),
        ("POST", ["invoices", id, "finalize"]) => invoices::finalise_by_request(world, id, params),
        ("POST", ["invoices", id, "mark_uncollectible"]) => invoices::mark_uncollectible(world, id, params),
        ("POST", ["test_helpers", "test_clocks"]) => clock::create(world, params),
        ("GET", ["test_helpers", "test_clocks"]) => clock::list(world, params),
        ("GET", ["test_helpers", "test_clocks", id]) => clock::retrieve(world, id, params),
        ("DELETE", ["test_helpers", "test_clocks", id]) => clock::delete(world, id, params),
        ("POST", ["test_helpers", "test_clocks", id, "advance"]) => clock::advance(world, id, params),
        ("POST", ["webhook_endpoints"]) => webhooks::create(world, params),
        ("GET", ["webhook_endpoints"]) => webhooks::list(world, params),
        ("GET", ["webhook_endpoints", id]) => webhooks::retrieve(world, id, params),
        ("POST", ["webhook_endpoints", id]) => webhooks::update(world, id, params),
        ("DELETE", ["webhook_endpoints", id]) => webhooks::delete(world, id, params),
        ("GET", ["events"]) => events::list(world, params),
        ("GET", ["events", id]) => events::retrieve(world, id, params),
        _ => Err(ApiError::unknown_route(method, &format!("/{}", path.join("/")))),
    }
}

fn respond(call: &Call, answer: &Answer) -> Response<Body> {
    let text = serde_json::to_string_pretty(&answer.body).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("request-id", call.request_id.clone()),
        ("stripe-version", call.stripe_version.clone().unwrap_or_else(|| ACCOUNT_API_VERSION.to_owned())),
    ];
    if let Some(key) = &call.idempotency_key {
        headers.push(("idempotency-key", key.clone()));
    }
    if let Some(limit) = answer.limited_by {
        headers.push(("stripe-rate-limited-reason", limit.to_owned()));
    }
    if answer.replayed {
        headers.push(("idempotent-replayed", "true".to_owned()));
    }
    if matches!(answer.status, 400 | 401 | 402 | 404) {
        headers.push(("stripe-should-retry", "false".to_owned()));
    }
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// An answer that breaks off, as when the connection is lost after the request was taken.
fn lost_answer() -> Response<Body> {
    let broken = futures_util::stream::once(async {
        Err::<Vec<u8>, _>(std::io::Error::other("the sandbox was told to lose this answer"))
    });
    let mut response = Response::new(Body::from_stream(broken));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("1000"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_release_train_of_the_layout_is_spoken() {
        for version in ["2026-09-30.endive", "2026-10-28.endive", "2026-12-16.endive"] {
            assert!(is_supported_version(version), "{version}");
        }
        for version in
            ["2026-08-26.dahlia", "2025-03-31.basil", "2024-06-20", "", "endive", "2026-9-30.endive", "2026-01-01.endive"]
        {
            assert!(!is_supported_version(version), "{version}");
        }
    }

    #[test]
    fn keys_come_as_bearer_or_as_user_name() {
        assert_eq!(api_key("Bearer sk_test_1").unwrap(), "sk_test_1");
        assert_eq!(api_key("Basic c2tfdGVzdF8xOg==").unwrap(), "sk_test_1");
        assert!(api_key("Basic !!!").is_none());
        assert!(api_key("Digest x").is_none());
    }
}
