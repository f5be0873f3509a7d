//! How far a run is, on standard error: a bar on a terminal, JSON lines with `--output json`, else a line now and then.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use serde_json::json;

use super::thousands;

/// Between two states of a bar.
const BAR: Duration = Duration::from_millis(200);
/// Between two JSON lines.
const LINES: Duration = Duration::from_secs(1);
/// Between two lines where nobody watches, such as in a log.
const LOG: Duration = Duration::from_secs(10);
/// Characters of the bar.
const WIDTH: i64 = 24;

/// Shows progress; silent for what ends within a moment.
#[derive(Debug)]
pub struct Progress {
    name: String,
    style: Style,
    begun: Instant,
    said: Option<Instant>,
    /// Where it was begun, so that the rate of a resumed run is that of this process.
    from: i64,
    is_drawn: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Bar,
    Json,
    Log,
}

impl Progress {
    /// `as_json` is `--output json`. `from` is how much was done before.
    pub fn new(name: &str, from: i64, as_json: bool) -> Self {
        let style = match (as_json, std::io::stderr().is_terminal()) {
            (true, _) => Style::Json,
            (false, true) => Style::Bar,
            (false, false) => Style::Log,
        };
        Self { name: name.to_owned(), style, begun: Instant::now(), said: None, from, is_drawn: false }
    }

    /// Says that `done` of `total` are done, if it is time to say something.
    pub fn at(&mut self, done: i64, total: i64) {
        let pause = match self.style {
            Style::Bar => BAR,
            Style::Json => LINES,
            Style::Log => LOG,
        };
        if self.said.unwrap_or(self.begun).elapsed() < pause {
            return;
        }
        self.said = Some(Instant::now());
        let (rate, left) = estimate(done - self.from, total - done, self.begun.elapsed());
        let text = match self.style {
            Style::Json => {
                let line = json!({
                    "progress": self.name, "done": done, "total": total, "perSecond": rate, "secondsLeft": left,
                });
                format!("{line}\n")
            }
            Style::Bar => {
                self.is_drawn = true;
                format!("\r\x1b[2K{}", bar(&self.name, done, total, rate, left))
            }
            Style::Log => format!("{}\n", bar(&self.name, done, total, rate, left)),
        };
        self.write(&text);
    }

    /// Takes the bar away, so that what is printed next stands alone.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.is_drawn) {
            self.write("\r\x1b[2K");
        }
    }

    #[expect(clippy::unused_self, reason = "what is shown belongs to what shows it")]
    fn write(&self, text: &str) {
        let mut err = std::io::stderr().lock();
        // Nobody to show it to is no reason to stop.
        drop(err.write_all(text.as_bytes()).and_then(|()| err.flush()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Events per second, and seconds left, as far as that can be said.
fn estimate(done: i64, left: i64, elapsed: Duration) -> (i64, Option<i64>) {
    let ms = i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX).max(1);
    let rate = done.max(0).saturating_mul(1000) / ms;
    (rate, (rate > 0).then(|| left.max(0) / rate))
}

fn bar(name: &str, done: i64, total: i64, rate: i64, left: Option<i64>) -> String {
    let total = total.max(1);
    let share = done.clamp(0, total);
    let full = (share.saturating_mul(WIDTH) / total).clamp(0, WIDTH);
    let times = |text: &str, number: i64| text.repeat(usize::try_from(number).unwrap_or(0));
    let left = left.map_or_else(|| "-".to_owned(), clock);
    format!(
        "{name} [{}{}] {:>3}% {} of {}, {}/s, {left} left",
        times("#", full),
        times("-", WIDTH - full),
        share * 100 / total,
        thousands(done),
        thousands(total),
        thousands(rate)
    )
}

/// `1:02:03` or `2:03`.
fn clock(seconds: i64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_says_how_far_how_fast_and_how_long() {
        let (rate, left) = estimate(53_500, 160_500, Duration::from_secs(10));
        assert_eq!((rate, left), (5_350, Some(30)));
        let text = bar("replay", 53_500, 214_000, rate, left);
        assert_eq!(text, "replay [######------------------]  25% 53,500 of 214,000, 5,350/s, 0:30 left");
        assert_eq!(estimate(0, 10, Duration::from_secs(1)), (0, None));
        assert_eq!(clock(3_723), "1:02:03");
        assert!(bar("x", 0, 0, 0, None).contains("  0% 0 of 1"));
    }
}
