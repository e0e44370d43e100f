//! Usage events as AI services report them: one call each (the contract, 3.2).

use std::{cell::LazyCell, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::{
    Map, Value,
    value::{RawValue, to_raw_value},
};

use super::{
    id::{InvalidId, RequestId, UserId},
    price_list::Counts,
    time::EpochSecs,
};

/// The most events one message may hold.
pub const MAX_EVENTS_PER_MESSAGE: usize = 1_000;
/// The greatest quantity of anything in one event: 15 digits, which is also the most a Stripe meter event takes.
pub const MAX_QUANTITY: u64 = 999_999_999_999_999;
/// How much of the fields we do not know is kept in the audit, in bytes of JSON.
pub const MAX_EXTRA_BYTES: usize = 8_192;
const MAX_ENDPOINT_CHARS: usize = 1_024;
const MAX_WORD_CHARS: usize = 256;
const MAX_UNITS: usize = 50;
const MAX_UNIT_NAME_CHARS: usize = 64;

/// One call of an AI service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageEvent {
    /// The request it served.
    pub request_id: RequestId,
    /// Who made it.
    pub user_id: UserId,
    /// Which endpoint of the service was called.
    pub endpoint: String,
    /// Which model answered.
    pub model: Option<String>,
    /// How much was used.
    pub quantities: Quantities,
    /// Whether the call succeeded. A failed one is audited and never billed.
    pub success: bool,
    /// When the call was made, as reported.
    pub timestamp: EpochSecs,
    /// Which attempt of the request it was.
    pub attempt: Option<u64>,
    /// The service's own word for what came of it.
    pub outcome: Option<String>,
    /// The fields we do not know, as JSON.
    pub extra: Option<String>,
    /// Whether those fields were too many to keep.
    pub extra_cut: bool,
}

/// What one call used. Two reports of one request agree if these are equal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Quantities {
    /// Tokens read.
    pub tokens_in: u64,
    /// Tokens written.
    pub tokens_out: u64,
    /// Tokens served from a cache.
    #[serde(default)]
    pub tokens_cached: u64,
    /// Further units by name.
    #[serde(default)]
    pub units: BTreeMap<String, u64>,
}

impl Quantities {
    /// How much of it a meter counts.
    #[must_use]
    pub fn counted_by(&self, counts: &Counts) -> u64 {
        match counts {
            Counts::Requests => 1,
            Counts::TokensIn => self.tokens_in,
            Counts::TokensOut => self.tokens_out,
            Counts::TokensCached => self.tokens_cached,
            Counts::Unit(name) => self.units.get(name).copied().unwrap_or(0),
        }
    }
}

impl UsageEvent {
    /// The event as JSON in the form it is reported in, so that it can be replayed.
    #[must_use]
    pub fn to_json(&self) -> String {
        let extra = self.extra.as_deref().map(serde_json::from_str);
        let mut fields: BTreeMap<String, Box<RawValue>> = extra.and_then(Result::ok).unwrap_or_default();
        // A value can always be written.
        let mut set = |field: &str, value: Value| to_raw_value(&value).map(|text| fields.insert(field.to_owned(), text)).ok();
        set("request_id", self.request_id.as_str().into());
        set("user_id", self.user_id.as_str().into());
        set("endpoint", self.endpoint.as_str().into());
        set("tokens_in", self.quantities.tokens_in.into());
        set("tokens_out", self.quantities.tokens_out.into());
        set("tokens_cached", self.quantities.tokens_cached.into());
        set("units", self.quantities.units.iter().map(|(name, quantity)| (name.clone(), Value::from(*quantity))).collect());
        set("success", self.success.into());
        set("timestamp", self.timestamp.to_string().into());
        set("model", self.model.clone().into());
        set("attempt", self.attempt.into());
        set("outcome", self.outcome.clone().into());
        serde_json::to_string(&fields).unwrap_or_default()
    }
}

/// Why something that came in is no usage event. The text names the field and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The message is not JSON.
    #[error("the message body is not JSON")]
    NotJson,
    /// The message is JSON, but neither an event nor `{"events":[…]}`.
    #[error("the message body is neither a usage event nor {{\"events\":[…]}}")]
    NotAnEvent,
    /// The message asks for a recount without saying whose.
    #[error("the message body is no recount; that is {{\"recount\":{{\"user_id\":\"…\"}}}}")]
    NotARecount,
    /// The message has too many events.
    #[error("the message has more than {MAX_EVENTS_PER_MESSAGE} events; send several messages")]
    TooManyEvents,
    /// A required field is not there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field is of the wrong type or beyond its limits.
    #[error("{field}: {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An identifier is empty or too long.
    #[error(transparent)]
    Id(#[from] InvalidId),
}

/// One entry of a message: an event, or what is wrong with it along with the JSON it came as.
pub type Entry = Result<UsageEvent, (Invalid, String)>;

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Usage events, or what is wrong with them.
    Events(Vec<Entry>),
    /// Our own message: what is parked of this user is to be looked at again, now that more is known of the user.
    Recount(UserId),
}

/// Reads a message: one event, `{"events":[…]}` with up to 1,000 of them, or `{"recount":{"user_id":"…"}}`. One bad event never
/// harms another. What has a `request_id` is an event of its own, whatever fields of other names it has.
///
/// # Errors
/// [`Invalid`] if the message as a whole cannot be read.
pub fn read_message(body: &str) -> Result<Message, Invalid> {
    let value: Value = serde_json::from_str(body).map_err(|_| Invalid::NotJson)?;
    let Value::Object(mut object) = value else { return Err(Invalid::NotAnEvent) };
    if object.contains_key("request_id") {
        return Ok(Message::Events(vec![read_alone(&object, body)]));
    }
    match (object.remove("events"), object.get("recount")) {
        (Some(Value::Array(events)), _) if events.len() > MAX_EVENTS_PER_MESSAGE => Err(Invalid::TooManyEvents),
        (Some(Value::Array(events)), _) => Ok(Message::Events(read_batch(&events, body))),
        (Some(_), _) => Err(Invalid::NotAnEvent),
        (None, Some(recount)) => {
            let user_id = recount.get("user_id").and_then(Value::as_str).ok_or(Invalid::NotARecount)?;
            Ok(Message::Recount(UserId::new(user_id)?))
        }
        (None, None) => Ok(Message::Events(vec![read_alone(&object, body)])),
    }
}

/// A message that asks for a recount.
#[must_use]
pub fn recount_message(user_id: &UserId) -> String {
    serde_json::json!({"recount": {"user_id": user_id}}).to_string()
}

fn read_alone(object: &Map<String, Value>, body: &str) -> Entry {
    read_event(object, || body.trim().to_owned()).map_err(|invalid| (invalid, body.trim().to_owned()))
}

fn read_batch(events: &[Value], body: &str) -> Vec<Entry> {
    let texts = LazyCell::new(|| texts_of(body));
    let entry = |(place, event): (usize, &Value)| {
        let text = || texts.get(place).map_or_else(|| event.to_string(), |text| text.get().to_owned());
        let read = event.as_object().ok_or(Invalid::NotAnEvent).and_then(|object| read_event(object, text));
        read.map_err(|invalid| (invalid, text()))
    };
    events.iter().enumerate().map(entry).collect()
}

/// The events of a message letter by letter: written anew, a number that no `f64` holds would be another one. None of a message that
/// names `events` twice.
fn texts_of(body: &str) -> Vec<&RawValue> {
    #[derive(Deserialize)]
    struct Batch<'a> {
        #[serde(borrow)]
        events: Vec<&'a RawValue>,
    }
    serde_json::from_str::<Batch<'_>>(body).map(|batch| batch.events).unwrap_or_default()
}

/// The fields of an event that we know.
const FIELDS: [&str; 12] = [
    "request_id",
    "user_id",
    "endpoint",
    "tokens_in",
    "tokens_out",
    "success",
    "timestamp",
    "model",
    "tokens_cached",
    "units",
    "attempt",
    "outcome",
];

/// An event's fields that we do not know, each letter by letter, or written anew where only that is short enough. `None` if they are
/// too many.
fn unknown_fields(object: &Map<String, Value>, text: &str) -> Option<String> {
    let mut as_sent: BTreeMap<String, &RawValue> = serde_json::from_str(text).unwrap_or_default();
    as_sent.retain(|field, _| is_kept(field));
    let as_sent = serde_json::to_string(&as_sent).ok().filter(|extra| extra.len() <= MAX_EXTRA_BYTES);
    as_sent.or_else(|| {
        let anew: BTreeMap<&String, &Value> = object.iter().filter(|(field, _)| is_kept(field)).collect();
        serde_json::to_string(&anew).ok().filter(|extra| extra.len() <= MAX_EXTRA_BYTES)
    })
}

/// Whether a field is kept as one that we do not know. Of one name `serde_json` reads no object as such again.
fn is_kept(field: &str) -> bool {
    !FIELDS.contains(&field) && field != "$serde_json::private::RawValue"
}

/// Reads an event. Its text is asked for only if it has fields that we do not know.
fn read_event(object: &Map<String, Value>, text: impl FnOnce() -> String) -> Result<UsageEvent, Invalid> {
    let get = |field: &str| object.get(field).filter(|value| !value.is_null());
    let request_id = RequestId::new(required_text(get("request_id"), "request_id")?)?;
    let user_id = UserId::new(required_text(get("user_id"), "user_id")?)?;
    let endpoint = short(required_text(get("endpoint"), "endpoint")?, "endpoint", MAX_ENDPOINT_CHARS)?.to_owned();
    let tokens_in = quantity(get("tokens_in").ok_or(Invalid::Missing("tokens_in"))?, "tokens_in")?;
    let tokens_out = quantity(get("tokens_out").ok_or(Invalid::Missing("tokens_out"))?, "tokens_out")?;
    let success = match get("success").ok_or(Invalid::Missing("success"))? {
        Value::Bool(success) => *success,
        _ => return Err(Invalid::Field { field: "success", problem: "must be true or false" }),
    };
    let timestamp = timestamp(get("timestamp").ok_or(Invalid::Missing("timestamp"))?)?;
    let model = optional_text(get("model"), "model")?;
    let tokens_cached = get("tokens_cached").map_or(Ok(0), |value| quantity(value, "tokens_cached"))?;
    let units = get("units").map_or(Ok(BTreeMap::new()), units)?;
    let attempt = get("attempt").map(|value| quantity(value, "attempt")).transpose()?;
    let outcome = optional_text(get("outcome"), "outcome")?;

    let has_unknown = object.keys().any(|field| is_kept(field));
    let extra = if has_unknown { unknown_fields(object, &text()) } else { None };
    let extra_cut = has_unknown && extra.is_none();
    Ok(UsageEvent {
        request_id,
        user_id,
        endpoint,
        model,
        quantities: Quantities { tokens_in, tokens_out, tokens_cached, units },
        success,
        timestamp,
        attempt,
        outcome,
        extra,
        extra_cut,
    })
}

fn required_text<'a>(value: Option<&'a Value>, field: &'static str) -> Result<&'a str, Invalid> {
    match value.ok_or(Invalid::Missing(field))? {
        Value::String(text) => Ok(text),
        _ => Err(Invalid::Field { field, problem: "must be a string" }),
    }
}

fn optional_text(value: Option<&Value>, field: &'static str) -> Result<Option<String>, Invalid> {
    let Some(value) = value else { return Ok(None) };
    required_text(Some(value), field).and_then(|text| short(text, field, MAX_WORD_CHARS)).map(|text| Some(text.to_owned()))
}

fn short<'a>(text: &'a str, field: &'static str, max_chars: usize) -> Result<&'a str, Invalid> {
    if text.len() > max_chars && text.chars().count() > max_chars {
        return Err(Invalid::Field { field, problem: "is too long" });
    }
    Ok(text)
}

fn quantity(value: &Value, field: &'static str) -> Result<u64, Invalid> {
    match value.as_u64() {
        Some(quantity) if quantity <= MAX_QUANTITY => Ok(quantity),
        Some(_) => Err(Invalid::Field { field, problem: "has more than 15 digits" }),
        None => Err(Invalid::Field { field, problem: "must be a whole number, 0 or more" }),
    }
}

fn units(value: &Value) -> Result<BTreeMap<String, u64>, Invalid> {
    let Value::Object(object) = value else {
        return Err(Invalid::Field { field: "units", problem: "must be an object of whole numbers" });
    };
    if object.len() > MAX_UNITS {
        return Err(Invalid::Field { field: "units", problem: "has more than 50 entries" });
    }
    let unit = |(name, value): (&String, &Value)| {
        if name.is_empty() {
            return Err(Invalid::Field { field: "units", problem: "has a unit without a name" });
        }
        Ok((short(name, "units", MAX_UNIT_NAME_CHARS)?.to_owned(), quantity(value, "units")?))
    };
    object.iter().map(unit).collect()
}

fn timestamp(value: &Value) -> Result<EpochSecs, Invalid> {
    /// 9999-12-31T23:59:59Z; what is beyond is most likely milliseconds.
    const LAST_SECOND: i64 = 253_402_300_799;
    let wrong = |problem| Invalid::Field { field: "timestamp", problem };
    match value {
        Value::String(text) => EpochSecs::parse_rfc3339(text).ok_or_else(|| wrong("must be RFC 3339, as 2026-11-22T12:00:00Z")),
        number => match number.as_i64() {
            Some(secs) if (-LAST_SECOND..=LAST_SECOND).contains(&secs) => Ok(EpochSecs::new(secs)),
            Some(_) => Err(wrong("must be in seconds; this looks like milliseconds")),
            None => Err(wrong("must be RFC 3339 or whole Unix seconds")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    const GOOD: &str = r#"{"request_id":"req_1","user_id":"ada","endpoint":"/v1/x","tokens_in":812,"tokens_out":240,"success":true,"timestamp":"2026-11-22T12:00:00Z"}"#;

    fn with(field: &str, value: &str) -> String {
        let mut event: Value = serde_json::from_str(GOOD).unwrap();
        event[field] = serde_json::from_str(value).unwrap_or(Value::Null);
        event.to_string()
    }

    fn only(body: &str) -> Entry {
        let Message::Events(mut entries) = read_message(body).unwrap() else { panic!("{body} holds no event") };
        assert_eq!(entries.len(), 1);
        entries.remove(0)
    }

    fn check(body: &str, expected: &Expect) {
        let shown = match read_message(body) {
            Err(invalid) => invalid.to_string(),
            Ok(Message::Recount(user_id)) => format!("recount of {user_id}"),
            Ok(Message::Events(entries)) => {
                let line = |entry: &Entry| match entry {
                    Ok(event) => format!("{} {}", event.request_id, event.timestamp),
                    Err((invalid, _)) => invalid.to_string(),
                };
                entries.iter().map(line).collect::<Vec<_>>().join("\n")
            }
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn one_bad_event_never_harms_another() {
        check(
            &format!(r#"{{"events":[{GOOD},7,{{}},{}]}}"#, with("timestamp", "1795348800")),
            &expect![[r#"
                req_1 2026-11-22T12:00:00Z
                the message body is neither a usage event nor {"events":[…]}
                request_id is missing
                req_1 2026-11-22T12:00:00Z"#]],
        );
    }

    /// Found by libFuzzer: a number of 31 digits was another one in the quarantine.
    #[test]
    fn what_is_refused_is_kept_letter_by_letter() {
        let refused = |body: &str| match read_message(body) {
            Ok(Message::Events(entries)) => entries.into_iter().filter_map(|entry| Some(entry.err()?.1)).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let odd = r#"{ "units": {"images": 9007199922337203685477580840993}, "a" : 1.10 }"#;
        assert_eq!(refused(&format!(" {odd}\n")), [odd]);
        assert_eq!(refused(&format!(r#"{{"events":[{GOOD}, {odd} ,7]}}"#)), [odd, "7"]);
        assert_eq!(refused(r#"{"events":[{}],"events":[{"a":1.10}]}"#), [r#"{"a":1.1}"#], "the last one counts");
    }

    #[test]
    fn what_is_no_message_is_refused_whole() {
        check("", &expect!["the message body is not JSON"]);
        check("[1]", &expect![[r#"the message body is neither a usage event nor {"events":[…]}"#]]);
        check(r#"{"events":7}"#, &expect![[r#"the message body is neither a usage event nor {"events":[…]}"#]]);
        let many = vec![GOOD; 1_001].join(",");
        check(&format!(r#"{{"events":[{many}]}}"#), &expect!["the message has more than 1000 events; send several messages"]);
    }

    #[test]
    fn a_recount_is_told_from_an_event_that_has_a_field_of_that_name() {
        assert_eq!(recount_message(&UserId::new("ada").unwrap()), r#"{"recount":{"user_id":"ada"}}"#);
        check(&recount_message(&UserId::new("ada \"the\" first").unwrap()), &expect![[r#"recount of ada "the" first"#]]);
        check(&with("recount", r#"{"user_id":"ada"}"#), &expect!["req_1 2026-11-22T12:00:00Z"]);
        check(&with("events", "[7]"), &expect!["req_1 2026-11-22T12:00:00Z"]);
        check(&format!(r#"{{"events":[{GOOD}],"recount":{{"user_id":"ada"}}}}"#), &expect!["req_1 2026-11-22T12:00:00Z"]);
        for body in [r#"{"recount":7}"#, r#"{"recount":{}}"#, r#"{"recount":{"user_id":7}}"#] {
            assert_eq!(read_message(body), Err(Invalid::NotARecount), "{body}");
        }
        check(r#"{"recount":{"user_id":""}}"#, &expect!["user_id is empty"]);
    }

    #[test]
    fn bad_fields_are_named_with_what_to_do() {
        for (field, value, expected) in [
            ("tokens_in", "-1", "tokens_in: must be a whole number, 0 or more"),
            ("tokens_in", "1.5", "tokens_in: must be a whole number, 0 or more"),
            ("tokens_in", "\"7\"", "tokens_in: must be a whole number, 0 or more"),
            ("tokens_in", "1e400", "tokens_in is missing"),
            ("tokens_out", "1000000000000000", "tokens_out: has more than 15 digits"),
            ("tokens_out", "18446744073709551616", "tokens_out: must be a whole number, 0 or more"),
            ("success", "\"true\"", "success: must be true or false"),
            ("timestamp", "1795348800000", "timestamp: must be in seconds; this looks like milliseconds"),
            ("timestamp", "-9223372036854775808", "timestamp: must be in seconds; this looks like milliseconds"),
            ("timestamp", "1795348800.5", "timestamp: must be RFC 3339 or whole Unix seconds"),
            ("timestamp", "\"yesterday\"", "timestamp: must be RFC 3339, as 2026-11-22T12:00:00Z"),
            ("user_id", "\"\"", "user_id is empty"),
            ("user_id", "7", "user_id: must be a string"),
            ("endpoint", "null", "endpoint is missing"),
            ("units", "{\"images\":-1}", "units: must be a whole number, 0 or more"),
            ("units", "{\"\":1}", "units: has a unit without a name"),
            ("units", "[]", "units: must be an object of whole numbers"),
        ] {
            let (invalid, raw) = only(&with(field, value)).unwrap_err();
            assert_eq!(invalid.to_string(), expected, "{field} = {value}");
            assert!(raw.contains("req_1"), "the event is kept as it came");
        }
        let long = format!("\"{}\"", "x".repeat(129));
        assert_eq!(only(&with("request_id", &long)).unwrap_err().0.to_string(), "request_id is longer than 128 characters");
    }

    #[test]
    fn optional_fields_may_be_null_and_unknown_ones_are_kept_up_to_8_kb() {
        let event = only(&with("model", "null")).unwrap();
        assert_eq!((event.model, event.extra), (None, None));
        let event = only(&with("team", "\"blue\"")).unwrap();
        assert_eq!((event.extra.as_deref(), event.extra_cut), (Some(r#"{"team":"blue"}"#), false));
        let event = only(&with("blob", &format!("\"{}\"", "x".repeat(9_000)))).unwrap();
        assert_eq!((event.extra, event.extra_cut), (None, true));
        // What is too long only as it was spelt is kept in a shorter spelling.
        let spelt = GOOD.replace("{", &format!("{{\"blob\":\"{}\",", "\\u00e9".repeat(1_500)));
        let event = only(&spelt).unwrap();
        assert_eq!((event.extra, event.extra_cut), (Some(format!("{{\"blob\":\"{}\"}}", "é".repeat(1_500))), false));
    }

    #[test]
    fn a_name_that_the_json_library_keeps_for_itself_does_no_harm() {
        let event = GOOD.replace("\"user_id\"", "\"$serde_json::private::RawValue\":7,\"user_id\"");
        let event = only(&event).unwrap();
        assert_eq!((&event.extra, event.extra_cut), (&None, false));
        assert_eq!(only(&event.to_json()), Ok(event));
    }

    #[test]
    fn unknown_fields_are_kept_letter_by_letter_and_written_so_again() {
        let unknown =
            r#"":":null,"score":1.8446744073709535e+34,"trace":340282366920938463463374607431768211455,"where":[ 1.50,{ }]"#;
        // The last of two fields of one name counts.
        let event = format!(r#"{},"trace":7,{unknown}}}"#, GOOD.trim_end_matches('}'));
        for body in [event.clone(), format!(r#"{{"events":[{GOOD},{event}]}}"#)] {
            let Ok(Message::Events(entries)) = read_message(&body) else { panic!("{body}") };
            let event = entries.last().unwrap().clone().unwrap();
            assert_eq!(event.extra.as_ref(), Some(&format!("{{{unknown}}}")));
            assert_eq!(only(&event.to_json()), Ok(event));
        }
    }

    #[test]
    fn every_limit_is_the_last_that_is_taken() {
        let text = |chars: usize| format!("\"{}\"", "é".repeat(chars));
        let units = |count: usize| {
            let units: Vec<String> = (0..count).map(|n| format!("\"u{n}\":1")).collect();
            format!("{{{}}}", units.join(","))
        };
        let unit = |chars: usize| format!("{{\"{}\":1}}", "é".repeat(chars));
        let problem = |field: &str, value: &str| only(&with(field, value)).err().map(|(invalid, _)| invalid.to_string());
        for (field, last, first_refused, expected) in [
            ("endpoint", text(1_024), text(1_025), "endpoint: is too long"),
            ("model", text(256), text(257), "model: is too long"),
            ("outcome", text(256), text(257), "outcome: is too long"),
            ("units", units(50), units(51), "units: has more than 50 entries"),
            ("units", unit(64), unit(65), "units: is too long"),
            ("tokens_in", "999999999999999".to_owned(), "1000000000000000".to_owned(), "tokens_in: has more than 15 digits"),
        ] {
            assert_eq!(problem(field, &last), None, "{field} = {last}");
            assert_eq!(problem(field, &first_refused).as_deref(), Some(expected));
        }
        // `{"blob":"…"}` is eleven bytes more than what stands in it.
        let blob = |bytes: usize| only(&with("blob", &format!("\"{}\"", "x".repeat(bytes - 11)))).unwrap();
        assert_eq!((blob(8_192).extra.map(|extra| extra.len()), blob(8_193).extra), (Some(8_192), None));
        let message = |events: usize| read_message(&format!(r#"{{"events":[{}]}}"#, vec![GOOD; events].join(",")));
        assert!(matches!(message(1_000), Ok(Message::Events(entries)) if entries.len() == 1_000));
    }

    #[test]
    fn what_is_optional_is_kept_as_it_came() {
        let event = only(&with("model", "\"claude-sonnet\"")).unwrap();
        assert_eq!((event.model.as_deref(), event.endpoint.as_str()), (Some("claude-sonnet"), "/v1/x"));
        assert_eq!(only(&with("outcome", "\"timeout\"")).unwrap().outcome.as_deref(), Some("timeout"));
        assert_eq!(only(&with("units", "{\"images\":3}")).unwrap().quantities.units, [("images".to_owned(), 3)].into());
    }

    #[test]
    fn an_event_is_replayed_as_it_came() {
        for body in [GOOD.to_owned(), with("units", "{\"images\":2}"), with("attempt", "3"), with("team", "\"blue\"")] {
            let event = only(&body).unwrap();
            assert_eq!(only(&event.to_json()), Ok(event), "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_message_panics(body in ".{0,300}") {
            let _ = read_message(&body);
        }
    }
}
