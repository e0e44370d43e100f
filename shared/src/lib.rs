//! Tokentill: Stripe billing for AI SaaS products, as Lambda functions in the user's own AWS account.
//!
//! This crate holds the [`domain`] (pure), its [`ports`] (what the domain needs of the world), and the adapters that carry it
//! out. The function crates are thin: they read their configuration, build adapters, and run a handler.

pub mod chance;
pub mod clock;
pub mod config;
pub mod connection;
pub mod domain;
pub mod dynamodb;
pub mod log;
pub mod ports;
pub mod producer;
pub mod records;
pub mod schedule;
pub mod sqs;
pub mod ssm;
pub mod stripe;
