//! What one invocation has to do, and what became of it.

use std::collections::BTreeSet;

use aws_lambda_events::sqs::SqsMessage;
use tokentill::{
    domain::{
        counting::{Intake, Judged, LedgerRow},
        id::{composite_key, stable_hash},
        time::EpochSecs,
        usage::UsageEvent,
    },
    ports::{Clock, Unavailable},
    records::{self, Panicked},
};
use tokio::sync::Semaphore;

use crate::Kind;

/// A record of the batch: what is still needed of it when its body is read.
pub(crate) struct Source {
    name: String,
    sent_at_ms: i64,
}

impl Source {
    pub(crate) fn of(record: &SqsMessage, received_at_ms: i64) -> Self {
        let sent_at_ms = records::number_attribute(record, "SentTimestamp").unwrap_or(received_at_ms);
        Self { name: records::name_of(record), sent_at_ms }
    }
}

/// Where an event came from: which record of the batch, and its place in that record's message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) record: usize,
    pub(crate) position: usize,
}

/// An event with where it came from.
pub(crate) struct Arrival {
    pub(crate) origin: Origin,
    pub(crate) event: UsageEvent,
}

/// Reports of one row that say the same: the first one's event, its moment, and where each of them came from.
pub(crate) struct Reports {
    pub(crate) event: UsageEvent,
    pub(crate) at: EpochSecs,
    first: Origin,
    others: Vec<Origin>,
}

impl Reports {
    pub(crate) fn of(arrival: Arrival, at: EpochSecs) -> Self {
        Self { event: arrival.event, at, first: arrival.origin, others: Vec::new() }
    }

    /// Where the first one came from. They are quarantined together, under its name.
    pub(crate) fn first(&self) -> Origin {
        self.first
    }

    /// How many they are.
    pub(crate) fn seen(&self) -> u64 {
        u64::try_from(self.others.len()).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// The records that hold them.
    pub(crate) fn records(&self) -> impl Iterator<Item = usize> {
        self.origins().map(|origin| origin.record)
    }

    fn origins(&self) -> impl Iterator<Item = Origin> {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

/// What is to be done for one user.
#[derive(Default)]
pub(crate) struct UserWork {
    /// Events to be counted.
    pub(crate) arrivals: Vec<Arrival>,
    /// Records that ask for a recount.
    pub(crate) recounts: Vec<usize>,
}

impl UserWork {
    pub(crate) fn records(&self) -> BTreeSet<usize> {
        self.arrivals.iter().map(|arrival| arrival.origin.record).chain(self.recounts.iter().copied()).collect()
    }
}

/// One invocation's circumstances.
pub(crate) struct Task {
    pub(crate) intake: Intake,
    /// A permit for each call for a single row, so that there are only so many at once over all users.
    pub(crate) rows: Semaphore,
    stop_at_ms: i64,
    sources: Vec<Source>,
}

impl Task {
    pub(crate) fn new(intake: Intake, stop_at_ms: i64, sources: Vec<Source>, rows_at_once: usize) -> Self {
        Self { intake, rows: Semaphore::new(rows_at_once), stop_at_ms, sources }
    }

    /// A record's name, the same whenever it comes.
    pub(crate) fn name_of(&self, record: usize) -> &str {
        self.sources.get(record).map(|source| source.name.as_str()).unwrap_or_default()
    }

    /// When a record was sent, the same whenever it comes, so that what is quarantined of it is kept once.
    pub(crate) fn sent_at_ms(&self, record: usize) -> i64 {
        self.sources.get(record).map_or(self.intake.received_at_ms, |source| source.sent_at_ms)
    }

    /// A report's name, the same whenever its message comes; also its name in the quarantine.
    pub(crate) fn report_name(&self, origin: Origin) -> String {
        composite_key(&["usage", self.name_of(origin.record), &origin.position.to_string()])
    }

    /// A short name for several reports together, the same in whatever order they come.
    pub(crate) fn seen_by(&self, reports: &Reports) -> String {
        let names: BTreeSet<String> = reports.origins().map(|origin| self.report_name(origin)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        format!("{:016x}", stable_hash(&composite_key(&names)))
    }

    /// Whether further work may be begun.
    ///
    /// # Errors
    /// [`Unavailable`] if the time for it is over.
    pub(crate) fn time_left(&self, clock: &impl Clock) -> Result<(), Unavailable> {
        if clock.now_ms() < self.stop_at_ms {
            return Ok(());
        }
        let reason = "the function's time is nearly over; the rest comes again".to_owned();
        Err(Unavailable { what: "writing usage", reason })
    }
}

/// What became of events and recounts.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Rows written.
    pub(crate) written: u64,
    /// Repetitions found.
    pub(crate) duplicates: u64,
    /// Parked rows that were decided about.
    pub(crate) recounted: u64,
    /// Events put into quarantine.
    pub(crate) quarantined: u64,
    /// Records that have to come again.
    pub(crate) again: BTreeSet<usize>,
    /// What went wrong, each once.
    pub(crate) errors: BTreeSet<String>,
    /// Parked rows that were written or met, with the records that report them.
    pub(crate) parked: Vec<(LedgerRow, Vec<usize>)>,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Self) {
        self.written = self.written.saturating_add(other.written);
        self.duplicates = self.duplicates.saturating_add(other.duplicates);
        self.recounted = self.recounted.saturating_add(other.recounted);
        self.quarantined = self.quarantined.saturating_add(other.quarantined);
        self.again.extend(other.again);
        self.errors.extend(other.errors);
        self.parked.extend(other.parked);
    }

    /// Adds a report to the first of its request in this batch. One that says something else comes back.
    pub(crate) fn merge(&mut self, first: &mut Reports, arrival: Arrival) -> Option<Arrival> {
        if first.event.quantities != arrival.event.quantities {
            return Some(arrival);
        }
        first.others.push(arrival.origin);
        self.duplicates = self.duplicates.saturating_add(1);
        None
    }

    pub(crate) fn fail(&mut self, records: impl IntoIterator<Item = usize>, error: &Unavailable) {
        self.again.extend(records);
        self.errors.insert(error.to_string());
    }

    pub(crate) fn panicked(&mut self, records: impl IntoIterator<Item = usize>, panicked: Panicked) {
        self.again.extend(records);
        self.errors.insert(panicked.to_string());
    }

    pub(crate) fn quarantined(&mut self, records: impl IntoIterator<Item = usize>, result: Result<(), Unavailable>) {
        match result {
            Ok(()) => self.quarantined = self.quarantined.saturating_add(1),
            Err(error) => self.fail(records, &error),
        }
    }

    /// Notes rows that are written now.
    pub(crate) fn wrote(&mut self, kind: &Kind<'_>, rows: Vec<Judged>) {
        let count = u64::try_from(rows.len()).unwrap_or(u64::MAX);
        match kind {
            Kind::New(_) => {
                self.written = self.written.saturating_add(count);
                let parked = rows.into_iter().map(|judged| judged.row).filter(|row| row.verdict.is_parked());
                self.parked.extend(parked.map(|row| {
                    let records = kind.records_of(&row);
                    (row, records)
                }));
            }
            Kind::Parked(_) => self.recounted = self.recounted.saturating_add(count),
        }
    }
}
