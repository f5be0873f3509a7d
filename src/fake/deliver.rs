//! From outcome to bytes on the wire, with the endings that no client wants.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::stream;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::FakeGoogle;
use super::event_store::Success;
use super::faults::Ending;
use super::refusal::Refusal;
use super::state::{Outcome, State};
use super::wire::Connection;

/// What the handlers share: the fake itself and the server they run in.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) google: FakeGoogle,
    pub(super) stopping: CancellationToken,
    pub(super) root: Url,
}

/// Answers as the outcome says; `refuse` prints errors in the shape of the endpoint.
pub(super) async fn deliver(
    served: &Served,
    connection: &Connection,
    outcome: Outcome,
    refuse: fn(&Refusal) -> Response<Body>,
) -> Response<Body> {
    if let Some((number, delay_ms)) = outcome.late {
        let google = served.google.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
            google.with(|state| state.release_late(Some(number)));
        });
    }
    let truth = |result: &Result<Success, Refusal>| match result {
        Ok(done) => success(done),
        Err(refusal) => refuse(refusal),
    };
    match outcome.ending {
        Ending::Answer => truth(&outcome.result),
        Ending::Refuse(refusal) => refuse(&refusal),
        Ending::Drop => drop_connection(connection),
        Ending::Hang(millis) => {
            // A client that gives up closes the connection, and the server drops this future.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(millis)) => {}
                () = served.stopping.cancelled() => {}
            }
            drop_connection(connection)
        }
        Ending::HalfBody => half(truth(&outcome.result), connection).await,
    }
}

/// Acts `delay_ms` from now, also when the client has given up by then: what was sent to Google is carried out.
pub(super) async fn later(
    google: &FakeGoogle,
    delay_ms: u64,
    act: impl FnOnce(&mut State) -> Outcome + Send + 'static,
) -> Outcome {
    let google = google.clone();
    let task = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        google.with(act)
    });
    task.await.expect("the rules do not panic, and nobody aborts the task")
}

fn drop_connection(connection: &Connection) -> Response<Body> {
    connection.cut();
    Response::new(Body::empty())
}

fn success(done: &Success) -> Response<Body> {
    let mut response = Response::new(Body::from(done.body.clone()));
    *response.status_mut() = StatusCode::from_u16(done.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if !done.body.is_empty() {
        let json = HeaderValue::from_static("application/json; charset=UTF-8");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
    }
    response
}

/// Promises the whole body and sends half of it. Where there is none, the connection is all that can be broken.
async fn half(response: Response<Body>, connection: &Connection) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    if whole.is_empty() {
        return drop_connection(connection);
    }
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    let sent = whole.slice(..whole.len() / 2);
    // The pause between the halves is where the server flushes the first one.
    let halves = stream::unfold(Some(sent), |state| async move {
        match state {
            Some(sent) if !sent.is_empty() => Some((Ok(sent), Some(Bytes::new()))),
            Some(_) => {
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("half a body")), None))
            }
            None => None,
        }
    });
    let body = Body::from_stream(halves);
    debug_assert!(!body.is_end_stream(), "the second half never comes");
    Response::from_parts(parts, body)
}
