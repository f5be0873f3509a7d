//! Google's error bodies, in the exact shapes a client has to read.
//!
//! Calendar: `{"error":{"errors":[{"domain","reason","message","location"?}],"code","message"}}`
//! (<https://developers.google.com/workspace/calendar/api/guides/errors>). Token endpoint: RFC 6749 §5.2.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// An error answer. Only `status` and `reason` have to be given; the rest is filled in as Google would.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// `error.errors[0].reason` of the Calendar API, or `error` of the token endpoint.
    pub reason: String,
    /// `error.message`; empty means the text Google uses for that reason.
    #[serde(default)]
    pub message: String,
    /// `error.errors[0].location`, a header's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// `Retry-After` in seconds; Google is not known to send it on Calendar calls, proxies before it do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// Sent in place of the JSON body, as `text/html`: what a load balancer answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_body: Option<String>,
}

impl Refusal {
    /// With the message that Google uses for `reason`.
    pub fn of(status: u16, reason: &str) -> Self {
        Self::new(status, reason, "")
    }

    /// With a message of its own.
    pub fn new(status: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.to_owned(),
            message: message.into(),
            location: None,
            retry_after_s: None,
            raw_body: None,
        }
    }

    /// A `502` with a page of HTML, as from a proxy in front of Google.
    pub fn html_502() -> Self {
        Self {
            raw_body: Some("<!DOCTYPE html><title>Error 502 (Server Error)!!1</title>".to_owned()),
            ..Self::of(502, "badGateway")
        }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid", message)
    }

    pub(super) fn not_found() -> Self {
        Self::of(404, "notFound")
    }

    pub(super) fn condition_not_met() -> Self {
        Self { location: Some("If-Match".to_owned()), ..Self::of(412, "conditionNotMet") }
    }

    pub(super) fn unauthorized() -> Self {
        Self { location: Some("Authorization".to_owned()), ..Self::of(401, "authError") }
    }

    fn domain(&self) -> &'static str {
        match self.reason.as_str() {
            "rateLimitExceeded"
            | "userRateLimitExceeded"
            | "quotaExceeded"
            | "dailyLimitExceeded"
            | "variableTermLimitExceeded"
            | "dailyLimitExceededUnreg"
            | "accessNotConfigured" => "usageLimits",
            "timeRangeEmpty" | "forbiddenForNonOrganizer" | "eventDurationExceedsLimit" | "requiredAccessLevel" => {
                "calendar"
            }
            _ => "global",
        }
    }

    fn text(&self) -> &str {
        if !self.message.is_empty() {
            return &self.message;
        }
        match self.reason.as_str() {
            "duplicate" => "The requested identifier already exists.",
            "notFound" => "Not Found",
            "deleted" => "Resource has been deleted",
            "conditionNotMet" => "Precondition Failed",
            "authError" => "Invalid Credentials",
            "insufficientPermissions" => "Request had insufficient authentication scopes.",
            "forbidden" => "Forbidden",
            "rateLimitExceeded" => "Rate Limit Exceeded",
            "userRateLimitExceeded" => "User Rate Limit Exceeded",
            "quotaExceeded" => "Calendar usage limits exceeded.",
            "accessNotConfigured" => "Google Calendar API has not been used in this project before or it is disabled.",
            "notACalendarUser" => "The user must be signed up for Google Calendar.",
            "timeRangeEmpty" => "The specified time range is empty.",
            "conflict" => "Conflict",
            "backendError" => "Backend Error",
            "invalid_grant" => "Token has been expired or revoked.",
            "invalid_client" => "The OAuth client was not found.",
            "admin_policy_enforced" => {
                "The Google Account is unable to authorize one or more scopes requested due to the policies of their \
                 Google Workspace administrator."
            }
            _ if self.status >= 500 => "Internal Error",
            _ => "Bad Request",
        }
    }

    pub(super) fn calendar_body(&self) -> String {
        let mut first = json!({"domain": self.domain(), "reason": self.reason, "message": self.text()});
        if let Some(location) = &self.location {
            first["locationType"] = "header".into();
            first["location"] = location.as_str().into();
        }
        let mut error = json!({"errors": [first], "code": self.status, "message": self.text()});
        if self.reason == "insufficientPermissions" {
            error["status"] = "PERMISSION_DENIED".into();
            error["details"] = json!([{
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": "ACCESS_TOKEN_SCOPE_INSUFFICIENT",
                "domain": "googleapis.com",
                "metadata": {"service": "calendar-json.googleapis.com"},
            }]);
        }
        json!({ "error": error }).to_string()
    }

    pub(super) fn calendar_response(&self) -> Response<Body> {
        self.response(Self::calendar_body)
    }

    pub(super) fn oauth_response(&self) -> Response<Body> {
        self.response(|refusal| {
            let mut body = json!({"error": refusal.reason, "error_description": refusal.text()});
            if refusal.message.contains("invalid_rapt") {
                body["error_subtype"] = "invalid_rapt".into();
            }
            body.to_string()
        })
    }

    fn response(&self, body: fn(&Self) -> String) -> Response<Body> {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let (kind, body) = match &self.raw_body {
            Some(raw) => (HeaderValue::from_static("text/html; charset=UTF-8"), raw.clone()),
            None => (HeaderValue::from_static("application/json; charset=UTF-8"), body(self)),
        };
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
