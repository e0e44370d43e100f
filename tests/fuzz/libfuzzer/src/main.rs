//! The targets under libFuzzer: `FUZZ_TARGET` names the one that is tried.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

static TARGET: LazyLock<fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names the target");
    fuzz::target(&name)
});

fuzz_target!(|data: &[u8]| {
    TARGET(data);
});

// Every second change is one of ours, which knows JSON.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let changed = fuzz::mutate(&data[..size], &[], max_size, &mut fastrand::Rng::with_seed(u64::from(seed)));
    data[..changed.len()].copy_from_slice(&changed);
    changed.len()
});
