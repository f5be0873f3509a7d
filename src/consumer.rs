//! Events from the stream into the store, whatever happens to either.
//!
//! One session of work is: settle which epoch this is, make sure of the durable consumer, pull, decode, fold a group in
//! one transaction, and acknowledge after the commit. Anything unexpected ends the session; messages that were read and
//! not committed are handed back, and the next session begins with the same questions. So a lost connection, a deleted
//! consumer, a remade stream and a database that was away all take one path.
//!
//! The database decides what was processed; an acknowledgement is only a hint, and may be lost even when the server
//! confirmed it (it writes consumer state some ten times a second). A consumer is therefore always made from the
//! database's position, and redelivery is harmless because the fold is.
//!
//! The pull loop is our own because async-nats's hang or lose messages in ways that matter here: `batch()` and `fetch()`
//! with a heartbeat stop waking up, `messages()` waits for ever when its consumer is gone, dropping either leaves a batch
//! invisible until `ack_wait`, and none says why a message was given up.
//!
//! Deliberately absent: any call to Google, and any order: the fold needs none.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::nats::definitions::Definitions;
use crate::nats::epoch::sight::{self, SightError, Standing};
use crate::nats::{Connection, ConnectionEvents, NatsError, connect_persistently, probe};
use crate::store::{EpochRecord, Store, StoreError};
use crate::telemetry::Chain;

mod commit;
mod durable;
mod health;
mod pull;
mod reply;

pub use health::{Health, Snapshot};

/// How long the last acknowledgements may take to leave.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// What the consumer works with.
#[derive(Debug, Clone)]
pub struct ConsumerContext {
    /// Where the stream is and what it is called.
    pub nats: NatsConfig,
    /// What is folded into.
    pub store: Store,
    /// The time, for what the store notes.
    pub clock: Clock,
    /// Told when a row became due, for the reconciler.
    pub wake: Arc<Notify>,
    /// What readiness and metrics show.
    pub health: Arc<Health>,
    /// `true` while an operator paused ingest: messages stay on the stream.
    pub paused: watch::Receiver<bool>,
    /// How often it looks at what it cannot be told.
    pub pace: Pace,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// How often the consumer looks at what nobody tells it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Between looks at the stream while all is well (60 s): how long a restored stream can go unnoticed.
    pub check: Duration,
    /// Between looks while a person has to decide, or the stream is missing (5 s).
    pub recheck: Duration,
    /// Between looks at a gap in what was processed (250 ms).
    pub gap: Duration,
    /// How long one pull request stands at the server (5 s): the bound on every stall.
    pub expires: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            check: Duration::from_mins(1),
            recheck: Duration::from_secs(5),
            gap: Duration::from_millis(250),
            expires: Duration::from_secs(5),
        }
    }
}

/// Why a session of work ended.
#[derive(Debug)]
enum End {
    /// The program stops.
    Cancelled,
    /// An operator paused ingest.
    Paused,
    /// The connection was lost and came back: pulls under way are gone.
    Reconnected,
    /// Pulls fail, or the server said that the consumer is gone.
    ConsumerGone(String),
    /// The consumer will never deliver a message that was not processed; it was deleted to be made again.
    Hole(i64),
    /// The stream is not the one it was.
    EpochMoved,
    /// A person has to decide about the epoch.
    Blocked(String),
    /// It could not even begin.
    Failed(SessionError),
}

/// Why a session could not begin.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Sight(#[from] SightError),
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("the position could not be read or written")]
    Store(#[from] StoreError),
}

/// Consumes until cancelled; every failure is waited out.
pub async fn run(context: ConsumerContext) {
    let health = Arc::clone(&context.health);
    let definitions = match Definitions::load(None, &context.nats, None) {
        Ok(definitions) => definitions,
        Err(error) => unreachable!("the built-in definitions are checked by a test: {error}"),
    };
    let failed = |error: &NatsError| health.failed(&error.to_string());
    let Some(connection) = connect_persistently(&context.nats, "meet-projector ingest", &context.cancel, failed).await
    else {
        return;
    };
    let shown = show_connectivity(Arc::clone(&connection.events), Arc::clone(&health));
    tokio::spawn(context.cancel.clone().run_until_cancelled_owned(shown));
    let work = Work { context, connection, definitions };
    let mut connectivity = work.connection.events.subscribe();
    let mut failures = 0_u32;
    let mut said = None;
    loop {
        let end = work.session(failures == 0).await;
        health.behind();
        let now = connectivity.borrow_and_update().connected;
        health.connected(now);
        let text = match &end {
            End::Cancelled => break,
            End::Paused => {
                health.stands_still(true);
                work.until_resumed().await;
                health.stands_still(false);
                continue;
            }
            End::Reconnected => "the connection to NATS was lost; reconnected".to_owned(),
            End::ConsumerGone(why) => format!("the durable consumer does not deliver: {why}"),
            End::Hole(sequence) => format!("the durable consumer had passed sequence {sequence}, which was not read"),
            End::EpochMoved => "the stream is not the one it was".to_owned(),
            End::Blocked(why) => why.clone(),
            End::Failed(error) => Chain(error).to_string(),
        };
        // What mends itself at once is no failure yet; what comes again is told once for each different reason.
        failures = match end {
            End::Reconnected | End::EpochMoved | End::Hole(_) => 0,
            _ => failures + 1,
        };
        if failures == 0 {
            tracing::warn!(reason = %text, "ingest begins again");
        } else {
            if matches!(end, End::Blocked(_)) {
                health.blocked(&text);
            } else {
                health.failed(&text);
            }
            if said.as_ref() != Some(&text) {
                tracing::error!(reason = %text, "ingest stands still and keeps trying");
            }
        }
        said = (failures > 0).then_some(text);
        let pause = match end {
            End::Blocked(_) | End::Failed(SessionError::Sight(SightError::NoStream(_))) => work.context.pace.recheck,
            _ => Duration::from_millis(100 * u64::from(failures * failures)).min(work.context.pace.recheck),
        };
        tokio::select! {
            () = work.context.cancel.cancelled() => break,
            _ = connectivity.changed() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    health.connected(false);
    // While the server is away the library would keep this waiting until it is back.
    let flushed = tokio::time::timeout(LAST_FLUSH, work.connection.client.flush());
    if !work.connection.events.now().connected || !matches!(flushed.await, Ok(Ok(()))) {
        tracing::warn!("the server is away: what was acknowledged last may be delivered again");
    }
}

/// Shows at once whether the server can be reached: a session learns of it only when its requests fail.
async fn show_connectivity(events: Arc<ConnectionEvents>, health: Arc<Health>) {
    let mut connectivity = events.subscribe();
    loop {
        let connected = connectivity.borrow_and_update().connected;
        health.connected(connected);
        if connectivity.changed().await.is_err() {
            return;
        }
    }
}

/// What sessions share.
struct Work {
    context: ConsumerContext,
    connection: Connection,
    definitions: Definitions,
}

impl Work {
    /// One session, from looking at the stream to whatever ends it.
    async fn session(&self, first_try: bool) -> End {
        let ConsumerContext { cancel, health, .. } = &self.context;
        if cancel.is_cancelled() {
            return End::Cancelled;
        }
        if *self.context.paused.borrow() {
            return End::Paused;
        }
        let mut connectivity = self.connection.events.subscribe();
        if !connectivity.borrow_and_update().connected {
            tokio::select! {
                () = cancel.cancelled() => return End::Cancelled,
                () = connectivity.wait_for(|state| state.connected).map(drop) => {}
            }
        }
        health.connected(true);
        let begun = tokio::select! {
            () = cancel.cancelled() => return End::Cancelled,
            begun = self.begin() => begun,
        };
        let record = match begun {
            Ok(Standing::Open(record)) => record,
            Ok(Standing::Blocked(ambiguity)) => {
                return End::Blocked(format!("{}. {}", ambiguity.seen, ambiguity.advice));
            }
            Err(error) => return End::Failed(error),
        };
        if first_try {
            tokio::select! {
                () = cancel.cancelled() => return End::Cancelled,
                () = self.probe(&record) => {}
            }
        }
        pull::Session::new(self, record).run().await
    }

    /// Settles the epoch, makes sure of the consumer and notes how far there is to go.
    async fn begin(&self) -> Result<Standing, SessionError> {
        let ConsumerContext { nats, store, clock, health, .. } = &self.context;
        let standing = sight::settle(&self.connection, nats, store, clock.now()).await?;
        let Standing::Open(record) = &standing else { return Ok(standing) };
        let drift = durable::ensure(self, record).await?;
        health.drift(drift);
        let head = self.connection.get_last(&nats.stream, &nats.subjects).await?.map_or(0, |message| message.sequence);
        let position = store.position(record.epoch).await?;
        self.complete_dead_letters(record).await?;
        health.begin(record.epoch, head, &position);
        Ok(standing)
    }

    /// Names what our credentials may not do; the service goes on with what it may.
    async fn probe(&self, record: &EpochRecord) {
        let probed = probe::probe(&self.connection, &self.context.nats, record.epoch).await;
        let forbidden = probe::forbidden(&probed);
        if let Some(text) = &forbidden {
            tracing::error!(reason = %text, "permissions are missing at NATS");
        }
        for probed in probed.iter().filter(|one| !one.needed && one.outcome == probe::Outcome::Forbidden) {
            tracing::warn!(
                subject = probed.subject,
                "the durable of the next epoch is not granted: if the stream is made anew, ingest will stop until it is"
            );
        }
        self.context.health.forbidden(forbidden);
    }

    /// Reads back the messages of dead letters that were displaced and not completed.
    async fn complete_dead_letters(&self, record: &EpochRecord) -> Result<(), SessionError> {
        for place in self.context.store.incomplete_dead_letters(256).await? {
            if place.epoch == record.epoch
                && let Some(message) = self.connection.get(&record.stream, place.sequence).await?
            {
                self.context.store.complete_dead_letter(place, &message.raw).await?;
            }
        }
        Ok(())
    }

    async fn until_resumed(&self) {
        let mut paused = self.context.paused.clone();
        self.context.health.paused(true);
        let resumed = async { paused.wait_for(|paused| !paused).await.is_ok() };
        tokio::select! {
            () = self.context.cancel.cancelled() => {}
            // The other side is gone only when the program ends.
            resumed = resumed => if !resumed {
                self.context.cancel.cancelled().await;
            }
        }
        self.context.health.paused(false);
    }
}
