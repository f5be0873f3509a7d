//! A store with sessions, a router on it, and requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode};
use meet_projector::api::auth::JwtOptions;
use meet_projector::api::{ApiOptions, ApiState, Edge, Readiness, router};
use meet_projector::cli::token::{TokenAction, run};
use meet_projector::clock::Clock;
use meet_projector::event::{Change, Details, SessionEvent, Shape};
use meet_projector::model::{Epoch, Kind, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};
use meet_projector::shutdown::Shutdown;
use meet_projector::store::{DatabaseUrl, Incoming, RawMessage, Role, Store};
use meet_projector::telemetry::Metrics;
use tower::ServiceExt as _;

/// 2026-11-22T20:15:06.030Z
pub const NOW: i64 = 1_795_378_506_030;

/// 2026-12-01T09:00:00Z
pub const START: i64 = 1_796_115_600_000;

const HOUR: i64 = 3_600_000;

/// The API on a database of its own.
pub struct Api {
    pub router: Edge,
    pub state: ApiState,
    pub store: Store,
    pub clock: Clock,
    pub shutdown: Shutdown,
    pub reader: String,
    sequence: AtomicI64,
    _folder: Option<tempfile::TempDir>,
}

/// An answer with its body read.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {:?}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let json = self.json();
        assert_eq!(json["status"], self.status.as_u16());
        assert_eq!(json["requestId"], self.header("x-request-id"));
        json["code"].as_str().unwrap().to_owned()
    }
}

/// On SQLite, the embedded default.
pub async fn api() -> Api {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/meet.db", folder.path().display());
    api_on(&url, Some(folder)).await
}

pub async fn api_on(url: &str, folder: Option<tempfile::TempDir>) -> Api {
    api_with(url, folder, Readiness::database_only(), None).await
}

pub async fn api_with(
    url: &str,
    folder: Option<tempfile::TempDir>,
    readiness: Readiness,
    tokens_file: Option<std::path::PathBuf>,
) -> Api {
    api_that(url, folder, |options| {
        options.readiness = readiness;
        options.tokens_file = tokens_file;
    })
    .await
}

/// On SQLite, with other options than the usual.
pub async fn sqlite_that(change: impl FnOnce(&mut ApiOptions)) -> Api {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/meet.db", folder.path().display());
    api_that(&url, Some(folder), change).await
}

async fn api_that(url: &str, folder: Option<tempfile::TempDir>, change: impl FnOnce(&mut ApiOptions)) -> Api {
    let store = Store::open(&DatabaseUrl(url.to_owned().into())).await.unwrap();
    store.migrate().await.unwrap();
    let clock = Clock::fixed(UnixMillis::new(NOW));
    let shutdown = Shutdown::new();
    let mut options = ApiOptions {
        store: store.clone(),
        clock: clock.clone(),
        metrics: Arc::new(Metrics::new()),
        shutdown: shutdown.clone(),
        readiness: Readiness::database_only(),
        tokens_file: None,
        connect: None,
        jwt: JwtOptions::default(),
        rate_limit: 0,
    };
    change(&mut options);
    let state = ApiState::new(options);
    let reader = new_token(&store, &clock, Role::Reader).await;
    state.refresh_tokens().await.unwrap();
    let router = router(state.clone());
    Api { router, state, store, clock, shutdown, reader, sequence: AtomicI64::new(0), _folder: folder }
}

/// Made by the command that people use.
pub async fn new_token(store: &Store, clock: &Clock, role: Role) -> String {
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let action = TokenAction::New { name: format!("a {}", role.as_str()), role };
    run(&action, store, clock, false, &mut out, &mut notes).await.unwrap();
    let printed = String::from_utf8(out).unwrap();
    assert!(!String::from_utf8(notes).unwrap().contains(printed.trim()), "the token is on standard output alone");
    printed.trim_end().to_owned()
}

impl Api {
    /// As a reader.
    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    /// As a reader, with more headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let bearer = format!("Bearer {}", self.reader);
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        send(&self.router, &Method::GET, path, &headers).await
    }

    /// Folds a schedule (or a newer version of it).
    pub async fn schedule(&self, session: &str, teacher: &str, version: i64, starts_at: i64) {
        self.fold(session, teacher, version, Some(starts_at)).await;
    }

    /// Folds a cancel without details.
    pub async fn cancel(&self, session: &str, teacher: &str, version: i64) {
        self.fold(session, teacher, version, None).await;
    }

    async fn fold(&self, session: &str, teacher: &str, version: i64, starts_at: Option<i64>) {
        let sequence = self.sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let message = incoming(sequence, session, teacher, version, starts_at);
        self.store.fold(Epoch(1), &[message], self.clock.now()).await.unwrap();
    }
}

/// A message that becomes a schedule, or a cancel when there is no start.
pub fn incoming(sequence: i64, session: &str, teacher: &str, version: i64, starts_at: Option<i64>) -> Incoming {
    let event = SessionEvent {
        event_id: format!("event-{sequence}"),
        source: Some("/services/bookings".to_owned()),
        shape: Shape::Structured,
        change: if starts_at.is_some() { Change::Scheduled } else { Change::Canceled },
        session: SessionId::parse(session).unwrap(),
        version: SessionVersion::new(version).unwrap(),
        teacher: TeacherId::parse(teacher).unwrap(),
        details: starts_at.map(|starts_at| Details {
            kind: Kind::Private,
            title: "Piano with Ana".to_owned(),
            description: None,
            starts_at: UnixMillis::new(starts_at),
            ends_at: UnixMillis::new(starts_at + HOUR),
            time_zone: TimeZone::parse("Europe/Madrid").unwrap(),
            attendees: Vec::new(),
            url: None,
        }),
        occurred_at: None,
        traceparent: None,
    };
    Incoming {
        sequence,
        stored_at: UnixMillis::new(NOW),
        fingerprint: format!("fingerprint-{sequence}"),
        raw: RawMessage { subject: String::new(), headers: Vec::new(), payload: bytes::Bytes::new() },
        decoded: Ok(event),
    }
}

/// The answer, which is one that the OpenAPI document describes.
pub async fn send(router: &Edge, method: &Method, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.unwrap();
    let answer =
        Answer { status: parts.status, headers: parts.headers, text: String::from_utf8(bytes.to_vec()).unwrap() };
    super::openapi::assert_described(method, path, &answer);
    answer
}
