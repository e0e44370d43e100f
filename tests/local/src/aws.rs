//! The few AWS calls of the local stack, as the plain HTTP they are.
//!
//! MiniStack takes the keys `test`/`test` for the account's root without looking at the signature, so nothing is signed, and
//! no AWS SDK is compiled for it. The functions under test use the real SDK and signed role credentials.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, RequestBuilder};
use serde_json::{Map, Value, json};
use till::setup::Parameters;
use tokentill::ports::{Secret, Unavailable};

use crate::ministack::REGION;

/// Name of the policy that holds a function role's grants in `template.yaml`.
const GRANTS: &str = "grants";

/// The stack's AWS.
#[derive(Debug, Clone)]
pub struct Aws {
    url: String,
    http: reqwest::Client,
}

/// What a function answered to an invocation.
#[derive(Debug, Clone)]
pub struct Invoked {
    /// Whether the function failed.
    pub failed: bool,
    /// Its answer, or its error.
    pub payload: Value,
}

impl Aws {
    pub(crate) fn new(url: &str) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(330)).build()?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), http })
    }

    /// The endpoint.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    fn request(&self, service: &str, method: Method, path: &str) -> RequestBuilder {
        let credential = format!("AWS4-HMAC-SHA256 Credential=test/20260101/{REGION}/{service}/aws4_request");
        let signature = format!("{credential}, SignedHeaders=host, Signature={:064}", 0);
        self.http.request(method, format!("{}{path}", self.url)).header("authorization", signature)
    }

    /// Calls a service that speaks JSON with a target header: DynamoDB, SQS, SSM.
    async fn json(&self, service: &str, target: &str, version: &str, body: &Value) -> Result<Value> {
        let answer = self
            .request(service, Method::POST, "/")
            .header("x-amz-target", target)
            .header("content-type", format!("application/x-amz-json-{version}"))
            .body(body.to_string())
            .send()
            .await
            .with_context(|| format!("{target}: no answer"))?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{target}: {status}: {text}");
        if text.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&text)?) }
    }

    /// Calls a service that takes a form and answers in XML: CloudFormation, IAM.
    async fn form(&self, service: &str, version: &str, action: &str, parameters: &[(&str, &str)]) -> Result<String> {
        let mut form = vec![("Action", action), ("Version", version)];
        form.extend_from_slice(parameters);
        let answer = self.request(service, Method::POST, "/").form(&form).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{service} {action}: {status}: {text}");
        Ok(text)
    }

    /// Writes an SSM SecureString.
    async fn put_secret(&self, name: &str, value: &str) -> Result<()> {
        let body = json!({"Name": name, "Value": value, "Type": "SecureString", "Overwrite": true});
        self.json("ssm", "AmazonSSM.PutParameter", "1.1", &body).await.map(drop)
    }

    /// The value of an SSM SecureString, if there is one.
    pub(crate) async fn secret(&self, name: &str) -> Result<Option<String>> {
        let body = json!({"Name": name, "WithDecryption": true});
        match self.json("ssm", "AmazonSSM.GetParameter", "1.1", &body).await {
            Ok(answer) => Ok(answer.pointer("/Parameter/Value").and_then(Value::as_str).map(str::to_owned)),
            Err(error) if error.to_string().contains("ParameterNotFound") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The service refused.
    pub async fn send_message(&self, queue_url: &str, body: &str) -> Result<()> {
        let body = json!({"QueueUrl": queue_url, "MessageBody": body});
        self.json("sqs", "AmazonSQS.SendMessage", "1.0", &body).await.map(drop)
    }

    /// Sends messages, ten a call.
    ///
    /// # Errors
    /// The service refused one of them.
    pub async fn send_messages(&self, queue_url: &str, bodies: &[String]) -> Result<()> {
        for ten in bodies.chunks(10) {
            let entries: Vec<Value> =
                ten.iter().enumerate().map(|(at, body)| json!({"Id": at.to_string(), "MessageBody": body})).collect();
            let body = json!({"QueueUrl": queue_url, "Entries": entries});
            let answer = self.json("sqs", "AmazonSQS.SendMessageBatch", "1.0", &body).await?;
            let failed = answer.get("Failed").and_then(Value::as_array).is_some_and(|failed| !failed.is_empty());
            ensure!(!failed, "SendMessageBatch: {answer}");
        }
        Ok(())
    }

    /// How many messages a queue holds, those in the hands of a consumer included.
    ///
    /// # Errors
    /// The service refused.
    pub async fn queue_depth(&self, queue_url: &str) -> Result<u64> {
        let names =
            ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible", "ApproximateNumberOfMessagesDelayed"];
        let body = json!({"QueueUrl": queue_url, "AttributeNames": names});
        let answer = self.json("sqs", "AmazonSQS.GetQueueAttributes", "1.0", &body).await?;
        let count = |name: &&str| answer.pointer(&format!("/Attributes/{name}"))?.as_str()?.parse::<u64>().ok();
        Ok(names.iter().filter_map(count).sum())
    }

    /// Reads one item, its attributes as plain JSON.
    ///
    /// # Errors
    /// The service refused.
    pub async fn item(&self, table: &str, key: &[(&str, &str)]) -> Result<Option<Value>> {
        let key: Map<String, Value> = key.iter().map(|(name, text)| ((*name).to_owned(), json!({"S": text}))).collect();
        let body = json!({"TableName": table, "Key": key, "ConsistentRead": true});
        let answer = self.json("dynamodb", "DynamoDB_20120810.GetItem", "1.0", &body).await?;
        Ok(answer.get("Item").map(plain_item))
    }

    /// Reads a whole table, the items' attributes as plain JSON.
    ///
    /// # Errors
    /// The service refused.
    pub async fn scan(&self, table: &str) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        let mut start = None;
        loop {
            let mut body = json!({"TableName": table, "ConsistentRead": true});
            if let (Some(start), Some(body)) = (start.take(), body.as_object_mut()) {
                body.insert("ExclusiveStartKey".to_owned(), start);
            }
            let answer = self.json("dynamodb", "DynamoDB_20120810.Scan", "1.0", &body).await?;
            items.extend(answer.get("Items").and_then(Value::as_array).into_iter().flatten().map(plain_item));
            start = answer.get("LastEvaluatedKey").filter(|key| !key.is_null()).cloned();
            if start.is_none() {
                return Ok(items);
            }
        }
    }

    /// Invokes a function and waits for its answer.
    ///
    /// # Errors
    /// The service refused; a function that fails is no error here.
    pub async fn invoke(&self, function: &str, event: &Value) -> Result<Invoked> {
        let path = format!("/2015-03-31/functions/{function}/invocations");
        let answer = self
            .request("lambda", Method::POST, &path)
            .header("content-type", "application/json")
            .body(event.to_string())
            .send()
            .await?;
        let status = answer.status();
        let failed = answer.headers().contains_key("x-amz-function-error");
        let text = answer.text().await?;
        ensure!(status.is_success(), "invoking {function}: {status}: {text}");
        let payload = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
        Ok(Invoked { failed, payload })
    }

    /// Gives every queue's event source the concurrency it was deployed with, as a number.
    ///
    /// MiniStack hands a template parameter of type `Number` on as text, and its poller then stops at comparing text with a
    /// number. AWS itself needs none of this.
    pub(crate) async fn mend_event_sources(&self) -> Result<()> {
        let path = "/2015-03-31/event-source-mappings/";
        let listed: Value = self.request("lambda", Method::GET, path).send().await?.error_for_status()?.json().await?;
        for mapping in listed.get("EventSourceMappings").and_then(Value::as_array).into_iter().flatten() {
            let Some(id) = mapping.get("UUID").and_then(Value::as_str) else { continue };
            let Some(concurrency) = mapping.pointer("/ScalingConfig/MaximumConcurrency") else { continue };
            let concurrency = match concurrency {
                Value::String(text) => text.parse::<u64>().context("MaximumConcurrency is no number")?,
                number => number.as_u64().context("MaximumConcurrency is no number")?,
            };
            let body = json!({"ScalingConfig": {"MaximumConcurrency": concurrency}});
            let request = self.request("lambda", Method::PUT, &format!("{path}{id}"));
            request.json(&body).send().await?.error_for_status().context("an event source cannot be updated")?;
        }
        Ok(())
    }

    /// Gives a function's variable another value.
    pub(crate) async fn set_variable(&self, function: &str, variable: &str, value: &str) -> Result<()> {
        let path = format!("/2015-03-31/functions/{function}/configuration");
        let present: Value = self.request("lambda", Method::GET, &path).send().await?.error_for_status()?.json().await?;
        let mut variables = present.pointer("/Environment/Variables").and_then(Value::as_object).cloned().unwrap_or_default();
        variables.insert(variable.to_owned(), value.into());
        let body = json!({"Environment": {"Variables": variables}});
        let request = self.request("lambda", Method::PUT, &path).json(&body);
        request.send().await?.error_for_status().with_context(|| format!("{function} cannot be given {variable}"))?;
        Ok(())
    }

    /// Lets a function send e-mail, whatever the resource.
    ///
    /// MiniStack names neither the identity that an e-mail is sent from nor its address to IAM, so that the grant of the template, which
    /// is for one identity and one address, never holds. On AWS it does, and none of this is needed.
    pub(crate) async fn mend_email_grant(&self, function: &str) -> Result<()> {
        let role = self.role_of(function).await?;
        let mut grants = self.grants(&role).await?;
        for grant in grants.iter_mut().filter(|grant| grant.get("Action") == Some(&json!("ses:SendEmail"))) {
            *grant = json!({"Sid": "SendEmail", "Effect": "Allow", "Action": "ses:SendEmail", "Resource": "*"});
        }
        self.put_grants(&role, &grants).await
    }

    /// Has SES hold an address for verified.
    pub(crate) async fn verify_sender(&self, address: &str) -> Result<()> {
        self.form("ses", "2010-12-01", "VerifyEmailIdentity", &[("EmailAddress", address)]).await.map(drop)
    }

    /// Makes a queue to which every event of a bus is copied; answers the queue's name.
    pub(crate) async fn subscribe_queue(&self, bus: &str) -> Result<String> {
        let made = self.json("sqs", "AmazonSQS.CreateQueue", "1.0", &json!({"QueueName": bus})).await?;
        let url = made.get("QueueUrl").and_then(Value::as_str).context("CreateQueue: no URL")?;
        let asked = json!({"QueueUrl": url, "AttributeNames": ["QueueArn"]});
        let attributes = self.json("sqs", "AmazonSQS.GetQueueAttributes", "1.0", &asked).await?;
        let arn = attributes.pointer("/Attributes/QueueArn").and_then(Value::as_str).context("the queue has no ARN")?;
        // The bus may send to it, as on AWS it would have to be allowed.
        let policy = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"}, "Action": "sqs:SendMessage", "Resource": arn,
        }]});
        let allowed = json!({"QueueUrl": url, "Attributes": {"Policy": policy.to_string()}});
        self.json("sqs", "AmazonSQS.SetQueueAttributes", "1.0", &allowed).await?;
        let pattern = json!({"source": ["tokentill"]}).to_string();
        let rule = json!({"Name": bus, "EventBusName": bus, "EventPattern": pattern, "State": "ENABLED"});
        self.json("events", "AWSEvents.PutRule", "1.1", &rule).await?;
        let targets = json!({"Rule": bus, "EventBusName": bus, "Targets": [{"Id": "queue", "Arn": arn}]});
        let put = self.json("events", "AWSEvents.PutTargets", "1.1", &targets).await?;
        ensure!(put.get("FailedEntryCount").and_then(Value::as_u64).unwrap_or(0) == 0, "PutTargets: {put}");
        Ok(bus.to_owned())
    }

    /// The bodies of the messages in a queue, oldest first. They are looked at, not taken.
    ///
    /// # Errors
    /// The emulator does not show them.
    pub async fn messages(&self, queue: &str) -> Result<Vec<String>> {
        let shown = self.shown("/_ministack/sqs/messages").await?;
        Ok(bodies_of(&shown, queue))
    }

    /// The e-mails that were sent, oldest first: `From`, `To`, `Subject`, `BodyText`, `BodyHtml` and more.
    ///
    /// # Errors
    /// The emulator does not show them.
    pub async fn emails(&self) -> Result<Vec<Value>> {
        let shown = self.shown("/_ministack/ses/messages").await?;
        let accounts = shown.get("messages").and_then(Value::as_object).into_iter().flatten();
        Ok(accounts.filter_map(|(_, emails)| emails.as_array()).flatten().cloned().collect())
    }

    async fn shown(&self, path: &str) -> Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    }

    /// A stack's outputs by name.
    pub(crate) async fn outputs(&self, stack: &str) -> Result<BTreeMap<String, String>> {
        let text = self.form("cloudformation", "2010-05-15", "DescribeStacks", &[("StackName", stack)]).await?;
        let document = roxmltree::Document::parse(&text)?;
        let text_of = |node: roxmltree::Node<'_, '_>, name: &str| {
            node.children()
                .find(|child| child.has_tag_name(("http://cloudformation.amazonaws.com/doc/2010-05-15/", name)))
                .and_then(|child| child.text())
                .map(str::to_owned)
        };
        Ok(document.descendants().filter_map(|node| Some((text_of(node, "OutputKey")?, text_of(node, "OutputValue")?))).collect())
    }

    /// The grants of a role: the statements of its one inline policy.
    ///
    /// # Errors
    /// The service refused, or the role has no such policy.
    pub async fn grants(&self, role: &str) -> Result<Vec<Value>> {
        let parameters = [("RoleName", role), ("PolicyName", GRANTS)];
        let text = self.form("iam", "2010-05-08", "GetRolePolicy", &parameters).await?;
        let document = roxmltree::Document::parse(&text)?;
        let policy = document.descendants().find(|node| node.tag_name().name() == "PolicyDocument");
        let encoded = policy.and_then(|node| node.text()).context("GetRolePolicy: no document")?;
        let policy: Value = serde_json::from_str(&percent_decoded(encoded)?)?;
        Ok(policy.get("Statement").and_then(Value::as_array).cloned().unwrap_or_default())
    }

    /// Replaces the grants of a role.
    ///
    /// # Errors
    /// The service refused.
    pub async fn put_grants(&self, role: &str, statements: &[Value]) -> Result<()> {
        let document = json!({"Version": "2012-10-17", "Statement": statements}).to_string();
        let parameters = [("RoleName", role), ("PolicyName", GRANTS), ("PolicyDocument", document.as_str())];
        self.form("iam", "2010-05-08", "PutRolePolicy", &parameters).await.map(drop)
    }

    /// The role of a function, by name.
    ///
    /// # Errors
    /// The service refused.
    pub async fn role_of(&self, function: &str) -> Result<String> {
        let path = format!("/2015-03-31/functions/{function}/configuration");
        let answer: Value = self.request("lambda", Method::GET, &path).send().await?.error_for_status()?.json().await?;
        let arn = answer.get("Role").and_then(Value::as_str).context("the function has no role")?;
        Ok(arn.rsplit('/').next().unwrap_or(arn).to_owned())
    }
}

impl Parameters for Aws {
    async fn get(&self, name: &str) -> Result<Option<Secret>, Unavailable> {
        let value = self.secret(name).await.map_err(|error| unavailable("reading an SSM parameter", &error))?;
        Ok(value.map(|value| Secret::new(&value)))
    }

    async fn put(&self, name: &str, value: &Secret) -> Result<(), Unavailable> {
        self.put_secret(name, value.expose()).await.map_err(|error| unavailable("writing an SSM parameter", &error))
    }
}

fn unavailable(what: &'static str, error: &anyhow::Error) -> Unavailable {
    Unavailable { what, reason: error.to_string() }
}

/// The bodies of a queue's messages, as the emulator shows them by account, Region and URL.
fn bodies_of(shown: &Value, queue: &str) -> Vec<String> {
    let queues = |level: &Value| {
        level.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect::<Vec<_>>()
    };
    let accounts = queues(shown.get("messages").unwrap_or(&Value::Null));
    let regions = accounts.iter().flat_map(|(_, regions)| queues(regions));
    let by_url = regions.flat_map(|(_, urls)| queues(&urls)).filter(|(url, _)| url.rsplit('/').next() == Some(queue));
    let messages = by_url.flat_map(|(_, messages)| messages.as_array().cloned().unwrap_or_default());
    messages.filter_map(|message| message.get("Body").and_then(Value::as_str).map(str::to_owned)).collect()
}

/// DynamoDB's typed attributes as plain JSON. Numbers too large for JSON stay text.
fn plain_item(item: &Value) -> Value {
    let attributes = item.as_object().into_iter().flatten();
    Value::Object(attributes.map(|(name, value)| (name.clone(), plain(value))).collect())
}

fn plain(typed: &Value) -> Value {
    let Some((kind, value)) = typed.as_object().and_then(|one| one.iter().next()) else { return Value::Null };
    match (kind.as_str(), value) {
        ("N", Value::String(number)) => serde_json::from_str(number).unwrap_or_else(|_| value.clone()),
        ("NULL", _) => Value::Null,
        ("M", map) => plain_item(map),
        ("L", Value::Array(list)) => Value::Array(list.iter().map(plain).collect()),
        ("NS", Value::Array(set)) => Value::Array(set.iter().map(|number| plain(&json!({"N": number}))).collect()),
        _ => value.clone(),
    }
}

/// IAM hands policies out URL-encoded.
fn percent_decoded(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let pair = [rest.next().context("cut off")?, rest.next().context("cut off")?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&pair)?, 16)?);
        } else {
            bytes.push(byte);
        }
    }
    Ok(String::from_utf8(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_become_plain() {
        let item = json!({"a": {"S": "x"}, "n": {"N": "12"}, "m": {"M": {"l": {"L": [{"BOOL": true}, {"NULL": true}]}}}});
        assert_eq!(plain_item(&item), json!({"a": "x", "n": 12, "m": {"l": [true, null]}}));
    }

    #[test]
    fn policies_are_decoded() {
        assert_eq!(percent_decoded("%7B%22a%22%3A1%7D").unwrap(), r#"{"a":1}"#);
    }
}
