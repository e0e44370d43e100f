//! The demo month: ada's first month with Tokentill, played on a Stripe test clock.
//!
//! A step does what somebody in the story does, then looks, through public interfaces, until what is promised is there or
//! the time for it is over; each look is a row. A later chapter is a further method called by [`Demo::play`].

mod calls;
mod life;
mod sale;
mod table;
mod told;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use jiff::{Timestamp, ToSpan};
use serde_json::Value;

use self::calls::Part;
pub use self::table::{Row, Table};
use crate::progress::{poll, step};
use crate::stack::{KilledWhen, Stack};
use crate::stripe::{data, id_of, text_of};

/// Whose month it is.
const USER: &str = "ada";

const HOUR_SECS: i64 = 3_600;

/// How long a state change of Stripe's may take to be seen in our answers.
const SOON: Duration = Duration::from_secs(60);
/// How long a thousand calls may take to be counted and reported.
const COUNTED: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(250);

/// Plays the demo month on a stack that runs; answers what was expected and what is.
///
/// # Errors
/// A step of the story could not even be done. What is merely not as expected is a row.
pub async fn play(stack: &Stack) -> Result<Table> {
    ensure!(stack.stripe().is_sandbox().await, "the demo month needs the Stripe sandbox: only there it can act as the payer");
    let mut demo = Demo::begin(stack)?;
    demo.play().await?;
    Ok(demo.table)
}

struct Demo<'a> {
    stack: &'a Stack,
    http: reqwest::Client,
    table: Table,
    /// When the month begins: two hours ago, so that the calls of its first hour lie in everybody's past.
    start: Timestamp,
    clock: String,
    customer: String,
    subscription: String,
    /// How often the reporter's process was killed.
    killed: u32,
    /// When the renewal's payment failed.
    failed_at: Timestamp,
}

impl<'a> Demo<'a> {
    fn begin(stack: &'a Stack) -> Result<Self> {
        let now_secs = now().as_second();
        // A whole minute, as Stripe's meter summaries want it.
        let start = Timestamp::from_second(now_secs - now_secs.rem_euclid(60) - 2 * HOUR_SECS)?;
        Ok(Self {
            stack,
            http: reqwest::Client::builder().timeout(Duration::from_secs(30)).build()?,
            table: Table::default(),
            start,
            clock: String::new(),
            customer: String::new(),
            subscription: String::new(),
            killed: 0,
            failed_at: start,
        })
    }

    async fn play(&mut self) -> Result<()> {
        step("demo: Stripe is set up", self.set_up()).await?;
        step("demo: ada uses the free tier up", self.free_tier()).await?;
        step("demo: ada's checkout completes", self.checkout()).await?;
        step("demo: a thousand calls", self.thousand_calls()).await?;
        step("demo: ada's payment fails at the renewal", self.failed_payment()).await?;
        step("demo: calls of the month that is over", self.late_calls()).await?;
        step("demo: seven days of grace", self.seven_days_of_grace()).await?;
        step("demo: the invoice is paid after all", self.late_payment()).await?;
        step("demo: ada cancels at the period's end", self.cancellation()).await?;
        step("demo: what ada and other programs were told", self.told()).await
    }

    async fn thousand_calls(&mut self) -> Result<()> {
        // To the end of the first hour, so that its calls have happened for ada too.
        self.advance(self.start.checked_add(1.hour())?).await?;
        self.wait_until_ada_lives_in(self.start.checked_add(1.hour())?).await?;
        let [first, late] = calls::a_thousand(USER, self.start.checked_add(1.minute())?, 3_000);
        ensure!(first.events + late.events == 1_000, "the thousand calls are {}", first.events + late.events);
        self.send_and_kill_the_reporter(&first, KilledWhen::NotYetTaken).await?;
        let requests = first.billable.get("requests").copied().unwrap_or(0);
        let question = async |demo: &Self| demo.counted_and_reported("requests").await;
        self.look("requests, before the late ones came", &format!("{requests} / {requests}"), COUNTED, question).await?;
        self.send_and_kill_the_reporter(&late, KilledWhen::Taken).await?;

        for (meter, billable) in &late.billable {
            let expected = format!("{billable} / {billable}");
            let question = async |demo: &Self| demo.counted_and_reported(meter).await;
            self.look(&format!("{meter}: counted / reported"), &expected, COUNTED, question).await?;
        }
        // Whatever is reported twice is reported by now.
        self.stack.report().await?;
        self.stack.report().await?;
        for (meter, billable) in &late.billable {
            // What is counted in the first hour may carry a minute of the second.
            let (from, to) = (self.start, self.start.checked_add(2.hours())?);
            let question = async |demo: &Self| demo.on_stripes_meter(meter, from, to).await;
            self.look(&format!("{meter}: on Stripe's meter"), &billable.to_string(), SOON, question).await?;
        }
        self.look("reporter killed while it was sending", "2", Duration::ZERO, async |demo| Ok(demo.killed.to_string())).await?;
        self.look("sent again, and known to Stripe already", "1", Duration::ZERO, Self::sent_again).await?;
        self.look("quarantined; dead letters", "0; 0", SOON, Self::left_over).await
    }

    /// Sends calls, and kills the reporter as it sends the first report of them.
    async fn send_and_kill_the_reporter(&mut self, part: &Part, when: KilledWhen) -> Result<()> {
        let alone = self.stack.pause_reporting().await;
        let sent = self.stack.aws().send_messages(&self.stack.json().usage_queue_url, &part.bodies);
        let (sent, killed) = tokio::join!(sent, self.stack.kill_reporter(&alone, when));
        match killed {
            Ok(()) => self.killed += 1,
            // A row shows it.
            Err(error) => eprintln!("local: demo: the reporter was not killed: {error:#}"),
        }
        sent
    }

    /// Ada's last month is invoiced for good, so what still comes of it is billed with the present one.
    async fn late_calls(&mut self) -> Result<()> {
        let renewal = self.period_start().await?;
        let part = calls::a_few(USER, renewal.checked_sub(10.minutes())?, 5);
        self.stack.aws().send_messages(&self.stack.json().usage_queue_url, &part.bodies).await?;
        // The days of both moments, which may be one.
        let (from, to) = (renewal.checked_sub(10.minutes())?, renewal.checked_add(3.hours())?);
        for (meter, billable) in &part.billable {
            let expected = format!("{billable} / {billable} / {billable}");
            let question = async |demo: &Self| demo.usage(meter, from, to, &["counted", "carried", "reported"]).await;
            self.look(&format!("late {meter}: counted / carried / reported"), &expected, COUNTED, question).await?;
            let question = async |demo: &Self| demo.on_stripes_meter(meter, renewal, to).await;
            self.look(&format!("late {meter}: on the next month's meter"), &billable.to_string(), SOON, question).await?;
        }
        Ok(())
    }

    /// Looks until it is as expected or the time is over, and makes a row of it.
    async fn look<Q>(&mut self, what: &str, expected: &str, bound: Duration, question: Q) -> Result<()>
    where
        Q: AsyncFn(&Self) -> Result<String>,
    {
        let began = Instant::now();
        let is = loop {
            let is = question(self).await.unwrap_or_else(|error| format!("{error:#}"));
            if is == expected || began.elapsed() > bound {
                break is;
            }
            tokio::time::sleep(PAUSE).await;
        };
        self.row(what, expected, is);
        Ok(())
    }

    /// Makes a row.
    fn row(&mut self, what: &str, expected: &str, is: String) {
        let row = Row { what: what.to_owned(), expected: expected.to_owned(), is };
        if !row.ok() {
            eprintln!("local: demo: {what}: expected {expected}, is {}", row.is);
        }
        self.table.rows.push(row);
    }

    /// Asks the access API.
    async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<Value> {
        let url = format!("{}{path}", self.stack.json().api_url);
        let request = self.http.get(url).query(query).bearer_auth(&self.stack.json().service_token);
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// `active on pro, allowed`
    async fn standing(&self) -> Result<String> {
        let access = self.ask("/v1/access", &[("user_id", USER)]).await?;
        let field = |name: &str| text_of(&access, name).unwrap_or("nothing").to_owned();
        let allowed = access.get("allowed").and_then(Value::as_bool) == Some(true);
        Ok(format!("{} on {}, {}", field("state"), field("plan"), if allowed { "allowed" } else { "denied" }))
    }

    async fn access_until(&self) -> Result<String> {
        let access = self.ask("/v1/access", &[("user_id", USER)]).await?;
        Ok(text_of(&access, "access_until").unwrap_or("nothing").to_owned())
    }

    /// `850 / 850`, of the first hour.
    async fn counted_and_reported(&self, meter: &str) -> Result<String> {
        self.usage(meter, self.start, self.start.checked_add(1.hour())?, &["counted", "reported"]).await
    }

    /// Totals of a meter, over whole days.
    async fn usage(&self, meter: &str, from: Timestamp, to: Timestamp, totals: &[&str]) -> Result<String> {
        let (from, to) = (from.to_string(), to.to_string());
        let usage = self.ask("/v1/usage", &[("user_id", USER), ("from", &from), ("to", &to), ("by", "day")]).await?;
        let total = |what: &&str| usage.pointer(&format!("/totals/{meter}/{what}")).and_then(Value::as_u64).unwrap_or(0);
        let shown: Vec<String> = totals.iter().map(|what| total(what).to_string()).collect();
        Ok(shown.join(" / "))
    }

    /// What Stripe's summaries of a meter add up to.
    async fn on_stripes_meter(&self, meter: &str, from: Timestamp, to: Timestamp) -> Result<String> {
        let stripe = self.stack.stripe();
        let meters = stripe.get("/v1/billing/meters", &[("limit", "100")]).await?;
        let found = data(&meters).find(|one| text_of(one, "event_name") == Some(meter));
        let id = id_of(found.with_context(|| format!("Stripe has no meter {meter}"))?)?;
        let (from, to) = (from.as_second().to_string(), to.as_second().to_string());
        let query = [("customer", self.customer.as_str()), ("start_time", &from), ("end_time", &to)];
        let summaries = stripe.get(&format!("/v1/billing/meters/{id}/event_summaries"), &query).await?;
        let values = data(&summaries).filter_map(|summary| summary.get("aggregated_value")?.as_f64());
        Ok(values.fold(0.0, |sum, value| sum + value).to_string())
    }

    /// How many reports Stripe refused because it had them.
    async fn sent_again(&self) -> Result<String> {
        let requests = self.stack.stripe().get("/_sandbox/requests", &[]).await?;
        let is_refused = |request: &&Value| {
            text_of(request, "path") == Some("/v1/billing/meter_events")
                && request.get("status").and_then(Value::as_i64) == Some(400)
        };
        Ok(data(&requests).filter(is_refused).count().to_string())
    }

    /// The kind of the newest notice to ada.
    async fn notices(&self) -> Result<String> {
        let mut notices = self.stack.aws().scan(&self.stack.table("outbox")?).await?;
        notices.retain(|notice| text_of(notice, "user_id") == Some(USER));
        notices.sort_by_key(|notice| notice.get("committed_at_ms").and_then(Value::as_i64));
        Ok(notices.last().and_then(|notice| text_of(notice, "kind")).unwrap_or("none").to_owned())
    }

    /// `0; 0`
    async fn left_over(&self) -> Result<String> {
        let quarantined = self.stack.aws().scan(&self.stack.table("quarantine")?).await?.len();
        let url = &self.stack.json().usage_queue_url;
        let dead = self.stack.aws().queue_depth(&format!("{url}-dead")).await?;
        Ok(format!("{quarantined}; {dead}"))
    }

    /// Moves the test clock, and waits until Stripe has played everything up to then.
    async fn advance(&self, to: Timestamp) -> Result<()> {
        let stripe = self.stack.stripe();
        let path = format!("/v1/test_helpers/test_clocks/{}", self.clock);
        stripe.post(&format!("{path}/advance"), &[("frozen_time", &to.as_second().to_string())]).await?;
        poll("the test clock", SOON, PAUSE, || async {
            let clock = stripe.get(&path, &[]).await?;
            Ok((text_of(&clock, "status") == Some("ready")).then_some(()))
        })
        .await
    }

    /// Waits until the account has heard of its new time: usage ahead of it would be quarantined.
    async fn wait_until_ada_lives_in(&self, moment: Timestamp) -> Result<()> {
        let table = self.stack.table("accounts")?;
        poll("ada's account to follow the test clock", SOON, PAUSE, || async {
            let account = self.stack.aws().item(&table, &[("user_id", USER)]).await?;
            let offset_secs = account.and_then(|account| account.get("clock_offset_secs")?.as_i64()).unwrap_or(0);
            // Seconds pass between the clock's stop and the account's look at it.
            Ok((now().as_second() + offset_secs >= moment.as_second()).then_some(()))
        })
        .await
    }

    /// Changes the card that the subscription is charged to.
    async fn pay_with(&self, card: &str) -> Result<()> {
        let stripe = self.stack.stripe();
        let customer = [("customer", self.customer.as_str())];
        let method = id_of(&stripe.post(&format!("/v1/payment_methods/{card}/attach"), &customer).await?)?;
        let path = format!("/v1/subscriptions/{}", self.subscription);
        stripe.post(&path, &[("default_payment_method", &method)]).await.map(drop)
    }

    /// The beginning of the subscription's present period.
    async fn period_start(&self) -> Result<Timestamp> {
        self.of_period("current_period_start").await
    }

    /// The end of the subscription's present period.
    async fn period_end(&self) -> Result<Timestamp> {
        self.of_period("current_period_end").await
    }

    async fn of_period(&self, field: &str) -> Result<Timestamp> {
        let subscription = self.stack.stripe().get(&format!("/v1/subscriptions/{}", self.subscription), &[]).await?;
        let items = subscription.get("items").context("a subscription without items")?;
        let moments = data(items).filter_map(|item| item.get(field)?.as_i64());
        Ok(Timestamp::from_second(moments.max().context("a subscription without a period")?)?)
    }
}

#[expect(clippy::disallowed_methods, reason = "the demo plays people, who live in the real time")]
fn now() -> Timestamp {
    Timestamp::now()
}
