//! One document: tags, long-polls, problems, and reads that go on without the database.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use meet_projector::model::Epoch;
use meet_projector::store::{DatabaseUrl, Store};

use super::fixture::{START, api, api_on, incoming, send};
use crate::support::gate::Gate;
use crate::support::postgres;
use crate::support::service::eventually;

#[tokio::test]
async fn a_document_is_served_as_it_is_stored() {
    let api = api().await;
    api.schedule("ses_8Kq2", "tch_42", 1, START).await;
    let answer = api.get("/api/google/meet/ses_8Kq2").await;
    assert_eq!(answer.status, StatusCode::OK);
    insta::assert_json_snapshot!(answer.json(), @r#"
    {
      "endsAt": "2026-12-01T10:00:00Z",
      "error": null,
      "kind": "private",
      "meetEventId": null,
      "meetLink": null,
      "meetStatus": "PENDING",
      "sessionId": "ses_8Kq2",
      "startsAt": "2026-12-01T09:00:00Z",
      "teacherId": "tch_42",
      "upToDate": false,
      "updatedAt": "2026-11-22T20:15:06.030Z",
      "version": 1
    }
    "#);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!((answer.header("cache-control"), answer.header("retry-after")), ("private, max-age=2", "2"), "PENDING");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    let again = api.get("/api/google/meet/ses%5F8Kq2").await;
    assert_eq!((again.text, again.headers["etag"].clone()), (answer.text, answer.headers["etag"].clone()));
}

#[tokio::test]
async fn if_none_match_is_answered_by_the_book() {
    let api = api().await;
    let path = "/api/google/meet/ses_1";
    for header in ["\"x\"", "*"] {
        assert_eq!(api.get_with(path, &[("if-none-match", header)]).await.status, StatusCode::NOT_FOUND, "{header}");
    }
    api.schedule("ses_1", "tch_1", 1, START).await;
    let etag = api.get(path).await.header("etag").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"'), "strong: {etag}");
    for known in [etag.clone(), "*".into(), format!("W/{etag}"), format!("\"a\", {etag}"), format!("\"a,b\",W/{etag}")]
    {
        let answer = api.get_with(path, &[("if-none-match", &known)]).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::NOT_MODIFIED, ""), "{known}");
        assert_eq!((answer.header("etag"), answer.header("cache-control")), (etag.as_str(), "private, max-age=2"));
    }
    let two = api.get_with(path, &[("if-none-match", "\"a\""), ("if-none-match", &etag)]).await;
    assert_eq!(two.status, StatusCode::NOT_MODIFIED, "several header lines are one list");
    for other in ["\"a\"", "W/\"a\"", "", etag.trim_matches('"')] {
        assert_eq!(api.get_with(path, &[("if-none-match", other)]).await.status, StatusCode::OK, "{other}");
    }
    api.schedule("ses_1", "tch_1", 2, START + 1_000).await;
    let changed = api.get_with(path, &[("if-none-match", &etag)]).await;
    assert_eq!(changed.status, StatusCode::OK);
    assert_ne!(changed.header("etag"), etag);
    assert_eq!(changed.json()["version"], 2);
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let bearer = format!("Bearer {}", api.reader);
    let got = api.get("/api/google/meet/ses_1").await;
    let head = send(&api.router, &Method::HEAD, "/api/google/meet/ses_1", &[("authorization", &bearer)]).await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
    assert_eq!(head.headers["etag"], got.headers["etag"]);
    assert_eq!(head.header("content-length"), got.text.len().to_string());
    let missing = send(&api.router, &Method::HEAD, "/api/google/meet/ses_2", &[("authorization", &bearer)]).await;
    assert_eq!((missing.status, missing.text.as_str()), (StatusCode::NOT_FOUND, ""));
}

#[tokio::test]
async fn what_is_wrong_is_said() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let problem = api.get_with("/api/google/meet/ses_2", &[("x-request-id", "req-1")]).await;
    insta::assert_json_snapshot!(problem.json(), @r#"
    {
      "code": "SESSION_NOT_FOUND",
      "detail": "no booking event named this session so far; ?wait=20 waits for one",
      "requestId": "req-1",
      "status": 404,
      "title": "The session is not known",
      "type": "urn:meet-projector:problem:session-not-found"
    }
    "#);
    for (path, code) in [
        ("/api/google/meet/a.b", "INVALID_PARAMETER"),
        ("/api/google/meet/%FF", "INVALID_PARAMETER"),
        ("/api/google/meet/ses_1?wait=61", "INVALID_PARAMETER"),
        ("/api/google/meet/ses_1?wait=-1", "INVALID_PARAMETER"),
        ("/api/google/meet/ses_1?wait=1&wait=2", "INVALID_PARAMETER"),
        ("/api/google/meet/ses_1?fields=meetLink", "UNKNOWN_PARAMETER"),
    ] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, code), "{path}");
    }
    for path in ["/", "/api/google/meet/", "/api/google/meet/a/b", "/api/google/meets"] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::NOT_FOUND, "ROUTE_NOT_FOUND"), "{path}");
    }
    let bearer = format!("Bearer {}", api.reader);
    let post = send(&api.router, &Method::POST, "/api/google/meet/ses_1", &[("authorization", &bearer)]).await;
    assert_eq!((post.status, post.code().as_str()), (StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED"));
    assert_eq!(post.header("allow"), "GET,HEAD");
    let large = api.get_with("/api/google/meet/ses_1", &[("content-length", "65537")]).await;
    assert_eq!((large.status, large.code().as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE"));
}

#[tokio::test]
async fn a_request_id_is_kept_or_made() {
    let api = api().await;
    assert_eq!(api.get_with("/livez", &[("x-request-id", "abc")]).await.header("x-request-id"), "abc");
    let long = "x".repeat(129);
    let made = api.get_with("/livez", &[("x-request-id", &long)]).await;
    assert_eq!(made.header("x-request-id").len(), 36);
    assert_ne!(made.header("x-request-id"), api.get("/livez").await.header("x-request-id"));
}

#[tokio::test]
async fn a_long_poll_ends_when_the_document_changes() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let etag = api.get("/api/google/meet/ses_1").await.header("etag").to_owned();
    let known = [("if-none-match", etag.as_str())];
    let wait = api.get_with("/api/google/meet/ses_1?wait=60", &known);
    let (answer, ()) = tokio::join!(wait, async {
        // Another session does not end it, this one does.
        api.schedule("ses_2", "tch_1", 1, START).await;
        api.cancel("ses_1", "tch_1", 2).await;
    });
    assert_eq!((answer.status, &answer.json()["version"]), (StatusCode::OK, &2.into()));
}

#[tokio::test]
async fn a_long_poll_ends_when_the_session_appears() {
    let api = api().await;
    let wait = api.get("/api/google/meet/ses_1?wait=60");
    let (answer, ()) = tokio::join!(wait, api.schedule("ses_1", "tch_1", 1, START));
    assert_eq!((answer.status, &answer.json()["version"]), (StatusCode::OK, &1.into()));
}

#[tokio::test]
async fn a_long_poll_with_news_does_not_wait_and_without_ends_with_its_time() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let answer = api.get("/api/google/meet/ses_1?wait=60").await;
    assert_eq!(answer.status, StatusCode::OK, "nothing is known, so everything is news");
    let known = [("if-none-match", answer.header("etag"))];
    assert_eq!(api.get_with("/api/google/meet/ses_1?wait=1", &known).await.status, StatusCode::NOT_MODIFIED);
    assert_eq!(api.get("/api/google/meet/ses_2?wait=1").await.code(), "SESSION_NOT_FOUND");
}

#[tokio::test]
async fn a_drain_ends_long_polls() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let etag = api.get("/api/google/meet/ses_1").await.header("etag").to_owned();
    let known = [("if-none-match", etag.as_str())];
    let (answer, ()) = tokio::join!(api.get_with("/api/google/meet/ses_1?wait=60", &known), async {
        tokio::task::yield_now().await;
        api.shutdown.ask();
    });
    assert_eq!(answer.status, StatusCode::NOT_MODIFIED);
}

#[tokio::test]
async fn a_change_by_another_process_ends_a_long_poll_too() {
    let url = postgres::fresh_database().await;
    let api = api_on(&url, None).await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let etag = api.get("/api/google/meet/ses_1").await.header("etag").to_owned();
    let other = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    let known = [("if-none-match", etag.as_str())];
    let message = [incoming(9, "ses_1", "tch_1", 2, None)];
    let (answer, folded) = tokio::join!(
        api.get_with("/api/google/meet/ses_1?wait=60", &known),
        other.fold(Epoch(1), &message, api.clock.now())
    );
    folded.unwrap();
    assert_eq!((answer.status, &answer.json()["version"]), (StatusCode::OK, &2.into()));
    assert_eq!(api.get("/api/google/meet/ses_1").await.json()["version"], 2);
}

#[tokio::test]
async fn every_read_after_a_commit_sees_it() {
    let api = api().await;
    for version in 1..=50 {
        api.schedule("ses_1", "tch_1", version, START + version * 1_000).await;
        for path in ["/api/google/meet/ses_1", "/api/google/meet?sessionIds=ses_1"] {
            let json = api.get(path).await.json();
            let document = if json["items"].is_array() { &json["items"][0] } else { &json };
            assert_eq!(document["version"], version, "{path}");
        }
    }
}

#[tokio::test]
async fn reads_beside_writes_never_go_back() {
    let api = std::sync::Arc::new(api().await);
    api.schedule("ses_1", "tch_1", 1, START).await;
    let writer = {
        let api = api.clone();
        tokio::spawn(async move {
            for version in 2..=200 {
                api.schedule("ses_1", "tch_1", version, START + version * 1_000).await;
            }
        })
    };
    let mut seen = 0;
    while seen < 200 {
        let version = api.get("/api/google/meet/ses_1").await.json()["version"].as_i64().unwrap();
        assert!(version >= seen, "{version} after {seen}");
        seen = version;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn without_the_database_known_documents_are_served_and_others_are_a_503() {
    let api = api().await;
    for session in ["ses_1", "ses_2", "ses_3"] {
        api.schedule(session, "tch_1", 1, START).await;
    }
    let before = api.get("/api/google/meet/ses_1").await;
    api.get("/api/google/meet?sessionIds=ses_2").await;
    api.store.close().await;
    assert_eq!(api.get("/api/google/meet/ses_1").await.text, before.text);
    assert_eq!(api.get("/api/google/meet?sessionIds=ses_2,ses_1").await.json()["items"].as_array().unwrap().len(), 2);
    // Longer than a document counts as fresh: then the database would be asked, and its silence is no reason to stop.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert_eq!(api.get("/api/google/meet/ses_1").await.text, before.text);
    for path in ["/api/google/meet/ses_3", "/api/google/meet?sessionIds=ses_1,ses_3", "/api/google/meet?status=READY"] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, answer.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, "2"), "{path}");
        assert_eq!(answer.code(), "DATABASE_UNAVAILABLE");
        assert!(!answer.text.contains("pool") && !answer.text.contains("sqlx"), "{}", answer.text);
    }
}

#[tokio::test]
async fn while_a_shared_database_is_away_what_was_read_is_served_and_the_rest_is_refused_soon() {
    let url = postgres::fresh_database().await;
    let port = url::Url::parse(&url).unwrap().port().unwrap();
    let mut gate = Gate::open_to(port);
    let api = api_on(&url.replace(&format!(":{port}/"), &format!(":{}/", gate.address.port())), None).await;
    for session in ["ses_1", "ses_2"] {
        api.schedule(session, "tch_1", 1, START).await;
    }
    let before = api.get("/api/google/meet/ses_1").await;
    assert_eq!(before.status, StatusCode::OK);
    gate.shut();
    for _ in 0..5 {
        assert_eq!(api.get("/api/google/meet/ses_1").await.text, before.text);
    }
    for path in ["/api/google/meet/ses_2", "/api/google/meet?sessionIds=ses_1,ses_2", "/api/google/meet"] {
        let begun = std::time::Instant::now();
        assert_eq!(api.get(path).await.code(), "DATABASE_UNAVAILABLE", "{path}");
        // The pool itself tries for five seconds.
        assert!(begun.elapsed() < Duration::from_secs(4), "{path}: {:?}", begun.elapsed());
    }
    gate.open();
    // Another replica's change is seen at once again, so nothing is answered from memory.
    let other = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    other.fold(Epoch(1), &[incoming(9, "ses_1", "tch_1", 2, None)], api.clock.now()).await.unwrap();
    eventually("reads reach the database again", async || {
        api.get("/api/google/meet/ses_2").await.status == StatusCode::OK
    })
    .await;
    assert_eq!(api.get("/api/google/meet/ses_1").await.json()["version"], 2);
}
