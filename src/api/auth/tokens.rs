//! API tokens `mp_<id>_<secret>`, from the database and from `API_TOKENS_FILE`.
//!
//! Tokens are kept in memory, so a read costs one SHA-256 and no query, and goes on while the database is down. They
//! are read again every [`REFRESH`], and when one is not accepted, for which the request waits a moment: a new token
//! works from its first use, a revoked one for a few seconds at most. A wrong secret waits as an unknown id does, so
//! that the time of the answer does not tell which ids exist.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::principal::{Caller, Principal};
use crate::api::limits::Limits;
use crate::api::patience::in_time;
use crate::api::problem::Problem;
use crate::clock::Clock;
use crate::model::UnixMillis;
use crate::store::{ApiToken, Role, Store};

/// How long a revoked token goes on working at most, and uses wait to be noted.
pub const REFRESH: Duration = Duration::from_secs(5);

/// At least this long between two reads that tokens which are not accepted cause, so that guessing costs the database
/// nothing. Such requests wait that long at most and share the next read.
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

#[derive(Debug)]
struct Known {
    caller: Arc<Caller>,
    secret_sha256: [u8; 32],
    is_revoked: bool,
    /// Of the database, so that its last use is noted there.
    stored: bool,
    /// Unix milliseconds; 0 for never.
    used_at: AtomicI64,
    noted_at: AtomicI64,
}

type Tokens = HashMap<String, Known>;

/// Checks API tokens.
#[derive(Debug)]
pub(super) struct ApiTokens {
    store: Store,
    clock: Clock,
    file: Option<PathBuf>,
    limits: Arc<Limits>,
    tokens: RwLock<Arc<Tokens>>,
    /// Held while reading, so that only one does.
    forced: tokio::sync::Mutex<Option<Forced>>,
}

/// The last read for a token that was not accepted.
#[derive(Debug)]
struct Forced {
    began: Instant,
    ended: Instant,
    outcome: Result<(), Problem>,
}

impl ApiTokens {
    pub(super) fn new(store: Store, clock: Clock, file: Option<PathBuf>, limits: Arc<Limits>) -> Self {
        Self { store, clock, file, limits, tokens: RwLock::default(), forced: tokio::sync::Mutex::new(None) }
    }

    /// Whose token it is, as far as is known without asking the database.
    pub(super) fn known(&self, id: &str, secret: &str) -> Option<Arc<Caller>> {
        let digest = hash_secret(secret);
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let known = tokens.get(id);
        // An unknown id is compared too, with what no secret hashes to.
        let expected = known.map_or(&[0; 32], |known| &known.secret_sha256);
        let is_right = bool::from(digest.ct_eq(expected));
        let known = known.filter(|known| is_right && !known.is_revoked)?;
        known.used_at.store(self.clock.now().get(), Ordering::Relaxed);
        Some(Arc::clone(&known.caller))
    }

    /// Whose token it is, after another look at the database: it may have been made a moment ago.
    pub(super) async fn known_by_now(&self, id: &str, secret: &str) -> Result<Arc<Caller>, Problem> {
        self.refresh_for_unaccepted().await?;
        self.known(id, secret).ok_or_else(Problem::token_invalid)
    }

    async fn refresh_for_unaccepted(&self) -> Result<(), Problem> {
        let arrived = Instant::now();
        let mut forced = self.forced.lock().await;
        if let Some(last) = &*forced {
            // Somebody else's read began after we asked, so it would have seen our token. One that failed is the answer
            // for all who waited for it: while the database is down an unknown token is nobody's fault.
            if last.began > arrived || (last.outcome.is_err() && last.ended > arrived) {
                return last.outcome.clone();
            }
            tokio::time::sleep_until(last.began + FORCED_REFRESH).await;
        }
        let began = Instant::now();
        let outcome = self.refresh().await;
        *forced = Some(Forced { began, ended: Instant::now(), outcome: outcome.clone() });
        outcome
    }

    /// Reads all tokens again. A file that cannot be read keeps its tokens out and is complained about.
    pub(super) async fn refresh(&self) -> Result<(), Problem> {
        let stored = in_time(self.store.api_tokens()).await?;
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
        let caller = |id: &str, role: Role| {
            // The bucket stays, or a refresh would fill it up.
            let bucket = match before.get(id) {
                Some(known) => known.caller.bucket.clone(),
                None => self.limits.own_bucket(),
            };
            let principal = Principal::new(Some(role), None, format!("token:{id}"));
            Arc::new(Caller { principal: Arc::new(principal), bucket })
        };
        let mut tokens = Tokens::new();
        for (id, role, secret_sha256) in from_file {
            let (used_at, noted_at) = used(&id, None);
            let caller = caller(&id, role);
            tokens.insert(id, Known { caller, secret_sha256, is_revoked: false, stored: false, used_at, noted_at });
        }
        for ApiToken { id, role, secret_sha256, last_used_at, revoked_at, .. } in stored {
            let (used_at, noted_at) = used(&id, last_used_at);
            let (caller, is_revoked) = (caller(&id, role), revoked_at.is_some());
            tokens.insert(id, Known { caller, secret_sha256, is_revoked, stored: true, used_at, noted_at });
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
}
