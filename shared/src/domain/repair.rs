//! Repair: what is stored against what Stripe lists, and what a webhook endpoint is against what it should be.
//!
//! A comparison only finds customers to be looked at; `sync` fetches them and decides, as for every hint. So a difference that is
//! none costs a fetch, and nothing else.

use std::fmt;

use super::{
    account::{Account, Subscription},
    facts::{Status, SubscriptionFacts},
    hint::Hint,
    id::{CustomerId, InvoiceId, UserId},
    price_list::PriceList,
    sync::{self, Fetched, KnownFailure},
    time::{EpochSecs, MINUTE_SECS},
};

/// What changed more recently than this may still be on its way to us.
pub const ON_ITS_WAY_SECS: i64 = 10 * MINUTE_SECS;
/// By so much Stripe's clock and ours may differ.
const CLOCKS_DIFFER_SECS: i64 = MINUTE_SECS;

/// A subscription as Stripe lists it among all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedSubscription {
    /// Whose it is.
    pub customer: CustomerId,
    /// Whether that customer was deleted, so that a look at it shows nothing of this any more.
    pub customer_deleted: bool,
    /// The user that the customer's own metadata name.
    pub customer_user: Option<UserId>,
    /// The subscription itself.
    pub facts: SubscriptionFacts,
    /// Whether it has more items than Stripe lists with it, so that neither its plan nor its period's end is known.
    pub has_more_items: bool,
    /// How its newest invoice stands, if it has one and Stripe showed it.
    pub invoice: Option<ListedInvoice>,
    /// The latest moment at which it visibly changed: it was made, renewed, invoiced, cancelled, or it ended.
    pub changed_at: EpochSecs,
}

/// A subscription's newest invoice, as it is listed with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedInvoice {
    /// Its id.
    pub id: InvoiceId,
    /// How it stands.
    pub standing: InvoiceStanding,
}

/// How an invoice stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvoiceStanding {
    /// Open, and a payment was attempted.
    Overdue,
    /// Paid or voided.
    Settled,
    /// Written off: never paid, and still owed where the subscription is over.
    WrittenOff,
    /// Anything else: a draft, or open and not yet tried.
    Other,
}

/// What is stored of a listed subscription's customer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<'a> {
    /// Nothing: it was never heard of.
    Nothing,
    /// It named no user when it was looked at.
    NoUser,
    /// Its claim was refused; that is alarmed already, and looked at again when the holder's subscription ends.
    Refused,
    /// It belongs to this user, with this account.
    Joined(&'a UserId, Option<&'a Account>),
}

/// Why what is stored cannot come from what Stripe shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// The customer was never heard of.
    UnknownCustomer,
    /// The customer named no user, and its subscription names one now.
    UserNamed,
    /// The subscription names another user than the one it is joined with.
    OtherUser,
    /// The customer is joined with a user who has no account.
    NoAccount,
    /// The user is at another customer, and this one has a live subscription.
    OtherCustomer,
    /// The subscription changed after the account was last fetched.
    NotSeen,
    /// Another subscription counts in the account than the one that should.
    OtherSubscription,
    /// More than one subscription is live; which one counts may have changed.
    AnotherLiveSubscription,
    /// The status is another one.
    Status,
    /// The prices belong to another plan.
    Plan,
    /// The trial ends at another time.
    TrialEnd,
    /// It is to be cancelled at another time, or no longer, or now.
    CancelAt,
    /// It ended at another time.
    EndedAt,
    /// Something else of the subscription.
    Subscription,
    /// A payment failed, and the account does not know.
    InvoiceOverdue,
    /// An invoice that the account knows as overdue is settled.
    InvoiceSettled,
}

impl Difference {
    /// Its name in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnknownCustomer => "unknown_customer",
            Self::UserNamed => "user_named",
            Self::OtherUser => "other_user",
            Self::NoAccount => "no_account",
            Self::OtherCustomer => "other_customer",
            Self::NotSeen => "not_seen",
            Self::OtherSubscription => "other_subscription",
            Self::AnotherLiveSubscription => "another_live_subscription",
            Self::Status => "status",
            Self::Plan => "plan",
            Self::TrialEnd => "trial_end",
            Self::CancelAt => "cancel_at",
            Self::EndedAt => "ended_at",
            Self::Subscription => "subscription",
            Self::InvoiceOverdue => "invoice_overdue",
            Self::InvoiceSettled => "invoice_settled",
        }
    }
}

/// Whether what is stored could come from what Stripe shows, and if not, why. The list was asked for at `listed_at_ms`, in
/// milliseconds since 1970, before what is stored was read.
///
/// What is newer than the list, or changed within the last ten minutes, is no difference: its event may be on its way.
#[must_use]
pub fn differs(known: Known<'_>, listed: &ListedSubscription, prices: &PriceList, listed_at_ms: i64) -> Option<Difference> {
    if EpochSecs::from_ms(listed_at_ms).secs_since(listed.changed_at) < ON_ITS_WAY_SECS {
        return None;
    }
    let facts = &listed.facts;
    let is_live = facts.status.is_live();
    let names_user = facts.user_id.is_some() || listed.customer_user.is_some();
    // A deleted customer's subscriptions end with it, and keep saying whose they were. Only the end may have been missed.
    if listed.customer_deleted {
        let Known::Joined(_, Some(account)) = known else { return None };
        let is_missed = account.customer_id == listed.customer && account.has_live_subscription();
        return is_missed.then_some(Difference::Status);
    }
    let (user, account) = match known {
        // One that is over and names nobody concerns nobody.
        Known::Nothing => return (is_live || names_user).then_some(Difference::UnknownCustomer),
        Known::NoUser => return names_user.then_some(Difference::UserNamed),
        Known::Refused => return None,
        Known::Joined(_, None) => return Some(Difference::NoAccount),
        Known::Joined(user, Some(account)) => (user, account),
    };
    if account.fetched_at_ms >= listed_at_ms {
        return None;
    }
    if account.customer_id != listed.customer {
        return is_live.then_some(Difference::OtherCustomer);
    }
    if listed.changed_at.secs_since(EpochSecs::from_ms(account.fetched_at_ms)) > CLOCKS_DIFFER_SECS {
        return Some(Difference::NotSeen);
    }
    match &account.subscription {
        // One that is in no state we know counts for nothing until it is.
        None => (!matches!(facts.status, Status::Other(_))).then_some(Difference::OtherSubscription),
        Some(stored) if stored.id != facts.id => other_subscription(stored, facts),
        Some(_) if facts.user_id.as_ref().is_some_and(|named| named != user) => Some(Difference::OtherUser),
        Some(_) if account.paused_by != sync::paused_by(Some(account), Some(facts)) => Some(Difference::Status),
        Some(stored) => same_subscription(stored, listed, prices).or_else(|| invoice(account, listed)),
    }
}

/// Whether the other one should count. When the stored one was made is not stored: between equals the newer one counts, and one
/// that is newer than the fetch was found already.
fn other_subscription(stored: &Subscription, facts: &SubscriptionFacts) -> Option<Difference> {
    // One of a status newer than we know, and of which no other is known, does not count.
    let counts = !matches!(facts.status, Status::Other(_));
    if counts && facts.status.rank() < stored.status.rank() {
        return Some(Difference::OtherSubscription);
    }
    (facts.status.is_live() && stored.status.is_live()).then_some(Difference::AnotherLiveSubscription)
}

fn same_subscription(stored: &Subscription, listed: &ListedSubscription, prices: &PriceList) -> Option<Difference> {
    // What `sync` would make of it, so that nothing can be forgotten here.
    let mut present = sync::subscription(prices, &listed.facts, Some(stored), &mut Vec::new())?;
    if listed.has_more_items {
        // `sync` sees all of its items, and these are made of them.
        present.plan.clone_from(&stored.plan);
        present.cancel_at = stored.cancel_at;
    }
    if present == *stored {
        return None;
    }
    let named = [
        (present.status == stored.status, Difference::Status),
        (present.plan == stored.plan, Difference::Plan),
        (present.ended_at == stored.ended_at, Difference::EndedAt),
        (present.cancel_at == stored.cancel_at, Difference::CancelAt),
        (present.trial_end == stored.trial_end, Difference::TrialEnd),
    ];
    let differing = named.into_iter().find(|(same, _)| !same).map(|(_, difference)| difference);
    Some(differing.unwrap_or(Difference::Subscription))
}

fn invoice(account: &Account, listed: &ListedSubscription) -> Option<Difference> {
    let invoice = listed.invoice.as_ref()?;
    let is_known = account.overdue.contains_key(&invoice.id);
    // An overdue subscription keeps the beginning of its grace period under its newest invoice, even where that was written off.
    let is_kept = matches!(listed.facts.status, Status::PastDue | Status::Unpaid);
    let is_over = listed.facts.status == Status::Canceled;
    match invoice.standing {
        // While its subscription runs, a bank that was asked has yet to answer; and of the last invoice of one that is over only
        // its event tells that it failed.
        InvoiceStanding::Overdue if !is_known && !is_over && !listed.facts.status.runs() => Some(Difference::InvoiceOverdue),
        InvoiceStanding::Settled if is_known && !is_kept => Some(Difference::InvoiceSettled),
        InvoiceStanding::WrittenOff if is_known && !is_kept && !is_over => Some(Difference::InvoiceSettled),
        _ => None,
    }
}

/// Whether the account was fetched after an event of its customer, so that the event was not missed although nobody marked it:
/// `sync` skips what it knows already.
///
/// Refunds and disputes are told by their events alone, and a test clock's event is about many customers.
#[must_use]
pub fn was_seen(account: &Account, event: &Hint) -> bool {
    let told_by_itself = event.kind.starts_with("charge.") || event.is_about_a_test_clock() || event.is_about_rejected_usage();
    let created_ms = event.created.as_secs().saturating_mul(1000);
    let failure = event.payment_failure();
    // An invoice that is not overdue was not open then, or a bank is being asked. Which it is only `sync` knows, and it is told.
    let overdue = failure.as_ref().and_then(|failure| account.overdue.get(&failure.invoice));
    let known = overdue.map_or(KnownFailure::NotOpen, |overdue| KnownFailure::At(overdue.since));
    let fetched = Fetched { at_ms: account.fetched_at_ms, before_ms: 0 };
    !told_by_itself && sync::may_skip(fetched, known, failure.as_ref(), created_ms, false)
}

/// A webhook endpoint at Stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Stripe's id of it.
    pub id: String,
    /// Where it delivers to.
    pub url: String,
    /// The API version its events are in; `None` for whatever the Stripe account's is.
    pub api_version: Option<String>,
    /// Whether it is switched on.
    pub enabled: bool,
    /// The events it asks for; `*` for all.
    pub events: Vec<String>,
}

/// What is wrong with the endpoint that should deliver to us. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndpointProblem {
    /// There is none for our URL.
    Missing,
    /// It is switched off.
    Disabled(String),
    /// Its events are in another API version.
    OtherVersion(String),
    /// It does not ask for all events that are of use.
    LacksEvents(String, Vec<&'static str>),
}

impl EndpointProblem {
    /// Whether events may be lost without being listed as undelivered, since they were never meant for us.
    #[must_use]
    pub fn loses_events(&self) -> bool {
        !matches!(self, Self::OtherVersion(_))
    }
}

impl fmt::Display for EndpointProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "Stripe has no webhook endpoint for this deployment's URL: make one with cargo till setup, or correct WebhookUrl",
            ),
            Self::Disabled(id) => {
                write!(
                    f,
                    "the webhook endpoint {id} is switched off: mend what made it fail, then switch it on with cargo till setup"
                )
            }
            Self::OtherVersion(id) => {
                write!(
                    f,
                    "the webhook endpoint {id} is of another API version than this deployment's: replace it with cargo till setup"
                )
            }
            Self::LacksEvents(id, events) => {
                write!(f, "the webhook endpoint {id} does not ask for {}: correct it with cargo till setup", events.join(", "))
            }
        }
    }
}

/// What is wrong with the endpoints for our URL: nothing if any of them is as it should be, as while one replaces another. Of
/// several that are not, the best one's problem.
#[must_use]
pub fn endpoint_problem(
    url: &str,
    endpoints: &[Endpoint],
    api_version: &str,
    wanted: &[&'static str],
) -> Option<EndpointProblem> {
    let problem = |endpoint: &Endpoint| {
        let has = |event: &str| endpoint.events.iter().any(|asked| asked == "*" || asked == event);
        let lacking: Vec<&'static str> = wanted.iter().copied().filter(|event| !has(event)).collect();
        if !endpoint.enabled {
            Some((2, EndpointProblem::Disabled(endpoint.id.clone())))
        } else if !lacking.is_empty() {
            Some((1, EndpointProblem::LacksEvents(endpoint.id.clone(), lacking)))
        } else if endpoint.api_version.as_deref() != Some(api_version) {
            Some((0, EndpointProblem::OtherVersion(endpoint.id.clone())))
        } else {
            None
        }
    };
    let mut least: Option<(u8, EndpointProblem)> = None;
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.url.trim_end_matches('/') == url.trim_end_matches('/')) {
        let (rank, problem) = problem(endpoint)?;
        if least.as_ref().is_none_or(|(least, _)| rank < *least) {
            least = Some((rank, problem));
        }
    }
    Some(least.map_or(EndpointProblem::Missing, |(_, problem)| problem))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::{
        account::{Overdue, tests::subscribed},
        facts::{ItemFacts, PausedBy},
        hint::{HINT_VERSION, SNAPSHOT_EVENTS},
        id::{EventId, SubscriptionId},
        period::Cycle,
        price_list::Interval,
    };

    const START: &str = "2026-11-10T00:00:00Z";
    const LISTED: &str = "2026-11-20T12:00:00Z";

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    /// What Stripe lists of the subscription of [`subscribed`].
    fn listed() -> ListedSubscription {
        let cycle = Cycle { anchor: at(START), interval: Interval::Month, count: 1 };
        let item = |lookup_key: &str, metered| ItemFacts {
            lookup_key: Some(lookup_key.to_owned()),
            metered,
            period: (cycle.boundary(0), cycle.boundary(1)),
            cycle,
        };
        ListedSubscription {
            customer: CustomerId::new("cus_1").unwrap(),
            customer_deleted: false,
            customer_user: None,
            has_more_items: false,
            facts: SubscriptionFacts {
                id: SubscriptionId::new("sub_1").unwrap(),
                status: Status::Active,
                paused_by: None,
                created: at(START),
                user_id: Some(UserId::new("ada").unwrap()),
                items: vec![item("pro_base", false), item("pro_requests", true)],
                billing_cycle_anchor: at(START),
                trial_end: None,
                cancel_at: None,
                ended_at: None,
                latest_invoice: None,
                flexible: true,
            },
            invoice: None,
            changed_at: at(START),
        }
    }

    fn found(account: &Account, listed: &ListedSubscription) -> Option<Difference> {
        let known = Known::Joined(&account.user_id, Some(account));
        differs(known, listed, &PriceList::shipped().unwrap(), at(LISTED).as_secs() * 1000)
    }

    fn with(change: impl FnOnce(&mut ListedSubscription)) -> Option<Difference> {
        let mut changed = listed();
        change(&mut changed);
        found(&subscribed(START), &changed)
    }

    #[test]
    fn what_could_come_from_what_stripe_shows_is_no_difference() {
        assert_eq!(with(|_| ()), None);
        assert_eq!(with(|listed| listed.facts.user_id = None), None, "it may be the customer that names the user");
        assert_eq!(with(|listed| listed.facts.status = Status::Other("new".to_owned())), None, "the last known one is kept");
        assert_eq!(with(|listed| listed.facts.items[0].lookup_key = Some("unheard_of".to_owned())), None, "so is the plan");
    }

    #[test]
    fn each_difference_of_the_subscription_that_counts_is_found_and_named() {
        let later = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(with(|listed| listed.facts.status = Status::Canceled), Some(Difference::Status));
        assert_eq!(with(|listed| listed.facts.cancel_at = later), Some(Difference::CancelAt));
        assert_eq!(with(|listed| listed.facts.trial_end = later), Some(Difference::TrialEnd));
        assert_eq!(with(|listed| listed.facts.ended_at = later), Some(Difference::EndedAt));
        assert_eq!(with(|listed| listed.facts.flexible = false), Some(Difference::Subscription));
        assert_eq!(with(|listed| listed.facts.user_id = Some(UserId::new("bob").unwrap())), Some(Difference::OtherUser));
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().plan = None;
        assert_eq!(found(&account, &listed()), Some(Difference::Plan));
        account.subscription = None;
        assert_eq!(found(&account, &listed()), Some(Difference::OtherSubscription));
        let mut strange = listed();
        strange.facts.status = Status::Other("new".to_owned());
        assert_eq!(found(&account, &strange), None);
    }

    #[test]
    fn why_a_subscription_is_paused_is_compared_too() {
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().status = Status::Paused;
        account.paused_by = Some(PausedBy::FinalPaymentFailure);
        let mut paused = listed();
        paused.facts.status = Status::Paused;
        for (paused_by, difference) in
            [(Some(PausedBy::FinalPaymentFailure), None), (Some(PausedBy::from("asked".to_owned())), Some(Difference::Status))]
        {
            paused.facts.paused_by = paused_by;
            assert_eq!(found(&account, &paused), difference);
        }
    }

    #[test]
    fn what_is_made_of_items_that_are_not_all_listed_is_no_difference() {
        let of_some_items = |listed: &mut ListedSubscription| {
            listed.has_more_items = true;
            listed.facts.cancel_at = Some(at("2026-12-10T00:00:00Z"));
        };
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().plan = None;
        let mut shown = listed();
        of_some_items(&mut shown);
        assert_eq!(found(&account, &shown), None);
        let cancelled = |listed: &mut ListedSubscription| {
            of_some_items(listed);
            listed.facts.status = Status::Canceled;
        };
        assert_eq!(with(cancelled), Some(Difference::Status), "the rest is compared");
    }

    #[test]
    fn an_invoice_that_is_overdue_or_settled_without_our_knowing_is_found() {
        let invoice = |standing| Some(ListedInvoice { id: InvoiceId::new("in_1").unwrap(), standing });
        let overdue = |listed: &mut ListedSubscription| listed.invoice = invoice(InvoiceStanding::Overdue);
        assert_eq!(with(overdue), None, "while the subscription runs, a bank has yet to answer");
        let mut past_due = subscribed(START);
        past_due.subscription.as_mut().unwrap().status = Status::PastDue;
        let mut unpaid = listed();
        unpaid.facts.status = Status::PastDue;
        assert_eq!(found(&past_due, &unpaid), None);
        overdue(&mut unpaid);
        assert_eq!(found(&past_due, &unpaid), Some(Difference::InvoiceOverdue));
        assert_eq!(with(|listed| listed.invoice = invoice(InvoiceStanding::Other)), None);
        assert_eq!(with(|listed| listed.invoice = invoice(InvoiceStanding::Settled)), None);
        let mut account = subscribed(START);
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at(START) });
        let mut paid = listed();
        paid.invoice = invoice(InvoiceStanding::Settled);
        assert_eq!(found(&account, &paid), Some(Difference::InvoiceSettled));
        paid.invoice = invoice(InvoiceStanding::Overdue);
        assert_eq!(found(&account, &paid), None);
        paid.invoice = invoice(InvoiceStanding::WrittenOff);
        assert_eq!(found(&account, &paid), Some(Difference::InvoiceSettled), "of one that runs it is forgiven");
        // Written off, and overdue all the same.
        for (status, standing) in [
            (Status::PastDue, InvoiceStanding::Settled),
            (Status::PastDue, InvoiceStanding::WrittenOff),
            (Status::Canceled, InvoiceStanding::WrittenOff),
        ] {
            (paid.invoice, paid.facts.status) = (invoice(standing), status.clone());
            account.subscription.as_mut().unwrap().status = status;
            assert_eq!(found(&account, &paid), None, "{standing:?}");
        }
        paid.invoice = invoice(InvoiceStanding::Settled);
        assert_eq!(found(&account, &paid), Some(Difference::InvoiceSettled));
        // Of the last invoice of one that is over a bank may still be asked.
        (paid.invoice, account.overdue) = (invoice(InvoiceStanding::Overdue), std::collections::BTreeMap::new());
        assert_eq!(found(&account, &paid), None);
    }

    #[test]
    fn another_subscription_is_a_difference_if_it_should_count_or_both_are_live() {
        let other = |status| {
            with(|listed| {
                listed.facts.id = SubscriptionId::new("sub_2").unwrap();
                listed.facts.status = status;
            })
        };
        assert_eq!(other(Status::Active), Some(Difference::AnotherLiveSubscription));
        assert_eq!(other(Status::PastDue), Some(Difference::AnotherLiveSubscription));
        assert_eq!(other(Status::Canceled), None);
        assert_eq!(other(Status::Incomplete), None);
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().id = SubscriptionId::new("sub_0").unwrap();
        account.subscription.as_mut().unwrap().status = Status::Canceled;
        assert_eq!(found(&account, &listed()), Some(Difference::OtherSubscription));
    }

    #[test]
    fn what_changed_after_the_fetch_is_not_seen_unless_it_may_be_on_its_way() {
        let changed = |at_: &str| with(|listed| listed.changed_at = at(at_));
        assert_eq!(changed("2026-11-10T00:01:00Z"), None, "by so much two clocks may differ");
        assert_eq!(changed("2026-11-10T00:01:01Z"), Some(Difference::NotSeen));
        assert_eq!(changed("2026-11-20T11:50:00Z"), Some(Difference::NotSeen));
        assert_eq!(changed("2026-11-20T11:50:01Z"), None);
        // A cancellation of just now.
        let mut cancelled = listed();
        cancelled.facts.status = Status::Canceled;
        cancelled.changed_at = at("2026-11-20T11:59:00Z");
        assert_eq!(found(&subscribed(START), &cancelled), None);
    }

    #[test]
    fn an_account_that_was_fetched_after_the_list_is_newer_than_it() {
        let mut account = subscribed(START);
        account.subscription.as_mut().unwrap().status = Status::Canceled;
        account.fetched_at_ms = at(LISTED).as_secs() * 1000 - 1;
        assert_eq!(found(&account, &listed()), Some(Difference::Status));
        account.fetched_at_ms += 1;
        assert_eq!(found(&account, &listed()), None);
    }

    #[test]
    fn a_customer_that_is_not_joined_is_a_difference_if_it_concerns_a_user() {
        let prices = PriceList::shipped().unwrap();
        let user = UserId::new("ada").unwrap();
        let (named, mut nameless) = (listed(), listed());
        nameless.facts.user_id = None;
        let mut over = nameless.clone();
        over.facts.status = Status::Canceled;
        let mut named_by_customer = nameless.clone();
        named_by_customer.customer_user = Some(user.clone());
        let found_now = differs(Known::NoUser, &named_by_customer, &prices, at(LISTED).as_secs() * 1000);
        assert_eq!(found_now, Some(Difference::UserNamed));
        let mut named_and_over = named.clone();
        named_and_over.facts.status = Status::Canceled;
        for (known, expected) in [
            (Known::Nothing, [Some(Difference::UnknownCustomer), Some(Difference::UnknownCustomer), None]),
            (Known::NoUser, [Some(Difference::UserNamed), None, None]),
            (Known::Refused, [None, None, None]),
            (Known::Joined(&user, None), [Some(Difference::NoAccount), Some(Difference::NoAccount), Some(Difference::NoAccount)]),
        ] {
            let differing = [&named, &nameless, &over].map(|listed| differs(known, listed, &prices, at(LISTED).as_secs() * 1000));
            assert_eq!(differing, expected, "{known:?}");
        }
        let differing = differs(Known::Nothing, &named_and_over, &prices, at(LISTED).as_secs() * 1000);
        assert_eq!(differing, Some(Difference::UnknownCustomer));
        let mut moved = subscribed(START);
        moved.customer_id = CustomerId::new("cus_2").unwrap();
        assert_eq!(found(&moved, &named), Some(Difference::OtherCustomer));
        assert_eq!(found(&moved, &named_and_over), None);
    }

    #[test]
    fn of_a_deleted_customer_only_its_end_may_have_been_missed() {
        let mut gone = listed();
        gone.customer_deleted = true;
        gone.facts.status = Status::Canceled;
        gone.facts.ended_at = Some(at("2026-11-11T00:00:00Z"));
        let mut account = subscribed(START);
        assert_eq!(found(&account, &gone), Some(Difference::Status));
        // It ended for us when it was looked at, and at Stripe when it was deleted.
        let subscription = account.subscription.as_mut().unwrap();
        (subscription.status, subscription.ended_at) = (Status::Canceled, Some(at("2026-11-11T00:00:09Z")));
        assert_eq!(found(&account, &gone), None);
        let prices = PriceList::shipped().unwrap();
        let user = UserId::new("ada").unwrap();
        for known in [Known::Nothing, Known::NoUser, Known::Refused, Known::Joined(&user, None)] {
            assert_eq!(differs(known, &gone, &prices, at(LISTED).as_secs() * 1000), None, "{known:?}");
        }
    }

    #[test]
    fn an_event_was_seen_if_its_customer_was_fetched_since() {
        let event = |kind: &str, created: EpochSecs| Hint {
            v: HINT_VERSION,
            event_id: EventId::new("evt_1").unwrap(),
            kind: kind.to_owned(),
            created,
            object_id: "in_1".to_owned(),
            customer: Some(CustomerId::new("cus_1").unwrap()),
            invoice: Some(InvoiceId::new("in_1").unwrap()),
            livemode: false,
            replay: false,
            swept: false,
        };
        let mut account = subscribed(START);
        let before = at(START).plus_secs(-2);
        assert!(was_seen(&account, &event("invoice.paid", before)));
        assert!(!was_seen(&account, &event("invoice.paid", before.plus_secs(1))));
        assert!(!was_seen(&account, &event("charge.refunded", before)), "its event alone tells of it");
        assert!(!was_seen(&account, &event("test_helpers.test_clock.ready", before)));
        // A failure that begins a grace period earlier was not.
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: before.plus_secs(1) });
        assert!(!was_seen(&account, &event("invoice.payment_failed", before)));
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: before });
        assert!(was_seen(&account, &event("invoice.payment_failed", before)));
    }

    #[test]
    fn every_difference_has_a_name_of_its_own() {
        use Difference as D;
        let all = [
            D::UnknownCustomer,
            D::UserNamed,
            D::OtherUser,
            D::NoAccount,
            D::OtherCustomer,
            D::NotSeen,
            D::OtherSubscription,
            D::AnotherLiveSubscription,
            D::Status,
            D::Plan,
            D::TrialEnd,
            D::CancelAt,
            D::EndedAt,
            D::Subscription,
            D::InvoiceOverdue,
            D::InvoiceSettled,
        ];
        assert_eq!(all.iter().map(|difference| difference.as_str()).collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn the_endpoint_for_our_url_has_to_be_on_in_our_version_and_ask_for_our_events() {
        let good = Endpoint {
            id: "we_1".to_owned(),
            url: "https://api.example.com/webhooks/stripe".to_owned(),
            api_version: Some("v".to_owned()),
            enabled: true,
            events: SNAPSHOT_EVENTS.map(str::to_owned).to_vec(),
        };
        let problem = |endpoints: &[Endpoint]| endpoint_problem(&good.url, endpoints, "v", &SNAPSHOT_EVENTS);
        assert_eq!(problem(std::slice::from_ref(&good)), None);
        assert_eq!(problem(&[Endpoint { events: vec!["*".to_owned()], ..good.clone() }]), None);
        assert_eq!(problem(&[Endpoint { url: format!("{}/", good.url), ..good.clone() }]), None);
        assert_eq!(problem(&[]), Some(EndpointProblem::Missing));
        let elsewhere = Endpoint { url: "https://other.example.com/webhooks/stripe".to_owned(), ..good.clone() };
        assert_eq!(problem(std::slice::from_ref(&elsewhere)), Some(EndpointProblem::Missing));
        let off = Endpoint { enabled: false, ..good.clone() };
        assert_eq!(problem(std::slice::from_ref(&off)), Some(EndpointProblem::Disabled("we_1".to_owned())));
        for version in [None, Some("w".to_owned())] {
            let old = Endpoint { api_version: version, ..good.clone() };
            assert_eq!(problem(&[off.clone(), old]), Some(EndpointProblem::OtherVersion("we_1".to_owned())), "the best one's");
        }
        let mut deaf = good.clone();
        deaf.events.retain(|event| event != "invoice.paid");
        assert_eq!(
            problem(std::slice::from_ref(&deaf)),
            Some(EndpointProblem::LacksEvents("we_1".to_owned(), vec!["invoice.paid"]))
        );
        let also_off = Endpoint { id: "we_2".to_owned(), ..off.clone() };
        let two_are_off = problem(&[off.clone(), also_off]);
        assert_eq!(two_are_off, Some(EndpointProblem::Disabled("we_1".to_owned())), "the first of two that are no better");
        assert_eq!(problem(&[off, deaf, elsewhere, good.clone()]), None, "any good one is enough");
    }

    #[test]
    fn what_is_wrong_with_an_endpoint_says_what_to_do_and_whether_events_were_lost() {
        let id = || "we_1".to_owned();
        for (problem, loses_events, says) in [
            (EndpointProblem::Missing, true, "make one with cargo till setup"),
            (EndpointProblem::Disabled(id()), true, "we_1 is switched off: mend what made it fail"),
            (EndpointProblem::OtherVersion(id()), false, "we_1 is of another API version"),
            (EndpointProblem::LacksEvents(id(), vec!["invoice.paid", "charge.refunded"]), true, "invoice.paid, charge.refunded"),
        ] {
            assert_eq!(problem.loses_events(), loses_events, "{problem}");
            let text = problem.to_string();
            assert!(text.contains(says) && text.contains("cargo till setup"), "{text}");
        }
    }
}
