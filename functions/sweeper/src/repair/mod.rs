//! Repair: what Stripe never delivered is found and looked at, and whatever keeps Stripe from delivering is told.
//!
//! **Invariant:** a checkpoint is saved only once everything before it is queued, and under the version it was read in. So a run may
//! end anywhere, run twice, late or beside another: something may be queued twice, which `sync` makes nothing of, but nothing is
//! passed over.
//!
//! Nothing here changes an account. What is found becomes a hint, and `sync` does with it what it does with every other one.

mod comparison;
mod endpoint;
mod events;
mod silence;

use tokentill::{
    config::StripeMode,
    domain::{price_list::PriceList, time::EpochSecs},
    log::Line,
    ports::{AccountBatches, Clock, Commit, Hints, StripeError, StripeLists, SweeperMemory, SweeperState, Unavailable},
    records,
};

/// The repairs, with what they need of the world.
#[derive(Debug)]
pub struct Repair<L, A, Q, C> {
    /// What Stripe lists.
    pub stripe: L,
    /// What is stored, and what is kept in mind.
    pub stored: A,
    /// Where hints go.
    pub hints: Q,
    /// The clock that says what time is left.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
    /// The mode that events and subscriptions are of.
    pub mode: StripeMode,
    /// What can be set.
    pub settings: Settings,
}

/// What can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where Stripe's events are to be delivered to.
    pub webhook_url: String,
    /// After how many hours without a delivery it is told; 0 for never.
    pub silence_hours: u32,
    /// All subscriptions are compared on every so many days.
    pub compare_every_days: u32,
}

/// One invocation: its name, and what time it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Its name, as no other invocation has it.
    pub id: String,
    /// When to take up no more work, in milliseconds since 1970.
    pub stop_at_ms: i64,
    /// When it is over at the latest, in milliseconds since 1970.
    pub ends_at_ms: i64,
}

/// What a run came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Another run was at work, so nothing was done; or it took over.
    pub others_at_work: bool,
    /// Events that were queued.
    pub queued: u64,
    /// Those of them that nobody had seen.
    pub events: u64,
    /// Subscriptions that were compared.
    pub compared: u64,
    /// Customers that were queued because they differ.
    pub differences: u64,
    /// Events and subscriptions that could not be read.
    pub unreadable: u64,
    /// What was told of silence and of the endpoint.
    pub told: u64,
    /// Parts that failed.
    pub failed: u64,
}

/// Why a part ended before it was done.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Store(#[from] Unavailable),
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error("it panicked")]
    Panicked,
    /// Another run saved its memory first.
    #[error("another run took over")]
    LostRace,
}

/// The parts of a repair, in the order in which they are done.
#[derive(Debug, Clone, Copy)]
enum Part {
    Endpoint,
    Silence,
    Events,
    Comparison,
}

impl Part {
    const ALL: [Self; 4] = [Self::Endpoint, Self::Silence, Self::Events, Self::Comparison];

    fn as_str(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Silence => "silence",
            Self::Events => "events",
            Self::Comparison => "comparison",
        }
    }
}

impl<L, A, Q, C> Repair<L, A, Q, C>
where
    L: StripeLists,
    A: AccountBatches + SweeperState,
    Q: Hints,
    C: Clock,
{
    /// Does every part for the moment `now`. One that fails holds up no other, and is done by the next run.
    pub async fn run(&self, now: EpochSecs, invocation: &Invocation) -> Repaired {
        // A moment ahead of the clock would move checkpoints past what is still to come.
        let now = now.min(self.clock.now());
        let mut run = Repaired::default();
        match self.begin(now, invocation).await {
            Ok(true) => {}
            Ok(false) => {
                run.others_at_work = true;
                self.line("another sweeper is at work").write(&self.clock);
                return run;
            }
            Err(error) => {
                self.failed(&mut run, "begin", &error);
                return run;
            }
        }
        let mut endpoint_good_at = None;
        for part in Part::ALL {
            let done = records::isolated(self.part(part, now, invocation, &mut run, &mut endpoint_good_at)).await;
            match done.unwrap_or(Err(Ended::Panicked)) {
                Ok(()) => {}
                Err(Ended::LostRace) => {
                    run.others_at_work = true;
                    self.line("another sweeper took over").write(&self.clock);
                    return run;
                }
                Err(error) => self.failed(&mut run, part.as_str(), &error),
            }
        }
        if let Err(error) = self.end(invocation, endpoint_good_at).await {
            self.failed(&mut run, "end", &error);
        }
        run
    }

    /// Notes that this run is at work; `false` if another one may be.
    async fn begin(&self, now: EpochSecs, invocation: &Invocation) -> Result<bool, Ended> {
        let mut memory = self.stored.sweeper_memory().await?;
        if memory.owner != invocation.id && memory.busy_until_ms.is_some_and(|until_ms| until_ms > self.clock.now_ms()) {
            return Ok(false);
        }
        memory.owner.clone_from(&invocation.id);
        memory.busy_until_ms = Some(invocation.ends_at_ms);
        memory.first_run_at.get_or_insert(now);
        Ok(self.stored.remember_sweep(&mut memory).await? == Commit::Done)
    }

    async fn part(
        &self,
        part: Part,
        now: EpochSecs,
        invocation: &Invocation,
        run: &mut Repaired,
        endpoint_good_at: &mut Option<EpochSecs>,
    ) -> Result<(), Ended> {
        // Read anew for each part: what the one before wrote last may not be certain.
        let mut memory = self.own_memory(invocation).await?;
        match part {
            Part::Endpoint => {
                *endpoint_good_at = self.endpoint(&mut memory, now, run).await?;
                Ok(())
            }
            Part::Silence => self.silence(&mut memory, now, run).await,
            Part::Events => self.events(&mut memory, now, invocation, run).await,
            Part::Comparison => self.comparison(&mut memory, now, invocation, run).await,
        }
    }

    /// Notes that no run is at work, and when the endpoint was in order, if it was. Until here the moment before that holds.
    async fn end(&self, invocation: &Invocation, endpoint_good_at: Option<EpochSecs>) -> Result<(), Ended> {
        let mut memory = self.own_memory(invocation).await?;
        memory.endpoint_good_at = endpoint_good_at.or(memory.endpoint_good_at);
        memory.busy_until_ms = None;
        self.remember(&mut memory).await
    }

    async fn own_memory(&self, invocation: &Invocation) -> Result<SweeperMemory, Ended> {
        let memory = self.stored.sweeper_memory().await?;
        if memory.owner == invocation.id { Ok(memory) } else { Err(Ended::LostRace) }
    }

    async fn remember(&self, memory: &mut SweeperMemory) -> Result<(), Ended> {
        match self.stored.remember_sweep(memory).await? {
            Commit::Done => Ok(()),
            Commit::LostRace => Err(Ended::LostRace),
        }
    }

    fn is_over(&self, invocation: &Invocation) -> bool {
        self.clock.now_ms() >= invocation.stop_at_ms
    }

    fn line(&self, message: &'static str) -> Line {
        Line::new("sweeper", message)
    }

    fn failed(&self, run: &mut Repaired, part: &'static str, error: &Ended) {
        run.failed = run.failed.saturating_add(1);
        let line = self.line("a repair failed: the next run does it").field("part", part).field("error", error.to_string());
        line.count("NeedsAttention", 1).write(&self.clock);
    }
}
