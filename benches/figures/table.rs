//! The table at the end, and what the figures are made of.

/// Rows of the table.
#[derive(Default)]
pub struct Table {
    rows: Vec<[String; 4]>,
}

impl Table {
    /// Adds a figure: what, measured, beside what, and the number to beat.
    pub fn add(&mut self, what: &str, measured: impl Into<String>, beside: impl Into<String>, target: &str) {
        let row = [what.to_owned(), measured.into(), beside.into(), target.to_owned()];
        eprintln!("  {}: {} ({})", row[0], row[1], row[2]);
        self.rows.push(row);
    }

    /// Prints it.
    pub fn print(&self) {
        let heading = ["figure", "measured", "beside", "to hold"].map(str::to_owned);
        let width = |column: usize| {
            self.rows.iter().chain([&heading]).map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        println!();
        for row in [&heading].into_iter().chain(&self.rows) {
            let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
            println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        }
    }
}

/// The middle one; the mean of none is 0.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The value below which so many of a hundred lie.
pub fn percentile(mut values: Vec<f64>, percent: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// CPU time of this process so far, in milliseconds, all threads (proc(5), stat: utime and stime in ticks of 10 ms).
pub fn cpu_ms() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) * 10.0
}

/// A count for division.
#[expect(clippy::cast_precision_loss, reason = "counts are small")]
pub fn real(count: usize) -> f64 {
    count as f64
}
