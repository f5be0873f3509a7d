//! Documents as they are sent, kept in memory where nearly every change goes through this process (SQLite).
//!
//! A lookup first takes over the changes that were committed before it, so a document is never older than the last
//! commit that was announced. Two things keep it so: a lookup looks at the announcements and not at a task's progress,
//! and a document read from the database is only kept if no change of its session was announced since the read began.
//! A command beside the service (`dead-letter requeue`) announces nothing here, so a document is read again when it is
//! older than [`FRESH`]; while the database is down it is served as it was.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
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

/// How long a change by another process may go unseen. Below this a document is read from the database once, however
/// often it is asked for.
const FRESH: Duration = Duration::from_secs(1);

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
    cache: Option<RwLock<Cache>>,
}

impl Documents {
    /// Caches only where the store belongs to this process alone.
    pub(super) fn new(store: Store) -> Self {
        let cache = store.is_single_process().then(|| RwLock::new(Cache::new(store.changes(), HALF, FRESH)));
        Self { store, cache }
    }

    /// The document if it is at hand: no database, no waiting, no allocation.
    pub(super) fn at_hand(&self, id: &str) -> Option<Served> {
        let cache = self.cache.as_ref()?;
        {
            let cache = read(cache);
            if cache.changes.is_empty()
                && let Some(served) = cache.hot.get(id)
                && served.read_at.elapsed() < cache.fresh
            {
                return Some(served.clone());
            }
        }
        write(cache).find(id)
    }

    /// One document.
    pub(super) async fn get(&self, id: &SessionId) -> Result<Option<Served>, StoreError> {
        if let Some(served) = self.at_hand(id.as_str()) {
            return Ok(Some(served));
        }
        let (ticket, read_at) = (self.ticket(id), Instant::now());
        let document = match within_patience(self.store.document(id)).await {
            Ok(Some(document)) => document,
            Ok(None) => return Ok(None),
            Err(error) => return self.as_it_was(id).map(Some).ok_or(error),
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
        let tickets: Vec<Option<Ticket>> = asked.iter().map(|id| self.ticket(id)).collect();
        let read_at = Instant::now();
        let mut read: HashMap<SessionId, StoredDocument> = match within_patience(self.store.documents(&asked)).await {
            Ok(documents) => documents.into_iter().collect(),
            Err(error) => {
                // All or nothing: a session left out would look unknown.
                for (at, id) in missing.into_iter().zip(&asked) {
                    let Some(served) = self.as_it_was(id) else { return Err(error) };
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

    /// However old it is: better than nothing while the database is down.
    fn as_it_was(&self, id: &SessionId) -> Option<Served> {
        let cache = read(self.cache.as_ref()?);
        cache.hot.get(id.as_str()).or_else(|| cache.cold.get(id.as_str())).cloned()
    }

    fn ticket(&self, id: &SessionId) -> Option<Ticket> {
        self.cache.as_ref().map(|cache| write(cache).ticket(id.as_str()))
    }

    fn keep(&self, id: &SessionId, ticket: Option<Ticket>, served: &Served) {
        if let (Some(cache), Some(ticket)) = (&self.cache, ticket) {
            write(cache).keep(id.as_str(), ticket, served.clone());
        }
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
                    self.generations.iter_mut().for_each(|generation| *generation += 1);
                    self.hot.clear();
                    self.cold.clear();
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => return,
            }
        }
    }

    fn find(&mut self, id: &str) -> Option<Served> {
        self.take_over_changes();
        if !self.hot.contains_key(id) {
            let (id, served) = self.cold.remove_entry(id)?;
            self.insert(id, served);
        }
        self.hot.get(id).filter(|served| served.read_at.elapsed() < self.fresh).cloned()
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
