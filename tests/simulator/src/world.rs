//! A world: it plays a story, lets everything come to rest, and has every step checked.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent};
use aws_sdk_dynamodb::Client;
use fastrand::Rng;
use notifier::{Notifier, Post};
use reporter::{Invocation, Reporter, Settings};
use serde_json::json;
use sweeper::Sweeper;
use sync::{Listener, Sync};
use tokentill::{
    config::StripeMode,
    domain::{
        email::Letterhead,
        hint::{HINT_VERSION, Hint},
        id::{CustomerId, EventId},
        price_list::PriceList,
        time::EpochSecs,
    },
    dynamodb::Store,
    ports::{Clock, ReporterMemory, ReporterState},
};
use tokio::{
    runtime::Builder,
    task::{JoinHandle, LocalSet, spawn_local},
    time::sleep,
};
use usage::Usage;

use crate::{
    engine::{Engine, template},
    front::Front,
    hub::{Hub, SimClock, Struck, Weather},
    mail::{Numbered, Outside, Stream, from_the_first_failure, trigger},
    model::{Checked, GRACE_SECS, Model, Sent},
    queue::Queue,
    story::{Act, Life, Step, Story, USERS},
    stripe::{Customer, Event, FINAL_AFTER_SECS, Stripe},
};

/// What a story came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What did not hold, if anything; it begins with the guarantee's name.
    pub violation: Option<String>,
    /// The trace's hash: the same for the same story, and another one for another order of events.
    pub hash: u64,
    /// The trace, if it was kept.
    pub trace: Vec<String>,
    /// How many calls left the functions.
    pub calls: u64,
    /// What was done to the functions, by kind.
    pub injected: BTreeMap<&'static str, u64>,
    /// Which calls of which step something happened to.
    pub struck: BTreeMap<usize, Vec<usize>>,
}

/// Plays a story. Nothing but the story decides what happens.
#[must_use]
pub fn play(story: &Story, keeps_trace: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime starts");
    // The functions' own chance (backoff, shards) and the SDK's jitter.
    fastrand::seed(story.seed);
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let mut world = World::start(story, keeps_trace).await;
        let violation = world.play(story).await.err();
        if let Some(violation) = &violation {
            world.hub.note(violation);
        }
        let (hash, trace, calls) = world.hub.trace();
        let struck = world.struck.iter().map(|(step, struck)| (*step, struck.0.borrow().clone())).collect();
        Outcome { violation, hash, trace, calls, injected: world.hub.injected(), struck }
    })
}

struct World {
    hub: Hub,
    engine: Engine,
    client: Client,
    stripe: Stripe,
    usage_queue: Queue,
    changes: Queue,
    prices: PriceList,
    period_secs: i64,
    most_skew_ms: i64,
    stream: Stream,
    outside: Outside,
    front: Front,
    names: Numbered,
    model: Model,
    running: Vec<JoinHandle<()>>,
    struck: BTreeMap<usize, Struck>,
    identifiers: Rc<Cell<u64>>,
    invocations: u64,
}

fn prices(has_free_tier: bool) -> PriceList {
    let shipped = include_str!("../../../shared/price-list.toml").replace("\"month\"", "\"day\"");
    let (head, plans) = shipped.split_once("[[plans]]").expect("the shipped list has plans");
    let (free, pro) = plans.split_once("[[plans]]").expect("the shipped list has two plans");
    let team = pro.replace("pro_", "team_").replace("\"pro\"", "\"team\"");
    // The other plan bills one meter less.
    let (team, _) = team.rsplit_once("[[plans.prices]]").expect("a plan has prices");
    let free = if has_free_tier { format!("[[plans]]{free}") } else { String::new() };
    PriceList::parse(&format!("{head}{free}[[plans]]{pro}\n[[plans]]{team}")).expect("the list is good")
}

impl World {
    async fn start(story: &Story, keeps_trace: bool) -> Self {
        let hub = Hub::new(story.begins_ms, keeps_trace);
        let (engine, client) = Engine::start(&hub, story.broken).await;
        let changes = Queue::of_changes(&hub, story.most_receives.1);
        let prices = prices(story.has_free_tier);
        let tables_of_access = Store::new(client.clone(), template().tables_of("access"));
        let front = Front::new(&hub, &changes, tables_of_access, &prices, story.most_skew_ms, story.seed);
        let mut world = Self {
            stripe: Stripe::new(&hub, story),
            usage_queue: Queue::of_usage(&hub, story.most_receives.0),
            changes,
            most_skew_ms: story.most_skew_ms,
            stream: engine.stream(),
            outside: Outside::new(&hub),
            names: Numbered::default(),
            prices,
            period_secs: story.period_secs,
            model: Model::of(story, front.told()),
            front,
            running: Vec::new(),
            struck: BTreeMap::new(),
            identifiers: Rc::default(),
            invocations: 0,
            hub,
            engine,
            client,
        };
        // The reporter has run before: its first look would go back 36 days.
        let memory = ReporterMemory {
            settled_through: Some(EpochSecs::from_ms(story.begins_ms).hour().plus_secs(-7_200)),
            ..ReporterMemory::default()
        };
        world.store("reporter").remember(&memory).await.expect("nothing goes wrong yet");
        for (index, user) in USERS.iter().enumerate().take(story.users) {
            // The last of several users is a stranger to begin with.
            if index == 0 || index + 1 < story.users {
                for event in world.stripe.subscribe(user, "pro", story.period_secs) {
                    world.front.deliver(&event, 0, 0).await;
                }
            }
        }
        for _ in 0..2 {
            world.sync(10, Weather::calm(), None);
            sleep(Duration::from_secs(10)).await;
        }
        world
    }

    fn store(&self, function: &str) -> Store {
        Store::new(self.client.clone(), template().tables_of(function))
    }

    async fn play(&mut self, story: &Story) -> Checked {
        for step in &story.steps {
            self.hub.note(&step.to_string());
            self.act(step).await;
            sleep(Duration::from_millis(step.then_ms)).await;
            self.hear(Some((Rng::with_seed(step.weather.seed ^ 3), step.weather.permille))).await;
            self.check()?;
        }
        self.rest().await
    }

    async fn act(&mut self, step: &Step) {
        let weather = step.weather.clone();
        match &step.act {
            Act::Send(user, messages) => {
                for (place, uses) in messages.iter().enumerate() {
                    let message = format!("m{}-{place}", step.id);
                    let now = self.hub.now_secs();
                    let mut events = Vec::new();
                    for used in uses {
                        let (tokens_in, tokens_out) = used.tokens();
                        events.push(json!({
                            "request_id": used.request_id(), "user_id": USERS[*user], "endpoint": "/v1/x", "tokens_in": tokens_in,
                            "tokens_out": tokens_out, "success": used.success, "timestamp": now - used.age_secs,
                        }));
                        self.model.sent.push(Sent {
                            user: USERS[*user],
                            request: used.request_id(),
                            success: used.success,
                            tokens: (i64::try_from(tokens_in).expect("few"), i64::try_from(tokens_out).expect("few")),
                            at: now - used.age_secs,
                            sent_at: now,
                        });
                    }
                    self.usage_queue.put(Some(message), json!({"events": events}).to_string(), None, None, 0);
                }
            }
            Act::Count(most) => self.count(*most, weather, Some(step.id)),
            Act::Report(late_secs) => self.report(*late_secs, weather, Some(step.id)),
            Act::Sync(most) => self.sync(*most, weather, Some(step.id)),
            Act::Sweep => self.sweep(weather, Some(step.id)),
            Act::Notify(most) => self.notify(*most, weather, Some(step.id)),
            Act::Life(user, life) => {
                let mut chance = Rng::with_seed(step.weather.seed);
                for event in self.happens(*user, *life) {
                    self.deliver_by_chance(&event, &mut chance, weather.permille);
                }
            }
            Act::Race(user, lives, between_ms) => {
                let mut chance = Rng::with_seed(step.weather.seed);
                for (place, life) in lives.iter().enumerate() {
                    for event in self.happens(*user, *life) {
                        self.front.deliver(&event, 0, chance.u64(..)).await;
                    }
                    let is_last = place + 1 == lives.len();
                    // Of two invocations one is disturbed, so that a call of this step is one call.
                    let weather = if is_last { weather.clone() } else { Weather { permille: 0, ..weather.clone() } };
                    self.look(10, weather, is_last.then_some(step.id), true);
                    if !is_last {
                        sleep(Duration::from_millis(*between_ms)).await;
                    }
                }
            }
            Act::Ask(user, checks) => {
                let mut chance = Rng::with_seed(weather.seed);
                for (place, requests) in checks.iter().enumerate() {
                    let is_last = place + 1 == checks.len();
                    // As of a race one is disturbed, so that a call of this step is one call.
                    let permille = if is_last { weather.permille } else { 0 };
                    let weather = Weather { permille, seed: chance.u64(..), ..weather.clone() };
                    let struck = self.struck(is_last.then_some(step.id));
                    let (front, user, requests) = (self.front.clone(), USERS[*user], *requests);
                    self.running.push(spawn_local(async move { front.ask(user, requests, weather, struck).await }));
                }
            }
            Act::Outage(secs) => self.stripe.go_down(*secs),
            Act::Redrive => {
                self.usage_queue.redrive();
                self.changes.redrive();
            }
            Act::UntilPeriodEnds(user, secs) => {
                let now = self.hub.now_secs();
                let customers = self.stripe.customers();
                let of_user = customers.iter().find(|customer| customer.user == USERS[*user]);
                if let Some(subscription) = of_user.and_then(|customer| customer.subscriptions.last()) {
                    let until = subscription.period(now).1 + secs;
                    sleep(Duration::from_secs(u64::try_from(until - now).unwrap_or(0))).await;
                }
            }
            Act::Wait => {}
        }
    }

    /// Something happens to a user's subscription; the events that tell of it.
    fn happens(&self, user: usize, life: Life) -> Vec<Event> {
        let user = USERS[user];
        match life {
            Life::Subscribe(plan) => self.stripe.subscribe(user, plan, self.period_secs),
            Life::Fail => self.stripe.fail(user),
            Life::Pay => self.stripe.pay(user),
            Life::Switch(plan) => self.stripe.switch(user, plan),
            Life::Cancel(at_once) => self.stripe.cancel(user, at_once),
        }
    }

    fn name(&mut self, function: &str) -> String {
        self.invocations += 1;
        format!("{function}-{}", self.invocations)
    }

    fn struck(&mut self, step: Option<usize>) -> Option<Struck> {
        step.map(|step| self.struck.entry(step).or_default().clone())
    }

    fn clock(&self, chance: &mut Rng) -> SimClock {
        SimClock::off(&self.hub, self.most_skew_ms, chance)
    }

    fn count(&mut self, most: usize, weather: Weather, step: Option<usize>) {
        let mut chance = Rng::with_seed(weather.seed);
        let clock = self.clock(&mut chance);
        let event = self.usage_queue.receive(most, &mut chance, weather.permille > 0);
        let store = self.store("usage");
        let usage = Usage {
            accounts: store.clone(),
            ledger: store.clone(),
            quarantine: store,
            prices: self.prices.clone(),
            retention_days: 400,
            clock,
        };
        let name = self.name("usage");
        let handle = async move |event: SqsEvent, name: String| {
            let stop_at_ms = usage.clock.now_ms() + 48_000;
            usage.handle(event, &name, stop_at_ms).await.expect("every message has an id")
        };
        self.invoke(name, event, self.usage_queue.clone(), weather, step, handle);
    }

    fn sync(&mut self, most: usize, weather: Weather, step: Option<usize>) {
        let repeats = weather.permille > 0;
        self.look(most, weather, step, repeats);
    }

    /// The sync function is given a batch; with repeats also of what another one has.
    fn look(&mut self, most: usize, weather: Weather, step: Option<usize>, repeats: bool) {
        let mut chance = Rng::with_seed(weather.seed);
        let clock = self.clock(&mut chance);
        let event = self.changes.receive(most, &mut chance, repeats);
        let store = self.store("sync");
        let sync = Sync {
            stripe: self.stripe.clone(),
            accounts: store.clone(),
            queue: self.changes.clone(),
            recounts: self.usage_queue.clone(),
            quarantine: store.clone(),
            meter_errors: store,
            listener: Listener::default(),
            prices: self.prices.clone(),
            mode: StripeMode::Test,
            clock,
        };
        let name = self.name("sync");
        let handle = async move |event: SqsEvent, _| {
            let stop_at_ms = sync.clock.now_ms() + 48_000;
            sync.handle(event, stop_at_ms).await.expect("every message has an id")
        };
        self.invoke(name, event, self.changes.clone(), weather, step, handle);
    }

    /// Has a function handle a batch, and takes out of the queue what it need not see again.
    fn invoke<H: AsyncFnOnce(SqsEvent, String) -> SqsBatchResponse + 'static>(
        &mut self,
        name: String,
        event: SqsEvent,
        queue: Queue,
        weather: Weather,
        step: Option<usize>,
        handle: H,
    ) {
        if event.records.is_empty() {
            return;
        }
        let (hub, struck) = (self.hub.clone(), self.struck(step));
        self.running.push(spawn_local(async move {
            let mut ids: BTreeSet<String> = event.records.iter().filter_map(|record| record.message_id.clone()).collect();
            hub.note(&format!("{name} is given {ids:?}"));
            let work = Box::pin(handle(event, name.clone()));
            let Some(answer) = hub.invoke(name, &weather, 60, struck.as_ref(), work).await else { return };
            for failure in &answer.batch_item_failures {
                ids.remove(&failure.item_identifier);
            }
            let mut chance = Rng::with_seed(weather.seed ^ 1);
            if chance.u32(..2_000) < weather.permille {
                hub.count("delete lost");
                return;
            }
            queue.delete(&ids);
        }));
    }

    fn report(&mut self, late_secs: i64, weather: Weather, step: Option<usize>) {
        let mut chance = Rng::with_seed(weather.seed);
        let store = self.store("reporter");
        let (identifiers, seed) = (self.identifiers.clone(), weather.seed);
        let reporter = Reporter {
            books: store.clone(),
            accounts: store,
            meters: self.stripe.clone(),
            clock: self.clock(&mut chance),
            prices: self.prices.clone(),
            identifiers: move || {
                identifiers.set(identifiers.get() + 1);
                format!("{seed:016x}-{}", identifiers.get())
            },
            settings: Settings { interval_secs: 900, final_after_secs: FINAL_AFTER_SECS, calls_per_sec: 20 },
        };
        let (name, hub, struck) = (self.name("reporter"), self.hub.clone(), self.struck(step));
        let now = EpochSecs::new(self.hub.now_secs() - late_secs);
        self.running.push(spawn_local(async move {
            let invocation = Invocation { id: name.clone(), stop_at_ms: reporter.clock.now_ms() + 240_000 };
            let work = Box::pin(reporter.run(now, None, &invocation));
            let run = hub.invoke(name.clone(), &weather, 300, struck.as_ref(), work).await;
            if let Some(run) = run {
                // Errors may hold the SDK's own words, but nothing that differs between two runs.
                hub.note(&format!("{name}: {run:?}"));
            }
        }));
    }

    fn sweep(&mut self, weather: Weather, step: Option<usize>) {
        let mut chance = Rng::with_seed(weather.seed);
        let sweeper = Sweeper { accounts: self.store("sweeper"), clock: self.clock(&mut chance), prices: self.prices.clone() };
        let (name, hub, struck) = (self.name("sweeper"), self.hub.clone(), self.struck(step));
        let now = EpochSecs::new(self.hub.now_secs());
        self.running.push(spawn_local(async move {
            let stop_at_ms = sweeper.clock.now_ms() + 96_000;
            let run = hub.invoke(name.clone(), &weather, 120, struck.as_ref(), Box::pin(sweeper.run(now, stop_at_ms))).await;
            if let Some(run) = run {
                hub.note(&format!("{name}: {run:?}"));
            }
        }));
    }

    fn notify(&mut self, most: usize, weather: Weather, step: Option<usize>) {
        let mut chance = Rng::with_seed(weather.seed);
        let clock = self.clock(&mut chance);
        let records = self.stream.take(most);
        if records.is_empty() {
            return;
        }
        let letterhead = Letterhead { product: "Sim".to_owned(), support: None };
        let notifier = Notifier {
            outbox: self.store("notifier"),
            bus: self.outside.clone(),
            stripe: self.stripe.clone(),
            post: Some(Post { letterhead, mailer: self.outside.clone() }),
            names: self.names.clone(),
            clock,
            prices: self.prices.clone(),
            livemode: false,
        };
        let (name, hub, struck) = (self.name("notifier"), self.hub.clone(), self.struck(step));
        let stream = self.stream.clone();
        self.running.push(spawn_local(async move {
            hub.note(&format!("{name} is given {records:?}"));
            let stop_at_ms = notifier.clock.now_ms() + 48_000;
            let work = Box::pin(notifier.handle(trigger(&records), stop_at_ms));
            let answer = hub.invoke(name, &weather, 60, struck.as_ref(), work).await;
            let left = match answer {
                Some(Ok(answer)) if chance.u32(..2_000) >= weather.permille => from_the_first_failure(records, &answer),
                _ => records,
            };
            stream.put_back(left, &hub);
        }));
    }

    /// What holds at every moment.
    fn check(&mut self) -> Checked {
        self.model.check(&self.engine, &self.stripe, &self.outside)?;
        self.front.check(&self.stripe, |user| self.model.free_requests(user))
    }

    /// Stripe tells by itself: that it threw usage away, and that a subscription ended as announced, this by chance if there is one.
    async fn hear(&mut self, mut chance: Option<(Rng, u32)>) {
        for event in self.stripe.tell() {
            let is_of_nobody = event.customer.is_empty();
            if is_of_nobody {
                self.hub.count("usage thrown away");
            }
            match &mut chance {
                Some((chance, permille)) if !is_of_nobody => self.deliver_by_chance(&event, chance, *permille),
                _ => self.front.deliver(&event, 0, 0).await,
            }
        }
    }

    /// Stripe delivers an event: never, once, or more often; at once, or up to three days later.
    fn deliver_by_chance(&mut self, event: &Event, chance: &mut Rng, permille: u32) {
        let times = [0, 1, 1, 1, 1, 2, 3][chance.usize(..7)];
        if times == 0 {
            self.hub.count("event never delivered");
        }
        for _ in 0..times {
            let late = match chance.u8(..10) {
                0..5 => chance.u64(..2),
                5..8 => chance.u64(..120),
                _ => chance.u64(..200_000),
            };
            let (front, event, seed) = (self.front.clone(), event.clone(), chance.u64(..));
            self.running.push(spawn_local(async move {
                sleep(Duration::from_secs(late)).await;
                front.deliver(&event, permille, seed).await;
            }));
        }
        if chance.u8(..8) == 0 {
            let (front, event, seed) = (self.front.clone(), event.clone(), chance.u64(..));
            self.running.push(spawn_local(async move { front.forge(&event, seed).await }));
        }
    }

    /// Nothing goes wrong any more, and everything comes to its end. Then everything must be accounted for.
    async fn rest(&mut self) -> Checked {
        self.hub.note("everything comes to rest");
        self.stripe.come_back();
        self.come_to_an_end().await?;
        self.check()?;
        // What Stripe never delivered is found by the comparison with its customers: here by an operator's replay.
        for customer in self.stripe.customers() {
            put_replay(&self.changes, &customer.id, self.hub.now_secs());
        }
        for round in 0..60 {
            self.usage_queue.redrive();
            self.changes.redrive();
            self.hear(None).await;
            if self.usage_queue.is_empty() && self.changes.is_empty() {
                break;
            }
            if round == 59 {
                let left = [self.usage_queue.left(), self.changes.left()].concat();
                return Err(format!("G4: messages never come to an end: {left:?}"));
            }
            self.sync(10, Weather::calm(), None);
            self.come_to_an_end().await?;
            self.count(10, Weather::calm(), None);
            self.come_to_an_end().await?;
            sleep(Duration::from_secs(100)).await;
        }
        self.check()?;
        self.model.check_events_at_rest(&self.engine, self.hub.now_secs())?;
        self.model.check_accounts_at_rest(&self.engine, &self.stripe, self.hub.now_secs())?;
        self.check_access_at_rest().await?;
        self.tell_everything().await?;
        let mut unsettled = String::new();
        for wait_secs in [60, 960, 4_000, 78_000, 4_000, 90_000, 4_000, 4_000, 90_000, 4_000] {
            sleep(Duration::from_secs(wait_secs)).await;
            self.hear(None).await;
            self.sync(10, Weather::calm(), None);
            self.come_to_an_end().await?;
            self.report(0, Weather::calm(), None);
            self.come_to_an_end().await?;
            self.check()?;
            match self.model.check_money_at_rest(&self.engine, &self.stripe) {
                Ok(()) => return Ok(()),
                Err(what) => unsettled = what,
            }
        }
        Err(unsettled)
    }

    /// G8: what is due by time is announced, and every notice is told: what the stream lost, by the sweeper's waking.
    async fn tell_everything(&mut self) -> Checked {
        for _ in 0..3 {
            self.sweep(Weather::calm(), None);
            self.come_to_an_end().await?;
            while !self.stream.is_empty() {
                self.notify(10, Weather::calm(), None);
                self.come_to_an_end().await?;
            }
            self.check()?;
            if self.model.is_everything_told(&self.engine) {
                break;
            }
            sleep(Duration::from_secs(1_000)).await;
        }
        self.model.check_notices_at_rest(&self.engine, &self.outside)?;
        let (has_free_tier, now) = (self.prices.free_plan().is_some(), self.hub.now_secs());
        for customer in self.stripe.customers().into_iter().filter(|customer| !self.model.has_untold_debt(customer, now)) {
            let since = self.model.grace_since(&self.engine, &customer, now);
            // What is owed of a subscription that is over is told by its invoice only.
            if since.is_none() || customer.counts(now).is_some_and(|last| last.ended.is_none()) {
                let (state, _) = expected_state(&customer, since, has_free_tier, (now, now));
                self.model.check_last_told(&self.engine, &customer.user, state)?;
            }
        }
        Ok(())
    }

    /// G7: what the access function makes of an account, at this moment and around the end of grace, is what a few plain rules say.
    async fn check_access_at_rest(&self) -> Checked {
        let now = self.hub.now_secs();
        for customer in self.stripe.customers() {
            if self.model.has_untold_debt(&customer, now) {
                continue;
            }
            let user = &customer.user;
            let since = self.model.grace_since(&self.engine, &customer, now);
            let deadline = since.map(|since| since + GRACE_SECS);
            let moments =
                [Some(now), deadline.map(|deadline| deadline - 1), deadline, deadline.map(|deadline| deadline + 90_000)];
            for at in moments.into_iter().flatten().filter(|at| *at >= now) {
                let shown = self.front.look(user, at).await?;
                let expected = expected_state(&customer, since, self.prices.free_plan().is_some(), (now, at));
                if shown.0 != expected.0 || expected.1.is_some_and(|until| shown.1 != Some(until)) {
                    return Err(format!("G7: at {at} {user} is {shown:?}, not {expected:?}; at Stripe {customer:?}"));
                }
            }
        }
        Ok(())
    }

    async fn come_to_an_end(&mut self) -> Checked {
        for running in std::mem::take(&mut self.running) {
            running.await.map_err(|panicked| format!("panic: {panicked}"))?;
        }
        Ok(())
    }
}

/// The state that a user has, and until when, by the contract's table in a few plain rules.
fn expected_state(
    customer: &Customer,
    since: Option<i64>,
    has_free_tier: bool,
    (now, at): (i64, i64),
) -> (&'static str, Option<i64>) {
    let ended = if has_free_tier { "free" } else { "ended" };
    let Some(last) = customer.counts(now) else { return (if has_free_tier { "free" } else { "none" }, None) };
    let in_grace = |since: i64| if at < since + GRACE_SECS { ("grace", Some(since + GRACE_SECS)) } else { ("ended", None) };
    if let Some(since) = since {
        return in_grace(since);
    }
    let is_over = last.ended.or(last.cancel_at).is_some_and(|end| end <= at);
    let paid_until = last.late_payments.iter().map(|(_, until)| *until).max().filter(|until| at < *until);
    match (is_over, paid_until) {
        (false, _) => ("active", last.cancel_at),
        (true, Some(until)) => ("active", Some(until)),
        (true, None) => (ended, None),
    }
}

/// An operator has a customer looked at again.
fn put_replay(changes: &Queue, customer: &str, now: i64) {
    let hint = Hint {
        v: HINT_VERSION,
        event_id: EventId::new(format!("replay-{customer}")).expect("an id"),
        kind: "customer.updated".to_owned(),
        created: EpochSecs::new(now),
        object_id: customer.to_owned(),
        customer: Some(CustomerId::new(customer).expect("an id")),
        invoice: None,
        livemode: false,
        replay: true,
        swept: false,
    };
    let group = hint.group().to_owned();
    changes.put(None, json!(hint).to_string(), Some(group), Some(hint.event_id.as_str()), 0);
}
