//! The work on one calendar: its rows one after the other, then it is given back.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, info, warn};

use super::claims::{Claimed, Place};
use super::measure::Round;
use super::step::{self, Admitted, Planned, Step};
use super::writer::{Brought, Leaving, Writer};
use super::{Context, LEASE_NEEDED_MS};
use crate::crash;
use crate::google::Call;
use crate::google::error::{Class, GoogleError};
use crate::model::{SessionId, UnixMillis};
use crate::plan::{self, Account};
use crate::retry::RetrySchedule;
use crate::store::{Job, Origin, RowWrite, StoreError, TeacherLease, TokenStatus, Written};
use crate::telemetry::{Chain, trace};

/// A claimed calendar.
pub(super) struct Calendar {
    context: Arc<Context>,
    writer: Writer,
    cancel: CancellationToken,
    lease: TeacherLease,
    account: Account,
    place: Place,
    /// The first step, whose intent is kept already.
    first: Option<Step>,
    /// What is to be recorded with the next commit.
    records: Vec<RowWrite>,
    /// Of those that are results of calls, what they are counted as.
    rounds: Vec<Option<Round>>,
}

#[derive(PartialEq, Eq)]
enum Next {
    /// On to the next row of the calendar.
    GoOn,
    /// The other rows would fail in the same way.
    LeaveCalendar,
}

impl Calendar {
    pub(super) fn new(context: Arc<Context>, writer: Writer, cancel: CancellationToken, claimed: Claimed) -> Self {
        let Claimed { lease, first, place } = claimed;
        let account = step::account(&lease);
        Self { context, writer, cancel, lease, account, place, first, records: Vec::new(), rounds: Vec::new() }
    }

    /// Works through the rows and gives the calendar back, the last results with it.
    pub(super) async fn work(mut self) {
        let jobs = self.lease.jobs.clone();
        for job in &jobs {
            let span = trace::reconcile(job, self.context.clock.now());
            match self.row(job).instrument(span).await {
                Ok(Next::GoOn) => {}
                Ok(Next::LeaveCalendar) => break,
                Err(error) => {
                    self.context.gateway.metrics.job(None, "not_recorded");
                    warn!(session_id = %job.row.session, error = %Chain(&error), "not recorded; the row is looked at again");
                    break;
                }
            }
        }
        let Self { context, writer, lease, place, records, rounds, .. } = self;
        let leaving = Some(Leaving { teacher: lease.teacher.clone(), token: lease.token, place });
        let sessions: Vec<_> = records.iter().map(|write| write.row.session.clone()).collect();
        match writer.keep(Brought { records, begin: None, leaving }).await {
            Ok(kept) => recorded(&context, sessions.iter().zip(&rounds).zip(kept.records)),
            Err(error) => {
                let waiting = sessions.len();
                warn!(
                    teacher_id = %lease.teacher, results = waiting, error = %Chain(&error),
                    "calendar not given back; its lease runs out and its rows are looked at again"
                );
            }
        }
    }

    /// One row: plans, keeps the intent, calls, and leaves what came of it to the next commit.
    async fn row(&mut self, job: &Arc<Job>) -> Result<Next, StoreError> {
        // Begun already, so it is carried out even at the end.
        if let Some(step) = self.first.take() {
            return self.carry_out(job, step).await;
        }
        let now = self.context.clock.now();
        if self.cancel.is_cancelled() || self.lease.until.since(now) < LEASE_NEEDED_MS {
            return Ok(Next::LeaveCalendar);
        }
        let (row, call) = match step::plan_job(&self.context, &self.lease, &self.account, job, now) {
            Planned::Nothing => return Ok(Next::LeaveCalendar),
            Planned::Rest(write) => {
                self.records.push(*write);
                self.rounds.push(None);
                self.context.gateway.metrics.job(None, "success");
                trace::reconciled(None, "success", None);
                return Ok(Next::GoOn);
            }
            Planned::Call(row, call) => (*row, call),
        };
        let Some(admission) = self.admit(&call, now).await? else {
            // The rate limit asks for a longer wait than the lease has left; the row stays due.
            return Ok(Next::LeaveCalendar);
        };
        let step = Step { row, call, admission };
        let intent = step.intent(&self.lease, job);
        if !self.keep(intent).await? {
            // Something newer is wanted, or the lease is lost: whoever claims the row next plans anew.
            self.context.gateway.metrics.job(Some(step.call.operation()), "superseded");
            trace::reconciled(Some(step.call.operation()), "superseded", None);
            return Ok(Next::GoOn);
        }
        self.carry_out(job, step).await
    }

    /// Waits for the right to make the call, as long as the lease allows; what is to be recorded does not wait with it.
    async fn admit(&mut self, call: &Call, now: UnixMillis) -> Result<Option<Admitted>, StoreError> {
        if let Some(admission) = self.context.gateway.try_admit(&self.lease.teacher, call) {
            return Ok(Some(admission));
        }
        self.keep(None).await?;
        let patience = step::patience(&self.lease, now);
        Ok(self.context.gateway.admit(&self.lease.teacher, call, patience).await)
    }

    /// Commits what is to be recorded, and the intent; `false` when the intent was refused.
    async fn keep(&mut self, intent: Option<RowWrite>) -> Result<bool, StoreError> {
        if self.records.is_empty() && intent.is_none() {
            return Ok(true);
        }
        let (records, rounds) = (std::mem::take(&mut self.records), std::mem::take(&mut self.rounds));
        let sessions: Vec<_> = records.iter().map(|write| write.row.session.clone()).collect();
        let kept = self.writer.keep(Brought { records, begin: intent, leaving: None }).await?;
        recorded(&self.context, sessions.iter().zip(&rounds).zip(kept.records));
        Ok(kept.begin.is_none_or(|begun| begun == Written::Yes))
    }

    /// Makes the call and works out what it means.
    async fn carry_out(&mut self, job: &Arc<Job>, step: Step) -> Result<Next, StoreError> {
        let Step { row, call, admission } = step;
        let is_begun = call.is_write() && admission.is_ok();
        let (context, lease) = (&self.context, &self.lease);
        // A plan calls only on a calendar that is connected, for a row that is bound.
        let (Some(credential), Some(binding)) = (&lease.credential, &row.binding) else {
            return Ok(Next::LeaveCalendar);
        };
        let answer = match admission {
            Err(error) => Err(error),
            Ok(_admission) => {
                crash::here("after_intent");
                let wanted = plan::wanted(&job.session, &row, &context.policy);
                let session = &job.row.session;
                let attempts = job.row.failure.as_ref().map_or(0, |failure| failure.attempts);
                let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
                context.gateway.call(credential, binding, session, &call, wanted.as_ref(), attempts).await
            }
        };
        crash::here("after_call");

        let now = context.clock.now();
        let next = match &answer {
            Ok(_) => Next::GoOn,
            Err(error) => {
                let next = self.consequences(&call, error.class, now).await?;
                log_failure(job, &call, error);
                next
            }
        };
        let starts_in = job.session.details.as_ref().map(|(_, details)| details.starts_at.since(now));
        let schedule = RetrySchedule::for_start_in(starts_in);
        let delay = |attempt| schedule.delay_ms(attempt, context.jitter.next(), None);
        let situation = step::situation(context, &self.account, job, &row, now);
        let failed = answer.as_ref().err().filter(|error| !is_expected(error.class)).map(|error| error.class.as_str());
        let absorbed = plan::absorb(&situation, &call, answer, &delay);
        self.rounds.push(Some(Round::new(job, &call, failed, &absorbed.row)));
        self.records.push(RowWrite {
            token: lease.token,
            from: Some(Origin { job: Arc::clone(job), begun: is_begun.then_some(row) }),
            row: absorbed.row,
            successor: absorbed.successor,
        });
        Ok(next)
    }

    /// What a failure means beyond its row: for the teacher's grant, or for all of us.
    async fn consequences(&self, call: &Call, class: Class, now: UnixMillis) -> Result<Next, StoreError> {
        let (store, lease) = (&self.context.store, &self.lease);
        match class {
            Class::CoolDown => {
                let until = store.cool_down(&lease.teacher, now).await?;
                self.context.gateway.metrics.cool_downs.inc();
                // What follows from a failure that is told as such.
                info!(teacher_id = %lease.teacher, until = %until, "Google limits this calendar; its writes pause");
                Ok(Next::LeaveCalendar)
            }
            Class::ScopeMissing => self.lost(TokenStatus::ScopeMissing, "the calendar scope is missing", now).await,
            Class::ReconnectRequired => {
                self.lost(TokenStatus::ReconnectRequired, "Google refused the grant", now).await
            }
            Class::AdminBlocked => {
                self.lost(TokenStatus::AdminBlocked, "the Workspace administrator blocks this app", now).await
            }
            Class::RateLimited | Class::Misconfigured | Class::Unauthorized => {
                debug!(teacher_id = %lease.teacher, operation = call.operation(), "leaving this calendar for now");
                Ok(Next::LeaveCalendar)
            }
            _ => Ok(Next::GoOn),
        }
    }

    /// Notes that the teacher's grant does not work, unless it was replaced meanwhile.
    async fn lost(&self, status: TokenStatus, reason: &'static str, now: UnixMillis) -> Result<Next, StoreError> {
        let (store, lease) = (&self.context.store, &self.lease);
        let version = lease.credential.as_ref().map_or(0, |credential| credential.token_version);
        if store.set_token_status(&lease.teacher, version, status, reason, now).await? {
            info!(teacher_id = %lease.teacher, status = status.as_str(), reason, "the teacher's grant does not work");
        }
        Ok(Next::LeaveCalendar)
    }
}

/// Counts results, and says which were not taken.
fn recorded<'a>(context: &Context, kept: impl Iterator<Item = ((&'a SessionId, &'a Option<Round>), Written)>) {
    for ((session, round), written) in kept {
        if let Some(round) = round {
            round.count(context, written);
            crash::here("after_record");
        }
        if written == Written::No {
            info!(
                session_id = %session,
                "another process took this calendar over; the result is dropped and looked up again"
            );
        }
    }
}

/// 404, 409, 410 and 412 are answers that the plan expects; the others somebody may want to know of.
fn is_expected(class: Class) -> bool {
    matches!(class, Class::NotFound | Class::Deleted | Class::Duplicate | Class::Stale)
}

fn log_failure(job: &Job, call: &Call, error: &GoogleError) {
    let attempts = job.row.failure.as_ref().map_or(0, |failure| failure.attempts);
    if is_expected(error.class) {
        debug!(session_id = %job.row.session, operation = call.operation(), error = %error, "Google said no");
    } else {
        warn!(
            session_id = %job.row.session,
            teacher_id = %job.row.teacher,
            operation = call.operation(),
            status = error.status,
            reason = error.reason,
            ambiguous = error.is_ambiguous,
            attempt = attempts + 1,
            error = %error,
            "a call to Google failed"
        );
    }
}
