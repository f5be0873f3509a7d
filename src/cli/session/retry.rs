//! `session retry`: named sessions at once; all that fail as a plan first.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::print::{self, Output};
use super::super::{CommandError, Exit};
use crate::clock::Clock;
use crate::model::{SessionId, TeacherId};
use crate::plan::Code;
use crate::store::{Actor, FailedFilter, RetryOutcome, Store};

/// Which sessions to retry.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  meet-projector session retry ses_8Kq2 ses_9Lm3          at once
  meet-projector session retry --failed                   what would be retried, and nothing else
  meet-projector session retry --failed --code MEET_FAILED --execute --reason \"Google was down\" --rate 5

A retry makes the work of a session due now, forgets a verdict that waits for a person (MEET_NOT_ALLOWED,
EVENT_REMOVED_BY_TEACHER, …) and lets automatic repairs begin anew. It never makes a second event: ids stay.
Where it cannot help, the reason and the next step are printed.

Exit codes: 0 all were retried (or only planned), 5 some, 1 none.")]
pub struct RetryArgs {
    /// Sessions to retry at once
    #[arg(value_name = "ID", required_unless_present = "failed", conflicts_with = "failed")]
    ids: Vec<String>,
    /// All sessions that wait with a reason and are not over; prints the plan
    #[arg(long)]
    failed: bool,
    /// With --failed: only those with this reason, such as GOOGLE_UNAVAILABLE
    #[arg(long, requires = "failed", value_parser = code)]
    code: Option<Code>,
    /// With --failed: only those of this teacher
    #[arg(long, value_name = "ID", requires = "failed", value_parser = super::super::pause::teacher)]
    teacher: Option<TeacherId>,
    /// Carry the plan out
    #[arg(long, requires_all = ["failed", "reason"])]
    execute: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Sessions a second; the rate limits towards Google hold beside it
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
}

fn code(word: &str) -> Result<Code, String> {
    let known = Code::WORDS.iter().find(|(_, known)| known.eq_ignore_ascii_case(word));
    known.map(|(code, _)| *code).ok_or_else(|| {
        let all: Vec<_> = Code::WORDS.iter().map(|(_, word)| *word).collect();
        format!("allowed are {}", all.join(", "))
    })
}

/// Sessions planned in one look at the database.
const CHUNK: usize = 256;

/// Runs the command.
pub async fn run(
    args: &RetryArgs,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let (ids, executed) = if args.failed {
        let filter = FailedFilter { code: args.code, teacher: args.teacher.clone() };
        (store.failed_sessions(&filter, clock.now()).await?, args.execute)
    } else {
        let parse = |id: &String| SessionId::parse(id.as_str()).map_err(|error| CommandError::usage(error.0));
        (args.ids.iter().map(parse).collect::<Result<_, _>>()?, true)
    };
    let mut outcomes = Vec::with_capacity(ids.len());
    if executed {
        outcomes = execute(&ids, args, store, clock).await?;
    } else {
        for chunk in ids.chunks(CHUNK) {
            outcomes.extend(store.retry_plan(chunk, clock.now()).await?);
        }
    }
    match output {
        Output::Json => print::json(out, &wire(&outcomes, executed))?,
        Output::Human => show(&outcomes, executed, args, out)?,
    }
    let accepted = outcomes.iter().filter(|(_, outcome)| matches!(outcome, RetryOutcome::Accepted { .. })).count();
    Ok(match accepted {
        _ if !executed => Exit::Ok,
        n if n == outcomes.len() => Exit::Ok,
        0 => Exit::No,
        _ => Exit::Partly,
    })
}

/// `--rate` a second. Stopping it in the middle loses nothing: what was retried is retried, and the plan shows the rest.
async fn execute(
    ids: &[SessionId],
    args: &RetryArgs,
    store: &Store,
    clock: &Clock,
) -> Result<Vec<(SessionId, RetryOutcome)>, CommandError> {
    let actor = Actor::of_process();
    let chunk = if args.failed { usize::try_from(args.rate).unwrap_or(CHUNK).min(CHUNK) } else { CHUNK };
    let pause = Duration::from_secs(1) * u32::try_from(chunk).unwrap_or(u32::MAX) / args.rate;
    let is_watched = args.failed && io::IsTerminal::is_terminal(&io::stderr());
    let mut outcomes = Vec::with_capacity(ids.len());
    for (at, chunk) in ids.chunks(chunk).enumerate() {
        if at > 0 && args.failed {
            tokio::time::sleep(pause).await;
        }
        outcomes.extend(store.retry(chunk, &actor, args.reason.as_deref(), clock.now()).await?);
        if is_watched {
            eprint!("\r{} of {} sessions", outcomes.len(), ids.len());
        }
    }
    if is_watched {
        eprintln!();
    }
    Ok(outcomes)
}

fn wire(outcomes: &[(SessionId, RetryOutcome)], executed: bool) -> serde_json::Value {
    let sessions: Vec<_> = outcomes
        .iter()
        .map(|(id, outcome)| match outcome {
            RetryOutcome::Unknown => {
                json!({"sessionId": id.as_str(), "accepted": false, "code": "SESSION_NOT_FOUND",
                       "reason": "no event of it was ever folded", "nextStep": null, "callsAtMost": 0})
            }
            RetryOutcome::Refused(why) => json!({"sessionId": id.as_str(), "accepted": false, "code": why.code,
                       "reason": why.reason, "nextStep": why.next_step, "callsAtMost": 0}),
            RetryOutcome::Accepted { calls } => json!({"sessionId": id.as_str(), "accepted": true, "code": null,
                       "reason": null, "nextStep": null, "callsAtMost": calls}),
        })
        .collect();
    let (accepted, calls) = totals(outcomes);
    json!({
        "executed": executed, "sessions": outcomes.len(), "accepted": accepted, "callsAtMost": calls, "items": sessions,
    })
}

fn totals(outcomes: &[(SessionId, RetryOutcome)]) -> (usize, i64) {
    let accepted = outcomes.iter().filter_map(|(_, outcome)| match outcome {
        RetryOutcome::Accepted { calls } => Some(*calls),
        _ => None,
    });
    accepted.fold((0, 0), |(count, sum), calls| (count + 1, sum + calls))
}

fn show(
    outcomes: &[(SessionId, RetryOutcome)],
    executed: bool,
    args: &RetryArgs,
    out: &mut (dyn Write + Send),
) -> io::Result<()> {
    if outcomes.is_empty() {
        return writeln!(out, "no session waits with a reason: there is nothing to retry");
    }
    for (id, outcome) in outcomes {
        match outcome {
            RetryOutcome::Unknown => {
                writeln!(out, "session {id}: no event of it was ever folded; look for it with `dead-letter list`")?;
            }
            RetryOutcome::Refused(why) => {
                writeln!(out, "session {id}: a retry cannot help ({}): {}", why.code, why.reason)?;
                writeln!(out, "  next step: {}", why.next_step)?;
            }
            RetryOutcome::Accepted { .. } if args.failed => {}
            RetryOutcome::Accepted { .. } => {
                writeln!(
                    out,
                    "session {id}: due now; `session show {id}` tells what comes of it within a few seconds"
                )?;
            }
        }
    }
    if !args.failed {
        return Ok(());
    }
    let (accepted, calls) = totals(outcomes);
    let refused = outcomes.len() - accepted;
    let (sessions, calls) = (print::count(accepted, "session"), print::count(calls, "request"));
    if executed {
        return writeln!(out, "{sessions} due now, with at most {calls} to Google at once; {refused} left alone.");
    }
    writeln!(out, "{sessions} would be due at once, with at most {calls} to Google; {refused} would be left alone.")?;
    writeln!(out, "Nothing was done. Add --execute --reason TEXT to do it, {} sessions a second (--rate).", args.rate)
}
