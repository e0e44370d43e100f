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
};

use repair::{Invocation, Repair, Repaired};

/// One run of the function: what is due first, since it needs neither Stripe nor a queue, then the repairs, whatever came of it.
///
/// # Errors
/// [`Unavailable`] if it cannot be found what is due; the repairs are done all the same.
pub async fn sweep<A, C, L, S, Q>(
    sweeper: &Sweeper<A, C>,
    repair: &Repair<L, S, Q, C>,
    now: EpochSecs,
    invocation: &Invocation,
) -> Result<(Run, Repaired), Unavailable>
where
    A: Accounts + DueAccounts + PendingNotices,
    C: Clock,
    L: StripeLists,
    S: AccountBatches + SweeperState,
    Q: Hints,
{
    let run = sweeper.run(now).await;
    let repaired = repair.run(now, invocation).await;
    Ok((run?, repaired))
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
    /// Those of them that have waited for longer than an hour.
    pub stuck: u64,
}

impl<A: Accounts + DueAccounts + PendingNotices, C: Clock> Sweeper<A, C> {
    /// Announces everything that is due at `now`. Running it twice, late or side by side announces nothing twice.
    ///
    /// # Errors
    /// [`Unavailable`] if it cannot be found what is due.
    pub async fn run(&self, now: EpochSecs) -> Result<Run, Unavailable> {
        let users = self.accounts.due(now, MAX_ACCOUNTS).await?;
        let mut run = Run { due: u64::try_from(users.len()).unwrap_or(u64::MAX), ..Run::default() };
        let mut first_error = None;
        for user_id in &users {
            match self.account(user_id, now).await {
                Ok(Some(notices)) => run.notices = run.notices.saturating_add(notices),
                Ok(None) => run.lost_races = run.lost_races.saturating_add(1),
                Err(error) => {
                    run.failed = run.failed.saturating_add(1);
                    first_error.get_or_insert(error.to_string());
                }
            }
        }
        if let Err(error) = outbox::wake(&self.accounts, now, &mut run).await {
            run.failed = run.failed.saturating_add(1);
            first_error.get_or_insert(error.to_string());
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
        Ok(run)
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
