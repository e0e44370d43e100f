//! The access API: may this user call the model, what did they use, and where do they subscribe (the contract, 3.3).

mod cache;
mod check;
mod events;
mod gate;
mod problem;
mod query;
mod sell;
mod usage;

pub use cache::Cache;
use http::{HeaderName, HeaderValue, header};
use lambda_http::{Body, Request, Response};
use problem::Problem;
pub use sell::Seller;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use tokentill::{
    domain::{id::UserId, price_list::PriceList, time::EpochSecs},
    log::Line,
    ports::{Accounts, Audit, CheckoutSessions, Clock, Gates, Hints, Portal, Reported, Sales, Secrets, Tallies, Unavailable},
};

/// A longer body is refused.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The function, with what it needs of the world.
#[derive(Debug)]
pub struct AccessApi<S, T, C, L> {
    /// The service tokens that may ask.
    pub tokens: S,
    /// Accounts, tallies, books and the ledger, all of them only read, and the grants of checks.
    pub store: T,
    /// What is known of users for a while.
    pub cache: Cache,
    /// The clock answers are made by.
    pub clock: C,
    /// What is sold.
    pub prices: PriceList,
    /// What sells it: a [`Seller`].
    pub seller: L,
}

/// One of the questions this API answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// May this user call the model?
    Access,
    /// The same, and the call is granted.
    Check,
    /// What did this user use?
    Usage,
    /// Which events were that?
    Events,
    /// Where does this user subscribe?
    Checkout,
    /// Where does this user look after its subscription?
    Portal,
}

/// Every route: method, path, question. `docs/openapi.yaml` describes them, and a test compares the two.
pub const ROUTES: [(&str, &str, Route); 6] = [
    ("GET", "/v1/access", Route::Access),
    ("POST", "/v1/check", Route::Check),
    ("GET", "/v1/usage", Route::Usage),
    ("GET", "/v1/usage/events", Route::Events),
    ("POST", "/v1/checkout", Route::Checkout),
    ("POST", "/v1/portal", Route::Portal),
];

impl Route {
    fn of(request: &Request) -> Result<Self, Problem> {
        let (method, path) = (request.method().as_str(), path_of(request));
        let found = ROUTES.iter().find(|(of_method, of_path, _)| *of_method == method && *of_path == path);
        found.map(|(.., route)| *route).ok_or_else(Problem::not_found)
    }
}

/// An answer that is none of the common ones: a status and headers of its own.
struct Reply {
    status: u16,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: serde_json::Value,
}

/// The body of a good answer, or what is wrong.
type Answer = Result<serde_json::Value, Problem>;

impl<S, T, C, P, Q> AccessApi<S, T, C, Seller<P, Q>>
where
    S: Secrets,
    T: Accounts + Tallies + Reported + Audit + Gates,
    C: Clock,
    P: Sales + CheckoutSessions + Portal,
    Q: Hints,
{
    /// Answers one request. It never fails: what goes wrong is an answer of its own.
    pub async fn handle(&self, request: Request) -> Response<Body> {
        let route = format!("{} {}", request.method(), path_of(&request));
        let answer = self.answer(&request).await;
        let error = answer.as_ref().err().and_then(|problem| problem.log.clone());
        let (reply, content_type) = match answer {
            Ok(reply) => (reply, "application/json"),
            Err(problem) => (problem.into_reply(), "application/problem+json"),
        };
        let line = Line::new("access", "answered").field("route", route).field("status", reply.status);
        line.maybe("error", error).write(&self.clock);
        let mut response = Response::new(Body::from(reply.body.to_string()));
        *response.status_mut() = http::StatusCode::from_u16(reply.status).unwrap_or_default();
        response.headers_mut().extend(reply.headers);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    }

    async fn answer(&self, request: &Request) -> Result<Reply, Problem> {
        self.authorise(request).await?;
        if request.body().len() > MAX_BODY_BYTES {
            return Err(Problem::too_large());
        }
        let body = match Route::of(request)? {
            Route::Check => return self.check(request).await,
            Route::Access => self.access(request).await,
            Route::Usage => self.usage(request).await,
            Route::Events => self.events(request).await,
            Route::Checkout => self.checkout(request).await,
            Route::Portal => self.portal(request).await,
        };
        Ok(Reply { status: 200, headers: Vec::new(), body: body? })
    }
}

impl<S: Secrets, T: Accounts + Tallies + Reported + Audit + Gates, C: Clock, L> AccessApi<S, T, C, L> {
    /// Compares with every active token, in constant time: neither how far a token is right nor which one it is shows.
    async fn authorise(&self, request: &Request) -> Result<(), Problem> {
        let secret = self.tokens.secret().await.map_err(|error| Problem::unavailable(error.to_string()))?;
        let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = header.and_then(bearer_token).ok_or_else(Problem::unauthorised)?;
        // Hashes have one length, so that the comparison does not tell a token's.
        let given = Sha256::digest(given.as_bytes());
        let mut matches = Choice::from(0);
        for token in secret.expose().split(|c: char| c.is_whitespace() || c == ',').filter(|token| !token.is_empty()) {
            matches |= Sha256::digest(token.as_bytes()).as_slice().ct_eq(given.as_slice());
        }
        if bool::from(matches) { Ok(()) } else { Err(Problem::unauthorised()) }
    }

    /// Now in the account's own time, which a test clock may have moved.
    async fn local_now(&self, user_id: &UserId) -> Result<EpochSecs, Unavailable> {
        let now = self.clock.now();
        Ok(self.store.account(user_id).await?.map_or(now, |account| account.local_time(now)))
    }
}

/// The path without the stage that some gateways put before it.
fn path_of(request: &Request) -> String {
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
