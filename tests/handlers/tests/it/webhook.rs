//! `POST /webhooks/stripe`: every row of the contract's table 3.1.

use std::panic::AssertUnwindSafe;

use expect_test::expect;
use futures_util::FutureExt as _;
use handlers::{Fault, Queue, TestClock, TestSecret};
use lambda_http::{Body, Request, request};
use serde_json::{Value, json};
use tokentill::{config::StripeMode, ports::Clock};
use webhook::Webhook;

use crate::samples::{
    BODY_MARK, CHECKOUT_COMPLETED, EMAIL, METER_ERROR, PAYMENT_FAILED, THIN, WEBHOOK_SECRET, parsed, signature,
};

pub(crate) const NOON: &str = "2026-11-22T12:00:00Z";
pub(crate) const NOON_SECS: i64 = 1_795_348_800;

fn webhook() -> Webhook<TestSecret, Queue, TestClock> {
    Webhook {
        secrets: TestSecret::new(WEBHOOK_SECRET),
        hints: Queue::default(),
        clock: TestClock::at(NOON),
        mode: StripeMode::Test,
    }
}

/// The gateway's request with this body and header; `base64` as the gateway may choose.
pub(crate) fn post(body: &[u8], header: Option<&str>, base64: bool) -> Request {
    let mut event = parsed(CHECKOUT_COMPLETED);
    event["body"] = if base64 { base64_of(body).into() } else { std::str::from_utf8(body).unwrap().into() };
    event["isBase64Encoded"] = base64.into();
    match header {
        Some(header) => event["headers"]["stripe-signature"] = header.into(),
        None => drop(event["headers"].as_object_mut().unwrap().remove("stripe-signature")),
    }
    request::from_str(&event.to_string()).unwrap()
}

/// Base64 with padding, RFC 4648.
fn base64_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0_u32, |group, byte| (group << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS[((group >> (18 - 6 * place)) & 63) as usize];
            text.push(if place <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

pub(crate) fn signed_with(secret: &str, t: i64, body: &[u8]) -> String {
    format!("t={t},v1={}", signature(secret, t, body))
}

fn signed_at(t: i64, body: &[u8]) -> String {
    signed_with(WEBHOOK_SECRET, t, body)
}

fn signed(body: &[u8]) -> Request {
    post(body, Some(&signed_at(NOON_SECS, body)), false)
}

/// A sample, signed afresh with the secret that is configured here.
fn resigned(sample: &str) -> Request {
    let mut event = parsed(sample);
    let request = request::from_str(sample).unwrap();
    let body: &[u8] = request.body();
    event["headers"]["stripe-signature"] = signed_at(NOON_SECS, body).into();
    request::from_str(&event.to_string()).unwrap()
}

pub(crate) fn event(event_id: &str, kind: &str) -> Vec<u8> {
    json!({"id": event_id, "object": "event", "type": kind, "created": NOON_SECS, "livemode": false,
           "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "email": EMAIL, "note": BODY_MARK}}})
    .to_string()
    .into_bytes()
}

/// The status, and how many hints are queued then.
async fn answer(webhook: &Webhook<TestSecret, Queue, TestClock>, request: Request) -> (u16, usize) {
    let response = webhook.handle(request).await;
    if let Body::Text(text) = response.body() {
        assert!(!text.contains(BODY_MARK) && !text.contains(WEBHOOK_SECRET), "{text}");
    }
    (response.status().as_u16(), webhook.hints.hints().len())
}

fn queued(webhook: &Webhook<TestSecret, Queue, TestClock>) -> String {
    let hints: Vec<String> = webhook.hints.hints().iter().map(|hint| serde_json::to_string(hint).unwrap()).collect();
    hints.join("\n")
}

#[tokio::test]
async fn a_signed_snapshot_event_is_queued_as_a_hint_and_answered_200() {
    let webhook = webhook();
    assert_eq!(answer(&webhook, resigned(CHECKOUT_COMPLETED)).await, (200, 1));
    expect![[r#"{"v":1,"event_id":"evt_1TWcheckout","type":"checkout.session.completed","created":1795348800,"object_id":"cs_test_a1","customer":"cus_Ada","livemode":false}"#]]
        .assert_eq(&queued(&webhook));
}

#[tokio::test]
async fn a_base64_body_is_verified_over_the_bytes_that_stripe_signed() {
    let webhook = webhook();
    assert!(matches!(resigned(PAYMENT_FAILED).body(), Body::Binary(_)), "the gateway's encoding is undone");
    assert_eq!(answer(&webhook, resigned(PAYMENT_FAILED)).await, (200, 1));
    expect![[r#"{"v":1,"event_id":"evt_1TWpaymentFailed","type":"invoice.payment_failed","created":1795348800,"object_id":"in_1TW","customer":"cus_Ada","invoice":"in_1TW","livemode":false}"#]]
        .assert_eq(&queued(&webhook));
}

#[tokio::test]
async fn a_signed_thin_event_is_queued_as_the_snapshots_hint() {
    let webhook = webhook();
    assert_eq!(answer(&webhook, resigned(THIN)).await, (200, 1));
    expect![[r#"{"v":1,"event_id":"evt_test_65TWthin","type":"customer.subscription.past_due","created":1795348800,"object_id":"sub_Ada","livemode":false}"#]]
        .assert_eq(&queued(&webhook));
}

/// Such an event has no customer, and where no meter was found not even an object: it is its own group of the queue then.
#[tokio::test]
async fn a_signed_event_about_rejected_usage_is_queued_whether_or_not_it_names_a_meter() {
    let webhook = webhook();
    assert_eq!(answer(&webhook, resigned(METER_ERROR)).await, (200, 1));
    for (event_id, related_object) in [("evt_none", json!({})), ("evt_null", json!({"related_object": null}))] {
        let mut event = json!({"id": event_id, "object": "v2.core.event", "type": "v1.billing.meter.no_meter_found",
                               "created": "2026-11-22T12:00:00.000Z", "livemode": false});
        event.as_object_mut().unwrap().extend(related_object.as_object().unwrap().clone());
        assert_eq!(answer(&webhook, signed(event.to_string().as_bytes())).await.0, 200);
    }
    expect![[r#"
        {"v":1,"event_id":"evt_test_65TWmeter","type":"v1.billing.meter.error_report_triggered","created":1795348800,"object_id":"mtr_test_61Requests","livemode":false}
        {"v":1,"event_id":"evt_none","type":"v1.billing.meter.no_meter_found","created":1795348800,"object_id":"evt_none","livemode":false}
        {"v":1,"event_id":"evt_null","type":"v1.billing.meter.no_meter_found","created":1795348800,"object_id":"evt_null","livemode":false}"#]]
    .assert_eq(&queued(&webhook));
    let groups: Vec<String> = webhook.hints.hints().iter().map(|hint| hint.group().to_owned()).collect();
    assert_eq!(groups, ["mtr_test_61Requests", "evt_none", "evt_null"]);
}

#[tokio::test]
async fn the_samples_signatures_are_good_at_their_own_moment_and_expire() {
    for sample in [CHECKOUT_COMPLETED, PAYMENT_FAILED, THIN, METER_ERROR] {
        let webhook = webhook();
        webhook.secrets.rotate("whsec_sample");
        assert_eq!(answer(&webhook, request::from_str(sample).unwrap()).await, (200, 1));
        webhook.clock.advance_ms(301_000);
        assert_eq!(answer(&webhook, request::from_str(sample).unwrap()).await, (400, 1));
    }
}

#[tokio::test]
async fn what_is_not_signed_by_stripe_within_five_minutes_is_answered_400_and_queues_nothing() {
    let webhook = webhook();
    let body = event("evt_1", "invoice.paid");
    let good = signature(WEBHOOK_SECRET, NOON_SECS, &body);
    let other = signature("whsec_other", NOON_SECS, &body);
    let of_another_body = signature(WEBHOOK_SECRET, NOON_SECS, &event("evt_2", "invoice.paid"));
    let of_another_moment = signature(WEBHOOK_SECRET, NOON_SECS - 1, &body);
    for (case, header) in [
        ("no header", None),
        ("an empty header", Some(String::new())),
        ("no moment", Some(format!("v1={good}"))),
        ("no signature", Some(format!("t={NOON_SECS}"))),
        ("a moment that is no number", Some(format!("t=noon,v1={good}"))),
        ("a signed moment", Some(format!("t=+{NOON_SECS},v1={good}"))),
        ("two moments", Some(format!("t={NOON_SECS},t={NOON_SECS},v1={good}"))),
        ("another secret", Some(format!("t={NOON_SECS},v1={other}"))),
        ("another body", Some(format!("t={NOON_SECS},v1={of_another_body}"))),
        ("another moment", Some(format!("t={NOON_SECS},v1={of_another_moment}"))),
        ("another scheme", Some(format!("t={NOON_SECS},v0={good}"))),
        ("half a signature", Some(format!("t={NOON_SECS},v1={}", &good[..63]))),
        ("301 s old", Some(signed_at(NOON_SECS - 301, &body))),
        ("301 s ahead", Some(signed_at(NOON_SECS + 301, &body))),
        ("10 KB", Some(format!("t={NOON_SECS},v1={good},{}", "v1=00,".repeat(1_700)))),
    ] {
        for base64 in [false, true] {
            assert_eq!(answer(&webhook, post(&body, header.as_deref(), base64)).await, (400, 0), "{case}");
        }
    }
    assert_eq!(webhook.hints.faults.calls("send"), 0);
}

#[tokio::test]
async fn several_signatures_and_several_secrets_are_accepted_in_any_order() {
    let body = event("evt_1", "invoice.paid");
    let old = signature("whsec_old", NOON_SECS, &body);
    let new = signature("whsec_new", NOON_SECS, &body);
    let stranger = signature("whsec_stranger", NOON_SECS, &body);
    for secrets in ["whsec_old whsec_new", "whsec_new,whsec_old", " whsec_new\n", "whsec_old"] {
        for header in [
            format!("t={NOON_SECS},v1={old},v1={new}"),
            format!("t={NOON_SECS},v1={new},v1={old}"),
            format!("t={NOON_SECS},v1=zz,v1={old},v0=1,v1={new}"),
            format!("v1={},t={NOON_SECS},v1={new}", old.to_uppercase()),
            format!("t={NOON_SECS}, v1={new}, v1={old}"),
        ] {
            let webhook = webhook();
            webhook.secrets.rotate(secrets);
            assert_eq!(answer(&webhook, post(&body, Some(&header), true)).await, (200, 1), "{secrets:?} {header}");
        }
    }
    let webhook = webhook();
    webhook.secrets.rotate("whsec_old whsec_new");
    assert_eq!(answer(&webhook, post(&body, Some(&format!("t={NOON_SECS},v1={stranger}")), false)).await, (400, 0));
}

#[tokio::test]
async fn a_signature_is_good_up_to_five_minutes_in_either_direction() {
    for t in [NOON_SECS - 300, NOON_SECS + 300] {
        let webhook = webhook();
        let body = event("evt_1", "invoice.paid");
        assert_eq!(answer(&webhook, post(&body, Some(&signed_at(t, &body)), false)).await, (200, 1));
    }
}

#[tokio::test]
async fn a_rotated_secret_holds_from_then_on() {
    let webhook = webhook();
    webhook.secrets.rotate("whsec_next");
    assert_eq!(answer(&webhook, signed(&event("evt_1", "invoice.paid"))).await, (400, 0));
}

#[tokio::test]
async fn the_exact_bytes_are_signed_whatever_they_look_like() {
    let template = r#"{"id":"evt_ID","object":"event","type":"invoice.paid","created":1795348800,"livemode":false,"data":{"object":{"id":"in_1","object":"invoice","customer":"cus_1"}}}"#;
    let bodies: Vec<Vec<u8>> = [
        template.replace(",\"", ",\r\n\""),
        format!("\u{feff}{template}"),
        template.replace("evt_ID", r"evt_\u0041"),
        template.replace("\"object\":\"event\"", r#""object":"event","id":"evt_first","id":"evt_second""#),
        template.replace("{\"id\":\"in_1\"", "{\"name\":\"Ünïcode 💶\",\"id\":\"in_1\""),
    ]
    .map(String::into_bytes)
    .into();
    for body in bodies {
        for base64 in [false, true] {
            let webhook = webhook();
            let header = signed_at(NOON_SECS, &body);
            assert_eq!(answer(&webhook, post(&body, Some(&header), base64)).await, (200, 1), "{body:?}");
        }
    }
}

#[tokio::test]
async fn a_signed_body_that_is_no_event_is_answered_400_and_queues_nothing() {
    let webhook = webhook();
    let deep = "[".repeat(10_000);
    let long_id = format!(r#"{{"id":"{}","type":"invoice.paid"}}"#, "x".repeat(300));
    for body in [
        "",
        "not json",
        "{",
        "[]",
        "7",
        "null",
        "{}",
        r#"{"id":7,"type":"invoice.paid"}"#,
        r#"{"id":"evt_1"}"#,
        r#"{"id":"evt_1","type":null}"#,
        r#"{"id":"","type":"invoice.paid"}"#,
        &deep,
        &long_id,
        BODY_MARK,
    ] {
        assert_eq!(answer(&webhook, signed(body.as_bytes())).await, (400, 0), "{body:.60}");
    }
    let no_text = [0xff, 0xfe, 0x00];
    assert_eq!(answer(&webhook, post(&no_text, Some(&signed_at(NOON_SECS, &no_text)), true)).await, (400, 0));
}

#[tokio::test]
async fn a_body_over_1_mib_is_answered_413_and_one_of_1_mib_is_taken() {
    let webhook = webhook();
    let mut body = event("evt_1", "invoice.paid");
    body.resize(1024 * 1024, b' ');
    assert_eq!(answer(&webhook, signed(&body)).await, (200, 1));
    body.push(b' ');
    assert_eq!(answer(&webhook, signed(&body)).await, (413, 1));
    body.resize(6 * 1024 * 1024, b' ');
    assert_eq!(answer(&webhook, post(&body, Some(&signed_at(NOON_SECS, &body)), true)).await, (413, 1));
    assert_eq!(answer(&webhook, post(&body, None, true)).await, (413, 1), "unread, so also without a signature");
}

#[tokio::test]
async fn an_event_of_the_other_mode_is_answered_200_and_ignored() {
    for (mode, livemode) in [(StripeMode::Test, true), (StripeMode::Live, false)] {
        let webhook = Webhook { mode, ..webhook() };
        let mut other: Value = serde_json::from_slice(&event("evt_1", "invoice.paid")).unwrap();
        other["livemode"] = livemode.into();
        assert_eq!(answer(&webhook, signed(other.to_string().as_bytes())).await, (200, 0));
        other["livemode"] = (!livemode).into();
        assert_eq!(answer(&webhook, signed(other.to_string().as_bytes())).await, (200, 1));
    }
}

#[tokio::test]
async fn every_type_of_the_contract_is_queued_and_every_other_answered_200() {
    for (kinds, hints) in [
        (
            "checkout.session.completed customer.subscription.created customer.subscription.updated \
             customer.subscription.deleted customer.subscription.paused customer.subscription.newer_than_us invoice.created \
             invoice.finalized invoice.paid invoice.payment_failed invoice.payment_action_required \
             invoice.finalization_failed invoice.voided invoice.marked_uncollectible customer.updated customer.deleted \
             test_helpers.test_clock.ready charge.refunded charge.dispute.created charge.dispute.closed \
             v1.billing.meter.error_report_triggered v1.billing.meter.no_meter_found v1.invoice.paid",
            1,
        ),
        ("ping product.created customer.created invoice.upcoming payment_intent.succeeded v1.product.created x", 0),
    ] {
        for kind in kinds.split_whitespace() {
            assert_eq!(answer(&webhook(), signed(&event("evt_1", kind))).await, (200, hints), "{kind}");
        }
    }
}

#[tokio::test]
async fn while_the_queue_is_not_reachable_stripe_hears_500_and_the_retry_queues_once() {
    let webhook = webhook();
    let body = event("evt_1", "invoice.paid");
    webhook.hints.faults.at("send", 1, Fault::LoseRequest);
    webhook.hints.faults.at("send", 2, Fault::LoseReply);
    assert_eq!(answer(&webhook, signed(&body)).await, (500, 0));
    assert_eq!(answer(&webhook, signed(&body)).await, (500, 1), "queued, but nobody could know");
    assert_eq!(answer(&webhook, signed(&body)).await, (200, 1));
}

#[tokio::test]
async fn what_kills_the_function_around_queueing_is_made_up_for_by_stripes_next_delivery() {
    for (fault, queued) in [(Fault::CrashBefore, 0), (Fault::CrashAfter, 1)] {
        let webhook = webhook();
        let body = event("evt_1", "invoice.paid");
        webhook.hints.faults.at("send", 1, fault);
        let killed = AssertUnwindSafe(webhook.handle(signed(&body))).catch_unwind().await;
        assert!(killed.is_err(), "Stripe hears nothing");
        assert_eq!(webhook.hints.hints().len(), queued);
        for _ in 0..2 {
            assert_eq!(answer(&webhook, signed(&body)).await, (200, 1), "{fault:?}");
        }
    }
}

/// What it names cannot be looked at, so nothing else than the daily comparison would find what it tells.
#[tokio::test]
async fn an_event_of_a_known_type_whose_object_cannot_be_used_is_queued_and_needs_a_person() {
    for data in [json!({}), json!({"object": null}), json!({"object": {"id": 7, "customer": {}}}), json!("text")] {
        let webhook = webhook();
        let mut body: Value = serde_json::from_slice(&event("evt_1", "customer.subscription.updated")).unwrap();
        body["data"] = data;
        assert_eq!(answer(&webhook, signed(body.to_string().as_bytes())).await, (200, 1));
        assert!(webhook.hints.hints()[0].names_nothing(), "{body}");
    }
    let named = event("evt_1", "customer.subscription.updated");
    let of_no_meter = br#"{"id":"evt_1","type":"v1.billing.meter.no_meter_found","object":"v2.core.event","livemode":false}"#;
    for body in [named.as_slice(), of_no_meter.as_slice()] {
        let webhook = webhook();
        assert_eq!(answer(&webhook, signed(body)).await, (200, 1));
        assert!(!webhook.hints.hints()[0].names_nothing());
    }
}

#[tokio::test]
async fn without_a_readable_secret_everything_is_answered_500_and_nothing_is_queued() {
    let body = event("evt_1", "invoice.paid");
    let webhook = webhook();
    webhook.secrets.faults.at("secret", 1, Fault::LoseRequest);
    assert_eq!(answer(&webhook, signed(&body)).await, (500, 0));
    assert_eq!(answer(&webhook, signed(&body)).await, (200, 1), "and once it is back, all is well");
    for blank in ["", " \n", ","] {
        webhook.secrets.rotate(blank);
        let by_nobody = format!("t={NOON_SECS},v1={}", signature("", NOON_SECS, &body));
        assert_eq!(answer(&webhook, post(&body, Some(&by_nobody), false)).await, (500, 1), "an empty key signs nothing");
        assert_eq!(answer(&webhook, post(&body, None, false)).await, (500, 1));
    }
}

#[tokio::test]
async fn one_event_delivered_five_times_at_once_is_queued_once_and_each_hears_200() {
    let webhook = webhook();
    let body = event("evt_1", "invoice.paid");
    let deliveries = (0..5).map(|delay| {
        let header = signed_at(NOON_SECS + delay, &body);
        answer(&webhook, post(&body, Some(&header), delay % 2 == 0))
    });
    let answers = futures_util::future::join_all(deliveries).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    assert_eq!(webhook.hints.hints().len(), 1);
    assert_eq!(webhook.clock.now_ms(), NOON_SECS * 1000);
}
