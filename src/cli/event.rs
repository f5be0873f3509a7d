//! `event validate|publish FILE…` and `asyncapi`: for people who publish booking events.
//!
//! Files hold structured CloudEvents: one, a JSON array of them, or one a line. Validation is the service's own
//! [`decode_unpublished`], so what is ok here is folded there.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use async_nats::jetstream;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::event::{SessionEvent, decode_unpublished, subject_under};
use crate::store::Refused;

/// The AsyncAPI 3 document of both directions, YAML.
pub const ASYNCAPI: &str = include_str!("../../schemas/asyncapi.yaml");

/// Publishes that wait for their ack at once. They leave in order on one connection, so the stream keeps the order of
/// the file; 256 hides a round trip of some milliseconds.
const UNACKNOWLEDGED_MAX: usize = 256;

/// `event …`
#[derive(Debug, clap::Subcommand)]
pub enum EventCommand {
    /// Says of every event whether the service would take it, and if not, what to fix
    Validate(ValidateArgs),
    /// Publishes events, once all of them are valid, and waits until the stream has stored them
    Publish(PublishArgs),
}

/// `event validate`
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// Files with one structured CloudEvent, an array of them, or one a line; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// `event publish`
#[derive(Debug, clap::Args)]
pub struct PublishArgs {
    /// Files with one structured CloudEvent, an array of them, or one a line; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// What `event validate` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Validated {
    /// Events that would be taken.
    pub valid: usize,
    /// Events that would become dead letters; the exit code is 1 if there are any.
    pub invalid: usize,
}

/// What `event publish` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Published {
    /// Events that the stream stored.
    pub stored: usize,
    /// Events whose id the stream had within its duplicate window, so that it did not store them again.
    pub duplicates: usize,
}

/// Why a command about events stopped.
#[derive(Debug, thiserror::Error)]
pub enum EventCommandError {
    /// A file cannot be read.
    #[error("cannot read {file}: {source}")]
    Read {
        /// As on the command line.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Some events break a rule, so none was published.
    #[error("{0} of the events are not valid, so none was published; `event validate` says what to fix")]
    Invalid(usize),
    /// Nobody answered the publish.
    #[error(
        "no stream captures the subject {subject}; stream {stream} has to exist and to list it, see `meet-projector nats check`"
    )]
    NoStream {
        /// The subject of the event.
        subject: String,
        /// The stream we expected there.
        stream: String,
    },
    /// The subject belongs to another stream.
    #[error(
        "the subject {subject} is captured by stream {found}, not by {stream}; check NATS_STREAM and NATS_SUBJECTS"
    )]
    OtherStream {
        /// The subject of the event.
        subject: String,
        /// The stream that answered.
        found: String,
        /// The stream we expected.
        stream: String,
    },
    /// The publish failed. Publishing again is safe: the ids stay the same.
    #[error("event {id} was not stored on {subject}: {source}")]
    Publish {
        /// The event.
        id: String,
        /// Its subject.
        subject: String,
        /// What the client said.
        source: PublishError,
    },
    /// The output cannot be written; `BrokenPipe` is a reader that has seen enough.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

/// One event of a file, as it was there.
struct Found {
    /// The file, with a position where it holds several.
    place: String,
    payload: Bytes,
}

/// `event validate`: one line per event, `{"file","valid","id","class","reason"}` each as JSON.
pub fn validate(args: &ValidateArgs, json: bool, out: &mut impl Write) -> Result<Validated, EventCommandError> {
    let mut validated = Validated::default();
    for file in &args.files {
        for found in read(file)? {
            let decoded = decode_unpublished(&found.payload);
            match &decoded {
                Ok(_) => validated.valid += 1,
                Err(_) => validated.invalid += 1,
            }
            writeln!(out, "{}", line(&found.place, &decoded, json))?;
        }
    }
    Ok(validated)
}

fn line(place: &str, decoded: &Result<SessionEvent, Refused>, json: bool) -> String {
    match decoded {
        Ok(event) if json => json!({"file": place, "valid": true, "id": event.event_id}).to_string(),
        Ok(event) => format!("{place}: ok, {} version {} {}", event.session, event.version, event.change.as_str()),
        Err(refused) if json => {
            json!({"file": place, "valid": false, "class": refused.class, "reason": refused.reason}).to_string()
        }
        Err(refused) => format!("{place}: {}", refused.reason),
    }
}

/// `event publish`: all events or, when one is invalid, none. Each goes out as it stands in its file, on the subject
/// that `filter` (`NATS_SUBJECTS`) and its own session and type give, with `Nats-Msg-Id`, `Nats-Expected-Stream` and
/// `Content-Type`; every ack is checked.
pub async fn publish(
    args: &PublishArgs,
    jetstream: &jetstream::Context,
    stream: &str,
    filter: &str,
    json: bool,
    out: &mut impl Write,
) -> Result<Published, EventCommandError> {
    let mut ready = Vec::new();
    let mut invalid = 0;
    for file in &args.files {
        for found in read(file)? {
            match decode_unpublished(&found.payload) {
                Ok(event) => ready.push(Outgoing { subject: subject_under(filter, &event), id: event.event_id, found }),
                refused => {
                    invalid += 1;
                    writeln!(out, "{}", line(&found.place, &refused, json))?;
                }
            }
        }
    }
    if invalid > 0 {
        return Err(EventCommandError::Invalid(invalid));
    }

    // Two steps: the first hands messages to the connection one after the other, which keeps their order; the second
    // waits for acks, many at once.
    let sent = stream::iter(ready).then(|outgoing| async move {
        let ack = send(jetstream, stream, &outgoing).await.map_err(|error| outgoing.failed(stream, error))?;
        Ok((outgoing, ack))
    });
    let acknowledged = sent
        .map_ok(|(outgoing, ack)| async move {
            let ack = ack.await.map_err(|error| outgoing.failed(stream, error))?;
            Ok::<_, EventCommandError>((outgoing, ack))
        })
        .try_buffered(UNACKNOWLEDGED_MAX);
    let mut acknowledged = std::pin::pin!(acknowledged);

    let mut published = Published::default();
    while let Some((outgoing, ack)) = acknowledged.try_next().await? {
        let Outgoing { subject, id, .. } = outgoing;
        if ack.stream != stream {
            return Err(EventCommandError::OtherStream { subject, found: ack.stream, stream: stream.to_owned() });
        }
        if ack.duplicate {
            published.duplicates += 1;
        } else {
            published.stored += 1;
        }
        if json {
            let line = json!({"id": id, "subject": subject, "sequence": ack.sequence, "duplicate": ack.duplicate});
            writeln!(out, "{line}")?;
        } else {
            let note = if ack.duplicate { ", was there already" } else { "" };
            writeln!(out, "{subject}: {stream} sequence {}{note}", ack.sequence)?;
        }
    }
    Ok(published)
}

struct Outgoing {
    subject: String,
    id: String,
    found: Found,
}

impl Outgoing {
    fn failed(&self, stream: &str, source: PublishError) -> EventCommandError {
        let (subject, stream) = (self.subject.clone(), stream.to_owned());
        match source.kind() {
            PublishErrorKind::StreamNotFound => EventCommandError::NoStream { subject, stream },
            _ => EventCommandError::Publish { id: self.id.clone(), subject, source },
        }
    }
}

async fn send(
    jetstream: &jetstream::Context,
    stream: &str,
    outgoing: &Outgoing,
) -> Result<PublishAckFuture, PublishError> {
    let message = PublishMessage::build()
        .payload(outgoing.found.payload.clone())
        .message_id(&outgoing.id)
        .expected_stream(stream)
        .header("Content-Type", "application/cloudevents+json");
    jetstream.send_publish(outgoing.subject.clone(), message).await
}

/// `asyncapi`: the document as YAML, or as JSON where that is asked for by the caller's own conversion.
pub fn asyncapi(out: &mut impl Write) -> Result<(), EventCommandError> {
    Ok(out.write_all(ASYNCAPI.as_bytes())?)
}

/// The events of a file, each still as bytes, so that a broken one gets the service's own sentence.
fn read(file: &Path) -> Result<Vec<Found>, EventCommandError> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "stdin".to_owned() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let read = if is_stdin {
        io::stdin().lock().read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
    };
    match read {
        Ok(_) => Ok(split(&name, bytes)),
        Err(source) => Err(EventCommandError::Read { file: name, source }),
    }
}

fn split(name: &str, bytes: Vec<u8>) -> Vec<Found> {
    let numbered =
        |number: usize, payload: Vec<u8>| Found { place: format!("{name}:{number}"), payload: payload.into() };
    if bytes.trim_ascii_start().starts_with(b"[")
        && let Ok(events) = serde_json::from_slice::<Vec<Value>>(&bytes)
    {
        let payloads = events.into_iter().map(|event| event.to_string().into_bytes());
        return payloads.enumerate().map(|(index, payload)| numbered(index + 1, payload)).collect();
    }
    let is_object = |text: &[u8]| serde_json::from_slice::<serde_json::Map<String, Value>>(text).is_ok();
    let mut lines = bytes.split(|byte| *byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    // One a line is what it is if the first line is a whole object and not the only one.
    let starts_with_object = lines.next().is_some_and(|(_, line)| is_object(line));
    if starts_with_object && lines.next().is_some() {
        let lines = bytes.split(|byte| *byte == b'\n').enumerate();
        let lines = lines.filter(|(_, line)| !line.trim_ascii().is_empty());
        return lines.map(|(index, line)| numbered(index + 1, line.trim_ascii().to_vec())).collect();
    }
    vec![Found { place: name.to_owned(), payload: bytes.into() }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(name: &str, content: &str) -> (Validated, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let mut out = Vec::new();
        let counts = validate(&ValidateArgs { files: vec![file] }, false, &mut out).unwrap();
        let prefix = format!("{}/", folder.path().display());
        (counts, String::from_utf8(out).unwrap().replace(&prefix, ""))
    }

    const GOOD: &str = include_str!("../../schemas/examples/valid/private-scheduled.json");
    const CANCEL: &str = include_str!("../../schemas/examples/valid/canceled-without-details.json");
    const BAD: &str = include_str!("../../schemas/examples/invalid/version-zero.json");

    fn on_one_line(json: &str) -> String {
        serde_json::from_str::<Value>(json).unwrap().to_string()
    }

    #[test]
    fn a_file_holds_one_event_an_array_or_one_a_line() {
        let (counts, text) = validated("one.json", GOOD);
        assert_eq!(counts, Validated { valid: 1, invalid: 0 });
        insta::assert_snapshot!(text, @"one.json: ok, ses_8Kq2 version 1 scheduled");

        let (counts, text) = validated("array.json", &format!("[{GOOD},\n{BAD},{CANCEL}]"));
        assert_eq!(counts, Validated { valid: 2, invalid: 1 });
        insta::assert_snapshot!(text, @"
        array.json:1: ok, ses_8Kq2 version 1 scheduled
        array.json:2: data.version is 0, but has to be a whole number from 1 to 9007199254740991
        array.json:3: ok, ses_8Kq2 version 4 canceled
        ");

        let lines = format!("{}\n\n{}\n{{\"specversion\":\r\n", on_one_line(GOOD), on_one_line(CANCEL));
        let (counts, text) = validated("lines.jsonl", &lines);
        assert_eq!(counts, Validated { valid: 2, invalid: 1 });
        insta::assert_snapshot!(text, @"
        lines.jsonl:1: ok, ses_8Kq2 version 1 scheduled
        lines.jsonl:3: ok, ses_8Kq2 version 4 canceled
        lines.jsonl:4: the payload is JSON that ends too early, after 15 bytes inside specversion; send all of it
        ");
    }

    #[test]
    fn what_is_no_event_at_all_gets_one_sentence() {
        for (content, sentence) in
            [("", "is empty"), ("[1, 2", "ends too early"), ("# Notes\n\nhello\n", "is not JSON")]
        {
            let (counts, text) = validated("x", content);
            assert_eq!(counts, Validated { valid: 0, invalid: 1 });
            assert!(text.contains(sentence), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let args = ValidateArgs { files: vec!["no/such/file.json".into()] };
        let error = validate(&args, false, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("cannot read no/such/file.json: "), "{error}");
    }
}
