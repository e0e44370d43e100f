//! A clock that stands still until it is moved.

use std::{cell::Cell, rc::Rc};

use tokentill::{domain::time::EpochSecs, ports::Clock};

/// A clock that stands still until it is moved; clones show the same moment.
#[derive(Debug, Clone)]
pub struct TestClock(Rc<Cell<i64>>);

impl TestClock {
    /// A clock that shows this moment, RFC 3339.
    #[must_use]
    pub fn at(moment: &str) -> Self {
        let clock = Self(Rc::new(Cell::new(0)));
        clock.set(moment);
        clock
    }

    /// Sets it, forwards or back.
    pub fn set(&self, moment: &str) {
        self.0.set(EpochSecs::parse_rfc3339(moment).expect("a moment is RFC 3339").as_secs() * 1000);
    }

    /// Moves it forwards, or back if negative.
    pub fn advance_ms(&self, ms: i64) {
        self.0.set(self.0.get() + ms);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> i64 {
        self.0.get()
    }
}
