//! The retry button in the database: one transaction for what is decided, what is kept and who asked for it.

use std::collections::BTreeSet;

use super::audit::{self, Action, Actor};
use super::control::{self, Scope};
use super::queue::{self, RowKey};
use super::sql::{Sql, Tx, args, both};
use super::working::Working;
use super::{Result, Store, credentials, process, rows};
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::plan::{self, Circumstances, Code, Refusal};

/// What became of the retry of one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryOutcome {
    /// No event of it was ever folded.
    Unknown,
    /// It cannot help.
    Refused(Refusal),
    /// Due now; so many requests to Google follow at once, at most.
    Accepted {
        /// At most.
        calls: i64,
    },
}

/// Which failing sessions; all conditions hold together.
#[derive(Debug, Clone, Default)]
pub struct FailedFilter {
    /// With this reason.
    pub code: Option<Code>,
    /// Of this teacher.
    pub teacher: Option<TeacherId>,
}

/// Sessions that are not over and of which a row waits with a reason.
const FAILED: Sql = both(
    "SELECT DISTINCT s.session_id, s.list_starts_at_ms FROM session_meet_event AS r \
     JOIN session AS s ON s.session_id = r.session_id \
     WHERE r.failure_code IS NOT NULL AND r.phase NOT IN ('absent', 'foreign') \
     AND ($1 = '' OR r.failure_code = $1) AND ($2 = '' OR r.teacher_id = $2) \
     AND (s.ends_at_ms IS NULL OR s.ends_at_ms > $3) ORDER BY s.list_starts_at_ms, s.session_id",
);

const END_COOL_DOWN: Sql = both("UPDATE teacher_google_credential SET cool_down_until_ms = NULL WHERE teacher_id = $1");

/// Retries sessions in the caller's transaction, or only says what would come of it when there is nobody to do it.
/// Returns the sessions whose document changed, too.
pub(super) async fn retry_in(
    tx: &mut Tx,
    ids: &[SessionId],
    by: Option<(&Actor, Option<&str>)>,
    now: UnixMillis,
) -> Result<(Vec<(SessionId, RetryOutcome)>, Vec<SessionId>)> {
    let mut working = Working::load(tx, ids).await?;
    let circumstances = circumstances(tx, &working, now).await?;
    let mut outcomes = Vec::with_capacity(ids.len());
    let (mut woken, mut cooled) = (Vec::new(), BTreeSet::new());
    for id in ids {
        let outcome = match working.get(id) {
            None => RetryOutcome::Unknown,
            Some(entry) => match plan::retry(&entry.session, &entry.rows, &circumstances, now) {
                Err(refusal) => RetryOutcome::Refused(refusal),
                Ok(retried) => {
                    cooled.extend(retried.clear_cool_downs);
                    let entry = working.touch(id).expect("found a line above");
                    for row in retried.rows {
                        woken.push((row.session.clone(), row.ordinal));
                        entry.put_row(row);
                    }
                    RetryOutcome::Accepted { calls: retried.calls_at_most }
                }
            },
        };
        outcomes.push((id.clone(), outcome));
    }
    let Some((actor, reason)) = by else { return Ok((outcomes, Vec::new())) };
    let saved = working.save(tx, now).await?;
    let keys: Vec<_> =
        woken.iter().map(|(session, ordinal)| RowKey { session_id: session.as_str(), ordinal: *ordinal }).collect();
    queue::mark_woken(tx, &keys).await?;
    for teacher in &cooled {
        tx.execute(END_COOL_DOWN, args![teacher.as_str()]).await?;
    }
    for (id, outcome) in &outcomes {
        let outcome = match outcome {
            RetryOutcome::Unknown => continue,
            RetryOutcome::Refused(refusal) => format!("refused: {}", refusal.code),
            RetryOutcome::Accepted { .. } => ACCEPTED.to_owned(),
        };
        let action = Action { actor, action: ACTION, target: id.as_str(), reason, outcome: &outcome };
        audit::keep(tx, &action, now).await?;
    }
    Ok((outcomes, saved.changed))
}

/// The action in the audit.
pub(super) const ACTION: &str = "session retry";
/// Its outcome when it could help.
pub(super) const ACCEPTED: &str = "accepted";

async fn circumstances(tx: &mut Tx, working: &Working, now: UnixMillis) -> Result<Circumstances> {
    let rows = working.ids().filter_map(|id| working.get(id)).flat_map(|entry| &entry.rows);
    let teachers: BTreeSet<_> = rows.map(|row| row.teacher.clone()).collect();
    let grants = credentials::of_teachers(tx, &teachers).await?;
    let pauses = control::pauses(tx).await?;
    let processes = process::processes(tx).await?;
    let breaker = processes.iter().filter(|process| process.is_alive(now)).find_map(|process| {
        crate::presence::State::parse(&process.state)?.breakers.into_iter().next().map(|open| open.message)
    });
    Ok(Circumstances {
        grants: grants.into_values().map(|grant| (grant.teacher, grant.status, grant.cool_down_until)).collect(),
        pauses: pauses
            .into_iter()
            .filter(|pause| pause.scope == Scope::Reconcile && pause.holds(now))
            .map(|pause| (pause.teacher.clone(), pause.sentence()))
            .collect(),
        breaker,
    })
}

/// Retry.
impl Store {
    /// Retries sessions and says of each what came of it, in the order asked for; audited. At most some hundreds at once:
    /// it is one transaction.
    pub async fn retry(
        &self,
        ids: &[SessionId],
        actor: &Actor,
        reason: Option<&str>,
        now: UnixMillis,
    ) -> Result<Vec<(SessionId, RetryOutcome)>> {
        let mut tx = self.inner.write("retrying sessions").await?;
        let (outcomes, changed) = retry_in(&mut tx, ids, Some((actor, reason)), now).await?;
        tx.commit().await?;
        self.announce(&changed);
        Ok(outcomes)
    }

    /// What [`Store::retry`] would do; changes nothing.
    pub async fn retry_plan(&self, ids: &[SessionId], now: UnixMillis) -> Result<Vec<(SessionId, RetryOutcome)>> {
        let mut tx = self.inner.snapshot("planning retries").await?;
        retry_in(&mut tx, ids, None, now).await.map(|(outcomes, _)| outcomes)
    }

    /// Sessions that are not over and wait with a reason, soonest start first.
    pub async fn failed_sessions(&self, filter: &FailedFilter, now: UnixMillis) -> Result<Vec<SessionId>> {
        let values =
            args![filter.code.map_or("", Code::as_str), filter.teacher.as_ref().map_or("", TeacherId::as_str), now];
        let rows = self.inner.rows("reading failing sessions", FAILED, values).await?;
        rows.iter().map(rows::session_id).collect()
    }
}
