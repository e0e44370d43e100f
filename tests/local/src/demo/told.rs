//! The story as it was told: domain events for other programs, e-mails for ada.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde_json::Value;

use super::{Demo, SOON, USER};
use crate::stripe::text_of;

/// Who ada is to the mail service.
const ADDRESS: &str = "ada@example.com";

/// The notices of the whole story, and the e-mails among them.
const EVENTS: &str = "8";
const EMAILS: &str = "6";

impl Demo<'_> {
    pub(super) async fn told(&mut self) -> Result<()> {
        self.look("domain events about ada", EVENTS, SOON, async |demo| Ok(demo.events().await?.len().to_string())).await?;
        self.look("e-mails to ada", EMAILS, SOON, async |demo| Ok(demo.emails().await?.len().to_string())).await?;
        self.table.besides = self.shown().await?;
        Ok(())
    }

    /// The domain events about ada by their ids, since one may come twice; of each when it happened and what it was.
    async fn events(&self) -> Result<BTreeMap<String, (String, String)>> {
        let events = self.stack.domain_events().await?;
        let detail = events.iter().filter_map(|event| event.get("detail"));
        let of_ada = detail.filter(|detail| text_of(detail, "user_id") == Some(USER));
        let field = |detail: &Value, name: &str| text_of(detail, name).unwrap_or("?").to_owned();
        Ok(of_ada.map(|detail| (field(detail, "id"), (field(detail, "at"), field(detail, "type")))).collect())
    }

    async fn emails(&self) -> Result<Vec<Value>> {
        let mut emails = self.stack.aws().emails().await?;
        emails.retain(|email| email.get("To").is_some_and(|to| to.to_string().contains(ADDRESS)));
        Ok(emails)
    }

    /// Everything that was told, where it is, and one e-mail as ada reads it.
    async fn shown(&self) -> Result<String> {
        let aws = self.stack.json().aws_endpoint_url.clone();
        let mut shown = format!("Domain events, in the queue that every one is copied to ({aws}/_ministack/sqs/messages):\n");
        let mut events: Vec<_> = self.events().await?.into_values().collect();
        events.sort();
        for (at, kind) in events {
            writeln!(shown, "  {at}  {kind}")?;
        }
        let emails = self.emails().await?;
        writeln!(shown, "\nE-mails to {ADDRESS} ({aws}/_ministack/ses/messages):")?;
        for email in &emails {
            writeln!(shown, "  {}", text_of(email, "Subject").unwrap_or("without a subject"))?;
        }
        if let Some(text) = emails.first().and_then(|email| text_of(email, "BodyText")) {
            writeln!(shown, "\nThe first of them:\n")?;
            for line in text.trim_end().lines() {
                writeln!(shown, "{}", format!("  {line}").trim_end())?;
            }
        }
        Ok(shown.trim_end().to_owned())
    }
}
