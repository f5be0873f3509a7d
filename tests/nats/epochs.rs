//! Streams that are not what they were.

use meet_projector::cli::epoch::{AdoptArgs, EpochCommand, run};
use meet_projector::clock::Clock;
use meet_projector::model::Epoch;
use serde_json::{Value, json};

use super::{Database, Ingest, documents, version};
use crate::support::nats::{
    NatsServer, delete_stream, durable, event, eventually, publish_event, publish_raw, remake_stream,
};

async fn epochs(database: &Database) -> Vec<i64> {
    database.store.epochs().await.unwrap().iter().map(|record| record.epoch.0).collect()
}

#[tokio::test]
async fn a_stream_that_is_plainly_new_is_adopted_with_another_durable() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    for version in 1..=5 {
        publish_event(&connection.client, "s1", "scheduled", version).await;
    }
    ingest.until_read(1, 5).await;
    remake_stream(&connection, &server.config()).await;
    // A lower version than before: in the new epoch it is newer.
    publish_event(&connection.client, "s1", "scheduled", 2).await;
    let last = publish_event(&connection.client, "s2", "scheduled", 1).await;
    ingest.until_read(2, last).await;
    assert_eq!(epochs(&database).await, [1, 2]);
    assert_eq!((version(&database.store, "s1").await, version(&database.store, "s2").await), (Some(2), Some(1)));
    assert!(durable(&connection, "meet-projector-e2").await.is_some());
    assert!(durable(&connection, "meet-projector-e1").await.is_none());
    assert!(ingest.health.is_well());
    ingest.stop().await;
}

#[tokio::test]
async fn a_server_that_lost_everything_is_adopted_after_it_was_set_up_again() {
    let (mut server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    server.kill();
    std::fs::remove_dir_all(server.store_folder()).unwrap();
    server.run().await;
    eventually("it says that the stream is missing", async || {
        ingest.now().last_error.is_some_and(|error| error.contains("does not exist"))
    })
    .await;
    let connection = server.connect().await;
    crate::support::nats::define(&connection, &server.config()).await;
    let last = publish_event(&connection.client, "s1", "rescheduled", 2).await;
    ingest.until_read(2, last).await;
    assert_eq!(version(&database.store, "s1").await, Some(2));
    ingest.stop().await;
}

/// A backup after 10 events, 10 more that are read, and the backup put back.
async fn restored() -> (NatsServer, Database, Ingest) {
    let (mut server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    for number in 0..10 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    ingest.until_read(1, 10).await;
    let backup = server.back_up().await;
    let connection = server.connect().await;
    for number in 10..20 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    ingest.until_read(1, 20).await;
    ingest.stop().await;
    server.restore(backup.path()).await;
    let ingest = Ingest::start(server.config(), &database.store);
    (server, database, ingest)
}

#[tokio::test]
async fn a_stream_restored_from_a_backup_waits_for_a_person() {
    let (server, database, ingest) = restored().await;
    let why = ingest.until_blocked().await;
    assert!(why.contains("ends at sequence 10 although we read up to 20"), "{why}");
    assert!(why.contains("epoch adopt --execute --reason"), "{why}");
    assert!(!*ingest.health.caught_up().borrow());

    // Sequences are given out again; nothing of it is folded.
    let connection = server.connect().await;
    let before = documents(&database.store).await;
    for number in 0..15 {
        publish_event(&connection.client, &format!("new{number}"), "scheduled", 1).await;
    }
    eventually("it sees that sequences hold other messages", async || {
        ingest.now().blocked.is_some_and(|why| why.contains("holds another message than the one we read there"))
    })
    .await;
    assert_eq!(documents(&database.store).await, before);

    let adopt = |execute: bool| {
        let reason = execute.then(|| "restored from last night".to_owned());
        EpochCommand::Adopt(AdoptArgs { execute, reason })
    };
    let clock = Clock::system();
    let check = run(&EpochCommand::Check, &server.config(), &database.store, &clock, true).await.unwrap();
    assert_eq!(check.exit_code, 1);
    assert_eq!(serde_json::from_str::<Value>(&check.text).unwrap()["fork"], 1, "{}", check.text);
    let plan = run(&adopt(false), &server.config(), &database.store, &clock, true).await.unwrap();
    let plan: Value = serde_json::from_str(&plan.text).unwrap();
    assert_eq!((&plan["executed"], &plan["epoch"], &plan["firstSequence"]), (&json!(false), &json!(2), &json!(11)));
    assert_eq!((&plan["events"], &plan["sessionsChanged"]), (&json!(15), &json!(15)), "{plan}");
    assert_eq!((&plan["fork"], &plan["sessionsWithoutTheirEvent"]), (&json!(10), &json!(10)), "{plan}");
    assert_eq!(epochs(&database).await, [1], "a plan changes nothing");

    run(&adopt(true), &server.config(), &database.store, &clock, false).await.unwrap();
    ingest.until_read(2, 25).await;
    assert_eq!(version(&database.store, "new14").await, Some(1));
    assert!(durable(&connection, "meet-projector-e1").await.is_none(), "the old durable is gone");
    eventually("it is well again", async || ingest.health.is_well()).await;
    let after = run(&adopt(false), &server.config(), &database.store, &clock, false).await.unwrap();
    assert!(after.text.contains("there is nothing to adopt"), "{}", after.text);
    ingest.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_mended_is_read_on_without_a_restart() {
    let (mut server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    let old = server.back_up().await;
    let connection = server.connect().await;
    publish_event(&connection.client, "s2", "scheduled", 1).await;
    ingest.until_read(1, 2).await;
    let right = server.back_up().await;
    server.restore(old.path()).await;
    ingest.until_blocked().await;
    server.restore(right.path()).await;
    let connection = server.connect().await;
    let last = publish_event(&connection.client, "s3", "scheduled", 1).await;
    ingest.until_read(1, last).await;
    eventually("it is well again", async || ingest.health.is_well()).await;
    assert_eq!(epochs(&database).await, [1]);
    ingest.stop().await;
}

#[tokio::test]
async fn a_new_stream_with_events_of_strangers_waits_for_a_person() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    ingest.stop().await;
    remake_stream(&connection, &server.config()).await;
    let mut stranger = event("s1", "canceled", 9);
    stranger["source"] = json!("/services/staging");
    publish_raw(&connection.client, "bookings.session.s1.canceled", &stranger.to_string()).await;
    let ingest = Ingest::start(server.config(), &database.store);
    let why = ingest.until_blocked().await;
    assert!(why.contains("/services/staging"), "{why}");
    assert_eq!(version(&database.store, "s1").await, Some(1));
    assert_eq!(epochs(&database).await, [1]);
    ingest.stop().await;
}

#[tokio::test]
async fn a_stream_older_than_our_last_event_waits_for_a_person() {
    let foreign = NatsServer::with_definitions().await;
    publish_event(&foreign.1.client, "f1", "scheduled", 1).await;
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    ingest.stop().await;
    let ingest = Ingest::start(foreign.0.config(), &database.store);
    let why = ingest.until_blocked().await;
    assert!(why.contains("it is another stream"), "{why}");
    assert_eq!(version(&database.store, "f1").await, None);
    ingest.stop().await;
}

#[tokio::test]
async fn a_stream_that_vanishes_while_running_is_told_of() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, 1).await;
    delete_stream(&connection, "BOOKINGS").await;
    eventually("it says that the stream is missing", async || {
        ingest.now().last_error.is_some_and(|error| error.contains("stream BOOKINGS does not exist"))
    })
    .await;
    assert!(!ingest.health.is_well());
    assert_eq!(database.store.position(Epoch(1)).await.unwrap().contiguous, 1);
    ingest.stop().await;
}
