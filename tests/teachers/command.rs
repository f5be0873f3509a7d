//! `teacher list|show`.

use super::keys::{json, run, text};
use crate::support::service::{Setup, World};

#[tokio::test(flavor = "multi_thread")]
async fn teachers_are_listed_and_shown() {
    let mut world = World::start(Setup::sqlite().teachers(3).connected(2)).await;
    world.fake().revoke_grant(world.email(1));
    for (n, session) in ["s0", "s1", "s2"].iter().enumerate() {
        world.publish(&world.lesson(session, n)).await;
    }
    world.ready("s0", 1).await;
    world.error("s1", "RECONNECT_REQUIRED").await;
    world.error("s2", "TEACHER_NOT_CONNECTED").await;
    let status = world.get("/api/google/status/tch_1").await.json;
    world.stop().await;

    let command = |args: &[&str]| run(&world.environment, args);
    let all = command(&["teacher", "list"]);
    let table = text(&all);
    let columns: Vec<Vec<&str>> = table.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    assert_eq!((all.status.code(), columns.len()), (Some(0), 4), "{table}");
    assert_eq!(columns[1][..3], ["tch_0", "CONNECTED", "teacher-0@example.com"]);
    assert_eq!((columns[2][1], columns[2][4]), ("RECONNECT_REQUIRED", "1"), "{table}");
    assert_eq!(columns[3][..5], ["tch_2", "NOT_CONNECTED", "-", "-", "1"]);
    let ids = |args: &[&str]| -> Vec<String> {
        let list = json(&command(args));
        list.as_array().unwrap().iter().map(|item| item["teacherId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&["teacher", "list", "--blocked", "--output", "json"]), ["tch_1", "tch_2"]);
    let some = ["teacher", "list", "--token-status", "connected,not_connected", "--output", "json"];
    assert_eq!(ids(&some), ["tch_0", "tch_2"]);

    assert_eq!(json(&command(&["teacher", "show", "tch_1", "--output", "json"])), status, "as the API says it");
    let shown = text(&command(&["teacher", "show", "tch_1"]));
    assert!(shown.starts_with("teacher tch_1: RECONNECT_REQUIRED\n") && shown.contains("invalid_grant"), "{shown}");
    assert!(shown.contains("1 session waits for the connection, the next at "), "{shown}");

    for (args, code, why) in [
        (&["teacher", "show", "nobody"][..], 1, "was ever seen"),
        (&["teacher", "show", "a.b"], 2, "A-Z a-z 0-9 _ -"),
        (&["teacher", "list", "--token-status", "well"], 2, "NOT_CONNECTED"),
    ] {
        let ended = command(args);
        let err = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.code() == Some(code) && err.contains(why), "{args:?}: {ended:?}");
    }
}
