//! What Stripe's present state makes of an account: `decide`, a pure function of the account, the facts and the moment.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    account::{Account, Announced, Overdue, Subscription},
    facts::{CustomerFacts, ItemFacts, Status, SubscriptionFacts},
    hint::PaymentFailure,
    id::{CustomerId, InvoiceId, MeterId, PlanId, UserId},
    notice::{self, Notice},
    price_list::PriceList,
    segment::Segment,
    time::{DAY_SECS, EpochSecs},
};

/// How long a segment is kept after its end: Stripe takes meter events up to 35 days old.
const SEGMENT_KEPT_SECS: i64 = 40 * DAY_SECS;

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
    },
    /// The user is bound to another customer with a live subscription: this one is quarantined and alarmed.
    SecondClaimant {
        /// The customer that keeps the user.
        held_by: CustomerId,
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
}

/// The user that the customer belongs to: by a subscription's metadata, then the customer's, then a completed checkout
/// session's `client_reference_id` (the contract, 3.1).
#[must_use]
pub fn joined_user(facts: &CustomerFacts) -> Option<&UserId> {
    by_rank(facts)
        .into_iter()
        .find_map(|subscription| subscription.user_id.as_ref())
        .or(facts.user_id.as_ref())
        .or_else(|| facts.checkout_users.first())
}

/// What Stripe's present state makes of the account that was read before it.
///
/// `fetch_began_ms` is when the fetch began, by our own clock. `failure` is the payment failure that the hint reports, if it
/// does: the one thing that Stripe's present state does not tell.
#[must_use]
pub fn decide(
    prices: &PriceList,
    before: Option<&Account>,
    user_id: &UserId,
    facts: &CustomerFacts,
    failure: Option<&PaymentFailure>,
    fetch_began_ms: i64,
) -> Decision {
    let same_customer = before.filter(|account| account.customer_id == facts.customer);
    if let Some(account) = before
        && same_customer.is_none()
        && account.has_live_subscription()
    {
        return Decision::SecondClaimant { held_by: account.customer_id.clone() };
    }
    let mut alarms = Vec::new();
    let real_now = EpochSecs::from_ms(fetch_began_ms);
    let clock_offset_secs = facts.test_clock.map_or(0, |clock| clock.secs_since(real_now));
    let now = real_now.plus_secs(clock_offset_secs);

    let chosen = by_rank(facts).into_iter().next();
    if facts.subscriptions.iter().filter(|subscription| subscription.status.is_live()).count() > 1 {
        alarms.push(Alarm::SeveralSubscriptions);
    }
    let previous = same_customer.and_then(|account| account.subscription.as_ref());
    let subscription = match chosen {
        Some(chosen) => subscription(prices, chosen, previous, &mut alarms),
        // A deleted customer's subscriptions are cancelled with it, and Stripe no longer shows them.
        None if facts.deleted => previous.cloned().map(|last| ended(last, now)),
        None => None,
    };
    let overdue = overdue(same_customer, facts, chosen, failure, now);
    let segments = segments(prices, before, facts, chosen, subscription.as_ref(), now);

    let mut account = Account {
        user_id: user_id.clone(),
        version: before.map_or(0, |account| account.version).saturating_add(1),
        customer_id: facts.customer.clone(),
        subscription,
        overdue,
        segments,
        clock_offset_secs,
        fetched_at_ms: fetch_began_ms,
        announced: before.map_or_else(Announced::default, |account| account.announced.clone()),
    };
    let (announced, notices) = notice::due(&account, prices, real_now);
    account.announced = announced;
    Decision::Commit { account: Box::new(account), notices, alarms }
}

/// Whether a hint may be skipped: what it points at was fetched at least 2 s after it was sent. A failure that would begin a
/// grace period earlier is never skipped, and neither is a replay. Only an optimisation: not skipping is always right.
#[must_use]
pub fn may_skip(account: &Account, failure: Option<&PaymentFailure>, sent_at_ms: i64, replay: bool) -> bool {
    const MARGIN_MS: i64 = 2_000;
    let seen = account.fetched_at_ms >= sent_at_ms.saturating_add(MARGIN_MS);
    let tells_nothing_new = failure.is_none_or(|failure| {
        account.overdue.get(&failure.invoice).is_none_or(|overdue| overdue.since <= failure.at)
    });
    seen && tells_nothing_new && !replay
}

fn by_rank(facts: &CustomerFacts) -> Vec<&SubscriptionFacts> {
    let mut subscriptions: Vec<_> = facts.subscriptions.iter().collect();
    subscriptions.sort_by(|a, b| {
        let key = |subscription: &SubscriptionFacts| (subscription.status.rank(), std::cmp::Reverse(subscription.created));
        key(a).cmp(&key(b)).then_with(|| a.id.cmp(&b.id))
    });
    subscriptions
}

fn subscription(
    prices: &PriceList,
    facts: &SubscriptionFacts,
    previous: Option<&Subscription>,
    alarms: &mut Vec<Alarm>,
) -> Option<Subscription> {
    let previous = previous.filter(|last| last.id == facts.id);
    let status = match &facts.status {
        Status::Other(status) => {
            alarms.push(Alarm::UnknownStatus { status: status.clone() });
            // As it was: without a last known status there is nothing to keep, so there is no subscription yet.
            previous?.status.clone()
        }
        known => known.clone(),
    };
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

/// For each open invoice of the subscription whose payment was attempted: its earliest known failure (G2).
fn overdue(
    before: Option<&Account>,
    facts: &CustomerFacts,
    chosen: Option<&SubscriptionFacts>,
    failure: Option<&PaymentFailure>,
    now: EpochSecs,
) -> BTreeMap<InvoiceId, Overdue> {
    let Some(chosen) = chosen else { return BTreeMap::new() };
    let known = |invoice: &InvoiceId| before.and_then(|account| account.overdue.get(invoice)).map(|overdue| overdue.since);
    let mut overdue: BTreeMap<InvoiceId, Overdue> = facts
        .open_invoices
        .iter()
        .filter(|invoice| invoice.subscription.as_ref() == Some(&chosen.id))
        .filter_map(|invoice| {
            // A failure cannot be older than its invoice nor lie ahead: an event that says so was stamped by another clock
            // than the invoice (a test clock's), and then the fetch's own moment is what is known.
            let reported = failure
                .filter(|failure| failure.invoice == invoice.id)
                .map(|failure| if failure.at < invoice.created || failure.at > now { now } else { failure.at });
            let fetched = invoice.attempted.then_some(now);
            let since = [known(&invoice.id), reported, fetched].into_iter().flatten().min()?;
            Some((invoice.id.clone(), Overdue { since }))
        })
        .collect();
    if overdue.is_empty() && matches!(chosen.status, Status::PastDue | Status::Unpaid) {
        // Overdue without an open invoice (written off, or still a draft): the grace period must begin somewhere.
        if let Some(invoice) = &chosen.latest_invoice {
            overdue.insert(invoice.clone(), Overdue { since: known(invoice).unwrap_or(now) });
        }
    }
    overdue
}

/// The segments that late usage may still fall into, with the present one as Stripe has it.
fn segments(
    prices: &PriceList,
    before: Option<&Account>,
    facts: &CustomerFacts,
    chosen: Option<&SubscriptionFacts>,
    subscription: Option<&Subscription>,
    now: EpochSecs,
) -> Vec<Segment> {
    let mut segments = before.map(|account| account.segments.clone()).unwrap_or_default();
    match (chosen, subscription) {
        (Some(chosen), Some(subscription)) if subscription.status.is_live() => {
            if let Some(present) = present_segment(prices, facts, chosen, subscription) {
                renew_or_switch(&mut segments, present, now);
            }
        }
        (_, Some(subscription)) if subscription.status == Status::Canceled => {
            let end = subscription.ended_at.unwrap_or(now);
            if let Some(last) = segments.last_mut()
                && last.subscription == subscription.id
            {
                last.end = if last.renews.is_some() { end.max(last.start) } else { last.end.min(end).max(last.start) };
                last.renews = None;
            }
        }
        _ => {}
    }
    segments.retain(|segment| segment.renews.is_some() || now.secs_since(segment.end) < SEGMENT_KEPT_SECS);
    segments
}

fn present_segment(
    prices: &PriceList,
    facts: &CustomerFacts,
    chosen: &SubscriptionFacts,
    subscription: &Subscription,
) -> Option<Segment> {
    // The metered prices share one interval, so any of them tells the period; without one, the flat price does.
    let item = chosen.items.iter().find(|item| item.metered).or_else(|| chosen.items.first())?;
    let billed: BTreeSet<MeterId> = chosen
        .items
        .iter()
        .filter_map(|item| prices.price(item.lookup_key.as_deref()?)?.1.meter().cloned())
        .collect();
    let (start, end) = item.period;
    Some(Segment {
        subscription: chosen.id.clone(),
        customer: facts.customer.clone(),
        plan: subscription.plan.clone(),
        billed,
        start,
        end,
        renews: Some(item.cycle),
    })
}

fn renew_or_switch(segments: &mut Vec<Segment>, mut present: Segment, now: EpochSecs) {
    let Some(last) = segments.last_mut() else {
        segments.push(present);
        return;
    };
    let same_prices = last.subscription == present.subscription && last.billed == present.billed;
    if same_prices && present.start < last.end {
        // The same period, or one that was cut by a price switch: its start stays, its end is what Stripe says now.
        last.end = present.end;
        last.plan = present.plan;
        last.renews = present.renews;
        return;
    }
    if last.subscription == present.subscription && present.start < last.end {
        // Other prices within the period: what was counted before stays where it was, from now on the new segment counts.
        present.start = now.max(last.start);
    }
    if last.end > present.start {
        last.end = present.start.max(last.start);
    }
    // Renewals between the last segment and this one are still reached by the last one's cycle.
    if last.subscription != present.subscription {
        last.renews = None;
    }
    segments.push(present);
}
