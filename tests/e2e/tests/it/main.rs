//! The deployed stack, from outside.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "this whole crate is a test")]

mod cli;
mod demo;
mod grants;
mod official;
mod producer;
mod python;
mod samples;
mod sizes;
mod used;

use tokio::sync::{Semaphore, SemaphorePermit};

/// Two stacks at a time: they do not meet, and mostly wait, but a machine's memory and processors are not without end.
static TWO: Semaphore = Semaphore::const_new(2);

/// A stack's turn.
async fn turn() -> SemaphorePermit<'static> {
    TWO.acquire().await.unwrap()
}

/// The turn of who must be alone: stacks share the folder in which the functions are built.
async fn alone() -> SemaphorePermit<'static> {
    TWO.acquire_many(2).await.unwrap()
}
