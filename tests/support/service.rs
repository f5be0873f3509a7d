//! The whole service on real parts: NATS server, fake Google, database, read through its HTTP API.
//!
//! ```ignore
//! let world = World::start(Setup::sqlite()).await;
//! world.publish(&world.lesson("s1", 0)).await;
//! let document = world.ready("s1", 1).await;
//! ```
//!
//! Teachers are numbered: account `n` of the fake is teacher `tch_n`. Nothing here sleeps where something can be awaited;
//! the patience of a minute only ends what would hang, and says what was seen last.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use meet_projector::cli::token::{TokenAction, run as token_command};
use meet_projector::clock::Clock;
use meet_projector::config::{Config, Need};
use meet_projector::credential::{KeyRing, Slot};
use meet_projector::event::{Change, Details, SessionEvent, Shape, encode, subject};
use meet_projector::fake::{FakeGoogle, Operation};
use meet_projector::model::{GoogleSub, Kind, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};
use meet_projector::nats::Connection;
use meet_projector::service::{self, Service};
use meet_projector::shutdown::Shutdown;
use meet_projector::store::{DatabaseUrl, NewCredential, Role, Store};
use reqwest::StatusCode;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::Value;
use tempfile::TempDir;

use super::gate::Gate;
use super::google::{Google, http_client};
use super::nats::NatsServer;
use super::postgres::fresh_database;

/// One hour in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;

/// What would hang ends after this time; no correct run comes near it.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a world is made of.
#[derive(Clone)]
pub struct Setup {
    /// PostgreSQL instead of SQLite.
    pub postgres: bool,
    /// Google accounts.
    pub accounts: usize,
    /// The first so many teachers are connected.
    pub connected: usize,
    /// The time of the service and of Google.
    pub clock: Clock,
    /// `GOOGLE_ATTENDEES`
    pub attendees: bool,
}

impl Setup {
    /// Two connected teachers, the clock of the system.
    pub fn sqlite() -> Self {
        Self { postgres: false, accounts: 2, connected: 2, clock: Clock::system(), attendees: false }
    }

    /// The same on PostgreSQL.
    pub fn postgres() -> Self {
        Self { postgres: true, ..Self::sqlite() }
    }

    /// With a clock that stands still until the test moves it.
    #[must_use]
    pub fn standing_still(self) -> Self {
        Self { clock: Clock::fixed(UnixMillis::parse_rfc3339("2026-11-22T20:15:06Z").unwrap()), ..self }
    }

    /// With so many teachers, all connected.
    #[must_use]
    pub fn teachers(self, count: usize) -> Self {
        Self { accounts: count, connected: count, ..self }
    }

    /// The first `count` teachers are connected, the others only have a Google account.
    #[must_use]
    pub fn connected(self, count: usize) -> Self {
        Self { connected: count, ..self }
    }
}

/// Everything that runs.
pub struct World {
    /// The server; may be killed and run again.
    pub nats: NatsServer,
    /// A connection of the test.
    pub connection: Connection,
    /// The fake and its accounts.
    pub google: Google,
    /// The time of the service and of Google.
    pub clock: Clock,
    /// The settings of the service as variables, for child processes.
    pub environment: BTreeMap<String, String>,
    /// The settings of the service.
    pub config: Config,
    /// The database, without the door that is in front of PostgreSQL.
    pub store: Store,
    /// In front of PostgreSQL.
    pub gate: Option<Gate>,
    /// A token of role `admin`.
    pub token: String,
    /// For files of the test.
    pub folder: TempDir,
    keys: KeyRing,
    http: reqwest::Client,
    /// The service, while it runs.
    pub service: Option<Service>,
    base: String,
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// `ETag`
    pub etag: Option<String>,
    /// The body; null when there is none.
    pub json: Value,
}

/// A message of stream `MEET`.
#[derive(Debug, Clone)]
pub struct Published {
    /// Its subject.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// The CloudEvent.
    pub event: Value,
}

impl World {
    /// Everything, with the service running.
    pub async fn start(setup: Setup) -> Self {
        let mut world = Self::prepare(setup).await;
        world.serve().await;
        world
    }

    /// Everything but the service: streams are there, the schema, the credentials, a token.
    pub async fn prepare(setup: Setup) -> Self {
        // `TEST_LOG=debug` shows what the service says; a second world of the same test finds it set up already.
        let filter = tracing_subscriber::EnvFilter::try_from_env("TEST_LOG").unwrap_or_else(|_| "off".into());
        tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init().ok();
        let http = http_client(PATIENCE);
        let (nats, connection) = NatsServer::with_definitions().await;
        let google = Google::start(setup.clock.clone(), setup.accounts).await;
        let folder = tempfile::tempdir().unwrap();
        let (url, gate) = if setup.postgres {
            (fresh_database().await, true)
        } else {
            (format!("sqlite://{}/meet.db", folder.path().display()), false)
        };
        let store = Store::open(&DatabaseUrl(url.clone().into())).await.unwrap();
        store.migrate().await.unwrap();
        let gate = gate.then(|| Gate::open_to(port_of(&url)));
        let database = match &gate {
            Some(gate) => url.replace(&format!(":{}/", port_of(&url)), &format!(":{}/", gate.address.port())),
            None => url,
        };
        let environment = environment(&google, &nats, &database, setup.attendees);
        let config = Config::load(&environment, Need::Serve).unwrap();
        let google_config = config.google.as_ref().unwrap();
        let keys = KeyRing::new(&google_config.encryption_key, &[]).unwrap();
        let token = new_token(&store, &setup.clock, Role::Admin).await;
        let clock = setup.clock;
        let world = Self {
            nats,
            connection,
            google,
            clock,
            environment,
            config,
            store,
            gate,
            token,
            folder,
            keys,
            http,
            service: None,
            base: "the service does not run".to_owned(),
        };
        for teacher in 0..setup.connected {
            world.connect_teacher(teacher).await;
        }
        world
    }

    /// Starts the service; returns as soon as its API listens.
    pub async fn serve(&mut self) {
        let service = service::start(self.config.clone(), self.clock.clone(), Shutdown::new()).await.unwrap();
        self.base = format!("http://{}", service.address);
        self.service = Some(service);
    }

    /// A new connection of the test, after the server was restarted.
    pub async fn reconnect(&mut self) {
        self.connection = self.nats.connect().await;
    }

    /// Drains the service and waits for its end.
    pub async fn stop(&mut self) {
        self.service.take().expect("the service runs").stop().await;
    }

    /// Drains the service and starts it again on the same database.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.serve().await;
    }

    /// The fake.
    pub fn fake(&self) -> &FakeGoogle {
        &self.google.fake
    }

    /// The address of the account of teacher `n`.
    pub fn email(&self, teacher: usize) -> &str {
        &self.google.teachers[teacher].email
    }

    /// Stores the grant of teacher `n`, as `credential seed` does.
    pub async fn connect_teacher(&self, teacher: usize) {
        let account = &self.google.teachers[teacher];
        let (id, sub) = (teacher_id(teacher), GoogleSub(account.sub.clone()));
        let token = SecretString::from(account.refresh_token.clone());
        let sealed = self.keys.seal(Slot::refresh_token(&id, &sub), &token).unwrap();
        let credential = NewCredential {
            teacher: id,
            account: sub,
            email: Some(account.email.clone()),
            calendar: "primary".to_owned(),
            refresh_token: sealed,
            scopes: meet_projector::fake::DEFAULT_SCOPES.join(" "),
        };
        self.store.put_credential(&credential, self.clock.now()).await.unwrap();
    }

    /// A lesson of teacher `n` in three days, scheduled for the first time.
    pub fn lesson(&self, session: &str, teacher: usize) -> SessionEvent {
        let now = self.clock.now();
        lesson_at(session, teacher, now.plus(72 * HOUR_MS - now.get().rem_euclid(HOUR_MS)))
    }

    /// Publishes an event as the booking backend does, and returns its sequence.
    pub async fn publish(&self, event: &SessionEvent) -> i64 {
        let payload = encode(event).to_string();
        let headers = [("Nats-Msg-Id", event.event_id.as_str()), ("Content-Type", "application/cloudevents+json")];
        self.publish_raw(&subject(event), &headers, payload.into_bytes()).await
    }

    /// Publishes bytes as they are, and returns their sequence.
    pub async fn publish_raw(&self, subject: &str, headers: &[(&str, &str)], payload: Vec<u8>) -> i64 {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let sent = self.connection.client.request_with_headers(subject.to_owned(), map, payload.into()).await.unwrap();
        let answer: Value = serde_json::from_slice(&sent.payload).unwrap();
        answer["seq"].as_i64().unwrap_or_else(|| panic!("not stored: {answer}"))
    }

    /// Reads a path of the API with the token.
    pub async fn get(&self, path: &str) -> Answer {
        self.get_if_none_match(path, None).await
    }

    async fn get_if_none_match(&self, path: &str, etag: Option<&str>) -> Answer {
        let mut request = self.http.get(format!("{}{path}", self.base)).bearer_auth(&self.token);
        if let Some(etag) = etag {
            request = request.header("If-None-Match", etag);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let etag = answer.headers().get("etag").map(|etag| etag.to_str().unwrap().to_owned());
        let json = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
        Answer { status, etag, json }
    }

    /// The document as it is now; `None` when the session is unknown.
    pub async fn document(&self, session: &str) -> Option<Value> {
        let answer = self.get(&format!("/api/google/meet/{session}")).await;
        (answer.status == StatusCode::OK).then_some(answer.json)
    }

    /// Long-polls until the document is as wanted, and returns it.
    pub async fn wait_for(&self, session: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let (begun, path) = (Instant::now(), format!("/api/google/meet/{session}?wait=5"));
        let (mut etag, mut seen) = (None, Value::Null);
        loop {
            let answer = self.get_if_none_match(&path, etag.as_deref()).await;
            match answer.status {
                StatusCode::OK => (etag, seen) = (answer.etag, answer.json),
                StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND => {}
                other => panic!("the API answered {other}: {}", answer.json),
            }
            if wanted(&seen) {
                return seen;
            }
            assert!(begun.elapsed() < PATIENCE, "waited in vain for {session}; last seen: {seen:#}");
        }
    }

    /// Waits until Google is known to agree with this version of a scheduled session.
    pub async fn ready(&self, session: &str, version: i64) -> Value {
        self.wait_for(session, |d| d["meetStatus"] == "READY" && d["version"] == version && d["upToDate"] == true).await
    }

    /// Waits until nothing of the canceled session is left at Google.
    pub async fn canceled(&self, session: &str, version: i64) -> Value {
        let gone = |d: &Value| d["meetStatus"] == "CANCELED" && d["version"] == version && d["upToDate"] == true;
        self.wait_for(session, gone).await
    }

    /// Waits until the document shows this error.
    pub async fn error(&self, session: &str, code: &str) -> Value {
        self.wait_for(session, |d| d["meetStatus"] == "ERROR" && d["error"]["code"] == code).await
    }

    /// Waits until everything published so far was folded (or refused) and acknowledged.
    pub async fn folded(&self) {
        let last = self.connection.get_last("BOOKINGS", "bookings.>").await.unwrap().map_or(0, |last| last.sequence);
        eventually(&format!("sequence {last} is folded"), async || {
            let health = &self.service.as_ref().expect("the service runs").health;
            health.snapshot().contiguous >= last
        })
        .await;
    }

    /// Waits until nothing is due at Google and no calendar is being worked on.
    pub async fn until_settled(&self) {
        self.folded().await;
        eventually("nothing is due", async || self.store.counts(self.clock.now()).await.unwrap().due == 0).await;
    }

    /// At no instant did a session have two events on one account, nor two events one link.
    #[track_caller]
    pub fn assert_google_was_never_wrong(&self) {
        let wrong = self.fake().check(&[]);
        let wrong: Vec<_> = wrong.iter().filter(|text| !text.ends_with("is not expected")).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    /// The status and body of `/readyz`.
    pub async fn readiness(&self) -> Answer {
        self.get("/readyz").await
    }

    /// Waits until `/readyz` answers 200.
    pub async fn until_ready(&self) {
        eventually("the service is ready", async || self.readiness().await.status == StatusCode::OK).await;
    }

    /// Waits until `/readyz` answers 503 with this check failed, and returns the reason it gives.
    pub async fn until_not_ready(&self, check: &str) -> String {
        let mut reason = String::new();
        eventually(&format!("/readyz names {check}"), async || {
            let answer = self.readiness().await;
            let failed = &answer.json["checks"][check];
            failed["detail"].as_str().unwrap_or_default().clone_into(&mut reason);
            answer.status == StatusCode::SERVICE_UNAVAILABLE && failed["ok"] == false
        })
        .await;
        reason
    }

    /// The calls about one session that reached Google, in order.
    pub fn calls(&self, session: &str) -> Vec<Operation> {
        let recorded = self.fake().recorded();
        recorded.iter().filter(|call| call.session.as_deref() == Some(session)).map(|call| call.operation).collect()
    }

    /// The calls that write among [`World::calls`].
    pub fn writes(&self, session: &str) -> Vec<Operation> {
        self.calls(session).into_iter().filter(|operation| operation.is_write()).collect()
    }

    /// Everything about sessions on stream `MEET` now, in order.
    pub async fn published(&self) -> Vec<Published> {
        self.published_on("meet.session.>").await
    }

    /// Everything on these subjects of stream `MEET` now, in order.
    pub async fn published_on(&self, subjects: &str) -> Vec<Published> {
        let mut messages = Vec::new();
        let mut next = 1;
        while let Some(message) = self.connection.get_next("MEET", next, subjects).await.unwrap() {
            next = message.sequence + 1;
            messages.push(Published {
                subject: message.raw.subject,
                headers: message.raw.headers,
                event: serde_json::from_slice(&message.raw.payload).unwrap(),
            });
        }
        messages
    }

    /// Waits until stream `MEET` is as wanted, and returns everything on it.
    pub async fn until_published(&self, what: &str, wanted: impl Fn(&[Published]) -> bool) -> Vec<Published> {
        let mut seen = Vec::new();
        eventually(&format!("stream MEET holds {what}"), async || {
            seen = self.published().await;
            wanted(&seen)
        })
        .await;
        seen
    }

    /// A file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The id of teacher `n`.
pub fn teacher_id(n: usize) -> TeacherId {
    TeacherId::parse(format!("tch_{n}")).unwrap()
}

/// A lesson of an hour, scheduled for the first time.
pub fn lesson_at(session: &str, teacher: usize, starts_at: UnixMillis) -> SessionEvent {
    let details = Details {
        kind: Kind::Private,
        title: format!("Piano {session}"),
        description: Some("Bring the notes.".to_owned()),
        starts_at,
        ends_at: starts_at.plus(HOUR_MS),
        time_zone: TimeZone::parse("Europe/Madrid").unwrap(),
        attendees: Vec::new(),
        url: Some(format!("https://school.example.com/sessions/{session}")),
    };
    SessionEvent {
        event_id: event_id(session, 1),
        source: Some("/services/bookings".to_owned()),
        shape: Shape::Structured,
        change: Change::Scheduled,
        session: SessionId::parse(session).unwrap(),
        version: SessionVersion::new(1).unwrap(),
        teacher: teacher_id(teacher),
        details: Some(details),
        occurred_at: Some(UnixMillis::new(starts_at.get() - 240 * HOUR_MS)),
        traceparent: None,
    }
}

/// What follows on a change of a session.
pub trait Then: Sized {
    /// The next version, rescheduled, changed by `change`.
    fn then(&self, change: impl FnOnce(&mut Details)) -> Self;

    /// The next version, `by_ms` later.
    fn moved(&self, by_ms: i64) -> Self {
        self.then(|details| {
            details.starts_at = details.starts_at.plus(by_ms);
            details.ends_at = details.ends_at.plus(by_ms);
        })
    }

    /// The next version, canceled.
    fn canceled(&self) -> Self;

    /// The next version, with another teacher.
    fn taught_by(&self, teacher: usize) -> Self;
}

impl Then for SessionEvent {
    fn then(&self, change: impl FnOnce(&mut Details)) -> Self {
        let mut next = following(self, Change::Rescheduled);
        change(next.details.as_mut().expect("a lesson that takes place"));
        next
    }

    fn canceled(&self) -> Self {
        following(self, Change::Canceled)
    }

    fn taught_by(&self, teacher: usize) -> Self {
        Self { teacher: teacher_id(teacher), ..following(self, Change::Rescheduled) }
    }
}

fn following(event: &SessionEvent, change: Change) -> SessionEvent {
    let version = event.version.get() + 1;
    SessionEvent {
        event_id: event_id(event.session.as_str(), version),
        version: SessionVersion::new(version).unwrap(),
        change,
        ..event.clone()
    }
}

fn event_id(session: &str, version: i64) -> String {
    format!("evt-{session}-{version}")
}

/// Made by the command that people use.
pub async fn new_token(store: &Store, clock: &Clock, role: Role) -> String {
    let mut token = Vec::new();
    let action = TokenAction::New { name: "test".to_owned(), role };
    token_command(&action, store, clock, false, &mut token, &mut std::io::sink()).await.unwrap();
    String::from_utf8(token).unwrap().trim().to_owned()
}

/// A token of role `admin` in the database that the world has now.
pub async fn new_token_in(world: &World) -> String {
    new_token(&world.store, &world.clock, Role::Admin).await
}

/// Looks again until `condition` holds: for what nobody announces.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn environment(google: &Google, nats: &NatsServer, database: &str, attendees: bool) -> BTreeMap<String, String> {
    let (served, client) = (&google.running, google.fake.settings());
    [
        ("MEET_ENVIRONMENT", "test".to_owned()),
        ("HTTP_ADDR", "127.0.0.1:0".to_owned()),
        ("DATABASE_URL", database.to_owned()),
        ("NATS_URL", nats.config().url.expose_secret().to_owned()),
        ("WP_BASE_URL", "https://school.example.com".to_owned()),
        ("GOOGLE_CLIENT_ID", client.client_id),
        ("GOOGLE_CLIENT_SECRET", client.client_secret),
        ("GOOGLE_ENCRYPTION_KEY", "42".repeat(32)),
        ("GOOGLE_AUTH_URI", served.auth_uri.to_string()),
        ("GOOGLE_TOKEN_URI", served.token_uri.to_string()),
        ("GOOGLE_REVOKE_URI", served.revoke_uri.to_string()),
        ("GOOGLE_CALENDAR_API_ROOT", served.calendar_api_root.to_string()),
        ("GOOGLE_RATE_PER_TEACHER", "0".to_owned()),
        ("GOOGLE_RATE_PER_PROJECT", "0".to_owned()),
        ("GOOGLE_ATTENDEES", attendees.to_string()),
        // Tests ask often; those of the limit set it.
        ("API_RATE_LIMIT", "0".to_owned()),
        ("LOG_FORMAT", "json".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn port_of(url: &str) -> u16 {
    url::Url::parse(url).unwrap().port().expect("the test server has a port of its own")
}
