//! The whole local stack: started, described, ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stripe_sandbox::Sandbox;
use till::setup::{self, Setup};
use tokentill::clock::SystemClock;
use tokentill::domain::price_list::PriceList;
use tokentill::ports::Secret;
use tokentill::stripe::FixedKey;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::JoinSet;

use crate::aws::Aws;
use crate::deployment::{self, EMAIL_FROM, FUNCTIONS, STACK};
use crate::ministack::{MiniStack, REGION};
use crate::place::local_folder;
use crate::process::Identity;
use crate::progress::{poll, step};
use crate::stripe::{Stripe, data};
use crate::tools::Tools;

/// Schedules cannot go below a minute; the local stack reports this often.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The parameters that the template and `cargo till setup` name by default.
const SERVICE_TOKENS: &str = "/tokentill/service-tokens";
const WEBHOOK_SECRETS: &str = "/tokentill/webhook-secrets";

/// The role of the queue that every domain event is copied to.
const EVENTS_ROLE: &str = "domain_events";

/// How to start a stack.
#[derive(Debug, Clone)]
pub struct Options {
    /// Port of AWS; 0 for a free one.
    pub aws_port: u16,
    /// Port of the Stripe sandbox; 0 for a free one.
    pub stripe_port: u16,
    /// Where the stack keeps its files: logs, AWS's state, the build, `stack.json`. Stacks in different folders do not meet.
    pub folder: PathBuf,
    /// Another Stripe than the sandbox, and its key.
    pub stripe: Option<OtherStripe>,
    /// Whether usage is reported by itself, every ten seconds. Without it, call [`Stack::report`].
    pub report: bool,
}

/// A Stripe that we did not start.
#[derive(Debug, Clone)]
pub struct OtherStripe {
    /// Base URL of its API.
    pub url: String,
    /// A key that it takes.
    pub key: String,
    /// The signing secret of what forwards its events here; without one an endpoint is registered there.
    pub webhook_secret: Option<String>,
}

impl Options {
    /// As `cargo local` starts, but for the ports: free ones.
    #[must_use]
    pub fn in_folder(folder: PathBuf) -> Self {
        Self { aws_port: 0, stripe_port: 0, folder, stripe: None, report: true }
    }
}

impl Default for Options {
    /// A stack of a test, on free ports, in a folder of its own below `target/local/tests`.
    fn default() -> Self {
        Self::in_folder(local_folder().join("tests").join(random_text()))
    }
}

/// What `stack.json` says. Every URL works with any HTTP client.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StackJson {
    /// Base URL of the access API; `/v1/access` comes after it.
    pub api_url: String,
    /// Where Stripe's events go.
    pub webhook_url: String,
    /// Where AI services send usage.
    pub usage_queue_url: String,
    /// AWS.
    pub aws_endpoint_url: String,
    /// Its Region.
    pub aws_region: String,
    /// Stripe.
    pub stripe_api_url: String,
    /// A key that it takes.
    pub stripe_api_key: String,
    /// What webhooks with snapshots are signed with.
    pub webhook_secret: String,
    /// A bearer token of the access API.
    pub service_token: String,
    /// The functions' names by role (`webhook`, `sync`, …).
    pub functions: BTreeMap<String, String>,
    /// The queues' names by role (`usage`, `usage_dead`, `account_changes`, `account_changes_dead`), and that of the queue that every
    /// domain event is copied to (`domain_events`), which only the local stack has.
    pub queues: BTreeMap<String, String>,
    /// The tables' names by role (`accounts`, `ledger`, …).
    pub tables: BTreeMap<String, String>,
}

/// A running stack. End it with [`Stack::shutdown`]; dropped, it takes its processes along all the same.
#[derive(Debug)]
pub struct Stack {
    json: StackJson,
    presence: Presence,
    aws: Aws,
    stripe: Stripe,
    ministack: MiniStack,
    sandbox: Option<Sandbox>,
    /// Held by whoever has the reporter invoked every ten seconds, while it runs.
    reporting: Arc<Mutex<()>>,
    background: JoinSet<()>,
}

/// While this lives, usage is not reported by itself.
#[derive(Debug)]
pub struct ReportingPaused(#[expect(dead_code, reason = "it is held, and let go when dropped")] OwnedMutexGuard<()>);

/// When a reporter is killed that is sending a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KilledWhen {
    /// The report is on its way, and never arrives.
    NotYetTaken,
    /// Stripe has taken it, and its answer is on its way.
    Taken,
}

impl Stack {
    /// Installs the tools, builds the functions, starts AWS and Stripe and deploys the stack.
    ///
    /// # Errors
    /// Any of it failed; the text says what to do.
    pub async fn start(options: Options) -> Result<Self> {
        let folder = options.folder;
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let presence = Presence::claim(folder.clone())?;

        let tools = Tools::ready().await?;
        let build = deployment::build(&tools, &folder).await?;
        let ministack = step("starting AWS (MiniStack)", MiniStack::start(&tools, &folder, options.aws_port)).await?;
        let aws = Aws::new(ministack.url())?;

        let (sandbox, stripe_url, stripe_key, forwarded_secret) = match options.stripe {
            Some(other) => (None, other.url, other.key, other.webhook_secret),
            None => {
                let sandbox = Sandbox::start(options.stripe_port).await.context("the Stripe sandbox does not start")?;
                let url = sandbox.url();
                (Some(sandbox), url, format!("sk_test_{}", random_text()), None)
            }
        };
        let stripe = Stripe::new(&stripe_url, &stripe_key)?;
        let account = SetUp { aws: &aws, url: &stripe_url, key: &stripe_key };
        let store_key = Some(Secret::new(&stripe_key));
        step("setting up Stripe", account.apply(setup::Options { store_key, ..setup::Options::default() })).await?;
        aws.verify_sender(EMAIL_FROM).await?;
        deployment::deploy(&tools, &folder, &build, aws.url(), &stripe_url).await?;
        aws.mend_event_sources().await?;
        aws.mend_email_grant(&format!("{STACK}-notifier")).await?;

        let outputs = aws.outputs(STACK).await?;
        let output = |name: &str| outputs.get(name).cloned().with_context(|| format!("template.yaml has no output {name}"));
        let api_url = format!("{}/_aws/execute-api/{}", aws.url(), output("ApiId")?);
        let webhook_url = format!("{api_url}/webhooks/stripe");
        // The address is only known now: this AWS serves the API under a path of its own.
        aws.set_variable(&format!("{STACK}-sweeper"), "TOKENTILL_WEBHOOK_URL", &webhook_url).await?;
        let webhook_secret = account.webhook(&webhook_url, forwarded_secret, sandbox.is_some()).await?;
        if sandbox.is_some() {
            let thin = stripe.register_thin(&webhook_url).await?;
            account.add_secret(&thin).await?;
        }
        let service_token = aws.secret(SERVICE_TOKENS).await?.context("setup stored no service token")?;
        let events_queue = aws.subscribe_queue(&output("DomainEventsBusName")?).await?;

        let json = StackJson {
            usage_queue_url: output("UsageQueueUrl")?,
            aws_endpoint_url: aws.url().to_owned(),
            aws_region: REGION.to_owned(),
            stripe_api_url: stripe_url,
            stripe_api_key: stripe_key,
            functions: FUNCTIONS.iter().map(|name| ((*name).to_owned(), format!("{STACK}-{name}"))).collect(),
            queues: queue_names(&outputs).into_iter().chain([(EVENTS_ROLE.to_owned(), events_queue)]).collect(),
            tables: table_names(&outputs),
            api_url,
            webhook_url,
            webhook_secret,
            service_token,
        };
        let mut stack =
            Self { json, presence, aws, stripe, ministack, sandbox, reporting: Arc::default(), background: JoinSet::new() };
        stack.wait_until_it_answers().await?;
        if options.report {
            let (aws, reporter, turn) = (stack.aws.clone(), stack.function("reporter")?, stack.reporting.clone());
            stack.background.spawn(async move { keep_reporting(&aws, &reporter, &turn).await });
        }
        stack.presence.announce(&stack.json)?;
        Ok(stack)
    }

    /// Whether `cargo till setup` would find nothing to do.
    ///
    /// # Errors
    /// Stripe or SSM cannot be looked at.
    pub async fn is_set_up(&self) -> Result<bool> {
        let account = SetUp { aws: &self.aws, url: &self.json.stripe_api_url, key: &self.json.stripe_api_key };
        let options = setup::Options { webhook_url: Some(self.json.webhook_url.clone()), ..setup::Options::default() };
        Ok(account.setup(options)?.plan().await?.is_done())
    }

    /// What `stack.json` says.
    #[must_use]
    pub fn json(&self) -> &StackJson {
        &self.json
    }

    /// The stack's AWS.
    #[must_use]
    pub fn aws(&self) -> &Aws {
        &self.aws
    }

    /// The stack's Stripe.
    #[must_use]
    pub fn stripe(&self) -> &Stripe {
        &self.stripe
    }

    /// A function's name by its role.
    ///
    /// # Errors
    /// There is no such function.
    pub fn function(&self, role: &str) -> Result<String> {
        self.json.functions.get(role).cloned().with_context(|| format!("there is no function {role}"))
    }

    /// A table's name by its role.
    ///
    /// # Errors
    /// There is no such table.
    pub fn table(&self, role: &str) -> Result<String> {
        self.json.tables.get(role).cloned().with_context(|| format!("there is no table {role}"))
    }

    /// The domain events that were sent so far, each as its subscribers get it. They stay in their queue.
    ///
    /// # Errors
    /// The queue cannot be read.
    pub async fn domain_events(&self) -> Result<Vec<Value>> {
        let queue = self.json.queues.get(EVENTS_ROLE).context("there is no queue of domain events")?;
        self.aws.messages(queue).await?.iter().map(|body| Ok(serde_json::from_str(body)?)).collect()
    }

    /// Reports everything now.
    ///
    /// # Errors
    /// It failed, or others kept the reporter's lease.
    pub async fn report(&self) -> Result<()> {
        let began = Instant::now();
        // A reporter that was killed leaves a lease of half a minute.
        while began.elapsed() < Duration::from_secs(60) {
            let run = self.order("report".into()).await?;
            if run.get("leased") != Some(&Value::Bool(true)) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        anyhow::bail!("another reporter kept the lease")
    }

    /// Waits until the reporter that runs by itself, if one does, has ended, and lets none begin.
    pub async fn pause_reporting(&self) -> ReportingPaused {
        ReportingPaused(self.reporting.clone().lock_owned().await)
    }

    /// Orders reports until there is something to report, and kills the reporter's process (`SIGKILL`) while it sends the first
    /// report. The next one goes on once the lease of the killed one is over.
    ///
    /// # Errors
    /// Nothing comes to be reported within 90 seconds, or the process cannot be found or killed.
    pub async fn kill_reporter(&self, _alone: &ReportingPaused, when: KilledWhen) -> Result<()> {
        let function = self.function("reporter")?;
        // The sandbox keeps the reporter waiting for longer than it takes to find it, and then answers nothing.
        let (path, after_effect) = ("/v1/billing/meter_events", (when == KilledWhen::Taken).to_string());
        let fault = [("path", path), ("method", "POST"), ("drop", "true"), ("delay_ms", "9000"), ("after_effect", &after_effect)];
        self.stripe.post("/_sandbox/faults", &fault).await?;
        let taken_before = self.taken_reports().await?;
        let kill = async {
            poll("the reporter to send", Duration::from_secs(90), Duration::from_millis(20), || async {
                let faults = self.stripe.get("/_sandbox/faults", &[]).await?;
                let is_left = |fault: &Value| fault.get("left").and_then(Value::as_i64) > Some(0);
                Ok((!data(&faults).any(is_left)).then_some(()))
            })
            .await?;
            let taken = taken_before + u64::from(when == KilledWhen::Taken);
            poll("Stripe to take the report", Duration::from_secs(5), Duration::from_millis(20), || async {
                Ok((self.taken_reports().await? >= taken).then_some(()))
            })
            .await?;
            self.ministack.kill_function(&function).await
        };
        let keep_ordering = async {
            loop {
                if let Err(error) = self.order("report".into()).await {
                    return error;
                }
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        };
        // An order that is killed is not waited for: the emulator answers it only after the function's timeout.
        tokio::select! {
            killed = kill => killed,
            error = keep_ordering => Err(error),
        }
    }

    /// How many meter events the sandbox has taken.
    async fn taken_reports(&self) -> Result<u64> {
        Ok(data(&self.stripe.get("/_sandbox/meter_events", &[]).await?).map(|_| 1).sum())
    }

    /// Gives the reporter an order, and what came of it.
    ///
    /// # Errors
    /// It failed.
    pub async fn order(&self, order: Value) -> Result<Value> {
        let reporter = self.function("reporter")?;
        let mut event = scheduled_event(&reporter);
        if let Some(fields) = event.as_object_mut() {
            fields.insert("order".to_owned(), order);
        }
        invoke(&self.aws, &reporter, &event).await
    }

    /// Runs the sweeper now.
    ///
    /// # Errors
    /// It failed.
    pub async fn sweep(&self) -> Result<()> {
        let sweeper = self.function("sweeper")?;
        invoke(&self.aws, &sweeper, &scheduled_event(&sweeper)).await.map(drop)
    }

    /// Ends every process, and removes `stack.json` and all state; only the logs stay.
    ///
    /// # Errors
    /// A process does not end.
    pub async fn shutdown(mut self) -> Result<()> {
        // First, so that nobody begins to use what is about to end.
        self.presence.withdraw();
        self.background.shutdown().await;
        self.ministack.end().await?;
        for state in ["ministack", "build"] {
            let _ = std::fs::remove_dir_all(self.presence.folder.join(state));
        }
        if let Some(sandbox) = self.sandbox {
            sandbox.shutdown().await;
        }
        Ok(())
    }

    async fn wait_until_it_answers(&self) -> Result<()> {
        let http = reqwest::Client::new();
        let url = format!("{}/v1/access?user_id=nobody", self.json.api_url);
        poll("the access API to answer", Duration::from_secs(30), Duration::from_millis(200), || async {
            let answer = http.get(&url).bearer_auth(&self.json.service_token).send().await?;
            Ok(answer.status().is_success().then_some(()))
        })
        .await
    }
}

/// Our two files in the stack's folder: whose it is, and, once everything answers, `stack.json`.
#[derive(Debug)]
struct Presence {
    folder: PathBuf,
}

impl Presence {
    /// Takes possession of the folder, unless a running process has it.
    fn claim(folder: PathBuf) -> Result<Self> {
        let path = folder.join("local.pid");
        let own = Identity::own().context("this process has no identity")?;
        if let Some(other) = Identity::read(&path).filter(|other| *other != own && other.is_running()) {
            let pid = other.pid();
            bail!("a local stack runs in {} already. End it with Ctrl-C there, or: kill {pid}", folder.display());
        }
        own.write(&path)?;
        let presence = Self { folder };
        // What a killed predecessor announced is no longer true.
        presence.withdraw();
        Ok(presence)
    }

    /// Writes `stack.json`, last and in one move: who reads it finds everything running.
    fn announce(&self, json: &StackJson) -> Result<()> {
        let path = self.folder.join("stack.json");
        let unfinished = self.folder.join("stack.json.new");
        std::fs::write(&unfinished, serde_json::to_vec_pretty(json)?)
            .and_then(|()| std::fs::rename(&unfinished, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn withdraw(&self) {
        let _ = std::fs::remove_file(self.folder.join("stack.json"));
    }

    fn end(&self) {
        self.withdraw();
        let _ = std::fs::remove_file(self.folder.join("local.pid"));
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.end();
    }
}

/// What `cargo till setup` does in a real account.
struct SetUp<'a> {
    aws: &'a Aws,
    url: &'a str,
    key: &'a str,
}

impl SetUp<'_> {
    fn setup(&self, options: setup::Options) -> Result<Setup<FixedKey, Aws, SystemClock>> {
        let (stripe, mode) = setup::client(Some(self.key), false, Some(self.url))?;
        let (parameters, list) = (self.aws.clone(), PriceList::shipped()?);
        Ok(Setup { stripe, mode, parameters, clock: SystemClock, list, options })
    }

    async fn apply(&self, options: setup::Options) -> Result<()> {
        Ok(self.setup(options)?.apply(|_| ()).await?)
    }

    async fn add_secret(&self, secret: &str) -> Result<()> {
        let further_webhook_secret = Some(Secret::new(secret));
        self.apply(setup::Options { further_webhook_secret, ..setup::Options::default() }).await
    }

    /// Registers the endpoint; answers its secret. Stripe's own API takes no loopback URL; then the events have to be forwarded.
    async fn webhook(&self, webhook_url: &str, forwarded_secret: Option<String>, is_ours: bool) -> Result<String> {
        let secret = match forwarded_secret {
            Some(secret) => secret,
            None => match self.apply(setup::Options { webhook_url: Some(webhook_url.to_owned()), ..Default::default() }).await {
                Ok(()) => {
                    let secrets = self.aws.secret(WEBHOOK_SECRETS).await?.unwrap_or_default();
                    let newest = secrets.split_whitespace().next_back();
                    return Ok(newest.context("setup stored no signing secret")?.to_owned());
                }
                Err(error) if is_ours => return Err(error),
                Err(error) => {
                    eprintln!(
                        "local: this Stripe takes no webhook endpoint at {webhook_url} ({error:#}).\n\
                         local: forward its events: stripe listen --forward-to {webhook_url}\n\
                         local: and start again with STRIPE_WEBHOOK_SECRET=\"$(stripe listen --print-secret)\""
                    );
                    format!("whsec_{}", random_text())
                }
            },
        };
        self.add_secret(&secret).await?;
        Ok(secret)
    }
}

async fn keep_reporting(aws: &Aws, reporter: &str, turn: &Mutex<()>) {
    let mut tick = tokio::time::interval(REPORT_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let _turn = turn.lock().await;
        if let Err(error) = invoke(aws, reporter, &scheduled_event(reporter)).await {
            eprintln!("local: the reporter failed: {error:#}");
        }
    }
}

/// What a function's schedule sends it.
fn scheduled_event(function: &str) -> Value {
    json!({
        "version": "0",
        "id": random_text(),
        "detail-type": "Scheduled Event",
        "source": "aws.scheduler",
        "account": "000000000000",
        "time": now(),
        "region": REGION,
        "resources": [format!("arn:aws:scheduler:{REGION}:000000000000:schedule/default/{function}")],
        "detail": {},
    })
}

/// Invokes a function, and its answer.
async fn invoke(aws: &Aws, function: &str, event: &Value) -> Result<Value> {
    let invoked = aws.invoke(function, event).await?;
    anyhow::ensure!(!invoked.failed, "{function}: {}", invoked.payload);
    Ok(invoked.payload)
}

/// The present second, as AWS writes it.
#[expect(clippy::disallowed_methods, reason = "the local stack plays AWS's scheduler, which has a clock")]
fn now() -> String {
    jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap_or_default().to_string()
}

fn random_text() -> String {
    std::iter::repeat_with(fastrand::alphanumeric).take(32).collect()
}

/// `UsageDeadLetterQueueUrl` -> (`usage_dead`, the queue's name).
fn queue_names(outputs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    outputs
        .iter()
        .filter_map(|(output, url)| {
            let role = output.strip_suffix("QueueUrl")?.replace("DeadLetter", "Dead");
            Some((snake_case(&role), url.rsplit('/').next()?.to_owned()))
        })
        .collect()
}

/// `LedgerTableName` -> (`ledger`, the table's name).
fn table_names(outputs: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    outputs.iter().filter_map(|(output, name)| Some((snake_case(output.strip_suffix("TableName")?), name.clone()))).collect()
}

fn snake_case(camel: &str) -> String {
    let mut snake = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_become_roles() {
        let outputs = BTreeMap::from([
            ("AccountChangesDeadLetterQueueUrl".to_owned(), "http://127.0.0.1:1/0/tokentill-x.fifo".to_owned()),
            ("UsageQueueArn".to_owned(), "arn:aws:sqs:::u".to_owned()),
            ("LedgerTableName".to_owned(), "tokentill-ledger".to_owned()),
        ]);
        assert_eq!(queue_names(&outputs), BTreeMap::from([("account_changes_dead".to_owned(), "tokentill-x.fifo".to_owned())]));
        assert_eq!(table_names(&outputs), BTreeMap::from([("ledger".to_owned(), "tokentill-ledger".to_owned())]));
    }
}
