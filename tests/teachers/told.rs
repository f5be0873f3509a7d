//! `meet.teacher.<teacherId>.<status>` on stream `MEET`: every change of a status, once and in order.

use std::collections::HashSet;

use meet_projector::fake::{DEFAULT_SCOPES, NewAccount, TokenMode};
use meet_projector::store::TokenStatus;

use crate::schemas::validator;
use crate::support::service::{Setup, World, teacher_id};

async fn every_change_of_a_status_is_told(setup: Setup) {
    let mut world = World::start(setup.connected(1)).await;
    // The grant dies at a refresh.
    world.fake().revoke_grant(world.email(0));
    world.publish(&world.lesson("s1", 0)).await;
    world.error("s1", "RECONNECT_REQUIRED").await;
    // A new one comes, and the same once more, which changes nothing.
    let account = NewAccount::new(world.email(0)).connected(&world.google.teachers[0].refresh_token);
    world.fake().add_account(&account);
    world.connect_teacher(0).await;
    world.connect_teacher(0).await;
    world.ready("s1", 1).await;
    world.restart().await;
    // A call meets a missing scope; a late loser of the race changes nothing, and tells nothing.
    let version = world.store.credential(&teacher_id(0)).await.unwrap().unwrap().token_version;
    let now = world.clock.now();
    let teacher = teacher_id(0);
    for status in [TokenStatus::ScopeMissing, TokenStatus::Disconnected] {
        world.store.set_token_status(&teacher, version, status, "the calendar scope is missing", now).await.unwrap();
    }
    // The administrator blocks, at the refresh of a new consent.
    let scopes = DEFAULT_SCOPES.map(str::to_owned).to_vec();
    world.fake().add_account(&NewAccount { scopes, ..account });
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::AdminPolicyEnforced);
    world.connect_teacher(0).await;
    world.publish(&world.lesson("s2", 0)).await;
    world.error("s2", "ADMIN_BLOCKED").await;

    let story = ["connected", "reconnect_required", "connected", "scope_missing", "connected", "admin_blocked"];
    let mut messages = Vec::new();
    crate::support::service::eventually("every change is told", async || {
        messages = world.published_on("meet.teacher.>").await;
        messages.len() >= story.len()
    })
    .await;
    let subjects: Vec<_> = messages.iter().map(|message| message.subject.as_str()).collect();
    assert_eq!(subjects, story.map(|status| format!("meet.teacher.tch_0.{status}")));

    let schema = validator("teacher-status-event.schema.json");
    let (mut ids, mut before) = (HashSet::new(), "NOT_CONNECTED".to_owned());
    for message in &messages {
        let event = &message.event;
        if let Some(error) = schema.iter_errors(event).next() {
            panic!("{error} at {} of {event:#}", error.instance_path());
        }
        let header =
            |name: &str| message.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
        assert_eq!(header("Nats-Msg-Id"), event["id"].as_str());
        assert!(ids.insert(event["id"].to_string()), "told twice: {event:#}");
        let data = &event["data"];
        assert_eq!((&event["subject"], data["teacherId"].as_str()), (&data["teacherId"], Some("tch_0")));
        assert_eq!(data["previousTokenStatus"], before.as_str());
        let status = data["tokenStatus"].as_str().unwrap();
        assert!(message.subject.ends_with(&format!(".{}", status.to_lowercase())));
        assert_eq!(data["connected"], status == "CONNECTED");
        assert_eq!(data["reason"].is_null(), status == "CONNECTED", "{data}");
        before = status.to_owned();
    }
    let versions: Vec<_> = messages.iter().map(|message| message.event["data"]["version"].as_i64().unwrap()).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    let told = serde_json::to_string(&messages.iter().map(|message| &message.event).collect::<Vec<_>>()).unwrap();
    assert!(!told.contains("1//") && !told.contains("ya29") && !told.contains('@'), "{told}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_status_is_told_on_sqlite() {
    every_change_of_a_status_is_told(Setup::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_status_is_told_on_postgres() {
    every_change_of_a_status_is_told(Setup::postgres()).await;
}
