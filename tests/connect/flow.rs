//! The way through: what is asked of Google, what is kept, what wakes up, and where the teacher ends.

use std::collections::HashMap;

use meet_projector::fake::{IdTokenMode, Operation, TokenMode};
use meet_projector::store::{Role, TokenStatus};
use reqwest::{Method, StatusCode};

use super::fixture::{RETURN_PAGE, School};
use crate::support::service::{Setup, World, teacher_id};

async fn a_teacher_connects_and_the_lesson_wakes_up(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    school.world.publish(&school.world.lesson("s1", 0)).await;
    school.world.error("s1", "TEACHER_NOT_CONNECTED").await;
    let ben = school.visitor();
    let to = format!("&returnTo={RETURN_PAGE}%3Ftab=meet");
    let landing = ben.connect(0, &to, &[("auto", "allow")]).await;
    assert_eq!(landing.outcome(), "connected");
    assert_eq!(landing.location.unwrap().as_str(), format!("{RETURN_PAGE}?tab=meet&google=connected"));
    school.world.ready("s1", 1).await;
    let kept = school.credential(0).await.unwrap();
    assert_eq!((kept.status, kept.email.as_deref()), (TokenStatus::Connected, Some(school.world.email(0))));
    assert_eq!(kept.account.0, school.world.google.teachers[0].sub);
    assert_eq!(school.requests(Operation::Refresh), 0, "the access token of the consent serves");
    assert_eq!(ben.cookies(), 0, "the cookie goes with the flow");
}

async fn a_reconnect_mends_what_waits_and_keeps_events(setup: Setup) {
    let school = School::open(setup).await;
    let world: &World = &school.world;
    world.publish(&world.lesson("before", 0)).await;
    let before = world.ready("before", 1).await;
    world.fake().revoke_grant(world.email(0));
    world.publish(&world.lesson("after", 0)).await;
    world.error("after", "RECONNECT_REQUIRED").await;
    let version = school.credential(0).await.unwrap().token_version;
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    world.ready("after", 1).await;
    assert_eq!(world.document("before").await, Some(before));
    let kept = school.credential(0).await.unwrap();
    assert!(kept.token_version > version && kept.last_error.is_none(), "{kept:?}");
    world.assert_google_was_never_wrong();
}

async fn another_account_is_an_explicit_change(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let world: &World = &school.world;
    world.publish(&world.lesson("s1", 0)).await;
    let before = world.ready("s1", 1).await;
    let other = [("auto", "allow"), ("account", world.email(1))];
    let landing = school.visitor().connect(0, "", &other).await;
    assert_eq!(landing.outcome(), "ACCOUNT_MISMATCH");
    let query: HashMap<String, String> = landing.location.unwrap().query_pairs().into_owned().collect();
    assert_eq!((query["expected"].as_str(), query["chosen"].as_str()), ("te…@example.com", "te…@example.com"));
    assert_eq!(world.document("s1").await, Some(before.clone()));

    assert_eq!(school.visitor().connect(0, "&changeAccount=true", &other).await.outcome(), "connected");
    let after = world.wait_for("s1", |d| d["meetStatus"] == "READY" && d["meetLink"] != before["meetLink"]).await;
    assert_ne!(after["meetEventId"], before["meetEventId"]);
    assert_eq!(school.credential(0).await.unwrap().email.as_deref(), Some(world.email(1)));
}

async fn two_teachers_may_share_an_account(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let shared = [("auto", "allow"), ("account", school.world.email(0))];
    let landing = school.visitor().connect(1, "", &shared).await;
    assert_eq!(landing.outcome(), "connected");
    assert!(landing.location.unwrap().as_str().ends_with("google=connected&notice=ACCOUNT_SHARED"));
    school.world.publish(&school.world.lesson("s1", 1)).await;
    school.world.ready("s1", 1).await;
}

stories! {
    on both databases:
        a_teacher_connects_and_the_lesson_wakes_up,
        a_reconnect_mends_what_waits_and_keeps_events,
        another_account_is_an_explicit_change,
        two_teachers_may_share_an_account;
    on sqlite:
        a_kept_refresh_token_serves_the_same_account,
        forms_that_openid_allows_are_accepted,
        a_start_says_who_may_and_where_to,
        flows_are_bounded,
        a_page_of_our_own_where_no_other_is_known;
}

async fn a_kept_refresh_token_serves_the_same_account(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let before = school.credential(0).await.unwrap();
    school.tokens(0, TokenMode::NoRefreshToken);
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    let after = school.credential(0).await.unwrap();
    assert_eq!(after.refresh_token, before.refresh_token);
    assert_eq!(after.token_version, before.token_version + 1);
}

async fn forms_that_openid_allows_are_accepted(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    school.world.fake().configure(|fake| fake.id_token = IdTokenMode::OtherForms);
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
}

async fn a_start_says_who_may_and_where_to(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let query: HashMap<String, String> = school.start(0, "").await.query_pairs().into_owned().collect();
    assert_eq!(query["login_hint"], school.world.email(0));
    assert_eq!(query["redirect_uri"], format!("{}/api/google/oauth/callback", school.base));
    assert_eq!((query["access_type"].as_str(), query["prompt"].as_str()), ("offline", "consent"));
    assert_eq!(query["code_challenge_method"], "S256");
    let change: HashMap<String, String> =
        school.start(0, "&changeAccount=true").await.query_pairs().into_owned().collect();
    assert!(!change.contains_key("login_hint") && change["prompt"].contains("select_account"), "{change:?}");

    let reader = school.token(Role::Reader).await;
    let admin = school.world.token.as_str();
    let teacher = format!("teacherId={}", teacher_id(0));
    for (token, query, status, code) in [
        (None, teacher.clone(), 401, "TOKEN_MISSING"),
        (Some(reader.as_str()), teacher.clone(), 403, "ROLE_TOO_LOW"),
        (Some(admin), String::new(), 400, "INVALID_PARAMETER"),
        (Some(admin), "teacherId=a%20b".to_owned(), 400, "INVALID_PARAMETER"),
        (Some(admin), format!("{teacher}&return=x"), 400, "UNKNOWN_PARAMETER"),
        (Some(admin), format!("{teacher}&changeAccount=yes"), 400, "INVALID_PARAMETER"),
        (Some(admin), format!("{teacher}&returnTo=https://evil.example/account"), 400, "RETURN_TO_NOT_ALLOWED"),
        (Some(admin), format!("{teacher}&returnTo=//evil.example"), 400, "RETURN_TO_NOT_ALLOWED"),
        (Some(admin), format!("{teacher}&returnTo=/account"), 400, "RETURN_TO_NOT_ALLOWED"),
    ] {
        let path = format!("/api/google/oauth/start?{query}");
        let (seen, json) = school.call(Method::GET, &path, token).await;
        assert_eq!((seen.as_u16(), json["code"].as_str()), (status, Some(code)), "{query}: {json}");
    }
}

async fn flows_are_bounded(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    let first = school.start(0, "").await;
    for _ in 0..12 {
        school.start(0, "").await;
    }
    assert_eq!(school.world.store.flows_kept(&teacher_id(0)).await.unwrap(), 10);
    let visitor = school.visitor();
    let callback = visitor.consent(&first, &[("auto", "allow")]).await;
    assert_eq!(visitor.go(callback.as_str(), None).await.outcome(), "STATE_UNKNOWN");
}

async fn a_page_of_our_own_where_no_other_is_known(setup: Setup) {
    let school = School::open_with(setup.connected(0), &[]).await;
    let landing = school.visitor().connect(0, "", &[("auto", "deny")]).await;
    assert_eq!((landing.status, landing.outcome().as_str()), (StatusCode::BAD_REQUEST, "ACCESS_DENIED"));
    assert!(landing.body.contains("choose Continue"), "{}", landing.body);
    let landing = school.visitor().connect(0, "", &[("auto", "allow")]).await;
    assert_eq!((landing.status, landing.outcome().as_str()), (StatusCode::OK, "connected"));
    assert!(landing.body.contains("te…@example.com"), "{}", landing.body);
}
