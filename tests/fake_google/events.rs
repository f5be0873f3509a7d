//! Events: insert, get, list, patch, update, delete, and what people do to them meanwhile.

use meet_projector::fake::{Expected, ExpectedEvent, TeacherAction};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Client, ID, NOW, answer, lesson, refusal};

#[tokio::test]
async fn an_inserted_event_reads_as_google_writes_it() {
    let client = Client::start().await;
    let (status, event) = client.insert(&lesson(ID)).await;
    assert_eq!(status, 200);
    insta::assert_json_snapshot!(event, {".htmlLink" => "[link]"});
    assert_eq!(client.get(ID).await, (200, event));
}

#[tokio::test]
async fn an_id_is_taken_once_and_for_ever() {
    let client = Client::start().await;
    assert_eq!(client.insert(&lesson(ID)).await.0, 200);
    let live = client.insert(&lesson(ID)).await;
    assert_eq!(
        live,
        (
            409,
            json!({"error": {
                "errors": [{
                    "domain": "global",
                    "reason": "duplicate",
                    "message": "The requested identifier already exists.",
                }],
                "code": 409,
                "message": "The requested identifier already exists.",
            }})
        )
    );
    client.delete(ID).await;
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (409, "duplicate"));
    assert_eq!(client.google.fake.empty_trash(client.email()), 1);
    assert_eq!(refusal(&client.get(ID).await), (404, "notFound"));
    assert_eq!(refusal(&client.insert(&lesson(ID)).await), (409, "duplicate"));
}

#[tokio::test]
async fn what_is_wrong_with_an_insert_is_named() {
    let client = Client::start().await;
    let with = |change: Value| {
        let mut event = lesson(ID);
        for (field, value) in change.as_object().unwrap() {
            event[field] = value.clone();
        }
        event
    };
    let time = |text: &str, zone: Value| json!({"dateTime": text, "timeZone": zone});
    let cases = [
        (with(json!({"id": "UPPER-case"})), "invalid", "Invalid resource id value."),
        (with(json!({"id": "abcd"})), "invalid", "Invalid resource id value."),
        (with(json!({"start": null})), "required", "Missing start time."),
        (with(json!({"end": {}})), "required", "Missing end time."),
        (
            with(json!({"start": time("2026-12-01T09:00:00Z", json!("Mars/Olympus"))})),
            "invalid",
            "Invalid time zone definition for start time.",
        ),
        (
            with(json!({"start": time("2026-12-01T09:00:00", Value::Null)})),
            "required",
            "Missing time zone definition for start time.",
        ),
        (
            with(json!({"start": {"dateTime": "2026-12-01T09:00:00Z", "date": "2026-12-01"}})),
            "invalid",
            "Invalid start time.",
        ),
        (
            with(json!({"end": time("2026-12-01T08:00:00Z", Value::Null)})),
            "timeRangeEmpty",
            "The specified time range is empty.",
        ),
        (with(json!({"attendees": [{"displayName": "Ana"}]})), "required", "Missing attendee email."),
    ];
    for (event, reason, message) in cases {
        let answer = client.insert(&event).await;
        assert_eq!((refusal(&answer), &answer.1["error"]["message"]), ((400, reason), &json!(message)));
    }
    let not_json = answer(client.request(Method::POST, "").body("{")).await;
    assert_eq!(refusal(&not_json), (400, "parseError"));
    assert_eq!(client.google.fake.events(), []);
}

#[tokio::test]
async fn a_get_with_the_etag_says_not_modified_until_it_was() {
    let client = Client::start().await;
    let (_, event) = client.insert(&lesson(ID)).await;
    let etag = event["etag"].as_str().unwrap().to_owned();
    let conditional = || answer(client.request(Method::GET, &format!("/{ID}")).header("If-None-Match", &etag));
    assert_eq!(conditional().await, (304, Value::Null));
    client.google.fake.teacher_shifts(client.email(), ID, 60_000).unwrap();
    let (status, moved) = conditional().await;
    assert_eq!(status, 200);
    assert_eq!(moved["start"]["dateTime"], "2026-12-01T10:01:00+01:00");
    assert_eq!(moved["sequence"], 1);
    assert_ne!(moved["etag"], event["etag"]);
}

#[tokio::test]
async fn a_patch_merges_clears_and_replaces_arrays() {
    let client = Client::start().await;
    let mut event = lesson(ID);
    event["attendees"] = json!([{"email": "ana@example.com"}, {"email": "ben@example.com"}]);
    event["description"] = "Bring the score".into();
    event["colorId"] = "7".into();
    let (_, before) = client.insert(&event).await;
    let patch = json!({
        "description": null,
        "attendees": [{"email": "cleo@example.com"}],
        "extendedProperties": {"private": {"mpHash": "abc"}},
    });
    let (status, after) = client.patch(ID, &patch).await;
    assert_eq!(status, 200);
    assert_eq!(after.get("description"), None);
    assert_eq!(after["attendees"], json!([{"email": "cleo@example.com", "responseStatus": "needsAction"}]));
    let private = json!({"mpSession": "ses_1", "mpEnv": "test", "mpHash": "abc"});
    assert_eq!(after["extendedProperties"]["private"], private);
    for kept in ["colorId", "hangoutLink", "start", "iCalUID", "sequence"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    assert_ne!(after["etag"], before["etag"]);
}

#[tokio::test]
async fn a_timed_event_turns_all_day_only_when_the_time_is_cleared() {
    let client = Client::start().await;
    client.insert(&lesson(ID)).await;
    let days = |date_time: Value| {
        let day = |date: &str, rest: &Value| match rest {
            Value::Null => json!({"date": date, "dateTime": null}),
            _ => json!({ "date": date }),
        };
        json!({"start": day("2026-12-01", &date_time), "end": day("2026-12-02", &date_time)})
    };
    assert_eq!(refusal(&client.patch(ID, &days(json!("kept"))).await), (400, "invalid"));
    assert_eq!(client.patch(ID, &days(Value::Null)).await.0, 200);
}

#[tokio::test]
async fn a_stale_etag_stops_patch_update_and_delete() {
    let client = Client::start().await;
    let (_, event) = client.insert(&lesson(ID)).await;
    let edit = TeacherAction::Edit { title: Some("Mine".to_owned()), description: None };
    client.google.fake.teacher(client.email(), ID, &edit).unwrap();
    for method in [Method::PATCH, Method::PUT, Method::DELETE] {
        let request = client
            .request(method.clone(), &format!("/{ID}"))
            .header("If-Match", event["etag"].as_str().unwrap())
            .json(&event);
        let answer = answer(request).await;
        assert_eq!(refusal(&answer), (412, "conditionNotMet"), "{method}");
        assert_eq!(answer.1["error"]["errors"][0]["location"], "If-Match");
    }
    assert_eq!(client.get(ID).await.1["summary"], "Mine");
}

#[tokio::test]
async fn an_update_replaces_the_whole_and_needs_the_newest_sequence() {
    let client = Client::start().await;
    let mut event = lesson(ID);
    event["description"] = "Bring the score".into();
    let (_, read) = client.insert(&event).await;
    client.google.fake.teacher_shifts(client.email(), ID, 3_600_000).unwrap();
    let stale = client.put(ID, &read).await;
    assert_eq!(refusal(&stale), (400, "invalid"));
    assert!(stale.1["error"]["message"].as_str().unwrap().starts_with("Invalid sequence value"));

    let (_, mut fresh) = client.get(ID).await;
    fresh.as_object_mut().unwrap().remove("description");
    let (status, updated) = client.put(ID, &fresh).await;
    assert_eq!((status, updated.get("description")), (200, None));
    assert_eq!(updated["hangoutLink"], read["hangoutLink"]);

    fresh["sequence"] = updated["sequence"].clone();
    fresh.as_object_mut().unwrap().remove("conferenceData");
    let (_, updated) = client.put(ID, &fresh).await;
    assert_eq!(updated.get("hangoutLink"), None, "a PUT with version 1 and without the conference writes it away");
}

#[tokio::test]
async fn a_deleted_event_is_a_tombstone() {
    let client = Client::start().await;
    client.insert(&lesson(ID)).await;
    assert_eq!(client.delete(ID).await, (204, Value::Null));
    let again = client.delete(ID).await;
    assert_eq!(refusal(&again), (410, "deleted"));
    assert_eq!(again.1["error"]["message"], "Resource has been deleted");
    let (status, tombstone) = client.get(ID).await;
    assert_eq!(
        (status, &tombstone["status"], &tombstone["summary"]),
        (200, &json!("cancelled"), &json!("Piano with Ana"))
    );
    assert_eq!(refusal(&client.patch(ID, &json!({"status": "confirmed"})).await), (403, "forbidden"));
    assert_eq!(refusal(&client.delete("neverheardof").await), (404, "notFound"));
    assert_eq!(refusal(&answer(client.request(Method::DELETE, "/")).await), (404, "notFound"));
}

#[tokio::test]
async fn only_an_update_of_the_event_as_read_undeletes() {
    let client = Client::start().await;
    let (_, first) = client.insert(&lesson(ID)).await;
    client.google.fake.teacher_shifts(client.email(), ID, 3_600_000).unwrap();
    client.google.fake.teacher(client.email(), ID, &TeacherAction::Delete).unwrap();
    assert_eq!(refusal(&client.put(ID, &lesson(ID)).await), (403, "forbidden"), "a fresh body");
    assert_eq!(refusal(&client.put(ID, &first).await), (403, "forbidden"), "an old sequence");

    let (_, mut tombstone) = client.get(ID).await;
    assert_eq!(refusal(&client.put(ID, &tombstone).await), (403, "forbidden"), "still cancelled");
    tombstone["status"] = "confirmed".into();
    let (status, restored) = client.put(ID, &tombstone).await;
    assert_eq!((status, &restored["status"]), (200, &json!("confirmed")));
    assert_eq!(restored["hangoutLink"], first["hangoutLink"]);
}

#[tokio::test]
async fn lists_filter_by_property_time_and_deletion_and_come_in_pages() {
    let client = Client::start().await;
    for n in 0..5 {
        let mut event = lesson(&format!("event{n}"));
        event["extendedProperties"]["private"]["mpSession"] = format!("ses_{n}").into();
        client.insert(&event).await;
    }
    client.delete("event4").await;
    let ids = async |query: &str| {
        let (status, list) = answer(client.request(Method::GET, query)).await;
        assert_eq!(status, 200, "{list}");
        let ids: Vec<_> =
            list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect();
        (ids, list["nextPageToken"].as_str().map(str::to_owned))
    };
    assert_eq!(ids("?privateExtendedProperty=mpSession%3Dses_3").await.0, ["event3"]);
    assert_eq!(ids("?privateExtendedProperty=mpSession%3Dses_4").await.0, [""; 0]);
    assert_eq!(ids("?privateExtendedProperty=mpSession%3Dses_4&showDeleted=true").await.0, ["event4"]);
    assert_eq!(ids("?privateExtendedProperty=mpEnv%3Dtest").await.0.len(), 4);
    assert_eq!(ids("?privateExtendedProperty=mpEnv%3Dproduction").await.0.len(), 0);
    assert_eq!(ids("?timeMin=2026-12-01T10:00:00Z").await.0.len(), 0);
    assert_eq!(ids("?timeMin=2026-12-01T09:59:00Z&timeMax=2026-12-02T00:00:00Z").await.0.len(), 4);
    let (page, next) = ids("?maxResults=3").await;
    assert_eq!(page, ["event0", "event1", "event2"]);
    assert_eq!(ids(&format!("?maxResults=3&pageToken={}", next.unwrap())).await, (vec!["event3".to_owned()], None));
    let wrong = answer(client.request(Method::GET, "?privateExtendedProperty=mpSession")).await;
    assert_eq!(refusal(&wrong), (400, "invalid"));
}

#[tokio::test]
async fn a_token_reaches_the_calendars_of_its_own_account_only() {
    let client = Client::start().await;
    client.google.fake.add_calendar(client.email(), "lessons@group.calendar.google.com");
    client.insert(&lesson(ID)).await;
    let root = &client.google.running.calendar_api_root;
    let other = &client.google.teachers[1].email;
    let get = |calendar: &str| {
        answer(client.http.get(format!("{root}/calendars/{calendar}/events/{ID}")).bearer_auth(&client.token))
    };
    assert_eq!(get(client.email()).await.0, 200);
    assert_eq!(get("primary").await.0, 200);
    assert_eq!(refusal(&get("lessons@group.calendar.google.com").await), (404, "notFound"));
    assert_eq!(refusal(&get(other).await), (404, "notFound"));
    let theirs = client.google.fake.access_token(other, &meet_projector::fake::DEFAULT_SCOPES).unwrap();
    let answer = answer(client.http.get(format!("{root}/calendars/primary/events/{ID}")).bearer_auth(theirs)).await;
    assert_eq!(refusal(&answer), (404, "notFound"));
}

#[tokio::test]
async fn the_checker_sees_differences_now_and_doubles_of_the_past() {
    let client = Client::start().await;
    let fake = &client.google.fake;
    client.insert(&lesson(ID)).await;
    let wanted = |title: &str| {
        [Expected {
            session: "ses_1".to_owned(),
            live: Some(ExpectedEvent {
                account: client.email().to_owned(),
                starts_at_ms: NOW.get() + (8 * 24 + 13) * 3_600_000,
                ends_at_ms: NOW.get() + (8 * 24 + 14) * 3_600_000,
                title: Some(title.to_owned()),
                has_link: true,
            }),
        }]
    };
    assert_eq!(fake.check(&wanted("Piano with Ana")), [""; 0]);
    assert_eq!(fake.check(&wanted("Guitar")).len(), 1);
    assert_eq!(fake.check(&[]), ["session ses_1 is not expected"]);
    assert_eq!(fake.check(&[Expected { session: "ses_1".to_owned(), live: None }]).len(), 1);

    // A second event, gone again before anybody looks.
    client.insert(&lesson("secondevent")).await;
    client.delete("secondevent").await;
    let problems = fake.check(&wanted("Piano with Ana"));
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert_eq!(fake.violations()[0].event, "secondevent");
    fake.reset_records();
    assert_eq!(fake.check(&wanted("Piano with Ana")), [""; 0]);
}

#[tokio::test]
async fn writes_that_change_nothing_are_counted_and_keep_the_etag() {
    let client = Client::start().await;
    let (_, event) = client.insert(&lesson(ID)).await;
    let (_, same) = client.patch(ID, &json!({"summary": "Piano with Ana"})).await;
    assert_eq!(same["etag"], event["etag"]);
    let (_, same) = client.put(ID, &event).await;
    assert_eq!(same["etag"], event["etag"]);
    assert_eq!(client.google.fake.counters().no_op_writes, 2);
    assert_eq!(client.google.fake.event(client.email(), ID).unwrap().writes.no_ops, 2);
}
