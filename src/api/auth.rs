//! Who asks: API tokens `mp_<id>_<secret>`, from the database and from `API_TOKENS_FILE`.
//!
//! Tokens are kept in memory, so a read costs one SHA-256 and no query, and goes on while the database is down. They
//! are read again every [`REFRESH`], and when an id is unknown, for which the request waits a moment: a new token works
//! from its first use, a revoked one for a few seconds at most. Deliberately absent: a cache of verified headers. It
//! would keep secrets in memory to save some 200 ns.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderMap, header};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::problem::Problem;
use crate::clock::Clock;
use crate::model::{TeacherId, UnixMillis};
use crate::store::{ApiToken, Role, Store};

/// How long a revoked token goes on working at most, and uses wait to be noted.
pub const REFRESH: Duration = Duration::from_secs(5);

/// At least this long between two reads that unknown ids cause, so that guessing costs the database nothing. Requests
/// with unknown ids wait that long at most and share the next read.
const FORCED_REFRESH: Duration = Duration::from_millis(250);

/// Uses are noted to the minute.
const USE_NOTED_MS: i64 = 60_000;

/// The id and the secret of a token's text; `None` when it is not one of ours. The id ends at the second underscore.
pub fn split_token(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.strip_prefix("mp_")?.split_once('_')?;
    let is_id = (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (is_id && (16..=256).contains(&secret.len())).then_some((id, secret))
}

/// What is kept of a secret.
pub fn hash_secret(secret: &str) -> [u8; 32] {
    Sha256::digest(secret).into()
}

/// Somebody whose token was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Principal {
    /// What they may do.
    pub role: Role,
}

impl Principal {
    /// 403 unless the role is enough.
    pub fn require(self, role: Role) -> Result<Self, Problem> {
        if self.role >= role { Ok(self) } else { Err(Problem::role_too_low(role.as_str(), self.role.as_str())) }
    }

    /// 403 unless they may act for this teacher: connect and disconnect the Google account. An admin may for everybody.
    pub fn require_teacher(&self, _teacher: &TeacherId) -> Result<(), Problem> {
        self.require(Role::Admin).map(drop)
    }

    /// 403 unless they may see what concerns this teacher: every reader may.
    pub fn require_reader_of(&self, _teacher: &TeacherId) -> Result<(), Problem> {
        self.require(Role::Reader).map(drop)
    }
}

#[derive(Debug)]
struct Known {
    role: Role,
    secret_sha256: [u8; 32],
    /// Kept, so that whoever still uses it causes no reads.
    is_revoked: bool,
    /// Of the database, so that its last use is noted there.
    stored: bool,
    /// Unix milliseconds; 0 for never.
    used_at: AtomicI64,
    noted_at: AtomicI64,
}

type Tokens = HashMap<String, Known>;

/// Checks tokens.
#[derive(Debug)]
pub(super) struct Authenticator {
    store: Store,
    clock: Clock,
    file: Option<PathBuf>,
    tokens: RwLock<Arc<Tokens>>,
    /// When the last read for an unknown id began; held while reading, so that only one does.
    forced: tokio::sync::Mutex<Option<Instant>>,
}

impl Authenticator {
    pub(super) fn new(store: Store, clock: Clock, file: Option<PathBuf>) -> Self {
        Self { store, clock, file, tokens: RwLock::default(), forced: tokio::sync::Mutex::new(None) }
    }

    /// The owner of the token in `Authorization: Bearer …` (RFC 6750 section 2.1).
    pub(super) async fn principal(&self, headers: &HeaderMap) -> Result<Principal, Problem> {
        let value = headers.get(header::AUTHORIZATION).ok_or_else(Problem::token_missing)?.as_bytes();
        // RFC 9110 section 11.1: the scheme is compared without case.
        let token = match value.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token,
            _ => return Err(Problem::token_missing()),
        };
        let token = std::str::from_utf8(token).map_err(|_| Problem::token_invalid())?;
        let (id, secret) = split_token(token.trim()).ok_or_else(Problem::token_invalid)?;
        if let Some(answer) = self.check(id, secret) {
            return answer;
        }
        self.refresh_for_unknown_id().await?;
        self.check(id, secret).unwrap_or_else(|| Err(Problem::token_invalid()))
    }

    /// `None` when the id is not known.
    fn check(&self, id: &str, secret: &str) -> Option<Result<Principal, Problem>> {
        let tokens = self.tokens();
        let known = tokens.get(id)?;
        if !bool::from(hash_secret(secret).ct_eq(&known.secret_sha256)) || known.is_revoked {
            return Some(Err(Problem::token_invalid()));
        }
        known.used_at.store(self.clock.now().get(), Ordering::Relaxed);
        Some(Ok(Principal { role: known.role }))
    }

    async fn refresh_for_unknown_id(&self) -> Result<(), Problem> {
        let arrived = Instant::now();
        let mut forced = self.forced.lock().await;
        if let Some(last) = *forced {
            // Somebody else's read began after we asked, so it would have seen our token.
            if last > arrived {
                return Ok(());
            }
            tokio::time::sleep_until(last + FORCED_REFRESH).await;
        }
        let began = Instant::now();
        self.refresh().await?;
        // Only a read that worked counts: while the database is down an unknown id is nobody's fault.
        *forced = Some(began);
        Ok(())
    }

    /// Reads all tokens again. A file that cannot be read keeps its tokens out and is complained about.
    pub(super) async fn refresh(&self) -> Result<(), Problem> {
        let stored = self.store.api_tokens().await?;
        let from_file = match &self.file {
            Some(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => tokens_of_file(&text),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "API_TOKENS_FILE cannot be read; its tokens are not accepted");
                    Vec::new()
                }
            },
            None => Vec::new(),
        };
        let before = self.tokens();
        let used = |id: &str, last: Option<UnixMillis>| {
            let noted = last.map_or(0, UnixMillis::get);
            let used = before.get(id).map_or(0, |known| known.used_at.load(Ordering::Relaxed)).max(noted);
            (AtomicI64::new(used), AtomicI64::new(noted))
        };
        let mut tokens = Tokens::new();
        for (id, role, secret_sha256) in from_file {
            let (used_at, noted_at) = used(&id, None);
            tokens.insert(id, Known { role, secret_sha256, is_revoked: false, stored: false, used_at, noted_at });
        }
        for ApiToken { id, role, secret_sha256, last_used_at, revoked_at, .. } in stored {
            let (used_at, noted_at) = used(&id, last_used_at);
            let is_revoked = revoked_at.is_some();
            tokens.insert(id, Known { role, secret_sha256, is_revoked, stored: true, used_at, noted_at });
        }
        *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tokens);
        Ok(())
    }

    /// Notes the uses of stored tokens, of each once in a minute.
    pub(super) async fn note_uses(&self) -> Result<(), Problem> {
        let tokens = self.tokens();
        let due: Vec<(&Known, String, i64)> = tokens
            .iter()
            .filter(|(_, known)| known.stored)
            .map(|(id, known)| (known, id.clone(), known.used_at.load(Ordering::Relaxed)))
            .filter(|(known, _, used_at)| {
                used_at / USE_NOTED_MS > known.noted_at.load(Ordering::Relaxed) / USE_NOTED_MS
            })
            .collect();
        if due.is_empty() {
            return Ok(());
        }
        let uses: Vec<(String, UnixMillis)> =
            due.iter().map(|(_, id, used_at)| (id.clone(), UnixMillis::new(*used_at))).collect();
        self.store.touch_api_tokens(&uses).await?;
        for (known, _, used_at) in due {
            known.noted_at.store(used_at, Ordering::Relaxed);
        }
        Ok(())
    }

    fn tokens(&self) -> Arc<Tokens> {
        // The guarded value is replaced as a whole, so a poisoned lock guards a good one.
        Arc::clone(&self.tokens.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A line of `API_TOKENS_FILE`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToken {
    token: String,
    /// For people who read the file.
    #[serde(rename = "name")]
    _name: String,
    role: String,
}

/// The good lines; a bad one is named by its number in the log, never by its content.
fn tokens_of_file(text: &str) -> Vec<(String, Role, [u8; 32])> {
    let mut tokens = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed = serde_json::from_str::<FileToken>(line).ok().and_then(|entry| {
            let (id, secret) = split_token(&entry.token)?;
            Some((id.to_owned(), Role::parse(&entry.role)?, hash_secret(secret)))
        });
        if let Some(token) = parsed {
            tokens.push(token);
        } else {
            tracing::error!(
                line = at + 1,
                "API_TOKENS_FILE: not a line such as {{\"token\":\"mp_<id>_<secret>\",\"name\":\"wordpress\",\"role\":\"reader\"}}"
            );
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_ends_at_the_second_underscore() {
        assert_eq!(split_token("mp_ab1_0123456789abcde_"), Some(("ab1", "0123456789abcde_")));
        for bad in [
            "",
            "mp_",
            "mp_ab1",
            "mp_ab1_short",
            "mp_AB_0123456789abcdef",
            "mp__0123456789abcdef",
            "xx_ab_0123456789abcdef",
        ] {
            assert_eq!(split_token(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_gives_its_good_lines() {
        let text = "{\"token\":\"mp_a_0123456789abcdef\",\"name\":\"wp\",\"role\":\"reader\"}\n\nnonsense\n\
                    {\"token\":\"mp_b_0123456789abcdef\",\"name\":\"x\",\"role\":\"king\"}\n";
        assert_eq!(tokens_of_file(text), [("a".to_owned(), Role::Reader, hash_secret("0123456789abcdef"))]);
    }

    #[test]
    fn a_role_includes_those_below() {
        let operator = Principal { role: Role::Operator };
        assert!(operator.require(Role::Reader).is_ok());
        assert!(operator.require(Role::Operator).is_ok());
        assert_eq!(operator.require(Role::Admin).unwrap_err().code, "ROLE_TOO_LOW");
    }
}
