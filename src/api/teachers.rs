//! `GET /api/google/status/{teacherId}` and `GET /api/google/teachers`: teachers' connections to Google as the store
//! has them. Never calls Google, and never shows a token.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use serde::Serialize;

use super::meet::{NO_CACHE, tagged};
use super::problem::Problem;
use super::query::{Parameters, decode_segment};
use super::{ApiState, etag};
use crate::model::{TeacherId, UnixMillis};
use crate::store::teachers::{Connection, ConnectionFilter, token_status, token_statuses};
use crate::store::{Role, TokenStatus};

const PREFIX: &str = "/api/google/status/";

/// Teachers on a page unless asked otherwise, and at most.
const LIMIT: i64 = 50;
const LIMIT_MAX: i64 = 100;

/// A connection as readers get it: every member is there, null rather than missing.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TeacherDocument<'a> {
    teacher_id: &'a str,
    connected: bool,
    token_status: &'static str,
    google_email: Option<&'a str>,
    scopes: Option<Vec<&'a str>>,
    connected_at: Option<String>,
    last_refresh_at: Option<String>,
    grant_ends_at: Option<String>,
    last_error: Option<&'a str>,
    blocked_sessions: i64,
    next_blocked_starts_at: Option<String>,
}

/// The document of a connection.
pub(crate) fn document(connection: &Connection) -> TeacherDocument<'_> {
    let grant = connection.grant.as_ref();
    let time = |moment: Option<UnixMillis>| moment.map(UnixMillis::to_rfc3339);
    TeacherDocument {
        teacher_id: connection.teacher.as_str(),
        connected: connection.status() == Some(TokenStatus::Connected),
        token_status: token_status(connection.status()),
        google_email: grant.and_then(|grant| grant.email.as_deref()),
        scopes: grant.map(|grant| grant.scopes.split_ascii_whitespace().collect()),
        connected_at: time(grant.map(|grant| grant.connected_at)),
        last_refresh_at: time(grant.and_then(|grant| grant.last_refresh_at)),
        grant_ends_at: time(grant.and_then(|grant| grant.ends_at)),
        last_error: grant.and_then(|grant| grant.last_error.as_deref()),
        blocked_sessions: connection.blocked_sessions,
        next_blocked_starts_at: time(connection.next_blocked_starts_at),
    }
}

/// A page of the list.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page<'a> {
    items: Vec<TeacherDocument<'a>>,
    next_cursor: Option<String>,
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and flags always serialise")
}

/// One teacher.
pub(super) async fn one(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    let principal = state.0.auth.principal(&parts.headers).await?;
    let segment = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let id =
        decode_segment(segment).ok_or_else(|| Problem::invalid_parameter("teacherId: its escapes do not give text"))?;
    let id = TeacherId::parse(id).map_err(|invalid| Problem::invalid_parameter(format!("teacherId: {invalid}")))?;
    principal.require_reader_of(&id)?;
    Parameters::parse(parts.uri.query(), &[])?;
    let connection = state.0.store.connection(&id, state.0.clock.now()).await?;
    let body = json(&document(&connection.ok_or_else(Problem::teacher_not_found)?));
    Ok(tagged(&parts.headers, etag::of_body(&body), body.into(), &NO_CACHE))
}

/// A page of the list.
pub(super) async fn many(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    let (parts, _) = request.into_parts();
    state.0.auth.principal(&parts.headers).await?.require(Role::Reader)?;
    let parameters = Parameters::parse(parts.uri.query(), &["tokenStatus", "blocked", "limit", "cursor"])?;
    let filter = filter(&parameters)?;
    let page = state.0.store.connections(&filter, state.0.clock.now()).await?;
    let items = page.items.iter().map(document).collect();
    let body = json(&Page { items, next_cursor: page.next.as_ref().map(|teacher| cursor(teacher, &filter)) });
    Ok(tagged(&parts.headers, etag::of_body(&body), body.into(), &NO_CACHE))
}

fn filter(parameters: &Parameters) -> Result<ConnectionFilter, Problem> {
    let words = parameters.get("tokenStatus").unwrap_or_default().split(',').filter(|word| !word.is_empty());
    let statuses = words.map(|word| token_statuses().find(|known| *known == word)).collect::<Option<Vec<_>>>();
    let mut filter = ConnectionFilter {
        statuses: statuses.ok_or_else(|| {
            let known = token_statuses().collect::<Vec<_>>().join(", ");
            Problem::invalid_parameter(format!("tokenStatus: allowed are {known}, separated by commas"))
        })?,
        blocked: match parameters.get("blocked") {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(_) => return Err(Problem::invalid_parameter("blocked: allowed are true and false")),
        },
        limit: parameters
            .get("limit")
            .map_or(Some(LIMIT), |text| text.parse().ok())
            .filter(|limit| (1..=LIMIT_MAX).contains(limit))
            .ok_or_else(|| Problem::invalid_parameter(format!("limit: a whole number from 1 to {LIMIT_MAX}")))?,
        after: None,
    };
    if let Some(cursor) = parameters.get("cursor") {
        filter.after = Some(cursor_place(cursor, &filter).ok_or_else(Problem::invalid_cursor)?);
    }
    Ok(filter)
}

/// The cursor to the page after `teacher`: opaque to readers, and good for the same filters only.
fn cursor(teacher: &TeacherId, filter: &ConnectionFilter) -> String {
    data_encoding::BASE64URL_NOPAD.encode(format!("1.{teacher}.{}", fingerprint(filter)).as_bytes())
}

fn cursor_place(cursor: &str, filter: &ConnectionFilter) -> Option<TeacherId> {
    let text = String::from_utf8(data_encoding::BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?).ok()?;
    let mut parts = text.split('.');
    let (version, teacher, filters) = (parts.next()?, parts.next()?, parts.next()?);
    (version == "1" && parts.next().is_none() && filters == fingerprint(filter))
        .then(|| TeacherId::parse(teacher).ok())
        .flatten()
}

/// What the filters are, in short; the limit may change from page to page.
fn fingerprint(filter: &ConnectionFilter) -> String {
    let blocked = filter.blocked.map_or("", |blocked| if blocked { "true" } else { "false" });
    let digest = crate::model::digest(&[filter.statuses.join(",").as_bytes(), blocked.as_bytes()]);
    data_encoding::HEXLOWER.encode(&digest[..4])
}
