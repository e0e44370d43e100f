//! Reports usage from a service written in Rust, and never at the cost of the service's own requests.
//!
//! [`Producer::record`] puts an event into a bounded buffer and returns at once. [`Producer::run`], which the service spawns
//! itself, gathers events into messages and sends them; what fails is sent again, which is harmless because a request is
//! counted once. [`Producer::flush`] is for the service's end. What is only in the buffer is lost with the process.
//!
//! ```no_run
//! # async fn service(sqs: aws_sdk_sqs::Client, url: String) -> Result<(), Box<dyn std::error::Error>> {
//! use tokentill::{clock::SystemClock, domain::{id::{RequestId, UserId}, usage::Quantities}, ports::Clock};
//! use tokentill::{producer::{Limits, Producer, UsageReport}, sqs::UsageQueue};
//!
//! let producer = Producer::new(UsageQueue::new(sqs, url), Limits::default());
//! let sending = producer.clone();
//! # let spawn = |_| ();
//! spawn(sending.run()); // tokio::spawn, in a service that is always running
//!
//! let used = Quantities { tokens_in: 812, tokens_out: 240, ..Quantities::default() };
//! let (request_id, user_id) = (RequestId::new("req_01JD3")?, UserId::new("ada")?);
//! producer.record(&UsageReport::new(request_id, user_id, "/v1/summarise", used, true, SystemClock.now()));
//!
//! let left = producer.flush().await; // at the end
//! # Ok(()) }
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    domain::{
        id::{RequestId, UserId},
        time::EpochSecs,
        usage::{Invalid, MAX_EVENTS_PER_MESSAGE, Message, Quantities, read_message},
    },
    ports::Unavailable,
};

/// The most bytes of one message: what every SQS queue takes, also one made before SQS took 1 MiB.
pub const MAX_MESSAGE_BYTES: usize = 256 * 1_024;
/// The most messages of one call, and the most bytes of them all. Source: the SQS API reference, `SendMessageBatch`.
const MAX_MESSAGES_PER_CALL: usize = 10;
const MAX_CALL_BYTES: usize = 1_024 * 1_024;
const OPENING: &str = r#"{"events":["#;
const CLOSING: &str = "]}";

/// One call of an AI service, as the service reports it (the contract, 3.2). The optional fields are set after [`Self::new`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UsageReport {
    /// Names the request: made once for each request by the service, and kept when the request is tried again.
    pub request_id: RequestId,
    /// Who made the call.
    pub user_id: UserId,
    /// Which endpoint of the service was called, up to 1,024 characters.
    pub endpoint: String,
    /// How much was used, each up to 15 digits.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// Whether the call succeeded. A failed one is audited and never billed.
    pub success: bool,
    /// When the call was made; in the message as whole Unix seconds.
    pub timestamp: EpochSecs,
    /// Which model answered, up to 256 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which attempt of the request it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u64>,
    /// The service's own word for what came of it, up to 256 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

impl UsageReport {
    /// A report with the fields that are required.
    #[must_use]
    pub fn new(
        request_id: RequestId,
        user_id: UserId,
        endpoint: impl Into<String>,
        quantities: Quantities,
        success: bool,
        timestamp: EpochSecs,
    ) -> Self {
        let endpoint = endpoint.into();
        Self { request_id, user_id, endpoint, quantities, success, timestamp, model: None, attempt: None, outcome: None }
    }

    /// The event as JSON, checked by the very function that reads it on the other side of the queue.
    ///
    /// # Errors
    /// [`Invalid`] if a field is beyond its limits; it would end in the quarantine.
    pub fn to_json(&self) -> Result<String, Invalid> {
        let json = serde_json::to_string(self).map_err(|_| Invalid::NotJson)?;
        // SQS refuses a whole message for one of these two characters. In JSON they can only stand within a string.
        let json = json.replace('\u{FFFE}', "\\ufffe").replace('\u{FFFF}', "\\uffff");
        match read_message(&json)? {
            Message::Events(entries) => {
                entries.into_iter().try_for_each(|entry| entry.map(|_| ()).map_err(|(invalid, _)| invalid))?
            }
            Message::Recount(_) => return Err(Invalid::NotAnEvent),
        }
        Ok(json)
    }
}

/// Where messages go: the usage queue, or a test's double. Its futures are `Send`, so that a service may spawn them.
pub trait UsageSink: Send + Sync {
    /// Sends messages, at most ten and 1 MiB. Tells the places of those that were taken for certain; the others are sent again.
    ///
    /// # Errors
    /// [`Unavailable`] if none was taken, or it is not certain.
    fn send(&self, bodies: &[Arc<str>]) -> impl Future<Output = Result<Vec<usize>, Unavailable>> + Send;
}

/// How much is buffered, and how patient the producer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of events that wait to be sent, those under way included. What comes beyond is dropped and counted.
    pub buffer_bytes: usize,
    /// How long events gather before they are sent, unless a message is full before.
    pub gather: Duration,
    /// The most one call of the queue may take.
    pub send_timeout: Duration,
    /// The shortest wait after a failure.
    pub backoff_base: Duration,
    /// The longest wait after a failure.
    pub backoff_cap: Duration,
    /// The most that [`Producer::flush`] may take.
    pub flush_timeout: Duration,
}

impl Default for Limits {
    /// 16 MiB (some 60,000 events); 1 s; 5 s a call; 200 ms to 30 s; 10 s.
    fn default() -> Self {
        Self {
            buffer_bytes: 16 << 20,
            gather: Duration::from_secs(1),
            send_timeout: Duration::from_secs(5),
            backoff_base: Duration::from_millis(200),
            backoff_cap: Duration::from_secs(30),
            flush_timeout: Duration::from_secs(10),
        }
    }
}

/// What became of the events so far. `dropped_full` and `dropped_invalid` should stay 0: alarm on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Events that the queue has taken.
    pub sent: u64,
    /// Events that wait to be sent.
    pub waiting: u64,
    /// Events that found the buffer full.
    pub dropped_full: u64,
    /// Events that the contract does not allow.
    pub dropped_invalid: u64,
    /// Calls of the queue that failed, as a whole or in part. Their events are still waiting, or were sent again.
    pub failed_calls: u64,
}

/// A message that is ready to go.
#[derive(Debug)]
struct Sealed {
    body: Arc<str>,
    events: u64,
}

#[derive(Debug, Default)]
struct Buffer {
    open: VecDeque<String>,
    /// Bytes of the events in `open`, a comma each included.
    open_bytes: usize,
    sealed: VecDeque<Sealed>,
    sealed_bytes: usize,
    counts: Counts,
}

impl Buffer {
    /// Whether the events at hand fill a message.
    fn is_full_message(&self) -> bool {
        self.open.len() >= MAX_EVENTS_PER_MESSAGE || self.open_bytes >= MAX_MESSAGE_BYTES
    }

    /// Makes one message of the oldest events: as many as it may hold.
    fn seal(&mut self) {
        let (mut body, mut events) = (OPENING.to_owned(), 0_u64);
        while let Some(event) = self.open.front() {
            let too_long = body.len() + event.len() + CLOSING.len() >= MAX_MESSAGE_BYTES;
            // An event has a bounded length, far below a message's: the first one always fits.
            if events > 0 && (too_long || usize::try_from(events).is_ok_and(|events| events >= MAX_EVENTS_PER_MESSAGE)) {
                break;
            }
            if events > 0 {
                body.push(',');
            }
            body.push_str(event);
            events += 1;
            self.open_bytes -= event.len() + 1;
            self.open.pop_front();
        }
        body.push_str(CLOSING);
        self.sealed_bytes += body.len();
        self.sealed.push_back(Sealed { body: body.into(), events });
    }

    /// The messages of the next call. They stay here until the queue has taken them.
    fn next_call(&mut self) -> Vec<Arc<str>> {
        while !self.open.is_empty() && self.sealed.len() < MAX_MESSAGES_PER_CALL && self.sealed_bytes < MAX_CALL_BYTES {
            self.seal();
        }
        let mut bytes = 0;
        let fits = |sealed: &&Sealed| {
            bytes += sealed.body.len();
            bytes <= MAX_CALL_BYTES
        };
        self.sealed.iter().take(MAX_MESSAGES_PER_CALL).take_while(fits).map(|sealed| Arc::clone(&sealed.body)).collect()
    }

    /// Forgets the messages at these places.
    fn taken(&mut self, places: &[usize]) {
        let mut place = 0_usize;
        let Self { sealed, sealed_bytes, counts, .. } = self;
        sealed.retain(|message| {
            let taken = places.contains(&place);
            place += 1;
            if taken {
                *sealed_bytes -= message.body.len();
                counts.sent += message.events;
                counts.waiting -= message.events;
            }
            !taken
        });
    }
}

#[derive(Debug)]
struct Shared<S> {
    sink: S,
    limits: Limits,
    buffer: Mutex<Buffer>,
    /// Wakes `run` when the first event comes, and again when a message is full.
    some: Notify,
    full: Notify,
    /// Held while a call is under way: the places of its messages must not move.
    calling: tokio::sync::Mutex<()>,
}

/// Reports usage. Its clones share one buffer.
#[derive(Debug)]
pub struct Producer<S>(Arc<Shared<S>>);

impl<S> Clone for Producer<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: UsageSink> Producer<S> {
    /// A producer with an empty buffer. It sends nothing unless [`Self::run`] or [`Self::flush`] is polled.
    #[must_use]
    pub fn new(sink: S, limits: Limits) -> Self {
        let (some, full) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { sink, limits, buffer: Mutex::default(), some, full, calling: tokio::sync::Mutex::default() }))
    }

    /// Buffers an event; whether it was. It neither waits nor fails: what cannot be buffered is counted in [`Self::counts`].
    pub fn record(&self, report: &UsageReport) -> bool {
        let json = report.to_json();
        let mut buffer = self.buffer();
        let Ok(json) = json else {
            buffer.counts.dropped_invalid += 1;
            return false;
        };
        let bytes = json.len() + 1;
        if buffer.open_bytes + buffer.sealed_bytes + bytes > self.0.limits.buffer_bytes {
            buffer.counts.dropped_full += 1;
            return false;
        }
        buffer.open_bytes += bytes;
        buffer.open.push_back(json);
        buffer.counts.waiting += 1;
        self.0.some.notify_one();
        if buffer.is_full_message() {
            self.0.full.notify_one();
        }
        true
    }

    /// What became of the events so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.buffer().counts
    }

    /// Sends what is recorded, for ever. The service spawns it, and may drop it at any time: nothing is lost by that.
    pub async fn run(self) {
        loop {
            if self.counts().waiting == 0 {
                self.0.some.notified().await;
            }
            let _ = timeout(self.0.limits.gather, self.0.full.notified()).await;
            self.drain().await;
        }
    }

    /// Sends what is buffered, within [`Limits::flush_timeout`]; how many events are left. Call it when no more are recorded.
    pub async fn flush(&self) -> u64 {
        let _ = timeout(self.0.limits.flush_timeout, self.drain()).await;
        self.counts().waiting
    }

    /// Sends until nothing is left. After a failure it waits: decorrelated jitter, each wait between the base and three times
    /// the one before, so that services that failed together do not come back together.
    async fn drain(&self) {
        let limits = &self.0.limits;
        let mut random = fastrand::Rng::new();
        let mut last = limits.backoff_base;
        while self.counts().waiting > 0 {
            match self.call().await {
                Ok(()) => last = limits.backoff_base,
                Err(error) => {
                    self.buffer().counts.failed_calls += 1;
                    let spread = last.saturating_mul(3).saturating_sub(limits.backoff_base).mul_f64(random.f64());
                    last = limits.backoff_base.saturating_add(spread).min(limits.backoff_cap);
                    let wait_ms = u64::try_from(last.as_millis()).unwrap_or(u64::MAX);
                    tracing::warn!(%error, wait_ms, "usage events could not be sent; they will be sent again");
                    sleep(last).await;
                }
            }
        }
    }

    /// One call of the queue.
    async fn call(&self) -> Result<(), Unavailable> {
        const WHAT: &str = "sending usage events";
        let _calling = self.0.calling.lock().await;
        let bodies = self.buffer().next_call();
        if bodies.is_empty() {
            return Ok(());
        }
        let taken = match timeout(self.0.limits.send_timeout, self.0.sink.send(&bodies)).await {
            Ok(taken) => taken?,
            Err(_) => return Err(Unavailable { what: WHAT, reason: "timed out".to_owned() }),
        };
        self.buffer().taken(&taken);
        let refused = bodies.len().saturating_sub(taken.len());
        let refusal = || Unavailable { what: WHAT, reason: format!("{refused} of {} messages were refused", bodies.len()) };
        if refused == 0 { Ok(()) } else { Err(refusal()) }
    }

    /// Nothing is awaited while it is held. A panic elsewhere leaves the buffer usable: its parts change together.
    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A queue that fails as it is told, and keeps what it took.
    #[derive(Debug, Default)]
    struct Double {
        took: Mutex<Vec<String>>,
        calls: Mutex<Vec<usize>>,
        /// What the next calls do: take only these places, or fail whole. Without any more of them all is taken.
        script: Mutex<VecDeque<Option<Vec<usize>>>>,
        hangs: bool,
    }

    impl UsageSink for Arc<Double> {
        async fn send(&self, bodies: &[Arc<str>]) -> Result<Vec<usize>, Unavailable> {
            self.calls.lock().unwrap().push(bodies.len());
            if self.hangs {
                std::future::pending::<()>().await;
            }
            let all = (0..bodies.len()).collect();
            let places = self.script.lock().unwrap().pop_front().unwrap_or(Some(all));
            let places = places.ok_or(Unavailable { what: "sending", reason: "told to fail".to_owned() })?;
            self.took.lock().unwrap().extend(places.iter().map(|place| bodies[*place].to_string()));
            Ok(places)
        }
    }

    impl Double {
        /// The request ids of what was taken, message by message, as the usage function reads them.
        fn read(&self) -> Vec<Vec<String>> {
            let ids = |body: &String| match read_message(body).unwrap() {
                Message::Events(entries) => entries.into_iter().map(|entry| entry.unwrap().request_id.to_string()).collect(),
                Message::Recount(_) => panic!("{body}"),
            };
            self.took.lock().unwrap().iter().map(ids).collect()
        }
    }

    fn quick() -> Limits {
        let ms = Duration::from_millis;
        Limits { gather: ms(1), backoff_base: ms(1), backoff_cap: ms(2), ..Limits::default() }
    }

    fn report(request_id: &str) -> UsageReport {
        let used = Quantities { tokens_in: 812, tokens_out: 240, ..Quantities::default() };
        let (request_id, user_id) = (RequestId::new(request_id).unwrap(), UserId::new("ada").unwrap());
        UsageReport::new(request_id, user_id, "/v1/summarise", used, true, EpochSecs::new(1_795_348_800))
    }

    fn long(at: usize) -> UsageReport {
        UsageReport { endpoint: "x".repeat(1_000), ..report(&format!("req_{at}")) }
    }

    #[test]
    fn an_event_is_read_as_it_was_recorded() {
        let full = UsageReport {
            model: Some("large \u{FFFF} \u{FFFE} \"é\"\n".to_owned()),
            attempt: Some(2),
            outcome: Some("timeout".to_owned()),
            quantities: Quantities { tokens_cached: 7, units: [("images".to_owned(), 2)].into(), ..Quantities::default() },
            ..report("req_2")
        };
        for report in [report("req_1"), full] {
            let json = report.to_json().unwrap();
            assert!(!json.contains(['\u{FFFE}', '\u{FFFF}']), "SQS refuses {json}");
            let Message::Events(mut entries) = read_message(&json).unwrap() else { panic!("{json}") };
            let event = entries.remove(0).unwrap();
            assert_eq!((&event.request_id, &event.user_id), (&report.request_id, &report.user_id));
            assert_eq!((&event.endpoint, &event.quantities), (&report.endpoint, &report.quantities));
            assert_eq!((event.success, event.timestamp, event.attempt), (report.success, report.timestamp, report.attempt));
            assert_eq!((&event.model, &event.outcome, event.extra), (&report.model, &report.outcome, None));
        }
    }

    #[tokio::test]
    async fn what_the_contract_does_not_allow_is_dropped_and_counted() {
        let producer = Producer::new(Arc::<Double>::default(), quick());
        assert!(!producer.record(&UsageReport { endpoint: "x".repeat(1_025), ..report("req_1") }));
        assert!(!producer.record(&UsageReport { attempt: Some(u64::MAX), ..report("req_1") }));
        assert_eq!(producer.counts(), Counts { dropped_invalid: 2, ..Counts::default() });
        assert_eq!(producer.flush().await, 0);
        assert!(producer.0.sink.calls.lock().unwrap().is_empty(), "there was nothing to send");
    }

    #[tokio::test]
    async fn a_message_holds_at_most_a_thousand_events_and_256_kb_and_a_call_1_mib() {
        let producer = Producer::new(Arc::<Double>::default(), quick());
        (0..2_001).for_each(|at| assert!(producer.record(&report(&format!("req_{at}")))));
        assert_eq!(producer.flush().await, 0);
        let read = producer.0.sink.read();
        assert_eq!(read.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 1]);
        let in_order: Vec<String> = (0..2_001).map(|at| format!("req_{at}")).collect();
        assert_eq!(read.concat(), in_order);
        assert_eq!(*producer.0.sink.calls.lock().unwrap(), [3]);

        let producer = Producer::new(Arc::<Double>::default(), quick());
        (0..2_000).for_each(|at| assert!(producer.record(&long(at))));
        assert_eq!(producer.flush().await, 0);
        let sizes: Vec<usize> = producer.0.sink.took.lock().unwrap().iter().map(String::len).collect();
        assert!(sizes.iter().all(|size| *size <= MAX_MESSAGE_BYTES), "{sizes:?}");
        assert!(sizes.iter().rev().skip(1).all(|size| *size > MAX_MESSAGE_BYTES - 2_000), "as full as they may be: {sizes:?}");
        let calls = producer.0.sink.calls.lock().unwrap().clone();
        assert!(calls.iter().all(|messages| *messages <= 4) && calls.len() > 1, "{calls:?}");
        assert_eq!(producer.0.sink.read().concat().len(), 2_000);
        assert_eq!(producer.counts(), Counts { sent: 2_000, ..Counts::default() });
    }

    #[tokio::test]
    async fn a_full_buffer_drops_what_comes_and_counts_it_and_takes_more_once_it_is_sent() {
        let bytes = report("req_1").to_json().unwrap().len() + 1;
        let producer = Producer::new(Arc::<Double>::default(), Limits { buffer_bytes: 2 * bytes + 20, ..quick() });
        let recorded: Vec<bool> = (0..4).map(|at| producer.record(&report(&format!("req_{at}")))).collect();
        assert_eq!(recorded, [true, true, false, false]);
        assert_eq!(producer.counts(), Counts { waiting: 2, dropped_full: 2, ..Counts::default() });
        assert_eq!(producer.flush().await, 0);
        assert!(producer.record(&report("req_4")));
    }

    #[tokio::test]
    async fn what_failed_is_sent_again_and_what_was_taken_is_not() {
        let script = Mutex::new(VecDeque::from([None, Some(vec![1]), Some(Vec::new())]));
        let producer = Producer::new(Arc::new(Double { script, ..Double::default() }), quick());
        (0..2_001).for_each(|at| assert!(producer.record(&report(&format!("req_{at}")))));
        assert_eq!(producer.flush().await, 0);
        let firsts: Vec<String> = producer.0.sink.read().into_iter().map(|ids| ids[0].clone()).collect();
        assert_eq!(firsts, ["req_1000", "req_0", "req_2000"]);
        assert_eq!(*producer.0.sink.calls.lock().unwrap(), [3, 3, 2, 2]);
        assert_eq!(producer.counts(), Counts { sent: 2_001, failed_calls: 3, ..Counts::default() });
    }

    #[tokio::test]
    async fn a_queue_that_hangs_holds_up_neither_the_caller_nor_the_end() {
        let ms = Duration::from_millis;
        let limits = Limits { flush_timeout: ms(20), send_timeout: ms(5), ..quick() };
        let producer = Producer::new(Arc::new(Double { hangs: true, ..Double::default() }), limits);
        let mut run = std::pin::pin!(producer.clone().run());
        assert!(producer.record(&report("req_1")));
        let left = tokio::select! { () = &mut run => 0, left = producer.flush() => left };
        assert_eq!(left, 1);
        assert!(producer.record(&report("req_2")), "the buffer still takes events");
        assert!(producer.counts().failed_calls > 0);
    }

    #[tokio::test]
    async fn what_is_recorded_is_sent_by_run_and_a_service_may_spawn_it() {
        fn spawned(future: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> {
            future
        }
        let producer = Producer::new(Arc::<Double>::default(), quick());
        let mut run = std::pin::pin!(spawned(producer.clone().run()));
        for round in 1..3_u64 {
            assert!(producer.record(&report(&format!("req_{round}"))));
            let all_sent = async {
                while producer.counts().sent < round {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! { () = &mut run => (), () = all_sent => () }
        }
        assert_eq!(producer.0.sink.read(), [["req_1"], ["req_2"]]);
    }
}
