//! `nats apply` and `nats check`.

use meet_projector::cli::nats::{DefinitionArgs, NatsCommand, run};
use meet_projector::nats::NatsError;
use serde_json::{Value, json};

use crate::support::nats::{NatsServer, delete_stream, stream};

fn apply() -> NatsCommand {
    NatsCommand::Apply(DefinitionArgs::default())
}

fn check() -> NatsCommand {
    NatsCommand::Check(DefinitionArgs::default())
}

#[tokio::test]
async fn applying_creates_everything_once() {
    let server = NatsServer::start().await;
    let config = server.config();
    let before = run(&check(), &config, false).await.unwrap();
    insta::assert_snapshot!(before.text, @r"
    stream BOOKINGS: does not exist
    stream MEET: does not exist
    consumer meet-projector-e1: does not exist
    ");
    assert_eq!(before.exit_code, 1);

    let first = run(&apply(), &config, false).await.unwrap();
    insta::assert_snapshot!(first.text, @r"
    stream BOOKINGS: created
    stream MEET: created
    consumer meet-projector-e1: created
    ");
    assert_eq!(first.exit_code, 0);
    let second = run(&apply(), &config, false).await.unwrap();
    insta::assert_snapshot!(second.text, @r"
    stream BOOKINGS: as defined
    stream MEET: as defined
    consumer meet-projector-e1: as defined
    ");
    let checked = run(&check(), &config, true).await.unwrap();
    assert_eq!(checked.exit_code, 0);
    assert_eq!(serde_json::from_str::<Value>(&checked.text).unwrap()["asDefined"], true);

    let found = stream(&server.connect().await, "BOOKINGS").await.config;
    for (field, value) in [
        ("retention", json!("limits")),
        ("deny_delete", json!(true)),
        ("deny_purge", json!(true)),
        ("allow_direct", json!(true)),
        ("compression", json!("s2")),
        ("max_age", json!(0)),
        ("num_replicas", json!(1)),
    ] {
        assert_eq!(found[field], value, "{field}");
    }
}

#[tokio::test]
async fn differences_are_shown_mended_and_kept_apart_from_what_cannot_be() {
    let (server, connection) = NatsServer::with_definitions().await;
    delete_stream(&connection, "BOOKINGS").await;
    let other = json!({"name": "BOOKINGS", "subjects": ["bookings.session.*.*"], "retention": "interest",
        "max_age": 3_600_000_000_000_i64, "duplicate_window": 120_000_000_000_i64, "max_msg_size": 100_000});
    connection.api::<Value>("other", "$JS.API.STREAM.CREATE.BOOKINGS", Some(&other)).await.unwrap();

    let checked = run(&check(), &server.config(), false).await.unwrap();
    insta::assert_snapshot!(checked.text);
    assert_eq!(checked.exit_code, 1);

    let applied = run(&apply(), &server.config(), false).await.unwrap();
    assert_eq!(applied.exit_code, 1, "a retention that stays wrong is no success");
    let found = stream(&connection, "BOOKINGS").await.config;
    assert_eq!((&found["max_age"], &found["allow_direct"]), (&json!(0), &json!(true)));
    assert_eq!(found["max_msg_size"], 100_000, "what the definition leaves out stays");
    let again = run(&check(), &server.config(), false).await.unwrap();
    insta::assert_snapshot!(again.text, @r"
    stream BOOKINGS: differs
      - retention: interest
      + retention: limits
      ! cannot be changed: the server keeps it for the life of the stream or consumer
    stream MEET: as defined
    consumer meet-projector-e1: as defined
    ");
}

#[tokio::test]
async fn the_newest_durable_is_the_one_that_is_looked_after() {
    let (server, connection) = NatsServer::with_definitions().await;
    let wanted = json!({"name": "meet-projector-e3", "durable_name": "meet-projector-e3", "ack_policy": "explicit",
        "filter_subject": "bookings.session.*.*", "deliver_policy": "by_start_sequence", "opt_start_seq": 5});
    connection.write_consumer("BOOKINGS", &wanted, "create").await.unwrap();
    let applied = run(&apply(), &server.config(), false).await.unwrap();
    assert!(applied.text.contains("consumer meet-projector-e3: updated"), "{}", applied.text);
    let info = connection.consumer_info("BOOKINGS", "meet-projector-e3").await.unwrap().unwrap();
    assert_eq!((&info.config["max_ack_pending"], &info.config["opt_start_seq"]), (&json!(4096), &json!(5)));
}

#[tokio::test]
async fn nobody_there_is_another_exit_code_than_a_difference() {
    let mut server = NatsServer::start().await;
    let config = server.config();
    server.kill();
    let error = run(&check(), &config, false).await.unwrap_err();
    assert!(matches!(error, NatsError::Unreachable { .. }), "{error}");
    assert_eq!(error.exit_code(), 4);
}

#[tokio::test]
async fn a_folder_of_definitions_takes_the_place_of_the_built_in_ones() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let source = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/nats"));
    for name in ["bookings.stream.json", "meet.stream.json", "consumer.json"] {
        let text = std::fs::read_to_string(source.join(name)).unwrap().replace("7776000000000000", "86400000000000");
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let args = DefinitionArgs { dir: Some(folder.path().to_owned()), replicas: None };
    let applied = run(&NatsCommand::Apply(args), &server.config(), false).await.unwrap();
    assert_eq!(applied.exit_code, 0, "{}", applied.text);
    assert_eq!(stream(&server.connect().await, "MEET").await.config["max_age"], json!(86_400_000_000_000_i64));

    let args = DefinitionArgs { dir: Some(folder.path().join("nowhere")), replicas: None };
    let error = run(&NatsCommand::Apply(args), &server.config(), false).await.unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}
