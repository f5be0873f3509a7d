//! `keys rotate` while the service runs, killed in the middle, with values that do not open; `keys verify`.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use meet_projector::credential::{KeyRing, Slot};
use meet_projector::model::{GoogleSub, TeacherId};
use meet_projector::store::{NewCredential, Store};
use secrecy::SecretString;
use serde_json::Value;

use crate::support::service::{HOUR_MS, Setup, Then as _, World, teacher_id};

const NEW_KEY: &str = "abababababababababababababababababababababababababababababababab";

fn old_key() -> String {
    "42".repeat(32)
}

pub fn run(environment: &BTreeMap<String, String>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
    command.args(args).env_clear().envs(environment).stdin(Stdio::null()).output().unwrap()
}

pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?} {}", String::from_utf8_lossy(&output.stderr)))
}

/// The service and the commands get a new key, and know the old one.
fn give_the_new_key(world: &mut World) {
    let google = world.config.google.as_mut().unwrap();
    google.encryption_key = NEW_KEY.into();
    google.encryption_keys_old = vec![old_key().into()];
    world.environment.insert("GOOGLE_ENCRYPTION_KEY".to_owned(), NEW_KEY.to_owned());
    world.environment.insert("GOOGLE_ENCRYPTION_KEYS_OLD".to_owned(), old_key());
}

fn take_the_old_key(world: &mut World) {
    world.config.google.as_mut().unwrap().encryption_keys_old.clear();
    world.environment.remove("GOOGLE_ENCRYPTION_KEYS_OLD");
}

/// Grants of teachers `extra_0`, … sealed with the old key, whom Google does not know.
async fn more_grants(store: &Store, world: &World, count: usize) {
    let keys = KeyRing::new(&old_key().into(), &[]).unwrap();
    for n in 0..count {
        let teacher = TeacherId::parse(format!("extra_{n}")).unwrap();
        let account = GoogleSub(format!("sub{n}"));
        let token = SecretString::from(format!("1//extra-{n}"));
        let refresh_token = keys.seal(Slot::refresh_token(&teacher, &account), &token).unwrap();
        put(store, world, &teacher, &account, refresh_token).await;
    }
}

async fn put(store: &Store, world: &World, teacher: &TeacherId, account: &GoogleSub, refresh_token: Vec<u8>) {
    let new = NewCredential {
        teacher: teacher.clone(),
        account: account.clone(),
        email: None,
        calendar: "primary".to_owned(),
        refresh_token,
        scopes: "openid https://www.googleapis.com/auth/calendar.events".to_owned(),
    };
    store.put_credential(&new, world.clock.now()).await.unwrap();
}

async fn keys_rotate_while_the_service_runs(setup: Setup) {
    let teachers = 6;
    let mut world = World::start(setup.teachers(teachers)).await;
    // Access tokens are there, too, under the old key.
    let mut lessons: Vec<_> = (0..teachers).map(|n| world.lesson(&format!("s{n}"), n)).collect();
    for lesson in &lessons {
        world.publish(lesson).await;
    }
    for n in 0..teachers {
        world.ready(&format!("s{n}"), 1).await;
    }
    world.stop().await;
    give_the_new_key(&mut world);
    more_grants(&world.store, &world, 120).await;
    world.serve().await;

    // Half of the tokens are refreshed while the values are sealed anew.
    for n in 0..teachers / 2 {
        world.fake().expire_access_tokens(world.email(n));
    }
    lessons = lessons.iter().map(|lesson| lesson.moved(HOUR_MS)).collect();
    for lesson in &lessons {
        world.publish(lesson).await;
    }
    let environment = world.environment.clone();
    let rotated = tokio::task::spawn_blocking(move || run(&environment, &["keys", "rotate"])).await.unwrap();
    for n in 0..teachers {
        world.ready(&format!("s{n}"), 2).await;
    }
    assert_eq!(rotated.status.code(), Some(0), "{rotated:?}");
    let key = KeyRing::new(&NEW_KEY.into(), &[]).unwrap().current();
    assert_eq!(
        text(&rotated),
        format!("126 grants, 126 under key {key}, 0 left under old keys: GOOGLE_ENCRYPTION_KEYS_OLD may be removed\n")
    );
    assert_eq!(rotated.stderr, b"", "no progress bar where there is no terminal");

    // So the old key is removed, and everything works on.
    world.stop().await;
    take_the_old_key(&mut world);
    let verified = run(&world.environment, &["keys", "verify", "--output", "json"]);
    assert_eq!(verified.status.code(), Some(0), "{}", text(&verified));
    let counted = json(&verified);
    assert_eq!((&counted["grants"], &counted["underCurrentKey"]), (&126.into(), &126.into()), "{counted:#}");
    world.serve().await;
    for n in 0..teachers {
        world.fake().expire_access_tokens(world.email(n));
    }
    for lesson in &lessons {
        world.publish(&lesson.moved(HOUR_MS)).await;
    }
    for n in 0..teachers {
        world.ready(&format!("s{n}"), 3).await;
    }
    let again = run(&world.environment, &["keys", "rotate", "--output", "json"]);
    assert_eq!((again.status.code(), &json(&again)["resealed"]), (Some(0), &0.into()), "nothing is left to do");
    world.assert_google_was_never_wrong();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_while_the_service_runs_on_sqlite() {
    keys_rotate_while_the_service_runs(Setup::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_while_the_service_runs_on_postgres() {
    keys_rotate_while_the_service_runs(Setup::postgres()).await;
}

async fn a_killed_rotation_is_resumed(setup: Setup) {
    let mut world = World::prepare(setup.teachers(1)).await;
    more_grants(&world.store, &world, 99).await;
    give_the_new_key(&mut world);
    world.serve().await;
    let mut environment = world.environment.clone();
    environment.insert("CRASH_AT".to_owned(), "after_reseal:2".to_owned());
    let killed = tokio::task::spawn_blocking(move || run(&environment, &["keys", "rotate"])).await.unwrap();
    assert_eq!(killed.status.code(), None, "it was aborted: {killed:?}");

    let half = run(&world.environment, &["keys", "verify", "--output", "json"]);
    let counted = json(&half);
    assert_eq!((half.status.code(), counted["failures"].as_array().unwrap().len()), (Some(0), 0), "{counted:#}");
    assert_eq!((&counted["underCurrentKey"], &counted["underOldKeys"]), (&64.into(), &36.into()), "{counted:#}");
    // The service goes on with values under both keys.
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;

    let resumed = run(&world.environment, &["keys", "rotate", "--output", "json"]);
    let report = json(&resumed);
    assert_eq!(resumed.status.code(), Some(0), "{report:#}");
    assert_eq!(report["underCurrentKey"], 100);
    // What was sealed anew once is not again; the teacher with a lesson had been refreshed under the new key.
    assert!((35..=36).contains(&report["resealed"].as_i64().unwrap()), "{report:#}");
    assert_eq!(report["oldKeysMayBeRemoved"], true);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rotation_is_resumed_on_sqlite() {
    a_killed_rotation_is_resumed(Setup::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rotation_is_resumed_on_postgres() {
    a_killed_rotation_is_resumed(Setup::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_open_is_named_with_its_reason() {
    let mut world = World::prepare(Setup::sqlite().teachers(5)).await;
    let sealed = async |n: usize| {
        let grant = world.store.credential(&teacher_id(n)).await.unwrap().unwrap();
        (grant.account, grant.refresh_token.unwrap())
    };
    let accounts: Vec<_> = [sealed(0).await, sealed(1).await, sealed(2).await, sealed(3).await].into();
    // The row of 1 holds the token of 0, that of 2 is damaged, that of 3 cut off; 4 is under a lost key.
    put(&world.store, &world, &teacher_id(1), &accounts[1].0, accounts[0].1.clone()).await;
    let mut damaged = accounts[2].1.clone();
    *damaged.last_mut().unwrap() ^= 1;
    put(&world.store, &world, &teacher_id(2), &accounts[2].0, damaged).await;
    put(&world.store, &world, &teacher_id(3), &accounts[3].0, accounts[3].1[..20].to_vec()).await;
    let lost = KeyRing::new(&"11".repeat(32).into(), &[]).unwrap();
    let (teacher, account) = (teacher_id(4), GoogleSub("4".into()));
    let token = lost.seal(Slot::refresh_token(&teacher, &account), &SecretString::from("1//lost")).unwrap();
    put(&world.store, &world, &teacher, &account, token).await;

    let verified = run(&world.environment, &["keys", "verify", "--output", "json"]);
    assert_eq!(verified.status.code(), Some(1), "{verified:?}");
    let report = json(&verified);
    let why: Vec<_> = report["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|failure| (failure["teacherId"].as_str().unwrap(), failure["why"].as_str().unwrap()))
        .collect();
    assert_eq!(
        why,
        [("tch_1", "moved"), ("tch_2", "damaged"), ("tch_3", "truncated"), ("tch_4", "unknown_key")],
        "{report:#}"
    );
    assert!(report["failures"][0]["reason"].as_str().unwrap().contains("tch_0"), "{report:#}");
    let human = run(&world.environment, &["keys", "verify"]);
    assert!(
        text(&human).contains("teacher tch_4, refresh_token: ") && text(&human).contains(&lost.current().to_string())
    );
    assert!(!text(&human).contains("1//"));

    // A rotation does what it can, and says what it could not.
    give_the_new_key(&mut world);
    let rotated = run(&world.environment, &["keys", "rotate", "--output", "json"]);
    let report = json(&rotated);
    assert_eq!((rotated.status.code(), report["resealed"].as_i64()), (Some(5), Some(1)), "{report:#}");
    assert_eq!(report["oldKeysMayBeRemoved"], false);
    assert_eq!(report["failures"].as_array().unwrap().len(), 4);
    let human = run(&world.environment, &["keys", "rotate"]);
    assert!(text(&human).contains("5 grants, 1 under key") && !text(&human).contains("may be removed"), "{human:?}");
    // With the lost key at hand, one more is saved; the others' teachers connect again.
    world.environment.insert("GOOGLE_ENCRYPTION_KEYS_OLD".to_owned(), format!("{},{}", old_key(), "11".repeat(32)));
    let report = json(&run(&world.environment, &["keys", "rotate", "--output", "json"]));
    assert_eq!((report["resealed"].as_i64(), report["failures"].as_array().unwrap().len()), (Some(1), 3), "{report:#}");
}
