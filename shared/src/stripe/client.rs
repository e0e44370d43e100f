//! The HTTP client under async-stripe's request builders.

use std::{
    error::Error,
    fmt::{Display, Write as _},
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use stripe_client_core::{CustomizableStripeRequest, CustomizedStripeRequest, RequestStrategy, StripeClientErr, StripeMethod};

use super::{
    decode::ErrorBody,
    key::KeySource,
    retry::{Backoff, Limits, asked_wait_secs, is_transient},
};
use crate::{
    connection::{Connector, IDLE_TIMEOUT, NoTls, connector},
    ports::StripeError,
};

/// Stripe's own API.
pub const STRIPE_URL: &str = "https://api.stripe.com";

/// What stands for a request's name where no answer named one.
const NO_REQUEST_ID: &str = "none";

/// Stripe's message is kept up to here.
const MESSAGE_CHARS: usize = 500;

type Http = Client<Connector, Full<Bytes>>;

/// Why no client can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStripeClient {
    /// The base URL cannot be used.
    #[error("Stripe's base URL {0}")]
    Url(&'static str),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] NoTls),
}

/// A decoded answer, with Stripe's name of the request.
#[derive(Debug, Clone)]
pub struct Answered<T> {
    /// What Stripe answered.
    pub value: T,
    /// The header `Request-Id`.
    pub request_id: String,
}

/// Calls Stripe: over connections that stay open, with a time limit, with retries where a repetition does no harm.
///
/// What may be repeated: `GET`; a `POST` that carries the caller's idempotency key
/// ([`RequestStrategy::Idempotent`]); a meter event, whose identifier deduplicates it (an idempotency key would replay a
/// saved 500 for a day). Anything else is attempted once.
pub struct StripeClient<K> {
    keys: K,
    base_url: String,
    limits: Limits,
    pooled: Http,
    /// Takes a new connection for every request. After a Lambda function was frozen, any number of pooled connections may be
    /// dead without our side knowing; so an attempt that follows a broken connection does not take its chance with the next.
    unpooled: Http,
}

impl<K: KeySource> StripeClient<K> {
    /// A client for Stripe's own API, or for the one at `base_url` if it is neither absent nor empty.
    ///
    /// # Errors
    /// [`InvalidStripeClient`] if the URL is none, or is plain `http` to another machine: the API key would be readable.
    pub fn new(base_url: Option<&str>, keys: K) -> Result<Self, InvalidStripeClient> {
        let base_url = checked_base_url(base_url.unwrap_or_default())?;
        let connector = connector(None)?;
        let pooled = Client::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector.clone());
        let unpooled = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { keys, base_url, limits: Limits::default(), pooled, unpooled })
    }

    /// The same client with other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sends a request and decodes the answer. `route` is the request's path with `{id}` for every id, such as
    /// `/v1/customers/{id}`; it is what the log and the errors show, and what the path is checked against.
    ///
    /// # Errors
    /// [`StripeError`]; an answer that is not a `T` is [`StripeError::Unreadable`].
    pub async fn send<T: miniserde::Deserialize>(
        &self,
        route: &'static str,
        request: CustomizableStripeRequest<T>,
    ) -> Result<Answered<T>, StripeError> {
        let call = Call { client: self, route, request_id: OnceLock::new() };
        let sent = request.send(&call).await;
        let id = call.request_id.into_inner().unwrap_or_else(|| NO_REQUEST_ID.to_owned());
        match sent {
            Ok(value) => Ok(Answered { value, request_id: id }),
            // Decoding happens in async-stripe, which does not know the request's name.
            Err(StripeError::Unreadable { reason, request_id }) if request_id.is_empty() => {
                Err(StripeError::Unreadable { reason: format!("{route}: {reason}"), request_id: id })
            }
            Err(error) => Err(error),
        }
    }

    /// All attempts of one call.
    async fn call(&self, route: &'static str, wanted: CustomizedStripeRequest) -> Result<(Bytes, String), StripeError> {
        let request = Prepared::new(&self.base_url, route, wanted)?;
        let key = self.keys.key().await.map_err(|reason| unavailable(format!("there is no API key: {reason}")))?;
        let attempts = if request.repeatable { self.limits.attempts.max(1) } else { 1 };
        let mut backoff = Backoff::new(&self.limits, fastrand::Rng::new());
        let mut http = &self.pooled;
        let mut attempt = 0_u32;
        loop {
            attempt = attempt.saturating_add(1);
            let started = Instant::now();
            let result = self.attempt(http, &request, key.authorization()).await;
            log(route, request.method.as_str(), attempt, started, &result);
            let (error, again, retry_after_secs) = match result {
                Ok(answer) if answer.is_success() => return Ok((answer.body, answer.request_id)),
                Ok(answer) => (answer.refusal(&request.method), answer.is_transient(), answer.asked_wait_secs()),
                Err(NoAnswer::TooLong { request_id }) => {
                    let reason = format!("{route}: it has more than {} bytes", self.limits.response_bytes);
                    (StripeError::Unreadable { reason, request_id }, false, None)
                }
                Err(NoAnswer::Broken { reason, request_id }) => {
                    http = &self.unpooled;
                    (StripeError::Unavailable { reason, retry_after_secs: None, request_id }, true, None)
                }
            };
            if !again || attempt >= attempts {
                return Err(error);
            }
            match backoff.next(&self.limits, retry_after_secs) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    async fn attempt(&self, http: &Http, request: &Prepared, authorization: HeaderValue) -> Result<Answer, NoAnswer> {
        let exchange = async {
            let response = http.request(request.build(authorization)).await.map_err(|error| NoAnswer::broken(&error, ""))?;
            let (head, body) = response.into_parts();
            let request_id = text(&head.headers, "request-id").unwrap_or(NO_REQUEST_ID).to_owned();
            let body = match Limited::new(body, self.limits.response_bytes).collect().await {
                Ok(body) => body.to_bytes(),
                Err(error) if error.is::<LengthLimitError>() => return Err(NoAnswer::TooLong { request_id }),
                Err(error) => return Err(NoAnswer::broken(error.as_ref(), &request_id)),
            };
            Ok(Answer {
                status: head.status.as_u16(),
                should_retry: text(&head.headers, "stripe-should-retry").and_then(|word| word.parse().ok()),
                retry_after_secs: text(&head.headers, "retry-after").and_then(|secs| secs.trim().parse().ok()),
                limited_by: text(&head.headers, "stripe-rate-limited-reason").map(str::to_owned),
                request_id,
                body,
            })
        };
        let timeout = request.timeout.unwrap_or(self.limits.attempt_timeout);
        tokio::time::timeout(timeout, exchange).await.unwrap_or_else(|_| {
            Err(NoAnswer::Broken {
                reason: format!("no answer within {} ms", timeout.as_millis()),
                request_id: NO_REQUEST_ID.to_owned(),
            })
        })
    }
}

/// One call, as async-stripe's builders see it. It keeps the request's name, which their interface has no room for.
struct Call<'a, K> {
    client: &'a StripeClient<K>,
    route: &'static str,
    request_id: OnceLock<String>,
}

impl<K: KeySource> stripe_client_core::StripeClient for Call<'_, K> {
    type Err = StripeError;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, StripeError> {
        let (body, request_id) = self.client.call(self.route, request).await?;
        self.request_id.get_or_init(|| request_id);
        Ok(body)
    }
}

impl StripeClientErr for StripeError {
    fn deserialize_err(message: impl Display) -> Self {
        Self::Unreadable { reason: message.to_string(), request_id: String::new() }
    }
}

/// A request in the form in which every attempt sends it.
struct Prepared {
    method: http::Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
    timeout: Option<Duration>,
    repeatable: bool,
}

impl Prepared {
    fn new(base_url: &str, route: &'static str, wanted: CustomizedStripeRequest) -> Result<Self, StripeError> {
        let (request, options) = wanted.into_pieces();
        let method = match request.method {
            StripeMethod::Get => http::Method::GET,
            StripeMethod::Post => http::Method::POST,
            StripeMethod::Delete => http::Method::DELETE,
        };
        // The builders put ids into paths as they are. One that changes the path cannot be Stripe's, so nothing has its name.
        let path = format!("/v1{}", request.path);
        if !is_path_of(route, &path) {
            return Err(StripeError::NotFound { request_id: NO_REQUEST_ID.to_owned() });
        }
        let query = request.query.filter(|query| !query.is_empty()).map(|query| format!("?{query}")).unwrap_or_default();
        let uri = format!("{base_url}{path}{query}");
        let uri = uri.parse().map_err(|_| unusable("its parameters make no URL"))?;

        let mut headers = HeaderMap::new();
        headers.insert("stripe-version", HeaderValue::from_static(stripe_client_core::VERSION.as_str()));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("tokentill/", env!("CARGO_PKG_VERSION"))));
        if request.body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        if let Some(account) = &options.account_id {
            headers.insert("stripe-account", HeaderValue::from_str(account.as_str()).map_err(|_| unusable("no such account"))?);
        }
        let key = options.request_strategy.as_ref().and_then(RequestStrategy::get_key);
        if let Some(key) = &key {
            let key = HeaderValue::from_str(key.as_str()).map_err(|_| unusable("its idempotency key is not printable ASCII"))?;
            headers.insert("idempotency-key", key);
        }
        let repeatable = method == http::Method::GET || key.is_some() || route == super::meter::METER_EVENTS;
        let body = Bytes::from(request.body.unwrap_or_default());
        Ok(Self { method, uri, headers, body, timeout: options.timeout, repeatable })
    }

    fn build(&self, authorization: HeaderValue) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::AUTHORIZATION, authorization);
        request
    }
}

/// Stripe's answer, whatever it says.
struct Answer {
    status: u16,
    request_id: String,
    should_retry: Option<bool>,
    retry_after_secs: Option<u32>,
    /// Which limit was met, in Stripe's words. A 429 without it is a lock that somebody else holds.
    limited_by: Option<String>,
    body: Bytes,
}

/// An attempt that brought no answer.
enum NoAnswer {
    /// A timeout, or a connection that could not be made or broke.
    Broken { reason: String, request_id: String },
    /// The answer is longer than we read.
    TooLong { request_id: String },
}

impl NoAnswer {
    /// The whole chain of causes: the outermost error only says that something did not work.
    fn broken(error: &(dyn Error + 'static), request_id: &str) -> Self {
        let mut reason = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            // Writing to a `String` cannot fail.
            let _ = write!(reason, ": {error}");
            cause = error.source();
        }
        let request_id = if request_id.is_empty() { NO_REQUEST_ID } else { request_id };
        Self::Broken { reason, request_id: request_id.to_owned() }
    }
}

impl Answer {
    fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    fn is_transient(&self) -> bool {
        is_transient(self.status, self.should_retry)
    }

    fn asked_wait_secs(&self) -> Option<u32> {
        asked_wait_secs(self.retry_after_secs, self.limited_by.as_deref())
    }

    /// What an answer that is no success means. A refusal is final, so it takes Stripe's own words: without Stripe's error
    /// in the body, it was something between us and Stripe that answered.
    fn refusal(&self, method: &http::Method) -> StripeError {
        let (status, request_id) = (self.status, self.request_id.clone());
        let parsed = std::str::from_utf8(&self.body).ok().and_then(|text| miniserde::json::from_str::<ErrorBody>(text).ok());
        let Some(error) = parsed.and_then(|body| body.error) else {
            if matches!(status, 401 | 403) {
                return StripeError::Unauthorised { status, code: "unknown".to_owned(), request_id };
            }
            let reason = format!("HTTP {status} without Stripe's error");
            return StripeError::Unavailable { reason, retry_after_secs: self.asked_wait_secs(), request_id };
        };
        let code = error.code.or(error.r#type).unwrap_or_else(|| "unknown".to_owned());
        // A server's error or a conflict is of unknown outcome even if Stripe asks not to repeat it: that only says that a
        // repetition would bring the same answer, as with a saved 500.
        if is_transient(status, None) || self.is_transient() || status < 400 {
            let limit = self.limited_by.as_ref().map(|limit| format!(" ({limit})")).unwrap_or_default();
            let reason = format!("HTTP {status} {code}{limit}");
            return StripeError::Unavailable { reason, retry_after_secs: self.asked_wait_secs(), request_id };
        }
        match status {
            401 | 403 => StripeError::Unauthorised { status, code, request_id },
            // A list with a filter that names nothing is a 400 with this code.
            _ if *method == http::Method::GET && (status == 404 || code == "resource_missing") => {
                StripeError::NotFound { request_id }
            }
            _ => {
                let message = error.message.unwrap_or_default().chars().take(MESSAGE_CHARS).collect();
                StripeError::Refused { status, code, message, request_id }
            }
        }
    }
}

fn unavailable(reason: String) -> StripeError {
    StripeError::Unavailable { reason, retry_after_secs: None, request_id: NO_REQUEST_ID.to_owned() }
}

/// A request that cannot even be sent, in the words of one that was refused.
fn unusable(why: &'static str) -> StripeError {
    StripeError::Refused {
        status: 400,
        code: "not_sent".to_owned(),
        message: why.to_owned(),
        request_id: NO_REQUEST_ID.to_owned(),
    }
}

/// One line for each attempt; never a query, a body or a key.
fn log(route: &'static str, method: &str, attempt: u32, started: Instant, result: &Result<Answer, NoAnswer>) {
    let ms = started.elapsed().as_millis();
    match result {
        Ok(answer) => {
            let (status, request_id, limited_by) = (answer.status, &answer.request_id, answer.limited_by.as_deref());
            tracing::debug!(method, route, attempt, ms, status, %request_id, limited_by, "stripe call");
        }
        Err(NoAnswer::TooLong { request_id }) => {
            tracing::debug!(method, route, attempt, ms, %request_id, error = "answer too long", "stripe call");
        }
        Err(NoAnswer::Broken { reason, request_id }) => {
            tracing::debug!(method, route, attempt, ms, %request_id, error = %reason, "stripe call");
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether the path has the route's segments, with something that can be an id in place of every `{id}`.
fn is_path_of(route: &str, path: &str) -> bool {
    let is_id =
        |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    let (mut expected, mut given) = (route.split('/'), path.split('/'));
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return true,
            (Some("{id}"), Some(id)) if is_id(id) => {}
            (Some(same), Some(segment)) if same == segment => {}
            _ => return false,
        }
    }
}

fn checked_base_url(text: &str) -> Result<String, InvalidStripeClient> {
    if text.is_empty() {
        return Ok(STRIPE_URL.to_owned());
    }
    let uri: Uri = text.parse().map_err(|_| InvalidStripeClient::Url("is no URL"))?;
    let host = uri.host().ok_or(InvalidStripeClient::Url("names no host"))?;
    if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(InvalidStripeClient::Url("has a query or a user, which is not supported"));
    }
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if is_this_machine(host) => {}
        Some("http") => {
            return Err(InvalidStripeClient::Url("is plain http to another machine, which could read the API key; use https"));
        }
        _ => return Err(InvalidStripeClient::Url("is neither http nor https")),
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn is_this_machine(host: &str) -> bool {
    let address: Option<std::net::IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    address.is_some_and(|address| address.is_loopback())
        || host == "localhost"
        || host.ends_with(".localhost")
        // The machine around a container, as `sam local` needs it.
        || host == "host.docker.internal"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_never_sent_in_the_clear_to_another_machine() {
        let checked = |text: &str| checked_base_url(text).map_err(|error| error.to_string());
        assert_eq!(checked("").as_deref(), Ok(STRIPE_URL));
        for good in [
            "http://127.0.0.1:4010",
            "http://[::1]:4010",
            "http://localhost",
            "https://proxy.example/stripe",
            "http://host.docker.internal:1",
        ] {
            assert_eq!(checked(good).as_deref(), Ok(good));
        }
        assert_eq!(checked("http://127.0.0.1:4010/").as_deref(), Ok("http://127.0.0.1:4010"));
        assert!(checked("http://api.stripe.com").unwrap_err().contains("plain http"));
        assert!(checked("http://127.0.0.1.example").unwrap_err().contains("plain http"));
        for bad in ["ftp://127.0.0.1", "127.0.0.1:80", "nonsense", "https://a@b", "https://a?b=c"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_cannot_change_the_path() {
        assert!(is_path_of("/v1/customers/{id}", "/v1/customers/cus_A-1"));
        for other in [
            "/v1/customers/",
            "/v1/customers/..",
            "/v1/customers/a/b",
            "/v1/customers/a?b",
            "/v1/customers/a%2Fb",
            "/v1/invoices/a",
            "/v1/customers",
        ] {
            assert!(!is_path_of("/v1/customers/{id}", other), "{other}");
        }
    }
}
