//! The body of `POST /v1/check`, read and checked.

use std::collections::BTreeMap;

use lambda_http::Request;
use serde_json::{Map, Value};
use tokentill::domain::{
    gate::{Asked, MAX_REQUESTS},
    id::{MeterId, UserId},
    price_list::{Counts, PriceList},
    usage::MAX_QUANTITY,
};

use crate::Problem;

/// What a check's body looks like, for those who sent another.
const EXAMPLE: &str = r#"{"user_id":"ada","units":{"requests":1}}"#;
/// The unit that is taken.
const REQUESTS: &str = "requests";
/// How much of a wrong name is shown, in characters.
const SHOWN_CHARS: usize = 64;

/// A check as it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// Whose.
    pub(crate) user_id: UserId,
    /// What for.
    pub(crate) asked: Asked,
}

impl Check {
    /// A field that nobody knows is refused, so that a mistyped `units` is not taken for none. Where `units` says nothing of
    /// requests it is one: a check is made for a call. None at all is refused; who wants to know without taking asks
    /// `GET /v1/access`.
    pub(crate) fn read(request: &Request, prices: &PriceList) -> Result<Self, Problem> {
        let wrong = || bad(format!("the body must be a JSON object, as {EXAMPLE}"));
        let Ok(Value::Object(mut body)) = serde_json::from_slice(request.body().as_ref()) else { return Err(wrong()) };
        let user_id = match body.remove("user_id") {
            Some(Value::String(text)) => UserId::new(text).map_err(|error| bad(error.to_string()))?,
            None => return Err(bad(format!("user_id is missing: send {EXAMPLE}"))),
            Some(_) => return Err(bad("user_id must be a string".to_owned())),
        };
        let units = match body.remove("units") {
            Some(Value::Object(units)) => units,
            None | Some(Value::Null) => Map::new(),
            Some(_) => return Err(bad(format!("units must be an object, as in {EXAMPLE}"))),
        };
        if let Some(name) = body.keys().next() {
            return Err(bad(format!("there is no field {}: a check has user_id and units", shown(name))));
        }
        Ok(Self { user_id, asked: asked(&units, prices)? })
    }
}

fn asked(units: &Map<String, Value>, prices: &PriceList) -> Result<Asked, Problem> {
    let mut requests = None;
    let mut others = BTreeMap::new();
    for (name, quantity) in units {
        let meter = MeterId::new(name).ok().and_then(|id| prices.meter(&id));
        let is_of_requests = name == REQUESTS || meter.is_some_and(|meter| meter.counts == Counts::Requests);
        let most = if is_of_requests { u64::from(MAX_REQUESTS) } else { MAX_QUANTITY };
        let quantity = || {
            let quantity = quantity.as_u64().filter(|quantity| (1..=most).contains(quantity));
            quantity.ok_or_else(|| bad(format!("units.{} must be a whole number from 1 to {most}", shown(name))))
        };
        match meter {
            _ if is_of_requests => requests = requests.max(Some(quantity()?)),
            Some(meter) => drop(others.insert(meter.id.clone(), quantity()?)),
            None => {
                let known: Vec<&str> = prices.meters.iter().map(|meter| meter.id.as_str()).collect();
                return Err(bad(format!("there is no unit {}: the price list has {}", shown(name), known.join(", "))));
            }
        }
    }
    let requests = requests.map_or(Ok(1), u32::try_from).map_err(|error| bad(error.to_string()))?;
    Ok(Asked { requests, others })
}

fn bad(detail: String) -> Problem {
    Problem::bad_request(detail)
}

/// A name as it was sent, unless it is long.
fn shown(name: &str) -> String {
    name.chars().take(SHOWN_CHARS).collect()
}
