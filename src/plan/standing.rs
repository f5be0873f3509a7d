//! Where a live event stands: in agreement, in need of a call, or waiting for time or a person.

use super::{Code, ConferenceState, MeetEvent};
use crate::google::Wanted;
use crate::model::UnixMillis;

const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
/// Checks that only a person or a change of settings at Google can make succeed are repeated daily.
pub(super) const DAY_MS: i64 = 24 * HOUR_MS;
/// Create requests for one event before we give up; each has a new request id, because Google ignores a repeated one.
const CONFERENCE_ATTEMPTS_MAX: i64 = 5;
/// A conference that is pending for longer is shown as an error, while the polling goes on.
const CONFERENCE_PENDING_MAX_MS: i64 = 30 * MINUTE_MS;

/// Where a live event stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Google agrees with what is wanted, and there is a link.
    Settled {
        /// When to look again; `None` once the session is about to start.
        check_at: Option<UnixMillis>,
    },
    /// Something differs that a call can mend now.
    Due,
    /// Nothing to call before `until`.
    Waiting {
        /// When to look again.
        until: UnixMillis,
        /// What readers are told, if anything.
        error: Option<(Code, &'static str)>,
    },
}

/// Where a row in phase `Live` stands.
pub(super) fn standing(row: &MeetEvent, wanted: &Wanted, repairs_max: i64, now: UnixMillis) -> Standing {
    if row.written_hash.as_deref() != Some(&wanted.hash) {
        return Standing::Due;
    }
    if is_drifted(row) {
        if may_repair(row, Code::EventChangedByTeacher, repairs_max, now) {
            return Standing::Due;
        }
        return wait_a_day(
            now,
            Code::EventChangedByTeacher,
            "the teacher changed the event again after it was put right",
        );
    }
    match row.conference {
        ConferenceState::Ready if row.link.is_some() => {
            Standing::Settled { check_at: next_check(row, wanted.starts_at, now) }
        }
        ConferenceState::Pending => pending(row, now),
        ConferenceState::Ready | ConferenceState::None | ConferenceState::Failed
            if row.conference_attempt >= CONFERENCE_ATTEMPTS_MAX =>
        {
            wait_a_day(now, Code::MeetFailed, "Google failed to make a Meet conference five times")
        }
        ConferenceState::Failed => {
            Standing::Waiting { until: now.plus((5 * SECOND_MS) << row.conference_attempt.clamp(0, 5)), error: None }
        }
        ConferenceState::Ready | ConferenceState::None => Standing::Due,
        ConferenceState::NotAllowed => {
            wait_a_day(now, Code::MeetNotAllowed, "Google Meet is not allowed on this calendar")
        }
        ConferenceState::Replaced => {
            wait_a_day(now, Code::ConferenceReplaced, "Google Meet was replaced by another conference in the calendar")
        }
    }
}

fn wait_a_day(now: UnixMillis, code: Code, message: &'static str) -> Standing {
    Standing::Waiting { until: now.plus(DAY_MS), error: Some((code, message)) }
}

/// Whether somebody changed an owned field since Google took our last write.
pub(super) fn is_drifted(row: &MeetEvent) -> bool {
    row.accepted_hash.is_some() && row.observed_hash != row.accepted_hash
}

/// Whether one more automatic repair is allowed: `repairs_max` in 24 hours, and none after giving up until a person
/// presses retry (which clears the failure).
pub(super) fn may_repair(row: &MeetEvent, given_up: Code, repairs_max: i64, now: UnixMillis) -> bool {
    if row.failure.as_ref().is_some_and(|failure| failure.code == given_up) {
        return false;
    }
    let in_window = row.repairs_since.is_some_and(|since| now.since(since) < DAY_MS);
    !in_window || row.repairs < repairs_max
}

/// Counts one repair.
pub(super) fn count_repair(row: &mut MeetEvent, now: UnixMillis) {
    if row.repairs_since.is_none_or(|since| now.since(since) >= DAY_MS) {
        row.repairs_since = Some(now);
        row.repairs = 0;
    }
    row.repairs += 1;
}

/// 1, 2, 4, 8, 15, 30, 60 s after the request, then every 5 minutes: Google calls nobody back, and most conferences are
/// ready within a second.
fn pending(row: &MeetEvent, now: UnixMillis) -> Standing {
    let age = row.conference_since.map_or(0, |since| now.since(since));
    let steps = [1, 2, 4, 8, 15, 30, 60].map(|seconds| seconds * SECOND_MS);
    let mut at = 0;
    let next = steps.iter().find_map(|step| {
        at += step;
        (at > age).then_some(at - age)
    });
    let error = (age >= CONFERENCE_PENDING_MAX_MS)
        .then_some((Code::MeetPendingTooLong, "Google has been making the Meet conference for more than half an hour"));
    Standing::Waiting { until: now.plus(next.unwrap_or(5 * MINUTE_MS)), error }
}

/// When to compare a settled event with Google again: a minute after a write, daily, and 24 h, 2 h and 15 min before the
/// start, spread by up to a quarter so that a replay does not ask for everything at once.
fn next_check(row: &MeetEvent, starts_at: UnixMillis, now: UnixMillis) -> Option<UnixMillis> {
    let spread = |range: i64| {
        let id = row.binding.as_ref().map_or("", |binding| binding.event_id.as_str());
        id.bytes().take(8).fold(0_i64, |sum, byte| sum * 31 + i64::from(byte)).rem_euclid(range)
    };
    let after_write = row.confirmed_at.map(|at| at.plus(MINUTE_MS + spread(15 * SECOND_MS)));
    let before_start = [DAY_MS, 2 * HOUR_MS, 15 * MINUTE_MS].map(|before| Some(starts_at.plus(-before)));
    let daily = Some(now.plus(DAY_MS - spread(DAY_MS / 4)));
    let last = starts_at.plus(-15 * MINUTE_MS);
    std::iter::once(after_write)
        .chain(before_start)
        .chain([daily])
        .flatten()
        .filter(|at| *at > now && (*at <= last || Some(*at) == after_write))
        .min()
}
