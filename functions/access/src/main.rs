//! Start of the access function: read the environment, build the adapters, run.

use access::{AccessApi, Cache};
use lambda_http::{Error, Request, run, service_fn};
use tokentill::{clock::SystemClock, config, domain::price_list::PriceList, dynamodb::Store, log};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws().await;
    let mut env = config::Environment::of_process();
    let api = AccessApi {
        tokens: env.parameter("TOKENTILL_SERVICE_TOKENS_PARAMETER", &aws),
        store: Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["accounts", "ledger", "tallies", "books", "gates"])),
        cache: Cache::new(env.bounded("TOKENTILL_ACCESS_CACHE_SECS", 5, 0..=60)),
        clock: SystemClock,
        prices: PriceList::shipped()?,
    };
    env.finish()?;
    run(service_fn(async |request: Request| Ok::<_, Error>(api.handle(request).await))).await
}
