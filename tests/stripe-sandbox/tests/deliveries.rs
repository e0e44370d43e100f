//! How events reach an endpoint: signed anew on every attempt, retried, repeated, reversed.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers fail by panicking, as its body does"
)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use stripe_sandbox::Sandbox;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// An endpoint that fails as often as it is told, and remembers what came.
#[derive(Default)]
struct Receiver {
    failures: Mutex<Vec<StatusCode>>,
    got: Mutex<Vec<(String, Value)>>,
}

async fn receive(State(receiver): State<Arc<Receiver>>, headers: HeaderMap, body: String) -> StatusCode {
    let signature = headers["stripe-signature"].to_str().unwrap().to_owned();
    receiver.got.lock().unwrap().push((signature, serde_json::from_str(&body).unwrap()));
    receiver.failures.lock().unwrap().pop().unwrap_or(StatusCode::OK)
}

struct Setting {
    sandbox: Sandbox,
    /// Where the receiver listens.
    url: String,
    receiver: Arc<Receiver>,
    http: reqwest::Client,
    _server: JoinSet<()>,
}

impl Setting {
    async fn with_endpoint(events: &str) -> Self {
        let receiver = Arc::new(Receiver::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhook", listener.local_addr().unwrap());
        let app = Router::new().route("/webhook", post(receive)).with_state(Arc::clone(&receiver));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        let sandbox = Sandbox::start(0).await.unwrap();
        let setting = Self { sandbox, url: url.clone(), receiver, http: reqwest::Client::new(), _server: server };
        // A test that waits asks often.
        setting.post("/_sandbox/settings", &[("global_rate", "0"), ("endpoint_rate", "0")]).await;
        let endpoint = setting.post("/v1/webhook_endpoints", &[("url", &url), ("enabled_events[]", events)]).await;
        assert!(endpoint["secret"].as_str().unwrap().starts_with("whsec_"));
        setting
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let request = self.http.post(format!("{}{path}", self.sandbox.url())).bearer_auth("sk_test_1").form(form);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        answer.json().await.unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        let request = self.http.get(format!("{}{path}", self.sandbox.url())).bearer_auth("sk_test_1");
        request.send().await.unwrap().json().await.unwrap()
    }

    /// Waits until so many deliveries have come in.
    async fn received(&self, count: usize) -> Vec<(String, Value)> {
        for _ in 0..1_000 {
            let got = self.receiver.got.lock().unwrap().clone();
            if got.len() >= count {
                return got;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} deliveries never came");
    }

    /// Waits until nothing is pending or failed.
    async fn all_delivered(&self) {
        for _ in 0..1_000 {
            if self.get("/v1/events?delivery_success=false").await["data"].as_array().unwrap().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something was never delivered");
    }
}

#[tokio::test]
async fn anything_but_2xx_is_tried_again_until_it_is_taken() {
    let setting = Setting::with_endpoint("customer.created").await;
    *setting.receiver.failures.lock().unwrap() = vec![StatusCode::FOUND, StatusCode::INTERNAL_SERVER_ERROR];
    setting.post("/v1/customers", &[]).await;
    let pending = setting.get("/v1/events?delivery_success=false").await;
    assert_eq!(pending["data"][0]["pending_webhooks"], 1);
    let got = setting.received(3).await;
    assert!(got.iter().all(|(_, event)| event["id"] == got[0].1["id"]));
    setting.all_delivered().await;
    let deliveries = setting.get("/_sandbox/deliveries").await;
    let statuses: Vec<&Value> = deliveries["data"].as_array().unwrap().iter().map(|attempt| &attempt["status"]).collect();
    assert_eq!(statuses, [500, 302, 200]);
    setting.sandbox.shutdown().await;
}

#[tokio::test]
async fn only_the_enabled_types_are_delivered() {
    let setting = Setting::with_endpoint("customer.updated").await;
    let customer = setting.post("/v1/customers", &[]).await;
    let path = format!("/v1/customers/{}", customer["id"].as_str().unwrap());
    setting.post(&path, &[("name", "Ada")]).await;
    let got = setting.received(1).await;
    assert_eq!(got[0].1["type"], "customer.updated");
    assert_eq!(got[0].1["data"]["previous_attributes"], serde_json::json!({"name": null}));
    assert!(got[0].1["request"]["id"].as_str().unwrap().starts_with("req_"));
    let all = setting.get("/v1/events").await;
    assert_eq!(all["data"].as_array().unwrap().len(), 2, "events are recorded whether or not anybody wants them");
}

#[tokio::test]
async fn the_reversed_mode_delivers_the_newest_first() {
    let setting = Setting::with_endpoint("*").await;
    setting.post("/_sandbox/delivery", &[("mode", "reversed")]).await;
    for name in ["first", "second", "third"] {
        setting.post("/v1/customers", &[("name", name)]).await;
    }
    let got = setting.received(3).await;
    let names: Vec<&Value> = got.iter().map(|(_, event)| &event["data"]["object"]["name"]).collect();
    assert_eq!(names, ["third", "second", "first"]);
}

#[tokio::test]
async fn events_can_be_told_to_be_created_in_clock_time() {
    let setting = Setting::with_endpoint("*").await;
    let clock = setting.post("/v1/test_helpers/test_clocks", &[("frozen_time", "1900000000")]).await;
    let clock = clock["id"].as_str().unwrap();
    setting.post("/v1/customers", &[("test_clock", clock)]).await;
    setting.post("/_sandbox/settings", &[("events_created", "clock")]).await;
    setting.post("/v1/customers", &[("test_clock", clock)]).await;
    let events = setting.get("/v1/events?type=customer.created").await;
    assert_eq!(events["data"][0]["created"], 1_900_000_000);
    assert!(events["data"][1]["created"].as_i64().unwrap() < 1_900_000_000, "Stripe's are created in real time");
    assert_eq!(events["data"][1]["data"]["object"]["created"], 1_900_000_000, "their objects are not");
}

impl Setting {
    async fn meter(&self, event_name: &str) -> String {
        let form = [("display_name", "Usage"), ("event_name", event_name), ("default_aggregation[formula]", "sum")];
        self.post("/v1/billing/meters", &form).await["id"].as_str().unwrap().to_owned()
    }

    async fn customer(&self) -> String {
        self.post("/v1/customers", &[]).await["id"].as_str().unwrap().to_owned()
    }

    async fn use_one(&self, event_name: &str, customer: &str, identifier: &str) {
        let form = [
            ("event_name", event_name),
            ("identifier", identifier),
            ("payload[stripe_customer_id]", customer),
            ("payload[value]", "1"),
        ];
        self.post("/v1/billing/meter_events", &form).await;
    }

    /// What a thin event says to who asks.
    async fn reason(&self, event: &Value) -> Value {
        let mut whole = self.get(&format!("/v2/core/events/{}", event["id"].as_str().unwrap())).await;
        let data = whole["data"].take();
        for (field, value) in event.as_object().unwrap() {
            assert_eq!(&whole[field], value, "{field}");
        }
        for moment in ["validation_start", "validation_end"] {
            assert!(data[moment].as_str().is_some_and(|text| text.ends_with(".000Z")), "{data}");
        }
        data["reason"].clone()
    }

    async fn thin_destination(&self, events: &str) -> Value {
        self.post("/_sandbox/event_destinations", &[("url", &self.url), ("enabled_events[]", events)]).await
    }
}

#[tokio::test]
async fn usage_that_is_thrown_away_is_told_by_a_thin_event_with_a_few_samples() {
    // This endpoint gets all snapshots, and no thin event.
    let setting = Setting::with_endpoint("*").await;
    setting.post("/_sandbox/delivery", &[("mode", "drop")]).await;
    // Long enough for all of it to come into one report of each meter, also on a busy machine.
    setting.post("/_sandbox/settings", &[("meter_error_delay_ms", "2500")]).await;
    let (requests, tokens) = (setting.meter("requests").await, setting.meter("tokens").await);
    setting.post(&format!("/v1/billing/meters/{tokens}/deactivate"), &[]).await;
    let customer = setting.customer().await;
    let destination = setting.thin_destination("*").await;
    assert!(destination["id"].as_str().unwrap().starts_with("ed_") && destination["secret"].is_string());
    setting.post("/_sandbox/delivery", &[("mode", "normal")]).await;

    let rejection = [("event_name", "requests"), ("customer", &customer), ("count", "5"), ("code", "meter_event_invalid_value")];
    setting.post("/_sandbox/meter_rejections", &rejection).await;
    for number in 0..6 {
        setting.use_one("requests", &customer, &format!("rep_{number}")).await;
    }
    for identifier in ["rep_nobody", "rep_nobody_else"] {
        setting.use_one("requests", "cus_nobody", identifier).await;
    }
    setting.use_one("tokens", &customer, "rep_archived").await;
    setting.use_one("words", &customer, "rep_words").await;

    let mut got: Vec<Value> = setting.received(3).await.into_iter().map(|(_, event)| event).collect();
    got.sort_by_key(|event| event["related_object"]["id"] != requests.as_str());
    let event = &got[0];
    assert_eq!((&event["object"], &event["type"]), (&"v2.core.event".into(), &"v1.billing.meter.error_report_triggered".into()));
    assert!(event["created"].as_str().is_some_and(|text| text.ends_with(".000Z")) && event.get("data").is_none(), "{event}");
    let url = format!("/v1/billing/meters/{requests}");
    assert_eq!(event["related_object"], serde_json::json!({"id": requests, "type": "billing.meter", "url": url}));
    let reason = setting.reason(event).await;
    assert_eq!(reason["error_count"], 7);
    let told: Vec<(&str, u64, usize)> = reason["error_types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|kind| {
            (
                kind["code"].as_str().unwrap(),
                kind["error_count"].as_u64().unwrap(),
                kind["sample_errors"].as_array().unwrap().len(),
            )
        })
        .collect();
    assert_eq!(told, [("meter_event_customer_not_found", 2, 1), ("meter_event_invalid_value", 5, 3)]);
    assert_eq!(reason["error_types"][0]["sample_errors"][0]["request"]["identifier"], "rep_nobody");

    let kinds: Vec<&Value> = got.iter().map(|event| &event["type"]).collect();
    assert!(kinds.contains(&&Value::from("v1.billing.meter.no_meter_found")), "{kinds:?}");
    for event in &got[1..] {
        let code = setting.reason(event).await["error_types"][0]["code"].clone();
        let archived = event["related_object"]["id"] == tokens.as_str();
        assert_eq!(code, if archived { "archived_meter" } else { "no_meter" });
    }

    let listed = setting.get("/v1/events?limit=100").await;
    assert!(listed["data"].as_array().unwrap().iter().all(|event| event["object"] == "event"), "{listed}");
    let query = format!("customer={customer}&start_time=0&end_time=4000000020");
    let summaries = setting.get(&format!("/v1/billing/meters/{requests}/event_summaries?{query}")).await;
    assert_eq!(summaries["data"][0]["aggregated_value"], 1.0, "only the sixth event was recorded");
}

#[tokio::test]
async fn a_destination_gets_the_thin_types_that_it_asked_for_and_its_deliveries_are_retried() {
    let setting = Setting::with_endpoint("customer.created").await;
    setting.post("/_sandbox/settings", &[("meter_error_delay_ms", "0")]).await;
    setting.thin_destination("v1.billing.meter.no_meter_found").await;
    let snapshot = [("url", setting.url.as_str()), ("enabled_events[]", "customer.created")];
    let refused = setting.http.post(format!("{}/_sandbox/event_destinations", setting.sandbox.url())).form(&snapshot);
    assert_eq!(refused.send().await.unwrap().status().as_u16(), 400, "a destination is thin or gets snapshots");
    setting.meter("requests").await;
    *setting.receiver.failures.lock().unwrap() = vec![StatusCode::INTERNAL_SERVER_ERROR];
    setting.use_one("requests", "cus_nobody", "rep_1").await;
    setting.use_one("words", "cus_nobody", "rep_2").await;
    let got = setting.received(2).await;
    assert!(got.iter().all(|(_, event)| event["type"] == "v1.billing.meter.no_meter_found" && event["id"] == got[0].1["id"]));
    assert_eq!(got[0].1["related_object"], Value::Null);
}
