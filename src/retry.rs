//! How long to wait before the next attempt: pure functions of the attempt and a random number.
//!
//! The exponential curve comes from the crate `backoff`, which is unmaintained (RUSTSEC-2025-0012) and therefore used
//! as a calculator only, without its async features and behind the two types here. What it would get wrong by itself:
//! its clock gives up after 15 minutes (switched off), its cap holds before jitter (ours after), and its jitter cannot
//! be seeded (switched off; see [`Jitter`]). It counts no attempts and cannot be cancelled, so no loop of ours lives in
//! it: waits longer than a minute are a time in the database.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backoff::backoff::Backoff;
use backoff::{ExponentialBackoff, ExponentialBackoffBuilder};

/// Shortest and longest wait that a `Retry-After` of Google's may ask for, in milliseconds.
const RETRY_AFTER_MS: std::ops::RangeInclusive<i64> = 1_000..=3_600_000;

/// A session that starts sooner than this is retried with the short cap: 24 h.
const SOON_MS: i64 = 24 * 3_600_000;

/// Full jitter under a doubling ceiling: attempt `n` waits a random part of `min(base · 2^(n−1), cap)`.
///
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>: of the usual forms full jitter takes
/// the least work to finish under contention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetrySchedule {
    /// Ceiling of the first wait, in milliseconds, at least 1.
    pub base_ms: i64,
    /// No wait is longer than this, in milliseconds, but for `Retry-After`.
    pub cap_ms: i64,
}

impl RetrySchedule {
    /// For calls to Google about a session that starts in less than 24 h, is running, or has no start: base 2 s, cap
    /// 5 min.
    pub const SOON: Self = Self { base_ms: 2_000, cap_ms: 5 * 60_000 };
    /// For the others: base 2 s, cap 30 min, so that a long outage is not answered by a storm.
    pub const LATER: Self = Self { base_ms: 2_000, cap_ms: 30 * 60_000 };

    /// The schedule for a session that starts in so many milliseconds (negative: has started).
    pub const fn for_start_in(starts_in_ms: Option<i64>) -> Self {
        match starts_in_ms {
            Some(ms) if ms >= SOON_MS => Self::LATER,
            _ => Self::SOON,
        }
    }

    /// Milliseconds to wait before attempt `attempt + 1`, after `attempt` (from 1) failed.
    ///
    /// `random` is in `0..1`; what lies outside is cut. `Retry-After` wins over the schedule, within 1 s … 1 h, and up
    /// to one base is added to it, so that teachers who were told the same do not come back together.
    pub fn delay_ms(self, attempt: i64, random: f64, retry_after_ms: Option<i64>) -> i64 {
        let base_ms = self.base_ms.max(1);
        match retry_after_ms {
            Some(asked_ms) => {
                asked_ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end()) + fraction(base_ms, random)
            }
            None => fraction(self.ceiling_ms(attempt), random),
        }
    }

    /// `min(base · 2^(attempt−1), cap)`.
    fn ceiling_ms(self, attempt: i64) -> i64 {
        let base_ms = self.base_ms.max(1);
        let cap_ms = self.cap_ms.max(base_ms);
        let mut curve: ExponentialBackoff = ExponentialBackoffBuilder::new()
            .with_initial_interval(millis(base_ms))
            .with_max_interval(millis(cap_ms))
            .with_multiplier(2.0)
            .with_randomization_factor(0.0)
            .with_max_elapsed_time(None)
            .build();
        // 63 doublings exceed every cap, so a large count costs no more.
        for _ in 1..attempt.clamp(1, 64) {
            if curve.next_backoff().is_none() || curve.current_interval >= millis(cap_ms) {
                break;
            }
        }
        i64::try_from(curve.current_interval.as_millis()).unwrap_or(i64::MAX).min(cap_ms)
    }
}

/// Waits between attempts to connect again: 250 ms, 500 ms, … 15 s, of which the upper half is random.
///
/// The lower half is kept, unlike in [`RetrySchedule`], because connections fail fast and a wait near zero would spin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reconnect {
    attempt: i64,
}

impl Reconnect {
    const CURVE: RetrySchedule = RetrySchedule { base_ms: 250, cap_ms: 15_000 };

    /// The wait before the next attempt; `random` is in `0..1`.
    pub fn next_delay(&mut self, random: f64) -> Duration {
        self.attempt = self.attempt.saturating_add(1);
        let ceiling_ms = Self::CURVE.ceiling_ms(self.attempt);
        millis(ceiling_ms / 2 + fraction(ceiling_ms / 2, random))
    }

    /// Starts over, after a connection was made.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Random numbers in `0..1` for delays: fast, shared between tasks, not for secrets. SplitMix64 (Steele, Lea, Flood
/// 2014).
#[derive(Debug)]
pub struct Jitter(AtomicU64);

impl Jitter {
    /// Seeded by the operating system.
    pub fn from_system() -> Self {
        // A system without randomness cannot run the rest of the service; a fixed seed merely loses the spreading.
        Self::seeded(getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15))
    }

    /// The same numbers for the same seed.
    pub const fn seeded(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number, `0.0` included, `1.0` excluded.
    pub fn next(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        // The upper 32 bits are exact in an f64 and fine enough for milliseconds.
        f64::from(u32::try_from(z >> 32).expect("32 bits are left")) / 4_294_967_296.0
    }
}

/// `whole` times `random`, in whole milliseconds, `random` cut to `0..=1`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "waits are far below 2^53 ms, and the fraction of a millisecond does not matter"
)]
pub(crate) fn fraction(whole: i64, random: f64) -> i64 {
    let random = if random.is_nan() { 1.0 } else { random.clamp(0.0, 1.0) };
    (whole as f64 * random) as i64
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_cap() {
        let ceilings: Vec<i64> = (1..=13).map(|n| RetrySchedule::LATER.delay_ms(n, 1.0, None)).collect();
        let expected = [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800, 1800];
        assert_eq!(ceilings, expected.map(|seconds| seconds * 1000));
        assert_eq!(RetrySchedule::SOON.delay_ms(99, 1.0, None), 300_000);
        assert_eq!(RetrySchedule::SOON.delay_ms(i64::MAX, 1.0, None), 300_000);
        assert_eq!(RetrySchedule::SOON.delay_ms(0, 1.0, None), 2_000);
        assert_eq!(RetrySchedule::SOON.delay_ms(3, 0.5, None), 4_000);
        assert_eq!(RetrySchedule::SOON.delay_ms(3, 0.0, None), 0);
    }

    #[test]
    fn the_start_of_the_session_picks_the_cap() {
        assert_eq!(RetrySchedule::for_start_in(Some(SOON_MS)), RetrySchedule::LATER);
        for soon in [Some(SOON_MS - 1), Some(0), Some(-1), None] {
            assert_eq!(RetrySchedule::for_start_in(soon), RetrySchedule::SOON);
        }
    }

    #[test]
    fn retry_after_wins_within_bounds() {
        let schedule = RetrySchedule::SOON;
        assert_eq!(schedule.delay_ms(9, 0.0, Some(30_000)), 30_000);
        assert_eq!(schedule.delay_ms(1, 0.5, Some(600_000)), 601_000);
        assert_eq!(schedule.delay_ms(1, 0.0, Some(0)), 1_000);
        assert_eq!(schedule.delay_ms(1, 0.0, Some(-7)), 1_000);
        assert_eq!(schedule.delay_ms(1, 0.0, Some(i64::MAX)), 3_600_000);
    }

    #[test]
    fn connections_are_tried_from_a_quarter_second_to_fifteen() {
        let mut waits = Reconnect::default();
        let seen: Vec<u128> = (0..9).map(|_| waits.next_delay(1.0).as_millis()).collect();
        assert_eq!(seen, [250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000]);
        assert_eq!(waits.next_delay(0.0).as_millis(), 7_500);
        waits.reset();
        assert_eq!(waits.next_delay(0.0).as_millis(), 125);
    }

    #[test]
    fn jitter_repeats_with_its_seed_and_covers_the_range() {
        let numbers = |seed| {
            let jitter = Jitter::seeded(seed);
            std::array::from_fn::<f64, 1000, _>(|_| jitter.next())
        };
        assert_eq!(numbers(7).map(f64::to_bits), numbers(7).map(f64::to_bits));
        assert_ne!(numbers(7).map(f64::to_bits), numbers(8).map(f64::to_bits));
        assert!(numbers(7).iter().all(|n| (0.0..1.0).contains(n)));
        assert!(numbers(7).iter().any(|n| *n < 0.01) && numbers(7).iter().any(|n| *n > 0.99));
    }

    proptest! {
        #[test]
        fn no_wait_leaves_its_bounds(
            attempt in any::<i64>(), random in any::<f64>(), asked in proptest::option::of(any::<i64>()),
            starts_in in proptest::option::of(any::<i64>()))
        {
            let schedule = RetrySchedule::for_start_in(starts_in);
            let wait = schedule.delay_ms(attempt, random, asked);
            match asked {
                Some(_) => prop_assert!((1_000..=3_602_000).contains(&wait)),
                None => prop_assert!((0..=schedule.cap_ms).contains(&wait)),
            }
        }
    }
}
