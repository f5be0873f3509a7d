//! Replay: a part of the stream is read once more and folded as if it had just come.
//!
//! The fold makes repeats harmless, so a replay changes something only where something was missed; and the reconciler
//! calls Google only where a session's wish changed. Deliberately absent: a switch for effects. There is nothing to
//! suppress: what a replay changes is what should have been so before.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::event::SessionEvent;
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::Policy;
use crate::projection::{Outcome, Session, fold};
use crate::run::forecast::{self, Calls};
use crate::run::pace::Pace;
use crate::run::progress::Progress;
use crate::run::source::{Source, by_epoch};
use crate::run::{Counts, HOLD_MS, Run, RunError, WorkError, patiently};
use crate::store::{FoldOutcome, FoldReport, Incoming, Store};

pub mod leftovers;

/// Messages of one read while only looking.
const LOOK: usize = 1_000;

/// Sessions that would change and are kept in memory while looking, some 600 bytes each. Beyond them a plan says "at
/// least".
const OVERLAY_MAX: usize = 200_000;

/// Sessions named in a plan.
const NAMED_MAX: usize = 10;

/// Which events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// The first sequence.
    pub from: i64,
    /// The last sequence.
    pub to: i64,
    /// Only this session's.
    pub session: Option<String>,
    /// Only those that name this teacher.
    pub teacher: Option<String>,
}

impl Selection {
    /// All events from `from` to `to`.
    pub fn range(from: i64, to: i64) -> Self {
        Self { from, to, session: None, teacher: None }
    }

    fn filter(&self, source: &Source) -> String {
        source.filter(self.session.as_ref().and_then(|id| SessionId::parse(id.as_str()).ok()).as_ref())
    }

    /// Whether the message is one of those; what cannot be read names no teacher.
    fn takes(&self, incoming: &Incoming) -> bool {
        let Some(teacher) = &self.teacher else { return true };
        incoming.decoded.as_ref().is_ok_and(|event| event.teacher.as_str() == teacher)
    }
}

/// What a replay would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// What the events are.
    pub counts: Counts,
    /// Calls to Google.
    pub calls: Calls,
    /// Some of the sessions that would change.
    pub named: Vec<SessionId>,
    /// The first sequences that would change something.
    pub missing: Vec<(i64, SessionId)>,
    /// The first sequences that cannot be read and are not kept as dead letters.
    pub unreadable: Vec<i64>,
    /// There are more sessions that would change than could be told apart: the numbers are lower bounds.
    pub is_lower_bound: bool,
    /// Somebody asked to stop before the end.
    pub is_stopped: bool,
}

/// Looks what a replay would do. Reads only.
pub async fn survey(
    source: &Source,
    store: &Store,
    selection: &Selection,
    policy: &Policy,
    clock: &Clock,
    progress: &mut Progress,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<Survey, WorkError> {
    let filter = selection.filter(source);
    let mut found = Survey::default();
    let mut overlay = Overlay::default();
    let mut next = selection.from;
    while next <= selection.to {
        if is_asked_to_stop() {
            found.is_stopped = true;
            break;
        }
        let chunk = patiently(async || Ok(source.read(next, selection.to, &filter, LOOK).await?)).await?;
        next = chunk.next;
        let group: Vec<_> = chunk
            .messages
            .into_iter()
            .map(|message| source.incoming(message))
            .filter(|incoming| selection.takes(incoming))
            .collect();
        overlay.take(source, store, &group, &mut found).await?;
        progress.at(next - selection.from, selection.to - selection.from + 1);
    }
    overlay.close(store, policy, clock.now(), &mut found).await?;
    Ok(found)
}

/// Sessions as they would be, over those that the database has.
#[derive(Default)]
struct Overlay {
    changed: BTreeMap<SessionId, Changed>,
}

struct Changed {
    /// What is wanted at Google now; `None` for a session that is not known.
    hash: Option<String>,
    /// What the session would be.
    session: Session,
}

impl Overlay {
    async fn take(
        &mut self,
        source: &Source,
        store: &Store,
        group: &[Incoming],
        found: &mut Survey,
    ) -> Result<(), WorkError> {
        let events = group.iter().filter_map(|incoming| incoming.decoded.as_ref().ok());
        let ids: HashSet<&SessionId> =
            events.map(|event| &event.session).filter(|id| !self.changed.contains_key(*id)).collect();
        let ids: Vec<SessionId> = ids.into_iter().cloned().collect();
        let mut known = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;

        // What would change something, could not be read or lost may have been given up on before.
        let mut doubtful: Vec<(&Incoming, Option<&SessionEvent>)> = Vec::new();
        for incoming in group {
            found.counts.events += 1;
            let Ok(event) = &incoming.decoded else {
                doubtful.push((incoming, None));
                continue;
            };
            let place = source.history.place(incoming.sequence);
            let state = self.changed.get(&event.session).map(|changed| changed.session.clone());
            let state = state.or_else(|| known.get(&event.session).map(|known| known.session.clone()));
            let (after, outcome) = fold(state.clone(), event, place);
            if state.as_ref() == Some(&after) {
                match outcome {
                    Outcome::Duplicate => found.counts.applied += 1,
                    Outcome::Stale | Outcome::Applied => found.counts.stale += 1,
                    Outcome::Conflict { .. } => found.counts.dead += 1,
                }
                continue;
            }
            doubtful.push((incoming, Some(event)));
            if self.changed.len() >= OVERLAY_MAX && !self.changed.contains_key(&event.session) {
                found.is_lower_bound = true;
                continue;
            }
            let hash = known.remove(&event.session).map(|known| known.session.desired_hash());
            self.changed
                .entry(event.session.clone())
                .and_modify(|changed| changed.session = after.clone())
                .or_insert(Changed { hash, session: after });
        }
        let places: Vec<_> = doubtful.iter().map(|(incoming, _)| source.history.place(incoming.sequence)).collect();
        let dead = patiently(async || Ok(store.dead_places(&places).await?)).await?;
        for ((incoming, change), place) in doubtful.into_iter().zip(places) {
            match change {
                _ if dead.contains(&place) => found.counts.dead += 1,
                None => {
                    found.counts.unreadable += 1;
                    if found.unreadable.len() < NAMED_MAX {
                        found.unreadable.push(incoming.sequence);
                    }
                }
                Some(event) => {
                    found.counts.changing += 1;
                    if found.missing.len() < NAMED_MAX {
                        found.missing.push((incoming.sequence, event.session.clone()));
                    }
                }
            }
        }
        Ok(())
    }

    /// The calls that follow, with the rows as they are now.
    async fn close(self, store: &Store, policy: &Policy, now: UnixMillis, found: &mut Survey) -> Result<(), WorkError> {
        found.counts.sessions_changed = i64::try_from(self.changed.len()).unwrap_or(i64::MAX);
        found.named = self.changed.keys().take(NAMED_MAX).cloned().collect();
        let changed: Vec<_> = self.changed.into_values().collect();
        for page in changed.chunks(500) {
            let sessions: Vec<_> = page.iter().map(|changed| (changed.hash.clone(), &changed.session)).collect();
            found.calls.add(&calls_of(store, &sessions, policy, now).await?);
        }
        Ok(())
    }
}

/// The calls to Google that follow when sessions become what is given; each with what is wanted at Google now.
pub async fn calls_of(
    store: &Store,
    sessions: &[(Option<String>, &Session)],
    policy: &Policy,
    now: UnixMillis,
) -> Result<Calls, WorkError> {
    let ids: Vec<_> = sessions.iter().map(|(_, session)| session.id.clone()).collect();
    let known = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;
    let mut teachers: HashSet<TeacherId> = sessions.iter().map(|(_, session)| session.head.teacher.clone()).collect();
    teachers.extend(known.values().flat_map(|known| known.rows.iter().map(|row| row.teacher.clone())));
    let grants: HashMap<TeacherId, _> = patiently(async || Ok(store.credentials_of(&teachers).await?)).await?;
    let mut calls = Calls::default();
    for (hash, session) in sessions {
        let rows = known.get(&session.id).map(|known| known.rows.as_slice()).unwrap_or_default();
        calls.add(&forecast::calls(hash.as_deref(), rows, session, |row| grants.get(&row.teacher), policy, now));
    }
    Ok(calls)
}

/// Folds the selected events again from where the run stands; `Ok(false)` when it was asked to stop before its end.
#[expect(clippy::too_many_arguments, reason = "each is one thing a replay needs, and none belongs to another")]
pub async fn execute(
    source: &Source,
    store: &Store,
    run: &mut Run,
    selection: &Selection,
    pace: &mut Pace,
    clock: &Clock,
    progress: &mut Progress,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<bool, WorkError> {
    let filter = selection.filter(source);
    while run.cursor < run.goal {
        if is_asked_to_stop() {
            return Ok(false);
        }
        let (from, limit) = (run.cursor + 1, pace.group());
        let chunk = patiently(async || Ok(source.read(from, run.goal, &filter, limit).await?)).await?;
        let end = chunk.next - 1;
        let group: Vec<_> = chunk
            .messages
            .into_iter()
            .map(|message| source.incoming(message))
            .filter(|incoming| selection.takes(incoming))
            .collect();
        let events = group.len();
        let begun = Instant::now();
        let parts = by_epoch(&source.history, group);
        let last = parts.len().saturating_sub(1);
        if parts.is_empty() {
            run.cursor = end;
            let now = clock.now();
            if !patiently(async || Ok(store.move_run(run, now, now.plus(HOLD_MS)).await?)).await? {
                return Err(RunError::TakenOver(run.id.clone()).into());
            }
        }
        for (nth, (epoch, part)) in parts.into_iter().enumerate() {
            let refused: Vec<_> = part
                .iter()
                .filter(|incoming| incoming.decoded.is_err())
                .map(|incoming| source.history.place(incoming.sequence))
                .collect();
            let dead = patiently(async || Ok(store.dead_places(&refused).await?)).await?;
            let known_dead = i64::try_from(dead.len()).unwrap_or(i64::MAX);
            let cursor = part.last().map_or(end, |incoming| incoming.sequence);
            let mut moved = Run { cursor: if nth == last { end } else { cursor }, ..run.clone() };
            let report = patiently(async || {
                let now = clock.now();
                let count = |report: &FoldReport| counted(report, known_dead);
                Ok(store.fold_for_run(&mut moved, epoch, &part, now, now.plus(HOLD_MS), count).await?)
            })
            .await?;
            let Some(report) = report else { return Err(RunError::TakenOver(run.id.clone()).into()) };
            *run = moved;
            crate::crash::here("after_replayed_group");
            for sequence in report.displaced {
                if let Some(message) = source.connection.get(&source.record.stream, sequence).await? {
                    store.complete_dead_letter(source.history.place(sequence), &message.raw).await?;
                }
            }
        }
        progress.at(run.cursor - selection.from + 1, run.goal - selection.from + 1);
        pace.wait(events, begun.elapsed()).await;
    }
    Ok(true)
}

/// What became of a group; `known_dead` of its dead letters had been kept before.
fn counted(report: &FoldReport, known_dead: i64) -> Counts {
    let mut counts = Counts::default();
    let mut refused = 0;
    for outcome in &report.outcomes {
        counts.events += 1;
        match outcome {
            FoldOutcome::Folded(Outcome::Applied | Outcome::Conflict { .. }) => counts.changing += 1,
            FoldOutcome::Folded(Outcome::Stale) => counts.stale += 1,
            FoldOutcome::Folded(Outcome::Duplicate) => counts.applied += 1,
            FoldOutcome::DeadLetter("version_conflict") => counts.dead += 1,
            FoldOutcome::DeadLetter(_) => refused += 1,
        }
    }
    counts.unreadable = (refused - known_dead).max(0);
    counts.dead += refused - counts.unreadable;
    counts
}
