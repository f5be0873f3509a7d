//! `Retry-After` (RFC 9110 §10.2.3): seconds or a date.

use chrono::DateTime;
use reqwest::header::{DATE, HeaderMap, RETRY_AFTER};

/// Longest wait that is believed; more would let one odd answer stop a teacher for days.
const WAIT_MAX_MS: i64 = 3_600_000;

/// The wait in milliseconds, cut to 0…1 h; `None` without a readable header.
///
/// A date is compared with the `Date` of the same answer, not with our clock, so that clocks that differ do not matter
/// and the function stays pure; without `Date` it is ignored.
pub(super) fn retry_after_ms(headers: &HeaderMap) -> Option<i64> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than an i64 holds still mean "long".
        let seconds: i64 = text.parse().unwrap_or(i64::MAX);
        return Some(seconds.saturating_mul(1000).min(WAIT_MAX_MS));
    }
    let until = DateTime::parse_from_rfc2822(text).ok()?;
    let sent = DateTime::parse_from_rfc2822(headers.get(DATE)?.to_str().ok()?).ok()?;
    Some(until.signed_duration_since(sent).num_milliseconds().clamp(0, WAIT_MAX_MS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn seconds_and_dates_are_read_within_bounds() {
        let date = ("date", "Sun, 06 Nov 1994 08:49:37 GMT");
        for (pairs, expected) in [
            (vec![("retry-after", "7")], Some(7_000)),
            (vec![("retry-after", " 0 ")], Some(0)),
            (vec![("retry-after", "99999")], Some(WAIT_MAX_MS)),
            (vec![("retry-after", "99999999999999999999999")], Some(WAIT_MAX_MS)),
            (vec![("retry-after", "-5")], None),
            (vec![("retry-after", "1.5")], None),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "")], None),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT"), date], Some(30_000)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT"), date], Some(0)),
            (vec![("retry-after", "Mon, 07 Nov 1994 08:50:07 GMT"), date], Some(WAIT_MAX_MS)),
            (vec![("retry-after", "Sun, 06 Nov 1994 08:50:07 GMT")], None),
            (vec![], None),
        ] {
            assert_eq!(retry_after_ms(&headers(&pairs)), expected, "{pairs:?}");
        }
    }
}
