//! The reporter's lease: short, so that nobody waits long for one that died, and renewed while its holder works.
//!
//! A run whose lease is lost ends there, as if it had crashed: whatever it was at, it survives. Two reporters at once do no
//! harm either, since each book is saved under its version; they would only get in each other's way.

use std::pin::pin;

use futures_util::future::{Either, select};
use tokentill::{
    log::Line,
    ports::{Accounts, Books, MeterErrors, MeterSink, MeterSummaries, ReporterState, Timer, Unavailable},
};

use crate::Reporter;

/// How long the lease lasts from when it was taken or renewed: so long the next reporter waits for one that died. It is renewed
/// beside the work, so it need not be longer than a call to Stripe, or than a wait that Stripe asks for.
const LEASE_MS: i64 = 30_000;
/// After so long it is renewed.
const RENEW_AFTER_MS: i64 = LEASE_MS / 2;
/// After so long a renewal that failed is tried again.
const RENEW_AGAIN_AFTER_MS: i64 = 2_000;

/// A lease that is held.
pub(crate) struct Lease<'a> {
    owner: &'a str,
    until_ms: i64,
}

impl<B, A, M, C, I> Reporter<B, A, M, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    C: Timer,
    I: Fn() -> String,
{
    /// Takes the lease; `None` if another reporter has it.
    pub(crate) async fn take_lease<'a>(&self, owner: &'a str) -> Result<Option<Lease<'a>>, Unavailable> {
        let now_ms = self.clock.now_ms();
        let until_ms = now_ms.saturating_add(LEASE_MS);
        Ok(self.books.take_lease(owner, now_ms, until_ms).await?.then_some(Lease { owner, until_ms }))
    }

    /// Works for as long as the lease is held; `None` if another reporter took it meanwhile, whereupon the work was given up.
    ///
    /// # Errors
    /// [`Unavailable`] if it could not be renewed before it ended; the work was given up then, too.
    pub(crate) async fn while_leased<T>(
        &self,
        lease: Lease<'_>,
        work: impl Future<Output = T>,
    ) -> Result<Option<T>, Unavailable> {
        let (lost, work) = (pin!(self.lost(lease)), pin!(work));
        // The lease comes first: after a standstill nothing is done before its end is noticed.
        match select(lost, work).await {
            Either::Left((Ok(()), _)) => {
                Line::new("reporter", "another reporter took the lease").write(&self.clock);
                Ok(None)
            }
            Either::Left((Err(error), _)) => Err(error),
            Either::Right((done, _)) => Ok(Some(done)),
        }
    }

    /// Renews the lease, again and again, until another reporter has it.
    async fn lost(&self, mut lease: Lease<'_>) -> Result<(), Unavailable> {
        let mut renew_at_ms = lease.until_ms.saturating_sub(LEASE_MS - RENEW_AFTER_MS);
        loop {
            self.clock.wait_until_ms(renew_at_ms).await;
            let now_ms = self.clock.now_ms();
            let until_ms = now_ms.saturating_add(LEASE_MS);
            match self.books.renew_lease(lease.owner, until_ms).await {
                Ok(true) => {
                    lease.until_ms = until_ms;
                    renew_at_ms = now_ms.saturating_add(RENEW_AFTER_MS);
                }
                Ok(false) => return Ok(()),
                Err(error) if self.clock.now_ms() >= lease.until_ms => return Err(error),
                Err(_) => renew_at_ms = now_ms.saturating_add(RENEW_AGAIN_AFTER_MS).min(lease.until_ms),
            }
        }
    }
}
