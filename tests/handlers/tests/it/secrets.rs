//! A secret that is rotated, and a secret store that cannot be reached, through the real SDK: nothing unsigned is taken meanwhile.

use aws_sdk_ssm::config::{BehaviorVersion, Credentials, Region, retry::RetryConfig};
use handlers::{Queue, TestClock, Wire, WireFault, refused};
use serde_json::json;
use tokentill::{
    config::StripeMode,
    ports::{Clock, Secrets},
    ssm::Parameter,
};
use webhook::Webhook;

use crate::webhook::{NOON, NOON_SECS, event, post, signed_with};

const TTL_SECS: u32 = 300;

type Function = Webhook<Parameter<TestClock>, Queue, TestClock>;

/// A function whose parameter is read over this wire; nobody listens there but what a test plans.
fn function(wire: &Wire) -> Function {
    let config = aws_sdk_ssm::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::from_static("eu-central-1"))
        .credentials_provider(Credentials::new("test", "test", None, None, "test"))
        .endpoint_url("http://127.0.0.1:1")
        .retry_config(RetryConfig::disabled())
        .http_client(wire.clone())
        .build();
    let clock = TestClock::at(NOON);
    let client = aws_sdk_ssm::Client::from_conf(config);
    let secrets = Parameter::new(client, clock.clone(), "/tokentill/webhook-secrets".to_owned(), TTL_SECS);
    Webhook { secrets, hints: Queue::default(), clock, mode: StripeMode::Test }
}

fn holds(value: &str) -> WireFault {
    WireFault::Answer { status: 200, body: json!({"Parameter": {"Value": value}}).to_string() }
}

/// The answer to an event that is signed with a secret at the function's present moment.
async fn answer(webhook: &Function, secret: &str, moment: i64) -> u16 {
    let body = event("evt_1", "invoice.paid");
    webhook.handle(post(&body, Some(&signed_with(secret, NOON_SECS + moment, &body)), false)).await.status().as_u16()
}

#[tokio::test]
async fn a_secret_rotated_while_a_function_is_warm_is_good_within_five_minutes_and_so_is_the_old_one_while_it_stands() {
    let wire = Wire::default();
    let webhook = function(&wire);
    for (nth, value) in [(1, "whsec_old"), (2, "whsec_new whsec_old"), (3, "whsec_new")] {
        wire.at("GetParameter", nth, holds(value));
    }
    assert_eq!((answer(&webhook, "whsec_old", 0).await, answer(&webhook, "whsec_new", 0).await), (200, 400));
    webhook.clock.advance_ms(299_999);
    assert_eq!(
        (answer(&webhook, "whsec_new", 299).await, wire.calls("GetParameter")),
        (400, 1),
        "it is not asked for at each request"
    );
    webhook.clock.advance_ms(1);
    assert_eq!((answer(&webhook, "whsec_new", 300).await, answer(&webhook, "whsec_old", 300).await), (200, 200));
    webhook.clock.advance_ms(300_000);
    assert_eq!((answer(&webhook, "whsec_new", 600).await, answer(&webhook, "whsec_old", 600).await), (200, 400));
    assert_eq!(wire.calls("GetParameter"), 3);
}

#[tokio::test]
async fn a_store_that_is_down_fails_the_start_and_is_bridged_for_an_hour_and_a_refusal_is_not() {
    let wire = Wire::default();
    let webhook = function(&wire);
    wire.at("GetParameter", 1, WireFault::LoseRequest);
    assert!(webhook.secrets.secret().await.is_err(), "the function does not start");
    wire.at("GetParameter", 1, refused("ServiceUnavailable", "down"));
    assert_eq!(answer(&webhook, "", 0).await, 500, "nor is anything taken that an empty secret signed");
    wire.at("GetParameter", 1, holds("whsec_a"));
    assert_eq!(answer(&webhook, "whsec_a", 0).await, 200);
    // Nobody answers any more.
    for (later_secs, expected) in [(300, 200), (3_599, 200), (3_600, 500)] {
        webhook.clock.advance_ms((NOON_SECS + later_secs) * 1000 - webhook.clock.now_ms());
        assert_eq!(answer(&webhook, "whsec_a", later_secs).await, expected, "{later_secs} s after it was read");
    }
    wire.at("GetParameter", 1, holds("whsec_a"));
    assert_eq!(answer(&webhook, "whsec_a", 3_600).await, 200);
    webhook.clock.advance_ms(300_000);
    for kind in ["ParameterNotFound", "AccessDeniedException"] {
        wire.at("GetParameter", 1, refused(kind, "no"));
        assert_eq!(answer(&webhook, "whsec_a", 3_900).await, 500, "{kind}");
    }
    assert_eq!(webhook.hints.hints().len(), 1);
}
