//! What we are compared with, each in a process of its own, as the service is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use bytes::Bytes;
use meet_projector::google::calendar::http_client;
use serde_json::json;
use tokio::net::TcpListener;

/// Calls at once of the bare client: the default of `GOOGLE_MAX_IN_FLIGHT`.
const IN_FLIGHT: usize = 32;

/// Runs the peer that the arguments name.
pub(crate) fn run(arguments: &[String]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match arguments {
        [peer, body, address] if peer == "axum" => runtime.block_on(axum_alone(body.clone(), address)),
        [peer, root, count, tokens @ ..] if peer == "inserts" => {
            let per_second = runtime.block_on(inserts(root.clone(), count.parse().unwrap(), tokens.to_vec()));
            println!("{per_second}");
        }
        other => panic!("there is no such peer: {other:?}"),
    }
}

/// A handler that gives out one body, and one that says that it has not changed.
async fn axum_alone(body: String, address: &str) {
    let body = Bytes::from(body);
    let json = HeaderValue::from_static("application/json");
    let router = Router::new()
        .route("/readyz", get(async || "ready"))
        .route("/body/{id}", get(async move || ([(header::CONTENT_TYPE, json)], body)))
        .route("/same/{id}", get(async || (StatusCode::NOT_MODIFIED, [(header::ETAG, "\"1\"")])));
    let listener = TcpListener::bind(address.parse::<SocketAddr>().unwrap()).await.unwrap();
    let listener = listener.tap_io(|connection| connection.set_nodelay(true).unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// Inserts events at (the fake) Google and does nothing else; how many a second.
async fn inserts(root: String, count: usize, tokens: Vec<String>) -> f64 {
    let http = http_client();
    let url = format!("{root}/calendars/primary/events?conferenceDataVersion=1");
    let (tokens, next) = (Arc::new(tokens), Arc::new(AtomicUsize::new(0)));
    let begun = Instant::now();
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (http, url, tokens, next) = (http.clone(), url.clone(), Arc::clone(&tokens), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let sent = http.post(&url).bearer_auth(&tokens[number % tokens.len()]).json(&event(number)).send();
                    let answer = sent.await.unwrap();
                    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
                    answer.bytes().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
    let per_second = count as f64 / begun.elapsed().as_secs_f64();
    per_second
}

/// An event as we write it.
fn event(number: usize) -> serde_json::Value {
    let place =
        |hour: usize| json!({ "dateTime": format!("2096-12-01T{hour:02}:00:00Z"), "timeZone": "Europe/Madrid" });
    json!({
        "id": format!("ba{number:022}"),
        "summary": format!("Piano, lesson {number}"),
        "description": "Bring the notes of last week and a pencil.",
        "start": place(number % 20),
        "end": place(number % 20 + 1),
        "conferenceData": { "createRequest": {
            "requestId": format!("bare-{number}"), "conferenceSolutionKey": { "type": "hangoutsMeet" }
        } },
        "extendedProperties": { "private": { "mpSession": format!("bare_{number}") } }
    })
}
