//! `GET /docs`: the same as `/openapi.json`, for people. One page with its own style and script, which reads the document
//! from beside it: nothing comes from another host, and nothing else may run.
//!
//! A page of our own instead of a library: those bring megabytes of scripts and need a policy that allows inline styles.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::etag;
use super::meet::{NO_CACHE, tagged};

const STYLE: &str = include_str!("docs/page.css");
const SCRIPT: &str = include_str!("docs/page.js");

/// What is sent with every answer, made at the first one.
struct Page {
    body: Bytes,
    tag: HeaderValue,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let body = include_str!("docs/page.html").replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT);
    let hash = |text: &str| data_encoding::BASE64.encode(&Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    Page {
        tag: etag::of_body(&body),
        body: body.into(),
        policy: HeaderValue::from_str(&policy).expect("words and base64 are printable ASCII"),
    }
});

/// The page, open to everybody.
pub(super) async fn docs(request: Request) -> Response<Body> {
    let page = &*PAGE;
    let mut response = tagged(request.headers(), page.tag.clone(), page.body.clone(), &NO_CACHE);
    let is_page = response.status() == StatusCode::OK;
    let headers = response.headers_mut();
    if is_page {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, page.policy.clone());
    response
}
