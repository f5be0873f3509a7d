//! Conferences: made at once, later, never, refused, replaced.

use meet_projector::fake::{ConferenceMode, TeacherAction};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Client, ID, answer, ask_for_meet, lesson, refusal};

fn status_code(event: &Value) -> &str {
    event["conferenceData"]["createRequest"]["status"]["statusCode"].as_str().unwrap_or("none")
}

impl Client {
    fn conferences(&self, mode: ConferenceMode) {
        self.google.fake.configure_account(self.email(), |settings| settings.conference = mode);
    }
}

#[tokio::test]
async fn without_version_1_the_conference_is_silently_dropped() {
    let client = Client::start().await;
    let (status, event) = answer(client.request(Method::POST, "").json(&lesson(ID))).await;
    assert_eq!((status, event.get("conferenceData")), (200, None));
    let patch = json!({"conferenceData": ask_for_meet("request-1")});
    let (_, event) = answer(client.request(Method::PATCH, &format!("/{ID}")).json(&patch)).await;
    assert_eq!(event.get("conferenceData"), None);
    let (_, event) = client.patch(ID, &patch).await;
    assert!(event["hangoutLink"].is_string());
}

#[tokio::test]
async fn a_pending_conference_is_there_after_some_gets_with_a_new_etag() {
    let client = Client::start().await;
    client.conferences(ConferenceMode::SuccessAfter(2));
    let (_, inserted) = client.insert(&lesson(ID)).await;
    assert_eq!((status_code(&inserted), inserted.get("hangoutLink")), ("pending", None));
    let (_, first) = client.get(ID).await;
    assert_eq!(first, inserted);
    let (_, second) = client.get(ID).await;
    assert_eq!(status_code(&second), "success");
    assert_eq!(second["conferenceData"]["entryPoints"][0]["uri"], second["hangoutLink"]);
    assert_ne!(second["etag"], first["etag"]);
}

#[tokio::test]
async fn a_pending_conference_can_fail_or_stay() {
    let client = Client::start().await;
    client.conferences(ConferenceMode::FailureAfter(1));
    client.insert(&lesson(ID)).await;
    assert_eq!(status_code(&client.get(ID).await.1), "failure");
    client.conferences(ConferenceMode::Pending);
    client.insert(&lesson("stillpending")).await;
    for _ in 0..5 {
        assert_eq!(status_code(&client.get("stillpending").await.1), "pending");
    }
}

#[tokio::test]
async fn a_failed_conference_needs_a_new_request_id() {
    let client = Client::start().await;
    client.conferences(ConferenceMode::Failure);
    client.insert(&lesson(ID)).await;
    client.conferences(ConferenceMode::Instant);
    let (_, same) = client.patch(ID, &json!({"conferenceData": ask_for_meet("request-0")})).await;
    assert_eq!(status_code(&same), "failure");
    let (_, new) = client.patch(ID, &json!({"conferenceData": ask_for_meet("request-1")})).await;
    assert_eq!(status_code(&new), "success");
    let (_, again) = client.patch(ID, &json!({"conferenceData": ask_for_meet("request-2")})).await;
    assert_eq!(again, new, "an event that has a conference ignores requests");
}

#[tokio::test]
async fn the_same_request_id_on_two_events_gives_two_rooms() {
    let client = Client::start().await;
    let (_, one) = client.insert(&lesson("firstone")).await;
    let (_, two) = client.insert(&lesson("secondone")).await;
    assert_ne!(one["hangoutLink"], two["hangoutLink"]);
}

#[tokio::test]
async fn where_meet_is_not_allowed_the_whole_insert_fails() {
    let client = Client::start().await;
    client.conferences(ConferenceMode::NotAllowed);
    let refused = client.insert(&lesson(ID)).await;
    assert_eq!(refusal(&refused), (400, "invalid"));
    assert_eq!(refused.1["error"]["message"], "Invalid conference type value.");
    assert_eq!(refusal(&client.get(ID).await), (404, "notFound"));
    let mut without = lesson(ID);
    without.as_object_mut().unwrap().remove("conferenceData");
    assert_eq!(client.insert(&without).await.0, 200, "the id was not used up");
}

#[tokio::test]
async fn a_change_of_time_keeps_the_link() {
    let client = Client::start().await;
    let (_, before) = client.insert(&lesson(ID)).await;
    let time = json!({
        "start": {"dateTime": "2026-12-02T09:00:00Z", "timeZone": "Europe/Madrid", "date": null},
        "end": {"dateTime": "2026-12-02T10:00:00Z", "timeZone": "Europe/Madrid", "date": null},
    });
    let (status, after) = client.patch(ID, &time).await;
    assert_eq!((status, &after["hangoutLink"]), (200, &before["hangoutLink"]));
    assert_eq!(after["sequence"], 1);
}

#[tokio::test]
async fn a_teacher_replaces_or_removes_the_conference() {
    let client = Client::start().await;
    client.insert(&lesson(ID)).await;
    client.google.fake.teacher(client.email(), ID, &TeacherAction::ReplaceConference).unwrap();
    let (_, other) = client.get(ID).await;
    assert_eq!(other["conferenceData"]["conferenceSolution"]["key"]["type"], "addOn");
    assert_eq!(other.get("hangoutLink"), None);
    client.google.fake.teacher(client.email(), ID, &TeacherAction::RemoveConference).unwrap();
    assert_eq!(client.get(ID).await.1.get("conferenceData"), None);
    let (_, back) = client.patch(ID, &json!({"conferenceData": ask_for_meet("request-1")})).await;
    assert_eq!(status_code(&back), "success");
}
