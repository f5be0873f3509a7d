//! SQLite: one process, one file, no server to install.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::sql::failed;
use super::{Result, StoreError};

/// How long a statement waits for another process (a command beside `serve`) to finish its transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a transaction waits for its turn. Writes of this process queue at one connection, each a few milliseconds;
/// less would fail them under load, more would hide a deadlock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Readers beside one another; each costs a thread and up to half a MiB of page cache.
const READERS: u32 = 4;

/// One connection that writes and a few that read: in WAL mode neither waits for the other.
#[derive(Debug)]
pub(super) struct Pools {
    pub(super) write: SqlitePool,
    pub(super) read: SqlitePool,
    file: PathBuf,
    serving: Mutex<Option<File>>,
}

/// Opens the file, which is created with its folder where it does not exist.
pub(super) async fn open(url: &str) -> Result<Pools> {
    let options = SqliteConnectOptions::from_str(url).map_err(|error| {
        StoreError::Configuration(format!(
            "DATABASE_URL is not a SQLite URL such as sqlite://data/meet-projector.db: {error}"
        ))
    })?;
    let file = options.get_filename().to_owned();
    if file.as_os_str().is_empty() || url.contains(":memory:") || url.contains("mode=memory") {
        return Err(StoreError::Configuration(
            "DATABASE_URL must name a file: an in-memory database would be another one for every connection".into(),
        ));
    }
    create(&file).map_err(|error| {
        StoreError::Configuration(format!("DATABASE_URL: {} cannot be opened for writing: {error}", file.display()))
    })?;
    let options = options
        .create_if_missing(true)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // In WAL mode NORMAL loses nothing when the process dies, and at most the last transactions when the machine
        // does; those are read again from the stream, whose position is in the same file.
        .synchronous(SqliteSynchronous::Normal)
        .pragma("temp_store", "memory")
        // A checkpoint every 32 MB instead of every 4: pages that many groups change are then written back once.
        .pragma("wal_autocheckpoint", "8000")
        .pragma("journal_size_limit", "67108864")
        .disable_statement_logging();

    let write = SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(
            options
                .clone()
                .journal_mode(SqliteJournalMode::Wal)
                .statement_cache_capacity(200)
                // Room for what a group of a thousand events changes: what does not fit is written twice.
                .pragma("cache_size", "-16384"),
        )
        .await
        .map_err(|error| failed("opening the database", error))?;
    // WAL mode is kept in the file, so readers need not ask for it. They open when they are needed and close again.
    let read = SqlitePoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .idle_timeout(Duration::from_mins(2))
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_lazy_with(
            options.statement_cache_capacity(32).pragma("cache_size", "-512").pragma("query_only", "on"),
        );
    Ok(Pools { write, read, file, serving: Mutex::new(None) })
}

/// Makes the folder and the file; only the owner may read it, as it holds names and addresses.
fn create(file: &Path) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map(drop)
}

impl Pools {
    /// A number that changes with every commit of another process, and with none of ours, which all go through this one
    /// connection (<https://www.sqlite.org/pragma.html#pragma_data_version>).
    pub(super) async fn data_version(&self) -> std::result::Result<i64, sqlx::Error> {
        sqlx::query_scalar("PRAGMA data_version").fetch_one(&self.write).await
    }

    /// Locks `<file>.lock` until the process ends. The lock is the operating system's, so a killed process leaves none.
    pub(super) fn lock_for_serving(&self) -> Result<()> {
        let mut serving = self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if serving.is_some() {
            return Ok(());
        }
        let mut name = self.file.clone().into_os_string();
        name.push(".lock");
        let failed = |source: std::io::Error| StoreError::Failed {
            operation: "locking the database for serving",
            source: source.into(),
        };
        let lock = File::options().create(true).truncate(false).write(true).open(&name).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {
                *serving = Some(lock);
                Ok(())
            }
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(format!(
                "{} is being served by another process; stop it first, or use PostgreSQL to run several",
                self.file.display()
            ))),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// Whether the extended result code is worth another try: BUSY 5, LOCKED 6, NOMEM 7, READONLY 8, IOERR 10, FULL 13,
/// CANTOPEN 14 (<https://www.sqlite.org/rescode.html>). A disk may become free or writable again, and no message should be
/// given up for it.
pub(super) fn is_transient(code: &str) -> bool {
    code.parse::<i64>().is_ok_and(|code| matches!(code & 0xff, 5..=8 | 10 | 13 | 14))
}
