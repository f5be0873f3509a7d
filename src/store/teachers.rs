//! Teachers as readers see them: the state of the connection, and how many sessions wait for it.
//!
//! Every change of a grant's status is told to stream `MEET` in the transaction that makes it. Whoever writes a status
//! reads [`standing`] first and calls [`announce`] afterwards, both in his transaction.

use serde::Serialize;
use serde_json::json;

use super::outbox::{self, Draft};
use super::sql::{Row, Sql, Tx, args, batch, both, with_batch, word};
use super::{Result, Store, TokenStatus, rows};
use crate::model::{TeacherId, UnixMillis};

/// The word for a teacher who has sessions and no grant.
pub const NOT_CONNECTED: &str = "NOT_CONNECTED";

/// `tokenStatus` as readers see it: the status of the grant, [`NOT_CONNECTED`] where there is none.
pub fn token_status(grant: Option<TokenStatus>) -> &'static str {
    grant.map_or(NOT_CONNECTED, TokenStatus::as_str)
}

/// Every word that `tokenStatus` may have.
pub fn token_statuses() -> impl Iterator<Item = &'static str> {
    TokenStatus::WORDS.iter().map(|(_, word)| *word).chain([NOT_CONNECTED])
}

/// What is known of a teacher's connection to Google. Holds no token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The teacher.
    pub teacher: TeacherId,
    /// The grant, if there ever was one.
    pub grant: Option<Grant>,
    /// Sessions that are not over and wait for the teacher's connection.
    pub blocked_sessions: i64,
    /// The soonest start among them.
    pub next_blocked_starts_at: Option<UnixMillis>,
}

/// A grant without its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Usable, or why not.
    pub status: TokenStatus,
    /// The account's address.
    pub email: Option<String>,
    /// Granted scopes, space-separated.
    pub scopes: String,
    /// First connect of this account.
    pub connected_at: UnixMillis,
    /// Last time Google gave an access token.
    pub last_refresh_at: Option<UnixMillis>,
    /// Why the last refresh failed, without secrets.
    pub last_error: Option<String>,
    /// When the grant ends by itself, where Google said so.
    pub ends_at: Option<UnixMillis>,
}

impl Connection {
    /// The status of the grant, if there is one.
    pub fn status(&self) -> Option<TokenStatus> {
        self.grant.as_ref().map(|grant| grant.status)
    }
}

/// Filters of the list; all optional, combined with *and*. Pages are ordered by the teacher's id.
#[derive(Debug, Clone, Default)]
pub struct ConnectionFilter {
    /// Words of `tokenStatus` (empty: all).
    pub statuses: Vec<&'static str>,
    /// Only teachers with (or without) sessions that wait for their connection.
    pub blocked: Option<bool>,
    /// 1 to 1,000.
    pub limit: i64,
    /// The last teacher of the page before.
    pub after: Option<TeacherId>,
}

/// One page.
#[derive(Debug, Clone, Default)]
pub struct ConnectionPage {
    /// The teachers.
    pub items: Vec<Connection>,
    /// Where the next page begins, when there is one.
    pub next: Option<TeacherId>,
}

/// The sessions that wait for a connection, by teacher, from the partial index `session_meet_event_waiting`. The list
/// of codes must be that of the index, or it is not used.
macro_rules! waiting {
    ($whose:literal) => {
        concat!(
            "waiting AS (SELECT r.teacher_id, COUNT(DISTINCT r.session_id) AS sessions, \
             MIN(s.starts_at_ms) AS starts_at_ms FROM session_meet_event AS r \
             JOIN session AS s ON s.session_id = r.session_id WHERE r.failure_code IN \
             ('TEACHER_NOT_CONNECTED', 'RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED') \
             AND r.want = 'present' AND r.phase NOT IN ('absent', 'foreign') AND s.status = 'scheduled' AND ",
            $whose,
            " GROUP BY r.teacher_id)"
        )
    };
}
pub(super) use waiting;

macro_rules! connection_columns {
    () => {
        "t.teacher_id, c.token_status, c.google_email, c.scopes, c.connected_at_ms, c.last_refresh_at_ms, \
         c.last_error, c.refresh_expires_at_ms, COALESCE(w.sessions, 0) AS blocked_sessions, w.starts_at_ms AS blocked_starts_at_ms"
    };
}

/// `$1` teacher, `$2` now.
const ONE: Sql = both(concat!(
    "WITH teacher AS (SELECT teacher_id FROM teacher_google_credential WHERE teacher_id = $1 UNION \
     SELECT teacher_id FROM (SELECT teacher_id FROM session WHERE teacher_id = $1 LIMIT 1) AS heard), ",
    waiting!("r.teacher_id = $1 AND s.ends_at_ms > $2"),
    " SELECT ",
    connection_columns!(),
    " FROM teacher AS t LEFT JOIN teacher_google_credential AS c ON c.teacher_id = t.teacher_id \
     LEFT JOIN waiting AS w ON w.teacher_id = t.teacher_id"
));

/// `$1` statuses, `$2` now, `$3` the last teacher of the page before, `$4` blocked (-1: both), `$5` limit. Teachers of
/// sessions come by hops through the index, one a teacher, however many sessions each has.
const PAGE: Sql = with_batch!(
    concat!(
        "WITH RECURSIVE heard(teacher_id) AS (SELECT MIN(teacher_id) FROM session WHERE teacher_id > $3 UNION ALL \
         SELECT (SELECT MIN(s.teacher_id) FROM session AS s WHERE s.teacher_id > heard.teacher_id) FROM heard \
         WHERE heard.teacher_id IS NOT NULL), \
         teacher AS (SELECT teacher_id FROM heard WHERE teacher_id IS NOT NULL UNION \
         SELECT teacher_id FROM teacher_google_credential WHERE teacher_id > $3), ",
        waiting!("s.ends_at_ms > $2"),
        " SELECT ",
        connection_columns!(),
        " FROM teacher AS t LEFT JOIN teacher_google_credential AS c ON c.teacher_id = t.teacher_id \
         LEFT JOIN waiting AS w ON w.teacher_id = t.teacher_id \
         WHERE ($4 = -1 OR $4 = CASE WHEN w.sessions IS NULL THEN 0 ELSE 1 END) \
         AND COALESCE(c.token_status, 'NOT_CONNECTED') IN "
    ),
    [token_status text],
    " ORDER BY t.teacher_id LIMIT $5"
);

const STANDING: Sql = both(
    "SELECT token_status, google_sub, token_version, last_error FROM teacher_google_credential WHERE teacher_id = $1",
);

/// What a change of the status is told from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    status: TokenStatus,
    account: String,
    version: i64,
    reason: Option<String>,
}

/// The grant's status as it is in this transaction; `None` where there is no grant.
pub(super) async fn standing(tx: &mut Tx, teacher: &TeacherId) -> Result<Option<Standing>> {
    let row = tx.row(STANDING, args![teacher.as_str()]).await?;
    row.map(|row| {
        Ok(Standing {
            status: row.parsed("token_status", |text| word(&TokenStatus::WORDS, text))?,
            account: row.get("google_sub")?,
            version: row.get("token_version")?,
            reason: row.get("last_error")?,
        })
    })
    .transpose()
}

/// Tells stream `MEET` when the status, or the connected account, is another one than `before`.
pub(super) async fn announce(
    tx: &mut Tx,
    teacher: &TeacherId,
    before: Option<&Standing>,
    now: UnixMillis,
) -> Result<()> {
    let Some(after) = standing(tx, teacher).await? else { return Ok(()) };
    if before.is_some_and(|before| before.status == after.status && before.account == after.account) {
        return Ok(());
    }
    let draft = status_changed(teacher, before.map(|before| before.status), &after, now);
    outbox::append(tx, vec![draft]).await
}

/// The CloudEvent that says that a teacher's connection changed.
fn status_changed(teacher: &TeacherId, before: Option<TokenStatus>, after: &Standing, now: UnixMillis) -> Draft {
    let id = outbox::message_id(now);
    let status = after.status.as_str();
    let payload = json!({
        "specversion": "1.0",
        "id": id,
        "source": "/services/meet-projector",
        "type": "meet.TeacherStatusChanged.v1",
        "subject": teacher.as_str(),
        "time": now.to_rfc3339(),
        "datacontenttype": "application/json",
        "data": {
            "teacherId": teacher.as_str(),
            "connected": after.status == TokenStatus::Connected,
            "tokenStatus": status,
            "previousTokenStatus": token_status(before),
            "reason": after.reason,
            "version": after.version,
            "updatedAt": now.to_rfc3339(),
        },
    });
    // A colon is in no session's id, so the two kinds of keys never meet.
    let (key, subject) =
        (format!("teacher:{teacher}"), format!("meet.teacher.{teacher}.{}", status.to_ascii_lowercase()));
    Draft::new(id, key, subject, payload.to_string(), now)
}

fn read(row: &Row) -> Result<Connection> {
    let status = row.parsed_or_none("token_status", |text| word(&TokenStatus::WORDS, text))?;
    let grant = match status {
        None => None,
        Some(status) => Some(Grant {
            status,
            email: row.get("google_email")?,
            scopes: row.get("scopes")?,
            connected_at: UnixMillis::new(row.get("connected_at_ms")?),
            last_refresh_at: row.time("last_refresh_at_ms")?,
            last_error: row.get("last_error")?,
            ends_at: row.time("refresh_expires_at_ms")?,
        }),
    };
    Ok(Connection {
        teacher: rows::teacher_id(row)?,
        grant,
        blocked_sessions: row.get("blocked_sessions")?,
        next_blocked_starts_at: row.time("blocked_starts_at_ms")?,
    })
}

/// Teachers.
impl Store {
    /// One teacher's connection; `None` for a teacher of whom neither a session nor a grant was ever seen.
    pub async fn connection(&self, teacher: &TeacherId, now: UnixMillis) -> Result<Option<Connection>> {
        let row = self.inner.row("reading a teacher's connection", ONE, args![teacher.as_str(), now]).await?;
        row.as_ref().map(read).transpose()
    }

    /// One page of the list.
    pub async fn connections(&self, filter: &ConnectionFilter, now: UnixMillis) -> Result<ConnectionPage> {
        #[derive(Serialize)]
        struct Status {
            token_status: &'static str,
        }
        let statuses: Vec<_> = token_statuses()
            .filter(|word| filter.statuses.is_empty() || filter.statuses.contains(word))
            .map(|token_status| Status { token_status })
            .collect();
        let values = vec![
            batch(&statuses),
            now.into(),
            filter.after.as_ref().map_or("", TeacherId::as_str).into(),
            filter.blocked.map_or(-1, i64::from).into(),
            (filter.limit + 1).into(),
        ];
        let rows = self.inner.rows("listing teachers' connections", PAGE, values).await?;
        let mut items = rows.iter().map(read).collect::<Result<Vec<_>>>()?;
        let is_full = i64::try_from(items.len()).is_ok_and(|found| found > filter.limit);
        if is_full {
            items.truncate(usize::try_from(filter.limit).unwrap_or(usize::MAX));
        }
        let next = items.last().filter(|_| is_full).map(|last| last.teacher.clone());
        Ok(ConnectionPage { items, next })
    }
}
