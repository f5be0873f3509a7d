//! After the database was lost or put back: what it remembers is doubted, and what it has forgotten is looked for.

use std::collections::BTreeSet;

use super::runs::{add_in, move_in};
use super::sql::{Sql, args, both};
use super::working::Working;
use super::{Result, Store};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::{Phase, Want, search_for};
use crate::projection::Status;
use crate::run::Run;

/// Rows go the way of a row of which only the id is known: looked at, and adopted as Google shows them. With hashes that
/// are known a deleted event would be restored, though another one of the session may live under a later generation.
/// Settled rows stay settled, so readers keep their links meanwhile.
const DOUBT: Sql = both(
    "UPDATE session_meet_event SET phase = 'unknown', etag = NULL, written_hash = NULL, accepted_hash = NULL, \
     observed_hash = NULL, next_attempt_at_ms = $1 \
     WHERE want = 'present' AND event_id IS NOT NULL AND phase IN ('live', 'tombstone', 'missing', 'unknown')",
);

const BRING_FORWARD: Sql = both(
    "INSERT INTO teacher_queue (teacher_id, due_at_ms, starts_at_ms, lease_token) \
     SELECT DISTINCT teacher_id, $1, 9223372036854775807, 0 FROM session_meet_event \
     WHERE want = 'present' AND phase = 'unknown' \
     ON CONFLICT (teacher_id) DO UPDATE SET \
     due_at_ms = CASE WHEN teacher_queue.due_at_ms < excluded.due_at_ms \
     THEN teacher_queue.due_at_ms ELSE excluded.due_at_ms END",
);

/// Suspicion.
impl Store {
    /// Keeps a search for leftovers, and makes every row doubt what it knows of Google; says how many.
    pub async fn suspect(&self, run: &Run, now: UnixMillis) -> Result<i64> {
        let mut tx = self.inner.write("doubting what is known of Google").await?;
        add_in(&mut tx, run).await?;
        let doubted = tx.execute(DOUBT, args![now]).await?;
        tx.execute(BRING_FORWARD, args![now]).await?;
        tx.commit().await?;
        Ok(doubted)
    }

    /// Adds rows that look for forgotten events of these sessions on these teachers' calendars, where none is wanted
    /// there now, and keeps where the run stands in the same transaction. Says how many; `None` when another process has
    /// taken the run over.
    pub async fn add_searches(
        &self,
        run: &Run,
        pairs: &BTreeSet<(SessionId, TeacherId)>,
        now: UnixMillis,
        until: UnixMillis,
    ) -> Result<Option<i64>> {
        let mut tx = self.inner.write("looking for forgotten events").await?;
        let ids: BTreeSet<&SessionId> = pairs.iter().map(|(session, _)| session).collect();
        let mut working = if ids.is_empty() { Working::default() } else { Working::load(&mut tx, ids).await? };
        let mut added = 0;
        for (session, teacher) in pairs {
            let Some(entry) = working.get(session) else { continue };
            let head = &entry.session.head;
            let is_wanted_there = head.status == Status::Scheduled && head.teacher == *teacher;
            let details = entry.session.details.as_ref();
            let is_over = details.is_some_and(|(_, details)| details.ends_at <= now);
            let is_known = entry.rows.iter().any(|row| {
                let is_search = row.want == Want::Absent && row.phase == Phase::Unknown && row.binding.is_none();
                is_search && row.teacher == *teacher
            });
            if is_wanted_there || is_over || is_known {
                continue;
            }
            let ordinal = entry.rows.iter().map(|row| row.ordinal + 1).max().unwrap_or(0);
            let row = search_for(session.clone(), ordinal, teacher.clone(), now);
            working.touch(session).expect("found a moment ago").put_row(row);
            added += 1;
        }
        working.save(&mut tx, now).await?;
        if !move_in(&mut tx, run, now, until).await? {
            return Ok(None);
        }
        tx.commit().await?;
        Ok(Some(added))
    }
}
