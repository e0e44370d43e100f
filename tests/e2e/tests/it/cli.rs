//! `cargo till` on the deployed stack, as a person runs it: with the program, against the stack's tables and queues.

use std::process::Output;
use std::time::{Duration, Instant};

use local::Stack;
use serde_json::{Value, json};
use tokio::process::Command;

/// The quarantine and the dead letters are looked at and sent again.
pub(crate) async fn looks_and_sends_again(stack: &Stack) {
    build().await;
    quarantine(stack).await;
    redrive(stack).await;
}

/// What cannot be read is listed, explained, corrected in a file, and counted once however often it is retried.
async fn quarantine(stack: &Stack) {
    let (queue, broken) = (&stack.json().usage_queue_url, with(call("req_broken", "ada"), "tokens_in", json!(-1)));
    stack.aws().send_message(queue, &broken.to_string()).await.unwrap();
    let row = until("the quarantine to hold it", || async {
        let listed = text(&till(stack, &["quarantine", "list"]).await);
        listed.lines().find(|line| line.contains("invalid")).map(str::to_owned)
    })
    .await;
    let cells: Vec<&str> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    // Whose it is cannot be told of what cannot be read.
    let [day, "invalid", "-", "-", id, detail] = cells[..] else { panic!("{row}") };
    assert!(detail.contains("tokens_in"), "{row}");

    let explained = text(&till(stack, &["quarantine", "explain", id, "--day", day]).await);
    assert!(explained.contains("--input FILE") && explained.contains("\"tokens_in\":-1"), "{explained}");
    let refused = till(stack, &["quarantine", "retry", id, "--day", day]).await;
    assert!(!refused.status.success(), "as it is, it would come straight back: {}", text(&refused));

    let file = std::env::temp_dir().join(format!("till-{}.json", uuid::Uuid::new_v4()));
    std::fs::write(&file, call("req_broken", "ada").to_string()).unwrap();
    let retry = ["quarantine", "retry", id, "--day", day, "--input", file.to_str().unwrap()];
    let sent = text(&till(stack, &retry).await);
    assert!(sent.contains("req_broken"), "{sent}");
    until("it to be counted", || async { (requests(stack, "ada").await == 1).then_some(()) }).await;
    let again = text(&till(stack, &retry).await);
    std::fs::remove_file(&file).unwrap();
    assert!(again.contains("ledger"), "{again}");
    assert_eq!(requests(stack, "ada").await, 1, "counted once");
    let listed = text(&till(stack, &["quarantine", "list", "--reason", "invalid"]).await);
    // An entry that was sent again stays.
    let row = listed.lines().find(|line| line.contains(id)).unwrap();
    assert!(row.contains("invalid  -     20"), "with the moment at which it was: {listed}");
}

/// The emulated SQS knows no message-move tasks. So the command is run up to its last call, which is refused there; that nothing
/// is lost by it, and that what comes back from the dead counts once, is looked at all the same.
async fn redrive(stack: &Stack) {
    let none = text(&till(stack, &["redrive", "usage"]).await);
    assert_eq!(none.trim(), "tokentill-usage-dead holds no message.");

    let (queue, dead) = (stack.json().usage_queue_url.clone(), format!("{}-dead", stack.json().usage_queue_url));
    let event = call("req_dead", "bea").to_string();
    stack.aws().send_message(&dead, &event).await.unwrap();
    let moved = till(stack, &["redrive", "usage"]).await;
    if moved.status.success() {
        assert!(text(&moved).contains("About 1 messages of tokentill-usage-dead"), "{}", text(&moved));
    } else {
        let told = text(&moved);
        assert!(told.contains("moving the messages of tokentill-usage-dead back"), "{told}");
        assert_eq!(stack.aws().queue_depth(&dead).await.unwrap(), 1, "it is still there: {told}");
        // What the task does.
        stack.aws().send_message(&queue, &event).await.unwrap();
    }
    until("it to be counted", || async { (requests(stack, "bea").await == 1).then_some(()) }).await;
    // A second time, days later for all that matters.
    stack.aws().send_message(&queue, &event).await.unwrap();
    let row = until("the repetition to be seen", || async {
        let rows = stack.aws().scan(&stack.table("ledger").unwrap()).await.unwrap();
        rows.into_iter().find(|row| row["request_id"] == "req_dead" && row["seen"] == 2)
    })
    .await;
    assert_eq!((requests(stack, "bea").await, &row["user_id"]), (1, &json!("bea")));
}

/// Builds what `cargo till` runs. With the whole workspace's features, so that nothing is compiled anew for it.
async fn build() {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--workspace", "--bin", "till"]).current_dir(local::checkout());
    assert!(build.status().await.unwrap().success());
}

/// Runs what `cargo till` runs, as the README shows it.
async fn till(stack: &Stack, arguments: &[&str]) -> Output {
    // This test is target/debug/deps/it-….
    let test = std::env::current_exe().unwrap();
    Command::new(test.parent().unwrap().with_file_name("till"))
        .args(arguments)
        .current_dir(local::checkout())
        .env("AWS_ENDPOINT_URL", &stack.json().aws_endpoint_url)
        .env("AWS_REGION", &stack.json().aws_region)
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env_remove("AWS_SESSION_TOKEN")
        .env_remove("AWS_PROFILE")
        .output()
        .await
        .unwrap()
}

/// Everything it printed.
fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Asks until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut question: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        if let Some(answer) = question().await {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn requests(stack: &Stack, user: &str) -> u64 {
    let url = format!("{}/v1/usage", stack.json().api_url);
    let request = reqwest::Client::new().get(url).query(&[("user_id", user)]).bearer_auth(&stack.json().service_token);
    let usage: Value = request.send().await.unwrap().error_for_status().unwrap().json().await.unwrap();
    usage["totals"]["requests"]["counted"].as_u64().unwrap_or(0)
}

#[expect(clippy::disallowed_methods, reason = "a service reports its calls by the real clock")]
fn call(request_id: &str, user: &str) -> Value {
    json!({
        "request_id": request_id, "user_id": user, "endpoint": "/v1/summarise", "tokens_in": 10, "tokens_out": 2, "success": true,
        "timestamp": jiff::Timestamp::now().as_second(),
    })
}

fn with(mut call: Value, field: &str, value: Value) -> Value {
    call[field] = value;
    call
}
