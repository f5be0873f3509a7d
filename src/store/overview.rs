//! What one screen shows of the database: all read at one moment.

use serde_json::Value as Json;

use super::sql::{Row, Sql, Tx, args, both, word};
use super::{Result, Store, credentials, rows};
use super::{TokenStatus, control, process};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::Code;

/// How far ahead a session without a link is in danger: a day, so that there is time to do something about it.
pub const DANGER_MS: i64 = 24 * 3_600_000;

/// Sessions in danger that are named; the others are counted.
const NAMED: usize = 10;

/// The database part of `status`.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// Sessions by `meetStatus`: the word and how many.
    pub sessions: Vec<(String, i64)>,
    /// Reasons of sessions that are not over and show an error, most frequent first.
    pub errors: Vec<(Code, i64)>,
    /// The session that has been pending for longest.
    pub oldest_pending: Option<PendingSession>,
    /// Sessions that run or start within [`DANGER_MS`] and have no link: the first ones by start.
    pub in_danger: Vec<Endangered>,
    /// How many such sessions there are.
    pub in_danger_count: usize,
    /// Teachers without a usable grant whose sessions wait, soonest start first.
    pub teachers: Vec<BlockedTeacher>,
    /// Calendars whose writes pause because Google limits them: whose, until when.
    pub cool_downs: Vec<(TeacherId, UnixMillis)>,
    /// Open dead letters by class.
    pub dead_letters: Vec<(String, i64)>,
    /// Results that wait to be published.
    pub outbox: i64,
    /// When the oldest of them was written.
    pub outbox_oldest: Option<UnixMillis>,
    /// Calendars that are due by now and that nobody works on.
    pub due_calendars: i64,
    /// Calendars that a process works on.
    pub held_calendars: i64,
    /// Work that one process does for all: which, who, until when.
    pub leases: Vec<(String, String, UnixMillis)>,
    /// What is paused.
    pub pauses: Vec<super::Pause>,
    /// Processes that serve.
    pub processes: Vec<super::ProcessRecord>,
}

/// A session that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingSession {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub teacher: TeacherId,
    /// Since when its document says so.
    pub since: UnixMillis,
}

/// A session that starts soon, or runs, without a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endangered {
    /// Which.
    pub session: SessionId,
    /// Whose.
    pub teacher: TeacherId,
    /// When it starts.
    pub starts_at: UnixMillis,
    /// `PENDING` or `ERROR`.
    pub status: String,
    /// Why, when something is known.
    pub code: Option<String>,
    /// The same for a person.
    pub message: Option<String>,
}

/// A teacher whose sessions wait for a consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockedTeacher {
    /// Who.
    pub teacher: TeacherId,
    /// What the sessions say.
    pub code: Code,
    /// What the grant says; `None` when there never was one.
    pub status: Option<TokenStatus>,
    /// Sessions that are not over and wait.
    pub sessions: i64,
    /// When the first of them starts.
    pub next_start: Option<UnixMillis>,
}

const SESSIONS: Sql = both("SELECT meet_status, COUNT(*) AS number FROM session GROUP BY meet_status");

/// What is over does not wait any more.
const OLDEST_PENDING: Sql = both(
    "SELECT session_id, teacher_id, document_updated_at_ms FROM session WHERE meet_status = 'PENDING' \
     AND (ends_at_ms IS NULL OR ends_at_ms > $1) ORDER BY document_updated_at_ms, session_id LIMIT 1",
);

/// Lessons of more than a day are not looked back for.
const IN_DANGER: Sql = both(
    "SELECT session_id, teacher_id, list_starts_at_ms, meet_status, document FROM session \
     WHERE meet_status IN ('PENDING', 'ERROR') AND list_starts_at_ms > $1 - 86400000 AND list_starts_at_ms < $2 \
     AND ends_at_ms > $1 ORDER BY list_starts_at_ms, session_id",
);

const ERRORS: Sql = both(
    "SELECT r.failure_code, COUNT(*) AS number FROM session AS s \
     JOIN session_meet_event AS r ON r.session_id = s.session_id \
     WHERE s.meet_status = 'ERROR' AND r.want = 'present' AND s.ends_at_ms > $1 AND r.failure_code IS NOT NULL \
     GROUP BY r.failure_code ORDER BY number DESC, r.failure_code",
);

const BLOCKED: Sql = both(
    "SELECT r.teacher_id, r.failure_code, MAX(c.token_status) AS token_status, COUNT(*) AS number, \
     MIN(s.starts_at_ms) AS next_start_ms FROM session AS s \
     JOIN session_meet_event AS r ON r.session_id = s.session_id \
     LEFT JOIN teacher_google_credential AS c ON c.teacher_id = r.teacher_id \
     WHERE s.meet_status = 'ERROR' AND r.want = 'present' AND s.ends_at_ms > $1 AND r.failure_code IN \
     ('TEACHER_NOT_CONNECTED', 'RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED') \
     GROUP BY r.teacher_id, r.failure_code ORDER BY next_start_ms, r.teacher_id",
);

/// Those whose grant died and for whom nothing waits yet.
const DEAD_GRANTS: Sql = both(
    "SELECT teacher_id, token_status FROM teacher_google_credential \
     WHERE token_status IN ('RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED') ORDER BY teacher_id",
);

const COOL_DOWNS: Sql = both(
    "SELECT teacher_id, cool_down_until_ms FROM teacher_google_credential WHERE cool_down_until_ms > $1 \
     ORDER BY cool_down_until_ms, teacher_id",
);

const DEAD_LETTERS: Sql = both(
    "SELECT class, COUNT(*) AS number FROM dead_letter WHERE state = 'open' GROUP BY class ORDER BY number DESC, class",
);

const QUEUES: Sql = both(
    "SELECT (SELECT COUNT(*) FROM outbox) AS outbox, \
     (SELECT created_at_ms FROM outbox ORDER BY id LIMIT 1) AS outbox_oldest_ms, \
     (SELECT COUNT(*) FROM teacher_queue WHERE due_at_ms <= $1 AND (lease_until_ms IS NULL OR lease_until_ms <= $1)) \
     AS due, (SELECT COUNT(*) FROM teacher_queue WHERE lease_until_ms > $1) AS held",
);

const LEASES: Sql = both("SELECT name, holder, until_ms FROM lease WHERE until_ms > $1 ORDER BY name");

const VERSION: Sql = Sql {
    sqlite: "SELECT 'SQLite ' || sqlite_version() AS version",
    postgres: "SELECT 'PostgreSQL ' || current_setting('server_version') AS version",
};

/// Overview.
impl Store {
    /// Which database it is: `SQLite 3.50.2`, `PostgreSQL 15.9`.
    pub async fn database_version(&self) -> Result<String> {
        match self.inner.row("asking for the database's version", VERSION, args![]).await? {
            Some(row) => row.get("version"),
            None => Ok("unknown".to_owned()),
        }
    }

    /// Everything that `status` shows of the database.
    pub async fn overview(&self, now: UnixMillis) -> Result<Overview> {
        let mut tx = self.inner.snapshot("reading the overview").await?;
        let queues = tx.row(QUEUES, args![now]).await?;
        let queue = |name| queues.as_ref().map_or(Ok(0), |row| row.get::<i64>(name));
        let mut overview = Overview {
            outbox: queue("outbox")?,
            outbox_oldest: queues.as_ref().map_or(Ok(None), |row| row.time("outbox_oldest_ms"))?,
            due_calendars: queue("due")?,
            held_calendars: queue("held")?,
            pauses: control::pauses(&mut tx).await?.into_iter().filter(|pause| pause.holds(now)).collect(),
            processes: process::processes(&mut tx).await?,
            teachers: blocked_teachers(&mut tx, now).await?,
            ..Overview::default()
        };
        for row in tx.rows(SESSIONS, args![]).await? {
            overview.sessions.push((row.get("meet_status")?, row.get("number")?));
        }
        for row in tx.rows(ERRORS, args![now]).await? {
            overview.errors.push((row.parsed("failure_code", |text| word(&Code::WORDS, text))?, row.get("number")?));
        }
        if let Some(row) = tx.row(OLDEST_PENDING, args![now]).await? {
            overview.oldest_pending = Some(PendingSession {
                session: rows::session_id(&row)?,
                teacher: rows::teacher_id(&row)?,
                since: UnixMillis::new(row.get("document_updated_at_ms")?),
            });
        }
        for row in tx.rows(IN_DANGER, args![now, now.plus(DANGER_MS)]).await? {
            if let Some(endangered) = endangered(&row)? {
                overview.in_danger_count += 1;
                if overview.in_danger.len() < NAMED {
                    overview.in_danger.push(endangered);
                }
            }
        }
        for row in tx.rows(COOL_DOWNS, args![now]).await? {
            overview.cool_downs.push((rows::teacher_id(&row)?, UnixMillis::new(row.get("cool_down_until_ms")?)));
        }
        for row in tx.rows(DEAD_LETTERS, args![]).await? {
            overview.dead_letters.push((row.get("class")?, row.get("number")?));
        }
        for row in tx.rows(LEASES, args![now]).await? {
            let until = UnixMillis::new(row.get("until_ms")?);
            overview.leases.push((row.get("name")?, row.get("holder")?, until));
        }
        Ok(overview)
    }
}

async fn blocked_teachers(tx: &mut Tx, now: UnixMillis) -> Result<Vec<BlockedTeacher>> {
    let mut teachers = Vec::new();
    for row in tx.rows(BLOCKED, args![now]).await? {
        teachers.push(BlockedTeacher {
            teacher: rows::teacher_id(&row)?,
            code: row.parsed("failure_code", |text| word(&Code::WORDS, text))?,
            status: row.parsed_or_none("token_status", credentials::status)?,
            sessions: row.get("number")?,
            next_start: row.time("next_start_ms")?,
        });
    }
    for row in tx.rows(DEAD_GRANTS, args![]).await? {
        let teacher = rows::teacher_id(&row)?;
        if teachers.iter().any(|known| known.teacher == teacher) {
            continue;
        }
        let status = row.parsed("token_status", credentials::status)?;
        let code = match status {
            TokenStatus::ScopeMissing => Code::ScopeMissing,
            TokenStatus::AdminBlocked => Code::AdminBlocked,
            _ => Code::ReconnectRequired,
        };
        teachers.push(BlockedTeacher { teacher, code, status: Some(status), sessions: 0, next_start: None });
    }
    Ok(teachers)
}

/// A link that is there works, though a new time is still being written.
fn endangered(row: &Row) -> Result<Option<Endangered>> {
    let document: Json = row.parsed("document", |json| serde_json::from_str(json).ok())?;
    if document["meetLink"].is_string() {
        return Ok(None);
    }
    let text = |value: &Json| value.as_str().map(str::to_owned);
    Ok(Some(Endangered {
        session: rows::session_id(row)?,
        teacher: rows::teacher_id(row)?,
        starts_at: UnixMillis::new(row.get("list_starts_at_ms")?),
        status: row.get("meet_status")?,
        code: text(&document["error"]["code"]),
        message: text(&document["error"]["message"]),
    }))
}
