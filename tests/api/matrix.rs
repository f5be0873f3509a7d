//! Every route × every kind of caller. Whoever adds a route adds a row: [`every_route_has_a_row`] fails otherwise.

use std::collections::BTreeSet;

use axum::http::{Method, StatusCode};
use meet_projector::api::ROUTES;
use meet_projector::cli::token::{TokenAction, run};
use meet_projector::store::Role;
use serde_json::json;

use super::fixture::{Api, START, new_token, send, sqlite_that};
use super::signing::{self, seconds, token};

/// Who asks, in the order of the columns. `tch_1` teaches `ses_1`, `tch_2` does not.
const CALLERS: [&str; 10] =
    ["none", "garbage", "revoked", "expired", "student", "tch_1", "tch_2", "reader", "operator", "admin"];

/// A route with its pattern, a request to it, and the status for each of the [`CALLERS`].
type Row = (&'static str, &'static str, &'static str, [u16; 10]);

#[rustfmt::skip]
const MATRIX: &[Row] = &[
    //                                                                                none garb revo expi stud tch1 tch2 read oper admi
    ("GET", "/api/google/meet/{sessionId}", "/api/google/meet/ses_1",                 [401, 401, 401, 401, 403, 200, 404, 200, 200, 200]),
    ("GET", "/api/google/meet/{sessionId}", "/api/google/meet/ses_1?wait=0",          [401, 401, 401, 401, 403, 200, 404, 200, 200, 200]),
    ("GET", "/api/google/meet/{sessionId}", "/api/google/meet/nothing",               [401, 401, 401, 401, 403, 404, 404, 404, 404, 404]),
    ("HEAD", "/api/google/meet/{sessionId}", "/api/google/meet/ses_1",                [401, 401, 401, 401, 403, 200, 404, 200, 200, 200]),
    ("GET", "/api/google/meet", "/api/google/meet?sessionIds=ses_1",                  [401, 401, 401, 401, 403, 200, 200, 200, 200, 200]),
    ("GET", "/api/google/meet", "/api/google/meet",                                   [401, 401, 401, 401, 403, 200, 200, 200, 200, 200]),
    ("GET", "/api/google/meet", "/api/google/meet?teacherId=tch_1",                   [401, 401, 401, 401, 403, 200, 403, 200, 200, 200]),
    ("HEAD", "/api/google/meet", "/api/google/meet",                                  [401, 401, 401, 401, 403, 200, 200, 200, 200, 200]),
    // Without Google set up, whoever may connect and disconnect is told that there is nothing.
    ("POST", "/api/google/meet/retry/{sessionId}", "/api/google/meet/retry/nothing",  [401, 401, 401, 401, 403, 403, 403, 403, 404, 404]),
    ("GET", "/api/google/status/{teacherId}", "/api/google/status/tch_1",             [401, 401, 401, 401, 403, 200, 403, 200, 200, 200]),
    ("GET", "/api/google/teachers", "/api/google/teachers",                           [401, 401, 401, 401, 403, 403, 403, 200, 200, 200]),
    ("GET", "/api/google/oauth/start", "/api/google/oauth/start?teacherId=tch_1",     [401, 401, 401, 401, 403, 404, 403, 403, 403, 404]),
    ("HEAD", "/api/google/status/{teacherId}", "/api/google/status/tch_1",            [401, 401, 401, 401, 403, 200, 403, 200, 200, 200]),
    ("HEAD", "/api/google/teachers", "/api/google/teachers",                          [401, 401, 401, 401, 403, 403, 403, 200, 200, 200]),
    ("HEAD", "/api/google/oauth/start", "/api/google/oauth/start?teacherId=tch_1",    [401, 401, 401, 401, 403, 404, 403, 403, 403, 404]),
    ("GET", "/api/google/oauth/callback", "/api/google/oauth/callback",               [404; 10]),
    ("HEAD", "/api/google/oauth/callback", "/api/google/oauth/callback",              [405; 10]),
    ("POST", "/api/google/disconnect/{teacherId}", "/api/google/disconnect/tch_1",    [401, 401, 401, 401, 403, 404, 403, 403, 403, 404]),
    ("GET", "/openapi.json", "/openapi.json",                                         [200; 10]),
    ("HEAD", "/openapi.json", "/openapi.json",                                        [200; 10]),
    ("GET", "/docs", "/docs",                                                         [200; 10]),
    ("HEAD", "/docs", "/docs",                                                        [200; 10]),
    ("GET", "/livez", "/livez",                                                       [200; 10]),
    ("HEAD", "/livez", "/livez",                                                      [200; 10]),
    ("GET", "/readyz", "/readyz",                                                     [200; 10]),
    ("HEAD", "/readyz", "/readyz",                                                    [200; 10]),
    ("GET", "/metrics", "/metrics",                                                   [200; 10]),
    ("HEAD", "/metrics", "/metrics",                                                  [200; 10]),
];

/// The `Authorization` of each of the [`CALLERS`].
async fn credentials(api: &Api) -> Vec<Option<String>> {
    let revoked = new_token(&api.store, &api.clock, Role::Admin).await;
    let action = TokenAction::Revoke { id: revoked.clone() };
    run(&action, &api.store, &api.clock, false, &mut Vec::new(), &mut Vec::new()).await.unwrap();
    let mut credentials = Vec::new();
    for caller in CALLERS {
        let token = match caller {
            "none" => None,
            "garbage" => Some("mp_abc_0123456789abcdef0123".to_owned()),
            "revoked" => Some(revoked.clone()),
            "expired" => Some(token(&json!({"role": "admin", "exp": seconds(-3_600)}))),
            "student" => Some(token(&json!({"role": "student"}))),
            teacher if teacher.starts_with("tch_") => {
                Some(token(&json!({"sub": teacher, "role": "teacher", "teacherId": teacher})))
            }
            role => Some(new_token(&api.store, &api.clock, Role::parse(role).unwrap()).await),
        };
        credentials.push(token.map(|token| format!("Bearer {token}")));
    }
    credentials
}

#[tokio::test]
async fn everybody_gets_what_is_theirs_and_nothing_else() {
    let api = sqlite_that(|options| options.jwt = signing::options()).await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let credentials = credentials(&api).await;
    // Twice: the second time documents and credentials are at hand.
    for round in [1, 2] {
        for (method, _, path, expected) in MATRIX {
            for ((caller, authorization), expected) in CALLERS.iter().zip(&credentials).zip(expected) {
                let headers: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let answer = send(&api.router, &method, path, &headers).await;
                let what = format!("{method} {path} as {caller}, round {round}: {}", answer.text);
                assert_eq!(answer.status.as_u16(), *expected, "{what}");
                if *expected >= 400 {
                    assert!(!answer.text.contains("ses_1") && !answer.text.contains("tch_1"), "{what}");
                    assert_eq!(answer.header("cache-control"), "no-store", "{what}");
                }
                assert_eq!(answer.headers.contains_key("www-authenticate"), *expected == 401, "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_teacher_cannot_tell_a_session_of_others_from_none() {
    let api = sqlite_that(|options| options.jwt = signing::options()).await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    api.schedule("ses_2", "tch_2", 1, START).await;
    let etag = api.get("/api/google/meet/ses_1").await.header("etag").to_owned();
    let bearer = format!("Bearer {}", token(&json!({"teacherId": "tch_2"})));
    let get = async |path: &str| {
        let known = [("authorization", bearer.as_str()), ("if-none-match", etag.as_str()), ("x-request-id", "same")];
        send(&api.router, &Method::GET, path, &known).await
    };
    for (theirs, nobodys) in [
        ("/api/google/meet/ses_1", "/api/google/meet/ses_9"),
        ("/api/google/meet/ses_1?wait=1", "/api/google/meet/ses_9?wait=1"),
        ("/api/google/meet?teacherId=tch_1", "/api/google/meet?teacherId=tch_9"),
    ] {
        let (theirs, nobodys) = (get(theirs).await, get(nobodys).await);
        assert_eq!((theirs.status, theirs.headers, theirs.text), (nobodys.status, nobodys.headers, nobodys.text));
    }
    let both = get("/api/google/meet?sessionIds=ses_1,ses_2").await.json();
    assert_eq!((&both["missing"], &both["items"][0]["sessionId"]), (&json!(["ses_1"]), &json!("ses_2")));
    let all = get("/api/google/meet").await.json();
    assert_eq!((all["items"].as_array().unwrap().len(), &all["items"][0]["teacherId"]), (1, &json!("tch_2")));
    // A page of everybody's sessions cannot be gone on with as a teacher.
    api.schedule("ses_3", "tch_1", 1, START).await;
    let cursor = api.get("/api/google/meet?limit=1").await.json()["nextCursor"].as_str().unwrap().to_owned();
    assert_eq!(get(&format!("/api/google/meet?cursor={cursor}")).await.code(), "INVALID_CURSOR");
    // A session that changes hands is seen by its new teacher alone.
    api.schedule("ses_2", "tch_1", 2, START).await;
    assert_eq!(get("/api/google/meet/ses_2").await.status, StatusCode::NOT_FOUND);
}

/// What the router itself says that it has, as `(method, pattern)`. axum has no list, but prints one.
pub fn routes_of(router: &impl std::fmt::Debug) -> BTreeSet<(String, String)> {
    let text = format!("{router:?}");
    let (text, _) = text.split_once("fallback_router: ").expect("what no route matches comes after the routes");
    let of = |id: &str| -> Vec<String> {
        let entry = text.split(&format!("RouteId({id}): ")).find(|entry| entry.starts_with("MethodRouter("));
        let entry = entry.unwrap_or_else(|| panic!("no MethodRouter of {id} in {text}"));
        let (_, allow) = entry.split_once("allow_header: Bytes(b\"").unwrap_or_else(|| panic!("no methods in {entry}"));
        allow.split('"').next().unwrap().split(',').map(str::to_owned).collect()
    };
    let mut routes = BTreeSet::new();
    for part in text.split("RouteId(").skip(1) {
        let (id, rest) = part.split_once("): ").unwrap_or_default();
        if let Some(pattern) = rest.strip_prefix('"') {
            let pattern = pattern.split('"').next().unwrap();
            routes.extend(of(id).into_iter().map(|method| (method, pattern.to_owned())));
        }
    }
    routes
}

#[tokio::test]
async fn every_route_has_a_row() {
    let api = sqlite_that(|_| {}).await;
    let of_router = routes_of(&api.router);
    assert!(of_router.contains(&("GET".to_owned(), "/livez".to_owned())), "{of_router:?}");
    let of_matrix = MATRIX.iter().map(|(method, pattern, ..)| ((*method).to_owned(), (*pattern).to_owned())).collect();
    assert_eq!(of_router, of_matrix, "left: the router; right: MATRIX in tests/api/matrix.rs");
    let patterns: BTreeSet<&str> = of_router.iter().map(|(_, pattern)| pattern.as_str()).collect();
    let named: BTreeSet<&str> = ROUTES.iter().copied().collect();
    assert_eq!(patterns, named, "left: the router; right: ROUTES in src/api.rs, the labels of metrics");
}
