//! The OpenAPI document says what the router, the sources and real answers say. [`super::fixture::send`] holds every
//! answer of every API test to it, by [`assert_described`].

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use axum::http::{Method, StatusCode};
use jsonschema::{Draft, Validator};
use meet_projector::api::ROUTES;
use meet_projector::api::openapi::OPENAPI;
use meet_projector::plan::Refusal;
use meet_projector::store::teachers::token_statuses;
use serde_json::{Value, json};

use super::fixture::{Answer, api, send, sqlite_that};
use super::matrix::routes_of;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(OPENAPI).unwrap());

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The thing itself, or what its `$ref` names.
fn resolve(thing: &'static Value) -> &'static Value {
    match thing["$ref"].as_str() {
        Some(reference) => {
            DOCUMENT.pointer(reference.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{reference}"))
        }
        None => thing,
    }
}

/// Members that no schema names are refused, so that the document cannot fall behind.
fn closed(mut schema: Value) -> Value {
    match &mut schema {
        Value::Object(object) => {
            let members = std::mem::take(object).into_iter().map(|(name, value)| (name, closed(value)));
            *object = members.collect();
            if object.get("properties").is_some_and(|properties| properties.is_object() && object.contains_key("type"))
            {
                object.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => {
            for item in items {
                *item = closed(item.take());
            }
        }
        _ => {}
    }
    schema
}

fn validator(schema: &Value) -> Validator {
    let mut schema = closed(schema.clone());
    schema["components"] = closed(DOCUMENT["components"].clone());
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .should_validate_formats(true)
        .build(&schema)
        .unwrap_or_else(|error| panic!("{error}"))
}

fn pattern_of(path: &str) -> Option<&'static str> {
    let path = path.split('?').next().unwrap();
    let fits = |pattern: &str| {
        let (mut parts, mut wanted) = (path.split('/'), pattern.split('/'));
        let same = parts.by_ref().zip(wanted.by_ref()).all(|(part, wanted)| wanted.starts_with('{') || part == wanted);
        same && path.split('/').count() == pattern.split('/').count()
    };
    ROUTES.iter().copied().find(|route| fits(route))
}

/// Holds an answer to the document: status, required headers, content type, schema.
pub fn assert_described(method: &Method, path: &str, answer: &Answer) {
    let Some(pattern) = pattern_of(path) else { return };
    let method = if method == Method::HEAD { "get" } else { &method.as_str().to_ascii_lowercase() };
    let operation = &DOCUMENT["paths"][pattern][method];
    // Said once for all routes: a path or a method that is not there, and OPTIONS.
    let is_elsewhere = answer.text.contains("\"code\":\"ROUTE_NOT_FOUND\"");
    if is_elsewhere || matches!(answer.status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NO_CONTENT) {
        return;
    }
    let what = format!("{method} {path}: {} {}", answer.status, answer.text);
    let response = operation["responses"].get(answer.status.as_str());
    let response = resolve(response.unwrap_or_else(|| panic!("this status is not described: {what}")));
    for (name, header) in response["headers"].as_object().unwrap() {
        let is_there = answer.headers.contains_key(name.as_str());
        assert!(is_there || resolve(header)["required"] != true, "no {name}: {what}");
    }
    let known: BTreeSet<String> =
        response["headers"].as_object().unwrap().keys().map(|name| name.to_ascii_lowercase()).collect();
    for name in
        ["etag", "retry-after", "ratelimit", "www-authenticate", "location", "set-cookie", "idempotency-replayed"]
    {
        assert!(!answer.headers.contains_key(name) || known.contains(name), "{name} is not described: {what}");
    }
    let Some(kind) = answer.headers.get("content-type") else { return };
    let kind = kind.to_str().unwrap();
    let content = &response["content"];
    let content = content.get(kind).or_else(|| content.get(kind.split(';').next().unwrap()));
    let content = content.unwrap_or_else(|| panic!("{kind} is not described: {what}"));
    if kind.contains("json") && !answer.text.is_empty() {
        let body = answer.json();
        if let Some(error) = validator(&content["schema"]).iter_errors(&body).next() {
            panic!("{error} at {}: {what}", error.instance_path());
        }
        if let Some(code) = body.get("code").and_then(Value::as_str) {
            assert!(content["examples"].get(code).is_some(), "no example of this code: {what}");
        }
    }
}

#[test]
fn the_json_is_made_of_the_yaml() {
    let yaml = std::fs::read_to_string(root().join("schemas/openapi.yaml")).unwrap();
    // Keeps the order of members, and writes what anchors name.
    let source: serde_norway::Value = serde_norway::from_str(&yaml).unwrap();
    let json = serde_json::to_string_pretty(&source).unwrap() + "\n";
    if std::env::var_os("OPENAPI_WRITE").is_some() {
        std::fs::write(root().join("schemas/openapi.json"), json).unwrap();
        return;
    }
    assert!(json == OPENAPI, "schemas/openapi.json is not made of schemas/openapi.yaml: run `make openapi`");
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else() {
    let api = sqlite_that(|_| {}).await;
    // HEAD goes with GET, as the document says once for all.
    let of_router: BTreeSet<_> = routes_of(&api.router).into_iter().filter(|(method, _)| method != "HEAD").collect();
    let paths = DOCUMENT["paths"].as_object().unwrap();
    let described = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| (method.to_ascii_uppercase(), path.clone()))
    });
    assert_eq!(of_router, described.collect(), "left: the router; right: schemas/openapi.yaml");
}

#[test]
fn every_answer_has_an_example_and_every_example_keeps_its_schema() {
    let mut seen = 0;
    for (path, item) in DOCUMENT["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for parameter in operation["parameters"].as_array().into_iter().flatten().map(resolve) {
                if let Some(example) = parameter.get("example") {
                    assert!(validator(&parameter["schema"]).is_valid(example), "{method} {path}: {parameter}");
                }
            }
            for (status, response) in operation["responses"].as_object().unwrap() {
                let response = resolve(response);
                for header in response["headers"].as_object().unwrap().values().map(resolve) {
                    if let Some(example) = header.get("example") {
                        assert!(validator(&header["schema"]).is_valid(example), "{header}");
                    }
                }
                let Some(content) = response.get("content") else {
                    assert!(matches!(status.as_str(), "302" | "304"), "{method} {path} {status} has no body");
                    continue;
                };
                for (kind, content) in content.as_object().unwrap() {
                    let validator = validator(&content["schema"]);
                    let examples =
                        content["examples"].as_object().unwrap_or_else(|| panic!("{method} {path} {status}"));
                    for (name, example) in examples {
                        let what = format!("{method} {path} {status} {kind}: {name}");
                        let value = &resolve(example)["value"];
                        if let Some(error) = validator.iter_errors(value).next() {
                            panic!("{what}: {error} at {}", error.instance_path());
                        }
                        if kind == "application/problem+json" {
                            assert_eq!(value["status"].to_string(), *status, "{what}");
                            let named = value["code"].as_str().unwrap().to_ascii_lowercase().replace('_', "-");
                            assert_eq!(value["type"], format!("urn:meet-projector:problem:{named}"), "{what}");
                        }
                        seen += 1;
                    }
                }
            }
        }
    }
    assert!(seen > 100, "{seen} examples");
}

/// Texts in capitals that stand where the sources name the code of a problem.
fn codes_of(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]").next().unwrap();
    let mut codes = BTreeSet::new();
    for part in source.split("Problem::new(").chain(source.split("Self::new(")).chain(source.split("Problem {")).skip(1)
    {
        let near: String = part.chars().take(160).collect();
        let word = near.split('"').nth(1).unwrap_or_default();
        if word.contains('_') || word.len() > 5 && word == word.to_ascii_uppercase() {
            codes.insert(word.to_owned());
        }
    }
    codes.retain(|code| code.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
    codes
}

#[test]
fn every_code_of_the_sources_is_listed() {
    let mut of_sources: BTreeSet<String> = Refusal::CODES.iter().map(|code| (*code).to_owned()).collect();
    of_sources.insert("RETRY_CANNOT_HELP".to_owned());
    let mut folders = vec![root().join("src/api")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                of_sources.extend(codes_of(&std::fs::read_to_string(entry).unwrap()));
            }
        }
    }
    assert!(of_sources.contains("TOKEN_MISSING") && of_sources.contains("RETURN_TO_NOT_ALLOWED"), "{of_sources:?}");
    let listed = DOCUMENT["components"]["schemas"]["Problem"]["properties"]["code"]["enum"].as_array().unwrap();
    let listed = listed.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
    assert_eq!(of_sources, listed, "left: the sources; right: the document");
}

#[test]
fn words_and_members_are_those_of_the_events() {
    let schemas = &DOCUMENT["components"]["schemas"];
    let words: BTreeSet<&str> =
        schemas["TokenStatus"]["enum"].as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(token_statuses().collect::<BTreeSet<_>>(), words);
    let file = std::fs::read(root().join("schemas/status-changed.schema.json")).unwrap();
    let event: Value = serde_json::from_slice(&file).unwrap();
    for (ours, theirs) in [(&schemas["Meet"], &event), (&schemas["MeetError"], &event["$defs"]["error"])] {
        let members = |schema: &Value| -> BTreeSet<String> {
            schema["properties"].as_object().unwrap().keys().cloned().collect()
        };
        assert_eq!(members(ours), members(theirs));
        let required = |schema: &Value| -> BTreeSet<String> {
            schema["required"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(required(ours), members(theirs), "null rather than missing");
    }
}

#[tokio::test]
async fn the_document_and_its_page_are_open_and_the_page_may_run_nothing_else() {
    let api = api().await;
    let document = send(&api.router, &Method::GET, "/openapi.json", &[]).await;
    assert_eq!((document.status, document.text.as_str()), (StatusCode::OK, OPENAPI));
    let known = [("if-none-match", document.header("etag"))];
    assert_eq!(send(&api.router, &Method::GET, "/openapi.json", &known).await.status, StatusCode::NOT_MODIFIED);

    let page = send(&api.router, &Method::GET, "/docs", &[]).await;
    assert_eq!((page.status, page.header("content-type")), (StatusCode::OK, "text/html; charset=utf-8"));
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-") && !policy.contains("unsafe"), "{policy}");
    assert!(!page.text.contains("http://") && !page.text.contains("https://"), "nothing comes from another host");
    assert!(page.text.matches("<script>").count() == 1 && !page.text.contains("/*S"), "{:.400}", page.text);
}
