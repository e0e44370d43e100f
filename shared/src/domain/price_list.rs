//! The price list: plans, meters, quotas and grace, as code that is compiled in and tested.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::id::{MeterId, PlanId};

/// The list this build sells by: `shared/price-list.toml`.
const SHIPPED: &str = include_str!("../../price-list.toml");

/// What is sold, counted and allowed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceList {
    /// What happens after a failed payment.
    pub grace: GracePolicy,
    /// What is counted.
    pub meters: Vec<Meter>,
    /// What can be had.
    pub plans: Vec<Plan>,
}

/// How long access outlives a failed payment, and when the user is reminded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GracePolicy {
    /// Days from an invoice's first failed payment to the end of access.
    pub days: u16,
    /// Days after the first failure on which a reminder is sent, ascending and before `days`.
    pub reminder_days: Vec<u16>,
}

/// One thing that is counted and billed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meter {
    /// Its name here.
    pub id: MeterId,
    /// Its name at Stripe, at most 100 characters.
    pub event_name: String,
    /// Which part of a usage message it counts.
    pub counts: Counts,
}

/// The part of a usage message that a meter counts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Counts {
    /// One for each request.
    Requests,
    /// `tokens_in`.
    TokensIn,
    /// `tokens_out`.
    TokensOut,
    /// `tokens_cached`.
    TokensCached,
    /// The entry of this name in `units`.
    Unit(String),
}

impl TryFrom<String> for Counts {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Ok(match text.as_str() {
            "requests" => Self::Requests,
            "tokens_in" => Self::TokensIn,
            "tokens_out" => Self::TokensOut,
            "tokens_cached" => Self::TokensCached,
            other => match other.strip_prefix("units.") {
                Some(name) if !name.is_empty() => Self::Unit(name.to_owned()),
                _ => {
                    return Err(format!(
                        "`counts` is requests, tokens_in, tokens_out, tokens_cached or units.<name>, not {other:?}"
                    ));
                }
            },
        })
    }
}

/// What a user can subscribe to. A plan without prices is the free tier.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name in the API.
    pub id: PlanId,
    /// Its name for people.
    pub name: String,
    /// The most requests granted in one UTC minute, 1 to 30,000.
    pub requests_per_minute: u32,
    /// What a client does when the access check cannot be reached.
    pub when_unreachable: WhenUnreachable,
    /// The most of a meter that one segment allows.
    #[serde(default)]
    pub quotas: BTreeMap<MeterId, u64>,
    /// What access is worth in a grace period.
    #[serde(default)]
    pub grace: GraceAccess,
    /// What it costs.
    #[serde(default)]
    pub prices: Vec<Price>,
}

/// What a plan's access is worth while a payment is overdue and the deadline is not reached: `"full"`, which is meant where
/// nothing is said, `"none"`, or a table of lower limits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum GraceAccess {
    /// As much as ever.
    #[default]
    Full,
    /// Nothing: calls are refused as `payment_overdue`, while the subscription and its deadline go on.
    None,
    /// Less.
    Reduced(ReducedLimits),
}

/// The limits of a grace period. What is not named here stays as the plan has it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReducedLimits {
    /// The most requests granted in one UTC minute, at most the plan's own.
    pub requests_per_minute: Option<u32>,
    /// The most of a meter that one segment allows, what was used of it before the grace period included.
    #[serde(default)]
    pub quotas: BTreeMap<MeterId, u64>,
}

impl TryFrom<toml::Value> for GraceAccess {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        const HELP: &str = r#"`grace` of a plan is "full", "none" or lower limits such as { requests_per_minute = 60 }"#;
        match value {
            toml::Value::String(text) if text == "full" => Ok(Self::Full),
            toml::Value::String(text) if text == "none" => Ok(Self::None),
            toml::Value::Table(table) => match table.try_into() {
                Ok(limits) => Ok(Self::Reduced(limits)),
                Err(error) => Err(format!("{HELP}: {}", error.message())),
            },
            toml::Value::String(text) => Err(format!("{HELP}, not {text:?}")),
            other => Err(format!("{HELP}, not of type {}", other.type_str())),
        }
    }
}

/// What limits a plan's requests at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits<'a> {
    /// The most requests granted in one UTC minute.
    pub requests_per_minute: u32,
    /// The most of a meter that one segment allows.
    pub quotas: BTreeMap<&'a MeterId, u64>,
}

/// What a client does when the access check cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenUnreachable {
    /// Serve the request; its usage is still counted.
    Open,
    /// Refuse the request.
    Closed,
}

/// One Stripe price of a plan, found at Stripe by its `lookup_key`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, tag = "kind", rename_all = "lowercase")]
pub enum Price {
    /// A fixed amount each interval.
    Flat {
        /// Stripe's `lookup_key`.
        lookup_key: String,
        /// How often it is due.
        interval: Interval,
        /// ISO 4217, lower case.
        currency: String,
        /// The amount in minor units.
        unit_amount_minor: u64,
    },
    /// An amount for each unit of a meter.
    Metered {
        /// Stripe's `lookup_key`.
        lookup_key: String,
        /// What is metered.
        meter: MeterId,
        /// How often it is invoiced.
        interval: Interval,
        /// ISO 4217, lower case.
        currency: String,
        /// The amount of one unit in minor units, as a decimal number in text.
        unit_amount_decimal_minor: String,
    },
}

impl Price {
    /// Stripe's `lookup_key`.
    #[must_use]
    pub fn lookup_key(&self) -> &str {
        match self {
            Self::Flat { lookup_key, .. } | Self::Metered { lookup_key, .. } => lookup_key,
        }
    }

    /// How often it is invoiced.
    #[must_use]
    pub fn interval(&self) -> Interval {
        match self {
            Self::Flat { interval, .. } | Self::Metered { interval, .. } => *interval,
        }
    }

    /// The meter, if it is a metered price.
    #[must_use]
    pub fn meter(&self) -> Option<&MeterId> {
        match self {
            Self::Flat { .. } => None,
            Self::Metered { meter, .. } => Some(meter),
        }
    }
}

/// Stripe's billing intervals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// 86,400 seconds.
    Day,
    /// Seven days.
    Week,
    /// A calendar month.
    Month,
    /// A calendar year.
    Year,
}

/// Why a text is no price list.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPriceList {
    /// Not the TOML that is expected.
    #[error("price list: {0}")]
    Syntax(#[from] toml::de::Error),
    /// It breaks a rule; the text says which, and what to do.
    #[error("price list: {0}")]
    Rule(String),
}

impl PriceList {
    /// The list this build was made with.
    ///
    /// # Errors
    /// [`InvalidPriceList`] if `shared/price-list.toml` is wrong; a test keeps such a list from being built.
    pub fn shipped() -> Result<Self, InvalidPriceList> {
        Self::parse(SHIPPED)
    }

    /// Reads a list and checks its rules.
    ///
    /// # Errors
    /// [`InvalidPriceList`] names the rule that is broken.
    pub fn parse(text: &str) -> Result<Self, InvalidPriceList> {
        let list: Self = toml::from_str(text)?;
        list.check().map_err(InvalidPriceList::Rule)?;
        Ok(list)
    }

    /// The plan without prices, if there is one.
    #[must_use]
    pub fn free_plan(&self) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.prices.is_empty())
    }

    /// The plan of that name.
    #[must_use]
    pub fn plan(&self, id: &PlanId) -> Option<&Plan> {
        self.plans.iter().find(|plan| plan.id == *id)
    }

    /// The meter of that name.
    #[must_use]
    pub fn meter(&self, id: &MeterId) -> Option<&Meter> {
        self.meters.iter().find(|meter| meter.id == *id)
    }

    /// The plan and price that Stripe's `lookup_key` belongs to.
    #[must_use]
    pub fn price(&self, lookup_key: &str) -> Option<(&Plan, &Price)> {
        self.plans
            .iter()
            .find_map(|plan| plan.prices.iter().find(|price| price.lookup_key() == lookup_key).map(|price| (plan, price)))
    }

    fn check(&self) -> Result<(), String> {
        unique("meter", self.meters.iter().map(|meter| meter.id.as_str()))?;
        unique("event_name", self.meters.iter().map(|meter| meter.event_name.as_str()))?;
        unique("plan", self.plans.iter().map(|plan| plan.id.as_str()))?;
        unique("lookup_key", self.plans.iter().flat_map(|plan| &plan.prices).map(Price::lookup_key))?;
        if self.plans.iter().filter(|plan| plan.prices.is_empty()).count() > 1 {
            return Err("more than one plan without prices: a user without a subscription can have only one of them".into());
        }
        if self.grace.days == 0 || self.grace.days > 60 {
            return Err("grace.days is 1 to 60".into());
        }
        let ascending = self.grace.reminder_days.iter().zip(self.grace.reminder_days.iter().skip(1)).all(|(a, b)| a < b);
        if !ascending || self.grace.reminder_days.iter().any(|day| *day == 0 || *day >= self.grace.days) {
            return Err("grace.reminder_days ascend, from day 1 to the day before grace.days".into());
        }
        for meter in &self.meters {
            if meter.event_name.is_empty() || meter.event_name.len() > 100 {
                return Err(format!("meter {}: event_name has 1 to 100 characters", meter.id));
            }
        }
        self.plans.iter().try_for_each(|plan| self.check_plan(plan))
    }

    fn check_plan(&self, plan: &Plan) -> Result<(), String> {
        let name = &plan.id;
        if !(1..=30_000).contains(&plan.requests_per_minute) {
            return Err(format!("plan {name}: requests_per_minute is 1 to 30,000"));
        }
        let metered: Vec<_> = plan.prices.iter().filter_map(|price| Some((price.meter()?, price.interval()))).collect();
        if let Some((_, first)) = metered.first()
            && metered.iter().any(|(_, interval)| interval != first)
        {
            return Err(format!("plan {name}: its metered prices share one interval, which is the segment's period"));
        }
        unique("metered price for meter", metered.iter().map(|(meter, _)| meter.as_str()))?;
        self.check_grace(plan)?;
        match plan.quotas.keys().chain(metered.iter().map(|(meter, _)| *meter)).find(|id| self.meter(id).is_none()) {
            Some(unknown) => {
                Err(format!("plan {name}: there is no meter {unknown}; add it under [[meters]] or correct the name"))
            }
            None => Ok(()),
        }
    }

    fn check_grace(&self, plan: &Plan) -> Result<(), String> {
        let name = &plan.id;
        if plan.grace != GraceAccess::Full && plan.prices.is_empty() {
            return Err(format!("plan {name}: it has no price, so no payment of it can fail; leave its `grace` out"));
        }
        let GraceAccess::Reduced(reduced) = &plan.grace else { return Ok(()) };
        if reduced.requests_per_minute.is_none() && reduced.quotas.is_empty() {
            return Err(format!(
                r#"plan {name}: its `grace` lowers no limit; name requests_per_minute or quotas, or write "full" or "none""#
            ));
        }
        if reduced.requests_per_minute.is_some_and(|limit| !(1..=plan.requests_per_minute).contains(&limit)) {
            let most = plan.requests_per_minute;
            return Err(format!(
                r#"plan {name}: grace.requests_per_minute is 1 to {most}, the plan's own; for nothing write "none""#
            ));
        }
        for (meter, limit) in &reduced.quotas {
            if self.meter(meter).is_none() {
                return Err(format!("plan {name}: there is no meter {meter}; add it under [[meters]] or correct the name"));
            }
            if plan.quotas.get(meter).is_some_and(|own| limit > own) {
                return Err(format!(
                    "plan {name}: grace.quotas.{meter} is more than the plan's own quota; lower it or leave it out"
                ));
            }
        }
        Ok(())
    }
}

impl Plan {
    /// What limits its requests, in a grace period or outside of one.
    #[must_use]
    pub fn limits(&self, in_grace: bool) -> Limits<'_> {
        let mut limits = Limits {
            requests_per_minute: self.requests_per_minute,
            quotas: self.quotas.iter().map(|(meter, limit)| (meter, *limit)).collect(),
        };
        if let GraceAccess::Reduced(reduced) = &self.grace
            && in_grace
        {
            limits.requests_per_minute = reduced.requests_per_minute.unwrap_or(limits.requests_per_minute);
            limits.quotas.extend(reduced.quotas.iter().map(|(meter, limit)| (meter, *limit)));
        }
        limits
    }

    /// The meters that it has a quota on, at any time.
    pub fn limited_meters(&self) -> impl Iterator<Item = &MeterId> {
        let in_grace = match &self.grace {
            GraceAccess::Reduced(reduced) => Some(reduced.quotas.keys()),
            GraceAccess::Full | GraceAccess::None => None,
        };
        self.quotas.keys().chain(in_grace.into_iter().flatten())
    }

    /// The meters this plan counts: those it bills or limits, and on the free tier every one, since nothing of it is billed.
    #[must_use]
    pub fn counted_meters<'a>(&'a self, list: &'a PriceList) -> BTreeSet<&'a MeterId> {
        if self.prices.is_empty() {
            list.meters.iter().map(|meter| &meter.id).collect()
        } else {
            self.prices.iter().filter_map(Price::meter).chain(self.limited_meters()).collect()
        }
    }
}

fn unique<'a>(what: &str, mut names: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(twice) => Err(format!("{what} {twice:?} stands there twice")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_list_is_what_the_contract_says() {
        let list = PriceList::shipped().unwrap();
        let free = list.free_plan().unwrap();
        assert_eq!((free.id.as_str(), free.requests_per_minute), ("free", 60));
        assert_eq!(free.quotas.iter().map(|(id, n)| (id.as_str(), *n)).collect::<Vec<_>>(), [("requests", 100)]);
        let pro = list.plan(&PlanId::new("pro").unwrap()).unwrap();
        assert_eq!(pro.requests_per_minute, 600);
        assert!(pro.quotas.is_empty());
        let prices: Vec<_> = pro.prices.iter().map(|price| (price.lookup_key(), price.meter().map(MeterId::as_str))).collect();
        assert_eq!(
            prices,
            [
                ("pro_base", None),
                ("pro_requests", Some("requests")),
                ("pro_tokens_in", Some("tokens_in")),
                ("pro_tokens_out", Some("tokens_out"))
            ]
        );
        assert!(list.meters.iter().all(|meter| meter.event_name == meter.id.as_str()));
        assert!(list.plans.iter().all(|plan| plan.grace == GraceAccess::Full));
        assert_eq!((list.grace.days, list.grace.reminder_days.as_slice()), (7, [3, 6].as_slice()));
    }

    #[test]
    fn the_limits_of_a_grace_period_are_the_plans_own_but_for_those_that_are_lowered() {
        let parse = |grace: &str| {
            let own = format!("name = \"Pro\"\nquotas = {{ requests = 1000, tokens_in = 50 }}\n{grace}\n");
            PriceList::parse(&SHIPPED.replacen("name = \"Pro\"\n", &own, 1)).unwrap()
        };
        let shown = |list: &PriceList, in_grace: bool| {
            let plan = list.plan(&PlanId::new("pro").unwrap()).unwrap();
            let limits = plan.limits(in_grace);
            let quotas: Vec<_> = limits.quotas.iter().map(|(meter, limit)| format!("{meter} {limit}")).collect();
            format!("{} {}", limits.requests_per_minute, quotas.join(" "))
        };
        let own = "600 requests 1000 tokens_in 50";
        for (grace, expected) in [
            ("", own),
            ("grace = \"full\"", own),
            ("grace = { requests_per_minute = 60 }", "60 requests 1000 tokens_in 50"),
            ("grace = { quotas = { requests = 0, tokens_out = 7 } }", "600 requests 0 tokens_in 50 tokens_out 7"),
        ] {
            let list = parse(grace);
            assert_eq!((shown(&list, false).as_str(), shown(&list, true).as_str()), (own, expected), "{grace}");
        }
        // What a grace period limits has to be counted.
        let list = parse("grace = { quotas = { tokens_out = 7 } }");
        let plan = list.plan(&PlanId::new("pro").unwrap()).unwrap();
        let without_prices = Plan { prices: plan.prices.iter().take(1).cloned().collect(), ..plan.clone() };
        let counted: Vec<_> = without_prices.counted_meters(&list).into_iter().map(MeterId::as_str).collect();
        assert_eq!(counted, ["requests", "tokens_in", "tokens_out"]);
    }

    #[test]
    fn a_meter_may_count_any_unit_by_its_name() {
        let text = SHIPPED.replacen("counts = \"requests\"", "counts = \"units.images\"", 1);
        let list = PriceList::parse(&text).unwrap();
        assert!(list.meters.iter().any(|meter| meter.counts == Counts::Unit("images".into())));
    }

    #[test]
    fn every_limit_is_the_last_that_is_taken() {
        let problem = |from: &str, to: &str| {
            let text = SHIPPED.replacen(from, to, 1);
            assert_ne!(text, SHIPPED, "{from} is not in the list");
            PriceList::parse(&text).err().map(|error| error.to_string())
        };
        let event_name = |chars: usize| format!("event_name = {:?}", "e".repeat(chars));
        let own_quota = |of_grace: u64| {
            format!("name = \"Pro\"\nquotas = {{ requests = 10 }}\ngrace = {{ quotas = {{ requests = {of_grace} }} }}")
        };
        let one_more =
            "[[plans]]\nid = \"other\"\nname = \"Other\"\nrequests_per_minute = 1\nwhen_unreachable = \"open\"\n\n[[plans]]\nid = \"free\"".to_owned();
        for (from, last, first_refused, expected) in [
            ("days = 7", "days = 60".to_owned(), "days = 61".to_owned(), "grace.days is 1 to 60"),
            ("[3, 6]", "[1, 6]".to_owned(), "[1, 7]".to_owned(), "to the day before grace.days"),
            ("[3, 6]", "[1]".to_owned(), "[0]".to_owned(), "from day 1"),
            ("[3, 6]", "[3, 4]".to_owned(), "[3, 3]".to_owned(), "ascend"),
            ("event_name = \"requests\"", event_name(1), event_name(0), "event_name has 1 to 100 characters"),
            ("event_name = \"requests\"", event_name(100), event_name(101), "event_name has 1 to 100 characters"),
            ("name = \"Pro\"", own_quota(10), own_quota(11), "more than the plan's own quota"),
            (
                "requests_per_minute = 60\n",
                "requests_per_minute = 30000\n".to_owned(),
                "requests_per_minute = 0\n".to_owned(),
                "30,000",
            ),
            ("[[plans]]\nid = \"free\"", "[[plans]]\nid = \"other\"".to_owned(), one_more, "more than one plan without prices"),
        ] {
            assert_eq!(problem(from, &last), None, "{last}");
            let problem = problem(from, &first_refused);
            assert!(problem.as_ref().is_some_and(|problem| problem.contains(expected)), "{first_refused}: {problem:?}");
        }
    }

    #[test]
    fn a_list_that_breaks_a_rule_is_refused_with_the_rule() {
        let broken = |from: &str, to: &str| {
            let text = SHIPPED.replacen(from, to, 1);
            assert_ne!(text, SHIPPED, "{from} is not in the list");
            PriceList::parse(&text).unwrap_err().to_string()
        };
        assert!(broken("days = 7", "days = 0").contains("grace.days is 1 to 60"));
        assert!(broken("[3, 6]", "[6, 3]").contains("ascend"));
        assert!(broken("requests_per_minute = 60\n", "requests_per_minute = 30001\n").contains("1 to 30,000"));
        assert!(broken("meter = \"requests\"", "meter = \"request\"").contains("there is no meter request"));
        assert!(broken("lookup_key = \"pro_base\"", "lookup_key = \"pro_requests\"").contains("twice"));
        assert!(broken("counts = \"requests\"", "counts = \"units.\"").contains("units.<name>"));
        assert!(broken("name = \"Pro\"", "name = \"Pro\"\ntypo = 1").contains("typo"));
        let pro = "name = \"Pro\"\n";
        let grace = |grace: &str| broken(pro, &format!("{pro}grace = {grace}\n"));
        assert!(grace(r#""half""#).contains(r#"`grace` of a plan is "full", "none" or lower limits"#), "{}", grace(r#""half""#));
        assert!(grace("7").contains("not of type integer"));
        assert!(grace("{ requests_per_hour = 7 }").contains("requests_per_hour"));
        assert!(grace("{}").contains("lowers no limit"));
        assert!(grace("{ requests_per_minute = 601 }").contains("1 to 600, the plan's own"));
        assert!(grace("{ requests_per_minute = 0 }").contains(r#"for nothing write "none""#));
        assert!(grace("{ quotas = { request = 1 } }").contains("there is no meter request"));
        assert!(broken("name = \"Free\"", "name = \"Free\"\ngrace = \"none\"").contains("no payment of it can fail"));
        let own = "quotas = { requests = 10 }\ngrace = { quotas = { requests = 11 } }";
        assert!(broken(pro, &format!("{pro}{own}\n")).contains("more than the plan's own quota"));
        let other_interval = "meter = \"tokens_in\"\ninterval = \"year\"";
        assert!(broken("meter = \"tokens_in\"\ninterval = \"month\"", other_interval).contains("share one interval"));
    }
}
