//! The next call for one row.
use super::{ConferenceState, MeetEvent, Phase, Want};
use crate::google::{Call, Wanted};
use crate::model::{GoogleSub, UnixMillis};
use crate::projection::Session;
use crate::store::TokenStatus;

/// What the plan must know of the other rows of the session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sibling {
    /// Its place among the rows.
    pub ordinal: i64,
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
    /// Never connected, or disconnected on purpose.
    None,
    /// There is a grant; usable only when `status` is [`TokenStatus::Connected`].
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

/// All that [`plan`] looks at.
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

/// What to do with a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The row as it should be kept before the call: bound, with the intent of a write; or, without a call, as it rests.
    pub row: MeetEvent,
    /// A new row that takes over, after a change of the Google account or of the generation.
    pub successor: Option<MeetEvent>,
    /// The call, most often none.
    pub call: Option<Call>,
}

/// What the event at Google should look like, for a bound row of a scheduled session.
pub fn wanted(session: &Session, row: &MeetEvent, policy: &Policy) -> Option<Wanted> {
    let _ = (session, row, policy);
    todo!()
}

/// Decides the next call. Pure.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let _ = (situation, ConferenceState::None);
    todo!()
}
