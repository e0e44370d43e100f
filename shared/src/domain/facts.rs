//! Stripe's present state of one customer, in our own small types.
//!
//! Only what a decision needs is here; the adapter reads it from Stripe in one API version, whatever version events come in.

use std::cmp::Reverse;

use serde::{Deserialize, Serialize};

use super::{
    id::{CustomerId, InvoiceId, SubscriptionId, UserId},
    period::Cycle,
    time::EpochSecs,
};

/// Everything `sync` decides from, fetched after the account's version was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerFacts {
    /// Whom it is about.
    pub customer: CustomerId,
    /// The customer was deleted; Stripe then shows no more of it.
    pub deleted: bool,
    /// The user that the customer's own metadata names.
    pub user_id: Option<UserId>,
    /// The moment its test clock shows, if it is on one.
    pub test_clock: Option<EpochSecs>,
    /// All subscriptions, whatever their status.
    pub subscriptions: Vec<SubscriptionFacts>,
    /// The invoices that are open, that is finalised and not yet paid, voided or written off.
    pub open_invoices: Vec<InvoiceFacts>,
    /// Where no subscription is better than cancelled: the invoices that were paid after the end of theirs. Such a payment restores
    /// access to the end of what it paid for (G7).
    pub paid_invoices: Vec<PaidInvoice>,
    /// The users that completed checkout sessions name as `client_reference_id`, newest first.
    pub checkout_users: Vec<UserId>,
}

impl CustomerFacts {
    /// Whether a payment of this invoice is seen to have failed: it was attempted, and the invoice is open all the same. As long as
    /// its subscription runs, no attempt has failed: a bank that was asked has yet to answer, which takes days. Of an invoice that
    /// was made when its subscription had ended, the last one for its usage, no status tells; its failure is known from its event
    /// alone.
    #[must_use]
    pub fn shows_failure(&self, invoice: &InvoiceFacts) -> bool {
        let its = |subscription: &&SubscriptionFacts| invoice.subscription.as_ref() == Some(&subscription.id);
        let is_silent = self.subscriptions.iter().find(its).is_some_and(|subscription| {
            let is_over = subscription.status == Status::Canceled;
            subscription.status.runs() || (is_over && subscription.ended_at.is_some_and(|end| end <= invoice.created))
        });
        invoice.attempted && !is_silent
    }

    /// The invoices that a payment is still owed for, as far as Stripe shows them, each with the moment at which it was made and
    /// whether a payment is seen to have failed: the open ones, and of each subscription that does not run the newest one, if it
    /// was written off.
    pub fn owed(&self) -> impl Iterator<Item = (&InvoiceId, EpochSecs, bool)> {
        let open = self.open_invoices.iter().map(|invoice| (&invoice.id, invoice.created, self.shows_failure(invoice)));
        let newest = self.subscriptions.iter().filter(|subscription| !subscription.status.runs());
        let written_off = newest.filter_map(|subscription| {
            let invoice = subscription.latest_invoice.as_ref()?;
            Some((&invoice.id, invoice.written_off?, false))
        });
        open.chain(written_off)
    }
}

/// A subscription as Stripe has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionFacts {
    /// Its id.
    pub id: SubscriptionId,
    /// Stripe's status.
    pub status: Status,
    /// Why it is paused, if it is.
    pub paused_by: Option<PausedBy>,
    /// When it was made.
    pub created: EpochSecs,
    /// The user that its metadata names.
    pub user_id: Option<UserId>,
    /// What is subscribed to.
    pub items: Vec<ItemFacts>,
    /// Where its billing periods are counted from.
    pub billing_cycle_anchor: EpochSecs,
    /// When the trial ends or ended.
    pub trial_end: Option<EpochSecs>,
    /// When it is going to be cancelled; also filled in for `cancel_at_period_end`.
    pub cancel_at: Option<EpochSecs>,
    /// When it ended.
    pub ended_at: Option<EpochSecs>,
    /// The newest invoice.
    pub latest_invoice: Option<LatestInvoice>,
    /// Whether `billing_mode` is `flexible`: only then is usage before a price switch billed.
    pub flexible: bool,
}

/// A subscription's newest invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestInvoice {
    /// Its id.
    pub id: InvoiceId,
    /// Whether it is known to be no draft any more: usage that comes now is not on it.
    pub is_final: bool,
    /// The usage period that it closes, first second and first second after it, if Stripe showed more of it than its id.
    pub period: Option<(EpochSecs, EpochSecs)>,
    /// When it was made, if it was written off (`uncollectible`): it was never paid, and can be paid still.
    pub written_off: Option<EpochSecs>,
}

/// One price of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemFacts {
    /// The price's `lookup_key`, by which the price list knows it.
    pub lookup_key: Option<String>,
    /// Whether its usage is metered.
    pub metered: bool,
    /// The period it is in: first second, and first second after it.
    pub period: (EpochSecs, EpochSecs),
    /// How periods follow each other.
    pub cycle: Cycle,
}

/// An open invoice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvoiceFacts {
    /// Its id.
    pub id: InvoiceId,
    /// The subscription it is for.
    pub subscription: Option<SubscriptionId>,
    /// When it was made.
    pub created: EpochSecs,
    /// Whether a payment was attempted.
    pub attempted: bool,
}

/// An invoice of a cancelled subscription that was paid after its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaidInvoice {
    /// The subscription it is for.
    pub subscription: SubscriptionId,
    /// When it was paid.
    pub paid_at: EpochSecs,
    /// The end of the period that it paid for: the latest of its lines of that subscription that cost something. What corrects a
    /// change within a period and gives money back pays for nothing.
    pub paid_for_until: EpochSecs,
}

/// Why a subscription is paused, in Stripe's words. The set is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum PausedBy {
    /// An invoice's first payment failed, and the account is set to pause then.
    FirstPaymentFailure,
    /// An invoice's last payment failed, and the account is set to pause then.
    FinalPaymentFailure,
    /// Anything else: it was asked for, a trial ended without a payment method, or a reason that is newer than we know.
    Other(String),
}

impl From<String> for PausedBy {
    fn from(text: String) -> Self {
        match text.as_str() {
            "first_payment_failure" => Self::FirstPaymentFailure,
            "final_payment_failure" => Self::FinalPaymentFailure,
            _ => Self::Other(text),
        }
    }
}

impl From<PausedBy> for String {
    fn from(reason: PausedBy) -> Self {
        match reason {
            PausedBy::FirstPaymentFailure => "first_payment_failure".to_owned(),
            PausedBy::FinalPaymentFailure => "final_payment_failure".to_owned(),
            PausedBy::Other(text) => text,
        }
    }
}

impl PausedBy {
    /// Whether a failed payment paused it: then its grace period goes on (G7).
    #[must_use]
    pub fn is_a_failed_payment(&self) -> bool {
        matches!(self, Self::FirstPaymentFailure | Self::FinalPaymentFailure)
    }
}

/// A customer's subscriptions in the order in which they count: by status, then the newest; of those made in one second the one that
/// ended last. `status` tells each one's status as far as it is known; one without is left out.
pub fn by_rank<'a>(
    subscriptions: &'a [SubscriptionFacts],
    status: impl Fn(&'a SubscriptionFacts) -> Option<&'a Status>,
) -> Vec<&'a SubscriptionFacts> {
    let mut ranked: Vec<_> = subscriptions.iter().filter_map(|facts| Some((status(facts)?.rank(), facts))).collect();
    ranked.sort_by(|(a_rank, a), (b_rank, b)| {
        let key = |rank: &u8, facts: &SubscriptionFacts| (*rank, Reverse(facts.created), Reverse(facts.ended_at));
        key(a_rank, a).cmp(&key(b_rank, b)).then_with(|| a.id.cmp(&b.id))
    });
    ranked.into_iter().map(|(_, facts)| facts).collect()
}

/// A subscription's status. The set is open: what is newer than we know keeps its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Status {
    /// The first payment is still due.
    Incomplete,
    /// The first payment did not come within 23 hours.
    IncompleteExpired,
    /// On trial.
    Trialing,
    /// Paid.
    Active,
    /// A payment failed and is being retried.
    PastDue,
    /// Retries are exhausted, and the account is set to leave it so.
    Unpaid,
    /// Ended.
    Canceled,
    /// Paused.
    Paused,
    /// Anything newer than we know.
    Other(String),
}

impl From<String> for Status {
    fn from(text: String) -> Self {
        match text.as_str() {
            "incomplete" => Self::Incomplete,
            "incomplete_expired" => Self::IncompleteExpired,
            "trialing" => Self::Trialing,
            "active" => Self::Active,
            "past_due" => Self::PastDue,
            "unpaid" => Self::Unpaid,
            "canceled" => Self::Canceled,
            "paused" => Self::Paused,
            _ => Self::Other(text),
        }
    }
}

impl From<Status> for String {
    fn from(status: Status) -> Self {
        status.as_str().to_owned()
    }
}

impl Status {
    /// Stripe's word for it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Incomplete => "incomplete",
            Self::IncompleteExpired => "incomplete_expired",
            Self::Trialing => "trialing",
            Self::Active => "active",
            Self::PastDue => "past_due",
            Self::Unpaid => "unpaid",
            Self::Canceled => "canceled",
            Self::Paused => "paused",
            Self::Other(text) => text,
        }
    }

    /// Whether all is well with it, by Stripe's own word.
    pub(super) fn runs(&self) -> bool {
        matches!(self, Self::Active | Self::Trialing)
    }

    /// Whether the subscription binds its user to its customer: it was paid for or tried out, and it has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        match self {
            Self::Trialing | Self::Active | Self::PastDue | Self::Unpaid | Self::Paused | Self::Other(_) => true,
            Self::Incomplete | Self::IncompleteExpired | Self::Canceled => false,
        }
    }

    /// Which of a customer's subscriptions counts: the lowest rank, and among equals the newest.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Trialing => 1,
            Self::PastDue => 2,
            Self::Unpaid => 3,
            Self::Paused => 4,
            Self::Other(_) => 5,
            Self::Canceled => 6,
            Self::Incomplete => 7,
            Self::IncompleteExpired => 8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_words_are_kept_as_stripe_writes_them_also_those_that_are_newer_than_we_know() {
        for status in "incomplete incomplete_expired trialing active past_due unpaid canceled paused suspended".split(' ') {
            assert_eq!(String::from(Status::from(status.to_owned())), status);
        }
        for reason in "first_payment_failure final_payment_failure asked_for".split(' ') {
            assert_eq!(String::from(PausedBy::from(reason.to_owned())), reason);
        }
    }
}
