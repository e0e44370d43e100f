//! Start of the sync function: read the environment, build the adapters, run.

use aws_lambda_events::sqs::SqsEvent;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use sync::{Listener, Sync};
use tokentill::{
    clock::SystemClock,
    config,
    domain::price_list::PriceList,
    dynamodb::Store,
    log,
    ports::Clock,
    records,
    sqs::{HintQueue, UsageQueue},
    stripe::{Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let tables = env.tables(&["accounts", "customers", "processed", "outbox", "quarantine", "control"]);
    let store = Store::new(aws_sdk_dynamodb::Client::new(&aws), tables);
    let key = env.stripe_key(&aws);
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?;
    let sqs = aws_sdk_sqs::Client::new(&aws);
    let queue = HintQueue::new(sqs.clone(), env.required("TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL"));
    let recounts = UsageQueue::new(sqs, env.required("TOKENTILL_USAGE_QUEUE_URL"));
    let sync = Sync {
        stripe: Stripe::new(stripe),
        accounts: store.clone(),
        queue,
        recounts,
        quarantine: store.clone(),
        meter_errors: store,
        listener: Listener::default(),
        clock: SystemClock,
        prices: PriceList::shipped()?,
        mode: env.stripe_mode(),
    };
    env.finish()?;
    run(service_fn(async |event: LambdaEvent<SqsEvent>| {
        let stop_at_ms = records::stop_at_ms(sync.clock.now_ms(), event.context.deadline);
        Ok::<_, Error>(sync.handle(event.payload, stop_at_ms).await?)
    }))
    .await
}
