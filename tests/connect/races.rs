//! Two things at once.

use meet_projector::fake::{Fault, Operation, Rule, TokenMode};
use meet_projector::store::TokenStatus;
use reqwest::StatusCode;

use super::fixture::School;
use crate::support::service::{Setup, eventually};

stories! {
    on both databases:
        two_callbacks_exchange_once,
        a_connect_beats_a_refresh,
        a_disconnect_waits_for_the_write_under_way;
}

async fn two_callbacks_exchange_once(setup: Setup) {
    let school = School::open(setup.connected(0)).await;
    school.world.fake().configure(|fake| fake.token_latency_ms = 50);
    for round in 1..=5 {
        let visitor = school.visitor();
        let callback = visitor.consent(&visitor.start(0, "").await, &[("auto", "allow")]).await;
        let all = futures_util::future::join_all((0..4).map(|_| visitor.go(callback.as_str(), None))).await;
        let mut outcomes: Vec<_> = all.iter().map(super::fixture::Landing::outcome).collect();
        outcomes.sort();
        assert_eq!(outcomes, ["STATE_USED", "STATE_USED", "STATE_USED", "connected"]);
        assert_eq!(school.requests(Operation::Exchange), round);
    }
}

/// A refresh of the old grant is under way when the new one comes: whatever Google says to it counts no more.
async fn a_connect_beats_a_refresh(setup: Setup) {
    for refused in [false, true] {
        let school = School::open(setup.clone()).await;
        let world = &school.world;
        let fault = if refused { Fault::refuse(400, "invalid_grant") } else { Fault::default() };
        world.fake().add_fault(Rule::once(Operation::Refresh, Fault { delay_ms: 700, ..fault }));
        world.publish(&world.lesson("s1", 0)).await;
        eventually("a refresh is under way", async || world.fake().faults().iter().any(|rule| rule.hits == 1)).await;
        assert_eq!(school.visitor().connect(0, "", &[("auto", "allow")]).await.outcome(), "connected");
        let new = school.credential(0).await.unwrap();
        eventually("the refresh is over", async || school.requests(Operation::Refresh) == 1).await;
        world.ready("s1", 1).await;
        let kept = school.credential(0).await.unwrap();
        assert_eq!(
            (kept.status, &kept.refresh_token),
            (TokenStatus::Connected, &new.refresh_token),
            "refused: {refused}"
        );
        assert_eq!(kept.last_error, None);
    }
}

async fn a_disconnect_waits_for_the_write_under_way(setup: Setup) {
    let school = School::open(setup).await;
    let world = &school.world;
    world.fake().add_fault(Rule::once(Operation::Insert, Fault::slow(600)));
    world.publish(&world.lesson("s1", 0)).await;
    eventually("an insert is under way", async || world.fake().faults().iter().any(|rule| rule.hits == 1)).await;
    let (status, json) = school.disconnect(0, "").await;
    assert_eq!((status, json["revocation"].as_str()), (StatusCode::OK, Some("REVOKED")), "{json}");
    assert_eq!(json["eventsRemaining"], 1, "what the write made is counted: {json}");
    let calls: Vec<_> = world.fake().recorded().iter().map(|call| call.operation).collect();
    let revoked = calls.iter().position(|call| *call == Operation::Revoke).unwrap();
    let inserted = calls.iter().position(|call| *call == Operation::Insert).unwrap();
    assert!(inserted < revoked, "{calls:?}");
    let document = world.error("s1", "TEACHER_NOT_CONNECTED").await;
    assert!(document["meetEventId"].is_string(), "its result was recorded: {document}");

    // The same with their removal: what the write makes is removed, too.
    assert_eq!(school.visitor().connect(1, "", &[("auto", "allow")]).await.outcome(), "connected");
    world.fake().add_fault(Rule::once(Operation::Insert, Fault::slow(600)));
    world.publish(&world.lesson("s2", 1)).await;
    eventually("an insert is under way", async || {
        world.fake().faults().iter().any(|rule| rule.id == 2 && rule.hits == 1)
    })
    .await;
    school.disconnect(1, "?removeEvents=true").await;
    eventually("the disconnect is done", async || {
        school.disconnect(1, "?removeEvents=true").await.1["state"] == "DONE"
    })
    .await;
    world.error("s2", "TEACHER_NOT_CONNECTED").await;
    let left = world.fake().accounts().iter().find(|account| account.email == world.email(1)).unwrap().live_events;
    assert_eq!(left, 0);
    school.tokens(1, TokenMode::Normal);
    world.assert_google_was_never_wrong();
}
