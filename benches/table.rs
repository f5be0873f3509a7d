//! The one table, with its legend.

use std::fmt;

/// Measurements of one thing, in any order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Adds one.
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; of an even number the mean of the two in the middle. NaN where there is none.
    pub(crate) fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            even if even.is_multiple_of(2) => f64::midpoint(self.0[even / 2 - 1], self.0[even / 2]),
            odd => self.0[odd / 2],
        }
    }

    /// The value that `share` of them do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let at = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    fn range(&self) -> (f64, f64) {
        (self.quantile(0.0), self.quantile(1.0))
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.push(value));
        samples
    }
}

/// What is promised of a figure.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// Nothing.
    None,
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Target {
    fn verdict(self, value: f64) -> String {
        let (sign, bound, is_met) = match self {
            Self::None => return String::new(),
            Self::AtLeast(bound) => ('≥', bound, value >= bound),
            Self::AtMost(bound) => ('≤', bound, value <= bound),
        };
        format!("{sign} {} {}", number(bound), if is_met { "ok" } else { "MISSED" })
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    unit: &'static str,
    value: String,
    range: String,
    target: String,
}

/// All figures so far.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sections: Vec<(&'static str, &'static str, Vec<Row>)>,
}

impl Table {
    /// Begins a section; `legend` says what is measured, and how.
    pub(crate) fn section(&mut self, title: &'static str, legend: &'static str) {
        self.sections.push((title, legend, Vec::new()));
    }

    /// Measurements of which the median counts.
    pub(crate) fn samples(&mut self, name: impl Into<String>, unit: &'static str, samples: &Samples, target: Target) {
        let (least, most) = samples.range();
        let range = if least < most { format!("{} – {}", number(least), number(most)) } else { String::new() };
        self.row(name.into(), unit, samples.median(), range, target);
    }

    /// One value.
    pub(crate) fn value(&mut self, name: impl Into<String>, unit: &'static str, value: f64, target: Target) {
        self.row(name.into(), unit, value, String::new(), target);
    }

    fn row(&mut self, name: String, unit: &'static str, value: f64, range: String, target: Target) {
        let row = Row { name, unit, value: number(value), range, target: target.verdict(value) };
        eprintln!("  {}: {} {} {} {}", row.name, row.value, row.unit, row.range, row.target);
        self.sections.last_mut().expect("a section was begun").2.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: &str, unit: &str, range: &str, target: &str| {
            writeln!(f, "{}", format!("{name:<54} {value:>9} {unit:<8} {range:<19} {target}").trim_end())
        };
        writeln!(f)?;
        line(f, "figure", "median", "", "least – most", "target")?;
        for (title, _, rows) in &self.sections {
            writeln!(f, "{title}")?;
            for row in rows {
                line(f, &format!("  {}", row.name), &row.value, row.unit, &row.range, &row.target)?;
            }
        }
        for (title, legend, _) in &self.sections {
            writeln!(f, "\n{title}: {legend}")?;
        }
        write!(
            f,
            "\n× is a ratio to the bare figure of the same run. CPU is user and system time of the process that is "
        )?;
        writeln!(f, "named, from /proc. All processes share {} cores.", cores())
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Three digits, and thousands apart.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    if value.abs() < 1_000.0 {
        let digits = match value.abs() {
            small if small < 1.0 => 3,
            small if small < 10.0 => 2,
            small if small < 100.0 => 1,
            _ => 0,
        };
        let text = format!("{value:.digits$}");
        return if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
