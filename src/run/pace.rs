//! How fast a run goes: never faster than asked, and never so that the service beside it waits for its turn to write.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Events folded in one transaction when nobody asked for less: some ten milliseconds of the one writer SQLite has.
const GROUP_MAX: usize = 512;

/// Bounds events per second, and gives way after each group.
#[derive(Debug)]
pub struct Pace {
    per_second: Option<u32>,
    next: Instant,
}

impl Pace {
    /// At most so many events per second; `None` for as fast as it goes.
    pub fn new(per_second: Option<u32>) -> Self {
        Self { per_second: per_second.filter(|rate| *rate > 0), next: Instant::now() }
    }

    /// Events for one group: at most half a second of the rate, so that a slow run moves, and stops, twice a second.
    pub fn group(&self) -> usize {
        match self.per_second {
            None => GROUP_MAX,
            Some(rate) => usize::try_from(rate / 2).unwrap_or(GROUP_MAX).clamp(1, GROUP_MAX),
        }
    }

    /// Waits after a group of `events` whose transaction took `busy`: as long again for others to write, and until the
    /// rate allows the next one.
    pub async fn wait(&mut self, events: usize, busy: Duration) {
        let now = Instant::now();
        if let Some(rate) = self.per_second {
            let events = u32::try_from(events).unwrap_or(u32::MAX);
            self.next = self.next.max(now) + Duration::from_secs(1) * events / rate;
        }
        sleep_until(self.next.max(now + busy.min(Duration::from_millis(250)))).await;
    }
}
