//! What readiness, metrics and the reconciler see of ingest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::event::Shape;
use crate::model::Epoch;
use crate::projection::Outcome;
use crate::store::{FoldOutcome, Position};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::EventLabels;

/// The state of ingest, shared and always readable.
#[derive(Debug)]
pub struct Health {
    state: Mutex<Snapshot>,
    caught_up: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

/// The state of ingest at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Whether NATS can be reached.
    pub connected: bool,
    /// Why a person has to decide about the epoch; nothing is folded meanwhile.
    pub blocked: Option<String>,
    /// What went wrong last, in one sentence; `None` while it works.
    pub last_error: Option<String>,
    /// Which subjects the credentials forbid, in one sentence.
    pub forbidden: Option<String>,
    /// How the durable differs from its definition, one line each.
    pub drift: Vec<String>,
    /// The epoch worked in.
    pub epoch: Option<Epoch>,
    /// The last event of the stream when this session began.
    pub head: i64,
    /// Everything up to here was processed.
    pub contiguous: i64,
    /// The highest sequence processed.
    pub highest: i64,
    /// Events in the stream that were not received yet, as of the last one received.
    pub lag: u64,
    /// Messages committed, by outcome: `applied`, `stale`, `duplicate`, `conflict`, `dead_letter`.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Messages committed, by shape: `structured`, `binary`, `nest`, `bare`, `unknown`.
    pub shapes: BTreeMap<&'static str, u64>,
    /// Dead letters, by class.
    pub dead_letters: BTreeMap<&'static str, u64>,
    /// Messages that had been delivered before.
    pub redelivered: u64,
    /// Groups committed.
    pub groups: u64,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl Health {
    /// Nothing known yet; what is counted goes to `metrics` too.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { state: Mutex::default(), caught_up: watch::Sender::new(false), metrics }
    }

    /// The state now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Whether everything that was in the stream when this session began is processed. The reconciler waits for it after
    /// a start or a gap, so that it never acts on history.
    pub fn caught_up(&self) -> watch::Receiver<bool> {
        self.caught_up.subscribe()
    }

    /// Whether ingest works: connected, not blocked, and nothing failed since.
    pub fn is_well(&self) -> bool {
        let state = self.lock();
        state.connected && state.blocked.is_none() && state.last_error.is_none()
    }

    pub(super) fn connected(&self, connected: bool) {
        self.lock().connected = connected;
    }

    pub(super) fn failed(&self, error: &str) {
        let mut state = self.lock();
        state.last_error = Some(error.to_owned());
        state.blocked = None;
    }

    pub(super) fn blocked(&self, why: &str) {
        self.lock().blocked = Some(why.to_owned());
    }

    pub(super) fn forbidden(&self, forbidden: Option<String>) {
        self.lock().forbidden = forbidden;
    }

    pub(super) fn drift(&self, drift: Vec<String>) {
        self.lock().drift = drift;
    }

    /// Not caught up until the next session says so.
    pub(super) fn behind(&self) {
        self.caught_up.send_replace(false);
    }

    /// A session begins.
    pub(super) fn begin(&self, epoch: Epoch, head: i64, position: &Position) {
        let mut state = self.lock();
        state.epoch = Some(epoch);
        state.head = head;
        state.blocked = None;
        state.last_error = None;
        state.lag = u64::try_from(head - position.contiguous).unwrap_or(0);
        self.moved(state, position);
    }

    /// The position is this now.
    pub(super) fn position(&self, position: &Position) {
        self.moved(self.lock(), position);
    }

    fn moved(&self, mut state: MutexGuard<'_, Snapshot>, position: &Position) {
        state.contiguous = position.contiguous;
        state.highest = position.highest;
        let caught_up = position.contiguous >= state.head;
        drop(state);
        self.caught_up.send_if_modified(|was| std::mem::replace(was, caught_up) != caught_up);
    }

    /// A group was received: `lag` more wait, `redelivered` of it had been delivered before.
    pub(super) fn received(&self, lag: u64, redelivered: u64) {
        self.metrics.lag_messages.set(i64::try_from(lag).unwrap_or(i64::MAX));
        self.metrics.redeliveries.inc_by(redelivered);
        let mut state = self.lock();
        state.lag = lag;
        state.redelivered += redelivered;
    }

    /// A group was committed: what became of each message, and the shape of those that could be read.
    pub(super) fn committed<'a>(
        &self,
        messages: impl Iterator<Item = (&'a FoldOutcome, Option<Shape>)>,
        position: &Position,
    ) {
        let mut state = self.lock();
        state.groups += 1;
        state.last_error = None;
        let mut counts = BTreeMap::<(&'static str, &'static str), u64>::new();
        for (outcome, shape) in messages {
            let outcome = match outcome {
                FoldOutcome::Folded(Outcome::Applied) => "applied",
                FoldOutcome::Folded(Outcome::Stale) => "stale",
                FoldOutcome::Folded(Outcome::Duplicate) => "duplicate",
                FoldOutcome::Folded(Outcome::Conflict { .. }) => "conflict",
                FoldOutcome::DeadLetter(class) => {
                    *state.dead_letters.entry(class).or_default() += 1;
                    "dead_letter"
                }
            };
            *counts.entry((outcome, shape.map_or("unknown", Shape::as_str))).or_default() += 1;
        }
        for ((outcome, shape), count) in counts {
            *state.outcomes.entry(outcome).or_default() += count;
            *state.shapes.entry(shape).or_default() += count;
            self.metrics.events.get_or_create(&EventLabels { shape, outcome }).inc_by(count);
        }
        self.moved(state, position);
    }

    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
