//! The stream as a run reads it: by direct get, so that no consumer is made and no delivery disturbed; each event with
//! the epoch it belongs to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::config::NatsConfig;
use crate::event::decode;
use crate::model::{Epoch, Place, SessionId, UnixMillis};
use crate::nats::direct::{Chunk, StoredMessage};
use crate::nats::epoch::sight::{SightError, known, sight};
use crate::nats::epoch::{Verdict, judge};
use crate::nats::{Connection, NatsError, connect};
use crate::store::{EpochRecord, Incoming, Refused, Store, StoreError};

/// Where a place stands in what the stream holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It is (or was) within what the stream holds and a run has read.
    Within,
    /// It belongs to an incarnation that is gone, or aged out.
    Expired,
    /// It comes after what a run has read.
    Ahead,
}

/// Which sequences of the stream belong to which epoch, and which of them it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Epochs with their first sequence, oldest first.
    epochs: Vec<(Epoch, i64)>,
    /// The first sequence stored.
    pub first: i64,
    /// The last sequence given out when it was looked at.
    pub last: i64,
}

impl History {
    /// Of the epochs of one database and a stream that holds `first..=last`.
    pub fn new(records: &[EpochRecord], first: i64, last: i64) -> Self {
        let mut epochs: Vec<_> = records.iter().map(|record| (record.epoch, record.first_sequence)).collect();
        epochs.sort_unstable();
        Self { epochs, first, last }
    }

    /// The epoch in which a sequence of this stream was given out. A stream that was restored and went its own way from
    /// a fork on has the events before the fork in common with the epoch before.
    pub fn epoch_of(&self, sequence: i64) -> Epoch {
        let newest = self.epochs.iter().rev().find(|(_, first)| *first <= sequence);
        newest.or(self.epochs.first()).map_or(Epoch(1), |(epoch, _)| *epoch)
    }

    /// The place of a sequence.
    pub fn place(&self, sequence: i64) -> Place {
        Place { epoch: self.epoch_of(sequence), sequence }
    }

    /// Whether a run that read up to `read` can have seen that place.
    pub fn holds(&self, place: Place, read: i64) -> Held {
        let current = self.epochs.last().map(|(epoch, _)| *epoch);
        if place.sequence > read && Some(place.epoch) == current {
            Held::Ahead
        } else if place.sequence < self.first || self.epoch_of(place.sequence) != place.epoch {
            Held::Expired
        } else {
            Held::Within
        }
    }
}

/// Why the stream cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The stream could not be looked at.
    #[error(transparent)]
    Sight(#[from] SightError),
    /// The database.
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    /// The stream is not the one the projection was made of.
    #[error("{0}")]
    NotTheSame(String),
}

impl SourceError {
    /// The exit code: 3 configuration, 4 unreachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Nats(error) | Self::Sight(SightError::Nats(error)) => error.exit_code(),
            Self::Store(error) | Self::Sight(SightError::Store(error)) if error.is_transient() => 4,
            _ => 1,
        }
    }
}

/// The stream, known to be the one that was read.
#[derive(Debug, Clone)]
pub struct Source {
    /// The connection.
    pub connection: Connection,
    /// The epoch worked in.
    pub record: EpochRecord,
    /// Which sequences are whose.
    pub history: History,
    /// `NATS_SUBJECTS`
    subjects: String,
}

impl Source {
    /// Connects and makes sure that the stream is the one the database knows.
    pub async fn open(config: &NatsConfig, store: &Store, name: &str) -> Result<Self, SourceError> {
        Self::of(connect(config, name).await?, config, store).await
    }

    /// On a connection that is there.
    pub async fn of(connection: Connection, config: &NatsConfig, store: &Store) -> Result<Self, SourceError> {
        let known = known(store).await?;
        let seen = sight(&connection, config, store, &known).await?;
        let record = match (judge(&known, &seen), known.current) {
            (Verdict::Same | Verdict::SameRestamped, Some(current)) => current,
            (Verdict::Ambiguous(ambiguity), _) => {
                return Err(SourceError::NotTheSame(format!("{}. {}", ambiguity.seen, ambiguity.advice)));
            }
            (Verdict::New(reason), _) => {
                let text = format!("{reason}; the service adopts it when it runs. Start it, then try again");
                return Err(SourceError::NotTheSame(text));
            }
            (_, _) => {
                let text = "nothing was read from the stream yet: start the service, which reads it from its beginning";
                return Err(SourceError::NotTheSame(text.to_owned()));
            }
        };
        let history = History::new(&store.epochs().await?, seen.first_sequence, seen.last_sequence);
        Ok(Self { connection, record, history, subjects: config.subjects.clone() })
    }

    /// Looks how far the stream goes now.
    pub async fn head(&self) -> Result<i64, SourceError> {
        let info = self.connection.stream_info(&self.record.stream).await?;
        Ok(info.map_or(0, |info| info.state.last_seq))
    }

    /// The filter for one session's events, or for all.
    pub fn filter(&self, session: Option<&SessionId>) -> String {
        let Some(session) = session else { return self.subjects.clone() };
        let mut tokens: Vec<&str> = self.subjects.split('.').collect();
        // The last two tokens are session and change.
        if tokens.last() == Some(&">") {
            tokens.pop();
        } else {
            tokens.truncate(tokens.len().saturating_sub(2));
        }
        tokens.extend([session.as_str(), "*"]);
        tokens.join(".")
    }

    /// The next messages of `filter` from `from` to `to`, at most `limit`, in order.
    ///
    /// That nothing is there may be said by a replica that lags, so it is asked again.
    pub async fn read(&self, from: i64, to: i64, filter: &str, limit: usize) -> Result<Chunk, NatsError> {
        let stream = &self.record.stream;
        for pause_ms in [0, 100, 400] {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            let chunk = self.connection.read_chunk(stream, from, to, filter, limit).await?;
            if !chunk.messages.is_empty() || chunk.next <= to {
                return Ok(chunk);
            }
            if to < self.history.last {
                break;
            }
        }
        Ok(Chunk { messages: Vec::new(), next: to + 1 })
    }

    /// A message as the fold takes it.
    pub fn incoming(&self, message: StoredMessage) -> Incoming {
        let place = self.history.place(message.sequence);
        let (stored_at, fingerprint) = (message.stored_at(), message.fingerprint());
        let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        // One message must not stop the others, not even by a mistake of ours.
        let decoded =
            catch_unwind(AssertUnwindSafe(|| decode(&message.raw.subject, headers, &message.raw.payload, place)))
                .unwrap_or_else(|_| {
                    let reason = "reading this event failed in the program itself: please report it with its payload";
                    Err(Refused { class: "decoder_failed", reason: reason.to_owned(), session: None })
                });
        Incoming { sequence: message.sequence, stored_at, fingerprint, raw: message.raw, decoded }
    }

    /// The first sequence that was stored at that time or later; one after the last where there is none.
    pub async fn first_since(&self, time: UnixMillis) -> Result<i64, NatsError> {
        let (first, last) = (self.history.first, self.history.last);
        self.connection.first_since(&self.record.stream, first, last, time).await
    }
}

/// Groups of messages by the epoch they belong to, in order: a group is folded into one epoch.
pub fn by_epoch(history: &History, group: Vec<Incoming>) -> Vec<(Epoch, Vec<Incoming>)> {
    let mut parts: Vec<(Epoch, Vec<Incoming>)> = Vec::with_capacity(1);
    for incoming in group {
        let epoch = history.epoch_of(incoming.sequence);
        match parts.last_mut() {
            Some((last, part)) if *last == epoch => part.push(incoming),
            _ => parts.push((epoch, vec![incoming])),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: i64, first_sequence: i64) -> EpochRecord {
        EpochRecord {
            epoch: Epoch(epoch),
            stream: "BOOKINGS".into(),
            created: String::new(),
            first_sequence,
            consumer: String::new(),
            opened_at: UnixMillis::default(),
            reason: String::new(),
            sources: Vec::new(),
        }
    }

    #[test]
    fn a_restored_stream_shares_its_beginning_with_the_epoch_before() {
        // Read to 20, restored to 10 and gone on; then restored to 8 and gone on.
        let history = History::new(&[record(1, 1), record(2, 11), record(3, 9)], 3, 30);
        let epochs: Vec<_> = [1, 8, 9, 10, 11, 30].map(|sequence| history.epoch_of(sequence).0).into();
        assert_eq!(epochs, [1, 1, 3, 3, 3, 3]);
        let held = |epoch, sequence| history.holds(Place { epoch: Epoch(epoch), sequence }, 30);
        assert_eq!(held(1, 5), Held::Within);
        assert_eq!(held(1, 2), Held::Expired, "aged out");
        assert_eq!(held(1, 10), Held::Expired, "another event has the sequence now");
        assert_eq!(held(2, 11), Held::Expired);
        assert_eq!(held(3, 30), Held::Within);
        assert_eq!(held(3, 31), Held::Ahead);
    }

    #[test]
    fn a_stream_made_anew_shares_nothing() {
        let history = History::new(&[record(2, 1), record(1, 1)], 1, 5);
        assert_eq!(history.epoch_of(1), Epoch(2));
        assert_eq!(history.holds(Place { epoch: Epoch(1), sequence: 3 }, 5), Held::Expired);
        assert_eq!(history.holds(Place { epoch: Epoch(1), sequence: 9 }, 5), Held::Expired);
    }
}
