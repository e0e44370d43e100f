//! One tally: what is under way is sent, what is unreported is fixed and sent, or goes where it can still be billed.

use std::collections::{BTreeMap, VecDeque};

use tokentill::{
    domain::{
        account::Account,
        counting::{Billing, QuarantineReason, day_of},
        destination::{Destination, destination, is_open},
        id::{MeterId, UserId, composite_key},
        read_back,
        report::{self, Book, Fate, Intent, MeterReport, SUMMARY_SETTLES_SECS, Tally, UnderWay},
        time::{EpochSecs, MINUTE_SECS},
    },
    ports::{
        Accounts, Books, Commit, MeterErrors, MeterSink, MeterSummaries, Quarantined, ReporterState, StripeError, Timer,
        Unavailable,
    },
};

use crate::{Reporter, Shift};

/// A user's tallies, each with the hour it was last added to and its segment's end, if that is why it is visited.
type Tallies = BTreeMap<String, Option<(EpochSecs, EpochSecs)>>;

/// Whether a tally need not be found by its hour any more.
#[derive(Debug, PartialEq, Eq)]
enum Visited {
    /// It is settled, or its book is due.
    Done,
    /// The same, and this book of the same user was given something to report.
    DoneAnd(String),
    /// It has to be found again as it was found now.
    Again,
}

/// A user's account, read once a run and only where it is needed.
struct Owner<'a> {
    user_id: &'a UserId,
    account: Option<Option<Account>>,
}

/// What became of the reports of one book, entered in it at once.
#[derive(Default)]
struct Outcome {
    fates: Vec<(MeterId, Fate)>,
    /// What goes into the quarantine with them.
    refused: Vec<Quarantined>,
}

impl<B, A, M, C, I> Reporter<B, A, M, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    C: Timer,
    I: Fn() -> String,
{
    /// Visits one user's tallies, one after the other. The earliest hour that was not dealt with.
    pub(crate) async fn user(&self, shift: &Shift, user_id: &UserId, tallies: Tallies) -> Option<EpochSecs> {
        let mut owner = Owner { user_id, account: None };
        let mut open: Option<EpochSecs> = None;
        let mut queue: VecDeque<_> = tallies.into_iter().map(|(key, found)| (key, found.map(|(hour, _)| hour))).collect();
        while let Some((key, hour)) = queue.pop_front() {
            let visited = if shift.is_time_over(&self.clock) {
                Visited::Again
            } else {
                match Box::pin(self.visit(shift, &mut owner, &key)).await {
                    Ok(visited) => visited,
                    Err(error) => {
                        shift.run.borrow_mut().error(error.to_string());
                        Visited::Again
                    }
                }
            };
            match visited {
                Visited::Done => {}
                Visited::DoneAnd(next) => queue.push_back((next, None)),
                Visited::Again => {
                    shift.left_open.set(true);
                    open = hour.map_or(open, |hour| Some(open.map_or(hour, |open| open.min(hour))));
                }
            }
        }
        open
    }

    async fn visit(&self, shift: &Shift, owner: &mut Owner<'_>, key: &str) -> Result<Visited, Unavailable> {
        let count = |run: &mut crate::Run| run.tallies = run.tallies.saturating_add(1);
        count(&mut shift.run.borrow_mut());
        let mut book = self.books.book(owner.user_id, key).await?;
        let Some((tally, billing)) = self.billed_tally(owner.user_id, key, &book).await? else { return Ok(Visited::Done) };
        let confirmed_at = book.confirmed_at;
        // What is under way from an earlier run goes first, so that what is new can be intended after it.
        if book.has_something_under_way() && !Box::pin(self.go_on(shift, owner, &tally, &billing, &mut book)).await? {
            return Ok(Visited::Again);
        }
        let mut next = None;
        let left = report::unreported(&tally, &book);
        if !left.is_empty() && !shift.stopped.get() {
            let account = self.account_of(owner).await?;
            let final_after = self.settings.final_after_secs;
            let commit = match destination(&tally, &billing, account, &self.prices, shift.now, final_after) {
                Destination::Own(minute) => {
                    if report::intend(&tally, &mut book, &self.prices, minute, self.clock.now(), &self.identifiers) {
                        // One that is due already stays so until its fate is known: nothing else may lead back to it.
                        book.due_at.get_or_insert(self.look_at(&tally, &billing, account, shift));
                        match self.books.save(owner.user_id, key, &mut book).await? {
                            Commit::LostRace => Commit::LostRace,
                            Commit::Done => {
                                let to_send = report::under_way(&book, true, self.clock.now()).to_send;
                                Box::pin(self.send(shift, &tally, &mut book, to_send)).await?
                            }
                        }
                    } else {
                        Commit::Done
                    }
                }
                Destination::Later => Commit::Done,
                Destination::Carry { tally_key, billing } => {
                    let commit = Box::pin(self.carry(shift, &tally, &mut book, &tally_key, billing, left)).await?;
                    next = Some(tally_key);
                    commit
                }
                Destination::Nowhere => self.set_aside(shift, &tally, &mut book, left).await?,
            };
            if commit == Commit::LostRace {
                return Ok(Visited::Again);
            }
        }
        if shift.stopped.get() && book.version == 0 {
            // Nothing is known of it yet, so that it has to be found by its hour.
            shift.run.borrow_mut().add_pending();
            return Ok(Visited::Again);
        }
        let is_new = book.confirmed_at != confirmed_at;
        match Box::pin(self.leave(shift, owner, &tally, &billing, &mut book, is_new)).await? {
            Commit::LostRace => Ok(Visited::Again),
            Commit::Done => Ok(next.map_or(Visited::Done, Visited::DoneAnd)),
        }
    }

    /// A tally with how it is billed; `None` if it is not. A book that was only carried into has a tally of nothing.
    pub(crate) async fn billed_tally(
        &self,
        user_id: &UserId,
        key: &str,
        book: &Book,
    ) -> Result<Option<(Tally, Billing)>, Unavailable> {
        let tally = self.books.tally(user_id, key).await?;
        let carried_into = || {
            let (day, billing) = (day_of(key)?, book.billing.clone()?);
            Some(Tally::without_usage(user_id, key, day, billing))
        };
        let tally = tally.filter(|tally| tally.billing.is_some()).or_else(carried_into);
        Ok(tally.and_then(|tally| tally.billing.clone().map(|billing| (tally, billing))))
    }

    /// Leaves a tally: decides when its book is due again, and reads back what is due for it. What was confirmed just now
    /// (`is_new`) is read back later.
    async fn leave(
        &self,
        shift: &Shift,
        owner: &Owner<'_>,
        tally: &Tally,
        billing: &Billing,
        book: &mut Book,
        is_new: bool,
    ) -> Result<Commit, Unavailable> {
        let now = shift.now;
        let known_suspects = book.suspects.clone();
        let is_meant = shift.rejections.as_ref().is_some_and(|rejections| read_back::may_be_rejected(book, rejections));
        if is_meant {
            read_back::suspect(book);
        }
        let is_settled = report::is_settled(tally, book);
        let again = (!is_settled).then(|| now.plus_secs(self.settings.interval_secs));
        let wants_a_look = if is_settled {
            !book.suspects.is_empty()
                || read_back::is_unchecked(book)
                || read_back::differs(book)
                || (book.due_at.is_some() && read_back::may_recover(book))
        } else {
            // What waits for a person must not keep what Stripe threw away of the other meters from being found.
            let mut others = book.meters.iter().filter(|(_, entry)| entry.reported > 0 && entry.intent.is_none());
            let is_stale = others.any(|(meter, _)| !read_back::is_fresh(book, meter, now));
            is_stale && report::waits(tally, book, now) && read_back::is_watched(tally, now)
        };
        let is_due = is_meant || book.due_at.is_some_and(|due_at| due_at <= now);
        if !is_new && is_due && wants_a_look {
            return Box::pin(self.read_back(shift, owner.user_id, tally, billing, book, again)).await;
        }
        let planned = book.due_at.filter(|due_at| *due_at > now);
        let due_at = if let Some(again) = again {
            if !book.has_something_under_way() {
                // Nothing is under way and something is left: it has no minute yet, or its meter left the price list.
                shift.run.borrow_mut().add_pending();
            }
            Some(planned.map_or(again, |planned| planned.min(again)))
        } else {
            let account = owner.account.as_ref().and_then(Option::as_ref);
            let planned = planned.unwrap_or_else(|| self.look_at(tally, billing, account, shift));
            let soon = now.plus_secs(SUMMARY_SETTLES_SECS);
            wants_a_look.then(|| if book.suspects.is_empty() { planned } else { planned.min(soon) })
        };
        if book.due_at == due_at && book.suspects == known_suspects {
            return Ok(Commit::Done);
        }
        book.due_at = due_at;
        self.books.save(owner.user_id, &tally.tally_key, book).await
    }

    fn look_at(&self, tally: &Tally, billing: &Billing, account: Option<&Account>, shift: &Shift) -> EpochSecs {
        let offset_secs = account.map_or(billing.clock_offset_secs, |account| account.clock_offset_secs);
        read_back::due_at(tally, billing, offset_secs, shift.now, self.settings.final_after_secs)
    }

    async fn account_of<'o>(&self, owner: &'o mut Owner<'_>) -> Result<Option<&'o Account>, Unavailable> {
        if owner.account.is_none() {
            owner.account = Some(self.accounts.account(owner.user_id).await?);
        }
        Ok(owner.account.as_ref().and_then(Option::as_ref))
    }

    /// Goes on with reports of unknown fate: sends them again as they were, or, where that would not be billed or might be taken
    /// twice, has their minute's summary decide. `false` if another reporter was at the book.
    async fn go_on(
        &self,
        shift: &Shift,
        owner: &mut Owner<'_>,
        tally: &Tally,
        billing: &Billing,
        book: &mut Book,
    ) -> Result<bool, Unavailable> {
        let now = self.clock.now();
        let final_after = self.settings.final_after_secs;
        let account = self.account_of(owner).await?;
        let is_open = account.is_none_or(|account| is_open(billing, account, &self.prices, now, final_after));
        let UnderWay { to_send, overdue } = report::under_way(book, is_open, now);
        if !to_send.is_empty() && !shift.stopped.get() {
            // Known before the attempt: its minute's summary must not be read too soon after it.
            book.resent_at = Some(now);
            if self.books.save(&tally.user_id, &tally.tally_key, book).await? == Commit::LostRace {
                return Ok(false);
            }
        }
        Ok(self.send(shift, tally, book, to_send).await? == Commit::Done
            && self.decide(shift, tally, billing, book, overdue).await? == Commit::Done)
    }

    /// Sends reports and saves what became of them.
    async fn send(
        &self,
        shift: &Shift,
        tally: &Tally,
        book: &mut Book,
        to_send: Vec<(MeterId, MeterReport)>,
    ) -> Result<Commit, Unavailable> {
        let mut outcome = Outcome::default();
        for (meter, report) in to_send {
            let fate = if shift.may_call(&self.clock).await {
                self.send_one(shift, tally, &meter, &report, &mut outcome.refused).await
            } else {
                Fate::Unknown
            };
            let mut run = shift.run.borrow_mut();
            match fate {
                Fate::Delivered => run.delivered = run.delivered.saturating_add(1),
                Fate::Refused => {}
                Fate::Lost | Fate::Unknown => run.add_pending(),
            }
            outcome.fates.push((meter, fate));
        }
        self.settle(shift, tally, book, outcome).await
    }

    async fn send_one(
        &self,
        shift: &Shift,
        tally: &Tally,
        meter: &MeterId,
        report: &MeterReport,
        refused: &mut Vec<Quarantined>,
    ) -> Fate {
        match self.meters.send(report).await {
            Ok(_) => {
                shift.unanswered.set(0);
                Fate::Delivered
            }
            Err(StripeError::Refused { code, message, request_id, .. }) => {
                shift.unanswered.set(0);
                let detail = format!("Stripe refused the report: {code}: {message} (request {request_id})");
                refused.push(refused_report(tally, meter, report, detail));
                Fate::Refused
            }
            Err(error) => {
                shift.failed(Some(&error), &self.clock);
                Fate::Unknown
            }
        }
    }

    /// Enters fates and saves the book, if there is anything to enter, in one with what goes into the quarantine: where that was
    /// done alone, the report's fate would be decided later, and it might be billed as well.
    async fn settle(&self, shift: &Shift, tally: &Tally, book: &mut Book, outcome: Outcome) -> Result<Commit, Unavailable> {
        if outcome.fates.iter().all(|(_, fate)| *fate == Fate::Unknown) {
            return Ok(Commit::Done);
        }
        for (meter, fate) in &outcome.fates {
            report::settle(book, meter, *fate);
            if *fate == Fate::Delivered {
                book.confirmed_at = Some(self.clock.now());
            }
        }
        if outcome.refused.is_empty() {
            return self.books.save(&tally.user_id, &tally.tally_key, book).await;
        }
        self.save_and_quarantine(shift, tally, book, &outcome.refused).await
    }

    async fn save_and_quarantine(
        &self,
        shift: &Shift,
        tally: &Tally,
        book: &mut Book,
        entries: &[Quarantined],
    ) -> Result<Commit, Unavailable> {
        let commit = self.books.save_and_quarantine(&tally.user_id, &tally.tally_key, book, entries).await?;
        if commit == Commit::Done {
            let mut run = shift.run.borrow_mut();
            run.refused = run.refused.saturating_add(u64::try_from(entries.len()).unwrap_or(u64::MAX));
        }
        Ok(commit)
    }

    /// Decides what became of reports that are not sent any more, by what Stripe's meter has in their minute.
    async fn decide(
        &self,
        shift: &Shift,
        tally: &Tally,
        billing: &Billing,
        book: &mut Book,
        overdue: Vec<(MeterId, Intent)>,
    ) -> Result<Commit, Unavailable> {
        let mut outcome = Outcome::default();
        for (meter, intent) in overdue {
            let fate = if report::can_be_decided(book, &meter, &intent, self.clock.now())
                && self.is_alone_in(tally, billing, &meter, intent.minute).await?
                && shift.may_call(&self.clock).await
            {
                self.decide_one(shift, tally, &meter, &intent, &mut outcome.refused).await
            } else {
                Fate::Unknown
            };
            let mut run = shift.run.borrow_mut();
            match fate {
                Fate::Delivered => run.delivered = run.delivered.saturating_add(1),
                Fate::Refused | Fate::Lost => {}
                Fate::Unknown => run.overdue = run.overdue.saturating_add(1),
            }
            outcome.fates.push((meter, fate));
        }
        self.settle(shift, tally, book, outcome).await
    }

    async fn decide_one(
        &self,
        shift: &Shift,
        tally: &Tally,
        meter: &MeterId,
        intent: &Intent,
        refused: &mut Vec<Quarantined>,
    ) -> Fate {
        let until = intent.minute.plus_secs(MINUTE_SECS);
        let total = self.meters.total(&intent.event_name, &intent.customer, intent.minute, until).await;
        shift.failed(total.as_ref().err(), &self.clock);
        match total {
            Ok(in_minute) => report::decided(intent, in_minute),
            // The customer was deleted, or the meter is gone: whatever arrived, nobody will be billed for it.
            Err(StripeError::NotFound { request_id }) => {
                let detail = format!("Stripe has no such meter or customer any more (request {request_id})");
                refused.push(refused_report(tally, meter, &intent.report(), detail));
                Fate::Refused
            }
            Err(_) => Fate::Unknown,
        }
    }

    /// Whether no other book of the customer's day can have reported of this meter in this minute, so that its summary speaks of one
    /// alone.
    async fn is_alone_in(
        &self,
        tally: &Tally,
        billing: &Billing,
        meter: &MeterId,
        minute: EpochSecs,
    ) -> Result<bool, Unavailable> {
        for key in self.books.book_keys(&tally.user_id, tally.day, tally.day).await? {
            if key == tally.tally_key {
                continue;
            }
            let book = self.books.book(&tally.user_id, &key).await?;
            if report::is_silent_in(&book, meter, minute, billing.clock_offset_secs) {
                continue;
            }
            let other = self.billed_tally(&tally.user_id, &key, &book).await?;
            let is_apart = other.is_some_and(|(_, other)| {
                other.customer_id != billing.customer_id || !(other.segment_start..other.segment_end).contains(&minute)
            });
            if !is_apart {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands what cannot be billed in its own period to the present one, as far as that bills its meters.
    async fn carry(
        &self,
        shift: &Shift,
        tally: &Tally,
        book: &mut Book,
        into: &str,
        billing: Billing,
        left: BTreeMap<MeterId, u64>,
    ) -> Result<Commit, Unavailable> {
        let (carried, nowhere): (BTreeMap<_, _>, BTreeMap<_, _>) =
            left.into_iter().partition(|(meter, _)| billing.billed.contains(meter));
        if !nowhere.is_empty() && self.set_aside(shift, tally, book, nowhere).await? == Commit::LostRace {
            return Ok(Commit::LostRace);
        }
        if carried.is_empty() {
            return Ok(Commit::Done);
        }
        let mut to = self.books.book(&tally.user_id, into).await?;
        report::carry(tally, book, &mut to, &carried);
        to.billing = Some(billing);
        to.due_at = Some(shift.now);
        let commit = self.books.save_both(&tally.user_id, (&tally.tally_key, book), (into, &mut to)).await?;
        if commit == Commit::Done {
            let mut run = shift.run.borrow_mut();
            run.carried = run.carried.saturating_add(u64::try_from(carried.len()).unwrap_or(u64::MAX));
        }
        Ok(commit)
    }

    /// Puts what can be billed in no period into the quarantine, in one with the book: where the one was done without the other, and
    /// there is a period to bill it in by the next run, it would be both billed and in the quarantine.
    async fn set_aside(
        &self,
        shift: &Shift,
        tally: &Tally,
        book: &mut Book,
        left: BTreeMap<MeterId, u64>,
    ) -> Result<Commit, Unavailable> {
        let mut entries = Vec::new();
        for (meter, quantity) in left {
            let set_aside_before = book.meters.get(&meter).map_or(0, |entry| entry.quarantined);
            let input = serde_json::json!({"meter": meter, "quantity": quantity, "tally_key": tally.tally_key});
            entries.push(Quarantined {
                // The same quantity of the same tally is kept once, however often the attempt is repeated.
                quarantine_id: composite_key(&[
                    "closed",
                    tally.user_id.as_str(),
                    &tally.tally_key,
                    meter.as_str(),
                    &set_aside_before.to_string(),
                ]),
                reason: QuarantineReason::PeriodClosed,
                detail: "the period's invoice is final, and the same customer has no present period that bills this meter; \
                         bill it by hand, or replay it once there is one"
                    .to_owned(),
                user_id: Some(tally.user_id.to_string()),
                input: input.to_string(),
                at_ms: tally.day.start().as_secs().saturating_mul(1000),
            });
            report::set_aside(book, &meter, quantity);
        }
        self.save_and_quarantine(shift, tally, book, &entries).await
    }

    /// Has what was refused, rejected or could be billed in no period reported once more: of one tally, or of the past 36 days;
    /// a test clock may be far ahead. Which tallies those are.
    pub(crate) async fn replay(
        &self,
        shift: &Shift,
        user_id: &UserId,
        tally_key: Option<&str>,
    ) -> Result<Vec<String>, Unavailable> {
        let failed = |reason: &str| Unavailable { what: "replaying", reason: format!("{reason}; try again") };
        let keys = match tally_key {
            Some(tally_key) => vec![tally_key.to_owned()],
            None => {
                let first = shift.now.plus_secs(-crate::FIRST_LOOK_BACK_SECS).day();
                self.books.book_keys(user_id, first, shift.now.plus_days(36_500).day()).await?
            }
        };
        let mut replayed = Vec::new();
        for key in keys {
            let mut book = self.books.book(user_id, &key).await?;
            // What was late rather than thrown away must not be billed twice.
            let known = book.clone();
            if let Some((tally, billing)) = self.billed_tally(user_id, &key, &book).await?
                && !self.recover(shift, user_id, &tally, &billing, &mut book).await?
            {
                return Err(failed("Stripe could not be asked what it has by now, or a report of unknown fate is under way"));
            }
            let is_replayed = book.replay();
            if book != known {
                book.due_at = Some(shift.now);
                if self.books.save(user_id, &key, &mut book).await? == Commit::LostRace {
                    return Err(failed("another reporter was at a book"));
                }
            }
            if is_replayed {
                replayed.push(key);
            }
        }
        shift.run.borrow_mut().replayed = u64::try_from(replayed.len()).unwrap_or(u64::MAX);
        Ok(replayed)
    }
}

/// What is kept of a report that Stripe refuses, or whose customer or meter is gone.
fn refused_report(tally: &Tally, meter: &MeterId, report: &MeterReport, detail: String) -> Quarantined {
    let input = serde_json::json!({
        "customer": report.customer, "meter": meter, "event_name": report.event_name, "identifier": report.identifier,
        "quantity": report.quantity, "minute": report.minute, "tally_key": tally.tally_key,
    });
    Quarantined {
        quarantine_id: composite_key(&["report", &report.identifier]),
        reason: QuarantineReason::Refused,
        detail,
        user_id: Some(tally.user_id.to_string()),
        input: input.to_string(),
        at_ms: report.minute.as_secs().saturating_mul(1000),
    }
}

impl crate::Run {
    fn add_pending(&mut self) {
        self.pending = self.pending.saturating_add(1);
    }
}
