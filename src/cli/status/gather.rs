//! All that `status` looks at: the database, the stream, and what the processes said of themselves.

use std::time::Duration;

use crate::config::NatsConfig;
use crate::model::UnixMillis;
use crate::nats::api::ConsumerInfo;
use crate::nats::{NatsError, connect};
use crate::presence::State;
use crate::store::{Acted, ActedFilter, EpochRecord, Overview, Position, Store, StoreError};

/// Time for NATS: the database's part should not wait for a server that is away.
const NATS_TIME: Duration = Duration::from_secs(5);

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) database: String,
    pub(super) overview: Overview,
    /// The epoch that is read, and how far; `None` before the first start.
    pub(super) epoch: Option<(EpochRecord, Position)>,
    /// The stream, or why it could not be looked at.
    pub(super) nats: Result<Stream, String>,
    /// Processes that were heard of lately, by their place in [`Overview::processes`].
    pub(super) alive: Vec<(usize, State)>,
    /// The last replay, rebuild and verify, where there was one.
    pub(super) runs: Vec<Acted>,
}

/// The stream as the server has it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) server: String,
    pub(super) exists: bool,
    pub(super) created: Option<String>,
    pub(super) first: i64,
    pub(super) last: i64,
    /// Events that were not folded.
    pub(super) lag: i64,
    /// When the oldest of them was stored.
    pub(super) oldest_unread: Option<UnixMillis>,
    pub(super) consumer: Option<ConsumerInfo>,
}

/// Looks at everything. That NATS is away is something seen, not a failure.
pub(super) async fn gather(store: &Store, config: &NatsConfig, now: UnixMillis) -> Result<Seen, StoreError> {
    let overview = store.overview(now).await?;
    let epoch = match store.epochs().await?.pop() {
        Some(record) => {
            let position = store.position(record.epoch).await?;
            Some((record, position))
        }
        None => None,
    };
    let nats = match tokio::time::timeout(NATS_TIME, stream(config, epoch.as_ref())).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer from NATS within {} s", NATS_TIME.as_secs())),
    };
    let alive = overview.processes.iter().enumerate().filter(|(_, process)| process.is_alive(now));
    let alive = alive.map(|(at, process)| (at, State::parse(&process.state).unwrap_or_default())).collect();
    let mut runs = Vec::new();
    for action in ["replay", "rebuild", "verify"] {
        let filter = ActedFilter { action: Some(action.to_owned()), limit: 1, ..ActedFilter::default() };
        runs.extend(store.acted(&filter).await?);
    }
    Ok(Seen { database: store.database_version().await?, overview, epoch, nats, alive, runs })
}

async fn stream(config: &NatsConfig, epoch: Option<&(EpochRecord, Position)>) -> Result<Stream, NatsError> {
    let connection = connect(config, "meet-projector status").await?;
    let server = connection.client.server_info().version;
    let info = connection.stream_info(&config.stream).await?;
    let mut stream = Stream {
        server,
        exists: info.is_some(),
        created: info.as_ref().map(|info| info.created.clone()),
        first: info.as_ref().map_or(0, |info| info.state.first_seq),
        last: info.as_ref().map_or(0, |info| info.state.last_seq),
        lag: 0,
        oldest_unread: None,
        consumer: None,
    };
    if info.is_none() {
        return Ok(stream);
    }
    let read = epoch.map_or(0, |(_, position)| position.contiguous);
    let head = connection.get_last(&config.stream, &config.subjects).await?.map_or(0, |message| message.sequence);
    if head > read {
        stream.lag = head - read;
        let next = connection.get_next(&config.stream, read + 1, &config.subjects).await?;
        stream.oldest_unread = next.map(|message| message.stored_at());
    }
    if let Some((record, _)) = epoch {
        stream.consumer = connection.consumer_info(&config.stream, &record.consumer).await?;
    }
    Ok(stream)
}
