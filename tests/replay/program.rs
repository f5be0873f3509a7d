//! The program as a child process beside the service of a world, and ways to do harm to a projection.

use std::process::{Child, Command, Stdio};

use meet_projector::model::Epoch;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use sqlx::Connection as _;

use crate::support::service::World;

/// What a run of the program left.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ended {
    /// The JSON document on standard output, of a run that ended with this code.
    #[track_caller]
    pub(super) fn json(&self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "{self:#?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }

    /// What it printed, of a run that ended with this code.
    #[track_caller]
    pub(super) fn text(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        [self.out, self.err].concat()
    }
}

fn command(world: &World, args: &[&str], crash_at: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
    command.args(args).env_clear().envs(&world.environment);
    command.env("DATABASE_URL", world.config.database.0.expose_secret());
    command.env("NATS_URL", world.config.nats.url.expose_secret());
    if let Some(place) = crash_at {
        command.env("CRASH_AT", place);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Begins to run the program.
pub(super) fn begin(world: &World, args: &[&str]) -> Child {
    command(world, args, None).spawn().unwrap()
}

/// Waits for its end.
pub(super) async fn ended(child: Child) -> Ended {
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs the program.
pub(super) async fn run(world: &World, args: &[&str]) -> Ended {
    ended(begin(world, args)).await
}

/// Runs the program with `--output json` and returns what it printed when it ended with this code.
pub(super) async fn json(world: &World, code: i32, args: &[&str]) -> Value {
    let ended = run(world, &[&["--output", "json"], args].concat()).await;
    ended.json(code)
}

/// Runs the program until it kills itself at a place of `src/crash.rs`.
pub(super) async fn killed(world: &World, place: &str, args: &[&str]) {
    let ended = ended(command(world, args, Some(place)).spawn().unwrap()).await;
    assert_eq!(ended.code, None, "it should have been killed: {ended:#?}");
}

/// Interrupts a child as Ctrl-C does.
pub(super) fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

/// Runs a statement on the database of the world, as nobody should.
pub(super) async fn tamper(world: &World, sql: &'static str) {
    let url = world.config.database.0.expose_secret().to_owned();
    if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    } else {
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
}

/// Makes the projection miss everything that is on the stream and was not read: its position is moved on, and the
/// durable is made again behind it. The service must not run.
pub(super) async fn lose_what_is_unread(world: &World) {
    let last = world.connection.get_last("BOOKINGS", "bookings.>").await.unwrap().unwrap().sequence;
    world.connection.delete_consumer("BOOKINGS", "meet-projector-e1").await.unwrap();
    world.store.skip_missing(Epoch(1), last).await.unwrap();
}

/// All requests that Google got.
pub(super) fn requests(world: &World) -> u64 {
    world.fake().counters().requests.values().sum()
}
