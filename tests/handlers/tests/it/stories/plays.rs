//! The stories, as they happen at Stripe.
//!
//! Each ends some time after its last event, so that what has to be looked at afterwards is settled.

use handlers::story::{Stage, Story};

pub(super) const HOUR: i64 = 3_600;
pub(super) const DAY: i64 = 24 * HOUR;
/// 28 February 2027, 12:00: the first renewal of a subscription that began with the story. Its invoice is charged an hour later.
pub(super) const RENEWAL: i64 = 28 * DAY;
/// When the first renewal is charged.
pub(super) const CHARGED: i64 = RENEWAL + HOUR;

/// A subscriber pays for the first month, and the card is replaced by one that is going to be declined.
async fn subscriber_with(stage: &mut Stage, token: &str) -> String {
    let subscription = stage.subscribe("pro").await;
    stage.step("subscribes").await;
    stage.until(DAY).await;
    stage.pay_with(token).await;
    stage.step("another payment method").await;
    subscription
}

async fn steps(stage: &mut Stage, moments: &[(i64, &str)]) {
    for (secs, name) in moments {
        stage.until(*secs).await;
        stage.step(name).await;
    }
}

async fn pay_late(stage: &mut Stage, subscription: &str) {
    stage.pay_with("pm_card_visa").await;
    let invoice = stage.invoice_of(subscription).await;
    stage.post(&format!("/v1/invoices/{invoice}/pay"), &[]).await;
    stage.step("pays").await;
}

/// 1. A page is opened and paid.
pub(super) async fn sign_up() -> Story {
    let mut stage = Stage::begin("sign up").await;
    let customer = stage.customer().to_owned();
    let prices = stage.prices_of("pro").await;
    let mut form = vec![
        ("mode", "subscription"),
        ("customer", customer.as_str()),
        ("client_reference_id", "ada"),
        ("subscription_data[metadata][user_id]", "ada"),
        ("success_url", "https://app.example.com/thanks"),
        ("line_items[0][quantity]", "1"),
    ];
    let names: Vec<String> = (0..prices.len()).map(|place| format!("line_items[{place}][price]")).collect();
    form.extend(names.iter().map(String::as_str).zip(prices.iter().map(String::as_str)));
    let session = stage.post("/v1/checkout/sessions", &form).await;
    stage.step("opens the page").await;
    stage.until(HOUR).await;
    stage.post(&format!("/_sandbox/checkout/sessions/{}/complete", session["id"].as_str().unwrap()), &[]).await;
    stage.step("pays").await;
    steps(&mut stage, &[(DAY, "a day later")]).await;
    stage.end().await
}

/// 2. The card wants the cardholder to authenticate, who does so after two hours.
pub(super) async fn sign_up_with_3d_secure() -> Story {
    let mut stage = Stage::begin("sign up that needs 3-D Secure").await;
    stage.pay_with("pm_card_authenticationRequired").await;
    let subscription = stage.subscribe("pro").await;
    stage.step("is asked to authenticate").await;
    stage.until(2 * HOUR).await;
    let invoice = stage.invoice_of(&subscription).await;
    stage.post(&format!("/_sandbox/invoices/{invoice}/payment"), &[("outcome", "succeeded")]).await;
    stage.step("authenticates").await;
    steps(&mut stage, &[(DAY, "a day later")]).await;
    stage.end().await
}

/// 2b. The cardholder fails to authenticate, and never comes back.
pub(super) async fn sign_up_that_never_comes() -> Story {
    let mut stage = Stage::begin("sign up that is never paid").await;
    stage.pay_with("pm_card_authenticationRequired").await;
    let subscription = stage.subscribe("pro").await;
    stage.step("is asked to authenticate").await;
    stage.until(2 * HOUR).await;
    let invoice = stage.invoice_of(&subscription).await;
    stage.post(&format!("/_sandbox/invoices/{invoice}/payment"), &[("outcome", "failed")]).await;
    stage.step("fails to").await;
    steps(&mut stage, &[(23 * HOUR, "expires"), (2 * DAY, "a day later")]).await;
    stage.end().await
}

/// 3. Two renewals.
pub(super) async fn renew() -> Story {
    let mut stage = Stage::begin("renew").await;
    stage.subscribe("pro").await;
    stage.step("subscribes").await;
    let moments = [
        (RENEWAL, "is renewed"),
        (CHARGED, "is charged"),
        (59 * DAY, "is renewed again"),
        (59 * DAY + HOUR, "is charged again"),
        (60 * DAY, "a day later"),
    ];
    steps(&mut stage, &moments).await;
    stage.end().await
}

/// 4. The renewal's payment fails, and on the second day another card pays.
pub(super) async fn fail_and_recover() -> Story {
    let mut stage = Stage::begin("fail and recover on day 2").await;
    let subscription = subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    steps(
        &mut stage,
        &[(RENEWAL, "is renewed"), (CHARGED, "fails"), (CHARGED + DAY, "waits"), (CHARGED + 2 * DAY, "tries another card")],
    )
    .await;
    stage.until(CHARGED + 2 * DAY + HOUR).await;
    pay_late(&mut stage, &subscription).await;
    steps(&mut stage, &[(CHARGED + 4 * DAY, "two days later")]).await;
    stage.end().await
}

/// The days after a failure: retries on the third, the fifth and the seventh.
const RETRIES: [(i64, &str); 6] = [
    (CHARGED, "fails"),
    (CHARGED + 3 * DAY, "fails again"),
    (CHARGED + 5 * DAY, "and again"),
    (CHARGED + 6 * DAY + 12 * HOUR, "is reminded"),
    (CHARGED + 7 * DAY, "the last attempt fails"),
    (CHARGED + 8 * DAY, "is over"),
];

/// 5. Nothing helps.
pub(super) async fn fail_and_lapse(after_retries: &'static str) -> Story {
    let name = match after_retries {
        "unpaid" => "fail and lapse, unpaid",
        "canceled" => "fail and lapse, cancelled by dunning",
        _ => "fail and lapse",
    };
    let mut stage = Stage::begin(name).await;
    stage.post("/_sandbox/settings", &[("after_retries", after_retries)]).await;
    subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    steps(&mut stage, &[(RENEWAL, "is renewed")]).await;
    steps(&mut stage, &RETRIES).await;
    steps(&mut stage, &[(CHARGED + 10 * DAY, "two days later")]).await;
    stage.end().await
}

/// 6. Nothing helps, and on the tenth day it is paid after all.
pub(super) async fn lapse_and_pay_late() -> Story {
    let mut stage = Stage::begin("lapse and pay late").await;
    let subscription = subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    steps(&mut stage, &[(RENEWAL, "is renewed")]).await;
    steps(&mut stage, &RETRIES).await;
    stage.until(CHARGED + 10 * DAY).await;
    pay_late(&mut stage, &subscription).await;
    steps(&mut stage, &[(CHARGED + 11 * DAY, "a day later")]).await;
    stage.end().await
}

/// 6b. The subscription was cancelled by dunning when it is paid after all.
pub(super) async fn pay_after_the_end() -> Story {
    let mut stage = Stage::begin("lapse, and pay after the end").await;
    stage.post("/_sandbox/settings", &[("after_retries", "canceled")]).await;
    let subscription = subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    steps(&mut stage, &[(RENEWAL, "is renewed")]).await;
    steps(&mut stage, &RETRIES).await;
    stage.until(CHARGED + 10 * DAY).await;
    pay_late(&mut stage, &subscription).await;
    steps(&mut stage, &[(CHARGED + 11 * DAY, "a day later"), (60 * DAY, "what was paid for is over")]).await;
    stage.end().await
}

/// 6c. The failed payment pauses the subscription, and is made up for on the second day or never.
pub(super) async fn paused_by_failure(recovers: bool) -> Story {
    let name = if recovers { "paused by a failed payment, and paid" } else { "paused by a failed payment" };
    let mut stage = Stage::begin(name).await;
    stage.post("/_sandbox/settings", &[("pause_on_payment_failure", "first")]).await;
    let subscription = subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    steps(&mut stage, &[(RENEWAL, "is renewed"), (CHARGED, "fails"), (CHARGED + DAY, "waits")]).await;
    if recovers {
        stage.until(CHARGED + 2 * DAY).await;
        pay_late(&mut stage, &subscription).await;
    }
    steps(&mut stage, &[(CHARGED + 4 * DAY, "later"), (CHARGED + 9 * DAY, "later still")]).await;
    stage.end().await
}

/// 7. Up to the dearer plan on the fifth day, and back on the tenth.
pub(super) async fn upgrade_and_downgrade() -> Story {
    let mut stage = Stage::begin("upgrade and downgrade mid-period").await;
    let subscription = stage.subscribe("pro").await;
    stage.step("subscribes").await;
    stage.until(5 * DAY).await;
    stage.switch(&subscription, "max").await;
    stage.step("upgrades").await;
    stage.until(10 * DAY).await;
    stage.switch(&subscription, "pro").await;
    stage.step("downgrades").await;
    steps(
        &mut stage,
        &[(11 * DAY, "a day later"), (RENEWAL, "is renewed"), (CHARGED, "is charged"), (30 * DAY, "a day later still")],
    )
    .await;
    stage.end().await
}

/// 8. A cancellation is planned, and withdrawn.
pub(super) async fn cancel_and_stay() -> Story {
    let mut stage = Stage::begin("cancel at period end and change one's mind").await;
    let subscription = format!("/v1/subscriptions/{}", stage.subscribe("pro").await);
    stage.step("subscribes").await;
    stage.until(5 * DAY).await;
    stage.post(&subscription, &[("cancel_at_period_end", "true")]).await;
    stage.step("is going to leave").await;
    stage.until(10 * DAY).await;
    stage.post(&subscription, &[("cancel_at_period_end", "false")]).await;
    stage.step("stays").await;
    steps(&mut stage, &[(RENEWAL, "is renewed"), (CHARGED, "is charged"), (30 * DAY, "a day later")]).await;
    stage.end().await
}

/// 8b. A cancellation is planned, and the last invoice, which has the usage of the last period on it, is declined. Somebody pays it
/// on the second day, or nobody does.
pub(super) async fn cancel_and_owe(pays: bool) -> Story {
    let name = if pays {
        "cancel at period end, and pay the last invoice late"
    } else {
        "cancel at period end, and owe the last invoice"
    };
    let mut stage = Stage::begin(name).await;
    let subscription = subscriber_with(&mut stage, "pm_card_chargeCustomerFail").await;
    stage.until(5 * DAY).await;
    stage.use_of("requests", 1_000).await;
    stage.post(&format!("/v1/subscriptions/{subscription}"), &[("cancel_at_period_end", "true")]).await;
    stage.step("is going to leave").await;
    steps(&mut stage, &[(RENEWAL, "is over"), (CHARGED, "the last invoice fails")]).await;
    if pays {
        stage.until(CHARGED + 2 * DAY).await;
        pay_late(&mut stage, &subscription).await;
    }
    steps(
        &mut stage,
        &[(CHARGED + 3 * DAY, "three days later"), (CHARGED + 7 * DAY, "a week later"), (CHARGED + 8 * DAY, "is over")],
    )
    .await;
    stage.end().await
}

/// 9. Two subscriptions at once, by mistake; the older one is cancelled and its charge given back.
pub(super) async fn double_subscription() -> Story {
    let mut stage = Stage::begin("double subscription").await;
    let first = stage.subscribe("pro").await;
    stage.step("subscribes").await;
    stage.until(3 * DAY).await;
    stage.subscribe("pro").await;
    stage.step("subscribes once more").await;
    stage.until(4 * DAY).await;
    let invoice = stage.invoice_of(&first).await;
    stage.delete(&format!("/v1/subscriptions/{first}")).await;
    let charges = stage.get(&format!("/_sandbox/invoices/{invoice}/charges")).await;
    stage.post("/v1/refunds", &[("charge", charges["data"][0]["id"].as_str().unwrap())]).await;
    stage.step("one is cancelled and refunded").await;
    steps(
        &mut stage,
        &[
            (5 * DAY, "a day later"),
            (31 * DAY, "the other is renewed"),
            (31 * DAY + HOUR, "and charged"),
            (33 * DAY, "two days later"),
        ],
    )
    .await;
    stage.end().await
}

/// 9b. Two at once, of which the newer one's first payment fails and is left to expire, while the older one's renewal fails.
pub(super) async fn double_subscription_of_which_both_fail() -> Story {
    let mut stage = Stage::begin("double subscription of which both fail").await;
    stage.subscribe("pro").await;
    stage.step("subscribes").await;
    stage.until(20 * DAY).await;
    stage.subscribe("max").await;
    stage.step("subscribes once more").await;
    stage.until(21 * DAY).await;
    stage.pay_with("pm_card_chargeCustomerFail").await;
    stage.step("another card").await;
    let moments = [
        (RENEWAL, "the first is renewed"),
        (CHARGED, "and fails"),
        (CHARGED + 3 * DAY, "fails again"),
        (48 * DAY, "the second is renewed"),
        (48 * DAY + HOUR, "and fails, too"),
        (49 * DAY, "a day later"),
    ];
    steps(&mut stage, &moments).await;
    stage.end().await
}

/// 10. A bank account is debited, and the bank says no after four days. Nobody pays.
pub(super) async fn debit_fails_days_later() -> Story {
    let mut stage = Stage::begin("card fails days later as with bank debits").await;
    subscriber_with(&mut stage, "pm_usBankAccount_insufficientFunds").await;
    let moments = [
        (RENEWAL, "is renewed"),
        (CHARGED, "the bank is asked"),
        (CHARGED + 2 * DAY, "the bank is silent"),
        (CHARGED + 4 * DAY, "the bank says no"),
        (CHARGED + 7 * DAY, "the bank is asked again"),
        (CHARGED + 10 * DAY, "the bank is silent again"),
        (CHARGED + 11 * DAY, "the bank says no again"),
        (CHARGED + 12 * DAY, "is over"),
    ];
    steps(&mut stage, &moments).await;
    stage.end().await
}

/// All of them.
pub(super) async fn all() -> Vec<Story> {
    vec![
        sign_up().await,
        sign_up_with_3d_secure().await,
        sign_up_that_never_comes().await,
        renew().await,
        fail_and_recover().await,
        fail_and_lapse("past_due").await,
        fail_and_lapse("unpaid").await,
        fail_and_lapse("canceled").await,
        lapse_and_pay_late().await,
        pay_after_the_end().await,
        paused_by_failure(true).await,
        paused_by_failure(false).await,
        upgrade_and_downgrade().await,
        cancel_and_stay().await,
        cancel_and_owe(false).await,
        cancel_and_owe(true).await,
        double_subscription().await,
        double_subscription_of_which_both_fail().await,
        debit_fails_days_later().await,
    ]
}
