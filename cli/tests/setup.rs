//! `cargo till setup` and `cargo till import` against the Stripe sandbox.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test's helpers fail by panicking, as its body does"
)]

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use serde_json::Value;
use stripe_sandbox::Sandbox;
use till::{
    Imported, import,
    setup::{KeyRefused, Mode, Options, Parameters, Plan, Setup, SetupError, client},
};
use tokentill::{
    clock::SystemClock,
    domain::{
        hint::{Hint, SNAPSHOT_EVENTS},
        price_list::PriceList,
    },
    ports::{Clock, Hints, Secret, Unavailable},
    stripe::{FixedKey, Limits, SecretKey, StripeClient},
};

const KEY: &str = "sk_test_51SecretOfTheTest";
const FUNCTIONS_KEY: &str = "rk_test_51FunctionsOfTheTest";
const URL: &str = "https://abc.execute-api.eu-central-1.amazonaws.com/webhooks/stripe";
const SECRETS: &str = "/tokentill/webhook-secrets";
const TOKENS: &str = "/tokentill/service-tokens";
const STRIPE_KEY: &str = "/tokentill/stripe-key";

type Form<'a> = &'a [(&'a str, &'a str)];

/// SSM, as far as setup sees it, with a write that is lost on order.
#[derive(Debug, Clone, Default)]
struct Memory {
    values: Rc<RefCell<BTreeMap<String, String>>>,
    /// Which write fails, counted from 0, and whether it takes effect all the same.
    fails: Rc<Cell<Option<(usize, bool)>>>,
}

impl Memory {
    fn value(&self, name: &str) -> Option<String> {
        self.values.borrow().get(name).cloned()
    }

    fn set(&self, name: &str, value: &str) {
        self.values.borrow_mut().insert(name.to_owned(), value.to_owned());
    }
}

impl Parameters for Memory {
    async fn get(&self, name: &str) -> Result<Option<Secret>, Unavailable> {
        Ok(self.value(name).map(|value| Secret::new(&value)))
    }

    async fn put(&self, name: &str, value: &Secret) -> Result<(), Unavailable> {
        let lost = || Unavailable { what: "writing an SSM parameter", reason: "not reachable".to_owned() };
        match self.fails.get() {
            Some((0, takes_effect)) => {
                self.fails.set(None);
                if takes_effect {
                    self.set(name, value.expose());
                }
                return Err(lost());
            }
            Some((left, takes_effect)) => self.fails.set(Some((left - 1, takes_effect))),
            None => {}
        }
        self.set(name, value.expose());
        Ok(())
    }
}

/// The machine's clock, put forward.
#[derive(Debug, Clone, Default)]
struct Moved(Rc<Cell<i64>>);

impl Clock for Moved {
    fn now_ms(&self) -> i64 {
        SystemClock.now_ms() + self.0.get() * 1_000
    }
}

struct Bench {
    sandbox: Sandbox,
    http: reqwest::Client,
    memory: Memory,
    clock: Moved,
}

impl Bench {
    async fn start() -> Self {
        let (sandbox, http) = (Sandbox::start(0).await.unwrap(), reqwest::Client::new());
        let bench = Self { sandbox, http, memory: Memory::default(), clock: Moved::default() };
        bench.post("/_sandbox/settings", &[("global_rate", "0"), ("endpoint_rate", "0")]).await;
        bench
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Value {
        let answer = request.bearer_auth(KEY).send().await.unwrap();
        let (status, body) = (answer.status().as_u16(), answer.json::<Value>().await.unwrap());
        assert_eq!(status, 200, "{body}");
        body
    }

    async fn post(&self, path: &str, form: Form<'_>) -> Value {
        self.send(self.http.post(format!("{}{path}", self.sandbox.url())).form(form)).await
    }

    /// What a list holds.
    async fn list(&self, path: &str) -> Vec<Value> {
        let body = self.send(self.http.get(format!("{}{path}", self.sandbox.url()))).await;
        body["data"].as_array().unwrap().clone()
    }

    async fn count(&self, path: &str) -> usize {
        self.list(path).await.len()
    }

    /// The price of a lookup key.
    async fn price(&self, lookup_key: &str) -> Value {
        self.list(&format!("/v1/prices?lookup_keys[]={lookup_key}")).await[0].clone()
    }

    async fn endpoints(&self) -> Vec<Value> {
        self.list("/v1/webhook_endpoints").await
    }

    /// How many calls so far were to change something.
    async fn writes(&self) -> usize {
        self.list("/_sandbox/requests").await.iter().filter(|request| request["method"] != "GET").count()
    }

    /// Everything that can be asked for.
    fn options() -> Options {
        Options { webhook_url: Some(URL.to_owned()), store_key: Some(Secret::new(FUNCTIONS_KEY)), ..Options::default() }
    }

    fn rotating() -> Options {
        Options { rotate_webhook: true, ..Self::options() }
    }

    fn setup_with(&self, options: Options, attempts: u32) -> Setup<FixedKey, Memory, Moved> {
        let limits = Limits { attempts, backoff_base: std::time::Duration::from_millis(1), ..Limits::default() };
        let stripe = StripeClient::new(Some(&self.sandbox.url()), FixedKey(SecretKey::new(KEY).unwrap())).unwrap();
        let list = PriceList::shipped().unwrap();
        let (parameters, clock) = (self.memory.clone(), self.clock.clone());
        Setup { stripe: stripe.with_limits(limits), mode: Mode::Test, parameters, clock, list, options }
    }

    fn setup(&self) -> Setup<FixedKey, Memory, Moved> {
        self.setup_with(Self::options(), 3)
    }

    /// Applies everything; the lines that were told.
    async fn apply(&self, setup: &Setup<FixedKey, Memory, Moved>) -> Vec<String> {
        let mut lines = Vec::new();
        setup.apply(|line| lines.push(line.to_owned())).await.unwrap();
        lines
    }

    fn pass(&self, secs: i64) {
        self.clock.0.set(self.clock.0.get() + secs);
    }

    /// Applies once every function knows the newest secret.
    async fn apply_later(&self) -> Vec<String> {
        self.pass(600);
        self.apply(&self.setup()).await
    }

    /// Everything set up once.
    async fn complete() -> Self {
        let bench = Self::start().await;
        bench.apply(&bench.setup()).await;
        bench
    }

    /// A plan's first line about this subject.
    async fn line(&self, subject: &str) -> String {
        line_of(&self.setup().plan().await.unwrap(), subject)
    }

    /// Applies, and what is refused.
    async fn refused(&self, setup: &Setup<FixedKey, Memory, Moved>) -> String {
        let before = self.writes().await;
        let Err(SetupError::Refused(reasons)) = setup.apply(|_| ()).await else { panic!("nothing was refused") };
        assert_eq!(self.writes().await, before, "something was changed all the same");
        reasons.join("\n")
    }

    /// There is one of everything, and it all fits.
    async fn assert_whole(&self, what: &str) {
        let plan = self.setup().plan().await.unwrap();
        assert!(plan.is_done(), "{what}:\n{plan}");
        for (path, expected) in [
            ("/v1/billing/meters", 3),
            ("/v1/products", 1),
            ("/v1/prices", 4),
            ("/v1/billing_portal/configurations", 1),
            ("/v1/webhook_endpoints", 1),
        ] {
            assert_eq!(self.count(path).await, expected, "{what}: {path}");
        }
        assert!(self.memory.value(TOKENS).unwrap().split_whitespace().count() == 1, "{what}");
        // Its secret is stored, and it says so.
        let mark = &self.endpoints().await[0]["metadata"]["tokentill_secret"];
        assert!(mark.as_str().unwrap().bytes().all(|byte| byte.is_ascii_hexdigit()), "{what}: {mark}");
        assert!(self.memory.value(SECRETS).unwrap().contains("whsec_"), "{what}");
    }

    /// Has the call after `skip` others of this method end without an answer.
    async fn lose(&self, method: &str, skip: usize, after_effect: bool) {
        let (skip, after_effect) = (skip.to_string(), after_effect.to_string());
        let fault = [("path", "/v1/"), ("method", method), ("drop", "true"), ("after_effect", &*after_effect), ("skip", &*skip)];
        self.post("/_sandbox/faults", &fault).await;
    }
}

fn line_of(plan: &Plan, subject: &str) -> String {
    let text = plan.to_string();
    text.lines().find(|line| line.contains(subject)).unwrap_or_else(|| panic!("nothing about {subject}:\n{text}")).to_owned()
}

fn verb(line: &str) -> &str {
    line.split_whitespace().next().unwrap()
}

fn verbs(lines: &[String]) -> Vec<&str> {
    lines.iter().map(|line| verb(line)).collect()
}

#[tokio::test]
async fn a_plan_changes_nothing_apply_does_it_and_a_second_run_has_nothing_to_do() {
    let bench = Bench::start().await;
    let setup = bench.setup();
    let plan = setup.plan().await.unwrap();
    assert_eq!((bench.writes().await, bench.memory.values.borrow().len()), (0, 0));
    assert!(!plan.is_done() && plan.refused().is_empty(), "{plan}");
    for subject in
        ["meter tokens_in", "product of plan pro", "price pro_tokens_out", "customer portal", TOKENS, "webhook endpoint"]
    {
        assert_eq!(verb(&line_of(&plan, subject)), "create", "{plan}");
    }
    assert!(line_of(&plan, "price pro_base").contains("4900 minor units of usd a month"), "{plan}");

    let lines = bench.apply(&setup).await;
    assert_eq!(lines.len(), 3 + 1 + 4 + 1 + 2 + 1, "{lines:#?}");
    bench.assert_whole("the first run").await;
    let (base, tokens) = (bench.price("pro_base").await, bench.price("pro_tokens_in").await);
    assert_eq!((&base["unit_amount"], &base["recurring"]["usage_type"]), (&4900.into(), &"licensed".into()));
    assert_eq!((&tokens["unit_amount_decimal"], &tokens["recurring"]["usage_type"]), (&"0.0003".into(), &"metered".into()));
    let meters = bench.list("/v1/billing/meters").await;
    assert!(meters.iter().any(|meter| meter["id"] == tokens["recurring"]["meter"] && meter["event_name"] == "tokens_in"));
    assert_eq!(bench.list("/v1/products").await[0]["metadata"]["tokentill_plan"], "pro");
    let endpoint = &bench.endpoints().await[0];
    assert_eq!((&endpoint["url"], &endpoint["api_version"]), (&URL.into(), &"2026-09-30.endive".into()));
    assert_eq!(endpoint["enabled_events"].as_array().unwrap().len(), SNAPSHOT_EVENTS.len());
    assert!(bench.memory.value(SECRETS).unwrap().starts_with("whsec_"));
    assert_eq!(bench.memory.value(STRIPE_KEY).unwrap(), FUNCTIONS_KEY);

    let writes = bench.writes().await;
    assert!(bench.apply(&setup).await.is_empty());
    assert_eq!(bench.writes().await, writes, "a second run writes nothing");
}

#[tokio::test]
async fn without_a_url_no_endpoint_is_looked_at_and_no_key_is_stored_unasked() {
    let bench = Bench::start().await;
    let setup = bench.setup_with(Options::default(), 3);
    let lines = bench.apply(&setup).await;
    assert!(!lines.iter().any(|line| line.contains("webhook")), "{lines:?}");
    assert!(bench.endpoints().await.is_empty() && bench.memory.value(STRIPE_KEY).is_none());
    assert!(setup.left_to_do().contains("--webhook-url"));
    let plan = setup.plan_after().await.unwrap();
    let line = line_of(&plan, STRIPE_KEY);
    assert!(verb(&line) == "open" && line.contains("holds no key yet"), "{line}");
    assert!(!plan.is_done());
    assert_eq!(plan.verdict(true), "What is open is still to do; all else is as it should be.");
}

#[tokio::test]
async fn a_stored_key_of_the_other_mode_is_refused_and_not_told() {
    let bench = Bench::complete().await;
    let without = || bench.setup_with(Options::default(), 3);
    assert!(without().plan().await.unwrap().is_done(), "a stored key of this mode is enough");
    for (stored, shown) in [
        ("rk_live_51FunctionsOfTheOther", "a key of live mode, and this is test mode"),
        ("whsec_51FunctionsOfTheOther", "no secret key of Stripe's"),
    ] {
        bench.memory.set(STRIPE_KEY, stored);
        let refused = bench.refused(&without()).await;
        assert!(refused.contains(shown) && refused.contains("--store-key") && !refused.contains("FunctionsOf"), "{refused}");
        // The right key may be stored over it, and no wrong one.
        let wrong = Options { store_key: Some(Secret::new(stored)), ..Bench::options() };
        assert!(bench.refused(&bench.setup_with(wrong, 3)).await.contains(shown));
        assert_eq!(verbs(&bench.apply(&bench.setup()).await), ["store"]);
    }
}

#[tokio::test]
async fn in_live_mode_no_test_clock_is_asked_for() {
    let bench = Bench::start().await;
    // The sandbox has no live mode: it is read as one while nothing is listed.
    let options = Options { store_key: Some(Secret::new("rk_live_51FunctionsOfTheTest")), ..Bench::options() };
    let mut setup = bench.setup_with(options, 3);
    setup.mode = Mode::Live;
    let lines = bench.apply(&setup).await;
    assert!(!verbs(&lines).contains(&"change"), "the comparison asks for other events than the creation: {lines:#?}");
    let endpoint = bench.endpoints().await[0].clone();
    let events: Vec<&str> = endpoint["enabled_events"].as_array().unwrap().iter().map(|event| event.as_str().unwrap()).collect();
    assert_eq!(events.len(), SNAPSHOT_EVENTS.len() - 1);
    assert!(!events.contains(&"test_helpers.test_clock.ready"));
}

#[tokio::test]
async fn a_portal_that_is_not_the_default_is_left_alone_and_open() {
    let bench = Bench::start().await;
    bench.post("/_sandbox/settings", &[("first_portal_is_default", "false")]).await;
    let theirs = [("features[invoice_history][enabled]", "false"), ("business_profile[headline]", "Theirs")];
    let theirs = bench.post("/v1/billing_portal/configurations", &theirs).await;
    let setup = bench.setup();
    let lines = bench.apply(&setup).await;
    assert!(!lines.iter().any(|line| line.contains("portal")), "{lines:#?}");
    let plan = setup.plan_after().await.unwrap();
    let line = line_of(&plan, "customer portal");
    assert!(verb(&line) == "open" && line.contains(theirs["id"].as_str().unwrap()) && line.contains("dashboard"), "{line}");
    assert!(!plan.is_done() && plan.verdict(true).contains("still to do"), "{plan}");
    assert_eq!(bench.list("/v1/billing_portal/configurations").await, [theirs]);
}

#[tokio::test]
async fn the_functions_keys_permissions_are_those_of_the_operators_page() {
    let said = Bench::start().await.setup().left_to_do();
    let (_, said) = said.split_once("Create restricted key: write ").unwrap();
    let (said, _) = said.split_once("; nothing else").unwrap();
    let (write, read) = said.split_once("; read ").unwrap();
    let names = |text: &str| text.replace(" and, in test mode, ", ", ").replace(" and ", ", ");
    let mut wanted = Vec::new();
    for (names, level) in [(names(write), "write"), (names(read), "read")] {
        wanted.extend(names.split(", ").map(|name| format!("{name}: {level}")));
    }
    let page = include_str!("../../docs/operations.md");
    let (_, table) = page.split_once("| permission | for |").unwrap();
    let rows = table.lines().skip(2).map(str::trim).take_while(|line| line.starts_with('|'));
    let mut is: Vec<String> = rows.map(|row| row.split('|').nth(1).unwrap().trim().replace(", in test mode", "")).collect();
    is.sort();
    wanted.sort();
    assert_eq!(is, wanted);
}

#[tokio::test]
async fn a_price_that_costs_something_else_is_refused_and_keeps_its_lookup_key() {
    let bench = Bench::start().await;
    let of_price = |more: Form<'static>| {
        let mut form = vec![
            ("product_data[name]", "Pro"),
            ("currency", "usd"),
            ("recurring[interval]", "month"),
            ("unit_amount", "4900"),
            ("lookup_key", "pro_base"),
            ("transfer_lookup_key", "true"),
        ];
        form.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        form.extend_from_slice(more);
        form
    };
    for (form, shown) in [
        (of_price(&[("unit_amount", "5000")]), "5000 minor units of usd a month"),
        (of_price(&[("currency", "eur")]), "4900 minor units of eur a month"),
        (of_price(&[("recurring[interval]", "year")]), "4900 minor units of usd a year"),
        (of_price(&[("recurring[interval_count]", "3")]), "a 3 months"),
        (of_price(&[("transform_quantity[divide_by]", "10"), ("transform_quantity[round]", "up")]), "4900 for a package, minor"),
    ] {
        let price = bench.post("/v1/prices", &form).await;
        let refused = bench.refused(&bench.setup()).await;
        assert!(refused.contains(shown) && refused.contains("the price list says 4900 minor units of usd a month"), "{refused}");
        assert!(refused.contains("with lookup keys of its own"), "{refused}");
        assert_eq!(bench.price("pro_base").await["id"], price["id"]);
    }
}

#[tokio::test]
async fn a_metered_price_of_another_meter_is_refused() {
    let bench = Bench::complete().await;
    let meters = bench.list("/v1/billing/meters").await;
    let id = |name: &str| meters.iter().find(|meter| meter["event_name"] == name).unwrap()["id"].as_str().unwrap().to_owned();
    let (other, price) = (id("tokens_out"), bench.price("pro_requests").await);
    let form = [
        ("product", price["product"].as_str().unwrap()),
        ("currency", "usd"),
        ("recurring[interval]", "month"),
        ("recurring[usage_type]", "metered"),
        ("recurring[meter]", &other),
        ("unit_amount_decimal", "0.10"),
        ("lookup_key", "pro_requests"),
        ("transfer_lookup_key", "true"),
    ];
    bench.post("/v1/prices", &form).await;
    let refused = bench.refused(&bench.setup()).await;
    assert!(refused.contains(&format!("for each unit of {other}")) && refused.contains(&id("requests")), "{refused}");
}

#[tokio::test]
async fn what_is_archived_inactive_renamed_or_changed_is_made_good() {
    let bench = Bench::complete().await;
    let path = |kind: &str, object: &Value| format!("/v1/{kind}/{}", object["id"].as_str().unwrap());
    let price = bench.price("pro_requests").await;
    bench.post(&path("prices", &price), &[("active", "false")]).await;
    let meter = &bench.list("/v1/billing/meters").await[0];
    bench.post(&format!("{}/deactivate", path("billing/meters", meter)), &[]).await;
    let product = &bench.list("/v1/products").await[0];
    bench.post(&path("products", product), &[("name", "Old"), ("active", "false")]).await;
    let endpoint = &bench.endpoints().await[0];
    bench.post(&path("webhook_endpoints", endpoint), &[("enabled_events[]", "invoice.paid"), ("disabled", "true")]).await;
    let portal = &bench.list("/v1/billing_portal/configurations").await[0];
    let at_once = [
        ("features[subscription_cancel][mode]", "immediately"),
        ("features[invoice_history][enabled]", "false"),
        ("features[customer_update][allowed_updates][]", "phone"),
        ("business_profile[headline]", "Ours"),
    ];
    bench.post(&path("billing_portal/configurations", portal), &at_once).await;
    // Stripe lists none of them unasked.
    assert_eq!((bench.count("/v1/prices").await, bench.count("/v1/products").await), (3, 0));

    let options = Options { return_url: Some("https://example.com/account".to_owned()), ..Bench::options() };
    let lines = bench.apply(&bench.setup_with(options, 3)).await;
    assert_eq!(verbs(&lines), ["reactivate", "change", "reactivate", "change", "change"], "{lines:#?}");
    bench.assert_whole("after the repair").await;
    let portal = &bench.list("/v1/billing_portal/configurations").await[0];
    assert_eq!(portal["features"]["subscription_cancel"]["mode"], "at_period_end");
    assert_eq!(portal["default_return_url"], "https://example.com/account");
    assert_eq!(portal["business_profile"]["headline"], "Ours", "what is the founder's stays");
    assert_eq!(portal["features"]["customer_update"]["allowed_updates"][0], "phone");
    assert_eq!(bench.list("/v1/products").await[0]["name"], "Pro");
    assert_eq!(bench.endpoints().await[0]["status"], "enabled");
}

#[tokio::test]
async fn a_meter_that_counts_otherwise_is_refused_until_its_name_is_free() {
    let bench = Bench::start().await;
    for (formula, value, shown) in [
        ("count", "value", "default_aggregation.formula is count, not sum"),
        ("sum", "amount", "value_settings.event_payload_key is amount, not value"),
    ] {
        let form = [
            ("display_name", "Requests"),
            ("event_name", "requests"),
            ("default_aggregation[formula]", formula),
            ("customer_mapping[type]", "by_id"),
            ("customer_mapping[event_payload_key]", "stripe_customer_id"),
            ("value_settings[event_payload_key]", value),
        ];
        let meter = bench.post("/v1/billing/meters", &form).await;
        let refused = bench.refused(&bench.setup()).await;
        assert!(refused.contains(shown) && refused.contains("Stripe cannot change a meter"), "{refused}");
        bench.post(&format!("/v1/billing/meters/{}/deactivate", meter["id"].as_str().unwrap()), &[]).await;
    }
    bench.apply(&bench.setup()).await;
    let meters = bench.list("/v1/billing/meters").await;
    let active = meters.iter().filter(|meter| meter["status"] == "active").count();
    assert_eq!((active, meters.len()), (3, 5));
}

#[tokio::test]
async fn a_product_is_known_by_its_mark_or_by_a_price_it_has_alone() {
    // Of a price that is there: it gets the mark.
    let bench = Bench::start().await;
    let base = [
        ("product_data[name]", "My API"),
        ("currency", "usd"),
        ("recurring[interval]", "month"),
        ("unit_amount", "4900"),
        ("lookup_key", "pro_base"),
    ];
    let price = bench.post("/v1/prices", &base).await;
    bench.apply(&bench.setup()).await;
    bench.assert_whole("an account with one price").await;
    assert_eq!(bench.price("pro_requests").await["product"], price["product"]);

    // Two products with one mark: nobody knows which is meant.
    bench.post("/v1/products", &[("name", "Twin"), ("metadata[tokentill_plan]", "pro")]).await;
    assert!(bench.refused(&bench.setup()).await.contains("several products have the metadata tokentill_plan=pro"));
}

#[tokio::test]
async fn a_product_of_two_plans_is_left_alone() {
    let bench = Bench::start().await;
    let flat = |product: (&'static str, &str), amount: &'static str, key: &'static str| {
        [
            (product.0.to_owned(), product.1.to_owned()),
            ("currency".to_owned(), "usd".to_owned()),
            ("recurring[interval]".to_owned(), "month".to_owned()),
            ("unit_amount".to_owned(), amount.to_owned()),
            ("lookup_key".to_owned(), key.to_owned()),
        ]
    };
    let create = async |form: [(String, String); 5]| {
        let form: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        bench.post("/v1/prices", &form).await["product"].as_str().unwrap().to_owned()
    };
    let shared = create(flat(("product_data[name]", "My API"), "4900", "pro_base")).await;
    create(flat(("product", &shared), "9900", "team_base")).await;
    let team = "[[plans]]\nid = \"team\"\nname = \"Team\"\nrequests_per_minute = 600\nwhen_unreachable = \"open\"\n\
                [[plans.prices]]\nlookup_key = \"team_base\"\nkind = \"flat\"\ninterval = \"month\"\ncurrency = \"usd\"\n\
                unit_amount_minor = 9900\n";
    let mut setup = bench.setup();
    setup.list = PriceList::parse(&format!("{}\n{team}", include_str!("../../shared/price-list.toml"))).unwrap();
    bench.apply(&setup).await;
    let plan = setup.plan().await.unwrap();
    assert!(plan.is_done() && line_of(&plan, "product of plan team").contains("shared"), "{plan}");
    let products = bench.list("/v1/products").await;
    assert_eq!(products.len(), 2, "a product for the prices of pro that were missing");
    assert!(products.iter().any(|product| product["id"] == shared.as_str() && product["name"] == "My API"));
}

#[tokio::test]
async fn an_endpoint_of_another_version_is_replaced_and_an_old_secret_stays() {
    let bench = Bench::complete().await;
    let path = format!("/v1/webhook_endpoints/{}", bench.endpoints().await[0]["id"].as_str().unwrap());
    bench.send(bench.http.delete(format!("{}{path}", bench.sandbox.url()))).await;
    let old = [("url", URL), ("api_version", "2026-10-28.endive"), ("enabled_events[]", "invoice.paid")];
    let old = bench.post("/v1/webhook_endpoints", &old).await;
    let elsewhere = [("url", "https://example.com/other"), ("enabled_events[]", "invoice.paid")];
    bench.post("/v1/webhook_endpoints", &elsewhere).await;
    let before = bench.memory.value(SECRETS).unwrap();
    let lines = bench.apply(&bench.setup()).await;
    assert_eq!(verbs(&lines), ["create"], "{lines:#?}");
    assert_eq!(verbs(&bench.apply_later().await), ["delete"]);
    let left = bench.endpoints().await;
    assert!(left.len() == 2 && left.iter().all(|endpoint| endpoint["id"] != old["id"]), "another URL's endpoint stays");
    let after = bench.memory.value(SECRETS).unwrap();
    assert!(after.starts_with(&before) && after.split_whitespace().count() == 2);
}

#[tokio::test]
async fn an_endpoint_whose_secret_is_not_in_ssm_is_said_and_rotated_on_demand() {
    // The secret was overwritten.
    let bench = Bench::complete().await;
    bench.memory.set(SECRETS, "whsec_other");
    let refused = bench.refused(&bench.setup()).await;
    assert!(refused.contains("does not hold its signing secret") && refused.contains("--rotate-webhook"), "{refused}");
    let old = bench.endpoints().await[0]["id"].clone();
    let lines = bench.apply(&bench.setup_with(Bench::rotating(), 3)).await;
    assert_eq!(verbs(&lines), ["create"], "{lines:#?}");
    bench.apply_later().await;
    bench.assert_whole("after the rotation").await;
    assert!(bench.endpoints().await[0]["id"] != old && bench.memory.value(SECRETS).unwrap().starts_with("whsec_other whsec_"));

    // Somebody made it by hand, and SSM holds no secret, or one that may be its own.
    let bench = Bench::start().await;
    let mut by_hand = vec![("url", URL), ("api_version", "2026-09-30.endive")];
    by_hand.extend(SNAPSHOT_EVENTS.iter().map(|event| ("enabled_events[]", *event)));
    bench.post("/v1/webhook_endpoints", &by_hand).await;
    assert_eq!(verb(&bench.line("webhook endpoint").await), "REFUSED");
    bench.memory.set(SECRETS, "whsec_perhaps");
    let line = bench.line("webhook endpoint").await;
    assert!(verb(&line) == "fits" && line.contains("cannot be told") && line.contains("--rotate-webhook"), "{line}");
}

#[tokio::test]
async fn a_replaced_endpoint_delivers_until_every_function_knows_the_new_secret() {
    let bench = Bench::complete().await;
    let old = bench.endpoints().await[0]["id"].as_str().unwrap().to_owned();
    let rotating = bench.setup_with(Bench::rotating(), 3);
    assert_eq!(rotating.plan().await.unwrap().verdict(false), "Nothing was changed. --apply does it.");
    assert_eq!(verbs(&bench.apply(&rotating).await), ["create"]);

    // What is said then: what is still to do and when, and not to rotate again.
    let plan = rotating.plan_after().await.unwrap();
    let line = line_of(&plan, &format!("{old} is to be deleted"));
    assert!(
        verb(&line) == "open" && line.contains("at the earliest at 20") && line.contains("without --rotate-webhook"),
        "{line}"
    );
    assert!(!plan.is_done() && !plan.to_string().contains("create"), "{plan}");
    assert_eq!(plan.verdict(true), "What is open is still to do; all else is as it should be.");
    let new = bench.endpoints().await[0]["id"].as_str().unwrap().to_owned();

    // The test itself takes less than half a minute.
    bench.pass(570);
    assert!(bench.apply(&bench.setup()).await.is_empty());
    bench.pass(30);
    let slow = || bench.setup_with(Options { secrets_ttl_secs: 3_600, ..Bench::options() }, 3);
    assert!(bench.apply(&slow()).await.is_empty(), "functions that keep their secrets for an hour");
    assert_eq!((bench.endpoints().await.len(), verb(&bench.line(&old).await)), (2, "delete"));
    bench.pass(3_300);
    assert_eq!(verbs(&bench.apply(&slow()).await), ["delete"]);
    bench.assert_whole("after the rotation").await;
    assert_eq!(bench.endpoints().await[0]["id"], *new);

    // Rotated twice at once, the first one delivers all the time.
    bench.clock.0.set(0);
    bench.apply(&bench.setup_with(Bench::rotating(), 3)).await;
    bench.apply(&bench.setup_with(Bench::rotating(), 3)).await;
    assert_eq!(bench.endpoints().await.len(), 3);
    assert_eq!(verbs(&bench.apply_later().await), ["delete", "delete"]);
    bench.assert_whole("after two rotations").await;
}

#[tokio::test]
async fn a_secret_of_a_destination_made_by_hand_is_stored_beside_the_others() {
    let bench = Bench::complete().await;
    let before = bench.memory.value(SECRETS).unwrap();
    let further = || Options { further_webhook_secret: Some(Secret::new("whsec_thin")), ..Bench::options() };
    bench.apply(&bench.setup_with(further(), 3)).await;
    assert_eq!(bench.memory.value(SECRETS).unwrap(), format!("{before} whsec_thin"));
    assert!(bench.apply(&bench.setup_with(further(), 3)).await.is_empty());
}

#[tokio::test]
async fn interrupted_at_any_call_the_next_run_ends_it_without_a_duplicate() {
    let mut interrupted = 0;
    for after_effect in [false, true] {
        for skip in 0.. {
            let bench = Bench::start().await;
            bench.lose("POST", skip, after_effect).await;
            // One attempt: the process is gone, and nobody repeats the call under its key.
            if bench.setup_with(Bench::options(), 1).apply(|_| ()).await.is_ok() {
                break;
            }
            interrupted += 1;
            bench.apply(&bench.setup()).await;
            bench.apply_later().await;
            bench.assert_whole(&format!("call {skip}, after its effect: {after_effect}")).await;
            bench.sandbox.shutdown().await;
        }
    }
    // 3 meters, 1 product, 4 prices, the portal, the endpoint and its mark, each before and after its effect.
    assert_eq!(interrupted, 2 * 11);
}

#[tokio::test]
async fn interrupted_at_any_write_to_ssm_the_next_run_ends_it_and_no_secret_is_lost() {
    let mut interrupted = 0;
    for takes_effect in [false, true] {
        for write in 0.. {
            let bench = Bench::start().await;
            bench.memory.fails.set(Some((write, takes_effect)));
            if bench.setup().apply(|_| ()).await.is_ok() {
                break;
            }
            interrupted += 1;
            let before = bench.memory.value(SECRETS).unwrap_or_default();
            bench.apply(&bench.setup()).await;
            bench.apply_later().await;
            bench.assert_whole(&format!("write {write}, takes effect: {takes_effect}")).await;
            assert!(bench.memory.value(SECRETS).unwrap().starts_with(&before));
            bench.sandbox.shutdown().await;
        }
    }
    assert_eq!(interrupted, 2 * 3, "the token, the key and the signing secret");
}

#[tokio::test]
async fn interrupted_in_a_rotation_the_old_endpoint_goes_only_when_the_new_secret_is_stored() {
    // The answer to the creation is lost, then that to the mark: the old one delivers all the time.
    for skip in 0..2 {
        let bench = Bench::complete().await;
        let old = bench.endpoints().await[0]["id"].clone();
        bench.lose("POST", skip, true).await;
        bench.setup_with(Bench::rotating(), 1).apply(|_| ()).await.unwrap_err();
        assert!(bench.endpoints().await.iter().any(|endpoint| endpoint["id"] == old), "the old one is gone");
        bench.apply(&bench.setup_with(Bench::rotating(), 3)).await;
        assert!(bench.endpoints().await.iter().any(|endpoint| endpoint["id"] == old), "the old one is gone");
        bench.apply_later().await;
        bench.assert_whole("a rotation after an interrupted one").await;
    }
    // The write of the secret is lost.
    let bench = Bench::complete().await;
    let old = bench.endpoints().await[0]["id"].clone();
    bench.memory.fails.set(Some((0, false)));
    bench.setup_with(Bench::rotating(), 1).apply(|_| ()).await.unwrap_err();
    assert!(bench.endpoints().await.iter().any(|endpoint| endpoint["id"] == old), "the old one is gone");
    // Without a rotation the old one stays, and what was begun beside it is removed.
    bench.apply(&bench.setup()).await;
    bench.assert_whole("a rotation that was given up").await;
    assert_eq!(bench.endpoints().await[0]["id"], old);
    // The deletion alone is lost: the next run does it, without being asked to rotate.
    bench.apply(&bench.setup_with(Bench::rotating(), 1)).await;
    bench.pass(600);
    bench.lose("DELETE", 0, false).await;
    bench.setup_with(Bench::options(), 1).apply(|_| ()).await.unwrap_err();
    assert_eq!(bench.endpoints().await.len(), 2);
    bench.apply(&bench.setup()).await;
    bench.assert_whole("after a lost deletion").await;
    assert!(bench.endpoints().await[0]["id"] != old);
}

#[tokio::test]
async fn a_rate_limit_and_a_lost_answer_are_waited_out() {
    let bench = Bench::start().await;
    bench.post("/_sandbox/settings", &[("endpoint_rate", "3")]).await;
    bench.lose("POST", 3, true).await;
    bench.apply(&bench.setup_with(Bench::options(), 8)).await;
    let requests = bench.list("/_sandbox/requests").await;
    let with_status = |status: u16| requests.iter().filter(|request| request["status"] == status).count();
    assert!(with_status(429) > 0 && with_status(0) == 1, "nothing went wrong");
    bench.post("/_sandbox/settings", &[("endpoint_rate", "0")]).await;
    bench.assert_whole("through a rate limit").await;
}

#[tokio::test]
async fn no_secret_is_ever_told() {
    let bench = Bench::start().await;
    let setup = bench.setup();
    let mut told = setup.plan().await.unwrap().to_string();
    told.push_str(&bench.apply(&setup).await.concat());
    let plan = setup.plan().await.unwrap();
    told.push_str(&format!("{plan} {plan:?} {}", setup.left_to_do()));
    bench.memory.fails.set(Some((0, false)));
    let rotating = bench.setup_with(Bench::rotating(), 1);
    told.push_str(&format!("{:?}", rotating.options));
    let error = rotating.apply(|_| ()).await.unwrap_err();
    told.push_str(&format!("{error} {error:?}"));
    bench.post("/_sandbox/faults", &[("path", "/v1/"), ("status", "401")]).await;
    let error = bench.setup().plan().await.unwrap_err();
    told.push_str(&format!("{error} {error:?}"));
    let mut secrets = vec![KEY.to_owned()];
    for value in bench.memory.values.borrow().values() {
        secrets.extend(value.split_whitespace().map(str::to_owned));
    }
    assert_eq!(secrets.len(), 1 + 3);
    for secret in secrets {
        // Not even a part of it.
        assert!(!told.contains(&secret[secret.len() - 8..]), "{told}");
    }
}

#[test]
fn a_live_key_needs_to_be_meant_and_only_secret_keys_are_taken() {
    let refusal = |key: Option<&str>, live| client(key, live, None).err();
    assert_eq!(refusal(Some("sk_live_1"), false), Some(KeyRefused::Live));
    assert_eq!(refusal(Some("rk_live_1"), false), Some(KeyRefused::Live));
    assert_eq!(refusal(Some("sk_live_1"), true), None);
    assert_eq!(refusal(Some("sk_test_1"), true), Some(KeyRefused::Test));
    assert_eq!(refusal(Some(" rk_test_1\n"), false), None);
    assert_eq!(refusal(Some("pk_test_1"), false), Some(KeyRefused::NoSecretKey));
    assert_eq!((refusal(None, false), refusal(Some(" "), true)), (Some(KeyRefused::Missing), Some(KeyRefused::Missing)));
    for error in [KeyRefused::Live, KeyRefused::NoSecretKey, KeyRefused::Missing] {
        assert!(error.to_string().contains("STRIPE_API_KEY"));
    }
    assert_eq!(client(Some("sk_live_1"), true, None).ok().map(|(_, mode)| mode), Some(Mode::Live));
}

#[tokio::test]
async fn an_object_of_the_other_mode_stops_it() {
    let bench = Bench::complete().await;
    let writes = bench.writes().await;
    let mut setup = bench.setup();
    setup.mode = Mode::Live;
    let error = setup.apply(|_| ()).await.unwrap_err().to_string();
    assert!(error.contains("is of the other mode than the API key"), "{error}");
    assert_eq!(bench.writes().await, writes);
}

// ---- Import ----

/// The account-changes queue; it fails once so many hints are on it.
#[derive(Debug, Clone, Default)]
struct Queued {
    hints: Rc<RefCell<Vec<Hint>>>,
    room: Rc<Cell<Option<usize>>>,
}

impl Hints for Queued {
    async fn send(&self, hint: &Hint, deduplication_id: &str) -> Result<(), Unavailable> {
        assert_eq!(hint.event_id.as_str(), deduplication_id);
        if self.room.get() == Some(self.hints.borrow().len()) {
            return Err(Unavailable { what: "queueing a hint", reason: "not reachable".to_owned() });
        }
        self.hints.borrow_mut().push(hint.clone());
        Ok(())
    }
}

impl Queued {
    fn customers(&self) -> Vec<String> {
        self.hints.borrow().iter().map(|hint| hint.customer.as_ref().unwrap().as_str().to_owned()).collect()
    }
}

#[tokio::test]
async fn every_customer_that_names_a_user_is_imported_and_an_interrupted_import_goes_on() {
    let bench = Bench::start().await;
    let mut named = Vec::new();
    for n in 0..230 {
        let user = format!("user_{n}");
        let form = [("metadata[user_id]", user.as_str())];
        let form = if n % 10 == 0 { &[] } else { form.as_slice() };
        let customer = bench.post("/v1/customers", form).await["id"].as_str().unwrap().to_owned();
        if n % 10 != 0 {
            named.push(customer);
        }
    }
    named.reverse();
    let stripe = bench.setup().stripe;
    let queue = Queued::default();

    let dry = import(&stripe, Mode::Test, None::<&Queued>, &SystemClock, None).await.unwrap();
    assert_eq!(dry, Imported { queued: 207, unnamed: 23 });

    queue.room.set(Some(150));
    let interrupted = import(&stripe, Mode::Test, Some(&queue), &SystemClock, None).await.unwrap_err();
    assert_eq!(interrupted.queued, 150);
    let after = interrupted.after.clone().unwrap();
    assert!(interrupted.to_string().contains(&format!("--starting-after {after}")), "{interrupted}");
    queue.room.set(None);
    let rest = import(&stripe, Mode::Test, Some(&queue), &SystemClock, Some(after)).await.unwrap();
    assert_eq!(rest.queued, 57);
    assert_eq!(queue.customers(), named, "each once, in Stripe's order");
    assert!(queue.hints.borrow().iter().all(|hint| hint.replay && !hint.livemode && hint.kind == "tokentill.import"));

    let again = Queued::default();
    import(&stripe, Mode::Test, Some(&again), &SystemClock, None).await.unwrap();
    assert_eq!(again.customers(), named);
    let ids = |queue: &Queued| queue.hints.borrow().iter().map(|hint| hint.event_id.as_str().to_owned()).collect::<Vec<_>>();
    assert!(!ids(&queue).iter().any(|id| ids(&again).contains(id)), "the queue would drop a second hint of one id");

    bench.post("/_sandbox/faults", &[("path", "/v1/customers"), ("status", "401"), ("skip", "1")]).await;
    let interrupted = import(&stripe, Mode::Test, Some(&again), &SystemClock, None).await.unwrap_err();
    assert!(interrupted.queued == 90 && interrupted.after.is_some(), "{interrupted}");
}
