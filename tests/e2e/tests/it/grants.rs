//! G12: each function can do only what it needs. With IAM enforced, taking away any one grant (one action on one resource)
//! from its role breaks its work, and giving it back mends it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use local::{Options, Stack, data, id_of};
use serde_json::{Value, json};
use sha2::Sha256;

/// What Lambda itself does with a function's role: it polls queues and streams, and writes logs. The emulator does all of it without
/// asking.
const DONE_BY_LAMBDA: [&str; 9] = [
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "dynamodb:DescribeStream",
    "dynamodb:GetRecords",
    "dynamodb:GetShardIterator",
    "dynamodb:ListStreams",
    "logs:CreateLogStream",
    "logs:PutLogEvents",
];

/// How long a warm function may live on what it has cached: secrets for 5 seconds here.
const CACHED: Duration = Duration::from_secs(20);

#[tokio::test]
async fn every_grant_is_needed() {
    let _turn = crate::turn().await;
    let options = Options { report: false, ..Options::default() };
    let log = options.folder.join("ministack.log");
    let stack = Stack::start(options).await.unwrap();
    let result = every_grant(&Work { stack: &stack, http: reqwest::Client::new(), log }).await;
    stack.shutdown().await.unwrap();
    let unneeded = result.unwrap();
    assert!(unneeded.is_empty(), "these grants can be taken away and nothing breaks: {unneeded:#?}");
}

/// The grants that turn out not to be needed.
async fn every_grant(work: &Work<'_>) -> Result<Vec<String>> {
    let stack = work.stack;
    // Only the works below are to use the functions; webhooks would do them in passing.
    stack.stripe().post("/_sandbox/delivery", &[("mode", "drop")]).await?;
    work.subscribe("reported").await?;
    let mut unneeded = Vec::new();
    for function in local::FUNCTIONS {
        work.of(function).await.with_context(|| format!("{function} with all its grants"))?;
        let role = stack.aws().role_of(&stack.function(function)?).await?;
        let all = stack.aws().grants(&role).await?;
        for grant in grants(&all) {
            if DONE_BY_LAMBDA.contains(&grant.action.as_str()) {
                continue;
            }
            stack.aws().put_grants(&role, &without(&all, &grant)).await?;
            let broke = work.breaks(function).await;
            stack.aws().put_grants(&role, &all).await?;
            if !broke {
                unneeded.push(format!("{function}: {} on {}", grant.action, grant.resource));
            }
            work.mends(function).await.with_context(|| format!("{function} after {} was given back", grant.action))?;
        }
    }
    Ok(unneeded)
}

/// One action of one statement on one resource.
#[derive(Debug, PartialEq, Eq)]
struct Grant {
    action: String,
    resource: String,
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn grants(statements: &[Value]) -> Vec<Grant> {
    let of_statement = |statement: &Value| -> Vec<Grant> {
        let resources = texts(&statement["Resource"]);
        let of_action = |action: String| {
            resources.iter().map(move |resource| Grant { action: action.clone(), resource: resource.clone() }).collect::<Vec<_>>()
        };
        texts(&statement["Action"]).into_iter().flat_map(of_action).collect()
    };
    statements.iter().flat_map(of_statement).collect()
}

/// The statements, one for each grant, without the one.
fn without(statements: &[Value], taken: &Grant) -> Vec<Value> {
    let left = grants(statements).into_iter().filter(|grant| grant != taken);
    left.map(|grant| json!({"Effect": "Allow", "Action": grant.action, "Resource": grant.resource})).collect()
}

/// What each function is for, done once through every grant it has.
struct Work<'a> {
    stack: &'a Stack,
    http: reqwest::Client,
    /// What the functions print.
    log: PathBuf,
}

impl Work<'_> {
    async fn of(&self, function: &str) -> Result<()> {
        match function {
            "webhook" => self.webhook().await,
            "sync" => self.sync().await,
            "usage" => self.usage().await,
            "reporter" => self.reporter().await,
            "sweeper" => self.sweeper().await,
            "notifier" => self.notifier().await,
            "access" => self.access().await,
            other => anyhow::bail!("no work is known of {other}"),
        }
    }

    async fn breaks(&self, function: &str) -> bool {
        let began = Instant::now();
        while began.elapsed() < CACHED {
            if self.of(function).await.is_err() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        false
    }

    async fn mends(&self, function: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.of(function).await {
                Ok(()) => return Ok(()),
                Err(error) if began.elapsed() > CACHED => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    async fn webhook(&self) -> Result<()> {
        let body = json!({"id": unique("evt"), "object": "event", "type": "invoice.paid", "livemode": false}).to_string();
        let t = now().as_second();
        let mut mac = Hmac::<Sha256>::new_from_slice(self.stack.json().webhook_secret.as_bytes())?;
        mac.update(format!("{t}.{body}").as_bytes());
        let header = format!("t={t},v1={}", hex::encode(mac.finalize().into_bytes()));
        let request = self.http.post(&self.stack.json().webhook_url).header("Stripe-Signature", header).body(body);
        let status = request.send().await?.status();
        ensure!(status.as_u16() == 200, "the webhook answered {status}");
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let user = unique("user");
        // A new subscription: every table of an account, the outbox, and a recount on the usage queue.
        self.subscribe(&user).await?;
        // Stripe rejected usage: the control table.
        self.hint("v1.billing.meter.error_report_triggered", "mtr_1", None).await?;
        // A second claimant: the quarantine.
        let (claimant, _) = self.customer(&user, false).await?;
        self.hint("customer.updated", &claimant, Some(&claimant)).await?;
        // A test clock's customers: the queue.
        let (_, clock) = self.customer(&unique("user"), true).await?;
        self.hint("test_helpers.test_clock.ready", &clock.context("no clock")?, None).await?;
        // A transient error, met through the queue: the hint is put off. The emulator hands a failed message out again at once
        // whatever its visibility, so whether it was put off is only told by the log.
        let printed_before = std::fs::metadata(&self.log)?.len();
        let user = unique("user");
        let (customer, _) = self.customer(&user, false).await?;
        let fault = [("path", "/v1/customers/"), ("method", "GET"), ("status", "500"), ("count", "3")];
        self.stack.stripe().post("/_sandbox/faults", &fault).await?;
        let hint = hint("customer.updated", &customer, Some(&customer));
        let url = self.stack.json().usage_queue_url.replace("usage", "account-changes") + ".fifo";
        let message = json!({
            "QueueUrl": url, "MessageBody": hint.to_string(), "MessageGroupId": customer, "MessageDeduplicationId": unique("dedup"),
        });
        self.aws("sqs", "AmazonSQS.SendMessage", &message).await?;
        let accounts = self.stack.table("accounts")?;
        let began = Instant::now();
        while self.stack.aws().item(&accounts, &[("user_id", &user)]).await?.is_none() {
            ensure!(began.elapsed() < Duration::from_secs(25), "the hint did not come again");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let printed = std::fs::read(&self.log)?;
        let since = printed.get(usize::try_from(printed_before)?..).unwrap_or_default();
        let since = String::from_utf8_lossy(since);
        ensure!(since.contains("hint put off") && !since.contains("backing off failed"), "the hint could not be put off");
        Ok(())
    }

    async fn usage(&self) -> Result<()> {
        let event = usage_event(&unique("user"), &unique("req"));
        // A new event: the ledger and the tally. The same again: how often it was seen, and once more with a moment outside the
        // window: the row is looked up. No event: the quarantine. A recount: the time index.
        self.consume(&[event.clone(), json!("no event")]).await?;
        self.consume(std::slice::from_ref(&event)).await?;
        let mut old = event;
        old["timestamp"] = json!(0);
        self.consume(&[old, json!({"recount": {"user_id": "reported"}})]).await
    }

    async fn reporter(&self) -> Result<()> {
        for refused in [false, true] {
            self.consume(&[usage_event("reported", &unique("req"))]).await?;
            if refused {
                let fault = [("path", "/v1/billing/meter_events"), ("method", "POST"), ("status", "400"), ("count", "1")];
                self.stack.stripe().post("/_sandbox/faults", &fault).await?;
            }
            // The checkpoint lies in the past, so that the run moves it.
            let two_days_ago = (now().as_second() - 2 * 86_400).to_string();
            let item = json!({"name": {"S": "reporter"}, "settled_through": {"N": two_days_ago}});
            let put = json!({"TableName": self.stack.table("control")?, "Item": item});
            self.aws("dynamodb", "DynamoDB_20120810.PutItem", &put).await?;
            self.stack.report().await?;
            let checkpoint = self.stack.aws().item(&self.stack.table("control")?, &[("name", "reporter")]).await?;
            let moved = checkpoint.and_then(|item| item["settled_through"].as_i64());
            ensure!(moved.is_some_and(|hour| hour > now().as_second() - 86_400), "the checkpoint stays at {moved:?}");
            let usage = self.get("/v1/usage?user_id=reported").await?;
            let total = |part: &str| usage["totals"]["requests"][part].as_u64().unwrap_or(0);
            ensure!(total("counted") > 0 && total("reported") + total("quarantined") == total("counted"), "{usage}");
        }
        // What was refused is reported once more.
        let run = self.stack.order(json!({"replay": {"user_id": "reported"}})).await?;
        ensure!(run["leased"] == true || run["delivered"].as_u64() > Some(0), "{run}");
        Ok(())
    }

    async fn sweeper(&self) -> Result<()> {
        let user = unique("user");
        let (customer, subscription, period_end) = self.subscribe(&user).await?;
        let path = format!("/v1/subscriptions/{subscription}");
        self.stack.stripe().post(&path, &[("cancel_at_period_end", "true")]).await?;
        self.hint("customer.subscription.updated", &subscription, Some(&customer)).await?;
        let moment = Timestamp::from_second(period_end + 60)?.to_string();
        // A notice that nobody can deliver, since nobody can read it, is there to be woken.
        let (outbox, lost) = (self.stack.table("outbox")?, unique("lost"));
        let row = json!({"notice_id": {"S": lost}, "pending_shard": {"S": "00"}, "committed_at_ms": {"N": "1"}});
        self.aws("dynamodb", "DynamoDB_20120810.PutItem", &json!({"TableName": outbox, "Item": row})).await?;
        let invoked = self.stack.aws().invoke(&self.stack.function("sweeper")?, &json!({"time": moment})).await;
        let woken = self.stack.aws().item(&outbox, &[("notice_id", &lost)]).await?;
        let key = json!({"TableName": outbox, "Key": {"notice_id": {"S": lost}}});
        self.aws("dynamodb", "DynamoDB_20120810.DeleteItem", &key).await?;
        let invoked = invoked?;
        ensure!(!invoked.failed, "the sweeper failed: {}", invoked.payload);
        ensure!(woken.is_some_and(|row| row["woken_at_ms"].is_i64()), "the notice was not woken");
        let notices = self.stack.aws().scan(&self.stack.table("outbox")?).await?;
        let told = notices.iter().any(|notice| notice["user_id"] == user.as_str() && notice["kind"] == "subscription.ended");
        ensure!(told, "the end was not announced");
        self.repairs().await
    }

    /// What the sweeper does about what Stripe never told: with all grants there is nothing left of it.
    async fn repairs(&self) -> Result<()> {
        let stripe = self.stack.stripe();
        let (control, name) = (self.stack.table("control")?, json!({"name": {"S": "sweeper"}}));
        // An event of yesterday, which is not delivered; the subscriptions of the works before are compared.
        stripe.post("/_sandbox/settings", &[("events_created", "clock")]).await?;
        let yesterday = (now().as_second() - 86_400).to_string();
        let clock = id_of(&stripe.post("/v1/test_helpers/test_clocks", &[("frozen_time", &yesterday)]).await?)?;
        let user = unique("user");
        let fields = [("metadata[user_id]", user.as_str()), ("test_clock", clock.as_str())];
        let customer = id_of(&stripe.post("/v1/customers", &fields).await?)?;
        stripe.post(&format!("/v1/customers/{customer}"), &[("description", "changed")]).await?;
        stripe.post("/_sandbox/settings", &[("events_created", "real")]).await?;
        // As if it had never run: everything is due.
        let forget = json!({"TableName": control, "Key": name});
        self.aws("dynamodb", "DynamoDB_20120810.DeleteItem", &forget).await?;
        let moment = Timestamp::from_second(now().as_second())?.to_string();
        let invoked = self.stack.aws().invoke(&self.stack.function("sweeper")?, &json!({"time": moment})).await?;
        ensure!(!invoked.failed, "the sweeper failed: {}", invoked.payload);
        let memory = self.stack.aws().item(&control, &[("name", "sweeper")]).await?.context("it keeps nothing in mind")?;
        ensure!(memory["compared_on"].is_string() && memory["live_subscriptions"].as_u64() > Some(0), "not compared: {memory}");
        ensure!(memory["events_through"].is_i64(), "events were not looked through: {memory}");
        ensure!(memory["events_queued"].as_array().is_some_and(|events| !events.is_empty()), "nothing was queued: {memory}");
        ensure!(memory["endpoint_told"].is_null(), "the endpoint is not in order: {memory}");
        Ok(())
    }

    async fn notifier(&self) -> Result<()> {
        let fields = [("metadata[user_id]", unique("user")), ("email", "reader@example.com".to_owned())];
        let fields = fields.each_ref().map(|(name, value)| (*name, value.as_str()));
        let customer = id_of(&self.stack.stripe().post("/v1/customers", &fields).await?)?;
        // A notice with an e-mail. The stream carries it, too; whoever comes first sends it.
        let (outbox, notice) = (self.stack.table("outbox")?, unique("notice"));
        let row = json!({
            "notice_id": {"S": notice}, "kind": {"S": "plan.changed"}, "user_id": {"S": "reader"}, "customer_id": {"S": customer},
            "at": {"N": now().as_second().to_string()}, "state": {"S": "active"}, "plan": {"S": "pro"}, "pending_shard": {"S": "00"},
            "committed_at_ms": {"N": now().as_millisecond().to_string()},
        });
        self.aws("dynamodb", "DynamoDB_20120810.PutItem", &json!({"TableName": outbox, "Item": row})).await?;
        let keys = json!({"notice_id": {"S": notice}});
        let event = json!({"Records": [{"eventName": "INSERT", "dynamodb": {"Keys": keys, "SequenceNumber": "1"}}]});
        let notifier = self.stack.function("notifier")?;
        let invoked = self.stack.aws().invoke(&notifier, &event).await?;
        ensure!(!invoked.failed, "the notifier failed: {}", invoked.payload);
        let began = Instant::now();
        let row = loop {
            let row = self.stack.aws().item(&outbox, &[("notice_id", &notice)]).await?.context("the row is gone")?;
            if row["email_state"] == "sent" && row["pending_shard"].is_null() {
                break row;
            }
            ensure!(began.elapsed() < Duration::from_secs(4), "the notice was not delivered: {row}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        };
        // The e-mail bounces: the index by its name.
        let mail = json!({"tags": {"email_id": [row["email_id"]]}});
        let bounce = json!({"bounceType": "Permanent", "bounceSubType": "General"});
        let event = json!({"source": "aws.ses", "detail": {"eventType": "Bounce", "mail": mail, "bounce": bounce}});
        let invoked = self.stack.aws().invoke(&notifier, &event).await?;
        ensure!(!invoked.failed, "the notifier failed: {}", invoked.payload);
        let row = self.stack.aws().item(&outbox, &[("notice_id", &notice)]).await?.context("the row is gone")?;
        ensure!(row["email_bounced"] == "Permanent/General", "the bounce was not noted: {row}");
        Ok(())
    }

    async fn access(&self) -> Result<()> {
        self.get("/v1/access?user_id=somebody").await?;
        self.get("/v1/usage?user_id=somebody").await?;
        // A grant, to somebody new each time: the free tier ends.
        self.check(&unique("user")).await?;
        // The ledger by its index, and the table itself.
        self.get("/v1/usage/events?user_id=somebody").await?;
        self.get("/v1/usage/events?user_id=somebody&request_id=req_1").await?;
        // A new user's checkout: the Stripe key, and the hint that joins the user to its new customer.
        let user = unique("user");
        let (success, cancel) = ("https://example.com/thanks", "https://example.com/pricing");
        let offer = json!({"user_id": user, "plan": "pro", "success_url": success, "cancel_url": cancel});
        let sold = self.post("/v1/checkout", &offer).await?;
        ensure!(sold["url"].as_str().is_some_and(|url| url.starts_with("https://")), "a checkout without a link");
        Ok(())
    }

    /// A user with a subscription, synchronised: customer, subscription, and the end of its period.
    async fn subscribe(&self, user: &str) -> Result<(String, String, i64)> {
        let stripe = self.stack.stripe();
        let (customer, _) = self.customer(user, false).await?;
        let method = id_of(&stripe.post("/v1/payment_methods/pm_card_visa/attach", &[("customer", &customer)]).await?)?;
        let mut fields = vec![
            ("customer".to_owned(), customer.clone()),
            ("default_payment_method".to_owned(), method),
            ("metadata[user_id]".to_owned(), user.to_owned()),
            ("billing_mode[type]".to_owned(), "flexible".to_owned()),
        ];
        for (at, lookup_key) in ["pro_base", "pro_requests", "pro_tokens_in", "pro_tokens_out"].into_iter().enumerate() {
            let price = stripe.price(lookup_key).await?.with_context(|| format!("Stripe has no price {lookup_key}"))?;
            fields.push((format!("items[{at}][price]"), price));
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let subscription = stripe.post("/v1/subscriptions", &fields).await?;
        let ends = data(&subscription["items"]).filter_map(|item| item["current_period_end"].as_i64());
        let period_end = ends.max().context("a subscription without a period")?;
        let subscription = id_of(&subscription)?;
        self.hint("customer.subscription.created", &subscription, Some(&customer)).await?;
        let account = self.stack.aws().item(&self.stack.table("accounts")?, &[("user_id", user)]).await?;
        ensure!(account.is_some(), "the hint made no account");
        Ok((customer, subscription, period_end))
    }

    /// A customer that names its user; on a test clock of its own, if asked for.
    async fn customer(&self, user: &str, clocked: bool) -> Result<(String, Option<String>)> {
        let stripe = self.stack.stripe();
        let mut fields = vec![("metadata[user_id]", user.to_owned())];
        let mut clock = None;
        if clocked {
            let frozen = now().as_second().to_string();
            clock = Some(id_of(&stripe.post("/v1/test_helpers/test_clocks", &[("frozen_time", &frozen)]).await?)?);
            fields.extend(clock.clone().map(|clock| ("test_clock", clock)));
        }
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok((id_of(&stripe.post("/v1/customers", &fields).await?)?, clock))
    }

    /// Hands a hint to `sync` as its queue would.
    async fn hint(&self, kind: &str, object: &str, customer: Option<&str>) -> Result<()> {
        self.records("sync", &[hint(kind, object, customer)]).await
    }

    /// Hands messages to `usage` as its queue would.
    async fn consume(&self, bodies: &[Value]) -> Result<()> {
        self.records("usage", bodies).await
    }

    async fn records(&self, function: &str, bodies: &[Value]) -> Result<()> {
        let sent = now().as_millisecond().to_string();
        let record = |body: &Value| {
            json!({
                "messageId": unique("message"), "body": body.to_string(), "eventSource": "aws:sqs",
                "attributes": {"SentTimestamp": sent, "ApproximateReceiveCount": "1"},
            })
        };
        let event = json!({"Records": bodies.iter().map(record).collect::<Vec<_>>()});
        let invoked = self.stack.aws().invoke(&self.stack.function(function)?, &event).await?;
        ensure!(!invoked.failed, "{function} failed: {}", invoked.payload);
        let failures = invoked.payload["batchItemFailures"].as_array().map_or(0, Vec::len);
        ensure!(failures == 0, "{function} handed back {failures} of {}", bodies.len());
        Ok(())
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.asked(path, self.http.get(format!("{}{path}", self.stack.json().api_url))).await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.asked(path, self.http.post(format!("{}{path}", self.stack.json().api_url)).json(body)).await
    }

    async fn asked(&self, path: &str, request: reqwest::RequestBuilder) -> Result<Value> {
        let answer = request.bearer_auth(&self.stack.json().service_token).send().await?;
        let status = answer.status();
        let body = answer.text().await?;
        ensure!(status.is_success(), "{path}: {status}: {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// Asks for one request of a user, and has to be granted it.
    async fn check(&self, user: &str) -> Result<()> {
        let url = format!("{}/v1/check", self.stack.json().api_url);
        let request = self.http.post(url).bearer_auth(&self.stack.json().service_token);
        let answer = request.header("content-type", "application/json").body(json!({"user_id": user}).to_string()).send().await?;
        let status = answer.status();
        ensure!(status.as_u16() == 200, "/v1/check: {status}: {}", answer.text().await?);
        Ok(())
    }

    /// A call to AWS as the account's root, which the emulator takes unsigned.
    async fn aws(&self, service: &str, target: &str, body: &Value) -> Result<()> {
        let credential = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{}/{service}/aws4_request", local::REGION);
        let answer = self
            .http
            .post(self.stack.aws().url())
            .header("authorization", format!("{credential}, SignedHeaders=host, Signature={:064}", 0))
            .header("x-amz-target", target)
            .header("content-type", "application/x-amz-json-1.0")
            .body(body.to_string())
            .send()
            .await?;
        let status = answer.status();
        ensure!(status.is_success(), "{target}: {status}: {}", answer.text().await?);
        Ok(())
    }
}

fn hint(kind: &str, object: &str, customer: Option<&str>) -> Value {
    json!({
        "v": 1, "event_id": unique("evt"), "type": kind, "created": now().as_second(), "object_id": object,
        "customer": customer, "livemode": false,
    })
}

fn usage_event(user: &str, request: &str) -> Value {
    json!({
        "request_id": request, "user_id": user, "endpoint": "/v1/x", "tokens_in": 7, "tokens_out": 3, "success": true,
        "timestamp": now().as_second(),
    })
}

fn unique(kind: &str) -> String {
    format!("{kind}_{}", uuid::Uuid::new_v4().simple())
}

#[expect(clippy::disallowed_methods, reason = "the deployed stack lives in the real time")]
fn now() -> Timestamp {
    Timestamp::now()
}
