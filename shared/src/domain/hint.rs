//! The hint: what the webhook, the sweeper and the operator put on the account-changes queue.
//!
//! A hint says *look there*, never *this is so*: `sync` fetches Stripe's present state whatever the hint says. The one thing
//! taken from it is when an invoice's payment failed, because Stripe's state does not keep that (G2).

use serde::{Deserialize, Serialize};

use super::{
    id::{CustomerId, EventId, InvalidId, InvoiceId, UserId, composite_key},
    time::EpochSecs,
};

/// The version of the message this build writes.
pub const HINT_VERSION: u32 = 1;

/// One message of the account-changes queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    /// The message's version. A greater one than [`HINT_VERSION`] is retried until a newer function reads it (G11).
    pub v: u32,
    /// Stripe's event, or an identifier of our own.
    pub event_id: EventId,
    /// Stripe's event type, as it came.
    #[serde(rename = "type")]
    pub kind: String,
    /// When Stripe made the event.
    pub created: EpochSecs,
    /// Stripe's object the event is about.
    pub object_id: String,
    /// The customer, where the event names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<CustomerId>,
    /// The invoice, where the event is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invoice: Option<InvoiceId>,
    /// Whether it came from Stripe's live mode.
    pub livemode: bool,
    /// A replayed hint is never skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replay: bool,
    /// The sweeper found its event in Stripe's list: it says nothing of whether Stripe's deliveries arrive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub swept: bool,
}

impl Hint {
    /// The FIFO group: changes of one customer keep races rare. Correctness does not rest on it but on the account's version.
    ///
    /// A refund or a dispute changes no account and is in the group of its own object: while it cannot be looked at, be it that the
    /// key may not read charges, it holds up none of its customer's changes.
    #[must_use]
    pub fn group(&self) -> &str {
        match &self.customer {
            Some(customer) if !self.is_about_a_payment() => customer.as_str(),
            _ => &self.object_id,
        }
    }

    /// The failure this hint reports: which invoice, and when.
    #[must_use]
    pub fn payment_failure(&self) -> Option<PaymentFailure> {
        if self.kind != "invoice.payment_failed" {
            return None;
        }
        Some(PaymentFailure { invoice: self.invoice.clone()?, at: self.created })
    }

    /// Whether the event is about a test clock, which concerns every customer on it.
    #[must_use]
    pub fn is_about_a_test_clock(&self) -> bool {
        self.kind.starts_with("test_helpers.test_clock.")
    }

    /// Whether the event is about a payment that was refunded or disputed: it is told, and changes no account.
    #[must_use]
    pub fn is_about_a_payment(&self) -> bool {
        self.kind == "charge.refunded" || self.kind.starts_with("charge.dispute.")
    }

    /// Whether Stripe says that it threw usage away after it had taken it, which is about a meter, or about none, and no customer.
    #[must_use]
    pub fn is_about_rejected_usage(&self) -> bool {
        tells_of_rejected_usage(&self.kind)
    }

    /// Whether there is nothing to look at: its event named neither a customer nor an object, although its type is about one.
    #[must_use]
    pub fn names_nothing(&self) -> bool {
        self.customer.is_none() && self.object_id == self.event_id.as_str() && !self.is_about_rejected_usage()
    }

    /// A hint of our own that has `customer` looked at afresh because of this one, whatever is known of it. The same cause gives
    /// the same event id.
    ///
    /// # Errors
    /// [`InvalidId`] if the two ids together are no event id; Stripe's are far too short for that.
    pub fn revisit(&self, customer: &CustomerId) -> Result<Self, InvalidId> {
        Ok(Self {
            v: HINT_VERSION,
            event_id: EventId::new(composite_key(&[self.event_id.as_str(), customer.as_str()]))?,
            kind: "tokentill.revisit".to_owned(),
            created: self.created,
            object_id: customer.as_str().to_owned(),
            customer: Some(customer.clone()),
            invoice: None,
            livemode: self.livemode,
            replay: true,
            swept: false,
        })
    }

    /// Whether Stripe itself delivered the event: neither we nor a person made the hint, or found it in a list.
    #[must_use]
    pub fn was_delivered(&self) -> bool {
        !self.replay && !self.swept && !self.kind.starts_with("tokentill.")
    }

    /// A hint of our own that has a customer looked at, whatever is known of it, because a comparison on that day found it to be
    /// otherwise at Stripe. The same day gives the same event id.
    ///
    /// # Errors
    /// [`InvalidId`] if the customer's id is too long for an event id; Stripe's are far too short for that.
    pub fn of_difference(customer: &CustomerId, found_at: EpochSecs, livemode: bool) -> Result<Self, InvalidId> {
        let day = found_at.day().to_string();
        Ok(Self {
            v: HINT_VERSION,
            event_id: EventId::new(composite_key(&["comparison", &day, customer.as_str()]))?,
            kind: "tokentill.difference".to_owned(),
            created: found_at,
            object_id: customer.as_str().to_owned(),
            customer: Some(customer.clone()),
            invoice: None,
            livemode,
            replay: true,
            swept: false,
        })
    }

    /// A hint of our own that has a customer looked at which was just made for its user, so that the two are joined although
    /// nothing was bought yet. The same customer gives the same event id, and it is never skipped.
    ///
    /// # Errors
    /// [`InvalidId`] if the customer's id is too long for an event id; Stripe's are far too short for that.
    pub fn of_new_customer(customer: &CustomerId, created: EpochSecs, livemode: bool) -> Result<Self, InvalidId> {
        Ok(Self {
            v: HINT_VERSION,
            event_id: EventId::new(composite_key(&["checkout", customer.as_str()]))?,
            kind: "tokentill.customer_made".to_owned(),
            created,
            object_id: customer.as_str().to_owned(),
            customer: Some(customer.clone()),
            invoice: None,
            livemode,
            replay: true,
            swept: false,
        })
    }
}

/// A payment of an invoice failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaymentFailure {
    /// The invoice that was not paid.
    pub invoice: InvoiceId,
    /// When Stripe made the event that says so.
    pub at: EpochSecs,
}

/// The snapshot events that a webhook endpoint is to ask for: those of [`relevance`], no more and no fewer.
pub const SNAPSHOT_EVENTS: [&str; 26] = [
    "checkout.session.completed",
    "customer.updated",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.pending_update_applied",
    "customer.subscription.pending_update_expired",
    "customer.subscription.trial_will_end",
    "invoice.created",
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.payment_action_required",
    "invoice.finalization_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
    "test_helpers.test_clock.ready",
];

/// The snapshot events of a mode: in live mode there are no test clocks.
#[must_use]
pub fn snapshot_events(livemode: bool) -> Vec<&'static str> {
    SNAPSHOT_EVENTS.into_iter().filter(|event| !livemode || !event.starts_with("test_helpers.")).collect()
}

/// The events that no snapshot tells, and that a destination of thin events is to ask for.
pub const THIN_EVENTS: [&str; 2] = ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"];

/// Which kind of change a Stripe event type announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relevance {
    /// The customer's state may have changed.
    AccountChange,
    /// We have no use for it.
    None,
}

/// Whether we have a use for events of this type: the list of the contract, section 3.1.
///
/// A thin event's type is the snapshot's with `v1.` before it.
#[must_use]
pub fn relevance(kind: &str) -> Relevance {
    let plain = kind.strip_prefix("v1.").unwrap_or(kind);
    let relevant = plain.starts_with("customer.subscription.")
        || plain.starts_with("charge.dispute.")
        || matches!(
            plain,
            "checkout.session.completed"
                | "invoice.created"
                | "invoice.finalized"
                | "invoice.paid"
                | "invoice.payment_failed"
                | "invoice.payment_action_required"
                | "invoice.finalization_failed"
                | "invoice.voided"
                | "invoice.marked_uncollectible"
                | "customer.updated"
                | "customer.deleted"
                | "charge.refunded"
                | "test_helpers.test_clock.ready"
        )
        || tells_of_rejected_usage(kind);
    if relevant { Relevance::AccountChange } else { Relevance::None }
}

/// The two types that exist as thin events alone, and so keep their `v1.`.
fn tells_of_rejected_usage(kind: &str) -> bool {
    THIN_EVENTS.contains(&kind)
}

/// A user named by a Stripe object's `metadata.user_id` or `client_reference_id`, if it is one.
#[must_use]
pub fn named_user(text: Option<&str>) -> Option<UserId> {
    text.and_then(|text| UserId::new(text).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stripe's event types around billing in the pinned version, as async-stripe's `EnabledEvents` has them.
    const STRIPES: &str = "billing.alert.triggered billing.credit_balance_transaction.created billing.credit_grant.created \
        billing.credit_grant.updated billing.meter.created billing.meter.deactivated billing.meter.reactivated \
        billing.meter.updated charge.captured charge.dispute.closed charge.dispute.created charge.dispute.funds_reinstated \
        charge.dispute.funds_withdrawn charge.dispute.updated charge.expired charge.failed charge.pending charge.refund.updated \
        charge.refunded charge.succeeded charge.updated checkout.session.async_payment_failed \
        checkout.session.async_payment_succeeded checkout.session.completed checkout.session.expired customer.created \
        customer.deleted customer.discount.created customer.discount.deleted customer.discount.updated customer.source.created \
        customer.source.deleted customer.source.expiring customer.source.updated customer.subscription.created \
        customer.subscription.deleted customer.subscription.paused customer.subscription.pending_update_applied \
        customer.subscription.pending_update_expired customer.subscription.resumed customer.subscription.trial_will_end \
        customer.subscription.updated customer.tax_id.created customer.tax_id.deleted customer.tax_id.updated customer.updated \
        invoice.created invoice.deleted invoice.finalization_failed invoice.finalized invoice.marked_uncollectible \
        invoice.overdue invoice.overpaid invoice.paid invoice.payment_action_required invoice.payment_attempt_required \
        invoice.payment_failed invoice.payment_succeeded invoice.sent invoice.upcoming invoice.updated invoice.voided \
        invoice.will_be_due test_helpers.test_clock.advancing test_helpers.test_clock.created test_helpers.test_clock.deleted \
        test_helpers.test_clock.internal_failure test_helpers.test_clock.ready";

    fn hint(kind: &str, object_id: &str, customer: Option<&str>) -> Hint {
        let made = Hint::of_new_customer(&CustomerId::new("cus_1").unwrap(), EpochSecs::new(0), false).unwrap();
        let customer = customer.map(|id| CustomerId::new(id).unwrap());
        let event_id = EventId::new("evt_1").unwrap();
        Hint { event_id, kind: kind.to_owned(), object_id: object_id.to_owned(), customer, replay: false, ..made }
    }

    #[test]
    fn an_event_without_customer_and_object_names_nothing_unless_it_is_about_rejected_usage() {
        let names_nothing = |kind: &str, object_id: &str, customer| hint(kind, object_id, customer).names_nothing();
        assert!(names_nothing("invoice.paid", "evt_1", None));
        assert!(!names_nothing("invoice.paid", "in_1", None));
        assert!(!names_nothing("invoice.paid", "evt_1", Some("cus_1")));
        assert!(!names_nothing("v1.billing.meter.no_meter_found", "evt_1", None));
        assert!(hint("v1.billing.meter.no_meter_found", "evt_1", None).is_about_rejected_usage());
        assert!(!hint("invoice.paid", "in_1", None).is_about_rejected_usage());
    }

    #[test]
    fn only_what_stripe_sent_counts_as_delivered() {
        let sent = hint("invoice.paid", "in_1", None);
        assert!(sent.was_delivered());
        assert!(!Hint { replay: true, ..sent.clone() }.was_delivered(), "a person's");
        assert!(!Hint { swept: true, ..sent.clone() }.was_delivered(), "found in a list");
        assert!(!Hint { kind: "tokentill.revisit".to_owned(), ..sent }.was_delivered(), "our own");
    }

    #[test]
    fn in_live_mode_no_test_clock_is_asked_for() {
        let (live, test) = (snapshot_events(true), snapshot_events(false));
        assert_eq!(test, SNAPSHOT_EVENTS.to_vec());
        assert_eq!(live.len() + 1, test.len());
        assert!(live.contains(&"invoice.paid") && !live.contains(&"test_helpers.test_clock.ready"));
    }

    #[test]
    fn a_user_is_named_by_any_text_that_is_a_users_name() {
        assert_eq!(named_user(Some("ada")), UserId::new("ada").ok());
        assert_eq!((named_user(Some("")), named_user(None)), (None, None));
    }

    #[test]
    fn a_refund_or_a_dispute_holds_up_no_change_of_its_customer() {
        let group = |kind: &str, object_id: &str| {
            let customer = CustomerId::new("cus_1").unwrap();
            let hint = Hint {
                kind: kind.to_owned(),
                object_id: object_id.to_owned(),
                ..Hint::of_new_customer(&customer, EpochSecs::new(0), false).unwrap()
            };
            hint.group().to_owned()
        };
        assert_eq!(group("invoice.paid", "in_1"), "cus_1");
        assert_eq!(group("charge.refunded", "ch_1"), "ch_1");
        assert_eq!(group("charge.dispute.created", "du_1"), "du_1");
    }

    #[test]
    fn an_endpoint_asks_for_exactly_what_is_of_use() {
        let of_use = |kind: &&str| relevance(kind) == Relevance::AccountChange;
        let mut wanted: Vec<&str> = STRIPES.split_whitespace().filter(of_use).collect();
        let mut asked = SNAPSHOT_EVENTS.to_vec();
        wanted.sort_unstable();
        asked.sort_unstable();
        assert_eq!(asked, wanted);
        assert!(THIN_EVENTS.iter().all(of_use));
        // Of the thin events none is told by a snapshot too.
        assert!(THIN_EVENTS.iter().all(|kind| !STRIPES.split_whitespace().any(|plain| *kind == format!("v1.{plain}"))));
    }
}
