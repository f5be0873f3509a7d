//! The read API: what WordPress, the NestJS backend and people see.
//!
//! [`meet`] answers from the store, or from [`cache`] where that is allowed; [`retry`] is the button; [`auth`] says who
//! asks, [`edge`] is what every request passes, [`problem`] is every answer that is not a success, [`health`] is for
//! whoever runs us.
//! [`teachers`] tells of the teachers' connections.
//! [`oauth`] connects and disconnects teachers; it alone leads to calls to Google. Deliberately absent: writes to what a session should be, CORS.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;

use crate::clock::Clock;
use crate::connect::Connect;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;

pub mod auth;
mod cache;
mod edge;
mod etag;
pub mod health;
mod meet;
pub(crate) mod oauth;
pub mod problem;
mod query;
mod retry;
mod teachers;
mod wait;

pub use health::{Check, Readiness};
pub(crate) use teachers::document as teacher_document;

/// Requests under way get this long after the service was asked to drain. Kubernetes kills after 30 s.
const DRAIN: Duration = Duration::from_secs(10);

/// Every route, as the labels of metrics know them.
const ROUTES: [&str; 11] = [
    "/api/google/meet/{sessionId}",
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
    documents: cache::Documents,
    waits: wait::Waits,
}

impl ApiState {
    /// Must be called inside a Tokio runtime: a task that wakes long-polls starts here and ends at the drain.
    pub fn new(options: ApiOptions) -> Self {
        let ApiOptions { store, clock, metrics, shutdown, readiness, tokens_file, connect } = options;
        Self(Arc::new(Inner {
            auth: auth::Authenticator::new(store.clone(), clock.clone(), tokens_file),
            connect,
            documents: cache::Documents::new(store.clone()),
            waits: wait::Waits::listen(&store, shutdown.token()),
            store,
            clock,
            metrics,
            scraper: crate::telemetry::scrape::Scraper::default(),
            shutdown,
            readiness,
        }))
    }

    /// Reads the API tokens again and notes the uses of known ones. [`serve`] does so every [`auth::REFRESH`].
    pub async fn refresh_tokens(&self) -> Result<(), problem::Problem> {
        self.0.auth.note_uses().await?;
        self.0.auth.refresh().await
    }
}

/// All routes on one address.
pub fn router(state: ApiState) -> Router {
    finish(api_routes().merge(health_routes()), state)
}

/// All routes but those of [`admin_router`], for use beside it.
pub fn public_router(state: ApiState) -> Router {
    finish(api_routes(), state)
}

/// `/livez`, `/readyz` and `/metrics`, for `ADMIN_ADDR`.
pub fn admin_router(state: ApiState) -> Router {
    finish(health_routes(), state)
}

fn api_routes() -> Router<ApiState> {
    Router::new()
        .route("/api/google/meet/{sessionId}", get(meet::one))
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

fn finish(routes: Router<ApiState>, state: ApiState) -> Router {
    let limit = DefaultBodyLimit::max(usize::try_from(edge::BODY_BYTES_MAX).expect("64 KiB fit everywhere"));
    routes
        .fallback(async || problem::Problem::route_not_found())
        .layer(limit)
        .layer(axum::middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state)
}

/// Serves until the drain is over: at most 10 s after the shutdown was asked for, with long-polls ended at
/// once. With an admin listener the health routes are there and nowhere else.
///
/// # Errors
/// When a listener fails for good.
pub async fn serve(state: ApiState, listener: TcpListener, admin: Option<TcpListener>) -> io::Result<()> {
    let tokens = tokio::spawn(keep_tokens_fresh(state.clone()));
    let at_the_end = state.clone();
    let shutdown = state.0.shutdown.clone();
    let drained = async {
        match admin {
            None => serve_one(listener, router(state), shutdown.clone()).await,
            Some(admin) => {
                // The admin side ends last, so that probes see us unready and not gone.
                let admin = tokio::spawn(serve_one(admin, admin_router(state.clone()), shutdown.clone()));
                let public = serve_one(listener, public_router(state), shutdown.clone()).await;
                public.and(flatten(admin.await))
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
    // The uses since the last round; a database that is down must not hold up the end.
    if let Ok(Err(problem)) = tokio::time::timeout(Duration::from_secs(1), at_the_end.0.auth.note_uses()).await {
        tracing::warn!(cause = problem.cause, "the last uses of API tokens were not noted");
    }
    result
}

fn flatten(joined: Result<io::Result<()>, tokio::task::JoinError>) -> io::Result<()> {
    joined.unwrap_or_else(|error| Err(io::Error::other(error)))
}

async fn serve_one(listener: TcpListener, router: Router, shutdown: Shutdown) -> io::Result<()> {
    // Small answers must not wait for an acknowledgement (Nagle).
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
    });
    axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.asked().await }).await
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
