//! What Stripe's present state makes of an account: `decide`, a pure function of the account, the facts and the moment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    account::{Account, Announced, Overdue, Subscription},
    facts::{CustomerFacts, InvoiceFacts, ItemFacts, PaidInvoice, PausedBy, Status, SubscriptionFacts, by_rank},
    hint::PaymentFailure,
    id::{CustomerId, InvoiceId, PlanId, SubscriptionId, UserId},
    notice::{self, Notice},
    price_list::PriceList,
    segment::Segment,
    time::{EpochSecs, HOUR_SECS},
    timeline,
};

/// How long after its period's end an invoice may be a draft: Stripe's finalisation grace period is 72 hours at most.
const LONGEST_DRAFT_SECS: i64 = 73 * HOUR_SECS;

/// What is to be done about a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Commit the account under its version, the notices with it.
    Commit {
        /// The account as it will be; its version is the one read plus one.
        account: Box<Account>,
        /// What its change is told by.
        notices: Vec<Notice>,
        /// What somebody should look at.
        alarms: Vec<Alarm>,
        /// Customers whose claim was refused and may be granted now: to be looked at again.
        revisit: BTreeSet<CustomerId>,
        /// Whether usage of the user that was parked may be counted now.
        recount: bool,
    },
    /// The user stays with another customer: this one is quarantined and alarmed.
    SecondClaimant {
        /// The customer that keeps the user.
        held_by: CustomerId,
        /// The user's account with the claim remembered, to be committed; `None` if it is remembered already.
        account: Option<Box<Account>>,
    },
}

/// Something that is handled safely but that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alarm {
    /// A subscription has a price that the price list does not know; the last known plan is kept.
    UnknownPrice {
        /// Its `lookup_key`, if it has one.
        lookup_key: Option<String>,
    },
    /// A subscription has a status that is newer than we know; the last known one is kept.
    UnknownStatus {
        /// The status.
        status: String,
    },
    /// A subscription is not in `billing_mode=flexible`: usage before a price switch would not be billed.
    NotFlexible,
    /// A customer has more than one live subscription; the one that counts is the highest by status, then the newest.
    SeveralSubscriptions,
    /// Nothing names the customer's user any more; it stays with the one it had.
    UserNoLongerNamed,
}

/// The user that the customer belongs to: by a subscription's metadata, then the customer's, then a completed checkout
/// session's `client_reference_id` (the contract, 3.1).
#[must_use]
pub fn joined_user(facts: &CustomerFacts) -> Option<&UserId> {
    by_rank(&facts.subscriptions, |subscription| Some(&subscription.status))
        .into_iter()
        .find_map(|subscription| subscription.user_id.as_ref())
        .or(facts.user_id.as_ref())
        .or_else(|| facts.checkout_users.first())
}

/// What Stripe's present state makes of the account that was read before it.
///
/// `fetch_began_ms` is when the fetch began, by our own clock. `failures` are the known [`failures`] of the customer's open
/// invoices, those of this fetch included: the one thing that Stripe's present state does not tell.
#[must_use]
pub fn decide(
    prices: &PriceList,
    before: Option<&Account>,
    user_id: &UserId,
    facts: &CustomerFacts,
    failures: &Failures,
    fetch_began_ms: i64,
) -> Decision {
    let same_customer = before.filter(|account| account.customer_id == facts.customer);
    if let Some(account) = before
        && same_customer.is_none()
        && keeps_user(account, facts)
    {
        let mut remembered = account.clone();
        remembered.version = remembered.version.saturating_add(1);
        let is_new = remembered.refused_claimants.insert(facts.customer.clone());
        return Decision::SecondClaimant { held_by: account.customer_id.clone(), account: is_new.then(|| Box::new(remembered)) };
    }
    let mut alarms = Vec::new();
    if joined_user(facts).is_none() {
        alarms.push(Alarm::UserNoLongerNamed);
    }
    let real_now = EpochSecs::from_ms(fetch_began_ms);
    let now = local_moment(facts, fetch_began_ms);
    let clock_offset_secs = now.secs_since(real_now);

    let previous = same_customer.and_then(|account| account.subscription.as_ref());
    let chosen = counts(same_customer, facts, failures, now);
    for subscription in &facts.subscriptions {
        if let Status::Other(status) = &subscription.status {
            alarms.push(Alarm::UnknownStatus { status: status.clone() });
        }
    }
    if facts.subscriptions.iter().filter(|subscription| subscription.status.is_live()).count() > 1 {
        alarms.push(Alarm::SeveralSubscriptions);
    }
    let subscription = match chosen {
        Some(chosen) => subscription(prices, chosen, previous, &mut alarms),
        // A deleted customer's subscriptions are cancelled with it, and Stripe no longer shows them.
        None if facts.deleted => previous.cloned().map(|last| ended(last, now)),
        None => None,
    };
    let overdue = overdue(same_customer, facts, subscription.as_ref(), chosen, failures, now);
    let segments = timeline::segments(prices, before, facts, chosen, subscription.as_ref(), now);
    let recount = may_be_counted_now(before, &segments);

    let is_the_same = before.and_then(|account| account.subscription.as_ref()).map(|kept| &kept.id)
        == subscription.as_ref().map(|subscription| &subscription.id);
    let mut announced = before.map_or_else(Announced::default, |account| account.announced.clone());
    // What was told of another subscription's end is no word about this one's.
    announced.ending_at = announced.ending_at.filter(|_| is_the_same);

    let mut account = Account {
        user_id: user_id.clone(),
        version: before.map_or(0, |account| account.version).saturating_add(1),
        customer_id: facts.customer.clone(),
        subscription,
        overdue,
        final_through: final_through(before, facts, &segments, now),
        segments,
        paused_by: paused_by(same_customer, chosen),
        paid_until: chosen.and_then(|chosen| paid_until(facts, chosen)),
        clock_offset_secs,
        fetched_at_ms: fetch_began_ms,
        announced,
        told_at: before.and_then(|account| account.told_at),
        trial_end_told: before.and_then(|account| account.trial_end_told).filter(|_| is_the_same),
        refused_claimants: before.map(|account| account.refused_claimants.clone()).unwrap_or_default(),
    };
    account.refused_claimants.remove(&facts.customer);
    let revisit = claimants_of_unbound(&mut account);
    let notices = notice::due(&mut account, prices, real_now);
    Decision::Commit { account: Box::new(account), notices, alarms, revisit, recount }
}

/// Whether usage that was parked may have a place now: the user had no account, or the plan of a segment was unknown.
fn may_be_counted_now(before: Option<&Account>, segments: &[Segment]) -> bool {
    let Some(before) = before else { return true };
    let is_known_now = |unknown: &Segment| {
        segments.iter().any(|segment| {
            segment.subscription == unknown.subscription && segment.start == unknown.start && segment.plan.is_some()
        })
    };
    before.segments.iter().any(|segment| segment.plan.is_none() && is_known_now(segment))
}

/// Takes the refused claimants out of an account that binds its user no longer.
fn claimants_of_unbound(account: &mut Account) -> BTreeSet<CustomerId> {
    if account.has_live_subscription() { BTreeSet::new() } else { std::mem::take(&mut account.refused_claimants) }
}

/// Whether a user stays with its customer although another one claims it: while its subscription is live, and while the
/// claimant has none that is live itself, so that neither a grace period nor an overdue invoice is lost to an empty customer.
fn keeps_user(account: &Account, claimant: &CustomerFacts) -> bool {
    let claimant_is_live = claimant.subscriptions.iter().any(|subscription| subscription.status.is_live());
    account.has_live_subscription() || (account.subscription.is_some() && !claimant_is_live)
}

/// The account of a user whose customer now names somebody else: without a subscription, its segments ended. Also what tells of
/// it, and the customers whose claim may be granted now.
///
/// Nothing was fetched for it, so it keeps the moment of its last fetch: a hint that is cut off between this commit and the new
/// user's comes again, and must not be skipped.
#[must_use]
pub fn release(prices: &PriceList, before: &Account, now_ms: i64) -> (Account, Vec<Notice>, BTreeSet<CustomerId>) {
    let now = EpochSecs::from_ms(now_ms);
    let mut account = before.clone();
    let local_now = account.local_time(now);
    account.version = account.version.saturating_add(1);
    account.subscription = None;
    account.overdue.clear();
    (account.paused_by, account.paid_until, account.trial_end_told) = (None, None, None);
    account.announced.ending_at = None;
    if let Some(last) = account.segments.last_mut() {
        last.end = last.end.min(local_now).max(last.start);
        last.renews = None;
    }
    let revisit = claimants_of_unbound(&mut account);
    let notices = notice::due(&mut account, prices, now);
    (account, notices, revisit)
}

/// So far ahead of our clock Stripe's may be, and a failure's moment is believed all the same.
const AHEAD_SECS: i64 = 300;

/// Of each invoice that is owed its earliest known failure: the earliest `created` of a payment failure seen for it, or the first fetch
/// that showed it open and attempted (G2).
pub type Failures = BTreeMap<InvoiceId, EpochSecs>;

/// What is known of the failures of a customer's invoices that are owed after a fetch, whatever they are for: a subscription that
/// does not count yet, or a customer that no user is joined to, may have a grace period later.
///
/// `known` is what was known before, and `failure` what the hint reports, if it does. An invoice that is no longer owed is
/// forgotten: it never opens again.
#[must_use]
pub fn failures(known: &Failures, facts: &CustomerFacts, failure: Option<&PaymentFailure>, fetch_began_ms: i64) -> Failures {
    let now = local_moment(facts, fetch_began_ms);
    // A test clock stands still, so nothing can be ahead of it.
    let ahead_secs = if facts.test_clock.is_some() { 0 } else { AHEAD_SECS };
    let earliest = |(invoice, created, shows_failure): (&InvoiceId, EpochSecs, bool)| {
        let reported = failure.filter(|failure| failure.invoice == *invoice).map(|failure| failure.at);
        // A failure cannot be older than its invoice nor lie ahead by more than clocks differ: an event that says so was stamped
        // by another clock than the invoice (a test clock's), and then the fetch's own moment is what is known. That one too may
        // lie before the invoice, while a test clock that is being advanced still shows the old time; and it cannot lie before
        // the failure that led to the fetch.
        let believed = reported.filter(|at| created <= *at && at.secs_since(now) <= ahead_secs);
        let seen = believed.map_or(now, |at| now.max(at)).max(created);
        let reported = reported.map(|_| believed.unwrap_or(seen));
        let fetched = shows_failure.then_some(seen);
        let since = [known.get(invoice).copied(), reported, fetched].into_iter().flatten().min()?;
        Some((invoice.clone(), since))
    };
    facts.owed().filter_map(earliest).collect()
}

/// The invoices that a fetch showed as owed and of which no failure is known, such as those of which a bank is being asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfailed {
    /// When the fetch began, in milliseconds since 1970 by our own clock. Of another fetch it says nothing.
    pub fetched_at_ms: i64,
    /// The invoices.
    pub invoices: BTreeSet<InvoiceId>,
}

impl Unfailed {
    /// What a fetch showed; `failures` are the known ones after it.
    #[must_use]
    pub fn of(facts: &CustomerFacts, failures: &Failures, fetched_at_ms: i64) -> Self {
        let owed = facts.owed().map(|(invoice, ..)| invoice);
        Self { fetched_at_ms, invoices: owed.filter(|invoice| !failures.contains_key(*invoice)).cloned().collect() }
    }
}

/// The fetch's moment by the customer's own clock.
fn local_moment(facts: &CustomerFacts, fetch_began_ms: i64) -> EpochSecs {
    facts.test_clock.unwrap_or(EpochSecs::from_ms(fetch_began_ms))
}

/// How long before a fetch a hint was sent at least, for the fetch to have seen what it tells of: more than the clocks of AWS and
/// the replicas of Stripe differ.
const SEEN_AFTER_MS: i64 = 2_000;
/// How long after a fetch its customer is left alone, unless the fetch came after a lull itself.
const LULL_MS: i64 = 5_000;
/// How soon after another a fetch serves the same burst: a hint of the burst's last moment waits until it is seen.
const BURST_MS: i64 = LULL_MS + SEEN_AFTER_MS;

/// When a customer was fetched, in milliseconds since 1970 by our own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// When the last fetch began.
    pub at_ms: i64,
    /// When the one before it began.
    pub before_ms: i64,
}

impl Fetched {
    /// Whether the last fetch has seen what a hint tells that was sent at this moment.
    #[must_use]
    pub fn has_seen(self, sent_at_ms: i64) -> bool {
        self.at_ms >= sent_at_ms.saturating_add(SEEN_AFTER_MS)
    }

    /// Until when a hint that the last fetch came too early for is to wait, so that one fetch serves a burst of them: until 2 s
    /// after it was sent; where that fetch served a burst already, until 5 s after it. `None` if it is to be handled now.
    ///
    /// However the hints of 5 seconds come, the first, the second and one more of them are fetched for, and no other.
    #[must_use]
    pub fn rests_until_ms(self, sent_at_ms: i64, now_ms: i64) -> Option<i64> {
        let lull_is_over = now_ms >= self.at_ms.saturating_add(LULL_MS);
        let served_a_burst = self.at_ms < self.before_ms.saturating_add(BURST_MS);
        let until_ms = if served_a_burst { self.at_ms.saturating_add(LULL_MS) } else { sent_at_ms.saturating_add(SEEN_AFTER_MS) };
        // Clocks differ by little; were it much, nothing is gained by waiting for one of them.
        let until_ms = until_ms.min(now_ms.saturating_add(LULL_MS));
        (!lull_is_over && now_ms < until_ms).then_some(until_ms)
    }
}

/// What is known of the failures of the invoice that a hint says failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KnownFailure {
    /// The earliest one.
    At(EpochSecs),
    /// The last fetch showed that the invoice is not owed. It failed before that fetch, so it was open before, and is settled.
    NotOpen,
    /// No failure. It may be open all the same: a bank is being asked, or an older version fetched.
    Nothing,
}

/// Whether a hint may be skipped: what it points at was fetched since, and the failure it reports, if it does, is known to be as
/// early or to be history. A replay is never skipped. Only an optimisation: not skipping is always right.
#[must_use]
pub fn may_skip(fetched: Fetched, known: KnownFailure, failure: Option<&PaymentFailure>, sent_at_ms: i64, replay: bool) -> bool {
    let tells_nothing_new = failure.is_none_or(|failure| match known {
        KnownFailure::At(known) => known <= failure.at,
        KnownFailure::NotOpen => true,
        KnownFailure::Nothing => false,
    });
    fetched.has_seen(sent_at_ms) && tells_nothing_new && !replay
}

/// The status that a subscription counts by: Stripe's, or the last known one where Stripe's is newer than we know. Without a last
/// known one there is nothing to keep, so such a subscription does not count yet.
fn known_status<'a>(facts: &'a SubscriptionFacts, previous: Option<&'a Subscription>) -> Option<&'a Status> {
    match &facts.status {
        Status::Other(_) => previous.filter(|last| last.id == facts.id).map(|last| &last.status),
        known => Some(known),
    }
}

/// The subscription that counts: the best by status, then the newest. Of those that are cancelled one whose invoice is owed comes
/// first, so that nobody leaves a debt behind by a shorter subscription; then one that was paid late, as long as what was paid for
/// is not over.
fn counts<'a>(
    before: Option<&'a Account>,
    facts: &'a CustomerFacts,
    failures: &Failures,
    now: EpochSecs,
) -> Option<&'a SubscriptionFacts> {
    let previous = before.and_then(|account| account.subscription.as_ref());
    let is_over = |facts: &&SubscriptionFacts| known_status(facts, previous) == Some(&Status::Canceled);
    let ranked = by_rank(&facts.subscriptions, |facts| known_status(facts, previous));
    let best = ranked.first().copied()?;
    if !is_over(&best) {
        return Some(best);
    }
    // The first of equals is the newest.
    ranked.into_iter().filter(is_over).min_by_key(|cancelled| {
        let owes = !owed(before, facts, cancelled, failures).is_empty();
        let is_paid_for = paid_until(facts, cancelled).is_some_and(|until| now < until);
        (!owes, !is_paid_for)
    })
}

/// Why the subscription that counts is paused; of a status newer than we know, why it last was.
pub(super) fn paused_by(before: Option<&Account>, chosen: Option<&SubscriptionFacts>) -> Option<PausedBy> {
    let chosen = chosen?;
    match &chosen.status {
        Status::Paused => chosen.paused_by.clone(),
        Status::Other(_) => before.and_then(|account| account.paused_by.clone()),
        _ => None,
    }
}

/// Up to when a cancelled subscription was paid for after its end, if it was.
fn paid_until(facts: &CustomerFacts, chosen: &SubscriptionFacts) -> Option<EpochSecs> {
    let ended_at = chosen.ended_at.filter(|_| chosen.status == Status::Canceled)?;
    let late = |invoice: &&PaidInvoice| invoice.subscription == chosen.id && invoice.paid_at > ended_at;
    facts.paid_invoices.iter().filter(late).map(|invoice| invoice.paid_for_until).filter(|until| *until > ended_at).max()
}

pub(super) fn subscription(
    prices: &PriceList,
    facts: &SubscriptionFacts,
    previous: Option<&Subscription>,
    alarms: &mut Vec<Alarm>,
) -> Option<Subscription> {
    let previous = previous.filter(|last| last.id == facts.id);
    let status = known_status(facts, previous)?.clone();
    if !facts.flexible && facts.status.is_live() {
        alarms.push(Alarm::NotFlexible);
    }
    Some(Subscription {
        id: facts.id.clone(),
        status,
        plan: plan(prices, &facts.items, previous, alarms),
        trial_end: facts.trial_end,
        cancel_at: facts.cancel_at,
        ended_at: facts.ended_at,
        flexible: facts.flexible,
    })
}

/// The plan that the items' prices belong to. With any unknown price among them the last known plan is kept.
fn plan(prices: &PriceList, items: &[ItemFacts], previous: Option<&Subscription>, alarms: &mut Vec<Alarm>) -> Option<PlanId> {
    let mut known = Vec::new();
    let mut all_known = true;
    for item in items {
        match item.lookup_key.as_deref().and_then(|key| prices.price(key)) {
            Some((plan, _)) => known.push(plan.id.clone()),
            None => {
                all_known = false;
                alarms.push(Alarm::UnknownPrice { lookup_key: item.lookup_key.clone() });
            }
        }
    }
    let last_known = previous.and_then(|last| last.plan.clone());
    let present = known.into_iter().next();
    if all_known { present.or(last_known) } else { last_known.or(present) }
}

fn ended(mut subscription: Subscription, now: EpochSecs) -> Subscription {
    if subscription.status != Status::Canceled {
        subscription.status = Status::Canceled;
        subscription.ended_at = Some(now);
    }
    subscription
}

/// For each invoice of a subscription that is owed and whose payment failed: its earliest known failure (G2). It is open; or
/// written off, where the subscription was cancelled: whoever gives an invoice up on cancelling, as dunning may, gives nothing
/// away. Who wants to forgive it voids it.
fn owed(
    before: Option<&Account>,
    facts: &CustomerFacts,
    subscription: &SubscriptionFacts,
    failures: &Failures,
) -> BTreeMap<InvoiceId, Overdue> {
    let known = |invoice: &InvoiceId| before.and_then(|account| account.overdue.get(invoice)).map(|overdue| overdue.since);
    let is_its = |invoice: &&InvoiceFacts| invoice.subscription.as_ref() == Some(&subscription.id);
    let open = facts.open_invoices.iter().filter(is_its).map(|invoice| &invoice.id);
    let newest = subscription.latest_invoice.as_ref().filter(|_| subscription.status == Status::Canceled);
    let written_off = newest.filter(|invoice| invoice.written_off.is_some()).map(|invoice| &invoice.id);
    open.chain(written_off)
        .filter_map(|invoice| {
            let since = [known(invoice), failures.get(invoice).copied()].into_iter().flatten().min()?;
            Some((invoice.clone(), Overdue { since }))
        })
        .collect()
}

/// The invoices of the subscription that counts that are owed and whose payment failed.
fn overdue(
    before: Option<&Account>,
    facts: &CustomerFacts,
    subscription: Option<&Subscription>,
    chosen: Option<&SubscriptionFacts>,
    failures: &Failures,
    now: EpochSecs,
) -> BTreeMap<InvoiceId, Overdue> {
    let (Some(subscription), Some(chosen)) = (subscription, chosen) else { return BTreeMap::new() };
    let mut overdue = owed(before, facts, chosen, failures);
    if overdue.is_empty() && matches!(subscription.status, Status::PastDue | Status::Unpaid) {
        // Overdue without an open invoice (written off, or still a draft): the grace period must begin somewhere.
        // An invoice that is written off leaves its successor with the same beginning: nobody gets seven fresh days a month.
        if let Some(invoice) = &chosen.latest_invoice {
            let since = before.and_then(Account::overdue_since).unwrap_or(now);
            overdue.insert(invoice.id.clone(), Overdue { since });
        }
    }
    overdue
}

/// For each subscription that still has a segment, up to when its usage is invoiced for good.
///
/// The newest invoice tells, and it alone is seen. One that does not follow on from what is known to be final (an upgrade that is
/// invoiced at once, while the renewal's invoice waits) tells only once an older one can be no draft any more.
fn final_through(
    before: Option<&Account>,
    facts: &CustomerFacts,
    segments: &[Segment],
    now: EpochSecs,
) -> BTreeMap<SubscriptionId, EpochSecs> {
    let mut final_through = before.map(|account| account.final_through.clone()).unwrap_or_default();
    for subscription in &facts.subscriptions {
        let newest = subscription.latest_invoice.as_ref().filter(|invoice| invoice.is_final);
        let Some((start, end)) = newest.and_then(|invoice| invoice.period) else { continue };
        let follows_on = match final_through.get(&subscription.id) {
            Some(known) => start <= *known,
            // The first invoice of all closes nothing.
            None => start == end,
        };
        if follows_on || now.secs_since(start) >= LONGEST_DRAFT_SECS {
            let known = final_through.entry(subscription.id.clone()).or_insert(end);
            *known = end.max(*known);
        }
    }
    final_through.retain(|subscription, _| segments.iter().any(|segment| segment.subscription == *subscription));
    final_through
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::{
        access::{Reason, State, standing},
        facts::LatestInvoice,
        notice::NoticeKind,
        period::Cycle,
        price_list::Interval,
    };

    pub(crate) const START: &str = "2026-11-10T00:00:00Z";

    pub(crate) fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    pub(crate) fn ms(text: &str) -> i64 {
        at(text).as_secs() * 1000
    }

    pub(crate) fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    pub(crate) fn prices() -> PriceList {
        PriceList::shipped().unwrap()
    }

    pub(crate) fn item(lookup_key: &str, start: &str) -> ItemFacts {
        let cycle = Cycle { anchor: at(START), interval: Interval::Month, count: 1 };
        let period = cycle.period_containing(at(start));
        ItemFacts { lookup_key: Some(lookup_key.into()), metered: lookup_key != "pro_base", period, cycle }
    }

    pub(crate) fn pro(id: &str, status: Status, period: &str) -> SubscriptionFacts {
        SubscriptionFacts {
            id: SubscriptionId::new(id).unwrap(),
            status,
            paused_by: None,
            created: at(START),
            user_id: Some(user("ada")),
            items: ["pro_base", "pro_requests", "pro_tokens_in", "pro_tokens_out"].map(|key| item(key, period)).into(),
            billing_cycle_anchor: at(START),
            trial_end: None,
            cancel_at: None,
            ended_at: None,
            latest_invoice: Some(latest("in_1", false, START)),
            flexible: true,
        }
    }

    fn latest(invoice: &str, is_final: bool, period_end: &str) -> LatestInvoice {
        LatestInvoice {
            id: InvoiceId::new(invoice).unwrap(),
            is_final,
            period: Some((at(START), at(period_end))),
            written_off: None,
        }
    }

    pub(crate) fn facts(customer: &str, subscriptions: Vec<SubscriptionFacts>) -> CustomerFacts {
        CustomerFacts {
            customer: CustomerId::new(customer).unwrap(),
            deleted: false,
            user_id: None,
            test_clock: None,
            subscriptions,
            open_invoices: Vec::new(),
            paid_invoices: Vec::new(),
            checkout_users: Vec::new(),
        }
    }

    fn open(invoice: &str, attempted: bool) -> InvoiceFacts {
        InvoiceFacts {
            id: InvoiceId::new(invoice).unwrap(),
            subscription: Some(SubscriptionId::new("sub_1").unwrap()),
            created: at("2026-12-10T00:00:00Z"),
            attempted,
        }
    }

    fn past_due() -> CustomerFacts {
        let mut facts = facts("cus_1", vec![pro("sub_1", Status::PastDue, "2026-12-10T00:00:00Z")]);
        facts.open_invoices = vec![open("in_1", true)];
        facts
    }

    fn failed(invoice: &str, moment: &str) -> PaymentFailure {
        PaymentFailure { invoice: InvoiceId::new(invoice).unwrap(), at: at(moment) }
    }

    /// Decides and commits.
    fn commit(
        before: Option<&Account>,
        facts: &CustomerFacts,
        failure: Option<&PaymentFailure>,
        now: &str,
    ) -> (Account, Vec<NoticeKind>, Vec<Alarm>) {
        let known =
            before.map(|account| account.overdue.iter().map(|(invoice, overdue)| (invoice.clone(), overdue.since)).collect());
        let failures = failures(&known.unwrap_or_default(), facts, failure, ms(now));
        match decide(&prices(), before, &user("ada"), facts, &failures, ms(now)) {
            Decision::Commit { account, notices, alarms, .. } => {
                (*account, notices.iter().map(|notice| notice.kind).collect(), alarms)
            }
            Decision::SecondClaimant { held_by, .. } => panic!("a second claimant, held by {held_by}"),
        }
    }

    #[test]
    fn a_checkout_provisions_once() {
        let facts = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        let (account, told, alarms) = commit(None, &facts, None, "2026-11-10T00:00:05Z");
        assert_eq!((account.version, told, alarms), (1, vec![NoticeKind::AccountProvisioned], vec![]));
        assert_eq!(account.segments.len(), 1);
        let (again, told, _) = commit(Some(&account), &facts, None, "2026-11-10T00:00:09Z");
        assert_eq!((again.version, told), (2, vec![]));
        assert_eq!(again.segments, account.segments);
    }

    #[test]
    fn a_subscription_that_stripe_shows_no_more_is_gone_unless_its_customer_is() {
        let (account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let shown = |deleted: bool| {
            let facts = CustomerFacts { user_id: Some(user("ada")), deleted, ..facts("cus_1", Vec::new()) };
            let (account, ..) = commit(Some(&account), &facts, None, "2026-11-12T00:00:00Z");
            account.subscription.map(|kept| (kept.status, kept.ended_at))
        };
        assert_eq!(shown(false), None);
        assert_eq!(shown(true), Some((Status::Canceled, Some(at("2026-11-12T00:00:00Z")))));
    }

    #[test]
    fn refused_claimants_are_looked_at_again_once_the_user_is_free() {
        let (mut account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let claimants = BTreeSet::from([CustomerId::new("cus_2").unwrap()]);
        account.refused_claimants = claimants.clone();
        let now = ms("2026-11-12T00:00:00Z");
        let revisited = |status: Status| {
            let facts = facts("cus_1", vec![pro("sub_1", status, START)]);
            match decide(&prices(), Some(&account), &user("ada"), &facts, &Failures::new(), now) {
                Decision::Commit { account, revisit, .. } => (account.refused_claimants, revisit),
                Decision::SecondClaimant { .. } => panic!("it is its own"),
            }
        };
        assert_eq!(revisited(Status::Active), (claimants.clone(), BTreeSet::new()));
        assert_eq!(revisited(Status::Canceled), (BTreeSet::new(), claimants.clone()));
        let (released, _, revisit) = release(&prices(), &account, now);
        assert_eq!((released.refused_claimants, revisit), (BTreeSet::new(), claimants));
    }

    #[test]
    fn of_the_invoices_that_are_owed_those_without_a_known_failure_are_kept_apart() {
        let mut facts = past_due();
        facts.open_invoices.push(open("in_2", false));
        let failures = Failures::from([(InvoiceId::new("in_1").unwrap(), at("2026-12-10T00:00:00Z"))]);
        let unfailed = Unfailed::of(&facts, &failures, 5);
        assert_eq!((unfailed.fetched_at_ms, unfailed.invoices), (5, [InvoiceId::new("in_2").unwrap()].into()));
        assert_eq!(LONGEST_DRAFT_SECS, 262_800, "73 hours");
    }

    #[test]
    fn the_user_is_joined_by_subscription_then_customer_then_checkout_session() {
        let mut joined = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        joined.user_id = Some(user("bob"));
        joined.checkout_users = vec![user("eve"), user("dan")];
        assert_eq!(joined_user(&joined), Some(&user("ada")));
        joined.subscriptions[0].user_id = None;
        assert_eq!(joined_user(&joined), Some(&user("bob")));
        joined.user_id = None;
        assert_eq!(joined_user(&joined), Some(&user("eve")));
        joined.checkout_users.clear();
        assert_eq!(joined_user(&joined), None);
    }

    #[test]
    fn a_user_keeps_its_customer_while_that_one_has_a_live_subscription() {
        let (mut account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let other = facts("cus_2", vec![pro("sub_2", Status::Active, START)]);
        let claim = |account: &Account, facts: &CustomerFacts| match decide(
            &prices(),
            Some(account),
            &user("ada"),
            facts,
            &Failures::new(),
            ms(START),
        ) {
            Decision::SecondClaimant { held_by, account } => (held_by.to_string(), account),
            Decision::Commit { .. } => panic!("it took over"),
        };
        let (held_by, remembered) = claim(&account, &other);
        let remembered = *remembered.unwrap();
        assert_eq!((held_by.as_str(), remembered.version, remembered.refused_claimants.len()), ("cus_1", 2, 1));
        assert_eq!(claim(&remembered, &other).1, None, "the claim is remembered once");
        account.subscription.as_mut().unwrap().status = Status::Canceled;
        account.refused_claimants = remembered.refused_claimants;
        let (taken, ..) = commit(Some(&account), &other, None, "2026-11-12T00:00:00Z");
        assert_eq!((taken.customer_id.as_str(), taken.segments.len(), taken.refused_claimants.len()), ("cus_2", 2, 0));
        // An empty customer takes nothing: a grace period or an overdue invoice would be lost to it.
        assert_eq!(claim(&account, &facts("cus_3", vec![])).0, "cus_1");
        assert_eq!(claim(&account, &facts("cus_3", vec![pro("sub_3", Status::Canceled, START)])).0, "cus_1");
    }

    #[test]
    fn a_released_account_has_no_subscription_and_its_usage_is_no_longer_billed() {
        let (account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let (released, notices, _) = release(&prices(), &account, ms("2026-11-20T00:00:00Z"));
        assert_eq!((released.version, released.subscription.clone()), (2, None));
        assert_eq!(notices.iter().map(|notice| notice.kind).collect::<Vec<_>>(), [NoticeKind::SubscriptionEnded]);
        assert_eq!((released.segments[0].end, released.segments[0].renews), (at("2026-11-20T00:00:00Z"), None));
        assert_eq!(released.fetched_at_ms, account.fetched_at_ms, "nothing was fetched for it");
    }

    #[test]
    fn a_known_cancellation_ends_the_segment_and_revoking_it_restores_it() {
        let mut ending = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        ending.subscriptions[0].cancel_at = Some(at("2026-11-25T00:00:00Z"));
        let (account, ..) = commit(None, &ending, None, START);
        assert_eq!((account.segments[0].end, account.segments[0].renews), (at("2026-11-25T00:00:00Z"), None));
        ending.subscriptions[0].cancel_at = None;
        let (account, ..) = commit(Some(&account), &ending, None, START);
        assert_eq!(account.segments.len(), 1);
        assert!(account.segments[0].end == at("2026-12-10T00:00:00Z") && account.segments[0].renews.is_some());
    }

    #[test]
    fn an_end_after_a_renewal_that_nobody_told_of_keeps_the_periods_apart() {
        let (account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let mut ended = facts("cus_1", vec![pro("sub_1", Status::Canceled, START)]);
        ended.subscriptions[0].ended_at = Some(at("2027-01-20T00:00:00Z"));
        let (account, ..) = commit(Some(&account), &ended, None, "2027-01-20T00:00:05Z");
        let shown: Vec<_> = account.segments.iter().map(|segment| format!("{} {}", segment.start, segment.end)).collect();
        assert_eq!(shown, ["2026-11-10T00:00:00Z 2026-12-10T00:00:00Z", "2027-01-10T00:00:00Z 2027-01-20T00:00:00Z"]);
        let (again, ..) = commit(Some(&account), &ended, None, "2027-01-20T00:00:09Z");
        assert_eq!(again.segments, account.segments);
    }

    #[test]
    fn writing_off_invoices_gives_no_fresh_days() {
        let mut unpaid = facts("cus_1", vec![pro("sub_1", Status::Unpaid, START)]);
        let (account, ..) = commit(None, &unpaid, None, "2026-12-10T03:00:00Z");
        unpaid.subscriptions[0].latest_invoice = Some(latest("in_2", false, START));
        let (account, ..) = commit(Some(&account), &unpaid, None, "2027-01-10T03:00:00Z");
        assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T03:00:00Z");
    }

    /// G2: whichever is seen first, grace starts at the earliest known failure of the invoice, and only ever moves earlier.
    #[test]
    fn grace_starts_at_the_earliest_known_failure_and_only_moves_earlier() {
        let (account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let since = |account: &Account| account.overdue_since().unwrap().to_string();
        // The fetch shows it first.
        let (fetched, told, _) = commit(Some(&account), &past_due(), None, "2026-12-10T03:00:00Z");
        assert_eq!((since(&fetched).as_str(), told), ("2026-12-10T03:00:00Z", vec![NoticeKind::GraceStarted]));
        // An earlier failure comes late and moves it; a later one does not.
        let early = failed("in_1", "2026-12-10T01:00:00Z");
        let (moved, ..) = commit(Some(&fetched), &past_due(), Some(&early), "2026-12-10T04:00:00Z");
        assert_eq!(since(&moved), "2026-12-10T01:00:00Z");
        let (kept, ..) = commit(Some(&moved), &past_due(), Some(&failed("in_1", "2026-12-11T00:00:00Z")), "2026-12-12T00:00:00Z");
        assert_eq!(since(&kept), "2026-12-10T01:00:00Z");
        // In the other order the end is the same.
        let (first, ..) = commit(Some(&account), &past_due(), Some(&early), "2026-12-10T04:00:00Z");
        assert_eq!(since(&first), "2026-12-10T01:00:00Z");
        // A failure of a paid invoice is history.
        let paid = facts("cus_1", vec![pro("sub_1", Status::Active, "2026-12-10T00:00:00Z")]);
        let (paid, told, _) = commit(Some(&kept), &paid, Some(&early), "2026-12-12T00:00:00Z");
        assert_eq!((paid.overdue.len(), told), (0, vec![NoticeKind::GraceCleared]));
    }

    #[test]
    fn a_failure_stamped_by_another_clock_than_its_invoice_counts_from_the_fetch() {
        for impossible in ["2026-12-09T23:59:59Z", "2026-12-10T03:05:01Z"] {
            let failure = failed("in_1", impossible);
            let (account, ..) = commit(None, &past_due(), Some(&failure), "2026-12-10T03:00:00Z");
            assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T03:00:00Z", "{impossible}");
        }
    }

    /// G7: with our clock behind Stripe's, grace would otherwise be shorter than it is said to be.
    #[test]
    fn a_failure_a_little_ahead_of_our_clock_is_believed_unless_a_test_clock_says_otherwise() {
        let failure = failed("in_1", "2026-12-10T03:05:00Z");
        let mut unpaid = past_due();
        let since = |facts: &CustomerFacts| {
            let (account, ..) = commit(None, facts, Some(&failure), "2026-12-10T03:00:00Z");
            account.overdue_since().unwrap().to_string()
        };
        assert_eq!(since(&unpaid), "2026-12-10T03:05:00Z");
        unpaid.test_clock = Some(at("2026-12-10T03:00:00Z"));
        assert_eq!(since(&unpaid), "2026-12-10T03:00:00Z");
    }

    #[test]
    fn a_debit_of_the_last_invoice_is_under_way_until_its_event_says_that_it_failed() {
        let mut over = past_due();
        (over.subscriptions[0].status, over.subscriptions[0].ended_at) = (Status::Canceled, Some(at("2026-12-10T00:00:00Z")));
        let (account, ..) = commit(None, &over, None, "2026-12-10T03:00:00Z");
        assert!(account.overdue.is_empty());
        let failure = failed("in_1", "2026-12-14T01:00:00Z");
        let (failed, ..) = commit(Some(&account), &over, Some(&failure), "2026-12-14T01:00:05Z");
        assert_eq!(failed.overdue_since(), Some(at("2026-12-14T01:00:00Z")));
        // One that was made before the end had failed by then.
        over.subscriptions[0].ended_at = Some(at("2026-12-10T00:00:01Z"));
        let (account, ..) = commit(None, &over, None, "2026-12-10T03:00:00Z");
        assert_eq!(account.overdue_since(), Some(at("2026-12-10T03:00:00Z")));
    }

    /// G7: dunning may cancel the subscription and write the invoice off in one.
    #[test]
    fn an_invoice_that_is_written_off_with_its_subscription_is_still_owed_and_a_voided_one_forgiven() {
        let (account, ..) = commit(None, &past_due(), None, "2026-12-10T03:00:00Z");
        let mut over = facts("cus_1", vec![pro("sub_1", Status::Canceled, START)]);
        over.subscriptions[0].ended_at = Some(at("2026-12-12T00:00:00Z"));
        let newest = over.subscriptions[0].latest_invoice.as_mut().unwrap();
        newest.written_off = Some(at("2026-12-10T00:00:00Z"));
        let (written_off, told, _) = commit(Some(&account), &over, None, "2026-12-12T00:00:05Z");
        assert_eq!(told, vec![]);
        let seen = |account: &Account, moment: &str| {
            let standing = standing(Some(account), &prices(), at(moment));
            (standing.state, standing.reason)
        };
        assert_eq!(seen(&written_off, "2026-12-17T02:59:59Z"), (State::Grace, None));
        assert_eq!(seen(&written_off, "2026-12-17T03:00:00Z"), (State::Ended, Some(Reason::PaymentOverdue)));
        // An earlier failure that is heard of now still counts, and nobody's memory of it is lost.
        let early = failed("in_1", "2026-12-10T01:00:00Z");
        let (moved, ..) = commit(Some(&written_off), &over, Some(&early), "2026-12-13T00:00:00Z");
        assert_eq!(moved.overdue_since(), Some(at("2026-12-10T01:00:00Z")));
        // Of which nobody ever knew that it failed is not owed.
        assert!(commit(None, &over, None, "2026-12-12T00:00:05Z").0.overdue.is_empty());
        over.subscriptions[0].latest_invoice.as_mut().unwrap().written_off = None;
        let (voided, told, _) = commit(Some(&written_off), &over, None, "2026-12-13T00:00:00Z");
        assert_eq!((voided.overdue.len(), told), (0, vec![NoticeKind::SubscriptionEnded]));
        over.paid_invoices = vec![paid("sub_1", "2026-12-20T00:00:00Z", "2027-01-10T00:00:00Z")];
        let (paid, ..) = commit(Some(&written_off), &over, None, "2026-12-20T00:00:05Z");
        assert_eq!(paid.paid_until, Some(at("2027-01-10T00:00:00Z")));
    }

    #[test]
    fn of_several_cancelled_subscriptions_one_that_owes_counts_then_one_paid_late_then_the_newest() {
        let over = |id: &str, created: &str| SubscriptionFacts {
            created: at(created),
            ended_at: Some(at("2026-12-20T00:00:00Z")),
            ..pro(id, Status::Canceled, START)
        };
        let mut three = facts(
            "cus_1",
            vec![over("sub_1", START), over("sub_2", "2026-11-11T00:00:00Z"), over("sub_3", "2026-11-12T00:00:00Z")],
        );
        three.open_invoices = vec![open("in_1", true)];
        three.paid_invoices = vec![paid("sub_2", "2026-12-21T00:00:00Z", "2027-01-10T00:00:00Z")];
        let counts = |facts: &CustomerFacts, now: &str| commit(None, facts, None, now).0.subscription.unwrap().id.to_string();
        assert_eq!(counts(&three, "2026-12-22T00:00:00Z"), "sub_1");
        three.open_invoices.clear();
        assert_eq!(counts(&three, "2027-01-09T23:59:59Z"), "sub_2");
        assert_eq!(counts(&three, "2027-01-10T00:00:00Z"), "sub_3", "what was paid for is over");
        three.open_invoices = vec![open("in_1", true)];
        three.subscriptions.push(SubscriptionFacts { created: at(START), ..pro("sub_4", Status::Paused, START) });
        assert_eq!(counts(&three, "2026-12-22T00:00:00Z"), "sub_4", "one that goes on counts before any of them");
        for (of_first, of_second, expected) in
            [("19T00:00:00Z", "20T00:00:00Z", "sub_2"), ("20T00:00:00Z", "19T00:00:00Z", "sub_1")]
        {
            let ended =
                |id: &str, day: &str| SubscriptionFacts { ended_at: Some(at(&format!("2026-12-{day}"))), ..over(id, START) };
            let of_one_second = facts("cus_1", vec![ended("sub_1", of_first), ended("sub_2", of_second)]);
            assert_eq!(counts(&of_one_second, "2026-12-22T00:00:00Z"), expected, "of one second the one that ended last");
        }
    }

    #[test]
    fn a_fetch_while_a_test_clock_still_shows_the_old_time_dates_no_failure_before_its_invoice() {
        let mut advancing = past_due();
        advancing.test_clock = Some(at("2026-11-20T00:00:00Z"));
        let (account, ..) = commit(None, &advancing, None, "2026-11-20T00:00:00Z");
        assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T00:00:00Z", "the invoice's own creation");
    }

    #[test]
    fn paying_another_invoice_does_not_end_the_grace_of_this_one() {
        let mut two = past_due();
        two.open_invoices.push(open("in_2", true));
        let (account, ..) = commit(None, &two, None, "2026-12-10T03:00:00Z");
        assert_eq!(account.overdue.len(), 2);
        let (account, ..) = commit(Some(&account), &past_due(), None, "2026-12-11T03:00:00Z");
        assert_eq!(account.overdue.keys().map(InvoiceId::as_str).collect::<Vec<_>>(), ["in_1"]);
        assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T03:00:00Z");
    }

    #[test]
    fn an_attempt_that_a_bank_has_yet_to_answer_starts_no_grace() {
        let mut asked = past_due();
        asked.subscriptions[0].status = Status::Active;
        let (account, notices, _) = commit(None, &asked, None, "2026-12-10T01:00:00Z");
        assert!(account.overdue.is_empty());
        assert_eq!(notices, [NoticeKind::AccountProvisioned]);
        // Four days later it says no, and grace starts with that, although the attempt is as old as the invoice.
        let failure = failed("in_1", "2026-12-14T01:00:00Z");
        let (account, ..) = commit(Some(&account), &past_due(), Some(&failure), "2026-12-14T01:00:05Z");
        assert_eq!(account.overdue_since(), Some(at("2026-12-14T01:00:00Z")));
    }

    #[test]
    fn another_subscriptions_invoice_and_one_not_attempted_start_no_grace() {
        let mut facts = past_due();
        facts.subscriptions[0].status = Status::Active;
        facts.open_invoices = vec![open("in_1", false), open("in_2", true)];
        facts.open_invoices[1].subscription = None;
        let (account, ..) = commit(None, &facts, None, "2026-12-10T03:00:00Z");
        assert_eq!(account.overdue.len(), 0);
    }

    #[test]
    fn cancelled_by_dunning_keeps_access_to_the_end_of_grace() {
        let mut cancelled = past_due();
        cancelled.subscriptions[0].status = Status::Canceled;
        cancelled.subscriptions[0].ended_at = Some(at("2026-12-12T00:00:00Z"));
        let (account, ..) = commit(None, &past_due(), None, "2026-12-10T03:00:00Z");
        let (account, told, _) = commit(Some(&account), &cancelled, None, "2026-12-12T00:00:05Z");
        assert_eq!(told, vec![]);
        let state = |moment: &str| standing(Some(&account), &prices(), at(moment)).state;
        assert_eq!((state("2026-12-17T02:59:59Z"), state("2026-12-17T03:00:00Z")), (State::Grace, State::Ended));
        assert_eq!(account.segments.last().unwrap().end, at("2026-12-12T00:00:00Z"));
    }

    #[test]
    fn an_unknown_price_keeps_the_last_known_plan_and_is_alarmed() {
        let mut strange = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        let (account, ..) = commit(None, &strange, None, START);
        strange.subscriptions[0].items = vec![item("enterprise_base", START)];
        let (account, told, alarms) = commit(Some(&account), &strange, None, START);
        assert_eq!(account.subscription.as_ref().unwrap().plan.as_ref().unwrap().as_str(), "pro");
        assert_eq!((told, alarms), (vec![], vec![Alarm::UnknownPrice { lookup_key: Some("enterprise_base".into()) }]));
        assert_eq!((account.segments.len(), account.segments[0].billed.len()), (1, 3), "and what is billed stays");
        let (new, _, alarms) = commit(None, &strange, None, START);
        assert_eq!((new.subscription.as_ref().unwrap().plan.clone(), alarms.len()), (None, 1));
        assert_eq!(standing(Some(&new), &prices(), at(START)).state, State::Active, "never a silent free plan");
    }

    #[test]
    fn a_status_newer_than_we_know_leaves_the_account_as_it_was() {
        let mut strange = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        let (account, ..) = commit(None, &strange, None, START);
        strange.subscriptions[0].status = Status::Other("hibernating".into());
        let (account, told, alarms) = commit(Some(&account), &strange, None, START);
        assert_eq!((account.subscription.unwrap().status, told), (Status::Active, vec![]));
        assert_eq!(alarms, vec![Alarm::UnknownStatus { status: "hibernating".into() }]);
        assert_eq!(commit(None, &strange, None, START).0.subscription, None);
    }

    #[test]
    fn a_status_newer_than_we_know_counts_by_the_last_known_one() {
        let sub = |id: &str, status: &str, created: &str| SubscriptionFacts {
            created: at(created),
            ..pro(id, Status::from(status.to_owned()), START)
        };
        let counts = |before: Option<&Account>, subscriptions: Vec<SubscriptionFacts>| {
            let (account, _, alarms) = commit(before, &facts("cus_1", subscriptions), None, "2026-11-12T00:00:00Z");
            let unknown = alarms.iter().filter(|alarm| matches!(alarm, Alarm::UnknownStatus { .. })).count();
            (account.subscription.map(|kept| format!("{} {}", kept.id, kept.status.as_str())), unknown)
        };
        let shown = |text: &str, alarms| (Some(text.to_owned()), alarms);
        let (before, ..) = commit(None, &facts("cus_1", vec![sub("sub_1", "active", START)]), None, START);
        let newer = "2026-11-11T00:00:00Z";
        // The one that was active stays the one that counts, beside any other.
        for other in ["trialing", "past_due", "canceled", "incomplete"] {
            let both = vec![sub("sub_2", other, newer), sub("sub_1", "hibernating", START)];
            assert_eq!(counts(Some(&before), both), shown("sub_1 active", 1), "{other}");
        }
        assert_eq!(
            counts(Some(&before), vec![sub("sub_2", "active", newer), sub("sub_1", "hibernating", START)]),
            shown("sub_2 active", 1),
            "of equals the newest"
        );
        // One that never had a status we know does not count before one that has, whatever that is.
        assert_eq!(
            counts(None, vec![sub("sub_2", "hibernating", newer), sub("sub_1", "canceled", START)]),
            shown("sub_1 canceled", 1)
        );
        assert_eq!(counts(None, vec![sub("sub_2", "hibernating", newer)]), (None, 1));
    }

    #[test]
    fn a_grace_period_goes_on_under_a_status_newer_than_we_know() {
        let mut paused = past_due();
        (paused.subscriptions[0].status, paused.subscriptions[0].paused_by) =
            (Status::Paused, Some(PausedBy::FinalPaymentFailure));
        for status in [Status::PastDue, Status::Paused] {
            paused.subscriptions[0].status = status;
            let (account, ..) = commit(None, &paused, None, "2026-12-10T03:00:00Z");
            let mut strange = paused.clone();
            (strange.subscriptions[0].status, strange.subscriptions[0].paused_by) =
                (Status::from("hibernating".to_owned()), None);
            let (account, ..) = commit(Some(&account), &strange, None, "2026-12-12T00:00:00Z");
            let state = |moment: &str| standing(Some(&account), &prices(), at(moment)).state;
            assert_eq!((state("2026-12-17T02:59:59Z"), state("2026-12-17T03:00:00Z")), (State::Grace, State::Ended));
        }
    }

    #[test]
    fn a_grace_period_without_an_open_invoice_goes_on_under_a_status_newer_than_we_know() {
        let mut unpaid = facts("cus_1", vec![pro("sub_1", Status::Unpaid, START)]);
        let (account, ..) = commit(None, &unpaid, None, "2026-12-10T03:00:00Z");
        unpaid.subscriptions[0].status = Status::from("hibernating".to_owned());
        let (account, ..) = commit(Some(&account), &unpaid, None, "2026-12-12T00:00:00Z");
        assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T03:00:00Z");
        assert_eq!(standing(Some(&account), &prices(), at("2026-12-12T00:00:00Z")).state, State::Grace);
    }

    #[test]
    fn which_of_several_subscriptions_counts_does_not_depend_on_their_order() {
        let ranked = ["active", "trialing", "past_due", "unpaid", "paused", "canceled", "incomplete", "incomplete_expired"];
        for (better, best) in ranked.iter().enumerate() {
            for worse in &ranked[better..] {
                let sub = |id: &str, status: &str, created| SubscriptionFacts {
                    created: at(created),
                    ..pro(id, Status::from(status.to_owned()), START)
                };
                // The worse one is the newer, unless they are equal: then the newer counts.
                let (older, newer) = if best == worse { ("sub_2", "sub_1") } else { ("sub_1", "sub_2") };
                let two = [sub(older, best, START), sub(newer, worse, "2026-11-11T00:00:00Z")];
                for order in [vec![two[0].clone(), two[1].clone()], vec![two[1].clone(), two[0].clone()]] {
                    let (account, ..) = commit(None, &facts("cus_1", order), None, "2026-11-12T00:00:00Z");
                    assert_eq!(account.subscription.unwrap().id.as_str(), "sub_1", "{best} {worse}");
                }
            }
        }
    }

    fn paid(subscription: &str, paid_at: &str, until: &str) -> PaidInvoice {
        PaidInvoice { subscription: SubscriptionId::new(subscription).unwrap(), paid_at: at(paid_at), paid_for_until: at(until) }
    }

    /// G7: a late payment after the end gives what it paid for, and nothing else does.
    #[test]
    fn only_a_payment_after_the_end_restores_access_to_the_end_of_what_it_paid_for() {
        let mut ended = facts("cus_1", vec![pro("sub_1", Status::Canceled, START)]);
        ended.subscriptions[0].ended_at = Some(at("2026-12-20T00:00:00Z"));
        let until = |invoices: Vec<PaidInvoice>| {
            let facts = CustomerFacts { paid_invoices: invoices, ..ended.clone() };
            let (account, ..) = commit(None, &facts, None, "2026-12-22T00:00:00Z");
            (
                account.paid_until.map(|until| until.to_string()),
                standing(Some(&account), &prices(), at("2026-12-22T00:00:00Z")).state,
            )
        };
        let late = paid("sub_1", "2026-12-21T00:00:00Z", "2027-01-10T00:00:00Z");
        let restored = (Some("2027-01-10T00:00:00Z".to_owned()), State::Active);
        assert_eq!(until(vec![late.clone()]), restored);
        let earlier = paid("sub_1", "2026-12-21T00:00:00Z", "2026-12-25T00:00:00Z");
        assert_eq!(until(vec![earlier.clone(), late.clone(), earlier]), restored, "the longest of several");
        let none = (None, State::Free);
        assert_eq!(until(vec![]), none);
        assert_eq!(
            until(vec![paid("sub_1", "2026-12-20T00:00:00Z", "2027-01-10T00:00:00Z")]),
            none,
            "paid before it was cancelled"
        );
        assert_eq!(until(vec![paid("sub_2", "2026-12-21T00:00:00Z", "2027-01-10T00:00:00Z")]), none, "another one's");
        assert_eq!(
            until(vec![paid("sub_1", "2026-12-21T00:00:00Z", "2026-12-20T00:00:00Z")]),
            none,
            "what was used before the end"
        );
        // Usage after the end is billed to nobody, also where access is restored.
        let facts = CustomerFacts { paid_invoices: vec![late], ..ended };
        let (account, ..) = commit(None, &facts, None, "2026-12-22T00:00:00Z");
        let place = crate::domain::segment::place(Some(&account), &prices(), at("2026-12-22T00:00:00Z"));
        assert!(matches!(place, crate::domain::segment::Place::Free { .. }), "{place:?}");
        // And a subscription that is live again needs none of it.
        let mut again = facts.clone();
        again
            .subscriptions
            .push(SubscriptionFacts { created: at("2026-12-23T00:00:00Z"), ..pro("sub_2", Status::Active, START) });
        assert_eq!(commit(Some(&account), &again, None, "2026-12-23T00:00:00Z").0.paid_until, None);
    }

    #[test]
    fn an_end_that_was_told_of_one_subscription_is_no_word_about_another() {
        let mut ending = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        ending.subscriptions[0].cancel_at = Some(at("2026-12-10T00:00:00Z"));
        let (account, told, _) = commit(None, &ending, None, START);
        assert_eq!(told, vec![NoticeKind::AccountProvisioned, NoticeKind::SubscriptionEnding]);
        let newer = SubscriptionFacts { created: at("2026-11-11T00:00:00Z"), ..pro("sub_2", Status::Active, START) };
        ending.subscriptions.push(newer);
        let (account, told, _) = commit(Some(&account), &ending, None, "2026-11-12T00:00:00Z");
        assert_eq!((account.announced.ending_at, told), (None, vec![]));
    }

    #[test]
    fn failures_of_every_open_invoice_are_known_and_those_of_others_forgotten() {
        let mut open_ones = past_due();
        open_ones.open_invoices.push(InvoiceFacts { subscription: None, ..open("in_2", false) });
        let now = ms("2026-12-10T03:00:00Z");
        let shown = |failures: &Failures| failures.iter().map(|(invoice, at)| format!("{invoice} {at}")).collect::<Vec<_>>();
        let first = failures(&Failures::new(), &open_ones, None, now);
        assert_eq!(shown(&first), ["in_1 2026-12-10T03:00:00Z"], "the first fetch that showed it attempted");
        let reported = failures(&first, &open_ones, Some(&failed("in_2", "2026-12-10T02:00:00Z")), now + 60_000);
        assert_eq!(shown(&reported), ["in_1 2026-12-10T03:00:00Z", "in_2 2026-12-10T02:00:00Z"]);
        let later = failures(&reported, &open_ones, Some(&failed("in_2", "2026-12-10T02:30:00Z")), now + 60_000);
        assert_eq!(later, reported, "it only moves earlier");
        open_ones.open_invoices.remove(0);
        assert_eq!(shown(&failures(&later, &open_ones, None, now + 120_000)), ["in_2 2026-12-10T02:00:00Z"]);
        assert_eq!(failures(&later, &facts("cus_1", vec![]), Some(&failed("in_1", START)), now), Failures::new());
    }

    #[test]
    fn items_of_several_intervals_are_one_plan_whose_metered_prices_tell_the_period() {
        let mut yearly = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        let cycle = Cycle { anchor: at(START), interval: Interval::Year, count: 1 };
        (yearly.subscriptions[0].items[0].cycle, yearly.subscriptions[0].items[0].period) =
            (cycle, (at(START), cycle.boundary(1)));
        let (account, _, alarms) = commit(None, &yearly, None, START);
        assert_eq!((account.subscription.unwrap().plan.unwrap().as_str(), alarms), ("pro", vec![]));
        assert_eq!((account.segments.len(), account.segments[0].end), (1, at("2026-12-10T00:00:00Z")));
    }

    #[test]
    fn a_classic_subscription_and_a_double_one_are_alarmed() {
        let mut two = facts("cus_1", vec![pro("sub_1", Status::PastDue, START), pro("sub_2", Status::Active, START)]);
        two.subscriptions[1].flexible = false;
        let (account, _, alarms) = commit(None, &two, None, START);
        assert_eq!(account.subscription.unwrap().id.as_str(), "sub_2");
        assert_eq!(alarms, vec![Alarm::SeveralSubscriptions, Alarm::NotFlexible]);
    }

    #[test]
    fn a_renewal_adds_a_segment_and_a_price_switch_cuts_one() {
        let (account, ..) = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START);
        let renewed = facts("cus_1", vec![pro("sub_1", Status::Active, "2026-12-10T00:00:00Z")]);
        let (account, ..) = commit(Some(&account), &renewed, None, "2026-12-10T00:00:05Z");
        let shown = |account: &Account| {
            account
                .segments
                .iter()
                .map(|segment| format!("{} {} {}", segment.start, segment.end, segment.billed.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            shown(&account),
            ["2026-11-10T00:00:00Z 2026-12-10T00:00:00Z 3", "2026-12-10T00:00:00Z 2027-01-10T00:00:00Z 3"]
        );
        let mut switched = renewed;
        switched.subscriptions[0].items.truncate(2);
        let (account, ..) = commit(Some(&account), &switched, None, "2026-12-20T12:00:00Z");
        let expected = [
            "2026-11-10T00:00:00Z 2026-12-10T00:00:00Z 3",
            "2026-12-10T00:00:00Z 2026-12-20T12:00:00Z 3",
            "2026-12-20T12:00:00Z 2027-01-10T00:00:00Z 1",
        ];
        assert_eq!(shown(&account), expected);
        let (account, ..) = commit(Some(&account), &switched, None, "2026-12-21T12:00:00Z");
        assert_eq!(shown(&account), expected, "and the same facts again change nothing");
        let (kept, ..) = commit(Some(&account), &switched, None, "2027-01-18T23:59:59Z");
        assert_eq!(kept.segments.len(), 3);
        let (account, ..) = commit(Some(&account), &switched, None, "2027-01-19T00:00:00Z");
        assert_eq!(account.segments.len(), 2, "a segment is forgotten 40 days after its end");
    }

    #[test]
    fn usage_is_invoiced_for_good_once_the_invoice_of_its_period_is_no_draft() {
        let mut renewed = facts("cus_1", vec![pro("sub_1", Status::Active, "2026-12-10T00:00:00Z")]);
        let through = |account: &Account| account.final_through.values().map(ToString::to_string).collect::<Vec<_>>();
        let mut account = commit(None, &facts("cus_1", vec![pro("sub_1", Status::Active, START)]), None, START).0;
        assert_eq!(through(&account), [""; 0], "its first invoice is still a draft");
        for (invoice, expected) in [
            (Some(latest("in_1", true, START)), vec![START]),
            (Some(latest("in_2", false, "2026-12-10T00:00:00Z")), vec![START]),
            (None, vec![START]),
            (Some(LatestInvoice { period: None, ..latest("in_2", true, START) }), vec![START]),
            (Some(latest("in_2", true, "2026-12-10T00:00:00Z")), vec!["2026-12-10T00:00:00Z"]),
            // It only ever moves later, whichever invoice is the newest.
            (Some(latest("in_0", true, START)), vec!["2026-12-10T00:00:00Z"]),
        ] {
            renewed.subscriptions[0].latest_invoice = invoice.clone();
            account = commit(Some(&account), &renewed, None, "2026-12-10T01:00:05Z").0;
            assert_eq!(through(&account), expected, "{invoice:?}");
        }
    }

    #[test]
    fn an_invoice_that_does_not_follow_on_tells_nothing_while_an_older_one_may_be_a_draft() {
        let mut renewed = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        renewed.subscriptions[0].latest_invoice = Some(latest("in_1", true, START));
        let account = commit(None, &renewed, None, START).0;
        // An upgrade ten minutes after the renewal is invoiced at once, while the renewal's own invoice waits for late usage.
        let period = Some((at("2026-12-10T00:00:00Z"), at("2026-12-10T00:10:00Z")));
        renewed.subscriptions[0].latest_invoice = Some(LatestInvoice { period, ..latest("in_3", true, START) });
        for (now, expected) in [("2026-12-10T00:10:05Z", START), ("2026-12-13T01:00:00Z", "2026-12-10T00:10:00Z")] {
            let account = commit(Some(&account), &renewed, None, now).0;
            assert_eq!(account.final_through.values().map(ToString::to_string).collect::<Vec<_>>(), [expected], "{now}");
        }
        // Nor does it where nothing is known yet.
        let account = commit(None, &renewed, None, "2026-12-10T00:10:05Z").0;
        assert!(account.final_through.is_empty());
    }

    #[test]
    fn finality_is_kept_for_every_subscription_that_still_has_a_segment_and_no_other() {
        let mut two = facts("cus_1", vec![pro("sub_1", Status::Canceled, START), pro("sub_2", Status::Active, START)]);
        two.subscriptions[0].latest_invoice = Some(latest("in_9", true, START));
        two.subscriptions[1].latest_invoice = Some(latest("in_2", true, START));
        let known = |account: &Account| account.final_through.keys().map(ToString::to_string).collect::<Vec<_>>();
        let (account, ..) = commit(None, &two, None, START);
        assert_eq!(known(&account), ["sub_2"], "nothing was ever counted for the other one");
        let mut one = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        one.subscriptions[0].latest_invoice = Some(latest("in_9", true, START));
        let (account, ..) = commit(None, &one, None, START);
        two.subscriptions[0].ended_at = Some(at("2026-11-15T00:00:00Z"));
        two.subscriptions[1].created = at("2026-11-15T00:00:00Z");
        let (account, ..) = commit(Some(&account), &two, None, "2026-11-15T00:00:05Z");
        assert_eq!(known(&account), ["sub_1", "sub_2"]);
        let (account, ..) = commit(Some(&account), &two, None, "2026-12-24T23:59:59Z");
        assert_eq!(known(&account).len(), 2);
        let (account, ..) = commit(Some(&account), &two, None, "2026-12-25T00:00:00Z");
        assert_eq!(known(&account), ["sub_2"], "forgotten with its last segment");
    }

    #[test]
    fn parked_usage_is_looked_at_again_when_its_user_is_joined_or_its_plan_becomes_known() {
        let recount = |before: Option<&Account>, facts: &CustomerFacts| match decide(
            &prices(),
            before,
            &user("ada"),
            facts,
            &Failures::new(),
            ms("2026-11-12T00:00:00Z"),
        ) {
            Decision::Commit { account, recount, .. } => (recount, *account),
            Decision::SecondClaimant { .. } => panic!("a second claimant"),
        };
        let known = facts("cus_1", vec![pro("sub_1", Status::Active, START)]);
        let mut unknown = known.clone();
        unknown.subscriptions[0].items = vec![item("enterprise_base", START)];
        let (first, account) = recount(None, &known);
        assert!(first && !recount(Some(&account), &known).0 && !recount(Some(&account), &unknown).0);
        let (first, account) = recount(None, &unknown);
        assert!(first && !recount(Some(&account), &unknown).0);
        let (named, account) = recount(Some(&account), &known);
        assert!(named && !recount(Some(&account), &known).0);
    }

    #[test]
    fn a_test_clock_moves_the_accounts_time_and_a_deleted_customer_ends() {
        let mut clocked = past_due();
        clocked.test_clock = Some(at("2026-12-10T02:00:00Z"));
        let (account, ..) = commit(None, &clocked, None, "2026-11-22T12:00:00Z");
        assert_eq!(account.overdue_since().unwrap().to_string(), "2026-12-10T02:00:00Z");
        assert_eq!(account.local_time(at("2026-11-22T12:00:01Z")).to_string(), "2026-12-10T02:00:01Z");
        let mut deleted = facts("cus_1", vec![]);
        deleted.deleted = true;
        let (account, told, _) = commit(Some(&account), &deleted, None, "2026-12-11T00:00:00Z");
        assert_eq!(account.subscription.unwrap().status, Status::Canceled);
        assert_eq!(told, vec![NoticeKind::SubscriptionEnded]);
    }

    #[test]
    fn a_hint_is_skipped_only_if_what_it_tells_was_fetched_since() {
        let fetched = Fetched { at_ms: ms("2026-12-10T03:00:00Z"), before_ms: 0 };
        let known = KnownFailure::At(at("2026-12-10T03:00:00Z"));
        let (nothing, not_open) = (KnownFailure::Nothing, KnownFailure::NotOpen);
        let sent = fetched.at_ms - 2_000;
        assert!(may_skip(fetched, nothing, None, sent, false));
        assert!(!may_skip(fetched, nothing, None, sent + 1, false), "less than 2 s after it was sent");
        assert!(!may_skip(fetched, nothing, None, sent, true), "a replay");
        let earlier = failed("in_1", "2026-12-10T01:00:00Z");
        assert!(!may_skip(fetched, known, Some(&earlier), sent, false), "a failure that begins grace earlier");
        assert!(may_skip(fetched, known, Some(&failed("in_1", "2026-12-10T03:00:00Z")), sent, false));
        assert!(may_skip(fetched, not_open, Some(&earlier), sent, false), "an invoice that was not open then");
        assert!(!may_skip(fetched, nothing, Some(&earlier), sent, false), "a bank may have been asked then");
    }

    #[test]
    fn a_hint_that_a_fetch_came_too_early_for_waits_2_s_and_after_a_burst_5() {
        let now = ms("2026-12-10T03:00:00Z");
        let quiet = Fetched { at_ms: now - 5_000, before_ms: 0 };
        assert_eq!(quiet.rests_until_ms(now - 100, now), None, "the first is fetched for at once");
        let first = Fetched { at_ms: now, before_ms: now - 7_000 };
        assert_eq!(first.rests_until_ms(now - 100, now), Some(now + 1_900));
        assert_eq!(first.rests_until_ms(now - 100, now + 1_900), None);
        let second = Fetched { at_ms: now, before_ms: now - 6_999 };
        assert_eq!(second.rests_until_ms(now - 100, now), Some(now + 5_000));
        assert_eq!(second.rests_until_ms(now - 100, now + 5_000), None);
        assert_eq!(first.rests_until_ms(i64::MAX, now), Some(now + 5_000), "by a clock that is far ahead");
    }

    /// The fetches that hints cost which are handled one after the other, each so long after it was sent. All in milliseconds; the
    /// last fetch before them is so long ago.
    fn fetches(mut sent: Vec<i64>, delay: i64, last: i64) -> usize {
        sent.sort_unstable();
        let begin = 1_000_000;
        let mut fetched = Fetched { at_ms: begin - last, before_ms: 0 };
        let (mut now, mut fetches) = (begin, 0);
        for sent in sent.iter().map(|sent| begin + sent) {
            now = now.max(sent + delay);
            while let Some(until) =
                Some(fetched).filter(|fetched| !fetched.has_seen(sent)).and_then(|f| f.rests_until_ms(sent, now))
            {
                now = until;
            }
            if !fetched.has_seen(sent) {
                fetched = Fetched { at_ms: now, before_ms: fetched.at_ms };
                fetches += 1;
            }
        }
        fetches
    }

    #[test]
    fn a_fetch_that_waited_for_a_bursts_later_half_served_it() {
        assert_eq!(fetches(vec![0, 3_036, 4_041, 4_042], 0, 5_000), 3, "the second one waits until 5,036");
    }

    proptest::proptest! {
        /// Whenever the hints of five seconds are sent and handled, one after the other: three fetches at most.
        #[test]
        fn a_burst_of_five_seconds_costs_three_fetches(
            // Few hints leave gaps that many do not.
            sent in proptest::prop_oneof![
                proptest::collection::vec(0_i64..5_000, 1..6), proptest::collection::vec(0_i64..5_000, 1..60),
            ],
            delay in 0_i64..3_000,
            last in proptest::prop_oneof![0_i64..8_000, 0_i64..100_000],
        ) {
            let fetches = fetches(sent, delay, last);
            proptest::prop_assert!(fetches <= 3, "{fetches}");
        }
    }
}
