//! Sessions and their rows, to columns and back.

use serde::{Deserialize, Serialize};

use super::Result;
use super::sql::{Row, Sql, columns, with_batch, word, word_of};
use crate::event::Details;
use crate::model::{
    Attendee, Epoch, EventId, GoogleSub, Kind, MeetLink, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis,
};
use crate::plan::{Binding, Code, ConferenceState, Failure, Intent, MeetEvent, Phase, Want};
use crate::projection::{Head, Session, Stamp, Status};
use crate::status::{Document, MeetStatus};

const STATUSES: [(Status, &str); 2] = [(Status::Scheduled, "scheduled"), (Status::Canceled, "canceled")];
const WANTS: [(Want, &str); 2] = [(Want::Present, "present"), (Want::Absent, "absent")];

columns! {
    /// Table `session`.
    SessionColumns of "session"
    key {
        session_id: &'a str => text,
    }
    set {
        head_epoch: i64 => bigint,
        head_version: i64 => bigint,
        head_sequence: i64 => bigint,
        status: &'static str => text,
        teacher_id: &'a str => text,
        content_hash: &'a str => text,
        details_epoch: Option<i64> => bigint,
        details_version: Option<i64> => bigint,
        details_sequence: Option<i64> => bigint,
        kind: Option<&'static str> => text,
        title: Option<&'a str> => text,
        description: Option<&'a str> => text,
        starts_at_ms: Option<i64> => bigint,
        ends_at_ms: Option<i64> => bigint,
        time_zone: Option<&'static str> => text,
        attendees: Option<String> => text,
        url: Option<&'a str> => text,
        desired_hash: &'a str => text,
        traceparent: Option<&'a str> => text,
        published_at_ms: Option<i64> => bigint,
        meet_status: &'static str => text,
        document: &'a str => text,
        document_revision: i64 => bigint,
        document_updated_at_ms: i64 => bigint,
        list_starts_at_ms: i64 => bigint,
    }
}

columns! {
    /// Table `session_meet_event`, but for `woken_lease`, which only wake-ups write.
    EventColumns of "session_meet_event"
    key {
        session_id: &'a str => text,
        ordinal: i64 => bigint,
    }
    set {
        teacher_id: &'a str => text,
        google_sub: Option<&'a str> => text,
        calendar_id: Option<&'a str> => text,
        generation: Option<i64> => bigint,
        event_id: Option<&'a str> => text,
        want: &'static str => text,
        desired_revision: i64 => bigint,
        phase: &'static str => text,
        etag: Option<&'a str> => text,
        ical_uid: Option<&'a str> => text,
        written_hash: Option<&'a str> => text,
        accepted_hash: Option<&'a str> => text,
        observed_hash: Option<&'a str> => text,
        meet_link: Option<&'a str> => text,
        conference_state: &'static str => text,
        conference_attempt: i64 => bigint,
        conference_since_ms: Option<i64> => bigint,
        intent_operation: Option<&'a str> => text,
        intent_at_ms: Option<i64> => bigint,
        insert_unclear_at_ms: Option<i64> => bigint,
        taken_at_ms: Option<i64> => bigint,
        confirmed_at_ms: Option<i64> => bigint,
        late_checks: i64 => bigint,
        refetches: i64 => bigint,
        repairs: i64 => bigint,
        repairs_since_ms: Option<i64> => bigint,
        failure_code: Option<&'static str> => text,
        failure_message: Option<&'a str> => text,
        failure_since_ms: Option<i64> => bigint,
        failure_attempts: Option<i64> => bigint,
        settled: bool => boolean,
        next_attempt_at_ms: Option<i64> => bigint,
    }
}

/// A row that is as [`MeetEvent::new`] makes it, as nearly all are when they are inserted: what of it is not the same for
/// all. A fifth of the columns of [`EventColumns`], and that much faster where thousands of sessions come in.
#[derive(Debug, Serialize)]
pub(super) struct NewEventColumns<'a> {
    session_id: &'a str,
    ordinal: i64,
    teacher_id: &'a str,
    next_attempt_at_ms: Option<i64>,
}

impl<'a> NewEventColumns<'a> {
    /// Inserts a batch. The values here are those of [`MeetEvent::new`].
    pub(super) const INSERT: Sql = with_batch!(
        "INSERT INTO session_meet_event (session_id, ordinal, teacher_id, want, desired_revision, phase, \
         conference_state, conference_attempt, late_checks, refetches, repairs, settled, next_attempt_at_ms) \
         SELECT session_id, ordinal, teacher_id, 'present', 1, 'new', 'none', 0, 0, 0, 0, FALSE, next_attempt_at_ms FROM ",
        [session_id text, ordinal bigint, teacher_id text, next_attempt_at_ms bigint],
        " AS batch"
    );

    /// The columns, if the row is as new.
    pub(super) fn of(event: &'a MeetEvent) -> Option<Self> {
        let at = event.next_attempt_at?;
        let new = MeetEvent::new(event.session.clone(), event.ordinal, event.teacher.clone(), at);
        (*event == new).then(|| Self {
            session_id: event.session.as_str(),
            ordinal: event.ordinal,
            teacher_id: event.teacher.as_str(),
            next_attempt_at_ms: Some(at.get()),
        })
    }
}

/// A document as it is kept, next to the session it was made of.
#[derive(Debug, Clone)]
pub(super) struct KeptDocument {
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
    let details = match row.get::<Option<i64>>("details_epoch")? {
        None => None,
        Some(epoch) => Some((
            Stamp {
                epoch: Epoch(epoch),
                version: version(row, "details_version")?,
                sequence: row.get("details_sequence")?,
            },
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
            stamp: Stamp {
                epoch: Epoch(row.get("head_epoch")?),
                version: version(row, "head_version")?,
                sequence: row.get("head_sequence")?,
            },
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
