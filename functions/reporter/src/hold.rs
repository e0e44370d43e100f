//! After a restore nothing is reported until everything that Stripe has was compared: the books of a restored table have
//! forgotten reports, and would make them once more.

use std::collections::BTreeMap;

use tokentill::{
    domain::{
        id::{MeterId, UserId},
        report::{self, Check, SUMMARY_SETTLES_SECS},
    },
    log::{self, Line},
    ports::{
        Accounts, Books, Clock, Commit, Hold, MeterErrors, MeterSink, MeterSummaries, Quarantine, ReporterMemory, ReporterState,
        Unavailable,
    },
};

use crate::{FIRST_LOOK_BACK_SECS, Order, Reporter, Shift};

impl<B, A, M, Q, C, I> Reporter<B, A, M, Q, C, I>
where
    B: Books + ReporterState + MeterErrors,
    A: Accounts,
    M: MeterSink + MeterSummaries,
    Q: Quarantine,
    C: Clock,
    I: Fn() -> String,
{
    /// Whether nothing may be reported. Begins a hold where a table is not the one that was written to, and ends it once
    /// everything was compared and is equal.
    pub(crate) async fn is_held(
        &self,
        shift: &Shift,
        memory: &mut ReporterMemory,
        order: Option<&Order>,
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
        // What was reported just before the restore may not show yet.
        if shift.now.secs_since(hold.since) >= SUMMARY_SETTLES_SECS {
            let whole = self.compare_all(shift, &mut hold, order == Some(&Order::Adopt)).await?;
            memory.hold = match (whole, hold.differences) {
                (true, 0) => {
                    memory.table_ids = table_ids;
                    None
                }
                // Once more from the beginning: somebody may have mended it, or adopted what Stripe has.
                (true, _) => Some(Hold { compared_through: None, differences: 0, ..hold }),
                (false, _) => Some(hold),
            };
            self.books.remember(memory).await?;
        }
        let is_held = memory.hold.is_some();
        let message = if is_held { "a table was restored: nothing is reported" } else { "compared: reporting goes on" };
        Line::new("reporter", message).count("NeedsAttention", u64::from(is_held)).write(&self.clock);
        Ok(is_held)
    }

    /// Compares every day of every user with what Stripe has, from where the last run ended. Whether it came to the end.
    async fn compare_all(&self, shift: &Shift, hold: &mut Hold, adopt: bool) -> Result<bool, Unavailable> {
        let since = shift.now.plus_secs(-FIRST_LOOK_BACK_SECS);
        let mut users: BTreeMap<UserId, Vec<String>> = BTreeMap::new();
        for tally in self.books.touched(since, shift.now).await? {
            users.entry(tally.user_id).or_default().push(tally.tally_key);
        }
        users.retain(|user_id, _| hold.compared_through.as_ref().is_none_or(|through| through < user_id));
        for (user_id, keys) in users {
            for key in keys {
                match self.compare_one(shift, &user_id, &key, adopt).await? {
                    None => return Ok(false),
                    Some(differences) => hold.differences = hold.differences.saturating_add(differences),
                }
            }
            hold.compared_through = Some(user_id);
        }
        Ok(true)
    }

    /// Compares one tally's day, and with an order takes what Stripe has for what was reported. How many meters differ; `None`
    /// if Stripe could not be asked now.
    async fn compare_one(&self, shift: &Shift, user_id: &UserId, key: &str, adopt: bool) -> Result<Option<u64>, Unavailable> {
        let mut book = self.books.book(user_id, key).await?;
        let Some((tally, billing)) = self.billed_tally(user_id, key, &book).await? else { return Ok(Some(0)) };
        let mut day = self.day_of(user_id, &tally, &billing).await?;
        if !day.books.iter().any(|(other, _)| other.tally_key == tally.tally_key) {
            day.books.push((tally.clone(), book.clone()));
        }
        let mut differences = 0_u64;
        let mut is_adopted = false;
        for meter in &billing.billed {
            let Some(event_name) = self.prices.meter(meter).map(|meter| meter.event_name.as_str()) else { continue };
            if !shift.may_call(&self.clock).await {
                return Ok(None);
            }
            let total = self.meters.total(event_name, &billing.customer_id, tally.day.start(), tally.day.end()).await;
            shift.heard(total.as_ref().err(), &self.clock);
            let Ok(stripe) = total else { return Ok(None) };
            let reported = day.reported(meter);
            let check = Check { at: self.clock.now(), counted: tally.owed(&book, meter), reported, stripe };
            if stripe == reported {
                continue;
            }
            if adopt {
                report::adopt(&mut book, meter, reported, stripe);
                book.checked.insert(meter.clone(), check);
                is_adopted = true;
            } else {
                differences = differences.saturating_add(1);
                self.tell_difference(shift, user_id, meter, &tally.day.to_string(), &check);
            }
        }
        if is_adopted {
            book.confirmed_at = Some(self.clock.now());
            book.due_at = Some(shift.now);
            if self.books.save(user_id, key, &mut book).await? == Commit::LostRace {
                return Ok(None);
            }
        }
        Ok(Some(differences))
    }

    fn tell_difference(&self, shift: &Shift, user_id: &UserId, meter: &MeterId, day: &str, check: &Check) {
        let mut run = shift.run.borrow_mut();
        run.differences = run.differences.saturating_add(1);
        Line::new("reporter", "Stripe has something else than the restored books say")
            .field("user", log::pseudonym(user_id.as_str()))
            .field("day", day)
            .field("meter", meter.as_str())
            .field("reported", check.reported)
            .field("stripe", check.stripe)
            .write(&self.clock);
    }
}
