//! One notice for a cause, whatever number of sessions, processes and restarts; and a webhook that may do what it
//! likes.

use std::time::Duration;

use meet_projector::fake::TokenMode;
use meet_projector::google::access::AccessTokens;
use meet_projector::google::breaker::Breaker;
use meet_projector::google::calendar::http_client;
use meet_projector::notices::decide::Tell;
use meet_projector::notices::{self, Cause, NoticeContext, Webhook};
use meet_projector::retry::Jitter;
use meet_projector::store::{RefreshTurn, RefreshedToken, TokenStatus};
use secrecy::SecretString;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use wiremock::matchers::{header, method, path};
use wiremock::{Mock, MockServer, ResponseTemplate};

use super::alive::refresher;
use crate::support::service::{HOUR_MS, Setup, World, eventually, lesson_at, teacher_id};

const MINUTE_MS: i64 = 60_000;

/// The notices of one more process.
fn watcher(world: &World, webhook: Option<String>) -> NoticeContext {
    NoticeContext {
        store: world.store.clone(),
        clock: world.clock.clone(),
        webhook: webhook.map(|url| Webhook::new(http_client(), SecretString::from(url))),
        calendar_breaker: Breaker::default(),
        token_breaker: Breaker::default(),
        caught_up: watch::channel(true).1,
        jitter: Jitter::seeded(3),
    }
}

async fn heard(context: &NoticeContext) -> Vec<(Cause, Tell)> {
    notices::watch(context).await.unwrap().into_iter().map(|(cause, tell, _)| (cause, tell)).collect()
}

async fn slack() -> MockServer {
    let slack = MockServer::start().await;
    Mock::given(method("POST"))
        .and(path("/services/SECRET"))
        .and(header("content-type", "application/json"))
        .respond_with(ResponseTemplate::new(200).set_body_string("ok"))
        .mount(&slack)
        .await;
    slack
}

async fn posted(slack: &MockServer) -> Vec<String> {
    let requests = slack.received_requests().await.unwrap();
    let texts = requests.iter().map(|request| {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
        body["text"].as_str().unwrap().to_owned()
    });
    texts.collect()
}

async fn a_hundred_blocked_sessions_are_one_notice(setup: Setup) {
    let mut world = World::start(setup.standing_still().teachers(3).connected(1)).await;
    world.fake().revoke_grant(world.email(0));
    for n in 0..100 {
        world.publish(&world.lesson(&format!("s{n}"), n % 3)).await;
    }
    for n in 0..100 {
        let code = if n % 3 == 0 { "RECONNECT_REQUIRED" } else { "TEACHER_NOT_CONNECTED" };
        world.error(&format!("s{n}"), code).await;
    }
    world.stop().await;

    let slack = slack().await;
    let url = format!("{}/services/SECRET", slack.uri());
    let (one, other) = (watcher(&world, Some(url.clone())), watcher(&world, Some(url.clone())));
    assert_eq!(heard(&one).await, [], "what may pass by itself is not told at once");
    world.clock.advance_ms(MINUTE_MS);
    let (by_one, by_other) = tokio::join!(notices::watch(&one), notices::watch(&other));
    let told = [by_one.unwrap(), by_other.unwrap()].concat();
    assert_eq!(told.len(), 1, "by one process alone: {told:?}");
    assert_eq!((told[0].0, told[0].1), (Cause::TeachersToConnect, Tell::Appeared));
    let (by_one, by_other) = tokio::join!(notices::deliver(&one), notices::deliver(&other));
    assert_eq!(by_one.unwrap() + by_other.unwrap(), 1);
    let texts = posted(&slack).await;
    assert_eq!(texts, [told[0].2.clone()]);
    assert!(texts[0].starts_with("3 teachers have to connect Google Calendar (again); 100 sessions wait for that: "));
    for what in
        ["tch_0 (RECONNECT_REQUIRED, 34 sessions, the next at 2026-11-25 20:00 UTC)", "tch_1 (NOT_CONNECTED, 33"]
    {
        assert!(texts[0].contains(what), "{what} in {}", texts[0]);
    }
    for secret in ["@", "http", "meet.google.com", "1//", "ya29"] {
        assert!(!texts[0].contains(secret), "{secret} in {}", texts[0]);
    }

    // A restart, an hour, a day: no more than one reminder.
    let restarted = watcher(&world, Some(url));
    for _ in 0..24 {
        assert_eq!(heard(&restarted).await, []);
        world.clock.advance_ms(HOUR_MS - MINUTE_MS);
    }
    world.clock.advance_ms(HOUR_MS);
    assert_eq!(heard(&restarted).await, [(Cause::TeachersToConnect, Tell::Reminder)]);
    assert_eq!(heard(&one).await, []);

    // Two connect; then the third, and the end is told.
    world.serve().await;
    for teacher in 0..3 {
        let account = meet_projector::fake::NewAccount::new(world.email(teacher));
        world.fake().add_account(&account.connected(&world.google.teachers[teacher].refresh_token));
        world.connect_teacher(teacher).await;
    }
    for n in 0..100 {
        world.ready(&format!("s{n}"), 1).await;
    }
    world.stop().await;
    assert_eq!(heard(&one).await, [], "not at once, for another process may see it still");
    world.clock.advance_ms(2 * MINUTE_MS);
    assert_eq!(heard(&other).await, [(Cause::TeachersToConnect, Tell::Resolved)]);
    assert_eq!(heard(&one).await, []);
    assert_eq!(notices::deliver(&one).await.unwrap(), 1, "the reminder was overtaken by the end");
    assert_eq!(posted(&slack).await.last().unwrap(), "Resolved: every teacher who has to be is connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_blocked_sessions_are_one_notice_on_sqlite() {
    a_hundred_blocked_sessions_are_one_notice(Setup::sqlite()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_blocked_sessions_are_one_notice_on_postgres() {
    a_hundred_blocked_sessions_are_one_notice(Setup::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_without_a_link_and_dead_letters_are_told() {
    let mut world = World::start(Setup::sqlite().standing_still().connected(1)).await;
    let soon = world.clock.now().plus(25 * MINUTE_MS);
    for n in 0..5 {
        world.publish(&lesson_at(&format!("near{n}"), 1, soon)).await;
        world.publish_raw(&format!("bookings.session.x{n}.scheduled"), &[], b"no json".to_vec()).await;
    }
    world.publish(&lesson_at("near-and-well", 0, soon)).await;
    world.publish(&lesson_at("far", 1, soon.plus(HOUR_MS))).await;
    world.ready("near-and-well", 1).await;
    for session in ["near0", "near4", "far"] {
        world.error(session, "TEACHER_NOT_CONNECTED").await;
    }
    world.folded().await;
    world.stop().await;

    let context = watcher(&world, None);
    assert_eq!(heard(&context).await, []);
    world.clock.advance_ms(MINUTE_MS);
    let told = notices::watch(&context).await.unwrap();
    let text = |cause: Cause| told.iter().find(|(known, ..)| *known == cause).map(|(.., text)| text.as_str()).unwrap();
    assert_eq!(told.len(), 3, "{told:#?}");
    assert!(text(Cause::SessionsWithoutLink).starts_with("5 sessions start within 30 minutes"), "{told:#?}");
    assert!(text(Cause::SessionsWithoutLink).contains("near0 of teacher tch_1"), "{told:#?}");
    assert!(text(Cause::DeadLetters).starts_with("5 booking events were not understood"), "{told:#?}");
    assert!(text(Cause::TeachersToConnect).starts_with("1 teacher has to connect"), "{told:#?}");

    // Before the projection is that of today, nothing is said of sessions, neither that they wait nor that they do not.
    let (caught_up, receiver) = watch::channel(false);
    let starting = NoticeContext { caught_up: receiver, ..watcher(&world, None) };
    world.clock.advance_ms(3 * HOUR_MS);
    assert_eq!(heard(&starting).await, []);
    caught_up.send_replace(true);
    assert_eq!(
        heard(&starting).await,
        [(Cause::TeachersToConnect, Tell::Resolved), (Cause::SessionsWithoutLink, Tell::Resolved)]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_is_told_and_its_end_when_every_process_is_well() {
    let world = World::prepare(Setup::sqlite().standing_still().teachers(1)).await;
    let tokens = refresher(&world);
    let access: &AccessTokens = &tokens.access;
    let credential = world.store.credential(&teacher_id(0)).await.unwrap().unwrap();
    world.fake().configure(|settings| settings.tokens = TokenMode::InvalidClient);
    access.token(&credential, None).await.unwrap_err();
    let (broken, well) = (watcher(&world, None), watcher(&world, None));
    let broken = NoticeContext { token_breaker: access.breaker().clone(), ..broken };
    assert_eq!(heard(&broken).await, [(Cause::TokenBreaker, Tell::Appeared)], "at once");
    for _ in 0..20 {
        world.clock.advance_ms(MINUTE_MS / 2);
        assert_eq!(heard(&broken).await, []);
        assert_eq!(heard(&well).await, [], "it is open elsewhere");
    }
    world.fake().configure(|settings| settings.tokens = TokenMode::Normal);
    access.token(&credential, None).await.unwrap();
    assert_eq!(heard(&broken).await, []);
    world.clock.advance_ms(2 * MINUTE_MS);
    assert_eq!(heard(&well).await, [(Cause::TokenBreaker, Tell::Resolved)]);
    assert_eq!(heard(&broken).await, []);
    assert_eq!(world.store.credential(&teacher_id(0)).await.unwrap().unwrap().status, TokenStatus::Connected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_webhook_is_asked_again_later_and_a_redirect_is_not_followed() {
    let mut world = World::start(Setup::sqlite().standing_still()).await;
    world.publish_raw("bookings.session.x.scheduled", &[], b"no json".to_vec()).await;
    world.folded().await;
    world.stop().await;
    let elsewhere = slack().await;
    let slack = MockServer::start().await;
    let context = watcher(&world, Some(format!("{}/services/SECRET", slack.uri())));
    heard(&context).await;
    world.clock.advance_ms(MINUTE_MS);
    assert_eq!(heard(&context).await, [(Cause::DeadLetters, Tell::Appeared)]);
    let target = format!("{}/services/SECRET", elsewhere.uri());
    let failures = [
        ResponseTemplate::new(500),
        ResponseTemplate::new(307).insert_header("location", target.as_str()),
        ResponseTemplate::new(429).insert_header("retry-after", "1800"),
        ResponseTemplate::new(404),
    ];
    let mut requests = 0;
    for failure in failures {
        slack.reset().await;
        Mock::given(method("POST")).respond_with(failure).mount(&slack).await;
        assert_eq!(notices::deliver(&context).await.unwrap(), 0);
        assert_eq!(notices::deliver(&context).await.unwrap(), 0, "not again at once");
        requests += slack.received_requests().await.unwrap().len();
        world.clock.advance_ms(31 * MINUTE_MS);
    }
    assert_eq!((requests, elsewhere.received_requests().await.unwrap().len()), (4, 0));
    // Nobody listens; then it is mended.
    let nowhere = watcher(&world, Some("http://127.0.0.1:1/services/SECRET".to_owned()));
    assert_eq!(notices::deliver(&nowhere).await.unwrap(), 0);
    world.clock.advance_ms(31 * MINUTE_MS);
    slack.reset().await;
    Mock::given(method("POST")).respond_with(ResponseTemplate::new(200)).mount(&slack).await;
    assert_eq!(notices::deliver(&context).await.unwrap(), 1);
    assert_eq!(notices::deliver(&context).await.unwrap(), 0);
    assert_eq!(posted(&slack).await.len(), 1);

    // A webhook that is away for longer than a day does not get old news.
    world.clock.advance_ms(24 * HOUR_MS);
    assert_eq!(heard(&context).await, [(Cause::DeadLetters, Tell::Reminder)]);
    world.clock.advance_ms(25 * HOUR_MS);
    assert_eq!(notices::deliver(&context).await.unwrap(), 0);
    assert_eq!(posted(&slack).await.len(), 1);

    for url in ["http://127.0.0.1:1/SECRET", &format!("{}/SECRET", elsewhere.uri())] {
        let webhook = Webhook::new(http_client(), SecretString::from(url.to_owned()));
        let error = webhook.post("text").await.unwrap_err();
        assert!(!format!("{error} {error:?} {webhook:?}").contains("SECRET"), "{error:?}");
    }
}

/// The webhook accepts connections and never answers; the service works on, and ends in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_webhook_holds_nothing_up() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut world = World::prepare(Setup::sqlite().standing_still()).await;
    let url = format!("http://{}/services/SECRET", silent.local_addr().unwrap());
    world.config.http.ops_webhook_url = Some(SecretString::from(url));
    world.serve().await;
    world.publish_raw("bookings.session.x.scheduled", &[], b"no json".to_vec()).await;
    world.folded().await;
    let mut held = None;
    eventually("a notice is being posted", async || {
        world.clock.advance_ms(MINUTE_MS / 100);
        if let Ok(accepted) = tokio::time::timeout(Duration::from_millis(10), silent.accept()).await {
            held = Some(accepted.unwrap());
        }
        held.is_some()
    })
    .await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    world.stop().await;
    drop(held);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_ends_by_itself_is_told_before() {
    let world = World::prepare(Setup::sqlite().standing_still().teachers(2)).await;
    let context = watcher(&world, None);
    let version = world.store.credential(&teacher_id(0)).await.unwrap().unwrap().token_version;
    let RefreshTurn::Mine { turn } =
        world.store.begin_refresh(&teacher_id(0), version, world.clock.now(), 1_000).await.unwrap()
    else {
        panic!("the turn is free")
    };
    let refreshed = RefreshedToken {
        access_token: vec![1],
        access_expires_at: world.clock.now().plus(HOUR_MS),
        refresh_token: None,
        scopes: None,
        refresh_expires_at: Some(world.clock.now().plus(7 * 24 * HOUR_MS)),
        touch_at: world.clock.now().plus(500 * HOUR_MS),
    };
    let now = world.clock.now();
    assert!(world.store.finish_refresh(&teacher_id(0), version, turn, &refreshed, now).await.unwrap());
    assert_eq!(heard(&context).await, []);
    world.clock.advance_ms(4 * 24 * HOUR_MS);
    let told = notices::watch(&context).await.unwrap();
    assert_eq!((told.len(), told[0].0), (1, Cause::GrantsEnding));
    assert!(told[0].2.contains("tch_0 at 2026-11-29 20:15 UTC"), "{told:?}");
    // A new consent ends it.
    world.connect_teacher(0).await;
    world.clock.advance_ms(MINUTE_MS);
    assert_eq!(heard(&context).await, [(Cause::GrantsEnding, Tell::Resolved)]);
}
