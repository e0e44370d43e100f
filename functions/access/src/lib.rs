//! The access API: may this user call the model, what did they use, and where do they subscribe (the contract, 3.3).

mod events;
mod problem;
mod query;
mod sell;
mod usage;

use std::collections::BTreeMap;

use lambda_http::{Body, Request, Response};
use problem::Problem;
use query::Query;
pub use sell::Seller;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokentill::{
    domain::{
        access::{self, Access},
        id::{MeterId, UserId},
        price_list::PriceList,
        segment::{Place, place},
        time::EpochSecs,
    },
    log::Line,
    ports::{Accounts, Audit, CheckoutSessions, Clock, Hints, Portal, Reported, Sales, Secrets, Tallies, Unavailable},
};

/// A longer body is refused.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct AccessApi<S, T, C, L> {
    /// The service tokens that may ask.
    pub tokens: S,
    /// Accounts, tallies, books and the ledger, all of them only read.
    pub store: T,
    /// The clock answers are made by.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
    /// What sells it: a [`Seller`].
    pub seller: L,
}

/// An answer's body, or what is wrong.
type Answer = Result<serde_json::Value, Problem>;

impl<S, T, C, P, Q> AccessApi<S, T, C, Seller<P, Q>>
where
    S: Secrets,
    T: Accounts + Tallies + Reported + Audit,
    C: Clock,
    P: Sales + CheckoutSessions + Portal,
    Q: Hints,
{
    /// Answers one request. It never fails: what goes wrong is an answer of its own.
    pub async fn handle(&self, request: Request) -> Response<Body> {
        let route = format!("{} {}", request.method(), route_of(&request));
        let answer = self.answer(&request).await;
        let (status, content_type, body) = match &answer {
            Ok(body) => (200, "application/json", body.to_string()),
            Err(problem) => (problem.status, "application/problem+json", problem.to_json().to_string()),
        };
        let mut line = Line::new("access", "answered").field("route", route).field("status", status);
        if let Err(problem) = &answer {
            line = line.maybe("error", problem.log.as_deref());
        }
        line.write(&self.clock);
        let retry_after = answer.as_ref().err().and_then(|problem| problem.retry_after_secs);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
        if status == 401 {
            response.headers_mut().insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
        }
        if let Some(secs) = retry_after {
            response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from(secs));
        }
        response
    }

    async fn answer(&self, request: &Request) -> Answer {
        self.authorise(request).await?;
        if request.body().len() > MAX_BODY_BYTES {
            return Err(Problem::too_large());
        }
        match (request.method().as_str(), route_of(request).as_str()) {
            ("GET", "/v1/access") => self.access(request).await,
            ("GET", "/v1/usage") => self.usage(request).await,
            ("GET", "/v1/usage/events") => self.events(request).await,
            ("POST", "/v1/checkout") => self.checkout(request).await,
            ("POST", "/v1/portal") => self.portal(request).await,
            _ => Err(Problem::not_found()),
        }
    }
}

impl<S: Secrets, T: Accounts + Tallies + Reported + Audit, C: Clock, L> AccessApi<S, T, C, L> {
    /// Compares with every active token, in constant time: neither how far a token is right nor which one it is shows.
    async fn authorise(&self, request: &Request) -> Result<(), Problem> {
        let secret = self.tokens.secret().await.map_err(|error| Problem::unavailable(error.to_string()))?;
        let header = request.headers().get(http::header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = header.and_then(bearer_token).ok_or_else(Problem::unauthorised)?;
        // Hashes have one length, so that the comparison does not tell a token's.
        let given = Sha256::digest(given.as_bytes());
        let mut matches = Choice::from(0);
        for token in secret.expose().split(|c: char| c.is_whitespace() || c == ',').filter(|token| !token.is_empty()) {
            matches |= Sha256::digest(token.as_bytes()).as_slice().ct_eq(given.as_slice());
        }
        if bool::from(matches) { Ok(()) } else { Err(Problem::unauthorised()) }
    }

    async fn access(&self, request: &Request) -> Answer {
        let user_id = Query::of(request).user_id()?;
        let now = self.clock.now();
        let account = self.store.account(&user_id).await?;
        let local_now = account.as_ref().map_or(now, |account| account.local_time(now));
        let place = place(account.as_ref(), &self.prices, local_now);
        let standing = access::standing(account.as_ref(), &self.prices, now);
        let has_quotas = standing.plan.as_ref().and_then(|id| self.prices.plan(id)).is_some_and(|plan| !plan.quotas.is_empty());
        let used = if has_quotas { self.used(&user_id, &place, local_now).await? } else { BTreeMap::new() };
        let access: Access = access::access(&user_id, account.as_ref(), &self.prices, now, &used, segment_end(&place, local_now));
        serde_json::to_value(access).map_err(|error| Problem::unavailable(error.to_string()))
    }

    /// Now in the account's own time, which a test clock may have moved.
    async fn local_now(&self, user_id: &UserId) -> Result<EpochSecs, Unavailable> {
        let now = self.clock.now();
        Ok(self.store.account(user_id).await?.map_or(now, |account| account.local_time(now)))
    }

    /// What was counted in the present segment, per meter.
    async fn used(&self, user_id: &UserId, place: &Place, local_now: EpochSecs) -> Result<BTreeMap<MeterId, u64>, Unavailable> {
        let Some(segment) = place.segment_key() else { return Ok(BTreeMap::new()) };
        let start = match place {
            Place::Billed(span) => span.start,
            Place::Free { start, .. } => *start,
            Place::NoSubscription | Place::UnknownUser => local_now,
        };
        let suffix = format!("/{segment}");
        let mut used: BTreeMap<MeterId, u64> = BTreeMap::new();
        for tally in self.store.tallies(user_id, start.day(), local_now.day().next()).await? {
            if tally.tally_key.ends_with(&suffix) {
                for (meter, counted) in tally.counted {
                    let sum = used.entry(meter).or_insert(0);
                    *sum = sum.saturating_add(counted);
                }
            }
        }
        Ok(used)
    }
}

fn segment_end(place: &Place, local_now: EpochSecs) -> EpochSecs {
    match place {
        Place::Billed(span) => span.end,
        Place::Free { end, .. } => *end,
        Place::NoSubscription | Place::UnknownUser => local_now,
    }
}

/// The path without the stage that some gateways put before it.
fn route_of(request: &Request) -> String {
    let path = request.uri().path();
    path.find("/v1/").and_then(|at| path.get(at..)).unwrap_or(path).trim_end_matches('/').to_owned()
}

fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    Some(token.trim()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

impl From<Unavailable> for Problem {
    fn from(error: Unavailable) -> Self {
        Self::unavailable(error.to_string())
    }
}
