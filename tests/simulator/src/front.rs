//! What comes in over HTTP: Stripe's deliveries to the webhook, and services that ask whether a user may call.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use access::{AccessApi, Cache, Seller};
use fastrand::Rng;
use hmac::{Hmac, KeyInit, Mac};
use lambda_http::{Body, Request, RequestExt};
use serde_json::{Value, json};
use sha2::Sha256;
use tokentill::{
    config::StripeMode,
    domain::{
        id::{CheckoutSessionId, CustomerId, PriceId, UserId},
        price_list::PriceList,
        selling::{Buyer, Link, Offer, ReturnUrl},
        time::EpochSecs,
    },
    dynamodb::Store,
    ports::{CheckoutSessions, Clock, Portal, Sales, Secret, SecretUnavailable, Secrets, StripeError},
};
use tokio::time::sleep;
use webhook::Webhook;

use crate::{
    hub::{Hub, SimClock, Struck, Weather},
    model::{CLOCKS_DIFFER_SECS, Checked, GRACE_SECS, holds},
    queue::Queue,
    stripe::{Event, Stripe},
};

/// What Stripe signs with.
const WEBHOOK_SECRET: &str = "whsec_simulated";
/// What services show.
const SERVICE_TOKEN: &str = "token_simulated";
/// After how many seconds Stripe delivers an event again that was not taken, each time.
const AGAIN_AFTER_SECS: [u64; 6] = [5, 300, 1_800, 7_200, 36_000, 86_400];
/// Both functions' time.
const LIMIT_SECS: u64 = 10;
/// What the shipped price list allows: requests a minute and a month on the free tier, and a minute on the other plans.
const FREE_PER_MINUTE: u64 = 60;
const FREE_PER_MONTH: u64 = 100;
const PAID_PER_MINUTE: u64 = 600;
/// One check may take effect several times, as its answer is lost and the SDK and the function try again: not more often than this.
const MOST_EFFECTS: u64 = 10;

type Api = AccessApi<Fixed, Store, SimClock, Seller<NoShop, Queue>>;

/// A secret that does not change.
#[derive(Debug, Clone, Copy)]
struct Fixed(&'static str);

impl Secrets for Fixed {
    async fn secret(&self) -> Result<Secret, SecretUnavailable> {
        Ok(Secret::new(self.0))
    }
}

/// Nobody buys by the API here: whoever tries is told that Stripe does not answer.
#[derive(Debug, Clone, Copy)]
struct NoShop;

impl NoShop {
    fn closed<T>() -> Result<T, StripeError> {
        Err(StripeError::Unavailable { reason: "closed".to_owned(), retry_after_secs: None, request_id: "none".to_owned() })
    }
}

impl Sales for NoShop {
    async fn price_ids(&self, _: &[&str]) -> Result<BTreeMap<String, PriceId>, StripeError> {
        Self::closed()
    }

    async fn buyer(&self, _: &CustomerId) -> Result<Buyer, StripeError> {
        Self::closed()
    }

    async fn make_customer(&self, _: &UserId, _: &str) -> Result<CustomerId, StripeError> {
        Self::closed()
    }
}

impl CheckoutSessions for NoShop {
    async fn open_session(&self, _: &CustomerId, _: &Offer, _: &str) -> Result<(), StripeError> {
        Self::closed()
    }

    async fn expire_session(&self, _: &CheckoutSessionId) -> Result<(), StripeError> {
        Self::closed()
    }
}

impl Portal for NoShop {
    async fn portal(&self, _: &CustomerId, _: &ReturnUrl) -> Result<Link, StripeError> {
        Self::closed()
    }
}

/// A check, and what was answered to it.
#[derive(Debug, Clone)]
struct Asked {
    user: &'static str,
    requests: u64,
    /// When it was asked, by the function's own clock.
    at: i64,
    /// Whether nothing was done to the function.
    is_calm: bool,
    /// The status and the body, if there was an answer.
    answer: Option<(u16, Value)>,
}

impl Asked {
    fn minute(&self) -> i64 {
        self.at.div_euclid(60)
    }

    fn month(&self) -> String {
        EpochSecs::new(self.at).to_string().chars().take(7).collect()
    }

    fn text(&self, field: &str) -> &str {
        self.answer.as_ref().and_then(|(_, body)| body[field].as_str()).unwrap_or_default()
    }

    fn is_granted(&self) -> bool {
        self.answer.as_ref().is_some_and(|(_, body)| body["allowed"] == true)
    }
}

/// Every event whose hint is in the queue or was, and since when.
pub(crate) type Told = Rc<RefCell<Vec<(Event, i64)>>>;

/// Where requests come in. Clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Front {
    hub: Hub,
    changes: Queue,
    store: Store,
    prices: PriceList,
    most_skew_ms: i64,
    /// An instance of the access function that stays, with what it remembers.
    warm: Rc<Api>,
    invocations: Rc<Cell<u64>>,
    told: Told,
    asked: Rc<RefCell<Vec<Asked>>>,
    checked: Rc<Cell<usize>>,
    wrong: Rc<RefCell<Option<String>>>,
}

impl Front {
    /// A front before these tables and this queue.
    pub(crate) fn new(hub: &Hub, changes: &Queue, store: Store, prices: &PriceList, most_skew_ms: i64, seed: u64) -> Self {
        let clock = clock(hub, most_skew_ms, seed);
        Self {
            hub: hub.clone(),
            changes: changes.clone(),
            warm: Rc::new(api(store.clone(), clock, prices, changes, 5)),
            store,
            prices: prices.clone(),
            most_skew_ms,
            invocations: Rc::default(),
            told: Rc::default(),
            asked: Rc::default(),
            checked: Rc::default(),
            wrong: Rc::default(),
        }
    }

    /// What Stripe's deliveries came to.
    pub(crate) fn told(&self) -> Told {
        self.told.clone()
    }

    fn name(&self, function: &str) -> String {
        self.invocations.set(self.invocations.get() + 1);
        format!("{function}-{}", self.invocations.get())
    }

    fn is_wrong(&self, what: String) {
        self.wrong.borrow_mut().get_or_insert(what);
    }

    /// A request to the webhook; the status of its answer, if there is one.
    async fn post(&self, body: String, signature: &str, weather: &Weather) -> Option<u16> {
        let webhook = Webhook {
            secrets: Fixed(WEBHOOK_SECRET),
            hints: self.changes.clone(),
            clock: clock(&self.hub, self.most_skew_ms, weather.seed),
            mode: StripeMode::Test,
        };
        let request = http::Request::post("https://api.example.com/webhooks/stripe").header("stripe-signature", signature);
        let request: Request = request.body(Body::Binary(body.into_bytes())).expect("a request");
        let work = Box::pin(async move { webhook.handle(request).await.status().as_u16() });
        self.hub.invoke(self.name("webhook"), weather, LIMIT_SECS, None, work).await
    }

    /// Stripe delivers an event once; whether it was taken.
    async fn deliver_once(&self, event: &Event, weather: &Weather) -> bool {
        let body = body(event, false);
        let signature = signature(WEBHOOK_SECRET, self.hub.now_secs(), &body);
        let status = self.post(body, &signature, weather).await;
        let queued_ms = self.changes.queued_ms(&event.id);
        if let Some(queued_ms) = queued_ms {
            self.told.borrow_mut().push((event.clone(), queued_ms.div_euclid(1_000)));
        }
        match status {
            Some(200) if queued_ms.is_none() => self.is_wrong(format!("G2: {event:?} is answered 200 and not queued")),
            Some(200 | 500) | None => {}
            Some(status) => self.is_wrong(format!("G2: Stripe's own {event:?} is answered {status}")),
        }
        status == Some(200)
    }

    /// Stripe delivers an event, and again until it is taken.
    pub(crate) async fn deliver(&self, event: &Event, permille: u32, seed: u64) {
        let mut chance = Rng::with_seed(seed);
        for again_after in std::iter::once(0).chain(AGAIN_AFTER_SECS) {
            if again_after > 0 {
                self.hub.count("event delivered again");
            }
            sleep(Duration::from_secs(again_after)).await;
            let weather = Weather { seed: chance.u64(..), permille, ..Weather::calm() };
            if self.deliver_once(event, &weather).await {
                return;
            }
        }
        self.hub.count("event given up");
    }

    /// Somebody makes an event up, or signs with another secret, or has one of an hour ago, or of the other mode.
    pub(crate) async fn forge(&self, event: &Event, seed: u64) {
        let mut chance = Rng::with_seed(seed);
        let made_up = Event { id: format!("{}-made-up-{seed}", event.id), ..event.clone() };
        let kind = chance.u8(..4);
        let body = body(&made_up, kind == 3);
        let now = self.hub.now_secs();
        let (signature, answer) = match kind {
            0 => (String::new(), 400),
            1 => (signature("whsec_another", now, &body), 400),
            2 => (signature(WEBHOOK_SECRET, now - 3_600, &body), 400),
            _ => (signature(WEBHOOK_SECRET, now, &body), 200),
        };
        self.hub.count("event made up");
        let status = self.post(body, &signature, &Weather { seed, ..Weather::calm() }).await;
        if status != Some(answer) || self.changes.queued_ms(&made_up.id).is_some() {
            self.is_wrong(format!("G1: what Stripe did not send ({kind}) is answered {status:?}, or queued: {made_up:?}"));
        }
    }

    /// A service asks whether a user may make so many requests.
    pub(crate) async fn ask(&self, user: &'static str, requests: u64, weather: Weather, struck: Option<Struck>) {
        let is_warm = Rng::with_seed(weather.seed ^ 4).bool();
        let api = if is_warm {
            self.warm.clone()
        } else {
            let clock = clock(&self.hub, self.most_skew_ms, weather.seed);
            Rc::new(api(self.store.clone(), clock, &self.prices, &self.changes, 5))
        };
        let at = api.clock.now_ms().div_euclid(1_000);
        let body = json!({"user_id": user, "units": {"requests": requests}}).to_string();
        let request = http::Request::post("https://api.example.com/v1/check").body(Body::Text(body)).expect("a request");
        let place = {
            let mut asked = self.asked.borrow_mut();
            asked.push(Asked { user, requests, at, is_calm: weather.permille == 0, answer: None });
            asked.len() - 1
        };
        let work = Box::pin(async move { answer(&api, request).await });
        let answer = self.hub.invoke(self.name("access"), &weather, LIMIT_SECS, struck.as_ref(), work).await;
        if let Some((status, body)) = &answer {
            self.hub.note(&format!("{user} asks for {requests}: {status} {} {}", body["state"], body["reason"]));
        }
        if answer.is_none() && weather.permille == 0 {
            self.is_wrong(format!("G7: nothing was done to a check, and it has no answer: {user} at {at}"));
        }
        self.asked.borrow_mut()[place].answer = answer;
    }

    /// A user's state and until when there is access, as it is answered at a moment.
    ///
    /// # Errors
    /// There is no such answer.
    pub(crate) async fn look(&self, user: &str, at: i64) -> Result<(Value, Option<i64>), String> {
        let clock = SimClock { hub: self.hub.clone(), skew_ms: at * 1_000 - self.hub.now_ms() };
        let api = api(self.store.clone(), clock, &self.prices, &self.changes, 0);
        let request = http::Request::get("https://api.example.com/v1/access").body(Body::Empty).expect("a request");
        let query = std::collections::HashMap::from([("user_id".to_owned(), vec![user.to_owned()])]);
        let (status, body) = answer(&api, request.with_query_string_parameters(query)).await;
        holds(status == 200, || format!("G7: asked for {user} the answer is {status} {body}"))?;
        let until = body["access_until"].as_str().and_then(EpochSecs::parse_rfc3339).map(EpochSecs::as_secs);
        Ok((body["state"].clone(), until))
    }

    /// G7, G9: what was answered since this was checked last. `counted` is how many requests a user had counted on the free tier.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check(&self, stripe: &Stripe, counted: impl Fn(&str) -> u64) -> Checked {
        self.wrong.borrow().clone().map_or(Ok(()), Err)?;
        let asked = self.asked.borrow();
        let answers = asked.iter().filter(|one| one.answer.is_some()).count();
        if self.checked.replace(answers) == answers {
            return Ok(());
        }
        for one in asked.iter() {
            let Some((status, _)) = &one.answer else { continue };
            let is_possible = matches!(status, 200 | 402 | 429) || *status == 503 && !one.is_calm;
            holds(is_possible, || format!("G7: no answer to a check: {one:?}"))?;
            let says_so = one.is_granted() == (*status == 200);
            let may_be_granted = !one.is_granted() || matches!(one.text("state"), "free" | "active" | "grace");
            holds(says_so && may_be_granted, || format!("G7: an answer that contradicts itself: {one:?}"))?;
            if *status == 503 {
                continue;
            }
            self.check_reason(stripe, one)?;
            let others = || asked.iter().filter(|other| other.user == one.user && !std::ptr::eq(*other, one));
            // Its own grant counts against it, where the answer to that was lost and the SDK asked once more.
            let own = one.requests * if one.is_calm { 1 } else { MOST_EFFECTS };
            let most = |others: u64| others * MOST_EFFECTS + own;
            let limited = match one.text("reason") {
                "rate_limited" => {
                    let in_minute: u64 =
                        others().filter(|other| other.minute() == one.minute()).map(|other| other.requests).sum();
                    most(in_minute) > if one.text("state") == "free" { FREE_PER_MINUTE } else { PAID_PER_MINUTE }
                }
                "quota_exceeded" => {
                    let in_month: u64 = others().filter(|other| other.month() == one.month()).map(|other| other.requests).sum();
                    one.text("state") == "free" && most(in_month) + counted(one.user) > FREE_PER_MONTH
                }
                _ => true,
            };
            holds(limited, || format!("G9: denied for what this user did not do: {one:?}"))?;
        }
        let mut granted: BTreeMap<String, u64> = BTreeMap::new();
        for one in asked.iter().filter(|one| one.is_granted()) {
            let is_free = one.text("state") == "free";
            let (user, minute) = (one.user, one.minute());
            let counted_in = [
                Some((format!("{user} in minute {minute}"), PAID_PER_MINUTE)),
                is_free.then(|| (format!("{user}, free, in minute {minute}"), FREE_PER_MINUTE)),
                is_free.then(|| (format!("{user}, free, in {}", one.month()), FREE_PER_MONTH)),
            ];
            for (what, limit) in counted_in.into_iter().flatten() {
                let sum = granted.entry(what.clone()).or_default();
                *sum += one.requests;
                holds(*sum <= limit, || format!("G9: {sum} requests were granted to {what}"))?;
            }
        }
        Ok(())
    }

    /// What a check says of a subscription has happened at Stripe.
    fn check_reason(&self, stripe: &Stripe, one: &Asked) -> Checked {
        let customers = stripe.customers();
        let own = || customers.iter().filter(|customer| customer.user == one.user).flat_map(|customer| &customer.subscriptions);
        let failed_before = |moment: i64| own().any(|subscription| subscription.failed.values().any(|first| *first <= moment));
        let soon = one.at + CLOCKS_DIFFER_SECS;
        let is_true = match (one.text("state"), one.text("reason")) {
            (_, "payment_overdue") => failed_before(soon - GRACE_SECS),
            (_, "subscription_ended") => {
                own().any(|subscription| subscription.ended.or(subscription.cancel_at).is_some_and(|end| end <= soon))
            }
            (_, "unknown_user") => self.prices.free_plan().is_none(),
            ("grace", _) => failed_before(soon),
            ("none" | "trialing", _) => false,
            _ => true,
        };
        holds(is_true, || format!("G7: what is answered has not happened: {one:?}; at Stripe {:?}", own().collect::<Vec<_>>()))
    }
}

fn clock(hub: &Hub, most_skew_ms: i64, seed: u64) -> SimClock {
    SimClock::off(hub, most_skew_ms, &mut Rng::with_seed(seed))
}

fn api(store: Store, clock: SimClock, prices: &PriceList, changes: &Queue, cache_secs: u32) -> Api {
    AccessApi {
        tokens: Fixed(SERVICE_TOKEN),
        store,
        cache: Cache::new(cache_secs),
        clock,
        prices: prices.clone(),
        seller: Seller::new(NoShop, changes.clone(), StripeMode::Test),
    }
}

async fn answer(api: &Api, mut request: Request) -> (u16, Value) {
    let token = format!("Bearer {SERVICE_TOKEN}").parse().expect("a header");
    request.headers_mut().insert("authorization", token);
    let response = api.handle(request).await;
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap_or_default())
}

/// An event as Stripe sends it, as far as anybody reads it.
fn body(event: &Event, livemode: bool) -> String {
    let (id, kind, customer) = (&event.id, event.kind, &event.customer);
    if customer.is_empty() {
        let related = json!({"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"});
        let created = EpochSecs::new(event.created).to_string();
        return json!({
            "id": id, "object": "v2.core.event", "type": kind, "created": created, "livemode": livemode,
            "related_object": related,
        })
        .to_string();
    }
    let object = match (kind, &event.invoice) {
        (_, Some(invoice)) => json!({"id": invoice, "object": "invoice", "customer": customer}),
        ("invoice.paid", None) => json!({"id": "in_first", "object": "invoice", "customer": customer}),
        ("checkout.session.completed", None) => json!({"id": "cs_1", "object": "checkout.session", "customer": customer}),
        _ => json!({"id": "sub_1", "object": "subscription", "customer": customer}),
    };
    json!({
        "id": id, "object": "event", "type": kind, "created": event.created, "livemode": livemode, "data": {"object": object},
    })
    .to_string()
}

/// Stripe's signature of a body at a moment.
fn signature(secret: &str, at: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key of any length");
    mac.update(format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex::encode(mac.finalize().into_bytes()))
}
