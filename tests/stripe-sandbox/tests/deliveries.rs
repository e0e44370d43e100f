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
        let setting = Self { sandbox, receiver, http: reqwest::Client::new(), _server: server };
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
