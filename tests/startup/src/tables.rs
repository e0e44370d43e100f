//! The release binaries as processes: how long and how much a start takes, what a warm webhook costs, and the most memory.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use aws_sdk_dynamodb::types::AttributeValue;
use base64::{Engine, prelude::BASE64_STANDARD};
use benches::world::{self, WEBHOOK_SECRET, World};
use local::{FUNCTIONS, MiniStack, Tools, checkout};
use serde_json::{Value, json};
use tokentill::{clock::SystemClock, ports::Clock};

use crate::{
    function::{self, Function, Program},
    process::median,
    python::Python,
};

/// The package of the function that does nothing.
const BARE: &str = "bare";
/// The package of the function that sends a message and does nothing else.
const SENDER: &str = "sender";
/// How many events are not measured, so that a function is warm.
const WARM_UP: usize = 50;
const WEBHOOK_SAMPLE: &str = include_str!("../../../events/webhook-payment-failed.json");

/// Builds a function as `sam build` does.
async fn binary(name: &'static str) -> Result<PathBuf> {
    let built = local::function_binaries(&[name]).await?;
    built.into_iter().next().map(|(_, path)| path).context("nothing was built")
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Prints how long each function takes from its process to its first question for an event, by the bare function and by Python.
///
/// # Errors
/// Something cannot be built, installed or started.
pub(crate) async fn print_starts(only: &[String], rounds: usize) -> Result<()> {
    let python = Python::ready().await?;
    let mut names = vec![BARE];
    names.extend(FUNCTIONS.into_iter().filter(|name| only.is_empty() || only.iter().any(|wanted| wanted == name)));
    let built = local::function_binaries(&names).await?;
    let mut programs: Vec<(String, Program)> =
        built.into_iter().map(|(name, path)| (name.to_owned(), Program::binary(&path))).collect();
    programs.push((format!("webhook in {}", python.version), python.webhook()));
    let mut seen: Vec<(Vec<Duration>, Vec<Duration>)> = programs.iter().map(|_| Default::default()).collect();
    // One after the other, round by round, so that what else the machine does meets all of them.
    for round in 0..=rounds {
        for ((_, program), (times, cpus)) in programs.iter().zip(&mut seen) {
            let function = Function::start(program, Value::Null).await?;
            // The first round fills the system's file cache.
            if round > 0 {
                times.push(function.started_in);
                cpus.push(function.start_cpu);
            }
            function.end().await?;
        }
    }
    let of = |(times, cpus): (Vec<Duration>, Vec<Duration>)| (ms(median(times)), ms(median(cpus)));
    let rows: Vec<(String, (f64, f64))> = programs.into_iter().map(|(name, _)| name).zip(seen.into_iter().map(of)).collect();
    let (bare, _) = rows.first().map(|(_, row)| *row).context("nothing was measured")?;
    let (python, _) = rows.last().map(|(_, row)| *row).context("nothing was measured")?;
    println!("| function | start, ms | CPU, ms | by the bare one's start | by Python's start |\n|---|---|---|---|---|");
    for (name, (time, cpu)) in rows {
        println!("| {name} | {time:.1} | {cpu:.1} | {:.2} | 1/{:.0} |", time / bare, python / time);
    }
    Ok(())
}

/// API Gateway's event for a signed request, with this moment's signature.
fn webhook_event(body: &[u8]) -> Result<Vec<u8>> {
    let mut event: Value = serde_json::from_str(WEBHOOK_SAMPLE)?;
    let signature = world::signed(body, SystemClock.now().as_secs())?;
    let headers = event.get_mut("headers").and_then(Value::as_object_mut).context("the sample has no headers")?;
    headers.insert("stripe-signature".to_owned(), signature.into());
    headers.insert("content-length".to_owned(), body.len().to_string().into());
    let fields = event.as_object_mut().context("the sample is no object")?;
    fields.insert("body".to_owned(), BASE64_STANDARD.encode(body).into());
    fields.insert("isBase64Encoded".to_owned(), true.into());
    Ok(event.to_string().into_bytes())
}

/// Prints what an event costs the warm webhook, and the same job in Python, against the same emulated AWS; and what it costs one
/// function that only gives it back, and one that sends a message besides.
///
/// # Errors
/// Something cannot be built, installed, started or answered.
pub(crate) async fn print_warm(events: usize) -> Result<()> {
    let python = Python::ready().await?;
    let built = local::function_binaries(&[BARE, SENDER, "webhook"]).await?;
    let folder = checkout().join("target/startup");
    let ministack = MiniStack::start(&Tools::ready().await?, &folder, 0).await?;
    let mut variables: Vec<(String, String)> = [
        ("AWS_ENDPOINT_URL", ministack.url()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", local::REGION),
        ("AWS_DEFAULT_REGION", local::REGION),
        ("TOKENTILL_WEBHOOK_SECRETS_PARAMETER", "/tokentill/webhook-secrets"),
        ("IDEMPOTENCY_TABLE", "idempotency"),
        ("SECRET", WEBHOOK_SECRET),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    variables.push((function::HINT_QUEUE.to_owned(), python.prepare(&variables).await?));
    let mut rows = Vec::new();
    let mut programs: Vec<(String, Program)> =
        built.into_iter().map(|(name, path)| (name.to_owned(), Program::binary(&path))).collect();
    programs.push((format!("webhook in {}", python.version), python.webhook()));
    for (number, (name, mut program)) in programs.into_iter().enumerate() {
        program.variables.extend(variables.iter().cloned());
        let is_webhook = ![BARE, SENDER].contains(&name.as_str());
        rows.push((name, warm(&program, is_webhook, number.saturating_mul(1_000_000), events).await?));
    }
    ministack.end().await?;
    let (_, (_, most)) = rows.last().context("nothing was measured")?;
    let most = *most;
    println!("| function | latency, ms | CPU of an event, ms | by Python's CPU |\n|---|---|---|---|");
    for (name, (latency, cpu)) in rows {
        println!("| {name} | {latency:.1} | {cpu:.3} | 1/{:.0} |", most / cpu);
    }
    Ok(())
}

/// Latency and processor time of an event, in milliseconds.
async fn warm(program: &Program, is_webhook: bool, first: usize, events: usize) -> Result<(f64, f64)> {
    let mut function = Function::start(program, Value::Null).await?;
    let mut latencies = Vec::with_capacity(events);
    let mut before = Duration::ZERO;
    for n in 0..WARM_UP.saturating_add(events) {
        if n == WARM_UP {
            before = function.cpu()?;
        }
        let event = webhook_event(&world::stripe_event(first.saturating_add(n), 3_000))?;
        let (answer, took) = function.invoke(event).await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        ensure!(!is_webhook || answer.get("statusCode") == Some(&json!(200)), "the webhook answers {answer}");
        if n >= WARM_UP {
            latencies.push(took);
        }
    }
    let cpu = function.cpu()?.saturating_sub(before);
    function.end().await?;
    Ok((ms(median(latencies)), ms(cpu) / f64::from(u32::try_from(events)?)))
}

/// Prints the most memory that `usage` and `webhook` ever have, for the largest input that they can get.
///
/// # Errors
/// Something cannot be built, started or answered.
pub(crate) async fn print_memory() -> Result<()> {
    let (usage, webhook) = (binary("usage").await?, binary("webhook").await?);
    let account = serde_dynamo::to_item::<_, std::collections::HashMap<String, AttributeValue>>(&World::new()?.account)?;
    let account = Value::Object(account.iter().map(|(name, value)| (name.clone(), wire(value))).collect());
    let (payload, events) = world::largest_payload();
    let inputs = [
        ("usage", &usage, format!("{events} events in 6 MB"), payload),
        ("webhook", &webhook, "a body of 1 MiB".to_owned(), webhook_event(&world::stripe_event(0, 1_048_000))?),
        (
            "webhook",
            &webhook,
            "a body of 4.4 MB, which is 6 MB as Lambda gets it: refused".to_owned(),
            webhook_event(&vec![b'x'; 4_400_000])?,
        ),
    ];
    println!("| function | input | memory after the start, MB | at most, MB |\n|---|---|---|---|");
    for (name, path, what, input) in inputs {
        let mut function = Function::start(&Program::binary(path), account.clone()).await?;
        let mb = |kb: u64| f64::from(u32::try_from(kb).unwrap_or(u32::MAX)) / 1_024.0;
        let before = function.most_memory_kb()?;
        function.invoke(input).await?;
        println!("| {name} | {what} | {:.1} | {:.1} |", mb(before), mb(function.most_memory_kb()?));
        function.end().await?;
    }
    Ok(())
}

/// An attribute as DynamoDB's JSON has it.
fn wire(value: &AttributeValue) -> Value {
    match value {
        AttributeValue::S(text) => json!({ "S": text }),
        AttributeValue::N(number) => json!({ "N": number }),
        AttributeValue::Bool(value) => json!({ "BOOL": value }),
        AttributeValue::L(list) => json!({"L": list.iter().map(wire).collect::<Vec<_>>()}),
        AttributeValue::M(map) => {
            json!({"M": map.iter().map(|(name, value)| (name.clone(), wire(value))).collect::<serde_json::Map<_, _>>()})
        }
        // An account has no sets and no bytes.
        _ => json!({"NULL": true}),
    }
}
