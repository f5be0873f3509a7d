//! The JetStream API: a subject, a JSON body, a JSON answer.
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>

use async_nats::{HeaderMap, Message, RequestError, RequestErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Connection, NatsError};

/// What a stream is and holds, from its leader.
#[derive(Debug, Clone, Deserialize)]
pub struct StreamInfo {
    /// Its configuration, as the server completed it.
    pub config: Value,
    /// When it was created: RFC 3339 with nanoseconds, verbatim.
    pub created: String,
    /// What it holds.
    pub state: StreamState,
}

/// What a stream holds.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct StreamState {
    /// Messages stored.
    pub messages: u64,
    /// The first sequence stored; one after the last when there is none.
    pub first_seq: i64,
    /// The last sequence given out.
    pub last_seq: i64,
}

/// What a consumer is and did, from its leader.
#[derive(Debug, Clone, Deserialize)]
pub struct ConsumerInfo {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: String,
    /// Its configuration, as the server completed it.
    pub config: Value,
    /// The last message handed out.
    pub delivered: SequencePair,
    /// Everything up to here was acknowledged.
    pub ack_floor: SequencePair,
    /// Handed out and not acknowledged.
    pub num_ack_pending: u64,
    /// In the stream and never handed out.
    pub num_pending: u64,
    /// Requests for events that stand at the server.
    #[serde(default)]
    pub num_waiting: u64,
}

/// A place in a consumer's count and in the stream.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct SequencePair {
    /// Stream sequence.
    pub stream_seq: i64,
}

#[derive(Deserialize)]
struct ErrorBody {
    err_code: Option<u64>,
    code: Option<u64>,
    description: Option<String>,
}

impl Connection {
    /// Sends `body` and waits for the raw answer. A subject that these credentials may not use is named at once.
    pub async fn request(&self, operation: &str, subject: &str, body: Bytes) -> Result<Message, NatsError> {
        let seen = self.events.times_forbidden(subject);
        let answer = tokio::select! {
            answer = self.client.request(subject.to_owned(), body) => answer,
            () = self.events.until_forbidden(subject, seen) => {
                return Err(NatsError::Forbidden { operation: operation.into(), subject: subject.into() });
            }
        };
        answer.map_err(|error| no_answer(operation, subject, &error))
    }

    /// One API request whose answer is JSON.
    pub async fn api<T: DeserializeOwned>(
        &self,
        operation: &str,
        subject: &str,
        body: Option<&Value>,
    ) -> Result<T, NatsError> {
        let body = body.map(|value| Bytes::from(value.to_string())).unwrap_or_default();
        let message = self.request(operation, subject, body).await?;
        read_json(operation, &message.payload)
    }

    /// Publishes and waits until `stream` has stored it (or had it already, by its `Nats-Msg-Id`).
    pub async fn publish_stored(
        &self,
        stream: &str,
        subject: &str,
        mut headers: HeaderMap,
        payload: Bytes,
    ) -> Result<(), NatsError> {
        let operation = format!("publishing to stream {stream}");
        headers.insert("Nats-Expected-Stream", stream);
        let seen = self.events.times_forbidden(subject);
        let answer = tokio::select! {
            answer = self.client.request_with_headers(subject.to_owned(), headers, payload) => answer,
            () = self.events.until_forbidden(subject, seen) => {
                return Err(NatsError::Forbidden { operation, subject: subject.into() });
            }
        };
        let message = answer.map_err(|error| no_answer(&operation, subject, &error))?;
        read_json::<Value>(&operation, &message.payload).map(drop)
    }

    /// What the stream is and holds; `None` when there is no such stream.
    pub async fn stream_info(&self, stream: &str) -> Result<Option<StreamInfo>, NatsError> {
        let operation = format!("looking at stream {stream}");
        found(self.api(&operation, &format!("$JS.API.STREAM.INFO.{stream}"), None).await, NatsError::STREAM_NOT_FOUND)
    }

    /// What the consumer is and did; `None` when there is no such consumer (or stream).
    pub async fn consumer_info(&self, stream: &str, consumer: &str) -> Result<Option<ConsumerInfo>, NatsError> {
        let operation = format!("looking at consumer {consumer} of stream {stream}");
        let answer = self.api(&operation, &format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"), None).await;
        match found(answer, NatsError::CONSUMER_NOT_FOUND) {
            Err(error) if error.is_refusal(NatsError::STREAM_NOT_FOUND) => Ok(None),
            other => other,
        }
    }

    /// Makes the consumer that `config` describes. `action` is `create` (fails when one with another configuration
    /// exists), `update` or empty for either.
    pub async fn write_consumer(&self, stream: &str, config: &Value, action: &str) -> Result<ConsumerInfo, NatsError> {
        let text = |field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default();
        let (name, filter) = (text("name"), text("filter_subject"));
        let operation = format!("writing consumer {name} of stream {stream}");
        let subject = format!("$JS.API.CONSUMER.CREATE.{stream}.{name}.{filter}");
        let body = serde_json::json!({ "stream_name": stream, "config": config, "action": action });
        self.api(&operation, &subject, Some(&body)).await
    }

    /// Deletes the consumer; fine when it was gone.
    pub async fn delete_consumer(&self, stream: &str, consumer: &str) -> Result<(), NatsError> {
        let operation = format!("deleting consumer {consumer} of stream {stream}");
        let answer = self.api::<Value>(&operation, &format!("$JS.API.CONSUMER.DELETE.{stream}.{consumer}"), None).await;
        found(answer, NatsError::CONSUMER_NOT_FOUND).map(drop)
    }

    /// Names of the stream's consumers (the first 1,024 of them, which is the server's page).
    pub async fn consumer_names(&self, stream: &str) -> Result<Vec<String>, NatsError> {
        #[derive(Deserialize)]
        struct Names {
            consumers: Option<Vec<String>>,
        }
        let operation = format!("listing the consumers of stream {stream}");
        let names: Names = self.api(&operation, &format!("$JS.API.CONSUMER.NAMES.{stream}"), None).await?;
        Ok(names.consumers.unwrap_or_default())
    }
}

fn no_answer(operation: &str, subject: &str, error: &RequestError) -> NatsError {
    let operation = operation.to_owned();
    match error.kind() {
        RequestErrorKind::NoResponders => NatsError::NoResponders { operation, subject: subject.to_owned() },
        RequestErrorKind::TimedOut => NatsError::NoAnswer { operation, reason: "timed out after 5 s".to_owned() },
        _ => NatsError::NoAnswer { operation, reason: error.to_string() },
    }
}

/// The answer, or the error that it holds.
fn read_json<T: DeserializeOwned>(operation: &str, payload: &[u8]) -> Result<T, NatsError> {
    let garbled =
        |error: serde_json::Error| NatsError::Garbled { operation: operation.into(), reason: error.to_string() };
    let mut answer: Value = serde_json::from_slice(payload).map_err(garbled)?;
    if let Some(error) = answer.get_mut("error").map(Value::take) {
        let error: ErrorBody = serde_json::from_value(error).map_err(garbled)?;
        return Err(NatsError::Refused {
            operation: operation.into(),
            code: error.err_code.or(error.code).unwrap_or(0),
            description: error.description.unwrap_or_default(),
        });
    }
    serde_json::from_value(answer).map_err(garbled)
}

fn found<T>(answer: Result<T, NatsError>, missing: u64) -> Result<Option<T>, NatsError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_refusal(missing) => Ok(None),
        Err(error) => Err(error),
    }
}
