//! The end: the state is used up, the code exchanged, the answer checked, the grant stored.

use std::time::{Duration, Instant};

use secrecy::SecretString;
use tracing::{error, info, warn};

use super::account::decide;
use super::failure::{Failure, FailureCode};
use super::return_to::ReturnTo;
use super::{Connect, hash, verifier_slot};
use crate::credential::Slot;
use crate::google::breaker::Change;
use crate::google::oauth::TokenGrant;
use crate::google::oauth::id_token::{ISSUERS, Identity, identity};
use crate::model::{TeacherId, UnixMillis};
use crate::store::{Connected, Consumed, Flow, NewConnection, StoreError};
use crate::telemetry::Chain;

/// Longest state and code that are looked at, in bytes; ours has 43, Google's codes up to 256.
const TEXT_BYTES_MAX: usize = 1024;
/// A grant is in our hands and the code spent: a database that is away for a moment must not cost the consent.
const STORE_PATIENCE: Duration = Duration::from_secs(8);

/// What the browser brings back from Google.
#[derive(Debug, Default)]
pub struct Answer {
    /// `state`
    pub state: Option<String>,
    /// `code`
    pub code: Option<SecretString>,
    /// `error`
    pub error: Option<String>,
    /// `iss` (RFC 9207).
    pub issuer: Option<String>,
    /// From the browser's cookie.
    pub browser_secret: Option<SecretString>,
}

/// A connection that came of a consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// The address of the account, shortened.
    pub account: String,
    /// Another teacher uses the same Google account.
    pub is_shared: bool,
}

/// What became of a consent, and where to say so.
#[derive(Debug)]
pub struct Ended {
    /// The allowed page; `None` where the state is not good, because then nobody knows who is asking.
    pub return_to: Option<ReturnTo>,
    /// Connected, or why not.
    pub result: Result<Connection, Failure>,
}

impl Connect {
    /// Ends a consent. It runs to its end although the browser goes away in the middle: the code is spent by then.
    pub async fn callback(&self, answer: Answer) -> Ended {
        let this = self.clone();
        match tokio::spawn(async move { this.end(answer).await }).await {
            Ok(ended) => ended,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Ended { return_to: None, result: Err(FailureCode::DatabaseUnavailable.into()) },
        }
    }

    async fn end(&self, answer: Answer) -> Ended {
        let flow = match self.flow(&answer).await {
            Ok(flow) => flow,
            Err(failure) => {
                warn!(code = failure.code.as_str(), cause = failure.cause, "a callback was refused");
                return Ended { return_to: None, result: Err(failure) };
            }
        };
        // Looked up again: the list may have changed since the start.
        let page = flow.0.return_to.as_deref().and_then(|text| self.0.returns.parse(text).ok());
        let return_to = page.or_else(|| self.0.returns.first());
        let result = self.connect(&flow.0, &flow.1, answer).await;
        let teacher = &flow.0.teacher;
        match &result {
            Ok(connection) => info!(teacher_id = %teacher, shared = connection.is_shared, "Google is connected"),
            Err(Failure { code: FailureCode::ConfigError, cause, .. }) => error!(
                teacher_id = %teacher, cause,
                "no teacher can connect: check GOOGLE_CLIENT_ID, GOOGLE_CLIENT_SECRET, GOOGLE_SCOPES and the redirect URI \
                 that is registered in the Google Cloud console"
            ),
            Err(Failure { code, cause, .. }) => {
                warn!(teacher_id = %teacher, code = code.as_str(), cause, "Google was not connected");
            }
        }
        Ended { return_to, result }
    }

    /// Uses the state up; the flow and the hash of its state.
    async fn flow(&self, answer: &Answer) -> Result<(Flow, String), Failure> {
        use secrecy::ExposeSecret as _;
        let state = answer.state.as_deref().filter(|state| !state.is_empty()).ok_or(FailureCode::CallbackInvalid)?;
        if state.len() > TEXT_BYTES_MAX {
            return Err(FailureCode::StateUnknown.into());
        }
        let state_hash = hash(state);
        let browser_hash = answer.browser_secret.as_ref().map(|secret| hash(secret.expose_secret()));
        let consumed = self.0.store.consume_flow(&state_hash, browser_hash.as_deref(), self.0.clock.now()).await;
        match consumed.map_err(|error| away(&error))? {
            Consumed::Flow(flow) => Ok((flow, state_hash)),
            Consumed::Unknown => Err(FailureCode::StateUnknown.into()),
            Consumed::Used => Err(FailureCode::StateUsed.into()),
            Consumed::Expired => Err(FailureCode::StateExpired.into()),
            Consumed::OtherBrowser => Err(FailureCode::OtherBrowser.into()),
        }
    }

    async fn connect(&self, flow: &Flow, state_hash: &str, answer: Answer) -> Result<Connection, Failure> {
        use secrecy::ExposeSecret as _;
        if let Some(issuer) = answer.issuer.as_deref()
            && !ISSUERS.contains(&issuer)
        {
            // RFC 9207: an answer of another server, mixed up with ours.
            return Err(Failure::because(FailureCode::CallbackInvalid, "iss of the callback is not Google"));
        }
        if let Some(error) = answer.error {
            return Err(Failure::of_consent(&error));
        }
        let code = answer.code.filter(|code| (1..=TEXT_BYTES_MAX).contains(&code.expose_secret().len()));
        let code = code.ok_or(FailureCode::CallbackInvalid)?;
        let exchanged_from = self.0.clock.now();
        let grant = self.exchange(flow, state_hash, &code).await?;
        let now = self.0.clock.now();
        let identity = identity(grant.id_token.as_ref(), &self.0.client_id, now)
            .map_err(|error| Failure::because(FailureCode::IdTokenInvalid, error.to_string()))?;
        self.store(flow, &identity, &grant, exchanged_from).await
    }

    async fn exchange(&self, flow: &Flow, state_hash: &str, code: &SecretString) -> Result<TokenGrant, Failure> {
        let inner = &self.0;
        let verifier = inner
            .keys
            .open(verifier_slot(&flow.teacher, state_hash), &flow.verifier)
            .map_err(|error| Failure::because(FailureCode::ConfigError, error.to_string()))?;
        let outcome = inner.endpoint.exchange_code(code, &verifier, inner.page.redirect_uri().clone()).await;
        let failure = outcome.as_ref().err().map(Failure::of_exchange);
        if let Some(failure) = failure.filter(|failure| failure.code == FailureCode::OrgInternal) {
            // That is about the account somebody chose; it must not stop the tokens of all teachers.
            return Err(failure);
        }
        // An open breaker is not asked: a person waits, and the outcome is as good a probe as any.
        match inner.access.breaker().record(outcome.as_ref().err(), inner.clock.now()) {
            Some(Change::Opened) => error!("Google refuses this installation's OAuth client; token requests pause"),
            Some(Change::Closed) => info!("Google accepts this installation's OAuth client again"),
            None => {}
        }
        outcome.map_err(|error| Failure::of_exchange(&error))
    }

    /// Compare-and-set, again with what is there by then as long as somebody else changes it (a refresh).
    async fn store(
        &self,
        flow: &Flow,
        identity: &Identity,
        grant: &TokenGrant,
        exchanged_from: UnixMillis,
    ) -> Result<Connection, Failure> {
        let inner = &self.0;
        let teacher = &flow.teacher;
        let begun = Instant::now();
        loop {
            match self.try_store(flow, identity, grant, exchanged_from).await {
                Ok(Ok(Connected::Yes { shared_with })) => {
                    inner.wake.notify_one();
                    if !shared_with.is_empty() {
                        warn!(teacher_id = %teacher, shared_with = ?shared_with, "two teachers use one Google account");
                    }
                    let account = super::account::shortened(identity.email.as_deref());
                    return Ok(Connection { account, is_shared: !shared_with.is_empty() });
                }
                Ok(Ok(Connected::Disconnecting)) => return Err(FailureCode::Disconnecting.into()),
                Ok(Ok(Connected::Moved)) if begun.elapsed() < STORE_PATIENCE => {}
                Ok(Ok(Connected::Moved)) => {
                    return Err(Failure::because(
                        FailureCode::DatabaseUnavailable,
                        "the credential does not hold still",
                    ));
                }
                Ok(Err(failure)) => return Err(failure),
                Err(error) if error.is_transient() && begun.elapsed() < STORE_PATIENCE => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => return Err(away(&error)),
            }
        }
    }

    async fn try_store(
        &self,
        flow: &Flow,
        identity: &Identity,
        grant: &TokenGrant,
        exchanged_from: UnixMillis,
    ) -> Result<Result<Connected, Failure>, StoreError> {
        let inner = &self.0;
        let before = inner.store.credential(&flow.teacher).await?;
        let has_refresh_token = grant.refresh_token.is_some();
        if let Err(failure) = decide(before.as_ref(), identity, has_refresh_token, flow.is_account_change) {
            return Ok(Err(failure));
        }
        let new = match self.sealed(&flow.teacher, identity, grant, exchanged_from) {
            Ok(new) => new,
            Err(failure) => return Ok(Err(failure)),
        };
        inner.store.connect(&new, before.map(|before| before.token_version), inner.clock.now()).await.map(Ok)
    }

    fn sealed(
        &self,
        teacher: &TeacherId,
        identity: &Identity,
        grant: &TokenGrant,
        exchanged_from: UnixMillis,
    ) -> Result<NewConnection, Failure> {
        let Identity { account, email } = identity;
        let seal = |slot, token| {
            let sealed = self.0.keys.seal(slot, token);
            sealed.map_err(|error| Failure::because(FailureCode::ConfigError, error.to_string()))
        };
        let refresh_token = grant.refresh_token.as_ref();
        Ok(NewConnection {
            teacher: teacher.clone(),
            account: account.clone(),
            email: email.clone(),
            refresh_token: refresh_token.map(|token| seal(Slot::refresh_token(teacher, account), token)).transpose()?,
            access_token: seal(Slot::access_token(teacher, account), &grant.access_token)?,
            access_expires_at: exchanged_from.plus(grant.expires_in_ms),
            // RFC 6749 section 5.1: an answer without scopes grants what was asked for.
            scopes: grant.scopes.clone().unwrap_or_else(|| self.0.page.scopes()),
            refresh_expires_at: grant
                .refresh_token_expires_in_s
                .map(|seconds| exchanged_from.plus(i64::try_from(seconds).unwrap_or(i64::MAX / 2_000) * 1_000)),
            exchanged_from,
        })
    }
}

fn away(error: &StoreError) -> Failure {
    Failure::because(FailureCode::DatabaseUnavailable, Chain(error).to_string())
}
