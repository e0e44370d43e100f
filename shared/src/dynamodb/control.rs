//! The control table: what scheduled functions keep in mind from one run to the next.

use aws_sdk_dynamodb::error::SdkError;
use serde::Deserialize;

use super::{Changes, Store, from_item, number, text, to_item, unavailable};
use crate::{
    domain::{read_back::Rejections, time::EpochSecs},
    ports::{Commit, Heard, MeterErrors, ReporterMemory, ReporterState, SweeperMemory, SweeperState, Unavailable},
};

/// Where the reporter keeps what it has in mind.
const REPORTER: &str = "reporter";
/// Where the reporter's lease is.
const LEASE: &str = "reporter-lease";

/// Where the sweeper keeps what it has in mind.
const SWEEPER: &str = "sweeper";
/// Where it is kept when Stripe was last heard of.
const HEARD: &str = "heard";

/// Where Stripe's last word of usage it threw away is kept.
const METER_ERRORS: &str = "meter-errors";

#[derive(Deserialize)]
struct Said {
    first_said_at: Option<EpochSecs>,
    said_at: EpochSecs,
}

impl MeterErrors for Store {
    async fn note_meter_error(&self, said_at: EpochSecs) -> Result<(), Unavailable> {
        let said = number(said_at.as_secs());
        let mut changes = Changes::default();
        changes.set("said_at", said.clone());
        changes.set_once("first_said_at", said.clone());
        let (name, value) = (changes.name("said_at"), changes.value(said.clone()));
        let is_newest = format!("attribute_not_exists({name}) OR {name} < {value}");
        if self.change_control(METER_ERRORS, changes, Some(is_newest)).await? {
            return Ok(());
        }
        // One that comes late may be the first.
        let mut changes = Changes::default();
        changes.set("first_said_at", said.clone());
        let (name, value) = (changes.name("first_said_at"), changes.value(said));
        let is_first = format!("attribute_not_exists({name}) OR {name} > {value}");
        self.change_control(METER_ERRORS, changes, Some(is_first)).await.map(|_| ())
    }

    async fn rejections(&self) -> Result<Option<Rejections>, Unavailable> {
        const WHAT: &str = "reading what Stripe threw away";
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(METER_ERRORS));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(WHAT))?;
        let said: Option<Said> = answer.item.map(|item| from_item(WHAT, item)).transpose()?;
        Ok(said.and_then(|said| Some(Rejections { first_at: said.first_said_at?, last_at: said.said_at })))
    }

    async fn rejections_followed(&self, through: EpochSecs) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.remove("first_said_at");
        let (name, value) = (changes.name("said_at"), changes.value(number(through.as_secs())));
        if self.change_control(METER_ERRORS, changes, Some(format!("{name} = {value}"))).await? {
            return Ok(());
        }
        // Stripe said it again meanwhile: that is still to be followed up, from then on.
        let mut changes = Changes::default();
        changes.copy("said_at", "first_said_at");
        self.change_control(METER_ERRORS, changes, None).await.map(|_| ())
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
        let mut changes = Changes::default();
        changes.set_all(to_item("saving the reporter's memory", memory)?, &[]);
        self.change_control(REPORTER, changes, None).await.map(|_| ())
    }

    async fn take_lease(&self, owner: &str, now_ms: i64, until_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("owner", text(owner));
        changes.set("until_ms", number(until_ms));
        let (until, now) = (changes.name("until_ms"), changes.value(number(now_ms)));
        let (name, own) = (changes.name("owner"), changes.value(text(owner)));
        // An own earlier write, whose reply was lost, holds.
        let condition = format!("attribute_not_exists({until}) OR {until} <= {now} OR {name} = {own}");
        self.change_control(LEASE, changes, Some(condition)).await
    }

    async fn renew_lease(&self, owner: &str, until_ms: i64) -> Result<bool, Unavailable> {
        let mut changes = Changes::default();
        changes.set("until_ms", number(until_ms));
        let until = changes.name("until_ms");
        let (name, own) = (changes.name("owner"), changes.value(text(owner)));
        // One that was given back stays so: a renewal may arrive late.
        self.change_control(LEASE, changes, Some(format!("{name} = {own} AND attribute_exists({until})"))).await
    }

    async fn give_lease_back(&self, owner: &str) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.remove("until_ms");
        let (name, value) = (changes.name("owner"), changes.value(text(owner)));
        self.change_control(LEASE, changes, Some(format!("{name} = {value}"))).await.map(|_| ())
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

#[derive(Deserialize)]
struct HeardAt {
    heard_at: EpochSecs,
}

impl Heard for Store {
    async fn note_heard(&self, at: EpochSecs) -> Result<(), Unavailable> {
        let mut changes = Changes::default();
        changes.set("heard_at", number(at.as_secs()));
        let (name, value) = (changes.name("heard_at"), changes.value(number(at.as_secs())));
        let is_newest = format!("attribute_not_exists({name}) OR {name} < {value}");
        self.change_control(HEARD, changes, Some(is_newest)).await.map(|_| ())
    }
}

impl SweeperState for Store {
    async fn sweeper_memory(&self) -> Result<SweeperMemory, Unavailable> {
        const WHAT: &str = "reading the sweeper's memory";
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(SWEEPER));
        let answer = request.consistent_read(true).send().await.map_err(unavailable(WHAT))?;
        answer.item.map_or(Ok(SweeperMemory::default()), |item| from_item(WHAT, item))
    }

    async fn remember_sweep(&self, memory: &mut SweeperMemory) -> Result<Commit, Unavailable> {
        let read = memory.version;
        let next = SweeperMemory { version: read.saturating_add(1), ..memory.clone() };
        let mut changes = Changes::default();
        changes.set_all(to_item("saving the sweeper's memory", &next)?, &[]);
        let condition = changes.if_version("name", read);
        let held = self.change_control(SWEEPER, changes, Some(condition)).await?;
        // A repetition of our own write, whose reply was lost, finds it done.
        if !held && self.sweeper_memory().await? != next {
            return Ok(Commit::LostRace);
        }
        *memory = next;
        Ok(Commit::Done)
    }

    async fn heard_at(&self) -> Result<Option<EpochSecs>, Unavailable> {
        const WHAT: &str = "reading when Stripe was last heard of";
        let request = self.client.get_item().table_name(&self.tables.control).key("name", text(HEARD));
        let answer = request.send().await.map_err(unavailable(WHAT))?;
        let heard: Option<HeardAt> = answer.item.map(|item| from_item(WHAT, item)).transpose()?;
        Ok(heard.map(|heard| heard.heard_at))
    }
}

impl Store {
    /// Changes an item of the control table, if the condition holds. Whether it held.
    async fn change_control(&self, name: &str, changes: Changes, condition: Option<String>) -> Result<bool, Unavailable> {
        let request = self
            .client
            .update_item()
            .table_name(&self.tables.control)
            .key("name", text(name))
            .update_expression(changes.expression())
            .set_condition_expression(condition)
            .set_expression_attribute_names(Some(changes.names))
            .set_expression_attribute_values(Some(changes.values).filter(|values| !values.is_empty()));
        match request.send().await {
            Ok(_) => Ok(true),
            Err(SdkError::ServiceError(error)) if error.err().is_conditional_check_failed_exception() => Ok(false),
            Err(error) => Err(unavailable("changing the control table")(error)),
        }
    }
}
