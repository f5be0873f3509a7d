//! What readers ask for. Nothing here writes.

use std::collections::HashMap;

use serde::Serialize;

use super::rows::{meet_status, session_id};
use super::sql::{Backend, Row, Sql, Value, args, batch, both, failed, session_ids, with_batch};
use super::{Counts, DocumentFilter, DocumentPage, Result, Store, StoredDocument};
use crate::model::{SessionId, UnixMillis};
use crate::status::MeetStatus;

macro_rules! document_columns {
    () => {
        "session_id, list_starts_at_ms, meet_status, document, document_revision"
    };
}

const SEVERAL: Sql = with_batch!(
    concat!("SELECT ", document_columns!(), " FROM session WHERE session_id IN "),
    [session_id text],
    ""
);

/// Three texts for three indexes, all in the order of `(list_starts_at_ms, session_id)`: a planner without statistics
/// would guess. `|| ''` keeps it from the index of statuses, which is in order for one status only.
macro_rules! page {
    ($by:literal) => {
        with_batch!(
            concat!(
                "SELECT ",
                document_columns!(),
                " FROM session WHERE ",
                $by,
                " AND list_starts_at_ms >= $2 AND list_starts_at_ms < $3 \
                 AND (list_starts_at_ms, session_id) > ($4, $5) AND meet_status || '' IN "
            ),
            [meet_status text],
            " ORDER BY list_starts_at_ms, session_id LIMIT $6"
        )
    };
}

const PAGE_OF_ALL: Sql = page!("$7 = ''");
const PAGE_OF_TEACHER: Sql = page!("teacher_id = $7");
const PAGE_OF_STATUS: Sql = page!("meet_status = $7");

/// No calendar is due later than its rows, so the rows of those that are not due need no look.
const COUNTS: Sql = both(
    "SELECT meet_status AS name, COUNT(*) AS number FROM session GROUP BY meet_status \
     UNION ALL SELECT 'dead_letters', COUNT(*) FROM dead_letter WHERE state = 'open' \
     UNION ALL SELECT 'outbox', COUNT(*) FROM outbox \
     UNION ALL SELECT 'busy', COUNT(*) FROM teacher_queue WHERE due_at_ms <= $1 OR lease_until_ms > $1 \
     UNION ALL SELECT 'due', COUNT(*) FROM teacher_queue AS q \
     JOIN session_meet_event AS r ON r.teacher_id = q.teacher_id AND r.next_attempt_at_ms <= $1 \
     WHERE q.due_at_ms <= $1 AND NOT r.settled AND r.phase NOT IN ('absent', 'foreign')",
);

fn read(row: &Row) -> Result<StoredDocument> {
    Ok(StoredDocument {
        json: row.get("document")?,
        revision: row.get("document_revision")?,
        status: meet_status(row)?,
    })
}

/// Readers.
impl Store {
    /// One document.
    pub async fn document(&self, id: &SessionId) -> Result<Option<StoredDocument>> {
        let row = self.inner.row("reading a document", SEVERAL, vec![session_ids([id])]).await?;
        row.as_ref().map(read).transpose()
    }

    /// Several documents, in the order asked for; unknown ones are left out.
    pub async fn documents(&self, ids: &[SessionId]) -> Result<Vec<(SessionId, StoredDocument)>> {
        let rows = self.inner.rows("reading documents", SEVERAL, vec![session_ids(ids)]).await?;
        let mut found = rows
            .iter()
            .map(|row| Ok((session_id(row)?, read(row)?)))
            .collect::<Result<HashMap<SessionId, StoredDocument>>>()?;
        Ok(ids.iter().filter_map(|id| found.remove_entry(id)).collect())
    }

    /// One page of the list form.
    pub async fn list_documents(&self, filter: &DocumentFilter) -> Result<DocumentPage> {
        #[derive(Serialize)]
        struct Status {
            meet_status: &'static str,
        }
        let statuses: Vec<MeetStatus> = if filter.statuses.is_empty() {
            MeetStatus::WORDS.iter().map(|(status, _)| *status).collect()
        } else {
            filter.statuses.clone()
        };
        let (sql, by) = match (&filter.teacher, filter.statuses.as_slice()) {
            (Some(teacher), _) => (PAGE_OF_TEACHER, teacher.as_str()),
            (None, [one]) => (PAGE_OF_STATUS, one.as_str()),
            (None, _) => (PAGE_OF_ALL, ""),
        };
        let statuses: Vec<_> = statuses.iter().map(|status| Status { meet_status: status.as_str() }).collect();
        // What has no start lies before every range that has an end or a beginning.
        let is_bounded = filter.starts_from.is_some() || filter.starts_to.is_some();
        let from = filter.starts_from.map_or(i64::MIN, UnixMillis::get).max(i64::MIN + i64::from(is_bounded));
        let to = filter.starts_to.map_or(i64::MAX, UnixMillis::get);
        let limit = filter.limit.clamp(1, 100);
        let (after_start, after_id) = filter.after.as_ref().map_or((i64::MIN, ""), |(start, id)| (*start, id.as_str()));

        // The index begins where the page before ended.
        let from = from.max(after_start);
        let values: Vec<Value> = [
            vec![batch(&statuses)],
            // One row more tells whether there is a next page.
            args![from, to, after_start, after_id, limit + 1, by],
        ]
        .concat();
        let rows = self.inner.rows("listing documents", sql, values).await?;
        let here = rows.len().min(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = match rows[..here].last() {
            Some(last) if here < rows.len() => Some((last.get("list_starts_at_ms")?, session_id(last)?)),
            _ => None,
        };
        Ok(DocumentPage { items: rows[..here].iter().map(read).collect::<Result<_>>()?, next })
    }

    /// A number that changes when another process changed the database; `None` where that cannot be told.
    pub async fn foreign_changes(&self) -> Result<Option<i64>> {
        match &self.inner.backend {
            Backend::Sqlite(pools) => {
                pools.data_version().await.map(Some).map_err(|error| failed("looking for changes", error))
            }
            Backend::Postgres(_) => Ok(None),
        }
    }

    /// Counts; `now` decides what is due.
    pub async fn counts(&self, now: UnixMillis) -> Result<Counts> {
        let mut counts = Counts::default();
        for row in self.inner.rows("counting", COUNTS, args![now]).await? {
            let number = row.get("number")?;
            match row.get::<String>("name")?.as_str() {
                "PENDING" => counts.pending = number,
                "READY" => counts.ready = number,
                "ERROR" => counts.error = number,
                "CANCELED" => counts.canceled = number,
                "dead_letters" => counts.dead_letters = number,
                "outbox" => counts.outbox = number,
                "busy" => counts.busy = number,
                _ => counts.due = number,
            }
        }
        Ok(counts)
    }
}
