//! The simulator's own tests, and as many seeds as there is time for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this whole crate is a test")]

use simulator::{Story, play, told, tour};

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
fn seeds() {
    let seeds = match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("SIM_FIRST").unwrap_or(0);
            first..first + number("SIM_SEEDS").unwrap_or(100)
        }
    };
    let tour = tour(seeds);
    eprintln!("{} stories, {} calls, {} traces, injected: {:#?}", tour.stories, tour.calls, tour.traces.len(), tour.injected);
    for (seed, violation) in &tour.failures {
        eprintln!("seed {seed}: {violation}");
    }
    if let Some((seed, _)) = tour.failures.first() {
        panic!("{}", told(*seed));
    }
}
