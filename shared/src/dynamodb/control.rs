//! The control table: what scheduled functions keep in mind from one run to the next.

use aws_sdk_dynamodb::error::SdkError;

use super::{Changes, Store, from_item, number, text, to_item, unavailable};
use crate::{
    domain::time::EpochSecs,
    ports::{MeterErrors, ReporterMemory, ReporterState, Unavailable},
};

/// Where the reporter keeps what it has in mind.
const REPORTER: &str = "reporter";
/// Where the reporter's lease is.
const LEASE: &str = "reporter-lease";

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

impl ReporterState for Store {
    async fn memory(&self) -> Result<ReporterMemory, Unavailable> {
        const WHAT: &str = "reading the reporter's memory";
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(REPORTER));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(WHAT))?;
        answer.item.map_or(Ok(ReporterMemory::default()), |item| from_item(WHAT, item))
    }

    async fn remember(&self, memory: &ReporterMemory) -> Result<(), Unavailable> {
        const WHAT: &str = "saving the reporter's memory";
        let mut changes = Changes::default();
        changes.set_all(to_item(WHAT, memory)?, &[]);
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.control)
            .key("name", text(REPORTER))
            .update_expression(changes.expression())
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        request.send().await.map(|_| ()).map_err(unavailable(WHAT))
    }

    async fn take_lease(&self, owner: &str, now_ms: i64, until_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("owner", text(owner));
        changes.set("until_ms", number(until_ms));
        let (until, now) = (changes.name("until_ms"), changes.value(number(now_ms)));
        let (name, own) = (changes.name("owner"), changes.value(text(owner)));
        // An own earlier write, whose reply was lost, holds.
        let condition = format!("attribute_not_exists({until}) OR {until} <= {now} OR {name} = {own}");
        self.change_lease(changes, condition).await
    }

    async fn give_lease_back(&self, owner: &str) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.remove("until_ms");
        let (name, value) = (changes.name("owner"), changes.value(text(owner)));
        self.change_lease(changes, format!("{name} = {value}")).await.map(|_| ())
    }

    async fn table_ids(&self) -> Result<Vec<String>, Unavailable> {
        const WHAT: &str = "reading the tables' ids";
        let mut ids = Vec::new();
        for name in [&self.tables.tallies, &self.tables.books] {
            let answer = self.client.describe_table().table_name(name).send().await.map_err(unavailable(WHAT))?;
            let id = answer.table.and_then(|table| table.table_id);
            ids.push(id.ok_or_else(|| Unavailable { what: WHAT, reason: "a table has no id".to_owned() })?);
        }
        Ok(ids)
    }
}

impl Store {
    /// Changes the lease under a condition. Whether it held.
    async fn change_lease(&self, changes: Changes, condition: String) -> Result<bool, Unavailable> {
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.control)
            .key("name", text(LEASE))
            .update_expression(changes.expression())
            .condition_expression(condition)
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values));
        match request.send().await {
            Ok(_) => Ok(true),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(false),
            Err(error) => Err(unavailable("changing the reporter's lease")(error)),
        }
    }
}
