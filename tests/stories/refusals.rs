//! Google says no, not yet, or not so much; and teachers do as they like in their own calendars.

use meet_projector::fake::Operation::{Get, Insert, Patch};
use meet_projector::fake::{ConferenceMode, Fault, Operation, Quota, Rule, TeacherAction};
use meet_projector::model::UnixMillis;
use meet_projector::store::TokenStatus;
use serde_json::Value;

use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually, teacher_id};

stories! {
    on both databases:
        a_calendar_is_limited,
        our_own_mistake_is_nobody_elses,
        a_teacher_deletes_the_event;
    on sqlite:
        meet_is_not_allowed,
        a_conference_takes_its_time,
        a_failed_conference_is_asked_for_again,
        a_teacher_moves_the_event,
        google_fails_for_a_while;
}

const MINUTE_MS: i64 = 60_000;

async fn meet_is_not_allowed(setup: Setup) {
    let world = World::start(setup).await;
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::NotAllowed);
    world.publish(&world.lesson("s1", 0)).await;
    let document = world.error("s1", "MEET_NOT_ALLOWED").await;
    assert_eq!(document["error"]["action"], "contact_admin");
    assert_eq!(document["meetLink"], Value::Null);
    let event = world.fake().event(world.email(0), document["meetEventId"].as_str().unwrap()).unwrap();
    assert!(event.is_live, "the lesson stands in the calendar all the same");
    assert_eq!(event.meet_link, None);
    world.assert_google_was_never_wrong();
}

async fn a_conference_takes_its_time(setup: Setup) {
    let world = World::start(setup).await;
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::SuccessAfter(1));
    world.publish(&world.lesson("s1", 0)).await;
    let pending = world.wait_for("s1", |document| document["meetEventId"].is_string()).await;
    assert_eq!((&pending["meetStatus"], &pending["upToDate"]), (&"PENDING".into(), &false.into()), "{pending}");
    let document = world.ready("s1", 1).await;
    assert!(document["meetLink"].as_str().unwrap().starts_with("https://meet.google.com/"));
    assert_eq!(world.writes("s1"), [Insert], "a pending conference is waited for, not asked for again");
}

async fn a_failed_conference_is_asked_for_again(setup: Setup) {
    let world = World::start(setup.standing_still()).await;
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::Failure);
    world.publish(&world.lesson("s1", 0)).await;
    world.wait_for("s1", |document| document["meetEventId"].is_string()).await;
    world.fake().configure_account(world.email(0), |account| account.conference = ConferenceMode::Instant);
    world.clock.advance_ms(MINUTE_MS);
    world.ready("s1", 1).await;
    let recorded = world.fake().recorded();
    let requests: Vec<_> = recorded
        .iter()
        .filter_map(|call| {
            let body: Value = serde_json::from_str(&call.body).ok()?;
            body.pointer("/conferenceData/createRequest/requestId").cloned()
        })
        .collect();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert_ne!(requests[0], requests[1], "Google ignores a request id that it has seen");
    assert_eq!(world.writes("s1"), [Insert, Patch]);
}

async fn a_calendar_is_limited(setup: Setup) {
    let world = World::start(setup.standing_still()).await;
    world.fake().configure_account(world.email(0), |account| account.quota = Quota::Exceeded);
    world.publish(&world.lesson("s1", 0)).await;
    let document = world.error("s1", "CALENDAR_LIMITED").await;
    assert_eq!(document["error"]["action"], "wait");
    assert_eq!(document["error"]["retryable"], true);
    world.publish(&world.lesson("s2", 0)).await;
    world.publish(&world.lesson("s3", 1)).await;
    world.ready("s3", 1).await;
    world.error("s2", "CALENDAR_LIMITED").await;
    assert_eq!(world.calls("s2"), [], "no further write for this calendar");
    assert_eq!(world.calls("s1"), [Insert]);

    world.fake().configure_account(world.email(0), |account| account.quota = Quota::Free);
    let next = document["error"]["nextAttemptAt"].as_str().unwrap();
    world.clock.set(UnixMillis::parse_rfc3339(next).unwrap());
    world.ready("s1", 1).await;
    world.ready("s2", 1).await;
    assert_eq!(world.fake().counters().committed_of(Insert), 3);
}

async fn our_own_mistake_is_nobody_elses(setup: Setup) {
    let world = World::start(setup.standing_still().teachers(3)).await;
    let off = Fault::refuse(403, "accessNotConfigured");
    world.fake().add_fault(Rule { operations: vec![Insert, Get, Patch, Operation::List], ..Rule::new(off) });
    world.publish(&world.lesson("s0", 0)).await;
    let document = world.error("s0", "CONFIG_ERROR").await;
    assert_eq!(document["error"]["action"], "contact_admin");
    for n in 1..3 {
        world.publish(&world.lesson(&format!("s{n}"), n)).await;
        world.error(&format!("s{n}"), "CONFIG_ERROR").await;
        assert_eq!(world.calls(&format!("s{n}")), [], "one refusal says it for all");
    }
    for n in 0..3 {
        let credential = world.store.credential(&teacher_id(n)).await.unwrap().unwrap();
        assert_eq!(credential.status, TokenStatus::Connected, "no teacher can help");
    }

    world.fake().clear_faults();
    // A probe a minute; whoever came just before it waits for another one.
    world.clock.advance_ms(MINUTE_MS);
    eventually("the breaker has closed", async || world.fake().counters().committed_of(Insert) > 0).await;
    world.clock.advance_ms(MINUTE_MS);
    for n in 0..3 {
        world.ready(&format!("s{n}"), 1).await;
    }
}

async fn a_teacher_deletes_the_event(setup: Setup) {
    let world = World::start(setup.standing_still()).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let document = world.ready("s1", 1).await;
    let id = document["meetEventId"].as_str().unwrap();
    for _ in 0..2 {
        world.fake().teacher(world.email(0), id, &TeacherAction::Delete).unwrap();
        // Compared with Google a minute after a write, and a little more, so that not all come at once.
        world.clock.advance_ms(2 * MINUTE_MS);
        eventually("the event is restored", async || world.fake().event(world.email(0), id).unwrap().is_live).await;
        let restored = world.ready("s1", 1).await;
        assert_eq!(restored["meetLink"], document["meetLink"], "the link is the same");
        world.until_settled().await;
    }
    world.fake().teacher(world.email(0), id, &TeacherAction::Delete).unwrap();
    world.clock.advance_ms(2 * MINUTE_MS);
    let given_up = world.error("s1", "EVENT_REMOVED_BY_TEACHER").await;
    assert_eq!(given_up["error"]["action"], "retry");
    assert!(!world.fake().event(world.email(0), id).unwrap().is_live, "twice was enough");

    // The session itself can still be canceled.
    world.publish(&lesson.canceled()).await;
    world.canceled("s1", 2).await;
}

async fn a_teacher_moves_the_event(setup: Setup) {
    let world = World::start(setup.standing_still()).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    let document = world.ready("s1", 1).await;
    let id = document["meetEventId"].as_str().unwrap();
    world.fake().teacher_shifts(world.email(0), id, 3 * HOUR_MS).unwrap();
    world.clock.advance_ms(2 * MINUTE_MS);
    let starts_at = lesson.details.as_ref().unwrap().starts_at;
    eventually("the time is put right", async || {
        world.fake().event(world.email(0), id).unwrap().starts_at == starts_at
    })
    .await;
    let after = world.ready("s1", 1).await;
    assert_eq!(after["meetLink"], document["meetLink"]);

    // A title is drift too; what the service does not own is the teacher's.
    let patch = serde_json::json!({"location": "Room 5", "colorId": "3"});
    world.fake().teacher(world.email(0), id, &TeacherAction::Merge { patch }).unwrap();
    world.publish(&lesson.moved(HOUR_MS)).await;
    world.ready("s1", 2).await;
    let event = world.fake().resource(world.email(0), id).unwrap();
    assert_eq!((event["location"].as_str(), event["colorId"].as_str()), (Some("Room 5"), Some("3")));
}

async fn google_fails_for_a_while(setup: Setup) {
    let world = World::start(setup.standing_still()).await;
    let rule = Rule { times: Some(3), ..Rule::on(Insert, Fault::refuse(503, "backendError")) };
    world.fake().add_fault(rule);
    world.publish(&world.lesson("s1", 0)).await;
    eventually("the lesson has its link", async || {
        world.clock.advance_ms(500);
        world.document("s1").await.is_some_and(|document| document["meetStatus"] == "READY")
    })
    .await;
    assert_eq!(world.fake().counters().committed_of(Insert), 1);
    let shown = world
        .until_published("the link", |messages| messages.iter().any(|m| m.event["data"]["meetStatus"] == "READY"))
        .await;
    let errors = shown.iter().filter(|message| message.event["data"]["meetStatus"] == "ERROR").count();
    assert_eq!(errors, 0, "a young failure of Google's is nothing to tell anybody");
    world.assert_google_was_never_wrong();
}
