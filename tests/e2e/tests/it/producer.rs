//! What docs/producers.md shows services in Python, sent with real boto3 to the deployed stack.

use std::time::Duration;

use local::Stack;
use serde_json::{Value, json};
use tokio::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/producer.py");
const USER: &str = "boto3 \u{1F642}";

/// What a service reports with boto3 is counted once. Nothing else was sent to the stack before.
pub(crate) async fn is_counted_once(stack: &Stack) {
    let told = report(stack).await;
    // 1,200 requests, and the one that succeeded at its second attempt.
    let counted = counted(stack, 1_201).await;
    let dead = stack.aws().queue_depth(&format!("{}-dead", stack.json().usage_queue_url)).await.unwrap();
    let quarantined = stack.aws().scan(&stack.table("quarantine").unwrap()).await.unwrap();
    assert_eq!(told, json!({"left": 0, "recorded": 1_203, "dropped": 1}));
    assert_eq!(counted, json!({"requests": 1_201, "tokens_in": 12_010, "tokens_out": 2_402}));
    assert_eq!((dead, quarantined), (0, Vec::new()));
}

/// Runs the script with the interpreter that has boto3; what it prints.
async fn report(stack: &Stack) -> Value {
    let output = Command::new(local::python().await.unwrap())
        .args([SCRIPT, &stack.json().usage_queue_url, USER])
        .env("AWS_ENDPOINT_URL", &stack.json().aws_endpoint_url)
        .env("AWS_DEFAULT_REGION", &stack.json().aws_region)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_PROFILE")
        .output()
        .await
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    serde_json::from_str(&out).unwrap()
}

/// What is counted for the user, once so many requests are, or when they still are not after a while.
async fn counted(stack: &Stack, requests: u64) -> Value {
    let http = reqwest::Client::new();
    let url = format!("{}/v1/usage", stack.json().api_url);
    let mut counted = Value::Null;
    for _ in 0..120 {
        let request = http.get(&url).query(&[("user_id", USER)]).bearer_auth(&stack.json().service_token);
        let usage: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
        let meters = ["requests", "tokens_in", "tokens_out"];
        counted = meters.iter().map(|meter| ((*meter).to_owned(), usage["totals"][meter]["counted"].clone())).collect();
        if counted["requests"].as_u64() >= Some(requests) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    counted
}

#[test]
fn the_documentation_shows_what_is_sent() {
    let script = include_str!("producer.py").split("\n\nif __name__").next().unwrap().trim();
    let page = include_str!("../../../../docs/producers.md");
    assert!(page.contains(script), "docs/producers.md has to show tests/e2e/tests/it/producer.py as it is, up to its last part");
}
