//! Stripe's own Python package as the judge of our side and of the sandbox's.

use serde_json::Value;
use tokentill::domain::{
    envelope,
    signature::{self, WebhookSecrets},
    time::EpochSecs,
};
use tokio::process::Command;

/// Runs a script with the interpreter that has the official package; its standard output.
async fn python(arguments: &[&str]) -> String {
    let interpreter = local::python().await.unwrap();
    let output = Command::new(interpreter).args(arguments).output().await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    out.into_owned()
}

#[tokio::test]
async fn the_official_client_drives_the_sandbox() {
    let sandbox = stripe_sandbox::Sandbox::start(0).await.unwrap();
    let script = stripe_sandbox::official_client_script();
    python(&[script.to_str().unwrap(), &sandbox.url()]).await;
    sandbox.shutdown().await;
}

/// Both event shapes, signed by the official package: our verifier believes exactly what the official one believes.
#[tokio::test]
async fn our_verifier_agrees_with_the_official_signer() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/official_signer.py");
    let signed: Vec<Value> = serde_json::from_str(&python(&[script]).await).unwrap();
    assert!(signed.len() >= 6, "the signer signed only {}", signed.len());
    for case in signed {
        let text = |field: &str| case[field].as_str().unwrap_or_else(|| panic!("no {field} in {case}"));
        let secrets = WebhookSecrets::parse(text("secret")).unwrap();
        let now = EpochSecs::new(case["now"].as_i64().unwrap());
        let body = text("payload").as_bytes();
        let believed = signature::verify(Some(text("header")), body, &secrets, now).is_ok();
        assert_eq!(believed, case["official_believes"].as_bool().unwrap(), "{}", text("name"));
        if believed {
            let hint = envelope::read(body, now, false).unwrap();
            assert_eq!(hint.event_id.as_str(), text("event_id"), "{}", text("name"));
        }
    }
}
