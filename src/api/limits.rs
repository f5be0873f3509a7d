//! How many requests a caller may make: `API_RATE_LIMIT`.
//!
//! Each credential has a bucket of its own (an API token, the subject of a JWT), and each address has one for requests
//! without a credential that is accepted. What is left is said on every answer, as
//! `draft-ietf-httpapi-ratelimit-headers-11` has it. Behind a proxy all strangers share the proxy's address;
//! `X-Forwarded-For` is not believed, as anybody can send it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// A caller may save up this many seconds' worth of requests.
const BURST_SECONDS: u32 = 2;

/// Buckets kept by key, some 200 bytes each. Beyond this strangers share one until others are full again.
const BUCKETS_MAX: usize = 16_384;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Who is counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The subject of a JWT.
    Subject(Box<str>),
    /// An address; of IPv6 the network, since a household has 2^64 addresses.
    Peer(IpAddr),
}

impl Key {
    pub(super) fn peer(address: IpAddr) -> Self {
        Self::Peer(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// All buckets.
#[derive(Debug)]
pub(super) struct Limits {
    /// `None` when off.
    policy: Option<Policy>,
    by_key: Mutex<HashMap<Key, Arc<Bucket>>>,
}

#[derive(Debug, Clone)]
struct Policy {
    quota: Quota,
    per_second: NonZeroU32,
    /// `RateLimit-Policy`, the same for all.
    header: HeaderValue,
    /// What strangers share when there are too many of them.
    crowd: Arc<Bucket>,
}

/// What one caller may still do.
#[derive(Debug)]
pub(super) struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>,
    /// Whether anything was taken since the last [`Limits::tidy`].
    is_used: AtomicBool,
}

/// The answer to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may pass; so many more may follow at once.
    Pass(u32),
    /// Not before this time is over.
    Wait(Duration),
}

impl Bucket {
    fn new(quota: Quota) -> Self {
        let limiter = RateLimiter::direct(quota).with_middleware::<StateInformationMiddleware>();
        Self { limiter, is_used: AtomicBool::new(true) }
    }

    /// Takes one request from it, if it is there. Atomics only.
    pub(super) fn take(&self) -> Verdict {
        self.is_used.store(true, Ordering::Relaxed);
        match self.limiter.check() {
            Ok(left) => Verdict::Pass(left.remaining_burst_capacity()),
            Err(refused) => Verdict::Wait(refused.wait_time_from(DefaultClock::default().now())),
        }
    }
}

impl Limits {
    /// `API_RATE_LIMIT` requests per second, 0 = off.
    pub(super) fn new(per_second: u32) -> Self {
        let policy = NonZeroU32::new(per_second).map(|per_second| {
            let burst = per_second.saturating_mul(NonZeroU32::new(BURST_SECONDS).expect("two is not zero"));
            let header = HeaderValue::from_str(&format!("\"default\";q={burst};w={BURST_SECONDS}"));
            let quota = Quota::per_second(per_second).allow_burst(burst);
            Policy {
                quota,
                per_second,
                header: header.expect("digits are visible ASCII"),
                crowd: Arc::new(Bucket::new(quota)),
            }
        });
        Self { policy, by_key: Mutex::default() }
    }

    /// A bucket for whoever keeps it.
    pub(super) fn own_bucket(&self) -> Option<Arc<Bucket>> {
        self.policy.as_ref().map(|policy| Arc::new(Bucket::new(policy.quota)))
    }

    /// The bucket of this key.
    pub(super) fn bucket(&self, key: Key) -> Option<Arc<Bucket>> {
        let policy = self.policy.as_ref()?;
        // Every change is a single insert or remove, so a poisoned lock guards a whole map.
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_key.get(&key) {
            return Some(Arc::clone(known));
        }
        if by_key.len() >= BUCKETS_MAX {
            return Some(Arc::clone(&policy.crowd));
        }
        let bucket = Arc::new(Bucket::new(policy.quota));
        by_key.insert(key, Arc::clone(&bucket));
        Some(bucket)
    }

    /// Forgets buckets that nobody holds and that were not used since the last time. Called at intervals in which a
    /// bucket fills up, so that what is forgotten equals a new one.
    pub(super) fn tidy(&self) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        by_key.retain(|_, bucket| Arc::strong_count(bucket) > 1 || bucket.is_used.swap(false, Ordering::Relaxed));
        if by_key.capacity() > 4 * by_key.len() {
            by_key.shrink_to_fit();
        }
    }

    /// Says on an answer what is left.
    pub(super) fn announce(&self, verdict: Verdict, headers: &mut HeaderMap) {
        let Some(policy) = &self.policy else { return };
        headers.insert(RATE_LIMIT_POLICY, policy.header.clone());
        headers.insert(RATE_LIMIT, policy.left(verdict));
    }
}

impl Policy {
    /// `"default";r=<left>;t=<seconds until all of it is there again>`
    fn left(&self, verdict: Verdict) -> HeaderValue {
        let (left, seconds) = match verdict {
            Verdict::Pass(left) => {
                (left, (self.quota.burst_size().get().saturating_sub(left)).div_ceil(self.per_second.get()))
            }
            Verdict::Wait(_) => (0, BURST_SECONDS),
        };
        // Put together by hand, as this is on every answer: "default";r=4294967295;t=2
        let mut text = [0; 40];
        let mut end = 0;
        let mut push = |bytes: &[u8]| {
            text[end..end + bytes.len()].copy_from_slice(bytes);
            end += bytes.len();
        };
        push(b"\"default\";r=");
        push(digits(left, &mut [0; 10]));
        push(b";t=");
        push(digits(seconds, &mut [0; 10]));
        HeaderValue::from_bytes(&text[..end]).expect("digits are visible ASCII")
    }
}

fn digits(mut number: u32, into: &mut [u8; 10]) -> &[u8] {
    let mut at = into.len();
    loop {
        at -= 1;
        into[at] = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
        if number == 0 {
            return &into[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Key {
        Key::peer(text.parse().unwrap())
    }

    #[test]
    fn a_bucket_holds_two_seconds_and_says_what_is_left() {
        let limits = Limits::new(3);
        let bucket = limits.bucket(peer("192.0.2.1")).unwrap();
        for left in [5, 4, 3, 2, 1, 0] {
            assert_eq!(bucket.take(), Verdict::Pass(left));
        }
        let Verdict::Wait(time) = bucket.take() else { panic!("the seventh at once") };
        assert!(time <= Duration::from_millis(334), "{time:?}");
        assert!(matches!(limits.bucket(peer("192.0.2.2")).unwrap().take(), Verdict::Pass(5)), "another's is full");

        let mut headers = HeaderMap::new();
        for (verdict, said) in [
            (Verdict::Pass(5), "\"default\";r=5;t=1"),
            (Verdict::Pass(0), "\"default\";r=0;t=2"),
            (Verdict::Wait(time), "\"default\";r=0;t=2"),
        ] {
            limits.announce(verdict, &mut headers);
            assert_eq!(headers["ratelimit"], said);
        }
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=6;w=2");
    }

    #[test]
    fn zero_is_off() {
        let limits = Limits::new(0);
        assert!(limits.bucket(peer("192.0.2.1")).is_none() && limits.own_bucket().is_none());
        let mut headers = HeaderMap::new();
        limits.announce(Verdict::Pass(1), &mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn addresses_of_one_household_are_one() {
        assert_eq!(peer("2001:db8::1"), peer("2001:db8::ffff:1"));
        assert_ne!(peer("2001:db8::1"), peer("2001:db8:0:1::1"));
        assert_eq!(peer("::ffff:192.0.2.1"), peer("192.0.2.1"));
        assert_ne!(peer("192.0.2.1"), peer("192.0.2.2"));
    }

    #[test]
    fn strangers_cost_a_bounded_memory() {
        let limits = Limits::new(1);
        let kept = limits.bucket(Key::Subject("jwt:a".into())).unwrap();
        let all = u32::try_from(BUCKETS_MAX).unwrap() + 100;
        for n in 0..all {
            limits.bucket(Key::Peer(IpAddr::from(n.to_be_bytes()))).unwrap();
        }
        let count = || limits.by_key.lock().unwrap().len();
        assert_eq!(count(), BUCKETS_MAX);
        limits.tidy();
        assert_eq!(count(), BUCKETS_MAX, "they may not be full yet");
        limits.tidy();
        assert_eq!(count(), 1, "all but the one that is held");
        assert!(Arc::ptr_eq(&kept, &limits.bucket(Key::Subject("jwt:a".into())).unwrap()));
    }

    #[test]
    fn digits_are_those_of_the_number() {
        for number in [0, 7, 10, 1_009, u32::MAX] {
            assert_eq!(digits(number, &mut [0; 10]), number.to_string().as_bytes());
        }
    }
}
