//! The Python function that the webhook is held against: its interpreter, with what it needs, under `target/startup`.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use local::checkout;
use tokio::process::Command;

use crate::function::Program;

/// The names of the Python that Lambda's functions mostly run on, and of any other.
const CANDIDATES: [&str; 2] = ["python3.11", "python3"];

/// Where the function and its requirements lie.
fn folder() -> PathBuf {
    checkout().join("tests/startup/python")
}

/// An interpreter with the function's requirements.
#[derive(Debug)]
pub(crate) struct Python {
    interpreter: PathBuf,
    /// Which one it is, as it says itself.
    pub(crate) version: String,
}

impl Python {
    /// Installs what is not installed yet.
    ///
    /// # Errors
    /// There is no Python, or pip cannot install.
    pub(crate) async fn ready() -> Result<Self> {
        let environment = checkout().join("target/startup/venv");
        let interpreter = environment.join("bin/python");
        if !interpreter.exists() {
            let mut made = false;
            for candidate in CANDIDATES {
                let mut make = Command::new(candidate);
                make.args(["-m", "venv"]).arg(&environment);
                made = run(&mut make).await.is_ok();
                if made {
                    break;
                }
            }
            ensure!(made, "no Python makes a virtual environment; Debian has that in the package python3-venv");
        }
        let mut install = Command::new(&interpreter);
        install
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"])
            .arg("--requirement")
            .arg(folder().join("requirements.txt"));
        run(&mut install).await?;
        let version = run(Command::new(&interpreter).arg("--version")).await?;
        Ok(Self { interpreter, version: version.trim().to_owned() })
    }

    /// The function under Lambda's own runtime client.
    #[must_use]
    pub(crate) fn webhook(&self) -> Program {
        let command: Vec<OsString> =
            [self.interpreter.as_os_str(), "-m".as_ref(), "awslambdaric".as_ref(), "webhook.handler".as_ref()]
                .map(ToOwned::to_owned)
                .into();
        let variables = [
            ("LAMBDA_TASK_ROOT", text(&folder())),
            ("PYTHONPATH", text(&folder())),
            ("IDEMPOTENCY_TABLE", "idempotency".to_owned()),
            ("PYTHONDONTWRITEBYTECODE", "1".to_owned()),
        ];
        Program { command, variables: variables.map(|(name, value)| (name.to_owned(), value)).into() }
    }

    /// Makes secret, table and queue in an AWS that is told by these variables; the queue's URL.
    ///
    /// # Errors
    /// It refuses.
    pub(crate) async fn prepare(&self, variables: &[(String, String)]) -> Result<String> {
        let mut prepare = Command::new(&self.interpreter);
        prepare.arg(folder().join("prepare.py")).envs(variables.iter().map(|(name, value)| (name, value)));
        Ok(run(&mut prepare).await?.trim().to_owned())
    }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Runs a program to its end; what it printed.
async fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.context("it does not start")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
