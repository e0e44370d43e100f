//! `cargo till`: see docs/operations.md.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use till::{DeadLetters, Filter, Queue, Retry, Till, explain, list, parse_reason, queue_url, redrive};
use tokentill::{
    clock::SystemClock,
    config,
    domain::{
        counting::QuarantineReason,
        time::{EpochSecs, UtcDay},
    },
    dynamodb::{Store, Tables},
    ports::Clock,
    sqs::{HintQueue, UsageQueue},
};

/// Looks at the quarantine and the dead letters of a stack, and sends them again. Safe on any day: a request is counted at most
/// once, and nothing is deleted.
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
    let aws = config::aws().await;
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
