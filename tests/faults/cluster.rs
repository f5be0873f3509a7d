//! A NATS cluster of three loses its leader in every way a leader can be lost, while lessons are booked.

use async_nats::HeaderMap;
use meet_projector::event::{SessionEvent, encode, subject};
use meet_projector::fake::Operation;
use meet_projector::model::Epoch;
use meet_projector::nats::Connection;
use meet_projector::nats::epoch::sight::durable_name;
use serde_json::Value;

use super::school::{assert_results_are_whole, assert_right, ending, unfinished};
use crate::support::cluster::Cluster;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

/// Lessons booked in each phase of the story.
const LESSONS: usize = 12;

/// Publishes as an outbox does: again, under the same id, until the stream has it.
async fn publish(connection: &Connection, event: &SessionEvent) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", event.event_id.as_str());
    headers.insert("Content-Type", "application/cloudevents+json");
    eventually("the stream takes an event", async || {
        let (to, payload) = (subject(event), encode(event).to_string().into());
        let Ok(answer) = connection.client.request_with_headers(to, headers.clone(), payload).await else {
            return false;
        };
        serde_json::from_slice::<Value>(&answer.payload).is_ok_and(|answer| answer["seq"].is_i64())
    })
    .await;
}

/// A world whose service, and whose own connection, are on the cluster.
async fn on_a_cluster() -> (World, Cluster) {
    let (cluster, connection) = Cluster::start().await;
    let mut world = World::prepare(Setup::sqlite().teachers(3)).await;
    world.config.nats = cluster.config();
    world.connection = connection;
    world.serve().await;
    (world, cluster)
}

/// The leader of the stream steps down, the leader of the durable does, the server that leads is killed and comes back,
/// and every lesson is at Google once, with one result for each change.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_come_and_go() {
    let (mut world, mut cluster) = on_a_cluster().await;
    let durable = durable_name(&world.config.nats, Epoch(1));
    let mut histories: Vec<Vec<SessionEvent>> = Vec::new();
    let mut killed = None;
    for phase in 0..5 {
        for lesson in 0..LESSONS {
            let lesson = world.lesson(&format!("s{phase}_{lesson}"), lesson % 3);
            publish(&world.connection, &lesson).await;
            histories.push(vec![lesson]);
            if lesson_of(&histories) != LESSONS / 2 {
                continue;
            }
            match phase {
                1 => Cluster::step_down(&world.connection, "STREAM.LEADER.STEPDOWN.BOOKINGS").await,
                2 => {
                    let what = format!("CONSUMER.LEADER.STEPDOWN.BOOKINGS.{durable}");
                    Cluster::step_down(&world.connection, &what).await;
                }
                3 => {
                    let leader = cluster.leader(&world.connection).await;
                    cluster.servers[leader].kill();
                    killed = Some(leader);
                }
                4 => {
                    let back = killed.expect("one was killed in the phase before");
                    cluster.servers[back].run().await;
                }
                _ => {}
            }
        }
    }
    // Each is moved, so that what was booked before a leader was lost is known after it.
    for history in &mut histories {
        let moved = history[0].moved(HOUR_MS);
        publish(&world.connection, &moved).await;
        history.push(moved);
    }
    let endings: Vec<_> = histories.iter().map(|history| ending(&world, history)).collect();
    eventually("every lesson is settled", async || unfinished(&world, &endings).await.is_empty()).await;
    assert_right(&world, &endings).await;
    assert_results_are_whole(&world).await;
    let counters = world.fake().counters();
    let inserts = i64::try_from(counters.committed_of(Operation::Insert)).unwrap();
    assert_eq!(inserts, i64::try_from(histories.len()).unwrap(), "one event for each lesson");
    let position = world.store.position(Epoch(1)).await.unwrap();
    assert_eq!(position.contiguous, 2 * inserts, "every message was processed");
    world.stop().await;
}

/// Which lesson of its phase was booked last, from 1.
fn lesson_of(histories: &[Vec<SessionEvent>]) -> usize {
    (histories.len() - 1) % LESSONS + 1
}

/// Without a majority there is no stream: the service says so, reads go on, and nothing is lost when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_it_waits() {
    let (mut world, mut cluster) = on_a_cluster().await;
    let before = world.lesson("before", 0);
    publish(&world.connection, &before).await;
    world.ready("before", 1).await;

    let leader = cluster.leader(&world.connection).await;
    let other = (leader + 1) % 3;
    cluster.servers[leader].kill();
    cluster.servers[other].kill();
    let why = world.until_not_ready("stream").await;
    assert!(!why.is_empty());
    assert_eq!(world.document("before").await.unwrap()["meetStatus"], "READY", "reads go on");

    cluster.servers[leader].run().await;
    cluster.servers[other].run().await;
    let after = world.lesson("after", 1);
    publish(&world.connection, &after).await;
    world.ready("after", 1).await;
    world.until_ready().await;
    assert_right(&world, &[ending(&world, &[before]), ending(&world, &[after])]).await;
    assert_results_are_whole(&world).await;
    world.stop().await;
}
