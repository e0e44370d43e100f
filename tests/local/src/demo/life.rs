//! The rest of the story: a payment that fails, seven days of grace, the end of access, a late payment, a cancellation.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::{Timestamp, ToSpan};
use serde_json::Value;

use super::{Demo, SOON, USER};
use crate::stripe::{data, id_of, text_of};

impl Demo<'_> {
    pub(super) async fn failed_payment(&mut self) -> Result<()> {
        self.pay_with("pm_card_chargeCustomerFail").await?;
        let renewal = self.period_end().await?;
        // Stripe finalises the renewal's invoice an hour later, and only then charges the card: the moment of the failure.
        self.failed_at = renewal.checked_add(1.hour())?;
        self.advance(self.failed_at).await?;
        self.look("after the failed payment", "grace on pro, allowed", SOON, Self::standing).await?;
        let deadline = self.days_after_the_failure(7)?.to_string();
        self.look("access until, 7 days after the failure", &deadline, SOON, Self::access_until).await?;
        self.look("notices to ada", "grace.started", SOON, Self::notices).await
    }

    /// Stripe tries the card again meanwhile, and it fails again: that makes the days no more.
    pub(super) async fn seven_days_of_grace(&mut self) -> Result<()> {
        for (day, reminders) in [(3, "1"), (6, "2")] {
            self.live_until(self.days_after_the_failure(day)?).await?;
            self.look(&format!("{day} days after the failure"), "grace on pro, allowed", SOON, Self::standing).await?;
            self.look("reminders to ada", reminders, SOON, Self::reminders).await?;
        }
        self.live_until(self.days_after_the_failure(7)?).await?;
        self.look("7 days after the failure", "ended on pro, denied", SOON, Self::standing).await?;
        self.row("a request then", "402 payment_overdue", self.check(1).await?.shown());
        self.look("notices to ada", "access.ended", SOON, Self::notices).await
    }

    pub(super) async fn late_payment(&mut self) -> Result<()> {
        self.pay_with("pm_card_visa").await?;
        let stripe = self.stack.stripe();
        let open = stripe.get("/v1/invoices", &[("customer", self.customer.as_str()), ("status", "open")]).await?;
        let invoice = id_of(data(&open).next().context("ada has no open invoice")?)?;
        stripe.post(&format!("/v1/invoices/{invoice}/pay"), &[]).await?;
        self.look("after the late payment", "active on pro, allowed", SOON, Self::standing).await?;
        self.row("a request then", "200", self.check(1).await?.shown());
        self.look("notices to ada", "access.restored", SOON, Self::notices).await
    }

    pub(super) async fn cancellation(&mut self) -> Result<()> {
        let path = format!("/v1/subscriptions/{}", self.subscription);
        self.stack.stripe().post(&path, &[("cancel_at_period_end", "true")]).await?;
        let end = self.period_end().await?;
        self.look("she cancels: access until", &end.to_string(), SOON, Self::access_until).await?;
        self.look("until then", "active on pro, allowed", Duration::ZERO, Self::standing).await?;
        self.look("notices to ada", "subscription.ending", SOON, Self::notices).await?;
        self.live_until(end).await?;
        self.look("after the period's end", "free on free, allowed", SOON, Self::standing).await?;
        self.look("notices to ada", "subscription.ended", SOON, Self::notices).await
    }

    fn days_after_the_failure(&self, days: i64) -> Result<Timestamp> {
        Ok(self.failed_at.checked_add((days * 24).hours())?)
    }

    /// Moves ada's clock, and has the sweeper look at what is due by then.
    async fn live_until(&self, moment: Timestamp) -> Result<()> {
        self.advance(moment).await?;
        self.wait_until_ada_lives_in(moment).await?;
        self.stack.sweep().await
    }

    /// How many reminders ada was sent.
    async fn reminders(&self) -> Result<String> {
        let notices = self.stack.aws().scan(&self.stack.table("outbox")?).await?;
        let is_reminder =
            |notice: &&Value| text_of(notice, "user_id") == Some(USER) && text_of(notice, "kind") == Some("grace.reminder");
        Ok(notices.iter().filter(is_reminder).count().to_string())
    }
}
