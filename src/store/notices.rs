//! What the operators should know, and what they were told: see [`crate::notices`].

use super::sql::{Row, Sql, args, both, word};
use super::teachers::waiting;
use super::{Result, Store, TokenStatus, rows};
use crate::model::{SessionId, TeacherId, UnixMillis};

/// What there is to tell, as of one moment.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Teachers who have to connect (again), those whose sessions wait first, by the next start.
    pub unconnected: Vec<Unconnected>,
    /// Sessions that start soon, or have started, and have no link, soonest first.
    pub without_link: Vec<WithoutLink>,
    /// Open dead letters.
    pub dead_letters: i64,
    /// The ids of the newest thousand of them.
    pub newest_dead_letters: Vec<i64>,
    /// Grants that end by themselves before long, soonest first.
    pub ending: Vec<(TeacherId, UnixMillis)>,
}

/// A teacher who has to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconnected {
    /// The teacher.
    pub teacher: TeacherId,
    /// The grant's status; `None` where there is no grant.
    pub status: Option<TokenStatus>,
    /// Sessions that wait for it.
    pub blocked_sessions: i64,
    /// The soonest start among them.
    pub next_starts_at: Option<UnixMillis>,
}

/// A session without a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WithoutLink {
    /// The session.
    pub session: SessionId,
    /// Its teacher.
    pub teacher: TeacherId,
    /// Its start.
    pub starts_at: UnixMillis,
    /// Why, where the rows say so.
    pub code: Option<String>,
}

/// What was told about one cause.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Told {
    /// Grows with every change; 0 for a cause that was never kept.
    pub revision: i64,
    /// Since when the cause is there.
    pub opened_at: Option<UnixMillis>,
    /// When it was last seen.
    pub seen_at: Option<UnixMillis>,
    /// When this appearance of it was told first.
    pub opening_told_at: Option<UnixMillis>,
    /// When it was told last.
    pub told_at: Option<UnixMillis>,
    /// Those affected that were told, sorted.
    pub members: Vec<String>,
}

/// A text for the webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is about.
    pub cause: String,
    /// The text.
    pub text: String,
    /// When it was written.
    pub written_at: UnixMillis,
    /// Posts so far, this one included.
    pub attempts: i64,
}

/// `$1` now.
const UNCONNECTED: Sql = both(concat!(
    "WITH ",
    waiting!("s.ends_at_ms > $1"),
    ", teacher AS (SELECT teacher_id FROM waiting UNION SELECT teacher_id FROM teacher_google_credential \
     WHERE token_status IN ('RECONNECT_REQUIRED', 'SCOPE_MISSING', 'ADMIN_BLOCKED')) \
     SELECT t.teacher_id, c.token_status, COALESCE(w.sessions, 0) AS sessions, w.starts_at_ms \
     FROM teacher AS t LEFT JOIN teacher_google_credential AS c ON c.teacher_id = t.teacher_id \
     LEFT JOIN waiting AS w ON w.teacher_id = t.teacher_id \
     WHERE COALESCE(c.token_status, 'NOT_CONNECTED') <> 'CONNECTED' \
     ORDER BY COALESCE(w.starts_at_ms, 9223372036854775807), t.teacher_id"
));

/// `$1` now, `$2` the end of "soon". A session counts from then until it is over, and lists start with the soonest.
const WITHOUT_LINK: Sql = both(
    "SELECT s.session_id, s.teacher_id, s.starts_at_ms, (SELECT MIN(r.failure_code) FROM session_meet_event AS r \
     WHERE r.session_id = s.session_id AND r.want = 'present') AS failure_code FROM session AS s \
     WHERE s.list_starts_at_ms > $1 - 86400000 AND s.list_starts_at_ms <= $2 AND s.ends_at_ms > $1 \
     AND s.status = 'scheduled' AND NOT EXISTS (SELECT 1 FROM session_meet_event AS r \
     WHERE r.session_id = s.session_id AND r.want = 'present' AND r.meet_link IS NOT NULL) \
     ORDER BY s.list_starts_at_ms, s.session_id",
);

const DEAD_LETTERS: Sql = both("SELECT COUNT(*) AS number FROM dead_letter WHERE state = 'open'");

const NEWEST_DEAD_LETTERS: Sql = both("SELECT id FROM dead_letter WHERE state = 'open' ORDER BY id DESC LIMIT 1000");

const ENDING: Sql = both(
    "SELECT teacher_id, refresh_expires_at_ms FROM teacher_google_credential \
     WHERE token_status = 'CONNECTED' AND refresh_expires_at_ms <= $1 ORDER BY refresh_expires_at_ms, teacher_id",
);

const ALL: Sql =
    both("SELECT cause, revision, opened_at_ms, seen_at_ms, opening_told_at_ms, told_at_ms, members FROM notice");

/// Nothing happens where the revision moved. A row begins with revision 1.
const KEEP: Sql = both(
    "INSERT INTO notice AS known (cause, revision, opened_at_ms, seen_at_ms, opening_told_at_ms, told_at_ms, members, \
     outgoing, outgoing_at_ms, attempts, next_attempt_at_ms) \
     VALUES ($1, $2 + 1, $3, $4, $5, $6, $7, $8, CASE WHEN $8 IS NULL THEN NULL ELSE $9 END, 0, NULL) \
     ON CONFLICT (cause) DO UPDATE SET revision = excluded.revision, opened_at_ms = excluded.opened_at_ms, \
     seen_at_ms = excluded.seen_at_ms, opening_told_at_ms = excluded.opening_told_at_ms, \
     told_at_ms = excluded.told_at_ms, members = excluded.members, \
     attempts = CASE WHEN excluded.outgoing IS NULL THEN known.attempts ELSE 0 END, \
     next_attempt_at_ms = CASE WHEN excluded.outgoing IS NULL THEN known.next_attempt_at_ms END, \
     outgoing = COALESCE(excluded.outgoing, known.outgoing), \
     outgoing_at_ms = COALESCE(excluded.outgoing_at_ms, known.outgoing_at_ms) \
     WHERE known.revision = $2",
);

/// `$1` now, `$2` when this post counts as lost.
const TAKE: Sql = both(
    "UPDATE notice SET attempts = attempts + 1, next_attempt_at_ms = $2 \
     WHERE outgoing IS NOT NULL AND (next_attempt_at_ms IS NULL OR next_attempt_at_ms <= $1) \
     RETURNING cause, outgoing, outgoing_at_ms, attempts",
);

/// A newer text that has come meanwhile has other bytes or another time, and stays.
const POSTED: Sql = both(
    "UPDATE notice SET outgoing = NULL, outgoing_at_ms = NULL, attempts = 0, next_attempt_at_ms = NULL \
     WHERE cause = $1 AND outgoing = $2 AND outgoing_at_ms = $3",
);

const POSTPONE: Sql =
    both("UPDATE notice SET next_attempt_at_ms = $4 WHERE cause = $1 AND outgoing = $2 AND outgoing_at_ms = $3");

fn read(row: &Row) -> Result<(String, Told)> {
    let members: String = row.get("members")?;
    let told = Told {
        revision: row.get("revision")?,
        opened_at: row.time("opened_at_ms")?,
        seen_at: row.time("seen_at_ms")?,
        opening_told_at: row.time("opening_told_at_ms")?,
        told_at: row.time("told_at_ms")?,
        members: serde_json::from_str(&members).map_err(|_| row.corrupt("members", &members))?,
    };
    Ok((row.get("cause")?, told))
}

/// Notices.
impl Store {
    /// What there is to tell, and what was told, both of one moment.
    pub async fn notice_facts(
        &self,
        now: UnixMillis,
        soon: UnixMillis,
        ending: UnixMillis,
    ) -> Result<(Facts, Vec<(String, Told)>)> {
        let mut tx = self.inner.snapshot("looking for what people should know").await?;
        let told = tx.rows(ALL, args![]).await?.iter().map(read).collect::<Result<_>>()?;
        let mut facts = Facts::default();
        for row in tx.rows(UNCONNECTED, args![now]).await? {
            facts.unconnected.push(Unconnected {
                teacher: rows::teacher_id(&row)?,
                status: row.parsed_or_none("token_status", |text| word(&TokenStatus::WORDS, text))?,
                blocked_sessions: row.get("sessions")?,
                next_starts_at: row.time("starts_at_ms")?,
            });
        }
        for row in tx.rows(WITHOUT_LINK, args![now, soon]).await? {
            facts.without_link.push(WithoutLink {
                session: rows::session_id(&row)?,
                teacher: rows::teacher_id(&row)?,
                starts_at: UnixMillis::new(row.get("starts_at_ms")?),
                code: row.get("failure_code")?,
            });
        }
        if let Some(row) = tx.row(DEAD_LETTERS, args![]).await? {
            facts.dead_letters = row.get("number")?;
        }
        let newest = tx.rows(NEWEST_DEAD_LETTERS, args![]).await?;
        facts.newest_dead_letters = newest.iter().map(|row| row.get("id")).collect::<Result<_>>()?;
        for row in tx.rows(ENDING, args![ending]).await? {
            facts.ending.push((rows::teacher_id(&row)?, UnixMillis::new(row.get("refresh_expires_at_ms")?)));
        }
        tx.commit().await?;
        Ok((facts, told))
    }

    /// Keeps what was decided about a cause, unless another process was faster (`false`). `outgoing` replaces a text
    /// that still waits for the webhook.
    pub async fn keep_notice(&self, cause: &str, told: &Told, outgoing: Option<&str>, now: UnixMillis) -> Result<bool> {
        let members = serde_json::to_string(&told.members).expect("texts always serialise");
        let values = args![
            cause,
            told.revision,
            told.opened_at,
            told.seen_at,
            told.opening_told_at,
            told.told_at,
            members,
            outgoing,
            now
        ];
        self.changed_one("keeping what was told", KEEP, values).await
    }

    /// The texts that the webhook should get now; for `lease_ms` nobody else posts them.
    pub async fn take_outgoing(&self, now: UnixMillis, lease_ms: i64) -> Result<Vec<Outgoing>> {
        let operation = "taking notices to post";
        // Most of the time there are none, and asking costs no write.
        let waiting =
            both("SELECT cause FROM notice WHERE outgoing IS NOT NULL AND COALESCE(next_attempt_at_ms, $1) <= $1");
        if self.inner.row(operation, waiting, args![now]).await?.is_none() {
            return Ok(Vec::new());
        }
        let mut tx = self.inner.write(operation).await?;
        let rows = tx.rows(TAKE, args![now, now.plus(lease_ms)]).await?;
        tx.commit().await?;
        rows.iter()
            .map(|row| {
                Ok(Outgoing {
                    cause: row.get("cause")?,
                    text: row.get("outgoing")?,
                    written_at: UnixMillis::new(row.get("outgoing_at_ms")?),
                    attempts: row.get("attempts")?,
                })
            })
            .collect()
    }

    /// The webhook has got the text, or it is given up.
    pub async fn end_outgoing(&self, done: &Outgoing) -> Result<()> {
        let values = args![done.cause.as_str(), done.text.as_str(), done.written_at];
        self.changed_one("noting a posted notice", POSTED, values).await.map(drop)
    }

    /// The webhook did not take the text: not before `at` again.
    pub async fn postpone_outgoing(&self, failed: &Outgoing, at: UnixMillis) -> Result<()> {
        let values = args![failed.cause.as_str(), failed.text.as_str(), failed.written_at, at];
        self.changed_one("putting a notice off", POSTPONE, values).await.map(drop)
    }
}
