//! The access API: may this user call the model, and what did they use (the contract, 3.3).

use std::{cell::Cell, collections::BTreeMap, fmt::Write as _, future::Future, ops::Range};

use access::{AccessApi, Cache, Seller};
use expect_test::{Expect, expect};
use handlers::{Fault, Faults, Faulty, Queue, TestClock, TestSecret, World};
use lambda_http::{Body, Request, request};
use serde_json::{Value, json};
use tokentill::{
    config::StripeMode,
    domain::{
        account::Account,
        audit::{ByHour, Position},
        counting::LedgerRow,
        facts::Status,
        gate::{Granted, Take, Taken},
        id::{CustomerId, EventId, RequestId, UserId},
        price_list::PriceList,
        report::{Book, Tally},
        time::{EpochSecs, UtcDay},
    },
    dynamodb::Store,
    ports::{AccountChange, Accounts, Audit, Clock, Commit, CustomerRecord, Gates, Reported, Tallies, Unavailable},
    stripe::{FixedKey, SecretKey, Stripe, StripeClient},
};

use crate::{
    samples::{ACCESS, SERVICE_TOKEN, USAGE_QUERY, at, cancelled, commit, overdue, parsed, subscriber},
    usage::{call, count, with},
};

/// The store as the access API uses it, whose calls can go wrong.
#[derive(Debug)]
pub(crate) struct Reads {
    store: Faulty<Store>,
    /// The most rows that are read for an answer by hour, if that is to be fewer than the API allows.
    most: Cell<usize>,
}

impl Reads {
    pub(crate) fn of(world: &World) -> Self {
        Self { store: world.store_of("access"), most: Cell::new(usize::MAX) }
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.store.faults
    }

    pub(crate) fn at_most(&self, rows: usize) {
        self.most.set(rows);
    }

    async fn read<T>(&self, name: &'static str, effect: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        self.store.faults.around(name, |reason| Unavailable { what: name, reason }, effect).await
    }
}

impl Accounts for Reads {
    async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Unavailable> {
        self.store.account(user_id).await
    }

    async fn customer(&self, customer: &CustomerId) -> Result<Option<CustomerRecord>, Unavailable> {
        self.store.customer(customer).await
    }

    async fn is_processed(&self, event_id: &EventId) -> Result<bool, Unavailable> {
        self.store.is_processed(event_id).await
    }

    async fn commit(&self, _: &AccountChange<'_>) -> Result<Commit, Unavailable> {
        panic!("the access API only reads")
    }

    async fn record(&self, _: &CustomerRecord, _: &EventId) -> Result<Commit, Unavailable> {
        panic!("the access API only reads")
    }
}

impl Tallies for Reads {
    async fn tallies(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<Tally>, Unavailable> {
        self.read("tallies", self.store.port.tallies(user_id, from, to)).await
    }
}

impl Gates for Reads {
    async fn granted(&self, user_id: &UserId) -> Result<Granted, Unavailable> {
        self.read("granted", self.store.port.granted(user_id)).await
    }

    async fn take(&self, take: &Take<'_>) -> Result<Taken, Unavailable> {
        self.read("take", self.store.port.take(take)).await
    }
}

impl Reported for Reads {
    async fn books(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<BTreeMap<String, Book>, Unavailable> {
        self.read("books", self.store.port.books(user_id, from, to)).await
    }
}

impl Audit for Reads {
    async fn rows_by_time(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        after: Option<&Position>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable> {
        self.read("rows_by_time", self.store.port.rows_by_time(user_id, moments, after, most)).await
    }

    async fn rows_of_request(
        &self,
        user_id: &UserId,
        request_id: &RequestId,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable> {
        self.read("rows_of_request", self.store.port.rows_of_request(user_id, request_id, after, most)).await
    }

    async fn counted_by_hour(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        most: usize,
    ) -> Result<Option<ByHour>, Unavailable> {
        self.read("counted_by_hour", self.store.port.counted_by_hour(user_id, moments, most.min(self.most.get()))).await
    }
}

pub(crate) type Api = AccessApi<TestSecret, Reads, TestClock, Seller<Stripe<FixedKey>, Queue>>;

pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) api: Api,
}

/// A bench whose API knows nothing of a user from one question to the next, as after a cold start.
pub(crate) async fn bench() -> Bench {
    warm_bench(0).await
}

/// A bench whose API remembers users for so many seconds.
pub(crate) async fn warm_bench(cache_secs: u32) -> Bench {
    let world = World::start().await;
    let api = api(&world, cache_secs);
    Bench { world, api }
}

/// An instance of the function in this world.
pub(crate) fn api(world: &World, cache_secs: u32) -> Api {
    AccessApi {
        tokens: TestSecret::new(SERVICE_TOKEN),
        store: Reads::of(world),
        cache: Cache::new(cache_secs),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        seller: Seller::new(nowhere(), world.queue.clone(), StripeMode::Test),
    }
}

/// A Stripe that cannot be reached, for an API that sells nothing.
fn nowhere() -> Stripe<FixedKey> {
    Stripe::new(StripeClient::new(Some("http://127.0.0.1:1"), FixedKey(SecretKey::new("sk_test_none").unwrap())).unwrap())
}

/// What came back: status, content type, body.
pub(crate) type Answer = (u16, String, Value);

/// A sample's request by another query, and with the token that is configured here.
pub(crate) fn get(sample: &str, query: &str) -> Request {
    let mut event = parsed(sample);
    event["rawQueryString"] = query.into();
    event["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
    request::from_str(&event.to_string()).unwrap()
}

/// Percent-encodes a query's value as an HTTP client does.
pub(crate) fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut query, byte| {
        if byte.is_ascii_alphanumeric() {
            query.push(char::from(byte))
        } else {
            write!(query, "%{byte:02X}").unwrap()
        }
        query
    })
}

impl Bench {
    pub(crate) async fn ask(&self, request: Request) -> Answer {
        let response = self.api.handle(request).await;
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let Body::Text(body) = response.body() else { panic!("{:?}", response.body()) };
        assert!(!body.contains(SERVICE_TOKEN));
        (response.status().as_u16(), content_type, serde_json::from_str(body).unwrap())
    }

    async fn access(&self, user_id: &str) -> Value {
        let (status, content_type, body) = self.ask(get(ACCESS, &format!("user_id={}", encoded(user_id)))).await;
        assert_eq!((status, content_type.as_str()), (200, "application/json"), "{body}");
        body
    }

    async fn check(&self, user_id: &str, expected: Expect) {
        expected.assert_eq(&format!("{:#}", self.access(user_id).await));
    }

    pub(crate) async fn usage(&self, query: &str) -> Value {
        let (status, content_type, body) = self.ask(get(USAGE_QUERY, query)).await;
        assert_eq!((status, content_type.as_str()), (200, "application/json"), "{body}");
        body
    }

    pub(crate) async fn problem(&self, request: Request) -> (u16, String) {
        let (status, content_type, body) = self.ask(request).await;
        assert_eq!((content_type.as_str(), &body["status"]), ("application/problem+json", &json!(status)), "{body}");
        (status, body["detail"].as_str().unwrap().to_owned())
    }
}

#[tokio::test]
async fn a_user_nobody_knows_is_on_the_free_tier() {
    bench()
        .await
        .check(
            "ada",
            expect![[r#"
        {
          "access_until": null,
          "allowed": true,
          "plan": "free",
          "quotas": {
            "requests": {
              "limit": 100,
              "remaining": 100,
              "resets_at": "2026-12-01T00:00:00Z",
              "used": 0
            }
          },
          "rate_limit": {
            "requests_per_minute": 60
          },
          "reason": null,
          "state": "free",
          "user_id": "ada"
        }"#]],
        )
        .await;
}

#[tokio::test]
async fn the_free_tier_ends_at_its_quota_and_begins_again_with_the_month() {
    let bench = bench().await;
    let calls: Vec<Value> = (0..100).map(|n| call("ada", &format!("req_{n}"))).collect();
    count(&bench.world, "most", &calls[..99]).await;
    let quota = async || bench.access("ada").await["quotas"]["requests"].clone();
    assert_eq!(quota().await, json!({"limit": 100, "used": 99, "remaining": 1, "resets_at": "2026-12-01T00:00:00Z"}));
    count(&bench.world, "all", &calls[99..]).await;
    bench
        .check(
            "ada",
            expect![[r#"
        {
          "access_until": null,
          "allowed": false,
          "plan": "free",
          "quotas": {
            "requests": {
              "limit": 100,
              "remaining": 0,
              "resets_at": "2026-12-01T00:00:00Z",
              "used": 100
            }
          },
          "rate_limit": {
            "requests_per_minute": 60
          },
          "reason": "quota_exceeded",
          "state": "free",
          "user_id": "ada"
        }"#]],
        )
        .await;
    bench.world.clock.set("2026-12-01T00:00:00Z");
    assert_eq!((bench.access("ada").await["allowed"].clone(), quota().await["used"].clone()), (json!(true), json!(0)));
}

#[tokio::test]
async fn the_sample_shows_a_subscriber() {
    let bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    bench.api.tokens.rotate("token_sample");
    let (status, _, body) = bench.ask(request::from_str(ACCESS).unwrap()).await;
    assert_eq!(status, 200);
    expect![[r#"
        {
          "access_until": null,
          "allowed": true,
          "plan": "pro",
          "quotas": {},
          "rate_limit": {
            "requests_per_minute": 600
          },
          "reason": null,
          "state": "active",
          "user_id": "ada"
        }"#]]
    .assert_eq(&format!("{body:#}"));
}

#[tokio::test]
async fn a_subscription_that_is_going_to_end_says_until_when_and_then_falls_to_the_free_tier() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    facts.subscriptions[0].cancel_at = Some(at("2026-12-10T00:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.access("ada").await["access_until"], "2026-12-10T00:00:00Z");
    bench.world.clock.set("2026-12-10T00:00:00Z");
    assert_eq!(bench.access("ada").await["state"], "free");
}

#[tokio::test]
async fn access_lasts_through_the_grace_period_to_the_second_and_comes_back_when_it_is_paid() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    commit(&bench.world, "ada", &overdue(facts.clone(), "in_1", "2026-11-22T11:00:00Z")).await;
    bench.world.clock.set("2026-11-29T11:59:59Z");
    bench
        .check(
            "ada",
            expect![[r#"
        {
          "access_until": "2026-11-29T12:00:00Z",
          "allowed": true,
          "plan": "pro",
          "quotas": {},
          "rate_limit": {
            "requests_per_minute": 600
          },
          "reason": null,
          "state": "grace",
          "user_id": "ada"
        }"#]],
        )
        .await;
    bench.world.clock.set("2026-11-29T12:00:00Z");
    bench
        .check(
            "ada",
            expect![[r#"
        {
          "access_until": null,
          "allowed": false,
          "plan": "pro",
          "quotas": {},
          "rate_limit": {
            "requests_per_minute": 600
          },
          "reason": "payment_overdue",
          "state": "ended",
          "user_id": "ada"
        }"#]],
        )
        .await;
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.access("ada").await["state"], "active");
}

#[tokio::test]
async fn the_states_of_a_subscription_that_has_ended_or_is_paused() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    let state = async || {
        let body = bench.access("ada").await;
        format!("{} {} {}", body["state"], body["reason"], body["allowed"])
    };
    let mut paused = facts.clone();
    paused.subscriptions[0].status = Status::Paused;
    commit(&bench.world, "ada", &paused).await;
    assert_eq!(state().await, r#""ended" "paused" false"#);
    commit(&bench.world, "ada", &cancelled(facts, "2026-11-22T11:00:00Z")).await;
    assert_eq!(state().await, r#""free" null true"#);
}

#[tokio::test]
async fn a_test_clocks_user_is_answered_by_that_clock() {
    let bench = bench().await;
    let mut facts = overdue(subscriber("cus_Ada", "ada", "2027-02-10T00:00:00Z"), "in_1", "2027-02-10T00:00:00Z");
    facts.test_clock = Some(at("2027-02-10T01:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.access("ada").await["access_until"], "2027-02-17T01:00:00Z");
    facts.test_clock = Some(at("2027-02-17T01:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    assert_eq!(bench.access("ada").await["reason"], "payment_overdue");
}

#[tokio::test]
async fn only_an_active_service_token_is_answered() {
    let bench = bench().await;
    bench.api.tokens.rotate(" token_old,token_new\n");
    for (header, expected) in [
        (None, 401),
        (Some(""), 401),
        (Some("Bearer"), 401),
        (Some("Bearer "), 401),
        (Some("Bearer token_wrong"), 401),
        (Some("Bearer token_old,token_new"), 401),
        (Some("Bearer token_ol"), 401),
        (Some("Bearer token_old2"), 401),
        (Some("Bearer ,"), 401),
        (Some("Basic token_old"), 401),
        (Some("token_old"), 401),
        (Some("Bearer TOKEN_OLD"), 401),
        (Some("Bearer token_old"), 200),
        (Some("bearer token_new"), 200),
        (Some("Bearer  token_new "), 200),
    ] {
        let mut event = parsed(ACCESS);
        match header {
            Some(header) => event["headers"]["authorization"] = header.into(),
            None => drop(event["headers"].as_object_mut().unwrap().remove("authorization")),
        }
        let response = bench.api.handle(request::from_str(&event.to_string()).unwrap()).await;
        assert_eq!(response.status().as_u16(), expected, "{header:?}");
        assert_eq!(response.headers().contains_key("www-authenticate"), expected == 401);
    }
    assert_eq!(bench.problem(request::from_str(ACCESS).unwrap()).await.0, 401, "the sample's own token is not active here");
    for blank in ["", " ", ",\n"] {
        bench.api.tokens.rotate(blank);
        assert_eq!(bench.problem(get(ACCESS, "user_id=ada")).await.0, 401, "without a token nobody is let in");
    }
}

#[tokio::test]
async fn without_a_token_no_route_tells_whether_it_is_there() {
    let bench = bench().await;
    for path in ["/v1/access", "/v1/nothing", "/"] {
        let mut event = parsed(ACCESS);
        event["rawPath"] = path.into();
        event["requestContext"]["http"]["path"] = path.into();
        assert_eq!(bench.problem(request::from_str(&event.to_string()).unwrap()).await.0, 401, "{path}");
    }
}

#[tokio::test]
async fn a_bad_question_is_answered_400_with_what_to_do() {
    let bench = bench().await;
    let long = format!("user_id={}", "x".repeat(129));
    for (sample, query, expected) in [
        (ACCESS, "", "user_id is missing: add ?user_id=…"),
        (ACCESS, "user=ada", "user_id is missing: add ?user_id=…"),
        (ACCESS, "user_id=", "user_id is empty"),
        (ACCESS, long.as_str(), "user_id is longer than 128 characters"),
        (USAGE_QUERY, "from=2026-11-01T00:00:00Z", "user_id is missing: add ?user_id=…"),
        (USAGE_QUERY, "user_id=ada&by=minute", "by must be day or hour"),
        (USAGE_QUERY, "user_id=ada&from=yesterday", "from must be RFC 3339, as 2026-11-22T12:00:00Z"),
        (USAGE_QUERY, "user_id=ada&to=1795348800", "to must be RFC 3339, as 2026-11-22T12:00:00Z"),
        (USAGE_QUERY, "user_id=ada&from=2026-12-01T00:00:00Z&to=2026-12-01T00:00:00Z", "from must lie before to"),
        (USAGE_QUERY, "user_id=ada&from=2025-01-01T00:00:00Z&to=2026-12-01T00:00:00Z", "a range has at most 400 days"),
    ] {
        assert_eq!(bench.problem(get(sample, query)).await, (400, expected.to_owned()), "{query}");
    }
}

#[tokio::test]
async fn an_unknown_route_or_method_is_answered_404_and_a_large_body_413() {
    let bench = bench().await;
    let request = |method: &str, path: &str, body: &str| {
        let mut event = parsed(ACCESS);
        event["rawPath"] = path.into();
        event["requestContext"]["http"]["path"] = path.into();
        event["requestContext"]["http"]["method"] = method.into();
        event["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
        event["body"] = body.into();
        request::from_str(&event.to_string()).unwrap()
    };
    for (method, path) in
        [("GET", "/v1/nothing"), ("POST", "/v1/access"), ("DELETE", "/v1/usage"), ("GET", "/access"), ("GET", "/")]
    {
        assert_eq!(bench.problem(request(method, path, "")).await.0, 404, "{method} {path}");
    }
    assert_eq!(bench.problem(request("GET", "/v1/access", &"x".repeat(64 * 1024 + 1))).await.0, 413);
    let (status, ..) = bench.ask(request("GET", "/v1/access/", "")).await;
    assert_eq!(status, 200, "a slash at the end does no harm");
}

#[tokio::test]
async fn users_of_any_name_are_answered_and_counted_each_on_their_own() {
    let bench = bench().await;
    let wide = "ü💶".repeat(64);
    let users = [
        "a",
        "a/b",
        "a#b",
        "a?b",
        "a%2Fb",
        "a&b=c",
        "a+b",
        "a b",
        "a,b",
        "a:1/1:b",
        "1:a/1:b",
        "Ünïcode 💶",
        "\u{0}\n",
        wide.as_str(),
    ];
    for (n, user_id) in users.iter().enumerate() {
        let calls: Vec<Value> = (0..=n).map(|m| call(user_id, &format!("req_{m}"))).collect();
        count(&bench.world, &format!("inv_{n}"), &calls).await;
    }
    for (n, user_id) in users.iter().enumerate() {
        let body = bench.access(user_id).await;
        assert_eq!((&body["user_id"], &body["quotas"]["requests"]["used"]), (&json!(user_id), &json!(n + 1)), "{user_id:?}");
        let usage = bench.usage(&format!("user_id={}", encoded(user_id))).await;
        assert_eq!(usage["totals"]["requests"]["counted"], json!(n + 1), "{user_id:?}");
    }
}

#[tokio::test]
async fn usage_by_day_shows_what_was_counted_reported_and_quarantined() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    let dated = |request_id: &str, timestamp: &str| with(call("ada", request_id), "timestamp", timestamp);
    let first =
        [dated("req_1", "2026-11-20T23:59:59Z"), dated("req_2", "2026-11-21T00:00:00Z"), dated("req_3", "2026-11-21T12:00:00Z")];
    count(&bench.world, "inv_1", &first).await;
    bench.world.meters.refuse_next(tokentill::ports::StripeError::Refused {
        status: 400,
        code: "invalid_value".to_owned(),
        message: String::new(),
        request_id: "req_1".to_owned(),
    });
    let reporter = crate::reporter::function(&bench.world, "id");
    reporter.run(bench.world.clock.now(), None, &crate::reporter::invocation(&bench.world, "inv")).await.unwrap();
    count(&bench.world, "inv_2", &[call("ada", "req_4")]).await;
    bench.api.tokens.rotate("token_sample");
    let (status, _, body) = bench.ask(request::from_str(USAGE_QUERY).unwrap()).await;
    assert_eq!(status, 200);
    expect![[r#"
        {
          "by": "day",
          "series": [
            {
              "counted": {
                "requests": 1,
                "tokens_in": 812,
                "tokens_out": 240
              },
              "start": "2026-11-20T00:00:00Z"
            },
            {
              "counted": {
                "requests": 2,
                "tokens_in": 1624,
                "tokens_out": 480
              },
              "start": "2026-11-21T00:00:00Z"
            },
            {
              "counted": {
                "requests": 1,
                "tokens_in": 812,
                "tokens_out": 240
              },
              "start": "2026-11-22T00:00:00Z"
            }
          ],
          "totals": {
            "requests": {
              "carried": 0,
              "counted": 4,
              "quarantined": 1,
              "rejected": 0,
              "reported": 2
            },
            "tokens_in": {
              "carried": 0,
              "counted": 3248,
              "quarantined": 0,
              "rejected": 0,
              "reported": 2436
            },
            "tokens_out": {
              "carried": 0,
              "counted": 960,
              "quarantined": 0,
              "rejected": 0,
              "reported": 720
            }
          },
          "user_id": "ada"
        }"#]]
    .assert_eq(&format!("{body:#}"));
}

#[tokio::test]
async fn totals_tell_what_was_carried_rejected_and_read_back() {
    let bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    let dated = |request_id: &str, timestamp: &str| with(call("ada", request_id), "timestamp", timestamp);
    count(&bench.world, "inv", &[dated("req_1", "2026-11-20T12:00:00Z"), dated("req_2", "2026-11-21T12:00:00Z")]).await;
    let tally_keys: Vec<String> = bench.world.items("tallies").await.iter().map(|tally| tally["tally_key"].to_string()).collect();
    let segment = tally_keys[0].trim_matches('"')[10..].rsplit_once('/').unwrap().0.to_owned();
    let check = |at: &str, reported: u64, stripe: u64| json!({"requests": {"at": self::at(at).as_secs(), "counted": reported, "reported": reported, "stripe": stripe}});
    let book = |key: &str, attributes: Value| {
        let mut item = json!({"user_id": "ada", "book_key": key, "version": 1, "meters": {}});
        item.as_object_mut().unwrap().extend(attributes.as_object().unwrap().clone());
        item
    };
    let books = [
        book(
            &format!("2026-11-20{segment}"),
            json!({"meters": {"requests": {"reported": 5, "quarantined": 2}}, "carried_out": {"requests": 3}, "rejected": {"requests": 4},
                   "replayed": {"requests": 1}, "checked": check("2026-11-21T02:00:00Z", 1, 1)}),
        ),
        // Another segment of the same day and customer: checked together, and later.
        book(
            "2026-11-20/6:billed/7:sub_Ada/10:1795000000/1:x",
            json!({"checked": check("2026-11-21T03:00:00Z", 6, 5), "billing": bench.world.items("tallies").await[0]["billing"]}),
        ),
        // Another customer on the same day, whose book has no tally.
        book("2026-11-20/6:billed/7:sub_Old/10:1794000000/1:x", json!({"checked": check("2026-11-21T01:00:00Z", 100, 100)})),
        // What was carried in has no tally either, and one of its meters is counted nowhere.
        book(
            "2026-11-21/6:billed/7:sub_Ada/10:1795000000/1:x",
            json!({"carried_in": {"requests": {"a": 2, "b": 1}, "images": {"a": 7}}}),
        ),
        book(&format!("2026-11-21{segment}"), json!({"checked": check("2026-11-22T02:00:00Z", 10, 12)})),
        // Beyond the range.
        book(&format!("2026-11-22{segment}"), json!({"checked": check("2026-11-22T11:00:00Z", 50, 0)})),
    ];
    for item in books {
        let put = bench.world.client.put_item().table_name("tokentill-books");
        put.set_item(Some(serde_dynamo::to_item(item).unwrap())).send().await.unwrap();
    }
    let usage = bench.usage("user_id=ada&from=2026-11-20T00:00:00Z&to=2026-11-22T00:00:00Z").await;
    let nothing = json!({"counted": 0, "reported": 0, "carried": 0, "quarantined": 0, "rejected": 0, "carried_in": 7});
    let checked = json!({"at": "2026-11-22T02:00:00Z", "stripe": 117, "reported": 116, "difference": 1});
    let requests =
        json!({"counted": 2, "reported": 1, "carried": 3, "quarantined": 2, "rejected": 3, "carried_in": 3, "checked": checked});
    let counted = |n: u64| json!({"counted": n, "reported": 0, "carried": 0, "quarantined": 0, "rejected": 0});
    let expected = json!({"requests": requests, "images": nothing, "tokens_in": counted(1_624), "tokens_out": counted(480)});
    assert_eq!(usage["totals"], expected);
}

#[tokio::test]
async fn usage_of_a_range_shows_the_days_it_touches_and_no_others() {
    let bench = bench().await;
    let events: Vec<Value> =
        (19..=22).map(|day| with(call("ada", &format!("req_{day}")), "timestamp", format!("2026-11-{day}T11:00:00Z"))).collect();
    count(&bench.world, "inv", &events).await;
    let days = async |query: &str| {
        let body = bench.usage(&format!("user_id=ada&{query}")).await;
        let days = body["series"].as_array().unwrap().iter().map(|day| day["start"].as_str().unwrap()[8..10].to_owned());
        (days.collect::<Vec<_>>().join(" "), body["totals"]["requests"]["counted"].as_u64())
    };
    for (query, expected) in [
        ("", ("19 20 21 22", Some(4))),
        ("from=2026-11-20T00:00:00Z&to=2026-11-22T00:00:00Z", ("20 21", Some(2))),
        ("from=2026-11-20T23:59:59Z&to=2026-11-21T00:00:00Z", ("20", Some(1))),
        ("from=2026-11-20T00:00:00%2B02:00&to=2026-11-21T00:00:00%2B02:00", ("19 20", Some(2))),
        ("from=2026-10-01T00:00:00Z&to=2026-11-01T00:00:00Z", ("", None)),
        ("by=day&from=2026-11-22T00:00:00Z", ("22", Some(1))),
    ] {
        let (days, counted) = days(query).await;
        assert_eq!((days.as_str(), counted), expected, "{query}");
    }
}

#[tokio::test]
async fn what_is_not_available_is_answered_503_and_works_again_afterwards() {
    let bench = bench().await;
    bench.api.tokens.faults.at("secret", 1, Fault::LoseRequest);
    assert_eq!(bench.problem(get(ACCESS, "user_id=ada")).await.0, 503);
    let store = bench.api.store.faults();
    store.at("account", 1, Fault::LoseRequest);
    assert_eq!(bench.problem(get(ACCESS, "user_id=ada")).await.0, 503);
    store.at("tallies", 1, Fault::LoseReply);
    assert_eq!(bench.problem(get(ACCESS, "user_id=ada")).await.0, 503);
    for call in ["tallies", "books"] {
        store.at(call, 1, Fault::LoseRequest);
        let (status, detail) = bench.problem(get(USAGE_QUERY, "user_id=ada")).await;
        assert_eq!(status, 503);
        assert!(!detail.contains("lost"), "what is wrong inside is told to the log, not to the caller: {detail}");
    }
    assert_eq!(bench.access("ada").await["state"], "free");
}
