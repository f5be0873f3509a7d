//! The published keys of whoever signs the JWTs: `JWT_JWKS_URL`.
//!
//! Read at the start, every [`PERIOD_MS`], and when a token names a key that is not known, at most once in [`PAUSE_MS`]
//! however many tokens do. What cannot be read changes nothing: the keys that were there go on working.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use url::Url;

use super::keys::{Algorithm, NamedKey, PublicKey, keys_of_set};
use crate::clock::Clock;
use crate::google::calendar::http_client;
use crate::model::UnixMillis;

/// A set of keys is a few KiB.
pub const BYTES_MAX: usize = 256 * 1024;

/// For the whole answer.
const TIME_MAX: Duration = Duration::from_secs(5);

/// Between two reads that unknown keys cause.
const PAUSE_MS: i64 = 10_000;

/// A key that was taken back is refused after this long.
const PERIOD_MS: i64 = 300_000;

/// Where the keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    /// Fetched.
    Url(Url),
    /// Read.
    File(PathBuf),
}

/// The keys as last read.
#[derive(Debug)]
pub(super) struct Jwks {
    source: JwksSource,
    http: reqwest::Client,
    clock: Clock,
    keys: RwLock<Arc<[NamedKey]>>,
    /// Grows when the keys change: what was verified with the old ones has to be verified again.
    generation: AtomicU64,
    reads: tokio::sync::Mutex<Reads>,
}

/// Held while reading, so that only one does.
#[derive(Debug, Default)]
struct Reads {
    last: Option<UnixMillis>,
    is_failing: bool,
}

impl Jwks {
    pub(super) fn new(source: JwksSource, clock: Clock) -> Self {
        let keys = RwLock::new(Arc::from([]));
        let (generation, reads) = (AtomicU64::new(0), tokio::sync::Mutex::default());
        Self { source, http: http_client(), clock, keys, generation, reads }
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The keys that may have signed: those of the name and algorithm, or without a name all of the algorithm.
    pub(super) fn candidates(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<PublicKey> {
        let keys = self.keys();
        let is_named = |key: &NamedKey| id.is_none() || key.id.as_deref() == id;
        let fitting = keys.iter().filter(|key| is_named(key) && key.key.algorithm() == algorithm);
        fitting.map(|key| key.key.clone()).collect()
    }

    /// Whether no set was ever read, so that nobody can be told that their key is wrong.
    pub(super) fn is_empty(&self) -> bool {
        self.keys().is_empty()
    }

    /// Reads the keys again because one is missing, unless somebody did a moment ago.
    pub(super) async fn refresh_for_unknown_key(&self) {
        let mut reads = self.reads.lock().await;
        if self.is_over(PAUSE_MS, &reads) {
            self.read(&mut reads).await;
        }
    }

    /// Reads the keys again when it is time; a set that was never read is tried for more often.
    pub(super) async fn refresh_when_due(&self) {
        let mut reads = self.reads.lock().await;
        let pause = if self.is_empty() { PAUSE_MS } else { PERIOD_MS };
        if self.is_over(pause, &reads) {
            self.read(&mut reads).await;
        }
    }

    /// Whether the last read is so long ago, or in the future, which says that the clock was set back.
    fn is_over(&self, pause_ms: i64, reads: &Reads) -> bool {
        reads.last.is_none_or(|last| !(0..pause_ms).contains(&self.clock.now().since(last)))
    }

    async fn read(&self, reads: &mut Reads) {
        let read = match &self.source {
            JwksSource::Url(url) => self.fetch(url).await,
            JwksSource::File(path) => read_bounded(path.clone()).await,
        };
        // From the end, so that a slow server is not asked without a pause.
        reads.last = Some(self.clock.now());
        match read.and_then(|json| keys_of_set(&json).map_err(|error| error.to_string())) {
            Ok(keys) => {
                reads.is_failing = false;
                if *self.keys() != keys[..] {
                    tracing::info!(keys = keys.len(), "JWT_JWKS_URL: the keys of JWTs were read");
                    *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
                    self.generation.fetch_add(1, Ordering::AcqRel);
                }
            }
            Err(problem) if !reads.is_failing => {
                reads.is_failing = true;
                tracing::warn!(problem, "JWT_JWKS_URL: the keys of JWTs cannot be read; those known go on working");
            }
            Err(_) => {}
        }
    }

    async fn fetch(&self, url: &Url) -> Result<Vec<u8>, String> {
        // The URL may hold a secret in its query.
        let failed = |error: reqwest::Error| crate::telemetry::Chain(&error.without_url()).to_string();
        let mut answer = self.http.get(url.clone()).timeout(TIME_MAX).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("the server answered {}", answer.status()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > BYTES_MAX {
                return Err(super::keys::KeyError::TooLarge.to_string());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn keys(&self) -> Arc<[NamedKey]> {
        // Replaced as a whole, so a poisoned lock guards a good value.
        Arc::clone(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn read_bounded(path: PathBuf) -> Result<Vec<u8>, String> {
    use tokio::io::AsyncReadExt as _;
    let read = async {
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(&path).await?;
        file.take(BYTES_MAX as u64 + 1).read_to_end(&mut bytes).await?;
        std::io::Result::Ok(bytes)
    };
    match read.await {
        Ok(bytes) if bytes.len() > BYTES_MAX => Err(super::keys::KeyError::TooLarge.to_string()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{} cannot be read: {error}", path.display())),
    }
}
