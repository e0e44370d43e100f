//! The local stack: AWS, Stripe and Tokentill on loopback, from the same template and the same binaries as a real deployment.
//!
//! `cargo local` runs it for people ([`Stack::start`], then the demo month); the end-to-end tests run it for themselves.

mod aws;
pub mod demo;
mod deployment;
mod ministack;
mod place;
mod process;
mod progress;
mod stack;
mod stripe;
mod tools;

pub use aws::{Aws, Invoked};
pub use deployment::{FUNCTIONS, STACK, function_binaries};
pub use ministack::{MiniStack, REGION};
pub use place::{checkout, local_folder};
pub use progress::{poll, step};
pub use stack::{KilledWhen, Options, OtherStripe, ReportingPaused, Stack, StackJson};
pub use stripe::{Fields, Stripe, data, id_of, text_of};
pub use tools::{Tools, python};
