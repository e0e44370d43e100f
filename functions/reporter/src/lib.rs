//! The reporter: sends what is counted and not yet reported to Stripe's meters, and reads back what arrived.
//!
//! **Invariant:** what goes to Stripe is fixed before it is sent. The intent is saved under the book's version first, then
//! sent, then confirmed; a crash anywhere sends the same report again under the same identifier (G3, G4). A lease keeps two
//! reporters from getting in each other's way; the versions alone keep them from doing harm.

mod hold;
mod lease;
mod pace;
mod read_back;
mod visit;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
};

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokentill::{
    domain::{
        id::{UserId, stable_hash},
        price_list::PriceList,
        read_back::{BEFORE_FINAL_SECS, Rejections},
        report::SUMMARY_SETTLES_SECS,
        time::{DAY_SECS, EpochSecs, HOUR_SECS, MINUTE_SECS},
    },
    log::Line,
    ports::{
        Accounts, Books, Clock, MeterErrors, MeterSink, MeterSummaries, ReporterMemory, ReporterState, StripeError, Timer,
        Touched, Unavailable,
    },
    records::isolated,
    schedule::ScheduledEvent,
};

use crate::pace::Pace;

/// How many users are worked on at once. One customer has at most one call under way, as Stripe wants it for each meter.
const USERS_AT_ONCE: usize = 4;
/// How far back the first run looks: as far as usage is taken.
const FIRST_LOOK_BACK_SECS: i64 = 36 * DAY_SECS;
/// How far back a run looks that follows up usage that Stripe threw away, from when it first said so.
const REJECTIONS_LOOK_BACK_SECS: i64 = 49 * HOUR_SECS;
/// How long what Stripe said is followed up, from the first run that does, if something cannot be looked at.
const FOLLOWED_FOR_SECS: i64 = 48 * HOUR_SECS;
/// After so many calls in a row without an answer a run calls Stripe no more.
const UNANSWERED_CALLS: u32 = 5;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Reporter<B, A, M, C, I> {
    /// The tallies, what is known of them, and the reporter's own memory.
    pub books: B,
    /// Where accounts are read.
    pub accounts: A,
    /// Stripe's meters.
    pub meters: M,
    /// The clock attempts are dated by.
    pub clock: C,
    /// What is reported under which name.
    pub prices: PriceList,
    /// Makes identifiers that never repeat.
    pub identifiers: I,
    /// How it works.
    pub settings: Settings,
}

/// What can be set about the reporter.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How often everything is looked at, in seconds.
    pub interval_secs: i64,
    /// How long after a period's end its invoice is final at the latest: Stripe's finalisation grace period.
    pub final_after_secs: i64,
    /// How many calls to Stripe are made in a second, at most.
    pub calls_per_sec: u32,
}

/// What invokes the reporter: a schedule, or a person with an order.
#[derive(Debug, Clone, Deserialize)]
pub struct ReportEvent {
    /// The schedule's part.
    #[serde(flatten)]
    pub scheduled: ScheduledEvent,
    /// What a person wants done.
    #[serde(default)]
    pub order: Option<Order>,
}

/// What a person wants done, beside what the schedule does.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Report everything now.
    Report,
    /// Report once more what was refused, rejected or could be billed in no period of this user's usage: of one tally, or of
    /// the past 36 days.
    Replay {
        /// Whose usage.
        user_id: UserId,
        /// Which tally, as the quarantine names it.
        #[serde(default)]
        tally_key: Option<String>,
    },
    /// After a restore: take what Stripe has for what was reported.
    Adopt,
}

/// One invocation.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Its name; owns the lease.
    pub id: String,
    /// When it should stop taking up work, in milliseconds since 1970.
    pub stop_at_ms: i64,
}

/// What a run came to; also the function's answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Tallies looked at.
    pub tallies: u64,
    /// Reports that Stripe has.
    pub delivered: u64,
    /// Reports that Stripe refused, and quantities whose period is closed for good.
    pub refused: u64,
    /// Tallies of which something is not reported yet.
    pub pending: u64,
    /// Reports of unknown fate for too long to be sent again.
    pub overdue: u64,
    /// Quantities handed on to another period.
    pub carried: u64,
    /// Tallies of which an order has something reported once more.
    pub replayed: u64,
    /// Meters of a customer's day that were read back.
    pub checked: u64,
    /// Meters of a customer's day of which Stripe threw something away.
    pub rejected: u64,
    /// Meters of a customer's day at which Stripe has something else than was reported.
    pub differences: u64,
    /// Whether another reporter was at work, so that this one did nothing, or nothing more.
    pub leased: bool,
    /// Whether nothing is reported until what a restored table says was compared.
    pub held: bool,
    /// What went wrong, each kind once.
    pub errors: Vec<String>,
}

/// One run under way: what its parts share.
struct Shift {
    now: EpochSecs,
    stop_at_ms: i64,
    pace: Pace,
    run: RefCell<Run>,
    /// When Stripe said that it threw usage away, if this run follows it up.
    rejections: Option<Rejections>,
    unanswered: Cell<u32>,
    stopped: Cell<bool>,
    /// Whether something was come to and has to be looked at again: it could not be read, or another reporter was at its book.
    left_open: Cell<bool>,
}

impl<B, A, M, C, I> Reporter<B, A, M, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    C: Timer,
    I: Fn() -> String,
{
    /// Reports what is due at `now`: everything once an interval, and between that what a segment's end makes urgent.
    ///
    /// # Errors
    /// [`Unavailable`] if it cannot even be found what there is to report.
    pub async fn run(&self, now: EpochSecs, order: Option<&Order>, invocation: &Invocation) -> Result<Run, Unavailable> {
        // Nobody's future: a moment ahead of the clock would move the checkpoint past what is still to be counted.
        let now = now.min(self.clock.now());
        let memory = self.books.memory().await?;
        let is_full = order == Some(&Order::Report)
            || memory.full_run_at.is_none_or(|last| now.secs_since(last) >= self.settings.interval_secs);
        // What Stripe threw away is looked for once its summaries can tell.
        let rejections = self.books.rejections().await?;
        let rejections = rejections.filter(|rejections| now.secs_since(rejections.first_at) >= SUMMARY_SETTLES_SECS);
        let follows_rejections = rejections.is_some();
        let since = memory.settled_through.unwrap_or_else(|| now.plus_secs(-FIRST_LOOK_BACK_SECS));
        let looked_at = rejections.as_ref().map_or(since, |said| said.first_at.plus_secs(-REJECTIONS_LOOK_BACK_SECS).min(since));
        let mut touched = self.books.touched(looked_at, now).await?;
        if !is_full && !follows_rejections {
            touched.retain(|tally| self.is_urgent(tally, memory.ends_through, now));
        }
        let due = self.books.due_books(if follows_rejections { now.plus_secs(3 * DAY_SECS) } else { now }).await?;
        if touched.is_empty() && due.is_empty() && !is_full && order.is_none() {
            return Ok(Run::default());
        }
        let Some(lease) = self.take_lease(&invocation.id).await? else {
            Line::new("reporter", "another reporter is at work").write(&self.clock);
            return Ok(Run { leased: true, ..Run::default() });
        };
        let shift = Shift {
            now,
            stop_at_ms: invocation.stop_at_ms,
            pace: Pace::new(self.settings.calls_per_sec),
            run: RefCell::default(),
            rejections,
            unanswered: Cell::new(0),
            stopped: Cell::new(false),
            left_open: Cell::new(false),
        };
        let work = Box::pin(self.with_lease(&shift, memory, is_full, touched, due, order));
        let result = self.while_leased(lease, work).await?;
        let mut run = shift.run.into_inner();
        match result {
            Some(result) => {
                self.books.give_lease_back(&invocation.id).await?;
                result?;
            }
            None => run.leased = true,
        }
        self.write_line(&run, is_full);
        Ok(run)
    }

    async fn with_lease(
        &self,
        shift: &Shift,
        mut memory: ReporterMemory,
        is_full: bool,
        touched: Vec<Touched>,
        mut due: Vec<(UserId, String)>,
        order: Option<&Order>,
    ) -> Result<(), Unavailable> {
        if Box::pin(self.is_held(shift, &mut memory, order, is_full)).await? {
            shift.run.borrow_mut().held = true;
            return Ok(());
        }
        if let Some(Order::Replay { user_id, tally_key }) = order {
            let replayed = self.replay(shift, user_id, tally_key.as_deref()).await?;
            due.extend(replayed.into_iter().map(|tally_key| (user_id.clone(), tally_key)));
        }
        let open_hour = self.work(shift, touched, due).await;
        // The hour before stays open: a batch that began in it may be written a little later, and clocks differ.
        let settled = shift.now.hour().plus_secs(-HOUR_SECS);
        let settled = open_hour.map_or(settled, |open| open.min(settled));
        let is_whole = is_full || shift.rejections.is_some();
        if is_whole {
            memory.settled_through = Some(memory.settled_through.map_or(settled, |before| before.max(settled)));
        }
        let reached_all = !shift.is_time_over(&self.clock);
        if is_full && reached_all {
            memory.full_run_at = Some(shift.now);
        }
        if reached_all && !shift.stopped.get() {
            memory.ends_through = Some(shift.now);
            if let Some(rejections) = &shift.rejections
                && is_followed(shift, &mut memory)
            {
                self.books.rejections_followed(rejections.last_at).await?;
            }
        }
        self.books.remember(&memory).await
    }

    /// Whether a tally's segment ended since the last look, or its invoice is soon final.
    fn is_urgent(&self, tally: &Touched, looked_through: Option<EpochSecs>, now: EpochSecs) -> bool {
        let final_after = self.settings.final_after_secs.saturating_sub(BEFORE_FINAL_SECS);
        [MINUTE_SECS, final_after].into_iter().any(|after| {
            let moment = tally.segment_end.as_secs().saturating_add(after);
            moment <= now.as_secs() && looked_through.is_none_or(|through| through.as_secs() < moment)
        })
    }

    /// Visits every tally that was touched or is due. The earliest hour that was not dealt with.
    async fn work(&self, shift: &Shift, touched: Vec<Touched>, due: Vec<(UserId, String)>) -> Option<EpochSecs> {
        let mut by_user: BTreeMap<UserId, BTreeMap<String, Option<(EpochSecs, EpochSecs)>>> = BTreeMap::new();
        for (user_id, tally_key) in due {
            by_user.entry(user_id).or_default().insert(tally_key, None);
        }
        for tally in touched {
            by_user.entry(tally.user_id).or_default().insert(tally.tally_key, Some((tally.hour, tally.segment_end)));
        }
        let mut users: Vec<_> = by_user.into_iter().collect();
        // What ended first and what waits longest comes first; among equals another one each time, so that a run whose time is
        // over does not always leave the same users out.
        users.sort_by_cached_key(|(user_id, tallies)| {
            let first = tallies.values().flatten().map(|(hour, end)| (end.as_secs() > shift.now.as_secs(), *hour)).min();
            (first, stable_hash(&format!("{}/{user_id}", shift.now)))
        });
        let open: Vec<Option<EpochSecs>> = stream::iter(users)
            .map(|(user_id, tallies)| async move {
                let earliest = tallies.values().flatten().map(|(hour, _)| *hour).min();
                match isolated(Box::pin(self.user(shift, &user_id, tallies))).await {
                    Ok(open) => open,
                    Err(panicked) => {
                        shift.run.borrow_mut().error(panicked.to_string());
                        shift.left_open.set(true);
                        earliest
                    }
                }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        open.into_iter().flatten().min()
    }

    fn write_line(&self, run: &Run, is_full: bool) {
        let mut line = Line::new("reporter", "run finished")
            .field("tallies", run.tallies)
            .count("ReportsDelivered", run.delivered)
            .field("refused", run.refused)
            .field("carried", run.carried)
            .field("checked", run.checked)
            .field("rejected", run.rejected)
            .count("ReconciliationDifferences", run.differences)
            .count("NeedsAttention", run.refused.saturating_add(run.rejected))
            .field("overdue", run.overdue)
            .field("held", run.held)
            .field("leased", run.leased);
        // Between whole runs nobody knows how much waits. While the reporter is held, everything does.
        let pending = run.pending.saturating_add(run.overdue).saturating_add(u64::from(run.held));
        line = if is_full || run.held { line.count("ReportsPending", pending) } else { line.field("pending", pending) };
        if !run.errors.is_empty() {
            line = line.field("errors", run.errors.clone());
        }
        line.write(&self.clock);
    }
}

/// Whether what Stripe threw away was looked for everywhere. What could not be looked at is looked at again, though not for ever: a
/// book that can never be read would have every run read all that was counted since.
fn is_followed(shift: &Shift, memory: &mut ReporterMemory) -> bool {
    let since = memory.follows_since.take().unwrap_or(shift.now);
    let is_followed = !shift.left_open.get() || shift.now.secs_since(since) >= FOLLOWED_FOR_SECS;
    if !is_followed {
        memory.follows_since = Some(since);
    }
    is_followed
}

impl Shift {
    fn is_time_over(&self, clock: &impl Clock) -> bool {
        clock.now_ms() >= self.stop_at_ms
    }

    /// Waits for this run's turn to call Stripe. `false` if it should not be called any more in this run.
    async fn may_call(&self, clock: &impl Clock) -> bool {
        if self.stopped.get() || self.is_time_over(clock) {
            return false;
        }
        self.pace.turn().await;
        !self.stopped.get()
    }

    /// Learns from a call that failed, if it did, how to go on.
    fn failed(&self, error: Option<&StripeError>, clock: &impl Clock) {
        let Some(error) = error else { return };
        match error {
            StripeError::Unavailable { retry_after_secs, .. } => {
                self.unanswered.set(self.unanswered.get().saturating_add(1));
                let wait_secs = i64::from(retry_after_secs.unwrap_or(0));
                let is_too_long = clock.now_ms().saturating_add(wait_secs.saturating_mul(1_000)) >= self.stop_at_ms;
                if self.unanswered.get() >= UNANSWERED_CALLS || is_too_long {
                    self.stopped.set(true);
                }
                self.pace.pause(wait_secs);
            }
            StripeError::Unauthorised { .. } => self.stopped.set(true),
            _ => {}
        }
        self.run.borrow_mut().error(error.to_string());
    }
}

impl Run {
    fn error(&mut self, error: String) {
        if !self.errors.contains(&error) && self.errors.len() < 20 {
            self.errors.push(error);
        }
    }
}
