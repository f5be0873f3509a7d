//! The next call for one row.

use super::assign::ended;
use super::situation::wanted;
use super::standing::{DAY_MS, Standing, is_drifted, may_repair, standing};
use super::{Account, Binding, Code, ConferenceState, Failure, Intent, MeetEvent, Phase, Sibling, Situation, Want};
use crate::google::{Call, Wanted};
use crate::model::{EventId, GoogleSub, SessionId, TeacherId, UnixMillis};
use crate::store::TokenStatus;

/// How long a new id waits before it asks again whether the older event is gone (it is woken when that happens).
const PREDECESSOR_RECHECK_MS: i64 = 30_000;

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

/// Decides the next call for a row that is due. Pure; carrying a plan out and planning again ends, with no further call,
/// in a row that rests.
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut row = situation.row.clone();
    if row.phase.is_final() {
        row.next_attempt_at = None;
        row.settled = true;
        return rest(row);
    }
    if let Some(intent) = row.intent.take() {
        // The process that began this write never recorded how it ended.
        unclear(&mut row, &intent.operation, intent.at);
    }
    match row.want {
        Want::Present => present(situation, row),
        Want::Absent => absent(situation, row),
    }
}

fn rest(row: MeetEvent) -> Plan {
    Plan { row, successor: None, call: None }
}

fn rest_until(mut row: MeetEvent, until: UnixMillis) -> Plan {
    row.next_attempt_at = Some(until);
    rest(row)
}

fn present(situation: &Situation<'_>, mut row: MeetEvent) -> Plan {
    let now = situation.now;
    if let Some(ended) = ended(situation.session, now) {
        if !row.settled {
            row.failure = Some(ended);
        }
        row.next_attempt_at = None;
        return rest(row);
    }
    let (account, calendar) = match usable(situation.account) {
        Ok(usable) => usable,
        Err((code, message)) => return blocked(row, code, message, now),
    };

    if is_leaving(situation.account) {
        if row.phase != Phase::New {
            // The event goes first, while the grant still serves that; the new row waits for a new consent.
            return hand_over(situation, row);
        }
        row.binding = None;
        return blocked(row, Code::TeacherNotConnected, "the teacher is disconnecting Google Calendar", now);
    }
    if let Some(binding) = &row.binding
        && binding.account != *account
    {
        if row.phase != Phase::New {
            // The teacher connected another Google account: the event on the old one goes, a new one is made here.
            return hand_over(situation, row);
        }
        row.binding = None;
    }
    if row.phase == Phase::New && situation.predecessor_may_live(account) {
        let message = "an earlier event of this session is still being removed from the calendar";
        row.failure = Some(failure(&row, Code::PreviousEventNotRemoved, message, now));
        return rest_until(row, now.plus(PREDECESSOR_RECHECK_MS));
    }
    if row.binding.is_none() {
        let generation = situation.next_generation(account);
        row.binding = Some(Binding {
            account: account.clone(),
            calendar: calendar.to_owned(),
            generation,
            event_id: EventId::derive(&situation.policy.environment, &row.session, account, generation),
        });
    }
    let Some(wanted) = wanted(situation.session, &row, situation.policy) else {
        // Canceled meanwhile: the fold retires the row and makes it due.
        row.next_attempt_at = None;
        return rest(row);
    };
    match next_call(situation, &mut row, &wanted) {
        Some(call) => issue(situation, row, call),
        None => rest(row),
    }
}

/// The event of this row goes, and a new row takes over.
fn hand_over(situation: &Situation<'_>, mut row: MeetEvent) -> Plan {
    let now = situation.now;
    let successor = MeetEvent::new(row.session.clone(), situation.next_ordinal(), row.teacher.clone(), now);
    row.want = Want::Absent;
    row.settled = false;
    row.failure = None;
    row.next_attempt_at = Some(now);
    Plan { row, successor: Some(successor), call: None }
}

fn is_leaving(account: &Account) -> bool {
    matches!(account, Account::Google { status: TokenStatus::Disconnecting, .. })
}

/// The call that a row needs on a calendar that can be used, or `None` with the row at rest.
fn next_call(situation: &Situation<'_>, row: &mut MeetEvent, wanted: &Wanted) -> Option<Call> {
    let now = situation.now;
    let conference_request = || wanted.id.conference_request(row.conference_attempt);
    match row.phase {
        Phase::New | Phase::Missing => Some(Call::Insert {
            conference_request: (row.conference != ConferenceState::NotAllowed).then(conference_request),
        }),
        Phase::Unknown => Some(Call::Get { if_none_match: None }),
        // Never seen alive under this id: it may be one we burnt ourselves before the database was lost.
        Phase::Tombstone if row.written_hash.is_none() => Some(Call::Find),
        Phase::Tombstone => {
            if may_repair(row, Code::EventRemovedByTeacher, situation.policy.repairs_max, now) {
                // Where stream and database were put back together, the session may have another event by now, and one
                // is enough: `taken_at` says that none was found.
                return Some(if row.taken_at.is_some() { Call::Restore } else { Call::Find });
            }
            let gave_up = row.failure.as_ref().is_some_and(|failure| failure.code == Code::EventRemovedByTeacher);
            if gave_up {
                return Some(Call::Get { if_none_match: None });
            }
            let message = "the teacher removed the event from the calendar again after it was restored";
            row.failure = Some(failure(row, Code::EventRemovedByTeacher, message, now));
            row.next_attempt_at = Some(now.plus(DAY_MS));
            None
        }
        Phase::Live => {
            let etag = row.etag.clone().unwrap_or_default();
            match (standing(row, wanted, situation.policy.repairs_max, now), row.conference) {
                (Standing::Settled { check_at }, _) if !row.settled => {
                    // What is wanted moved away and back: nothing to write.
                    row.settled = true;
                    row.failure = None;
                    row.next_attempt_at = check_at;
                    None
                }
                (Standing::Settled { .. }, _) => Some(Call::Get { if_none_match: Some(etag) }),
                _ if row.written_hash.as_deref() != Some(&wanted.hash) => Some(Call::Patch { etag }),
                (Standing::Due, _) if is_drifted(row) => Some(Call::Patch { etag }),
                _ if is_drifted(row) => Some(Call::Get { if_none_match: Some(etag) }),
                (_, ConferenceState::Pending) => Some(Call::Get { if_none_match: None }),
                (_, ConferenceState::Replaced) => Some(Call::Get { if_none_match: Some(etag) }),
                _ => Some(Call::AddConference { etag, conference_request: conference_request() }),
            }
        }
        Phase::Absent | Phase::Foreign => None,
    }
}

fn absent(situation: &Situation<'_>, mut row: MeetEvent) -> Plan {
    let now = situation.now;
    if is_search(&row) {
        return search(situation, row);
    }
    let Some(binding) = &row.binding else {
        return rest(gone(row));
    };
    if row.phase == Phase::New {
        return rest(gone(row));
    }
    if ended(situation.session, now).is_some() {
        // A lesson that is over keeps its event: deleting it now helps nobody.
        row.next_attempt_at = None;
        return rest(row);
    }
    match usable(situation.account) {
        Err((code, message)) => return blocked(row, code, message, now),
        Ok((account, _)) if *account != binding.account => {
            let message = "the event is on a Google account that is no longer connected";
            return blocked(row, Code::ReconnectRequired, message, now);
        }
        Ok(_) => {}
    }
    let was_refused = row.failure.as_ref().is_some_and(|failure| failure.code == Code::Forbidden);
    let call = match row.phase {
        Phase::Unknown if was_refused => Call::Get { if_none_match: None },
        Phase::Missing if situation.must_use_up(&row) => Call::Insert { conference_request: None },
        _ => Call::Delete,
    };
    issue(situation, row, call)
}

/// A row that looks for an event of ours that nobody remembers: unwanted, of no known id, and nothing is known of it.
/// [`search_for`] makes them after the database was lost or put back.
pub(super) fn is_search(row: &MeetEvent) -> bool {
    row.want == Want::Absent && row.phase == Phase::Unknown && row.binding.is_none()
}

/// A row that looks for a forgotten event of the session on that teacher's calendar and removes it.
pub fn search_for(session: SessionId, ordinal: i64, teacher: TeacherId, now: UnixMillis) -> MeetEvent {
    MeetEvent { want: Want::Absent, phase: Phase::Unknown, ..MeetEvent::new(session, ordinal, teacher, now) }
}

fn search(situation: &Situation<'_>, mut row: MeetEvent) -> Plan {
    let now = situation.now;
    if ended(situation.session, now).is_some() {
        return rest(gone(row));
    }
    match usable(situation.account) {
        Err((code, message)) => blocked(row, code, message, now),
        Ok((account, calendar)) => {
            // What is wanted on this calendar has to be known first, or it would be taken for what is forgotten.
            let may_be_here = |sibling: &Sibling| match &sibling.account {
                Some(other) => other == account,
                None => sibling.teacher == row.teacher,
            };
            let is_unclear = |sibling: &Sibling| {
                sibling.want == Want::Present && !matches!(sibling.phase, Phase::Live | Phase::Absent | Phase::Foreign)
            };
            if situation.siblings.iter().any(|sibling| is_unclear(sibling) && may_be_here(sibling)) {
                return rest_until(row, now.plus(PREDECESSOR_RECHECK_MS));
            }
            // An address for the call; what is found has an id of its own.
            row.binding = Some(Binding {
                account: account.clone(),
                calendar: calendar.to_owned(),
                generation: 0,
                event_id: EventId::derive(&situation.policy.environment, &row.session, account, 0),
            });
            Plan { row, successor: None, call: Some(Call::Find) }
        }
    }
}

/// A row of which a write may or may not have landed, or may land yet: look before anything is written.
pub(super) fn unclear(row: &mut MeetEvent, operation: &str, at: UnixMillis) {
    row.phase = Phase::Unknown;
    if matches!(operation, "insert" | "restore") {
        row.insert_unclear_at = Some(at);
    }
    if matches!(operation, "patch" | "restore") {
        // Should it land after the look, the check that follows a write finds it.
        row.confirmed_at = row.confirmed_at.map(|_| at);
    }
}

/// A row whose event is known to be gone, or never was.
pub(super) fn gone(mut row: MeetEvent) -> MeetEvent {
    row.phase = Phase::Absent;
    row.settled = true;
    row.failure = None;
    row.next_attempt_at = None;
    row
}

fn issue(situation: &Situation<'_>, mut row: MeetEvent, call: Call) -> Plan {
    if call.is_write() {
        if let Account::Google { cool_down_until: Some(until), .. } = situation.account
            && *until > situation.now
        {
            let message = "Google limits changes to this calendar for some hours";
            row.failure = Some(failure(&row, Code::CalendarLimited, message, situation.now));
            return rest_until(row, *until);
        }
        row.intent = Some(Intent { operation: call.operation().to_owned(), at: situation.now });
    }
    Plan { row, successor: None, call: Some(call) }
}

/// A row that waits for a person; a settled one keeps its status, because its link works all the same. Not so after a
/// disconnect: then nobody looks after the event any more, and what became of it is looked at after a new consent.
fn blocked(mut row: MeetEvent, code: Code, message: &str, now: UnixMillis) -> Plan {
    if code == Code::TeacherNotConnected {
        row.settled = false;
        if row.phase == Phase::Live {
            row.phase = Phase::Unknown;
        }
    }
    if row.settled {
        return rest_until(row, now.plus(DAY_MS));
    }
    row.failure = Some(failure(&row, code, message, now));
    row.next_attempt_at = None;
    rest(row)
}

/// A failure that keeps its beginning while the code stays the same.
pub(super) fn failure(row: &MeetEvent, code: Code, message: &str, now: UnixMillis) -> Failure {
    let before = row.failure.as_ref().filter(|before| before.code == code);
    Failure {
        code,
        message: message.to_owned(),
        since: before.map_or(now, |before| before.since),
        attempts: before.map_or(0, |before| before.attempts),
    }
}

fn usable(account: &Account) -> Result<(&GoogleSub, &str), (Code, &'static str)> {
    match account {
        Account::None => Err((Code::TeacherNotConnected, "the teacher has not connected Google Calendar")),
        Account::Google { account, calendar, status, .. } => match status {
            TokenStatus::Connected | TokenStatus::Disconnecting => Ok((account, calendar)),
            TokenStatus::Disconnected => {
                Err((Code::TeacherNotConnected, "the teacher has disconnected Google Calendar"))
            }
            TokenStatus::ReconnectRequired => {
                Err((Code::ReconnectRequired, "Google no longer accepts the teacher's consent"))
            }
            TokenStatus::ScopeMissing => Err((Code::ScopeMissing, "the teacher did not allow access to the calendar")),
            TokenStatus::AdminBlocked => {
                Err((Code::AdminBlocked, "the administrator of the teacher's Google Workspace blocks this app"))
            }
        },
    }
}
