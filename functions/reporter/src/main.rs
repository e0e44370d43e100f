//! Start of the reporter function: read the environment, build the adapters, run.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use reporter::{Invocation, ReportEvent, Reporter, Settings};
use tokentill::{
    chance,
    clock::SystemClock,
    config,
    domain::price_list::PriceList,
    dynamodb::Store,
    log,
    ports::Clock,
    records,
    stripe::{Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let store =
        Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["accounts", "tallies", "books", "quarantine", "control"]));
    let key = env.stripe_key(&aws);
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?;
    let reporter = Reporter {
        books: store.clone(),
        accounts: store,
        meters: Stripe::new(stripe),
        clock: SystemClock,
        prices: PriceList::shipped()?,
        identifiers: chance::identifier,
        settings: Settings {
            interval_secs: env.bounded("TOKENTILL_REPORT_INTERVAL_SECS", 900, 10..=43_200).into(),
            final_after_secs: env.bounded("TOKENTILL_INVOICE_FINAL_AFTER_SECS", 3_600, 0..=259_200).into(),
            calls_per_sec: env.bounded("TOKENTILL_STRIPE_CALLS_PER_SEC", 20, 1..=500),
        },
    };
    env.finish()?;
    run(service_fn(async |event: LambdaEvent<ReportEvent>| {
        let stop_at_ms = records::stop_at_ms(reporter.clock.now_ms(), event.context.deadline);
        let invocation = Invocation { id: event.context.request_id, stop_at_ms };
        Ok::<_, Error>(reporter.run(event.payload.scheduled.moment()?, event.payload.order.as_ref(), &invocation).await?)
    }))
    .await
}
