//! Start of the webhook function: read the environment, build the adapters, refuse to start without a secret.

use lambda_http::{Error, Request, run, service_fn};
use tokentill::{clock::SystemClock, config, domain::signature::WebhookSecrets, log, ports::Secrets, sqs::HintQueue};
use webhook::Webhook;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let webhook = Webhook {
        secrets: env.parameter("TOKENTILL_WEBHOOK_SECRETS_PARAMETER", &aws),
        hints: HintQueue::new(aws_sdk_sqs::Client::new(&aws), env.required("TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL")),
        clock: SystemClock,
        mode: env.stripe_mode(),
    };
    env.finish()?;
    // A blank secret would let anybody sign: better no webhook than an open one.
    WebhookSecrets::parse(webhook.secrets.secret().await?.expose())?;
    run(service_fn(async |request: Request| Ok::<_, Error>(webhook.handle(request).await))).await
}
