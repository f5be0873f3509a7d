//! `GET /api/google/meet/{sessionId}` and `GET /api/google/meet`: documents as the store has them. Never calls Google.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use super::cache::Served;
use super::problem::Problem;
use super::query::{self, Parameters};
use super::{ApiState, etag};
use crate::model::SessionId;
use crate::store::Role;

/// Where the documents are; the session id is the rest of the path.
pub(super) const PREFIX: &str = "/api/google/meet/";

/// How often a long-poll looks by itself: changes of other processes are not announced here.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One document; `?wait=` long-polls.
pub(super) async fn one(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    // Nothing of the body is read; holding it across an await would hold the request with it.
    let (parts, _) = request.into_parts();
    let headers = &parts.headers;
    state.0.auth.principal(headers).await?.require(Role::Reader)?;
    let segment = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let query = parts.uri.query();
    // A document at hand was asked for by a good id, so the usual read checks nothing more.
    if query.is_none()
        && let Some(served) = state.0.documents.at_hand(segment)
    {
        return Ok(document(headers, &served));
    }
    let id = query::decode_segment(segment)
        .ok_or_else(|| Problem::invalid_parameter("sessionId: its escapes do not give text"))?;
    let id = SessionId::parse(id).map_err(|invalid| Problem::invalid_parameter(format!("sessionId: {invalid}")))?;
    let seconds = Parameters::parse(query, &["wait"])?.wait_seconds()?;
    let served = if seconds == 0 {
        state.0.documents.get(&id).await?
    } else {
        changed_within(&state, headers, &id, Duration::from_secs(seconds)).await?
    };
    served.map(|served| document(headers, &served)).ok_or_else(Problem::session_not_found)
}

/// The document as soon as it exists and `If-None-Match` does not know it, or as it is when the time is over or the
/// service drains.
async fn changed_within(
    state: &ApiState,
    headers: &HeaderMap,
    id: &SessionId,
    time: Duration,
) -> Result<Option<Served>, Problem> {
    let end = Instant::now() + time;
    let subscription = state.0.waits.subscribe(id).ok_or_else(Problem::too_many_waits)?;
    let drain = state.0.shutdown.token();
    loop {
        // Listening starts before looking, so no change falls between the two.
        let changed = subscription.changed();
        let served = state.0.documents.get(id).await?;
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

/// A batch, or a page of the list.
pub(super) async fn many(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    state.0.auth.principal(&parts.headers).await?.require(Role::Reader)?;
    let known = ["sessionIds", "teacherId", "status", "startsFrom", "startsTo", "limit", "cursor"];
    let parameters = Parameters::parse(parts.uri.query(), &known)?;
    let body = if parameters.has("sessionIds") {
        batch(&state, &parameters).await?
    } else {
        page(&state, &parameters).await?
    };
    let tag = etag::of_body(&body);
    Ok(tagged(&parts.headers, tag, body.into()))
}

async fn batch(state: &ApiState, parameters: &Parameters) -> Result<String, Problem> {
    let ids = parameters.session_ids()?;
    let served = state.0.documents.get_all(&ids).await?;
    let missing: Vec<&str> =
        ids.iter().zip(&served).filter(|(_, served)| served.is_none()).map(|(id, _)| id.as_str()).collect();
    let documents = served
        .iter()
        .flatten()
        .map(|served| std::str::from_utf8(&served.body).expect("the body of a document was made of a String"));
    Ok(format!(r#"{{"items":[{}],"missing":{}}}"#, joined(documents), json!(missing)))
}

async fn page(state: &ApiState, parameters: &Parameters) -> Result<String, Problem> {
    let filter = parameters.filter()?;
    let page = state.0.store.list_documents(&filter).await?;
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
    tagged(headers, served.etag.clone(), served.body.clone())
}

/// 200 with the body, or 304 when `If-None-Match` knows the tag.
pub(super) fn tagged(headers: &HeaderMap, tag: HeaderValue, body: Bytes) -> Response<Body> {
    let known = etag::is_known(headers, &tag);
    let mut response = Response::new(if known { Body::empty() } else { Body::from(body) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    } else {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response.headers_mut().insert(header::ETAG, tag);
    // The link is for its readers alone, and its state may change any second.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    response
}
