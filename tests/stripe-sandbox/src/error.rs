//! Errors in Stripe's shape: `{"error": {"type", "code", "message", "param", …}}`.

use serde_json::{Value, json};

/// An answer other than 200, as Stripe words it. Source: API reference, "Errors".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    /// The HTTP status.
    pub(crate) status: u16,
    /// Stripe's `error.type`.
    pub(crate) kind: &'static str,
    /// Stripe's `error.code`; some errors have none.
    pub(crate) code: Option<&'static str>,
    /// The text for the developer.
    pub(crate) message: String,
    /// The parameter at fault, in form notation (`items[0][price]`).
    pub(crate) param: Option<String>,
    /// Why the card issuer declined, on card errors.
    pub(crate) decline_code: Option<&'static str>,
    /// Which rate limit was met; told by a header.
    pub(crate) limited_by: Option<&'static str>,
}

/// What every operation of the sandbox gives back.
pub(crate) type Reply = Result<Value, ApiError>;

impl ApiError {
    /// A 400 of type `invalid_request_error` without a code.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            status: 400,
            kind: "invalid_request_error",
            code: None,
            message: message.into(),
            param: None,
            decline_code: None,
            limited_by: None,
        }
    }

    /// The same, about one parameter.
    pub(crate) fn invalid_param(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.to_owned()), ..Self::invalid(message) }
    }

    /// A required parameter that is not there.
    pub(crate) fn missing(param: &str) -> Self {
        Self { code: Some("parameter_missing"), ..Self::invalid_param(param, format!("Missing required param: {param}.")) }
    }

    /// Parameters that Stripe (or this sandbox) does not know. Source: API reference, "Error codes", `parameter_unknown`.
    pub(crate) fn unknown_params(params: &[String]) -> Self {
        let plural = if params.len() == 1 { "" } else { "s" };
        Self {
            code: Some("parameter_unknown"),
            param: params.first().cloned(),
            ..Self::invalid(format!("Received unknown parameter{plural}: {}", params.join(", ")))
        }
    }

    /// The object that the URL names does not exist: 404.
    pub(crate) fn not_found(noun: &str, id: &str) -> Self {
        Self { status: 404, ..Self::no_such(noun, "id", id) }
    }

    /// An object that a parameter names does not exist: 400.
    pub(crate) fn no_such(noun: &str, param: &str, id: &str) -> Self {
        Self { code: Some("resource_missing"), ..Self::invalid_param(param, format!("No such {noun}: '{id}'")) }
    }

    /// A route that does not exist: 404.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        Self { status: 404, ..Self::invalid(format!("Unrecognized request URL ({method}: {path}).")) }
    }

    /// A missing or malformed API key: 401.
    pub(crate) fn unauthorised(message: &str) -> Self {
        Self { status: 401, ..Self::invalid(message) }
    }

    /// Somebody else holds the lock on the object: 429. Source: "Rate limits", on `lock_timeout`.
    pub(crate) fn lock_timeout() -> Self {
        Self {
            status: 429,
            code: Some("lock_timeout"),
            ..Self::invalid(
                "This object cannot be accessed right now because another API request or Stripe process is currently accessing it.",
            )
        }
    }

    /// A call too many: 429. Source: "Rate limits"; "Error codes" on `rate_limit`.
    pub(crate) fn rate_limited(limit: &'static str) -> Self {
        Self {
            status: 429,
            code: Some("rate_limit"),
            limited_by: Some(limit),
            ..Self::invalid(
                "Request rate limit exceeded. You can learn more about rate limits here https://stripe.com/docs/rate-limits.",
            )
        }
    }

    /// A declined card: 402.
    pub(crate) fn card_declined(code: &'static str, decline_code: Option<&'static str>) -> Self {
        let message = if code == "authentication_required" {
            "Your card was declined. This transaction requires authentication."
        } else {
            "Your card was declined."
        };
        Self { status: 402, kind: "card_error", code: Some(code), decline_code, ..Self::invalid(message) }
    }

    /// The error as Stripe's JSON.
    pub(crate) fn body(&self) -> Value {
        let mut error = serde_json::Map::new();
        error.insert("type".to_owned(), json!(self.kind));
        error.insert("message".to_owned(), json!(self.message));
        if let Some(code) = self.code {
            error.insert("code".to_owned(), json!(code));
            let page = code.replace('_', "-");
            error.insert("doc_url".to_owned(), json!(format!("https://stripe.com/docs/error-codes/{page}")));
        }
        if let Some(param) = &self.param {
            error.insert("param".to_owned(), json!(param));
        }
        if let Some(decline_code) = self.decline_code {
            error.insert("decline_code".to_owned(), json!(decline_code));
        }
        json!({ "error": error })
    }
}
