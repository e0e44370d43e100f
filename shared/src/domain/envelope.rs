//! The envelope of a Stripe event: just enough of it to know where to look.
//!
//! Both shapes are read: snapshot events (`object: event`) and thin ones (`object: v2.core.event`). Nothing else of the body is
//! believed or kept, so that a payload of another API version, a new field or a missing one cannot harm. Source of the
//! shapes: Stripe's documentation, "Event object" and "Thin events".

use serde_json::Value;

use super::{
    hint::{HINT_VERSION, Hint},
    id::{CustomerId, EventId, InvoiceId},
    time::EpochSecs,
};

/// Why a body is no Stripe event. The texts hold nothing of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEvent {
    /// Not JSON, or nested deeper than 128 levels.
    #[error("the body is not JSON")]
    NotJson,
    /// No string `id` and `type` of at most 255 characters.
    #[error("the body is no Stripe event: it has no string `id` and `type`")]
    NotAnEvent,
}

/// Reads the raw bytes of a verified request as a hint.
///
/// A missing or strange `livemode` is read as the given `default_livemode`; a missing or strange `created` as the moment of
/// arrival. Where a thin event's type equals a snapshot's but for its `v1.`, the hint's type is the snapshot's.
///
/// # Errors
/// [`NoEvent`] if it is not JSON or no event.
pub fn read(body: &[u8], arrived: EpochSecs, default_livemode: bool) -> Result<Hint, NoEvent> {
    // A byte order mark is no part of JSON, but some proxies add one; it was signed along with the rest.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let event: Value = serde_json::from_slice(body).map_err(|_| NoEvent::NotJson)?;
    let event_id = text(&event, "id").and_then(|id| EventId::new(id).ok()).ok_or(NoEvent::NotAnEvent)?;
    let kind = text(&event, "type").filter(|kind| kind.len() <= 255).ok_or(NoEvent::NotAnEvent)?;
    let created = match field(&event, "created") {
        Value::String(text) => EpochSecs::parse_rfc3339(text),
        other => other.as_i64().map(EpochSecs::new),
    }
    .unwrap_or(arrived);

    // A snapshot carries the object, a thin event only its id and type.
    let (object, related) = (field(field(&event, "data"), "object"), field(&event, "related_object"));
    let object_id = text(object, "id").or_else(|| text(related, "id")).filter(|id| id.len() <= 255);
    let object_type = text(object, "object").or_else(|| text(related, "type"));
    let named = |object_name: &str| object_id.filter(|_| object_type == Some(object_name));

    let customer = named("customer").or_else(|| reference(object, "customer"));
    // A charge that paid an invoice is no invoice; only the invoice itself names one here.
    let invoice = named("invoice");
    let plain = kind.strip_prefix("v1.").filter(|plain| !plain.starts_with("billing.meter.")).unwrap_or(kind);
    Ok(Hint {
        v: HINT_VERSION,
        object_id: object_id.unwrap_or(event_id.as_str()).to_owned(),
        event_id,
        kind: plain.to_owned(),
        created,
        customer: customer.and_then(|id| CustomerId::new(id).ok()),
        invoice: invoice.and_then(|id| InvoiceId::new(id).ok()),
        livemode: field(&event, "livemode").as_bool().unwrap_or(default_livemode),
        replay: false,
        swept: false,
    })
}

fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    value.get(name).unwrap_or(&Value::Null)
}

fn text<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    field(value, name).as_str().filter(|text| !text.is_empty())
}

/// A reference to another object: its id, or the object itself where it was expanded.
fn reference<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    match field(value, name) {
        Value::String(id) => Some(id),
        expanded => text(expanded, "id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    fn check(body: &str, expected: &Expect) {
        let shown = match read(body.as_bytes(), EpochSecs::new(1_764_000_000), false) {
            Ok(hint) => serde_json::to_string(&hint).unwrap(),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn snapshot_and_thin_events_become_the_same_hint() {
        check(
            r#"{"id":"evt_1","object":"event","type":"customer.subscription.updated","created":1763999000,"livemode":false,
               "data":{"object":{"id":"sub_1","object":"subscription","customer":"cus_1","status":{"new":"shape"}}}}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_1","type":"customer.subscription.updated","created":1763999000,"object_id":"sub_1","customer":"cus_1","livemode":false}"#
            ]],
        );
        check(
            r#"{"id":"evt_2","object":"v2.core.event","type":"v1.customer.subscription.updated","created":"2025-11-24T15:43:20.000Z",
               "livemode":false,"related_object":{"id":"sub_1","type":"subscription","url":"/v1/subscriptions/sub_1"}}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_2","type":"customer.subscription.updated","created":1763999000,"object_id":"sub_1","livemode":false}"#
            ]],
        );
    }

    #[test]
    fn an_event_about_rejected_usage_is_about_a_meter_or_about_itself() {
        check(
            r#"{"id":"evt_7","object":"v2.core.event","type":"v1.billing.meter.error_report_triggered","created":"2025-11-24T15:43:20.000Z",
               "livemode":false,"related_object":{"id":"mtr_1","type":"billing.meter","url":"/v1/billing/meters/mtr_1"},
               "data":{"developer_message_summary":"There is 1 invalid event"}}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_7","type":"v1.billing.meter.error_report_triggered","created":1763999000,"object_id":"mtr_1","livemode":false}"#
            ]],
        );
        for related in [r#","related_object":null"#, ""] {
            check(
                &format!(
                    r#"{{"id":"evt_8","object":"v2.core.event","type":"v1.billing.meter.no_meter_found","created":"2025-11-24T15:43:20.000Z","livemode":false{related}}}"#
                ),
                &expect![[
                    r#"{"v":1,"event_id":"evt_8","type":"v1.billing.meter.no_meter_found","created":1763999000,"object_id":"evt_8","livemode":false}"#
                ]],
            );
        }
    }

    #[test]
    fn an_invoice_names_itself_and_an_expanded_customer_is_found() {
        check(
            r#"{"id":"evt_3","type":"invoice.payment_failed","created":1763999000,"livemode":true,
               "data":{"object":{"id":"in_1","object":"invoice","customer":{"id":"cus_1","object":"customer"}}}}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_3","type":"invoice.payment_failed","created":1763999000,"object_id":"in_1","customer":"cus_1","invoice":"in_1","livemode":true}"#
            ]],
        );
        check(
            r#"{"id":"evt_4","type":"customer.deleted","created":1763999000,"data":{"object":{"id":"cus_1","object":"customer"}}}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_4","type":"customer.deleted","created":1763999000,"object_id":"cus_1","customer":"cus_1","livemode":false}"#
            ]],
        );
    }

    #[test]
    fn strange_fields_are_passed_over_and_no_event_is_refused() {
        check(
            r#"{"id":"evt_5","type":"invoice.paid","created":"yesterday","livemode":"no","data":{"object":[1]},"id2":null}"#,
            &expect![[
                r#"{"v":1,"event_id":"evt_5","type":"invoice.paid","created":1764000000,"object_id":"evt_5","livemode":false}"#
            ]],
        );
        for body in ["", "nonsense", "{", "\u{feff}", "[[[[", &"[".repeat(100_000)] {
            check(body, &expect!["the body is not JSON"]);
        }
        let long = format!(r#"{{"id":"evt_1","type":"{}"}}"#, "x".repeat(256));
        for body in [
            "{}",
            "[]",
            r#"["evt_1","x"]"#,
            "null",
            "7",
            r#"{"id":1,"type":"x"}"#,
            r#"{"id":"evt_1"}"#,
            r#"{"id":"","type":"x"}"#,
        ]
        .into_iter()
        .chain([r#"{"id":"evt_1","type":""}"#, &long])
        {
            check(body, &expect!["the body is no Stripe event: it has no string `id` and `type`"]);
        }
    }

    #[test]
    fn a_byte_order_mark_and_escapes_and_duplicate_keys_do_no_harm() {
        check(
            "\u{feff}{\"id\":\"evt_0\",\"id\":\"evt_\\u0036\",\"type\":\"invoice.paid\"}",
            &expect![[
                r#"{"v":1,"event_id":"evt_6","type":"invoice.paid","created":1764000000,"object_id":"evt_6","livemode":false}"#
            ]],
        );
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&body, EpochSecs::new(0), false);
        }
    }
}
