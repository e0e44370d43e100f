//! The Stripe adapter against a scripted server on loopback: what it sends, what it repeats, what it makes of every answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "this whole file is a test")]

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stripe_client_core::{IdempotencyKey, RequestBuilder, RequestStrategy, StripeMethod};
use tokentill::{
    domain::{
        email::{Addressee, Bill},
        envelope,
        facts::{LatestInvoice, PausedBy, Status},
        hint::SNAPSHOT_EVENTS,
        id::{CheckoutSessionId, CustomerId, InvoiceId, PlanId, PriceId, SubscriptionId, UserId},
        notice::Payment,
        period::Cycle,
        price_list::Interval,
        repair::{Endpoint, EndpointProblem, InvoiceStanding, ListedInvoice, endpoint_problem},
        report::MeterReport,
        selling::{Buyer, CheckoutSession, HeldSubscription, Link, Offer, OfferItem, OpenSession, ReturnUrl},
        time::EpochSecs,
    },
    ports::{
        CheckoutSessions as _, Correspondence as _, Delivered, EventList, EventWindow, MeterSink as _, MeterSummaries as _,
        Payments as _, Portal as _, Sales as _, StripeError, StripeLists as _, StripePage, StripeState as _,
    },
    stripe::{FixedKey, KeySource, Limits, SecretKey, Stripe, StripeClient},
};

const KEY: &str = "sk_test_51SecretOfTheTest";

// ---------------------------------------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------------------------------------

/// A request as it arrived.
#[derive(Debug, Clone)]
struct Received {
    /// Which connection it came on, counted from 0.
    connection: usize,
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Received {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the server does with a request.
enum Reply {
    /// Answers and keeps the connection.
    Answer(u16, Vec<(&'static str, String)>, String),
    /// Answers and then closes the connection without having announced it, as a server does with one that is idle for long.
    AnswerAndClose(u16, String),
    /// Resets the connection with the request unread, as a thawed function finds a pooled one.
    Reset,
    /// Takes the request and closes the connection without an answer.
    HangUp,
    /// Takes the request and never answers.
    Silence,
}

fn ok(body: &Value) -> Reply {
    Reply::Answer(200, vec![("Request-Id", "req_ok".to_owned())], body.to_string())
}

fn error(status: u16, code: &str) -> Reply {
    let body = json!({ "error": { "type": "api_error", "code": code, "message": format!("It did not work: {code}.") } });
    Reply::Answer(status, vec![("Request-Id", format!("req_{status}"))], body.to_string())
}

struct Server {
    url: String,
    connections: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Server {
    /// `script` is asked for every request, with how many came before it.
    fn start(script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (script, accepted, log) = (Arc::new(script), connections.clone(), received.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = accepted.fetch_add(1, Ordering::SeqCst);
                let (script, log) = (script.clone(), log.clone());
                std::thread::spawn(move || serve(stream, connection, &*script, &log));
            }
        });
        Self { url, connections, received }
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn client(&self) -> StripeClient<FixedKey> {
        StripeClient::new(Some(&self.url), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick())
    }

    fn stripe(&self) -> Stripe<FixedKey> {
        Stripe::new(self.client())
    }
}

/// Short waits between attempts; everything else as it is shipped.
fn quick() -> Limits {
    Limits { backoff_base: Duration::from_millis(1), ..Limits::default() }
}

fn serve(
    mut stream: TcpStream,
    connection: usize,
    script: &dyn Fn(&Received, usize) -> Reply,
    log: &Mutex<Vec<Received>>,
) -> Option<()> {
    loop {
        let (request, length) = peek_request(&stream, connection).ok()??;
        let before = {
            let mut log = log.lock().unwrap();
            log.push(request.clone());
            log.len() - 1
        };
        let reply = script(&request, before);
        if matches!(reply, Reply::Reset) {
            // Closing a socket with unread data makes the kernel send a reset.
            return None;
        }
        stream.read_exact(&mut vec![0; length]).ok()?;
        match reply {
            Reply::Answer(status, headers, body) => answer(&mut stream, status, &headers, &body).ok()?,
            Reply::AnswerAndClose(status, body) => {
                answer(&mut stream, status, &[], &body).ok()?;
                return None;
            }
            Reply::HangUp | Reply::Reset => return None,
            // The client's own closing ends this.
            Reply::Silence => drop(stream.read(&mut [0])),
        }
    }
}

fn answer(stream: &mut TcpStream, status: u16, headers: &[(&str, String)], body: &str) -> io::Result<()> {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "HTTP/1.1 {status} Reason\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

/// The next request and its length, left in the socket. `None` if the client closed the connection.
fn peek_request(stream: &TcpStream, connection: usize) -> io::Result<Option<(Received, usize)>> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = stream.peek(&mut buffer)?;
        if length == 0 {
            return Ok(None);
        }
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            std::thread::yield_now();
            continue;
        };
        let mut lines = head.lines();
        let mut start = lines.next().unwrap().split(' ');
        let (method, target) = (start.next().unwrap().to_owned(), start.next().unwrap());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let headers: Vec<_> = lines.filter_map(|line| line.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let request =
            Received { connection, method, path: path.to_owned(), query: query.to_owned(), headers, body: rest.to_owned() };
        let expected = request.header("content-length").map_or(0, |length| length.parse::<usize>().unwrap());
        if rest.len() < expected {
            std::thread::yield_now();
            continue;
        }
        return Ok(Some((request, head.len() + 4 + expected)));
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// Objects
// ---------------------------------------------------------------------------------------------------------------------------

fn cus(id: &str) -> CustomerId {
    CustomerId::new(id).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::new(id).unwrap()
}

fn list(data: Value) -> Value {
    json!({ "object": "list", "url": "/v1/things", "has_more": false, "data": data })
}

fn report() -> MeterReport {
    MeterReport {
        customer: cus("cus_ada"),
        event_name: "tokens_in".to_owned(),
        identifier: "rep_0f3c".to_owned(),
        quantity: 90_210,
        minute: EpochSecs::new(1_795_348_800),
    }
}

fn meter_event(identifier: &str) -> Value {
    json!({ "object": "billing.meter_event", "identifier": identifier, "livemode": false, "event_name": "tokens_in",
            "created": 1_795_348_805, "timestamp": 1_795_348_800, "payload": { "stripe_customer_id": "cus_ada", "value": "90210" } })
}

/// A subscription as the pinned API version has it, with fields and values that are newer than we know.
fn subscription() -> Value {
    let text = r#"{
        "id": "sub_ada", "object": "subscription", "application": null, "application_fee_percent": null,
        "automatic_tax": { "disabled_reason": null, "enabled": false, "liability": null },
        "billing_cycle_anchor": 1793534400, "billing_cycle_anchor_config": null,
        "billing_mode": { "type": "flexible", "flexible": { "proration_discounts": "included" }, "updated_at": 1793534400 },
        "billing_schedules": [], "billing_thresholds": null, "cancel_at": null, "cancel_at_period_end": false, "canceled_at": null,
        "cancellation_details": { "comment": null, "feedback": null, "reason": null },
        "collection_method": "charge_by_carrier_pigeon", "created": 1793534401, "currency": "eur", "customer": "cus_ada",
        "customer_account": null, "default_payment_method": "pm_1", "default_tax_rates": [], "discounts": [], "ended_at": null,
        "items": { "object": "list", "has_more": false, "url": "/v1/subscription_items?subscription=sub_ada", "data": [
            { "id": "si_base", "object": "subscription_item", "created": 1793534401, "quantity": 1, "discounts": [], "metadata": {},
              "current_period_start": 1793534400, "current_period_end": 1796126400, "billed_until": 1796126400,
              "price": { "id": "price_base", "object": "price", "lookup_key": "pro_base", "unit_amount": 2000, "unit_amount_decimal": "2000",
                         "recurring": { "interval": "month", "interval_count": 1, "meter": null, "trial_period_days": null, "usage_type": "licensed" } } },
            { "id": "si_tokens", "object": "subscription_item", "created": 1793534401, "discounts": [], "metadata": {},
              "current_period_start": 1793534400, "current_period_end": 1796126400,
              "price": { "id": "price_tokens", "object": "price", "lookup_key": null, "unit_amount": null, "unit_amount_decimal": "0.0003",
                         "recurring": { "interval": "month", "interval_count": 3, "meter": "mtr_1", "usage_type": "metered" } } }
        ] },
        "latest_invoice": "in_2", "livemode": false, "metadata": { "user_id": "ada", "team": "7" }, "next_pending_invoice_item_invoice": null,
        "pause_collection": null, "status": "past_due", "status_details": { "past_due": { "subscription": { "type": "from_the_future" } } },
        "trial_end": null, "trial_start": null, "a_new_field": [{ "deep": [1, 2.5, null, { "er": true }] }]
    }"#;
    serde_json::from_str(text).unwrap()
}

fn invoice() -> Value {
    json!({
        "id": "in_2", "object": "invoice", "amount_due": 2000, "attempt_count": 1, "attempted": true, "created": 1_795_000_000,
        "customer": "cus_ada", "status": "open", "lines": { "object": "list", "data": [], "has_more": false },
        "parent": { "type": "subscription_details", "quote_details": null,
                    "subscription_details": { "metadata": {}, "subscription": "sub_ada" } },
    })
}

fn customer() -> Value {
    json!({ "id": "cus_ada", "object": "customer", "email": "someone@example.com", "livemode": false,
            "metadata": { "user_id": "ada of the customer" }, "test_clock": null })
}

/// Answers what a look at a customer asks, from these objects; anything else is a 404.
fn account(customer: Value, subscriptions: Value, invoices: Value, sessions: Value) -> impl Fn(&Received, usize) -> Reply {
    move |request, _| match (request.path.as_str(), request.query.as_str()) {
        ("/v1/customers/cus_ada", "") => ok(&customer),
        ("/v1/subscriptions", "customer=cus_ada&expand[0]=data.latest_invoice&limit=100&status=all") => {
            ok(&list(subscriptions.clone()))
        }
        ("/v1/invoices", "customer=cus_ada&limit=100&status=open") => ok(&list(invoices.clone())),
        ("/v1/checkout/sessions", "customer=cus_ada&limit=100&status=complete") => ok(&list(sessions.clone())),
        ("/v1/test_helpers/test_clocks/clock_1", "") => {
            ok(&json!({ "id": "clock_1", "frozen_time": 1_795_348_800, "status": "ready" }))
        }
        _ => error(404, "resource_missing"),
    }
}

async fn reason_unreadable(server: &Server) -> String {
    match server.stripe().customer(&cus("cus_ada")).await.unwrap_err() {
        StripeError::Unreadable { reason, request_id } if request_id == "req_ok" => reason,
        other => panic!("{other:?}"),
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// What is sent
// ---------------------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_meter_event_carries_its_identifier_the_pinned_version_and_no_idempotency_key() {
    let server = Server::start(|_, _| ok(&meter_event("rep_0f3c")));
    assert_eq!(server.stripe().send(&report()).await, Ok(Delivered::Now));
    let [request] = &server.received()[..] else { panic!("one request") };
    assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/v1/billing/meter_events"));
    let mut fields: Vec<_> = request.body.split('&').map(|field| field.replace("%5B", "[").replace("%5D", "]")).collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "event_name=tokens_in",
            "identifier=rep_0f3c",
            "payload[stripe_customer_id]=cus_ada",
            "payload[value]=90210",
            "timestamp=1795348800"
        ]
    );
    assert_eq!(request.header("idempotency-key"), None);
    assert_eq!(request.header("stripe-version"), Some(stripe_client_core::VERSION.as_str()));
    assert_eq!(request.header("stripe-version"), Some("2026-09-30.endive"));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
}

#[tokio::test]
async fn calls_share_one_connection() {
    let server = Server::start(|_, _| ok(&meter_event("rep_0f3c")));
    let stripe = server.stripe();
    for _ in 0..5 {
        assert_eq!(stripe.send(&report()).await, Ok(Delivered::Now));
    }
    assert_eq!((server.received().len(), server.connections()), (5, 1));
}

#[tokio::test]
async fn the_key_is_asked_for_at_every_call_and_its_absence_is_not_stripes_fault() {
    struct Rotating(AtomicUsize);
    impl KeySource for Rotating {
        async fn key(&self) -> Result<SecretKey, String> {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Ok(SecretKey::new("sk_test_old").unwrap()),
                1 => Ok(SecretKey::new("sk_test_new").unwrap()),
                _ => Err("the parameter cannot be read".to_owned()),
            }
        }
    }
    let server = Server::start(|_, _| ok(&meter_event("rep_0f3c")));
    let stripe = Stripe::new(StripeClient::new(Some(&server.url), Rotating(AtomicUsize::new(0))).unwrap());
    stripe.send(&report()).await.unwrap();
    stripe.send(&report()).await.unwrap();
    let error = stripe.send(&report()).await.unwrap_err();
    assert!(
        matches!(&error, StripeError::Unavailable { reason, .. } if reason.contains("the parameter cannot be read")),
        "{error:?}"
    );
    let keys: Vec<_> = server.received().iter().map(|request| request.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(keys, ["Bearer sk_test_old", "Bearer sk_test_new"]);
}

#[tokio::test]
async fn an_id_that_is_none_is_not_sent() {
    let server = Server::start(|_, _| ok(&customer()));
    for id in ["cus_ada/sources", "../events", "cus ada", "cus_ada?expand[]=sources", "cus_%2e"] {
        let request = RequestBuilder::new(StripeMethod::Get, format!("/customers/{id}")).customize::<miniserde::json::Value>();
        let error = server.client().send("/v1/customers/{id}", request).await.unwrap_err();
        assert!(matches!(error, StripeError::NotFound { .. }), "{error:?}");
    }
    assert_eq!(server.received().len(), 0);
}

// ---------------------------------------------------------------------------------------------------------------------------
// What is repeated
// ---------------------------------------------------------------------------------------------------------------------------

type Failure = fn() -> Reply;

/// Sends a meter event to a server that fails in this way first, and says how many requests came.
async fn sent_after(failures: usize, fail: Failure, limits: Limits) -> (Result<Delivered, StripeError>, usize) {
    let server = Server::start(move |_, before| if before < failures { fail() } else { ok(&meter_event("rep_0f3c")) });
    let outcome = Stripe::new(server.client().with_limits(limits)).send(&report()).await;
    (outcome, server.received().len())
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_at_most_three_times() {
    let failures: [(&str, Failure); 6] = [
        ("HTTP 500 api_error", || error(500, "api_error")),
        ("HTTP 429 rate_limit", || error(429, "rate_limit")),
        ("HTTP 409 lock_timeout", || error(409, "lock_timeout")),
        ("HTTP 502 without Stripe's error", || Reply::Answer(502, vec![], "<html>Bad Gateway</html>".to_owned())),
        ("", || Reply::Reset),
        ("", || Reply::HangUp),
    ];
    for (expected, fail) in failures {
        assert_eq!(sent_after(2, fail, quick()).await, (Ok(Delivered::Now), 3), "{expected}");
        let (outcome, requests) = sent_after(9, fail, quick()).await;
        assert_eq!(requests, 3, "{expected}");
        let Err(StripeError::Unavailable { reason, .. }) = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(expected), "{reason}");
    }
}

#[tokio::test]
async fn an_attempt_without_an_answer_ends_and_is_repeated() {
    let limits = Limits { attempt_timeout: Duration::from_millis(500), ..quick() };
    assert_eq!(sent_after(1, || Reply::Silence, limits.clone()).await, (Ok(Delivered::Now), 2));
    let (outcome, requests) = sent_after(9, || Reply::Silence, limits).await;
    assert_eq!(requests, 3);
    let reason = "no answer within 500 ms".to_owned();
    assert_eq!(outcome, Err(StripeError::Unavailable { reason, retry_after_secs: None, request_id: "none".to_owned() }));
}

#[tokio::test]
async fn a_server_that_nobody_runs_is_unavailable() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = StripeClient::new(Some(&format!("http://{unused}")), FixedKey(SecretKey::new(KEY).unwrap())).unwrap();
    let outcome = Stripe::new(client.with_limits(quick())).send(&report()).await;
    assert!(matches!(outcome, Err(StripeError::Unavailable { .. })), "{outcome:?}");
}

#[tokio::test]
async fn connections_that_died_while_frozen_are_left_behind_at_once() {
    let dead = Arc::new(AtomicUsize::new(0));
    let (healthy, dead_before) = (account(customer(), json!([]), json!([]), json!([])), dead.clone());
    let server = Server::start(move |request, before| match request.path.as_str() {
        _ if request.connection < dead_before.load(Ordering::SeqCst) => Reply::Reset,
        "/v1/billing/meter_events" => ok(&meter_event("rep_0f3c")),
        _ => healthy(request, before),
    });
    let stripe = server.stripe();
    stripe.customer(&cus("cus_ada")).await.unwrap();
    let pooled = server.connections();
    assert!(pooled > 1, "the calls of a look run side by side");
    dead.store(pooled, Ordering::SeqCst);
    assert_eq!(stripe.send(&report()).await, Ok(Delivered::Now));
    // The second attempt did not take its chance with the next dead connection.
    assert_eq!((server.received().len(), server.connections() - pooled), (4 + 2, 1));
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_error() {
    let server = Server::start(|_, _| Reply::AnswerAndClose(200, meter_event("rep_0f3c").to_string()));
    let stripe = server.stripe();
    for _ in 0..5 {
        assert_eq!(stripe.send(&report()).await, Ok(Delivered::Now));
    }
}

#[tokio::test]
async fn stripes_own_word_on_repeating_is_taken() {
    let count = async |reply: fn(usize) -> Reply| {
        let server = Server::start(move |_, before| reply(before));
        (server.stripe().send(&report()).await, server.received().len())
    };
    let stop =
        |_| Reply::Answer(500, vec![("Stripe-Should-Retry", "false".to_owned())], r#"{"error":{"type":"api_error"}}"#.to_owned());
    let (outcome, requests) = count(stop).await;
    // Whether it happened is as unknown as with any other 500.
    assert!(matches!(outcome, Err(StripeError::Unavailable { .. })), "{outcome:?}");
    assert_eq!(requests, 1);
    let again = |before| match before {
        0 => Reply::Answer(400, vec![("Stripe-Should-Retry", "true".to_owned())], r#"{"error":{"type":"api_error"}}"#.to_owned()),
        _ => ok(&meter_event("rep_0f3c")),
    };
    assert_eq!(count(again).await, (Ok(Delivered::Now), 2));
}

#[tokio::test]
async fn a_short_retry_after_is_waited_and_a_long_one_is_the_callers() {
    let limited = |secs: u32| {
        Reply::Answer(429, vec![("Retry-After", secs.to_string()), ("Request-Id", "req_slow".to_owned())], "{}".to_owned())
    };
    let server = Server::start(move |_, before| if before == 0 { limited(1) } else { ok(&meter_event("rep_0f3c")) });
    let started = Instant::now();
    assert_eq!(server.stripe().send(&report()).await, Ok(Delivered::Now));
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());

    let server = Server::start(move |_, _| limited(30));
    let Err(StripeError::Unavailable { retry_after_secs, request_id, .. }) = server.stripe().send(&report()).await else {
        panic!()
    };
    assert_eq!((retry_after_secs, request_id.as_str(), server.received().len()), (Some(30), "req_slow", 1));
}

#[tokio::test]
async fn a_429_says_whether_it_is_a_limit_for_all_or_a_lock_on_one_object() {
    let outcome = async |code: &'static str, headers: fn() -> Vec<(&'static str, String)>| {
        let body = json!({ "error": { "type": "invalid_request_error", "code": code } }).to_string();
        let server = Server::start(move |_, _| Reply::Answer(429, headers(), body.clone()));
        let started = Instant::now();
        let outcome = server.stripe().send(&report()).await;
        let Err(StripeError::Unavailable { reason, retry_after_secs, .. }) = outcome else { panic!("{outcome:?}") };
        (reason, retry_after_secs, server.received().len(), started.elapsed() >= Duration::from_secs(2))
    };
    // A rate is a limit by the second: two repetitions take two seconds at least, and the caller is asked to hold everything.
    let limited = outcome("rate_limit", || vec![("Stripe-Rate-Limited-Reason", "endpoint-rate".to_owned())]).await;
    assert_eq!(limited, ("HTTP 429 rate_limit (endpoint-rate)".to_owned(), Some(1), 3, true));
    let told = outcome("rate_limit", || {
        vec![("Stripe-Rate-Limited-Reason", "global-rate".to_owned()), ("Retry-After", "20".to_owned())]
    });
    assert_eq!(told.await, ("HTTP 429 rate_limit (global-rate)".to_owned(), Some(20), 1, false));
    let locked = outcome("lock_timeout", Vec::new).await;
    assert_eq!(locked, ("HTTP 429 lock_timeout".to_owned(), None, 3, false));
}

#[tokio::test]
async fn any_other_post_is_repeated_only_under_the_callers_idempotency_key() {
    let server = Server::start(|_, _| error(500, "api_error"));
    let request =
        || RequestBuilder::new(StripeMethod::Post, "/customers").form(&[("name", "x")]).customize::<miniserde::json::Value>();
    server.client().send("/v1/customers", request()).await.unwrap_err();
    assert_eq!(server.received().len(), 1);

    let strategy = RequestStrategy::Idempotent(IdempotencyKey::new("setup/customer/1").unwrap());
    server.client().send("/v1/customers", request().request_strategy(strategy)).await.unwrap_err();
    let keys: Vec<_> = server.received().iter().map(|request| request.header("idempotency-key").map(str::to_owned)).collect();
    let key = Some("setup/customer/1".to_owned());
    assert_eq!(keys, [None, key.clone(), key.clone(), key]);
}

// ---------------------------------------------------------------------------------------------------------------------------
// What an answer means
// ---------------------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn each_refusal_has_its_meaning_and_its_request_id() {
    let id = |status: u16| format!("req_{status}");
    let cases: [(u16, &str, StripeError, StripeError); 5] = [
        (
            400,
            "parameter_invalid",
            StripeError::Refused {
                status: 400,
                code: "parameter_invalid".to_owned(),
                message: "It did not work: parameter_invalid.".to_owned(),
                request_id: id(400),
            },
            StripeError::Refused {
                status: 400,
                code: "parameter_invalid".to_owned(),
                message: "It did not work: parameter_invalid.".to_owned(),
                request_id: id(400),
            },
        ),
        (
            404,
            "resource_missing",
            StripeError::NotFound { request_id: id(404) },
            StripeError::Refused {
                status: 404,
                code: "resource_missing".to_owned(),
                message: "It did not work: resource_missing.".to_owned(),
                request_id: id(404),
            },
        ),
        (
            401,
            "api_key_expired",
            StripeError::Unauthorised { status: 401, code: "api_key_expired".to_owned(), request_id: id(401) },
            StripeError::Unauthorised { status: 401, code: "api_key_expired".to_owned(), request_id: id(401) },
        ),
        (
            403,
            "more_permissions_required",
            StripeError::Unauthorised { status: 403, code: "more_permissions_required".to_owned(), request_id: id(403) },
            StripeError::Unauthorised { status: 403, code: "more_permissions_required".to_owned(), request_id: id(403) },
        ),
        (
            503,
            "api_error",
            StripeError::Unavailable { reason: "HTTP 503 api_error".to_owned(), retry_after_secs: None, request_id: id(503) },
            StripeError::Unavailable { reason: "HTTP 503 api_error".to_owned(), retry_after_secs: None, request_id: id(503) },
        ),
    ];
    for (status, code, of_a_look, of_a_report) in cases {
        let code = code.to_owned();
        let server = Server::start(move |_, _| error(status, &code));
        assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap_err(), of_a_look);
        assert_eq!(server.stripe().send(&report()).await.unwrap_err(), of_a_report);
    }
}

#[tokio::test]
async fn only_stripes_own_words_are_final() {
    for status in [301, 400, 404, 413, 502] {
        let server = Server::start(move |_, _| Reply::Answer(status, vec![], "<html>nobody you know</html>".to_owned()));
        let unavailable = StripeError::Unavailable {
            reason: format!("HTTP {status} without Stripe's error"),
            retry_after_secs: None,
            request_id: "none".to_owned(),
        };
        assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap_err(), unavailable);
        assert_eq!(server.stripe().send(&report()).await.unwrap_err(), unavailable);
    }
}

#[tokio::test]
async fn a_known_identifier_means_that_the_event_was_taken_before() {
    let refusal = |message: &'static str| {
        Server::start(move |_, _| {
            let body = json!({ "error": { "type": "invalid_request_error", "message": message } }).to_string();
            Reply::Answer(400, vec![("Request-Id", "req_dup".to_owned()), ("Stripe-Should-Retry", "false".to_owned())], body)
        })
    };
    let server = refusal("An event already exists with identifier rep_0f3c.");
    assert_eq!((server.stripe().send(&report()).await, server.received().len()), (Ok(Delivered::Before), 1));
    let outcome = refusal("An event already exists with identifier rep_ffff.").stripe().send(&report()).await;
    assert!(matches!(outcome, Err(StripeError::Refused { status: 400, .. })), "{outcome:?}");
}

#[tokio::test]
async fn a_success_that_does_not_name_the_event_proves_nothing() {
    for body in ["{}", "<html>Welcome to this hotel's network</html>", r#"{"identifier":"rep_of_somebody_else"}"#] {
        let server = Server::start(move |_, _| Reply::Answer(200, vec![], body.to_owned()));
        let outcome = server.stripe().send(&report()).await;
        assert!(matches!(outcome, Err(StripeError::Unavailable { .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read_to_its_end() {
    let server = Server::start(|_, _| ok(&json!({ "id": "cus_ada", "description": "x".repeat(100_000) })));
    let limits = Limits { response_bytes: 50_000, ..quick() };
    let error = Stripe::new(server.client().with_limits(limits)).customer(&cus("cus_ada")).await.unwrap_err();
    let reason = "/v1/customers/{id}: it has more than 50000 bytes".to_owned();
    assert_eq!(error, StripeError::Unreadable { reason, request_id: "req_ok".to_owned() });
}

// ---------------------------------------------------------------------------------------------------------------------------
// What a customer is
// ---------------------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_customer_is_read_in_the_present_layout_whatever_else_stripe_says() {
    let sessions = json!([
        { "id": "cs_1", "object": "checkout.session", "created": 100, "client_reference_id": "first" },
        { "id": "cs_3", "object": "checkout.session", "created": 300, "client_reference_id": "third" },
        { "id": "cs_4", "object": "checkout.session", "created": 400, "client_reference_id": null },
        { "id": "cs_2", "object": "checkout.session", "created": 200, "client_reference_id": "second" },
    ]);
    let server = Server::start(account(customer(), json!([subscription()]), json!([invoice()]), sessions));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();

    assert_eq!((facts.customer, facts.deleted, facts.test_clock), (cus("cus_ada"), false, None));
    assert_eq!(facts.user_id, Some(user("ada of the customer")));
    assert_eq!(facts.checkout_users, [user("third"), user("second"), user("first")]);

    let [subscription] = &facts.subscriptions[..] else { panic!("one subscription") };
    let (anchor, end) = (EpochSecs::new(1_793_534_400), EpochSecs::new(1_796_126_400));
    assert_eq!(subscription.id, SubscriptionId::new("sub_ada").unwrap());
    assert_eq!((&subscription.status, subscription.created), (&Status::PastDue, EpochSecs::new(1_793_534_401)));
    assert_eq!(subscription.user_id, Some(user("ada")));
    assert_eq!((subscription.billing_cycle_anchor, subscription.flexible), (anchor, true));
    assert_eq!((subscription.trial_end, subscription.cancel_at, subscription.ended_at), (None, None, None));
    let only_an_id = LatestInvoice { id: InvoiceId::new("in_2").unwrap(), is_final: false, period: None, written_off: None };
    assert_eq!(subscription.latest_invoice, Some(only_an_id));
    let [base, tokens] = &subscription.items[..] else { panic!("two items") };
    assert_eq!((base.lookup_key.as_deref(), base.metered, base.period), (Some("pro_base"), false, (anchor, end)));
    assert_eq!((tokens.lookup_key.as_deref(), tokens.metered), (None, true));
    assert_eq!(tokens.cycle, Cycle { anchor, interval: Interval::Month, count: 3 });

    let [invoice] = &facts.open_invoices[..] else { panic!("one invoice") };
    assert_eq!((invoice.id.as_str(), invoice.attempted, invoice.created), ("in_2", true, EpochSecs::new(1_795_000_000)));
    assert_eq!(invoice.subscription, Some(SubscriptionId::new("sub_ada").unwrap()));
}

#[tokio::test]
async fn a_reference_may_be_an_id_or_the_object_and_a_status_may_be_new() {
    let mut subscription = subscription();
    subscription["latest_invoice"] = json!({ "id": "in_9", "object": "invoice", "lines": {} });
    subscription["status"] = json!("hibernating");
    let mut invoice = invoice();
    invoice["attempted"] = json!(false);
    invoice["attempt_count"] = json!(0);
    invoice["parent"]["subscription_details"]["subscription"] = json!({ "id": "sub_ada", "object": "subscription" });
    let mut second = invoice.clone();
    second["attempt_count"] = json!(2);
    second["parent"] = json!({ "type": "quote_details", "quote_details": { "quote": "qt_1" }, "subscription_details": null });
    let server = Server::start(account(customer(), json!([subscription]), json!([invoice, second]), json!([])));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    assert_eq!(facts.subscriptions[0].latest_invoice.as_ref().map(|invoice| invoice.id.as_str()), Some("in_9"));
    assert_eq!(facts.subscriptions[0].status, Status::Other("hibernating".to_owned()));
    let invoices: Vec<_> =
        facts.open_invoices.iter().map(|i| (i.attempted, i.subscription.as_ref().map(SubscriptionId::as_str))).collect();
    assert_eq!(invoices, [(false, Some("sub_ada")), (true, None)]);
}

#[tokio::test]
async fn the_newest_invoice_is_final_unless_it_is_a_draft_or_nothing_is_known_of_it() {
    for (status, is_final) in [
        (json!("draft"), false),
        (Value::Null, false),
        (json!("open"), true),
        (json!("paid"), true),
        (json!("void"), true),
        (json!("uncollectible"), true),
        (json!("newer_than_we_know"), true),
    ] {
        let mut expanded = subscription();
        expanded["latest_invoice"] = json!({ "id": "in_9", "object": "invoice", "status": status, "created": 1_796_126_401, "period_start": 1_793_534_400, "period_end": 1_796_126_400 });
        let server = Server::start(account(customer(), json!([expanded]), json!([]), json!([])));
        let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
        let period = Some((EpochSecs::new(1_793_534_400), EpochSecs::new(1_796_126_400)));
        let written_off = (status == "uncollectible").then_some(EpochSecs::new(1_796_126_401));
        let expected = LatestInvoice { id: InvoiceId::new("in_9").unwrap(), is_final, period, written_off };
        assert_eq!(facts.subscriptions[0].latest_invoice, Some(expected), "{status}");
    }
    let mut others = [subscription(), subscription()];
    others[0]["latest_invoice"] = json!({ "id": "in_9", "object": "invoice", "deleted": true });
    others[1]["latest_invoice"] = Value::Null;
    let server = Server::start(account(customer(), json!(others), json!([]), json!([])));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    let deleted = LatestInvoice { id: InvoiceId::new("in_9").unwrap(), is_final: true, period: None, written_off: None };
    assert_eq!((&facts.subscriptions[0].latest_invoice, &facts.subscriptions[1].latest_invoice), (&Some(deleted), &None));
}

#[tokio::test]
async fn a_cancellation_at_the_period_end_is_the_end_of_the_longest_period() {
    let mut at_period_end = subscription();
    at_period_end["cancel_at_period_end"] = json!(true);
    at_period_end["items"]["data"][1]["current_period_end"] = json!(1_801_000_000);
    let mut at = at_period_end.clone();
    at["cancel_at"] = json!(1_800_000_000);
    let server = Server::start(account(customer(), json!([at_period_end, at]), json!([]), json!([])));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    let cancelled: Vec<_> = facts.subscriptions.iter().map(|subscription| subscription.cancel_at).collect();
    assert_eq!(cancelled, [Some(EpochSecs::new(1_801_000_000)), Some(EpochSecs::new(1_800_000_000))]);
}

#[tokio::test]
async fn a_test_clock_is_read_in_test_mode_and_not_believed_in_live_mode() {
    let mut on_clock = customer();
    on_clock["test_clock"] = json!("clock_1");
    let server = Server::start(account(on_clock.clone(), json!([]), json!([]), json!([])));
    assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap().test_clock, Some(EpochSecs::new(1_795_348_800)));
    on_clock["livemode"] = json!(true);
    let server = Server::start(account(on_clock, json!([]), json!([]), json!([])));
    assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap().test_clock, None);
    assert!(server.received().iter().all(|request| !request.path.contains("test_clocks")));
}

#[tokio::test]
async fn a_deleted_customer_is_found_as_deleted_even_if_its_lists_are_refused() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/v1/customers/cus_ada" => ok(&json!({ "id": "cus_ada", "object": "customer", "deleted": true })),
        _ => error(400, "resource_missing"),
    });
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    assert_eq!(
        server.stripe().customers_on_clock("clock_1").await,
        Err(StripeError::NotFound { request_id: "req_400".to_owned() })
    );
    assert!(facts.deleted && facts.subscriptions.is_empty() && facts.open_invoices.is_empty() && facts.user_id.is_none());
}

#[tokio::test]
async fn the_customer_of_an_object_is_found_by_the_kind_of_its_id() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/v1/subscriptions/sub_1" => ok(&json!({ "id": "sub_1", "customer": "cus_s" })),
        "/v1/invoices/in_1" => ok(&json!({ "id": "in_1", "customer": { "id": "cus_i", "object": "customer" } })),
        "/v1/checkout/sessions/cs_test_1" => ok(&json!({ "id": "cs_test_1", "customer": null })),
        "/v1/charges/ch_1" => ok(&charge("ch_1", json!("cus_c"))),
        "/v1/charges/py_1" => ok(&charge("py_1", Value::Null)),
        "/v1/disputes/dp_1" => ok(&dispute("dp_1", json!("ch_1"))),
        "/v1/disputes/du_1" => ok(&dispute("du_1", json!({ "id": "ch_1", "object": "charge" }))),
        _ => error(404, "resource_missing"),
    });
    let stripe = server.stripe();
    let found = [
        ("sub_1", Some("cus_s")),
        ("in_1", Some("cus_i")),
        ("cs_test_1", None),
        ("ch_1", Some("cus_c")),
        ("py_1", None),
        ("dp_1", Some("cus_c")),
        ("du_1", Some("cus_c")),
        ("nonsense", None),
        ("cus_1", Some("cus_1")),
    ];
    for (object, customer) in found {
        assert_eq!(stripe.customer_of(object).await, Ok(customer.map(cus)), "{object}");
    }
    assert_eq!(server.received().len(), 9);
    assert_eq!(stripe.customer_of("sub_2").await, Err(StripeError::NotFound { request_id: "req_404".to_owned() }));
}

fn charge(id: &str, customer: Value) -> Value {
    json!({ "id": id, "object": "charge", "amount": 4_900, "amount_refunded": 0, "currency": "usd", "customer": customer,
            "disputed": false, "refunded": false, "billing_details": { "email": "someone@example.com" } })
}

fn dispute(id: &str, charge: Value) -> Value {
    json!({ "id": id, "object": "dispute", "amount": 4_900, "charge": charge, "currency": "usd", "reason": "fraudulent",
            "status": "needs_response" })
}

#[tokio::test]
async fn a_refund_and_a_dispute_are_read_with_whose_payment_it_was() {
    let server = Server::start(|request, _| {
        let refunded = |amount: i64, all: bool| {
            let mut charge = charge("ch_1", json!({ "id": "cus_c", "object": "customer" }));
            (charge["amount_refunded"], charge["refunded"]) = (json!(amount), json!(all));
            ok(&charge)
        };
        match request.path.as_str() {
            "/v1/charges/ch_none" => refunded(0, false),
            "/v1/charges/ch_part" => refunded(100, false),
            "/v1/charges/ch_all" | "/v1/charges/ch_1" => refunded(4_900, true),
            "/v1/disputes/du_1" => ok(&dispute("du_1", json!("ch_1"))),
            "/v1/disputes/du_bad" => ok(&json!({ "id": "du_bad", "charge": "ch_1", "amount": 1, "currency": "usd" })),
            _ => error(404, "resource_missing"),
        }
    });
    let stripe = server.stripe();
    let payment = |dispute: Option<&str>, status: &str, amount_minor| Payment {
        charge_id: "ch_1".to_owned(),
        dispute_id: dispute.map(str::to_owned),
        status: status.to_owned(),
        amount_minor,
        currency: "usd".to_owned(),
    };
    for (object, expected) in [
        ("ch_none", None),
        ("ch_part", Some(payment(None, "partially_refunded", 100))),
        ("ch_all", Some(payment(None, "refunded", 4_900))),
        ("du_1", Some(payment(Some("du_1"), "needs_response", 4_900))),
    ] {
        let shown = stripe.payment(object).await.unwrap().unwrap();
        assert_eq!((shown.customer, shown.payment), (Some(cus("cus_c")), expected), "{object}");
    }
    assert_eq!(stripe.payment("evt_1").await, Ok(None));
    assert_eq!(stripe.payment("ch_2").await, Err(StripeError::NotFound { request_id: "req_404".to_owned() }));
    let Err(StripeError::Unreadable { reason, .. }) = stripe.payment("du_bad").await else { panic!("it was read") };
    assert_eq!(reason, "dispute du_bad has no status");
}

#[tokio::test]
async fn why_a_subscription_is_paused_is_read_and_paused_collection_is_not() {
    let mut paused = subscription();
    paused["status"] = json!("paused");
    paused["status_details"] = json!({ "paused": { "subscription": { "type": "final_payment_failure" } } });
    let mut collects_nothing = subscription();
    collects_nothing["pause_collection"] = json!({ "behavior": "void", "resumes_at": 1_800_000_000 });
    let server = Server::start(account(customer(), json!([paused, collects_nothing, subscription()]), json!([]), json!([])));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    let [paused, collects_nothing, plain] = &facts.subscriptions[..] else { panic!("three subscriptions") };
    assert_eq!(paused.paused_by, Some(PausedBy::FinalPaymentFailure));
    assert_eq!((collects_nothing, &plain.paused_by), (plain, &None));
}

/// A line of an invoice, under the subscription or as an item of its own.
fn line(subscription: &str, of: &str, amount: i64, end: i64) -> Value {
    json!({ "id": format!("il_{end}"), "object": "line_item", "amount": amount, "period": { "start": 1_793_534_400, "end": end },
            "parent": { "type": of, of: { "subscription": subscription, "proration": amount < 0 } } })
}

#[tokio::test]
async fn the_invoices_that_were_paid_after_the_end_tell_what_they_paid_for_and_beside_a_live_subscription_none_is_asked_for() {
    let item = "subscription_item_details";
    let of = |subscription: &str, id: &str, paid_at: i64, more: bool, lines: Value| {
        json!({ "id": id, "object": "invoice", "status": "paid", "status_transitions": { "paid_at": paid_at },
                "parent": { "type": "subscription_details", "subscription_details": { "subscription": subscription } },
                "lines": { "object": "list", "has_more": more, "data": lines } })
    };
    let invoice = |id: &str, paid_at: i64, more: bool, lines: Value| of("sub_ada", id, paid_at, more, lines);
    let invoices = json!([
        invoice("in_4", 400, false, json!([line("sub_ada", item, 4_900, 9_000), line("sub_ada", item, 12, 8_000)])),
        // What gives money back, costs nothing or is another's pays for nothing.
        invoice(
            "in_3",
            300,
            false,
            json!([
                line("sub_ada", item, -100, 9_000), line("sub_ada", item, 0, 9_000), line("sub_bob", item, 1, 9_000),
                { "id": "il_1", "amount": 7, "parent": null, "period": { "end": 9_000 } },
                line("sub_ada", "invoice_item_details", 5, 7_000),
            ])
        ),
        invoice("in_2", 200, true, json!([line("sub_ada", item, 12, 5_000)])),
        invoice("in_1", 100, false, json!([])),
        of("sub_old", "in_old", 60, false, json!([line("sub_old", item, 12, 4_000)])),
        // Of what was not paid after the end of its subscription nothing else is read, whatever it is.
        invoice("in_0", 90, true, json!([{ "id": "il_odd" }])),
        of("sub_old", "in_older", 50, true, Value::Null),
        of("sub_gone", "in_gone", 999, true, Value::Null),
        { "id": "in_null", "parent": { "subscription_details": { "subscription": "sub_ada" } }, "status_transitions": { "paid_at": null } },
        { "id": "in_bare", "parent": { "subscription_details": { "subscription": "sub_ada" } }, "status_transitions": null },
        { "id": "in_one_off", "parent": null, "status_transitions": { "paid_at": 999 } },
    ]);
    let mut cancelled = subscription();
    (cancelled["status"], cancelled["ended_at"]) = (json!("canceled"), json!(90));
    let mut old = cancelled.clone();
    (old["id"], old["created"], old["ended_at"]) = (json!("sub_old"), json!(1), json!(50));
    let asked = |subscriptions: Value| {
        let invoices = invoices.clone();
        let others = account(customer(), subscriptions, json!([]), json!([]));
        Server::start(move |request, before| match (request.path.as_str(), request.query.as_str()) {
            ("/v1/invoices", "customer=cus_ada&limit=100&status=paid") => ok(&list(invoices.clone())),
            ("/v1/invoices/in_2/lines", "limit=100") => {
                ok(&list(json!([line("sub_ada", item, 12, 5_000), line("sub_ada", item, 4_900, 6_000)])))
            }
            _ => others(request, before),
        })
    };
    // One whose status is newer than we know, and that may be anything, keeps nobody from looking.
    let mut strange = subscription();
    (strange["id"], strange["status"]) = (json!("sub_strange"), json!("hibernating"));
    let server = asked(json!([cancelled.clone(), old, strange]));
    let facts = server.stripe().customer(&cus("cus_ada")).await.unwrap();
    let paid: Vec<_> = facts
        .paid_invoices
        .iter()
        .map(|paid| (paid.subscription.as_str(), paid.paid_at.as_secs(), paid.paid_for_until.as_secs()))
        .collect();
    let expected = [("sub_ada", 400, 9_000), ("sub_ada", 300, 7_000), ("sub_ada", 200, 6_000), ("sub_old", 60, 4_000)];
    assert_eq!(paid, expected);
    // Beside a live one the cancelled one does not count.
    let mut live = subscription();
    live["id"] = json!("sub_live");
    let server = asked(json!([cancelled, live]));
    assert!(server.stripe().customer(&cus("cus_ada")).await.unwrap().paid_invoices.is_empty());
    assert!(server.received().iter().all(|request| !request.query.contains("status=paid")));
}

/// What an e-mail needs: whom to write to, and what is owed.
#[tokio::test]
async fn an_address_and_what_is_owed_are_read_and_what_is_gone_is_nobody_and_nothing() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/v1/customers/cus_ada" => ok(&json!({ "id": "cus_ada", "email": "ada@example.com", "name": null })),
        "/v1/customers/cus_gone" => ok(&json!({ "id": "cus_gone", "deleted": true })),
        "/v1/invoices/in_open" => ok(&json!({ "id": "in_open", "status": "open", "amount_due": 4900, "amount_remaining": 4000,
            "currency": "eur", "hosted_invoice_url": "https://invoice.stripe.com/i/in_open" })),
        "/v1/invoices/in_paid" => ok(&json!({ "id": "in_paid", "status": "paid", "amount_remaining": 0, "currency": "jpy",
            "hosted_invoice_url": null })),
        "/v1/invoices/in_odd" => ok(&json!({ "id": "in_odd", "status": "open", "currency": "eur" })),
        "/v1/customers/cus_down" => error(500, "api_error"),
        _ => error(404, "resource_missing"),
    });
    let stripe = server.stripe();
    let ada = Addressee { address: Some("ada@example.com".to_owned()), name: None };
    assert_eq!(stripe.addressee(&cus("cus_ada")).await, Ok(Some(ada)));
    assert_eq!(stripe.addressee(&cus("cus_gone")).await, Ok(None));
    assert_eq!(stripe.addressee(&cus("cus_never")).await, Ok(None));
    assert!(matches!(stripe.addressee(&cus("cus_down")).await, Err(StripeError::Unavailable { .. })));
    let invoice = |id: &str| InvoiceId::new(id).unwrap();
    let page = Some(Link::new("https://invoice.stripe.com/i/in_open".to_owned()));
    let open = Bill { is_open: true, due_minor: 4_000, currency: "eur".to_owned(), page };
    assert_eq!(stripe.bill(&invoice("in_open")).await, Ok(Some(open)));
    let paid = Bill { is_open: false, due_minor: 0, currency: "jpy".to_owned(), page: None };
    assert_eq!(stripe.bill(&invoice("in_paid")).await, Ok(Some(paid)));
    assert_eq!(stripe.bill(&invoice("in_never")).await, Ok(None));
    let unreadable = stripe.bill(&invoice("in_odd")).await.unwrap_err().to_string();
    assert!(unreadable.contains("invoice in_odd has no amount_remaining"), "{unreadable}");
}

#[tokio::test]
async fn what_is_missing_or_unknown_is_named() {
    let cases: [(&str, Value, &str); 7] = [
        ("/billing_cycle_anchor", Value::Null, "subscription sub_ada has no billing_cycle_anchor"),
        ("/status", Value::Null, "subscription sub_ada has no status"),
        ("/items", Value::Null, "subscription sub_ada has no items.data"),
        ("/items/data/0/current_period_end", Value::Null, "subscription item si_base has no current_period_end"),
        ("/items/data/1/price/recurring", Value::Null, "subscription item si_tokens has no price.recurring"),
        (
            "/items/data/1/price/recurring/interval",
            json!("fortnight"),
            "subscription item si_tokens: price.recurring.interval is \"fortnight\", which we do not know",
        ),
        ("/created", json!("yesterday"), "/v1/subscriptions: error deserializing request data"),
    ];
    for (pointer, value, reason) in cases {
        let mut subscription = subscription();
        *subscription.pointer_mut(pointer).unwrap() = value;
        let server = Server::start(account(customer(), json!([subscription]), json!([]), json!([])));
        assert_eq!(reason_unreadable(&server).await, reason);
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// Lists
// ---------------------------------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_list_is_followed_to_its_end() {
    let server = Server::start(|request, _| {
        let page = |id: &str, more: bool| {
            ok(&json!({ "object": "list", "has_more": more, "data": [{ "id": id, "object": "customer" }] }))
        };
        assert_eq!(request.path, "/v1/customers");
        match request.query.as_str() {
            "limit=100&test_clock=clock_1" => page("cus_1", true),
            "limit=100&starting_after=cus_1&test_clock=clock_1" => page("cus_2", true),
            "limit=100&starting_after=cus_2&test_clock=clock_1" => page("cus_3", false),
            other => panic!("{other}"),
        }
    });
    assert_eq!(server.stripe().customers_on_clock("clock_1").await.unwrap(), [cus("cus_1"), cus("cus_2"), cus("cus_3")]);
}

#[tokio::test]
async fn a_list_without_an_end_is_refused_and_of_sessions_the_newest_are_taken() {
    let endless = |request: &Received, before: usize| {
        let data =
            json!([{ "id": format!("x_{before}"), "created": 5000 - before, "client_reference_id": format!("user {before}") }]);
        match request.path.as_str() {
            "/v1/customers/cus_ada" => ok(&customer()),
            "/v1/checkout/sessions" | "/v1/customers" => ok(&json!({ "object": "list", "has_more": true, "data": data })),
            _ => ok(&list(json!([]))),
        }
    };
    let server = Server::start(endless);
    let error = server.stripe().customers_on_clock("clock_1").await.unwrap_err();
    assert!(matches!(&error, StripeError::Unreadable { reason, .. } if reason.contains("more than 10 pages")), "{error:?}");
    assert_eq!(server.received().len(), 10);

    let server = Server::start(endless);
    assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap().checkout_users.len(), 10);
}

#[tokio::test]
async fn a_subscription_with_more_items_than_it_shows_has_them_all_read() {
    let mut long = subscription();
    long["items"]["has_more"] = json!(true);
    let mut items = long["items"]["data"].as_array().unwrap().clone();
    items.push(items[0].clone());
    let answers = account(customer(), json!([long]), json!([]), json!([]));
    let server = Server::start(move |request, before| match (request.path.as_str(), request.query.as_str()) {
        ("/v1/subscription_items", "limit=100&subscription=sub_ada") => ok(&list(json!(items))),
        _ => answers(request, before),
    });
    assert_eq!(server.stripe().customer(&cus("cus_ada")).await.unwrap().subscriptions[0].items.len(), 3);
}

// ---------------------------------------------------------------------------------------------------------------------------
// What meters have
// ---------------------------------------------------------------------------------------------------------------------------

/// A meter as Stripe lists it.
fn meter(id: &str, event_name: &str, status: &str, created: i64) -> Value {
    json!({ "id": id, "object": "billing.meter", "event_name": event_name, "status": status, "created": created,
            "default_aggregation": { "formula": "sum" }, "event_time_window": null, "livemode": false })
}

/// Summaries with these values, in the form in which JSON has them.
fn summaries(values: &[&str], more: bool) -> Reply {
    let data: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(place, value)| {
            format!(r#"{{"id":"mtrusg_{place}","object":"billing.meter_event_summary","aggregated_value":{value}}}"#)
        })
        .collect();
    Reply::Answer(200, vec![("Request-Id", "req_ok".to_owned())], format!(r#"{{"data":[{}],"has_more":{more}}}"#, data.join(",")))
}

async fn total(stripe: &Stripe<FixedKey>, event_name: &str) -> Result<u64, StripeError> {
    let day = EpochSecs::new(1_795_305_600);
    stripe.total(event_name, &cus("cus_ada"), day, day.plus_days(1)).await
}

#[tokio::test]
async fn a_meters_total_is_the_sum_of_all_pages_of_the_active_or_else_the_newest_meter() {
    let server = Server::start(|request, _| match (request.path.as_str(), request.query.as_str()) {
        ("/v1/billing/meters", "limit=100") => ok(&json!({ "has_more": true, "data": [
            meter("mtr_newer", "calls", "inactive", 30), meter("mtr_other", "requests", "inactive", 29), meter("mtr_second", "twins", "inactive", 20),
        ] })),
        ("/v1/billing/meters", "limit=100&starting_after=mtr_second") => ok(&list(json!([
            meter("mtr_first", "twins", "inactive", 20),
            meter("mtr_active", "calls", "active", 10),
            meter("mtr_old", "requests", "inactive", 9),
        ]))),
        (
            "/v1/billing/meters/mtr_active/event_summaries",
            "customer=cus_ada&end_time=1795392000&limit=100&start_time=1795305600",
        ) => summaries(&["2.0", "40"], true),
        ("/v1/billing/meters/mtr_active/event_summaries", query) if query.contains("starting_after=mtrusg_1") => {
            summaries(&["900719925474099.0"], false)
        }
        ("/v1/billing/meters/mtr_other/event_summaries", _) => summaries(&[], false),
        ("/v1/billing/meters/mtr_second/event_summaries", _) => summaries(&["1e3"], false),
        other => panic!("{other:?}"),
    });
    let stripe = server.stripe();
    assert_eq!(total(&stripe, "calls").await, Ok(42 + 900_719_925_474_099));
    assert_eq!(total(&stripe, "requests").await, Ok(0), "the newest of two that are not active");
    assert_eq!(total(&stripe, "twins").await, Ok(1000), "of one second, the one that Stripe lists first");
}

#[tokio::test]
async fn a_meter_is_looked_up_once_and_one_that_is_not_there_again() {
    let server = Server::start(|request, before| match request.path.as_str() {
        "/v1/billing/meters" if before == 0 => ok(&list(json!([]))),
        "/v1/billing/meters" => ok(&list(json!([meter("mtr_1", "calls", "active", 1), meter("mtr_2", "requests", "active", 1)]))),
        _ => summaries(&["7.0"], false),
    });
    let stripe = server.stripe();
    assert_eq!(total(&stripe, "calls").await, Err(StripeError::NotFound { request_id: "req_ok".to_owned() }));
    let totals = tokio::join!(total(&stripe, "calls"), total(&stripe, "requests"), total(&stripe, "calls"));
    assert_eq!(totals, (Ok(7), Ok(7), Ok(7)));
    let lookups = server.received().iter().filter(|request| request.path == "/v1/billing/meters").count();
    assert_eq!((lookups, server.received().len()), (2, 5));
}

#[tokio::test]
async fn a_summary_that_is_no_exact_whole_number_is_not_believed() {
    for value in ["-1.0", "1.5", "900719925474100.0", "18446744073709551616", "1e300", "null", r#""7""#, "-0.0"] {
        let server = Server::start(move |request, _| match request.path.as_str() {
            "/v1/billing/meters" => ok(&list(json!([meter("mtr_1", "calls", "active", 1)]))),
            _ => summaries(&["1.0", value], false),
        });
        let outcome = total(&server.stripe(), "calls").await;
        assert!(
            matches!(&outcome, Err(StripeError::Unreadable { request_id, .. }) if request_id == "req_ok"),
            "{value}: {outcome:?}"
        );
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// Sales (what the whole of a sale comes to is in tests/handlers)
// ---------------------------------------------------------------------------------------------------------------------------

fn offer() -> Offer {
    let item = |price: &str, quantity| OfferItem { price: PriceId::new(price).unwrap(), quantity };
    let url = |text: &str| ReturnUrl::new(text, true).unwrap();
    Offer {
        user_id: user("ada"),
        plan: PlanId::new("pro").unwrap(),
        items: vec![item("price_flat", Some(1)), item("price_metered", None)],
        success_url: url("https://example.com/thanks?s={CHECKOUT_SESSION_ID}"),
        cancel_url: url("https://example.com/back"),
    }
}

/// A form's fields, sorted.
fn fields(body: &str) -> Vec<String> {
    let escapes =
        [("%5B", "["), ("%5D", "]"), ("%3A", ":"), ("%2F", "/"), ("%3F", "?"), ("%3D", "="), ("%7B", "{"), ("%7D", "}")];
    let plain = escapes.iter().fold(body.to_owned(), |body, (escape, plain)| body.replace(escape, plain));
    let mut fields: Vec<String> = plain.split('&').map(str::to_owned).collect();
    fields.sort();
    fields
}

#[tokio::test]
async fn a_session_is_asked_for_under_one_key_with_all_that_the_offer_holds() {
    let server = Server::start(|_, before| if before == 0 { error(500, "api_error") } else { ok(&json!({ "id": "cs_1" })) });
    server.stripe().open_session(&cus("cus_ada"), &offer(), "key_1").await.unwrap();
    let received = server.received();
    let sent: Vec<_> = received.iter().map(|request| (request.path.as_str(), request.header("idempotency-key"))).collect();
    assert_eq!(sent, [("/v1/checkout/sessions", Some("key_1")); 2], "it is repeated, and harmless");
    let name = format!("metadata[tokentill_offer]={}", offer().name());
    assert_eq!(
        fields(&received[0].body),
        [
            "cancel_url=https://example.com/back",
            "client_reference_id=ada",
            "customer=cus_ada",
            "line_items[0][price]=price_flat",
            "line_items[0][quantity]=1",
            "line_items[1][price]=price_metered",
            "metadata[plan]=pro",
            &name,
            "metadata[user_id]=ada",
            "mode=subscription",
            "subscription_data[billing_mode][type]=flexible",
            "subscription_data[metadata][user_id]=ada",
            "success_url=https://example.com/thanks?s={CHECKOUT_SESSION_ID}",
        ]
    );
}

#[tokio::test]
async fn a_customer_is_made_under_one_key_and_what_stripe_remembers_with_it_is_known() {
    let server = Server::start(|_, before| match before {
        0 => error(429, "lock_timeout"),
        1 => ok(&json!({ "id": "cus_ada" })),
        2 => {
            let body = json!({ "error": { "type": "idempotency_error", "message": "Keys can only be used once." } });
            Reply::Answer(400, vec![], body.to_string())
        }
        3 => error(403, "more_permissions_required"),
        4..=6 => error(500, "api_error"),
        7..=9 => error(409, "idempotency_key_in_use"),
        10..=12 => error(429, "lock_timeout"),
        _ => Reply::HangUp,
    });
    assert_eq!(server.stripe().make_customer(&user("ada"), "key_1").await, Ok(cus("cus_ada")));
    let received = server.received();
    assert_eq!(received[1].header("idempotency-key"), Some("key_1"));
    assert_eq!(fields(&received[1].body), ["metadata[user_id]=ada"]);
    for (what, may_come_again) in
        [("a used key", true), ("403", true), ("500", true), ("409", false), ("429", false), ("no answer", false)]
    {
        let failed = server.stripe().open_session(&cus("cus_ada"), &offer(), "key_1").await.unwrap_err();
        assert_eq!(failed.may_come_again_with_its_key(), may_come_again, "{what}: {failed:?}");
    }
}

#[tokio::test]
async fn an_expiry_is_sent_once_and_without_a_key() {
    let server = Server::start(|_, _| error(500, "api_error"));
    server.stripe().expire_session(&CheckoutSessionId::new("cs_1").unwrap()).await.unwrap_err();
    let received = server.received();
    let sent: Vec<_> = received.iter().map(|request| (request.path.as_str(), request.header("idempotency-key"))).collect();
    assert_eq!(sent, [("/v1/checkout/sessions/cs_1/expire", None)]);
}

#[tokio::test]
async fn each_link_to_the_portal_is_new_and_a_customer_that_is_gone_has_none() {
    let server = Server::start(|_, before| match before {
        0 => error(500, "api_error"),
        1 | 2 => ok(&json!({ "id": "bps_1", "url": "https://billing.example/p" })),
        _ => error(400, "resource_missing"),
    });
    let stripe = server.stripe();
    let back = ReturnUrl::new("https://example.com/", true).unwrap();
    for _ in 0..2 {
        let link = stripe.portal(&cus("cus_ada"), &back).await;
        assert_eq!(link, Ok(Link::new("https://billing.example/p".to_owned())));
    }
    let received = server.received();
    let keys: Vec<_> = received.iter().map(|request| request.header("idempotency-key").unwrap()).collect();
    assert!(keys[0] == keys[1] && keys[1] != keys[2], "{keys:?}");
    assert_eq!(fields(&received[0].body), ["customer=cus_ada", "return_url=https://example.com/"]);
    assert!(matches!(stripe.portal(&cus("cus_ada"), &back).await, Err(StripeError::NotFound { .. })));
}

#[tokio::test]
async fn prices_are_asked_for_by_ten_keys_at_a_time_and_only_active_ones() {
    let server = Server::start(|_, before| {
        let price = |id: &str, key: Value| json!({ "id": id, "lookup_key": key, "active": true });
        ok(&list(if before == 0 { json!([price("price_1", json!("key_0")), price("price_2", json!(null))]) } else { json!([]) }))
    });
    let keys: Vec<String> = (0..11).map(|n| format!("key_{n}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let found = server.stripe().price_ids(&keys).await.unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("key_0".to_owned(), PriceId::new("price_1").unwrap())]);
    let queries: Vec<String> = server.received().into_iter().map(|request| request.query).collect();
    assert_eq!(queries[1], "active=true&limit=100&lookup_keys[0]=key_10");
    assert!(queries[0].starts_with("active=true&") && queries[0].ends_with("lookup_keys[9]=key_9"), "{}", queries[0]);
}

/// Answers what a sale asks about a customer.
fn looked_at(customer: Value, sessions: Value) -> impl Fn(&Received, usize) -> Reply {
    move |request, _| match (request.path.as_str(), request.query.as_str()) {
        ("/v1/customers/cus_ada", "") => ok(&customer),
        ("/v1/subscriptions", "customer=cus_ada&expand[0]=data.latest_invoice&limit=100&status=all") => ok(&list(json!([
            { "id": "sub_1", "status": "incomplete", "latest_invoice": { "hosted_invoice_url": "https://invoice.example/i" } },
            { "id": "sub_2", "status": "canceled", "latest_invoice": null },
        ]))),
        ("/v1/checkout/sessions", "customer=cus_ada&limit=100") => ok(&list(sessions.clone())),
        _ => error(404, "resource_missing"),
    }
}

#[tokio::test]
async fn a_buyer_has_its_subscriptions_and_the_open_sessions_that_lead_to_one() {
    let session = |id: &str, status: &str, mode: &str, offer: Value| {
        json!({ "id": id, "status": status, "mode": mode, "metadata": { "tokentill_offer": offer }, "expires_at": 1_795_348_800,
                "url": if status == "open" { json!("https://pay.example/p") } else { Value::Null } })
    };
    let sessions = json!([
        session("cs_paid", "complete", "subscription", json!("offer")),
        session("cs_once", "open", "payment", Value::Null),
        session("cs_ours", "open", "subscription", json!("offer")),
        session("cs_foreign", "open", "subscription", Value::Null),
    ]);
    let server = Server::start(looked_at(customer(), sessions));
    let page = |url: &str| Some(Link::new(url.to_owned()));
    let open = |offer: Option<&str>| {
        let expires_at = EpochSecs::new(1_795_348_800);
        Some(OpenSession { offer: offer.map(str::to_owned), page: page("https://pay.example/p"), expires_at })
    };
    let session = |id: &str, open| CheckoutSession { id: CheckoutSessionId::new(id).unwrap(), open };
    assert_eq!(
        server.stripe().buyer(&cus("cus_ada")).await.unwrap(),
        Buyer {
            gone: false,
            subscriptions: vec![
                HeldSubscription { status: Status::Incomplete, payment_page: page("https://invoice.example/i") },
                HeldSubscription { status: Status::Canceled, payment_page: None },
            ],
            sessions: vec![
                session("cs_paid", None),
                session("cs_once", None),
                session("cs_ours", open(Some("offer"))),
                session("cs_foreign", open(None)),
            ],
        }
    );

    let gone = Buyer { gone: true, ..Buyer::default() };
    let deleted = Server::start(looked_at(json!({ "id": "cus_ada", "deleted": true }), json!([])));
    assert_eq!(deleted.stripe().buyer(&cus("cus_ada")).await, Ok(gone.clone()));
    assert_eq!(deleted.stripe().buyer(&cus("cus_nobody")).await, Ok(gone));
    let nameless = Server::start(looked_at(customer(), json!([{ "id": "cs_1" }])));
    let error = nameless.stripe().buyer(&cus("cus_ada")).await.unwrap_err().to_string();
    assert!(error.contains("checkout session cs_1 has no status"), "{error}");
}

// ---------------------------------------------------------------------------------------------------------------------------
// Lists of everybody
// ---------------------------------------------------------------------------------------------------------------------------

fn window(list: EventList, after: Option<&str>) -> EventWindow {
    let (from, until) = (EpochSecs::new(1_000), EpochSecs::new(2_000));
    EventWindow { from, until, list, after: after.map(str::to_owned) }
}

#[tokio::test]
async fn events_are_asked_for_by_their_window_and_come_as_they_are() {
    let event = json!({ "id": "evt_1", "object": "event", "type": "invoice.paid", "created": 1_500, "livemode": false,
                        "data": { "object": { "id": "in_1", "object": "invoice", "customer": "cus_ada", "total": -1.5e3 } } });
    let body = event.clone();
    let server = Server::start(move |_, _| ok(&json!({ "object": "list", "data": [body, { "id": "evt_0" }], "has_more": true })));
    let stripe = server.stripe();
    for (list, after) in
        [(EventList::Undelivered, Some("evt_9")), (EventList::AllOfFirstTypes, None), (EventList::AllOfOtherTypes, None)]
    {
        let page = stripe.events(&window(list, after)).await.unwrap();
        assert_eq!(page.next.as_deref(), Some("evt_0"));
        let hint = envelope::read(page.data[0].as_bytes(), EpochSecs::new(0), false).unwrap();
        let expected = envelope::read(event.to_string().as_bytes(), EpochSecs::new(0), false).unwrap();
        assert_eq!(hint, expected);
        assert!(envelope::read(page.data[1].as_bytes(), EpochSecs::new(0), false).is_err());
    }
    let asked = server.received();
    assert_eq!(
        asked[0].query,
        "created[gte]=1000&created[lte]=2000&delivery_success=true&limit=100&starting_after=evt_9".replace("true", "false")
    );
    let types = |query: &str| {
        query.split('&').filter_map(|field| Some(field.split_once("types[")?.1.split_once('=')?.1.to_owned())).collect::<Vec<_>>()
    };
    let (first, others) = (types(&asked[1].query), types(&asked[2].query));
    assert!(first.len() == 20 && !asked[1].query.contains("delivery_success"), "{}", asked[1].query);
    assert_eq!([first, others].concat(), SNAPSHOT_EVENTS);
    let nameless = Server::start(|_, _| ok(&json!({ "data": [{ "object": "event" }], "has_more": true })));
    let error = nameless.stripe().events(&window(EventList::Undelivered, None)).await.unwrap_err().to_string();
    assert!(error.contains("/v1/events: a page leads nowhere"), "{error}");
}

#[tokio::test]
async fn all_subscriptions_are_read_each_on_its_own() {
    let mut expanded = subscription();
    expanded["latest_invoice"] = invoice();
    expanded["canceled_at"] = 1_795_500_000.into();
    expanded["customer"] = customer();
    let mut deleted = subscription();
    deleted["customer"] = json!({ "id": "cus_gone", "object": "customer", "deleted": true });
    deleted["items"]["has_more"] = true.into();
    let mut broken = subscription();
    broken["id"] = "sub_odd".into();
    broken.as_object_mut().unwrap().remove("status");
    let mut strange = subscription();
    strange["id"] = "sub_strange".into();
    strange["created"] = "yesterday".into();
    let data = json!([expanded, broken, strange, deleted, subscription()]);
    let server = Server::start(move |_, _| ok(&json!({ "data": data, "has_more": false })));
    let page = server.stripe().all_subscriptions(Some("sub_9")).await.unwrap();
    assert_eq!(
        server.received()[0].query,
        "expand[0]=data.customer&expand[1]=data.latest_invoice&limit=100&starting_after=sub_9&status=all"
    );
    assert_eq!(page.next, None);
    let [Ok(first), Err(broken), Err(strange), Ok(deleted), Ok(last)] = &page.data[..] else { panic!("{page:?}") };
    assert_eq!((first.customer.as_str(), first.facts.id.as_str(), &first.facts.status), ("cus_ada", "sub_ada", &Status::PastDue));
    assert_eq!((first.customer_user.as_ref(), first.customer_deleted), (Some(&user("ada of the customer")), false));
    assert_eq!((deleted.customer.as_str(), deleted.customer_deleted), ("cus_gone", true));
    assert_eq!([first, deleted, last].map(|listed| listed.has_more_items), [false, true, false]);
    let overdue = ListedInvoice { id: InvoiceId::new("in_2").unwrap(), standing: InvoiceStanding::Overdue };
    assert_eq!((first.invoice.as_ref(), first.changed_at), (Some(&overdue), EpochSecs::new(1_795_500_000)));
    assert_eq!((last.invoice.as_ref(), last.changed_at), (None, EpochSecs::new(1_793_534_401)), "of an id nothing more is known");
    assert!(broken.contains("subscription sub_odd has no status"), "{broken}");
    assert!(strange.contains("sub_strange has a field"), "{strange}");
}

#[tokio::test]
async fn an_invoice_stands_as_its_status_and_its_attempts_say() {
    for (status, attempts, expected) in [
        ("open", 1, InvoiceStanding::Overdue),
        ("open", 0, InvoiceStanding::Other),
        ("draft", 1, InvoiceStanding::Other),
        ("paid", 1, InvoiceStanding::Settled),
        ("void", 0, InvoiceStanding::Settled),
        ("uncollectible", 3, InvoiceStanding::WrittenOff),
        ("from_the_future", 1, InvoiceStanding::Other),
    ] {
        let mut expanded = subscription();
        expanded["latest_invoice"] =
            json!({ "id": "in_2", "status": status, "attempt_count": attempts, "attempted": attempts > 0 });
        let server = Server::start(move |_, _| ok(&list(json!([expanded]))));
        let page = server.stripe().all_subscriptions(None).await.unwrap();
        let standing = page.data[0].as_ref().unwrap().invoice.as_ref().unwrap().standing;
        assert_eq!(standing, expected, "{status} {attempts}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------------
// The sandbox
// ---------------------------------------------------------------------------------------------------------------------------

/// Makes an object of the sandbox and says its id.
async fn made(client: &StripeClient<FixedKey>, route: &'static str, form: Value) -> String {
    let request = RequestBuilder::new(StripeMethod::Post, route.strip_prefix("/v1").unwrap()).form(&form);
    let object = client.send(route, request.customize::<miniserde::json::Value>()).await.unwrap().value;
    let miniserde::json::Value::Object(object) = object else { panic!("{object:?}") };
    let Some(miniserde::json::Value::String(id)) = object.get("id") else { panic!("{object:?}") };
    id.clone()
}

/// Posts to the sandbox's own API, which has no place in the adapter.
async fn control(url: String, path: String, body: &'static str) {
    let answered = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        let kind = "Content-Type: application/x-www-form-urlencoded";
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: sandbox\r\nConnection: close\r\n{kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answered.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_customer_of_the_sandbox_is_read_and_reported_to() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick());
    let start = 1_800_000_000;

    let meter = json!({ "display_name": "Requests", "event_name": "requests", "default_aggregation": { "formula": "sum" } });
    let meter = made(&client, "/v1/billing/meters", meter).await;
    let product = made(&client, "/v1/products", json!({ "name": "Pro" })).await;
    let base = json!({ "product": product, "currency": "eur", "unit_amount": 2000, "lookup_key": "pro_base", "recurring": { "interval": "month" } });
    let base = made(&client, "/v1/prices", base).await;
    let metered = json!({ "product": product, "currency": "eur", "unit_amount_decimal": "0.25", "lookup_key": "pro_requests",
                          "recurring": { "interval": "month", "usage_type": "metered", "meter": meter } });
    let metered = made(&client, "/v1/prices", metered).await;
    let clock = made(&client, "/v1/test_helpers/test_clocks", json!({ "frozen_time": start })).await;
    let customer = json!({ "test_clock": clock, "metadata": { "user_id": "ada" } });
    let customer = cus(&made(&client, "/v1/customers", customer).await);
    let session = json!({ "mode": "subscription", "customer": customer.as_str(), "success_url": "https://example.com/thanks",
                          "client_reference_id": "ada", "line_items": [{ "price": base, "quantity": 1 }, { "price": metered }],
                          "subscription_data": { "metadata": { "user_id": "ada" }, "billing_mode": { "type": "flexible" } } });
    let session = made(&client, "/v1/checkout/sessions", session).await;
    control(sandbox.url(), format!("/_sandbox/checkout/sessions/{session}/complete"), "payment_method=pm_card_visa").await;

    let stripe = Stripe::new(client);
    let facts = stripe.customer(&customer).await.unwrap();
    assert_eq!((facts.test_clock, facts.user_id), (Some(EpochSecs::new(start)), Some(user("ada"))));
    assert_eq!((facts.checkout_users.as_slice(), facts.open_invoices.len()), ([user("ada")].as_slice(), 0));
    let [subscription] = &facts.subscriptions[..] else { panic!("{:?}", facts.subscriptions) };
    assert_eq!(
        (&subscription.status, subscription.flexible, subscription.created),
        (&Status::Active, true, EpochSecs::new(start))
    );
    let mut items: Vec<_> = subscription.items.iter().map(|item| (item.lookup_key.as_deref(), item.metered)).collect();
    items.sort();
    assert_eq!(items, [(Some("pro_base"), false), (Some("pro_requests"), true)]);
    let cycle = subscription.items[0].cycle;
    assert_eq!(subscription.items[0].period, cycle.period_containing(EpochSecs::new(start)));
    assert_eq!(stripe.customers_on_clock(&clock).await.as_deref(), Ok([customer.clone()].as_slice()));
    assert_eq!(stripe.customer_of(subscription.id.as_str()).await, Ok(Some(customer.clone())));
    assert!(matches!(stripe.customer(&cus("cus_nobody")).await, Err(StripeError::NotFound { .. })));

    let report = MeterReport { customer, event_name: "requests".to_owned(), minute: EpochSecs::new(start), ..report() };
    assert_eq!(stripe.send(&report).await, Ok(Delivered::Now));
    assert_eq!(stripe.send(&report).await, Ok(Delivered::Before));
    let too_old = MeterReport { minute: EpochSecs::new(start).plus_days(-36), identifier: "rep_other".to_owned(), ..report };
    assert!(matches!(stripe.send(&too_old).await, Err(StripeError::Refused { status: 400, .. })));
    sandbox.shutdown().await;
}

#[tokio::test]
async fn the_sandbox_lists_what_it_did_not_deliver_who_subscribes_and_where_it_delivers_to() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick());
    control(sandbox.url(), "/_sandbox/delivery".to_owned(), "mode=drop").await;
    let events: Vec<Value> = SNAPSHOT_EVENTS.iter().map(|event| json!(event)).collect();
    let version = Stripe::new(StripeClient::new(None, FixedKey(SecretKey::new(KEY).unwrap())).unwrap()).api_version();
    let endpoint = json!({ "url": "http://127.0.0.1:9/webhooks/stripe", "enabled_events": events, "api_version": version });
    let endpoint = made(&client, "/v1/webhook_endpoints", endpoint).await;
    let product = made(&client, "/v1/products", json!({ "name": "Pro" })).await;
    let price = json!({ "product": product, "currency": "eur", "unit_amount": 2000, "lookup_key": "pro_base", "recurring": { "interval": "month" } });
    let price = made(&client, "/v1/prices", price).await;
    let clock = made(&client, "/v1/test_helpers/test_clocks", json!({ "frozen_time": 1_800_000_000 })).await;
    let mut subscriptions = Vec::new();
    for customer in [json!({ "metadata": { "user_id": "ada" } }), json!({ "test_clock": clock }), json!({ "name": "Nobody" })] {
        let customer = made(&client, "/v1/customers", customer).await;
        let subscription =
            json!({ "customer": customer, "items": [{ "price": price }], "payment_behavior": "default_incomplete" });
        subscriptions.push((customer, made(&client, "/v1/subscriptions", subscription).await));
    }
    let stripe = Stripe::new(client);

    let StripePage { data, next } = stripe.all_subscriptions(None).await.unwrap();
    let listed: Vec<_> = data.iter().map(|listed| listed.as_ref().unwrap()).collect();
    let ids: Vec<_> = listed.iter().map(|listed| (listed.customer.to_string(), listed.facts.id.to_string())).collect();
    assert_eq!(
        (ids, next),
        (vec![subscriptions[2].clone(), subscriptions[0].clone()], None),
        "those on test clocks are left out"
    );
    assert_eq!((&listed[0].facts.status, listed[0].invoice.is_some()), (&Status::Incomplete, true));
    let gone = stripe.all_subscriptions(Some("sub_gone")).await;
    assert!(matches!(gone, Err(StripeError::NotFound { .. })), "{gone:?}");

    let whenever = |list| EventWindow { from: EpochSecs::new(0), until: EpochSecs::new(4_000_000_000), list, after: None };
    let kinds = async |list| {
        let page = stripe.events(&whenever(list)).await.unwrap();
        let kind = |event: &String| envelope::read(event.as_bytes(), EpochSecs::new(0), false).unwrap().kind;
        page.data.iter().map(kind).collect::<Vec<_>>()
    };
    let undelivered = kinds(EventList::Undelivered).await;
    assert_eq!(undelivered.iter().filter(|kind| *kind == "customer.subscription.created").count(), 3, "{undelivered:?}");
    let all = kinds(EventList::AllOfFirstTypes).await;
    assert!(all.iter().all(|kind| SNAPSHOT_EVENTS[..20].contains(&kind.as_str())), "{all:?}");
    assert_eq!(kinds(EventList::AllOfOtherTypes).await, Vec::<String>::new());
    let gone = stripe.events(&EventWindow { after: Some("evt_gone".to_owned()), ..whenever(EventList::Undelivered) }).await;
    assert!(matches!(gone, Err(StripeError::NotFound { .. })), "{gone:?}");

    let problem = async || {
        let endpoints: Vec<Endpoint> = stripe.endpoints().await.unwrap();
        endpoint_problem("http://127.0.0.1:9/webhooks/stripe", &endpoints, version, &SNAPSHOT_EVENTS)
    };
    assert_eq!(problem().await, None);
    let off =
        RequestBuilder::new(StripeMethod::Post, format!("/webhook_endpoints/{endpoint}")).form(&json!({ "disabled": true }));
    stripe.client().send("/v1/webhook_endpoints/{id}", off.customize::<miniserde::json::Value>()).await.unwrap();
    assert_eq!(problem().await, Some(EndpointProblem::Disabled(endpoint)));
    sandbox.shutdown().await;
}

#[tokio::test]
async fn rate_limits_and_locks_are_waited_for() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap();
    let stripe = Stripe::new(client);
    // Stripe takes an event of a customer that it does not know, too; it is thrown away later.
    let reports = |customer: fn(usize) -> CustomerId, count: usize| {
        (0..count)
            .map(move |number| MeterReport {
                customer: customer(number),
                identifier: format!("rep_{number}_of_{count}"),
                ..report()
            })
            .collect::<Vec<_>>()
    };
    let started = Instant::now();
    let many = reports(|number| cus(&format!("cus_{number}")), 50);
    let outcomes = futures_util::future::join_all(many.iter().map(|report| stripe.send(report))).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(Delivered::Now)), "{outcomes:?}");
    assert!(started.elapsed() >= Duration::from_secs(1), "at once 25 are taken, and 25 a second");

    control(sandbox.url(), "/_sandbox/settings".to_owned(), "global_rate=0&endpoint_rate=0&meter_call_ms=100").await;
    let both = reports(|_| cus("cus_ada"), 2);
    let outcomes = tokio::join!(stripe.send(&both[0]), stripe.send(&both[1]));
    assert_eq!(outcomes, (Ok(Delivered::Now), Ok(Delivered::Now)));
    sandbox.shutdown().await;
}

#[tokio::test]
async fn what_the_sandboxs_meters_have_is_read_back() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    // What is asked here in a second is more than a sandbox of Stripe's would answer.
    control(sandbox.url(), "/_sandbox/settings".to_owned(), "global_rate=0&endpoint_rate=0").await;
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick());
    let stripe = Stripe::new(client);
    let client = stripe.client();
    let day = EpochSecs::new(1_800_057_600);
    let clock = made(client, "/v1/test_helpers/test_clocks", json!({ "frozen_time": day.as_secs() + 43_200 })).await;
    let new_customer = async || cus(&made(client, "/v1/customers", json!({ "test_clock": clock })).await);
    let new_meter = async || {
        let meter = json!({ "display_name": "Requests", "event_name": "requests", "default_aggregation": { "formula": "sum" } });
        made(client, "/v1/billing/meters", meter).await
    };
    let (ada, bob) = (new_customer().await, new_customer().await);
    let raw = async |method: StripeMethod, path: String, route: &'static str| {
        let request = RequestBuilder::new(method, path).customize::<miniserde::json::Value>();
        client.send(route, request).await.unwrap();
    };
    let total = async |customer: &CustomerId| stripe.total("requests", customer, day, day.plus_days(1)).await;
    assert!(matches!(total(&ada).await, Err(StripeError::NotFound { .. })), "there is no such meter yet");

    let retired = new_meter().await;
    raw(StripeMethod::Post, format!("/billing/meters/{retired}/deactivate"), "/v1/billing/meters/{id}/deactivate").await;
    new_meter().await;
    assert_eq!(total(&ada).await, Ok(0));
    let send = async |customer: &CustomerId, number: i64, at: i64| {
        let (customer, identifier) = (customer.clone(), format!("rep_{customer}_{number}"));
        let quantity = 1_u64 << number;
        let event_name = "requests".to_owned();
        let minute = EpochSecs::new(at);
        let report = MeterReport { customer, event_name, identifier, quantity, minute };
        assert_eq!(stripe.send(&report).await, Ok(Delivered::Now));
    };
    send(&ada, 40, day.as_secs()).await;
    assert_eq!((total(&ada).await, total(&bob).await), (Ok(1 << 40), Ok(0)));
    for number in 0..8 {
        send(&ada, number, day.as_secs() + number * 3_600).await;
    }
    send(&ada, 8, day.as_secs() - 60).await;
    send(&bob, 9, day.as_secs() + 60).await;
    assert_eq!((total(&ada).await, total(&bob).await), (Ok((1 << 40) + 255), Ok(512)));

    control(sandbox.url(), "/_sandbox/settings".to_owned(), "summary_lag_secs=3600").await;
    assert_eq!(total(&ada).await, Ok(0), "Stripe's summaries lag behind");
    control(sandbox.url(), "/_sandbox/settings".to_owned(), "summary_lag_secs=0").await;
    raw(StripeMethod::Delete, format!("/customers/{bob}"), "/v1/customers/{id}").await;
    assert!(matches!(total(&bob).await, Err(StripeError::NotFound { .. })));
    assert_eq!(total(&ada).await, Ok((1 << 40) + 255));
    sandbox.shutdown().await;
}

#[tokio::test]
async fn a_period_of_the_sandbox_is_final_once_a_test_clock_has_finalised_its_draft() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    // It asks until the clock has arrived, faster than Stripe's limits let anybody.
    control(sandbox.url(), "/_sandbox/settings".to_owned(), "global_rate=0&endpoint_rate=0").await;
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick());
    let start = 1_800_000_000;
    let product = made(&client, "/v1/products", json!({ "name": "Pro" })).await;
    let price = json!({ "product": product, "currency": "eur", "unit_amount": 0, "recurring": { "interval": "week" } });
    let price = made(&client, "/v1/prices", price).await;
    let clock = made(&client, "/v1/test_helpers/test_clocks", json!({ "frozen_time": start })).await;
    let customer = cus(&made(&client, "/v1/customers", json!({ "test_clock": clock })).await);
    made(&client, "/v1/subscriptions", json!({ "customer": customer.as_str(), "items": [{ "price": price }] })).await;

    let stripe = Stripe::new(client);
    let (week, hour) = (7 * 86_400, 3_600);
    for (at, is_final, period_end) in [
        (start, true, start),
        (start + week, false, start + week),
        (start + week + hour - 1, false, start + week),
        (start + week + hour, true, start + week),
        (start + 2 * week, false, start + 2 * week),
        (start + 2 * week + hour, true, start + 2 * week),
    ] {
        if at > start {
            let path = format!("/test_helpers/test_clocks/{clock}/advance");
            let advance = RequestBuilder::new(StripeMethod::Post, path).form(&json!({ "frozen_time": at }));
            let advance = advance.customize::<miniserde::json::Value>();
            stripe.client().send("/v1/test_helpers/test_clocks/{id}/advance", advance).await.unwrap();
        }
        while stripe.customer(&customer).await.unwrap().test_clock != Some(EpochSecs::new(at)) {
            tokio::task::yield_now().await;
        }
        // The calls of one look run side by side: only a further one is sure to have seen all that the clock did.
        let facts = stripe.customer(&customer).await.unwrap();
        let invoice = facts.subscriptions[0].latest_invoice.clone().unwrap();
        assert_eq!(
            (invoice.is_final, invoice.period.map(|period| period.1)),
            (is_final, Some(EpochSecs::new(period_end))),
            "{at}"
        );
    }
    sandbox.shutdown().await;
}

// ---------------------------------------------------------------------------------------------------------------------------
// Secrets
// ---------------------------------------------------------------------------------------------------------------------------

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Asks the sandbox for something whose answer does not matter.
async fn asked(stripe: &Stripe<FixedKey>, method: StripeMethod, route: &'static str, id: &str, form: Value) {
    let path = route.strip_prefix("/v1").unwrap().replace("{id}", id);
    let request = RequestBuilder::new(method, path);
    let request = if form == json!({}) { request } else { request.form(&form) };
    stripe.client().send(route, request.customize::<miniserde::json::Value>()).await.unwrap();
}

#[tokio::test]
async fn an_invoice_of_the_sandbox_that_is_paid_after_its_subscriptions_end_tells_what_it_paid_for() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    control(sandbox.url(), "/_sandbox/settings".to_owned(), "global_rate=0&endpoint_rate=0").await;
    let client = StripeClient::new(Some(&sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap().with_limits(quick());
    let (start, week, hour) = (1_800_000_000, 7 * 86_400, 3_600);
    let product = made(&client, "/v1/products", json!({ "name": "Pro" })).await;
    let price = json!({ "product": product, "currency": "eur", "unit_amount": 1_900, "recurring": { "interval": "week" } });
    let price = made(&client, "/v1/prices", price).await;
    let clock = made(&client, "/v1/test_helpers/test_clocks", json!({ "frozen_time": start })).await;
    let customer = cus(&made(&client, "/v1/customers", json!({ "test_clock": clock })).await);
    let stripe = Stripe::new(client);
    let default = async |method: &str| {
        let form = json!({ "invoice_settings": { "default_payment_method": method } });
        asked(&stripe, StripeMethod::Post, "/v1/customers/{id}", customer.as_str(), form).await;
    };
    let at = async |moment: i64| {
        asked(&stripe, StripeMethod::Post, "/v1/test_helpers/test_clocks/{id}/advance", &clock, json!({ "frozen_time": moment }))
            .await;
        while stripe.customer(&customer).await.unwrap().test_clock != Some(EpochSecs::new(moment)) {
            tokio::task::yield_now().await;
        }
        stripe.customer(&customer).await.unwrap()
    };
    let attach = async |route| made(stripe.client(), route, json!({ "customer": customer.as_str() })).await;
    let good = attach("/v1/payment_methods/pm_card_visa/attach").await;
    let bad = attach("/v1/payment_methods/pm_card_chargeCustomerFail/attach").await;
    default(&good).await;
    let subscription =
        made(stripe.client(), "/v1/subscriptions", json!({ "customer": customer.as_str(), "items": [{ "price": price }] })).await;
    default(&bad).await;
    let unpaid = at(start + week + hour).await;
    let invoice = unpaid.open_invoices[0].id.clone();
    assert!(unpaid.open_invoices[0].attempted && unpaid.paid_invoices.is_empty(), "{unpaid:?}");
    asked(&stripe, StripeMethod::Delete, "/v1/subscriptions/{id}", &subscription, json!({})).await;
    let ended = at(start + week + 2 * hour).await;
    let paid = |facts: &tokentill::domain::facts::CustomerFacts| {
        facts.paid_invoices.iter().map(|paid| (paid.paid_at.as_secs(), paid.paid_for_until.as_secs())).collect::<Vec<_>>()
    };
    assert_eq!(ended.subscriptions[0].ended_at, Some(EpochSecs::new(start + week + hour)));
    assert_eq!(paid(&ended), [], "the first week's was paid before the end");
    default(&good).await;
    asked(&stripe, StripeMethod::Post, "/v1/invoices/{id}/pay", invoice.as_str(), json!({})).await;
    let restored = stripe.customer(&customer).await.unwrap();
    assert_eq!(paid(&restored), [(start + week + 2 * hour, start + 2 * week)]);
    assert!(restored.open_invoices.is_empty());
    sandbox.shutdown().await;
}

#[tokio::test]
async fn no_log_line_and_no_error_holds_a_key_or_a_body() {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let mut shown = String::new();
    let failures: [Failure; 7] = [
        || error(400, "bad"),
        || error(401, "bad"),
        || error(403, "bad"),
        || error(500, "bad"),
        || Reply::Reset,
        || Reply::Answer(200, vec![], "not JSON: someone@example.com".to_owned()),
        || Reply::Answer(502, vec![], "someone@example.com".to_owned()),
    ];
    for fail in failures {
        let server = Server::start(move |_, _| fail());
        let errors =
            [server.stripe().customer(&cus("cus_ada")).await.unwrap_err(), server.stripe().send(&report()).await.unwrap_err()];
        shown += &format!("{errors:?} {} {}\n", errors[0], errors[1]);
    }
    let server = Server::start(account(customer(), json!([subscription()]), json!([invoice()]), json!([])));
    server.stripe().customer(&cus("cus_ada")).await.unwrap();

    let logged = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("/v1/customers/{id}") && logged.contains("req_500") && logged.contains("attempt=3"), "{logged}");
    for secret in [KEY, "SecretOfTheTest", "Bearer", "someone@example.com", "90210", "customer=cus_ada"] {
        assert!(!logged.contains(secret), "the log holds {secret}: {logged}");
        assert!(!shown.contains(secret), "an error holds {secret}: {shown}");
    }
}
