//! Stripe's present state, as a test sets it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use tokentill::{
    domain::{facts::CustomerFacts, id::CustomerId},
    ports::{PaymentFacts, Payments, StripeError, StripeState},
};

use crate::Faults;

/// What Stripe would say. Clones are the same Stripe.
#[derive(Debug, Clone, Default)]
pub struct StripeTruth {
    inner: Rc<RefCell<Inner>>,
    /// What goes wrong with, or happens before, `customer`, `customer_of`, `payment` and `customers_on_clock`.
    pub faults: Faults,
}

#[derive(Debug, Default)]
struct Inner {
    customers: BTreeMap<CustomerId, CustomerFacts>,
    objects: BTreeMap<String, CustomerId>,
    payments: BTreeMap<String, PaymentFacts>,
    clocks: BTreeMap<String, Vec<CustomerId>>,
    errors: VecDeque<StripeError>,
}

impl StripeTruth {
    /// From now on this is the customer's state.
    pub fn set(&self, facts: CustomerFacts) {
        self.inner.borrow_mut().customers.insert(facts.customer.clone(), facts);
    }

    /// From now on the object belongs to the customer.
    pub fn set_object(&self, object_id: &str, customer: &CustomerId) {
        self.inner.borrow_mut().objects.insert(object_id.to_owned(), customer.clone());
    }

    /// From now on this is what Stripe shows of a charge or a dispute.
    pub fn set_payment(&self, object_id: &str, payment: PaymentFacts) {
        self.inner.borrow_mut().payments.insert(object_id.to_owned(), payment);
    }

    /// From now on these customers are on the test clock.
    pub fn set_clock(&self, clock: &str, customers: Vec<CustomerId>) {
        self.inner.borrow_mut().clocks.insert(clock.to_owned(), customers);
    }

    /// Answers the next call with this error.
    pub fn fail_next(&self, error: StripeError) {
        self.inner.borrow_mut().errors.push_back(error);
    }

    async fn ask<T>(&self, call: &'static str, find: impl FnOnce(&Inner) -> Option<T>) -> Result<T, StripeError> {
        let lost = |reason| StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() };
        let effect = async {
            let mut inner = self.inner.borrow_mut();
            match inner.errors.pop_front() {
                Some(error) => Err(error),
                None => find(&inner).ok_or_else(|| StripeError::NotFound { request_id: "req_none".to_owned() }),
            }
        };
        self.faults.around(call, lost, effect).await
    }
}

impl Payments for StripeTruth {
    async fn payment(&self, object_id: &str) -> Result<Option<PaymentFacts>, StripeError> {
        self.ask("payment", |inner| inner.payments.get(object_id).cloned().map(Some)).await
    }
}

impl StripeState for StripeTruth {
    async fn customer(&self, id: &CustomerId) -> Result<CustomerFacts, StripeError> {
        self.ask("customer", |inner| inner.customers.get(id).cloned()).await
    }

    async fn customer_of(&self, object_id: &str) -> Result<Option<CustomerId>, StripeError> {
        self.ask("customer_of", |inner| inner.objects.get(object_id).cloned().map(Some)).await
    }

    async fn customers_on_clock(&self, clock: &str) -> Result<Vec<CustomerId>, StripeError> {
        self.ask("customers_on_clock", |inner| inner.clocks.get(clock).cloned()).await
    }
}
