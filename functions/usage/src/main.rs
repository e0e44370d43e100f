//! Start of the usage function: read the environment, build the adapters, run.

use aws_lambda_events::sqs::SqsEvent;
use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use tokentill::{clock::SystemClock, config, domain::price_list::PriceList, dynamodb::Store, log, ports::Clock};
use usage::Usage;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws().await;
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
        // A fifth of the time that is left is kept for handing back what was not reached.
        let deadline_ms = i64::try_from(event.context.deadline).unwrap_or(i64::MAX);
        let now_ms = usage.clock.now_ms();
        let stop_at_ms = now_ms.saturating_add(deadline_ms.saturating_sub(now_ms).saturating_mul(4) / 5);
        Ok::<_, Error>(usage.handle(event.payload, &event.context.request_id, stop_at_ms).await?)
    }))
    .await
}
