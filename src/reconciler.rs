//! Makes each teacher's calendar agree with the projection: claim, plan, intent, call, absorb, record.
//!
//! The reconciler reads state, never messages: after a crash, a replay or an outage it takes the same path as on any
//! day. A lease covers one teacher's calendar, so one write is in flight per calendar, on all replicas together; its
//! token fences every write back. Everything goes to the database through one [`writer`], which commits what all
//! calendars brought meanwhile in one transaction: results, the next intents, calendars given back, and new claims with
//! their first intents. A call to Google so costs one commit, shared with all others of that moment.
//!
//! Deliberately absent: a memory of what was tried. Attempts, delays and intents are in the rows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::clock::Clock;
use crate::google::breaker::Open;
use crate::plan::Policy;
use crate::retry::{Jitter, Reconnect};
use crate::store::{Claim, Store};
use crate::telemetry::Chain;

mod calendar;
mod claims;
pub mod gateway;
mod measure;
mod step;
mod writer;

pub use gateway::Gateway;

use calendar::Calendar;
use claims::{Claimed, Claims};
use writer::Writer;

/// A calendar is claimed for this long: three times the longest call.
const LEASE_MS: i64 = 60_000;
/// No call is begun with less of the lease left: its timeout of 20 s, and 5 s to record it.
const LEASE_NEEDED_MS: i64 = 25_000;
/// Rows of one calendar taken under one lease: enough to save claims, few enough that a lease does not run out and that
/// a lesson booked for the next hour does not wait behind many later ones.
const ROWS_PER_TEACHER: i64 = 32;
/// Without a wake-up the database is asked this often: another process may have made rows due.
const POLL: Duration = Duration::from_secs(1);
/// Not more often than this because a calendar was done: its rows may be due again at any time.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What the reconciler works with.
#[derive(Debug)]
pub struct Context {
    /// Where it reads and records.
    pub store: Store,
    /// The way to Google.
    pub gateway: Gateway,
    /// Settings that change what is wanted.
    pub policy: Policy,
    /// The time.
    pub clock: Clock,
    /// Spreads the delays between attempts.
    pub jitter: Jitter,
    /// Calendars worked on at once.
    pub calendars_max: usize,
}

/// So many calendars, each with a handful of rows.
fn claim_of(calendars: usize) -> Claim {
    Claim {
        lease_ms: LEASE_MS,
        teachers: i64::try_from(calendars).unwrap_or(i64::MAX),
        rows_per_teacher: ROWS_PER_TEACHER,
    }
}

/// The loop.
#[derive(Debug, Clone)]
pub struct Reconciler {
    context: Arc<Context>,
}

impl Reconciler {
    /// With everything it works with.
    pub fn new(context: Context) -> Self {
        Self { context: Arc::new(context) }
    }

    /// What Google refuses of our own set-up now: `calendar` or `token`, and what it said.
    pub fn breakers(&self) -> Vec<(&'static str, Open)> {
        let gateway = &self.context.gateway;
        let all = [("calendar", gateway.breaker.open()), ("token", gateway.access.breaker().open())];
        all.into_iter().filter_map(|(api, open)| Some((api, open?))).collect()
    }

    /// Works until `cancel`: nothing is claimed before `caught_up`, so that it never acts on history. `wake` says that
    /// rows may have become due.
    pub async fn run(&self, wake: Arc<Notify>, caught_up: watch::Receiver<bool>, cancel: CancellationToken) {
        let (sender, claimed) = mpsc::unbounded_channel();
        let claims = Claims::new(Arc::clone(&self.context), caught_up.clone(), cancel.clone(), sender);
        let writer = Writer::start(Arc::clone(&self.context), claims);
        let context = Arc::clone(&self.context);
        let mut work = Work { context, writer, claimed, calendars: JoinSet::new(), cancel };
        work.until_cancelled(wake, caught_up).await;
        work.finish().await;
        info!("reconciler stopped");
    }
}

/// The loop while it runs.
struct Work {
    context: Arc<Context>,
    writer: Writer,
    /// Calendars that the writer claimed: when asked to look, and where it gave others back.
    claimed: mpsc::UnboundedReceiver<Claimed>,
    calendars: JoinSet<()>,
    cancel: CancellationToken,
}

impl Work {
    async fn until_cancelled(&mut self, wake: Arc<Notify>, mut caught_up: watch::Receiver<bool>) {
        let cancel = self.cancel.clone();
        let mut reconnect = Reconnect::default();
        while !cancel.is_cancelled() {
            if !*caught_up.borrow() {
                tokio::select! {
                    changed = caught_up.changed() => if changed.is_err() { return },
                    () = cancel.cancelled() => return,
                    Some(claimed) = self.claimed.recv() => self.begin(claimed),
                    Some(ended) = self.calendars.join_next() => log_panic(ended),
                }
                continue;
            }
            match self.writer.look().await {
                Ok(()) => reconnect.reset(),
                Err(error) => {
                    if reconnect == Reconnect::default() {
                        error!(error = %Chain(&error), "cannot read what is due; trying again until it works");
                    }
                    let pause = reconnect.next_delay(self.context.jitter.next());
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = cancel.cancelled() => {}
                    }
                    continue;
                }
            }
            self.begin_claimed();
            let mut look_at = Instant::now() + self.until_due().await;
            loop {
                tokio::select! {
                    () = wake.notified() => break,
                    Some(claimed) = self.claimed.recv() => self.begin(claimed),
                    Some(ended) = self.calendars.join_next(), if !self.calendars.is_empty() => {
                        log_panic(ended);
                        look_at = look_at.min(Instant::now() + LOOK_EVERY);
                    }
                    () = tokio::time::sleep_until(look_at) => break,
                    () = cancel.cancelled() => return,
                }
            }
        }
    }

    /// Calls under way end by themselves within their timeout, and what was claimed is given back; no new ones are begun.
    async fn finish(mut self) {
        self.begin_claimed();
        while let Some(ended) = self.calendars.join_next().await {
            log_panic(ended);
            self.begin_claimed();
        }
    }

    fn begin_claimed(&mut self) {
        while let Ok(claimed) = self.claimed.try_recv() {
            self.begin(claimed);
        }
    }

    fn begin(&mut self, claimed: Claimed) {
        let calendar = Calendar::new(Arc::clone(&self.context), self.writer.clone(), self.cancel.clone(), claimed);
        self.calendars.spawn(calendar.work());
    }

    /// How long nothing more can be due, as far as this process can know. While calendars are worked on they say so
    /// themselves.
    async fn until_due(&self) -> Duration {
        if !self.calendars.is_empty() {
            return POLL;
        }
        let now = self.context.clock.now();
        match self.context.store.next_due().await {
            Ok(Some(due)) => {
                Duration::from_millis(u64::try_from(due.since(now)).unwrap_or(0)).clamp(Duration::from_millis(5), POLL)
            }
            _ => POLL,
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a calendar's task panicked; its lease runs out and the rows are looked at again");
    }
}
