//! What is read from the database for `/metrics` beside [`Counts`](super::Counts).

use super::sql::{Backend, Sql, args, both, word};
use super::{Result, Store};
use crate::model::UnixMillis;
use crate::run::Kind;

const MINUTE_MS: i64 = 60_000;

/// One look at the database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gauges {
    /// Since when the oldest session that is not over is pending.
    pub oldest_pending_since: Option<UnixMillis>,
    /// Sessions without a link that start within 30 minutes.
    pub at_risk_30m: i64,
    /// The same within 2 hours.
    pub at_risk_2h: i64,
    /// The same within 24 hours.
    pub at_risk_24h: i64,
    /// Teachers by `tokenStatus`.
    pub teachers: Vec<(String, i64)>,
    /// Calendars whose writes are paused.
    pub cooling_down: i64,
    /// Runs that should move by themselves, by kind.
    pub runs: Vec<OpenRun>,
}

/// Runs of one kind that are not at their end and that nobody stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenRun {
    /// What kind.
    pub kind: Kind,
    /// When the one that moved longest ago last moved.
    pub moved_at: UnixMillis,
    /// Sequences of the stream before them, all together.
    pub remaining: i64,
}

/// Connections of one pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolState {
    /// `read` and `write` on SQLite, `all` on PostgreSQL.
    pub name: &'static str,
    /// Open and free.
    pub idle: i64,
    /// Open and in use.
    pub busy: i64,
}

/// A document changes with every version, so a session that is moved while it is pending counts from then: what is late
/// is its newest time. A link is looked for in the document, as readers get it.
const SESSIONS: Sql = both(
    "SELECT \
     (SELECT MIN(document_updated_at_ms) FROM session WHERE meet_status = 'PENDING' \
     AND (ends_at_ms IS NULL OR ends_at_ms > $1)) AS oldest, \
     COALESCE(SUM(CASE WHEN starts_at_ms <= $2 THEN 1 ELSE 0 END), 0) AS soon, \
     COALESCE(SUM(CASE WHEN starts_at_ms <= $3 THEN 1 ELSE 0 END), 0) AS today, \
     COUNT(*) AS tomorrow \
     FROM session WHERE list_starts_at_ms > $1 AND list_starts_at_ms <= $4 AND status = 'scheduled' \
     AND document LIKE '%\"meetLink\":null%'",
);

const TEACHERS: Sql =
    both("SELECT token_status, COUNT(*) AS number FROM teacher_google_credential GROUP BY token_status");

const COOLING_DOWN: Sql =
    both("SELECT COUNT(*) AS number FROM teacher_google_credential WHERE cool_down_until_ms > $1");

/// A search for leftovers stops itself when something fails, and is tried again; the others are stopped by people.
const RUNS: Sql = both(
    "SELECT kind, MIN(updated_at_ms) AS moved_at_ms, \
     CAST(SUM(CASE WHEN goal > cursor THEN goal - cursor ELSE 0 END) AS BIGINT) AS remaining FROM run \
     WHERE state = 'running' OR (state = 'stopped' AND kind = 'leftovers') GROUP BY kind",
);

/// Gauges.
impl Store {
    /// One look, in four queries.
    pub async fn gauges(&self, now: UnixMillis) -> Result<Gauges> {
        let operation = "reading gauges";
        let within = |minutes: i64| now.plus(minutes * MINUTE_MS);
        let mut gauges = Gauges::default();
        let windows = args![now, within(30), within(120), within(24 * 60)];
        if let Some(row) = self.inner.row(operation, SESSIONS, windows).await? {
            gauges.oldest_pending_since = row.time("oldest")?;
            gauges.at_risk_30m = row.get("soon")?;
            gauges.at_risk_2h = row.get("today")?;
            gauges.at_risk_24h = row.get("tomorrow")?;
        }
        for row in self.inner.rows(operation, TEACHERS, args![]).await? {
            gauges.teachers.push((row.get("token_status")?, row.get("number")?));
        }
        if let Some(row) = self.inner.row(operation, COOLING_DOWN, args![now]).await? {
            gauges.cooling_down = row.get("number")?;
        }
        for row in self.inner.rows(operation, RUNS, args![]).await? {
            gauges.runs.push(OpenRun {
                kind: row.parsed("kind", |text| word(&Kind::WORDS, text))?,
                moved_at: UnixMillis::new(row.get("moved_at_ms")?),
                remaining: row.get("remaining")?,
            });
        }
        Ok(gauges)
    }

    /// The pools, without asking the database anything.
    pub fn pools(&self) -> Vec<PoolState> {
        let state = |name, open: u32, idle: usize| {
            let (open, idle) = (i64::from(open), i64::try_from(idle).unwrap_or(i64::MAX));
            PoolState { name, idle, busy: (open - idle).max(0) }
        };
        match &self.inner.backend {
            Backend::Sqlite(pools) => vec![
                state("read", pools.read.size(), pools.read.num_idle()),
                state("write", pools.write.size(), pools.write.num_idle()),
            ],
            Backend::Postgres(pool) => vec![state("all", pool.size(), pool.num_idle())],
        }
    }
}
