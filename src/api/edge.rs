//! What every request passes: id, size limit, time limit, panics, problems, headers, metrics.
//!
//! One function instead of a stack of layers: each layer would box a future and clone a service for every request,
//! and a cached read has little more to do than that.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use futures_util::FutureExt as _;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::ApiState;
use super::problem::Problem;
use crate::telemetry::metrics::{HttpLabels, RouteLabel};
use crate::telemetry::trace;

/// No request of ours is larger.
pub(super) const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Time for an answer. Long-polls get their own time on top; see `api::query`.
const ANSWER: Duration = Duration::from_secs(30);

/// The longest `?wait=`.
const WAIT_MAX: Duration = Duration::from_mins(1);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

pub(super) async fn edge(State(state): State<ApiState>, request: Request, next: Next) -> Response<Body> {
    let began = Instant::now();
    let id = request_id(request.headers());
    let route = route(&request);
    let is_head = request.method() == Method::HEAD;
    let waits = request.uri().query().is_some_and(|query| query.contains("wait="));
    let span = match route {
        "/livez" | "/readyz" | "/metrics" => tracing::Span::none(),
        route => {
            trace::http_server(request.method().as_str(), route, || request.headers().get("traceparent")?.to_str().ok())
        }
    };
    let mut response = if content_length(request.headers()).is_some_and(|length| length > BODY_BYTES_MAX) {
        problem_response(Problem::body_too_large(BODY_BYTES_MAX))
    } else {
        let time = if waits { ANSWER + WAIT_MAX } else { ANSWER };
        // A handler that panics has left no lock half-way: see the comments where locks are taken.
        match tokio::time::timeout(time, AssertUnwindSafe(next.run(request)).catch_unwind())
            .instrument(span.clone())
            .await
        {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => problem_response(Problem::internal("a handler panicked")),
            Err(_) => problem_response(Problem::timeout()),
        }
    };
    if response.status().is_client_error() || response.status().is_server_error() {
        response = with_problem(response, &id, is_head);
    }
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let status = response.status().as_u16();
    trace::served(&span, status);
    state.0.metrics.http_requests.get_or_create(&HttpLabels { route, status }).inc();
    if !waits {
        let duration = state.0.metrics.http_request_seconds.get_or_create(&RouteLabel { route });
        duration.observe(began.elapsed().as_secs_f64());
    }
    response
}

fn problem_response(problem: Problem) -> Response<Body> {
    axum::response::IntoResponse::into_response(problem)
}

/// Writes the problem of a handler, or turns a bare error of axum into one.
fn with_problem(mut response: Response<Body>, id: &HeaderValue, is_head: bool) -> Response<Body> {
    let carried = response.extensions_mut().remove::<Problem>();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_ours = kind.is_some_and(|kind| kind == "application/json" || kind == "text/html; charset=utf-8");
    // `/readyz` answers 503 with its checks, and a consent that failed a page for a person.
    if carried.is_none() && is_ours {
        return response;
    }
    let problem = carried.unwrap_or_else(|| Problem::of_status(response.status()));
    let id = id.to_str().unwrap_or_default();
    if let Some(cause) = &problem.cause {
        tracing::error!(request_id = id, code = problem.code, cause, "request failed");
    }
    let mut answer = problem.respond(id);
    if problem.status == StatusCode::METHOD_NOT_ALLOWED
        && let Some(allow) = response.headers_mut().remove(header::ALLOW)
    {
        answer.headers_mut().insert(header::ALLOW, allow);
    }
    if is_head {
        *answer.body_mut() = Body::empty();
    }
    answer
}

/// The caller's id when it is sane, else one of ours.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    match headers.get(&REQUEST_ID) {
        Some(given) if is_sane(given.as_bytes()) => given.clone(),
        _ => new_request_id(),
    }
}

/// 1 to 128 visible characters: it goes into logs and back to the caller.
fn is_sane(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// A UUID (version 8, RFC 9562 section 5.8: our own layout): random for the process, then counted. Unique without
/// asking the system for randomness at every request.
fn new_request_id() -> HeaderValue {
    static PROCESS: LazyLock<uuid::Uuid> = LazyLock::new(uuid::Uuid::new_v4);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (high, low) = PROCESS.as_u64_pair();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let bytes = uuid::Uuid::from_u64_pair(high, low.wrapping_add(count)).into_bytes();
    let id = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    let mut text = uuid::Uuid::encode_buffer();
    HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)).expect("hex digits and dashes are visible ASCII")
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The pattern of the route, never the path itself, which has ids.
fn route(request: &Request) -> &'static str {
    let matched = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    super::ROUTES.iter().find(|route| **route == matched).copied().unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_from_outside_is_kept_when_it_is_sane() {
        let with = |id: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(with("abc-123"), "abc-123");
        for bad in ["", "a b", "ñ", &"x".repeat(129)] {
            assert_ne!(with(bad), bad);
        }
        assert_ne!(new_request_id(), new_request_id());
        assert!(uuid::Uuid::parse_str(new_request_id().to_str().unwrap()).is_ok());
    }
}
