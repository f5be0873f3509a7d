//! What a teacher changes by hand is noticed on the schedule, put right within the budget, and then left to people.

use meet_projector::fake::Operation::{Get, Update};
use meet_projector::fake::TeacherAction;
use serde_json::Value;

use crate::support::service::{HOUR_MS, Setup, World, eventually};

const MINUTE_MS: i64 = 60_000;

/// Moves the clock and lets everything that is due then be done.
async fn later(world: &World, by_ms: i64) {
    world.clock.advance_ms(by_ms);
    world.service.as_ref().unwrap().wake.notify_one();
    eventually("nothing is due", async || world.store.counts(world.clock.now()).await.unwrap().busy == 0).await;
}

fn looks(world: &World) -> u64 {
    world.fake().counters().requests_of(Get)
}

fn delete(world: &World, document: &Value) {
    let id = document["meetEventId"].as_str().unwrap();
    world.fake().teacher(world.email(0), id, &TeacherAction::Delete).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_event_is_restored_twice_and_then_a_person_is_asked() {
    let world = World::start(Setup::sqlite().standing_still()).await;
    world.publish(&world.lesson("s1", 0)).await;
    let first = world.ready("s1", 1).await;
    for nth in 1..=2 {
        delete(&world, &first);
        // A minute after a write, and a quarter of one at most.
        later(&world, 76_000).await;
        let document = world.ready("s1", 1).await;
        assert_eq!(document["meetEventId"], first["meetEventId"]);
        assert_eq!(document["meetLink"], first["meetLink"]);
        assert_eq!(world.fake().counters().committed_of(Update), nth, "restored");
    }
    delete(&world, &first);
    later(&world, 76_000).await;
    let document = world.error("s1", "EVENT_REMOVED_BY_TEACHER").await;
    assert_eq!(document["error"]["action"], "retry", "{document}");
    assert!(document["error"]["message"].as_str().unwrap().contains("removed the event"), "{document}");
    assert_eq!(world.fake().counters().committed_of(Update), 2, "two in a day, and no more");
    assert_eq!(world.fake().live_events().len(), 0);
    later(&world, 25 * HOUR_MS).await;
    assert_eq!(world.fake().counters().committed_of(Update), 2, "nor the next day, until a person presses retry");
    world.assert_google_was_never_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moved_event_is_put_right_twice_and_then_a_person_is_asked() {
    let world = World::start(Setup::sqlite().standing_still()).await;
    world.publish(&world.lesson("s1", 0)).await;
    let first = world.ready("s1", 1).await;
    let id = first["meetEventId"].as_str().unwrap();
    let shift = || world.fake().teacher_shifts(world.email(0), id, HOUR_MS).unwrap();
    for _ in 0..2 {
        shift();
        later(&world, 76_000).await;
        world.ready("s1", 1).await;
        let starts_at = world.fake().event(world.email(0), id).unwrap().starts_at;
        assert_eq!(first["startsAt"], starts_at.to_rfc3339(), "it is back where it was");
    }
    shift();
    later(&world, 76_000).await;
    let document = world.error("s1", "EVENT_CHANGED_BY_TEACHER").await;
    assert_eq!(document["error"]["action"], "retry", "{document}");
}

/// <https://developers.google.com/workspace/calendar/api/guides/quota>: five looks or so in the life of an event.
#[tokio::test(flavor = "multi_thread")]
async fn looks_come_after_a_write_daily_and_before_the_start() {
    let world = World::start(Setup::sqlite().standing_still()).await;
    let lesson = world.lesson("s1", 0);
    let starts_at = lesson.details.as_ref().unwrap().starts_at;
    world.publish(&lesson).await;
    world.ready("s1", 1).await;
    let (begun, written_at) = (looks(&world), world.clock.now());
    let mut seen = Vec::new();
    while world.clock.now() < starts_at {
        let before = looks(&world);
        let asked_at = world.clock.now();
        later(&world, MINUTE_MS).await;
        if looks(&world) > before {
            seen.push(asked_at.plus(MINUTE_MS));
        }
    }
    assert_eq!(looks(&world) - begun, seen.len() as u64, "each is one request");
    let before_start: Vec<i64> = seen.iter().map(|at| starts_at.since(*at) / MINUTE_MS).collect();
    assert!(seen[0].since(written_at) <= 2 * MINUTE_MS, "soon after the write: {before_start:?}");
    for wanted in [24 * 60, 2 * 60, 15] {
        assert!(
            before_start.iter().any(|at| (wanted - 1..=wanted).contains(at)),
            "{wanted} min before: {before_start:?}"
        );
    }
    assert!(seen.len() <= 9, "{before_start:?}");
    let longest = seen.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap();
    assert!(longest <= 24 * HOUR_MS + MINUTE_MS, "at least daily: {before_start:?}");
    assert!(*before_start.last().unwrap() >= 14, "none once it is about to start: {before_start:?}");
}
