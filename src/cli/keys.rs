//! `keys rotate|verify`: the keys that seal the teachers' tokens.

use std::io::{self, IsTerminal as _, Write};

use clap::Subcommand;
use serde_json::{Value, json};

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::credential::KeyRing;
use crate::credential::census::{Census, Unopened, census, name};
use crate::credential::rotation::{Rotation, rotate};
use crate::model::UnixMillis;
use crate::store::Store;

/// So many values that do not open are listed for people; all of them are in the JSON.
const LISTED_MAX: usize = 50;
/// Characters of the progress bar.
const BAR_CHARS: usize = 30;

/// What to do with the keys.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Seal every token anew with GOOGLE_ENCRYPTION_KEY, while the service runs; exit code 5 when some do not open
    ///
    /// With several replicas: give all of them the new key in GOOGLE_ENCRYPTION_KEYS_OLD first, then make it
    /// GOOGLE_ENCRYPTION_KEY and the old one GOOGLE_ENCRYPTION_KEYS_OLD, restart them, and rotate. A run that was
    /// interrupted is resumed by running it again.
    Rotate,
    /// Open every sealed token and say which do not open and why; exit code 1 when any does not
    Verify,
}

/// Runs the command.
pub async fn run(
    command: &KeysCommand,
    store: &Store,
    keys: &KeyRing,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        KeysCommand::Rotate => {
            let mut bar = Bar::new(output);
            let outcome = rotate(store, keys, clock, &mut |seen, total| bar.draw(seen, total)).await;
            bar.end();
            let rotation =
                outcome.map_err(|error| CommandError::of(&error, if error.is_unreachable() { 4 } else { 5 }))?;
            match output {
                Output::Json => print::json(out, &rotated(&rotation, keys))?,
                Output::Human => write!(out, "{}", proof(&rotation, keys))?,
            }
            Ok(if rotation.is_complete() && rotation.census.failures.is_empty() { Exit::Ok } else { Exit::Partly })
        }
        KeysCommand::Verify => {
            let census = census(store, keys, clock.now()).await?;
            match output {
                Output::Json => print::json(out, &counted(&census, keys))?,
                Output::Human => {
                    writeln!(out, "{}", counts(&census, keys))?;
                    if census.failures.is_empty() {
                        writeln!(out, "every sealed value opens")?;
                    }
                    write!(out, "{}", listed(&census.failures))?;
                }
            }
            Ok(if census.failures.is_empty() { Exit::Ok } else { Exit::No })
        }
    }
}

fn counts(census: &Census, keys: &KeyRing) -> String {
    format!(
        "{} grants, {} under key {}, {} left under old keys",
        census.grants,
        census.under_current_key,
        keys.current(),
        census.under_old_keys()
    )
}

fn proof(rotation: &Rotation, keys: &KeyRing) -> String {
    let census = &rotation.census;
    let mut text = counts(census, keys);
    if rotation.is_complete() {
        text += ": GOOGLE_ENCRYPTION_KEYS_OLD may be removed\n";
    } else if census.under_old_keys() > 0 {
        text += "\n";
        if census.failures.is_empty() {
            text += "a process still seals with an old key: give every replica the new GOOGLE_ENCRYPTION_KEY and run \
                     `keys rotate` again\n";
        }
    } else {
        let end = census.consents_end_at.map(UnixMillis::to_rfc3339).unwrap_or_default();
        text += &format!(
            "\n{} consents under way need an old key until {end}: run `keys rotate` again after that, and then remove \
             GOOGLE_ENCRYPTION_KEYS_OLD\n",
            census.consents_under_old_keys
        );
    }
    if !census.failures.is_empty() {
        text += "a value that does not open cannot be sealed anew: add its key to GOOGLE_ENCRYPTION_KEYS_OLD and run \
                 `keys rotate` again, or let the teacher connect again\n";
    }
    text + &listed(&census.failures)
}

fn listed(failures: &[Unopened]) -> String {
    let mut text = String::new();
    for failure in failures.iter().take(LISTED_MAX) {
        let column = name(failure.column);
        text += &format!("  teacher {}, {column}: {} ({})\n", failure.teacher, failure.reason, failure.why);
    }
    if failures.len() > LISTED_MAX {
        text += &format!("  and {} more; `--output json` lists all\n", failures.len() - LISTED_MAX);
    }
    text
}

fn counted(census: &Census, keys: &KeyRing) -> Value {
    let failures: Vec<Value> = census
        .failures
        .iter()
        .map(|failure| {
            json!({
                "teacherId": failure.teacher.as_str(),
                "column": name(failure.column),
                "why": failure.why,
                "reason": failure.reason,
            })
        })
        .collect();
    json!({
        "key": keys.current().to_string(),
        "grants": census.grants,
        "underCurrentKey": census.under_current_key,
        "underOldKeys": census.under_old_keys(),
        "consentsUnderOldKeys": census.consents_under_old_keys,
        "failures": failures,
    })
}

fn rotated(rotation: &Rotation, keys: &KeyRing) -> Value {
    let mut value = counted(&rotation.census, keys);
    value["resealed"] = json!(rotation.resealed);
    value["oldKeysMayBeRemoved"] = json!(rotation.is_complete());
    value
}

/// A progress bar on standard error, where that is a terminal and people read the result.
struct Bar {
    is_shown: bool,
    is_drawn: bool,
}

impl Bar {
    fn new(output: Output) -> Self {
        Self { is_shown: output == Output::Human && io::stderr().is_terminal(), is_drawn: false }
    }

    fn draw(&mut self, seen: usize, total: usize) {
        if self.is_shown {
            self.is_drawn = true;
            let full = BAR_CHARS * seen / total.max(1);
            eprint!("\r[{}{}] {seen} of {total} grants", "#".repeat(full), ".".repeat(BAR_CHARS - full));
        }
    }

    fn end(&self) {
        if self.is_drawn {
            eprintln!();
        }
    }
}
