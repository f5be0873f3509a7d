//! What readiness, metrics and the reconciler see of ingest.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::event::Shape;
use crate::model::{Epoch, UnixMillis};
use crate::store::{FoldOutcome, Incoming, Position};
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
    /// Whether an operator's pause was heard and nothing is under way any more.
    pub stands_still: bool,
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
    /// The highest sequence received in this session.
    pub received: i64,
    /// When the oldest message that is known to wait was stored; `None` when none does.
    pub waiting_since: Option<UnixMillis>,
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
        self.metrics.nats_connected.set(i64::from(connected));
        self.lock().connected = connected;
    }

    pub(super) fn failed(&self, error: &str) {
        let mut state = self.lock();
        state.last_error = Some(error.to_owned());
        state.blocked = None;
        self.metrics.ingest_blocked.set(0);
    }

    pub(super) fn blocked(&self, why: &str) {
        self.metrics.ingest_blocked.set(1);
        self.lock().blocked = Some(why.to_owned());
    }

    pub(super) fn stands_still(&self, stands_still: bool) {
        self.lock().stands_still = stands_still;
    }

    pub(super) fn paused(&self, is_paused: bool) {
        self.metrics.pause("ingest", is_paused);
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
        state.received = position.highest;
        let since = position.highest_stored_at.filter(|_| state.lag > 0);
        self.waiting(&mut state, since);
        self.metrics.ingest_blocked.set(0);
        self.metrics.lag_messages.set(i64::try_from(state.lag).unwrap_or(i64::MAX));
        self.moved(state, position);
    }

    /// The position is this now.
    pub(super) fn position(&self, position: &Position) {
        self.moved(self.lock(), position);
    }

    fn waiting(&self, state: &mut Snapshot, since: Option<UnixMillis>) {
        state.waiting_since = since;
        self.metrics.waiting(since);
    }

    fn moved(&self, mut state: MutexGuard<'_, Snapshot>, position: &Position) {
        state.contiguous = position.contiguous;
        state.highest = position.highest;
        let caught_up = position.contiguous >= state.head;
        drop(state);
        self.caught_up.send_if_modified(|was| std::mem::replace(was, caught_up) != caught_up);
    }

    /// A group was received: `lag` more wait, `redelivered` of it had been delivered before.
    pub(super) fn received(&self, lag: u64, redelivered: u64, group: &[Incoming]) {
        self.metrics.lag_messages.set(i64::try_from(lag).unwrap_or(i64::MAX));
        self.metrics.redeliveries.inc_by(redelivered);
        let mut state = self.lock();
        state.lag = lag;
        state.redelivered += redelivered;
        state.received = group.iter().map(|incoming| incoming.sequence).max().unwrap_or(0).max(state.received);
        let since = state.waiting_since.or_else(|| group.first().map(|incoming| incoming.stored_at));
        self.waiting(&mut state, since);
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
        // The next message is taken to be as old as the last one: a little too much, until it is received.
        let is_more = state.lag > 0 || state.received > position.highest;
        self.waiting(&mut state, position.highest_stored_at.filter(|_| is_more));
        let mut counts = BTreeMap::<(&'static str, &'static str), u64>::new();
        for (outcome, shape) in messages {
            if let Some(class) = outcome.refusal() {
                *state.dead_letters.entry(class).or_default() += 1;
            }
            *counts.entry((outcome.word(), shape.map_or("unknown", Shape::as_str))).or_default() += 1;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{RawMessage, Refused};

    fn incoming(sequence: i64, stored_at: i64) -> Incoming {
        let raw = RawMessage { subject: String::new(), headers: Vec::new(), payload: bytes::Bytes::new() };
        let refused = Refused { class: "not_json", reason: String::new(), session: None };
        let stored_at = UnixMillis::new(stored_at);
        Incoming { sequence, stored_at, fingerprint: String::new(), raw, decoded: Err(refused) }
    }

    fn position(highest: i64, stored_at: i64) -> Position {
        let highest_stored_at = Some(UnixMillis::new(stored_at));
        Position { contiguous: highest, highest, highest_stored_at, highest_fingerprint: None }
    }

    fn sample(metrics: &Metrics, name: &str) -> String {
        let text = metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("meet_projector_{name} ")));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_message_that_waits() {
        let metrics = Arc::new(Metrics::new());
        let health = Health::new(Arc::clone(&metrics));
        let lag = |at: i64| {
            metrics.age(UnixMillis::new(at));
            sample(&metrics, "lag_seconds")
        };
        health.begin(Epoch(1), 0, &Position::default());
        assert_eq!(lag(99_000), "0.0");

        // Two groups are received before the first is committed.
        health.received(2, 1, &[incoming(1, 1_000), incoming(2, 2_000)]);
        assert_eq!((lag(11_000), sample(&metrics, "lag_messages")), ("10.0".into(), "2".into()));
        health.received(0, 2, &[incoming(3, 5_000), incoming(4, 6_000)]);
        assert_eq!(sample(&metrics, "redeliveries_total"), "3");
        health.committed(std::iter::empty(), &position(2, 2_000));
        assert_eq!(lag(11_000), "9.0", "the second group waits, for not longer than since the last one of the first");
        health.committed(std::iter::empty(), &position(4, 6_000));
        assert_eq!(lag(11_000), "0.0");

        // What was on the stream when it began counts, too.
        health.begin(Epoch(1), 9, &position(4, 6_000));
        assert_eq!((lag(11_000), sample(&metrics, "lag_messages")), ("5.0".into(), "5".into()));
    }

    #[test]
    fn a_question_and_a_pause_are_shown() {
        let metrics = Arc::new(Metrics::new());
        let health = Health::new(Arc::clone(&metrics));
        health.blocked("another stream");
        health.paused(true);
        let paused = "paused{part=\"ingest\"}";
        assert_eq!((sample(&metrics, "ingest_blocked"), sample(&metrics, paused)), ("1".into(), "1".into()));
        health.paused(false);
        health.begin(Epoch(1), 0, &Position::default());
        assert_eq!((sample(&metrics, "ingest_blocked"), sample(&metrics, paused)), ("0".into(), "0".into()));
    }
}
