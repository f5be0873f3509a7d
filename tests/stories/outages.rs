//! NATS or the database are away, at the start or later: reads go on where they can, readiness says what is missing, and
//! everything comes up again by itself.

use meet_projector::fake::Operation::{Insert, Patch};
use meet_projector::fake::{Fault, Rule};
use reqwest::StatusCode;

use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

stories! {
    on both databases:
        nats_is_down_at_the_start,
        nats_goes_away_and_comes_back;
}

async fn nats_is_down_at_the_start(setup: Setup) {
    let mut world = World::prepare(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    world.nats.kill();
    world.serve().await;
    let reason = world.until_not_ready("nats").await;
    assert!(reason.contains("NATS"), "{reason}");
    assert_eq!(world.get("/livez").await.status, StatusCode::OK);
    assert_eq!(world.get("/api/google/meet/s1").await.status, StatusCode::NOT_FOUND, "reads are answered");

    world.nats.run().await;
    world.ready("s1", 1).await;
    world.until_ready().await;
}

async fn nats_goes_away_and_comes_back(setup: Setup) {
    let mut world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let before = world.ready("s1", 1).await;
    world.until_ready().await;
    world.until_published("the link", |messages| messages.iter().any(|m| m.event["data"] == before)).await;

    // A call to Google is under way while NATS goes: its result is kept, shown, and told when NATS is back.
    let slow = world.fake().add_fault(Rule::once(Insert, Fault::slow(1_500)));
    world.publish(&world.lesson("s2", 0)).await;
    let begun = |world: &World| world.fake().faults().iter().any(|state| state.id == slow && state.hits > 0);
    eventually("Google is asked", async || begun(&world)).await;
    world.nats.kill();
    let reason = world.until_not_ready("nats").await;
    assert!(reason.contains("NATS"), "{reason}");
    assert_eq!(world.get("/livez").await.status, StatusCode::OK);
    assert_eq!(world.document("s1").await, Some(before), "reads go on");
    let untold = world.ready("s2", 1).await;

    world.nats.run().await;
    world.until_ready().await;
    world
        .until_published("what happened meanwhile", |messages| messages.iter().any(|m| m.event["data"] == untold))
        .await;
    world.publish(&lesson.moved(HOUR_MS)).await;
    world.ready("s1", 2).await;
    assert_eq!(world.writes("s1"), [Insert, Patch]);
    assert_eq!(world.writes("s2"), [Insert]);
}

/// What readers get while the database is away.
async fn assert_reads_say_unavailable(world: &World) {
    let answer = world.get("/api/google/meet/s9").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.json);
    assert_eq!(answer.json["status"], 503);
    assert!(answer.json["code"].is_string(), "{}", answer.json);
    assert_eq!(world.get("/livez").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_down_at_the_start() {
    let mut world = World::prepare(Setup::postgres()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.gate.as_mut().unwrap().shut();
    world.serve().await;
    world.until_not_ready("database").await;
    assert_reads_say_unavailable(&world).await;

    world.gate.as_mut().unwrap().open();
    world.until_ready().await;
    world.ready("s1", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_goes_away_and_comes_back() {
    let mut world = World::start(Setup::postgres().standing_still()).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let before = world.ready("s1", 1).await;

    world.gate.as_mut().unwrap().shut();
    world.until_not_ready("database").await;
    assert_reads_say_unavailable(&world).await;
    world.publish(&lesson.moved(HOUR_MS)).await;
    world.publish(&world.lesson("s2", 1)).await;

    world.gate.as_mut().unwrap().open();
    eventually("the database answers", async || world.readiness().await.status == StatusCode::OK).await;
    // A claim whose answer was cut off holds its calendar until its lease runs out.
    world.clock.advance_ms(61_000);
    let after = world.ready("s1", 2).await;
    world.ready("s2", 1).await;
    assert_eq!(after["meetLink"], before["meetLink"]);
    assert_eq!(world.writes("s1"), [Insert, Patch]);
    world.assert_google_was_never_wrong();
}
