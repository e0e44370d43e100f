//! The sandbox as a process: prints `listening on http://127.0.0.1:PORT`, then serves until it is interrupted.

use std::io::Write;

use clap::Parser;
use stripe_sandbox::Sandbox;
use tokio::signal::unix::{SignalKind, signal};

/// A strict, stateful, offline sandbox of Stripe's billing API.
#[derive(Debug, Parser)]
struct Arguments {
    /// The port on 127.0.0.1; 0 takes any free one.
    #[arg(long, default_value_t = 12_111)]
    port: u16,
}

#[tokio::main(flavor = "multi_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    let sandbox = Sandbox::start(arguments.port).await?;
    let mut out = std::io::stdout();
    writeln!(out, "listening on {}", sandbox.url())?;
    out.flush()?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    sandbox.shutdown().await;
    Ok(())
}
