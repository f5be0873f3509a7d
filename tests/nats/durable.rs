//! The durable consumer against the database's position.

use futures_util::StreamExt;
use meet_projector::model::Epoch;
use serde_json::json;

use super::{Database, Ingest, version};
use crate::support::nats::{NatsServer, durable, eventually, publish_event};

const DURABLE: &str = "meet-projector-e1";

#[tokio::test]
async fn a_deleted_consumer_is_made_again_from_the_databases_position() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    for number in 0..10 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    ingest.until_read(1, 10).await;
    connection.delete_consumer("BOOKINGS", DURABLE).await.unwrap();
    let last = publish_event(&connection.client, "s10", "scheduled", 1).await;
    ingest.until_read(1, last).await;
    let info = durable(&connection, DURABLE).await.unwrap();
    assert_eq!(info.config["deliver_policy"], "by_start_sequence");
    assert_eq!(info.config["opt_start_seq"], 11);
    let now = ingest.now();
    assert_eq!(now.outcomes, [("applied", 11)].into(), "nothing was applied again: {now:?}");
    ingest.stop().await;
}

#[tokio::test]
async fn a_consumer_is_made_where_there_is_none() {
    let (server, connection) = NatsServer::with_definitions().await;
    connection.delete_consumer("BOOKINGS", DURABLE).await.unwrap();
    let database = Database::fresh().await;
    let last = publish_event(&connection.client, "s1", "scheduled", 1).await;
    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, last).await;
    let info = durable(&connection, DURABLE).await.unwrap();
    assert_eq!(info.config["deliver_policy"], "all");
    assert_eq!(info.config["max_ack_pending"], 4096);
    assert!(ingest.now().drift.is_empty());
    ingest.stop().await;
}

#[tokio::test]
async fn a_lost_database_is_built_again_although_everything_was_acknowledged() {
    let (server, connection) = NatsServer::with_definitions().await;
    let lost = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &lost.store);
    for number in 0..10 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    ingest.until_read(1, 10).await;
    ingest.stop().await;

    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, 10).await;
    assert_eq!(version(&database.store, "s9").await, Some(1));
    ingest.stop().await;
}

#[tokio::test]
async fn a_consumer_that_was_moved_past_events_is_found_while_running() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    // Somebody takes an event away from under us and acknowledges it.
    ingest.paused.send(true).unwrap();
    eventually("nobody pulls", async || {
        let subject = format!("$JS.API.CONSUMER.INFO.BOOKINGS.{DURABLE}");
        connection.api::<serde_json::Value>("waiting", &subject, None).await.unwrap()["num_waiting"] == 0
    })
    .await;
    let stolen = publish_event(&connection.client, "s2", "scheduled", 1).await;
    let subject = format!("$JS.API.CONSUMER.MSG.NEXT.BOOKINGS.{DURABLE}");
    let inbox = connection.client.new_inbox();
    let mut subscriber = connection.client.subscribe(inbox.clone()).await.unwrap();
    connection.client.publish_with_reply(subject, inbox, "".into()).await.unwrap();
    let taken = subscriber.next().await.unwrap();
    connection.client.request(taken.reply.unwrap(), "+ACK".into()).await.unwrap();
    ingest.paused.send(false).unwrap();
    ingest.until_read(1, stolen).await;
    assert_eq!(version(&database.store, "s2").await, Some(1));
    ingest.stop().await;
}

#[tokio::test]
async fn sequences_that_the_stream_does_not_hold_are_passed_over() {
    let server = NatsServer::start().await;
    let connection = server.connect().await;
    // A stream that lets messages be deleted, and has other subjects too.
    let config = json!({"name": "BOOKINGS", "subjects": ["bookings.>"], "allow_direct": true});
    connection.api::<serde_json::Value>("making", "$JS.API.STREAM.CREATE.BOOKINGS", Some(&config)).await.unwrap();
    for number in 0..6 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    for sequence in [1, 2, 4] {
        let body = json!({"seq": sequence});
        let subject = "$JS.API.STREAM.MSG.DELETE.BOOKINGS";
        connection.api::<serde_json::Value>("deleting", subject, Some(&body)).await.unwrap();
    }
    crate::support::nats::publish_raw(&connection.client, "bookings.other", "not ours").await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, 6).await;
    let mut caught_up = ingest.health.caught_up();
    caught_up.wait_for(|caught_up| *caught_up).await.unwrap();
    let last = publish_event(&connection.client, "s9", "scheduled", 1).await;
    ingest.until_read(1, last).await;
    assert_eq!(database.store.position(Epoch(1)).await.unwrap().highest, 8);
    assert_eq!(ingest.now().outcomes, [("applied", 4)].into());
    ingest.stop().await;
}

#[tokio::test]
async fn a_consumer_that_is_not_as_defined_works_and_is_told_of() {
    let (server, connection) = NatsServer::with_definitions().await;
    connection.delete_consumer("BOOKINGS", DURABLE).await.unwrap();
    let other = json!({"name": DURABLE, "durable_name": DURABLE, "ack_policy": "explicit", "max_deliver": -1,
        "filter_subject": "bookings.session.*.*", "max_ack_pending": 10, "ack_wait": 30_000_000_000_i64});
    connection.write_consumer("BOOKINGS", &other, "create").await.unwrap();
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    for number in 0..50 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    ingest.until_read(1, 50).await;
    assert!(ingest.now().drift.iter().any(|line| line == "max_ack_pending: 10 instead of 4096"), "{:?}", ingest.now());
    ingest.stop().await;
}
