//! The one place that asks for the time.
//!
//! Everything else takes a [`Clock`] or a [`UnixMillis`], so that `plan` and `fold` stay pure and tests move the
//! time by hand. `clippy.toml` forbids the other ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::model::UnixMillis;

/// A source of wall-clock time, cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    fixed: Option<Arc<AtomicI64>>,
    /// How far it goes wrong, in milliseconds; 0 but in tests.
    ahead_ms: i64,
}

impl Clock {
    /// The clock of the operating system.
    pub fn system() -> Self {
        Self::default()
    }

    /// The clock of the operating system, wrong by `CLOCK_AHEAD_MS` milliseconds (negative: behind) where that is set:
    /// for tests of replicas whose clocks differ.
    #[cfg(feature = "dev")]
    pub fn of_process() -> Self {
        let ahead_ms = std::env::var("CLOCK_AHEAD_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        Self { fixed: None, ahead_ms }
    }

    /// The clock of the operating system.
    #[cfg(not(feature = "dev"))]
    pub fn of_process() -> Self {
        Self::system()
    }

    /// A clock that stands still at `start` until a test moves it with [`Clock::set`] or [`Clock::advance_ms`].
    pub fn fixed(start: UnixMillis) -> Self {
        Self { fixed: Some(Arc::new(AtomicI64::new(start.get()))), ahead_ms: 0 }
    }

    /// Now, in milliseconds since the Unix epoch. A clock before 1970 counts as 1970.
    pub fn now(&self) -> UnixMillis {
        if let Some(fixed) = &self.fixed {
            return UnixMillis::new(fixed.load(Ordering::SeqCst));
        }
        #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the system")]
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis::new(i64::try_from(since.as_millis()).unwrap_or(i64::MAX)).plus(self.ahead_ms)
    }

    /// Sets a fixed clock; does nothing to the system clock.
    pub fn set(&self, to: UnixMillis) {
        if let Some(fixed) = &self.fixed {
            fixed.store(to.get(), Ordering::SeqCst);
        }
    }

    /// Moves a fixed clock forward (or back, when negative); does nothing to the system clock.
    pub fn advance_ms(&self, by: i64) {
        if let Some(fixed) = &self.fixed {
            fixed.fetch_add(by, Ordering::SeqCst);
        }
    }
}
