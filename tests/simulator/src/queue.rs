//! The two queues: a standard one, which delivers at least once and in any order, and a FIFO one.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use aws_lambda_events::sqs::{SqsEvent, SqsMessage};
use fastrand::Rng;
use serde_json::json;
use tokentill::{
    domain::{hint::Hint, id::UserId},
    ports::{Hints, Postpone, Recounts, Unavailable},
};

use crate::hub::{Carried, Fault, Hub};

const SENDS: [Fault; 7] =
    [Fault::LoseRequest, Fault::LoseReply, Fault::LoseReply, Fault::Throttle, Fault::Fail, Fault::CrashBefore, Fault::CrashAfter];
/// Within this time a FIFO queue takes a deduplication id once.
const DEDUPLICATES_MS: i64 = 300_000;
/// How long a recount waits before it can be received, as the adapter asks for.
const RECOUNT_WAITS_MS: i64 = 30_000;

/// A message in a queue.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// The queue's own name for it.
    pub id: String,
    /// What was sent.
    pub body: String,
    group: Option<String>,
    sent_at_ms: i64,
    received: u32,
    hidden_until_ms: i64,
}

#[derive(Debug)]
struct Inner {
    messages: Vec<Message>,
    dead: Vec<Message>,
    known: BTreeMap<String, i64>,
    sent: u64,
}

/// A queue. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    inner: Rc<RefCell<Inner>>,
    hub: Hub,
    name: &'static str,
    is_fifo: bool,
    visibility_ms: i64,
    most_receives: u32,
}

impl Queue {
    /// An empty standard queue, of usage.
    #[must_use]
    pub(crate) fn of_usage(hub: &Hub, most_receives: u32) -> Self {
        Self::new(hub, "usage", false, 420, most_receives)
    }

    /// An empty FIFO queue, of hints.
    #[must_use]
    pub(crate) fn of_changes(hub: &Hub, most_receives: u32) -> Self {
        Self::new(hub, "changes", true, 360, most_receives)
    }

    fn new(hub: &Hub, name: &'static str, is_fifo: bool, visibility_secs: i64, most_receives: u32) -> Self {
        let inner = Inner { messages: Vec::new(), dead: Vec::new(), known: BTreeMap::new(), sent: 0 };
        let inner = Rc::new(RefCell::new(inner));
        Self { inner, hub: hub.clone(), name, is_fifo, visibility_ms: visibility_secs * 1_000, most_receives }
    }

    /// Puts a message into the queue.
    pub(crate) fn put(
        &self,
        id: Option<String>,
        body: String,
        group: Option<String>,
        deduplication_id: Option<&str>,
        delay_ms: i64,
    ) {
        let now_ms = self.hub.now_ms();
        let mut inner = self.inner.borrow_mut();
        if let Some(id) = deduplication_id {
            let known = inner.known.get(id).is_some_and(|at_ms| now_ms - at_ms < DEDUPLICATES_MS);
            if known {
                return;
            }
            inner.known.insert(id.to_owned(), now_ms);
        }
        inner.sent += 1;
        let id = id.unwrap_or_else(|| format!("{}-{}", self.name, inner.sent));
        inner.messages.push(Message { id, body, group, sent_at_ms: now_ms, received: 0, hidden_until_ms: now_ms + delay_ms });
    }

    /// Receives a batch: what is visible, in any order; in a FIFO queue, what comes next of groups that are not being worked on.
    /// With repeats a standard queue may deliver what is being worked on once more, and a FIFO queue anything.
    pub(crate) fn receive(&self, most: usize, chance: &mut Rng, repeats: bool) -> SqsEvent {
        let now_ms = self.hub.now_ms();
        let mut inner = self.inner.borrow_mut();
        let (dead, alive) = std::mem::take(&mut inner.messages)
            .into_iter()
            .partition(|message| message.received >= self.most_receives && message.hidden_until_ms <= now_ms);
        inner.messages = alive;
        let dead: Vec<Message> = dead;
        for message in &dead {
            self.hub.count("dead letter");
            self.hub.note(&format!("{} is a dead letter", message.id));
        }
        inner.dead.extend(dead);
        let mut places: Vec<usize> = (0..inner.messages.len()).collect();
        if self.is_fifo {
            let mut blocked = BTreeSet::new();
            places.retain(|place| {
                let message = &inner.messages[*place];
                let is_free = message.hidden_until_ms <= now_ms && !blocked.contains(&message.group);
                if !is_free {
                    blocked.insert(message.group.clone());
                }
                // Its order only keeps races rare. Nothing may rest on it.
                let out_of_order = !is_free && repeats && chance.bool();
                if out_of_order {
                    self.hub.count("out of order");
                }
                is_free || out_of_order
            });
        } else {
            places.retain(|place| {
                let is_visible = inner.messages[*place].hidden_until_ms <= now_ms;
                let again = repeats && inner.messages[*place].received > 0 && chance.u8(..16) == 0;
                if again && !is_visible {
                    self.hub.count("delivered twice");
                }
                is_visible || again
            });
            chance.shuffle(&mut places);
        }
        places.truncate(most);
        let mut records = Vec::new();
        for place in places {
            let message = &mut inner.messages[place];
            message.received += 1;
            message.hidden_until_ms = now_ms + self.visibility_ms;
            let mut record = SqsMessage::default();
            record.message_id = Some(message.id.clone());
            record.receipt_handle = Some(message.id.clone());
            record.body = Some(message.body.clone());
            record.attributes.insert("SentTimestamp".to_owned(), message.sent_at_ms.to_string());
            record.attributes.insert("ApproximateReceiveCount".to_owned(), message.received.to_string());
            records.push(record);
        }
        let mut event = SqsEvent::default();
        event.records = records;
        event
    }

    /// When the message of this deduplication id came in, if it did.
    #[must_use]
    pub(crate) fn queued_ms(&self, deduplication_id: &str) -> Option<i64> {
        self.inner.borrow().known.get(deduplication_id).copied()
    }

    /// Takes messages out for good.
    pub(crate) fn delete(&self, ids: &BTreeSet<String>) {
        self.inner.borrow_mut().messages.retain(|message| !ids.contains(&message.id));
    }

    /// Moves the dead letters back, as an operator does: as new messages.
    pub(crate) fn redrive(&self) -> usize {
        let dead = std::mem::take(&mut self.inner.borrow_mut().dead);
        let moved = dead.len();
        for message in dead {
            self.put(Some(format!("{}+", message.id)), message.body, message.group, None, 0);
        }
        moved
    }

    /// Whether nothing is left in it, dead letters included.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        let inner = self.inner.borrow();
        inner.messages.is_empty() && inner.dead.is_empty()
    }

    /// The bodies of what is left.
    #[must_use]
    pub(crate) fn left(&self) -> Vec<String> {
        let inner = self.inner.borrow();
        inner.messages.iter().chain(&inner.dead).map(|message| format!("{}: {}", message.id, message.body)).collect()
    }

    async fn carried<T: Send + 'static>(
        &self,
        what: &'static str,
        effect: impl FnOnce() -> T + 'static,
    ) -> Result<T, Unavailable> {
        match self.hub.carry(what, &SENDS, move |_| effect()).await {
            Carried::Answer(answer) => Ok(answer),
            Carried::NoAnswer => Err(Unavailable { what, reason: "no answer".to_owned() }),
            Carried::Refused(fault) => Err(Unavailable { what, reason: fault.name().to_owned() }),
        }
    }
}

impl Hints for Queue {
    async fn send(&self, hint: &Hint, deduplication_id: &str) -> Result<(), Unavailable> {
        let (queue, body, group) = (self.clone(), json!(hint).to_string(), hint.group().to_owned());
        let deduplication_id = deduplication_id.to_owned();
        self.carried("queueing a hint", move || queue.put(None, body, Some(group), Some(&deduplication_id), 0)).await
    }
}

impl Postpone for Queue {
    async fn postpone(&self, receipt_handle: &str, secs: u32) -> Result<(), Unavailable> {
        let (queue, id) = (self.clone(), receipt_handle.to_owned());
        let put_off = move || {
            let until_ms = queue.hub.now_ms() + i64::from(secs) * 1_000;
            let mut inner = queue.inner.borrow_mut();
            if let Some(message) = inner.messages.iter_mut().find(|message| message.id == id) {
                message.hidden_until_ms = until_ms;
            }
        };
        self.carried("putting a hint off", put_off).await
    }
}

impl Recounts for Queue {
    async fn recount(&self, user_id: &UserId) -> Result<(), Unavailable> {
        let (queue, body) = (self.clone(), json!({"recount": {"user_id": user_id}}).to_string());
        self.carried("queueing a recount", move || queue.put(None, body, None, None, RECOUNT_WAITS_MS)).await
    }
}
