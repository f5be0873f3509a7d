//! The users of `nats/permissions.conf`: each can do what it must, and no more.

use meet_projector::model::Epoch;
use meet_projector::nats::definitions::{Definitions, Finding, apply};
use meet_projector::nats::probe::{Outcome, forbidden, probe};
use meet_projector::nats::{Connection, NatsError, connect};
use serde_json::{Value, json};

use super::{Database, Ingest};
use crate::support::nats::{NatsServer, define, durable, eventually, publish_event};

const PERMISSIONS: &str = include_str!("../../nats/permissions.conf");

/// A server with those users, a connection as each, and the definitions applied by the operator.
async fn guarded() -> (NatsServer, Connection, Connection) {
    let passwords =
        ["PROJECTOR", "PUBLISHER", "OPERATOR"].map(|user| (format!("{user}_PASSWORD"), user.to_lowercase()));
    let environment: Vec<(&str, &str)> =
        passwords.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let server = NatsServer::start_with(Some(PERMISSIONS), &environment).await;
    let operator = connect(&server.config_as(Some("operator")), "operator").await.unwrap();
    define(&operator, &server.config()).await;
    let projector = connect(&server.config_as(Some("projector")), "projector").await.unwrap();
    (server, operator, projector)
}

/// The publisher, as the booking backend connects: with an inbox prefix of its own.
async fn publisher(server: &NatsServer) -> async_nats::Client {
    let options = async_nats::ConnectOptions::with_user_and_password("publisher".into(), "publisher".into());
    options.custom_inbox_prefix("_INBOX_publisher").connect(server.address()).await.unwrap()
}

async fn is_forbidden(connection: &Connection, subject: &str) -> bool {
    matches!(connection.request("trying", subject, "{}".into()).await, Err(NatsError::Forbidden { .. }))
}

#[tokio::test]
async fn the_projector_can_do_all_that_it_needs() {
    let (server, operator, projector) = guarded().await;
    let config = server.config_as(Some("projector"));
    for probed in probe(&projector, &config, Epoch(1)).await {
        assert_eq!(probed.outcome, Outcome::Allowed, "{} with {}", probed.purpose, probed.subject);
    }
    assert!(durable(&operator, "meet-projector-e1").await.is_some(), "probing deletes nothing");
    let meet = crate::support::nats::stream(&operator, "MEET").await;
    assert_eq!(meet.state.messages, 0, "probing publishes nothing");

    let database = Database::fresh().await;
    let ingest = Ingest::start(config, &database.store);
    let publisher = publisher(&server).await;
    let first = publish_event(&publisher, "s1", "scheduled", 1).await;
    ingest.until_read(1, first).await;
    operator.delete_consumer("BOOKINGS", "meet-projector-e1").await.unwrap();
    let second = publish_event(&publisher, "s1", "rescheduled", 2).await;
    ingest.until_read(1, second).await;
    eventually("acknowledgements count", async || {
        durable(&operator, "meet-projector-e1").await.is_some_and(|info| info.ack_floor.stream_seq == second)
    })
    .await;
    assert_eq!(ingest.now().forbidden, None);
    ingest.stop().await;
}

#[tokio::test]
async fn the_projector_can_do_nothing_else() {
    let (_server, operator, projector) = guarded().await;
    let other = json!({"name": "OTHER", "subjects": ["other"], "allow_direct": true});
    // Not even the operator may make streams of other names.
    let made = operator.api::<Value>("making", "$JS.API.STREAM.CREATE.OTHER", Some(&other)).await;
    assert!(matches!(made, Err(NatsError::Forbidden { .. })), "{made:?}");
    for subject in [
        "bookings.session.s1.scheduled",
        "$JS.API.STREAM.PURGE.BOOKINGS",
        "$JS.API.STREAM.DELETE.BOOKINGS",
        "$JS.API.STREAM.UPDATE.BOOKINGS",
        "$JS.API.STREAM.MSG.DELETE.BOOKINGS",
        "$JS.API.STREAM.SNAPSHOT.BOOKINGS",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.OTHER",
        "$JS.API.DIRECT.GET.OTHER",
        "$JS.API.CONSUMER.CREATE.BOOKINGS",
        "$JS.API.CONSUMER.CREATE.BOOKINGS.spy.bookings.session.*.*",
        "$JS.API.CONSUMER.CREATE.BOOKINGS.meet-projector-e1.>",
        "$JS.API.CONSUMER.DELETE.BOOKINGS.other",
        "$JS.API.CONSUMER.MSG.NEXT.BOOKINGS.other",
        "$JS.API.CONSUMER.INFO.BOOKINGS.other",
        "$JS.ACK.BOOKINGS.other.1.1.1.1.0",
        "meet.other",
    ] {
        assert!(is_forbidden(&projector, subject).await, "{subject}");
    }
    for subject in ["bookings.>", "$JS.EVENT.>", "_INBOX.>", "_INBOX_publisher.>", ">"] {
        let seen = projector.events.times_forbidden(subject);
        let _subscriber = projector.client.subscribe(subject).await.unwrap();
        projector.events.until_forbidden(subject, seen).await;
    }
}

#[tokio::test]
async fn the_publisher_publishes_events_and_nothing_else() {
    let (server, operator, _projector) = guarded().await;
    let client = publisher(&server).await;
    assert_eq!(publish_event(&client, "s1", "scheduled", 1).await, 1);
    // The same user, with a connection that hears of violations. Its inbox is not granted, which is heard of too.
    let connection = connect(&server.config_as(Some("publisher")), "publisher").await.unwrap();
    for subject in [
        "meet.session.s1.ready",
        "bookings.other",
        "$JS.API.INFO",
        "$JS.API.STREAM.INFO.BOOKINGS",
        "$JS.API.STREAM.DELETE.BOOKINGS",
        "$JS.API.STREAM.PURGE.BOOKINGS",
        "$JS.API.CONSUMER.MSG.NEXT.BOOKINGS.meet-projector-e1",
        "$JS.API.DIRECT.GET.BOOKINGS",
        "$JS.ACK.BOOKINGS.meet-projector-e1.1.1.1.1.0",
    ] {
        assert!(is_forbidden(&connection, subject).await, "{subject}");
    }
    assert_eq!(crate::support::nats::stream(&operator, "BOOKINGS").await.state.messages, 1);
}

#[tokio::test]
async fn the_operator_applies_definitions_and_destroys_no_stream() {
    let (server, operator, _projector) = guarded().await;
    let definitions = Definitions::load(None, &server.config(), None).unwrap();
    let again = apply(&operator, &server.config(), &definitions).await.unwrap();
    assert!(again.iter().all(Finding::agrees), "{again:?}");
    for subject in [
        "$JS.API.STREAM.DELETE.BOOKINGS",
        "$JS.API.STREAM.PURGE.BOOKINGS",
        "$JS.API.STREAM.MSG.DELETE.BOOKINGS",
        "bookings.session.s1.scheduled",
    ] {
        assert!(is_forbidden(&operator, subject).await, "{subject}");
    }
}

#[tokio::test]
async fn a_missing_permission_is_named_at_start() {
    let without = PERMISSIONS
        .replace("\"$JS.ACK.BOOKINGS.meet-projector-e1.>\"\n", "\n")
        .replace("\"meet.teacher.*.*\"\n", "\n")
        .replace("\"$JS.API.CONSUMER.MSG.NEXT.BOOKINGS.meet-projector-e1\"\n", "\n");
    let environment =
        [("PROJECTOR_PASSWORD", "projector"), ("PUBLISHER_PASSWORD", "publisher"), ("OPERATOR_PASSWORD", "operator")];
    let server = NatsServer::start_with(Some(&without), &environment).await;
    let operator = connect(&server.config_as(Some("operator")), "operator").await.unwrap();
    define(&operator, &server.config()).await;
    let config = server.config_as(Some("projector"));
    let projector = connect(&config, "projector").await.unwrap();
    let text = forbidden(&probe(&projector, &config, Epoch(1)).await).unwrap();
    insta::assert_snapshot!(text);
    let last_granted = probe(&projector, &config, Epoch(4)).await;
    let next = last_granted.iter().find(|probed| !probed.needed).unwrap();
    assert_eq!((next.outcome.clone(), next.purpose), (Outcome::Forbidden, "follow the next epoch"));

    let database = Database::fresh().await;
    let ingest = Ingest::start(config, &database.store);
    eventually("health names it", async || {
        ingest.now().forbidden.is_some_and(|text| text.contains("$JS.API.CONSUMER.MSG.NEXT"))
    })
    .await;
    ingest.stop().await;
}
