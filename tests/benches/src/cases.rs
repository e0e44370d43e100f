//! The small benchmarks: each makes its input once and is then played as often as one likes.

use std::{collections::HashMap, hint::black_box};

use anyhow::{Context, Result, bail};
use aws_sdk_dynamodb::types::AttributeValue;
use tokentill::domain::{
    account::Account,
    counting::{Intake, LedgerRow, judge, moment},
    envelope,
    gate::{Asked, Gate, Granted},
    id::UserId,
    signature::{self, WebhookSecrets},
    sync::{Failures, decide},
    time::EpochSecs,
    usage::{Message, read_message},
};
use tokio::runtime::Runtime;

use crate::world::{self, NOW_MS, USER, WEBHOOK_SECRET, World};

/// One benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name in the tables.
    pub name: &'static str,
    /// What it does, for a reader.
    pub what: &'static str,
    /// How many usage events one round handles; 1 where it is not about usage.
    pub events: u32,
    prepare: fn() -> Result<Play>,
}

/// What one round does.
type Play = Box<dyn FnMut() -> Result<()>>;

impl Case {
    /// Makes the input; what comes back plays one round.
    ///
    /// # Errors
    /// The samples cannot be made.
    pub fn prepared(&self) -> Result<Play> {
        (self.prepare)()
    }

    /// The benchmark of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Self> {
        CASES.into_iter().find(|case| case.name == name).with_context(|| format!("there is no benchmark {name}"))
    }
}

const fn case(name: &'static str, what: &'static str, events: u32, prepare: fn() -> Result<Play>) -> Case {
    Case { name, what, events, prepare }
}

/// All benchmarks.
pub const CASES: [Case; 13] = [
    case("signature", "verify the signature of a webhook of 3 KB", 1, || verify(3_000)),
    case("signature-64k", "the same of 64 KB", 1, || verify(64_000)),
    case("envelope", "read the envelope of a webhook of 3 KB", 1, read_envelope),
    case("webhook", "the webhook function: a request of 3 KB, to its answer", 1, answer_webhook),
    case("decide", "what a customer's facts make of its account", 1, decide_account),
    case("read-usage", "read one usage message", 1, read_usage),
    case("judge", "decide about one usage event", 1, judge_event),
    case("usage-10", "the usage function: 10 events of one user, Lambda's payload to answer", 10, || handle_usage(10)),
    case("usage-100", "the same, 100 events", 100, || handle_usage(100)),
    case("usage-1000", "the same, 1,000 events", 1_000, || handle_usage(1_000)),
    case("encode-row", "make a ledger row's item", 1, encode_row),
    case("decode-account", "read an account's item", 1, decode_account),
    case("access", "decide about one check, and make the answer", 1, decide_access),
];

/// A runtime as a function has it.
///
/// # Errors
/// The system gives none.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_time().build()?)
}

fn now() -> EpochSecs {
    EpochSecs::from_ms(NOW_MS)
}

fn verify(bytes: usize) -> Result<Play> {
    let body = world::stripe_event(0, bytes);
    let header = world::signed(&body, now().as_secs())?;
    let secrets = WebhookSecrets::parse(WEBHOOK_SECRET)?;
    Ok(Box::new(move || Ok(signature::verify(Some(black_box(&header)), black_box(&body), &secrets, now())?)))
}

fn read_envelope() -> Result<Play> {
    let body = world::stripe_event(0, 3_000);
    Ok(Box::new(move || {
        black_box(envelope::read(black_box(&body), now(), false)?);
        Ok(())
    }))
}

fn answer_webhook() -> Result<Play> {
    let (webhook, runtime, body) = (World::new()?.webhook(), runtime()?, world::stripe_event(0, 3_000));
    Ok(Box::new(move || {
        let answer = runtime.block_on(webhook.handle(world::webhook_request(body.clone())?));
        if !answer.status().is_success() {
            bail!("the webhook answers {}", answer.status());
        }
        Ok(())
    }))
}

fn decide_account() -> Result<Play> {
    let (world, user_id, failures) = (World::new()?, UserId::new(USER)?, Failures::default());
    Ok(Box::new(move || {
        black_box(decide(&world.prices, Some(&world.account), &user_id, black_box(&world.facts), &failures, NOW_MS));
        Ok(())
    }))
}

fn read_usage() -> Result<Play> {
    let body = world::call(USER, 1).to_string();
    Ok(Box::new(move || {
        black_box(read_message(black_box(&body))?);
        Ok(())
    }))
}

fn intake() -> Intake {
    Intake { received_at_ms: NOW_MS, written_by: "2f5a5a0e-7b1c-4bd6-9d6a-1f0a6e2f3c11".to_owned(), retention_days: 400 }
}

fn event() -> Result<tokentill::domain::usage::UsageEvent> {
    let Message::Events(entries) = read_message(&world::call(USER, 1).to_string())? else { bail!("the sample is no event") };
    entries.into_iter().next().context("the sample is empty")?.map_err(|(invalid, _)| invalid.into())
}

fn row(world: &World) -> Result<LedgerRow> {
    let event = event()?;
    let at = moment(&event, Some(&world.account), NOW_MS).ok().context("the sample is out of the window")?;
    Ok(judge(&event, at, Some(&world.account), &world.prices, &intake()).row)
}

fn judge_event() -> Result<Play> {
    let (world, event, intake) = (World::new()?, event()?, intake());
    Ok(Box::new(move || {
        let at = moment(&event, Some(&world.account), NOW_MS).ok().context("the sample is out of the window")?;
        black_box(judge(black_box(&event), at, Some(&world.account), &world.prices, &intake));
        Ok(())
    }))
}

fn handle_usage(events: usize) -> Result<Play> {
    let (usage, runtime) = (World::new()?.usage(), runtime()?);
    let payload = world::single_events(0, events, |_| USER.to_owned());
    Ok(Box::new(move || {
        let answer = runtime.block_on(usage.handle(world::sqs_event(black_box(&payload))?, "inv_1", i64::MAX))?;
        if !answer.batch_item_failures.is_empty() {
            bail!("some events have to come again");
        }
        Ok(())
    }))
}

fn encode_row() -> Result<Play> {
    let row = row(&World::new()?)?;
    Ok(Box::new(move || {
        black_box(serde_dynamo::to_item::<_, HashMap<String, AttributeValue>>(black_box(&row))?);
        Ok(())
    }))
}

fn decode_account() -> Result<Play> {
    let item: HashMap<String, AttributeValue> = serde_dynamo::to_item(&World::new()?.account)?;
    Ok(Box::new(move || {
        black_box(serde_dynamo::from_item::<_, Account>(black_box(item.clone()))?);
        Ok(())
    }))
}

fn decide_access() -> Result<Play> {
    let (world, user_id, granted) = (World::new()?, UserId::new(USER)?, Granted::default());
    let asked = Asked { requests: 1, others: std::collections::BTreeMap::new() };
    Ok(Box::new(move || {
        let gate = Gate::new(&user_id, Some(&world.account), &world.prices, now());
        let denial = gate.denial(Some(&asked), &granted, None);
        if gate.take(&asked, &granted, None).is_none() || denial.is_some() {
            bail!("the sample user is denied: {denial:?}");
        }
        black_box(serde_json::to_vec(&gate.answer(denial, &granted, None, true))?);
        Ok(())
    }))
}
