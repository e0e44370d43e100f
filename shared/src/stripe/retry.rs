//! When a call is worth another attempt, and after how long.

use std::time::Duration;

/// How patient a client is. A call takes at most `attempts` times `attempt_timeout`, and the waits between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most one attempt may take, from connecting to the last byte of the answer.
    pub attempt_timeout: Duration,
    /// The most attempts of a call that may be repeated, at least 1.
    pub attempts: u32,
    /// The shortest wait between two attempts.
    pub backoff_base: Duration,
    /// The longest wait between two attempts. If Stripe asks for more, the call ends instead, and its caller waits.
    pub backoff_cap: Duration,
    /// The most bytes an answer may have.
    pub response_bytes: usize,
}

impl Default for Limits {
    /// 10 s an attempt, 3 attempts, 200 ms to 3 s between them, 8 MiB.
    fn default() -> Self {
        Self {
            attempt_timeout: Duration::from_secs(10),
            attempts: 3,
            backoff_base: Duration::from_millis(200),
            backoff_cap: Duration::from_secs(3),
            // A page of 100 invoices with their first ten lines each is the largest answer we ask for, at about 3 MB.
            response_bytes: 8 << 20,
        }
    }
}

/// Whether Stripe may do at a later attempt what it did not do at this one.
///
/// Stripe's own word (`Stripe-Should-Retry`) comes first. Without it: 409 is a conflict with a concurrent request (a lock, or
/// an idempotency key in use), 424 a failure of a third party, 429 a limit or a lock, 5xx Stripe's own failure. Source:
/// Stripe's documentation, "Advanced error handling", which lists them as worth retrying.
pub(super) fn is_transient(status: u16, stripe_should_retry: Option<bool>) -> bool {
    stripe_should_retry.unwrap_or(matches!(status, 409 | 424 | 429 | 500..))
}

/// How long Stripe asks all callers to wait, in seconds, if it does.
///
/// Stripe documents no `Retry-After`. A 429 that names the limit it met (`Stripe-Rate-Limited-Reason`) does ask for a wait:
/// every other call would meet the same limit, and limits are counted by the second, so it is one second at least. A limit of one
/// object (`resource-specific`), and a lock (`lock_timeout`, which names no limit), concern this call alone. Source: Stripe's
/// documentation, "Rate limits".
pub(super) fn asked_wait_secs(retry_after_secs: Option<u32>, limited_by: Option<&str>) -> Option<u32> {
    retry_after_secs.or_else(|| limited_by.filter(|limit| *limit != "resource-specific").map(|_| 1))
}

/// The waits between the attempts of one call: decorrelated jitter, each wait drawn between the base and three times the one
/// before. So callers that failed together do not come back together.
pub(super) struct Backoff {
    last: Duration,
    random: fastrand::Rng,
}

impl Backoff {
    pub(super) fn new(limits: &Limits, random: fastrand::Rng) -> Self {
        Self { last: limits.backoff_base, random }
    }

    /// How long to wait, or `None` if Stripe asks for longer than we are ready to.
    pub(super) fn next(&mut self, limits: &Limits, retry_after_secs: Option<u32>) -> Option<Duration> {
        let asked = Duration::from_secs(u64::from(retry_after_secs.unwrap_or(0)));
        if asked > limits.backoff_cap {
            return None;
        }
        let most = self.last.saturating_mul(3).max(limits.backoff_base);
        let spread = most.saturating_sub(limits.backoff_base).mul_f64(self.random.f64());
        self.last = limits.backoff_base.saturating_add(spread).min(limits.backoff_cap);
        // What Stripe asks for is the least; the jitter comes on top of it, as far as our own bound goes.
        Some(asked.saturating_add(self.last).min(limits.backoff_cap))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_word_decides_and_otherwise_the_status() {
        let transient: Vec<u16> = (400..600).filter(|status| is_transient(*status, None)).collect();
        assert_eq!(transient[..3], [409, 424, 429]);
        assert_eq!(transient.len(), 103);
        assert!(!is_transient(500, Some(false)) && is_transient(400, Some(true)));
    }

    #[test]
    fn waits_are_random_but_never_outside_their_bounds() {
        let limits = Limits::default();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let mut backoff = Backoff::new(&limits, fastrand::Rng::with_seed(seed));
            let mut before = limits.backoff_base;
            for _ in 0..6 {
                let wait = backoff.next(&limits, None).unwrap();
                assert!(wait >= limits.backoff_base && wait <= limits.backoff_cap.min(before * 3), "{wait:?} after {before:?}");
                before = wait;
                seen.insert(wait);
            }
        }
        assert!(seen.len() > 1000, "only {} different waits", seen.len());
    }

    #[test]
    fn what_stripe_asks_for_is_waited_or_handed_to_the_caller() {
        let limits = Limits::default();
        let mut backoff = Backoff::new(&limits, fastrand::Rng::with_seed(7));
        assert!(backoff.next(&limits, Some(3)).unwrap() >= Duration::from_secs(3));
        assert_eq!(backoff.next(&limits, Some(4)), None);
        let asked = Duration::from_secs(1);
        let waits: std::collections::BTreeSet<_> =
            (0..50).map(|seed| Backoff::new(&limits, fastrand::Rng::with_seed(seed)).next(&limits, Some(1)).unwrap()).collect();
        assert!(waits.iter().all(|wait| *wait >= asked && *wait <= limits.backoff_cap), "{waits:?}");
        assert!(waits.len() > 40, "all who met one limit come back at once");
    }

    #[test]
    fn a_limit_of_the_account_asks_everybody_to_wait_and_a_lock_nobody() {
        for limit in ["global-rate", "endpoint-rate", "global-concurrency", "endpoint-concurrency", "one_from_the_future"] {
            assert_eq!(asked_wait_secs(None, Some(limit)), Some(1), "{limit}");
        }
        assert_eq!(asked_wait_secs(Some(7), Some("global-rate")), Some(7));
        assert_eq!(asked_wait_secs(None, Some("resource-specific")), None);
        assert_eq!((asked_wait_secs(None, None), asked_wait_secs(Some(2), None)), (None, Some(2)));
    }
}
