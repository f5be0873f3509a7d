//! Whose calendar is due, and who holds it: one row a teacher.
//!
//! The rule that no wake-up is lost: `due_at_ms` is never later than the next attempt of any row of the teacher. Every
//! change of a row may bring it forward; only [`requeue`], which looks at all rows in the same transaction, may put it
//! back. A lease hides a calendar from claims and changes nothing else.

use std::collections::HashMap;

use serde::Serialize;

use super::sql::{Sql, Tx, args, batch, both, with_batch};
use super::{Result, Store, rows};
use crate::model::{TeacherId, UnixMillis};

/// A teacher and the token under which the calendar is held.
#[derive(Debug, Serialize)]
pub(super) struct Held<'a> {
    pub(super) teacher_id: &'a str,
    pub(super) lease_token: i64,
}

/// A calendar just claimed.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) teacher: TeacherId,
    pub(super) token: i64,
    pub(super) starts_at_ms: i64,
}

/// `LIMIT $3` would make SQLite compile the statement anew for every number it is given.
///
/// The condition stands inside and outside, so that the claim is safe by itself: writes are serialised, but a query that
/// depends on it alone would claim twice the day they are not.
const CLAIM: Sql = both(
    "UPDATE teacher_queue SET lease_token = lease_token + 1, lease_until_ms = $2 \
     WHERE teacher_id IN (SELECT teacher_id FROM teacher_queue \
     WHERE due_at_ms <= $1 AND (lease_until_ms IS NULL OR lease_until_ms <= $1) \
     AND NOT EXISTS (SELECT 1 FROM control AS c WHERE c.scope = 'reconcile' \
     AND c.teacher_id IN ('', teacher_queue.teacher_id) AND (c.until_ms IS NULL OR c.until_ms > $1)) \
     ORDER BY starts_at_ms, teacher_id LIMIT $3 + 0) \
     AND due_at_ms <= $1 AND (lease_until_ms IS NULL OR lease_until_ms <= $1) \
     RETURNING teacher_id, lease_token, starts_at_ms",
);

/// Gives calendars back, due when their next row is. Final rows are never due. With ORDER BY and LIMIT instead of MIN the
/// first entry of the index answers, however many rows wait.
const REQUEUE: Sql = with_batch!(
    "UPDATE teacher_queue SET lease_until_ms = NULL, \
     due_at_ms = (SELECT r.next_attempt_at_ms FROM session_meet_event AS r \
     WHERE r.teacher_id = teacher_queue.teacher_id AND r.next_attempt_at_ms IS NOT NULL \
     AND r.phase NOT IN ('absent', 'foreign') ORDER BY r.next_attempt_at_ms LIMIT 1), \
     starts_at_ms = COALESCE((SELECT MIN(s.starts_at_ms) FROM (SELECT r.session_id FROM session_meet_event AS r \
     WHERE r.teacher_id = teacher_queue.teacher_id AND r.next_attempt_at_ms IS NOT NULL \
     AND r.phase NOT IN ('absent', 'foreign') ORDER BY r.next_attempt_at_ms LIMIT 64) AS soon \
     JOIN session AS s ON s.session_id = soon.session_id), 9223372036854775807) \
     WHERE (teacher_id, lease_token) IN ",
    [teacher_id text, lease_token bigint],
    ""
);

const STANDING: Sql = with_batch!(
    "SELECT teacher_id, lease_token FROM teacher_queue WHERE lease_until_ms > $2 AND teacher_id IN ",
    [teacher_id text],
    ""
);

/// A calendar that is held is due again when its lease ends at the latest: its holder may have died. One that is paused
/// is not due; that its pause is over is noticed when the pause is removed.
const NEXT_DUE: Sql = both(
    "SELECT MIN(CASE WHEN lease_until_ms > due_at_ms THEN lease_until_ms ELSE due_at_ms END) AS due_at_ms \
     FROM teacher_queue WHERE due_at_ms IS NOT NULL AND NOT EXISTS (SELECT 1 FROM control AS c \
     WHERE c.scope = 'reconcile' AND c.teacher_id IN ('', teacher_queue.teacher_id))",
);

const BRING_FORWARD: Sql = both(
    "INSERT INTO teacher_queue (teacher_id, due_at_ms, starts_at_ms, lease_token) \
     VALUES ($1, $2, 9223372036854775807, 0) \
     ON CONFLICT (teacher_id) DO UPDATE SET due_at_ms = CASE WHEN teacher_queue.due_at_ms < excluded.due_at_ms \
     THEN teacher_queue.due_at_ms ELSE excluded.due_at_ms END",
);

/// `NOT settled` is the same for a BOOLEAN and for 0 and 1. `woken_lease` tells the holder's [`Store::record`] that the result it brings is older than the wake-up.
const WAKE: Sql = both(
    "UPDATE session_meet_event SET next_attempt_at_ms = $2, \
     woken_lease = COALESCE((SELECT lease_token FROM teacher_queue WHERE teacher_id = $1), 0) \
     WHERE teacher_id = $1 AND phase NOT IN ('absent', 'foreign') AND (NOT settled OR failure_code IS NOT NULL)",
);

const WAKE_FUTURE: Sql = both(
    "UPDATE session_meet_event SET next_attempt_at_ms = $2, \
     woken_lease = COALESCE((SELECT lease_token FROM teacher_queue WHERE teacher_id = $1), 0) \
     WHERE teacher_id = $1 AND phase NOT IN ('absent', 'foreign') AND EXISTS (SELECT 1 FROM session AS s \
     WHERE s.session_id = session_meet_event.session_id AND (s.ends_at_ms IS NULL OR s.ends_at_ms > $2))",
);

const WAKE_ROWS: Sql = with_batch!(
    "UPDATE session_meet_event SET \
     woken_lease = COALESCE((SELECT q.lease_token FROM teacher_queue AS q \
     WHERE q.teacher_id = session_meet_event.teacher_id), 0) \
     WHERE (session_id, ordinal) IN ",
    [session_id text, ordinal bigint],
    ""
);

/// Claims up to `limit` due calendars, soonest start first.
pub(super) async fn claim(tx: &mut Tx, now: UnixMillis, until: UnixMillis, limit: i64) -> Result<Vec<Claimed>> {
    let mut claimed = tx
        .rows(CLAIM, args![now, until, limit])
        .await?
        .iter()
        .map(|row| {
            Ok(Claimed {
                teacher: rows::teacher_id(row)?,
                token: row.get("lease_token")?,
                starts_at_ms: row.get("starts_at_ms")?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    claimed.sort_by(|a, b| (a.starts_at_ms, &a.teacher).cmp(&(b.starts_at_ms, &b.teacher)));
    Ok(claimed)
}

/// Gives calendars back. Those held under another token by now are left alone.
pub(super) async fn requeue(tx: &mut Tx, held: &[Held<'_>]) -> Result<()> {
    if held.is_empty() {
        return Ok(());
    }
    tx.execute(REQUEUE, vec![batch(held)]).await.map(drop)
}

/// The tokens of those of the teachers whose calendar is held now.
pub(super) async fn standing<'a>(
    tx: &mut Tx,
    teachers: impl IntoIterator<Item = &'a TeacherId>,
    now: UnixMillis,
) -> Result<HashMap<TeacherId, i64>> {
    #[derive(Serialize)]
    struct Id<'a> {
        teacher_id: &'a str,
    }
    let ids: Vec<_> = teachers.into_iter().map(|teacher| Id { teacher_id: teacher.as_str() }).collect();
    tx.rows(STANDING, vec![batch(&ids), now.into()])
        .await?
        .iter()
        .map(|row| Ok((rows::teacher_id(row)?, row.get("lease_token")?)))
        .collect()
}

/// Makes every row of the teacher due whose session is not over, settled ones too: what is wanted of them has changed.
pub(super) async fn wake_future(tx: &mut Tx, teacher: &TeacherId, now: UnixMillis) -> Result<i64> {
    let woken = tx.execute(WAKE_FUTURE, args![teacher.as_str(), now]).await?;
    if woken > 0 {
        tx.execute(BRING_FORWARD, args![teacher.as_str(), now]).await?;
    }
    Ok(woken)
}

/// A row by its key.
#[derive(Debug, Serialize)]
pub(super) struct RowKey<'a> {
    pub(super) session_id: &'a str,
    pub(super) ordinal: i64,
}

/// Marks rows as woken under the lease that runs, if one does; their next attempt is written with the rows.
pub(super) async fn mark_woken(tx: &mut Tx, keys: &[RowKey<'_>]) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    tx.execute(WAKE_ROWS, vec![batch(keys)]).await.map(drop)
}

/// Makes all unfinished rows of the teacher due; says how many.
pub(super) async fn wake(tx: &mut Tx, teacher: &TeacherId, now: UnixMillis) -> Result<i64> {
    let woken = tx.execute(WAKE, args![teacher.as_str(), now]).await?;
    if woken > 0 {
        tx.execute(BRING_FORWARD, args![teacher.as_str(), now]).await?;
    }
    Ok(woken)
}

/// Calendars.
impl Store {
    /// When the next calendar may be claimed: when its next row is due or, where somebody holds it, when that lease
    /// ends if that is later.
    pub async fn next_due(&self) -> Result<Option<UnixMillis>> {
        match self.inner.row("reading when the next calendar is due", NEXT_DUE, args![]).await? {
            Some(row) => row.time("due_at_ms"),
            None => Ok(None),
        }
    }

    /// Makes all unfinished rows of the teacher due at once: after a connect, or the end of a cool-down. Says how many.
    pub async fn wake_teacher(&self, teacher: &TeacherId, now: UnixMillis) -> Result<i64> {
        let mut tx = self.inner.write("waking a teacher's rows").await?;
        let woken = wake(&mut tx, teacher, now).await?;
        tx.commit().await?;
        Ok(woken)
    }
}
