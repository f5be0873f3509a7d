//! Answers of the token endpoint.

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::retry_after::retry_after_ms;
use super::{Class, GoogleError, word};
use crate::plan::Code;

/// RFC 6749 §5.2, and Google's `error_subtype`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    error: String,
    error_subtype: String,
}

/// Classifies an answer of the token endpoint that is no success.
///
/// Only `invalid_grant` speaks against the grant, and only its holder can tell whether it is still the newest one. What
/// speaks against our client ([`Class::Misconfigured`]) must leave every teacher's state alone.
///
/// <https://developers.google.com/identity/protocols/oauth2/web-server#errors>
pub fn classify_token(status: u16, headers: &HeaderMap, body: &[u8]) -> GoogleError {
    let Body { error, error_subtype } = serde_json::from_slice(body).unwrap_or_default();
    let (class, meaning) = match (status, error.as_str()) {
        // 408, 429 and 5xx first: an outage of Google must never end a grant, whatever stands in the body.
        (300..=399 | 408 | 429 | 500.., _) | (_, "server_error" | "temporarily_unavailable" | "internal_failure") => {
            (Class::Transient, "a passing failure on the way or at Google")
        }
        (_, "admin_policy_enforced") => (Class::AdminBlocked, "the Workspace administrator blocks this app"),
        (_, "invalid_grant") if error_subtype == "admin_policy_enforced" => {
            (Class::AdminBlocked, "the Workspace administrator blocks this app")
        }
        (_, "invalid_grant") => (Class::ReconnectRequired, "the grant has expired or was revoked"),
        (
            _,
            "invalid_client"
            | "deleted_client"
            | "disabled_client"
            | "unauthorized_client"
            | "unsupported_grant_type"
            | "invalid_request"
            | "invalid_scope"
            | "redirect_uri_mismatch"
            | "org_internal",
        ) => (Class::Misconfigured, "the OAuth client of this installation is not set up right"),
        (_, "") => (Class::Misconfigured, "the answer is not of a token endpoint, see GOOGLE_TOKEN_URI and proxies"),
        _ => (Class::Permanent(Code::InvalidRequest), "the request is refused"),
    };
    let reason = word(&error).map(str::to_owned);
    let mut message = format!("token: Google answered {status}");
    if let Some(reason) = &reason {
        message.extend([" (", reason]);
        if let Some(subtype) = word(&error_subtype) {
            message.extend([", ", subtype]);
        }
        message.push(')');
    }
    message.extend([": ", meaning]);
    GoogleError {
        class,
        status: Some(status),
        reason,
        retry_after_ms: retry_after_ms(headers),
        // Google does not rotate refresh tokens on use, so a refresh that took effect unseen costs nothing.
        is_ambiguous: false,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class_of(status: u16, body: &str) -> Class {
        classify_token(status, &HeaderMap::new(), body.as_bytes()).class
    }

    #[test]
    fn only_invalid_grant_speaks_against_the_grant() {
        let invalid_grant = r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#;
        assert_eq!(class_of(400, invalid_grant), Class::ReconnectRequired);
        let rapt = r#"{"error":"invalid_grant","error_subtype":"invalid_rapt","error_description":"reauth"}"#;
        let error = classify_token(400, &HeaderMap::new(), rapt.as_bytes());
        assert_eq!(error.class, Class::ReconnectRequired);
        assert!(error.message.contains("invalid_rapt"), "{error}");
        assert_eq!(error.reason.as_deref(), Some("invalid_grant"));
        for status in [408, 429, 500, 502, 503, 504] {
            assert_eq!(class_of(status, invalid_grant), Class::Transient, "{status}");
            assert_eq!(class_of(status, "<html>"), Class::Transient, "{status}");
        }
    }

    #[test]
    fn our_own_mistakes_are_told_from_theirs() {
        for (status, error, class) in [
            (401, "invalid_client", Class::Misconfigured),
            (401, "deleted_client", Class::Misconfigured),
            (400, "unauthorized_client", Class::Misconfigured),
            (401, "unauthorized_client", Class::Misconfigured),
            (400, "unsupported_grant_type", Class::Misconfigured),
            (400, "redirect_uri_mismatch", Class::Misconfigured),
            (400, "invalid_request", Class::Misconfigured),
            (400, "admin_policy_enforced", Class::AdminBlocked),
            (400, "temporarily_unavailable", Class::Transient),
            (400, "something_new", Class::Permanent(Code::InvalidRequest)),
        ] {
            assert_eq!(class_of(status, &format!(r#"{{"error":"{error}"}}"#)), class, "{error}");
        }
        assert_eq!(class_of(404, "<html>not here</html>"), Class::Misconfigured);
        assert_eq!(class_of(400, r#"{"error":{"code":400}}"#), Class::Misconfigured);
    }

    #[test]
    fn descriptions_are_not_passed_on() {
        let body = r#"{"error":"invalid_grant","error_description":"Bad 1//MARKER of ana@example.com"}"#;
        let error = classify_token(400, &HeaderMap::new(), body.as_bytes());
        assert!(!format!("{error:?} {error}").contains("MARKER"));
    }
}
