//! Notices: what is told, and when. `sync` and the sweeper ask the same function, so a change is told once whoever sees it.

use serde::{Deserialize, Serialize};

use super::{
    access::{Reason, Standing, State, standing},
    account::{Account, Announced},
    id::{CustomerId, InvoiceId, UserId, composite_key},
    price_list::PriceList,
    time::EpochSecs,
};

/// What a notice tells; its name is the domain event's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoticeKind {
    /// A user has access by a subscription for the first time, or again after none.
    #[serde(rename = "account.provisioned")]
    AccountProvisioned,
    /// The subscription is on another plan now.
    #[serde(rename = "plan.changed")]
    PlanChanged,
    /// A payment failed; access goes on until the deadline.
    #[serde(rename = "grace.started")]
    GraceStarted,
    /// The grace period goes on.
    #[serde(rename = "grace.reminder")]
    GraceReminder,
    /// The overdue invoice was paid within the grace period.
    #[serde(rename = "grace.cleared")]
    GraceCleared,
    /// Access has ended.
    #[serde(rename = "access.ended")]
    AccessEnded,
    /// Access is back.
    #[serde(rename = "access.restored")]
    AccessRestored,
    /// The subscription is going to end.
    #[serde(rename = "subscription.ending")]
    SubscriptionEnding,
    /// The subscription was going to end and no longer is.
    #[serde(rename = "subscription.continued")]
    SubscriptionContinued,
    /// The subscription has ended.
    #[serde(rename = "subscription.ended")]
    SubscriptionEnded,
    /// The trial is going to end.
    #[serde(rename = "trial.ending")]
    TrialEnding,
    /// A payment was given back, whole or in part.
    #[serde(rename = "payment.refunded")]
    PaymentRefunded,
    /// A payment is disputed, or its dispute went on.
    #[serde(rename = "payment.disputed")]
    PaymentDisputed,
}

impl NoticeKind {
    /// The domain event's type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AccountProvisioned => "account.provisioned",
            Self::PlanChanged => "plan.changed",
            Self::GraceStarted => "grace.started",
            Self::GraceReminder => "grace.reminder",
            Self::GraceCleared => "grace.cleared",
            Self::AccessEnded => "access.ended",
            Self::AccessRestored => "access.restored",
            Self::SubscriptionEnding => "subscription.ending",
            Self::SubscriptionContinued => "subscription.continued",
            Self::SubscriptionEnded => "subscription.ended",
            Self::TrialEnding => "trial.ending",
            Self::PaymentRefunded => "payment.refunded",
            Self::PaymentDisputed => "payment.disputed",
        }
    }
}

/// One row of the outbox. It commits with the change that caused it (G8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The one id under which it is sent, however often.
    pub notice_id: String,
    /// What it tells.
    pub kind: NoticeKind,
    /// Whom it is about.
    pub user_id: UserId,
    /// Stripe's customer at the time of the change.
    #[serde(default)]
    pub customer_id: Option<CustomerId>,
    /// When the change was seen, in the account's time.
    pub at: EpochSecs,
    /// The state after the change.
    pub state: State,
    /// Why it allows nothing, if so.
    #[serde(default)]
    pub reason: Option<Reason>,
    /// The plan after the change.
    pub plan: Option<String>,
    /// The plan that was told before, where the notice is about its change.
    #[serde(default)]
    pub previous_plan: Option<String>,
    /// When access is going to end, where the notice is about that; of an ending trial, its end.
    pub access_until: Option<EpochSecs>,
    /// The invoice whose payment failed first, where the notice is about that.
    #[serde(default)]
    pub invoice_id: Option<InvoiceId>,
    /// How many days ago it failed, of a reminder.
    #[serde(default)]
    pub day: Option<u16>,
    /// The payment, where the notice is about one that was refunded or disputed.
    #[serde(default)]
    pub payment: Option<Payment>,
}

/// A payment that was refunded or disputed, as Stripe showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payment {
    /// Stripe's charge, `ch_…` or `py_…`.
    pub charge_id: String,
    /// Stripe's dispute, where there is one.
    #[serde(default)]
    pub dispute_id: Option<String>,
    /// The dispute's status, or `refunded` or `partially_refunded`.
    pub status: String,
    /// What is disputed, or was given back so far, in minor units of the currency.
    pub amount_minor: u64,
    /// ISO 4217, lower case.
    pub currency: String,
}

/// What is due to be told of the account at the real moment `now`, and what will then have been told.
///
/// The account's version must already be the one it will be committed under: the notices' ids are made of it.
#[must_use]
pub fn due(account: &Account, prices: &PriceList, now: EpochSecs) -> (Announced, Vec<Notice>) {
    let standing = standing(Some(account), prices, now);
    let told = &account.announced;
    let local = account.local_time(now);
    let mut kinds = Vec::new();

    let subscribed = |state: Option<State>| matches!(state, Some(State::Trialing | State::Active | State::Grace | State::Ended));
    match (told.state, standing.state) {
        (Some(State::Ended), State::Active | State::Trialing | State::Grace) => kinds.push(NoticeKind::AccessRestored),
        (before, State::Active | State::Trialing | State::Grace) if !subscribed(before) => {
            kinds.push(NoticeKind::AccountProvisioned)
        }
        (before, State::Ended) if subscribed(before) && before != Some(State::Ended) => kinds.push(NoticeKind::AccessEnded),
        (before, State::Free | State::None) if subscribed(before) => kinds.push(NoticeKind::SubscriptionEnded),
        _ => {}
    }
    match (told.state, standing.state) {
        (before, State::Grace) if before != Some(State::Grace) => kinds.push(NoticeKind::GraceStarted),
        (Some(State::Grace), State::Active | State::Trialing) => kinds.push(NoticeKind::GraceCleared),
        _ => {}
    }
    if subscribed(told.state) && subscribed(Some(standing.state)) && told.plan != standing.plan {
        kinds.push(NoticeKind::PlanChanged);
    }
    let reminders = reminders_reached(account, prices, &standing, local);
    if told.state == Some(State::Grace) && reminders > told.reminders {
        kinds.push(NoticeKind::GraceReminder);
    }
    let ending_at = account.subscription.as_ref().and_then(|subscription| subscription.cancel_at);
    if ending_at != told.ending_at && ending_at.is_some() && matches!(standing.state, State::Active | State::Trialing) {
        kinds.push(NoticeKind::SubscriptionEnding);
    }

    let announced = Announced { state: Some(standing.state), plan: standing.plan.clone(), reminders, ending_at };
    let notices = kinds
        .into_iter()
        .map(|kind| Notice {
            notice_id: notice_id(account, kind),
            kind,
            user_id: account.user_id.clone(),
            customer_id: Some(account.customer_id.clone()),
            at: local,
            state: standing.state,
            reason: standing.reason,
            plan: standing.plan.as_ref().map(ToString::to_string),
            previous_plan: None,
            access_until: standing.access_until,
            invoice_id: None,
            day: None,
            payment: None,
        })
        .collect();
    (announced, notices)
}

/// When the account is next to be looked at although Stripe says nothing: a reminder, the end of grace, of a trial or of the
/// subscription. A real moment, whatever clock the account lives by.
#[must_use]
pub fn next_due(account: &Account, prices: &PriceList, now: EpochSecs) -> Option<EpochSecs> {
    let local = account.local_time(now);
    let standing = standing(Some(account), prices, now);
    let reminders = account
        .overdue_since()
        .filter(|_| standing.state == State::Grace)
        .into_iter()
        .flat_map(|since| prices.grace.reminder_days.iter().map(move |day| since.plus_days(i64::from(*day))));
    let trial_end = account.subscription.as_ref().and_then(|subscription| subscription.trial_end);
    reminders
        .chain(standing.access_until)
        .chain(trial_end)
        .filter(|moment| *moment > local)
        .min()
        .map(|moment| moment.plus_secs(account.clock_offset_secs.saturating_neg()))
}

fn reminders_reached(account: &Account, prices: &PriceList, standing: &Standing, local: EpochSecs) -> u8 {
    let Some(since) = account.overdue_since().filter(|_| standing.state == State::Grace) else { return 0 };
    let reached = prices.grace.reminder_days.iter().filter(|day| since.plus_days(i64::from(**day)) <= local).count();
    u8::try_from(reached).unwrap_or(u8::MAX)
}

fn notice_id(account: &Account, kind: NoticeKind) -> String {
    composite_key(&[account.user_id.as_str(), &account.version.to_string(), kind.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        account::{Overdue, tests::subscribed},
        facts::Status,
        id::InvoiceId,
    };

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    /// Tells what is due at `now` and remembers it, as a commit would.
    fn tell(account: &mut Account, now: &str) -> Vec<String> {
        account.version += 1;
        let (announced, notices) = due(account, &PriceList::shipped().unwrap(), at(now));
        account.announced = announced;
        notices.iter().map(|notice| notice.kind.as_str().to_owned()).collect()
    }

    fn next(account: &Account, now: &str) -> String {
        next_due(account, &PriceList::shipped().unwrap(), at(now)).map_or("-".into(), |due| due.to_string())
    }

    #[test]
    fn a_failed_payment_is_told_at_once_then_on_days_3_and_6_and_at_the_end_each_once() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-11-20T00:00:00Z"), Vec::<String>::new());
        assert_eq!(next(&account, "2026-11-20T00:00:00Z"), "-");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        for (now, told, then) in [
            ("2026-11-20T12:00:05Z", vec!["grace.started"], "2026-11-23T12:00:00Z"),
            ("2026-11-20T13:00:00Z", vec![], "2026-11-23T12:00:00Z"),
            ("2026-11-23T12:00:00Z", vec!["grace.reminder"], "2026-11-26T12:00:00Z"),
            ("2026-11-23T12:00:01Z", vec![], "2026-11-26T12:00:00Z"),
            ("2026-11-26T12:00:00Z", vec!["grace.reminder"], "2026-11-27T12:00:00Z"),
            ("2026-11-27T11:59:59Z", vec![], "2026-11-27T12:00:00Z"),
            ("2026-11-27T12:00:00Z", vec!["access.ended"], "-"),
            ("2026-11-28T00:00:00Z", vec![], "-"),
        ] {
            assert_eq!(tell(&mut account, now), told, "{now}");
            assert_eq!(next(&account, now), then, "{now}");
        }
        account.subscription.as_mut().unwrap().status = Status::Active;
        account.overdue.clear();
        assert_eq!(tell(&mut account, "2026-11-29T00:00:00Z"), ["access.restored"]);
    }

    #[test]
    fn a_sweep_that_comes_late_reminds_once_not_twice() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        assert_eq!(tell(&mut account, "2026-11-20T12:00:05Z"), ["grace.started"]);
        assert_eq!(tell(&mut account, "2026-11-26T18:00:00Z"), ["grace.reminder"]);
        account.subscription.as_mut().unwrap().status = Status::Active;
        account.overdue.clear();
        assert_eq!(tell(&mut account, "2026-11-26T19:00:00Z"), ["grace.cleared"]);
    }

    #[test]
    fn sign_up_plan_change_and_cancellation_are_told_once() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.announced = Announced::default();
        assert_eq!(tell(&mut account, "2026-11-10T00:00:01Z"), ["account.provisioned"]);
        assert_eq!(tell(&mut account, "2026-11-10T00:00:02Z"), Vec::<String>::new());
        account.subscription.as_mut().unwrap().plan = Some(crate::domain::id::PlanId::new("max").unwrap());
        assert_eq!(tell(&mut account, "2026-11-11T00:00:00Z"), ["plan.changed"]);
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(tell(&mut account, "2026-11-12T00:00:00Z"), ["subscription.ending"]);
        assert_eq!(next(&account, "2026-11-12T00:00:00Z"), "2026-12-10T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-12-10T00:00:00Z"), ["subscription.ended"]);
        assert_eq!(tell(&mut account, "2026-12-11T00:00:00Z"), Vec::<String>::new());
    }

    #[test]
    fn a_kinds_name_is_stored_as_it_is_said() {
        for kind in [
            NoticeKind::AccountProvisioned,
            NoticeKind::PlanChanged,
            NoticeKind::GraceStarted,
            NoticeKind::GraceReminder,
            NoticeKind::GraceCleared,
            NoticeKind::AccessEnded,
            NoticeKind::AccessRestored,
            NoticeKind::SubscriptionEnding,
            NoticeKind::SubscriptionContinued,
            NoticeKind::SubscriptionEnded,
            NoticeKind::TrialEnding,
            NoticeKind::PaymentRefunded,
            NoticeKind::PaymentDisputed,
        ] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn what_is_due_is_due_by_the_accounts_own_clock() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.clock_offset_secs = 86_400;
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(next(&account, "2026-12-08T00:00:00Z"), "2026-12-09T00:00:00Z");
        let ids: Vec<_> = due(&account, &PriceList::shipped().unwrap(), at("2026-11-20T00:00:00Z")).1;
        assert_eq!(ids[0].notice_id, "3:ada/1:1/19:subscription.ending");
        assert_eq!(ids[0].at, at("2026-11-21T00:00:00Z"));
    }
}
