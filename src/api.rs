//! The read API: what WordPress, the NestJS backend and people see.
//!
//! [`meet`] answers from the store, or from [`cache`] where that is allowed; [`retry`] is the button; [`teachers`] tells of
//! the teachers' connections; [`oauth`] connects and disconnects them, and it alone leads to calls to Google. [`auth`] says
//! who asks, [`limits`] how often they may, [`edge`] is what every request passes, [`server`] what every connection does,
//! [`problem`] is every answer that is not a success, [`health`] is for whoever runs us, [`openapi`] and [`docs`] say
//! what there is.
//! Deliberately absent: writes to what a session should be, CORS.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::connect::Connect;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;

pub mod auth;
mod cache;
mod docs;
mod edge;
mod etag;
pub mod health;
mod limits;
mod meet;
pub(crate) mod oauth;
pub mod openapi;
mod patience;
pub mod problem;
mod query;
mod retry;
mod server;
mod teachers;
mod wait;

pub use edge::Edge;
pub use health::{Check, Readiness};
pub(crate) use teachers::document as teacher_document;

/// Requests under way get this long after the service was asked to drain. Kubernetes kills after 30 s.
const DRAIN: Duration = Duration::from_secs(10);

/// Every route, as the labels of metrics know them. A route that is not here counts as `other`, and fails a test.
pub const ROUTES: &[&str] = &[
    meet::ROUTE,
    "/api/google/meet",
    "/api/google/meet/retry/{sessionId}",
    "/api/google/status/{teacherId}",
    "/api/google/teachers",
    "/api/google/oauth/start",
    "/api/google/oauth/callback",
    "/api/google/disconnect/{teacherId}",
    "/livez",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/docs",
];

/// What the API works with.
#[derive(Debug)]
pub struct ApiOptions {
    /// Where documents and tokens are.
    pub store: Store,
    /// For the uses of tokens and the ages in metrics.
    pub clock: Clock,
    /// Instruments, shared with the rest of the process.
    pub metrics: Arc<Metrics>,
    /// Ends long-polls and makes us unready.
    pub shutdown: Shutdown,
    /// Checks of the other parts.
    pub readiness: Readiness,
    /// `API_TOKENS_FILE`
    pub tokens_file: Option<PathBuf>,
    /// Connects and disconnects teachers; without it those routes are not there.
    pub connect: Option<Connect>,
    /// `JWT_*`
    pub jwt: auth::JwtOptions,
    /// `API_RATE_LIMIT`: requests per second and credential, 0 = off.
    pub rate_limit: u32,
}

/// Shared by all requests, cheap to clone.
#[derive(Debug, Clone)]
pub struct ApiState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    clock: Clock,
    metrics: Arc<Metrics>,
    scraper: crate::telemetry::scrape::Scraper,
    shutdown: Shutdown,
    readiness: Readiness,
    auth: auth::Authenticator,
    connect: Option<Connect>,
    limits: Arc<limits::Limits>,
    documents: cache::Documents,
    waits: wait::Waits,
    usual: edge::Usual,
}

impl ApiState {
    /// Must be called inside a Tokio runtime: the tasks that wake long-polls and watch for changes by other processes start
    /// here and end at the drain.
    pub fn new(options: ApiOptions) -> Self {
        let ApiOptions { store, clock, metrics, shutdown, readiness, tokens_file, connect, jwt, rate_limit } = options;
        let limits = Arc::new(limits::Limits::new(rate_limit));
        let state = Self(Arc::new(Inner {
            auth: auth::Authenticator::new(store.clone(), clock.clone(), tokens_file, jwt, Arc::clone(&limits)),
            limits,
            connect,
            documents: cache::Documents::new(store.clone()),
            waits: wait::Waits::listen(&store, shutdown.token()),
            store,
            clock,
            usual: edge::Usual::new(&metrics),
            metrics,
            scraper: crate::telemetry::scrape::Scraper::default(),
            shutdown,
            readiness,
        }));
        let watching = state.clone();
        let drain = state.0.shutdown.token();
        tokio::spawn(drain.run_until_cancelled_owned(async move { watching.0.documents.watch().await }));
        state
    }

    /// Reads the API tokens again, notes the uses of known ones, and forgets rate limits that are not used any more. [`serve`] does so every [`auth::REFRESH`].
    pub async fn refresh_tokens(&self) -> Result<(), problem::Problem> {
        self.0.limits.tidy();
        self.0.auth.note_uses().await?;
        self.0.auth.refresh().await
    }
}

/// All routes on one address.
pub fn router(state: ApiState) -> Edge {
    Edge::new(api_routes().merge(health_routes()).merge(description_routes()), state)
}

/// All routes but those of health, for use beside [`admin_router`].
pub fn public_router(state: ApiState) -> Edge {
    Edge::new(api_routes().merge(description_routes()), state)
}

/// `/livez`, `/readyz` and `/metrics`, for `ADMIN_ADDR`; what the API is can be read on both addresses.
pub fn admin_router(state: ApiState) -> Edge {
    Edge::new(health_routes().merge(description_routes()), state)
}

fn api_routes() -> Router<ApiState> {
    Router::new()
        .route(meet::ROUTE, get(meet::one))
        .route("/api/google/meet", get(meet::many))
        .route("/api/google/meet/retry/{sessionId}", post(retry::retry))
        .route("/api/google/status/{teacherId}", get(teachers::one))
        .route("/api/google/teachers", get(teachers::many))
        .route("/api/google/oauth/start", get(oauth::start))
        .route("/api/google/oauth/callback", get(oauth::callback))
        .route("/api/google/disconnect/{teacherId}", post(oauth::disconnect))
}

fn health_routes() -> Router<ApiState> {
    Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
}

fn description_routes() -> Router<ApiState> {
    Router::new().route("/openapi.json", get(openapi::openapi)).route("/docs", get(docs::docs))
}

/// Serves until the drain is over: at most 10 s after the shutdown was asked for, with long-polls ended at
/// once. With an admin listener the health routes are there and nowhere else.
///
/// # Errors
/// When the admin side panicked.
pub async fn serve(state: ApiState, listener: TcpListener, admin: Option<TcpListener>) -> io::Result<()> {
    let tokens = tokio::spawn(keep_tokens_fresh(state.clone()));
    let keys = tokio::spawn(keep_keys_fresh(state.clone()));
    let at_the_end = state.clone();
    let shutdown = state.0.shutdown.clone();
    let drained = async {
        match admin {
            None => {
                server::serve(listener, router(state), shutdown.clone()).await;
                Ok(())
            }
            Some(admin) => {
                // The admin side ends last, so that probes see us unready and not gone.
                let admin = tokio::spawn(server::serve(admin, admin_router(state.clone()), shutdown.clone()));
                server::serve(listener, public_router(state), shutdown.clone()).await;
                admin.await.map_err(io::Error::other)
            }
        }
    };
    let result = tokio::select! {
        result = drained => result,
        () = async { shutdown.asked().await; tokio::time::sleep(DRAIN).await } => {
            tracing::warn!(seconds = DRAIN.as_secs(), "connections were still open at the end of the drain and are dropped");
            Ok(())
        }
    };
    tokens.abort();
    keys.abort();
    // The uses since the last round; a database that is down must not hold up the end.
    if let Ok(Err(problem)) = tokio::time::timeout(Duration::from_secs(1), at_the_end.0.auth.note_uses()).await {
        tracing::warn!(cause = problem.cause, "the last uses of API tokens were not noted");
    }
    result
}

async fn keep_tokens_fresh(state: ApiState) {
    let mut failing = false;
    loop {
        match state.refresh_tokens().await {
            Ok(()) => failing = false,
            // Known tokens go on working; said once, not every five seconds.
            Err(problem) if !failing => {
                failing = true;
                tracing::warn!(cause = problem.cause, "API tokens cannot be read; known ones go on working");
            }
            Err(_) => {}
        }
        tokio::time::sleep(auth::REFRESH).await;
    }
}

/// Apart from the tokens, as a server that is slow to give its keys must not hold those up.
async fn keep_keys_fresh(state: ApiState) {
    loop {
        state.0.auth.refresh_keys().await;
        tokio::time::sleep(auth::REFRESH).await;
    }
}
