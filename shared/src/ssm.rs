//! Secrets: SSM SecureString parameters, read with decryption and cached for a bounded time, so that a rotation needs no
//! deployment.

use aws_sdk_ssm::{Client, error::ProvideErrorMetadata};
use tokio::sync::Mutex;

use crate::ports::{Clock, Secret, SecretUnavailable, Secrets};

/// While SSM cannot be reached, a secret is used for at most this long after it was last read.
const STALE_AFTER_MS: i64 = 3_600_000;

/// The reason where no answer came.
const NOT_REACHABLE: &str = "not reachable";

fn is_outage(error: &SecretUnavailable) -> bool {
    matches!(error.reason.as_str(), NOT_REACHABLE | "ThrottlingException" | "InternalServerError" | "ServiceUnavailable")
}

/// One parameter, cached.
#[derive(Debug)]
pub struct Parameter<C> {
    client: Client,
    clock: C,
    name: String,
    ttl_ms: i64,
    cached: Mutex<Option<(Secret, i64)>>,
}

impl<C: Clock> Parameter<C> {
    /// A parameter that is read again once `ttl_secs` have passed.
    #[must_use]
    pub fn new(client: Client, clock: C, name: String, ttl_secs: u32) -> Self {
        Self { client, clock, name, ttl_ms: i64::from(ttl_secs).saturating_mul(1000), cached: Mutex::new(None) }
    }

    pub(crate) async fn get(&self) -> Result<Secret, SecretUnavailable> {
        // Held across the read, so that concurrent callers wait for one read instead of making many.
        let mut cached = self.cached.lock().await;
        let now_ms = self.clock.now_ms();
        if let Some((secret, read_at_ms)) = &*cached
            && now_ms.saturating_sub(*read_at_ms) < self.ttl_ms
        {
            return Ok(secret.clone());
        }
        match (self.read().await, &*cached) {
            (Ok(secret), _) => {
                *cached = Some((secret.clone(), now_ms));
                Ok(secret)
            }
            // Only an outage is bridged: a parameter that was removed or may no longer be read is gone at once.
            (Err(error), Some((secret, read_at_ms)))
                if is_outage(&error) && now_ms.saturating_sub(*read_at_ms) < STALE_AFTER_MS =>
            {
                Ok(secret.clone())
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn read(&self) -> Result<Secret, SecretUnavailable> {
        let unavailable = |reason: &str| SecretUnavailable { name: self.name.clone(), reason: reason.to_owned() };
        let request = self.client.get_parameter().name(&self.name).with_decryption(true);
        let answer = request.send().await.map_err(|error| unavailable(error.code().unwrap_or(NOT_REACHABLE)))?;
        let value = answer.parameter.and_then(|parameter| parameter.value).ok_or_else(|| unavailable("it is empty"))?;
        Ok(Secret::new(value.trim()))
    }
}

impl<C: Clock> Secrets for Parameter<C> {
    /// At most the cache's bound old; while SSM is not reachable, at most an hour old.
    async fn secret(&self) -> Result<Secret, SecretUnavailable> {
        self.get().await
    }
}
