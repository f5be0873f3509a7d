//! Who may read: every route × no token, a bad one, a revoked one, a reader; and the command that makes tokens.

use axum::http::{Method, StatusCode};
use meet_projector::cli::token::{TokenAction, TokenError, run};
use meet_projector::store::Role;

use super::fixture::{Api, NOW, START, api, api_with, new_token, send};
use meet_projector::api::Readiness;
use meet_projector::model::UnixMillis;

const ROUTES: [&str; 4] = [
    "/api/google/meet/ses_1",
    "/api/google/meet/ses_1?wait=1",
    "/api/google/meet?sessionIds=ses_1",
    "/api/google/meet?status=PENDING",
];

async fn with(api: &Api, path: &str, authorization: &str) -> (StatusCode, String, String) {
    let answer = send(&api.router, &Method::GET, path, &[("authorization", authorization)]).await;
    let challenge = answer.headers.get("www-authenticate").map_or("-", |value| value.to_str().unwrap()).to_owned();
    let code = if answer.status.is_success() { "-".to_owned() } else { answer.code() };
    (answer.status, code, challenge)
}

async fn command(api: &Api, action: &TokenAction, as_json: bool) -> Result<String, TokenError> {
    let mut out = Vec::new();
    run(action, &api.store, &api.clock, as_json, &mut out, &mut Vec::new()).await?;
    Ok(String::from_utf8(out).unwrap())
}

fn id_of(token: &str) -> String {
    token.split('_').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn every_route_needs_a_good_token() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let revoked = new_token(&api.store, &api.clock, Role::Admin).await;
    command(&api, &TokenAction::Revoke { id: id_of(&revoked) }, false).await.unwrap();
    let (id, secret) = (id_of(&api.reader), api.reader.rsplit('_').next().unwrap());
    let other_secret = format!("Bearer mp_{id}_{}", secret.chars().rev().collect::<String>());
    for route in ROUTES {
        let none = send(&api.router, &Method::GET, route, &[]).await;
        assert_eq!((none.status, none.header("www-authenticate")), (StatusCode::UNAUTHORIZED, "Bearer"), "{route}");
        assert_eq!(none.code(), "TOKEN_MISSING");
        assert!(!none.text.contains("tch_1"));
        for bad in ["Basic YTpi", "Bearer", "mp_a_b"] {
            assert_eq!(with(&api, route, bad).await.1, "TOKEN_MISSING", "{route} {bad}");
        }
        let foreign = format!("Bearer mp_abcdefghij_{secret}");
        let cut = format!("Bearer mp_{id}_{}", &secret[1..]);
        let revoked = format!("Bearer {revoked}");
        for bad in [&other_secret, &foreign, &cut, &revoked, "Bearer ", "Bearer nonsense", "Bearer mp__x"] {
            let (status, code, challenge) = with(&api, route, bad).await;
            assert_eq!((status.as_u16(), code.as_str()), (401, "TOKEN_INVALID"), "{route} {bad}");
            assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        }
        for scheme in ["Bearer", "bearer", "BEARER"] {
            assert_eq!(with(&api, route, &format!("{scheme} {}", api.reader)).await.0, StatusCode::OK, "{route}");
        }
    }
}

#[tokio::test]
async fn a_new_token_works_at_once_and_a_revoked_one_no_longer_than_a_refresh() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    for role in [Role::Reader, Role::Operator, Role::Admin] {
        let token = new_token(&api.store, &api.clock, role).await;
        let bearer = format!("Bearer {token}");
        assert_eq!(with(&api, ROUTES[0], &bearer).await.0, StatusCode::OK);
        command(&api, &TokenAction::Revoke { id: token.clone() }, false).await.unwrap();
        api.state.refresh_tokens().await.unwrap();
        assert_eq!(with(&api, ROUTES[0], &bearer).await.1, "TOKEN_INVALID");
    }
}

#[tokio::test]
async fn uses_are_noted_to_the_minute() {
    let api = api().await;
    let used_at = async || {
        api.state.refresh_tokens().await.unwrap();
        api.store.api_tokens().await.unwrap()[0].last_used_at
    };
    assert_eq!(used_at().await, None);
    api.get("/api/google/meet/ses_1").await;
    let minute = UnixMillis::new(NOW - NOW % 60_000);
    assert_eq!(used_at().await, Some(minute));
    api.clock.advance_ms(10_000);
    api.get("/api/google/meet/ses_1").await;
    assert_eq!(used_at().await, Some(minute));
    api.clock.advance_ms(50_000);
    api.get("/api/google/meet/ses_1").await;
    assert_eq!(used_at().await, Some(minute.plus(60_000)));
}

#[tokio::test]
async fn known_tokens_go_on_working_without_the_database_and_unknown_ones_are_not_blamed() {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    assert_eq!(api.get(ROUTES[0]).await.status, StatusCode::OK);
    api.store.close().await;
    assert_eq!(api.get(ROUTES[0]).await.status, StatusCode::OK);
    let (status, code, _) = with(&api, ROUTES[0], "Bearer mp_abc_0123456789abcdef0123").await;
    assert_eq!((status.as_u16(), code.as_str()), (503, "DATABASE_UNAVAILABLE"));
}

#[tokio::test]
async fn tokens_of_a_file_work_and_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens.jsonl");
    let url = format!("sqlite://{}/meet.db", folder.path().display());
    let line =
        |id: &str| format!("{{\"token\":\"mp_{id}_0123456789abcdef\",\"name\":\"wordpress\",\"role\":\"reader\"}}\n");
    std::fs::write(&file, line("one")).unwrap();
    let api = api_with(&url, Some(folder), Readiness::database_only(), Some(file.clone())).await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let [one, two] = ["one", "two"].map(|id| format!("Bearer mp_{id}_0123456789abcdef"));
    assert_eq!(with(&api, ROUTES[0], &one).await.0, StatusCode::OK);
    std::fs::write(&file, line("two")).unwrap();
    api.state.refresh_tokens().await.unwrap();
    assert_eq!(with(&api, ROUTES[0], &one).await.1, "TOKEN_INVALID");
    assert_eq!(with(&api, ROUTES[0], &two).await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_command_lists_and_revokes() {
    let api = api().await;
    api.clock.advance_ms(1_000);
    let token = new_token(&api.store, &api.clock, Role::Operator).await;
    let id = id_of(&token);
    let secret = token.rsplit('_').next().unwrap().to_owned();
    let listed = command(&api, &TokenAction::List, false).await.unwrap();
    assert!(listed.contains(&id) && listed.contains("operator") && !listed.contains(&secret), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&command(&api, &TokenAction::List, true).await.unwrap()).unwrap();
    insta::assert_json_snapshot!(json, { "[].id" => "[id]" }, @r#"
    [
      {
        "createdAt": "2026-11-22T20:15:07.030Z",
        "id": "[id]",
        "lastUsedAt": null,
        "name": "a operator",
        "revokedAt": null,
        "role": "operator"
      },
      {
        "createdAt": "2026-11-22T20:15:06.030Z",
        "id": "[id]",
        "lastUsedAt": null,
        "name": "a reader",
        "revokedAt": null,
        "role": "reader"
      }
    ]
    "#);
    command(&api, &TokenAction::Revoke { id: id.clone() }, false).await.unwrap();
    let again = command(&api, &TokenAction::Revoke { id }, false).await.unwrap_err();
    assert_eq!(again.exit_code(), 1);
    let nameless = command(&api, &TokenAction::New { name: " ".into(), role: Role::Reader }, false).await.unwrap_err();
    assert_eq!(nameless.exit_code(), 2);
}
