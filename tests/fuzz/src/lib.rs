//! What comes from outside the functions, in every shape: each target takes any bytes, hands them to the product's own code, and
//! fails if what must hold does not. That is more than "it does not panic": what is accepted was signed, what is read and written
//! again is the same, and what is kept is bounded.
//!
//! `cargo test` drives the targets over seeds from `events/` and changed copies of these, so many as take a few seconds.
//! `tests/fuzz/run` drives them with libFuzzer, for as long as one likes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    reason = "a target fails by a panic, which libFuzzer and a test notice alike"
)]

mod mutate;
mod seeds;
mod stored;
mod targets;

pub use mutate::mutate;
pub use seeds::seeds;

/// A target: takes any bytes, and panics if what must hold does not. Whether they were taken for what is meant.
pub type Target = fn(&[u8]) -> bool;

/// Every target, by its name.
pub const TARGETS: [(&str, Target); 5] = [
    ("signature", targets::signature),
    ("envelope", targets::envelope),
    ("usage_message", targets::usage_message),
    ("price_list", targets::price_list),
    ("stored_item", stored::stored_item),
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Target {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target).expect("there is a target of that name")
}
