//! How fast and how much at once we ask Google: per teacher, per project, and in flight.
//!
//! Google counts 600 units a minute per user and 10,000 per project, a PATCH as three, and may apply "operational
//! limits" to quick successions of writes to one calendar
//! (<https://developers.google.com/workspace/calendar/api/guides/quota>). The limits hold per process: with several
//! replicas each teacher's calendar is still worked on by one of them at a time, and the project's limit has to be
//! divided by hand.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::{DefaultDirectRateLimiter, DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::TeacherId;

/// Units a teacher may use at once after a pause: two PATCHes.
const BURST_PER_TEACHER: u32 = 6;
/// The most that one call costs; no burst may be smaller, or such a call could never be made.
const COST_MAX: u32 = 3;
/// The map of teachers is tidied once in so many admissions.
const TIDY_EVERY: u32 = 4096;

/// The three limits.
#[derive(Debug)]
pub struct Limits {
    per_teacher: Option<DefaultKeyedRateLimiter<TeacherId>>,
    per_project: Option<DefaultDirectRateLimiter>,
    in_flight: Arc<Semaphore>,
    admissions: AtomicU32,
}

/// The right to make one call; given back when dropped, so keep it until the answer is read.
#[derive(Debug)]
#[must_use = "the call is in flight only while this is kept"]
pub struct Admission(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Limits {
    /// `GOOGLE_RATE_PER_TEACHER` and `GOOGLE_RATE_PER_PROJECT` in units per second, 0 = off, and `GOOGLE_MAX_IN_FLIGHT`
    /// in calls (0 counts as 1).
    pub fn new(per_teacher: u32, per_project: u32, max_in_flight: usize) -> Self {
        let quota = |rate: u32, burst: u32| {
            let burst = NonZeroU32::new(burst.max(COST_MAX)).unwrap_or(NonZeroU32::MIN);
            NonZeroU32::new(rate).map(|rate| Quota::per_second(rate).allow_burst(burst))
        };
        Self {
            per_teacher: quota(per_teacher, BURST_PER_TEACHER).map(RateLimiter::keyed),
            per_project: quota(per_project, per_project).map(RateLimiter::direct),
            in_flight: Arc::new(Semaphore::new(max_in_flight.clamp(1, Semaphore::MAX_PERMITS))),
            admissions: AtomicU32::new(0),
        }
    }

    /// Waits until a call of `units` ([`crate::google::Call::cost`]; cut to 1…3) for this teacher may be made.
    ///
    /// The teacher's turn comes first and the place in flight last, so that nobody holds a place while waiting.
    pub async fn admit(&self, teacher: &TeacherId, units: u32) -> Admission {
        let units = NonZeroU32::new(units.min(COST_MAX)).unwrap_or(NonZeroU32::MIN);
        if let Some(limiter) = &self.per_teacher {
            limiter.until_key_n_ready(teacher, units).await.expect("the burst holds the dearest call");
        }
        if let Some(limiter) = &self.per_project {
            limiter.until_n_ready(units).await.expect("the burst holds the dearest call");
        }
        self.tidy();
        let permit = Arc::clone(&self.in_flight).acquire_owned().await.expect("the semaphore is never closed");
        Admission(permit)
    }

    /// Places in flight that are free now.
    pub fn free_places(&self) -> usize {
        self.in_flight.available_permits()
    }

    /// Forgets teachers whose bucket is full again; without it the map would grow with every teacher ever seen.
    fn tidy(&self) {
        let count = self.admissions.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if let Some(limiter) = &self.per_teacher
            && count.is_multiple_of(TIDY_EVERY)
        {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    fn teacher(id: &str) -> TeacherId {
        TeacherId::parse(id).unwrap()
    }

    #[tokio::test]
    async fn a_teacher_has_a_burst_of_six_units_and_a_patch_costs_three() {
        let limits = Limits::new(1, 0, 100);
        assert!(limits.admit(&teacher("a"), 3).now_or_never().is_some());
        assert!(limits.admit(&teacher("a"), 3).now_or_never().is_some());
        assert!(limits.admit(&teacher("a"), 3).now_or_never().is_none(), "the burst is used up");
        assert!(limits.admit(&teacher("b"), 3).now_or_never().is_some(), "another teacher is not held up");
    }

    #[tokio::test]
    async fn the_project_is_one_bucket_for_all_and_dear_calls_always_fit() {
        let limits = Limits::new(0, 1, 100);
        assert!(limits.admit(&teacher("a"), 3).now_or_never().is_some(), "a rate below the cost of a PATCH");
        assert!(limits.admit(&teacher("b"), 1).now_or_never().is_none());
    }

    #[tokio::test]
    async fn zero_is_off_and_places_in_flight_are_given_back() {
        let limits = Limits::new(0, 0, 2);
        let first = limits.admit(&teacher("a"), 1).await;
        let _second = limits.admit(&teacher("a"), 1).await;
        assert_eq!(limits.free_places(), 0);
        let waiting = teacher("a");
        let third = limits.admit(&waiting, 1);
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        drop(tokio::time::timeout(Duration::from_secs(30), third).await.unwrap());
        for _ in 0..1000 {
            drop(limits.admit(&teacher("a"), 3).await);
        }
    }

    #[tokio::test]
    async fn the_map_of_teachers_is_tidied() {
        let limits = Limits::new(1_000_000, 0, 1);
        for n in 0..2 * TIDY_EVERY {
            drop(limits.admit(&teacher(&n.to_string()), 1).await);
        }
        let known = limits.per_teacher.as_ref().unwrap().len();
        assert!(known < 2 * TIDY_EVERY as usize, "{known}");
    }
}
