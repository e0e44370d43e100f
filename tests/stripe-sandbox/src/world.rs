//! Everything the sandbox knows, in one place, and the few things every module needs of it.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use crate::charges::{Charge, Refund};
use crate::checkout::Session;
use crate::clock::TestClock;
use crate::control::{RequestRecord, Settings};
use crate::customers::Customer;
use crate::disputes::Dispute;
use crate::error::ApiError;
use crate::events::{Cause, Event};
use crate::form::Params;
use crate::http::SavedAnswer;
use crate::invoices::Invoice;
use crate::limits::UsedUp;
use crate::meters::{Meter, MeterEvent, Rejected};
use crate::payment_methods::PaymentMethod;
use crate::portal::Configuration;
use crate::prices::Price;
use crate::products::Product;
use crate::subscriptions::Subscription;
use crate::webhooks::{Delivery, Dispatch, Endpoint};

/// Objects of one type, in the order of their creation.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    order: Vec<String>,
    objects: HashMap<String, T>,
}

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { order: Vec::new(), objects: HashMap::new() }
    }
}

impl<T> Shelf<T> {
    /// Adds an object, or replaces the one of that id.
    pub(crate) fn insert(&mut self, id: &str, object: T) {
        if self.objects.insert(id.to_owned(), object).is_none() {
            self.order.push(id.to_owned());
        }
    }

    /// The object of this id.
    pub(crate) fn get(&self, id: &str) -> Option<&T> {
        self.objects.get(id)
    }

    /// The object of this id, to change it.
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.objects.get_mut(id)
    }

    /// All objects, oldest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &T)> {
        self.order.iter().filter_map(|id| Some((id.as_str(), self.objects.get(id)?)))
    }

    /// All objects, oldest first.
    pub(crate) fn values(&self) -> impl DoubleEndedIterator<Item = &T> {
        self.iter().map(|(_, object)| object)
    }
}

/// Metadata and other maps of texts.
pub(crate) type Texts = BTreeMap<String, String>;

/// The whole state. Time is an input: whoever holds the world sets [`World::wall_secs`] first.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// The real time, in Unix seconds, at which the present operation began.
    pub(crate) wall_secs: i64,
    /// What the sandbox was told to do differently.
    pub(crate) settings: Settings,
    /// The request that causes what happens now, if any.
    pub(crate) cause: Option<Cause>,
    /// Test clocks.
    pub(crate) clocks: Shelf<TestClock>,
    /// Customers.
    pub(crate) customers: Shelf<Customer>,
    /// Payment methods attached to customers.
    pub(crate) payment_methods: Shelf<PaymentMethod>,
    /// Products.
    pub(crate) products: Shelf<Product>,
    /// Prices.
    pub(crate) prices: Shelf<Price>,
    /// Billing meters.
    pub(crate) meters: Shelf<Meter>,
    /// Every meter event that was answered with 200, recorded or not.
    pub(crate) meter_events: Vec<MeterEvent>,
    /// Meter events that are being taken at this moment, one per customer and meter.
    pub(crate) meter_locks: HashSet<(String, String)>,
    /// Checkout sessions.
    pub(crate) sessions: Shelf<Session>,
    /// Configurations of the customer portal.
    pub(crate) configurations: Shelf<Configuration>,
    /// Meter events that were thrown away and are not told of yet: by meter, or of no meter at all.
    pub(crate) rejected: BTreeMap<Option<String>, Rejected>,
    /// Meters whose thrown away events are to be told of; a delivery task takes them from here.
    pub(crate) reports_due: Vec<Option<String>>,
    /// How far rate limits are used up.
    pub(crate) used_up: UsedUp,
    /// Subscriptions.
    pub(crate) subscriptions: Shelf<Subscription>,
    /// Invoices.
    pub(crate) invoices: Shelf<Invoice>,
    /// Charges.
    pub(crate) charges: Shelf<Charge>,
    /// Refunds.
    pub(crate) refunds: Shelf<Refund>,
    /// Disputes.
    pub(crate) disputes: Shelf<Dispute>,
    /// Events.
    pub(crate) events: Shelf<Event>,
    /// Webhook endpoints.
    pub(crate) endpoints: Shelf<Endpoint>,
    /// Events that wait to be handed to a delivery task.
    pub(crate) outgoing: Vec<Dispatch>,
    /// Events that are to be delivered again, whatever the delivery mode.
    pub(crate) resent: Vec<Dispatch>,
    /// Events that are held back to be delivered newest first.
    pub(crate) held: Vec<Dispatch>,
    /// Every attempt to deliver an event.
    pub(crate) deliveries: Vec<Delivery>,
    /// Every request to the API.
    pub(crate) requests: Vec<RequestRecord>,
    /// Answers saved under idempotency keys.
    pub(crate) saved_answers: HashMap<String, SavedAnswer>,
    /// Idempotency keys of requests under way.
    pub(crate) keys_in_use: HashSet<String>,
    /// The number of the last invoice.
    pub(crate) invoice_count: u32,
}

impl World {
    /// The time of an object: its test clock's, or else the real one.
    pub(crate) fn now(&self, clock: Option<&str>) -> i64 {
        clock.and_then(|id| self.clocks.get(id)).map_or(self.wall_secs, |clock| clock.now_secs)
    }

    /// Refuses changes to objects of a clock that is advancing. Status and message as seen in the field.
    pub(crate) fn check_clock_ready(&self, clock: Option<&str>) -> Result<(), ApiError> {
        let advancing = clock.filter(|id| self.clocks.get(id).is_some_and(|clock| clock.target_secs.is_some()));
        match advancing {
            None => Ok(()),
            Some(id) => Err(ApiError {
                status: 429,
                ..ApiError::invalid(format!("Test clock advancement underway - cannot perform modifications: {id}"))
            }),
        }
    }

    /// Empties the world, but keeps its time.
    pub(crate) fn reset(&mut self) {
        *self = Self { wall_secs: self.wall_secs, ..Self::default() };
    }
}

/// A fresh id with Stripe's prefix for the type.
pub(crate) fn new_id(prefix: &str) -> String {
    let tail: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
    format!("{prefix}_{tail}")
}

/// Stripe's form of a whole list in one page, as nested in other objects.
pub(crate) fn nested_list(url: &str, data: Vec<Value>) -> Value {
    let total_count = data.len();
    json!({"object": "list", "data": data, "has_more": false, "url": url, "total_count": total_count})
}

/// Which page of a list is asked for. Source: API reference, "Pagination".
#[derive(Debug)]
pub(crate) struct Page {
    limit: usize,
    starting_after: Option<String>,
    ending_before: Option<String>,
}

impl Page {
    /// Reads `limit` (1 to 100, 10 by default), `starting_after` and `ending_before`.
    pub(crate) fn from_params(params: &mut Params) -> Result<Self, ApiError> {
        let limit = params.int("limit")?.unwrap_or(10);
        if !(1..=100).contains(&limit) {
            return Err(ApiError::invalid_param("limit", format!("Invalid limit: {limit}. It must be between 1 and 100.")));
        }
        let starting_after = params.text("starting_after")?;
        let ending_before = params.text("ending_before")?;
        if starting_after.is_some() && ending_before.is_some() {
            return Err(ApiError::invalid_param("starting_after", "Only one of starting_after and ending_before may be given."));
        }
        Ok(Self { limit: usize::try_from(limit).unwrap_or(10), starting_after, ending_before })
    }

    /// Cuts the page out of everything on the shelf that passes the filter, newest first.
    pub(crate) fn cut<'a, T>(
        &self,
        shelf: &'a Shelf<T>,
        noun: &str,
        url: &str,
        keep: impl Fn(&T) -> bool,
        render: impl Fn(&'a T) -> Value,
    ) -> Result<Value, ApiError> {
        for (param, cursor) in [("starting_after", &self.starting_after), ("ending_before", &self.ending_before)] {
            if let Some(id) = cursor
                && shelf.get(id).is_none()
            {
                return Err(ApiError::no_such(noun, param, id));
            }
        }
        let newest_first = shelf.iter().rev();
        let mut rest: Vec<(&str, &'a T)> = match (&self.starting_after, &self.ending_before) {
            (Some(after), _) => newest_first.skip_while(|(id, _)| id != after).skip(1).collect(),
            (None, Some(before)) => newest_first.take_while(|(id, _)| id != before).collect(),
            (None, None) => newest_first.collect(),
        };
        rest.retain(|(_, object)| keep(object));
        let has_more = rest.len() > self.limit;
        if self.ending_before.is_some() {
            rest.drain(..rest.len().saturating_sub(self.limit));
        } else {
            rest.truncate(self.limit);
        }
        let data: Vec<Value> = rest.into_iter().map(|(_, object)| render(object)).collect();
        Ok(json!({"object": "list", "data": data, "has_more": has_more, "url": url}))
    }
}
