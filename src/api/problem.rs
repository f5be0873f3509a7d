//! Every answer that is not a success, in one shape: RFC 9457 `application/problem+json`.
//!
//! A handler returns a [`Problem`]; it travels in the response's extensions to the edge of the router, which knows the
//! request id, writes the body and logs the cause. So no other place formats an error, and a 5xx says nothing of the
//! inside.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;

use crate::store::StoreError;

/// One problem. `code` is for programs and never changes its meaning; `detail` is for people.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The status code.
    pub status: StatusCode,
    /// SCREAMING_SNAKE; also the end of `type`.
    pub code: &'static str,
    /// The same for every occurrence of the code.
    pub title: &'static str,
    /// What to do about this occurrence.
    pub detail: String,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u16>,
    /// For the log alone: the chain of causes.
    pub cause: Option<String>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, title, detail: detail.into(), retry_after: None, cause: None }
    }

    pub(super) fn retry_after(mut self, seconds: u16) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// 400: a parameter is not what it should be.
    pub fn invalid_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_PARAMETER", "A parameter is not valid", detail)
    }

    /// 400: a query parameter that the route does not know. Refused, because a misspelled filter would give everything.
    pub fn unknown_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "UNKNOWN_PARAMETER", "A query parameter is not known", detail)
    }

    /// 400: a cursor that we did not make, or not for these filters.
    pub fn invalid_cursor() -> Self {
        let detail = "use nextCursor of the page before, with the same filters, or start without a cursor";
        Self::new(StatusCode::BAD_REQUEST, "INVALID_CURSOR", "The cursor is not valid", detail)
    }

    /// 401 without a usable `Authorization` header.
    pub fn token_missing() -> Self {
        let detail = "send the header `Authorization: Bearer <token>`";
        Self::new(StatusCode::UNAUTHORIZED, "TOKEN_MISSING", "A token is needed", detail)
    }

    /// 401 with a token that is malformed, unknown or revoked; which of them is not said.
    pub fn token_invalid() -> Self {
        let detail = "the token is not known or was revoked";
        Self::new(StatusCode::UNAUTHORIZED, "TOKEN_INVALID", "The token is not accepted", detail)
    }

    /// 401 with a JWT whose signature is right but that is not for here or not for now.
    pub fn token_refused(why: &str) -> Self {
        let detail = format!("the token's signature is right, but {why}");
        Self::new(StatusCode::UNAUTHORIZED, "TOKEN_INVALID", "The token is not accepted", detail)
    }

    /// 503: a JWT names a key, and the published keys were never read.
    pub fn keys_unavailable() -> Self {
        let detail = "the keys that tokens are verified with cannot be read now; try again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "KEYS_UNAVAILABLE", "Tokens cannot be verified", detail).retry_after(10)
    }

    /// 403: a token with neither a role nor a teacher.
    pub fn no_role() -> Self {
        let detail = "the token has neither a role (reader, operator, admin) nor a teacherId";
        Self::new(StatusCode::FORBIDDEN, "ROLE_MISSING", "The token may not do this", detail)
    }

    /// 403: a teacher asked for what concerns another one.
    pub fn another_teacher() -> Self {
        let detail = "a teacher may only ask for what is their own";
        Self::new(StatusCode::FORBIDDEN, "ANOTHER_TEACHER", "The token may not do this", detail)
    }

    /// 429: more requests than `API_RATE_LIMIT`.
    pub fn rate_limited(wait: Duration) -> Self {
        // Rounded up, or the next request would come too early.
        let seconds = u16::try_from(wait.as_secs()).unwrap_or(u16::MAX).saturating_add(1);
        let detail = "this credential (or, without one, this address) asks too often; Retry-After says when to go on";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED", "Too many requests", detail).retry_after(seconds)
    }

    /// 403: the token is good but its role is not enough.
    pub fn role_too_low(needed: &str, has: &str) -> Self {
        let detail = format!("this needs the role {needed}; the token has {has}");
        Self::new(StatusCode::FORBIDDEN, "ROLE_TOO_LOW", "The token may not do this", detail)
    }

    /// 404: no event named this session yet.
    pub fn session_not_found() -> Self {
        let detail = "no booking event named this session so far; ?wait=20 waits for one";
        Self::new(StatusCode::NOT_FOUND, "SESSION_NOT_FOUND", "The session is not known", detail)
    }

    /// 404: neither a session nor a grant of this teacher was ever seen.
    pub fn teacher_not_found() -> Self {
        let detail = "no booking event named this teacher so far, and no Google account was ever connected for them";
        Self::new(StatusCode::NOT_FOUND, "TEACHER_NOT_FOUND", "The teacher is not known", detail)
    }

    /// 404: no such route.
    pub fn route_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "ROUTE_NOT_FOUND", "There is nothing here", "no route has this path")
    }

    /// 413: more than the API reads.
    pub fn body_too_large(bytes_max: usize) -> Self {
        let detail = format!("at most {bytes_max} bytes are read");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE", "The body is too large", detail)
    }

    /// 503: the work took too long.
    pub fn timeout() -> Self {
        let detail = "the answer took too long; try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TIMEOUT", "The answer took too long", detail).retry_after(5)
    }

    /// 503: as many long-polls as we hold are under way.
    pub fn too_many_waits() -> Self {
        let detail = "too many requests wait at once; read without ?wait, or try again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOO_MANY_WAITS", "Too many requests wait", detail).retry_after(5)
    }

    /// 500: a fault of ours.
    pub fn internal(cause: impl Into<String>) -> Self {
        let detail = "the fault is ours; the request id finds it in the log";
        let mut problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "Something failed inside", detail);
        problem.cause = Some(cause.into());
        problem
    }

    /// For an answer that axum made: 405, 415 and the like.
    pub fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                let detail = "the header Allow names the methods of this route";
                Self::new(status, "METHOD_NOT_ALLOWED", "The route does not have this method", detail)
            }
            StatusCode::NOT_FOUND => Self::route_not_found(),
            StatusCode::PAYLOAD_TOO_LARGE => Self::body_too_large(super::edge::BODY_BYTES_MAX),
            _ if status.is_server_error() => Self::internal(format!("a bare {status}")),
            _ => Self::new(status, "REQUEST_REFUSED", "The request was not understood", status.to_string()),
        }
    }

    /// The body, and a response that is complete but for what the edge adds to every answer.
    pub fn respond(&self, request_id: &str) -> Response<Body> {
        let body = json!({
            "type": format!("urn:meet-projector:problem:{}", self.code.to_ascii_lowercase().replace('_', "-")),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
            "requestId": request_id,
        });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6750 section 3: without credentials the challenge says nothing of an error.
            let challenge = if self.code == "TOKEN_MISSING" { "Bearer" } else { "Bearer error=\"invalid_token\"" };
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> axum::response::Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let mut cause = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            cause = format!("{cause}: {inner}");
            source = inner.source();
        }
        if !error.is_transient() {
            return Self::internal(cause);
        }
        let detail = "the database does not answer; try again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let mut problem = Self::new(status, "DATABASE_UNAVAILABLE", "The database is not reachable", detail);
        problem.cause = Some(cause);
        problem.retry_after(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_5xx_says_nothing_of_the_inside() {
        let problem = Problem::from(StoreError::Failed { operation: "document", source: "hunter2 in /secret".into() });
        assert_eq!(problem.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(problem.cause.as_deref().is_some_and(|cause| cause.contains("hunter2")), "the log gets the cause");
        assert!(!problem.detail.contains("hunter2") && !problem.detail.contains("document"));
    }
}
