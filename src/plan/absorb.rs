//! What an answer of Google makes of a row.

use super::next::{failure, gone, search_for, unclear};
use super::situation::wanted;
use super::standing::{DAY_MS, Standing, count_repair, is_drifted, standing};
use super::{Code, ConferenceState, MeetEvent, Phase, Situation, Want};
use crate::google::error::{Class, GoogleError};
use crate::google::{Answer, Call, RemoteConference, RemoteEvent, RemoteStatus, Wanted};
use crate::model::{EventId, UnixMillis};

const MINUTE_MS: i64 = 60_000;
/// Reads may lag behind a confirmed write for this long before a 404 counts.
const REPLICATION_MS: i64 = 2 * MINUTE_MS;
/// After a delete that found nothing although an insert may still land: look again after 1, 5 and 15 minutes.
const LATE_CHECKS_MS: [i64; 3] = [MINUTE_MS, 5 * MINUTE_MS, 15 * MINUTE_MS];
/// ETag conflicts in a row before we slow down.
const REFETCHES_MAX: i64 = 5;
/// Ids burnt for one session and account before a person has to look.
const GENERATIONS_MAX: i64 = 8;
/// A failed look at a settled event is no failure of the session; it is repeated after this time.
const CHECK_RETRY_MS: i64 = 5 * MINUTE_MS;

/// What an answer made of the row.
#[derive(Debug, Clone, PartialEq)]
pub struct Absorbed {
    /// The row to keep.
    pub row: MeetEvent,
    /// A new row that takes over, where the id is burnt.
    pub successor: Option<MeetEvent>,
}

/// Takes Google's answer in; `situation.row` is the row of the plan that led to `call`. `delay_ms` computes the wait
/// before attempt `n` (from 1), jitter included. Pure.
pub fn absorb(
    situation: &Situation<'_>,
    call: &Call,
    answer: Result<Answer, GoogleError>,
    delay_ms: &dyn Fn(i64) -> i64,
) -> Absorbed {
    let mut row = situation.row.clone();
    row.intent = None;
    let step = Step { situation, call, delay_ms };
    match answer {
        Ok(Answer::Deleted) => keep(gone(row)),
        Ok(Answer::NotModified) => step.stand(row),
        Ok(Answer::Event(event)) => step.saw(row, &event),
        Ok(Answer::Found(events)) => step.found(row, &events),
        Err(error) => step.failed(row, &error),
    }
}

/// The row alone.
fn keep(row: MeetEvent) -> Absorbed {
    Absorbed { row, successor: None }
}

struct Step<'a> {
    situation: &'a Situation<'a>,
    call: &'a Call,
    delay_ms: &'a dyn Fn(i64) -> i64,
}

impl Step<'_> {
    fn now(&self) -> UnixMillis {
        self.situation.now
    }

    /// Due again at once.
    fn again(&self, mut row: MeetEvent) -> Absorbed {
        row.next_attempt_at = Some(self.now());
        keep(row)
    }

    /// What the event should look like, unless it should be gone.
    fn wanted(&self, row: &MeetEvent) -> Option<Wanted> {
        wanted(self.situation.session, row, self.situation.policy)
    }

    /// Gives up the id of this row and hands over to a new one.
    fn burn(&self, mut row: MeetEvent, phase: Phase) -> Absorbed {
        if row.want == Want::Absent {
            return keep(gone(row));
        }
        if row.binding.as_ref().is_some_and(|binding| binding.generation + 1 >= GENERATIONS_MAX) {
            return self.gave_up(row, Code::InvalidRequest, "eight event ids of this session are used up");
        }
        let successor =
            MeetEvent::new(row.session.clone(), self.situation.next_ordinal(), row.teacher.clone(), self.now());
        row.want = Want::Absent;
        row = gone(row);
        row.phase = phase;
        Absorbed { row, successor: Some(successor) }
    }

    /// Somebody has to act; looked at again in a day.
    fn gave_up(&self, mut row: MeetEvent, code: Code, message: &str) -> Absorbed {
        let mut failure = failure(&row, code, message, self.now());
        failure.attempts += 1;
        row.failure = Some(failure);
        row.settled = false;
        row.next_attempt_at = Some(self.now().plus(DAY_MS));
        keep(row)
    }

    /// Decides how a live row rests or goes on.
    fn stand(&self, mut row: MeetEvent) -> Absorbed {
        let Some(wanted) = self.wanted(&row) else { return self.again(row) };
        match standing(&row, &wanted, self.situation.policy.repairs_max, self.now()) {
            Standing::Settled { check_at } => {
                row.settled = true;
                row.failure = None;
                row.refetches = 0;
                row.next_attempt_at = check_at;
            }
            Standing::Due => {
                row.settled = false;
                let pause = if row.refetches > REFETCHES_MAX { (self.delay_ms)(row.refetches) } else { 0 };
                row.next_attempt_at = Some(self.now().plus(pause));
            }
            Standing::Waiting { until, error } => {
                row.settled = false;
                row.failure = error.map(|(code, message)| failure(&row, code, message, self.now()));
                row.next_attempt_at = Some(until);
            }
        }
        keep(row)
    }

    fn saw(&self, mut row: MeetEvent, event: &RemoteEvent) -> Absorbed {
        let ours = event.marked_session.as_deref() == Some(row.session.as_str());
        let is_reply_to_write = self.call.is_write();
        if event.status == RemoteStatus::Cancelled {
            if row.want == Want::Absent {
                return self.found_deleted(row);
            }
            // A deleted event may have lost its properties, so the marker is not asked for here.
            row.phase = Phase::Tombstone;
            row.etag = Some(event.etag.clone());
            row.settled = false;
            return match row.failure.as_ref().map(|failure| failure.code) {
                Some(Code::EventRemovedByTeacher) => {
                    row.next_attempt_at = Some(self.now().plus(DAY_MS));
                    keep(row)
                }
                _ => self.again(row),
            };
        }
        if row.want == Want::Absent {
            row.phase = Phase::Live;
            if is_reply_to_write {
                return self.again(row);
            }
            // Only after a refused delete do we look at an event that should be gone.
            row.next_attempt_at = Some(self.now().plus(DAY_MS));
            return keep(row);
        }
        if !ours && !is_reply_to_write {
            return self.burn(row, Phase::Foreign);
        }
        let Some(wanted) = self.wanted(&row) else { return self.again(row) };
        let repaired = is_drifted(&row) && matches!(self.call, Call::Patch { .. });
        self.take_in(&mut row, event, &wanted);
        if repaired || *self.call == Call::Restore {
            count_repair(&mut row, self.now());
        }
        self.stand(row)
    }

    /// Takes over what a live event of ours looks like.
    fn take_in(&self, row: &mut MeetEvent, event: &RemoteEvent, wanted: &Wanted) {
        let now = self.now();
        row.phase = Phase::Live;
        row.etag = Some(event.etag.clone());
        row.ical_uid = event.ical_uid.clone().or(row.ical_uid.take());
        row.observed_hash = Some(event.owned_hash.clone());
        row.taken_at = None;
        row.insert_unclear_at = None;
        let times_agree = event.starts_at == Some(wanted.starts_at) && event.ends_at == Some(wanted.ends_at);
        let says_written = event.marked_hash.as_deref() == Some(&wanted.hash);
        match self.call {
            Call::Insert { .. } | Call::Patch { .. } if times_agree => {
                row.written_hash = Some(wanted.hash.clone());
                row.accepted_hash = Some(event.owned_hash.clone());
                row.confirmed_at = Some(now);
            }
            Call::Insert { .. } | Call::Patch { .. } => {
                // Google answered with other times than we sent: not what is wanted, whatever the marker says.
                row.written_hash = Some(String::new());
                row.confirmed_at = Some(now);
                row.refetches += 1;
            }
            Call::AddConference { .. } => {
                row.accepted_hash = Some(event.owned_hash.clone());
                row.confirmed_at = Some(now);
            }
            // A write of ours that we did not know to have landed, or one from before the database was lost. Where it is
            // not what is wanted, or was moved by hand since, an unknown hash makes the next step a patch, and nobody's
            // edit is blamed for it.
            _ if event.marked_hash != row.written_hash => {
                let is_as_wanted = says_written && times_agree;
                row.written_hash = Some(if is_as_wanted { wanted.hash.clone() } else { String::new() });
                row.accepted_hash = Some(event.owned_hash.clone());
                row.confirmed_at = row.confirmed_at.or(Some(now));
            }
            _ => {}
        }
        if *self.call == Call::Restore {
            // A write like the others: somebody who deletes again is noticed after a minute, not the next day.
            row.confirmed_at = Some(now);
        }
        self.take_conference(row, &event.conference);
    }

    fn take_conference(&self, row: &mut MeetEvent, conference: &RemoteConference) {
        let asked = matches!(self.call, Call::Insert { conference_request: Some(_) } | Call::AddConference { .. });
        let was_pending = row.conference == ConferenceState::Pending;
        match conference {
            RemoteConference::Meet(link) => {
                row.link = Some(link.clone());
                row.conference = ConferenceState::Ready;
                row.conference_since = None;
            }
            RemoteConference::Pending => {
                if !was_pending || asked {
                    row.conference_since = Some(self.now());
                }
                row.conference = ConferenceState::Pending;
            }
            RemoteConference::Failed => {
                // That request id is used up: Google ignores it from now on.
                if row.conference != ConferenceState::Failed || asked {
                    row.conference_attempt += 1;
                }
                row.conference = ConferenceState::Failed;
            }
            RemoteConference::None => {
                if row.conference != ConferenceState::NotAllowed {
                    if asked || matches!(row.conference, ConferenceState::Ready | ConferenceState::Pending) {
                        row.conference_attempt += 1;
                    }
                    row.conference = ConferenceState::None;
                }
                row.link = None;
            }
            RemoteConference::Other => {
                row.link = None;
                row.conference = ConferenceState::Replaced;
            }
        }
    }

    /// Looking for forgotten events of a session: what is found and belongs to no other row goes, and then it is looked
    /// for another one.
    fn found_forgotten(&self, mut row: MeetEvent, events: &[RemoteEvent]) -> Absorbed {
        let environment = self.situation.policy.environment.as_str();
        let remembered: Vec<EventId> = self
            .situation
            .siblings
            .iter()
            .filter_map(|sibling| {
                let (account, generation) = (sibling.account.as_ref()?, sibling.generation?);
                Some(EventId::derive(environment, &row.session, account, generation))
            })
            .collect();
        let forgotten = events.iter().find_map(|event| {
            let id = EventId::parse(event.id.as_str()).ok().filter(|id| !remembered.contains(id))?;
            let is_ours = event.status == RemoteStatus::Live
                && event.marked_session.as_deref() == Some(row.session.as_str())
                && event.marked_environment.as_deref() == Some(environment);
            is_ours.then_some((id, event))
        });
        let Some((event_id, event)) = forgotten else {
            row.binding = None;
            return keep(gone(row));
        };
        if let Some(binding) = &mut row.binding {
            let is_of =
                |generation| EventId::derive(environment, &row.session, &binding.account, generation) == event_id;
            binding.generation = (0..GENERATIONS_MAX).find(|generation| is_of(*generation)).unwrap_or(0);
            binding.event_id = event_id;
        }
        row.phase = Phase::Live;
        row.etag = Some(event.etag.clone());
        row.failure = None;
        row.next_attempt_at = Some(self.now());
        let next = self.situation.next_ordinal();
        let successor = search_for(row.session.clone(), next, row.teacher.clone(), self.now());
        // So many forgotten events of one session are no accident of ours; a person should look.
        let goes_on = next < 4 * GENERATIONS_MAX;
        Absorbed { row, successor: goes_on.then_some(successor) }
    }

    /// Looking for an event of ours under any id, because the one of this row is a tombstone we know nothing of.
    fn found(&self, mut row: MeetEvent, events: &[RemoteEvent]) -> Absorbed {
        if row.want == Want::Absent {
            return self.found_forgotten(row, events);
        }
        let environment = self.situation.policy.environment.as_str();
        let alive = events.iter().find_map(|event| {
            let ours = event.status == RemoteStatus::Live
                && event.marked_session.as_deref() == Some(row.session.as_str())
                && event.marked_environment.as_deref() == Some(environment);
            ours.then(|| EventId::parse(event.id.as_str()).ok()).flatten().map(|id| (id, event))
        });
        let Some((event_id, event)) = alive else {
            if row.written_hash.is_none() {
                return self.burn(row, Phase::Absent);
            }
            // The only one the session has, and we saw it alive: it can be restored.
            row.taken_at = Some(self.now());
            return self.again(row);
        };
        let Some(binding) = &mut row.binding else { return self.again(row) };
        if let Some(generation) =
            (0..GENERATIONS_MAX).find(|n| EventId::derive(environment, &row.session, &binding.account, *n) == event_id)
        {
            binding.generation = generation;
        }
        binding.event_id = event_id;
        self.saw(row, event)
    }

    #[expect(clippy::match_same_arms, reason = "one line for each class and call, as in the error table")]
    fn failed(&self, mut row: MeetEvent, error: &GoogleError) -> Absorbed {
        if *self.call == Call::Find && row.want == Want::Absent {
            // The id was only an address for the call.
            row.binding = None;
        }
        if error.is_ambiguous && self.call.is_write() {
            unclear(&mut row, self.call.operation(), self.now());
        }
        match (error.class, self.call) {
            (Class::Unauthorized | Class::Transient | Class::RateLimited, _) => self.later(row, error),
            (Class::CoolDown, _) => self.wait(row, Code::CalendarLimited, error, Some(60 * MINUTE_MS)),
            (Class::Misconfigured, _) => self.wait(row, Code::ConfigError, error, Some(MINUTE_MS)),
            (Class::ReconnectRequired, _) => self.wait(row, Code::ReconnectRequired, error, None),
            (Class::ScopeMissing, _) => self.wait(row, Code::ScopeMissing, error, None),
            (Class::AdminBlocked, _) => self.wait(row, Code::AdminBlocked, error, None),

            (Class::Duplicate, Call::Insert { .. }) => {
                row.phase = Phase::Unknown;
                row.taken_at = row.taken_at.or(Some(self.now()));
                self.again(row)
            }
            (Class::Duplicate, _) => self.later(row, error),
            (Class::Stale, _) => {
                row.phase = Phase::Unknown;
                row.refetches += 1;
                if row.refetches > REFETCHES_MAX { self.later(row, error) } else { self.again(row) }
            }

            (Class::NotFound, Call::Insert { .. }) => {
                self.gave_up(row, Code::CalendarNotFound, "the teacher's calendar does not exist any more")
            }
            (Class::NotFound | Class::Deleted, Call::Restore) => self.burn(row, Phase::Absent),
            (Class::Deleted, Call::Delete) => self.found_deleted(row),
            (Class::NotFound, Call::Delete) => self.delete_found_nothing(row),
            (Class::NotFound, Call::Get { .. }) => self.get_found_nothing(row, error),
            (Class::Deleted, Call::Get { .. }) if row.want == Want::Present => {
                row.phase = Phase::Tombstone;
                self.again(row)
            }
            (Class::Deleted, Call::Get { .. }) => self.found_deleted(row),
            (Class::NotFound | Class::Deleted, Call::Patch { .. } | Call::AddConference { .. }) => {
                row.phase = Phase::Unknown;
                row.refetches += 1;
                if row.refetches > REFETCHES_MAX { self.later(row, error) } else { self.again(row) }
            }
            (Class::NotFound | Class::Deleted, _) => self.later(row, error),

            (Class::ConferenceRefused, Call::Insert { .. }) => {
                row.phase = Phase::Missing;
                row.conference = ConferenceState::NotAllowed;
                self.again(row)
            }
            (Class::ConferenceRefused, Call::AddConference { .. }) => {
                row.conference = ConferenceState::NotAllowed;
                self.stand(row)
            }
            (Class::ConferenceRefused, _) => self.gave_up(row, Code::InvalidRequest, &error.message),

            (Class::Permanent(_), Call::Restore) => self.burn(row, Phase::Absent),
            (Class::Permanent(Code::Forbidden), Call::Delete) => {
                // Perhaps it is gone already: look before giving up.
                row.phase = Phase::Unknown;
                row.failure = Some(failure(&row, Code::Forbidden, &error.message, self.now()));
                self.again(row)
            }
            (Class::Permanent(Code::Forbidden), Call::Patch { .. } | Call::AddConference { .. })
                if row.refetches < 2 =>
            {
                // What Google answers to a change of a deleted event is not documented: look at it.
                row.phase = Phase::Unknown;
                row.refetches += 1;
                self.again(row)
            }
            (Class::Permanent(code), _) => self.gave_up(row, code, &error.message),
        }
    }

    /// Tried again by itself, with growing delays.
    fn later(&self, mut row: MeetEvent, error: &GoogleError) -> Absorbed {
        if row.settled {
            row.next_attempt_at = Some(self.now().plus(CHECK_RETRY_MS.max(error.retry_after_ms.unwrap_or(0))));
            return keep(row);
        }
        let mut failure = failure(&row, Code::GoogleUnavailable, &error.message, self.now());
        failure.attempts += 1;
        let delay = (self.delay_ms)(failure.attempts).max(error.retry_after_ms.unwrap_or(0));
        row.failure = Some(failure);
        row.next_attempt_at = Some(self.now().plus(delay));
        keep(row)
    }

    /// Waits for time (`Some`) or for a person (`None`).
    fn wait(&self, mut row: MeetEvent, code: Code, error: &GoogleError, wait_ms: Option<i64>) -> Absorbed {
        if row.settled {
            row.next_attempt_at = Some(self.now().plus(wait_ms.unwrap_or(DAY_MS)));
            return keep(row);
        }
        let mut failure = failure(&row, code, &error.message, self.now());
        failure.attempts += 1;
        row.failure = Some(failure);
        row.next_attempt_at = wait_ms.map(|wait| self.now().plus(wait.max(error.retry_after_ms.unwrap_or(0))));
        keep(row)
    }

    /// An event that should be gone is `cancelled`: so it stays, unless a restore of unclear outcome may land yet. (An
    /// insert may not: its id is used.)
    fn found_deleted(&self, row: MeetEvent) -> Absorbed {
        let was_restored = row.insert_unclear_at.is_some() && row.written_hash.is_some();
        if was_restored { self.look_late(row) } else { keep(gone(row)) }
    }

    fn delete_found_nothing(&self, mut row: MeetEvent) -> Absorbed {
        if self.situation.must_use_up(&row) {
            row.phase = Phase::Missing;
            return self.again(row);
        }
        let is_fresh = row.confirmed_at.is_some_and(|at| self.now().since(at) < REPLICATION_MS);
        if row.insert_unclear_at.is_some() || is_fresh { self.look_late(row) } else { keep(gone(row)) }
    }

    /// What was sent before may land after this answer: without these looks it would outlive its cancel.
    fn look_late(&self, mut row: MeetEvent) -> Absorbed {
        let done = usize::try_from(row.late_checks).unwrap_or(usize::MAX);
        let Some(wait) = LATE_CHECKS_MS.get(done) else { return keep(gone(row)) };
        row.late_checks += 1;
        row.phase = Phase::Unknown;
        row.next_attempt_at = Some(self.now().plus(*wait));
        keep(row)
    }

    fn get_found_nothing(&self, mut row: MeetEvent, error: &GoogleError) -> Absorbed {
        if row.want == Want::Absent {
            return self.delete_found_nothing(row);
        }
        let is_fresh = row.confirmed_at.is_some_and(|at| self.now().since(at) < REPLICATION_MS);
        if row.settled && is_fresh {
            return self.later(row, error);
        }
        match row.taken_at {
            Some(taken) if self.now().since(taken) >= REPLICATION_MS => self.burn(row, Phase::Absent),
            None if !is_fresh => {
                row.phase = Phase::Missing;
                row.settled = false;
                self.again(row)
            }
            _ => {
                row.phase = Phase::Unknown;
                row.settled = false;
                self.later(row, error)
            }
        }
    }
}
