//! `meet-projector replay`: a part of the stream once more, with a plan first and a proof afterwards.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde_json::json;

use super::print::{self, Output};
use super::work::{Desk, Limits, Until, broken_off, failed, time};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::Need;
use crate::model::{SessionId, TeacherId, UnixMillis};
use crate::replay::{Selection, Survey, execute, survey};
use crate::run::pace::Pace;
use crate::run::progress::Progress;
use crate::run::source::Source;
use crate::run::{self, Kind, Run, State, thousands};

/// Which events, and what to do with them.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Without --execute only the plan is shown: what the events are to the projection, how many sessions would change, and
which calls to Google that means. A replay of a stream that was folded right changes nothing and calls nobody.

  meet-projector replay --since 2026-11-22T18:00:00Z
  meet-projector replay --since 2026-11-22T18:00:00Z --execute --reason 'restored the database'
  meet-projector replay --session ses_8Kq2 --execute --reason 'wrong time reported'
  meet-projector replay --resume replay-20261122-201506-3f2a

Ctrl-C stops after the group under way; --resume goes on. Exit codes: 0 done, 5 stopped or events still due at Google.")]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(true)
    .args(["from_sequence", "since", "session", "teacher", "all", "resume"]))]
pub struct ReplayArgs {
    /// From this stream sequence on
    #[arg(long, value_name = "N", conflicts_with = "since", value_parser = clap::value_parser!(i64).range(1..))]
    from_sequence: Option<i64>,
    /// From the first event stored at this time or later (RFC 3339)
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<UnixMillis>,
    /// Up to this stream sequence, or to the last event stored before this time
    #[arg(long, value_name = "N|TIME")]
    to: Option<Until>,
    /// Only events of this session
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// Only events that name this teacher
    #[arg(long, value_name = "ID", conflicts_with = "session")]
    teacher: Option<String>,
    /// The whole stream
    #[arg(long, conflicts_with_all = ["from_sequence", "since"])]
    all: bool,
    /// Go on with a run that was stopped or killed
    #[arg(long, value_name = "RUN", conflicts_with_all = ["from_sequence", "since", "to", "session", "teacher", "all",
        "execute", "reason"])]
    resume: Option<String>,
    #[command(flatten)]
    limits: Limits,
}

/// Runs the command.
pub async fn run(
    args: &ReplayArgs,
    environment: &BTreeMap<String, String>,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let desk = Desk::open(environment, Need::Nats, "replay", clock, output).await?;
    if let Some(id) = &args.resume {
        let mut run = run::resume(&desk.store, Kind::Replay, id, clock).await.map_err(|error| failed(&error.into()))?;
        if run.epoch != desk.source.record.epoch {
            let text = format!("run {id} was begun in epoch {}; the stream is another one now", run.epoch);
            return fail(&desk, &mut run, text).await;
        }
        let selection: Selection = serde_json::from_value(run.arguments.clone())
            .map_err(|error| CommandError::failed(format!("run {id} cannot be read: {error}")))?;
        desk.audit("replay resumed", &run).await?;
        return carry_out(&desk, &mut run, &selection, args, out).await;
    }
    let selection = selection(args, &desk.source).await?;
    if args.limits.execute {
        let arguments = serde_json::to_value(&selection).expect("a struct of texts and numbers always serialises");
        let epoch = desk.source.record.epoch;
        let mut run = Run::new(Kind::Replay, epoch, arguments, selection.from - 1, selection.to, clock.now());
        run.reason.clone_from(&args.limits.reason);
        run::begin(&desk.store, &run, clock).await.map_err(|error| failed(&error.into()))?;
        desk.audit("replay", &run).await?;
        return carry_out(&desk, &mut run, &selection, args, out).await;
    }
    let mut progress = Progress::new("reading", 0, desk.as_json());
    let found = survey(&desk.source, &desk.store, &selection, &desk.policy, clock, &mut progress, &desk.stop())
        .await
        .map_err(|error| failed(&error))?;
    progress.end();
    show(&desk, &selection, &found, out)
}

async fn fail(desk: &Desk<'_>, run: &mut Run, text: String) -> Result<Exit, CommandError> {
    run.state = State::Failed;
    desk.store.end_run(run, desk.clock.now()).await?;
    Err(CommandError::failed(text))
}

/// The range the options mean, within what the stream holds.
async fn selection(args: &ReplayArgs, source: &Source) -> Result<Selection, CommandError> {
    let usage = |error: crate::model::InvalidValue| CommandError::usage(error.to_string());
    if let Some(session) = &args.session {
        SessionId::parse(session.as_str()).map_err(usage)?;
    }
    if let Some(teacher) = &args.teacher {
        TeacherId::parse(teacher.as_str()).map_err(usage)?;
    }
    let at = async |time| {
        let found = source.first_since(time).await;
        found.map_err(|error| CommandError::of(&error, error.exit_code()))
    };
    let history = &source.history;
    let from = match (args.from_sequence, args.since) {
        (Some(sequence), _) => sequence,
        (None, Some(since)) => at(since).await?,
        (None, None) => history.first,
    };
    let to = match args.to {
        Some(Until::Sequence(sequence)) => sequence,
        Some(Until::Time(before)) => at(before).await? - 1,
        None => history.last,
    };
    Ok(Selection {
        from: from.max(history.first).max(1),
        to: to.min(history.last),
        session: args.session.clone(),
        teacher: args.teacher.clone(),
    })
}

fn show(
    desk: &Desk<'_>,
    selection: &Selection,
    found: &Survey,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let Survey { counts, calls, named, is_lower_bound, is_stopped, .. } = found;
    let named: Vec<_> = named.iter().map(SessionId::as_str).collect();
    match desk.output {
        Output::Json => print::json(
            out,
            &json!({
                "executed": false, "selection": selection, "events": counts, "sessionsChanged": counts.sessions_changed,
                "sessions": named, "calls": calls, "callsToGoogle": calls.writes(), "isLowerBound": is_lower_bound,
                "isStopped": is_stopped,
            }),
        )?,
        Output::Human => {
            writeln!(out, "sequences {} to {}", thousands(selection.from), thousands(selection.to))?;
            let rows = [
                ("already applied", counts.applied),
                ("would change", counts.changing),
                ("stale", counts.stale),
                ("dead", counts.dead),
                ("unreadable", counts.unreadable),
                ("all", counts.events),
            ]
            .map(|(what, number)| vec![what.to_owned(), thousands(number)]);
            print::table(out, &["EVENTS", "NUMBER"], &rows)?;
            let at_least = if *is_lower_bound { "at least " } else { "" };
            let dots = if counts.sessions_changed > i64::try_from(named.len()).unwrap_or(0) { ", …" } else { "" };
            let which = if named.is_empty() { String::new() } else { format!(": {}{dots}", named.join(", ")) };
            writeln!(out, "{at_least}{} sessions would change{which}", thousands(counts.sessions_changed))?;
            writeln!(out, "{at_least}{calls}")?;
            if *is_stopped {
                writeln!(out, "stopped before the end: the numbers are of what was read")?;
            }
            writeln!(out, "Nothing was done. Add --execute --reason TEXT to do it.")?;
        }
    }
    Ok(if *is_stopped { Exit::Partly } else { Exit::Ok })
}

/// Folds, waits for what follows at Google, and proves it.
async fn carry_out(
    desk: &Desk<'_>,
    run: &mut Run,
    selection: &Selection,
    args: &ReplayArgs,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let mut progress = Progress::new("replay", run.cursor - selection.from + 1, desk.as_json());
    let mut pace = Pace::new(args.limits.rate);
    let (store, source) = (&desk.store, &desk.source);
    let ended = execute(source, store, run, selection, &mut pace, desk.clock, &mut progress, &desk.stop()).await;
    progress.end();
    match ended {
        Ok(true) => {}
        Ok(false) => return desk.let_go(run, "stopped", out).await,
        Err(error @ run::WorkError::Run(_)) => return Err(failed(&error)),
        Err(error) => {
            let how = broken_off(&error);
            // Where the database is away this fails too, and the run is free again when its time is up.
            drop(desk.let_go(run, &how, out).await);
            return Err(failed(&error));
        }
    }
    let (proof, sentence) = desk.settle(run, State::Finished, args.limits.wait).await?;
    desk.audit("replay finished", run).await?;
    let counts = &run.counts;
    match desk.output {
        Output::Json => print::json(
            out,
            &json!({
                "run": run.id, "executed": true, "selection": selection, "events": counts,
                "sessionsChanged": counts.sessions_changed, "proof": proof,
            }),
        )?,
        Output::Human => {
            let sessions = match counts.sessions_changed {
                1 => "1 session changed".to_owned(),
                number => format!("{} sessions changed", thousands(number)),
            };
            writeln!(out, "{} events, {sessions}, {sentence}", thousands(counts.events))?;
        }
    }
    Ok(if proof["stillDue"] == 0 { Exit::Ok } else { Exit::Partly })
}
