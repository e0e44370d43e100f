//! What the functions may allocate: budgets that are the same on every machine, without a clock. Each is a quarter above what was
//! measured, so that a change has to be meant.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this whole crate is a test")]

use allocation_counter::{AllocationInfo, measure};
use benches::{
    cases::{CASES, Case, runtime},
    world::{self, World},
};

/// The most allocations of one round of each benchmark.
const ALLOCATIONS: [(&str, u64); 13] = [
    ("signature", 2),
    ("signature-64k", 2),
    ("envelope", 260),
    ("webhook", 354),
    ("decide", 43),
    ("read-usage", 40),
    ("judge", 62),
    ("usage-10", 1_700),
    ("usage-100", 15_500),
    ("usage-1000", 153_000),
    ("encode-row", 85),
    ("decode-account", 94),
    ("access", 33),
];

/// What one round allocates, once everything that is made only once has been.
fn of_a_round(case: &Case) -> AllocationInfo {
    let mut play = case.prepared().unwrap();
    play().unwrap();
    measure(|| play().unwrap())
}

#[test]
fn no_benchmark_allocates_more_than_its_budget() {
    let budgets: std::collections::BTreeMap<_, _> = ALLOCATIONS.into();
    let mut over = Vec::new();
    for case in CASES {
        let allocated = of_a_round(&case);
        println!("{}: {} allocations, {} bytes", case.name, allocated.count_total, allocated.bytes_total);
        if allocated.count_total > budgets[case.name] {
            over.push(format!("{}: {}", case.name, allocated.count_total));
        }
        assert_eq!(allocated.count_current, 0, "{} keeps something", case.name);
    }
    assert!(over.is_empty(), "more allocations than their budgets: {over:?}");
}

#[test]
fn an_event_allocates_no_more_in_a_large_batch_than_in_a_small_one() {
    let of = |name: &str| of_a_round(&Case::named(name).unwrap()).count_total;
    let (of_ten, of_a_thousand) = (of("usage-10"), of("usage-1000"));
    assert!(of_a_thousand <= of_ten * 100, "{of_ten} of 10 and {of_a_thousand} of 1,000");
}

/// The function has 256 MB; what the SDK needs beside this is in docs/performance.md.
#[test]
fn the_largest_batch_is_handled_in_a_fraction_of_the_functions_memory() {
    let (usage, runtime) = (World::new().unwrap().usage(), runtime().unwrap());
    let (payload, events) = world::largest_payload();
    let allocated = measure(|| {
        let answer = runtime.block_on(usage.handle(world::sqs_event(&payload).unwrap(), "inv", i64::MAX)).unwrap();
        assert!(answer.batch_item_failures.is_empty());
    });
    println!("{} bytes in and {events} events: at most {} bytes", payload.len(), allocated.bytes_max);
    assert!(allocated.bytes_max < 23_000_000, "{allocated:?}");
}

/// The function has 256 MB as well.
#[test]
fn the_largest_body_takes_no_more_than_a_few_times_its_own_size() {
    let (webhook, runtime) = (World::new().unwrap().webhook(), runtime().unwrap());
    let most = |body: Vec<u8>, status: u16| {
        let length = body.len();
        let request = world::webhook_request(body).unwrap();
        let allocated = measure(|| assert_eq!(runtime.block_on(webhook.handle(request)).status().as_u16(), status));
        println!("{length} bytes, answered {status}: at most {} bytes more", allocated.bytes_max);
        allocated.bytes_max
    };
    assert!(most(world::stripe_event(0, 1_048_000), 200) < 13_000_000);
    // Lambda hands over at most 6 MB; what is longer than 1 MiB is refused unread.
    assert!(most(vec![b'x'; 6_000_000], 413) < 50_000);
}
