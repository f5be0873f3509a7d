//! Taking a grant away: remove what is left on the calendar if that is wanted, revoke at Google, wipe.
//!
//! Every step is a state in the database, so a crash between any two of them loses nothing: after a restart the finisher
//! goes on where it stood, and revoking twice does no harm. From the moment the grant is taken away no call is begun
//! with it; one that is under way ends first, and its result is recorded, before Google is asked to revoke.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::config::GoogleConfig;
use crate::crash;
use crate::credential::{KeyRing, Slot};
use crate::google::calendar::http_client;
use crate::google::oauth::revoke::RevocationEndpoint;
use crate::model::TeacherId;
use crate::retry::{Jitter, Reconnect, RetrySchedule};
use crate::store::{
    Actor, DisconnectOutcome, DisconnectPhase, DisconnectWork, Disconnection, Revocation, Store, StoreError,
};
use crate::telemetry::Chain;

/// A revocation is one process's for this long: the request's ten seconds, and some for the database.
const LEASE_MS: i64 = 30_000;
/// Whoever asks for a disconnect waits this long for its end, then is told that it goes on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Without a nudge the database is asked this often: another process may have begun a disconnect.
const POLL: Duration = Duration::from_secs(2);

/// What ends connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct Disconnector {
    store: Store,
    keys: Arc<KeyRing>,
    clock: Clock,
    endpoint: RevocationEndpoint,
    /// Wakes the reconciler.
    wake: Arc<Notify>,
    /// Wakes [`Disconnector::run`].
    nudge: Arc<Notify>,
    jitter: Arc<Jitter>,
}

impl Disconnector {
    /// Over one database and one revocation endpoint.
    pub fn new(google: &GoogleConfig, store: Store, keys: Arc<KeyRing>, clock: Clock, wake: Arc<Notify>) -> Self {
        let endpoint = RevocationEndpoint::new(http_client(), google.revoke_uri.clone());
        let jitter = Arc::new(Jitter::from_system());
        Self { store, keys, clock, endpoint, wake, nudge: Arc::default(), jitter }
    }

    /// Begins to disconnect a teacher, waits a few seconds for the end unless events are being removed, and says how it
    /// stands; `None` for a teacher who never connected. What is not at its end goes on in [`Disconnector::run`].
    pub async fn disconnect(
        &self,
        teacher: &TeacherId,
        remove_events: bool,
        actor: &Actor,
        reason: Option<&str>,
    ) -> Result<Option<Disconnection>, StoreError> {
        let begun = Instant::now();
        let mut seen = self.store.disconnect(teacher, remove_events, actor, reason, self.clock.now()).await?;
        self.wake.notify_one();
        self.nudge.notify_one();
        while seen.as_ref().is_some_and(|seen| seen.phase == DisconnectPhase::Revoking) && begun.elapsed() < PATIENCE {
            match self.step(Some(teacher)).await? {
                Step::Moved => {}
                // Google did not take it: later.
                Step::Failed => break,
                Step::Idle(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
            seen = self.store.disconnection(teacher, self.clock.now()).await?;
        }
        Ok(seen)
    }

    /// How the disconnect of a teacher stands.
    pub async fn stands(&self, teacher: &TeacherId) -> Result<Option<Disconnection>, StoreError> {
        self.store.disconnection(teacher, self.clock.now()).await
    }

    /// Goes on with disconnects until `cancel`.
    pub async fn run(self, cancel: CancellationToken) {
        let mut reconnect = Reconnect::default();
        while !cancel.is_cancelled() {
            let pause = match self.step(None).await {
                Ok(step) => {
                    reconnect.reset();
                    match step {
                        Step::Moved | Step::Failed => continue,
                        Step::Idle(pause) => pause,
                    }
                }
                Err(error) => {
                    if reconnect == Reconnect::default() {
                        warn!(error = %Chain(&error), "cannot go on with disconnects; trying again until it works");
                    }
                    reconnect.next_delay(self.jitter.next())
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.nudge.notified() => {}
                () = cancel.cancelled() => {}
            }
        }
    }

    async fn step(&self, of: Option<&TeacherId>) -> Result<Step, StoreError> {
        let now = self.clock.now();
        match self.store.disconnect_work(of, now, LEASE_MS).await? {
            DisconnectWork::Moved => {
                self.wake.notify_one();
                Ok(Step::Moved)
            }
            DisconnectWork::Nothing { until } => {
                let left =
                    until.map_or(POLL, |until| Duration::from_millis(u64::try_from(until.since(now)).unwrap_or(0)));
                Ok(Step::Idle(left.clamp(LOOK_EVERY, POLL)))
            }
            DisconnectWork::Revoke(revocation) => self.revoke(&revocation).await,
        }
    }

    async fn revoke(&self, revocation: &Revocation) -> Result<Step, StoreError> {
        let Revocation { teacher, account, .. } = revocation;
        let opened = revocation
            .refresh_token
            .as_deref()
            .and_then(|sealed| self.keys.open(Slot::refresh_token(teacher, account), sealed).ok());
        let outcome = match opened {
            None => DisconnectOutcome::NoToken,
            Some(token) => {
                crash::here("before_revoke");
                let revoked = self.endpoint.revoke(&token).await;
                crash::here("after_revoke");
                let now = self.clock.now();
                match revoked {
                    Ok(()) => DisconnectOutcome::Revoked,
                    Err(error) if now >= revocation.deadline => {
                        error!(teacher_id = %teacher, error = %error, "Google did not revoke a grant for a day; it is wiped here \
                            and stays at Google until the teacher removes it at https://myaccount.google.com/connections");
                        DisconnectOutcome::GivenUp
                    }
                    Err(error) => {
                        let attempt = revocation.attempts + 1;
                        let delay_ms =
                            RetrySchedule::LATER.delay_ms(attempt, self.jitter.next(), error.retry_after_ms).max(500);
                        warn!(teacher_id = %teacher, attempt, error = %error, "a grant is not revoked yet; trying again");
                        self.store.retry_disconnect(revocation, now.plus(delay_ms)).await?;
                        return Ok(Step::Failed);
                    }
                }
            }
        };
        if self.store.finish_disconnect(revocation, outcome, self.clock.now()).await? {
            info!(teacher_id = %teacher, outcome = outcome.as_str(), "Google is disconnected");
            self.wake.notify_one();
        }
        Ok(Step::Moved)
    }
}

/// What a step did.
enum Step {
    /// Something; there may be more.
    Moved,
    /// Google did not take it; it is put off.
    Failed,
    /// Nothing is due for so long.
    Idle(Duration),
}
