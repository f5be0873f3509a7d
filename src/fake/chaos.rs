//! The random mix: every fault that leaves a way to converge, in proportions that hurt.

use serde::{Deserialize, Serialize};

use super::faults::{Commit, Ending, Fault, Operation};
use super::refusal::Refusal;

/// A random mix of everything that real networks and a real Google do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Chaos {
    /// The same seed treats the same event the same way.
    pub seed: u64,
    /// Share of writes that go wrong, 0 to 1.
    pub write_rate: f64,
    /// Share of reads that go wrong, 0 to 1.
    pub read_rate: f64,
    /// Share of token calls that go wrong, 0 to 1.
    pub token_rate: f64,
    /// Slow answers take this many milliseconds.
    pub slow_ms: u64,
    /// Late commits come this many milliseconds after the answer; 0 leaves them out of the mix.
    pub late_ms: u64,
}

impl Default for Chaos {
    fn default() -> Self {
        Self { seed: 0, write_rate: 0.0, read_rate: 0.0, token_rate: 0.0, slow_ms: 50, late_ms: 0 }
    }
}

impl Chaos {
    /// The same rate for writes, reads and token calls.
    pub fn new(seed: u64, rate: f64) -> Self {
        Self { seed, write_rate: rate, read_rate: rate, token_rate: rate, ..Self::default() }
    }

    pub(super) fn rate(&self, operation: Operation) -> f64 {
        if operation.is_oauth() {
            self.token_rate
        } else if operation.is_write() {
            self.write_rate
        } else {
            self.read_rate
        }
    }

    /// One of the mix, with its name. No `invalid_grant` and nothing else that is final: a mix must leave a way to
    /// converge.
    pub(super) fn pick(&self, operation: Operation, draw: u64) -> (&'static str, Fault) {
        if operation.is_oauth() {
            return match draw % 4 {
                0 => ("token_503", Fault::refuse(503, "temporarily_unavailable")),
                1 => ("token_429", Fault::refuse(429, "rate_limit_exceeded")),
                2 => ("token_drop", Fault::drop_after()),
                _ => ("token_slow", Fault::slow(self.slow_ms)),
            };
        }
        match draw % 16 {
            0 | 1 => ("503_before", Fault::refuse(503, "backendError")),
            2 | 3 => ("503_after", Fault::refuse_after(503, "backendError")),
            4 | 5 => ("drop_after", Fault::drop_after()),
            6 => ("drop_before", Fault::drop_before()),
            7 => ("429", Fault::refuse(429, "rateLimitExceeded")),
            8 => ("403_rate", Fault::refuse(403, "userRateLimitExceeded")),
            9 => ("401", Fault::new(Commit::Never, Ending::Refuse(Refusal::unauthorized()))),
            10 => ("half_body", Fault::new(Commit::Now, Ending::HalfBody)),
            11 => ("html_502_after", Fault::new(Commit::Now, Ending::Refuse(Refusal::html_502()))),
            12 => ("500_before", Fault::refuse(500, "internalError")),
            13 if operation.is_write() => ("409_conflict", Fault::refuse(409, "conflict")),
            14 if operation.is_write() && self.late_ms > 0 => {
                ("late", Fault::new(Commit::LateMs(self.late_ms), Ending::Refuse(Refusal::of(504, "gatewayTimeout"))))
            }
            _ => ("slow", Fault::slow(self.slow_ms)),
        }
    }
}
