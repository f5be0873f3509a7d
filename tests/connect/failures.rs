//! Every way in which a consent can fail: its own code, and never any harm to what was there before.

use meet_projector::fake::{Fault, IdTokenMode, Operation, Rule, TokenMode};
use meet_projector::store::TokenStatus;
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use url::Url;

use super::fixture::{Landing, School};
use crate::support::service::{Setup, eventually};

stories! {
    on both databases:
        a_state_is_good_once_and_for_one_browser,
        a_state_ends_after_ten_minutes;
    on sqlite:
        codes_of_others_are_refused,
        people_and_administrators_say_no,
        the_token_endpoint_fails,
        our_own_client_is_refused,
        an_id_token_breaks_a_rule,
        callbacks_that_nobody_sent,
        nothing_is_stored_without_a_refresh_token;
}

/// The grant of teacher 0 works as before.
async fn assert_unharmed(school: &School, session: &str) {
    let kept = school.credential(0).await.unwrap();
    assert_eq!((kept.status, kept.last_error.as_deref()), (TokenStatus::Connected, None));
    assert_eq!(kept.email.as_deref(), Some(school.world.email(0)));
    school.world.publish(&school.world.lesson(session, 0)).await;
    school.world.ready(session, 1).await;
}

async fn a_state_is_good_once_and_for_one_browser(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    let (ana, thief) = (school.visitor(), school.visitor());
    let callback = ana.consent(&ana.start(0, "").await, &[("auto", "allow")]).await;
    let stolen = thief.go(callback.as_str(), None).await;
    assert_eq!((stolen.status, stolen.outcome().as_str()), (StatusCode::BAD_REQUEST, "OTHER_BROWSER"));
    assert_eq!(school.requests(Operation::Exchange), 0, "Google is not asked on behalf of a thief");
    assert!(school.credential(0).await.is_none());

    assert_eq!(ana.go(callback.as_str(), None).await.outcome(), "connected");
    let version = school.credential(0).await.unwrap().token_version;
    for visitor in [&ana, &thief] {
        let again = visitor.go(callback.as_str(), None).await;
        assert_eq!(again.outcome(), "STATE_USED");
        assert!(again.body.contains("you are done"), "{}", again.body);
    }
    assert_eq!(school.requests(Operation::Exchange), 1);
    assert_eq!(school.credential(0).await.unwrap().token_version, version);

    // A start made by a server reaches no browser: the state alone binds it.
    let page = school.start(0, "").await;
    let callback = thief.consent(&page, &[("auto", "allow")]).await;
    assert_eq!(school.visitor().go(callback.as_str(), None).await.outcome(), "connected");
}

async fn a_state_ends_after_ten_minutes(setup: Setup) {
    let school = School::open(setup.connected(0).standing_still()).await;
    let visitor = school.visitor();
    let (early, late) = (visitor.start(0, "").await, visitor.start(0, "").await);
    let early = visitor.consent(&early, &[("auto", "allow")]).await;
    school.world.clock.advance_ms(599_999);
    let late = visitor.consent(&late, &[("auto", "allow")]).await;
    assert_eq!(visitor.go(early.as_str(), None).await.outcome(), "connected");
    school.world.clock.advance_ms(1);
    let expired = visitor.go(late.as_str(), None).await;
    assert_eq!((expired.outcome().as_str(), expired.location.is_some()), ("STATE_EXPIRED", false));
    assert!(expired.body.contains("ten minutes"), "{}", expired.body);
    assert_eq!(school.requests(Operation::Exchange), 1);
}

/// The callback with another value of one parameter.
fn with(callback: &Url, name: &str, value: &str) -> String {
    let mut url = callback.clone();
    let pairs: Vec<(String, String)> = callback.query_pairs().into_owned().filter(|(known, _)| known != name).collect();
    url.query_pairs_mut().clear().extend_pairs(pairs).append_pair(name, value);
    url.into()
}

async fn codes_of_others_are_refused(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    let callback = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
    let made_up = visitor.go(&with(&callback, "code", "4/0another-clients-code"), None).await;
    assert_eq!(made_up.outcome(), "CODE_REFUSED");

    // The code of one attempt under the state of another: somebody injects what they have stolen.
    let (one, two) = (visitor.start(0, "").await, visitor.start(0, "").await);
    let (one, two) =
        (visitor.consent(&one, &[("auto", "allow")]).await, visitor.consent(&two, &[("auto", "allow")]).await);
    let code = one.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    assert_eq!(visitor.go(&with(&two, "code", &code), None).await.outcome(), "PKCE_MISMATCH");

    // The same address, but not the one Google gave the code for.
    school.world.fake().configure(|fake| fake.redirect_uris = Vec::new());
    let mut page = visitor.start(0, "").await;
    let pairs: Vec<(String, String)> = page.query_pairs().into_owned().collect();
    page.query_pairs_mut().clear().extend_pairs(pairs.iter().map(|(name, value)| {
        (name.as_str(), if name == "redirect_uri" { "https://elsewhere.example/callback" } else { value.as_str() })
    }));
    let elsewhere = visitor.consent(&page, &[("auto", "allow")]).await;
    let here = format!("{}/api/google/oauth/callback?{}", school.base, elsewhere.query().unwrap());
    assert_eq!(visitor.go(&here, None).await.outcome(), "CONFIG_ERROR");
    assert_unharmed(&school, "s1").await;
}

async fn people_and_administrators_say_no(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    for (answer, code) in [
        ("deny", "ACCESS_DENIED"),
        ("admin_policy_enforced", "ADMIN_BLOCKED"),
        ("org_internal", "ORG_INTERNAL"),
        ("redirect_uri_mismatch", "CONFIG_ERROR"),
        ("server_error", "GOOGLE_UNAVAILABLE"),
    ] {
        let landing = visitor.connect(0, "", &[("auto", answer)]).await;
        assert_eq!((landing.outcome().as_str(), landing.location.is_some()), (code, true), "{answer}");
    }
    assert_eq!(school.requests(Operation::Exchange), 0);
    let unticked = visitor.connect(0, "", &[("auto", "allow"), ("scopes", "openid email")]).await;
    assert_eq!(unticked.outcome(), "SCOPE_MISSING");
    assert_eq!(school.requests(Operation::Revoke), 0, "a revocation would end the grant that works, too");
    school.tokens(0, TokenMode::AdminPolicyEnforced);
    assert_eq!(visitor.connect(0, "", &[("auto", "allow")]).await.outcome(), "ADMIN_BLOCKED");
    school.tokens(0, TokenMode::Normal);
    assert_unharmed(&school, "s1").await;
}

async fn the_token_endpoint_fails(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    for (fault, code) in [
        (Fault::refuse(500, "internal_failure"), "GOOGLE_UNAVAILABLE"),
        (Fault::refuse(503, "temporarily_unavailable"), "GOOGLE_UNAVAILABLE"),
        (Fault::refuse(429, "rate_limit"), "GOOGLE_BUSY"),
        (Fault::refuse(403, "org_internal"), "ORG_INTERNAL"),
        (Fault::drop_before(), "GOOGLE_UNAVAILABLE"),
        (Fault::drop_after(), "GOOGLE_UNAVAILABLE"),
        (Fault::refuse_after(502, "bad_gateway"), "GOOGLE_UNAVAILABLE"),
        (Fault { ending: meet_projector::fake::Ending::Hang(60_000), ..Fault::default() }, "GOOGLE_TIMEOUT"),
    ] {
        school.world.fake().add_fault(Rule::once(Operation::Exchange, fault.clone()));
        let callback = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
        assert_eq!(visitor.go(callback.as_str(), None).await.outcome(), code, "{fault:?}");
        // The code is spent: whoever reloads is told to start again, and Google is not asked again.
        let asked = school.requests(Operation::Exchange);
        assert_eq!(visitor.go(callback.as_str(), None).await.outcome(), "STATE_USED", "{fault:?}");
        assert_eq!(school.requests(Operation::Exchange), asked);
    }
    assert_unharmed(&school, "s1").await;
    assert_eq!(visitor.connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
}

async fn our_own_client_is_refused(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    school.world.fake().configure(|fake| fake.tokens = TokenMode::InvalidClient);
    let landing = visitor.connect(0, "", &[("auto", "allow")]).await;
    assert_eq!(landing.outcome(), "CONFIG_ERROR");
    let kept = school.credential(0).await.unwrap();
    assert_eq!((kept.status, kept.token_version, kept.last_error), (TokenStatus::Connected, 1, None));
    // The breaker of the token endpoint is open: the reconciler does not even ask.
    school.world.publish(&school.world.lesson("s1", 0)).await;
    school.world.error("s1", "CONFIG_ERROR").await;
    assert_eq!(school.requests(Operation::Refresh), 0);
    assert_eq!(school.credential(0).await.unwrap().status, TokenStatus::Connected, "no teacher is blamed");

    // Mended: the next consent is the probe that closes it, and wakes the lesson.
    school.world.fake().configure(|fake| fake.tokens = TokenMode::Normal);
    assert_eq!(visitor.connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
    school.world.ready("s1", 1).await;
}

async fn an_id_token_breaks_a_rule(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    for mode in [
        IdTokenMode::WrongIssuer,
        IdTokenMode::WrongAudience,
        IdTokenMode::Expired,
        IdTokenMode::FromTheFuture,
        IdTokenMode::WithoutSubject,
        IdTokenMode::Missing,
    ] {
        school.world.fake().configure(|fake| fake.id_token = mode);
        assert_eq!(visitor.connect(0, "", &[("auto", "allow")]).await.outcome(), "ID_TOKEN_INVALID", "{mode:?}");
    }
    assert_unharmed(&school, "s1").await;
}

async fn callbacks_that_nobody_sent(setup: Setup) {
    let school = School::open(setup.connected(1)).await;
    let visitor = school.visitor();
    let callback = format!("{}/api/google/oauth/callback", school.base);
    let long = "x".repeat(5_000);
    for (query, code) in [
        ("", "CALLBACK_INVALID"),
        ("?code=4/0x", "CALLBACK_INVALID"),
        ("?state=&code=4/0x", "CALLBACK_INVALID"),
        ("?state=made-up&code=4/0x", "STATE_UNKNOWN"),
        ("?state=%00%ff&code=4/0x", "STATE_UNKNOWN"),
        ("?error=access_denied&state=made-up", "STATE_UNKNOWN"),
        (&format!("?state={long}&code=4/0x"), "STATE_UNKNOWN"),
    ] {
        let landing = visitor.go(&format!("{callback}{query}"), None).await;
        assert_eq!((landing.outcome().as_str(), landing.location), (code, None), "{query:.40}");
    }
    // With a good state, but without an answer, or with one of another server (RFC 9207).
    let empty = visitor.start(0, "").await;
    let state = empty.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
    assert_eq!(visitor.go(&format!("{callback}?state={state}"), None).await.outcome(), "CALLBACK_INVALID");
    let mixed_up = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
    let mixed_up = with(&mixed_up, "iss", "https://login.evil.example");
    assert_eq!(visitor.go(&mixed_up, None).await.outcome(), "CALLBACK_INVALID");
    assert_eq!(school.requests(Operation::Exchange), 0);

    // A scanner that looks at the address first uses nothing up.
    let good = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
    let (looked, _) = school.call(Method::HEAD, &good.as_str()[school.base.len()..], None).await;
    assert_eq!(looked, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(visitor.go(good.as_str(), None).await.outcome(), "connected");
}

async fn nothing_is_stored_without_a_refresh_token(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    school.tokens(0, TokenMode::NoRefreshToken);
    assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "NO_REFRESH_TOKEN");
    assert!(school.credential(0).await.is_none());
}

/// The database goes away at two places: before the state is used up nothing is lost, after the exchange the grant is
/// kept in memory for some seconds.
#[tokio::test(flavor = "multi_thread")]
async fn the_database_is_away() {
    let mut school = School::open(Setup::postgres().connected(0)).await;
    let visitor = school.visitor();
    let callback = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
    drop(visitor);
    school.world.gate.as_mut().unwrap().shut();
    let landing = get(&school, callback.as_str()).await;
    assert_eq!((landing.status, landing.outcome().as_str()), (StatusCode::SERVICE_UNAVAILABLE, "DATABASE_UNAVAILABLE"));
    let (status, json) =
        school.call(Method::GET, "/api/google/oauth/start?teacherId=tch_0", Some(&school.world.token)).await;
    assert_eq!((status, json["code"].as_str()), (StatusCode::SERVICE_UNAVAILABLE, Some("DATABASE_UNAVAILABLE")));
    school.world.gate.as_mut().unwrap().open();

    school.world.until_ready().await;
    let callback = school.visitor().consent(&school.start(0, "").await, &[("auto", "allow")]).await;
    school.world.fake().add_fault(Rule::once(Operation::Exchange, Fault::slow(500)));
    let (base, callback) = (school.base.clone(), callback.to_string());
    assert!(callback.starts_with(&base));
    let http = crate::support::google::http_client(std::time::Duration::from_mins(1));
    let exchanging = tokio::spawn(async move { http.get(callback).header(ACCEPT, "text/html").send().await.unwrap() });
    eventually("the code is being exchanged", async || school.world.fake().faults().iter().any(|rule| rule.hits == 1))
        .await;
    school.world.gate.as_mut().unwrap().shut();
    eventually("the code is exchanged", async || school.requests(Operation::Exchange) == 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    school.world.gate.as_mut().unwrap().open();
    let answer = exchanging.await.unwrap();
    let location = answer.headers()["location"].to_str().unwrap();
    assert!(location.ends_with("google=connected"), "{location}");
    assert_eq!(school.credential(0).await.unwrap().status, TokenStatus::Connected);
}

async fn get(school: &School, url: &str) -> Landing {
    school.visitor().go(url, None).await
}
