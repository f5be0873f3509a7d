//! Publishing files of events: all or, when one is invalid, none.

use std::io::Write;

use async_nats::jetstream;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;

use super::{EventCommandError, Files, files, sentence, verdict};
use crate::cli::Exit;
use crate::cli::print::{self, Output};
use crate::event::{decode_unpublished, subject_under};

/// Publishes that wait for their ack at once. They leave in order on one connection, so the stream keeps the order of
/// the files; 256 hide a round trip of some milliseconds.
const UNACKNOWLEDGED_MAX: usize = 256;

/// A valid event as it stands in its file.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where it belongs.
    pub subject: String,
    /// Its id, which becomes `Nats-Msg-Id`.
    pub id: String,
    /// What is sent.
    pub payload: Bytes,
}

/// Reads and checks the files; `filter` is `NATS_SUBJECTS`. `None`, after saying why, when an event is not valid.
pub fn ready(
    files: &Files,
    filter: &str,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Option<Vec<Outgoing>>, EventCommandError> {
    let mut ready = Vec::new();
    let mut refused = Vec::new();
    for found in files::read_all(&files.files)? {
        match decode_unpublished(&found.payload) {
            Ok(event) => {
                let subject = subject_under(filter, &event);
                ready.push(Outgoing { subject, id: event.event_id, payload: found.payload });
            }
            decoded => refused.push((found.place, decoded)),
        }
    }
    if refused.is_empty() {
        return Ok(Some(ready));
    }
    match output {
        Output::Human => {
            for (place, decoded) in &refused {
                writeln!(out, "{}", sentence(place, decoded))?;
            }
            writeln!(out, "nothing was published: {} of {} not valid", refused.len(), refused.len() + ready.len())?;
        }
        Output::Json => {
            let events: Vec<_> = refused.iter().map(|(place, decoded)| verdict(place, decoded)).collect();
            print::json(out, &json!({"published": 0, "invalid": events.len(), "events": events}))?;
        }
    }
    Ok(None)
}

/// Publishes with `Nats-Msg-Id`, `Nats-Expected-Stream` and `Content-Type`, and waits for every ack.
pub async fn publish(
    ready: Vec<Outgoing>,
    jetstream: &jetstream::Context,
    stream: &str,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, EventCommandError> {
    // Two steps: the first hands messages to the connection one after the other, which keeps their order; the second
    // waits for the acks of many at once.
    let sent = stream::iter(ready).then(|outgoing| async move {
        match send(jetstream, stream, &outgoing).await {
            Ok(ack) => Ok((outgoing, ack)),
            Err(reason) => Err(failed(&outgoing, stream, reason)),
        }
    });
    let acknowledged = sent.map_ok(|(outgoing, ack)| async move {
        match ack.await {
            Ok(ack) => Ok((outgoing, ack)),
            Err(reason) => Err(failed(&outgoing, stream, reason)),
        }
    });
    let mut acknowledged = std::pin::pin!(acknowledged.try_buffered(UNACKNOWLEDGED_MAX));

    let mut events = Vec::new();
    let (mut stored, mut duplicates) = (0_usize, 0_usize);
    while let Some((outgoing, ack)) = acknowledged.try_next().await? {
        let count = if ack.duplicate { &mut duplicates } else { &mut stored };
        *count += 1;
        match output {
            Output::Human => writeln!(out, "{}", line(&outgoing, &ack))?,
            Output::Json => events.push(json!({
                "id": outgoing.id, "subject": outgoing.subject, "stream": ack.stream, "sequence": ack.sequence,
                "duplicate": ack.duplicate,
            })),
        }
    }
    if output == Output::Json {
        print::json(out, &json!({"stored": stored, "duplicates": duplicates, "events": events}))?;
    }
    Ok(Exit::Ok)
}

fn line(outgoing: &Outgoing, ack: &PublishAck) -> String {
    let note = if ack.duplicate { ", was there already" } else { "" };
    format!("{}: {} sequence {}{note}", outgoing.subject, ack.stream, ack.sequence)
}

async fn send(
    jetstream: &jetstream::Context,
    stream: &str,
    outgoing: &Outgoing,
) -> Result<PublishAckFuture, PublishError> {
    let message = PublishMessage::build()
        .payload(outgoing.payload.clone())
        .message_id(&outgoing.id)
        .expected_stream(stream)
        .header("Content-Type", "application/cloudevents+json");
    jetstream.send_publish(outgoing.subject.clone(), message).await
}

fn failed(outgoing: &Outgoing, stream: &str, reason: PublishError) -> EventCommandError {
    let (subject, stream) = (outgoing.subject.clone(), stream.to_owned());
    match reason.kind() {
        PublishErrorKind::StreamNotFound => EventCommandError::NoStream { subject, stream },
        _ => EventCommandError::Publish { id: outgoing.id.clone(), subject, stream, reason },
    }
}
