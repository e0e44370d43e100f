//! `POST /v1/check`: requests are granted exactly up to the limits (the contract, 3.3; G9).

use std::collections::BTreeMap;

use expect_test::expect;
use futures_util::future::join_all;
use handlers::{Fault, WireFault, refused};
use lambda_http::{Body, Request, http, request};
use serde_json::{Value, json};
use tokentill::{
    domain::{
        facts::Status,
        gate::{Granted, SegmentTake, Take, Taken},
        id::{MeterId, PlanId},
        price_list::{GraceAccess, ReducedLimits},
        usage::MAX_QUANTITY,
    },
    ports::{Clock, Gates},
};

use crate::{
    access::{Bench, api, bench, encoded, get, warm_bench},
    samples::{ACCESS, CHECK, SERVICE_TOKEN, at, cancelled, commit, overdue, parsed, subscriber, user},
    usage::{call, count, with},
};

/// What a check was answered: status, the headers that speak of limits, body.
#[derive(Debug)]
struct Checked {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Value,
}

impl Checked {
    fn reason(&self) -> &str {
        self.body["reason"].as_str().unwrap_or("-")
    }

    fn remaining(&self) -> u64 {
        self.body["rate_limit"]["remaining"].as_u64().unwrap()
    }

    fn used(&self) -> u64 {
        self.body["quotas"]["requests"]["used"].as_u64().unwrap()
    }
}

/// The sample's request with another body, and with the token that is configured here.
pub(crate) fn check_request(body: &str) -> Request {
    let mut event = parsed(CHECK);
    event["body"] = body.into();
    event["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
    request::from_str(&event.to_string()).unwrap()
}

impl Bench {
    async fn check_body(&self, body: &str) -> Checked {
        let response = self.api.handle(check_request(body)).await;
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
        };
        let mut headers: BTreeMap<String, String> = response.headers().iter().map(header).collect();
        assert_eq!(headers.remove("content-type").as_deref(), Some("application/json"));
        let Body::Text(body) = response.body() else { panic!("{:?}", response.body()) };
        Checked { status: response.status().as_u16(), headers, body: serde_json::from_str(body).unwrap() }
    }

    async fn check_units(&self, user_id: &str, units: Value) -> Checked {
        self.check_body(&json!({"user_id": user_id, "units": units}).to_string()).await
    }

    async fn check_one(&self, user_id: &str) -> Checked {
        self.check_body(&json!({"user_id": user_id}).to_string()).await
    }

    /// Takes so many one after the other; all are granted.
    async fn take(&self, user_id: &str, times: usize) {
        for n in 0..times {
            let checked = self.check_one(user_id).await;
            assert_eq!(checked.status, 200, "{n}: {checked:?}");
        }
    }

    async fn quota(&self, user_id: &str) -> Value {
        let (status, _, body) = self.ask(get(ACCESS, &format!("user_id={}", encoded(user_id)))).await;
        assert_eq!(status, 200, "{body}");
        body["quotas"]["requests"].clone()
    }

    /// The calls to DynamoDB of this work, by operation.
    async fn calls<T>(&self, work: impl Future<Output = T>) -> (BTreeMap<&'static str, usize>, T) {
        let operations = ["GetItem", "Query", "UpdateItem"];
        let before = operations.map(|operation| self.world.wire.calls(operation));
        let done = work.await;
        let calls =
            operations.into_iter().zip(before).map(|(operation, before)| (operation, self.world.wire.calls(operation) - before));
        (calls.filter(|(_, calls)| *calls > 0).collect(), done)
    }

    /// Sells the plan `pro` with a quota.
    fn with_quota(mut self, meter: &str, limit: u64) -> Self {
        let pro = PlanId::new("pro").unwrap();
        let plan = self.api.prices.plans.iter_mut().find(|plan| plan.id == pro).unwrap();
        plan.quotas.insert(MeterId::new(meter).unwrap(), limit);
        self
    }
}

#[tokio::test]
async fn the_sample_is_granted_and_told_what_is_left() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-22T12:00:29Z");
    let checked = bench.check_units("ada", json!({"requests": 1, "tokens_in": 812})).await;
    expect![[r#"
        200 {"ratelimit": "\"minute\";r=59;t=31", "ratelimit-policy": "\"minute\";q=60;w=60"}
        {
          "access_until": null,
          "allowed": true,
          "plan": "free",
          "quotas": {
            "requests": {
              "limit": 100,
              "remaining": 99,
              "resets_at": "2026-12-01T00:00:00Z",
              "used": 1
            }
          },
          "rate_limit": {
            "remaining": 59,
            "requests_per_minute": 60
          },
          "reason": null,
          "state": "free",
          "user_id": "ada"
        }"#]]
    .assert_eq(&format!("{} {:?}\n{:#}", checked.status, checked.headers, checked.body));
    bench.api.tokens.rotate("token_sample");
    assert_eq!(bench.api.handle(request::from_str(CHECK).unwrap()).await.status(), 200, "the sample itself");
}

#[tokio::test]
async fn the_gateway_may_encode_the_body() {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let bench = bench().await;
    let mut event = parsed(CHECK);
    event["body"] = STANDARD.encode(r#"{"user_id":"Ünïcode 💶","units":{"requests":2}}"#).into();
    event["isBase64Encoded"] = true.into();
    event["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
    let response = bench.api.handle(request::from_str(&event.to_string()).unwrap()).await;
    assert_eq!(response.status(), 200);
    assert_eq!(bench.quota("Ünïcode 💶").await["used"], 2);
}

#[tokio::test]
async fn a_check_that_is_none_is_answered_400_with_what_to_do_and_takes_nothing() {
    let bench = bench().await;
    let whole = |name: &str, most: u64| format!("units.{name} must be a whole number from 1 to {most}");
    let object = r#"the body must be a JSON object, as {"user_id":"ada","units":{"requests":1}}"#.to_owned();
    let mut cases = vec![
        (String::new(), object.clone()),
        ("not json".to_owned(), object.clone()),
        ("[]".to_owned(), object.clone()),
        ("\"ada\"".to_owned(), object.clone()),
        (r#"{"user_id":"\ud800"}"#.to_owned(), object.clone()),
        (r#"{"user_id":"ada","units":{"requests":1e400}}"#.to_owned(), object),
        ("{}".to_owned(), r#"user_id is missing: send {"user_id":"ada","units":{"requests":1}}"#.to_owned()),
        (r#"{"user_id":""}"#.to_owned(), "user_id is empty".to_owned()),
        (r#"{"user_id":7}"#.to_owned(), "user_id must be a string".to_owned()),
        (r#"{"user_id":null}"#.to_owned(), "user_id must be a string".to_owned()),
        (json!({"user_id": "ü".repeat(129)}).to_string(), "user_id is longer than 128 characters".to_owned()),
        (
            r#"{"user_id":"ada","unit":{"requests":5}}"#.to_owned(),
            "there is no field unit: a check has user_id and units".to_owned(),
        ),
        (
            r#"{"user_id":"ada","units":{"images":1}}"#.to_owned(),
            "there is no unit images: the price list has requests, tokens_in, tokens_out".to_owned(),
        ),
        (
            r#"{"user_id":"ada","units":{"":1}}"#.to_owned(),
            "there is no unit : the price list has requests, tokens_in, tokens_out".to_owned(),
        ),
    ];
    for units in ["[]", "1", "\"requests\"", "true"] {
        let expected = r#"units must be an object, as in {"user_id":"ada","units":{"requests":1}}"#;
        cases.push((format!(r#"{{"user_id":"ada","units":{units}}}"#), expected.to_owned()));
    }
    for quantity in ["0", "-1", "1.5", "1.0", "1e2", "30001", "18446744073709551616", "\"1\"", "null", "true", "[1]", "{}"] {
        cases.push((format!(r#"{{"user_id":"ada","units":{{"requests":{quantity}}}}}"#), whole("requests", 30_000)));
    }
    for quantity in ["0", "-1", "0.5", "1000000000000000"] {
        cases.push((format!(r#"{{"user_id":"ada","units":{{"tokens_in":{quantity}}}}}"#), whole("tokens_in", MAX_QUANTITY)));
    }
    for (body, expected) in cases {
        assert_eq!(bench.problem(check_request(&body)).await, (400, expected), "{body}");
    }
    let long = json!({"user_id": "ada", "x".repeat(1_000): 1}).to_string();
    assert!(bench.problem(check_request(&long)).await.1.len() < 200, "what is wrong is not repeated at length");
    assert_eq!(bench.problem(check_request(&" ".repeat(64 * 1024 + 1))).await.0, 413);
    assert_eq!(bench.world.items("gates").await, Vec::<Value>::new());
    for good in [
        r#"{"user_id":"ada"}"#,
        r#"{"user_id":"ada","units":null}"#,
        r#"{"user_id":"ada","units":{}}"#,
        r#"{"user_id":"ada","units":{"tokens_in":7}}"#,
    ] {
        assert_eq!(bench.check_body(good).await.status, 200, "{good} asks for one request");
    }
    assert_eq!(bench.quota("ada").await["used"], 4);
}

#[tokio::test]
async fn the_minutes_limit_is_granted_exactly_and_then_429_says_when_to_come_again() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-22T12:00:29Z");
    bench.take("ada", 60).await;
    let refused = bench.check_one("ada").await;
    assert_eq!((refused.status, refused.reason(), refused.remaining(), refused.used()), (429, "rate_limited", 0, 60));
    assert_eq!(refused.body["allowed"], false);
    let headers = [("ratelimit", "\"minute\";r=0;t=31"), ("ratelimit-policy", "\"minute\";q=60;w=60"), ("retry-after", "31")];
    assert_eq!(refused.headers, headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    bench.world.clock.set("2026-11-22T12:00:59.999Z");
    bench.world.clock.advance_ms(999);
    assert_eq!(bench.check_one("ada").await.headers["retry-after"], "1");
    bench.world.clock.set("2026-11-22T12:01:00Z");
    let granted = bench.check_one("ada").await;
    assert_eq!((granted.status, granted.remaining(), granted.headers["ratelimit"].as_str()), (200, 59, "\"minute\";r=59;t=60"));
}

#[tokio::test]
async fn call_101_of_the_month_is_refused_with_the_moment_at_which_the_quota_begins_again() {
    for bench in [bench().await, warm_bench(60).await] {
        bench.take("ada", 60).await;
        bench.world.clock.set("2026-11-22T12:01:00Z");
        bench.take("ada", 40).await;
        let refused = bench.check_one("ada").await;
        assert_eq!((refused.status, refused.reason(), refused.used(), refused.remaining()), (402, "quota_exceeded", 100, 20));
        assert_eq!(refused.body["quotas"]["requests"]["resets_at"], "2026-12-01T00:00:00Z");
        assert_eq!(refused.headers, BTreeMap::new(), "no minute ends this");
        let denied = bench.ask(get(ACCESS, "user_id=ada")).await.2;
        assert_eq!((&denied["allowed"], &denied["reason"]), (&json!(false), &json!("quota_exceeded")));
        bench.world.clock.set("2026-12-01T00:00:00Z");
        let granted = bench.check_one("ada").await;
        assert_eq!((granted.status, granted.used()), (200, 1));
    }
}

#[tokio::test]
async fn several_at_once_are_granted_whole_or_not_at_all_and_a_denial_takes_nothing() {
    let bench = bench().await;
    let granted = bench.check_units("ada", json!({"requests": 59})).await;
    assert_eq!((granted.status, granted.remaining()), (200, 1));
    let before = bench.world.item("gates").await;
    for (units, expected) in [(json!({"requests": 2}), 429), (json!({"requests": 42}), 402), (json!({"requests": 30_000}), 402)] {
        assert_eq!(bench.check_units("ada", units.clone()).await.status, expected, "{units}");
    }
    assert_eq!(bench.world.item("gates").await, before);
    assert_eq!(bench.check_one("ada").await.remaining(), 0);
    // More than the plan's minute never fits, also of a user who has taken nothing.
    commit(&bench.world, "bob", &subscriber("cus_Bob", "bob", "2026-11-10T00:00:00Z")).await;
    assert_eq!(bench.check_units("bob", json!({"requests": 601})).await.status, 429);
    assert_eq!(bench.check_units("bob", json!({"requests": 600})).await.remaining(), 0);
}

#[tokio::test]
async fn what_the_state_denies_is_402_with_the_whole_body() {
    let bench = bench().await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    bench.take("ada", 3).await;
    let mut paused = facts.clone();
    paused.subscriptions[0].status = Status::Paused;
    commit(&bench.world, "ada", &paused).await;
    let before = bench.world.item("gates").await;
    let denied = bench.check_one("ada").await;
    expect![[r#"
        402 {}
        {
          "access_until": null,
          "allowed": false,
          "plan": "pro",
          "quotas": {},
          "rate_limit": {
            "remaining": 597,
            "requests_per_minute": 600
          },
          "reason": "paused",
          "state": "ended",
          "user_id": "ada"
        }"#]]
    .assert_eq(&format!("{} {:?}\n{:#}", denied.status, denied.headers, denied.body));
    assert_eq!(bench.world.item("gates").await, before);
}

/// What access is worth in grace is the plan's to say, at the check and in the answer alike, and it ends with the payment.
#[tokio::test]
async fn in_a_grace_period_the_plans_own_word_on_it_holds_at_the_check_and_in_the_answer() {
    let paid = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    let unpaid = overdue(paid.clone(), "in_1", "2026-11-21T00:00:00Z");
    let selling = async |grace: GraceAccess| {
        let mut bench = bench().await;
        bench.api.prices.plans.iter_mut().filter(|plan| !plan.prices.is_empty()).for_each(|plan| plan.grace = grace.clone());
        commit(&bench.world, "ada", &unpaid).await;
        bench
    };
    let shown = async |bench: &Bench| {
        let (checked, (_, _, asked)) = (bench.check_one("ada").await, bench.ask(get(ACCESS, "user_id=ada")).await);
        let limit = |body: &Value| format!("{} {} {}", body["state"], body["allowed"], body["rate_limit"]["requests_per_minute"]);
        assert_eq!(limit(&checked.body), limit(&asked));
        format!("{} {} {}", checked.status, limit(&asked), asked["reason"])
    };
    let reduced = ReducedLimits { requests_per_minute: Some(2), quotas: BTreeMap::new() };
    assert_eq!(shown(&selling(GraceAccess::Full).await).await, r#"200 "grace" true 600 null"#);
    assert_eq!(shown(&selling(GraceAccess::None).await).await, r#"402 "grace" false 600 "payment_overdue""#);
    let bench = selling(GraceAccess::Reduced(reduced)).await;
    assert_eq!(shown(&bench).await, r#"200 "grace" true 2 null"#);
    assert_eq!((bench.check_one("ada").await.status, bench.check_one("ada").await.status), (200, 429));
    commit(&bench.world, "ada", &paid).await;
    bench.world.clock.advance_ms(60_000);
    assert_eq!(shown(&bench).await, r#"200 "active" true 600 null"#);
}

#[tokio::test]
async fn without_a_free_tier_a_stranger_is_denied_and_nothing_is_written() {
    let mut bench = bench().await;
    bench.api.prices.plans.retain(|plan| !plan.prices.is_empty());
    let denied = bench.check_one("ada").await;
    assert_eq!((denied.status, denied.reason(), &denied.body["rate_limit"]), (402, "unknown_user", &json!(null)));
    assert_eq!(bench.world.items("gates").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_plan_that_is_not_in_the_price_list_any_more_limits_nothing() {
    let mut bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    bench.api.prices.plans.retain(|plan| plan.id.as_str() != "pro");
    let granted = bench.check_one("ada").await;
    assert_eq!((granted.status, &granted.body["rate_limit"], granted.headers.len()), (200, &json!(null), 0));
}

/// How many of so many concurrent checks were granted; every other one was refused for this reason.
async fn granted_of(bench: &Bench, checks: usize, user_id: &str, requests: u32, refusal: (u16, &str)) -> usize {
    let answers = join_all((0..checks).map(|_| bench.check_units(user_id, json!({"requests": requests})))).await;
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!((refused.status, refused.reason()), refusal);
    }
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test]
async fn five_hundred_concurrent_checks_are_granted_exactly_the_minutes_limit_and_exactly_the_quota() {
    for bench in [bench().await, warm_bench(5).await] {
        assert_eq!(granted_of(&bench, 500, "ada", 1, (429, "rate_limited")).await, 60);
        bench.world.clock.set("2026-11-22T12:01:00Z");
        assert_eq!(granted_of(&bench, 500, "ada", 1, (402, "quota_exceeded")).await, 40);
        let quota = json!({"limit": 100, "used": 100, "remaining": 0, "resets_at": "2026-12-01T00:00:00Z"});
        assert_eq!(bench.quota("ada").await, quota);
    }
}

#[tokio::test]
async fn concurrent_checks_for_several_requests_are_granted_as_many_as_fit() {
    let bench = warm_bench(5).await.with_quota("requests", 1_000);
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    assert_eq!(granted_of(&bench, 100, "ada", 7, (429, "rate_limited")).await, 85, "7 times 85 is 595");
    bench.world.clock.set("2026-11-22T12:01:00Z");
    assert_eq!(granted_of(&bench, 100, "ada", 7, (402, "quota_exceeded")).await, 57, "7 times 57 is 399, of 405");
    assert_eq!(bench.quota("ada").await["used"], 994);
}

#[tokio::test]
async fn instances_side_by_side_grant_no_more_than_one_would() {
    let bench = bench().await;
    let instances: Vec<_> = (0..4).map(|_| api(&bench.world, 60)).collect();
    let checks = (0..100).flat_map(|_| instances.iter().map(|api| api.handle(check_request(r#"{"user_id":"ada"}"#))));
    let granted = join_all(checks).await.iter().filter(|response| response.status() == 200).count();
    assert_eq!(granted, 60);
    assert_eq!(bench.quota("ada").await["used"], 60);
}

#[tokio::test]
async fn lost_requests_and_replies_never_grant_more_than_the_limit() {
    for cache_secs in [0, 60] {
        let bench = warm_bench(cache_secs).await;
        // Of each 20 tries one reply is lost, and of others the request: the SDK sends them again.
        for nth in (3..200).step_by(20) {
            bench.world.wire.at("UpdateItem", nth, WireFault::LoseReply);
            bench.world.wire.at("UpdateItem", nth + 7, WireFault::LoseRequest);
        }
        let mut granted = 0;
        for _ in 0..80 {
            granted += usize::from(bench.check_one("ada").await.status == 200);
        }
        let taken = bench.world.item("gates").await["m:1795348800"].as_u64().unwrap();
        assert_eq!(taken, 60, "the store grants the limit");
        assert!((56..60).contains(&granted), "a lost reply's grant is taken twice and given once: {granted}");
    }
}

/// The update itself holds every limit, also where nobody looked before.
#[tokio::test]
async fn the_store_alone_grants_nothing_beyond_a_limit_and_tells_what_was_granted() {
    let bench = bench().await;
    let (store, ada) = (bench.world.store(), user("ada"));
    let take = |requests: u32, per_minute: u32, limit: u64| Take {
        user_id: &ada,
        requests,
        minute: 60,
        per_minute,
        segment: Some(SegmentTake { key: "segment", limit, counted: None }),
        stale_minutes: Vec::new(),
        stale_segments: Vec::new(),
        expires_at: at("2027-01-01T00:00:00Z"),
    };
    let granted = |n: u64| Granted { minutes: [(60, n)].into(), segments: [("segment".to_owned(), n)].into() };
    for (take, expected) in [
        (take(6, 5, 9), Taken::Refused(Granted::default())),
        (take(6, 9, 5), Taken::Refused(Granted::default())),
        (take(3, 5, 9), Taken::Granted(granted(3))),
        (take(3, 5, 9), Taken::Refused(granted(3))),
        (take(2, 9, 4), Taken::Refused(granted(3))),
        (take(2, 5, 5), Taken::Granted(granted(5))),
    ] {
        assert_eq!(store.take(&take).await.unwrap(), expected, "{take:?}");
    }
    // An answer that does not hold the item.
    bench.world.wire.at("UpdateItem", 1, refused("ConditionalCheckFailedException", "injected"));
    assert_eq!(store.take(&take(1, 5, 5)).await.unwrap(), Taken::Refused(granted(5)));
    // Calls that never asked are made up for once, and only where they fit.
    let made_up = Granted { minutes: [(60, 6)].into(), segments: [("segment".to_owned(), 8)].into() };
    for (take, expected) in [
        (with_counted(take(1, 9, 7), 7), Taken::Refused(granted(5))),
        (with_counted(take(1, 9, 9), 5), Taken::Refused(granted(5))),
        (with_counted(take(1, 9, 9), 7), Taken::Granted(made_up.clone())),
        (with_counted(take(1, 9, 9), 7), Taken::Refused(made_up)),
    ] {
        assert_eq!(store.take(&take).await.unwrap(), expected, "{take:?}");
    }
}

/// The same, where more was counted than is known to be granted.
fn with_counted(take: Take<'_>, counted: u64) -> Take<'_> {
    Take { segment: take.segment.map(|segment| SegmentTake { counted: Some(counted), ..segment }), ..take }
}

#[tokio::test]
async fn a_grant_of_unknown_fate_is_answered_503_and_never_granted_again() {
    let bench = bench().await;
    let faults = bench.api.store.faults();
    for (call, fault) in [
        ("take", Fault::LoseReply),
        ("take", Fault::LoseRequest),
        ("granted", Fault::LoseRequest),
        ("account", Fault::LoseRequest),
        ("tallies", Fault::LoseReply),
    ] {
        faults.at(call, 1, fault);
        assert_eq!(bench.problem(check_request(r#"{"user_id":"ada"}"#)).await.0, 503, "{call}");
    }
    assert_eq!(bench.check_one("ada").await.remaining(), 58, "the one whose reply was lost is taken");
}

#[tokio::test]
async fn usage_that_was_counted_and_never_asked_uses_the_quota_up() {
    let bench = bench().await;
    let calls: Vec<Value> = (0..100).map(|n| call("ada", &format!("req_{n}"))).collect();
    count(&bench.world, "most", &calls[..99]).await;
    let last = bench.check_one("ada").await;
    assert_eq!(
        (last.status, last.used(), bench.quota("ada").await["remaining"].clone()),
        (200, 100, json!(0)),
        "99 counted that never asked, and this one"
    );
    count(&bench.world, "all", &calls[99..]).await;
    let before = bench.world.item("gates").await;
    let refused = bench.check_one("ada").await;
    assert_eq!((refused.status, refused.reason(), refused.used(), refused.remaining()), (402, "quota_exceeded", 100, 59));
    assert_eq!(bench.world.item("gates").await, before);
}

#[tokio::test]
async fn what_usage_that_never_asked_has_left_is_granted_exactly_however_many_ask_at_once() {
    for bench in [bench().await, warm_bench(5).await] {
        let calls: Vec<Value> = (0..95).map(|n| call("ada", &format!("req_{n}"))).collect();
        bench.take("ada", 2).await;
        count(&bench.world, "inv", &calls).await;
        // What a warm instance knows is older than that.
        bench.world.clock.advance_ms(5_000);
        assert_eq!(granted_of(&bench, 40, "ada", 1, (402, "quota_exceeded")).await, 5);
        assert_eq!(bench.quota("ada").await["used"], 100);
    }
}

#[tokio::test]
async fn a_warm_instance_sees_what_was_counted_since_and_denies_on_the_strict_side() {
    let bench = warm_bench(60).await;
    bench.take("ada", 1).await;
    let calls: Vec<Value> = (0..100).map(|n| call("ada", &format!("req_{n}"))).collect();
    count(&bench.world, "inv", &calls).await;
    let refused = bench.check_one("ada").await;
    assert_eq!((refused.status, refused.reason(), refused.used()), (402, "quota_exceeded", 100));
    assert_eq!(refused.remaining(), 58, "this one was taken: what was counted was read beside the grant");
    let again = bench.check_one("ada").await;
    assert_eq!((again.status, again.remaining()), (402, 58), "and from now on nothing is");
}

#[tokio::test]
async fn a_call_that_fails_uses_quota_and_is_never_counted() {
    let bench = bench().await;
    bench.take("ada", 2).await;
    count(&bench.world, "inv", &[with(call("ada", "req_1"), "success", false), call("ada", "req_2")]).await;
    assert_eq!(bench.quota("ada").await["used"], 2);
    let usage = bench.usage("user_id=ada").await;
    assert_eq!(usage["totals"]["requests"]["counted"], 1);
}

#[tokio::test]
async fn other_meters_are_only_tested() {
    let bench = bench().await.with_quota("tokens_in", 2_000);
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    let check = async |tokens_in: u64| bench.check_units("ada", json!({"requests": 1, "tokens_in": tokens_in})).await;
    assert_eq!(check(2_000).await.status, 200);
    assert_eq!(check(2_000).await.status, 200, "nothing of it is taken");
    assert_eq!(check(2_001).await.reason(), "quota_exceeded");
    count(&bench.world, "inv", &[call("ada", "req_1")]).await;
    assert_eq!((check(1_188).await.status, check(1_189).await.status), (200, 402), "812 are counted");
    count(&bench.world, "more", &[call("ada", "req_2"), call("ada", "req_3")]).await;
    let denied = bench.check_one("ada").await;
    assert_eq!(
        (denied.status, &denied.body["quotas"]["tokens_in"]["used"]),
        (402, &json!(2_436)),
        "nothing is left of a call's tokens"
    );
    assert_eq!(bench.check_units("bob", json!({"tokens_in": 2_001})).await.status, 200, "the free tier has no such quota");
}

#[tokio::test]
async fn users_of_any_name_take_each_their_own() {
    let bench = bench().await;
    let wide = "💶".repeat(128);
    let users = [
        "a",
        "a/b",
        "a#b",
        "a?b",
        "a%2Fb",
        "a%2fb",
        "A",
        "a&b=c",
        "a+b",
        "a b",
        "a,b",
        "m:1795348800",
        "s:4:free/10:1793491200",
        "expires_at",
        "user_id",
        "#n0",
        ":v0",
        "Ünïcode 💶",
        "\u{0}\n",
        wide.as_str(),
    ];
    for (n, user_id) in users.iter().enumerate() {
        bench.take(user_id, n + 1).await;
    }
    for (n, user_id) in users.iter().enumerate() {
        let checked = bench.check_one(user_id).await;
        assert_eq!((checked.body["user_id"].as_str(), checked.used()), (Some(*user_id), n as u64 + 2), "{user_id:?}");
        assert_eq!(checked.remaining(), 60 - (n as u64 + 2));
    }
    assert_eq!(bench.world.items("gates").await.len(), users.len());
}

#[tokio::test]
async fn a_test_clocks_user_has_the_accounts_segment_and_the_real_minute() {
    let bench = bench().await.with_quota("requests", 700);
    let mut facts = subscriber("cus_Ada", "ada", "2027-02-10T00:00:00Z");
    facts.test_clock = Some(at("2027-02-20T00:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    let granted = bench.check_units("ada", json!({"requests": 600})).await;
    assert_eq!((granted.status, &granted.body["quotas"]["requests"]["resets_at"]), (200, &json!("2027-03-10T00:00:00Z")));
    // The test clock moves on by a month: another segment, and the same minute of the real clock.
    facts.test_clock = Some(at("2027-03-20T00:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    let refused = bench.check_one("ada").await;
    assert_eq!(
        (refused.status, refused.used(), &refused.body["quotas"]["requests"]["resets_at"]),
        (429, 0, &json!("2027-04-10T00:00:00Z"))
    );
    bench.world.clock.set("2026-11-22T12:01:00Z");
    assert_eq!(bench.check_one("ada").await.used(), 1);
    // What was counted is found by the account's own days.
    let call = with(call("ada", "req_1"), "timestamp", "2027-03-20T00:00:30Z");
    count(&bench.world, "inv", &[call.clone(), with(call, "request_id", "req_2")]).await;
    assert_eq!(bench.quota("ada").await["used"], 2);
}

/// The whole story of the free tier: used up, refused, upgraded, let in at once, and what was free is not billed.
#[tokio::test]
async fn an_upgrade_lets_in_at_once_and_what_was_free_is_never_billed() {
    for bench in [bench().await, warm_bench(60).await] {
        let world = &bench.world;
        let calls: Vec<Value> =
            (0..100).map(|n| with(call("ada", &format!("req_{n}")), "timestamp", "2026-11-22T11:59:00Z")).collect();
        bench.take("ada", 60).await;
        count(world, "first", &calls[..60]).await;
        world.clock.set("2026-11-22T12:01:00Z");
        bench.take("ada", 40).await;
        assert_eq!(bench.check_one("ada").await.reason(), "quota_exceeded");
        count(world, "second", &calls[60..90]).await;
        world.clock.set("2026-11-22T12:01:01Z");
        commit(world, "ada", &subscriber("cus_Ada", "ada", "2026-11-22T12:01:01Z")).await;
        let granted = bench.check_one("ada").await;
        assert_eq!((granted.status, &granted.body["plan"], &granted.body["quotas"]), (200, &json!("pro"), &json!({})));
        assert_eq!(granted.remaining(), 600 - 41, "the minute goes on, with the plan's own limit");
        // Late reports of free calls, and one that is billed.
        count(world, "late", &calls[90..]).await;
        count(world, "billed", &[with(call("ada", "req_paid"), "timestamp", "2026-11-22T12:01:01Z")]).await;
        world.clock.set("2026-11-22T13:00:00Z");
        let reporter = crate::reporter::function(world, "id");
        reporter.run(world.clock.now(), None, &crate::reporter::invocation(world, "inv")).await.unwrap();
        let reported: u64 =
            world.meters.attempts().iter().filter(|report| report.event_name == "requests").map(|report| report.quantity).sum();
        assert_eq!(reported, 1);
        let usage = bench.usage("user_id=ada").await;
        assert_eq!((&usage["totals"]["requests"]["counted"], &usage["totals"]["requests"]["reported"]), (&json!(101), &json!(1)));
    }
}

#[tokio::test]
async fn after_a_subscription_that_ends_within_the_month_its_grants_hold_again() {
    let bench = bench().await;
    bench.take("ada", 60).await;
    bench.world.clock.set("2026-11-22T12:01:00Z");
    let facts = subscriber("cus_Ada", "ada", "2026-11-22T12:01:00Z");
    commit(&bench.world, "ada", &facts).await;
    bench.take("ada", 5).await;
    bench.world.clock.set("2026-11-25T00:00:00Z");
    commit(&bench.world, "ada", &cancelled(facts, "2026-11-25T00:00:00Z")).await;
    assert_eq!(bench.check_one("ada").await.used(), 61);
}

#[tokio::test]
async fn a_warm_instance_answers_access_again_without_a_call_and_a_check_with_one() {
    let bench = warm_bench(5).await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    let access = async |user: &str| bench.calls(bench.ask(get(ACCESS, &format!("user_id={user}")))).await.0;
    let check = async |user: &str| bench.calls(bench.check_one(user)).await.0;
    let calls = |calls: &[(&'static str, usize)]| BTreeMap::from_iter(calls.iter().copied());
    // The first look reads account, grants and tallies side by side.
    assert_eq!(access("ada").await, calls(&[("GetItem", 2), ("Query", 1)]));
    assert_eq!((access("ada").await, check("ada").await), (calls(&[]), calls(&[("UpdateItem", 1)])));
    assert_eq!(access("bob").await, calls(&[("GetItem", 2), ("Query", 1)]));
    assert_eq!(access("bob").await, calls(&[]), "with a quota, too");
    assert_eq!(check("bob").await, calls(&[("Query", 1), ("UpdateItem", 1)]), "side by side");
    bench.world.clock.advance_ms(4_999);
    assert_eq!((access("ada").await, check("ada").await), (calls(&[]), calls(&[("UpdateItem", 1)])));
    bench.world.clock.advance_ms(1);
    assert_eq!(access("ada").await, calls(&[("GetItem", 2)]), "a plan without a quota needs no tallies");
    bench.world.clock.advance_ms(5_000);
    assert_eq!(check("ada").await, calls(&[("GetItem", 2), ("UpdateItem", 1)]));
    // Who is denied by what is known costs nothing for a second, and is read again then.
    assert_eq!(bench.check_units("bob", json!({"requests": 60})).await.status, 429);
    assert_eq!(bench.calls(bench.check_units("bob", json!({"requests": 60}))).await.0, calls(&[]));
    bench.world.clock.advance_ms(1_000);
    assert_eq!(bench.calls(bench.check_units("bob", json!({"requests": 61}))).await.0, calls(&[("GetItem", 2), ("Query", 1)]));
}

/// The test's own clock stands still, so what overlaps is told by the calls that are waiting at the same time.
#[tokio::test]
async fn a_check_waits_for_one_call_at_a_time_once_it_is_warm_and_for_two_before() {
    let bench = warm_bench(5).await;
    let waits = async || {
        let before = bench.api.store.faults().waves();
        assert_eq!(bench.check_one("ada").await.status, 200);
        bench.api.store.faults().waves() - before
    };
    assert_eq!((waits().await, waits().await), (2, 1));
    bench.world.clock.advance_ms(5_000);
    let before = bench.api.store.faults().waves();
    bench.quota("ada").await;
    assert_eq!(bench.api.store.faults().waves() - before, 1);
}

#[tokio::test]
async fn the_plans_limits_hold_within_the_bound_and_who_has_paid_is_let_in_within_a_second() {
    let bench = warm_bench(5).await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    let state = async || {
        let (checked, access) = (bench.check_one("ada").await, bench.ask(get(ACCESS, "user_id=ada")).await.2);
        assert_eq!((&checked.body["state"], &checked.body["allowed"]), (&access["state"], &access["allowed"]));
        (checked.status, checked.body["state"].as_str().unwrap().to_owned())
    };
    assert_eq!(state().await, (200, "free".to_owned()), "nobody knows the user");
    commit(&bench.world, "ada", &facts).await;
    bench.world.clock.advance_ms(4_999);
    assert_eq!(state().await.1, "free");
    bench.world.clock.advance_ms(1);
    assert_eq!(state().await, (200, "active".to_owned()));
    let mut paused = facts.clone();
    paused.subscriptions[0].status = Status::Paused;
    commit(&bench.world, "ada", &paused).await;
    bench.world.clock.advance_ms(5_000);
    assert_eq!(state().await, (402, "ended".to_owned()));
    commit(&bench.world, "ada", &facts).await;
    bench.world.clock.advance_ms(1_000);
    assert_eq!(state().await, (200, "active".to_owned()));
}

#[tokio::test]
async fn no_cache_outlives_the_moment_at_which_access_changes() {
    let bench = warm_bench(60).await;
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    commit(&bench.world, "ada", &overdue(facts.clone(), "in_1", "2026-11-22T11:00:00Z")).await;
    bench.world.clock.set("2026-11-29T11:59:59Z");
    let before = bench.check_one("ada").await;
    assert_eq!((before.status, &before.body["state"]), (200, &json!("grace")));
    bench.world.clock.set("2026-11-29T12:00:00Z");
    let (calls, after) = bench.calls(bench.check_one("ada")).await;
    assert_eq!((after.status, after.reason(), calls["GetItem"]), (402, "payment_overdue", 2), "the account is read again, too");
    // What goes on being allowed is read again as well: the last second of the month.
    bench.world.clock.set("2026-11-30T23:59:59Z");
    assert_eq!(bench.quota("bob").await["resets_at"], "2026-12-01T00:00:00Z");
    bench.world.clock.set("2026-12-01T00:00:00Z");
    let (calls, quota) = bench.calls(bench.quota("bob")).await;
    assert_eq!((&quota["resets_at"], calls.get("GetItem")), (&json!("2027-01-01T00:00:00Z"), Some(&2)));
}

#[tokio::test]
async fn the_item_stays_one_write_unit_over_many_minutes_and_segments() {
    let bench = bench().await.with_quota("requests", 1_000_000);
    let user_id = "💶".repeat(128);
    commit(&bench.world, &user_id, &subscriber("cus_0123456789abcdefABCDEFGH", &user_id, "2026-11-10T00:00:00Z")).await;
    bench.world.wire.load(None);
    let mut checks = 0;
    for hours in [0, 0, 0, 1, 7, 24, 24, 24 * 31, 24 * 31, 24 * 31, 24 * 31, 24 * 31, 24 * 31, 24 * 365, 24 * 365] {
        bench.world.clock.advance_ms(hours * 3_600_000);
        for _ in 0..4 {
            bench.world.clock.advance_ms(61_000);
            bench.take(&user_id, 1).await;
            checks += 1;
            let item = bench.world.item("gates").await;
            let of = |kind: &str| item.as_object().unwrap().keys().filter(|name| name.starts_with(kind)).count();
            assert!(of("m:") <= 3 && of("s:") <= 4, "{item:#}");
        }
    }
    assert_eq!(bench.world.wire.counted().0.total("gates"), checks, "below 1 KB each time");
    let item = bench.world.item("gates").await;
    let now = bench.world.clock.now();
    let expires_at = item["expires_at"].as_i64().unwrap();
    assert!(expires_at > now.plus_days(40).as_secs(), "long after it is of no use");
}

#[tokio::test]
async fn what_a_newer_version_keeps_beside_the_grants_survives() {
    let bench = bench().await;
    bench.take("ada", 1).await;
    bench.world.set_attribute("gates", ("user_id", "ada"), "newer", "kept").await;
    bench.take("ada", 1).await;
    let item = bench.world.item("gates").await;
    assert_eq!((&item["newer"], &item["m:1795348800"], &item["s:4:free/10:1793491200"]), (&json!("kept"), &json!(2), &json!(2)));
    assert_eq!(item["expires_at"], at("2026-12-01T00:00:00Z").plus_days(40).as_secs());
}

#[tokio::test]
async fn nobody_is_checked_without_a_token() {
    let bench = bench().await;
    assert_eq!(bench.problem(request::from_str(CHECK).unwrap()).await.0, 401);
    assert_eq!(bench.world.items("gates").await, Vec::<Value>::new());
}
