//! The Python client: a real FastAPI service with its middleware, under uvicorn, against the deployed stack.

use std::{path::PathBuf, process::Stdio};

use local::{Stack, checkout, local_folder};
use tokio::process::Command;

/// A Python service is gated and metered by the stack.
pub(crate) async fn is_gated_and_metered(stack: &Stack) {
    let python = python().await;
    let told = local_folder().join("python-client.json");
    tokio::fs::write(&told, serde_json::to_vec(stack.json()).unwrap()).await.unwrap();
    let mut suite = Command::new(python);
    suite.args(["-m", "pytest", "-m", "stack", "-v"]).current_dir(client()).env("TOKENTILL_STACK", &told);
    let passed = run(suite).await;
    tokio::fs::remove_file(&told).await.unwrap();
    if let Err(told) = passed {
        panic!("{told}");
    }
}

fn client() -> PathBuf {
    checkout().join("clients/python")
}

/// An interpreter with the client and what its tests need; `.ci/run` makes and uses the same.
async fn python() -> PathBuf {
    let folder = local_folder().join("python-client");
    let python = folder.join("bin/python");
    if !python.exists() {
        let mut make = Command::new(local::python().await.unwrap());
        make.args(["-m", "venv"]).arg(&folder);
        run(make).await.unwrap();
    }
    for what in
        [["--require-hashes", "--requirement", "requirements-dev.txt"], ["--no-build-isolation", "--force-reinstall", "."]]
    {
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]).args(what);
        install.current_dir(client());
        run(install).await.unwrap();
    }
    python
}

/// Runs a program; all that it said, if it failed.
async fn run(mut command: Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.map_err(|error| error.to_string())?;
    let told = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(told) }
}
