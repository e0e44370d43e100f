//! What the domain needs of the world, as roles of one to three methods. The adapters fill them; tests and the simulator may
//! fill them otherwise.
#![allow(
    async_fn_in_trait,
    reason = "handlers are generic over ports and run on one thread; nobody needs these futures to be `Send`"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::domain::{
    account::Account,
    audit::{ByHour, Position},
    counting::{Batch, LedgerRow, QuarantineReason, RowKey},
    email::{Addressee, Bill, Fate, Feedback},
    event::DomainEvent,
    facts::CustomerFacts,
    gate::{Granted, Take, Taken},
    hint::Hint,
    id::{CheckoutSessionId, CustomerId, EventId, InvoiceId, PriceId, RequestId, UserId},
    notice::{Notice, Payment},
    read_back::Rejections,
    repair::{Endpoint, ListedSubscription},
    report::{Book, MeterReport, Tally},
    selling::{Buyer, Link, Offer, ReturnUrl},
    sync::{Failures, Unfailed},
    time::{EpochSecs, UtcDay},
};

/// Reads the clock. The one place where time enters; the domain is given it.
pub trait Clock {
    /// Now, in milliseconds since 1970.
    fn now_ms(&self) -> i64;

    /// Now, in whole seconds.
    fn now(&self) -> EpochSecs {
        EpochSecs::from_ms(self.now_ms())
    }
}

/// A clock that can be waited by.
pub trait Timer: Clock {
    /// Waits until it shows this moment, in milliseconds since 1970, or a later one.
    async fn wait_until_ms(&self, moment_ms: i64);
}

/// A secret's text. It has no `Display`, and its `Debug` says nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Arc::from(text))
    }

    /// The text itself; never to be logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The parameter could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the SSM parameter {name} cannot be read ({reason}); it must exist as a SecureString, and the function's role must be allowed ssm:GetParameter on it"
)]
pub struct SecretUnavailable {
    /// The parameter's name.
    pub name: String,
    /// SSM's error code.
    pub reason: String,
}

/// Reads a secret that may be rotated at any time.
pub trait Secrets {
    /// The present value.
    ///
    /// # Errors
    /// [`SecretUnavailable`] if it cannot be read and no recent enough value is known.
    async fn secret(&self) -> Result<Secret, SecretUnavailable>;
}

/// Puts a message of the account-changes queue off, so that a transient error backs off.
pub trait Postpone {
    /// Hides the message with this receipt handle for so many seconds. An error leaves the queue's own visibility timeout.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn postpone(&self, receipt_handle: &str, secs: u32) -> Result<(), Unavailable>;
}

/// The account-changes queue.
pub trait Hints {
    /// Queues a hint durably. The queue drops a second one of the same `deduplication_id` within five minutes.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that the hint is queued.
    async fn send(&self, hint: &Hint, deduplication_id: &str) -> Result<(), Unavailable>;
}

/// A store or a queue did not do what was asked, or we cannot know. Whatever was asked is to be asked again later.
///
/// The text names the service's error code, never an item.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct Unavailable {
    /// What was being done.
    pub what: &'static str,
    /// The service's error code and message.
    pub reason: String,
}

/// The accounts, and what is kept of customers and processed events beside them.
pub trait Accounts {
    /// The user's account, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`], also if the item cannot be read by this version.
    async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Unavailable>;

    /// What is known of a customer, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`], also if the item cannot be read by this version.
    async fn customer(&self, customer: &CustomerId) -> Result<Option<CustomerRecord>, Unavailable>;

    /// Whether this event was processed; its mark is kept for 35 days.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn is_processed(&self, event_id: &EventId) -> Result<bool, Unavailable>;

    /// Commits a change of an account whole or not at all.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was committed.
    async fn commit(&self, change: &AccountChange<'_>) -> Result<Commit, Unavailable>;

    /// Records why a customer has no account, and marks the event as processed. It holds only under the record's version.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was recorded.
    async fn record(&self, record: &CustomerRecord, processed: &EventId) -> Result<Commit, Unavailable>;
}

/// The notices that no change of an account causes.
pub trait PaymentNotices {
    /// Puts a notice into the outbox, unless one of its id is there, and marks the event as processed; both or neither.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was done.
    async fn tell(&self, notice: Option<&Notice>, processed: &EventId, at_ms: i64) -> Result<Told, Unavailable>;

    /// Keeps what is to be told later with its customer's record, under the version that was read, and marks the event as
    /// processed; both or neither.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was done.
    async fn keep_untold(&self, record: &CustomerRecord, processed: &EventId, at_ms: i64) -> Result<Commit, Unavailable>;
}

/// What became of a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is in the outbox now.
    Now,
    /// It was there before, or there was none.
    Not,
}

/// A change of an account. It holds only if the stored version is the account's minus one, and that of the customer's record
/// likewise.
#[derive(Debug, Clone, Copy)]
pub struct AccountChange<'a> {
    /// The account as it will be.
    pub account: &'a Account,
    /// When it is next to be looked at although Stripe says nothing, a real moment.
    pub next_due: Option<EpochSecs>,
    /// What the change is told by; committed with it (G8).
    pub notices: &'a [Notice],
    /// The event that caused it, if one did.
    pub processed: Option<Processed<'a>>,
    /// The real moment of the change, in milliseconds since 1970.
    pub at_ms: i64,
}

/// An event that changed an account, and what commits with it.
#[derive(Debug, Clone, Copy)]
pub struct Processed<'a> {
    /// The event; marked as processed.
    pub event_id: &'a EventId,
    /// What is known of its customer now.
    pub customer: &'a CustomerRecord,
}

/// Whether a commit held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It holds.
    Done,
    /// Somebody else committed first; nothing was changed.
    LostRace,
}

/// What is known of a customer, whether or not it has an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomerRecord {
    /// Which customer.
    pub customer_id: CustomerId,
    /// Grows by one with each look; what is written holds only under the version that was read, so that no failure is lost to
    /// another look at the same time. 0 of a record that an older version wrote.
    #[serde(default)]
    pub version: u64,
    /// What it came to.
    pub standing: CustomerStanding,
    /// The user it belongs to, or claims.
    pub user_id: Option<UserId>,
    /// When the fetch began that showed it, in milliseconds since 1970; 0 if only a payment of it was heard of so far.
    pub seen_at_ms: i64,
    /// When the fetch before that one began; 0 if there was none.
    #[serde(default)]
    pub seen_before_ms: i64,
    /// Of each invoice that is owed, whatever it is for, the earliest known failure (G2).
    #[serde(default)]
    pub failures: Failures,
    /// Payments that were refunded or disputed while it had no account, by their charge or dispute: told with its first commit.
    #[serde(default)]
    pub untold: BTreeMap<String, Payment>,
    /// Which others the fetch showed as owed. An older version writes none.
    #[serde(default)]
    pub unfailed: Option<Unfailed>,
}

/// What became of a customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CustomerStanding {
    /// It has an account.
    Joined,
    /// Nothing names its user: no account.
    NoUser,
    /// Stripe has no such customer.
    NotFound,
    /// Its user is bound to another customer.
    SecondClaimant,
}

/// The ledger and the tallies: written together, by the usage function alone.
pub trait Ledger {
    /// Writes a batch's rows and adds to its tallies, all or nothing.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was written.
    async fn write(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable>;

    /// The row of this key, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`], also if the row cannot be read by this version.
    async fn row(&self, key: &RowKey) -> Result<Option<LedgerRow>, Unavailable>;

    /// Raises how often a row was reported, for reports of this name; once, however often it is asked for in a row.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was raised.
    async fn seen_again(&self, key: &RowKey, times: u64, seen_by: &str) -> Result<(), Unavailable>;
}

/// The parked rows of the ledger, and their way out.
pub trait Parked {
    /// A user's parked rows of one shard of the time index that happened at or after a moment, a page at a time. Eventually
    /// consistent: a row of the last seconds may be missing, or be parked no longer.
    ///
    /// # Errors
    /// [`Unavailable`], also if a row cannot be read by this version.
    async fn parked(&self, place: &ParkedPlace, since: EpochSecs) -> Result<(Vec<LedgerRow>, Option<ParkedPlace>), Unavailable>;

    /// Writes what was decided about parked rows and adds to their tallies, all or nothing. It holds only while each is parked.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was written.
    async fn recount(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable>;
}

/// Where in the time index to look for parked rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParkedPlace {
    /// The user's shard: the index's partition key.
    pub time_key: String,
    /// The row after which to go on, and its moment: the index's sort key.
    pub after: Option<(RowKey, String)>,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// All of it is written.
    All,
    /// Nothing is written; for each row, in order, why.
    Nothing(Vec<RowProblem>),
    /// Nothing is written, and something of it can never be; why, in the database's words.
    Unstorable(String),
}

/// Why a batch could not be written, as far as one row is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowProblem {
    /// Not because of this row.
    None,
    /// The request has this row already; for a recount: the row is parked no longer.
    Exists(Box<LedgerRow>),
    /// Another writer was at it, or the partition is hot: later.
    Contended,
}

/// The tallies, for those who only read them.
pub trait Tallies {
    /// All tallies of a user from one UTC day to another, both included; shards are added up.
    ///
    /// # Errors
    /// [`Unavailable`], also if an item cannot be read by this version.
    async fn tallies(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<Tally>, Unavailable>;
}

/// What was granted to each user, this minute and in this segment.
pub trait Gates {
    /// What was granted so far, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`], also if the item cannot be read by this version.
    async fn granted(&self, user_id: &UserId) -> Result<Granted, Unavailable>;

    /// Grants requests if they fit every limit, all of them or none, whoever else asks at the same time.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain whether they were granted. They may then have been taken, though nobody was told.
    async fn take(&self, take: &Take<'_>) -> Result<Taken, Unavailable>;
}

/// The tallies to be reported, and what the reporter knows of them.
pub trait Books {
    /// The billed tallies that were last added to in the hours from `since` to `until`, both included.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn touched(&self, since: EpochSecs, until: EpochSecs) -> Result<Vec<Touched>, Unavailable>;

    /// The books that are due at or before `until`, each with its tally's key.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn due_books(&self, until: EpochSecs) -> Result<Vec<(UserId, String)>, Unavailable>;

    /// One tally, read consistently, all shards added up.
    ///
    /// # Errors
    /// [`Unavailable`], also if an item cannot be read by this version.
    async fn tally(&self, user_id: &UserId, tally_key: &str) -> Result<Option<Tally>, Unavailable>;

    /// What is known of a tally, read consistently; an empty book if nothing is.
    ///
    /// # Errors
    /// [`Unavailable`], also if the item cannot be read by this version.
    async fn book(&self, user_id: &UserId, tally_key: &str) -> Result<Book, Unavailable>;

    /// The tallies' keys of all of a user's books from one UTC day to another, both included, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn book_keys(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<String>, Unavailable>;

    /// Saves a book under the version it was read in, and raises that version.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was saved.
    async fn save(&self, user_id: &UserId, tally_key: &str, book: &mut Book) -> Result<Commit, Unavailable>;

    /// Saves two books of a user, both or neither, each under its version.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that they were saved.
    async fn save_both(&self, user_id: &UserId, one: (&str, &mut Book), other: (&str, &mut Book)) -> Result<Commit, Unavailable>;

    /// Saves a book under its version and puts something into the quarantine, both or neither. At most 99 entries.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that both were done.
    async fn save_and_quarantine(
        &self,
        user_id: &UserId,
        tally_key: &str,
        book: &mut Book,
        entries: &[Quarantined],
    ) -> Result<Commit, Unavailable>;
}

/// A billed tally that was added to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// Whose it is.
    pub user_id: UserId,
    /// Day and segment.
    pub tally_key: String,
    /// The hour in which it was last added to; of several shards, the earliest of these.
    pub hour: EpochSecs,
    /// The end of its segment as it was when it was counted.
    pub segment_end: EpochSecs,
}

/// What the reporter keeps in mind from run to run, and its lease.
pub trait ReporterState {
    /// What is kept in mind, read consistently; nothing before the first run.
    ///
    /// # Errors
    /// [`Unavailable`], also if it cannot be read by this version.
    async fn memory(&self) -> Result<ReporterMemory, Unavailable>;

    /// Remembers. Only the holder of the lease does.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is remembered.
    async fn remember(&self, memory: &ReporterMemory) -> Result<(), Unavailable>;

    /// Takes the lease until a moment in milliseconds since 1970, unless somebody else holds it at `now_ms`.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain whether it is held.
    async fn take_lease(&self, owner: &str, now_ms: i64, until_ms: i64) -> Result<bool, Unavailable>;

    /// Makes the lease last until a moment in milliseconds since 1970, if this owner has it still: nobody took it, and it was
    /// not given back. Whether it has. One that has ended, and that nobody took since, is renewed all the same.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain until when it lasts.
    async fn renew_lease(&self, owner: &str, until_ms: i64) -> Result<bool, Unavailable>;

    /// Gives the lease back, if this owner holds it.
    ///
    /// # Errors
    /// [`Unavailable`]; it then ends by itself.
    async fn give_lease_back(&self, owner: &str) -> Result<(), Unavailable>;

    /// The ids that DynamoDB has given the tables of tallies and books. A restored table has another id.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn table_ids(&self) -> Result<Vec<String>, Unavailable>;
}

/// What the reporter keeps in mind from run to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReporterMemory {
    /// The hour up to which every tally is settled or has a book that is due.
    #[serde(default)]
    pub settled_through: Option<EpochSecs>,
    /// When everything was last looked at.
    #[serde(default)]
    pub full_run_at: Option<EpochSecs>,
    /// Up to which moment segments that ended were looked for.
    #[serde(default)]
    pub ends_through: Option<EpochSecs>,
    /// The tables that the books were kept in.
    #[serde(default)]
    pub table_ids: Vec<String>,
    /// Why nothing is reported at present, if so.
    #[serde(default)]
    pub hold: Option<Hold>,
    /// Since when it is followed up that Stripe threw usage away, if not everything could be looked at.
    #[serde(default)]
    pub follows_since: Option<EpochSecs>,
}

/// Nothing is reported: a table was restored, and what Stripe has must be compared first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Since when.
    pub since: EpochSecs,
    /// The last user that was compared, in the order of their ids; `None` at the beginning.
    #[serde(default)]
    pub compared_through: Option<UserId>,
    /// How many differences this comparison has found so far.
    #[serde(default)]
    pub differences: u64,
}

/// What the sweeper keeps in mind of its repairs from run to run.
pub trait SweeperState {
    /// What is kept in mind, read consistently; nothing before the first run.
    ///
    /// # Errors
    /// [`Unavailable`], also if it cannot be read by this version.
    async fn sweeper_memory(&self) -> Result<SweeperMemory, Unavailable>;

    /// Remembers under the version it was read in, and raises that version. A write of this owner's whose reply was lost is known
    /// again.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is remembered.
    async fn remember_sweep(&self, memory: &mut SweeperMemory) -> Result<Commit, Unavailable>;

    /// When Stripe's deliveries were last heard of, if ever.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn heard_at(&self) -> Result<Option<EpochSecs>, Unavailable>;
}

/// What the sweeper keeps in mind of its repairs from run to run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SweeperMemory {
    /// Grows by one with each write; a write holds only under the version that was read.
    #[serde(default)]
    pub version: u64,
    /// The run that wrote last.
    #[serde(default)]
    pub owner: String,
    /// Until when that run may be at work, in milliseconds since 1970; `None` if it has ended.
    #[serde(default)]
    pub busy_until_ms: Option<i64>,
    /// When the first run was.
    #[serde(default)]
    pub first_run_at: Option<EpochSecs>,
    /// Every event that was made up to this moment, and that Stripe did not deliver, is queued.
    #[serde(default)]
    pub events_through: Option<EpochSecs>,
    /// The events that are being looked through, if they are.
    #[serde(default)]
    pub events_window: Option<EventWindow>,
    /// The latest events that were queued, and when they were made: they are listed once more by the next run.
    #[serde(default)]
    pub events_queued: Vec<(EventId, EpochSecs)>,
    /// Events may be missing in Stripe's list of undelivered ones, because no endpoint asked for them: all are to be looked at.
    #[serde(default)]
    pub events_unasked: bool,
    /// When the endpoint was first seen to ask for them again, while that holds.
    #[serde(default)]
    pub endpoint_mended_at: Option<EpochSecs>,
    /// When the endpoint was last seen in order, unless all events since were listed. From then on nobody may have asked for them.
    #[serde(default)]
    pub endpoint_good_at: Option<EpochSecs>,
    /// What is wrong with the webhook endpoint, as it was told, and when.
    #[serde(default)]
    pub endpoint_told: Option<(String, EpochSecs)>,
    /// When it was last told that nothing is heard of Stripe.
    #[serde(default)]
    pub silence_told_at: Option<EpochSecs>,
    /// The day of the last comparison that was begun and ended.
    #[serde(default)]
    pub compared_on: Option<UtcDay>,
    /// How many live subscriptions it found.
    #[serde(default)]
    pub live_subscriptions: u64,
    /// The comparison that goes on, if one does.
    #[serde(default)]
    pub comparison: Option<Comparison>,
}

/// The events that are being looked through, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventWindow {
    /// The moment of the earliest.
    pub from: EpochSecs,
    /// The moment of the latest.
    pub until: EpochSecs,
    /// Which of them.
    pub list: EventList,
    /// The last one that was looked at.
    pub after: Option<String>,
}

/// Which events of Stripe's are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventList {
    /// Those that some endpoint has not taken yet.
    Undelivered,
    /// All of the first types that are of use: Stripe takes twenty at a time.
    AllOfFirstTypes,
    /// All of the other types that are of use.
    AllOfOtherTypes,
}

/// A comparison of Stripe's subscriptions with the accounts that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The day it was begun.
    pub day: UtcDay,
    /// The last subscription that was compared.
    pub after: Option<String>,
    /// How many were compared so far.
    pub subscriptions: u64,
    /// How many of them are live.
    pub live: u64,
    /// How many differed.
    pub differences: u64,
}

/// Keeps in mind when Stripe's deliveries were last heard of, for the sweeper.
pub trait Heard {
    /// Remembers that one arrived. An earlier moment than the known one changes nothing.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is remembered.
    async fn note_heard(&self, at: EpochSecs) -> Result<(), Unavailable>;
}

/// Many accounts and what belongs to them, at once. Eventually consistent: what was written in the last second may be missing.
pub trait AccountBatches {
    /// Which of these events are processed.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn processed(&self, events: &BTreeSet<EventId>) -> Result<BTreeSet<EventId>, Unavailable>;

    /// What is known of these customers.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn customers(
        &self,
        customers: &BTreeSet<CustomerId>,
    ) -> Result<BTreeMap<CustomerId, Readable<CustomerRecord>>, Unavailable>;

    /// The accounts of these users.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn accounts(&self, users: &BTreeSet<UserId>) -> Result<BTreeMap<UserId, Readable<Account>>, Unavailable>;
}

/// An item of a batch: read, or why this version cannot read it. One of those holds up no other.
pub type Readable<T> = Result<T, Unavailable>;

/// What Stripe lists of everybody.
pub trait StripeLists {
    /// A page of the events of a window, newest first, each as its JSON text.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if the event to go on after is gone.
    async fn events(&self, window: &EventWindow) -> Result<StripePage<String>, StripeError>;

    /// A page of all subscriptions but those on test clocks, newest first. One that cannot be read is an error that names it.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if the subscription to go on after is gone.
    async fn all_subscriptions(&self, after: Option<&str>)
    -> Result<StripePage<Result<ListedSubscription, String>>, StripeError>;

    /// The webhook endpoints.
    ///
    /// # Errors
    /// [`StripeError`].
    async fn endpoints(&self) -> Result<Vec<Endpoint>, StripeError>;

    /// The API version that every call asks for, and that events are to be in.
    fn api_version(&self) -> &'static str;
}

/// A page of a list of Stripe's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripePage<T> {
    /// What it holds.
    pub data: Vec<T>,
    /// The object after which the next page begins, if there is one.
    pub next: Option<String>,
}

/// What the reporter knows of a user's tallies, for those who only read it.
pub trait Reported {
    /// All books of a user from one UTC day to another, both included, by their tallies' keys.
    ///
    /// # Errors
    /// [`Unavailable`], also if an item cannot be read by this version.
    async fn books(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<BTreeMap<String, Book>, Unavailable>;
}

/// The ledger, for those who only read it.
pub trait Audit {
    /// A user's rows of these moments in the account's time, newest first, at most `most` of them, from where an earlier page
    /// ended. See [`Position`] for the order.
    ///
    /// # Errors
    /// [`Unavailable`], also if a row cannot be read by this version.
    async fn rows_by_time(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        after: Option<&Position>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable>;

    /// The rows of one request, whatever became of it, read consistently: the success first, then the failures, newest first.
    /// At most `most` of them, after the row of this key.
    ///
    /// # Errors
    /// [`Unavailable`], also if a row cannot be read by this version.
    async fn rows_of_request(
        &self,
        user_id: &UserId,
        request_id: &RequestId,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<LedgerRow>, Unavailable>;

    /// What was counted of a user in each UTC hour of these moments, by the rows' own moments. `None` if more than `most` rows
    /// would have to be read for it.
    ///
    /// # Errors
    /// [`Unavailable`], also if a row cannot be read by this version.
    async fn counted_by_hour(
        &self,
        user_id: &UserId,
        moments: Range<EpochSecs>,
        most: usize,
    ) -> Result<Option<ByHour>, Unavailable>;
}

/// The outbox, for whoever delivers a notice.
pub trait Outbox {
    /// A notice's row, read consistently. `None` once it has expired.
    ///
    /// # Errors
    /// [`Unavailable`], also if the row cannot be read by this version.
    async fn row(&self, notice_id: &str) -> Result<Option<OutboxRow>, Unavailable>;

    /// Notes that the domain event was sent, at this real moment in milliseconds since 1970. The first moment stays.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is noted; then the event is sent once more.
    async fn note_published(&self, notice_id: &str, at_ms: i64) -> Result<(), Unavailable>;

    /// Takes a notice out of the index of pending ones, if its domain event was sent and its e-mail is settled. Whether it was.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain; then it is looked at once more.
    async fn finish(&self, notice_id: &str) -> Result<bool, Unavailable>;
}

/// The one attempt at a notice's e-mail.
pub trait EmailAttempts {
    /// Takes the attempt, under a name of its own. Whether it is ours: nobody had taken it, and the e-mail was not settled.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain; then nothing may be sent.
    async fn claim_email(&self, notice_id: &str, email_id: &str, at_ms: i64) -> Result<bool, Unavailable>;

    /// Settles the e-mail of the attempt of this name, or that of a notice whose attempt nobody has taken. A fate that is known
    /// replaces an unknown one, nothing else. Whether it is settled so.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is settled.
    async fn settle_email(&self, notice_id: &str, email_id: Option<&str>, fate: &Fate, at_ms: i64) -> Result<bool, Unavailable>;

    /// Notes what the mail service told afterwards of the e-mail of this name.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is noted.
    async fn note_feedback(&self, email_id: &str, feedback: &Feedback) -> Result<Noted, Unavailable>;
}

/// What became of something that the mail service told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It is noted now.
    Now,
    /// It was noted before.
    Before,
    /// No e-mail of this name is found: the index may be behind, or its notice has expired.
    NotFound,
}

/// The notices that are not delivered yet.
pub trait PendingNotices {
    /// How many shards the index of pending notices has; they are numbered from 0.
    const SHARDS: u8;

    /// Those of a shard committed at or before this real moment in milliseconds since 1970, the oldest first, and only those that come
    /// after `after`: at most `limit` of them, and fewer only if there are no more. Eventually consistent.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn pending(
        &self,
        shard: u8,
        until_ms: i64,
        after: Option<&PendingNotice>,
        limit: u8,
    ) -> Result<Vec<PendingNotice>, Unavailable>;

    /// Has the table's stream carry a pending notice to the notifier once more. Whether it was still pending.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain.
    async fn wake(&self, notice_id: &str, at_ms: i64) -> Result<bool, Unavailable>;
}

/// A notice that is not delivered yet.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct PendingNotice {
    /// Its id.
    pub notice_id: String,
    /// When it was committed, in milliseconds since 1970.
    pub committed_at_ms: i64,
}

/// A row of the outbox: a notice, and how far its delivery is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct OutboxRow {
    /// The notice.
    #[serde(flatten)]
    pub notice: Notice,
    /// When it was committed, in milliseconds since 1970.
    pub committed_at_ms: i64,
    /// Its place in the index of pending notices; gone once all is settled.
    #[serde(default)]
    pub pending_shard: Option<String>,
    /// When its domain event was first sent, in milliseconds since 1970.
    #[serde(default)]
    pub published_at_ms: Option<i64>,
    /// The name of the one attempt at its e-mail, once that is taken.
    #[serde(default)]
    pub email_id: Option<String>,
    /// When that was, in milliseconds since 1970.
    #[serde(default)]
    pub email_claimed_at_ms: Option<i64>,
    /// What became of its e-mail, once that is settled: a [`Fate`]'s name, or one of a newer version.
    #[serde(default)]
    pub email_state: Option<String>,
}

/// Carries domain events to other programs.
pub trait EventBus {
    /// Sends an event. Once too often does no harm: its id tells.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it was taken.
    async fn publish(&self, event: &DomainEvent) -> Result<(), Unavailable>;
}

/// Sends e-mails.
pub trait Mailer {
    /// Sends one e-mail, in one attempt, and answers the mail service's name of it.
    ///
    /// # Errors
    /// [`NotSent`] says whether it is certain that it was not sent.
    async fn send(&self, email: &Email) -> Result<String, NotSent>;
}

/// One e-mail as it is sent. Its `Debug` says nothing of it (G10).
#[derive(Clone, PartialEq, Eq)]
pub struct Email {
    /// Its own name, by which the mail service tells of it afterwards.
    pub email_id: String,
    /// The one address it goes to.
    pub to: String,
    /// The subject, one line.
    pub subject: String,
    /// The body as HTML.
    pub html: String,
    /// The same as plain text.
    pub text: String,
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Email({})", self.email_id)
    }
}

/// Why an e-mail was not sent, as far as that is known. The text names the service's code, never its message, which may hold the address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The mail service did not take it.
    #[error("the mail service refused the e-mail: {code}")]
    Refused {
        /// The service's error code.
        code: String,
    },
    /// It may have been sent or not.
    #[error("nobody knows whether the e-mail was sent: {reason}")]
    Unknown {
        /// What happened.
        reason: String,
    },
}

/// Stripe, as far as an e-mail needs it: whom to write to, and what is owed. Neither is stored.
pub trait Correspondence {
    /// Whom to write to; `None` for a customer that was deleted or never was.
    ///
    /// # Errors
    /// [`StripeError`].
    async fn addressee(&self, customer: &CustomerId) -> Result<Option<Addressee>, StripeError>;

    /// An invoice's present state; `None` if there is no such invoice.
    ///
    /// # Errors
    /// [`StripeError`].
    async fn bill(&self, invoice: &InvoiceId) -> Result<Option<Bill>, StripeError>;
}

/// The accounts at which something is due by time alone.
pub trait DueAccounts {
    /// The users whose account is due at or before `now`, at most `limit` of them.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn due(&self, now: EpochSecs, limit: usize) -> Result<Vec<UserId>, Unavailable>;
}

/// Where input goes that can be neither counted nor refused to its sender.
pub trait Quarantine {
    /// Keeps it. The same `id` again replaces what was kept, so a repetition does no harm.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is kept.
    async fn keep(&self, entry: &Quarantined) -> Result<(), Unavailable>;
}

/// The quarantine, for those who look at it and send its input again.
pub trait QuarantineEntries {
    /// The entries of a UTC day, by their ids.
    ///
    /// # Errors
    /// [`Unavailable`], also if an entry cannot be read by this version.
    async fn entries(&self, day: UtcDay) -> Result<Vec<QuarantineEntry>, Unavailable>;

    /// One entry of a UTC day, read consistently.
    ///
    /// # Errors
    /// [`Unavailable`], also if it cannot be read by this version.
    async fn entry(&self, day: UtcDay, quarantine_id: &str) -> Result<Option<QuarantineEntry>, Unavailable>;

    /// Notes with an entry that its input was sent again. The entry stays.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is noted, or there is no such entry.
    async fn mark_retried(&self, entry: &Quarantined, retried_at: EpochSecs) -> Result<(), Unavailable>;
}

/// One entry of the quarantine as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct QuarantineEntry {
    /// What was kept.
    #[serde(flatten)]
    pub quarantined: Quarantined,
    /// When its input was sent again, if it was.
    #[serde(default)]
    pub retried_at: Option<EpochSecs>,
}

/// Sends usage messages, as an AI service does.
pub trait UsageMessages {
    /// Queues a message of this body durably.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is queued.
    async fn send(&self, body: &str) -> Result<(), Unavailable>;
}

/// One entry of the quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// Names it; made from where it came from, so that the same input has the same id.
    pub quarantine_id: String,
    /// Why it is there.
    pub reason: QuarantineReason,
    /// What exactly is wrong, for people.
    pub detail: String,
    /// The user it is about, if that can be told.
    pub user_id: Option<String>,
    /// The input as it came, to be replayed once what is wrong is mended.
    pub input: String,
    /// When it came in, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Reads Stripe's present state.
pub trait StripeState {
    /// One customer with all its subscriptions, open invoices and completed checkout sessions.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if there never was such a customer; a deleted one is found, as deleted.
    async fn customer(&self, id: &CustomerId) -> Result<CustomerFacts, StripeError>;

    /// The customer an object belongs to, for events that do not name it: a subscription, an invoice, a checkout session, a charge
    /// or a dispute, known by the prefix of its id. `None` for other objects, and where the object has no customer.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if there never was such an object.
    async fn customer_of(&self, object_id: &str) -> Result<Option<CustomerId>, StripeError>;

    /// The customers on a test clock.
    ///
    /// # Errors
    /// [`StripeError`], as for [`StripeState::customer`].
    async fn customers_on_clock(&self, clock: &str) -> Result<Vec<CustomerId>, StripeError>;
}

/// Reads payments that were refunded or disputed.
pub trait Payments {
    /// What Stripe shows of a charge (`ch_…`, `py_…`) or a dispute (`dp_…`, `du_…`). `None` for other objects.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if there never was such an object.
    async fn payment(&self, object_id: &str) -> Result<Option<PaymentFacts>, StripeError>;
}

/// A payment as Stripe has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentFacts {
    /// Who paid, if it was a customer.
    pub customer: Option<CustomerId>,
    /// What is to be told of it; nothing of a charge of which nothing was given back.
    pub payment: Option<Payment>,
}

/// Stripe, as far as a sale looks at it and makes its customer.
pub trait Sales {
    /// The ids of the active prices with these lookup keys. A key that no active price has is missing in it.
    ///
    /// # Errors
    /// [`StripeError`].
    async fn price_ids(&self, lookup_keys: &[&str]) -> Result<BTreeMap<String, PriceId>, StripeError>;

    /// A customer's present state. One that was deleted, or that there never was, is found as gone.
    ///
    /// # Errors
    /// [`StripeError`].
    async fn buyer(&self, customer: &CustomerId) -> Result<Buyer, StripeError>;

    /// Makes a customer whose metadata names the user. The same idempotency key gives the same customer.
    ///
    /// # Errors
    /// [`StripeError`]; if its fate is unknown, the same key tells, unless the error
    /// [may come again with it](StripeError::may_come_again_with_its_key).
    async fn make_customer(&self, user_id: &UserId, key: &str) -> Result<CustomerId, StripeError>;
}

/// Stripe's checkout sessions.
pub trait CheckoutSessions {
    /// Opens a session that leads to a subscription. The same idempotency key never opens two. What it answers is not told: it
    /// may be an answer of the past, given again, so the sessions are to be looked at afterwards.
    ///
    /// # Errors
    /// [`StripeError`]; it [may come again with its key](StripeError::may_come_again_with_its_key), also where the key was used for
    /// another offer.
    async fn open_session(&self, customer: &CustomerId, offer: &Offer, key: &str) -> Result<(), StripeError>;

    /// Expires an open session: nobody can pay in it any more.
    ///
    /// # Errors
    /// [`StripeError::Refused`] if it is not open any more.
    async fn expire_session(&self, session: &CheckoutSessionId) -> Result<(), StripeError>;
}

/// Stripe's customer portal.
pub trait Portal {
    /// A new link to the portal of a customer.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if the customer is gone.
    async fn portal(&self, customer: &CustomerId, return_url: &ReturnUrl) -> Result<Link, StripeError>;
}

/// Has a user's parked usage looked at again, now that the user has an account it can be counted for.
pub trait Recounts {
    /// Queues it durably. Once too often does no harm: a row is counted once.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is queued.
    async fn recount(&self, user_id: &UserId) -> Result<(), Unavailable>;
}

/// Keeps in mind that Stripe threw usage away after it had taken it.
pub trait MeterErrors {
    /// Remembers that Stripe said so.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is remembered.
    async fn note_meter_error(&self, said_at: EpochSecs) -> Result<(), Unavailable>;

    /// When Stripe said so since it was last followed up, if it did.
    ///
    /// # Errors
    /// [`Unavailable`].
    async fn rejections(&self) -> Result<Option<Rejections>, Unavailable>;

    /// What Stripe said up to this moment is followed up.
    ///
    /// # Errors
    /// [`Unavailable`]; then it is followed up once more.
    async fn rejections_followed(&self, through: EpochSecs) -> Result<(), Unavailable>;
}

/// Reads back what arrived at Stripe's Billing Meters.
pub trait MeterSummaries {
    /// What a meter of this name has for a customer in `[from, until)`, both whole minutes. Eventually consistent: a report of
    /// the past hour may be missing.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if there is no meter of that name; others as they come.
    async fn total(&self, event_name: &str, customer: &CustomerId, from: EpochSecs, until: EpochSecs)
    -> Result<u64, StripeError>;
}

/// Takes reports of usage: Stripe's Billing Meters.
pub trait MeterSink {
    /// Sends one report as one meter event, with its fixed identifier, quantity and timestamp.
    ///
    /// # Errors
    /// [`StripeError::Refused`] if it will never be taken; [`StripeError::Unavailable`] if its fate is unknown or it may be
    /// taken later.
    async fn send(&self, report: &MeterReport) -> Result<Delivered, StripeError>;
}

/// A report is at Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It was taken now.
    Now,
    /// Stripe knew its identifier: it was taken before.
    Before,
}

/// Why Stripe did not do what was asked. No text of it holds a key, a signature or a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    /// There is no such object.
    #[error("Stripe has no such object (request {request_id})")]
    NotFound {
        /// Stripe's name of the request, for its support and its dashboard.
        request_id: String,
    },
    /// It will never be done as asked.
    #[error("Stripe refused the request: {status} {code} (request {request_id})")]
    Refused {
        /// HTTP's status.
        status: u16,
        /// Stripe's error code, or its error's type where there is none.
        code: String,
        /// Stripe's message; it may name ids and parameters, and is kept for the audit, not for the log.
        message: String,
        /// Stripe's name of the request.
        request_id: String,
    },
    /// The API key is missing, wrong or may not do this: a person has to mend it, then it works as asked.
    #[error(
        "Stripe does not accept the API key: {status} {code} (request {request_id}); check the key in SSM and its permissions"
    )]
    Unauthorised {
        /// HTTP's status, 401 or 403.
        status: u16,
        /// Stripe's error code or type.
        code: String,
        /// Stripe's name of the request.
        request_id: String,
    },
    /// Nobody knows whether it was done, or it may be done later.
    #[error("Stripe is not available: {reason} (request {request_id})")]
    Unavailable {
        /// What happened: a timeout, a broken connection, or the status of an answer (429, 5xx) as `HTTP 500 …`.
        reason: String,
        /// How long Stripe asks all callers to wait: told, or one second where it names a rate limit. A lock on one object
        /// (429 `lock_timeout`) asks nobody else to wait.
        retry_after_secs: Option<u32>,
        /// Stripe's name of the request, if an answer came.
        request_id: String,
    },
    /// An answer came that we cannot read.
    #[error("Stripe's answer cannot be read: {reason} (request {request_id})")]
    Unreadable {
        /// Which object was expected.
        reason: String,
        /// Stripe's name of the request.
        request_id: String,
    },
}

/// How the reason begins where the answer's status was 500 or more.
const SERVER_FAILED: &str = "HTTP 5";

impl StripeError {
    /// Whether this may be what Stripe remembers with the request's idempotency key, so that the key brings it again although it no
    /// longer holds, or is the refusal of a key that was used for something else. Limits, locks and conflicts are not remembered,
    /// and where no answer came, the same key tells what became of the request.
    #[must_use]
    pub fn may_come_again_with_its_key(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::Unauthorised { .. } => true,
            Self::Unavailable { reason, .. } => reason.starts_with(SERVER_FAILED),
            Self::NotFound { .. } | Self::Unreadable { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_of_a_secret_is_that_it_is_one() {
        let secret = Secret::new("whsec_sample");
        assert_eq!((format!("{secret:?}"), format!("{:?}", Some(&secret))), ("Secret".to_owned(), "Some(Secret)".to_owned()));
        assert_eq!(secret.expose(), "whsec_sample");
    }
}
