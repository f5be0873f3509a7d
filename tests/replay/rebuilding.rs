//! `rebuild`: beside what is served, compared, promoted, rolled back.

use serde_json::{Value, json};

use super::program::{json, killed, requests, run, tamper};
use crate::support::service::{HOUR_MS, Setup, Then as _, World};

on_both! {
    nothing_wrong_is_byte_for_byte_the_same,
    what_is_wrong_is_shown_promoted_and_rolled_back,
    what_came_meanwhile_stays,
    a_killed_rebuild_goes_on,
    what_has_aged_out_is_kept_and_marked,
}

async fn dumps(world: &World) -> (String, String) {
    (run(world, &["rebuild", "dump"]).await.text(0), run(world, &["rebuild", "dump", "--shadow"]).await.text(0))
}

async fn nothing_wrong_is_byte_for_byte_the_same(setup: Setup) {
    let world = World::start(setup).await;
    for n in 0..12 {
        let lesson = world.lesson(&format!("s{n}"), n % 2);
        world.publish(&lesson).await;
        match n % 4 {
            0 => world.publish(&lesson.moved(HOUR_MS)).await,
            1 => world.publish(&lesson.canceled()).await,
            2 => world.publish(&lesson.taught_by(1)).await,
            _ => world.publish_raw("bookings.session.bad.scheduled", &[], b"{".to_vec()).await,
        };
    }
    world.until_settled().await;
    let before = requests(&world);
    let found = json(&world, 0, &["rebuild", "--rate", "1000"]).await;
    let difference = &found["difference"];
    assert_eq!((&difference["identical"], &difference["live"]), (&json!(12), &json!(12)), "{found}");
    for kind in ["missing", "different", "extra", "expired", "newer"] {
        assert_eq!(difference[kind], 0, "{kind}: {found}");
    }
    assert_eq!(difference["liveSha256"], difference["rebuiltSha256"]);
    let (live, shadow) = dumps(&world).await;
    assert_eq!(live, shadow);
    assert_eq!(live.lines().count(), 12);

    let plan = json(&world, 0, &["rebuild", "promote"]).await;
    assert_eq!((&plan["sessionsChanged"], &plan["callsToGoogle"]), (&json!(0), &json!(0)), "{plan}");
    let done = json(&world, 0, &["rebuild", "promote", "--execute", "--reason", "test"]).await;
    assert_eq!((&done["sessionsChanged"], &done["proof"]["callsToGoogle"]), (&json!(0), &json!(0)), "{done}");
    world.until_settled().await;
    assert_eq!(requests(&world), before, "nothing is due at Google");
}

async fn what_is_wrong_is_shown_promoted_and_rolled_back(setup: Setup) {
    let mut world = World::start(setup).await;
    for n in 0..5 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    world.until_settled().await;
    world.stop().await;
    tamper(&world, "UPDATE session SET title = 'Wrong', starts_at_ms = starts_at_ms + 60000 WHERE session_id = 's1'")
        .await;
    tamper(&world, "DELETE FROM session_meet_event WHERE session_id = 's2'").await;
    tamper(&world, "DELETE FROM session WHERE session_id = 's2'").await;
    world.serve().await;
    world.publish(&world.lesson("after", 0)).await;
    world.ready("after", 1).await;
    let (wrong, _) = dumps(&world).await;

    let found = json(&world, 1, &["rebuild", "--reason", "something is wrong"]).await;
    let difference = &found["difference"];
    assert_eq!(difference["byGroup"], json!({"text": 1, "time": 1}), "{found}");
    assert_eq!((&difference["missing"], &difference["different"]), (&json!(1), &json!(1)), "{found}");
    assert_eq!(difference["identical"], 4, "{found}");
    let samples: Vec<_> = difference["samples"].as_array().unwrap().iter().map(|s| s["sessionId"].clone()).collect();
    assert_eq!(samples, [json!("s1"), json!("s2")]);
    let text = run(&world, &["rebuild", "diff"]).await.text(1);
    assert!(text.contains("different s1 time, text") && text.contains("missing s2"), "{text}");
    assert_eq!(dumps(&world).await.0, wrong, "a rebuild changes nothing that is served");

    let plan = json(&world, 0, &["rebuild", "promote"]).await;
    assert_eq!((&plan["executed"], &plan["sessionsChanged"]), (&json!(false), &json!(2)), "{plan}");
    assert_eq!(dumps(&world).await.0, wrong, "nor does a plan");
    let inserted = world.fake().counters().committed_of(meet_projector::fake::Operation::Insert);
    let done = json(&world, 0, &["rebuild", "promote", "--execute", "--reason", "swap"]).await;
    assert_eq!((&done["sessionsChanged"], &done["sessionsAdded"]), (&json!(2), &json!(1)), "{done}");
    let (live, shadow) = dumps(&world).await;
    assert_eq!(live, shadow);
    world.ready("s2", 1).await;
    let title = |document: &Value| document["startsAt"].clone();
    let right = world.lesson("s1", 0).details.unwrap().starts_at.to_rfc3339();
    assert_eq!(title(&world.document("s1").await.unwrap()), right);
    let now = world.fake().counters().committed_of(meet_projector::fake::Operation::Insert);
    assert_eq!(inserted, now, "the event of the session that was lost is found again, not made again");
    world.assert_google_was_never_wrong();

    let back = json(&world, 0, &["rebuild", "rollback"]).await;
    assert_eq!(back["executed"], false);
    // The added session has an event at Google by now, so it stays; the other is as it was.
    let back = json(&world, 5, &["rebuild", "rollback", "--execute", "--reason", "back"]).await;
    assert_eq!((&back["sessionsRestored"], &back["sessionsKept"]), (&json!(1), &json!(1)), "{back}");
    let after = dumps(&world).await.0;
    let without_s2: Vec<_> = after.lines().filter(|line| !line.contains(r#""sessionId":"s2""#)).collect();
    assert_eq!(without_s2, wrong.lines().collect::<Vec<_>>());
    let again = run(&world, &["rebuild", "rollback"]).await.text(1);
    assert!(again.contains("is rolled_back"), "{again}");
    run(&world, &["rebuild", "discard"]).await.text(0);
    assert_eq!(dumps(&world).await.1, "");
    world.assert_google_was_never_wrong();
}

async fn what_came_meanwhile_stays(setup: Setup) {
    let mut world = World::start(setup).await;
    let lesson = world.lesson("s1", 0);
    world.publish(&lesson).await;
    world.publish(&world.lesson("s2", 0)).await;
    world.until_settled().await;
    world.stop().await;
    tamper(&world, "UPDATE session SET title = 'Wrong' WHERE session_id IN ('s1', 's2')").await;
    world.serve().await;
    json(&world, 1, &["rebuild"]).await;
    world.publish(&lesson.moved(HOUR_MS)).await;
    world.publish(&world.lesson("s3", 0)).await;
    world.ready("s1", 2).await;
    world.ready("s3", 1).await;
    // What is compared is what was read then: the newer events are no difference.
    let found = json(&world, 1, &["rebuild", "diff"]).await;
    assert_eq!((&found["difference"]["newer"], &found["difference"]["different"]), (&json!(2), &json!(1)), "{found}");
    let done = json(&world, 0, &["rebuild", "promote", "--execute", "--reason", "swap"]).await;
    assert_eq!(done["sessionsChanged"], 1, "{done}");
    world.ready("s1", 2).await;
    let (live, shadow) = dumps(&world).await;
    assert_eq!(live, shadow, "it has caught up");
    assert!(!live.contains("Wrong"), "{live}");
}

async fn a_killed_rebuild_goes_on(setup: Setup) {
    let world = World::start(setup).await;
    for n in 0..30 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    world.until_settled().await;
    killed(&world, "after_rebuilt_group:2", &["rebuild", "--rate", "20"]).await;
    let runs = world.store.runs(meet_projector::run::Kind::Rebuild, 10).await.unwrap();
    assert_eq!((runs[0].cursor, runs[0].goal), (20, 30), "{runs:#?}");
    let early = run(&world, &["rebuild", "promote", "--execute", "--reason", "x"]).await.text(1);
    assert!(early.contains("--resume"), "{early}");
    let found = json(&world, 0, &["rebuild", "--resume", &runs[0].id]).await;
    assert_eq!((&found["events"], &found["difference"]["identical"]), (&json!(30), &json!(30)), "{found}");
    assert_eq!(found["difference"]["liveSha256"], found["difference"]["rebuiltSha256"]);
}

async fn what_has_aged_out_is_kept_and_marked(setup: Setup) {
    let world = World::start(setup).await;
    let half = world.lesson("half", 0);
    world.publish(&world.lesson("old", 0)).await;
    world.publish(&half).await;
    world.publish(&world.lesson("young", 0)).await;
    let without_details = meet_projector::event::SessionEvent { details: None, ..half.canceled() };
    world.publish(&without_details).await;
    world.until_settled().await;
    // Only the last two events are kept from now on.
    let info = world.connection.stream_info("BOOKINGS").await.unwrap().unwrap();
    let mut config = info.config;
    config["max_msgs"] = json!(2);
    config["discard"] = json!("old");
    let subject = "$JS.API.STREAM.UPDATE.BOOKINGS";
    world.connection.api::<Value>("shortening the stream", subject, Some(&config)).await.unwrap();
    let before = dumps(&world).await.0;

    let found = json(&world, 0, &["rebuild"]).await;
    let difference = &found["difference"];
    assert_eq!((&difference["identical"], &difference["expired"]), (&json!(1), &json!(2)), "{found}");
    assert_eq!(world.store.history_expired_count().await.unwrap(), 2);
    let done = json(&world, 0, &["rebuild", "promote", "--execute", "--reason", "nothing to do"]).await;
    assert_eq!(done["sessionsChanged"], 0, "{done}");
    assert_eq!(dumps(&world).await.0, before, "what cannot be rebuilt is kept");
    assert_eq!(world.document("old").await.unwrap()["meetStatus"], "READY");
    let verified = json(&world, 0, &["verify"]).await;
    assert_eq!(verified["stream"]["expired"], 1, "{verified}");
}
