//! The wire between the SDK and the engine, on which requests and replies get lost, and on which AWS may answer what an
//! embedded engine never does: conflicts, and throttling of a partition key that gets too many writes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

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
use serde_json::{Value, json};

use crate::units::{PartitionKey, Units, Write};

/// How long an answer that we make takes: as long as one of DynamoDB's.
const ANSWERS_AFTER: Duration = Duration::from_millis(5);

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

/// What a busy DynamoDB does to writes by chance and by its limits.
#[derive(Debug, Clone, Copy)]
pub struct Accidents {
    /// Of a hundred transactions, how many meet another one and are cancelled.
    pub conflicts_percent: u8,
    /// How many write units a partition key takes in a second of wall time; what exceeds them is throttled.
    pub units_per_second: u64,
    /// Makes chance repeat itself.
    pub seed: u64,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<String, usize>,
    planned: Vec<(&'static str, usize, WireFault)>,
    whenever: Vec<(&'static str, &'static str, WireFault)>,
    load: Option<Load>,
}

/// Writes are counted, and may meet accidents.
#[derive(Debug)]
struct Load {
    units: Units,
    accidents: Option<Accidents>,
    chance: fastrand::Rng,
    began: Instant,
    /// What each partition key took in the present second.
    second: (u64, BTreeMap<PartitionKey, u64>),
    throttled: usize,
    conflicts: usize,
}

impl Load {
    /// Counts a request's writes, unless an accident keeps it from taking effect.
    fn admit(&mut self, operation: &str, writes: &[Write]) -> Option<WireFault> {
        let Some(accidents) = self.accidents else {
            self.units.spend(writes);
            return None;
        };
        if operation == "TransactWriteItems" && self.chance.u8(..100) < accidents.conflicts_percent {
            self.conflicts += 1;
            let mut reasons = vec!["None"; writes.len()];
            reasons[self.chance.usize(..writes.len())] = "TransactionConflict";
            return Some(cancelled(&reasons));
        }
        let second = self.began.elapsed().as_secs();
        if self.second.0 != second {
            self.second = (second, BTreeMap::new());
        }
        let mut taken = self.second.1.clone();
        let mut reasons = Vec::with_capacity(writes.len());
        for write in writes {
            let mut fits = true;
            for (key, units) in &write.costs {
                let of_key = taken.entry(key.clone()).or_default();
                *of_key += units;
                fits &= *of_key <= accidents.units_per_second;
            }
            let throttled = ["ThrottlingError", "ProvisionedThroughputExceeded"][self.chance.usize(..2)];
            reasons.push(if fits { "None" } else { throttled });
        }
        if reasons.iter().any(|reason| *reason != "None") {
            self.throttled += 1;
            if operation == "TransactWriteItems" && self.chance.u8(..4) > 0 {
                return Some(cancelled(&reasons));
            }
            let kind = ["ThrottlingException", "ProvisionedThroughputExceededException"][self.chance.usize(..2)];
            return Some(refused(kind, "injected"));
        }
        self.second.1 = taken;
        self.units.spend(writes);
        None
    }
}

/// An error of DynamoDB's as an answer.
#[must_use]
pub fn refused(kind: &str, message: &str) -> WireFault {
    let body = json!({"__type": format!("com.amazonaws.dynamodb.v20120810#{kind}"), "message": message});
    WireFault::Answer { status: 400, body: body.to_string() }
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
        let number = state.calls.get(operation).copied().unwrap_or(0) + nth;
        state.planned.push((operation, number, fault));
    }

    /// From now on does this to every request of an operation whose body contains a text.
    pub fn whenever(&self, operation: &'static str, contains: &'static str, fault: WireFault) {
        self.state().whenever.push((operation, contains, fault));
    }

    /// From now on counts the units of every write, and lets accidents happen to it.
    pub fn load(&self, accidents: Option<Accidents>) {
        let chance = fastrand::Rng::with_seed(accidents.map_or(0, |accidents| accidents.seed));
        let (began, second) = (Instant::now(), (0, BTreeMap::new()));
        let load = Load { units: Units::default(), accidents, chance, began, second, throttled: 0, conflicts: 0 };
        self.state().load = Some(load);
    }

    /// From now on counts afresh; what stands stays known.
    pub fn load_again(&self) {
        if let Some(load) = &mut self.state().load {
            load.units.spent.clear();
        }
    }

    /// The units that were counted, and how many requests were throttled or met a conflict.
    #[must_use]
    pub fn counted(&self) -> (Units, usize, usize) {
        let state = self.state();
        let load = state.load.as_ref().expect("units are counted");
        (load.units.clone(), load.throttled, load.conflicts)
    }

    /// How many requests of an operation there were.
    #[must_use]
    pub fn calls(&self, operation: &str) -> usize {
        self.state().calls.get(operation).copied().unwrap_or(0)
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
        let number = state.calls.entry(operation.clone()).or_default();
        *number += 1;
        let number = *number;
        let planned = state.planned.iter().position(|(name, nth, _)| *name == operation && *nth == number);
        let mut fault = planned.map(|index| state.planned.remove(index).2);
        let body = request.body().bytes().unwrap_or_default();
        let contains = |text: &str| text.is_empty() || String::from_utf8_lossy(body).contains(text);
        fault = fault.or_else(|| {
            let matches = |(name, text, _): &&(&str, &str, WireFault)| *name == operation && contains(text);
            state.whenever.iter().find(matches).map(|(_, _, fault)| fault.clone())
        });
        let mut writes = Vec::new();
        if let Some(load) = &mut state.load {
            let body: Value = serde_json::from_slice(body).expect("a request is JSON");
            load.units.read(&operation, &body);
            writes = load.units.writes(&operation, &body);
            fault = load.admit(&operation, &writes).or(fault);
            if matches!(&fault, Some(WireFault::Answer { status: 200, .. })) {
                load.units.apply(std::mem::take(&mut writes));
            }
        }
        drop(state);
        let lost = || ConnectorError::io("lost on demand".into());
        match fault {
            None if !writes.is_empty() => {
                let (reply, wire) = (self.connector.call(request), self.wire.clone());
                HttpConnectorFuture::new(async move {
                    let reply = reply.await?;
                    if let (true, Some(load)) = (reply.status().is_success(), &mut wire.state().load) {
                        load.units.apply(writes);
                    }
                    Ok(reply)
                })
            }
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
                HttpConnectorFuture::new(async move {
                    tokio::time::sleep(ANSWERS_AFTER).await;
                    Ok(response)
                })
            }
        }
    }
}
