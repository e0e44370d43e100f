//! The signature header, the envelope, the usage message and the price list.

use std::collections::BTreeSet;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokentill::domain::{
    counting::{self, Intake, QuarantineReason, Verdict},
    envelope,
    hint::Hint,
    price_list::PriceList,
    signature::{self, Refused, WebhookSecrets},
    time::EpochSecs,
    usage::{self, MAX_EVENTS_PER_MESSAGE, MAX_EXTRA_BYTES, MAX_QUANTITY, Message},
};

/// The moment at which everything comes in.
pub(crate) const NOW: EpochSecsText = EpochSecsText(1_795_348_800);

/// A moment that can stand in a constant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EpochSecsText(i64);

impl EpochSecsText {
    pub(crate) fn moment(self) -> EpochSecs {
        EpochSecs::new(self.0)
    }
}

const SECRETS: [&str; 2] = ["whsec_sample", "whsec_older"];

fn mac(secret: &str, moment: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    for part in [moment.as_bytes(), b".", body] {
        mac.update(part);
    }
    hex::encode(mac.finalize().into_bytes())
}

/// A first line that is a signature's header, and a body behind it. Where the header has `{A}`, `{B}` or `{C}` stands what our first
/// secret, our second one and a stranger's make of its moment and the body.
///
/// What is accepted bears one moment, at most five minutes away, and a signature that one of our secrets made over that moment
/// and this very body. What is signed as it should be is accepted, and not once a bit of it was changed.
pub(crate) fn signature(data: &[u8]) -> bool {
    let (header, body) = match data.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &data[..0]),
    };
    let secrets = WebhookSecrets::parse(&SECRETS.join(" ")).unwrap();
    let now = NOW.moment();
    let mut is_taken = false;
    if let Ok(header) = std::str::from_utf8(header) {
        let moment = header.split(',').find_map(|part| part.trim().strip_prefix("t=")).unwrap_or_default();
        let [a, b, c] = [SECRETS[0], SECRETS[1], "whsec_stranger"].map(|secret| mac(secret, moment, body));
        let header = header.replace("{A}", &a).replace("{B}", &b.to_uppercase()).replace("{C}", &c);
        let header = header.as_str();
        is_taken = signature::verify(Some(header), body, &secrets, now).is_ok();
        if is_taken {
            let parts: Vec<(&str, &str)> = header.split(',').filter_map(|part| part.trim().split_once('=')).collect();
            let moments: Vec<&str> = parts.iter().filter(|(name, _)| *name == "t").map(|(_, moment)| *moment).collect();
            let [moment] = moments.as_slice() else { panic!("accepted with the moments {moments:?}") };
            let away = NOW.0.abs_diff(moment.parse().unwrap());
            assert!(away <= 300, "accepted {away} seconds away");
            let made = SECRETS.map(|secret| mac(secret, moment, body));
            let signed = parts.iter().any(|(name, given)| *name == "v1" && made.contains(&given.to_ascii_lowercase()));
            assert!(signed, "accepted without a signature by one of our secrets");
        }
        // A secret that is stored strangely is a secret or none; it is never a blank one.
        if let Ok(strange) = WebhookSecrets::parse(header) {
            let forged = format!("t={},v1={}", NOW.0, mac("", &NOW.0.to_string(), body));
            assert_eq!(signature::verify(Some(&forged), body, &strange, now), Err(Refused::Mismatch));
        }
    }
    let moment = NOW.0.to_string();
    let good = format!("t={moment},v0=x,v1={}", mac(SECRETS[1], &moment, data));
    assert_eq!(signature::verify(Some(&good), data, &secrets, now), Ok(()));
    if let Some(first) = data.first() {
        let mut changed = data.to_vec();
        let at = usize::from(*first) % changed.len();
        changed[at] ^= 1 << (first % 8);
        assert_eq!(signature::verify(Some(&good), &changed, &secrets, now), Err(Refused::Mismatch));
    }
    is_taken
}

/// A webhook's body. What is read as a hint has ids of bounded length and goes through the queue unchanged, and the same body is
/// the same hint whenever and in whatever mode it is read, but for what it leaves out.
pub(crate) fn envelope(data: &[u8]) -> bool {
    let now = NOW.moment();
    let Ok(hint) = envelope::read(data, now, false) else {
        assert!(envelope::read(data, now.plus_secs(1), true).is_err(), "what is no event is none in any mode");
        return false;
    };
    let queued = serde_json::to_string(&hint).unwrap();
    assert!(queued.len() < 16_384, "a hint of {} bytes", queued.len());
    assert_eq!(serde_json::from_str::<Hint>(&queued).unwrap(), hint, "a hint is read from the queue as it was put there");
    assert!(!hint.replay && !hint.swept, "what comes from outside decides neither");
    assert!(!hint.group().is_empty(), "a message of a FIFO queue has a group");
    assert!(hint.created.to_string().len() == 20, "a moment that can be written");
    let again = envelope::read(data, now.plus_secs(1), true).unwrap();
    assert_eq!(Hint { created: hint.created, livemode: hint.livemode, ..again }, hint);
    true
}

/// A usage message. What is read is within the limits, is the same once it was written as JSON and read again, and makes a row
/// that DynamoDB can hold; what is not read is kept as it came.
pub(crate) fn usage_message(data: &[u8]) -> bool {
    let Ok(body) = std::str::from_utf8(data) else { return false };
    let entries = match usage::read_message(body) {
        Ok(Message::Events(entries)) => entries,
        Ok(Message::Recount(user_id)) => {
            let again = usage::read_message(&usage::recount_message(&user_id));
            assert_eq!(again, Ok(Message::Recount(user_id)));
            return true;
        }
        Err(_) => return false,
    };
    assert!(entries.len() <= MAX_EVENTS_PER_MESSAGE);
    let prices = PriceList::shipped().unwrap();
    let received_at_ms = NOW.0 * 1_000;
    let intake = Intake { received_at_ms, written_by: "an invocation".to_owned(), retention_days: 400 };
    let mut is_taken = false;
    for entry in entries {
        let event = match entry {
            Ok(event) => event,
            Err((why, raw)) => {
                assert!(!why.to_string().is_empty());
                let kept: serde_json::Value =
                    serde_json::from_str(&raw).expect("what is not read is kept as the JSON it came as");
                if kept.is_object() && kept.get("events").is_none() && kept.get("recount").is_none() {
                    let again = usage::read_message(&raw);
                    assert_eq!(again, Ok(Message::Events(vec![Err((why, raw))])), "it is the same when it is sent again");
                }
                continue;
            }
        };
        is_taken = true;
        assert!(event.extra.as_ref().is_none_or(|extra| extra.len() <= MAX_EXTRA_BYTES));
        let written = event.to_json();
        let Ok(Message::Events(again)) = usage::read_message(&written) else { panic!("cannot be read again: {written}") };
        let [Ok(again)] = again.as_slice() else { panic!("is not one event any more: {written}") };
        let same = usage::UsageEvent { extra_cut: event.extra_cut, ..again.clone() };
        assert_eq!(same, event, "an event is the same once it was written and read");
        match counting::moment(&event, None, received_at_ms) {
            Ok(at) => {
                let judged = counting::judge(&event, at, None, &prices, &intake);
                assert_eq!(judged.row.verdict == Verdict::Counted, event.success, "on the free tier success is all it takes");
                assert!(judged.row.counted.values().all(|quantity| (1..=MAX_QUANTITY).contains(quantity)));
                let size = serde_json::to_string(&judged.row).unwrap().len();
                assert!(size < 65_536, "a row of {size} bytes");
                assert_eq!(counting::recount(&judged.row, None, &prices).map(|again| again.row), Some(judged.row));
            }
            Err(QuarantineReason::TimestampTooOld | QuarantineReason::TimestampInFuture) => {}
            Err(other) => panic!("outside the window for a reason that is none: {other:?}"),
        }
    }
    is_taken
}

/// A price list. One that is taken keeps its own rules: what it names is there, what is to be one of a kind is, and limits are
/// within bounds, in a grace period too.
pub(crate) fn price_list(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let list = match PriceList::parse(text) {
        Ok(list) => list,
        Err(error) => {
            assert!(error.to_string().starts_with("price list: "));
            return false;
        }
    };
    assert!((1..=60).contains(&list.grace.days));
    assert!(list.grace.reminder_days.iter().all(|day| (1..list.grace.days).contains(day)));
    assert!(list.plans.iter().filter(|plan| plan.prices.is_empty()).count() <= 1);
    let mut keys = BTreeSet::new();
    for plan in &list.plans {
        assert_eq!(list.plan(&plan.id), Some(plan), "a plan is found by its name");
        for price in &plan.prices {
            assert!(keys.insert(price.lookup_key()), "a lookup key belongs to one price");
            assert_eq!(list.price(price.lookup_key()), Some((plan, price)), "a price is found by its lookup key");
            assert!(price.meter().is_none_or(|meter| list.meter(meter).is_some()));
        }
        let [paid, in_grace] = [false, true].map(|in_grace| plan.limits(in_grace));
        for limits in [&paid, &in_grace] {
            assert!((1..=30_000).contains(&limits.requests_per_minute));
            assert!(limits.quotas.keys().all(|meter| list.meter(meter).is_some()));
        }
        assert!(in_grace.requests_per_minute <= paid.requests_per_minute, "grace is never worth more");
        assert!(paid.quotas.iter().all(|(meter, limit)| in_grace.quotas[meter] <= *limit), "grace is never worth more");
        assert!(plan.counted_meters(&list).iter().all(|meter| list.meter(meter).is_some()));
    }
    true
}
