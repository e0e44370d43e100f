//! A thousand calls of an AI service, with everything that goes wrong on the way to a bill.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

/// Calls that went well at once; the first of them are the earliest.
const PLAIN: u64 = 800;
/// Of these, calls that were reported twice.
const DOUBLED: u64 = 60;
/// Of these, after the doubled ones, calls that are reported long after they were made.
const DELAYED: u64 = 100;
/// Calls that failed and were given up.
const FAILED: u64 = 40;
/// Calls that failed and went well when they were tried again.
const RETRIED: u64 = 50;

/// What is sent in one go.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Bodies of SQS messages: most of one usage event, one of many.
    pub(super) bodies: Vec<String>,
    /// How many calls that are, repetitions included.
    pub(super) events: usize,
    /// What is billable, by meter, once this has come in.
    pub(super) billable: Billable,
}

/// Quantities by meter.
pub(super) type Billable = BTreeMap<&'static str, u64>;

/// The thousand calls of one user, spread over `span_secs` from `start` on: most of them, and then what comes late. That is of
/// moments before others that came in, and so are the repetitions of what came in before.
pub(super) fn a_thousand(user_id: &str, start: Timestamp, span_secs: u64) -> [Part; 2] {
    // Always the same thousand: a demo that fails can be looked at again.
    let mut chance = fastrand::Rng::with_seed(1_000);
    let (mut first, mut late) = (Vec::new(), Vec::new());
    let mut billable_first = Billable::from([("requests", 0), ("tokens_in", 0), ("tokens_out", 0)]);
    let mut billable = billable_first.clone();
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
        let gave_up = failed_first && number < PLAIN.saturating_add(FAILED);
        if failed_first {
            let then = if gave_up && number.is_multiple_of(4) { &mut late } else { &mut first };
            then.push(call(false, 1));
        }
        if gave_up {
            continue;
        }
        let is_delayed = (DOUBLED..DOUBLED.saturating_add(DELAYED)).contains(&number);
        // Every second retry goes well only after the rest of its hour was billed.
        let is_late = is_delayed || failed_first && number.is_multiple_of(2);
        let then = if is_late { &mut late } else { &mut first };
        then.push(call(true, if failed_first { 2 } else { 1 }));
        if number < DOUBLED {
            // Half of the repetitions meet the first report in a batch, the others one that is billed already.
            let then = if number.is_multiple_of(2) { &mut late } else { &mut first };
            then.push(call(true, 1));
        }
        let totals = [Some(&mut billable), (!is_late).then_some(&mut billable_first)];
        for totals in totals.into_iter().flatten() {
            for (meter, quantity) in [("requests", 1), ("tokens_in", tokens_in), ("tokens_out", tokens_out)] {
                let total = totals.entry(meter).or_insert(0);
                *total = total.saturating_add(quantity);
            }
        }
    }
    chance.shuffle(&mut first);
    chance.shuffle(&mut late);
    [part(first, billable_first), part(late, billable)]
}

/// Calls that are of one second, each with the same quantities: 100 tokens in, 10 out.
pub(super) fn a_few(user_id: &str, at: Timestamp, calls: u64) -> Part {
    let call = |number: u64| {
        json!({
            "request_id": format!("req_last_{number}"), "user_id": user_id, "endpoint": "/v1/summarise", "tokens_in": 100,
            "tokens_out": 10, "success": true, "timestamp": at.to_string(),
        })
    };
    let billable = [("requests", 1), ("tokens_in", 100), ("tokens_out", 10)];
    let billable = billable.map(|(meter, quantity): (_, u64)| (meter, quantity.saturating_mul(calls)));
    part((0..calls).map(call).collect(), Billable::from(billable))
}

fn part(mut events: Vec<Value>, billable: Billable) -> Part {
    let count = events.len();
    // Some come together in one message.
    let together = events.split_off(count.saturating_sub(50));
    let mut bodies: Vec<String> = events.iter().map(Value::to_string).collect();
    bodies.push(json!({ "events": together }).to_string());
    Part { bodies, events: count, billable }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn events(part: &Part) -> Vec<Value> {
        let mut events = Vec::new();
        for body in &part.bodies {
            let body: Value = serde_json::from_str(body).unwrap();
            match body.get("events") {
                Some(many) => events.extend(many.as_array().unwrap().clone()),
                None => events.push(body),
            }
        }
        assert_eq!(events.len(), part.events);
        events
    }

    /// Counted once more, another way: the distinct requests that went well at least once.
    fn good(events: &[Value]) -> BTreeSet<(String, u64)> {
        let good = events.iter().filter(|event| event["success"] == true);
        good.map(|event| (event["request_id"].to_string(), event["tokens_in"].as_u64().unwrap())).collect()
    }

    fn second(event: &Value) -> i64 {
        let timestamp = &event["timestamp"];
        timestamp.as_i64().unwrap_or_else(|| timestamp.as_str().unwrap().parse::<Timestamp>().unwrap().as_second())
    }

    #[test]
    fn a_thousand_reports_of_which_850_are_billable_and_a_part_comes_late_and_out_of_order() {
        let [first, late] = a_thousand("ada", Timestamp::from_second(1_800_000_000).unwrap(), 3_000);
        let (first_events, late_events) = (events(&first), events(&late));
        assert_eq!(first.events + late.events, 1_000);
        assert_eq!(late.billable["requests"], PLAIN + RETRIED);
        let all: Vec<Value> = first_events.iter().chain(&late_events).cloned().collect();
        for (events, billable) in [(&first_events, &first.billable), (&all, &late.billable)] {
            let good = good(events);
            assert_eq!(u64::try_from(good.len()).unwrap(), billable["requests"]);
            assert_eq!(good.iter().map(|(_, tokens)| tokens).sum::<u64>(), billable["tokens_in"]);
        }
        assert!(all.iter().any(|event| event["success"] == false));

        // What comes late: new requests of moments before most others, and repetitions of what came before.
        let newest = first_events.iter().map(second).max().unwrap();
        let (known, new): (Vec<_>, Vec<_>) = good(&late_events).into_iter().partition(|call| good(&first_events).contains(call));
        assert_eq!((known.len(), new.len()), (30, 125));
        let early = late_events.iter().filter(|event| second(event) + 2_000 < newest).count();
        assert!(early >= 130, "{early} of {}", late.events);
        // Neither part is in order.
        for events in [&first_events, &late_events] {
            assert!(!events.is_sorted_by_key(second));
        }
    }
}
