//! Which rows a session should have: one wanted row on the teacher's calendar, all others on their way out.

use super::{Code, Failure, MeetEvent, Phase, Want};
use crate::model::UnixMillis;
use crate::projection::{Session, Status};

/// The rows of `session` that change or are new because what is wanted changed; to be called whenever
/// [`Session::desired_hash`] moved. `rows` are all rows of the session.
///
/// Scheduled and canceled again before anything was sent ends in no call at all, and so do ten reschedules in one call:
/// the rows say what is wanted, not what happened.
pub fn assign(session: &Session, rows: &[MeetEvent], now: UnixMillis) -> Vec<MeetEvent> {
    let target = match session.head.status {
        Status::Scheduled => session.details.as_ref().map(|_| &session.head.teacher),
        Status::Canceled => None,
    };
    let mut changed: Vec<MeetEvent> = rows
        .iter()
        .filter(|row| row.want == Want::Present && target != Some(&row.teacher))
        .map(|row| retire(row, now))
        .collect();

    let Some(teacher) = target else { return changed };
    // A row for which nothing was ever sent may be wanted again: no id of it was used.
    let kept = rows.iter().find(|row| row.want == Want::Present && row.teacher == *teacher).or_else(|| {
        rows.iter().find(|row| row.teacher == *teacher && row.phase == Phase::Absent && row.binding.is_none())
    });
    let mut row = if let Some(row) = kept {
        let mut row = row.clone();
        if row.phase == Phase::Absent {
            row.phase = Phase::New;
        }
        row.want = Want::Present;
        row.desired_revision += 1;
        row.refetches = 0;
        row
    } else {
        let ordinal = rows.iter().map(|row| row.ordinal + 1).max().unwrap_or(0);
        MeetEvent::new(session.id.clone(), ordinal, teacher.clone(), now)
    };
    row.settled = false;
    row.failure = None;
    row.next_attempt_at = Some(now);
    if let Some(ended) = ended(session, now) {
        // Nothing is ever written for a session that is over, so there is no need to claim the row to find that out.
        row.failure = Some(ended);
        row.next_attempt_at = None;
    }
    if row.phase == Phase::New {
        // What it waits for is looked at now, not when a late look is due; a result that is under way counts no more.
        let is_awaited =
            |other: &&MeetEvent| other.want == Want::Absent && !other.phase.is_final() && other.teacher == row.teacher;
        let due = |other: &MeetEvent| MeetEvent {
            desired_revision: other.desired_revision + 1,
            next_attempt_at: Some(now),
            ..other.clone()
        };
        changed.extend(rows.iter().filter(is_awaited).map(due));
    }
    changed.push(row);
    changed
}

/// The failure of a session that is over without a link.
pub(super) fn ended(session: &Session, now: UnixMillis) -> Option<Failure> {
    let (_, details) = session.details.as_ref()?;
    (details.ends_at <= now).then(|| Failure {
        code: Code::SessionEnded,
        message: "the session was over before its link could be made".into(),
        since: details.ends_at,
        attempts: 0,
    })
}

fn retire(row: &MeetEvent, now: UnixMillis) -> MeetEvent {
    let mut row = row.clone();
    row.want = Want::Absent;
    row.desired_revision += 1;
    row.failure = None;
    if row.phase == Phase::New && row.intent.is_none() {
        row.phase = Phase::Absent;
        row.binding = None;
        row.settled = true;
        row.next_attempt_at = None;
    } else if row.phase.is_final() {
        row.settled = true;
        row.next_attempt_at = None;
    } else {
        row.settled = false;
        row.next_attempt_at = Some(now);
    }
    row
}
