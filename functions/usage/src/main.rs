//! Start of the usage function: read the environment, build the adapters, run.

use aws_lambda_events::sqs::SqsEvent;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use tokentill::{clock::SystemClock, config, domain::price_list::PriceList, dynamodb::Store, log, ports::Clock, records};
use usage::Usage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let store = Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["accounts", "ledger", "tallies", "quarantine"]));
    let usage = Usage {
        accounts: store.clone(),
        ledger: store.clone(),
        quarantine: store,
        clock: SystemClock,
        prices: PriceList::shipped()?,
        retention_days: u16::try_from(env.bounded("TOKENTILL_LEDGER_RETENTION_DAYS", 400, 45..=3_650))?,
    };
    env.finish()?;
    run(service_fn(async |event: LambdaEvent<SqsEvent>| {
        let stop_at_ms = records::stop_at_ms(usage.clock.now_ms(), event.context.deadline);
        Ok::<_, Error>(Box::pin(usage.handle(event.payload, &event.context.request_id, stop_at_ms)).await?)
    }))
    .await
}
