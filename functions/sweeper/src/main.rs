//! Start of the sweeper function: read the environment, build the adapters, run.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use sweeper::{
    Sweeper,
    repair::{Invocation, Repair, Settings},
    sweep,
};
use tokentill::{
    clock::SystemClock,
    config,
    domain::price_list::PriceList,
    dynamodb::Store,
    log,
    ports::Clock,
    records,
    schedule::ScheduledEvent,
    sqs::HintQueue,
    stripe::{Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let tables = env.tables(&["accounts", "customers", "processed", "outbox", "control"]);
    let store = Store::new(aws_sdk_dynamodb::Client::new(&aws), tables);
    let key = env.stripe_key(&aws);
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?;
    let queue_url = env.required("TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL");
    let repair = Repair {
        stripe: Stripe::new(stripe),
        stored: store.clone(),
        hints: HintQueue::new(aws_sdk_sqs::Client::new(&aws), queue_url),
        clock: SystemClock,
        prices: PriceList::shipped()?,
        mode: env.stripe_mode(),
        settings: Settings {
            webhook_url: env.required("TOKENTILL_WEBHOOK_URL"),
            silence_hours: env.bounded("TOKENTILL_SILENCE_HOURS", 48, 0..=8_760),
            compare_every_days: env.bounded("TOKENTILL_COMPARE_EVERY_DAYS", 1, 1..=30),
        },
    };
    env.finish()?;
    let sweeper = Sweeper { accounts: store, clock: SystemClock, prices: PriceList::shipped()? };
    run(service_fn(async |event: LambdaEvent<ScheduledEvent>| {
        let now = event.payload.moment()?;
        let invocation = Invocation {
            stop_at_ms: records::stop_at_ms(SystemClock.now_ms(), event.context.deadline),
            ends_at_ms: i64::try_from(event.context.deadline).unwrap_or(i64::MAX),
            id: event.context.request_id,
        };
        sweep(&sweeper, &repair, now, &invocation).await?;
        Ok::<_, Error>(())
    }))
    .await
}
