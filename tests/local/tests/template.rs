//! What `template.yaml` has to keep to, each rule as a test that says what to do when it is broken.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says by failing what is wrong"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use local::{FUNCTIONS, checkout};
use serde_json::{Map, Value, json};

/// The template, its short tags written out: `!Ref X` is `{"Ref": "X"}`, `!GetAtt X.Arn` is `{"Fn::GetAtt": "X.Arn"}`.
struct Template(Value);

impl Template {
    fn read() -> Self {
        let text = std::fs::read_to_string(checkout().join("template.yaml")).unwrap();
        Self(written_out(yaml_serde::from_str(&text).unwrap()))
    }

    fn section(&self, name: &str) -> &Map<String, Value> {
        self.0[name].as_object().unwrap_or_else(|| panic!("template.yaml has no section {name}"))
    }

    fn of_type<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let of_kind = self.section("Resources").iter().filter(move |(_, resource)| resource["Type"] == kind);
        of_kind.map(|(name, resource)| (name.as_str(), &resource["Properties"]))
    }

    fn resource(&self, name: &str) -> &Value {
        self.section("Resources").get(name).unwrap_or_else(|| panic!("template.yaml has no resource {name}"))
    }

    fn functions(&self) -> Vec<(&str, &Value)> {
        self.of_type("AWS::Serverless::Function").collect()
    }

    /// A number, or the largest that a parameter may be.
    fn largest(&self, value: &Value) -> Option<u64> {
        match value {
            Value::Number(number) => number.as_u64(),
            reference => self.parameter(reference)?["MaxValue"].as_u64(),
        }
    }

    /// A number, or the smallest that a parameter may be.
    fn smallest(&self, value: &Value) -> Option<u64> {
        match value {
            Value::Number(number) => number.as_u64(),
            reference => self.parameter(reference)?["MinValue"].as_u64(),
        }
    }

    fn parameter(&self, reference: &Value) -> Option<&Value> {
        self.section("Parameters").get(reference["Ref"].as_str()?)
    }
}

fn written_out(yaml: yaml_serde::Value) -> Value {
    use yaml_serde::Value as Yaml;
    match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(truth) => Value::Bool(truth),
        Yaml::Number(number) => match number.as_i64() {
            Some(whole) => json!(whole),
            None => json!(number.as_f64()),
        },
        Yaml::String(text) => Value::String(text),
        Yaml::Sequence(list) => Value::Array(list.into_iter().map(written_out).collect()),
        Yaml::Mapping(map) => Value::Object(
            map.into_iter().map(|(key, value)| (key.as_str().expect("keys are text").to_owned(), written_out(value))).collect(),
        ),
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let name = match tag.trim_start_matches('!') {
                plain @ ("Ref" | "Condition") => plain.to_owned(),
                function => format!("Fn::{function}"),
            };
            json!({ name: written_out(tagged.value) })
        }
    }
}

/// The name that a `!Ref` or a `!GetAtt` points to.
fn target(reference: &Value) -> Option<&str> {
    match reference["Ref"].as_str() {
        Some(name) => Some(name),
        None => reference["Fn::GetAtt"].as_str()?.split('.').next(),
    }
}

fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(list) => list.iter().collect(),
        one => vec![one],
    }
}

fn texts(value: &Value) -> Vec<&str> {
    list(value).into_iter().filter_map(Value::as_str).collect()
}

/// The role of a function as its name: `webhook`.
fn role_name(properties: &Value) -> &str {
    let code = properties["CodeUri"].as_str().expect("every function has its folder as CodeUri");
    code.strip_prefix("functions/").unwrap_or_else(|| panic!("CodeUri {code} is not below functions/"))
}

/// All events of a kind, with the function they belong to.
fn events<'a>(template: &'a Template, kind: &str) -> Vec<(&'a Value, &'a Value)> {
    let mut found = Vec::new();
    for (_, function) in template.functions() {
        let events = function["Events"].as_object().into_iter().flatten();
        found.extend(events.filter(|(_, event)| event["Type"] == kind).map(|(_, event)| (function, &event["Properties"])));
    }
    found
}

fn statements(role: &Value) -> Vec<&Value> {
    let policies = list(&role["Properties"]["Policies"]);
    let statements = policies.into_iter().flat_map(|policy| list(&policy["PolicyDocument"]["Statement"]));
    // One that holds only under a condition is judged as if it held.
    statements.map(|statement| if statement["Fn::If"].is_array() { &statement["Fn::If"][1] } else { statement }).collect()
}

#[test]
fn every_parameter_is_documented_has_a_default_and_is_used() {
    let template = Template::read();
    let text = std::fs::read_to_string(checkout().join("template.yaml")).unwrap();
    for (name, parameter) in template.section("Parameters") {
        let described = parameter["Description"].as_str().is_some_and(|text| text.ends_with('.') && text.len() > 20);
        assert!(described, "parameter {name}: say in a sentence what it does, as its Description");
        assert!(
            !parameter["Default"].is_null(),
            "parameter {name}: give it a Default, so that `sam deploy` works without asking"
        );
        let mentions = [format!("!Ref {name}"), format!("${{{name}}}")];
        let used = mentions.iter().any(|mention| text.contains(mention));
        assert!(used, "parameter {name} is used nowhere: use it or remove it");
        if parameter["Type"] == "Number" && parameter["AllowedValues"].is_null() {
            assert!(parameter["MinValue"].is_number(), "parameter {name}: give the number a MinValue");
        }
    }
    let groups = &template.0["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"];
    let grouped: BTreeSet<&str> = list(groups).into_iter().flat_map(|group| texts(&group["Parameters"])).collect();
    let all: BTreeSet<&str> = template.section("Parameters").keys().map(String::as_str).collect();
    assert_eq!(grouped, all, "the parameter groups in Metadata have to name every parameter, and no other");
}

#[test]
fn every_function_is_one_of_ours_built_by_cargo_lambda() {
    let template = Template::read();
    let functions = template.functions();
    let named: BTreeSet<&str> = functions.iter().map(|(_, properties)| role_name(properties)).collect();
    assert_eq!(
        named,
        FUNCTIONS.into_iter().collect(),
        "template.yaml and tests/local's FUNCTIONS have to name the same functions"
    );

    let globals = &template.0["Globals"]["Function"];
    assert_eq!(globals["Runtime"], "provided.al2023", "Globals: the functions bring their own runtime on Amazon Linux 2023");
    assert_eq!(globals["Architectures"], json!([{"Ref": "Architecture"}]), "Globals: the processor is a parameter");
    for (name, properties) in functions {
        let role = role_name(properties);
        let metadata = &template.resource(name)["Metadata"];
        assert_eq!(metadata["BuildMethod"], "rust-cargolambda", "{name}: Metadata.BuildMethod");
        assert_eq!(metadata["BuildProperties"]["Binary"], role, "{name}: the binary is named as its folder");
        assert!(
            checkout().join("functions").join(role).join("Cargo.toml").exists(),
            "{name}: there is no crate functions/{role}"
        );
        assert!(properties["Description"].is_string(), "{name}: say in a sentence what it does, as its Description");
        let timeout = properties["Timeout"].as_u64();
        assert!(timeout.is_some_and(|secs| secs <= 300), "{name}: set a Timeout of at most 300 s of its own");
        assert!(
            properties["ReservedConcurrentExecutions"].is_null() && properties["ProvisionedConcurrencyConfig"].is_null(),
            "{name}: a new account has 10 concurrent executions and cannot reserve any: use MaximumConcurrency"
        );
    }
}

#[test]
fn every_function_gets_exactly_the_environment_it_reads() {
    let template = Template::read();
    let everywhere = template.0["Globals"]["Function"]["Environment"]["Variables"].as_object().unwrap();
    for (name, properties) in template.functions() {
        let role = role_name(properties);
        let source = rust_source(&checkout().join("functions").join(role).join("src"));
        let own = properties["Environment"]["Variables"].as_object().unwrap();
        let given: BTreeSet<&str> = own.keys().chain(everywhere.keys()).map(String::as_str).collect();
        let mut read = variables_in(&source);
        // What shared/src/config.rs and log.rs read on a function's behalf.
        read.insert("TOKENTILL_LOG_LEVEL".to_owned());
        read.insert("TOKENTILL_STRIPE_MODE".to_owned());
        if source.contains(".stripe_key(") {
            read.insert("TOKENTILL_STRIPE_KEY_PARAMETER".to_owned());
        }
        if source.contains(".parameter(") || source.contains(".stripe_key(") {
            read.insert("TOKENTILL_SECRETS_TTL_SECS".to_owned());
        }
        let missing: Vec<&String> = read.iter().filter(|variable| !given.contains(variable.as_str())).collect();
        assert!(missing.is_empty(), "{name} reads {missing:?}: add them to its Environment in template.yaml");
        let unread: Vec<&&str> = given.iter().filter(|variable| !read.contains(**variable)).collect();
        assert!(unread.is_empty(), "{name} does not read {unread:?}: remove them from its Environment, and the grants with them");
    }
}

/// The variables a function's source names, those of its tables included (`tables(&["accounts", …])`).
fn variables_in(source: &str) -> BTreeSet<String> {
    let mut variables = BTreeSet::new();
    for (at, _) in source.match_indices("\"TOKENTILL_") {
        let name: String = source[at + 1..].chars().take_while(|letter| letter.is_ascii_uppercase() || *letter == '_').collect();
        variables.insert(name);
    }
    for (at, call) in source.match_indices("tables(&[") {
        let names = source[at + call.len()..].split(']').next().unwrap_or_default();
        for table in names.split('"').skip(1).step_by(2) {
            variables.insert(format!("TOKENTILL_{}_TABLE", table.to_uppercase()));
        }
    }
    variables
}

fn rust_source(folder: &Path) -> String {
    let mut source = String::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source.push_str(&rust_source(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            source.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
    source
}

#[test]
fn no_secret_stands_in_the_template() {
    let template = Template::read();
    let text = std::fs::read_to_string(checkout().join("template.yaml")).unwrap();
    for mark in ["sk_", "rk_", "whsec_", "{{resolve:", "NoEcho"] {
        assert!(
            !text.contains(mark),
            "{mark}: secrets are SSM SecureStrings that the functions read themselves; pass their names"
        );
    }
    for (name, properties) in template.functions() {
        for variable in properties["Environment"]["Variables"].as_object().unwrap().keys() {
            let telling =
                ["SECRET", "KEY", "TOKEN", "PASSWORD"].iter().any(|word| variable.replace("TOKENTILL", "").contains(word));
            let harmless = variable.ends_with("_PARAMETER") || variable.ends_with("_TTL_SECS");
            assert!(!telling || harmless, "{name}: {variable} looks like a secret: pass the parameter's name as …_PARAMETER");
        }
    }
}

#[test]
fn every_function_has_a_role_of_its_own_with_exact_grants() {
    let template = Template::read();
    let mut owners = BTreeMap::new();
    for (name, properties) in template.functions() {
        let role = target(&properties["Role"]).unwrap_or_else(|| panic!("{name}: give it a Role of its own"));
        if let Some(other) = owners.insert(role, name) {
            panic!("{name} and {other} share {role}: every function has a role of its own");
        }
        assert!(
            properties["Policies"].is_null(),
            "{name}: SAM's policy templates grant more than is needed; write the statements into {role}"
        );
        let logs = target(&properties["LoggingConfig"]["LogGroup"]).unwrap();
        for statement in statements(template.resource(role)) {
            let writes_logs = texts(&statement["Action"]).iter().any(|action| action.starts_with("logs:"));
            let where_to = list(&statement["Resource"]);
            assert!(
                !writes_logs || where_to.iter().all(|resource| target(resource) == Some(logs)),
                "{role}: {name} writes to its own log group only"
            );
        }
    }
}

#[test]
fn no_grant_has_a_star_in_it() {
    let template = Template::read();
    for (name, _) in template.of_type("AWS::IAM::Role") {
        let role = template.resource(name);
        assert!(
            role["Properties"]["ManagedPolicyArns"].is_null(),
            "{name}: AWS's managed policies have stars; write the statements"
        );
        let policies = list(&role["Properties"]["Policies"]);
        assert_eq!(policies.len(), 1, "{name}: one inline policy, named grants; tests take grants away from it by that name");
        assert_eq!(policies[0]["PolicyName"], "grants", "{name}: the inline policy is named grants");
        let mut sids = BTreeSet::new();
        for statement in statements(role) {
            let sid =
                statement["Sid"].as_str().unwrap_or_else(|| panic!("{name}: every statement says with its Sid what it is for"));
            assert!(sids.insert(sid), "{name}: two statements are named {sid}");
            assert_eq!(statement["Effect"], "Allow", "{name}/{sid}: a role has grants, and nothing to take back from them");
            let actions = texts(&statement["Action"]);
            assert!(!actions.is_empty(), "{name}/{sid}: no action");
            for action in actions {
                assert!(!action.contains('*'), "{name}/{sid}: {action}: name the exact actions");
            }
            let resources = list(&statement["Resource"]);
            assert!(!resources.is_empty(), "{name}/{sid}: no resource");
            for resource in resources {
                assert!(!resource.to_string().contains('*'), "{name}/{sid}: {resource}: name the exact resource");
                let by_reference = resource["Fn::GetAtt"].is_string() || !resource["Fn::Sub"].is_null();
                assert!(
                    by_reference,
                    "{name}/{sid}: {resource}: refer to a resource of this template, or build its ARN with !Sub"
                );
            }
        }
        for statement in list(&role["Properties"]["AssumeRolePolicyDocument"]["Statement"]) {
            let service = statement["Principal"]["Service"].as_str();
            assert!(
                matches!(service, Some("lambda.amazonaws.com" | "scheduler.amazonaws.com")),
                "{name}: only Lambda and the scheduler take on our roles"
            );
        }
    }
}

#[test]
fn ai_services_may_send_to_the_usage_queue_and_nothing_else() {
    let template = Template::read();
    let policies: Vec<(&str, &Value)> = template.of_type("AWS::IAM::ManagedPolicy").collect();
    let [("UsageProducerPolicy", policy)] = policies[..] else { panic!("{policies:?}: UsageProducerPolicy is the only one") };
    let named = &policy["ManagedPolicyName"];
    assert!(named.is_null(), "UsageProducerPolicy: a name would ask every deployment for CAPABILITY_NAMED_IAM");
    let expected = json!([{"Sid": "ReportUsage", "Effect": "Allow", "Action": "sqs:SendMessage",
        "Resource": {"Fn::GetAtt": "UsageQueue.Arn"}}]);
    assert_eq!(policy["PolicyDocument"]["Statement"], expected, "UsageProducerPolicy: a service reports usage, nothing else");
    let output = &template.section("Outputs")["UsageProducerPolicyArn"]["Value"];
    assert_eq!(target(output), Some("UsageProducerPolicy"), "its ARN is an output, to be attached to the services' roles");
}

/// Who may read which secret: the Stripe key only where Stripe is called, the webhook's secret only at the webhook.
#[test]
fn secrets_are_read_only_where_they_are_needed() {
    let template = Template::read();
    let mut readers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (_, properties) in template.functions() {
        for statement in statements(template.resource(target(&properties["Role"]).unwrap())) {
            if texts(&statement["Action"]).iter().any(|action| action.starts_with("ssm:")) {
                let arn = statement["Resource"]["Fn::Sub"].as_str().expect("an SSM grant names one parameter");
                readers.entry(arn.rsplit("parameter").next().unwrap()).or_default().push(role_name(properties));
            }
        }
    }
    let expected = BTreeMap::from([
        ("${ServiceTokensParameter}", vec!["access"]),
        ("${StripeKeyParameter}", vec!["access", "notifier", "reporter", "sweeper", "sync"]),
        ("${WebhookSecretsParameter}", vec!["webhook"]),
    ]);
    assert_eq!(readers, expected, "a new reader of a secret has to be wanted: change this test with the reason in the commit");
}

#[test]
fn every_queue_is_private_and_has_a_dead_letter_queue() {
    let template = Template::read();
    let queues: BTreeMap<&str, &Value> = template.of_type("AWS::SQS::Queue").collect();
    let dead: BTreeSet<&str> =
        queues.values().filter_map(|queue| target(&queue["RedrivePolicy"]["deadLetterTargetArn"])).collect();
    for (name, queue) in &queues {
        assert_eq!(queue["SqsManagedSseEnabled"], true, "{name}: set SqsManagedSseEnabled, so that messages are encrypted");
        assert_eq!(queue["MessageRetentionPeriod"], 1_209_600, "{name}: keep messages as long as SQS can, 14 days");
        let policy = template.of_type("AWS::SQS::QueuePolicy").find(|(_, policy)| target(&policy["Queues"][0]) == Some(name));
        let (policy_name, policy) =
            policy.unwrap_or_else(|| panic!("{name}: add a queue policy that denies callers without TLS"));
        let tls_only = list(&policy["PolicyDocument"]["Statement"]).into_iter().any(|statement| {
            statement["Effect"] == "Deny"
                && statement["Principal"] == "*"
                && statement["Condition"] == json!({"Bool": {"aws:SecureTransport": "false"}})
                && target(&statement["Resource"]) == Some(name)
        });
        assert!(tls_only, "{policy_name}: deny everything on {name} to callers without TLS");
        if dead.contains(name) {
            let kept = template.resource(name)["DeletionPolicy"].as_str();
            assert_eq!(kept, Some("RetainExceptOnCreate"), "{name}: dead letters outlive the stack");
            continue;
        }
        let receives = &queue["RedrivePolicy"]["maxReceiveCount"];
        let least = template.smallest(receives).unwrap_or_else(|| panic!("{name}: give it a RedrivePolicy with maxReceiveCount"));
        assert!(least >= 5, "{name}: {least} receives are used up by a short outage; 5 at least");
        let dead_letters = target(&queue["RedrivePolicy"]["deadLetterTargetArn"]).unwrap();
        assert_eq!(queues[dead_letters]["FifoQueue"], queue["FifoQueue"], "{name}: its dead-letter queue is of the same kind");
        if queue["FifoQueue"] == true {
            assert_eq!(queue["FifoThroughputLimit"], "perMessageGroupId", "{name}: 300 messages a second without it");
            assert_eq!(queue["DeduplicationScope"], "messageGroup", "{name}: perMessageGroupId needs it");
        }
    }
    let default = &template.section("Parameters")["RequireTls"]["Default"];
    assert_eq!(default, "true", "RequireTls: only an emulated AWS may go without TLS");
}

#[test]
fn a_batch_never_fails_or_returns_as_a_whole() {
    let template = Template::read();
    let sources = events(&template, "SQS");
    assert_eq!(sources.len(), 2, "account-changes and usage are consumed");
    for (function, source) in sources {
        let role = role_name(function);
        let responses = texts(&source["FunctionResponseTypes"]);
        assert_eq!(responses, ["ReportBatchItemFailures"], "{role}: without it one bad message repeats its whole batch");
        let concurrency = &source["ScalingConfig"]["MaximumConcurrency"];
        assert!(template.parameter(concurrency).is_some(), "{role}: MaximumConcurrency is a parameter");
        assert!(template.smallest(concurrency) >= Some(2), "{role}: SQS takes a MaximumConcurrency of 2 at least");

        let queue_name = target(&source["Queue"]).unwrap();
        let queue = &template.resource(queue_name)["Properties"];
        let visible_again_secs = queue["VisibilityTimeout"].as_u64().expect("a queue has its own VisibilityTimeout");
        let timeout_secs = function["Timeout"].as_u64().unwrap();
        let window_secs = match &source["MaximumBatchingWindowInSeconds"] {
            Value::Null => 0,
            window => template.largest(window).expect("the batch window has a MaxValue"),
        };
        let needed_secs = 6 * timeout_secs + window_secs;
        assert!(
            visible_again_secs >= needed_secs,
            "{queue_name}: a message that is still being handled would be given out again. Set VisibilityTimeout to {needed_secs} \
             at least: 6 times the timeout of {role}, and the longest batch window"
        );
        if queue["FifoQueue"] == true {
            let batch = template.largest(&source["BatchSize"]);
            assert!(batch <= Some(10), "{role}: SQS gives at most 10 messages of a FIFO queue at once");
        }
    }
}

/// The outbox's stream: each record has an outcome of its own, and one that cannot be delivered does not hold up the others for long.
#[test]
fn the_outbox_wakes_the_notifier_for_new_and_woken_rows_only() {
    let template = Template::read();
    let sources = events(&template, "DynamoDB");
    let [(function, source)] = sources[..] else { panic!("the outbox's stream is the only one that is consumed") };
    assert_eq!(role_name(function), "notifier");
    assert_eq!(source["Stream"]["Fn::GetAtt"], "OutboxTable.StreamArn");
    assert_eq!(template.resource("OutboxTable")["Properties"]["StreamSpecification"]["StreamViewType"], "NEW_IMAGE");
    assert_eq!(source["StartingPosition"], "TRIM_HORIZON", "what was committed before the first deployment is told, too");
    assert_eq!(texts(&source["FunctionResponseTypes"]), ["ReportBatchItemFailures"], "one bad record would repeat its batch");
    assert_eq!(source["BisectBatchOnFunctionError"], true, "a record that ends the function is found by halving");
    let retries = source["MaximumRetryAttempts"].as_u64().expect("endless retries would hold up the shard for a day");
    assert!((1..=10).contains(&retries), "{retries} retries");
    let age_secs = source["MaximumRecordAgeInSeconds"].as_u64().expect("a bound on how long a record holds up the shard");
    assert!(age_secs <= 900, "by then the sweeper wakes what is left");
    let patterns: BTreeSet<String> = list(&source["FilterCriteria"]["Filters"])
        .into_iter()
        .map(|filter| serde_json::from_str::<Value>(filter["Pattern"].as_str().unwrap()).unwrap().to_string())
        .collect();
    let exists = json!([{"exists": true}]);
    let inserted = json!({"eventName": ["INSERT"], "dynamodb": {"NewImage": {"pending_shard": {"S": exists}}}});
    let woken = json!({"eventName": ["MODIFY"], "dynamodb": {"NewImage": {"woken_at_ms": {"N": exists}}}});
    assert_eq!(patterns, BTreeSet::from([inserted.to_string(), woken.to_string()]), "its own writes must not call it again");
}

/// Nobody's users get e-mail because somebody deployed, and none can be sent from another address.
#[test]
fn email_is_off_until_an_address_is_given_and_comes_from_that_address_only() {
    let template = Template::read();
    assert_eq!(template.section("Parameters")["EmailFrom"]["Default"], "");
    let pattern =
        regex_lite::Regex::new(template.section("Parameters")["EmailFrom"]["AllowedPattern"].as_str().unwrap()).unwrap();
    for (text, ok) in [
        ("", true),
        ("billing@example.com", true),
        ("Acme <billing@example.com>", false),
        ("a@example.com,b@example.com", false),
        ("*@example.com", false),
        ("billing@example", false),
    ] {
        assert_eq!(pattern.is_match(text), ok, "{text}");
    }
    for (name, resource) in template.section("Resources") {
        let kind = resource["Type"].as_str().unwrap();
        if kind.starts_with("AWS::SES::") || name.starts_with("Email") {
            assert_eq!(resource["Condition"], "EmailIsSent", "{name}: only where e-mail is sent");
        }
    }
    let mut may_send = Vec::new();
    for (name, _) in template.of_type("AWS::IAM::Role") {
        let policies = list(&template.resource(name)["Properties"]["Policies"]);
        for statement in policies.into_iter().flat_map(|policy| list(&policy["PolicyDocument"]["Statement"])) {
            if !statement.to_string().contains("ses:") {
                continue;
            }
            may_send.push(name);
            assert_eq!(statement["Fn::If"][0], "EmailIsSent", "{name}: only where e-mail is sent");
            assert_eq!(statement["Fn::If"][2], json!({"Ref": "AWS::NoValue"}));
            let grant = &statement["Fn::If"][1];
            assert_eq!(texts(&grant["Action"]), ["ses:SendEmail"]);
            assert_eq!(grant["Condition"], json!({"StringEquals": {"ses:FromAddress": {"Ref": "EmailFrom"}}}));
            let arn = |end: &str| format!("arn:${{AWS::Partition}}:ses:${{AWS::Region}}:${{AWS::AccountId}}:{end}");
            let domain = json!({"Fn::Select": [1, {"Fn::Split": ["@", {"Fn::Sub": "${EmailFrom}@"}]}]});
            let identity = json!({"Fn::If": ["HasEmailIdentity", {"Ref": "EmailIdentity"}, domain]});
            let expected = json!([
                {"Fn::Sub": arn("identity/${EmailFrom}")},
                {"Fn::Sub": [arn("identity/${Identity}"), {"Identity": identity}]},
                {"Fn::Sub": arn("configuration-set/${EmailConfigurationSet}")},
            ]);
            assert_eq!(grant["Resource"], expected, "the emulated AWS does not look at these, so they are compared here");
        }
    }
    assert_eq!(may_send, ["NotifierRole"]);
    let told = &template.resource("EmailFeedback")["Properties"]["EventDestination"]["MatchingEventTypes"];
    assert_eq!(texts(told), ["BOUNCE", "COMPLAINT", "REJECT"], "nobody is tracked: neither opens nor clicks");
    let permitted = template.of_type("AWS::Lambda::Permission").any(|(_, permission)| {
        target(&permission["FunctionName"]) == Some("NotifierFunction")
            && permission["Principal"] == "events.amazonaws.com"
            && target(&permission["SourceArn"]) == Some("EmailFeedbackRule")
    });
    assert!(permitted, "the rule may invoke the notifier");
}

#[test]
fn every_table_is_protected() {
    let template = Template::read();
    let expiring = ["GatesTable", "LedgerTable", "OutboxTable", "ProcessedTable", "QuarantineTable"];
    let mut found = 0;
    for (name, table) in template.of_type("AWS::DynamoDB::Table") {
        found += 1;
        let resource = template.resource(name);
        assert_eq!(resource["DeletionPolicy"], "RetainExceptOnCreate", "{name}: a deleted stack must not delete what was billed");
        assert_eq!(resource["UpdateReplacePolicy"], "Retain", "{name}: a replaced table must not be deleted");
        assert_eq!(table["BillingMode"], "PAY_PER_REQUEST", "{name}: an idle deployment costs nothing only on demand");
        let recovery = &table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"];
        assert_eq!(recovery, true, "{name}: enable point-in-time recovery");
        assert_eq!(table["SSESpecification"]["SSEEnabled"], true, "{name}: enable encryption with the account's key");
        let protection = json!({"Fn::If": ["TablesAreProtected", true, false]});
        assert_eq!(table["DeletionProtectionEnabled"], protection, "{name}: protect it from deletion, by the parameter");
        let expires = table["TimeToLiveSpecification"] == json!({"AttributeName": "expires_at", "Enabled": true});
        assert_eq!(
            expires,
            expiring.contains(&name),
            "{name}: only grants, marks, notices, the ledger and quarantine expire, by expires_at"
        );
    }
    assert_eq!(found, 10, "a new table has to be added to design and plan first");
    assert_eq!(
        template.section("Parameters")["DeletionProtection"]["Default"],
        "true",
        "tables are protected unless somebody says no"
    );
}

#[test]
fn every_table_a_function_is_told_of_is_granted_and_the_other_way_round() {
    let template = Template::read();
    for (name, properties) in template.functions() {
        let told: BTreeSet<&str> = properties["Environment"]["Variables"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(variable, _)| variable.ends_with("_TABLE"))
            .filter_map(|(_, value)| target(value))
            .collect();
        let granted: BTreeSet<String> = statements(template.resource(target(&properties["Role"]).unwrap()))
            .into_iter()
            .filter(|statement| texts(&statement["Action"]).iter().any(|action| action.starts_with("dynamodb:")))
            .flat_map(|statement| list(&statement["Resource"]))
            .map(|resource| match resource["Fn::Sub"].as_str() {
                // `${TalliesTable.Arn}/index/touched`
                Some(index) => index.trim_start_matches("${").split('.').next().unwrap().to_owned(),
                None => target(resource).unwrap().to_owned(),
            })
            .collect();
        let granted: BTreeSet<&str> = granted.iter().map(String::as_str).collect();
        assert_eq!(told, granted, "{name}: its …_TABLE variables and the tables of its role's statements have to be the same");
    }
}

#[test]
fn schedules_are_never_retried_and_may_invoke_one_function() {
    let template = Template::read();
    let schedules = events(&template, "ScheduleV2");
    let scheduled: BTreeSet<&str> = schedules.iter().map(|(function, _)| role_name(function)).collect();
    assert_eq!(scheduled, BTreeSet::from(["reporter", "sweeper"]));
    assert!(events(&template, "Schedule").is_empty(), "use ScheduleV2: rules of the event bus cannot go without retries");
    for (function, schedule) in schedules {
        let role = role_name(function);
        assert_eq!(schedule["RetryPolicy"]["MaximumRetryAttempts"], 0, "{role}: the next run does a failed run's work");
        let asynchronous = &function["EventInvokeConfig"]["MaximumRetryAttempts"];
        assert_eq!(
            asynchronous, 0,
            "{role}: Lambda itself repeats a failed asynchronous run twice, unless EventInvokeConfig says 0"
        );
        assert!(template.parameter(&schedule["ScheduleExpression"]).is_some(), "{role}: its schedule is a parameter");
        let scheduler = template.resource(target(&schedule["RoleArn"]).unwrap());
        let grants = statements(scheduler);
        assert_eq!(grants.len(), 1, "{role}: its schedule may do one thing");
        assert_eq!(grants[0]["Action"], "lambda:InvokeFunction");
        let resource = grants[0]["Resource"]["Fn::Sub"].as_str().unwrap();
        assert!(resource.ends_with(&format!(":function:${{AWS::StackName}}-{role}")), "{role}: its schedule invokes {resource}");
        let condition = &scheduler["Properties"]["AssumeRolePolicyDocument"]["Statement"][0]["Condition"];
        let own_account = json!({"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}});
        assert_eq!(condition, &own_account, "{role}: no other account's schedules may take on this role");
    }
}

#[test]
fn the_api_is_throttled_and_its_routes_may_invoke_their_functions() {
    let template = Template::read();
    assert_eq!(
        template.of_type("AWS::Serverless::HttpApi").count(),
        0,
        "use explicit AWS::ApiGatewayV2 resources: see the template"
    );
    let stages: Vec<_> = template.of_type("AWS::ApiGatewayV2::Stage").collect();
    assert_eq!(stages.len(), 1);
    for setting in ["ThrottlingRateLimit", "ThrottlingBurstLimit"] {
        let limit = &stages[0].1["DefaultRouteSettings"][setting];
        assert!(template.parameter(limit).is_some(), "the stage's {setting} is a parameter");
    }
    let mut routes = BTreeSet::new();
    for (name, route) in template.of_type("AWS::ApiGatewayV2::Route") {
        let key = route["RouteKey"].as_str().unwrap();
        routes.insert(key);
        let integration =
            route["Target"]["Fn::Sub"].as_str().unwrap().trim_start_matches("integrations/${").trim_end_matches('}');
        let integration = &template.resource(integration)["Properties"];
        assert_eq!(integration["PayloadFormatVersion"], "2.0", "{name}: the functions read the payload's version 2.0 only");
        let function = target(&integration["IntegrationUri"]).unwrap();
        let timeout_ms = integration["TimeoutInMillis"].as_u64().unwrap();
        let function_secs = template.resource(function)["Properties"]["Timeout"].as_u64().unwrap();
        assert!(timeout_ms >= function_secs * 1_000, "{name}: the API gives up before {function} does");
        let (method, path) = key.split_once(' ').unwrap();
        let method = if method == "ANY" { "*" } else { method };
        let arn = format!("/*/{method}{}", path.replace("{proxy+}", "*"));
        let permitted = template.of_type("AWS::Lambda::Permission").any(|(_, permission)| {
            target(&permission["FunctionName"]) == Some(function)
                && permission["Principal"] == "apigateway.amazonaws.com"
                && permission["SourceArn"]["Fn::Sub"].as_str().is_some_and(|source| source.ends_with(&format!("${{Api}}{arn}")))
        });
        assert!(permitted, "{name}: add a Lambda permission for this API's {arn} on {function}");
    }
    assert_eq!(routes, BTreeSet::from(["ANY /v1/{proxy+}", "POST /webhooks/stripe"]), "the API's routes are a contract");
}

#[test]
fn logs_are_kept_for_a_while() {
    let template = Template::read();
    let groups: BTreeMap<&str, &Value> = template.of_type("AWS::Logs::LogGroup").collect();
    for (name, group) in &groups {
        assert!(
            template.parameter(&group["RetentionInDays"]).is_some(),
            "{name}: RetentionInDays is a parameter; for ever is costly"
        );
    }
    for (name, properties) in template.functions() {
        let group = target(&properties["LoggingConfig"]["LogGroup"]);
        assert!(group.is_some_and(|group| groups.contains_key(group)), "{name}: give it a log group of this template");
        assert_eq!(properties["LoggingConfig"]["LogFormat"], "JSON", "{name}: logs are JSON");
    }
}

#[test]
fn what_needs_a_person_raises_an_alarm() {
    let template = Template::read();
    let alarms: Vec<(&str, &Value)> = template.of_type("AWS::CloudWatch::Alarm").collect();
    assert!(alarms.len() <= 14, "CloudWatch gives ten alarms away; every further one costs each deployment ten cents a month");
    let on = |metric: &str, resource: &str| {
        alarms.iter().any(|(_, alarm)| {
            alarm["MetricName"] == metric && list(&alarm["Dimensions"]).iter().any(|one| target(&one["Value"]) == Some(resource))
        })
    };
    for (name, queue) in template.of_type("AWS::SQS::Queue") {
        let (metric, why) = match queue["RedrivePolicy"].is_null() {
            true => ("ApproximateNumberOfMessagesVisible", "a dead letter needs a person"),
            false => ("ApproximateAgeOfOldestMessage", "somebody has to see that nothing moves"),
        };
        assert!(on(metric, name), "{name}: add an alarm on {metric}: {why}");
    }
    for function in ["SyncFunction", "UsageFunction", "ReporterFunction", "NotifierFunction"] {
        assert!(on("Errors", function), "{function}: add an alarm on its Errors");
    }
    for metric in ["NeedsAttention", "ReportsPending", "ReconciliationDifferences", "SweeperRuns"] {
        let own = alarms.iter().any(|(_, alarm)| alarm["Namespace"] == "Tokentill" && alarm["MetricName"] == metric);
        assert!(own, "add an alarm on our own metric {metric}");
    }
    assert!(on("5xx", "Api"), "Api: add an alarm on server errors");
    let missing = &template.resource("SweeperMissingAlarm")["Properties"];
    assert_eq!(
        (&missing["Namespace"], &missing["MetricName"]),
        (&json!("Tokentill"), &json!("SweeperRuns")),
        "not one that dies"
    );
    assert_eq!((&missing["ComparisonOperator"], &missing["Threshold"]), (&json!("LessThanThreshold"), &json!(1)));
    assert_eq!((&missing["Period"], &missing["EvaluationPeriods"]), (&json!(3600), &json!(25)));
    assert_eq!(missing["TreatMissingData"], "breaching", "no run is what it is about");
    let notifier = &template.resource("NotifierErrorsAlarm")["Properties"];
    assert_eq!(
        (&notifier["Period"], &notifier["EvaluationPeriods"], &notifier["Threshold"]),
        (&json!(3600), &json!(1), &json!(0)),
        "it may be called once an hour only, and fail each time"
    );
    assert!(alarms.iter().any(|(_, alarm)| alarm["MetricName"] == "Throttles"), "add an alarm on throttled functions");
    for (name, alarm) in &alarms {
        let told = alarm["AlarmDescription"].as_str().is_some_and(|text| text.len() > 60);
        assert!(told, "{name}: say in its AlarmDescription what happened and what to do");
        let topic = json!({"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]});
        assert_eq!(alarm["AlarmActions"], topic, "{name}: tell the topic");
        assert_eq!(alarm["OKActions"], topic, "{name}: tell the topic when it is over");
        assert!(alarm["TreatMissingData"].is_string(), "{name}: say what missing data means");
    }
}

#[test]
fn every_url_and_name_is_an_output() {
    let template = Template::read();
    let outputs = template.section("Outputs");
    for (name, output) in outputs {
        assert!(output["Description"].is_string(), "output {name}: describe it");
    }
    let kinds = ["AWS::Serverless::Function", "AWS::SQS::Queue", "AWS::DynamoDB::Table"];
    for (name, _) in kinds.into_iter().flat_map(|kind| template.of_type(kind)) {
        let told = outputs.values().any(|output| output["Value"]["Ref"] == name);
        assert!(told, "{name}: add an output with its name or URL");
    }
    for url in ["ApiUrl", "WebhookUrl", "DomainEventsBusName", "DomainEventsBusArn"] {
        assert!(outputs.contains_key(url), "add the output {url}");
    }
}
