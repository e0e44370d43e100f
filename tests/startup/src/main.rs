//! `cargo run -p startup -- …`: the tables of docs/performance.md that are about the release binaries as processes. It builds them
//! as `sam build` does; this program itself need not be optimised.
#![allow(clippy::print_stdout, reason = "a program that prints tables")]

mod function;
mod process;
mod python;
mod runtime_api;
mod tables;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Measures the functions' release binaries; docs/performance.md says what for")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts of all functions, beside a bare one and one in Python
    Starts {
        /// These functions only, separated by commas
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How many of each
        #[arg(long, default_value_t = 21)]
        rounds: usize,
    },
    /// What an event costs the warm webhook, and the same job in Python
    Warm {
        /// How many events
        #[arg(long, default_value_t = 500)]
        events: usize,
    },
    /// The most memory for the largest input
    Memory,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Starts { only, rounds } => tables::print_starts(&only, rounds).await,
        Command::Warm { events } => tables::print_warm(events).await,
        Command::Memory => tables::print_memory().await,
    }
}
