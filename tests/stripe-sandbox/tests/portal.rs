//! The customer portal: what a configuration needs, and what a session needs.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail by panicking, as its body does")]

use serde_json::{Value, json};
use stripe_sandbox::Sandbox;

const CONFIGURATIONS: &str = "/v1/billing_portal/configurations";
const SESSIONS: &str = "/v1/billing_portal/sessions";
const HEADLINE: (&str, &str) = ("business_profile[headline]", "Your plan");
const HISTORY: (&str, &str) = ("features[invoice_history][enabled]", "true");

struct Stripe {
    sandbox: Sandbox,
    http: reqwest::Client,
}

impl Stripe {
    async fn start() -> Self {
        let stripe = Self { sandbox: Sandbox::start(0).await.unwrap(), http: reqwest::Client::new() };
        stripe.post("/_sandbox/settings", &[("global_rate", "0"), ("endpoint_rate", "0")]).await;
        stripe
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.bearer_auth("sk_test_portal").send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn try_post(&self, path: &str, form: &[(&str, &str)]) -> (u16, Value) {
        self.send(self.http.post(format!("{}{path}", self.sandbox.url())).form(form)).await
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let (status, body) = self.try_post(path, form).await;
        assert_eq!(status, 200, "POST {path}: {body}");
        body
    }

    /// The parameter and the message of a 400.
    async fn refused(&self, path: &str, form: &[(&str, &str)]) -> (String, String) {
        let (status, body) = self.try_post(path, form).await;
        assert_eq!(status, 400, "POST {path}: {body}");
        let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
        (text("param"), text("message"))
    }

    async fn list(&self, query: &str) -> Vec<Value> {
        let (status, body) = self.send(self.http.get(format!("{}{CONFIGURATIONS}{query}", self.sandbox.url()))).await;
        assert_eq!(status, 200, "{body}");
        body["data"].as_array().unwrap().iter().map(|configuration| configuration["id"].clone()).collect()
    }
}

#[tokio::test]
async fn a_session_needs_a_customer_that_is_there_and_a_configuration() {
    let stripe = Stripe::start().await;
    let customer = stripe.post("/v1/customers", &[]).await["id"].as_str().unwrap().to_owned();
    let of_customer = [("customer", customer.as_str()), ("return_url", "https://example.com/account")];
    let (_, message) = stripe.refused(SESSIONS, &of_customer).await;
    assert!(
        message.starts_with("No configuration provided and your test mode default configuration has not been created."),
        "{message}"
    );

    let configuration = stripe.post(CONFIGURATIONS, &[HEADLINE, HISTORY]).await;
    assert_eq!((&configuration["is_default"], &configuration["active"]), (&json!(true), &json!(true)));
    let session = stripe.post(SESSIONS, &of_customer).await;
    assert_eq!(session["object"], "billing_portal.session");
    assert!(session["id"].as_str().unwrap().starts_with("bps_"));
    assert_eq!((&session["configuration"], &session["customer"]), (&configuration["id"], &json!(customer)));
    assert_eq!(session["return_url"], "https://example.com/account");
    assert!(session["url"].as_str().unwrap().starts_with("https://billing.stripe.com/p/session/"));

    for (form, param) in [
        (vec![], "customer"),
        (vec![("customer", "cus_nobody")], "customer"),
        (vec![("customer", customer.as_str()), ("configuration", "bpc_none")], "configuration"),
        (vec![("customer", customer.as_str()), ("return_url", "example.com")], "return_url"),
        (vec![("customer", customer.as_str()), ("colour", "blue")], "colour"),
    ] {
        assert_eq!(stripe.refused(SESSIONS, &form).await.0, param, "{form:?}");
    }
    let (status, _) = stripe.send(stripe.http.delete(format!("{}/v1/customers/{customer}", stripe.sandbox.url()))).await;
    assert_eq!(status, 200);
    assert_eq!(stripe.refused(SESSIONS, &of_customer).await.0, "customer", "a deleted customer has no portal");
    stripe.sandbox.shutdown().await;
}

#[tokio::test]
async fn the_first_configuration_is_the_default_and_stays_active() {
    let stripe = Stripe::start().await;
    let first = stripe.post(CONFIGURATIONS, &[HEADLINE, HISTORY]).await["id"].clone();
    let second = stripe.post(CONFIGURATIONS, &[HEADLINE, HISTORY]).await["id"].clone();
    assert_eq!(stripe.list("?is_default=true").await, std::slice::from_ref(&first));
    assert_eq!(stripe.list("").await, [second.clone(), first.clone()]);

    let path = |id: &Value| format!("{CONFIGURATIONS}/{}", id.as_str().unwrap());
    assert_eq!(stripe.refused(&path(&first), &[("active", "false")]).await.0, "active");
    let changed = stripe.post(&path(&second), &[("active", "false")]).await;
    assert_eq!((&changed["active"], &changed["features"]["invoice_history"]["enabled"]), (&json!(false), &json!(true)));
    assert_eq!(stripe.list("?active=true").await, [first]);

    let customer = stripe.post("/v1/customers", &[]).await["id"].as_str().unwrap().to_owned();
    let with_inactive = [("customer", customer.as_str()), ("configuration", second.as_str().unwrap())];
    assert_eq!(stripe.refused(SESSIONS, &with_inactive).await.0, "configuration");
    stripe.sandbox.shutdown().await;
}

#[tokio::test]
async fn a_configuration_says_what_it_offers_and_nothing_else() {
    let stripe = Stripe::start().await;
    let whole = [
        HEADLINE,
        HISTORY,
        ("features[customer_update][enabled]", "true"),
        ("features[customer_update][allowed_updates][]", "email"),
        ("features[payment_method_update][enabled]", "true"),
        ("features[subscription_cancel][enabled]", "true"),
        ("features[subscription_cancel][mode]", "at_period_end"),
        ("default_return_url", "https://example.com/account"),
        ("metadata[made_by]", "test"),
    ];
    let configuration = stripe.post(CONFIGURATIONS, &whole).await;
    let features = &configuration["features"];
    assert_eq!(features["customer_update"], json!({"allowed_updates": ["email"], "enabled": true}));
    assert_eq!(
        (&features["subscription_cancel"]["enabled"], &features["subscription_cancel"]["mode"]),
        (&json!(true), &json!("at_period_end"))
    );
    assert_eq!(features["subscription_update"]["enabled"], false);
    let id = configuration["id"].as_str().unwrap();
    let path = format!("{CONFIGURATIONS}/{id}");
    let changed = stripe
        .post(&path, &[("features[customer_update][allowed_updates]", ""), ("features[customer_update][enabled]", "false")])
        .await;
    assert_eq!(changed["features"]["customer_update"], json!({"allowed_updates": [], "enabled": false}));
    assert_eq!(changed["features"]["payment_method_update"]["enabled"], true, "what is not named stays");

    for (form, param) in [
        (vec![HEADLINE], "features"),
        (vec![HISTORY], "business_profile"),
        (vec![HEADLINE, ("features[invoice_history][enabled]", "yes")], "features[invoice_history][enabled]"),
        (vec![HEADLINE, ("features[subscription_cancel][mode]", "immediately")], "features[subscription_cancel][enabled]"),
        (vec![HEADLINE, ("features[customer_update][enabled]", "true")], "features[customer_update][allowed_updates]"),
        (
            vec![
                HEADLINE,
                ("features[customer_update][enabled]", "true"),
                ("features[customer_update][allowed_updates][]", "shoe_size"),
            ],
            "features[customer_update][allowed_updates][0]",
        ),
        (
            vec![
                HEADLINE,
                ("features[subscription_cancel][enabled]", "true"),
                ("features[subscription_cancel][proration_behavior]", "create_prorations"),
            ],
            "features[subscription_cancel][proration_behavior]",
        ),
        (
            vec![
                HEADLINE,
                ("features[subscription_cancel][enabled]", "true"),
                ("features[subscription_cancel][cancellation_reason][enabled]", "true"),
            ],
            "features[subscription_cancel][cancellation_reason][options]",
        ),
        (vec![HEADLINE, ("features[subscription_update][enabled]", "true")], "features[subscription_update][enabled]"),
        (vec![HEADLINE, HISTORY, ("default_return_url", "account")], "default_return_url"),
        (vec![HEADLINE, HISTORY, ("is_default", "true")], "is_default"),
        (vec![HEADLINE, HISTORY, ("active", "true")], "active"),
        (vec![HEADLINE, HISTORY, ("features[subscription_pause][enabled]", "false")], "features[subscription_pause][enabled]"),
    ] {
        assert_eq!(stripe.refused(CONFIGURATIONS, &form).await.0, param, "{form:?}");
    }
    assert_eq!(stripe.list("").await.len(), 1, "what is refused makes nothing");
    let (status, _) = stripe.try_post(&format!("{CONFIGURATIONS}/bpc_none"), &[]).await;
    assert_eq!(status, 404);
    stripe.sandbox.shutdown().await;
}
