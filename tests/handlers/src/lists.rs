//! What Stripe lists of everybody, as a test sets it.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc};

use serde_json::{Value, json};
use tokentill::{
    domain::{
        hint::SNAPSHOT_EVENTS,
        repair::{Endpoint, ListedSubscription},
        time::EpochSecs,
    },
    ports::{EventList, EventWindow, StripeError, StripeLists, StripePage},
};

use crate::Faults;

/// The API version that the double's Stripe speaks.
const VERSION: &str = "2026-09-30.endive";
/// Stripe lists the events of so many types at once.
const TYPES: usize = 20;

/// Stripe's lists. Clones are the same Stripe.
#[derive(Debug, Clone)]
pub struct Lists {
    inner: Rc<RefCell<Inner>>,
    /// What goes wrong with, or happens before, `events`, `all_subscriptions` and `endpoints`.
    pub faults: Faults,
}

#[derive(Debug)]
struct Inner {
    /// Oldest first.
    events: Vec<Event>,
    /// Oldest first.
    subscriptions: Vec<Result<ListedSubscription, String>>,
    endpoints: Result<Vec<Endpoint>, StripeError>,
    page: usize,
    /// Where the last page of subscriptions ended.
    end: usize,
    windows: Vec<EventWindow>,
}

#[derive(Debug)]
struct Event {
    body: Value,
    undelivered: bool,
}

/// A snapshot event as Stripe lists it, about an invoice of a customer.
#[must_use]
pub fn event(id: &str, kind: &str, created: EpochSecs, customer: &str) -> Value {
    json!({
        "id": id, "object": "event", "type": kind, "created": created.as_secs(), "livemode": false,
        "data": {"object": {"id": format!("in_{id}"), "object": "invoice", "customer": customer}},
    })
}

impl Lists {
    /// A Stripe of which nothing is known but a good endpoint for this URL.
    #[must_use]
    pub fn new(webhook_url: &str) -> Self {
        let endpoint = Endpoint {
            id: "we_1".to_owned(),
            url: webhook_url.to_owned(),
            api_version: Some(VERSION.to_owned()),
            enabled: true,
            events: SNAPSHOT_EVENTS.map(str::to_owned).to_vec(),
        };
        let (events, subscriptions, windows) = (Vec::new(), Vec::new(), Vec::new());
        let inner = Inner { events, subscriptions, endpoints: Ok(vec![endpoint]), page: 100, end: 0, windows };
        Self { inner: Rc::new(RefCell::new(inner)), faults: Faults::default() }
    }

    /// From now on a page holds so many objects.
    pub fn page_size(&self, objects: usize) {
        self.inner.borrow_mut().page = objects;
    }

    /// An event that was just made, and that Stripe has not delivered everywhere; or has.
    pub fn add_event(&self, body: Value, undelivered: bool) {
        self.inner.borrow_mut().events.push(Event { body, undelivered });
    }

    /// Stripe forgets an event.
    pub fn remove_event(&self, id: &str) {
        self.inner.borrow_mut().events.retain(|event| event.body["id"] != id);
    }

    /// A subscription that was just made.
    pub fn add_subscription(&self, subscription: Result<ListedSubscription, String>) {
        self.inner.borrow_mut().subscriptions.push(subscription);
    }

    /// Changes subscriptions, or what there is of them.
    pub fn change_subscriptions(&self, change: impl FnOnce(&mut Vec<Result<ListedSubscription, String>>)) {
        change(&mut self.inner.borrow_mut().subscriptions);
    }

    /// From now on these are the webhook endpoints, or this is what Stripe says instead.
    pub fn set_endpoints(&self, endpoints: Result<Vec<Endpoint>, StripeError>) {
        self.inner.borrow_mut().endpoints = endpoints;
    }

    /// The webhook endpoints.
    #[must_use]
    pub fn endpoints_now(&self) -> Vec<Endpoint> {
        self.inner.borrow().endpoints.clone().expect("the endpoints are no error")
    }

    /// Which pages of events were asked for, in order.
    #[must_use]
    pub fn windows(&self) -> Vec<EventWindow> {
        self.inner.borrow().windows.clone()
    }

    async fn ask<T>(
        &self,
        call: &'static str,
        find: impl FnOnce(&mut Inner) -> Result<T, StripeError>,
    ) -> Result<T, StripeError> {
        let lost = |reason| StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() };
        self.faults.around(call, lost, async { find(&mut self.inner.borrow_mut()) }).await
    }
}

/// Cuts a page out of what is listed, newest first.
fn cut<T>(newest_first: Vec<(String, T)>, after: Option<&str>, size: usize) -> Result<StripePage<T>, StripeError> {
    let begin = match after {
        None => 0,
        Some(after) => match newest_first.iter().position(|(id, _)| id == after) {
            Some(place) => place + 1,
            None => return Err(StripeError::NotFound { request_id: "req_none".to_owned() }),
        },
    };
    let more = newest_first.len() > begin + size;
    let page: Vec<(String, T)> = newest_first.into_iter().skip(begin).take(size).collect();
    let next = page.last().filter(|_| more).map(|(id, _)| id.clone());
    Ok(StripePage { data: page.into_iter().map(|(_, object)| object).collect(), next })
}

impl StripeLists for Lists {
    async fn events(&self, window: &EventWindow) -> Result<StripePage<String>, StripeError> {
        self.ask("events", |inner| {
            inner.windows.push(window.clone());
            let (first, others) = SNAPSHOT_EVENTS.split_at(TYPES);
            let (first, others): (BTreeSet<&str>, BTreeSet<&str>) =
                (first.iter().copied().collect(), others.iter().copied().collect());
            let wanted = |event: &&Event| {
                let kind = event.body["type"].as_str().unwrap_or_default();
                let created = event.body["created"].as_i64().unwrap_or_default();
                let is_listed = match window.list {
                    EventList::Undelivered => event.undelivered,
                    EventList::AllOfFirstTypes => first.contains(kind),
                    EventList::AllOfOtherTypes => others.contains(kind),
                };
                is_listed && (window.from.as_secs()..=window.until.as_secs()).contains(&created)
            };
            let id = |event: &Event| event.body["id"].as_str().unwrap_or_default().to_owned();
            if let Some(after) = &window.after
                && !inner.events.iter().any(|event| id(event) == *after)
            {
                return Err(StripeError::NotFound { request_id: "req_none".to_owned() });
            }
            let mut events: Vec<&Event> = inner.events.iter().filter(wanted).collect();
            events.reverse();
            cut(
                events.into_iter().map(|event| (id(event), event.body.to_string())).collect(),
                window.after.as_deref(),
                inner.page,
            )
        })
        .await
    }

    async fn all_subscriptions(
        &self,
        after: Option<&str>,
    ) -> Result<StripePage<Result<ListedSubscription, String>>, StripeError> {
        self.ask("all_subscriptions", |inner| {
            let id = |subscription: &Result<ListedSubscription, String>| match subscription {
                Ok(listed) => listed.facts.id.to_string(),
                Err(reason) => reason.clone(),
            };
            let begin = match after {
                None => inner.subscriptions.len(),
                // Mostly where the page before ended, which matters where there are very many.
                Some(after) if inner.subscriptions.get(inner.end).is_some_and(|listed| id(listed) == after) => inner.end,
                Some(after) => inner
                    .subscriptions
                    .iter()
                    .rposition(|subscription| id(subscription) == after)
                    .ok_or_else(|| StripeError::NotFound { request_id: "req_none".to_owned() })?,
            };
            let end = begin.saturating_sub(inner.page);
            inner.end = end;
            let data: Vec<_> = inner.subscriptions[end..begin].iter().rev().cloned().collect();
            let next = data.last().filter(|_| end > 0).map(id);
            Ok(StripePage { data, next })
        })
        .await
    }

    async fn endpoints(&self) -> Result<Vec<Endpoint>, StripeError> {
        self.ask("endpoints", |inner| inner.endpoints.clone()).await
    }

    fn api_version(&self) -> &'static str {
        VERSION
    }
}
