//! Stripe: customers with their subscriptions' lives, the events that tell of them, and the meters.
//!
//! Time alone renews periods and makes invoices final; everything else is an act of the story. What it knows is the truth that
//! accounts are compared with at rest.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use tokentill::{
    domain::{
        email::{Addressee, Bill},
        facts::{CustomerFacts, InvoiceFacts, ItemFacts, LatestInvoice, PaidInvoice, Status, SubscriptionFacts},
        id::{CustomerId, InvoiceId, SubscriptionId, UserId},
        period::Cycle,
        price_list::Interval,
        report::MeterReport,
        time::EpochSecs,
    },
    ports::{Correspondence, Delivered, MeterSink, MeterSummaries, PaymentFacts, Payments, StripeError, StripeState},
};

use crate::{
    hub::{Carried, Fault, Hub},
    story::{Broken, Story, USERS},
};

/// How long after a period's end its invoice is final.
pub(crate) const FINAL_AFTER_SECS: i64 = 3_600;
const DAY_SECS: i64 = 86_400;
/// How long an identifier is known again. Stripe promises a day, so it is not a second more.
const IDENTIFIERS_KNOWN_SECS: i64 = DAY_SECS;
/// The longest its summaries lag behind.
const SUMMARIES_LAG_SECS: u64 = 3_300;

const GETS: [Fault; 7] =
    [Fault::LoseRequest, Fault::LoseReply, Fault::Slow, Fault::Throttle, Fault::Fail, Fault::CrashBefore, Fault::CrashAfter];
const POSTS: [Fault; 10] = [
    Fault::LoseRequest,
    Fault::LoseReply,
    Fault::LoseReply,
    Fault::Slow,
    Fault::Throttle,
    Fault::Conflict,
    Fault::Fail,
    Fault::FailAfter,
    Fault::CrashBefore,
    Fault::CrashAfter,
];

/// A meter event that Stripe took.
#[derive(Debug, Clone)]
pub(crate) struct Taken {
    /// What was sent.
    pub report: MeterReport,
    /// When it was taken, in seconds since 1970.
    pub at: i64,
    /// Whether it is thrown away afterwards: it is billed to nobody, and no summary ever shows it.
    pub is_thrown_away: bool,
    shows_from: i64,
}

/// A subscription's life so far.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    /// Its id.
    pub id: String,
    /// When it began: also where its periods are counted from.
    pub began: i64,
    /// How long a period is.
    pub period_secs: i64,
    /// Its plans: since when which.
    pub plans: Vec<(i64, &'static str)>,
    /// When it ended.
    pub ended: Option<i64>,
    /// When it is going to end.
    pub cancel_at: Option<i64>,
    /// Its open invoice whose payment failed, when it was made, and every failure so far.
    pub overdue: Option<(String, i64, Vec<i64>)>,
    /// Every invoice of which a payment failed, and when it did first.
    pub failed: BTreeMap<String, i64>,
    /// Payments after its end: when, and up to when they paid.
    pub late_payments: Vec<(i64, i64)>,
    invoices: u32,
}

/// A customer.
#[derive(Debug, Clone)]
pub(crate) struct Customer {
    /// Its id.
    pub id: String,
    /// The user its metadata names.
    pub user: String,
    /// Its subscriptions, oldest first.
    pub subscriptions: Vec<Subscription>,
}

/// Something that Stripe tells of.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Its id.
    pub id: String,
    /// Its type.
    pub kind: &'static str,
    /// When it was made.
    pub created: i64,
    /// Whom it is about; empty if it names nobody.
    pub customer: String,
    /// The invoice, if it is about one.
    pub invoice: Option<String>,
}

#[derive(Debug, Default)]
struct Inner {
    customers: BTreeMap<String, Customer>,
    events: u32,
    subscriptions: u32,
    taken: Vec<Taken>,
    known: BTreeMap<String, i64>,
    forgets_identifiers: bool,
    thrown_away_percent: u8,
    /// What Stripe is going to tell of by itself: when, and what.
    to_be_told: Vec<(i64, Event)>,
    under_way: BTreeSet<(String, String)>,
    down_until: i64,
    lag: fastrand::Rng,
}

/// Stripe. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Stripe {
    inner: Rc<RefCell<Inner>>,
    hub: Hub,
}

impl Stripe {
    /// A Stripe without customers. The story's seed decides how its summaries lag.
    #[must_use]
    pub(crate) fn new(hub: &Hub, story: &Story) -> Self {
        let forgets_identifiers = story.broken == Broken::Identifiers;
        let (lag, thrown_away_percent) = (fastrand::Rng::with_seed(story.seed), story.thrown_away_percent);
        let inner = Inner { lag, forgets_identifiers, thrown_away_percent, ..Inner::default() };
        Self { inner: Rc::new(RefCell::new(inner)), hub: hub.clone() }
    }

    /// Everything that was taken.
    #[must_use]
    pub(crate) fn taken(&self) -> Vec<Taken> {
        self.inner.borrow().taken.clone()
    }

    /// How many reports were taken.
    #[must_use]
    pub(crate) fn reports_taken(&self) -> usize {
        self.inner.borrow().taken.len()
    }

    /// What it tells of by itself now.
    pub(crate) fn tell(&self) -> Vec<Event> {
        let now = self.hub.now_secs();
        let mut inner = self.inner.borrow_mut();
        inner.settle(now);
        let (due, later) = std::mem::take(&mut inner.to_be_told).into_iter().partition(|(at, _)| *at <= now);
        inner.to_be_told = later;
        let due: Vec<(i64, Event)> = due;
        due.into_iter().map(|(_, event)| event).collect()
    }

    /// All customers.
    #[must_use]
    pub(crate) fn customers(&self) -> Vec<Customer> {
        self.inner.borrow_mut().settle(self.hub.now_secs());
        self.inner.borrow().customers.values().cloned().collect()
    }

    /// Answers nothing until then.
    pub(crate) fn go_down(&self, secs: i64) {
        self.inner.borrow_mut().down_until = self.hub.now_secs() + secs;
    }

    /// Is there again.
    pub(crate) fn come_back(&self) {
        self.inner.borrow_mut().down_until = 0;
    }

    /// A customer of this user subscribes to a plan, unless it has a subscription that goes on.
    pub(crate) fn subscribe(&self, user: &str, plan: &'static str, period_secs: i64) -> Vec<Event> {
        let now = self.hub.now_secs();
        let mut inner = self.inner.borrow_mut();
        inner.settle(now);
        let id = format!("cus_{}", user.bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
        let made = || Customer { id: id.clone(), user: user.to_owned(), subscriptions: Vec::new() };
        let customer = inner.customers.entry(id.clone()).or_insert_with(made);
        if customer.subscriptions.last().is_some_and(|last| last.ended.is_none()) {
            return Vec::new();
        }
        inner.subscriptions += 1;
        let subscription = Subscription {
            id: format!("sub_{}", inner.subscriptions),
            began: now,
            period_secs,
            plans: vec![(now, plan)],
            ended: None,
            cancel_at: None,
            overdue: None,
            failed: BTreeMap::new(),
            late_payments: Vec::new(),
            invoices: 1,
        };
        let customer = inner.customers.entry(id.clone()).or_insert_with(made);
        customer.subscriptions.push(subscription);
        ["checkout.session.completed", "customer.subscription.created", "invoice.paid"]
            .map(|kind| inner.event(now, kind, &id, None))
            .to_vec()
    }

    fn change(
        &self,
        user: &str,
        which: impl FnOnce(&mut Customer) -> Option<&mut Subscription>,
        change: impl FnOnce(&mut Subscription, i64) -> Vec<(&'static str, Option<String>)>,
    ) -> Vec<Event> {
        let now = self.hub.now_secs();
        let mut inner = self.inner.borrow_mut();
        inner.settle(now);
        let Some(customer) = inner.customers.values_mut().find(|customer| customer.user == user) else { return Vec::new() };
        let id = customer.id.clone();
        let Some(subscription) = which(customer) else { return Vec::new() };
        let told = change(subscription, now);
        told.into_iter().map(|(kind, invoice)| inner.event(now, kind, &id, invoice)).collect()
    }

    /// The payment of the open invoice fails, of a new one if there is none.
    pub(crate) fn fail(&self, user: &str) -> Vec<Event> {
        self.change(user, Customer::newest, |subscription, now| {
            if subscription.ended.is_some() {
                return Vec::new();
            }
            let (invoices, id) = (subscription.invoices, subscription.id.clone());
            let (invoice, _, failures) =
                subscription.overdue.get_or_insert_with(|| (format!("in_{id}_{invoices}"), now, Vec::new()));
            let is_first = failures.is_empty();
            failures.push(now);
            subscription.failed.entry(invoice.clone()).or_insert(now);
            let invoice = Some(invoice.clone());
            if is_first {
                subscription.invoices += 1;
                vec![("invoice.payment_failed", invoice), ("customer.subscription.updated", None)]
            } else {
                vec![("invoice.payment_failed", invoice)]
            }
        })
    }

    /// The overdue invoice is paid.
    pub(crate) fn pay(&self, user: &str) -> Vec<Event> {
        self.change(user, Customer::indebted, |subscription, now| {
            let Some((invoice, created, _)) = subscription.overdue.take() else { return Vec::new() };
            // Within one second nobody can tell whether the payment or the end came first.
            if subscription.ended.is_some_and(|ended| ended < now) {
                let paid_until = subscription.period(created).1;
                subscription.late_payments.push((now, paid_until));
            }
            vec![("invoice.paid", Some(invoice)), ("customer.subscription.updated", None)]
        })
    }

    /// Changes to another plan in the middle of a period.
    pub(crate) fn switch(&self, user: &str, plan: &'static str) -> Vec<Event> {
        self.change(user, Customer::newest, |subscription, now| {
            if subscription.ended.is_some() || subscription.plans.last().is_some_and(|(_, last)| *last == plan) {
                return Vec::new();
            }
            subscription.plans.push((now, plan));
            vec![("customer.subscription.updated", None)]
        })
    }

    /// Ends now, or with the period.
    pub(crate) fn cancel(&self, user: &str, at_once: bool) -> Vec<Event> {
        self.change(user, Customer::newest, |subscription, now| {
            if subscription.ended.is_some() {
                return Vec::new();
            }
            if at_once {
                subscription.ended = Some(now);
                vec![("customer.subscription.deleted", None)]
            } else {
                subscription.cancel_at = Some(subscription.period(now).1);
                vec![("customer.subscription.updated", None)]
            }
        })
    }

    fn is_down(&self) -> bool {
        self.hub.now_secs() < self.inner.borrow().down_until
    }

    async fn asked<T: Send + 'static>(
        &self,
        site: &'static str,
        repertoire: &'static [Fault],
        effect: impl FnOnce(&mut Inner, i64) -> Result<T, StripeError> + 'static,
    ) -> Result<T, StripeError> {
        let stripe = self.clone();
        let carried = self
            .hub
            .carry(site, repertoire, move |_| {
                if stripe.is_down() {
                    stripe.hub.count("Stripe down");
                    return Err(unavailable("HTTP 503", None));
                }
                let now = stripe.hub.now_secs();
                effect(&mut stripe.inner.borrow_mut(), now)
            })
            .await;
        match carried {
            Carried::Answer(answer) => answer,
            Carried::NoAnswer => Err(unavailable("timed out", None)),
            Carried::Refused(Fault::Throttle) => Err(unavailable("HTTP 429 rate_limit", Some(2))),
            Carried::Refused(Fault::Conflict) => Err(unavailable("HTTP 429 lock_timeout", None)),
            Carried::Refused(_) => Err(unavailable("HTTP 500", None)),
        }
    }
}

fn unavailable(reason: &str, retry_after_secs: Option<u32>) -> StripeError {
    StripeError::Unavailable { reason: reason.to_owned(), retry_after_secs, request_id: "req_sim".to_owned() }
}

fn refused(code: &str) -> StripeError {
    StripeError::Refused { status: 400, code: code.to_owned(), message: code.to_owned(), request_id: "req_sim".to_owned() }
}

impl Inner {
    /// What time alone does: announced cancellations come about.
    fn settle(&mut self, now: i64) {
        let mut over = Vec::new();
        for customer in self.customers.values_mut() {
            for subscription in &mut customer.subscriptions {
                if let Some(at) = subscription.cancel_at.filter(|at| *at <= now && subscription.ended.is_none()) {
                    subscription.ended = Some(at);
                    over.push((at, customer.id.clone()));
                }
            }
        }
        for (at, customer) in over {
            let event = self.event(at, "customer.subscription.deleted", &customer, None);
            self.to_be_told.push((at, event));
        }
    }

    fn event(&mut self, created: i64, kind: &'static str, customer: &str, invoice: Option<String>) -> Event {
        self.events += 1;
        Event { id: format!("evt_{}", self.events), kind, created, customer: customer.to_owned(), invoice }
    }

    fn take(&mut self, report: &MeterReport, now: i64) -> Result<Delivered, StripeError> {
        let known = self.known.get(&report.identifier).is_some_and(|at| now - at < IDENTIFIERS_KNOWN_SECS);
        if known && !self.forgets_identifiers {
            return Ok(Delivered::Before);
        }
        let minute = report.minute.as_secs();
        if now - minute > 35 * DAY_SECS {
            return Err(refused("timestamp_too_far_in_past"));
        }
        if minute - now > 300 {
            return Err(refused("timestamp_in_future"));
        }
        if report.quantity == 0 || report.quantity > 999_999_999_999_999 {
            return Err(refused("meter_event_invalid_value"));
        }
        self.known.insert(report.identifier.clone(), now);
        let lag = i64::try_from(self.lag.u64(..SUMMARIES_LAG_SECS)).unwrap_or(0);
        let is_thrown_away = self.lag.u8(..100) < self.thrown_away_percent;
        if is_thrown_away {
            // Its word names no customer, and may tell of several.
            let event = self.event(now, "v1.billing.meter.error_report_triggered", "", None);
            self.to_be_told.push((now + self.lag.i64(60..1_800), event));
        }
        self.taken.push(Taken { report: report.clone(), at: now, is_thrown_away, shows_from: now + lag });
        Ok(Delivered::Now)
    }

    fn facts(&self, customer: &Customer, now: i64) -> CustomerFacts {
        let secs = EpochSecs::new;
        let subscription = |subscription: &Subscription| SubscriptionFacts {
            id: SubscriptionId::new(&*subscription.id).expect("an id"),
            status: subscription.status(),
            created: secs(subscription.began),
            user_id: None,
            items: subscription.items(now),
            billing_cycle_anchor: secs(subscription.began),
            trial_end: None,
            cancel_at: subscription.cancel_at.map(secs),
            ended_at: subscription.ended.map(secs),
            latest_invoice: Some(subscription.latest_invoice(now)),
            flexible: true,
            paused_by: None,
        };
        let paid = |subscription: &Subscription| -> Vec<PaidInvoice> {
            let of = |(paid_at, until): &(i64, i64)| PaidInvoice {
                subscription: SubscriptionId::new(&*subscription.id).expect("an id"),
                paid_at: secs(*paid_at),
                paid_for_until: secs(*until),
            };
            subscription.late_payments.iter().map(of).collect()
        };
        let open = |subscription: &Subscription| {
            let (invoice, created, _) = subscription.overdue.as_ref()?;
            Some(InvoiceFacts {
                id: InvoiceId::new(&**invoice).expect("an id"),
                subscription: Some(SubscriptionId::new(&*subscription.id).expect("an id")),
                created: secs(*created),
                attempted: true,
            })
        };
        CustomerFacts {
            customer: CustomerId::new(&*customer.id).expect("an id"),
            deleted: false,
            user_id: Some(UserId::new(&*customer.user).expect("an id")),
            test_clock: None,
            subscriptions: customer.subscriptions.iter().map(subscription).collect(),
            open_invoices: customer.subscriptions.iter().filter_map(open).collect(),
            checkout_users: Vec::new(),
            paid_invoices: customer.subscriptions.iter().flat_map(paid).collect(),
        }
    }
}

impl Customer {
    /// The subscription that counts: one that goes on; of those that are over the newest that owes, then one that was paid late for
    /// a time that is not over, then the newest; of those made in one second the one that ended last.
    #[must_use]
    pub(crate) fn counts(&self, now: i64) -> Option<&Subscription> {
        let newest = self.subscriptions.last().filter(|newest| newest.ended.is_none());
        let over = || {
            let mut over: Vec<&Subscription> = self.subscriptions.iter().collect();
            over.sort_by(|a, b| (b.began, b.ended, &a.id).cmp(&(a.began, a.ended, &b.id)));
            over.into_iter()
        };
        newest
            .or_else(|| over().find(|one| one.overdue.is_some()))
            .or_else(|| over().find(|one| one.late_payments.iter().any(|(_, until)| now < *until)))
            .or_else(|| over().next())
    }

    fn newest(&mut self) -> Option<&mut Subscription> {
        self.subscriptions.last_mut()
    }

    /// The newest that owes something.
    fn indebted(&mut self) -> Option<&mut Subscription> {
        self.subscriptions.iter_mut().rev().find(|one| one.overdue.is_some())
    }

    /// Its address: not every customer has one.
    #[must_use]
    pub(crate) fn address(&self) -> Option<String> {
        (self.user != USERS[1]).then(|| format!("{}@example.com", self.id))
    }
}

impl Subscription {
    /// The period a moment lies in.
    #[must_use]
    pub(crate) fn period(&self, at: i64) -> (i64, i64) {
        let start = self.began + (at - self.began).div_euclid(self.period_secs) * self.period_secs;
        (start, start + self.period_secs)
    }

    /// Stripe's status.
    #[must_use]
    pub(crate) fn status(&self) -> Status {
        match (&self.ended, &self.overdue) {
            (Some(_), _) => Status::Canceled,
            (None, Some(_)) => Status::PastDue,
            (None, None) => Status::Active,
        }
    }

    fn items(&self, now: i64) -> Vec<ItemFacts> {
        let plan = self.plans.last().map_or("pro", |(_, plan)| plan);
        let (start, end) = self.period(self.ended.unwrap_or(now).min(now));
        let count = u16::try_from(self.period_secs / DAY_SECS).expect("a short period");
        let cycle = Cycle { anchor: EpochSecs::new(self.began), interval: Interval::Day, count };
        let item = |key: &str| ItemFacts {
            lookup_key: Some(format!("{plan}_{key}")),
            metered: key != "base",
            period: (EpochSecs::new(start), EpochSecs::new(end)),
            cycle,
        };
        ["base", "requests", "tokens_in", "tokens_out"][..if plan == "pro" { 4 } else { 3 }].iter().map(|key| item(key)).collect()
    }

    fn latest_invoice(&self, now: i64) -> LatestInvoice {
        let secs = EpochSecs::new;
        let until = self.ended.unwrap_or(now).min(now);
        let (start, _) = self.period(until);
        let (first, last) = match self.ended {
            Some(ended) if ended > start => (start, ended),
            _ if start > self.began => (start - self.period_secs, start),
            _ => (self.began, self.began),
        };
        let is_final = last == self.began || now >= last + FINAL_AFTER_SECS;
        let id = format!("in_{}_{}", self.id, last - self.began);
        LatestInvoice {
            id: InvoiceId::new(id).expect("an id"),
            is_final,
            period: Some((secs(first), secs(last))),
            written_off: None,
        }
    }
}

impl StripeState for Stripe {
    async fn customer(&self, id: &CustomerId) -> Result<CustomerFacts, StripeError> {
        let id = id.to_string();
        self.asked("GET customer", &GETS, move |inner, now| {
            inner.settle(now);
            let customer = inner.customers.get(&id).cloned();
            let customer = customer.ok_or_else(|| StripeError::NotFound { request_id: "req_sim".to_owned() })?;
            Ok(inner.facts(&customer, now))
        })
        .await
    }

    async fn customer_of(&self, _: &str) -> Result<Option<CustomerId>, StripeError> {
        Ok(None)
    }

    async fn customers_on_clock(&self, _: &str) -> Result<Vec<CustomerId>, StripeError> {
        Ok(Vec::new())
    }
}

impl Correspondence for Stripe {
    async fn addressee(&self, customer: &CustomerId) -> Result<Option<Addressee>, StripeError> {
        let id = customer.to_string();
        self.asked("GET addressee", &GETS, move |inner, _| {
            let customer = inner.customers.get(&id);
            Ok(customer.map(|customer| Addressee { address: customer.address(), name: None }))
        })
        .await
    }

    async fn bill(&self, invoice: &InvoiceId) -> Result<Option<Bill>, StripeError> {
        let id = invoice.to_string();
        self.asked("GET invoice", &GETS, move |inner, _| {
            let subscriptions = || inner.customers.values().flat_map(|customer| &customer.subscriptions);
            let is_open = subscriptions().any(|one| one.overdue.as_ref().is_some_and(|(invoice, ..)| *invoice == id));
            let is_known = subscriptions().any(|one| one.failed.contains_key(&id));
            Ok(is_known.then(|| Bill { is_open, due_minor: 4_900, currency: "eur".to_owned(), page: None }))
        })
        .await
    }
}

impl Payments for Stripe {
    async fn payment(&self, _: &str) -> Result<Option<PaymentFacts>, StripeError> {
        Ok(None)
    }
}

impl MeterSink for Stripe {
    async fn send(&self, report: &MeterReport) -> Result<Delivered, StripeError> {
        let lock = (report.customer.to_string(), report.event_name.clone());
        if !self.inner.borrow_mut().under_way.insert(lock.clone()) {
            self.hub.count("two reports of a meter at once");
            return Err(unavailable("HTTP 429 lock_timeout", None));
        }
        // Freed however the call ends, the caller's own end included.
        let _freed = Freed { inner: self.inner.clone(), lock };
        let report = report.clone();
        self.asked("POST meter event", &POSTS, move |inner, now| inner.take(&report, now)).await
    }
}

struct Freed {
    inner: Rc<RefCell<Inner>>,
    lock: (String, String),
}

impl Drop for Freed {
    fn drop(&mut self) {
        self.inner.borrow_mut().under_way.remove(&self.lock);
    }
}

impl MeterSummaries for Stripe {
    async fn total(
        &self,
        event_name: &str,
        customer: &CustomerId,
        from: EpochSecs,
        until: EpochSecs,
    ) -> Result<u64, StripeError> {
        let (event_name, customer) = (event_name.to_owned(), customer.clone());
        self.asked("GET summary", &GETS, move |inner, now| {
            let of = |taken: &&Taken| {
                let report = &taken.report;
                report.event_name == event_name && report.customer == customer && (from..until).contains(&report.minute)
            };
            let shown = inner.taken.iter().filter(of).filter(|taken| taken.shows_from <= now && !taken.is_thrown_away);
            Ok(shown.map(|taken| taken.report.quantity).sum())
        })
        .await
    }
}
