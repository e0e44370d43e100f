//! Account changes: a hint comes in, Stripe's present state is fetched, the account is committed under its version.
//!
//! **Invariant:** the account and its version are read *before* the fetch. Whatever commits in between makes our commit lose
//! its race, and then everything starts again; so the newest fetch wins, whatever order hints come in (G2).

mod listener;

use std::collections::{BTreeMap, BTreeSet};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use tokentill::{
    config::StripeMode,
    domain::{
        account::Account,
        counting::QuarantineReason,
        facts::CustomerFacts,
        hint::{HINT_VERSION, Hint, PaymentFailure},
        id::{CustomerId, EventId, InvoiceId, UserId, composite_key},
        notice::{self, Notice, Payment},
        price_list::PriceList,
        sync::{self, Alarm, Decision, Failures, Fetched, KnownFailure, Unfailed},
        time::EpochSecs,
    },
    log::{self, Line},
    ports::{
        AccountChange, Accounts, Commit, CustomerRecord, CustomerStanding, Heard, Hints, MeterErrors, PaymentFacts,
        PaymentNotices, Payments, Postpone, Processed, Quarantine, Quarantined, Recounts, StripeError, StripeState, Timer, Told,
        Unavailable,
    },
    records::{self, Nameless},
};

pub use listener::Listener;

/// How often a lost race starts again before the hint is put back.
const MAX_RACES: usize = 5;
/// The longest a transient error puts a hint off.
const MAX_BACKOFF_SECS: u32 = 900;
/// Of how many refunds and disputes a customer without an account is remembered, to be told once it has one. They are told with
/// the account's commit, which has room for a hundred items.
const MOST_UNTOLD: usize = 20;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct Sync<P, A, Q, R, K, M, C> {
    /// Stripe's present state.
    pub stripe: P,
    /// Where accounts are kept.
    pub accounts: A,
    /// The queue the hints come from; a test clock's customers are put on it one by one.
    pub queue: Q,
    /// Where a user's parked usage is handed in again, once it may be counted.
    pub recounts: R,
    /// Where claims go that cannot be granted.
    pub quarantine: K,
    /// Where Stripe's word of rejected usage is kept for the reporter, and when Stripe was heard of for the sweeper.
    pub meter_errors: M,
    /// When that was noted last.
    pub listener: Listener,
    /// The clock fetches are dated by.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
    /// The mode hints must come from.
    pub mode: StripeMode,
}

/// Whose objects are, as far as it was asked while a batch is handled: thin events come in bursts, too, and a hint that waits is
/// looked at more than once. Who owns an object never changes.
type Owners = BTreeMap<String, CustomerId>;

/// What became of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The account is what Stripe's state makes of it.
    Committed {
        /// Whose account.
        user_id: UserId,
        /// How many notices went with it.
        notices: usize,
        /// What somebody should look at.
        alarms: Vec<Alarm>,
    },
    /// It was processed before, or what it points at was fetched since.
    Skipped,
    /// Stripe has no such customer or object; recorded.
    NotFound,
    /// The customer names no user; recorded.
    NoUser,
    /// The user is bound to another customer; quarantined.
    SecondClaimant {
        /// The user it claims.
        user_id: UserId,
    },
    /// A payment was refunded or disputed; processed, whether or not there was something new to tell.
    Payment {
        /// Whose payment, if its customer has an account.
        user_id: Option<UserId>,
        /// Whether it was told now: to a user, and for the first time.
        is_new: bool,
    },
    /// A payment was refunded or disputed whose customer has no account yet.
    PaymentOfNobody {
        /// Whether it is told once the customer has one. Only so many of a customer are.
        is_kept: bool,
    },
    /// A test clock's customers were queued, each on its own.
    FannedOut {
        /// How many.
        customers: usize,
    },
    /// Stripe threw usage away; the reporter is going to look which.
    UsageRejected {
        /// The event that says so; Stripe shows samples of the usage by it.
        event_id: EventId,
    },
    /// It concerns no customer.
    NoCustomer,
    /// It cannot be read; quarantined.
    Unreadable,
}

/// A hint has to come again. The text says why and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Again {
    /// A store or queue is not available.
    #[error(transparent)]
    Store(#[from] Unavailable),
    /// Stripe is not available, does not accept our key, or answers what we cannot read.
    #[error(transparent)]
    Stripe(#[from] StripeError),
    /// Others committed first, too often in a row.
    #[error("others kept committing this account first")]
    Races,
    /// The function's time was over before it was done.
    #[error("the function's time was over")]
    TimeOver,
    /// Its customer was fetched a moment ago, too early for it. It waits here, so that one fetch serves all of a burst.
    #[error("its customer was fetched a moment ago")]
    Rests {
        /// Until when, in milliseconds since 1970.
        until_ms: i64,
    },
    /// A newer function has to read it.
    #[error("the hint is of version {0}, newer than this function; it waits for the deployment to finish")]
    NewerVersion(u32),
}

impl<P, A, Q, R, K, M, C> Sync<P, A, Q, R, K, M, C>
where
    P: StripeState + Payments,
    A: Accounts + PaymentNotices,
    Q: Hints + Postpone,
    R: Recounts,
    K: Quarantine,
    M: MeterErrors + Heard,
    C: Timer,
{
    /// Handles a batch; each hint has an outcome of its own. What is not reached by `stop_at_ms` comes again at once.
    ///
    /// A hint whose customer was fetched a moment ago is put aside, and taken up again once one fetch serves it and those beside
    /// it; meanwhile the others are handled.
    ///
    /// # Errors
    /// [`Nameless`] if a record that has to come again has no id.
    pub async fn handle(&self, event: SqsEvent, stop_at_ms: i64) -> Result<SqsBatchResponse, Nameless> {
        let mut again = Vec::new();
        let mut not_reached = Vec::new();
        let mut owners = Owners::new();
        // By when each is to be taken up, and its place in the batch.
        let mut waiting: BTreeMap<(i64, usize), &SqsMessage> =
            in_order(&event.records).into_iter().enumerate().map(|(place, record)| ((i64::MIN, place), record)).collect();
        while let Some(((not_before_ms, place), record)) = waiting.pop_first() {
            self.clock.wait_until_ms(not_before_ms.min(stop_at_ms)).await;
            if self.clock.now_ms() >= stop_at_ms {
                not_reached.push(record);
                continue;
            }
            // One slow fetch must not take the whole batch down with the function's time.
            let left = records::time_left(self.clock.now_ms(), stop_at_ms);
            let work = tokio::time::timeout(left, Box::pin(self.record(record, &mut owners)));
            let line = match records::isolated(async { work.await.unwrap_or(Err(Again::TimeOver)) }).await {
                Ok(Ok(outcome)) => outcome_line(&outcome),
                Ok(Err(Again::Rests { until_ms })) => {
                    waiting.insert((until_ms, place), record);
                    continue;
                }
                Ok(Err(error)) => {
                    again.push(record);
                    Line::new("sync", "hint put off").field("error", error.to_string())
                }
                Err(panicked) => {
                    again.push(record);
                    Line::new("sync", "hint put off").field("error", panicked.to_string())
                }
            };
            line.maybe("message_id", record.message_id.as_deref()).write(&self.clock);
        }
        self.listener.listen(&event, &self.meter_errors, &self.clock, self.mode).await;
        for record in &again {
            self.back_off(record).await;
        }
        for record in &not_reached {
            self.postpone(record, 0).await;
        }
        if !not_reached.is_empty() {
            Line::new("sync", "time is nearly over").field("not_reached", not_reached.len()).write(&self.clock);
        }
        records::answer(again.into_iter().chain(not_reached))
    }

    /// Puts a failed hint off, longer each time; if that fails, the queue's own visibility timeout does it.
    async fn back_off(&self, record: &SqsMessage) {
        let received = records::number_attribute(record, "ApproximateReceiveCount").unwrap_or(1).clamp(1, 10);
        let secs = 2_u32.saturating_pow(u32::try_from(received).unwrap_or(1)).min(MAX_BACKOFF_SECS);
        self.postpone(record, secs).await;
    }

    async fn postpone(&self, record: &SqsMessage, secs: u32) {
        let Some(receipt_handle) = &record.receipt_handle else { return };
        if let Err(error) = self.queue.postpone(receipt_handle, secs).await {
            Line::new("sync", "backing off failed").field("error", error.to_string()).write(&self.clock);
        }
    }

    async fn record(&self, record: &SqsMessage, owners: &mut Owners) -> Result<Outcome, Again> {
        let body = record.body.as_deref().unwrap_or_default();
        let Ok(hint) = serde_json::from_str::<Hint>(body) else {
            // A version that cannot be read at all may still say that it is newer.
            if let Some(version) = newer_version(body) {
                return Err(Again::NewerVersion(version));
            }
            self.quarantine_unreadable(record, body).await?;
            return Ok(Outcome::Unreadable);
        };
        if hint.v > HINT_VERSION {
            return Err(Again::NewerVersion(hint.v));
        }
        let sent_at_ms = records::number_attribute(record, "SentTimestamp").unwrap_or(i64::MAX);
        self.look(&hint, sent_at_ms, Haste::MayRest, owners).await
    }

    /// Handles one hint at once, sent at the given moment in milliseconds since 1970.
    ///
    /// # Errors
    /// [`Again`] if it has to come again.
    pub async fn hint(&self, hint: &Hint, sent_at_ms: i64) -> Result<Outcome, Again> {
        self.look(hint, sent_at_ms, Haste::AtOnce, &mut Owners::new()).await
    }

    async fn look(&self, hint: &Hint, sent_at_ms: i64, haste: Haste, owners: &mut Owners) -> Result<Outcome, Again> {
        if hint.livemode != self.mode.livemode() {
            return Ok(Outcome::NoCustomer);
        }
        if hint.is_about_a_test_clock() {
            return self.fan_out(hint).await;
        }
        if hint.is_about_rejected_usage() {
            // A word from the future would outlast every later one.
            self.meter_errors.note_meter_error(hint.created.min(self.clock.now())).await?;
            return Ok(Outcome::UsageRejected { event_id: hint.event_id.clone() });
        }
        if !hint.replay && self.accounts.is_processed(&hint.event_id).await? {
            return Ok(Outcome::Skipped);
        }
        if hint.is_about_a_payment() {
            return self.payment(hint).await;
        }
        let customer = match hint.customer.as_ref().or_else(|| owners.get(&hint.object_id)) {
            Some(customer) => customer.clone(),
            // Thin events name their object only.
            None => match self.stripe.customer_of(&hint.object_id).await {
                Ok(Some(customer)) => {
                    owners.insert(hint.object_id.clone(), customer.clone());
                    customer
                }
                Ok(None) => return Ok(Outcome::NoCustomer),
                Err(StripeError::NotFound { .. }) => return Ok(Outcome::NotFound),
                Err(error) => return Err(error.into()),
            },
        };
        Box::pin(self.customer(hint, &customer, sent_at_ms, haste)).await
    }

    /// Tells of a payment that was refunded or disputed what Stripe shows of it now.
    async fn payment(&self, hint: &Hint) -> Result<Outcome, Again> {
        let shown = match self.stripe.payment(&hint.object_id).await {
            Ok(shown) => shown,
            Err(StripeError::NotFound { .. }) => return Ok(Outcome::NotFound),
            Err(error) => return Err(error.into()),
        };
        let Some(PaymentFacts { customer: Some(customer), payment }) = shown else { return Ok(Outcome::NoCustomer) };
        for _ in 0..MAX_RACES {
            let record = self.accounts.customer(&customer).await?;
            let joined = record.as_ref().filter(|record| record.standing == CustomerStanding::Joined);
            let user = joined.and_then(|record| record.user_id.clone());
            let account = match &user {
                Some(user) => self.accounts.account(user).await?,
                None => None,
            };
            let now_ms = self.clock.now_ms();
            let notice = match (account, &payment) {
                (Some(account), Some(payment)) => {
                    Some(notice::of_payment(&account, &customer, payment.clone(), &self.prices, EpochSecs::from_ms(now_ms)))
                }
                // The record's version keeps this apart from the commit that would tell it.
                (None, Some(payment)) => match with_untold(&customer, record, payment) {
                    Some(record) => match self.accounts.keep_untold(&record, &hint.event_id, now_ms).await? {
                        Commit::Done => return Ok(Outcome::PaymentOfNobody { is_kept: true }),
                        Commit::LostRace => continue,
                    },
                    None => {
                        self.accounts.tell(None, &hint.event_id, now_ms).await?;
                        return Ok(Outcome::PaymentOfNobody { is_kept: false });
                    }
                },
                (_, None) => None,
            };
            let told = self.accounts.tell(notice.as_ref(), &hint.event_id, now_ms).await?;
            return Ok(Outcome::Payment { user_id: user, is_new: told == Told::Now });
        }
        Err(Again::Races)
    }

    async fn customer(&self, hint: &Hint, customer: &CustomerId, sent_at_ms: i64, haste: Haste) -> Result<Outcome, Again> {
        let failure = hint.payment_failure();
        let mut named = None;
        let mut holder_is_fresh = false;
        for _ in 0..MAX_RACES {
            // Every version is read before the fetch: the record's, and the account's of the user it is known to belong to.
            let record = self.accounts.customer(customer).await?;
            let known = record.as_ref().filter(|record| record.standing == CustomerStanding::Joined);
            let known = known.and_then(|record| record.user_id.clone());
            let user = named.clone().or_else(|| known.clone());
            let mut before = match &user {
                Some(user) => self.accounts.account(user).await?,
                None => None,
            };
            if let Some(fetched) = fetched(customer, record.as_ref(), before.as_ref()) {
                let known = failure.as_ref().map_or(KnownFailure::Nothing, |failure| {
                    known_failure(&failure.invoice, record.as_ref(), before.as_ref(), fetched)
                });
                if sync::may_skip(fetched, known, failure.as_ref(), sent_at_ms, hint.replay) {
                    return Ok(Outcome::Skipped);
                }
                if let (Haste::MayRest, false) = (haste, hint.replay)
                    && let Some(until_ms) = fetched.rests_until_ms(sent_at_ms, self.clock.now_ms())
                {
                    return Err(Again::Rests { until_ms });
                }
            }
            let look = Look { customer, record: record.as_ref(), fetch_began_ms: self.clock.now_ms() };
            let facts = match self.stripe.customer(customer).await {
                Ok(facts) => facts,
                Err(StripeError::NotFound { .. }) => {
                    match self
                        .record_customer(&look.came_to(CustomerStanding::NotFound, None, None, Failures::new()), hint)
                        .await?
                    {
                        Commit::Done => return Ok(Outcome::NotFound),
                        Commit::LostRace => continue,
                    }
                }
                Err(error) => return Err(error.into()),
            };
            let failures = look.failures(&facts, failure.as_ref());
            // A customer that names nobody any more, deleted ones among them, stays with the user it had.
            let Some(joined) = sync::joined_user(&facts).or(known.as_ref()).cloned() else {
                match self.record_customer(&look.came_to(CustomerStanding::NoUser, None, Some(&facts), failures), hint).await? {
                    Commit::Done => return Ok(Outcome::NoUser),
                    Commit::LostRace => continue,
                }
            };
            if user.as_ref() != Some(&joined) {
                // The version must be read before the fetch, and it was not this user's: once more. Only an account that is not
                // there now was not there before the fetch either, since none is ever deleted.
                if self.accounts.account(&joined).await?.is_some() {
                    named = Some(joined);
                    continue;
                }
                before = None;
            }
            if let Some(former) = known.as_ref().filter(|former| **former != joined)
                && self.release(hint, former, customer).await? == Commit::LostRace
            {
                continue;
            }
            match sync::decide(&self.prices, before.as_ref(), &joined, &facts, &failures, look.fetch_began_ms) {
                Decision::SecondClaimant { held_by, .. } if !holder_is_fresh => {
                    // What is stored of the holder may be behind: its end may be on the way, in another group of the queue.
                    let Ok(revisit) = hint.revisit(&held_by) else { return Ok(Outcome::Unreadable) };
                    Box::pin(self.customer(&revisit, &held_by, sent_at_ms, Haste::AtOnce)).await?;
                    holder_is_fresh = true;
                }
                Decision::SecondClaimant { held_by, account } => {
                    // The claim is remembered with the account, so that it is looked at again when the holder ends.
                    if let Some(account) = account
                        && self.commit(&account, &[], None).await? == Commit::LostRace
                    {
                        continue;
                    }
                    self.quarantine_claim(hint, &joined, customer, &held_by).await?;
                    let record = look.came_to(CustomerStanding::SecondClaimant, Some(&joined), Some(&facts), failures);
                    if self.record_customer(&record, hint).await? == Commit::Done {
                        return Ok(Outcome::SecondClaimant { user_id: joined });
                    }
                }
                Decision::Commit { account, mut notices, alarms, revisit, recount } => {
                    self.queue_revisits(hint, &revisit).await?;
                    // Before the commit for the same reason: afterwards nobody would know that it is still to be done.
                    if recount {
                        self.recounts.recount(&joined).await?;
                    }
                    let mut record = look.came_to(CustomerStanding::Joined, Some(&joined), Some(&facts), failures);
                    let now = EpochSecs::from_ms(look.fetch_began_ms);
                    let untold = std::mem::take(&mut record.untold).into_values();
                    notices.extend(untold.map(|payment| notice::of_payment(&account, customer, payment, &self.prices, now)));
                    let processed = Processed { event_id: &hint.event_id, customer: &record };
                    if self.commit(&account, &notices, Some(processed)).await? == Commit::Done {
                        return Ok(Outcome::Committed { user_id: joined, notices: notices.len(), alarms });
                    }
                }
            }
        }
        Err(Again::Races)
    }

    async fn commit(
        &self,
        account: &Account,
        notices: &[Notice],
        processed: Option<Processed<'_>>,
    ) -> Result<Commit, Unavailable> {
        let at_ms = self.clock.now_ms();
        let next_due = notice::next_due(account, &self.prices);
        self.accounts.commit(&AccountChange { account, next_due, notices, processed, at_ms }).await
    }

    /// Takes the customer from the user it named before.
    async fn release(&self, hint: &Hint, former: &UserId, customer: &CustomerId) -> Result<Commit, Unavailable> {
        let Some(account) = self.accounts.account(former).await?.filter(|account| account.customer_id == *customer) else {
            return Ok(Commit::Done);
        };
        if account.subscription.is_none() {
            return Ok(Commit::Done);
        }
        let (released, notices, revisit) = sync::release(&self.prices, &account, self.clock.now_ms());
        self.queue_revisits(hint, &revisit).await?;
        self.commit(&released, &notices, None).await
    }

    /// Queues customers to be looked at afresh, each in its own group. Sent before the commit that makes it worth while: a hint
    /// too many does no harm, one too few would.
    async fn queue_revisits<'a>(
        &self,
        hint: &Hint,
        customers: impl IntoIterator<Item = &'a CustomerId>,
    ) -> Result<(), Unavailable> {
        for customer in customers {
            let Ok(revisit) = hint.revisit(customer) else { continue };
            self.queue.send(&revisit, revisit.event_id.as_str()).await?;
        }
        Ok(())
    }

    async fn fan_out(&self, hint: &Hint) -> Result<Outcome, Again> {
        if self.mode.livemode() {
            return Ok(Outcome::NoCustomer);
        }
        let customers = match self.stripe.customers_on_clock(&hint.object_id).await {
            Ok(customers) => customers,
            Err(StripeError::NotFound { .. }) => return Ok(Outcome::NotFound),
            Err(error) => return Err(error.into()),
        };
        self.queue_revisits(hint, &customers).await?;
        Ok(Outcome::FannedOut { customers: customers.len() })
    }

    async fn record_customer(&self, record: &CustomerRecord, hint: &Hint) -> Result<Commit, Unavailable> {
        self.accounts.record(record, &hint.event_id).await
    }

    async fn quarantine_claim(
        &self,
        hint: &Hint,
        user_id: &UserId,
        customer: &CustomerId,
        held_by: &CustomerId,
    ) -> Result<(), Unavailable> {
        let entry = Quarantined {
            // One entry for each claim, however many events repeat it.
            quarantine_id: composite_key(&["second_claimant", user_id.as_str(), customer.as_str()]),
            reason: QuarantineReason::SecondClaimant,
            detail: format!(
                "customer {customer} claims a user who is bound to {held_by} by a live subscription; \
                 correct metadata.user_id of one of them, then replay this"
            ),
            user_id: Some(user_id.to_string()),
            input: serde_json::to_string(hint).unwrap_or_default(),
            at_ms: hint.created.as_secs().saturating_mul(1000),
        };
        self.quarantine.keep(&entry).await
    }

    async fn quarantine_unreadable(&self, record: &SqsMessage, body: &str) -> Result<(), Unavailable> {
        let entry = Quarantined {
            quarantine_id: composite_key(&["hint", &records::name_of(record)]),
            reason: QuarantineReason::Invalid,
            detail: "the message on the account-changes queue is no hint".to_owned(),
            user_id: None,
            input: body.to_owned(),
            at_ms: records::number_attribute(record, "SentTimestamp").unwrap_or_else(|| self.clock.now_ms()),
        };
        self.quarantine.keep(&entry).await
    }
}

/// Whether a hint may wait for others of its burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    MayRest,
    AtOnce,
}

/// One look at a customer: what was known of it, and when the fetch began.
struct Look<'a> {
    customer: &'a CustomerId,
    record: Option<&'a CustomerRecord>,
    fetch_began_ms: i64,
}

impl Look<'_> {
    /// What is known of failures now.
    fn failures(&self, facts: &CustomerFacts, failure: Option<&PaymentFailure>) -> Failures {
        let nothing = Failures::new();
        let known = self.record.map_or(&nothing, |record| &record.failures);
        sync::failures(known, facts, failure, self.fetch_began_ms)
    }

    /// What the customer came to, under the version that was read. `facts` are what Stripe showed of it, if there is such a customer.
    fn came_to(
        &self,
        standing: CustomerStanding,
        user_id: Option<&UserId>,
        facts: Option<&CustomerFacts>,
        failures: Failures,
    ) -> CustomerRecord {
        let fetched_at_ms = self.fetch_began_ms;
        let nothing = Unfailed { fetched_at_ms, invoices: BTreeSet::new() };
        CustomerRecord {
            unfailed: Some(facts.map_or(nothing, |facts| Unfailed::of(facts, &failures, fetched_at_ms))),
            customer_id: self.customer.clone(),
            version: self.record.map_or(0, |record| record.version).saturating_add(1),
            standing,
            user_id: user_id.cloned(),
            seen_at_ms: self.fetch_began_ms,
            seen_before_ms: self.record.map_or(0, |record| record.seen_at_ms),
            failures,
            untold: self.record.map(|record| record.untold.clone()).unwrap_or_default(),
        }
    }
}

/// A customer's record with a payment that is to be told once it has an account; `None` if it has too many of them. A later state
/// of the same payment takes the place of the earlier one.
fn with_untold(customer: &CustomerId, record: Option<CustomerRecord>, payment: &Payment) -> Option<CustomerRecord> {
    let mut record = record.unwrap_or_else(|| CustomerRecord {
        customer_id: customer.clone(),
        version: 0,
        standing: CustomerStanding::NoUser,
        user_id: None,
        seen_at_ms: 0,
        seen_before_ms: 0,
        failures: Failures::new(),
        unfailed: None,
        untold: BTreeMap::new(),
    });
    if record.version == 0 {
        // A version makes its moment one to rely on, which that of an older version's record is not.
        record.seen_at_ms = 0;
    }
    record.version = record.version.saturating_add(1);
    record.untold.insert(payment.dispute_id.as_ref().unwrap_or(&payment.charge_id).clone(), payment.clone());
    (record.untold.len() <= MOST_UNTOLD).then_some(record)
}

/// When a customer was fetched last: what its user's account was decided from, or else what its own record tells. A record that an
/// older version wrote tells only when the fetch was over.
fn fetched(customer: &CustomerId, record: Option<&CustomerRecord>, account: Option<&Account>) -> Option<Fetched> {
    let before_ms = record.map_or(0, |record| record.seen_before_ms);
    match (account.filter(|account| account.customer_id == *customer), record) {
        (Some(account), _) => Some(Fetched { at_ms: account.fetched_at_ms, before_ms }),
        (None, Some(record)) if record.version > 0 && record.standing != CustomerStanding::Joined => {
            Some(Fetched { at_ms: record.seen_at_ms, before_ms })
        }
        (None, _) => None,
    }
}

/// What is known of an invoice's failures since the last fetch.
fn known_failure(
    invoice: &InvoiceId,
    record: Option<&CustomerRecord>,
    account: Option<&Account>,
    fetched: Fetched,
) -> KnownFailure {
    let recorded = record.and_then(|record| record.failures.get(invoice)).copied();
    let overdue = account.and_then(|account| account.overdue.get(invoice)).map(|overdue| overdue.since);
    if let Some(earliest) = [recorded, overdue].into_iter().flatten().min() {
        return KnownFailure::At(earliest);
    }
    // An older version that fetched meanwhile left what the fetch before it showed.
    let unfailed = record.and_then(|record| record.unfailed.as_ref());
    match unfailed.filter(|unfailed| unfailed.fetched_at_ms == fetched.at_ms) {
        Some(unfailed) if !unfailed.invoices.contains(invoice) => KnownFailure::NotOpen,
        _ => KnownFailure::Nothing,
    }
}

/// A batch in the order in which it is best handled: by when Stripe made the events, so that of several failures the earliest is
/// known first and the others tell nothing new. What cannot be read comes last.
fn in_order(records: &[SqsMessage]) -> Vec<&SqsMessage> {
    let created = |record: &&SqsMessage| {
        let hint = serde_json::from_str::<Hint>(record.body.as_deref().unwrap_or_default());
        hint.map_or(EpochSecs::new(i64::MAX), |hint| hint.created)
    };
    let mut records: Vec<&SqsMessage> = records.iter().collect();
    records.sort_by_cached_key(created);
    records
}

fn newer_version(body: &str) -> Option<u32> {
    #[derive(serde::Deserialize)]
    struct Version {
        v: u32,
    }
    serde_json::from_str::<Version>(body).ok().map(|version| version.v).filter(|version| *version > HINT_VERSION)
}

fn outcome_line(outcome: &Outcome) -> Line {
    let line = |message| Line::new("sync", message);
    match outcome {
        Outcome::Committed { user_id, notices, alarms } => {
            let line = line("account committed").field("user", log::pseudonym(user_id.as_str())).field("notices", *notices);
            let texts: Vec<String> = alarms.iter().map(|alarm| format!("{alarm:?}")).collect();
            let alarmed = u64::try_from(alarms.len()).unwrap_or(u64::MAX);
            if alarms.is_empty() { line } else { line.field("alarms", texts).count("NeedsAttention", alarmed) }
        }
        Outcome::Skipped => line("hint skipped"),
        Outcome::NotFound => line("no such object at Stripe"),
        Outcome::NoUser => {
            line("customer without a user: set metadata.user_id on it or on its subscription").count("CustomersWithoutUser", 1)
        }
        Outcome::SecondClaimant { user_id } => {
            line("second customer claims a user").field("user", log::pseudonym(user_id.as_str())).count("NeedsAttention", 1)
        }
        Outcome::Payment { user_id, is_new } => {
            let user = user_id.as_ref().map(|user_id| log::pseudonym(user_id.as_str()));
            line("refund or dispute of a payment").maybe("user", user.as_deref()).field("notices", u64::from(*is_new))
        }
        Outcome::PaymentOfNobody { is_kept: true } => {
            line("refund or dispute of a customer without an account: told once it has one")
        }
        Outcome::PaymentOfNobody { is_kept: false } => {
            line("refund or dispute of a customer without an account: not told, there are too many").count("NeedsAttention", 1)
        }
        Outcome::FannedOut { customers } => line("test clock's customers queued").field("customers", *customers),
        Outcome::UsageRejected { event_id } => {
            line("Stripe rejected usage").field("event_id", event_id.as_str()).count("NeedsAttention", 1)
        }
        Outcome::NoCustomer => line("hint concerns no customer"),
        Outcome::Unreadable => line("hint unreadable").count("NeedsAttention", 1),
    }
}
