//! Access tokens: one refresh at a time, the newest grant decides, and trouble of our own touches nobody.

use std::sync::Arc;

use futures_util::future::join_all;
use meet_projector::clock::Clock;
use meet_projector::credential::{KeyRing, Slot};
use meet_projector::google::access::{AccessError, AccessTokens};
use meet_projector::google::calendar::http_client;
use meet_projector::google::error::Class;
use meet_projector::google::oauth::TokenEndpoint;
use meet_projector::model::{GoogleSub, TeacherId, UnixMillis};
use meet_projector::store::{Credential, DatabaseUrl, NewCredential, Store, TokenStatus};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tempfile::TempDir;
use wiremock::matchers::{any, body_string_contains};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use super::fixtures::{MARKER, assert_discreet};

const SCOPE: &str = "https://www.googleapis.com/auth/calendar.events";
const T0: UnixMillis = UnixMillis::new(1_790_000_000_000);
const HOUR_MS: i64 = 3_600_000;

/// A database with one connected teacher, and a token endpoint.
struct World {
    google: MockServer,
    store: Store,
    keys: Arc<KeyRing>,
    clock: Clock,
    teacher: TeacherId,
    _folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().join("meet.db").display());
        let store = Store::open(&DatabaseUrl(url.into())).await.unwrap();
        store.migrate().await.unwrap();
        let world = Self {
            google: MockServer::start().await,
            store,
            keys: Arc::new(KeyRing::new(&SecretString::from("42".repeat(32)), &[]).unwrap()),
            clock: Clock::fixed(T0),
            teacher: TeacherId::parse("tch_42").unwrap(),
            _folder: folder,
        };
        world.connect("1001", "old").await;
        world
    }

    /// Stores a grant, as a finished consent does.
    async fn connect(&self, account: &str, refresh_token: &str) {
        let account = GoogleSub(account.into());
        let token = SecretString::from(format!("1//{MARKER}-{refresh_token}"));
        let new = NewCredential {
            teacher: self.teacher.clone(),
            refresh_token: self.keys.seal(Slot::refresh_token(&self.teacher, &account), &token).unwrap(),
            account,
            email: None,
            calendar: "primary".into(),
            scopes: SCOPE.into(),
        };
        self.store.put_credential(&new, self.clock.now()).await.unwrap();
    }

    /// A replica: it has its own memory and shares the database.
    fn replica(&self) -> AccessTokens {
        let token_uri = format!("{}/token", self.google.uri()).parse().unwrap();
        let endpoint = TokenEndpoint::new(http_client(), "client", &SecretString::from("GOCSPX-MARKER"), token_uri);
        AccessTokens::new(self.store.clone(), endpoint, Arc::clone(&self.keys), self.clock.clone())
    }

    async fn credential(&self) -> Credential {
        self.store.credential(&self.teacher).await.unwrap().unwrap()
    }

    async fn refreshes(&self) -> usize {
        self.google.received_requests().await.unwrap().len()
    }

    async fn answer(&self, status: u16, body: Value) {
        self.google.reset().await;
        Mock::given(any()).respond_with(ResponseTemplate::new(status).set_body_json(body)).mount(&self.google).await;
    }

    async fn answer_tokens(&self) {
        self.google.reset().await;
        Mock::given(any()).respond_with(CountingTokens::default()).mount(&self.google).await;
    }
}

/// Access tokens `ya29.MARKER-1`, `…-2`, each for an hour.
#[derive(Default)]
struct CountingTokens(std::sync::atomic::AtomicUsize);

impl Respond for CountingTokens {
    fn respond(&self, _: &Request) -> ResponseTemplate {
        let n = self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        ResponseTemplate::new(200).set_body_json(token(&format!("ya29.{MARKER}-{n}")))
    }
}

fn token(text: &str) -> Value {
    json!({"access_token": text, "expires_in": 3600, "token_type": "Bearer", "scope": SCOPE})
}

fn text(token: &Result<SecretString, AccessError>) -> &str {
    token.as_ref().map(ExposeSecret::expose_secret).expect("a token")
}

fn class(token: Result<SecretString, AccessError>) -> Class {
    let error = token.expect_err("no token").into_google();
    assert_discreet(&error);
    error.class
}

#[tokio::test]
async fn one_refresh_serves_many_tasks_and_a_restart() {
    let world = World::new().await;
    world.answer_tokens().await;
    let (one, credential) = (world.replica(), world.credential().await);
    let tokens = join_all((0..50).map(|_| one.token(&credential, None))).await;
    assert!(tokens.iter().all(|token| text(token) == "ya29.MARKER-1"));
    assert_eq!(world.refreshes().await, 1);
    // A process that starts now finds it in the database, sealed.
    let stored = world.credential().await;
    assert!(!String::from_utf8_lossy(stored.access_token.as_deref().unwrap()).contains(MARKER));
    assert_eq!(text(&world.replica().token(&stored, None).await), "ya29.MARKER-1");
    assert_eq!(world.refreshes().await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_refresh_serves_many_replicas() {
    let world = World::new().await;
    world.answer_tokens().await;
    let credential = world.credential().await;
    let replicas: Vec<AccessTokens> = (0..8).map(|_| world.replica()).collect();
    let tokens = join_all(replicas.iter().map(|replica| replica.token(&credential, None))).await;
    assert!(tokens.iter().all(|token| text(token) == "ya29.MARKER-1"));
    assert_eq!(world.refreshes().await, 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends_and_when_google_rejects_it() {
    let world = World::new().await;
    world.answer_tokens().await;
    let (replica, credential) = (world.replica(), world.credential().await);
    let first = replica.token(&credential, None).await;
    world.clock.advance_ms(HOUR_MS - 5 * 60_000 - 1);
    assert_eq!(text(&replica.token(&credential, None).await), text(&first));
    world.clock.advance_ms(1);
    let second = replica.token(&credential, None).await;
    assert_eq!(text(&second), "ya29.MARKER-2");

    // 401: every task that met it asks for another, and one refresh serves them all.
    let rejected = second.unwrap();
    let tokens = join_all((0..10).map(|_| replica.token(&credential, Some(&rejected)))).await;
    assert!(tokens.iter().all(|token| text(token) == "ya29.MARKER-3"));
    assert_eq!(world.refreshes().await, 3);
}

#[tokio::test]
async fn a_dead_grant_is_marked_once_and_asked_for_no_more() {
    for (status, body, expected, marked) in [
        (400, json!({"error": "invalid_grant"}), Class::ReconnectRequired, TokenStatus::ReconnectRequired),
        (400, json!({"error": "admin_policy_enforced"}), Class::AdminBlocked, TokenStatus::AdminBlocked),
        (
            200,
            json!({"access_token": "ya29.MARKER", "token_type": "Bearer", "scope": "openid"}),
            Class::ScopeMissing,
            TokenStatus::ScopeMissing,
        ),
    ] {
        let world = World::new().await;
        world.answer(status, body).await;
        let (replica, credential) = (world.replica(), world.credential().await);
        assert_eq!(class(replica.token(&credential, None).await), expected);
        let stored = world.credential().await;
        assert_eq!(stored.status, marked);
        assert!(!stored.last_error.unwrap().contains(MARKER));
        assert_eq!(class(replica.token(&credential, None).await), expected);
        assert_eq!(world.refreshes().await, 1);
        // A new consent is the cure.
        world.connect("1001", "new").await;
        world.answer_tokens().await;
        assert_eq!(text(&replica.token(&credential, None).await), "ya29.MARKER-1");
    }
}

/// Google refuses the old grant after, in the meantime, the teacher has connected again.
struct Reconnects {
    connected: std::sync::mpsc::Receiver<()>,
    asked: tokio::sync::mpsc::UnboundedSender<()>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_a_replaced_grant_says_nothing_about_the_new_one() {
    let world = World::new().await;
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    let (connect, connected) = std::sync::mpsc::channel();
    let reconnects = std::sync::Mutex::new(Reconnects { connected, asked });
    let refuse = move |_: &Request| {
        let reconnects = reconnects.lock().unwrap();
        reconnects.asked.send(()).unwrap();
        reconnects.connected.recv().unwrap();
        ResponseTemplate::new(400).set_body_json(json!({"error": "invalid_grant"}))
    };
    Mock::given(body_string_contains("old")).respond_with(refuse).mount(&world.google).await;
    let fresh = ResponseTemplate::new(200).set_body_json(token("ya29.MARKER-new"));
    Mock::given(body_string_contains("new")).respond_with(fresh).mount(&world.google).await;

    let (replica, credential) = (world.replica(), world.credential().await);
    let asking = replica.token(&credential, None);
    let reconnecting = async {
        was_asked.recv().await.unwrap();
        world.connect("1001", "new").await;
        connect.send(()).unwrap();
    };
    let (token, ()) = tokio::join!(asking, reconnecting);
    assert_eq!(text(&token), "ya29.MARKER-new");
    assert_eq!(world.credential().await.status, TokenStatus::Connected);
}

#[tokio::test]
async fn a_token_of_another_account_is_never_given_out() {
    let world = World::new().await;
    world.answer_tokens().await;
    let (replica, planned_for) = (world.replica(), world.credential().await);
    world.connect("2002", "other").await;
    text(&replica.token(&world.credential().await, None).await);
    assert_eq!(class(replica.token(&planned_for, None).await), Class::Transient);
}

#[tokio::test]
async fn outages_and_our_own_mistakes_leave_the_grant_alone() {
    let world = World::new().await;
    let (replica, credential) = (world.replica(), world.credential().await);
    world.answer(503, json!({})).await;
    assert_eq!(class(replica.token(&credential, None).await), Class::Transient);
    assert_eq!(class(replica.token(&credential, None).await), Class::Transient);
    assert_eq!(world.refreshes().await, 2, "a failed turn is given back at once");

    world.answer(401, json!({"error": "invalid_client"})).await;
    assert_eq!(class(replica.token(&credential, None).await), Class::Misconfigured);
    assert_eq!(class(replica.token(&credential, None).await), Class::Misconfigured);
    assert_eq!(world.refreshes().await, 1, "the breaker is open");
    assert!(replica.breaker().open().is_some());
    assert_eq!(world.credential().await.status, TokenStatus::Connected);

    // One probe a minute; the first that is answered closes it.
    world.clock.advance_ms(60_000);
    world.answer_tokens().await;
    assert_eq!(text(&replica.token(&credential, None).await), "ya29.MARKER-1");
    assert!(replica.breaker().open().is_none());
}

#[tokio::test]
async fn a_turn_that_was_never_finished_ends_by_itself() {
    let world = World::new().await;
    world.answer_tokens().await;
    let (replica, credential) = (world.replica(), world.credential().await);
    // A replica that died while it held the turn.
    world.store.begin_refresh(&world.teacher, credential.token_version, T0, 20_000).await.unwrap();
    let (token, ()) = tokio::join!(replica.token(&credential, None), async { world.clock.advance_ms(20_000) });
    assert_eq!(text(&token), "ya29.MARKER-1");
}

#[tokio::test]
async fn a_missing_key_is_named_and_blames_nobody() {
    let world = World::new().await;
    let other_keys = Arc::new(KeyRing::new(&SecretString::from("24".repeat(32)), &[]).unwrap());
    let world = World { keys: other_keys, ..world };
    let error = world.replica().token(&world.credential().await, None).await.unwrap_err().into_google();
    assert_eq!(error.class, Class::Misconfigured);
    assert!(error.message.contains("GOOGLE_ENCRYPTION_KEY"), "{error}");
    assert_eq!(world.refreshes().await, 0);
    assert_eq!(world.credential().await.status, TokenStatus::Connected);
}

#[tokio::test]
async fn a_refresh_token_that_google_replaces_is_kept() {
    let world = World::new().await;
    let mut body = token("ya29.MARKER-1");
    body["refresh_token"] = json!("1//MARKER-rotated");
    world.answer(200, body).await;
    world.replica().token(&world.credential().await, None).await.unwrap();
    let stored = world.credential().await;
    let slot = Slot::refresh_token(&world.teacher, &stored.account);
    let kept = world.keys.open(slot, stored.refresh_token.as_deref().unwrap()).unwrap();
    assert_eq!(kept.expose_secret(), "1//MARKER-rotated");
}

#[tokio::test]
async fn a_grant_that_ends_by_itself_says_when() {
    let world = World::new().await;
    let ends_at = async || {
        let connection = world.store.connection(&world.teacher, world.clock.now()).await.unwrap().unwrap();
        connection.grant.unwrap().ends_at
    };
    let mut body = token("ya29.MARKER-1");
    body["refresh_token_expires_in"] = json!(604_800);
    world.answer(200, body).await;
    let replica = world.replica();
    replica.token(&world.credential().await, None).await.unwrap();
    assert_eq!(ends_at().await, Some(T0.plus(168 * HOUR_MS)));
    // A later answer that is silent about it takes nothing back.
    world.clock.advance_ms(HOUR_MS);
    world.answer_tokens().await;
    replica.token(&world.credential().await, None).await.unwrap();
    assert_eq!(ends_at().await, Some(T0.plus(168 * HOUR_MS)));
    // What no clock can show is cut, and a new consent starts over.
    world.clock.advance_ms(HOUR_MS);
    let mut body = token("ya29.MARKER-3");
    body["refresh_token_expires_in"] = json!(u64::MAX);
    world.answer(200, body).await;
    replica.token(&world.credential().await, None).await.unwrap();
    assert!(ends_at().await.is_some_and(|at| at > T0.plus(876_000 * HOUR_MS)));
    world.connect("1001", "new").await;
    assert_eq!(ends_at().await, None);
}
