//! The control table: what scheduled functions keep in mind from one run to the next.

use aws_sdk_dynamodb::error::SdkError;

use super::{Changes, Store, number, text, unavailable};
use crate::{
    domain::time::EpochSecs,
    ports::{MeterErrors, Unavailable},
};

/// Where Stripe's last word of usage it threw away is kept.
const METER_ERRORS: &str = "meter-errors";

impl MeterErrors for Store {
    async fn note_meter_error(&self, said_at: EpochSecs) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.set("said_at", number(said_at.as_secs()));
        let condition = format!("attribute_not_exists({name}) OR {name} < :v0", name = changes.name("said_at"));
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.control)
            .key("name", text(METER_ERRORS))
            .update_expression(changes.expression())
            .condition_expression(condition)
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        match request.send().await {
            Ok(_) => Ok(()),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(()),
            Err(error) => Err(unavailable("noting a meter error")(error)),
        }
    }

    async fn last_meter_error(&self) -> Result<Option<EpochSecs>, Unavailable> {
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(METER_ERRORS));
        let answer = request.consistent_read(true).send().await.map_err(unavailable("reading the last meter error"))?;
        let said_at = answer.item.as_ref().and_then(|item| item.get("said_at")).and_then(|secs| secs.as_n().ok());
        Ok(said_at.and_then(|secs| secs.parse().ok()).map(EpochSecs::new))
    }
}
