//! Between NATS and the store, with a real server for each test.

use std::sync::Arc;
use std::time::Duration;

use meet_projector::clock::Clock;
use meet_projector::config::NatsConfig;
use meet_projector::consumer::{self, ConsumerContext, Health, Pace, Snapshot};
use meet_projector::model::{Epoch, SessionId};
use meet_projector::store::{DatabaseUrl, Store};
use secrecy::SecretString;
use sqlx::ConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::nats::eventually;

mod definitions;
mod durable;
mod epochs;
mod ingest;
mod outbox;
mod permissions;

/// A migrated SQLite database in a folder of its own.
struct Database {
    folder: TempDir,
    store: Store,
}

impl Database {
    async fn fresh() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("test.db").display());
        let store = Store::open(&DatabaseUrl(SecretString::from(url))).await.unwrap();
        store.migrate().await.unwrap();
        Self { folder, store }
    }

    /// Keeps everybody else from writing until it is dropped.
    async fn block(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.folder.path().join("test.db"));
        let mut blocker = options.connect().await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut blocker).await.unwrap();
        blocker
    }
}

/// The consumer at work.
struct Ingest {
    store: Store,
    health: Arc<Health>,
    wake: Arc<Notify>,
    paused: watch::Sender<bool>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Ingest {
    fn start(config: NatsConfig, store: &Store) -> Self {
        let (health, wake) = (Arc::new(Health::default()), Arc::new(Notify::new()));
        let cancel = CancellationToken::new();
        let (paused, receiver) = watch::channel(false);
        let task = tokio::spawn(consumer::run(ConsumerContext {
            nats: config,
            store: store.clone(),
            clock: Clock::system(),
            wake: Arc::clone(&wake),
            health: Arc::clone(&health),
            paused: receiver,
            // Impatient, so that tests are not.
            pace: Pace {
                check: Duration::from_millis(300),
                recheck: Duration::from_millis(100),
                gap: Duration::from_millis(50),
                expires: Duration::from_secs(1),
            },
            cancel: cancel.clone(),
        }));
        Self { store: store.clone(), health, wake, paused, cancel, task }
    }

    fn now(&self) -> Snapshot {
        self.health.snapshot()
    }

    /// Waits until everything up to that sequence of that epoch was processed.
    async fn until_read(&self, epoch: i64, sequence: i64) {
        eventually(&format!("epoch {epoch} is read to {sequence}: {:?}", self.now()), async || {
            self.store.position(Epoch(epoch)).await.unwrap().contiguous >= sequence
        })
        .await;
    }

    /// Waits until a person has to decide, and says about what.
    async fn until_blocked(&self) -> String {
        eventually("ingest is blocked", async || self.now().blocked.is_some()).await;
        self.now().blocked.unwrap()
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

/// The version to which a session was folded.
async fn version(store: &Store, session: &str) -> Option<i64> {
    let id = SessionId::parse(session).unwrap();
    store.session(&id).await.unwrap().map(|(session, _)| session.head.stamp.version.get())
}

/// Every document, as a reader sees it.
async fn documents(store: &Store) -> Vec<String> {
    let filter = meet_projector::store::DocumentFilter { limit: 100, ..Default::default() };
    store.list_documents(&filter).await.unwrap().items.into_iter().map(|document| document.json).collect()
}
