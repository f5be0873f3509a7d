//! Stream and database, lost, put back from a backup, or made anew, on real servers with real copies of their files: what
//! is ambiguous has no effect before a person decides, and it ends right at Google, with one event for each session.

use std::path::{Path, PathBuf};

use meet_projector::event::SessionEvent;
use meet_projector::fake::Operation::{Delete, Insert, Patch, Update};
use meet_projector::fake::{Expected, ExpectedEvent, Operation};
use meet_projector::run::{Kind, State};
use meet_projector::store::{DatabaseUrl, Store};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _};

use super::program::{json, requests, run};
use crate::support::nats::remake_stream;
use crate::support::postgres::fresh_database;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

on_both! {
    a_lost_database_finds_everything_again,
    a_stream_put_back_waits_for_a_person,
    a_stream_made_anew_goes_on_by_itself,
    stream_and_database_lost_find_everything_again,
}

/// The newest event of each session.
type School = Vec<SessionEvent>;

/// Five lessons of teacher 0, as they were first.
async fn first_week(world: &World) -> School {
    let mut school = Vec::new();
    for n in 0..5 {
        let lesson = world.lesson(&format!("s{n}"), 0);
        world.publish(&lesson).await;
        school.push(lesson);
    }
    for n in 0..5 {
        world.ready(&format!("s{n}"), 1).await;
    }
    world.until_settled().await;
    school
}

/// One is moved, one canceled, one canceled and revived, one given to teacher 1, and one is new.
async fn second_week(world: &World, first: &School) -> School {
    let mut school = first.clone();
    school[1] = first[1].moved(HOUR_MS);
    school[2] = first[2].canceled();
    school[3] = first[3].canceled();
    for event in &school[1..4] {
        world.publish(event).await;
    }
    world.canceled("s2", 2).await;
    world.canceled("s3", 2).await;
    school[3] = school[3].then(|_| {});
    school[4] = first[4].taught_by(1);
    school.push(world.lesson("s5", 1));
    for event in &school[3..6] {
        world.publish(event).await;
    }
    world.ready("s3", 3).await;
    world.ready("s5", 1).await;
    world.until_settled().await;
    assert_right(world, &school);
    school
}

/// Google holds one right event for each session that takes place, none for the others, and never held two.
#[track_caller]
fn assert_right(world: &World, school: &School) {
    let expected: Vec<_> = school.iter().map(|event| expected(world, event)).collect();
    assert_eq!(world.fake().check(&expected), Vec::<String>::new());
}

fn expected(world: &World, event: &SessionEvent) -> Expected {
    let teacher: usize = event.teacher.as_str().trim_start_matches("tch_").parse().unwrap();
    let details = event.details.as_ref().unwrap();
    let is_live = !matches!(event.change, meet_projector::event::Change::Canceled);
    Expected {
        session: event.session.to_string(),
        live: is_live.then(|| ExpectedEvent {
            account: world.email(teacher).to_owned(),
            starts_at_ms: details.starts_at.get(),
            ends_at_ms: details.ends_at.get(),
            title: Some(details.title.clone()),
            has_link: true,
        }),
    }
}

/// What Google carried out: insert, patch, update, delete.
fn committed(world: &World) -> [u64; 4] {
    let counters = world.fake().counters();
    [Insert, Patch, Update, Delete].map(|operation: Operation| counters.committed_of(operation))
}

fn since(world: &World, before: [u64; 4]) -> [u64; 4] {
    let now = committed(world);
    std::array::from_fn(|n| now[n] - before[n])
}

async fn links(world: &World) -> Vec<Value> {
    let mut links = Vec::new();
    for n in 0..6 {
        links.push(world.document(&format!("s{n}")).await.unwrap()["meetLink"].clone());
    }
    links
}

/// An empty database in place of the one there is. The service must not run.
async fn lose_database(world: &mut World) {
    let url = if world.config.database_is_postgres() {
        fresh_database().await
    } else {
        format!("sqlite://{}", world.path(&format!("lost-{}.db", uuid())).display())
    };
    open(world, url).await;
}

async fn open(world: &mut World, url: String) {
    let url = DatabaseUrl(url.into());
    world.store = Store::open(&url).await.unwrap();
    world.store.migrate().await.unwrap();
    world.config.database = url;
    world.token = crate::support::service::new_token_in(world).await;
}

fn uuid() -> String {
    meet_projector::model::short_hex(&meet_projector::model::digest(&[&getrandom::u64().unwrap().to_be_bytes()]))
}

/// A copy of the SQLite file as it is now.
async fn copy_database(world: &World) -> PathBuf {
    use secrecy::ExposeSecret as _;
    let copy = world.path(&format!("copy-{}.db", uuid()));
    let url = world.config.database.0.expose_secret();
    let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
    let sql = format!("VACUUM INTO '{}'", copy.display());
    sqlx::query(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    copy
}

/// Puts a copy in place of the database. The service must not run.
async fn put_database_back(world: &mut World, copy: &Path) {
    open(world, format!("sqlite://{}", copy.display())).await;
}

trait Backend {
    fn database_is_postgres(&self) -> bool;
}

impl Backend for meet_projector::config::Config {
    fn database_is_postgres(&self) -> bool {
        use secrecy::ExposeSecret as _;
        self.database.0.expose_secret().starts_with("postgres")
    }
}

async fn leftovers_are_known(world: &World) {
    eventually("it is known what may be left over", async || {
        let runs = world.store.runs(Kind::Leftovers, 1).await.unwrap();
        runs.first().is_some_and(|run| run.state == State::Finished)
    })
    .await;
}

// ----------------------------------------------------------------------------------------------------- database lost

async fn a_lost_database_finds_everything_again(setup: Setup) {
    let mut world = World::start(setup).await;
    let school = first_week(&world).await;
    let mut school = second_week(&world, &school).await;
    let (before, known) = (committed(&world), links(&world).await);
    world.stop().await;
    lose_database(&mut world).await;
    for teacher in 0..2 {
        world.connect_teacher(teacher).await;
    }
    world.serve().await;
    for (session, version) in [("s0", 1), ("s1", 2), ("s3", 3), ("s4", 2), ("s5", 1)] {
        world.ready(session, version).await;
    }
    leftovers_are_known(&world).await;
    world.until_settled().await;
    assert_eq!(since(&world, before), [0; 4], "everything is found again, by id or marker, and nothing written");
    assert_eq!(links(&world).await, known);
    assert_right(&world, &school);

    // It is lost again, and things happen meanwhile; this time teacher 1 is seeded late.
    world.stop().await;
    school[0] = school[0].canceled();
    school[1] = school[1].taught_by(1);
    school[3] = school[3].canceled();
    school[4] = school[4].taught_by(0);
    for n in [0, 1, 3, 4] {
        world.publish(&school[n]).await;
    }
    lose_database(&mut world).await;
    world.connect_teacher(0).await;
    let before = committed(&world);
    world.serve().await;
    world.canceled("s0", 2).await;
    world.canceled("s3", 4).await;
    world.error("s1", "TEACHER_NOT_CONNECTED").await;
    world.error("s5", "TEACHER_NOT_CONNECTED").await;
    world.ready("s4", 3).await;
    world.connect_teacher(1).await;
    world.ready("s1", 3).await;
    world.ready("s5", 1).await;
    world.until_settled().await;
    assert_right(&world, &school);
    // New on another calendar: two. Gone: two canceled ones, one of them a second generation, and two that moved away.
    assert_eq!(since(&world, before), [2, 0, 0, 4]);
    assert_eq!(json(&world, 0, &["verify", "--google"]).await["google"]["unchanged"], 3);
}

async fn stream_and_database_lost_find_everything_again(setup: Setup) {
    let mut world = World::start(setup).await;
    let school = first_week(&world).await;
    let school = second_week(&world, &school).await;
    let before = committed(&world);
    world.stop().await;
    remake_stream(&world.connection, &world.config.nats).await;
    lose_database(&mut world).await;
    for teacher in 0..2 {
        world.connect_teacher(teacher).await;
    }
    world.serve().await;
    // The booking backend tells once more what is.
    for event in &school {
        world.publish_raw(&meet_projector::event::subject(event), &[], encoded(event)).await;
    }
    for (session, version) in [("s0", 1), ("s1", 2), ("s3", 3), ("s4", 2), ("s5", 1)] {
        world.ready(session, version).await;
    }
    world.until_settled().await;
    assert_eq!(since(&world, before), [0; 4]);
    assert_right(&world, &school);
}

fn encoded(event: &SessionEvent) -> Vec<u8> {
    // Without its message id: the server may remember that one.
    meet_projector::event::encode(event).to_string().into_bytes()
}

// ------------------------------------------------------------------------------------------------ database put back

#[tokio::test(flavor = "multi_thread")]
async fn an_older_database_looks_before_it_writes() {
    let mut world = World::start(Setup::sqlite()).await;
    let first = first_week(&world).await;
    let copy = copy_database(&world).await;
    let mut school = second_week(&world, &first).await;
    let (before, known) = (committed(&world), links(&world).await);
    world.stop().await;
    let again = copy.with_extension("again");
    std::fs::copy(&copy, &again).unwrap();
    put_database_back(&mut world, &copy).await;
    world.serve().await;
    for (session, version) in [("s0", 1), ("s1", 2), ("s3", 3), ("s4", 2), ("s5", 1)] {
        world.ready(session, version).await;
    }
    leftovers_are_known(&world).await;
    world.until_settled().await;
    // The lesson that was canceled and revived has its second event, not its first one restored.
    assert_right(&world, &school);
    assert_eq!(since(&world, before), [0; 4], "what it had forgotten was done already");
    eventually("the links are known again", async || links(&world).await == known).await;

    // The same backup once more, and meanwhile the revived lesson is canceled and another one moved.
    world.stop().await;
    school[3] = school[3].canceled();
    school[1] = school[1].moved(HOUR_MS);
    world.publish(&school[3]).await;
    world.publish(&school[1]).await;
    put_database_back(&mut world, &again).await;
    world.serve().await;
    world.ready("s1", 3).await;
    world.canceled("s3", 4).await;
    leftovers_are_known(&world).await;
    world.until_settled().await;
    assert_right(&world, &school);
    assert_eq!(since(&world, before), [0, 1, 0, 1], "one patch and one delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_and_database_put_back_together_do_not_double_a_lesson() {
    let mut world = World::start(Setup::sqlite()).await;
    let first = first_week(&world).await;
    world.stop().await;
    let (copy, streams) = (copy_database(&world).await, world.nats.back_up().await);
    world.reconnect().await;
    world.serve().await;
    second_week(&world, &first).await;
    world.stop().await;
    world.nats.restore(streams.path()).await;
    world.reconnect().await;
    put_database_back(&mut world, &copy).await;
    world.serve().await;
    world.publish(&world.lesson("new", 0)).await;
    world.ready("new", 1).await;
    // Nothing tells that anything was lost but Google itself.
    let found = json(&world, 1, &["verify", "--google"]).await;
    assert_eq!((&found["google"]["deleted"], &found["google"]["changed"]), (&json!(3), &json!(1)), "{found}");
    json(&world, 1, &["verify", "--google", "--execute", "--reason", "both were put back"]).await;
    json(&world, 0, &["verify", "--google"]).await;
    world.assert_google_was_never_wrong();
    let live: Vec<_> = world.fake().events_of_session("s3").into_iter().filter(|event| event.is_live).collect();
    assert_eq!(live.len(), 1, "the one that was revived is taken, the first one not restored beside it: {live:?}");
    let document = world.document("s3").await.unwrap();
    assert_eq!(document["meetEventId"], live[0].id.as_str(), "{document}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_stream_and_a_lost_database_end_as_the_stream_says() {
    let mut world = World::start(Setup::sqlite()).await;
    let first = first_week(&world).await;
    world.stop().await;
    let streams = world.nats.back_up().await;
    world.reconnect().await;
    world.serve().await;
    second_week(&world, &first).await;
    world.stop().await;
    world.nats.restore(streams.path()).await;
    world.reconnect().await;
    lose_database(&mut world).await;
    for teacher in 0..2 {
        world.connect_teacher(teacher).await;
    }
    world.serve().await;
    for n in 0..5 {
        world.ready(&format!("s{n}"), 1).await;
    }
    world.until_settled().await;
    world.assert_google_was_never_wrong();
    for (n, event) in first.iter().enumerate() {
        let starts_at = event.details.as_ref().unwrap().starts_at;
        let live = world.fake().events_of_session(&format!("s{n}"));
        let here: Vec<_> = live.iter().filter(|event| event.is_live && event.account == world.email(0)).collect();
        assert_eq!((here.len(), here[0].starts_at), (1, starts_at), "s{n}: {live:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_made_anew_and_an_older_database_converge_when_told_again() {
    let mut world = World::start(Setup::sqlite()).await;
    let first = first_week(&world).await;
    let copy = copy_database(&world).await;
    let school = second_week(&world, &first).await;
    let before = committed(&world);
    world.stop().await;
    remake_stream(&world.connection, &world.config.nats).await;
    put_database_back(&mut world, &copy).await;
    world.serve().await;
    for event in &school {
        world.publish_raw(&meet_projector::event::subject(event), &[], encoded(event)).await;
    }
    for (session, version) in [("s0", 1), ("s1", 2), ("s3", 3), ("s4", 2), ("s5", 1)] {
        world.ready(session, version).await;
    }
    world.until_settled().await;
    // Only Google knows that the revived lesson has another event than this database thinks.
    json(&world, 1, &["verify", "--google", "--execute", "--reason", "the backup is old"]).await;
    json(&world, 0, &["verify", "--google"]).await;
    assert_right(&world, &school);
    assert_eq!(since(&world, before), [0; 4]);
}

// ------------------------------------------------------------------------------------------ stream put back, made anew

async fn a_stream_put_back_waits_for_a_person(setup: Setup) {
    let mut world = World::start(setup).await;
    let first = first_week(&world).await;
    world.stop().await;
    let streams = world.nats.back_up().await;
    world.reconnect().await;
    world.serve().await;
    let mut school = second_week(&world, &first).await;
    world.nats.restore(streams.path()).await;
    world.reconnect().await;
    let reason = world.until_not_ready("stream").await;
    assert!(reason.contains("ends at sequence 5 although we read up to"), "{reason}");
    let before = requests(&world);
    let new = world.lesson("new", 0);
    world.publish(&new).await;
    let moved = first[0].moved(HOUR_MS);
    world.publish(&moved).await;
    for args in [["replay", "--all"], ["rebuild", "diff"]] {
        let text = run(&world, &args).await.text(1);
        assert!(text.contains("epoch adopt"), "{text}");
    }

    let plan = json(&world, 0, &["epoch", "adopt"]).await;
    assert_eq!(
        (&plan["executed"], &plan["fork"], &plan["firstSequence"]),
        (&json!(false), &json!(5), &json!(6)),
        "{plan}"
    );
    assert_eq!((&plan["sessions"], &plan["sessionsWithoutTheirEvent"]), (&json!(["new", "s0"]), &json!(5)), "{plan}");
    assert_eq!(plan["withoutTheirEvent"], json!(["s1", "s2", "s3", "s4", "s5"]), "{plan}");
    assert_eq!((&plan["calls"]["insert"], &plan["calls"]["patch"]), (&json!(1), &json!(1)), "{plan}");
    run(&world, &["epoch", "adopt", "--execute"]).await.text(2);
    assert_eq!(requests(&world), before, "no effect before a person has decided");

    let text = run(&world, &["epoch", "adopt", "--execute", "--reason", "last night's backup"]).await.text(0);
    assert!(text.contains("opened epoch 2 from sequence 6"), "{text}");
    world.ready("new", 1).await;
    world.ready("s0", 2).await;
    world.until_ready().await;
    school[0] = moved;
    school.push(new);
    world.until_settled().await;
    assert_right(&world, &school);
    let verified = json(&world, 0, &["verify", "--google"]).await;
    assert_eq!((&verified["stream"]["expired"], &verified["stream"]["missing"]), (&json!(5), &json!(0)), "{verified}");
    let rebuilt = json(&world, 0, &["rebuild"]).await;
    assert_eq!(
        (&rebuilt["difference"]["expired"], &rebuilt["difference"]["identical"]),
        (&json!(5), &json!(2)),
        "{rebuilt}"
    );
}

async fn a_stream_made_anew_goes_on_by_itself(setup: Setup) {
    let world = World::start(setup).await;
    let first = first_week(&world).await;
    let mut school = second_week(&world, &first).await;
    let before = committed(&world);
    remake_stream(&world.connection, &world.config.nats).await;
    eventually("epoch 2 is open", async || world.store.epochs().await.unwrap().len() == 2).await;
    let new = world.lesson("new", 0);
    world.publish(&new).await;
    world.ready("new", 1).await;
    // A lower version than before: in the new epoch it is newer.
    let canceled = first[0].canceled();
    world.publish_raw(&meet_projector::event::subject(&canceled), &[], encoded(&canceled)).await;
    world.canceled("s0", 2).await;
    school[0] = canceled;
    school.push(new);
    world.until_settled().await;
    assert_right(&world, &school);
    assert_eq!(since(&world, before), [1, 0, 0, 1]);
    json(&world, 0, &["verify", "--google"]).await;
}
