//! A breaker for our own misconfiguration: when Google refuses the project or the client, nobody's session can succeed,
//! and asking thousands of times a minute only adds to the trouble. One probe a minute notices the mending.
//!
//! One for the Calendar API and one for the token endpoint; they fail for different reasons.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::{Class, GoogleError};
use crate::model::UnixMillis;

/// Time between probes of an open breaker: one minute.
pub const PROBE_EVERY_MS: i64 = 60_000;

/// Closed while Google accepts our set-up; open, with a probe a minute, while it does not. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Breaker(Arc<Mutex<Option<Open>>>);

/// An open breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// Since when.
    pub since: UnixMillis,
    /// When the next call may probe.
    pub probe_at: UnixMillis,
    /// What Google said, for people.
    pub message: String,
    /// Google's reason.
    pub reason: Option<String>,
}

impl Open {
    /// The error of a call that was not made, with the time to the next probe as its delay.
    pub fn as_error(&self, now: UnixMillis) -> GoogleError {
        GoogleError {
            reason: self.reason.clone(),
            retry_after_ms: Some(self.probe_at.since(now).clamp(0, PROBE_EVERY_MS)),
            ..GoogleError::unanswered(Class::Misconfigured, self.message.clone())
        }
    }
}

impl Breaker {
    /// Whether a call may be made now. An open breaker lets one through a minute, whatever became of the one before.
    pub fn admit(&self, now: UnixMillis) -> Result<(), Open> {
        match &mut *self.state() {
            None => Ok(()),
            Some(open) if now >= open.probe_at => {
                open.probe_at = now.plus(PROBE_EVERY_MS);
                Ok(())
            }
            Some(open) => Err(open.clone()),
        }
    }

    /// Takes the outcome of a call in: `None` for a success. Says whether it opened or closed the breaker, which is
    /// worth a line in the log and an alert.
    ///
    /// Only what Google itself answered counts: no answer, and what failed on our side, says nothing about the set-up.
    pub fn record(&self, error: Option<&GoogleError>, now: UnixMillis) -> Option<Change> {
        let mut state = self.state();
        match (error, &*state) {
            (Some(GoogleError { class: Class::Misconfigured, status: Some(_), message, reason, .. }), None) => {
                let probe_at = now.plus(PROBE_EVERY_MS);
                *state = Some(Open { since: now, probe_at, message: message.clone(), reason: reason.clone() });
                Some(Change::Opened)
            }
            // An outage or a full queue is no sign that the set-up was mended.
            (
                Some(
                    GoogleError { class: Class::Misconfigured | Class::Transient, .. }
                    | GoogleError { status: None, .. },
                ),
                _,
            )
            | (_, None) => None,
            (_, Some(_)) => {
                *state = None;
                Some(Change::Closed)
            }
        }
    }

    /// Why and since when it is open.
    pub fn open(&self) -> Option<Open> {
        self.state().clone()
    }

    fn state(&self) -> MutexGuard<'_, Option<Open>> {
        // Every critical section leaves the state whole, so a panic elsewhere cannot have spoilt it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an outcome did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It opened.
    Opened,
    /// It closed.
    Closed,
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: UnixMillis = UnixMillis::new(1_000_000);

    fn answered(class: Class, status: u16) -> GoogleError {
        GoogleError { status: Some(status), ..GoogleError::unanswered(class, "x") }
    }

    #[test]
    fn it_opens_probes_once_a_minute_and_closes_with_the_first_real_answer() {
        let breaker = Breaker::default();
        assert_eq!(breaker.record(Some(&answered(Class::Misconfigured, 403)), T0), Some(Change::Opened));
        let refused = breaker.admit(T0.plus(1_000)).unwrap_err();
        assert_eq!(refused.as_error(T0.plus(1_000)).retry_after_ms, Some(59_000));
        assert_eq!(refused.as_error(T0.plus(1_000)).class, Class::Misconfigured);

        // One probe, not two, even while its answer is not known.
        let later = T0.plus(PROBE_EVERY_MS);
        assert_eq!(breaker.admit(later), Ok(()));
        assert!(breaker.admit(later).is_err());
        assert_eq!(breaker.record(Some(&answered(Class::Misconfigured, 403)), later), None);
        assert_eq!(breaker.open().unwrap().since, T0);

        // An outage is no mending, and a failure without an answer neither.
        assert_eq!(breaker.record(Some(&answered(Class::Transient, 503)), later), None);
        assert_eq!(
            breaker.record(Some(&GoogleError::unanswered(Class::Permanent(crate::plan::Code::Forbidden), "x")), later),
            None
        );
        assert!(breaker.open().is_some());

        // A 404 is: the project is accepted.
        assert_eq!(breaker.admit(later.plus(PROBE_EVERY_MS)), Ok(()));
        assert_eq!(breaker.record(Some(&answered(Class::NotFound, 404)), later), Some(Change::Closed));
        assert_eq!(breaker.admit(later), Ok(()));
    }

    #[test]
    fn what_failed_on_our_side_does_not_open_it() {
        let breaker = Breaker::default();
        assert_eq!(breaker.record(Some(&GoogleError::unanswered(Class::Misconfigured, "unknown key")), T0), None);
        assert_eq!(breaker.record(None, T0), None);
        assert_eq!(breaker.open(), None);
    }
}
