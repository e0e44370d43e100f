//! The JSON Schema of the usage message says what `read_message` does, on every sample and at every limit.

use regex_lite::Regex;
use serde_json::{Map, Value, json};
use tokentill::domain::{
    time::EpochSecs,
    usage::{MAX_EVENTS_PER_MESSAGE, MAX_QUANTITY, Message, read_message},
};

fn schema() -> Value {
    serde_json::from_str(include_str!("../../../../events/usage-message.schema.json")).unwrap()
}

/// Whether a value is as the schema says. It knows the keywords that our schemas use, and panics at any other.
pub(crate) fn allows(root: &Value, schema: &Value, value: &Value) -> bool {
    let Value::Object(keywords) = schema else { return schema.as_bool().unwrap() };
    let none = Map::new();
    let object = value.as_object();
    let entries = || object.unwrap_or(&none).iter();
    let limit = |limit: &Value| usize::try_from(limit.as_u64().unwrap()).unwrap();
    let chars = value.as_str().map(|text| text.chars().count());
    keywords.iter().all(|(keyword, says)| match keyword.as_str() {
        "$schema" | "$defs" | "title" | "description" | "default" | "example" => true,
        "$ref" => allows(root, root.pointer(says.as_str().unwrap().trim_start_matches('#')).unwrap(), value),
        "allOf" => says.as_array().unwrap().iter().all(|one| allows(root, one, value)),
        "enum" => says.as_array().unwrap().contains(value),
        "anyOf" => says.as_array().unwrap().iter().any(|one| allows(root, one, value)),
        "type" => match says {
            Value::Array(types) => types.iter().any(|one| is_a(one.as_str().unwrap(), value)),
            one => is_a(one.as_str().unwrap(), value),
        },
        "required" => {
            says.as_array().unwrap().iter().all(|field| object.is_none_or(|object| object.contains_key(field.as_str().unwrap())))
        }
        "properties" => entries().all(|(name, value)| says.get(name).is_none_or(|says| allows(root, says, value))),
        "additionalProperties" => {
            let named = |name: &str| keywords.get("properties").is_some_and(|named| named.get(name).is_some());
            entries().filter(|(name, _)| !named(name)).all(|(_, value)| allows(root, says, value))
        }
        "propertyNames" => entries().all(|(name, _)| allows(root, says, &json!(name))),
        "maxProperties" => object.is_none_or(|object| object.len() <= limit(says)),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| allows(root, says, item))),
        "maxItems" => value.as_array().is_none_or(|items| items.len() <= limit(says)),
        "minLength" => chars.is_none_or(|chars| chars >= limit(says)),
        "maxLength" => chars.is_none_or(|chars| chars <= limit(says)),
        "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().unwrap()),
        "maximum" => value.as_f64().is_none_or(|number| number <= says.as_f64().unwrap()),
        "pattern" => value.as_str().is_none_or(|text| Regex::new(says.as_str().unwrap()).unwrap().is_match(text)),
        // The grammar of RFC 3339 is not written twice.
        "format" => says == "date-time" && value.as_str().is_none_or(|text| EpochSecs::parse_rfc3339(text).is_some()),
        unknown => panic!("teach this check the keyword {unknown}"),
    })
}

/// JSON Schema's types; a number without a fraction is an integer however it is written.
fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        unknown => panic!("teach this check the type {unknown}"),
    }
}

/// Whether a message holds usage events, none of them bad.
fn is_read(message: &Value) -> bool {
    matches!(read_message(&message.to_string()), Ok(Message::Events(entries)) if entries.iter().all(Result::is_ok))
}

fn event() -> Value {
    json!({"request_id": "req_1", "user_id": "ada", "endpoint": "/v1/x", "tokens_in": 812, "tokens_out": 240, "success": true,
           "timestamp": "2026-11-22T12:00:00Z"})
}

fn with(field: &str, value: &Value) -> Value {
    let mut event = event();
    event[field] = value.clone();
    event
}

fn check(message: &Value, expected: bool) {
    let (schema, shown) = (schema(), message.to_string());
    let shown = shown.get(..300).unwrap_or(&shown);
    assert_eq!(is_read(message), expected, "read_message: {shown}");
    assert_eq!(allows(&schema, &schema, message), expected, "events/usage-message.schema.json: {shown}");
}

#[test]
fn the_schema_allows_every_sample_message_and_no_other_sample() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../events");
    let mut messages = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let sample: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        check(&sample, false);
        // Records of a table's stream have no body.
        let records = sample["Records"].as_array().into_iter().flatten();
        for record in records.filter(|record| record["body"].is_string()) {
            let of_usage = record["eventSourceARN"].as_str().unwrap().ends_with("-usage");
            check(&serde_json::from_str(record["body"].as_str().unwrap()).unwrap(), of_usage);
            messages += usize::from(of_usage);
        }
    }
    assert_eq!(messages, 2, "usage.json and usage-batch.json");
}

#[test]
fn the_schema_and_the_reader_agree_at_every_limit() {
    let text = |chars: usize| json!("ü".repeat(chars));
    let units = |count: usize| (0..count).map(|at| (format!("unit_{at}"), json!(1))).collect::<Value>();
    let last_second = 253_402_300_799_i64;
    for (field, good, bad) in [
        ("request_id", vec![text(1), text(128)], vec![text(0), text(129), json!(7), json!(null)]),
        ("user_id", vec![text(1), text(128)], vec![text(0), text(129), json!(7), json!(null)]),
        ("endpoint", vec![text(0), text(1_024)], vec![text(1_025), json!(7), json!(null)]),
        (
            "tokens_in",
            vec![json!(0), json!(MAX_QUANTITY)],
            vec![json!(MAX_QUANTITY + 1), json!(-1), json!(1.5), json!("7"), json!(null)],
        ),
        (
            "tokens_out",
            vec![json!(0), json!(MAX_QUANTITY)],
            vec![json!(u64::MAX), json!(-1), json!(1.5), json!("7"), json!(null)],
        ),
        ("success", vec![json!(true), json!(false)], vec![json!("true"), json!(1), json!(null)]),
        (
            "timestamp",
            vec![json!("2026-11-22T12:00:00.123+01:00"), json!(1_795_348_800), json!(last_second), json!(-last_second)],
            vec![
                json!("yesterday"),
                json!("2026-11-22"),
                json!(last_second + 1),
                json!(-last_second - 1),
                json!(0.5),
                json!(null),
            ],
        ),
        ("model", vec![text(0), text(256), json!(null)], vec![text(257), json!(7)]),
        ("outcome", vec![text(0), text(256), json!(null)], vec![text(257), json!(7)]),
        ("tokens_cached", vec![json!(0), json!(MAX_QUANTITY), json!(null)], vec![json!(MAX_QUANTITY + 1), json!(-1), json!("7")]),
        ("attempt", vec![json!(0), json!(MAX_QUANTITY), json!(null)], vec![json!(MAX_QUANTITY + 1), json!(-1), json!("7")]),
        (
            "units",
            vec![units(0), units(50), json!({"u".repeat(64): MAX_QUANTITY}), json!(null)],
            vec![
                units(51),
                json!({"": 1}),
                json!({"u".repeat(65): 1}),
                json!({"images": -1}),
                json!({"images": null}),
                json!([]),
            ],
        ),
        ("team", vec![json!("blue"), json!({"a": [1]}), json!("x".repeat(9_000))], vec![]),
        ("events", vec![json!([]), json!([7])], vec![]),
        ("recount", vec![json!({"user_id": "ada"})], vec![]),
    ] {
        for (values, expected) in [(good, true), (bad, false)] {
            for value in values {
                check(&with(field, &value), expected);
                check(&json!({"events": [event(), with(field, &value)]}), expected);
            }
        }
        let mut without = event();
        let required = without.as_object_mut().unwrap().remove(field).is_some();
        check(&without, !required);
    }
}

#[test]
fn the_schema_and_the_reader_agree_on_what_is_no_message() {
    let events = |count: usize| json!({"events": vec![event(); count]});
    check(&events(0), true);
    check(&events(MAX_EVENTS_PER_MESSAGE), true);
    check(&events(MAX_EVENTS_PER_MESSAGE + 1), false);
    check(&json!({"events": [], "batch": 7}), true);
    check(&json!({"events": [], "request_id": "req_1"}), false);
    for message in [json!({}), json!([]), json!([event()]), json!("event"), json!(7), json!(null), json!({"events": {}})] {
        check(&message, false);
    }
    // Our own message is none for services to send.
    check(&json!({"recount": {"user_id": "ada"}}), false);
}

#[test]
fn a_whole_number_with_a_fraction_is_refused_although_the_schema_cannot_say_so() {
    let (schema, message) = (schema(), with("tokens_in", &json!(7.0)));
    assert!(!is_read(&message) && allows(&schema, &schema, &message));
}

#[test]
fn the_schema_describes_every_field() {
    let schema = schema();
    for (field, says) in schema["$defs"]["event"]["properties"].as_object().unwrap() {
        assert!(says["description"].as_str().is_some_and(|text| text.ends_with('.')), "describe {field}");
    }
}
