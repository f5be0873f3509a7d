//! The calls to Google that we use, and what their answers mean.
//!
//! [`calendar`] is the thin client (insert, get, patch, update, delete, list by private property), [`oauth`] the token
//! endpoint, [`error`] the classification of every failure by its reason. Nothing here knows the store or decides
//! what to do next: that is [`crate::plan`].

pub mod access;
pub mod breaker;
pub mod calendar;
pub mod error;
pub mod limits;
pub mod oauth;

use crate::model::{EventId, MeetLink, UnixMillis};

/// `status` of an event at Google.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteStatus {
    /// `confirmed` or `tentative`.
    Live,
    /// `cancelled`: deleted by somebody; Google keeps it for a while and its id for ever.
    Cancelled,
}

/// The conference of an event at Google, reduced to what we act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteConference {
    /// No `conferenceData`.
    None,
    /// `createRequest.status.statusCode` is `pending`.
    Pending,
    /// A Google Meet conference with this link (entry point `video`, else `hangoutLink`).
    Meet(MeetLink),
    /// `createRequest.status.statusCode` is `failure`.
    Failed,
    /// A conference of another solution: somebody replaced ours.
    Other,
}

/// An event at Google, as far as we own or read it.
#[derive(Debug, Clone, PartialEq)]
pub struct RemoteEvent {
    /// Its id.
    pub id: String,
    /// Live or cancelled.
    pub status: RemoteStatus,
    /// For `If-Match` and `If-None-Match`, quotes included.
    pub etag: String,
    /// The iCalendar UID that Google gave it.
    pub ical_uid: Option<String>,
    /// Start; `None` where it is an all-day event or Google left it out.
    pub starts_at: Option<UnixMillis>,
    /// End, as the start.
    pub ends_at: Option<UnixMillis>,
    /// The conference.
    pub conference: RemoteConference,
    /// Private property `mpSession`: our marker, naming the session.
    pub marked_session: Option<String>,
    /// Private property `mpEnv`: which environment of ours made it.
    pub marked_environment: Option<String>,
    /// Private property `mpHash`: [`Wanted::hash`] of the state that was last written.
    pub marked_hash: Option<String>,
    /// A hash over the owned fields *as Google returned them* (title, description, times, zones, source): Google may
    /// normalise what we send, so a later difference is told by comparing returned forms with one another.
    pub owned_hash: String,
    /// The whole resource, needed to restore a deleted event by PUT.
    pub resource: serde_json::Value,
}

/// What an event at Google should look like: the fields we own and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The derived id.
    pub id: EventId,
    /// Private property `mpSession`.
    pub session: String,
    /// Private property `mpEnv`.
    pub environment: String,
    /// Private property `mpKey`, `<generation>`.
    pub generation: i64,
    /// `summary`.
    pub title: String,
    /// `description`; `None` clears it.
    pub description: Option<String>,
    /// `start.dateTime`.
    pub starts_at: UnixMillis,
    /// `end.dateTime`.
    pub ends_at: UnixMillis,
    /// `timeZone` of start and end: an IANA name.
    pub time_zone: &'static str,
    /// `source.url`, the page of the session.
    pub url: Option<String>,
    /// The guests, when `GOOGLE_ATTENDEES=true`; `None` leaves the field alone.
    pub attendees: Option<Vec<crate::model::Attendee>>,
    /// A hash over everything above but the id and generation, kept as private property `mpHash`.
    pub hash: String,
}

/// One call to Google Calendar. The names follow the API's methods.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// `events.get`; `if_none_match` makes 304 an answer.
    Get {
        /// The ETag already known.
        if_none_match: Option<String>,
    },
    /// `events.list?privateExtendedProperty=mpSession=…`, live ones only: finds an event of ours under any id.
    Find,
    /// `events.insert` with our id and, unless `None`, a conference create request with this request id.
    Insert {
        /// `conferenceData.createRequest.requestId`.
        conference_request: Option<String>,
    },
    /// `events.patch` of the owned fields with `If-Match`. Where guests are wanted the client reads the event first and
    /// merges them, so that answers already given are kept.
    Patch {
        /// The ETag that must still hold.
        etag: String,
    },
    /// `events.patch` of `conferenceData.createRequest` alone, with `If-Match`.
    AddConference {
        /// The ETag that must still hold.
        etag: String,
        /// The request id of this attempt.
        conference_request: String,
    },
    /// Undelete: `events.get`, then `events.update` of the tombstone as read with `status=confirmed`, the owned fields on
    /// top and `If-Match`. The only way that works in practice (`sequence` must be echoed).
    Restore,
    /// `events.delete`.
    Delete,
}

impl Call {
    /// Whether it changes anything at Google, so that its intent has to be kept first.
    pub const fn is_write(&self) -> bool {
        !matches!(self, Self::Get { .. } | Self::Find)
    }

    /// The operation's name in logs, metrics and the intent column.
    pub const fn operation(&self) -> &'static str {
        match self {
            Self::Get { .. } => "get",
            Self::Find => "list",
            Self::Insert { .. } => "insert",
            Self::Patch { .. } => "patch",
            Self::AddConference { .. } => "add_conference",
            Self::Restore => "restore",
            Self::Delete => "delete",
        }
    }

    /// Quota units: Google charges three for a patch (events.patch reference).
    pub const fn cost(&self) -> u32 {
        match self {
            Self::Patch { .. } | Self::AddConference { .. } => 3,
            _ => 1,
        }
    }
}

/// What Google said to a [`Call`] that succeeded.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The event as it now is (get, insert, patch, update).
    Event(Box<RemoteEvent>),
    /// 304: as the ETag says.
    NotModified,
    /// 204 of a delete.
    Deleted,
    /// The live events that carry our marker for this session.
    Found(Vec<RemoteEvent>),
}
