//! Makes each teacher's calendar agree with the projection: claim, plan, intent, call, absorb, record.
//!
//! The reconciler reads state, never messages: after a crash, a replay or an outage it takes the same path as on any
//! day. A lease covers one teacher's calendar, so one write is in flight per calendar, on all replicas together; its
//! token fences every write back. Writes to the database go through one [`writer`], which commits what all calendars
//! brought meanwhile in one transaction.
//!
//! Deliberately absent: a memory of what was tried. Attempts, delays and intents are in the rows.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, error, info, warn};

use crate::clock::Clock;
use crate::crash;
use crate::google::Call;
use crate::google::breaker::Open;
use crate::google::error::Class;
use crate::model::UnixMillis;
use crate::plan::{self, Account, Plan, Policy, Situation};
use crate::retry::{Jitter, Reconnect, RetrySchedule};
use crate::store::{Job, RowWrite, Store, StoreError, TeacherLease, TokenStatus, Written};
use crate::telemetry::{Chain, trace};

pub mod gateway;
mod measure;
mod writer;

pub use gateway::Gateway;
use measure::Counted;
use writer::Writer;

/// A calendar is claimed for this long: three times the longest call.
const LEASE_MS: i64 = 60_000;
/// No call is begun with less of the lease left: its timeout of 20 s, and 5 s to record it.
const LEASE_NEEDED_MS: i64 = 25_000;
/// Rows of one calendar taken under one lease: enough to save claims, few enough that a lease does not run out.
const ROWS_PER_TEACHER: i64 = 8;
/// Without a wake-up the database is asked this often: another process may have made rows due.
const POLL: Duration = Duration::from_secs(1);

/// What the reconciler works with.
#[derive(Debug)]
pub struct Context {
    /// Where it reads and records.
    pub store: Store,
    /// The way to Google.
    pub gateway: Gateway,
    /// Settings that change what is wanted.
    pub policy: Policy,
    /// The time.
    pub clock: Clock,
    /// Spreads the delays between attempts.
    pub jitter: Jitter,
    /// Calendars worked on at once.
    pub calendars_max: usize,
}

/// The loop, and one step of it for tests.
#[derive(Debug, Clone)]
pub struct Reconciler {
    context: Arc<Context>,
    writer: Writer,
}

impl Reconciler {
    /// Starts the writer; needs a tokio runtime.
    pub fn new(context: Context) -> Self {
        let writer = Writer::start(context.store.clone(), context.clock.clone());
        Self { context: Arc::new(context), writer }
    }

    /// Works until `cancel`: nothing is claimed before `caught_up`, so that it never acts on history. `wake` says that
    /// rows may have become due.
    pub async fn run(&self, wake: Arc<Notify>, mut caught_up: watch::Receiver<bool>, cancel: CancellationToken) {
        let mut calendars: JoinSet<()> = JoinSet::new();
        let mut reconnect = Reconnect::default();
        loop {
            if cancel.is_cancelled() {
                break;
            }
            if !*caught_up.borrow() {
                tokio::select! {
                    changed = caught_up.changed() => if changed.is_err() { break },
                    () = cancel.cancelled() => break,
                    Some(ended) = calendars.join_next() => log_panic(ended),
                }
                continue;
            }
            let free = self.context.calendars_max.saturating_sub(calendars.len());
            let mut claimed = 0;
            if free > 0 {
                match self.claim(free).await {
                    Ok(leases) => {
                        reconnect.reset();
                        claimed = leases.len();
                        for lease in leases {
                            let this = self.clone();
                            let cancel = cancel.clone();
                            calendars.spawn(async move { this.work(lease, &cancel).await });
                        }
                    }
                    Err(error) => {
                        if reconnect == Reconnect::default() {
                            error!(error = %Chain(&error), "cannot read what is due; trying again until it works");
                        }
                        let pause = reconnect.next_delay(self.context.jitter.next());
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            () = cancel.cancelled() => {}
                        }
                        continue;
                    }
                }
            }
            if claimed > 0 && claimed == free {
                // Full: go on when a calendar is done.
                tokio::select! {
                    Some(ended) = calendars.join_next() => log_panic(ended),
                    () = cancel.cancelled() => break,
                }
                continue;
            }
            let idle = self.until_due().await;
            tokio::select! {
                () = wake.notified() => {}
                Some(ended) = calendars.join_next(), if !calendars.is_empty() => log_panic(ended),
                () = tokio::time::sleep(idle) => {}
                () = cancel.cancelled() => break,
            }
        }
        // Calls under way end by themselves within their timeout; no new ones are begun.
        while let Some(ended) = calendars.join_next().await {
            log_panic(ended);
        }
        info!("reconciler stopped");
    }

    /// What Google refuses of our own set-up now: `calendar` or `token`, and what it said.
    pub fn breakers(&self) -> Vec<(&'static str, Open)> {
        let gateway = &self.context.gateway;
        let all = [("calendar", gateway.breaker.open()), ("token", gateway.access.breaker().open())];
        all.into_iter().filter_map(|(api, open)| Some((api, open?))).collect()
    }

    /// Claims what is due, carries it out and says how many rows were looked at: 0 means that nothing is due now.
    pub async fn reconcile_once(&self) -> Result<usize, StoreError> {
        let leases = self.claim(self.context.calendars_max).await?;
        let rows = leases.iter().map(|lease| lease.jobs.len()).sum();
        let cancel = CancellationToken::new();
        let mut calendars = JoinSet::new();
        for lease in leases {
            let this = self.clone();
            let cancel = cancel.clone();
            calendars.spawn(async move { this.work(lease, &cancel).await });
        }
        while let Some(ended) = calendars.join_next().await {
            log_panic(ended);
        }
        Ok(rows)
    }

    async fn claim(&self, calendars: usize) -> Result<Vec<TeacherLease>, StoreError> {
        let calendars = i64::try_from(calendars).unwrap_or(i64::MAX);
        self.context.store.claim(self.context.clock.now(), LEASE_MS, calendars, ROWS_PER_TEACHER).await
    }

    async fn until_due(&self) -> Duration {
        let now = self.context.clock.now();
        match self.context.store.next_due().await {
            Ok(Some(due)) => {
                Duration::from_millis(u64::try_from(due.since(now)).unwrap_or(0)).clamp(Duration::from_millis(5), POLL)
            }
            _ => POLL,
        }
    }

    /// Works through the rows of one calendar, one after the other, and gives it back.
    async fn work(&self, lease: TeacherLease, cancel: &CancellationToken) {
        for job in &lease.jobs {
            let now = self.context.clock.now();
            if cancel.is_cancelled() || lease.until.since(now) < LEASE_NEEDED_MS {
                break;
            }
            match self.step(&lease, job, now).instrument(trace::reconcile(job, now)).await {
                Ok(Next::GoOn) => {}
                Ok(Next::LeaveCalendar) => break,
                Err(error) => {
                    self.context.gateway.metrics.job(None, "not_recorded");
                    warn!(session_id = %job.row.session, error = %Chain(&error), "not recorded; the row is looked at again");
                    break;
                }
            }
        }
        if let Err(error) = self.writer.release(lease.teacher.clone(), lease.token).await {
            debug!(teacher_id = %lease.teacher, error = %Chain(&error), "lease not given back; it runs out");
        }
    }

    async fn step(&self, lease: &TeacherLease, job: &Job, now: UnixMillis) -> Result<Next, StoreError> {
        let account = account(lease);
        let policy = &self.context.policy;
        let situation =
            Situation { session: &job.session, row: &job.row, siblings: &job.siblings, account: &account, policy, now };
        let Plan { row, successor, call } = plan::plan(&situation);
        let Some(call) = call else {
            self.writer.record(RowWrite { token: lease.token, row, successor }).await?;
            self.context.gateway.metrics.job(None, "success");
            trace::reconciled(None, "success", None);
            return Ok(Next::GoOn);
        };
        // A plan calls only on a calendar that is connected, for a row that is bound.
        let (Some(credential), Some(binding)) = (&lease.credential, &row.binding) else {
            return Ok(Next::LeaveCalendar);
        };
        let patience = lease.until.plus(-LEASE_NEEDED_MS).since(now);
        let patience = Duration::from_millis(u64::try_from(patience).unwrap_or(0));
        let Some(admission) = self.context.gateway.admit(&lease.teacher, &call, patience).await else {
            // The rate limit asks for a longer wait than the lease has left; the row stays due.
            return Ok(Next::LeaveCalendar);
        };
        let answer = match admission {
            Err(error) => Err(error),
            Ok(_admission) => {
                crash::here("before_intent");
                if call.is_write() {
                    let intent = RowWrite { token: lease.token, row: row.clone(), successor: None };
                    if self.writer.begin(intent).await? != Written::Yes {
                        // Something newer is wanted, or the lease is lost: whoever claims the row next plans anew.
                        self.context.gateway.metrics.job(Some(call.operation()), "superseded");
                        trace::reconciled(Some(call.operation()), "superseded", None);
                        return Ok(Next::GoOn);
                    }
                }
                crash::here("after_intent");
                let wanted = plan::wanted(&job.session, &row, policy);
                let session = &job.row.session;
                let attempts = job.row.failure.as_ref().map_or(0, |failure| failure.attempts);
                let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
                self.context.gateway.call(credential, binding, session, &call, wanted.as_ref(), attempts).await
            }
        };
        crash::here("after_call");

        let now = self.context.clock.now();
        let next = match &answer {
            Ok(_) => Next::GoOn,
            Err(error) => self.consequences(lease, &call, error.class, now).await?,
        };
        if let Err(error) = &answer {
            log_failure(job, &call, error);
        }
        let starts_in = job.session.details.as_ref().map(|(_, details)| details.starts_at.since(now));
        let schedule = RetrySchedule::for_start_in(starts_in);
        let delay = |attempt| schedule.delay_ms(attempt, self.context.jitter.next(), None);
        let situation = Situation { row: &row, now, ..situation };
        let failed = answer.as_ref().err().filter(|error| !is_expected(error.class)).map(|error| error.class.as_str());
        let absorbed = plan::absorb(&situation, &call, answer, &delay);
        let counts = Counted::of(job, &call, &absorbed.row);
        let write = RowWrite { token: lease.token, row: absorbed.row, successor: absorbed.successor };
        let written = self.writer.record(write).await?;
        self.count(job, &call, failed, written, counts);
        if written == Written::No {
            info!(
                session_id = %job.row.session,
                operation = call.operation(),
                "another process took this calendar over; the result is dropped and looked up again"
            );
        }
        crash::here("after_record");
        Ok(next)
    }

    /// What a failure means beyond its row: for the teacher's grant, or for all of us.
    async fn consequences(
        &self,
        lease: &TeacherLease,
        call: &Call,
        class: Class,
        now: UnixMillis,
    ) -> Result<Next, StoreError> {
        let store = &self.context.store;
        match class {
            Class::CoolDown => {
                let until = store.cool_down(&lease.teacher, now).await?;
                self.context.gateway.metrics.cool_downs.inc();
                // What follows from a failure that is told as such.
                info!(teacher_id = %lease.teacher, until = %until, "Google limits this calendar; its writes pause");
                Ok(Next::LeaveCalendar)
            }
            Class::ScopeMissing => {
                self.lost(lease, TokenStatus::ScopeMissing, "the calendar scope is missing", now).await
            }
            Class::ReconnectRequired => {
                self.lost(lease, TokenStatus::ReconnectRequired, "Google refused the grant", now).await
            }
            Class::AdminBlocked => {
                self.lost(lease, TokenStatus::AdminBlocked, "the Workspace administrator blocks this app", now).await
            }
            Class::RateLimited | Class::Misconfigured | Class::Unauthorized => {
                debug!(teacher_id = %lease.teacher, operation = call.operation(), "leaving this calendar for now");
                Ok(Next::LeaveCalendar)
            }
            _ => Ok(Next::GoOn),
        }
    }

    /// Notes that the teacher's grant does not work, unless it was replaced meanwhile.
    async fn lost(
        &self,
        lease: &TeacherLease,
        status: TokenStatus,
        reason: &'static str,
        now: UnixMillis,
    ) -> Result<Next, StoreError> {
        let version = lease.credential.as_ref().map_or(0, |credential| credential.token_version);
        if self.context.store.set_token_status(&lease.teacher, version, status, reason, now).await? {
            info!(teacher_id = %lease.teacher, status = status.as_str(), reason, "the teacher's grant does not work");
        }
        Ok(Next::LeaveCalendar)
    }
}

enum Next {
    /// On to the next row of the calendar.
    GoOn,
    /// The other rows would fail in the same way.
    LeaveCalendar,
}

fn account(lease: &TeacherLease) -> Account {
    lease.credential.as_ref().map_or(Account::None, |credential| Account::Google {
        account: credential.account.clone(),
        calendar: credential.calendar.clone(),
        status: credential.status,
        cool_down_until: credential.cool_down_until,
    })
}

/// 404, 409, 410 and 412 are answers that the plan expects; the others somebody may want to know of.
fn is_expected(class: Class) -> bool {
    matches!(class, Class::NotFound | Class::Deleted | Class::Duplicate | Class::Stale)
}

fn log_failure(job: &Job, call: &Call, error: &crate::google::error::GoogleError) {
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

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a calendar's task panicked; its lease runs out and the rows are looked at again");
    }
}
