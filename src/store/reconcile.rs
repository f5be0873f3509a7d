//! Work for the reconciler: claimed with everything it needs, begun and recorded under the lease's token.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::queue::{self, Held, RowKey};
use super::sql::{Sql, Tx, session_ids, with_batch};
use super::working::{self, Entry, Working};
use super::{
    Claim, Job, Result, RowWrite, Store, TeacherLease, Turn, Turned, Written, calls, credentials, intents, rows,
};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::{MeetEvent, Sibling, Want};
use crate::projection::Session;

/// How many times a claim that met only calendars without a due row tries the next ones, before it leaves the write lock
/// to others.
const CLAIM_ROUNDS: usize = 8;

/// The due rows of the claimed calendars: of each the first ones by start.
const DUE: Sql = with_batch!(
    "SELECT session_id, ordinal, teacher_id FROM (\
     SELECT r.session_id, r.ordinal, r.teacher_id, ROW_NUMBER() OVER (PARTITION BY r.teacher_id \
     ORDER BY COALESCE(s.starts_at_ms, 9223372036854775807), r.session_id, r.ordinal) AS place \
     FROM session_meet_event AS r JOIN session AS s ON s.session_id = r.session_id \
     WHERE r.next_attempt_at_ms <= $2 AND r.phase NOT IN ('absent', 'foreign') AND r.teacher_id IN ",
    [teacher_id text],
    ") AS due WHERE place <= $3 ORDER BY teacher_id, place"
);

/// Rows that something woke under the lease that runs.
const WOKEN: Sql = with_batch!(
    "SELECT r.session_id, r.ordinal FROM session_meet_event AS r \
     JOIN teacher_queue AS q ON q.teacher_id = r.teacher_id AND q.lease_token = r.woken_lease \
     WHERE r.session_id IN ",
    [session_id text],
    ""
);

/// Reconciler.
impl Store {
    /// Commits a [`Turn`] in one transaction: results, then calendars given back, then claims, then intents. `open` is
    /// asked for the first intent of each calendar that was just claimed, which is kept with the others, so that a
    /// claimed calendar can be written to as soon as this returns.
    ///
    /// # Errors
    /// All or nothing: nothing of a turn that failed is kept.
    pub async fn turn(
        &self,
        turn: &Turn,
        now: UnixMillis,
        open: &mut (dyn FnMut(&TeacherLease) -> Option<RowWrite> + Send),
    ) -> Result<Turned> {
        let mut tx = self.inner.write("committing what calendars brought").await?;
        let (records, changed, is_work_due) = record_in(&mut tx, &turn.records, now).await?;
        queue::requeue(&mut tx, &held(&turn.releases)).await?;
        let leases = match turn.claim {
            Some(claim) => claim_in(&mut tx, now, claim).await?,
            None => Vec::new(),
        };
        let opened: Vec<_> = leases.iter().filter_map(open).collect();
        let writes: Vec<_> = turn.begins.iter().chain(&opened).collect();
        let mut begins = intents::begin_in(&mut tx, &writes, now).await?;
        begins.truncate(turn.begins.len());
        self.tell_others(&mut tx, &changed, is_work_due).await?;
        tx.commit().await?;
        self.announce(&changed);
        Ok(Turned { records, begins, leases })
    }

    /// Claims up to `teachers` calendars that have due rows, soonest start first, each with at most `rows_per_teacher`
    /// rows (not final or settled-and-not-due ones). A lease that ran out may be claimed again.
    pub async fn claim(
        &self,
        now: UnixMillis,
        lease_ms: i64,
        teachers: i64,
        rows_per_teacher: i64,
    ) -> Result<Vec<TeacherLease>> {
        let claim = Some(Claim { lease_ms, teachers, rows_per_teacher });
        Ok(self.turn(&Turn { claim, ..Turn::default() }, now, &mut |_| None).await?.leases)
    }

    /// Keeps intents before their calls: each row only if the lease token still stands and nothing else is wanted by
    /// now. A begun row stays due until [`Store::record`], which also sees to the document.
    pub async fn begin(&self, writes: &[RowWrite], now: UnixMillis) -> Result<Vec<Written>> {
        let begins = writes.to_vec();
        Ok(self.turn(&Turn { begins, ..Turn::default() }, now, &mut |_| None).await?.begins)
    }

    /// Records results: rows, successors, documents, results for `MEET`; wakes siblings that waited for a row that
    /// became final. Only under a lease token that still stands.
    ///
    /// A result never puts a row to sleep that something woke after it was claimed: it stays due at once.
    pub async fn record(&self, writes: &[RowWrite], now: UnixMillis) -> Result<Vec<Written>> {
        let records = writes.to_vec();
        Ok(self.turn(&Turn { records, ..Turn::default() }, now, &mut |_| None).await?.records)
    }

    /// Gives calendars back, due again when their next row is. A lease that somebody else took over is left alone.
    pub async fn release(&self, leases: &[(TeacherId, i64)], now: UnixMillis) -> Result<()> {
        let releases = leases.to_vec();
        self.turn(&Turn { releases, ..Turn::default() }, now, &mut |_| None).await.map(drop)
    }

    /// A session as folded, with all its rows.
    pub async fn session(&self, id: &SessionId) -> Result<Option<(Session, Vec<MeetEvent>)>> {
        let mut tx = self.inner.snapshot("reading a session").await?;
        working::read_one(&mut tx, id).await
    }
}

fn held(leases: &[(TeacherId, i64)]) -> Vec<Held<'_>> {
    leases.iter().map(|(teacher, token)| Held { teacher_id: teacher.as_str(), lease_token: *token }).collect()
}

async fn claim_in(tx: &mut Tx, now: UnixMillis, claim: Claim) -> Result<Vec<TeacherLease>> {
    let until = now.plus(claim.lease_ms);
    for _ in 0..CLAIM_ROUNDS {
        let claimed = queue::claim(tx, now, until, claim.teachers).await?;
        if claimed.is_empty() {
            break;
        }
        let held: Vec<_> = claimed
            .iter()
            .map(|claimed| Held { teacher_id: claimed.teacher.as_str(), lease_token: claimed.token })
            .collect();
        let mut jobs = due_jobs(tx, &held, now, claim.rows_per_teacher).await?;

        // A calendar may look due and not be: its holder put all rows off and died before it gave the lease back.
        let idle: Vec<_> = claimed
            .iter()
            .filter(|claimed| !jobs.contains_key(&claimed.teacher))
            .map(|claimed| Held { teacher_id: claimed.teacher.as_str(), lease_token: claimed.token })
            .collect();
        queue::requeue(tx, &idle).await?;
        if jobs.is_empty() {
            continue;
        }
        let mut grants = credentials::of_teachers(tx, jobs.keys()).await?;
        return Ok(claimed
            .into_iter()
            .filter_map(|claimed| {
                Some(TeacherLease {
                    jobs: jobs.remove(&claimed.teacher)?,
                    credential: grants.remove(&claimed.teacher),
                    teacher: claimed.teacher,
                    token: claimed.token,
                    until,
                })
            })
            .collect());
    }
    Ok(Vec::new())
}

/// The jobs of the claimed calendars; those without one are missing.
async fn due_jobs(
    tx: &mut Tx,
    held: &[Held<'_>],
    now: UnixMillis,
    rows_per_teacher: i64,
) -> Result<HashMap<TeacherId, Vec<Arc<Job>>>> {
    let mut due = Vec::new();
    for row in tx.rows(DUE, vec![super::sql::batch(held), now.into(), rows_per_teacher.into()]).await? {
        due.push((rows::teacher_id(&row)?, rows::session_id(&row)?, row.get::<i64>("ordinal")?));
    }
    let mut jobs = HashMap::<TeacherId, Vec<Arc<Job>>>::new();
    if due.is_empty() {
        return Ok(jobs);
    }
    let sessions: BTreeSet<_> = due.iter().map(|(_, session, _)| session).collect();
    let working = Working::load(tx, sessions).await?;
    for (teacher, session, ordinal) in &due {
        let Some(entry) = working.get(session) else { continue };
        let Some(row) = entry.row(*ordinal) else { continue };
        let siblings = entry.rows.iter().filter(|other| other.ordinal != *ordinal).map(sibling).collect();
        jobs.entry(teacher.clone()).or_default().push(Arc::new(Job {
            session: entry.session.clone(),
            row: row.clone(),
            siblings,
            traceparent: entry.traceparent.clone(),
            published_at: entry.published_at,
            document: entry.document().cloned(),
        }));
    }
    Ok(jobs)
}

fn sibling(row: &MeetEvent) -> Sibling {
    Sibling {
        ordinal: row.ordinal,
        teacher: row.teacher.clone(),
        account: row.binding.as_ref().map(|binding| binding.account.clone()),
        generation: row.binding.as_ref().map(|binding| binding.generation),
        phase: row.phase,
        want: row.want,
    }
}

/// Writes results; says what became of each, which documents changed, and whether anything became due.
async fn record_in(tx: &mut Tx, writes: &[RowWrite], now: UnixMillis) -> Result<(Vec<Written>, Vec<SessionId>, bool)> {
    if writes.is_empty() {
        return Ok((Vec::new(), Vec::new(), false));
    }
    let mut batch = Batch::of_results(tx, writes, now).await?;
    let mut woken = BTreeSet::new();
    let mut called = Vec::new();
    let written: Vec<_> = writes
        .iter()
        .map(|write| {
            let Some(current) = batch.current(write) else { return Written::No };
            called.extend(calls::Draft::between(current, &write.row, now));
            let has_moved = current.desired_revision != write.row.desired_revision;
            let became_final = write.row.phase.is_final() && !current.phase.is_final();
            batch.apply(write, has_moved, now);
            if became_final {
                woken.extend(batch.wake_siblings(&write.row, now));
            }
            if has_moved { Written::WantMoved } else { Written::Yes }
        })
        .collect();
    let saved = batch.working.save(tx, now).await?;
    let keys: Vec<_> =
        woken.iter().map(|(session, ordinal)| RowKey { session_id: session.as_str(), ordinal: *ordinal }).collect();
    queue::mark_woken(tx, &keys).await?;
    calls::keep(tx, called).await?;
    Ok((written, saved.changed, saved.work_due))
}

/// Rows to be written, next to what the database holds.
pub(super) struct Batch {
    pub(super) working: Working,
    /// Leases that stand.
    tokens: HashMap<TeacherId, i64>,
    /// Rows that were woken under the lease that runs.
    woken: HashSet<(SessionId, i64)>,
}

impl Batch {
    /// For intents: reads the sessions of the writes.
    pub(super) async fn load(tx: &mut Tx, writes: &[&RowWrite], now: UnixMillis) -> Result<Self> {
        let teachers: BTreeSet<_> = writes.iter().map(|write| &write.row.teacher).collect();
        let sessions: BTreeSet<_> = writes.iter().map(|write| &write.row.session).collect();
        let tokens = queue::standing(tx, teachers, now).await?;
        Ok(Self { working: Working::load(tx, sessions).await?, tokens, woken: HashSet::new() })
    }

    /// For results: reads only those sessions that are not as they were when they were claimed.
    async fn of_results(tx: &mut Tx, writes: &[RowWrite], now: UnixMillis) -> Result<Self> {
        let mut unchanged = intents::unchanged(tx, writes, now).await?;
        let changed: Vec<_> = writes
            .iter()
            .filter(|write| !unchanged.contains_key(&(write.row.session.clone(), write.row.ordinal)))
            .collect();
        let mut batch = if changed.is_empty() {
            Self { working: Working::default(), tokens: HashMap::new(), woken: HashSet::new() }
        } else {
            Self::load(tx, &changed, now).await?
        };
        if !changed.is_empty() {
            for row in tx.rows(WOKEN, vec![session_ids(batch.working.ids())]).await? {
                batch.woken.insert((rows::session_id(&row)?, row.get("ordinal")?));
            }
        }
        for write in writes {
            let key = (write.row.session.clone(), write.row.ordinal);
            let Some(was_woken) = unchanged.remove(&key) else { continue };
            let Some((origin, document)) = intents::alone(write) else { continue };
            let (job, row) = (&origin.job, origin.row().clone());
            let origin = (job.traceparent.clone(), job.published_at);
            let entry = Entry::known(job.session.clone(), origin, row, document.clone());
            batch.working.adopt(entry);
            batch.tokens.insert(write.row.teacher.clone(), write.token);
            if was_woken {
                batch.woken.insert(key);
            }
        }
        Ok(batch)
    }

    /// The row as the database holds it, if the write's token stands.
    pub(super) fn current(&self, write: &RowWrite) -> Option<&MeetEvent> {
        let row = &write.row;
        if self.tokens.get(&row.teacher) != Some(&write.token) {
            return None;
        }
        self.working.get(&row.session)?.row(row.ordinal).filter(|current| current.teacher == row.teacher)
    }

    /// Takes a write over. [`Batch::current`] has found its row.
    pub(super) fn apply(&mut self, write: &RowWrite, has_moved: bool, now: UnixMillis) {
        let was_woken = self.woken.contains(&(write.row.session.clone(), write.row.ordinal));
        let entry = self.working.touch(&write.row.session).expect("found by Batch::current");
        let current = entry.row(write.row.ordinal).expect("found by Batch::current");
        let mut row = write.row.clone();
        let wanted_before = current.want;
        if write.successor.is_none() {
            row.want = current.want;
            row.desired_revision = current.desired_revision;
        } else {
            // A wish never goes from absent to present by a result.
            if current.want == Want::Absent {
                row.want = Want::Absent;
            }
            row.desired_revision = row.desired_revision.max(current.desired_revision);
        }
        if !row.phase.is_final() {
            if has_moved {
                row.settled = false;
            }
            if has_moved || (was_woken && (!row.settled || row.failure.is_some())) {
                row.next_attempt_at = Some(now);
            }
        }
        entry.put_row(row);
        if let Some(successor) = &write.successor {
            // Where what is wanted moved to nothing, a new event must not come of it.
            let is_wanted = !has_moved || wanted_before == Want::Present;
            if is_wanted && entry.row(successor.ordinal).is_none() {
                entry.put_row(successor.clone());
            }
        }
    }

    /// Keeps a begun row due as it was: should its holder die before the result is recorded, it is looked at again.
    pub(super) fn keep_due(&mut self, begun: &MeetEvent, due: Option<UnixMillis>) {
        let entry = self.working.touch(&begun.session).expect("the row was written a moment ago");
        let Some(row) = entry.row(begun.ordinal) else { return };
        if let Some(due) = due
            && row.next_attempt_at.is_none_or(|next| due < next)
        {
            let row = MeetEvent { next_attempt_at: Some(due), ..row.clone() };
            entry.put_row(row);
        }
    }

    /// Makes the unsettled wanted rows beside `row` due, which may have waited for it; says which.
    fn wake_siblings(&mut self, row: &MeetEvent, now: UnixMillis) -> Vec<(SessionId, i64)> {
        let entry = self.working.touch(&row.session).expect("the row was written a moment ago");
        let waiting: Vec<_> = entry
            .rows
            .iter()
            .filter(|other| other.ordinal != row.ordinal)
            .filter(|other| other.want == Want::Present && !other.settled && !other.phase.is_final())
            .cloned()
            .collect();
        let mut woken = Vec::with_capacity(waiting.len());
        for mut other in waiting {
            other.next_attempt_at = Some(now);
            woken.push((other.session.clone(), other.ordinal));
            entry.put_row(other);
        }
        // One of them may come later in the same batch.
        self.woken.extend(woken.iter().cloned());
        woken
    }
}
