//! Changes an input a little: bytes, and, where it is JSON, values.

use fastrand::Rng;
use serde_json::{Map, Value};

/// Texts that have been trouble elsewhere.
const TEXTS: [&str; 14] = [
    "",
    " ",
    "/",
    ":",
    "3:ada/",
    "\u{0}",
    "\u{feff}",
    "é",
    "\u{202e}",
    "NaN",
    "-0",
    "9223372036854775808",
    "1969-12-31T23:59:59Z",
    "9999-12-31T23:59:60Z",
];

/// Numbers at the edges of what is held in a number.
const NUMBERS: [&str; 17] = [
    "0",
    "-1",
    "1",
    "-0",
    "0.5",
    "1e3",
    "1e400",
    "300",
    "301",
    "9007199254740993",
    "999999999999999",
    "1000000000000000",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "253402300800",
    "-62135596801",
];

/// A changed copy, at most so long. `others` are inputs that parts may be taken from.
#[must_use]
pub fn mutate(input: &[u8], others: &[Vec<u8>], longest: usize, rng: &mut Rng) -> Vec<u8> {
    let mut data = input.to_vec();
    for _ in 0..rng.usize(1..=3) {
        // A stored item has a letter before its JSON.
        let begin = usize::from(data.first().is_some_and(u8::is_ascii_lowercase));
        data = match serde_json::from_slice::<Value>(&data[begin..]) {
            Ok(mut value) if rng.u8(..) < 224 => {
                change(&mut value, rng);
                [&data[..begin], value.to_string().as_bytes()].concat()
            }
            _ => change_bytes(data, others, rng),
        };
    }
    data.truncate(longest);
    data
}

fn change_bytes(mut data: Vec<u8>, others: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let at = rng.usize(0..=data.len());
    let to = (at + rng.usize(0..=8)).min(data.len());
    match rng.u8(0..9) {
        0 if at < data.len() => data[at] ^= 1 << rng.u8(0..8),
        1 if at < data.len() => data[at] = rng.u8(..),
        2 => drop(data.drain(at..to)),
        3 => data.insert(at, rng.u8(..)),
        4 => {
            let part = data[at..to].to_vec();
            for _ in 0..rng.usize(1..=64) {
                data.splice(at..at, part.iter().copied());
            }
        }
        5 => {
            if let Some(other) = rng.choice(others).filter(|other| !other.is_empty()) {
                let from = rng.usize(0..other.len());
                data.splice(at..to, other[from..].iter().copied());
            }
        }
        6 => drop(data.splice(at..to, rng.choice(TEXTS).unwrap_or_default().bytes())),
        7 => {
            // A number, wherever there is one.
            let digits = data.iter().position(|byte| byte.is_ascii_digit()).unwrap_or(at);
            let end = data[digits..].iter().position(|byte| !byte.is_ascii_digit()).map_or(data.len(), |end| digits + end);
            data.splice(digits..end, rng.choice(NUMBERS).unwrap_or_default().bytes());
        }
        _ => data.truncate(at),
    }
    data
}

/// Changes one value somewhere in it.
fn change(value: &mut Value, rng: &mut Rng) {
    match value {
        Value::Object(fields) if !fields.is_empty() && rng.u8(..) < 230 => {
            let name = fields.keys().nth(rng.usize(0..fields.len())).cloned().unwrap_or_default();
            match rng.u8(0..16) {
                0 => drop(fields.remove(&name)),
                1 => {
                    let moved = fields.remove(&name).unwrap_or_default();
                    fields.insert(rng.choice(TEXTS).unwrap_or_default().to_owned(), moved);
                }
                2 => drop(fields.insert(rng.choice(TEXTS).unwrap_or_default().to_owned(), any(rng))),
                _ => change(&mut fields[&name], rng),
            }
        }
        Value::Array(values) if !values.is_empty() && rng.u8(..) < 230 => {
            let at = rng.usize(0..values.len());
            match rng.u8(0..8) {
                0 => drop(values.remove(at)),
                1 => {
                    let copy = values[at].clone();
                    values.extend(std::iter::repeat_n(copy, rng.usize(1..=40)));
                }
                _ => change(&mut values[at], rng),
            }
        }
        // The digits of a stored number are text.
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
            rng.choice(NUMBERS).unwrap_or_default().clone_into(text);
        }
        other => *other = any(rng),
    }
}

fn any(rng: &mut Rng) -> Value {
    match rng.u8(0..8) {
        0 => Value::Null,
        1 => Value::Bool(rng.bool()),
        2 | 3 => serde_json::from_str(rng.choice(NUMBERS).unwrap_or("0")).unwrap_or_default(),
        4 => rng.choice(TEXTS).unwrap_or_default().into(),
        5 => "x".repeat(rng.usize(0..400)).into(),
        6 => Value::Array(Vec::new()),
        _ => Value::Object(Map::new()),
    }
}
