//! Start of the notifier function: read the environment, build the adapters, run.

use std::time::Duration;

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use notifier::{
    Notifier, Post, RandomNames,
    bus::Bus,
    event::Trigger,
    ses::{Sender, Ses, unpooled},
};
use tokentill::{
    clock::SystemClock,
    config,
    domain::{email::Letterhead, price_list::PriceList},
    dynamodb::Store,
    log,
    ports::Clock,
    records,
    stripe::{Limits, Stripe, StripeClient},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    log::start();
    let aws = config::aws()?;
    let mut env = config::Environment::of_process();
    let outbox = Store::new(aws_sdk_dynamodb::Client::new(&aws), env.tables(&["outbox"]));
    let bus = Bus::new(aws_sdk_eventbridge::Client::new(&aws), env.required("TOKENTILL_EVENT_BUS"));
    let key = env.stripe_key(&aws);
    // A batch is ten notices, and Stripe may be slow for each.
    let limits = Limits { attempt_timeout: Duration::from_secs(4), attempts: 2, ..Limits::default() };
    let stripe = StripeClient::new(env.optional("TOKENTILL_STRIPE_URL").as_deref(), key)?.with_limits(limits);
    let product = env.required("TOKENTILL_PRODUCT_NAME");
    let support = env.optional("TOKENTILL_SUPPORT_EMAIL");
    let (reply_to, configuration_set) =
        (env.optional("TOKENTILL_EMAIL_REPLY_TO"), env.optional("TOKENTILL_EMAIL_CONFIGURATION_SET"));
    let post = match env.optional("TOKENTILL_EMAIL_FROM") {
        Some(from) => Some(Post {
            mailer: Ses::new(
                aws_sdk_sesv2::config::Builder::from(&aws).http_client(unpooled()?),
                Sender { from, from_name: product.clone(), reply_to, configuration_set },
            ),
            letterhead: Letterhead { product, support },
        }),
        None => None,
    };
    let livemode = env.stripe_mode().livemode();
    env.finish()?;
    let (stripe, prices) = (Stripe::new(stripe), PriceList::shipped()?);
    let notifier = Notifier { outbox, bus, stripe, post, names: RandomNames, clock: SystemClock, prices, livemode };
    run(service_fn(async |event: LambdaEvent<Trigger>| {
        let stop_at_ms = records::stop_at_ms(notifier.clock.now_ms(), event.context.deadline);
        Ok::<_, Error>(notifier.handle(event.payload, stop_at_ms).await?)
    }))
    .await
}
