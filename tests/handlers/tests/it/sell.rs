//! `POST /v1/checkout` and `POST /v1/portal`, through the real adapter, against the Stripe sandbox.

use std::{panic::AssertUnwindSafe, rc::Rc, time::Duration};

use access::{AccessApi, Cache, Seller};
use futures_util::{FutureExt, future::pending, join};
use handlers::{Fault, Faults, Queue, TestClock, TestSecret, World};
use lambda_http::{Body, Request, request};
use serde_json::{Value, json};
use stripe_sandbox::Sandbox;
use sync::Sync;
use tokentill::{
    config::StripeMode,
    domain::{
        id::{CheckoutSessionId, CustomerId, PriceId, UserId},
        price_list::PriceList,
        selling::{Buyer, Link, Offer, ReturnUrl},
        time::EpochSecs,
    },
    ports::{Accounts, CheckoutSessions, Portal, Sales, StripeError},
    stripe::{FixedKey, Limits, SecretKey, Stripe, StripeClient},
};

use crate::{
    access::Reads,
    openapi::{Document, too_large, without_token},
    samples::{BODY_MARK, CHECKOUT, EMAIL, PORTAL, SERVICE_TOKEN, cancelled, commit, parsed, sqs_event, subscriber, user},
};

/// Looked for in the log by `logs`, as the pages' addresses are.
pub(crate) const STRIPE_KEY: &str = "sk_test_PlantedKey";

/// Stripe, whose calls can go wrong.
struct Shop {
    stripe: Stripe<FixedKey>,
    faults: Faults,
}

impl Shop {
    async fn call<T>(&self, name: &'static str, effect: impl Future<Output = Result<T, StripeError>>) -> Result<T, StripeError> {
        let lost = |reason| StripeError::Unavailable { reason, retry_after_secs: None, request_id: "req_lost".to_owned() };
        self.faults.around(name, lost, effect).await
    }
}

impl Sales for Shop {
    async fn price_ids(&self, lookup_keys: &[&str]) -> Result<std::collections::BTreeMap<String, PriceId>, StripeError> {
        self.call("price_ids", self.stripe.price_ids(lookup_keys)).await
    }

    async fn buyer(&self, customer: &CustomerId) -> Result<Buyer, StripeError> {
        self.call("buyer", self.stripe.buyer(customer)).await
    }

    async fn make_customer(&self, user_id: &UserId, key: &str) -> Result<CustomerId, StripeError> {
        self.call("make_customer", self.stripe.make_customer(user_id, key)).await
    }
}

impl CheckoutSessions for Shop {
    async fn open_session(&self, customer: &CustomerId, offer: &Offer, key: &str) -> Result<(), StripeError> {
        self.call("open_session", self.stripe.open_session(customer, offer, key)).await
    }

    async fn expire_session(&self, session: &CheckoutSessionId) -> Result<(), StripeError> {
        self.call("expire_session", self.stripe.expire_session(session)).await
    }
}

impl Portal for Shop {
    async fn portal(&self, customer: &CustomerId, return_url: &ReturnUrl) -> Result<Link, StripeError> {
        self.call("portal", self.stripe.portal(customer, return_url)).await
    }
}

type Api = AccessApi<TestSecret, Reads, TestClock, Seller<Shop, Queue>>;

/// The sandbox's API, as an operator has it.
#[derive(Clone)]
struct Operator {
    url: String,
    http: reqwest::Client,
}

impl Operator {
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Value {
        self.answer(path, self.http.post(format!("{}{path}", self.url)).form(fields)).await
    }

    async fn get(&self, path: &str) -> Value {
        self.answer(path, self.http.get(format!("{}{path}", self.url))).await
    }

    async fn delete(&self, path: &str) {
        self.answer(path, self.http.delete(format!("{}{path}", self.url))).await;
    }

    async fn answer(&self, path: &str, request: reqwest::RequestBuilder) -> Value {
        let answer = request.bearer_auth("sk_test_operator").send().await.unwrap();
        let (status, body) = (answer.status(), answer.json::<Value>().await.unwrap());
        assert!(status.is_success(), "{path}: {body}");
        body
    }

    async fn list(&self, path: &str) -> Vec<Value> {
        self.get(path).await["data"].as_array().unwrap().clone()
    }

    /// Completes a session as a payer would.
    async fn pay(&self, session: &str) {
        self.post(&format!("/_sandbox/checkout/sessions/{session}/complete"), &[]).await;
    }

    /// The price list's meters and prices, and the portal's configuration.
    async fn set_up(&self) {
        let product = self.post("/v1/products", &[("name", "Pro")]).await;
        let product = product["id"].as_str().unwrap();
        self.flat_price(product, "4900").await;
        for meter in ["requests", "tokens_in", "tokens_out"] {
            let fields = [("display_name", meter), ("event_name", meter), ("default_aggregation[formula]", "sum")];
            let meter_id = self.post("/v1/billing/meters", &fields).await;
            let fields = [
                ("product", product),
                ("currency", "usd"),
                ("unit_amount_decimal", "0.1"),
                ("lookup_key", &format!("pro_{meter}")),
                ("recurring[interval]", "month"),
                ("recurring[usage_type]", "metered"),
                ("recurring[meter]", meter_id["id"].as_str().unwrap()),
            ];
            self.post("/v1/prices", &fields).await;
        }
        let fields = [("features[invoice_history][enabled]", "true"), ("business_profile[headline]", "Ours")];
        self.post("/v1/billing_portal/configurations", &fields).await;
        self.post("/_sandbox/settings", &[("global_rate", "0"), ("endpoint_rate", "0")]).await;
    }

    /// The base price, which takes its lookup key from whatever price has it.
    async fn flat_price(&self, product: &str, cents: &str) -> Value {
        let fields = [
            ("product", product),
            ("currency", "usd"),
            ("unit_amount", cents),
            ("lookup_key", "pro_base"),
            ("transfer_lookup_key", "true"),
            ("recurring[interval]", "month"),
        ];
        self.post("/v1/prices", &fields).await
    }

    async fn base_price(&self) -> Value {
        self.list("/v1/prices?lookup_keys[]=pro_base").await.remove(0)
    }
}

struct Bench {
    world: World,
    api: Rc<Api>,
    faults: Faults,
    stripe: Operator,
    _sandbox: Sandbox,
}

fn client(url: &str) -> StripeClient<FixedKey> {
    // What Stripe asks to wait for is left to the caller.
    let limits = Limits { backoff_base: Duration::from_millis(1), backoff_cap: Duration::from_millis(500), ..Limits::default() };
    StripeClient::new(Some(url), FixedKey(SecretKey::new(STRIPE_KEY).unwrap())).unwrap().with_limits(limits)
}

fn api(world: &World, url: &str, faults: &Faults, mode: StripeMode) -> Api {
    let shop = Shop { stripe: Stripe::new(client(url)), faults: faults.clone() };
    AccessApi {
        tokens: TestSecret::new(SERVICE_TOKEN),
        store: Reads::of(world),
        cache: Cache::new(0),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        seller: Seller::new(shop, world.queue.clone(), mode).with_deadline(Duration::from_secs(60)),
    }
}

/// A world whose Stripe has nothing yet.
async fn empty_bench() -> Bench {
    let world = World::start().await;
    let sandbox = Sandbox::start(0).await.unwrap();
    let stripe = Operator { url: sandbox.url(), http: reqwest::Client::new() };
    let faults = Faults::default();
    let api = Rc::new(api(&world, &sandbox.url(), &faults, StripeMode::Test));
    Bench { world, api, faults, stripe, _sandbox: sandbox }
}

async fn bench() -> Bench {
    let bench = empty_bench().await;
    bench.stripe.set_up().await;
    bench
}

fn post(sample: &str, body: &str) -> Request {
    let mut event = parsed(sample);
    event["body"] = body.into();
    event["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
    request::from_str(&event.to_string()).unwrap()
}

fn wanted(user_id: &str, back_to: &str) -> Value {
    json!({
        "user_id": user_id, "plan": "pro", "success_url": "https://app.example.com/thanks?session={CHECKOUT_SESSION_ID}",
        "cancel_url": format!("https://app.example.com/{back_to}"),
    })
}

async fn asked(api: &Api, request: Request) -> (u16, Option<String>, Value) {
    let response = api.handle(request).await;
    let content_type = response.headers()["content-type"].to_str().unwrap();
    assert_eq!(content_type, if response.status() == 200 { "application/json" } else { "application/problem+json" });
    let retry_after = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let Body::Text(body) = response.body() else { panic!("{:?}", response.body()) };
    (response.status().as_u16(), retry_after, serde_json::from_str(body).unwrap())
}

async fn checkout(api: &Api, user_id: &str, back_to: &str) -> (u16, Value) {
    let (status, _, body) = asked(api, post(CHECKOUT, &wanted(user_id, back_to).to_string())).await;
    (status, body)
}

impl Bench {
    async fn checkout(&self, user_id: &str) -> (u16, Value) {
        checkout(&self.api, user_id, "pricing").await
    }

    /// The link of a checkout that works.
    async fn sold(&self, user_id: &str) -> String {
        let (status, body) = self.checkout(user_id).await;
        assert_eq!(status, 200, "{body}");
        body["url"].as_str().unwrap().to_owned()
    }

    /// The open session that a link leads to.
    async fn session(&self, link: &str) -> Value {
        let open = self.open().await;
        open.iter().find(|session| session["url"] == link).unwrap_or_else(|| panic!("{link} is not open")).clone()
    }

    async fn open(&self) -> Vec<Value> {
        self.stripe.list("/v1/checkout/sessions?status=open&limit=100").await
    }

    async fn customers(&self) -> Vec<Value> {
        self.stripe.list("/v1/customers?limit=100").await
    }

    async fn subscriptions(&self) -> Vec<Value> {
        self.stripe.list("/v1/subscriptions?status=all&limit=100").await
    }

    /// What is wrong with a checkout.
    async fn problem(&self, user_id: &str) -> (u16, String) {
        let (status, body) = self.checkout(user_id).await;
        (status, body["detail"].as_str().unwrap_or_else(|| panic!("{status}: {body}")).to_owned())
    }

    /// `sync` handles every hint that is queued.
    async fn sync(&self) {
        let store = self.world.store_of("sync");
        let sync = Sync {
            stripe: Stripe::new(client(&self.stripe.url)),
            accounts: store.clone(),
            queue: self.world.queue.clone(),
            recounts: self.world.recounts.clone(),
            quarantine: store.clone(),
            meter_errors: store,
            clock: self.world.clock.clone().moving_by_itself(),
            prices: PriceList::shipped().unwrap(),
            mode: StripeMode::Test,
        };
        for (at, hint) in self.world.queue.hints().into_iter().enumerate() {
            let message = (Some(format!("m{at}")), json!(hint).to_string(), 0, 1);
            let messages = [(message.0.as_deref(), message.1, message.2, message.3)];
            let answer = sync.handle(sqs_event(&messages), i64::MAX).await.unwrap();
            assert!(answer.batch_item_failures.is_empty());
        }
    }

    /// The user's subscription at Stripe, with a status of its own, beside any session.
    async fn subscription(&self, customer: &str, more: &[(&str, &str)]) -> Value {
        let price = self.stripe.base_price().await;
        let mut fields = vec![("customer", customer), ("items[0][price]", price["id"].as_str().unwrap())];
        fields.extend(more);
        self.stripe.post("/v1/subscriptions", &fields).await
    }
}

fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_free_user_subscribes_by_the_link_and_is_sold_nothing_more() {
    let bench = bench().await;
    let link = bench.sold("ada/ü").await;
    let session = bench.session(&link).await;
    assert_eq!(session["success_url"], "https://app.example.com/thanks?session={CHECKOUT_SESSION_ID}");
    assert_eq!(session["cancel_url"], "https://app.example.com/pricing");
    assert_eq!((&session["mode"], &session["client_reference_id"]), (&json!("subscription"), &json!("ada/ü")));
    assert_eq!((&session["metadata"]["user_id"], &session["metadata"]["plan"]), (&json!("ada/ü"), &json!("pro")));

    // The customer was made for the user, and sync joins the two although nothing was bought yet.
    let customers = bench.customers().await;
    assert_eq!((customers.len(), &customers[0]["metadata"]), (1, &json!({"user_id": "ada/ü"})));
    assert_eq!(session["customer"], customers[0]["id"]);
    bench.sync().await;
    let account = bench.world.store().account(&user("ada/ü")).await.unwrap().unwrap();
    assert_eq!((account.customer_id.to_string(), &account.subscription), (id(&customers[0]), &None));

    bench.stripe.pay(&id(&session)).await;
    let [subscription] = &bench.subscriptions().await[..] else { panic!("one subscription") };
    assert_eq!((&subscription["status"], &subscription["billing_mode"]["type"]), (&json!("active"), &json!("flexible")));
    assert_eq!(subscription["metadata"]["user_id"], "ada/ü");
    let items = subscription["items"]["data"].as_array().unwrap();
    let mut items: Vec<_> = items.iter().map(|item| (item["price"]["lookup_key"].as_str().unwrap(), &item["quantity"])).collect();
    items.sort_by_key(|(key, _)| *key);
    let none = Value::Null;
    let metered = ["pro_requests", "pro_tokens_in", "pro_tokens_out"].map(|key| (key, &none));
    assert_eq!(items, [&[("pro_base", &json!(1))], &metered[..]].concat());

    let (status, body) = bench.checkout("ada/ü").await;
    assert_eq!((status, &body["status"]), (409, &json!(409)), "{body}");
    assert!(body["portal_url"].as_str().unwrap().starts_with("https://billing.stripe.com/"), "{body}");
    assert_eq!((bench.open().await.len(), bench.customers().await.len()), (0, 1));
}

#[tokio::test]
async fn what_cannot_be_read_or_sold_is_refused_with_the_reason() {
    let bench = bench().await;
    let with = |field: &str, value: Value| {
        let mut body = wanted("ada", "pricing");
        body[field] = value;
        body.to_string()
    };
    let without = |field: &str| {
        let mut body = wanted("ada", "pricing");
        body.as_object_mut().unwrap().remove(field);
        body.to_string()
    };
    for (body, reason) in [
        (String::new(), "the body"),
        ("[]".to_owned(), "the body"),
        (format!("{{{BODY_MARK}"), "the body"),
        (with("coupon", json!("x")), "unknown field `coupon`"),
        (without("user_id"), "user_id"),
        (without("plan"), "plan"),
        (without("success_url"), "success_url"),
        (without("cancel_url"), "cancel_url"),
        (with("user_id", json!("")), "user_id is empty"),
        (with("user_id", json!("x".repeat(129))), "user_id is longer"),
        (with("user_id", json!(7)), "the body"),
        (with("plan", json!("gold")), "no plan gold; it sells pro"),
        (with("plan", json!("free")), "nothing to buy"),
        (with("success_url", json!("/thanks")), "success_url: it must be an absolute URL"),
        (with("success_url", json!("http://app.example.com/")), "success_url: it must begin with https://"),
        (with("cancel_url", json!("https://ada@example.com/")), "cancel_url: it must be an absolute URL"),
    ] {
        let (status, _, answer) = asked(&bench.api, post(CHECKOUT, &body)).await;
        let detail = answer["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(reason), "{body}: {status} {detail}");
    }
    for (body, reason) in [
        (json!({"user_id": "ada"}), "return_url"),
        (json!({"user_id": "ada", "return_url": "example.com"}), "return_url: it must be an absolute URL"),
        (json!({"user_id": "ada", "return_url": "https://example.com", "plan": "pro"}), "unknown field `plan`"),
    ] {
        let (status, _, answer) = asked(&bench.api, post(PORTAL, &body.to_string())).await;
        let detail = answer["detail"].as_str().unwrap();
        assert!(status == 400 && detail.contains(reason), "{body}: {status} {detail}");
    }
    assert_eq!(bench.customers().await.len(), 0, "a request that is refused leaves nothing at Stripe");

    let large = with("plan", json!("x".repeat(64 * 1024)));
    assert_eq!(asked(&bench.api, post(CHECKOUT, &large)).await.0, 413);
    let stranger = request::from_str(CHECKOUT).unwrap();
    assert_eq!(asked(&bench.api, stranger).await.0, 401, "the sample's token is nobody's");
    let mut read = parsed(CHECKOUT);
    read["requestContext"]["http"]["method"] = "GET".into();
    read["headers"]["authorization"] = format!("Bearer {SERVICE_TOKEN}").into();
    assert_eq!(asked(&bench.api, request::from_str(&read.to_string()).unwrap()).await.0, 404);
}

#[tokio::test]
async fn a_page_on_this_machine_is_for_development_only() {
    let bench = bench().await;
    let mut body = wanted("ada", "pricing");
    body["success_url"] = "http://localhost:8000/thanks".into();
    assert_eq!(asked(&bench.api, post(CHECKOUT, &body.to_string())).await.0, 200);
    let live = api(&bench.world, &bench.stripe.url, &bench.faults, StripeMode::Live);
    assert_eq!(asked(&live, post(CHECKOUT, &body.to_string())).await.0, 400);
}

#[tokio::test]
async fn nothing_is_sold_before_its_prices_are_at_stripe() {
    let bench = empty_bench().await;
    let (status, detail) = bench.problem("ada").await;
    assert!(status == 503 && detail.contains("cargo till setup") && detail.contains("pro_base, pro_requests"), "{detail}");
    bench.stripe.set_up().await;
    bench.sold("ada").await;
}

#[tokio::test]
async fn prices_are_looked_up_once_in_five_minutes_and_a_new_price_is_sold_after_them() {
    let bench = bench().await;
    bench.sold("user_0").await;
    bench.world.clock.advance_ms(5 * 60 * 1_000 - 1);
    bench.sold("user_1").await;
    assert_eq!(bench.faults.calls("price_ids"), 1);
    let old = bench.stripe.base_price().await;
    let new = bench.stripe.flat_price(old["product"].as_str().unwrap(), "5900").await;
    bench.world.clock.advance_ms(1);
    let link = bench.sold("user_2").await;
    assert_eq!(bench.faults.calls("price_ids"), 2);
    let session = bench.session(&link).await;
    let items = bench.stripe.get(&format!("/v1/checkout/sessions/{}?expand[]=line_items", id(&session))).await;
    assert_eq!(items["line_items"]["data"][0]["price"]["id"], new["id"]);

    // Who had the old price's page gets another.
    let before = bench.session(&bench.sold("user_0").await).await;
    assert_eq!((before["amount_total"].as_i64(), bench.open().await.len()), (Some(5900), 3));
}

#[tokio::test]
async fn an_archived_price_is_not_sold_even_while_it_is_remembered() {
    let bench = bench().await;
    bench.sold("user_0").await;
    let old = bench.stripe.base_price().await;
    bench.stripe.flat_price(old["product"].as_str().unwrap(), "5900").await;
    bench.stripe.post(&format!("/v1/prices/{}", id(&old)), &[("active", "false")]).await;
    let session = bench.session(&bench.sold("user_1").await).await;
    assert_eq!(session["amount_total"], 5900);

    let new = bench.stripe.base_price().await;
    bench.stripe.post(&format!("/v1/prices/{}", id(&new)), &[("active", "false")]).await;
    let (status, detail) = bench.problem("user_2").await;
    assert!(status == 503 && detail.contains("lookup key pro_base: run"), "{detail}");

    // That Stripe refused the old price's page is remembered with its key, and stands in nobody's way.
    bench.stripe.flat_price(old["product"].as_str().unwrap(), "6900").await;
    let session = bench.session(&bench.sold("user_2").await).await;
    assert_eq!((session["amount_total"].as_i64(), bench.open().await.len()), (Some(6900), 3));
}

impl Bench {
    /// The next so many `POST`s to this path are answered by a status.
    async fn failing(&self, path: &str, status: &str, count: &str) {
        let fields = [("path", path), ("method", "POST"), ("status", status), ("count", count)];
        self.stripe.post("/_sandbox/faults", &fields).await;
    }
}

#[tokio::test]
async fn a_failure_that_stripe_remembers_spoils_no_later_attempt() {
    // Where a page is opened there is one more key, and every key is tried three times after a 5xx.
    for (path, status, of_one_key, of_all_keys) in [
        ("/v1/checkout/sessions", "500", "1", "6"),
        ("/v1/checkout/sessions", "400", "1", "2"),
        ("/v1/checkout/sessions", "403", "1", "2"),
        ("/v1/customers", "500", "1", "9"),
        ("/v1/customers", "500", "4", "9"),
        ("/v1/customers", "400", "1", "3"),
    ] {
        let bench = bench().await;
        bench.failing(path, status, of_one_key).await;
        let link = bench.sold("ada").await;
        let customer = bench.session(&link).await["customer"].clone();
        let others = bench.customers().await.into_iter().filter(|other| other["id"] != customer).count();
        if of_one_key == "4" {
            // Its customer was made under a key of chance's, so that only the account leads to it.
            bench.sync().await;
        }
        assert_eq!((bench.sold("ada").await, others), (link, 0), "{path} {status}");
        bench.failing(path, status, of_all_keys).await;
        let (answered, body) = bench.checkout("bob").await;
        assert_eq!(answered, if status == "400" { 502 } else { 503 }, "{path} {status}: {body}");
        bench.sold("bob").await;
        assert_eq!((bench.open().await.len(), bench.customers().await.len()), (2, 2), "{path} {status}");
    }
}

#[tokio::test]
async fn after_a_failure_of_stripes_two_at_once_still_share_a_customer() {
    let bench = bench().await;
    bench.failing("/v1/customers", "500", "1").await;
    let (one, other) = join!(bench.checkout("ada"), bench.checkout("ada"));
    assert_eq!((one.0, other.0), (200, 200), "{} {}", one.1, other.1);
    assert_eq!((bench.open().await.len(), bench.customers().await.len()), (1, 1));
}

#[tokio::test]
async fn a_lock_or_a_limit_leaves_the_key_as_it_is() {
    let bench = bench().await;
    bench.failing("/v1/customers", "429", "3").await;
    assert_eq!(bench.checkout("ada").await.0, 503);
    assert_eq!(bench.faults.calls("make_customer"), 1);
}

#[tokio::test]
async fn an_equal_checkout_gets_the_same_page_and_another_one_ends_it() {
    let bench = bench().await;
    let first = bench.sold("ada").await;
    assert_eq!(bench.sold("ada").await, first);
    let (status, other) = checkout(&bench.api, "ada", "elsewhere").await;
    assert_eq!((status, bench.open().await.len()), (200, 1));
    assert_eq!(bench.open().await[0]["url"], other["url"]);
    assert_ne!(other["url"], first.as_str());
    // And back again, which is a new page, since the first one has ended.
    let third = bench.sold("ada").await;
    assert!(third != first && bench.open().await.len() == 1);
    assert_eq!(bench.customers().await.len(), 1);
}

#[tokio::test]
async fn a_page_that_is_about_to_end_is_not_answered_again() {
    let bench = bench().await;
    let first = bench.sold("ada").await;
    let ends = bench.session(&first).await["expires_at"].as_i64().unwrap();
    bench.world.clock.set(&EpochSecs::new(ends - 3600).to_string());
    assert_eq!(bench.sold("ada").await, first);
    bench.world.clock.advance_ms(600_000);
    // The sandbox lives in the real time, so every page of its is about to end now, and none is answered.
    let (status, _) = bench.checkout("ada").await;
    assert_eq!(status, 503);
    bench.world.clock.set("2026-11-22T12:00:00Z");
    assert_ne!(bench.sold("ada").await, first);
    assert_eq!(bench.open().await.len(), 1);
}

#[tokio::test]
async fn two_at_once_get_one_page() {
    let bench = bench().await;
    let (one, other) = join!(bench.checkout("ada"), bench.checkout("ada"));
    assert_eq!((one.0, &one.1), (200, &other.1));
    assert_eq!((bench.open().await.len(), bench.customers().await.len()), (1, 1));
    bench.session(one.1["url"].as_str().unwrap()).await;
}

#[tokio::test]
async fn two_at_once_with_different_pages_leave_one_open() {
    let bench = bench().await;
    let (one, other) = join!(checkout(&bench.api, "ada", "a"), checkout(&bench.api, "ada", "b"));
    for (status, body) in [&one, &other] {
        assert!(matches!(status, 200 | 503), "{body}");
    }
    assert!(bench.open().await.len() <= 1, "{:#?}", bench.open().await);
    assert_eq!(bench.customers().await.len(), 1);
    // Whatever became of them, the next one has its page.
    bench.sold("ada").await;
    assert_eq!(bench.open().await.len(), 1);
}

/// What another one does just before a call of ours takes effect, and what ours comes to.
async fn meanwhile(bench: &Bench, call: &'static str, nth: usize, pays: bool) -> (u16, Value) {
    let (api, stripe) = (bench.api.clone(), bench.stripe.clone());
    bench.faults.meanwhile(call, nth, async move {
        let (status, body) = checkout(&api, "ada", "elsewhere").await;
        assert_eq!(status, 200, "{body}");
        if pays {
            let open = stripe.list("/v1/checkout/sessions?status=open").await;
            assert_eq!(open.len(), 1);
            stripe.pay(&id(&open[0])).await;
        }
    });
    bench.checkout("ada").await
}

#[tokio::test]
async fn whoever_comes_second_sees_what_the_first_one_did() {
    for (call, nth) in [("buyer", 1), ("open_session", 1), ("buyer", 2)] {
        let bench = bench().await;
        let (status, body) = meanwhile(&bench, call, nth, false).await;
        assert_eq!(status, 200, "{call} {nth}: {body}");
        let open = bench.open().await;
        assert_eq!((open.len(), &open[0]["url"]), (1, &body["url"]), "{call} {nth}");
    }
}

#[tokio::test]
async fn whoever_comes_second_twice_in_a_row_looks_again_each_time() {
    let bench = bench().await;
    // Each of the others' sessions is opened by a call of its own, between ours.
    for (nth, back_to) in [(1, "elsewhere"), (3, "nowhere")] {
        let api = bench.api.clone();
        bench.faults.meanwhile("open_session", nth, async move { assert_eq!(checkout(&api, "ada", back_to).await.0, 200) });
    }
    let link = bench.sold("ada").await;
    let open = bench.open().await;
    assert_eq!((open.len(), &open[0]["url"], bench.faults.calls("open_session")), (1, &json!(link), 5));
}

#[tokio::test]
async fn whoever_comes_second_finds_that_the_first_one_paid() {
    for (call, nth) in [("buyer", 1), ("open_session", 1), ("buyer", 2)] {
        let bench = bench().await;
        let (status, body) = meanwhile(&bench, call, nth, true).await;
        assert_eq!(status, 409, "{call} {nth}: {body}");
        assert_eq!((bench.open().await.len(), bench.subscriptions().await.len()), (0, 1), "{call} {nth}");
    }
}

#[tokio::test]
async fn a_page_that_is_paid_while_it_is_being_expired_is_a_sale() {
    let bench = bench().await;
    let first = id(&bench.session(&bench.sold("ada").await).await);
    let stripe = bench.stripe.clone();
    bench.faults.meanwhile("expire_session", 1, async move { stripe.pay(&first).await });
    assert_eq!(checkout(&bench.api, "ada", "elsewhere").await.0, 409);
    assert_eq!((bench.open().await.len(), bench.subscriptions().await.len()), (0, 1));
}

#[tokio::test]
async fn a_page_left_open_beside_a_subscription_is_expired() {
    let bench = bench().await;
    let session = bench.session(&bench.sold("ada").await).await;
    let customer = session["customer"].as_str().unwrap();
    let card = bench.stripe.post("/v1/payment_methods/pm_card_visa/attach", &[("customer", customer)]).await;
    bench.subscription(customer, &[("default_payment_method", &id(&card))]).await;
    assert_eq!(bench.checkout("ada").await.0, 409);
    assert_eq!(bench.open().await.len(), 0);
}

#[tokio::test]
async fn a_first_payment_that_is_due_is_made_where_it_is_and_not_again() {
    let bench = bench().await;
    let session = bench.session(&bench.sold("ada").await).await;
    let customer = session["customer"].as_str().unwrap();
    let subscription = bench.subscription(customer, &[("payment_behavior", "default_incomplete")]).await;
    assert_eq!(subscription["status"], "incomplete");
    let (status, body) = bench.checkout("ada").await;
    assert_eq!(status, 409, "{body}");
    let invoice = bench.stripe.get(&format!("/v1/invoices/{}", subscription["latest_invoice"].as_str().unwrap())).await;
    assert_eq!((&body["payment_url"], invoice["hosted_invoice_url"].is_string()), (&invoice["hosted_invoice_url"], true));
    assert!(body["portal_url"].is_string());
    assert_eq!(bench.open().await.len(), 1, "its payer may be at it");

    bench.stripe.delete(&format!("/v1/subscriptions/{}", id(&subscription))).await;
    assert_eq!(bench.checkout("ada").await.0, 200, "it has ended");
}

#[tokio::test]
async fn a_user_with_a_customer_keeps_it_and_who_cancelled_may_buy_again() {
    let bench = bench().await;
    let customer = id(&bench.stripe.post("/v1/customers", &[("metadata[user_id]", "ada")]).await);
    let facts = cancelled(subscriber(&customer, "ada", "2026-10-10T00:00:00Z"), "2026-11-20T00:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    let session = bench.session(&bench.sold("ada").await).await;
    assert_eq!((session["customer"].as_str(), bench.customers().await.len()), (Some(customer.as_str()), 1));
    assert_eq!(bench.world.queue.hints().len(), 0, "the two are joined already");
}

#[tokio::test]
async fn in_place_of_a_deleted_customer_there_is_one_other() {
    let bench = bench().await;
    let first = id(&bench.stripe.post("/v1/customers", &[("metadata[user_id]", "ada")]).await);
    let facts = cancelled(subscriber(&first, "ada", "2026-10-10T00:00:00Z"), "2026-11-20T00:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    bench.stripe.delete(&format!("/v1/customers/{first}")).await;
    let session = bench.session(&bench.sold("ada").await).await;
    assert_eq!(bench.session(&bench.sold("ada").await).await["id"], session["id"]);
    let customers = bench.customers().await;
    assert_eq!((customers.len(), &customers[0]["metadata"]["user_id"]), (1, &json!("ada")));
    // sync would refuse it as long as it has bought nothing, and alarm.
    assert_eq!(bench.world.queue.hints().len(), 0);

    // One that was just made and is not joined yet may be deleted, too.
    let second = session["customer"].as_str().unwrap();
    bench.stripe.delete(&format!("/v1/customers/{second}")).await;
    let third = bench.session(&bench.sold("ada").await).await;
    assert!(third["customer"] != second && third["customer"] != first.as_str());
    bench.stripe.delete(&format!("/v1/customers/{}", third["customer"].as_str().unwrap())).await;

    let unknown = bench.session(&bench.sold("bob").await).await["customer"].as_str().unwrap().to_owned();
    bench.stripe.delete(&format!("/v1/customers/{unknown}")).await;
    bench.sold("bob").await;
    assert_eq!(bench.world.queue.hints().len(), 2, "both of bob's");
}

#[tokio::test]
async fn a_customer_that_stripe_never_had_is_replaced() {
    let bench = bench().await;
    let facts = cancelled(subscriber("cus_OfOtherTestData", "ada", "2026-10-10T00:00:00Z"), "2026-11-20T00:00:00Z");
    commit(&bench.world, "ada", &facts).await;
    bench.sold("ada").await;
    assert_eq!(bench.customers().await.len(), 1);
}

#[tokio::test]
async fn after_any_lost_call_or_crash_the_next_checkout_ends_in_one_page_of_one_customer() {
    for call in ["make_customer", "send", "buyer", "price_ids", "open_session", "expire_session"] {
        for fault in [Fault::LoseRequest, Fault::LoseReply, Fault::CrashBefore, Fault::CrashAfter] {
            let bench = bench().await;
            // For something to be expired there has to be another page.
            if call == "expire_session" {
                assert_eq!(checkout(&bench.api, EMAIL, "elsewhere").await.0, 200);
                bench.world.clock.advance_ms(10 * 60 * 1_000);
            }
            let faults = if call == "send" { &bench.world.queue.faults } else { &bench.faults };
            faults.at(call, 1, fault);
            match (fault, AssertUnwindSafe(bench.checkout(EMAIL)).catch_unwind().await) {
                (Fault::CrashBefore | Fault::CrashAfter, Err(_)) => {}
                (Fault::LoseRequest | Fault::LoseReply, Ok((503, _))) => {}
                (_, ended) => panic!("{call} {fault:?}: {:?}", ended.map_err(|_| "crashed")),
            }
            let link = bench.sold(EMAIL).await;
            let open = bench.open().await;
            assert_eq!((open.len(), &open[0]["url"]), (1, &json!(link)), "{call} {fault:?}");
            assert_eq!(bench.customers().await.len(), 1, "{call} {fault:?}");
            assert_eq!(bench.world.queue.hints().len(), 1, "{call} {fault:?}");
        }
    }
}

#[tokio::test]
async fn a_second_look_that_fails_leaves_the_page_for_the_next_checkout() {
    let bench = bench().await;
    bench.faults.at("buyer", 2, Fault::LoseRequest);
    assert_eq!(bench.checkout("ada").await.0, 503);
    let opened = bench.open().await;
    assert_eq!(json!(bench.sold("ada").await), opened[0]["url"]);
    assert_eq!(bench.open().await.len(), 1);
}

#[tokio::test]
async fn a_stripe_that_is_away_is_a_503_that_says_when_to_ask_again() {
    let bench = bench().await;
    let fault = |path, status| [("path", path), ("status", status), ("limited_by", "global-rate"), ("count", "1")];
    bench.stripe.post("/_sandbox/faults", &fault("/v1/customers", "429")).await;
    let body = wanted("ada", "pricing").to_string();
    let (status, retry_after, answer) = asked(&bench.api, post(CHECKOUT, &body)).await;
    assert_eq!((status, retry_after.as_deref()), (503, Some("1")), "{answer}");
    let nowhere = api(&bench.world, "http://127.0.0.1:1", &Faults::default(), StripeMode::Test);
    let (status, retry_after, _) = asked(&nowhere, post(CHECKOUT, &body)).await;
    assert_eq!((status, retry_after.as_deref()), (503, Some("1")));
    bench.stripe.post("/_sandbox/faults", &[("path", "/v1/prices"), ("status", "403"), ("count", "1")]).await;
    let (status, detail) = bench.problem("ada").await;
    assert!(status == 503 && detail.contains("docs/operations.md"), "{detail}");
}

#[tokio::test]
async fn a_sale_that_takes_too_long_is_given_up_and_told() {
    let bench = bench().await;
    let faults = Faults::default();
    let shop = Shop { stripe: Stripe::new(client(&bench.stripe.url)), faults: faults.clone() };
    let seller = Seller::new(shop, bench.world.queue.clone(), StripeMode::Test).with_deadline(Duration::from_millis(20));
    let hasty = api(&bench.world, &bench.stripe.url, &faults, StripeMode::Test);
    let hasty = AccessApi { seller, ..hasty };
    faults.meanwhile("make_customer", 1, pending());
    let (status, retry_after, _) = asked(&hasty, post(CHECKOUT, &wanted("ada", "pricing").to_string())).await;
    assert_eq!((status, retry_after.as_deref()), (503, Some("1")));
}

#[tokio::test]
async fn the_portal_is_for_who_has_a_customer() {
    let bench = bench().await;
    let body = |back: &str| json!({"user_id": "ada", "return_url": back}).to_string();
    let ask = async |back: &str| asked(&bench.api, post(PORTAL, &body(back))).await;
    let (status, _, answer) = ask("https://example.com").await;
    assert!(status == 404 && answer["detail"].as_str().unwrap().contains("/v1/checkout"), "{answer}");

    bench.sold("ada").await;
    bench.sync().await;
    let (status, _, answer) = ask("https://example.com/{CHECKOUT_SESSION_ID}").await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["url"].as_str().unwrap().starts_with("https://billing.stripe.com/"), "{answer}");
    let events = bench.stripe.list("/v1/events?type=billing_portal.session.created").await;
    assert_eq!(events[0]["data"]["object"]["return_url"], "https://example.com/", "nobody fills the placeholder in");

    bench.faults.at("portal", 1, Fault::LoseRequest);
    assert_eq!(ask("https://example.com").await.0, 503);
    bench.stripe.delete(&format!("/v1/customers/{}", id(&bench.customers().await[0]))).await;
    assert_eq!(ask("https://example.com").await.0, 404, "the customer is gone");
}

#[tokio::test]
async fn a_portal_that_nobody_configured_says_who_does() {
    let bench = empty_bench().await;
    let customer = id(&bench.stripe.post("/v1/customers", &[("metadata[user_id]", "ada")]).await);
    commit(&bench.world, "ada", &subscriber(&customer, "ada", "2026-11-10T00:00:00Z")).await;
    let body = json!({"user_id": "ada", "return_url": "https://example.com"}).to_string();
    let (status, _, answer) = asked(&bench.api, post(PORTAL, &body)).await;
    assert!(status == 503 && answer["detail"].as_str().unwrap().contains("cargo till setup"), "{answer}");
}

#[tokio::test]
async fn every_answer_of_a_sale_is_as_the_document_says() {
    let bench = bench().await;
    let mut document = Document::read();
    let offer = wanted("ada", "pricing").to_string();
    let visit = json!({"user_id": "ada", "return_url": "https://app.example.com/settings"}).to_string();
    let mut ask = async |request: Request| {
        let path = request.uri().path().to_owned();
        let response = bench.api.handle(request).await;
        document.see("POST", &path, &response);
        response.status().as_u16()
    };
    for (sample, good) in [(CHECKOUT, &offer), (PORTAL, &visit)] {
        assert_eq!(ask(post(sample, "{}")).await, 400);
        assert_eq!(ask(without_token(post(sample, good))).await, 401);
        assert_eq!(ask(too_large(post(sample, good))).await, 413);
        bench.api.tokens.faults.at("secret", 1, Fault::LoseRequest);
        assert_eq!(ask(post(sample, good)).await, 503);
    }
    assert_eq!(ask(post(PORTAL, &visit)).await, 404);
    bench
        .stripe
        .post("/_sandbox/faults", &[("path", "/v1/checkout"), ("method", "POST"), ("status", "400"), ("count", "2")])
        .await;
    assert_eq!(ask(post(CHECKOUT, &offer)).await, 502);
    bench.faults.at("buyer", 1, Fault::LoseRequest);
    assert_eq!(ask(post(CHECKOUT, &offer)).await, 503);
    assert_eq!(ask(post(CHECKOUT, &offer)).await, 200);
    bench.sync().await;
    assert_eq!(ask(post(PORTAL, &visit)).await, 200);
    let customer = id(&bench.customers().await[0]);
    bench.subscription(&customer, &[("payment_behavior", "default_incomplete")]).await;
    assert_eq!(ask(post(CHECKOUT, &offer)).await, 409);
    let unseen = document.unseen(true);
    assert!(unseen.is_empty(), "no answer was compared with {unseen:?}");
}
