//! `/livez`, `/readyz`, `/metrics`, and the service on real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::http::{Method, StatusCode};
use meet_projector::api::{Check, Readiness, admin_router, public_router, serve};
use meet_projector::store::{DatabaseUrl, Store};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fixture::{START, api, api_with, send};

#[tokio::test]
async fn live_is_always_ready_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/meet.db", folder.path().display());
    let nats_is_up = Arc::new(AtomicBool::new(true));
    let nats = nats_is_up.clone();
    let readiness = Readiness::new(move || {
        vec![if nats.load(Ordering::SeqCst) { Check::ok("nats") } else { Check::failed("nats", "not connected") }]
    });
    let api = api_with(&url, Some(folder), readiness, None).await;
    let ready = async || send(&api.router, &Method::GET, "/readyz", &[]).await;
    let live = async || send(&api.router, &Method::GET, "/livez", &[]).await.status;

    assert_eq!((ready().await.status, live().await), (StatusCode::OK, StatusCode::OK));
    nats_is_up.store(false, Ordering::SeqCst);
    let answer = ready().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    insta::assert_json_snapshot!(answer.json(), @r#"
    {
      "checks": {
        "database": {
          "detail": null,
          "ok": true
        },
        "nats": {
          "detail": "not connected",
          "ok": false
        },
        "schema": {
          "detail": null,
          "ok": true
        }
      },
      "status": "unready"
    }
    "#);
    nats_is_up.store(true, Ordering::SeqCst);
    assert_eq!(ready().await.status, StatusCode::OK);
    api.shutdown.ask();
    assert_eq!(ready().await.json()["checks"]["shutdown"]["ok"], false);
    api.store.close().await;
    assert_eq!(ready().await.json()["checks"]["database"]["ok"], false);
    assert_eq!(live().await, StatusCode::OK);
}

#[tokio::test]
async fn a_schema_that_is_missing_is_not_ready() {
    let api = api().await;
    let folder = tempfile::tempdir().unwrap();
    let empty =
        Store::open(&DatabaseUrl(format!("sqlite://{}/empty.db", folder.path().display()).into())).await.unwrap();
    let state = meet_projector::api::ApiState::new(meet_projector::api::ApiOptions {
        store: empty,
        clock: api.clock.clone(),
        metrics: Arc::default(),
        shutdown: api.shutdown.clone(),
        readiness: Readiness::database_only(),
        tokens_file: None,
        connect: None,
        jwt: meet_projector::api::auth::JwtOptions::default(),
        rate_limit: 0,
    });
    let answer = send(&meet_projector::api::router(state), &Method::GET, "/readyz", &[]).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.json()["checks"]["schema"]["detail"].as_str().unwrap().contains("migrate"), "{}", answer.text);
}

#[tokio::test]
async fn a_panic_is_a_problem_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/meet.db", folder.path().display());
    let api = api_with(&url, Some(folder), Readiness::new(|| panic!("a secret of the inside")), None).await;
    let answer = send(&api.router, &Method::GET, "/readyz", &[]).await;
    assert_eq!((answer.status, answer.code().as_str()), (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"));
    assert!(!answer.text.contains("secret"));
    assert_eq!(send(&api.router, &Method::GET, "/livez", &[]).await.status, StatusCode::OK);
}

#[tokio::test]
async fn metrics_count_requests_and_sessions() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    api.cancel("ses_2", "tch_1", 1).await;
    api.get("/api/google/meet/ses_1").await;
    api.get("/api/google/meet/ses_3").await;
    let answer = send(&api.router, &Method::GET, "/metrics", &[]).await;
    assert!(answer.header("content-type").starts_with("application/openmetrics-text; version=1.0.0"));
    assert!(answer.text.ends_with("# EOF\n"));
    for line in [
        "meet_projector_http_requests_total{route=\"/api/google/meet/{sessionId}\",status=\"200\"} 1",
        "meet_projector_http_requests_total{route=\"/api/google/meet/{sessionId}\",status=\"404\"} 1",
        "meet_projector_sessions{status=\"PENDING\"} 1",
        "meet_projector_sessions{status=\"CANCELED\"} 1",
        "meet_projector_dead_letters 0",
    ] {
        assert!(answer.text.lines().any(|known| known == line), "no {line} in\n{}", answer.text);
    }
    assert!(!answer.text.contains("ses_1"), "no ids in labels");
}

#[tokio::test]
async fn an_admin_address_takes_the_health_routes_away() {
    let api = api().await;
    let (public, admin) = (public_router(api.state.clone()), admin_router(api.state.clone()));
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(send(&public, &Method::GET, path, &[]).await.code(), "ROUTE_NOT_FOUND");
        assert_eq!(send(&admin, &Method::GET, path, &[]).await.status, StatusCode::OK);
    }
    assert_eq!(send(&admin, &Method::GET, "/api/google/meet/ses_1", &[]).await.code(), "ROUTE_NOT_FOUND");
}

#[tokio::test]
async fn it_serves_on_sockets_and_drains() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let etag = api.get("/api/google/meet/ses_1").await.header("etag").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(api.state.clone(), listener, None));

    let mut connection = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "GET /api/google/meet/ses_1?wait=60 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nif-none-match: {etag}\r\n\r\n",
        api.reader
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    // The long-poll is under way once the metrics say so.
    loop {
        let metrics = send(&api.router, &Method::GET, "/metrics", &[]).await;
        if metrics.text.lines().any(|line| line == "meet_projector_http_waits 1") {
            break;
        }
    }
    api.shutdown.ask();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 304"), "{answer}");
    server.await.unwrap().unwrap();
}
