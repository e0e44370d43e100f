//! A brief run of each target, over its seeds and changed copies of them: the same inputs whenever it is run.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "this whole crate is a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use fastrand::Rng;
use fuzz::{TARGETS, mutate, seeds, target};

/// How many inputs each target is given, if `FUZZ_INPUTS` does not say. They take a few seconds of processor time together.
const INPUTS: usize = 3_000;
/// No input is longer, in bytes.
const LONGEST: usize = 16_384;

/// Runs a target over changed copies of its seeds. A copy that is as good as another stays among those that are changed further.
fn brief_run(name: &str, least_taken: usize) {
    let target = target(name);
    let mut pool = seeds(name);
    for seed in &pool {
        assert!(target(seed), "{name}: a seed is not taken: {}", seed.escape_ascii());
    }
    let first = pool.len();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let inputs = number("FUZZ_INPUTS").unwrap_or(INPUTS);
    let mut taken = 0;
    let mut rng = Rng::with_seed(number("FUZZ_SEED").map_or(20_261_128, |seed| u64::try_from(seed).unwrap()));
    for n in 0..inputs {
        let chosen = rng.usize(0..pool.len());
        let input = mutate(&pool[chosen], &pool, LONGEST, &mut rng);
        let is_taken = catch_unwind(AssertUnwindSafe(|| target(&input))).unwrap_or_else(|panicked| {
            let why = panicked.downcast_ref::<String>().map(String::as_str).or(panicked.downcast_ref::<&str>().copied());
            panic!("{name}, input {n}: {}\n{}", why.unwrap_or("panicked"), input.escape_ascii());
        });
        taken += usize::from(is_taken);
        // What is taken is changed further, so that inputs get far from the seeds and never far from what is meant.
        if is_taken && pool.len() < first + 500 {
            pool.push(input);
        } else if is_taken {
            let at = rng.usize(first..pool.len());
            pool[at] = input;
        }
    }
    // Inputs that are all refused at the door would try nothing.
    println!("{name}: {taken} of {inputs} were taken");
    assert!(taken >= least_taken, "{name}: only {taken} of {inputs} were taken");
}

#[test]
fn whatever_header_and_body_come_only_what_was_signed_is_accepted() {
    brief_run("signature", 300);
}

#[test]
fn whatever_body_comes_its_hint_is_bounded_and_goes_through_the_queue_unchanged() {
    brief_run("envelope", 300);
}

#[test]
fn whatever_usage_comes_what_is_read_is_the_same_once_written_and_nothing_is_lost() {
    brief_run("usage_message", 300);
}

#[test]
fn whatever_price_list_is_taken_keeps_its_rules() {
    brief_run("price_list", 30);
}

#[test]
fn whatever_is_stored_is_read_as_it_was_written_or_not_at_all() {
    brief_run("stored_item", 300);
}

#[test]
fn every_target_has_a_brief_run_and_a_long_one() {
    let own = include_str!("brief.rs");
    for (name, _) in TARGETS {
        assert!(own.contains(&format!("brief_run({name:?}")), "{name}");
    }
    let all = TARGETS.map(|(name, _)| name).join(" ");
    assert!(include_str!("../run").contains(&format!("targets=({all})")), "{all}");
}
