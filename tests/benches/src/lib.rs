//! What the functions' own work costs, without their I/O: see docs/performance.md, which has the commands and what they told.
//!
//! What CI holds are counts, in `tests/counts.rs`; times are for people.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what is measured is printed")]

pub mod cases;
pub mod instructions;
pub mod stream;
pub mod world;
