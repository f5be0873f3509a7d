//! Copies what ingest and the database know into the instruments, a few times a minute.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::clock::Clock;
use crate::consumer::Health;
use crate::reconciler::Chain;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::EventLabels;

const EVERY: Duration = Duration::from_secs(5);

/// Samples until cancelled.
pub(super) async fn run(
    store: Store,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    clock: Clock,
    cancel: CancellationToken,
) {
    let mut seen: BTreeMap<EventLabels, u64> = BTreeMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(EVERY) => {}
            () = cancel.cancelled() => return,
        }
        let ingest = health.snapshot();
        metrics.lag_messages.set(i64::try_from(ingest.lag).unwrap_or(i64::MAX));
        let now = clock.now();
        match (store.counts(now).await, store.outbox_oldest().await) {
            (Ok(counts), Ok(oldest)) => metrics.set_counts(&counts, oldest, now),
            (Err(error), _) | (_, Err(error)) => debug!(error = %Chain(&error), "the database was not counted"),
        }
        drop(seen.entry(EventLabels { outcome: "", shape: "" }));
    }
}
