//! Runs of operators, and folding as a part of one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ingest::{Item, fold_in};
use super::sql::{Row, Sql, Tx, args, batch, both, with_batch, word};
use super::{FoldReport, Incoming, Result, Store};
use crate::model::{Epoch, SessionId, UnixMillis};
use crate::run::{Counts, Kind, Run, State};

macro_rules! run_columns {
    () => {
        "id, kind, state, epoch, arguments, cursor, goal, counts, reason, proof, started_at_ms, updated_at_ms, \
         ended_at_ms, holder, held_until_ms"
    };
}

const ADD: Sql = both(concat!(
    "INSERT INTO run (",
    run_columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, NULL, $10, $10, NULL, $11, $12)"
));

const AT_WORK: Sql = both("SELECT id FROM run WHERE kind = $1 AND holder IS NOT NULL AND held_until_ms > $2");

const ONE: Sql = both(concat!("SELECT ", run_columns!(), " FROM run WHERE id = $1"));

const LATEST: Sql =
    both(concat!("SELECT ", run_columns!(), " FROM run WHERE kind = $1 ORDER BY started_at_ms DESC, id DESC LIMIT $2"));

const OPEN: Sql = both(concat!(
    "SELECT ",
    run_columns!(),
    " FROM run WHERE kind = $1 AND state IN ('running', 'stopped') ORDER BY started_at_ms, id"
));

const TAKE: Sql = both(
    "UPDATE run SET state = CASE WHEN state = 'stopped' THEN 'running' ELSE state END, \
     holder = $2, held_until_ms = $4, updated_at_ms = $3 \
     WHERE id = $1 AND state IN ('running', 'stopped', 'ready', 'promoted') AND (holder IS NULL OR held_until_ms <= $3)",
);

const MOVE: Sql = both(
    "UPDATE run SET cursor = $3, goal = $4, counts = $5, updated_at_ms = $6, held_until_ms = $7, state = $8 \
     WHERE id = $1 AND holder = $2",
);

const END: Sql = both(
    "UPDATE run SET state = $3, proof = $4, updated_at_ms = $5, ended_at_ms = $6, holder = NULL \
     WHERE id = $1 AND (holder = $2 OR holder IS NULL)",
);

const NOTE_SESSIONS: Sql = with_batch!(
    "INSERT INTO run_session (session_id, run_id) SELECT session_id, $2 FROM ",
    [session_id text],
    " AS batch WHERE TRUE ON CONFLICT DO NOTHING"
);

const SESSIONS_OF: Sql = both("SELECT COUNT(*) AS number FROM run_session WHERE run_id = $1");

/// Rows of the run's sessions that are due, looks at settled ones included, or whose write is under way.
const DUE_OF: Sql = both(
    "SELECT COUNT(*) AS number FROM run_session AS s JOIN session_meet_event AS r ON r.session_id = s.session_id \
     WHERE s.run_id = $1 AND r.phase NOT IN ('absent', 'foreign') \
     AND (r.next_attempt_at_ms <= $2 OR r.intent_operation IS NOT NULL)",
);

const LATER_OF: Sql = both(
    "SELECT COUNT(*) AS number FROM run_session AS s JOIN session_meet_event AS r ON r.session_id = s.session_id \
     WHERE s.run_id = $1 AND r.phase NOT IN ('absent', 'foreign') AND NOT r.settled \
     AND NOT (r.next_attempt_at_ms <= $2 OR r.intent_operation IS NOT NULL)",
);

const WRITES_OF: Sql =
    both("SELECT operation, COUNT(*) AS number FROM run_write WHERE run_id = $1 GROUP BY operation ORDER BY operation");

const FORGET: [Sql; 2] =
    [both("DELETE FROM run_session WHERE run_id = $1"), both("DELETE FROM run_write WHERE run_id = $1")];

/// What came at Google of what a run changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// Writes that were begun, by operation.
    pub writes: BTreeMap<String, i64>,
    /// Rows that are due now, or whose write is under way.
    pub due: i64,
    /// Rows that are not settled and wait for a time or a person.
    pub waiting: i64,
}

impl Effects {
    /// Writes of all kinds.
    pub fn total(&self) -> i64 {
        self.writes.values().sum()
    }
}

#[derive(Serialize)]
struct Id<'a> {
    session_id: &'a str,
}

/// Runs.
impl Store {
    /// Keeps a new run, unless one of its kind is at work: then its name is the answer.
    pub async fn begin_run(&self, run: &Run, now: UnixMillis) -> Result<Option<String>> {
        let mut tx = self.inner.write("beginning a run").await?;
        if let Some(busy) = tx.row(AT_WORK, args![run.kind.as_str(), now]).await? {
            return busy.get("id").map(Some);
        }
        add_in(&mut tx, run).await?;
        tx.commit().await?;
        Ok(None)
    }

    /// One run.
    pub async fn run(&self, id: &str) -> Result<Option<Run>> {
        self.inner.row("reading a run", ONE, args![id]).await?.as_ref().map(read).transpose()
    }

    /// The latest runs of a kind, newest first.
    pub async fn runs(&self, kind: Kind, limit: i64) -> Result<Vec<Run>> {
        let rows = self.inner.rows("listing runs", LATEST, args![kind.as_str(), limit]).await?;
        rows.iter().map(read).collect()
    }

    /// Runs of a kind that did not come to their end, oldest first.
    pub async fn open_runs(&self, kind: Kind) -> Result<Vec<Run>> {
        let rows = self.inner.rows("listing open runs", OPEN, args![kind.as_str()]).await?;
        rows.iter().map(read).collect()
    }

    /// Takes a run over that was stopped, or whose process no longer moves it; `None` while somebody holds it or one of
    /// its kind is at work.
    pub async fn take_run(&self, id: &str, holder: &str, now: UnixMillis, until: UnixMillis) -> Result<Option<Run>> {
        let mut tx = self.inner.write("taking a run over").await?;
        let Some(known) = tx.row(ONE, args![id]).await?.as_ref().map(read).transpose()? else { return Ok(None) };
        if let Some(busy) = tx.row(AT_WORK, args![known.kind.as_str(), now]).await?
            && busy.get::<String>("id")? != id
        {
            return Ok(None);
        }
        if tx.execute(TAKE, args![id, holder, now, until]).await? == 0 {
            return Ok(None);
        }
        let run = tx.row(ONE, args![id]).await?.as_ref().map(read).transpose()?;
        tx.commit().await?;
        Ok(run)
    }

    /// Keeps where the run stands; `false` when another process has taken it over.
    pub async fn move_run(&self, run: &Run, now: UnixMillis, until: UnixMillis) -> Result<bool> {
        let mut tx = self.inner.write("moving a run").await?;
        let moved = move_in(&mut tx, run, now, until).await?;
        tx.commit().await?;
        Ok(moved)
    }

    /// Ends the run, or lets go of it (`State::Stopped`).
    pub async fn end_run(&self, run: &Run, now: UnixMillis) -> Result<()> {
        let ended_at = (!matches!(run.state, State::Running | State::Stopped)).then_some(now);
        let proof = run.proof.as_ref().map(ToString::to_string);
        let values = args![run.id.as_str(), run.holder.as_deref(), run.state.as_str(), proof, now, ended_at];
        self.changed_one("ending a run", END, values).await.map(drop)
    }

    /// Folds a group as [`Store::fold`] does, and keeps where the run stands in the same transaction: what a killed run
    /// had counted is what it had done. `run` is as it is afterwards, but for [`Counts::sessions_changed`] and the kinds
    /// of `counts`, which `count` fills in from the report. `None` when another process has taken the run over.
    pub async fn fold_for_run(
        &self,
        run: &mut Run,
        epoch: Epoch,
        group: &[Incoming],
        now: UnixMillis,
        until: UnixMillis,
        count: impl FnOnce(&FoldReport) -> Counts,
    ) -> Result<Option<FoldReport>> {
        let items: Vec<_> = group.iter().map(Item::of).collect();
        let mut tx = self.inner.write("replaying a group of messages").await?;
        let before = sessions_of(&mut tx, &run.id).await?;
        let report = fold_in(&mut tx, epoch, group, &items, now).await?;
        note_sessions(&mut tx, &run.id, &report.changed).await?;
        let mut counts = count(&report);
        counts.sessions_changed = sessions_of(&mut tx, &run.id).await? - before;
        let mut moved = run.clone();
        moved.counts.add(&counts);
        if !move_in(&mut tx, &moved, now, until).await? {
            return Ok(None);
        }
        tx.commit().await?;
        *run = moved;
        self.announce(&report.changed);
        Ok(Some(report))
    }

    /// What came at Google of what the run changed.
    pub async fn effects_of(&self, run: &str, now: UnixMillis) -> Result<Effects> {
        let mut tx = self.inner.snapshot("counting what a run brought about").await?;
        let mut effects = Effects::default();
        for row in tx.rows(WRITES_OF, args![run]).await? {
            effects.writes.insert(row.get("operation")?, row.get("number")?);
        }
        effects.due = number(tx.row(DUE_OF, args![run, now]).await?)?;
        effects.waiting = number(tx.row(LATER_OF, args![run, now]).await?)?;
        Ok(effects)
    }

    /// Counts writes to Google for these sessions for the run from now on.
    pub async fn watch_sessions(&self, run: &str, sessions: &[SessionId]) -> Result<()> {
        let mut tx = self.inner.write("watching sessions").await?;
        note_sessions(&mut tx, run, sessions).await?;
        tx.commit().await
    }

    /// Stops counting what comes of a run.
    pub async fn forget_effects(&self, run: &str) -> Result<()> {
        let mut tx = self.inner.write("ending the count of a run").await?;
        for statement in FORGET {
            tx.execute(statement, args![run]).await?;
        }
        tx.commit().await
    }
}

/// Notes sessions that a run changed, so that writes to Google for them are counted.
pub(super) async fn note_sessions(tx: &mut Tx, run: &str, sessions: &[SessionId]) -> Result<()> {
    if sessions.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = sessions.iter().map(|id| Id { session_id: id.as_str() }).collect();
    tx.execute(NOTE_SESSIONS, vec![batch(&ids), run.into()]).await.map(drop)
}

/// Keeps a new run as a part of a transaction.
pub(super) async fn add_in(tx: &mut Tx, run: &Run) -> Result<()> {
    let values = args![
        run.id.as_str(),
        run.kind.as_str(),
        run.state.as_str(),
        run.epoch.0,
        run.arguments.to_string(),
        run.cursor,
        run.goal,
        counts_json(&run.counts),
        run.reason.as_deref(),
        run.started_at,
        run.holder.as_deref(),
        run.held_until
    ];
    tx.execute(ADD, values).await.map(drop)
}

/// Keeps where the run stands as a part of a transaction.
pub(super) async fn move_in(tx: &mut Tx, run: &Run, now: UnixMillis, until: UnixMillis) -> Result<bool> {
    let values = args![
        run.id.as_str(),
        run.holder.as_deref(),
        run.cursor,
        run.goal,
        counts_json(&run.counts),
        now,
        until,
        run.state.as_str()
    ];
    Ok(tx.execute(MOVE, values).await? > 0)
}

async fn sessions_of(tx: &mut Tx, run: &str) -> Result<i64> {
    number(tx.row(SESSIONS_OF, args![run]).await?)
}

fn number(row: Option<Row>) -> Result<i64> {
    row.map_or(Ok(0), |row| row.get("number"))
}

fn counts_json(counts: &Counts) -> String {
    serde_json::to_string(counts).expect("a struct of numbers always serialises")
}

fn read(row: &Row) -> Result<Run> {
    Ok(Run {
        id: row.get("id")?,
        kind: row.parsed("kind", |text| word(&Kind::WORDS, text))?,
        state: row.parsed("state", |text| word(&State::WORDS, text))?,
        epoch: Epoch(row.get("epoch")?),
        arguments: row.parsed("arguments", |text| serde_json::from_str(text).ok())?,
        cursor: row.get("cursor")?,
        goal: row.get("goal")?,
        counts: row.parsed("counts", |text| serde_json::from_str(text).ok())?,
        reason: row.get("reason")?,
        proof: row.parsed_or_none("proof", |text| serde_json::from_str(text).ok())?,
        started_at: UnixMillis::new(row.get("started_at_ms")?),
        updated_at: UnixMillis::new(row.get("updated_at_ms")?),
        ended_at: row.time("ended_at_ms")?,
        holder: row.get("holder")?,
        held_until: UnixMillis::new(row.get("held_until_ms")?),
    })
}
