//! A strict, stateful, offline sandbox of the part of Stripe's billing API that Tokentill uses.
//!
//! It is harder than Stripe, never more lenient: what Stripe may do, it does; what it does not know, it refuses. Rules
//! cite the Stripe documentation or SDK type they come from; rules without a source stand in `docs/sandbox-assumptions.md`.
//! State lives in one [`world`] behind one lock; time moves only by real time and by test clocks ([`clock`]).

// Stripe's objects have more fields than the `json!` macro expands by default.
#![recursion_limit = "512"]

mod calendar;
mod charges;
mod checkout;
mod clock;
mod control;
mod customers;
mod disputes;
mod error;
mod events;
mod expand;
mod form;
mod http;
mod invoices;
mod limits;
mod meters;
mod payment_methods;
mod portal;
mod prices;
mod products;
mod subscriptions;
mod webhooks;
mod world;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// The script that drives a sandbox with Stripe's own Python package: `python official_client.py <url>`.
pub fn official_client_script() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/official_client.py"))
}

/// A running sandbox on a loopback port.
#[derive(Debug)]
pub struct Sandbox {
    address: SocketAddr,
    shared: Arc<http::Shared>,
    stop: oneshot::Sender<()>,
    server: JoinSet<()>,
}

impl Sandbox {
    /// Starts an empty sandbox on this port of 127.0.0.1; 0 takes any free one.
    ///
    /// # Errors
    /// When the port cannot be bound.
    pub async fn start(port: u16) -> anyhow::Result<Self> {
        let listener =
            TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("the sandbox cannot listen on port {port}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(http::Shared::new()?);
        let app = axum::Router::new().fallback(http::handle).with_state(Arc::clone(&shared));
        let (stop, stopped) = oneshot::channel::<()>();
        let mut server = JoinSet::new();
        server.spawn(async move {
            // Serving only ends by the signal; there is no error to report.
            let _ = axum::serve(listener, app)
                .with_graceful_shutdown(async {
                    // A sender that is gone means the same as one that spoke.
                    let _ = stopped.await;
                })
                .await;
        });
        Ok(Self { address, shared, stop, server })
    }

    /// Its base URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Stops serving and delivering. Requests under way get a moment to end.
    pub async fn shutdown(mut self) {
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(Duration::from_secs(2), self.server.join_next()).await;
        if ended.is_err() {
            self.server.abort_all();
        }
        self.shared.abort_tasks();
    }
}
