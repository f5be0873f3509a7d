//! `audit list`: who did what, to what, why, and what came of it.

use std::io::Write;

use clap::Subcommand;
use serde_json::json;

use super::moment::{self, Moment};
use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::model::UnixMillis;
use crate::store::{Acted, ActedFilter, Store};

/// What to do with the audit.
#[derive(Debug, Clone, Subcommand)]
pub enum AuditCommand {
    /// Actions, newest first
    #[command(after_help = "\
Examples:
  meet-projector audit list --since 2h
  meet-projector audit list --target ses_8Kq2
  meet-projector audit list --action \"session retry\" --output json")]
    List {
        /// At or after: 2h, 3d, or 2026-12-01T09:00:00Z
        #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
        since: Option<Moment>,
        /// Only what was done to this: a session, `dead letter 7`, `reconcile tch_42`
        #[arg(long)]
        target: Option<String>,
        /// Only actions that begin with this: `session`, `pause`
        #[arg(long)]
        action: Option<String>,
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..=10_000))]
        limit: i64,
    },
}

/// Runs the command.
pub async fn run(
    command: &AuditCommand,
    store: &Store,
    now: UnixMillis,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let AuditCommand::List { since, target, action, limit } = command;
    let filter = ActedFilter {
        since: since.map(|since| since.before(now)),
        target: target.clone(),
        action: action.clone(),
        limit: *limit,
    };
    let actions = store.acted(&filter).await?;
    match output {
        Output::Json => print::json(out, &actions.iter().map(wire).collect::<Vec<_>>())?,
        Output::Human if actions.is_empty() => writeln!(out, "nothing was done that this shows")?,
        Output::Human => {
            let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let rows: Vec<_> = actions
                .iter()
                .map(|acted| {
                    vec![
                        moment::both(acted.at, now),
                        or_dash(&acted.actor),
                        acted.action.clone(),
                        acted.target.clone(),
                        or_dash(&acted.outcome),
                        or_dash(&acted.reason),
                    ]
                })
                .collect();
            print::table(out, &["WHEN", "WHO", "WHAT", "TO", "OUTCOME", "REASON"], &rows)?;
        }
    }
    Ok(Exit::Ok)
}

/// One action as JSON.
pub(super) fn wire(acted: &Acted) -> serde_json::Value {
    json!({
        "id": acted.id, "at": acted.at.to_rfc3339(), "actor": acted.actor, "action": acted.action,
        "target": acted.target, "reason": acted.reason, "outcome": acted.outcome,
    })
}
