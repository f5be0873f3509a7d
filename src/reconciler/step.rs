//! One step of one row, up to the moment at which its call may be made: planned, admitted, its intent ready to be kept.

use std::sync::Arc;
use std::time::Duration;

use super::Context;
use crate::crash;
use crate::google::Call;
use crate::google::error::GoogleError;
use crate::google::limits::Admission;
use crate::model::UnixMillis;
use crate::plan::{self, Account, MeetEvent, Plan, Situation};
use crate::store::{Job, Origin, RowWrite, TeacherLease};

/// The place in flight of a call, or why it is not made.
pub(super) type Admitted = Result<Admission, GoogleError>;

/// A call that may be made once its intent is kept.
#[derive(Debug)]
pub(super) struct Step {
    /// The row as planned.
    pub(super) row: MeetEvent,
    /// What to ask of Google.
    pub(super) call: Call,
    /// The place in flight, or why the call is not made.
    pub(super) admission: Admitted,
}

impl Step {
    /// What has to be kept before the call: nothing for one that only reads, or that is not made.
    pub(super) fn intent(&self, lease: &TeacherLease, job: &Arc<Job>) -> Option<RowWrite> {
        if self.admission.is_err() {
            return None;
        }
        crash::here("before_intent");
        let needed = self.call.is_write();
        needed.then(|| RowWrite {
            token: lease.token,
            from: Some(Origin { job: Arc::clone(job), begun: None }),
            row: self.row.clone(),
            successor: None,
        })
    }
}

/// The plan of a row, with the call apart from it.
pub(super) enum Planned {
    /// No call: the row as it rests.
    Rest(Box<RowWrite>),
    /// A call, and the row as it is kept before it.
    Call(Box<MeetEvent>, Call),
    /// A call that cannot be made on this calendar; a plan makes none.
    Nothing,
}

/// Plans the next step of a row.
pub(super) fn plan_job(
    context: &Context,
    lease: &TeacherLease,
    account: &Account,
    job: &Arc<Job>,
    now: UnixMillis,
) -> Planned {
    let Plan { row, successor, call } = plan::plan(&situation(context, account, job, &job.row, now));
    match call {
        None => {
            let from = Some(Origin { job: Arc::clone(job), begun: None });
            Planned::Rest(Box::new(RowWrite { token: lease.token, from, row, successor }))
        }
        // A plan calls only on a calendar that is connected, for a row that is bound.
        Some(_) if lease.credential.is_none() || row.binding.is_none() => Planned::Nothing,
        Some(call) => Planned::Call(Box::new(row), call),
    }
}

/// All that is looked at, with the row as it is now.
pub(super) fn situation<'a>(
    context: &'a Context,
    account: &'a Account,
    job: &'a Job,
    row: &'a MeetEvent,
    now: UnixMillis,
) -> Situation<'a> {
    Situation { session: &job.session, row, siblings: &job.siblings, account, policy: &context.policy, now }
}

/// The first step of a calendar that was just claimed, if it may be made at once.
pub(super) fn first(context: &Context, lease: &TeacherLease, now: UnixMillis) -> Option<Step> {
    let job = lease.jobs.first()?;
    let Planned::Call(row, call) = plan_job(context, lease, &account(lease), job, now) else { return None };
    let admission = context.gateway.try_admit(&lease.teacher, &call)?;
    Some(Step { row: *row, call, admission })
}

/// The teacher's grant as a plan sees it.
pub(super) fn account(lease: &TeacherLease) -> Account {
    lease.credential.as_ref().map_or(Account::None, |credential| Account::Google {
        account: credential.account.clone(),
        calendar: credential.calendar.clone(),
        status: credential.status,
        cool_down_until: credential.cool_down_until,
    })
}

/// How long the lease allows to wait for an admission.
pub(super) fn patience(lease: &TeacherLease, now: UnixMillis) -> Duration {
    let left = lease.until.plus(-super::LEASE_NEEDED_MS).since(now);
    Duration::from_millis(u64::try_from(left).unwrap_or(0))
}
