//! What the quarantine holds, as text for a terminal.

use serde::Deserialize;
use tokentill::{
    domain::{
        counting::QuarantineReason,
        time::{EpochSecs, UtcDay},
    },
    ports::{QuarantineEntries, QuarantineEntry, Unavailable},
};

/// Which entries are listed.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those of this reason.
    pub reason: Option<QuarantineReason>,
    /// Only those of this user.
    pub user_id: Option<String>,
}

impl Filter {
    fn takes(&self, entry: &QuarantineEntry) -> bool {
        let entry = &entry.quarantined;
        self.reason.is_none_or(|reason| reason == entry.reason)
            && self.user_id.as_ref().is_none_or(|user_id| entry.user_id.as_ref() == Some(user_id))
    }
}

/// Reads a reason by its name in the table.
///
/// # Errors
/// A text that says which there are.
pub fn parse_reason(name: &str) -> Result<QuarantineReason, String> {
    let parsed = QuarantineReason::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name));
    parsed.map_err(|error| error.to_string())
}

fn name_of(reason: QuarantineReason) -> &'static str {
    match reason {
        QuarantineReason::Invalid => "invalid",
        QuarantineReason::TimestampTooOld => "timestamp_too_old",
        QuarantineReason::TimestampInFuture => "timestamp_in_future",
        QuarantineReason::Conflict => "conflict",
        QuarantineReason::SecondClaimant => "second_claimant",
        QuarantineReason::Refused => "refused",
        QuarantineReason::PeriodClosed => "period_closed",
        QuarantineReason::Unstorable => "unstorable",
    }
}

/// The entries of some days as a table, in the order of the days given.
///
/// # Errors
/// [`Unavailable`].
pub async fn list(quarantine: &impl QuarantineEntries, days: &[UtcDay], filter: &Filter) -> Result<String, Unavailable> {
    let mut rows = vec![["DAY", "REASON", "USER", "RETRIED", "ID", "DETAIL"].map(str::to_owned)];
    for day in days {
        for entry in quarantine.entries(*day).await?.into_iter().filter(|entry| filter.takes(entry)) {
            let QuarantineEntry { quarantined, retried_at } = entry;
            rows.push([
                day.to_string(),
                name_of(quarantined.reason).to_owned(),
                printable(quarantined.user_id.as_deref().unwrap_or("-")),
                retried_at.map_or("-".to_owned(), |at| at.to_string()),
                printable(&quarantined.quarantine_id),
                printable(&quarantined.detail),
            ]);
        }
    }
    if rows.len() == 1 {
        return Ok("The quarantine has nothing of this.\n".to_owned());
    }
    let mut widths = [0; 6];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; 6]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    Ok(rows.iter().map(line).collect())
}

/// One entry whole: what happened, what to do, and the input as it came.
#[must_use]
pub fn explain(entry: &QuarantineEntry) -> String {
    let QuarantineEntry { quarantined, retried_at } = entry;
    let (happened, to_do) = advice(quarantined.reason);
    let retried = retried_at.map_or("never".to_owned(), |at| at.to_string());
    format!(
        "id             {}\ncame in        {}\nuser           {}\nreason         {}\ndetail         {}\nretried        {retried}\n\
         what happened  {happened}\nwhat to do     {to_do}\n\n{}\n",
        printable(&quarantined.quarantine_id),
        EpochSecs::from_ms(quarantined.at_ms),
        printable(quarantined.user_id.as_deref().unwrap_or("-")),
        name_of(quarantined.reason),
        printable(&quarantined.detail),
        printable(&quarantined.input),
    )
}

/// What happened, and what to do: as in docs/operations.md.
fn advice(reason: QuarantineReason) -> (&'static str, &'static str) {
    match reason {
        QuarantineReason::Invalid => (
            "a message or event cannot be read; the detail names the field",
            "correct the input in a file and retry with --input FILE. Events beside it in the message were counted",
        ),
        QuarantineReason::TimestampTooOld => {
            ("more than 35 days old: Stripe would not take it", "bill it by hand, or retry with a later --timestamp; never both")
        }
        QuarantineReason::TimestampInFuture => (
            "more than 5 minutes ahead",
            "correct the service's clock; retry with the right --timestamp, or as it is once its moment has come",
        ),
        QuarantineReason::Conflict => (
            "the request was reported before with other quantities",
            "the first report stands; correct the service. If it was in truth another request, retry with --as-other-request",
        ),
        QuarantineReason::SecondClaimant => (
            "a customer names a user who is bound to another customer",
            "correct metadata.user_id at Stripe, then retry. When the other customer's subscription ends, that happens by itself",
        ),
        QuarantineReason::Refused => (
            "Stripe refused a report for good, for instance because its value was not taken",
            "mend the cause; retry then prints the order that replays its tally. It is never sent again by itself",
        ),
        QuarantineReason::PeriodClosed => (
            "usage was counted after its period's invoice was final, and the customer has no present period that bills this meter",
            "once the customer has a subscription again, retry prints the order that replays its tally into that one; or bill it \
             by hand, and never replay it",
        ),
        QuarantineReason::Unstorable => (
            "DynamoDB can never hold the event's row, or its tally cannot be added to; the detail is DynamoDB's reason",
            "mend the cause, then retry",
        ),
    }
}

/// What others wrote, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}
