//! The event bus, the mail service, and what an e-mail needs of Stripe, in memory.

use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use serde_json::Value;
use tokentill::{
    domain::{
        email::{Addressee, Bill},
        event::DomainEvent,
        id::{CustomerId, InvoiceId},
        selling::Link,
    },
    ports::{Correspondence, Email, EventBus, Mailer, NotSent, StripeError, Unavailable},
};

use crate::Faults;

/// An event bus that keeps what it is sent. Clones are the same bus.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    events: Rc<RefCell<Vec<Value>>>,
    /// What goes wrong with `publish`.
    pub faults: Faults,
}

impl EventLog {
    /// Every event that arrived, repetitions included.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.events.borrow().clone()
    }

    /// The ids of the events that arrived, each once, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for event in self.events() {
            let id = event["id"].as_str().expect("an event has an id").to_owned();
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }
}

impl EventBus for EventLog {
    async fn publish(&self, event: &DomainEvent) -> Result<(), Unavailable> {
        let effect = async {
            self.events.borrow_mut().push(serde_json::to_value(event).expect("an event is JSON"));
            Ok(())
        };
        self.faults.around("publish", |reason| Unavailable { what: "sending a domain event", reason }, effect).await
    }
}

/// A mail service that keeps what it is sent. Clones are the same service.
#[derive(Debug, Clone, Default)]
pub struct Letterbox {
    inner: Rc<RefCell<Letters>>,
    /// What goes wrong with `send_email`.
    pub faults: Faults,
}

#[derive(Debug, Default)]
struct Letters {
    sent: Vec<Email>,
    refusals: VecDeque<NotSent>,
}

impl Letterbox {
    /// Every e-mail that was taken, in order.
    #[must_use]
    pub fn sent(&self) -> Vec<Email> {
        self.inner.borrow().sent.clone()
    }

    /// Answers the next attempt so.
    pub fn refuse_next(&self, error: NotSent) {
        self.inner.borrow_mut().refusals.push_back(error);
    }
}

impl Mailer for Letterbox {
    async fn send(&self, email: &Email) -> Result<String, NotSent> {
        let effect = async {
            let mut inner = self.inner.borrow_mut();
            if let Some(error) = inner.refusals.pop_front() {
                return Err(error);
            }
            inner.sent.push(email.clone());
            Ok(format!("ses-{}", inner.sent.len()))
        };
        self.faults.around("send_email", |reason| NotSent::Unknown { reason }, effect).await
    }
}

/// What Stripe knows of customers and invoices, for e-mails. Clones are the same Stripe.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    inner: Rc<RefCell<Known>>,
    /// What goes wrong with, or happens before, `addressee` and `bill`.
    pub faults: Faults,
}

#[derive(Debug, Default)]
struct Known {
    customers: BTreeMap<String, Addressee>,
    bills: BTreeMap<String, Bill>,
}

impl Addresses {
    /// From now on this is a customer's address and name.
    pub fn set(&self, customer: &str, address: Option<&str>, name: Option<&str>) {
        let addressee = Addressee { address: address.map(str::to_owned), name: name.map(str::to_owned) };
        self.inner.borrow_mut().customers.insert(customer.to_owned(), addressee);
    }

    /// From now on there is this invoice, of 49 euros.
    pub fn set_bill(&self, invoice: &str, is_open: bool) {
        let page = Some(Link::new(format!("https://invoice.stripe.com/i/{invoice}")));
        let bill = Bill { is_open, due_minor: 4_900, currency: "eur".to_owned(), page };
        self.inner.borrow_mut().bills.insert(invoice.to_owned(), bill);
    }
}

fn lost(reason: String) -> StripeError {
    StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() }
}

impl Correspondence for Addresses {
    async fn addressee(&self, customer: &CustomerId) -> Result<Option<Addressee>, StripeError> {
        let effect = async { Ok(self.inner.borrow().customers.get(customer.as_str()).cloned()) };
        self.faults.around("addressee", lost, effect).await
    }

    async fn bill(&self, invoice: &InvoiceId) -> Result<Option<Bill>, StripeError> {
        let effect = async { Ok(self.inner.borrow().bills.get(invoice.as_str()).cloned()) };
        self.faults.around("bill", lost, effect).await
    }
}
