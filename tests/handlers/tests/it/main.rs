//! Each handler through the real AWS SDK and the real adapters, against an embedded DynamoDB with the template's tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this whole crate is a test"
)]
#![allow(clippy::as_conversions, reason = "test data is small")]

mod access;
mod audit;
mod check;
mod cli;
mod cost;
mod guarantees;
mod life;
mod load;
mod logs;
mod notifier;
mod openapi;
mod repair;
mod reporter;
mod samples;
mod schema;
mod secrets;
mod sell;
mod stories;
mod sweeper;
mod sync;
mod usage;
mod versions;
mod webhook;
