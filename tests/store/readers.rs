//! Documents, counts, results to publish, tokens.

use meet_projector::model::UnixMillis;
use meet_projector::status::MeetStatus;
use meet_projector::store::{ApiToken, Counts, DocumentFilter, Role, Store};

use super::fixtures::*;

async fn pages(store: &Store, filter: DocumentFilter) -> Vec<String> {
    let mut ids = Vec::new();
    let mut filter = filter;
    loop {
        let page = store.list_documents(&filter).await.unwrap();
        assert!(page.items.len() <= usize::try_from(filter.limit).unwrap());
        for item in &page.items {
            let json: serde_json::Value = serde_json::from_str(&item.json).unwrap();
            assert_eq!(json["meetStatus"], item.status.as_str());
            ids.push(json["sessionId"].as_str().unwrap().to_owned());
        }
        let Some(next) = page.next else { return ids };
        assert_eq!(page.items.len(), usize::try_from(filter.limit).unwrap(), "only the last page is short");
        filter.after = Some(next);
    }
}

pub async fn documents_come_alone_together_and_in_pages(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let mut events = vec![canceled("z_none", 1, "t"), canceled("A_none", 1, "u")];
    for (hour, id) in ["b", "B", "a", "_", "9"].iter().enumerate() {
        // Two at each hour but the last, so that the id decides.
        events.push(scheduled(id, 1, if hour % 2 == 0 { "t" } else { "u" }, i64::try_from(hour).unwrap() / 2));
    }
    events.push(canceled("9", 2, "t"));
    fold(store, events).await;

    assert!(store.document(&session("nothing")).await.unwrap().is_none());
    let asked = [session("a"), session("nothing"), session("9"), session("b")];
    let told: Vec<_> = store.documents(&asked).await.unwrap().into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, [session("a"), session("9"), session("b")]);
    assert!(store.documents(&[]).await.unwrap().is_empty());

    let all = ["A_none", "z_none", "B", "b", "_", "a", "9"];
    for limit in [1, 2, 3, 7, 100] {
        assert_eq!(pages(store, DocumentFilter { limit, ..Default::default() }).await, all, "limit {limit}");
    }
    let limit = 2;
    let of_t = DocumentFilter { teacher: Some(teacher("t")), limit, ..Default::default() };
    assert_eq!(pages(store, of_t.clone()).await, ["z_none", "b", "a", "9"]);
    let canceled_of_t = DocumentFilter { statuses: vec![MeetStatus::Canceled], ..of_t };
    assert_eq!(pages(store, canceled_of_t).await, ["z_none", "9"]);
    let pending = DocumentFilter { statuses: vec![MeetStatus::Pending], limit, ..Default::default() };
    assert_eq!(pages(store, pending).await, ["B", "b", "_", "a"]);
    let statuses = vec![MeetStatus::Canceled, MeetStatus::Ready];
    assert_eq!(pages(store, DocumentFilter { statuses, limit, ..Default::default() }).await, ["A_none", "z_none", "9"]);
    let at = |hour| Some(details(hour).starts_at);
    let from = DocumentFilter { starts_from: at(1), limit, ..Default::default() };
    assert_eq!(pages(store, from.clone()).await, ["_", "a", "9"]);
    assert_eq!(pages(store, DocumentFilter { starts_to: at(2), ..from }).await, ["_", "a"]);
    let to = DocumentFilter { starts_to: at(1), limit, ..Default::default() };
    assert_eq!(pages(store, to).await, ["B", "b"], "what has no start has none before anything");
    let nobody = DocumentFilter { teacher: Some(teacher("nobody")), limit, ..Default::default() };
    assert!(pages(store, nobody).await.is_empty());
}

pub async fn counts_count(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert_eq!(store.counts(NOW).await.unwrap(), Counts::default());
    fold(store, vec![scheduled("a", 1, "t", 1), scheduled("b", 1, "t", 2), canceled("c", 1, "t")]).await;
    store.fold(EPOCH, &[refused(8, "not_json")], NOW).await.unwrap();
    let lease = claim_one(store, NOW).await;
    store.record(&[write(&lease, done(&lease.jobs[0].row, NOW))], NOW).await.unwrap();
    let expected = Counts { pending: 1, ready: 1, error: 0, canceled: 1, dead_letters: 1, outbox: 4, due: 1, busy: 1 };
    assert_eq!(store.counts(NOW).await.unwrap(), expected);
    assert_eq!(store.counts(NOW.plus(-1)).await.unwrap().due, 0);
}

pub async fn results_keep_their_order_and_one_relay(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert!(store.outbox_take("me", NOW, 1000, 10).await.unwrap().is_empty());
    assert_eq!(store.outbox_oldest().await.unwrap(), None);
    fold(store, vec![scheduled("a", 1, "t", 1), scheduled("b", 1, "t", 2), scheduled("c", 1, "t", 3)]).await;
    fold(store, vec![scheduled("a", 2, "t", 4), canceled("b", 2, "t")]).await;
    fold(store, vec![canceled("a", 3, "t")]).await;

    let take = async |holder: &str, now: UnixMillis, limit: i64| {
        let taken = store.outbox_take(holder, now, 1000, limit).await.unwrap();
        taken.into_iter().map(|message| (message.id, message.subject)).collect::<Vec<_>>()
    };
    let subjects = |taken: &[(i64, String)]| {
        taken.iter().map(|(_, subject)| subject.trim_start_matches("meet.session.").to_owned()).collect::<Vec<_>>()
    };
    let first = take("me", NOW, 10).await;
    assert_eq!(subjects(&first), ["a.pending", "b.pending", "c.pending"]);
    assert_eq!(take("me", NOW, 10).await, first, "what is not acknowledged is taken again");
    assert_eq!(take("me", NOW, 2).await.len(), 2);
    assert!(take("other", NOW.plus(999), 10).await.is_empty());
    store.outbox_done(&[first[1].0]).await.unwrap();
    store.outbox_done(&[]).await.unwrap();
    let second = take("other", NOW.plus(1000), 10).await;
    assert_eq!(subjects(&second), ["a.pending", "c.pending", "b.canceled"]);
    assert!(take("me", NOW.plus(1001), 10).await.is_empty());
    let mut seen = Vec::new();
    loop {
        let taken = take("other", NOW.plus(1001), 10).await;
        if taken.is_empty() {
            break;
        }
        seen.extend(subjects(&taken));
        store.outbox_done(&taken.iter().map(|(id, _)| *id).collect::<Vec<_>>()).await.unwrap();
    }
    assert_eq!(seen, ["a.pending", "c.pending", "b.canceled", "a.pending", "a.canceled"]);
    assert_eq!(store.counts(NOW).await.unwrap().outbox, 0);
}

pub async fn tokens_and_the_audit(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let token = |id: &str, role, at| ApiToken {
        id: id.into(),
        name: format!("for {id}"),
        role,
        secret_sha256: [9; 32],
        created_at: NOW.plus(at),
        last_used_at: None,
        revoked_at: None,
    };
    for token in [token("r", Role::Reader, 0), token("o", Role::Operator, 1), token("a", Role::Admin, 2)] {
        store.add_api_token(&token).await.unwrap();
    }
    assert!(store.add_api_token(&token("r", Role::Admin, 9)).await.is_err());
    assert!(store.revoke_api_token("o", NOW.plus(3)).await.unwrap());
    assert!(!store.revoke_api_token("o", NOW.plus(4)).await.unwrap());
    assert!(!store.revoke_api_token("x", NOW.plus(4)).await.unwrap());
    let minute = |minutes: i64| NOW.plus(minutes * 60_000);
    let uses = [("r", minute(5).plus(59_999)), ("x", minute(1)), ("r", minute(3)), ("a", minute(1))];
    store.touch_api_tokens(&uses.map(|(id, at)| (id.to_owned(), at))).await.unwrap();
    store.touch_api_tokens(&[("r".to_owned(), minute(4))]).await.unwrap();
    store.touch_api_tokens(&[]).await.unwrap();
    let all = store.api_tokens().await.unwrap();
    let told: Vec<_> =
        all.iter().map(|token| (token.id.as_str(), token.role, token.last_used_at, token.revoked_at)).collect();
    assert_eq!(
        told,
        [
            ("a", Role::Admin, Some(minute(1)), None),
            ("o", Role::Operator, None, Some(NOW.plus(3))),
            ("r", Role::Reader, Some(minute(5)), None),
        ]
    );
    assert_eq!((all[2].name.as_str(), all[2].secret_sha256), ("for r", [9; 32]));

    store.audit("session retry", "ses_1", Some("asked by 'Ana'"), NOW).await.unwrap();
    let kept = fresh
        .texts("SELECT action || '|' || target || '|' || COALESCE(reason, '-') FROM operator_action ORDER BY id")
        .await;
    // Tokens are kept with what is done to them; what was refused is not.
    let tokens = ["token new|r|for r", "token new|o|for o", "token new|a|for a", "token revoke|o|-"];
    assert_eq!(kept, [&tokens[..], &["session retry|ses_1|asked by 'Ana'"]].concat());
}
