//! Sessions in memory for the length of one transaction: loaded in two statements, changed, and saved in a handful for
//! every 128 of them. Both the fold and the reconciler's results go this way, so that rows, documents, results for
//! stream `MEET` and wake-ups always change together.
//!
//! Read-modify-write is safe here because only one transaction writes at a time, on all replicas together.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use futures_util::future::join;
use serde::Serialize;

use super::many::ROWS_MAX;
use super::outbox::MessageIds;
use super::rows::{
    ASSIGN_EVENTS, EVENTS, INSERT_EVENTS, INSERT_NEW_EVENTS, INSERT_SESSIONS, KNOWN, KeptDocument, Known,
    REPLACE_EVENTS, REPLACE_SESSIONS, SESSIONS, append_assigned, append_new_event, event_columns, is_as_new,
    is_assigned, list_start, read_document, read_event, read_known, read_session, session_columns,
};
use super::sql::{Sql, Tx, Value, batch, with_batch};
use super::{Result, outbox};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::{self, MeetEvent};
use crate::projection::Session;
use crate::status;

/// One session with everything that hangs on it.
#[derive(Debug)]
pub(super) struct Entry {
    /// As folded. Changed only through [`Working::put`].
    pub(super) session: Session,
    /// The publisher's trace context of the head.
    pub(super) traceparent: Option<String>,
    /// When the server stored the event of the head.
    pub(super) published_at: Option<UnixMillis>,
    /// All rows, by ordinal. Changed only through [`Entry::put_row`].
    pub(super) rows: Vec<MeetEvent>,
    /// What the database knows to be wanted at Google; `None` for a session it does not know.
    desired_hash: Option<String>,
    document: Option<KeptDocument>,
    is_session_changed: bool,
    /// In [`Working::touched`].
    is_touched: bool,
    /// Changed rows by ordinal, each with what the database holds; `None` for one that it does not hold.
    changed_rows: BTreeMap<i64, Option<MeetEvent>>,
}

impl Entry {
    /// A session of one row that is known to be as the database holds it.
    pub(super) fn known(
        session: Session,
        (traceparent, published_at): (Option<String>, Option<UnixMillis>),
        row: MeetEvent,
        document: KeptDocument,
    ) -> Self {
        Self {
            traceparent,
            published_at,
            desired_hash: None,
            document: Some(document),
            is_session_changed: false,
            is_touched: false,
            changed_rows: BTreeMap::new(),
            rows: vec![row],
            session,
        }
    }

    /// The document as it is kept; none for a new session.
    pub(super) fn document(&self) -> Option<&KeptDocument> {
        self.document.as_ref()
    }

    /// Replaces the row of the same ordinal, or adds it.
    pub(super) fn put_row(&mut self, row: MeetEvent) {
        let ordinal = row.ordinal;
        let before = match self.rows.binary_search_by_key(&ordinal, |known| known.ordinal) {
            Ok(at) => Some(std::mem::replace(&mut self.rows[at], row)),
            Err(at) => {
                self.rows.insert(at, row);
                None
            }
        };
        self.changed_rows.entry(ordinal).or_insert(before);
    }

    /// The row of that ordinal.
    pub(super) fn row(&self, ordinal: i64) -> Option<&MeetEvent> {
        self.rows.binary_search_by_key(&ordinal, |known| known.ordinal).ok().map(|at| &self.rows[at])
    }

    /// When the lesson starts, for the order of work; the end of time where it is not known.
    fn starts_at_ms(&self) -> i64 {
        self.session.details.as_ref().map_or(i64::MAX, |(_, details)| details.starts_at.get())
    }
}

/// What saving did.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Sessions whose document changed.
    pub(super) changed: Vec<SessionId>,
    /// Whether a row is due at once.
    pub(super) work_due: bool,
}

/// The sessions at hand.
#[derive(Debug, Default)]
pub(super) struct Working {
    entries: HashMap<SessionId, Entry>,
    /// Sessions that exist and get another content before anything is asked of them.
    replaced: HashMap<SessionId, Replaced>,
    /// In the order in which they were changed first, so that results come out in the order of the group.
    touched: Vec<SessionId>,
}

/// What stays of a session whose content is replaced.
#[derive(Debug)]
struct Replaced {
    known: Known,
    rows: Vec<MeetEvent>,
}

impl Known {
    /// Reads what is known of those of the sessions that exist.
    pub(super) async fn load(tx: &mut Tx, ids: &BTreeSet<&SessionId>) -> Result<HashMap<SessionId, Self>> {
        let keys = ids.iter().map(|id| id.as_str().to_owned()).collect();
        tx.select(&KNOWN, keys).await?.iter().map(read_known).collect()
    }
}

impl Working {
    /// Loads those of the sessions that exist, with all their rows.
    pub(super) async fn load<'a>(tx: &mut Tx, ids: impl IntoIterator<Item = &'a SessionId>) -> Result<Self> {
        let ids: Vec<_> = ids.into_iter().map(|id| id.as_str().to_owned()).collect();
        let mut entries = HashMap::new();
        for row in tx.select(&SESSIONS, ids.clone()).await? {
            let session = read_session(&row)?;
            let entry = Entry {
                traceparent: row.get("traceparent")?,
                published_at: row.time("published_at_ms")?,
                rows: Vec::new(),
                desired_hash: Some(row.get("desired_hash")?),
                document: Some(read_document(&row)?),
                is_session_changed: false,
                is_touched: false,
                changed_rows: BTreeMap::new(),
                session,
            };
            entries.insert(entry.session.id.clone(), entry);
        }
        if !entries.is_empty() {
            for row in load_rows(tx, ids).await? {
                // The foreign key promises the session.
                if let Some(entry) = entries.get_mut(&row.session) {
                    entry.rows.push(row);
                }
            }
        }
        Ok(Self { entries, ..Self::default() })
    }

    /// Loads the rows of sessions that [`Working::put`] will give another content and another version.
    pub(super) async fn load_replaced(&mut self, tx: &mut Tx, sessions: Vec<(SessionId, Known)>) -> Result<()> {
        if sessions.is_empty() {
            return Ok(());
        }
        let ids = sessions.iter().map(|(id, _)| id.as_str().to_owned()).collect();
        self.replaced.extend(sessions.into_iter().map(|(id, known)| (id, Replaced { known, rows: Vec::new() })));
        for row in load_rows(tx, ids).await? {
            if let Some(session) = self.replaced.get_mut(&row.session) {
                session.rows.push(row);
            }
        }
        Ok(())
    }

    /// Takes in a session that need not be loaded, to change its row.
    pub(super) fn adopt(&mut self, entry: Entry) {
        self.entries.insert(entry.session.id.clone(), entry);
    }

    /// The sessions that exist.
    pub(super) fn ids(&self) -> impl Iterator<Item = &SessionId> {
        self.entries.keys()
    }

    /// The session, if it exists.
    pub(super) fn get(&self, id: &SessionId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// The session to change its rows, if it exists.
    pub(super) fn touch(&mut self, id: &SessionId) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(id)?;
        if !std::mem::replace(&mut entry.is_touched, true) {
            self.touched.push(id.clone());
        }
        Some(entry)
    }

    /// Replaces the folded state of a session. `traceparent` and `published_at` are those of the event the head comes
    /// from.
    pub(super) fn put(&mut self, session: Session, traceparent: Option<String>, published_at: Option<UnixMillis>) {
        if let Some(entry) = self.entries.get_mut(&session.id) {
            if !std::mem::replace(&mut entry.is_touched, true) {
                self.touched.push(session.id.clone());
            }
            entry.session = session;
            entry.traceparent = traceparent;
            entry.published_at = published_at;
            entry.is_session_changed = true;
            return;
        }
        let id = session.id.clone();
        self.touched.push(id.clone());
        let (rows, known) = self.replaced.remove(&id).map(|replaced| (replaced.rows, replaced.known)).unzip();
        let (desired_hash, document) = known.map(|known| (known.desired_hash, known.document)).unzip();
        let entry = Entry {
            session,
            traceparent,
            published_at,
            rows: rows.unwrap_or_default(),
            desired_hash,
            document,
            is_session_changed: true,
            is_touched: true,
            changed_rows: BTreeMap::new(),
        };
        self.entries.insert(id, entry);
    }

    /// Writes what changed: sessions, rows as [`plan::assign`] wants them, documents, results, and the calendars' due
    /// times. While the database writes some sessions, those that follow are made ready.
    pub(super) async fn save(&mut self, tx: &mut Tx, now: UnixMillis) -> Result<Saved> {
        let ids = self.take_touched();
        let mut saved = Saved::default();
        let mut message_ids = MessageIds::of(now);
        let mut ready = Writes::default();
        for ids in ids.chunks(ROWS_MAX) {
            let next = async { self.make_ready(ids, now, &mut message_ids, &mut saved.changed) };
            // In this order: the first statement is under way when the next ones are made.
            let (written, next) = join(ready.write(tx), next).await;
            written?;
            ready = next;
        }
        ready.write(tx).await?;
        saved.work_due = self.bring_forward(tx, &ids).await?.is_some_and(|soonest| soonest <= now);
        Ok(saved)
    }

    /// Writes the changed rows and nothing else.
    pub(super) async fn save_rows(&mut self, tx: &mut Tx) -> Result<()> {
        let ids = self.take_touched();
        let mut writes = Writes::default();
        for id in &ids {
            writes.take_rows(&self.entries[id]);
        }
        writes.write(tx).await?;
        self.bring_forward(tx, &ids).await.map(drop)
    }

    fn take_touched(&mut self) -> Vec<SessionId> {
        let ids = std::mem::take(&mut self.touched);
        for id in &ids {
            self.entries.get_mut(id).expect("only known sessions are touched").is_touched = false;
        }
        ids
    }

    /// What is to be written of these sessions.
    fn make_ready(
        &mut self,
        ids: &[SessionId],
        now: UnixMillis,
        message_ids: &mut MessageIds,
        changed_documents: &mut Vec<SessionId>,
    ) -> Writes {
        let mut writes = Writes::default();
        for id in ids {
            let entry = self.entries.get_mut(id).expect("only known sessions are touched");
            if entry.is_session_changed {
                let hash = entry.session.desired_hash();
                if entry.desired_hash.as_ref() != Some(&hash) {
                    for row in plan::assign(&entry.session, &entry.rows, now) {
                        entry.put_row(row);
                    }
                    entry.desired_hash = Some(hash);
                }
            }
            let document = status::document(&entry.session, &entry.rows, now);
            let changed = document_if_changed(&document, entry.document.as_ref(), now);
            let kept = changed.as_ref().or(entry.document.as_ref()).expect("a new session has a new document");
            if entry.is_session_changed {
                let hash = entry.desired_hash.as_deref().expect("set above for every changed session");
                let columns = session_columns(
                    &entry.session,
                    hash,
                    (entry.traceparent.as_deref(), entry.published_at),
                    &document,
                    kept,
                );
                let is_new = entry.document.is_none();
                columns.append_to(if is_new { &mut writes.new_sessions } else { &mut writes.sessions });
            } else if changed.is_some() {
                writes.documents.push(DocumentColumns {
                    session_id: id.as_str().to_owned(),
                    meet_status: document.meet_status.as_str(),
                    document: kept.json.clone(),
                    document_revision: kept.revision,
                    document_updated_at_ms: kept.updated_at.get(),
                    list_starts_at_ms: list_start(&document),
                });
            }
            if changed.is_some() {
                let traceparent = entry.traceparent.as_deref();
                let results = &mut writes.results;
                outbox::append_status_changed(&document, &kept.json, traceparent, message_ids, results);
                changed_documents.push(id.clone());
            }
            writes.take_rows(entry);
        }
        writes
    }

    /// Brings the calendars of changed rows forward; says when the first is due.
    async fn bring_forward(&self, tx: &mut Tx, ids: &[SessionId]) -> Result<Option<UnixMillis>> {
        let due = self.due(ids);
        if !due.is_empty() {
            let due: Vec<_> = due
                .iter()
                .map(|(teacher, due)| DueColumns {
                    teacher_id: teacher.as_str(),
                    due_at_ms: due.at.get(),
                    starts_at_ms: due.starts_at_ms,
                })
                .collect();
            tx.execute(DUE_SOONER, vec![batch(&due)]).await?;
        }
        Ok(due.values().map(|due| due.at).min())
    }

    /// When calendars are due because of changed rows.
    fn due(&self, ids: &[SessionId]) -> BTreeMap<&TeacherId, Due> {
        let mut calendars = BTreeMap::<&TeacherId, Due>::new();
        for entry in ids.iter().map(|id| &self.entries[id]) {
            let changed = entry.changed_rows.keys().filter_map(|ordinal| entry.row(*ordinal));
            for row in changed.filter(|row| !row.phase.is_final()) {
                let Some(at) = row.next_attempt_at else { continue };
                let soonest = calendars.entry(&row.teacher).or_insert(Due { at, starts_at_ms: entry.starts_at_ms() });
                soonest.at = soonest.at.min(at);
                soonest.starts_at_ms = soonest.starts_at_ms.min(entry.starts_at_ms());
            }
        }
        calendars
    }
}

/// The rows of sessions, those of each by ordinal.
async fn load_rows(tx: &mut Tx, ids: Vec<String>) -> Result<Vec<MeetEvent>> {
    let mut rows = tx.select(&EVENTS, ids).await?.iter().map(read_event).collect::<Result<Vec<_>>>()?;
    rows.sort_by_key(|row| row.ordinal);
    Ok(rows)
}

/// What is to be written of some sessions.
#[derive(Debug, Default)]
struct Writes {
    new_sessions: Vec<Value>,
    sessions: Vec<Value>,
    documents: Vec<DocumentColumns>,
    results: Vec<Value>,
    new_rows: Vec<Value>,
    inserted_rows: Vec<Value>,
    assigned_rows: Vec<Value>,
    replaced_rows: Vec<Value>,
}

impl Writes {
    /// The changed rows of a session.
    fn take_rows(&mut self, entry: &Entry) {
        for (ordinal, before) in &entry.changed_rows {
            let row = entry.row(*ordinal).expect("changed rows are kept");
            match before {
                None if is_as_new(row) => append_new_event(row, &mut self.new_rows),
                None => event_columns(row).append_to(&mut self.inserted_rows),
                Some(before) if is_assigned(before, row) => append_assigned(row, &mut self.assigned_rows),
                Some(_) => event_columns(row).append_to(&mut self.replaced_rows),
            }
        }
    }

    /// Sessions before their rows, as the foreign key asks.
    async fn write(self, tx: &mut Tx) -> Result<()> {
        tx.insert(&INSERT_SESSIONS, self.new_sessions).await?;
        tx.insert(&REPLACE_SESSIONS, self.sessions).await?;
        if !self.documents.is_empty() {
            tx.execute(UPDATE_DOCUMENTS, vec![batch(&self.documents)]).await?;
        }
        tx.insert(&outbox::APPEND, self.results).await?;
        tx.insert(&INSERT_NEW_EVENTS, self.new_rows).await?;
        tx.insert(&INSERT_EVENTS, self.inserted_rows).await?;
        tx.insert(&ASSIGN_EVENTS, self.assigned_rows).await?;
        tx.insert(&REPLACE_EVENTS, self.replaced_rows).await
    }
}

#[derive(Debug)]
struct Due {
    at: UnixMillis,
    starts_at_ms: i64,
}

/// The document to keep if it says anything else than the one that is kept.
fn document_if_changed(
    document: &status::Document,
    kept: Option<&KeptDocument>,
    now: UnixMillis,
) -> Option<KeptDocument> {
    // Where it was not read it is known to differ.
    if let Some(kept) = kept
        && !kept.json.is_empty()
        && status::to_json(document, kept.updated_at) == kept.json
    {
        return None;
    }
    let revision = kept.map_or(1, |kept| kept.revision + 1);
    // Never back, though the clock of another process may be ahead.
    let updated_at = kept.map_or(now, |kept| kept.updated_at.max(now));
    Some(KeptDocument { json: status::to_json(document, updated_at), revision, updated_at })
}

#[derive(Debug, Serialize)]
struct DocumentColumns {
    session_id: String,
    meet_status: &'static str,
    document: String,
    document_revision: i64,
    document_updated_at_ms: i64,
    list_starts_at_ms: i64,
}

const UPDATE_DOCUMENTS: Sql = with_batch!(
    "UPDATE session SET meet_status = batch.meet_status, document = batch.document, \
     document_revision = batch.document_revision, document_updated_at_ms = batch.document_updated_at_ms, \
     list_starts_at_ms = batch.list_starts_at_ms FROM ",
    [session_id text, meet_status text, document text, document_revision bigint, document_updated_at_ms bigint,
     list_starts_at_ms bigint],
    " AS batch WHERE session.session_id = batch.session_id"
);

#[derive(Serialize)]
struct DueColumns<'a> {
    teacher_id: &'a str,
    due_at_ms: i64,
    starts_at_ms: i64,
}

/// Brings calendars forward, never back: only a release, which looks at all rows, may do that. A comparison with an
/// empty `due_at_ms` is not true, so the new time is taken.
const DUE_SOONER: Sql = with_batch!(
    "INSERT INTO teacher_queue (teacher_id, due_at_ms, starts_at_ms, lease_token) \
     SELECT teacher_id, due_at_ms, starts_at_ms, 0 FROM ",
    [teacher_id text, due_at_ms bigint, starts_at_ms bigint],
    " AS batch WHERE TRUE ON CONFLICT (teacher_id) DO UPDATE SET \
     due_at_ms = CASE WHEN teacher_queue.due_at_ms < excluded.due_at_ms \
     THEN teacher_queue.due_at_ms ELSE excluded.due_at_ms END, \
     starts_at_ms = CASE WHEN teacher_queue.starts_at_ms < excluded.starts_at_ms \
     THEN teacher_queue.starts_at_ms ELSE excluded.starts_at_ms END"
);

/// One session with its rows, outside a transaction that writes.
pub(super) async fn read_one(tx: &mut Tx, id: &SessionId) -> Result<Option<(Session, Vec<MeetEvent>)>> {
    let working = Working::load(tx, [id]).await?;
    Ok(working.entries.into_values().next().map(|entry| (entry.session, entry.rows)))
}
