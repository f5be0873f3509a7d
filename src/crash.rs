//! Places at which the crash tests kill the process, as `kill -9` would: no destructor runs, nothing is flushed.
//!
//! `CRASH_AT=after_call:3` aborts when the place `after_call` is reached for the third time. Without the cargo feature
//! `dev` nothing of it is compiled.

/// Ends the process here if the environment asks for it.
///
/// # Panics
///
/// When `CRASH_AT` is set but not of the form `place:n`.
#[inline]
pub fn here(place: &'static str) {
    #[cfg(feature = "dev")]
    armed::here(place);
    #[cfg(not(feature = "dev"))]
    let _: &str = place;
}

#[cfg(feature = "dev")]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Target {
        place: String,
        nth: u64,
        reached: AtomicU64,
    }

    pub(super) fn here(place: &str) {
        static TARGET: OnceLock<Option<Target>> = OnceLock::new();
        let target = TARGET.get_or_init(|| {
            let value = std::env::var("CRASH_AT").ok()?;
            let (place, nth) = value.split_once(':').expect("CRASH_AT is place:n");
            let nth = nth.parse().expect("CRASH_AT is place:n with a whole number n");
            Some(Target { place: place.to_owned(), nth, reached: AtomicU64::new(0) })
        });
        if let Some(target) = target
            && target.place == place
            && target.reached.fetch_add(1, Ordering::SeqCst) + 1 == target.nth
        {
            eprintln!("crash point {place} reached {} times: aborting", target.nth);
            std::process::abort();
        }
    }
}
