//! Results to stream `MEET`.

use std::sync::Arc;

use meet_projector::clock::Clock;
use meet_projector::model::UnixMillis;
use meet_projector::nats::Connection;
use meet_projector::outbox::{self, OutboxContext, OutboxHealth};
use meet_projector::store::Store;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Database, Ingest};
use crate::support::nats::{NatsServer, define, delete_stream, eventually, publish_event, stream};

fn relay(server: &NatsServer, store: &Store) -> (Arc<OutboxHealth>, CancellationToken, JoinHandle<()>) {
    let (health, cancel) = (Arc::new(OutboxHealth::default()), CancellationToken::new());
    let task = tokio::spawn(outbox::run(OutboxContext {
        nats: server.config(),
        store: store.clone(),
        clock: Clock::system(),
        health: Arc::clone(&health),
        cancel: cancel.clone(),
    }));
    (health, cancel, task)
}

async fn until_empty(store: &Store) {
    eventually("nothing waits to be published", async || store.counts(UnixMillis::new(0)).await.unwrap().outbox == 0)
        .await;
}

/// The session and version of every result, in the order of the stream.
async fn results(connection: &Connection) -> Vec<(String, i64)> {
    let state = stream(connection, "MEET").await.state;
    let mut results = Vec::new();
    for sequence in 1..=state.last_seq {
        let message = connection.get("MEET", sequence).await.unwrap().unwrap();
        let header = |name: &str| message.raw.headers.iter().find(|(known, _)| known == name).unwrap().1.clone();
        let event: Value = serde_json::from_slice(&message.raw.payload).unwrap();
        assert_eq!(event["id"], header("Nats-Msg-Id"));
        assert_eq!(header("Content-Type"), "application/cloudevents+json");
        let data = &event["data"];
        let session = data["sessionId"].as_str().unwrap().to_owned();
        let status = data["meetStatus"].as_str().unwrap().to_lowercase();
        assert_eq!(message.raw.subject, format!("meet.session.{session}.{status}"));
        results.push((session, data["version"].as_i64().unwrap()));
    }
    results
}

#[tokio::test]
async fn results_of_a_session_are_published_in_order() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    // Each version is committed on its own, so each makes a result.
    for version in 1..=20 {
        for session in ["s1", "s2"] {
            let sequence = publish_event(&connection.client, session, "scheduled", version).await;
            ingest.until_read(1, sequence).await;
        }
    }
    let (health, cancel, task) = relay(&server, &database.store);
    until_empty(&database.store).await;
    let results = results(&connection).await;
    for session in ["s1", "s2"] {
        let versions: Vec<i64> = results.iter().filter(|(id, _)| id == session).map(|(_, version)| *version).collect();
        assert_eq!(versions, (1..=20).collect::<Vec<_>>());
    }
    assert_eq!(health.snapshot().published, 40);

    // And when something changes while it waits.
    let sequence = publish_event(&connection.client, "s3", "scheduled", 1).await;
    ingest.until_read(1, sequence).await;
    until_empty(&database.store).await;
    assert_eq!(health.snapshot().published, 41);
    cancel.cancel();
    task.await.unwrap();
    ingest.stop().await;
}

#[tokio::test]
async fn results_wait_for_a_missing_stream_and_a_dead_server() {
    let (mut server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    delete_stream(&connection, "MEET").await;
    let ingest = Ingest::start(server.config(), &database.store);
    let sequence = publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, sequence).await;
    let (health, cancel, task) = relay(&server, &database.store);
    eventually("it says that the stream is missing", async || {
        health.snapshot().last_error.is_some_and(|error| error.contains("stream MEET does not exist"))
    })
    .await;
    define(&connection, &server.config()).await;
    until_empty(&database.store).await;
    assert_eq!(health.snapshot().last_error, None);

    let sequence = publish_event(&connection.client, "s1", "canceled", 2).await;
    server.kill();
    server.run().await;
    ingest.until_read(1, sequence).await;
    until_empty(&database.store).await;
    let connection = server.connect().await;
    let mut results = results(&connection).await;
    results.dedup();
    assert_eq!(results, [("s1".to_owned(), 1), ("s1".to_owned(), 2)]);
    cancel.cancel();
    task.await.unwrap();
    ingest.stop().await;
}
