//! `meet-projector verify`: do stream, projection, results and Google agree? And with `--execute`, mend what does not.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde_json::{Value, json};

use super::print::{self, Output};
use super::work::{Desk, Limits, failed};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::Need;
use crate::credential::KeyRing;
use crate::model::{SessionId, TeacherId};
use crate::replay::{Selection, execute};
use crate::run::pace::Pace;
use crate::run::progress::Progress;
use crate::run::{self, Kind, Run, State, thousands};
use crate::service;
use crate::verify::google::{self, GoogleReport};
use crate::verify::{Finding, Report, Scope, compare};

/// What to compare.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Compares the stream with the projection, the projection with its rows, and looks for results that wait. With --google
each event of ours that should be on a calendar is asked for, with the ETag we know: unchanged ones cost next to nothing.
With --execute, missing events are folded and differing events at Google are looked at and put right by the service.

  meet-projector verify
  meet-projector verify --google --sample 5
  meet-projector verify --google --teacher tch_42 --execute --reason 'calendar was restored'

Exit codes: 0 all agree, 1 something differs, 5 partly checked.")]
pub struct VerifyArgs {
    /// Ask Google too
    #[arg(long)]
    google: bool,
    /// Only this session
    #[arg(long, value_name = "ID", conflicts_with_all = ["teacher", "sample"])]
    session: Option<String>,
    /// Only this teacher's sessions
    #[arg(long, value_name = "ID")]
    teacher: Option<String>,
    /// Only so many of a hundred sessions, the same ones each time; the stream is not read from end to end then
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100))]
    sample: Option<u8>,
    #[command(flatten)]
    limits: Limits,
}

/// Runs the command.
pub async fn run(
    args: &VerifyArgs,
    environment: &BTreeMap<String, String>,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let usage = |error: crate::model::InvalidValue| CommandError::usage(error.to_string());
    let scope = Scope {
        session: args.session.as_deref().map(SessionId::parse).transpose().map_err(usage)?,
        teacher: args.teacher.as_deref().map(TeacherId::parse).transpose().map_err(usage)?,
        percent: args.sample,
    };
    let need = if args.google { Need::Google } else { Need::Nats };
    let desk = Desk::open(environment, need, "verify", clock, output).await?;
    let mut progress = Progress::new("verify", 0, desk.as_json());
    let (report, survey) = compare(&desk.source, &desk.store, &scope, &desk.policy, clock, &mut progress, &desk.stop())
        .await
        .map_err(|error| failed(&error))?;
    let at_google = if args.google { Some(ask_google(&desk, &scope, args.limits.rate).await?) } else { None };
    progress.end();

    let differs = !report.agrees() || at_google.as_ref().is_some_and(|google| !google.agrees());
    let mended = if args.limits.execute && differs {
        Some(mend(&desk, args, &scope, &report, at_google.as_ref(), survey.missing.first().map(|(at, _)| *at)).await?)
    } else {
        None
    };
    match output {
        Output::Json => print::json(
            out,
            &json!({
                "executed": mended.is_some(), "agrees": !differs, "stream": report, "google": at_google,
                "callsToGoogle": survey.calls.writes(), "calls": survey.calls, "mended": mended.as_ref().map(|(value, _)| value),
            }),
        )?,
        Output::Human => {
            show(&report, out)?;
            if let Some(google) = &at_google {
                show_google(google, out)?;
            }
            match &mended {
                Some((_, sentence)) => writeln!(out, "{sentence}")?,
                None if differs => {
                    writeln!(out, "{}", survey.calls)?;
                    writeln!(
                        out,
                        "Nothing was done. Add --execute --reason TEXT to fold what is missing and wake what differs."
                    )?;
                }
                None => writeln!(out, "{}", verdict(&report, at_google.as_ref()))?,
            }
        }
    }
    let is_partial = report.is_partial() || at_google.as_ref().is_some_and(GoogleReport::is_partial);
    Ok(if differs {
        Exit::No
    } else if is_partial {
        Exit::Partly
    } else {
        Exit::Ok
    })
}

async fn ask_google(desk: &Desk<'_>, scope: &Scope, rate: Option<u32>) -> Result<GoogleReport, CommandError> {
    let settings = service::google_config(&desk.config)?;
    let keys = KeyRing::new(&settings.encryption_key, &settings.encryption_keys_old)
        .map_err(|error| CommandError::configuration(error.to_string()))?;
    let gateway = google::gateway(&desk.config, settings, keys, &desk.store, desk.clock);
    let mut progress = Progress::new("google", 0, desk.as_json());
    let stop = desk.stop();
    google::compare(&gateway, &desk.store, scope, &desk.policy, rate, desk.clock, &mut progress, &stop)
        .await
        .map_err(|error| failed(&error))
}

/// Folds what is missing and wakes what differs.
async fn mend(
    desk: &Desk<'_>,
    args: &VerifyArgs,
    scope: &Scope,
    report: &Report,
    at_google: Option<&GoogleReport>,
    first_missing: Option<i64>,
) -> Result<(Value, String), CommandError> {
    let history = &desk.source.history;
    let first_unread = report.findings.iter().filter(|finding| matches!(finding.kind, "unread" | "unkept"));
    let first = first_unread.filter_map(|finding| finding.sequence).chain(first_missing).min();
    let selection = Selection {
        session: scope.session.as_ref().map(ToString::to_string),
        teacher: scope.teacher.as_ref().map(ToString::to_string),
        // With nothing missing, nothing is read.
        ..Selection::range(first.unwrap_or(history.last + 1), history.last)
    };
    let arguments = serde_json::to_value(&selection).expect("a struct of texts and numbers always serialises");
    let epoch = desk.source.record.epoch;
    let mut run = Run::new(Kind::Verify, epoch, arguments, selection.from - 1, selection.to, desk.clock.now());
    run.reason.clone_from(&args.limits.reason);
    run::begin(&desk.store, &run, desk.clock).await.map_err(|error| failed(&error.into()))?;
    desk.audit("verify", &run).await?;
    let mut progress = Progress::new("folding", 0, desk.as_json());
    let mut pace = Pace::new(args.limits.rate);
    let (store, source) = (&desk.store, &desk.source);
    let folded = execute(source, store, &mut run, &selection, &mut pace, desk.clock, &mut progress, &desk.stop()).await;
    progress.end();
    if let Err(error) = folded {
        run.state = State::Failed;
        desk.store.end_run(&run, desk.clock.now()).await?;
        return Err(failed(&error));
    }
    let differing = at_google.map(|google| google.differing.as_slice()).unwrap_or_default();
    let sessions: Vec<_> = differing.iter().map(|row| row.session.clone()).collect();
    store.watch_sessions(&run.id, &sessions).await?;
    let mut woken = 0;
    for rows in differing.chunks(500) {
        woken += store.wake_rows(rows, desk.clock.now()).await?;
    }
    let (proof, sentence) = desk.settle(&mut run, State::Finished, args.limits.wait).await?;
    let value = json!({ "run": run.id, "events": run.counts, "rowsWoken": woken, "proof": proof });
    let text = format!(
        "folded {} events anew, {} sessions changed; woke {woken} events at Google; {sentence}",
        thousands(run.counts.events),
        thousands(run.counts.sessions_changed)
    );
    Ok((value, text))
}

/// The last line where nothing differs: why the exit code is 0, or 5.
fn verdict(report: &Report, at_google: Option<&GoogleReport>) -> String {
    let (unsettled, unchecked) = at_google.map_or((0, 0), |google| (google.unsettled, google.unchecked));
    let is_stopped = report.is_stopped || at_google.is_some_and(|google| google.is_stopped);
    let open: Vec<String> = [
        (report.not_read_yet, "events are not read by the service yet: see `meet-projector status`"),
        (unsettled, "events at Google wait for a write or a teacher: see `meet-projector status`"),
        (unchecked, "events at Google were not checked, as said above"),
    ]
    .iter()
    .filter(|(number, _)| *number > 0)
    .map(|(number, what)| format!("; {} {what}", thousands(*number)))
    .chain(is_stopped.then(|| "; it was stopped before its end".to_owned()))
    .collect();
    if open.is_empty() {
        "everything agrees".to_owned()
    } else {
        format!("everything that was compared agrees{}", open.concat())
    }
}

fn show(report: &Report, out: &mut (dyn Write + Send)) -> Result<(), CommandError> {
    let rows = [
        ("events looked at", report.events),
        ("sessions looked at", report.sessions),
        ("missing: in the stream, not in the projection", report.missing),
        ("unread: passed over, never processed", report.unread),
        ("unkept: unreadable, no dead letter", report.unkept),
        ("extra: in the projection, not in the stream", report.extra),
        ("different: not what their event says", report.different),
        ("rows: not what their session wants", report.rows),
        ("expired: their event is no longer held", report.expired),
        ("not read yet by the service", report.not_read_yet),
        ("open dead letters", report.dead_letters),
        ("results not published yet", report.unpublished),
    ]
    .map(|(what, number)| vec![what.to_owned(), thousands(number)]);
    print::table(out, &["STREAM AND PROJECTION", "NUMBER"], &rows)?;
    if report.oldest_unpublished_seconds >= 300 {
        writeln!(out, "the oldest result waits for {} s", thousands(report.oldest_unpublished_seconds))?;
    }
    findings(&report.findings, out)
}

fn show_google(report: &GoogleReport, out: &mut (dyn Write + Send)) -> Result<(), CommandError> {
    let rows = [
        ("looked at", report.looked),
        ("unchanged (304)", report.unchanged),
        ("as wanted", report.agree),
        ("deleted", report.deleted),
        ("changed", report.changed),
        ("gone", report.gone),
        ("not settled yet", report.unsettled),
        ("not checked", report.unchecked),
    ]
    .map(|(what, number)| vec![what.to_owned(), thousands(number)]);
    print::table(out, &["EVENTS AT GOOGLE", "NUMBER"], &rows)?;
    for (why, number) in &report.why {
        writeln!(out, "not checked: {why} ({number})")?;
    }
    findings(&report.findings, out)
}

fn findings(findings: &[Finding], out: &mut (dyn Write + Send)) -> Result<(), CommandError> {
    if findings.is_empty() {
        return Ok(());
    }
    let rows: Vec<_> = findings
        .iter()
        .map(|finding| {
            vec![
                finding.kind.to_owned(),
                finding.session_id.clone().unwrap_or_else(|| "-".to_owned()),
                finding.sequence.map_or_else(|| "-".to_owned(), |sequence| sequence.to_string()),
                finding.what.clone(),
            ]
        })
        .collect();
    Ok(print::table(out, &["KIND", "SESSION", "SEQUENCE", "WHAT"], &rows)?)
}
