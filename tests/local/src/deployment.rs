//! The stack from `template.yaml`, built and deployed by the SAM CLI.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::process::Command;

use crate::ministack::REGION;
use crate::place::{checkout, local_folder};
use crate::process;
use crate::progress::step;
use crate::tools::Tools;

/// The stack's name, which every name in it begins with.
pub const STACK: &str = "tokentill";

/// Whom e-mails come from here. SES is told that the address is verified; nothing ever leaves the machine.
pub(crate) const EMAIL_FROM: &str = "billing@example.com";
/// Whom e-mails name for questions.
const SUPPORT_EMAIL: &str = "help@example.com";

/// The functions, each a package, a binary and a folder of that name.
pub const FUNCTIONS: [&str; 7] = ["webhook", "sync", "usage", "reporter", "sweeper", "notifier", "access"];

/// Builds the functions for this machine; answers where the build lies.
pub(crate) async fn build(tools: &Tools, folder: &Path) -> Result<PathBuf> {
    let build_folder = folder.join("build");
    // cargo-lambda moves what cargo built out of the target folder: two at once would take each other's binaries away.
    let _lock = process::lock(&local_folder().join("build.lock")).await?;
    // One build of all of them first: `sam build` makes them one after the other, which takes twice as long on an empty target
    // folder, and is then left with copying.
    build_packages(tools, &FUNCTIONS, folder).await?;
    step("sam build", async {
        let mut command = sam(tools, "build")?;
        command
            .arg("--beta-features")
            .args(["--template-file", "template.yaml"])
            .arg("--build-dir")
            .arg(&build_folder)
            .args(["--parameter-overrides", &format!("Architecture={}", architecture()?)]);
        process::run("sam build", &mut command, &folder.join("sam-build.log")).await
    })
    .await?;
    if !cfg!(target_os = "linux") {
        step("building the functions for this system", put_native_binaries(&build_folder, folder)).await?;
    }
    Ok(build_folder)
}

/// Builds functions as `sam build` does, and says where each one's binary lies.
///
/// # Errors
/// The tools cannot be installed, or something does not compile.
pub async fn function_binaries(packages: &[&'static str]) -> Result<Vec<(&'static str, PathBuf)>> {
    let tools = Tools::ready().await?;
    let _lock = process::lock(&local_folder().join("build.lock")).await?;
    build_packages(&tools, packages, &local_folder()).await?;
    let binary = |package: &&'static str| (*package, checkout().join("target/lambda").join(package).join("bootstrap"));
    Ok(packages.iter().map(binary).collect())
}

async fn build_packages(tools: &Tools, packages: &[&str], folder: &Path) -> Result<()> {
    step("building the functions (minutes the first time)", async {
        let mut command = Command::new("cargo");
        command.args(["lambda", "build", "--release"]).current_dir(checkout()).env("PATH", tools.search_path()?);
        for package in packages {
            command.args(["--package", package]);
        }
        process::run("cargo lambda build", &mut command, &folder.join("build.log")).await
    })
    .await
}

/// MiniStack runs the functions as processes of this machine, and Lambda's are Linux programs: elsewhere they are replaced.
async fn put_native_binaries(build: &Path, folder: &Path) -> Result<()> {
    let mut command = Command::new("cargo");
    command.args(["build", "--release"]).current_dir(checkout());
    for function in FUNCTIONS {
        command.args(["--package", function]);
    }
    process::run("cargo build", &mut command, &folder.join("build.log")).await?;
    for function in FUNCTIONS {
        let mut letters = function.chars();
        let initial = letters.next().map(|letter| letter.to_ascii_uppercase());
        let resource: String = initial.into_iter().chain(letters).chain("Function".chars()).collect();
        let binary = checkout().join("target/release").join(function);
        std::fs::copy(&binary, build.join(resource).join("bootstrap"))
            .with_context(|| format!("cannot copy {}", binary.display()))?;
    }
    Ok(())
}

/// Deploys what was built to the AWS at that URL.
pub(crate) async fn deploy(tools: &Tools, folder: &Path, build: &Path, aws_url: &str, stripe_url: &str) -> Result<()> {
    step("sam deploy", async {
        let mut command = sam(tools, "deploy")?;
        command
            .arg("--template-file")
            .arg(build.join("template.yaml"))
            .args(["--stack-name", STACK, "--resolve-s3", "--capabilities", "CAPABILITY_IAM"])
            .args(["--no-confirm-changeset", "--no-progressbar", "--region", REGION])
            .args(["--parameter-overrides", &format!("Architecture={}", architecture()?)])
            .arg(format!("StripeUrl={stripe_url}"))
            // This AWS speaks plain HTTP and is thrown away at the end.
            .args(["RequireTls=false", "DeletionProtection=false"])
            // Somebody waits for what happens: fast rather than cheap.
            .args(["UsageBatchWindowSeconds=1", "SecretsTtlSeconds=5", "ReportIntervalSeconds=10"])
            .args([format!("EmailFrom={EMAIL_FROM}"), format!("SupportEmail={SUPPORT_EMAIL}"), "ProductName=Acme".to_owned()])
            .env("AWS_ENDPOINT_URL", aws_url);
        process::run("sam deploy", &mut command, &folder.join("sam-deploy.log")).await
    })
    .await
}

fn sam(tools: &Tools, subcommand: &str) -> Result<Command> {
    let mut command = Command::new(tools.program("sam"));
    command
        .arg(subcommand)
        .current_dir(checkout())
        .env("PATH", tools.search_path()?)
        .env("SAM_CLI_TELEMETRY", "0")
        // Neither a profile nor credentials of the caller's, which may open a real account.
        .env_remove("AWS_PROFILE")
        .env_remove("AWS_SESSION_TOKEN")
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", REGION)
        .env("AWS_DEFAULT_REGION", REGION);
    Ok(command)
}

/// This machine's processor, as Lambda calls it.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Some("x86_64"),
        "aarch64" => Some("arm64"),
        _ => None,
    }
    .context("Lambda knows no processor like this machine's")
}
