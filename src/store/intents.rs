//! The usual case, cheaply: a row whose session is as it was when it was claimed.
//!
//! An intent changes two things of a row, the binding and the intent itself, so it is one guarded update and nothing is
//! read. A result needs the session for its document, and whoever planned it holds that already: whether it still
//! stands is asked in the database (lease, wish, stamps of the fold, document), row by row, and what does not is read
//! again in full. All that decides stands in the conditions of the statements, so this is never less careful than the
//! long way.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::reconcile::Batch;
use super::rows::{self, KeptDocument};
use super::sql::{Sql, Tx, batch, with_batch};
use super::{Origin, Result, RowWrite, Written};
use crate::model::{SessionId, UnixMillis};
use crate::plan::MeetEvent;

/// A row by its key.
type Key = (SessionId, i64);

/// What an intent changes, and on what condition.
#[derive(Serialize)]
struct IntentColumns<'a> {
    session_id: &'a str,
    ordinal: i64,
    teacher_id: &'a str,
    lease_token: i64,
    desired_revision: i64,
    google_sub: &'a str,
    calendar_id: &'a str,
    generation: i64,
    event_id: &'a str,
    intent_operation: &'a str,
    intent_at_ms: i64,
}

/// The row stays due as it was: should its holder die before the result is recorded, it is looked at again.
const BEGIN: Sql = with_batch!(
    "UPDATE session_meet_event SET google_sub = batch.google_sub, calendar_id = batch.calendar_id, \
     generation = batch.generation, event_id = batch.event_id, intent_operation = batch.intent_operation, \
     intent_at_ms = batch.intent_at_ms FROM ",
    [session_id text, ordinal bigint, teacher_id text, lease_token bigint, desired_revision bigint, google_sub text,
     calendar_id text, generation bigint, event_id text, intent_operation text, intent_at_ms bigint],
    " AS batch WHERE session_meet_event.session_id = batch.session_id \
     AND session_meet_event.ordinal = batch.ordinal AND session_meet_event.teacher_id = batch.teacher_id \
     AND session_meet_event.desired_revision = batch.desired_revision \
     AND EXISTS (SELECT 1 FROM teacher_queue AS q WHERE q.teacher_id = batch.teacher_id \
     AND q.lease_token = batch.lease_token AND q.lease_until_ms > $2) \
     RETURNING session_meet_event.session_id, session_meet_event.ordinal"
);

/// By what a session of one row is known to be as it was. Stamps identify what was folded, and every change of the
/// document counts its revision up.
#[derive(Serialize)]
struct KnownColumns<'a> {
    session_id: &'a str,
    ordinal: i64,
    teacher_id: &'a str,
    lease_token: i64,
    desired_revision: i64,
    head_epoch: i64,
    head_version: i64,
    head_sequence: i64,
    details_epoch: i64,
    details_sequence: i64,
    document_revision: i64,
    intent_at_ms: i64,
}

/// `CROSS JOIN` keeps SQLite to this order; PostgreSQL chooses its own.
const UNCHANGED: Sql = with_batch!(
    "SELECT r.session_id, r.ordinal, \
     CAST(CASE WHEN r.woken_lease = batch.lease_token THEN 1 ELSE 0 END AS BIGINT) AS woken FROM ",
    [session_id text, ordinal bigint, teacher_id text, lease_token bigint, desired_revision bigint, head_epoch bigint,
     head_version bigint, head_sequence bigint, details_epoch bigint, details_sequence bigint,
     document_revision bigint, intent_at_ms bigint],
    " AS batch CROSS JOIN teacher_queue AS q CROSS JOIN session_meet_event AS r CROSS JOIN session AS s \
     WHERE q.teacher_id = batch.teacher_id AND q.lease_token = batch.lease_token AND q.lease_until_ms > $2 \
     AND r.session_id = batch.session_id AND r.ordinal = batch.ordinal AND r.teacher_id = batch.teacher_id \
     AND r.desired_revision = batch.desired_revision AND COALESCE(r.intent_at_ms, -1) = batch.intent_at_ms \
     AND s.session_id = batch.session_id AND s.head_epoch = batch.head_epoch \
     AND s.head_version = batch.head_version AND s.head_sequence = batch.head_sequence \
     AND COALESCE(s.details_epoch, 0) = batch.details_epoch \
     AND COALESCE(s.details_sequence, 0) = batch.details_sequence \
     AND s.document_revision = batch.document_revision \
     AND NOT EXISTS (SELECT 1 FROM session_meet_event AS other \
     WHERE other.session_id = batch.session_id AND other.ordinal <> batch.ordinal)"
);

/// The origin of a result whose session had no other row when it was claimed, with the document of then.
pub(super) fn alone(write: &RowWrite) -> Option<(&Origin, &KeptDocument)> {
    let origin = write.from.as_ref()?;
    let (job, row) = (&origin.job, origin.row());
    let is_alone = job.siblings.is_empty() && write.successor.is_none();
    let is_same = row.session == write.row.session && row.ordinal == write.row.ordinal;
    (is_alone && is_same).then_some(origin).zip(job.document.as_ref())
}

/// Those of the results whose session is as it was when it was claimed, and whose lease stands; with each whether
/// something woke the row since.
pub(super) async fn unchanged(tx: &mut Tx, writes: &[RowWrite], now: UnixMillis) -> Result<HashMap<Key, bool>> {
    let known: Vec<_> = writes
        .iter()
        .filter_map(|write| {
            let (origin, document) = alone(write)?;
            let (job, row) = (&origin.job, origin.row());
            let (head, details) = (&job.session.head.stamp, job.session.details.as_ref().map(|(stamp, _)| stamp));
            Some(KnownColumns {
                session_id: row.session.as_str(),
                ordinal: row.ordinal,
                teacher_id: write.row.teacher.as_str(),
                lease_token: write.token,
                desired_revision: row.desired_revision,
                head_epoch: head.epoch.0,
                head_version: head.version.get(),
                head_sequence: head.sequence,
                details_epoch: details.map_or(0, |stamp| stamp.epoch.0),
                details_sequence: details.map_or(0, |stamp| stamp.sequence),
                document_revision: document.revision,
                intent_at_ms: row.intent.as_ref().map_or(-1, |intent| intent.at.get()),
            })
        })
        .collect();
    if known.is_empty() {
        return Ok(HashMap::new());
    }
    tx.rows(UNCHANGED, vec![batch(&known), now.into()])
        .await?
        .iter()
        .map(|row| Ok(((rows::session_id(row)?, row.get("ordinal")?), row.get::<i64>("woken")? == 1)))
        .collect()
}

/// The columns of an intent that changes nothing else of the row it was planned from.
fn columns(write: &RowWrite) -> Option<IntentColumns<'_>> {
    let (before, row) = (write.from.as_ref()?.row(), &write.row);
    let (binding, intent) = (row.binding.as_ref()?, row.intent.as_ref()?);
    let begun = MeetEvent { binding: row.binding.clone(), intent: row.intent.clone(), ..before.clone() };
    (write.successor.is_none() && begun == *row).then(|| IntentColumns {
        session_id: row.session.as_str(),
        ordinal: row.ordinal,
        teacher_id: row.teacher.as_str(),
        lease_token: write.token,
        desired_revision: row.desired_revision,
        google_sub: &binding.account.0,
        calendar_id: &binding.calendar,
        generation: binding.generation,
        event_id: binding.event_id.as_str(),
        intent_operation: &intent.operation,
        intent_at_ms: intent.at.get(),
    })
}

/// Keeps intents: each only if the lease token still stands and nothing else is wanted by now.
pub(super) async fn begin_in(tx: &mut Tx, writes: &[&RowWrite], now: UnixMillis) -> Result<Vec<Written>> {
    let (mut narrow, mut whole) = (Vec::new(), Vec::new());
    for write in writes {
        match columns(write) {
            Some(columns) => narrow.push(columns),
            None => whole.push(*write),
        }
    }
    let mut begun = HashSet::<Key>::new();
    if !narrow.is_empty() {
        for row in tx.rows(BEGIN, vec![batch(&narrow), now.into()]).await? {
            begun.insert((rows::session_id(&row)?, row.get("ordinal")?));
        }
    }
    if !whole.is_empty() {
        begun.extend(begin_whole(tx, &whole, now).await?);
    }
    Ok(writes
        .iter()
        .map(|write| {
            let is_begun = begun.contains(&(write.row.session.clone(), write.row.ordinal));
            if is_begun { Written::Yes } else { Written::No }
        })
        .collect())
}

/// The same for intents that change more of their rows.
async fn begin_whole(tx: &mut Tx, writes: &[&RowWrite], now: UnixMillis) -> Result<Vec<Key>> {
    let mut batch = Batch::load(tx, writes, now).await?;
    let mut begun = Vec::new();
    for write in writes {
        if let Some(current) = batch.current(write)
            && current.desired_revision == write.row.desired_revision
        {
            let due = current.next_attempt_at;
            batch.apply(write, false, now);
            batch.keep_due(&write.row, due);
            begun.push((write.row.session.clone(), write.row.ordinal));
        }
    }
    batch.working.save_rows(tx).await?;
    Ok(begun)
}
