//! A Lambda function that sends a short message for each event, with the AWS SDK as the product uses it, and does nothing else: the
//! benchmarks hold the warm webhook against it.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::Value;
use tokentill::config;
use uuid::Uuid;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let client = aws_sdk_sqs::Client::new(&config::aws()?);
    let mut env = config::Environment::of_process();
    let queue = env.required("TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL");
    env.finish()?;
    run(service_fn(async |event: LambdaEvent<Value>| {
        let message = client.send_message().queue_url(&queue).message_body("{}").message_group_id("sender");
        message.message_deduplication_id(Uuid::new_v4().to_string()).send().await?;
        Ok::<_, Error>(event.payload)
    }))
    .await
}
