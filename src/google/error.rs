//! Failures of Google, classified by `reason` (status codes alone mislead: 403 has eight meanings).

use crate::plan::Code;

/// What kind of failure it is, and so what may be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// 401 `authError`: the access token is not accepted (after one forced refresh it counts as transient).
    Unauthorized,
    /// 5xx, timeouts, resets, 409 `conflict`: try again later.
    Transient,
    /// 403/429 `rateLimitExceeded`, `userRateLimitExceeded`: slow down for this teacher.
    RateLimited,
    /// 403 `quotaExceeded`: this teacher's calendar is limited for hours.
    CoolDown,
    /// `accessNotConfigured`, `dailyLimitExceeded`, `invalid_client`, …: our own set-up; nobody's grant is at fault.
    Misconfigured,
    /// Token endpoint `invalid_grant`, or no usable refresh token.
    ReconnectRequired,
    /// 403 `insufficientPermissions` or a token response without the calendar scope.
    ScopeMissing,
    /// `admin_policy_enforced`.
    AdminBlocked,
    /// 409 `duplicate`: the id is taken, by a live event or a deleted one.
    Duplicate,
    /// 412 `conditionNotMet`, or 400 "Invalid sequence value".
    Stale,
    /// 404 `notFound`.
    NotFound,
    /// 410 `deleted`.
    Deleted,
    /// 400 "Invalid conference type value.": Meet is not allowed on this calendar.
    ConferenceRefused,
    /// Anything else Google refuses for good, with the code to show.
    Permanent(Code),
}

/// One failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct GoogleError {
    /// What kind.
    pub class: Class,
    /// HTTP status, when there was an answer.
    pub status: Option<u16>,
    /// Google's `reason` (or OAuth `error`), when there was one.
    pub reason: Option<String>,
    /// `Retry-After` in milliseconds, cut to 0…1 h.
    pub retry_after_ms: Option<i64>,
    /// The request may have taken effect all the same: a write that ended in a timeout, a reset, a 5xx or an unreadable
    /// answer.
    pub is_ambiguous: bool,
    /// One sentence for people, without tokens, addresses or links.
    pub message: String,
}
