//! The world of one test.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    config::{BehaviorVersion, Credentials, Region, retry::RetryConfig},
    types::AttributeValue,
};
use serde_json::Value;
use tokentill::{domain::price_list::PriceList, dynamodb::Store};

use crate::{Engine, Faulty, Meters, Queue, RecountQueue, StripeTruth, Template, TestClock, Wire};

/// Everything around a handler: an engine of its own with the template's tables, a clock that stands still, and doubles.
#[derive(Debug)]
pub struct World {
    /// The SDK's client on the engine.
    pub client: Client,
    /// The wire between the two.
    pub wire: Wire,
    /// The one clock of the world.
    pub clock: TestClock,
    /// The price list we ship.
    pub prices: PriceList,
    /// The account-changes queue.
    pub queue: Queue,
    /// The recounts on the usage queue.
    pub recounts: RecountQueue,
    /// Stripe's state.
    pub stripe: StripeTruth,
    /// Stripe's meters.
    pub meters: Meters,
    template: Template,
    // Last, so that it outlives the client.
    _engine: Engine,
}

impl World {
    /// A world without accounts or usage, at noon on 22 November 2026.
    pub async fn start() -> Self {
        let engine = Engine::start();
        let wire = Wire::default();
        // The functions' retries, but without their waiting.
        let retries = RetryConfig::standard().with_max_attempts(4).with_initial_backoff(Duration::from_millis(1));
        let config = aws_sdk_dynamodb::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::from_static("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(engine.url())
            .retry_config(retries)
            .http_client(wire.clone())
            .build();
        let client = Client::from_conf(config);
        let template = Template::read();
        template.create_tables(&client).await;
        Self {
            client,
            wire,
            clock: TestClock::at("2026-11-22T12:00:00Z"),
            prices: PriceList::shipped().expect("the shipped price list is good"),
            queue: Queue::default(),
            recounts: RecountQueue::default(),
            stripe: StripeTruth::default(),
            meters: Meters::default(),
            template,
            _engine: engine,
        }
    }

    /// The store as a function has it: with the tables that the template gives it, and no others. What can go wrong with it is
    /// planned on its faults.
    #[must_use]
    pub fn store_of(&self, function: &str) -> Faulty<Store> {
        Faulty::new(Store::new(self.client.clone(), self.template.tables_of(function)))
    }

    /// The store with every table.
    #[must_use]
    pub fn store(&self) -> Store {
        Store::new(self.client.clone(), self.template.all_tables())
    }

    /// Every item of a table as JSON, sorted by its text.
    pub async fn items(&self, table: &str) -> Vec<Value> {
        let mut pages = self.client.scan().table_name(format!("tokentill-{table}")).into_paginator().items().send();
        let mut items = Vec::new();
        while let Some(item) = pages.next().await {
            let item = item.expect("a table can be scanned");
            items.push(serde_dynamo::from_item::<_, Value>(item).expect("an item is JSON"));
        }
        items.sort_by_key(Value::to_string);
        items
    }

    /// The one item of a table.
    pub async fn item(&self, table: &str) -> Value {
        let mut items = self.items(table).await;
        assert_eq!(items.len(), 1, "{table}: {items:#?}");
        items.remove(0)
    }

    /// A table's items as they are now, to restore it later.
    pub async fn backup(&self, table: &str) -> Vec<HashMap<String, AttributeValue>> {
        let pages = self.client.scan().table_name(format!("tokentill-{table}")).into_paginator().items().send();
        pages.collect::<Result<_, _>>().await.expect("a table can be scanned")
    }

    /// Restores a table from a backup: another table of the same name, with another id.
    pub async fn restore(&self, table: &str, items: Vec<HashMap<String, AttributeValue>>) {
        let name = format!("tokentill-{table}");
        self.client.delete_table().table_name(&name).send().await.expect("a table can be deleted");
        self.template.create_again(&self.client, &name).await;
        for item in items {
            let put = self.client.put_item().table_name(&name).set_item(Some(item));
            put.send().await.expect("an item can be put");
        }
    }

    /// Writes an attribute beside what this version knows, as a newer version would.
    pub async fn set_attribute(&self, table: &str, key: (&str, &str), attribute: &str, value: &str) {
        let request = self
            .client
            .update_item()
            .table_name(format!("tokentill-{table}"))
            .key(key.0, AttributeValue::S(key.1.to_owned()))
            .update_expression("SET #attribute = :value")
            .expression_attribute_names("#attribute", attribute)
            .expression_attribute_values(":value", AttributeValue::S(value.to_owned()));
        request.send().await.expect("an item can be updated");
    }

    /// Takes attributes away that an older version did not write.
    pub async fn remove_attributes(&self, table: &str, key: (&str, &str), attributes: &[&str]) {
        let names = |n: usize| format!("#n{n}");
        let list: Vec<String> = (0..attributes.len()).map(names).collect();
        let mut request = self.client.update_item().table_name(format!("tokentill-{table}"));
        request = request.key(key.0, AttributeValue::S(key.1.to_owned()));
        for (n, attribute) in attributes.iter().enumerate() {
            request = request.expression_attribute_names(names(n), *attribute);
        }
        request.update_expression(format!("REMOVE {}", list.join(", "))).send().await.expect("an item can be updated");
    }
}
