//! `event validate|publish FILE…` and the AsyncAPI document: for people who publish booking events.
//!
//! Files hold structured CloudEvents: one, a JSON array of them, or one a line. Validation is the service's own
//! [`decode_unpublished`], so what is ok here is folded there.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use async_nats::jetstream;
use async_nats::jetstream::context::PublishError;
use serde_json::{Value, json};

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::config::{Config, Need};
use crate::event::{SessionEvent, decode_unpublished};
use crate::nats::{NatsError, connect};
use crate::store::Refused;

mod files;
pub mod publish;

/// The AsyncAPI 3 document of both directions, YAML.
pub const ASYNCAPI: &str = include_str!("../../schemas/asyncapi.yaml");

/// What to do with files of events.
#[derive(Debug, clap::Subcommand)]
pub enum EventCommand {
    /// Say of every event whether the service would take it, and if not, what to fix; exit code 1 if one is not valid
    Validate(Files),
    /// Publish events in the order of the files, once all are valid, and wait until the stream has stored them
    Publish(Files),
}

/// The files of either command.
#[derive(Debug, clap::Args)]
pub struct Files {
    /// One structured CloudEvent, an array of them, or one a line; - reads standard input
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Why a command about events stopped.
#[derive(Debug, thiserror::Error)]
pub enum EventCommandError {
    /// A file cannot be read.
    #[error("cannot read {file}: {reason}")]
    Read {
        /// As on the command line.
        file: String,
        /// What the system said.
        reason: io::Error,
    },
    /// The server cannot be used.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// Nobody answered the publish.
    #[error(
        "no stream captures the subject {subject}: stream {stream} has to exist and to list it, see `meet-projector \
         nats check`"
    )]
    NoStream {
        /// The subject of the event.
        subject: String,
        /// The stream we expected there.
        stream: String,
    },
    /// The publish failed. Publishing again is safe: the ids stay the same.
    #[error("event {id} was not stored on {subject} in stream {stream}: {reason}")]
    Publish {
        /// The event.
        id: String,
        /// Its subject.
        subject: String,
        /// The stream we expected there.
        stream: String,
        /// What the client said.
        reason: PublishError,
    },
    /// The output cannot be written.
    #[error("cannot write the result: {0}")]
    Write(#[from] io::Error),
}

impl From<EventCommandError> for CommandError {
    fn from(error: EventCommandError) -> Self {
        match error {
            EventCommandError::Write(error) => error.into(),
            EventCommandError::Nats(error) => Self::of(&error, error.exit_code()),
            error => Self::failed(error.to_string()),
        }
    }
}

/// Runs the command. Only `publish` needs settings: those of NATS.
pub async fn run(
    command: &EventCommand,
    environment: &BTreeMap<String, String>,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        EventCommand::Validate(files) => Ok(validate(files, output, out)?),
        EventCommand::Publish(files) => {
            let config = Config::load(environment, Need::Nats)?.nats;
            let Some(ready) = publish::ready(files, &config.subjects, output, out)? else { return Ok(Exit::No) };
            let connection = connect(&config, "meet-projector event publish").await.map_err(EventCommandError::from)?;
            let jetstream = jetstream::new(connection.client);
            Ok(publish::publish(ready, &jetstream, &config.stream, output, out).await?)
        }
    }
}

fn validate(files: &Files, output: Output, out: &mut (dyn Write + Send)) -> Result<Exit, EventCommandError> {
    let mut events = Vec::new();
    let mut invalid = 0;
    for found in files::read_all(&files.files)? {
        let decoded = decode_unpublished(&found.payload);
        invalid += usize::from(decoded.is_err());
        match output {
            Output::Human => writeln!(out, "{}", sentence(&found.place, &decoded))?,
            Output::Json => events.push(verdict(&found.place, &decoded)),
        }
    }
    if output == Output::Json {
        print::json(out, &json!({"valid": events.len() - invalid, "invalid": invalid, "events": events}))?;
    }
    Ok(if invalid == 0 { Exit::Ok } else { Exit::No })
}

fn sentence(place: &str, decoded: &Result<SessionEvent, Refused>) -> String {
    match decoded {
        Ok(event) => format!("{place}: ok, {} version {} {}", event.session, event.version, event.change.as_str()),
        Err(refused) => format!("{place}: {}", refused.reason),
    }
}

fn verdict(place: &str, decoded: &Result<SessionEvent, Refused>) -> Value {
    match decoded {
        Ok(event) => json!({"place": place, "valid": true, "id": event.event_id}),
        Err(refused) => json!({"place": place, "valid": false, "class": refused.class, "reason": refused.reason}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validated(name: &str, content: &str, output: Output) -> (Exit, String) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        let mut out = Vec::new();
        let exit = validate(&Files { files: vec![file] }, output, &mut out).unwrap();
        let prefix = format!("{}/", folder.path().display());
        (exit, String::from_utf8(out).unwrap().replace(&prefix, ""))
    }

    const GOOD: &str = include_str!("../../schemas/examples/valid/private-scheduled.json");
    const CANCEL: &str = include_str!("../../schemas/examples/valid/canceled-without-details.json");
    const BAD: &str = include_str!("../../schemas/examples/invalid/version-zero.json");

    fn on_one_line(json: &str) -> String {
        serde_json::from_str::<Value>(json).unwrap().to_string()
    }

    #[test]
    fn a_file_holds_one_event_an_array_or_one_a_line() {
        let (exit, text) = validated("one.json", GOOD, Output::Human);
        assert_eq!(exit, Exit::Ok);
        insta::assert_snapshot!(text, @"one.json: ok, ses_8Kq2 version 1 scheduled");

        let (exit, text) = validated("array.json", &format!("[{GOOD},\n{BAD},{CANCEL}]"), Output::Human);
        assert_eq!(exit, Exit::No);
        insta::assert_snapshot!(text, @"
        array.json:1: ok, ses_8Kq2 version 1 scheduled
        array.json:2: data.version is 0, but has to be a whole number from 1 to 9007199254740991
        array.json:3: ok, ses_8Kq2 version 4 canceled
        ");

        let lines = format!("{}\n\n{}\n{{\"specversion\":\r\n", on_one_line(GOOD), on_one_line(CANCEL));
        let (exit, text) = validated("lines.jsonl", &lines, Output::Human);
        assert_eq!(exit, Exit::No);
        insta::assert_snapshot!(text, @"
        lines.jsonl:1: ok, ses_8Kq2 version 1 scheduled
        lines.jsonl:3: ok, ses_8Kq2 version 4 canceled
        lines.jsonl:4: the payload is JSON that ends too early, after 15 bytes inside specversion; send all of it
        ");
    }

    #[test]
    fn as_json_it_is_one_document() {
        let (exit, text) = validated("two.json", &format!("[{GOOD},{BAD}]"), Output::Json);
        assert_eq!(exit, Exit::No);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&document["valid"], &document["invalid"]), (&json!(1), &json!(1)));
        assert_eq!(document["events"][0]["valid"], true);
        assert_eq!(document["events"][1]["place"], "two.json:2");
        assert_eq!(document["events"][1]["class"], "bad_value");
    }

    #[test]
    fn what_is_no_event_at_all_gets_one_sentence() {
        for (content, words) in [("", "is empty"), ("[1, 2", "ends too early"), ("# Notes\n\nhello\n", "is not JSON")] {
            let (exit, text) = validated("x", content, Output::Human);
            assert_eq!((exit, text.lines().count()), (Exit::No, 1));
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let files = Files { files: vec!["no/such/file.json".into()] };
        let error = validate(&files, Output::Human, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("cannot read no/such/file.json: "), "{error}");
    }
}
