//! A usable access token for a teacher: from memory, from the database, or fresh from Google.
//!
//! One refresh at a time per teacher: in this process by a lock, across replicas by a turn in the database that ends by
//! itself. Parallel refreshes would both work at Google, but the slower one could store an older state or declare a
//! grant dead that a new consent has just replaced. Hence the rule of this module: before anything bad is written about
//! a grant, it is read again, and the write is a compare-and-set on its version.
//!
//! Only `invalid_grant`, a missing scope and an administrator's block change a teacher's status. Trouble with our own
//! client opens a breaker instead and leaves all teachers as they are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq as _;
use tokio::time::Instant;

use super::breaker::{Breaker, Change};
use super::error::{Class, GoogleError};
use super::oauth::{TokenEndpoint, TokenGrant, covers_calendar};
use crate::clock::Clock;
use crate::credential::{KeyRing, Slot};
use crate::model::{GoogleSub, TeacherId, UnixMillis};
use crate::retry::{Jitter, fraction};
use crate::store::{Credential, RefreshTurn, RefreshedToken, Store, StoreError, TokenStatus};
use crate::telemetry::Metrics;

/// A token is refreshed when it has less than this left, so that none ends during a call; of short-lived ones a
/// quarter.
const MARGIN_MS: i64 = 5 * 60_000;
/// How long a turn to refresh lasts: the token endpoint's timeout and some for the database.
const TURN_MS: i64 = 20_000;
/// An idle grant is used again after three to four weeks, at random, so that those who connected together do not come
/// together for ever. Google lets a grant die that was not used for six months.
const TOUCH_AFTER_MS: i64 = 21 * 24 * 3_600_000;
const TOUCH_SPREAD_MS: i64 = 7 * 24 * 3_600_000;
/// Longest wait for somebody else's turn, all in all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between looks at whether somebody else's turn is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Above so many cached tokens the ended ones are dropped with each new one.
const CACHE_TIDY_LEN: usize = 4096;

/// Why there is no access token.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Google, the grant or our keys; the class says what follows, as for a call.
    #[error(transparent)]
    Google(#[from] GoogleError),
    /// The database.
    #[error("the credential cannot be read or kept")]
    Store(#[from] StoreError),
}

impl AccessError {
    /// The failure in the form in which [`crate::plan::absorb`] takes it; trouble with the database is transient.
    pub fn into_google(self) -> GoogleError {
        match self {
            Self::Google(error) => error,
            Self::Store(_) => GoogleError::unanswered(Class::Transient, "token: the database is not reachable"),
        }
    }
}

/// A token in memory.
#[derive(Debug, Clone)]
struct Cached {
    account: GoogleSub,
    token_version: i64,
    token: SecretString,
    lifetime: Lifetime,
}

/// When a token came and when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lifetime {
    from: UnixMillis,
    until: UnixMillis,
}

impl Lifetime {
    /// Whether it lasts for another call. A token that began in the future (a clock was set back) does not count.
    fn is_fresh(self, now: UnixMillis) -> bool {
        let margin_ms = MARGIN_MS.min(self.until.since(self.from) / 4);
        self.until.since(now) > margin_ms && now >= self.from.plus(-MARGIN_MS)
    }
}

/// What becomes of a grant after a refresh failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The status it gets.
    Status(TokenStatus),
    /// It stays as it is.
    Keep,
}

/// What a failed refresh says about the grant itself.
fn verdict(class: Class) -> Verdict {
    match class {
        Class::ReconnectRequired => Verdict::Status(TokenStatus::ReconnectRequired),
        Class::ScopeMissing => Verdict::Status(TokenStatus::ScopeMissing),
        Class::AdminBlocked => Verdict::Status(TokenStatus::AdminBlocked),
        _ => Verdict::Keep,
    }
}

/// The error of a grant that is not usable, by its status.
fn unusable(status: TokenStatus) -> Option<GoogleError> {
    let (class, message) = match status {
        // What a plan asks for on a calendar that is being left are deletes.
        TokenStatus::Connected | TokenStatus::Disconnecting => return None,
        TokenStatus::ReconnectRequired => (Class::ReconnectRequired, "the teacher has to connect Google again"),
        TokenStatus::Disconnected => (Class::ReconnectRequired, "the teacher is not connected to Google"),
        TokenStatus::ScopeMissing => (Class::ScopeMissing, "the grant does not cover the calendar"),
        TokenStatus::AdminBlocked => (Class::AdminBlocked, "the Workspace administrator blocks this app"),
    };
    Some(GoogleError::unanswered(class, message))
}

/// Which token will do.
#[derive(Debug, Clone, Copy)]
enum Wanted<'a> {
    /// Any that is fresh.
    Fresh,
    /// Another one than this, which Google has just rejected.
    OtherThan(&'a SecretString),
    /// One that came after this version of the credential, although that one may last a little.
    NewerThan(i64),
}

impl Wanted<'_> {
    fn is_met_by(self, token: &SecretString, token_version: i64) -> bool {
        match self {
            Self::Fresh => true,
            Self::OtherThan(rejected) => {
                !bool::from(token.expose_secret().as_bytes().ct_eq(rejected.expose_secret().as_bytes()))
            }
            Self::NewerThan(version) => token_version > version,
        }
    }
}

/// What became of [`AccessTokens::renew`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// There is a new access token, from us or from another process.
    Yes,
    /// Another process is at it, or the teacher's connection changed meanwhile.
    LeftToOthers,
}

fn impatient() -> GoogleError {
    GoogleError::unanswered(Class::Transient, "token: another process is refreshing it and does not finish")
}

/// Access tokens of all teachers. Share one per process, behind an `Arc`.
#[derive(Debug)]
pub struct AccessTokens {
    store: Store,
    endpoint: TokenEndpoint,
    keys: Arc<KeyRing>,
    clock: Clock,
    breaker: Breaker,
    metrics: Arc<Metrics>,
    jitter: Jitter,
    cache: Mutex<HashMap<TeacherId, Cached>>,
    /// A lock per teacher that is being refreshed; entries go when nobody waits.
    refreshing: Mutex<HashMap<TeacherId, Arc<tokio::sync::Mutex<()>>>>,
}

impl AccessTokens {
    /// Over one database, one token endpoint and one ring of keys.
    pub fn new(store: Store, endpoint: TokenEndpoint, keys: Arc<KeyRing>, clock: Clock) -> Self {
        Self {
            store,
            endpoint,
            keys,
            clock,
            breaker: Breaker::default(),
            metrics: Arc::default(),
            jitter: Jitter::from_system(),
            cache: Mutex::default(),
            refreshing: Mutex::default(),
        }
    }

    /// Counts refreshes there.
    #[must_use]
    pub fn with_metrics(self, metrics: Arc<Metrics>) -> Self {
        Self { metrics, ..self }
    }

    /// The breaker of the token endpoint, for status and alerts.
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// An access token for the account of `credential`, which may be somewhat old. `rejected` is a token that Google
    /// has answered 401 to: another one is returned, or an error.
    ///
    /// # Errors
    ///
    /// [`AccessError::Google`] with class
    /// - `ReconnectRequired`, `ScopeMissing`, `AdminBlocked`: the grant is unusable, and its status says so by now;
    /// - `Misconfigured`: our client or keys; no teacher's state was touched;
    /// - `Transient`, `Permanent`: the refresh failed, the grant stays; `Transient` also where the teacher's account has
    ///   changed meanwhile.
    pub async fn token(
        &self,
        credential: &Credential,
        rejected: Option<&SecretString>,
    ) -> Result<SecretString, AccessError> {
        let wanted = rejected.map_or(Wanted::Fresh, Wanted::OtherThan);
        if let Some(token) = self.known(credential, wanted) {
            return Ok(token);
        }
        let lock = self.lock_of(&credential.teacher);
        let outcome = {
            let _alone = lock.lock().await;
            self.token_alone(credential, wanted, true).await
        };
        drop(lock);
        self.forget_lock(&credential.teacher);
        // Nobody gives up while there is patience.
        outcome?.ok_or_else(|| impatient().into())
    }

    /// Refreshes although there may be a token that lasts a little: ahead of need, or so that an idle grant does not
    /// die unused. Does nothing if a newer token than that of `credential` is there already, and does not wait for
    /// others.
    ///
    /// # Errors
    ///
    /// As [`AccessTokens::token`].
    pub async fn renew(&self, credential: &Credential) -> Result<Renewed, AccessError> {
        let lock = self.lock_of(&credential.teacher);
        let outcome = match lock.try_lock() {
            Ok(_alone) => self.token_alone(credential, Wanted::NewerThan(credential.token_version), false).await,
            Err(_) => Ok(None),
        };
        drop(lock);
        self.forget_lock(&credential.teacher);
        Ok(if outcome?.is_some() { Renewed::Yes } else { Renewed::LeftToOthers })
    }

    /// A token that is at hand, in memory or sealed in `credential`.
    fn known(&self, credential: &Credential, wanted: Wanted<'_>) -> Option<SecretString> {
        let now = self.clock.now();
        let is_good = |token: &SecretString, token_version: i64, lifetime: Lifetime| {
            lifetime.is_fresh(now) && wanted.is_met_by(token, token_version)
        };
        if let Some(cached) = self.cache().get(&credential.teacher)
            && cached.account == credential.account
            && cached.token_version >= credential.token_version
        {
            // What is stored beside an older version can only be an older token.
            return is_good(&cached.token, cached.token_version, cached.lifetime).then(|| cached.token.clone());
        }
        if credential.status != TokenStatus::Connected {
            return None;
        }
        let until = credential.access_expires_at?;
        let from = credential.last_refresh_at.unwrap_or(credential.connected_at);
        let lifetime = Lifetime { from, until };
        if !lifetime.is_fresh(now) {
            return None;
        }
        let slot = Slot::access_token(&credential.teacher, &credential.account);
        // One that does not open (its key is gone) is no loss: a new one is asked for.
        let token = self.keys.open(slot, credential.access_token.as_deref()?).ok()?;
        if !is_good(&token, credential.token_version, lifetime) {
            return None;
        }
        self.keep(credential, credential.token_version, &token, lifetime);
        Some(token)
    }

    /// Holding the teacher's lock: reads the credential, and refreshes unless somebody else has. `None`: another
    /// process is at it, and we do not wait.
    async fn token_alone(
        &self,
        asked: &Credential,
        wanted: Wanted<'_>,
        waits: bool,
    ) -> Result<Option<SecretString>, AccessError> {
        let give_up_at = Instant::now() + PATIENCE;
        loop {
            let Some(credential) = self.store.credential(&asked.teacher).await? else {
                return Err(unusable(TokenStatus::Disconnected).expect("it is not usable").into());
            };
            if credential.account != asked.account {
                // Its token would write to another calendar than the one that was planned for.
                let message = "token: the teacher has connected another Google account meanwhile";
                return Err(GoogleError::unanswered(Class::Transient, message).into());
            }
            if let Some(error) = unusable(credential.status) {
                return Err(error.into());
            }
            if let Some(token) = self.known(&credential, wanted) {
                return Ok(Some(token));
            }
            let now = self.clock.now();
            if let Err(open) = self.breaker.admit(now) {
                return Err(open.as_error(now).into());
            }
            let version = credential.token_version;
            match self.store.begin_refresh(&credential.teacher, version, now, TURN_MS).await? {
                RefreshTurn::Mine { turn } => {
                    if let Some(token) = self.refresh(&credential, turn).await? {
                        return Ok(Some(token));
                    }
                }
                RefreshTurn::Moved => {}
                RefreshTurn::Theirs { .. } if waits => tokio::time::sleep(LOOK_EVERY).await,
                RefreshTurn::Theirs { .. } => return Ok(None),
            }
            if Instant::now() >= give_up_at {
                return Err(impatient().into());
            }
        }
    }

    /// Uses a turn. `None`: the credential moved meanwhile, so neither our token nor our failure counts; read again.
    async fn refresh(&self, credential: &Credential, turn: i64) -> Result<Option<SecretString>, AccessError> {
        let Credential { teacher, token_version: version, .. } = credential;
        let outcome = self.grant(credential).await;
        let now = self.clock.now();
        let error = match outcome {
            Ok((grant, refreshed)) => {
                let lifetime = Lifetime { from: now, until: refreshed.access_expires_at };
                if !self.store.finish_refresh(teacher, *version, turn, &refreshed, now).await? {
                    return Ok(None);
                }
                // The version that `finish_refresh` made.
                self.keep(credential, version + 1, &grant.access_token, lifetime);
                return Ok(Some(grant.access_token));
            }
            Err(error) => error,
        };
        let status = match verdict(error.class) {
            Verdict::Status(status) => Some(status),
            Verdict::Keep => None,
        };
        let stood = self.store.fail_refresh(teacher, *version, turn, status, &error.message, now).await?;
        // A refusal of a grant that has been replaced meanwhile says nothing about the new one.
        if stood || status.is_none() { Err(error.into()) } else { Ok(None) }
    }

    /// Asks Google, and seals what it gave.
    async fn grant(&self, credential: &Credential) -> Result<(TokenGrant, RefreshedToken), GoogleError> {
        let Credential { teacher, account, .. } = credential;
        // These are failures on our side: they have no status, so they open no breaker.
        let ours = |message: String| GoogleError::unanswered(Class::Misconfigured, message);
        let Some(sealed) = &credential.refresh_token else {
            return Err(GoogleError::unanswered(Class::ReconnectRequired, "token: there is no refresh token"));
        };
        let refresh_token = self
            .keys
            .open(Slot::refresh_token(teacher, account), sealed)
            .map_err(|error| ours(format!("token: {error}")))?;
        let begun = Instant::now();
        let outcome = self.endpoint.refresh(&refresh_token).await;
        self.metrics.token_refresh(outcome.as_ref().err(), begun.elapsed());
        if let Some(change) = self.breaker.record(outcome.as_ref().err(), self.clock.now()) {
            self.metrics.breaker("token", change == Change::Opened);
            tracing::warn!(?change, "breaker of the token endpoint");
        }
        let grant = outcome?;
        if grant.scopes.is_none() && !covers_calendar(&credential.scopes) {
            let message = "token: the grant does not cover the calendar";
            return Err(GoogleError::unanswered(Class::ScopeMissing, message));
        }
        let seal = |slot, token| self.keys.seal(slot, token).map_err(|error| ours(format!("token: {error}")));
        let new_refresh_token = grant.refresh_token.as_ref();
        let now = self.clock.now();
        let refreshed = RefreshedToken {
            access_token: seal(Slot::access_token(teacher, account), &grant.access_token)?,
            access_expires_at: now.plus(grant.expires_in_ms),
            refresh_token: new_refresh_token
                .map(|token| seal(Slot::refresh_token(teacher, account), token))
                .transpose()?,
            scopes: grant.scopes.clone(),
            refresh_expires_at: grant.refresh_token_expires_in_s.map(|seconds| {
                // Cut to a century, so that nothing Google sends can overflow.
                now.plus(i64::try_from(seconds).unwrap_or(i64::MAX).min(100 * 366 * 86_400) * 1000)
            }),
            touch_at: now.plus(TOUCH_AFTER_MS + fraction(TOUCH_SPREAD_MS, self.jitter.next())),
        };
        Ok((grant, refreshed))
    }

    fn keep(&self, credential: &Credential, token_version: i64, token: &SecretString, lifetime: Lifetime) {
        let account = credential.account.clone();
        let mut cache = self.cache();
        if cache.len() >= CACHE_TIDY_LEN {
            let now = self.clock.now();
            cache.retain(|_, cached| cached.lifetime.until > now);
        }
        cache.insert(credential.teacher.clone(), Cached { account, token_version, token: token.clone(), lifetime });
    }

    fn lock_of(&self, teacher: &TeacherId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.locks().entry(teacher.clone()).or_default())
    }

    fn forget_lock(&self, teacher: &TeacherId) {
        let mut locks = self.locks();
        // Clones are made under this same mutex, so a count of one means that nobody else has or can get it.
        if locks.get(teacher).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(teacher);
        }
    }

    fn cache(&self) -> MutexGuard<'_, HashMap<TeacherId, Cached>> {
        // Every critical section leaves the map whole.
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<TeacherId, Arc<tokio::sync::Mutex<()>>>> {
        self.refreshing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Code;

    #[test]
    fn tokens_are_fresh_until_five_minutes_or_a_quarter_of_their_life_are_left() {
        let at = |seconds: i64| UnixMillis::new(seconds * 1000);
        let hour = Lifetime { from: at(0), until: at(3_600) };
        assert!(hour.is_fresh(at(0)));
        assert!(hour.is_fresh(at(3_299)));
        assert!(!hour.is_fresh(at(3_300)));
        assert!(!hour.is_fresh(at(9_999)));
        // A clock that was set back by a day must not make a dead token live.
        assert!(!hour.is_fresh(at(-86_400)));
        let minute = Lifetime { from: at(0), until: at(60) };
        assert!(minute.is_fresh(at(44)));
        assert!(!minute.is_fresh(at(45)));
    }

    /// Both are awaited inside spawned tasks; what they hold across an await decides, and shows only there.
    #[expect(dead_code, reason = "that it compiles is the test")]
    fn the_futures_can_be_sent_between_threads(
        tokens: &AccessTokens,
        client: &crate::google::calendar::CalendarClient,
        credential: &Credential,
        target: crate::google::calendar::Target<'_>,
        token: &SecretString,
    ) {
        fn sendable(_: impl Send) {}
        sendable(tokens.token(credential, None));
        sendable(client.call(token, target, &crate::google::Call::Delete, None, PATIENCE));
    }

    #[test]
    fn only_three_classes_speak_against_a_grant() {
        assert_eq!(verdict(Class::ReconnectRequired), Verdict::Status(TokenStatus::ReconnectRequired));
        assert_eq!(verdict(Class::ScopeMissing), Verdict::Status(TokenStatus::ScopeMissing));
        assert_eq!(verdict(Class::AdminBlocked), Verdict::Status(TokenStatus::AdminBlocked));
        for class in [
            Class::Misconfigured,
            Class::Transient,
            Class::RateLimited,
            Class::Unauthorized,
            Class::Permanent(Code::InvalidRequest),
        ] {
            assert_eq!(verdict(class), Verdict::Keep, "{class:?}");
        }
    }

    #[test]
    fn every_status_but_two_is_unusable() {
        for (status, _) in TokenStatus::WORDS {
            let is_usable = matches!(status, TokenStatus::Connected | TokenStatus::Disconnecting);
            assert_eq!(unusable(status).is_none(), is_usable, "{status:?}");
        }
    }
}
