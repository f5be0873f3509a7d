//! What each value must be. Paths in the sentences are those of the payload: `inside` is the path of the object with
//! its dot, such as `data.`, or what stands before the name of a header.

use std::borrow::Cow;

use super::fault::{Fault, class, shown};
use super::headers::{Headers, percent_decoded};
use super::wire::{Data, Envelope, Object, Person, Text, Version};
use super::{ATTENDEES_MAX, Change, Details};
use crate::model::{Attendee, InvalidValue, Kind, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};

/// What the envelope says, or what stands in for it.
pub(super) struct Attributes<'a> {
    /// What stands before an attribute's name in sentences.
    pub(super) path: &'static str,
    pub(super) id: String,
    pub(super) source: Option<String>,
    pub(super) change: Change,
    /// Whether `change` comes from a type, not from the subject.
    pub(super) has_type: bool,
    /// The attribute `subject`; must be the session.
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) occurred_at: Option<UnixMillis>,
    pub(super) traceparent: Option<Cow<'a, str>>,
}

/// The attributes of either mode before any rule.
struct Raw<'a> {
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    type_name: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    traceparent: Option<Cow<'a, str>>,
}

/// What `data` says.
pub(super) struct Body {
    pub(super) session: SessionId,
    pub(super) version: SessionVersion,
    pub(super) teacher: TeacherId,
    pub(super) details: Option<Details>,
}

/// Splits a structured event into its attributes and its data. The extension `traceparent` was captured when the row
/// was written, so it goes before the header, which is only about the hop.
pub(super) fn envelope<'a>(
    envelope: Envelope<'a>,
    inside: &'static str,
    headers: &Headers<'a>,
) -> Result<(Attributes<'a>, Option<Data<'a>>), Fault> {
    let raw = Raw {
        specversion: envelope.specversion.map(|text| text.0),
        id: envelope.id.map(|text| text.0),
        source: envelope.source.map(|text| text.0),
        type_name: envelope.type_name.map(|text| text.0),
        subject: envelope.subject.map(|text| text.0),
        time: envelope.time.map(|text| text.0),
        traceparent: envelope.traceparent.map(|text| text.0).or(headers.traceparent.map(Cow::Borrowed)),
    };
    Ok((attributes(raw, inside)?, envelope.data.map(|data| data.0)))
}

/// The attributes of binary mode.
pub(super) fn binary<'a>(headers: &Headers<'a>) -> Result<Attributes<'a>, Fault> {
    let decoded = |name: &str, value: Option<&'a str>| match value.map(percent_decoded) {
        Some(None) => {
            let reason = format!("header {name} is not UTF-8 once percent-decoded; percent-encode UTF-8");
            Err(Fault::new(class::BAD_VALUE, reason))
        }
        value => Ok(value.flatten()),
    };
    let raw = Raw {
        specversion: decoded("ce-specversion", headers.ce_specversion)?,
        id: decoded("ce-id", headers.ce_id)?,
        source: decoded("ce-source", headers.ce_source)?,
        type_name: decoded("ce-type", headers.ce_type)?,
        subject: decoded("ce-subject", headers.ce_subject)?,
        time: decoded("ce-time", headers.ce_time)?,
        traceparent: headers.ce_traceparent.or(headers.traceparent).map(Cow::Borrowed),
    };
    attributes(raw, "header ce-")
}

fn attributes<'a>(raw: Raw<'a>, path: &'static str) -> Result<Attributes<'a>, Fault> {
    let present = |value: Option<Cow<'a, str>>, field: &str| value.ok_or_else(|| Fault::missing(path, field));
    let specversion = present(raw.specversion, "specversion")?;
    if specversion != "1.0" {
        let reason = format!("{path}specversion is {}, but has to be \"1.0\"", shown(&specversion));
        return Err(Fault::new(class::UNSUPPORTED_SPECVERSION, reason));
    }
    let id = present(raw.id, "id")?;
    if !is_id(&id) {
        let reason = format!("{path}id is {}, but has to be 1 to 255 characters without NUL", shown(&id));
        return Err(Fault::new(class::BAD_VALUE, reason));
    }
    let source = text(present(raw.source, "source")?, path, "source", 1, 1000)?;
    let type_name = present(raw.type_name, "type")?;
    let change = Change::of_type(&type_name).ok_or_else(|| {
        let reason = format!(
            "{path}type {} is not known here; send bookings.SessionScheduled.v1, bookings.SessionRescheduled.v1 or \
             bookings.SessionCanceled.v1",
            shown(&type_name)
        );
        Fault::new(class::UNKNOWN_TYPE, reason)
    })?;
    Ok(Attributes {
        path,
        id: id.into_owned(),
        source: Some(source.into_owned()),
        change,
        has_type: true,
        subject: raw.subject,
        occurred_at: raw.time.map(|time| moment(&time, path, "time")).transpose()?,
        traceparent: raw.traceparent,
    })
}

/// Whether a text may be the id of an event: 1 to 255 characters, without NUL.
pub(super) fn is_id(text: &str) -> bool {
    is_text(text, 1, 255)
}

/// Checks the session. Fields that a cancel may leave out are checked where they are there.
pub(super) fn body(data: Data<'_>, change: Change, inside: &str) -> Result<Body, Fault> {
    let invalid = |field: &'static str| move |why: InvalidValue| Fault::invalid(class::BAD_VALUE, inside, field, &why);

    let session = SessionId::parse(present(data.session_id, inside, "sessionId")?).map_err(invalid("sessionId"))?;
    let Version(version) = data.version.ok_or_else(|| Fault::missing(inside, "version"))?;
    let teacher = TeacherId::parse(present(data.teacher_id, inside, "teacherId")?).map_err(invalid("teacherId"))?;

    let kind = data.kind.map(|text| kind(&text.0, inside)).transpose()?;
    let title = data.title.map(|title| text(title.0, inside, "title", 1, 1000)).transpose()?;
    let description = data.description.map(|text_| text(text_.0, inside, "description", 0, 8000)).transpose()?;
    let starts_at = data.starts_at.map(|time| moment(&time.0, inside, "startsAt")).transpose()?;
    let ends_at = data.ends_at.map(|time| moment(&time.0, inside, "endsAt")).transpose()?;
    let time_zone = data.time_zone.map(|name| time_zone(&name.0, inside)).transpose()?;
    let attendees = attendees(data.attendees.unwrap_or_default(), inside)?;
    let url = data.url.map(|url| page(url.0, inside)).transpose()?;

    if let (Some(starts_at), Some(ends_at)) = (starts_at, ends_at)
        && ends_at <= starts_at
    {
        let reason = format!("{inside}endsAt {ends_at} is not after {inside}startsAt {starts_at}; send a later end");
        return Err(Fault::new(class::ENDS_BEFORE_START, reason));
    }

    let missing = match (kind, title, starts_at, ends_at, time_zone) {
        (Some(kind), Some(title), Some(starts_at), Some(ends_at), Some(time_zone)) => {
            let details = Details {
                kind,
                title: title.into_owned(),
                description: description.and_then(unless_empty),
                starts_at,
                ends_at,
                time_zone,
                attendees,
                url: url.map(Cow::into_owned),
            };
            return Ok(Body { session, version, teacher, details: Some(details) });
        }
        _ if change == Change::Canceled => return Ok(Body { session, version, teacher, details: None }),
        (None, ..) => "kind",
        (_, None, ..) => "title",
        (_, _, None, ..) => "startsAt",
        (_, _, _, None, _) => "endsAt",
        (_, _, _, _, None) => "timeZone",
    };
    Err(Fault::missing(inside, missing))
}

fn present<'a>(value: Option<Text<'a>>, inside: &str, field: &str) -> Result<Cow<'a, str>, Fault> {
    value.map(|text| text.0).ok_or_else(|| Fault::missing(inside, field))
}

fn kind(text: &str, inside: &str) -> Result<Kind, Fault> {
    Kind::parse(text).ok_or_else(|| {
        let reason = format!("{inside}kind is {}, but has to be private, group or course", shown(text));
        Fault::new(class::UNKNOWN_KIND, reason)
    })
}

fn time_zone(name: &str, inside: &str) -> Result<TimeZone, Fault> {
    TimeZone::parse(name).map_err(|why| Fault::invalid(class::UNKNOWN_TIME_ZONE, inside, "timeZone", &why))
}

fn moment(text: &str, inside: &str, field: &str) -> Result<UnixMillis, Fault> {
    UnixMillis::parse_rfc3339(text).map_err(|why| Fault::invalid(class::BAD_VALUE, inside, field, &why))
}

/// A text of `min` to `max` characters without NUL.
fn text<'a>(text: Cow<'a, str>, inside: &str, field: &str, min: usize, max: usize) -> Result<Cow<'a, str>, Fault> {
    if is_text(&text, min, max) { Ok(text) } else { Err(not_text(&text, inside, field, min, max)) }
}

/// NUL is refused because PostgreSQL's `text` cannot hold it.
fn is_text(text: &str, min: usize, max: usize) -> bool {
    fits(text, min, max) && !text.contains('\0')
}

fn not_text(text: &str, inside: &str, field: &str, min: usize, max: usize) -> Fault {
    let reason = if fits(text, min, max) {
        format!("{inside}{field} holds a NUL character (\\u0000); leave it out")
    } else {
        let count = text.chars().count();
        format!("{inside}{field} has {count} characters, but has to have {min} to {max}")
    };
    Fault::new(class::BAD_VALUE, reason)
}

/// Whether there are `min` to `max` characters; bytes are counted first, as that is quicker and mostly decides.
fn fits(text: &str, min: usize, max: usize) -> bool {
    text.len() >= min && (text.len() <= max || text.chars().count() <= max)
}

fn unless_empty(text: Cow<'_, str>) -> Option<String> {
    (!text.is_empty()).then(|| text.into_owned())
}

fn attendees(people: Vec<Object<Person<'_>>>, inside: &str) -> Result<Vec<Attendee>, Fault> {
    if people.len() > ATTENDEES_MAX {
        let reason = format!("{inside}attendees has {} entries, but may have at most {ATTENDEES_MAX}", people.len());
        return Err(Fault::new(class::TOO_MANY_ATTENDEES, reason));
    }
    people.into_iter().enumerate().map(|(index, Object(person))| attendee(person, index, inside)).collect()
}

fn attendee(person: Person<'_>, index: usize, inside: &str) -> Result<Attendee, Fault> {
    // Built for a fault only.
    let path = || format!("{inside}attendees[{index}].");
    let email = person.email.ok_or_else(|| Fault::missing(&path(), "email"))?.0;
    if !is_email(&email) {
        // The address itself is not repeated: sentences reach logs, and addresses must not.
        let reason = format!(
            "{}email is not an address: one @ with something on either side, no spaces, at most 254 characters",
            path()
        );
        return Err(Fault::new(class::BAD_VALUE, reason));
    }
    let display_name = match person.display_name {
        Some(Text(name)) if is_text(&name, 0, 1000) => unless_empty(name),
        Some(Text(name)) => return Err(not_text(&name, &path(), "displayName", 0, 1000)),
        None => None,
    };
    Ok(Attendee { email: email.into_owned(), display_name })
}

/// RFC 5321 §4.5.3.1.3 for the length. No more is checked: only the mail server of the address knows the rest.
fn is_email(text: &str) -> bool {
    let allowed = |byte: u8| byte > b' ' && byte != 0x7f;
    fits(text, 3, 254)
        && text.bytes().all(allowed)
        && text.split_once('@').is_some_and(|(user, host)| !user.is_empty() && !host.is_empty() && !host.contains('@'))
}

/// A web page. Google refuses an event whose `source.url` it cannot read, so it has to parse.
fn page<'a>(text: Cow<'a, str>, inside: &str) -> Result<Cow<'a, str>, Fault> {
    let is_web = text.starts_with("https://") || text.starts_with("http://");
    let is_plain = text.bytes().all(|byte| byte > b' ' && byte != 0x7f);
    if is_web && is_plain && fits(&text, 1, 2048) && url::Url::parse(&text).is_ok() {
        return Ok(text);
    }
    let reason = format!(
        "{inside}url {} is not a web address: https:// or http://, no spaces, at most 2048 characters",
        shown(&text)
    );
    Err(Fault::new(class::BAD_VALUE, reason))
}
