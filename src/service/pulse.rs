//! Whether the loops are alive, without asking them.
//!
//! A loop that waits for NATS, the database or Google is alive, however long it waits: a restart would mend nothing. Dead
//! is a loop that ended although nobody asked it to, and one that keeps its thread for itself: each turn of the runtime
//! ends within microseconds, unless it spins or blocks.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A turn that lasts longer than this will not end.
pub const TURN_MAX: Duration = Duration::from_secs(10);

/// The loops of a service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pulses(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    born: Instant,
    pulses: Mutex<Vec<Arc<Pulse>>>,
    started: watch::Sender<bool>,
}

#[derive(Debug)]
struct Pulse {
    name: &'static str,
    /// When the turn that is under way began, in milliseconds after the birth, plus one; 0 between turns.
    turn_since: AtomicU64,
    has_ended: AtomicBool,
}

impl Default for Pulses {
    fn default() -> Self {
        let (started, _) = watch::channel(false);
        Self(Arc::new(Inner { born: Instant::now(), pulses: Mutex::default(), started }))
    }
}

impl Pulses {
    /// The same loop, watched.
    pub fn watch<F: Future>(&self, name: &'static str, future: F) -> Watched<F> {
        let pulse = Arc::new(Pulse { name, turn_since: AtomicU64::new(0), has_ended: AtomicBool::new(false) });
        self.0.pulses.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&pulse));
        Watched { future: Box::pin(future), pulse, born: self.0.born }
    }

    /// All loops run now.
    pub fn started(&self) {
        self.0.started.send_replace(true);
    }

    /// Waits until all loops run; `false` when they never will.
    pub async fn until_started(&self) -> bool {
        self.0.started.subscribe().wait_for(|started| *started).await.is_ok()
    }

    /// The loops that are dead, with the reason.
    pub fn dead(&self) -> Vec<String> {
        let now = millis(self.0.born);
        let pulses = self.0.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.iter().filter_map(|pulse| pulse.fault(now)).collect()
    }
}

impl Pulse {
    fn fault(&self, now: u64) -> Option<String> {
        if self.has_ended.load(Ordering::Acquire) {
            return Some(format!("the {} has ended", self.name));
        }
        let since = self.turn_since.load(Ordering::Acquire);
        let turn = Duration::from_millis((now + 1).saturating_sub(since));
        (since > 0 && turn > TURN_MAX).then(|| format!("the {} hangs for {} s", self.name, turn.as_secs()))
    }
}

fn millis(born: Instant) -> u64 {
    u64::try_from(born.elapsed().as_millis()).unwrap_or(u64::MAX - 1)
}

/// A loop whose turns are noted.
#[derive(Debug)]
pub struct Watched<F> {
    future: Pin<Box<F>>,
    pulse: Arc<Pulse>,
    born: Instant,
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.pulse.turn_since.store(millis(self.born) + 1, Ordering::Release);
        let poll = self.future.as_mut().poll(context);
        self.pulse.turn_since.store(0, Ordering::Release);
        poll
    }
}

impl<F> Drop for Watched<F> {
    /// Also when it panicked.
    fn drop(&mut self) {
        self.pulse.has_ended.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_waits_is_alive_and_one_that_ended_is_not() {
        let pulses = Pulses::default();
        let waiting = tokio::spawn(pulses.watch("consumer", std::future::pending::<()>()));
        tokio::task::yield_now().await;
        assert_eq!(pulses.dead(), [""; 0]);
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(pulses.dead(), ["the consumer has ended"]);
    }

    #[test]
    fn a_turn_that_does_not_end_is_a_death() {
        let pulse = Pulse { name: "reconciler", turn_since: AtomicU64::new(1_001), has_ended: AtomicBool::new(false) };
        assert_eq!(pulse.fault(11_000), None);
        assert_eq!(pulse.fault(12_001).unwrap(), "the reconciler hangs for 11 s");
        pulse.turn_since.store(0, Ordering::Release);
        assert_eq!(pulse.fault(99_000), None, "between turns");
    }
}
