//! The retry button.

use axum::http::{Method, StatusCode};
use meet_projector::model::{GoogleSub, TeacherId};
use meet_projector::store::{ActedFilter, NewCredential, Role};

use super::fixture::{Answer, Api, START, api, new_token, send};

async fn press(api: &Api, token: &str, session: &str, key: Option<&str>) -> Answer {
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", bearer.as_str())];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    send(&api.router, &Method::POST, &format!("/api/google/meet/retry/{session}"), &headers).await
}

async fn operator(api: &Api) -> String {
    let token = new_token(&api.store, &api.clock, Role::Operator).await;
    api.state.refresh_tokens().await.unwrap();
    token
}

async fn connect(api: &Api, teacher: &str) {
    let new = NewCredential {
        teacher: TeacherId::parse(teacher).unwrap(),
        account: GoogleSub(format!("sub-{teacher}")),
        email: None,
        calendar: "primary".into(),
        refresh_token: vec![1],
        scopes: String::new(),
    };
    api.store.put_credential(&new, api.clock.now()).await.unwrap();
}

#[tokio::test]
async fn only_operators_may_press_it() {
    let api = api().await;
    api.schedule("s1", "t1", 1, START).await;
    connect(&api, "t1").await;
    let none = send(&api.router, &Method::POST, "/api/google/meet/retry/s1", &[]).await;
    assert_eq!((none.status, none.code().as_str()), (StatusCode::UNAUTHORIZED, "TOKEN_MISSING"));
    let reader = press(&api, &api.reader, "s1", None).await;
    assert_eq!((reader.status, reader.code().as_str()), (StatusCode::FORBIDDEN, "ROLE_TOO_LOW"));
    let token = operator(&api).await;
    let get = api.get("/api/google/meet/retry/s1").await;
    assert_eq!((get.status, get.header("allow")), (StatusCode::METHOD_NOT_ALLOWED, "POST"));
    assert_eq!(press(&api, &token, "s9", None).await.code(), "SESSION_NOT_FOUND");
    assert_eq!(press(&api, &token, "a.b", None).await.code(), "INVALID_PARAMETER");
    assert_eq!(press(&api, &token, "s1?force=1", None).await.code(), "UNKNOWN_PARAMETER");
    assert_eq!(press(&api, &token, "s1", Some("")).await.code(), "INVALID_PARAMETER");
}

#[tokio::test]
async fn it_answers_with_the_document_or_says_why_it_cannot_help() {
    let api = api().await;
    api.schedule("s1", "t1", 1, START).await;
    let token = operator(&api).await;
    let refused = press(&api, &token, "s1", None).await;
    assert_eq!((refused.status, refused.code().as_str()), (StatusCode::CONFLICT, "TEACHER_NOT_CONNECTED"));
    assert!(refused.json()["detail"].as_str().unwrap().contains("let teacher t1 connect"), "{}", refused.text);

    connect(&api, "t1").await;
    let accepted = press(&api, &token, "s1", None).await;
    assert_eq!(accepted.status, StatusCode::ACCEPTED, "{}", accepted.text);
    assert_eq!(accepted.json(), api.get("/api/google/meet/s1").await.json());

    let soon = press(&api, &token, "s1", None).await;
    assert_eq!((soon.status, soon.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "RETRY_TOO_SOON"));
    let seconds: i64 = soon.header("retry-after").parse().unwrap();
    api.clock.advance_ms(seconds * 1000);
    assert_eq!(press(&api, &token, "s1", None).await.status, StatusCode::ACCEPTED);

    api.cancel("s1", "t1", 2).await;
    api.clock.advance_ms(60_000);
    assert_eq!(press(&api, &token, "s1", None).await.code(), "SESSION_CANCELED");

    let filter = ActedFilter { target: Some("s1".into()), limit: 10, ..ActedFilter::default() };
    let acted = api.store.acted(&filter).await.unwrap();
    assert_eq!(acted.len(), 4, "{acted:?}");
    let id = token.split('_').nth(1).unwrap();
    assert!(acted.iter().all(|acted| acted.actor.as_deref() == Some(&format!("token:{id}"))), "{acted:?}");
}

#[tokio::test]
async fn a_repeated_request_gets_the_same_answer() {
    let api = api().await;
    api.schedule("s1", "t1", 1, START).await;
    api.schedule("s2", "t1", 1, START).await;
    connect(&api, "t1").await;
    let token = operator(&api).await;
    // As the draft writes keys, and as many clients do.
    let (one, two) = tokio::join!(press(&api, &token, "s1", Some("\"k1\"")), press(&api, &token, "s1", Some("k1")));
    assert_eq!((one.status, two.status), (StatusCode::ACCEPTED, StatusCode::ACCEPTED), "{one:?} {two:?}");
    assert_eq!(one.text, two.text);
    let replayed = [&one, &two].iter().filter(|answer| answer.headers.contains_key("idempotency-replayed")).count();
    assert_eq!(replayed, 1, "one of them did it");

    let other = press(&api, &token, "s2", Some("k1")).await;
    assert_eq!((other.status, other.code().as_str()), (StatusCode::UNPROCESSABLE_ENTITY, "IDEMPOTENCY_KEY_REUSED"));
    let filter = ActedFilter { action: Some("session retry".into()), limit: 10, ..ActedFilter::default() };
    assert_eq!(api.store.acted(&filter).await.unwrap().len(), 1);

    // Another token's key is another key.
    let token = operator(&api).await;
    assert_eq!(press(&api, &token, "s2", Some("k1")).await.status, StatusCode::ACCEPTED);
}
