//! `/calendar/v3` over HTTP: takes requests apart and hands them to the state.

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, RawQuery, State as Shared};
use axum::http::{HeaderMap, HeaderName, Method, Response, header};
use axum::routing::{MethodFilter, MethodRouter, get, on};
use bytes::Bytes;
use serde::Deserialize;

use super::deliver::{Served, deliver, later};
use super::event_store::CalendarCall;
use super::faults::Operation;
use super::refusal::Refusal;
use super::wire::Connection;

/// `…/calendars/{calendar}/events`
pub(super) fn collection() -> MethodRouter<Served> {
    get(handle).post(handle).fallback(unknown)
}

/// `…/calendars/{calendar}/events/{event}`
pub(super) fn member() -> MethodRouter<Served> {
    let methods = MethodFilter::GET.or(MethodFilter::PATCH).or(MethodFilter::PUT).or(MethodFilter::DELETE);
    on(methods, handle).fallback(unknown)
}

/// What Google answers to paths that it does not know, such as `DELETE …/events/` with an empty id.
pub(super) async fn unknown() -> Response<Body> {
    Refusal::not_found().calendar_response()
}

async fn handle(
    Shared(served): Shared<Served>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    method: Method,
    Path(path): Path<Vec<String>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let call = take_apart(&method, path, query, &headers, body);
    let google = &served.google;
    // Without a delay both halves happen under one lock.
    let (outcome, ruling) = google.with(|state| {
        let ruling = state.arrive(&call);
        ((ruling.delay_ms == 0).then(|| state.perform(&call, &ruling)), ruling)
    });
    let outcome = match outcome {
        Some(outcome) => outcome,
        None => later(google, ruling.delay_ms, move |state| state.perform(&call, &ruling)).await,
    };
    deliver(&served, &connection, outcome, Refusal::calendar_response).await
}

fn take_apart(
    method: &Method,
    path: Vec<String>,
    query: Option<String>,
    headers: &HeaderMap,
    body: Bytes,
) -> CalendarCall {
    let mut path = path.into_iter();
    let calendar = path.next().unwrap_or_default();
    let event = path.next();
    let (operation, method) = match (method.as_str(), &event) {
        ("POST", _) => (Operation::Insert, "POST"),
        ("PATCH", _) => (Operation::Patch, "PATCH"),
        ("PUT", _) => (Operation::Update, "PUT"),
        ("DELETE", _) => (Operation::Delete, "DELETE"),
        (_, Some(_)) => (Operation::Get, "GET"),
        (_, None) => (Operation::List, "GET"),
    };
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let event = if operation == Operation::Insert { inserted_id(&body) } else { event };
    CalendarCall {
        operation,
        method,
        token: text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer ").map(str::to_owned)),
        calendar,
        event,
        query: query.unwrap_or_default(),
        if_match: text(header::IF_MATCH),
        if_none_match: text(header::IF_NONE_MATCH),
        body,
    }
}

/// The `id` in the body of an insert, for rules and recordings.
fn inserted_id(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Id {
        id: Option<String>,
    }
    serde_json::from_slice::<Id>(body).ok().and_then(|body| body.id)
}
