//! What is sent: the fields we own and nothing else, each write with its condition.

use std::time::Duration;

use meet_projector::google::{Answer, Call, RemoteConference, RemoteStatus, Wanted};
use serde_json::{Value, json};
use wiremock::matchers::{method, query_param, query_param_is_missing};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use super::fixtures::*;

/// A server that answers every GET with the first and every other request with the second event.
async fn server(get: Value, write: Value) -> MockServer {
    let server = MockServer::start().await;
    Mock::given(method("GET")).respond_with(ResponseTemplate::new(200).set_body_json(get)).mount(&server).await;
    Mock::given(method("DELETE")).respond_with(ResponseTemplate::new(204)).mount(&server).await;
    Mock::given(wiremock::matchers::any())
        .respond_with(ResponseTemplate::new(200).set_body_json(write))
        .with_priority(9)
        .mount(&server)
        .await;
    server
}

async fn sent(server: &MockServer) -> Vec<Request> {
    server.received_requests().await.unwrap()
}

/// Method, path, query and the conditional headers: all of a request but its body.
fn line(request: &Request) -> String {
    let mut line = format!("{} {}", request.method, request.url.path());
    if let Some(query) = request.url.query() {
        line.extend(["?", query]);
    }
    for name in ["if-match", "if-none-match"] {
        if let Some(value) = request.headers.get(name) {
            line.extend(["\n", name, ": ", value.to_str().unwrap()]);
        }
    }
    line
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap()
}

#[tokio::test]
async fn an_insert_carries_our_id_markers_and_one_create_request() {
    let server = server(Value::Null, resource()).await;
    let event = event_of(call(&server, &Call::Insert { conference_request: Some("req1".into()) }).await);
    assert_eq!(event.status, RemoteStatus::Live);
    assert!(matches!(event.conference, RemoteConference::Meet(_)));
    assert_eq!((event.starts_at, event.ends_at), (Some(at("09:00:00")), Some(at("10:00:00"))));
    assert_eq!(event.marked_session.as_deref(), Some("ses_8Kq2"));
    assert_eq!(event.marked_hash.as_deref(), Some("c0ffee"));

    let sent = sent(&server).await;
    insta::assert_snapshot!(line(&sent[0]), @"POST /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events?conferenceDataVersion=1&sendUpdates=all");
    insta::assert_json_snapshot!(body(&sent[0]), @r#"
    {
      "conferenceData": {
        "createRequest": {
          "conferenceSolutionKey": {
            "type": "hangoutsMeet"
          },
          "requestId": "req1"
        }
      },
      "description": "Bring the score.",
      "end": {
        "dateTime": "2026-12-01T10:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "extendedProperties": {
        "private": {
          "mpEnv": "test",
          "mpHash": "c0ffee",
          "mpKey": "0",
          "mpSession": "ses_8Kq2",
          "mpV": "1"
        }
      },
      "guestsCanInviteOthers": false,
      "guestsCanModify": false,
      "guestsCanSeeOtherGuests": false,
      "id": "emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0",
      "source": {
        "title": "Piano with Ana",
        "url": "https://example.com/sessions/ses_8Kq2"
      },
      "start": {
        "dateTime": "2026-12-01T09:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "summary": "Piano with Ana",
      "transparency": "opaque"
    }
    "#);
    let header = |name| sent[0].headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("authorization"), Some("Bearer ya29.MARKER"));
    assert_eq!(header("content-type"), Some("application/json"));
    assert!(header("user-agent").unwrap().starts_with("meet-projector/"));
    assert_eq!(header("accept-encoding"), None);
    assert_eq!(sent.len(), 1);
}

#[tokio::test]
async fn an_insert_leaves_out_what_is_not_there() {
    let server = server(Value::Null, resource()).await;
    let bare = Wanted { description: None, url: None, ..wanted() };
    call_at(&server.uri(), &Call::Insert { conference_request: None }, Some(&bare), Duration::from_secs(20))
        .await
        .unwrap();
    let body = body(&sent(&server).await[0]);
    for member in ["description", "source", "conferenceData", "attendees", "reminders", "sequence", "status"] {
        assert_eq!(body.get(member), None, "{member}");
    }
}

#[tokio::test]
async fn a_patch_has_its_condition_and_only_owned_fields() {
    let server = server(Value::Null, resource()).await;
    event_of(call(&server, &Call::Patch { etag: "\"1\"".into() }).await);
    let sent = sent(&server).await;
    assert_eq!(sent.len(), 1, "no look before a patch without guests");
    insta::assert_snapshot!(line(&sent[0]), @r#"
    PATCH /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0?conferenceDataVersion=1&sendUpdates=all
    if-match: "1"
    "#);
    insta::assert_json_snapshot!(body(&sent[0]), @r#"
    {
      "description": "Bring the score.",
      "end": {
        "date": null,
        "dateTime": "2026-12-01T10:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "extendedProperties": {
        "private": {
          "mpEnv": "test",
          "mpHash": "c0ffee",
          "mpKey": "0",
          "mpSession": "ses_8Kq2",
          "mpV": "1"
        }
      },
      "source": {
        "title": "Piano with Ana",
        "url": "https://example.com/sessions/ses_8Kq2"
      },
      "start": {
        "date": null,
        "dateTime": "2026-12-01T09:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "summary": "Piano with Ana",
      "transparency": "opaque"
    }
    "#);
}

#[tokio::test]
async fn a_patch_clears_what_is_not_wanted_any_more() {
    let server = server(Value::Null, resource()).await;
    let bare = Wanted { description: None, url: None, ..wanted() };
    call_at(&server.uri(), &Call::Patch { etag: "\"1\"".into() }, Some(&bare), Duration::from_secs(20)).await.unwrap();
    let body = body(&sent(&server).await[0]);
    assert_eq!((body.get("description"), body.get("source")), (Some(&Value::Null), Some(&Value::Null)));
}

#[tokio::test]
async fn a_patch_with_guests_looks_first_and_keeps_answers() {
    let guests = json!([
        {"email": "teacher@example.com", "organizer": true, "self": true, "responseStatus": "accepted"},
        {"email": "bo@example.com", "responseStatus": "accepted"},
        {"email": "colleague@example.com", "responseStatus": "declined"},
    ]);
    let before = resource_with(json!({"attendees": guests}));
    let with_guests = Wanted { attendees: Some(vec![guest("Bo@example.com"), guest("cy@example.com")]), ..wanted() };

    let server = server(before.clone(), before.clone()).await;
    let patch = Call::Patch { etag: "\"1\"".into() };
    call_at(&server.uri(), &patch, Some(&with_guests), Duration::from_secs(20)).await.unwrap();
    let requests = sent(&server).await;
    assert_eq!(requests.len(), 2);
    // The time is as it was, so nobody is mailed although the settings say so.
    insta::assert_snapshot!(line(&requests[1]), @r#"
    PATCH /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0?conferenceDataVersion=1&sendUpdates=none
    if-match: "1"
    "#);
    insta::assert_json_snapshot!(body(&requests[1])["attendees"], @r#"
    [
      {
        "email": "teacher@example.com",
        "organizer": true,
        "responseStatus": "accepted",
        "self": true
      },
      {
        "email": "bo@example.com",
        "responseStatus": "accepted"
      },
      {
        "email": "colleague@example.com",
        "responseStatus": "declined"
      },
      {
        "email": "cy@example.com"
      }
    ]
    "#);

    // A new time is worth a mail.
    let later = Wanted { ends_at: at("11:00:00"), ..with_guests.clone() };
    call_at(&server.uri(), &patch, Some(&later), Duration::from_secs(20)).await.unwrap();
    assert!(line(&sent(&server).await[3]).contains("sendUpdates=all"));

    // What the look shows already is not tried.
    let stale = Call::Patch { etag: "\"0\"".into() };
    let error = call_at(&server.uri(), &stale, Some(&with_guests), Duration::from_secs(20)).await.unwrap_err();
    assert_eq!(error.class, meet_projector::google::error::Class::Stale);
    assert!(!error.is_ambiguous);
    assert_eq!(sent(&server).await.len(), 5);
}

#[tokio::test]
async fn asking_for_a_conference_sends_nothing_else() {
    let server = server(Value::Null, resource()).await;
    let add = Call::AddConference { etag: "\"1\"".into(), conference_request: "req2".into() };
    event_of(call(&server, &add).await);
    let sent = sent(&server).await;
    insta::assert_snapshot!(line(&sent[0]), @r#"
    PATCH /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0?conferenceDataVersion=1&sendUpdates=none
    if-match: "1"
    "#);
    insta::assert_json_snapshot!(body(&sent[0]), @r#"
    {
      "conferenceData": {
        "createRequest": {
          "conferenceSolutionKey": {
            "type": "hangoutsMeet"
          },
          "requestId": "req2"
        }
      }
    }
    "#);
}

#[tokio::test]
async fn a_restore_echoes_the_tombstone() {
    let tombstone = resource_with(json!({
        "status": "cancelled", "etag": "\"7\"", "summary": "Renamed by the teacher", "colorId": "5",
        "start": {"date": "2026-12-01"},
        "extendedProperties": {"private": {"mpEnv": "test", "mpSession": "ses_8Kq2", "other": "kept"}},
    }));
    let server = server(tombstone, resource()).await;
    event_of(call(&server, &Call::Restore).await);
    let sent = sent(&server).await;
    assert_eq!(sent.len(), 2);
    insta::assert_snapshot!(line(&sent[1]), @r#"
    PUT /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0?conferenceDataVersion=1&sendUpdates=none
    if-match: "7"
    "#);
    insta::assert_json_snapshot!(body(&sent[1]), @r#"
    {
      "colorId": "5",
      "conferenceData": {
        "conferenceId": "abc-defg-hij",
        "conferenceSolution": {
          "key": {
            "type": "hangoutsMeet"
          }
        },
        "entryPoints": [
          {
            "entryPointType": "video",
            "uri": "https://meet.google.com/abc-defg-hij"
          }
        ]
      },
      "description": "Bring the score.",
      "end": {
        "dateTime": "2026-12-01T10:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "etag": "\"7\"",
      "extendedProperties": {
        "private": {
          "mpEnv": "test",
          "mpHash": "c0ffee",
          "mpKey": "0",
          "mpSession": "ses_8Kq2",
          "mpV": "1",
          "other": "kept"
        }
      },
      "hangoutLink": "https://meet.google.com/abc-defg-hij",
      "iCalUID": "uid@google.com",
      "id": "emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0",
      "kind": "calendar#event",
      "reminders": {
        "useDefault": true
      },
      "sequence": 3,
      "source": {
        "title": "Piano with Ana",
        "url": "https://example.com/sessions/ses_8Kq2"
      },
      "start": {
        "dateTime": "2026-12-01T09:00:00Z",
        "timeZone": "Europe/Madrid"
      },
      "status": "confirmed",
      "summary": "Piano with Ana",
      "transparency": "opaque"
    }
    "#);
}

#[tokio::test]
async fn a_restore_returns_a_live_event_and_refuses_a_foreign_one() {
    let live = server(resource(), Value::Null).await;
    assert_eq!(event_of(call(&live, &Call::Restore).await).status, RemoteStatus::Live);
    assert_eq!(sent(&live).await.len(), 1);

    for markers in [json!({}), json!({"private": {"mpSession": "ses_8Kq2", "mpEnv": "production"}})] {
        let foreign =
            server(resource_with(json!({"status": "cancelled", "extendedProperties": markers})), Value::Null).await;
        let error = call(&foreign, &Call::Restore).await.unwrap_err();
        assert_eq!(error.reason.as_deref(), Some("notOurs"));
        assert!(!error.is_ambiguous);
        assert_eq!(sent(&foreign).await.len(), 1);
    }
}

#[tokio::test]
async fn a_get_may_be_conditional_and_a_delete_has_no_body() {
    let server = server(resource(), Value::Null).await;
    event_of(call(&server, &Call::Get { if_none_match: Some("\"1\"".into()) }).await);
    assert_eq!(call(&server, &Call::Delete).await.unwrap(), Answer::Deleted);
    let sent = sent(&server).await;
    insta::assert_snapshot!(line(&sent[0]), @r#"
    GET /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0
    if-none-match: "1"
    "#);
    insta::assert_snapshot!(line(&sent[1]), @"DELETE /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events/emg3suff3fi7n7p8u23705lu0veb4rpb6o7pa1gerpekf9rhncb0?sendUpdates=all");
    assert!(sent[1].body.is_empty());
}

#[tokio::test]
async fn a_search_has_one_constraint_follows_pages_and_believes_only_markers() {
    let server = MockServer::start().await;
    let foreign = resource_with(json!({"id": "other", "extendedProperties": {"private": {"mpSession": "ses_9"}}}));
    let gone = resource_with(json!({"id": "gone", "status": "cancelled"}));
    let second = resource_with(json!({"id": "adopted"}));
    let first_page = json!({"items": [resource(), foreign, gone], "nextPageToken": "p/2"});
    let pages =
        [(None, first_page), (Some("p/2"), json!({"nextPageToken": "p3"})), (Some("p3"), json!({"items": [second]}))];
    for (token, page) in pages {
        let mock = match token {
            None => Mock::given(query_param_is_missing("pageToken")),
            Some(token) => Mock::given(query_param("pageToken", token)),
        };
        mock.respond_with(ResponseTemplate::new(200).set_body_json(page)).mount(&server).await;
    }
    let Answer::Found(found) = call(&server, &Call::Find).await.unwrap() else { panic!("a list was expected") };
    let ids: Vec<&str> = found.iter().map(|event| event.id.as_str()).collect();
    assert_eq!(ids, [event_id().as_str(), "adopted"]);
    let sent = sent(&server).await;
    insta::assert_snapshot!(line(&sent[0]), @"GET /calendar/v3/calendars/ana%2Fb%3Fc@example.com/events?privateExtendedProperty=mpSession%3Dses_8Kq2&maxResults=50&showDeleted=false");
    assert_eq!(sent.len(), 3);
}

#[tokio::test]
async fn a_search_without_end_is_no_answer() {
    let server = server(json!({"items": [], "nextPageToken": "again"}), Value::Null).await;
    let error = call(&server, &Call::Find).await.unwrap_err();
    assert_eq!(error.class, meet_projector::google::error::Class::Transient);
    assert!(sent(&server).await.len() <= 20);
}

#[tokio::test]
async fn a_calendar_id_cannot_leave_its_place_in_the_path() {
    let server = server(resource(), Value::Null).await;
    let (session, event_id) = (session(), event_id());
    for calendar in ["", ".", ".."] {
        let target = meet_projector::google::calendar::Target { calendar, event_id: &event_id, session: &session };
        let token = secrecy::SecretString::from("t");
        let error =
            client(&server.uri()).call(&token, target, &Call::Delete, None, Duration::from_secs(20)).await.unwrap_err();
        assert!(!error.is_ambiguous, "{error}");
    }
    assert!(sent(&server).await.is_empty());
}
