//! The domain: what is billed, who has access, what Stripe's state means.
//!
//! **Invariant:** nothing in here performs I/O, reads a clock or draws a number; there is no `async` and no AWS or Stripe
//! type. Everything a reader must trust to believe a bill is a plain function of its arguments.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod access;
pub mod account;
pub mod audit;
pub mod counting;
pub mod destination;
pub mod envelope;
pub mod facts;
pub mod gate;
pub mod hint;
pub mod id;
pub mod notice;
pub mod period;
pub mod price_list;
pub mod read_back;
pub mod repair;
pub mod report;
pub mod segment;
pub mod selling;
pub mod signature;
pub mod sync;
pub mod time;
mod timeline;
pub mod usage;
