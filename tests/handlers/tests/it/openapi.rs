//! `docs/openapi.yaml` says what the access API answers: its routes are the handler's, and every answer of every status is as its
//! schema says.

use std::collections::BTreeSet;

use access::ROUTES;
use handlers::Fault;
use lambda_http::{Body, Request, Response};
use serde_json::{Value, json};
use tokentill::ports::Clock;

use crate::{
    access::{Bench, bench, get},
    check::check_request,
    samples::{ACCESS, CHECK, USAGE_EVENTS, USAGE_QUERY, cancelled, commit, overdue, parsed, subscriber},
    schema::allows,
    usage::{call, count, with},
};

/// The headers that tell something an answer must not tell where the document does not name them.
const TELLING: [&str; 4] = ["ratelimit", "ratelimit-policy", "retry-after", "www-authenticate"];

pub(crate) struct Document {
    root: Value,
    /// Each route and status that was seen: `GET /v1/access 200`.
    seen: BTreeSet<String>,
}

impl Document {
    pub(crate) fn read() -> Self {
        let root = yaml_serde::from_str(include_str!("../../../../docs/openapi.yaml")).unwrap();
        Self { root, seen: BTreeSet::new() }
    }

    /// What a value is, a reference followed.
    fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(path) => self.root.pointer(path.trim_start_matches('#')).unwrap_or_else(|| panic!("{path} is nowhere")),
            None => value,
        }
    }

    fn operations(&self) -> impl Iterator<Item = (String, String, &Value)> {
        let paths = self.root["paths"].as_object().unwrap();
        paths.iter().flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(move |(method, operation)| (method.to_uppercase(), path.clone(), operation))
        })
    }

    /// The answers that were not compared, of the routes that sell or of the others.
    pub(crate) fn unseen(&self, selling: bool) -> Vec<String> {
        let of_operation = |(method, path, operation): (String, String, &Value)| {
            let statuses = operation["responses"].as_object().unwrap().keys();
            statuses.map(|status| format!("{method} {path} {status}")).collect::<Vec<_>>()
        };
        let wanted = self.operations().filter(|(.., operation)| (operation["tags"] == json!(["selling"])) == selling);
        wanted.flat_map(of_operation).filter(|status| !self.seen.contains(status)).collect()
    }

    /// Asks, and compares the answer with what the document says of its route and status.
    async fn ask(&mut self, bench: &Bench, request: Request) {
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        let response = bench.api.handle(request).await;
        self.see(&method, &path, &response);
    }

    /// Compares an answer with what the document says of its route and status.
    pub(crate) fn see(&mut self, method: &str, path: &str, response: &Response<Body>) {
        let name = format!("{method} {path} {}", response.status().as_u16());
        self.compare(&name, method, path, response);
        self.seen.insert(name);
    }

    fn compare(&self, name: &str, method: &str, path: &str, response: &Response<Body>) {
        let operation = &self.root["paths"][path][method.to_lowercase()];
        let said = self.resolved(&operation["responses"][response.status().as_str()]);
        assert!(said.is_object(), "the document knows no {name}");
        let Body::Text(body) = response.body() else { panic!("{name}: {:?}", response.body()) };
        let content = said["content"].as_object().unwrap();
        assert_eq!(content.keys().collect::<Vec<_>>(), [response.headers()["content-type"].to_str().unwrap()], "{name}");
        let body: Value = serde_json::from_str(body).unwrap();
        for media in content.values() {
            assert!(allows(&self.root, &media["schema"], &body), "{name}: {body:#}");
        }
        let empty = serde_json::Map::new();
        let headers = said["headers"].as_object().unwrap_or(&empty);
        for (header, says) in headers {
            let says = self.resolved(says);
            match response.headers().get(header) {
                Some(value) => {
                    assert!(allows(&self.root, &says["schema"], &json!(value.to_str().unwrap())), "{name}: {header}: {value:?}")
                }
                None => assert_ne!(says["required"], true, "{name} has no {header}"),
            }
        }
        let named: BTreeSet<String> = headers.keys().map(|header| header.to_lowercase()).collect();
        for header in TELLING {
            assert!(
                named.contains(header) || !response.headers().contains_key(header),
                "{name}: the document does not name {header}"
            );
        }
    }
}

pub(crate) fn without_token(mut request: Request) -> Request {
    request.headers_mut().remove("authorization");
    request
}

pub(crate) fn too_large(mut request: Request) -> Request {
    *request.body_mut() = Body::Text(" ".repeat(64 * 1024 + 1));
    request
}

#[test]
fn the_documents_routes_are_the_handlers() {
    let document = Document::read();
    let described: BTreeSet<(String, String)> = document.operations().map(|(method, path, _)| (method, path)).collect();
    let known: BTreeSet<_> = ROUTES.iter().map(|(method, path, _)| ((*method).to_owned(), (*path).to_owned())).collect();
    assert_eq!(described, known);
    let ids: BTreeSet<_> = document.operations().map(|(.., operation)| operation["operationId"].to_string()).collect();
    assert_eq!(ids.len(), known.len(), "each has an operationId of its own");
}

#[tokio::test]
async fn every_answer_of_every_route_is_as_the_document_says() {
    let bench = bench().await;
    let mut document = Document::read();
    let facts = subscriber("cus_Ada", "ada", "2026-11-10T00:00:00Z");
    let calls = [call("bob", "req_1"), with(call("bob", "req_2"), "success", false), with(call("bob", "req_3"), "team", "blue")];
    count(&bench.world, "free", &calls).await;
    for user in ["ada", "bob"] {
        let check = json!({"user_id": user, "units": {"requests": 59, "tokens_in": 7}}).to_string();
        for _ in 0..3 {
            document.ask(&bench, check_request(&check)).await;
            document.ask(&bench, get(ACCESS, &format!("user_id={user}"))).await;
        }
        commit(&bench.world, "ada", &facts).await;
        count(&bench.world, "billed", &[call("ada", "req_1"), with(call("ada", "req_2"), "timestamp", "2026-11-21T12:00:00Z")])
            .await;
    }
    let reporter = crate::reporter::function(&bench.world, "id");
    let run =
        async || reporter.run(bench.world.clock.now(), None, &crate::reporter::invocation(&bench.world, "inv")).await.unwrap();
    run().await;
    bench.world.clock.advance_ms(15 * 3_600_000);
    run().await;
    for facts in [overdue(facts.clone(), "in_1", "2026-11-22T11:00:00Z"), cancelled(facts, "2026-11-22T11:00:00Z")] {
        commit(&bench.world, "ada", &facts).await;
        document.ask(&bench, check_request(r#"{"user_id":"ada"}"#)).await;
        document.ask(&bench, get(ACCESS, "user_id=ada")).await;
    }
    for user in ["ada", "bob", "nobody"] {
        for query in ["", "&by=hour", "&from=2026-11-01T00:00:00Z&to=2026-12-01T00:00:00Z"] {
            document.ask(&bench, get(USAGE_QUERY, &format!("user_id={user}{query}"))).await;
        }
        for query in ["", "&limit=1", "&request_id=req_1"] {
            document.ask(&bench, get(USAGE_EVENTS, &format!("user_id={user}{query}"))).await;
        }
    }
    for (sample, query, bad) in [
        (ACCESS, "user_id=ada", "user_id="),
        (USAGE_QUERY, "user_id=ada", "user_id=ada&by=minute"),
        (USAGE_EVENTS, "user_id=ada", "user_id=ada&limit=0"),
    ] {
        document.ask(&bench, get(sample, bad)).await;
        document.ask(&bench, without_token(get(sample, query))).await;
        document.ask(&bench, too_large(get(sample, query))).await;
        bench.api.tokens.faults.at("secret", 1, Fault::LoseRequest);
        document.ask(&bench, get(sample, query)).await;
    }
    document.ask(&bench, check_request(r#"{"user_id":"carol","units":{"requests":61}}"#)).await;
    document.ask(&bench, check_request("{}")).await;
    document.ask(&bench, without_token(check_request("{}"))).await;
    document.ask(&bench, too_large(check_request("{}"))).await;
    bench.api.store.faults().at("take", 1, Fault::LoseReply);
    document.ask(&bench, check_request(r#"{"user_id":"eve"}"#)).await;
    let unseen = document.unseen(false);
    assert!(unseen.is_empty(), "no answer was compared with {unseen:?}");
}

#[tokio::test]
async fn a_check_is_refused_exactly_where_the_document_does_not_allow_its_body() {
    let bench = bench().await;
    let document = Document::read();
    let schema = &document.root["paths"]["/v1/check"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    let sample: Value = serde_json::from_str(parsed(CHECK)["body"].as_str().unwrap()).unwrap();
    let units = |units: Value| json!({"user_id": "ada", "units": units});
    let user = |user_id: Value| json!({"user_id": user_id});
    for (body, expected) in [
        (sample, true),
        (user(json!("ü".repeat(128))), true),
        (user(json!("ü".repeat(129))), false),
        (user(json!("")), false),
        (user(json!(7)), false),
        (json!({}), false),
        (json!([]), false),
        (units(json!(null)), true),
        (units(json!({})), true),
        (units(json!([])), false),
        (units(json!({"requests": 1})), true),
        (units(json!({"requests": 30_000})), true),
        (units(json!({"requests": 30_001})), false),
        (units(json!({"requests": 0})), false),
        (units(json!({"requests": -1})), false),
        (units(json!({"requests": 1.5})), false),
        (units(json!({"requests": "1"})), false),
        (units(json!({"requests": null})), false),
        (units(json!({"tokens_in": 999_999_999_999_999_u64})), true),
        (units(json!({"tokens_in": 1_000_000_000_000_000_u64})), false),
        (units(json!({"tokens_in": 0})), false),
        (json!({"user_id": "ada", "unit": {}}), false),
    ] {
        let status = bench.api.handle(check_request(&body.to_string())).await.status();
        assert_eq!(status != 400, expected, "the handler: {body}");
        assert_eq!(allows(&document.root, schema, &body), expected, "the document: {body}");
    }
}
