//! Stories: what happens in a world, step by step, made of a seed.

use std::{collections::BTreeSet, fmt};

use fastrand::Rng;

use crate::hub::Weather;

/// The users of every world. Their ids and their requests' are made to collide in keys that are merely joined.
pub(crate) const USERS: [&str; 3] = ["ada", "ada/3:req", "bob#1"];
/// How many requests a user makes: few, so that they come again.
const REQUESTS: u8 = 12;

/// A use of the product, as a service reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Which of the user's requests it served.
    pub request: u8,
    /// Whether the call succeeded.
    pub success: bool,
    /// Whether it says something else than the other reports of its request.
    pub differs: bool,
    /// How many seconds before it is sent it happened; negative is ahead.
    pub age_secs: i64,
}

impl Use {
    /// The request's id.
    #[must_use]
    pub(crate) fn request_id(&self) -> String {
        if self.request.is_multiple_of(2) { format!("r{}", self.request) } else { format!("3:req/{}", self.request) }
    }

    /// Tokens in and out.
    #[must_use]
    pub(crate) fn tokens(&self) -> (u64, u64) {
        let request = u64::from(self.request);
        (10 + request * 7 % 50 + u64::from(self.differs), request % 4 * 100)
    }
}

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A service reports uses of a user, in messages.
    Send(usize, Vec<Vec<Use>>),
    /// The usage function is given a batch of so many messages at most.
    Count(usize),
    /// The reporter is invoked, by a schedule's event that is so many seconds old.
    Report(i64),
    /// The sync function is given a batch of so many hints at most.
    Sync(usize),
    /// The sweeper is invoked.
    Sweep,
    /// The notifier is given a batch of so many records of the outbox's stream at most.
    Notify(usize),
    /// Something happens to a user's subscription.
    Life(usize, Life),
    /// One thing after the other happens to a user's subscription, so soon that two sync functions look at it at the same time, the
    /// second one also at what the first is working on; between the two so many milliseconds pass.
    Race(usize, [Life; 2], u64),
    /// A service asks at the same time whether a user may make so many requests, each time so many.
    Ask(usize, Vec<u64>),
    /// Stripe is down for so many seconds.
    Outage(i64),
    /// An operator moves the dead letters back.
    Redrive,
    /// Time passes until so many seconds after the end of a user's period.
    UntilPeriodEnds(usize, i64),
    /// Nothing.
    Wait,
}

/// What happens to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// The user subscribes.
    Subscribe(&'static str),
    /// A payment fails.
    Fail,
    /// The overdue invoice is paid.
    Pay,
    /// The plan changes in the middle of a period.
    Switch(&'static str),
    /// It is cancelled, at once or at the period's end.
    Cancel(bool),
}

/// One step of a story.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its number in the whole story, also when others are left out.
    pub id: usize,
    /// What happens.
    pub act: Act,
    /// How much time passes before the next step, in milliseconds. What was begun goes on meanwhile.
    pub then_ms: u64,
    /// What goes wrong in the invocation.
    pub weather: Weather,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}. {:?}, then {} ms", self.id, self.act, self.then_ms)?;
        if self.weather.permille > 0 { write!(f, " ({} of 1000 calls go wrong)", self.weather.permille) } else { Ok(()) }
    }
}

/// What is broken in a world on purpose, so that the simulator can be seen to notice: not the product, but what it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Nothing.
    Nothing,
    /// Stripe takes a report once more under an identifier that it has taken.
    Identifiers,
    /// These tables' conditions hold, whatever stands in them.
    Conditions(&'static [&'static str]),
    /// Transactions do only the first half of what they are asked for.
    Transactions,
}

/// A story.
#[derive(Debug, Clone)]
pub struct Story {
    /// What it was made of.
    pub seed: u64,
    /// When it begins, in milliseconds since 1970.
    pub begins_ms: i64,
    /// How many of [`USERS`] there are.
    pub users: usize,
    /// The length of a billing period.
    pub period_secs: i64,
    /// Whether the price list has a free tier.
    pub has_free_tier: bool,
    /// How often a message of the usage queue, and of the other one, is delivered before it is a dead letter.
    pub most_receives: (u32, u32),
    /// How far a function's clock is off at most.
    pub most_skew_ms: i64,
    /// Of a hundred reports, how many Stripe takes and throws away later, as it says then.
    pub thrown_away_percent: u8,
    /// What is broken.
    pub broken: Broken,
    /// What happens.
    pub steps: Vec<Step>,
}

impl Story {
    /// The story of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut chance = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5151);
        let users = chance.usize(1..=USERS.len());
        // Some moment of 22 November 2026.
        let begins_ms = 1_795_305_600_000 + chance.i64(0..86_400_000);
        let period_secs = 86_400 * [1, 1, 2, 7][chance.usize(..4)];
        let has_free_tier = chance.u8(..4) > 0;
        let lives = chance.bool();
        let most_receives = [(5, 1_000), (5, 1_000), (3, 1_000), (3, 3)][chance.usize(..4)];
        let most_skew_ms = [20, 900, 900, 4_000][chance.usize(..4)];
        let thrown_away_percent = [0, 0, 0, 20][chance.usize(..4)];
        let steps = (0..chance.usize(24..56)).map(|id| step(id, users, lives, &mut chance)).collect();
        let broken = Broken::Nothing;
        Self {
            seed,
            begins_ms,
            users,
            period_secs,
            has_free_tier,
            most_receives,
            most_skew_ms,
            thrown_away_percent,
            broken,
            steps,
        }
    }

    /// The same without some of its steps.
    #[must_use]
    pub(crate) fn without(&self, ids: &BTreeSet<usize>) -> Self {
        let mut story = self.clone();
        story.steps.retain(|step| !ids.contains(&step.id));
        story
    }
}

fn step(id: usize, users: usize, lives: bool, chance: &mut Rng) -> Step {
    let user = chance.usize(..users);
    let act = match chance.u8(..100) {
        0..24 => Act::Send(user, (0..chance.usize(1..4)).map(|_| message(chance)).collect()),
        24..44 => Act::Count(chance.usize(1..10)),
        44..58 => Act::Report([0, 0, 0, 30, 280][chance.usize(..5)]),
        58..66 => Act::Sync(chance.usize(1..6)),
        66..75 if lives => match chance.u8(..8) {
            0 => Act::Wait,
            1..3 => race(user, chance),
            _ => Act::Life(user, life(chance)),
        },
        75..78 => Act::Sweep,
        78..82 => Act::Notify(chance.usize(1..6)),
        82..84 => Act::Outage([60, 3_600, 80_000, 200_000][chance.usize(..4)]),
        84..86 => Act::Redrive,
        86..91 => Act::UntilPeriodEnds(user, [-30, -1, 1, 90, 3_000, 3_320, 3_590, 3_700][chance.usize(..8)]),
        91..96 => Act::Ask(user, (0..chance.usize(1..5)).map(|_| [1, 2, 20, 45, 61][chance.usize(..5)]).collect()),
        _ => Act::Wait,
    };
    let then_ms = match (&act, chance.u8(..100)) {
        (Act::Wait, 0..60) => chance.u64(60_000..7_200_000),
        (Act::Wait, 60..90) => chance.u64(7_200_000..90_000_000),
        (Act::Wait, _) => chance.u64(90_000_000..400_000_000),
        (_, 0..60) => chance.u64(0..400),
        (_, 60..90) => chance.u64(400..20_000),
        (_, _) => chance.u64(20_000..900_000),
    };
    let permille = [0, 20, 20, 80, 80, 250][chance.usize(..6)];
    Step { id, act, then_ms, weather: Weather { seed: chance.u64(..), permille, muted: BTreeSet::new() } }
}

fn message(chance: &mut Rng) -> Vec<Use> {
    (0..chance.usize(1..5))
        .map(|_| Use {
            request: chance.u8(..REQUESTS),
            success: chance.u8(..10) > 0,
            differs: chance.u8(..20) == 0,
            age_secs: match chance.u8(..100) {
                0..70 => chance.i64(0..60),
                70..85 => chance.i64(60..72_000),
                85..92 => chance.i64(72_000..800_000),
                92..95 => chance.i64(-250..0),
                95..98 => chance.i64(-1_200..-290),
                _ => chance.i64(3_023_900..3_200_000),
            },
        })
        .collect()
}

fn life(chance: &mut Rng) -> Life {
    match chance.u8(..10) {
        0..2 => Life::Subscribe(["pro", "team"][chance.usize(..2)]),
        2..4 => Life::Fail,
        4..6 => Life::Pay,
        6..8 => Life::Switch(["pro", "team"][chance.usize(..2)]),
        _ => Life::Cancel(chance.bool()),
    }
}

fn race(user: usize, chance: &mut Rng) -> Act {
    let most_ms = [60, 60, 3_000][chance.usize(..3)];
    Act::Race(user, [life(chance), life(chance)], chance.u64(..most_ms))
}
