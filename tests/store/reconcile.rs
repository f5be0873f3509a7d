//! Claims, intents, results, wake-ups.

use std::sync::Arc;

use meet_projector::event::SessionEvent;
use meet_projector::model::{EventId, GoogleSub, MeetLink};
use meet_projector::plan::{Binding, Code, ConferenceState, Failure, Intent, MeetEvent, Phase, Want};
use meet_projector::status::MeetStatus;
use meet_projector::store::{Claim, Origin, RowWrite, Store, TeacherLease, Turn, Written};

use super::fixtures::*;

pub async fn a_claim_brings_all_that_a_plan_needs(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert_eq!(store.next_due().await.unwrap(), None);
    fold(store, vec![scheduled("a", 1, "t", 9)]).await;
    store.put_credential(&grant("t", "sub-t"), NOW).await.unwrap();
    let lease = claim_one(store, NOW).await;
    assert_eq!((lease.teacher.as_str(), lease.until), ("t", NOW.plus(LEASE_MS)));
    let credential = lease.credential.as_ref().unwrap();
    assert_eq!((credential.account.0.as_str(), credential.calendar.as_str()), ("sub-t", "primary"));
    let (folded, rows) = store.session(&session("a")).await.unwrap().unwrap();
    let job = &lease.jobs[0];
    assert_eq!((&job.session, &job.row), (&folded, &rows[0]));
    assert_eq!((job.siblings.len(), job.traceparent.clone()), (0, scheduled("a", 1, "t", 9).traceparent));

    // Another process may look again when this lease has ended.
    assert_eq!(store.next_due().await.unwrap(), Some(lease.until));
    let row = done(&job.row, NOW);
    assert_eq!(store.record(&[write(&lease, row.clone())], NOW).await.unwrap(), [Written::Yes]);
    release(store, &lease, NOW).await;
    assert_eq!(store.next_due().await.unwrap(), None);
    assert!(claim(store, NOW).await.is_empty());
    let stored = store.document(&session("a")).await.unwrap().unwrap();
    assert_eq!((stored.status, stored.revision), (MeetStatus::Ready, 2));
    assert_eq!(document(store, "a").await["meetLink"], "https://meet.google.com/abc-defg-hij");

    // A change of teacher: a row to remove for the one, a new one for the other, and each sees the other.
    fold(store, vec![scheduled("a", 2, "u", 9)]).await;
    let leases = claim(store, NOW).await;
    assert_eq!(leases.iter().map(|lease| lease.teacher.as_str()).collect::<Vec<_>>(), ["t", "u"]);
    let (old, new) = (&leases[0].jobs[0], &leases[1].jobs[0]);
    assert_eq!((old.row.ordinal, old.row.want, new.row.ordinal, new.row.want), (0, Want::Absent, 1, Want::Present));
    assert_eq!((old.siblings[0].ordinal, new.siblings[0].ordinal), (1, 0));
    assert_eq!(new.siblings[0].account, row.binding.map(|binding| binding.account));
    assert_eq!((new.siblings[0].phase, new.siblings[0].generation), (Phase::Live, Some(0)));
    assert!(leases[1].credential.is_none());
}

pub async fn soonest_first_and_no_more_than_asked_for(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let events = ["w", "v", "u", "t"].iter().enumerate().flat_map(|(place, who)| {
        (0..3).map(move |nth| {
            let hour = 10 * (4 - i64::try_from(place).unwrap()) - nth;
            scheduled(&format!("{who}{nth}"), 1, who, hour)
        })
    });
    fold(store, events.collect()).await;
    let leases = store.claim(NOW, LEASE_MS, 3, 2).await.unwrap();
    let told: Vec<_> =
        leases.iter().flat_map(|lease| lease.jobs.iter().map(|job| job.row.session.as_str().to_owned())).collect();
    assert_eq!(told, ["t2", "t1", "u2", "u1", "v2", "v1"]);
    assert_eq!(store.claim(NOW, LEASE_MS, 3, 2).await.unwrap().len(), 1);
    assert!(claim(store, NOW).await.is_empty());
    // What did not fit stays due.
    for lease in &leases {
        let writes: Vec<_> = lease.jobs.iter().map(|job| write(lease, done(&job.row, NOW))).collect();
        assert_eq!(store.record(&writes, NOW).await.unwrap(), [Written::Yes, Written::Yes]);
        release(store, lease, NOW).await;
    }
    assert_eq!(store.next_due().await.unwrap(), Some(NOW));
    let told: Vec<_> =
        claim(store, NOW).await.iter().map(|lease| lease.jobs[0].row.session.as_str().to_owned()).collect();
    assert_eq!(told, ["t0", "u0", "v0"]);
}

/// A row with a different value in every field.
fn full(row: &MeetEvent) -> MeetEvent {
    let account = GoogleSub("1084".into());
    MeetEvent {
        session: row.session.clone(),
        ordinal: row.ordinal,
        teacher: row.teacher.clone(),
        want: row.want,
        desired_revision: row.desired_revision,
        binding: Some(Binding {
            event_id: EventId::derive("test", &row.session, &account, 3),
            account,
            calendar: "c_1@group.calendar.google.com".into(),
            generation: 3,
        }),
        phase: Phase::Tombstone,
        etag: Some("\"3181159875584000\"".into()),
        ical_uid: Some("x@google.com".into()),
        written_hash: Some("w".into()),
        accepted_hash: Some("a".into()),
        observed_hash: Some("o".into()),
        link: Some(MeetLink::parse("https://meet.google.com/xyz").unwrap()),
        conference: ConferenceState::NotAllowed,
        conference_attempt: 2,
        conference_since: Some(NOW.plus(1)),
        intent: Some(Intent { operation: "restore".into(), at: NOW.plus(2) }),
        insert_unclear_at: Some(NOW.plus(3)),
        taken_at: Some(NOW.plus(4)),
        confirmed_at: Some(NOW.plus(5)),
        late_checks: 6,
        refetches: 7,
        repairs: 8,
        repairs_since: Some(NOW.plus(9)),
        failure: Some(Failure {
            code: Code::CalendarLimited,
            message: "Google limits this calendar".into(),
            since: NOW.plus(10),
            attempts: 11,
        }),
        settled: true,
        next_attempt_at: Some(NOW.plus(12)),
    }
}

pub async fn every_field_of_a_row_survives(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    fold(&fresh.store, vec![scheduled("a", 1, "t", 9)]).await;
    let lease = claim_one(&fresh.store, NOW).await;
    let row = full(&lease.jobs[0].row);
    assert_eq!(fresh.store.begin(&[write(&lease, row.clone())], NOW).await.unwrap(), [Written::Yes]);
    let begun = MeetEvent { next_attempt_at: Some(NOW), ..row.clone() };
    assert_eq!(only_row(&fresh.store, "a").await, begun, "due until its result is recorded");
    assert_eq!(fresh.store.document(&session("a")).await.unwrap().unwrap().revision, 1);
    assert_eq!(fresh.store.record(&[write(&lease, row.clone())], NOW).await.unwrap(), [Written::Yes]);
    assert_eq!(only_row(&fresh.store, "a").await, row);
    assert_eq!(document(&fresh.store, "a").await["error"]["code"], "CALENDAR_LIMITED");
    release(&fresh.store, &lease, NOW).await;
    assert_eq!(fresh.store.next_due().await.unwrap(), Some(NOW.plus(12)));
    for (phase, _) in Phase::WORDS {
        let Some(lease) = claim(&fresh.store, NOW.plus(12)).await.pop() else { break };
        let row = MeetEvent { phase, ..row.clone() };
        fresh.store.record(&[write(&lease, row.clone())], NOW).await.unwrap();
        assert_eq!(only_row(&fresh.store, "a").await, row);
        release(&fresh.store, &lease, NOW).await;
    }
    assert_eq!(only_row(&fresh.store, "a").await.phase, Phase::Absent, "final, so it was never claimed again");
    assert_eq!(fresh.store.next_due().await.unwrap(), None);
}

pub async fn an_old_token_writes_nothing(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9)]).await;
    let old = claim_one(store, NOW).await;
    let row = old.jobs[0].row.clone();
    let ended = NOW.plus(LEASE_MS);

    // Run out: even though nobody else has it yet.
    assert_eq!(store.begin(&[write(&old, begun(&row, NOW))], ended).await.unwrap(), [Written::No]);
    let new = claim_one(store, ended).await;
    assert!(new.token > old.token);
    for now in [NOW, ended] {
        assert_eq!(store.begin(&[write(&old, begun(&row, NOW))], now).await.unwrap(), [Written::No]);
        assert_eq!(store.record(&[write(&old, done(&row, NOW))], now).await.unwrap(), [Written::No]);
    }
    release(store, &old, ended).await;
    assert_eq!(only_row(store, "a").await, row);
    assert!(claim(store, ended).await.is_empty(), "the old holder's release is none");
    assert_eq!(store.begin(&[write(&new, begun(&row, NOW))], ended).await.unwrap(), [Written::Yes]);
    // Unknown rows and other teachers' rows are none of the lease's.
    let unknown = MeetEvent { ordinal: 7, ..row.clone() };
    let foreign = MeetEvent { teacher: teacher("u"), ..row.clone() };
    let elsewhere = MeetEvent { session: session("z"), ..row };
    let writes = [unknown, foreign, elsewhere].map(|row| write(&new, row));
    assert_eq!(store.record(&writes, ended).await.unwrap(), [Written::No; 3]);
    release(store, &new, ended).await;
    assert_eq!(store.record(&[write(&new, done(&new.jobs[0].row, ended))], ended).await.unwrap(), [Written::No]);
    assert!(store.begin(&[], ended).await.unwrap().is_empty());
}

pub async fn an_intent_needs_the_wish_it_was_planned_for(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9), scheduled("b", 1, "t", 10)]).await;
    let lease = claim_one(store, NOW).await;
    fold(store, vec![scheduled("a", 2, "t", 11)]).await;
    let writes: Vec<_> = lease.jobs.iter().map(|job| write(&lease, begun(&job.row, NOW))).collect();
    assert_eq!(store.begin(&writes, NOW).await.unwrap(), [Written::No, Written::Yes]);
    assert_eq!(only_row(store, "a").await.intent, None);
    assert_eq!(only_row(store, "b").await, writes[1].row);
    release(store, &lease, NOW).await;
    assert_eq!(claim_one(store, NOW).await.jobs.len(), 2, "begun is not done");
}

pub async fn a_result_never_hides_a_newer_wish(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9), scheduled("b", 1, "t", 10)]).await;
    let lease = claim_one(store, NOW).await;
    let rows: Vec<_> = lease.jobs.iter().map(|job| begun(&job.row, NOW)).collect();
    let writes: Vec<_> = rows.iter().map(|row| write(&lease, row.clone())).collect();
    store.begin(&writes, NOW).await.unwrap();
    // While the insert is under way one is moved and the other canceled.
    fold(store, vec![scheduled("a", 2, "t", 12), canceled("b", 2, "t")]).await;
    let writes: Vec<_> = rows.iter().map(|row| write(&lease, done(row, NOW))).collect();
    assert_eq!(store.record(&writes, NOW.plus(5)).await.unwrap(), [Written::WantMoved; 2]);
    release(store, &lease, NOW.plus(5)).await;
    let (moved, gone) = (only_row(store, "a").await, only_row(store, "b").await);
    for row in [&moved, &gone] {
        assert_eq!((row.phase, row.settled, row.next_attempt_at), (Phase::Live, false, Some(NOW.plus(5))));
        assert_eq!((row.desired_revision, row.intent.clone()), (2, None));
        assert!(row.link.is_some());
    }
    assert_eq!((moved.want, gone.want), (Want::Present, Want::Absent));
    let data = document(store, "a").await;
    assert_eq!((data["meetStatus"].as_str(), data["upToDate"].as_bool()), (Some("PENDING"), Some(false)));
    assert_eq!(data["meetLink"], "https://meet.google.com/abc-defg-hij");
    let lease = claim_one(store, NOW.plus(5)).await;
    assert_eq!(lease.jobs.len(), 2);
    // The same for a rest without a call, planned before another move.
    fold(store, vec![scheduled("a", 3, "t", 13)]).await;
    let rested = MeetEvent { next_attempt_at: None, settled: true, ..moved };
    assert_eq!(store.record(&[write(&lease, rested)], NOW.plus(6)).await.unwrap(), [Written::WantMoved]);
    let row = only_row(store, "a").await;
    assert_eq!((row.settled, row.next_attempt_at, row.desired_revision), (false, Some(NOW.plus(6)), 3));
}

fn waiting(row: &MeetEvent) -> MeetEvent {
    MeetEvent {
        next_attempt_at: None,
        failure: Some(Failure {
            code: Code::TeacherNotConnected,
            message: "connect Google".into(),
            since: NOW,
            attempts: 0,
        }),
        ..row.clone()
    }
}

pub async fn a_wake_up_outlives_the_result_it_overtook(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9), scheduled("b", 1, "t", 10)]).await;
    let lease = claim_one(store, NOW).await;
    assert!(lease.credential.is_none());
    // The teacher connects while the plan for "not connected" is on its way to the store.
    store.put_credential(&grant("t", "sub-t"), NOW.plus(1)).await.unwrap();
    let writes = [write(&lease, waiting(&lease.jobs[0].row)), write(&lease, done(&lease.jobs[1].row, NOW))];
    assert_eq!(store.record(&writes, NOW.plus(2)).await.unwrap(), [Written::Yes; 2]);
    release(store, &lease, NOW.plus(2)).await;
    let lease = claim_one(store, NOW.plus(2)).await;
    assert_eq!(lease.jobs.len(), 1, "what is done needs no second look");
    assert!(lease.credential.is_some());
    // The wake-up counts once.
    assert_eq!(store.record(&[write(&lease, waiting(&lease.jobs[0].row))], NOW.plus(3)).await.unwrap(), [Written::Yes]);
    release(store, &lease, NOW.plus(3)).await;
    assert!(claim(store, NOW.plus(4)).await.is_empty());
    assert_eq!(store.wake_teacher(&teacher("t"), NOW.plus(5)).await.unwrap(), 1);
    assert_eq!(store.wake_teacher(&teacher("nobody"), NOW.plus(5)).await.unwrap(), 0);
    assert_eq!(store.next_due().await.unwrap(), Some(NOW.plus(5)));
    assert_eq!(claim_one(store, NOW.plus(5)).await.jobs.len(), 1);
}

/// The row that goes on under another account.
fn successor(row: &MeetEvent) -> MeetEvent {
    MeetEvent::new(row.session.clone(), row.ordinal + 1, row.teacher.clone(), NOW)
}

pub async fn a_successor_takes_over_once_and_not_for_a_canceled_session(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9), scheduled("b", 1, "t", 10), scheduled("c", 1, "t", 11)]).await;
    let lease = claim_one(store, NOW).await;
    let writes: Vec<_> = lease.jobs.iter().map(|job| write(&lease, done(&job.row, NOW))).collect();
    store.record(&writes, NOW).await.unwrap();
    // Another account: the old event has to go and a new one takes its place.
    let retire = |row: &MeetEvent| RowWrite {
        token: lease.token,
        from: None,
        row: MeetEvent {
            want: Want::Absent,
            settled: false,
            next_attempt_at: Some(NOW),
            desired_revision: row.desired_revision + 1,
            ..row.clone()
        },
        successor: Some(successor(row)),
    };
    let rows: Vec<_> = writes.iter().map(|write| write.row.clone()).collect();
    let change = RowWrite { row: MeetEvent { desired_revision: 1, ..retire(&rows[0]).row }, ..retire(&rows[0]) };
    assert_eq!(store.begin(std::slice::from_ref(&change), NOW).await.unwrap(), [Written::Yes]);
    let (_, both) = store.session(&session("a")).await.unwrap().unwrap();
    assert_eq!((both.len(), both[0].want, both[1].want), (2, Want::Absent, Want::Present));
    // Planned again from the same state, it makes no third row and does not touch the second.
    let taken = MeetEvent { etag: Some("kept".into()), ..both[1].clone() };
    store.record(&[write(&lease, taken.clone())], NOW).await.unwrap();
    assert_eq!(store.record(&[change], NOW).await.unwrap(), [Written::Yes]);
    let (_, again) = store.session(&session("a")).await.unwrap().unwrap();
    assert_eq!((again.len(), again[1].clone()), (2, taken));

    // Canceled meanwhile: the row goes, and nothing takes its place.
    fold(store, vec![canceled("b", 2, "t")]).await;
    let late = RowWrite { row: MeetEvent { desired_revision: 1, ..retire(&rows[1]).row }, ..retire(&rows[1]) };
    assert_eq!(store.record(&[late], NOW).await.unwrap(), [Written::WantMoved]);
    assert_eq!(only_row(store, "b").await.want, Want::Absent);

    // Moved meanwhile: the successor will read the new time.
    fold(store, vec![scheduled("c", 2, "t", 15)]).await;
    let late = RowWrite { row: MeetEvent { desired_revision: 1, ..retire(&rows[2]).row }, ..retire(&rows[2]) };
    assert_eq!(store.record(&[late], NOW).await.unwrap(), [Written::WantMoved]);
    let (_, rows) = store.session(&session("c")).await.unwrap().unwrap();
    assert_eq!(rows.iter().map(|row| row.want).collect::<Vec<_>>(), [Want::Absent, Want::Present]);
}

pub async fn the_end_of_a_row_wakes_the_one_that_waits(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let (old, new) = handed_over(store).await;
    // The new teacher's row waits for the old one, and its holder is about to say so when the old one ends.
    let ended =
        MeetEvent { phase: Phase::Absent, settled: true, next_attempt_at: None, link: None, ..old.jobs[0].row.clone() };
    assert_eq!(store.record(&[write(&old, ended)], NOW.plus(1)).await.unwrap(), [Written::Yes]);
    assert_eq!(store.record(&[write(&new, waiting(&new.jobs[0].row))], NOW.plus(2)).await.unwrap(), [Written::Yes]);
    release(store, &new, NOW.plus(2)).await;
    let again = claim_one(store, NOW.plus(2)).await;
    assert_eq!((again.teacher.as_str(), again.jobs[0].row.ordinal), ("u", 1));
    assert_eq!(again.jobs[0].siblings[0].phase, Phase::Absent);

    // And where it waits already.
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let (old, new) = handed_over(store).await;
    store.record(&[write(&new, waiting(&new.jobs[0].row))], NOW.plus(1)).await.unwrap();
    release(store, &new, NOW.plus(1)).await;
    assert!(claim(store, NOW.plus(1)).await.is_empty());
    let ended = MeetEvent { phase: Phase::Absent, settled: true, next_attempt_at: None, ..old.jobs[0].row.clone() };
    store.record(&[write(&old, ended)], NOW.plus(2)).await.unwrap();
    assert_eq!(claim_one(store, NOW.plus(2)).await.teacher, teacher("u"));
}

pub async fn two_rows_of_a_session_may_come_in_one_batch(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9)]).await;
    let lease = claim_one(store, NOW).await;
    let live = done(&lease.jobs[0].row, NOW);
    let retired = MeetEvent { want: Want::Absent, settled: false, next_attempt_at: Some(NOW), ..live };
    let change = RowWrite { successor: Some(successor(&retired)), ..write(&lease, retired.clone()) };
    store.record(&[change], NOW).await.unwrap();
    // Planned from one moment: the old one has just gone, and the new one still waits for it.
    let ended = MeetEvent { phase: Phase::Absent, settled: true, next_attempt_at: None, ..retired.clone() };
    let writes = [write(&lease, ended), write(&lease, waiting(&successor(&retired)))];
    assert_eq!(store.record(&writes, NOW.plus(1)).await.unwrap(), [Written::Yes; 2]);
    release(store, &lease, NOW.plus(1)).await;
    let lease = claim_one(store, NOW.plus(1)).await;
    assert_eq!((lease.jobs.len(), lease.jobs[0].row.ordinal), (1, 1));
    // A NUL in what Google said must not fail the batch for ever.
    let odd = MeetEvent { etag: Some("\"a\0b\"".into()), ..done(&lease.jobs[0].row, NOW) };
    assert_eq!(store.record(&[write(&lease, odd)], NOW.plus(1)).await.unwrap(), [Written::Yes]);
    let (_, rows) = store.session(&session("a")).await.unwrap().unwrap();
    assert_eq!(rows[1].etag.as_deref(), Some("\"a\u{fffd}b\""));
    assert!(store.claim(NOW.plus(1), LEASE_MS, 16, 0).await.unwrap().is_empty());
}

/// A session that has gone from teacher `t`, where its event exists, to teacher `u`; both calendars claimed.
async fn handed_over(store: &Store) -> (TeacherLease, TeacherLease) {
    fold(store, vec![scheduled("a", 1, "t", 9)]).await;
    let lease = claim_one(store, NOW).await;
    store.record(&[write(&lease, done(&lease.jobs[0].row, NOW))], NOW).await.unwrap();
    release(store, &lease, NOW).await;
    fold(store, vec![scheduled("a", 2, "u", 9)]).await;
    let mut leases = claim(store, NOW).await;
    leases.sort_by_key(|lease| lease.teacher.clone());
    let new = leases.pop().unwrap();
    (leases.pop().unwrap(), new)
}

pub async fn a_release_keeps_what_is_due(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9)]).await;
    let lease = claim_one(store, NOW).await;
    store.record(&[write(&lease, done(&lease.jobs[0].row, NOW))], NOW).await.unwrap();
    // A session of the teacher comes in while the calendar is held.
    fold(store, vec![scheduled("b", 1, "t", 10)]).await;
    assert!(claim(store, NOW).await.is_empty());
    release(store, &lease, NOW).await;
    let lease = claim_one(store, NOW).await;
    assert_eq!(lease.jobs[0].row.session, session("b"));
    let later = MeetEvent { next_attempt_at: Some(NOW.plus(500)), ..lease.jobs[0].row.clone() };
    store.record(&[write(&lease, later)], NOW).await.unwrap();
    release(store, &lease, NOW).await;
    assert_eq!(store.next_due().await.unwrap(), Some(NOW.plus(500)));
    assert!(claim(store, NOW.plus(499)).await.is_empty());
    assert_eq!(claim(store, NOW.plus(500)).await.len(), 1);
    assert_eq!(store.counts(NOW.plus(500)).await.unwrap().due, 1);
    store.release(&[], NOW).await.unwrap();
}

pub async fn a_dead_holder_leaves_work_to_the_next(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let event = SessionEvent { ..scheduled("a", 1, "t", 9) };
    fold(store, vec![event, scheduled("b", 1, "u", 8)]).await;
    let leases = claim(store, NOW).await;
    assert_eq!(leases.len(), 2);
    // One holder puts its row off and dies before it gives the calendar back; the other dies at once.
    let later = MeetEvent { next_attempt_at: Some(NOW.plus(3 * LEASE_MS)), ..leases[0].jobs[0].row.clone() };
    store.record(&[write(&leases[0], later)], NOW).await.unwrap();
    assert!(claim(store, NOW.plus(LEASE_MS - 1)).await.is_empty());
    // One calendar at a time: the one that only looks due must not hide the other.
    let again = store.claim(NOW.plus(LEASE_MS), LEASE_MS, 1, 10).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].teacher.as_str(), again[0].jobs.len()), ("t", 1));
    release(store, &again[0], NOW).await;
    assert_eq!(store.claim(NOW.plus(3 * LEASE_MS), LEASE_MS, 9, 10).await.unwrap().len(), 2);
}

/// With what it was planned from: as claimed, or with the intent that was kept since.
fn from(lease: &TeacherLease, nth: usize, begun: Option<&MeetEvent>, row: MeetEvent) -> RowWrite {
    let origin = Origin { job: Arc::clone(&lease.jobs[nth]), begun: begun.cloned() };
    RowWrite { from: Some(origin), ..write(lease, row) }
}

pub async fn an_origin_changes_the_cost_and_not_the_outcome(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let names = ["a", "b", "c", "d"];
    fold(store, (9..).zip(names).map(|(hour, id)| scheduled(id, 1, "t", hour)).collect()).await;
    let lease = claim_one(store, NOW).await;
    let begun: Vec<_> = lease.jobs.iter().map(|job| begun(&job.row, NOW)).collect();
    // One is moved before its intent: refused, and the others kept.
    fold(store, vec![scheduled("a", 2, "t", 20)]).await;
    let intents: Vec<_> = (0..).zip(&begun).map(|(nth, row)| from(&lease, nth, None, row.clone())).collect();
    let kept = [Written::No, Written::Yes, Written::Yes, Written::Yes];
    assert_eq!(store.begin(&intents, NOW).await.unwrap(), kept);
    assert_eq!(only_row(store, "a").await.intent, None);
    assert_eq!(only_row(store, "b").await, begun[1], "the intent is kept, and the row stays due");

    // One is moved and one woken while the call is under way; one has a new version that says the same.
    fold(store, vec![scheduled("b", 2, "t", 21), scheduled("d", 2, "t", 12)]).await;
    store.wake_teacher(&teacher("t"), NOW.plus(1)).await.unwrap();
    let rows = [done(&begun[1], NOW), waiting(&done(&begun[2], NOW)), done(&begun[3], NOW)];
    let results: Vec<_> = (1..).zip(rows).map(|(nth, row)| from(&lease, nth, Some(&begun[nth]), row)).collect();
    let written = [Written::WantMoved, Written::Yes, Written::Yes];
    assert_eq!(store.record(&results, NOW.plus(2)).await.unwrap(), written);
    for id in ["b", "c"] {
        let row = only_row(store, id).await;
        assert_eq!((row.next_attempt_at, row.intent), (Some(NOW.plus(2)), None), "{id} is looked at again at once");
    }
    let row = only_row(store, "d").await;
    assert_eq!(row, done(&begun[3], NOW));
    let data = document(store, "d").await;
    assert_eq!((data["meetStatus"].as_str(), data["version"].as_i64()), (Some("READY"), Some(2)));

    // Nothing counts under a token that another has followed.
    let ended = NOW.plus(LEASE_MS);
    assert_eq!(store.begin(&intents, ended).await.unwrap(), [Written::No; 4]);
    let next = claim_one(store, ended).await;
    assert_eq!(store.begin(&intents, NOW).await.unwrap(), [Written::No; 4]);
    assert_eq!(store.record(&results, NOW).await.unwrap(), [Written::No; 3]);
    release(store, &next, ended).await;
}

pub async fn a_turn_is_one_commit(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("a", 1, "t", 9), scheduled("b", 1, "t", 10), scheduled("c", 1, "u", 11)]).await;
    let first = store.claim(NOW, LEASE_MS, 1, 1).await.unwrap().remove(0);
    let intent = begun(&first.jobs[0].row, NOW);
    assert_eq!(store.begin(&[from(&first, 0, None, intent.clone())], NOW).await.unwrap(), [Written::Yes]);

    // A result, the calendar given back, and claimed again together with the other: their first intents with it.
    let turn = Turn {
        records: vec![from(&first, 0, Some(&intent), done(&intent, NOW))],
        releases: vec![(first.teacher.clone(), first.token)],
        claim: Some(Claim { lease_ms: LEASE_MS, teachers: 5, rows_per_teacher: 5 }),
        ..Turn::default()
    };
    let mut open = |lease: &TeacherLease| Some(from(lease, 0, None, begun(&lease.jobs[0].row, NOW)));
    let turned = store.turn(&turn, NOW, &mut open).await.unwrap();
    assert_eq!((turned.records, turned.begins.len()), (vec![Written::Yes], 0));
    let claimed: Vec<_> = turned.leases.iter().map(|lease| lease.jobs[0].row.session.as_str()).collect();
    assert_eq!(claimed, ["b", "c"]);
    for lease in &turned.leases {
        let row = only_row(store, lease.jobs[0].row.session.as_str()).await;
        assert_eq!(row, begun(&lease.jobs[0].row, NOW));
    }
    assert_eq!(document(store, "a").await["meetStatus"], "READY");
}
