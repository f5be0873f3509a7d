//! The wire forms of `schemas/` → [`SessionEvent`]; nothing behind this module knows how an event looked on the wire.

use crate::model::{Attendee, Kind, SessionId, SessionVersion, TeacherId, TimeZone, UnixMillis};

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

/// What a lesson is and when: everything of an event that Google will show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Details {
    /// Private, group or course.
    pub kind: Kind,
    /// 1 to 1,000 characters.
    pub title: String,
    /// Up to 8,000 characters.
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
