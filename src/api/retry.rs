//! `POST /api/google/meet/retry/{sessionId}`: the retry button of WordPress and of the booking backend.
//!
//! It changes the database and nothing else; the reconciler does the rest within a second. `Idempotency-Key`
//! (draft-ietf-httpapi-idempotency-key-header) makes a repeated request harmless: see [`crate::store::Idempotency`] for
//! why a request that is still running is waited for instead of being answered with 409.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::ApiState;
use super::problem::Problem;
use super::query::{self, Parameters};
use crate::model::{SessionId, digest, short_hex};
use crate::plan::Refusal;
use crate::store::{Actor, Idempotency, RetryAnswer, Role};

/// Where the button is; the session id is the rest of the path.
const PREFIX: &str = "/api/google/meet/retry/";

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Says that this answer was given before and nothing was done for it now.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A session is retried this often at most: a call to Google takes a second or two, and an impatient click would only
/// repeat what is under way.
const SPACING_MS: i64 = 10_000;

/// Characters of a key.
const KEY_MAX: usize = 255;

/// Makes the session's unfinished work due at once: 202 with the status document, or 409 with the reason.
pub(super) async fn retry(State(state): State<ApiState>, request: Request) -> Result<Response<Body>, Problem> {
    // Nothing of the body is read.
    let (parts, _) = request.into_parts();
    let principal = state.0.auth.principal(&parts.headers).await?;
    principal.require(Role::Operator)?;
    Parameters::parse(parts.uri.query(), &[])?;
    let segment = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default();
    let id = query::decode_segment(segment)
        .ok_or_else(|| Problem::invalid_parameter("sessionId: its escapes do not give text"))?;
    let id = SessionId::parse(id).map_err(|invalid| Problem::invalid_parameter(format!("sessionId: {invalid}")))?;
    let key = idempotency_key(&parts.headers)?;
    let request_hash = short_hex(&digest(&[b"retry", id.as_str().as_bytes()]));
    let once = key.as_ref().map(|key| Idempotency { key, request_hash: &request_hash });
    let now = state.0.clock.now();
    let credential = Actor::named(principal.name());
    match state.0.store.retry_once(&id, &credential, once.as_ref(), SPACING_MS, now).await? {
        RetryAnswer::Unknown => Err(Problem::session_not_found()),
        RetryAnswer::KeyReused => Err(key_reused()),
        RetryAnswer::TooSoon { until } => Err(too_soon(until.since(now))),
        RetryAnswer::Given { status: 202, body, replayed } => Ok(accepted(body, replayed)),
        RetryAnswer::Given { body, .. } => Err(cannot_help(&body)),
    }
}

fn accepted(document: String, replayed: bool) -> Response<Body> {
    let mut response = Response::new(Body::from(document));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The header is a string of RFC 8941 (in quotes); keys without quotes are common and taken, too.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value
        .to_str()
        .ok()
        .map(str::trim)
        .map(|text| text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text));
    match key {
        Some(key) if (1..=KEY_MAX).contains(&key.len()) && values.next().is_none() => Ok(Some(key.to_owned())),
        _ => Err(Problem::invalid_parameter(format!(
            "Idempotency-Key: send it once, with 1 to {KEY_MAX} visible ASCII characters, such as a UUID"
        ))),
    }
}

/// 409: the reason is the same that `session retry` gives.
fn cannot_help(body: &str) -> Problem {
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let text = |name: &str| body[name].as_str().unwrap_or_default();
    let code = Refusal::CODES.into_iter().find(|code| *code == text("code")).unwrap_or("RETRY_CANNOT_HELP");
    let detail = format!("{}. Instead: {}", text("reason"), text("nextStep"));
    Problem::new(StatusCode::CONFLICT, code, "A retry cannot help", detail)
}

/// 422, as the draft asks for (section 2.7).
fn key_reused() -> Problem {
    let detail = "this Idempotency-Key was used for another session within 24 hours; use a new key for each action";
    Problem::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        "IDEMPOTENCY_KEY_REUSED",
        "The key belongs to another request",
        detail,
    )
}

fn too_soon(wait_ms: i64) -> Problem {
    let seconds = u16::try_from(wait_ms.div_euclid(1000) + 1).unwrap_or(u16::MAX);
    let detail = "this session was retried a moment ago; its status says what came of it";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, "RETRY_TOO_SOON", "The last retry is too fresh", detail)
        .retry_after(seconds)
}
