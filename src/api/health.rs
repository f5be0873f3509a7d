//! `/livez`, `/readyz` and `/metrics`. Open to whoever reaches them, so nothing secret is in them; `ADMIN_ADDR` moves
//! them to another address.
//!
//! Ready means: reads are answered and events are folded. Google being down does not make us unready, since no restart
//! and no other replica would mend it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ApiState;
use crate::store::StoreError;

/// The outcome of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// `nats`, `stream`, …
    pub name: &'static str,
    /// Whether it allows readiness.
    pub ok: bool,
    /// Why not, in words that anybody may read.
    pub detail: Option<String>,
}

impl Check {
    /// One that is well.
    pub const fn ok(name: &'static str) -> Self {
        Self { name, ok: true, detail: None }
    }

    /// One that is not, with the reason.
    pub fn failed(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: false, detail: Some(detail.into()) }
    }
}

/// Checks that other parts of the process contribute (NATS, the stream's epoch); must answer at once, from memory.
#[derive(Clone)]
pub struct Readiness(Arc<dyn Fn() -> Vec<Check> + Send + Sync>);

impl Readiness {
    /// From a function.
    pub fn new(checks: impl Fn() -> Vec<Check> + Send + Sync + 'static) -> Self {
        Self(Arc::new(checks))
    }

    /// Nothing but the database.
    pub fn database_only() -> Self {
        Self::new(Vec::new)
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Readiness")
    }
}

/// A probe gives up after a second by default (Kubernetes `timeoutSeconds`), so the database gets less.
const DATABASE_ANSWERS: Duration = Duration::from_millis(800);

const NO_STORE: (HeaderName, HeaderValue) = (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));

/// 200 as long as the process answers at all: only that a restart would mend.
pub(super) async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({"status": "live"}))
}

/// 200 or 503, with every check.
pub(super) async fn readyz(State(state): State<ApiState>) -> Response {
    let mut checks = (state.0.readiness.0)();
    let (database, schema) =
        tokio::join!(answers(state.0.store.ping(), "database"), answers(state.0.store.check_schema(), "schema"),);
    checks.extend([database, schema]);
    if state.0.shutdown.is_asked() {
        checks.push(Check::failed("shutdown", "draining"));
    }
    let ready = checks.iter().all(|check| check.ok);
    let by_name: BTreeMap<&str, serde_json::Value> =
        checks.iter().map(|check| (check.name, json!({"ok": check.ok, "detail": check.detail}))).collect();
    let (status, word) = if ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "unready") };
    json_response(status, &json!({"status": word, "checks": by_name}))
}

async fn answers(question: impl Future<Output = Result<(), StoreError>>, name: &'static str) -> Check {
    match tokio::time::timeout(DATABASE_ANSWERS, question).await {
        Ok(Ok(())) => Check::ok(name),
        // Our own words; what the driver said stays in the log of whoever needed the database.
        Ok(Err(StoreError::Schema(text))) => Check::failed(name, text),
        Ok(Err(error)) if error.is_transient() => Check::failed(name, "the database is not reachable"),
        Ok(Err(_)) => Check::failed(name, "the database refuses"),
        Err(_) => Check::failed(name, "no answer in time"),
    }
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [NO_STORE, (header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body.to_string())
        .into_response()
}

/// Everything in OpenMetrics; gauges of the database are those of [`crate::telemetry::scrape`].
pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    state.0.scraper.refresh(&state.0.store, &state.0.metrics, state.0.clock.now()).await;
    state.0.metrics.http_waits.set(i64::try_from(state.0.waits.count()).unwrap_or(i64::MAX));
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([NO_STORE, (header::CONTENT_TYPE, kind)], state.0.metrics.encode()).into_response()
}
