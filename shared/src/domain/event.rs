//! Domain events: what a notice is to other programs. `docs/events.md` and `events/domain-event.schema.json` describe them.

use serde::Serialize;

use super::{
    access::{Reason, State},
    id::{CustomerId, InvoiceId, UserId},
    notice::{Notice, NoticeKind, Payment},
    time::EpochSecs,
};

/// Who sends the events, as the event bus names it.
pub const SOURCE: &str = "tokentill";
/// The version of the events' fields. Fields are only ever added to a version; one that goes or means something else makes a new one.
pub const VERSION: u32 = 1;

/// One domain event. Every field is always there; what does not apply is null.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DomainEvent {
    /// The version of these fields.
    pub version: u32,
    /// The one id under which it is sent, however often: the notice's.
    pub id: String,
    /// What it tells.
    pub r#type: NoticeKind,
    /// When the change was seen, in the account's time; RFC 3339.
    pub at: String,
    /// When it was committed, in real time; RFC 3339. It differs from `at` where the account lives on a test clock.
    pub committed_at: String,
    /// Whether it is about real money.
    pub livemode: bool,
    /// Whom it is about.
    pub user_id: UserId,
    /// Stripe's customer.
    pub customer_id: Option<CustomerId>,
    /// The state after the change.
    pub state: State,
    /// Whether that state allows calls.
    pub allowed: bool,
    /// Why it allows none, if so.
    pub reason: Option<Reason>,
    /// The plan after the change.
    pub plan: Option<String>,
    /// The plan before, where the event is about its change.
    pub previous_plan: Option<String>,
    /// When access is going to end; of an ending trial, its end; RFC 3339.
    pub access_until: Option<String>,
    /// The overdue invoice.
    pub invoice_id: Option<InvoiceId>,
    /// How many days ago the payment failed, of a reminder.
    pub day: Option<u16>,
    /// The payment that was refunded or is disputed.
    pub payment: Option<Payment>,
}

impl DomainEvent {
    /// A notice as a domain event; it was committed at this real moment, in milliseconds since 1970.
    #[must_use]
    pub fn of(notice: &Notice, committed_at_ms: i64, livemode: bool) -> Self {
        let notice = notice.clone();
        Self {
            version: VERSION,
            id: notice.notice_id,
            r#type: notice.kind,
            at: notice.at.to_string(),
            committed_at: EpochSecs::from_ms(committed_at_ms).to_string(),
            livemode,
            user_id: notice.user_id,
            customer_id: notice.customer_id,
            state: notice.state,
            // In grace a plan may be worth nothing: then there is a reason.
            allowed: notice.state.allows() && notice.reason.is_none(),
            reason: notice.reason,
            plan: notice.plan,
            previous_plan: notice.previous_plan,
            access_until: notice.access_until.map(|moment| moment.to_string()),
            invoice_id: notice.invoice_id,
            day: notice.day,
            payment: notice.payment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        access,
        account::{Overdue, tests::subscribed},
        facts::Status,
        notice::due,
        price_list::{GraceAccess, PriceList},
    };

    #[test]
    fn allowed_is_what_an_access_check_says_at_that_moment() {
        let moment = |text: &str| EpochSecs::parse_rfc3339(text).unwrap();
        for (grace, now, expected) in [
            (GraceAccess::Full, "2026-11-20T12:00:05Z", ("grace.started", true, None)),
            (GraceAccess::None, "2026-11-20T12:00:05Z", ("grace.started", false, Some(Reason::PaymentOverdue))),
            (GraceAccess::Full, "2026-11-28T00:00:00Z", ("access.ended", false, Some(Reason::PaymentOverdue))),
        ] {
            let mut prices = PriceList::shipped().unwrap();
            prices.plans.iter_mut().filter(|plan| !plan.prices.is_empty()).for_each(|plan| plan.grace = grace.clone());
            let mut account = subscribed("2026-11-10T00:00:00Z");
            let _told_before = due(&mut account, &prices, moment("2026-11-20T00:00:00Z"));
            account.subscription.as_mut().unwrap().status = Status::PastDue;
            account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: moment("2026-11-20T12:00:00Z") });
            let events: Vec<_> =
                due(&mut account, &prices, moment(now)).iter().map(|notice| DomainEvent::of(notice, 0, false)).collect();
            let [event] = events.as_slice() else { panic!("{events:?}") };
            assert_eq!((event.r#type.as_str(), event.allowed, event.reason), expected, "{grace:?} at {now}");
            let standing = access::standing(Some(&account), &prices, moment(now));
            assert_eq!((event.state, event.allowed), (standing.state, standing.allows()));
        }
    }
}
