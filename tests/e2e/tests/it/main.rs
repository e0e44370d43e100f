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

use tokio::sync::{Mutex, MutexGuard};

/// One stack at a time: they share the folder in which the functions are built, and two cores.
async fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::const_new(());
    ONE.lock().await
}
