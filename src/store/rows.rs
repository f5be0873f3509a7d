//! Sessions and their rows, to columns and back.

use serde::{Deserialize, Serialize};

use super::Result;
use super::many::{Insert, Select, Type};
use super::sql::{Row, Value, by_session, columns, word, word_of};
use crate::event::Details;
use crate::model::{
    Attendee, Epoch, EventId, GoogleSub, Kind, MeetLink, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis,
};
use crate::plan::{Binding, Code, ConferenceState, Failure, Intent, MeetEvent, Phase, Want};
use crate::projection::{Head, Ranks, Session, Stamp, Status};
use crate::status::{Document, MeetStatus};

const STATUSES: [(Status, &str); 2] = [(Status::Scheduled, "scheduled"), (Status::Canceled, "canceled")];
const WANTS: [(Want, &str); 2] = [(Want::Present, "present"), (Want::Absent, "absent")];

columns! {
    /// Table `session`.
    SessionColumns of "session", inserted by INSERT_SESSIONS, replaced by REPLACE_SESSIONS, read by SESSIONS
    key {
        session_id: &'a str => Text,
    }
    set {
        head_epoch: i64 => Int,
        head_version: i64 => Int,
        head_sequence: i64 => Int,
        status: &'static str => Text,
        teacher_id: &'a str => Text,
        content_hash: &'a str => Text,
        details_epoch: Option<i64> => Int,
        details_version: Option<i64> => Int,
        details_sequence: Option<i64> => Int,
        kind: Option<&'static str> => Text,
        title: Option<&'a str> => Text,
        description: Option<&'a str> => Text,
        starts_at_ms: Option<i64> => Int,
        ends_at_ms: Option<i64> => Int,
        time_zone: Option<&'static str> => Text,
        attendees: Option<String> => Text,
        url: Option<&'a str> => Text,
        desired_hash: &'a str => Text,
        traceparent: Option<&'a str> => Text,
        published_at_ms: Option<i64> => Int,
        meet_status: &'static str => Text,
        document: &'a str => Text,
        document_revision: i64 => Int,
        document_updated_at_ms: i64 => Int,
        list_starts_at_ms: i64 => Int,
    }
}

columns! {
    /// Table `session_meet_event`, but for `woken_lease`, which only wake-ups write.
    EventColumns of "session_meet_event", inserted by INSERT_EVENTS, replaced by REPLACE_EVENTS, read by EVENTS
    key {
        session_id: &'a str => Text,
        ordinal: i64 => Int,
    }
    set {
        teacher_id: &'a str => Text,
        google_sub: Option<&'a str> => Text,
        calendar_id: Option<&'a str> => Text,
        generation: Option<i64> => Int,
        event_id: Option<&'a str> => Text,
        want: &'static str => Text,
        desired_revision: i64 => Int,
        phase: &'static str => Text,
        etag: Option<&'a str> => Text,
        ical_uid: Option<&'a str> => Text,
        written_hash: Option<&'a str> => Text,
        accepted_hash: Option<&'a str> => Text,
        observed_hash: Option<&'a str> => Text,
        meet_link: Option<&'a str> => Text,
        conference_state: &'static str => Text,
        conference_attempt: i64 => Int,
        conference_since_ms: Option<i64> => Int,
        intent_operation: Option<&'a str> => Text,
        intent_at_ms: Option<i64> => Int,
        insert_unclear_at_ms: Option<i64> => Int,
        taken_at_ms: Option<i64> => Int,
        confirmed_at_ms: Option<i64> => Int,
        late_checks: i64 => Int,
        refetches: i64 => Int,
        repairs: i64 => Int,
        repairs_since_ms: Option<i64> => Int,
        failure_code: Option<&'static str> => Text,
        failure_message: Option<&'a str> => Text,
        failure_since_ms: Option<i64> => Int,
        failure_attempts: Option<i64> => Int,
        settled: bool => Bool,
        next_attempt_at_ms: Option<i64> => Int,
    }
}

/// Inserts rows that are as [`MeetEvent::new`] makes them, as nearly all are when they are inserted: a fifth of the columns
/// of [`EventColumns`] is not the same for all. The values here are those of [`MeetEvent::new`].
pub(super) static INSERT_NEW_EVENTS: Insert = Insert {
    table: "session_meet_event",
    columns: &[
        ("session_id", Type::Text),
        ("ordinal", Type::Int),
        ("teacher_id", Type::Text),
        ("next_attempt_at_ms", Type::Int),
    ],
    constants: &[
        ("want", "'present'"),
        ("desired_revision", "1"),
        ("phase", "'new'"),
        ("conference_state", "'none'"),
        ("conference_attempt", "0"),
        ("late_checks", "0"),
        ("refetches", "0"),
        ("repairs", "0"),
        ("settled", "FALSE"),
    ],
    after: "",
};

/// Whether a row is as new.
pub(super) fn is_as_new(event: &MeetEvent) -> bool {
    event
        .next_attempt_at
        .is_some_and(|at| *event == MeetEvent::new(event.session.clone(), event.ordinal, event.teacher.clone(), at))
}

/// The values of a row for [`INSERT_NEW_EVENTS`].
pub(super) fn append_new_event(event: &MeetEvent, values: &mut Vec<Value>) {
    values.extend([
        event.session.as_str().into(),
        event.ordinal.into(),
        event.teacher.as_str().into(),
        event.next_attempt_at.into(),
    ]);
}

/// Changes what [`crate::plan::assign`] changes of a row that the database holds, and nothing else: a third of the columns
/// of [`EventColumns`]. The constants are never written; they stand in for columns that may not be empty.
pub(super) static ASSIGN_EVENTS: Insert = Insert {
    table: "session_meet_event",
    columns: &[
        ("session_id", Type::Text),
        ("ordinal", Type::Int),
        ("want", Type::Text),
        ("desired_revision", Type::Int),
        ("phase", Type::Text),
        ("refetches", Type::Int),
        ("failure_code", Type::Text),
        ("failure_message", Type::Text),
        ("failure_since_ms", Type::Int),
        ("failure_attempts", Type::Int),
        ("settled", Type::Bool),
        ("next_attempt_at_ms", Type::Int),
    ],
    constants: &[
        ("teacher_id", "''"),
        ("conference_state", "'none'"),
        ("conference_attempt", "0"),
        ("late_checks", "0"),
        ("repairs", "0"),
    ],
    after: "ON CONFLICT (session_id, ordinal) DO UPDATE SET want = excluded.want, \
            desired_revision = excluded.desired_revision, phase = excluded.phase, refetches = excluded.refetches, \
            failure_code = excluded.failure_code, failure_message = excluded.failure_message, \
            failure_since_ms = excluded.failure_since_ms, failure_attempts = excluded.failure_attempts, \
            settled = excluded.settled, next_attempt_at_ms = excluded.next_attempt_at_ms",
};

/// Whether nothing but the columns of [`ASSIGN_EVENTS`] tells the rows apart.
pub(super) fn is_assigned(before: &MeetEvent, after: &MeetEvent) -> bool {
    let assigned = MeetEvent {
        want: after.want,
        desired_revision: after.desired_revision,
        phase: after.phase,
        refetches: after.refetches,
        failure: after.failure.clone(),
        settled: after.settled,
        next_attempt_at: after.next_attempt_at,
        ..before.clone()
    };
    assigned == *after
}

/// The values of a row for [`ASSIGN_EVENTS`].
pub(super) fn append_assigned(event: &MeetEvent, values: &mut Vec<Value>) {
    let failure = event.failure.as_ref();
    values.extend([
        event.session.as_str().into(),
        event.ordinal.into(),
        word_of(&WANTS, event.want).into(),
        event.desired_revision.into(),
        word_of(&Phase::WORDS, event.phase).into(),
        event.refetches.into(),
        failure.map(|failure| failure.code.as_str()).into(),
        failure.map(|failure| failure.message.as_str()).into(),
        failure.map(|failure| failure.since).into(),
        failure.map(|failure| failure.attempts).into(),
        event.settled.into(),
        event.next_attempt_at.into(),
    ]);
}

/// What is read of every session in a group: enough to know what an event changes, and what is written beside a session
/// whose content comes from events of the group.
pub(super) const KNOWN: Select = by_session!(
    "session",
    session_id head_epoch head_version head_sequence content_hash details_epoch details_version details_sequence
    desired_hash document_revision document_updated_at_ms
);

/// A row of [`KNOWN`].
#[derive(Debug)]
pub(super) struct Known {
    pub(super) ranks: Ranks,
    pub(super) desired_hash: String,
    /// The JSON is not read: it holds the version, so it differs where the version does.
    pub(super) document: KeptDocument,
}

/// Reads a row of [`KNOWN`].
pub(super) fn read_known(row: &Row) -> Result<(SessionId, Known)> {
    let known = Known {
        ranks: Ranks { head: head_stamp(row)?, content_hash: row.get("content_hash")?, details: details_stamp(row)? },
        desired_hash: row.get("desired_hash")?,
        document: KeptDocument {
            json: String::new(),
            revision: row.get("document_revision")?,
            updated_at: UnixMillis::new(row.get("document_updated_at_ms")?),
        },
    };
    Ok((session_id(row)?, known))
}

fn head_stamp(row: &Row) -> Result<Stamp> {
    Ok(Stamp {
        epoch: Epoch(row.get("head_epoch")?),
        version: version(row, "head_version")?,
        sequence: row.get("head_sequence")?,
    })
}

fn details_stamp(row: &Row) -> Result<Option<Stamp>> {
    let Some(epoch) = row.get::<Option<i64>>("details_epoch")? else { return Ok(None) };
    Ok(Some(Stamp {
        epoch: Epoch(epoch),
        version: version(row, "details_version")?,
        sequence: row.get("details_sequence")?,
    }))
}

/// A document as it is kept, next to the session it was made of.
#[derive(Debug, Clone)]
pub(crate) struct KeptDocument {
    /// The JSON, `updatedAt` included.
    pub(super) json: String,
    /// Counts its changes.
    pub(super) revision: i64,
    /// `updatedAt`.
    pub(super) updated_at: UnixMillis,
}

/// The start by which lists are ordered.
pub(super) fn list_start(document: &Document) -> i64 {
    document.starts_at.map_or(i64::MIN, UnixMillis::get)
}

/// The columns of a session.
pub(super) fn session_columns<'a>(
    session: &'a Session,
    desired_hash: &'a str,
    (traceparent, published_at): (Option<&'a str>, Option<UnixMillis>),
    document: &Document,
    kept: &'a KeptDocument,
) -> SessionColumns<'a> {
    let head = &session.head;
    let (stamp, details) = session.details.as_ref().map(|(stamp, details)| (stamp, details)).unzip();
    SessionColumns {
        session_id: session.id.as_str(),
        head_epoch: head.stamp.epoch.0,
        head_version: head.stamp.version.get(),
        head_sequence: head.stamp.sequence,
        status: word_of(&STATUSES, head.status),
        teacher_id: head.teacher.as_str(),
        content_hash: &head.content_hash,
        details_epoch: stamp.map(|stamp| stamp.epoch.0),
        details_version: stamp.map(|stamp| stamp.version.get()),
        details_sequence: stamp.map(|stamp| stamp.sequence),
        kind: details.map(|details| details.kind.as_str()),
        title: details.map(|details| details.title.as_str()),
        description: details.and_then(|details| details.description.as_deref()),
        starts_at_ms: details.map(|details| details.starts_at.get()),
        ends_at_ms: details.map(|details| details.ends_at.get()),
        time_zone: details.map(|details| details.time_zone.name()),
        attendees: details.map(|details| attendees_json(&details.attendees)),
        url: details.and_then(|details| details.url.as_deref()),
        desired_hash,
        traceparent,
        published_at_ms: published_at.map(UnixMillis::get),
        meet_status: document.meet_status.as_str(),
        document: &kept.json,
        document_revision: kept.revision,
        document_updated_at_ms: kept.updated_at.get(),
        list_starts_at_ms: list_start(document),
    }
}

/// The columns of a row.
pub(super) fn event_columns(event: &MeetEvent) -> EventColumns<'_> {
    let binding = event.binding.as_ref();
    let failure = event.failure.as_ref();
    let ms = |time: Option<UnixMillis>| time.map(UnixMillis::get);
    EventColumns {
        session_id: event.session.as_str(),
        ordinal: event.ordinal,
        teacher_id: event.teacher.as_str(),
        google_sub: binding.map(|binding| binding.account.0.as_str()),
        calendar_id: binding.map(|binding| binding.calendar.as_str()),
        generation: binding.map(|binding| binding.generation),
        event_id: binding.map(|binding| binding.event_id.as_str()),
        want: word_of(&WANTS, event.want),
        desired_revision: event.desired_revision,
        phase: word_of(&Phase::WORDS, event.phase),
        etag: event.etag.as_deref(),
        ical_uid: event.ical_uid.as_deref(),
        written_hash: event.written_hash.as_deref(),
        accepted_hash: event.accepted_hash.as_deref(),
        observed_hash: event.observed_hash.as_deref(),
        meet_link: event.link.as_ref().map(MeetLink::as_str),
        conference_state: word_of(&ConferenceState::WORDS, event.conference),
        conference_attempt: event.conference_attempt,
        conference_since_ms: ms(event.conference_since),
        intent_operation: event.intent.as_ref().map(|intent| intent.operation.as_str()),
        intent_at_ms: event.intent.as_ref().map(|intent| intent.at.get()),
        insert_unclear_at_ms: ms(event.insert_unclear_at),
        taken_at_ms: ms(event.taken_at),
        confirmed_at_ms: ms(event.confirmed_at),
        late_checks: event.late_checks,
        refetches: event.refetches,
        repairs: event.repairs,
        repairs_since_ms: ms(event.repairs_since),
        failure_code: failure.map(|failure| failure.code.as_str()),
        failure_message: failure.map(|failure| failure.message.as_str()),
        failure_since_ms: failure.map(|failure| failure.since.get()),
        failure_attempts: failure.map(|failure| failure.attempts),
        settled: event.settled,
        next_attempt_at_ms: ms(event.next_attempt_at),
    }
}

/// Reads a row of `session`.
pub(super) fn read_session(row: &Row) -> Result<Session> {
    let details = match details_stamp(row)? {
        None => None,
        Some(stamp) => Some((
            stamp,
            Details {
                kind: row.parsed("kind", Kind::parse)?,
                title: row.get("title")?,
                description: row.get("description")?,
                starts_at: UnixMillis::new(row.get("starts_at_ms")?),
                ends_at: UnixMillis::new(row.get("ends_at_ms")?),
                time_zone: row.parsed("time_zone", |name| TimeZone::parse(name).ok())?,
                attendees: row.parsed("attendees", attendees_of)?,
                url: row.get("url")?,
            },
        )),
    };
    Ok(Session {
        id: session_id(row)?,
        head: Head {
            stamp: head_stamp(row)?,
            status: row.parsed("status", |text| word(&STATUSES, text))?,
            teacher: teacher_id(row)?,
            content_hash: row.get("content_hash")?,
        },
        details,
    })
}

/// Reads the document beside a session.
pub(super) fn read_document(row: &Row) -> Result<KeptDocument> {
    Ok(KeptDocument {
        json: row.get("document")?,
        revision: row.get("document_revision")?,
        updated_at: UnixMillis::new(row.get("document_updated_at_ms")?),
    })
}

/// Reads a row of `session_meet_event`.
pub(super) fn read_event(row: &Row) -> Result<MeetEvent> {
    let binding = match row.get::<Option<String>>("google_sub")? {
        None => None,
        Some(account) => Some(Binding {
            account: GoogleSub(account),
            calendar: row.get("calendar_id")?,
            generation: row.get("generation")?,
            event_id: row.parsed("event_id", |id| EventId::parse(id).ok())?,
        }),
    };
    let intent = match row.get::<Option<String>>("intent_operation")? {
        None => None,
        Some(operation) => Some(Intent { operation, at: UnixMillis::new(row.get("intent_at_ms")?) }),
    };
    let failure = match row.parsed_or_none("failure_code", |text| word(&Code::WORDS, text))? {
        None => None,
        Some(code) => Some(Failure {
            code,
            message: row.get("failure_message")?,
            since: UnixMillis::new(row.get("failure_since_ms")?),
            attempts: row.get("failure_attempts")?,
        }),
    };
    Ok(MeetEvent {
        session: session_id(row)?,
        ordinal: row.get("ordinal")?,
        teacher: teacher_id(row)?,
        binding,
        want: row.parsed("want", |text| word(&WANTS, text))?,
        desired_revision: row.get("desired_revision")?,
        phase: row.parsed("phase", |text| word(&Phase::WORDS, text))?,
        etag: row.get("etag")?,
        ical_uid: row.get("ical_uid")?,
        written_hash: row.get("written_hash")?,
        accepted_hash: row.get("accepted_hash")?,
        observed_hash: row.get("observed_hash")?,
        link: row.parsed_or_none("meet_link", |link| MeetLink::parse(link).ok())?,
        conference: row.parsed("conference_state", |text| word(&ConferenceState::WORDS, text))?,
        conference_attempt: row.get("conference_attempt")?,
        conference_since: row.time("conference_since_ms")?,
        intent,
        insert_unclear_at: row.time("insert_unclear_at_ms")?,
        taken_at: row.time("taken_at_ms")?,
        confirmed_at: row.time("confirmed_at_ms")?,
        late_checks: row.get("late_checks")?,
        refetches: row.get("refetches")?,
        repairs: row.get("repairs")?,
        repairs_since: row.time("repairs_since_ms")?,
        failure,
        settled: row.get("settled")?,
        next_attempt_at: row.time("next_attempt_at_ms")?,
    })
}

/// Reads `session_id`.
pub(super) fn session_id(row: &Row) -> Result<SessionId> {
    row.parsed("session_id", |id| SessionId::parse(id).ok())
}

/// Reads `teacher_id`.
pub(super) fn teacher_id(row: &Row) -> Result<TeacherId> {
    row.parsed("teacher_id", |id| TeacherId::parse(id).ok())
}

/// Reads `meet_status`.
pub(super) fn meet_status(row: &Row) -> Result<MeetStatus> {
    row.parsed("meet_status", MeetStatus::parse)
}

fn version(row: &Row, name: &'static str) -> Result<SessionVersion> {
    let version: i64 = row.get(name)?;
    SessionVersion::new(version).map_err(|error| row.corrupt(name, &error.to_string()))
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeptAttendee {
    email: String,
    display_name: Option<String>,
}

fn attendees_json(attendees: &[Attendee]) -> String {
    let kept: Vec<_> = attendees
        .iter()
        .map(|attendee| KeptAttendee { email: attendee.email.clone(), display_name: attendee.display_name.clone() })
        .collect();
    serde_json::to_string(&kept).expect("texts always serialise")
}

fn attendees_of(json: &str) -> Option<Vec<Attendee>> {
    let kept: Vec<KeptAttendee> = serde_json::from_str(json).ok()?;
    Some(kept.into_iter().map(|kept| Attendee { email: kept.email, display_name: kept.display_name }).collect())
}
