//! Rate limits as Stripe's own sandboxes have them.
//!
//! Source: "Rate limits": in a sandbox 25 operations a second over all and 25 at each endpoint, meter events among them; each
//! named operation is an endpoint, whatever ids its path has. A call too many is a 429 whose `Stripe-Rate-Limited-Reason` names
//! the limit; there is no `Retry-After`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::ApiError;
use crate::world::World;

/// What Stripe says is met. Source: "Rate limits", on `Stripe-Rate-Limited-Reason`.
pub(crate) const REASONS: [&str; 5] =
    ["global-rate", "global-concurrency", "endpoint-rate", "endpoint-concurrency", "resource-specific"];

/// How far the calls under each limit have used it up: the moment until which it would last to make them evenly.
pub(crate) type UsedUp = HashMap<String, Instant>;

/// Counts a call, or refuses it as one too many.
pub(crate) fn check(world: &mut World, method: &str, path: &str) -> Result<(), ApiError> {
    let now = Instant::now();
    let settings = &world.settings;
    for (reason, limit, per_sec) in
        [("global-rate", String::new(), settings.global_rate), ("endpoint-rate", endpoint(method, path), settings.endpoint_rate)]
    {
        if !take(&mut world.used_up, limit, per_sec, now) {
            return Err(ApiError::rate_limited(reason));
        }
    }
    Ok(())
}

/// A bucket that holds one second's calls and fills evenly. A rate of 0 is no limit.
fn take(used_up: &mut UsedUp, limit: String, per_sec: u32, now: Instant) -> bool {
    let Some(share) = Duration::from_secs(1).checked_div(per_sec) else { return true };
    let until = used_up.get(&limit).copied().unwrap_or(now).max(now) + share;
    let taken = until <= now + Duration::from_secs(1);
    if taken {
        used_up.insert(limit, until);
    }
    taken
}

/// The operation: method and path without the id, which comes second, or third below a name such as `billing`.
fn endpoint(method: &str, path: &str) -> String {
    let mut segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let below = segments.get(1).is_some_and(|first| ["billing", "checkout", "core", "test_helpers"].contains(first));
    if let Some(id) = segments.get_mut(if below { 3 } else { 2 }) {
        *id = "{id}";
    }
    format!("{method} {}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_one_second_and_fills_evenly() {
        let (mut used_up, start) = (UsedUp::new(), Instant::now());
        let mut taken = |per_sec, ms| take(&mut used_up, format!("{per_sec}"), per_sec, start + Duration::from_millis(ms));
        assert_eq!((0..30).filter(|_| taken(25, 0)).count(), 25);
        assert_eq!((0..30).filter(|_| taken(25, 100)).count(), 2, "40 ms each");
        assert_eq!((0..30).filter(|_| taken(25, 10_000)).count(), 25, "it does not overflow");
        assert!((0..1_000).all(|_| taken(0, 0)), "0 is no limit");
    }

    #[test]
    fn an_endpoint_is_the_same_for_all_ids() {
        assert_eq!(endpoint("GET", "/v1/customers/cus_1"), "GET v1/customers/{id}");
        assert_eq!(endpoint("GET", "/v1/customers"), "GET v1/customers");
        assert_eq!(endpoint("POST", "/v1/payment_methods/pm_1/attach"), "POST v1/payment_methods/{id}/attach");
        assert_eq!(endpoint("GET", "/v1/billing/meters/mtr_1/event_summaries"), "GET v1/billing/meters/{id}/event_summaries");
        assert_eq!(endpoint("POST", "/v1/billing/meter_events"), "POST v1/billing/meter_events");
        assert_eq!(endpoint("GET", "/v2/core/events/evt_1"), "GET v2/core/events/{id}");
    }
}
