//! Keeps grants alive: renews access tokens shortly before teachers with work need them, and uses idle grants once a
//! month.
//!
//! Why ahead of need: a lesson that is booked a minute before its start should not wait for the token endpoint, and a
//! grant that died should be known while there is time to mend it. Why once a month: Google lets a refresh token die
//! that was not used for six months (<https://developers.google.com/identity/protocols/oauth2#expiration>).
//!
//! Every replica runs this loop; the turn in the database ([`AccessTokens::renew`]) lets one of them refresh a teacher,
//! and the others pass on. What a failure means for the grant is decided there, too. Deliberately absent: memory of
//! failures; the pause after one is in the teacher's row, so a restart does not forget it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::Clock;
use crate::google::access::{AccessError, AccessTokens, Renewed};
use crate::google::error::Class;
use crate::retry::Jitter;
use crate::store::{Credential, Store, StoreError};
use crate::telemetry::Chain;

/// Work that is due within this time makes a token worth renewing ahead.
const SOON_MS: i64 = 10 * 60_000;
/// Grants taken in one round.
const ROUND: i64 = 32;
/// Requests to the token endpoint at once, from this loop.
const AT_ONCE: usize = 4;
/// Between two requests of one round at least: at most ten a second from this process, whatever is due.
const SPACING: Duration = Duration::from_millis(100);
/// Between rounds that find nothing more; up to as much again is added at random, so that replicas drift apart.
const POLL: Duration = Duration::from_secs(15);

/// What the loop works with.
#[derive(Debug)]
pub struct RefreshContext {
    /// Where the grants are.
    pub store: Store,
    /// Where tokens come from; shared with the reconciler.
    pub access: Arc<AccessTokens>,
    /// The time.
    pub clock: Clock,
    /// Spreads the rounds.
    pub jitter: Jitter,
}

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Round {
    /// Grants that were worth a refresh.
    pub found: usize,
    /// New access tokens.
    pub renewed: usize,
    /// Refreshes that failed, whatever for.
    pub failed: usize,
}

/// Refreshes until cancelled; every failure is waited out.
pub async fn run(context: RefreshContext, cancel: CancellationToken) {
    let mut is_failing = false;
    loop {
        let outcome = tokio::select! {
            outcome = round(&context, &cancel) => outcome,
            () = cancel.cancelled() => break,
        };
        let goes_on = match outcome {
            Ok(round) => {
                is_failing = false;
                // A full round that brought nothing is an outage, and asking faster does not end it.
                round.renewed > 0 && round.found >= usize::try_from(ROUND).unwrap_or(usize::MAX)
            }
            Err(error) => {
                if !is_failing {
                    warn!(error = %Chain(&error), "cannot look for grants to refresh; trying again until it works");
                }
                is_failing = true;
                false
            }
        };
        let pause = if goes_on { SPACING } else { POLL.mul_f64(1.0 + context.jitter.next()) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancel.cancelled() => break,
        }
    }
}

/// Refreshes what is worth it now, once; public for tests.
pub async fn round(context: &RefreshContext, cancel: &CancellationToken) -> Result<Round, StoreError> {
    let now = context.clock.now();
    // While Google refuses our client, one grant at a time finds out whether it still does.
    let limit = match context.access.breaker().open() {
        Some(open) if now < open.probe_at => return Ok(Round::default()),
        Some(_) => 1,
        None => ROUND,
    };
    let worth = context.store.worth_a_refresh(now, now.plus(SOON_MS), limit).await?;
    let found = worth.len();
    let spaced = futures_util::stream::iter(worth.into_iter().enumerate()).then(async |(n, credential)| {
        if n > 0 {
            tokio::time::sleep(SPACING).await;
        }
        credential
    });
    let outcomes: Vec<Option<bool>> = spaced
        .take_until(cancel.cancelled())
        .map(|credential| renew(context, credential))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let count = |wanted: bool| outcomes.iter().filter(|outcome| **outcome == Some(wanted)).count();
    Ok(Round { found, renewed: count(true), failed: count(false) })
}

/// Whether there is a new token; `None` when it was left to another process, or the breaker is open.
async fn renew(context: &RefreshContext, credential: Credential) -> Option<bool> {
    if context.access.breaker().open().is_some_and(|open| context.clock.now() < open.probe_at) {
        return None;
    }
    let teacher = &credential.teacher;
    match context.access.renew(&credential).await {
        Ok(Renewed::Yes) => {
            debug!(teacher_id = %teacher, "access token renewed ahead of need");
            Some(true)
        }
        Ok(Renewed::LeftToOthers) => None,
        Err(AccessError::Store(error)) => {
            debug!(teacher_id = %teacher, error = %Chain(&error), "grant not refreshed");
            Some(false)
        }
        Err(AccessError::Google(error)) => {
            match error.class {
                Class::ReconnectRequired | Class::ScopeMissing | Class::AdminBlocked => {
                    warn!(teacher_id = %teacher, reason = %error, "the teacher's grant does not work any more");
                }
                // The breaker has told it.
                Class::Misconfigured => debug!(teacher_id = %teacher, reason = %error, "grant not refreshed"),
                _ => info!(teacher_id = %teacher, reason = %error, "grant not refreshed; it stays, and is tried again"),
            }
            Some(false)
        }
    }
}
