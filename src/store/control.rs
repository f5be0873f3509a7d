//! What is paused, for all processes: rows, so that a pause survives restarts and every replica sees it.
//!
//! A pause of `reconcile` is looked at in the transaction that claims calendars, so once it is committed no calendar is
//! claimed any more, on any replica. A pause of `ingest` is heard by every process within a second or two
//! ([`crate::presence`]).

use super::audit::{self, Action, Actor};
use super::sql::{Row, Sql, Tx, args, both, word, word_of};
use super::{Result, Store, rows};
use crate::model::{TeacherId, UnixMillis};

/// What can be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Reading events from the stream.
    Ingest,
    /// Working on calendars.
    Reconcile,
}

impl Scope {
    const WORDS: [(Self, &'static str); 2] = [(Self::Ingest, "ingest"), (Self::Reconcile, "reconcile")];

    /// The word of the command line and of the database.
    pub fn as_str(self) -> &'static str {
        word_of(&Self::WORDS, self)
    }
}

/// Something that is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// What.
    pub scope: Scope,
    /// Whose calendar; `None` for all.
    pub teacher: Option<TeacherId>,
    /// Since when.
    pub since: UnixMillis,
    /// When it ends by itself.
    pub until: Option<UnixMillis>,
    /// Who paused it.
    pub actor: String,
    /// Why.
    pub reason: String,
}

impl Pause {
    /// Whether it holds now.
    pub fn holds(&self, now: UnixMillis) -> bool {
        self.until.is_none_or(|until| until > now)
    }

    /// `ingest`, `reconcile`, `reconcile of tch_1`.
    pub fn what(&self) -> String {
        match &self.teacher {
            Some(teacher) => format!("{} of {teacher}", self.scope.as_str()),
            None => self.scope.as_str().to_owned(),
        }
    }

    /// One sentence: what, by whom, until when, why.
    pub fn sentence(&self) -> String {
        let until = self.until.map_or_else(|| "somebody resumes it".to_owned(), UnixMillis::to_rfc3339);
        format!("{} is paused by {} until {until}: {}", self.what(), self.actor, self.reason)
    }
}

/// A calendar that a process works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldCalendar {
    /// Whose.
    pub teacher: TeacherId,
    /// When its lease ends at the latest.
    pub until: UnixMillis,
}

const PAUSE: Sql = both(
    "INSERT INTO control (scope, teacher_id, since_ms, until_ms, actor, reason) VALUES ($1, $2, $3, $4, $5, $6) \
     ON CONFLICT (scope, teacher_id) DO UPDATE SET until_ms = excluded.until_ms, actor = excluded.actor, \
     reason = excluded.reason",
);

const RESUME: Sql = both("DELETE FROM control WHERE scope = $1 AND teacher_id = $2");

const ALL: Sql =
    both("SELECT scope, teacher_id, since_ms, until_ms, actor, reason FROM control ORDER BY scope, teacher_id");

const OVER: Sql = both("DELETE FROM control WHERE until_ms <= $1");

const HELD: Sql = both(
    "SELECT teacher_id, lease_until_ms FROM teacher_queue \
     WHERE lease_until_ms > $1 AND ($2 = '' OR teacher_id = $2) ORDER BY lease_until_ms DESC",
);

/// The pauses as they are, in the caller's transaction.
pub(super) async fn pauses(tx: &mut Tx) -> Result<Vec<Pause>> {
    tx.rows(ALL, args![]).await?.iter().map(read).collect()
}

/// Pauses.
impl Store {
    /// Pauses, or changes the end and the reason of a pause that is there; audited.
    pub async fn pause(&self, pause: &Pause, now: UnixMillis) -> Result<()> {
        let teacher = teacher_column(pause.teacher.as_ref());
        let values =
            args![pause.scope.as_str(), teacher, pause.since, pause.until, pause.actor.as_str(), pause.reason.as_str()];
        let mut tx = self.inner.write("pausing").await?;
        tx.execute(PAUSE, values).await?;
        let outcome = pause.until.map_or_else(|| "paused".to_owned(), |until| format!("paused until {until}"));
        let actor = Actor::named(pause.actor.as_str());
        let action = Action {
            actor: &actor,
            action: "pause",
            target: &target(pause.scope, pause.teacher.as_ref()),
            reason: Some(&pause.reason),
            outcome: &outcome,
        };
        audit::keep(&mut tx, &action, now).await?;
        tx.commit().await
    }

    /// Resumes; `false` when it was not paused. Audited.
    pub async fn resume(
        &self,
        scope: Scope,
        teacher: Option<&TeacherId>,
        actor: &Actor,
        reason: Option<&str>,
        now: UnixMillis,
    ) -> Result<bool> {
        let mut tx = self.inner.write("resuming").await?;
        let ended = tx.execute(RESUME, args![scope.as_str(), teacher_column(teacher)]).await? > 0;
        if ended {
            let target = target(scope, teacher);
            let action = Action { actor, action: "resume", target: &target, reason, outcome: "resumed" };
            audit::keep(&mut tx, &action, now).await?;
        }
        tx.commit().await?;
        Ok(ended)
    }

    /// Every pause, those included whose time is over and that nobody has removed yet.
    pub async fn pauses(&self) -> Result<Vec<Pause>> {
        self.inner.rows("reading what is paused", ALL, args![]).await?.iter().map(read).collect()
    }

    /// Removes pauses whose time is over and says which; audited as done by the service.
    pub async fn end_pauses(&self, now: UnixMillis) -> Result<Vec<Pause>> {
        let mut tx = self.inner.write("ending pauses").await?;
        let over: Vec<_> = pauses(&mut tx).await?.into_iter().filter(|pause| !pause.holds(now)).collect();
        if over.is_empty() {
            return Ok(over);
        }
        tx.execute(OVER, args![now]).await?;
        let actor = Actor::service();
        for pause in &over {
            let target = target(pause.scope, pause.teacher.as_ref());
            let reason = Some("the time given when it was paused is over");
            let action = Action { actor: &actor, action: "resume", target: &target, reason, outcome: "resumed" };
            audit::keep(&mut tx, &action, now).await?;
        }
        tx.commit().await?;
        Ok(over)
    }

    /// Calendars that some process works on now: of that teacher, or all.
    pub async fn held_calendars(&self, teacher: Option<&TeacherId>, now: UnixMillis) -> Result<Vec<HeldCalendar>> {
        let values = args![now, teacher_column(teacher)];
        let rows = self.inner.rows("reading who works on calendars", HELD, values).await?;
        rows.iter()
            .map(|row| {
                let until = UnixMillis::new(row.get("lease_until_ms")?);
                Ok(HeldCalendar { teacher: rows::teacher_id(row)?, until })
            })
            .collect()
    }
}

/// An empty text stands for all calendars, because a key column cannot be empty otherwise.
fn teacher_column(teacher: Option<&TeacherId>) -> &str {
    teacher.map_or("", TeacherId::as_str)
}

fn target(scope: Scope, teacher: Option<&TeacherId>) -> String {
    teacher.map_or_else(|| scope.as_str().to_owned(), |teacher| format!("{} {teacher}", scope.as_str()))
}

fn read(row: &Row) -> Result<Pause> {
    let teacher: String = row.get("teacher_id")?;
    let teacher = match teacher.as_str() {
        "" => None,
        id => Some(TeacherId::parse(id).map_err(|_| row.corrupt("teacher_id", id))?),
    };
    Ok(Pause {
        scope: row.parsed("scope", |text| word(&Scope::WORDS, text))?,
        teacher,
        since: UnixMillis::new(row.get("since_ms")?),
        until: row.time("until_ms")?,
        actor: row.get("actor")?,
        reason: row.get("reason")?,
    })
}
