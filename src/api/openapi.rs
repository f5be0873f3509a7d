//! `GET /openapi.json`: what this API is, for programs. `schemas/openapi.yaml` is the source; `make openapi` writes the
//! JSON from it, and tests hold it to the router and to real answers.

use std::sync::LazyLock;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, Response};
use bytes::Bytes;

use super::etag;
use super::meet::{NO_CACHE, tagged};

/// OpenAPI 3.1; ends with a line feed.
pub const OPENAPI: &str = include_str!("../../schemas/openapi.json");

/// The document, open to everybody: it says nothing of what is stored.
pub(super) async fn openapi(request: Request) -> Response<Body> {
    static TAG: LazyLock<HeaderValue> = LazyLock::new(|| etag::of_body(OPENAPI));
    tagged(request.headers(), TAG.clone(), Bytes::from_static(OPENAPI.as_bytes()), &NO_CACHE)
}
