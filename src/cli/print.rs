//! How commands show things. They write to a `Write`, so that tests can read what they say and a closed pipe is a quiet
//! end in one place (`main`) instead of a panic in many.

use std::io::{self, Write};

use serde::Serialize;

/// `--output`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// Tables and sentences
    #[default]
    Human,
    /// One JSON document
    Json,
}

/// A value as indented JSON.
pub fn json(out: &mut (dyn Write + Send), value: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string_pretty(value).expect("what commands print has text keys only");
    writeln!(out, "{text}")
}

/// How a word stands out on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Green: well.
    Good,
    /// Yellow: worth a look.
    Fair,
    /// Red: somebody has to act.
    Bad,
    /// Bold: a heading.
    Strong,
}

/// The text in that tone where standard output is a terminal that wants colours (<https://no-color.org>); never as a
/// cell of a table, whose widths would be wrong.
pub fn toned(text: &str, tone: Tone) -> String {
    let wants = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let is_plain = wants("NO_COLOR").is_some() || wants("TERM").is_none_or(|terminal| terminal == "dumb");
    if is_plain || !io::IsTerminal::is_terminal(&io::stdout()) {
        return text.to_owned();
    }
    let number = match tone {
        Tone::Good => 32,
        Tone::Fair => 33,
        Tone::Bad => 31,
        Tone::Strong => 1,
    };
    format!("\u{1b}[{number}m{text}\u{1b}[0m")
}

/// `1 session`, `2 sessions`.
pub fn count(number: impl TryInto<i64>, noun: &str) -> String {
    match number.try_into().unwrap_or(i64::MAX) {
        1 => format!("1 {noun}"),
        number => format!("{number} {noun}s"),
    }
}

/// A table with a heading row, columns as wide as their widest cell; the last one is not padded.
pub fn table(out: &mut (dyn Write + Send), heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heading.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let heading: Vec<String> = heading.iter().map(|cell| (*cell).to_owned()).collect();
    for row in std::iter::once(&heading).chain(rows) {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = if column + 1 == row.len() { 0 } else { widths[column] - cell.chars().count() };
            format!("{cell}{}", " ".repeat(pad))
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}
