//! Operators at their terminal, with the real program: what is wrong in one screen, mended with one command.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use meet_projector::event::{encode, subject};
use meet_projector::fake::{ConferenceMode, Fault, Operation, Rule};
use meet_projector::model::{Epoch, UnixMillis};
use meet_projector::store::{DatabaseUrl, Incoming, RawMessage, Refused, Store};
use serde_json::Value;

use crate::support::service::{Setup, World, eventually, lesson_at};

type Environment = BTreeMap<String, String>;

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    #[track_caller]
    fn with(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.out, self.err);
        self.out
    }

    #[track_caller]
    fn json(self, code: i32) -> Value {
        let out = self.with(code);
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error} in {out}"))
    }
}

/// Waits on a thread of its own, so that a service in this process goes on meanwhile.
async fn run(environment: &Environment, args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
    command.args(args).env_clear().envs(environment).env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const JSON: [&str; 2] = ["--output", "json"];

async fn status(environment: &Environment, code: i32) -> Value {
    run(environment, &["status", JSON[0], JSON[1]]).await.json(code)
}

#[track_caller]
fn has(attention: &Value, text: &str) {
    let lines = attention["attention"].as_array().unwrap();
    assert!(lines.iter().any(|line| line.as_str().unwrap().contains(text)), "{text} is not in {lines:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_what_needs_a_person() {
    let mut world = World::start(Setup::sqlite().connected(1)).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    eventually("the process says that it caught up", async || {
        let seen = run(&world.environment, &["status", JSON[0], JSON[1]]).await;
        let seen: Value = serde_json::from_str(&seen.out).unwrap();
        seen["healthy"] == true && seen["processes"][0]["caughtUp"] == true
    })
    .await;
    let seen = status(&world.environment, 0).await;
    assert_eq!((&seen["sessions"]["ready"], &seen["nats"]["lagEvents"]), (&1.into(), &0.into()), "{seen:#}");
    assert!(run(&world.environment, &["status"]).await.with(0).contains("all is well"));

    // A lesson that starts in a moment, of a teacher who is not connected; and an event that nobody can read.
    let soon = lesson_at("s2", 1, UnixMillis::new(world.clock.now().get() + 600_000));
    world.publish(&soon).await;
    world.publish_raw("bookings.session.s3.scheduled", &[], b"no json".to_vec()).await;
    world.error("s2", "TEACHER_NOT_CONNECTED").await;
    world.folded().await;
    let seen = status(&world.environment, 1).await;
    has(&seen, "within the hour and has no link");
    has(&seen, "to connect Google");
    has(&seen, "dead letter");
    assert_eq!(seen["inDanger"][0]["sessionId"], "s2");
    assert_eq!(seen["inDanger"][0]["code"], "TEACHER_NOT_CONNECTED");
    assert_eq!(seen["teachers"][0]["teacherId"], "tch_1");
    assert_eq!(seen["deadLetters"]["byClass"]["not_json"], 1);
    let screen = run(&world.environment, &["status"]).await.with(1);
    assert!(screen.contains("s2") && screen.contains("needs a person") && !screen.contains('\u{1b}'), "{screen}");

    // Without NATS, and then without the service, the database's part is still there.
    world.nats.kill();
    let seen = status(&world.environment, 1).await;
    assert_eq!(seen["nats"]["reachable"], false, "{seen:#}");
    has(&seen, "NATS cannot be looked at");
    assert_eq!(seen["sessions"]["ready"], 1);
    world.stop().await;
    let seen = status(&world.environment, 1).await;
    has(&seen, "the service does not run");
    assert_eq!(seen["sessions"]["ready"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_is_seen_from_another_process() {
    let world = World::start(Setup::sqlite()).await;
    let off = Fault::refuse(403, "accessNotConfigured");
    world.fake().add_fault(Rule { operations: vec![Operation::Insert], ..Rule::new(off) });
    world.publish(&world.lesson("s1", 0)).await;
    world.error("s1", "CONFIG_ERROR").await;
    eventually("status shows the breaker", async || {
        let seen = run(&world.environment, &["status", JSON[0], JSON[1]]).await;
        let seen: Value = serde_json::from_str(&seen.out).unwrap();
        seen["processes"][0]["breakers"][0]["api"] == "calendar"
    })
    .await;
    has(&status(&world.environment, 1).await, "Google refuses this installation");
    let retried = run(&world.environment, &["session", "retry", "s1", JSON[0], JSON[1]]).await.json(1);
    assert_eq!(retried["items"][0]["code"], "CONFIG_ERROR", "{retried:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_ingest_survives_a_restart() {
    let mut world = World::start(Setup::sqlite()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    let environment = world.environment.clone();
    run(&environment, &["pause", "ingest"]).await.with(2);
    run(&environment, &["pause", "ingest", "--reason", "x", "--until", "2020-01-01T00:00:00Z"]).await.with(2);
    let paused = run(&environment, &["pause", "ingest", "--reason", "wrong times", "--wait"]).await.with(0);
    assert!(paused.contains("Nothing is under way any more"), "{paused}");
    let before = world.service.as_ref().unwrap().health.snapshot().contiguous;

    let last = world.publish(&world.lesson("s2", 0)).await;
    world.restart().await;
    eventually("the new process stands still, too", async || {
        let seen = run(&environment, &["status", JSON[0], JSON[1]]).await;
        let seen: Value = serde_json::from_str(&seen.out).unwrap();
        seen["processes"][0]["ingestStandsStill"] == true
    })
    .await;
    assert_eq!(world.document("s2").await, None, "nothing was folded");
    assert!(before < last);
    has(&status(&environment, 1).await, "wrong times");
    let ready = world.readiness().await;
    assert_eq!(ready.status, 200, "a pause is nobody's fault: {:#}", ready.json);
    let shown = ready.json["checks"]["ingest"]["detail"].as_str().unwrap();
    assert!(shown.contains("wrong times"), "{shown}");

    assert!(run(&environment, &["resume", "ingest"]).await.with(0).contains("goes on"));
    world.ready("s2", 1).await;
    assert!(run(&environment, &["resume", "ingest"]).await.with(0).contains("was not paused"));
    let acted = run(&environment, &["audit", "list", "--target", "ingest", JSON[0], JSON[1]]).await.json(0);
    assert_eq!(acted.as_array().unwrap().len(), 2, "{acted:#}");
    assert!(acted[0]["actor"].as_str().unwrap().contains('@'));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_teachers_calendar_waits_until_the_time_given() {
    let world = World::start(Setup::sqlite()).await;
    let pause = ["pause", "reconcile", "--teacher", "tch_0", "--reason", "asked for", "--wait"];
    run(&world.environment, &pause).await.with(0);
    world.publish(&world.lesson("s1", 0)).await;
    world.publish(&world.lesson("s2", 1)).await;
    world.ready("s2", 1).await;
    world.folded().await;
    assert_eq!(world.document("s1").await.unwrap()["meetStatus"], "PENDING");
    assert_eq!(world.calls("s1"), [], "nothing was asked of Google for it");
    let retried = run(&world.environment, &["session", "retry", "s1", JSON[0], JSON[1]]).await.json(1);
    assert_eq!(retried["items"][0]["code"], "PAUSED");
    // Pausing again changes the end; then it goes on by itself.
    let again = ["pause", "reconcile", "--teacher", "tch_0", "--reason", "a moment", "--until", "1s"];
    run(&world.environment, &again).await.with(0);
    world.ready("s1", 1).await;
    eventually("the pause is gone", async || world.store.pauses().await.unwrap().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_the_cause_is_mended() {
    let world = World::start(Setup::sqlite()).await;
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::NotAllowed);
    for session in ["s1", "s2"] {
        world.publish(&world.lesson(session, 0)).await;
        world.error(session, "MEET_NOT_ALLOWED").await;
    }
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::Instant);
    let environment = &world.environment;

    let story = run(environment, &["session", "show", "s1", JSON[0], JSON[1]]).await.json(0);
    assert_eq!(story["next"]["retryHelps"], true, "{story:#}");
    assert_eq!((&story["stream"][0]["change"], &story["stream"][0]["version"]), (&"scheduled".into(), &1.into()));
    assert!(story["calls"].as_array().unwrap().iter().any(|call| call["operation"] == "insert"), "{story:#}");

    let retried = run(environment, &["session", "retry", "s1"]).await.with(0);
    assert!(retried.contains("due now"), "{retried}");
    let link = world.ready("s1", 1).await["meetLink"].clone();
    let told = run(environment, &["session", "show", "s1"]).await.with(0);
    for text in ["Piano s1", link.as_str().unwrap(), "insert", "session retry by", "Google agrees"] {
        assert!(told.contains(text), "{text} is missing:\n{told}");
    }

    let all = ["session", "retry", "--failed", "--code", "MEET_NOT_ALLOWED"];
    let plan = run(environment, &all).await.with(0);
    assert!(plan.contains("1 session would be due") && plan.contains("Nothing was done"), "{plan}");
    assert_eq!(world.document("s2").await.unwrap()["meetStatus"], "ERROR", "a plan does nothing");
    run(environment, &[&all[..], &["--execute"]].concat()).await.with(2);
    run(environment, &[&all[..], &["--execute", "--reason", "Meet is allowed now", "--rate", "5"]].concat())
        .await
        .with(0);
    world.ready("s2", 1).await;
    assert_eq!(
        run(environment, &["session", "retry", "s1", JSON[0], JSON[1]]).await.json(1)["items"][0]["code"],
        "ALREADY_READY"
    );
    let err = run(environment, &["session", "retry", "s1", "nobody"]).await;
    assert_eq!(err.code, Some(1), "{}", err.out);
    world.assert_google_was_never_wrong();
}

/// A database with dead letters: one that can be read by now, one that never will.
async fn letters(folder: &std::path::Path) -> (Environment, Store) {
    let url = format!("sqlite://{}/meet.db", folder.display());
    let store = Store::open(&DatabaseUrl(url.clone().into())).await.unwrap();
    store.migrate().await.unwrap();
    let now = UnixMillis::parse_rfc3339("2026-11-22T00:00:00Z").unwrap();
    let event = lesson_at("s1", 0, UnixMillis::parse_rfc3339("2036-12-01T09:00:00Z").unwrap());
    let message = |sequence, payload: String| Incoming {
        sequence,
        stored_at: now,
        fingerprint: format!("{sequence}"),
        raw: RawMessage { subject: subject(&event), headers: Vec::new(), payload: payload.into() },
        decoded: Err(Refused {
            class: "not_json",
            reason: "of that time".into(),
            session: Some(event.session.clone()),
        }),
    };
    let group = [message(1, encode(&event).to_string()), message(2, "nonsense".to_owned())];
    store.fold(Epoch(1), &group, now).await.unwrap();
    (
        BTreeMap::from([("DATABASE_URL".to_owned(), url), ("NATS_URL".to_owned(), "nats://127.0.0.1:1".to_owned())]),
        store,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_requeued_and_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let (environment, store) = letters(folder.path()).await;
    let missing = run(&environment, &["session", "show", "s1"]).await;
    assert!(missing.code == Some(1) && missing.err.contains("dead letter"), "{}", missing.err);
    let plan = run(&environment, &["dead-letter", "requeue", "--all", JSON[0], JSON[1]]).await.json(0);
    assert_eq!(
        (&plan["executed"], &plan["applied"], &plan["letters"]),
        (&false.into(), &1.into(), &2.into()),
        "{plan:#}"
    );
    assert!(store.document(&"s1".parse_id()).await.unwrap().is_none(), "a plan does nothing");
    run(&environment, &["dead-letter", "requeue", "--all", "--execute"]).await.with(2);
    let some = run(&environment, &["dead-letter", "requeue", "1", "2", "9"]).await.with(5);
    assert!(some.contains("dead letter 1: applied") && some.contains("dead letter 2: still refused"), "{some}");
    assert!(store.document(&"s1".parse_id()).await.unwrap().is_some());
    assert!(run(&environment, &["dead-letter", "requeue", "1"]).await.with(0).contains("requeued before"));

    run(&environment, &["dead-letter", "discard", "2"]).await.with(2);
    run(&environment, &["dead-letter", "discard", "2", "--reason", "nonsense"]).await.with(0);
    run(&environment, &["dead-letter", "discard", "2", "--reason", "nonsense"]).await.with(1);
    assert!(run(&environment, &["dead-letter", "list"]).await.with(0).contains("no open dead letters"));
    let all = run(
        &environment,
        &["dead-letter", "list", "--state", "all", "--since", "2020-01-01T00:00:00Z", JSON[0], JSON[1]],
    );
    assert_eq!(all.await.json(0).as_array().unwrap().len(), 2, "nothing is ever lost");
    let reasons = run(&environment, &["audit", "list", "--action", "dead-letter"]).await.with(0);
    assert!(reasons.contains("nonsense") && reasons.contains("applied"), "{reasons}");
    // Its story is told without NATS, too.
    let story = run(&environment, &["session", "show", "s1", JSON[0], JSON[1]]).await.json(0);
    assert!(story["stream"].is_null() && story["streamError"].as_str().unwrap().contains("NATS"), "{story:#}");
}

trait ParseId {
    fn parse_id(&self) -> meet_projector::model::SessionId;
}

impl ParseId for str {
    fn parse_id(&self) -> meet_projector::model::SessionId {
        meet_projector::model::SessionId::parse(self).unwrap()
    }
}

/// The checks of `doctor` that are not well, as `area name`.
async fn examined(environment: &Environment, code: i32) -> BTreeMap<String, Value> {
    let report = run(environment, &["doctor", JSON[0], JSON[1]]).await.json(code);
    let checks = report["checks"].as_array().unwrap().iter().cloned();
    checks
        .map(|check| (format!("{} {}", check["area"].as_str().unwrap(), check["name"].as_str().unwrap()), check))
        .collect()
}

#[track_caller]
fn fails(checks: &BTreeMap<String, Value>, name: &str) {
    let check = checks.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", checks.keys()));
    assert_eq!(check["level"], "fail", "{check:#}");
    assert!(check["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{check:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_each_planted_fault() {
    let world = World::prepare(Setup::sqlite()).await;
    let well = &world.environment;
    // The definitions were applied by hand; the durable is made by the first start.
    run(well, &["nats", "apply"]).await.with(0);
    let checks = examined(well, 0).await;
    assert!(checks.values().all(|check| check["level"] != "fail"), "{checks:#?}");
    assert_eq!(checks["keys sealed tokens"]["level"], "ok");
    let with = |name: &str, value: &str| {
        let mut environment = well.clone();
        environment.insert(name.to_owned(), value.to_owned());
        environment
    };

    fails(&examined(&with("NATS_URL", "nats://127.0.0.1:1"), 4).await, "nats connection");
    fails(&examined(&with("GOOGLE_TOKEN_URI", "http://127.0.0.1:1/token"), 4).await, "google token endpoint");
    fails(&examined(&with("GOOGLE_CALENDAR_API_ROOT", "http://127.0.0.1:1/v3"), 4).await, "google Calendar API");
    fails(&examined(&with("DATABASE_URL", "postgres://meet:hunter2@127.0.0.1:1/x"), 4).await, "database connection");
    fails(&examined(&with("GOOGLE_ENCRYPTION_KEY", &"43".repeat(32)), 1).await, "keys sealed tokens");
    fails(&examined(&with("WP_BASE_URL", "http://school.example.com"), 1).await, "google redirect URI");
    fails(&examined(&with("HTTP_ADDR", "everywhere"), 1).await, "configuration HTTP_ADDR");
    fails(&examined(&with("NATS_STREAM", "OTHER"), 1).await, "nats OTHER");
    let unmigrated = format!("sqlite://{}", world.path("empty.db").display());
    fails(&examined(&with("DATABASE_URL", &unmigrated), 1).await, "database schema");
    std::fs::write(world.path("file"), "").unwrap();
    let nowhere = format!("sqlite://{}/meet.db", world.path("file").display());
    fails(&examined(&with("DATABASE_URL", &nowhere), 1).await, "machine folder");

    let database = world.path("meet.db");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o644)).unwrap();
    fails(&examined(well, 1).await, "machine the database");
    std::fs::set_permissions(&database, std::fs::Permissions::from_mode(0o600)).unwrap();
    let human = run(well, &["doctor"]).await.with(0);
    assert!(
        human.lines().all(|line| line.starts_with("ok") || line.starts_with("warn") || line.contains("fix:")),
        "{human}"
    );
    assert!(!human.contains("client-secret"));
}

#[test]
fn help_teaches_with_examples() {
    for args in [
        &["status"][..],
        &["doctor"],
        &["pause"],
        &["resume"],
        &["session", "show"],
        &["session", "retry"],
        &["dead-letter", "list"],
        &["dead-letter", "requeue"],
        &["dead-letter", "discard"],
        &["audit", "list"],
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
        let output = command.args(args).arg("--help").env_clear().output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("Example") && help.contains("meet-projector "), "{args:?}:\n{help}");
    }
}
