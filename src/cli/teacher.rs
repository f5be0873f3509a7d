//! `teacher list|show`: teachers' connections to Google, and how many sessions wait for them; [`disconnect`] gives one up.

use std::io::{self, Write};

use clap::Subcommand;

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::api::teacher_document;
use crate::clock::Clock;
use crate::model::{TeacherId, UnixMillis};
use crate::store::Store;
use crate::store::teachers::{Connection, ConnectionFilter, token_status, token_statuses};

pub mod disconnect;

/// Teachers read at once.
const PAGE: i64 = 500;

/// What to do with teachers.
#[derive(Debug, Subcommand)]
pub enum TeacherCommand {
    /// Every teacher with a session or a grant, by id
    List {
        /// Only these: CONNECTED, RECONNECT_REQUIRED, SCOPE_MISSING, ADMIN_BLOCKED, DISCONNECTED, NOT_CONNECTED
        #[arg(long, value_delimiter = ',', value_name = "STATUS")]
        token_status: Vec<String>,
        /// Only teachers whose connection keeps sessions waiting
        #[arg(long)]
        blocked: bool,
    },
    /// One teacher
    Show {
        /// The teacher's id in the booking backend
        id: String,
    },
    /// Give up a teacher's Google account: revoke the access at Google and wipe it here
    ///
    /// Future events stay on the calendar unless --remove-events is given; then the running service removes them first,
    /// which takes a while: the command ends with 5, and running it again shows how far it is. A disconnect that was
    /// begun goes on in the service whatever becomes of this command.
    Disconnect(disconnect::DisconnectArgs),
}

/// Runs the command.
pub async fn run(
    command: &TeacherCommand,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        TeacherCommand::List { token_status, blocked } => list(token_status, *blocked, store, clock, output, out).await,
        TeacherCommand::Disconnect(_) => Err(CommandError::failed("teacher disconnect needs the settings of Google")),
        TeacherCommand::Show { id } => show(id, store, clock, output, out).await,
    }
}

async fn list(
    statuses: &[String],
    blocked: bool,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let known = |text: &String| {
        token_statuses().find(|word| word.eq_ignore_ascii_case(text)).ok_or_else(|| {
            let known = token_statuses().collect::<Vec<_>>().join(", ");
            CommandError::usage(format!("--token-status {}: allowed are {known}", crate::model::quoted(text)))
        })
    };
    let statuses = statuses.iter().map(known).collect::<Result<_, _>>()?;
    let mut filter = ConnectionFilter { statuses, blocked: blocked.then_some(true), limit: PAGE, after: None };
    let mut teachers = Vec::new();
    loop {
        let page = store.connections(&filter, clock.now()).await?;
        teachers.extend(page.items);
        filter.after = page.next;
        if filter.after.is_none() {
            break;
        }
    }
    match output {
        Output::Json => print::json(out, &teachers.iter().map(teacher_document).collect::<Vec<_>>())?,
        Output::Human if teachers.is_empty() => writeln!(out, "no teacher")?,
        Output::Human => {
            let heading = ["TEACHER", "STATUS", "GOOGLE ACCOUNT", "LAST REFRESH", "WAITING", "NEXT START"];
            print::table(out, &heading, &teachers.iter().map(row).collect::<Vec<_>>())?;
        }
    }
    Ok(Exit::Ok)
}

fn row(connection: &Connection) -> Vec<String> {
    let grant = connection.grant.as_ref();
    vec![
        connection.teacher.to_string(),
        token_status(connection.status()).to_owned(),
        grant.and_then(|grant| grant.email.clone()).unwrap_or_else(|| "-".to_owned()),
        time(grant.and_then(|grant| grant.last_refresh_at)),
        connection.blocked_sessions.to_string(),
        time(connection.next_blocked_starts_at),
    ]
}

fn time(moment: Option<UnixMillis>) -> String {
    moment.map_or_else(|| "-".to_owned(), UnixMillis::to_rfc3339)
}

async fn show(
    id: &str,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let id = TeacherId::parse(id).map_err(|error| CommandError::usage(error.to_string()))?;
    let Some(connection) = store.connection(&id, clock.now()).await? else {
        return Err(CommandError::failed(format!("neither a session nor a grant of teacher {id} was ever seen")));
    };
    match output {
        Output::Json => print::json(out, &teacher_document(&connection))?,
        Output::Human => told(&connection, out)?,
    }
    Ok(Exit::Ok)
}

fn told(connection: &Connection, out: &mut (dyn Write + Send)) -> io::Result<()> {
    writeln!(out, "teacher {}: {}", connection.teacher, token_status(connection.status()))?;
    if let Some(grant) = &connection.grant {
        writeln!(out, "  account       {}", grant.email.as_deref().unwrap_or("-"))?;
        writeln!(out, "  scopes        {}", grant.scopes)?;
        writeln!(out, "  connected at  {}", grant.connected_at)?;
        writeln!(out, "  last refresh  {}", time(grant.last_refresh_at))?;
        if let Some(ends_at) = grant.ends_at {
            writeln!(out, "  ends at       {ends_at}, unless the teacher connects again")?;
        }
        if let Some(error) = &grant.last_error {
            writeln!(out, "  last error    {error}")?;
        }
    }
    match connection.next_blocked_starts_at {
        None => writeln!(out, "  no session waits for the connection"),
        Some(start) => {
            let waiting = match connection.blocked_sessions {
                1 => "1 session waits".to_owned(),
                many => format!("{many} sessions wait"),
            };
            writeln!(out, "  {waiting} for the connection, the next at {start}")
        }
    }
}
