//! `meet-projector rebuild`: the projection anew beside the one that is served, compared, and swapped by a person.

use std::collections::BTreeMap;
use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::print::{self, Output};
use super::work::{Desk, Limits, broken_off, failed};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::Need;
use crate::model::SessionId;
use crate::rebuild::{Comparison, build, compare, live_lines, merge};
use crate::run::pace::Pace;
use crate::run::progress::Progress;
use crate::run::{self, HOLD_MS, Kind, Run, State, WorkError, thousands};

/// How to rebuild, or what to do with what was rebuilt.
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
A rebuild reads the whole stream into a shadow and compares it with what is served; it changes nothing that anybody
reads. `rebuild promote` then swaps, `rebuild rollback` takes that back, `rebuild discard` frees the space.

  meet-projector rebuild
  meet-projector rebuild diff
  meet-projector rebuild promote --execute --reason 'projection of July was wrong'
  meet-projector rebuild --resume rebuild-20261122-201506-3f2a

Exit codes: 0 nothing differs, 1 something does, 5 stopped."
)]
pub struct RebuildArgs {
    #[command(subcommand)]
    command: Option<RebuildCommand>,
    /// Go on with a rebuild that was stopped or killed
    #[arg(long, value_name = "RUN")]
    resume: Option<String>,
    /// At most so many events a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

/// What to do with what was rebuilt.
#[derive(Debug, Clone, Subcommand)]
pub enum RebuildCommand {
    /// Compare the shadow with what is served once more
    Diff,
    /// Put the shadow in the place of what is served
    Promote(Limits),
    /// Take the last promotion back
    Rollback(Limits),
    /// Throw the shadow away, and what was kept for a rollback
    Discard,
    /// Print every session in canonical form, one a line, for comparing by other means
    Dump {
        /// The rebuilt ones instead of those that are served
        #[arg(long)]
        shadow: bool,
    },
}

/// Runs the command.
pub async fn run(
    args: &RebuildArgs,
    environment: &BTreeMap<String, String>,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let desk = Desk::open(environment, Need::Nats, "rebuild", clock, output).await?;
    match &args.command {
        None => {
            let mut run = match &args.resume {
                Some(id) => {
                    let run = run::resume(&desk.store, Kind::Rebuild, id, clock).await;
                    let run = run.map_err(|error| failed(&error.into()))?;
                    if run.epoch != desk.source.record.epoch {
                        let text = "the stream is another one than when this rebuild was begun; begin a new one";
                        return Err(CommandError::failed(text));
                    }
                    run
                }
                None => begin(&desk, args).await?,
            };
            rebuild(&desk, &mut run, args.rate, out).await
        }
        Some(RebuildCommand::Diff) => {
            let run = latest(&desk, &[State::Ready]).await?;
            let found = compared(&desk, &run, false).await?;
            show(&desk, &run, &found, out)
        }
        Some(RebuildCommand::Promote(limits)) => promote(&desk, limits, out).await,
        Some(RebuildCommand::Rollback(limits)) => roll_back(&desk, limits, out).await,
        Some(RebuildCommand::Discard) => {
            let states = [State::Ready, State::Promoted, State::RolledBack, State::Stopped, State::Running];
            let mut run = latest(&desk, &states).await?;
            if run.is_held(clock.now()) {
                return Err(failed(&run::RunError::Busy(run.id).into()));
            }
            desk.store.clear_shadow().await?;
            run.state = State::Discarded;
            desk.store.end_run(&run, clock.now()).await?;
            desk.audit("rebuild discard", &run).await?;
            say(&desk, out, &json!({ "run": run.id, "state": "discarded" }), &format!("discarded {}", run.id))?;
            Ok(Exit::Ok)
        }
        Some(RebuildCommand::Dump { shadow }) => dump(&desk, *shadow, out).await,
    }
}

fn say(
    desk: &Desk<'_>,
    out: &mut (dyn Write + Send),
    value: &serde_json::Value,
    sentence: &str,
) -> Result<(), CommandError> {
    match desk.output {
        Output::Json => print::json(out, value)?,
        Output::Human => writeln!(out, "{sentence}")?,
    }
    Ok(())
}

async fn begin(desk: &Desk<'_>, args: &RebuildArgs) -> Result<Run, CommandError> {
    let history = &desk.source.history;
    let first = history.first.max(1) - 1;
    let now = desk.clock.now();
    let mut run = Run::new(Kind::Rebuild, desk.source.record.epoch, json!({}), first, history.last, now);
    run.reason.clone_from(&args.reason);
    run::begin(&desk.store, &run, desk.clock).await.map_err(|error| failed(&error.into()))?;
    // What an older rebuild left is of no more use: its promotion can no longer be taken back.
    for mut old in desk.store.runs(Kind::Rebuild, 100).await? {
        if old.id != run.id && !matches!(old.state, State::Discarded | State::Failed) {
            old.state = State::Discarded;
            desk.store.end_run(&old, now).await?;
        }
    }
    desk.store.clear_shadow().await?;
    desk.audit("rebuild", &run).await?;
    Ok(run)
}

async fn rebuild(
    desk: &Desk<'_>,
    run: &mut Run,
    rate: Option<u32>,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    if !read_on(desk, run, rate, out).await? {
        return Ok(Exit::Partly);
    }
    let found = compared(desk, run, true).await?;
    run.state = State::Ready;
    run.proof = Some(serde_json::to_value(&found).expect("a struct of texts and numbers always serialises"));
    desk.store.end_run(run, desk.clock.now()).await?;
    show(desk, run, &found, out)
}

/// Reads to the goal; `false` when the run was stopped and let go.
async fn read_on(
    desk: &Desk<'_>,
    run: &mut Run,
    rate: Option<u32>,
    out: &mut (dyn Write + Send),
) -> Result<bool, CommandError> {
    let mut progress = Progress::new("rebuild", run.cursor, desk.as_json());
    let mut pace = Pace::new(rate);
    let ended = build(&desk.source, &desk.store, run, &mut pace, desk.clock, &mut progress, &desk.stop()).await;
    progress.end();
    match ended {
        Ok(true) => Ok(true),
        Ok(false) => {
            desk.let_go(run, "stopped", out).await?;
            Ok(false)
        }
        Err(error @ WorkError::Run(_)) => Err(failed(&error)),
        Err(error) => {
            // Where the database is away this fails too, and the run is free again when its time is up.
            drop(desk.let_go(run, &broken_off(&error), out).await);
            Err(failed(&error))
        }
    }
}

/// Sessions are compared page by page while the run is kept: others must not clear the shadow meanwhile.
async fn compared(desk: &Desk<'_>, run: &Run, notes: bool) -> Result<Comparison, CommandError> {
    let held = run.is_held(desk.clock.now());
    let keep = async {
        if !held {
            std::future::pending::<()>().await;
        }
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(3)).await;
            let now = desk.clock.now();
            if let Ok(false) = desk.store.move_run(run, now, now.plus(HOLD_MS)).await {
                return;
            }
        }
    };
    tokio::select! {
        found = compare(&desk.source, &desk.store, run.cursor, &desk.policy, desk.clock, notes) => {
            found.map_err(|error| failed(&error))
        }
        () = keep => Err(failed(&run::RunError::TakenOver(run.id.clone()).into())),
    }
}

/// The latest rebuild, which must be in one of these states.
async fn latest(desk: &Desk<'_>, states: &[State]) -> Result<Run, CommandError> {
    let Some(run) = desk.store.runs(Kind::Rebuild, 1).await?.into_iter().next() else {
        return Err(CommandError::failed("there is no rebuild yet: begin one with `meet-projector rebuild`"));
    };
    if states.contains(&run.state) {
        return Ok(run);
    }
    let next = match run.state {
        State::Running | State::Stopped => format!("go on with `meet-projector rebuild --resume {}`", run.id),
        State::Promoted => "`rebuild rollback` takes it back, `rebuild` begins anew".to_owned(),
        _ => "begin one with `meet-projector rebuild`".to_owned(),
    };
    Err(CommandError::failed(format!("the latest rebuild, {}, is {}: {next}", run.id, run.state.as_str())))
}

fn show(desk: &Desk<'_>, run: &Run, found: &Comparison, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    match desk.output {
        Output::Json => print::json(
            out,
            &json!({
                "run": run.id, "state": run.state.as_str(), "readTo": run.cursor, "events": run.counts.events,
                "difference": found, "callsToGoogle": found.calls.writes(),
            }),
        )?,
        Output::Human => {
            writeln!(
                out,
                "{}: {} events up to sequence {} folded into {} sessions; {} are served",
                run.id,
                thousands(run.counts.events),
                thousands(run.cursor),
                thousands(found.rebuilt),
                thousands(found.live)
            )?;
            let groups: Vec<_> = found.by_group.iter().map(|(group, number)| format!("{group} {number}")).collect();
            let rows = [
                ("identical", found.identical, String::new()),
                ("missing", found.missing, "in the stream and not served; a promotion adds them".to_owned()),
                ("different", found.different, format!("a promotion changes them: {}", groups.join(", "))),
                ("extra", found.extra, "served, and not in the stream although they should be; kept".to_owned()),
                ("expired", found.expired, "the stream no longer holds their events; kept and marked".to_owned()),
                ("newer", found.newer, "changed since the rebuild read; kept".to_owned()),
            ]
            .map(|(kind, number, what)| {
                vec![kind.to_owned(), thousands(number), if number > 0 { what } else { String::new() }]
            });
            print::table(out, &["SESSIONS", "NUMBER", ""], &rows)?;
            for sample in found.samples.iter().filter(|sample| sample.kind != "newer") {
                writeln!(out, "{} {} {}", sample.kind, sample.session_id, sample.groups.join(", "))?;
                if let Some(live) = &sample.live {
                    writeln!(out, "  - {live}")?;
                }
                if let Some(rebuilt) = &sample.rebuilt {
                    writeln!(out, "  + {rebuilt}")?;
                }
            }
            if found.live_sha256 == found.rebuilt_sha256 {
                writeln!(out, "byte for byte the same: SHA-256 {}", found.live_sha256)?;
            }
            if found.changes() > 0 {
                writeln!(out, "{}\n`meet-projector rebuild promote` shows the plan of the swap.", found.calls)?;
            }
        }
    }
    Ok(if found.agrees() { Exit::Ok } else { Exit::No })
}

async fn promote(desk: &Desk<'_>, limits: &Limits, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    let mut run = latest(desk, &[State::Ready]).await?;
    if !limits.execute {
        let found = compared(desk, &run, false).await?;
        let plan = json!({ "executed": false, "run": run.id, "sessionsChanged": found.changes(),
                           "difference": found, "callsToGoogle": found.calls.writes() });
        let sentence = format!(
            "{}: {} sessions would change ({} added)\n{}\nNothing was done. Add --execute --reason TEXT to do it.",
            run.id,
            thousands(found.changes()),
            thousands(found.missing),
            found.calls
        );
        say(desk, out, &plan, &sentence)?;
        return Ok(Exit::Ok);
    }
    // Caught up with what the service folded meanwhile; what it folds from now on is newer than the shadow and stays.
    run = run::hold(&desk.store, run, desk.clock).await.map_err(|error| failed(&error.into()))?;
    run.reason.clone_from(&limits.reason);
    run.goal = desk.source.head().await.map_err(|error| failed(&error.into()))?.max(run.goal);
    if !read_on(desk, &mut run, limits.rate, out).await? {
        return Ok(Exit::Partly);
    }
    compared(desk, &run, true).await?;
    desk.audit("rebuild promote", &run).await?;
    let history = &desk.source.history;
    let now = desk.clock.now();
    let read = run.cursor;
    let promoted = desk
        .store
        .promote_shadow(&run, |live, shadow| merge(live, shadow, history, read), now, now.plus(HOLD_MS))
        .await?;
    let Some(promoted) = promoted else { return Err(failed(&run::RunError::TakenOver(run.id).into())) };
    let (proof, sentence) = desk.settle(&mut run, State::Promoted, limits.wait).await?;
    let value = json!({ "executed": true, "run": run.id, "sessionsChanged": promoted.changed,
                        "sessionsAdded": promoted.added, "proof": proof });
    let text = format!(
        "promoted {}: {} sessions changed ({} added), {sentence}\n`meet-projector rebuild rollback` takes it back.",
        run.id,
        thousands(promoted.changed),
        thousands(promoted.added)
    );
    say(desk, out, &value, &text)?;
    Ok(if proof["stillDue"] == 0 { Exit::Ok } else { Exit::Partly })
}

async fn roll_back(desk: &Desk<'_>, limits: &Limits, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    let mut run = latest(desk, &[State::Promoted]).await?;
    if !limits.execute {
        let plan = json!({ "executed": false, "run": run.id });
        let sentence = format!(
            "{}: what was promoted would be as before, but for what events changed since\nNothing was done. Add \
             --execute --reason TEXT to do it.",
            run.id
        );
        say(desk, out, &plan, &sentence)?;
        return Ok(Exit::Ok);
    }
    run = run::hold(&desk.store, run, desk.clock).await.map_err(|error| failed(&error.into()))?;
    run.reason.clone_from(&limits.reason);
    desk.audit("rebuild rollback", &run).await?;
    let now = desk.clock.now();
    let done = desk.store.roll_shadow_back(&run, now, now.plus(HOLD_MS)).await?;
    let Some(done) = done else { return Err(failed(&run::RunError::TakenOver(run.id).into())) };
    let (proof, sentence) = desk.settle(&mut run, State::RolledBack, limits.wait).await?;
    let value = json!({ "executed": true, "run": run.id, "sessionsRestored": done.restored,
                        "sessionsKept": done.kept, "proof": proof });
    let kept = if done.kept == 0 {
        String::new()
    } else {
        format!("; {} sessions that had been added stay, because something was done for them since", done.kept)
    };
    let text = format!("rolled {} back: {} sessions are as before{kept}, {sentence}", run.id, thousands(done.restored));
    say(desk, out, &value, &text)?;
    Ok(if proof["stillDue"] == 0 && done.kept == 0 { Exit::Ok } else { Exit::Partly })
}

async fn dump(desk: &Desk<'_>, shadow: bool, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    let mut after: Option<SessionId> = None;
    loop {
        let lines = if shadow {
            let page = desk.store.shadow_page(after.as_ref(), 500).await?;
            after = page.last().map(|shadow| shadow.session.id.clone()).or(after);
            page.into_iter().map(|shadow| shadow.text).collect()
        } else {
            live_lines(&desk.store, &mut after).await.map_err(|error| failed(&error))?
        };
        if lines.is_empty() {
            return Ok(Exit::Ok);
        }
        for line in lines {
            writeln!(out, "{line}")?;
        }
    }
}
