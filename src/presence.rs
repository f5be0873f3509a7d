//! What this process says of itself, and what it hears of pauses: a look at the database every second.
//!
//! Other processes (`status`, `session retry`, `pause --wait`) read it in table `process`. A row is more reliable than a
//! question over the network: it works with any number of replicas, without an address, and still tells in the morning
//! what a process said before it died. Deliberately absent: anything that acts on what other processes say.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::consumer::Health;
use crate::model::UnixMillis;
use crate::store::audit::host;
use crate::store::{Pause, ProcessRecord, Scope, Store, StoreError};
use crate::telemetry::{Chain, Metrics};

/// Between two looks: how long a pause may go unheard.
const LOOK: Duration = Duration::from_secs(1);

/// Looks between two writes when nothing changed: often enough to tell a slow process from a dead one
/// ([`crate::store::PROCESS_GONE_AFTER_MS`]), seldom enough to cost nothing.
const WRITE_EVERY: u32 = 5;

/// What only the process itself knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct State {
    /// Whether it reaches NATS.
    pub nats_connected: bool,
    /// Whether a pause of ingest was heard and nothing is folded any more.
    pub ingest_stands_still: bool,
    /// Whether everything that was on the stream when this session began is folded; nothing is done at Google before.
    pub caught_up: bool,
    /// The epoch it reads.
    pub epoch: Option<i64>,
    /// Why a person has to decide about the stream.
    pub blocked: Option<String>,
    /// What went wrong last with ingest.
    pub last_error: Option<String>,
    /// Which NATS subjects its credentials forbid.
    pub forbidden: Option<String>,
    /// How the durable differs from its definition.
    pub drift: Vec<String>,
    /// Breakers that are open.
    pub breakers: Vec<OpenBreaker>,
}

/// A breaker that is open: Google refuses this installation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenBreaker {
    /// `calendar` or `token`.
    pub api: String,
    /// Since when, in Unix milliseconds.
    pub since_ms: i64,
    /// When the next call may probe, in Unix milliseconds.
    pub probe_at_ms: i64,
    /// What Google said.
    pub message: String,
}

impl State {
    /// Reads what a process wrote; fields that it did not know are empty.
    pub fn parse(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok()
    }
}

/// What is paused, as this process heard it last; for readiness, which must answer from memory.
#[derive(Debug, Clone, Default)]
pub struct Pauses(Arc<RwLock<Vec<Pause>>>);

impl Pauses {
    /// One sentence for what is paused in that scope, if anything is.
    pub fn sentence(&self, scope: Scope) -> Option<String> {
        let pauses = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sentences: Vec<_> = pauses.iter().filter(|pause| pause.scope == scope).map(Pause::sentence).collect();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }

    fn set(&self, pauses: Vec<Pause>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pauses;
    }
}

/// How the process asks for its open breakers.
pub type Breakers = Box<dyn Fn() -> Vec<OpenBreaker> + Send + Sync>;

/// The loop.
pub struct Presence {
    store: Store,
    clock: Clock,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    breakers: Breakers,
    wake: Arc<Notify>,
    pauses: Pauses,
    ingest_paused: watch::Sender<bool>,
    record: ProcessRecord,
    written: Option<State>,
    looks_since: u32,
    was_connected: bool,
}

impl Presence {
    /// A process that has said nothing yet. `wake` tells the reconciler that a pause is over.
    pub fn new(
        store: Store,
        clock: Clock,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        breakers: Breakers,
        wake: Arc<Notify>,
        pauses: Pauses,
    ) -> Self {
        let now = clock.now();
        let record = ProcessRecord {
            id: uuid::Uuid::now_v7().to_string(),
            host: host(),
            pid: i64::from(std::process::id()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: now,
            seen_at: now,
            state: String::new(),
        };
        Self {
            store,
            clock,
            health,
            metrics,
            breakers,
            wake,
            pauses,
            ingest_paused: watch::Sender::new(false),
            record,
            written: None,
            looks_since: 0,
            was_connected: false,
        }
    }

    /// Whether ingest is paused.
    pub fn ingest_paused(&self) -> watch::Receiver<bool> {
        self.ingest_paused.subscribe()
    }

    /// One look at what is paused and, where there is something to say, one write.
    pub async fn look(&mut self) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut pauses = self.store.pauses().await?;
        if pauses.iter().any(|pause| !pause.holds(now)) {
            for pause in self.store.end_pauses(now).await? {
                info!(paused = pause.what(), "the time of this pause is over; going on");
            }
            pauses.retain(|pause| pause.holds(now));
            self.wake.notify_one();
        }
        let is_paused = pauses.iter().any(|pause| pause.scope == Scope::Ingest);
        if self.ingest_paused.send_if_modified(|was| std::mem::replace(was, is_paused) != is_paused) {
            info!(paused = is_paused, "ingest was paused or resumed by an operator");
        }
        self.metrics.pause("reconcile", pauses.iter().any(|pause| pause.scope == Scope::Reconcile));
        self.pauses.set(pauses);
        self.say(is_paused, now).await
    }

    async fn say(&mut self, is_paused: bool, now: UnixMillis) -> Result<(), StoreError> {
        let seen = self.health.snapshot();
        // Without a connection nothing comes in; what was under way when it broke is done a look later.
        let is_cut_off = !seen.connected && !self.was_connected;
        self.was_connected = seen.connected;
        let state = State {
            nats_connected: seen.connected,
            ingest_stands_still: is_paused && (seen.stands_still || is_cut_off),
            caught_up: *self.health.caught_up().borrow(),
            epoch: seen.epoch.map(|epoch| epoch.0),
            blocked: seen.blocked,
            last_error: seen.last_error,
            forbidden: seen.forbidden,
            drift: seen.drift,
            breakers: (self.breakers)(),
        };
        self.looks_since += 1;
        // Whoever waits for a pause wants to hear of it soon.
        if self.written.as_ref() == Some(&state) && self.looks_since < WRITE_EVERY && !is_paused {
            return Ok(());
        }
        self.record.seen_at = now;
        self.record.state = serde_json::to_string(&state).expect("a struct of texts and numbers always serialises");
        self.store.put_process(&self.record, self.written.is_none()).await?;
        self.written = Some(state);
        self.looks_since = 0;
        Ok(())
    }

    /// Looks until cancelled, then says good-bye. While the database is away everything stays as it was heard last.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut is_failing = false;
        loop {
            match self.look().await {
                Ok(()) => is_failing = false,
                Err(error) if is_failing => debug!(error = %Chain(&error), "still cannot look for pauses"),
                Err(error) => {
                    is_failing = true;
                    warn!(error = %Chain(&error), "cannot look for pauses; trying again every second");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = cancel.cancelled() => break,
            }
        }
        // A database that is away must not hold up the end.
        let removed = tokio::time::timeout(LOOK, self.store.remove_process(&self.record.id)).await;
        if !matches!(removed, Ok(Ok(()))) {
            debug!("the database was not told that this process ends; it is forgotten in half a minute");
        }
    }
}
