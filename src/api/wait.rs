//! Wakes long-polls when the document they wait for changes.
//!
//! One task listens to the store and knows who waits for what; a long-poll of its own would wake for every change of
//! every session.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use crate::model::SessionId;
use crate::store::Store;

/// Long-polls at once. Each holds a connection and some 10 KiB, so this bounds them at 40 MiB.
const WAITS_MAX: usize = 4_096;

#[derive(Debug, Default)]
struct Waiters {
    by_session: HashMap<SessionId, (Arc<Notify>, usize)>,
    count: usize,
}

/// Who waits for what; clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Waits(Arc<Mutex<Waiters>>);

impl Waits {
    /// Starts the task that listens; it ends at the drain, which ends every wait too.
    pub(super) fn listen(store: &Store, drain: CancellationToken) -> Self {
        let waits = Self::default();
        let (mut changes, wake) = (store.changes(), waits.clone());
        tokio::spawn(drain.run_until_cancelled_owned(async move {
            loop {
                match changes.recv().await {
                    Ok(id) => wake.wake(&id),
                    Err(RecvError::Lagged(_)) => wake.wake_all(),
                    Err(RecvError::Closed) => return,
                }
            }
        }));
        waits
    }

    /// Counts as waiting until the subscription is dropped; `None` when too many wait already.
    pub(super) fn subscribe(&self, session: &SessionId) -> Option<Subscription> {
        let mut waiters = self.lock();
        if waiters.count >= WAITS_MAX {
            return None;
        }
        waiters.count += 1;
        let (notify, count) = waiters.by_session.entry(session.clone()).or_default();
        *count += 1;
        Some(Subscription { waits: self.clone(), session: session.clone(), notify: Arc::clone(notify) })
    }

    fn wake(&self, session: &SessionId) {
        if let Some((notify, _)) = self.lock().by_session.get(session) {
            notify.notify_waiters();
        }
    }

    fn wake_all(&self) {
        for (notify, _) in self.lock().by_session.values() {
            notify.notify_waiters();
        }
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.lock().count
    }

    // Both fields are changed together or not at all, so a poisoned lock guards a whole value.
    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One long-poll.
#[derive(Debug)]
pub(super) struct Subscription {
    waits: Waits,
    session: SessionId,
    notify: Arc<Notify>,
}

impl Subscription {
    /// Wakes at the next change after this call (not after the first poll), so: call, look, then wait.
    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut waiters = self.waits.lock();
        waiters.count -= 1;
        if let Some((_, count)) = waiters.by_session.get_mut(&self.session) {
            *count -= 1;
            if *count == 0 {
                waiters.by_session.remove(&self.session);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_session_that_changed_wakes_its_waiters() {
        let waits = Waits::default();
        let [a, b] = ["a", "b"].map(|id| SessionId::parse(id).unwrap());
        let (one, two, other) =
            (waits.subscribe(&a).unwrap(), waits.subscribe(&a).unwrap(), waits.subscribe(&b).unwrap());
        let (first, second, third) = (one.changed(), two.changed(), other.changed());
        waits.wake(&a);
        first.await;
        second.await;
        assert!(futures_util::FutureExt::now_or_never(third).is_none());
    }

    #[test]
    fn nothing_is_left_of_waits_that_ended() {
        let waits = Waits::default();
        let id = SessionId::parse("a").unwrap();
        let both = (waits.subscribe(&id), waits.subscribe(&id));
        assert_eq!(waits.count(), 2);
        drop(both);
        assert_eq!(waits.count(), 0);
        assert!(waits.lock().by_session.is_empty());
    }
}
