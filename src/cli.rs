//! The command line: one file a subcommand. Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration, 4 a dependency cannot be
//! reached, 5 partly done.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::clock::Clock;
use crate::config::{Config, ConfigErrors, Need, process_environment};
use crate::credential::KeyRing;
use crate::service;
use crate::store::{Store, StoreError};
use crate::telemetry::{self, Chain, TelemetryGuard};

pub mod audit;
pub mod config;
pub mod credential;
pub mod dead_letter;
#[cfg(feature = "dev")]
pub mod dev;
pub mod doctor;
pub mod epoch;
pub mod event;
mod healthcheck;
pub mod keys;
mod moment;
pub mod nats;
pub mod pause;
pub mod print;
pub mod rebuild;
pub mod replay;
pub mod session;
pub mod status;
pub mod teacher;
pub mod token;
pub mod verify;
pub mod work;

use print::Output;

/// Booking events in, Google Meet links out.
///
/// Reads booking events from NATS JetStream, makes each teacher's Google Calendar agree with them, and serves status and
/// Meet link of every session. Settings are environment variables: `meet-projector config example` lists them.
#[derive(Debug, Parser)]
#[command(name = "meet-projector", version, about, long_about, after_help = AFTER_HELP, max_term_width = 120)]
struct Cli {
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
First steps:
  meet-projector dev                     everything on this machine, Google is a fake
  meet-projector config example > .env   every setting, explained
  meet-projector nats apply              create the streams and the consumer
  meet-projector serve                   run it

Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration, 4 a dependency cannot be reached, 5 partly done.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: consumer, reconciler, results and API
    Serve,
    /// Run everything on this machine: NATS, a fake Google, sample lessons, the service
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Ask the service on this machine whether it lives
    ///
    /// For containers and scripts: asks /livez (or /readyz) on ADMIN_ADDR, or else HTTP_ADDR. Exit codes: 0 it is well,
    /// 1 it says that it is not, 4 nobody answers.
    Healthcheck {
        /// Ask whether it can do its work: database, schema, NATS and stream
        #[arg(long)]
        ready: bool,
    },
    /// Bring the database schema up to date
    Migrate,
    /// Streams and durable consumer on the NATS server
    #[command(subcommand)]
    Nats(nats::NatsCommand),
    /// The incarnation of the stream that is being read
    #[command(subcommand)]
    Epoch(epoch::EpochCommand),
    /// What the environment says, and what is wrong with it
    #[command(subcommand)]
    Config(config::ConfigAction),
    /// What is wrong, on one screen; exit code 1 when a person is needed
    Status(status::StatusArgs),
    /// Check everything the service depends on, with a fix for what is wrong
    Doctor(doctor::DoctorArgs),
    /// One session: its story, and another try
    #[command(subcommand)]
    Session(session::SessionCommand),
    /// Read a part of the stream once more; shows its plan first
    Replay(replay::ReplayArgs),
    /// Fold the whole stream anew beside what is served, compare, and swap
    Rebuild(rebuild::RebuildArgs),
    /// Compare stream, projection and results, and Google with --google
    Verify(verify::VerifyArgs),
    /// Messages that were given up on
    #[command(subcommand)]
    DeadLetter(dead_letter::DeadLetterCommand),
    /// Hold ingest or the work on calendars, in all processes
    #[command(subcommand, after_help = pause::PAUSE_HELP)]
    Pause(pause::PauseCommand),
    /// Let what was paused go on
    #[command(subcommand, after_help = pause::RESUME_HELP)]
    Resume(pause::ResumeCommand),
    /// Who did what, and why
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Teachers' Google credentials
    #[command(subcommand)]
    Credential(CredentialCommand),
    /// The keys that seal the teachers' tokens
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Teachers and their connections to Google
    #[command(subcommand)]
    Teacher(teacher::TeacherCommand),
    /// API tokens
    #[command(subcommand)]
    Token(token::TokenAction),
    /// Booking events: check and publish files
    #[command(subcommand)]
    Event(event::EventCommand),
    /// Print the OpenAPI document of the HTTP API
    Openapi,
    /// Print the AsyncAPI document of the events
    Asyncapi,
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
enum CredentialCommand {
    /// Store grants from a file of JSON lines: {"teacherId","email","googleSub","refreshToken","calendarId"?}
    Seed {
        /// The file; - reads standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
}

/// What a command ends with when nothing failed outright.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Ok,
    /// 1: the command ran and its answer is no (an invalid event, a difference).
    No,
    /// 3: the answer is no, and the configuration is at fault.
    Configuration,
    /// 4: the answer is no, because a dependency cannot be reached.
    Unreachable,
    /// 5: partly done.
    Partly,
}

/// Why a command ended without success, with its exit code.
#[derive(Debug)]
pub struct CommandError {
    code: u8,
    message: String,
}

impl CommandError {
    /// Exit code 1.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// Exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Exit code 3.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// Exit code 4.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { code: 4, message: message.into() }
    }

    /// An error with its causes, and its exit code.
    fn of(error: &dyn std::error::Error, code: u8) -> Self {
        Self { code, message: Chain(error).to_string() }
    }
}

impl From<io::Error> for CommandError {
    /// Writing to standard output failed: a reader that went away had what it wanted.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { code: 0, message: String::new() };
        }
        Self::failed(format!("cannot write the result: {error}"))
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let message = Chain(&error).to_string();
        match error {
            StoreError::Configuration(_) => Self::configuration(message),
            StoreError::Unavailable { .. } => Self::unreachable(message),
            _ => Self::failed(message),
        }
    }
}

impl From<ConfigErrors> for CommandError {
    fn from(errors: ConfigErrors) -> Self {
        Self::configuration(errors.to_string())
    }
}

/// The whole command line, for documents and tests that hold to it.
pub fn command() -> clap::Command {
    Cli::command()
}
/// How long blocking calls that nobody waits for any more may hold up the end.
const BLOCKING_CALLS: Duration = Duration::from_millis(500);

/// Parses the arguments, runs the command, and turns its end into an exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One TLS provider for the process; a second installation says so and changes nothing.
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::from(1);
        }
    };
    let mut out = io::stdout();
    let ended = runtime.block_on(run(cli, &mut out));
    // Not by dropping it: that waits for blocking calls, such as the lookup of a name, for as long as they take.
    runtime.shutdown_timeout(BLOCKING_CALLS);
    match ended {
        Ok(Exit::Ok) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Ok(Exit::Configuration) => ExitCode::from(3),
        Ok(Exit::Unreachable) => ExitCode::from(4),
        Ok(Exit::Partly) => ExitCode::from(5),
        Err(error) => {
            if !error.message.is_empty() {
                eprintln!("error: {}", error.message);
            }
            ExitCode::from(error.code)
        }
    }
}

async fn run(cli: Cli, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    let environment = process_environment();
    let output = cli.output;
    let clock = Clock::of_process();
    match cli.command {
        Command::Serve => {
            let config = Config::load(&environment, Need::Serve)?;
            service::serve(config, clock).await
        }
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(&args, out).await,
        Command::Healthcheck { ready } => healthcheck::run(ready, &environment, output, out).await,
        Command::Migrate => {
            let store = open(&environment).await?;
            let applied = store.migrate().await?;
            if applied.is_empty() {
                writeln!(out, "the schema is up to date")?;
            }
            for name in applied {
                writeln!(out, "applied {name}")?;
            }
            Ok(Exit::Ok)
        }
        Command::Nats(command) => {
            let config = Config::load(&environment, Need::Nats)?;
            let report = nats::run(&command, &config.nats, output == Output::Json).await;
            show(&report.map_err(|error| CommandError::of(&error, error.exit_code()))?, out)
        }
        Command::Epoch(command) => {
            let config = Config::load(&environment, Need::Nats)?;
            let store = migrated(&environment).await?;
            let report = epoch::run(&command, &config.nats, &store, &clock, output == Output::Json).await;
            show(&report.map_err(|error| CommandError::of(&error, error.exit_code()))?, out)
        }
        Command::Config(action) => Ok(match config::run(action, &environment, output == Output::Json, out)? {
            0 => Exit::Ok,
            _ => Exit::Configuration,
        }),
        Command::Status(args) => {
            let config = Config::load(&environment, Need::Database)?;
            status::run(&args, &migrated(&environment).await?, &config.nats, &clock, output, out).await
        }
        Command::Doctor(doctor::DoctorArgs {}) => doctor::run(&environment, &clock, output, out).await,
        Command::Session(command) => {
            let config = Config::load(&environment, Need::Database)?;
            session::run(&command, &migrated(&environment).await?, &config.nats, &clock, output, out).await
        }
        Command::DeadLetter(command) => {
            dead_letter::run(&command, &migrated(&environment).await?, &clock, output, out).await
        }
        Command::Pause(command) => pause::pause(&command, &migrated(&environment).await?, &clock, output, out).await,
        Command::Resume(command) => pause::resume(&command, &migrated(&environment).await?, &clock, output, out).await,
        Command::Audit(command) => audit::run(&command, &migrated(&environment).await?, clock.now(), output, out).await,
        Command::Replay(args) => replay::run(&args, &environment, &clock, output, out).await,
        Command::Rebuild(args) => rebuild::run(&args, &environment, &clock, output, out).await,
        Command::Verify(args) => verify::run(&args, &environment, &clock, output, out).await,
        Command::Credential(command) => {
            let config = Config::load(&environment, Need::Google)?;
            let google = service::google_config(&config)?;
            let keys = key_ring(&config)?;
            let store = migrated(&environment).await?;
            let CredentialCommand::Seed { file } = command;
            credential::seed(&store, &keys, &google.scopes, &file, clock.now())
                .await
                .map(|_| Exit::Ok)
                .map_err(|error| CommandError::of(&error, 1))
        }
        Command::Keys(command) => {
            let keys = key_ring(&Config::load(&environment, Need::Google)?)?;
            keys::run(&command, &migrated(&environment).await?, &keys, &clock, output, out).await
        }
        Command::Teacher(teacher::TeacherCommand::Disconnect(args)) => {
            let config = Config::load(&environment, Need::Google)?;
            let google = service::google_config(&config)?;
            teacher::disconnect::run(&args, google, &migrated(&environment).await?, &clock, output, out).await
        }
        Command::Teacher(command) => teacher::run(&command, &migrated(&environment).await?, &clock, output, out).await,
        Command::Token(action) => {
            let store = migrated(&environment).await?;
            token::run(&action, &store, &clock, output == Output::Json, out, &mut io::stderr())
                .await
                .map(|()| Exit::Ok)
                .map_err(|error| CommandError { code: error.exit_code(), message: error.to_string() })
        }
        Command::Event(command) => event::run(&command, &environment, output, out).await,
        Command::Openapi => Ok(write!(out, "{}", crate::api::openapi::OPENAPI).map(|()| Exit::Ok)?),
        Command::Asyncapi => Ok(write!(out, "{}", event::ASYNCAPI).map(|()| Exit::Ok)?),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "meet-projector", &mut script);
            Ok(out.write_all(&script).map(|()| Exit::Ok)?)
        }
    }
}

/// The keys that seal the teachers' tokens.
fn key_ring(config: &Config) -> Result<KeyRing, CommandError> {
    let google = service::google_config(config)?;
    KeyRing::new(&google.encryption_key, &google.encryption_keys_old)
        .map_err(|error| CommandError::configuration(error.to_string()))
}

/// Prints a report; its exit code is 0, or 1 where the answer is no.
fn show(report: &nats::Report, out: &mut (dyn Write + Send)) -> Result<Exit, CommandError> {
    writeln!(out, "{}", report.text)?;
    Ok(if report.exit_code == 0 { Exit::Ok } else { Exit::No })
}

async fn open(environment: &BTreeMap<String, String>) -> Result<Store, CommandError> {
    let config = Config::load(environment, Need::Database)?;
    Ok(Store::open(&config.database).await?)
}

/// A database whose schema is the one this program needs.
async fn migrated(environment: &BTreeMap<String, String>) -> Result<Store, CommandError> {
    let store = open(environment).await?;
    store.check_schema().await?;
    Ok(store)
}

/// Starts logging for a long-running command.
pub(crate) fn start_logging(config: &Config) -> Result<TelemetryGuard, CommandError> {
    let guard = telemetry::init(&config.telemetry).map_err(|error| CommandError::configuration(error.to_string()))?;
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    Ok(guard)
}
