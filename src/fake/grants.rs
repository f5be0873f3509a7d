//! Consents and the tokens that come of them; no HTTP.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::refusal::Refusal;
use crate::model::UnixMillis;

/// How the token endpoint behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TokenMode {
    /// As documented.
    #[default]
    Normal,
    /// `400 invalid_grant`, although the grant is kept: back to normal, it works again.
    InvalidGrant,
    /// `400 invalid_grant` with `error_subtype=invalid_rapt`: Cloud session control.
    InvalidRapt,
    /// `401 invalid_client`
    InvalidClient,
    /// `400 admin_policy_enforced`
    AdminPolicyEnforced,
    /// Tokens come without any Calendar scope.
    MissingScope,
    /// A consent gives no refresh token.
    NoRefreshToken,
    /// 503
    Unavailable,
    /// No answer, for ten minutes.
    Hang,
}

impl TokenMode {
    pub(super) fn refusal(self) -> Option<Refusal> {
        match self {
            Self::Normal | Self::MissingScope | Self::NoRefreshToken | Self::Hang => None,
            Self::InvalidGrant => Some(Refusal::of(400, "invalid_grant")),
            Self::InvalidRapt => Some(Refusal::new(400, "invalid_grant", "reauth related error (invalid_rapt)")),
            Self::InvalidClient => Some(Refusal::of(401, "invalid_client")),
            Self::AdminPolicyEnforced => Some(Refusal::of(400, "admin_policy_enforced")),
            Self::Unavailable => Some(Refusal::new(503, "temporarily_unavailable", "The server is overloaded.")),
        }
    }
}

const AUTH: &str = "https://www.googleapis.com/auth/";

/// A scope as Google names it in its answers.
pub(super) fn full_scope(scope: &str) -> String {
    match scope {
        "email" | "profile" => format!("{AUTH}userinfo.{scope}"),
        other => other.to_owned(),
    }
}

pub(super) fn is_calendar_scope(scope: &str) -> bool {
    scope.strip_prefix(AUTH).is_some_and(|name| name == "calendar" || name.starts_with("calendar."))
}

fn may_write(scopes: &[String]) -> bool {
    const NAMES: [&str; 4] = ["calendar", "calendar.events", "calendar.events.owned", "calendar.app.created"];
    scopes.iter().filter_map(|scope| scope.strip_prefix(AUTH)).any(|name| NAMES.contains(&name))
}

fn may_read(scopes: &[String]) -> bool {
    const NAMES: [&str; 3] = ["calendar.readonly", "calendar.events.readonly", "calendar.events.owned.readonly"];
    may_write(scopes) || scopes.iter().filter_map(|scope| scope.strip_prefix(AUTH)).any(|name| NAMES.contains(&name))
}

#[derive(Debug)]
struct Access {
    account: usize,
    can_read: bool,
    can_write: bool,
    expires_at: UnixMillis,
}

/// An authorization code that was handed out.
#[derive(Debug, Clone)]
pub(super) struct Code {
    pub(super) account: usize,
    pub(super) scopes: Vec<String>,
    pub(super) redirect_uri: String,
    /// `code_challenge`, always S256.
    pub(super) challenge: Option<String>,
    pub(super) nonce: Option<String>,
    /// Whether the exchange gives a refresh token.
    pub(super) is_offline: bool,
    pub(super) expires_at: UnixMillis,
}

/// A fresh access token and what it may do.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) access_token: String,
    pub(super) refresh_token: Option<String>,
    pub(super) scopes: Arc<[String]>,
}

#[derive(Debug, Default)]
pub(super) struct Grants {
    refresh: HashMap<String, (usize, Arc<[String]>)>,
    /// Oldest first, by account: Google keeps a hundred a client and lets the oldest die silently.
    refresh_order: HashMap<usize, VecDeque<String>>,
    access: HashMap<String, Access>,
    codes: HashMap<String, Code>,
    /// Accounts that have consented before: without `prompt=consent` they get no second refresh token.
    consented: HashSet<usize>,
}

impl Grants {
    pub(super) fn add_refresh(&mut self, account: usize, token: String, scopes: &[String]) {
        let scopes = scopes.iter().map(|scope| full_scope(scope)).collect();
        if self.refresh.insert(token.clone(), (account, scopes)).is_none() {
            let order = self.refresh_order.entry(account).or_default();
            order.push_back(token);
            if order.len() > 100
                && let Some(oldest) = order.pop_front()
            {
                self.refresh.remove(&oldest);
            }
        }
        self.consented.insert(account);
    }

    pub(super) fn add_access(&mut self, account: usize, scopes: &[String], now: UnixMillis, seconds: i64) -> String {
        if self.access.len() >= 10_000 {
            self.access.retain(|_, access| access.expires_at > now);
        }
        let token = format!("ya29.{}", uuid::Uuid::new_v4().simple());
        let access = Access {
            account,
            can_read: may_read(scopes),
            can_write: may_write(scopes),
            expires_at: now.plus(seconds.saturating_mul(1000)),
        };
        self.access.insert(token.clone(), access);
        token
    }

    /// Whose token it is, expired or not.
    pub(super) fn account_of(&self, token: &str) -> Option<usize> {
        self.access.get(token).map(|access| access.account)
    }

    pub(super) fn account_of_refresh(&self, token: &str) -> Option<usize> {
        self.refresh.get(token).map(|(account, _)| *account)
    }

    pub(super) fn account_of_code(&self, code: &str) -> Option<usize> {
        self.codes.get(code).map(|code| code.account)
    }

    /// Account, may read, may write; `None` when the token is unknown or has expired.
    pub(super) fn access(&self, token: &str, now: UnixMillis) -> Option<(usize, bool, bool)> {
        let access = self.access.get(token).filter(|access| access.expires_at > now)?;
        Some((access.account, access.can_read, access.can_write))
    }

    pub(super) fn refresh(
        &mut self,
        token: &str,
        now: UnixMillis,
        seconds: i64,
        mode: TokenMode,
    ) -> Result<Issued, Refusal> {
        let (account, scopes) = self.refresh.get(token).cloned().ok_or_else(|| Refusal::of(400, "invalid_grant"))?;
        let scopes = granted(scopes, mode);
        let access_token = self.add_access(account, &scopes, now, seconds);
        Ok(Issued { access_token, refresh_token: None, scopes })
    }

    pub(super) fn add_code(&mut self, code: Code) -> String {
        let text = format!("4/0{}", uuid::Uuid::new_v4().simple());
        self.codes.insert(text.clone(), code);
        text
    }

    /// Exchanges a code, which is spent whatever comes of it.
    pub(super) fn exchange(
        &mut self,
        code: &str,
        redirect_uri: &str,
        verifier: Option<&str>,
        now: UnixMillis,
        seconds: i64,
        mode: TokenMode,
    ) -> Result<(Code, Issued), Refusal> {
        let malformed = || Refusal::new(400, "invalid_grant", "Malformed auth code.");
        let code = self.codes.remove(code).ok_or_else(malformed)?;
        if code.expires_at <= now {
            return Err(malformed());
        }
        if code.redirect_uri != redirect_uri {
            return Err(Refusal::new(400, "redirect_uri_mismatch", "Bad Request"));
        }
        let proof = verifier.map(|verifier| data_encoding::BASE64URL_NOPAD.encode(&Sha256::digest(verifier)));
        match (&code.challenge, &proof) {
            (None, None) => {}
            (Some(_), None) => return Err(Refusal::new(400, "invalid_grant", "Missing code verifier.")),
            (Some(challenge), Some(proof)) if challenge == proof => {}
            _ => return Err(Refusal::new(400, "invalid_grant", "Invalid code verifier.")),
        }
        let is_offline = code.is_offline && mode != TokenMode::NoRefreshToken;
        let refresh_token = is_offline.then(|| format!("1//0{}", uuid::Uuid::new_v4().simple()));
        if let Some(token) = &refresh_token {
            self.add_refresh(code.account, token.clone(), &code.scopes);
        }
        self.consented.insert(code.account);
        let scopes = granted(code.scopes.iter().map(|scope| full_scope(scope)).collect(), mode);
        let access_token = self.add_access(code.account, &scopes, now, seconds);
        Ok((code, Issued { access_token, refresh_token, scopes }))
    }

    pub(super) fn has_consented(&self, account: usize) -> bool {
        self.consented.contains(&account)
    }

    pub(super) fn expire_access(&mut self, account: usize) {
        for access in self.access.values_mut().filter(|access| access.account == account) {
            access.expires_at = UnixMillis::new(i64::MIN);
        }
    }

    /// Everything the account granted to the project is gone, whichever token was shown.
    pub(super) fn revoke_account(&mut self, account: usize) {
        self.refresh.retain(|_, (owner, _)| *owner != account);
        self.access.retain(|_, access| access.account != account);
        self.codes.retain(|_, code| code.account != account);
        self.refresh_order.remove(&account);
        self.consented.remove(&account);
    }

    pub(super) fn live_refresh_tokens(&self, account: usize) -> usize {
        self.refresh.values().filter(|(owner, _)| *owner == account).count()
    }
}

fn granted(scopes: Arc<[String]>, mode: TokenMode) -> Arc<[String]> {
    if mode == TokenMode::MissingScope {
        return scopes.iter().filter(|scope| !is_calendar_scope(scope)).cloned().collect();
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hundred_and_first_refresh_token_kills_the_oldest() {
        let mut grants = Grants::default();
        for n in 0..=100 {
            grants.add_refresh(0, format!("token-{n}"), &[]);
        }
        assert_eq!(grants.live_refresh_tokens(0), 100);
        assert_eq!(grants.account_of_refresh("token-0"), None);
    }
}
