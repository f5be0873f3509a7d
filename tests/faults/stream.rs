//! The process is killed between stream and database: around the fold, the acknowledgement, and the publishing of
//! results.

use meet_projector::fake::Operation;
use meet_projector::model::Epoch;
use meet_projector::nats::definitions::Definitions;
use meet_projector::nats::epoch::sight::durable_name;

use super::school::{assert_results_are_whole, assert_right, ending, unfinished};
use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// What a dead process had in hand comes again after this time instead of 30 s. Making the durable anew would be quicker
/// still, but forgets how often a message was delivered, by which one that kills its reader is told.
pub(super) async fn shorten_ack_wait(world: &World) {
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
    let mut history = Vec::new();
    for event in [lesson, moved, canceled] {
        let mut doomed = Serving::start(&world, Some(&format!("{place}:1")));
        world.publish(&event).await;
        history.push(event);
        assert!(!doomed.ended().await.success(), "the process reached {place} and died");

        let again = Serving::start(&world, None);
        let wanted = [ending(&world, &history)];
        let version = history.len();
        eventually(&format!("version {version} is settled"), async || unfinished(&world, &wanted).await.is_empty())
            .await;
        assert_right(&world, &wanted).await;
        assert_results_are_whole(&world).await;
        again.kill();
    }
    let counters = world.fake().counters();
    let committed = [Operation::Insert, Operation::Patch, Operation::Delete].map(|one| counters.committed_of(one));
    assert_eq!(committed, [1, 1, 1], "one of each was carried out, with crashes at {place}");
    let fresh = world.store.position(Epoch(1)).await.unwrap();
    assert_eq!(fresh.contiguous, 3, "every event was processed");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_fold() {
    dies_at("before_fold").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_fold_and_acknowledgement() {
    dies_at("after_fold").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_acknowledgement() {
    dies_at("after_ack").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_result_is_published() {
    dies_at("before_publish").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_publish_and_removal() {
    dies_at("after_publish").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_removal() {
    dies_at("after_removal").await;
}
