//! What the sandbox promises about time, money and faults, driven over HTTP as its users drive it.

mod month;

use month::{DAY, FEBRUARY, HOUR, MARCH, Month, START, Stripe, id, period};
use serde_json::Value;

#[tokio::test]
async fn a_renewal_bills_the_closed_months_usage_and_the_next_months_base_an_hour_later() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    assert_eq!(subscription["status"], "active");
    assert_eq!(period(&subscription), (START, FEBRUARY));
    month.use_requests("1000", START + 60).await;
    month.stripe.advance(&month.clock, FEBRUARY).await;

    let renewed = month.subscription(&subscription).await;
    assert_eq!(period(&renewed), (FEBRUARY, MARCH), "clamped from the anchor: back to the 31st");
    assert_eq!(renewed["latest_invoice"]["status"], "draft");
    assert_eq!(renewed["latest_invoice"]["created"], FEBRUARY);
    // Late usage of the closed period still counts while the invoice is a draft, and usage of the new period does not.
    month.use_requests("3000", FEBRUARY - 1).await;
    month.use_requests("9999", FEBRUARY).await;
    month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
    let invoice = &month.subscription(&subscription).await["latest_invoice"];
    assert_eq!(invoice["status"], "paid");
    assert_eq!(invoice["amount_paid"], 1900 + 1000);

    // Usage that comes after the invoice is final is never billed.
    month.use_requests("5000", FEBRUARY - 2).await;
    month.stripe.advance(&month.clock, MARCH + HOUR).await;
    let invoice = &month.subscription(&subscription).await["latest_invoice"];
    assert_eq!(invoice["amount_paid"], 1900 + 2500, "9,999 requests, rounded half up");
    let invoice = invoice["id"].as_str().unwrap();
    assert_eq!(
        month.stripe.event_types(invoice).await,
        ["invoice.created", "invoice.finalized", "invoice.paid", "invoice.payment_succeeded"]
    );
}

#[tokio::test]
async fn a_failed_renewal_is_retried_on_days_3_5_and_7_and_a_late_payment_makes_it_good() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.pay_with(&month.bad).await;
    let mut attempts = vec![];
    for (days, attempt) in [(0, 1), (2, 1), (3, 2), (5, 3), (7, 4), (20, 4)] {
        month.stripe.advance(&month.clock, FEBRUARY + HOUR + days * DAY).await;
        let now = month.subscription(&subscription).await;
        assert_eq!(now["status"], "past_due", "day {days}");
        assert_eq!(now["latest_invoice"]["attempt_count"], attempt, "day {days}");
        attempts.push(now["latest_invoice"]["next_payment_attempt"].clone());
    }
    let first = FEBRUARY + HOUR;
    assert_eq!(attempts[0], first + 3 * DAY);
    assert_eq!(attempts[3], first + 7 * DAY);
    assert_eq!(attempts[4], Value::Null);

    let invoice = id(&month.subscription(&subscription).await["latest_invoice"]["id"]);
    let pay = format!("/v1/invoices/{invoice}/pay");
    let (status, declined) = month.stripe.try_post(&pay, &[]).await;
    assert_eq!((status, &declined["error"]["type"]), (402, &Value::from("card_error")));
    month.pay_with(&month.good).await;
    assert_eq!(month.stripe.post(&pay, &[]).await["status"], "paid");
    assert_eq!(month.subscription(&subscription).await["status"], "active");
    let types = month.stripe.event_types(&invoice).await;
    assert_eq!(types.iter().filter(|kind| *kind == "invoice.payment_failed").count(), 5);
    assert_eq!(types.iter().filter(|kind| *kind == "invoice.paid").count(), 1);
}

#[tokio::test]
async fn exhausted_retries_end_as_the_account_says() {
    for (setting, expected) in [("unpaid", "unpaid"), ("canceled", "canceled"), ("past_due", "past_due")] {
        let month = Month::begin().await;
        month.stripe.set(&[("after_retries", setting)]).await;
        month.pay_with(&month.good).await;
        let subscription = month.subscribe(&[]).await;
        month.pay_with(&month.bad).await;
        month.stripe.advance(&month.clock, FEBRUARY + 10 * DAY).await;
        let now = month.subscription(&subscription).await;
        assert_eq!(now["status"], expected);
        assert_eq!(now["latest_invoice"]["status"], "open", "the debt stays");
    }
}

#[tokio::test]
async fn cancel_at_period_end_bills_the_last_usage_and_no_further_base() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    let path = format!("/v1/subscriptions/{}", subscription["id"].as_str().unwrap());
    let leaving = month.stripe.post(&path, &[("cancel_at_period_end", "true")]).await;
    assert_eq!(leaving["status"], "active");
    assert_eq!(leaving["cancel_at"], FEBRUARY);
    month.use_requests("400", START + 60).await;
    month.stripe.advance(&month.clock, FEBRUARY + 2 * HOUR).await;
    let gone = month.subscription(&subscription).await;
    assert_eq!(gone["status"], "canceled");
    assert_eq!(gone["ended_at"], FEBRUARY);
    assert_eq!(gone["latest_invoice"]["status"], "paid");
    assert_eq!(gone["latest_invoice"]["amount_paid"], 100);
    assert!(
        month
            .stripe
            .event_types(subscription["id"].as_str().unwrap())
            .await
            .contains(&"customer.subscription.deleted".to_owned())
    );
}

#[tokio::test]
async fn a_first_payment_that_fails_leaves_it_incomplete_and_expires_after_23_hours() {
    let month = Month::begin().await;
    month.pay_with(&month.bad).await;
    let subscription = month.subscribe(&[]).await;
    assert_eq!(subscription["status"], "incomplete");
    month.stripe.advance(&month.clock, START + 23 * HOUR - 1).await;
    assert_eq!(month.subscription(&subscription).await["status"], "incomplete");
    month.stripe.advance(&month.clock, START + 23 * HOUR).await;
    let expired = month.subscription(&subscription).await;
    assert_eq!(expired["status"], "incomplete_expired");
    assert_eq!(expired["latest_invoice"]["status"], "void");
}

#[tokio::test]
async fn a_trial_is_free_and_its_end_is_announced() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[("trial_period_days", "7")]).await;
    assert_eq!(subscription["status"], "trialing");
    month.use_requests("4000", START + 60).await;
    month.stripe.advance(&month.clock, START + 4 * DAY).await;
    let types = month.stripe.event_types(subscription["id"].as_str().unwrap()).await;
    assert!(types.contains(&"customer.subscription.trial_will_end".to_owned()));
    month.stripe.advance(&month.clock, START + 7 * DAY + HOUR).await;
    let active = month.subscription(&subscription).await;
    assert_eq!(active["status"], "active");
    assert_eq!(active["latest_invoice"]["amount_paid"], 1900, "the trial's usage is free");
    assert_eq!(period(&active).0, START + 7 * DAY);
}

#[tokio::test]
async fn only_the_flexible_mode_bills_usage_before_a_price_switch() {
    for (mode, billed) in [("flexible", 1900 + 1000 + 1000), ("classic", 1900 + 5 * 1000)] {
        let month = Month::begin().await;
        month.pay_with(&month.good).await;
        let dearer = month
            .stripe
            .post(
                "/v1/prices",
                &[
                    ("currency", "usd"),
                    ("unit_amount", "1"),
                    ("recurring[interval]", "month"),
                    ("recurring[usage_type]", "metered"),
                    ("recurring[meter]", &month.meter),
                    ("product_data[name]", "Dearer"),
                ],
            )
            .await;
        let subscription = month.subscribe(&[("billing_mode[type]", mode)]).await;
        month.use_requests("4000", START + 60).await;
        month.stripe.advance(&month.clock, START + 10 * DAY).await;
        let item = subscription["items"]["data"][1]["id"].as_str().unwrap();
        let path = format!("/v1/subscriptions/{}", subscription["id"].as_str().unwrap());
        let price = dearer["id"].as_str().unwrap();
        month.stripe.post(&path, &[("items[0][id]", item), ("items[0][price]", price)]).await;
        month.use_requests("1000", START + 10 * DAY).await;
        month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
        let invoice = &month.subscription(&subscription).await["latest_invoice"];
        assert_eq!(invoice["amount_paid"], billed, "{mode}");
    }
}

#[tokio::test]
async fn a_licensed_upgrade_is_prorated_on_the_next_invoice() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let dearer = month
        .stripe
        .post(
            "/v1/prices",
            &[("currency", "usd"), ("unit_amount", "3800"), ("recurring[interval]", "month"), ("product_data[name]", "Business")],
        )
        .await;
    let subscription = month.subscribe(&[]).await;
    month.stripe.advance(&month.clock, START + 14 * DAY).await;
    let item = subscription["items"]["data"][0]["id"].as_str().unwrap();
    let path = format!("/v1/subscriptions/{}", subscription["id"].as_str().unwrap());
    month.stripe.post(&path, &[("items[0][id]", item), ("items[0][price]", dearer["id"].as_str().unwrap())]).await;
    month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
    let invoice = &month.subscription(&subscription).await["latest_invoice"];
    assert_eq!(invoice["amount_paid"], 3800 + 1900 - 950, "half a month of each: 1900 − 950, and the month ahead");
}

#[tokio::test]
async fn a_cancelled_subscription_keeps_its_open_invoice_but_collects_it_no_more() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    let subscription = month.subscribe(&[]).await;
    month.pay_with(&month.bad).await;
    month.stripe.advance(&month.clock, FEBRUARY + HOUR).await;
    let path = format!("{}/v1/subscriptions/{}", month.stripe.sandbox.url(), subscription["id"].as_str().unwrap());
    let (status, cancelled) = month.stripe.send(month.stripe.http.delete(path)).await;
    assert_eq!((status, &cancelled["status"]), (200, &Value::from("canceled")));
    let invoice = &month.subscription(&subscription).await["latest_invoice"];
    assert_eq!(invoice["status"], "open");
    assert_eq!(invoice["next_payment_attempt"], Value::Null);
    month.pay_with(&month.good).await;
    month.stripe.post(&format!("/v1/invoices/{}/pay", invoice["id"].as_str().unwrap()), &[]).await;
    assert_eq!(month.subscription(&subscription).await["status"], "canceled", "paying does not revive it");
}

#[tokio::test]
async fn meter_events_are_judged_by_the_customers_own_clock() {
    let month = Month::begin().await;
    let event = |at: i64| {
        let at = at.to_string();
        let customer = month.customer.clone();
        let stripe = &month.stripe;
        async move {
            let form = [
                ("event_name", "requests"),
                ("timestamp", at.as_str()),
                ("payload[stripe_customer_id]", customer.as_str()),
                ("payload[value]", "1"),
            ];
            stripe.try_post("/v1/billing/meter_events", &form).await.0
        }
    };
    assert_eq!(event(START - 35 * DAY).await, 200);
    assert_eq!(event(START - 35 * DAY - 1).await, 400);
    assert_eq!(event(START + 300).await, 200);
    assert_eq!(event(START + 301).await, 400);
}

#[tokio::test]
async fn two_meter_events_of_one_customer_and_meter_at_once_are_one_too_many() {
    let month = Month::begin().await;
    month.stripe.set(&[("meter_call_ms", "1000")]).await;
    let url = format!("{}/v1/billing/meter_events", month.stripe.sandbox.url());
    let send = async |event_name: &str, customer: &str| {
        let form = [("event_name", event_name), ("payload[stripe_customer_id]", customer), ("payload[value]", "1")];
        let answer = month.stripe.http.post(&url).bearer_auth("sk_test_1").form(&form).send().await.unwrap();
        let limit = answer.headers().contains_key("stripe-rate-limited-reason");
        (answer.status().as_u16(), limit, answer.json::<Value>().await.unwrap()["error"]["code"].clone())
    };
    let (first, second, other_meter, other_customer) = tokio::join!(
        send("requests", &month.customer),
        send("requests", &month.customer),
        send("tokens", &month.customer),
        send("requests", "cus_other"),
    );
    let mut both = [first, second];
    both.sort_by_key(|(status, ..)| *status);
    assert_eq!(both, [(200, false, Value::Null), (429, false, Value::from("lock_timeout"))]);
    assert_eq!((other_meter.0, other_customer.0), (200, 200));
    assert_eq!(send("requests", &month.customer).await.0, 200, "the lock ends with its call");
}

#[tokio::test]
async fn a_meter_event_is_a_whole_number_of_15_digits_with_texts_of_bounded_length() {
    let month = Month::begin().await;
    let post = async |event_name: &str, identifier: &str, value: &str| {
        let form = [
            ("event_name", event_name),
            ("identifier", identifier),
            ("payload[stripe_customer_id]", month.customer.as_str()),
            ("payload[value]", value),
        ];
        month.stripe.try_post("/v1/billing/meter_events", &form).await.0
    };
    for (number, value) in
        ["0", "1", "-5", "999999999999999", "-999999999999999", "0000000000000000000007"].into_iter().enumerate()
    {
        assert_eq!(post("requests", &format!("good-{number}"), value).await, 200, "{value}");
    }
    for value in ["", "1.5", "1.0", "1e3", "+1", " 1", "NaN", "ten", "--1", "-", "1000000000000000", "99999999999999999999999"] {
        assert_eq!(post("requests", "bad", value).await, 400, "{value:?}");
    }
    assert_eq!(post("requests", &"i".repeat(100), "1").await, 200);
    assert_eq!(post("requests", &"i".repeat(101), "1").await, 400);
    assert_eq!(post(&"n".repeat(101), "long name", "1").await, 400);
    let without_value = [("event_name", "requests"), ("payload[stripe_customer_id]", month.customer.as_str())];
    assert_eq!(month.stripe.try_post("/v1/billing/meter_events", &without_value).await.0, 400);
}

#[tokio::test]
async fn an_identifier_is_known_for_a_day_and_then_forgotten() {
    let month = Month::begin().await;
    let send = async || {
        let form = [
            ("event_name", "requests"),
            ("identifier", "rep_1"),
            ("payload[stripe_customer_id]", month.customer.as_str()),
            ("payload[value]", "7"),
        ];
        month.stripe.try_post("/v1/billing/meter_events", &form).await
    };
    assert_eq!(send().await.0, 200);
    let (status, refusal) = send().await;
    assert_eq!((status, &refusal["error"]["code"]), (400, &Value::Null));
    assert_eq!(refusal["error"]["message"], "An event already exists with identifier rep_1.");
    month.stripe.set(&[("identifier_ttl_secs", "0")]).await;
    assert_eq!(send().await.0, 200, "it is counted a second time");
    let path = format!(
        "/v1/billing/meters/{}/event_summaries?customer={}&start_time={START}&end_time={FEBRUARY}",
        month.meter, month.customer
    );
    assert_eq!(month.stripe.get(&path).await["data"][0]["aggregated_value"], 14.0);
}

#[tokio::test]
async fn a_call_too_many_is_refused_with_the_limit_that_it_met() {
    let stripe = Stripe::start_limited().await;
    /// Calls until a call is refused: how many were not, and what the refusal says.
    async fn until_refused(stripe: &Stripe, paths: &[&str]) -> Option<(usize, String)> {
        for (taken, path) in paths.iter().cycle().take(2_000).enumerate() {
            let answer =
                stripe.http.get(format!("{}{path}", stripe.sandbox.url())).bearer_auth("sk_test_1").send().await.unwrap();
            if answer.status().as_u16() == 429 {
                assert!(!answer.headers().contains_key("retry-after"), "Stripe documents none");
                let limit = answer.headers()["stripe-rate-limited-reason"].to_str().unwrap().to_owned();
                assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], "rate_limit");
                return Some((taken, limit));
            }
        }
        None
    }
    let settings = stripe.post("/_sandbox/settings", &[]).await;
    assert_eq!((&settings["global_rate"], &settings["endpoint_rate"]), (&Value::from(25), &Value::from(25)));
    // Few enough for the busiest machine to be too fast.
    stripe.set(&[("global_rate", "2"), ("endpoint_rate", "2")]).await;
    let (taken, limit) = until_refused(&stripe, &["/v1/customers", "/v1/products", "/v1/prices"]).await.unwrap();
    assert!(taken >= 2 && limit == "global-rate", "{taken} {limit}");

    stripe.set(&[("global_rate", "0")]).await;
    let (_, limit) = until_refused(&stripe, &["/v1/customers", "/v1/customers/cus_1"]).await.unwrap();
    assert_eq!(limit, "endpoint-rate");
    assert_eq!(stripe.try_post("/v1/products", &[("name", "Pro")]).await.0, 200, "it is a limit of one endpoint");
    stripe.set(&[("endpoint_rate", "0")]).await;
    for _ in 0..100 {
        stripe.get("/v1/customers").await;
    }
}

#[tokio::test]
async fn an_advancing_clock_refuses_changes_and_goes_at_most_two_intervals() {
    let month = Month::begin().await;
    month.pay_with(&month.good).await;
    month.subscribe(&[]).await;
    let path = format!("/v1/test_helpers/test_clocks/{}/advance", month.clock);
    let too_far = (MARCH + 1).to_string();
    assert_eq!(month.stripe.try_post(&path, &[("frozen_time", &too_far)]).await.0, 400);
    month.stripe.post(&path, &[("frozen_time", &MARCH.to_string())]).await;
    let customer = format!("/v1/customers/{}", month.customer);
    let (status, body) = month.stripe.try_post(&customer, &[("name", "Ada")]).await;
    assert_eq!(status, 429);
    assert!(body["error"]["message"].as_str().unwrap().starts_with("Test clock advancement underway"));
}

#[tokio::test]
async fn faults_strike_before_or_after_the_effect() {
    let stripe = Stripe::start().await;
    let post: (&str, &str) = ("method", "POST");
    stripe.fault(&[("path", "/v1/customers"), post, ("status", "500")]).await;
    assert_eq!(stripe.try_post("/v1/customers", &[]).await.0, 500);
    assert_eq!(stripe.customers().await, 0);
    let url = format!("{}/v1/customers", stripe.sandbox.url());
    for (after_effect, customers) in [("false", 0), ("true", 1)] {
        stripe.fault(&[("path", "/v1/customers"), post, ("drop", "true"), ("after_effect", after_effect)]).await;
        let lost = stripe.http.post(&url).bearer_auth("sk_test_x").send().await;
        let nothing_readable = match lost {
            Err(_) => true,
            Ok(answer) => answer.bytes().await.is_err(),
        };
        assert!(nothing_readable);
        assert_eq!(stripe.customers().await, customers, "after_effect={after_effect}");
    }
    let requests = stripe.get("/_sandbox/requests").await;
    let statuses: Vec<&Value> = requests["data"].as_array().unwrap().iter().map(|request| &request["status"]).collect();
    assert_eq!(statuses, [500, 200, 0, 200, 0, 200]);

    // A 429 is a lock, or the limit that it is told to be.
    for (limit, code) in [(None, "lock_timeout"), (Some("endpoint-concurrency"), "rate_limit")] {
        let mut fault = vec![("path", "/v1/customers"), ("status", "429")];
        fault.extend(limit.map(|limit| ("limited_by", limit)));
        stripe.fault(&fault).await;
        let answer = stripe.http.get(&url).bearer_auth("sk_test_x").send().await.unwrap();
        let told = answer.headers().get("stripe-rate-limited-reason").map(|reason| reason.to_str().unwrap().to_owned());
        assert_eq!((answer.status().as_u16(), told.as_deref()), (429, limit));
        assert_eq!(answer.json::<Value>().await.unwrap()["error"]["code"], code);
    }
    let nothing = [("path", "/v1/customers")];
    assert_eq!(stripe.try_post("/_sandbox/faults", &nothing).await.0, 400);
}

#[tokio::test]
async fn a_slow_call_takes_effect_though_its_caller_is_gone() {
    let stripe = Stripe::start().await;
    let url = format!("{}/v1/customers", stripe.sandbox.url());
    let impatient = |ms| stripe.http.post(&url).bearer_auth("sk_test_x").timeout(std::time::Duration::from_millis(ms)).send();
    stripe.fault(&[("path", "/v1/customers"), ("method", "POST"), ("delay_ms", "60000"), ("after_effect", "true")]).await;
    assert!(impatient(1_000).await.is_err());
    assert_eq!(stripe.customers().await, 1, "only the answer is slow");
    stripe.fault(&[("path", "/v1/customers"), ("method", "POST"), ("delay_ms", "2000")]).await;
    assert!(impatient(1_000).await.is_err());
    assert_eq!(stripe.customers().await, 1, "the call itself is slow");
    for _ in 0..1_000 {
        if stripe.customers().await == 2 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the call ended with its caller");
}

#[tokio::test]
async fn what_was_answered_under_a_key_is_replayed_though_it_never_arrived_or_was_a_500() {
    let stripe = Stripe::start().await;
    let url = format!("{}/v1/customers", stripe.sandbox.url());
    let send = async |key: &str| {
        let answer = stripe.http.post(&url).bearer_auth("sk_test_1").header("idempotency-key", key).send().await.ok()?;
        Some((answer.status().as_u16(), answer.headers().contains_key("idempotent-replayed"), answer.bytes().await.ok()?))
    };
    let shown = |answer: Option<(u16, bool, _)>| answer.map(|(status, replayed, _)| (status, replayed));
    for (key, how, after_effect, replayed, customers) in [
        ("403 before", ("status", "403"), "false", Some((403, true)), 0),
        ("500 after", ("status", "500"), "true", Some((500, true)), 1),
        ("500 before", ("status", "500"), "false", Some((500, true)), 1),
        ("dropped after", ("drop", "true"), "true", Some((200, true)), 2),
        ("dropped before", ("drop", "true"), "false", Some((200, false)), 3),
        ("429", ("status", "429"), "false", Some((200, false)), 4),
    ] {
        stripe.fault(&[("path", "/v1/customers"), ("method", "POST"), how, ("after_effect", after_effect)]).await;
        assert!(shown(send(key).await).is_none_or(|(status, _)| status >= 403), "{key}");
        assert_eq!((shown(send(key).await), stripe.customers().await), (replayed, customers), "{key}");
    }
    let (_, _, first) = send("dropped after").await.unwrap();
    assert_eq!(first, send("dropped after").await.unwrap().2);
}

#[tokio::test]
async fn a_refusal_is_replayed_once_the_parameters_were_accepted() {
    let stripe = Stripe::start().await;
    let url = format!("{}/v1/subscriptions", stripe.sandbox.url());
    let send = async |key: &str, fields: &[(&str, &str)]| {
        let request = stripe.http.post(&url).bearer_auth("sk_test_1").header("idempotency-key", key).form(fields);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers().contains_key("idempotent-replayed"))
    };
    let nobodys = [("customer", "cus_nobody"), ("items[0][price]", "price_none")];
    let unknown = [&nobodys[..], &[("colour", "blue")]].concat();
    assert_eq!([send("1", &unknown).await, send("1", &unknown).await], [(400, false); 2]);
    assert_eq!([send("1", &nobodys).await, send("1", &nobodys).await], [(400, false), (400, true)]);
    stripe.sandbox.shutdown().await;
}

#[tokio::test]
async fn the_door_is_shut_without_a_test_key_and_opens_to_a_bare_question_mark() {
    let stripe = Stripe::start().await;
    let url = format!("{}/v1/customers?", stripe.sandbox.url());
    for key in ["", "sk_live_1", "pk_test_1", "sk_test_"] {
        let answer = stripe.http.get(&url).bearer_auth(key).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401, "{key}");
        assert!(answer.headers().contains_key("request-id"));
    }
    assert_eq!(stripe.http.get(&url).basic_auth("rk_test_1", Some("")).send().await.unwrap().status().as_u16(), 200);
    let json = stripe.http.post(&url).bearer_auth("sk_test_1").json(&serde_json::json!({"name": "Ada"}));
    assert_eq!(json.send().await.unwrap().status().as_u16(), 400);
    stripe.sandbox.shutdown().await;
}
