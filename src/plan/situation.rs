//! All that a decision looks at, and what the event should look like.

use super::{MeetEvent, Phase, Want};
use crate::google::Wanted;
use crate::model::{Attendee, GoogleSub, TeacherId, UnixMillis, digest, short_hex};
use crate::projection::{Session, Status};
use crate::store::TokenStatus;

/// What the plan must know of the other rows of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its place among the rows.
    pub ordinal: i64,
    /// Whose calendar.
    pub teacher: TeacherId,
    /// The account it is bound to, if any.
    pub account: Option<GoogleSub>,
    /// Its generation, if bound.
    pub generation: Option<i64>,
    /// What is known of it.
    pub phase: Phase,
    /// Its wish.
    pub want: Want,
}

/// The teacher's grant, as far as the plan cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// Never connected.
    None,
    /// There is a grant; usable only when `status` is [`TokenStatus::Connected`], and for removing events while it is
    /// [`TokenStatus::Disconnecting`].
    Google {
        /// Whose calendar.
        account: GoogleSub,
        /// Which calendar.
        calendar: String,
        /// Usable or why not.
        status: TokenStatus,
        /// No writes before this.
        cool_down_until: Option<UnixMillis>,
    },
}

/// Settings that change what is wanted at Google.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Part of every derived id and of the private property `mpEnv`.
    pub environment: String,
    /// Put guests on the event (`GOOGLE_ATTENDEES`).
    pub attendees: bool,
    /// Automatic repairs of one event in 24 hours.
    pub repairs_max: i64,
}

/// All that [`super::plan`] and [`super::absorb`] look at.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The session as folded.
    pub session: &'a Session,
    /// The row.
    pub row: &'a MeetEvent,
    /// The other rows of the session.
    pub siblings: &'a [Sibling],
    /// The teacher's grant.
    pub account: &'a Account,
    /// Settings.
    pub policy: &'a Policy,
    /// Now.
    pub now: UnixMillis,
}

impl Situation<'_> {
    /// The next free ordinal of the session.
    pub(super) fn next_ordinal(&self) -> i64 {
        self.siblings.iter().map(|sibling| sibling.ordinal).fold(self.row.ordinal, i64::max) + 1
    }

    /// The next unused generation for `account`.
    pub(super) fn next_generation(&self, account: &GoogleSub) -> i64 {
        self.siblings
            .iter()
            .filter(|sibling| sibling.account.as_ref() == Some(account))
            .filter_map(|sibling| sibling.generation)
            .max()
            .map_or(0, |highest| highest + 1)
    }

    /// Whether another event of this session on the same account may still be there: a new id is never inserted while
    /// it may. Two teachers may use one account, and a row that was never sent may be wanted again, so the order of the
    /// rows says nothing.
    pub(super) fn predecessor_may_live(&self, account: &GoogleSub) -> bool {
        self.siblings.iter().any(|sibling| sibling.account.as_ref() == Some(account) && !sibling.phase.is_final())
    }

    /// Whether a new event waits until an insert of `row`, which should be gone, can no longer land. Looking late takes a
    /// quarter of an hour and more; using the id up (insert, then delete) ends the wait at once.
    pub(super) fn must_use_up(&self, row: &MeetEvent) -> bool {
        let may_land = row.insert_unclear_at.is_some() && row.taken_at.is_none() && row.written_hash.is_none();
        let waits = |sibling: &Sibling| {
            sibling.want == Want::Present && sibling.phase == Phase::New && sibling.teacher == row.teacher
        };
        row.want == Want::Absent && may_land && self.siblings.iter().any(waits)
    }
}

/// What the event at Google should look like, for a bound row of a scheduled session.
///
/// The hash in it decides whether anything is written: a change of how it is computed patches every event once.
pub fn wanted(session: &Session, row: &MeetEvent, policy: &Policy) -> Option<Wanted> {
    let binding = row.binding.as_ref()?;
    let (_, details) = session.details.as_ref()?;
    if session.head.status != Status::Scheduled {
        return None;
    }
    // An event that is made only to be deleted is nobody's business.
    let attendees = (policy.attendees && row.want == Want::Present).then(|| details.attendees.clone());
    let mut fields: Vec<Vec<u8>> = vec![
        b"mp/wanted/1".to_vec(),
        details.title.clone().into_bytes(),
        optional(details.description.as_deref()),
        details.starts_at.get().to_be_bytes().to_vec(),
        details.ends_at.get().to_be_bytes().to_vec(),
        details.time_zone.name().as_bytes().to_vec(),
        optional(details.url.as_deref()),
    ];
    for Attendee { email, display_name } in attendees.iter().flatten() {
        fields.push(email.clone().into_bytes());
        fields.push(optional(display_name.as_deref()));
    }
    let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
    Some(Wanted {
        id: binding.event_id.clone(),
        session: session.id.as_str().to_owned(),
        environment: policy.environment.clone(),
        generation: binding.generation,
        title: details.title.clone(),
        description: details.description.clone(),
        starts_at: details.starts_at,
        ends_at: details.ends_at,
        time_zone: details.time_zone.name(),
        url: details.url.clone(),
        attendees,
        hash: short_hex(&digest(&fields)),
    })
}

/// `None` and an empty text must not look the same.
fn optional(text: Option<&str>) -> Vec<u8> {
    text.map_or_else(|| b"-".to_vec(), |text| [b"+", text.as_bytes()].concat())
}
