//! The account-changes queue, and the recounts on the usage queue, as far as their users see them.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use tokentill::{
    domain::{hint::Hint, id::UserId},
    ports::{Hints, Postpone, Recounts, Unavailable},
};

use crate::Faults;

/// A FIFO queue in memory: it drops a second hint of the same deduplication id. Clones are the same queue.
#[derive(Debug, Clone, Default)]
pub struct Queue {
    inner: Rc<RefCell<Inner>>,
    /// What goes wrong with `send` and `postpone`.
    pub faults: Faults,
}

#[derive(Debug, Default)]
struct Inner {
    hints: Vec<Hint>,
    known: BTreeSet<String>,
    postponed: Vec<(String, u32)>,
}

impl Queue {
    /// The hints that are queued, oldest first.
    #[must_use]
    pub fn hints(&self) -> Vec<Hint> {
        self.inner.borrow().hints.clone()
    }

    /// Which messages were put off, by how many seconds.
    #[must_use]
    pub fn postponed(&self) -> Vec<(String, u32)> {
        self.inner.borrow().postponed.clone()
    }
}

impl Hints for Queue {
    async fn send(&self, hint: &Hint, deduplication_id: &str) -> Result<(), Unavailable> {
        let effect = async {
            let mut inner = self.inner.borrow_mut();
            if inner.known.insert(deduplication_id.to_owned()) {
                inner.hints.push(hint.clone());
            }
            Ok(())
        };
        self.faults.around("send", |reason| Unavailable { what: "queueing a hint", reason }, effect).await
    }
}

impl Postpone for Queue {
    async fn postpone(&self, receipt_handle: &str, secs: u32) -> Result<(), Unavailable> {
        let effect = async {
            self.inner.borrow_mut().postponed.push((receipt_handle.to_owned(), secs));
            Ok(())
        };
        self.faults.around("postpone", |reason| Unavailable { what: "putting a hint off", reason }, effect).await
    }
}

/// The recounts on the usage queue, in memory. Clones are the same queue.
#[derive(Debug, Clone, Default)]
pub struct RecountQueue {
    users: Rc<RefCell<Vec<UserId>>>,
    /// What goes wrong with, or happens before, `recount`.
    pub faults: Faults,
}

impl RecountQueue {
    /// Whose usage is to be looked at again, oldest first, as often as it was queued.
    #[must_use]
    pub fn users(&self) -> Vec<UserId> {
        self.users.borrow().clone()
    }
}

impl Recounts for RecountQueue {
    async fn recount(&self, user_id: &UserId) -> Result<(), Unavailable> {
        let effect = async {
            self.users.borrow_mut().push(user_id.clone());
            Ok(())
        };
        self.faults.around("recount", |reason| Unavailable { what: "queueing a recount", reason }, effect).await
    }
}
