//! Folding groups.

use meet_projector::event::{Change, SessionEvent};
use meet_projector::model::{Epoch, Place, TimeZone};
use meet_projector::plan::{MeetEvent, Phase};
use meet_projector::projection::Outcome;
use meet_projector::status::MeetStatus;
use meet_projector::store::{EpochRecord, FoldOutcome, Position, RawMessage, StoreError};
use serde_json::json;

use super::fixtures::*;

pub async fn a_schedule_makes_a_session_a_row_a_document_and_a_result(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let mut changes = store.changes();
    let report = fold(store, vec![scheduled("ses_1", 1, "tch_1", 9)]).await;
    assert_eq!(report.outcomes, [FoldOutcome::Folded(Outcome::Applied)]);
    assert_eq!(report.changed, [session("ses_1")]);
    assert!(report.work_due);
    assert_eq!(changes.try_recv().unwrap(), session("ses_1"));

    let row = only_row(store, "ses_1").await;
    assert_eq!(row, MeetEvent::new(session("ses_1"), 0, teacher("tch_1"), NOW));
    assert_eq!(store.next_due().await.unwrap(), Some(NOW));

    let stored = store.document(&session("ses_1")).await.unwrap().unwrap();
    assert_eq!((stored.revision, stored.status), (1, MeetStatus::Pending));
    let data = document(store, "ses_1").await;
    assert_eq!(data["startsAt"], "2026-12-01T09:00:00Z");
    assert_eq!(data["updatedAt"], NOW.to_rfc3339());

    let results = store.outbox_take("me", NOW, 1000, 10).await.unwrap();
    assert_eq!(results.len(), 1);
    let result = &results[0];
    assert_eq!((result.subject.as_str(), result.key.as_str()), ("meet.session.ses_1.pending", "ses_1"));
    let trace = scheduled("ses_1", 1, "tch_1", 9).traceparent;
    assert_eq!(result.traceparent, trace);
    let event: serde_json::Value = serde_json::from_str(&result.payload).unwrap();
    assert_eq!(
        event,
        json!({
            "specversion": "1.0", "id": result.message_id, "source": "/services/meet-projector",
            "type": "meet.StatusChanged.v1", "subject": "ses_1", "time": NOW.to_rfc3339(),
            "datacontenttype": "application/json", "traceparent": trace, "data": data,
        })
    );
    assert_eq!(uuid::Uuid::parse_str(&result.message_id).unwrap().get_version_num(), 7);
    assert_eq!(store.outbox_oldest().await.unwrap(), Some(NOW));

    let report = fold(store, vec![scheduled("ses_1", 2, "tch_1", 10), canceled("ses_1", 3, "tch_1")]).await;
    assert_eq!(report.changed, [session("ses_1")], "a group says a session once");
    let stored = store.document(&session("ses_1")).await.unwrap().unwrap();
    assert_eq!((stored.revision, stored.status), (2, MeetStatus::Canceled));
    assert_eq!(only_row(store, "ses_1").await.phase, Phase::Absent, "nothing was sent, so nothing is left to do");
    assert!(claim(store, NOW).await.is_empty());
}

pub async fn every_field_survives(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let mut event = scheduled("ses_1", 9_007_199_254_740_991, "tch_1", 9);
    let details = event.details.as_mut().unwrap();
    details.kind = meet_projector::model::Kind::Course;
    details.title = "Тест \"quotes\" \\ 🎹 'single' $1 ? %".into();
    details.description = Some("line\nline\ttab\u{1}".into());
    details.time_zone = TimeZone::parse("America/Argentina/Buenos_Aires").unwrap();
    details.url = Some("https://example.com/sessions/ses_1?a=b&c=d".into());
    details.attendees.push(meet_projector::model::Attendee { email: "b@example.com".into(), display_name: None });
    fold(&fresh.store, vec![event.clone()]).await;
    let (expected, _) = meet_projector::projection::fold(None, &event, Place { epoch: EPOCH, sequence: 1 });
    let (stored, _) = fresh.store.session(&session("ses_1")).await.unwrap().unwrap();
    assert_eq!(stored, expected);

    // A cancel without details keeps those of before, with their own stamp.
    let cancel = canceled("ses_2", 2, "tch_1");
    fold(&fresh.store, vec![cancel.clone()]).await;
    let (stored, rows) = fresh.store.session(&session("ses_2")).await.unwrap().unwrap();
    assert_eq!((stored.details.clone(), rows.len()), (None, 0));
    let late = scheduled("ses_2", 1, "tch_9", 3);
    fold(&fresh.store, vec![late.clone()]).await;
    let (stored, rows) = fresh.store.session(&session("ses_2")).await.unwrap().unwrap();
    assert_eq!(stored.details.unwrap().1, late.details.unwrap());
    assert_eq!((stored.head.teacher, rows.len()), (teacher("tch_1"), 0));
    // The trace context is that of the event the head comes from, whoever comes late.
    let older = SessionEvent { traceparent: Some("00-older".into()), ..scheduled("ses_1", 7, "tch_1", 1) };
    let newer = SessionEvent { traceparent: None, ..scheduled("ses_2", 4, "tch_1", 3) };
    fold(&fresh.store, vec![older, newer]).await;
    let traces: Vec<_> =
        claim_one(&fresh.store, NOW).await.jobs.into_iter().map(|job| job.traceparent.clone()).collect();
    assert_eq!(traces, [None, event.traceparent]);
    assert_eq!(document(&fresh.store, "ses_2").await["startsAt"], "2026-12-01T03:00:00Z");
}

pub async fn duplicates_and_redelivery_change_nothing(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let group = vec![incoming(1, scheduled("a", 1, "t", 1)), incoming(2, scheduled("b", 1, "t", 2))];
    let twice: Vec<_> = group.iter().chain(&group).cloned().collect();
    let report = fresh.store.fold(EPOCH, &twice, NOW).await.unwrap();
    let (applied, duplicate) = (FoldOutcome::Folded(Outcome::Applied), FoldOutcome::Folded(Outcome::Duplicate));
    assert_eq!(report.outcomes, [applied.clone(), applied, duplicate.clone(), duplicate.clone()]);

    let before = (fresh.store.session(&session("a")).await.unwrap(), fresh.store.counts(NOW).await.unwrap());
    let again = fresh.store.fold(EPOCH, &group, NOW.plus(5000)).await.unwrap();
    assert_eq!(again.outcomes, [duplicate.clone(), duplicate]);
    assert_eq!((again.changed.len(), again.work_due), (0, false));
    // The same fact under another sequence, as a publisher's second try makes it.
    let other = fresh.store.fold(EPOCH, &[incoming(3, scheduled("a", 1, "t", 1))], NOW.plus(5000)).await.unwrap();
    assert_eq!((other.changed.len(), other.work_due), (0, false));
    assert_eq!((fresh.store.session(&session("a")).await.unwrap(), fresh.store.counts(NOW).await.unwrap()), before);
    assert_eq!(fresh.store.document(&session("a")).await.unwrap().unwrap().revision, 1);
    assert_eq!(other.position.contiguous, 3);
}

pub async fn of_two_contents_of_a_version_the_lower_sequence_wins(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let (first, second) = (scheduled("a", 3, "t", 1), scheduled("a", 3, "t", 2));

    // The later one comes later: it becomes the dead letter, with its message.
    store.fold(EPOCH, &[incoming(5, first.clone())], NOW).await.unwrap();
    let report = store.fold(EPOCH, &[incoming(7, second.clone())], NOW).await.unwrap();
    assert_eq!(report.outcomes, [FoldOutcome::DeadLetter("version_conflict")]);
    assert_eq!(report.displaced, Vec::<i64>::new());
    let letters = store.dead_letters(10, None).await.unwrap();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].place, Place { epoch: EPOCH, sequence: 7 });
    assert_eq!(letters[0].raw, Some(incoming(7, second.clone()).raw));
    assert_eq!(letters[0].refused.class, "version_conflict");
    let reason = &letters[0].refused.reason;
    assert!(reason.contains("session a version 3 came twice") && reason.contains("sequence 5 was kept"), "{reason}");
    store.fold(EPOCH, &[incoming(7, second.clone())], NOW).await.unwrap();
    assert_eq!(store.dead_letters(10, None).await.unwrap(), letters, "redelivery makes none anew");

    // One that stands before both comes last, as replicas may have it: the one that was kept is displaced.
    let third = scheduled("a", 3, "t", 3);
    let report = store.fold(EPOCH, &[incoming(4, third.clone())], NOW).await.unwrap();
    assert_eq!(report.outcomes, [FoldOutcome::Folded(Outcome::Conflict { loser: 5 })]);
    assert_eq!(report.displaced, [5]);
    let place = Place { epoch: EPOCH, sequence: 5 };
    assert_eq!(store.incomplete_dead_letters(10).await.unwrap(), [place]);
    assert_eq!(document(store, "a").await["startsAt"], "2026-12-01T03:00:00Z");
    let raw = incoming(5, first.clone()).raw;
    store.complete_dead_letter(place, &raw).await.unwrap();
    store.complete_dead_letter(place, &RawMessage { subject: "other".into(), ..raw.clone() }).await.unwrap();
    assert!(store.incomplete_dead_letters(10).await.unwrap().is_empty());
    let newest = store.dead_letters(1, None).await.unwrap().remove(0);
    assert_eq!((newest.place, newest.raw.as_ref(), newest.state.as_str()), (place, Some(&raw), "open"));
    assert_eq!(store.dead_letter(newest.id).await.unwrap(), Some(newest.clone()));
    let older = store.dead_letters(10, Some(newest.id)).await.unwrap();
    assert_eq!(older.iter().map(|letter| letter.place.sequence).collect::<Vec<_>>(), [7]);

    // Both in one group: the loser is known, so its message is there and its outcome says so.
    let group = [incoming(12, scheduled("b", 1, "t", 1)), incoming(11, scheduled("b", 1, "t", 2))];
    let report = store.fold(EPOCH, &group, NOW).await.unwrap();
    assert_eq!(report.outcomes[0], FoldOutcome::DeadLetter("version_conflict"));
    assert_eq!(report.outcomes[1], FoldOutcome::Folded(Outcome::Conflict { loser: 12 }));
    assert_eq!(report.displaced, Vec::<i64>::new());
    assert!(store.dead_letters(1, None).await.unwrap()[0].raw.is_some());

    // A displaced message that is delivered again before anybody read it back brings itself.
    store.fold(EPOCH, &[incoming(22, scheduled("c", 1, "t", 1))], NOW).await.unwrap();
    let report = store.fold(EPOCH, &[incoming(21, scheduled("c", 1, "t", 2))], NOW).await.unwrap();
    assert_eq!(report.displaced, [22]);
    let report = store.fold(EPOCH, &[incoming(22, scheduled("c", 1, "t", 1))], NOW).await.unwrap();
    assert_eq!(report.outcomes, [FoldOutcome::DeadLetter("version_conflict")]);
    assert!(store.incomplete_dead_letters(10).await.unwrap().is_empty());
}

pub async fn what_is_refused_is_kept_once(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let mut large = refused(2, "not_json");
    // Whatever a server lets through unless it is told otherwise is kept whole, and more is bounded.
    let whole: bytes::Bytes = (0..=u8::MAX).cycle().take(1024 * 1024).collect();
    large.raw.payload = whole.clone();
    let mut huge = refused(5, "oversized");
    huge.raw.payload = vec![0xff; 9 * 1024 * 1024].into();
    let mut nul = scheduled("a", 1, "t", 1);
    nul.details.as_mut().unwrap().title = "Piano\0".into();
    nul.source = Some("/a\0b".into());
    let group =
        [refused(1, "ends_before_start"), large, incoming(3, nul), incoming(4, scheduled("b", 1, "t", 1)), huge];
    for _ in 0..2 {
        let report = store.fold(EPOCH, &group, NOW).await.unwrap();
        let classes: Vec<_> = report
            .outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                FoldOutcome::DeadLetter(class) => Some(*class),
                FoldOutcome::Folded(_) => None,
            })
            .collect();
        assert_eq!(classes, ["ends_before_start", "not_json", "bad_value", "oversized"]);
        assert_eq!(report.position.contiguous, 5);
    }
    let letters = store.dead_letters(10, None).await.unwrap();
    assert_eq!(letters.len(), 4);
    assert_eq!(store.counts(NOW).await.unwrap().dead_letters, 4);
    assert_eq!(letters[0].raw.as_ref().unwrap().payload.len(), 8 * 1024 * 1024);
    assert!(letters[2].raw.as_ref().unwrap().payload == whole);
    assert_eq!(letters[2].raw.as_ref().unwrap().headers[1], ("X".to_owned(), "a: b".to_owned()));
    assert_eq!(letters[1].refused.session, Some(session("a")));
    assert!(letters[1].refused.reason.starts_with("source holds a NUL"), "{}", letters[1].refused.reason);
    assert!(store.session(&session("a")).await.unwrap().is_none());
}

pub async fn the_position_waits_for_the_gap(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert_eq!(store.position(EPOCH).await.unwrap(), Position::default());
    assert_eq!(store.last_stored_at().await.unwrap(), None);
    let at = |sequence: i64| incoming(sequence, scheduled(&format!("s{sequence}"), 1, "t", 1));
    let mut seen = Vec::new();
    for group in [vec![2, 1], vec![6, 5], vec![9], vec![4, 8], vec![3], vec![7, 7, 1]] {
        let group: Vec<_> = group.into_iter().map(at).collect();
        let position = store.fold(EPOCH, &group, NOW).await.unwrap().position;
        assert_eq!(store.position(EPOCH).await.unwrap(), position);
        seen.push((position.contiguous, position.highest));
    }
    assert_eq!(seen, [(2, 2), (2, 6), (2, 9), (2, 9), (6, 9), (9, 9)]);
    let position = store.position(EPOCH).await.unwrap();
    assert_eq!(position.highest_fingerprint.as_deref(), Some("fingerprint-9"));
    assert_eq!(position.highest_stored_at, Some(NOW.plus(9)));
    assert_eq!(store.last_stored_at().await.unwrap(), Some(NOW.plus(9)));

    store.fold(EPOCH, &[at(20)], NOW).await.unwrap();
    store.skip_missing(EPOCH, 15).await.unwrap();
    assert_eq!(store.position(EPOCH).await.unwrap().contiguous, 15);
    store.skip_missing(EPOCH, 12).await.unwrap();
    assert_eq!(store.position(EPOCH).await.unwrap().contiguous, 15);
    store.skip_missing(EPOCH, 19).await.unwrap();
    let position = store.position(EPOCH).await.unwrap();
    assert_eq!((position.contiguous, position.highest), (20, 20));
    assert_eq!(store.fold(EPOCH, &[], NOW).await.unwrap().position, position);
}

pub async fn an_epoch_may_begin_late(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let first = EpochRecord {
        epoch: Epoch(1),
        stream: "BOOKINGS".into(),
        created: "2026-11-22T20:15:04.211123456Z".into(),
        first_sequence: 1,
        consumer: "meet-projector-e1".into(),
        opened_at: NOW,
        reason: "first start".into(),
        sources: vec!["/b".into(), "/a".into()],
    };
    let second = EpochRecord { epoch: Epoch(2), first_sequence: 100, sources: vec![], ..first.clone() };
    store.open_epoch(&first).await.unwrap();
    store.open_epoch(&second).await.unwrap();
    assert!(matches!(store.open_epoch(&second).await, Err(StoreError::Failed { .. })));
    store.restamp_epoch(Epoch(2), "2027").await.unwrap();
    assert!(store.restamp_epoch(Epoch(3), "2027").await.is_err());

    assert_eq!(store.position(Epoch(1)).await.unwrap(), Position::default());
    assert_eq!(store.position(Epoch(2)).await.unwrap().contiguous, 99);
    let at = |sequence| [incoming(sequence, scheduled("a", sequence, "t", 1))];
    assert_eq!(store.fold(Epoch(2), &at(101), NOW).await.unwrap().position.contiguous, 99);
    assert_eq!(store.fold(Epoch(2), &at(100), NOW).await.unwrap().position.contiguous, 101);

    // The newer epoch wins even with a lower version.
    store.fold(Epoch(1), &at(900), NOW).await.unwrap();
    let (kept, _) = store.session(&session("a")).await.unwrap().unwrap();
    assert_eq!((kept.head.stamp.epoch, kept.head.stamp.version.get()), (Epoch(2), 101));

    let epochs = store.epochs().await.unwrap();
    let sources = vec!["/a".to_owned(), "/b".into(), "/services/bookings".into()];
    assert_eq!(epochs[0], EpochRecord { sources, ..first });
    assert_eq!(epochs[1], EpochRecord { created: "2027".into(), sources: vec!["/services/bookings".into()], ..second });
}

pub async fn anchors_and_sources_tell_the_stream(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let event = |source: &str| SessionEvent { source: Some(source.into()), ..scheduled("a", 1, "t", 1) };
    for start in [1, 400, 800] {
        let group: Vec<_> = (start..start + 400).map(|sequence| incoming(sequence, event("/x"))).collect();
        fresh.store.fold(EPOCH, &group, NOW).await.unwrap();
    }
    let anchors = fresh.store.anchors(EPOCH, 10).await.unwrap();
    assert_eq!(anchors.iter().map(|anchor| anchor.sequence).collect::<Vec<_>>(), [1024, 768, 512, 256, 1]);
    assert_eq!(anchors[1].fingerprint, "fingerprint-768");
    assert_eq!(anchors[1].stored_at, NOW.plus(768));
    assert_eq!(fresh.store.anchors(EPOCH, 2).await.unwrap().len(), 2);
    assert!(fresh.store.anchors(Epoch(2), 2).await.unwrap().is_empty());

    // Far on, what lies behind is thinned out and the first one stays.
    let group: Vec<_> = (1..=512).map(|index| incoming(index * 256, event("/x"))).collect();
    fresh.store.fold(EPOCH, &group, NOW).await.unwrap();
    let sequences: Vec<_> =
        fresh.store.anchors(EPOCH, 1000).await.unwrap().iter().map(|anchor| anchor.sequence).collect();
    assert!(sequences.len() < 120, "{} anchors", sequences.len());
    assert_eq!((sequences[0], sequences[1], sequences.last()), (512 * 256, 511 * 256, Some(&1)));
}

pub async fn a_group_is_all_or_nothing(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    fresh.execute("ALTER TABLE position RENAME TO away").await;
    let failed = fresh.store.fold(EPOCH, &[incoming(1, scheduled("a", 1, "t", 1))], NOW).await.unwrap_err();
    assert!(!failed.is_transient(), "{failed:?}");
    assert!(fresh.store.session(&session("a")).await.unwrap().is_none());
    fresh.execute("ALTER TABLE away RENAME TO position").await;
    let report = fresh.store.fold(EPOCH, &[incoming(1, scheduled("a", 1, "t", 1))], NOW).await.unwrap();
    assert_eq!(report.outcomes, [FoldOutcome::Folded(Outcome::Applied)]);
    assert_eq!(fresh.store.counts(NOW).await.unwrap().outbox, 1);
}

pub async fn everything_survives_a_restart(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    fold(&fresh.store, vec![scheduled("a", 1, "t", 1), scheduled("b", 1, "u", 2)]).await;
    fresh.store.fold(EPOCH, &[refused(9, "not_json")], NOW).await.unwrap();
    fresh.store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    let lease = claim(&fresh.store, NOW).await.remove(0);
    fresh.store.record(&[write(&lease, done(&lease.jobs[0].row, NOW))], NOW).await.unwrap();
    let other = fresh.another().await;
    for id in ["a", "b"] {
        assert_eq!(other.session(&session(id)).await.unwrap(), fresh.store.session(&session(id)).await.unwrap());
        assert_eq!(other.document(&session(id)).await.unwrap(), fresh.store.document(&session(id)).await.unwrap());
    }
    assert_eq!(other.document(&session("a")).await.unwrap().unwrap().status, MeetStatus::Ready);
    assert_eq!(other.position(EPOCH).await.unwrap(), fresh.store.position(EPOCH).await.unwrap());
    assert_eq!(other.dead_letters(9, None).await.unwrap(), fresh.store.dead_letters(9, None).await.unwrap());
    assert_eq!(other.counts(NOW).await.unwrap(), fresh.store.counts(NOW).await.unwrap());
    assert_eq!(other.credential(&teacher("t")).await.unwrap().unwrap().refresh_token, Some(vec![0, 1, 254, 255]));
    // The leases still stand.
    assert!(claim(&other, NOW).await.is_empty());
    assert_eq!(claim(&other, NOW.plus(LEASE_MS)).await.len(), 1);
    let event = SessionEvent { change: Change::Rescheduled, ..scheduled("a", 2, "t", 5) };
    assert_eq!(fold(&other, vec![event]).await.outcomes, [FoldOutcome::Folded(Outcome::Applied)]);
}
