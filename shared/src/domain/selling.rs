//! A sale: what a checkout session holds, which subscription forbids another one, and which open session is answered again.
//!
//! **Invariant:** a session is answered only where a look at Stripe has just shown it as the customer's one open session, beside no
//! subscription that may still bill. Whoever opens one looks again afterwards, so that of two who were at it at once the
//! later look sees both.

use std::{collections::BTreeMap, fmt};

use http::Uri;
use sha2::{Digest, Sha256};

use super::{
    account::Account,
    facts::Status,
    id::{CheckoutSessionId, CustomerId, PlanId, PriceId, UserId, composite_key},
    price_list::{Plan, Price, PriceList},
    time::{EpochSecs, HOUR_SECS},
};

/// What Stripe replaces by the session's id when it sends the payer back.
pub const SESSION_PLACEHOLDER: &str = "{CHECKOUT_SESSION_ID}";
/// An open session is answered again only if it stays open for this long, in seconds: its payer still has to find the card.
const MIN_LEFT_SECS: i64 = HOUR_SECS;
/// The longest URL that is taken, in characters.
const MAX_URL_CHARS: usize = 2_000;
/// The version of what the names and keys below are made of.
const VERSION: &str = "1";

/// A link to a page of Stripe's where whoever has it acts as the customer. It has no `Display`, and its `Debug` says nothing of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Link(String);

impl Link {
    /// Wraps a URL.
    #[must_use]
    pub fn new(url: String) -> Self {
        Self(url)
    }

    /// The URL itself, for the caller; never to be logged.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

/// Where Stripe sends the payer back to: `https`, or in test mode `http` on this very machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReturnUrl(String);

/// Why a text is no [`ReturnUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    /// It is no absolute URL, or one that could be read in two ways.
    #[error(
        "it must be an absolute URL of at most {MAX_URL_CHARS} characters, percent-encoded, without a user name; {SESSION_PLACEHOLDER} \
         may stand in it as it is"
    )]
    Malformed,
    /// Its scheme is not to be had.
    #[error("it must begin with https://; only in test mode http://localhost or another loopback address does, too")]
    Insecure,
}

impl ReturnUrl {
    /// Checks the text and keeps it as it is, the placeholder for the session's id included.
    ///
    /// # Errors
    /// [`InvalidUrl`].
    pub fn new(text: &str, livemode: bool) -> Result<Self, InvalidUrl> {
        let plain = text.replace(SESSION_PLACEHOLDER, "id");
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !br#""<>\^`{|}"#.contains(&byte);
        if text.len() > MAX_URL_CHARS || !plain.bytes().all(is_plain) {
            return Err(InvalidUrl::Malformed);
        }
        let uri: Uri = plain.parse().map_err(|_| InvalidUrl::Malformed)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(InvalidUrl::Malformed) };
        let host = authority.host();
        if host.is_empty() || authority.as_str().contains('@') || text.split(['/', '?', '#']).nth(2) != Some(authority.as_str()) {
            return Err(InvalidUrl::Malformed);
        }
        match scheme {
            "https" => Ok(Self(text.to_owned())),
            "http" if !livemode && is_loopback(host) => Ok(Self(text.to_owned())),
            _ => Err(InvalidUrl::Insecure),
        }
    }

    /// The URL as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same without the placeholder, for a page that does not fill it in: the portal's.
    #[must_use]
    pub fn without_placeholder(&self) -> Self {
        Self(self.0.replace(SESSION_PLACEHOLDER, ""))
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Option<std::net::IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    address.is_some_and(|address| address.is_loopback()) || host == "localhost" || host.ends_with(".localhost")
}

/// Why a plan cannot be sold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotForSale {
    /// The price list has no such plan.
    #[error("the price list has no plan {plan}; it sells {}", .sold.join(", "))]
    UnknownPlan {
        /// The plan that was asked for.
        plan: PlanId,
        /// What can be bought.
        sold: Vec<String>,
    },
    /// It has no prices.
    #[error("plan {0} is free: there is nothing to buy, everybody without a subscription has it")]
    Free(PlanId),
}

/// The plan of this name, if it can be bought.
///
/// # Errors
/// [`NotForSale`].
pub fn plan_for_sale<'a>(prices: &'a PriceList, id: &PlanId) -> Result<&'a Plan, NotForSale> {
    match prices.plan(id) {
        None => {
            let sold = prices.plans.iter().filter(|plan| !plan.prices.is_empty()).map(|plan| plan.id.to_string()).collect();
            Err(NotForSale::UnknownPlan { plan: id.clone(), sold })
        }
        Some(plan) if plan.prices.is_empty() => Err(NotForSale::Free(id.clone())),
        Some(plan) => Ok(plan),
    }
}

/// What a checkout session offers to one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Who is going to have it.
    pub user_id: UserId,
    /// The plan.
    pub plan: PlanId,
    /// Its prices, in the price list's order.
    pub items: Vec<OfferItem>,
    /// Where the payer goes after paying.
    pub success_url: ReturnUrl,
    /// Where the payer goes back to.
    pub cancel_url: ReturnUrl,
}

/// One price of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferItem {
    /// Stripe's price.
    pub price: PriceId,
    /// How many of it; a metered price has no quantity.
    pub quantity: Option<u64>,
}

/// Some of a plan's prices are not at Stripe, or are archived there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Stripe has no active price with the lookup key {}: run `cargo till setup`, then try again", .0.join(", "))]
pub struct MissingPrices(pub Vec<String>);

impl Offer {
    /// Offers a plan by the prices that Stripe has for its lookup keys.
    ///
    /// # Errors
    /// [`MissingPrices`] if it has not all of them.
    pub fn new(
        user_id: UserId,
        plan: &Plan,
        price_ids: &BTreeMap<String, PriceId>,
        success_url: ReturnUrl,
        cancel_url: ReturnUrl,
    ) -> Result<Self, MissingPrices> {
        let item = |price: &Price| {
            let quantity = if price.meter().is_some() { None } else { Some(1) };
            let id = price_ids.get(price.lookup_key()).cloned().ok_or_else(|| price.lookup_key().to_owned())?;
            Ok(OfferItem { price: id, quantity })
        };
        let (items, missing): (Vec<_>, Vec<_>) = plan.prices.iter().map(item).partition(Result::is_ok);
        if !missing.is_empty() {
            return Err(MissingPrices(missing.into_iter().filter_map(Result::err).collect()));
        }
        let items = items.into_iter().filter_map(Result::ok).collect();
        Ok(Self { user_id, plan: plan.id.clone(), items, success_url, cancel_url })
    }

    /// A name of all that it holds. It is kept with the session, so that an equal offer finds it: Stripe's own copies of the
    /// URLs and items may be written otherwise, or be cut.
    #[must_use]
    pub fn name(&self) -> String {
        let mut parts = vec!["offer", VERSION, self.user_id.as_str(), self.plan.as_str()];
        parts.extend([self.success_url.as_str(), self.cancel_url.as_str()]);
        let quantities: Vec<String> =
            self.items.iter().map(|item| item.quantity.map_or_else(String::new, |n| n.to_string())).collect();
        for (item, quantity) in self.items.iter().zip(&quantities) {
            parts.extend([item.price.as_str(), quantity]);
        }
        hashed(&parts)
    }
}

/// The idempotency keys under which a user's customer is made, or the one in place of a customer that is gone: the second only
/// where Stripe gave a failure under the first, which it remembers with the key (for a day at least). The first is the same at all
/// times, and so gives the same customer to whoever asks; the second holds the hour. Beyond both only chance has keys that no
/// failure is remembered under.
#[must_use]
pub fn customer_keys(user_id: &UserId, in_place_of: Option<&CustomerId>, now: EpochSecs) -> [String; 2] {
    let key = |hour: &str| hashed(&["customer", VERSION, user_id.as_str(), in_place_of.map_or("", CustomerId::as_str), hour]);
    [key(""), key(&now.hour().as_secs().to_string())]
}

/// The idempotency key under which a session is opened for a customer whose newest session is `after`. So of two who saw the same
/// state, only one opens a session, whatever they offer: the other one gets the same session, or is refused for its other
/// offer. A failure is remembered with the key, too: whoever meets one and then sees the same state as before needs a key that
/// nobody has used, and may use it, because it is the look afterwards that settles two sessions.
#[must_use]
pub fn session_key(customer: &CustomerId, after: Option<&CheckoutSessionId>, now: EpochSecs) -> String {
    let after = after.map_or("", CheckoutSessionId::as_str);
    hashed(&["session", VERSION, customer.as_str(), after, &now.hour().as_secs().to_string()])
}

fn hashed(parts: &[&str]) -> String {
    hex::encode(Sha256::digest(composite_key(parts)))
}

/// Whether `sync` joins a user to a customer that has bought nothing yet. It does not while the user has, or had, a subscription
/// at another one ([`super::sync::decide`]): a claim that is only going to be refused is not worth making.
#[must_use]
pub fn joins_before_it_buys(account: Option<&Account>) -> bool {
    account.is_none_or(|account| account.subscription.is_none())
}

/// A customer at Stripe, as far as a sale looks at it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Buyer {
    /// It was deleted, or Stripe does not know it.
    pub gone: bool,
    /// All its subscriptions.
    pub subscriptions: Vec<HeldSubscription>,
    /// Its checkout sessions, newest first: all that are open, and the newest of any kind.
    pub sessions: Vec<CheckoutSession>,
}

/// A subscription of a [`Buyer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldSubscription {
    /// Stripe's status.
    pub status: Status,
    /// The page on which its newest invoice can be paid.
    pub payment_page: Option<Link>,
}

/// A checkout session of a [`Buyer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckoutSession {
    /// Its id.
    pub id: CheckoutSessionId,
    /// The page it is, if it is open and leads to a subscription.
    pub open: Option<OpenSession>,
}

/// An open checkout session that leads to a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenSession {
    /// The [`Offer::name`] it was opened with; another program's session has none.
    pub offer: Option<String>,
    /// Its page, if it has one of its own.
    pub page: Option<Link>,
    /// When it ends by itself, by the real clock.
    pub expires_at: EpochSecs,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The customer is gone: make another one, and look again.
    ReplaceCustomer,
    /// There is a subscription that bills: nothing is sold. These open sessions could still make a second one, and are to be
    /// expired.
    Subscribed {
        /// Which sessions.
        expire: Vec<CheckoutSessionId>,
    },
    /// There is a subscription whose first payment is still due; it bills as soon as that is made. Its payer may be at it this very
    /// moment in an open session, so all of these are left as they are.
    FirstPaymentDue {
        /// Where it can be paid, if Stripe tells.
        page: Option<Link>,
    },
    /// These open sessions stand in the way: expire them, and look again.
    Expire(Vec<CheckoutSessionId>),
    /// Open a session, and look again.
    Open {
        /// The newest session there is.
        after: Option<CheckoutSessionId>,
    },
    /// This is the page.
    Answer(Link),
}

/// What a look at the customer means for an offer of this name.
#[must_use]
pub fn next_step(offer: &str, buyer: &Buyer, now: EpochSecs) -> Step {
    if buyer.gone {
        return Step::ReplaceCustomer;
    }
    let open = || buyer.sessions.iter().filter_map(|session| session.open.as_ref().map(|open| (&session.id, open)));
    let holding: Vec<_> = buyer.subscriptions.iter().filter(|held| forbids_another(&held.status)).collect();
    if holding.iter().any(|held| held.status != Status::Incomplete) {
        return Step::Subscribed { expire: open().map(|(id, _)| id.clone()).collect() };
    }
    if !holding.is_empty() {
        return Step::FirstPaymentDue { page: holding.iter().find_map(|held| held.payment_page.clone()) };
    }
    let page_if_same = |session: &OpenSession| {
        let is_same = session.offer.as_deref() == Some(offer) && session.expires_at.secs_since(now) >= MIN_LEFT_SECS;
        session.page.clone().filter(|_| is_same)
    };
    // Of several the oldest: it may have been answered already.
    let kept = open().filter_map(|(id, session)| Some((id, page_if_same(session)?))).next_back();
    let is_kept = |id| kept.as_ref().is_some_and(|(kept, _)| *kept == id);
    let others: Vec<_> = open().map(|(id, _)| id).filter(|id| !is_kept(*id)).cloned().collect();
    match kept {
        _ if !others.is_empty() => Step::Expire(others),
        Some((_, page)) => Step::Answer(page),
        None => Step::Open { after: buyer.sessions.first().map(|session| session.id.clone()) },
    }
}

/// Whether a subscription may bill, now or once its first payment is made, so that a second one would bill twice.
fn forbids_another(status: &Status) -> bool {
    !matches!(status, Status::Canceled | Status::IncompleteExpired)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> EpochSecs {
        EpochSecs::new(1_800_000_000)
    }

    #[test]
    fn who_has_or_had_a_subscription_is_joined_to_no_customer_that_has_bought_nothing_yet() {
        let mut account = crate::domain::account::tests::subscribed("2026-11-10T00:00:00Z");
        assert!(!joins_before_it_buys(Some(&account)));
        account.subscription = None;
        assert!(joins_before_it_buys(Some(&account)));
        assert!(joins_before_it_buys(None));
    }

    fn url(text: &str) -> ReturnUrl {
        ReturnUrl::new(text, true).unwrap()
    }

    fn offer(success: &str, first_price: &str) -> Offer {
        let prices = PriceList::shipped().unwrap();
        let plan = plan_for_sale(&prices, &PlanId::new("pro").unwrap()).unwrap();
        let id =
            |key: &str| PriceId::new(if key == "pro_base" { first_price.to_owned() } else { format!("price_{key}") }).unwrap();
        let ids = plan.prices.iter().map(|price| (price.lookup_key().to_owned(), id(price.lookup_key()))).collect();
        Offer::new(UserId::new("ada").unwrap(), plan, &ids, url(success), url("https://example.com/back")).unwrap()
    }

    fn id(text: &str) -> CheckoutSessionId {
        CheckoutSessionId::new(text).unwrap()
    }

    fn session(name: &str, offer: Option<&str>, left_secs: i64) -> CheckoutSession {
        let page = Some(Link::new(format!("https://pay.example/{name}")));
        let open = OpenSession { offer: offer.map(str::to_owned), page, expires_at: now().plus_secs(left_secs) };
        CheckoutSession { id: id(name), open: Some(open) }
    }

    fn closed(name: &str) -> CheckoutSession {
        CheckoutSession { id: id(name), open: None }
    }

    fn held(status: &str) -> HeldSubscription {
        HeldSubscription {
            status: Status::from(status.to_owned()),
            payment_page: Some(Link::new("https://pay.example/in".into())),
        }
    }

    fn step(subscriptions: &[&str], sessions: &[CheckoutSession]) -> Step {
        let subscriptions = subscriptions.iter().map(|status| held(status)).collect();
        next_step("wanted", &Buyer { gone: false, subscriptions, sessions: sessions.to_vec() }, now())
    }

    #[test]
    fn an_offer_has_every_price_of_its_plan_and_a_quantity_only_where_it_is_flat() {
        let items: Vec<_> =
            offer("https://a.example", "price_0").items.into_iter().map(|item| (item.price.to_string(), item.quantity)).collect();
        let expected = [("price_0", Some(1)), ("price_pro_requests", None), ("price_pro_tokens_in", None)];
        assert_eq!(items[..3], expected.map(|(price, quantity)| (price.to_owned(), quantity)));
        assert_eq!(items.len(), 4);
    }

    #[test]
    fn what_is_not_at_stripe_is_named_and_nothing_is_offered() {
        let prices = PriceList::shipped().unwrap();
        let plan = prices.plan(&PlanId::new("pro").unwrap()).unwrap();
        let only = BTreeMap::from([("pro_requests".to_owned(), PriceId::new("price_1").unwrap())]);
        let missing = Offer::new(UserId::new("ada").unwrap(), plan, &only, url("https://a.example"), url("https://b.example"));
        let missing = missing.unwrap_err();
        assert_eq!(missing.0, ["pro_base", "pro_tokens_in", "pro_tokens_out"]);
        assert!(missing.to_string().contains("cargo till setup"));
    }

    #[test]
    fn an_unknown_and_a_free_plan_are_not_for_sale() {
        let prices = PriceList::shipped().unwrap();
        let refused = |plan: &str| plan_for_sale(&prices, &PlanId::new(plan).unwrap()).unwrap_err().to_string();
        assert_eq!(refused("gold"), "the price list has no plan gold; it sells pro");
        assert!(refused("free").contains("nothing to buy"));
    }

    #[test]
    fn an_offers_name_changes_with_anything_it_holds() {
        let name = offer("https://a.example", "price_0").name();
        assert_eq!(name, offer("https://a.example", "price_0").name());
        let mut other = offer("https://a.example", "price_0");
        other.items[0].quantity = Some(2);
        let others = [
            offer("https://a.example/2", "price_0").name(),
            offer("https://a.example", "price_1").name(),
            other.name(),
            Offer { user_id: UserId::new("bob").unwrap(), ..offer("https://a.example", "price_0") }.name(),
            Offer { plan: PlanId::new("max").unwrap(), ..offer("https://a.example", "price_0") }.name(),
            Offer { cancel_url: url("https://c.example"), ..offer("https://a.example", "price_0") }.name(),
        ];
        assert!(!others.contains(&name));
        assert_eq!(others.iter().collect::<std::collections::BTreeSet<_>>().len(), others.len());
    }

    #[test]
    fn keys_differ_where_another_object_is_meant_and_tell_nothing() {
        let (ada, bob) = (UserId::new("ada@example.com").unwrap(), UserId::new("bob").unwrap());
        let (one, two) = (CustomerId::new("cus_1").unwrap(), CustomerId::new("cus_2").unwrap());
        let keys = [
            session_key(&one, None, now()),
            session_key(&two, None, now()),
            session_key(&one, Some(&id("cs_1")), now()),
            session_key(&one, Some(&id("cs_2")), now()),
            session_key(&one, None, now().plus_secs(HOUR_SECS)),
        ];
        let later = now().plus_secs(HOUR_SECS);
        let customers = [(&ada, None), (&bob, None), (&ada, Some(&one)), (&ada, Some(&two))];
        let customers = customers.map(|(user_id, gone)| customer_keys(user_id, gone, now()));
        let keys = [&keys[..], &customers.concat(), &customer_keys(&ada, None, later)[1..]].concat();
        assert_eq!(keys.iter().collect::<std::collections::BTreeSet<_>>().len(), keys.len());
        assert_eq!(customers[0][0], customer_keys(&ada, None, later)[0]);
        assert_eq!(session_key(&one, None, now()), session_key(&one, None, now().plus_secs(1)));
        assert!(keys.iter().all(|key| key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit())), "{keys:?}");
    }

    #[test]
    fn a_session_is_opened_after_the_newest_one_and_then_answered() {
        assert_eq!(step(&[], &[]), Step::Open { after: None });
        assert_eq!(step(&["canceled", "incomplete_expired"], &[closed("b"), closed("a")]), Step::Open { after: Some(id("b")) });
        let opened = session("c", Some("wanted"), HOUR_SECS);
        assert_eq!(step(&[], &[opened, closed("b")]), Step::Answer(Link::new("https://pay.example/c".to_owned())));
    }

    #[test]
    fn whatever_else_is_open_is_expired_first() {
        let same = |name| session(name, Some("wanted"), HOUR_SECS);
        let expired = |step: Step| match step {
            Step::Expire(sessions) => sessions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            other => format!("{other:?}"),
        };
        assert_eq!(expired(step(&[], &[session("other", Some("another"), HOUR_SECS)])), "other");
        assert_eq!(expired(step(&[], &[session("foreign", None, HOUR_SECS), same("a")])), "foreign");
        assert_eq!(expired(step(&[], &[session("old", Some("wanted"), HOUR_SECS - 1)])), "old", "it ends too soon");
        assert_eq!(expired(step(&[], &[same("new"), same("first")])), "new", "the oldest may have been answered");
        let mut embedded = same("embedded");
        embedded.open = embedded.open.map(|open| OpenSession { page: None, ..open });
        assert_eq!(expired(step(&[], &[embedded])), "embedded", "without a page there is nothing to answer");
    }

    #[test]
    fn nothing_is_sold_beside_a_subscription_that_may_bill() {
        let open = [session("a", Some("wanted"), HOUR_SECS), session("b", None, HOUR_SECS)];
        for status in ["trialing", "active", "past_due", "unpaid", "paused", "from_the_future"] {
            assert_eq!(step(&["canceled", status], &open), Step::Subscribed { expire: vec![id("a"), id("b")] }, "{status}");
            assert_eq!(step(&["incomplete", status], &open), Step::Subscribed { expire: vec![id("a"), id("b")] }, "{status}");
        }
        let page = Some(Link::new("https://pay.example/in".to_owned()));
        assert_eq!(step(&["incomplete"], &open), Step::FirstPaymentDue { page });
    }

    #[test]
    fn a_customer_that_is_gone_is_replaced_whatever_it_had() {
        let buyer = Buyer { gone: true, subscriptions: vec![held("active")], sessions: vec![session("a", Some("wanted"), 1)] };
        assert_eq!(next_step("wanted", &buyer, now()), Step::ReplaceCustomer);
    }

    #[test]
    fn a_url_is_https_or_in_test_mode_this_machines() {
        let checked = |text: &str, livemode| ReturnUrl::new(text, livemode).map(|url| url.as_str().to_owned());
        for good in [
            "https://example.com",
            "https://example.com:8443/billing/thanks?session={CHECKOUT_SESSION_ID}&a=b%20c#/done",
            "https://example.com/{CHECKOUT_SESSION_ID}",
            "HTTPS://EXAMPLE.COM/",
        ] {
            assert_eq!(checked(good, true).as_deref(), Ok(good));
        }
        for local in ["http://localhost:3000/thanks", "http://127.0.0.1", "http://[::1]:3000/", "http://app.localhost/x"] {
            assert_eq!(checked(local, false).as_deref(), Ok(local));
            assert_eq!(checked(local, true), Err(InvalidUrl::Insecure), "{local}");
        }
        for insecure in ["http://example.com", "http://127.0.0.1.example", "ftp://example.com", "http://localhost.example"] {
            assert_eq!(checked(insecure, false), Err(InvalidUrl::Insecure), "{insecure}");
        }
        let long = format!("https://example.com/{}", "a".repeat(MAX_URL_CHARS));
        for malformed in [
            "",
            "/thanks",
            "example.com",
            "//example.com",
            "https://",
            "https:///thanks",
            "javascript:alert(1)",
            "https://ada@example.com",
            "https://example.com\\@evil.example",
            "https://example.com/a b",
            "https://exämple.com",
            "https://example.com/{OTHER}",
            "https://example.com/\n",
            "https:/example.com",
            &long,
        ] {
            assert_eq!(checked(malformed, false), Err(InvalidUrl::Malformed), "{malformed}");
        }
    }

    #[test]
    fn the_placeholder_is_left_out_where_nobody_fills_it_in() {
        let with = url("https://example.com/back?session={CHECKOUT_SESSION_ID}");
        assert_eq!(with.without_placeholder().as_str(), "https://example.com/back?session=");
    }

    #[test]
    fn a_link_does_not_show_itself() {
        assert_eq!(format!("{:?}", Link::new("https://pay.example/secret".to_owned())), "Link");
    }
}
