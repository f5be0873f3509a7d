//! Bodies of requests: the fields we own and nothing else.
//!
//! Left alone are reminders, colours, location and whatever the teacher adds. The `guests…` flags go with the insert
//! only: on a patch they would fail with `forbiddenForNonOrganizer` where somebody moved the event.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::guests::{self, Merged};
use crate::google::Wanted;
use crate::model::{EventId, UnixMillis};

/// The form of the markers; a reader that meets a higher one must leave the event alone.
const MARKER_VERSION: &str = "1";

/// A member of a body that may be missing.
#[derive(Serialize)]
#[serde(untagged)]
enum Member<T> {
    /// Not sent, so it stays as it is; untagged, it would be `null`, and is skipped before that.
    LeftOut,
    /// Sent as `null`, so it is cleared.
    Cleared,
    /// Sent.
    Set(T),
}

impl<T> Member<T> {
    fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }

    fn of_insert(value: Option<T>) -> Self {
        value.map_or(Self::LeftOut, Self::Set)
    }

    fn of_patch(value: Option<T>) -> Self {
        value.map_or(Self::Cleared, Self::Set)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    summary: &'a str,
    #[serde(skip_serializing_if = "Member::is_left_out")]
    description: Member<&'a str>,
    start: Moment,
    end: Moment,
    transparency: &'static str,
    #[serde(skip_serializing_if = "Member::is_left_out")]
    source: Member<Source<'a>>,
    extended_properties: ExtendedProperties<'a>,
    #[serde(flatten)]
    guest_rights: Option<GuestRights>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attendees: Option<&'a [Value]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    conference_data: Option<ConferenceData<'a>>,
}

/// `start` or `end`. Google merges these objects on a patch, so an all-day event becomes a timed one only when `date`
/// is cleared in so many words.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Moment {
    date_time: String,
    time_zone: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    date: Option<()>,
}

impl Moment {
    fn new(at: UnixMillis, time_zone: &'static str, clears_date: bool) -> Self {
        Self { date_time: at.to_rfc3339(), time_zone, date: clears_date.then_some(()) }
    }
}

#[derive(Serialize)]
struct Source<'a> {
    title: &'a str,
    url: &'a str,
}

#[derive(Serialize)]
struct ExtendedProperties<'a> {
    private: Markers<'a>,
}

/// How we know our events again. Keys have at most 44 characters and values 1,024, or Google cuts them silently.
#[derive(Serialize)]
struct Markers<'a> {
    #[serde(rename = "mpV")]
    version: &'static str,
    #[serde(rename = "mpEnv")]
    environment: &'a str,
    #[serde(rename = "mpSession")]
    session: &'a str,
    #[serde(rename = "mpKey")]
    generation: String,
    #[serde(rename = "mpHash")]
    hash: &'a str,
    #[serde(rename = "mpGuests", skip_serializing_if = "Option::is_none")]
    guests: Option<&'a str>,
}

impl<'a> Markers<'a> {
    fn new(wanted: &'a Wanted, guests: Option<&'a str>) -> Self {
        Self {
            version: MARKER_VERSION,
            environment: &wanted.environment,
            session: &wanted.session,
            generation: wanted.generation.to_string(),
            hash: &wanted.hash,
            guests,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuestRights {
    guests_can_modify: bool,
    guests_can_invite_others: bool,
    guests_can_see_other_guests: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConferenceData<'a> {
    create_request: CreateRequest<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CreateRequest<'a> {
    request_id: &'a str,
    conference_solution_key: SolutionKey,
}

#[derive(Serialize)]
struct SolutionKey {
    #[serde(rename = "type")]
    kind: &'static str,
}

impl<'a> ConferenceData<'a> {
    fn new(request_id: &'a str) -> Self {
        let conference_solution_key = SolutionKey { kind: "hangoutsMeet" };
        Self { create_request: CreateRequest { request_id, conference_solution_key } }
    }
}

fn source(wanted: &Wanted) -> Option<Source<'_>> {
    wanted.url.as_deref().map(|url| Source { title: &wanted.title, url })
}

fn to_bytes(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("strings, flags and JSON values always serialise")
}

/// The body of `events.insert`.
pub(super) fn insert(id: &EventId, wanted: &Wanted, conference_request: Option<&str>) -> Vec<u8> {
    let merged = wanted.attendees.as_deref().map(|attendees| guests::merge(&Value::Null, attendees));
    to_bytes(&Body {
        id: Some(id.as_str()),
        summary: &wanted.title,
        description: Member::of_insert(wanted.description.as_deref()),
        start: Moment::new(wanted.starts_at, wanted.time_zone, false),
        end: Moment::new(wanted.ends_at, wanted.time_zone, false),
        transparency: "opaque",
        source: Member::of_insert(source(wanted)),
        extended_properties: ExtendedProperties {
            private: Markers::new(wanted, merged.as_ref().map(|merged| merged.marker.as_str())),
        },
        guest_rights: Some(GuestRights {
            guests_can_modify: false,
            guests_can_invite_others: false,
            guests_can_see_other_guests: false,
        }),
        attendees: merged.as_ref().map(|merged| merged.attendees.as_slice()),
        conference_data: conference_request.map(ConferenceData::new),
    })
}

/// The body of `events.patch`; what we own and is not wanted is cleared with `null`.
pub(super) fn patch(wanted: &Wanted, guests: Option<&Merged>) -> Vec<u8> {
    to_bytes(&Body {
        id: None,
        summary: &wanted.title,
        description: Member::of_patch(wanted.description.as_deref()),
        start: Moment::new(wanted.starts_at, wanted.time_zone, true),
        end: Moment::new(wanted.ends_at, wanted.time_zone, true),
        transparency: "opaque",
        source: Member::of_patch(source(wanted)),
        extended_properties: ExtendedProperties {
            private: Markers::new(wanted, guests.map(|merged| merged.marker.as_str())),
        },
        guest_rights: None,
        attendees: guests.map(|merged| merged.attendees.as_slice()),
        conference_data: None,
    })
}

/// The body of the `events.patch` that asks for a conference.
pub(super) fn add_conference(request_id: &str) -> Vec<u8> {
    to_bytes(&json!({ "conferenceData": ConferenceData::new(request_id) }))
}

/// The body of the `events.update` that undeletes: the tombstone as read, `sequence` and conference included (what is
/// not sent is cleared), with `status` and the fields we own on top.
pub(super) fn restore(tombstone: Value, wanted: &Wanted) -> Vec<u8> {
    let merged = wanted.attendees.as_deref().map(|attendees| guests::merge(&tombstone, attendees));
    let Value::Object(mut event) = tombstone else { unreachable!("an event was read from it") };
    event.insert("status".into(), "confirmed".into());
    event.insert("summary".into(), wanted.title.clone().into());
    set(&mut event, "description", wanted.description.clone().map(Value::from));
    // Replaced as a whole, so that no `date` stays.
    event.insert("start".into(), to_value(&Moment::new(wanted.starts_at, wanted.time_zone, false)));
    event.insert("end".into(), to_value(&Moment::new(wanted.ends_at, wanted.time_zone, false)));
    event.insert("transparency".into(), "opaque".into());
    set(&mut event, "source", source(wanted).map(|source| to_value(&source)));
    let markers = to_value(&Markers::new(wanted, merged.as_ref().map(|merged| merged.marker.as_str())));
    if let Value::Object(markers) = markers {
        object(object(&mut event, "extendedProperties"), "private").extend(markers);
    }
    if let Some(merged) = merged {
        event.insert("attendees".into(), merged.attendees.into());
    }
    to_bytes(&event)
}

fn to_value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("strings always serialise")
}

fn set(event: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        Some(value) => event.insert(name.into(), value),
        None => event.remove(name),
    };
}

/// The object under `name`, made where it is missing.
fn object<'a>(parent: &'a mut Map<String, Value>, name: &str) -> &'a mut Map<String, Value> {
    let child = parent.entry(name).or_insert_with(|| json!({}));
    if !child.is_object() {
        *child = json!({});
    }
    child.as_object_mut().expect("it was made an object")
}
