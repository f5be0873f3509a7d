//! Gauges that come from the database: read when somebody scrapes, at most every [`EVERY`], and never for longer than
//! [`BOUND`].
//!
//! A scrape must not hurt the work: however many scrape and however often, one look at a time is under way, and while it
//! lasts the others are shown what was seen last. While the database is away the gauges keep their last values and
//! `meet_projector_database_up` says so.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Metrics;
use super::metrics::{PoolLabels, RunLabel, StateLabel, StatusLabel, WindowLabel, seconds};
use crate::model::UnixMillis;
use crate::run::Kind;
use crate::store::{Counts, Gauges, Store, TokenStatus};

/// Between looks at the database. Prometheus asks every 15 to 60 s; more often than this is a mistake or a person.
pub const EVERY: Duration = Duration::from_secs(3);

/// The longest look. Prometheus gives up after 10 s, and would lose all metrics with these.
pub const BOUND: Duration = Duration::from_secs(2);

/// Reads the gauges; one for each process.
#[derive(Debug, Default)]
pub struct Scraper(Mutex<Option<Instant>>);

impl Scraper {
    /// Brings the gauges up to date unless they are, or somebody else is at it.
    pub async fn refresh(&self, store: &Store, metrics: &Metrics, now: UnixMillis) {
        metrics.age(now);
        for pool in store.pools() {
            for (state, number) in [("idle", pool.idle), ("busy", pool.busy)] {
                metrics.db_connections.get_or_create(&PoolLabels { pool: pool.name, state }).set(number);
            }
        }
        let Ok(mut looked_at) = self.0.try_lock() else { return };
        if looked_at.is_some_and(|at| at.elapsed() < EVERY) {
            return;
        }
        let look =
            timeout(BOUND, async { tokio::try_join!(store.counts(now), store.outbox_oldest(), store.gauges(now)) });
        let seen = look.await.ok().and_then(Result::ok);
        metrics.database_up.set(i64::from(seen.is_some()));
        if let Some((counts, outbox_oldest, gauges)) = seen {
            set_counts(metrics, &counts);
            set_gauges(metrics, &gauges, outbox_oldest, now);
        }
        // After a failed look too: a database in trouble is not asked more often than a healthy one.
        *looked_at = Some(Instant::now());
    }
}

fn set_counts(metrics: &Metrics, counts: &Counts) {
    let by_status =
        [("PENDING", counts.pending), ("READY", counts.ready), ("ERROR", counts.error), ("CANCELED", counts.canceled)];
    for (status, count) in by_status {
        metrics.sessions.get_or_create(&StatusLabel { status }).set(count);
    }
    metrics.dead_letters.set(counts.dead_letters);
    metrics.outbox_messages.set(counts.outbox);
    metrics.due.set(counts.due);
}

fn set_gauges(metrics: &Metrics, gauges: &Gauges, outbox_oldest: Option<UnixMillis>, now: UnixMillis) {
    let age = |since: Option<UnixMillis>| since.map_or(0.0, |since| seconds(now.since(since).max(0)));
    metrics.outbox_oldest.set(age(outbox_oldest));
    metrics.oldest_pending.set(age(gauges.oldest_pending_since));
    for (window, count) in [("30m", gauges.at_risk_30m), ("2h", gauges.at_risk_2h), ("24h", gauges.at_risk_24h)] {
        metrics.sessions_at_risk.get_or_create(&WindowLabel { window }).set(count);
    }
    for (_, state) in TokenStatus::WORDS {
        let count = gauges.teachers.iter().find(|(known, _)| known == state).map_or(0, |(_, count)| *count);
        metrics.teacher_connections.get_or_create(&StateLabel { state }).set(count);
    }
    metrics.calendars_cooling_down.set(gauges.cooling_down);
    for (kind, run) in Kind::WORDS {
        let open = gauges.runs.iter().find(|open| open.kind == kind);
        metrics.run_silence.get_or_create(&RunLabel { run }).set(age(open.map(|open| open.moved_at)));
        metrics.run_remaining_events.get_or_create(&RunLabel { run }).set(open.map_or(0, |open| open.remaining));
    }
}
