//! `cargo till`: what a person does about a deployment: Stripe set up, customers imported, the quarantine and the dead letters.
//!
//! **Invariant:** on whatever day something is sent again, a request is counted at most once. What the ledger can no longer
//! tell, or what would go straight back into quarantine, is refused with a reason; nothing is deleted.

mod import;
mod redrive;
mod retry;
pub mod setup;
mod show;

pub use import::{Imported, Interrupted, NotImported, import};
pub use redrive::{DeadLetters, NotRedriven, Queue, queue_url, redrive};
pub use retry::{Refused, Retried, Retry, entry};
pub use show::{Filter, explain, list, parse_reason};

/// The commands, with what they need of the world.
#[derive(Debug)]
pub struct Till<Q, L, A, U, H, C> {
    /// The quarantine.
    pub quarantine: Q,
    /// The ledger, where it shows whether a request was counted before.
    pub ledger: L,
    /// Where accounts are read: a test clock's customer has a time of its own.
    pub accounts: A,
    /// The usage queue.
    pub usage: U,
    /// The account-changes queue.
    pub hints: H,
    /// The clock.
    pub clock: C,
    /// The stack's name.
    pub stack: String,
    /// For how many days the ledger surely keeps a request: the stack's `LedgerRetentionDays`, or what that is at the least.
    pub ledger_days: u16,
}
