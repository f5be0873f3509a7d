//! What a calendar gets in the ordinary course of a lesson.

use meet_projector::fake::Operation::{Delete, Insert, Patch};
use serde_json::json;

use crate::support::service::{HOUR_MS, Setup, Then as _, World};

#[tokio::test(flavor = "multi_thread")]
async fn scheduling_makes_an_event_with_a_link() {
    let world = World::start(Setup::sqlite()).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let document = world.ready("s1", 1).await;
    println!("{document:#}");
    let id = document["meetEventId"].as_str().unwrap();
    let event = world.fake().resource(world.email(0), id).unwrap();
    println!("{event:#}");
    assert_eq!(world.writes("s1"), [Insert]);
}
