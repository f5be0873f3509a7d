//! `dead-letter list|show|requeue|discard`: messages that were given up on, with the reason and the way back.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::json;

use super::moment::{self, Moment};
use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::model::UnixMillis;
use crate::store::{Actor, DeadLetter, DeadLetterFilter, Discarded, Store};

mod requeue;

/// What to do with dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// Letters, newest first
    #[command(after_help = "\
Examples:
  meet-projector dead-letter list
  meet-projector dead-letter list --class ends_before_start --since 2d
  meet-projector dead-letter list --session ses_8Kq2 --state all --output json")]
    List(ListArgs),
    /// One of them: why, its headers and payload, and whether newer events of its session were applied meanwhile
    Show {
        /// The id, as `list` prints it
        id: i64,
    },
    /// Fold the kept message again, now that the cause is mended
    Requeue(requeue::RequeueArgs),
    /// Put letters aside; they are kept and can be requeued all the same
    #[command(after_help = "\
Example:
  meet-projector dead-letter discard 7 8 --reason \"test events of the staging system\"")]
    Discard {
        /// Ids, as `list` prints them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

/// Which letters to list.
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only this class, such as not_json or ends_before_start
    #[arg(long)]
    class: Option<String>,
    /// Given up on at or after: 2h, 3d, or 2026-12-01T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    since: Option<Moment>,
    /// Only those that name this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// open, requeued, discarded or all
    #[arg(long, default_value = "open", value_parser = ["open", "requeued", "discarded", "all"])]
    state: String,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=1000))]
    limit: i64,
    /// Only those older than this id, to go on after a full list
    #[arg(long, value_name = "ID")]
    before: Option<i64>,
}

/// Runs the command.
pub async fn run(
    command: &DeadLetterCommand,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        DeadLetterCommand::List(args) => list(args, store, clock.now(), output, out).await,
        DeadLetterCommand::Show { id } => show(*id, store, clock.now(), output, out).await,
        DeadLetterCommand::Requeue(args) => requeue::run(args, store, clock, output, out).await,
        DeadLetterCommand::Discard { ids, reason } => discard(ids, reason, store, clock.now(), output, out).await,
    }
}

async fn list(
    args: &ListArgs,
    store: &Store,
    now: UnixMillis,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let filter = DeadLetterFilter {
        class: args.class.clone(),
        since: args.since.map(|since| since.before(now)),
        session: args.session.clone(),
        state: (args.state != "all").then(|| args.state.clone()),
        before: args.before,
        limit: args.limit,
    };
    let letters = store.find_dead_letters(&filter).await?;
    match output {
        Output::Json => print::json(out, &letters.iter().map(wire).collect::<Vec<_>>())?,
        Output::Human if letters.is_empty() && args.state == "open" => writeln!(out, "no open dead letters")?,
        Output::Human if letters.is_empty() => writeln!(out, "no dead letters of that kind")?,
        Output::Human => {
            let row = |letter: &DeadLetter| {
                vec![
                    letter.id.to_string(),
                    format!("{}:{}", letter.place.epoch, letter.place.sequence),
                    moment::both(letter.at, now),
                    letter.state.clone(),
                    letter.refused.session.as_ref().map_or("-".into(), ToString::to_string),
                    letter.refused.class.to_string(),
                    letter.refused.reason.clone(),
                ]
            };
            let heading = ["ID", "SEQUENCE", "AT", "STATE", "SESSION", "CLASS", "REASON"];
            print::table(out, &heading, &letters.iter().map(row).collect::<Vec<_>>())?;
        }
    }
    Ok(Exit::Ok)
}

fn unknown(id: i64) -> CommandError {
    CommandError::failed(format!("there is no dead letter {id}; `dead-letter list` prints the ids"))
}

async fn show(
    id: i64,
    store: &Store,
    now: UnixMillis,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let letter = store.dead_letter(id).await?.ok_or_else(|| unknown(id))?;
    let newer = newer_version(&letter, store).await?;
    match output {
        Output::Json => {
            let mut value = wire(&letter);
            value["newerVersion"] = json!(newer);
            print::json(out, &value)?;
        }
        Output::Human => tell(&letter, newer, now, out)?,
    }
    Ok(Exit::Ok)
}

/// The version that was applied after this letter's place, if one was: the letter is stale then.
async fn newer_version(letter: &DeadLetter, store: &Store) -> Result<Option<i64>, CommandError> {
    let Some(id) = &letter.refused.session else { return Ok(None) };
    let Some((session, _)) = store.session(id).await? else { return Ok(None) };
    let head = session.head.stamp;
    let is_later = (head.epoch, head.sequence) > (letter.place.epoch, letter.place.sequence);
    Ok(is_later.then(|| head.version.get()))
}

fn tell(letter: &DeadLetter, newer: Option<i64>, now: UnixMillis, out: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(out, "dead letter {} ({})", letter.id, letter.state)?;
    writeln!(out, "  place    epoch {}, stream sequence {}", letter.place.epoch, letter.place.sequence)?;
    writeln!(out, "  at       {}", moment::both(letter.at, now))?;
    writeln!(out, "  class    {}", letter.refused.class)?;
    writeln!(out, "  reason   {}", letter.refused.reason)?;
    if let Some(session) = &letter.refused.session {
        writeln!(out, "  session  {session}")?;
    }
    if let Some(version) = newer {
        writeln!(out, "  newer    version {version} of the session was applied after it: this letter is stale")?;
    }
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
    writeln!(out)?;
    if letter.state == "open" {
        writeln!(
            out,
            "Was the event wrong? Publish a corrected one with a higher version, then `dead-letter discard {}`.",
            letter.id
        )?;
        writeln!(out, "Was the program wrong, and is mended? `dead-letter requeue {}` folds it again.", letter.id)?;
    }
    Ok(())
}

async fn discard(
    ids: &[i64],
    reason: &str,
    store: &Store,
    now: UnixMillis,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    if reason.trim().is_empty() {
        return Err(CommandError::usage("--reason must say why"));
    }
    let outcomes = store.discard(ids, &Actor::of_process(), reason.trim(), now).await?;
    let word = |outcome: &Discarded| match outcome {
        Discarded::Yes => "discarded",
        Discarded::NotOpen => "not open; nothing was done",
        Discarded::Unknown => "there is no such letter; `dead-letter list` prints the ids",
    };
    match output {
        Output::Json => {
            let items = outcomes.iter().map(
                |(id, outcome)| json!({"id": id, "discarded": *outcome == Discarded::Yes, "outcome": word(outcome)}),
            );
            print::json(out, &items.collect::<Vec<_>>())?;
        }
        Output::Human => {
            for (id, outcome) in &outcomes {
                writeln!(out, "dead letter {id}: {}", word(outcome))?;
            }
        }
    }
    let done = outcomes.iter().filter(|(_, outcome)| *outcome == Discarded::Yes).count();
    Ok(if done == outcomes.len() {
        Exit::Ok
    } else if done == 0 {
        Exit::No
    } else {
        Exit::Partly
    })
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
