//! The simulator: the real functions over the production ports, in a world of their own on one thread, in which everything that
//! can go wrong does, by a seed. See `docs/simulator.md`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails its test"
)]

mod engine;
mod front;
mod hub;
mod mail;
mod model;
mod queue;
mod shrink;
mod story;
mod stripe;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    ops::Range,
};

pub use hub::Fault;
pub use shrink::shrink;
pub use story::{Broken, Story};
pub use world::{Outcome, play};

/// How many times a failing story is played at most to make it short.
const MOST_PLAYS: usize = 300;

/// What many stories came to.
#[derive(Debug, Default)]
pub struct Tour {
    /// How many were played.
    pub stories: u64,
    /// How many calls left the functions.
    pub calls: u64,
    /// What was done to the functions, by kind.
    pub injected: BTreeMap<&'static str, u64>,
    /// The traces' hashes: as many as there were different orders of events.
    pub traces: BTreeSet<u64>,
    /// The first seeds whose stories did not hold, and what did not.
    pub failures: Vec<(u64, String)>,
}

/// Plays the stories of these seeds, on as many threads as there are processors, until one does not hold on each of them.
#[must_use]
pub fn tour(seeds: Range<u64>) -> Tour {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let shares: Vec<_> = (0..threads)
        .map(|nth| {
            let mine = seeds.clone().skip(nth).step_by(threads);
            std::thread::spawn(move || tour_alone(mine))
        })
        .collect();
    let mut tour = Tour::default();
    for share in shares {
        let share = share.join().expect("no story panics");
        tour.stories += share.stories;
        tour.calls += share.calls;
        for (kind, times) in share.injected {
            *tour.injected.entry(kind).or_default() += times;
        }
        tour.traces.extend(share.traces);
        tour.failures.extend(share.failures);
    }
    tour.failures.sort();
    tour
}

fn tour_alone(seeds: impl Iterator<Item = u64>) -> Tour {
    let mut tour = Tour::default();
    for seed in seeds {
        let outcome = play(&Story::of(seed), false);
        tour.stories += 1;
        tour.calls += outcome.calls;
        for (kind, times) in outcome.injected {
            *tour.injected.entry(kind).or_default() += times;
        }
        tour.traces.insert(outcome.hash);
        if let Some(violation) = outcome.violation {
            tour.failures.push((seed, violation));
            break;
        }
    }
    tour
}

/// A failing seed's story, shrunk, as a person reads it.
#[must_use]
pub fn told(seed: u64) -> String {
    let story = Story::of(seed);
    let Some(violation) = play(&story, false).violation else { return format!("seed {seed} holds") };
    let (short, outcome) = shrink(&story, &violation, MOST_PLAYS);
    let mut text = String::new();
    let _ = writeln!(text, "seed {seed}: {}", outcome.violation.as_deref().unwrap_or("holds once shrunk"));
    let _ = writeln!(
        text,
        "{} of {} steps, {} users, periods of {} s, {} free tier; replay the whole with SIM_SEED={seed}",
        short.steps.len(),
        story.steps.len(),
        short.users,
        short.period_secs,
        if short.has_free_tier { "a" } else { "no" }
    );
    // A call that nothing happened to is in the hash, and of no interest to a person.
    let is_told =
        |line: &&String| !line.rsplit_once(" #").is_some_and(|(_, call)| call.bytes().all(|byte| byte.is_ascii_digit()));
    for line in outcome.trace.iter().filter(is_told) {
        let _ = writeln!(text, "  {line}");
    }
    text
}
