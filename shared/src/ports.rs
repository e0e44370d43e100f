//! What the domain needs of the world, as roles of one to three methods. The adapters fill them; tests and the simulator may
//! fill them otherwise.
#![allow(async_fn_in_trait, reason = "handlers are generic over ports and run on one thread; nobody needs these futures to be `Send`")]

use crate::domain::{facts::CustomerFacts, id::CustomerId, report::MeterReport};

/// Reads Stripe's present state.
pub trait StripeState {
    /// One customer with all its subscriptions, open invoices and completed checkout sessions.
    ///
    /// # Errors
    /// [`StripeError::NotFound`] if there never was such a customer; a deleted one is found, as deleted.
    async fn customer(&self, id: &CustomerId) -> Result<CustomerFacts, StripeError>;

    /// The customers on a test clock.
    ///
    /// # Errors
    /// [`StripeError`], as for [`StripeState::customer`].
    async fn customers_on_clock(&self, clock: &str) -> Result<Vec<CustomerId>, StripeError>;
}

/// Takes reports of usage: Stripe's Billing Meters.
pub trait MeterSink {
    /// Sends one report as one meter event, with its fixed identifier, quantity and timestamp.
    ///
    /// # Errors
    /// [`StripeError::Refused`] if it will never be taken; [`StripeError::Unavailable`] if its fate is unknown or it may be
    /// taken later.
    async fn send(&self, report: &MeterReport) -> Result<Delivered, StripeError>;
}

/// A report is at Stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivered {
    /// It was taken now.
    Now,
    /// Stripe knew its identifier: it was taken before.
    Before,
}

/// Why Stripe did not do what was asked. No text of it holds a key, a signature or a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    /// There is no such object.
    #[error("Stripe has no such object (request {request_id})")]
    NotFound {
        /// Stripe's name of the request, for its support and its dashboard.
        request_id: String,
    },
    /// It will never be done as asked.
    #[error("Stripe refused the request: {status} {code} (request {request_id})")]
    Refused {
        /// HTTP's status.
        status: u16,
        /// Stripe's error code, or its error's type where there is none.
        code: String,
        /// Stripe's message; it may name ids and parameters, and is kept for the audit, not for the log.
        message: String,
        /// Stripe's name of the request.
        request_id: String,
    },
    /// The API key is missing, wrong or may not do this: a person has to mend it, then it works as asked.
    #[error("Stripe does not accept the API key: {status} {code} (request {request_id}); check the key in SSM and its permissions")]
    Unauthorised {
        /// HTTP's status, 401 or 403.
        status: u16,
        /// Stripe's error code or type.
        code: String,
        /// Stripe's name of the request.
        request_id: String,
    },
    /// Nobody knows whether it was done, or it may be done later.
    #[error("Stripe is not available: {reason} (request {request_id})")]
    Unavailable {
        /// What happened: a timeout, a broken connection, 429, 5xx.
        reason: String,
        /// How long Stripe asks to wait.
        retry_after_secs: Option<u32>,
        /// Stripe's name of the request, if an answer came.
        request_id: String,
    },
    /// An answer came that we cannot read.
    #[error("Stripe's answer cannot be read: {reason} (request {request_id})")]
    Unreadable {
        /// Which object was expected.
        reason: String,
        /// Stripe's name of the request.
        request_id: String,
    },
}
