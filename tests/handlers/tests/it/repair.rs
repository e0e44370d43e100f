//! Repair: what Stripe never delivered is found and looked at, once, whatever breaks, and what keeps it from delivering is told.

use std::collections::BTreeSet;

use handlers::{Fault, Faulty, Lists, Queue, TestClock, World, event};
use serde_json::{Value, json};
use sweeper::{
    repair::{Invocation, Repair, Repaired, Settings},
    sweep,
};
use sync::{Listener, Outcome, Sync};
use tokentill::{
    config::StripeMode,
    domain::{
        account::Account,
        facts::{CustomerFacts, Status},
        hint::{Hint, SNAPSHOT_EVENTS},
        id::{EventId, InvoiceId},
        price_list::PriceList,
        repair::{Endpoint, InvoiceStanding, ListedInvoice, ListedSubscription},
        time::EpochSecs,
    },
    dynamodb::Store,
    ports::{AccountBatches as _, Accounts as _, Clock, EventList, Heard as _, Hints as _, StripeError, SweeperState as _},
};

use crate::samples::{at, cancelled, commit, customer, hint, overdue, sqs_event, subscriber, user};

/// Everything begins here.
const NOW: &str = "2026-11-22T12:00:00Z";
const SINCE: &str = "2026-11-10T00:00:00Z";
const URL: &str = "https://api.example.com/webhooks/stripe";

type Function = Repair<Lists, Faulty<Store>, Queue, TestClock>;

struct Bench {
    world: World,
    lists: Lists,
    repair: Function,
}

fn function(world: &World, lists: &Lists) -> Function {
    Repair {
        stripe: lists.clone(),
        stored: world.store_of("sweeper"),
        hints: world.queue.clone(),
        clock: world.clock.clone(),
        prices: PriceList::shipped().unwrap(),
        mode: StripeMode::Test,
        settings: Settings { webhook_url: URL.to_owned(), silence_hours: 48, compare_every_days: 1 },
    }
}

fn invocation(world: &World, id: &str) -> Invocation {
    let now_ms = world.clock.now_ms();
    Invocation { id: id.to_owned(), stop_at_ms: now_ms + 240_000, ends_at_ms: now_ms + 300_000 }
}

/// A world in which a first run has found nothing.
async fn bench() -> Bench {
    let world = World::start().await;
    let lists = Lists::new(URL);
    let repair = function(&world, &lists);
    let bench = Bench { world, lists, repair };
    bench.world.clock.set(NOW);
    assert_eq!(bench.run().await, Repaired::default());
    bench
}

impl Bench {
    async fn run(&self) -> Repaired {
        self.run_as(&format!("inv_{}", self.world.clock.now_ms())).await
    }

    async fn run_as(&self, id: &str) -> Repaired {
        self.repair.run(self.world.clock.now(), &invocation(&self.world, id)).await
    }

    async fn run_at(&self, moment: &str) -> Repaired {
        self.world.clock.set(moment);
        self.run().await
    }

    fn lost(&self, id: &str, created: &str) {
        self.lists.add_event(event(id, "invoice.paid", at(created), "cus_Ada"), true);
    }

    fn queued(&self) -> Vec<String> {
        self.world.queue.hints().iter().map(|hint| hint.event_id.to_string()).collect()
    }

    async fn memory(&self) -> tokentill::ports::SweeperMemory {
        self.world.store().sweeper_memory().await.unwrap()
    }
}

/// `sync` in the same world.
fn sync(world: &World) -> crate::sync::Function {
    crate::sync::function(world)
}

/// What Stripe lists of the only subscription of a customer.
fn listed(facts: &CustomerFacts) -> ListedSubscription {
    let subscription = facts.subscriptions[0].clone();
    let invoice = facts.open_invoices.first().map(|open| ListedInvoice {
        id: open.id.clone(),
        standing: if open.attempted { InvoiceStanding::Overdue } else { InvoiceStanding::Other },
    });
    let changed_at = subscription.ended_at.unwrap_or(subscription.created);
    ListedSubscription { customer: facts.customer.clone(), facts: subscription, invoice, changed_at }
}

// ---- Undelivered events ----

#[tokio::test]
async fn an_event_that_was_not_delivered_becomes_the_hint_that_the_webhook_would_have_made() {
    let bench = bench().await;
    bench.lost("evt_1", "2026-11-22T12:01:00Z");
    let run = bench.run_at("2026-11-22T13:00:00Z").await;
    assert_eq!(run, Repaired { queued: 1, events: 1, ..Repaired::default() });
    let mut as_delivered = hint("evt_1", "invoice.paid", "2026-11-22T12:01:00Z", "in_evt_1", Some("cus_Ada"));
    as_delivered.swept = true;
    assert_eq!(bench.world.queue.hints(), [as_delivered]);
    // It is listed for 30 days; it is queued once.
    for hour in 14..18 {
        assert_eq!(bench.run_at(&format!("2026-11-22T{hour}:00:00Z")).await, Repaired::default());
    }
    assert_eq!(bench.queued(), ["evt_1"]);
}
