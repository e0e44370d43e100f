//! The sweeper: what is due by time alone is told once, whenever and however often it runs.

use handlers::{Fault, Faulty, TestClock, World};
use serde_json::Value;
use sweeper::{Run, Sweeper};
use tokentill::{
    domain::{
        facts::Status,
        notice,
        price_list::PriceList,
        sync::{Decision, Failures, decide},
    },
    dynamodb::Store,
    ports::{AccountChange, Accounts, Clock, Commit, DueAccounts},
    schedule::ScheduledEvent,
};

use crate::samples::{SCHEDULED, at, commit, overdue, subscriber, user};

pub(crate) type Function = Sweeper<Faulty<Store>, TestClock>;

struct Bench {
    world: World,
    sweeper: Function,
}

pub(crate) fn function(world: &World) -> Function {
    Sweeper { accounts: world.store_of("sweeper"), clock: world.clock.clone(), prices: PriceList::shipped().unwrap() }
}

/// A world in which ada's payment failed on 15 November at noon.
async fn bench() -> Bench {
    let world = World::start().await;
    world.clock.set("2026-11-10T00:00:00Z");
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    commit(&world, "ada", &facts).await;
    world.clock.set("2026-11-15T12:00:00Z");
    commit(&world, "ada", &overdue(facts, "in_1", "2026-11-15T11:00:00Z")).await;
    let sweeper = function(&world);
    Bench { world, sweeper }
}

impl Bench {
    async fn sweep(&self, moment: &str) -> Run {
        self.world.clock.set(moment);
        self.sweeper.run(self.world.clock.now(), i64::MAX).await.unwrap()
    }

    /// What was told so far, in order.
    async fn told(&self) -> Vec<String> {
        let mut notices = self.world.items("outbox").await;
        notices.sort_by_key(|notice| (notice["at"].as_i64(), notice["kind"].to_string()));
        let text = |notice: &Value| format!("{} {}", &notice["kind"].as_str().unwrap(), notice["user_id"].as_str().unwrap());
        notices.iter().map(text).collect()
    }
}

const UNTIL_GRACE: [&str; 2] = ["account.provisioned ada", "grace.started ada"];

fn and<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&UNTIL_GRACE, more].concat()
}

#[tokio::test]
async fn reminders_come_on_days_3_and_6_and_the_end_on_day_7_each_once() {
    let bench = bench().await;
    for (moment, told) in [
        ("2026-11-15T12:00:01Z", vec![]),
        ("2026-11-18T11:59:59Z", vec![]),
        ("2026-11-18T12:00:00Z", vec!["grace.reminder ada"]),
        ("2026-11-21T11:59:59Z", vec!["grace.reminder ada"]),
        ("2026-11-21T12:00:00Z", vec!["grace.reminder ada"; 2]),
        ("2026-11-22T11:59:59Z", vec!["grace.reminder ada"; 2]),
        ("2026-11-22T12:00:00Z", vec!["grace.reminder ada", "grace.reminder ada", "access.ended ada"]),
        ("2026-12-22T12:00:00Z", vec!["grace.reminder ada", "grace.reminder ada", "access.ended ada"]),
    ] {
        for _ in 0..3 {
            bench.sweep(moment).await;
        }
        assert_eq!(bench.told().await, and(&told), "{moment}");
    }
}

#[tokio::test]
async fn the_sample_event_sweeps_at_its_own_moment() {
    let bench = bench().await;
    let event: ScheduledEvent = serde_json::from_str(SCHEDULED).unwrap();
    let run = bench.sweeper.run(event.moment().unwrap(), i64::MAX).await.unwrap();
    assert_eq!((run.due, run.notices, run.lost_races, run.failed), (1, 1, 0, 0));
    assert_eq!(bench.told().await.last().unwrap(), "access.ended ada");
}

#[tokio::test]
async fn a_run_that_comes_late_tells_what_is_true_then_and_no_old_reminder() {
    let bench = bench().await;
    bench.sweep("2026-11-21T18:00:00Z").await;
    assert_eq!(bench.told().await, and(&["grace.reminder ada"]), "one, though two days have passed");
    bench.sweep("2026-11-30T00:00:00Z").await;
    assert_eq!(bench.told().await, and(&["grace.reminder ada", "access.ended ada"]));
}

#[tokio::test]
async fn sweepers_side_by_side_tell_once() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-18T12:00:00Z");
    let sweepers = [function(&bench.world), function(&bench.world), function(&bench.world)];
    let now = bench.world.clock.now();
    let runs = futures_util::future::join_all(sweepers.iter().map(|sweeper| sweeper.run(now, i64::MAX))).await;
    let told: u64 = runs.iter().map(|run| run.as_ref().unwrap().notices).sum();
    assert_eq!((told, bench.told().await), (1, and(&["grace.reminder ada"]).iter().map(ToString::to_string).collect()));
}

#[tokio::test]
async fn a_payment_between_reading_and_writing_wins() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-22T12:00:00Z");
    let (store, prices, now_ms) = (bench.world.store(), PriceList::shipped().unwrap(), bench.world.clock.now_ms());
    bench.sweeper.accounts.faults.meanwhile("commit", 1, async move {
        let before = store.account(&user("ada")).await.unwrap();
        let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
        let decision = decide(&prices, before.as_ref(), &user("ada"), &facts, &Failures::new(), now_ms);
        let Decision::Commit { account, notices, .. } = decision else { panic!("{decision:?}") };
        let change = AccountChange { account: &account, next_due: None, notices: &notices, processed: None, at_ms: now_ms };
        assert_eq!(store.commit(&change).await.unwrap(), Commit::Done);
    });
    let run = bench.sweep("2026-11-22T12:00:00Z").await;
    assert_eq!((run.due, run.notices, run.lost_races, run.failed), (1, 0, 1, 0));
    let account = bench.world.store().account(&user("ada")).await.unwrap().unwrap();
    assert_eq!((account.subscription.unwrap().status, account.overdue.len()), (Status::Active, 0));
    bench.sweep("2026-11-23T12:00:00Z").await;
    let told = bench.told().await;
    assert!(!told.contains(&"access.ended ada".to_owned()), "{told:?}");
}

/// A sweep goes by the moment of its event, and may be behind what `sync` saw meanwhile.
#[tokio::test]
async fn a_sweep_by_an_earlier_moment_takes_back_nothing_that_was_told_meanwhile() {
    let bench = bench().await;
    bench.world.clock.set("2026-11-21T12:00:00Z");
    let event_at = bench.world.clock.now();
    bench.world.clock.set("2026-11-22T12:00:01Z");
    let (store, prices, now_ms) = (bench.world.store(), PriceList::shipped().unwrap(), bench.world.clock.now_ms());
    bench.sweeper.accounts.faults.meanwhile("account", 1, async move {
        let before = store.account(&user("ada")).await.unwrap();
        let facts = overdue(subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z"), "in_1", "2026-11-15T11:00:00Z");
        let failures = before.as_ref().unwrap().overdue.iter().map(|(invoice, overdue)| (invoice.clone(), overdue.since));
        let decision = decide(&prices, before.as_ref(), &user("ada"), &facts, &failures.collect(), now_ms);
        let Decision::Commit { account, notices, .. } = decision else { panic!("{decision:?}") };
        let next_due = notice::next_due(&account, &prices);
        let change = AccountChange { account: &account, next_due, notices: &notices, processed: None, at_ms: now_ms };
        assert_eq!(store.commit(&change).await.unwrap(), Commit::Done);
    });
    let run = bench.sweeper.run(event_at, i64::MAX).await.unwrap();
    assert_eq!((run.due, run.notices, run.lost_races, run.failed), (1, 0, 0, 0));
    assert_eq!(bench.told().await, and(&["access.ended ada"]));
    bench.sweep("2026-11-23T12:00:00Z").await;
    assert_eq!(bench.told().await, and(&["access.ended ada"]));
}

#[tokio::test]
async fn accounts_that_are_not_due_are_not_looked_at() {
    let bench = bench().await;
    for n in 0..20 {
        let user_id = format!("user_{n}");
        commit(&bench.world, &user_id, &subscriber(&format!("cus_{n}"), &user_id, "2026-11-10T00:00:00Z")).await;
    }
    let store = bench.world.store();
    assert_eq!(store.due(at("2026-11-18T11:59:59Z"), 100).await.unwrap(), []);
    assert_eq!(store.due(at("2026-11-18T12:00:00Z"), 100).await.unwrap(), [user("ada")]);
    assert_eq!(store.due(at("2026-11-18T12:00:00Z"), 0).await.unwrap(), []);
    bench.sweep("2026-11-22T12:00:00Z").await;
    assert_eq!(store.due(at("2027-11-22T12:00:00Z"), 100).await.unwrap(), [], "once access has ended, nothing is due");
    assert_eq!(bench.sweeper.accounts.faults.calls("commit"), 1);
}

#[tokio::test]
async fn the_end_of_a_subscription_is_told_when_it_comes() {
    let bench = bench().await;
    let mut facts = subscriber("cus_Bob", "bob", "2026-11-10T00:00:00Z");
    facts.subscriptions[0].cancel_at = Some(at("2026-11-17T00:00:00Z"));
    commit(&bench.world, "bob", &facts).await;
    bench.sweep("2026-11-16T23:59:59Z").await;
    assert!(!bench.told().await.contains(&"subscription.ended bob".to_owned()));
    bench.sweep("2026-11-17T00:00:00Z").await;
    assert!(bench.told().await.contains(&"subscription.ended bob".to_owned()));
}

#[tokio::test]
async fn one_account_that_fails_holds_up_no_other_and_is_told_by_the_next_run() {
    let bench = bench().await;
    for n in 0..5 {
        let user_id = format!("user_{n}");
        let facts = overdue(subscriber(&format!("cus_{n}"), &user_id, "2026-11-10T00:00:00Z"), "in_1", "2026-11-15T11:00:00Z");
        commit(&bench.world, &user_id, &facts).await;
    }
    for (nth, fault) in [(1, Fault::LoseRequest), (3, Fault::LoseReply), (4, Fault::CrashBefore)] {
        bench.sweeper.accounts.faults.at("commit", nth, fault);
    }
    let run = bench.sweep("2026-11-18T12:00:00Z").await;
    assert_eq!((run.due, run.notices, run.failed), (6, 3, 3));
    bench.sweep("2026-11-18T12:05:00Z").await;
    let reminders = bench.told().await.iter().filter(|told| told.starts_with("grace.reminder")).count();
    assert_eq!(reminders, 6, "each once, also where only the reply was lost");
}

#[tokio::test]
async fn the_outbox_is_looked_after_though_it_cannot_be_found_what_is_due() {
    for fault in [Fault::LoseRequest, Fault::CrashBefore] {
        let bench = bench().await;
        bench.world.clock.set("2026-11-15T13:00:00Z");
        bench.sweeper.accounts.faults.always("due", fault);
        assert!(bench.sweeper.run(bench.world.clock.now(), i64::MAX).await.is_err(), "{fault:?}");
        assert_eq!(bench.sweeper.accounts.faults.calls("wake"), 2, "{fault:?}");
    }
}

#[tokio::test]
async fn what_a_newer_version_keeps_beside_an_account_survives_a_sweep() {
    let bench = bench().await;
    bench.world.set_attribute("accounts", ("user_id", "ada"), "note_of_the_future", "kept").await;
    bench.sweep("2026-11-18T12:00:00Z").await;
    let account = bench.world.item("accounts").await;
    assert_eq!((&account["note_of_the_future"], &account["version"]), (&"kept".into(), &3.into()));
}

#[tokio::test]
async fn an_account_on_a_test_clock_is_due_by_that_clock() {
    let bench = bench().await;
    let mut facts = overdue(subscriber("cus_Tess", "tess", "2026-12-01T00:00:00Z"), "in_1", "2026-12-24T00:00:00Z");
    facts.test_clock = Some(at("2026-12-25T00:00:00Z"));
    commit(&bench.world, "tess", &facts).await;
    bench.sweep("2026-11-18T11:59:00Z").await;
    assert_eq!(
        bench.told().await,
        ["account.provisioned ada", "grace.started ada", "account.provisioned tess", "grace.started tess"]
    );
    // The clock is advanced; its event brings the new offset.
    facts.test_clock = Some(at("2026-12-28T00:00:00Z"));
    commit(&bench.world, "tess", &facts).await;
    bench.sweep("2026-11-18T11:59:30Z").await;
    let told = bench.told().await;
    assert_eq!(told.iter().filter(|told| *told == "grace.reminder tess").count(), 1, "{told:?}");
}
