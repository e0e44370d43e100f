//! What becomes of a usage event: its row in the ledger, and what it adds to which tally (G3 to G6).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    account::Account,
    id::{CustomerId, MeterId, PlanId, SubscriptionId, UserId, composite_key, shard_of},
    price_list::PriceList,
    report,
    segment::{Place, place},
    time::{DAY_SECS, EpochSecs, UtcDay},
    usage::{Quantities, UsageEvent},
};

/// Usage older than this is quarantined: Stripe takes meter events of the past 35 days.
pub const MAX_AGE_SECS: i64 = 35 * DAY_SECS;
/// Usage further ahead than this is quarantined: Stripe takes meter events up to 5 minutes ahead.
pub const MAX_AHEAD_SECS: i64 = 300;
/// How many keys one user's rows are spread over in the time index: 1,000 writes a second each.
pub const TIME_SHARDS: u8 = 16;

/// What was decided about a usage event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Counted in a tally.
    Counted,
    /// The call failed: audited, never billed.
    NotBillable,
    /// There was no subscription, and there is no free tier: audited, never reported.
    NoSubscription,
    /// Nobody knows the user, and there is no free tier: parked until the user is joined.
    UnknownUser,
    /// The subscription has only prices that the price list does not know: parked until it knows one of them.
    UnknownPlan,
}

impl Verdict {
    /// The verdicts of parked rows: they are to be decided once more when more is known of their user.
    pub const PARKED: [Self; 2] = [Self::UnknownUser, Self::UnknownPlan];

    /// Whether a row of this verdict is parked.
    #[must_use]
    pub fn is_parked(self) -> bool {
        Self::PARKED.contains(&self)
    }
}

/// Why a usage event is neither counted nor refused to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuarantineReason {
    /// It cannot be read.
    Invalid,
    /// Its timestamp is more than 35 days old.
    TimestampTooOld,
    /// Its timestamp is more than 5 minutes ahead.
    TimestampInFuture,
    /// The request was reported before, with other quantities; the first report stands.
    Conflict,
    /// A customer claims a user who is bound to another customer.
    SecondClaimant,
    /// Stripe refused a report for good.
    Refused,
    /// Its period's invoice is final, and there is no segment of the same customer that it could be carried into.
    PeriodClosed,
    /// The database can never hold it.
    Unstorable,
}

/// Names a row: the ledger's primary key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// User and request.
    pub request_key: String,
    /// Which of the request's rows.
    pub row: String,
}

impl RowKey {
    /// The row an event belongs to, whatever else it says.
    ///
    /// A success uses the request id up, so there is one such row. A failure does not: each attempt is a row of its own, named
    /// by its moment and number so that its repetition is recognised.
    #[must_use]
    pub fn of(event: &UsageEvent) -> Self {
        let row = if event.success {
            "request".to_owned()
        } else {
            let attempt = event.attempt.map_or("-".to_owned(), |attempt| attempt.to_string());
            composite_key(&["failure", &event.timestamp.as_secs().to_string(), &attempt])
        };
        Self { request_key: composite_key(&[event.user_id.as_str(), event.request_id.as_str()]), row }
    }
}

/// One row of the ledger. A request that succeeded has one row however often it is reported; each failed attempt has its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerRow {
    /// User and request: the partition key.
    pub request_key: String,
    /// Which of the request's rows: the sort key.
    pub row: String,
    /// The user and a shard: the time index's partition key.
    pub time_key: String,
    /// The moment in the account's time: the time index's sort key.
    pub at_key: String,
    /// Who made the call.
    pub user_id: UserId,
    /// The request it served.
    pub request_id: String,
    /// Which endpoint was called.
    pub endpoint: String,
    /// Which model answered.
    pub model: Option<String>,
    /// How much was used.
    #[serde(flatten)]
    pub quantities: Quantities,
    /// Whether the call succeeded.
    pub success: bool,
    /// When it was made, as reported.
    pub timestamp: EpochSecs,
    /// Which attempt it was.
    pub attempt: Option<u64>,
    /// The service's own word for what came of it.
    pub outcome: Option<String>,
    /// The fields we do not know, as JSON.
    pub extra: Option<String>,
    /// Whether those fields were too many to keep.
    #[serde(default)]
    pub extra_cut: bool,
    /// When it came in, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// What was decided.
    pub verdict: Verdict,
    /// What was counted of it, per meter; nothing that is zero.
    #[serde(default)]
    pub counted: BTreeMap<MeterId, u64>,
    /// The tally's key, if it was counted.
    pub tally_key: Option<String>,
    /// How often it was reported.
    pub seen: u64,
    /// Names the reports that `seen` was last raised for, so that they do not raise it again when they are redelivered.
    #[serde(default)]
    pub last_seen_by: String,
    /// The invocation that wrote it: how an own write whose reply was lost is recognised.
    pub written_by: String,
    /// When the audit may forget it, in seconds since 1970.
    pub expires_at: i64,
}

impl LedgerRow {
    /// Its primary key.
    #[must_use]
    pub fn key(&self) -> RowKey {
        RowKey { request_key: self.request_key.clone(), row: self.row.clone() }
    }
}

/// A tally's totals that a batch adds to: one user, one UTC day, one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TallyChange {
    /// Whose it is.
    pub user_id: UserId,
    /// Day and segment; the adapter appends the shard.
    pub tally_key: String,
    /// What the reporter needs to know of the segment; `None` on the free tier.
    pub billing: Option<Billing>,
    /// What is added, per meter.
    pub added: BTreeMap<MeterId, u64>,
}

/// How a tally is billed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Billing {
    /// The customer that pays.
    pub customer_id: CustomerId,
    /// The subscription that bills.
    pub subscription_id: SubscriptionId,
    /// The plan, unless its prices were unknown.
    pub plan: Option<PlanId>,
    /// The meters that are reported.
    pub billed: BTreeSet<MeterId>,
    /// The segment's first second.
    pub segment_start: EpochSecs,
    /// The first second after it.
    pub segment_end: EpochSecs,
    /// The account's test clock minus the real one when this was last counted.
    #[serde(default)]
    pub clock_offset_secs: i64,
}

/// A usage event with what was decided about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Its row.
    pub row: LedgerRow,
    /// How its tally is billed, if it was counted in a billed segment.
    pub billing: Option<Billing>,
}

/// When and by which invocation events came in, and how long their rows are kept.
#[derive(Debug, Clone)]
pub struct Intake {
    /// The moment of intake, in milliseconds since 1970.
    pub received_at_ms: i64,
    /// Names the invocation.
    pub written_by: String,
    /// How many days the audit is kept, at least 45.
    pub retention_days: u16,
}

/// The moment an event happened at, in the account's time.
///
/// # Errors
/// [`QuarantineReason`] if it lies outside the window in which it could be billed. If the request is in the ledger already, the
/// event is a repetition all the same.
pub fn moment(event: &UsageEvent, account: Option<&Account>, received_at_ms: i64) -> Result<EpochSecs, QuarantineReason> {
    let now = EpochSecs::from_ms(received_at_ms);
    let at = local_moment(event.timestamp, account, now);
    let local_now = account.map_or(now, |account| account.local_time(now));
    match local_now.secs_since(at) {
        age if age > MAX_AGE_SECS => Err(QuarantineReason::TimestampTooOld),
        age if age < -MAX_AHEAD_SECS => Err(QuarantineReason::TimestampInFuture),
        _ => Ok(at),
    }
}

fn local_moment(timestamp: EpochSecs, account: Option<&Account>, received_at: EpochSecs) -> EpochSecs {
    account.map_or(timestamp, |account| account.reported_moment(timestamp, received_at))
}

/// Decides about one event of a [`moment`]: where it belongs, what it counts. Duplicates are found when it is written, not here.
#[must_use]
pub fn judge(event: &UsageEvent, at: EpochSecs, account: Option<&Account>, prices: &PriceList, intake: &Intake) -> Judged {
    let decision = decide(&event.quantities, event.success, at, account, prices);
    let RowKey { request_key, row } = RowKey::of(event);
    let request = event.request_id.as_str();
    let received_at = EpochSecs::from_ms(intake.received_at_ms);
    let row = LedgerRow {
        request_key,
        row,
        time_key: time_key(&event.user_id, shard_of(request, TIME_SHARDS)),
        at_key: at_key(at),
        user_id: event.user_id.clone(),
        request_id: request.to_owned(),
        endpoint: event.endpoint.clone(),
        model: event.model.clone(),
        quantities: event.quantities.clone(),
        success: event.success,
        timestamp: event.timestamp,
        attempt: event.attempt,
        outcome: event.outcome.clone(),
        extra: event.extra.clone(),
        extra_cut: event.extra_cut,
        received_at_ms: intake.received_at_ms,
        verdict: decision.verdict,
        counted: decision.counted,
        tally_key: decision.tally_key,
        seen: 1,
        last_seen_by: String::new(),
        written_by: intake.written_by.clone(),
        expires_at: received_at.plus_days(i64::from(intake.retention_days)).as_secs(),
    };
    Judged { row, billing: decision.billing }
}

/// Decides once more about a parked row, by what is known of its user now. `None` while it has to stay parked.
///
/// It was in the window when it came in, and that is what counts: the wait is not the user's.
#[must_use]
pub fn recount(row: &LedgerRow, account: Option<&Account>, prices: &PriceList) -> Option<Judged> {
    let at = local_moment(row.timestamp, account, EpochSecs::from_ms(row.received_at_ms));
    let Decision { verdict, counted, tally_key, billing } = decide(&row.quantities, row.success, at, account, prices);
    let row = LedgerRow { verdict, counted, tally_key, ..row.clone() };
    (!verdict.is_parked()).then_some(Judged { row, billing })
}

/// What is decided about usage of a moment.
struct Decision {
    verdict: Verdict,
    counted: BTreeMap<MeterId, u64>,
    tally_key: Option<String>,
    billing: Option<Billing>,
}

fn decide(quantities: &Quantities, success: bool, at: EpochSecs, account: Option<&Account>, prices: &PriceList) -> Decision {
    let place = place(account, prices, at);
    let (verdict, counted) = if success { counted(quantities, prices, &place) } else { (Verdict::NotBillable, BTreeMap::new()) };
    let day = match &place {
        Place::Billed(span) => report::reporting_day(at.day(), span.start, span.end),
        _ => at.day(),
    };
    let tally_key = place.segment_key().filter(|_| verdict == Verdict::Counted).map(|segment| tally_key(day, &segment));
    let billing = match place {
        Place::Billed(span) if verdict == Verdict::Counted => Some(Billing {
            customer_id: span.customer,
            subscription_id: span.subscription,
            plan: span.plan,
            billed: span.billed,
            segment_start: span.start,
            segment_end: span.end,
            clock_offset_secs: account.map_or(0, |account| account.clock_offset_secs),
        }),
        _ => None,
    };
    Decision { verdict, counted, tally_key, billing }
}

fn counted(quantities: &Quantities, prices: &PriceList, place: &Place) -> (Verdict, BTreeMap<MeterId, u64>) {
    let (plan, billed) = match place {
        // Nothing would be counted, and nobody would notice.
        Place::Billed(span) if span.plan.is_none() && span.billed.is_empty() => return (Verdict::UnknownPlan, BTreeMap::new()),
        Place::Billed(span) => (span.plan.as_ref(), Some(&span.billed)),
        Place::Free { plan, .. } => (Some(plan), None),
        Place::NoSubscription => return (Verdict::NoSubscription, BTreeMap::new()),
        Place::UnknownUser => return (Verdict::UnknownUser, BTreeMap::new()),
    };
    let of_plan = plan.and_then(|id| prices.plan(id)).map(|plan| plan.counted_meters(prices)).unwrap_or_default();
    let meters: BTreeSet<&MeterId> = of_plan.into_iter().chain(billed.into_iter().flatten()).collect();
    let counted = meters
        .into_iter()
        .filter_map(|id| prices.meter(id))
        .map(|meter| (meter.id.clone(), quantities.counted_by(&meter.counts)))
        .filter(|(_, quantity)| *quantity > 0)
        .collect();
    (Verdict::Counted, counted)
}

/// The tally's key without its shard: sorts by day.
#[must_use]
pub fn tally_key(day: UtcDay, segment: &str) -> String {
    format!("{day}/{segment}")
}

/// The day that a tally's key begins with, whether or not its shard is at its end.
#[must_use]
pub fn day_of(tally_key: &str) -> Option<UtcDay> {
    tally_key.get(..10).and_then(UtcDay::parse)
}

/// The time index's partition key.
#[must_use]
pub fn time_key(user_id: &UserId, shard: u8) -> String {
    composite_key(&[user_id.as_str(), &format!("{shard:02}")])
}

/// The time index's sort key: sorts as the moments do, from 1970 on.
#[must_use]
pub fn at_key(at: EpochSecs) -> String {
    format!("{:012}", at.as_secs().max(0))
}

/// How reports of a request that is already in the ledger relate to the row there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repetition {
    /// Our own write, whose reply was lost: it is done.
    OwnWrite,
    /// These very reports wrote the row or raised its `seen`, and are redelivered: nothing is to be done.
    Redelivery,
    /// The same again: it raises `seen`.
    Duplicate,
    /// The same id with other quantities: the first stands, this one is quarantined.
    Conflict,
}

/// Compares reports with the row that stands already: what they say, their name, and the invocation that has them now.
#[must_use]
pub fn repetition(stands: &LedgerRow, quantities: &Quantities, seen_by: &str, invocation: &str) -> Repetition {
    if stands.quantities != *quantities {
        Repetition::Conflict
    } else if stands.written_by == invocation {
        Repetition::OwnWrite
    } else if stands.last_seen_by == seen_by {
        Repetition::Redelivery
    } else {
        Repetition::Duplicate
    }
}

/// Rows that are written in one transaction, with the tallies they add to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The rows; no two have the same key.
    pub rows: Vec<Judged>,
}

/// The most operations in one DynamoDB transaction.
const MAX_OPERATIONS: usize = 100;
/// The most rows of a batch. The limits of an event's fields keep a row below 32 KB, so a batch stays below 3.2 MB; a
/// transaction takes 4 MB.
const MAX_ROWS: usize = 98;

impl Batch {
    /// What the rows add to each tally. Sums saturate; the quantities of 98 rows cannot reach that.
    #[must_use]
    pub fn tallies(&self) -> Vec<TallyChange> {
        let mut tallies: BTreeMap<&str, TallyChange> = BTreeMap::new();
        for judged in &self.rows {
            let Some(key) = &judged.row.tally_key else { continue };
            let tally = tallies.entry(key).or_insert_with(|| TallyChange {
                user_id: judged.row.user_id.clone(),
                tally_key: key.clone(),
                billing: judged.billing.clone(),
                added: BTreeMap::new(),
            });
            for (meter, quantity) in &judged.row.counted {
                let sum = tally.added.entry(meter.clone()).or_insert(0);
                *sum = sum.saturating_add(*quantity);
            }
        }
        tallies.into_values().collect()
    }
}

/// Cuts one user's rows into batches that fit a transaction. Each is made when it is asked for, so that a row exists only as
/// long as it is worked on.
pub fn batches(rows: impl Iterator<Item = Judged>) -> impl Iterator<Item = Batch> {
    let mut rows = rows.peekable();
    std::iter::from_fn(move || {
        let mut batch = Batch::default();
        let mut tallies: BTreeSet<String> = BTreeSet::new();
        let fits = |rows: usize, tallies: &BTreeSet<String>, judged: &Judged| {
            let new_tally = judged.row.tally_key.iter().filter(|key| !tallies.contains(*key)).count();
            let operations = rows.saturating_add(tallies.len()).saturating_add(1).saturating_add(new_tally);
            rows < MAX_ROWS && operations <= MAX_OPERATIONS
        };
        while let Some(judged) = rows.next_if(|judged| fits(batch.rows.len(), &tallies, judged)) {
            tallies.extend(judged.row.tally_key.clone());
            batch.rows.push(judged);
        }
        (!batch.rows.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        account::tests::subscribed,
        usage::{Message, read_message},
    };
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const NOW_MS: i64 = 1_795_348_800_000; // 2026-11-22T12:00:00Z

    fn intake() -> Intake {
        Intake { received_at_ms: NOW_MS, written_by: "invocation".into(), retention_days: 400 }
    }

    fn event(changes: &[(&str, serde_json::Value)]) -> UsageEvent {
        let mut value = serde_json::json!({
            "request_id": "req_1", "user_id": "ada", "endpoint": "/v1/x", "tokens_in": 812, "tokens_out": 0, "success": true,
            "timestamp": "2026-11-22T11:59:00Z", "units": {"images": 3},
        });
        for (field, change) in changes {
            value[*field] = change.clone();
        }
        let Ok(Message::Events(mut entries)) = read_message(&value.to_string()) else { panic!("{value}") };
        entries.remove(0).unwrap()
    }

    static PRICES: LazyLock<PriceList> = LazyLock::new(|| PriceList::shipped().unwrap());

    fn judged_by(event: &UsageEvent, account: Option<&Account>, prices: &PriceList) -> Judged {
        judge(event, moment(event, account, NOW_MS).unwrap(), account, prices, &intake())
    }

    fn judged(event: &UsageEvent, account: Option<&Account>) -> Judged {
        judged_by(event, account, &PRICES)
    }

    fn without_free_tier() -> PriceList {
        let mut prices = PRICES.clone();
        prices.plans.retain(|plan| !plan.prices.is_empty());
        prices
    }

    fn shown(judged: &Judged) -> String {
        let customer = judged.billing.as_ref().map_or("-", |billing| billing.customer_id.as_str());
        format!("{:?} {:?} {} {customer}", judged.row.verdict, judged.row.counted, judged.row.tally_key.as_deref().unwrap_or("-"))
    }

    #[test]
    fn a_success_is_counted_where_it_happened_and_a_failure_is_only_audited() {
        let account = subscribed("2026-11-10T00:00:00Z");
        assert_eq!(
            shown(&judged(&event(&[]), Some(&account))),
            r#"Counted {"requests": 1, "tokens_in": 812} 2026-11-22/6:billed/5:sub_1/10:1794268800/16:7fb1b4d849779f3c cus_1"#
        );
        assert_eq!(shown(&judged(&event(&[("success", false.into())]), Some(&account))), "NotBillable {} - -");
        assert_eq!(
            shown(&judged(&event(&[]), None)),
            r#"Counted {"requests": 1, "tokens_in": 812} 2026-11-22/4:free/10:1793491200 -"#
        );
        assert_eq!(shown(&judged_by(&event(&[]), None, &without_free_tier())), "UnknownUser {} - -");
    }

    #[test]
    fn what_a_row_is_found_by_stays_as_it_is() {
        let row = judged(&event(&[]), Some(&subscribed("2026-11-10T00:00:00Z"))).row;
        assert_eq!((row.time_key.as_str(), row.at_key.as_str()), ("3:ada/2:13", "001795348740"));
        assert_eq!(at_key(EpochSecs::new(-5)), "000000000000", "before 1970 is nothing that could be billed");
        let day = UtcDay::parse("2026-11-22");
        assert_eq!(
            (day_of("2026-11-22/4:free/00"), day_of("2026-11-22"), day_of("2026-11"), day_of("x")),
            (day, day, None, None)
        );
    }

    #[test]
    fn known_meters_of_an_unknown_plan_are_billed() {
        let mut account = subscribed("2026-11-10T00:00:00Z");
        account.segments[0].plan = None;
        let judged = judged(&event(&[]), Some(&account));
        assert_eq!(
            judged.row.counted,
            [("requests", 1), ("tokens_in", 812)].map(|(id, n)| (MeterId::new(id).unwrap(), n)).into()
        );
        assert_eq!(judged.billing.map(|billing| billing.billed.len()), Some(3));
    }

    #[test]
    fn usage_of_a_segment_that_begins_in_a_days_last_minute_is_in_the_next_days_tally() {
        let account = subscribed("2026-11-21T23:59:10Z");
        let row = judged(&event(&[("timestamp", "2026-11-21T23:59:30Z".into())]), Some(&account)).row;
        assert_eq!((row.at_key.as_str(), row.tally_key.unwrap().get(..10)), ("001795305570", Some("2026-11-22")));
    }

    #[test]
    fn a_batch_has_98_rows() {
        let rows = (0..100).map(|n| judged(&event(&[("request_id", format!("req_{n}").into())]), None));
        assert_eq!(batches(rows).map(|batch| batch.rows.len()).collect::<Vec<_>>(), [98, 2]);
    }

    #[test]
    fn usage_of_unknown_prices_is_parked_and_decided_once_they_are_known() {
        let known = subscribed("2026-11-10T00:00:00Z");
        let mut unknown = known.clone();
        unknown.segments[0].plan = None;
        unknown.segments[0].billed.clear();
        let parked = judged(&event(&[]), Some(&unknown));
        assert_eq!(shown(&parked), "UnknownPlan {} - -");
        assert_eq!(shown(&judged(&event(&[("success", false.into())]), Some(&unknown))), "NotBillable {} - -");
        assert_eq!(recount(&parked.row, Some(&unknown), &PRICES), None, "while they are unknown");
        let counted = recount(&parked.row, Some(&known), &PRICES).unwrap();
        let at_once = judged(&event(&[]), Some(&known));
        assert_eq!((counted.row, counted.billing), (at_once.row, at_once.billing), "as if they had been known");
    }

    #[test]
    fn a_strangers_usage_is_decided_once_there_is_an_account_however_long_that_took() {
        let prices = without_free_tier();
        let parked = judged_by(&event(&[]), None, &prices).row;
        assert_eq!(recount(&parked, None, &prices), None);
        let shown_with = |since: &str| shown(&recount(&parked, Some(&subscribed(since)), &prices).unwrap());
        assert!(shown_with("2026-11-10T00:00:00Z").starts_with("Counted"));
        assert_eq!(shown_with("2026-11-22T12:00:00Z"), "NoSubscription {} - -", "before its subscription began");
        // The wait is of no consequence: the window is that of its arrival, also with a test clock far ahead.
        let mut moved = subscribed("2027-02-10T00:00:00Z");
        moved.clock_offset_secs = 90 * DAY_SECS;
        let counted = recount(&parked, Some(&moved), &prices).unwrap();
        assert!(shown(&counted).contains("2027-02-20/6:billed"), "{}", shown(&counted));
    }

    #[test]
    fn a_success_has_one_row_and_each_failed_attempt_its_own() {
        let row = |changes: &[(&str, serde_json::Value)]| judged(&event(changes), None).row.row;
        assert_eq!(row(&[]), row(&[("timestamp", "2026-11-21T00:00:00Z".into()), ("attempt", 2.into())]));
        let failed = ("success", serde_json::Value::Bool(false));
        assert_ne!(row(&[]), row(std::slice::from_ref(&failed)));
        assert_ne!(row(&[failed.clone(), ("attempt", 1.into())]), row(&[failed.clone(), ("attempt", 2.into())]));
        assert_eq!(row(&[failed.clone(), ("attempt", 1.into())]), row(&[failed, ("attempt", 1.into())]));
    }

    #[test]
    fn usage_outside_the_window_is_quarantined() {
        let at = |secs: i64| moment(&event(&[("timestamp", (NOW_MS / 1000 + secs).into())]), None, NOW_MS);
        assert!(at(300).is_ok() && at(-MAX_AGE_SECS).is_ok());
        assert_eq!(at(301).unwrap_err(), QuarantineReason::TimestampInFuture);
        assert_eq!(at(-MAX_AGE_SECS - 1).unwrap_err(), QuarantineReason::TimestampTooOld);
    }

    #[test]
    fn the_first_report_stands_and_an_own_write_is_recognised() {
        let first = LedgerRow { last_seen_by: "these".into(), ..judged(&event(&[]), None).row };
        let again =
            |quantities: &Quantities, seen_by: &str, invocation: &str| repetition(&first, quantities, seen_by, invocation);
        assert_eq!(again(&first.quantities, "these", &first.written_by), Repetition::OwnWrite);
        assert_eq!(again(&first.quantities, "others", &first.written_by), Repetition::OwnWrite, "others were seen meanwhile");
        assert_eq!(again(&first.quantities, "these", "another"), Repetition::Redelivery);
        assert_eq!(again(&first.quantities, "others", "another"), Repetition::Duplicate);
        let mut other = first.quantities.clone();
        other.tokens_in += 1;
        assert_eq!(again(&other, "these", "another"), Repetition::Conflict);
        assert_eq!(again(&other, "these", &first.written_by), Repetition::Conflict);
    }

    #[test]
    fn rows_keep_two_users_apart_whose_ids_are_made_to_collide() {
        let key = |user: &str, request: &str| {
            judged(&event(&[("user_id", user.into()), ("request_id", request.into())]), None).row.request_key
        };
        assert_ne!(key("a/1:b", "c"), key("a", "b/1:c"));
        assert_ne!(key("a#b", "c"), key("a", "b#c"));
    }

    proptest! {
        #[test]
        fn batches_fit_a_transaction_and_lose_nothing(days in proptest::collection::vec(0_i64..30, 0..400)) {
            let rows: Vec<Judged> = days.iter().enumerate().map(|(n, day)| {
                let timestamp = NOW_MS / 1000 - day * 86_400;
                judged(&event(&[("request_id", format!("r{n}").into()), ("timestamp", timestamp.into())]), None)
            }).collect();
            let batches: Vec<Batch> = batches(rows.clone().into_iter()).collect();
            for batch in &batches {
                prop_assert!(!batch.rows.is_empty() && batch.rows.len() <= MAX_ROWS);
                prop_assert!(batch.rows.len() + batch.tallies().len() <= MAX_OPERATIONS);
            }
            let counted: u64 = batches.iter().flat_map(Batch::tallies).flat_map(|tally| tally.added).filter(|(meter, _)| meter.as_str() == "requests").map(|(_, n)| n).sum();
            prop_assert_eq!(usize::try_from(counted).unwrap(), rows.len());
            prop_assert_eq!(batches.into_iter().flat_map(|batch| batch.rows).collect::<Vec<_>>(), rows);
        }
    }
}
