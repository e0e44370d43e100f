//! What must come of a story, computed from the schedule of deliveries and from Stripe's own JSON, and not by the product's code.

use std::collections::{BTreeMap, BTreeSet};

use handlers::story::{Step, Story};
use serde_json::Value;
use tokentill::domain::{
    access::{Reason, State},
    account::Account,
    facts::Status,
    notice::{Notice, NoticeKind},
    time::EpochSecs,
};

use super::plays::DAY;

/// The days of grace, and those of reminders, as the price list we ship has them.
const GRACE_DAYS: i64 = 7;
const REMINDER_DAYS: [i64; 2] = [3, 6];

/// What G2 lets an order of deliveries decide: when the grace of each invoice began, as far as anybody could know.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Model {
    since: BTreeMap<String, i64>,
    /// The open invoices of the last look without a known failure.
    unfailed: BTreeSet<String>,
}

impl Model {
    /// A delivery led to a fetch at `now`, which saw `step`; `failure` is what the event itself told.
    ///
    /// The rule, by the letter: the earliest `created` of a payment failure seen for the invoice, or the first fetch that showed it
    /// open and attempted. An attempt is none that failed as long as its subscription runs: a bank is still being asked; nor is one
    /// of an invoice that was made after its subscription's end, of which no status tells.
    pub(super) fn look(&mut self, step: &Step, failure: Option<(&str, i64)>, now: i64) {
        let mut know = |invoice: &str, at: i64| {
            let since = self.since.entry(invoice.to_owned()).or_insert(at);
            *since = at.min(*since);
        };
        for invoice in step.invoices.iter().filter(|invoice| invoice["status"] == "open") {
            let id = invoice["id"].as_str().unwrap();
            let (created, told) = (invoice["created"].as_i64().unwrap(), failure.filter(|(failed, _)| *failed == id));
            if invoice["attempted"] == true && !is_silent(step, subscription_of(invoice), created) {
                // A clock that is behind Stripe's may show a moment before the invoice was made, or before it failed.
                know(id, now.max(created).max(told.map_or(now, |(_, at)| at)));
            }
            if let Some((_, at)) = told {
                know(id, at);
            }
        }
        // What is no longer open never opens again.
        let is_open =
            |id: &String| step.invoices.iter().any(|invoice| invoice["id"] == id.as_str() && invoice["status"] == "open");
        self.since.retain(|id, _| is_open(id));
        let open =
            step.invoices.iter().filter(|invoice| invoice["status"] == "open").map(|invoice| invoice["id"].as_str().unwrap());
        self.unfailed = open.filter(|id| !self.since.contains_key(*id)).map(str::to_owned).collect();
    }

    /// Whether a failure of an invoice is no news: an earlier one is known, or it was no longer open at the last look.
    pub(super) fn knows(&self, invoice: &str, at: i64) -> bool {
        self.since.get(invoice).map_or(!self.unfailed.contains(invoice), |since| *since <= at)
    }

    /// The overdue invoices of a subscription.
    pub(super) fn overdue(&self, step: &Step, subscription: &str) -> BTreeMap<String, i64> {
        let is_its =
            |id: &str| step.invoices.iter().any(|invoice| invoice["id"] == id && subscription_of(invoice) == subscription);
        self.since.iter().filter(|(id, _)| is_its(id)).map(|(id, since)| (id.clone(), *since)).collect()
    }
}

fn subscription_of(invoice: &Value) -> &str {
    invoice["parent"]["subscription_details"]["subscription"].as_str().unwrap()
}

/// Whether the subscription says nothing of an attempt to pay an invoice that was made at a moment.
fn is_silent(step: &Step, subscription: &str, created: i64) -> bool {
    let found = step.subscriptions.iter().find(|found| found["id"] == subscription).unwrap();
    match found["status"].as_str() {
        Some("active" | "trialing") => true,
        Some("canceled") => found["ended_at"].as_i64().unwrap() <= created,
        _ => false,
    }
}

/// What access is, by Stripe's own word of the subscription that counts.
pub(super) fn state(
    step: &Step,
    subscription: Option<&str>,
    deadline: Option<EpochSecs>,
    now: EpochSecs,
) -> (State, Option<Reason>) {
    let Some(counts) = step.subscriptions.iter().find(|shown| Some(shown["id"].as_str().unwrap()) == subscription) else {
        return (State::Free, None);
    };
    let overdue = |reason| match deadline {
        Some(deadline) if now < deadline => (State::Grace, None),
        _ => (State::Ended, Some(reason)),
    };
    match counts["status"].as_str().unwrap() {
        "active" => (State::Active, None),
        "past_due" | "unpaid" => overdue(Reason::PaymentOverdue),
        "paused" => match counts["status_details"]["paused"]["subscription"]["type"].as_str().unwrap() {
            "first_payment_failure" | "final_payment_failure" => overdue(Reason::Paused),
            _ => (State::Ended, Some(Reason::Paused)),
        },
        "canceled" if deadline.is_some() => overdue(Reason::PaymentOverdue),
        "canceled" if paid_late(step, counts).is_some_and(|end| now.as_secs() < end) => (State::Active, None),
        "incomplete" | "incomplete_expired" | "canceled" => (State::Free, None),
        other => panic!("no story has a subscription that is {other}"),
    }
}

/// The end of what was paid for after the subscription's end.
fn paid_late(step: &Step, subscription: &Value) -> Option<i64> {
    let its = |invoice: &&Value| {
        let paid_at = invoice["status_transitions"]["paid_at"].as_i64();
        subscription_of(invoice) == subscription["id"] && paid_at > subscription["ended_at"].as_i64()
    };
    let lines = step.invoices.iter().filter(its).flat_map(|invoice| invoice["lines"]["data"].as_array().unwrap());
    lines.filter_map(|line| line["period"]["end"].as_i64()).max()
}

/// The second in which grace ends.
pub(super) fn deadline(overdue: &BTreeMap<String, i64>) -> Option<i64> {
    Some(overdue.values().min()? + GRACE_DAYS * DAY)
}

/// How many reminders are due by then.
pub(super) fn reminders(overdue: &BTreeMap<String, i64>, now: i64) -> u8 {
    let since = overdue.values().min().filter(|since| now < *since + GRACE_DAYS * DAY);
    let reached = |since: &i64| REMINDER_DAYS.into_iter().filter(|day| since + day * DAY <= now).count();
    u8::try_from(since.map_or(0, reached)).unwrap()
}

/// When the first payment of each invoice failed, whoever was told.
pub(super) fn failures(story: &Story) -> BTreeMap<&str, i64> {
    let mut failures = BTreeMap::new();
    for (invoice, at) in story.events.iter().filter_map(|event| event.failure()) {
        let earliest = failures.entry(invoice).or_insert(at);
        *earliest = at.min(*earliest);
    }
    failures
}

/// What a user has been told so far. It takes each notice, or says why it should not have been sent: told once means that what is
/// told is always another state than the one told before.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listener {
    access: Access,
    in_grace: bool,
    reminders: u8,
    plan: Option<String>,
    ending: Option<i64>,
    trial_ending: BTreeSet<i64>,
    payments: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    #[default]
    Never,
    Given,
    Taken,
    /// The subscription's end was told.
    Over,
}

impl Listener {
    /// The notices of one commit. Each of them names the plan, so its change is heard first.
    pub(super) fn hear(&mut self, notices: &[Notice]) -> Result<(), String> {
        let is_of_plan = |notice: &&Notice| notice.kind == NoticeKind::PlanChanged;
        let others = notices.iter().filter(|notice| !is_of_plan(notice));
        notices.iter().filter(is_of_plan).chain(others).try_for_each(|notice| self.hear_one(notice))
    }

    fn hear_one(&mut self, notice: &Notice) -> Result<(), String> {
        let until = notice.access_until.map(|until| until.as_secs());
        let is_news = match notice.kind {
            NoticeKind::AccountProvisioned => matches!(self.access, Access::Never | Access::Over),
            NoticeKind::PlanChanged => self.plan != notice.plan,
            NoticeKind::GraceStarted => !self.in_grace,
            NoticeKind::GraceReminder => self.in_grace && self.reminders < 2,
            NoticeKind::GraceCleared => self.in_grace,
            NoticeKind::AccessEnded => self.access == Access::Given || self.owes_the_last_invoice(),
            // Also to whom nothing was told, since the first look came after the end.
            NoticeKind::AccessRestored => self.access != Access::Given,
            NoticeKind::SubscriptionEnding => self.ending != until && until.is_some(),
            NoticeKind::SubscriptionContinued => self.ending.is_some(),
            NoticeKind::SubscriptionEnded => self.access != Access::Over || self.owes_the_last_invoice(),
            NoticeKind::TrialEnding => until.is_some_and(|until| self.trial_ending.insert(until)),
            NoticeKind::PaymentRefunded | NoticeKind::PaymentDisputed => self.payments.insert(notice.notice_id.clone()),
        };
        if !is_news {
            return Err(format!("{} is no news to {self:?}", notice.kind.as_str()));
        }
        match notice.kind {
            NoticeKind::AccountProvisioned | NoticeKind::AccessRestored => self.access = Access::Given,
            NoticeKind::AccessEnded => (self.access, self.in_grace) = (Access::Taken, false),
            NoticeKind::SubscriptionEnded => (self.access, self.in_grace) = (Access::Over, false),
            NoticeKind::GraceStarted => (self.in_grace, self.reminders) = (true, 0),
            NoticeKind::GraceCleared => self.in_grace = false,
            NoticeKind::GraceReminder => self.reminders += 1,
            NoticeKind::SubscriptionEnding => self.ending = until,
            NoticeKind::SubscriptionContinued => self.ending = None,
            NoticeKind::PlanChanged | NoticeKind::TrialEnding => {}
            NoticeKind::PaymentRefunded | NoticeKind::PaymentDisputed => return Ok(()),
        }
        self.plan.clone_from(&notice.plan);
        Ok(())
    }

    /// The subscription's end was told, or nothing at all, and then that its last invoice is owed.
    fn owes_the_last_invoice(&self) -> bool {
        matches!(self.access, Access::Over | Access::Never) && self.in_grace
    }

    /// Whether what was told last is the state of the account.
    pub(super) fn knows(&self, account: &Account, state: State) -> bool {
        let is_over = account.subscription.as_ref().is_some_and(|subscription| subscription.status == Status::Canceled);
        let access = match state {
            State::Grace => self.access == Access::Given || (is_over && self.owes_the_last_invoice()),
            State::Trialing | State::Active => self.access == Access::Given,
            // Who was first looked at after the end was never told of access, and is not told of its end.
            State::Ended => self.access != Access::Given,
            State::Free | State::None => matches!(self.access, Access::Never | Access::Over),
        };
        // What the account keeps of it, so that a new subscription is told as one after none.
        let owes_only = state == State::Grace && self.access != Access::Given;
        access && self.in_grace == (state == State::Grace) && account.announced.end_told.is_some() == owes_only
    }
}
