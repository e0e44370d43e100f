//! What must hold, said once more and in another way: a plain model of what was sent, what Stripe has, and what therefore must
//! stand in the tables. It reads stored items by their attributes and shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};

use dynoxide::AttributeValue;
use serde_json::Value;

use crate::{
    engine::{Engine, Item, number, numbers, text, whole},
    front::Told,
    mail::Outside,
    story::Story,
    stripe::{Customer, FINAL_AFTER_SECS, Stripe, Subscription, Taken},
};

const DAY_SECS: i64 = 86_400;
/// A grace period is seven days.
pub(crate) const GRACE_SECS: i64 = 7 * DAY_SECS;
/// By how much the clock that a notice was dated by may differ from Stripe's.
pub(crate) const CLOCKS_DIFFER_SECS: i64 = 5;
const METERS: [&str; 3] = ["requests", "tokens_in", "tokens_out"];

pub(crate) type Checked = Result<(), String>;

/// A use of the product as it was reported once.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    /// Who.
    pub user: &'static str,
    /// The request it served.
    pub request: String,
    /// Whether the call succeeded.
    pub success: bool,
    /// Tokens in and out.
    pub tokens: (i64, i64),
    /// When it happened, as reported.
    pub at: i64,
    /// When it was reported.
    pub sent_at: i64,
}

/// What is known of the world, from outside.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// Every report of a use.
    pub sent: Vec<Sent>,
    /// Whether a function's clock may be more than two seconds ahead of the queue's. It may then take a hint for seen that is not, and
    /// what it told is known only when somebody looks again.
    may_skip_what_is_new: bool,
    /// Every event that reached the webhook, and when.
    told: Told,
    /// Every row as it was first seen.
    rows: BTreeMap<(String, String), Row>,
    /// The e-mails that notices were claimed for.
    emails: BTreeMap<String, String>,
    /// How much had happened when this was checked last.
    checked: (u64, usize, usize),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    user: String,
    request: String,
    success: bool,
    tokens: (i64, i64),
    at: i64,
    verdict: String,
    counted: BTreeMap<String, i64>,
    tally_key: String,
    seen: i64,
}

impl Row {
    fn read(item: &Item) -> Self {
        Self {
            user: text(item, "user_id").to_owned(),
            request: text(item, "request_id").to_owned(),
            success: matches!(item.get("success"), Some(AttributeValue::BOOL(true))),
            tokens: (number(item, "tokens_in"), number(item, "tokens_out")),
            at: number(item, "timestamp"),
            verdict: text(item, "verdict").to_owned(),
            counted: numbers(item, "counted"),
            tally_key: text(item, "tally_key").to_owned(),
            seen: number(item, "seen"),
        }
    }

    fn is_parked(&self) -> bool {
        self.verdict.starts_with("unknown_")
    }

    /// The first second of the billed segment it was counted in.
    fn segment_start(&self) -> Option<i64> {
        segment(&self.tally_key).map(|(_, start)| start)
    }
}

/// The subscription and the first second of the billed segment that a tally's key names: `2026-11-22/6:billed/5:sub_1/10:1795305600/…`.
fn segment(tally_key: &str) -> Option<(&str, i64)> {
    let mut parts = tally_key.split('/').skip(1);
    if parts.next() != Some("6:billed") {
        return None;
    }
    let (_, subscription) = parts.next()?.split_once(':')?;
    Some((subscription, parts.next()?.split_once(':')?.1.parse().ok()?))
}

/// What Stripe has: of what it took, what it did not throw away.
fn kept(stripe: &Stripe) -> Vec<Taken> {
    stripe.taken().into_iter().filter(|taken| !taken.is_thrown_away).collect()
}

fn customer_of(user: &str) -> String {
    format!("cus_{}", user.bytes().map(|byte| format!("{byte:02x}")).collect::<String>())
}

pub(crate) fn holds(condition: bool, what: impl FnOnce() -> String) -> Checked {
    if condition { Ok(()) } else { Err(what()) }
}

impl Model {
    /// A model of a world in which nothing has happened yet.
    pub(crate) fn of(story: &Story, told: Told) -> Self {
        Self { may_skip_what_is_new: story.most_skew_ms > 2_000, told, ..Self::default() }
    }

    /// What holds at every moment.
    ///
    /// # Errors
    /// What does not hold, by the guarantee's name.
    pub(crate) fn check(&mut self, engine: &Engine, stripe: &Stripe, outside: &Outside) -> Checked {
        let changes = (engine.writes(), stripe.reports_taken(), outside.heard());
        if self.checked == changes {
            return Ok(());
        }
        // G2: of what has a version every write follows upon the one before it, so that none undoes another. G8: no notice without
        // a change.
        engine.wrong().map_or(Ok(()), Err)?;
        self.check_notices(engine, stripe, outside)?;
        self.check_rows(engine)?;
        self.check_tallies(engine)?;
        self.check_periods(stripe)?;
        self.check_reports(stripe)?;
        self.checked = changes;
        Ok(())
    }

    /// G3, G5, G9: every row was reported so by its own user, a request has one, and what was decided stays.
    fn check_rows(&mut self, engine: &Engine) -> Checked {
        let mut rows = BTreeMap::new();
        let mut requests = BTreeSet::new();
        for item in engine.items("ledger") {
            let row = Row::read(&item);
            let key = (text(&item, "request_key").to_owned(), text(&item, "row").to_owned());
            let was_sent = self.sent.iter().any(|sent| {
                sent.user == row.user && sent.request == row.request && sent.success == row.success && sent.tokens == row.tokens
            });
            holds(was_sent, || format!("G9: nobody reported {row:?}"))?;
            if row.success {
                holds(requests.insert((row.user.clone(), row.request.clone())), || {
                    format!("G3: two rows of one request: {row:?}")
                })?;
            }
            let (tokens_in, tokens_out) = row.tokens;
            let expected = |meter: &str| {
                [("requests", 1), ("tokens_in", tokens_in), ("tokens_out", tokens_out)]
                    .iter()
                    .find(|(name, _)| *name == meter)
                    .map(|(_, quantity)| *quantity)
            };
            let is_right = row.counted.iter().all(|(meter, quantity)| expected(meter) == Some(*quantity));
            holds(is_right, || format!("G3: counted something else than was used: {row:?}"))?;
            let is_counted = row.verdict == "counted";
            holds(is_counted == row.counted.contains_key("requests"), || format!("G5: {row:?} is half counted"))?;
            holds(!is_counted || row.success, || format!("G3: a failed call was counted: {row:?}"))?;
            rows.insert(key, row);
        }
        for (key, before) in &self.rows {
            let Some(now) = rows.get(key) else { return Err(format!("G5: a row is gone: {before:?}")) };
            let same = Row { seen: before.seen, ..now.clone() };
            let was_decided = before.is_parked() && !now.is_parked();
            holds(same == *before || was_decided, || format!("G5: a row changed: {before:?} to {now:?}"))?;
            holds(now.seen >= before.seen, || format!("G5: seen fell: {before:?} to {now:?}"))?;
        }
        self.rows = rows;
        Ok(())
    }

    /// G3, G4: a tally is the sum of its rows, at every moment.
    fn check_tallies(&self, engine: &Engine) -> Checked {
        let mut of_rows: BTreeMap<(String, String, String), i64> = BTreeMap::new();
        for row in self.rows.values() {
            for (meter, quantity) in &row.counted {
                *of_rows.entry((row.user.clone(), row.tally_key.clone(), meter.clone())).or_default() += quantity;
            }
        }
        let mut of_tallies: BTreeMap<(String, String, String), i64> = BTreeMap::new();
        for item in engine.items("tallies") {
            let sharded = text(&item, "tally_key");
            let tally_key = sharded.rsplit_once('/').map_or(sharded, |(key, _)| key);
            for (attribute, value) in &item {
                if let Some(meter) = attribute.strip_prefix("counted:") {
                    let key = (text(&item, "user_id").to_owned(), tally_key.to_owned(), meter.to_owned());
                    *of_tallies.entry(key).or_default() += whole(value);
                }
            }
        }
        holds(of_rows == of_tallies, || format!("G4: rows say {of_rows:?}, tallies say {of_tallies:?}"))
    }

    /// G6: usage lies in the period in which it happened; renewals are known to everybody. That a subscription ended and another one
    /// began may not have been heard of.
    fn check_periods(&self, stripe: &Stripe) -> Checked {
        let customers = stripe.customers();
        for row in self.rows.values() {
            let Some((id, start)) = segment(&row.tally_key) else { continue };
            let mut own =
                customers.iter().filter(|customer| customer.user == row.user).flat_map(|customer| &customer.subscriptions);
            let Some(subscription) = own.find(|subscription| subscription.id == id && subscription.began <= start) else {
                return Err(format!("G6: there was no subscription then: {row:?}"));
            };
            let same_period = subscription.period(row.at).0 == subscription.period(start).0;
            holds(start <= row.at && same_period, || format!("G6: in another period than it happened: {row:?}"))?;
        }
        Ok(())
    }

    /// What was counted of a user's meter in billed segments that began before a moment.
    fn billed_before(&self, user: &str, meter: &str, moment: i64) -> i64 {
        let of_user = self.rows.values().filter(|row| row.user == user);
        let billed = of_user.filter(|row| row.segment_start().is_some_and(|start| start < moment));
        billed.filter_map(|row| row.counted.get(meter)).sum()
    }

    /// G3: Stripe never has more than was counted, in no period and of nobody else; and nothing comes when it is billed no more.
    fn check_reports(&self, stripe: &Stripe) -> Checked {
        let taken = kept(stripe);
        let users: BTreeSet<&str> = self.sent.iter().map(|sent| sent.user).collect();
        let customers = stripe.customers();
        for user in users {
            let customer = customer_of(user);
            let of_user: Vec<_> = taken.iter().filter(|taken| taken.report.customer.as_str() == customer).collect();
            let starts: BTreeSet<i64> =
                self.rows.values().filter(|row| row.user == user).filter_map(Row::segment_start).collect();
            for meter in METERS {
                for before in starts.iter().copied().chain([i64::MAX]) {
                    let of_meter = of_user.iter().filter(|taken| taken.report.event_name == meter);
                    let in_time = of_meter.filter(|taken| taken.report.minute.as_secs() < before);
                    let reported: i64 = in_time.map(|taken| i64::try_from(taken.report.quantity).unwrap_or(i64::MAX)).sum();
                    let counted = self.billed_before(user, meter, before);
                    holds(reported <= counted, || {
                        format!(
                            "G3: Stripe has {reported} {meter} of {user} in periods before {before}, and {counted} were counted"
                        )
                    })?;
                }
            }
            for taken in of_user {
                let minute = taken.report.minute.as_secs();
                let own = customers.iter().filter(|customer| customer.user == *user).flat_map(|customer| &customer.subscriptions);
                let begun: Vec<&Subscription> = own.filter(|subscription| subscription.began <= minute).collect();
                holds(!begun.is_empty(), || format!("G3: a report before every subscription: {taken:?}"))?;
                // A switch of prices or an end within the period may not have been heard of in time.
                let is_in_time = begun.iter().any(|subscription| {
                    let (_, end) = subscription.period(minute);
                    let told = subscription.plans.iter().map(|(at, _)| *at).chain(subscription.ended);
                    let is_cut = told.into_iter().any(|at| (minute..end).contains(&at));
                    is_cut || taken.at < end + FINAL_AFTER_SECS
                });
                holds(is_in_time, || format!("G4: a report came after its invoice was final: {taken:?}"))?;
            }
        }
        Ok(())
    }

    /// G8: an event tells what was committed, under one id always the same; an e-mail is attempted once, and goes to whom it is about.
    fn check_notices(&mut self, engine: &Engine, stripe: &Stripe, outside: &Outside) -> Checked {
        let rows: BTreeMap<String, Item> =
            engine.items("outbox").into_iter().map(|row| (text(&row, "notice_id").to_owned(), row)).collect();
        for (notice_id, before) in &self.emails {
            let now = rows.get(notice_id).map_or("", |row| text(row, "email_id"));
            holds(now == before, || format!("G8: the e-mail {before} of {notice_id} is now {now:?}"))?;
        }
        let mut told: BTreeMap<String, Value> = BTreeMap::new();
        for event in outside.events() {
            let id = event["id"].as_str().unwrap_or_default().to_owned();
            let Some(row) = rows.get(&id) else { return Err(format!("G8: nothing was committed for the event {event}")) };
            let is_it = event["type"] == text(row, "kind")
                && event["user_id"] == text(row, "user_id")
                && event["state"] == text(row, "state")
                && event["invoice_id"].as_str().unwrap_or_default() == text(row, "invoice_id");
            holds(is_it, || format!("G8: {event} is not what was committed: {row:?}"))?;
            let before = told.entry(id).or_insert_with(|| event.clone());
            holds(*before == event, || format!("G8: one id and two events: {before} and {event}"))?;
        }
        let mut sent = BTreeSet::new();
        let customers = stripe.customers();
        for email in outside.emails() {
            holds(sent.insert(email.email_id.clone()), || format!("G8: sent twice: {email:?}"))?;
            let Some(row) = rows.values().find(|row| text(row, "email_id") == email.email_id) else {
                return Err(format!("G8: an e-mail that no notice has: {email:?}"));
            };
            let customer = customers.iter().find(|customer| customer.user == text(row, "user_id"));
            let address = customer.and_then(Customer::address);
            holds(address.as_ref() == Some(&email.to), || format!("G8: {email:?} is about somebody else: {row:?}"))?;
        }
        for (notice_id, row) in &rows {
            let email_id = text(row, "email_id");
            if !email_id.is_empty() {
                self.emails.insert(notice_id.clone(), email_id.to_owned());
            }
            // What it tells has happened at Stripe.
            let (kind, invoice, at) = (text(row, "kind"), text(row, "invoice_id"), number(row, "at"));
            let subscriptions = customers
                .iter()
                .filter(|customer| customer.user == text(row, "user_id"))
                .flat_map(|customer| &customer.subscriptions);
            let failed = subscriptions.filter_map(|subscription| subscription.failed.get(invoice)).next();
            let is_true = match (kind, invoice.is_empty()) {
                ("grace.started" | "grace.reminder", _) => failed.is_some_and(|first| *first <= at + CLOCKS_DIFFER_SECS),
                ("access.ended", false) => failed.is_some_and(|first| first + GRACE_SECS <= at + CLOCKS_DIFFER_SECS),
                _ => true,
            };
            holds(is_true, || format!("G8: what is told has not happened: {row:?}, failed at {failed:?}"))?;
        }
        Ok(())
    }

    /// Whether no notice waits for anything.
    pub(crate) fn is_everything_told(&self, engine: &Engine) -> bool {
        engine.items("outbox").iter().all(|row| !row.contains_key("pending_shard"))
    }

    /// G8: at rest every notice was told as an event, and what became of its e-mail is recorded, and true.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check_notices_at_rest(&self, engine: &Engine, outside: &Outside) -> Checked {
        let events: BTreeSet<String> =
            outside.events().iter().map(|event| event["id"].as_str().unwrap_or_default().to_owned()).collect();
        let emails: BTreeSet<String> = outside.emails().into_iter().map(|email| email.email_id).collect();
        for row in engine.items("outbox") {
            holds(events.contains(text(&row, "notice_id")), || format!("G8: never told: {row:?}"))?;
            let was_taken = emails.contains(text(&row, "email_id"));
            let is_true = match text(&row, "email_state") {
                "sent" => was_taken,
                "unknown" => true,
                "refused" | "no_address" | "outdated" | "off" => !was_taken,
                _ => false,
            };
            holds(is_true, || format!("G8: an e-mail's fate is not what is recorded, it was taken: {was_taken}; {row:?}"))?;
        }
        Ok(())
    }

    /// G8: at rest what was told last of a user's access is what it is.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check_last_told(&self, engine: &Engine, user: &str, state: &str) -> Checked {
        const OF_ACCESS: [&str; 4] = ["account.provisioned", "access.restored", "access.ended", "subscription.ended"];
        let rows = engine.items("outbox");
        let of_user = rows.iter().filter(|row| text(row, "user_id") == user && OF_ACCESS.contains(&text(row, "kind")));
        let version = |row: &&Item| {
            let rest = text(row, "notice_id").get(format!("{}:{user}/", user.len()).len()..).unwrap_or_default();
            rest.split(['/', ':']).nth(1).and_then(|version| version.parse::<i64>().ok()).unwrap_or(0)
        };
        let last = of_user.max_by_key(version).map(|row| text(row, "kind"));
        let is_true = match state {
            "active" | "grace" => matches!(last, Some("account.provisioned" | "access.restored")),
            "ended" => matches!(last, None | Some("access.ended")),
            _ => matches!(last, None | Some("subscription.ended" | "access.ended")),
        };
        holds(is_true, || format!("G8: {user} is {state}, and what was told last is {last:?}; told: {rows:?}"))
    }

    /// G5: at rest every report of a use is in the ledger, or in the quarantine for a reason that is true.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check_events_at_rest(&self, engine: &Engine, now: i64) -> Checked {
        let quarantine = engine.items("quarantine");
        let inputs: Vec<(&str, Value)> = quarantine
            .iter()
            .map(|item| (text(item, "reason"), serde_json::from_str(text(item, "input")).unwrap_or(Value::Null)))
            .collect();
        for sent in &self.sent {
            let of_request: Vec<&Row> = self
                .rows
                .values()
                .filter(|row| row.user == sent.user && row.request == sent.request && row.success == sent.success)
                .collect();
            if of_request.iter().any(|row| row.tokens == sent.tokens && (row.success || row.at == sent.at)) {
                continue;
            }
            let stands_otherwise = of_request.iter().any(|row| row.tokens != sent.tokens);
            let is_kept = inputs.iter().any(|(reason, input)| {
                let is_it = input["user_id"] == sent.user
                    && input["request_id"] == sent.request
                    && input["tokens_in"] == sent.tokens.0
                    && input["success"] == sent.success;
                let is_true = match *reason {
                    "conflict" => stands_otherwise,
                    "timestamp_too_old" => sent.at < now - 35 * DAY_SECS,
                    // By a clock that may be some seconds behind.
                    "timestamp_in_future" => sent.at > sent.sent_at + 295,
                    _ => false,
                };
                is_it && is_true
            });
            holds(is_kept, || {
                format!("G5: neither in the ledger nor in the quarantine: {sent:?}; of its request: {of_request:?}")
            })?;
        }
        Ok(())
    }

    /// G4: at rest what was counted in billed segments is at Stripe, rejected or in the quarantine, all of it.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check_money_at_rest(&self, engine: &Engine, stripe: &Stripe) -> Checked {
        let mut billed: BTreeMap<(String, &str), i64> = BTreeMap::new();
        let mut billed_meters: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
        for item in engine.items("tallies") {
            let sharded = text(&item, "tally_key");
            let tally_key = sharded.rsplit_once('/').map_or(sharded, |(key, _)| key);
            let Some(AttributeValue::M(billing)) = item.get("billing") else { continue };
            let Some(AttributeValue::L(meters)) = billing.get("billed") else { continue };
            let meters = meters.iter().filter_map(|meter| match meter {
                AttributeValue::S(meter) => Some(meter.clone()),
                _ => None,
            });
            billed_meters.entry((text(&item, "user_id").to_owned(), tally_key.to_owned())).or_default().extend(meters);
        }
        for row in self.rows.values() {
            let Some(meters) = billed_meters.get(&(row.user.clone(), row.tally_key.clone())) else { continue };
            for meter in METERS.into_iter().filter(|meter| meters.contains(*meter)) {
                *billed.entry((row.user.clone(), meter)).or_default() += row.counted.get(meter).copied().unwrap_or(0);
            }
        }
        let mut settled: BTreeMap<(String, &str), i64> = billed.keys().map(|key| (key.clone(), 0)).collect();
        for taken in kept(stripe) {
            for ((user, meter), sum) in &mut settled {
                if taken.report.customer.as_str() == customer_of(user) && taken.report.event_name == *meter {
                    *sum += i64::try_from(taken.report.quantity).unwrap_or(i64::MAX);
                }
            }
        }
        for item in engine.items("quarantine") {
            if !matches!(text(&item, "reason"), "period_closed" | "refused") {
                continue;
            }
            let input: Value = serde_json::from_str(text(&item, "input")).unwrap_or(Value::Null);
            for ((user, meter), sum) in &mut settled {
                if text(&item, "user_id") == user && input["meter"] == *meter {
                    *sum += input["quantity"].as_i64().unwrap_or(0);
                }
            }
        }
        for item in engine.items("books") {
            let rejected = numbers(&item, "rejected");
            for ((user, meter), sum) in &mut settled {
                if text(&item, "user_id") == user {
                    *sum += rejected.get(*meter).copied().unwrap_or(0);
                }
            }
        }
        let open: Vec<String> = billed
            .iter()
            .filter(|(key, quantity)| settled.get(*key) != Some(quantity))
            .filter(|((user, meter), _)| !is_left_to_a_person(engine, stripe, user, meter))
            .map(|((user, meter), quantity)| {
                let settled = settled.get(&(user.clone(), *meter)).copied().unwrap_or(0);
                format!("{quantity} {meter} of {user} were counted, {settled} are reported, rejected or in the quarantine")
            })
            .collect();
        holds(open.is_empty(), || format!("G4: {}", open.join("; ")))
    }

    /// G2: at rest an account is Stripe's present state and the earliest failure that anybody told of.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check_accounts_at_rest(&self, engine: &Engine, stripe: &Stripe, now: i64) -> Checked {
        let accounts = engine.items("accounts");
        for customer in stripe.customers() {
            let Some(account) = accounts.iter().find(|account| text(account, "user_id") == customer.user) else {
                return Err(format!("G2: {} has no account", customer.user));
            };
            if self.has_untold_debt(&customer, now) {
                continue;
            }
            let Some(last) = customer.counts(now) else { continue };
            let Some(AttributeValue::M(kept)) = account.get("subscription") else {
                return Err(format!("G2: {} has no subscription, and Stripe has {last:?}", customer.user));
            };
            let status = String::from(last.status());
            let is_same = matches!(kept.get("status"), Some(AttributeValue::S(kept)) if *kept == status)
                && matches!(kept.get("id"), Some(AttributeValue::S(kept)) if *kept == last.id);
            holds(is_same, || format!("G2: {} is {kept:?}, and at Stripe {last:?}", customer.user))?;
            let overdue = match account.get("overdue") {
                Some(AttributeValue::M(overdue)) => overdue.clone(),
                _ => Default::default(),
            };
            let since = |invoice: &str| match overdue.get(invoice) {
                Some(AttributeValue::M(one)) => one.get("since").map(whole),
                _ => None,
            };
            match &last.overdue {
                None => holds(overdue.is_empty(), || {
                    format!("G2: {} is overdue, and Stripe knows of nothing: {overdue:?}", customer.user)
                })?,
                Some((invoice, created, failures)) => {
                    let Some(since) = since(invoice) else {
                        return Err(format!("G2: {} is not overdue, and at Stripe {last:?}", customer.user));
                    };
                    let first = failures.first().copied().unwrap_or(*created);
                    let told = self.failure_told(invoice, now).filter(|_| !self.may_skip_what_is_new).unwrap_or(now);
                    holds((first..=told).contains(&since), || {
                        format!("G2: grace of {invoice} begins at {since}, not between {first} and {told}")
                    })?;
                }
            }
        }
        Ok(())
    }
}

/// Whether what became of a report cannot be told by what its minute holds, so that it stays seen as unsettled: Stripe threw away
/// others of its meter in its minute, or another book of the day may have reported in it.
fn is_left_to_a_person(engine: &Engine, stripe: &Stripe, user: &str, meter: &str) -> bool {
    let taken = stripe.taken();
    let books = engine.items("books");
    let of_user = || books.iter().filter(|book| text(book, "user_id") == user);
    of_user().any(|book| {
        let Some(AttributeValue::M(intent)) = entry(book, meter).and_then(|entry| entry.get("intent")) else { return false };
        let minute = number(intent, "minute");
        let was_thrown_away = taken.iter().any(|taken| {
            let report = &taken.report;
            let is_same = report.customer.as_str() == customer_of(user) && report.event_name == meter;
            taken.is_thrown_away && is_same && report.minute.as_secs() == minute
        });
        let day = |book: &Item| text(book, "book_key").get(..10).map(str::to_owned);
        let may_be_anothers = of_user().filter(|other| day(other) == day(book) && *other != book).any(|other| {
            entry(other, meter).is_some_and(|entry| {
                let is_in_one = number(entry, "reported") == number(entry, "confirmed_in_last_minute");
                matches!(entry.get("intent"), Some(AttributeValue::M(_))) || !is_in_one || number(entry, "last_minute") == minute
            })
        });
        was_thrown_away || may_be_anothers
    })
}

/// What a book says of a meter.
fn entry<'a>(book: &'a Item, meter: &str) -> Option<&'a Item> {
    let Some(AttributeValue::M(meters)) = book.get("meters") else { return None };
    let Some(AttributeValue::M(entry)) = meters.get(meter) else { return None };
    Some(entry)
}

impl Model {
    /// The first failure of an invoice of which the webhook has heard by then.
    fn failure_told(&self, invoice: &str, now: i64) -> Option<i64> {
        let told = self.told.borrow();
        let known = told.iter().filter(|(_, at)| *at <= now).map(|(event, _)| event);
        let of_invoice =
            known.filter(|event| event.kind == "invoice.payment_failed" && event.invoice.as_deref() == Some(invoice));
        of_invoice.map(|event| event.created).min()
    }

    /// How many requests of a user were counted on the free tier.
    pub(crate) fn free_requests(&self, user: &str) -> u64 {
        let free = self.rows.values().filter(|row| row.user == user && row.tally_key.contains("/4:free/"));
        free.filter_map(|row| row.counted.get("requests")).map(|requests| requests.unsigned_abs()).sum()
    }

    /// Whether something is owed that nobody can know: an invoice made in the second in which its subscription ended may be the last
    /// one for its usage, of which no status tells, and the event of its failure never came.
    pub(crate) fn has_untold_debt(&self, customer: &Customer, now: i64) -> bool {
        let Some(subscription) = customer.counts(now) else { return false };
        let Some((invoice, created, _)) = &subscription.overdue else { return false };
        subscription.ended == Some(*created) && self.failure_told(invoice, now).is_none()
    }

    /// Since when the open invoice of the subscription that counts is overdue, as the account says. That it is right is checked on its own.
    pub(crate) fn grace_since(&self, engine: &Engine, customer: &Customer, now: i64) -> Option<i64> {
        let (invoice, ..) = customer.counts(now)?.overdue.as_ref()?;
        let accounts = engine.items("accounts");
        let account = accounts.iter().find(|account| text(account, "user_id") == customer.user)?;
        let Some(AttributeValue::M(overdue)) = account.get("overdue") else { return None };
        let Some(AttributeValue::M(one)) = overdue.get(invoice) else { return None };
        one.get("since").map(whole)
    }
}
