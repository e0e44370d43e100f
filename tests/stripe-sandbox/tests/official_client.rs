//! Stripe's own Python package, on Python of the local stack's pinned tools, finds in the sandbox what it expects of Stripe.

use std::process::Command;

use stripe_sandbox::{Sandbox, official_client_script};

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_client_is_content() {
    let python = local::python().await.unwrap();
    let sandbox = Sandbox::start(0).await.unwrap();
    let mut command = Command::new(python);
    command.arg(official_client_script()).arg(sandbox.url());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    sandbox.shutdown().await;
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
