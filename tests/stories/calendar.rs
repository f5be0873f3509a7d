//! What a calendar gets in the ordinary course of a lesson.

use meet_projector::fake::Fault;
use meet_projector::fake::Operation::{Delete, Insert, Patch};
use meet_projector::fake::{Rule, TeacherAction};
use meet_projector::model::{Attendee, UnixMillis};
use serde_json::{Value, json};

use crate::support::service::{HOUR_MS, Setup, Then as _, World, lesson_at};

stories! {
    on both databases:
        a_schedule_becomes_an_event_with_a_link,
        a_reschedule_keeps_event_and_link,
        a_cancel_deletes_once,
        a_revival_gets_a_new_event,
        a_change_of_teacher_moves_the_lesson;
    on sqlite:
        what_google_does_not_show_writes_nothing,
        guests_are_merged,
        a_lesson_that_is_over_is_never_written;
}

async fn a_schedule_becomes_an_event_with_a_link(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let document = world.ready("s1", 1).await;

    let details = lesson.details.unwrap();
    assert_eq!(document["teacherId"], "tch_0");
    assert_eq!(document["kind"], "private");
    assert_eq!(document["startsAt"], details.starts_at.to_rfc3339());
    assert_eq!(document["endsAt"], details.ends_at.to_rfc3339());
    assert_eq!(document["error"], Value::Null);

    let id = document["meetEventId"].as_str().unwrap();
    let event = world.fake().resource(world.email(0), id).unwrap();
    assert_eq!(event["hangoutLink"], document["meetLink"]);
    assert_eq!(event["summary"], "Piano s1");
    assert_eq!(event["description"], "Bring the notes.");
    for (field, wanted) in [("start", details.starts_at), ("end", details.ends_at)] {
        assert_eq!(UnixMillis::parse_rfc3339(event[field]["dateTime"].as_str().unwrap()).unwrap(), wanted);
        assert_eq!(event[field]["timeZone"], "Europe/Madrid");
    }
    assert_eq!(event["source"]["url"], "https://school.example.com/sessions/s1");
    assert_eq!(event["extendedProperties"]["private"]["mpSession"], "s1");
    assert_eq!(event["extendedProperties"]["private"]["mpEnv"], "test");
    assert_eq!(event["attendees"], Value::Null, "guests are put on only when they are asked for");
    assert_eq!(world.calls("s1"), [Insert], "one call is all it takes");
    let query = &world.fake().recorded().into_iter().find(|call| call.operation == Insert).unwrap().query;
    assert!(query.contains("conferenceDataVersion=1") && query.contains("sendUpdates=none"), "{query}");
    world.assert_google_was_never_wrong();
}

async fn a_reschedule_keeps_event_and_link(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let before = world.ready("s1", 1).await;

    world.fake().add_fault(Rule::once(Patch, Fault::slow(1_500)));
    let moved = lesson.moved(HOUR_MS);
    world.publish(&moved).await;
    let between = world.wait_for("s1", |document| document["version"] == 2).await;
    assert_eq!(between["upToDate"], false, "Google has not answered yet: {between}");
    assert_eq!(between["meetLink"], before["meetLink"], "the link stays visible");
    assert_eq!(between["startsAt"], moved.details.as_ref().unwrap().starts_at.to_rfc3339());

    let after = world.ready("s1", 2).await;
    assert_eq!(after["meetLink"], before["meetLink"]);
    assert_eq!(after["meetEventId"], before["meetEventId"]);
    let event = world.fake().event(world.email(0), after["meetEventId"].as_str().unwrap()).unwrap();
    assert_eq!(event.starts_at, moved.details.unwrap().starts_at);
    assert_eq!(world.calls("s1"), [Insert, Patch]);
    world.assert_google_was_never_wrong();
}

async fn a_cancel_deletes_once(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    world.ready("s1", 1).await;
    world.publish(&lesson.canceled()).await;
    let document = world.canceled("s1", 2).await;
    assert_eq!(document["meetLink"], Value::Null);
    assert_eq!(document["error"], Value::Null);
    assert_eq!(world.fake().live_events(), []);
    assert_eq!(world.calls("s1"), [Insert, Delete]);
}

async fn a_revival_gets_a_new_event(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let first = world.ready("s1", 1).await;
    let canceled = lesson.canceled();
    world.publish(&canceled).await;
    world.canceled("s1", 2).await;
    world.publish(&canceled.then(|_| {})).await;
    let second = world.ready("s1", 3).await;
    assert_ne!(first["meetEventId"], second["meetEventId"], "Google never gives a deleted id back");
    assert_ne!(first["meetLink"], second["meetLink"]);
    assert_eq!(world.calls("s1"), [Insert, Delete, Insert]);
    assert_eq!(world.fake().live_events().len(), 1);
    world.assert_google_was_never_wrong();
}

async fn a_change_of_teacher_moves_the_lesson(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let first = world.ready("s1", 1).await;
    world.publish(&lesson.taught_by(1)).await;
    let second = world.ready("s1", 2).await;
    assert_eq!(second["teacherId"], "tch_1");
    assert_ne!(first["meetEventId"], second["meetEventId"]);
    world.until_settled().await;
    let live = world.fake().live_events();
    assert_eq!(live.len(), 1, "{live:?}");
    assert_eq!(
        (live[0].account.as_str(), live[0].id.as_str()),
        (world.email(1), second["meetEventId"].as_str().unwrap())
    );
    let mut writes = world.writes("s1");
    writes.sort();
    assert_eq!(writes, [Insert, Insert, Delete]);
    world.assert_google_was_never_wrong();
}

async fn what_google_does_not_show_writes_nothing(setup: Setup) {
    let world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let before = world.ready("s1", 1).await;
    world.publish(&lesson.then(|details| details.kind = meet_projector::model::Kind::Course)).await;
    let after = world.ready("s1", 2).await;
    assert_eq!(after["kind"], "course");
    assert_eq!(after["meetLink"], before["meetLink"]);
    assert_eq!(world.writes("s1"), [Insert]);
}

async fn guests_are_merged(setup: Setup) {
    let world = World::start(Setup { attendees: true, ..setup }).await;
    let guest = |email: &str| Attendee { email: email.to_owned(), display_name: None };
    let mut lesson = world.lesson("s1", 0);
    lesson.details.as_mut().unwrap().attendees = vec![guest("ana@example.com"), guest("leaves@example.com")];
    world.publish(&lesson).await;
    let document = world.ready("s1", 1).await;
    let id = document["meetEventId"].as_str().unwrap();
    assert_eq!(guests(&world, id), ["ana@example.com", "leaves@example.com"]);

    // The teacher invites a colleague by hand, and the booking loses one guest and gains another.
    let event = world.fake().resource(world.email(0), id).unwrap();
    let mut attendees = event["attendees"].as_array().unwrap().clone();
    attendees.push(json!({"email": "colleague@example.com"}));
    let patch = json!({ "attendees": attendees });
    world.fake().teacher(world.email(0), id, &TeacherAction::Merge { patch }).unwrap();
    let moved = lesson.then(|details| details.attendees = vec![guest("ana@example.com"), guest("bo@example.com")]);
    world.publish(&moved).await;
    world.ready("s1", 2).await;
    assert_eq!(guests(&world, id), ["ana@example.com", "bo@example.com", "colleague@example.com"]);
    assert_eq!(world.fake().counters().committed_of(Patch), 1);
}

fn guests(world: &World, id: &str) -> Vec<String> {
    let event = world.fake().resource(world.email(0), id).unwrap();
    let attendees = event["attendees"].as_array().cloned().unwrap_or_default();
    let mut emails: Vec<_> = attendees.iter().map(|guest| guest["email"].as_str().unwrap().to_owned()).collect();
    emails.sort();
    emails
}

async fn a_lesson_that_is_over_is_never_written(setup: Setup) {
    let world = World::start(setup).await;
    let over = lesson_at("over", 0, world.clock.now().plus(-3 * HOUR_MS));
    world.publish(&over).await;
    let document = world.error("over", "SESSION_ENDED").await;
    assert_eq!(document["meetLink"], Value::Null);
    world.publish(&over.moved(HOUR_MS / 2)).await;
    world.publish(&over.moved(0).canceled()).await;
    // What comes after it on the same calendar is done, so it would have been.
    world.publish(&world.lesson("next", 0)).await;
    world.ready("next", 1).await;
    assert_eq!(world.calls("over"), []);
}
