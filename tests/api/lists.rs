//! Batches and pages.

use std::collections::BTreeSet;

use axum::http::StatusCode;

use super::fixture::{Api, START, api};

fn ids(answer: &serde_json::Value) -> Vec<String> {
    let items = answer["items"].as_array().unwrap();
    items.iter().map(|item| item["sessionId"].as_str().unwrap().to_owned()).collect()
}

/// All ids of all pages, in order.
async fn pages(api: &Api, query: &str) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let answer = api.get(&format!("/api/google/meet?{query}{cursor}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        let json = answer.json();
        all.extend(ids(&json));
        match json["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return all,
        }
    }
}

#[tokio::test]
async fn a_batch_keeps_the_order_and_names_what_is_missing() {
    let api = api().await;
    for session in ["a", "b", "c"] {
        api.schedule(session, "tch_1", 1, START).await;
    }
    for _ in 0..2 {
        // The second time most of it comes from memory.
        let json = api.get("/api/google/meet?sessionIds=c,x,a,c,%20b,y,a").await.json();
        assert_eq!(ids(&json), ["c", "a", "b"]);
        assert_eq!(json["missing"], serde_json::json!(["x", "y"]));
    }
    let none = api.get("/api/google/meet?sessionIds=x").await;
    assert_eq!(none.text, r#"{"items":[],"missing":["x"]}"#);
}

#[tokio::test]
async fn a_batch_has_1_to_100_ids() {
    let api = api().await;
    let many = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    let hundred = api.get(&format!("/api/google/meet?sessionIds={0},{0}", many(100))).await;
    assert_eq!(hundred.json()["missing"].as_array().unwrap().len(), 100);
    for query in [many(101), String::new(), "a,,b".into(), "a.b".into(), "a&teacherId=t".into(), "a&limit=1".into()] {
        let answer = api.get(&format!("/api/google/meet?sessionIds={query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, "INVALID_PARAMETER"), "{query}");
    }
}

#[tokio::test]
async fn batches_and_pages_have_tags() {
    let api = api().await;
    api.schedule("a", "tch_1", 1, START).await;
    for path in ["/api/google/meet?sessionIds=a,b", "/api/google/meet?teacherId=tch_1"] {
        let etag = api.get(path).await.header("etag").to_owned();
        let same = api.get_with(path, &[("if-none-match", &etag)]).await;
        assert_eq!((same.status, same.text.as_str()), (StatusCode::NOT_MODIFIED, ""), "{path}");
    }
    let etag = api.get("/api/google/meet?sessionIds=a,b").await.header("etag").to_owned();
    api.cancel("b", "tch_1", 1).await;
    let changed = api.get_with("/api/google/meet?sessionIds=a,b", &[("if-none-match", &etag)]).await;
    assert_eq!((changed.status, ids(&changed.json()).len()), (StatusCode::OK, 2));
}

#[tokio::test]
async fn filters_narrow_the_list() {
    let api = api().await;
    for (at, session) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let teacher = if at < 2 { "tch_1" } else { "tch_2" };
        api.schedule(session, teacher, 1, START + 60_000 * i64::try_from(at).unwrap()).await;
    }
    api.cancel("d", "tch_2", 2).await;
    api.cancel("never_scheduled", "tch_2", 1).await;
    for (query, expected) in [
        ("", vec!["never_scheduled", "a", "b", "c", "d"]),
        ("teacherId=tch_1", vec!["a", "b"]),
        ("teacherId=tch_3", vec![]),
        ("status=CANCELED", vec!["never_scheduled", "d"]),
        ("status=PENDING,CANCELED&teacherId=tch_2", vec!["never_scheduled", "c", "d"]),
        ("startsFrom=2026-12-01T09:01:00Z", vec!["b", "c", "d"]),
        ("startsFrom=2026-12-01T10:01:00%2B01:00&startsTo=2026-12-01T09:03:00Z", vec!["b", "c"]),
        ("startsTo=2026-12-01T09:01:00Z", vec!["a"]),
    ] {
        assert_eq!(pages(&api, query).await, expected, "{query}");
        assert_eq!(pages(&api, &format!("limit=1&{query}")).await, expected, "{query}, one a page");
    }
}

#[tokio::test]
async fn bad_filters_are_refused_by_name() {
    let api = api().await;
    for (query, code, names) in [
        ("status=DONE", "INVALID_PARAMETER", "PENDING, READY, ERROR and CANCELED"),
        ("status=ready", "INVALID_PARAMETER", "status"),
        ("teacherId=a.b", "INVALID_PARAMETER", "teacherId"),
        ("startsFrom=tomorrow", "INVALID_PARAMETER", "startsFrom"),
        ("startsTo=2026-12-01", "INVALID_PARAMETER", "startsTo"),
        ("limit=0", "INVALID_PARAMETER", "limit"),
        ("limit=101", "INVALID_PARAMETER", "limit"),
        ("limit=1&limit=2", "INVALID_PARAMETER", "limit"),
        ("cursor=nonsense", "INVALID_CURSOR", "nextCursor"),
        ("techerId=tch_1", "UNKNOWN_PARAMETER", "techerId"),
        ("wait=3", "UNKNOWN_PARAMETER", "wait"),
    ] {
        let answer = api.get(&format!("/api/google/meet?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, code), "{query}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(names), "{query}: {detail}");
    }
}

#[tokio::test]
async fn paging_misses_and_repeats_nothing_while_others_insert() {
    let api = api().await;
    let mut expected = BTreeSet::new();
    for number in 0..250 {
        // Many share a start, so that the session id has to decide.
        let session = format!("ses_{number:03}");
        api.schedule(&session, "tch_1", 1, START + 60_000 * (number % 7)).await;
        expected.insert(session);
    }
    let (mut seen, mut cursor, mut added) = (Vec::new(), String::new(), 0);
    loop {
        let json = api.get(&format!("/api/google/meet?teacherId=tch_1&limit=40{cursor}")).await.json();
        seen.extend(ids(&json));
        // Before, between and behind what was read.
        for start in [START - 60_000, START + 90_000, START + 600_000] {
            added += 1;
            api.schedule(&format!("new_{added:03}"), "tch_1", 1, start).await;
        }
        match json["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let unique: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(unique.len(), seen.len(), "none twice");
    let old: BTreeSet<String> = unique.into_iter().filter(|id| id.starts_with("ses_")).collect();
    assert_eq!(old, expected, "none missed");
}
