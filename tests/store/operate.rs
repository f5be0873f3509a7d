//! What operators do, in the database: pauses, retries, requeued letters, calls, the overview.

use meet_projector::event::{encode, subject};
use meet_projector::plan::{Code, Failure, Intent, MeetEvent, Phase};
use meet_projector::store::{
    ActedFilter, Actor, CallOutcome, DeadLetterFilter, Discarded, FailedFilter, Idempotency, Incoming, Pause,
    ProcessRecord, RawMessage, Refused, Requeued, RetryAnswer, RetryOutcome, Scope, Store, TokenStatus,
};

use super::fixtures::*;

const HOUR_MS: i64 = 3_600_000;

fn actor() -> Actor {
    Actor::named("ana@school")
}

fn pause(who: Option<&str>, until: Option<i64>) -> Pause {
    Pause {
        scope: Scope::Reconcile,
        teacher: who.map(teacher),
        since: NOW,
        until: until.map(|ms| NOW.plus(ms)),
        actor: actor().as_str().to_owned(),
        reason: "because".into(),
    }
}

async fn outcomes(store: &Store, action: &str) -> Vec<String> {
    let filter = ActedFilter { action: Some(action.into()), limit: 100, ..ActedFilter::default() };
    let acted = store.acted(&filter).await.unwrap();
    acted.iter().rev().map(|acted| format!("{} {}", acted.target, acted.outcome.as_deref().unwrap_or("-"))).collect()
}

/// Records on the one due calendar what `change` makes of its one row, and gives it back.
async fn record(store: &Store, now: meet_projector::model::UnixMillis, change: impl FnOnce(MeetEvent) -> MeetEvent) {
    let lease = claim_one(store, now).await;
    let row = change(lease.jobs[0].row.clone());
    store.record(&[write(&lease, row)], now).await.unwrap();
    release(store, &lease, now).await;
}

fn failed(row: &MeetEvent, code: Code) -> MeetEvent {
    MeetEvent {
        settled: false,
        repairs: 2,
        repairs_since: Some(NOW),
        failure: Some(Failure { code, message: "it said no".into(), since: NOW, attempts: 1 }),
        next_attempt_at: Some(NOW.plus(24 * HOUR_MS)),
        ..done(row, NOW)
    }
}

pub async fn a_pause_holds_claims_until_it_ends(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("s1", 1, "t1", 1), scheduled("s2", 1, "t2", 2)]).await;

    store.pause(&pause(Some("t1"), None), NOW).await.unwrap();
    assert_eq!(claim_one(store, NOW).await.teacher, teacher("t2"), "only the other calendar");
    let held = store.held_calendars(None, NOW).await.unwrap();
    assert_eq!(held.iter().map(|held| held.teacher.clone()).collect::<Vec<_>>(), [teacher("t2")]);
    assert!(store.held_calendars(Some(&teacher("t1")), NOW).await.unwrap().is_empty());

    // Another process, such as one after a restart, sees it too, and nothing looks due to it.
    let other = fresh.another().await;
    assert_eq!(other.pauses().await.unwrap(), [pause(Some("t1"), None)]);
    assert_eq!(other.next_due().await.unwrap(), Some(NOW.plus(LEASE_MS)), "t2's lease, and nothing of t1");
    assert!(!other.resume(Scope::Reconcile, None, &actor(), None, NOW).await.unwrap(), "that is another pause");
    assert!(other.resume(Scope::Reconcile, Some(&teacher("t1")), &actor(), Some("done"), NOW).await.unwrap());
    let lease = claim_one(store, NOW).await;
    assert_eq!(lease.teacher, teacher("t1"));
    release(store, &lease, NOW).await;

    // All calendars, for an hour.
    let later = NOW.plus(2 * LEASE_MS);
    store.pause(&pause(None, Some(HOUR_MS)), later).await.unwrap();
    assert!(claim(store, later).await.is_empty());
    assert_eq!(store.next_due().await.unwrap(), None);
    assert!(store.end_pauses(later).await.unwrap().is_empty(), "it holds");
    let end = NOW.plus(HOUR_MS);
    assert_eq!(claim(store, end).await.len(), 2, "a pause that is over holds nobody, removed or not");
    assert_eq!(store.end_pauses(end).await.unwrap(), [pause(None, Some(HOUR_MS))]);
    assert!(store.pauses().await.unwrap().is_empty());
    assert_eq!(outcomes(store, "resume").await, ["reconcile t1 resumed", "reconcile resumed"]);
    assert_eq!(outcomes(store, "pause").await.len(), 2);
}

pub async fn a_retry_wakes_what_a_person_mended(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let ids = [session("s1"), session("nobody")];
    fold(store, vec![scheduled("s1", 1, "t1", 1)]).await;
    let refused = |outcome: &RetryOutcome| match outcome {
        RetryOutcome::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    };
    let retried = store.retry(&ids, &actor(), None, NOW).await.unwrap();
    assert_eq!(refused(&retried[0].1), "TEACHER_NOT_CONNECTED");
    assert_eq!(retried[1], (session("nobody"), RetryOutcome::Unknown));

    store.put_credential(&grant("t1", "1"), NOW).await.unwrap();
    record(store, NOW, |row| failed(&row, Code::MeetNotAllowed)).await;
    assert_eq!(document(store, "s1").await["meetStatus"], "ERROR");
    store.cool_down(&teacher("t1"), NOW).await.unwrap();
    assert_eq!(store.next_due().await.unwrap(), Some(NOW.plus(24 * HOUR_MS)));
    let filter = |code| FailedFilter { code: Some(code), teacher: Some(teacher("t1")) };
    assert_eq!(store.failed_sessions(&filter(Code::MeetNotAllowed), NOW).await.unwrap(), [session("s1")]);
    assert!(store.failed_sessions(&filter(Code::MeetFailed), NOW).await.unwrap().is_empty());

    // The plan says so and does nothing.
    let accepted = RetryOutcome::Accepted { calls: 2 };
    assert_eq!(store.retry_plan(&ids[..1], NOW).await.unwrap(), [(session("s1"), accepted.clone())]);
    assert_eq!(store.next_due().await.unwrap(), Some(NOW.plus(24 * HOUR_MS)));

    let before = only_row(store, "s1").await;
    let changes = &mut store.changes();
    assert_eq!(store.retry(&ids[..1], &actor(), Some("mended"), NOW).await.unwrap()[0].1, accepted);
    let row = only_row(store, "s1").await;
    assert_eq!((row.failure.clone(), row.repairs, row.next_attempt_at), (None, 0, Some(NOW)), "{row:?}");
    assert_eq!((row.binding.clone(), row.conference_attempt), (before.binding, before.conference_attempt), "ids stay");
    assert_eq!(changes.try_recv().unwrap(), session("s1"), "readers are told");
    assert_eq!(store.credential(&teacher("t1")).await.unwrap().unwrap().cool_down_until, None);
    assert_eq!(claim(store, NOW).await.len(), 1);

    // What is tried again by itself keeps its age, and a limit of Google's is kept.
    let later = NOW.plus(2 * LEASE_MS);
    record(store, later, |row| failed(&row, Code::GoogleUnavailable)).await;
    store.retry(&ids[..1], &actor(), None, later).await.unwrap();
    assert_eq!(only_row(store, "s1").await.failure.unwrap().since, NOW);
    let until = store.cool_down(&teacher("t1"), later).await.unwrap();
    let limited = store.retry(&ids[..1], &actor(), None, later).await.unwrap();
    assert_eq!(refused(&limited[0].1), "CALENDAR_LIMITED");
    assert_eq!(store.credential(&teacher("t1")).await.unwrap().unwrap().cool_down_until, Some(until));

    // A breaker that some process has open, a pause, the end.
    let state = r#"{"breakers":[{"api":"calendar","message":"accessNotConfigured"}]}"#;
    let process = ProcessRecord {
        id: "p".into(),
        host: "h".into(),
        pid: 1,
        version: "1".into(),
        started_at: later,
        seen_at: later,
        state: state.into(),
    };
    store.put_process(&process, true).await.unwrap();
    assert_eq!(refused(&store.retry_plan(&ids[..1], later).await.unwrap()[0].1), "CONFIG_ERROR");
    store.remove_process("p").await.unwrap();
    store.pause(&pause(Some("t1"), None), later).await.unwrap();
    assert_eq!(refused(&store.retry_plan(&ids[..1], later).await.unwrap()[0].1), "PAUSED");
    let end = details(1).ends_at;
    assert_eq!(refused(&store.retry_plan(&ids[..1], end).await.unwrap()[0].1), "SESSION_ENDED");
    assert_eq!(
        outcomes(store, "session retry").await,
        ["s1 refused: TEACHER_NOT_CONNECTED", "s1 accepted", "s1 accepted", "s1 refused: CALENDAR_LIMITED"]
    );
}

pub async fn a_key_gives_one_answer(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("s1", 1, "t1", 1)]).await;
    store.put_credential(&grant("t1", "1"), NOW).await.unwrap();
    let id = session("s1");
    let once = Idempotency { key: "k1", request_hash: "s1" };

    // Two at once, from two processes: one action, one answer.
    let other = fresh.another().await;
    let who = actor();
    let (one, two) = tokio::join!(
        store.retry_once(&id, &who, Some(&once), 10_000, NOW),
        other.retry_once(&id, &who, Some(&once), 10_000, NOW)
    );
    let body = store.document(&id).await.unwrap().unwrap().json;
    let given = |replayed| RetryAnswer::Given { status: 202, body: body.clone(), replayed };
    let mut answers = [one.unwrap(), two.unwrap()];
    answers.sort_by_key(|answer| *answer == given(true));
    assert_eq!(answers, [given(false), given(true)]);
    assert_eq!(outcomes(store, "session retry").await, ["s1 accepted"]);

    // A key belongs to its request and to its credential.
    let misused = Idempotency { key: "k1", request_hash: "s2" };
    assert_eq!(store.retry_once(&id, &who, Some(&misused), 0, NOW).await.unwrap(), RetryAnswer::KeyReused);
    let stranger = Actor::named("token:other");
    assert_eq!(
        store.retry_once(&id, &stranger, Some(&once), 10_000, NOW).await.unwrap(),
        RetryAnswer::TooSoon { until: NOW.plus(10_000) }
    );
    assert!(matches!(store.retry_once(&session("nobody"), &who, None, 0, NOW).await.unwrap(), RetryAnswer::Unknown));

    // For 24 hours.
    let day = NOW.plus(24 * HOUR_MS);
    assert_eq!(store.retry_once(&id, &who, Some(&once), 10_000, day.plus(-1)).await.unwrap(), given(true));
    let anew = store.retry_once(&id, &who, Some(&once), 10_000, day).await.unwrap();
    assert!(matches!(anew, RetryAnswer::Given { status: 202, replayed: false, .. }), "{anew:?}");

    // A refusal is an answer, too.
    fold(store, vec![canceled("s1", 2, "t1")]).await;
    let once = Idempotency { key: "k2", request_hash: "s1" };
    for replayed in [false, true] {
        let answer = store.retry_once(&id, &who, Some(&once), 0, day).await.unwrap();
        let RetryAnswer::Given { status: 409, body, replayed: was } = answer else { panic!("{answer:?}") };
        assert!(body.contains("SESSION_CANCELED") && was == replayed, "{body}");
    }
}

/// A message that was refused by rules which today's program does not have.
fn refused_once(sequence: i64, event: &meet_projector::event::SessionEvent) -> Incoming {
    let raw = RawMessage {
        subject: subject(event),
        headers: vec![("Content-Type".into(), "application/cloudevents+json".into())],
        payload: encode(event).to_string().into(),
    };
    let class = "unknown_time_zone";
    let decoded = Err(Refused { class, reason: "no such zone".into(), session: Some(event.session.clone()) });
    Incoming { raw, decoded, ..incoming(sequence, event.clone()) }
}

pub async fn a_mended_letter_is_folded_at_its_place(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    let mut broken = incoming(4, scheduled("s4", 1, "t1", 4));
    broken.decoded = Err(Refused { class: "not_json", reason: "not JSON".into(), session: None });
    let group = [
        refused_once(1, &scheduled("s1", 1, "t1", 1)),
        refused_once(2, &scheduled("s2", 1, "t1", 2)),
        incoming(3, scheduled("s2", 3, "t1", 3)),
        broken,
        incoming(5, scheduled("s5", 1, "t1", 5)),
        refused_once(6, &scheduled("s5", 1, "t1", 6)),
    ];
    store.fold(EPOCH, &group, NOW).await.unwrap();
    let open = DeadLetterFilter { state: Some("open".into()), limit: 10, ..DeadLetterFilter::default() };
    let letters = store.find_dead_letters(&open).await.unwrap();
    let id = |sequence| letters.iter().find(|letter| letter.place.sequence == sequence).unwrap().id;
    let ids = [id(1), id(2), id(4), id(6), 999];
    let position = store.position(EPOCH).await.unwrap();

    let plan = store.requeue_plan(&ids, NOW).await.unwrap();
    assert_eq!(plan[0], (id(1), Requeued::Applied { calls: 2 }));
    assert_eq!(plan[1], (id(2), Requeued::Stale { version: 3, sequence: 3 }));
    assert!(matches!(&plan[2].1, Requeued::Refused { .. }), "{plan:?}");
    assert!(matches!(&plan[3].1, Requeued::Refused { class: "version_conflict", .. }), "{plan:?}");
    assert_eq!(plan[4], (999, Requeued::Unknown));
    assert_eq!(store.find_dead_letters(&open).await.unwrap(), letters, "a plan changes nothing");

    assert_eq!(store.requeue(&ids, &actor(), Some("new release"), NOW).await.unwrap(), plan);
    assert_eq!(document(store, "s1").await["meetStatus"], "PENDING");
    assert_eq!(document(store, "s2").await["version"], 3);
    assert_eq!(document(store, "s5").await["startsAt"], details(5).starts_at.to_rfc3339(), "the lower sequence stays");
    assert_eq!(only_row(store, "s1").await.next_attempt_at, Some(NOW), "the reconciler finds it");
    assert_eq!(store.position(EPOCH).await.unwrap(), position, "nothing was read anew");
    let left = store.find_dead_letters(&open).await.unwrap();
    assert_eq!(left.iter().map(|letter| letter.id).collect::<Vec<_>>(), [id(6), id(4)]);
    assert!(left[0].refused.reason.contains("higher version"), "today's reason: {:?}", left[0]);
    let again = store.requeue(&ids[..1], &actor(), None, NOW).await.unwrap();
    assert_eq!(again, [(id(1), Requeued::Already)]);

    let discarded = store.discard(&[id(4), id(1), 999], &actor(), "nonsense", NOW).await.unwrap();
    assert_eq!(discarded, [(id(4), Discarded::Yes), (id(1), Discarded::NotOpen), (999, Discarded::Unknown)]);
    // Nothing is ever lost: all four are there.
    let all = DeadLetterFilter { limit: 10, ..DeadLetterFilter::default() };
    assert_eq!(store.find_dead_letters(&all).await.unwrap().len(), 4);
    let of_session = DeadLetterFilter { session: Some("s5".into()), class: Some("version_conflict".into()), ..all };
    assert_eq!(store.find_dead_letters(&of_session).await.unwrap().len(), 1);
    assert_eq!(store.counts(NOW).await.unwrap().dead_letters, 1);
    assert_eq!(outcomes(store, "dead-letter discard").await, [format!("dead letter {} discarded", id(4))]);
}

pub async fn the_last_calls_of_a_session_are_kept(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    fold(store, vec![scheduled("s1", 1, "t1", 1)]).await;
    let lease = claim_one(store, NOW).await;
    let mut row = lease.jobs[0].row.clone();
    for n in 0..45 {
        let now = NOW.plus(n);
        let begun = MeetEvent { intent: Some(Intent { operation: "patch".into(), at: now }), ..begun(&row, now) };
        store.begin(&[write(&lease, begun.clone())], now).await.unwrap();
        row = match n {
            44 => MeetEvent { intent: None, phase: Phase::Unknown, ..failed(&begun, Code::GoogleUnavailable) },
            _ => MeetEvent { etag: Some(format!("{n}")), settled: false, ..done(&begun, now) },
        };
        store.record(&[write(&lease, row.clone())], now).await.unwrap();
    }
    let calls = store.calls(&session("s1")).await.unwrap();
    assert!((20..=28).contains(&calls.len()), "{}", calls.len());
    let last = calls.last().unwrap();
    assert_eq!((last.number, last.operation.as_str(), last.outcome), (45, "patch", CallOutcome::Unclear));
    assert_eq!((last.begun_at, last.code), (Some(NOW.plus(44)), Some(Code::GoogleUnavailable)));
    assert!(calls.iter().rev().skip(1).all(|call| call.outcome == CallOutcome::Done && call.code.is_none()));

    // A look that brought nothing leaves no line; one that did leaves one; a lost lease leaves none.
    store.record(&[write(&lease, row.clone())], NOW).await.unwrap();
    let seen = MeetEvent { phase: Phase::Live, etag: Some("new".into()), failure: None, ..row.clone() };
    store.record(&[write(&lease, seen.clone())], NOW).await.unwrap();
    let stranger = MeetEvent { etag: Some("other".into()), ..seen };
    let stale = meet_projector::store::RowWrite { from: None, token: lease.token + 1, row: stranger, successor: None };
    store.record(&[stale], NOW).await.unwrap();
    let calls = store.calls(&session("s1")).await.unwrap();
    let last = calls.last().unwrap();
    assert_eq!((last.number, last.operation.as_str(), last.outcome), (46, "look", CallOutcome::Seen));
}

pub async fn the_overview_names_what_needs_a_person(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let store = &fresh.store;
    assert_eq!(store.overview(NOW).await.unwrap().in_danger_count, 0);
    let soon = details(1).starts_at.plus(-HOUR_MS);
    let events: Vec<_> = (1..=12).map(|hour| scheduled(&format!("s{hour:02}"), 1, "t1", hour)).collect();
    fold(store, events).await;
    fold(store, vec![scheduled("far", 1, "t2", 72), canceled("gone", 1, "t2")]).await;
    record_all(store, soon).await;
    store.fold(EPOCH, &[refused(15, "not_json")], NOW).await.unwrap();
    store.put_credential(&grant("t3", "3"), NOW).await.unwrap();
    let dead = TokenStatus::ReconnectRequired;
    assert!(store.set_token_status(&teacher("t3"), 1, dead, "revoked", NOW).await.unwrap());
    store.put_credential(&grant("t4", "4"), NOW).await.unwrap();
    let until = store.cool_down(&teacher("t4"), soon).await.unwrap();

    let seen = store.overview(soon).await.unwrap();
    assert_eq!(seen.in_danger_count, 12, "those of the next day");
    let named: Vec<_> = seen.in_danger.iter().map(|session| session.session.as_str()).collect();
    assert_eq!(named[..3], ["s01", "s02", "s03"], "soonest first");
    assert_eq!((named.len(), seen.in_danger[0].code.as_deref()), (10, Some("TEACHER_NOT_CONNECTED")));
    let oldest = seen.oldest_pending.clone().unwrap();
    assert_eq!((oldest.session, oldest.since), (session("far"), NOW));
    assert_eq!(seen.errors, [(Code::TeacherNotConnected, 12)]);
    assert_eq!(seen.dead_letters, [("not_json".to_owned(), 1)]);
    assert_eq!(seen.cool_downs, [(teacher("t4"), until)]);
    let teachers: Vec<_> = seen.teachers.iter().map(|t| (t.teacher.as_str(), t.status, t.sessions)).collect();
    assert_eq!(teachers, [("t1", None, 12), ("t3", Some(dead), 0)]);
    assert!(seen.outbox > 0 && seen.outbox_oldest == Some(NOW), "{seen:?}");
    assert!(store.database_version().await.unwrap().contains("SQL"));

    // What runs counts until it is over.
    let late = details(1).ends_at.plus(-1);
    assert_eq!(store.overview(late).await.unwrap().in_danger[0].session, session("s01"));
    assert_eq!(store.overview(late.plus(1)).await.unwrap().in_danger[0].session, session("s02"));
}

/// Says of every row of t1 that nobody is connected.
async fn record_all(store: &Store, now: meet_projector::model::UnixMillis) {
    let leases = claim(store, now).await;
    for lease in leases.iter().filter(|lease| lease.teacher == teacher("t1")) {
        let blocked = |row: &MeetEvent| MeetEvent {
            failure: Some(Failure {
                code: Code::TeacherNotConnected,
                message: "not connected".into(),
                since: now,
                attempts: 0,
            }),
            next_attempt_at: None,
            ..row.clone()
        };
        let writes: Vec<_> = lease.jobs.iter().map(|job| write(lease, blocked(&job.row))).collect();
        store.record(&writes, now).await.unwrap();
    }
}
