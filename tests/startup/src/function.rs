//! A function's process under the Runtime API.

use std::{
    ffi::OsStr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use axum::body::Bytes;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::{process, runtime_api::RuntimeApi};

/// What the functions are told by their environment, all of them together; the AWS endpoint comes to it.
const ENVIRONMENT: [(&str, &str); 26] = [
    ("AWS_REGION", "us-east-1"),
    ("AWS_DEFAULT_REGION", "us-east-1"),
    ("AWS_ACCESS_KEY_ID", "test"),
    ("AWS_SECRET_ACCESS_KEY", "test"),
    ("AWS_LAMBDA_FUNCTION_NAME", "benchmark"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
    ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/benchmark"),
    ("AWS_LAMBDA_LOG_STREAM_NAME", "benchmark"),
    // As template.yaml has it.
    ("AWS_LC_SYS_NO_JITTER_ENTROPY", "1"),
    ("TOKENTILL_STRIPE_MODE", "test"),
    ("TOKENTILL_STRIPE_KEY_PARAMETER", "/tokentill/stripe-key"),
    ("TOKENTILL_WEBHOOK_SECRETS_PARAMETER", "/tokentill/webhook-secrets"),
    ("TOKENTILL_SERVICE_TOKENS_PARAMETER", "/tokentill/service-tokens"),
    ("TOKENTILL_WEBHOOK_URL", "https://example.com/webhooks/stripe"),
    ("TOKENTILL_PRODUCT_NAME", "Acme"),
    ("TOKENTILL_EVENT_BUS", "tokentill"),
    ("TOKENTILL_ACCOUNTS_TABLE", "accounts"),
    ("TOKENTILL_CUSTOMERS_TABLE", "customers"),
    ("TOKENTILL_PROCESSED_TABLE", "processed"),
    ("TOKENTILL_OUTBOX_TABLE", "outbox"),
    ("TOKENTILL_LEDGER_TABLE", "ledger"),
    ("TOKENTILL_TALLIES_TABLE", "tallies"),
    ("TOKENTILL_BOOKS_TABLE", "books"),
    ("TOKENTILL_CONTROL_TABLE", "control"),
    ("TOKENTILL_GATES_TABLE", "gates"),
];

/// Which queues there are, by their variables; of another AWS their URLs are others.
pub(crate) const HINT_QUEUE: &str = "TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL";
const FURTHER: [(&str, &str); 3] = [
    ("TOKENTILL_QUARANTINE_TABLE", "quarantine"),
    (HINT_QUEUE, "https://sqs.us-east-1.amazonaws.com/000000000000/account-changes.fifo"),
    ("TOKENTILL_USAGE_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/000000000000/usage"),
];

/// A program that is a function.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The program, with its arguments.
    pub(crate) command: Vec<std::ffi::OsString>,
    /// What it is told beside the rest.
    pub(crate) variables: Vec<(String, String)>,
}

impl Program {
    /// A binary that needs no more than what all functions are told.
    #[must_use]
    pub(crate) fn binary(path: &Path) -> Self {
        Self { command: vec![path.as_os_str().to_owned()], variables: Vec::new() }
    }
}

/// A function that has started and asks for its next event.
#[derive(Debug)]
pub(crate) struct Function {
    process: Child,
    pid: u32,
    api: RuntimeApi,
    /// From before its process was made to its first question for an event.
    pub(crate) started_in: Duration,
    /// The processor time that took.
    pub(crate) start_cpu: Duration,
}

impl Function {
    /// Starts it. It has an account's item to read, and `aws` as its AWS unless its own variables say otherwise.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn start(program: &Program, account: Value) -> Result<Self> {
        let mut api = RuntimeApi::start(account).await?;
        let (name, arguments) = program.command.split_first().context("no program")?;
        let mut command = Command::new(name);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").as_deref().unwrap_or(OsStr::new("")))
            .envs(ENVIRONMENT)
            .envs(FURTHER)
            .env("AWS_LAMBDA_RUNTIME_API", &api.address)
            .env("AWS_ENDPOINT_URL", format!("http://{}", api.address))
            .envs(program.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true);
        let began = Instant::now();
        let process = command.spawn().with_context(|| format!("cannot start {}", name.display()))?;
        let pid = process.id().context("it ended at once")?;
        let ready = api.ready().await.with_context(|| format!("starting {}", name.display()))?;
        let start_cpu = process::cpu(pid)?;
        Ok(Self { process, pid, api, started_in: ready.saturating_duration_since(began), start_cpu })
    }

    /// Gives it an event; what it answers, and how long that took.
    ///
    /// # Errors
    /// It fails.
    pub(crate) async fn invoke(&mut self, event: Vec<u8>) -> Result<(Bytes, Duration)> {
        self.api.invoke(Bytes::from(event)).await
    }

    /// The processor time that it has used so far.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        process::cpu(self.pid)
    }

    /// The most memory that it ever had, in kilobytes.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn most_memory_kb(&self) -> Result<u64> {
        process::most_memory_kb(self.pid)
    }

    /// Ends it.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) async fn end(mut self) -> Result<()> {
        Ok(self.process.kill().await?)
    }
}
