//! Tokentill: Stripe billing for AI SaaS products, as Lambda functions in the user's own AWS account.
//!
//! This crate holds the [`domain`] (pure), its [`ports`] (what the domain needs of the world), and the adapters that carry it
//! out. The function crates are thin: they read their configuration, build adapters, and run a handler.

pub mod domain;
pub mod ports;
