//! The sentences: what was found, where, and what to send instead.

use std::fmt::Write;

use serde_json::error::Category;

use super::wire::Keys;
use crate::model::{InvalidValue, SessionId};
use crate::store::Refused;

/// The words of [`Refused::class`].
pub(super) mod class {
    pub(in crate::event) const OVERSIZED: &str = "oversized";
    pub(in crate::event) const EMPTY: &str = "empty";
    pub(in crate::event) const NOT_UTF8: &str = "not_utf8";
    pub(in crate::event) const NOT_JSON: &str = "not_json";
    pub(in crate::event) const TOO_DEEP: &str = "too_deep";
    pub(in crate::event) const UNKNOWN_SHAPE: &str = "unknown_shape";
    pub(in crate::event) const UNSUPPORTED_SPECVERSION: &str = "unsupported_specversion";
    pub(in crate::event) const UNKNOWN_TYPE: &str = "unknown_type";
    pub(in crate::event) const BAD_SUBJECT: &str = "bad_subject";
    pub(in crate::event) const SESSION_MISMATCH: &str = "session_mismatch";
    pub(in crate::event) const CHANGE_MISMATCH: &str = "change_mismatch";
    pub(in crate::event) const MISSING_FIELD: &str = "missing_field";
    pub(in crate::event) const DUPLICATE_FIELD: &str = "duplicate_field";
    pub(in crate::event) const WRONG_TYPE: &str = "wrong_type";
    pub(in crate::event) const BAD_VALUE: &str = "bad_value";
    pub(in crate::event) const UNKNOWN_KIND: &str = "unknown_kind";
    pub(in crate::event) const UNKNOWN_TIME_ZONE: &str = "unknown_time_zone";
    pub(in crate::event) const ENDS_BEFORE_START: &str = "ends_before_start";
    pub(in crate::event) const TOO_MANY_ATTENDEES: &str = "too_many_attendees";
}

/// The longest sentence, in characters. Ours are shorter; this holds where quoted input needs many escapes.
const REASON_CHARS_MAX: usize = 400;

/// The most of a message that a sentence repeats in one place, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// A [`Refused`] that does not know its session yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) class: &'static str,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(class: &'static str, reason: String) -> Self {
        Self { class, reason }
    }

    /// A value that a type of `model` would not take; its sentence starts with the value.
    pub(super) fn invalid(class: &'static str, path: &str, field: &str, why: &InvalidValue) -> Self {
        Self::new(class, format!("{path}{field} {why}"))
    }

    /// A required field that is absent or `null`.
    pub(super) fn missing(path: &str, field: &str) -> Self {
        let or_null = if path.starts_with("header") { "" } else { " or null" };
        Self::new(class::MISSING_FIELD, format!("{path}{field} is missing{or_null}; send {}", expected(field)))
    }

    pub(super) fn unknown_shape(keys: &Keys) -> Self {
        if !keys.is_object {
            return Self::new(class::WRONG_TYPE, "the payload is JSON, but has to be a JSON object".to_owned());
        }
        Self::new(
            class::UNKNOWN_SHAPE,
            "the payload is neither a CloudEvent (specversion is missing) nor a session (sessionId is missing); \
             send a structured CloudEvent as in schemas/session-event.schema.json"
                .to_owned(),
        )
    }

    /// Where and why serde stopped.
    pub(super) fn json(path: &str, error: &serde_json::Error, length: usize) -> Self {
        let whole = error.to_string();
        let place = format!(" at line {} column {}", error.line(), error.column());
        let message = whole.strip_suffix(&place).unwrap_or(&whole);
        let path = if path == "." { "the payload".to_owned() } else { clipped(path) };
        match error.classify() {
            Category::Eof => Self::new(
                class::NOT_JSON,
                format!("the payload is JSON that ends too early, after {length} bytes inside {path}; send all of it"),
            ),
            Category::Syntax | Category::Io if message.starts_with("recursion") => too_deep(),
            Category::Syntax | Category::Io if message.starts_with("number out of range") => Self::new(
                class::BAD_VALUE,
                format!("{path} is a number too large to be read; send {}", expected(last(&path))),
            ),
            Category::Syntax | Category::Io => Self::new(
                class::NOT_JSON,
                format!("the payload is not JSON: {}{place}, inside {path}; send valid JSON", clipped(message)),
            ),
            Category::Data => Self::data(&path, message),
        }
    }

    fn data(path: &str, message: &str) -> Self {
        if let Some(field) = message.strip_prefix("duplicate field ") {
            let field = field.trim_matches('`');
            let path = match path.rsplit_once('.') {
                Some((parent, last)) if last == field => format!("{parent}."),
                _ if path == field || path == "the payload" => String::new(),
                _ => format!("{path}."),
            };
            let reason = format!("{path}{field} is there twice; send it once");
            return Self::new(class::DUPLICATE_FIELD, reason);
        }
        let (class, rest) = match message.strip_prefix("invalid value: ") {
            Some(rest) => (class::BAD_VALUE, rest),
            None => (class::WRONG_TYPE, message.strip_prefix("invalid type: ").unwrap_or(message)),
        };
        // From the right: what was found may hold these words, what is expected is ours.
        let reason = match rest.rsplit_once(", expected ") {
            // A whole text in the place of an object may be anything, such as a guest's address: it is not repeated.
            Some((found, expected)) => {
                let expected = if expected == "a sequence" { "an array" } else { expected };
                // A text in the place of an object may be anything, such as a guest's address: it is not repeated.
                let is_private = found.starts_with("string ") && matches!(expected, "an array" | "an object");
                let found = if is_private { "a string".to_owned() } else { json_words(found) };
                format!("{path} is {found}, but has to be {expected}")
            }
            None => format!("{path}: {}", clipped(rest)),
        };
        Self::new(class, reason)
    }

    /// Adds the session: the subject's, else the one the body names, if it can be read at all.
    pub(super) fn into_refused(self, routed: Option<SessionId>, payload: &[u8]) -> Refused {
        let session = routed.or_else(|| named_in(payload));
        Refused { class: self.class, reason: limited(self.reason, REASON_CHARS_MAX), session }
    }
}

/// serde's name of what it found, in the words of JSON.
fn json_words(found: &str) -> String {
    match found.split_once(' ') {
        _ if found == "sequence" => "an array".to_owned(),
        _ if found == "map" => "an object".to_owned(),
        Some(("string", text)) => clipped(text),
        Some(("integer", number)) => clipped(number.trim_matches('`')),
        Some(("boolean", word)) => clipped(word.trim_matches('`')),
        Some(("floating", rest)) => clipped(rest.trim_start_matches("point ").trim_matches('`')),
        _ => clipped(found),
    }
}

pub(super) fn too_deep() -> Fault {
    let reason = format!("the payload nests objects or arrays more than {} deep; send flat fields", super::DEPTH_MAX);
    Fault::new(class::TOO_DEEP, reason)
}

/// What to send where a field is missing or cannot be read.
fn expected(field: &str) -> &'static str {
    match field {
        "specversion" => "\"1.0\"",
        "id" => "the event's own id, 1 to 255 characters",
        "source" => "the publisher's name, such as /services/bookings",
        "type" => "bookings.SessionScheduled.v1, bookings.SessionRescheduled.v1 or bookings.SessionCanceled.v1",
        "data" => "the whole session after the change as an object",
        "sessionId" | "teacherId" => "1 to 64 characters of A-Z a-z 0-9 _ -",
        "version" => "the booking row's counter, a whole number from 1 to 9007199254740991",
        "kind" => "private, group or course",
        "title" => "1 to 1000 characters",
        "startsAt" | "endsAt" => "an RFC 3339 time with an offset, such as 2026-12-01T09:00:00Z",
        "timeZone" => "a name of the IANA database, such as Europe/Madrid",
        "email" => "an e-mail address",
        _ => "a smaller one",
    }
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The text in quotes with everything unprintable escaped, at most 80 characters of it.
pub(super) fn shown(text: &str) -> String {
    let mut quoted = String::from('"');
    quoted.push_str(&clipped(text));
    quoted.push('"');
    quoted
}

/// The same without quotes.
fn clipped(text: &str) -> String {
    let mut clipped = String::new();
    let mut room = SHOWN_CHARS_MAX - 1;
    for character in text.chars() {
        let escaped = character.is_control() || !printable(character);
        let length = if escaped { character.escape_unicode().len() } else { 1 };
        if length > room {
            clipped.push('…');
            return clipped;
        }
        room -= length;
        if escaped {
            // Writing to a String cannot fail.
            write!(clipped, "{}", character.escape_unicode()).expect("a String takes everything");
        } else {
            clipped.push(character);
        }
    }
    clipped
}

/// Not one of the characters that turn a line around or hide in it.
fn printable(character: char) -> bool {
    !matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

fn limited(text: String, chars_max: usize) -> String {
    if text.len() <= chars_max || text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max - 1).chain(['…']).collect()
}

/// The session that a refused body names; only the way of a bad message, so a second reading does not matter.
fn named_in(payload: &[u8]) -> Option<SessionId> {
    if payload.len() > super::PAYLOAD_BYTES_MAX {
        return None;
    }
    let value: serde_json::Value = serde_json::from_slice(payload).ok()?;
    ["/data/sessionId", "/sessionId", "/data/data/sessionId", "/subject"]
        .into_iter()
        .filter_map(|pointer| value.pointer(pointer)?.as_str())
        .find_map(|text| SessionId::parse(text).ok())
}
