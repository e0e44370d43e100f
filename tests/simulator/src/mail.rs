//! What notices go through: the outbox's stream, the event bus, and the mail service.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use notifier::{Names, event::Trigger};
use serde_json::{Value, json};
use tokentill::{
    domain::event::DomainEvent,
    ports::{Email, EventBus, Mailer, NotSent, Unavailable},
};

use crate::hub::{Carried, Fault, Hub};

/// A record is given to the function so often after it failed, and until it is so old.
const MOST_RETRIES: u32 = 3;
const MOST_AGE_MS: i64 = 900_000;

const SENDS: [Fault; 9] = [
    Fault::LoseRequest,
    Fault::LoseReply,
    Fault::LoseReply,
    Fault::Slow,
    Fault::Throttle,
    Fault::Fail,
    Fault::FailAfter,
    Fault::CrashBefore,
    Fault::CrashAfter,
];

/// A record of the outbox's stream.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    notice_id: String,
    sequence: u64,
    written_ms: i64,
    tried: u32,
}

/// The outbox's stream, as far as the function is given it. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stream(Rc<RefCell<(VecDeque<Record>, u64)>>);

impl Stream {
    /// A notice was inserted, or woken.
    pub(crate) fn put(&self, notice_id: &str, now_ms: i64) {
        let mut inner = self.0.borrow_mut();
        inner.1 += 1;
        let record = Record { notice_id: notice_id.to_owned(), sequence: inner.1, written_ms: now_ms, tried: 0 };
        inner.0.push_back(record);
    }

    /// The next records, which are not given to anybody else meanwhile.
    pub(crate) fn take(&self, most: usize) -> Vec<Record> {
        let mut inner = self.0.borrow_mut();
        let most = most.min(inner.0.len());
        inner.0.drain(..most).collect()
    }

    /// Whether there is nothing left to be given.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().0.is_empty()
    }

    /// What was not done is given again, unless that was done too often, or it is too old: then only the sweeper finds it.
    pub(crate) fn put_back(&self, records: Vec<Record>, hub: &Hub) {
        let now_ms = hub.now_ms();
        for mut record in records.into_iter().rev() {
            record.tried += 1;
            if record.tried > MOST_RETRIES || now_ms - record.written_ms > MOST_AGE_MS {
                hub.count("record of the stream dropped");
                hub.note(&format!("record {} is dropped", record.sequence));
            } else {
                self.0.borrow_mut().0.push_front(record);
            }
        }
    }
}

/// The records as the function is given them.
#[must_use]
pub(crate) fn trigger(records: &[Record]) -> Trigger {
    let records: Vec<Value> = records
        .iter()
        .map(|record| {
            json!({"eventSource": "aws:dynamodb", "dynamodb": {
                "Keys": {"notice_id": {"S": record.notice_id}}, "SequenceNumber": record.sequence.to_string(),
            }})
        })
        .collect();
    serde_json::from_value(json!({"Records": records})).expect("a stream's batch can be read")
}

/// Which of these records have to be given again, by what the function answered: from the first that failed on, all of them.
#[must_use]
pub(crate) fn from_the_first_failure(records: Vec<Record>, answer: &notifier::Response) -> Vec<Record> {
    let failed = |record: &Record| {
        let sequence = record.sequence.to_string();
        answer.batch_item_failures.iter().any(|failure| failure.item_identifier == sequence)
    };
    let first = records.iter().position(failed).unwrap_or(records.len());
    records.into_iter().skip(first).collect()
}

/// The event bus and the mail service. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Outside {
    hub: Hub,
    inner: Rc<RefCell<Heard>>,
}

/// What they were given.
#[derive(Debug, Default)]
struct Heard {
    events: Vec<Value>,
    emails: Vec<Attempt>,
}

/// An attempt at an e-mail that reached the mail service.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// The name it was sent under.
    pub email_id: String,
    /// Whom to.
    pub to: String,
}

impl Outside {
    /// Neither has heard of anything yet.
    #[must_use]
    pub(crate) fn new(hub: &Hub) -> Self {
        Self { hub: hub.clone(), inner: Rc::default() }
    }

    /// Every event that reached the bus.
    #[must_use]
    pub(crate) fn events(&self) -> Vec<Value> {
        self.inner.borrow().events.clone()
    }

    /// Every e-mail that the mail service took.
    #[must_use]
    pub(crate) fn emails(&self) -> Vec<Attempt> {
        self.inner.borrow().emails.clone()
    }

    /// How much they were given.
    #[must_use]
    pub(crate) fn heard(&self) -> usize {
        let inner = self.inner.borrow();
        inner.events.len() + inner.emails.len()
    }
}

impl EventBus for Outside {
    async fn publish(&self, event: &DomainEvent) -> Result<(), Unavailable> {
        const WHAT: &str = "sending a domain event";
        let (inner, event) = (self.inner.clone(), serde_json::to_value(event).expect("an event is JSON"));
        match self.hub.carry("PutEvents", &SENDS, move |_| inner.borrow_mut().events.push(event)).await {
            Carried::Answer(()) => Ok(()),
            Carried::NoAnswer => Err(Unavailable { what: WHAT, reason: "no answer".to_owned() }),
            Carried::Refused(fault) => Err(Unavailable { what: WHAT, reason: fault.name().to_owned() }),
        }
    }
}

impl Mailer for Outside {
    async fn send(&self, email: &Email) -> Result<String, NotSent> {
        let (inner, attempt) = (self.inner.clone(), Attempt { email_id: email.email_id.clone(), to: email.to.clone() });
        let taken = move |_| {
            let emails = &mut inner.borrow_mut().emails;
            emails.push(attempt);
            format!("ses-{}", emails.len())
        };
        match self.hub.carry("SendEmail", &SENDS, taken).await {
            Carried::Answer(message_id) => Ok(message_id),
            Carried::NoAnswer => Err(NotSent::Unknown { reason: "no answer".to_owned() }),
            Carried::Refused(Fault::Throttle) => Err(NotSent::Refused { code: "TooManyRequestsException".to_owned() }),
            Carried::Refused(fault) => Err(NotSent::Unknown { reason: fault.name().to_owned() }),
        }
    }
}

/// Names of e-mails that do not repeat.
#[derive(Debug, Clone, Default)]
pub(crate) struct Numbered(Rc<Cell<u64>>);

impl Names for Numbered {
    fn name(&self) -> String {
        self.0.set(self.0.get() + 1);
        format!("email-{}", self.0.get())
    }
}
