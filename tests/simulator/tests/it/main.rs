//! The simulator's own tests, and as many seeds as there is time for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "this whole crate is a test")]
#![allow(clippy::as_conversions, reason = "test data is small")]

use simulator::{Broken, Story, play, told, tour};

/// How many stories `cargo test` plays, if `SIM_SEEDS` does not say.
const DEFAULT_SEEDS: u64 = 2_000;

/// What has to happen in as many stories.
const KINDS: [&str; 21] = [
    "500",
    "500 after it took effect",
    "Stripe down",
    "conflict",
    "dead letter",
    "delete lost",
    "delivered twice",
    "event delivered again",
    "event made up",
    "event never delivered",
    "function ended after",
    "function ended before",
    "index stale",
    "out of order",
    "record of the stream dropped",
    "reply lost",
    "request lost",
    "slow",
    "stands still",
    "throttled",
    "usage thrown away",
];

#[test]
fn the_same_seed_is_the_same_story_to_the_byte() {
    for seed in 0..6 {
        let [one, other] = [play(&Story::of(seed), true), play(&Story::of(seed), true)];
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(one.hash, other.hash);
    }
}

/// Its own trial: not the product is broken, but what it stands on. What must hold then does not, and the simulator has to say so
/// within a few of the stories that every run plays.
#[test]
fn a_broken_world_is_noticed() {
    // A Stripe that takes a report twice, a store that writes whatever the condition, and one that does half of a transaction.
    for (broken, guarantee) in [
        (Broken::Identifiers, "G3"),
        (Broken::Conditions(&["ledger"]), "G4"),
        (Broken::Conditions(&["ledger"]), "G5"),
        // Each of the two holds up a commit that lost a race, so that without one of them nothing is wrong.
        (Broken::Conditions(&["accounts", "customers"]), "G2"),
        (Broken::Transactions, "G4"),
    ] {
        let found = (0..200).find_map(|seed| {
            let violation = play(&Story { broken, ..Story::of(seed) }, false).violation?;
            violation.starts_with(guarantee).then_some((seed, violation))
        });
        let (seed, violation) = found.unwrap_or_else(|| panic!("{broken:?} is not noticed as {guarantee}"));
        println!("{broken:?} is noticed by seed {seed}: {violation:.200}");
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
    if seeds.end - seeds.start >= DEFAULT_SEEDS {
        for kind in KINDS {
            assert!(tour.injected.get(kind).is_some_and(|times| *times > 0), "{kind} never happened");
        }
        assert_eq!(tour.traces.len() as u64, tour.stories, "stories that went the same way");
    }
}
