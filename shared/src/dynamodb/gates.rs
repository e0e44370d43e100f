//! What was granted to each user: one item, changed by one conditional update that grants requests or does not.

use aws_sdk_dynamodb::{
    error::SdkError,
    operation::update_item::UpdateItemError,
    types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure},
};

use super::{Changes, Item, Store, number, text, unavailable};
use crate::{
    domain::{
        gate::{Granted, Take, Taken},
        id::UserId,
    },
    ports::{Gates, Unavailable},
};

/// What precedes a minute in the attribute that holds what was granted in it, and what precedes a segment's key. Both are short
/// because names count towards the item's size, and it is to stay below 1 KB: one write unit.
const MINUTE: &str = "m:";
const SEGMENT: &str = "s:";

const READ: &str = "reading what was granted";
const TAKE: &str = "granting requests";

impl Gates for Store {
    async fn granted(&self, user_id: &UserId) -> Result<Granted, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.gates).key("user_id", text(user_id.as_str()));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(READ))?;
        read(&answer.item.unwrap_or_default())
    }

    /// The SDK may send the update twice where the first one's answer is lost; then the requests are taken twice. That errs on
    /// the strict side: what is granted never exceeds a limit, whatever is lost.
    async fn take(&self, take: &Take<'_>) -> Result<Taken, Unavailable> {
        let wanted = u64::from(take.requests);
        let mut changes = Changes::default();
        let mut limits = vec![(format!("{MINUTE}{}", take.minute), u64::from(take.per_minute), None)];
        limits.extend(take.segment.map(|segment| (format!("{SEGMENT}{}", segment.key), segment.limit, segment.counted)));
        let mut conditions = Vec::new();
        for (attribute, limit, counted) in limits {
            // More than the limit at once never fits, also where nothing was granted yet.
            let most = limit.checked_sub(wanted).filter(|most| counted.is_none_or(|counted| counted <= *most));
            let Some(most) = most else { return self.granted(take.user_id).await.map(Taken::Refused) };
            let name = changes.name(&attribute);
            if let Some(counted) = counted {
                // Whoever raises it first has raised it for all; the others find it raised, and add.
                let below = changes.value(number(counted));
                conditions.push(format!("(attribute_not_exists({name}) OR {name} < {below})"));
                changes.set(&attribute, number(counted.saturating_add(wanted)));
            } else {
                let most = changes.value(number(most));
                conditions.push(format!("(attribute_not_exists({name}) OR {name} <= {most})"));
                changes.add(&attribute, wanted);
            }
        }
        for minute in &take.stale_minutes {
            changes.remove(&format!("{MINUTE}{minute}"));
        }
        for key in &take.stale_segments {
            changes.remove(&format!("{SEGMENT}{key}"));
        }
        changes.set("expires_at", number(take.expires_at.as_secs()));
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.gates)
            .key("user_id", text(take.user_id.as_str()))
            .condition_expression(conditions.join(" AND "))
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        match request.send().await {
            Ok(answer) => Ok(Taken::Granted(read(&answer.attributes.unwrap_or_default())?)),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => {
                let old = match error.into_err() {
                    UpdateItemError::ConditionalCheckFailedException(failed) => failed.item,
                    _ => None,
                };
                match old {
                    Some(old) => read(&old).map(Taken::Refused),
                    // Not told, for whatever reason: what was granted only grows, so it is still there to be read.
                    None => self.granted(take.user_id).await.map(Taken::Refused),
                }
            }
            Err(error) => Err(unavailable(TAKE)(error)),
        }
    }
}

fn read(item: &Item) -> Result<Granted, Unavailable> {
    let mut granted = Granted::default();
    for (attribute, value) in item {
        if let Some(minute) = attribute.strip_prefix(MINUTE) {
            let minute = minute.parse().map_err(|_| unreadable("a minute is no number"))?;
            granted.minutes.insert(minute, total(value)?);
        } else if let Some(segment) = attribute.strip_prefix(SEGMENT) {
            granted.segments.insert(segment.to_owned(), total(value)?);
        }
    }
    Ok(granted)
}

fn total(value: &AttributeValue) -> Result<u64, Unavailable> {
    let total = value.as_n().ok().and_then(|total| total.parse().ok());
    total.ok_or_else(|| unreadable("what was granted is no whole number below 2^64"))
}

fn unreadable(reason: &str) -> Unavailable {
    Unavailable { what: READ, reason: reason.to_owned() }
}
