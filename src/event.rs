//! The wire forms of `schemas/` → [`SessionEvent`]; nothing behind this module knows how an event looked on the wire.
//!
//! Tolerant in what comes in: four shapes are read, in the order of [`decode`]. Strict about what they say: an event
//! either keeps every rule or becomes a [`Refused`] with one sentence for the person who has to mend the publisher.
//! Unknown fields are ignored, because within `.v1` publishers may add some.
//!
//! The parts: [`encode()`] writes the one shape we ask publishers for; inside, `wire` holds the JSON as serde reads it,
//! `headers` what counts among the headers, `rules` what a value must be, `fault` the sentences.
//!
//! Classes of [`Refused`]: `oversized`, `empty`, `not_utf8`, `not_json`, `too_deep` (the bytes); `unknown_shape`,
//! `unsupported_specversion`, `unknown_type`, `bad_subject`, `session_mismatch`, `change_mismatch` (the envelope);
//! `missing_field`, `duplicate_field`, `wrong_type`, `bad_value`, `unknown_kind`, `unknown_time_zone`,
//! `ends_before_start`, `too_many_attendees` (the fields).

use std::borrow::Cow;

use crate::model::{Attendee, Kind, Place, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};
use crate::store::Refused;

mod encode;
mod fault;
mod headers;
mod rules;
mod wire;

#[cfg(test)]
mod tests;

pub use encode::{encode, subject, subject_under};
pub use headers::pairs;

use fault::{Fault, class, shown};
use headers::Headers;
use rules::{Attributes, Body};
use wire::{Data, Envelope, Keys, Nested};

/// The largest payload that is read: 512 KiB, half of what a NATS server lets through by default. 300 attendees and the
/// longest description need a fifth of it.
pub const PAYLOAD_BYTES_MAX: usize = 512 * 1024;

/// How many objects and arrays may stand inside one another: as many as every JSON library reads (serde_json stops at
/// 128), counted over unknown fields too.
pub const DEPTH_MAX: usize = 127;

/// Guests of one session: 300, what Google Calendar allows without a Workspace edition that has more.
pub const ATTENDEES_MAX: usize = 300;

/// What happened to the session, from the event's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// `bookings.SessionScheduled.v1`
    Scheduled,
    /// `bookings.SessionRescheduled.v1`; for a session not seen yet it counts as scheduled.
    Rescheduled,
    /// `bookings.SessionCanceled.v1`
    Canceled,
}

impl Change {
    /// All changes: the last token of the subject, the type, and the type without its prefix and version.
    const NAMES: [(Self, &'static str, &'static str, &'static str); 3] = [
        (Self::Scheduled, "scheduled", "bookings.SessionScheduled.v1", "SessionScheduled"),
        (Self::Rescheduled, "rescheduled", "bookings.SessionRescheduled.v1", "SessionRescheduled"),
        (Self::Canceled, "canceled", "bookings.SessionCanceled.v1", "SessionCanceled"),
    ];

    /// The last token of the subject.
    pub const fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The CloudEvent type.
    pub const fn type_name(self) -> &'static str {
        Self::NAMES[self as usize].2
    }

    fn of_token(token: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|names| names.1 == token).map(|names| names.0)
    }

    fn of_type(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|names| names.2 == name || names.3 == name).map(|names| names.0)
    }
}

/// Which of the four accepted shapes a message had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shape {
    /// CloudEvents 1.0, structured JSON.
    Structured,
    /// CloudEvents 1.0, binary: attributes in `ce-*` headers.
    Binary,
    /// Nest's `{"pattern", "data"}`.
    Nest,
    /// The data alone, typed by the subject.
    Bare,
}

impl Shape {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Structured => "structured",
            Self::Binary => "binary",
            Self::Nest => "nest",
            Self::Bare => "bare",
        }
    }
}

/// What a lesson is and when: everything of an event that Google will show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Private, group or course.
    pub kind: Kind,
    /// 1 to 1,000 characters.
    pub title: String,
    /// 1 to 8,000 characters; an empty one counts as none.
    pub description: Option<String>,
    /// Start.
    pub starts_at: UnixMillis,
    /// End, after the start.
    pub ends_at: UnixMillis,
    /// The zone in which Google shows it.
    pub time_zone: TimeZone,
    /// At most 300.
    pub attendees: Vec<Attendee>,
    /// The session's page, `http` or `https`.
    pub url: Option<String>,
}

/// One booking event that keeps every rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEvent {
    /// The CloudEvent id, or one made from headers, stream and sequence for a bare message.
    pub event_id: String,
    /// The CloudEvent source; `None` for shapes that carry none.
    pub source: Option<String>,
    /// How it looked on the wire.
    pub shape: Shape,
    /// What happened.
    pub change: Change,
    /// The session.
    pub session: SessionId,
    /// The booking row's counter after the change.
    pub version: SessionVersion,
    /// Whose lesson it is after the change.
    pub teacher: TeacherId,
    /// The lesson after the change; a cancel may come without.
    pub details: Option<Details>,
    /// When the change was made, as the publisher says.
    pub occurred_at: Option<UnixMillis>,
    /// W3C trace context of the publisher.
    pub traceparent: Option<String>,
}

/// Reads the message that stands at `place`. `headers` are its `(name, value)` pairs in any order ([`pairs`] makes them
/// from async-nats's map); names are compared without case.
///
/// The shapes, in the order in which they are tried:
///
/// 1. structured: `Content-Type: application/cloudevents…`, or a JSON object with `specversion`;
/// 2. binary: header `ce-specversion` (the CloudEvents NATS binding; values percent-encoded);
/// 3. a JSON object of exactly `pattern` and `data`, as Nest's `ClientProxy.emit` sends it, around 1 or 4;
/// 4. bare: a JSON object with `sessionId`, its type taken from the subject's last token, its id from `Nats-Msg-Id`,
///    else from `place`.
///
/// The last two tokens of `subject` name session and change, and the body must agree with both.
///
/// # Errors
///
/// A [`Refused`] with one of the classes above and a sentence of at most 400 characters, of which at most 80 in a row
/// come from the message. Never panics, whatever the bytes.
pub fn decode<'h>(
    subject: &str,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    payload: &[u8],
    place: Place,
) -> Result<SessionEvent, Refused> {
    let route = Route::parse(subject);
    route
        .as_ref()
        .map_err(Clone::clone)
        .and_then(|route| read(Some((route, place)), headers, payload))
        .map_err(|fault| fault.into_refused(route.ok().map(|route| route.session), payload))
}

/// Reads a structured event that is not on the stream yet, such as one of a file: no subject to agree with.
pub fn decode_unpublished(payload: &[u8]) -> Result<SessionEvent, Refused> {
    read(None, [("Content-Type", "application/cloudevents+json")], payload)
        .map_err(|fault| fault.into_refused(None, payload))
}

/// What a subject says: its last two tokens.
struct Route<'s> {
    subject: &'s str,
    session: SessionId,
    change: Change,
}

impl<'s> Route<'s> {
    fn parse(subject: &'s str) -> Result<Self, Fault> {
        let bad = |why: String| Fault::new(class::BAD_SUBJECT, format!("the subject {} {why}", shown(subject)));
        let mut tokens = subject.rsplitn(3, '.');
        let (Some(change), Some(session)) = (tokens.next(), tokens.next()) else {
            return Err(bad("has to end in the session id and scheduled, rescheduled or canceled".into()));
        };
        let change = Change::of_token(change).ok_or_else(|| {
            bad(format!("ends in {}, but has to end in scheduled, rescheduled or canceled", shown(change)))
        })?;
        let session = SessionId::parse(session).map_err(|_| {
            bad(format!("has {} for a session id, which takes 1 to 64 characters of A-Z a-z 0-9 _ -", shown(session)))
        })?;
        Ok(Self { subject, session, change })
    }
}

fn read<'h>(
    at: Option<(&Route<'_>, Place)>,
    headers: impl IntoIterator<Item = (&'h str, &'h str)>,
    payload: &[u8],
) -> Result<SessionEvent, Fault> {
    let json = wire::text(payload)?;
    let headers = Headers::pick(headers)?;
    if headers.is_structured() {
        return structured(wire::parse::<Envelope>(json)?, "", Shape::Structured, at, &headers);
    }
    if headers.is_binary() {
        let data = wire::parse::<Data>(json)?;
        return finish(rules::binary(&headers)?, Some(data), "", Shape::Binary, at);
    }
    let keys = wire::parse_keys(json)?;
    if keys.has_specversion {
        structured(wire::parse::<Envelope>(json)?, "", Shape::Structured, at, &headers)
    } else if keys.is_nest_wrapper() && keys.inner.has_specversion {
        let wrapper = wire::parse::<Nested<Envelope>>(json)?;
        let envelope = wrapper.data.ok_or_else(|| Fault::missing("", "data"))?;
        structured(envelope.0, "data.", Shape::Nest, at, &headers)
    } else if keys.is_nest_wrapper() {
        let data = wire::parse::<Nested<Data>>(json)?.data;
        finish(bare(at, &headers)?, data.map(|data| data.0), "data.", Shape::Nest, at)
    } else if keys.has_session_id {
        let data = wire::parse::<Data>(json)?;
        finish(bare(at, &headers)?, Some(data), "", Shape::Bare, at)
    } else {
        Err(Fault::unknown_shape(&keys))
    }
}

/// `inside` is the path of the envelope in the payload: empty, or `data.` in Nest's wrapper.
fn structured(
    envelope: Envelope<'_>,
    inside: &'static str,
    shape: Shape,
    at: Option<(&Route<'_>, Place)>,
    headers: &Headers<'_>,
) -> Result<SessionEvent, Fault> {
    if envelope.data.is_none() && envelope.data_base64.is_some() {
        let reason = format!("{inside}data_base64 is not read; send the session as a JSON object in {inside}data");
        return Err(Fault::new(class::MISSING_FIELD, reason));
    }
    let (attributes, data) = rules::envelope(envelope, inside, headers)?;
    finish(attributes, data, if inside.is_empty() { "data." } else { "data.data." }, shape, at)
}

/// What stands in for the attributes of a CloudEvent where there is none: subject, `Nats-Msg-Id` and place.
fn bare<'a>(at: Option<(&Route<'_>, Place)>, headers: &Headers<'a>) -> Result<Attributes<'a>, Fault> {
    let (route, place) = at.ok_or_else(|| Fault::missing("", "specversion"))?;
    let from_place = || format!("{}-{}", place.epoch, place.sequence);
    Ok(Attributes {
        path: "",
        id: headers.message_id.filter(|id| rules::is_id(id)).map_or_else(from_place, str::to_owned),
        source: None,
        change: route.change,
        has_type: false,
        subject: None,
        occurred_at: None,
        traceparent: headers.traceparent.map(Cow::Borrowed),
    })
}

fn finish(
    attributes: Attributes<'_>,
    data: Option<Data<'_>>,
    inside: &'static str,
    shape: Shape,
    at: Option<(&Route<'_>, Place)>,
) -> Result<SessionEvent, Fault> {
    let data = data.ok_or_else(|| Fault::missing(inside.trim_end_matches("data."), "data"))?;
    let Body { session, version, teacher, details } = rules::body(data, attributes.change, inside)?;
    if let Some(subject) = &attributes.subject
        && subject != session.as_str()
    {
        let path = attributes.path;
        let reason = format!(
            "{path}subject {} is not {inside}sessionId {session}; set both to the session's id",
            shown(subject)
        );
        return Err(Fault::new(class::SESSION_MISMATCH, reason));
    }
    if let Some((route, _)) = at {
        agree(route, &session, &attributes, inside)?;
    }
    Ok(SessionEvent {
        event_id: attributes.id,
        source: attributes.source,
        shape,
        change: attributes.change,
        session,
        version,
        teacher,
        details,
        occurred_at: attributes.occurred_at,
        traceparent: attributes.traceparent.filter(|text| headers::is_traceparent(text)).map(Cow::into_owned),
    })
}

fn agree(route: &Route<'_>, session: &SessionId, attributes: &Attributes<'_>, inside: &str) -> Result<(), Fault> {
    if route.session != *session {
        let reason = format!(
            "{inside}sessionId {session} is not the session of the subject {}; publish every event under its own \
             session",
            shown(route.subject)
        );
        return Err(Fault::new(class::SESSION_MISMATCH, reason));
    }
    if attributes.has_type && route.change != attributes.change {
        let reason = format!(
            "{}type {} does not go with the subject {}; publish it on a subject that ends in {}",
            attributes.path,
            attributes.change.type_name(),
            shown(route.subject),
            attributes.change.as_str()
        );
        return Err(Fault::new(class::CHANGE_MISMATCH, reason));
    }
    Ok(())
}

impl Keys {
    fn is_nest_wrapper(&self) -> bool {
        self.has_pattern && self.has_data && self.count == 2
    }
}
