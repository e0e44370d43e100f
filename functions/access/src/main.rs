//! Start of the access function: read the environment, build the adapters, run.

use std::time::Duration;

use access::{AccessApi, Cache, Seller};
use lambda_http::{Error, Request, run, service_fn};
use tokentill::{
    clock::SystemClock,
    config,
    domain::price_list::PriceList,
    dynamodb::Store,
    log,
    sqs::HintQueue,
    stripe::{Limits, Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let key = env.stripe_key(&aws);
    // A sale takes several calls within the function's ten seconds.
    let limits = Limits { attempt_timeout: Duration::from_secs(4), ..Limits::default() };
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?.with_limits(limits);
    let hints = HintQueue::new(aws_sdk_sqs::Client::new(&aws), env.required("TOKENTILL_ACCOUNT_CHANGES_QUEUE_URL"));
    let api = AccessApi {
        tokens: env.parameter("TOKENTILL_SERVICE_TOKENS_PARAMETER", &aws),
        store: Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["accounts", "ledger", "tallies", "books", "gates"])),
        cache: Cache::new(env.bounded("TOKENTILL_ACCESS_CACHE_SECS", 5, 0..=60)),
        clock: SystemClock,
        prices: PriceList::shipped()?,
        seller: Seller::new(Stripe::new(stripe), hints, env.stripe_mode()),
    };
    env.finish()?;
    run(service_fn(async |request: Request| Ok::<_, Error>(api.handle(request).await))).await
}
