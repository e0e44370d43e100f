//! The notifier: carries each notice of the outbox to other programs as a domain event, and to the user as an e-mail.
//!
//! **Invariants:** a domain event is sent at least once, under one id; an e-mail is attempted at most once, and if nobody knows what
//! became of the attempt, that is recorded (G8). Neither waits for the other: a bus that fails holds up no e-mail, and an address that
//! is refused no event. Whatever cannot be done now leaves the row pending, and the sweeper wakes it.

pub mod bus;
pub mod event;
pub mod letter;
pub mod ses;

use serde::Serialize;
use tokentill::{
    domain::{
        email::{self, Fate, FeedbackKind, LetterKind, Letterhead, Written},
        event::DomainEvent,
        price_list::PriceList,
    },
    log::{self, Line},
    ports::{
        Clock, Correspondence, Email, EmailAttempts, EventBus, Mailer, NotSent, Noted, Outbox, OutboxRow, StripeError,
        Unavailable,
    },
    records::{self, Panicked},
};

use crate::event::{Record, Trigger};

/// An attempt that is not settled by then is over, in milliseconds: longer than the function may run, and longer than two clocks
/// differ.
const ATTEMPT_OVER_MS: i64 = 600_000;
/// No attempt at an e-mail begins with less time left, in milliseconds: claiming, sending and settling have to fit.
const ATTEMPT_NEEDS_MS: i64 = 22_000;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Notifier<O, B, S, M, I, C> {
    /// The rows of the outbox.
    pub outbox: O,
    /// Where domain events go.
    pub bus: B,
    /// Whom e-mails go to, and what is owed.
    pub stripe: S,
    /// Who writes e-mails, and how they are sent; none without `EmailFrom`.
    pub post: Option<Post<M>>,
    /// Draws the names of e-mails.
    pub names: I,
    /// The clock deliveries are dated by.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
    /// Whether this deployment is about real money.
    pub livemode: bool,
}

/// How e-mails are sent.
#[derive(Debug)]
pub struct Post<M> {
    /// Who writes them.
    pub letterhead: Letterhead,
    /// Sends them.
    pub mailer: M,
}

/// A record that has to come again has no name, so the whole batch has to come again. What was done of it is recognised then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a record without a sequence number has to come again, so the whole batch has to")]
pub struct Nameless;

/// A notice has to come again. The text says why and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Again {
    /// The outbox or the event bus is not available.
    #[error(transparent)]
    Aws(#[from] Unavailable),
    /// Stripe is not available, does not accept our key, or answers what we cannot read.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// The function's time was over before it was done.
    #[error("the function's time was over")]
    TimeOver,
    /// A template does not work with what it was given.
    #[error("an e-mail's template does not work: {0}")]
    Template(String),
}

/// What became of a notice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delivery {
    /// Whether its domain event was sent now.
    pub published: bool,
    /// What became of its e-mail now, if anything did.
    pub email: Option<Fate>,
    /// Whether all of it is settled.
    pub finished: bool,
    /// Why it is not.
    pub again: Option<Again>,
}

/// How far a record is once its event was seen to.
enum Begun {
    /// There was no time for it.
    NotReached,
    /// Nothing more is to be done of it now.
    Over {
        /// Whether it has to come again.
        again: bool,
    },
    /// Its event was published now or before, or could not be; its e-mail is still to be seen to.
    Published(Box<OutboxRow>, Delivery),
}

/// The records of a batch that have to come again; Lambda begins with the first of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Which.
    pub batch_item_failures: Vec<ItemFailure>,
}

/// One record that has to come again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemFailure {
    /// Its sequence number in the stream.
    pub item_identifier: String,
}

/// Draws names that nobody else draws.
pub trait Names {
    /// A new one.
    fn name(&self) -> String;
}

/// Random names.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomNames;

impl Names for RandomNames {
    fn name(&self) -> String {
        tokentill::chance::identifier()
    }
}

impl<O, B, S, M, I, C> Notifier<O, B, S, M, I, C>
where
    O: Outbox + EmailAttempts,
    B: EventBus,
    S: Correspondence,
    M: Mailer,
    I: Names,
    C: Clock,
{
    /// Handles what the function was triggered by: a batch of the outbox's stream, or what the mail service tells of an e-mail.
    ///
    /// # Errors
    /// [`Error`] if all of it has to come again.
    pub async fn handle(&self, trigger: Trigger, stop_at_ms: i64) -> Result<Response, Error> {
        match trigger {
            Trigger::Stream(records) => Ok(self.records(&records, stop_at_ms).await?),
            Trigger::Mail(told) => {
                self.told(told).await?;
                Ok(Response::default())
            }
            Trigger::Unknown => {
                Line::new("notifier", "event of no known kind").count("NeedsAttention", 1).write(&self.clock);
                Ok(Response::default())
            }
        }
    }

    /// Handles a batch: all of its events first, then its e-mails. An e-mail may have to wait for Stripe and for the mail service, and no
    /// event waits for those.
    async fn records(&self, records: &[Record], stop_at_ms: i64) -> Result<Response, Nameless> {
        let mut begun = Vec::with_capacity(records.len());
        for record in records {
            begun.push(self.begin(record, stop_at_ms).await);
        }
        let mut response = Response::default();
        let mut not_reached = 0_u64;
        for (record, begun) in records.iter().zip(begun) {
            let again = match begun {
                Begun::Over { again } => again,
                Begun::Published(row, delivery) if self.clock.now_ms() < stop_at_ms => self.end(&row, delivery, stop_at_ms).await,
                Begun::Published(..) | Begun::NotReached => {
                    not_reached = not_reached.saturating_add(1);
                    true
                }
            };
            if again {
                let sequence = record.sequence_number().ok_or(Nameless)?;
                response.batch_item_failures.push(ItemFailure { item_identifier: sequence.to_owned() });
            }
        }
        if not_reached > 0 {
            Line::new("notifier", "time is nearly over").field("not_reached", not_reached).write(&self.clock);
        }
        Ok(response)
    }

    /// Reads the row of a record, and publishes its event.
    async fn begin(&self, record: &Record, stop_at_ms: i64) -> Begun {
        if self.clock.now_ms() >= stop_at_ms {
            return Begun::NotReached;
        }
        let Some(notice_id) = record.notice_id() else {
            // Nothing can be done with it; the row it is of is found by the sweeper.
            Line::new("notifier", "record of no notice").count("NeedsAttention", 1).write(&self.clock);
            return Begun::Over { again: false };
        };
        let work = async {
            let row = self.outbox.row(notice_id).await?.filter(|row| row.pending_shard.is_some());
            let Some(row) = row else { return Ok(None) };
            let mut delivery = Delivery::default();
            if row.published_at_ms.is_none() {
                delivery.again = self.publish(&row, &mut delivery).await.err();
            }
            Ok::<_, Again>(Some((row, delivery)))
        };
        match self.in_time(work, stop_at_ms).await {
            Ok(Ok(Some((row, delivery)))) => Begun::Published(Box::new(row), delivery),
            Ok(Ok(None)) => {
                line(notice_id, "notice is settled or gone").write(&self.clock);
                Begun::Over { again: false }
            }
            Ok(Err(again)) => self.put_off(notice_id, &again.to_string()),
            Err(error) => self.put_off(notice_id, &error),
        }
    }

    /// Settles the e-mail of a notice whose event was seen to. Whether its record has to come again.
    async fn end(&self, row: &OutboxRow, mut delivery: Delivery, stop_at_ms: i64) -> bool {
        let notice_id = row.notice.notice_id.as_str();
        if let Err(error) = self.in_time(self.settled(row, stop_at_ms, &mut delivery), stop_at_ms).await {
            self.put_off(notice_id, &error);
            return true;
        }
        delivery_line(line(notice_id, "notice delivered"), row, &delivery).write(&self.clock);
        delivery.again.is_some()
    }

    fn put_off(&self, notice_id: &str, error: &str) -> Begun {
        line(notice_id, "notice put off").field("error", error).write(&self.clock);
        Begun::Over { again: true }
    }

    /// Does a record's work. One slow call must not take the whole batch down with the function's time, nor must one that panics.
    async fn in_time<T>(&self, work: impl Future<Output = T>, stop_at_ms: i64) -> Result<T, String> {
        let left = records::time_left(self.clock.now_ms(), stop_at_ms);
        match records::isolated(tokio::time::timeout(left, Box::pin(work))).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(over)) => {
                let _: tokio::time::error::Elapsed = over;
                Err(Again::TimeOver.to_string())
            }
            Err(panicked @ Panicked) => Err(panicked.to_string()),
        }
    }

    /// Sees to the e-mail, whatever became of the event, and takes the row out of the index once both are settled.
    async fn settled(&self, row: &OutboxRow, stop_at_ms: i64, delivery: &mut Delivery) {
        let emailed = if row.email_state.is_some() { Ok(true) } else { self.email(row, stop_at_ms, delivery).await };
        match emailed {
            Ok(true) if delivery.again.is_none() => match self.outbox.finish(&row.notice.notice_id).await {
                Ok(finished) => delivery.finished = finished,
                Err(error) => delivery.again = Some(error.into()),
            },
            // Somebody else is at the e-mail, or was and is gone: the sweeper wakes the notice when that can be told.
            Ok(_) => {}
            Err(error) => {
                delivery.again.get_or_insert(error);
            }
        }
    }

    async fn publish(&self, row: &OutboxRow, delivery: &mut Delivery) -> Result<(), Again> {
        self.bus.publish(&DomainEvent::of(&row.notice, row.committed_at_ms, self.livemode)).await?;
        delivery.published = true;
        Ok(self.outbox.note_published(&row.notice.notice_id, self.clock.now_ms()).await?)
    }

    /// Sends the e-mail of a notice, at most once. Whether it is settled; if not, an attempt at it is under way.
    async fn email(&self, row: &OutboxRow, stop_at_ms: i64, delivery: &mut Delivery) -> Result<bool, Again> {
        let notice_id = row.notice.notice_id.as_str();
        let now_ms = self.clock.now_ms();
        if let Some(email_id) = &row.email_id {
            let claimed_at_ms = row.email_claimed_at_ms.unwrap_or(i64::MIN);
            if now_ms.saturating_sub(claimed_at_ms) < ATTEMPT_OVER_MS {
                return Ok(false);
            }
            // Whoever took the attempt is gone, and did not say whether it was sent.
            return self.settle(notice_id, Some(email_id), Fate::Unknown, delivery).await;
        }
        let letter_kind = LetterKind::of(&row.notice);
        let (Some(post), Some(kind)) = (&self.post, letter_kind) else {
            return self.settle(notice_id, None, Fate::Off, delivery).await;
        };
        if email::is_stale(&row.notice, row.committed_at_ms, now_ms) {
            return self.settle(notice_id, None, Fate::Outdated, delivery).await;
        }
        let (addressee, bill) = match &row.notice.customer_id {
            Some(customer) => {
                let bill = async {
                    match row.notice.invoice_id.as_ref().filter(|_| kind.asks_for_payment()) {
                        Some(invoice) => self.stripe.bill(invoice).await,
                        None => Ok(None),
                    }
                };
                tokio::try_join!(self.stripe.addressee(customer), bill)?
            }
            None => (None, None),
        };
        let (to, letter) = match email::write(kind, &row.notice, &post.letterhead, &self.prices, addressee, bill) {
            Written::To { address, letter } => (address, letter),
            Written::Not(fate) => return self.settle(notice_id, None, fate, delivery).await,
        };
        let page = letter::render(&letter).map_err(|error| Again::Template(error.to_string()))?;
        let email_id = self.names.name();
        let email = Email { email_id: email_id.clone(), to, subject: page.subject, html: page.html, text: page.text };
        // Once the attempt is taken there is no other: not without the time to see what becomes of it.
        if self.clock.now_ms().saturating_add(ATTEMPT_NEEDS_MS) > stop_at_ms {
            return Err(Again::TimeOver);
        }
        if !self.outbox.claim_email(notice_id, &email_id, self.clock.now_ms()).await? {
            return Ok(false);
        }
        let fate = match post.mailer.send(&email).await {
            Ok(message_id) => Fate::Sent { message_id },
            Err(NotSent::Refused { code }) => Fate::Refused { code },
            Err(NotSent::Unknown { .. }) => Fate::Unknown,
        };
        self.settle(notice_id, Some(&email_id), fate, delivery).await
    }

    async fn settle(&self, notice_id: &str, own: Option<&str>, fate: Fate, delivery: &mut Delivery) -> Result<bool, Again> {
        let settled = self.outbox.settle_email(notice_id, own, &fate, self.clock.now_ms()).await;
        delivery.email = Some(fate);
        Ok(settled?)
    }

    /// Notes what the mail service tells of an e-mail that it had taken.
    async fn told(&self, told: event::Told) -> Result<(), Error> {
        let line = Line::new("notifier", "mail service told of an e-mail");
        let event::Told::Of { email_id, feedback } = told else {
            line.field("email", "of another sender").write(&self.clock);
            return Ok(());
        };
        let noted = self.outbox.note_feedback(&email_id, &feedback).await?;
        let new = noted == Noted::Now;
        let name = match feedback.kind {
            FeedbackKind::Bounced => "bounced",
            FeedbackKind::Complained => "complained",
            FeedbackKind::Rejected => "rejected",
        };
        let line = line.field("email", name).field("email_id", email_id).field("code", feedback.code).field("new", new);
        // Mail services close an account over complaints.
        let line = if new && feedback.kind == FeedbackKind::Complained { line.count("NeedsAttention", 1) } else { line };
        line.maybe("error", (noted == Noted::NotFound).then_some(Error::NoSuchEmail)).write(&self.clock);
        // The index may be behind the e-mail: then it comes again.
        if noted == Noted::NotFound { Err(Error::NoSuchEmail) } else { Ok(()) }
    }
}

/// Why an event has to come again as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A record cannot be named.
    #[error(transparent)]
    Nameless(#[from] Nameless),
    /// The outbox is not available.
    #[error(transparent)]
    Aws(#[from] Unavailable),
    /// The mail service tells of an e-mail of ours that is not found.
    #[error("no notice with this e-mail is found: the index may be behind, or the notice has expired")]
    NoSuchEmail,
}

/// A line about a notice. A notice's id holds the user's, which may be an address.
fn line(notice_id: &str, message: &'static str) -> Line {
    Line::new("notifier", message).field("notice", log::pseudonym(notice_id))
}

fn delivery_line(line: Line, row: &OutboxRow, delivery: &Delivery) -> Line {
    let mut line = line.field("published", delivery.published).field("finished", delivery.finished);
    line = line.field("kind", row.notice.kind.as_str()).field("user", log::pseudonym(row.notice.user_id.as_str()));
    if let Some(fate) = &delivery.email {
        line = line.field("email", fate.as_str());
        if let Fate::Refused { code } = fate {
            line = line.field("code", code.as_str());
        }
        // A customer's own address that cannot be used is nobody's to mend here; a refusal or an unknown fate is worth a look.
        let usable = !matches!(fate, Fate::Refused { code } if code == "unusable_address");
        if matches!(fate, Fate::Refused { .. } | Fate::Unknown) && usable {
            line = line.count("NeedsAttention", 1);
        }
    }
    line.maybe("error", delivery.again.as_ref())
}
