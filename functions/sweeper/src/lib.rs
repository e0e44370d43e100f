//! The sweeper: announces what is due by time alone, such as reminders and the end of access, and finds what Stripe never told.
//!
//! **Invariant:** access does not depend on it. It tells what has happened; `access` knows it already (G7).

mod outbox;
pub mod repair;

use tokentill::{
    domain::{id::UserId, notice, price_list::PriceList, time::EpochSecs},
    log::Line,
    ports::{
        AccountBatches, AccountChange, Accounts, Clock, Commit, DueAccounts, Hints, PendingNotices, StripeLists, SweeperState,
        Unavailable,
    },
    records::{self, Panicked},
};

use repair::{Invocation, Repair, Repaired};

/// One run of the function: what is due first, since it needs neither Stripe nor a queue, then the repairs, whatever came of it.
///
/// # Errors
/// [`Failed`] if it cannot be found what is due, or the first part panicked; the repairs are done all the same.
pub async fn sweep<A, C, L, S, Q>(
    sweeper: &Sweeper<A, C>,
    repair: &Repair<L, S, Q, C>,
    now: EpochSecs,
    invocation: &Invocation,
) -> Result<(Run, Repaired), Failed>
where
    A: Accounts + DueAccounts + PendingNotices,
    C: Clock,
    L: StripeLists,
    S: AccountBatches + SweeperState,
    Q: Hints,
{
    // The repairs get at least half of the time.
    let half_ms = invocation.stop_at_ms.saturating_sub(sweeper.clock.now_ms()).saturating_div(2);
    let stop_at_ms = sweeper.clock.now_ms().saturating_add(half_ms);
    // Boxed: the one inside the other they would be deeper than the compiler looks.
    let run = records::isolated(Box::pin(sweeper.run(now, stop_at_ms))).await;
    let repaired = Box::pin(repair.run(now, invocation)).await;
    Ok((run??, repaired))
}

/// Why a run, or a part of it, failed. What it left undone is due again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failed {
    /// A table is not available.
    #[error(transparent)]
    Store(#[from] Unavailable),
    /// It panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// How many accounts one run takes up; what is left is due at the next.
const MAX_ACCOUNTS: usize = 1_000;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Sweeper<A, C> {
    /// The accounts, and which of them are due.
    pub accounts: A,
    /// The clock commits are dated by.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run {
    /// Accounts that were due.
    pub due: u64,
    /// Notices committed.
    pub notices: u64,
    /// Accounts that somebody else changed meanwhile; they are due again.
    pub lost_races: u64,
    /// Accounts that failed; they are due again.
    pub failed: u64,
    /// Notices that were not delivered yet, and were handed to the notifier once more.
    pub woken: u64,
    /// Those of them that are pending for more than two hours, although they were woken before.
    pub stuck: u64,
}

impl<A: Accounts + DueAccounts + PendingNotices, C: Clock> Sweeper<A, C> {
    /// Announces everything that is due at `now`, and wakes what is pending in the outbox until `stop_at_ms`. Running it twice, late or
    /// side by side announces nothing twice. An account that fails, in whatever way, holds up nothing else.
    ///
    /// # Errors
    /// [`Failed`] if it cannot be found what is due; the outbox is looked after all the same.
    pub async fn run(&self, now: EpochSecs, stop_at_ms: i64) -> Result<Run, Failed> {
        let found = isolated(self.accounts.due(now, MAX_ACCOUNTS)).await;
        let users = found.as_deref().unwrap_or_default();
        let mut run = Run { due: u64::try_from(users.len()).unwrap_or(u64::MAX), ..Run::default() };
        let mut first_error = None;
        let mut failed = |run: &mut Run, error: &Failed| {
            run.failed = run.failed.saturating_add(1);
            first_error.get_or_insert(error.to_string());
        };
        if let Err(error) = &found {
            failed(&mut run, error);
        }
        for user_id in users {
            if self.clock.now_ms() >= stop_at_ms {
                break;
            }
            match isolated(self.account(user_id, now)).await {
                Ok(Some(notices)) => run.notices = run.notices.saturating_add(notices),
                Ok(None) => run.lost_races = run.lost_races.saturating_add(1),
                Err(error) => failed(&mut run, &error),
            }
        }
        if let Err(error) = isolated(outbox::wake(&self.accounts, &self.clock, now, stop_at_ms, &mut run)).await {
            failed(&mut run, &error);
        }
        Line::new("sweeper", "run finished")
            .field("due", run.due)
            .field("notices", run.notices)
            .field("lost_races", run.lost_races)
            .maybe("error", first_error)
            .count("SweeperRuns", 1)
            .field("failed", run.failed)
            .field("woken", run.woken)
            .field("stuck", run.stuck)
            .count("NeedsAttention", run.failed.saturating_add(run.stuck))
            .write(&self.clock);
        found.map(|_| run)
    }

    /// Announces what is due of one account; `None` if the race was lost.
    async fn account(&self, user_id: &UserId, now: EpochSecs) -> Result<Option<u64>, Unavailable> {
        let Some(mut account) = self.accounts.account(user_id).await? else { return Ok(Some(0)) };
        account.version = account.version.saturating_add(1);
        let notices = notice::due(&mut account, &self.prices, now);
        let change = AccountChange {
            account: &account,
            next_due: notice::next_due(&account, &self.prices),
            notices: &notices,
            processed: None,
            at_ms: self.clock.now_ms(),
        };
        Ok(match self.accounts.commit(&change).await? {
            Commit::Done => Some(u64::try_from(notices.len()).unwrap_or(u64::MAX)),
            Commit::LostRace => None,
        })
    }
}

/// The outcome of some work, a panic being one of its errors.
async fn isolated<T>(work: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Failed> {
    Ok(records::isolated(Box::pin(work)).await??)
}
