//! `dead-letter list|show`: messages that were given up on, with the reason.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::json;

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::store::{DeadLetter, Store};

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// The open ones, newest first
    List {
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
        /// Only those older than this id, to go on after a full list
        #[arg(long)]
        before: Option<i64>,
    },
    /// One of them, with its headers and payload
    Show {
        /// The id, as `list` prints it
        id: i64,
    },
}

/// Runs the command.
pub async fn run(
    command: &DeadLetterCommand,
    store: &Store,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        DeadLetterCommand::List { limit, before } => {
            let letters = store.dead_letters(*limit, *before).await?;
            match output {
                Output::Json => print::json(out, &letters.iter().map(wire).collect::<Vec<_>>())?,
                Output::Human if letters.is_empty() => writeln!(out, "no open dead letters")?,
                Output::Human => print::table(
                    out,
                    &["ID", "SEQUENCE", "AT", "SESSION", "CLASS", "REASON"],
                    &letters
                        .iter()
                        .map(|letter| {
                            vec![
                                letter.id.to_string(),
                                format!("{}:{}", letter.place.epoch, letter.place.sequence),
                                letter.at.to_rfc3339(),
                                letter.refused.session.as_ref().map_or("-".into(), ToString::to_string),
                                letter.refused.class.to_string(),
                                letter.refused.reason.clone(),
                            ]
                        })
                        .collect::<Vec<_>>(),
                )?,
            }
        }
        DeadLetterCommand::Show { id } => {
            let Some(letter) = store.dead_letter(*id).await? else {
                return Err(CommandError::failed(format!(
                    "there is no dead letter {id}; `dead-letter list` prints the ids"
                )));
            };
            match output {
                Output::Json => print::json(out, &wire(&letter))?,
                Output::Human => show(&letter, out)?,
            }
        }
    }
    Ok(Exit::Ok)
}

fn show(letter: &DeadLetter, out: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(out, "dead letter {} ({})", letter.id, letter.state)?;
    writeln!(out, "  place    epoch {}, stream sequence {}", letter.place.epoch, letter.place.sequence)?;
    writeln!(out, "  at       {}", letter.at)?;
    writeln!(out, "  class    {}", letter.refused.class)?;
    writeln!(out, "  reason   {}", letter.refused.reason)?;
    if let Some(raw) = &letter.raw {
        writeln!(out, "  subject  {}", raw.subject)?;
        for (name, value) in &raw.headers {
            writeln!(out, "  header   {name}: {value}")?;
        }
        writeln!(out, "  payload")?;
        writeln!(out, "{}", String::from_utf8_lossy(&raw.payload))?;
    } else {
        writeln!(out, "  the message is being read back from the stream")?;
    }
    Ok(())
}

fn wire(letter: &DeadLetter) -> serde_json::Value {
    json!({
        "id": letter.id,
        "epoch": letter.place.epoch.0,
        "sequence": letter.place.sequence,
        "at": letter.at.to_rfc3339(),
        "state": letter.state,
        "class": letter.refused.class,
        "reason": letter.refused.reason,
        "sessionId": letter.refused.session.as_ref().map(ToString::to_string),
        "subject": letter.raw.as_ref().map(|raw| raw.subject.clone()),
        "headers": letter.raw.as_ref().map(|raw| raw.headers.clone()),
        "payload": letter.raw.as_ref().map(|raw| String::from_utf8_lossy(&raw.payload).into_owned()),
    })
}
