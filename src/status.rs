//! The status document that readers get, computed from a session and its rows. Pure.

use crate::model::{Kind, MeetLink, SessionId, TeacherId, UnixMillis};
use crate::plan::{Code, MeetEvent};
use crate::projection::Session;

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
    /// Google was seen to agree with this version.
    pub up_to_date: bool,
    /// Why not, where somebody should know.
    pub error: Option<DocumentError>,
}

/// The document for a session and all its rows, as seen at `now` (a transient failure shows only after a while).
pub fn document(session: &Session, rows: &[MeetEvent], now: UnixMillis) -> Document {
    let _ = (session, rows, now);
    todo!("the next commit")
}

/// The document as JSON, `updatedAt` included: camelCase, RFC 3339 UTC, `null` rather than missing.
pub fn to_json(document: &Document, updated_at: UnixMillis) -> String {
    let _ = (document, updated_at);
    todo!("the next commit")
}
