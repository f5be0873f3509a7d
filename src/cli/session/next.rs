//! What happens next with a session, and why, in words for the person who is asked about it. Pure.

use super::super::moment;
use crate::model::UnixMillis;
use crate::plan::{MeetEvent, Phase, Refusal, Retried, Want};
use crate::projection::{Session, Status};
use crate::status::advice;

/// What is next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Next {
    /// When the service looks at it again by itself; `None`: not before something changes.
    pub at: Option<UnixMillis>,
    /// Why it stands as it does, and what moves it.
    pub why: String,
    /// What a person can do: `connect_teacher`, `retry`, …; `None` when nobody has to do anything.
    pub action: Option<&'static str>,
}

/// The newest row that counts: the wanted one with the highest ordinal, else one on its way out.
fn row_that_counts(rows: &[MeetEvent]) -> Option<&MeetEvent> {
    let newest = |want| rows.iter().filter(move |row| row.want == want).max_by_key(|row| row.ordinal);
    newest(Want::Present).or_else(|| rows.iter().find(|row| !row.settled)).or_else(|| newest(Want::Absent))
}

/// What is next; `retry` is what pressing the button would do.
pub fn next(session: &Session, rows: &[MeetEvent], retry: &Result<Retried, Refusal>, now: UnixMillis) -> Next {
    let is_canceled = session.head.status == Status::Canceled;
    let cleanup: Vec<_> = rows.iter().filter(|row| row.want == Want::Absent && !row.settled).collect();
    let Some(row) = row_that_counts(rows) else {
        let why = "nothing is wanted at Google, and nothing was ever sent".to_owned();
        return Next { at: None, why, action: None };
    };
    let at = rows.iter().filter(|row| !row.phase.is_final()).filter_map(|row| row.next_attempt_at).min();
    // A wish that cannot go on is told by the same words that the button answers with.
    if let Err(refusal) = retry
        && !matches!(refusal.code, "ALREADY_READY" | "SESSION_CANCELED" | "NOTHING_TO_DO")
    {
        let action = row.failure.as_ref().map(|failure| advice(failure.code).0);
        return Next { at, why: format!("{}; next step: {}", refusal.reason, refusal.next_step), action };
    }
    let when = at.map_or_else(|| "when something changes".to_owned(), |at| moment::both(at, now));
    if is_canceled || row.want == Want::Absent {
        let why = match cleanup.first() {
            None => "the session is canceled, and nothing of it is left at Google".to_owned(),
            Some(row) => {
                format!("the event is still being removed from the calendar of {}; next try {when}", row.teacher)
            }
        };
        return Next { at, why, action: None };
    }
    if let Some(failure) = &row.failure {
        let (action, by_itself) = advice(failure.code);
        let goes_on =
            if by_itself { "it is tried again by itself" } else { "a person has to act; it is looked at again" };
        let since = moment::relative(failure.since, now);
        let why = format!("{} (since {since}, {} attempts); {goes_on} {when}", failure.message, failure.attempts);
        return Next { at, why, action: Some(action) };
    }
    if row.settled {
        let mut why = format!("Google agrees with the newest version; it is compared again {when}");
        if let Some(old) = cleanup.first() {
            why.push_str(&format!("; an older event is still being removed from the calendar of {}", old.teacher));
        }
        return Next { at, why, action: None };
    }
    let doing = match (&row.intent, row.phase) {
        (Some(intent), _) => {
            let begun = moment::relative(intent.at, now);
            format!("a {} was begun {begun} and its outcome is not recorded yet", intent.operation)
        }
        (None, Phase::New | Phase::Missing) => "the event is to be made at Google".to_owned(),
        (None, Phase::Unknown) => "the last outcome was not clear, so Google is asked what there is".to_owned(),
        (None, Phase::Tombstone) => "the event was deleted in the calendar and is to be restored".to_owned(),
        (None, _) => "the newest version is to be written, or the conference to become ready".to_owned(),
    };
    Next { at, why: format!("{doing}; next step {when}"), action: None }
}
