//! What is wrong with a request, as RFC 9457 has it: `application/problem+json`.

use http::{HeaderValue, header};
use serde_json::json;

use crate::{ROUTES, Reply};

/// An answer that is not the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// HTTP's status.
    pub(crate) status: u16,
    title: &'static str,
    detail: String,
    /// What the log is told and the caller is not.
    pub(crate) log: Option<String>,
}

impl Problem {
    pub(crate) fn bad_request(detail: String) -> Self {
        Self { status: 400, title: "Bad request", detail, log: None }
    }

    pub(crate) fn unauthorised() -> Self {
        let detail = "send Authorization: Bearer <service token>, with one of the tokens in the SSM parameter".to_owned();
        Self { status: 401, title: "Unauthorised", detail, log: None }
    }

    pub(crate) fn not_found() -> Self {
        let routes: Vec<String> = ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
        Self { status: 404, title: "Not found", detail: format!("there is {}", routes.join(", ")), log: None }
    }

    pub(crate) fn too_large() -> Self {
        Self { status: 413, title: "Body too large", detail: "a body has at most 64 KiB".to_owned(), log: None }
    }

    /// Something we depend on does not answer; the log is told what.
    pub(crate) fn unavailable(log: String) -> Self {
        let detail = "try again; if it stays so, the function's log says what is not available".to_owned();
        Self { status: 503, title: "Not available", detail, log: Some(log) }
    }

    pub(crate) fn into_reply(self) -> Reply {
        let body = json!({"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail});
        let headers = match self.status {
            401 => vec![(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))],
            _ => Vec::new(),
        };
        Reply { status: self.status, headers, body }
    }
}
