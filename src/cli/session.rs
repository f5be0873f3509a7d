//! `session show`: the story of one session, from the desired state to what is next and why.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::{Value, json};

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::model::SessionId;
use crate::plan::{MeetEvent, Want};
use crate::projection::{Session, Status};
use crate::store::Store;

/// What to do with a session.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// What is wanted, what Google holds, and what is next
    Show {
        /// The session's id in the booking backend
        id: String,
    },
}

/// Runs the command.
pub async fn run(
    command: &SessionCommand,
    store: &Store,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let SessionCommand::Show { id } = command;
    let id = SessionId::parse(id.as_str()).map_err(|error| CommandError::usage(error.to_string()))?;
    let Some((session, rows)) = store.session(&id).await? else {
        return Err(CommandError::failed(format!("no event of session {id} was ever folded")));
    };
    let document = store.document(&id).await?;
    match output {
        Output::Json => {
            let document: Value =
                document.and_then(|stored| serde_json::from_str(&stored.json).ok()).unwrap_or(Value::Null);
            print::json(out, &json!({ "document": document, "events": rows.iter().map(wire).collect::<Vec<_>>() }))?;
        }
        Output::Human => {
            wanted(&session, out)?;
            for row in &rows {
                event(row, out)?;
            }
            if let Some(stored) = document {
                writeln!(out, "readers see (revision {}): {}", stored.revision, stored.json)?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn wanted(session: &Session, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let stamp = session.head.stamp;
    let status = match session.head.status {
        Status::Scheduled => "scheduled",
        Status::Canceled => "canceled",
    };
    writeln!(
        out,
        "session {}: {status}, version {} (epoch {}, sequence {}), teacher {}",
        session.id, stamp.version, stamp.epoch, stamp.sequence, session.head.teacher
    )?;
    if let Some((_, details)) = &session.details {
        writeln!(
            out,
            "  {:?}, {} to {} ({})",
            details.title,
            details.starts_at,
            details.ends_at,
            details.time_zone.name()
        )?;
    }
    Ok(())
}

fn event(row: &MeetEvent, out: &mut (dyn Write + Send)) -> io::Result<()> {
    let want = if row.want == Want::Present { "wanted" } else { "to be gone" };
    let at = row.binding.as_ref().map_or_else(
        || "no call made yet".to_owned(),
        |binding| format!("event {} in {}, generation {}", binding.event_id, binding.calendar, binding.generation),
    );
    let state = if row.settled { "settled" } else { "not settled" };
    writeln!(out, "event {} of teacher {}: {want}, {:?}, {state}; {at}", row.ordinal, row.teacher, row.phase)?;
    if let Some(intent) = &row.intent {
        writeln!(out, "  {} begun at {}, outcome not recorded yet", intent.operation, intent.at)?;
    }
    if let Some(failure) = &row.failure {
        writeln!(
            out,
            "  {} since {} ({} attempts): {}",
            failure.code.as_str(),
            failure.since,
            failure.attempts,
            failure.message
        )?;
    }
    let next =
        row.next_attempt_at.map_or("when something changes".to_owned(), super::super::model::UnixMillis::to_rfc3339);
    writeln!(out, "  next look: {next}")
}

fn wire(row: &MeetEvent) -> Value {
    json!({
        "ordinal": row.ordinal,
        "teacherId": row.teacher.as_str(),
        "want": if row.want == Want::Present { "present" } else { "absent" },
        "phase": format!("{:?}", row.phase).to_lowercase(),
        "settled": row.settled,
        "eventId": row.binding.as_ref().map(|binding| binding.event_id.as_str().to_owned()),
        "calendar": row.binding.as_ref().map(|binding| binding.calendar.clone()),
        "generation": row.binding.as_ref().map(|binding| binding.generation),
        "intent": row.intent.as_ref().map(|intent| intent.operation.clone()),
        "error": row.failure.as_ref().map(|failure| failure.code.as_str()),
        "attempts": row.failure.as_ref().map(|failure| failure.attempts),
        "nextAttemptAt": row.next_attempt_at.map(super::super::model::UnixMillis::to_rfc3339),
    })
}
