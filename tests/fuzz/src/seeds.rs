//! What the targets begin with: the samples in `events/`, read when they are needed, and items made by the product's own code.

use std::{fs, path::Path};

use serde::Serialize;
use serde_json::{Value, json};
use tokentill::domain::{
    account::Account,
    counting::{self, Intake},
    price_list::PriceList,
    report::Book,
    usage::{self, Message},
};

use crate::targets::NOW;

/// The inputs that a target begins with.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "signature" => {
            let shapes = ["t=1795348800,v1={A}", "v1={C},t=1795348500,v0=x,v1={B}", "t=1795349100, v1={A},v1={B}"];
            let shapes = shapes.map(|header| (header.to_owned(), b"{}".to_vec()));
            let all = webhooks().into_iter().chain(shapes);
            all.map(|(header, body)| [header.as_bytes(), b"\n", body.as_slice()].concat()).collect()
        }
        "envelope" => webhooks().into_iter().map(|(_, body)| body).collect(),
        "usage_message" => messages(),
        "price_list" => price_lists(),
        "stored_item" => items(),
        other => panic!("there is no target {other}"),
    }
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn samples() -> Vec<Value> {
    let mut paths: Vec<_> = fs::read_dir(root().join("events")).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.iter().map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap()).collect()
}

/// The signatures and bodies of what Stripe posts.
fn webhooks() -> Vec<(String, Vec<u8>)> {
    let signed = |sample: Value| {
        let header = sample["headers"]["stripe-signature"].as_str()?.to_owned();
        let body = sample["body"].as_str()?;
        let is_base64 = sample["isBase64Encoded"].as_bool().unwrap_or(false);
        // What the gateway encoded is a body like any other here; decoding it is the HTTP library's business.
        (!is_base64).then(|| (header, body.as_bytes().to_vec()))
    };
    let found: Vec<_> = samples().into_iter().filter_map(signed).collect();
    assert!(found.len() >= 3, "the samples have {} webhooks", found.len());
    found
}

fn messages() -> Vec<Vec<u8>> {
    let bodies = |sample: Value| {
        let records = sample["Records"].as_array().cloned().unwrap_or_default();
        records.into_iter().filter(|record| record["eventSourceARN"].as_str().is_some_and(|queue| queue.ends_with("usage")))
    };
    let mut found: Vec<_> =
        samples().into_iter().flat_map(bodies).filter_map(|record| Some(record["body"].as_str()?.as_bytes().to_vec())).collect();
    assert!(found.len() >= 2, "the samples have {} usage messages", found.len());
    found.push(br#"{"recount":{"user_id":"ada"}}"#.to_vec());
    found
}

fn price_lists() -> Vec<Vec<u8>> {
    let shipped = fs::read_to_string(root().join("shared/price-list.toml")).unwrap();
    let bare: Vec<&str> = shipped.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let bare = bare.join("\n");
    let reduced = bare.replacen(
        "when_unreachable = \"open\"",
        "when_unreachable = \"open\"\ngrace = { requests_per_minute = 60, quotas = { requests = 5 } }\nquotas = { requests = 9 }",
        1,
    );
    assert_ne!(reduced, bare);
    vec![bare.into_bytes(), reduced.into_bytes()]
}

fn items() -> Vec<Vec<u8>> {
    let account: Account = serde_json::from_value(json!({
        "user_id": "ada", "version": 7, "customer_id": "cus_1",
        "subscription": {
            "id": "sub_1", "status": "past_due", "plan": "pro", "trial_end": 1_792_000_000, "cancel_at": 1_797_000_000,
            "ended_at": null, "flexible": true,
        },
        "overdue": {"in_1": {"since": 1_795_300_000}},
        "segments": [
            {
                "subscription": "sub_1", "customer": "cus_1", "plan": "pro", "billed": ["requests"], "start": 1_792_000_000,
                "end": 1_794_700_000, "renews": null, "is_trial": true,
            },
            {
                "subscription": "sub_1", "customer": "cus_1", "plan": null, "billed": ["requests", "tokens_in"],
                "start": 1_794_700_000, "end": 1_797_300_000,
                "renews": {"anchor": 1_792_000_000, "interval": "month", "count": 1},
            },
        ],
        "final_through": {"sub_1": 1_794_700_000}, "paused_by": "final_payment_failure", "paid_until": 1_796_000_000,
        "clock_offset_secs": 60, "fetched_at_ms": 1_795_348_800_000_u64,
        "announced": {"state": "grace", "plan": "pro", "reminders": 1, "ending_at": 1_797_000_000}, "told_at": 1_795_340_000,
        "trial_end_told": 1_792_000_000, "refused_claimants": ["cus_2"],
    }))
    .unwrap();
    let mut ended = account.clone();
    ended.subscription = ended.subscription.map(|kept| {
        let ended_at = Some(NOW.moment());
        tokentill::domain::account::Subscription { status: tokentill::domain::facts::Status::Canceled, ended_at, ..kept }
    });
    ended.overdue.clear();

    let prices = PriceList::shipped().unwrap();
    let intake = Intake { received_at_ms: NOW.moment().as_secs() * 1_000, written_by: "one".to_owned(), retention_days: 400 };
    let mut rows = Vec::new();
    for message in messages() {
        let Ok(Message::Events(events)) = usage::read_message(std::str::from_utf8(&message).unwrap()) else { continue };
        for event in events.into_iter().flatten().take(2) {
            let at = counting::moment(&event, Some(&account), intake.received_at_ms).unwrap();
            rows.push(counting::judge(&event, at, Some(&account), &prices, &intake));
        }
    }
    let book: Book = serde_json::from_value(json!({
        "version": 3,
        "meters": {"requests": {
            "reported": 5, "quarantined": 1, "last_minute": 1_795_340_000, "confirmed_in_last_minute": 2,
            "intent": {
                "customer": "cus_1", "event_name": "requests", "identifier": "id-1", "quantity": 3, "minute": 1_795_340_040,
                "confirmed_before": 2, "first_attempt_at": 1_795_340_050,
            },
        }},
        "rejected": {"requests": 1}, "replayed": {"requests": 1}, "due_at": 1_795_350_000,
        "carried_in": {"requests": {"2026-10-01/x": 4}}, "carried_out": {"requests": 1},
    }))
    .unwrap();
    let outbox = samples().into_iter().find_map(|sample| {
        let image = sample["Records"][0]["dynamodb"]["NewImage"].as_object()?;
        Some(image.iter().map(|(name, value)| (name.clone(), plain(value))).collect::<Value>())
    });
    let billing = rows.iter().find_map(|judged| judged.billing.clone()).expect("a sample event is billed");

    let mut seeds = vec![item(b'a', &account), item(b'a', &ended), item(b'b', &book)];
    seeds.extend(rows.iter().map(|judged| item(b'r', &judged.row)));
    seeds.push(item(
        b'c',
        &json!({
            "customer_id": "cus_1", "version": 2, "standing": "joined", "user_id": "ada", "seen_at_ms": 1_795_348_800_000_u64,
            "seen_before_ms": 0, "failures": {"in_1": 1_795_300_000}, "untold": {"ch_1": {
                "charge_id": "ch_1", "dispute_id": null, "status": "refunded", "amount_minor": 5, "currency": "usd",
            }},
            "unfailed": {"fetched_at_ms": 5, "invoices": ["in_2"]},
        }),
    ));
    seeds.push(item(b't', &json!({
        "user_id": "ada", "tally_key": "2026-11-22/4:free/00", "billing": billing, "counted:requests": 12, "counted:tokens_in": 9,
        "counted_at_hour": "2026-11-22T12:00:00Z", "segment_end": 1_797_300_000,
    })));
    seeds.push(item(b'g', &json!({"user_id": "ada", "m:1795348800": 3, "s:4:free/10:1793491200": 90, "expires_at": 5})));
    seeds.push(item(
        b'm',
        &json!({
            "name": "reporter", "settled_through": 1_795_345_200, "full_run_at": 1_795_348_000, "table_ids": ["one", "two"],
            "hold": {"since": 1_795_348_000, "compared_through": "ada", "differences": 1}, "version": 3,
        }),
    ));
    seeds.push(item(b'o', &outbox.expect("a sample has an item")));
    seeds
}

/// An item as plain JSON, after a letter that says what it is.
fn item(kind: u8, value: &impl Serialize) -> Vec<u8> {
    [&[kind], serde_json::to_string(value).unwrap().as_bytes()].concat()
}

/// An attribute of the stream's record as plain JSON.
fn plain(attribute: &Value) -> Value {
    match attribute.as_object().and_then(|typed| typed.iter().next()) {
        Some((kind, Value::String(digits))) if kind == "N" => serde_json::from_str(digits).unwrap(),
        Some((kind, Value::String(text))) if kind == "S" => json!(text),
        Some((kind, _)) if kind == "NULL" => Value::Null,
        other => panic!("the sample holds {other:?}"),
    }
}
