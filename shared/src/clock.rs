//! The real clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ports::{Clock, Timer};

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter that reads the clock")]
    fn now_ms(&self) -> i64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
    }
}

impl Timer for SystemClock {
    async fn wait_until_ms(&self, moment_ms: i64) {
        // The runtime's timer goes by another clock, which stands still while a function is frozen.
        while let Ok(ms @ 1..) = u64::try_from(moment_ms.saturating_sub(self.now_ms())) {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }
}
