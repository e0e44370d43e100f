//! Start of the reporter function: read the environment, build the adapters, run.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use reporter::Reporter;
use tokentill::{
    chance,
    clock::SystemClock,
    config,
    domain::price_list::PriceList,
    dynamodb::Store,
    log,
    schedule::ScheduledEvent,
    stripe::{Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws().await;
    let mut env = config::Environment::of_process();
    let store = Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["tallies", "books", "quarantine", "control"]));
    let key = env.stripe_key(&aws);
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?;
    let reporter = Reporter {
        books: store.clone(),
        meters: Stripe::new(stripe),
        quarantine: store,
        clock: SystemClock,
        prices: PriceList::shipped()?,
        identifiers: chance::identifier,
    };
    env.finish()?;
    run(service_fn(async |event: LambdaEvent<ScheduledEvent>| {
        reporter.run(event.payload.moment()?).await?;
        Ok::<_, Error>(())
    }))
    .await
}
