//! The same answer for the same `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header), for 24 hours.
//!
//! The key is looked up, the action carried out and the answer kept in one transaction, of which there is one at a time
//! on all replicas. So a second request with the same key waits for the first and gets its answer; there is no moment in
//! which a request is "still running" and could be answered with 409, and a process that dies leaves no key behind that
//! blocks.

use serde_json::json;

use super::audit::Actor;
use super::retry::{ACCEPTED, ACTION, RetryOutcome, retry_in};
use super::sql::{Sql, Tx, args, both, session_ids, with_batch};
use super::{Result, Store};
use crate::model::{SessionId, UnixMillis};

/// How long an answer is given again.
const KEPT_MS: i64 = 24 * 3_600_000;

/// Answers kept for one credential; of more, the oldest are forgotten.
const KEPT_MAX: i64 = 10_000;

/// A request that may come twice.
#[derive(Debug, Clone)]
pub struct Idempotency<'a> {
    /// The header's value, without quotes.
    pub key: &'a str,
    /// Hash of everything in the request that matters.
    pub request_hash: &'a str,
}

/// The answer to a request to retry one session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryAnswer {
    /// No event of the session was ever folded.
    Unknown,
    /// The key was used for another request before.
    KeyReused,
    /// The last retry of this session is too fresh.
    TooSoon {
        /// Until when.
        until: UnixMillis,
    },
    /// 202 with the status document, or 409 with `{"code","reason","nextStep"}`.
    Given {
        /// 202 or 409.
        status: i64,
        /// JSON.
        body: String,
        /// Whether it was given before, and nothing was done now.
        replayed: bool,
    },
}

const FIND: Sql = both(
    "SELECT request_hash, status, body FROM idempotency_key \
     WHERE credential = $1 AND key = $2 AND created_at_ms > $3",
);

const KEEP: Sql = both(
    "INSERT INTO idempotency_key (credential, key, request_hash, status, body, created_at_ms) \
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (credential, key) DO UPDATE SET \
     request_hash = excluded.request_hash, status = excluded.status, body = excluded.body, \
     created_at_ms = excluded.created_at_ms",
);

const FORGET_OLD: Sql = both("DELETE FROM idempotency_key WHERE credential = $1 AND created_at_ms <= $2");

const FORGET_MANY: Sql = both(
    "DELETE FROM idempotency_key WHERE credential = $1 AND created_at_ms <= (SELECT created_at_ms \
     FROM idempotency_key WHERE credential = $1 ORDER BY created_at_ms DESC LIMIT 1 OFFSET $2)",
);

const LAST_RETRY: Sql = both(
    "SELECT at_ms FROM operator_action WHERE target = $1 AND action = $2 AND outcome = $3 ORDER BY id DESC LIMIT 1",
);

const DOCUMENT: Sql = with_batch!("SELECT document FROM session WHERE session_id IN ", [session_id text], "");

/// Answers.
impl Store {
    /// Retries one session for the API; at most once in `spacing_ms` for a session, and once for a key.
    pub async fn retry_once(
        &self,
        id: &SessionId,
        credential: &Actor,
        once: Option<&Idempotency<'_>>,
        spacing_ms: i64,
        now: UnixMillis,
    ) -> Result<RetryAnswer> {
        let mut tx = self.inner.write("retrying a session").await?;
        if let Some(once) = once
            && let Some(known) = find(&mut tx, credential, once, now).await?
        {
            return Ok(known);
        }
        if let Some(row) = tx.row(LAST_RETRY, args![id.as_str(), ACTION, ACCEPTED]).await? {
            let until = UnixMillis::new(row.get("at_ms")?).plus(spacing_ms);
            if until > now {
                return Ok(RetryAnswer::TooSoon { until });
            }
        }
        let by = Some((credential, None));
        let (outcomes, changed) = retry_in(&mut tx, std::slice::from_ref(id), by, now).await?;
        let (status, body) = match outcomes.into_iter().next() {
            None | Some((_, RetryOutcome::Unknown)) => return Ok(RetryAnswer::Unknown),
            Some((_, RetryOutcome::Refused(refusal))) => {
                let body = json!({"code": refusal.code, "reason": refusal.reason, "nextStep": refusal.next_step});
                (409, body.to_string())
            }
            Some((_, RetryOutcome::Accepted { .. })) => match tx.row(DOCUMENT, vec![session_ids([id])]).await? {
                Some(row) => (202, row.get("document")?),
                None => return Ok(RetryAnswer::Unknown),
            },
        };
        if let Some(once) = once {
            keep(&mut tx, credential, once, status, &body, now).await?;
        }
        tx.commit().await?;
        self.announce(&changed);
        Ok(RetryAnswer::Given { status, body, replayed: false })
    }
}

async fn find(tx: &mut Tx, credential: &Actor, once: &Idempotency<'_>, now: UnixMillis) -> Result<Option<RetryAnswer>> {
    let Some(row) = tx.row(FIND, args![credential.as_str(), once.key, now.plus(-KEPT_MS)]).await? else {
        return Ok(None);
    };
    if row.get::<String>("request_hash")? != once.request_hash {
        return Ok(Some(RetryAnswer::KeyReused));
    }
    Ok(Some(RetryAnswer::Given { status: row.get("status")?, body: row.get("body")?, replayed: true }))
}

async fn keep(
    tx: &mut Tx,
    credential: &Actor,
    once: &Idempotency<'_>,
    status: i64,
    body: &str,
    now: UnixMillis,
) -> Result<()> {
    let credential = credential.as_str();
    tx.execute(FORGET_OLD, args![credential, now.plus(-KEPT_MS)]).await?;
    tx.execute(KEEP, args![credential, once.key, once.request_hash, status, body, now]).await?;
    tx.execute(FORGET_MANY, args![credential, KEPT_MAX]).await.map(drop)
}
