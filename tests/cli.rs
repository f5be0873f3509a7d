//! The program as people and scripts meet it: output, exit codes, sentences.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::service::{Setup, World};

type Environment = BTreeMap<String, String>;

/// What a run left.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:#?}"))
    }

    /// The output of a run that went well.
    #[track_caller]
    fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// The standard error of a run that ended with this code.
    #[track_caller]
    fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.err
    }
}

fn command(environment: &Environment, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
    command.args(args).env_clear().envs(environment).stdin(Stdio::null());
    command
}

fn run(environment: &Environment, args: &[&str]) -> Ended {
    run_with(environment, args, "")
}

fn run_with(environment: &Environment, args: &[&str], input: &str) -> Ended {
    let mut command = command(environment, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// What commands on a database of their own need.
fn environment(folder: &Path) -> Environment {
    [
        ("DATABASE_URL", format!("sqlite://{}/meet.db", folder.display())),
        ("NATS_URL", "nats://127.0.0.1:1".to_owned()),
        ("WP_BASE_URL", "https://school.example.com".to_owned()),
        ("GOOGLE_CLIENT_ID", "client".to_owned()),
        ("GOOGLE_CLIENT_SECRET", "the-client-secret".to_owned()),
        ("GOOGLE_ENCRYPTION_KEY", "42".repeat(32)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[test]
fn help_names_every_command_and_the_exit_codes() {
    let help = run(&Environment::new(), &["--help"]).ok().out;
    for word in ["serve", "dev", "migrate", "nats", "epoch", "config", "session", "dead-letter", "credential", "token"]
    {
        assert!(help.contains(word), "{word} is missing:\n{help}");
    }
    assert!(help.contains("Exit codes: 0 ok, 1 failed, 2 usage, 3 configuration, 4 a dependency cannot be reached"));
    assert!(run(&Environment::new(), &["--version"]).ok().out.starts_with("meet-projector "));
    assert!(run(&Environment::new(), &["completions", "bash"]).ok().out.contains("complete -F _meet"));
    let document = run(&Environment::new(), &["asyncapi"]).ok().out;
    let document: serde_norway::Value = serde_norway::from_str(&document).unwrap();
    assert!(document["asyncapi"].as_str().unwrap().starts_with("3."));
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for args in [&["postpone"][..], &["serve", "--fast"], &["session", "show"], &["token", "new", "--name", "x"]] {
        assert_eq!(run(&Environment::new(), args).code, Some(2), "{args:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path());
    run(&environment, &["migrate"]).ok();
    let err = run(&environment, &["session", "show", "a.b"]).failed(2);
    assert!(err.contains("A-Z a-z 0-9 _ -"), "{err}");
}

#[test]
fn all_mistakes_in_the_configuration_are_named_at_once() {
    let mut environment: Environment = [
        ("HTTP_ADDR", "everywhere"),
        ("DATABASE_URL", "mysql://root:hunter2@db/meet"),
        ("NATS_URL", "http://nats:4222"),
        ("WP_BASE_URL", "school.example.com"),
        ("GOOGLE_ENCRYPTION_KEY", "hunter2hunter2"),
        ("GOOGLE_CLIENT_SECRET", "the-client-secret"),
        ("GOOGLE_ATTENDEES", "maybe"),
        ("GOOGLE_RATE_PER_TEACHER", "-1"),
        ("MEET_STRAEM", "MEET"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let named = ["HTTP_ADDR", "DATABASE_URL", "NATS_URL", "WP_BASE_URL", "GOOGLE_ENCRYPTION_KEY", "GOOGLE_ATTENDEES"];
    let more = ["GOOGLE_RATE_PER_TEACHER", "MEET_STRAEM", "GOOGLE_CLIENT_ID"];

    let checked = run(&environment, &["config", "check"]);
    assert_eq!(checked.code, Some(3));
    let served = run(&environment, &["serve"]).failed(3);
    for name in named.iter().chain(&more) {
        assert!(checked.out.contains(name), "{name} is not named:\n{}", checked.out);
        assert!(served.contains(name), "{name} is not named:\n{served}");
    }
    for text in [&checked.out, &checked.err, &served] {
        assert!(!text.contains("hunter2"), "a secret is told:\n{text}");
    }

    let listed = run(&environment, &["config", "check", "--output", "json"]);
    let mistakes = listed.json()["mistakes"].as_array().unwrap().len();
    assert_eq!((listed.code, mistakes), (Some(3), named.len() + more.len()), "{}", listed.out);

    let shown = run(&environment, &["config", "print"]).ok().out;
    assert!(shown.contains("GOOGLE_CLIENT_SECRET") && !shown.contains("the-client-secret"), "{shown}");
    environment.clear();
    let example = run(&environment, &["config", "example"]).ok().out;
    assert_eq!(example, include_str!("../.env.example"));
}

#[test]
fn what_cannot_be_reached_is_exit_code_4() {
    let folder = tempfile::tempdir().unwrap();
    let mut environment = environment(folder.path());
    let err = run(&environment, &["nats", "check"]).failed(4);
    assert!(err.contains("NATS"), "{err}");
    // Nobody listens on port 1.
    environment.insert("DATABASE_URL".to_owned(), "postgres://meet:hunter2@127.0.0.1:1/meet".to_owned());
    for args in [&["migrate"][..], &["token", "list"]] {
        let err = run(&environment, args).failed(4);
        assert!(err.starts_with("error: ") && !err.contains("hunter2"), "{err}");
    }
}

#[test]
fn a_database_is_migrated_before_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path());
    let err = run(&environment, &["token", "list"]).failed(1);
    assert!(err.contains("meet-projector migrate"), "it says what to do: {err}");
    assert!(run(&environment, &["migrate"]).ok().out.starts_with("applied "));
    assert_eq!(run(&environment, &["migrate"]).ok().out, "the schema is up to date\n");
}

#[test]
fn a_token_is_alone_on_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path());
    run(&environment, &["migrate"]).ok();
    let made = run(&environment, &["token", "new", "--name", "wordpress", "--role", "reader"]).ok();
    let token = made.out.trim_end();
    let parts: Vec<_> = token.split('_').collect();
    assert_eq!((parts.len(), parts[0], made.out.lines().count()), (3, "mp", 1), "{made:?}");
    assert!(!made.err.contains(parts[2]));

    let listed = run(&environment, &["token", "list", "--output", "json"]).ok();
    assert!(listed.out.contains(parts[1]) && !listed.out.contains(parts[2]), "{}", listed.out);
    listed.json();
    run(&environment, &["token", "revoke", parts[1]]).ok();
    let err = run(&environment, &["token", "revoke", parts[1]]).failed(1);
    assert!(err.contains("token list"), "{err}");
}

#[test]
fn a_seed_with_a_mistake_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let environment = environment(folder.path());
    run(&environment, &["migrate"]).ok();
    let good = r#"{"teacherId":"tch_1","email":"a@example.com","googleSub":"1","refreshToken":"1//hunter2"}"#;
    let bad = r#"{"teacherId":"tch 2","email":"b@example.com","googleSub":"2","refreshToken":"1//hunter2"}"#;
    let file = folder.path().join("seed.jsonl");
    let seed = ["credential", "seed", "--file", file.to_str().unwrap()];
    std::fs::write(&file, format!("{good}\n{bad}\nno json\n")).unwrap();
    let err = run(&environment, &seed).failed(1);
    assert!(err.contains("nothing was written") && err.contains("line 2") && err.contains("line 3"), "{err}");
    assert!(!err.contains("hunter2"), "{err}");
    assert_eq!(credentials(&environment), 0);

    std::fs::write(&file, good).unwrap();
    run(&environment, &seed).ok();
    assert_eq!(credentials(&environment), 1);
    let other = good.replace("tch_1", "tch_2");
    run_with(&environment, &["credential", "seed", "--file", "-"], &other).ok();
    assert_eq!(credentials(&environment), 2);
}

/// How many grants the database holds.
fn credentials(environment: &Environment) -> usize {
    let url = meet_projector::store::DatabaseUrl(environment["DATABASE_URL"].clone().into());
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let store = meet_projector::store::Store::open(&url).await.unwrap();
        store.credentials().await.unwrap().len()
    })
}

#[test]
fn events_in_files_are_checked() {
    let examples = |kind: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas/examples").join(kind);
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string());
        let files: Vec<_> = files.filter(|file| !file.ends_with(".expect.json")).collect();
        assert!(!files.is_empty());
        files
    };
    let validate = |file: &str| run(&Environment::new(), &["event", "validate", file, "--output", "json"]);
    for file in examples("valid") {
        validate(&file).ok().json();
    }
    let no = examples("invalid").iter().filter(|file| validate(file).code == Some(1)).count();
    assert!(no > 10, "invalid examples are refused, but only {no} were");
    let err = run(&Environment::new(), &["event", "validate", "/nowhere.json"]).failed(1);
    assert!(err.contains("/nowhere.json"), "{err}");
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    for args in
        [&["config", "example"][..], &["asyncapi"], &["openapi"], &["completions", "bash"], &["config", "print"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(&Environment::new(), args)
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output();
        let output = output.unwrap();
        assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()), "{args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_serves_a_sqlite_file_and_commands_work_beside_it() {
    let world = World::start(Setup::sqlite()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.publish_raw("bookings.session.s2.scheduled", &[], b"no json".to_vec()).await;
    world.ready("s1", 1).await;
    world.folded().await;

    let err = run(&world.environment, &["serve"]).failed(1);
    assert!(err.contains("is being served by another process; stop it first"), "{err}");

    let shown = run(&world.environment, &["session", "show", "s1", "--output", "json"]).ok().json();
    assert_eq!(Some(shown["document"].clone()), world.document("s1").await);
    assert!(run(&world.environment, &["session", "show", "s1"]).ok().out.contains("meet.google.com"));
    let err = run(&world.environment, &["session", "show", "s9"]).failed(1);
    assert!(err.contains("no event of session s9"), "{err}");

    let letters = run(&world.environment, &["dead-letter", "list", "--output", "json"]).ok().json();
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters:#}");
    let id = letters[0]["id"].to_string();
    let letter = run(&world.environment, &["dead-letter", "show", &id]).ok().out;
    assert!(letter.contains("no json") && letter.contains("not_json"), "{letter}");
    run(&world.environment, &["dead-letter", "show", "999"]).failed(1);

    run(&world.environment, &["nats", "check"]).ok();
    run(&world.environment, &["nats", "apply"]).ok();
    run(&world.environment, &["epoch", "show"]).ok();
}

#[test]
fn the_development_mode_tells_its_story() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/nats-server");
    let nats = Command::new(script).output().unwrap();
    assert!(nats.status.success(), "{}", String::from_utf8_lossy(&nats.stderr));
    let nats = String::from_utf8(nats.stdout).unwrap().trim().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("dev");
    let mut environment: Environment = [("NATS_SERVER".to_owned(), nats)].into();
    let told = run(&environment, &["dev", "--once", "--data", data.to_str().unwrap(), "--port", "0"]).ok().out;
    let line = |session: &str| {
        told.lines().find(|line| line.trim_start().starts_with(session)).unwrap_or_else(|| panic!("{session}: {told}"))
    };
    for session in ["piano-1", "english-b1", "course-17-5"] {
        assert!(line(session).contains("READY") && line(session).contains("https://meet.google.com/"), "{told}");
    }
    assert!(line("guitar-3").contains("CANCELED"), "{told}");
    let waiting = line("chess-1");
    assert!(waiting.contains("TEACHER_NOT_CONNECTED") && waiting.contains("next step: connect_teacher"), "{told}");
    assert!(line("drums-9").contains("dead letter"), "{told}");

    // What it wrote can be looked at afterwards with the settings it left.
    for line in std::fs::read_to_string(data.join("env")).unwrap().lines() {
        let (name, value) = line.split_once('=').unwrap();
        environment.insert(name.to_owned(), value.trim_matches('\'').to_owned());
    }
    environment.remove("NATS_SERVER");
    let letters = run(&environment, &["dead-letter", "list"]).ok().out;
    assert!(letters.contains("drums-9") && letters.contains("ends_before_start"), "{letters}");
    assert!(run(&environment, &["session", "show", "english-b1"]).ok().out.contains("Conversation B1"));
}
