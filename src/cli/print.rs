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
