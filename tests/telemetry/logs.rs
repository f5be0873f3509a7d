//! Log lines: found from a trace, one for a failure, and discreet.

use meet_projector::fake::{Fault, Operation, Rule};
use serde_json::Value;

use super::collector::Collector;
use super::served::Served;
use crate::support::service::{Setup, World, teacher_id};

fn about<'a>(lines: &'a [Value], session: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["session_id"] == session && line["level"] != "DEBUG").collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_one_line_with_ids_and_the_trace() {
    let (collector, world) = (Collector::start().await, World::prepare(Setup::sqlite()).await);
    world.fake().add_fault(Rule::once(Operation::Insert, Fault::refuse(503, "backendError")));
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str())];
    let mut served = Served::start(&world, &variables).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.until_published("the link", |all| all.iter().any(|m| m.subject == "meet.session.s1.ready")).await;
    served.stop().await;

    let lines = served.lines();
    let about = about(&lines, "s1");
    assert_eq!(about.len(), 1, "one failure, one line: {about:#?}");
    let line = about[0];
    assert_eq!((&line["level"], &line["operation"], &line["status"]), (&"WARN".into(), &"insert".into(), &503.into()));
    assert_eq!((&line["teacher_id"], &line["attempt"]), (&teacher_id(0).as_str().into(), &1.into()));
    let round = collector.named("reconcile").into_iter().find(|round| round.is_error).expect("the round that failed");
    assert_eq!((&line["trace_id"], &line["span_id"]), (&round.trace.as_str().into(), &round.id.as_str().into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_one_line_that_names_its_place() {
    let world = World::prepare(Setup::sqlite()).await;
    let mut served = Served::start(&world, &[]).await;
    let sequence =
        world.publish_raw("bookings.session.s1.scheduled", &[], b"{\"attendees\":\"ana@example.com\"".to_vec()).await;
    crate::support::service::eventually("it is a dead letter", async || {
        world.store.counts(world.clock.now()).await.unwrap().dead_letters == 1
    })
    .await;
    served.stop().await;
    let lines = served.lines();
    let about: Vec<_> = lines.iter().filter(|line| line["sequence"] == sequence).collect();
    assert_eq!(about.len(), 1, "{lines:#?}");
    assert_eq!((&about[0]["level"], &about[0]["class"]), (&"WARN".into(), &"not_json".into()), "{about:#?}");
    assert!(!served.log().contains("ana@example.com"));
}

/// Everything that we may say, in a life with failures of all kinds, holds nothing that identifies a person or opens a door.
#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_indiscreet() {
    let world = World::prepare(Setup::sqlite()).await;
    let variables = [("RUST_LOG", "meet_projector=trace,info")];
    for fault in [Fault::refuse(503, "backendError"), Fault::drop_after(), Fault::refuse(401, "authError")] {
        world.fake().add_fault(Rule::once(Operation::Insert, fault));
    }
    let mut served = Served::start(&world, &variables).await;
    for (number, session) in ["s1", "s2", "s3", "s4"].iter().enumerate() {
        let mut event = world.lesson(session, number % 2);
        let details = event.details.as_mut().unwrap();
        details.attendees = vec![meet_projector::model::Attendee {
            email: "ana@example.com".to_owned(),
            display_name: Some("Ana Pérez".to_owned()),
        }];
        world.publish(&event).await;
    }
    world
        .until_published("four links", |all| {
            all.iter().filter(|m| m.event["data"]["meetStatus"] == "READY").count() >= 4
        })
        .await;
    // A grant that is refused is told without the answer that refused it.
    world.fake().revoke_grant(world.email(1));
    world.fake().expire_access_tokens(world.email(1));
    world.publish(&world.lesson("s5", 1)).await;
    world.until_published("the refusal", |all| all.iter().any(|m| m.subject == "meet.session.s5.error")).await;
    served.stop().await;

    let log = served.log();
    assert!(about(&served.lines(), "s1").len() + log.len() > 1000, "it says something");
    let secrets = [
        "meet.google.com",
        "ya29",
        "1//refresh",
        "Bearer ",
        "@example.com",
        "Ana P",
        "Piano",
        "school.example.com/sessions",
        "client_secret",
        "4242424242",
    ];
    for secret in secrets.iter().copied().chain([world.token.as_str()]) {
        let line = log.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{secret} is in the log: {line:?}");
    }
}
