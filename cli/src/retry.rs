//! Input of the quarantine, sent again.

use std::fmt;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokentill::{
    domain::{
        counting::{QuarantineReason, RowKey, moment},
        hint::{HINT_VERSION, Hint},
        id::{EventId, composite_key, composite_parts},
        time::{DAY_SECS, EpochSecs, UtcDay},
        usage::{Message, UsageEvent, read_message},
    },
    ports::{Accounts, Clock, Hints, Ledger, QuarantineEntries, QuarantineEntry, Quarantined, Unavailable, UsageMessages},
};

use crate::Till;

/// A message may wait in its queue. What would be too old by then is not sent.
const QUEUE_WAITS_MS: i64 = 15 * 60 * 1000;

/// How an entry is to be sent again.
#[derive(Debug, Clone, Default)]
pub struct Retry {
    /// The right moment of the event, if the one in the input is wrong or too old.
    pub timestamp: Option<EpochSecs>,
    /// The corrected input of what could not be read.
    pub input: Option<String>,
    /// The event of a conflict was in truth another request: it gets a request id of its own, always the same one.
    pub as_other_request: bool,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Retried {
    /// The input is on the usage queue.
    Sent {
        /// The requests it holds.
        requests: Vec<String>,
    },
    /// The ledger has all of it with these quantities already; nothing was sent.
    KnownBefore,
    /// The customer is looked at again.
    Looking {
        /// The hint's event id.
        event_id: EventId,
    },
    /// Nothing yet: this command for the shell does it.
    Order(String),
}

impl fmt::Display for Retried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sent { requests } => {
                write!(f, "Sent to the usage queue, to be counted at most once: {}.", requests.join(", "))
            }
            Self::KnownBefore => {
                write!(f, "Nothing was sent: the ledger has it already with these quantities. The entry is marked as retried.")
            }
            Self::Looking { event_id } => write!(f, "The customer is looked at again (hint {event_id})."),
            Self::Order(command) => write!(
                f,
                "Nothing was sent. The reporter replays it with this order, which takes each quantity once; not if you have \
                 billed it by hand:\n\n{command}"
            ),
        }
    }
}

/// Why nothing was done, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such entry.
    #[error("the quarantine has no entry {id} on {day}; `cargo till quarantine list --day {day}` shows what it has")]
    NoEntry {
        /// The id that was asked for.
        id: String,
        /// The day that was asked for.
        day: UtcDay,
    },
    /// It would come to nothing, or it would not be safe. The text says what can be done.
    #[error("nothing was sent: {0}")]
    Useless(String),
    /// It could not be tried, or whether it was sent is not certain.
    #[error("not certainly sent: {0}; give the command again, a request is counted at most once")]
    Unavailable(#[from] Unavailable),
    /// It was sent, and its entry does not say so.
    #[error("sent, but not marked as retried: {0}; the command can be given again, a request is counted at most once")]
    NotMarked(Unavailable),
}

fn useless<T>(reason: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Useless(reason.into()))
}

/// One entry.
///
/// # Errors
/// [`Refused`] if there is none, or it cannot be read.
pub async fn entry(quarantine: &impl QuarantineEntries, id: &str, day: UtcDay) -> Result<QuarantineEntry, Refused> {
    quarantine.entry(day, id).await?.ok_or_else(|| Refused::NoEntry { id: id.to_owned(), day })
}

impl<Q, L, A, U, H, C> Till<Q, L, A, U, H, C>
where
    Q: QuarantineEntries,
    L: Ledger,
    A: Accounts,
    U: UsageMessages,
    H: Hints,
    C: Clock,
{
    /// Sends an entry's input again and marks the entry, which stays. For what only the reporter can do, says how.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn retry(&self, id: &str, day: UtcDay, retry: &Retry) -> Result<Retried, Refused> {
        let found = entry(&self.quarantine, id, day).await?;
        let entry = found.quarantined;
        check_options(&entry, retry)?;
        let retried = match entry.reason {
            QuarantineReason::Refused | QuarantineReason::PeriodClosed => return self.order(&entry),
            QuarantineReason::SecondClaimant => self.look_again(&entry).await?,
            QuarantineReason::Invalid if is_hint(&entry) => {
                return useless(
                    "this came in on the account-changes queue and is no hint; have the customer it is about looked at again, \
                     see docs/operations.md",
                );
            }
            QuarantineReason::Invalid
            | QuarantineReason::TimestampTooOld
            | QuarantineReason::TimestampInFuture
            | QuarantineReason::Conflict
            | QuarantineReason::Unstorable => self.report_again(&entry, retry).await?,
        };
        // Marked only now: a crash before leaves an entry that is retried once more, which counts nothing twice.
        self.quarantine.mark_retried(&entry, self.clock.now()).await.map_err(Refused::NotMarked)?;
        Ok(retried)
    }

    async fn report_again(&self, entry: &Quarantined, retry: &Retry) -> Result<Retried, Refused> {
        let body = body_of(entry, retry)?;
        let events = read(&body)?;
        let mut requests = Vec::new();
        let mut known = 0_usize;
        // The input's own moment, not the one that --timestamp gives.
        let reported = match read_message(retry.input.as_ref().unwrap_or(&entry.input)) {
            // With it there is one event; without it each has its own.
            Ok(Message::Events(entries)) if retry.timestamp.is_some() => {
                entries.into_iter().flatten().map(|event| event.timestamp).min()
            }
            _ => None,
        };
        for event in &events {
            if self.is_known(event, entry).await? {
                known = known.saturating_add(1);
                continue;
            }
            self.check_window(event).await?;
            self.check_ledger_remembers(event, entry, reported)?;
            requests.push(event.request_id.to_string());
        }
        if known == events.len() {
            return Ok(Retried::KnownBefore);
        }
        self.usage.send(&body).await?;
        Ok(Retried::Sent { requests })
    }

    /// Whether the ledger has this event already.
    async fn is_known(&self, event: &UsageEvent, entry: &Quarantined) -> Result<bool, Refused> {
        match self.ledger.row(&RowKey::of(event)).await? {
            Some(row) if row.quantities == event.quantities => Ok(true),
            Some(_) => useless(format!(
                "request {} is in the ledger with other quantities; the first report stands{}",
                event.request_id,
                if entry.reason == QuarantineReason::Conflict {
                    ". If this was in truth another request, retry with --as-other-request"
                } else {
                    ""
                }
            )),
            None => Ok(false),
        }
    }

    /// Refuses what the usage function would put back into quarantine for its timestamp.
    async fn check_window(&self, event: &UsageEvent) -> Result<(), Refused> {
        let account = self.accounts.account(&event.user_id).await?;
        let now_ms = self.clock.now_ms();
        for received_at_ms in [now_ms, now_ms.saturating_add(QUEUE_WAITS_MS)] {
            match moment(event, account.as_ref(), received_at_ms) {
                Ok(_) => {}
                Err(QuarantineReason::TimestampInFuture) => {
                    return useless(format!(
                        "request {} is of {}, more than 5 minutes ahead; give the right moment with --timestamp",
                        event.request_id, event.timestamp
                    ));
                }
                Err(_) => {
                    return useless(format!(
                        "request {} is of {}, and what is more than 35 days old cannot be counted at its own moment any more. \
                         Bill it by hand, or give a later moment with --timestamp; never both",
                        event.request_id, event.timestamp
                    ));
                }
            }
        }
        Ok(())
    }

    /// Refuses a request that may have been counted and forgotten. A row is kept from when it was written, which is after the
    /// request was made, and after this entry came in if it was a retry that wrote it.
    fn check_ledger_remembers(
        &self,
        event: &UsageEvent,
        entry: &Quarantined,
        reported: Option<EpochSecs>,
    ) -> Result<(), Refused> {
        let came_in = EpochSecs::from_ms(entry.at_ms);
        let made = reported.unwrap_or(event.timestamp).min(came_in);
        let age_days = self.clock.now().secs_since(made).div_euclid(DAY_SECS);
        // A day less, for clocks that differ.
        if age_days < i64::from(self.ledger_days).saturating_sub(1) {
            return Ok(());
        }
        useless(format!(
            "request {} is {age_days} days old, and the ledger is only sure to know requests for {} days: it may have been \
             counted and forgotten. If LedgerRetentionDays of the stack is greater, give it with --ledger-days; otherwise bill \
             it by hand, if it was not billed",
            event.request_id, self.ledger_days
        ))
    }

    /// Has the claiming customer looked at again.
    async fn look_again(&self, entry: &Quarantined) -> Result<Retried, Refused> {
        let Ok(hint) = serde_json::from_str::<Hint>(&entry.input) else {
            return useless("the entry's input is no hint of a version this command knows; use one that is as new as the stack");
        };
        if hint.v > HINT_VERSION {
            return useless("the entry's input is a hint of a newer version; use a command that is as new as the stack");
        }
        // A new id each time: the queue drops what it has just seen.
        let event_id = composite_key(&[hint.event_id.as_str(), "retry", &self.clock.now_ms().to_string()]);
        let Ok(event_id) = EventId::new(event_id) else { return useless("the hint's event id is too long") };
        let hint = Hint { event_id: event_id.clone(), replay: true, ..hint };
        self.hints.send(&hint, event_id.as_str()).await?;
        Ok(Retried::Looking { event_id })
    }

    /// The order to the reporter that replays an entry's tally.
    fn order(&self, entry: &Quarantined) -> Result<Retried, Refused> {
        let input: Value = serde_json::from_str(&entry.input).unwrap_or_default();
        let (Some(tally_key), Some(user_id)) = (input.get("tally_key").and_then(Value::as_str), &entry.user_id) else {
            return useless("the entry names no tally; order a replay of the user, see docs/operations.md");
        };
        let payload = json!({
            "time": self.clock.now().to_string(),
            "order": {"replay": {"user_id": user_id, "tally_key": tally_key}},
        });
        Ok(Retried::Order(format!(
            "AWS_MAX_ATTEMPTS=1 aws lambda invoke --cli-read-timeout 0 --function-name {} --cli-binary-format raw-in-base64-out \
             --payload {} /dev/stdout",
            quoted(&format!("{}-reporter", self.stack)),
            quoted(&payload.to_string())
        )))
    }
}

/// Refuses options that do not go with the entry.
fn check_options(entry: &Quarantined, retry: &Retry) -> Result<(), Refused> {
    if retry.input.is_some() && (entry.reason != QuarantineReason::Invalid || is_hint(entry)) {
        return useless("--input is for usage that could not be read (reason `invalid`)");
    }
    if retry.as_other_request && entry.reason != QuarantineReason::Conflict {
        return useless("--as-other-request is for a request that was reported before (reason `conflict`)");
    }
    let is_usage =
        !matches!(entry.reason, QuarantineReason::Refused | QuarantineReason::PeriodClosed | QuarantineReason::SecondClaimant);
    if retry.timestamp.is_some() && !is_usage {
        return useless("--timestamp is for usage events");
    }
    Ok(())
}

/// Whether what could not be read came in on the account-changes queue.
fn is_hint(entry: &Quarantined) -> bool {
    composite_parts(&entry.quarantine_id).is_some_and(|parts| parts.first() == Some(&"hint"))
}

/// The message to be sent.
fn body_of(entry: &Quarantined, retry: &Retry) -> Result<String, Refused> {
    let body = retry.input.as_ref().unwrap_or(&entry.input);
    if retry.timestamp.is_none() && !retry.as_other_request {
        return Ok(body.clone());
    }
    let Ok(Value::Object(mut event)) = serde_json::from_str(body) else {
        return useless("the input is no JSON object; correct it with --input");
    };
    if !event.contains_key("request_id") {
        return useless("the input is not one event; correct the moments in a file and give it with --input");
    }
    if let Some(timestamp) = retry.timestamp {
        event.insert("timestamp".to_owned(), timestamp.to_string().into());
    }
    if retry.as_other_request {
        // Made of the entry's id, so that the same entry is the same request however often it is sent.
        let digest = hex::encode(Sha256::digest(entry.quarantine_id.as_bytes()));
        event.insert("request_id".to_owned(), format!("quarantine-{digest}").into());
    }
    Ok(Value::Object(event).to_string())
}

/// The events of a message, if every one of them can be read.
fn read(body: &str) -> Result<Vec<UsageEvent>, Refused> {
    let unreadable = |reason: String| Refused::Useless(format!("{reason}; correct the input in a file and give it with --input"));
    let entries = match read_message(body) {
        Ok(Message::Events(entries)) => entries,
        Ok(Message::Recount(_)) => return Err(unreadable("the input is a recount, no usage event".to_owned())),
        Err(invalid) => return Err(unreadable(invalid.to_string())),
    };
    if entries.is_empty() {
        return Err(unreadable("the input holds no event".to_owned()));
    }
    entries.into_iter().map(|entry| entry.map_err(|(invalid, _)| unreadable(invalid.to_string()))).collect()
}

/// An argument as a shell takes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
