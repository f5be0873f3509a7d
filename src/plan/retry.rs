//! The retry button: what it changes, and when it cannot help. Pure.
//!
//! A retry makes unfinished rows due now, forgets a verdict that waits for a person, and refills the budget of automatic
//! repairs. Ids never change: a retry repeats the same attempt, it does not make a second event.

use super::{Code, ConferenceState, MeetEvent, Want};
use crate::model::{TeacherId, UnixMillis};
use crate::projection::{Session, Status};
use crate::store::TokenStatus;

/// Requests that one retried row makes at once at most: a look and a write.
const CALLS_PER_ROW: i64 = 2;

/// What a retry depends on beside the session.
#[derive(Debug, Clone, Default)]
pub struct Circumstances {
    /// The grants of the session's teachers: status, and until when writes pause.
    pub grants: Vec<(TeacherId, TokenStatus, Option<UnixMillis>)>,
    /// Pauses of work on calendars that hold now: whose (`None` for all), and the sentence that says so.
    pub pauses: Vec<(Option<TeacherId>, String)>,
    /// Why the breaker is open, when it is.
    pub breaker: Option<String>,
}

/// Why a retry cannot help, and what can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs, SCREAMING_SNAKE; one of [`Refusal::CODES`].
    pub code: &'static str,
    /// One sentence for a person.
    pub reason: String,
    /// What to do instead.
    pub next_step: String,
}

impl Refusal {
    /// Every code.
    pub const CODES: [&'static str; 11] = [
        "SESSION_CANCELED",
        "SESSION_ENDED",
        "ALREADY_READY",
        "TEACHER_NOT_CONNECTED",
        "RECONNECT_REQUIRED",
        "SCOPE_MISSING",
        "ADMIN_BLOCKED",
        "CALENDAR_LIMITED",
        "CONFIG_ERROR",
        "PAUSED",
        "NOTHING_TO_DO",
    ];

    fn new(code: &'static str, reason: impl Into<String>, next_step: impl Into<String>) -> Self {
        debug_assert!(Self::CODES.contains(&code), "{code} is listed");
        Self { code, reason: reason.into(), next_step: next_step.into() }
    }
}

/// What a retry does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retried {
    /// The rows as they should be kept.
    pub rows: Vec<MeetEvent>,
    /// Teachers whose cool-down ends: only where a verdict that waits for a person is retried.
    pub clear_cool_downs: Vec<TeacherId>,
    /// Requests to Google that follow at once, at most.
    pub calls_at_most: i64,
}

/// What a retry of the session does, or why it cannot help. `rows` are all rows of the session.
pub fn retry(
    session: &Session,
    rows: &[MeetEvent],
    circumstances: &Circumstances,
    now: UnixMillis,
) -> Result<Retried, Refusal> {
    let is_canceled = session.head.status == Status::Canceled;
    let is_over = session.details.as_ref().is_some_and(|(_, details)| details.ends_at <= now);
    if is_over {
        return Err(Refusal::new(
            "SESSION_ENDED",
            "the session is over; nothing is written at Google any more",
            "if it takes place later, change its time in the booking system",
        ));
    }
    let open: Vec<&MeetEvent> =
        rows.iter().filter(|row| !row.phase.is_final() && (!row.settled || row.failure.is_some())).collect();
    if open.is_empty() {
        return Err(nothing_open(is_canceled, rows));
    }
    let mut retried = Retried { rows: Vec::new(), clear_cool_downs: Vec::new(), calls_at_most: 0 };
    let mut refusal = None;
    for row in open {
        match hindrance(row, circumstances, now) {
            // What readers see is the newest wanted row, so its reason is the one to tell.
            Some(why) if row.want == Want::Present || refusal.is_none() => refusal = Some(why),
            Some(_) => {}
            None => {
                let waits_for_person = row.failure.as_ref().is_some_and(|failure| is_verdict(failure.code));
                if waits_for_person && cools_down(row, circumstances, now).is_some() {
                    retried.clear_cool_downs.push(row.teacher.clone());
                }
                retried.rows.push(pressed(row, now));
                retried.calls_at_most += CALLS_PER_ROW;
            }
        }
    }
    // A clean-up that can go on does not make up for a wanted event that cannot.
    match refusal {
        Some(refusal) if retried.rows.iter().all(|row| row.want == Want::Absent) && !is_canceled => Err(refusal),
        Some(refusal) if retried.rows.is_empty() => Err(refusal),
        _ => Ok(retried),
    }
}

fn nothing_open(is_canceled: bool, rows: &[MeetEvent]) -> Refusal {
    if is_canceled {
        return Refusal::new(
            "SESSION_CANCELED",
            "the session is canceled, and nothing is left of it at Google",
            "if it takes place after all, schedule it again in the booking system",
        );
    }
    let is_ready = rows.iter().any(|row| row.want == Want::Present && row.conference == ConferenceState::Ready);
    if is_ready {
        return Refusal::new(
            "ALREADY_READY",
            "the session has its link, and Google agrees with the newest version",
            "nothing; differences made by hand in the calendar are put right by themselves",
        );
    }
    Refusal::new("NOTHING_TO_DO", "nothing is wanted at Google for this session", "look at it with `session show`")
}

/// Why work on this row would be in vain now.
fn hindrance(row: &MeetEvent, circumstances: &Circumstances, now: UnixMillis) -> Option<Refusal> {
    let teacher = &row.teacher;
    let grant = circumstances.grants.iter().find(|(known, ..)| known == teacher);
    let connect = format!("let teacher {teacher} connect Google; the session goes on by itself then");
    let refusal = match grant.map(|(_, status, _)| *status) {
        None => ("TEACHER_NOT_CONNECTED", "never connected Google Calendar", connect),
        Some(TokenStatus::Disconnected | TokenStatus::Disconnecting) => {
            ("TEACHER_NOT_CONNECTED", "has disconnected Google Calendar", connect)
        }
        Some(TokenStatus::ReconnectRequired) => {
            ("RECONNECT_REQUIRED", "has to connect again: Google no longer accepts the consent", connect)
        }
        Some(TokenStatus::ScopeMissing) => (
            "SCOPE_MISSING",
            "did not allow access to the calendar",
            format!("{connect}, with the calendar box ticked"),
        ),
        Some(TokenStatus::AdminBlocked) => (
            "ADMIN_BLOCKED",
            "is kept from this app by the administrator of the Google Workspace",
            format!("ask that administrator to allow the app, then {connect}"),
        ),
        Some(TokenStatus::Connected) => return outside(row, circumstances, now),
    };
    let (code, what, next_step) = refusal;
    Some(Refusal::new(code, format!("teacher {teacher} {what}"), next_step))
}

/// What stands in the way of a teacher who is connected.
fn outside(row: &MeetEvent, circumstances: &Circumstances, now: UnixMillis) -> Option<Refusal> {
    if let Some(why) = &circumstances.breaker {
        let next_step = "mend the set-up in the Google Cloud console (`doctor` helps); one call a minute notices it, and \
                         everything goes on by itself";
        let reason = format!("Google refuses this installation, so all calls pause: {why}");
        return Some(Refusal::new("CONFIG_ERROR", reason, next_step));
    }
    let paused = |(whose, _): &&(Option<TeacherId>, String)| whose.as_ref().is_none_or(|whose| *whose == row.teacher);
    if let Some((_, sentence)) = circumstances.pauses.iter().find(paused) {
        return Some(Refusal::new(
            "PAUSED",
            sentence.clone(),
            "`meet-projector resume reconcile`; what waits is done then",
        ));
    }
    let waits_for_person = row.failure.as_ref().is_some_and(|failure| is_verdict(failure.code));
    let until = cools_down(row, circumstances, now).filter(|_| !waits_for_person)?;
    Some(Refusal::new(
        "CALENDAR_LIMITED",
        format!("Google limits changes to the calendar of teacher {} until {until}", row.teacher),
        format!("wait until {until}; it goes on by itself"),
    ))
}

fn cools_down(row: &MeetEvent, circumstances: &Circumstances, now: UnixMillis) -> Option<UnixMillis> {
    let (.., until) = circumstances.grants.iter().find(|(known, ..)| *known == row.teacher)?;
    until.filter(|until| *until > now)
}

/// Reasons after which nothing is tried for a day because a person has to do something first; the retry says that it was
/// done. All others are tried again by themselves.
fn is_verdict(code: Code) -> bool {
    match code {
        Code::MeetNotAllowed
        | Code::MeetFailed
        | Code::ConferenceReplaced
        | Code::EventRemovedByTeacher
        | Code::EventChangedByTeacher
        | Code::InvalidRequest
        | Code::Forbidden
        | Code::CalendarNotFound
        | Code::NotOrganizer => true,
        Code::TeacherNotConnected
        | Code::ReconnectRequired
        | Code::ScopeMissing
        | Code::AdminBlocked
        | Code::GoogleUnavailable
        | Code::CalendarLimited
        | Code::ConfigError
        | Code::MeetPendingTooLong
        | Code::SessionEnded
        | Code::PreviousEventNotRemoved => false,
    }
}

/// The row after the button was pressed.
fn pressed(row: &MeetEvent, now: UnixMillis) -> MeetEvent {
    let mut row = row.clone();
    row.next_attempt_at = Some(now);
    row.repairs = 0;
    row.repairs_since = None;
    row.refetches = 0;
    // A failure that goes away by itself keeps its age: readers should go on seeing how long it has lasted.
    row.failure = row.failure.filter(|failure| !is_verdict(failure.code));
    row
}
