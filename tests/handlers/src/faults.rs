//! Faults on demand: the n-th call of a port loses its request or its reply, crashes, or something happens meanwhile.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    rc::Rc,
    time::Duration,
};

use futures_util::{FutureExt, future::LocalBoxFuture};
use tokentill::{
    domain::{
        account::Account,
        counting::{Batch, LedgerRow, RowKey},
        email::{Fate, Feedback},
        id::{CustomerId, EventId, UserId},
        notice::Notice,
        read_back::Rejections,
        report::{Book, Tally},
        time::{EpochSecs, UtcDay},
    },
    ports::{
        AccountBatches, AccountChange, Accounts, Books, Commit, CustomerRecord, DueAccounts, EmailAttempts, Heard, Ledger,
        MeterErrors, Noted, Outbox, OutboxRow, Parked, ParkedPlace, PaymentNotices, PendingNotice, PendingNotices, Quarantine,
        QuarantineEntries, QuarantineEntry, Quarantined, Readable, ReporterMemory, ReporterState, SweeperMemory, SweeperState,
        Told, Touched, Unavailable, Written,
    },
};

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives: no effect, and an error.
    LoseRequest,
    /// It takes effect, and its answer is lost: an error all the same.
    LoseReply,
    /// The function ends here, without an effect.
    CrashBefore,
    /// The function ends here, after the effect.
    CrashAfter,
}

/// The faults planned for a port, and how often each of its methods was called. Clones share the plan.
#[derive(Clone, Default)]
pub struct Faults(Rc<RefCell<Plan>>);

#[derive(Default)]
struct Plan {
    calls: BTreeMap<&'static str, usize>,
    under_way: usize,
    waves: usize,
    /// Those of them that are over.
    over: BTreeMap<&'static str, usize>,
    faults: BTreeMap<(&'static str, usize), Fault>,
    always: BTreeMap<&'static str, Fault>,
    meanwhile: BTreeMap<(&'static str, usize), LocalBoxFuture<'static, ()>>,
}

impl std::fmt::Debug for Faults {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Faults({:?})", self.0.borrow().faults)
    }
}

impl Faults {
    /// Plans a fault for the `nth` call of a method from now on; 1 is the next.
    pub fn at(&self, call: &'static str, nth: usize, fault: Fault) {
        let mut plan = self.0.borrow_mut();
        let number = plan.calls.get(call).copied().unwrap_or(0) + nth;
        plan.faults.insert((call, number), fault);
    }

    /// Plans a fault for every further call of a method.
    pub fn always(&self, call: &'static str, fault: Fault) {
        self.0.borrow_mut().always.insert(call, fault);
    }

    /// No further fault.
    pub fn clear(&self) {
        let mut plan = self.0.borrow_mut();
        plan.faults.clear();
        plan.always.clear();
    }

    /// Lets something happen just before the `nth` call of a method from now on takes effect.
    pub fn meanwhile(&self, call: &'static str, nth: usize, work: impl Future<Output = ()> + 'static) {
        let mut plan = self.0.borrow_mut();
        let number = plan.calls.get(call).copied().unwrap_or(0) + nth;
        plan.meanwhile.insert((call, number), work.boxed_local());
    }

    /// How often a method was called, whether or not it took effect.
    #[must_use]
    pub fn calls(&self, call: &str) -> usize {
        self.0.borrow().calls.get(call).copied().unwrap_or(0)
    }

    /// How often a call began while none was under way: so many times somebody waited for calls side by side, one wave after
    /// the other.
    #[must_use]
    pub fn waves(&self) -> usize {
        self.0.borrow().waves
    }

    /// Waits until so many calls of a method are over, whether or not they took effect.
    ///
    /// # Panics
    /// If they never come; a test that waits in vain is to fail rather than to hang.
    pub async fn until_over(&self, call: &str, calls: usize) {
        let over = async {
            while self.0.borrow().over.get(call).copied().unwrap_or(0) < calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), over).await.expect("so many calls");
    }

    /// Makes a call with whatever is planned for it. `lost` makes the error of a lost request or reply.
    ///
    /// # Errors
    /// The call's own error, or the planned one.
    pub async fn around<T, E>(
        &self,
        call: &'static str,
        lost: impl FnOnce(String) -> E,
        effect: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let _under_way = UnderWay::begin(self);
        let (fault, meanwhile) = {
            let mut plan = self.0.borrow_mut();
            let number = plan.calls.entry(call).or_insert(0);
            *number += 1;
            let key = (call, *number);
            let fault = plan.faults.remove(&key).or(plan.always.get(call).copied());
            (fault, plan.meanwhile.remove(&key))
        };
        if let Some(meanwhile) = meanwhile {
            meanwhile.await;
        }
        let result = match fault {
            None => effect.await,
            Some(Fault::LoseRequest) => Err(lost("the request was lost".to_owned())),
            Some(Fault::LoseReply) => effect.await.and_then(|_| Err(lost("the reply was lost".to_owned()))),
            Some(Fault::CrashBefore) => crash(),
            Some(Fault::CrashAfter) => {
                let _ = effect.await;
                crash()
            }
        };
        *self.0.borrow_mut().over.entry(call).or_insert(0) += 1;
        result
    }
}

/// A call is under way for as long as this lives, also when it crashes.
struct UnderWay<'a>(&'a Faults);

impl<'a> UnderWay<'a> {
    fn begin(faults: &'a Faults) -> Self {
        let mut plan = faults.0.borrow_mut();
        plan.waves += usize::from(plan.under_way == 0);
        plan.under_way += 1;
        Self(faults)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.0.borrow_mut().under_way -= 1;
    }
}

/// Unwinds without a message: the function is gone, and nothing it would still have done is done.
fn crash() -> ! {
    std::panic::resume_unwind(Box::new("crashed on demand"))
}

/// A store whose calls can go wrong. Each fault names the port's method: `commit`, `write`, `save`, `keep`, …
#[derive(Debug, Clone)]
pub struct Faulty<P> {
    /// The store itself.
    pub port: P,
    /// What goes wrong with it.
    pub faults: Faults,
}

impl<P> Faulty<P> {
    /// A store without a fault so far.
    pub fn new(port: P) -> Self {
        Self { port, faults: Faults::default() }
    }

    async fn call<T>(&self, name: &'static str, effect: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        self.faults.around(name, |reason| Unavailable { what: name, reason }, effect).await
    }
}

impl<P: Accounts> Accounts for Faulty<P> {
    async fn account(&self, user_id: &UserId) -> Result<Option<Account>, Unavailable> {
        self.call("account", self.port.account(user_id)).await
    }

    async fn customer(&self, customer: &CustomerId) -> Result<Option<CustomerRecord>, Unavailable> {
        self.call("customer", self.port.customer(customer)).await
    }

    async fn is_processed(&self, event_id: &EventId) -> Result<bool, Unavailable> {
        self.call("is_processed", self.port.is_processed(event_id)).await
    }

    async fn commit(&self, change: &AccountChange<'_>) -> Result<Commit, Unavailable> {
        self.call("commit", self.port.commit(change)).await
    }

    async fn record(&self, record: &CustomerRecord, processed: &EventId) -> Result<Commit, Unavailable> {
        self.call("record", self.port.record(record, processed)).await
    }
}

impl<P: PaymentNotices> PaymentNotices for Faulty<P> {
    async fn tell(&self, notice: Option<&Notice>, processed: &EventId, at_ms: i64) -> Result<Told, Unavailable> {
        self.call("tell", self.port.tell(notice, processed, at_ms)).await
    }

    async fn keep_untold(&self, record: &CustomerRecord, processed: &EventId, at_ms: i64) -> Result<Commit, Unavailable> {
        self.call("keep_untold", self.port.keep_untold(record, processed, at_ms)).await
    }
}

impl<P: DueAccounts> DueAccounts for Faulty<P> {
    async fn due(&self, now: EpochSecs, limit: usize) -> Result<Vec<UserId>, Unavailable> {
        self.call("due", self.port.due(now, limit)).await
    }
}

impl<P: Outbox> Outbox for Faulty<P> {
    async fn row(&self, notice_id: &str) -> Result<Option<OutboxRow>, Unavailable> {
        self.call("row_of_notice", self.port.row(notice_id)).await
    }

    async fn note_published(&self, notice_id: &str, at_ms: i64) -> Result<(), Unavailable> {
        self.call("note_published", self.port.note_published(notice_id, at_ms)).await
    }

    async fn finish(&self, notice_id: &str) -> Result<bool, Unavailable> {
        self.call("finish", self.port.finish(notice_id)).await
    }
}

impl<P: EmailAttempts> EmailAttempts for Faulty<P> {
    async fn claim_email(&self, notice_id: &str, email_id: &str, at_ms: i64) -> Result<bool, Unavailable> {
        self.call("claim_email", self.port.claim_email(notice_id, email_id, at_ms)).await
    }

    async fn settle_email(&self, notice_id: &str, email_id: Option<&str>, fate: &Fate, at_ms: i64) -> Result<bool, Unavailable> {
        self.call("settle_email", self.port.settle_email(notice_id, email_id, fate, at_ms)).await
    }

    async fn note_feedback(&self, email_id: &str, feedback: &Feedback) -> Result<Noted, Unavailable> {
        self.call("note_feedback", self.port.note_feedback(email_id, feedback)).await
    }
}

impl<P: PendingNotices> PendingNotices for Faulty<P> {
    const SHARDS: u8 = P::SHARDS;

    async fn pending(
        &self,
        shard: u8,
        until_ms: i64,
        after: Option<&PendingNotice>,
        limit: u8,
    ) -> Result<Vec<PendingNotice>, Unavailable> {
        self.call("pending", self.port.pending(shard, until_ms, after, limit)).await
    }

    async fn wake(&self, notice_id: &str, at_ms: i64) -> Result<bool, Unavailable> {
        self.call("wake", self.port.wake(notice_id, at_ms)).await
    }
}

impl<P: Ledger> Ledger for Faulty<P> {
    async fn write(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable> {
        self.call("write", self.port.write(batch, tally_shard, now)).await
    }

    async fn row(&self, key: &RowKey) -> Result<Option<LedgerRow>, Unavailable> {
        self.call("row", self.port.row(key)).await
    }

    async fn seen_again(&self, key: &RowKey, times: u64, seen_by: &str) -> Result<(), Unavailable> {
        self.call("seen_again", self.port.seen_again(key, times, seen_by)).await
    }
}

impl<P: Parked> Parked for Faulty<P> {
    async fn parked(&self, place: &ParkedPlace, since: EpochSecs) -> Result<(Vec<LedgerRow>, Option<ParkedPlace>), Unavailable> {
        self.call("parked", self.port.parked(place, since)).await
    }

    async fn recount(&self, batch: &Batch, tally_shard: u8, now: EpochSecs) -> Result<Written, Unavailable> {
        self.call("recount", self.port.recount(batch, tally_shard, now)).await
    }
}

impl<P: Books> Books for Faulty<P> {
    async fn touched(&self, since: EpochSecs, until: EpochSecs) -> Result<Vec<Touched>, Unavailable> {
        self.call("touched", self.port.touched(since, until)).await
    }

    async fn tally(&self, user_id: &UserId, tally_key: &str) -> Result<Option<Tally>, Unavailable> {
        self.call("tally", self.port.tally(user_id, tally_key)).await
    }

    async fn book(&self, user_id: &UserId, tally_key: &str) -> Result<Book, Unavailable> {
        self.call("book", self.port.book(user_id, tally_key)).await
    }

    async fn due_books(&self, until: EpochSecs) -> Result<Vec<(UserId, String)>, Unavailable> {
        self.call("due_books", self.port.due_books(until)).await
    }

    async fn book_keys(&self, user_id: &UserId, from: UtcDay, to: UtcDay) -> Result<Vec<String>, Unavailable> {
        self.call("book_keys", self.port.book_keys(user_id, from, to)).await
    }

    async fn save(&self, user_id: &UserId, tally_key: &str, book: &mut Book) -> Result<Commit, Unavailable> {
        self.call("save", self.port.save(user_id, tally_key, book)).await
    }

    async fn save_both(&self, user_id: &UserId, one: (&str, &mut Book), other: (&str, &mut Book)) -> Result<Commit, Unavailable> {
        self.call("save_both", self.port.save_both(user_id, one, other)).await
    }

    async fn save_and_quarantine(
        &self,
        user_id: &UserId,
        tally_key: &str,
        book: &mut Book,
        entries: &[Quarantined],
    ) -> Result<Commit, Unavailable> {
        self.call("save_and_quarantine", self.port.save_and_quarantine(user_id, tally_key, book, entries)).await
    }
}

impl<P: ReporterState> ReporterState for Faulty<P> {
    async fn memory(&self) -> Result<ReporterMemory, Unavailable> {
        self.call("memory", self.port.memory()).await
    }

    async fn remember(&self, memory: &ReporterMemory) -> Result<(), Unavailable> {
        self.call("remember", self.port.remember(memory)).await
    }

    async fn take_lease(&self, owner: &str, now_ms: i64, until_ms: i64) -> Result<bool, Unavailable> {
        self.call("take_lease", self.port.take_lease(owner, now_ms, until_ms)).await
    }

    async fn renew_lease(&self, owner: &str, until_ms: i64) -> Result<bool, Unavailable> {
        self.call("renew_lease", self.port.renew_lease(owner, until_ms)).await
    }

    async fn give_lease_back(&self, owner: &str) -> Result<(), Unavailable> {
        self.call("give_lease_back", self.port.give_lease_back(owner)).await
    }

    async fn table_ids(&self) -> Result<Vec<String>, Unavailable> {
        self.call("table_ids", self.port.table_ids()).await
    }
}

impl<P: Heard> Heard for Faulty<P> {
    async fn note_heard(&self, at: EpochSecs) -> Result<(), Unavailable> {
        self.call("note_heard", self.port.note_heard(at)).await
    }
}

impl<P: SweeperState> SweeperState for Faulty<P> {
    async fn sweeper_memory(&self) -> Result<SweeperMemory, Unavailable> {
        self.call("sweeper_memory", self.port.sweeper_memory()).await
    }

    async fn remember_sweep(&self, memory: &mut SweeperMemory) -> Result<Commit, Unavailable> {
        self.call("remember_sweep", self.port.remember_sweep(memory)).await
    }

    async fn heard_at(&self) -> Result<Option<EpochSecs>, Unavailable> {
        self.call("heard_at", self.port.heard_at()).await
    }
}

impl<P: AccountBatches> AccountBatches for Faulty<P> {
    async fn processed(&self, events: &BTreeSet<EventId>) -> Result<BTreeSet<EventId>, Unavailable> {
        self.call("processed", self.port.processed(events)).await
    }

    async fn customers(
        &self,
        customers: &BTreeSet<CustomerId>,
    ) -> Result<BTreeMap<CustomerId, Readable<CustomerRecord>>, Unavailable> {
        self.call("customers", self.port.customers(customers)).await
    }

    async fn accounts(&self, users: &BTreeSet<UserId>) -> Result<BTreeMap<UserId, Readable<Account>>, Unavailable> {
        self.call("accounts", self.port.accounts(users)).await
    }
}

impl<P: MeterErrors> MeterErrors for Faulty<P> {
    async fn note_meter_error(&self, said_at: EpochSecs) -> Result<(), Unavailable> {
        self.call("note_meter_error", self.port.note_meter_error(said_at)).await
    }

    async fn rejections(&self) -> Result<Option<Rejections>, Unavailable> {
        self.call("rejections", self.port.rejections()).await
    }

    async fn rejections_followed(&self, through: EpochSecs) -> Result<(), Unavailable> {
        self.call("rejections_followed", self.port.rejections_followed(through)).await
    }
}

impl<P: Quarantine> Quarantine for Faulty<P> {
    async fn keep(&self, entry: &Quarantined) -> Result<(), Unavailable> {
        self.call("keep", self.port.keep(entry)).await
    }
}

impl<P: QuarantineEntries> QuarantineEntries for Faulty<P> {
    async fn entries(&self, day: UtcDay) -> Result<Vec<QuarantineEntry>, Unavailable> {
        self.call("entries", self.port.entries(day)).await
    }

    async fn entry(&self, day: UtcDay, quarantine_id: &str) -> Result<Option<QuarantineEntry>, Unavailable> {
        self.call("entry", self.port.entry(day, quarantine_id)).await
    }

    async fn mark_retried(&self, entry: &Quarantined, retried_at: EpochSecs) -> Result<(), Unavailable> {
        self.call("mark_retried", self.port.mark_retried(entry, retried_at)).await
    }
}
