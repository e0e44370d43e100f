//! Test clocks: the only thing in the sandbox that makes time pass.
//!
//! Source: "API and advanced usage" of test clocks, and the SDK type `test_helpers.TestClock`.

use serde_json::{Value, json};

use crate::calendar::{DAY_SECS, boundary};
use crate::error::{ApiError, Reply};
use crate::events;
use crate::expand::Expand;
use crate::form::Params;
use crate::world::{Page, World, new_id};
use crate::{customers, invoices, subscriptions};

/// A test clock. While it advances, its objects live in [`TestClock::now_secs`], but it shows the time it started from.
#[derive(Clone, Debug)]
pub(crate) struct TestClock {
    id: String,
    created: i64,
    frozen_secs: i64,
    name: Option<String>,
    /// The time of the clock's objects, in Unix seconds.
    pub(crate) now_secs: i64,
    /// Where the clock is going, while it advances.
    pub(crate) target_secs: Option<i64>,
    deleted: bool,
}

impl TestClock {
    /// The clock in Stripe's form.
    pub(crate) fn render(&self) -> Value {
        let (status, details) = match self.target_secs {
            Some(target) => ("advancing", json!({"advancing": {"target_frozen_time": target}})),
            None => ("ready", json!({})),
        };
        json!({
            "id": self.id,
            "object": "test_helpers.test_clock",
            "created": self.created,
            "deletes_after": self.created + 30 * DAY_SECS,
            "frozen_time": self.frozen_secs,
            "livemode": false,
            "name": self.name,
            "status": status,
            "status_details": details,
        })
    }
}

fn find<'a>(world: &'a World, id: &str) -> Result<&'a TestClock, ApiError> {
    world.clocks.get(id).filter(|clock| !clock.deleted).ok_or_else(|| ApiError::not_found("test_clock", id))
}

/// Whether a new customer may be put on this clock.
///
/// Source: "API and advanced usage", Limitations: at most three customers on one clock.
pub(crate) fn check_room(world: &World, id: &str) -> Result<(), ApiError> {
    let clock =
        world.clocks.get(id).filter(|clock| !clock.deleted).ok_or_else(|| ApiError::no_such("test_clock", "test_clock", id))?;
    world.check_clock_ready(Some(&clock.id))?;
    let customers =
        world.customers.values().filter(|customer| !customer.deleted && customer.clock.as_deref() == Some(id)).count();
    if customers >= 3 {
        return Err(ApiError::invalid_param("test_clock", "You have reached the limit of 3 customers on this test clock."));
    }
    Ok(())
}

/// `POST /v1/test_helpers/test_clocks`
pub(crate) fn create(world: &mut World, params: &mut Params) -> Reply {
    let frozen_secs = params.required_int("frozen_time")?;
    let name = params.text("name")?;
    let _ = Expand::from_params(params, "test_helpers.test_clock")?;
    params.finish()?;
    let id = new_id("clock");
    let clock = TestClock {
        id: id.clone(),
        created: world.wall_secs,
        frozen_secs,
        name,
        now_secs: frozen_secs,
        target_secs: None,
        deleted: false,
    };
    let rendered = clock.render();
    world.clocks.insert(&id, clock);
    events::emit(world, "test_helpers.test_clock.created", Some(&id), rendered.clone(), None);
    Ok(rendered)
}

/// `GET /v1/test_helpers/test_clocks/{id}`
pub(crate) fn retrieve(world: &World, id: &str, params: &mut Params) -> Reply {
    let _ = Expand::from_params(params, "test_helpers.test_clock")?;
    params.finish()?;
    find(world, id).map(TestClock::render)
}

/// `GET /v1/test_helpers/test_clocks`
pub(crate) fn list(world: &World, params: &mut Params) -> Reply {
    let page = Page::from_params(params)?;
    params.finish()?;
    page.cut(&world.clocks, "test_clock", "/v1/test_helpers/test_clocks", |clock| !clock.deleted, TestClock::render)
}

/// How far the clock may advance at once.
///
/// Source: "API and advanced usage": two intervals of the shortest subscription on the clock; two years without one.
/// The page once counted them from the clock's initial time; the newer text says "in intervals of up to two", so we count
/// from the time the clock shows.
fn furthest(world: &World, clock: &TestClock) -> i64 {
    world
        .subscriptions
        .values()
        .filter(|subscription| subscription.clock.as_deref() == Some(&clock.id) && !subscription.status.is_terminal())
        .map(|subscription| boundary(clock.frozen_secs, subscription.interval, subscription.interval_count.saturating_mul(2)))
        .min()
        .unwrap_or_else(|| boundary(clock.frozen_secs, crate::calendar::Interval::Year, 2))
}

/// `POST /v1/test_helpers/test_clocks/{id}/advance`: only begins; [`step`] does the work, until it says that all is done.
pub(crate) fn advance(world: &mut World, id: &str, params: &mut Params) -> Reply {
    let target = params.required_int("frozen_time")?;
    let _ = Expand::from_params(params, "test_helpers.test_clock")?;
    params.finish()?;
    let clock = find(world, id)?;
    world.check_clock_ready(Some(id))?;
    if target <= clock.frozen_secs {
        return Err(ApiError::invalid_param(
            "frozen_time",
            "You can only advance a test clock to a time after its current frozen time.",
        ));
    }
    let furthest = furthest(world, clock);
    if target > furthest {
        return Err(ApiError::invalid_param(
            "frozen_time",
            format!(
                "You cannot advance this test clock further than {furthest}: at most two intervals of its shortest \
                 subscription at a time, or two years without one."
            ),
        ));
    }
    let Some(clock) = world.clocks.get_mut(id) else {
        return Err(ApiError::not_found("test_clock", id));
    };
    clock.target_secs = Some(target);
    let rendered = clock.render();
    events::emit(world, "test_helpers.test_clock.advancing", Some(id), rendered.clone(), None);
    Ok(rendered)
}

/// Does the next thing that is due on an advancing clock, in the order of time; `false` once the clock is ready again.
pub(crate) fn step(world: &mut World, id: &str) -> bool {
    let Some(target) = world.clocks.get(id).and_then(|clock| clock.target_secs) else {
        return false;
    };
    let due = [invoices::next_due(world, id), subscriptions::next_due(world, id)]
        .into_iter()
        .flatten()
        .filter(|due| due.at <= target)
        // Of things due in the same second, invoices come first (`min_by_key` keeps the first of equals).
        .min_by_key(|due| due.at);
    let at = due.as_ref().map_or(target, |due| due.at);
    if let Some(clock) = world.clocks.get_mut(id) {
        clock.now_secs = clock.now_secs.max(at);
    }
    if let Some(due) = due {
        due.run(world);
        return true;
    }
    let Some(clock) = world.clocks.get_mut(id) else {
        return false;
    };
    clock.target_secs = None;
    clock.frozen_secs = target;
    let rendered = clock.render();
    events::emit(world, "test_helpers.test_clock.ready", Some(id), rendered, None);
    false
}

/// `DELETE /v1/test_helpers/test_clocks/{id}`: its customers go too, and their subscriptions are cancelled.
/// Source: "API and advanced usage", "Delete the clock".
pub(crate) fn delete(world: &mut World, id: &str, params: &mut Params) -> Reply {
    params.finish()?;
    let rendered = find(world, id)?.render();
    world.check_clock_ready(Some(id))?;
    let customers: Vec<String> = world
        .customers
        .iter()
        .filter(|(_, customer)| !customer.deleted && customer.clock.as_deref() == Some(id))
        .map(|(customer, _)| customer.to_owned())
        .collect();
    for customer in customers {
        customers::remove(world, &customer);
    }
    events::emit(world, "test_helpers.test_clock.deleted", Some(id), rendered, None);
    if let Some(clock) = world.clocks.get_mut(id) {
        clock.deleted = true;
    }
    Ok(json!({"id": id, "object": "test_helpers.test_clock", "deleted": true}))
}

/// Something that happens by itself at a time.
#[derive(Debug)]
pub(crate) struct Due {
    /// When, in the clock's time.
    pub(crate) at: i64,
    /// What.
    pub(crate) what: Happening,
}

/// What can happen by itself.
#[derive(Debug)]
pub(crate) enum Happening {
    /// An invoice's draft time is over.
    Finalise(String),
    /// An invoice's next automatic charge.
    Retry(String),
    /// A bank says what a debit came to.
    DebitEnds(String),
    /// A pause of a subscription's collection is over.
    ResumeCollection(String),
    /// The notice three days before a trial's end.
    TrialWillEnd(String),
    /// A first payment never came.
    Expire(String),
    /// A billing period or a trial ends.
    PeriodEnd(String),
    /// A cancellation takes effect.
    Cancel(String),
}

impl Due {
    fn run(self, world: &mut World) {
        match self.what {
            Happening::Finalise(invoice) => invoices::finalise_and_charge(world, &invoice),
            Happening::Retry(invoice) => invoices::retry(world, &invoice),
            Happening::DebitEnds(invoice) => invoices::debit_ends(world, &invoice),
            Happening::ResumeCollection(subscription) => subscriptions::resume_collection(world, &subscription),
            Happening::TrialWillEnd(subscription) => {
                subscriptions::trial_will_end(world, &subscription);
            }
            Happening::Expire(subscription) => subscriptions::expire(world, &subscription),
            Happening::PeriodEnd(subscription) => subscriptions::renew(world, &subscription),
            Happening::Cancel(subscription) => subscriptions::cancel_as_planned(world, &subscription),
        }
    }
}
