//! Logs: one structured line for each unit of work, with its metrics in the same line.
//!
//! A line is JSON. Where it counts something it is also a CloudWatch embedded metric, so that a metric costs no call. What
//! must never stand in a line: secrets, signatures, e-mail addresses, bodies (G10). `docs/operations.md` lists the fields.

use serde_json::{Map, Value, json};

/// The namespace of all metrics.
const NAMESPACE: &str = "Tokentill";

/// Starts the log of libraries and of what is not a unit of work: JSON on standard output, at the configured level.
pub fn start() {
    use tracing_subscriber::{
        filter::{LevelFilter, Targets},
        layer::SubscriberExt,
        util::SubscriberInitExt,
    };
    let level = std::env::var("TOKENTILL_LOG_LEVEL").ok().and_then(|level| level.parse().ok()).unwrap_or(LevelFilter::INFO);
    // The SDK's and hyper's debug lines could hold requests, so libraries stay at warnings whatever the level.
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("tokentill", level);
    let lines = tracing_subscriber::fmt::layer().json().flatten_event(true).with_current_span(false);
    // A second start in one process (a test's) changes nothing.
    let _ = tracing_subscriber::registry().with(lines).with(targets).try_init();
}

/// A user's name as it may stand in a log: the same for the same user, and telling nothing of it. User ids are any string, an
/// e-mail address among them.
#[must_use]
pub fn pseudonym(user_id: &str) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(user_id.as_bytes()).get(..8).unwrap_or_default())
}

/// One line under construction.
#[derive(Debug, Clone)]
pub struct Line {
    fields: Map<String, Value>,
    metrics: Vec<(&'static str, &'static str)>,
}

impl Line {
    /// A line about one unit of work of a function.
    #[must_use]
    pub fn new(function: &'static str, message: &'static str) -> Self {
        let mut fields = Map::new();
        fields.insert("function".to_owned(), function.into());
        fields.insert("message".to_owned(), message.into());
        Self { fields, metrics: Vec::new() }
    }

    /// Adds a field.
    #[must_use]
    pub fn field(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// Adds a field where there is a value.
    #[must_use]
    pub fn maybe<T: ToString>(self, name: &'static str, value: Option<T>) -> Self {
        match value {
            Some(value) => self.field(name, value.to_string()),
            None => self,
        }
    }

    /// Adds a count that is also a metric.
    #[must_use]
    pub fn count(mut self, metric: &'static str, count: u64) -> Self {
        self.fields.insert(metric.to_owned(), count.into());
        self.metrics.push((metric, "Count"));
        self
    }

    /// The line as it is written, for `now_ms` in milliseconds since 1970.
    #[must_use]
    pub fn render(mut self, now_ms: i64) -> String {
        self.fields.insert("at_ms".to_owned(), now_ms.into());
        if !self.metrics.is_empty() {
            let metrics: Vec<Value> = self.metrics.iter().map(|(name, unit)| json!({"Name": name, "Unit": unit})).collect();
            // No dimensions: each would be a metric of its own, and be paid for as one.
            let directive = json!({"Namespace": NAMESPACE, "Dimensions": [[]], "Metrics": metrics});
            self.fields.insert("_aws".to_owned(), json!({"Timestamp": now_ms, "CloudWatchMetrics": [directive]}));
        }
        Value::Object(self.fields).to_string()
    }

    /// Writes the line to standard output, where Lambda takes it up.
    #[expect(clippy::print_stdout, reason = "standard output is a Lambda function's log")]
    pub fn write(self, clock: &impl crate::ports::Clock) {
        println!("{}", self.render(clock.now_ms()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_carries_its_metrics() {
        let line = Line::new("webhook", "hint queued").field("type", "invoice.paid").maybe("customer", Some("cus_1"));
        let line = line.maybe("invoice", None::<&str>).count("WebhookAccepted", 1);
        expect_test::expect![[r#"{"WebhookAccepted":1,"_aws":{"CloudWatchMetrics":[{"Dimensions":[[]],"Metrics":[{"Name":"WebhookAccepted","Unit":"Count"}],"Namespace":"Tokentill"}],"Timestamp":5},"at_ms":5,"customer":"cus_1","function":"webhook","message":"hint queued","type":"invoice.paid"}"#]]
            .assert_eq(&line.render(5));
        assert!(!Line::new("sync", "nothing to count").render(5).contains("_aws"));
    }

    #[test]
    fn a_user_has_a_name_of_its_own_that_tells_nothing() {
        let [ada, bob] = ["ada@example.com", "bob@example.com"].map(pseudonym);
        assert_ne!(ada, bob);
        assert_eq!(ada, pseudonym("ada@example.com"), "and the same in every line");
        assert!(ada.len() == 16 && ada.bytes().all(|byte| byte.is_ascii_hexdigit()), "{ada}");
    }
}
