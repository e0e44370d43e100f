//! How fast Stripe is called: evenly, never faster than is set, and not at all while it asks to wait.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// Hands out turns, one after the other.
#[derive(Debug)]
pub(crate) struct Pace {
    gap: Duration,
    next: Cell<Instant>,
}

impl Pace {
    /// At most so many turns in a second; at least one.
    pub(crate) fn new(per_sec: u32) -> Self {
        let gap = Duration::from_secs(1).checked_div(per_sec.max(1)).unwrap_or(Duration::from_secs(1));
        Self { gap, next: Cell::new(Instant::now()) }
    }

    /// Waits for the next turn.
    pub(crate) async fn turn(&self) {
        let turn = self.next.get().max(Instant::now());
        self.next.set(turn.checked_add(self.gap).unwrap_or(turn));
        tokio::time::sleep_until(turn).await;
    }

    /// Hands out no turn for so many seconds.
    pub(crate) fn pause(&self, secs: i64) {
        let pause = Duration::from_secs(u64::try_from(secs).unwrap_or(0));
        if let Some(until) = Instant::now().checked_add(pause) {
            self.next.set(self.next.get().max(until));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_spaced_and_a_pause_holds_all_of_them() {
        let start = Instant::now();
        let pace = Pace::new(200);
        futures_util::future::join_all((0..20).map(|_| pace.turn())).await;
        assert!(start.elapsed() >= Duration::from_millis(19 * 5), "{:?}", start.elapsed());
        pace.pause(1);
        futures_util::future::join_all((0..2).map(|_| pace.turn())).await;
        assert!(start.elapsed() >= Duration::from_millis(19 * 5 + 1_000), "{:?}", start.elapsed());
    }
}
