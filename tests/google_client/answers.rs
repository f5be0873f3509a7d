//! What each answer becomes: one case for every row of the error table that matters.

use std::time::Duration;

use meet_projector::google::error::{Class, GoogleError};
use meet_projector::google::{Answer, Call};
use meet_projector::plan::Code;
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::fixtures::*;

async fn answering(response: ResponseTemplate) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(response).mount(&server).await;
    server
}

async fn refusal(of: &Call, status: u16, body: Value) -> GoogleError {
    let server = answering(ResponseTemplate::new(status).set_body_json(body)).await;
    let error = call(&server, of).await.unwrap_err();
    assert_discreet(&error);
    assert_eq!(error.status, Some(status));
    error
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn refusals_are_told_apart_by_their_reason() {
    let insert = Call::Insert { conference_request: Some("req1".into()) };
    let patch = Call::Patch { etag: "\"1\"".into() };
    let get = Call::Get { if_none_match: None };
    for (call, status, reason, class) in [
        (&get, 401, "authError", Class::Unauthorized),
        (&insert, 403, "userRateLimitExceeded", Class::RateLimited),
        (&insert, 403, "rateLimitExceeded", Class::RateLimited),
        (&insert, 403, "quotaExceeded", Class::CoolDown),
        (&insert, 403, "dailyLimitExceeded", Class::Misconfigured),
        (&insert, 403, "accessNotConfigured", Class::Misconfigured),
        (&patch, 403, "forbiddenForNonOrganizer", Class::Permanent(Code::NotOrganizer)),
        (&insert, 403, "insufficientPermissions", Class::ScopeMissing),
        (&insert, 403, "requiredAccessLevel", Class::Permanent(Code::Forbidden)),
        (&insert, 403, "notACalendarUser", Class::Permanent(Code::CalendarNotFound)),
        (&get, 404, "notFound", Class::NotFound),
        (&Call::Delete, 404, "notFound", Class::NotFound),
        (&insert, 409, "duplicate", Class::Duplicate),
        (&insert, 409, "conflict", Class::Transient),
        (&Call::Delete, 410, "deleted", Class::Deleted),
        (&patch, 412, "conditionNotMet", Class::Stale),
        (&insert, 400, "timeRangeEmpty", Class::Permanent(Code::InvalidRequest)),
    ] {
        let error = refusal(call, status, error_body(status, reason, "Of ana@example.com, ya29.MARKER")).await;
        assert_eq!(error.class, class, "{status} {reason}");
        assert_eq!(error.reason.as_deref(), Some(reason));
        assert!(!error.is_ambiguous, "Google said no: {status} {reason}");
    }
}

#[tokio::test]
async fn two_meanings_of_400_stand_in_the_message() {
    let insert = Call::Insert { conference_request: Some("req1".into()) };
    let error = refusal(&insert, 400, error_body(400, "invalid", "Invalid conference type value.")).await;
    assert_eq!(error.class, Class::ConferenceRefused);

    // The restore reads first, so only its PUT is refused.
    let server = MockServer::start().await;
    let tombstone = ResponseTemplate::new(200).set_body_json(resource_with(json!({"status": "cancelled"})));
    Mock::given(wiremock::matchers::method("GET")).respond_with(tombstone).mount(&server).await;
    let refused = error_body(400, "invalid", "Invalid sequence value. The specified sequence number is below …");
    Mock::given(any())
        .respond_with(ResponseTemplate::new(400).set_body_json(refused))
        .with_priority(9)
        .mount(&server)
        .await;
    assert_eq!(call(&server, &Call::Restore).await.unwrap_err().class, Class::Stale);
}

#[tokio::test]
async fn the_newer_form_of_an_error_is_understood() {
    let body = |reason: &str| {
        json!({"error": {"code": 403, "status": "PERMISSION_DENIED",
            "message": "Enable it by visiting https://console.developers.google.com/apis/MARKER then retry.",
            "errors": [{"message": "m", "domain": "usageLimits", "reason": "forbidden"}],
            "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}]}})
    };
    let get = Call::Get { if_none_match: None };
    assert_eq!(refusal(&get, 403, body("SERVICE_DISABLED")).await.class, Class::Misconfigured);
    assert_eq!(refusal(&get, 403, body("ACCESS_TOKEN_SCOPE_INSUFFICIENT")).await.class, Class::ScopeMissing);
}

#[tokio::test]
async fn retry_after_is_kept_within_bounds() {
    for (value, expected) in [("7", 7_000), ("86400", 3_600_000)] {
        let body = error_body(429, "rateLimitExceeded", "m");
        let response = ResponseTemplate::new(429).insert_header("retry-after", value).set_body_json(body);
        let server = answering(response).await;
        let error = call(&server, &Call::Delete).await.unwrap_err();
        assert_eq!((error.class, error.retry_after_ms), (Class::RateLimited, Some(expected)));
    }
}

#[tokio::test]
async fn failures_of_google_are_ambiguous_for_writes_alone() {
    for status in [500, 502, 503, 504] {
        for write in [Call::Insert { conference_request: None }, Call::Patch { etag: "\"1\"".into() }, Call::Delete] {
            let error = refusal(&write, status, error_body(status, "backendError", "m")).await;
            assert_eq!((error.class, error.is_ambiguous), (Class::Transient, true), "{write:?}");
        }
        let error = refusal(&Call::Get { if_none_match: None }, status, error_body(status, "backendError", "m")).await;
        assert_eq!((error.class, error.is_ambiguous), (Class::Transient, false));
        // The read that a restore begins with changed nothing.
        assert!(!refusal(&Call::Restore, status, error_body(status, "backendError", "m")).await.is_ambiguous);
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_ambiguous_for_writes() {
    for how in [Break::Silent, Break::Close, Break::HalfBody, Break::SlowBody] {
        let root = broken_server(how).await;
        // Only the servers that would keep us waiting for ever meet the short limit; the outcome is the same.
        let timeout = if matches!(how, Break::Silent | Break::SlowBody) { SHORT } else { LONG };
        for write in writes() {
            // A delete that was answered with 200 succeeded, whatever became of the body.
            if matches!((how, &write), (Break::HalfBody | Break::SlowBody, Call::Delete)) {
                assert_eq!(call_at(&root, &write, Some(&wanted()), timeout).await, Ok(Answer::Deleted));
                continue;
            }
            let error = call_at(&root, &write, Some(&wanted()), timeout).await.unwrap_err();
            assert_discreet(&error);
            assert_eq!(error.class, Class::Transient, "{how:?} {write:?}");
            // The restore broke off at the read it begins with.
            assert_eq!(error.is_ambiguous, write != Call::Restore, "{how:?} {write:?}");
        }
        for read in [Call::Get { if_none_match: None }, Call::Find] {
            let error = call_at(&root, &read, None, timeout).await.unwrap_err();
            assert_discreet(&error);
            assert_eq!((error.class, error.is_ambiguous), (Class::Transient, false), "{how:?} {read:?}");
        }
    }
}

#[tokio::test]
async fn without_a_connection_nothing_was_sent() {
    // A port that was free a moment ago and that nobody listens on.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let root = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for write in writes() {
        let error = call_at(&root, &write, Some(&wanted()), LONG).await.unwrap_err();
        assert_discreet(&error);
        assert_eq!((error.class, error.is_ambiguous, error.status), (Class::Transient, false, None));
    }
}

#[tokio::test]
async fn a_success_that_cannot_be_read_is_ambiguous() {
    let other = resource_with(json!({"id": "somebodyelse"})).to_string();
    let huge = format!("{{\"id\":\"{}\",\"summary\":\"{}\"}}", event_id(), "x".repeat(1 << 20));
    for body in ["", "<html>", "[]", "{}", "{\"id\":", other.as_str(), huge.as_str()] {
        let server = answering(ResponseTemplate::new(200).set_body_string(body)).await;
        let error = call(&server, &Call::Insert { conference_request: None }).await.unwrap_err();
        assert_discreet(&error);
        assert_eq!((error.class, error.is_ambiguous, error.status), (Class::Transient, true, Some(200)), "{error}");
        let error = call(&server, &Call::Get { if_none_match: None }).await.unwrap_err();
        assert_eq!((error.class, error.is_ambiguous), (Class::Transient, false), "{error}");
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let elsewhere = answering(ResponseTemplate::new(200).set_body_json(resource())).await;
    let server = answering(ResponseTemplate::new(302).insert_header("location", elsewhere.uri())).await;
    let error = call(&server, &Call::Get { if_none_match: None }).await.unwrap_err();
    assert_eq!(error.class, Class::Transient);
    assert!(elsewhere.received_requests().await.unwrap().is_empty());
}

#[tokio::test]
async fn not_modified_answers_only_a_condition() {
    let server = answering(ResponseTemplate::new(304)).await;
    let conditional = Call::Get { if_none_match: Some("\"1\"".into()) };
    assert_eq!(call(&server, &conditional).await, Ok(Answer::NotModified));
    assert!(call(&server, &Call::Get { if_none_match: None }).await.is_err());
}

#[tokio::test]
async fn a_page_of_somebody_else_is_not_taken_for_gone() {
    let server = answering(ResponseTemplate::new(404).set_body_string("<html>404 page not found</html>")).await;
    let error = call(&server, &Call::Delete).await.unwrap_err();
    assert_eq!(error.class, Class::Transient);
    let server = answering(ResponseTemplate::new(404)).await;
    assert_eq!(call(&server, &Call::Delete).await.unwrap_err().class, Class::NotFound);
}

#[tokio::test]
async fn the_etag_may_come_as_a_header_and_a_cancelled_event_bare() {
    let bare = json!({"id": event_id().as_str(), "status": "cancelled"});
    let server = answering(ResponseTemplate::new(200).insert_header("etag", "\"9\"").set_body_json(bare)).await;
    let event = event_of(call(&server, &Call::Get { if_none_match: None }).await);
    assert_eq!(event.etag, "\"9\"");
    assert_eq!(event.starts_at, None);
}

#[tokio::test]
async fn a_token_no_header_may_have_is_refused_before_anything_is_sent() {
    let server = answering(ResponseTemplate::new(200).set_body_json(resource())).await;
    let (session, event_id) = (session(), event_id());
    let target =
        meet_projector::google::calendar::Target { calendar: "primary", event_id: &event_id, session: &session };
    let token = secrecy::SecretString::from("ya29.MARKER\r\nX-Injected: 1");
    let error = client(&server.uri()).call(&token, target, &Call::Delete, None, LONG).await.unwrap_err();
    assert_eq!(error.class, Class::Unauthorized);
    assert_discreet(&error);
    assert!(server.received_requests().await.unwrap().is_empty());
}
