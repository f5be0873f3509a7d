//! Teachers' connections, on both databases.

use axum::http::StatusCode;
use meet_projector::model::{GoogleSub, TeacherId, UnixMillis};
use meet_projector::store::{NewCredential, RefreshTurn, RefreshedToken, TokenStatus};
use serde_json::{Value, json};

use super::fixture::{Api, NOW, START, api, api_on, send};
use crate::support::postgres::fresh_database;

const HOUR_MS: i64 = 3_600_000;

fn teacher(id: &str) -> TeacherId {
    TeacherId::parse(id).unwrap()
}

async fn connect(api: &Api, id: &str) {
    let new = NewCredential {
        teacher: teacher(id),
        account: GoogleSub(format!("sub-{id}")),
        email: Some(format!("{id}@example.com")),
        calendar: "primary".to_owned(),
        refresh_token: b"sealed-MARKER".to_vec(),
        scopes: "openid https://www.googleapis.com/auth/calendar.events".to_owned(),
    };
    api.store.put_credential(&new, api.clock.now()).await.unwrap();
}

async fn set(api: &Api, id: &str, status: TokenStatus) {
    let version = api.store.credential(&teacher(id)).await.unwrap().unwrap().token_version;
    assert!(api.store.set_token_status(&teacher(id), version, status, "why not", api.clock.now()).await.unwrap());
}

/// Lets the reconciler's plan mark what waits, as a claim and a plan without a call do.
async fn plan_all(api: &Api) {
    use meet_projector::plan::{self, Account, Policy, Situation};
    let policy = Policy { environment: "test".into(), attendees: false, repairs_max: 2 };
    loop {
        let now = api.clock.now();
        let leases = api.store.claim(now, 60_000, 100, 100).await.unwrap();
        if leases.is_empty() {
            return;
        }
        for lease in &leases {
            let account = lease.credential.as_ref().map_or(Account::None, |credential| Account::Google {
                account: credential.account.clone(),
                calendar: credential.calendar.clone(),
                status: credential.status,
                cool_down_until: None,
            });
            let mut writes = Vec::new();
            for job in &lease.jobs {
                let (session, row, siblings) = (&job.session, &job.row, &job.siblings);
                let situation = Situation { session, row, siblings, account: &account, policy: &policy, now };
                let planned = plan::plan(&situation);
                assert!(planned.call.is_none(), "nobody here may call Google");
                writes.push(meet_projector::store::RowWrite {
                    from: None,
                    token: lease.token,
                    row: planned.row,
                    successor: planned.successor,
                });
            }
            api.store.record(&writes, now).await.unwrap();
        }
        let held: Vec<_> = leases.iter().map(|lease| (lease.teacher.clone(), lease.token)).collect();
        api.store.release(&held, now).await.unwrap();
    }
}

async fn a_status_tells_all_and_no_secret(api: Api) {
    assert_eq!(api.get("/api/google/status/tch_1").await.code(), "TEACHER_NOT_FOUND");
    api.schedule("s1", "tch_1", 1, START).await;
    api.schedule("s2", "tch_1", 1, START + 5 * HOUR_MS).await;
    api.schedule("over", "tch_1", 1, NOW - 3 * HOUR_MS).await;
    api.schedule("gone", "tch_1", 1, START - HOUR_MS).await;
    api.cancel("gone", "tch_1", 2).await;
    plan_all(&api).await;
    let answer = api.get("/api/google/status/tch_1").await;
    assert_eq!(
        answer.json(),
        json!({
            "teacherId": "tch_1", "connected": false, "tokenStatus": "NOT_CONNECTED", "googleEmail": null,
            "scopes": null, "connectedAt": null, "lastRefreshAt": null, "grantEndsAt": null, "lastError": null,
            "blockedSessions": 2, "nextBlockedStartsAt": "2026-12-01T09:00:00Z",
        })
    );

    let etag = answer.header("etag").to_owned();
    assert!(etag.starts_with('"'), "a strong tag: {etag}");
    let known = api.get_with("/api/google/status/tch_1", &[("if-none-match", &etag)]).await;
    assert_eq!((known.status, known.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
    assert_eq!(known.header("etag"), etag);

    connect(&api, "tch_1").await;
    let RefreshTurn::Mine { turn } =
        api.store.begin_refresh(&teacher("tch_1"), 1, api.clock.now(), 1000).await.unwrap()
    else {
        panic!("the turn is free")
    };
    let refreshed = RefreshedToken {
        access_token: b"sealed-MARKER".to_vec(),
        access_expires_at: UnixMillis::new(NOW + HOUR_MS),
        refresh_token: None,
        scopes: None,
        refresh_expires_at: Some(UnixMillis::new(START)),
        touch_at: UnixMillis::new(START),
    };
    let now = UnixMillis::new(NOW + 1_000);
    assert!(api.store.finish_refresh(&teacher("tch_1"), 1, turn, &refreshed, now).await.unwrap());
    set(&api, "tch_1", TokenStatus::ScopeMissing).await;
    let answer = api.get_with("/api/google/status/tch%5F1", &[("if-none-match", &etag)]).await;
    assert_eq!(answer.status, StatusCode::OK, "it has changed");
    assert_eq!(
        answer.json(),
        json!({
            "teacherId": "tch_1", "connected": false, "tokenStatus": "SCOPE_MISSING",
            "googleEmail": "tch_1@example.com",
            "scopes": ["openid", "https://www.googleapis.com/auth/calendar.events"],
            "connectedAt": "2026-11-22T20:15:06.030Z", "lastRefreshAt": "2026-11-22T20:15:07.030Z",
            "grantEndsAt": "2026-12-01T09:00:00Z", "lastError": "why not",
            "blockedSessions": 2, "nextBlockedStartsAt": "2026-12-01T09:00:00Z",
        })
    );
    assert!(!answer.text.contains("MARKER"));

    // A grant without any session is known, too; so is a teacher whose sessions were all canceled.
    connect(&api, "tch_new").await;
    let json = api.get("/api/google/status/tch_new").await.json();
    assert_eq!((&json["tokenStatus"], &json["connected"]), (&json!("CONNECTED"), &json!(true)));
    assert_eq!((&json["blockedSessions"], &json["nextBlockedStartsAt"]), (&json!(0), &Value::Null));
    api.cancel("never", "tch_canceled", 1).await;
    assert_eq!(api.get("/api/google/status/tch_canceled").await.json()["tokenStatus"], "NOT_CONNECTED");

    // The lesson has begun: it waits still. It is over: it does not.
    api.clock.set(UnixMillis::new(START + HOUR_MS / 2));
    assert_eq!(api.get("/api/google/status/tch_1").await.json()["blockedSessions"], 2);
    api.clock.set(UnixMillis::new(START + HOUR_MS));
    let json = api.get("/api/google/status/tch_1").await.json();
    assert_eq!((&json["blockedSessions"], &json["nextBlockedStartsAt"]), (&json!(1), &json!("2026-12-01T14:00:00Z")));
}

async fn pages_and_filters(api: Api) {
    for n in 0..12 {
        let id = format!("t{n:02}");
        // Each third has a grant alone, each third sessions alone, each third both.
        if n % 3 != 1 {
            connect(&api, &id).await;
        }
        if n % 3 != 0 {
            for session in 0..3 {
                api.schedule(&format!("{id}-{session}"), &id, 1, START + HOUR_MS * session).await;
            }
        }
        if n % 3 == 2 {
            let status = if n == 2 { TokenStatus::AdminBlocked } else { TokenStatus::ReconnectRequired };
            set(&api, &id, status).await;
        }
    }
    plan_all(&api).await;
    let ids = |json: &Value| -> Vec<String> {
        json["items"].as_array().unwrap().iter().map(|item| item["teacherId"].as_str().unwrap().to_owned()).collect()
    };
    for (query, expected) in [
        ("", "t00 t01 t02 t03 t04 t05 t06 t07 t08 t09 t10 t11"),
        ("tokenStatus=CONNECTED&", "t00 t03 t06 t09"),
        ("tokenStatus=NOT_CONNECTED&", "t01 t04 t07 t10"),
        ("tokenStatus=ADMIN_BLOCKED,RECONNECT_REQUIRED&", "t02 t05 t08 t11"),
        ("tokenStatus=DISCONNECTED&", ""),
        ("blocked=true&", "t01 t02 t04 t05 t07 t08 t10 t11"),
        ("blocked=false&", "t00 t03 t06 t09"),
        ("blocked=true&tokenStatus=NOT_CONNECTED&", "t01 t04 t07 t10"),
    ] {
        for limit in [1, 5, 12, 100] {
            let (mut all, mut cursor) = (Vec::new(), String::new());
            loop {
                let answer = api.get(&format!("/api/google/teachers?{query}limit={limit}{cursor}")).await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                let json = answer.json();
                assert!(ids(&json).len() <= limit);
                all.extend(ids(&json));
                let Some(next) = json["nextCursor"].as_str() else { break };
                cursor = format!("&cursor={next}");
            }
            assert_eq!(all.join(" "), expected, "{query} by {limit}");
        }
    }
    let json = api.get("/api/google/teachers?tokenStatus=ADMIN_BLOCKED").await.json();
    assert_eq!(json["items"][0], api.get("/api/google/status/t02").await.json());
    assert_eq!(json["items"][0]["blockedSessions"], 3);

    let page = api.get("/api/google/teachers?limit=5").await;
    let known = api.get_with("/api/google/teachers?limit=5", &[("if-none-match", page.header("etag"))]).await;
    assert_eq!(known.status, StatusCode::NOT_MODIFIED);
    let next = page.json()["nextCursor"].as_str().unwrap().to_owned();
    for (query, code) in [
        (format!("cursor={next}&blocked=true"), "INVALID_CURSOR"),
        ("cursor=x".to_owned(), "INVALID_CURSOR"),
        ("tokenStatus=connected".to_owned(), "INVALID_PARAMETER"),
        ("blocked=yes".to_owned(), "INVALID_PARAMETER"),
        ("limit=0".to_owned(), "INVALID_PARAMETER"),
        ("limit=101".to_owned(), "INVALID_PARAMETER"),
        ("status=CONNECTED".to_owned(), "UNKNOWN_PARAMETER"),
    ] {
        let answer = api.get(&format!("/api/google/teachers?{query}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (StatusCode::BAD_REQUEST, code), "{query}");
    }
}

#[tokio::test]
async fn a_status_on_sqlite() {
    a_status_tells_all_and_no_secret(api().await).await;
}

#[tokio::test]
async fn a_status_on_postgres() {
    a_status_tells_all_and_no_secret(api_on(&fresh_database().await, None).await).await;
}

#[tokio::test]
async fn pages_on_sqlite() {
    pages_and_filters(api().await).await;
}

#[tokio::test]
async fn pages_on_postgres() {
    pages_and_filters(api_on(&fresh_database().await, None).await).await;
}

#[tokio::test]
async fn a_token_is_needed_and_ids_are_checked() {
    let api = api().await;
    for path in ["/api/google/status/tch_1", "/api/google/teachers"] {
        let answer = send(&api.router, &axum::http::Method::GET, path, &[]).await;
        assert_eq!(answer.code(), "TOKEN_MISSING", "{path}");
    }
    assert_eq!(api.get("/api/google/status/a.b").await.code(), "INVALID_PARAMETER");
    assert_eq!(api.get("/api/google/status/tch_1?wait=3").await.code(), "UNKNOWN_PARAMETER");
}
