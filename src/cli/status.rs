//! `status`: what is wrong, on one screen.

use std::io::{self, Write};
use std::time::Duration;

use clap::Args;

use super::print::{self, Output};
use super::{CommandError, Exit};
use crate::clock::Clock;
use crate::config::NatsConfig;
use crate::store::Store;

mod attention;
mod gather;
mod screen;

/// How to look.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  meet-projector status
  meet-projector status --watch          redrawn every 2 seconds; Ctrl-C ends it
  meet-projector status --output json | jq .attention

Exit code 0 when all is well, 1 when a person is needed: the service does not run or cannot reach NATS, the stream needs a
decision, Google refuses this installation, a lesson within the next hour (or one that runs) has no link, teachers have
to connect, other errors need a person, dead letters are open, something is paused without an end, or events or results
have waited for more than five minutes. 4 when the database cannot be reached.")]
pub struct StatusArgs {
    /// Redraw, every 2 seconds unless told otherwise
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
}

/// Runs the command.
pub async fn run(
    args: &StatusArgs,
    store: &Store,
    nats: &NatsConfig,
    clock: &Clock,
    output: Output,
    out: &mut (dyn Write + Send),
) -> Result<Exit, CommandError> {
    loop {
        let now = clock.now();
        let seen = gather::gather(store, nats, now).await?;
        let attention = attention::attention(&seen, now);
        let mut screen = Vec::new();
        match output {
            Output::Json => print::json(&mut screen, &screen::wire(&seen, &attention, now))?,
            Output::Human => screen::draw(&seen, &attention, now, &mut screen)?,
        }
        if args.watch.is_some() && output == Output::Human && io::IsTerminal::is_terminal(&io::stdout()) {
            // Home, then clear what is below each line's end and the screen's: no flicker.
            write!(out, "\u{1b}[H\u{1b}[2J")?;
        }
        out.write_all(&screen)?;
        out.flush()?;
        let Some(seconds) = args.watch else {
            return Ok(if attention.is_empty() { Exit::Ok } else { Exit::No });
        };
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}
