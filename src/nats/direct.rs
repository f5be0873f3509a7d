//! Messages by sequence or subject, without a consumer: nothing at the server is changed and no delivery disturbed.
//!
//! Any replica answers a direct get, so an answer may be a moment old: that a message *is* there is certain, that one
//! is *not* there is not. Callers must not conclude a loss from one [`None`].
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md>

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use chrono::DateTime;
use futures_util::{Stream, StreamExt, stream};
use serde_json::{Value, json};

use super::{Connection, NatsError, epoch};
use crate::model::UnixMillis;
use crate::store::RawMessage;

/// How many reads by sequence are under way at once in [`Connection::walk`]: 64 reached 55,000 messages a second.
const IN_FLIGHT: usize = 64;

/// A message as the stream holds it.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its stream sequence.
    pub sequence: i64,
    /// When the server stored it, in nanoseconds since 1970.
    pub stored_at_ns: i64,
    /// Subject, headers (without those of the answer itself) and payload.
    pub raw: RawMessage,
}

impl StoredMessage {
    /// When the server stored it.
    pub const fn stored_at(&self) -> UnixMillis {
        UnixMillis::new(self.stored_at_ns.div_euclid(1_000_000))
    }

    /// See [`epoch::fingerprint`].
    pub fn fingerprint(&self) -> String {
        let id = self.raw.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("Nats-Msg-Id"));
        epoch::fingerprint(&self.raw.subject, id.map(|(_, id)| id.as_str()), self.stored_at_ns, &self.raw.payload)
    }
}

impl Connection {
    /// The message with that sequence.
    pub async fn get(&self, stream: &str, sequence: i64) -> Result<Option<StoredMessage>, NatsError> {
        self.direct_get(stream, &json!({ "seq": sequence })).await
    }

    /// The first message at or after that sequence whose subject matches `filter`.
    pub async fn get_next(
        &self,
        stream: &str,
        sequence: i64,
        filter: &str,
    ) -> Result<Option<StoredMessage>, NatsError> {
        self.direct_get(stream, &json!({ "seq": sequence.max(1), "next_by_subj": filter })).await
    }

    /// The last message whose subject matches `filter`.
    pub async fn get_last(&self, stream: &str, filter: &str) -> Result<Option<StoredMessage>, NatsError> {
        self.direct_get(stream, &json!({ "last_by_subj": filter })).await
    }

    /// All messages from `from` to `to`, both included, in order; sequences the stream does not hold are left out.
    pub fn walk<'a>(
        &'a self,
        stream: &'a str,
        from: i64,
        to: i64,
    ) -> impl Stream<Item = Result<StoredMessage, NatsError>> + 'a {
        stream::iter(from..=to)
            .map(move |sequence| self.get(stream, sequence))
            .buffered(IN_FLIGHT)
            .filter_map(|answer| std::future::ready(answer.transpose()))
    }

    /// All messages from `from` to `to`, both included, whose subject matches `filter`, in order: one round trip each,
    /// so for filters that few messages match, such as one session's.
    pub fn walk_subject<'a>(
        &'a self,
        stream: &'a str,
        from: i64,
        to: i64,
        filter: &'a str,
    ) -> impl Stream<Item = Result<StoredMessage, NatsError>> + 'a {
        stream::unfold(Some(from), move |next| async move {
            let sequence = next.filter(|sequence| *sequence <= to)?;
            match self.get_next(stream, sequence, filter).await {
                Ok(Some(message)) if message.sequence <= to => {
                    let after = message.sequence + 1;
                    Some((Ok(message), Some(after)))
                }
                Ok(_) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn direct_get(&self, stream: &str, query: &Value) -> Result<Option<StoredMessage>, NatsError> {
        let operation = format!("reading stream {stream}");
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let answer = self.request(&operation, &subject, Bytes::from(query.to_string())).await?;
        match answer.status.map(|status| status.as_u16()) {
            Some(404) => return Ok(None),
            None | Some(200) => {}
            Some(code) => {
                let description = answer.description.unwrap_or_default();
                return Err(NatsError::Refused { operation, code: code.into(), description });
            }
        }
        read(answer).map(Some).map_err(|reason| NatsError::Garbled { operation, reason })
    }
}

fn read(answer: Message) -> Result<StoredMessage, String> {
    let headers = answer.headers.ok_or("an answer without headers; is allow_direct on?")?;
    let field = |name: &str| headers.get(name).map(|value| value.as_str().to_owned()).ok_or(format!("no {name} in it"));
    let sequence = field("Nats-Sequence")?.parse().map_err(|_| "Nats-Sequence is not a number".to_owned())?;
    let stored = field("Nats-Time-Stamp")?;
    let stored_at_ns = DateTime::parse_from_rfc3339(&stored).ok().and_then(|at| at.timestamp_nanos_opt());
    Ok(StoredMessage {
        sequence,
        stored_at_ns: stored_at_ns.ok_or_else(|| format!("Nats-Time-Stamp {stored:?} is not a time"))?,
        raw: RawMessage { subject: field("Nats-Subject")?, headers: pairs(&headers, true), payload: answer.payload },
    })
}

/// Headers a direct get adds to the stored ones.
const ANSWER_HEADERS: [&str; 6] =
    ["Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"];

/// Headers as pairs, sorted by name (the library does not keep their order); `of_answer` leaves out what a direct get
/// added.
pub fn pairs(headers: &HeaderMap, of_answer: bool) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = headers
        .iter()
        .filter(|(name, _)| !of_answer || !ANSWER_HEADERS.contains(&name.to_string().as_str()))
        .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.as_str().to_owned())))
        .collect();
    pairs.sort();
    pairs
}
