//! Teachers whose grant is missing, dead or too small: an error that says what to do, and no more than that.

use meet_projector::cli::credential::seed;
use meet_projector::credential::KeyRing;
use meet_projector::fake::{DEFAULT_SCOPES, NewAccount, TokenMode};
use meet_projector::store::TokenStatus;
use serde_json::{Value, json};

use crate::support::service::{HOUR_MS, Setup, Then as _, World, teacher_id};

stories! {
    on both databases:
        a_teacher_connects_late,
        a_grant_dies_and_is_renewed;
    on sqlite:
        a_scope_is_missing,
        an_administrator_blocks;
}

/// `credential seed` for teacher `n` with that refresh token.
async fn seed_teacher(world: &World, n: usize, refresh_token: &str) {
    let teacher = &world.google.teachers[n];
    let line = json!({
        "teacherId": teacher_id(n).as_str(), "email": teacher.email, "googleSub": teacher.sub,
        "refreshToken": refresh_token,
    });
    let file = world.path("seed.jsonl");
    std::fs::write(&file, line.to_string()).unwrap();
    let google = world.config.google.as_ref().unwrap();
    let keys = KeyRing::new(&google.encryption_key, &[]).unwrap();
    seed(&world.store, &keys, &google.scopes, &file, world.clock.now()).await.unwrap();
}

async fn a_teacher_connects_late(setup: Setup) {
    let world = World::start(setup.connected(1)).await;
    world.publish(&world.lesson("s1", 1)).await;
    let document = world.error("s1", "TEACHER_NOT_CONNECTED").await;
    assert_eq!(document["error"]["action"], "connect_teacher");
    assert_eq!(document["error"]["retryable"], false);
    assert_eq!(document["meetLink"], Value::Null);
    assert_eq!(world.fake().recorded().len(), 0, "nobody is asked on behalf of somebody who has not consented");

    seed_teacher(&world, 1, &world.google.teachers[1].refresh_token).await;
    world.ready("s1", 1).await;
}

async fn a_grant_dies_and_is_renewed(setup: Setup) {
    let world = World::start(setup).await;
    let first = world.lesson("first", 0);
    world.publish(&first).await;
    let before = world.ready("first", 1).await;

    world.fake().revoke_grant(world.email(0));
    world.publish(&world.lesson("second", 0)).await;
    world.publish(&world.lesson("other", 1)).await;
    let document = world.error("second", "RECONNECT_REQUIRED").await;
    assert_eq!(document["error"]["action"], "reconnect_teacher");
    assert_eq!(document["error"]["retryable"], false);
    world.ready("other", 1).await;
    assert_eq!(world.document("first").await, Some(before.clone()), "its link works all the same");
    assert_eq!(status(&world, 0).await, TokenStatus::ReconnectRequired);
    world.publish(&first.moved(HOUR_MS)).await;
    let moved = world.error("first", "RECONNECT_REQUIRED").await;
    assert_eq!(moved["meetLink"], before["meetLink"]);

    let account = &world.google.teachers[0];
    world.fake().add_account(&NewAccount::new(&account.email).connected("1//renewed"));
    seed_teacher(&world, 0, "1//renewed").await;
    world.ready("second", 1).await;
    let after = world.ready("first", 2).await;
    assert_eq!(after["meetEventId"], before["meetEventId"]);
    world.assert_google_was_never_wrong();
}

async fn a_scope_is_missing(setup: Setup) {
    let world = World::start(setup).await;
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::MissingScope);
    world.publish(&world.lesson("s1", 0)).await;
    let document = world.error("s1", "SCOPE_MISSING").await;
    assert_eq!(document["error"]["action"], "reconnect_teacher");
    assert_eq!(status(&world, 0).await, TokenStatus::ScopeMissing);
    assert_eq!(world.calls("s1"), [], "a token without the scope is not tried");

    // The teacher consents again and ticks the box.
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::Normal);
    let scopes = DEFAULT_SCOPES.map(str::to_owned).to_vec();
    let account = NewAccount::new(world.email(0)).connected("1//with-calendar");
    world.fake().add_account(&NewAccount { scopes, ..account });
    seed_teacher(&world, 0, "1//with-calendar").await;
    world.ready("s1", 1).await;
}

async fn an_administrator_blocks(setup: Setup) {
    let world = World::start(setup).await;
    world.fake().configure_account(world.email(0), |account| account.tokens = TokenMode::AdminPolicyEnforced);
    world.publish(&world.lesson("s1", 0)).await;
    let document = world.error("s1", "ADMIN_BLOCKED").await;
    assert_eq!(document["error"]["action"], "contact_admin");
    assert_eq!(status(&world, 0).await, TokenStatus::AdminBlocked);
}

async fn status(world: &World, teacher: usize) -> TokenStatus {
    world.store.credential(&teacher_id(teacher)).await.unwrap().unwrap().status
}
