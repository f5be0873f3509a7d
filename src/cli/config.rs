//! `config check|print|example`: what the environment says, and everything that is wrong with it.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde_json::json;

use crate::config::{self, Config, Need};

/// The exit code for mistakes in the configuration.
pub const EXIT_CONFIGURATION: u8 = 3;

/// `config …`
#[derive(Debug, Clone, Copy, clap::Subcommand)]
pub enum ConfigAction {
    /// Names every mistake at once; exit code 3 if there is one
    Check,
    /// Shows every variable with its effective value and where it came from; secrets as ***
    Print,
    /// Prints a .env file with every variable, its meaning and its default
    Example,
}

/// Runs it and returns the exit code: 0, or 3 when `check` met a mistake.
///
/// # Errors
/// When `out` cannot be written to.
pub fn run(
    action: ConfigAction,
    environment: &BTreeMap<String, String>,
    as_json: bool,
    out: &mut dyn Write,
) -> io::Result<u8> {
    match action {
        ConfigAction::Check => check(environment, as_json, out),
        ConfigAction::Print => print(environment, as_json, out).map(|()| 0),
        ConfigAction::Example => out.write_all(config::env_example().as_bytes()).map(|()| 0),
    }
}

fn check(environment: &BTreeMap<String, String>, as_json: bool, out: &mut dyn Write) -> io::Result<u8> {
    let (mistakes, notes) = match Config::load(environment, Need::Serve) {
        Ok(config) => (Vec::new(), config.notes),
        Err(errors) => (errors.0, Vec::new()),
    };
    if as_json {
        let mistakes: Vec<_> = mistakes
            .iter()
            .map(
                |mistake| json!({"variable": mistake.variable, "problem": mistake.problem, "allowed": mistake.allowed}),
            )
            .collect();
        writeln!(out, "{:#}", json!({"ok": mistakes.is_empty(), "mistakes": mistakes, "notes": notes}))?;
    } else if mistakes.is_empty() {
        writeln!(out, "The configuration is complete and free of mistakes.")?;
        for note in &notes {
            writeln!(out, "note: {note}")?;
        }
    } else {
        for mistake in &mistakes {
            writeln!(out, "{mistake}")?;
        }
    }
    Ok(if mistakes.is_empty() { 0 } else { EXIT_CONFIGURATION })
}

fn print(environment: &BTreeMap<String, String>, as_json: bool, out: &mut dyn Write) -> io::Result<()> {
    let settings = config::effective(environment);
    if as_json {
        let settings: Vec<_> = settings
            .iter()
            .map(|setting| {
                json!({
                    "name": setting.variable.name,
                    "value": setting.value,
                    "origin": setting.origin.as_str(),
                    "section": setting.variable.section.title(),
                })
            })
            .collect();
        return writeln!(out, "{:#}", json!(settings));
    }
    let width = settings.iter().map(|setting| setting.variable.name.len()).max().unwrap_or_default();
    for setting in &settings {
        let name = setting.variable.name;
        writeln!(out, "{name:width$}  {:7}  {}", setting.origin.as_str(), setting.value.as_deref().unwrap_or("-"))?;
    }
    Ok(())
}
