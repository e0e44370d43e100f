//! What is wrong with a request, as RFC 9457 has it: `application/problem+json`.

use serde_json::{Value, json};

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
    pub(crate) retry_after_secs: Option<u32>,
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
        let detail =
            "there is GET /v1/access, GET /v1/usage, GET /v1/usage/events, POST /v1/checkout and POST /v1/portal".to_owned();
        Self::of(404, "Not found", detail)
    }

    pub(crate) fn too_large() -> Self {
        Self::of(413, "Body too large", "a body has at most 64 KiB".to_owned())
    }

    /// Something we depend on does not answer; the log is told what.
    pub(crate) fn unavailable(log: String) -> Self {
        let detail = "try again; if it stays so, the function's log says what is not available".to_owned();
        Self::of(503, "Not available", detail).logged(log)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut problem = json!({"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail});
        if let Some(problem) = problem.as_object_mut() {
            problem.extend(self.members.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())));
        }
        problem
    }
}
