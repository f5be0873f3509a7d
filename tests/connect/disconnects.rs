//! Ends of connections: with and without the events, while Google or the process fails, and what teachers' lessons say.

use meet_projector::fake::{Fault, Operation, Rule};
use meet_projector::store::{Actor, DisconnectPhase, Role, TokenStatus};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::fixture::School;
use crate::support::process::Serving;
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually, teacher_id};

stories! {
    on both databases:
        events_stay_unless_asked_for,
        events_are_removed_first,
        a_process_dies_between_revoking_and_wiping;
    on sqlite:
        google_does_not_revoke_at_once,
        a_shared_account_is_not_revoked,
        a_new_consent_ends_a_disconnect,
        who_may_and_what_is_said,
        a_grant_that_died_removes_nothing,
        operators_disconnect_from_the_command_line;
}

/// Nothing of the grant is left in the database, and nothing works with it.
async fn assert_gone(school: &School, teacher: usize) {
    let kept = school.credential(teacher).await.unwrap();
    assert_eq!((kept.status, &kept.refresh_token, &kept.access_token), (TokenStatus::Disconnected, &None, &None));
}

fn live_events(world: &World, teacher: usize) -> usize {
    let accounts = world.fake().accounts();
    accounts.iter().find(|account| account.email == world.email(teacher)).unwrap().live_events
}

async fn events_stay_unless_asked_for(setup: Setup) {
    let school = School::open(setup).await;
    let world = &school.world;
    world.publish(&world.lesson("s1", 0)).await;
    world.publish(&world.lesson("s2", 0)).await;
    let before = world.ready("s1", 1).await;
    world.ready("s2", 1).await;
    let (status, json) = school.disconnect(0, "").await;
    assert_eq!(status, StatusCode::OK, "{json}");
    let expected = json!({"teacherId": "tch_0", "connected": false, "tokenStatus": "DISCONNECTED",
        "googleEmail": world.email(0), "state": "DONE", "eventsRemaining": 2, "eventsToRemove": 0, "revocation": "REVOKED",
        "deadline": null, "message": json["message"]});
    assert_eq!(json, expected);
    assert_gone(&school, 0).await;
    assert_eq!(school.requests(Operation::Revoke), 1);
    assert_eq!(live_events(world, 0), 2);
    let after = world.error("s1", "TEACHER_NOT_CONNECTED").await;
    assert_eq!((&after["meetLink"], &after["error"]["action"]), (&before["meetLink"], &json!("connect_teacher")));
    world.publish(&world.lesson("s3", 0)).await;
    world.error("s3", "TEACHER_NOT_CONNECTED").await;
    let again = school.disconnect(0, "").await;
    assert_eq!(
        (again.0, again.1["revocation"].as_str()),
        (StatusCode::OK, Some("REVOKED")),
        "repeating changes nothing"
    );
    assert_eq!(school.requests(Operation::Revoke), 1);

    // The same account again: the events are looked up, and are as they were.
    let writes = world.writes("s1");
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    let back = world.ready("s1", 1).await;
    assert_eq!((&back["meetLink"], &back["meetEventId"]), (&before["meetLink"], &before["meetEventId"]));
    assert_eq!(world.writes("s1"), writes, "nothing is written for what is right already");
    world.ready("s3", 1).await;
    world.assert_google_was_never_wrong();
}

async fn events_are_removed_first(setup: Setup) {
    let school = School::open(setup).await;
    let world = &school.world;
    for session in ["s1", "s2", "s3"] {
        world.publish(&world.lesson(session, 0)).await;
        world.ready(session, 1).await;
    }
    world.publish(&world.lesson("other", 1)).await;
    world.ready("other", 1).await;
    // Slow enough that a new lesson comes in between.
    world.fake().configure_account(world.email(0), |account| account.latency_ms = 100);
    let (status, json) = school.disconnect(0, "?removeEvents=true").await;
    assert_eq!((status, json["state"].as_str()), (StatusCode::ACCEPTED, Some("REMOVING_EVENTS")), "{json}");
    assert_eq!(
        (&json["eventsToRemove"], &json["connected"], &json["tokenStatus"]),
        (&json!(3), &json!(false), &json!("DISCONNECTING"))
    );
    world.publish(&world.lesson("late", 0)).await;
    world.error("late", "TEACHER_NOT_CONNECTED").await;
    eventually("the disconnect is done", async || {
        school.disconnect(0, "?removeEvents=true").await.1["state"] == "DONE"
    })
    .await;
    let (status, json) = school.disconnect(0, "?removeEvents=true").await;
    assert_eq!(
        (status, json["revocation"].as_str(), &json["eventsRemaining"]),
        (StatusCode::OK, Some("REVOKED"), &json!(0)),
        "{json}"
    );
    assert_gone(&school, 0).await;
    assert_eq!((live_events(world, 0), live_events(world, 1)), (0, 1));
    for session in ["s1", "s2", "s3"] {
        let document = world.error(session, "TEACHER_NOT_CONNECTED").await;
        assert_eq!(document["meetLink"], Value::Null, "{document}");
        assert_eq!(world.writes(session), [Operation::Insert, Operation::Delete]);
    }
    assert_eq!(world.writes("late"), []);
    let revoked_at = world.fake().recorded().iter().position(|call| call.operation == Operation::Revoke).unwrap();
    let last_delete = world.fake().recorded().iter().rposition(|call| call.operation == Operation::Delete).unwrap();
    assert!(last_delete < revoked_at, "the grant goes last");

    // Whoever connects again gets new events.
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    for session in ["s1", "s2", "s3", "late"] {
        world.ready(session, 1).await;
    }
    world.assert_google_was_never_wrong();
}

async fn a_process_dies_between_revoking_and_wiping(setup: Setup) {
    let world = World::prepare(setup).await;
    let teacher = teacher_id(0);
    for (place, revocations) in [("before_revoke:1", 1), ("after_revoke:1", 2)] {
        world.fake().reset_records();
        world.connect_teacher(0).await;
        world.fake().add_account(&meet_projector::fake::NewAccount::new(world.email(0)).connected("1//refresh-0"));
        let begun = world
            .store
            .disconnect(&teacher, false, &Actor::named("test"), None, world.clock.now())
            .await
            .unwrap()
            .unwrap();
        assert_eq!((begun.phase, begun.status), (DisconnectPhase::Revoking, TokenStatus::Disconnected));
        let mut doomed = Serving::start(&world, Some(place));
        doomed.ended().await;
        let held = world.store.disconnection(&teacher, world.clock.now()).await.unwrap().unwrap();
        assert_eq!(held.phase, DisconnectPhase::Revoking, "{place}");
        let kept = world.store.credential(&teacher).await.unwrap().unwrap();
        assert_eq!((kept.refresh_token, kept.access_token), (None, None), "no process can use it meanwhile");

        let _next = Serving::start(&world, None);
        eventually("the disconnect is done", async || {
            let seen = world.store.disconnection(&teacher, world.clock.now()).await.unwrap().unwrap();
            seen.phase == DisconnectPhase::Done && seen.outcome.is_some_and(|outcome| outcome.as_str() == "revoked")
        })
        .await;
        let asked = world.fake().counters().requests[&Operation::Revoke];
        assert_eq!(asked, revocations, "{place}");
    }
}

async fn google_does_not_revoke_at_once(setup: Setup) {
    let school = School::open(setup).await;
    let stuck = school.world.fake().add_fault(Rule::on(Operation::Revoke, Fault::refuse(503, "unavailable")));
    let (status, json) = school.disconnect(0, "").await;
    assert_eq!((status, json["revocation"].as_str()), (StatusCode::ACCEPTED, Some("PENDING")), "{json}");
    assert_eq!((&json["connected"], &json["tokenStatus"]), (&json!(false), &json!("DISCONNECTED")));
    assert_gone(&school, 0).await;
    school.world.fake().remove_fault(stuck);
    eventually("Google has revoked", async || school.disconnect(0, "").await.1["revocation"] == "REVOKED").await;
    assert!(school.requests(Operation::Revoke) >= 2);

    // Gone at Google already: as good as revoked.
    school.world.fake().revoke_grant(school.world.email(1));
    let (status, json) = school.disconnect(1, "").await;
    assert_eq!((status, json["revocation"].as_str()), (StatusCode::OK, Some("REVOKED")), "{json}");
}

async fn a_shared_account_is_not_revoked(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let shared = [("auto", "allow"), ("account", school.world.email(0))];
    assert_eq!(school.visitor().connect(1, "", &shared).await.outcome(), "connected");
    let (status, json) = school.disconnect(0, "").await;
    assert_eq!((status, json["revocation"].as_str()), (StatusCode::OK, Some("SHARED")), "{json}");
    assert_eq!(school.requests(Operation::Revoke), 0, "it would end the other teacher's grant, too");
    school.world.publish(&school.world.lesson("s1", 1)).await;
    school.world.ready("s1", 1).await;
    let (_, json) = school.disconnect(1, "").await;
    assert_eq!(json["revocation"], "REVOKED", "the last one turns off the light: {json}");
}

async fn a_new_consent_ends_a_disconnect(setup: Setup) {
    let school = School::open(setup).await;
    let world = &school.world;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    // While events are being removed, which Google does not let us.
    let stuck = world.fake().add_fault(Rule::on(Operation::Delete, Fault::refuse(503, "backendError")));
    assert_eq!(school.disconnect(0, "?removeEvents=true").await.0, StatusCode::ACCEPTED);
    world.error("s1", "TEACHER_NOT_CONNECTED").await;
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    world.fake().remove_fault(stuck);
    world.ready("s1", 1).await;
    // While Google does not revoke: asking again later would end the new grant.
    let stuck = world.fake().add_fault(Rule::on(Operation::Revoke, Fault::refuse(503, "unavailable")));
    assert_eq!(school.disconnect(0, "").await.0, StatusCode::ACCEPTED);
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    world.fake().remove_fault(stuck);
    world.publish(&world.lesson("s2", 0)).await;
    world.ready("s2", 1).await;
    world.ready("s1", 1).await;
    let seen = world.store.disconnection(&teacher_id(0), world.clock.now()).await.unwrap().unwrap();
    assert_eq!((seen.phase, seen.outcome, seen.status), (DisconnectPhase::Done, None, TokenStatus::Connected));
    world.assert_google_was_never_wrong();
}

async fn who_may_and_what_is_said(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let operator = school.token(Role::Operator).await;
    let path = "/api/google/disconnect/tch_0";
    for (method, path, token, status, code) in [
        (Method::POST, path, None, 401, "TOKEN_MISSING"),
        (Method::POST, path, Some(&operator), 403, "ROLE_TOO_LOW"),
        (Method::GET, path, Some(&school.world.token), 405, "METHOD_NOT_ALLOWED"),
        (Method::POST, "/api/google/disconnect/a%20b", Some(&school.world.token), 400, "INVALID_PARAMETER"),
        (
            Method::POST,
            "/api/google/disconnect/tch_0?removeEvents=1",
            Some(&school.world.token),
            400,
            "INVALID_PARAMETER",
        ),
        (Method::POST, "/api/google/disconnect/tch_0?remove=true", Some(&school.world.token), 400, "UNKNOWN_PARAMETER"),
        (Method::POST, "/api/google/disconnect/tch_1", Some(&school.world.token), 404, "TEACHER_NOT_CONNECTED"),
    ] {
        let (seen, json) = school.call(method, path, token.map(String::as_str)).await;
        assert_eq!((seen.as_u16(), json["code"].as_str()), (status, Some(code)), "{path}: {json}");
    }
    assert_eq!(school.credential(0).await.unwrap().status, TokenStatus::Connected);
}

async fn a_grant_that_died_removes_nothing(setup: Setup) {
    let school = School::open(setup).await;
    let world = &school.world;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    world.ready("s1", 1).await;
    world.fake().revoke_grant(world.email(0));
    world.publish(&lesson.moved(HOUR_MS)).await;
    world.error("s1", "RECONNECT_REQUIRED").await;
    let (status, json) = school.disconnect(0, "?removeEvents=true").await;
    assert_eq!(
        (status, &json["eventsRemaining"], &json["eventsToRemove"]),
        (StatusCode::OK, &json!(1), &json!(0)),
        "{json}"
    );
    assert!(json["message"].as_str().unwrap().contains("1 future event stays"), "{json}");
    world.error("s1", "TEACHER_NOT_CONNECTED").await;
}

/// `teacher disconnect` beside the service that runs: exit code, standard output, standard error.
fn command(school: &School, args: &[&str]) -> (i32, String, String) {
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_meet-projector"))
        .args(["teacher", "disconnect"])
        .args(args)
        .env_clear()
        .envs(&school.world.environment)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (ran.status.code().unwrap(), text(ran.stdout), text(ran.stderr))
}

async fn operators_disconnect_from_the_command_line(setup: Setup) {
    let school = School::open(setup.teachers(2)).await;
    let world = &school.world;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    let (code, _, said) = command(&school, &["tch_0"]);
    assert!(code == 2 && said.contains("--reason"), "{code} {said}");
    let (code, _, said) = command(&school, &["nobody", "--reason", "test"]);
    assert!(code == 1 && said.contains("never connected"), "{code} {said}");

    // The service does the work; the command says that it goes on.
    world.fake().configure_account(world.email(0), |account| account.latency_ms = 300);
    let (code, out, said) = command(&school, &["tch_0", "--remove-events", "--reason", "left the school"]);
    assert!(code == 5 && out.contains("1 future event is being removed"), "{code} {out} {said}");
    eventually("the service has removed and revoked", async || {
        school.credential(0).await.unwrap().status == TokenStatus::Disconnected
    })
    .await;
    eventually("the command says so", async || {
        let (code, out, _) = command(&school, &["tch_0", "--reason", "again"]);
        code == 0 && out.contains("revoked at Google") && out.contains("0 future events stay")
    })
    .await;
    assert_eq!(live_events(world, 0), 0);

    let (code, out, said) = command(&school, &["tch_1", "--reason", "left", "--output", "json"]);
    let json: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {said}"));
    assert_eq!((code, &json["teacherId"], &json["state"]), (0, &json!("tch_1"), &json!("DONE")));
    assert_gone(&school, 1).await;
}
