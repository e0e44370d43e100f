//! A long stream of usage through the usage function without its I/O: whether an event's cost stays what it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{cases::runtime, world};

/// How many events one invocation gets, as the template has it.
const BATCH: usize = 500;
/// How many users there are.
const USERS: usize = 200;
/// How many events the warm-up handles.
const WARM_UP: usize = 20_000;

/// Handles so many events, batch by batch, from Lambda's payload to the answer. To the error output, since the other one is the
/// functions' log: a row each time twice as many were handled, of the events since the row before.
///
/// # Errors
/// An event would have to come again.
pub fn run(total: usize) -> Result<()> {
    let (usage, runtime) = (world::World::new()?.usage(), runtime()?);
    let user = |n: usize| format!("user_{}", n / 100 % USERS);
    let handle = |first: usize, count: usize| -> Result<Duration> {
        let payload = world::single_events(first, count, user);
        let before = cpu()?;
        let answer = runtime.block_on(usage.handle(world::sqs_event(&payload)?, &format!("inv_{first}"), i64::MAX))?;
        ensure!(answer.batch_item_failures.is_empty(), "some events have to come again");
        Ok(cpu()?.saturating_sub(before))
    };
    for first in (0..WARM_UP).step_by(BATCH) {
        handle(first, BATCH)?;
    }
    eprintln!("| events so far | CPU of an event | events a second and core |\n|---|---|---|");
    let (mut handled, mut next_row, mut cpu, mut since) = (0, 10_000.min(total), Duration::ZERO, 0);
    while handled < total {
        let count = BATCH.min(next_row - handled);
        cpu = cpu.saturating_add(handle(handled, count)?);
        handled += count;
        if handled == next_row {
            let events = u32::try_from(handled - since)?;
            let each = cpu.as_secs_f64() / f64::from(events);
            eprintln!("| {handled} | {:.2} µs | {:.0} |", each * 1e6, 1.0 / each);
            (cpu, since, next_row) = (Duration::ZERO, handled, (handled * 2).min(total));
        }
    }
    Ok(())
}

/// The processor time that this thread has used so far.
fn cpu() -> Result<Duration> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let ns = told.split_whitespace().next().context("schedstat is empty")?;
    Ok(Duration::from_nanos(ns.parse()?))
}
