//! `verify`: what agrees, what does not, and how it is mended.

use meet_projector::fake::Operation::Get;
use meet_projector::fake::TeacherAction;
use serde_json::json;

use super::program::{json, lose_what_is_unread, requests, run, tamper};
use crate::support::service::{HOUR_MS, Setup, Then as _, World};

on_both! {
    everything_agrees,
    a_missing_event_is_found_and_folded,
    a_wrong_projection_is_told,
    google_is_asked_and_mended,
}

async fn everything_agrees(setup: Setup) {
    let world = World::start(setup).await;
    for n in 0..6 {
        let lesson = world.lesson(&format!("s{n}"), n % 2);
        world.publish(&lesson).await;
        if n == 3 {
            world.publish(&lesson.canceled()).await;
        }
    }
    world.publish_raw("bookings.session.bad.scheduled", &[], b"{".to_vec()).await;
    world.until_settled().await;
    let before = requests(&world);
    let found = json(&world, 0, &["verify"]).await;
    assert_eq!((&found["agrees"], &found["stream"]["events"]), (&json!(true), &json!(8)), "{found}");
    assert_eq!((&found["stream"]["sessions"], &found["stream"]["deadLetters"]), (&json!(6), &json!(1)), "{found}");
    assert_eq!(requests(&world), before, "without --google nobody is asked");

    let asked = world.fake().counters().requests_of(Get);
    let found = json(&world, 0, &["verify", "--google", "--rate", "200"]).await;
    let google = &found["google"];
    assert_eq!((&google["looked"], &google["unchanged"]), (&json!(5), &json!(5)), "{found}");
    assert_eq!(world.fake().counters().requests_of(Get) - asked, 5, "one look each");
    let one = json(&world, 0, &["verify", "--google", "--session", "s1"]).await;
    assert_eq!((&one["google"]["looked"], &one["stream"]["events"]), (&json!(1), &json!(1)), "{one}");
    let teacher = json(&world, 0, &["verify", "--google", "--teacher", "tch_1"]).await;
    assert_eq!((&teacher["google"]["looked"], &teacher["stream"]["sessions"]), (&json!(2), &json!(3)), "{teacher}");
    let sample = json(&world, 0, &["verify", "--sample", "50"]).await;
    assert!(sample["stream"]["sessions"].as_i64().unwrap() < 6, "{sample}");
}

async fn a_missing_event_is_found_and_folded(setup: Setup) {
    let mut world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    world.until_settled().await;
    world.stop().await;
    let missed = world.publish(&lesson.moved(HOUR_MS)).await;
    lose_what_is_unread(&world).await;
    let unread = world.publish(&world.lesson("s2", 0)).await;
    let found = json(&world, 1, &["verify"]).await;
    assert_eq!((&found["stream"]["missing"], &found["stream"]["notReadYet"]), (&json!(1), &json!(1)), "{found}");
    let finding = &found["stream"]["findings"][0];
    assert_eq!((&finding["kind"], &finding["sequence"]), (&json!("missing"), &json!(missed)), "{found}");
    assert_eq!(found["calls"]["patch"], 1, "{found}");
    world.serve().await;
    world.ready("s2", 1).await;
    assert!(unread > missed);
    let mended = json(&world, 1, &["verify", "--execute", "--reason", "missed"]).await;
    assert_eq!(mended["mended"]["proof"]["byOperation"], json!({"patch": 1}), "{mended}");
    world.ready("s1", 2).await;
    json(&world, 0, &["verify", "--google"]).await;
}

async fn a_wrong_projection_is_told(setup: Setup) {
    let mut world = World::start(setup).await;
    for n in 0..4 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    world.until_settled().await;
    world.stop().await;
    tamper(&world, "UPDATE session SET title = 'Wrong' WHERE session_id = 's0'").await;
    tamper(&world, "UPDATE session SET head_sequence = 2, details_sequence = 2 WHERE session_id = 's2'").await;
    tamper(&world, "UPDATE session_meet_event SET want = 'absent' WHERE session_id = 's3'").await;
    tamper(&world, "UPDATE inbox SET first_sequence = 3").await;
    let found = json(&world, 1, &["verify"]).await;
    let stream = &found["stream"];
    assert_eq!((&stream["different"], &stream["extra"]), (&json!(1), &json!(1)), "{found}");
    assert_eq!((&stream["rows"], &stream["unread"]), (&json!(1), &json!(2)), "{found}");
    let text = run(&world, &["verify", "--session", "s0"]).await.text(1);
    assert!(text.contains("details is not what the event says; `rebuild` mends it"), "{text}");
    run(&world, &["verify", "--session", "s1"]).await.text(0);
}

async fn google_is_asked_and_mended(setup: Setup) {
    let world = World::start(setup.connected(1)).await;
    for n in 0..4 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
        world.ready(&format!("s{n}"), 1).await;
    }
    let id = async |session: &str| world.document(session).await.unwrap()["meetEventId"].as_str().unwrap().to_owned();
    let email = world.email(0).to_owned();
    world.fake().teacher(&email, &id("s1").await, &TeacherAction::Delete).unwrap();
    world.fake().teacher_shifts(&email, &id("s2").await, HOUR_MS).unwrap();
    let found = json(&world, 1, &["verify", "--google"]).await;
    let google = &found["google"];
    assert_eq!(
        (&google["deleted"], &google["changed"], &google["unchanged"]),
        (&json!(1), &json!(1), &json!(2)),
        "{found}"
    );
    let kinds: Vec<_> = google["findings"].as_array().unwrap().iter().map(|f| f["kind"].clone()).collect();
    assert_eq!(kinds, [json!("deleted"), json!("moved")], "{found}");
    world.assert_google_was_never_wrong();

    let mended = json(&world, 1, &["verify", "--google", "--execute", "--reason", "by hand"]).await;
    assert_eq!(mended["mended"]["rowsWoken"], 2, "{mended}");
    assert_eq!(mended["mended"]["proof"]["callsToGoogle"], 2, "{mended}");
    assert_eq!(world.fake().live_events().len(), 4);
    let found = json(&world, 0, &["verify", "--google"]).await;
    assert_eq!(found["google"]["findings"], json!([]), "{found}");

    // A teacher who is not connected cannot be asked for.
    world.publish(&world.lesson("unconnected", 1)).await;
    world.error("unconnected", "TEACHER_NOT_CONNECTED").await;
    let found = json(&world, 5, &["verify", "--google"]).await;
    assert_eq!((&found["agrees"], &found["google"]["unsettled"]), (&json!(true), &json!(1)), "{found}");
}
