//! A thousand sessions while three of ten requests to Google go wrong, and then everything once more from the stream.

use std::time::Duration;

use meet_projector::fake::{Chaos, Operation};
use meet_projector::model::Epoch;
use meet_projector::store::{DatabaseUrl, Incoming, Store};

use super::school::{Dice, Ending, History, ending, history, unfinished, wrong};
use crate::support::service::{Setup, World, eventually};

const TEACHERS: usize = 20;
const SESSIONS: usize = 1_000;

/// Lost answers, half answers, late commits, refusals, slowness: it ends in exactly one right event for each live session
/// and none for a canceled one. Then a replay of the whole stream, and a lost database: neither writes anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_with_three_of_ten_requests_failing() {
    let dice = Dice::roll(30);
    let mut world = World::start(Setup::sqlite().standing_still().teachers(TEACHERS)).await;
    world.fake().set_chaos(Some(Chaos { slow_ms: 20, late_ms: 30, ..Chaos::new(dice.seed_of_faults(), 0.3) }));

    let histories: Vec<History> =
        (0..SESSIONS).map(|number| history(&world, &dice, &format!("s{number}"), TEACHERS)).collect();
    let endings: Vec<Ending> = histories.iter().map(|history| ending(&world, history)).collect();
    publish_in_disorder(&world, &dice, &histories).await;
    settle(&world, &endings).await;
    assert_eq!(wrong(&world, &endings), Vec::<String>::new());
    assert!(world.fake().counters().faults > 500, "the faults were not injected");

    // The same events again: the projection, the documents and Google stay as they are.
    world.fake().set_chaos(None);
    let (writes, sent) = (committed(&world), world.fake().counters().requests.clone());
    let documents = revisions(&world, &endings).await;
    replay(&world).await;
    assert_eq!(documents, revisions(&world, &endings).await);
    assert_eq!(world.store.counts(world.clock.now()).await.unwrap().due, 0);
    assert_eq!(sent, world.fake().counters().requests, "a replay asks Google nothing");

    // The database is lost: every event is found again by its id or its marker, and none is written.
    world.stop().await;
    let url = DatabaseUrl(format!("sqlite://{}", world.path("new.db").display()).into());
    world.store = Store::open(&url).await.unwrap();
    world.store.migrate().await.unwrap();
    world.config.database = url;
    for teacher in 0..TEACHERS {
        world.connect_teacher(teacher).await;
    }
    world.serve().await;
    settle(&world, &endings).await;
    assert_eq!(wrong(&world, &endings), Vec::<String>::new());
    assert_eq!(writes, committed(&world), "a lost database writes nothing");
    world.stop().await;
}

/// What Google carried out, by operation.
fn committed(world: &World) -> Vec<u64> {
    let counters = world.fake().counters();
    [Operation::Insert, Operation::Patch, Operation::Update, Operation::Delete]
        .map(|operation| counters.committed_of(operation))
        .to_vec()
}

/// Every event once or twice, in any order, with rubbish in between.
async fn publish_in_disorder(world: &World, dice: &Dice, histories: &[History]) {
    let mut events: Vec<_> = histories.iter().flatten().cloned().collect();
    for nth in 0..events.len() {
        if dice.percent(10) {
            let mut again = events[nth].clone();
            // Another id, so that it is the service and not the server that notices.
            again.event_id.push_str("-again");
            events.push(again);
        }
    }
    dice.shuffle(&mut events);
    for event in &events {
        world.publish(event).await;
        if dice.percent(1) {
            world.publish_raw("bookings.session.rubbish.scheduled", &[], b"{\"half\":".to_vec()).await;
        }
    }
}

/// Lets the time jump to whatever is due next until every document says what is expected and Google agrees.
async fn settle(world: &World, endings: &[Ending]) {
    world.folded().await;
    let mut looks = 0;
    loop {
        let now = world.clock.now();
        if world.store.counts(now).await.unwrap().due == 0 {
            let left = unfinished(world, endings).await;
            if left.is_empty() {
                return;
            }
            looks += 1;
            assert!(looks < 20_000, "{} sessions do not settle, such as {:?}", left.len(), left.first());
            if let Some(due) = world.store.next_due().await.unwrap()
                && due > now
            {
                // In steps of a minute at least, so that what is due soon after is done together.
                world.clock.set(due.max(now.plus(60_000)));
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn revisions(world: &World, endings: &[Ending]) -> Vec<(String, i64)> {
    let mut revisions = Vec::new();
    for ending in endings {
        let id = meet_projector::model::SessionId::parse(ending.expected.session.as_str()).unwrap();
        let stored = world.store.document(&id).await.unwrap().unwrap();
        revisions.push((stored.json, stored.revision));
    }
    revisions
}

/// Folds every message of the stream once more.
async fn replay(world: &World) {
    let mut next = 1;
    let mut group = Vec::new();
    while let Some(message) = world.connection.get_next("BOOKINGS", next, "bookings.>").await.unwrap() {
        next = message.sequence + 1;
        let place = meet_projector::model::Place { epoch: Epoch(1), sequence: message.sequence };
        let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let decoded = meet_projector::event::decode(&message.raw.subject, headers, &message.raw.payload, place);
        group.push(Incoming {
            sequence: message.sequence,
            stored_at: message.stored_at(),
            fingerprint: message.fingerprint(),
            raw: message.raw,
            decoded,
        });
    }
    for group in group.chunks(256) {
        world.store.fold(Epoch(1), group, world.clock.now()).await.unwrap();
    }
    let outbox = async || world.store.counts(world.clock.now()).await.unwrap().outbox == 0;
    eventually("all results are published", outbox).await;
}
