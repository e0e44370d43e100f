//! Random schedules through the `sync` function, on the embedded DynamoDB.
//!
//! Here deliveries have moments, and three functions whose clocks differ from the queue's by almost two seconds. A delivery may
//! come just before Stripe's state changes, or race another one that sees the change first.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use fastrand::Rng;
use handlers::{
    TestClock, World,
    story::{Story, Told, USER},
};
use sync::Outcome;
use tokentill::{
    domain::{
        account::Account,
        facts::CustomerFacts,
        hint::Hint,
        id::{CustomerId, EventId, UserId},
        notice::Notice,
        time::EpochSecs,
    },
    dynamodb::Store,
    ports::{Accounts, Clock},
};

use super::{
    Machine, Play, compare, in_order,
    model::{Listener, Model},
    schedule,
    shapes::{SHAPES, Shape},
    stories,
};
use crate::{
    samples::{customer, user},
    sync::{Function, function},
};

/// Of each story.
const SCHEDULES: usize = 8;
/// How far the functions' clocks are ahead of the queue's: less than the two seconds that a hint is given.
const SKEWS_MS: [i64; 3] = [-1_900, 0, 1_900];
/// How long the last step takes.
const LAST_MS: i64 = 50_000;

/// One schedule, as far as it has come.
struct Run {
    world: Rc<World>,
    store: Store,
    story: &'static Story,
    user: UserId,
    customer: CustomerId,
    functions: [Function; 3],
    step: Cell<usize>,
    /// The step of each change of what Stripe shows.
    steps: RefCell<BTreeMap<u64, usize>>,
    /// The steps that the first and the last commit saw.
    seen: Cell<Option<(usize, usize)>>,
    model: RefCell<Model>,
    notices: Cell<usize>,
}

impl Run {
    /// A user and a customer of its own.
    fn begin(world: &Rc<World>, story: &'static Story, name: &str) -> Rc<Self> {
        let with_clock =
            |_| Function { clock: TestClock::at("2027-01-31T12:00:00Z"), prices: story.prices.clone(), ..function(world) };
        let run = Self {
            world: Rc::clone(world),
            store: world.store(),
            story,
            user: user(name),
            customer: customer(&format!("cus_{name}")),
            functions: SKEWS_MS.map(with_clock),
            step: Cell::new(0),
            steps: RefCell::default(),
            seen: Cell::new(None),
            model: RefCell::default(),
            notices: Cell::new(0),
        };
        for event in &story.events {
            world.stripe.set_object(event.payload["data"]["object"]["id"].as_str().unwrap(), &run.customer);
        }
        run.show(0);
        Rc::new(run)
    }

    /// From now on Stripe shows this step.
    fn show(&self, step: usize) {
        self.step.set(step);
        let mut facts: CustomerFacts = self.story.steps[step].facts.clone();
        let mine = |named: &Option<UserId>| named.as_ref().map(|_| self.user.clone());
        facts.customer = self.customer.clone();
        facts.user_id = mine(&facts.user_id);
        facts.checkout_users.fill(self.user.clone());
        for subscription in &mut facts.subscriptions {
            subscription.user_id = mine(&subscription.user_id);
        }
        self.steps.borrow_mut().insert(self.world.stripe.set(facts), step);
        for (charge, facts) in &self.story.steps[step].payments {
            let mut facts = facts.clone();
            facts.customer = Some(self.customer.clone());
            let charge = self.own(charge);
            if let Some(payment) = &mut facts.payment {
                payment.charge_id.clone_from(&charge);
            }
            self.world.stripe.set_payment(&charge, facts);
        }
    }

    /// An id that no other run has.
    fn own(&self, id: &str) -> String {
        format!("{id}_{}", self.user)
    }

    /// An event's hint, as one of the run's own.
    fn hint(&self, event: &Told, shape: Shape) -> Hint {
        let mut hint = shape.hint(&event.payload);
        hint.event_id = EventId::new(self.own(hint.event_id.as_str())).unwrap();
        hint.customer = hint.customer.map(|_| self.customer.clone());
        if hint.object_id == self.story.customer.as_str() {
            hint.object_id = self.customer.to_string();
        } else if event.is_about_a_payment() {
            hint.object_id = self.own(&hint.object_id);
        }
        hint
    }

    /// The account as the story has it: of its own user and customer.
    async fn account(&self) -> Option<Account> {
        let mut account = self.store.account(&self.user).await.unwrap()?;
        account.user_id = user(USER);
        account.customer_id = self.story.customer.clone();
        for segment in &mut account.segments {
            segment.customer = self.story.customer.clone();
        }
        Some(account)
    }

    async fn play(&self) -> Option<Play> {
        let machine = Machine { account: Some(self.account().await?), ..Machine::default() };
        Some(Play { machine, model: self.model.borrow().clone(), listener: Listener::default(), seen: self.seen.get() })
    }

    /// Moves a function's clock on to a moment of the queue's.
    fn at(&self, which: usize, now_ms: i64) {
        let clock = &self.functions[which].clock;
        clock.advance_ms(now_ms + SKEWS_MS[which] - clock.now_ms());
    }

    /// A hint of an event of a step is handled at a moment by one of the functions.
    async fn deliver(&self, hint: &Hint, of_step: usize, sent_at_ms: i64, now_ms: i64, which: usize) {
        let function = &self.functions[which];
        self.at(which, now_ms);
        let failure = hint.payment_failure();
        let failure = failure.as_ref().map(|failure| (failure.invoice.as_str(), failure.at.as_secs()));
        match function.hint(hint, sent_at_ms).await.unwrap() {
            Outcome::Committed { notices, .. } => {
                self.notices.set(self.notices.get() + notices);
                let step = self.steps.borrow()[&function.stripe.seen.get()];
                self.seen.set(Some((self.seen.get().map_or(step, |(first, _)| first), step)));
                let mut play = self.play().await.expect("it was committed");
                let fetched_at = EpochSecs::from_ms(play.account().fetched_at_ms);
                play.model.look(&self.story.steps[step], failure, fetched_at.as_secs());
                self.model.replace(play.model.clone());
                play.check(self.story, step, fetched_at, 2);
            }
            Outcome::Skipped => {
                let knows = failure.is_none_or(|(invoice, at)| self.model.borrow().knows(invoice, at));
                assert!(knows, "{}: an earlier failure was skipped", self.story.name);
                let has_seen = self.seen.get().is_some_and(|(_, last)| of_step <= last);
                assert!(has_seen, "{}: what step {of_step} told was skipped before anybody had seen it", self.story.name);
            }
            Outcome::Payment { is_new, .. } => self.notices.set(self.notices.get() + usize::from(is_new)),
            other => panic!("{}: {other:?}", self.story.name),
        }
    }
}

/// A delivery with its moment.
#[derive(Debug, Clone)]
struct Timed {
    step: usize,
    /// The step that caused the event.
    of_step: usize,
    hint: Hint,
    sent_at_ms: i64,
    now_ms: i64,
    which: usize,
    /// Before which call of the function the next step begins, and the next delivery is handled by another one.
    overtaken_at: Option<&'static str>,
}

/// Gives a schedule's deliveries their moments.
fn timed(run: &Run, random: &mut Rng) -> Vec<Timed> {
    let story = run.story;
    let begin_ms = |step: usize| story.steps[step].at.as_secs() * 1000;
    let mut deliveries: Vec<Timed> = schedule(story, random)
        .into_iter()
        // Half of what tells of no failure is lost as well: it would be one more look.
        .filter(|delivery| story.events[delivery.event].failure().is_some() || random.bool())
        .collect::<Vec<_>>()
        .into_iter()
        .map(|delivery| {
            let (step, event) = (delivery.step, &story.events[delivery.event]);
            let end_ms = if step + 1 < story.steps.len() { begin_ms(step + 1) } else { begin_ms(step) + LAST_MS };
            let now_ms = match random.usize(..4) {
                0 => random.i64(begin_ms(step)..end_ms),
                1 => random.i64(end_ms - 1_900..end_ms),
                _ => begin_ms(step) + random.i64(0..3_000),
            };
            // Either the hint waited in the queue, or Stripe delivered late.
            let sent_at_ms = if random.bool() { begin_ms(event.step) } else { now_ms - random.i64(0..3_000) };
            let hint = run.hint(event, delivery.shape);
            let overtaken_at = [None, None, Some("account"), Some("commit")][random.usize(..4)];
            let sent_at_ms = sent_at_ms.clamp(begin_ms(event.step), now_ms);
            Timed { step, of_step: event.step, hint, sent_at_ms, now_ms, which: random.usize(..3), overtaken_at }
        })
        .collect();
    deliveries.sort_by_key(|delivery| delivery.now_ms);
    deliveries
}

/// Plays a schedule, and repairs what was lost: an operator replays one of the events, whatever became of it.
async fn play(run: &Rc<Run>, random: &mut Rng) {
    let story = run.story;
    let mut to_do: Vec<Timed> = timed(run, random);
    to_do.reverse();
    while let Some(next) = to_do.pop() {
        if next.step > run.step.get() {
            run.show(next.step);
        }
        let overtaker = to_do.last().filter(|later| later.step > run.step.get()).cloned();
        let overtaken = Rc::new(Cell::new(false));
        let armed = Rc::new(Cell::new(true));
        if let (Some(call), Some(later)) = (next.overtaken_at, overtaker) {
            let (run, armed, overtaken) = (Rc::clone(run), Rc::clone(&armed), Rc::clone(&overtaken));
            let (which, other) = (next.which, (next.which + 1) % 3);
            let faults = run.functions[which].accounts.faults.clone();
            faults.meanwhile(call, 1, async move {
                if armed.get() {
                    run.show(later.step);
                    run.deliver(&later.hint, later.of_step, later.sent_at_ms, later.now_ms, other).await;
                    run.at(which, later.now_ms);
                    overtaken.set(true);
                }
            });
        }
        run.deliver(&next.hint, next.of_step, next.sent_at_ms, next.now_ms, next.which).await;
        armed.set(false);
        if overtaken.get() {
            to_do.pop();
        }
    }
    let last = story.steps.len() - 1;
    run.show(last);
    let looks: Vec<&Told> = story.events.iter().filter(|event| !event.is_about_a_payment()).collect();
    let shape = SHAPES[random.usize(..SHAPES.len())];
    let hint = Hint { replay: true, ..run.hint(looks[random.usize(..looks.len())], shape) };
    let now_ms = story.steps[last].at.as_secs() * 1000 + LAST_MS;
    run.deliver(&hint, 0, now_ms, now_ms, 1).await;
}

#[tokio::test]
async fn any_order_through_the_function_ends_in_the_same_account() {
    let world = Rc::new(World::start().await);
    let mut heard: BTreeMap<UserId, (usize, Play, &Story)> = BTreeMap::new();
    for (number, story) in stories().await.iter().enumerate() {
        let last = story.steps.len() - 1;
        let expected = in_order(story).pop().unwrap();
        for seed in 0..SCHEDULES {
            let mut random = Rng::with_seed(u64::try_from(number * 1_000 + seed).unwrap());
            let run = Run::begin(&world, story, &format!("user{number}x{seed}"));
            play(&run, &mut random).await;
            let end = run.play().await.unwrap();
            compare(story, last, &end, &expected, &|| format!("seed {seed} of story {number}: {end:#?}"));
            heard.insert(run.user.clone(), (run.notices.get(), end, story));
        }
    }
    assert_eq!(heard.len(), 19 * SCHEDULES);
    // What was told, commit by commit: each change once, and in the end the state there is.
    let mut told: BTreeMap<UserId, BTreeMap<u64, Vec<Notice>>> = BTreeMap::new();
    let mut told_of_payments: BTreeMap<UserId, usize> = BTreeMap::new();
    for row in world.items("outbox").await {
        let notice: Notice = serde_json::from_value(row).unwrap();
        if notice.payment.is_some() {
            // Its id is the payment's state, so the outbox holds it once.
            *told_of_payments.entry(notice.user_id).or_default() += 1;
            continue;
        }
        let version = notice.notice_id.split('/').nth(1).and_then(|part| part.split_once(':')?.1.parse().ok()).unwrap();
        told.entry(notice.user_id.clone()).or_default().entry(version).or_default().push(notice);
    }
    for (user, (count, end, story)) in heard {
        let told = told.remove(&user).unwrap_or_default();
        let of_payments = told_of_payments.get(&user).copied().unwrap_or(0);
        assert_eq!(told.values().map(Vec::len).sum::<usize>() + of_payments, count);
        let mut listener = Listener::default();
        for notices in told.values() {
            assert_eq!(listener.hear(notices), Ok(()), "{}: {told:#?}", story.name);
        }
        let account = end.account();
        assert!(listener.knows(account, account.announced.state.unwrap()), "{}: {told:#?}", story.name);
    }
    assert!(told.is_empty());
}
