//! `cargo till`: see docs/operations.md.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use aws_config::BehaviorVersion;
use clap::{Args, Parser, Subcommand, ValueEnum};
use till::{
    DeadLetters, Filter, Queue, Retry, Till, explain, import, list, parse_reason, queue_url, redrive,
    setup::{self, Options, Setup, Ssm},
};
use tokentill::{
    clock::SystemClock,
    config,
    domain::{
        counting::QuarantineReason,
        price_list::PriceList,
        time::{EpochSecs, UtcDay},
    },
    dynamodb::{Store, Tables},
    ports::{Clock, Secret},
    sqs::{HintQueue, UsageQueue},
    stripe::{FixedKey, SecretKey, StripeClient},
};

/// Sets up Stripe for a stack, imports its customers, looks at the quarantine and the dead letters and sends them again. Each is
/// safe to repeat on any day: a request is counted at most once, and of what is counted nothing is deleted.
#[derive(Debug, Parser)]
#[command(
    name = "cargo till",
    after_help = "Credentials and Region are found as the AWS CLI finds them in the environment and in ~/.aws. With SSO, first:\n  \
                  eval \"$(aws configure export-credentials --format env)\""
)]
struct Arguments {
    /// The stack's name.
    #[arg(long, default_value = "tokentill", global = true)]
    stack: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes what the price list needs at Stripe, registers the webhook endpoint, fills the stack's secrets. Shows a plan; --apply
    /// does it. The key is taken from STRIPE_API_KEY.
    Setup(SetupArguments),
    /// Has every customer of Stripe that has metadata.user_id looked at. The key is taken from STRIPE_API_KEY.
    Import {
        /// Only counts them.
        #[arg(long)]
        dry_run: bool,
        /// Goes on after this customer, where an import was interrupted.
        #[arg(long)]
        starting_after: Option<String>,
        /// The key may be a live key.
        #[arg(long)]
        live: bool,
    },
    /// Input that could be neither counted nor refused to its sender.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Moves dead letters back to the queue they came from, once the cause is mended.
    Redrive {
        /// Which queue.
        queue: QueueName,
    },
}

#[derive(Debug, Subcommand)]
enum QuarantineCommand {
    /// Lists entries, newest day first.
    List {
        /// Only this UTC day, YYYY-MM-DD.
        #[arg(long, value_parser = day, conflicts_with = "days")]
        day: Option<UtcDay>,
        /// So many days back, today included.
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=400))]
        days: u16,
        /// Only of this reason, as the table names it.
        #[arg(long, value_parser = parse_reason)]
        reason: Option<QuarantineReason>,
        /// Only of this user.
        #[arg(long)]
        user: Option<String>,
    },
    /// Shows one entry whole: what happened, what to do, the input.
    Explain {
        #[command(flatten)]
        entry: EntryName,
    },
    /// Sends an entry's input again, and marks the entry. Refuses what would come straight back.
    Retry {
        #[command(flatten)]
        entry: EntryName,
        /// The event's right moment, RFC 3339.
        #[arg(long, value_parser = moment)]
        timestamp: Option<EpochSecs>,
        /// A file with the corrected input of what could not be read. Keep its request_id: by it a request is counted once.
        #[arg(long)]
        input: Option<PathBuf>,
        /// The event of a conflict was in truth another request: it gets an id of its own, the same one at every retry.
        #[arg(long)]
        as_other_request: bool,
        /// The stack's LedgerRetentionDays, if a request is refused because the ledger may have forgotten it.
        #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u16).range(45..=3_650))]
        ledger_days: u16,
    },
}

#[derive(Debug, Args)]
struct SetupArguments {
    /// Does what the plan says.
    #[arg(long)]
    apply: bool,
    /// The key may be a live key: what this makes is then sold for real money.
    #[arg(long)]
    live: bool,
    /// The stack's output WebhookUrl: Stripe's events are to go there.
    #[arg(long)]
    webhook_url: Option<String>,
    /// Makes a new webhook endpoint in place of the present one, and stores its secret; a later run deletes the old one.
    #[arg(long, requires = "webhook_url")]
    rotate_webhook: bool,
    /// Stores the functions' key: TOKENTILL_FUNCTIONS_KEY, a restricted key, or without it STRIPE_API_KEY.
    #[arg(long)]
    store_key: bool,
    /// Where the customer portal leads back to.
    #[arg(long)]
    return_url: Option<String>,
    /// The stack's WebhookSecretsParameter.
    #[arg(long, default_value_t = Options::default().webhook_secrets_parameter)]
    webhook_secrets_parameter: String,
    /// The stack's ServiceTokensParameter.
    #[arg(long, default_value_t = Options::default().service_tokens_parameter)]
    service_tokens_parameter: String,
    /// The stack's StripeKeyParameter.
    #[arg(long, default_value_t = Options::default().stripe_key_parameter)]
    stripe_key_parameter: String,
    /// The stack's SecretsTtlSeconds: a replaced webhook endpoint is deleted only when every function knows the new secret.
    #[arg(long, default_value_t = Options::default().secrets_ttl_secs, value_parser = clap::value_parser!(u16).range(1..=3_600))]
    secrets_ttl: u16,
}

#[derive(Debug, Args)]
struct EntryName {
    /// The entry's id, as the list shows it.
    id: String,
    /// The entry's day, as the list shows it.
    #[arg(long, value_parser = day)]
    day: UtcDay,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum QueueName {
    Usage,
    AccountChanges,
}

fn day(text: &str) -> Result<UtcDay, String> {
    UtcDay::parse(text).ok_or_else(|| "a day is YYYY-MM-DD".to_owned())
}

fn moment(text: &str) -> Result<EpochSecs, String> {
    EpochSecs::parse_rfc3339(text).ok_or_else(|| "a moment is RFC 3339, as 2026-11-22T12:00:00Z".to_owned())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match Box::pin(run(Arguments::parse())).await {
        Ok(answer) => {
            println!("{}", answer.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("till: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<String> {
    let limits =
        aws_config::defaults(BehaviorVersion::latest()).timeout_config(config::timeouts()).retry_config(config::retries());
    let aws = limits.load().await;
    if aws.region().is_none() {
        bail!("no Region is set; set AWS_REGION to that of the stack");
    }
    let stack = arguments.stack;
    let sqs = aws_sdk_sqs::Client::new(&aws);
    let table = |name: &str| format!("{stack}-{name}");
    let tables =
        Tables { accounts: table("accounts"), ledger: table("ledger"), quarantine: table("quarantine"), ..Tables::default() };
    let store = Store::new(aws_sdk_dynamodb::Client::new(&aws), tables);
    match arguments.command {
        Command::Setup(wanted) => set_up(wanted, Ssm(aws_sdk_ssm::Client::new(&aws))).await,
        Command::Import { dry_run, starting_after, live } => imported(&sqs, &stack, dry_run, starting_after, live).await,
        Command::Redrive { queue } => redriven(&sqs, &stack, queue).await,
        Command::Quarantine(QuarantineCommand::List { day, days, reason, user }) => {
            let today = SystemClock.now();
            let days = match day {
                Some(day) => vec![day],
                None => (0..i64::from(days)).map(|ago| today.plus_days(-ago).day()).collect(),
            };
            Ok(list(&store, &days, &Filter { reason, user_id: user }).await?)
        }
        Command::Quarantine(QuarantineCommand::Explain { entry }) => {
            Ok(explain(&till::entry(&store, &entry.id, entry.day).await?))
        }
        Command::Quarantine(QuarantineCommand::Retry { entry, timestamp, input, as_other_request, ledger_days }) => {
            let read = |path: PathBuf| {
                std::fs::read_to_string(&path).with_context(|| format!("cannot read the corrected input from {}", path.display()))
            };
            let retry = Retry { timestamp, input: input.map(read).transpose()?, as_other_request };
            let till = till(store, &sqs, stack, ledger_days).await?;
            Ok(till.retry(&entry.id, entry.day, &retry).await?.to_string())
        }
    }
}

async fn till(
    store: Store,
    sqs: &aws_sdk_sqs::Client,
    stack: String,
    ledger_days: u16,
) -> Result<Till<Store, Store, Store, UsageQueue, HintQueue, SystemClock>> {
    Ok(Till {
        quarantine: store.clone(),
        ledger: store.clone(),
        accounts: store,
        usage: UsageQueue::new(sqs.clone(), queue_url(sqs, &Queue::Usage.name(&stack)).await?),
        hints: HintQueue::new(sqs.clone(), queue_url(sqs, &Queue::AccountChanges.name(&stack)).await?),
        clock: SystemClock,
        stack,
        ledger_days,
    })
}

async fn redriven(sqs: &aws_sdk_sqs::Client, stack: &str, queue: QueueName) -> Result<String> {
    let queue = match queue {
        QueueName::Usage => Queue::Usage,
        QueueName::AccountChanges => Queue::AccountChanges,
    };
    Ok(match redrive(sqs, stack, queue).await? {
        DeadLetters::None => format!("{} holds no message.", queue.dead_name(stack)),
        DeadLetters::Moving { task, about } => {
            format!("About {about} messages of {} are moved back.\ntask  {task}", queue.dead_name(stack))
        }
    })
}

/// A variable of the environment that is there and not blank.
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn stripe_client(live: bool) -> Result<(StripeClient<FixedKey>, setup::Mode)> {
    let (key, url) = (environment("STRIPE_API_KEY"), environment("TOKENTILL_STRIPE_URL"));
    Ok(setup::client(key.as_deref(), live, url.as_deref())?)
}

async fn set_up(wanted: SetupArguments, parameters: Ssm) -> Result<String> {
    let (stripe, mode) = stripe_client(wanted.live)?;
    let store_key = if wanted.store_key { Some(functions_key(mode)?) } else { None };
    let options = Options {
        webhook_url: wanted.webhook_url,
        rotate_webhook: wanted.rotate_webhook,
        further_webhook_secret: environment("TOKENTILL_WEBHOOK_SECRET").map(|secret| Secret::new(&secret)),
        store_key,
        return_url: wanted.return_url,
        webhook_secrets_parameter: wanted.webhook_secrets_parameter,
        service_tokens_parameter: wanted.service_tokens_parameter,
        stripe_key_parameter: wanted.stripe_key_parameter,
        secrets_ttl_secs: wanted.secrets_ttl,
    };
    let setup = Setup { stripe, mode, parameters, clock: SystemClock, list: PriceList::shipped()?, options };
    let url = environment("TOKENTILL_STRIPE_URL").unwrap_or_else(|| tokentill::stripe::STRIPE_URL.to_owned());
    say(&format!("Stripe in {mode} mode, {url}\n"));
    let plan = if wanted.apply {
        setup.apply(say).await?;
        setup.plan_after().await?
    } else {
        setup.plan().await?
    };
    Ok(format!("{plan}\n{}\n\n{}", plan.verdict(wanted.apply), setup.left_to_do()))
}

/// A line of progress. That nobody reads it any more is no reason to stop half-way.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The key that the functions are to use.
fn functions_key(mode: setup::Mode) -> Result<Secret> {
    let Some(key) = environment("TOKENTILL_FUNCTIONS_KEY").or_else(|| environment("STRIPE_API_KEY")) else {
        bail!("set TOKENTILL_FUNCTIONS_KEY to the key that is to be stored");
    };
    SecretKey::new(&key).context("TOKENTILL_FUNCTIONS_KEY")?;
    if setup::Mode::of_key(&key).context("TOKENTILL_FUNCTIONS_KEY")? != mode {
        bail!("TOKENTILL_FUNCTIONS_KEY is of the other mode than STRIPE_API_KEY");
    }
    Ok(Secret::new(&key))
}

async fn imported(
    sqs: &aws_sdk_sqs::Client,
    stack: &str,
    dry_run: bool,
    starting_after: Option<String>,
    live: bool,
) -> Result<String> {
    let (stripe, mode) = stripe_client(live)?;
    let hints = match dry_run {
        true => None,
        false => Some(HintQueue::new(sqs.clone(), queue_url(sqs, &Queue::AccountChanges.name(stack)).await?)),
    };
    let done = import(&stripe, mode, hints.as_ref(), &SystemClock, starting_after).await?;
    let what = if dry_run { "would be looked at" } else { "are queued, and looked at one by one" };
    let unnamed = done.unnamed;
    Ok(format!(
        "{} customers {what}. {unnamed} name no user: give them metadata.user_id at Stripe and import again.",
        done.queued
    ))
}
