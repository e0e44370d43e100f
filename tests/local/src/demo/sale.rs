//! The month's beginning: Stripe is set up, ada uses the free tier up, and buys.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{Demo, PAUSE, SOON, USER, now};
use crate::progress::poll;
use crate::stripe::{data, id_of, text_of};

/// What the free tier of the shipped price list grants in a minute, and what is left of its month after that.
const A_MINUTES: u64 = 60;
const THE_REST: u64 = 40;

/// What `POST` on the access API answered.
pub(super) struct Answer {
    status: StatusCode,
    retry_after_secs: Option<u64>,
    body: Value,
}

impl Answer {
    /// `429 rate_limited`
    pub(super) fn shown(&self) -> String {
        match text_of(&self.body, "reason") {
            Some(reason) => format!("{} {reason}", self.status.as_u16()),
            None => self.status.as_u16().to_string(),
        }
    }
}

impl Demo<'_> {
    /// `cargo local` has set Stripe up as `cargo till setup` does; done once more, there is nothing left to do.
    pub(super) async fn set_up(&mut self) -> Result<()> {
        let question = async |demo: &Self| Ok(if demo.stack.is_set_up().await? { "nothing to do" } else { "changes" }.to_owned());
        self.look("cargo till setup, a second time", "nothing to do", Duration::ZERO, question).await
    }

    /// Ada, on a test clock, is no subscriber: sixty requests a minute, a hundred a month, and not one more.
    pub(super) async fn free_tier(&mut self) -> Result<()> {
        let stripe = self.stack.stripe();
        let frozen = self.start.as_second().to_string();
        let clock = stripe.post("/v1/test_helpers/test_clocks", &[("frozen_time", &frozen), ("name", "demo month")]).await?;
        self.clock = id_of(&clock)?;
        let customer = [("test_clock", self.clock.as_str()), ("email", "ada@example.com"), ("name", "Ada")];
        self.customer = id_of(&stripe.post("/v1/customers", &customer).await?)?;
        stripe.post(&format!("/v1/customers/{}", self.customer), &[("metadata[user_id]", USER)]).await?;
        self.wait_until_ada_lives_in(self.start).await?;
        self.look("before the checkout", "free on free, allowed", SOON, Self::standing).await?;

        // Two checks of one minute: not at its very end.
        let left_secs = 60 - now().as_second().rem_euclid(60);
        if left_secs < 20 {
            tokio::time::sleep(Duration::from_secs(u64::try_from(left_secs)?)).await;
        }
        self.row("60 requests at once", "200", self.check(A_MINUTES).await?.shown());
        let refused = self.check(1).await?;
        self.row("one more in this minute", "429 rate_limited", refused.shown());
        let wait_secs = refused.retry_after_secs.filter(|secs| (1..=60).contains(secs));
        let says = if wait_secs.is_some() { "the next minute" } else { "nothing of use" };
        self.row("which its Retry-After says to try in", "the next minute", says.to_owned());
        tokio::time::sleep(Duration::from_secs(wait_secs.unwrap_or(60))).await;
        self.row("40 requests in the next minute", "200", self.check(THE_REST).await?.shown());
        let refused = self.check(1).await?;
        self.row("one more in this month", "402 quota_exceeded", refused.shown());
        let quota = refused.body.pointer("/quotas/requests").cloned().unwrap_or_default();
        let shown =
            |name: &str| quota.get(name).and_then(Value::as_u64).map_or_else(|| "?".to_owned(), |number| number.to_string());
        self.row("of the free tier: used / limit", "100 / 100", format!("{} / {}", shown("used"), shown("limit")));
        Ok(())
    }

    /// She buys on the page that our checkout leads to.
    pub(super) async fn checkout(&mut self) -> Result<()> {
        let offer = json!({
            "user_id": USER, "plan": "pro", "success_url": "https://example.com/thanks", "cancel_url": "https://example.com/prices",
        });
        let first = self.post("/v1/checkout", &offer).await?;
        ensure!(first.status.is_success(), "POST /v1/checkout: {}: {}", first.status, first.body);
        let again = self.post("/v1/checkout", &offer).await?;
        let same = if text_of(&first.body, "url") == text_of(&again.body, "url") { "the same page" } else { "another page" };
        self.row("a second checkout leads to", "the same page", same.to_owned());

        let stripe = self.stack.stripe();
        let sessions = stripe.get("/v1/checkout/sessions", &[("customer", self.customer.as_str()), ("status", "open")]).await?;
        let session = data(&sessions).find(|session| text_of(session, "url") == text_of(&first.body, "url"));
        let session = id_of(session.context("Stripe has no open session with the URL that was answered")?)?;
        let path = format!("/_sandbox/checkout/sessions/{session}/complete");
        let completed = stripe.post(&path, &[("payment_method", "pm_card_visa")]).await?;
        self.subscription = text_of(&completed, "subscription").context("the session has no subscription")?.to_owned();
        self.look("after the checkout", "active on pro, allowed", SOON, Self::standing).await?;
        // More in one minute than the free tier has.
        self.row("100 requests at once", "200", self.check(A_MINUTES + THE_REST).await?.shown());
        let third = self.post("/v1/checkout", &offer).await?;
        let leads_to = if third.body.get("portal_url").is_some_and(Value::is_string) { "the portal" } else { "nowhere" };
        self.row("a third checkout: refused, and leads to", "409, the portal", format!("{}, {leads_to}", third.status.as_u16()));
        self.look("notices to ada", "account.provisioned", SOON, Self::notices).await
    }

    /// Asks for so many requests.
    pub(super) async fn check(&self, requests: u64) -> Result<Answer> {
        self.post("/v1/check", &json!({"user_id": USER, "units": {"requests": requests}})).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let json = self.stack.json();
        // The sandbox lets 25 calls a second through, as Stripe's test mode does: what it has no time for is asked again.
        poll(&format!("POST {path}"), SOON, PAUSE, || async {
            let request = self.http.post(format!("{}{path}", json.api_url)).bearer_auth(&json.service_token).json(body);
            let answer = request.send().await?;
            let status = answer.status();
            if status == StatusCode::SERVICE_UNAVAILABLE {
                return Ok(None);
            }
            let retry_after = answer.headers().get("retry-after").and_then(|secs| secs.to_str().ok());
            let retry_after_secs = retry_after.and_then(|secs| secs.parse().ok());
            Ok(Some(Answer { status, retry_after_secs, body: answer.json().await? }))
        })
        .await
    }
}
