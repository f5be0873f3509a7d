//! `dead-letter requeue`: named letters at once; all of a kind as a plan first.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::super::print::{self, Output};
use super::super::{CommandError, Exit};
use crate::clock::Clock;
use crate::store::{Actor, DeadLetterFilter, Requeued, Store};

/// Which letters to fold again.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  meet-projector dead-letter requeue 7 8                            at once
  meet-projector dead-letter requeue --all --class unknown_time_zone   what would come of it, and nothing else
  meet-projector dead-letter requeue --all --execute --reason \"release 1.4 knows the zone\"

The kept message is read with today's rules and folded at its own place in the stream: it is applied, or it is stale
because newer events of its session are known, or it is still refused and stays open with today's reason. To correct an
event, publish a corrected one with a higher version; a letter itself is never changed.

Exit codes: 0 all are done with (or only planned), 5 some, 1 none.")]
pub struct RequeueArgs {
    /// Letters to requeue at once
    #[arg(value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<i64>,
    /// All open letters; prints the plan
    #[arg(long)]
    all: bool,
    /// With --all: only this class
    #[arg(long, requires = "all")]
    class: Option<String>,
    /// Carry the plan out
    #[arg(long, requires_all = ["all", "reason"])]
    execute: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// With --all: letters a second
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rate: u32,
}

/// Letters folded in one transaction.
const CHUNK: usize = 50;

/// How long a chunk takes at one letter a second.
const CHUNK_SECONDS: Duration = Duration::from_secs(50);

/// Runs the command.
pub async fn run(
    args: &RequeueArgs,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let ids = if args.all { all_open(args, store).await? } else { args.ids.clone() };
    let executed = args.execute || !args.all;
    let actor = Actor::of_process();
    let mut outcomes = Vec::with_capacity(ids.len());
    for (at, chunk) in ids.chunks(CHUNK).enumerate() {
        if !executed {
            outcomes.extend(store.requeue_plan(chunk, clock.now()).await?);
            continue;
        }
        if at > 0 && args.all {
            tokio::time::sleep(CHUNK_SECONDS / args.rate).await;
        }
        outcomes.extend(store.requeue(chunk, &actor, args.reason.as_deref(), clock.now()).await?);
    }
    match output {
        Output::Json => print::json(out, &wire(&outcomes, executed))?,
        Output::Human => show(&outcomes, executed, out)?,
    }
    let done = outcomes.iter().filter(|(_, outcome)| outcome.is_done()).count();
    Ok(match done {
        _ if !executed => Exit::Ok,
        n if n == outcomes.len() => Exit::Ok,
        0 => Exit::No,
        _ => Exit::Partly,
    })
}

/// The ids of all open letters, in the order of the stream as nearly as the ids tell it.
async fn all_open(args: &RequeueArgs, store: &Store) -> Result<Vec<i64>, CommandError> {
    let mut filter = DeadLetterFilter {
        class: args.class.clone(),
        state: Some("open".to_owned()),
        limit: 200,
        ..DeadLetterFilter::default()
    };
    let mut ids = Vec::new();
    loop {
        let page = store.find_dead_letters(&filter).await?;
        filter.before = page.last().map(|letter| letter.id);
        let is_last = page.len() < 200;
        ids.extend(page.iter().map(|letter| letter.id));
        if is_last {
            ids.reverse();
            return Ok(ids);
        }
    }
}

fn sentence(outcome: &Requeued) -> String {
    match outcome {
        Requeued::Unknown => "there is no such letter; `dead-letter list` prints the ids".to_owned(),
        Requeued::Already => "was requeued before; nothing was done".to_owned(),
        Requeued::NoMessage => "its message is still being read back from the stream; try again in a minute".to_owned(),
        Requeued::Applied { .. } => "applied".to_owned(),
        Requeued::Stale { version, sequence } => {
            format!("stale: version {version} of the session (sequence {sequence}) is newer, so nothing changed")
        }
        Requeued::Duplicate => "the same event was folded before; nothing changed".to_owned(),
        Requeued::Refused { class, reason } => format!("still refused ({class}): {reason}"),
    }
}

fn calls(outcomes: &[(i64, Requeued)]) -> (usize, i64) {
    let applied = outcomes.iter().filter_map(|(_, outcome)| match outcome {
        Requeued::Applied { calls } => Some(*calls),
        _ => None,
    });
    applied.fold((0, 0), |(count, sum), calls| (count + 1, sum + calls))
}

fn wire(outcomes: &[(i64, Requeued)], executed: bool) -> serde_json::Value {
    let items: Vec<_> = outcomes
        .iter()
        .map(|(id, outcome)| json!({"id": id, "outcome": outcome.as_str(), "detail": sentence(outcome)}))
        .collect();
    let (applied, calls) = calls(outcomes);
    json!({
        "executed": executed, "letters": outcomes.len(), "applied": applied, "callsAtMost": calls, "items": items,
    })
}

fn show(outcomes: &[(i64, Requeued)], executed: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    if outcomes.is_empty() {
        return writeln!(out, "no open dead letters of that kind");
    }
    for (id, outcome) in outcomes {
        writeln!(out, "dead letter {id}: {}", sentence(outcome))?;
    }
    if !executed {
        let (applied, calls) = calls(outcomes);
        writeln!(out, "{applied} of {} would be applied, with at most {calls} requests to Google.", outcomes.len())?;
        writeln!(out, "Nothing was done. Add --execute --reason TEXT to do it.")?;
    }
    Ok(())
}
