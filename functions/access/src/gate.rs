//! `GET /v1/access` and `POST /v1/check`: what is allowed, and the grant.

use std::sync::Arc;

use futures_util::future::OptionFuture;
use http::{HeaderName, HeaderValue, header};
use lambda_http::Request;
use tokentill::{
    domain::{
        access::{Access, Reason, next_change},
        gate::{Counted, Gate, Granted, Taken, usual_days},
        id::UserId,
        time::{EpochSecs, MINUTE_SECS, UtcDay},
    },
    ports::{Accounts, Audit, Clock, Gates, Reported, Secrets, Tallies, Unavailable},
};

use crate::{AccessApi, Answer, Problem, Reply, cache::Known, check::Check, query::Query};

/// A denial is told from the cache for at most so long, in milliseconds: who has just paid is let in.
const DENIAL_AGE_MS: i64 = 1_000;
/// How often a grant is asked for at most: once more where usage that never asked had to be made up for, and once where some
/// was counted meanwhile.
const TAKE_ROUNDS: u32 = 3;
/// The rate limit's name in the `RateLimit` fields.
const POLICY: &str = "minute";

impl<S: Secrets, T: Accounts + Tallies + Reported + Audit + Gates, C: Clock, L> AccessApi<S, T, C, L> {
    pub(crate) async fn access(&self, request: &Request) -> Answer {
        let user_id = Query::of(request).user_id()?;
        let now_ms = self.clock.now_ms();
        let (mut known, _) = self.known(&user_id, now_ms).await?;
        let mut gate = self.gate(&user_id, &known, now_ms);
        let mut reason = gate.denial(None, &known.granted, known.counted.as_ref());
        if reason.is_some() && is_old(&known, now_ms) {
            known = self.read(&user_id, now_ms).await?;
            gate = self.gate(&user_id, &known, now_ms);
            reason = gate.denial(None, &known.granted, known.counted.as_ref());
        }
        to_json(&gate.answer(reason, &known.granted, known.counted.as_ref(), false))
    }

    /// Denies by what is known, or else asks the store for the grant. What is known bounds what was granted from below, so a
    /// denial by it takes nothing and is right; only the account may have changed, so that of an older one it is read again first.
    pub(crate) async fn check(&self, request: &Request) -> Result<Reply, Problem> {
        let Check { user_id, asked } = Check::read(request, &self.prices)?;
        let now_ms = self.clock.now_ms();
        let (mut known, mut is_cached) = self.known(&user_id, now_ms).await?;
        let mut gate = self.gate(&user_id, &known, now_ms);
        let mut denial = gate.denial(Some(&asked), &known.granted, known.counted.as_ref());
        if denial.is_some() && is_old(&known, now_ms) {
            (known, is_cached) = (self.read(&user_id, now_ms).await?, false);
            gate = self.gate(&user_id, &known, now_ms);
            denial = gate.denial(Some(&asked), &known.granted, known.counted.as_ref());
        }
        let mut reads_counted = is_cached && gate.has_quotas();
        let mut rounds = 0..TAKE_ROUNDS;
        let reason = loop {
            // A plan that the price list does not know limits nothing.
            let take = gate.take(&asked, &known.granted, known.counted.as_ref()).filter(|_| denial.is_none());
            let Some(take) = take else { return reply(&gate, denial, &known) };
            if rounds.next().is_none() {
                return Err(Problem::unavailable("a grant was refused although it fits".to_owned()));
            }
            let counted = OptionFuture::from(reads_counted.then(|| self.counted(&user_id, gate.days())));
            let (taken, counted) = futures_util::join!(self.store.take(&take), counted);
            reads_counted = false;
            if let Some(counted) = counted.transpose()? {
                known.counted = Some(counted);
            }
            match taken? {
                Taken::Granted(granted) => {
                    known.granted = granted;
                    // Usage that never asked, and was counted since the cache was filled, may have used the quota up: this is
                    // denied then, although it was taken. Nothing is given back, since a repeated return would grant too much.
                    break gate.exceeded(Some(&asked), &Granted::default(), known.counted.as_ref());
                }
                // Mostly it is denied now. Or else others took first where usage that never asked had to be made up for: then it
                // is made up for by now.
                Taken::Refused(granted) => {
                    known.granted = granted;
                    denial = gate.denial(Some(&asked), &known.granted, known.counted.as_ref());
                    if denial.is_some() {
                        break denial;
                    }
                }
            }
        };
        let reply = reply(&gate, reason, &known);
        self.cache.keep(&user_id, known);
        reply
    }

    fn gate<'a>(&'a self, user_id: &'a UserId, known: &Known, now_ms: i64) -> Gate<'a> {
        Gate::new(user_id, known.account.as_deref(), &self.prices, EpochSecs::from_ms(now_ms))
    }

    /// What is known of a user, and whether it is from the cache.
    async fn known(&self, user_id: &UserId, now_ms: i64) -> Result<(Known, bool), Unavailable> {
        match self.cache.fresh(user_id, now_ms) {
            Some(known) => Ok((known, true)),
            None => Ok((self.read(user_id, now_ms).await?, false)),
        }
    }

    /// Reads account, grants and tallies side by side. Which days' tallies are needed only the account tells; the usual ones are
    /// read beside it, and others after it where those do not do: for accounts on a test clock.
    async fn read(&self, user_id: &UserId, now_ms: i64) -> Result<Known, Unavailable> {
        let now = EpochSecs::from_ms(now_ms);
        // Who had no quota when it was last looked has none, mostly: then there is nothing to be read beside the account.
        let days = usual_days(&self.prices, now).filter(|_| self.cache.had_quotas(user_id) != Some(false));
        let usual = OptionFuture::from(days.map(|days| self.counted(user_id, days)));
        let (account, granted, counted) = futures_util::join!(self.store.account(user_id), self.store.granted(user_id), usual);
        let (account, granted, mut counted) = (account?.map(Arc::new), granted?, counted.transpose()?);
        let gate = Gate::new(user_id, account.as_deref(), &self.prices, now);
        if !gate.has_quotas() {
            counted = None;
        } else if !counted.as_ref().is_some_and(|counted| gate.is_covered_by(counted)) {
            counted = Some(self.counted(user_id, gate.days()).await?);
        }
        let changes_at = next_change(account.as_deref(), &self.prices, now);
        let has_quotas = gate.has_quotas();
        let known = Known { account, granted, counted, has_quotas, read_at_ms: now_ms, changes_at };
        self.cache.keep(user_id, known.clone());
        Ok(known)
    }

    async fn counted(&self, user_id: &UserId, (from, to): (UtcDay, UtcDay)) -> Result<Counted, Unavailable> {
        Ok(Counted::of(self.store.tallies(user_id, from, to).await?, from, to))
    }
}

fn is_old(known: &Known, now_ms: i64) -> bool {
    known.age_ms(now_ms).is_none_or(|age_ms| age_ms >= DENIAL_AGE_MS)
}

/// A check's answer: always the access body.
fn reply(gate: &Gate<'_>, reason: Option<Reason>, known: &Known) -> Result<Reply, Problem> {
    let access = gate.answer(reason, &known.granted, known.counted.as_ref(), true);
    let status = match reason {
        None => 200,
        Some(Reason::RateLimited) => 429,
        Some(_) => 402,
    };
    let mut reply = Reply { status, headers: Vec::new(), body: to_json(&access)? };
    let next_minute = gate.next_minute_secs();
    // A payment or the next segment ends another denial, no minute does; so nothing is said of minutes there.
    if let Some(limit) = access.rate_limit.filter(|_| status != 402) {
        let (limit, left) = (limit.requests_per_minute, limit.remaining.unwrap_or_default());
        reply.set(HeaderName::from_static("ratelimit-policy"), format!("\"{POLICY}\";q={limit};w={MINUTE_SECS}"))?;
        reply.set(HeaderName::from_static("ratelimit"), format!("\"{POLICY}\";r={left};t={next_minute}"))?;
    }
    if status == 429 {
        reply.set(header::RETRY_AFTER, next_minute.to_string())?;
    }
    Ok(reply)
}

impl Reply {
    fn set(&mut self, name: HeaderName, value: String) -> Result<(), Problem> {
        let value = HeaderValue::try_from(value).map_err(|error| Problem::unavailable(error.to_string()))?;
        self.headers.push((name, value));
        Ok(())
    }
}

fn to_json(access: &Access) -> Answer {
    serde_json::to_value(access).map_err(|error| Problem::unavailable(error.to_string()))
}
