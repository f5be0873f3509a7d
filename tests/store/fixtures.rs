//! Databases and messages to test with.

use meet_projector::event::{Change, Details, SessionEvent, Shape};
use meet_projector::model::{
    Attendee, Epoch, EventId, GoogleSub, MeetLink, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis,
};
use meet_projector::plan::{Binding, ConferenceState, Intent, MeetEvent, Phase};
use meet_projector::store::{
    DatabaseUrl, FoldReport, Incoming, NewCredential, RawMessage, Refused, RowWrite, Store, TeacherLease,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row, SqliteConnection};

use crate::support::postgres;

/// 2026-11-22T00:00:00Z, a time at which the test lessons lie ahead.
pub const NOW: UnixMillis = UnixMillis::new(1_795_305_600_000);

/// The epoch of most tests.
pub const EPOCH: Epoch = Epoch(1);

/// Long enough for every lease in a test of something else.
pub const LEASE_MS: i64 = 60_000;

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Sqlite,
    Postgres,
}

/// A fresh, migrated database.
pub struct Fresh {
    pub store: Store,
    pub url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Fresh {
    pub async fn unmigrated(kind: Kind) -> Self {
        let (url, folder) = match kind {
            Kind::Sqlite => {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}/a/folder/meet.db", folder.path().display());
                (url, Some(folder))
            }
            Kind::Postgres => (postgres::fresh_database().await, None),
        };
        Self { store: open(&url).await, url, _folder: folder }
    }

    pub async fn new(kind: Kind) -> Self {
        let fresh = Self::unmigrated(kind).await;
        fresh.store.migrate().await.unwrap();
        fresh
    }

    /// Another process's handle on the same database.
    pub async fn another(&self) -> Store {
        open(&self.url).await
    }

    /// Runs a statement beside the store.
    pub async fn execute(&self, sql: &str) {
        self.texts(sql).await;
    }

    /// The first column of a query beside the store, as texts.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        if self.url.starts_with("sqlite") {
            let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
            let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        } else {
            let mut connection = PgConnection::connect(&self.url).await.unwrap();
            let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            rows.iter().map(|row| row.get(0)).collect()
        }
    }
}

pub async fn open(url: &str) -> Store {
    Store::open(&DatabaseUrl(url.to_owned().into())).await.unwrap()
}

pub fn session(id: &str) -> SessionId {
    SessionId::parse(id).unwrap()
}

pub fn teacher(id: &str) -> TeacherId {
    TeacherId::parse(id).unwrap()
}

/// The n-th test lesson: an hour, n hours into 2026-12-01.
pub fn details(hour: i64) -> Details {
    let starts_at = UnixMillis::parse_rfc3339("2026-12-01T00:00:00Z").unwrap().plus(hour * 3_600_000);
    Details {
        kind: meet_projector::model::Kind::Private,
        title: format!("Piano {hour}"),
        description: None,
        starts_at,
        ends_at: starts_at.plus(3_600_000),
        time_zone: TimeZone::parse("Europe/Madrid").unwrap(),
        attendees: vec![Attendee { email: "ana@example.com".into(), display_name: Some("Ana \"Ñ\" P.".into()) }],
        url: None,
    }
}

pub fn scheduled(id: &str, version: i64, who: &str, hour: i64) -> SessionEvent {
    SessionEvent {
        event_id: format!("{id}-{version}-{hour}"),
        source: Some("/services/bookings".into()),
        shape: Shape::Structured,
        change: Change::Scheduled,
        session: session(id),
        version: SessionVersion::new(version).unwrap(),
        teacher: teacher(who),
        details: Some(details(hour)),
        occurred_at: None,
        traceparent: Some(format!("00-{:032x}-{:016x}-01", version + 1000, hour + 1000)),
    }
}

pub fn canceled(id: &str, version: i64, who: &str) -> SessionEvent {
    SessionEvent { change: Change::Canceled, details: None, ..scheduled(id, version, who, 0) }
}

pub fn incoming(sequence: i64, event: SessionEvent) -> Incoming {
    Incoming {
        sequence,
        stored_at: NOW.plus(sequence),
        fingerprint: format!("fingerprint-{sequence}"),
        raw: RawMessage {
            subject: format!("bookings.session.{}.scheduled", event.session),
            headers: vec![("Nats-Msg-Id".into(), event.event_id.clone()), ("X".into(), "a: b".into())],
            payload: format!("{{\"id\":\"{}\"}}", event.event_id).into(),
        },
        decoded: Ok(event),
    }
}

pub fn refused(sequence: i64, class: &'static str) -> Incoming {
    Incoming {
        decoded: Err(Refused { class, reason: "data.endsAt is before data.startsAt".into(), session: None }),
        ..incoming(sequence, scheduled("refused", 1, "t", 1))
    }
}

/// Folds events at sequences 1, 2, … of [`EPOCH`], all in one group.
pub async fn fold(store: &Store, events: Vec<SessionEvent>) -> FoldReport {
    let first = store.position(EPOCH).await.unwrap().highest + 1;
    let group: Vec<_> = (first..).zip(events).map(|(sequence, event)| incoming(sequence, event)).collect();
    store.fold(EPOCH, &group, NOW).await.unwrap()
}

pub async fn claim(store: &Store, now: UnixMillis) -> Vec<TeacherLease> {
    store.claim(now, LEASE_MS, 16, 256).await.unwrap()
}

/// Claims the calendar that alone is due.
pub async fn claim_one(store: &Store, now: UnixMillis) -> TeacherLease {
    let mut leases = claim(store, now).await;
    assert_eq!(leases.len(), 1, "one calendar is due");
    leases.remove(0)
}

pub async fn release(store: &Store, lease: &TeacherLease, now: UnixMillis) {
    store.release(&[(lease.teacher.clone(), lease.token)], now).await.unwrap();
}

pub fn write(lease: &TeacherLease, row: MeetEvent) -> RowWrite {
    RowWrite { token: lease.token, from: None, row, successor: None }
}

/// The row as it is before its insert.
pub fn begun(row: &MeetEvent, now: UnixMillis) -> MeetEvent {
    let account = GoogleSub(format!("sub-{}", row.teacher));
    let event_id = EventId::derive("test", &row.session, &account, row.ordinal);
    MeetEvent {
        binding: Some(Binding { account, calendar: "primary".into(), generation: row.ordinal, event_id }),
        intent: Some(Intent { operation: "insert".into(), at: now }),
        ..row.clone()
    }
}

/// The row as it is after Google has taken its insert and made the link.
pub fn done(row: &MeetEvent, now: UnixMillis) -> MeetEvent {
    MeetEvent {
        intent: None,
        phase: Phase::Live,
        etag: Some("\"1\"".into()),
        link: Some(MeetLink::parse("https://meet.google.com/abc-defg-hij").unwrap()),
        conference: ConferenceState::Ready,
        confirmed_at: Some(now),
        settled: true,
        failure: None,
        next_attempt_at: None,
        ..begun(row, now)
    }
}

pub fn grant(who: &str, account: &str) -> NewCredential {
    NewCredential {
        teacher: teacher(who),
        account: GoogleSub(account.into()),
        email: Some(format!("{who}@example.com")),
        calendar: "primary".into(),
        refresh_token: vec![0, 1, 254, 255],
        scopes: "openid email".into(),
    }
}

/// The row of a session that has one.
pub async fn only_row(store: &Store, id: &str) -> MeetEvent {
    let (_, mut rows) = store.session(&session(id)).await.unwrap().unwrap();
    assert_eq!(rows.len(), 1);
    rows.remove(0)
}

pub async fn document(store: &Store, id: &str) -> serde_json::Value {
    serde_json::from_str(&store.document(&session(id)).await.unwrap().unwrap().json).unwrap()
}
