//! The reporter: sends what is counted and not yet reported to Stripe's meters.
//!
//! **Invariant:** what goes to Stripe is fixed before it is sent. The intent is saved under the book's version first, then
//! sent, then confirmed; a crash anywhere sends the same report again under the same identifier (G3, G4).

use std::collections::BTreeMap;

use futures_util::{StreamExt, stream};
use tokentill::{
    domain::{
        counting::QuarantineReason,
        id::{MeterId, UserId, composite_key},
        price_list::PriceList,
        report::{self, Book, Fate, MeterReport, Tally},
        time::{DAY_SECS, EpochSecs, HOUR_SECS},
    },
    log::Line,
    ports::{Books, Clock, Commit, MeterSink, Quarantine, Quarantined, StripeError, Touched, Unavailable},
};

/// How many users are worked on at once. One customer has at most one call under way, as Stripe wants it for each meter.
const USERS_AT_ONCE: usize = 4;
/// How far back the first run looks: as far as usage is taken.
const FIRST_LOOK_BACK_SECS: i64 = 36 * DAY_SECS;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Reporter<B, M, Q, C, I> {
    /// The tallies and what is known of them.
    pub books: B,
    /// Stripe's meters.
    pub meters: M,
    /// Where reports go that Stripe refuses.
    pub quarantine: Q,
    /// The clock attempts are dated by.
    pub clock: C,
    /// What is reported under which name.
    pub prices: PriceList,
    /// Makes identifiers that never repeat.
    pub identifiers: I,
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Run {
    /// Tallies looked at.
    pub tallies: u64,
    /// Reports that Stripe has.
    pub delivered: u64,
    /// Reports that Stripe refused.
    pub refused: u64,
    /// Reports of unknown fate, to be sent again.
    pub pending: u64,
    /// Reports of unknown fate for too long to be sent again.
    pub overdue: u64,
    /// What went wrong, each kind once.
    pub errors: Vec<String>,
}

impl<B: Books, M: MeterSink, Q: Quarantine, C: Clock, I: Fn() -> String> Reporter<B, M, Q, C, I> {
    /// Reports everything that was counted up to the hour of `now` and is not reported.
    ///
    /// # Errors
    /// [`Unavailable`] if it cannot even be found what there is to report.
    pub async fn run(&self, now: EpochSecs) -> Result<Run, Unavailable> {
        // Nobody's future: a moment ahead of the clock would move the checkpoint past what is still to be counted.
        let now = now.min(self.clock.now());
        let settled_through = self.books.settled_through().await?;
        let since = settled_through.unwrap_or_else(|| now.plus_secs(-FIRST_LOOK_BACK_SECS));
        let touched = self.books.touched(since, now).await?;
        let mut by_user: BTreeMap<UserId, Vec<Touched>> = BTreeMap::new();
        for tally in touched {
            by_user.entry(tally.user_id.clone()).or_default().push(tally);
        }
        let results: Vec<(Run, Option<EpochSecs>)> =
            stream::iter(by_user.into_values()).map(|touched| self.user(touched)).buffer_unordered(USERS_AT_ONCE).collect().await;

        let mut run = Run::default();
        // The hour before stays open: a batch that began in it may be written a little later, and clocks differ.
        let mut settled = now.hour().plus_secs(-HOUR_SECS);
        for (result, unsettled) in results {
            run.add(result);
            settled = unsettled.map_or(settled, |hour| hour.min(settled));
        }
        if settled_through.is_none_or(|before| settled > before) {
            self.books.set_settled_through(settled).await?;
        }
        let mut line = Line::new("reporter", "run finished")
            .field("tallies", run.tallies)
            .count("ReportsDelivered", run.delivered)
            .field("refused", run.refused)
            .count("NeedsAttention", run.refused)
            .count("ReportsPending", run.pending.saturating_add(run.overdue))
            .field("overdue", run.overdue);
        if !run.errors.is_empty() {
            line = line.field("errors", run.errors.clone());
        }
        line.write(&self.clock);
        Ok(run)
    }

    /// Reports one user's tallies, one after the other; also the earliest hour that still holds something unsettled.
    async fn user(&self, touched: Vec<Touched>) -> (Run, Option<EpochSecs>) {
        let mut run = Run::default();
        let mut unsettled: Option<EpochSecs> = None;
        for tally in touched {
            run.tallies = run.tallies.saturating_add(1);
            let settled = match self.tally(&tally, &mut run).await {
                Ok(settled) => settled,
                Err(error) => {
                    run.error(error.to_string());
                    false
                }
            };
            if !settled {
                unsettled = Some(unsettled.map_or(tally.hour, |hour| hour.min(tally.hour)));
            }
        }
        (run, unsettled)
    }

    /// Reports one tally. Whether nothing of it is left to report.
    async fn tally(&self, touched: &Touched, run: &mut Run) -> Result<bool, Unavailable> {
        let (user_id, key) = (&touched.user_id, touched.tally_key.as_str());
        let Some(tally) = self.books.tally(user_id, key).await? else { return Ok(true) };
        let mut book = self.books.book(user_id, key).await?;
        let overdue = u64::try_from(report::overdue_intents(&book, self.clock.now()).len()).unwrap_or(u64::MAX);
        run.overdue = run.overdue.saturating_add(overdue);
        // What is under way from an earlier run goes first, so that what is new can be intended after it.
        if !self.send(&tally, &mut book, run).await? {
            return Ok(false);
        }
        if report::intend(&tally, &mut book, &self.prices, self.clock.now(), &self.identifiers) {
            if self.books.save(user_id, key, &mut book).await? == Commit::LostRace {
                return Ok(false);
            }
            if !self.send(&tally, &mut book, run).await? {
                return Ok(false);
            }
        }
        let settled = report::is_settled(&tally, &book);
        if !settled && book.meters.values().all(|entry| entry.intent.is_none()) {
            // Nothing is under way and something is left: a segment of seconds, or a meter that left the price list.
            run.pending = run.pending.saturating_add(1);
        }
        Ok(settled)
    }

    /// Sends what is under way and saves what became of it. `false` if another reporter was at the book.
    async fn send(&self, tally: &Tally, book: &mut Book, run: &mut Run) -> Result<bool, Unavailable> {
        let mut fates: Vec<(MeterId, Fate)> = Vec::new();
        for (meter, report) in report::to_send(book, self.clock.now()) {
            let fate = match self.meters.send(&report).await {
                Ok(_) => Fate::Delivered,
                Err(StripeError::Refused { code, message, request_id, .. }) => {
                    let detail = format!("Stripe refused the report: {code}: {message} (request {request_id})");
                    self.keep_refused(tally, &meter, &report, detail).await?;
                    Fate::Refused
                }
                Err(error) => {
                    run.error(error.to_string());
                    Fate::Unknown
                }
            };
            let counter = match fate {
                Fate::Delivered => &mut run.delivered,
                Fate::Refused => &mut run.refused,
                Fate::Unknown => &mut run.pending,
            };
            *counter = counter.saturating_add(1);
            fates.push((meter, fate));
        }
        if fates.iter().all(|(_, fate)| *fate == Fate::Unknown) {
            return Ok(true);
        }
        for (meter, fate) in &fates {
            report::settle(book, meter, *fate);
        }
        Ok(self.books.save(&tally.user_id, &tally.tally_key, book).await? == Commit::Done)
    }

    async fn keep_refused(
        &self,
        tally: &Tally,
        meter: &MeterId,
        report: &MeterReport,
        detail: String,
    ) -> Result<(), Unavailable> {
        let input = serde_json::json!({
            "customer": report.customer, "meter": meter, "event_name": report.event_name, "identifier": report.identifier,
            "quantity": report.quantity, "minute": report.minute, "tally_key": tally.tally_key,
        });
        let entry = Quarantined {
            quarantine_id: composite_key(&["report", &report.identifier]),
            reason: QuarantineReason::Refused,
            detail,
            user_id: Some(tally.user_id.to_string()),
            input: input.to_string(),
            at_ms: report.minute.as_secs().saturating_mul(1000),
        };
        self.quarantine.keep(&entry).await
    }
}

impl Run {
    fn add(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.tallies, other.tallies),
            (&mut self.delivered, other.delivered),
            (&mut self.refused, other.refused),
            (&mut self.pending, other.pending),
            (&mut self.overdue, other.overdue),
        ] {
            *sum = sum.saturating_add(more);
        }
        for error in other.errors {
            self.error(error);
        }
    }

    fn error(&mut self, error: String) {
        if !self.errors.contains(&error) && self.errors.len() < 20 {
            self.errors.push(error);
        }
    }
}
