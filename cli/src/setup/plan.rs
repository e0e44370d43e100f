//! What there is against what there should be, step by step. Nothing here calls anybody.

use std::{collections::BTreeSet, fmt};

use tokentill::domain::{
    hint::snapshot_events,
    price_list::{self, PriceList},
    time::EpochSecs,
};

use super::{
    Mode, Options,
    found::{Endpoint, Found, Meter, Price, Product, SecretIs, Terms, interval_name, plain_decimal},
};

/// What setup found, and would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    subject: String,
    finding: Finding,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Finding {
    /// It is as it should be; what it is at Stripe, and what else is to be said.
    Fits(String),
    /// One call makes it so.
    Do(Action, String),
    /// It is still to do, by a later run or by hand; the text says when or how. Nothing else has to wait for it.
    Open(String),
    /// Only a person can settle it; the text says how.
    Refused(String),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// By the meter's event name.
    CreateMeter(String),
    /// By id.
    ReactivateMeter(String),
    /// By the plan's id.
    CreateProduct(String),
    /// By id, and the plan's.
    UpdateProduct(String, String),
    /// By lookup key.
    CreatePrice(String),
    /// By id.
    ActivatePrice(String),
    CreatePortal,
    /// By id.
    UpdatePortal(String),
    CreateServiceToken,
    StoreKey,
    AddWebhookSecret,
    /// And the ids of those it replaces, separated by blanks.
    CreateEndpoint(String),
    /// By id.
    UpdateEndpoint(String),
    /// By id.
    DeleteEndpoint(String),
}

impl Action {
    fn verb(&self) -> &'static str {
        match self {
            Self::CreateMeter(_)
            | Self::CreateProduct(_)
            | Self::CreatePrice(_)
            | Self::CreatePortal
            | Self::CreateServiceToken
            | Self::CreateEndpoint(_) => "create",
            Self::ReactivateMeter(_) | Self::ActivatePrice(_) => "reactivate",
            Self::UpdateProduct(..) | Self::UpdatePortal(_) | Self::UpdateEndpoint(_) => "change",
            Self::StoreKey | Self::AddWebhookSecret => "store",
            Self::DeleteEndpoint(_) => "delete",
        }
    }
}

impl Plan {
    /// Whether nothing has to be done or settled, now or later.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.steps.iter().all(|step| matches!(step.finding, Finding::Fits(_)))
    }

    /// What only a person can settle, a line each.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        let of = |step: &Step| match &step.finding {
            Finding::Refused(why) => Some(format!("{}: {why}", step.subject)),
            Finding::Fits(_) | Finding::Do(..) | Finding::Open(_) => None,
        };
        self.steps.iter().filter_map(of).collect()
    }

    /// What it comes to, in a sentence; `applied` says whether changes were just made.
    #[must_use]
    pub fn verdict(&self, applied: bool) -> &'static str {
        let is_open = self.steps.iter().any(|step| matches!(step.finding, Finding::Open(_)));
        match (applied, !self.refused().is_empty(), self.next().is_some(), is_open) {
            (false, true, ..) => "Nothing was changed. What is REFUSED has to be settled first; then --apply does the rest.",
            (true, true, ..) => "What is REFUSED has come up while this ran, and has to be settled.",
            (false, false, true, false) => "Nothing was changed. --apply does it.",
            (false, false, true, true) => "Nothing was changed. --apply does it, all but what is open.",
            (true, false, true, _) => "Something has changed while this ran: run it again.",
            (_, false, false, true) => "What is open is still to do; all else is as it should be.",
            (_, false, false, false) => "Everything is as it should be.",
        }
    }

    /// The first change, and the line that tells it.
    pub(super) fn next(&self) -> Option<(Action, String)> {
        self.steps.iter().find_map(|step| match &step.finding {
            Finding::Do(action, _) => Some((action.clone(), step.to_string())),
            Finding::Fits(_) | Finding::Open(_) | Finding::Refused(_) => None,
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, text) = match &self.finding {
            Finding::Fits(what) => ("fits", what),
            Finding::Do(action, how) => (action.verb(), how),
            Finding::Open(what) => ("open", what),
            Finding::Refused(why) => ("REFUSED", why),
        };
        write!(f, "{verb:10}  {:28}  {text}", self.subject)
    }
}

impl fmt::Display for Plan {
    /// A line for each step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// What there should be.
pub(super) struct Wanted<'a> {
    pub(super) list: &'a PriceList,
    pub(super) options: &'a Options,
    /// The ids of the endpoints that are to be replaced whatever they are.
    pub(super) rotated: &'a BTreeSet<String>,
    pub(super) mode: Mode,
    pub(super) now: EpochSecs,
}

/// The snapshot events that an endpoint is to ask for: in live mode there are no test clocks.
pub(super) fn events(mode: Mode) -> Vec<&'static str> {
    snapshot_events(mode == Mode::Live)
}

/// Compares.
pub(super) fn compare(wanted: &Wanted<'_>, found: &Found) -> Plan {
    let Wanted { list, options, .. } = *wanted;
    let mut steps = Vec::new();
    let mut step = |subject: String, finding: Finding| steps.push(Step { subject, finding });
    for meter in &list.meters {
        step(format!("meter {}", meter.event_name), meter_finding(found, meter));
    }
    for plan in list.plans.iter().filter(|plan| !plan.prices.is_empty()) {
        step(format!("product of plan {}", plan.id), product_finding(list, found, plan));
        for price in &plan.prices {
            step(format!("price {}", price.lookup_key()), price_finding(list, found, plan, price));
        }
    }
    step("customer portal".to_owned(), portal_finding(options, found));
    step(
        options.service_tokens_parameter.clone(),
        if found.has_service_token {
            Finding::Fits("holds a token".to_owned())
        } else {
            Finding::Do(Action::CreateServiceToken, "a random bearer token for the access API".to_owned())
        },
    );
    step(options.stripe_key_parameter.clone(), key_finding(options, wanted.mode, found));
    if let Some(secret) = &options.further_webhook_secret {
        step(
            options.webhook_secrets_parameter.clone(),
            if found.webhook_secrets.contains(secret) {
                Finding::Fits("holds the secret of TOKENTILL_WEBHOOK_SECRET".to_owned())
            } else {
                Finding::Do(Action::AddWebhookSecret, "adds the secret of TOKENTILL_WEBHOOK_SECRET".to_owned())
            },
        );
    }
    if let Some(url) = &options.webhook_url {
        endpoint_steps(url, wanted, found, &mut step);
    }
    Plan { steps }
}

// ---- Meters ----

/// The meter that counts under this event name: the active one, else the newest that fits.
pub(super) fn meter<'a>(found: &'a Found, event_name: &str) -> Option<&'a Meter> {
    let named = || found.meters.iter().filter(|meter| meter.event_name == event_name);
    named().find(|meter| meter.is_active()).or_else(|| named().find(|meter| meter.misfits().is_empty()))
}

fn meter_finding(found: &Found, wanted: &price_list::Meter) -> Finding {
    match meter(found, &wanted.event_name) {
        None => Finding::Do(Action::CreateMeter(wanted.event_name.clone()), "sums the values of a customer's events".to_owned()),
        Some(meter) if !meter.misfits().is_empty() => Finding::Refused(format!(
            "{}: {}. Stripe cannot change a meter. Give the meter another event_name in shared/price-list.toml and its prices new \
             lookup keys; or, if nothing is billed by it, deactivate it in Stripe's dashboard, which frees the name",
            meter.id,
            meter.misfits().join(", ")
        )),
        Some(meter) if meter.is_active() => Finding::Fits(meter.id.clone()),
        Some(meter) => Finding::Do(Action::ReactivateMeter(meter.id.clone()), format!("{} is inactive", meter.id)),
    }
}

// ---- Products and prices ----

/// The price of this lookup key, archived or not; a key is unique.
fn price<'a>(found: &'a Found, lookup_key: &str) -> Option<&'a Price> {
    found.prices.iter().find(|price| price.lookup_key.as_deref() == Some(lookup_key))
}

/// The plan's product: named by its metadata, or else that of a price the plan has already, if no other plan has a claim to it.
pub(super) fn product<'a>(list: &PriceList, found: &'a Found, plan: &price_list::Plan) -> Option<&'a Product> {
    let named = found.products.iter().find(|product| product.plan() == Some(plan.id.as_str()));
    let is_of = |plan: &price_list::Plan, product: &Product| {
        plan.prices.iter().filter_map(|wanted| price(found, wanted.lookup_key())).any(|price| price.product == product.id)
    };
    let is_free = |product: &&Product| {
        product.plan().is_none() && !list.plans.iter().any(|other| other.id != plan.id && is_of(other, product))
    };
    named.or_else(|| found.products.iter().filter(|product| is_of(plan, product)).find(is_free))
}

fn product_finding(list: &PriceList, found: &Found, plan: &price_list::Plan) -> Finding {
    let named: Vec<&str> = found
        .products
        .iter()
        .filter(|product| product.plan() == Some(plan.id.as_str()))
        .map(|product| product.id.as_str())
        .collect();
    if named.len() > 1 {
        return Finding::Refused(format!(
            "several products have the metadata {}={}: {}. Remove it from all but one",
            super::found::PLAN,
            plan.id,
            named.join(", ")
        ));
    }
    match product(list, found, plan) {
        None if plan.prices.iter().all(|wanted| price(found, wanted.lookup_key()).is_some()) => {
            Finding::Fits("its prices are of products that are shared, which are left alone".to_owned())
        }
        None => Finding::Do(Action::CreateProduct(plan.id.to_string()), format!("{:?}", plan.name)),
        Some(product) => {
            let mut changes = Vec::new();
            if product.name != plan.name {
                changes.push(format!("its name {:?} becomes {:?}", product.name, plan.name));
            }
            if product.plan().is_none() {
                changes.push(format!("the metadata {}={} is added", super::found::PLAN, plan.id));
            }
            if !product.active {
                changes.push("it is archived, and is for sale again".to_owned());
            }
            if changes.is_empty() {
                return Finding::Fits(product.id.clone());
            }
            let action = Action::UpdateProduct(product.id.clone(), plan.id.to_string());
            Finding::Do(action, format!("{}: {}", product.id, changes.join(", ")))
        }
    }
}

/// The amount of one unit in minor units, as decimal text.
pub(super) fn amount_of(price: &price_list::Price) -> String {
    match price {
        price_list::Price::Flat { unit_amount_minor, .. } => unit_amount_minor.to_string(),
        price_list::Price::Metered { unit_amount_decimal_minor, .. } => plain_decimal(unit_amount_decimal_minor),
    }
}

/// The id of the meter a price is for.
pub(super) fn meter_of(list: &PriceList, found: &Found, price: &price_list::Price) -> Option<String> {
    let wanted = list.meter(price.meter()?)?;
    meter(found, &wanted.event_name).map(|meter| meter.id.clone())
}

fn price_finding(list: &PriceList, found: &Found, plan: &price_list::Plan, wanted: &price_list::Price) -> Finding {
    let (price_list::Price::Flat { currency, .. } | price_list::Price::Metered { currency, .. }) = wanted;
    let terms = Terms {
        amount: amount_of(wanted),
        currency: currency.clone(),
        interval: interval_name(wanted.interval()).to_owned(),
        // A meter that is still to be made is named as the list names it.
        meter: wanted.meter().map(|id| meter_of(list, found, wanted).unwrap_or_else(|| id.to_string())),
    };
    let Some(present) = price(found, wanted.lookup_key()) else {
        return Finding::Do(Action::CreatePrice(wanted.lookup_key().to_owned()), terms.to_string());
    };
    if present.terms() != terms {
        // A transfer of the key would leave the old price without one: its subscriptions would have no plan any more.
        return Finding::Refused(format!(
            "{} costs {}; the price list says {terms}. Stripe cannot change what a price costs, and those who have it keep it. Put \
             this entry of shared/price-list.toml back to what Stripe has, and sell the new terms as a plan beside {}, with lookup \
             keys of its own",
            present.id,
            present.terms(),
            plan.id,
        ));
    }
    if present.active {
        return Finding::Fits(present.id.clone());
    }
    Finding::Do(Action::ActivatePrice(present.id.clone()), format!("{} is archived", present.id))
}

// ---- The portal and the key ----

fn portal_finding(options: &Options, found: &Found) -> Finding {
    let Some(portal) = &found.portal else {
        let offers = "payment method, invoices, cancelling at the period's end, e-mail address".to_owned();
        return Finding::Do(Action::CreatePortal, offers);
    };
    // Links to the portal name no configuration, so they lead to the default one; others are somebody else's.
    if !portal.is_default {
        return Finding::Open(format!(
            "{} is not the account's default, and POST /v1/portal needs one: Stripe has no API for it. Save Settings, Billing, \
             Customer portal in Stripe's dashboard once, then run this again",
            portal.id
        ));
    }
    let misfits = portal.misfits(options.return_url.as_deref());
    if misfits.is_empty() {
        return Finding::Fits(portal.id.clone());
    }
    Finding::Do(Action::UpdatePortal(portal.id.clone()), format!("{}: {}", portal.id, misfits.join(", ")))
}

fn key_finding(options: &Options, mode: Mode, found: &Found) -> Finding {
    // Of the key that is there in the end.
    if let Some(key) = options.store_key.as_ref().or(found.stripe_key.as_ref()) {
        let what = match Mode::of_key(key.expose()) {
            Ok(of_key) if of_key == mode => None,
            Ok(of_key) => Some(format!("a key of {of_key} mode, and this is {mode} mode")),
            Err(_) => Some("something that is no secret key of Stripe's".to_owned()),
        };
        if let Some(what) = what {
            return Finding::Refused(format!(
                "it is {what}. Store the right key over it with --store-key, or name the parameter of this mode's stack with \
                 --stripe-key-parameter"
            ));
        }
    }
    match (&options.store_key, &found.stripe_key) {
        (Some(key), Some(stored)) if key == stored => Finding::Fits("holds this key".to_owned()),
        (Some(key), stored) => {
            let what = if key.expose().starts_with("rk_") {
                "a restricted key"
            } else {
                "an unrestricted key: a restricted one is safer, see below"
            };
            let over = if stored.is_some() { ", over another one" } else { "" };
            Finding::Do(Action::StoreKey, format!("{what}{over}"))
        }
        (None, Some(_)) => Finding::Fits("holds a key".to_owned()),
        (None, None) => Finding::Open("holds no key yet: --store-key, or by hand as said below".to_owned()),
    }
}

// ---- The webhook endpoint ----

fn endpoint_steps(url: &str, wanted: &Wanted<'_>, found: &Found, step: &mut impl FnMut(String, Finding)) {
    const SUBJECT: &str = "webhook endpoint";
    let Wanted { options, rotated, .. } = *wanted;
    let events = events(wanted.mode);
    let version = super::account::api_version();
    let secrets = &found.webhook_secrets;
    let here: Vec<&Endpoint> = found.endpoints.iter().filter(|endpoint| endpoint.url == url).collect();
    let (present, replaced): (Vec<&Endpoint>, Vec<&Endpoint>) = here.iter().partition(|endpoint| {
        !rotated.contains(&endpoint.id)
            && endpoint.api_version.as_deref() == Some(&version)
            && endpoint.secret_is(secrets) != SecretIs::Unfinished
    });
    // The newest comes first, but one that is known to work comes before all others.
    let kept = present.iter().find(|endpoint| endpoint.secret_is(secrets) == SecretIs::Stored).or_else(|| present.first());
    let Some(kept) = kept else {
        let ids: Vec<&str> = replaced.iter().map(|endpoint| endpoint.id.as_str()).collect();
        let instead =
            if ids.is_empty() { String::new() } else { format!(", in place of {}, for a later run to delete", ids.join(", ")) };
        let how = format!(
            "{} event types in version {version} to {url}{instead}; its secret goes to {}",
            events.len(),
            options.webhook_secrets_parameter
        );
        step(SUBJECT.to_owned(), Finding::Do(Action::CreateEndpoint(ids.join(" ")), how));
        return;
    };
    let unknown = match kept.secret_is(secrets) {
        SecretIs::Stored | SecretIs::Unfinished => "",
        SecretIs::Unknown if !secrets.is_empty() => {
            "; it was not made by this command, and whether SSM has its secret cannot be told: if the webhook refuses its events, \
             use --rotate-webhook"
        }
        SecretIs::Unknown | SecretIs::Lost => {
            let why = format!(
                "{} delivers to this URL, but {} does not hold its signing secret, which Stripe told only once. --rotate-webhook \
                 makes a new endpoint in its place",
                kept.id, options.webhook_secrets_parameter
            );
            step(SUBJECT.to_owned(), Finding::Refused(why));
            return;
        }
    };
    let mut changes = Vec::new();
    if !kept.has_events(&events) {
        changes.push(format!("gets exactly the {} event types that are of use", events.len()));
    }
    if !kept.is_enabled() {
        changes.push("is switched on again".to_owned());
    }
    if changes.is_empty() {
        step(SUBJECT.to_owned(), Finding::Fits(format!("{}{unknown}", kept.id)));
    } else {
        let how = format!("{} {}{unknown}", kept.id, changes.join(", "));
        step(SUBJECT.to_owned(), Finding::Do(Action::UpdateEndpoint(kept.id.clone()), how));
    }
    for other in here.iter().filter(|other| other.id != kept.id) {
        // What nobody knows the secret of only makes Stripe try in vain.
        let is_begun = other.secret_is(secrets) == SecretIs::Unfinished;
        let is_replaced = kept.replaces().any(|id| id == other.id);
        let known_at = EpochSecs::new(kept.created).plus_secs(options.until_known_secs());
        if kept.secret_is(secrets) == SecretIs::Stored && is_replaced && wanted.now < known_at {
            // Until the functions know the new secret, every event of the new endpoint is refused.
            let how = if options.rotate_webhook { ", without --rotate-webhook" } else { "" };
            let what = format!(
                "{} is to be deleted, at the earliest at {known_at}: run this again then{how}. Until then it delivers beside {}, \
                 because the functions read their secrets anew only every {} s",
                other.id, kept.id, options.secrets_ttl_secs
            );
            step(SUBJECT.to_owned(), Finding::Open(what));
        } else if kept.secret_is(secrets) == SecretIs::Stored && (is_begun || is_replaced) {
            let why = if is_begun { "was begun and never finished" } else { "was replaced" };
            let how = format!("{} {why}; {} delivers", other.id, kept.id);
            step(SUBJECT.to_owned(), Finding::Do(Action::DeleteEndpoint(other.id.clone()), how));
        } else {
            let what = format!("{} delivers the same events here once more, which does no harm; delete it at Stripe", other.id);
            step(SUBJECT.to_owned(), Finding::Fits(what));
        }
    }
}
