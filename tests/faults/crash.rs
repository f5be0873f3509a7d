//! The process is killed at every step of a write, and at random, and started again on the same database.

use std::time::Duration;

use meet_projector::event::SessionEvent;
use meet_projector::fake::Operation;
use meet_projector::model::Epoch;
use meet_projector::nats::definitions::Definitions;
use meet_projector::nats::epoch::sight::durable_name;

use super::school::{Dice, Ending, History, ending, history, unfinished, wrong};
use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// What a dead process had in hand comes again after this time instead of 30 s. Making the durable anew would be quicker
/// still, but forgets how often a message was delivered, by which one that kills its reader is told.
async fn shorten_ack_wait(world: &World) {
    let definitions = Definitions::load(None, &world.config.nats, None).unwrap();
    let mut durable = definitions.consumer(&durable_name(&world.config.nats, Epoch(1)));
    durable["ack_wait"] = 1_000_000_000.into();
    world.connection.write_consumer("BOOKINGS", &durable, "update").await.unwrap();
}

/// Schedule, reschedule and cancel of one session, the process dying at `place` in each of them.
async fn dies_at(place: &str) {
    let world = World::prepare(Setup::sqlite()).await;
    shorten_ack_wait(&world).await;
    let lesson = world.lesson("s1", 0);
    let moved = lesson.moved(HOUR_MS);
    let canceled = moved.canceled();
    let mut history: Vec<SessionEvent> = Vec::new();
    for (event, operation) in [(lesson, Operation::Insert), (moved, Operation::Patch), (canceled, Operation::Delete)] {
        let mut doomed = Serving::start(&world, Some(&format!("{place}:1")));
        history.push(event.clone());
        world.publish(&event).await;
        let status = doomed.ended().await;
        assert!(!status.success(), "the process reached {place} and died");

        let again = Serving::start(&world, None);
        let wanted = [ending(&world, &history)];
        eventually(&format!("the {operation:?} is finished after a crash at {place}"), async || {
            unfinished(&world, &wanted).await.is_empty()
        })
        .await;
        assert_eq!(wrong(&world, &wanted), Vec::<String>::new(), "after a crash at {place} in {operation:?}");
        let outbox = async || world.store.counts(world.clock.now()).await.unwrap().outbox == 0;
        eventually("all results are published", outbox).await;
        again.kill();
    }
    let counters = world.fake().counters();
    let committed = [Operation::Insert, Operation::Patch, Operation::Delete].map(|one| counters.committed_of(one));
    assert_eq!(committed, [1, 1, 1], "one of each was carried out, with crashes at {place}");
    assert_eq!(counters.no_op_writes, 0);
    results_are_whole(&world).await;
}

/// Every result at least once, those of a session in order; the last one is the document.
async fn results_are_whole(world: &World) {
    let published = world.published().await;
    let mut newest = std::collections::BTreeMap::new();
    for one in &published {
        let data = &one.event["data"];
        let session = data["sessionId"].as_str().unwrap().to_owned();
        let at = data["updatedAt"].as_str().unwrap().to_owned();
        if let Some(before) = newest.insert(session.clone(), at.clone()) {
            let parse = |text: &str| meet_projector::model::UnixMillis::parse_rfc3339(text).unwrap();
            assert!(parse(&before) <= parse(&at), "results of {session} are out of order");
        }
    }
    assert!(!published.is_empty());
}

macro_rules! dies_at {
    ($($name:ident: $place:literal,)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            dies_at($place).await;
        })*
    };
}

dies_at! {
    before_the_fold: "before_fold",
    between_fold_and_acknowledgement: "after_fold",
    before_the_intent: "before_intent",
    between_intent_and_call: "after_intent",
    between_call_and_record: "after_call",
    after_the_record: "after_record",
    between_publish_and_removal: "after_publish",
}

/// `kill -9` of the service at random moments, and of the NATS server once, while a school goes on booking.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_while_events_come_in() {
    const TEACHERS: usize = 6;
    let dice = Dice::roll(9);
    let mut world = World::prepare(Setup::sqlite().teachers(TEACHERS)).await;
    shorten_ack_wait(&world).await;
    world.fake().configure(|settings| settings.latency_ms = 5);
    let histories: Vec<History> =
        (0..60).map(|number| history(&world, &dice, &format!("s{number}"), TEACHERS)).collect();
    let mut events: Vec<SessionEvent> = histories.iter().flatten().cloned().collect();
    dice.shuffle(&mut events);
    for (nth, events) in events.chunks(12).enumerate() {
        let serving = Serving::start(&world, None);
        for event in events {
            world.publish(event).await;
        }
        // A moment of its life, chosen by the seed: before it is up, in the middle of its work, or idle.
        tokio::time::sleep(Duration::from_millis(20 * dice.below(20) as u64)).await;
        serving.kill();
        if nth == 3 {
            world.nats.restart().await;
            world.reconnect().await;
        }
    }
    let serving = Serving::start(&world, None);
    let endings: Vec<Ending> = histories.iter().map(|history| ending(&world, history)).collect();
    let live = || endings.iter().filter(|ending| ending.is_live());
    eventually("every live session is settled", async || unfinished(&world, live()).await.is_empty()).await;
    // A cancel after an insert of unknown outcome goes on looking for a quarter of an hour, but nothing is there already.
    eventually("nothing is wrong at Google", async || wrong(&world, &endings).is_empty()).await;
    serving.kill();
}
