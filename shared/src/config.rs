//! What a function is told by its environment: read once, checked whole, and wrong only at start-up.

use std::str::FromStr;

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableCredentialsProvider, retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_sdk_dynamodb::config::SharedCredentialsProvider;

use crate::{
    clock::SystemClock,
    connection::{CONNECT_TIMEOUT, Connections, NoTls},
    dynamodb::Tables,
    ports::Clock,
    ssm::Parameter,
    stripe::{KeySource, SecretKey},
};

/// What is wrong with the environment: every problem at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the function's environment is wrong: {}", .0.join("; "))]
pub struct InvalidEnvironment(pub Vec<String>);

/// Stripe's mode that this deployment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StripeMode {
    /// Test mode and sandboxes; test clocks count.
    Test,
    /// Real money.
    Live,
}

impl StripeMode {
    /// Stripe's `livemode` in this mode.
    #[must_use]
    pub fn livemode(self) -> bool {
        self == Self::Live
    }
}

impl FromStr for StripeMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "test" => Ok(Self::Test),
            "live" => Ok(Self::Live),
            _ => Err("must be test or live".to_owned()),
        }
    }
}

/// Keys of one of Stripe's modes only: with a key of the other one every customer would be unknown, and usage be billed to
/// nobody.
#[derive(Debug)]
pub struct ModeKey<S> {
    secrets: S,
    mode: StripeMode,
}

impl<S> ModeKey<S> {
    /// The keys of this source that are of this mode.
    pub fn new(secrets: S, mode: StripeMode) -> Self {
        Self { secrets, mode }
    }
}

impl<C: Clock + Send + Sync> KeySource for ModeKey<Parameter<C>> {
    async fn key(&self) -> Result<SecretKey, String> {
        let secret = self.secrets.get().await.map_err(|error| error.to_string())?;
        check_mode(secret.expose(), self.mode)?;
        SecretKey::new(secret.expose()).map_err(|error| error.to_string())
    }
}

/// Stripe's keys say their mode: `sk_test_…` and `rk_test_…`, `sk_live_…` and `rk_live_…`. Others are not judged.
fn check_mode(key: &str, mode: StripeMode) -> Result<(), String> {
    let is_of = |name: &str| ["sk", "rk"].iter().any(|kind| key.starts_with(&format!("{kind}_{name}_")));
    match mode {
        StripeMode::Live if is_of("test") => {
            Err("the Stripe key is a test key and StripeMode is live: store a live key".to_owned())
        }
        StripeMode::Test if is_of("live") => {
            Err("the Stripe key is a live key and StripeMode is test: store a test key".to_owned())
        }
        _ => Ok(()),
    }
}

/// Reads environment variables and remembers what was wrong with them.
#[derive(Debug)]
pub struct Environment<F> {
    lookup: F,
    problems: Vec<String>,
}

impl Environment<fn(&str) -> Option<String>> {
    /// The process's own environment.
    #[must_use]
    pub fn of_process() -> Self {
        Self::new(|name| std::env::var(name).ok())
    }
}

impl<F: Fn(&str) -> Option<String>> Environment<F> {
    /// An environment by any look-up.
    pub fn new(lookup: F) -> Self {
        Self { lookup, problems: Vec::new() }
    }

    /// A variable that must be there and not be blank. The empty text where it is not: `finish` then fails.
    pub fn required(&mut self, name: &str) -> String {
        match self.optional(name) {
            Some(value) => value,
            None => {
                self.problems.push(format!("{name} is not set"));
                String::new()
            }
        }
    }

    /// A variable that may be missing or blank.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        (self.lookup)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// A variable that is parsed, with a default where it is missing.
    pub fn parsed<T: FromStr>(&mut self, name: &str, default: T) -> T
    where
        T::Err: std::fmt::Display,
    {
        let Some(value) = self.optional(name) else { return default };
        value.parse().unwrap_or_else(|error| {
            self.problems.push(format!("{name}: {error}"));
            default
        })
    }

    /// A number that must lie within bounds.
    pub fn bounded(&mut self, name: &str, default: u32, bounds: std::ops::RangeInclusive<u32>) -> u32 {
        let value = self.parsed(name, default);
        if !bounds.contains(&value) {
            self.problems.push(format!("{name} must be {} to {}", bounds.start(), bounds.end()));
        }
        value
    }

    /// Stripe's mode. It has no default: a guess could bill real money.
    pub fn stripe_mode(&mut self) -> StripeMode {
        let value = self.required("TOKENTILL_STRIPE_MODE");
        value.parse().unwrap_or_else(|error: String| {
            self.problems.push(format!("TOKENTILL_STRIPE_MODE {error}"));
            StripeMode::Test
        })
    }

    /// The names of the tables a function may use.
    pub fn tables(&mut self, names: &[&str]) -> Tables {
        let mut tables = Tables::default();
        for name in names {
            let value = self.required(&format!("TOKENTILL_{}_TABLE", name.to_uppercase()));
            let table = match *name {
                "accounts" => &mut tables.accounts,
                "customers" => &mut tables.customers,
                "processed" => &mut tables.processed,
                "outbox" => &mut tables.outbox,
                "ledger" => &mut tables.ledger,
                "tallies" => &mut tables.tallies,
                "books" => &mut tables.books,
                "quarantine" => &mut tables.quarantine,
                "control" => &mut tables.control,
                "gates" => &mut tables.gates,
                _ => {
                    self.problems.push(format!("there is no table {name}"));
                    continue;
                }
            };
            *table = value;
        }
        tables
    }

    /// A secret's parameter, by the variable that holds its name.
    pub fn parameter(&mut self, name: &str, config: &SdkConfig) -> Parameter<SystemClock> {
        let parameter = self.required(name);
        let ttl_secs = self.bounded("TOKENTILL_SECRETS_TTL_SECS", 300, 1..=3_600);
        Parameter::new(aws_sdk_ssm::Client::new(config), SystemClock, parameter, ttl_secs)
    }

    /// The Stripe key's parameter. A key of the other mode than the deployment's is refused.
    pub fn stripe_key(&mut self, config: &SdkConfig) -> ModeKey<Parameter<SystemClock>> {
        let keys = self.parameter("TOKENTILL_STRIPE_KEY_PARAMETER", config);
        ModeKey::new(keys, self.stripe_mode())
    }

    /// All is well, or everything that is not.
    ///
    /// # Errors
    /// [`InvalidEnvironment`] lists every problem.
    pub fn finish(self) -> Result<(), InvalidEnvironment> {
        if self.problems.is_empty() { Ok(()) } else { Err(InvalidEnvironment(self.problems)) }
    }
}

/// The AWS SDK's configuration of a function, read from what Lambda sets: the Region, the role's credentials, and, on a local
/// stack, another endpoint. Nothing else is looked for: the SDK's own search of profiles, containers and machines for credentials
/// would be a tenth of every binary, and a part of every start.
///
/// # Errors
/// [`NoTls`].
pub fn aws() -> Result<SdkConfig, NoTls> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(variable("AWS_REGION").map(Region::new))
        .credentials_provider(SharedCredentialsProvider::new(EnvironmentVariableCredentialsProvider::new()))
        .http_client(Connections::pooled()?)
        .timeout_config(timeouts())
        .retry_config(retries());
    config.set_endpoint_url(variable("AWS_ENDPOINT_URL"));
    Ok(config.build())
}

/// Limits on every call to AWS: a function must never wait for longer than its own timeout.
#[must_use]
pub fn timeouts() -> TimeoutConfig {
    use std::time::Duration;
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(Duration::from_secs(3))
        // Below the shortest timeout of a function, which is 10 s: it must live to answer.
        .operation_timeout(Duration::from_secs(6))
        .build()
}

/// How often a call to AWS is tried, at most.
#[must_use]
pub fn retries() -> RetryConfig {
    RetryConfig::standard().with_max_attempts(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_the_other_mode_is_refused() {
        for (key, mode, ok) in [
            ("sk_test_1", StripeMode::Test, true),
            ("rk_live_1", StripeMode::Live, true),
            ("rk_test_1", StripeMode::Live, false),
            ("sk_live_1", StripeMode::Test, false),
            ("other", StripeMode::Live, true),
        ] {
            let checked = check_mode(key, mode);
            assert_eq!(checked.is_ok(), ok, "{key} {mode:?}");
            assert!(checked.err().is_none_or(|error| !error.contains(key)));
        }
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut env = Environment::new(|name: &str| match name {
            "TOKENTILL_STRIPE_MODE" => Some("prod".to_owned()),
            "TOKENTILL_SECRETS_TTL_SECS" => Some("0".to_owned()),
            "BLANK" => Some("  ".to_owned()),
            _ => None,
        });
        env.required("BLANK");
        env.stripe_mode();
        env.bounded("TOKENTILL_SECRETS_TTL_SECS", 300, 1..=3600);
        env.tables(&["accounts"]);
        let text = env.finish().unwrap_err().to_string();
        for problem in [
            "BLANK is not set",
            "TOKENTILL_STRIPE_MODE must be test or live",
            "must be 1 to 3600",
            "TOKENTILL_ACCOUNTS_TABLE is not set",
        ] {
            assert!(text.contains(problem), "{text}");
        }
    }
}
