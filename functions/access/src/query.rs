//! A request's query, read and checked. Parameters that nobody knows are ignored.

use lambda_http::{Request, RequestExt};
use tokentill::domain::{
    id::{RequestId, UserId},
    time::EpochSecs,
};

use crate::Problem;

/// The query of a request.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a>(&'a Request);

impl<'a> Query<'a> {
    pub(crate) fn of(request: &'a Request) -> Self {
        Self(request)
    }

    /// A parameter as it is; of several of one name the first.
    pub(crate) fn text(self, name: &str) -> Option<&'a str> {
        self.0.query_string_parameters_ref()?.first(name)
    }

    /// The user that is asked about: every route needs one.
    pub(crate) fn user_id(self) -> Result<UserId, Problem> {
        let user_id = self.text("user_id");
        let user_id = user_id.ok_or_else(|| Problem::bad_request("user_id is missing: add ?user_id=…".to_owned()))?;
        UserId::new(user_id).map_err(|error| Problem::bad_request(error.to_string()))
    }

    /// The request that is asked about, if one is.
    pub(crate) fn request_id(self) -> Result<Option<RequestId>, Problem> {
        let request_id = self.text("request_id").map(RequestId::new);
        request_id.transpose().map_err(|error| Problem::bad_request(error.to_string()))
    }

    /// A moment in RFC 3339, if it is given.
    pub(crate) fn moment(self, name: &str) -> Result<Option<EpochSecs>, Problem> {
        let read = |text| {
            let wrong = || Problem::bad_request(format!("{name} must be RFC 3339, as 2026-11-22T12:00:00Z"));
            EpochSecs::parse_rfc3339(text).ok_or_else(wrong)
        };
        self.text(name).map(read).transpose()
    }

    /// How many are asked for, at most.
    pub(crate) fn limit(self, default: usize, most: usize) -> Result<usize, Problem> {
        let wrong = || Problem::bad_request(format!("limit must be a whole number from 1 to {most}"));
        let Some(text) = self.text("limit") else { return Ok(default) };
        text.parse().ok().filter(|limit| (1..=most).contains(limit)).ok_or_else(wrong)
    }
}
