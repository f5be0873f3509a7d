//! Opening, migrating, and the schema check.

use std::collections::BTreeMap;
use std::sync::Arc;

use secrecy::ExposeSecret;
use sqlx::migrate::Migrator;
use tokio::sync::broadcast;

use super::sql::{Backend, Database, Sql, Tx, args, both};
use super::{DatabaseUrl, Result, Store, StoreError, postgres, sqlite};
use crate::model::SessionId;

static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

/// Changed sessions kept for slow receivers of [`Store::changes`]; those that lag more read again anyway.
const CHANGES_KEPT: usize = 4096;

const HAS_MIGRATIONS: Sql = Sql {
    // Each has a catalogue of its own.
    sqlite: "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = '_sqlx_migrations'",
    postgres: "SELECT 1 WHERE to_regclass('_sqlx_migrations') IS NOT NULL",
};

const MIGRATIONS: Sql = both("SELECT version, checksum FROM _sqlx_migrations ORDER BY version");

const HAS_BREAKS: Sql = Sql {
    sqlite: "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'schema_break'",
    postgres: "SELECT 1 WHERE to_regclass('schema_break') IS NOT NULL",
};

/// A migration that this program does not know and would have to.
const BREAK: Sql = both("SELECT MIN(migration) AS migration FROM schema_break WHERE migration > $1");

const PING: Sql = Sql {
    // `SELECT 1` alone would not touch the file.
    sqlite: "SELECT COUNT(*) FROM sqlite_schema",
    postgres: "SELECT 1",
};

/// A token keeps its number: it was handed out, and the next claim makes a higher one.
const END_LEASES: [Sql; 4] = [
    both("UPDATE teacher_queue SET lease_until_ms = NULL WHERE lease_until_ms IS NOT NULL"),
    both("UPDATE teacher_google_credential SET refresh_until_ms = NULL WHERE refresh_until_ms IS NOT NULL"),
    both("UPDATE google_disconnection SET lease_until_ms = NULL WHERE lease_until_ms IS NOT NULL"),
    both("DELETE FROM lease"),
];

fn is_postgres(url: &DatabaseUrl) -> bool {
    let url = url.0.expose_secret();
    url.starts_with("postgres:") || url.starts_with("postgresql:")
}

/// Opening and migrating.
impl Store {
    /// Opens the database, creating a SQLite file where there is none; does not migrate. `sqlite://path`,
    /// `sqlite::memory:` is refused (several connections would see several databases); `postgres://…`.
    pub async fn open(url: &DatabaseUrl) -> Result<Self> {
        if is_postgres(url) {
            postgres::probe(url.0.expose_secret()).await?;
        }
        Self::open_lazily(url).await
    }

    /// [`Store::open`] without asking a PostgreSQL server for an answer, for a service that waits until it is there.
    pub async fn open_lazily(url: &DatabaseUrl) -> Result<Self> {
        let is_postgres = is_postgres(url);
        let url = url.0.expose_secret();
        let backend = match url.split_once(':').map(|(scheme, _)| scheme) {
            Some("sqlite") => Backend::Sqlite(sqlite::open(url).await?),
            _ if is_postgres => Backend::Postgres(postgres::open_lazily(url)?),
            _ => {
                return Err(StoreError::Configuration("DATABASE_URL must begin with sqlite:// or postgres://".into()));
            }
        };
        let (changes, _) = broadcast::channel(CHANGES_KEPT);
        Ok(Self { inner: Arc::new(Database { backend, changes, process: uuid::Uuid::new_v4() }) })
    }

    /// Takes the exclusive right to run `serve` on a SQLite file, held until the process ends; a no-op on PostgreSQL.
    /// Fails with [`StoreError::InUse`].
    pub fn lock_for_serving(&self) -> Result<()> {
        match &self.inner.backend {
            Backend::Sqlite(pools) => pools.lock_for_serving(),
            Backend::Postgres(_) => Ok(()),
        }
    }

    /// Ends the leases that a process left behind when it died: on calendars, on refreshes and on the relay of results.
    /// Only on SQLite, and only after [`Store::lock_for_serving`], where no other process can hold one; on PostgreSQL
    /// it does nothing, and leases run out.
    pub async fn end_leases(&self) -> Result<()> {
        if !self.is_single_process() {
            return Ok(());
        }
        let mut tx = self.inner.write("ending leases").await?;
        for statement in END_LEASES {
            tx.execute(statement, args![]).await?;
        }
        tx.commit().await
    }

    /// Whether every change goes through this process (SQLite), so that documents may be cached.
    pub fn is_single_process(&self) -> bool {
        matches!(self.inner.backend, Backend::Sqlite(_))
    }

    /// Applies what is missing and says what; safe to run from several processes at once.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        // All in one write transaction, of which there is one at a time: whoever comes second finds nothing missing.
        let mut tx = self.inner.write("migrating the schema").await?;
        let before = applied(&mut tx).await?;
        if let Some(newest) = self.newer_than_known(&before) {
            self.check_breaks(&mut tx, newest).await?;
        }
        // Without the migrator's own lock, which would outlive the transaction and does not exist for SQLite.
        let mut migrator = Migrator::with_migrations(self.migrator().iter().cloned().collect());
        migrator.set_locking(false);
        // Those of a newer release, which were found to be no obstacle.
        migrator.set_ignore_missing(true);
        tx.migrate(&migrator).await?;
        tx.commit().await?;
        Ok(migrator
            .iter()
            .filter(|migration| !before.contains_key(&migration.version))
            .map(|migration| format!("{:04} {}", migration.version, migration.description))
            .collect())
    }

    /// Fails with [`StoreError::Schema`] unless the schema has all that this program needs, in the form it needs. A newer
    /// schema will do as long as the newer release only added to it, so that an upgrade may roll, and roll back.
    pub async fn check_schema(&self) -> Result<()> {
        let mut tx = self.inner.snapshot("checking the schema").await?;
        let applied = applied(&mut tx).await?;
        let needed = self.newest_known();
        let Some(found) = applied.keys().max() else {
            return Err(StoreError::Schema("the database has no tables yet: run `meet-projector migrate`".into()));
        };
        if let Some(newest) = self.newer_than_known(&applied) {
            self.check_breaks(&mut tx, newest).await?;
        }
        for migration in self.migrator().iter() {
            match applied.get(&migration.version) {
                None => {
                    return Err(StoreError::Schema(format!(
                        "the schema of the database is {found} and this program needs {needed}: run `meet-projector \
                         migrate`"
                    )));
                }
                Some(checksum) if **checksum != *migration.checksum => {
                    return Err(StoreError::Schema(format!(
                        "migration {} was applied in another form than this program has it: the database belongs to \
                         another build",
                        migration.version
                    )));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Closes every connection: SQLite folds its write-ahead log into the file, PostgreSQL is told good-bye. What is
    /// asked for afterwards, by any clone, fails with [`StoreError::Unavailable`].
    pub async fn close(&self) {
        match &self.inner.backend {
            Backend::Sqlite(pools) => {
                pools.read.close().await;
                pools.write.close().await;
            }
            Backend::Postgres(pool) => pool.close().await,
        }
    }

    /// One round trip, for readiness.
    pub async fn ping(&self) -> Result<()> {
        self.inner.rows("asking the database for a sign of life", PING, args![]).await.map(drop)
    }

    /// The ids of sessions whose document changed, as this process commits them; lagging receivers miss some.
    pub fn changes(&self) -> broadcast::Receiver<SessionId> {
        self.inner.changes.subscribe()
    }

    /// Tells [`Store::changes`]. That nobody listens is no failure.
    pub(super) fn announce(&self, changed: &[SessionId]) {
        if self.inner.changes.receiver_count() == 0 {
            return;
        }
        for id in changed {
            drop(self.inner.changes.send(id.clone()));
        }
    }

    /// The newest migration that was applied, when this program does not know it.
    fn newer_than_known(&self, applied: &BTreeMap<i64, Vec<u8>>) -> Option<i64> {
        applied.keys().max().copied().filter(|found| *found > self.newest_known())
    }

    fn newest_known(&self) -> i64 {
        self.migrator().iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// Fails when a newer release took away what this program needs.
    async fn check_breaks(&self, tx: &mut Tx, newest: i64) -> Result<()> {
        let known = self.newest_known();
        let breaking = match tx.row(HAS_BREAKS, args![]).await? {
            Some(_) => tx.row(BREAK, args![known]).await?.map(|row| row.get::<Option<i64>>("migration")).transpose()?,
            None => None,
        };
        match breaking.flatten() {
            None => {
                tracing::info!(newest, known, "the schema is of a newer release, which only added to it");
                Ok(())
            }
            Some(breaking) => Err(StoreError::Schema(format!(
                "the schema of the database is {newest} and this program knows only up to {known}: migration {breaking} of \
                 a newer release changed what this program needs, so run that release"
            ))),
        }
    }

    fn migrator(&self) -> &'static Migrator {
        match &self.inner.backend {
            Backend::Sqlite(_) => &SQLITE,
            Backend::Postgres(_) => &POSTGRES,
        }
    }
}

/// Versions and checksums of the migrations that were applied.
async fn applied(tx: &mut Tx) -> Result<BTreeMap<i64, Vec<u8>>> {
    if tx.row(HAS_MIGRATIONS, args![]).await?.is_none() {
        return Ok(BTreeMap::new());
    }
    let rows = tx.rows(MIGRATIONS, args![]).await?;
    rows.iter().map(|row| Ok((row.get("version")?, row.get("checksum")?))).collect()
}
