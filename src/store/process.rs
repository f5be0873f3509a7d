//! Processes that serve, as they last said of themselves: the way in which another process (`status`, `session retry`,
//! `pause --wait`) learns what only they know.

use super::sql::{Row, Sql, Tx, args, both};
use super::{Result, Store};
use crate::model::UnixMillis;

/// A process that has not been heard of for this long is taken to be gone: six of its messages are missing.
pub const PROCESS_GONE_AFTER_MS: i64 = 30_000;

/// A process that serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessRecord {
    /// Drawn at its start.
    pub id: String,
    /// The machine.
    pub host: String,
    /// Its number there.
    pub pid: i64,
    /// Release of the program.
    pub version: String,
    /// When it started.
    pub started_at: UnixMillis,
    /// When it was last heard of.
    pub seen_at: UnixMillis,
    /// What it said: [`crate::presence::State`] as JSON.
    pub state: String,
}

impl ProcessRecord {
    /// Whether it was heard of lately.
    pub fn is_alive(&self, now: UnixMillis) -> bool {
        now.since(self.seen_at) < PROCESS_GONE_AFTER_MS
    }
}

const PUT: Sql = both(
    "INSERT INTO process (id, host, pid, version, started_at_ms, seen_at_ms, state) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (id) DO UPDATE SET seen_at_ms = excluded.seen_at_ms, state = excluded.state",
);

/// A day: long enough to see in the morning what died in the night.
const FORGET: Sql = both("DELETE FROM process WHERE seen_at_ms < $1 - 86400000");

const FORGET_ALL: Sql = both("DELETE FROM process");

const REMOVE: Sql = both("DELETE FROM process WHERE id = $1");

const ALL: Sql =
    both("SELECT id, host, pid, version, started_at_ms, seen_at_ms, state FROM process ORDER BY started_at_ms, id");

/// The processes, in the caller's transaction.
pub(super) async fn processes(tx: &mut Tx) -> Result<Vec<ProcessRecord>> {
    tx.rows(ALL, args![]).await?.iter().map(read).collect()
}

/// Processes.
impl Store {
    /// Writes what a process says of itself; the first time (`is_new`) it forgets those that are long gone, and on SQLite,
    /// where one process serves, all others.
    pub async fn put_process(&self, process: &ProcessRecord, is_new: bool) -> Result<()> {
        let mut tx = self.inner.write("noting that this process runs").await?;
        if is_new && self.is_single_process() {
            tx.execute(FORGET_ALL, args![]).await?;
        } else if is_new {
            tx.execute(FORGET, args![process.seen_at]).await?;
        }
        let values = args![
            process.id.as_str(),
            process.host.as_str(),
            process.pid,
            process.version.as_str(),
            process.started_at,
            process.seen_at,
            process.state.as_str(),
        ];
        tx.execute(PUT, values).await?;
        tx.commit().await
    }

    /// A process that ends in order takes its row with it.
    pub async fn remove_process(&self, id: &str) -> Result<()> {
        self.changed_one("noting that this process ends", REMOVE, args![id]).await.map(drop)
    }

    /// Every process that is known, those included that are gone.
    pub async fn processes(&self) -> Result<Vec<ProcessRecord>> {
        self.inner.rows("reading which processes run", ALL, args![]).await?.iter().map(read).collect()
    }
}

fn read(row: &Row) -> Result<ProcessRecord> {
    Ok(ProcessRecord {
        id: row.get("id")?,
        host: row.get("host")?,
        pid: row.get("pid")?,
        version: row.get("version")?,
        started_at: UnixMillis::new(row.get("started_at_ms")?),
        seen_at: UnixMillis::new(row.get("seen_at_ms")?),
        state: row.get("state")?,
    })
}
