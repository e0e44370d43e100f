//! `POST /v1/checkout` and `POST /v1/portal`: links to Stripe's own pages, where a user subscribes and looks after what it has.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use lambda_http::Request;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use tokentill::{
    chance,
    config::StripeMode,
    domain::{
        account::Account,
        hint::Hint,
        id::{CheckoutSessionId, CustomerId, PlanId, PriceId, UserId},
        price_list::{Plan, Price},
        selling::{self, Offer, ReturnUrl, Step},
    },
    ports::{Accounts, CheckoutSessions, Clock, Hints, Portal, Sales, StripeError},
};

use crate::{AccessApi, Answer, Problem};

/// A sale is given up after this long, so that its caller is told before Lambda ends the function.
const DEADLINE: Duration = Duration::from_secs(9);
/// How often the customer is looked at for one sale: twice in general, and once more for everything that stands in the way.
const MAX_LOOKS: usize = 6;
/// How long the ids of a plan's prices are believed, in milliseconds.
const PRICES_TTL_MS: i64 = 5 * 60 * 1_000;

/// The ids of a plan's prices by their lookup keys.
type PriceIds = BTreeMap<String, PriceId>;
/// The prices of plans, and when they were read, in milliseconds since 1970.
type KnownPrices = BTreeMap<PlanId, (i64, PriceIds)>;

/// What sells: Stripe, and the queue by which a new customer is joined to its user.
#[derive(Debug)]
pub struct Seller<P, Q> {
    stripe: P,
    hints: Q,
    mode: StripeMode,
    /// A sale that takes longer is given up.
    deadline: Duration,
    known: Mutex<KnownPrices>,
}

impl<P, Q> Seller<P, Q> {
    /// Sells by this Stripe, which is of this mode.
    pub fn new(stripe: P, hints: Q, mode: StripeMode) -> Self {
        Self { stripe, hints, mode, deadline: DEADLINE, known: Mutex::default() }
    }

    /// The same, but a sale that takes longer than this is given up.
    #[must_use]
    pub fn with_deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckoutWanted {
    user_id: UserId,
    plan: PlanId,
    success_url: String,
    cancel_url: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PortalWanted {
    user_id: UserId,
    return_url: String,
}

/// A sale under way.
struct Sale<'a> {
    user_id: UserId,
    plan: &'a Plan,
    success_url: ReturnUrl,
    cancel_url: ReturnUrl,
}

impl<S, T, C, P, Q> AccessApi<S, T, C, Seller<P, Q>>
where
    T: Accounts,
    C: Clock,
    P: Sales + CheckoutSessions + Portal,
    Q: Hints,
{
    pub(crate) async fn checkout(&self, request: &Request) -> Answer {
        let wanted: CheckoutWanted = read(request)?;
        let plan = selling::plan_for_sale(&self.prices, &wanted.plan).map_err(|error| Problem::bad_request(error.to_string()))?;
        let sale = Sale {
            user_id: wanted.user_id,
            plan,
            success_url: self.url("success_url", &wanted.success_url)?,
            cancel_url: self.url("cancel_url", &wanted.cancel_url)?,
        };
        // Boxed: it is by far the largest future here, and every other request would carry it.
        self.in_time(Box::pin(self.sell(&sale))).await
    }

    pub(crate) async fn portal(&self, request: &Request) -> Answer {
        let wanted: PortalWanted = read(request)?;
        let return_url = self.url("return_url", &wanted.return_url)?.without_placeholder();
        self.in_time(async {
            let no_customer = || {
                Problem::of(404, "No customer", "this user has bought nothing yet: send it to POST /v1/checkout first".to_owned())
            };
            let account = self.store.account(&wanted.user_id).await?.ok_or_else(no_customer)?;
            match self.seller.stripe.portal(&account.customer_id, &return_url).await {
                Ok(link) => Ok(json!({"url": link.expose()})),
                Err(StripeError::NotFound { .. }) => Err(no_customer()),
                Err(error) => Err(portal_failed(error)),
            }
        })
        .await
    }

    /// Looks at the customer and does what is next, until a look finds the one session that may be answered.
    async fn sell(&self, sale: &Sale<'_>) -> Answer {
        let stripe = &self.seller.stripe;
        let account = self.store.account(&sale.user_id).await?;
        let mut customer = match &account {
            Some(account) => account.customer_id.clone(),
            None => self.new_customer(&sale.user_id, None, None).await?,
        };
        // The newest session at the look after which opening another one failed.
        let mut failed_after = None;
        for _ in 0..MAX_LOOKS {
            let (buyer, price_ids) = futures_util::join!(stripe.buyer(&customer), self.price_ids(sale.plan));
            let offer = self.offer(sale, &price_ids?)?;
            let now = self.clock.now();
            match selling::next_step(&offer.name(), &buyer?, now) {
                Step::ReplaceCustomer => {
                    customer = self.new_customer(&sale.user_id, account.as_ref(), Some(&customer)).await?;
                }
                Step::Subscribed { expire } => {
                    self.expire(&expire).await?;
                    let detail = "the user has a subscription already, which is changed and cancelled at portal_url";
                    return Err(self.conflict(&customer, sale, detail.to_owned()).await);
                }
                Step::FirstPaymentDue { page } => {
                    let detail = "the user has a subscription whose first payment is still due: it is made at payment_url, where \
                                  that is given, or at portal_url; without it Stripe ends the subscription within a day";
                    let problem = self.conflict(&customer, sale, detail.to_owned()).await;
                    return Err(match page {
                        Some(page) => problem.with("payment_url", page.expose()),
                        None => problem,
                    });
                }
                Step::Expire(sessions) => self.expire(&sessions).await?,
                Step::Open { after } => {
                    let again = failed_after.as_ref() == Some(&after);
                    let key = if again { chance::identifier() } else { selling::session_key(&customer, after.as_ref(), now) };
                    match stripe.open_session(&customer, &offer, &key).await {
                        Ok(()) => {}
                        // Somebody else was at it with another offer, or the failure is an old one, or a price was archived
                        // since it was read.
                        Err(error) if error.may_come_again_with_its_key() && !again => {
                            failed_after = Some(after);
                            self.forget_prices();
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Step::Answer(page) => return Ok(json!({"url": page.expose()})),
            }
        }
        Err(busy("other checkouts of the customer came in between each time"))
    }

    fn offer(&self, sale: &Sale<'_>, price_ids: &PriceIds) -> Result<Offer, Problem> {
        let (success_url, cancel_url) = (sale.success_url.clone(), sale.cancel_url.clone());
        Offer::new(sale.user_id.clone(), sale.plan, price_ids, success_url, cancel_url)
            .map_err(|missing| Problem::of(503, "Prices are missing", missing.to_string()).logged(missing.to_string()))
    }

    /// Makes a customer for the user, and has the two joined.
    async fn new_customer(
        &self,
        user_id: &UserId,
        account: Option<&Account>,
        in_place_of: Option<&CustomerId>,
    ) -> Result<CustomerId, Problem> {
        let customer = self.made_customer(user_id, in_place_of).await?;
        if selling::joins_before_it_buys(account) {
            let livemode = self.seller.mode.livemode();
            let hint = Hint::of_new_customer(&customer, self.clock.now(), livemode);
            let hint = hint.map_err(|error| Problem::unavailable(error.to_string()))?;
            self.seller.hints.send(&hint, hint.event_id.as_str()).await?;
        }
        Ok(customer)
    }

    /// Makes a customer. No failure that Stripe remembers with a key stands in the way of the next attempt.
    async fn made_customer(&self, user_id: &UserId, in_place_of: Option<&CustomerId>) -> Result<CustomerId, StripeError> {
        for key in selling::customer_keys(user_id, in_place_of, self.clock.now()) {
            match self.seller.stripe.make_customer(user_id, &key).await {
                Err(error) if error.may_come_again_with_its_key() => {}
                made => return made,
            }
        }
        self.seller.stripe.make_customer(user_id, &chance::identifier()).await
    }

    async fn expire(&self, sessions: &[CheckoutSessionId]) -> Result<(), Problem> {
        for session in sessions {
            match self.seller.stripe.expire_session(session).await {
                // If it was not open any more, the next look tells what became of it.
                Ok(()) | Err(StripeError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Why nothing is sold, with a link to the portal.
    async fn conflict(&self, customer: &CustomerId, sale: &Sale<'_>, detail: String) -> Problem {
        match self.seller.stripe.portal(customer, &sale.cancel_url.without_placeholder()).await {
            Ok(link) => Problem::of(409, "There is a subscription", detail).with("portal_url", link.expose()),
            Err(error) => portal_failed(error),
        }
    }

    /// The ids of a plan's prices, read afresh after a while. What was not found is never kept.
    async fn price_ids(&self, plan: &Plan) -> Result<PriceIds, StripeError> {
        let now_ms = self.clock.now_ms();
        let known = self.known_prices().get(&plan.id).cloned();
        if let Some((read_at_ms, ids)) = known
            && (0..PRICES_TTL_MS).contains(&now_ms.saturating_sub(read_at_ms))
        {
            return Ok(ids);
        }
        let keys: Vec<&str> = plan.prices.iter().map(Price::lookup_key).collect();
        let ids = self.seller.stripe.price_ids(&keys).await?;
        if keys.iter().all(|key| ids.contains_key(*key)) {
            self.known_prices().insert(plan.id.clone(), (now_ms, ids.clone()));
        }
        Ok(ids)
    }

    fn forget_prices(&self) {
        self.known_prices().clear();
    }

    fn known_prices(&self) -> MutexGuard<'_, KnownPrices> {
        self.seller.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn in_time(&self, work: impl Future<Output = Answer>) -> Answer {
        match tokio::time::timeout(self.seller.deadline, work).await {
            Ok(answer) => answer,
            Err(_) => Err(busy("Stripe took too long")),
        }
    }

    fn url(&self, name: &str, text: &str) -> Result<ReturnUrl, Problem> {
        ReturnUrl::new(text, self.seller.mode.livemode()).map_err(|error| Problem::bad_request(format!("{name}: {error}")))
    }
}

/// The body as JSON of this shape, and nothing else.
fn read<B: DeserializeOwned>(request: &Request) -> Result<B, Problem> {
    serde_json::from_slice(request.body()).map_err(|error| Problem::bad_request(format!("the body: {error}")))
}

/// Nothing is wrong but the moment.
fn busy(log: &str) -> Problem {
    let detail = "it could not be done in time; asking again does no harm".to_owned();
    Problem::of(503, "Not available", detail).retry_after(1).logged(log.to_owned())
}

fn portal_failed(error: StripeError) -> Problem {
    match error {
        StripeError::Refused { .. } => {
            let detail = "Stripe gives no link to its customer portal, which must be configured once: run `cargo till setup`";
            Problem::of(503, "The portal is not set up", detail.to_owned()).logged(error.to_string())
        }
        other => other.into(),
    }
}

impl From<StripeError> for Problem {
    fn from(error: StripeError) -> Self {
        let log = error.to_string();
        match error {
            StripeError::Unavailable { retry_after_secs, .. } => {
                let problem = Self::of(503, "Stripe is not available", "asking again does no harm".to_owned());
                problem.retry_after(retry_after_secs.unwrap_or(1)).logged(log)
            }
            StripeError::Unauthorised { .. } => {
                let detail = "Stripe does not take the API key for this; docs/operations.md lists the permissions it needs";
                Self::of(503, "Stripe is not available", detail.to_owned()).logged(log)
            }
            StripeError::Refused { ref code, .. } if code == "url_invalid" => {
                Self::bad_request("Stripe does not take one of the URLs".to_owned())
            }
            StripeError::Refused { code, request_id, .. } => {
                let detail = format!("{code}; Stripe's dashboard shows why, by the request {request_id}");
                Self::of(502, "Stripe refused it", detail).logged(log)
            }
            StripeError::NotFound { .. } | StripeError::Unreadable { .. } => Self::unavailable(log),
        }
    }
}
