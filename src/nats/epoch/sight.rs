//! Gathers what [`judge`] needs from the stream and the database, and opens the epochs that need nobody's
//! decision.

use std::time::Duration;

use super::{Ambiguity, Known, Sighting, Trace, Verdict, judge};
use crate::config::NatsConfig;
use crate::model::{Epoch, UnixMillis};
use crate::nats::api::StreamState;
use crate::nats::direct::StoredMessage;
use crate::nats::{Connection, NatsError};
use crate::store::{EpochRecord, Store, StoreError};

/// Anchors looked at each time: enough to see a fork that the position alone would miss.
const ANCHORS_ROUTINE: i64 = 8;

/// Anchors looked at to find where histories part; a store keeps about 200.
const ANCHORS_ALL: i64 = 1000;

/// Why the stream could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum SightError {
    /// The stream does not exist.
    #[error("stream {0} does not exist; `meet-projector nats apply` creates it")]
    NoStream(String),
    /// NATS did not answer, or refused.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The database did not answer.
    #[error("the epoch could not be read or written")]
    Store(#[from] StoreError),
}

/// The epoch to work in, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Work in this epoch.
    Open(EpochRecord),
    /// A person has to decide.
    Blocked(Ambiguity),
}

/// What the database knows.
pub async fn known(store: &Store) -> Result<Known, StoreError> {
    let epochs = store.epochs().await?;
    let sources = epochs.iter().flat_map(|epoch| epoch.sources.iter().cloned()).collect();
    let Some(current) = epochs.into_iter().max_by_key(|record| record.epoch) else { return Ok(Known::default()) };
    let position = store.position(current.epoch).await?;
    Ok(Known { position, last_stored_at: store.last_stored_at().await?, sources, current: Some(current) })
}

/// Looks at the stream with what is known in mind. Reads only.
pub async fn sight(
    connection: &Connection,
    config: &NatsConfig,
    store: &Store,
    known: &Known,
) -> Result<Sighting, SightError> {
    let stream = &config.stream;
    let Some(info) = connection.stream_info(stream).await? else {
        return Err(SightError::NoStream(stream.clone()));
    };
    let state = info.state;
    let mut sighting = Sighting {
        stream: stream.clone(),
        created: info.created,
        first_sequence: state.first_seq,
        last_sequence: state.last_seq,
        messages: state.messages,
        position: None,
        anchors: Vec::new(),
        sources: Vec::new(),
        first_stored_at: None,
    };
    let Some(current) = &known.current else { return Ok(sighting) };
    if let (highest @ 1.., Some(fingerprint)) = (known.position.highest, &known.position.highest_fingerprint) {
        sighting.position = Some(compare(connection, stream, state, highest, fingerprint).await?);
    }
    add_anchors(connection, store, current.epoch, state, &mut sighting, ANCHORS_ROUTINE).await?;
    if !matches!(judge(known, &sighting), Verdict::Same) {
        // Something is up: find exactly where, and whose events these are.
        add_anchors(connection, store, current.epoch, state, &mut sighting, ANCHORS_ALL).await?;
        if state.messages > 0 {
            let first = connection.get_next(stream, state.first_seq, ">").await?;
            let last = connection.get_last(stream, ">").await?;
            sighting.first_stored_at = first.as_ref().map(StoredMessage::stored_at);
            sighting.sources = first.iter().chain(&last).map(source).collect();
        }
    }
    Ok(sighting)
}

/// Judges the stream and opens the epoch that follows where nobody has to decide: the first one, a plainly new one.
pub async fn settle(
    connection: &Connection,
    config: &NatsConfig,
    store: &Store,
    now: UnixMillis,
) -> Result<Standing, SightError> {
    let known = known(store).await?;
    let sighting = sight(connection, config, store, &known).await?;
    let verdict = judge(&known, &sighting);
    let (reason, number) = match (verdict, &known.current) {
        (Verdict::Ambiguous(ambiguity), _) => return Ok(Standing::Blocked(ambiguity)),
        (Verdict::Same, Some(current)) => return Ok(Standing::Open(current.clone())),
        (Verdict::SameRestamped, Some(current)) => {
            tracing::warn!(
                epoch = current.epoch.0,
                was = current.created,
                is = sighting.created,
                "the stream's creation time changed, but its messages are the ones we read: it is the same stream"
            );
            store.restamp_epoch(current.epoch, &sighting.created).await?;
            return Ok(Standing::Open(EpochRecord { created: sighting.created, ..current.clone() }));
        }
        (Verdict::New(reason), Some(current)) => (format!("adopted by itself: {reason}"), current.epoch.0 + 1),
        (_, _) => ("first start".to_owned(), 1),
    };
    let record = new_epoch(config, &sighting, Epoch(number), sighting.first_sequence.max(1), now, reason);
    open(store, &record).await?;
    Ok(Standing::Open(record))
}

/// Opens the epoch and places its position before its first sequence.
pub async fn open(store: &Store, record: &EpochRecord) -> Result<(), StoreError> {
    store.open_epoch(record).await?;
    if record.first_sequence > 1 {
        store.skip_missing(record.epoch, record.first_sequence - 1).await?;
    }
    tracing::info!(
        epoch = record.epoch.0,
        stream = record.stream,
        created = record.created,
        first_sequence = record.first_sequence,
        consumer = record.consumer,
        reason = record.reason,
        "opened an epoch of the stream"
    );
    Ok(())
}

/// The record of a new epoch of the stream as seen; its durable carries the number, so that an acknowledgement still
/// under way for the old stream cannot hit a message of this one.
pub fn new_epoch(
    config: &NatsConfig,
    seen: &Sighting,
    epoch: Epoch,
    first_sequence: i64,
    opened_at: UnixMillis,
    reason: String,
) -> EpochRecord {
    EpochRecord {
        epoch,
        stream: seen.stream.clone(),
        created: seen.created.clone(),
        first_sequence,
        consumer: durable_name(config, epoch),
        opened_at,
        reason,
        sources: Vec::new(),
    }
}

/// The durable consumer of an epoch.
pub fn durable_name(config: &NatsConfig, epoch: Epoch) -> String {
    format!("{}-e{epoch}", config.consumer)
}

async fn add_anchors(
    connection: &Connection,
    store: &Store,
    epoch: Epoch,
    state: StreamState,
    sighting: &mut Sighting,
    limit: i64,
) -> Result<(), SightError> {
    for anchor in store.anchors(epoch, limit).await? {
        if sighting.anchors.iter().any(|(sequence, _)| *sequence == anchor.sequence) {
            continue;
        }
        let stream = &sighting.stream;
        let trace = compare(connection, stream, state, anchor.sequence, &anchor.fingerprint).await?;
        sighting.anchors.push((anchor.sequence, trace));
    }
    Ok(())
}

async fn compare(
    connection: &Connection,
    stream: &str,
    state: StreamState,
    sequence: i64,
    fingerprint: &str,
) -> Result<Trace, NatsError> {
    if sequence > state.last_seq {
        return Ok(Trace::Beyond);
    }
    if sequence < state.first_seq {
        return Ok(Trace::Expired);
    }
    // A replica that lags behind its leader may not have the message yet; it catches up within moments.
    for pause_ms in [0, 100, 400] {
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        if let Some(message) = connection.get(stream, sequence).await? {
            let same = message.fingerprint() == fingerprint;
            return Ok(if same { Trace::Same } else { Trace::Different });
        }
    }
    Ok(Trace::Absent)
}

/// The CloudEvent source of a message, structured or binary.
fn source(message: &StoredMessage) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Envelope {
        source: Option<String>,
    }
    let header = message.raw.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("ce-source"));
    header
        .map(|(_, value)| value.clone())
        .or_else(|| serde_json::from_slice::<Envelope>(&message.raw.payload).ok().and_then(|envelope| envelope.source))
}
