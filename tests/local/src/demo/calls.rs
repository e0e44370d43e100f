//! A thousand calls of an AI service, with everything that goes wrong on the way to a bill.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Calls that went well and were reported once.
const PLAIN: u64 = 800;
/// Calls that went well and were reported twice.
const DOUBLED: u64 = 60;
/// Calls that failed and were given up.
const FAILED: u64 = 40;
/// Calls that failed and went well when they were tried again.
const RETRIED: u64 = 50;

/// What is sent, and what it has to come to.
#[derive(Debug, Clone)]
pub(super) struct Calls {
    /// Bodies of SQS messages: most of one usage event, one of many.
    pub(super) bodies: Vec<String>,
    /// What is billable, by meter.
    pub(super) billable: BTreeMap<&'static str, u64>,
}

/// The calls of one user, spread over `span_secs` from `start` on.
pub(super) fn a_thousand(user_id: &str, start: Timestamp, span_secs: u64) -> Calls {
    // Always the same thousand: a demo that fails can be looked at again.
    let mut chance = fastrand::Rng::with_seed(1_000);
    let mut events = Vec::new();
    let mut billable = BTreeMap::from([("requests", 0), ("tokens_in", 0), ("tokens_out", 0)]);
    let requests = PLAIN.saturating_add(FAILED).saturating_add(RETRIED);
    for number in 0..requests {
        let tokens_in = chance.u64(1..2_000);
        let tokens_out = chance.u64(0..800);
        let after_secs = i64::try_from(number.saturating_mul(span_secs).checked_div(requests).unwrap_or(0)).unwrap_or(0);
        let at = Timestamp::from_second(start.as_second().saturating_add(after_secs)).unwrap_or(start);
        let call = |success: bool, attempt: u64| {
            // Both of the contract's ways to write a moment.
            let timestamp = if number.is_multiple_of(2) { json!(at.to_string()) } else { json!(at.as_second()) };
            json!({
                "request_id": format!("req_{number:04}"), "user_id": user_id, "endpoint": "/v1/summarise", "model": "large",
                "tokens_in": tokens_in, "tokens_out": tokens_out, "success": success, "timestamp": timestamp, "attempt": attempt,
            })
        };
        let failed_first = number >= PLAIN;
        if failed_first {
            events.push(call(false, 1));
        }
        let gave_up = failed_first && number < PLAIN.saturating_add(FAILED);
        if gave_up {
            continue;
        }
        events.push(call(true, if failed_first { 2 } else { 1 }));
        if number < DOUBLED {
            events.push(call(true, 1));
        }
        for (meter, quantity) in [("requests", 1), ("tokens_in", tokens_in), ("tokens_out", tokens_out)] {
            let total = billable.entry(meter).or_insert(0_u64);
            *total = total.saturating_add(quantity);
        }
    }
    chance.shuffle(&mut events);
    let together = events.split_off(events.len().saturating_sub(100));
    let mut bodies: Vec<String> = events.iter().map(Value::to_string).collect();
    bodies.push(json!({ "events": together }).to_string());
    Calls { bodies, billable }
}

impl Calls {
    /// How many calls are reported, repetitions included.
    pub(super) fn reported(&self) -> usize {
        // All bodies but the last hold one event; the last holds a hundred.
        self.bodies.len().saturating_sub(1).saturating_add(100)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_thousand_reports_of_which_850_are_billable() {
        let calls = a_thousand("ada", Timestamp::from_second(1_800_000_000).unwrap(), 3_000);
        assert_eq!(calls.reported(), 1_000);
        assert_eq!(calls.billable["requests"], PLAIN + RETRIED);

        // Counted once more, another way: the distinct requests that went well at least once.
        let mut events = Vec::new();
        for body in &calls.bodies {
            let body: Value = serde_json::from_str(body).unwrap();
            match body.get("events") {
                Some(many) => events.extend(many.as_array().unwrap().clone()),
                None => events.push(body),
            }
        }
        assert_eq!(events.len(), 1_000);
        let good: BTreeSet<(String, u64)> = events
            .iter()
            .filter(|event| event["success"] == true)
            .map(|event| (event["request_id"].to_string(), event["tokens_in"].as_u64().unwrap()))
            .collect();
        assert_eq!(u64::try_from(good.len()).unwrap(), calls.billable["requests"]);
        assert_eq!(good.iter().map(|(_, tokens)| tokens).sum::<u64>(), calls.billable["tokens_in"]);
        assert!(events.iter().any(|event| event["success"] == false));
    }
}
