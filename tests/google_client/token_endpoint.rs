//! The token endpoint: what is sent, what is believed, and what each refusal means.

use meet_projector::google::calendar::http_client;
use meet_projector::google::error::{Class, GoogleError};
use meet_projector::google::oauth::{TokenEndpoint, TokenGrant};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::fixtures::*;

fn endpoint(root: &str) -> TokenEndpoint {
    let secret = SecretString::from("GOCSPX-MARKER");
    TokenEndpoint::new(http_client(), "client.apps.example", &secret, format!("{root}/token").parse().unwrap())
}

async fn refresh_at(root: &str) -> Result<TokenGrant, GoogleError> {
    endpoint(root).refresh(&SecretString::from("1//MARKER")).await
}

async fn refresh(response: ResponseTemplate) -> Result<TokenGrant, GoogleError> {
    let server = MockServer::start().await;
    Mock::given(any()).respond_with(response).mount(&server).await;
    refresh_at(&server.uri()).await
}

#[tokio::test]
async fn a_refresh_sends_the_form_that_google_documents() {
    let server = MockServer::start().await;
    let body = json!({"access_token": "ya29.new", "expires_in": 3599, "token_type": "Bearer",
        "scope": "openid https://www.googleapis.com/auth/calendar.events.owned"});
    Mock::given(any()).respond_with(ResponseTemplate::new(200).set_body_json(body)).mount(&server).await;
    let grant = refresh_at(&server.uri()).await.unwrap();
    assert_eq!(grant.access_token.expose_secret(), "ya29.new");
    assert_eq!(grant.expires_in_ms, 3_599_000);
    assert!(grant.refresh_token.is_none());
    assert_eq!(grant.scopes.as_deref(), Some("openid https://www.googleapis.com/auth/calendar.events.owned"));

    let sent = server.received_requests().await.unwrap();
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].method.as_str(), sent[0].url.path()), ("POST", "/token"));
    assert_eq!(sent[0].headers.get_all("content-type").iter().count(), 1);
    assert_eq!(sent[0].headers["content-type"], "application/x-www-form-urlencoded");
    assert!(sent[0].headers.get("authorization").is_none());
    let form: Vec<(String, String)> = url::form_urlencoded::parse(&sent[0].body).into_owned().collect();
    insta::assert_debug_snapshot!(form, @r#"
    [
        (
            "grant_type",
            "refresh_token",
        ),
        (
            "refresh_token",
            "1//MARKER",
        ),
        (
            "client_id",
            "client.apps.example",
        ),
        (
            "client_secret",
            "GOCSPX-MARKER",
        ),
    ]
    "#);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    for (status, body, class) in [
        (400, json!({"error": "invalid_grant", "error_description": "1//MARKER expired"}), Class::ReconnectRequired),
        (400, json!({"error": "invalid_grant", "error_subtype": "invalid_rapt"}), Class::ReconnectRequired),
        (401, json!({"error": "invalid_client"}), Class::Misconfigured),
        (401, json!({"error": "deleted_client"}), Class::Misconfigured),
        (401, json!({"error": "unauthorized_client"}), Class::Misconfigured),
        (400, json!({"error": "admin_policy_enforced"}), Class::AdminBlocked),
        (429, json!({"error": "rate_limit_exceeded"}), Class::Transient),
        (500, json!({"error": "internal_failure"}), Class::Transient),
        (503, json!({"error": "invalid_grant"}), Class::Transient),
        (302, json!({}), Class::Transient),
    ] {
        let response = ResponseTemplate::new(status).insert_header("retry-after", "9").set_body_json(&body);
        let error = refresh(response).await.unwrap_err();
        assert_discreet(&error);
        assert_eq!(error.class, class, "{status} {body}");
        assert_eq!((error.status, error.retry_after_ms), (Some(status), Some(9_000)));
        assert!(!error.is_ambiguous);
    }
}

#[tokio::test]
async fn a_grant_without_the_calendar_is_no_grant() {
    let body =
        json!({"access_token": "ya29.MARKER", "expires_in": 3599, "token_type": "Bearer", "scope": "openid email"});
    let error = refresh(ResponseTemplate::new(200).set_body_json(body)).await.unwrap_err();
    assert_eq!(error.class, Class::ScopeMissing);
    assert_discreet(&error);
}

#[tokio::test]
async fn what_cannot_be_read_is_transient_and_shows_no_token() {
    let huge = format!("{{\"access_token\":\"{}\"}}", MARKER.repeat(20_000));
    for body in [
        "",
        "<html>MARKER</html>",
        "{\"access_token\":\"ya29.MARKER\"",
        "{\"access_token\":\"ya29.MARKER\"}",
        "{\"access_token\":\"\",\"token_type\":\"Bearer\"}",
        "{\"error\":\"MARKER\"}",
        huge.as_str(),
    ] {
        let error = refresh(ResponseTemplate::new(200).set_body_string(body)).await.unwrap_err();
        assert_discreet(&error);
        assert_eq!(error.class, Class::Transient, "{error}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_keeps_the_grant() {
    for how in [Break::Close, Break::HalfBody] {
        let error = refresh_at(&broken_server(how).await).await.unwrap_err();
        assert_discreet(&error);
        assert_eq!(error.class, Class::Transient, "{how:?}");
    }
}

#[test]
fn the_endpoint_shows_no_secret() {
    let shown = format!("{:?}", endpoint("http://127.0.0.1:9"));
    assert!(!shown.contains(MARKER), "{shown}");
}
