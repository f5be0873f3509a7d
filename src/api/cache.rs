//! Documents as they are sent, kept in memory.
//!
//! Where nearly every change goes through this process (SQLite), reads are answered from here. A lookup first takes over
//! the changes that were committed before it, so a document is never older than the last commit that was announced. Two
//! things keep it so: a lookup looks at the announcements and not at a task's progress, and a document read from the
//! database is only kept if no change of its session was announced since the read began. A command beside the service
//! (`dead-letter requeue`) announces nothing here; [`watch`](Documents::watch) sees that it changed something and forgets
//! everything.
//!
//! With PostgreSQL other replicas change documents too, so each read asks the database. Only while that is down is a
//! document served as it was, on both.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use bytes::Bytes;
use tokio::sync::broadcast::{Receiver, error::TryRecvError};

use super::etag;
use super::patience::within_patience;
use crate::model::{SessionId, TeacherId};
use crate::status::MeetStatus;
use crate::store::{Store, StoreError, StoredDocument};

/// Documents in each of the two halves. Some 700 bytes each, so both together stay near 6 MiB.
const HALF: usize = 4_096;

/// How long a change by another process may go unseen.
const FRESH: Duration = Duration::from_secs(1);

/// How often changes by other processes are looked for: twice within [`FRESH`], so that one late look does no harm.
const LOOK: Duration = Duration::from_millis(400);

/// How old a document may be that is served because the database is down: what `stale-if-error` says to caches.
const STALE: Duration = Duration::from_hours(24);

/// How long a database that did not answer is left alone by reads that can do without it.
const DOWN: Duration = Duration::from_secs(1);

/// Sessions share this many counters of changes; a collision costs one more read from the database.
const GENERATIONS: usize = 1_024;

/// A document with its tag; clones share the bytes.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub(super) body: Bytes,
    pub(super) etag: HeaderValue,
    pub(super) freshness: Freshness,
    /// Before the read from the database began.
    read_at: Instant,
}

impl Served {
    fn new(document: StoredDocument, read_at: Instant) -> Self {
        let etag = etag::of_document(document.revision, &document.json);
        Self { etag, freshness: Freshness::of(document.status), body: document.json.into(), read_at }
    }

    /// Whether a caller who may see one teacher's sessions only may see this one.
    pub(super) fn concerns(&self, own: Option<&TeacherId>) -> bool {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Whose {
            teacher_id: String,
        }
        // Parsed where it is asked for, since hardly anybody is a teacher.
        own.is_none_or(|own| {
            serde_json::from_slice::<Whose>(&self.body).is_ok_and(|whose| whose.teacher_id == own.as_str())
        })
    }
}

/// How soon a document is likely to change, for caches on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Freshness {
    /// READY or CANCELED.
    Settled,
    /// ERROR: changes when somebody does something.
    Failing,
    /// PENDING: any moment.
    Changing,
}

impl Freshness {
    fn of(status: MeetStatus) -> Self {
        match status {
            MeetStatus::Ready | MeetStatus::Canceled => Self::Settled,
            MeetStatus::Error => Self::Failing,
            MeetStatus::Pending => Self::Changing,
        }
    }

    /// `private`, since links are for their readers alone. A lesson's page that is a quarter of a minute old does no
    /// harm, and one that is a day old is better than none (RFC 5861).
    pub(super) fn cache_control(self) -> &'static HeaderValue {
        static SETTLED: HeaderValue =
            HeaderValue::from_static("private, max-age=15, stale-while-revalidate=60, stale-if-error=86400");
        static SOON: HeaderValue = HeaderValue::from_static("private, max-age=2");
        match self {
            Self::Settled => &SETTLED,
            Self::Failing | Self::Changing => &SOON,
        }
    }
}

/// The way to documents.
#[derive(Debug)]
pub(super) struct Documents {
    store: Store,
    /// Whether all changes are announced here, so that reads may be answered from the cache.
    is_ours: bool,
    cache: RwLock<Cache>,
    /// When the database did not answer; `None` once it does.
    down_since: Mutex<Option<Instant>>,
    /// Whether `down_since` is set, for who only wants to know that.
    is_down: AtomicBool,
}

impl Documents {
    pub(super) fn new(store: Store) -> Self {
        let is_ours = store.is_single_process();
        let cache = RwLock::new(Cache::new(store.changes(), HALF, FRESH));
        Self { store, is_ours, cache, down_since: Mutex::default(), is_down: AtomicBool::new(false) }
    }

    /// Looks for changes by other processes for ever. Without it each document is read again after [`FRESH`].
    pub(super) async fn watch(&self) {
        if !self.is_ours {
            return;
        }
        let mut known = None;
        loop {
            let began = Instant::now();
            if let Ok(version) = within_patience(self.store.foreign_changes()).await {
                let mut cache = write(&self.cache);
                // The first look too: what was read before it may have changed before it.
                if known.replace(version) != Some(version) {
                    cache.forget_all();
                }
                cache.checked_at = began;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The document if it is at hand: no database, no waiting, no allocation.
    pub(super) fn at_hand(&self, id: &str) -> Option<Served> {
        if self.is_ours {
            {
                let cache = read(&self.cache);
                if cache.changes.is_empty()
                    && let Some(served) = cache.hot.get(id)
                    && cache.is_fresh(served)
                {
                    return Some(served.clone());
                }
            }
            if let Some(served) = write(&self.cache).find(id) {
                return Some(served);
            }
        }
        if self.is_down.load(Ordering::Relaxed) && self.is_left_alone() { self.as_it_was(id) } else { None }
    }

    /// Whether the database is to be left alone. Once in a while one caller is told to try it.
    fn is_left_alone(&self) -> bool {
        let mut since = self.down_since.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *since {
            Some(since) if since.elapsed() < DOWN => true,
            Some(since) => {
                *since = Instant::now();
                false
            }
            None => false,
        }
    }

    /// Takes note of whether the database answered.
    fn noted<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        let is_down = answer.as_ref().is_err_and(StoreError::is_transient);
        if is_down || self.is_down.load(Ordering::Relaxed) {
            *self.down_since.lock().unwrap_or_else(PoisonError::into_inner) = is_down.then(Instant::now);
            self.is_down.store(is_down, Ordering::Relaxed);
        }
        answer
    }

    /// One document.
    pub(super) async fn get(&self, id: &SessionId) -> Result<Option<Served>, StoreError> {
        if let Some(served) = self.at_hand(id.as_str()) {
            return Ok(Some(served));
        }
        let (ticket, read_at) = (self.ticket(id), Instant::now());
        let document = match self.noted(within_patience(self.store.document(id)).await) {
            Ok(Some(document)) => document,
            Ok(None) => return Ok(None),
            Err(error) => return self.as_it_was(id.as_str()).map(Some).ok_or(error),
        };
        let served = Served::new(document, read_at);
        self.keep(id, ticket, &served);
        Ok(Some(served))
    }

    /// Several documents, in the order asked for; `None` where one is unknown.
    pub(super) async fn get_all(&self, ids: &[SessionId]) -> Result<Vec<Option<Served>>, StoreError> {
        let mut found: Vec<Option<Served>> = ids.iter().map(|id| self.at_hand(id.as_str())).collect();
        let missing: Vec<usize> = (0..ids.len()).filter(|at| found[*at].is_none()).collect();
        if missing.is_empty() {
            return Ok(found);
        }
        let asked: Vec<SessionId> = missing.iter().map(|at| ids[*at].clone()).collect();
        let tickets: Vec<Ticket> = asked.iter().map(|id| self.ticket(id)).collect();
        let read_at = Instant::now();
        let documents = self.noted(within_patience(self.store.documents(&asked)).await);
        let mut read: HashMap<SessionId, StoredDocument> = match documents {
            Ok(documents) => documents.into_iter().collect(),
            Err(error) => {
                // All or nothing: a session left out would look unknown.
                for (at, id) in missing.into_iter().zip(&asked) {
                    let Some(served) = self.as_it_was(id.as_str()) else { return Err(error) };
                    found[at] = Some(served);
                }
                return Ok(found);
            }
        };
        for ((at, id), ticket) in missing.into_iter().zip(asked).zip(tickets) {
            if let Some(document) = read.remove(&id) {
                let served = Served::new(document, read_at);
                self.keep(&id, ticket, &served);
                found[at] = Some(served);
            }
        }
        Ok(found)
    }

    /// Even if it has changed since: better than nothing while the database is down.
    fn as_it_was(&self, id: &str) -> Option<Served> {
        let cache = read(&self.cache);
        let known = cache.hot.get(id).or_else(|| cache.cold.get(id))?;
        (known.read_at.elapsed() < STALE).then(|| known.clone())
    }

    fn ticket(&self, id: &SessionId) -> Ticket {
        write(&self.cache).ticket(id.as_str())
    }

    fn keep(&self, id: &SessionId, ticket: Ticket, served: &Served) {
        write(&self.cache).keep(id.as_str(), ticket, served.clone());
    }
}

// A panic while the lock was held leaves a map that is still whole: every change to it is a single insert or remove.
fn read(cache: &RwLock<Cache>) -> RwLockReadGuard<'_, Cache> {
    cache.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(cache: &RwLock<Cache>) -> RwLockWriteGuard<'_, Cache> {
    cache.write().unwrap_or_else(PoisonError::into_inner)
}

/// Says that no change of the session was announced since it was drawn.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    slot: usize,
    generation: u64,
}

/// Two halves: what is asked for moves to the hot one; when that is full it becomes the cold one, and what was cold
/// and not asked for is forgotten. Nearly least-recently-used, for the price of two maps.
#[derive(Debug)]
struct Cache {
    hot: HashMap<Box<str>, Served>,
    cold: HashMap<Box<str>, Served>,
    half: usize,
    fresh: Duration,
    /// When it was last known that no other process had changed anything.
    checked_at: Instant,
    generations: Vec<u64>,
    hasher: RandomState,
    changes: Receiver<SessionId>,
}

impl Cache {
    fn new(changes: Receiver<SessionId>, half: usize, fresh: Duration) -> Self {
        Self {
            hot: HashMap::new(),
            cold: HashMap::new(),
            half,
            fresh,
            checked_at: Instant::now(),
            generations: vec![0; GENERATIONS],
            hasher: RandomState::new(),
            changes,
        }
    }

    fn slot(&self, id: &str) -> usize {
        usize::try_from(self.hasher.hash_one(id) % GENERATIONS as u64).expect("below 1,024")
    }

    /// Forgets every session whose change was announced.
    fn take_over_changes(&mut self) {
        loop {
            match self.changes.try_recv() {
                Ok(id) => {
                    let slot = self.slot(id.as_str());
                    self.generations[slot] += 1;
                    self.hot.remove(id.as_str());
                    self.cold.remove(id.as_str());
                }
                Err(TryRecvError::Lagged(_)) => {
                    // Some were missed, and nobody knows which.
                    self.forget_all();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn forget_all(&mut self) {
        self.generations.iter_mut().for_each(|generation| *generation += 1);
        self.hot.clear();
        self.cold.clear();
    }

    fn is_fresh(&self, served: &Served) -> bool {
        served.read_at.max(self.checked_at).elapsed() < self.fresh
    }

    fn find(&mut self, id: &str) -> Option<Served> {
        self.take_over_changes();
        if !self.hot.contains_key(id) {
            let (id, served) = self.cold.remove_entry(id)?;
            self.insert(id, served);
        }
        self.hot.get(id).filter(|served| self.is_fresh(served)).cloned()
    }

    fn ticket(&mut self, id: &str) -> Ticket {
        self.take_over_changes();
        let slot = self.slot(id);
        Ticket { slot, generation: self.generations[slot] }
    }

    fn keep(&mut self, id: &str, ticket: Ticket, served: Served) {
        self.take_over_changes();
        if self.generations[ticket.slot] == ticket.generation {
            self.insert(id.into(), served);
        }
    }

    fn insert(&mut self, id: Box<str>, served: Served) {
        if self.hot.len() >= self.half {
            self.cold = std::mem::take(&mut self.hot);
        }
        self.hot.insert(id, served);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;

    use super::*;

    const FOREVER: Duration = Duration::MAX;

    fn served(text: &'static str) -> Served {
        Served {
            body: Bytes::from_static(text.as_bytes()),
            etag: HeaderValue::from_static("\"x\""),
            freshness: Freshness::Settled,
            read_at: Instant::now(),
        }
    }

    fn body(cache: &mut Cache, id: &str) -> Option<Bytes> {
        cache.find(id).map(|served| served.body)
    }

    fn id(text: &str) -> SessionId {
        SessionId::parse(text).unwrap()
    }

    #[test]
    fn an_announced_change_is_never_read_again() {
        let (changes, receiver) = broadcast::channel(16);
        let mut cache = Cache::new(receiver, 8, FOREVER);
        let ticket = cache.ticket("a");
        cache.keep("a", ticket, served("old"));
        assert_eq!(body(&mut cache, "a").unwrap(), "old");
        changes.send(id("a")).unwrap();
        assert_eq!(body(&mut cache, "a"), None);
    }

    #[test]
    fn a_read_that_began_before_the_change_is_not_kept() {
        let (changes, receiver) = broadcast::channel(16);
        let mut cache = Cache::new(receiver, 8, FOREVER);
        let ticket = cache.ticket("a");
        changes.send(id("a")).unwrap();
        cache.keep("a", ticket, served("old"));
        assert_eq!(body(&mut cache, "a"), None);
        // Even when the change was taken over by a lookup in between.
        let ticket = cache.ticket("a");
        changes.send(id("a")).unwrap();
        assert_eq!(body(&mut cache, "b"), None);
        cache.keep("a", ticket, served("old"));
        assert_eq!(body(&mut cache, "a"), None);
    }

    #[test]
    fn missed_announcements_clear_everything() {
        let (changes, receiver) = broadcast::channel(2);
        let mut cache = Cache::new(receiver, 8, FOREVER);
        let (kept, late) = (cache.ticket("a"), cache.ticket("b"));
        cache.keep("a", kept, served("old"));
        for other in ["c", "d", "e", "f"] {
            changes.send(id(other)).unwrap();
        }
        assert_eq!(body(&mut cache, "a"), None);
        cache.keep("b", late, served("old"));
        assert_eq!(body(&mut cache, "b"), None);
    }

    #[test]
    fn an_old_document_is_read_again() {
        let (_changes, receiver) = broadcast::channel(2);
        let mut cache = Cache::new(receiver, 8, Duration::ZERO);
        let ticket = cache.ticket("a");
        cache.keep("a", ticket, served("old"));
        assert_eq!(body(&mut cache, "a"), None);
        assert!(cache.hot.contains_key("a"), "kept for when the database is down");
    }

    #[test]
    fn it_stays_bounded_and_keeps_what_is_asked_for() {
        let (_changes, receiver) = broadcast::channel(2);
        let mut cache = Cache::new(receiver, 8, FOREVER);
        let ticket = cache.ticket("wanted");
        cache.keep("wanted", ticket, served("wanted"));
        for number in 0..100 {
            let other = number.to_string();
            let ticket = cache.ticket(&other);
            cache.keep(&other, ticket, served("other"));
            assert!(cache.hot.len() + cache.cold.len() <= 16);
            assert!(body(&mut cache, "wanted").is_some(), "after {number}");
        }
        assert!(body(&mut cache, "0").is_none());
    }
}
