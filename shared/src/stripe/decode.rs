//! The few fields we read of Stripe's objects, in the layout of the pinned API version, and what they mean.
//!
//! Every field is optional on the wire, because miniserde says of a missing one only that something is missing: we name it.
//! Fields that Stripe moved (`current_period_end` of a subscription, `subscription` of an invoice) are read in their new place
//! only.

use miniserde::{
    Deserialize,
    json::{Number, Value},
};

use crate::domain::{
    facts::{InvoiceFacts, ItemFacts, LatestInvoice, PaidInvoice, PausedBy, Status, SubscriptionFacts},
    hint::named_user,
    id::{CustomerId, InvalidId, InvoiceId, SubscriptionId, UserId},
    notice::Payment,
    period::Cycle,
    price_list::Interval,
    time::EpochSecs,
};

/// The body of an answer that is no success.
#[derive(Deserialize)]
pub(super) struct ErrorBody {
    pub(super) error: Option<ErrorFields>,
}

#[derive(Deserialize)]
pub(super) struct ErrorFields {
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    pub(super) r#type: Option<String>,
}

/// A page of a list.
#[derive(Deserialize)]
pub(super) struct List<T> {
    pub(super) data: Option<Vec<T>>,
    pub(super) has_more: Option<bool>,
}

/// What can be listed page by page: the next page begins after the last one's id.
pub(super) trait Listed: Deserialize {
    fn id(&self) -> Option<&str>;
}

macro_rules! listed {
    ($($name:ident),*) => {$(
        impl Listed for $name {
            fn id(&self) -> Option<&str> {
                self.id.as_deref()
            }
        }
    )*};
}
listed!(Customer, Subscription, Item, Invoice, SettledInvoice, Line, CheckoutSession, Meter, MeterSummary);

#[derive(Deserialize, Default)]
pub(super) struct Metadata {
    user_id: Option<String>,
}

impl Metadata {
    fn user(this: Option<&Self>) -> Option<UserId> {
        named_user(this.and_then(|metadata| metadata.user_id.as_deref()))
    }
}

#[derive(Deserialize)]
pub(super) struct Customer {
    pub(super) id: Option<String>,
    deleted: Option<bool>,
    livemode: Option<bool>,
    metadata: Option<Metadata>,
    test_clock: Option<Value>,
}

impl Customer {
    pub(super) fn is_deleted(&self) -> bool {
        self.deleted == Some(true)
    }

    pub(super) fn customer_id(&self) -> Result<CustomerId, String> {
        id_of(self.id.as_deref(), "a customer", CustomerId::new)
    }

    pub(super) fn user_id(&self) -> Option<UserId> {
        Metadata::user(self.metadata.as_ref())
    }

    /// The test clock it is on. Only test mode has clocks: one in live mode is not believed, since it would move time.
    pub(super) fn clock(&self) -> Option<&str> {
        if self.livemode == Some(true) { None } else { named(self.test_clock.as_ref()) }
    }
}

#[derive(Deserialize)]
pub(super) struct TestClock {
    frozen_time: Option<i64>,
}

impl TestClock {
    pub(super) fn shows(&self) -> Result<EpochSecs, String> {
        need(self.frozen_time, "the test clock", "frozen_time").map(EpochSecs::new)
    }
}

#[derive(Deserialize)]
pub(super) struct Subscription {
    pub(super) id: Option<String>,
    billing_cycle_anchor: Option<i64>,
    billing_mode: Option<BillingMode>,
    cancel_at: Option<i64>,
    cancel_at_period_end: Option<bool>,
    created: Option<i64>,
    ended_at: Option<i64>,
    pub(super) items: Option<List<Item>>,
    latest_invoice: Option<Value>,
    metadata: Option<Metadata>,
    status: Option<String>,
    status_details: Option<StatusDetails>,
    trial_end: Option<i64>,
}

#[derive(Deserialize)]
struct StatusDetails {
    paused: Option<PausedDetails>,
}

#[derive(Deserialize)]
struct PausedDetails {
    subscription: Option<PauseDetails>,
}

/// Why the subscription is paused. Stripe's collection of payments may be paused as well, which changes no access and is not read.
#[derive(Deserialize)]
struct PauseDetails {
    r#type: Option<String>,
}

#[derive(Deserialize)]
struct BillingMode {
    r#type: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Item {
    pub(super) id: Option<String>,
    current_period_end: Option<i64>,
    current_period_start: Option<i64>,
    price: Option<Price>,
}

#[derive(Deserialize)]
struct Price {
    lookup_key: Option<String>,
    recurring: Option<Recurring>,
}

#[derive(Deserialize)]
struct Recurring {
    interval: Option<String>,
    interval_count: Option<u64>,
    usage_type: Option<String>,
}

impl Subscription {
    /// Whether it has more items than were listed in it.
    pub(super) fn has_more_items(&self) -> bool {
        self.items.as_ref().is_some_and(|items| items.has_more == Some(true))
    }

    pub(super) fn read(self) -> Result<SubscriptionFacts, String> {
        let id = id_of(self.id.as_deref(), "a subscription", SubscriptionId::new)?;
        let what = format!("subscription {id}");
        let anchor = EpochSecs::new(need(self.billing_cycle_anchor, &what, "billing_cycle_anchor")?);
        let wire_items = need(self.items.and_then(|items| items.data), &what, "items.data")?;
        let items: Vec<_> = wire_items.into_iter().map(|item| item.read(anchor)).collect::<Result<_, _>>()?;
        let period_end = items.iter().map(|item| item.period.1).max();
        let paused = self.status_details.and_then(|details| details.paused).and_then(|paused| paused.subscription);
        let at_period_end = if self.cancel_at_period_end == Some(true) { period_end } else { None };
        Ok(SubscriptionFacts {
            status: Status::from(need(self.status, &what, "status")?),
            paused_by: paused.and_then(|paused| paused.r#type).map(PausedBy::from),
            created: EpochSecs::new(need(self.created, &what, "created")?),
            user_id: Metadata::user(self.metadata.as_ref()),
            items,
            billing_cycle_anchor: anchor,
            trial_end: self.trial_end.map(EpochSecs::new),
            cancel_at: self.cancel_at.map(EpochSecs::new).or(at_period_end),
            ended_at: self.ended_at.map(EpochSecs::new),
            latest_invoice: self.latest_invoice.as_ref().map(latest_invoice).transpose()?.flatten(),
            flexible: self.billing_mode.and_then(|mode| mode.r#type).as_deref() == Some("flexible"),
            id,
        })
    }
}

impl Item {
    fn read(self, anchor: EpochSecs) -> Result<ItemFacts, String> {
        let what = format!("subscription item {}", self.id.as_deref().unwrap_or("without an id"));
        let start = need(self.current_period_start, &what, "current_period_start")?;
        let end = need(self.current_period_end, &what, "current_period_end")?;
        let price = need(self.price, &what, "price")?;
        let recurring = need(price.recurring, &what, "price.recurring")?;
        let interval = match need(recurring.interval, &what, "price.recurring.interval")?.as_str() {
            "day" => Interval::Day,
            "week" => Interval::Week,
            "month" => Interval::Month,
            "year" => Interval::Year,
            other => return Err(format!("{what}: price.recurring.interval is {other:?}, which we do not know")),
        };
        let count = need(recurring.interval_count, &what, "price.recurring.interval_count")?;
        let count = u16::try_from(count).map_err(|_| format!("{what}: price.recurring.interval_count is {count}"))?;
        Ok(ItemFacts {
            lookup_key: price.lookup_key,
            metered: recurring.usage_type.as_deref() == Some("metered"),
            period: (EpochSecs::new(start), EpochSecs::new(end)),
            cycle: Cycle { anchor, interval, count },
        })
    }
}

#[derive(Deserialize)]
pub(super) struct Invoice {
    pub(super) id: Option<String>,
    attempt_count: Option<u64>,
    attempted: Option<bool>,
    created: Option<i64>,
    parent: Option<InvoiceParent>,
}

/// The newest invoice of a subscription, which is asked for expanded. Of one that is only an id nothing more is known; a deleted
/// one was a draft that nobody will ever finalise.
fn latest_invoice(reference: &Value) -> Result<Option<LatestInvoice>, String> {
    let field = |name: &str| match reference {
        Value::Object(invoice) => invoice.get(name),
        _ => None,
    };
    let is_deleted = matches!(field("deleted"), Some(Value::Bool(true)));
    let is_no_draft = matches!(field("status"), Some(Value::String(status)) if status != "draft");
    let moment = |name: &str| match field(name) {
        Some(Value::Number(Number::U64(secs))) => i64::try_from(*secs).ok().map(EpochSecs::new),
        Some(Value::Number(Number::I64(secs))) => Some(EpochSecs::new(*secs)),
        _ => None,
    };
    let period = moment("period_start").zip(moment("period_end"));
    let is_written_off = matches!(field("status"), Some(Value::String(status)) if status == "uncollectible");
    let written_off = moment("created").filter(|_| is_written_off);
    let id = optional_id(Some(reference), InvoiceId::new)?;
    Ok(id.map(|id| LatestInvoice { id, is_final: is_deleted || is_no_draft, period, written_off }))
}

#[derive(Deserialize)]
struct InvoiceParent {
    subscription_details: Option<SubscriptionDetails>,
}

#[derive(Deserialize)]
struct SubscriptionDetails {
    subscription: Option<Value>,
}

impl Invoice {
    pub(super) fn read(self) -> Result<InvoiceFacts, String> {
        let id = id_of(self.id.as_deref(), "an invoice", InvoiceId::new)?;
        let subscription = self.parent.and_then(|parent| parent.subscription_details).and_then(|details| details.subscription);
        Ok(InvoiceFacts {
            subscription: optional_id(subscription.as_ref(), SubscriptionId::new)?,
            created: EpochSecs::new(need(self.created, &format!("invoice {id}"), "created")?),
            attempted: self.attempted == Some(true) || self.attempt_count.is_some_and(|count| count > 0),
            id,
        })
    }
}

/// An invoice that is paid, with what it is made of.
#[derive(Deserialize)]
pub(super) struct SettledInvoice {
    pub(super) id: Option<String>,
    pub(super) lines: Option<List<Line>>,
    parent: Option<InvoiceParent>,
    status_transitions: Option<StatusTransitions>,
}

#[derive(Deserialize)]
struct StatusTransitions {
    paid_at: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct Line {
    pub(super) id: Option<String>,
    amount: Option<i64>,
    parent: Option<LineParent>,
    period: Option<LinePeriod>,
}

#[derive(Deserialize)]
struct LineParent {
    invoice_item_details: Option<SubscriptionDetails>,
    subscription_item_details: Option<SubscriptionDetails>,
}

#[derive(Deserialize)]
struct LinePeriod {
    end: Option<i64>,
}

impl SettledInvoice {
    /// Whether it has more lines than were listed in it.
    pub(super) fn has_more_lines(&self) -> bool {
        self.lines.as_ref().is_some_and(|lines| lines.has_more == Some(true))
    }

    /// The cancelled subscription after whose end it was paid, if it is one of these. Nothing else of it need be readable, so that
    /// no old invoice stands in anybody's way.
    pub(super) fn paid_after_the_end_of(&self, subscriptions: &[SubscriptionFacts]) -> Option<SubscriptionId> {
        let details = self.parent.as_ref()?.subscription_details.as_ref()?;
        let id = named(details.subscription.as_ref())?;
        let its = subscriptions.iter().find(|subscription| subscription.id.as_str() == id)?;
        let ended_at = its.ended_at.filter(|_| its.status == Status::Canceled)?;
        let paid_at = self.status_transitions.as_ref()?.paid_at?;
        (EpochSecs::new(paid_at) > ended_at).then(|| its.id.clone())
    }

    /// When it was paid, and up to when it paid for the subscription; nothing if it paid for none of it.
    pub(super) fn read(self, subscription: &SubscriptionId) -> Result<Option<PaidInvoice>, String> {
        let what = format!("invoice {}", self.id.as_deref().unwrap_or("without an id"));
        let lines = need(self.lines.and_then(|lines| lines.data), &what, "lines.data")?;
        let paid_at = need(self.status_transitions.and_then(|moments| moments.paid_at), &what, "status_transitions.paid_at")?;
        let mut paid_for_until = None;
        for line in lines {
            paid_for_until = paid_for_until.max(line.paid_for_until(subscription, &what)?);
        }
        let of_it =
            |until| PaidInvoice { subscription: subscription.clone(), paid_at: EpochSecs::new(paid_at), paid_for_until: until };
        Ok(paid_for_until.map(of_it))
    }
}

impl Line {
    /// The end of its period, if it is of the subscription and cost something.
    fn paid_for_until(self, subscription: &SubscriptionId, what: &str) -> Result<Option<EpochSecs>, String> {
        let details = self.parent.and_then(|parent| parent.subscription_item_details.or(parent.invoice_item_details));
        let of = optional_id(details.and_then(|details| details.subscription).as_ref(), SubscriptionId::new)?;
        if of.as_ref() != Some(subscription) || need(self.amount, what, "lines.data.amount")? <= 0 {
            return Ok(None);
        }
        need(self.period.and_then(|period| period.end), what, "lines.data.period.end").map(|end| Some(EpochSecs::new(end)))
    }
}

/// A payment.
#[derive(Deserialize)]
pub(super) struct Charge {
    id: Option<String>,
    amount_refunded: Option<u64>,
    currency: Option<String>,
    customer: Option<Value>,
    refunded: Option<bool>,
}

impl Charge {
    pub(super) fn customer_id(&self) -> Result<Option<CustomerId>, String> {
        optional_id(self.customer.as_ref(), CustomerId::new)
    }

    /// What was given back of it, if anything was.
    pub(super) fn refund(self) -> Result<Option<Payment>, String> {
        let charge_id = need(self.id, "a charge", "id")?;
        let what = format!("charge {charge_id}");
        let amount_minor = need(self.amount_refunded, &what, "amount_refunded")?;
        let status = if self.refunded == Some(true) { "refunded" } else { "partially_refunded" }.to_owned();
        let currency = need(self.currency, &what, "currency")?;
        Ok((amount_minor > 0).then_some(Payment { charge_id, dispute_id: None, status, amount_minor, currency }))
    }
}

/// A payment's dispute.
#[derive(Deserialize)]
pub(super) struct Dispute {
    id: Option<String>,
    amount: Option<u64>,
    charge: Option<Value>,
    currency: Option<String>,
    status: Option<String>,
}

impl Dispute {
    /// The disputed charge.
    pub(super) fn charge(&self) -> Result<String, String> {
        need(named(self.charge.as_ref()).map(str::to_owned), "a dispute", "charge")
    }

    pub(super) fn read(self) -> Result<Payment, String> {
        let charge_id = self.charge()?;
        let dispute_id = need(self.id, "a dispute", "id")?;
        let what = format!("dispute {dispute_id}");
        Ok(Payment {
            charge_id,
            status: need(self.status, &what, "status")?,
            amount_minor: need(self.amount, &what, "amount")?,
            currency: need(self.currency, &what, "currency")?,
            dispute_id: Some(dispute_id),
        })
    }
}

#[derive(Deserialize)]
pub(super) struct CheckoutSession {
    pub(super) id: Option<String>,
    client_reference_id: Option<String>,
    created: Option<i64>,
}

impl CheckoutSession {
    /// The user it names, if it names one, and when it was made.
    pub(super) fn read(self) -> Result<Option<(EpochSecs, UserId)>, String> {
        let what = format!("checkout session {}", self.id.as_deref().unwrap_or("without an id"));
        let created = EpochSecs::new(need(self.created, &what, "created")?);
        Ok(named_user(self.client_reference_id.as_deref()).map(|user| (created, user)))
    }
}

/// Any object that may belong to a customer.
#[derive(Deserialize)]
pub(super) struct OfCustomer {
    customer: Option<Value>,
}

impl OfCustomer {
    pub(super) fn customer_id(&self) -> Result<Option<CustomerId>, String> {
        optional_id(self.customer.as_ref(), CustomerId::new)
    }
}

/// Stripe's answer to a meter event.
#[derive(Deserialize)]
pub(super) struct MeterEvent {
    pub(super) identifier: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Meter {
    pub(super) id: Option<String>,
    created: Option<i64>,
    event_name: Option<String>,
    status: Option<String>,
}

/// A meter that exists.
pub(super) struct NamedMeter {
    pub(super) event_name: String,
    pub(super) id: String,
    pub(super) active: bool,
    pub(super) created: i64,
}

impl Meter {
    pub(super) fn read(self) -> Result<NamedMeter, String> {
        let id = need(self.id, "a meter", "id")?;
        let what = format!("meter {id}");
        Ok(NamedMeter {
            event_name: need(self.event_name, &what, "event_name")?,
            active: need(self.status, &what, "status")? == "active",
            created: need(self.created, &what, "created")?,
            id,
        })
    }
}

/// What a meter has for a customer in a window of time.
#[derive(Deserialize)]
pub(super) struct MeterSummary {
    pub(super) id: Option<String>,
    aggregated_value: Option<f64>,
}

/// Up to it, `….0` is read exactly: miniserde reads all digits, the zero behind the point among them, into a float and divides,
/// and a float has 53 bits.
const MOST_EXACT: u64 = (1 << 53) / 10;

impl MeterSummary {
    /// The value, which Stripe writes as a float: a whole number without a sign, or nothing that we can believe.
    pub(super) fn read(self) -> Result<u64, String> {
        let value = need(self.aggregated_value, "a meter event summary", "aggregated_value")?;
        // A float's text is exact and has no exponent, so it is the same whole number or does not parse.
        let whole = value.to_string().parse().ok().filter(|whole| *whole <= MOST_EXACT);
        whole.ok_or_else(|| format!("a meter event summary's aggregated_value is {value}, which is no exact whole number"))
    }
}

pub(super) fn need<T>(value: Option<T>, object: &str, field: &'static str) -> Result<T, String> {
    value.ok_or_else(|| format!("{object} has no {field}"))
}

pub(super) fn id_of<T>(id: Option<&str>, object: &'static str, new: fn(String) -> Result<T, InvalidId>) -> Result<T, String> {
    new(need(id, object, "id")?.to_owned()).map_err(|error| error.to_string())
}

/// The id of a reference, which is an id or, where Stripe expanded it, the object.
pub(super) fn named(reference: Option<&Value>) -> Option<&str> {
    match reference {
        Some(Value::String(id)) => Some(id),
        Some(Value::Object(object)) => match object.get("id") {
            Some(Value::String(id)) => Some(id),
            _ => None,
        },
        _ => None,
    }
}

fn optional_id<T>(reference: Option<&Value>, new: fn(String) -> Result<T, InvalidId>) -> Result<Option<T>, String> {
    named(reference).map(|id| new(id.to_owned()).map_err(|error| error.to_string())).transpose()
}
