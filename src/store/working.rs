//! Sessions in memory for the length of one transaction: loaded in two statements, changed, and saved in a handful,
//! however many they are. Both the fold and the reconciler's results go this way, so that rows, documents, results for
//! stream `MEET` and wake-ups always change together.
//!
//! Read-modify-write is safe here because only one transaction writes at a time, on all replicas together.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::rows::{
    EventColumns, KeptDocument, NewEventColumns, SessionColumns, event_columns, list_start, read_document, read_event,
    read_session, session_columns,
};
use super::sql::{Sql, Tx, batch, session_ids, with_batch};
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
    /// All rows, by ordinal. Changed only through [`Entry::put_row`].
    pub(super) rows: Vec<MeetEvent>,
    /// What the database knows to be wanted at Google; `None` for a session it does not know.
    desired_hash: Option<String>,
    document: Option<KeptDocument>,
    is_session_changed: bool,
    changed_rows: BTreeSet<i64>,
    /// Ordinals that the database holds.
    stored_rows: BTreeSet<i64>,
}

impl Entry {
    /// A session of one row that is known to be as the database holds it.
    pub(super) fn known(session: Session, traceparent: Option<String>, row: MeetEvent, document: KeptDocument) -> Self {
        Self {
            traceparent,
            desired_hash: None,
            document: Some(document),
            is_session_changed: false,
            changed_rows: BTreeSet::new(),
            stored_rows: BTreeSet::from([row.ordinal]),
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
        self.changed_rows.insert(row.ordinal);
        match self.rows.binary_search_by_key(&row.ordinal, |known| known.ordinal) {
            Ok(at) => self.rows[at] = row,
            Err(at) => self.rows.insert(at, row),
        }
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
    /// In the order in which they were changed first, so that results come out in the order of the group.
    touched: Vec<SessionId>,
}

impl Working {
    /// Loads those of the sessions that exist, with all their rows.
    pub(super) async fn load<'a>(tx: &mut Tx, ids: impl IntoIterator<Item = &'a SessionId>) -> Result<Self> {
        let ids = session_ids(ids);
        let mut entries = HashMap::new();
        for row in tx.rows(SessionColumns::BY_SESSION, vec![ids.clone()]).await? {
            let session = read_session(&row)?;
            let entry = Entry {
                traceparent: row.get("traceparent")?,
                rows: Vec::new(),
                desired_hash: Some(row.get("desired_hash")?),
                document: Some(read_document(&row)?),
                is_session_changed: false,
                changed_rows: BTreeSet::new(),
                stored_rows: BTreeSet::new(),
                session,
            };
            entries.insert(entry.session.id.clone(), entry);
        }
        if !entries.is_empty() {
            for row in tx.rows(EventColumns::BY_SESSION, vec![ids]).await? {
                let event = read_event(&row)?;
                // They come in the order of their ordinals; the foreign key promises the session.
                if let Some(entry) = entries.get_mut(&event.session) {
                    entry.stored_rows.insert(event.ordinal);
                    entry.rows.push(event);
                }
            }
        }
        Ok(Self { entries, touched: Vec::new() })
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
        self.touched.push(id.clone());
        Some(entry)
    }

    /// Replaces the folded state of a session. `traceparent` is that of the event the head comes from.
    pub(super) fn put(&mut self, session: Session, traceparent: Option<String>) {
        self.touched.push(session.id.clone());
        if let Some(entry) = self.entries.get_mut(&session.id) {
            entry.session = session;
            entry.traceparent = traceparent;
            entry.is_session_changed = true;
            return;
        }
        let id = session.id.clone();
        let entry = Entry {
            session,
            traceparent,
            rows: Vec::new(),
            desired_hash: None,
            document: None,
            is_session_changed: true,
            changed_rows: BTreeSet::new(),
            stored_rows: BTreeSet::new(),
        };
        self.entries.insert(id, entry);
    }

    /// Writes what changed: sessions, rows as [`plan::assign`] wants them, documents, results, and the calendars' due
    /// times.
    pub(super) async fn save(&mut self, tx: &mut Tx, now: UnixMillis) -> Result<Saved> {
        let mut saved = Saved::default();
        let mut seen = BTreeSet::new();
        let ids: Vec<_> = std::mem::take(&mut self.touched).into_iter().filter(|id| seen.insert(id.clone())).collect();

        for id in &ids {
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
        }

        let mut sessions = Vec::new();
        let mut documents = Vec::new();
        let mut results = Vec::new();
        let mut fresh = Vec::with_capacity(ids.len());
        for id in &ids {
            let entry = &self.entries[id];
            let document = status::document(&entry.session, &entry.rows, now);
            fresh.push((document_if_changed(&document, entry.document.as_ref(), now), document));
        }
        for (id, (changed, document)) in ids.iter().zip(&fresh) {
            let entry = &self.entries[id];
            let kept = changed.as_ref().or(entry.document.as_ref()).expect("a new session has a new document");
            if entry.is_session_changed {
                let hash = entry.desired_hash.as_deref().expect("set above for every changed session");
                let traceparent = entry.traceparent.as_deref();
                sessions.push(session_columns(&entry.session, hash, traceparent, document, kept));
            } else if changed.is_some() {
                documents.push(DocumentColumns {
                    session_id: id.as_str(),
                    meet_status: document.meet_status.as_str(),
                    document: &kept.json,
                    document_revision: kept.revision,
                    document_updated_at_ms: kept.updated_at.get(),
                    list_starts_at_ms: list_start(document),
                });
            }
            if changed.is_some() {
                results.push(outbox::status_changed(document, &kept.json, entry.traceparent.as_deref(), now));
                saved.changed.push(id.clone());
            }
        }
        if !sessions.is_empty() {
            tx.execute(SessionColumns::UPSERT, vec![batch(&sessions)]).await?;
        }
        if !documents.is_empty() {
            tx.execute(UPDATE_DOCUMENTS, vec![batch(&documents)]).await?;
        }
        outbox::append(tx, &results).await?;
        saved.work_due = self.write_rows(tx, &ids).await?.is_some_and(|soonest| soonest <= now);
        Ok(saved)
    }

    /// Writes the changed rows and nothing else.
    pub(super) async fn save_rows(&mut self, tx: &mut Tx) -> Result<()> {
        let ids: BTreeSet<_> = std::mem::take(&mut self.touched).into_iter().collect();
        self.write_rows(tx, &ids.into_iter().collect::<Vec<_>>()).await.map(drop)
    }

    /// Writes the changed rows of the sessions and brings their calendars forward; says when the first is due.
    async fn write_rows(&self, tx: &mut Tx, ids: &[SessionId]) -> Result<Option<UnixMillis>> {
        let (mut new, mut changed) = (Vec::new(), Vec::new());
        for entry in ids.iter().map(|id| &self.entries[id]) {
            for row in entry.rows.iter().filter(|row| entry.changed_rows.contains(&row.ordinal)) {
                let is_stored = entry.stored_rows.contains(&row.ordinal);
                match NewEventColumns::of(row).filter(|_| !is_stored) {
                    Some(columns) => new.push(columns),
                    None => changed.push(event_columns(row)),
                }
            }
        }
        if !new.is_empty() {
            tx.execute(NewEventColumns::INSERT, vec![batch(&new)]).await?;
        }
        if !changed.is_empty() {
            tx.execute(EventColumns::UPSERT, vec![batch(&changed)]).await?;
        }
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
    fn due(&self, ids: &[SessionId]) -> BTreeMap<TeacherId, Due> {
        let mut calendars = BTreeMap::<TeacherId, Due>::new();
        for entry in ids.iter().map(|id| &self.entries[id]) {
            let changed = entry.rows.iter().filter(|row| entry.changed_rows.contains(&row.ordinal));
            for row in changed.filter(|row| !row.phase.is_final()) {
                let Some(at) = row.next_attempt_at else { continue };
                let soonest =
                    calendars.entry(row.teacher.clone()).or_insert(Due { at, starts_at_ms: entry.starts_at_ms() });
                soonest.at = soonest.at.min(at);
                soonest.starts_at_ms = soonest.starts_at_ms.min(entry.starts_at_ms());
            }
        }
        calendars
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
    if let Some(kept) = kept
        && status::to_json(document, kept.updated_at) == kept.json
    {
        return None;
    }
    let revision = kept.map_or(1, |kept| kept.revision + 1);
    // Never back, though the clock of another process may be ahead.
    let updated_at = kept.map_or(now, |kept| kept.updated_at.max(now));
    Some(KeptDocument { json: status::to_json(document, updated_at), revision, updated_at })
}

#[derive(Serialize)]
struct DocumentColumns<'a> {
    session_id: &'a str,
    meet_status: &'static str,
    document: &'a str,
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
