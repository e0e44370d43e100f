//! The adapter to the event bus.

use aws_sdk_eventbridge::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::PutEventsRequestEntry,
};
use tokentill::{
    domain::event::{DomainEvent, SOURCE},
    ports::{EventBus, Unavailable},
};

const WHAT: &str = "sending a domain event";

/// An EventBridge bus.
#[derive(Debug, Clone)]
pub struct Bus {
    client: Client,
    name: String,
}

impl Bus {
    /// The bus of this name.
    #[must_use]
    pub fn new(client: Client, name: String) -> Self {
        Self { client, name }
    }
}

impl EventBus for Bus {
    async fn publish(&self, event: &DomainEvent) -> Result<(), Unavailable> {
        let detail = serde_json::to_string(event).map_err(|error| unavailable(error.to_string()))?;
        let entry = PutEventsRequestEntry::builder()
            .event_bus_name(&self.name)
            .source(SOURCE)
            .detail_type(event.r#type.as_str())
            .detail(detail)
            .build();
        let answer = self.client.put_events().entries(entry).send().await.map_err(|error| unavailable(reason_of(&error)))?;
        // The call succeeds although an entry was not taken.
        let refused = answer.entries().iter().find_map(|entry| entry.error_code());
        match refused {
            Some(code) => Err(unavailable(code.to_owned())),
            None if answer.failed_entry_count() > 0 => Err(unavailable("the bus did not take it".to_owned())),
            None => Ok(()),
        }
    }
}

fn unavailable(reason: String) -> Unavailable {
    Unavailable { what: WHAT, reason }
}

fn reason_of<E: ProvideErrorMetadata, R>(error: &SdkError<E, R>) -> String {
    match (error.code(), error) {
        (Some(code), _) => code.to_owned(),
        (None, SdkError::TimeoutError(_)) => "timed out".to_owned(),
        (None, _) => "not reachable".to_owned(),
    }
}
