//! What every request passes: id, rate limit, size limit, time limit, panics, problems, headers, metrics.
//!
//! One service around the router instead of a stack of layers: each layer would box a future and clone a service for
//! every request. The read that nearly all requests are, of one document that is at hand with a token that is known, is
//! answered here without the router, in the same call; [`super::meet`] answers it in both cases.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request};
use axum::http::{self, HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use futures_util::FutureExt as _;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use super::limits::{Key, Verdict};
use super::problem::Problem;
use super::{ApiState, meet};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{HttpLabels, RouteLabel};
use crate::telemetry::trace;

/// No request of ours is larger.
pub(super) const BODY_BYTES_MAX: usize = 64 * 1024;

/// Time for an answer, the body of the request included. Long-polls get their own time on top; see `api::query`.
const ANSWER: Duration = Duration::from_secs(30);

/// The longest `?wait=`.
const WAIT_MAX: Duration = Duration::from_mins(1);

/// Probes and scrapers are never refused for asking too often.
const UNLIMITED: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// The route of requests that no route matched, in metrics.
const OTHER: &str = "other";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The same for every answer, unless a handler has its own. HSTS is not among them: the service speaks plain HTTP behind
/// a proxy, where RFC 6797 section 7.2 forbids it, and the host's name belongs to whoever runs the proxy.
static SAME_FOR_ALL: [(HeaderName, HeaderValue); 4] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'")),
    // What is in an answer follows from who asks.
    (header::VARY, HeaderValue::from_static("authorization")),
];

/// The routes with all that is around them, for one connection or for tests.
#[derive(Debug, Clone)]
pub struct Edge {
    state: ApiState,
    routes: Router,
    peer: IpAddr,
}

impl Edge {
    pub(super) fn new(routes: Router<ApiState>, state: ApiState) -> Self {
        let body = tower_http::limit::RequestBodyLimitLayer::new(BODY_BYTES_MAX);
        let routes = routes
            .layer(axum::middleware::from_fn(note_route))
            .fallback(async || Problem::route_not_found())
            // Counts what arrives, so it holds for bodies that do not say their length too.
            .layer(body)
            .with_state(state.clone());
        Self { state, routes, peer: IpAddr::V4(Ipv4Addr::LOCALHOST) }
    }

    /// The same for requests from this address.
    pub(super) fn for_peer(&self, peer: IpAddr) -> Self {
        Self { peer, ..self.clone() }
    }

    /// Answers a request; at once, where that needs no waiting.
    pub(super) fn answer<B>(&self, request: http::Request<B>) -> Answering
    where
        B: HttpBody<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<axum::BoxError>,
    {
        let mut passing = Passing::begin(&request);
        let path = request.uri().path();
        let mut caller = None;
        if !UNLIMITED.contains(&path) {
            caller = self.state.0.auth.at_hand(request.headers());
            passing.verdict = match &caller {
                Some(caller) => caller.bucket.as_ref().map(|bucket| bucket.take()),
                None => self.state.0.limits.bucket(Key::peer(self.peer)).map(|bucket| bucket.take()),
            };
            if let Some(Verdict::Wait(time)) = passing.verdict {
                return self.at_once(passing, Problem::rate_limited(time).into_response());
            }
        }
        if let Some(caller) = caller
            && request.method() == Method::GET
            && request.uri().query().is_none()
            && let Some(segment) = path.strip_prefix(meet::PREFIX)
        {
            let (state, principal, headers) = (&self.state, &caller.principal, request.headers());
            // Where locks are taken it is said why a panic leaves them whole.
            match std::panic::catch_unwind(AssertUnwindSafe(|| meet::at_hand(state, principal, headers, segment))) {
                Ok(None) => {}
                Ok(Some(response)) => {
                    passing.route = meet::ROUTE;
                    trace::served(&span(request.method(), meet::ROUTE, headers), response.status().as_u16());
                    return self.at_once(passing, response);
                }
                Err(_) => return self.at_once(passing, panicked()),
            }
        }
        let state = self.state.clone();
        let routed = tower::ServiceExt::oneshot(self.routes.clone(), request.map(Body::new));
        Answering(Inner::Later(Box::pin(async move {
            let time = if passing.waits { ANSWER + WAIT_MAX } else { ANSWER };
            // Polls the handler first, so a timer is only set where there is something to wait for.
            let response = match tokio::time::timeout(time, AssertUnwindSafe(routed).catch_unwind()).await {
                Ok(Ok(response)) => response.unwrap_or_else(|never: Infallible| match never {}),
                Ok(Err(_)) => panicked(),
                Err(_) => Problem::timeout().into_response(),
            };
            passing.end(&state, response)
        })))
    }

    fn at_once(&self, passing: Passing, response: Response<Body>) -> Answering {
        Answering(Inner::Now(Some(passing.end(&self.state, response))))
    }
}

fn panicked() -> Response<Body> {
    Problem::internal("a handler panicked").into_response()
}

/// Tells the outside which route it was, and traces what becomes of it.
async fn note_route(request: Request, next: Next) -> Response<Body> {
    let Some(matched) = request.extensions().get::<MatchedPath>().cloned() else { return next.run(request).await };
    let route = known(&matched);
    let span = if UNLIMITED.contains(&route) { Span::none() } else { span(request.method(), route, request.headers()) };
    let mut response = next.run(request).instrument(span.clone()).await;
    trace::served(&span, response.status().as_u16());
    response.extensions_mut().insert(matched);
    response
}

fn span(method: &Method, route: &'static str, headers: &HeaderMap) -> Span {
    trace::http_server(method.as_str(), route, || headers.get("traceparent")?.to_str().ok())
}

/// The route as the labels of metrics know it.
fn known(matched: &MatchedPath) -> &'static str {
    super::ROUTES.iter().find(|route| **route == matched.as_str()).copied().unwrap_or(OTHER)
}

/// An answer that is there, or will be.
#[must_use = "nothing is sent unless it is polled"]
pub struct Answering(Inner);

enum Inner {
    Now(Option<Response<Body>>),
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").finish_non_exhaustive()
    }
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Inner::Now(response) => Poll::Ready(Ok(response.take().expect("nobody polls after the end"))),
            Inner::Later(later) => later.as_mut().poll(cx).map(Ok),
        }
    }
}

impl<B> tower::Service<http::Request<B>> for Edge
where
    B: HttpBody<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Answering {
        self.answer(request)
    }
}

/// What is kept of a request until its answer.
struct Passing {
    began: Instant,
    id: HeaderValue,
    route: &'static str,
    method: Method,
    waits: bool,
    verdict: Option<Verdict>,
}

impl Passing {
    fn begin<B>(request: &http::Request<B>) -> Self {
        Self {
            began: Instant::now(),
            id: request_id(request.headers()),
            route: OTHER,
            method: request.method().clone(),
            waits: request.uri().query().is_some_and(|query| query.contains("wait=")),
            verdict: None,
        }
    }

    fn end(mut self, state: &ApiState, mut response: Response<Body>) -> Response<Body> {
        if let Some(matched) = response.extensions_mut().remove::<MatchedPath>() {
            self.route = known(&matched);
        }
        let status = response.status();
        if status == StatusCode::METHOD_NOT_ALLOWED && self.method == Method::OPTIONS {
            response = options(&response);
        } else if status.is_client_error() || status.is_server_error() {
            response = with_problem(response, &self.id, self.method == Method::HEAD);
        }
        let headers = response.headers_mut();
        for (name, value) in &SAME_FOR_ALL {
            headers.entry(name).or_insert_with(|| value.clone());
        }
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(REQUEST_ID, self.id);
        if let Some(verdict) = self.verdict {
            state.0.limits.announce(verdict, headers);
        }
        let seconds = (!self.waits).then(|| self.began.elapsed().as_secs_f64());
        state.0.usual.count(&state.0.metrics, self.route, response.status(), seconds);
        response
    }
}

/// The instruments of nearly all answers, looked up once.
#[derive(Debug)]
pub(super) struct Usual {
    ok: Counter,
    not_modified: Counter,
    duration: Histogram,
}

impl Usual {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let requests = |status| metrics.http_requests.get_or_create_owned(&HttpLabels { route: meet::ROUTE, status });
        Self {
            ok: requests(200),
            not_modified: requests(304),
            duration: metrics.http_request_seconds.get_or_create_owned(&RouteLabel { route: meet::ROUTE }),
        }
    }

    fn count(&self, metrics: &Metrics, route: &'static str, status: StatusCode, seconds: Option<f64>) {
        let is_usual = std::ptr::eq(route, meet::ROUTE);
        match status {
            StatusCode::OK if is_usual => self.ok.inc(),
            StatusCode::NOT_MODIFIED if is_usual => self.not_modified.inc(),
            _ => metrics.http_requests.get_or_create(&HttpLabels { route, status: status.as_u16() }).inc(),
        };
        if let Some(seconds) = seconds {
            if is_usual {
                self.duration.observe(seconds);
            } else {
                metrics.http_request_seconds.get_or_create(&RouteLabel { route }).observe(seconds);
            }
        }
    }
}

/// What the route can do (RFC 9110 section 9.3.7). No CORS: browsers go through WordPress.
fn options(refused: &Response<Body>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    if let Some(allow) = refused.headers().get(header::ALLOW) {
        let allow = [allow.as_bytes(), b",OPTIONS"].concat();
        let allow = HeaderValue::from_bytes(&allow).expect("a header's value and visible ASCII");
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
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
