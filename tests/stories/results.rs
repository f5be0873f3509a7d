//! What others get to read: stream `MEET`.

use std::collections::HashSet;

use serde_json::Value;

use crate::schemas::validator;
use crate::support::service::{HOUR_MS, Published, Setup, Then as _, World};

stories! {
    on both databases:
        every_change_is_published_once_and_in_order;
}

async fn every_change_is_published_once_and_in_order(setup: Setup) {
    let mut world = World::start(setup.connected(1)).await;
    let lessons: Vec<_> = (0..4).map(|n| world.lesson(&format!("s{n}"), n % 2)).collect();
    for lesson in &lessons {
        world.publish(lesson).await;
    }
    for n in [0, 2] {
        world.ready(&format!("s{n}"), 1).await;
    }
    for n in [1, 3] {
        world.error(&format!("s{n}"), "TEACHER_NOT_CONNECTED").await;
    }
    world.publish(&lessons[0].moved(HOUR_MS)).await;
    world.publish(&lessons[2].canceled()).await;
    world.restart().await;
    world.ready("s0", 2).await;
    world.canceled("s2", 2).await;
    let last = |messages: &[Published], session: &str| {
        let of_session = |message: &&Published| message.event["subject"] == session;
        messages.iter().rfind(of_session).map(|message| message.event["data"].clone())
    };
    let mut wanted = Vec::new();
    for n in 0..4 {
        wanted.push((format!("s{n}"), world.document(&format!("s{n}")).await));
    }
    let messages = world
        .until_published("the last state of every session", |messages| {
            wanted.iter().all(|(session, document)| last(messages, session) == *document)
        })
        .await;

    let schema = validator("status-event.schema.json");
    let mut ids = HashSet::new();
    for Published { subject, headers, event } in &messages {
        let header = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert!(schema.is_valid(event), "{:?} in {event:#}", schema.iter_errors(event).map(|e| e.to_string()).next());
        assert_eq!(header("Nats-Msg-Id"), event["id"].as_str());
        assert_eq!(header("Content-Type"), Some("application/cloudevents+json"));
        assert!(ids.insert(event["id"].to_string()), "published twice: {event:#}");
        let (session, data) = (event["subject"].as_str().unwrap(), &event["data"]);
        let status = data["meetStatus"].as_str().unwrap().to_lowercase();
        assert_eq!(*subject, format!("meet.session.{session}.{status}"));
        assert_eq!(data["sessionId"], session);
    }
    for n in 0..4 {
        let session = format!("s{n}");
        let story: Vec<&Value> =
            messages.iter().filter(|m| m.event["subject"] == session.as_str()).map(|m| &m.event["data"]).collect();
        for pair in story.windows(2) {
            assert!(pair[0]["version"].as_i64() <= pair[1]["version"].as_i64(), "{story:#?}");
            assert!(pair[0]["updatedAt"].as_str() <= pair[1]["updatedAt"].as_str(), "{story:#?}");
            let without_time = |document: &Value| {
                let mut document = document.clone();
                document.as_object_mut().unwrap().remove("updatedAt");
                document
            };
            assert_ne!(without_time(pair[0]), without_time(pair[1]), "the same state was told twice");
        }
    }
}
