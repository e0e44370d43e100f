//! Stripe's meters, as far as the reporter sees them.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use tokentill::{
    domain::{id::CustomerId, report::MeterReport, time::EpochSecs},
    ports::{Delivered, MeterSink, MeterSummaries, StripeError},
};

use crate::Faults;

/// Meters that know an identifier again, whatever it came with. Clones are the same meters.
#[derive(Debug, Clone, Default)]
pub struct Meters {
    inner: Rc<RefCell<Inner>>,
    /// What goes wrong with `send`.
    pub faults: Faults,
}

#[derive(Debug, Default)]
struct Inner {
    taken: Vec<MeterReport>,
    attempts: Vec<MeterReport>,
    errors: VecDeque<StripeError>,
    /// What summaries show beside what was taken: less of what was thrown away, more of what others sent.
    strays: Vec<(String, EpochSecs, i64)>,
}

impl Meters {
    /// The reports that were taken, in order, each identifier once.
    #[must_use]
    pub fn taken(&self) -> Vec<MeterReport> {
        self.inner.borrow().taken.clone()
    }

    /// Every report that was sent, in order, also those that were lost or refused.
    #[must_use]
    pub fn attempts(&self) -> Vec<MeterReport> {
        self.inner.borrow().attempts.clone()
    }

    /// What a meter shows for a customer.
    #[must_use]
    pub fn totals(&self, customer: &str) -> BTreeMap<String, u64> {
        let mut totals = BTreeMap::new();
        for report in self.inner.borrow().taken.iter().filter(|report| report.customer.as_str() == customer) {
            *totals.entry(report.event_name.clone()).or_insert(0) += report.quantity;
        }
        totals
    }

    /// Answers the next call with this error, without an effect.
    pub fn refuse_next(&self, error: StripeError) {
        self.inner.borrow_mut().errors.push_back(error);
    }
}

impl Meters {
    /// Lets the summaries show so much more, or less, of a meter in a minute than was taken.
    pub fn stray(&self, event_name: &str, minute: EpochSecs, quantity: i64) {
        self.inner.borrow_mut().strays.push((event_name.to_owned(), minute, quantity));
    }

    /// Forgets every identifier, as Stripe does after a day.
    pub fn forget_identifiers(&self) {
        for taken in &mut self.inner.borrow_mut().taken {
            taken.identifier.insert_str(0, "forgotten ");
        }
    }
}

impl MeterSummaries for Meters {
    async fn total(
        &self,
        event_name: &str,
        customer: &CustomerId,
        from: EpochSecs,
        until: EpochSecs,
    ) -> Result<u64, StripeError> {
        let lost = |reason| StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() };
        let effect = async {
            assert!(from == from.minute() && until == until.minute() && from < until, "summaries are asked for whole minutes");
            let inner = self.inner.borrow();
            let of = |report: &&MeterReport| report.event_name == event_name && report.customer == *customer;
            let taken = inner.taken.iter().filter(of).filter(|report| (from..until).contains(&report.minute));
            let taken: u64 = taken.map(|report| report.quantity).sum();
            let strays = inner.strays.iter().filter(|(name, minute, _)| name == event_name && (from..until).contains(minute));
            Ok(taken.checked_add_signed(strays.map(|(_, _, quantity)| quantity).sum()).expect("no less than nothing"))
        };
        self.faults.around("total", lost, effect).await
    }
}

impl MeterSink for Meters {
    async fn send(&self, report: &MeterReport) -> Result<Delivered, StripeError> {
        self.inner.borrow_mut().attempts.push(report.clone());
        let effect = async {
            let mut inner = self.inner.borrow_mut();
            if let Some(error) = inner.errors.pop_front() {
                return Err(error);
            }
            if inner.taken.iter().any(|taken| taken.identifier == report.identifier) {
                return Ok(Delivered::Before);
            }
            inner.taken.push(report.clone());
            Ok(Delivered::Now)
        };
        let lost = |reason| StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() };
        self.faults.around("send", lost, effect).await
    }
}
