//! Grants that nobody uses, tokens that will be needed soon, and what the token endpoint's answers do to a status.

use std::collections::BTreeMap;
use std::sync::Arc;

use meet_projector::credential::KeyRing;
use meet_projector::fake::{Operation, TokenMode};
use meet_projector::google::access::AccessTokens;
use meet_projector::google::calendar::http_client;
use meet_projector::google::oauth::TokenEndpoint;
use meet_projector::refresh::{self, RefreshContext, Round};
use meet_projector::retry::Jitter;
use meet_projector::store::TokenStatus;
use tokio_util::sync::CancellationToken;

use crate::support::service::{HOUR_MS, Setup, World, eventually, teacher_id};

const DAY_MS: i64 = 24 * HOUR_MS;

/// The refresh loop of one more process.
pub fn refresher(world: &World) -> RefreshContext {
    let google = world.config.google.as_ref().unwrap();
    let endpoint =
        TokenEndpoint::new(http_client(), &google.client_id, &google.client_secret, google.token_uri.clone());
    let keys = Arc::new(KeyRing::new(&google.encryption_key, &google.encryption_keys_old).unwrap());
    RefreshContext {
        store: world.store.clone(),
        access: Arc::new(AccessTokens::new(world.store.clone(), endpoint, keys, world.clock.clone())),
        clock: world.clock.clone(),
        jitter: Jitter::seeded(7),
    }
}

async fn round(context: &RefreshContext) -> Round {
    refresh::round(context, &CancellationToken::new()).await.unwrap()
}

fn refreshes(world: &World) -> u64 {
    world.fake().counters().requests_of(Operation::Refresh)
}

async fn status(world: &World, teacher: usize) -> TokenStatus {
    world.store.credential(&teacher_id(teacher)).await.unwrap().unwrap().status
}

async fn idle_grants_are_used_every_month(setup: Setup) {
    let teachers = 5;
    let world = World::prepare(setup.standing_still().teachers(teachers)).await;
    let context = refresher(&world);
    assert_eq!(round(&context).await, Round::default(), "nobody has work, and all have connected just now");
    let begun = world.clock.now();
    for _ in 0..365 {
        world.clock.advance_ms(DAY_MS);
        round(&context).await;
    }
    let mut uses: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for call in world.fake().recorded() {
        assert_eq!((call.operation, call.status), (Operation::Refresh, 200));
        uses.entry(call.account.unwrap().to_string()).or_default().push((call.at_ms - begun.get()) / DAY_MS);
    }
    assert_eq!(uses.len(), teachers);
    for (account, days) in &uses {
        assert!(days[0] <= 31 && 365 - days.last().unwrap() <= 31, "{account}: {days:?}");
        assert!(days.windows(2).all(|pair| (21..=29).contains(&(pair[1] - pair[0]))), "{account}: {days:?}");
    }
    // They began on the same day; a year later they are spread.
    let last: std::collections::BTreeSet<_> = uses.values().map(|days| *days.last().unwrap()).collect();
    assert!(last.len() > 1, "all on the same day still: {uses:?}");
}

#[tokio::test]
async fn idle_grants_are_used_every_month_on_sqlite() {
    idle_grants_are_used_every_month(Setup::sqlite()).await;
}

#[tokio::test]
async fn idle_grants_are_used_every_month_on_postgres() {
    idle_grants_are_used_every_month(Setup::postgres()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_there_before_the_work_is() {
    let mut world = World::start(Setup::sqlite().standing_still()).await;
    world.publish(&world.lesson("s1", 0)).await;
    world.ready("s1", 1).await;
    world.until_settled().await;
    world.stop().await;
    let due = world.store.next_due().await.unwrap().expect("a settled event is looked at again");
    // A minute after the write there is a look, for which the token is good.
    world.clock.set(due);
    world.serve().await;
    eventually("the next look is far", async || {
        world.store.next_due().await.unwrap().unwrap().since(due) > 2 * HOUR_MS
    })
    .await;
    world.stop().await;

    let (context, before) = (refresher(&world), refreshes(&world));
    let due = world.store.next_due().await.unwrap().unwrap();
    world.clock.set(due.plus(-11 * 60_000));
    assert_eq!(round(&context).await, Round::default(), "the work is not near yet");
    world.clock.set(due.plus(-9 * 60_000));
    assert_eq!(round(&context).await, Round { found: 1, renewed: 1, failed: 0 });
    assert_eq!(round(&context).await, Round::default());
    world.clock.set(due);
    world.serve().await;
    eventually("the look was made", async || world.store.next_due().await.unwrap().is_some_and(|next| next > due))
        .await;
    assert_eq!(refreshes(&world), before + 1, "the work found its token");
    world.stop().await;
}

#[tokio::test]
async fn what_the_token_endpoint_says_decides_the_status() {
    for (mode, expected) in [
        (TokenMode::InvalidGrant, TokenStatus::ReconnectRequired),
        (TokenMode::InvalidRapt, TokenStatus::ReconnectRequired),
        (TokenMode::MissingScope, TokenStatus::ScopeMissing),
        (TokenMode::AdminPolicyEnforced, TokenStatus::AdminBlocked),
    ] {
        let world = World::prepare(Setup::sqlite().standing_still()).await;
        let context = refresher(&world);
        world.clock.advance_ms(29 * DAY_MS);
        world.fake().configure_account(world.email(0), |account| account.tokens = mode);
        assert_eq!(round(&context).await, Round { found: 2, renewed: 1, failed: 1 }, "{mode:?}");
        assert_eq!((status(&world, 0).await, status(&world, 1).await), (expected, TokenStatus::Connected), "{mode:?}");
        let connection = world.store.connection(&teacher_id(0), world.clock.now()).await.unwrap().unwrap();
        assert!(connection.grant.unwrap().last_error.is_some());
        assert_eq!(round(&context).await, Round::default(), "a dead grant is asked for no more");
    }
}

#[tokio::test]
async fn an_outage_keeps_the_grant_and_is_met_with_growing_pauses() {
    let world = World::prepare(Setup::sqlite().standing_still().teachers(1)).await;
    let context = refresher(&world);
    world.clock.advance_ms(29 * DAY_MS);
    world.fake().configure(|settings| settings.tokens = TokenMode::Unavailable);
    let begun = world.clock.now();
    let mut asked_at = Vec::new();
    for _ in 0..12 * 60 {
        let found = round(&context).await;
        assert_eq!((found.found, found.renewed), (found.failed, 0));
        if found.found > 0 {
            asked_at.push(world.clock.now().since(begun) / 60_000);
        }
        world.clock.advance_ms(60_000);
    }
    assert_eq!(status(&world, 0).await, TokenStatus::Connected);
    let pauses: Vec<_> = asked_at.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses[0] <= 2 && pauses.is_sorted_by(|a, b| *a <= b + 16) && pauses.iter().all(|p| *p <= 76),
        "{pauses:?}"
    );
    assert!((10..=22).contains(&pauses.len()), "a dozen hours need no more requests: {asked_at:?}");

    world.fake().configure(|settings| settings.tokens = TokenMode::Normal);
    world.clock.advance_ms(2 * HOUR_MS);
    assert_eq!(round(&context).await, Round { found: 1, renewed: 1, failed: 0 });
    assert_eq!(round(&context).await, Round::default());
}

#[tokio::test]
async fn our_own_mistake_blames_no_teacher_and_is_probed_once_a_minute() {
    let world = World::prepare(Setup::sqlite().standing_still().teachers(20)).await;
    let context = refresher(&world);
    world.clock.advance_ms(29 * DAY_MS);
    world.fake().configure(|settings| settings.tokens = TokenMode::InvalidClient);
    round(&context).await;
    // What was under way when the first answer came, and no more.
    assert!(refreshes(&world) <= 4, "{}", refreshes(&world));
    assert!(context.access.breaker().open().is_some());
    let before = refreshes(&world);
    for _ in 0..10 {
        world.clock.advance_ms(60_000);
        round(&context).await;
        round(&context).await;
    }
    assert!(refreshes(&world) <= before + 10, "one probe a minute");
    for teacher in 0..20 {
        assert_eq!(status(&world, teacher).await, TokenStatus::Connected);
    }
    world.fake().configure(|settings| settings.tokens = TokenMode::Normal);
    world.clock.advance_ms(2 * HOUR_MS);
    while round(&context).await.found > 0 {}
    assert!(context.access.breaker().open().is_none());
    for teacher in 0..20 {
        let grant = world.store.credential(&teacher_id(teacher)).await.unwrap().unwrap();
        assert!(grant.last_refresh_at.is_some() && grant.last_error.is_none(), "{grant:?}");
    }
}
