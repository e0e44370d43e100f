//! Stripe, reached through async-stripe's typed request builders over our own small HTTP client, decoded into our own types.
//!
//! Why neither async-stripe's client nor its response types: its client opens a connection (and a TLS handshake) for every
//! call and hides the response's headers, `Retry-After` among them; its error type decodes the whole graph of Stripe's objects,
//! which more than doubles the binary; and its types refuse an object for one missing field without naming it. The builders are
//! worth having: they know each route's parameters in one pinned API version, which every call sends.
//!
//! Architecture invariants:
//! - Nothing outside this folder knows a Stripe type; the domain's [`facts`](crate::domain::facts) are all that leaves it.
//! - A key is never in a `Debug` output, an error or a log line, and neither is a body.
//! - Only what Stripe itself says is final. What a proxy, a load balancer or a broken connection says is
//!   [`StripeError::Unavailable`](crate::ports::StripeError::Unavailable).

mod client;
mod decode;
mod key;
mod meter;
mod repair;
mod retry;
mod sell;
mod state;

pub use client::{Answered, InvalidStripeClient, STRIPE_URL, StripeClient};
pub use key::{FixedKey, InvalidKey, KeySource, SecretKey};
pub use retry::Limits;

/// Stripe as the domain's ports want it: [`StripeState`](crate::ports::StripeState), [`MeterSink`](crate::ports::MeterSink)
/// and [`MeterSummaries`](crate::ports::MeterSummaries); for selling [`Sales`](crate::ports::Sales),
/// [`CheckoutSessions`](crate::ports::CheckoutSessions) and [`Portal`](crate::ports::Portal).
pub struct Stripe<K> {
    client: StripeClient<K>,
    /// The meters that were looked up so far.
    meters: meter::KnownMeters,
}

impl<K: KeySource> Stripe<K> {
    /// Fills the ports with this client. Keep it for the life of the process: its connections stay open between calls.
    #[must_use]
    pub fn new(client: StripeClient<K>) -> Self {
        Self { client, meters: meter::KnownMeters::default() }
    }

    /// The client, for calls that no port has.
    #[must_use]
    pub fn client(&self) -> &StripeClient<K> {
        &self.client
    }
}
