//! `meet-projector nats apply|check`: the streams and the consumer of `nats/*.json` against the server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::NatsConfig;
use crate::nats::definitions::{Definitions, Finding, apply, check};
use crate::nats::{NatsError, connect};

/// What to do about the definitions.
#[derive(Debug, Clone, Subcommand)]
pub enum NatsCommand {
    /// Create what is missing and change what differs; never deletes anything
    Apply(DefinitionArgs),
    /// Only compare; exit code 1 when something differs or is missing
    Check(DefinitionArgs),
}

/// Where the definitions come from.
#[derive(Debug, Clone, Default, Args)]
pub struct DefinitionArgs {
    /// Folder with bookings.stream.json, meet.stream.json and consumer.json instead of the built-in ones
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Copies of both streams that a cluster keeps: 1, 3 or 5 (3 in production)
    #[arg(long, value_parser = ["1", "3", "5"])]
    pub replicas: Option<String>,
}

/// What to print and how to exit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What goes to stdout, without the last line's end.
    pub text: String,
    /// 0 when everything is as it should be, else 1.
    pub exit_code: u8,
}

/// Runs the command; `as_json` is `--output json`.
pub async fn run(command: &NatsCommand, config: &NatsConfig, as_json: bool) -> Result<Report, NatsError> {
    let (NatsCommand::Apply(args) | NatsCommand::Check(args)) = command;
    let replicas = args.replicas.as_ref().and_then(|number| number.parse().ok());
    let definitions = Definitions::load(args.dir.as_deref(), config, replicas)?;
    let connection = connect(config, "meet-projector nats").await?;
    let (findings, agrees): (Vec<Finding>, bool) = match command {
        NatsCommand::Apply(_) => {
            let findings = apply(&connection, config, &definitions).await?;
            let settled = findings.iter().all(Finding::settled);
            (findings, settled)
        }
        NatsCommand::Check(_) => {
            let findings = check(&connection, config, &definitions).await?;
            let agrees = findings.iter().all(Finding::agrees);
            (findings, agrees)
        }
    };
    let text = if as_json {
        let findings: Vec<_> = findings.iter().map(Finding::to_json).collect();
        json!({ "asDefined": agrees, "findings": findings }).to_string()
    } else {
        findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    Ok(Report { text, exit_code: u8::from(!agrees) })
}
