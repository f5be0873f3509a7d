//! `API_RATE_LIMIT`, and the headers that every answer has.

use axum::http::{Method, StatusCode};
use meet_projector::store::Role;
use serde_json::json;

use super::fixture::{Answer, Api, START, new_token, send, sqlite_that};
use super::signing::{self, token};

const PATH: &str = "/api/google/meet/ses_1";

async fn limited(per_second: u32) -> Api {
    let api = sqlite_that(|options| {
        options.rate_limit = per_second;
        options.jwt = signing::options();
    })
    .await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    api
}

async fn get(api: &Api, token: &str) -> Answer {
    send(&api.router, &Method::GET, PATH, &[("authorization", &format!("Bearer {token}"))]).await
}

#[tokio::test]
async fn who_asks_too_often_waits_and_nobody_else_does() {
    let api = limited(1).await;
    let other = new_token(&api.store, &api.clock, Role::Reader).await;
    api.state.refresh_tokens().await.unwrap();
    let mut answer = get(&api, &api.reader).await;
    assert_eq!(answer.header("ratelimit-policy"), "\"default\";q=2;w=2");
    assert_eq!(answer.header("ratelimit"), "\"default\";r=1;t=1");
    // A slow machine may fill the bucket meanwhile, but not for ever as fast as it is emptied.
    while answer.status == StatusCode::OK {
        answer = get(&api, &api.reader).await;
    }
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED"));
    assert_eq!((answer.header("retry-after"), answer.header("cache-control")), ("1", "no-store"));
    assert_eq!(answer.header("ratelimit"), "\"default\";r=0;t=2");
    assert_eq!(get(&api, &other).await.header("ratelimit"), "\"default\";r=1;t=1", "another token is another bucket");
    for path in ["/livez", "/readyz", "/metrics"] {
        for _ in 0..5 {
            let answer = send(&api.router, &Method::GET, path, &[]).await;
            assert_eq!((answer.status, answer.headers.get("ratelimit")), (StatusCode::OK, None), "{path}");
        }
    }
    // It passes by itself.
    while get(&api, &api.reader).await.status == StatusCode::TOO_MANY_REQUESTS {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn strangers_share_the_bucket_of_their_address_and_cannot_empty_that_of_a_token() {
    let api = limited(1).await;
    let id = api.reader.split('_').nth(1).unwrap();
    let wrong = format!("mp_{id}_{}", "x".repeat(52));
    let mut answer = get(&api, &wrong).await;
    while answer.status == StatusCode::UNAUTHORIZED {
        // Answered after up to a quarter of a second each, so several at once are needed to ask too often.
        let (a, b, c, d) = tokio::join!(get(&api, &wrong), get(&api, &wrong), get(&api, &wrong), get(&api, "x.y.z"));
        answer = [a, b, c, d].into_iter().max_by_key(|answer| answer.status).unwrap();
    }
    assert_eq!(answer.code(), "RATE_LIMITED");
    assert_eq!(get(&api, &api.reader).await.header("ratelimit"), "\"default\";r=1;t=1", "the owner of the id is free");
}

#[tokio::test]
async fn the_tokens_of_one_subject_share_a_bucket() {
    let api = limited(1).await;
    let [first, second] = ["a", "b"].map(|id| token(&json!({"sub": "usr_7", "role": "reader", "jti": id})));
    // A token that was not seen before is counted with strangers, once.
    get(&api, &first).await;
    get(&api, &second).await;
    let (begun, mut passed, mut refused) = (std::time::Instant::now(), 0, 0);
    while refused < 2 {
        for token in [&first, &second] {
            let is_passed = get(&api, token).await.status == StatusCode::OK;
            (passed, refused) = if is_passed { (passed + 1, 0) } else { (passed, refused + 1) };
        }
    }
    // Two at once and one a second; two buckets would have let four through at once.
    assert!(passed <= 3 + begun.elapsed().as_secs(), "{passed} in {:?}", begun.elapsed());
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_browsers_in_check() {
    let api = limited(0).await;
    let bearer = format!("Bearer {}", api.reader);
    let cases = [
        (Method::GET, PATH, 200),
        (Method::HEAD, PATH, 200),
        (Method::GET, "/api/google/meet?sessionIds=ses_1", 200),
        (Method::GET, "/api/google/meet/ses_2", 404),
        (Method::GET, "/api/google/meet/a.b", 400),
        (Method::POST, PATH, 405),
        (Method::OPTIONS, PATH, 204),
        (Method::GET, "/nowhere", 404),
        (Method::OPTIONS, "/nowhere", 404),
        (Method::GET, "/livez", 200),
    ];
    for (method, path, status) in cases {
        let answer =
            send(&api.router, &method, path, &[("authorization", &bearer), ("origin", "https://a.example")]).await;
        let what = format!("{method} {path}: {answer:?}");
        assert_eq!(answer.status.as_u16(), status, "{what}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}");
        assert_eq!(answer.header("referrer-policy"), "no-referrer", "{what}");
        assert_eq!(answer.header("content-security-policy"), "default-src 'none'; frame-ancestors 'none'", "{what}");
        assert_eq!(answer.header("vary"), "authorization", "{what}");
        assert!(!answer.header("cache-control").contains("public"), "{what}");
        assert_eq!(answer.headers.get("strict-transport-security"), None, "{what}");
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control-")), "{what}");
        if matches!(status, 204 | 405) {
            assert!(answer.header("allow").starts_with("GET,HEAD"), "{what}");
        }
        if method == Method::HEAD || status == 204 {
            assert_eq!(answer.text, "", "{what}");
        }
    }
}
