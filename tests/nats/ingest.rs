//! Events into the store, with servers that die.

use futures_util::StreamExt;
use meet_projector::model::Epoch;
use meet_projector::nats::Connection;

use super::{Database, Ingest, documents, version};
use crate::support::nats::{NatsServer, durable, eventually, publish_event, publish_raw};

/// Changes how long the server waits for an acknowledgement.
async fn ack_wait(connection: &Connection, seconds: i64) {
    let mut config = durable(connection, "meet-projector-e1").await.unwrap().config;
    config["ack_wait"] = serde_json::json!(seconds * 1_000_000_000);
    connection.write_consumer("BOOKINGS", &config, "update").await.unwrap();
}

#[tokio::test]
async fn events_are_folded_and_acknowledged() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, 1).await;
    assert_eq!(version(&database.store, "s1").await, Some(1));
    let mut caught_up = ingest.health.caught_up();
    caught_up.wait_for(|caught_up| *caught_up).await.unwrap();
    ingest.wake.notified().await;

    let last = publish_event(&connection.client, "s1", "rescheduled", 2).await;
    ingest.until_read(1, last).await;
    assert_eq!(version(&database.store, "s1").await, Some(2));
    eventually("everything is acknowledged", async || {
        let info = durable(&connection, "meet-projector-e1").await.unwrap();
        info.num_ack_pending == 0 && info.ack_floor.stream_seq == last
    })
    .await;
    assert!(ingest.health.is_well());
    assert_eq!(ingest.now().outcomes, [("applied", 2)].into());
    assert_eq!(ingest.now().shapes, [("structured", 2)].into());
    ingest.stop().await;
}

#[tokio::test]
async fn bad_events_become_dead_letters_and_stop_nobody() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let mut advisories =
        connection.client.subscribe("$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.BOOKINGS.>").await.unwrap();
    let bad = publish_raw(&connection.client, "bookings.session.s1.scheduled", "{not json").await;
    let last = publish_event(&connection.client, "s2", "scheduled", 1).await;
    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, last).await;
    assert_eq!(version(&database.store, "s2").await, Some(1));

    let letters = database.store.dead_letters(10, None).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!((letters[0].place.sequence, letters[0].refused.class), (bad, "not_json"));
    assert_eq!(letters[0].raw.as_ref().unwrap().payload, "{not json");
    let advisory = advisories.next().await.unwrap();
    let advisory: serde_json::Value = serde_json::from_slice(&advisory.payload).unwrap();
    assert_eq!(advisory["stream_seq"], bad);
    assert!(advisory["reason"].as_str().unwrap().starts_with("not_json: "), "{advisory}");
    assert_eq!(ingest.now().dead_letters, [("not_json", 1)].into());
    ingest.stop().await;
}

#[tokio::test]
async fn the_later_of_two_events_of_one_version_is_a_dead_letter_with_its_message() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    publish_event(&connection.client, "s1", "scheduled", 1).await;
    let last = publish_event(&connection.client, "s1", "canceled", 1).await;
    ingest.until_read(1, last).await;
    let letters = database.store.dead_letters(10, None).await.unwrap();
    assert_eq!((letters.len(), letters[0].place.sequence), (1, last));
    assert_eq!(letters[0].raw.as_ref().unwrap().subject, "bookings.session.s1.canceled");
    ingest.stop().await;
}

#[tokio::test]
async fn a_killed_server_loses_nothing_and_what_comes_again_changes_nothing() {
    let (mut server, connection) = NatsServer::with_definitions().await;
    ack_wait(&connection, 1).await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    for number in 0..200 {
        publish_event(&connection.client, &format!("s{}", number % 20), "scheduled", 1 + number / 20).await;
    }
    ingest.until_read(1, 200).await;
    let before = documents(&database.store).await;
    // Right after a burst the server has not written what was acknowledged: it delivers much of it again.
    server.restart().await;
    let connection = server.connect().await;
    let last = publish_event(&connection.client, "s99", "scheduled", 1).await;
    ingest.until_read(1, last).await;
    eventually("everything that came again is acknowledged", async || {
        durable(&connection, "meet-projector-e1").await.is_some_and(|info| info.num_ack_pending + info.num_pending == 0)
    })
    .await;
    let mut after = documents(&database.store).await;
    after.retain(|document| !document.contains("\"s99\""));
    assert_eq!(before, after);
    // What had been handed back may come after a later version; nothing is applied twice.
    let now = ingest.now();
    assert!(now.outcomes["applied"] <= 201, "{now:?}");
    assert!(database.store.dead_letters(10, None).await.unwrap().is_empty());
    ingest.stop().await;
}

#[tokio::test]
async fn restarts_in_the_middle_of_a_stream_lose_nothing() {
    let (mut server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    for number in 0..3000 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    let ingest = Ingest::start(server.config(), &database.store);
    for part in [1, 1500] {
        eventually("some of it is read", async || database.store.position(Epoch(1)).await.unwrap().highest >= part)
            .await;
        server.restart().await;
    }
    ingest.until_read(1, 3000).await;
    assert_eq!(database.store.counts(meet_projector::model::UnixMillis::new(0)).await.unwrap().pending, 3000);
    ingest.stop().await;
}

#[tokio::test]
async fn it_waits_for_a_server_and_a_stream_that_are_not_there_yet() {
    let mut server = NatsServer::start().await;
    let config = server.config();
    server.kill();
    let database = Database::fresh().await;
    let ingest = Ingest::start(config.clone(), &database.store);
    eventually("it says that it cannot connect", async || {
        ingest.now().last_error.is_some_and(|error| error.starts_with("cannot connect to NATS at 127.0.0.1:"))
    })
    .await;
    server.run().await;
    eventually("it says that the stream is missing", async || {
        ingest.now().last_error.is_some_and(|error| error.contains("stream BOOKINGS does not exist"))
    })
    .await;
    let connection = server.connect().await;
    crate::support::nats::define(&connection, &config).await;
    let last = publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, last).await;
    assert!(ingest.health.is_well());
    ingest.stop().await;
}

#[tokio::test]
async fn two_consumers_share_one_durable_and_one_database() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let replicas = [0, 1].map(|_| Ingest::start(server.config(), &database.store));
    for replica in &replicas {
        eventually("both are connected", async || replica.now().epoch.is_some()).await;
    }
    for number in 0..1000 {
        let (session, version) = (format!("s{}", number % 50), 1 + number / 50);
        publish_event(&connection.client, &session, "scheduled", version).await;
    }
    replicas[0].until_read(1, 1000).await;
    for number in 0..50 {
        assert_eq!(version(&database.store, &format!("s{number}")).await, Some(20));
    }
    let shares = replicas.each_ref().map(|replica| replica.now().outcomes.values().sum::<u64>());
    assert!(shares.iter().all(|share| *share > 0), "{shares:?}");
    for replica in replicas {
        replica.stop().await;
    }
}

#[tokio::test]
async fn what_was_read_and_not_committed_is_handed_back_at_once() {
    let (server, connection) = NatsServer::with_definitions().await;
    // An hour: what is only forgotten would not come again within this test.
    ack_wait(&connection, 3600).await;
    let database = Database::fresh().await;
    let publisher = connection.client.clone();
    let publishing = tokio::spawn(async move {
        for number in 1..=3000 {
            publish_event(&publisher, &format!("s{number}"), "scheduled", 1).await;
        }
    });
    // Replicas that are stopped again and again in the middle of the stream.
    for part in [100, 700, 1300] {
        let replica = Ingest::start(server.config(), &database.store);
        eventually("some of it is read", async || replica.now().highest >= part).await;
        replica.stop().await;
    }
    publishing.await.unwrap();
    let last = Ingest::start(server.config(), &database.store);
    last.until_read(1, 3000).await;
    last.stop().await;
}

#[tokio::test]
async fn paused_ingest_leaves_events_on_the_stream() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    let first = publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, first).await;
    ingest.paused.send(true).unwrap();
    eventually("no request waits at the server", async || {
        let subject = "$JS.API.CONSUMER.INFO.BOOKINGS.meet-projector-e1";
        let info: serde_json::Value = connection.api("waiting", subject, None).await.unwrap();
        info["num_waiting"] == 0
    })
    .await;
    let second = publish_event(&connection.client, "s1", "canceled", 2).await;
    assert_eq!(durable(&connection, "meet-projector-e1").await.unwrap().num_pending, 1);
    ingest.paused.send(false).unwrap();
    ingest.until_read(1, second).await;
    ingest.stop().await;
}

#[tokio::test]
async fn a_message_that_was_delivered_often_is_folded_alone() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    for number in 1..=3 {
        publish_event(&connection.client, &format!("s{number}"), "scheduled", 1).await;
    }
    // Whoever had these messages before gave the second one back four times.
    let inbox = connection.client.new_inbox();
    let mut deliveries = connection.client.subscribe(inbox.clone()).await.unwrap();
    let next = "$JS.API.CONSUMER.MSG.NEXT.BOOKINGS.meet-projector-e1";
    connection.client.publish_with_reply(next, inbox.clone(), "3".into()).await.unwrap();
    let mut replies = Vec::new();
    for _ in 0..3 {
        replies.push(deliveries.next().await.unwrap().reply.unwrap());
    }
    let mut suspect = replies.remove(1);
    for _ in 0..3 {
        connection.client.publish(suspect, "-NAK".into()).await.unwrap();
        connection.client.publish_with_reply(next, inbox.clone(), "1".into()).await.unwrap();
        suspect = deliveries.next().await.unwrap().reply.unwrap();
    }
    for reply in [&replies[0], &suspect, &replies[1]] {
        connection.client.publish(reply.clone(), "-NAK".into()).await.unwrap();
    }
    connection.client.flush().await.unwrap();

    let ingest = Ingest::start(server.config(), &database.store);
    ingest.until_read(1, 3).await;
    let now = ingest.now();
    assert_eq!((now.outcomes["applied"], now.redelivered), (3, 3));
    assert!(now.groups >= 2, "the suspect has a group of its own: {now:?}");
    ingest.stop().await;
}

#[tokio::test]
async fn events_wait_for_a_database_that_is_away() {
    let (server, connection) = NatsServer::with_definitions().await;
    let database = Database::fresh().await;
    let ingest = Ingest::start(server.config(), &database.store);
    let first = publish_event(&connection.client, "s1", "scheduled", 1).await;
    ingest.until_read(1, first).await;
    let blocker = database.block().await;
    let last = publish_event(&connection.client, "s1", "rescheduled", 2).await;
    eventually("it says that the database does not answer", async || !ingest.health.is_well()).await;
    assert_eq!(durable(&connection, "meet-projector-e1").await.unwrap().num_ack_pending, 1, "not acknowledged");
    drop(blocker);
    ingest.until_read(1, last).await;
    eventually("it is well again", async || ingest.health.is_well()).await;
    ingest.stop().await;
}
