//! Usage: messages come in, every event is audited, and what is billable is counted once.
//!
//! **Invariant:** a request's row and its share of the tally are written in one transaction, never one after the other, so a
//! request is counted exactly when its row is there (G3, G4). Nothing is checked first and written then.

mod task;

use std::collections::{BTreeMap, BTreeSet};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::{StreamExt, stream};
use tokentill::{
    domain::{
        account::Account,
        counting::{self, Batch, Intake, Judged, LedgerRow, QuarantineReason, Repetition, RowKey},
        id::{UserId, composite_key},
        price_list::PriceList,
        time::EpochSecs,
        usage::{self, Invalid, Message, UsageEvent},
    },
    log::Line,
    ports::{Accounts, Clock, Ledger, Parked, ParkedPlace, Quarantine, Quarantined, RowProblem, Unavailable, Written},
    records::{self, Nameless},
};

use task::{Arrival, Origin, Outcome, Reports, Source, Task, UserWork};

/// How many users are worked on at once.
const USERS_AT_ONCE: usize = 32;
/// How many calls for single rows are made at once, over all users: to read one, to raise how often it was seen, or to put
/// something into quarantine.
const ROWS_AT_ONCE: usize = 16;
/// How often a contended batch is tried again before its messages are put back.
const MAX_TRIES: u32 = 6;
/// How many items a hot user's tally is spread over when writers get in each other's way.
const TALLY_SHARDS: u8 = 16;
/// The longest input the quarantine can hold, in bytes; a DynamoDB item has at most 400 KB.
const MAX_QUARANTINED_BYTES: usize = 350_000;
/// How long a recount waits for what it was announced for: the commit that follows it. An older one has nothing to wait for.
const RECOUNT_WAITS_MS: i64 = 15 * 60 * 1000;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Usage<A, L, Q, C> {
    /// Where accounts are read.
    pub accounts: A,
    /// Where usage is written.
    pub ledger: L,
    /// Where input goes that cannot be counted.
    pub quarantine: Q,
    /// The clock intake is dated by.
    pub clock: C,
    /// What is counted.
    pub prices: PriceList,
    /// How many days the audit is kept.
    pub retention_days: u16,
}

/// What a batch of rows is to the ledger.
enum Kind<'a> {
    /// New rows, with the reports that each stands for.
    New(&'a BTreeMap<RowKey, Reports>),
    /// Parked rows that can be counted now, asked for by these records.
    Parked(&'a BTreeSet<usize>),
}

impl Kind<'_> {
    /// The records that have to come again if a row is not written.
    fn records_of(&self, row: &LedgerRow) -> Vec<usize> {
        match self {
            Self::New(reports) => reports.get(&row.key()).map(|reports| reports.records().collect()).unwrap_or_default(),
            Self::Parked(records) => records.iter().copied().collect(),
        }
    }
}

impl<A: Accounts, L: Ledger + Parked, Q: Quarantine, C: Clock> Usage<A, L, Q, C> {
    /// Handles a batch. `invocation` names it, and `stop_at_ms` is when it should stop taking up work.
    ///
    /// # Errors
    /// [`Nameless`] if a record that has to come again has no id.
    pub async fn handle(&self, mut event: SqsEvent, invocation: &str, stop_at_ms: i64) -> Result<SqsBatchResponse, Nameless> {
        let intake = Intake {
            received_at_ms: self.clock.now_ms(),
            written_by: invocation.to_owned(),
            retention_days: self.retention_days,
        };
        let sources = event.records.iter().map(|record| Source::of(record, intake.received_at_ms)).collect();
        let task = Task::new(intake, stop_at_ms, sources, ROWS_AT_ONCE);
        let mut outcome = Outcome::default();
        let mut users: BTreeMap<UserId, UserWork> = BTreeMap::new();
        for (index, record) in event.records.iter_mut().enumerate() {
            match records::isolated(self.read(index, record, &task, &mut users)).await {
                Ok(Ok(quarantined)) => outcome.quarantined = outcome.quarantined.saturating_add(quarantined),
                Ok(Err(error)) => outcome.fail([index], &error),
                Err(panicked) => outcome.panicked([index], panicked),
            }
        }
        let outcomes: Vec<_> = stream::iter(users)
            .map(|(user_id, work)| {
                let records = work.records();
                let task = &task;
                async move {
                    // On the heap, as are the greater parts of it: with its calls to AWS in it, it is too large for the stack.
                    records::isolated(Box::pin(self.user(&user_id, work, task))).await.unwrap_or_else(|panicked| {
                        let mut outcome = Outcome::default();
                        outcome.panicked(records, panicked);
                        outcome
                    })
                }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        for of_user in outcomes {
            outcome.add(of_user);
        }
        let mut line = Line::new("usage", "batch handled")
            .field("records", event.records.len())
            .field("again", outcome.again.len())
            .field("duplicates", outcome.duplicates)
            .field("recounted", outcome.recounted)
            .count("UsageWritten", outcome.written)
            .field("quarantined", outcome.quarantined)
            .count("NeedsAttention", outcome.quarantined);
        if !outcome.errors.is_empty() {
            line = line.field("errors", outcome.errors.into_iter().collect::<Vec<_>>());
        }
        line.write(&self.clock);
        records::answer(outcome.again.into_iter().filter_map(|index| event.records.get(index)))
    }

    /// Reads one record into its users' work, and takes its body, which is needed no longer. What cannot be read goes to
    /// quarantine, each event on its own; how many these were.
    async fn read(
        &self,
        index: usize,
        record: &mut SqsMessage,
        task: &Task,
        users: &mut BTreeMap<UserId, UserWork>,
    ) -> Result<u64, Unavailable> {
        let body = record.body.take().unwrap_or_default();
        let entries = match usage::read_message(&body) {
            Ok(Message::Events(entries)) => entries,
            Ok(Message::Recount(user_id)) => {
                users.entry(user_id).or_default().recounts.push(index);
                return Ok(0);
            }
            Err(invalid) => {
                let quarantine_id = composite_key(&["usage", task.name_of(index)]);
                self.invalid(quarantine_id, invalid.to_string(), body, index, task).await?;
                return Ok(1);
            }
        };
        drop(body);
        let mut events = Vec::with_capacity(entries.len());
        let mut invalid = Vec::new();
        for (position, entry) in entries.into_iter().enumerate() {
            let origin = Origin { record: index, position };
            match entry {
                Ok(event) => events.push(Arrival { origin, event }),
                Err((what, raw)) => invalid.push((origin, what, raw)),
            }
        }
        let quarantined = u64::try_from(invalid.len()).unwrap_or(u64::MAX);
        let keep = |(origin, what, raw): (Origin, Invalid, String)| {
            self.invalid(task.report_name(origin), what.to_string(), raw, index, task)
        };
        let kept: Vec<_> = stream::iter(invalid).map(keep).buffer_unordered(ROWS_AT_ONCE).collect().await;
        kept.into_iter().collect::<Result<(), Unavailable>>()?;
        // Only now, so that a record that comes again because of one event is not counted meanwhile because of the others.
        for arrival in events {
            match users.get_mut(&arrival.event.user_id) {
                Some(work) => work.arrivals.push(arrival),
                None => {
                    users.insert(arrival.event.user_id.clone(), UserWork { arrivals: vec![arrival], recounts: Vec::new() });
                }
            }
        }
        Ok(quarantined)
    }

    async fn invalid(
        &self,
        quarantine_id: String,
        detail: String,
        input: String,
        record: usize,
        task: &Task,
    ) -> Result<(), Unavailable> {
        if input.len() > MAX_QUARANTINED_BYTES {
            // Nothing is lost: the message goes to the dead-letter queue, whole.
            let reason = "an unreadable message is too long for the quarantine; the dead-letter queue keeps it".to_owned();
            return Err(Unavailable { what: "putting something into quarantine", reason });
        }
        let entry = Quarantined {
            quarantine_id,
            reason: QuarantineReason::Invalid,
            detail,
            user_id: None,
            input,
            at_ms: task.sent_at_ms(record),
        };
        self.keep(&entry, task).await
    }

    async fn keep(&self, entry: &Quarantined, task: &Task) -> Result<(), Unavailable> {
        let _permit = task.rows.acquire().await;
        task.time_left(&self.clock)?;
        self.quarantine.keep(entry).await
    }

    /// Works off one user's events and recounts.
    async fn user(&self, user_id: &UserId, work: UserWork, task: &Task) -> Outcome {
        let mut outcome = Outcome::default();
        let account = match self.accounts.account(user_id).await {
            Ok(account) => account,
            Err(error) => {
                outcome.fail(work.records(), &error);
                return outcome;
            }
        };
        // A writer that was not alone takes another shard, so that a hot user's writers part, and stays there.
        let mut shard = 0;
        if !work.arrivals.is_empty() {
            Box::pin(self.count(user_id, work.arrivals, account.as_ref(), task, &mut shard, &mut outcome)).await;
        }
        if !work.recounts.is_empty() {
            let records = work.recounts.into_iter().collect();
            Box::pin(self.recount_parked(user_id, &records, account.as_ref(), task, &mut shard, &mut outcome)).await;
        }
        outcome
    }

    /// Counts one user's events.
    async fn count(
        &self,
        user_id: &UserId,
        arrivals: Vec<Arrival>,
        account: Option<&Account>,
        task: &Task,
        shard: &mut u8,
        outcome: &mut Outcome,
    ) {
        // Two operations on one key would fail a transaction whole, so what is reported twice is merged first.
        let mut reports: BTreeMap<RowKey, Reports> = BTreeMap::new();
        let mut out_of_window: BTreeMap<RowKey, Vec<(Arrival, QuarantineReason)>> = BTreeMap::new();
        let mut conflicts = Vec::new();
        for arrival in arrivals {
            let key = RowKey::of(&arrival.event);
            match counting::moment(&arrival.event, account, task.intake.received_at_ms) {
                Err(reason) => out_of_window.entry(key).or_default().push((arrival, reason)),
                Ok(at) => match reports.get_mut(&key) {
                    Some(first) => conflicts.extend(outcome.merge(first, arrival)),
                    None => {
                        reports.insert(key, Reports::of(arrival, at));
                    }
                },
            }
        }
        // A repetition is one whatever its timestamp, also of what comes beside it.
        let mut looked_up = Vec::new();
        for (key, arrivals) in out_of_window {
            match reports.get_mut(&key) {
                Some(first) => {
                    conflicts.extend(arrivals.into_iter().filter_map(|(arrival, _)| outcome.merge(first, arrival)));
                }
                None => looked_up.push((key, arrivals)),
            }
        }
        let look_up = |(key, arrivals)| Box::pin(self.out_of_window(key, arrivals, task));
        let found: Vec<_> = stream::iter(looked_up).map(look_up).buffer_unordered(ROWS_AT_ONCE).collect().await;
        found.into_iter().for_each(|found| outcome.add(found));
        outcome.add(self.conflicts(conflicts, task).await);
        Box::pin(self.unpark(user_id, task, shard, outcome)).await;
        let rows = reports.values().map(|reports| {
            let mut judged = counting::judge(&reports.event, reports.at, account, &self.prices, &task.intake);
            judged.row.seen = reports.seen();
            judged.row.last_seen_by = task.seen_by(reports);
            judged
        });
        for batch in counting::batches(rows) {
            Box::pin(self.write(&Kind::New(&reports), batch, task, shard, outcome)).await;
            Box::pin(self.unpark(user_id, task, shard, outcome)).await;
        }
    }

    /// Quarantines what says something else than the first report of its request.
    async fn conflicts(&self, arrivals: Vec<Arrival>, task: &Task) -> Outcome {
        let mut outcome = Outcome::default();
        let keep = async |arrival: Arrival| (arrival.origin.record, self.conflict(&arrival.event, arrival.origin, task).await);
        let kept: Vec<_> = stream::iter(arrivals).map(keep).buffer_unordered(ROWS_AT_ONCE).collect().await;
        for (record, result) in kept {
            outcome.quarantined([record], result);
        }
        outcome
    }

    /// Tells repetitions among reports of one request that are outside the window: they are so by the row that stands. The
    /// others are quarantined.
    async fn out_of_window(&self, key: RowKey, arrivals: Vec<(Arrival, QuarantineReason)>, task: &Task) -> Outcome {
        let mut outcome = Outcome::default();
        let found = {
            let _permit = task.rows.acquire().await;
            match task.time_left(&self.clock) {
                Ok(()) => self.ledger.row(&key).await,
                Err(late) => Err(late),
            }
        };
        let stands = match found {
            Ok(stands) => stands,
            Err(error) => {
                outcome.fail(arrivals.iter().map(|(arrival, _)| arrival.origin.record), &error);
                return outcome;
            }
        };
        let mut repeated: Option<Reports> = None;
        let mut conflicts = Vec::new();
        for (arrival, reason) in arrivals {
            match (&stands, &mut repeated) {
                (None, _) => {
                    let detail = format!("timestamp {} is outside the window that can be billed", arrival.event.timestamp);
                    let result = self.set_aside(&arrival.event, arrival.origin, reason, detail, task).await;
                    outcome.quarantined([arrival.origin.record], result);
                }
                (Some(_), Some(first)) => conflicts.extend(outcome.merge(first, arrival)),
                (Some(row), None) if row.quantities == arrival.event.quantities => {
                    let at = arrival.event.timestamp;
                    repeated = Some(Reports::of(arrival, at));
                }
                (Some(_), None) => conflicts.push(arrival),
            }
        }
        outcome.add(self.conflicts(conflicts, task).await);
        if let (Some(row), Some(reports)) = (stands, repeated) {
            outcome.add(Box::pin(self.repeated(&row, &reports, task)).await);
        }
        outcome
    }

    /// Writes a batch and tries again while others are in the way, at most so often and while there is time. If something of
    /// it can never be written, it is halved until that stands alone; the rest is written.
    async fn write(&self, kind: &Kind<'_>, batch: Batch, task: &Task, shard: &mut u8, outcome: &mut Outcome) {
        let now = EpochSecs::from_ms(task.intake.received_at_ms);
        let mut waiting = vec![batch];
        while let Some(mut batch) = waiting.pop() {
            let mut tries = 0;
            while !batch.rows.is_empty() {
                if let Err(late) = task.time_left(&self.clock) {
                    outcome.fail(batch.rows.iter().flat_map(|judged| kind.records_of(&judged.row)), &late);
                    break;
                }
                let written = match kind {
                    Kind::New(_) => self.ledger.write(&batch, *shard, now).await,
                    Kind::Parked(_) => self.ledger.recount(&batch, *shard, now).await,
                };
                let error = match written {
                    Ok(Written::All) => {
                        outcome.wrote(kind, std::mem::take(&mut batch.rows));
                        continue;
                    }
                    Ok(Written::Nothing(problems)) => {
                        let contended = problems.contains(&RowProblem::Contended);
                        batch.rows = self.settle(kind, batch.rows, problems, task, outcome).await;
                        if !contended {
                            continue;
                        }
                        let reason = "other writers stayed in the way; it comes again".to_owned();
                        Unavailable { what: "writing usage", reason }
                    }
                    Ok(Written::Unstorable(reason)) => {
                        let other_half = batch.rows.split_off(batch.rows.len().div_ceil(2));
                        if other_half.is_empty() {
                            self.unstorable(kind, std::mem::take(&mut batch.rows), reason, task, outcome).await;
                        } else {
                            waiting.push(Batch { rows: other_half });
                        }
                        continue;
                    }
                    // It may have been written all the same; the next try recognises its own rows.
                    Err(error) => error,
                };
                tries += 1;
                if tries == MAX_TRIES {
                    outcome.fail(batch.rows.iter().flat_map(|judged| kind.records_of(&judged.row)), &error);
                    break;
                }
                *shard = fastrand::u8(0..TALLY_SHARDS);
                backoff(tries).await;
            }
        }
    }

    /// Takes the rows out of a cancelled batch that stand already; what is left of it.
    async fn settle(
        &self,
        kind: &Kind<'_>,
        rows: Vec<Judged>,
        problems: Vec<RowProblem>,
        task: &Task,
        outcome: &mut Outcome,
    ) -> Vec<Judged> {
        let mut left = Vec::with_capacity(rows.len());
        let mut repeated = Vec::new();
        for (judged, problem) in rows.into_iter().zip(problems) {
            match (problem, kind) {
                (RowProblem::Exists(stands), Kind::New(reports)) => {
                    if let Some(reports) = reports.get(&judged.row.key()) {
                        repeated.push((stands, reports));
                    }
                }
                // Somebody else counted it, or we did and did not hear of it.
                (RowProblem::Exists(_), Kind::Parked(_)) => {}
                (RowProblem::None | RowProblem::Contended, _) => left.push(judged),
            }
        }
        let settle =
            |(stands, reports): (Box<LedgerRow>, _)| Box::pin(async move { self.repeated(&stands, reports, task).await });
        let settled: Vec<_> = stream::iter(repeated).map(settle).buffer_unordered(ROWS_AT_ONCE).collect().await;
        settled.into_iter().for_each(|of_row| outcome.add(of_row));
        left
    }

    /// Deals with reports of a request whose row stands already.
    async fn repeated(&self, stands: &LedgerRow, reports: &Reports, task: &Task) -> Outcome {
        let mut outcome = Outcome::default();
        let seen_by = task.seen_by(reports);
        match counting::repetition(stands, &reports.event.quantities, &seen_by, &task.intake.written_by) {
            Repetition::OwnWrite => outcome.written = 1,
            Repetition::Redelivery => outcome.duplicates = 1,
            Repetition::Duplicate => match self.raise(&stands.key(), reports.seen(), &seen_by, task).await {
                Ok(()) => outcome.duplicates = 1,
                Err(error) => outcome.fail(reports.records(), &error),
            },
            Repetition::Conflict => {
                let result = self.conflict(&reports.event, reports.first(), task).await;
                outcome.quarantined(reports.records(), result);
                return outcome;
            }
        }
        if stands.verdict.is_parked() {
            outcome.parked.push((stands.clone(), reports.records().collect()));
        }
        outcome
    }

    async fn raise(&self, key: &RowKey, times: u64, seen_by: &str, task: &Task) -> Result<(), Unavailable> {
        let _permit = task.rows.acquire().await;
        task.time_left(&self.clock)?;
        self.ledger.seen_again(key, times, seen_by).await
    }

    /// Puts the reports of a row into quarantine that the database can never hold.
    async fn unstorable(&self, kind: &Kind<'_>, rows: Vec<Judged>, reason: String, task: &Task, outcome: &mut Outcome) {
        for judged in rows {
            match kind {
                Kind::New(reports) => {
                    let Some(reports) = reports.get(&judged.row.key()) else { continue };
                    let result =
                        self.set_aside(&reports.event, reports.first(), QuarantineReason::Unstorable, reason.clone(), task).await;
                    outcome.quarantined(reports.records(), result);
                }
                // It stays parked, and the dead-letter queue tells.
                Kind::Parked(records) => {
                    let error = Unavailable { what: "counting parked usage", reason: reason.clone() };
                    outcome.fail(records.iter().copied(), &error);
                }
            }
        }
    }

    /// Counts parked rows that were met in passing, if their user is known by now: the account was committed after it was
    /// read and before the rows were written, or the recount that followed it did not find them.
    async fn unpark(&self, user_id: &UserId, task: &Task, shard: &mut u8, outcome: &mut Outcome) {
        let parked = std::mem::take(&mut outcome.parked);
        if parked.is_empty() {
            return;
        }
        let records: BTreeSet<usize> = parked.iter().flat_map(|(_, records)| records.iter().copied()).collect();
        match self.accounts.account(user_id).await {
            Ok(account) => {
                let known = parked.iter().filter_map(|(row, _)| counting::recount(row, account.as_ref(), &self.prices));
                for batch in counting::batches(known) {
                    Box::pin(self.write(&Kind::Parked(&records), batch, task, shard, outcome)).await;
                }
            }
            Err(error) => outcome.fail(records, &error),
        }
    }

    /// Counts what is parked of a user, for the records that ask for it.
    async fn recount_parked(
        &self,
        user_id: &UserId,
        records: &BTreeSet<usize>,
        account: Option<&Account>,
        task: &Task,
        shard: &mut u8,
        outcome: &mut Outcome,
    ) {
        // Before its first segment nothing can be counted, and an account without any has none yet that could.
        let Some((account, first)) = account.and_then(|account| Some((account, account.segments.first()?))) else {
            return self.wait_for_commit(records, task, outcome);
        };
        // Parked rows are dated as they were reported; the account may read them by its test clock.
        let since = first.start.plus_secs(account.clock_offset_secs.max(0).saturating_neg());
        let mut stay_parked = false;
        for time_shard in 0..counting::TIME_SHARDS {
            let mut next = Some(ParkedPlace { time_key: counting::time_key(user_id, time_shard), after: None });
            while let Some(place) = next.take() {
                let page = match task.time_left(&self.clock) {
                    Ok(()) => self.ledger.parked(&place, since).await,
                    Err(late) => Err(late),
                };
                let (rows, after) = match page {
                    Ok(page) => page,
                    Err(error) => return outcome.fail(records.iter().copied(), &error),
                };
                let known: Vec<Judged> =
                    rows.iter().filter_map(|row| counting::recount(row, Some(account), &self.prices)).collect();
                stay_parked |= known.len() < rows.len();
                for batch in counting::batches(known.into_iter()) {
                    Box::pin(self.write(&Kind::Parked(records), batch, task, shard, outcome)).await;
                }
                next = after;
            }
        }
        if stay_parked {
            self.wait_for_commit(records, task, outcome);
        }
    }

    /// A recount is announced before the commit that it is for, so a young one comes again; an old one is done.
    fn wait_for_commit(&self, records: &BTreeSet<usize>, task: &Task, outcome: &mut Outcome) {
        let is_young = |record: &usize| task.intake.received_at_ms.saturating_sub(task.sent_at_ms(*record)) < RECOUNT_WAITS_MS;
        let young: Vec<usize> = records.iter().copied().filter(is_young).collect();
        if !young.is_empty() {
            let reason = "what it was announced for is not committed yet; it comes again".to_owned();
            outcome.fail(young, &Unavailable { what: "counting parked usage", reason });
        }
    }

    async fn conflict(&self, event: &UsageEvent, origin: Origin, task: &Task) -> Result<(), Unavailable> {
        let detail = format!("request {} was reported before with other quantities; the first report stands", event.request_id);
        self.set_aside(event, origin, QuarantineReason::Conflict, detail, task).await
    }

    async fn set_aside(
        &self,
        event: &UsageEvent,
        origin: Origin,
        reason: QuarantineReason,
        detail: String,
        task: &Task,
    ) -> Result<(), Unavailable> {
        let entry = Quarantined {
            quarantine_id: task.report_name(origin),
            reason,
            detail,
            user_id: Some(event.user_id.to_string()),
            input: event.to_json(),
            at_ms: task.sent_at_ms(origin.record),
        };
        self.keep(&entry, task).await
    }
}

/// Waits between two tries: longer each time, and by chance, so that writers in each other's way part.
async fn backoff(tries: u32) {
    let most_ms = 20_u64.saturating_mul(2_u64.saturating_pow(tries)).min(1_000);
    tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(1..=most_ms))).await;
}
