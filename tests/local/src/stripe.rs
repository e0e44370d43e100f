//! Stripe's public API as the local stack and the demo use it: what a payer does. What sells and bills is made by `cargo till
//! setup`, as in a real account.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use till::setup::api_version;
use tokentill::domain::hint::THIN_EVENTS;

use crate::progress::poll;

/// How long a call may meet rate limits, and how long it waits each time.
const LET_THROUGH: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(300);

/// Form fields, in Stripe's notation (`recurring[interval]`).
pub type Fields<'a> = &'a [(&'a str, &'a str)];

/// A client of Stripe's API.
#[derive(Debug, Clone)]
pub struct Stripe {
    url: String,
    key: String,
    http: reqwest::Client,
}

impl Stripe {
    pub(crate) fn new(url: &str, key: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(60)).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), key: key.to_owned(), http })
    }

    /// Reads.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn get(&self, path: &str, query: Fields<'_>) -> Result<Value> {
        self.send(path, self.http.get(format!("{}{path}", self.url)).query(query)).await
    }

    /// Creates or changes.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn post(&self, path: &str, fields: Fields<'_>) -> Result<Value> {
        self.send(path, self.http.post(format!("{}{path}", self.url)).form(fields)).await
    }

    /// A test account lets 25 calls a second through, ours and the functions' together. One too many had no effect: it comes again.
    async fn send(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value> {
        let request = request.bearer_auth(&self.key).header("stripe-version", api_version());
        poll(&format!("Stripe to let {path} through"), LET_THROUGH, PAUSE, || async {
            let request = request.try_clone().context("a request that cannot be repeated")?;
            let answer = request.send().await.with_context(|| format!("Stripe: {path}: no answer"))?;
            let status = answer.status();
            if status == reqwest::StatusCode::TOO_MANY_REQUESTS {
                return Ok(None);
            }
            let text = answer.text().await?;
            ensure!(status.is_success(), "Stripe: {path}: {status}: {text}");
            serde_json::from_str(&text).map(Some).with_context(|| format!("Stripe: {path}: no JSON"))
        })
        .await
    }

    /// Whether this is our sandbox, which lets us act as a payer.
    pub(crate) async fn is_sandbox(&self) -> bool {
        self.http.get(format!("{}/_sandbox/health", self.url)).send().await.is_ok_and(|answer| answer.status().is_success())
    }

    /// A price's id by its lookup key.
    ///
    /// # Errors
    /// Stripe refused.
    pub async fn price(&self, lookup_key: &str) -> Result<Option<String>> {
        let found = self.get("/v1/prices", &[("lookup_keys[]", lookup_key), ("active", "true")]).await?;
        Ok(data(&found).next().and_then(|price| text_of(price, "id")).map(str::to_owned))
    }

    /// Has our sandbox send thin events there too, by a destination of their own; answers its signing secret.
    pub(crate) async fn register_thin(&self, url: &str) -> Result<String> {
        let mut fields = vec![("url", url)];
        fields.extend(THIN_EVENTS.iter().map(|event| ("enabled_events[]", *event)));
        let destination = self.post("/_sandbox/event_destinations", &fields).await?;
        Ok(text_of(&destination, "secret").context("Stripe: a destination without a secret")?.to_owned())
    }
}

/// The entries of one of Stripe's lists.
pub fn data(list: &Value) -> impl Iterator<Item = &Value> {
    list.get("data").and_then(Value::as_array).into_iter().flatten()
}

/// A field that holds text.
#[must_use]
pub fn text_of<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field)?.as_str()
}

/// An object's id.
///
/// # Errors
/// It has none.
pub fn id_of(object: &Value) -> Result<String> {
    Ok(text_of(object, "id").context("Stripe: an object without an id")?.to_owned())
}
