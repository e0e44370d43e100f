//! The stack's secrets, written by the operator: SSM SecureString parameters.

use aws_sdk_ssm::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    types::ParameterType,
};
use tokentill::ports::{Secret, Unavailable};

/// Parameters that hold secrets.
#[expect(async_fn_in_trait, reason = "generic in this crate alone; no caller needs the futures to be `Send`")]
pub trait Parameters {
    /// The present value, or `None` if there is no such parameter.
    ///
    /// # Errors
    /// [`Unavailable`] if it cannot be read.
    async fn get(&self, name: &str) -> Result<Option<Secret>, Unavailable>;

    /// Writes a value, over the present one if there is one.
    ///
    /// # Errors
    /// [`Unavailable`] if it is not certain that it is written.
    async fn put(&self, name: &str, value: &Secret) -> Result<(), Unavailable>;
}

/// AWS's own.
#[derive(Debug, Clone)]
pub struct Ssm(pub Client);

impl Parameters for Ssm {
    async fn get(&self, name: &str) -> Result<Option<Secret>, Unavailable> {
        match self.0.get_parameter().name(name).with_decryption(true).send().await {
            Ok(answer) => Ok(answer.parameter.and_then(|parameter| parameter.value).map(|value| Secret::new(value.trim()))),
            Err(error) if error.code() == Some("ParameterNotFound") => Ok(None),
            Err(error) => Err(unavailable("reading an SSM parameter", name, &error)),
        }
    }

    async fn put(&self, name: &str, value: &Secret) -> Result<(), Unavailable> {
        let request = self.0.put_parameter().name(name).r#type(ParameterType::SecureString).overwrite(true);
        let sent = request.value(value.expose()).send().await;
        sent.map(drop).map_err(|error| unavailable("writing an SSM parameter", name, &error))
    }
}

/// SSM's messages may quote the request, so only its error code is told.
fn unavailable<E: ProvideErrorMetadata, R>(what: &'static str, name: &str, error: &SdkError<E, R>) -> Unavailable {
    let code = error.code().unwrap_or("not reachable; are Region and credentials those of the stack?");
    Unavailable { what, reason: format!("{name}: {code}") }
}

/// The secrets that a parameter holds, separated by white space or commas.
pub(super) fn split(value: &Secret) -> Vec<Secret> {
    value.expose().split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty()).map(Secret::new).collect()
}

/// Adds a secret behind those that are there, and reads them back: what happens next relies on it.
pub(super) async fn append(parameters: &impl Parameters, name: &str, secret: &Secret) -> Result<Vec<Secret>, Unavailable> {
    let mut secrets = parameters.get(name).await?.map(|value| split(&value)).unwrap_or_default();
    if !secrets.contains(secret) {
        secrets.push(secret.clone());
        let words: Vec<&str> = secrets.iter().map(Secret::expose).collect();
        parameters.put(name, &Secret::new(&words.join(" "))).await?;
        secrets = parameters.get(name).await?.map(|value| split(&value)).unwrap_or_default();
    }
    if secrets.contains(secret) {
        return Ok(secrets);
    }
    let reason = format!("{name}: it was overwritten at the same moment; run this again");
    Err(Unavailable { what: "adding a secret to an SSM parameter", reason })
}
