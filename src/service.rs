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
use crate::connect::{Connect, Disconnector, Parts};
use crate::consumer::{self, ConsumerContext, Health};
use crate::credential::KeyRing;
use crate::google::access::AccessTokens;
use crate::google::breaker::Breaker;
use crate::google::calendar::{CalendarClient, http_client};
use crate::google::limits::Limits;
use crate::google::oauth::TokenEndpoint;
use crate::notices::{self, NoticeContext, Webhook};
use crate::outbox::{self, OutboxContext, OutboxHealth};
use crate::plan::Policy;
use crate::presence::{OpenBreaker, Pauses, Presence};
use crate::reconciler::{Context, Gateway, Reconciler};
use crate::refresh::{self, RefreshContext};
use crate::replay::leftovers::{self, LeftoversContext};
use crate::retry::{Jitter, Reconnect};
use crate::shutdown::Shutdown;
use crate::store::{Scope, Store, StoreError};
use crate::telemetry::{Chain, Metrics};

pub mod notify;
pub mod probe;
pub mod pulse;

use notify::Notifier;
use pulse::Pulses;

/// Automatic repairs of one event in 24 hours before a person is asked (README, "What happens at Google").
pub(crate) const REPAIRS_MAX: i64 = 2;

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
    /// Whether its loops run.
    pub pulses: Pulses,
    shutdown: Shutdown,
    tasks: JoinSet<()>,
}

/// `meet-projector serve`: runs until a signal, then drains.
pub async fn serve(config: Config, clock: Clock) -> Result<Exit, CommandError> {
    let _telemetry = crate::cli::start_logging(&config)?;
    let shutdown =
        Shutdown::on_signals().map_err(|error| CommandError::failed(format!("cannot listen for signals: {error}")))?;
    let notifier = Notifier::from_environment(&crate::config::process_environment())
        .map_err(|error| CommandError::failed(format!("NOTIFY_SOCKET cannot be used: {error}")))?;
    let service = start(config, clock, shutdown.clone()).await?;
    let told = notifier.map(|notifier| {
        let health = service.admin_address.unwrap_or(service.address);
        tokio::spawn(notifier.run(health, service.pulses.clone(), shutdown))
    });
    info!(address = %service.address, version = env!("CARGO_PKG_VERSION"), "serving");
    service.ended().await;
    if let Some(told) = told {
        // It has one thing left to say.
        tokio::time::timeout(Duration::from_secs(1), told).await.ok();
    }
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

    let metrics = Arc::new(Metrics::starting(clock.now()));
    let health = Arc::new(Health::new(Arc::clone(&metrics)));
    let wake = Arc::new(Notify::new());
    let access = access(&google, &store, &keys, &clock, &metrics);
    let parts = Parts {
        store: store.clone(),
        keys: Arc::clone(&keys),
        clock: clock.clone(),
        access: Arc::clone(&access),
        wake: Arc::clone(&wake),
    };
    let connect = Connect::new(&config, parts);
    let disconnector = connect.as_ref().map(|connect| connect.disconnector().clone());
    let is_prepared = Arc::new(AtomicBool::new(false));
    let pauses = Pauses::default();
    let state = ApiState::new(ApiOptions {
        store: store.clone(),
        clock: clock.clone(),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
        readiness: readiness(&health, &is_prepared, &pauses),
        tokens_file: config.http.tokens_file.clone(),
        connect,
        jwt: config.http.jwt(),
        rate_limit: config.http.rate_limit,
    });
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        if let Err(error) = api::serve(state, listener, admin).await {
            error!(%error, "the API stopped");
        }
    });

    let pulses = Pulses::default();
    let loops = Loops {
        config,
        google,
        access,
        disconnector,
        store: store.clone(),
        clock,
        metrics,
        health: Arc::clone(&health),
        wake: Arc::clone(&wake),
        pauses,
        pulses: pulses.clone(),
    };
    let stop = shutdown.clone();
    tasks.spawn(async move { loops.run(is_prepared, stop).await });
    Ok(Service { address, admin_address, store, health, wake, pulses, shutdown, tasks })
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

fn readiness(health: &Arc<Health>, is_prepared: &Arc<AtomicBool>, pauses: &Pauses) -> Readiness {
    let (health, is_prepared, pauses) = (Arc::clone(health), Arc::clone(is_prepared), pauses.clone());
    // A pause was somebody's wish: it is shown, and makes nobody restart the process.
    let paused = move |scope: Scope| Check { detail: pauses.sentence(scope), ..Check::ok(scope.as_str()) };
    Readiness::new(move || {
        let seen = health.snapshot();
        let check = |name, problem: Option<String>| problem.map_or(Check::ok(name), |why| Check::failed(name, why));
        let not_connected = || seen.last_error.clone().unwrap_or_else(|| "no connection to NATS; trying again".into());
        vec![
            check("schema", (!is_prepared.load(Ordering::Acquire)).then(|| "the schema is not prepared yet".into())),
            check("nats", (!seen.connected).then(not_connected)),
            check("stream", seen.blocked.clone().or_else(|| seen.last_error.clone())),
            paused(Scope::Ingest),
            paused(Scope::Reconcile),
        ]
    })
}

/// One cache of access tokens and one breaker of the token endpoint for the whole process.
fn access(
    google: &GoogleConfig,
    store: &Store,
    keys: &Arc<KeyRing>,
    clock: &Clock,
    metrics: &Arc<Metrics>,
) -> Arc<AccessTokens> {
    let endpoint =
        TokenEndpoint::new(http_client(), &google.client_id, &google.client_secret, google.token_uri.clone());
    let access = AccessTokens::new(store.clone(), endpoint, Arc::clone(keys), clock.clone());
    Arc::new(access.with_metrics(Arc::clone(metrics)))
}

/// What the loops are made of.
struct Loops {
    config: Config,
    google: GoogleConfig,
    access: Arc<AccessTokens>,
    disconnector: Option<Disconnector>,
    store: Store,
    clock: Clock,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    wake: Arc<Notify>,
    pauses: Pauses,
    pulses: Pulses,
}

impl Loops {
    async fn run(self, is_prepared: Arc<AtomicBool>, shutdown: Shutdown) {
        if !prepare(&self.store, &shutdown).await {
            return;
        }
        is_prepared.store(true, Ordering::Release);

        let wake = Arc::clone(&self.wake);
        let http = http_client();
        let access = Arc::clone(&self.access);
        let calendar_breaker = Breaker::default();
        let reconciler = self.reconciler(&http, &calendar_breaker);
        let mut presence = self.presence(reconciler.clone());
        // Before anything begins, because a pause outlives a restart.
        while let Err(error) = presence.look().await {
            warn!(error = %Chain(&error), "cannot look for pauses; nothing begins before that");
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = shutdown.asked() => return,
            }
        }
        let mut loops = JoinSet::new();
        let mut names = HashMap::new();
        let pulses = self.pulses.clone();
        let ingest = consumer::run(ConsumerContext {
            nats: self.config.nats.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            wake: Arc::clone(&wake),
            health: Arc::clone(&self.health),
            paused: presence.ingest_paused(),
            pace: consumer::Pace::default(),
            cancel: shutdown.token(),
        });
        names.insert(loops.spawn(pulses.watch("consumer", ingest)).id(), "ingest");
        let relay = outbox::run(OutboxContext {
            nats: self.config.nats.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            health: Arc::new(OutboxHealth::default()),
            cancel: shutdown.token(),
        });
        names.insert(loops.spawn(pulses.watch("outbox", relay)).id(), "results");
        let (store, other_wake, cancel) = (self.store.clone(), Arc::clone(&wake), shutdown.token());
        let listen = async move { store.listen(&other_wake, &cancel).await };
        names.insert(loops.spawn(listen).id(), "wake-ups");
        names.insert(loops.spawn(presence.run(shutdown.token())).id(), "presence");
        if let Some(disconnector) = self.disconnector.clone() {
            let disconnects = pulses.watch("disconnector", disconnector.run(shutdown.token()));
            names.insert(loops.spawn(disconnects).id(), "disconnects");
        }
        let context = RefreshContext {
            store: self.store.clone(),
            access: Arc::clone(&access),
            clock: self.clock.clone(),
            jitter: Jitter::from_system(),
        };
        names.insert(loops.spawn(pulses.watch("refresh", refresh::run(context, shutdown.token()))).id(), "refresh");
        let context = NoticeContext {
            store: self.store.clone(),
            clock: self.clock.clone(),
            webhook: self.config.http.ops_webhook_url.clone().map(|url| Webhook::new(http.clone(), url)),
            calendar_breaker,
            token_breaker: access.breaker().clone(),
            caught_up: self.health.caught_up(),
            jitter: Jitter::from_system(),
        };
        names.insert(loops.spawn(pulses.watch("notices", notices::run(context, shutdown.token()))).id(), "notices");
        let (may_act, caught_up) = watch::channel(false);
        let leftovers = leftovers::run(LeftoversContext {
            nats: self.config.nats.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            wake: Arc::clone(&wake),
            caught_up: self.health.caught_up(),
            may_act,
            cancel: shutdown.token(),
        });
        names.insert(loops.spawn(leftovers).id(), "leftovers");
        let cancel = shutdown.token();
        let reconcile = pulses.watch("reconciler", async move { reconciler.run(wake, caught_up, cancel).await });
        names.insert(loops.spawn(reconcile).id(), "reconciler");
        pulses.started();
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

    fn presence(&self, reconciler: Reconciler) -> Presence {
        let breakers = move || {
            let open = reconciler.breakers().into_iter();
            open.map(|(api, open)| OpenBreaker {
                api: api.to_owned(),
                since_ms: open.since.get(),
                probe_at_ms: open.probe_at.get(),
                message: open.message,
            })
            .collect()
        };
        Presence::new(
            self.store.clone(),
            self.clock.clone(),
            Arc::clone(&self.health),
            Arc::clone(&self.metrics),
            Box::new(breakers),
            Arc::clone(&self.wake),
            self.pauses.clone(),
        )
    }

    fn reconciler(&self, http: &reqwest::Client, breaker: &Breaker) -> Reconciler {
        let google = &self.google;
        Reconciler::new(Context {
            store: self.store.clone(),
            gateway: Gateway {
                calendar: CalendarClient::new(http.clone(), google.calendar_api_root.clone(), google.send_updates),
                access: Arc::clone(&self.access),
                limits: Limits::new(google.rate_per_teacher, google.rate_per_project, google.max_in_flight),
                breaker: breaker.clone(),
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
    let mut said = None;
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
                let text = Chain(&error).to_string();
                if said.as_ref() != Some(&text) {
                    warn!(error = %text, "waiting for the database; trying again until it is there");
                }
                said = Some(text);
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
