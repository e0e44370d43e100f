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
    /// After how many seconds asking again may help, if that is known: the header `Retry-After`.
    retry_after_secs: Option<u32>,
    /// What programs read beside the members that every problem has.
    members: Vec<(&'static str, String)>,
}

impl Problem {
    pub(crate) fn of(status: u16, title: &'static str, detail: String) -> Self {
        Self { status, title, detail, log: None, retry_after_secs: None, members: Vec::new() }
    }

    pub(crate) fn logged(self, log: String) -> Self {
        Self { log: Some(log), ..self }
    }

    pub(crate) fn retry_after(self, secs: u32) -> Self {
        Self { retry_after_secs: Some(secs), ..self }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.members.push((name, value.to_owned()));
        self
    }

    pub(crate) fn bad_request(detail: String) -> Self {
        Self::of(400, "Bad request", detail)
    }

    pub(crate) fn unauthorised() -> Self {
        let detail = "send Authorization: Bearer <service token>, with one of the tokens in the SSM parameter".to_owned();
        Self::of(401, "Unauthorised", detail)
    }

    pub(crate) fn not_found() -> Self {
        let routes: Vec<String> = ROUTES.iter().map(|(method, path, _)| format!("{method} {path}")).collect();
        Self::of(404, "Not found", format!("there is {}", routes.join(", ")))
    }

    pub(crate) fn too_large() -> Self {
        Self::of(413, "Body too large", "a body has at most 64 KiB".to_owned())
    }

    /// Something we depend on does not answer; the log is told what.
    pub(crate) fn unavailable(log: String) -> Self {
        let detail = "try again; if it stays so, the function's log says what is not available".to_owned();
        Self::of(503, "Not available", detail).logged(log)
    }

    pub(crate) fn into_reply(self) -> Reply {
        let mut body = json!({"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail});
        if let Some(body) = body.as_object_mut() {
            body.extend(self.members.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
        }
        let mut headers = Vec::new();
        if self.status == 401 {
            headers.push((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        }
        headers.extend(self.retry_after_secs.map(|secs| (header::RETRY_AFTER, HeaderValue::from(secs))));
        Reply { status: self.status, headers, body }
    }
}
