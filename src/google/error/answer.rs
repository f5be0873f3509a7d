//! Answers of the Calendar API.

use reqwest::header::HeaderMap;
use serde::Deserialize;

use super::retry_after::retry_after_ms;
use super::{Class, GoogleError, word};
use crate::plan::Code;

/// `{"error": …}` in both forms. Everything may be missing.
#[derive(Default, Deserialize)]
struct Envelope {
    #[serde(default)]
    error: Body,
}

/// What stands under `error`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Body {
    message: String,
    status: String,
    errors: Vec<Item>,
    details: Vec<Item>,
}

/// An element of `errors` (old form) or `details` (new form); other members of both are of no use here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Item {
    reason: String,
    message: String,
    location: String,
}

/// What a status without a known reason means.
fn by_status(operation: &str, status: u16) -> Class {
    match status {
        401 => Class::Unauthorized,
        403 => Class::Permanent(Code::Forbidden),
        404 => Class::NotFound,
        // An insert can only collide with its id; looking at the event is harmless in any case.
        409 if operation == "insert" => Class::Duplicate,
        // 3xx: we follow no redirect, so something that is not Google stands in between.
        300..=399 | 408 | 409 => Class::Transient,
        410 => Class::Deleted,
        412 => Class::Stale,
        429 => Class::RateLimited,
        400..=499 => Class::Permanent(Code::InvalidRequest),
        _ => Class::Transient,
    }
}

/// What a reason means, where it decides. Old form first, then the words of `google.rpc.ErrorInfo`.
fn by_reason(reason: &str) -> Option<Class> {
    Some(match reason {
        "authError" | "ACCESS_TOKEN_EXPIRED" => Class::Unauthorized,
        "userRateLimitExceeded" | "rateLimitExceeded" | "RATE_LIMIT_EXCEEDED" => Class::RateLimited,
        // The anti-abuse limit of the user, which lasts for hours; not a quota of the project.
        "quotaExceeded" => Class::CoolDown,
        // Legacy quotas of the project, and a project or an API that is switched off: an operator must act.
        "dailyLimitExceeded"
        | "dailyLimitExceededUnreg"
        | "variableTermLimitExceeded"
        | "accessNotConfigured"
        | "SERVICE_DISABLED"
        | "BILLING_DISABLED"
        | "CONSUMER_SUSPENDED"
        | "CONSUMER_INVALID" => Class::Misconfigured,
        "insufficientPermissions" | "ACCESS_TOKEN_SCOPE_INSUFFICIENT" => Class::ScopeMissing,
        "forbiddenForNonOrganizer" => Class::Permanent(Code::NotOrganizer),
        "notACalendarUser" => Class::Permanent(Code::CalendarNotFound),
        "forbidden" | "requiredAccessLevel" => Class::Permanent(Code::Forbidden),
        "notFound" => Class::NotFound,
        "duplicate" => Class::Duplicate,
        "conflict" => Class::Transient,
        "deleted" => Class::Deleted,
        "conditionNotMet" => Class::Stale,
        // Only answers to sync tokens and `updatedMin`, which we never send.
        "fullSyncRequired" | "updatedMinTooLongAgo" => Class::Permanent(Code::InvalidRequest),
        _ => return None,
    })
}

/// What each class means, in words for people; completes "insert: Google answered 403 (quotaExceeded): …".
const fn meaning(class: Class) -> &'static str {
    match class {
        Class::Unauthorized => "the access token is not accepted",
        Class::Transient => "a passing failure on the way or at Google",
        Class::RateLimited => "too many requests",
        Class::CoolDown => "the use limits of this calendar are exceeded; Google lifts them after some hours",
        Class::Misconfigured => "the Google project of this installation is not set up right",
        Class::ReconnectRequired => "the grant is no longer valid",
        Class::ScopeMissing => "the grant does not cover the calendar",
        Class::AdminBlocked => "the Workspace administrator blocks this app",
        Class::Duplicate => "the event id is taken",
        Class::Stale => "the event has changed meanwhile",
        Class::NotFound => "no such event or calendar",
        Class::Deleted => "the event is deleted",
        Class::ConferenceRefused => "Google Meet is not allowed on this calendar",
        Class::Permanent(Code::Forbidden) => "no write access",
        Class::Permanent(Code::NotOrganizer) => "the event belongs to another organizer",
        Class::Permanent(Code::CalendarNotFound) => "the account has no calendar",
        Class::Permanent(_) => "the request is refused",
    }
}

/// Classifies an answer of the Calendar API that is no success. `operation` is [`crate::google::Call::operation`].
///
/// Of several reasons the first known one counts, those of `details` before those of `errors`, because the newer form
/// is the more exact one where both are sent (`forbidden` beside `SERVICE_DISABLED`).
pub fn classify(operation: &str, status: u16, headers: &HeaderMap, body: &[u8]) -> GoogleError {
    let is_write = !matches!(operation, "get" | "list");
    let Envelope { error } = serde_json::from_slice(body).unwrap_or_default();
    let Body { message, status: word_of_status, errors, details } = error;
    // A page in HTML with 404 or 410 is not about our event: somebody else answered, or the address is wrong. Taking it
    // for "gone" would end a cancellation that never reached Google.
    let is_foreign = body.trim_ascii().first().is_some_and(|first| *first != b'{');

    let reasons = || details.iter().chain(&errors).map(|item| item.reason.as_str()).filter(|reason| !reason.is_empty());
    let known = reasons().find_map(|reason| by_reason(reason).map(|class| (reason, class)));
    let says = |start: &str| message.starts_with(start) || errors.iter().any(|item| item.message.starts_with(start));

    let class = match (status, known) {
        (500.., _) => Class::Transient,
        (400, _) if says("Invalid conference type value") => Class::ConferenceRefused,
        (400, _) if says("Invalid sequence value") => Class::Stale,
        (404 | 410, None) if is_foreign => Class::Transient,
        // Reasons decide within the statuses they are known to come with; elsewhere the status speaks.
        (400 | 401 | 403 | 404 | 409 | 410 | 412 | 429, Some((_, class))) => class,
        (409, None) if word_of_status == "ALREADY_EXISTS" => Class::Duplicate,
        _ => by_status(operation, status),
    };

    let reason = known.map(|(reason, _)| reason).or_else(|| reasons().next()).or(Some(word_of_status.as_str()));
    let reason = reason.and_then(word).map(str::to_owned);
    let mut sentence = format!("{operation}: Google answered {status}");
    if let Some(reason) = &reason {
        sentence.extend([" (", reason, ")"]);
    }
    sentence.extend([": ", meaning(class)]);
    if is_foreign {
        sentence.push_str("; the answer is not of the Calendar API, see GOOGLE_CALENDAR_API_ROOT and proxies");
    }
    if class == Class::Permanent(Code::InvalidRequest) {
        if let Some(location) = errors.iter().find_map(|item| word(&item.location)) {
            sentence.extend([" at ", location]);
        }
        let plain = plain_words(&message);
        if !plain.is_empty() {
            sentence.extend([", \"", &plain, "\""]);
        }
    }
    GoogleError {
        class,
        status: Some(status),
        reason,
        retry_after_ms: retry_after_ms(headers),
        // 408 and 3xx come from something in between, which does not know whether Google acted.
        is_ambiguous: is_write && matches!(status, 300..=399 | 408 | 500..),
        message: sentence,
    }
}

/// The plain words of a refusal, at most 120 characters: what is left cannot be a token, an address or a link.
fn plain_words(text: &str) -> String {
    let is_plain = |word: &&str| {
        let bare = word.trim_end_matches(['.', ',', ':', ';']);
        bare.len() <= 24 && bare.bytes().all(|b| b.is_ascii_alphabetic())
    };
    let mut plain = String::new();
    for word in text.split_ascii_whitespace().filter(is_plain) {
        if plain.len() + word.len() >= 120 {
            break;
        }
        if !plain.is_empty() {
            plain.push(' ');
        }
        plain.push_str(word);
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn old_form(status: u16, reason: &str, message: &str) -> GoogleError {
        let item = json!({"domain": "global", "reason": reason, "message": message});
        let body = json!({"error": {"errors": [item], "code": status, "message": message}});
        classify("insert", status, &HeaderMap::new(), body.to_string().as_bytes())
    }

    #[test]
    fn every_row_of_the_table_has_its_class() {
        use Class::*;
        for (status, reason, class) in [
            (400, "timeRangeEmpty", Permanent(Code::InvalidRequest)),
            (400, "invalid", Permanent(Code::InvalidRequest)),
            (400, "required", Permanent(Code::InvalidRequest)),
            (400, "badRequest", Permanent(Code::InvalidRequest)),
            (400, "eventDurationExceedsLimit", Permanent(Code::InvalidRequest)),
            (401, "authError", Unauthorized),
            (403, "userRateLimitExceeded", RateLimited),
            (403, "rateLimitExceeded", RateLimited),
            (429, "rateLimitExceeded", RateLimited),
            (403, "quotaExceeded", CoolDown),
            (429, "quotaExceeded", CoolDown),
            (403, "dailyLimitExceeded", Misconfigured),
            (403, "variableTermLimitExceeded", Misconfigured),
            (403, "dailyLimitExceededUnreg", Misconfigured),
            (403, "forbiddenForNonOrganizer", Permanent(Code::NotOrganizer)),
            (403, "insufficientPermissions", ScopeMissing),
            (403, "forbidden", Permanent(Code::Forbidden)),
            (403, "requiredAccessLevel", Permanent(Code::Forbidden)),
            (403, "notACalendarUser", Permanent(Code::CalendarNotFound)),
            (403, "accessNotConfigured", Misconfigured),
            (404, "notFound", NotFound),
            (409, "duplicate", Duplicate),
            (409, "conflict", Transient),
            (410, "deleted", Deleted),
            (410, "fullSyncRequired", Permanent(Code::InvalidRequest)),
            (410, "updatedMinTooLongAgo", Permanent(Code::InvalidRequest)),
            (412, "conditionNotMet", Stale),
            (500, "backendError", Transient),
            (500, "internalError", Transient),
            (502, "badGateway", Transient),
            (503, "serviceNotAvailable", Transient),
            (504, "gatewayTimeout", Transient),
            // Unknown ones.
            (403, "somethingNew", Permanent(Code::Forbidden)),
            (400, "somethingNew", Permanent(Code::InvalidRequest)),
            (418, "somethingNew", Permanent(Code::InvalidRequest)),
            (429, "somethingNew", RateLimited),
            (599, "somethingNew", Transient),
            // A 5xx says nothing about a grant or a limit, whatever stands in it.
            (500, "insufficientPermissions", Transient),
        ] {
            let error = old_form(status, reason, "x");
            assert_eq!(error.class, class, "{status} {reason}");
            assert_eq!(error.reason.as_deref(), Some(reason));
            assert_eq!(error.status, Some(status));
            assert_eq!(error.is_ambiguous, status >= 500, "{status} {reason}");
        }
        assert_eq!(old_form(400, "invalid", "Invalid conference type value.").class, ConferenceRefused);
        assert_eq!(old_form(400, "invalid", "Invalid sequence value. The specified …").class, Stale);
    }

    #[test]
    fn the_newer_form_is_read_and_wins() {
        let with_details = |status: u16, reason: &str| {
            let body = json!({"error": {
                "code": status, "message": "See https://console.example/?project=123456789", "status": "PERMISSION_DENIED",
                "errors": [{"reason": "forbidden", "domain": "global"}],
                "details": [
                    {"@type": "type.googleapis.com/google.rpc.Help", "links": []},
                    {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "domain": "googleapis.com"},
                ],
            }});
            classify("patch", status, &HeaderMap::new(), body.to_string().as_bytes())
        };
        for (status, reason, class) in [
            (403, "SERVICE_DISABLED", Class::Misconfigured),
            (403, "BILLING_DISABLED", Class::Misconfigured),
            (403, "ACCESS_TOKEN_SCOPE_INSUFFICIENT", Class::ScopeMissing),
            (429, "RATE_LIMIT_EXCEEDED", Class::RateLimited),
            (403, "SOMETHING_NEW", Class::Permanent(Code::Forbidden)),
        ] {
            let error = with_details(status, reason);
            assert_eq!(error.class, class, "{reason}");
            assert!(!error.message.contains("123456789"), "{}", error.message);
        }
        let exists = br#"{"error":{"code":409,"status":"ALREADY_EXISTS"}}"#;
        assert_eq!(classify("patch", 409, &HeaderMap::new(), exists).class, Class::Duplicate);
    }

    #[test]
    fn answers_of_others_are_never_taken_for_gone() {
        let page = b"<html><title>404</title></html>";
        for status in [404, 410] {
            let error = classify("delete", status, &HeaderMap::new(), page);
            assert_eq!(error.class, Class::Transient);
            assert!(error.message.contains("GOOGLE_CALENDAR_API_ROOT"), "{}", error.message);
        }
        assert_eq!(classify("delete", 404, &HeaderMap::new(), b"").class, Class::NotFound);
        assert_eq!(classify("delete", 410, &HeaderMap::new(), b"{}").class, Class::Deleted);
        assert_eq!(classify("insert", 409, &HeaderMap::new(), b"").class, Class::Duplicate);
        assert!(classify("insert", 302, &HeaderMap::new(), b"").is_ambiguous);
        assert!(!classify("get", 503, &HeaderMap::new(), b"").is_ambiguous);
    }

    #[test]
    fn the_sentence_names_the_field_but_no_address_link_or_token() {
        let body = json!({"error": {"code": 400, "message": "Invalid attendee ana@example.com (ya29.MARKER), see https://x.y",
            "errors": [{"reason": "invalid", "location": "attendees", "message": "m"}]}});
        let error = classify("insert", 400, &HeaderMap::new(), body.to_string().as_bytes());
        insta::assert_snapshot!(error, @r#"insert: Google answered 400 (invalid): the request is refused at attendees, "Invalid attendee see""#);
        let odd = json!({"error": {"errors": [{"reason": "a reason with spaces and ya29.MARKER"}]}});
        let error = classify("insert", 403, &HeaderMap::new(), odd.to_string().as_bytes());
        insta::assert_snapshot!(error, @"insert: Google answered 403: no write access");
        assert_eq!(error.reason, None);
    }
}
