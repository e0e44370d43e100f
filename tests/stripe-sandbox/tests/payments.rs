//! What the sandbox promises about payments that take time, are given back or disputed, and about pauses.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers fail by panicking, as its body does")]

mod month;

use month::{DAY, FEBRUARY, HOUR, MARCH, Month, START, Stripe, id, period};
use serde_json::{Value, json};

impl Month {
    /// Attaches a test token, and makes it the customer's default.
    async fn pay_with_token(&self, token: &str) {
        let attached = self.stripe.post(&format!("/v1/payment_methods/{token}/attach"), &[("customer", &self.customer)]).await;
        self.pay_with(attached["id"].as_str().unwrap()).await;
    }

    async fn change(&self, subscription: &Value, form: &[(&str, &str)]) -> Value {
        self.stripe.post(&format!("/v1/subscriptions/{}", subscription["id"].as_str().unwrap()), form).await
    }

    async fn pay(&self, invoice: &str) -> (u16, Value) {
        self.stripe.try_post(&format!("/v1/invoices/{invoice}/pay"), &[]).await
    }

    /// A subscription with its first charge.
    async fn charged(&self) -> (Value, Value) {
        self.pay_with(&self.good).await;
        let subscription = self.subscribe(&[]).await;
        let charge = self.stripe.charge_of(subscription["latest_invoice"].as_str().unwrap()).await;
        (subscription, charge)
    }

    fn subscription_events<'a>(&'a self, subscription: &'a Value) -> impl Future<Output = Vec<String>> + 'a {
        self.stripe.event_types(subscription["id"].as_str().unwrap())
    }
}

impl Stripe {
    /// The newest charge of an invoice, by the way that Stripe's API leaves open: its payment's intent.
    async fn charge_of(&self, invoice: &str) -> Value {
        let payments = self.get(&format!("/v1/invoice_payments?invoice={invoice}")).await;
        let intent = id(&payments["data"][0]["payment"]["payment_intent"]);
        self.get(&format!("/v1/charges?payment_intent={intent}")).await["data"][0].take()
    }
}

#[tokio::test]
async fn a_sign_up_that_needs_authentication_is_incomplete_until_it_is_given() {
    for (outcome, status, invoice_status) in [("succeeded", "active", "paid"), ("failed", "incomplete", "open")] {
        let month = Month::begin().await;
        month.pay_with_token("pm_card_authenticationRequired").await;
        let subscription = month.subscribe(&[]).await;
        assert_eq!(subscription["status"], "incomplete");
        let invoice = id(&subscription["latest_invoice"]);
        let types = month.stripe.event_types(&invoice).await;
        let told = ["invoice.created", "invoice.finalized", "invoice.payment_action_required", "invoice.payment_failed"];
        assert_eq!(types, told);
        let order = format!("/_sandbox/invoices/{invoice}/payment");
        month.stripe.post(&order, &[("outcome", outcome)]).await;
        let now = month.subscription(&subscription).await;
        assert_eq!((now["status"].as_str(), now["latest_invoice"]["status"].as_str()), (Some(status), Some(invoice_status)));
        assert_eq!(month.stripe.try_post(&order, &[("outcome", outcome)]).await.0, 400, "it is over");
        month.stripe.advance(&month.clock, START + 23 * HOUR).await;
        let later = month.subscription(&subscription).await;
        let expected = if outcome == "failed" { ("incomplete_expired", "void") } else { ("active", "paid") };
        assert_eq!((later["status"].as_str().unwrap(), later["latest_invoice"]["status"].as_str().unwrap()), expected);
    }
}

#[tokio::test]
async fn a_debit_leaves_the_subscription_active_until_the_bank_says_no_days_later() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.pay_with_token("pm_usBankAccount_insufficientFunds").await;
    let asked = FEBRUARY + HOUR;
    month.stripe.advance(&month.clock, asked + 4 * DAY - 1).await;
    let now = month.subscription(&subscription).await;
    let invoice = &now["latest_invoice"];
    assert_eq!((&now["status"], &invoice["status"], &invoice["attempted"]), (&json!("active"), &json!("open"), &json!(true)));
    let invoice = id(&invoice["id"]);
    let charge = month.stripe.charge_of(&invoice).await;
    assert_eq!((&charge["status"], &charge["payment_method_details"]["type"]), (&json!("pending"), &json!("us_bank_account")));
    assert_eq!(month.pay(&invoice).await.0, 400, "not while the bank is being asked");
    assert_eq!(month.stripe.try_post(&format!("/v1/invoices/{invoice}/void"), &[]).await.0, 400);
    month.stripe.advance(&month.clock, asked + 4 * DAY).await;
    let now = month.subscription(&subscription).await;
    assert_eq!((&now["status"], &now["latest_invoice"]["attempt_count"]), (&json!("past_due"), &json!(1)));
    assert_eq!(now["latest_invoice"]["next_payment_attempt"], asked + 7 * DAY, "3 days after it failed");
    assert!(month.stripe.event_types(&invoice).await.contains(&"invoice.payment_failed".to_owned()));
    assert_eq!(month.stripe.charge_of(&invoice).await["status"], "failed");
    // The next attempt takes as long, and this bank says yes.
    month.pay_with_token("pm_usBankAccount_success").await;
    month.stripe.advance(&month.clock, asked + 11 * DAY - 1).await;
    assert_eq!(month.subscription(&subscription).await["status"], "past_due");
    month.stripe.advance(&month.clock, asked + 11 * DAY).await;
    let now = month.subscription(&subscription).await;
    assert_eq!((&now["status"], &now["latest_invoice"]["status"]), (&json!("active"), &json!("paid")));
    assert_eq!(now["latest_invoice"]["status_transitions"]["paid_at"], asked + 11 * DAY);
}

#[tokio::test]
async fn a_debit_under_way_ends_though_the_subscription_is_cancelled() {
    let month = Month::begin().await;
    month.pay_with_token("pm_usBankAccount_success").await;
    let subscription = month.subscribe(&[]).await;
    assert_eq!(subscription["status"], "active", "the first payment is being processed");
    let path = format!("{}/v1/subscriptions/{}", month.stripe.sandbox.url(), id(&subscription["id"]));
    month.stripe.send(month.stripe.http.delete(path)).await;
    month.stripe.advance(&month.clock, START + 4 * DAY).await;
    let now = month.subscription(&subscription).await;
    assert_eq!((&now["status"], &now["latest_invoice"]["status"]), (&json!("canceled"), &json!("paid")));
}

#[tokio::test]
async fn checkout_takes_cards_only() {
    let month = Month::begin().await;
    let form = [
        ("mode", "subscription"),
        ("customer", month.customer.as_str()),
        ("line_items[0][price]", month.base.as_str()),
        ("line_items[0][quantity]", "1"),
        ("success_url", "https://example.com/paid"),
    ];
    let session = id(&month.stripe.post("/v1/checkout/sessions", &form).await["id"]);
    let complete = format!("/_sandbox/checkout/sessions/{session}/complete");
    let (status, refused) = month.stripe.try_post(&complete, &[("payment_method", "pm_usBankAccount_success")]).await;
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("payment_method")));
}

#[tokio::test]
async fn a_charge_names_no_invoice_and_is_given_back_in_parts() {
    let month = Month::begin().await;
    let (_, charge) = month.charged().await;
    let charge = id(&charge["id"]);
    assert!(charge.starts_with("ch_"));
    let shown = month.stripe.get(&format!("/v1/charges/{charge}")).await;
    assert_eq!(
        (&shown["amount"], &shown["status"], &shown["customer"]),
        (&json!(1900), &json!("succeeded"), &json!(month.customer))
    );
    assert_eq!(shown.get("invoice"), None);
    let refund = |amount: &'static str| {
        let form = [("charge", charge.clone()), ("amount", amount.to_owned())];
        let stripe = &month.stripe;
        async move { stripe.try_post("/v1/refunds", &[("charge", &form[0].1), ("amount", &form[1].1)]).await }
    };
    assert_eq!(refund("400").await.0, 200);
    let part = month.stripe.get(&format!("/v1/charges/{charge}")).await;
    assert_eq!((&part["amount_refunded"], &part["refunded"]), (&json!(400), &json!(false)));
    assert_eq!(refund("1501").await.0, 400, "more than the rest");
    let rest = month.stripe.post("/v1/refunds", &[("charge", &charge)]).await;
    assert_eq!(rest["amount"], 1500);
    assert_eq!(month.stripe.get(&format!("/v1/refunds/{}", id(&rest["id"]))).await["charge"], charge.as_str());
    let all = month.stripe.get(&format!("/v1/charges/{charge}")).await;
    assert_eq!((&all["amount_refunded"], &all["refunded"]), (&json!(1900), &json!(true)));
    let (status, again) = month.stripe.try_post("/v1/refunds", &[("charge", &charge)]).await;
    assert_eq!((status, &again["error"]["code"]), (400, &json!("charge_already_refunded")));
    assert_eq!(month.stripe.event_types(&charge).await, ["charge.succeeded", "charge.refunded", "charge.refunded"]);
}

#[tokio::test]
async fn a_dispute_names_its_charge_and_withdraws_the_money_until_it_is_won() {
    let month = Month::begin().await;
    let (_, charge) = month.charged().await;
    let charge = id(&charge["id"]);
    let open = format!("/_sandbox/charges/{charge}/dispute");
    let dispute = month.stripe.post(&open, &[("status", "warning_needs_response")]).await;
    assert_eq!((&dispute["charge"], dispute.get("customer")), (&json!(charge), None));
    let dispute = id(&dispute["id"]);
    assert_eq!(month.stripe.event_types(&dispute).await, ["charge.dispute.created"], "an inquiry withdraws nothing");
    let decide = format!("/_sandbox/disputes/{dispute}");
    for status in ["needs_response", "under_review", "won"] {
        month.stripe.post(&decide, &[("status", status)]).await;
    }
    assert_eq!(month.stripe.try_post(&decide, &[("status", "lost")]).await.0, 400, "it is closed");
    let told = [
        "charge.dispute.created",
        "charge.dispute.updated",
        "charge.dispute.funds_withdrawn",
        "charge.dispute.updated",
        "charge.dispute.closed",
        "charge.dispute.funds_reinstated",
    ];
    assert_eq!(month.stripe.event_types(&dispute).await, told);
    let listed = month.stripe.get(&format!("/v1/disputes?charge={charge}&expand[]=data.charge")).await;
    assert_eq!((&listed["data"][0]["status"], &listed["data"][0]["charge"]["disputed"]), (&json!("won"), &json!(true)));
    let (status, refused) = month.stripe.try_post("/v1/refunds", &[("charge", &charge)]).await;
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("charge_disputed")));
}

#[tokio::test]
async fn a_dispute_that_the_seller_closes_is_lost() {
    let month = Month::begin().await;
    let (_, charge) = month.charged().await;
    let dispute = id(&month.stripe.post(&format!("/_sandbox/charges/{}/dispute", id(&charge["id"])), &[]).await["id"]);
    assert_eq!(month.stripe.post(&format!("/v1/disputes/{dispute}/close"), &[]).await["status"], "lost");
    assert_eq!(month.stripe.get(&format!("/v1/disputes/{dispute}")).await["status"], "lost");
    assert_eq!(
        month.stripe.event_types(&dispute).await,
        ["charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.closed"]
    );
}

#[tokio::test]
async fn a_paused_subscription_rests_until_it_is_resumed_in_a_period_of_its_own() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    let path = format!("/v1/subscriptions/{}", id(&subscription["id"]));
    assert_eq!(month.stripe.try_post(&format!("{path}/resume"), &[]).await.0, 400, "it is not paused");
    month.use_requests("400", START + 60).await;
    month.stripe.advance(&month.clock, START + 14 * DAY).await;
    let paused = month.stripe.post(&format!("{path}/pause"), &[]).await;
    assert_eq!(paused["status"], "paused");
    let details = json!({"paused": {
        "subscription": {"type": "pause_requested"}, "transitioned_at": START + 14 * DAY, "type": "subscription",
    }});
    assert_eq!(paused["status_details"], details);
    month.stripe.advance(&month.clock, MARCH).await;
    let still = month.subscription(&subscription).await;
    assert_eq!((&still["status"], period(&still)), (&json!("paused"), (START, FEBRUARY)), "nothing is renewed or invoiced");
    let resumed = month.stripe.post(&format!("{path}/resume"), &[]).await;
    assert_eq!((&resumed["status"], period(&resumed).0, &resumed["status_details"]), (&json!("active"), MARCH, &Value::Null));
    let invoice = &month.subscription(&subscription).await["latest_invoice"];
    assert_eq!(
        (&invoice["status"], &invoice["amount_paid"]),
        (&json!("paid"), &json!(1900 + 100 - 950)),
        "half a month's credit"
    );
    let types = month.subscription_events(&subscription).await;
    for kind in ["customer.subscription.paused", "customer.subscription.resumed"] {
        assert!(types.contains(&kind.to_owned()), "{kind}");
    }
    let classic = month.subscribe(&[("billing_mode[type]", "classic")]).await;
    let (status, _) = month.stripe.try_post(&format!("/v1/subscriptions/{}/pause", id(&classic["id"])), &[]).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_trial_without_a_payment_method_ends_as_it_was_set() {
    let setting = "trial_settings[end_behavior][missing_payment_method]";
    for (behaviour, status, reason) in
        [("pause", "paused", json!("trial_end_without_payment_method")), ("cancel", "canceled", Value::Null)]
    {
        let month = Month::begin().await;
        let subscription = month.subscribe(&[("trial_period_days", "7"), (setting, behaviour)]).await;
        assert_eq!(subscription["trial_settings"]["end_behavior"]["missing_payment_method"], behaviour);
        month.stripe.advance(&month.clock, START + 7 * DAY).await;
        let ended = month.subscription(&subscription).await;
        assert_eq!((&ended["status"], &ended["status_details"]["paused"]["subscription"]["type"]), (&json!(status), &reason));
        assert_eq!(ended["latest_invoice"]["billing_reason"], "subscription_create", "there is no further invoice");
    }
    // Where there is one it is charged, whatever is set.
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[("trial_period_days", "7"), (setting, "pause")]).await;
    month.stripe.advance(&month.clock, START + 7 * DAY + HOUR).await;
    assert_eq!(month.subscription(&subscription).await["latest_invoice"]["amount_paid"], 1900);
}

#[tokio::test]
async fn a_failed_payment_pauses_where_the_account_says_so() {
    for (setting, days, reason) in [("first", 0, "first_payment_failure"), ("final", 7, "final_payment_failure")] {
        let month = Month::begin().await;
        month.stripe.set(&[("pause_on_payment_failure", setting)]).await;
        month.pay_with(&month.good).await;
        let subscription = month.subscribe(&[]).await;
        month.pay_with(&month.bad).await;
        month.stripe.advance(&month.clock, FEBRUARY + HOUR + days * DAY).await;
        let paused = month.subscription(&subscription).await;
        assert_eq!((&paused["status"], &paused["latest_invoice"]["status"]), (&json!("paused"), &json!("open")));
        assert_eq!(paused["status_details"]["paused"]["subscription"]["type"], reason);
        // The debt can still be paid, and within the period that brings the subscription back.
        month.pay_with(&month.good).await;
        assert_eq!(month.pay(paused["latest_invoice"]["id"].as_str().unwrap()).await.0, 200);
        assert_eq!(month.subscription(&subscription).await["status"], "active");
    }
    // Where a pause is impossible the last failure cancels, and the first is an ordinary one.
    let month = Month::begin().await;
    month.stripe.set(&[("pause_on_payment_failure", "final")]).await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[("billing_mode[type]", "classic")]).await;
    month.pay_with(&month.bad).await;
    month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
    assert_eq!(month.subscription(&subscription).await["status"], "past_due");
    month.stripe.advance(&month.clock, FEBRUARY + HOUR + 7 * DAY).await;
    assert_eq!(month.subscription(&subscription).await["status"], "canceled");
}

#[tokio::test]
async fn a_debt_that_is_paid_after_the_paused_period_does_not_resume() {
    let month = Month::begin().await;
    month.stripe.set(&[("pause_on_payment_failure", "first")]).await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.pay_with(&month.bad).await;
    month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
    month.stripe.advance(&month.clock, MARCH + DAY).await;
    month.pay_with(&month.good).await;
    let invoice = id(&month.subscription(&subscription).await["latest_invoice"]["id"]);
    assert_eq!(month.pay(&invoice).await.0, 200);
    assert_eq!(month.subscription(&subscription).await["status"], "paused");
}

#[tokio::test]
async fn paused_collection_leaves_the_status_and_decides_about_the_invoices() {
    for (behaviour, invoice_status) in [("keep_as_draft", "draft"), ("mark_uncollectible", "uncollectible"), ("void", "void")] {
        let month = Month::begin().await;
        month.pay_with(&month.good).await;
        let subscription = month.subscribe(&[]).await;
        let resumes_at = (FEBRUARY + 10 * DAY).to_string();
        let form = [("pause_collection[behavior]", behaviour), ("pause_collection[resumes_at]", &resumes_at)];
        let changed = month.change(&subscription, &form).await;
        assert_eq!((&changed["status"], &changed["pause_collection"]["behavior"]), (&json!("active"), &json!(behaviour)));
        month.stripe.advance(&month.clock, FEBRUARY + 2 * HOUR).await;
        let renewed = month.subscription(&subscription).await;
        assert_eq!((&renewed["status"], &renewed["latest_invoice"]["status"]), (&json!("active"), &json!(invoice_status)));
        month.stripe.advance(&month.clock, FEBRUARY + 10 * DAY).await;
        assert_eq!(month.subscription(&subscription).await["pause_collection"], Value::Null, "it resumes by itself");
        month.stripe.advance(&month.clock, MARCH + HOUR).await;
        assert_eq!(month.subscription(&subscription).await["latest_invoice"]["status"], "paid");
    }
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.change(&subscription, &[("pause_collection[behavior]", "void")]).await;
    let ended = month.change(&subscription, &[("pause_collection", "")]).await;
    assert_eq!(ended["pause_collection"], Value::Null);
}

#[tokio::test]
async fn a_late_payment_of_a_cancelled_subscription_says_when_and_revives_nothing() {
    let month = Month::begin().await;
    month.stripe.set(&[("after_retries", "canceled")]).await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.pay_with(&month.bad).await;
    let ended = FEBRUARY + HOUR + 7 * DAY;
    month.stripe.advance(&month.clock, ended + 2 * DAY).await;
    let cancelled = month.subscription(&subscription).await;
    assert_eq!((&cancelled["status"], &cancelled["ended_at"]), (&json!("canceled"), &json!(ended)));
    let invoice = id(&cancelled["latest_invoice"]["id"]);
    month.pay_with(&month.good).await;
    assert_eq!(month.pay(&invoice).await.0, 200);
    let paid = month.stripe.get(&format!("/v1/invoices/{invoice}?expand[]=payments")).await;
    assert_eq!((&paid["status"], &paid["status_transitions"]["paid_at"]), (&json!("paid"), &json!(ended + 2 * DAY)));
    assert_eq!(paid["payments"]["data"][0]["status"], "paid");
    assert_eq!(
        paid["lines"]["data"].as_array().unwrap().iter().map(|line| &line["period"]["end"]).max_by_key(|end| end.as_i64()),
        Some(&json!(MARCH))
    );
    assert_eq!(month.subscription(&subscription).await["status"], "canceled");
}
