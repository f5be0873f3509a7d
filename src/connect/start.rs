//! The beginning: a flow is kept, and the browser may go to Google.

use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use super::return_to::ReturnRefused;
use super::{Connect, FLOW_MS, hash, verifier_slot};
use crate::credential::SealError;
use crate::model::{TeacherId, UnixMillis};
use crate::store::{NewFlow, StoreError, TokenStatus};

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Start {
    /// Who connects.
    pub teacher: TeacherId,
    /// Where to go afterwards; the first allowed page where it is `None`.
    pub return_to: Option<String>,
    /// Another Google account than before may be connected.
    pub change_account: bool,
    /// The answer reaches the browser that will come back, so a cookie can bind the flow to it.
    pub is_browser: bool,
}

/// A flow that was begun.
#[derive(Debug)]
pub struct Started {
    /// Where the browser goes.
    pub authorization_url: Url,
    /// When the state stops being accepted.
    pub expires_at: UnixMillis,
    /// For the browser's cookie, where one is to be set.
    pub browser_secret: Option<SecretString>,
    /// Which flow it is, for the cookie's name: two windows do not disturb one another.
    pub flow: String,
}

/// Why no flow was begun.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The return page is not allowed.
    #[error("returnTo: {0}")]
    ReturnTo(#[from] ReturnRefused),
    /// No random bytes.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The database.
    #[error("the flow cannot be kept")]
    Store(#[from] StoreError),
}

/// Of a flow, for names: tells nothing about its state.
pub(crate) fn flow_name(state: &str) -> String {
    hash(state)[..16].to_owned()
}

impl Connect {
    /// Begins a consent.
    pub async fn start(&self, start: Start) -> Result<Started, StartError> {
        let inner = &self.0;
        let return_to = start.return_to.as_deref().map(|text| inner.returns.parse(text)).transpose()?;
        let known = inner.store.credential(&start.teacher).await?;
        // After a disconnect, and for a change, the person chooses freely.
        let hint = known
            .filter(|known| !start.change_account && known.status != TokenStatus::Disconnected)
            .and_then(|known| known.email);
        let consent = inner.page.open(hint.as_deref(), start.change_account);
        let state = consent.state.expose_secret();
        let state_hash = hash(state);
        let verifier = inner.keys.seal(verifier_slot(&start.teacher, &state_hash), &consent.verifier)?;
        let browser_secret = start.is_browser.then(random).transpose()?;
        let now = inner.clock.now();
        let expires_at = now.plus(FLOW_MS);
        let flow = NewFlow {
            browser_hash: browser_secret.as_ref().map(|secret| hash(secret.expose_secret())),
            state_hash,
            teacher: start.teacher,
            verifier,
            return_to: return_to.map(|page| page.as_str().to_owned()),
            is_account_change: start.change_account,
            created_at: now,
            expires_at,
        };
        inner.store.open_flow(&flow).await?;
        tracing::info!(teacher_id = %flow.teacher, bound_to_browser = start.is_browser, "a consent was begun");
        Ok(Started { flow: flow_name(state), authorization_url: consent.url, expires_at, browser_secret })
    }
}

/// 256 random bits as text.
fn random() -> Result<SecretString, SealError> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|_| SealError)?;
    Ok(data_encoding::BASE64URL_NOPAD.encode(&bytes).into())
}
