//! The projection read from end to end, a page at a time, for whoever compares it with something. Nothing here writes but
//! [`Store::wake_rows`].

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::rows::session_id;
use super::sql::{Sql, args, batch, both, with_batch};
use super::working::Working;
use super::{Credential, Result, Store, credentials};
use crate::model::{Epoch, Place, SessionId, TeacherId, UnixMillis};
use crate::plan::MeetEvent;
use crate::projection::Session;

/// A session with what hangs on it.
#[derive(Debug, Clone)]
pub struct Known {
    /// As folded.
    pub session: Session,
    /// The publisher's trace context of the head.
    pub traceparent: Option<String>,
    /// All rows, by ordinal.
    pub rows: Vec<MeetEvent>,
}

/// Sequences from the first to the last, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: i64,
    /// The last.
    pub last: i64,
}

/// A row of `session_meet_event` by its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RowKey {
    /// The session.
    pub session: SessionId,
    /// Its place among the rows.
    pub ordinal: i64,
    /// Whose calendar.
    pub teacher: TeacherId,
}

const IDS: Sql = both("SELECT session_id FROM session WHERE session_id > $1 ORDER BY session_id LIMIT $2");

/// A session is a teacher's when it is now, or when a row of it is on that calendar.
const IDS_OF_TEACHER: Sql = both(
    "SELECT session_id FROM session AS s WHERE session_id > $1 AND (teacher_id = $3 OR EXISTS (SELECT 1 \
     FROM session_meet_event AS r WHERE r.session_id = s.session_id AND r.teacher_id = $3)) \
     ORDER BY session_id LIMIT $2",
);

const COUNT: Sql = both("SELECT COUNT(*) AS number FROM session");

const HEADS_AFTER: Sql =
    both("SELECT session_id FROM session WHERE head_epoch = $1 AND head_sequence > $2 ORDER BY session_id LIMIT $3");

const COUNT_HEADS_AFTER: Sql =
    both("SELECT COUNT(*) AS number FROM session WHERE head_epoch = $1 AND head_sequence > $2");

const DEAD: Sql = with_batch!(
    "SELECT epoch, sequence FROM dead_letter WHERE (epoch, sequence) IN ",
    [epoch bigint, sequence bigint],
    ""
);

const RANGES: Sql =
    both("SELECT first_sequence, last_sequence FROM inbox WHERE epoch = $1 ORDER BY first_sequence LIMIT $2");

/// `woken_lease` tells the holder of a lease that its result is older than the wake-up.
const WAKE: Sql = with_batch!(
    "UPDATE session_meet_event SET next_attempt_at_ms = $2, \
     woken_lease = COALESCE((SELECT q.lease_token FROM teacher_queue AS q \
     WHERE q.teacher_id = session_meet_event.teacher_id), 0) \
     WHERE phase NOT IN ('absent', 'foreign') AND (session_id, ordinal) IN ",
    [session_id text, ordinal bigint],
    ""
);

const BRING_FORWARD: Sql = with_batch!(
    "INSERT INTO teacher_queue (teacher_id, due_at_ms, starts_at_ms, lease_token) \
     SELECT teacher_id, $2, 9223372036854775807, 0 FROM ",
    [teacher_id text],
    " AS batch WHERE TRUE ON CONFLICT (teacher_id) DO UPDATE SET \
     due_at_ms = CASE WHEN teacher_queue.due_at_ms < excluded.due_at_ms \
     THEN teacher_queue.due_at_ms ELSE excluded.due_at_ms END"
);

/// Reading all of it.
impl Store {
    /// How many sessions there are.
    pub async fn session_count(&self) -> Result<i64> {
        let row = self.inner.row("counting sessions", COUNT, args![]).await?;
        row.map_or(Ok(0), |row| row.get("number"))
    }

    /// Ids of sessions in the database's order, after `after`, at most `limit`; of one teacher's, where one is named.
    pub async fn session_ids(
        &self,
        after: Option<&SessionId>,
        teacher: Option<&TeacherId>,
        limit: i64,
    ) -> Result<Vec<SessionId>> {
        let after = after.map_or("", SessionId::as_str);
        let operation = "reading ids of sessions";
        let rows = match teacher {
            None => self.inner.rows(operation, IDS, args![after, limit]).await?,
            Some(teacher) => self.inner.rows(operation, IDS_OF_TEACHER, args![after, limit, teacher.as_str()]).await?,
        };
        rows.iter().map(session_id).collect()
    }

    /// Sessions whose newest event stands after that place: how many, and the first `limit` of them.
    pub async fn sessions_after(&self, place: Place, limit: i64) -> Result<(i64, Vec<SessionId>)> {
        let operation = "looking for sessions after a place";
        let number = self.inner.row(operation, COUNT_HEADS_AFTER, args![place.epoch.0, place.sequence]).await?;
        let rows = self.inner.rows(operation, HEADS_AFTER, args![place.epoch.0, place.sequence, limit]).await?;
        let ids = rows.iter().map(session_id).collect::<Result<_>>()?;
        Ok((number.map_or(Ok(0), |row| row.get("number"))?, ids))
    }

    /// Those of the sessions that exist, with all their rows, as of one moment.
    pub async fn known_sessions(&self, ids: &[SessionId]) -> Result<HashMap<SessionId, Known>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut tx = self.inner.snapshot("reading sessions").await?;
        let working = Working::load(&mut tx, ids).await?;
        Ok(ids
            .iter()
            .filter_map(|id| {
                let entry = working.get(id)?;
                let (session, traceparent, rows) =
                    (entry.session.clone(), entry.traceparent.clone(), entry.rows.clone());
                Some((id.clone(), Known { session, traceparent, rows }))
            })
            .collect())
    }

    /// The grants of those of the teachers who have one.
    pub async fn credentials_of(&self, teachers: &HashSet<TeacherId>) -> Result<HashMap<TeacherId, Credential>> {
        if teachers.is_empty() {
            return Ok(HashMap::new());
        }
        let mut tx = self.inner.snapshot("reading credentials").await?;
        credentials::of_teachers(&mut tx, teachers.iter()).await
    }

    /// Those of the places that have a dead letter, whatever became of it.
    pub async fn dead_places(&self, places: &[Place]) -> Result<HashSet<Place>> {
        #[derive(Serialize)]
        struct Key {
            epoch: i64,
            sequence: i64,
        }
        if places.is_empty() {
            return Ok(HashSet::new());
        }
        let keys: Vec<_> = places.iter().map(|place| Key { epoch: place.epoch.0, sequence: place.sequence }).collect();
        let rows = self.inner.rows("looking for dead letters", DEAD, vec![batch(&keys)]).await?;
        rows.iter().map(|row| Ok(Place { epoch: Epoch(row.get("epoch")?), sequence: row.get("sequence")? })).collect()
    }

    /// The sequences that were processed in an epoch, as ranges that do not touch, at most `limit` of them.
    pub async fn processed_ranges(&self, epoch: Epoch, limit: i64) -> Result<Vec<Range>> {
        let rows = self.inner.rows("reading what was processed", RANGES, args![epoch.0, limit]).await?;
        rows.iter()
            .map(|row| Ok(Range { first: row.get("first_sequence")?, last: row.get("last_sequence")? }))
            .collect()
    }

    /// Makes rows due at once, settled ones too: the reconciler looks at their events and mends what differs. Final ones
    /// stay as they are.
    pub async fn wake_rows(&self, rows: &[RowKey], now: UnixMillis) -> Result<i64> {
        #[derive(Serialize)]
        struct Key<'a> {
            session_id: &'a str,
            ordinal: i64,
        }
        #[derive(Serialize)]
        struct Teacher<'a> {
            teacher_id: &'a str,
        }
        if rows.is_empty() {
            return Ok(0);
        }
        let keys: Vec<_> =
            rows.iter().map(|row| Key { session_id: row.session.as_str(), ordinal: row.ordinal }).collect();
        let teachers: HashSet<_> = rows.iter().map(|row| &row.teacher).collect();
        let teachers: Vec<_> = teachers.iter().map(|teacher| Teacher { teacher_id: teacher.as_str() }).collect();
        let mut tx = self.inner.write("waking rows").await?;
        let woken = tx.execute(WAKE, vec![batch(&keys), now.into()]).await?;
        tx.execute(BRING_FORWARD, vec![batch(&teachers), now.into()]).await?;
        tx.commit().await?;
        Ok(woken)
    }
}
