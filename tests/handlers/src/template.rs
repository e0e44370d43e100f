//! The tables as `template.yaml` declares them, and which of them it gives to which function.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::{
    Client,
    types::{
        AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
        ScalarAttributeType,
    },
};
use tokentill::{config::Environment, dynamodb::Tables};
use yaml_serde::Value;

const TEMPLATE: &str = include_str!("../../../template.yaml");
/// What stands for the stack's name.
const STACK: &str = "tokentill";
const TABLES: [&str; 10] =
    ["accounts", "customers", "processed", "outbox", "ledger", "tallies", "books", "quarantine", "control", "gates"];

/// The template, read for what the tests need of it.
#[derive(Debug)]
pub struct Template {
    /// Tables by their names in the template.
    tables: BTreeMap<String, Value>,
    /// Each function's environment, by the function's name; references to tables are written out.
    environments: BTreeMap<String, BTreeMap<String, String>>,
}

impl Template {
    /// Reads `template.yaml`.
    #[must_use]
    pub fn read() -> Self {
        let template: Value = yaml_serde::from_str(TEMPLATE).expect("template.yaml is YAML");
        let resources = template["Resources"].as_mapping().expect("the template has resources");
        let of_type = |kind: &'static str| {
            resources
                .iter()
                .filter(move |(_, resource)| resource["Type"].as_str() == Some(kind))
                .map(|(name, resource)| (name.as_str().expect("names are text").to_owned(), resource["Properties"].clone()))
        };
        let tables: BTreeMap<String, Value> = of_type("AWS::DynamoDB::Table").collect();
        let environment = |properties: &Value| {
            let variables = properties["Environment"]["Variables"].as_mapping().cloned().unwrap_or_default();
            variables
                .iter()
                .filter_map(|(name, value)| Some((name.as_str()?.to_owned(), table_name(tables.get(referenced(value)?)?))))
                .collect()
        };
        let environments = of_type("AWS::Serverless::Function")
            .filter_map(|(_, properties)| {
                let folder = properties["CodeUri"].as_str()?.strip_prefix("functions/")?.to_owned();
                Some((folder, environment(&properties)))
            })
            .collect();
        Self { tables, environments }
    }

    /// The tables that the template gives to a function, read as the function itself does.
    #[must_use]
    pub fn tables_of(&self, function: &str) -> Tables {
        let variables = self.environments.get(function).unwrap_or_else(|| panic!("the template has no function {function}"));
        let variable = |table: &str| format!("TOKENTILL_{}_TABLE", table.to_uppercase());
        let given: Vec<&str> = TABLES.into_iter().filter(|table| variables.contains_key(&variable(table))).collect();
        let mut environment = Environment::new(|name| variables.get(name).cloned());
        let tables = environment.tables(&given);
        environment.finish().expect("the template's environment is whole");
        tables
    }

    /// Every table, for a test that looks behind the functions.
    #[must_use]
    pub fn all_tables(&self) -> Tables {
        let names: Vec<String> = self.tables.values().map(table_name).collect();
        let mut environment = Environment::new(|name| {
            let table = name.strip_prefix("TOKENTILL_")?.strip_suffix("_TABLE")?.to_lowercase();
            names.iter().find(|name| **name == format!("{STACK}-{table}")).cloned()
        });
        let tables = environment.tables(&TABLES);
        environment.finish().expect("the template has every table");
        tables
    }

    /// Creates every table: keys, attributes and indexes as declared.
    pub async fn create_tables(&self, client: &Client) {
        for table in self.tables.values() {
            create_table(client, table).await;
        }
    }

    /// Makes one table, as it is after it was restored: another one of the same name.
    pub(crate) async fn create_again(&self, client: &Client, name: &str) {
        let table = self.tables.values().find(|table| table_name(table) == name).expect("the template has the table");
        create_table(client, table).await;
    }
}

async fn create_table(client: &Client, table: &Value) {
    let request = client
        .create_table()
        .table_name(table_name(table))
        .billing_mode(BillingMode::PayPerRequest)
        .set_key_schema(Some(keys(&table["KeySchema"])))
        .set_attribute_definitions(Some(attributes(&table["AttributeDefinitions"])))
        .set_global_secondary_indexes(indexes(&table["GlobalSecondaryIndexes"]));
    request.send().await.expect("the template's table can be created");
}

/// The name that a `!Ref` or a `!Sub` holds.
fn referenced(value: &Value) -> Option<&str> {
    match value {
        Value::Tagged(tagged) => tagged.value.as_str(),
        other => other.as_str(),
    }
}

fn table_name(properties: &Value) -> String {
    referenced(&properties["TableName"]).expect("a table has a name").replace("${AWS::StackName}", STACK)
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("the template lacks {field}"))
}

fn keys(schema: &Value) -> Vec<KeySchemaElement> {
    let key = |element: &Value| {
        let key = KeySchemaElement::builder().attribute_name(text(element, "AttributeName"));
        key.key_type(KeyType::from(text(element, "KeyType"))).build().expect("a key is whole")
    };
    list(schema).iter().map(key).collect()
}

fn attributes(definitions: &Value) -> Vec<AttributeDefinition> {
    let attribute = |element: &Value| {
        let attribute = AttributeDefinition::builder().attribute_name(text(element, "AttributeName"));
        let kind = ScalarAttributeType::from(text(element, "AttributeType"));
        attribute.attribute_type(kind).build().expect("an attribute is whole")
    };
    list(definitions).iter().map(attribute).collect()
}

fn indexes(declared: &Value) -> Option<Vec<GlobalSecondaryIndex>> {
    let index = |element: &Value| {
        let projection = ProjectionType::from(text(&element["Projection"], "ProjectionType"));
        let beside: Vec<String> =
            list(&element["Projection"]["NonKeyAttributes"]).iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
        let beside = Some(beside).filter(|names| !names.is_empty());
        let index = GlobalSecondaryIndex::builder()
            .index_name(text(element, "IndexName"))
            .set_key_schema(Some(keys(&element["KeySchema"])))
            .projection(Projection::builder().projection_type(projection).set_non_key_attributes(beside).build());
        index.build().expect("an index is whole")
    };
    Some(list(declared).iter().map(index).collect::<Vec<_>>()).filter(|indexes| !indexes.is_empty())
}
