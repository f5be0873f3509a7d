//! The events of files, each still as bytes, so that a broken one gets the service's own sentence.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Map, Value};

use super::EventCommandError;

/// One event as it stands in a file.
pub(super) struct Found {
    /// The file, with the number of the line or array element where it holds several.
    pub(super) place: String,
    pub(super) payload: Bytes,
}

pub(super) fn read_all(files: &[PathBuf]) -> Result<Vec<Found>, EventCommandError> {
    let mut events = Vec::new();
    for file in files {
        let is_stdin = file == Path::new("-");
        let name = if is_stdin { "stdin".to_owned() } else { file.display().to_string() };
        let mut bytes = Vec::new();
        let read = if is_stdin {
            io::stdin().lock().read_to_end(&mut bytes)
        } else {
            std::fs::File::open(file).and_then(|mut file| file.read_to_end(&mut bytes))
        };
        match read {
            Ok(_) => events.extend(split(&name, bytes)),
            Err(reason) => return Err(EventCommandError::Read { file: name, reason }),
        }
    }
    Ok(events)
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
    let lines: Vec<(usize, &[u8])> = bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .collect();
    // One a line is what it is if the first line is a whole object and not the only one.
    let is_object = |text: &[u8]| serde_json::from_slice::<Map<String, Value>>(text).is_ok();
    match lines.as_slice() {
        [(_, first), _, ..] if is_object(first) => {
            lines.into_iter().map(|(index, line)| numbered(index + 1, line.to_vec())).collect()
        }
        _ => vec![Found { place: name.to_owned(), payload: bytes.into() }],
    }
}
