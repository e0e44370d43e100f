//! The simulator's own tests, and as many seeds as there is time for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this whole crate is a test")]
#![allow(clippy::as_conversions, reason = "test data is small")]

use simulator::{Story, play, told, tour};

/// How many stories `cargo test` plays, if `SIM_SEEDS` does not say.
const DEFAULT_SEEDS: u64 = 60;

/// What has to happen in any sixty stories. Dead letters are rarer.
const KINDS: [&str; 15] = [
    "500",
    "500 after it took effect",
    "Stripe down",
    "conflict",
    "delete lost",
    "delivered twice",
    "event never delivered",
    "function ended after",
    "function ended before",
    "index stale",
    "reply lost",
    "request lost",
    "slow",
    "stands still",
    "throttled",
];

#[test]
fn the_same_seed_is_the_same_story_to_the_byte() {
    for seed in 0..6 {
        let [one, other] = [play(&Story::of(seed), true), play(&Story::of(seed), true)];
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.hash, other.hash);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn what_must_hold_holds_in_every_story() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FIRST").unwrap_or(0);
            first..first + number("SIM_SEEDS").unwrap_or(DEFAULT_SEEDS)
        }
    };
    let tour = tour(seeds.clone());
    println!("{} stories, {} calls, {} traces, injected: {:#?}", tour.stories, tour.calls, tour.traces.len(), tour.injected);
    for (seed, violation) in &tour.failures {
        println!("seed {seed}: {violation}");
    }
    if let Some((seed, _)) = tour.failures.first() {
        assert!(std::env::var_os("SIM_QUIET").is_none(), "seed {seed} does not hold");
        panic!("{}", told(*seed));
    }
    // A simulator that stopped injecting, or plays the same story over and over, proves nothing.
    if seeds.end - seeds.start >= 60 {
        for kind in KINDS {
            assert!(tour.injected.get(kind).is_some_and(|times| *times > 0), "{kind} never happened");
        }
        assert_eq!(tour.traces.len() as u64, tour.stories, "stories that went the same way");
    }
}
