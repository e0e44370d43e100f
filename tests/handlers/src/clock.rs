//! A clock that stands still until it is moved.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    rc::Rc,
    task::{Poll, Waker},
};

use tokentill::{
    domain::time::EpochSecs,
    ports::{Clock, Timer},
};

/// A clock that stands still until it is moved; clones show the same moment.
#[derive(Debug, Clone)]
pub struct TestClock(Rc<Hands>);

#[derive(Debug, Default)]
struct Hands {
    now_ms: Cell<i64>,
    moves_by_itself: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl TestClock {
    /// A clock that shows this moment, RFC 3339.
    #[must_use]
    pub fn at(moment: &str) -> Self {
        let clock = Self(Rc::default());
        clock.set(moment);
        clock
    }

    /// Sets it, forwards or back.
    pub fn set(&self, moment: &str) {
        self.show(EpochSecs::parse_rfc3339(moment).expect("a moment is RFC 3339").as_secs() * 1000);
    }

    /// Moves it forwards, or back if negative.
    pub fn advance_ms(&self, ms: i64) {
        self.show(self.now_ms() + ms);
    }

    /// From now on whoever waits by it moves it: nobody else has to, and nothing really waits.
    #[must_use]
    pub fn moving_by_itself(self) -> Self {
        self.0.moves_by_itself.set(true);
        self
    }

    fn show(&self, ms: i64) {
        self.0.now_ms.set(ms);
        self.0.waiting.take().into_iter().for_each(Waker::wake);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> i64 {
        self.0.now_ms.get()
    }
}

impl Timer for TestClock {
    async fn wait_until_ms(&self, moment_ms: i64) {
        if self.0.moves_by_itself.get() && self.now_ms() < moment_ms {
            self.show(moment_ms);
        }
        poll_fn(|context| {
            if self.now_ms() >= moment_ms {
                return Poll::Ready(());
            }
            self.0.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
