//! A small equivalent of the API that a function's process asks for its next event, on loopback, and what little of AWS the
//! functions ask for while they start. One serves one process.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Response, StatusCode},
    routing::{get, post},
};
use benches::world::WEBHOOK_SECRET;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinSet,
    time::timeout,
};

/// Nothing that is measured takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process told.
#[derive(Debug)]
enum Told {
    /// It asks for an event, since this moment.
    Ready(Instant),
    /// What it answered to one.
    Answer(Bytes),
    /// That it failed, at its start or with an event.
    Failed(String),
}

struct Shared {
    told: mpsc::UnboundedSender<Told>,
    events: Mutex<mpsc::UnboundedReceiver<Bytes>>,
    account: Value,
}

/// The API of one process.
#[derive(Debug)]
pub(crate) struct RuntimeApi {
    /// `127.0.0.1:port`, as `AWS_LAMBDA_RUNTIME_API` has it.
    pub(crate) address: String,
    told: mpsc::UnboundedReceiver<Told>,
    events: mpsc::UnboundedSender<Bytes>,
    /// The server ends with this value.
    _server: JoinSet<()>,
}

impl RuntimeApi {
    /// Listens on a free port. `account` is what every account's item is, in DynamoDB's own JSON.
    ///
    /// # Errors
    /// There is no free port.
    pub(crate) async fn start(account: Value) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (told, heard) = mpsc::unbounded_channel();
        let (events, waiting) = mpsc::unbounded_channel();
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(answered))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(failed))
            .route("/2018-06-01/runtime/init/error", post(failed))
            .route("/", post(aws))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::new(Shared { told, events: Mutex::new(waiting), account }));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, told: heard, events, _server: server })
    }

    /// Waits until the process asks for an event; since when it does.
    ///
    /// # Errors
    /// It failed, or it does not ask.
    pub(crate) async fn ready(&mut self) -> Result<Instant> {
        match self.heard().await? {
            Told::Ready(at) => Ok(at),
            told => bail!("instead of asking for an event: {told:?}"),
        }
    }

    /// Gives the process, which asks for one, an event; what it answers, and how long that took.
    ///
    /// # Errors
    /// It failed.
    pub(crate) async fn invoke(&mut self, event: Bytes) -> Result<(Bytes, Duration)> {
        let began = Instant::now();
        self.events.send(event).ok().context("the Runtime API has ended")?;
        let answer = match self.heard().await? {
            Told::Answer(answer) => answer,
            told => bail!("instead of answering: {told:?}"),
        };
        let took = began.elapsed();
        self.ready().await?;
        Ok((answer, took))
    }

    async fn heard(&mut self) -> Result<Told> {
        match timeout(PATIENCE, self.told.recv()).await.context("nothing is heard of the process")?.context("it has ended")? {
            Told::Failed(error) => bail!("the function fails: {error}"),
            told => Ok(told),
        }
    }
}

async fn next(State(shared): State<Arc<Shared>>) -> Response<Body> {
    let _ = shared.told.send(Told::Ready(Instant::now()));
    let Some(event) = shared.events.lock().await.recv().await else { return answer(StatusCode::GONE, Body::empty()) };
    let mut response = answer(StatusCode::OK, Body::from(event));
    let headers = response.headers_mut();
    // A day of 9999: no function of a benchmark runs out of time.
    for (name, value) in [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
        ("lambda-runtime-deadline-ms", "253402300799000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:000000000000:function:benchmark"),
        ("lambda-runtime-trace-id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0"),
        ("content-type", "application/json"),
    ] {
        headers.insert(name, axum::http::HeaderValue::from_static(value));
    }
    response
}

async fn answered(State(shared): State<Arc<Shared>>, Path(_): Path<String>, body: Bytes) -> StatusCode {
    let _ = shared.told.send(Told::Answer(body));
    StatusCode::ACCEPTED
}

async fn failed(State(shared): State<Arc<Shared>>, body: Bytes) -> StatusCode {
    let _ = shared.told.send(Told::Failed(String::from_utf8_lossy(&body).into_owned()));
    StatusCode::ACCEPTED
}

/// SSM, DynamoDB and SQS as far as a start and a batch of usage need them: each answers at once.
async fn aws(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response<Body> {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let body = match target.rsplit('.').next().unwrap_or_default() {
        "GetParameter" => {
            json!({"Parameter": {"Name": "benchmark", "Type": "SecureString", "Value": WEBHOOK_SECRET, "Version": 1}})
        }
        "GetItem" => json!({"Item": shared.account}),
        "TransactWriteItems" => json!({}),
        "SendMessage" => json!({"MessageId": "19dd0b57-b21e-4ac1-bd88-01bbb068cb78", "SequenceNumber": "1"}),
        _ => return answer(StatusCode::NOT_IMPLEMENTED, Body::from(target.to_owned())),
    };
    answer(StatusCode::OK, Body::from(body.to_string()))
}

fn answer(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}
