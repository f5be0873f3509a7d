//! `GET /api/google/meet/{sessionId}` and `GET /api/google/meet`: documents as the store has them. Never calls Google.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse as _;
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::auth::Principal;
use super::cache::{Freshness, Served};
use super::patience::in_time;
use super::problem::Problem;
use super::query::{self, Parameters};
use super::{ApiState, etag};
use crate::model::{SessionId, TeacherId};

/// Where the documents are; the session id is the rest of the path.
pub(super) const PREFIX: &str = "/api/google/meet/";

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Seconds after which a document that is about to change is worth another look.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// What is never used without asking: lists, and the answers of long-polls. Links are for their readers alone.
pub(super) static NO_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// How often a long-poll looks by itself: changes of other processes are not announced here.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Its pattern.
pub(super) const ROUTE: &str = "/api/google/meet/{sessionId}";

/// The answer of [`one`] to a request without a query, when the document is at hand: no waiting. `segment` is the rest
/// of the path as it was sent.
pub(super) fn at_hand(
    state: &ApiState,
    principal: &Principal,
    headers: &HeaderMap,
    segment: &str,
) -> Option<Response<Body>> {
    // A document at hand was asked for by a good id, so there is nothing more to check.
    let served = state.0.documents.at_hand(segment)?;
    Some(match principal.restricted_to() {
        Ok(own) if served.concerns(own) => document(headers, &served),
        Ok(_) => Problem::session_not_found().into_response(),
        Err(problem) => problem.into_response(),
    })
}

/// One document; `?wait=` long-polls. To a teacher the sessions of others do not exist.
pub(super) async fn one(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    // Nothing of the body is read; holding it across an await would hold the request with it.
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    let principal = state.0.auth.principal(headers).await?;
    let own = principal.restricted_to()?;
    let segment = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let id = query::decode_segment(segment)
        .ok_or_else(|| Problem::invalid_parameter("sessionId: its escapes do not give text"))?;
    let id = SessionId::parse(id).map_err(|invalid| Problem::invalid_parameter(format!("sessionId: {invalid}")))?;
    let seconds = Parameters::parse(parts.uri.query(), &["wait"])?.wait_seconds()?;
    if seconds == 0 {
        let served = state.0.documents.get(&id).await?.filter(|served| served.concerns(own));
        return served.map(|served| document(headers, &served)).ok_or_else(Problem::session_not_found);
    }
    let served = changed_within(&state, headers, &id, own, Duration::from_secs(seconds)).await?;
    let served = served.ok_or_else(Problem::session_not_found)?;
    // Kept for a moment, it would answer the next long-poll at once.
    Ok(tagged(headers, served.etag, served.body, &NO_CACHE))
}

/// The document as soon as it exists and `If-None-Match` does not know it, or as it is when the time is over or the
/// service drains.
async fn changed_within(
    state: &ApiState,
    headers: &HeaderMap,
    id: &SessionId,
    own: Option<&TeacherId>,
    time: Duration,
) -> Result<Option<Served>, Problem> {
    let end = Instant::now() + time;
    let subscription = state.0.waits.subscribe(id).ok_or_else(Problem::too_many_waits)?;
    let drain = state.0.shutdown.token();
    loop {
        // Listening starts before looking, so no change falls between the two.
        let changed = subscription.changed();
        let served = state.0.documents.get(id).await?.filter(|served| served.concerns(own));
        let is_news = served.as_ref().is_some_and(|served| !etag::is_known(headers, &served.etag));
        if is_news || Instant::now() >= end || drain.is_cancelled() {
            return Ok(served);
        }
        tokio::select! {
            () = changed => {}
            () = drain.cancelled() => {}
            () = tokio::time::sleep_until(end.min(Instant::now() + LOOK_AGAIN)) => {}
        }
    }
}

/// A batch, or a page of the list; a teacher sees their own sessions only.
pub(super) async fn many(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let principal = state.0.auth.principal(&parts.headers).await?;
    let own = principal.restricted_to()?;
    let known = ["sessionIds", "teacherId", "status", "startsFrom", "startsTo", "limit", "cursor"];
    let parameters = Parameters::parse(parts.uri.query(), &known)?;
    let body = if parameters.has("sessionIds") {
        batch(&state, &parameters, own).await?
    } else {
        page(&state, &parameters, &principal).await?
    };
    let tag = etag::of_body(&body);
    Ok(tagged(&parts.headers, tag, body.into(), &NO_CACHE))
}

async fn batch(state: &ApiState, parameters: &Parameters, own: Option<&TeacherId>) -> Result<String, Problem> {
    let ids = parameters.session_ids()?;
    let mut served = state.0.documents.get_all(&ids).await?;
    for found in &mut served {
        found.take_if(|document| !document.concerns(own));
    }
    let missing: Vec<&str> =
        ids.iter().zip(&served).filter(|(_, served)| served.is_none()).map(|(id, _)| id.as_str()).collect();
    let documents = served
        .iter()
        .flatten()
        .map(|served| std::str::from_utf8(&served.body).expect("the body of a document was made of a String"));
    Ok(format!(r#"{{"items":[{}],"missing":{}}}"#, joined(documents), json!(missing)))
}

async fn page(state: &ApiState, parameters: &Parameters, principal: &Principal) -> Result<String, Problem> {
    let filter = parameters.filter(principal.restricted_to()?)?;
    if let Some(teacher) = &filter.teacher {
        principal.require_reader_of(teacher)?;
    }
    let page = in_time(state.0.store.list_documents(&filter)).await?;
    let next = page.next.as_ref().map(|place| query::cursor(place, &filter));
    let documents = page.items.iter().map(|document| document.json.as_str());
    Ok(format!(r#"{{"items":[{}],"nextCursor":{}}}"#, joined(documents), json!(next)))
}

/// Documents are stored as JSON and sent as they are, without being parsed.
fn joined<'a>(documents: impl Iterator<Item = &'a str>) -> String {
    let mut text = String::new();
    for document in documents {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(document);
    }
    text
}

fn document(headers: &HeaderMap, served: &Served) -> Response<Body> {
    let mut response = tagged(headers, served.etag.clone(), served.body.clone(), served.freshness.cache_control());
    if served.freshness == Freshness::Changing {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    response
}

/// 200 with the body, or 304 when `If-None-Match` knows the tag.
pub(super) fn tagged(
    headers: &HeaderMap,
    tag: HeaderValue,
    body: Bytes,
    cache_control: &'static HeaderValue,
) -> Response<Body> {
    let is_known = etag::is_known(headers, &tag);
    let mut response = Response::new(if is_known { Body::empty() } else { Body::from(body) });
    // For all that the edge adds too, so that the map grows once.
    let into = response.headers_mut();
    into.reserve(12);
    if !is_known {
        into.insert(header::CONTENT_TYPE, JSON);
    }
    into.insert(header::ETAG, tag);
    into.insert(header::CACHE_CONTROL, cache_control.clone());
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response
}
