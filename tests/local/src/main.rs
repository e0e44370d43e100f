//! `cargo local`: see the README.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Parser;
use local::{Options, OtherStripe, Stack, demo, local_folder};
use tokio::signal::unix::{SignalKind, signal};

/// Builds the functions, starts AWS, Stripe and Tokentill on loopback, plays the demo month, and keeps running.
#[derive(Debug, Parser)]
#[command(
    name = "cargo local",
    after_help = "\
Environment:
  TOKENTILL_AWS_PORT     port of AWS (4566)
  TOKENTILL_STRIPE_URL   use this Stripe instead of the sandbox, with STRIPE_API_KEY
  STRIPE_WEBHOOK_SECRET  what `stripe listen --print-secret` prints, when it forwards the events"
)]
struct Arguments {
    /// Exit after the demo: with 0 only if every row is as expected.
    #[arg(long)]
    once: bool,
    /// Only start; play nothing.
    #[arg(long, conflicts_with = "once")]
    no_demo: bool,
    /// Forget everything under target/local first, the Python tools included.
    #[arg(long)]
    reset: bool,
    /// Where the stack keeps its files, instead of target/local.
    #[arg(long, hide = true)]
    folder: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match until_signalled(run(Arguments::parse())).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("local: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode> {
    let mut options = options()?;
    if let Some(folder) = arguments.folder {
        options.folder = folder;
    }
    if arguments.reset && options.folder.exists() {
        std::fs::remove_dir_all(&options.folder).with_context(|| format!("cannot remove {}", options.folder.display()))?;
    }
    let folder = options.folder.clone();
    let stack = Stack::start(options).await?;
    let json = stack.json();
    println!("\nTokentill runs: {}", folder.join("stack.json").display());
    println!("  access API   {}/v1/access?user_id=ada", json.api_url);
    println!("               Authorization: Bearer {}", json.service_token);
    println!("  webhook      {}", json.webhook_url);
    println!("  usage queue  {}", json.usage_queue_url);
    println!("  Stripe       {}  ({})", json.stripe_api_url, json.stripe_api_key);
    println!("  AWS          {}  ({})", json.aws_endpoint_url, json.aws_region);

    if !arguments.no_demo {
        let played = demo::play(&stack).await;
        if let Ok(table) = &played {
            println!("\n{table}");
        }
        if arguments.once {
            stack.shutdown().await?;
            return Ok(if played?.ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        if let Err(error) = played {
            eprintln!("local: the demo month: {error:#}");
        }
    }
    println!("\nCtrl-C ends it.");
    std::future::pending().await
}

/// Runs until it is done, or until somebody asks us to end; either way whatever it started ends with it.
async fn until_signalled(work: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => Ok(ExitCode::from(130)),
        _ = terminate.recv() => Ok(ExitCode::from(143)),
    }
}

fn options() -> Result<Options> {
    let aws_port = match std::env::var("TOKENTILL_AWS_PORT") {
        Ok(text) => text.parse().with_context(|| format!("TOKENTILL_AWS_PORT is no port: {text}"))?,
        Err(_) => 4566,
    };
    let stripe = match std::env::var("TOKENTILL_STRIPE_URL") {
        Ok(url) if !url.is_empty() => {
            let Ok(key) = std::env::var("STRIPE_API_KEY") else {
                bail!("TOKENTILL_STRIPE_URL names another Stripe; STRIPE_API_KEY has to hold a test key of it");
            };
            let webhook_secret = std::env::var("STRIPE_WEBHOOK_SECRET").ok().filter(|secret| !secret.is_empty());
            Some(OtherStripe { url, key, webhook_secret })
        }
        _ => None,
    };
    Ok(Options { aws_port, stripe, ..Options::in_folder(local_folder()) })
}
