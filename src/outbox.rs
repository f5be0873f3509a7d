//! Results from the store to stream `MEET`: at least once, and in order for each session.
//!
//! A result is written in the transaction that made it and removed after the server stored it, so it survives anything in
//! between; a second publish carries the same `Nats-Msg-Id`, which the stream drops within its duplicate window. Order
//! follows from taking only the oldest result of each session at a time. Deliberately absent: any retry limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::join_all;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::crash;
use crate::nats::{Connection, NatsError, connect_persistently};
use crate::store::{OutboxMessage, Store, StoreError};
use crate::telemetry::trace;

/// Results published at once, each of another session.
const BATCH: i64 = 256;

/// How long one replica relays before another one may: longer than any publish, short enough after a crash.
const LEASE_MS: i64 = 15_000;

/// How often to look when nobody says that there is something: what another process wrote, a lease that ran out.
const POLL: Duration = Duration::from_secs(1);

/// What the relay works with.
#[derive(Debug, Clone)]
pub struct OutboxContext {
    /// Where stream `MEET` is and what it is called.
    pub nats: NatsConfig,
    /// Where results wait.
    pub store: Store,
    /// The time, for the lease.
    pub clock: Clock,
    /// What readiness and metrics show.
    pub health: Arc<OutboxHealth>,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// The state of the relay.
#[derive(Debug, Default)]
pub struct OutboxHealth(Mutex<OutboxState>);

/// The state of the relay at one moment.
#[derive(Debug, Clone, Default)]
pub struct OutboxState {
    /// Results stored by stream `MEET`.
    pub published: u64,
    /// Why results wait, in one sentence; `None` while they are published.
    pub last_error: Option<String>,
}

impl OutboxHealth {
    /// The state now.
    pub fn snapshot(&self) -> OutboxState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes a failure and says whether it is another one than before.
    fn failed(&self, why: &str) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let was = state.last_error.replace(why.to_owned());
        was.as_deref() != Some(why)
    }

    fn published(&self, count: usize) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.published += count as u64;
        if state.last_error.take().is_some() {
            tracing::info!("results are published again");
        }
    }
}

/// Relays until cancelled; every failure is waited out.
pub async fn run(context: OutboxContext) {
    let failed = |error: &NatsError| {
        context.health.failed(&error.to_string());
    };
    let Some(connection) = connect_persistently(&context.nats, "meet-projector results", &context.cancel, failed).await
    else {
        return;
    };
    let holder = uuid::Uuid::new_v4().to_string();
    let mut changes = context.store.changes();
    let mut failures = 0_u32;
    while !context.cancel.is_cancelled() {
        // What was announced up to here is seen by the look that follows.
        while !matches!(changes.try_recv(), Err(TryRecvError::Empty | TryRecvError::Closed)) {}
        match relay(&context, &connection, &holder).await {
            Ok(0) => {
                failures = 0;
                tokio::select! {
                    () = context.cancel.cancelled() => {}
                    () = tokio::time::sleep(POLL) => {}
                    changed = changes.recv() => if matches!(changed, Err(RecvError::Closed)) {
                        tokio::time::sleep(POLL).await;
                    }
                }
            }
            Ok(_) => failures = 0,
            Err(error) => {
                failures += 1;
                let text = told(&context, &error);
                if context.health.failed(&text) {
                    tracing::error!(reason = %text, "results wait; trying again until they are published");
                }
                let pause =
                    Duration::from_millis(100 * u64::from(1_u32 << failures.min(7))).min(Duration::from_secs(5));
                tokio::select! {
                    () = context.cancel.cancelled() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
    if let Err(error) = context.store.outbox_release(&holder).await {
        tracing::debug!(%error, "the relay of results was not given up; its lease runs out");
    }
}

#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error(transparent)]
    Nats(#[from] NatsError),
    #[error("results could not be read or removed")]
    Store(#[from] StoreError),
}

/// Publishes what waits, the oldest of each session, and says how many were published.
async fn relay(context: &OutboxContext, connection: &Connection, holder: &str) -> Result<usize, RelayError> {
    let taken = context.store.outbox_take(holder, context.clock.now(), LEASE_MS, BATCH).await?;
    if !taken.is_empty() {
        crash::here("before_publish");
    }
    let stream = &context.nats.meet_stream;
    // The futures send in this order and then wait together, so a batch costs one round trip.
    let answers = join_all(taken.iter().map(|message| {
        let payload = Bytes::from(message.payload.clone());
        let (span, traceparent) = trace::send(stream, message);
        let headers = headers(message, traceparent.as_deref());
        let sent = connection.publish_stored(stream, &message.subject, headers, payload).instrument(span.clone());
        sent.inspect_err(move |error| {
            trace::not_sent(
                &span,
                match error {
                    NatsError::NoResponders { .. } => "no_responders",
                    NatsError::Forbidden { .. } => "forbidden",
                    NatsError::Refused { .. } => "refused",
                    _ => "no_answer",
                },
            );
        })
    }))
    .await;
    let mut stored = Vec::with_capacity(taken.len());
    let mut refused = None;
    for (message, answer) in taken.iter().zip(answers) {
        match answer {
            Ok(()) => stored.push(message.id),
            Err(error) => refused = Some(error),
        }
    }
    if !stored.is_empty() {
        crash::here("after_publish");
    }
    context.store.outbox_done(&stored).await?;
    if !stored.is_empty() {
        crash::here("after_removal");
    }
    if let Some(error) = refused {
        Err(error.into())
    } else {
        if !stored.is_empty() {
            context.health.published(stored.len());
        }
        Ok(stored.len())
    }
}

fn headers(message: &OutboxMessage, traceparent: Option<&str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", message.message_id.as_str());
    headers.insert("Content-Type", "application/cloudevents+json");
    if let Some(traceparent) = traceparent {
        headers.insert("traceparent", traceparent);
    }
    headers
}

/// The failure as a person needs it, without the session at hand, so that one cause is told once.
fn told(context: &OutboxContext, error: &RelayError) -> String {
    let stream = &context.nats.meet_stream;
    match error {
        RelayError::Nats(NatsError::NoResponders { .. }) => {
            format!("stream {stream} does not exist or does not take meet.>; `meet-projector nats apply` creates it")
        }
        RelayError::Nats(NatsError::Forbidden { .. }) => {
            "the NATS credentials may not publish to meet.>; nats/permissions.conf lists what is needed".to_owned()
        }
        RelayError::Nats(error) => error.to_string(),
        RelayError::Store(source) => format!("{error}: {source}"),
    }
}
