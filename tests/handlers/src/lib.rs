//! What the handlers' integration tests run in: an embedded DynamoDB with the template's own tables, the real AWS SDK and the
//! real adapter on it, and small doubles for the ports that are not DynamoDB. Everything can fail on demand.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what fails here fails its test"
)]

mod clock;
mod engine;
mod faults;
mod lists;
mod mail;
mod meters;
mod queue;
mod secrets;
pub mod story;
mod template;
mod truth;
mod units;
mod wire;
mod world;

pub use clock::TestClock;
pub use engine::Engine;
pub use faults::{Fault, Faults, Faulty};
pub use lists::{Lists, event};
pub use mail::{Addresses, EventLog, Letterbox};
pub use meters::Meters;
pub use queue::{Queue, RecountQueue};
pub use secrets::TestSecret;
pub use template::Template;
pub use truth::StripeTruth;
pub use units::{PartitionKey, Units};
pub use wire::{Accidents, Wire, WireFault, cancelled, refused};
pub use world::World;
