//! The ledger as the access API shows it (the contract, 3.3; G5): events newest first, one request's rows, and usage by hour.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_sdk_dynamodb::{
    config::{ConfigBag, Intercept, RuntimeComponents, interceptors::AfterDeserializationInterceptorContextRef},
    error::BoxError,
    operation::query::QueryOutput,
};
use expect_test::expect;
use handlers::{Fault, World};
use lambda_http::request;
use serde_json::{Value, json};
use tokentill::{
    domain::{
        audit::Position,
        time::{DAY_SECS, HOUR_SECS},
    },
    dynamodb::{Store, Tables},
    ports::{Audit, Clock},
};

use crate::{
    access::{Bench, bench, encoded, get},
    samples::{USAGE_EVENTS, USAGE_OF_REQUEST, USAGE_QUERY, at, commit, parsed, subscriber, user},
    usage::{call, count, function, hand_over, with},
};

impl Bench {
    async fn events(&self, query: &str) -> Value {
        let (status, content_type, body) = self.ask(get(USAGE_EVENTS, query)).await;
        assert_eq!((status, content_type.as_str()), (200, "application/json"), "{body}");
        body
    }

    /// Every page of a question, one after the other: each event's request and attempt.
    async fn walk(&self, query: &str) -> Vec<Vec<String>> {
        let mut pages = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = self.events(&format!("{query}{cursor}")).await;
            pages.push(names(&page));
            match page["cursor"].as_str() {
                None => return pages,
                Some(next) => cursor = format!("&cursor={next}"),
            }
        }
    }
}

/// Each event of a page, as its request and attempt.
fn names(page: &Value) -> Vec<String> {
    let name = |event: &Value| format!("{}/{}", event["request_id"].as_str().unwrap(), event["attempt"]);
    page["events"].as_array().unwrap().iter().map(name).collect()
}

fn dated(user_id: &str, request_id: &str, timestamp: impl Into<Value>) -> Value {
    with(call(user_id, request_id), "timestamp", timestamp)
}

fn failed(event: Value, attempt: u64) -> Value {
    with(with(event, "success", false), "attempt", attempt)
}

async fn count_all(world: &World, events: &[Value]) {
    for (n, events) in events.chunks(1_000).enumerate() {
        count(world, &format!("inv_{n}"), events).await;
    }
}

/// Counts the rows that queries read, whether or not they are answered.
#[derive(Debug, Clone, Default)]
struct RowsRead(Arc<AtomicUsize>);

impl RowsRead {
    fn taken(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }

    /// A store on the ledger whose reading is counted here.
    fn store(&self, world: &World) -> Store {
        let config = world.client.config().to_builder().interceptor(self.clone()).build();
        let tables = Tables { ledger: "tokentill-ledger".to_owned(), ..Tables::default() };
        Store::new(aws_sdk_dynamodb::Client::from_conf(config), tables)
    }
}

impl Intercept for RowsRead {
    fn name(&self) -> &'static str {
        "RowsRead"
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Ok(output) = context.output_or_error()
            && let Some(page) = output.downcast_ref::<QueryOutput>()
        {
            self.0.fetch_add(usize::try_from(page.scanned_count()).unwrap(), Ordering::Relaxed);
        }
        Ok(())
    }
}

#[tokio::test]
async fn the_sample_shows_events_newest_first_with_what_was_decided() {
    let bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T08:30:15Z")).await;
    let rich =
        [("model", json!("large")), ("tokens_cached", json!(7)), ("units", json!({"images": 2})), ("team", json!({"n": 1}))];
    let rich = rich.into_iter().fold(call("ada", "req_2"), |event, (field, value)| with(event, field, value));
    let events = [
        dated("ada", "req_1", "2026-11-09T10:00:00+02:00"),
        rich.clone(),
        rich,
        with(failed(dated("ada", "req_3", "2026-11-22T11:59:59Z"), 1), "outcome", "timeout"),
    ];
    count(&bench.world, "inv", &events).await;
    bench.api.tokens.rotate("token_sample");
    let (status, _, body) = bench.ask(request::from_str(USAGE_EVENTS).unwrap()).await;
    assert_eq!((status, names(&body)), (200, vec!["req_2/null".to_owned(), "req_3/1".to_owned()]));
    expect![[r#"
        {
          "at": "2026-11-22T12:00:00Z",
          "attempt": null,
          "counted": {
            "requests": 1,
            "tokens_in": 812,
            "tokens_out": 240
          },
          "day": "2026-11-22",
          "endpoint": "/v1/summarise",
          "extra": {
            "team": {
              "n": 1
            }
          },
          "extra_cut": false,
          "model": "large",
          "outcome": null,
          "received_at": "2026-11-22T12:00:00Z",
          "request_id": "req_2",
          "seen": 2,
          "segment": {
            "kind": "billed",
            "start": "2026-11-10T08:30:15Z",
            "subscription": "sub_Ada"
          },
          "success": true,
          "timestamp": "2026-11-22T12:00:00Z",
          "tokens_cached": 7,
          "tokens_in": 812,
          "tokens_out": 240,
          "units": {
            "images": 2
          },
          "verdict": "counted"
        }"#]]
    .assert_eq(&format!("{:#}", body["events"][0]));
    let failure = &body["events"][1];
    assert_eq!(
        json!([
            failure["verdict"],
            failure["outcome"],
            failure["success"],
            failure["counted"],
            failure["day"],
            failure["segment"]
        ]),
        json!(["not_billable", "timeout", false, {}, null, null])
    );
    let cursor = body["cursor"].as_str().expect("there is a further page");
    let mut event = parsed(USAGE_EVENTS);
    event["rawQueryString"] = format!("{}&cursor={cursor}", event["rawQueryString"].as_str().unwrap()).into();
    let (_, _, body) = bench.ask(request::from_str(&event.to_string()).unwrap()).await;
    let free = &body["events"][0];
    assert_eq!(
        json!([names(&body), free["timestamp"], free["segment"], body["cursor"]]),
        json!([["req_1/null"], "2026-11-09T08:00:00Z", {"kind": "free", "start": "2026-11-01T00:00:00Z"}, null])
    );
}

#[tokio::test]
async fn parked_usage_and_usage_without_a_subscription_are_shown_as_such() {
    let bench = bench().await;
    let mut usage = function(&bench.world);
    usage.prices.plans.retain(|plan| !plan.prices.is_empty());
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z")).await;
    let events = [dated("ada", "req_1", "2026-11-09T00:00:00Z"), call("grace", "req_1")];
    assert_eq!(hand_over(&usage, &bench.world, "inv", &events).await, Vec::<String>::new());
    for (user_id, verdict) in [("ada", "no_subscription"), ("grace", "unknown_user")] {
        let event = bench.events(&format!("user_id={user_id}")).await["events"][0].clone();
        assert_eq!(json!([event["verdict"], event["counted"], event["segment"]]), json!([verdict, {}, null]));
    }
}

#[tokio::test]
async fn one_request_is_shown_with_everything_that_was_reported_of_it() {
    let bench = bench().await;
    let failures = (1..=3).map(|attempt| failed(dated("ada", "req_01JD3A", format!("2026-11-22T11:59:0{attempt}Z")), attempt));
    let events: Vec<Value> = failures
        .chain([with(call("ada", "req_01JD3A"), "attempt", 4), call("ada", "req_2"), call("grace", "req_01JD3A")])
        .collect();
    count(&bench.world, "inv", &events).await;
    bench.api.tokens.rotate("token_sample");
    let (status, _, body) = bench.ask(request::from_str(USAGE_OF_REQUEST).unwrap()).await;
    let all = ["req_01JD3A/4", "req_01JD3A/3", "req_01JD3A/2", "req_01JD3A/1"];
    assert_eq!((status, names(&body), &body["cursor"]), (200, all.map(str::to_owned).to_vec(), &Value::Null));

    bench.api.tokens.rotate(crate::samples::SERVICE_TOKEN);
    let query = "user_id=ada&request_id=req_01JD3A&limit=3";
    assert_eq!(bench.walk(query).await, [&all[..3], &all[3..]]);
    let cursor = bench.events(query).await["cursor"].as_str().unwrap().to_owned();
    let other = get(USAGE_EVENTS, &format!("user_id=ada&request_id=req_2&cursor={cursor}"));
    assert_eq!(bench.problem(other).await.0, 400, "a cursor is its own request's");
    assert_eq!(bench.events("user_id=ada&request_id=req_3").await["events"], json!([]));
}

#[tokio::test]
async fn a_page_reads_little_more_of_the_ledger_than_it_shows() {
    let world = World::start().await;
    let events: Vec<Value> =
        (0..5_000).map(|n| dated("ada", &format!("req_{n}"), world.clock.now().as_secs() - n * 37)).collect();
    count_all(&world, &events).await;
    let read = RowsRead::default();
    let store = read.store(&world);
    let moments = at("2026-10-01T00:00:00Z")..at("2026-12-01T00:00:00Z");
    let mut after = None;
    let mut first = 0;
    for page in 0..5 {
        let calls_before = world.wire.calls("Query");
        let rows = store.rows_by_time(&user("ada"), moments.clone(), after.as_ref(), 100).await.unwrap();
        let (rows_read, calls) = (read.taken(), world.wire.calls("Query") - calls_before);
        assert!(rows_read <= 300 && calls <= 32, "page {page} of 100 rows read {rows_read} rows in {calls} requests");
        let requests: Vec<_> = rows.iter().map(|row| row.request_id.clone()).collect();
        assert_eq!(requests, (first..first + 100).map(|n| format!("req_{n}")).collect::<Vec<_>>());
        first += 100;
        after = rows.last().and_then(Position::of);
    }
    // All of one shard: what is read still keeps to what is asked for, and the pages grow.
    let failures: Vec<Value> = (0..600).map(|n| failed(dated("eve", "one", world.clock.now().as_secs() - n), 1)).collect();
    count_all(&world, &failures).await;
    let calls_before = world.wire.calls("Query");
    let rows = store.rows_by_time(&user("eve"), moments, None, 400).await.unwrap();
    let (rows_read, calls) = (read.taken(), world.wire.calls("Query") - calls_before);
    assert_eq!((rows.len(), rows_read), (400, 400), "a shard that holds all is not read beyond what is asked for");
    assert!(calls <= 20, "{calls} requests");
    store.rows_of_request(&user("eve"), &"one".to_owned().try_into().unwrap(), None, 10).await.unwrap();
    assert_eq!(read.taken(), 10);
}

/// Rows that share a second, and several of one request, are each on one page, whatever comes in meanwhile at the top.
#[tokio::test]
async fn no_event_is_skipped_or_shown_twice_over_pages() {
    let bench = bench().await;
    let second = "2026-11-22T11:00:00Z";
    let mut events: Vec<Value> = (0..60).map(|n| dated("ada", &format!("req_{n}"), second)).collect();
    events.extend((0..20).map(|n| failed(dated("ada", "req_5", second), n)));
    events.extend((0..20).map(|n| dated("ada", &format!("late_{n}"), at(second).as_secs() - n / 7)));
    count(&bench.world, "inv", &events).await;
    let expected: BTreeSet<String> = bench.walk("user_id=ada&limit=1000").await.concat().into_iter().collect();
    assert_eq!(expected.len(), 100);
    for limit in [3, 40, 100] {
        let mut shown = Vec::new();
        let mut cursor = String::new();
        loop {
            let page = bench.events(&format!("user_id=ada&limit={limit}{cursor}")).await;
            shown.extend(names(&page).into_iter().filter(|name| !name.starts_with("new")));
            assert!(shown.len() <= 100, "by pages of {limit} events come again");
            let Some(next) = page["cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
            let n = shown.len();
            if n % 5 == 0 {
                count(&bench.world, &format!("new_{limit}_{n}"), &[call("ada", &format!("new_{limit}_{n}"))]).await;
            }
        }
        let distinct: BTreeSet<String> = shown.iter().cloned().collect();
        assert_eq!((shown.len(), distinct == expected), (100, true), "by pages of {limit}");
    }
    let moments: Vec<i64> = bench.events("user_id=ada&limit=1000").await["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| at(event["at"].as_str().unwrap()).as_secs())
        .collect();
    assert!(moments.is_sorted_by(|a, b| a >= b), "newest first");
}

#[tokio::test]
async fn a_range_of_events_has_its_first_second_and_not_its_last() {
    let bench = bench().await;
    let hours =
        ["2026-10-22T11:59:59Z", "2026-10-23T12:00:00Z", "2026-11-20T00:00:00Z", "2026-11-20T00:00:01Z", "2026-11-22T12:04:59Z"];
    let events: Vec<Value> = hours.iter().enumerate().map(|(n, hour)| dated("ada", &n.to_string(), *hour)).collect();
    count(&bench.world, "inv", &events).await;
    for (query, expected) in [
        ("", "4 3 2 1"),
        ("&from=2026-10-01T00:00:00Z", "4 3 2 1 0"),
        ("&from=2026-11-20T00:00:00Z&to=2026-11-20T00:00:01Z", "2"),
        ("&from=2026-11-20T02:00:00%2B02:00", "4 3 2"),
        ("&to=2026-11-20T00:00:01Z", "2 1 0"),
        ("&to=2026-11-20T00:00:01Z&unknown=1", "2 1 0"),
        ("&to=2026-11-22T00:00:00Z", "3 2 1"),
        ("&from=2026-11-21T00:00:00Z&to=2026-11-22T00:00:00Z", ""),
        ("&from=1960-01-01T00:00:00Z&to=1961-01-01T00:00:00Z", ""),
    ] {
        for limit in [1, 2, 1_000] {
            let shown = bench.walk(&format!("user_id=ada{query}&limit={limit}")).await.concat();
            assert_eq!(shown.join(" ").replace("/null", ""), expected, "{query} by {limit}");
        }
    }
    // A cursor may lie outside the range that is asked for now.
    let cursor = bench.events("user_id=ada&limit=2").await["cursor"].as_str().unwrap().to_owned();
    for (query, expected) in
        [("&to=2026-11-20T00:00:00Z", "1 0"), ("&from=2026-11-22T00:00:00Z", ""), ("&from=2026-11-20T00:00:01Z", "")]
    {
        let shown = names(&bench.events(&format!("user_id=ada&cursor={cursor}{query}")).await);
        assert_eq!(shown.join(" ").replace("/null", ""), expected, "{query} after the second event");
    }
}

#[tokio::test]
async fn a_bad_question_about_events_is_answered_400_with_what_to_do() {
    let bench = bench().await;
    count(&bench.world, "inv", &[call("ada", "req_1"), call("ada", "req_2"), call("grace", "req_1"), call("grace", "req_2")])
        .await;
    let graces = bench.events("user_id=grace&limit=1").await["cursor"].as_str().unwrap().to_owned();
    let (limit, cursor) = (
        "limit must be a whole number from 1 to 1000",
        "cursor is none of this question's: send the one of the page before, unchanged, or none to begin at the top",
    );
    let encoded_cursor = |text: &str| {
        use base64::Engine as _;
        format!("user_id=ada&cursor={}", base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text))
    };
    let long = format!(r#"[1,"ada",1795348800,"req_1","{}"]"#, "x".repeat(1_025));
    let broken = [
        "user_id=ada&cursor=".to_owned(),
        "user_id=ada&cursor=%21".to_owned(),
        format!("user_id=ada&cursor={graces}"),
        format!("user_id=grace&cursor={}", &graces[1..]),
        encoded_cursor("{}"),
        encoded_cursor(r#"[2,"ada",1795348800,"req_1","request"]"#),
        encoded_cursor(r#"[1,"ada",1795348800,"","request"]"#),
        encoded_cursor(r#"[1,"ada",1795348800,"req_1",""]"#),
        encoded_cursor(&long),
    ];
    let broken = broken.iter().map(|query| (query.as_str(), cursor));
    for (query, expected) in [
        ("from=2026-11-01T00:00:00Z", "user_id is missing: add ?user_id=…"),
        ("user_id=ada&limit=0", limit),
        ("user_id=ada&limit=1001", limit),
        ("user_id=ada&limit=-1", limit),
        ("user_id=ada&limit=ten", limit),
        ("user_id=ada&request_id=", "request_id is empty"),
        ("user_id=ada&from=yesterday", "from must be RFC 3339, as 2026-11-22T12:00:00Z"),
        ("user_id=ada&from=2026-12-01T00:00:00Z&to=2026-12-01T00:00:00Z", "from must lie before to"),
    ]
    .into_iter()
    .chain(broken)
    {
        assert_eq!(bench.problem(get(USAGE_EVENTS, query)).await, (400, expected.to_owned()), "{query}");
    }
    // A cursor with made-up keys of the user's own does no harm.
    for keys in [r#"[1,"ada",-9223372036854775808,"req_9","x"]"#, r#"[1,"ada",9223372036854775807,"req_9","x"]"#] {
        bench.events(&encoded_cursor(keys)).await;
    }
    // Nor does one that names a user whose name ends where another's goes on.
    assert_eq!(
        bench.events(&encoded_cursor(r#"[1,"ada",1795348801,"2:a","request"]"#)).await["events"].as_array().unwrap().len(),
        2
    );
}

#[tokio::test]
async fn events_of_users_and_requests_of_any_name_are_found_each_on_their_own() {
    let bench = bench().await;
    let wide = "ü💶".repeat(64);
    let ids = ["a", "a/b", "a#b", "a&b=c", "a+b", "a b", "1:a/1:b", "Ünïcode 💶", "\u{0}\n\"\\", wide.as_str()];
    let events: Vec<Value> = ids.iter().flat_map(|user_id| ids.map(|request_id| call(user_id, request_id))).collect();
    count(&bench.world, "inv", &events).await;
    let expected: BTreeSet<String> = ids.iter().map(|id| format!("{id}/null")).collect();
    for user_id in ids {
        let user_id = encoded(user_id);
        let shown = bench.walk(&format!("user_id={user_id}&limit=3")).await.concat();
        assert_eq!((shown.len(), shown.into_iter().collect::<BTreeSet<_>>() == expected), (ids.len(), true), "{user_id}");
        for request_id in ids {
            let page = bench.events(&format!("user_id={user_id}&request_id={}", encoded(request_id))).await;
            assert_eq!(names(&page), [format!("{request_id}/null")], "{user_id}");
        }
    }
}

#[tokio::test]
async fn a_test_clocks_events_are_found_by_that_clock() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Ada", "ada", "2027-02-10T00:00:00Z");
    facts.test_clock = Some(at("2027-02-11T12:00:00Z"));
    commit(&bench.world, "ada", &facts).await;
    count(&bench.world, "inv", &[call("ada", "req_1")]).await;
    let event = bench.events("user_id=ada").await["events"][0].clone();
    let moments = json!([event["timestamp"], event["at"], event["received_at"], event["day"]]);
    assert_eq!(moments, json!(["2026-11-22T12:00:00Z", "2027-02-11T12:00:00Z", "2026-11-22T12:00:00Z", "2027-02-11"]));
    let usage = bench.usage("user_id=ada&by=hour").await;
    assert_eq!(usage["series"][0]["start"], "2027-02-11T12:00:00Z", "what is left to us is the account's own present day");
    assert_eq!(bench.usage("user_id=ada").await["series"][0]["start"], "2027-02-11T00:00:00Z", "and month");
}

#[tokio::test]
async fn a_page_ends_early_where_an_answer_would_be_too_long() {
    let bench = bench().await;
    let events: Vec<Value> = (0..350).map(|n| with(call("ada", &format!("req_{n}")), "note", "\"".repeat(4_000))).collect();
    for (n, events) in events.chunks(100).enumerate() {
        count(&bench.world, &format!("inv_{n}"), events).await;
    }
    let first = bench.events("user_id=ada&limit=1000").await;
    let cursor = first["cursor"].as_str().expect("not all fit");
    let second = bench.events(&format!("user_id=ada&limit=1000&cursor={cursor}")).await;
    let shown: BTreeSet<String> = [&first, &second].into_iter().flat_map(names).collect();
    assert_eq!((shown.len(), &second["cursor"]), (350, &Value::Null));
    let length = Value::String(first.to_string()).to_string().len();
    assert!(length < 6_000_000, "{length}: Lambda takes 6 MB, with the body as a JSON string");
}

/// Pseudo-random, and the same at every run.
fn scattered(n: i64) -> i64 {
    i64::try_from(tokentill::domain::id::stable_hash(&n.to_string()) % 1_000_000_007).unwrap()
}

#[tokio::test]
async fn the_hours_of_a_day_sum_up_to_the_day() {
    let bench = bench().await;
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-19T13:30:15Z")).await;
    let begin = at("2026-11-18T00:00:00Z").as_secs();
    let event = |n: i64| {
        let event = dated("ada", &format!("req_{}", n % 600), begin + scattered(n) % (4 * DAY_SECS));
        let event = with(event, "tokens_in", scattered(-n) % 1_000);
        if n % 6 == 0 { failed(event, 1) } else { event }
    };
    // Some requests are reported again: as duplicates, as conflicts, or failed before they succeeded.
    let events: Vec<Value> = (0..900).map(event).collect();
    count(&bench.world, "inv", &events).await;
    let range = "from=2026-11-18T00:00:00Z&to=2026-11-22T00:00:00Z";
    let (hours, days) =
        (bench.usage(&format!("user_id=ada&{range}&by=hour")).await, bench.usage(&format!("user_id=ada&{range}")).await);
    assert_eq!((&hours["by"], &hours["totals"]), (&json!("hour"), &days["totals"]));
    let by_day = |body: &Value| {
        let mut sums = std::collections::BTreeMap::<(String, String), u64>::new();
        for entry in body["series"].as_array().unwrap() {
            let start = entry["start"].as_str().unwrap();
            assert_eq!(at(start).as_secs() % HOUR_SECS, 0, "{start}");
            for (meter, counted) in entry["counted"].as_object().unwrap() {
                *sums.entry((start[..10].to_owned(), meter.clone())).or_default() += counted.as_u64().unwrap();
            }
        }
        sums
    };
    let (of_hours, of_days) = (by_day(&hours), by_day(&days));
    assert!(hours["series"].as_array().unwrap().len() > 80 && of_days.len() == 12, "{of_days:?}");
    assert_eq!(of_hours, of_days);
}

#[tokio::test]
async fn hours_show_whole_what_the_range_touches_each_event_in_its_own() {
    let bench = bench().await;
    // Where a segment begins in a day's last minute, that minute is counted and reported with the day after.
    commit(&bench.world, "ada", &subscriber("cus_Ada", "ada", "2026-11-20T23:59:30Z")).await;
    let stamps = ["2026-11-20T22:59:59Z", "2026-11-20T23:59:45Z", "2026-11-21T00:00:00Z", "2026-11-21T02:30:00Z"];
    let mut events: Vec<Value> = stamps.iter().enumerate().map(|(n, stamp)| dated("ada", &n.to_string(), *stamp)).collect();
    events.push(failed(dated("ada", "5", "2026-11-21T04:00:00Z"), 1));
    count(&bench.world, "inv", &events).await;
    let series = async |query: &str| {
        let body = bench.usage(&format!("user_id=ada&{query}")).await;
        let entry = |entry: &Value| format!("{}={}", &entry["start"].as_str().unwrap()[8..13], entry["counted"]["requests"]);
        let entries: Vec<String> = body["series"].as_array().unwrap().iter().map(entry).collect();
        (entries.join(" "), body["totals"]["requests"]["counted"].as_u64().unwrap_or(0))
    };
    for (query, expected) in [
        ("by=hour&from=2026-11-20T00:00:00Z&to=2026-11-22T00:00:00Z", ("20T22=1 20T23=1 21T00=1 21T02=1", 4)),
        ("by=day&from=2026-11-20T00:00:00Z&to=2026-11-22T00:00:00Z", ("20T00=1 21T00=3", 4)),
        // The range touches two hours; the totals are of the days, as for by=day.
        ("by=hour&from=2026-11-20T23:10:00Z&to=2026-11-21T00:00:01Z", ("20T23=1 21T00=1", 4)),
        ("by=hour&from=2026-11-21T00:59:59Z&to=2026-11-21T02:00:00Z", ("21T00=1", 3)),
        ("by=hour", ("", 0)),
    ] {
        let (entries, total) = series(query).await;
        assert_eq!((entries.as_str(), total), expected, "{query}");
    }
    for (query, expected) in [
        ("from=2026-11-14T23:59:59Z&to=2026-11-22T00:00:00Z", "a range by hour has at most 7 days"),
        ("from=2026-11-22T00:00:00Z&to=2026-11-21T00:00:00Z", "from must lie before to"),
    ] {
        let answer = bench.problem(get(USAGE_QUERY, &format!("user_id=ada&by=hour&{query}"))).await;
        assert_eq!(answer, (400, expected.to_owned()), "{query}");
    }
}

#[tokio::test]
async fn hours_of_more_rows_than_are_read_at_once_are_refused() {
    let bench = bench().await;
    let events: Vec<Value> = (0..300).map(|n| dated("ada", &format!("req_{n}"), bench.world.clock.now().as_secs() - n)).collect();
    count(&bench.world, "inv", &events).await;
    let read = RowsRead::default();
    let store = read.store(&bench.world);
    let moments = at("2026-11-22T11:00:00Z")..at("2026-11-22T13:00:00Z");
    let requests = async |most| {
        let hours = store.counted_by_hour(&user("ada"), moments.clone(), most).await.unwrap();
        hours.map(|hours| hours.values().flatten().filter(|(meter, _)| meter.as_str() == "requests").map(|(_, n)| n).sum::<u64>())
    };
    assert_eq!((requests(300).await, read.taken()), (Some(300), 300));
    assert_eq!(requests(299).await, None);
    bench.api.store.at_most(299);
    let (status, detail) = bench.problem(get(USAGE_QUERY, "user_id=ada&by=hour")).await;
    assert_eq!(status, 400);
    assert!(detail.contains("ask for fewer hours at once"), "{detail}");
}

#[tokio::test]
async fn a_ledger_that_is_not_available_is_answered_503() {
    let bench = bench().await;
    for (call, sample, query) in [
        ("rows_by_time", USAGE_EVENTS, "user_id=ada"),
        ("rows_of_request", USAGE_EVENTS, "user_id=ada&request_id=req_1"),
        ("counted_by_hour", USAGE_QUERY, "user_id=ada&by=hour"),
    ] {
        bench.api.store.faults().at(call, 1, Fault::LoseReply);
        assert_eq!(bench.problem(get(sample, query)).await.0, 503, "{call}");
    }
    assert_eq!(bench.events("user_id=ada").await, json!({"user_id": "ada", "events": [], "cursor": null}));
}
