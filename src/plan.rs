//! Plan: desired + observed → the next call to Google, most often none. Pure: no I/O, no clock, nothing async.
//!
//! One [`MeetEvent`] is one event that exists or may exist on one calendar. Its wish goes `Present → Absent` and never
//! back once anything was sent, so a late request of a dead process can do no harm: a late insert meets a used id, a late
//! patch an old ETag, and a late delete only ever hits what should be gone. A revival or a change of teacher therefore
//! makes a new row with a new generation instead of reusing a deleted id, which Google never gives back.
//!
//! Three functions, each one noun: [`assign`] (session → which rows there should be), [`plan`] (row → next call) and
//! [`absorb`] (row + answer → row). The state machine is that of the Calendar notes in `README.md`, "What happens at
//! Google".

use crate::model::{EventId, GoogleSub, MeetLink, SessionId, TeacherId, UnixMillis};

mod absorb;
mod assign;
mod next;
mod retry;
mod situation;
mod standing;
#[cfg(test)]
mod tests;

pub use absorb::{Absorbed, absorb};
pub use assign::assign;
pub use next::{Plan, plan, search_for};
pub use retry::{Circumstances, Refusal, Retried, retry};
pub use situation::{Account, Policy, Sibling, Situation, wanted};

/// Whether the event should exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Want {
    /// It should exist and look as the session says.
    Present,
    /// It should be gone.
    Absent,
}

/// What is known of the event at Google.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Nothing was ever sent for this row.
    New,
    /// Something may exist: a request had no clear outcome, or the ETag did not hold. Look before anything is written.
    Unknown,
    /// Looked, and not there.
    Missing,
    /// It exists; etag, hashes and link say how.
    Live,
    /// It is `cancelled` at Google although it should exist.
    Tombstone,
    /// It is gone, or never was; final.
    Absent,
    /// The id belongs to an event without our marker; final, and never touched.
    Foreign,
}

impl Phase {
    /// All phases with the word that stands in the database.
    pub const WORDS: [(Self, &'static str); 7] = [
        (Self::New, "new"),
        (Self::Unknown, "unknown"),
        (Self::Missing, "missing"),
        (Self::Live, "live"),
        (Self::Tombstone, "tombstone"),
        (Self::Absent, "absent"),
        (Self::Foreign, "foreign"),
    ];

    /// Final phases: nothing is ever sent for the row again.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Absent | Self::Foreign)
    }
}

/// How far the conference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConferenceState {
    /// None asked for yet, or none found.
    None,
    /// Google is making it.
    Pending,
    /// There is a Meet link.
    Ready,
    /// Google said `failure` to the last attempt.
    Failed,
    /// The calendar does not allow Google Meet.
    NotAllowed,
    /// Somebody put another solution in its place.
    Replaced,
}

impl ConferenceState {
    /// All states with the word that stands in the database.
    pub const WORDS: [(Self, &'static str); 6] = [
        (Self::None, "none"),
        (Self::Pending, "pending"),
        (Self::Ready, "ready"),
        (Self::Failed, "failed"),
        (Self::NotAllowed, "not_allowed"),
        (Self::Replaced, "replaced"),
    ];
}

/// Where the event lives at Google; fixed before the first request is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The account whose calendar it is.
    pub account: GoogleSub,
    /// The calendar id, most often `primary`.
    pub calendar: String,
    /// Counts the ids used for this session and account, from 0.
    pub generation: i64,
    /// The derived id.
    pub event_id: EventId,
}

/// A write that was begun; kept until its outcome is recorded, so a crash leaves a trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// [`crate::google::Call::operation`].
    pub operation: String,
    /// When it was begun.
    pub at: UnixMillis,
}

/// Why the row is not where it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What a person is told.
    pub code: Code,
    /// One sentence, without tokens or addresses.
    pub message: String,
    /// When this row began to fail.
    pub since: UnixMillis,
    /// Requests in a row that failed.
    pub attempts: i64,
}

/// The machine-readable reasons of the status document (`error.code`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The teacher never connected Google.
    TeacherNotConnected,
    /// The teacher's grant died.
    ReconnectRequired,
    /// The teacher left the calendar box unticked.
    ScopeMissing,
    /// The Workspace admin restricts this app.
    AdminBlocked,
    /// Google did not answer, or answered with an error of its own; retried.
    GoogleUnavailable,
    /// Google limits this teacher's calendar for some hours; retried.
    CalendarLimited,
    /// Our Google project or client is not set up right; an operator must act.
    ConfigError,
    /// Google Meet is not allowed on this calendar; the event exists without a link.
    MeetNotAllowed,
    /// Google failed to make the conference several times.
    MeetFailed,
    /// Google has been making the conference for more than half an hour.
    MeetPendingTooLong,
    /// Somebody replaced Google Meet by another conference.
    ConferenceReplaced,
    /// The teacher removed the event again after it had been restored.
    EventRemovedByTeacher,
    /// The teacher changed the event again after it had been put right.
    EventChangedByTeacher,
    /// Google refused the request itself.
    InvalidRequest,
    /// No write access to the calendar.
    Forbidden,
    /// The account has no calendar of that id.
    CalendarNotFound,
    /// The event was moved to another organizer.
    NotOrganizer,
    /// The session was over before a link could be made.
    SessionEnded,
    /// An older event of this session is still on the calendar and must go first.
    PreviousEventNotRemoved,
}

impl Code {
    /// All codes with the word in documents and in the database.
    pub const WORDS: [(Self, &'static str); 19] = [
        (Self::TeacherNotConnected, "TEACHER_NOT_CONNECTED"),
        (Self::ReconnectRequired, "RECONNECT_REQUIRED"),
        (Self::ScopeMissing, "SCOPE_MISSING"),
        (Self::AdminBlocked, "ADMIN_BLOCKED"),
        (Self::GoogleUnavailable, "GOOGLE_UNAVAILABLE"),
        (Self::CalendarLimited, "CALENDAR_LIMITED"),
        (Self::ConfigError, "CONFIG_ERROR"),
        (Self::MeetNotAllowed, "MEET_NOT_ALLOWED"),
        (Self::MeetFailed, "MEET_FAILED"),
        (Self::MeetPendingTooLong, "MEET_PENDING_TOO_LONG"),
        (Self::ConferenceReplaced, "CONFERENCE_REPLACED"),
        (Self::EventRemovedByTeacher, "EVENT_REMOVED_BY_TEACHER"),
        (Self::EventChangedByTeacher, "EVENT_CHANGED_BY_TEACHER"),
        (Self::InvalidRequest, "INVALID_REQUEST"),
        (Self::Forbidden, "FORBIDDEN"),
        (Self::CalendarNotFound, "CALENDAR_NOT_FOUND"),
        (Self::NotOrganizer, "NOT_ORGANIZER"),
        (Self::SessionEnded, "SESSION_ENDED"),
        (Self::PreviousEventNotRemoved, "PREVIOUS_EVENT_NOT_REMOVED"),
    ];

    /// The word in documents and in the database.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(code, _)| *code == self).map_or("UNKNOWN", |(_, word)| word)
    }
}

/// One event that exists or may exist at Google: a row of `session_meet_event`, key `(session, ordinal)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeetEvent {
    /// The session it is for.
    pub session: SessionId,
    /// Counts the rows of the session, from 0; the highest `Present` one is what readers see.
    pub ordinal: i64,
    /// Whose calendar.
    pub teacher: TeacherId,
    /// Where at Google; `None` until the teacher is connected and a call is planned.
    pub binding: Option<Binding>,
    /// Whether it should exist. Written by [`assign`] and by [`plan`] where the teacher changed the Google account.
    pub want: Want,
    /// Counts the changes of what is wanted; a result counts as final only if this did not move meanwhile.
    pub desired_revision: i64,
    /// What is known of it.
    pub phase: Phase,
    /// ETag as last seen.
    pub etag: Option<String>,
    /// iCalendar UID as Google gave it.
    pub ical_uid: Option<String>,
    /// [`crate::google::Wanted::hash`] of the last write that Google is known to have taken.
    pub written_hash: Option<String>,
    /// [`crate::google::RemoteEvent::owned_hash`] in the form in which Google took that write.
    pub accepted_hash: Option<String>,
    /// [`crate::google::RemoteEvent::owned_hash`] as last seen; differs from `accepted_hash` after somebody's edit.
    pub observed_hash: Option<String>,
    /// The Meet link, kept while a new time is being written.
    pub link: Option<MeetLink>,
    /// The conference.
    pub conference: ConferenceState,
    /// Which create request is the current one, from 0.
    pub conference_attempt: i64,
    /// Since when the current create request is pending.
    pub conference_since: Option<UnixMillis>,
    /// A write begun and not yet recorded.
    pub intent: Option<Intent>,
    /// The last insert or restore whose outcome was not clear: a cancel must be verified late.
    pub insert_unclear_at: Option<UnixMillis>,
    /// Google said 409 to our insert, or it is deleted and nothing else of the session lives: the id is used, whatever a
    /// get says.
    pub taken_at: Option<UnixMillis>,
    /// The last write that Google confirmed.
    pub confirmed_at: Option<UnixMillis>,
    /// Late verifications done after a delete that found nothing.
    pub late_checks: i64,
    /// ETag conflicts in a row.
    pub refetches: i64,
    /// Automatic repairs of somebody's edits or deletions since `repairs_since`.
    pub repairs: i64,
    /// Start of the window of 24 hours in which `repairs` counts.
    pub repairs_since: Option<UnixMillis>,
    /// Why it is not where it should be.
    pub failure: Option<Failure>,
    /// Google was seen to agree with the newest desired state (for `Absent`: to hold nothing).
    pub settled: bool,
    /// When to look at the row next; `None`: not before something wakes it.
    pub next_attempt_at: Option<UnixMillis>,
}

impl MeetEvent {
    /// A row for which nothing was sent, due at once.
    pub fn new(session: SessionId, ordinal: i64, teacher: TeacherId, now: UnixMillis) -> Self {
        Self {
            session,
            ordinal,
            teacher,
            binding: None,
            want: Want::Present,
            desired_revision: 1,
            phase: Phase::New,
            etag: None,
            ical_uid: None,
            written_hash: None,
            accepted_hash: None,
            observed_hash: None,
            link: None,
            conference: ConferenceState::None,
            conference_attempt: 0,
            conference_since: None,
            intent: None,
            insert_unclear_at: None,
            taken_at: None,
            confirmed_at: None,
            late_checks: 0,
            refetches: 0,
            repairs: 0,
            repairs_since: None,
            failure: None,
            settled: false,
            next_attempt_at: Some(now),
        }
    }
}
