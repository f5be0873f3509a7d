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

/// The ranks of a session's two registers, without what they hold: enough to know what an event changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks {
    /// Rank of the head.
    pub head: Stamp,
    /// [`content_hash`] of the event the head comes from.
    pub content_hash: String,
    /// Rank of the details, if an event brought any.
    pub details: Option<Stamp>,
}

/// Which registers take over what an event says, and what that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What folding it did.
    pub outcome: Outcome,
    /// The head is that of the event now.
    pub takes_head: bool,
    /// The details are those of the event now.
    pub takes_details: bool,
}

impl Ranks {
    /// Those of a session.
    pub fn of(session: &Session) -> Self {
        Self {
            head: session.head.stamp,
            content_hash: session.head.content_hash.clone(),
            details: session.details.as_ref().map(|(stamp, _)| *stamp),
        }
    }

    /// Those of a session of which nothing was seen but one event.
    pub fn first(stamp: Stamp, content_hash: String, has_details: bool) -> (Self, Step) {
        let ranks = Self { head: stamp, content_hash, details: has_details.then_some(stamp) };
        (ranks, Step { outcome: Outcome::Applied, takes_head: true, takes_details: has_details })
    }

    /// Folds an event of that rank and [`content_hash`].
    pub fn fold(&mut self, stamp: Stamp, content_hash: &str, has_details: bool) -> Step {
        let known = self.head;
        let same_version = (known.epoch, known.version) == (stamp.epoch, stamp.version);
        let outcome = if same_version && self.content_hash == content_hash {
            Outcome::Duplicate
        } else if same_version {
            Outcome::Conflict { loser: known.sequence.max(stamp.sequence) }
        } else if stamp > known {
            Outcome::Applied
        } else {
            Outcome::Stale
        };
        let takes_head = stamp > known;
        if takes_head {
            self.head = stamp;
            content_hash.clone_into(&mut self.content_hash);
        }
        let takes_details = has_details && self.details.is_none_or(|known| stamp > known);
        if takes_details {
            self.details = Some(stamp);
        }
        Step { outcome, takes_head, takes_details }
    }
}

/// What the head says when it comes from that event.
pub fn head(event: &SessionEvent, stamp: Stamp, content_hash: String) -> Head {
    Head {
        stamp,
        status: match event.change {
            Change::Scheduled | Change::Rescheduled => Status::Scheduled,
            Change::Canceled => Status::Canceled,
        },
        teacher: event.teacher.clone(),
        content_hash,
    }
}

/// Folds the event that stands at `place` into the session's state.
///
/// The result depends only on the set of events folded so far, never on their order.
pub fn fold(state: Option<Session>, event: &SessionEvent, place: Place) -> (Session, Outcome) {
    let stamp = Stamp::of(event, place);
    let content_hash = content_hash(event);
    let details = event.details.clone().map(|details| (stamp, details));
    let Some(mut session) = state else {
        let head = head(event, stamp, content_hash);
        return (Session { id: event.session.clone(), head, details }, Outcome::Applied);
    };
    let step = Ranks::of(&session).fold(stamp, &content_hash, details.is_some());
    if step.takes_head {
        session.head = head(event, stamp, content_hash);
    }
    if step.takes_details {
        session.details = details;
    }
    (session, step.outcome)
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
