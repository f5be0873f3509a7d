//! Failures of Google, classified by `reason` (status codes alone mislead: 403 has eight meanings).
//!
//! [`classify`] reads the answers of the Calendar API in their old form (`error.errors[].reason`) and the newer one
//! (`error.status`, `error.details[].reason`), [`classify_token`] those of the token endpoint (RFC 6749 §5.2). Both
//! are total: an unknown 4xx is permanent, an unknown 5xx transient. Google's own sentences are not passed on as they
//! are, because they carry links, project numbers and sometimes addresses.
//!
//! <https://developers.google.com/workspace/calendar/api/guides/errors>

use crate::plan::Code;

mod answer;
mod retry_after;
mod token;

pub use answer::classify;
pub use token::classify_token;

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

impl Class {
    /// The word in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::Transient => "transient",
            Self::RateLimited => "rate_limited",
            Self::CoolDown => "cool_down",
            Self::Misconfigured => "misconfigured",
            Self::ReconnectRequired => "reconnect_required",
            Self::ScopeMissing => "scope_missing",
            Self::AdminBlocked => "admin_blocked",
            Self::Duplicate => "duplicate",
            Self::Stale => "stale",
            Self::NotFound => "not_found",
            Self::Deleted => "deleted",
            Self::ConferenceRefused => "conference_refused",
            Self::Permanent(_) => "permanent",
        }
    }
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

impl GoogleError {
    /// A failure without an answer of Google to show for it.
    pub(crate) fn unanswered(class: Class, message: impl Into<String>) -> Self {
        Self { class, status: None, reason: None, retry_after_ms: None, is_ambiguous: false, message: message.into() }
    }

    /// The same failure, of a request that may have taken effect all the same.
    #[must_use]
    pub(crate) fn ambiguous(mut self, is_ambiguous: bool) -> Self {
        self.is_ambiguous = is_ambiguous;
        self
    }

    /// A request that ended without a readable answer: a timeout, a reset, a name that did not resolve.
    ///
    /// The text of `cause` is not passed on: it holds the address, and with it the calendar's id, which is most often
    /// somebody's e-mail address.
    pub(crate) fn no_answer(operation: &str, is_write: bool, cause: &reqwest::Error) -> Self {
        let what = if cause.is_connect() {
            "no connection to Google"
        } else if cause.is_timeout() {
            "Google did not answer in time"
        } else if cause.is_builder() {
            // Nothing was sent, and nothing will be: an address or a header that cannot be written down.
            let message = format!("{operation}: the request cannot be built");
            return Self::unanswered(Class::Permanent(Code::InvalidRequest), message);
        } else {
            "the connection to Google broke off"
        };
        // Without a connection nothing was sent; in every other case Google may have acted.
        Self::unanswered(Class::Transient, format!("{operation}: {what}")).ambiguous(is_write && !cause.is_connect())
    }

    /// A 2xx that cannot be read: Google has acted, we do not know on what.
    pub(crate) fn unreadable(operation: &str, is_write: bool, status: u16, what: &str) -> Self {
        let message = format!("{operation}: Google answered {status} but {what}");
        Self { status: Some(status), ..Self::unanswered(Class::Transient, message) }.ambiguous(is_write)
    }
}

/// A word of Google's that may stand in messages and metrics: at most 64 characters of `[A-Za-z0-9_.-]`.
fn word(text: &str) -> Option<&str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    ((1..=64).contains(&text.len()) && text.bytes().all(allowed)).then_some(text)
}
