//! An embedded DynamoDB, in memory, on a loopback port of its own.

use std::{net::TcpListener, thread::JoinHandle};

use dynoxide::Database;
use tokio::sync::oneshot;

/// A running engine; dropping it stops it.
#[derive(Debug)]
pub struct Engine {
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts an empty one. It runs on its own thread, so that it answers whatever the test's thread is doing.
    #[must_use]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let url = format!("http://{}", listener.local_addr().expect("a bound listener has an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the listener is taken over");
                let database = Database::memory().expect("an engine opens in memory");
                let until = async move {
                    let _ = stopped.await;
                };
                dynoxide::server::serve_with_shutdown(listener, database, until).await.expect("the engine serves");
            });
        };
        Self { url, stop: Some(stop), thread: Some(std::thread::spawn(serve)) }
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
