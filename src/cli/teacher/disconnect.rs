//! `teacher disconnect`: gives up a teacher's Google account.

use std::io::Write;
use std::sync::Arc;

use clap::Args;

use crate::cli::print::{self, Output};
use crate::cli::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::GoogleConfig;
use crate::connect::Disconnector;
use crate::credential::KeyRing;
use crate::model::TeacherId;
use crate::store::{Actor, DisconnectPhase, Store};

/// How to disconnect.
#[derive(Debug, Args)]
pub struct DisconnectArgs {
    /// The teacher's id in the booking backend
    pub id: String,
    /// Remove the teacher's future events from the calendar first
    #[arg(long)]
    pub remove_events: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

/// Disconnects a teacher. Exit code 0 when done, 5 when it goes on in the service.
pub async fn run(
    args: &DisconnectArgs,
    google: &GoogleConfig,
    store: &Store,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    let teacher = TeacherId::parse(args.id.as_str()).map_err(|error| CommandError::usage(error.to_string()))?;
    let keys = KeyRing::new(&google.encryption_key, &google.encryption_keys_old)
        .map_err(|error| CommandError::configuration(error.to_string()))?;
    let disconnector =
        Disconnector::new(google, store.clone(), Arc::new(keys), clock.clone(), Arc::new(tokio::sync::Notify::new()));
    let seen = disconnector.disconnect(&teacher, args.remove_events, &Actor::of_process(), Some(&args.reason)).await?;
    let Some(seen) = seen else {
        return Err(CommandError::failed(format!("teacher {teacher} never connected Google: there is nothing to do")));
    };
    let document = crate::api::oauth::document(&seen);
    match output {
        Output::Json => print::json(out, &document)?,
        Output::Human => writeln!(out, "{teacher}: {}", document["message"].as_str().unwrap_or_default())?,
    }
    Ok(if seen.phase == DisconnectPhase::Done { Exit::Ok } else { Exit::Partly })
}
