//! Fold: what a session is, given the events seen so far. Pure: no I/O, no clock, nothing async.
//!
//! A [`Session`] is two registers, each holding the greatest value it has seen:
//!
//! * the **head** — status and teacher — of the event with the highest `(epoch, version)`;
//! * the **details** — what and when — of the highest such event *that carried them* (a cancel may not).
//!
//! Where `(epoch, version)` is equal the lower stream sequence wins. The maximum of a total order is commutative,
//! associative and idempotent, so arrival order, redelivery, interleaved replicas and replays make no difference.
//! Deliberately absent: when an event arrived, and how often.

use crate::event::{Change, Details, SessionEvent};
use crate::model::{Epoch, Place, SessionId, SessionVersion, TeacherId, digest, short_hex};

pub mod canonical;

/// What the newest event wants of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It takes place: it needs a calendar event with a link.
    Scheduled,
    /// It does not take place: no calendar event may be left.
    Canceled,
}

/// The rank of an event among those of its session: higher `(epoch, version)` wins, then the lower sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The incarnation of the stream.
    pub epoch: Epoch,
    /// The booking row's counter.
    pub version: SessionVersion,
    /// The stream sequence in that epoch.
    pub sequence: i64,
}

impl Stamp {
    /// The stamp of an event that stands at `place`.
    pub fn of(event: &SessionEvent, place: Place) -> Self {
        Self { epoch: place.epoch, version: event.version, sequence: place.sequence }
    }

    fn rank(self) -> (Epoch, SessionVersion, std::cmp::Reverse<i64>) {
        (self.epoch, self.version, std::cmp::Reverse(self.sequence))
    }
}

impl Ord for Stamp {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Stamp {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The register of status and teacher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The event it comes from.
    pub stamp: Stamp,
    /// Scheduled or canceled.
    pub status: Status,
    /// On whose calendar.
    pub teacher: TeacherId,
    /// [`content_hash`] of the event, by which a duplicate is told from a conflict.
    pub content_hash: String,
}

/// A session as the events seen so far describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Status and teacher.
    pub head: Head,
    /// What and when, with the stamp of the event that said so. A scheduled head always comes with details of the
    /// same or a higher rank; a canceled one may have none.
    pub details: Option<(Stamp, Details)>,
}

impl Session {
    /// What Google should hold is determined by this text alone: when it stays the same, nothing is due there.
    pub fn desired_hash(&self) -> String {
        let teacher = self.head.teacher.as_str().as_bytes();
        match (self.head.status, &self.details) {
            (Status::Scheduled, Some((_, details))) => {
                short_hex(&digest(&[b"scheduled", teacher, details_hash(details).as_bytes()]))
            }
            _ => short_hex(&digest(&[b"canceled"])),
        }
    }
}

/// What folding one event did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The session changed.
    Applied,
    /// A newer version is known; what it adds, if anything, was taken.
    Stale,
    /// The same version with the same content was there already.
    Duplicate,
    /// The same version with other content; the event at `loser` becomes a dead letter.
    Conflict {
        /// The stream sequence (in the event's epoch) that lost: the higher of the two.
        loser: i64,
    },
}

/// Folds the event that stands at `place` into the session's state.
///
/// The result depends only on the set of events folded so far, never on their order.
pub fn fold(state: Option<Session>, event: &SessionEvent, place: Place) -> (Session, Outcome) {
    let stamp = Stamp::of(event, place);
    let head = Head {
        stamp,
        status: match event.change {
            Change::Scheduled | Change::Rescheduled => Status::Scheduled,
            Change::Canceled => Status::Canceled,
        },
        teacher: event.teacher.clone(),
        content_hash: content_hash(event),
    };
    let details = event.details.clone().map(|details| (stamp, details));

    let Some(mut session) = state else {
        return (Session { id: event.session.clone(), head, details }, Outcome::Applied);
    };

    let known = &session.head;
    let same_version = (known.stamp.epoch, known.stamp.version) == (stamp.epoch, stamp.version);
    let outcome = if same_version && known.content_hash == head.content_hash {
        Outcome::Duplicate
    } else if same_version {
        Outcome::Conflict { loser: known.stamp.sequence.max(stamp.sequence) }
    } else if stamp > known.stamp {
        Outcome::Applied
    } else {
        Outcome::Stale
    };

    if stamp > session.head.stamp {
        session.head = head;
    }
    if let Some(details) = details
        && session.details.as_ref().is_none_or(|(known, _)| details.0 > *known)
    {
        session.details = Some(details);
    }
    (session, outcome)
}

/// A hash over everything of an event that has a meaning here: two events of one version with the same hash are the
/// same fact. Id, source, time and unknown fields are not part of it.
pub fn content_hash(event: &SessionEvent) -> String {
    let status: &[u8] = match event.change {
        Change::Scheduled | Change::Rescheduled => b"scheduled",
        Change::Canceled => b"canceled",
    };
    let details = event.details.as_ref().map(details_hash).unwrap_or_default();
    short_hex(&digest(&[status, event.teacher.as_str().as_bytes(), details.as_bytes()]))
}

pub(crate) fn details_hash(details: &Details) -> String {
    let starts = details.starts_at.get().to_be_bytes();
    let ends = details.ends_at.get().to_be_bytes();
    let mut fields: Vec<&[u8]> = vec![
        details.kind.as_str().as_bytes(),
        details.title.as_bytes(),
        presence(details.description.as_ref()),
        details.description.as_deref().unwrap_or_default().as_bytes(),
        &starts,
        &ends,
        details.time_zone.name().as_bytes(),
        presence(details.url.as_ref()),
        details.url.as_deref().unwrap_or_default().as_bytes(),
    ];
    for attendee in &details.attendees {
        fields.push(attendee.email.as_bytes());
        fields.push(presence(attendee.display_name.as_ref()));
        fields.push(attendee.display_name.as_deref().unwrap_or_default().as_bytes());
    }
    short_hex(&digest(&fields))
}

fn presence(value: Option<&String>) -> &'static [u8] {
    if value.is_some() { b"+" } else { b"-" }
}
