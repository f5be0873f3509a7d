//! Grants, refreshes, cool-downs.

use meet_projector::store::{RefreshTurn, RefreshedToken, TokenStatus};

use super::fixtures::*;

const HOUR_MS: i64 = 3_600_000;

pub fn refreshed() -> RefreshedToken {
    RefreshedToken {
        access_token: vec![7, 0, 7],
        access_expires_at: NOW.plus(HOUR_MS),
        refresh_token: None,
        scopes: None,
        refresh_expires_at: None,
        touch_at: NOW.plus(500 * HOUR_MS),
    }
}

pub async fn a_grant_is_stored_replaced_and_wakes_its_rows(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert!(store.credential(&teacher("t")).await.unwrap().is_none());
    store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    let first = store.credential(&teacher("t")).await.unwrap().unwrap();
    assert_eq!((first.account.0.as_str(), first.status, first.token_version), ("1", TokenStatus::Connected, 1));
    assert_eq!(first.refresh_token, Some(vec![0, 1, 254, 255]));
    assert_eq!((first.connected_at, first.email.as_deref()), (NOW, Some("t@example.com")));
    assert_eq!((first.access_token, first.last_refresh_at, first.last_error), (None, None, None));

    assert!(store.set_token_status(&teacher("t"), 1, TokenStatus::ScopeMissing, "no calendar", NOW).await.unwrap());
    assert!(!store.set_token_status(&teacher("t"), 1, TokenStatus::AdminBlocked, "late", NOW).await.unwrap());
    let changed = store.credential(&teacher("t")).await.unwrap().unwrap();
    assert_eq!((changed.status, changed.token_version), (TokenStatus::ScopeMissing, 2));
    assert_eq!(changed.last_error.as_deref(), Some("no calendar"));
    store.cool_down(&teacher("t"), NOW).await.unwrap();

    // The same account again: connected since then, and what Google limits stays limited.
    store.put_credential(&grant("t", "1"), NOW.plus(5)).await.unwrap();
    let again = store.credential(&teacher("t")).await.unwrap().unwrap();
    assert_eq!((again.status, again.token_version, again.connected_at), (TokenStatus::Connected, 3, NOW));
    assert_eq!((again.cool_down_until, again.last_error), (Some(NOW.plus(HOUR_MS)), None));
    // Another account has nothing to do with it.
    store.put_credential(&grant("t", "2"), NOW.plus(6)).await.unwrap();
    let other = store.credential(&teacher("t")).await.unwrap().unwrap();
    assert_eq!((other.account.0.as_str(), other.token_version, other.connected_at), ("2", 4, NOW.plus(6)));
    assert_eq!((other.cool_down_until, other.cool_down_step), (None, 0));

    store.put_credential(&grant("s", "3"), NOW).await.unwrap();
    let all = store.credentials().await.unwrap();
    assert_eq!(all.iter().map(|grant| grant.teacher.as_str()).collect::<Vec<_>>(), ["s", "t"]);
}

pub async fn a_refresh_is_for_one(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let t = teacher("t");
    assert!(matches!(store.begin_refresh(&t, 1, NOW, 1000).await.unwrap(), RefreshTurn::Moved));
    store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    assert!(matches!(store.begin_refresh(&t, 9, NOW, 1000).await.unwrap(), RefreshTurn::Moved));
    let RefreshTurn::Mine { turn: lost } = store.begin_refresh(&t, 1, NOW, 1000).await.unwrap() else {
        panic!("the turn is free");
    };
    let RefreshTurn::Theirs { until } = store.begin_refresh(&t, 1, NOW.plus(999), 1000).await.unwrap() else {
        panic!("the turn is taken");
    };
    assert_eq!(until, NOW.plus(1000));
    // It ends by itself, and then the first one comes too late.
    let RefreshTurn::Mine { turn } = store.begin_refresh(&t, 1, NOW.plus(1000), 1000).await.unwrap() else {
        panic!("the turn has ended");
    };
    assert!(!store.finish_refresh(&t, 1, lost, &refreshed(), NOW).await.unwrap());
    assert!(!store.fail_refresh(&t, 1, lost, Some(TokenStatus::ReconnectRequired), "late", NOW).await.unwrap());
    assert!(store.finish_refresh(&t, 1, turn, &refreshed(), NOW.plus(1500)).await.unwrap());
    assert!(!store.finish_refresh(&t, 1, turn, &refreshed(), NOW).await.unwrap());
    let grant = store.credential(&t).await.unwrap().unwrap();
    assert_eq!((grant.token_version, grant.access_token), (2, Some(vec![7, 0, 7])));
    assert_eq!((grant.access_expires_at, grant.last_refresh_at), (Some(NOW.plus(HOUR_MS)), Some(NOW.plus(1500))));
    assert_eq!((grant.refresh_token, grant.scopes.as_str()), (Some(vec![0, 1, 254, 255]), "openid email"));

    let RefreshTurn::Mine { turn } = store.begin_refresh(&t, 2, NOW.plus(1500), 1000).await.unwrap() else {
        panic!("a finished turn is free");
    };
    let rotated = RefreshedToken { refresh_token: Some(vec![9]), scopes: Some("openid".into()), ..refreshed() };
    assert!(store.finish_refresh(&t, 2, turn, &rotated, NOW).await.unwrap());
    let grant = store.credential(&t).await.unwrap().unwrap();
    assert_eq!((grant.refresh_token, grant.scopes.as_str()), (Some(vec![9]), "openid"));
}

pub async fn a_failed_refresh_ends_its_turn(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let t = teacher("t");
    store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    let RefreshTurn::Mine { turn } = store.begin_refresh(&t, 1, NOW, 1000).await.unwrap() else { panic!("free") };
    assert!(store.fail_refresh(&t, 1, turn, None, "timed out", NOW).await.unwrap());
    let grant = store.credential(&t).await.unwrap().unwrap();
    assert_eq!((grant.token_version, grant.status), (1, TokenStatus::Connected));
    assert_eq!(grant.last_error.as_deref(), Some("timed out"));
    let RefreshTurn::Mine { turn } = store.begin_refresh(&t, 1, NOW, 1000).await.unwrap() else { panic!("free") };
    let dead = Some(TokenStatus::ReconnectRequired);
    assert!(store.fail_refresh(&t, 1, turn, dead, "invalid_grant", NOW).await.unwrap());
    let grant = store.credential(&t).await.unwrap().unwrap();
    assert_eq!((grant.token_version, grant.status), (2, TokenStatus::ReconnectRequired));
    // A token that comes back after a new consent is not taken.
    let RefreshTurn::Mine { turn } = store.begin_refresh(&t, 2, NOW, 1000).await.unwrap() else { panic!("free") };
    store.put_credential(&super::fixtures::grant("t", "1"), NOW).await.unwrap();
    assert!(!store.finish_refresh(&t, 2, turn, &refreshed(), NOW).await.unwrap());
    assert!(matches!(store.begin_refresh(&t, 3, NOW, 1000).await.unwrap(), RefreshTurn::Mine { .. }));
}

pub async fn cool_downs_grow_and_start_over(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let t = teacher("t");
    store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    let mut now = NOW;
    for hours in [1, 2, 6, 6] {
        let until = store.cool_down(&t, now).await.unwrap();
        assert_eq!(until, now.plus(hours * HOUR_MS));
        assert_eq!(store.cool_down(&t, now.plus(HOUR_MS - 1)).await.unwrap(), until, "a running one stays");
        now = until;
    }
    assert_eq!(store.credential(&t).await.unwrap().unwrap().cool_down_step, 4);
    let quiet = now.plus(24 * HOUR_MS);
    assert_eq!(store.cool_down(&t, quiet).await.unwrap(), quiet.plus(HOUR_MS));
    assert_eq!(store.credential(&t).await.unwrap().unwrap().token_version, 1, "a cool-down is no change of the token");
}
