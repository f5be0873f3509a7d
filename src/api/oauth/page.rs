//! The page for a teacher whom no page of the site waits for: what happened and what to do. Self-contained, without
//! scripts, readable on a phone.

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::connect::{Connection, Failure};

const STYLE: &str = "body{font:1.1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.25rem;\
color:#1b1b1b;background:#fff}h1{font-size:1.5rem;line-height:1.25}small{color:#595959}\
@media(prefers-color-scheme:dark){body{color:#eee;background:#161616}small{color:#aaa}}";

/// Nothing may be loaded or run, and no other page may show this one in a frame; only this very style is allowed.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let hash = data_encoding::BASE64.encode(&Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).expect("words and base64 are printable ASCII")
});

/// Google is connected.
pub(super) fn connected(connection: &Connection) -> Response<Body> {
    let account = escape(&connection.account);
    let shared = if connection.is_shared {
        "<p>Another teacher uses the same Google account: their lessons share this calendar."
    } else {
        ""
    };
    let body = format!(
        "<h1>Google Calendar is connected</h1><p>Your lessons will be entered in the calendar of {account}, each with its \
         Google Meet link.{shared}<p>You can close this page."
    );
    page(StatusCode::OK, "Google Calendar is connected", &body)
}

/// It is not.
pub(super) fn failed(failure: &Failure) -> Response<Body> {
    let accounts = failure.accounts.as_ref().map_or_else(String::new, |(expected, chosen)| {
        format!("<p>Connected: {}. Chosen now: {}.", escape(expected), escape(chosen))
    });
    let body = format!(
        "<h1>Google Calendar was not connected</h1><p>{}{accounts}<p>{}<p><small>Code for your school: {}</small>",
        escape(failure.code.sentence()),
        escape(failure.code.advice()),
        failure.code.as_str()
    );
    page(failure.code.status(), "Google Calendar was not connected", &body)
}

fn page(status: StatusCode, title: &str, body: &str) -> Response<Body> {
    let html = format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{title}</title><style>{STYLE}</style><body><main>{body}</main></body></html>"
    );
    let mut response = Response::new(Body::from(html));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(header::CONTENT_SECURITY_POLICY, POLICY.clone());
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::FailureCode;

    #[test]
    fn the_page_says_what_happened_and_runs_nothing() {
        let failure = Failure {
            code: FailureCode::AccountMismatch,
            accounts: Some(("<script>…@example.com".to_owned(), "be…@example.org".to_owned())),
            cause: Some("for the log".to_owned()),
        };
        let response = failed(&failure);
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
        let policy = response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    }
}
