//! `replay`: a plan first, then what it says, and a proof; stopped, killed, gone on with.

use serde_json::json;

use super::program::{begin, ended, interrupt, json, killed, lose_what_is_unread, requests, run, tamper};
use crate::support::service::{HOUR_MS, Setup, Then as _, World, eventually};

on_both! {
    a_settled_stream_changes_nothing_and_calls_nobody,
    what_was_missed_is_folded_and_proved,
    without_a_service_the_calls_are_still_due,
    a_killed_replay_goes_on_where_it_was,
}

/// Lessons with a history, all settled, and one event that cannot be read: so many events.
async fn school(world: &World, sessions: i64) -> i64 {
    let mut events = 0;
    for n in 0..sessions {
        let lesson = world.lesson(&format!("s{n}"), 0);
        world.publish(&lesson).await;
        events += 1;
        if n % 3 == 0 {
            world.publish(&lesson.moved(HOUR_MS)).await;
            events += 1;
        }
        if n % 5 == 0 {
            world.publish(&lesson.moved(HOUR_MS).canceled()).await;
            events += 1;
        }
    }
    world.publish_raw("bookings.session.bad.scheduled", &[], b"{".to_vec()).await;
    events + 1
}

async fn a_settled_stream_changes_nothing_and_calls_nobody(setup: Setup) {
    let world = World::start(setup).await;
    let events = school(&world, 16).await;
    world.until_settled().await;
    let before = requests(&world);
    let documents = world.document("s1").await;

    let plan = json(&world, 0, &["replay", "--all"]).await;
    assert_eq!(plan["executed"], false, "{plan}");
    let counts = &plan["events"];
    assert_eq!(counts["events"], events, "{plan}");
    // Of each session the newest event is the one that counts.
    assert_eq!((&counts["applied"], &counts["changing"]), (&json!(16), &json!(0)), "{plan}");
    assert_eq!((&counts["dead"], &counts["unreadable"]), (&json!(1), &json!(0)), "{plan}");
    assert_eq!(counts["stale"], events - 17, "{plan}");
    assert_eq!((&plan["sessionsChanged"], &plan["callsToGoogle"]), (&json!(0), &json!(0)));

    let done = json(&world, 0, &["replay", "--all", "--execute", "--reason", "to be sure"]).await;
    assert_eq!((&done["executed"], &done["events"]["events"]), (&json!(true), &json!(events)), "{done}");
    assert_eq!((&done["sessionsChanged"], &done["proof"]["callsToGoogle"]), (&json!(0), &json!(0)), "{done}");
    assert_eq!(done["proof"]["serviceIsRunning"], true, "{done}");
    world.until_settled().await;
    assert_eq!(requests(&world), before, "Google was not asked anything");
    assert_eq!(world.document("s1").await, documents);

    let text = run(&world, &["replay", "--session", "s3", "--execute", "--reason", "one"]).await.text(0);
    assert!(text.contains("2 events, 0 sessions changed, 0 calls to Google"), "{text}");
    let teacher = json(&world, 0, &["replay", "--teacher", "tch_1"]).await;
    assert_eq!(teacher["events"]["events"], 0, "{teacher}");
    let runs = world.store.runs(meet_projector::run::Kind::Replay, 10).await.unwrap();
    assert_eq!(runs.len(), 2, "plans are no runs");
    assert!(runs.iter().all(|run| run.state == meet_projector::run::State::Finished && run.reason.is_some()));
}

async fn what_was_missed_is_folded_and_proved(setup: Setup) {
    let mut world = World::start(setup).await;
    let (moved, canceled) = (world.lesson("moved", 0), world.lesson("canceled", 0));
    world.publish(&moved).await;
    world.publish(&canceled).await;
    world.publish(&world.lesson("other", 1)).await;
    world.until_settled().await;
    world.stop().await;
    let first = world.publish(&moved.moved(HOUR_MS)).await;
    world.publish(&canceled.canceled()).await;
    world.publish(&world.lesson("new", 1)).await;
    lose_what_is_unread(&world).await;
    world.serve().await;
    world.publish(&world.lesson("after", 0)).await;
    world.ready("after", 1).await;
    assert_eq!(world.document("new").await, None, "it was missed");

    let plan = json(&world, 0, &["replay", "--from-sequence", &first.to_string()]).await;
    assert_eq!(plan["sessions"], json!(["canceled", "moved", "new"]), "{plan}");
    let calls = &plan["calls"];
    let by_kind = (&calls["insert"], &calls["patch"], &calls["delete"]);
    assert_eq!(by_kind, (&json!(1), &json!(1), &json!(1)), "{plan}");
    assert_eq!(world.document("new").await, None, "a plan changes nothing");

    let args = ["replay", "--from-sequence", &first.to_string(), "--execute", "--reason", "missed", "--rate", "500"];
    let done = json(&world, 0, &args).await;
    assert_eq!((&done["sessionsChanged"], &done["proof"]["callsToGoogle"]), (&json!(3), &json!(3)), "{done}");
    assert_eq!(done["proof"]["byOperation"], json!({"delete": 1, "insert": 1, "patch": 1}), "{done}");
    assert_eq!(done["events"]["changing"], 3, "{done}");
    world.ready("moved", 2).await;
    world.ready("new", 1).await;
    world.canceled("canceled", 2).await;
    world.assert_google_was_never_wrong();
    let again = run(&world, &["replay", "--all", "--execute", "--reason", "twice"]).await.text(0);
    assert!(again.contains("7 events, 0 sessions changed, 0 calls to Google"), "{again}");
}

async fn without_a_service_the_calls_are_still_due(setup: Setup) {
    let mut world = World::start(setup).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    world.until_settled().await;
    world.stop().await;
    world.publish(&world.lesson("s2", 0)).await;
    let text = run(&world, &["replay", "--all", "--execute", "--reason", "nobody serves"]).await.text(5);
    assert!(text.contains("2 events, 1 session changed, 0 calls to Google"), "{text}");
    assert!(text.contains("no service is running"), "{text}");
    world.serve().await;
    world.ready("s2", 1).await;
}

async fn a_killed_replay_goes_on_where_it_was(setup: Setup) {
    let mut world = World::start(setup).await;
    world.publish(&world.lesson("first", 0)).await;
    world.ready("first", 1).await;
    world.stop().await;
    for n in 0..40 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    lose_what_is_unread(&world).await;
    world.serve().await;
    // Groups of ten; it dies after the second one.
    let args = ["replay", "--all", "--execute", "--reason", "killed", "--rate", "20"];
    killed(&world, "after_replayed_group:2", &args).await;
    let runs = world.store.runs(meet_projector::run::Kind::Replay, 10).await.unwrap();
    assert_eq!((runs.len(), runs[0].cursor, runs[0].counts.events), (1, 20, 20), "{runs:#?}");
    let second = run(&world, &["replay", "--all", "--execute", "--reason", "too early"]).await;
    let sentence = second.text(1);
    assert!(sentence.contains("is at work"), "{sentence}");

    let done = json(&world, 0, &["replay", "--resume", &runs[0].id]).await;
    assert_eq!(done["events"]["events"], 41, "each event is counted once: {done}");
    assert_eq!((&done["sessionsChanged"], &done["proof"]["callsToGoogle"]), (&json!(40), &json!(40)), "{done}");
    world.until_settled().await;
    assert_eq!(world.fake().live_events().len(), 41);
    let again = run(&world, &["replay", "--resume", &runs[0].id]).await.text(1);
    assert!(again.contains("is finished: there is nothing to go on with"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_stops_between_groups_and_one_runs_at_a_time() {
    let world = World::start(Setup::sqlite()).await;
    for n in 0..30 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    world.until_settled().await;
    let slow = begin(&world, &["replay", "--all", "--execute", "--reason", "slow", "--rate", "2"]);
    let kind = meet_projector::run::Kind::Replay;
    eventually("it has begun", async || {
        world.store.runs(kind, 1).await.unwrap().first().is_some_and(|run| run.counts.events > 0)
    })
    .await;
    let busy = run(&world, &["replay", "--all", "--execute", "--reason", "second"]).await.text(1);
    assert!(busy.contains("is at work"), "{busy}");
    interrupt(&slow);
    let stopped = ended(slow).await.text(5);
    let id = world.store.runs(kind, 1).await.unwrap()[0].id.clone();
    assert!(stopped.contains(&format!("meet-projector replay --resume {id}")), "{stopped}");
    let text = run(&world, &["replay", "--resume", &id]).await.text(0);
    assert!(text.contains("30 events, 0 sessions changed, 0 calls to Google"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_by_sequence_and_by_time() {
    let world = World::start(Setup::sqlite()).await;
    for n in 0..6 {
        world.publish(&world.lesson(&format!("s{n}"), 0)).await;
    }
    world.until_settled().await;
    let third = world.connection.get("BOOKINGS", 3).await.unwrap().unwrap().stored_at();
    let events = async |args: &[&str]| json(&world, 0, &[&["replay"], args].concat()).await["events"]["events"].clone();
    assert_eq!(events(&["--from-sequence", "2", "--to", "4"]).await, 3);
    assert_eq!(events(&["--all", "--to", "2"]).await, 2);
    assert_eq!(events(&["--from-sequence", "99"]).await, 0);
    assert_eq!(events(&["--since", "2999-01-01T00:00:00Z"]).await, 0);
    // Several events may have been stored in one millisecond.
    let since = events(&["--since", &third.to_rfc3339()]).await.as_i64().unwrap();
    assert!((4..=6).contains(&since), "{since}");
    let before = events(&["--all", "--to", &third.to_rfc3339()]).await.as_i64().unwrap();
    assert_eq!(before + since, 6);
    run(&world, &["replay"]).await.text(2);
    run(&world, &["replay", "--all", "--execute"]).await.text(2);
    run(&world, &["replay", "--session", "a.b"]).await.text(2);
    run(&world, &["replay", "--resume", "replay-x"]).await.text(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_another_one_is_not_replayed() {
    let world = World::start(Setup::sqlite()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    tamper(&world, "UPDATE position SET highest_sequence = 99, fingerprint = 'x'").await;
    for args in [vec!["replay", "--all"], vec!["rebuild"], vec!["verify"]] {
        let text = run(&world, &args).await.text(1);
        assert!(text.contains("ends at sequence 1 although we read up to 99"), "{text}");
    }
}
