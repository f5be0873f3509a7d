//! Times on the command line and on the screen: `2h`, `30m`, `3d` or RFC 3339 in, "2 h ago (2026-…Z)" out.

use crate::model::UnixMillis;

/// A time as an operator gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A date and time.
    At(UnixMillis),
    /// So many milliseconds from now, into the past or the future as the option says.
    Span(i64),
}

const UNITS: [(&str, i64); 4] = [("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

impl Moment {
    /// For clap: `90s`, `30m`, `2h`, `3d`, or RFC 3339.
    pub fn parse(text: &str) -> Result<Self, String> {
        let span = UNITS.iter().find_map(|(unit, ms)| {
            let count: i64 = text.strip_suffix(unit)?.parse().ok()?;
            (count >= 0).then(|| Self::Span(count.saturating_mul(*ms)))
        });
        span.map_or_else(
            || {
                UnixMillis::parse_rfc3339(text)
                    .map(Self::At)
                    .map_err(|_| "use a span such as 30m, 2h or 3d, or a time such as 2026-12-01T09:00:00Z".to_owned())
            },
            Ok,
        )
    }

    /// The moment, a span counting back from `now`.
    pub fn before(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::At(at) => at,
            Self::Span(ms) => now.plus(-ms),
        }
    }

    /// The moment, a span counting on from `now`.
    pub fn after(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::At(at) => at,
            Self::Span(ms) => now.plus(ms),
        }
    }
}

/// A length of time in its two largest units: `45 s`, `12 min`, `2 h 05 min`, `3 d 4 h`.
pub fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {:02} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min")
    } else {
        format!("{seconds} s")
    }
}

/// `12 min ago`, `in 2 h 05 min`, `now`.
pub fn relative(at: UnixMillis, now: UnixMillis) -> String {
    match at.since(now) {
        ms if ms >= 1000 => format!("in {}", span(ms)),
        ms if ms <= -1000 => format!("{} ago", span(-ms)),
        _ => "now".to_owned(),
    }
}

/// `12 min ago (2026-12-01T09:00:00Z)`.
pub fn both(at: UnixMillis, now: UnixMillis) -> String {
    format!("{} ({})", relative(at, now), UnixMillis::new(at.get() - at.get().rem_euclid(1000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_times_are_read_and_shown() {
        let now = UnixMillis::new(1_000_000_000);
        assert_eq!(Moment::parse("2h").unwrap().before(now), now.plus(-7_200_000));
        assert_eq!(Moment::parse("3d").unwrap().after(now), now.plus(259_200_000));
        let at = UnixMillis::parse_rfc3339("2026-12-01T09:00:00Z").unwrap();
        assert_eq!(Moment::parse("2026-12-01T10:00:00+01:00"), Ok(Moment::At(at)));
        for bad in ["", "2", "h", "-2h", "2w", "tomorrow"] {
            assert!(Moment::parse(bad).unwrap_err().contains("2h"), "{bad}");
        }
        assert_eq!(relative(now.plus(-7_500_000), now), "2 h 05 min ago");
        assert_eq!(relative(now.plus(45_000), now), "in 45 s");
        assert_eq!(relative(now.plus(999), now), "now");
        assert_eq!(both(at, at.plus(720_123)), "12 min ago (2026-12-01T09:00:00Z)");
    }
}
