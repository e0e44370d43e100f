//! Reports: what is sent to Stripe of what was counted, and how it is never sent twice (G3, G4).

use super::{id::CustomerId, time::EpochSecs};

/// One report as it is sent: one meter event. Fixed before the first attempt, and the same at every further one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterReport {
    /// The customer that pays.
    pub customer: CustomerId,
    /// The meter's name at Stripe.
    pub event_name: String,
    /// The identifier by which Stripe knows it again, for at least 24 hours.
    pub identifier: String,
    /// How much, at least 1 and at most 15 digits.
    pub quantity: u64,
    /// A whole UTC minute inside the segment.
    pub minute: EpochSecs,
}
