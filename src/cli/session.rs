//! `session show|retry`: the story of one session, and another try.

use std::io::Write;

use clap::Subcommand;

use super::print::Output;
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::store::Store;

mod next;
pub mod retry;
pub mod show;

/// What to do with a session.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// Its story: events on the stream, what is wanted, what Google holds, what was done, what is next and why
    Show(show::ShowArgs),
    /// Make unfinished work due now, or say why that cannot help
    Retry(retry::RetryArgs),
}

/// Runs the command.
pub async fn run(
    command: &SessionCommand,
    store: &Store,
    nats: &NatsConfig,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    match command {
        SessionCommand::Show(args) => show::run(args, store, nats, clock.now(), output, out).await,
        SessionCommand::Retry(args) => retry::run(args, store, clock, output, out).await,
    }
}
