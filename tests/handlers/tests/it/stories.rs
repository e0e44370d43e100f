//! Ten life stories of a subscription, and some variations, in every order of deliveries (G2, G7, G8).
//!
//! A story is played once on the Stripe sandbox ([`handlers::story`], [`plays`]); what Stripe showed after each step and what it
//! told are recorded. Then deliveries are played, by the thousand: an event can be delivered in its own step or in any later one,
//! any number of times, or never, and each delivery fetches what Stripe shows in the step it falls into.
//!
//! **What must come of it.** However the deliveries went, an account that was looked at in a step is the one that deliveries in
//! good order lead to, and the beginning of each invoice's grace is what [`model`] computes from the schedule. What may differ,
//! and why:
//! - `version` counts the looks, and `fetched_at_ms` is the moment of the last one, as is `told_at`;
//! - segments: a price switch has no moment at Stripe, so it is cut at the fetch that saw it, or not at all where nobody looked
//!   before it was undone; and a subscription that nobody saw while it counted leaves no segment. So a story names
//!   a span of time ([`vague`]) in which a moment's place may differ; at every other moment usage has the same place. How many
//!   segments say so may differ too: renewals that nobody saw are reached by one segment's cycle;
//! - `final_through` is known from invoices that were seen as the newest one, so it may be behind what others know, and is never
//!   ahead of it.
//!
//! Four ways of going through the orders, and how many there are of each is asserted, so that a harness that stopped permuting
//! is noticed:
//! - [`every_schedule_there_is_ends_in_the_same_account`]: all of them, with all repetitions and losses, as a search of the states
//!   that they can lead to;
//! - [`every_order_after_the_end_ends_in_the_same_account`]: permutations one by one, each also doubled and with the rest lost;
//! - [`any_order_in_between_ends_in_the_same_account`]: random schedules, every event in a random shape ([`shapes`]);
//! - [`any_order_through_the_function_ends_in_the_same_account`]: random schedules through the `sync` function on the embedded
//!   DynamoDB, with clocks that differ and functions that race each other.

use std::collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry};

use fastrand::Rng;
use handlers::story::{Step, Story};
use tokentill::domain::{
    access::standing,
    account::Account,
    hint::PaymentFailure,
    id::{InvoiceId, SubscriptionId},
    notice::Notice,
    segment::{Place, place},
    sync::{self, Decision, Failures},
    time::EpochSecs,
};

use model::{Listener, Model};
use plays::DAY;
use shapes::{SHAPES, Shape};

mod function;
mod model;
mod plays;
mod shapes;

/// A delivery comes so long after its step.
const AFTER_SECS: i64 = 60;

/// A failure as an event tells it.
type Failure<'a> = Option<(&'a str, i64)>;

/// The stories, played once for all tests.
async fn stories() -> &'static [Story] {
    static STORIES: tokio::sync::OnceCell<Vec<Story>> = tokio::sync::OnceCell::const_new();
    STORIES.get_or_init(plays::all).await
}

/// The span of time in which a moment's place may differ, where somebody looked for the first time in a step.
fn vague(story: &Story, first_look: usize) -> (EpochSecs, EpochSecs) {
    let moment = |step: usize| story.steps[step].at;
    if story.steps[first_look].subscriptions.iter().all(|shown| shown["status"] == "canceled") {
        // Nobody saw it while it ran, and it leaves no segment.
        return (moment(0), moment(first_look).plus_secs(AFTER_SECS));
    }
    match story.name {
        // From the upgrade to the renewal: the cuts are the fetches'. Who looked for the first time on the dearer plan knows of no
        // other before it.
        "upgrade and downgrade mid-period" => (moment(usize::from(first_look != 1)), moment(4)),
        // As long as there are two: which of them was seen to count, and since when.
        "double subscription" => (moment(0), moment(2)),
        "double subscription of which both fail" => (moment(0), moment(8).plus_days(1)),
        _ => (moment(0), moment(0)),
    }
}

/// The product as far as it decides: an account, and what is known beside it.
#[derive(Debug, Clone, Default)]
struct Machine {
    account: Option<Account>,
    /// Kept with the customer.
    failures: Failures,
}

impl Machine {
    /// A look at Stripe, as `sync` does it. The one place where the stories call the product's decision.
    fn look(&mut self, story: &Story, step: &Step, failure: Failure<'_>, at_ms: i64) -> Vec<Notice> {
        let failure =
            failure.map(|(invoice, at)| PaymentFailure { invoice: InvoiceId::new(invoice).unwrap(), at: EpochSecs::new(at) });
        let joined = sync::joined_user(&step.facts).expect("the customer names its user");
        self.failures = sync::failures(&self.failures, &step.facts, failure.as_ref(), at_ms);
        let decision = sync::decide(&story.prices, self.account.as_ref(), joined, &step.facts, &self.failures, at_ms);
        let Decision::Commit { account, notices, .. } = decision else { panic!("{}: {decision:?}", story.name) };
        self.account = Some(*account);
        notices
    }
}

/// One order of deliveries, as far as it has come.
#[derive(Debug, Clone, Default)]
struct Play {
    machine: Machine,
    model: Model,
    listener: Listener,
    /// The steps of the first and the last look.
    seen: Option<(usize, usize)>,
}

impl Play {
    fn account(&self) -> &Account {
        self.machine.account.as_ref().expect("it was looked at")
    }

    /// A delivery in a step: a look, and all that must hold after it.
    fn deliver(&mut self, story: &Story, step: usize, failure: Failure<'_>) {
        let now = story.steps[step].at.plus_secs(AFTER_SECS);
        let version = self.machine.account.as_ref().map_or(0, |account| account.version);
        let notices = self.machine.look(story, &story.steps[step], failure, now.as_secs() * 1000);
        self.model.look(&story.steps[step], failure, now.as_secs());
        self.seen = Some((self.seen.map_or(step, |(first, _)| first), step));
        let heard = self.listener.hear(&notices);
        assert_eq!(heard, Ok(()), "{}, {}: told twice\n{self:#?}", story.name, story.steps[step].name);
        assert_eq!(self.account().version, version + 1);
        self.check(story, step, now, 0);
        let state = standing(Some(self.account()), &story.prices, now).state;
        assert!(self.listener.knows(self.account(), state), "{}: what was told last is the state: {self:#?}", story.name);
    }

    /// The account is what the step and the model make of it, and so is its access. Clocks may differ by so many seconds.
    fn check(&self, story: &Story, step: usize, now: EpochSecs, skew_secs: i64) {
        let at = || format!("{}, {}, {now}: {self:#?}", story.name, story.steps[step].name);
        let account = self.account();
        let subscription = account.subscription.as_ref().map(|subscription| subscription.id.as_str());
        let overdue = subscription.map(|id| self.model.overdue(&story.steps[step], id)).unwrap_or_default();
        let known: BTreeMap<String, i64> =
            account.overdue.iter().map(|(invoice, overdue)| (invoice.to_string(), overdue.since.as_secs())).collect();
        assert_eq!(known, overdue, "the beginning of grace: {}", at());
        for (invoice, since) in &known {
            assert!(
                model::failures(story)[invoice.as_str()] <= *since + skew_secs,
                "nobody fails before the payment does: {}",
                at()
            );
        }
        let state = |moment: EpochSecs| standing(Some(account), &story.prices, moment);
        let deadline = model::deadline(&overdue).map(EpochSecs::new);
        for moment in [Some(now), deadline.map(|deadline| deadline.plus_secs(-1)), deadline].into_iter().flatten() {
            let expected = model::state(&story.steps[step], subscription, deadline, moment);
            assert_eq!((state(moment).state, state(moment).reason), expected, "access at {moment}: {}", at());
        }
        let told_at = account.told_at.map_or(now, |told_at| now.max(told_at));
        assert_eq!(account.announced.state, Some(state(told_at).state), "{}", at());
        assert_eq!(account.announced.plan, state(told_at).plan, "{}", at());
        assert_eq!(account.announced.reminders, model::reminders(&overdue, told_at.as_secs()), "{}", at());
    }

    /// Everything that the order of deliveries cannot have changed, and what it may have left unknown.
    fn settled(
        &self,
        story: &Story,
        step: usize,
        vague: (EpochSecs, EpochSecs),
    ) -> (Settled, BTreeMap<SubscriptionId, EpochSecs>) {
        let account = self.account();
        let mut rest = account.clone();
        rest.version = 0;
        (rest.fetched_at_ms, rest.told_at) = (0, None);
        // They follow from the beginning of grace, and were held against the model.
        (rest.announced.state, rest.announced.plan, rest.announced.reminders) = (None, None, 0);
        // What was told before they were heard of; the listener knows.
        rest.announced.end_told = None;
        rest.overdue.clear();
        rest.segments.clear();
        let known = std::mem::take(&mut rest.final_through);
        (Settled { rest, places: places(story, step, account, vague) }, known)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Settled {
    rest: Account,
    places: Vec<(EpochSecs, Place)>,
}

/// As old may usage be that is still taken, and as much older the past that an account is given at its first look.
const TAKEN_DAYS: i64 = 35;
const PAST_DAYS: i64 = 40;

/// Where usage of many moments belongs: around every step and boundary, and ahead; as far back as usage is taken.
fn places(story: &Story, step: usize, account: &Account, (from, to): (EpochSecs, EpochSecs)) -> Vec<(EpochSecs, Place)> {
    let now = story.steps[step].at.plus_secs(AFTER_SECS);
    let to = to.min(now);
    let steps = story.steps[..=step].iter().flat_map(|step| [-1, 0, 1, 1_800].map(|secs| step.at.plus_secs(secs)));
    let ahead = [0, 1, 10, 40, 80].map(|days| now.plus_secs(days * DAY));
    let begun = story.steps[0].at.max(now.plus_days(-TAKEN_DAYS));
    let is_clear = |moment: &EpochSecs| begun <= *moment && !(from <= *moment && *moment < to);
    steps
        .chain(ahead)
        .filter(is_clear)
        .map(|moment| {
            let mut place = place(Some(account), &story.prices, moment);
            // A span that reaches into the vague one is compared as far as that.
            if let Place::Billed(span) = &mut place {
                span.start = span.start.max(now.plus_days(-PAST_DAYS));
                if from < to && moment < from {
                    span.end = span.end.min(from);
                } else if from < to {
                    span.start = span.start.max(to);
                }
            }
            (moment, place)
        })
        .collect()
}

/// The account that deliveries in good order lead to, after each step.
fn in_order(story: &Story) -> Vec<Play> {
    let mut play = Play::default();
    let mut plays = Vec::new();
    for step in 0..story.steps.len() {
        for event in story.events.iter().filter(|event| event.step == step) {
            play.deliver(story, step, event.failure());
        }
        play.deliver(story, step, None);
        plays.push(play.clone());
    }
    plays
}

/// Compares an order's account with the one of good order.
fn compare(story: &Story, step: usize, play: &Play, in_order: &Play, order: &dyn Fn() -> String) {
    let vague = vague(story, play.seen.expect("it was looked at").0);
    let ((settled, known), (expected, known_in_order)) = (play.settled(story, step, vague), in_order.settled(story, step, vague));
    let at = || format!("{}, {}: {}", story.name, story.steps[step].name, order());
    assert_eq!(settled.rest, expected.rest, "{}", at());
    for (place, expected) in settled.places.iter().zip(&expected.places) {
        assert_eq!(place, expected, "{}", at());
    }
    for (subscription, until) in &known {
        assert!(known_in_order.get(subscription).is_some_and(|best| until <= best), "{}: {}", story.name, order());
    }
}

/// The failures that were told up to a step.
fn failures(story: &Story, step: usize) -> Vec<(&str, i64)> {
    story.events.iter().filter(|event| event.step <= step).filter_map(|event| event.failure()).collect()
}

/// What `decide` is given of an event is only the failure that it tells. So in each step there are as many different deliveries as
/// failures told so far, and one more; any of them may come any number of times, in any order, or not at all. The search goes from
/// every state that is reachable by every delivery, until there is no new one, and then on to the next step. What it visits are
/// all the schedules there are, repetitions and losses included.
#[tokio::test]
async fn every_schedule_there_is_ends_in_the_same_account() {
    let (mut states, mut deliveries) = (0, 0);
    for story in stories().await {
        let in_order = in_order(story);
        let mut reached: BTreeMap<_, Play> = BTreeMap::new();
        let key = |play: &Play| {
            let mut account = play.machine.account.clone();
            if let Some(account) = &mut account {
                (account.version, account.fetched_at_ms, account.told_at) = (0, 0, None);
            }
            let failures = play.machine.failures.clone();
            (serde_json::to_string(&account).unwrap(), failures, play.model.clone(), play.listener.clone(), play.seen)
        };
        let never_looked = Play::default();
        reached.insert(key(&never_looked), never_looked);
        for (step, expected) in in_order.iter().enumerate() {
            let told = failures(story, step);
            let mut to_do: VecDeque<Play> = reached.values().cloned().collect();
            while let Some(play) = to_do.pop_front() {
                for failure in told.iter().copied().map(Some).chain([None]) {
                    let mut next = play.clone();
                    next.deliver(story, step, failure);
                    deliveries += 1;
                    let key = key(&next);
                    if let Entry::Vacant(new) = reached.entry(key) {
                        compare(story, step, &next, expected, &|| format!("{failure:?} after {play:#?}"));
                        to_do.push_back(next.clone());
                        new.insert(next);
                    }
                }
            }
        }
        states += reached.len();
    }
    assert_eq!((states, deliveries), (3_302, 42_026), "of {} stories", stories().await.len());
}

/// The most events of a story that are permuted one by one.
const PERMUTED: usize = 5;

/// After the end of a story every event may still come, and each fetch shows the same. All orders of some of its events, payment
/// failures before others, one by one: each event comes twice, and wherever an order breaks off the rest is lost, and one look
/// repairs it.
#[tokio::test]
async fn every_order_after_the_end_ends_in_the_same_account() {
    let mut orders = 0;
    for story in stories().await {
        let last = story.steps.len() - 1;
        let expected = in_order(story).pop().unwrap();
        let looks = story.events.iter().filter(|event| !event.is_about_a_payment());
        let mut events: Vec<Failure<'_>> = looks.map(|event| event.failure()).collect();
        events.sort_by_key(Option::is_none);
        events.truncate(PERMUTED);
        let mut to_do = vec![(Play::default(), Vec::<usize>::new())];
        while let Some((play, order)) = to_do.pop() {
            let mut repaired = play.clone();
            repaired.deliver(story, last, None);
            compare(story, last, &repaired, &expected, &|| format!("{order:?} of {events:?}"));
            orders += 1;
            for place in (0..events.len()).filter(|place| !order.contains(place)) {
                let mut next = play.clone();
                next.deliver(story, last, events[place]);
                next.deliver(story, last, events[place]);
                to_do.push((next, order.iter().copied().chain([place]).collect()));
            }
        }
    }
    // The ordered parts of five things are 326.
    assert_eq!(orders, 19 * 326);
}

/// A delivery of a random schedule.
#[derive(Debug, Clone, Copy)]
struct Delivery {
    step: usize,
    event: usize,
    shape: Shape,
}

/// A random schedule: some events are lost, some come more than once, each in its own step or in any later one, and in any shape.
fn schedule(story: &Story, random: &mut Rng) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    for (event, told) in story.events.iter().enumerate() {
        let times = [0, 1, 1, 1, 1, 1, 2, 3][random.usize(..8)];
        for _ in 0..times {
            let late = if random.bool() { 0 } else { random.usize(..story.steps.len() - told.step) };
            deliveries.push(Delivery { step: told.step + late, event, shape: SHAPES[random.usize(..SHAPES.len())] });
        }
    }
    random.shuffle(&mut deliveries);
    deliveries.sort_by_key(|delivery| delivery.step);
    deliveries
}

#[tokio::test]
async fn any_order_in_between_ends_in_the_same_account() {
    /// Of each story.
    const SCHEDULES: u64 = 100;
    let mut orders = BTreeSet::new();
    for story in stories().await {
        let expected = in_order(story);
        let hints: Vec<[_; SHAPES.len()]> =
            story.events.iter().map(|event| SHAPES.map(|shape| shape.hint(&event.payload).payment_failure())).collect();
        for seed in 0..SCHEDULES {
            let mut play = Play::default();
            let schedule = schedule(story, &mut Rng::with_seed(seed));
            let order = || format!("seed {seed}: {schedule:?}");
            for delivery in schedule.iter().filter(|delivery| !story.events[delivery.event].is_about_a_payment()) {
                let shape = SHAPES.iter().position(|shape| *shape == delivery.shape).unwrap();
                let failure = hints[delivery.event][shape].as_ref();
                play.deliver(story, delivery.step, failure.map(|failure| (failure.invoice.as_str(), failure.at.as_secs())));
                compare(story, delivery.step, &play, &expected[delivery.step], &order);
            }
            let last = story.steps.len() - 1;
            play.deliver(story, last, None);
            compare(story, last, &play, &expected[last], &order);
            orders.insert((story.name, schedule.iter().map(|delivery| (delivery.step, delivery.event)).collect::<Vec<_>>()));
        }
    }
    assert!(orders.len() > 1_600, "{} different orders", orders.len());
}

#[tokio::test]
async fn an_event_gives_the_same_hint_in_every_shape() {
    let mut hints = 0;
    for story in stories().await {
        for event in &story.events {
            let pinned = Shape::Pinned.hint(&event.payload);
            assert_eq!(pinned.customer.as_ref(), Some(&story.customer), "{event:?}");
            assert_eq!(pinned.payment_failure().is_some(), event.failure().is_some());
            for shape in SHAPES {
                let mut hint = shape.hint(&event.payload);
                if shape == Shape::Thin {
                    assert_ne!(hint.event_id, pinned.event_id);
                    hint.event_id = pinned.event_id.clone();
                }
                if matches!(shape, Shape::Thin | Shape::Nobodys) && hint.customer.is_none() {
                    // `sync` asks Stripe whose the object is.
                    hint.customer.clone_from(&pinned.customer);
                }
                assert_eq!(hint, pinned, "{shape:?}");
                hints += 1;
            }
        }
    }
    assert!(hints > 1_000, "{hints} hints");
}
