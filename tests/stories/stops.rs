//! SIGTERM while something that the service needs is away. A drain that something holds up for ever ends with 1 after
//! its bound; one that gives up by itself what cannot be had ends with 0.

use std::net::TcpListener;

use meet_projector::fake::Operation::Insert;
use secrecy::ExposeSecret as _;

use super::drain::Serving;
use crate::support::service::{Setup, World, eventually};

/// Serves until the first session is READY.
async fn serving(world: &World) -> Serving {
    let serving = Serving::start(world);
    world.publish(&world.lesson("s1", 0)).await;
    eventually("Google made the event", async || world.fake().counters().committed_of(Insert) > 0).await;
    serving
}

fn stops(serving: Serving) {
    serving.terminate();
    assert_eq!(serving.ended(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_is_gone() {
    let mut world = World::prepare(Setup::sqlite()).await;
    let mut serving = serving(&world).await;
    world.nats.kill();
    // Events and results have a connection each.
    serving.until_logged("lost the connection to NATS");
    serving.until_logged("lost the connection to NATS");
    // The first attempt to reconnect has failed, so the library waits between two of them.
    serving.until_logged("NATS reports an error");
    stops(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nats_has_never_answered() {
    let world = World::prepare(Setup::sqlite()).await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nats://{}", silent.local_addr().unwrap());
    let serving = Serving::start_with(&world, &[("NATS_URL", &url)]);
    // The kernel has accepted both connections, and nobody says a word on them.
    stops(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_folder_of_the_database_was_removed() {
    let world = World::prepare(Setup::sqlite()).await;
    let serving = serving(&world).await;
    let url = world.config.database.0.expose_secret();
    let file = std::path::Path::new(url.strip_prefix("sqlite://").unwrap());
    std::fs::remove_dir_all(file.parent().unwrap()).unwrap();
    world.publish(&world.lesson("s2", 0)).await;
    stops(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_stands_still() {
    let world = World::prepare(Setup::postgres()).await;
    let serving = serving(&world).await;
    world.gate.as_ref().unwrap().mute();
    world.publish(&world.lesson("s2", 0)).await;
    stops(serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_postgresql_has_never_answered() {
    let world = World::prepare(Setup::postgres()).await;
    world.gate.as_ref().unwrap().mute();
    stops(Serving::start(&world));
}
