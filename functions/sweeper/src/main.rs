//! Start of the sweeper function: read the environment, build the adapters, run.

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use sweeper::Sweeper;
use tokentill::{clock::SystemClock, config, domain::price_list::PriceList, dynamodb::Store, log, schedule::ScheduledEvent};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws().await;
    let mut env = config::Environment::of_process();
    let accounts = Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["accounts", "outbox"]));
    env.finish()?;
    let sweeper = Sweeper { accounts, clock: SystemClock, prices: PriceList::shipped()? };
    run(service_fn(async |event: LambdaEvent<ScheduledEvent>| {
        sweeper.run(event.payload.moment()?).await?;
        Ok::<_, Error>(())
    }))
    .await
}
