//! The projection folded anew beside the one that is served, and the way from one to the other and back.
//!
//! A shadow holds folded sessions only, as canonical text. Rows of events at Google, documents and results are never
//! copied: a promotion changes the sessions that differ in the way every fold does, so what hangs on them follows, and
//! a session whose wish stays the same keeps its event untouched.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;

use super::ingest::nul_in;
use super::rows::session_id;
use super::runs::{move_in, note_sessions};
use super::sql::{Row, Sql, Tx, args, batch, both, session_ids, with_batch};
use super::working::Working;
use super::{Result, Store};
use crate::event::SessionEvent;
use crate::model::{Place, SessionId, UnixMillis};
use crate::plan::Phase;
use crate::projection::canonical::{line, parse};
use crate::projection::{Session, fold};
use crate::run::{Run, State};

/// Rows in one statement, and sessions changed between two looks at the list of changes.
const PAGE: i64 = 500;

const BY_SESSION: Sql = with_batch!("SELECT session_id, state, traceparent FROM shadow_session WHERE session_id IN ", [session_id text], "");

const PAGE_OF: Sql = both(
    "SELECT session_id, state, traceparent FROM shadow_session WHERE session_id > $1 ORDER BY session_id LIMIT $2",
);

const PUT: Sql = with_batch!(
    "INSERT INTO shadow_session (session_id, state, traceparent) SELECT * FROM ",
    [session_id text, state text, traceparent text],
    " AS batch WHERE TRUE ON CONFLICT (session_id) DO UPDATE SET state = excluded.state, \
     traceparent = excluded.traceparent"
);

const WITHOUT_SHADOW: Sql = both(
    "SELECT session_id FROM session AS s WHERE session_id > $1 AND NOT EXISTS \
     (SELECT 1 FROM shadow_session AS h WHERE h.session_id = s.session_id) ORDER BY session_id LIMIT $2",
);

/// In parts, so that nobody waits long.
const CLEAR: [Sql; 2] = [
    both("DELETE FROM shadow_session WHERE session_id IN (SELECT session_id FROM shadow_session LIMIT 5000)"),
    both("DELETE FROM shadow_change WHERE session_id IN (SELECT session_id FROM shadow_change LIMIT 5000)"),
];

const CLEAR_CHANGES: Sql =
    both("DELETE FROM shadow_change WHERE session_id IN (SELECT session_id FROM shadow_change LIMIT 5000)");

const ADD_CHANGES: Sql = with_batch!(
    "INSERT INTO shadow_change (session_id) SELECT session_id FROM ",
    [session_id text],
    " AS batch WHERE TRUE ON CONFLICT DO NOTHING"
);

const CHANGES: Sql = both(
    "SELECT session_id, state_before, traceparent_before, state_after FROM shadow_change \
     WHERE session_id > $1 ORDER BY session_id LIMIT $2",
);

const KEEP_CHANGES: Sql = with_batch!(
    "UPDATE shadow_change SET state_before = batch.state_before, traceparent_before = batch.traceparent_before, \
     state_after = batch.state_after FROM ",
    [session_id text, state_before text, traceparent_before text, state_after text],
    " AS batch WHERE shadow_change.session_id = batch.session_id"
);

const REMOVE: [Sql; 2] = [
    with_batch!("DELETE FROM session_meet_event WHERE session_id IN ", [session_id text], ""),
    with_batch!("DELETE FROM session WHERE session_id IN ", [session_id text], ""),
];

const MARK_EXPIRED: Sql = with_batch!(
    "INSERT INTO history_expired (session_id, noted_at_ms) SELECT session_id, $2 FROM ",
    [session_id text],
    " AS batch WHERE TRUE ON CONFLICT DO NOTHING"
);

const EXPIRED: Sql = both("SELECT COUNT(*) AS number FROM history_expired");

/// A session of the shadow.
#[derive(Debug, Clone, PartialEq)]
pub struct Shadow {
    /// The session as rebuilt.
    pub session: Session,
    /// The same as canonical text.
    pub text: String,
    /// The publisher's trace context.
    pub traceparent: Option<String>,
}

/// What a promotion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Promoted {
    /// Sessions that changed.
    pub changed: i64,
    /// Of those, sessions that were not there before.
    pub added: i64,
}

/// What a rollback did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RolledBack {
    /// Sessions that are as before, or removed because they were not there before.
    pub restored: i64,
    /// Sessions that were added and could not be removed: something was sent to Google for them, or they changed since.
    pub kept: i64,
}

#[derive(Serialize)]
struct Columns<'a> {
    session_id: &'a str,
    state: &'a str,
    traceparent: Option<&'a str>,
}

#[derive(Serialize)]
struct ChangeColumns {
    session_id: String,
    state_before: Option<String>,
    traceparent_before: Option<String>,
    state_after: String,
}

/// The shadow.
impl Store {
    /// Empties the shadow, with what was kept for a rollback.
    pub async fn clear_shadow(&self) -> Result<()> {
        for statement in CLEAR {
            while self.inner_execute("clearing the shadow", statement).await? > 0 {}
        }
        Ok(())
    }

    async fn inner_execute(&self, operation: &'static str, sql: Sql) -> Result<i64> {
        let mut tx = self.inner.write(operation).await?;
        let touched = tx.execute(sql, args![]).await?;
        tx.commit().await?;
        Ok(touched)
    }

    /// Folds events into the shadow and keeps where the run stands, in one transaction. `false` when another process has
    /// taken the run over.
    pub async fn fold_into_shadow(
        &self,
        run: &Run,
        events: &[(SessionEvent, Place)],
        now: UnixMillis,
        until: UnixMillis,
    ) -> Result<bool> {
        let mut tx = self.inner.write("rebuilding a group of sessions").await?;
        let events: Vec<_> = events.iter().filter(|(event, _)| nul_in(event).is_none()).collect();
        let ids: BTreeSet<&SessionId> = events.iter().map(|(event, _)| &event.session).collect();
        if !ids.is_empty() {
            let rows = tx.rows(BY_SESSION, vec![session_ids(ids.iter().copied())]).await?;
            let mut states = rows
                .iter()
                .map(|row| read(row).map(|known| (known.session.id.clone(), (known.session, known.traceparent))))
                .collect::<Result<HashMap<_, _>>>()?;
            let mut changed = BTreeSet::new();
            for (event, place) in events {
                let before = states.remove(&event.session);
                let (known, known_trace) = before.map_or((None, None), |(session, trace)| (Some(session), trace));
                let (after, _) = fold(known.clone(), event, *place);
                let is_head = known.as_ref().is_none_or(|known| known.head.stamp != after.head.stamp);
                if known.as_ref() != Some(&after) {
                    changed.insert(event.session.clone());
                }
                let trace = if is_head { event.traceparent.clone() } else { known_trace };
                states.insert(event.session.clone(), (after, trace));
            }
            let lines: Vec<_> = changed.iter().map(|id| (id, line(&states[id].0), states[id].1.as_deref())).collect();
            let columns: Vec<_> = lines
                .iter()
                .map(|(id, state, traceparent)| Columns { session_id: id.as_str(), state, traceparent: *traceparent })
                .collect();
            if !columns.is_empty() {
                tx.execute(PUT, vec![batch(&columns)]).await?;
            }
        }
        if !move_in(&mut tx, run, now, until).await? {
            return Ok(false);
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Sessions of the shadow in the database's order, after `after`, at most `limit`.
    pub async fn shadow_page(&self, after: Option<&SessionId>, limit: i64) -> Result<Vec<Shadow>> {
        let after = after.map_or("", SessionId::as_str);
        let rows = self.inner.rows("reading the shadow", PAGE_OF, args![after, limit]).await?;
        rows.iter().map(read).collect()
    }

    /// Ids of served sessions that the shadow does not have, in the database's order.
    pub async fn ids_without_shadow(&self, after: Option<&SessionId>, limit: i64) -> Result<Vec<SessionId>> {
        let after = after.map_or("", SessionId::as_str);
        let rows = self.inner.rows("comparing with the shadow", WITHOUT_SHADOW, args![after, limit]).await?;
        rows.iter().map(session_id).collect()
    }

    /// Forgets which sessions a promotion would change.
    pub async fn clear_changes(&self) -> Result<()> {
        while self.inner_execute("clearing the changes of the shadow", CLEAR_CHANGES).await? > 0 {}
        Ok(())
    }

    /// Notes sessions that a promotion would change.
    pub async fn add_changes(&self, ids: &[SessionId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.inner.write("noting changes of the shadow").await?;
        tx.execute(ADD_CHANGES, vec![session_ids(ids)]).await?;
        tx.commit().await
    }

    /// Marks sessions whose events the stream no longer holds.
    pub async fn mark_history_expired(&self, ids: &[SessionId], now: UnixMillis) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let mut tx = self.inner.write("marking sessions").await?;
        tx.execute(MARK_EXPIRED, vec![session_ids(ids), now.into()]).await?;
        tx.commit().await
    }

    /// How many sessions are marked so.
    pub async fn history_expired_count(&self) -> Result<i64> {
        let row = self.inner.row("counting sessions", EXPIRED, args![]).await?;
        row.map_or(Ok(0), |row| row.get("number"))
    }

    /// Makes the noted sessions what `merge` makes of the served one and the shadow's, all in one transaction, and keeps
    /// what they were. Writes at Google for them are counted for the run from then on. `None` when another process has
    /// taken the run over.
    pub async fn promote_shadow(
        &self,
        run: &Run,
        merge: impl Fn(Option<&Session>, &Session) -> Session,
        now: UnixMillis,
        until: UnixMillis,
    ) -> Result<Option<Promoted>> {
        let mut tx = self.inner.write("promoting the shadow").await?;
        let mut promoted = Promoted::default();
        let mut told = Vec::new();
        let mut after: Option<SessionId> = None;
        loop {
            let rows = tx.rows(CHANGES, args![after.as_ref().map_or("", SessionId::as_str), PAGE]).await?;
            let ids = rows.iter().map(session_id).collect::<Result<Vec<_>>>()?;
            let Some(last) = ids.last() else { break };
            after = Some(last.clone());
            let shadows = tx.rows(BY_SESSION, vec![session_ids(&ids)]).await?;
            let mut working = Working::load(&mut tx, &ids).await?;
            let mut kept = Vec::new();
            for row in &shadows {
                let shadow = read(row)?;
                let id = shadow.session.id.clone();
                let live = working.get(&id).map(|entry| (entry.session.clone(), entry.traceparent.clone()));
                let published_at = working.get(&id).and_then(|entry| entry.published_at);
                let merged = merge(live.as_ref().map(|(session, _)| session), &shadow.session);
                if live.as_ref().is_some_and(|(session, _)| *session == merged) {
                    continue;
                }
                let keeps_head = live.as_ref().is_some_and(|(session, _)| session.head == merged.head);
                let (before, trace_before) = live.unzip();
                let trace = if keeps_head { trace_before.clone().flatten() } else { shadow.traceparent };
                promoted.changed += 1;
                promoted.added += i64::from(before.is_none());
                kept.push(ChangeColumns {
                    session_id: id.as_str().to_owned(),
                    state_before: before.as_ref().map(line),
                    traceparent_before: trace_before.flatten(),
                    state_after: line(&merged),
                });
                note_sessions(&mut tx, &run.id, std::slice::from_ref(&id)).await?;
                // When a head of the shadow was published is not known here, and its link is no measure of speed.
                working.put(merged, trace, published_at.filter(|_| keeps_head));
            }
            if !kept.is_empty() {
                tx.execute(KEEP_CHANGES, vec![batch(&kept)]).await?;
            }
            told.extend(working.save(&mut tx, now).await?.changed);
        }
        let run = Run { state: State::Promoted, ..run.clone() };
        if !move_in(&mut tx, &run, now, until).await? {
            return Ok(None);
        }
        tx.commit().await?;
        self.announce(&told);
        Ok(Some(promoted))
    }

    /// Takes a promotion back: each register of a session that is still as it was promoted becomes what it was before;
    /// what events changed since stays. In one transaction.
    pub async fn roll_shadow_back(&self, run: &Run, now: UnixMillis, until: UnixMillis) -> Result<Option<RolledBack>> {
        let mut tx = self.inner.write("rolling a rebuild back").await?;
        let mut done = RolledBack::default();
        let mut told = Vec::new();
        let mut after: Option<SessionId> = None;
        loop {
            let rows = tx.rows(CHANGES, args![after.as_ref().map_or("", SessionId::as_str), PAGE]).await?;
            let ids = rows.iter().map(session_id).collect::<Result<Vec<_>>>()?;
            let Some(last) = ids.last() else { break };
            after = Some(last.clone());
            let mut working = Working::load(&mut tx, &ids).await?;
            let mut removed = Vec::new();
            for (row, id) in rows.iter().zip(&ids) {
                let Some(promoted) = row.parsed_or_none("state_after", parse)? else { continue };
                let before = row.parsed_or_none("state_before", parse)?;
                let Some(entry) = working.get(id) else { continue };
                let (live, trace) = (entry.session.clone(), entry.traceparent.clone());
                let Some(before) = before else {
                    let is_untouched = live == promoted
                        && entry.rows.iter().all(|row| row.phase == Phase::New && row.intent.is_none());
                    if is_untouched {
                        removed.push(id.clone());
                        done.restored += 1;
                    } else {
                        done.kept += 1;
                    }
                    continue;
                };
                let goes_back = live.head == promoted.head;
                let session = Session {
                    id: live.id.clone(),
                    head: if goes_back { before.head } else { live.head.clone() },
                    details: if live.details == promoted.details { before.details } else { live.details.clone() },
                };
                if session == live {
                    continue;
                }
                done.restored += 1;
                note_sessions(&mut tx, &run.id, std::slice::from_ref(id)).await?;
                working.put(session, if goes_back { row.get("traceparent_before")? } else { trace }, None);
            }
            told.extend(working.save(&mut tx, now).await?.changed);
            remove(&mut tx, &removed).await?;
            told.extend(removed);
        }
        let run = Run { state: State::RolledBack, ..run.clone() };
        if !move_in(&mut tx, &run, now, until).await? {
            return Ok(None);
        }
        tx.commit().await?;
        self.announce(&told);
        Ok(Some(done))
    }
}

async fn remove(tx: &mut Tx, ids: &[SessionId]) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    for statement in REMOVE {
        tx.execute(statement, vec![session_ids(ids)]).await?;
    }
    Ok(())
}

fn read(row: &Row) -> Result<Shadow> {
    Ok(Shadow { session: row.parsed("state", parse)?, text: row.get("state")?, traceparent: row.get("traceparent")? })
}
