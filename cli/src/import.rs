//! `cargo till import`: every customer of Stripe that names its user is looked at once, as if Stripe had told of it.

use tokentill::{
    domain::{
        hint::{HINT_VERSION, Hint, named_user},
        id::{CustomerId, EventId, composite_key},
    },
    ports::{Clock, Hints, StripeError, Unavailable},
    stripe::{KeySource, StripeClient},
};

use crate::setup::{Account, Mode};

/// What an import came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    /// Customers that name a user: each has a hint on its way.
    pub queued: u64,
    /// Customers whose metadata names none, or no user that there can be.
    pub unnamed: u64,
}

/// Why an import stopped.
#[derive(Debug, thiserror::Error)]
#[error("{reason}\n{queued} customers are queued. To go on from here: cargo till import{}", after.as_ref().map(|id| format!(" --starting-after {id}")).unwrap_or_default())]
pub struct Interrupted {
    /// What went wrong.
    pub reason: NotImported,
    /// The last customer that was dealt with, in this run or before it.
    pub after: Option<String>,
    /// How many were queued in this run.
    pub queued: u64,
}

/// What stops an import.
#[derive(Debug, thiserror::Error)]
pub enum NotImported {
    /// Stripe did not list its customers.
    #[error("listing customers: {0}")]
    Stripe(#[from] StripeError),
    /// A hint could not be queued.
    #[error(transparent)]
    Queue(#[from] Unavailable),
    /// Stripe's customer has an id that is none.
    #[error("Stripe lists a customer without a usable id")]
    Id,
}

/// Pages through Stripe's customers, newest first, and queues a hint for each that has `metadata.user_id`; with `hints` absent
/// they are only counted. Customers on test clocks are not among them: Stripe lists those by their clock alone.
///
/// It is safe to repeat: a hint only has the customer looked at.
///
/// # Errors
/// [`Interrupted`] says after which customer to go on.
pub async fn import<K: KeySource>(
    stripe: &StripeClient<K>,
    mode: Mode,
    hints: Option<&impl Hints>,
    clock: &impl Clock,
    starting_after: Option<String>,
) -> Result<Imported, Interrupted> {
    let account = Account::new(stripe, mode);
    // A run of its own: the queue drops what it has seen within five minutes.
    let run = clock.now_ms().to_string();
    let mut imported = Imported::default();
    let mut after = starting_after;
    loop {
        let page = account.customers(after.as_deref()).await;
        let interrupted =
            |reason: NotImported, after: &Option<String>, queued| Interrupted { reason, after: after.clone(), queued };
        let (customers, more) = page.map_err(|error| interrupted(error.into(), &after, imported.queued))?;
        if customers.is_empty() {
            return Ok(imported);
        }
        for customer in customers {
            if named_user(customer.user_id()).is_none() {
                imported.unnamed = imported.unnamed.saturating_add(1);
            } else {
                if let Some(hints) = hints {
                    let hint = hint_of(&customer.id, mode, &run, clock)
                        .ok_or_else(|| interrupted(NotImported::Id, &after, imported.queued))?;
                    let queued = hints.send(&hint, hint.event_id.as_str()).await;
                    queued.map_err(|error| interrupted(error.into(), &after, imported.queued))?;
                }
                imported.queued = imported.queued.saturating_add(1);
            }
            after = Some(customer.id);
        }
        if !more {
            return Ok(imported);
        }
    }
}

fn hint_of(customer: &str, mode: Mode, run: &str, clock: &impl Clock) -> Option<Hint> {
    Some(Hint {
        v: HINT_VERSION,
        event_id: EventId::new(composite_key(&["import", run, customer])).ok()?,
        kind: "tokentill.import".to_owned(),
        created: clock.now(),
        object_id: customer.to_owned(),
        customer: Some(CustomerId::new(customer).ok()?),
        invoice: None,
        livemode: mode == Mode::Live,
        replay: true,
        swept: false,
    })
}
