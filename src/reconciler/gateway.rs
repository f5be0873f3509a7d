//! The way to Google for one call: breaker, limits, access token, request, and the one repetition after a refresh.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use crate::clock::Clock;
use crate::google::access::{AccessError, AccessTokens};
use crate::google::breaker::{Breaker, Change};
use crate::google::calendar::{CALL_TIMEOUT, CalendarClient, Target};
use crate::google::error::{Class, GoogleError};
use crate::google::limits::{Admission, Limits};
use crate::google::{Answer, Call, Wanted};
use crate::model::{SessionId, TeacherId};
use crate::plan::Binding;
use crate::store::Credential;
use crate::telemetry::{Metrics, trace};

/// What stands between a plan and Google.
#[derive(Debug)]
pub struct Gateway {
    /// The Calendar API.
    pub calendar: CalendarClient,
    /// Access tokens of teachers.
    pub access: Arc<AccessTokens>,
    /// Rates and places.
    pub limits: Limits,
    /// Opens when Google refuses our project.
    pub breaker: Breaker,
    /// The time.
    pub clock: Clock,
    /// Counts calls by operation and outcome.
    pub metrics: Arc<Metrics>,
}

impl Gateway {
    /// The right to make one call, or the error of a call that is not made because the breaker is open; `None` when the
    /// rate limit asks for a longer wait than `patience`.
    pub async fn admit(
        &self,
        teacher: &TeacherId,
        call: &Call,
        patience: Duration,
    ) -> Option<Result<Admission, GoogleError>> {
        let admission = tokio::time::timeout(patience, self.limits.admit(teacher, call.cost())).await.ok()?;
        Some(self.past_breaker(admission))
    }

    /// The same where nothing has to be waited for, else `None`.
    pub fn try_admit(&self, teacher: &TeacherId, call: &Call) -> Option<Result<Admission, GoogleError>> {
        let admission = self.limits.admit(teacher, call.cost()).now_or_never()?;
        Some(self.past_breaker(admission))
    }

    fn past_breaker(&self, admission: Admission) -> Result<Admission, GoogleError> {
        let now = self.clock.now();
        self.breaker.admit(now).map(|()| admission).map_err(|open| open.as_error(now))
    }

    /// Makes the call; a refused access token is refreshed and the same call made once more. `attempts` failed before.
    pub async fn call(
        &self,
        credential: &Credential,
        binding: &Binding,
        session: &SessionId,
        call: &Call,
        wanted: Option<&Wanted>,
        attempts: u32,
    ) -> Result<Answer, GoogleError> {
        let target = Target { calendar: &binding.calendar, event_id: &binding.event_id, session };
        let begun = Instant::now();
        let left = || CALL_TIMEOUT.saturating_sub(begun.elapsed());
        let token = self.access.token(credential, None).await.map_err(AccessError::into_google)?;
        let mut answer = trace::resent(attempts, self.calendar.call(&token, target, call, wanted, left())).await;
        if answer.as_ref().is_err_and(|error| error.class == Class::Unauthorized) {
            let token = self.access.token(credential, Some(&token)).await.map_err(AccessError::into_google)?;
            answer = trace::resent(attempts + 1, self.calendar.call(&token, target, call, wanted, left())).await;
        }
        if let Some(date) = self.calendar.take_date() {
            self.metrics.google_said(date, self.clock.now());
        }
        self.metrics.google_request(call.operation(), answer.as_ref().err(), begun.elapsed());
        let change = self.breaker.record(answer.as_ref().err(), self.clock.now());
        if let Some(change) = change {
            self.metrics.breaker("calendar", change == Change::Opened);
        }
        match change {
            Some(Change::Opened) => tracing::error!(
                error = %answer.as_ref().err().map(ToString::to_string).unwrap_or_default(),
                "Google refuses this installation's project: all calls pause but one a minute. Check GOOGLE_CLIENT_ID, \
                 and in the Google Cloud console that the Calendar API is enabled"
            ),
            Some(Change::Closed) => tracing::info!("Google accepts this installation's project again"),
            None => {}
        }
        answer
    }
}
