//! Usage: messages come in, every event is audited, and what is billable is counted once.
//!
//! **Invariant:** a request's row and its share of the tally are written in one transaction, never one after the other, so a
//! request is counted exactly when its row is there (G3, G4). Nothing is checked first and written then.

use std::collections::{BTreeMap, BTreeSet};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::{StreamExt, stream};
use tokentill::{
    domain::{
        counting::{self, Batch, Intake, Judged, QuarantineReason, Repetition},
        id::{UserId, composite_key},
        price_list::PriceList,
        time::EpochSecs,
        usage::{self, UsageEvent},
    },
    log::Line,
    ports::{Accounts, Clock, Ledger, Quarantine, Quarantined, RowProblem, Unavailable, Written},
    records::{self, Nameless},
};

/// How many users are worked on at once.
const USERS_AT_ONCE: usize = 8;
/// How often a contended batch is tried again before its messages are put back.
const MAX_TRIES: u32 = 6;
/// How many items a hot user's tally is spread over when writers get in each other's way.
const TALLY_SHARDS: u8 = 16;
/// The longest input the quarantine can hold, in bytes; a DynamoDB item has at most 400 KB.
const MAX_QUARANTINED_BYTES: usize = 350_000;

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

/// What became of a batch's events, for its one log line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tallied {
    /// Rows written.
    pub written: u64,
    /// Repetitions found.
    pub duplicates: u64,
    /// Events put into quarantine.
    pub quarantined: u64,
}

impl Tallied {
    fn add(&mut self, other: Self) {
        self.written = self.written.saturating_add(other.written);
        self.duplicates = self.duplicates.saturating_add(other.duplicates);
        self.quarantined = self.quarantined.saturating_add(other.quarantined);
    }
}

/// An event with where it came from: which record of the batch, and its place in that record's message. Its name in the
/// quarantine and `sent_at_ms` are the same whenever the message comes, so that it is kept there once.
struct Arrival {
    record: usize,
    quarantine_id: String,
    sent_at_ms: i64,
    event: UsageEvent,
}

/// A row to be written, with the arrivals that wait for it.
struct Pending {
    judged: Judged,
    records: BTreeSet<usize>,
    first: Arrival,
}

impl<A: Accounts, L: Ledger, Q: Quarantine, C: Clock> Usage<A, L, Q, C> {
    /// Handles a batch. `invocation` names it, and `stop_at_ms` is when it should stop taking up work.
    ///
    /// # Errors
    /// [`Nameless`] if a record that has to come again has no id.
    pub async fn handle(&self, event: SqsEvent, invocation: &str, stop_at_ms: i64) -> Result<SqsBatchResponse, Nameless> {
        let intake = Intake {
            received_at_ms: self.clock.now_ms(),
            written_by: invocation.to_owned(),
            retention_days: self.retention_days,
        };
        let mut again: BTreeSet<usize> = BTreeSet::new();
        let mut tallied = Tallied::default();
        let mut errors: BTreeSet<String> = BTreeSet::new();
        let mut arrivals: BTreeMap<UserId, Vec<Arrival>> = BTreeMap::new();
        for (index, record) in event.records.iter().enumerate() {
            match records::isolated(self.read(index, record, &intake)).await {
                Ok(Ok((events, quarantined))) => {
                    tallied.quarantined = tallied.quarantined.saturating_add(quarantined);
                    for arrival in events {
                        arrivals.entry(arrival.event.user_id.clone()).or_default().push(arrival);
                    }
                }
                Ok(Err(error)) => {
                    again.insert(index);
                    errors.insert(error.to_string());
                }
                Err(panicked) => {
                    again.insert(index);
                    errors.insert(panicked.to_string());
                }
            }
        }
        let results: Vec<_> = stream::iter(arrivals)
            .map(|(user_id, arrivals)| {
                let records: BTreeSet<usize> = arrivals.iter().map(|arrival| arrival.record).collect();
                let intake = &intake;
                async move { (records, records::isolated(self.user(&user_id, arrivals, intake, stop_at_ms)).await) }
            })
            .buffer_unordered(USERS_AT_ONCE)
            .collect()
            .await;
        for (records, result) in results {
            match result {
                Ok(outcome) => {
                    tallied.add(outcome.tallied);
                    again.extend(outcome.again);
                    errors.extend(outcome.errors);
                }
                Err(panicked) => {
                    again.extend(records);
                    errors.insert(panicked.to_string());
                }
            }
        }
        let mut line = Line::new("usage", "batch handled")
            .field("records", event.records.len())
            .field("again", again.len())
            .field("duplicates", tallied.duplicates)
            .count("UsageWritten", tallied.written)
            .field("quarantined", tallied.quarantined)
            .count("NeedsAttention", tallied.quarantined);
        if !errors.is_empty() {
            line = line.field("errors", errors.into_iter().collect::<Vec<_>>());
        }
        line.write(&self.clock);
        records::answer(again.into_iter().filter_map(|index| event.records.get(index)))
    }

    /// Reads one record. What cannot be read goes to quarantine, each event on its own.
    async fn read(&self, index: usize, record: &SqsMessage, intake: &Intake) -> Result<(Vec<Arrival>, u64), Unavailable> {
        let body = record.body.as_deref().unwrap_or_default();
        // The same message has the same quarantine ids when it comes again, so it is kept once.
        let message = record.message_id.as_deref().filter(|id| !id.is_empty()).unwrap_or(body);
        let sent_at_ms = records::number_attribute(record, "SentTimestamp").unwrap_or(intake.received_at_ms);
        let entries = match usage::read_message(body) {
            Ok(entries) => entries,
            Err(invalid) => {
                let quarantine_id = composite_key(&["usage", &digest(message)]);
                self.invalid(quarantine_id, invalid.to_string(), body, sent_at_ms).await?;
                return Ok((Vec::new(), 1));
            }
        };
        let mut arrivals = Vec::new();
        let mut quarantined = 0_u64;
        for (position, entry) in entries.into_iter().enumerate() {
            let quarantine_id = composite_key(&["usage", &digest(message), &position.to_string()]);
            match entry {
                Ok(event) => arrivals.push(Arrival { record: index, quarantine_id, sent_at_ms, event }),
                Err((invalid, raw)) => {
                    self.invalid(quarantine_id, invalid.to_string(), &raw, sent_at_ms).await?;
                    quarantined = quarantined.saturating_add(1);
                }
            }
        }
        Ok((arrivals, quarantined))
    }

    async fn invalid(&self, quarantine_id: String, detail: String, input: &str, at_ms: i64) -> Result<(), Unavailable> {
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
            input: input.to_owned(),
            at_ms,
        };
        self.quarantine.keep(&entry).await
    }

    /// Works off one user's events.
    async fn user(&self, user_id: &UserId, arrivals: Vec<Arrival>, intake: &Intake, stop_at_ms: i64) -> UserOutcome {
        let mut outcome = UserOutcome::default();
        let account = match self.accounts.account(user_id).await {
            Ok(account) => account,
            Err(error) => {
                outcome.fail(arrivals.iter().map(|arrival| arrival.record), &error);
                return outcome;
            }
        };
        let mut pending: BTreeMap<(String, String), Pending> = BTreeMap::new();
        for arrival in arrivals {
            match counting::judge(&arrival.event, account.as_ref(), &self.prices, intake) {
                Err(reason) => {
                    let detail = format!("timestamp {} is outside the window that can be billed", arrival.event.timestamp);
                    let result = self.set_aside(&arrival, reason, detail).await;
                    outcome.quarantined([arrival.record], result);
                }
                Ok(judged) => {
                    let key = key_of(&judged);
                    match pending.get_mut(&key) {
                        // Two operations on one key would fail a transaction whole, so the batch is deduplicated first.
                        Some(first) if first.judged.row.quantities == judged.row.quantities => {
                            first.judged.row.seen = first.judged.row.seen.saturating_add(1);
                            first.records.insert(arrival.record);
                            outcome.tallied.duplicates = outcome.tallied.duplicates.saturating_add(1);
                        }
                        Some(_) => {
                            let result = self.conflict(&arrival).await;
                            outcome.quarantined([arrival.record], result);
                        }
                        None => {
                            let records = BTreeSet::from([arrival.record]);
                            pending.insert(key, Pending { judged, records, first: arrival });
                        }
                    }
                }
            }
        }
        self.write(pending, intake, stop_at_ms, &mut outcome).await;
        outcome
    }

    /// Writes rows in batches, drops those that stand already, and tries the rest again while there is time.
    async fn write(
        &self,
        mut pending: BTreeMap<(String, String), Pending>,
        intake: &Intake,
        stop_at_ms: i64,
        outcome: &mut UserOutcome,
    ) {
        let now = EpochSecs::from_ms(intake.received_at_ms);
        for attempt in 0..MAX_TRIES {
            if pending.is_empty() {
                return;
            }
            if attempt > 0 {
                backoff(attempt).await;
            }
            // A writer that was not alone takes another shard, so that a hot user's writers part.
            let shard = if attempt == 0 { 0 } else { fastrand::u8(0..TALLY_SHARDS) };
            let rows = pending.values().map(|pending| pending.judged.clone()).collect();
            for batch in counting::batches(rows) {
                if self.clock.now_ms() >= stop_at_ms {
                    let records = pending.values().flat_map(|pending| pending.records.iter().copied());
                    let reason = "the function's time is nearly over; the rest comes again".to_owned();
                    outcome.fail(records, &Unavailable { what: "writing usage", reason });
                    return;
                }
                match self.ledger.write(&batch, shard, now).await {
                    Ok(Written::All) => {
                        for judged in &batch.rows {
                            pending.remove(&key_of(judged));
                        }
                        outcome.tallied.written =
                            outcome.tallied.written.saturating_add(u64::try_from(batch.rows.len()).unwrap_or(u64::MAX));
                    }
                    Ok(Written::Nothing(problems)) => self.settle(&batch, problems, &mut pending, outcome).await,
                    // It may have been written all the same; the next attempt recognises its own rows.
                    Err(error) if attempt.saturating_add(1) == MAX_TRIES => {
                        let keys = batch.rows.iter().map(key_of);
                        let records: Vec<usize> =
                            keys.filter_map(|key| pending.remove(&key)).flat_map(|pending| pending.records).collect();
                        outcome.fail(records, &error);
                    }
                    Err(_) => {}
                }
            }
        }
        let records = pending.values().flat_map(|pending| pending.records.iter().copied());
        let reason = "other writers stayed in the way; it comes again".to_owned();
        if !pending.is_empty() {
            outcome.fail(records, &Unavailable { what: "writing usage", reason });
        }
    }

    /// Takes the rows out of a cancelled batch that stand already.
    async fn settle(
        &self,
        batch: &Batch,
        problems: Vec<RowProblem>,
        pending: &mut BTreeMap<(String, String), Pending>,
        outcome: &mut UserOutcome,
    ) {
        for (judged, problem) in batch.rows.iter().zip(problems) {
            let RowProblem::Exists(stands) = problem else { continue };
            let Some(entry) = pending.remove(&key_of(judged)) else { continue };
            match counting::repetition(&stands, &judged.row) {
                Repetition::OwnWrite => outcome.tallied.written = outcome.tallied.written.saturating_add(1),
                Repetition::Duplicate => match self.ledger.seen_again(&stands, judged.row.seen).await {
                    Ok(()) => outcome.tallied.duplicates = outcome.tallied.duplicates.saturating_add(1),
                    Err(error) => outcome.fail(entry.records, &error),
                },
                Repetition::Conflict => {
                    let result = self.conflict(&entry.first).await;
                    outcome.quarantined(entry.records, result);
                }
            }
        }
    }

    async fn conflict(&self, arrival: &Arrival) -> Result<(), Unavailable> {
        let detail =
            format!("request {} was reported before with other quantities; the first report stands", arrival.event.request_id);
        self.set_aside(arrival, QuarantineReason::Conflict, detail).await
    }

    async fn set_aside(&self, arrival: &Arrival, reason: QuarantineReason, detail: String) -> Result<(), Unavailable> {
        let entry = Quarantined {
            quarantine_id: arrival.quarantine_id.clone(),
            reason,
            detail,
            user_id: Some(arrival.event.user_id.to_string()),
            input: arrival.event.to_json(),
            at_ms: arrival.sent_at_ms,
        };
        self.quarantine.keep(&entry).await
    }
}

/// What became of one user's events.
#[derive(Default)]
struct UserOutcome {
    tallied: Tallied,
    again: BTreeSet<usize>,
    errors: BTreeSet<String>,
}

impl UserOutcome {
    fn fail(&mut self, records: impl IntoIterator<Item = usize>, error: &Unavailable) {
        self.again.extend(records);
        self.errors.insert(error.to_string());
    }

    fn quarantined(&mut self, records: impl IntoIterator<Item = usize>, result: Result<(), Unavailable>) {
        match result {
            Ok(()) => self.tallied.quarantined = self.tallied.quarantined.saturating_add(1),
            Err(error) => self.fail(records, &error),
        }
    }
}

fn key_of(judged: &Judged) -> (String, String) {
    (judged.row.request_key.clone(), judged.row.row.clone())
}

/// A short name for a message, the same whenever it comes.
fn digest(message: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(message.as_bytes()).get(..16).unwrap_or_default())
}

/// Waits between two attempts: longer each time, and by chance, so that writers in each other's way part.
async fn backoff(attempt: u32) {
    let most_ms = 20_u64.saturating_mul(2_u64.saturating_pow(attempt)).min(1_000);
    tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(1..=most_ms))).await;
}
