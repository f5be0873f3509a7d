//! What the commands that do long work share: their way to stream and database, their limits, and how they end.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::print::{self, Output};
use super::{CommandError, Exit, migrated};
use crate::clock::Clock;
use crate::config::{Config, Need};
use crate::model::UnixMillis;
use crate::plan::Policy;
use crate::run::effects::{self, is_serving, until_done};
use crate::run::source::Source;
use crate::run::{Run, RunError, State, WorkError, thousands};
use crate::service;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Chain;

/// Options of every command that can change many sessions.
#[derive(Debug, Clone, Default, Args)]
pub struct Limits {
    /// Do it; without this only the plan is shown
    #[arg(long, requires = "reason")]
    pub execute: bool,
    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// At most so many events a second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Wait so long for what follows at Google, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub wait: u64,
}

/// Stream, database and settings of one command.
pub struct Desk<'a> {
    /// All settings.
    pub config: Config,
    /// The database.
    pub store: Store,
    /// The stream, known to be the one the database was made of.
    pub source: Source,
    /// Settings that change what is wanted.
    pub policy: Policy,
    /// The time.
    pub clock: &'a Clock,
    /// The first Ctrl-C stops after what is under way.
    pub shutdown: Shutdown,
    /// How results are printed.
    pub output: Output,
}

impl<'a> Desk<'a> {
    /// Opens everything; `need` says whether Google is needed too.
    pub async fn open(
        environment: &BTreeMap<String, String>,
        need: Need,
        name: &str,
        clock: &'a Clock,
        output: Output,
    ) -> Result<Self, CommandError> {
        let config = Config::load(environment, need)?;
        let store = migrated(environment).await?;
        let source = Source::open(&config.nats, &store, &format!("meet-projector {name}"))
            .await
            .map_err(|error| CommandError::of(&error, error.exit_code()))?;
        let shutdown = Shutdown::on_signals()
            .map_err(|error| CommandError::failed(format!("cannot listen for signals: {error}")))?;
        let policy = policy(&config);
        Ok(Self { config, store, source, policy, clock, shutdown, output })
    }

    /// Whether results are JSON.
    pub fn as_json(&self) -> bool {
        self.output == Output::Json
    }

    /// Whether somebody pressed Ctrl-C.
    pub fn stop(&self) -> impl Fn() -> bool + use<> {
        let shutdown = self.shutdown.clone();
        move || shutdown.is_asked()
    }

    /// Lets go of a run that was asked to stop, or that failed, so that it can be gone on with at once.
    pub async fn let_go(&self, run: &mut Run, how: &str, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
        if run.state == State::Running {
            run.state = State::Stopped;
        }
        self.store.end_run(run, self.clock.now()).await?;
        let command = format!("meet-projector {} --resume {}", run.kind.as_str(), run.id);
        match self.output {
            Output::Json => print::json(
                out,
                &json!({ "run": run.id, "state": "stopped", "cursor": run.cursor, "goal": run.goal,
                         "counts": run.counts, "resume": command }),
            )?,
            Output::Human => writeln!(
                out,
                "{how} at sequence {} of {}; go on with: {command}",
                thousands(run.cursor),
                thousands(run.goal)
            )?,
        }
        Ok(Exit::Partly)
    }

    /// Ends a run whose sessions are folded: waits for what follows at Google, and returns the proof of it.
    pub async fn settle(&self, run: &mut Run, state: State, wait: u64) -> Result<(Value, String), CommandError> {
        let is_serving = is_serving(&self.source.connection, &self.source.record)
            .await
            .map_err(|error| CommandError::of(&error, error.exit_code()))?;
        // Without a service nothing will happen, however long one waits.
        let patience = Duration::from_secs(if is_serving { wait } else { 0 });
        let effects = until_done(&self.store, run, self.clock, patience, self.stop())
            .await
            .map_err(|error| failed(&error.into()))?;
        let proof = effects::json(&effects, is_serving);
        run.state = state;
        run.proof = Some(proof.clone());
        self.store.end_run(run, self.clock.now()).await?;
        self.store.forget_effects(&run.id).await?;
        Ok((proof, effects::sentence(&effects, is_serving)))
    }

    /// Notes in the audit that a run was begun, gone on with or ended.
    pub async fn audit(&self, action: &str, run: &Run) -> Result<(), CommandError> {
        Ok(self.store.audit(action, &run.id, run.reason.as_deref(), self.clock.now()).await?)
    }
}

/// Settings that change what is wanted at Google.
pub fn policy(config: &Config) -> Policy {
    Policy {
        environment: config.environment.clone(),
        attendees: config.google.as_ref().is_some_and(|google| google.attendees),
        repairs_max: service::REPAIRS_MAX,
    }
}

/// The error of a command whose work ended early.
pub fn failed(error: &WorkError) -> CommandError {
    match error {
        WorkError::Run(RunError::Unknown { .. }) => CommandError::usage(error.to_string()),
        _ => CommandError::of(error, error.exit_code()),
    }
}

/// A place in time or in the stream, as options take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// A stream sequence.
    Sequence(i64),
    /// A moment.
    Time(UnixMillis),
}

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(sequence) = text.parse::<i64>() {
            return if sequence > 0 { Ok(Self::Sequence(sequence)) } else { Err("sequences begin at 1".to_owned()) };
        }
        UnixMillis::parse_rfc3339(text)
            .map(Self::Time)
            .map_err(|_| "a stream sequence, or a time such as 2026-12-01T09:00:00Z".to_owned())
    }
}

/// A time as options take it.
pub fn time(text: &str) -> Result<UnixMillis, String> {
    UnixMillis::parse_rfc3339(text).map_err(|error| error.to_string())
}

/// What a person reads when work that can be resumed was broken off by an error.
pub fn broken_off(error: &WorkError) -> String {
    format!("broken off ({})", Chain(error))
}
