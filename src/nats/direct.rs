//! Messages by sequence or subject, without a consumer: nothing at the server is changed and no delivery disturbed.
//!
//! Any replica answers a direct get, so an answer may be a moment old: that a message *is* there is certain, that one
//! is *not* there is not. Callers must not conclude a loss from one [`None`].
//! <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md>

use std::time::Duration;

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

/// Bytes the server may send for one batched request: there is no flow control, and this is what we keep in memory.
const BATCH_BYTES_MAX: usize = 8 << 20;

/// How long to wait for the next message of a batch.
const BATCH_PATIENCE: Duration = Duration::from_secs(5);

/// A part of the stream.
#[derive(Debug, Clone, Default)]
pub struct Chunk {
    /// The messages, in order.
    pub messages: Vec<StoredMessage>,
    /// Where to go on: everything before this was looked at.
    pub next: i64,
}

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

    /// The next messages from `from` to `to`, both included, whose subject matches `filter`, at most `limit`.
    ///
    /// One request for all of them where the server has batched direct gets (2.11); else many at once by sequence or,
    /// for a filter that names one session, one after the other.
    pub async fn read_chunk(
        &self,
        stream: &str,
        from: i64,
        to: i64,
        filter: &str,
        limit: usize,
    ) -> Result<Chunk, NatsError> {
        let from = from.max(1);
        if from > to || limit == 0 {
            return Ok(Chunk { messages: Vec::new(), next: from });
        }
        if self.client.is_server_compatible(2, 11, 0) {
            return self.batched_get(stream, from, to, filter, limit).await;
        }
        if filter.split('.').filter(|token| !matches!(*token, "*" | ">")).count() + 1 >= filter.split('.').count() {
            let messages: Vec<_> = self.walk_subject(stream, from, to, filter).take(limit).collect().await;
            let messages = messages.into_iter().collect::<Result<Vec<_>, _>>()?;
            let next = messages.last().filter(|_| messages.len() == limit).map_or(to, |last| last.sequence) + 1;
            return Ok(Chunk { messages, next });
        }
        let end = to.min(from.saturating_add(i64::try_from(limit).unwrap_or(i64::MAX)) - 1);
        let messages: Vec<_> = self.walk(stream, from, end).collect().await;
        let mut messages = messages.into_iter().collect::<Result<Vec<_>, _>>()?;
        messages.retain(|message| matches(filter, &message.raw.subject));
        Ok(Chunk { messages, next: end + 1 })
    }

    /// <https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md#batched-requests>
    async fn batched_get(
        &self,
        stream: &str,
        from: i64,
        to: i64,
        filter: &str,
        limit: usize,
    ) -> Result<Chunk, NatsError> {
        let operation = format!("reading stream {stream}");
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let no_answer = |reason: String| NatsError::NoAnswer { operation: operation.clone(), reason };
        let seen = self.events.times_forbidden(&subject);
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|error| no_answer(error.to_string()))?;
        let query = json!({ "seq": from, "batch": limit, "max_bytes": BATCH_BYTES_MAX, "next_by_subj": filter });
        let sent = self.client.publish_with_reply(subject.clone(), inbox, Bytes::from(query.to_string())).await;
        sent.map_err(|error| no_answer(error.to_string()))?;

        let mut chunk = Chunk { messages: Vec::new(), next: to + 1 };
        loop {
            let answer = tokio::select! {
                answer = tokio::time::timeout(BATCH_PATIENCE, answers.next()) => answer,
                () = self.events.until_forbidden(&subject, seen) => {
                    return Err(NatsError::Forbidden { operation, subject });
                }
            };
            let answer = match answer {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(no_answer("the connection was closed".to_owned())),
                Err(_) => return Err(no_answer("timed out after 5 s".to_owned())),
            };
            match answer.status.map(|status| status.as_u16()) {
                None | Some(200) => {
                    let message =
                        read(answer).map_err(|reason| NatsError::Garbled { operation: operation.clone(), reason })?;
                    if message.sequence > to {
                        return Ok(chunk);
                    }
                    chunk.messages.push(message);
                }
                // The end of the batch: more may follow after its last message.
                Some(204) => {
                    if let Some(last) = chunk.messages.last() {
                        let pending = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Num-Pending"));
                        if pending.is_none_or(|pending| pending.as_str() != "0") {
                            chunk.next = last.sequence + 1;
                        }
                    }
                    return Ok(chunk);
                }
                Some(404) => return Ok(chunk),
                Some(503) => return Err(NatsError::NoResponders { operation, subject }),
                Some(code) => {
                    let description = answer.description.unwrap_or_default();
                    return Err(NatsError::Refused { operation, code: code.into(), description });
                }
            }
        }
    }

    /// The first sequence in `first..=last` that was stored at that time or later; `last + 1` where there is none. Times
    /// never go back along a stream.
    pub async fn first_since(&self, stream: &str, first: i64, last: i64, time: UnixMillis) -> Result<i64, NatsError> {
        let (mut low, mut high) = (first, last + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get_next(stream, middle, ">").await? {
                Some(message) if message.stored_at() < time => low = message.sequence + 1,
                _ => high = middle,
            }
        }
        Ok(low.min(last + 1))
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

/// Whether a subject matches a filter: `*` is one token, `>` all that follow.
fn matches(filter: &str, subject: &str) -> bool {
    let (mut filter, mut subject) = (filter.split('.'), subject.split('.'));
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
            _ => return false,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_token_by_token() {
        assert!(matches("bookings.session.*.*", "bookings.session.s1.scheduled"));
        assert!(matches("bookings.>", "bookings.session.s1.scheduled"));
        assert!(!matches("bookings.session.*.*", "bookings.session.s1"));
        assert!(!matches("bookings.session.s1.*", "bookings.session.s10.scheduled"));
        assert!(!matches("bookings.>", "bookings"));
    }
}
