//! Notices: what is told, and when. `sync` and the sweeper ask the same function, so a change is told once whoever sees it.

use serde::{Deserialize, Serialize};

use super::{
    access::{Reason, Standing, State, grace_is_worth_nothing, standing},
    account::{Account, Announced},
    facts::{PausedBy, Status},
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

/// How many days before its end a trial's end is told; at once, if it is shorter.
const TRIAL_TOLD_DAYS: i64 = 3;

/// What is due to be told of the account at the real moment `now`. The account remembers that it was told, and up to when: of an
/// earlier moment nothing is ever told afterwards.
///
/// The account's version must already be the one it will be committed under: the notices' ids are made of it.
#[must_use]
pub fn due(account: &mut Account, prices: &PriceList, now: EpochSecs) -> Vec<Notice> {
    let now = account.told_at.map_or(now, |told_at| now.max(told_at));
    account.told_at = Some(now);
    let standing = standing(Some(account), prices, now);
    let local = account.local_time(now);
    let told = account.announced.clone();
    let mut kinds = Vec::new();

    let subscribed = |state: Option<State>| matches!(state, Some(State::Trialing | State::Active | State::Grace | State::Ended));
    let access_told = told.of_access();
    // The last invoice of a subscription whose end was told gives nothing and restores nothing: it is owed, and told as that.
    let is_over = account.subscription.as_ref().is_some_and(|subscription| subscription.status == Status::Canceled);
    let end_told = access_told
        .filter(|state| is_over && standing.state == State::Grace && matches!(state, State::Ended | State::Free | State::None));
    match (told.state, standing.state) {
        (_, State::Grace) if end_told.is_some() => {}
        (_, State::Active | State::Trialing | State::Grace) if told_of_nothing(&told, prices) && standing.reason.is_none() => {
            kinds.push(NoticeKind::AccessRestored)
        }
        (_, State::Active | State::Trialing | State::Grace) if !subscribed(access_told) => {
            kinds.push(NoticeKind::AccountProvisioned)
        }
        (before, State::Ended) if subscribed(before) && before != Some(State::Ended) => kinds.push(NoticeKind::AccessEnded),
        (before, State::Free | State::None) if subscribed(before) => kinds.push(NoticeKind::SubscriptionEnded),
        _ => {}
    }
    // A new subscription's grace period is another one.
    let is_same_grace = told.state == Some(State::Grace) && (told.end_told.is_none() || end_told.is_some());
    match (told.state, standing.state) {
        (_, State::Grace) if !is_same_grace => kinds.push(NoticeKind::GraceStarted),
        (Some(State::Grace), State::Active | State::Trialing) => kinds.push(NoticeKind::GraceCleared),
        _ => {}
    }
    // Who had no subscription that was told of hears of the plan as the account is provisioned.
    if subscribed(access_told) && subscribed(Some(standing.state)) && told.plan != standing.plan {
        kinds.push(NoticeKind::PlanChanged);
    }
    let reminders = reminders_reached(account, prices, &standing, local);
    if is_same_grace && reminders.len() > usize::from(told.reminders) {
        kinds.push(NoticeKind::GraceReminder);
    }
    let (of_the_end, ending_at) = ending(account, &standing, told.ending_at);
    kinds.extend(of_the_end);
    let trial_end = trial_to_be_told(account, &standing).filter(|end| end.plus_days(-TRIAL_TOLD_DAYS) <= local);
    if trial_end.is_some() {
        kinds.push(NoticeKind::TrialEnding);
    }

    let notice = |kind| {
        let of_the_invoice = match kind {
            NoticeKind::GraceStarted | NoticeKind::GraceReminder => true,
            NoticeKind::AccessEnded => ended_by_a_failed_payment(account, &standing),
            _ => false,
        };
        Notice {
            notice_id: notice_id(account, kind),
            kind,
            user_id: account.user_id.clone(),
            customer_id: Some(account.customer_id.clone()),
            at: local,
            state: standing.state,
            reason: standing.reason,
            plan: standing.plan.as_ref().map(ToString::to_string),
            previous_plan: told.plan.as_ref().filter(|_| kind == NoticeKind::PlanChanged).map(ToString::to_string),
            access_until: match kind {
                NoticeKind::SubscriptionEnding => ending_at,
                NoticeKind::TrialEnding => trial_end,
                _ => standing.access_until,
            },
            invoice_id: account.first_overdue().filter(|_| of_the_invoice).map(|(invoice, _)| invoice.clone()),
            day: reminders.last().copied().filter(|_| kind == NoticeKind::GraceReminder),
            payment: None,
        }
    };
    let notices = kinds.into_iter().map(notice).collect();
    account.announced = Announced {
        state: Some(standing.state),
        plan: standing.plan.clone(),
        reminders: u8::try_from(reminders.len()).unwrap_or(u8::MAX),
        ending_at,
        end_told,
    };
    account.trial_end_told = trial_end.or(account.trial_end_told);
    notices
}

/// Whether what was told last is that nothing is allowed: access has ended, or the plan gives none while a payment is overdue.
fn told_of_nothing(told: &Announced, prices: &PriceList) -> bool {
    match told.of_access() {
        Some(State::Ended) => true,
        Some(State::Grace) => grace_is_worth_nothing(told.plan.as_ref(), prices),
        _ => false,
    }
}

/// Whether access ended because nothing was paid, also where Stripe paused the subscription for that.
fn ended_by_a_failed_payment(account: &Account, standing: &Standing) -> bool {
    match standing.reason {
        Some(Reason::PaymentOverdue) => true,
        Some(Reason::Paused) => account.paused_by.as_ref().is_some_and(PausedBy::is_a_failed_payment),
        _ => false,
    }
}

/// What is to be told of the subscription's announced end, and which end will then have been told. While access has ended nothing
/// is; it is made up for when access is back.
fn ending(account: &Account, standing: &Standing, told: Option<EpochSecs>) -> (Option<NoticeKind>, Option<EpochSecs>) {
    let Some(subscription) = account.subscription.as_ref().filter(|subscription| subscription.status.is_live()) else {
        return (None, None);
    };
    match (told, subscription.cancel_at) {
        (told, Some(end)) if told != Some(end) && matches!(standing.state, State::Active | State::Trialing) => {
            (Some(NoticeKind::SubscriptionEnding), Some(end))
        }
        (Some(_), None) if matches!(standing.state, State::Active | State::Trialing | State::Grace) => {
            (Some(NoticeKind::SubscriptionContinued), None)
        }
        _ => (None, told),
    }
}

/// The trial's end, if it is still to be told: not where the subscription ends with it, which is told as that.
fn trial_to_be_told(account: &Account, standing: &Standing) -> Option<EpochSecs> {
    let subscription = account.subscription.as_ref().filter(|_| standing.state == State::Trialing)?;
    let end = subscription.trial_end.filter(|end| account.trial_end_told != Some(*end))?;
    subscription.cancel_at.is_none_or(|cancel_at| end < cancel_at).then_some(end)
}

/// What tells of a payment that was refunded or disputed. Its id is made of what Stripe shows, so that each state of it is told
/// once, however often it is heard of. The account is not changed by it.
#[must_use]
pub fn of_payment(account: &Account, customer: &CustomerId, payment: Payment, prices: &PriceList, now: EpochSecs) -> Notice {
    let standing = standing(Some(account), prices, now);
    let (kind, notice_id) = match &payment.dispute_id {
        Some(dispute) => (NoticeKind::PaymentDisputed, composite_key(&["dispute", dispute, &payment.status])),
        None => {
            let refunded = payment.amount_minor.to_string();
            (NoticeKind::PaymentRefunded, composite_key(&["refund", &payment.charge_id, &refunded]))
        }
    };
    Notice {
        notice_id,
        kind,
        user_id: account.user_id.clone(),
        customer_id: Some(customer.clone()),
        at: account.local_time(now),
        state: standing.state,
        reason: standing.reason,
        plan: standing.plan.as_ref().map(ToString::to_string),
        previous_plan: None,
        access_until: standing.access_until,
        invoice_id: None,
        day: None,
        payment: Some(payment),
    }
}

/// When the account is next to be looked at although Stripe says nothing: a reminder, the end of grace, three days before a trial's
/// end, the end of the trial, of the subscription or of what was paid for late. A real moment, whatever clock the account lives by.
///
/// It is the first one after what was told, and not after now: a moment that passed between the two is due, and told by nobody yet.
#[must_use]
pub fn next_due(account: &Account, prices: &PriceList) -> Option<EpochSecs> {
    // An older version does not keep up to when it told. It told at the last fetch at least.
    let now = account.told_at.unwrap_or(EpochSecs::from_ms(account.fetched_at_ms));
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
        .chain(trial_to_be_told(account, &standing).map(|end| end.plus_days(-TRIAL_TOLD_DAYS)))
        .filter(|moment| *moment > local)
        .min()
        .map(|moment| moment.plus_secs(account.clock_offset_secs.saturating_neg()))
}

/// The days whose reminder is reached.
fn reminders_reached<'a>(account: &Account, prices: &'a PriceList, standing: &Standing, local: EpochSecs) -> &'a [u16] {
    let days = prices.grace.reminder_days.as_slice();
    let Some(since) = account.overdue_since().filter(|_| standing.state == State::Grace) else { return &[] };
    let reached = days.iter().take_while(|day| since.plus_days(i64::from(**day)) <= local).count();
    days.get(..reached).unwrap_or_default()
}

fn notice_id(account: &Account, kind: NoticeKind) -> String {
    composite_key(&[account.user_id.as_str(), &account.version.to_string(), kind.as_str()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        account::{Overdue, tests::subscribed},
        id::InvoiceId,
        price_list::GraceAccess,
    };

    fn at(text: &str) -> EpochSecs {
        EpochSecs::parse_rfc3339(text).unwrap()
    }

    /// Tells what is due at `now` and remembers it, as a commit would.
    fn tell(account: &mut Account, now: &str) -> Vec<String> {
        account.version += 1;
        let notices = due(account, &PriceList::shipped().unwrap(), at(now));
        notices.iter().map(|notice| notice.kind.as_str().to_owned()).collect()
    }

    /// What is due next, once everything was told up to `now`.
    fn next(account: &Account, now: &str) -> String {
        let told = Account { told_at: Some(at(now)), ..account.clone() };
        next_due(&told, &PriceList::shipped().unwrap()).map_or("-".into(), |due| due.to_string())
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
    fn access_is_told_to_be_back_only_when_something_is_allowed_again() {
        let mut worthless = PriceList::shipped().unwrap();
        worthless.plans.iter_mut().for_each(|plan| plan.grace = GraceAccess::None);
        let shipped = PriceList::shipped().unwrap();
        let (in_1, in_2) = (InvoiceId::new("in_1").unwrap(), InvoiceId::new("in_2").unwrap());
        for (prices, on_a_newer_invoice, on_payment) in [
            (&worthless, vec!["grace.started"], vec!["access.restored", "grace.cleared"]),
            (&shipped, vec!["access.restored", "grace.started"], vec!["grace.cleared"]),
        ] {
            let tell = |account: &mut Account, now: &str| {
                account.version += 1;
                due(account, prices, at(now)).iter().map(|notice| notice.kind.as_str()).collect::<Vec<_>>()
            };
            let mut account = subscribed("2026-11-10T00:00:00Z");
            account.subscription.as_mut().unwrap().status = Status::PastDue;
            account.overdue.insert(in_1.clone(), Overdue { since: at("2026-11-20T12:00:00Z") });
            assert_eq!(tell(&mut account, "2026-11-20T12:00:05Z"), ["grace.started"]);
            account.overdue.insert(in_2.clone(), Overdue { since: at("2026-11-26T12:00:00Z") });
            assert_eq!(tell(&mut account, "2026-11-27T12:00:00Z"), ["access.ended"]);
            // The older invoice is paid: the newer one's grace period still runs.
            account.overdue.remove(&in_1);
            assert_eq!(tell(&mut account, "2026-11-28T00:00:00Z"), on_a_newer_invoice);
            assert_eq!(tell(&mut account, "2026-11-28T00:00:01Z"), Vec::<&str>::new());
            account.overdue.clear();
            account.subscription.as_mut().unwrap().status = Status::Active;
            assert_eq!(tell(&mut account, "2026-11-28T01:00:00Z"), on_payment);
            assert_eq!(tell(&mut account, "2026-11-28T02:00:00Z"), Vec::<&str>::new());
        }
    }

    /// `sync` asks by its own clock, the sweeper by the moment of its event, and either may be the earlier one.
    #[test]
    fn who_asks_by_an_earlier_moment_than_before_takes_back_nothing_and_tells_nothing_twice() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        assert_eq!(tell(&mut account, "2026-11-20T12:00:05Z"), ["grace.started"]);
        assert_eq!(tell(&mut account, "2026-11-27T12:00:00Z"), ["access.ended"]);
        assert_eq!(tell(&mut account, "2026-11-27T11:59:58Z"), Vec::<String>::new());
        assert_eq!(next_due(&account, &PriceList::shipped().unwrap()), None);
        assert_eq!(tell(&mut account, "2026-11-27T12:00:01Z"), Vec::<String>::new());
        // Nor is a deadline forgotten that passed after it was told: it is due at once.
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(tell(&mut account, "2026-12-09T23:59:59Z"), ["subscription.ending"]);
        assert_eq!(next_due(&account, &PriceList::shipped().unwrap()), Some(at("2026-12-10T00:00:00Z")));
        // An older version does not say up to when it told: it told at its fetch.
        (account.told_at, account.fetched_at_ms) = (None, at("2026-12-09T00:00:00Z").as_secs() * 1000);
        assert_eq!(next_due(&account, &PriceList::shipped().unwrap()), Some(at("2026-12-10T00:00:00Z")));
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

    /// Tells what is due at `now` in full.
    fn told(account: &mut Account, now: &str) -> Vec<Notice> {
        account.version += 1;
        due(account, &PriceList::shipped().unwrap(), at(now))
    }

    #[test]
    fn notices_of_a_failed_payment_name_the_invoice_that_failed_first_and_reminders_their_day() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        for (invoice, since) in [("in_1", "2026-11-21T12:00:00Z"), ("in_2", "2026-11-20T12:00:00Z")] {
            account.overdue.insert(InvoiceId::new(invoice).unwrap(), Overdue { since: at(since) });
        }
        let mut seen = Vec::new();
        // The first reminder is a day late and says which day's it is.
        for now in ["2026-11-20T12:00:05Z", "2026-11-24T18:00:00Z", "2026-11-26T12:00:00Z", "2026-11-27T12:00:00Z"] {
            for notice in told(&mut account, now) {
                let invoice = notice.invoice_id.as_ref().map_or("-", InvoiceId::as_str);
                let reason = serde_json::to_value(notice.reason).unwrap();
                seen.push(format!("{} {invoice} {:?} {reason}", notice.kind.as_str(), notice.day));
            }
        }
        let expected = [
            "grace.started in_2 None null",
            "grace.reminder in_2 Some(3) null",
            "grace.reminder in_2 Some(6) null",
            "access.ended in_2 None \"payment_overdue\"",
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_last_invoice_that_fails_after_the_planned_end_is_told_as_that_alone() {
        for (state, told_before) in [(State::Free, "free"), (State::Ended, "pro")] {
            let mut account = subscribed("2026-11-10T00:00:00Z");
            account.subscription.as_mut().unwrap().status = Status::Canceled;
            let plan = Some(crate::domain::id::PlanId::new(told_before).unwrap());
            account.announced = Announced { state: Some(state), plan, ..Announced::default() };
            account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-12-10T01:00:00Z") });
            assert_eq!(tell(&mut account, "2026-12-10T01:00:05Z"), ["grace.started"], "{state:?}");
            assert_eq!(tell(&mut account, "2026-12-17T01:00:00Z"), ["access.ended"], "{state:?}");
        }
        // One that goes on gives access, and so does one that nobody was told of.
        for (status, state, first) in [
            (Status::PastDue, Some(State::Free), "account.provisioned"),
            (Status::PastDue, Some(State::Ended), "access.restored"),
            (Status::Canceled, None, "account.provisioned"),
        ] {
            let mut account = subscribed("2026-11-10T00:00:00Z");
            account.subscription.as_mut().unwrap().status = status;
            account.announced.state = state;
            account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-12-10T01:00:00Z") });
            assert_eq!(tell(&mut account, "2026-12-10T01:00:05Z"), [first, "grace.started"]);
        }
    }

    #[test]
    fn whose_end_was_told_hears_of_the_access_of_a_new_subscription_whatever_the_old_one_still_owes() {
        for (told_before, restored, changed) in
            [(State::Free, "account.provisioned", None), (State::Ended, "access.restored", Some("plan.changed"))]
        {
            let mut over = subscribed("2026-11-10T00:00:00Z");
            over.subscription.as_mut().unwrap().status = Status::Canceled;
            over.announced.state = Some(told_before);
            over.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-12-10T01:00:00Z") });
            assert_eq!(tell(&mut over, "2026-12-10T01:00:05Z"), ["grace.started"]);
            assert_eq!(tell(&mut over, "2026-12-10T02:00:00Z"), Vec::<String>::new());
            assert_eq!(tell(&mut over, "2026-12-13T01:00:00Z"), ["grace.reminder"]);

            let mut renewed = over.clone();
            let subscription = renewed.subscription.as_mut().unwrap();
            (subscription.status, subscription.plan) = (Status::Active, Some(crate::domain::id::PlanId::new("max").unwrap()));
            renewed.overdue.clear();
            let mut failing = renewed.clone();
            let told: Vec<_> = [restored, "grace.cleared"].into_iter().chain(changed).collect();
            assert_eq!(tell(&mut renewed, "2026-12-14T00:00:00Z"), told);
            assert_eq!(tell(&mut renewed, "2026-12-14T00:00:01Z"), Vec::<String>::new());

            // Its own first payment fails: a grace period of its own, with its own reminders.
            failing.subscription.as_mut().unwrap().status = Status::PastDue;
            failing.overdue.insert(InvoiceId::new("in_2").unwrap(), Overdue { since: at("2026-12-14T00:00:00Z") });
            let told: Vec<_> = [restored, "grace.started"].into_iter().chain(changed).collect();
            assert_eq!(tell(&mut failing, "2026-12-14T00:00:05Z"), told);
            assert_eq!(tell(&mut failing, "2026-12-17T00:00:00Z"), ["grace.reminder"]);

            // What it owes is paid late, and what was paid for lasts.
            let mut paid = over.clone();
            paid.overdue.clear();
            paid.paid_until = Some(at("2027-01-10T00:00:00Z"));
            assert_eq!(tell(&mut paid, "2026-12-14T00:00:00Z"), [restored, "grace.cleared"]);
            // Or nothing does.
            paid = over.clone();
            paid.overdue.clear();
            assert_eq!(tell(&mut paid, "2026-12-14T00:00:00Z"), ["subscription.ended"]);
            assert_eq!(paid.announced.of_access(), Some(State::Free));
        }
    }

    #[test]
    fn the_end_of_a_grace_period_that_a_pause_cut_short_names_its_invoice() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::Paused;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        let mut asked_for = account.clone();
        account.paused_by = Some(PausedBy::FinalPaymentFailure);
        told(&mut account, "2026-11-20T12:00:05Z");
        asked_for.paused_by = Some(PausedBy::Other("pause_requested".to_owned()));
        for (account, invoice) in [(&mut account, Some("in_1")), (&mut asked_for, None)] {
            let ended = told(account, "2026-11-27T12:00:00Z");
            let shown = (ended[0].kind, ended[0].reason, ended[0].invoice_id.as_ref().map(InvoiceId::as_str));
            assert_eq!(shown, (NoticeKind::AccessEnded, Some(Reason::Paused), invoice));
        }
    }

    #[test]
    fn a_sweep_that_missed_both_reminders_sends_the_last_ones() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-20T12:00:00Z") });
        told(&mut account, "2026-11-20T12:00:05Z");
        let late = told(&mut account, "2026-11-27T06:00:00Z");
        assert_eq!(late.iter().map(|notice| notice.day).collect::<Vec<_>>(), [Some(6)]);
    }

    #[test]
    fn a_change_of_plan_says_both_plans_and_is_not_told_with_the_provisioning() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.announced = Announced {
            state: Some(State::Free),
            plan: Some(crate::domain::id::PlanId::new("free").unwrap()),
            ..Announced::default()
        };
        let first = told(&mut account, "2026-11-10T00:00:01Z");
        assert_eq!(first.iter().map(|notice| notice.kind).collect::<Vec<_>>(), [NoticeKind::AccountProvisioned]);
        assert_eq!(first[0].previous_plan, None);
        account.subscription.as_mut().unwrap().plan = Some(crate::domain::id::PlanId::new("max").unwrap());
        let changed = told(&mut account, "2026-11-11T00:00:00Z");
        let plans = (changed[0].previous_plan.as_deref(), changed[0].plan.as_deref());
        assert_eq!((changed.len(), plans), (1, (Some("pro"), Some("max"))));
    }

    #[test]
    fn the_end_of_a_trial_is_told_three_days_before_and_again_if_it_is_prolonged() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.announced = Announced::default();
        let subscription = account.subscription.as_mut().unwrap();
        (subscription.status, subscription.trial_end) = (Status::Trialing, Some(at("2026-11-24T00:00:00Z")));
        assert_eq!(tell(&mut account, "2026-11-10T00:00:01Z"), ["account.provisioned"]);
        assert_eq!(next(&account, "2026-11-10T00:00:01Z"), "2026-11-21T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-11-20T23:59:59Z"), Vec::<String>::new());
        let ending = told(&mut account, "2026-11-21T00:00:00Z");
        assert_eq!(ending.iter().map(|notice| notice.kind).collect::<Vec<_>>(), [NoticeKind::TrialEnding]);
        assert_eq!(ending[0].access_until, Some(at("2026-11-24T00:00:00Z")));
        assert_eq!(next(&account, "2026-11-21T00:00:00Z"), "2026-11-24T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-11-22T00:00:00Z"), Vec::<String>::new());
        account.subscription.as_mut().unwrap().trial_end = Some(at("2026-12-24T00:00:00Z"));
        assert_eq!(tell(&mut account, "2026-11-23T00:00:00Z"), Vec::<String>::new());
        assert_eq!(next(&account, "2026-11-23T00:00:00Z"), "2026-12-21T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-12-22T00:00:00Z"), ["trial.ending"]);
        assert_eq!(tell(&mut account, "2026-12-24T00:00:00Z"), Vec::<String>::new());
    }

    #[test]
    fn a_trial_of_less_than_three_days_is_told_at_once_and_one_that_ends_with_its_subscription_is_not() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.announced = Announced::default();
        let subscription = account.subscription.as_mut().unwrap();
        (subscription.status, subscription.trial_end) = (Status::Trialing, Some(at("2026-11-12T00:00:00Z")));
        let mut ending = account.clone();
        assert_eq!(tell(&mut account, "2026-11-10T00:00:01Z"), ["account.provisioned", "trial.ending"]);
        ending.subscription.as_mut().unwrap().cancel_at = Some(at("2026-11-12T00:00:00Z"));
        assert_eq!(tell(&mut ending, "2026-11-10T00:00:01Z"), ["account.provisioned", "subscription.ending"]);
        // Who changes their mind goes on into the paid time, and hears of it.
        ending.subscription.as_mut().unwrap().cancel_at = None;
        assert_eq!(tell(&mut ending, "2026-11-11T00:00:01Z"), ["subscription.continued", "trial.ending"]);
    }

    #[test]
    fn a_cancellation_that_is_taken_back_is_told_once_and_so_is_a_new_one() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let cancel = |account: &mut Account, at: Option<EpochSecs>| account.subscription.as_mut().unwrap().cancel_at = at;
        cancel(&mut account, Some(at("2026-12-10T00:00:00Z")));
        let ending = told(&mut account, "2026-11-12T00:00:00Z");
        assert_eq!((ending[0].kind, ending[0].access_until), (NoticeKind::SubscriptionEnding, Some(at("2026-12-10T00:00:00Z"))));
        cancel(&mut account, None);
        assert_eq!(tell(&mut account, "2026-11-13T00:00:00Z"), ["subscription.continued"]);
        assert_eq!(tell(&mut account, "2026-11-14T00:00:00Z"), Vec::<String>::new());
        // While a payment is overdue no end is told; it is made up for.
        account.subscription.as_mut().unwrap().status = Status::PastDue;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-15T00:00:00Z") });
        cancel(&mut account, Some(at("2026-12-10T00:00:00Z")));
        assert_eq!(tell(&mut account, "2026-11-15T00:00:00Z"), ["grace.started"]);
        account.subscription.as_mut().unwrap().status = Status::Active;
        account.overdue.clear();
        assert_eq!(tell(&mut account, "2026-11-16T00:00:00Z"), ["grace.cleared", "subscription.ending"]);
        // Its end is no continuation.
        account.subscription.as_mut().unwrap().status = Status::Canceled;
        cancel(&mut account, None);
        assert_eq!(tell(&mut account, "2026-12-10T00:00:00Z"), ["subscription.ended"]);
        assert_eq!(account.announced.ending_at, None);
    }

    #[test]
    fn an_end_that_is_taken_back_while_access_has_ended_is_told_once_access_is_back() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().cancel_at = Some(at("2026-12-10T00:00:00Z"));
        assert_eq!(tell(&mut account, "2026-11-12T00:00:00Z"), ["subscription.ending"]);
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-12T00:00:00Z") });
        let subscription = account.subscription.as_mut().unwrap();
        (subscription.status, subscription.cancel_at) = (Status::PastDue, None);
        assert_eq!(tell(&mut account, "2026-11-19T00:00:00Z"), ["access.ended"]);
        account.overdue.clear();
        account.subscription.as_mut().unwrap().status = Status::Active;
        assert_eq!(tell(&mut account, "2026-11-20T00:00:00Z"), ["access.restored", "subscription.continued"]);
    }

    #[test]
    fn a_trial_that_ends_before_its_subscription_does_is_told_as_that() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        let subscription = account.subscription.as_mut().unwrap();
        (subscription.status, subscription.trial_end) = (Status::Trialing, Some(at("2026-11-24T00:00:00Z")));
        subscription.cancel_at = Some(at("2026-12-24T00:00:00Z"));
        assert_eq!(tell(&mut account, "2026-11-21T00:00:00Z"), ["subscription.ending", "trial.ending"]);
    }

    #[test]
    fn a_late_payment_after_the_end_restores_access_and_the_end_of_what_it_paid_for_is_told() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.subscription.as_mut().unwrap().status = Status::Canceled;
        account.overdue.insert(InvoiceId::new("in_1").unwrap(), Overdue { since: at("2026-11-10T00:00:00Z") });
        assert_eq!(tell(&mut account, "2026-11-17T00:00:00Z"), ["access.ended"]);
        account.overdue.clear();
        account.paid_until = Some(at("2026-12-10T00:00:00Z"));
        let restored = told(&mut account, "2026-11-20T00:00:00Z");
        assert_eq!((restored[0].kind, restored[0].access_until), (NoticeKind::AccessRestored, account.paid_until));
        assert_eq!(next(&account, "2026-11-20T00:00:00Z"), "2026-12-10T00:00:00Z");
        assert_eq!(tell(&mut account, "2026-12-10T00:00:00Z"), ["subscription.ended"]);
    }

    #[test]
    fn a_payments_notice_is_named_by_what_stripe_shows_of_it() {
        let (account, prices) = (subscribed("2026-11-10T00:00:00Z"), PriceList::shipped().unwrap());
        let of = |dispute: Option<&str>, status: &str, amount_minor| {
            let payment = Payment {
                charge_id: "ch_1".into(),
                dispute_id: dispute.map(str::to_owned),
                status: status.into(),
                amount_minor,
                currency: "usd".into(),
            };
            let notice = of_payment(&account, &account.customer_id, payment, &prices, at("2026-11-20T00:00:00Z"));
            format!("{} {}", notice.kind.as_str(), notice.notice_id)
        };
        assert_eq!(of(None, "partially_refunded", 100), "payment.refunded 6:refund/4:ch_1/3:100");
        assert_eq!(of(None, "refunded", 4_900), "payment.refunded 6:refund/4:ch_1/4:4900");
        assert_eq!(of(Some("du_1"), "needs_response", 4_900), "payment.disputed 7:dispute/4:du_1/14:needs_response");
        assert_eq!(of(Some("du_1"), "lost", 4_900), "payment.disputed 7:dispute/4:du_1/4:lost");
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
        let ids = due(&mut account, &PriceList::shipped().unwrap(), at("2026-11-20T00:00:00Z"));
        assert_eq!(ids[0].notice_id, "3:ada/1:1/19:subscription.ending");
        assert_eq!(ids[0].at, at("2026-11-21T00:00:00Z"));
    }
}
