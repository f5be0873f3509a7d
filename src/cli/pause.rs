//! `pause` and `resume`: hold ingest or the work on calendars, for all replicas, until somebody or the clock says go on.

use std::io::Write;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::moment::{self, Moment};
use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::model::{TeacherId, UnixMillis};
use crate::presence::State;
use crate::store::{Actor, Pause, ProcessRecord, Scope, Store};

/// What to hold.
#[derive(Debug, Clone, Subcommand)]
pub enum PauseCommand {
    /// Reading events: they wait on the stream, and nothing is done at Google either until they are caught up with
    Ingest(PauseArgs),
    /// Work on calendars: events are read, and what they want waits in the database
    Reconcile(CalendarPauseArgs),
}

/// How to hold it.
#[derive(Debug, Clone, Args)]
pub struct PauseArgs {
    /// When it ends by itself: 30m, 2h, 3d, or 2026-12-01T09:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// Why, for the audit and for whoever looks at `status`
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// Return only when nothing is under way any more, in any process
    #[arg(long)]
    wait: bool,
}

/// How to hold calendars.
#[derive(Debug, Clone, Args)]
pub struct CalendarPauseArgs {
    /// Only this teacher's calendar
    #[arg(long, value_name = "ID", value_parser = teacher)]
    teacher: Option<TeacherId>,
    #[command(flatten)]
    how: PauseArgs,
}

/// What to let go on.
#[derive(Debug, Clone, Subcommand)]
pub enum ResumeCommand {
    /// Reading events
    Ingest {
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Work on calendars; what waited is done soonest lesson first, within the usual rate limits
    Reconcile {
        /// Only this teacher's calendar
        #[arg(long, value_name = "ID", value_parser = teacher)]
        teacher: Option<TeacherId>,
        /// Why, for the audit
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
}

/// Examples for `pause --help`.
pub const PAUSE_HELP: &str = "\
Examples:
  meet-projector pause ingest --until 30m --reason \"booking system sends wrong times\"
  meet-projector pause reconcile --wait --reason \"restoring the database\"
  meet-projector pause reconcile --teacher tch_42 --until 2026-12-01T09:00:00Z --reason \"asked by the teacher\"

A pause is kept in the database: it survives restarts and holds on every replica within two seconds. `status` and
/readyz show it; the service stays ready. Pausing again changes the end and the reason.";

/// Examples for `resume --help`.
pub const RESUME_HELP: &str = "\
Examples:
  meet-projector resume ingest
  meet-projector resume reconcile --teacher tch_42 --reason \"the teacher is back\"

A pause of all calendars and one of a single teacher are resumed separately.";

/// For clap.
pub(super) fn teacher(text: &str) -> Result<TeacherId, String> {
    TeacherId::parse(text).map_err(|error| error.0)
}

/// Runs `pause`.
pub async fn pause(
    command: &PauseCommand,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let now = clock.now();
    let (scope, teacher, how) = match command {
        PauseCommand::Ingest(how) => (Scope::Ingest, None, how),
        PauseCommand::Reconcile(args) => (Scope::Reconcile, args.teacher.clone(), &args.how),
    };
    if how.reason.trim().is_empty() {
        return Err(CommandError::usage("--reason must say why"));
    }
    let until = how.until.map(|until| until.after(now));
    if until.is_some_and(|until| until <= now) {
        return Err(CommandError::usage("--until is over already"));
    }
    let actor = Actor::of_process();
    let pause = Pause {
        scope,
        teacher,
        since: now,
        until,
        actor: actor.as_str().to_owned(),
        reason: how.reason.trim().to_owned(),
    };
    let before = store.processes().await?;
    store.pause(&pause, now).await?;
    let unheard = if how.wait { wait(&pause, &before, store, clock).await? } else { Vec::new() };
    let until = pause.until.map(UnixMillis::to_rfc3339);
    match output {
        Output::Json => print::json(
            out,
            &json!({
                "scope": scope.as_str(), "teacherId": pause.teacher.as_ref().map(TeacherId::as_str), "since": now.to_rfc3339(),
                "until": until, "actor": pause.actor, "reason": pause.reason, "waited": how.wait,
                "unheardProcesses": unheard,
            }),
        )?,
        Output::Human => {
            writeln!(out, "{}", pause.sentence())?;
            if let Some(until) = pause.until {
                writeln!(out, "It ends by itself {}.", moment::both(until, now))?;
            }
            if how.wait {
                writeln!(out, "Nothing is under way any more.")?;
            } else {
                writeln!(out, "What is under way ends within a minute; --wait waits for that.")?;
            }
            for id in &unheard {
                writeln!(out, "Process {id} stopped answering; should it come back, it hears of the pause first.")?;
            }
        }
    }
    Ok(Exit::Ok)
}

/// Waits until nothing is under way; returns processes that were lost meanwhile.
async fn wait(
    pause: &Pause,
    before: &[ProcessRecord],
    store: &Store,
    clock: &Clock,
) -> Result<Vec<String>, CommandError> {
    let pace = Duration::from_millis(200);
    loop {
        let now = clock.now();
        match pause.scope {
            // Claims look at pauses in their own transaction, so no calendar is taken any more.
            Scope::Reconcile if store.held_calendars(pause.teacher.as_ref(), now).await?.is_empty() => {
                return Ok(Vec::new());
            }
            Scope::Reconcile => {}
            Scope::Ingest => {
                let processes = store.processes().await?;
                // What a process wrote before the pause does not count, even if it stood still then.
                let is_news = |process: &ProcessRecord| {
                    before.iter().find(|was| was.id == process.id).is_none_or(|was| was.seen_at != process.seen_at)
                };
                let stands_still = |process: &ProcessRecord| {
                    is_news(process) && State::parse(&process.state).is_some_and(|state| state.ingest_stands_still)
                };
                let (alive, gone): (Vec<_>, Vec<_>) = processes.into_iter().partition(|process| process.is_alive(now));
                if alive.iter().all(stands_still) {
                    let was_alive =
                        |gone: &&ProcessRecord| before.iter().any(|was| was.id == gone.id && was.is_alive(pause.since));
                    return Ok(gone.iter().filter(was_alive).map(|process| process.id.clone()).collect());
                }
            }
        }
        tokio::time::sleep(pace).await;
    }
}

/// Runs `resume`.
pub async fn resume(
    command: &ResumeCommand,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let (scope, teacher, reason) = match command {
        ResumeCommand::Ingest { reason } => (Scope::Ingest, None, reason),
        ResumeCommand::Reconcile { teacher, reason } => (Scope::Reconcile, teacher.as_ref(), reason),
    };
    let ended = store.resume(scope, teacher, &Actor::of_process(), reason.as_deref(), clock.now()).await?;
    let left = store.pauses().await?;
    let left: Vec<_> = left.iter().filter(|pause| pause.holds(clock.now())).map(Pause::sentence).collect();
    match output {
        Output::Json => print::json(
            out,
            &json!({
                "scope": scope.as_str(), "teacherId": teacher.map(TeacherId::as_str), "resumed": ended,
                "stillPaused": left,
            }),
        )?,
        Output::Human => {
            let what =
                teacher.map_or_else(|| scope.as_str().to_owned(), |teacher| format!("{} of {teacher}", scope.as_str()));
            if ended {
                writeln!(out, "{what} goes on within two seconds.")?;
            } else {
                writeln!(out, "{what} was not paused; nothing was done.")?;
            }
            for sentence in left {
                writeln!(out, "Still: {sentence}")?;
            }
        }
    }
    Ok(Exit::Ok)
}
