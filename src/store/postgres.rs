//! PostgreSQL: several replicas share the work.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, Executor, Postgres, Transaction};

use super::sql::failed;
use super::{Result, StoreError};

/// Taken by every transaction that writes: `meetproj` in ASCII. It serialises them as SQLite does its own, and goes with
/// the transaction, so a dead process leaves nothing locked.
const WRITE_LOCK: i64 = i64::from_be_bytes(*b"meetproj");

/// Connections of one process. Writes queue at [`WRITE_LOCK`], so more would only wait; readers need the rest.
const CONNECTIONS: u32 = 8;

/// How long to wait for a connection. Writes queue behind it, each a few milliseconds; a server that is away is met with
/// another try later, so readers should learn of it soon.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds on what one connection may hold up: a process that stops in the middle of a transaction loses it after 10 s, a
/// write waits 30 s for its turn and then fails as unavailable, and no statement runs for more than a minute.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '30s'; \
                        SET statement_timeout = '60s'";

/// Makes the pool, which connects when it is first used.
pub(super) fn open_lazily(url: &str) -> Result<PgPool> {
    let options = options(url)?;
    Ok(PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(Duration::from_mins(10))
        .after_connect(|connection, _| Box::pin(async move { connection.execute(SETTINGS).await.map(drop) }))
        .connect_lazy_with(options))
}

/// Connects once: the pool would try a refused connection again and again until its time is up and then not say why.
pub(super) async fn probe(url: &str) -> Result<()> {
    let unreachable = |error| failed("connecting to the database", error);
    options(url)?.connect().await.map_err(unreachable)?.close().await.map_err(unreachable)
}

fn options(url: &str) -> Result<PgConnectOptions> {
    // The driver's message is left out: it may quote parts of the URL, and the password is one.
    let options = PgConnectOptions::from_str(url).map_err(|_| {
        StoreError::Configuration("DATABASE_URL is not a URL such as postgres://user:password@host:5432/name".into())
    })?;
    let options = match options.get_application_name() {
        Some(_) => options,
        None => options.application_name("meet-projector"),
    };
    Ok(options.disable_statement_logging())
}

/// Begins a transaction once it is its turn.
pub(super) async fn begin_write(pool: &PgPool) -> std::result::Result<Transaction<'static, Postgres>, sqlx::Error> {
    let mut tx = pool.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(WRITE_LOCK).execute(&mut *tx).await?;
    Ok(tx)
}

/// Whether the SQLSTATE is worth another try: connection (08), resources (53), operator intervention (57: shutdown,
/// crash, cancelled by a timeout), serialisation failure, deadlock, lock or idle timeout
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>).
pub(super) fn is_transient(code: &str) -> bool {
    ["08", "53", "57"].iter().any(|class| code.starts_with(class))
        || matches!(code, "40001" | "40P01" | "55P03" | "25P03")
}
