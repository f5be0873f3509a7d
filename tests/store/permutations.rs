//! Any order, any repetition, any grouping: the same end.

use meet_projector::event::{Change, SessionEvent};
use meet_projector::model::{Epoch, SessionId};
use meet_projector::plan::Want;
use meet_projector::projection::Session;
use meet_projector::store::{FoldOutcome, Incoming, Store};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::fixtures::*;

/// An event as drawn: which of two epochs, the version, and what it says.
#[derive(Debug, Clone)]
struct Drawn {
    epoch: usize,
    version: i64,
    what: What,
    teacher: u8,
    hour: i64,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Schedule,
    Reschedule,
    Cancel,
    CancelWithDetails,
    Refused,
}

/// A history, and how it arrives: indices into it in groups, each index at least once.
#[derive(Debug, Clone)]
struct Scenario {
    events: Vec<Drawn>,
    arrival: Vec<usize>,
    group: usize,
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let what = prop_oneof![
        4 => Just(What::Schedule),
        3 => Just(What::Reschedule),
        2 => Just(What::Cancel),
        1 => Just(What::CancelWithDetails),
        1 => Just(What::Refused),
    ];
    let drawn = (0..2_usize, 1..6_i64, what, 0..3_u8, 0..3_i64)
        .prop_map(|(epoch, version, what, teacher, hour)| Drawn { epoch, version, what, teacher, hour });
    prop::collection::vec(drawn, 1..14).prop_flat_map(|events| {
        let once: Vec<usize> = (0..events.len()).collect();
        let again = prop::collection::vec(0..events.len(), 0..6);
        let arrival = again.prop_map(move |again| once.iter().copied().chain(again).collect::<Vec<_>>()).prop_shuffle();
        (Just(events), arrival, 1..6_usize).prop_map(|(events, arrival, group)| Scenario { events, arrival, group })
    })
}

/// Runs `cases` drawn scenarios. The seed is printed; `STORE_SEED=<64 hex digits>` repeats a run.
pub fn any_order_ends_alike(kind: Kind, cases: u32) {
    let seed = match std::env::var("STORE_SEED") {
        Ok(hex) => data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap(),
        Err(_) => meet_projector::model::digest(&[uuid::Uuid::new_v4().as_bytes()]),
    };
    println!("STORE_SEED={}", data_encoding::HEXLOWER.encode(&seed));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let fresh = runtime.block_on(Fresh::new(kind));
    let other = runtime.block_on(fresh.another());
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let next = std::sync::atomic::AtomicI64::new(0);
    TestRunner::new_with_rng(config, rng)
        .run(&scenario(), |scenario| {
            let nth = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            runtime.block_on(check(&fresh.store, &other, nth, &scenario));
            Ok(())
        })
        .unwrap();
}

fn message(drawn: &Drawn, id: &str, sequence: i64) -> Incoming {
    let who = format!("t{}", drawn.teacher);
    let full = scheduled(id, drawn.version, &who, drawn.hour);
    match drawn.what {
        What::Schedule => incoming(sequence, full),
        What::Reschedule => incoming(sequence, SessionEvent { change: Change::Rescheduled, ..full }),
        What::Cancel => incoming(sequence, canceled(id, drawn.version, &who)),
        What::CancelWithDetails => incoming(sequence, SessionEvent { change: Change::Canceled, ..full }),
        What::Refused => refused(sequence, "not_json"),
    }
}

/// Two sessions live through the same events in epochs of their own: one event after the other in the order of the
/// streams, and as the scenario has it, with two processes taking turns.
async fn check(store: &Store, other: &Store, nth: i64, scenario: &Scenario) {
    let (straight, mixed) = (format!("straight{nth}"), format!("mixed{nth}"));
    let mut lengths = [0, 0];
    let places: Vec<(usize, i64)> = scenario
        .events
        .iter()
        .map(|drawn| {
            lengths[drawn.epoch] += 1;
            (drawn.epoch, lengths[drawn.epoch])
        })
        .collect();
    let epoch = |base: i64, which: usize| Epoch(4 * nth + base + i64::try_from(which).unwrap());

    let mut in_order: Vec<usize> = (0..places.len()).collect();
    in_order.sort_by_key(|index| places[*index]);
    for index in in_order {
        let (which, sequence) = places[index];
        let message = message(&scenario.events[index], &straight, sequence);
        store.fold(epoch(1, which), &[message], NOW).await.unwrap();
    }

    let stores = [store, other];
    for (turn, group) in scenario.arrival.chunks(scenario.group).enumerate() {
        // A consumer reads one epoch: what a group has of both comes as two groups, at the same time from both processes.
        let folds = [0, 1].map(|which| {
            let group: Vec<_> = group
                .iter()
                .filter(|index| places[**index].0 == which)
                .map(|index| message(&scenario.events[*index], &mixed, places[*index].1))
                .collect();
            let store = stores[(turn + which) % 2];
            async move { store.fold(epoch(3, which), &group, NOW).await.unwrap() }
        });
        for report in futures_util::future::join_all(folds).await {
            assert!(report.outcomes.iter().all(|outcome| *outcome != FoldOutcome::DeadLetter("bad_value")));
        }
    }

    for (which, length) in lengths.into_iter().enumerate() {
        assert_eq!(store.position(epoch(3, which)).await.unwrap().contiguous, length, "an event vanished");
    }
    assert_eq!(told(store, &straight, 4 * nth + 1).await, told(store, &mixed, 4 * nth + 3).await);
}

/// What can be seen of a session, its own name and epochs taken out.
async fn told(store: &Store, id: &str, base: i64) -> Option<(Session, serde_json::Value, Vec<String>)> {
    let key = session(id);
    let (mut session, rows) = store.session(&key).await.unwrap()?;
    session.id = SessionId::parse("same").unwrap();
    session.head.stamp.epoch = Epoch(session.head.stamp.epoch.0 - base);
    if let Some((stamp, _)) = &mut session.details {
        stamp.epoch = Epoch(stamp.epoch.0 - base);
    }
    let mut document = document(store, id).await;
    document["sessionId"] = "same".into();
    // Which rows there are depends on what teachers came in between; whose is wanted does not.
    let wanted: Vec<_> =
        rows.iter().filter(|row| row.want == Want::Present).map(|row| row.teacher.to_string()).collect();
    assert!(wanted.len() <= 1, "one event at most: {rows:?}");
    Some((session, document, wanted))
}
