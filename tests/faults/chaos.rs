//! A school while three of ten requests to Google go wrong; then the days pass, everything comes once more from the
//! stream, and the database is lost.

use meet_projector::event::decode;
use meet_projector::fake::{Chaos, Commit, Ending as Answer, Fault, Operation, Refusal, Rule, TeacherAction};
use meet_projector::model::{Epoch, Place, SessionId};
use meet_projector::store::{DatabaseUrl, Incoming, Store};

use super::leaps::{let_pass, settle};
use super::school::{
    Dice, Ending, History, assert_results_are_whole, assert_right, endings, history, publish_in_disorder,
};
use crate::support::service::{HOUR_MS, Setup, World};

/// A thousand sessions of twenty teachers.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_with_three_of_ten_requests_failing() {
    school_year(&Dice::fixed(30), 20, 1_000).await;
}

/// Fewer sessions, and other faults in every run.
#[tokio::test(flavor = "multi_thread")]
async fn a_school_that_was_never_seen_before() {
    school_year(&Dice::fresh(), 7, 150).await;
}

/// Lost answers, half answers, late commits, refusals, slowness: it ends in exactly one right event for each live session
/// and none for a canceled one, and nothing that comes later writes without need.
async fn school_year(dice: &Dice, teachers: usize, sessions: usize) {
    let mut world = World::start(Setup::sqlite().standing_still().teachers(teachers)).await;
    // What is accepted late is carried out when time has passed, which it does in leaps.
    let late = Fault::new(Commit::OnRelease, Answer::Refuse(Refusal::of(504, "gatewayTimeout")));
    for operation in [Operation::Insert, Operation::Patch, Operation::Update, Operation::Delete] {
        world.fake().add_fault(Rule { probability: 0.04, ..Rule::on(operation, late.clone()) });
    }
    world.fake().set_chaos(Some(Chaos { slow_ms: 20, ..Chaos::new(dice.seed_of_faults(), 0.3) }));
    world.fake().configure(|settings| settings.recording.keep = 0);

    let histories: Vec<History> =
        (0..sessions).map(|number| history(&world, dice, &format!("s{number}"), teachers)).collect();
    let endings = endings(&world, &histories);
    let rubbish = publish_in_disorder(&world, dice, &histories).await;
    settle(&world, dice, &endings).await;
    assert_right(&world, &endings).await;
    assert!(world.fake().counters().faults > sessions as u64 / 2, "the faults were not injected");
    assert_eq!(world.store.counts(world.clock.now()).await.unwrap().dead_letters, rubbish);
    assert_results_are_whole(&world).await;
    world.fake().clear_faults();

    days_pass(&world, &endings).await;
    the_stream_is_folded_again(&world, &endings).await;
    the_database_is_lost(&mut world, dice, &endings, teachers).await;
    world.stop().await;
}

/// Looks at settled events write only where a teacher changed something, and that once.
async fn days_pass(world: &World, endings: &[Ending]) {
    let first_start = endings.iter().filter_map(|ending| ending.expected.live.as_ref()).map(|live| live.starts_at_ms);
    let before_all = first_start.min().expect("somebody teaches") - HOUR_MS;
    let untouched = requests(world);
    let_pass(world, world.clock.now().plus(24 * HOUR_MS)).await;
    let_pass(world, world.clock.now().plus(6 * HOUR_MS)).await;
    assert!(requests(world)[GET] > untouched[GET], "settled events are looked at");
    assert_eq!(requests(world)[WRITES], untouched[WRITES], "nobody touched anything");

    let touched: Vec<_> = endings.iter().filter(|ending| ending.is_live()).take(30).collect();
    for (nth, ending) in touched.iter().enumerate() {
        let events = world.fake().events_of_session(&ending.expected.session);
        let event = events.iter().find(|event| event.is_live).unwrap();
        let done = match nth % 3 {
            0 => world.fake().teacher(&event.account, &event.id, &TeacherAction::Delete),
            1 => world.fake().teacher_shifts(&event.account, &event.id, HOUR_MS),
            _ => world.fake().teacher(&event.account, &event.id, &TeacherAction::RemoveConference),
        };
        done.unwrap();
    }
    let before = committed(world);
    let_pass(world, meet_projector::model::UnixMillis::new(before_all)).await;
    assert_right(world, endings).await;
    let repairs: Vec<u64> = committed(world).iter().zip(before).map(|(now, before)| now - before).collect();
    let touched = |kind| touched.iter().skip(kind).step_by(3).count() as u64;
    assert_eq!(repairs, [0, touched(1) + touched(2), touched(0), 0], "one write mends one change");
    assert_results_are_whole(world).await;
}

/// A replay asks Google nothing and tells nobody anything.
async fn the_stream_is_folded_again(world: &World, endings: &[Ending]) {
    let (documents, sent, told) = (documents(world, endings).await, requests(world), told(world).await);
    let mut group = Vec::new();
    let mut next = 1;
    while let Some(message) = world.connection.get_next("BOOKINGS", next, "bookings.>").await.unwrap() {
        next = message.sequence + 1;
        let place = Place { epoch: Epoch(1), sequence: message.sequence };
        let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let decoded = decode(&message.raw.subject, headers, &message.raw.payload, place);
        let (stored_at, fingerprint) = (message.stored_at(), message.fingerprint());
        group.push(Incoming { sequence: message.sequence, stored_at, fingerprint, raw: message.raw, decoded });
    }
    for group in group.chunks(256) {
        let report = world.store.fold(Epoch(1), group, world.clock.now()).await.unwrap();
        assert!(!report.work_due && report.changed.is_empty(), "{report:?}");
    }
    let_pass(world, world.clock.now().plus(1)).await;
    assert_eq!(documents, self::documents(world, endings).await);
    assert_eq!(sent, requests(world), "a replay asks Google nothing");
    assert_eq!(world.store.counts(world.clock.now()).await.unwrap().outbox, 0);
    assert_eq!(told, self::told(world).await, "a replay tells nobody anything");
}

/// Every event is found again by its id or its marker, and none is written: inserts meet used ids, looks do the rest.
async fn the_database_is_lost(world: &mut World, dice: &Dice, endings: &[Ending], teachers: usize) {
    let (links, sent, carried_out) = (links(world, endings).await, requests(world), committed(world));
    world.stop().await;
    let url = DatabaseUrl(format!("sqlite://{}", world.path("new.db").display()).into());
    world.store = Store::open(&url).await.unwrap();
    world.store.migrate().await.unwrap();
    world.config.database = url;
    for teacher in 0..teachers {
        world.connect_teacher(teacher).await;
    }
    world.serve().await;
    settle(world, dice, endings).await;
    assert_right(world, endings).await;
    assert_eq!(links, self::links(world, endings).await);
    assert_eq!(carried_out, committed(world), "a lost database writes nothing");
    let tried = requests(world);
    assert_eq!(tried[PATCH..], sent[PATCH..], "nothing but inserts of used ids is even tried");
    let live = endings.iter().filter(|ending| ending.is_live()).count() as u64;
    assert!(tried[GET] - sent[GET] >= live, "each is looked at");
}

const GET: usize = 0;
const PATCH: usize = 2;
const WRITES: std::ops::RangeFrom<usize> = 1..;

/// Requests that Google got: get, insert, patch, update, delete.
fn requests(world: &World) -> [u64; 5] {
    let counters = world.fake().counters();
    [Operation::Get, Operation::Insert, Operation::Patch, Operation::Update, Operation::Delete]
        .map(|operation| counters.requests_of(operation))
}

/// What Google carried out: insert, patch, update, delete.
fn committed(world: &World) -> [u64; 4] {
    let counters = world.fake().counters();
    [Operation::Insert, Operation::Patch, Operation::Update, Operation::Delete]
        .map(|operation| counters.committed_of(operation))
}

/// Results on stream `MEET`.
async fn told(world: &World) -> i64 {
    world.connection.stream_info("MEET").await.unwrap().unwrap().state.last_seq
}

async fn documents(world: &World, endings: &[Ending]) -> Vec<(String, i64)> {
    let mut documents = Vec::new();
    for ending in endings {
        let stored = world.store.document(&ending.session()).await.unwrap().unwrap();
        documents.push((stored.json, stored.revision));
    }
    documents
}

async fn links(world: &World, endings: &[Ending]) -> Vec<(SessionId, String)> {
    let mut links = Vec::new();
    for (ending, (json, _)) in endings.iter().zip(documents(world, endings).await) {
        let document: serde_json::Value = serde_json::from_str(&json).unwrap();
        links.push((ending.session(), document["meetLink"].to_string()));
    }
    links
}
