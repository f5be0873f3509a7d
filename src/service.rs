//! The whole service in one process: opens what it needs, starts the loops, and ends them in order.
//!
//! The API comes up first, so that `/livez` answers and `/readyz` says what is missing while the database or NATS are
//! still away. Nothing that can come back later ends the process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::api::health::{Check, Readiness};
use crate::api::{self, ApiOptions, ApiState};
use crate::cli::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::{Config, GoogleConfig};
use crate::consumer::{self, ConsumerContext, Health};
use crate::credential::KeyRing;
use crate::google::access::AccessTokens;
use crate::google::breaker::Breaker;
use crate::google::calendar::{CalendarClient, http_client};
use crate::google::limits::Limits;
use crate::google::oauth::TokenEndpoint;
use crate::outbox::{self, OutboxContext, OutboxHealth};
use crate::plan::Policy;
use crate::reconciler::{Context, Gateway, Reconciler};
use crate::retry::{Jitter, Reconnect};
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};
use crate::telemetry::{Chain, Metrics};

/// Automatic repairs of one event in 24 hours before a person is asked (README, "What happens at Google").
const REPAIRS_MAX: i64 = 2;

/// The loops end within this time after a shutdown was asked for: a call to Google that was begun may take 20 s, and its
/// result 5 s to be kept. What is under way then is dropped, as when the process is killed, and picked up after the next
/// start. Each part has bounds of its own that are shorter where it waits for something that is away.
const LOOPS_DRAIN: Duration = Duration::from_secs(25);

/// A service that runs.
#[derive(Debug)]
pub struct Service {
    /// Where the API listens.
    pub address: SocketAddr,
    /// Where the health routes listen, when `ADMIN_ADDR` is set.
    pub admin_address: Option<SocketAddr>,
    /// The database.
    pub store: Store,
    /// The state of ingest.
    pub health: Arc<Health>,
    /// Tells the reconciler that rows may have become due: for who moves the clock.
    pub wake: Arc<Notify>,
    shutdown: Shutdown,
    tasks: JoinSet<()>,
}

/// `meet-projector serve`: runs until a signal, then drains.
pub async fn serve(config: Config, clock: Clock) -> Result<Exit, CommandError> {
    let _telemetry = crate::cli::start_logging(&config)?;
    let shutdown =
        Shutdown::on_signals().map_err(|error| CommandError::failed(format!("cannot listen for signals: {error}")))?;
    let service = start(config, clock, shutdown).await?;
    info!(address = %service.address, version = env!("CARGO_PKG_VERSION"), "serving");
    service.ended().await;
    info!("stopped");
    Ok(Exit::Ok)
}

/// The Google section, which [`crate::config::Need::Serve`] and `Google` make sure of.
pub fn google_config(config: &Config) -> Result<&GoogleConfig, CommandError> {
    config.google.as_ref().ok_or_else(|| CommandError::configuration("the GOOGLE_ variables are not set"))
}

/// Starts everything. Fails only for what no waiting will mend: a wrong setting, a port in use, a SQLite file that
/// another process holds.
pub async fn start(config: Config, clock: Clock, shutdown: Shutdown) -> Result<Service, CommandError> {
    let google = google_config(&config)?.clone();
    let keys = KeyRing::new(&google.encryption_key, &google.encryption_keys_old)
        .map_err(|error| CommandError::configuration(error.to_string()))?;
    let keys = Arc::new(keys);
    let listener = bind("HTTP_ADDR", config.http.address).await?;
    let admin = match config.http.admin_address {
        Some(address) => Some(bind("ADMIN_ADDR", address).await?),
        None => None,
    };
    let address = listener.local_addr().map_err(|error| CommandError::failed(error.to_string()))?;
    let admin_address = admin.as_ref().and_then(|admin| admin.local_addr().ok());

    let store = Store::open_lazily(&config.database).await?;
    store.lock_for_serving()?;

    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let is_prepared = Arc::new(AtomicBool::new(false));
    let state = ApiState::new(ApiOptions {
        store: store.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
        readiness: readiness(&health, &is_prepared),
        tokens_file: config.http.tokens_file.clone(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = api::serve(state, listener, admin).await {
            error!(%error, "the API stopped");
        }
    });

    let wake = Arc::new(Notify::new());
    let loops = Loops {
        config,
        google,
        keys,
        store: store.clone(),
        clock,
        metrics,
        health: Arc::clone(&health),
        wake: Arc::clone(&wake),
    };
    let stop = shutdown.clone();
    tasks.spawn(async move { loops.run(is_prepared, stop).await });
    Ok(Service { address, admin_address, store, health, wake, shutdown, tasks })
}

impl Service {
    /// Waits until everything has ended, which it does after a shutdown was asked for.
    pub async fn ended(mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                // Half a service is worse than none: whoever supervises the process starts it again.
                error!(%error, "a part of the service panicked; stopping");
                self.shutdown.ask();
            }
        }
    }

    /// Asks for the drain and waits for its end.
    pub async fn stop(self) {
        self.shutdown.ask();
        self.ended().await;
    }
}

async fn bind(variable: &str, address: SocketAddr) -> Result<TcpListener, CommandError> {
    TcpListener::bind(address).await.map_err(|error| {
        CommandError::failed(format!("cannot listen on {address}: {error}; set {variable} to another address"))
    })
}

fn readiness(health: &Arc<Health>, is_prepared: &Arc<AtomicBool>) -> Readiness {
    let (health, is_prepared) = (Arc::clone(health), Arc::clone(is_prepared));
    Readiness::new(move || {
        let seen = health.snapshot();
        let check = |name, problem: Option<String>| problem.map_or(Check::ok(name), |why| Check::failed(name, why));
        let not_connected = || seen.last_error.clone().unwrap_or_else(|| "no connection to NATS; trying again".into());
        vec![
            check("schema", (!is_prepared.load(Ordering::Acquire)).then(|| "the schema is not prepared yet".into())),
            check("nats", (!seen.connected).then(not_connected)),
            check("stream", seen.blocked.clone().or_else(|| seen.last_error.clone())),
        ]
    })
}

/// What the loops are made of.
struct Loops {
    config: Config,
    google: GoogleConfig,
    keys: Arc<KeyRing>,
    store: Store,
    clock: Clock,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    wake: Arc<Notify>,
}

impl Loops {
    async fn run(self, is_prepared: Arc<AtomicBool>, shutdown: Shutdown) {
        if !prepare(&self.store, &shutdown).await {
            return;
        }
        is_prepared.store(true, Ordering::Release);

        let wake = Arc::clone(&self.wake);
        let reconciler = self.reconciler();
        let mut loops = JoinSet::new();
        let mut names = HashMap::new();
        let ingest = loops.spawn(consumer::run(ConsumerContext {
            nats: self.config.nats.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            wake: Arc::clone(&wake),
            health: Arc::clone(&self.health),
            paused: watch::Sender::new(false).subscribe(),
            pace: consumer::Pace::default(),
            cancel: shutdown.token(),
        }));
        names.insert(ingest.id(), "ingest");
        let results = loops.spawn(outbox::run(OutboxContext {
            nats: self.config.nats.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            health: Arc::new(OutboxHealth::default()),
            cancel: shutdown.token(),
        }));
        names.insert(results.id(), "results");
        let caught_up = self.health.caught_up();
        let cancel = shutdown.token();
        let reconcile = loops.spawn(async move { reconciler.run(wake, caught_up, cancel).await });
        names.insert(reconcile.id(), "reconciler");
        let overdue = async {
            shutdown.asked().await;
            tokio::time::sleep(LOOPS_DRAIN).await;
        };
        tokio::pin!(overdue);
        loop {
            let ended = tokio::select! {
                ended = loops.join_next_with_id() => ended,
                () = &mut overdue => break,
            };
            match ended {
                None => return,
                Some(Ok((id, ()))) => drop(names.remove(&id)),
                Some(Err(error)) => {
                    names.remove(&error.id());
                    error!(%error, "a loop panicked; stopping");
                    shutdown.ask();
                }
            }
        }
        let unfinished = names.into_values().collect::<Vec<_>>().join(", ");
        let seconds = LOOPS_DRAIN.as_secs();
        warn!(unfinished, seconds, "not done by the end of the drain; dropped, and picked up after the next start");
        loops.abort_all();
    }

    fn reconciler(&self) -> Reconciler {
        let google = &self.google;
        let http = http_client();
        let endpoint =
            TokenEndpoint::new(http.clone(), &google.client_id, &google.client_secret, google.token_uri.clone());
        let access = AccessTokens::new(self.store.clone(), endpoint, Arc::clone(&self.keys), self.clock.clone());
        Reconciler::new(Context {
            store: self.store.clone(),
            gateway: Gateway {
                calendar: CalendarClient::new(http, google.calendar_api_root.clone(), google.send_updates),
                access: Arc::new(access),
                limits: Limits::new(google.rate_per_teacher, google.rate_per_project, google.max_in_flight),
                breaker: Breaker::default(),
                clock: self.clock.clone(),
                metrics: Arc::clone(&self.metrics),
            },
            policy: Policy {
                environment: self.config.environment.clone(),
                attendees: google.attendees,
                repairs_max: REPAIRS_MAX,
            },
            clock: self.clock.clone(),
            jitter: Jitter::from_system(),
            calendars_max: google.max_in_flight,
        })
    }
}

/// Brings the schema up to date, waiting for a database that is away; `false` when the shutdown came first.
async fn prepare(store: &Store, shutdown: &Shutdown) -> bool {
    let mut reconnect = Reconnect::default();
    let jitter = Jitter::from_system();
    loop {
        let migrated = tokio::select! {
            // First, so that a schema that is prepared at once is, whatever was asked for.
            biased;
            migrated = migrate(store) => migrated,
            // A database that accepts connections and says nothing must not hold up the end.
            () = shutdown.asked() => return false,
        };
        match migrated {
            Ok(()) => return true,
            Err(error) if error.is_transient() => {
                warn!(error = %Chain(&error), "waiting for the database");
            }
            Err(error) => {
                error!(error = %Chain(&error), "the database cannot be used; stopping");
                shutdown.ask();
                return false;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(reconnect.next_delay(jitter.next()).max(Duration::from_millis(100))) => {}
            () = shutdown.asked() => return false,
        }
    }
}

async fn migrate(store: &Store) -> Result<(), StoreError> {
    for name in store.migrate().await? {
        info!(migration = name, "applied");
    }
    store.check_schema().await?;
    store.end_leases().await
}
