//! The status document that readers get, computed from a session and its rows. Pure.

use serde::Serialize;

use crate::model::{Kind, MeetLink, SessionId, TeacherId, UnixMillis};
use crate::plan::{Code, ConferenceState, Failure, MeetEvent, Want};
use crate::projection::{Session, Status};

/// A transient failure is shown as ERROR once it lasted this long …
pub const TRANSIENT_SHOWN_AFTER_MS: i64 = 15 * 60 * 1000;
/// … or when the session starts within this time: then somebody should know at once.
pub const TRANSIENT_SHOWN_BEFORE_START_MS: i64 = 30 * 60 * 1000;

/// `meetStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MeetStatus {
    /// Work is under way.
    Pending,
    /// Google was seen to agree with the newest version, and there is a link.
    Ready,
    /// Somebody has to act, or Google has been failing for long; `error` says which.
    Error,
    /// The session does not take place.
    Canceled,
}

impl MeetStatus {
    /// All states with the word in documents and in the database.
    pub const WORDS: [(Self, &'static str); 4] =
        [(Self::Pending, "PENDING"), (Self::Ready, "READY"), (Self::Error, "ERROR"), (Self::Canceled, "CANCELED")];

    /// The word in documents and in the database.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(status, _)| *status == self).map_or("PENDING", |(_, word)| word)
    }

    /// The status of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, known)| *known == word).map(|(status, _)| *status)
    }
}

/// `error` of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// The reason.
    pub code: Code,
    /// One sentence for a person.
    pub message: String,
    /// `connect_teacher|reconnect_teacher|retry|wait|contact_admin`.
    pub action: &'static str,
    /// Whether the service goes on trying by itself.
    pub retryable: bool,
    /// Since when.
    pub since: UnixMillis,
    /// Requests in a row that failed.
    pub attempts: i64,
    /// When the next one is due.
    pub next_attempt_at: Option<UnixMillis>,
}

/// What `GET /api/google/meet/{sessionId}` answers and stream `MEET` carries, without `updatedAt`, which the store
/// sets when the document changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The session.
    pub session: SessionId,
    /// Pending, ready, error or canceled.
    pub meet_status: MeetStatus,
    /// The link; once known it stays visible while a new time is being written.
    pub meet_link: Option<MeetLink>,
    /// The event id at Google, once one was chosen.
    pub meet_event_id: Option<String>,
    /// The teacher.
    pub teacher: TeacherId,
    /// Private, group or course; `None` when only a cancel without details was seen.
    pub kind: Option<Kind>,
    /// Start.
    pub starts_at: Option<UnixMillis>,
    /// End.
    pub ends_at: Option<UnixMillis>,
    /// The booking row's counter.
    pub version: i64,
    /// Google was seen to agree with this version: for a canceled session, that nothing is left of it.
    pub up_to_date: bool,
    /// Why not, where somebody should know.
    pub error: Option<DocumentError>,
}

/// The document for a session and all its rows, as seen at `now` (a transient failure shows only after a while).
pub fn document(session: &Session, rows: &[MeetEvent], now: UnixMillis) -> Document {
    let details = session.details.as_ref().map(|(_, details)| details);
    let mut document = Document {
        session: session.id.clone(),
        meet_status: MeetStatus::Canceled,
        meet_link: None,
        meet_event_id: None,
        teacher: session.head.teacher.clone(),
        kind: details.map(|details| details.kind),
        starts_at: details.map(|details| details.starts_at),
        ends_at: details.map(|details| details.ends_at),
        version: session.head.stamp.version.get(),
        up_to_date: false,
        error: None,
    };
    if session.head.status == Status::Canceled {
        document.up_to_date = rows.iter().all(|row| row.settled);
        return document;
    }
    document.meet_status = MeetStatus::Pending;
    let Some(row) = rows.iter().filter(|row| row.want == Want::Present).max_by_key(|row| row.ordinal) else {
        return document;
    };
    document.meet_link.clone_from(&row.link);
    // An id is told only once the event is known to exist: before, nobody could find anything under it.
    document.meet_event_id =
        row.confirmed_at.and(row.binding.as_ref()).map(|binding| binding.event_id.as_str().to_owned());
    document.error = row.failure.as_ref().and_then(|failure| shown(failure, row, document.starts_at, now));
    let linked = row.link.is_some() && row.conference == ConferenceState::Ready;
    if document.error.is_some() {
        document.meet_status = MeetStatus::Error;
    } else if row.settled && linked {
        document.meet_status = MeetStatus::Ready;
        document.up_to_date = true;
    }
    document
}

/// The error that readers see: none while a transient failure is young and the start is far.
fn shown(failure: &Failure, row: &MeetEvent, starts_at: Option<UnixMillis>, now: UnixMillis) -> Option<DocumentError> {
    let (action, retryable) = advice(failure.code);
    if matches!(failure.code, Code::GoogleUnavailable | Code::PreviousEventNotRemoved) {
        let is_old = now.since(failure.since) >= TRANSIENT_SHOWN_AFTER_MS;
        let is_near = starts_at.is_some_and(|start| start.since(now) < TRANSIENT_SHOWN_BEFORE_START_MS);
        if !is_old && !is_near {
            return None;
        }
    }
    Some(DocumentError {
        code: failure.code,
        message: failure.message.clone(),
        action,
        retryable,
        since: failure.since,
        attempts: failure.attempts,
        next_attempt_at: row.next_attempt_at,
    })
}

/// What to do about a code, and whether the service goes on by itself.
pub fn advice(code: Code) -> (&'static str, bool) {
    match code {
        Code::TeacherNotConnected => ("connect_teacher", false),
        Code::ReconnectRequired | Code::ScopeMissing => ("reconnect_teacher", false),
        Code::GoogleUnavailable | Code::CalendarLimited | Code::MeetPendingTooLong | Code::PreviousEventNotRemoved => {
            ("wait", true)
        }
        Code::MeetFailed | Code::EventRemovedByTeacher | Code::EventChangedByTeacher | Code::ConferenceReplaced => {
            ("retry", false)
        }
        Code::ConfigError => ("contact_admin", true),
        Code::AdminBlocked
        | Code::MeetNotAllowed
        | Code::InvalidRequest
        | Code::Forbidden
        | Code::CalendarNotFound
        | Code::NotOrganizer
        | Code::SessionEnded => ("contact_admin", false),
    }
}

/// The document as JSON, `updatedAt` included: camelCase, RFC 3339 UTC, `null` rather than missing.
pub fn to_json(document: &Document, updated_at: UnixMillis) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire<'a> {
        session_id: &'a str,
        meet_status: &'static str,
        meet_link: Option<&'a str>,
        meet_event_id: Option<&'a str>,
        teacher_id: &'a str,
        kind: Option<&'static str>,
        starts_at: Option<String>,
        ends_at: Option<String>,
        version: i64,
        up_to_date: bool,
        error: Option<WireError<'a>>,
        updated_at: String,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct WireError<'a> {
        code: &'static str,
        message: &'a str,
        action: &'static str,
        retryable: bool,
        since: String,
        attempts: i64,
        next_attempt_at: Option<String>,
    }
    let wire = Wire {
        session_id: document.session.as_str(),
        meet_status: document.meet_status.as_str(),
        meet_link: document.meet_link.as_ref().map(MeetLink::as_str),
        meet_event_id: document.meet_event_id.as_deref(),
        teacher_id: document.teacher.as_str(),
        kind: document.kind.map(Kind::as_str),
        starts_at: document.starts_at.map(UnixMillis::to_rfc3339),
        ends_at: document.ends_at.map(UnixMillis::to_rfc3339),
        version: document.version,
        up_to_date: document.up_to_date,
        error: document.error.as_ref().map(|error| WireError {
            code: error.code.as_str(),
            message: &error.message,
            action: error.action,
            retryable: error.retryable,
            since: error.since.to_rfc3339(),
            attempts: error.attempts,
            next_attempt_at: error.next_attempt_at.map(UnixMillis::to_rfc3339),
        }),
        updated_at: updated_at.to_rfc3339(),
    };
    serde_json::to_string(&wire).expect("a struct of texts and numbers always serialises")
}
