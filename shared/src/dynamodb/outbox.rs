//! The outbox after the commit: how far each notice's delivery is, the one attempt at its e-mail, and the index of pending ones.
//!
//! A row is committed by `sync` or the sweeper and only ever added to. The table's stream carries to the notifier what is inserted,
//! and what bears `woken_at_ms`. **Invariant:** every change made here, but for waking itself, takes that attribute away, so that no
//! row is carried for the notifier's own writes.

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    error::SdkError,
    operation::update_item::{UpdateItemError, builders::UpdateItemFluentBuilder},
    types::ReturnValuesOnConditionCheckFailure,
};
use serde::Deserialize;

use super::{Changes, Store, accounts::INDEX_SHARDS, from_item, number, text, unavailable};
use crate::{
    domain::email::{Fate, Feedback, FeedbackKind},
    ports::{EmailAttempts, Noted, Outbox, OutboxRow, PendingNotice, PendingNotices, Unavailable},
};

const CLAIM: &str = "claiming an e-mail";

impl Outbox for Store {
    async fn row(&self, notice_id: &str) -> Result<Option<OutboxRow>, Unavailable> {
        const WHAT: &str = "reading a notice";
        let request = self.client.get_item().table_name(&self.tables.outbox).key("notice_id", text(notice_id));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(WHAT))?;
        answer.item.map(|item| from_item(WHAT, item)).transpose()
    }

    async fn note_published(&self, notice_id: &str, at_ms: i64) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.set_once("published_at_ms", number(at_ms));
        changes.remove("woken_at_ms");
        // Never a row of its own: the notice may have expired.
        let condition = format!("attribute_exists({})", changes.name("notice_id"));
        self.change_notice("noting a domain event", notice_id, changes, condition).await.map(|_| ())
    }

    async fn finish(&self, notice_id: &str) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.remove("pending_shard");
        changes.remove("woken_at_ms");
        let (published, email) = (changes.name("published_at_ms"), changes.name("email_state"));
        let condition = format!("attribute_exists({published}) AND attribute_exists({email})");
        self.change_notice("finishing a notice", notice_id, changes, condition).await
    }
}

impl EmailAttempts for Store {
    async fn claim_email(&self, notice_id: &str, email_id: &str, at_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("email_id", text(email_id));
        changes.set("email_claimed_at_ms", number(at_ms));
        changes.remove("woken_at_ms");
        let (key, name, state) = (changes.name("notice_id"), changes.name("email_id"), changes.name("email_state"));
        let condition = format!("attribute_exists({key}) AND attribute_not_exists({name}) AND attribute_not_exists({state})");
        let request = self.notice_update(notice_id, changes, condition);
        let request = request.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match request.send().await {
            Ok(_) => Ok(true),
            Err(SdkError::ServiceError(error)) => match error.err() {
                // An own earlier write, whose reply was lost, holds.
                UpdateItemError::ConditionalCheckFailedException(failed) => {
                    let claimed = failed.item().and_then(|item| item.get("email_id"));
                    Ok(claimed == Some(&text(email_id)))
                }
                _ => Err(unavailable(CLAIM)(SdkError::ServiceError(error))),
            },
            Err(error) => Err(unavailable(CLAIM)(error)),
        }
    }

    async fn settle_email(&self, notice_id: &str, email_id: Option<&str>, fate: &Fate, at_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("email_state", text(fate.as_str()));
        changes.set("email_settled_at_ms", number(at_ms));
        match fate {
            Fate::Sent { message_id } => changes.set("email_message_id", text(message_id)),
            Fate::Refused { code } => changes.set("email_code", text(code)),
            Fate::NoAddress | Fate::Outdated | Fate::Off | Fate::Unknown => {}
        }
        changes.remove("woken_at_ms");
        let (name, state) = (changes.name("email_id"), changes.name("email_state"));
        let condition = match email_id {
            Some(email_id) => {
                let own = changes.value(text(email_id));
                let unknown = changes.value(text(Fate::Unknown.as_str()));
                let settled = changes.value(text(fate.as_str()));
                format!("{name} = {own} AND (attribute_not_exists({state}) OR {state} = {unknown} OR {state} = {settled})")
            }
            None => {
                let key = changes.name("notice_id");
                format!("attribute_exists({key}) AND attribute_not_exists({name}) AND attribute_not_exists({state})")
            }
        };
        self.change_notice("settling an e-mail", notice_id, changes, condition).await
    }

    async fn note_feedback(&self, email_id: &str, feedback: &Feedback) -> Result<Noted, Unavailable> {
        const WHAT: &str = "looking for the notice of an e-mail";
        let query = self
            .client
            .query()
            .table_name(&self.tables.outbox)
            .index_name("emails")
            .key_condition_expression("email_id = :email")
            .expression_attribute_values(":email", text(email_id))
            .limit(1);
        let found = query.send().await.map_err(unavailable(WHAT))?.items.unwrap_or_default().pop();
        let Some(item) = found else { return Ok(Noted::NotFound) };
        let notice_id = from_item::<NoticeKey>(WHAT, item)?.notice_id;
        let attribute = match feedback.kind {
            FeedbackKind::Bounced => "email_bounced",
            FeedbackKind::Complained => "email_complained",
            FeedbackKind::Rejected => "email_rejected",
        };
        let mut changes = Changes::default();
        changes.set(attribute, text(&feedback.code));
        changes.remove("woken_at_ms");
        let (key, told) = (changes.name("notice_id"), changes.name(attribute));
        let condition = format!("attribute_exists({key}) AND attribute_not_exists({told})");
        let is_new = self.change_notice("noting what became of an e-mail", &notice_id, changes, condition).await?;
        Ok(if is_new { Noted::Now } else { Noted::Before })
    }
}

impl PendingNotices for Store {
    const SHARDS: u8 = INDEX_SHARDS;

    async fn pending(
        &self,
        shard: u8,
        until_ms: i64,
        after: Option<&PendingNotice>,
        limit: u8,
    ) -> Result<Vec<PendingNotice>, Unavailable> {
        const WHAT: &str = "looking for pending notices";
        let shard = text(format!("{shard:02}"));
        let after = after.map(|after| {
            HashMap::from([
                ("notice_id".to_owned(), text(&after.notice_id)),
                ("pending_shard".to_owned(), shard.clone()),
                ("committed_at_ms".to_owned(), number(after.committed_at_ms)),
            ])
        });
        let query = self
            .client
            .query()
            .table_name(&self.tables.outbox)
            .index_name("pending")
            .key_condition_expression("pending_shard = :shard AND committed_at_ms <= :until")
            .expression_attribute_values(":shard", shard)
            .expression_attribute_values(":until", number(until_ms))
            .set_exclusive_start_key(after)
            .limit(i32::from(limit));
        let found = query.send().await.map_err(unavailable(WHAT))?.items.unwrap_or_default();
        found.into_iter().map(|item| from_item(WHAT, item)).collect()
    }

    async fn wake(&self, notice_id: &str, at_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("woken_at_ms", number(at_ms));
        let condition = format!("attribute_exists({})", changes.name("pending_shard"));
        self.change_notice("waking a notice", notice_id, changes, condition).await
    }
}

#[derive(Deserialize)]
struct NoticeKey {
    notice_id: String,
}

impl Store {
    fn notice_update(&self, notice_id: &str, changes: Changes, condition: String) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.tables.outbox)
            .key("notice_id", text(notice_id))
            .update_expression(changes.expression())
            .condition_expression(condition)
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values).filter(|values| !values.is_empty()))
    }

    /// Changes a row, if the condition holds. Whether it held.
    async fn change_notice(
        &self,
        what: &'static str,
        notice_id: &str,
        changes: Changes,
        condition: String,
    ) -> Result<bool, Unavailable> {
        match self.notice_update(notice_id, changes, condition).send().await {
            Ok(_) => Ok(true),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(false),
            Err(error) => Err(unavailable(what)(error)),
        }
    }
}
