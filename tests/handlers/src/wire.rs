//! The wire between the SDK and the engine, on which requests and replies get lost, and on which AWS may answer what an
//! embedded engine never does: conflicts and throttling.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_smithy_runtime_api::{
    client::{
        http::{HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::RuntimeComponents,
    },
    http::StatusCode,
};
use aws_smithy_types::body::SdkBody;
use serde_json::json;

/// What happens to a request on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireFault {
    /// It never arrives.
    LoseRequest,
    /// It takes effect, and the answer is lost.
    LoseReply,
    /// It is answered so, without an effect.
    Answer {
        /// HTTP's status.
        status: u16,
        /// The JSON body.
        body: String,
    },
}

/// A cancelled transaction's answer with these reasons, one for each operation in order.
#[must_use]
pub fn cancelled(reasons: &[&str]) -> WireFault {
    let reasons: Vec<_> = reasons.iter().map(|code| json!({"Code": code, "Message": "injected"})).collect();
    let body = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#TransactionCanceledException",
        "Message": "Transaction cancelled, please refer cancellation reasons for specific reasons",
        "CancellationReasons": reasons,
    });
    WireFault::Answer { status: 400, body: body.to_string() }
}

/// The SDK's HTTP client for a test. Clones are the same wire.
#[derive(Debug, Clone)]
pub struct Wire {
    http: SharedHttpClient,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<String>,
    planned: Vec<(&'static str, usize, WireFault)>,
}

impl Default for Wire {
    fn default() -> Self {
        Self { http: aws_smithy_http_client::Builder::new().build_http(), state: Arc::default() }
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plans a fault for the `nth` request of an operation (`TransactWriteItems`, …) from now on; 1 is the next. The SDK's own
    /// retries are requests too.
    pub fn at(&self, operation: &'static str, nth: usize, fault: WireFault) {
        let mut state = self.state();
        let number = state.calls.iter().filter(|call| *call == operation).count() + nth;
        state.planned.push((operation, number, fault));
    }

    /// How many requests of an operation there were.
    #[must_use]
    pub fn calls(&self, operation: &str) -> usize {
        self.state().calls.iter().filter(|call| *call == operation).count()
    }
}

impl HttpClient for Wire {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        let connector = self.http.http_connector(settings, components);
        SharedHttpConnector::new(WireConnector { connector, wire: self.clone() })
    }
}

#[derive(Debug)]
struct WireConnector {
    connector: SharedHttpConnector,
    wire: Wire,
}

impl HttpConnector for WireConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let mut state = self.wire.state();
        state.calls.push(operation.clone());
        let number = state.calls.iter().filter(|call| **call == operation).count();
        let planned = state.planned.iter().position(|(name, nth, _)| *name == operation && *nth == number);
        let fault = planned.map(|index| state.planned.remove(index).2);
        drop(state);
        let lost = || ConnectorError::io("lost on demand".into());
        match fault {
            None => self.connector.call(request),
            Some(WireFault::LoseRequest) => HttpConnectorFuture::ready(Err(lost())),
            Some(WireFault::LoseReply) => {
                let reply = self.connector.call(request);
                HttpConnectorFuture::new(async move { reply.await.and_then(|_| Err(lost())) })
            }
            Some(WireFault::Answer { status, body }) => {
                let status = StatusCode::try_from(status).expect("a status of HTTP");
                let mut response = HttpResponse::new(status, SdkBody::from(body));
                response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
                HttpConnectorFuture::ready(Ok(response))
            }
        }
    }
}
