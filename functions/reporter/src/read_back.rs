//! Reads back what arrived at Stripe, and enters what did not.

use tokentill::{
    domain::{
        counting::Billing,
        id::{CustomerId, MeterId, UserId},
        read_back::{self, Finding},
        report::{self, Book, Check, MeterBook, SUMMARY_SETTLES_SECS, Tally},
        time::{DAY_SECS, EpochSecs, UtcDay},
    },
    log::{self, Line},
    ports::{Accounts, Books, Commit, MeterErrors, MeterSink, MeterSummaries, ReporterState, StripeError, Timer, Unavailable},
};

use crate::{Reporter, Shift};

/// What Stripe's meter has, or why that is not known.
pub(crate) enum Shown {
    /// So much.
    Total(u64),
    /// There is no such meter, or the customer was deleted: nobody is billed for it.
    Nothing,
    /// It could not be asked now.
    NotNow,
}

/// A customer's UTC day: all of its tallies and books.
struct Day {
    /// Each with its book.
    books: Vec<(Tally, Book)>,
}

impl Day {
    /// What was counted of a meter, with what was carried in and without what was carried out.
    fn counted(&self, meter: &MeterId) -> u64 {
        let of = |(tally, book): &(Tally, Book)| tally.owed(book, meter).saturating_sub(book.totals(meter).carried);
        self.books.iter().map(of).fold(0, u64::saturating_add)
    }

    fn confirmed_at(&self) -> Option<EpochSecs> {
        self.books.iter().filter_map(|(_, book)| book.confirmed_at).max()
    }

    fn is_under_way(&self, meter: &MeterId) -> bool {
        self.books.iter().any(|(_, book)| book.is_under_way(meter))
    }
}

impl<B, A, M, C, I> Reporter<B, A, M, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    C: Timer,
    I: Fn() -> String,
{
    /// What Stripe has of a meter for a customer from one day to another, both included.
    pub(crate) async fn shown(&self, shift: &Shift, meter: &MeterId, customer: &CustomerId, from: UtcDay, to: UtcDay) -> Shown {
        // A meter that left the price list may have another name at Stripe by now.
        let Some(meter) = self.prices.meter(meter) else { return Shown::Nothing };
        if !shift.may_call(&self.clock).await {
            return Shown::NotNow;
        }
        let total = self.meters.total(&meter.event_name, customer, from.start(), to.end()).await;
        shift.failed(total.as_ref().err(), &self.clock);
        match total {
            Ok(total) => Shown::Total(total),
            Err(StripeError::NotFound { .. } | StripeError::Refused { .. }) => Shown::Nothing,
            Err(_) => Shown::NotNow,
        }
    }

    /// All tallies and books of a tally's customer and day.
    async fn day_of(&self, user_id: &UserId, tally: &Tally, billing: &Billing) -> Result<Day, Unavailable> {
        let mut books = Vec::new();
        for key in self.books.book_keys(user_id, tally.day, tally.day).await? {
            let book = self.books.book(user_id, &key).await?;
            if let Some((tally, other)) = self.billed_tally(user_id, &key, &book).await?
                && other.customer_id == billing.customer_id
            {
                books.push((tally, book));
            }
        }
        Ok(Day { books })
    }

    /// Compares a book's day with what Stripe has, as far as nothing of it is under way, and saves what was found. `again` is when the
    /// reporter has to come back to it at the latest.
    pub(crate) async fn read_back(
        &self,
        shift: &Shift,
        user_id: &UserId,
        tally: &Tally,
        billing: &Billing,
        book: &mut Book,
        again: Option<EpochSecs>,
    ) -> Result<Commit, Unavailable> {
        let day = self.day_of(user_id, tally, billing).await?;
        let is_under_way = day.books.iter().any(|(_, book)| book.has_something_under_way());
        let mut again_in_secs = None;
        let mut look_again = false;
        let meters: Vec<MeterId> = book.meters.iter().filter(|(_, entry)| entry.reported > 0).map(|(id, _)| id.clone()).collect();
        for meter in meters {
            if again_in_secs.is_some() {
                break;
            }
            // Of what is under way nobody knows whether Stripe has it. The other meters need not wait, perhaps for a person, but there
            // is no need either to ask for them each time it is tried again.
            if is_under_way && (day.is_under_way(&meter) || read_back::is_fresh(book, &meter, shift.now)) {
                continue;
            }
            let stripe = match self.shown(shift, &meter, &billing.customer_id, tally.day, tally.day).await {
                Shown::Total(stripe) => stripe,
                Shown::Nothing => {
                    look_again = true;
                    continue;
                }
                Shown::NotNow => {
                    again_in_secs = Some(SUMMARY_SETTLES_SECS);
                    continue;
                }
            };
            let known = reported(&day.books, &meter);
            let mut check = Check { at: self.clock.now(), counted: day.counted(&meter), reported: known, stripe };
            // What was late rather than thrown away is here after all.
            let recovered = report::recover(book, &meter, stripe.saturating_sub(known));
            check.reported = known.saturating_add(recovered);
            let finding = read_back::compare(&check, day.confirmed_at(), book.suspects.contains(&meter));
            if finding == Finding::TooEarly {
                again_in_secs = Some(SUMMARY_SETTLES_SECS);
                continue;
            }
            if let Finding::Rejected(missing) = finding {
                let rejected = report::reject(book, &meter, missing);
                check.reported = check.reported.saturating_sub(rejected);
                // It is looked at once more: Stripe promises no time within which its summaries are whole.
                look_again = true;
            }
            self.tell(shift, user_id, tally, &meter, finding, &check);
            book.suspects.remove(&meter);
            book.checked.insert(meter, check);
        }
        // What never came to be reported has nothing to look at.
        let Book { suspects, meters, .. } = book;
        suspects.retain(|meter| meters.get(meter).is_some_and(MeterBook::may_be_at_stripe));
        let again_in_secs = again_in_secs.or(is_under_way.then_some(SUMMARY_SETTLES_SECS)).or(look_again.then_some(DAY_SECS));
        book.due_at = read_back::next_look(tally, book, again_in_secs, shift.now).into_iter().chain(again).min();
        self.books.save(user_id, &tally.tally_key, book).await
    }

    /// Takes back rejections of what Stripe has by now. `false` if it could not be asked, or does not tell.
    pub(crate) async fn recover(
        &self,
        shift: &Shift,
        user_id: &UserId,
        tally: &Tally,
        billing: &Billing,
        book: &mut Book,
    ) -> Result<bool, Unavailable> {
        let rejected: Vec<MeterId> = book.rejected.keys().filter(|meter| book.totals(meter).rejected > 0).cloned().collect();
        if rejected.is_empty() {
            return Ok(true);
        }
        let day = self.day_of(user_id, tally, billing).await?;
        for meter in rejected {
            match self.shown(shift, &meter, &billing.customer_id, tally.day, tally.day).await {
                Shown::Total(stripe) => {
                    // What arrived of a report of unknown fate is not what was thrown away before.
                    if day.is_under_way(&meter) {
                        return Ok(false);
                    }
                    report::recover(book, &meter, stripe.saturating_sub(reported(&day.books, &meter)));
                }
                Shown::Nothing => {}
                Shown::NotNow => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Counts a finding, and writes a line about one that a person should see.
    fn tell(&self, shift: &Shift, user_id: &UserId, tally: &Tally, meter: &MeterId, finding: Finding, check: &Check) {
        let mut run = shift.run.borrow_mut();
        run.checked = run.checked.saturating_add(1);
        let message = match finding {
            Finding::Rejected(_) => {
                run.rejected = run.rejected.saturating_add(1);
                "Stripe threw usage away: mend the cause, then order a replay"
            }
            Finding::Different if read_back::is_alarming(check) => {
                run.differences = run.differences.saturating_add(1);
                "Stripe has something else than was reported"
            }
            _ => return,
        };
        drop(run);
        Line::new("reporter", message)
            .field("user", log::pseudonym(user_id.as_str()))
            .field("day", tally.day.to_string())
            .field("meter", meter.as_str())
            .field("counted", check.counted)
            .field("reported", check.reported)
            .field("stripe", check.stripe)
            .write(&self.clock);
    }
}

/// What was reported of a meter in these books and not rejected.
pub(crate) fn reported(books: &[(Tally, Book)], meter: &MeterId) -> u64 {
    books.iter().map(|(_, book)| book.totals(meter).reported).fold(0, u64::saturating_add)
}
