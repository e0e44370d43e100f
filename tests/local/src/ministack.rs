//! AWS on loopback: MiniStack, with IAM enforced.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpListener;
use tokio::process::Command;

use crate::process::{Identity, Service};
use crate::progress::poll;
use crate::tools::Tools;

/// The one Region everything runs in.
pub const REGION: &str = "us-east-1";

/// Ends the whole process group when our end of the pipe breaks, so that not even a `kill -9` of us leaves anything behind.
const LAUNCHER: &str = "\
import os, signal, sys, threading
def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv = ['ministack']
from ministack.app import main
main()
";

/// The running MiniStack.
#[derive(Debug)]
pub struct MiniStack {
    service: Service,
    url: String,
}

impl MiniStack {
    /// Ends what a killed predecessor left in this folder, and starts afresh with empty state. For port 0 on a free one.
    ///
    /// # Errors
    /// It does not start, or the port is in use.
    pub async fn start(tools: &Tools, folder: &Path, port: u16) -> Result<Self> {
        let identity_file = folder.join("ministack.pid");
        if let Some(left_over) = Identity::read(&identity_file).filter(Identity::is_running) {
            eprintln!("local: ending MiniStack, left over from a start that was killed (process {})", left_over.pid());
            left_over.end_group().await?;
        }
        let state = folder.join("ministack");
        if state.exists() {
            std::fs::remove_dir_all(&state).with_context(|| format!("cannot empty {}", state.display()))?;
        }
        let temporary = state.join("tmp");
        std::fs::create_dir_all(&temporary).with_context(|| format!("cannot make {}", temporary.display()))?;

        let port = free_port(port).await?;
        let url = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(tools.python());
        command
            .args(["-c", LAUNCHER])
            .current_dir(&state)
            // The functions inherit this environment: nothing of the caller's goes in, above all no real AWS credentials.
            .env_clear()
            .env("PATH", tools.search_path()?)
            .env("HOME", &state)
            .env("TMPDIR", &temporary)
            .env("STATE_DIR", state.join("state"))
            .env("S3_DATA_DIR", state.join("s3"))
            .env("AUTH", "true")
            .env("BIND_HOST", "127.0.0.1")
            .env("MINISTACK_HOST", "127.0.0.1")
            .env("MINISTACK_REGION", REGION)
            .env("GATEWAY_PORT", port.to_string())
            // What the functions get as their AWS.
            .env("AWS_ENDPOINT_URL", &url)
            // Servers that would listen beside the one port, on every address.
            .env("IOT_MTLS_ENABLED", "0")
            .env("SFTP_ENABLED", "0");
        let mut service = Service::start("MiniStack", &mut command, identity_file, folder.join("ministack.log"))?;

        let http = reqwest::Client::new();
        let health = format!("{url}/_ministack/health");
        let began = std::time::Instant::now();
        loop {
            service.check()?;
            if http.get(&health).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(Self { service, url });
            }
            anyhow::ensure!(began.elapsed() < Duration::from_secs(60), "MiniStack does not answer at {health}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Its one endpoint.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the processes of a function, as a machine that breaks would, and waits until they are gone. Beside the one that is at
    /// work the emulator may keep another one for later.
    pub(crate) async fn kill_function(&self, function: &str) -> Result<()> {
        self.service.kill_members(&format!("AWS_LAMBDA_FUNCTION_NAME={function}")).await
    }

    /// Ends it.
    ///
    /// # Errors
    /// It does not end.
    pub async fn end(self) -> Result<()> {
        self.service.end().await
    }
}

/// The port asked for, or a free one for 0.
async fn free_port(port: u16) -> Result<u16> {
    // A predecessor that has just ended may hold its port for a moment longer.
    let bound = poll("the port", Duration::from_secs(3), Duration::from_millis(100), || async {
        Ok(TcpListener::bind(("127.0.0.1", port)).await.ok())
    });
    match bound.await {
        Ok(listener) => Ok(listener.local_addr()?.port()),
        Err(_) => bail!(
            "port {port} is in use. Is another `cargo local` running, or another AWS emulator? \
             End it, or choose another port: TOKENTILL_AWS_PORT=4567 cargo local"
        ),
    }
}
