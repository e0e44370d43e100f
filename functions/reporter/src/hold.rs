//! After a restore nothing is reported until everything that Stripe has was compared: the books of a restored table have
//! forgotten reports, and would make them once more.

use std::collections::{BTreeMap, BTreeSet};

use tokentill::{
    domain::{
        counting::day_of,
        id::{CustomerId, MeterId, UserId},
        price_list::Meter,
        report::{self, Book, SUMMARY_SETTLES_SECS, Tally},
    },
    log::{self, Line},
    ports::{
        Accounts, Books, Commit, Hold, MeterErrors, MeterSink, MeterSummaries, ReporterMemory, ReporterState, Timer, Unavailable,
    },
};

use crate::{
    FIRST_LOOK_BACK_SECS, Order, Reporter, Shift,
    read_back::{Shown, reported},
};

impl<B, A, M, C, I> Reporter<B, A, M, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    C: Timer,
    I: Fn() -> String,
{
    /// Whether nothing may be reported. Begins a hold where a table is not the one that was written to, and ends it once
    /// everything was compared and is equal.
    pub(crate) async fn is_held(
        &self,
        shift: &Shift,
        memory: &mut ReporterMemory,
        order: Option<&Order>,
        is_full: bool,
    ) -> Result<bool, Unavailable> {
        let table_ids = self.books.table_ids().await?;
        if memory.table_ids.is_empty() {
            memory.table_ids.clone_from(&table_ids);
        }
        if memory.table_ids != table_ids && memory.hold.is_none() {
            memory.hold = Some(Hold { since: shift.now, compared_through: None, differences: 0 });
            self.books.remember(memory).await?;
        }
        let Some(mut hold) = memory.hold.clone() else { return Ok(false) };
        let adopts = order == Some(&Order::Adopt);
        // What was reported just before the restore may not show yet.
        if shift.now.secs_since(hold.since) >= SUMMARY_SETTLES_SECS && (is_full || adopts) {
            let whole = self.compare_all(shift, &mut hold, adopts).await?;
            memory.hold = match (whole, hold.differences) {
                (true, 0) => {
                    memory.table_ids = table_ids;
                    None
                }
                // Once more from the beginning: somebody may have mended it, or adopted what Stripe has.
                (true, _) => Some(Hold { compared_through: None, differences: 0, ..hold }),
                (false, _) => Some(hold),
            };
            if whole {
                memory.full_run_at = Some(shift.now);
            }
            self.books.remember(memory).await?;
        }
        let is_held = memory.hold.is_some();
        let message = if is_held { "a table was restored: nothing is reported" } else { "compared: reporting goes on" };
        Line::new("reporter", message).count("NeedsAttention", u64::from(is_held)).write(&self.clock);
        Ok(is_held)
    }

    /// Compares what every user's books say with what Stripe has, from where the last run ended. Whether it came to the end.
    async fn compare_all(&self, shift: &Shift, hold: &mut Hold, adopt: bool) -> Result<bool, Unavailable> {
        let since = shift.now.plus_secs(-FIRST_LOOK_BACK_SECS);
        let mut users: BTreeMap<UserId, BTreeSet<String>> = BTreeMap::new();
        for tally in self.books.touched(since, shift.now).await? {
            users.entry(tally.user_id).or_default().insert(tally.tally_key);
        }
        users.retain(|user_id, _| hold.compared_through.as_ref().is_none_or(|through| through < user_id));
        for (user_id, keys) in users {
            let Some(differences) = Box::pin(self.compare_user(shift, &user_id, keys, adopt)).await? else { return Ok(false) };
            hold.differences = hold.differences.saturating_add(differences);
            hold.compared_through = Some(user_id);
        }
        Ok(true)
    }

    /// Compares one user's meters, each over all its days at once: a restore may have lost whole books. With an order it takes
    /// what Stripe has for what was reported. How many meters differ; `None` if Stripe could not be asked now.
    async fn compare_user(
        &self,
        shift: &Shift,
        user_id: &UserId,
        mut keys: BTreeSet<String>,
        adopt: bool,
    ) -> Result<Option<u64>, Unavailable> {
        let Some(first) = keys.first().and_then(|key| day_of(key)) else { return Ok(Some(0)) };
        keys.extend(self.books.book_keys(user_id, first, shift.now.plus_days(36_500).day()).await?);
        let last = keys.last().and_then(|key| day_of(key)).unwrap_or(first).max(shift.now.day());
        let mut customers: BTreeMap<CustomerId, Vec<(Tally, Book)>> = BTreeMap::new();
        for key in keys {
            let book = self.books.book(user_id, &key).await?;
            if let Some((tally, billing)) = self.billed_tally(user_id, &key, &book).await? {
                customers.entry(billing.customer_id).or_default().push((tally, book));
            }
        }
        let mut differences = 0_u64;
        for (customer, mut books) in customers {
            for meter in &self.prices.meters {
                let stripe = match self.shown(shift, &meter.id, &customer, first, last).await {
                    Shown::Total(stripe) => stripe,
                    Shown::Nothing => continue,
                    Shown::NotNow => return Ok(None),
                };
                let known = reported(&books, &meter.id);
                if stripe == known {
                    continue;
                }
                if !adopt {
                    differences = differences.saturating_add(1);
                    self.tell_difference(shift, user_id, &meter.id, known, stripe);
                } else if !self.adopt(shift, meter, &customer, &mut books, stripe).await? {
                    return Ok(None);
                }
            }
        }
        Ok(Some(differences))
    }

    /// Takes what Stripe has of a meter for what was reported, day by day; what it has on days of which no book is left, for
    /// what is unreported. `false` if it has to be tried again.
    async fn adopt(
        &self,
        shift: &Shift,
        meter: &Meter,
        customer: &CustomerId,
        books: &mut [(Tally, Book)],
        stripe: u64,
    ) -> Result<bool, Unavailable> {
        let mut elsewhere = stripe;
        for same_day in books.chunk_by_mut(|(one, _), (other, _)| one.day == other.day) {
            let Some(day) = same_day.first().map(|(tally, _)| tally.day) else { continue };
            let Shown::Total(stripe) = self.shown(shift, &meter.id, customer, day, day).await else { return Ok(false) };
            report::adopt(same_day.iter_mut().map(|(tally, book)| (&*tally, book)), &meter.id, stripe);
            elsewhere = elsewhere.saturating_sub(stripe);
        }
        if elsewhere > 0 {
            let all = reported(books, &meter.id).saturating_add(elsewhere);
            report::adopt(books.iter_mut().map(|(tally, book)| (&*tally, book)), &meter.id, all);
        }
        for (tally, book) in books {
            book.first_sent_at.get_or_insert(self.clock.now());
            book.confirmed_at = Some(self.clock.now());
            book.due_at = Some(shift.now);
            if self.books.save(&tally.user_id, &tally.tally_key, book).await? == Commit::LostRace {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tell_difference(&self, shift: &Shift, user_id: &UserId, meter: &MeterId, reported: u64, stripe: u64) {
        let mut run = shift.run.borrow_mut();
        run.differences = run.differences.saturating_add(1);
        Line::new("reporter", "Stripe has something else than the restored books say")
            .field("user", log::pseudonym(user_id.as_str()))
            .field("meter", meter.as_str())
            .field("reported", reported)
            .field("stripe", stripe)
            .write(&self.clock);
    }
}
