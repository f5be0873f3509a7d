//! Several processes at once. Each has a handle of its own on the database.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use meet_projector::model::{Epoch, Place};
use meet_projector::plan::MeetEvent;
use meet_projector::projection;
use meet_projector::store::{Incoming, RefreshTurn, Store, Written};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::fixtures::*;

/// A history of 30 sessions: moved about, handed over, canceled, revived.
fn history() -> Vec<Incoming> {
    let mut events = Vec::new();
    for version in 1..=8 {
        for nth in 0..30 {
            let (id, who) = (format!("s{nth}"), format!("t{}", (nth + version / 3) % 5));
            events.push(match (nth + version) % 7 {
                0 => canceled(&id, version, &who),
                _ => scheduled(&id, version, &who, (nth * version) % 40),
            });
        }
    }
    (1..).zip(events).map(|(sequence, event)| incoming(sequence, event)).collect()
}

/// What one process commits reaches the loops of another: at once where they share a server, and at the next look
/// otherwise.
pub async fn another_process_hears_of_a_commit(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let other = fresh.another().await;
    let (wake, cancel) = (Arc::new(Notify::new()), CancellationToken::new());
    let mut changes = other.changes();
    let listening = tokio::spawn({
        let (other, wake, cancel) = (other.clone(), Arc::clone(&wake), cancel.clone());
        async move { other.listen(&wake, &cancel).await }
    });
    if kind == Kind::Sqlite {
        // There is no other process to listen to.
        listening.await.unwrap();
        return;
    }
    // The first wake-up says that it listens.
    wake.notified().await;
    fold(&fresh.store, vec![scheduled("ses_1", 1, "tch_1", 3)]).await;
    assert_eq!(changes.recv().await.unwrap(), session("ses_1"));
    wake.notified().await;

    // It survives the loss of its connection, and does not hear itself.
    let lost = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity WHERE query LIKE 'LISTEN%'";
    assert_eq!(fresh.texts(lost).await, ["true"]);
    wake.notified().await;
    fold(&other, vec![scheduled("ses_2", 1, "tch_1", 3)]).await;
    fold(&fresh.store, vec![scheduled("ses_3", 1, "tch_1", 3)]).await;
    let heard = [changes.recv().await.unwrap(), changes.recv().await.unwrap()];
    assert_eq!(heard, [session("ses_2"), session("ses_3")], "its own commit once, and the other's");
    assert!(changes.try_recv().is_err());
    cancel.cancel();
    listening.await.unwrap();
}

pub async fn shuffled_halves_from_several_writers_end_alike(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let messages = history();
    // Four writers; each has three quarters of the messages, so every message comes at least twice, in an order of its
    // own: strides that are coprime to the number of messages.
    let writers = [7_usize, 11, 13, 17].into_iter().enumerate().map(|(nth, stride)| {
        let messages = messages.clone();
        let url = fresh.url.clone();
        tokio::spawn(async move {
            let store = open(&url).await;
            let total = messages.len();
            let mine: Vec<_> = (0..total)
                .map(|index| (index * stride + nth * 31) % total)
                .filter(|index| index % 4 != nth)
                .map(|index| messages[index].clone())
                .collect();
            for group in mine.chunks(9) {
                store.fold(EPOCH, group, NOW).await.unwrap();
            }
        })
    });
    for writer in join_all(writers).await {
        writer.unwrap();
    }
    let mut expected = std::collections::BTreeMap::new();
    for message in &messages {
        let event = message.decoded.as_ref().unwrap();
        let place = Place { epoch: EPOCH, sequence: message.sequence };
        let state = expected.remove(&event.session);
        expected.insert(event.session.clone(), projection::fold(state, event, place).0);
    }
    for (id, session) in expected {
        let (stored, rows) = fresh.store.session(&id).await.unwrap().unwrap();
        assert_eq!(stored, session);
        let wanted = rows.iter().filter(|row| row.want == meet_projector::plan::Want::Present).count();
        assert_eq!(wanted, usize::from(stored.head.status == projection::Status::Scheduled));
    }
    let position = fresh.store.position(EPOCH).await.unwrap();
    assert_eq!(position.contiguous, i64::try_from(messages.len()).unwrap());
    assert_eq!(fresh.texts("SELECT CAST(COUNT(*) AS TEXT) FROM inbox").await, ["1"], "ranges that touch are merged");
    assert_eq!(fresh.store.counts(NOW).await.unwrap().dead_letters, 0);
}

pub async fn nobody_claims_what_another_holds(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let teachers = 40;
    fold(&fresh.store, (0..teachers).map(|nth| scheduled(&format!("s{nth}"), 1, &format!("t{nth}"), nth)).collect())
        .await;
    let workers = (0..16).map(|_| {
        let url = fresh.url.clone();
        tokio::spawn(async move {
            let store = open(&url).await;
            let mut mine = Vec::new();
            loop {
                let leases = store.claim(NOW, LEASE_MS, 2, 10).await.unwrap();
                if leases.is_empty() {
                    return mine;
                }
                mine.extend(leases.into_iter().map(|lease| lease.teacher));
            }
        })
    });
    let claimed: Vec<_> = join_all(workers).await.into_iter().flat_map(Result::unwrap).collect();
    assert_eq!(claimed.len(), usize::try_from(teachers).unwrap());
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), claimed.len(), "a calendar was claimed twice");
}

/// A worker that confirms whatever it gets and stops when told and nothing is due.
async fn work(store: Store, is_over: Arc<AtomicBool>) {
    loop {
        let was_over = is_over.load(Ordering::SeqCst);
        let leases = store.claim(NOW, LEASE_MS, 2, 3).await.unwrap();
        if leases.is_empty() && was_over {
            return;
        }
        for lease in &leases {
            let intents: Vec<_> = lease.jobs.iter().map(|job| write(lease, begun(&job.row, NOW))).collect();
            let written = store.begin(&intents, NOW).await.unwrap();
            let results: Vec<_> = intents
                .into_iter()
                .zip(written)
                .filter(|(_, written)| *written == Written::Yes)
                .map(|(intent, _)| write(lease, MeetEvent { ..done(&intent.row, NOW) }))
                .collect();
            store.record(&results, NOW).await.unwrap();
            store.release(&[(lease.teacher.clone(), lease.token)], NOW).await.unwrap();
        }
        tokio::task::yield_now().await;
    }
}

pub async fn no_wake_up_is_lost(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut workers = Vec::new();
    for _ in 0..3 {
        workers.push(tokio::spawn(work(fresh.another().await, Arc::clone(&is_over))));
    }
    // Twelve sessions on three calendars move again and again while the workers confirm them.
    let mut sequence = 0;
    for version in 1..=25 {
        let group: Vec<_> = (0..12)
            .map(|nth| {
                sequence += 1;
                incoming(sequence, scheduled(&format!("s{nth}"), version, &format!("t{}", nth % 3), version + nth))
            })
            .collect();
        for part in group.chunks(5) {
            fresh.store.fold(Epoch(1), part, NOW).await.unwrap();
        }
    }
    is_over.store(true, Ordering::SeqCst);
    for worker in workers {
        worker.await.unwrap();
    }
    // Whoever saw nothing due last may have seen it while another held the rest; that one went on until all was done.
    for nth in 0..12 {
        let row = only_row(&fresh.store, &format!("s{nth}")).await;
        assert!(row.settled && row.next_attempt_at.is_none(), "{row:?}");
        assert_eq!(row.desired_revision, 25);
        assert_eq!(document(&fresh.store, &format!("s{nth}")).await["meetStatus"], "READY");
    }
    assert_eq!(fresh.store.next_due().await.unwrap(), None);
    assert_eq!(fresh.store.counts(NOW).await.unwrap().due, 0);
}

pub async fn a_cancelled_fold_leaves_nothing_and_blocks_nobody(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    for nth in 0..60_i64 {
        let store = fresh.store.clone();
        let group = [incoming(nth + 1, scheduled(&format!("s{nth}"), 1, "t", nth)), refused(nth + 1000, "not_json")];
        let task = tokio::spawn(async move { store.fold(EPOCH, &group, NOW).await.map(drop) });
        for _ in 0..nth {
            tokio::task::yield_now().await;
        }
        task.abort();
        drop(task.await);
    }
    // Each group is there as a whole or not at all, and the connection goes on.
    let folded = fresh.texts("SELECT session_id FROM session").await.len();
    assert_eq!(fresh.texts("SELECT class FROM dead_letter").await.len(), folded);
    assert_eq!(fresh.texts("SELECT key FROM outbox").await.len(), folded);
    fold(&fresh.store, vec![scheduled("last", 1, "t", 1)]).await;
    assert!(fresh.store.document(&session("last")).await.unwrap().is_some());
}

pub async fn one_of_many_refreshes(kind: Kind) {
    let fresh = Fresh::new(kind).await;
    fresh.store.put_credential(&grant("t", "1"), NOW).await.unwrap();
    for version in 1..=5 {
        let racers = (0..8).map(|_| {
            let store = fresh.store.clone();
            async move { store.begin_refresh(&teacher("t"), version, NOW, 1000).await.unwrap() }
        });
        let turns: Vec<_> = join_all(racers)
            .await
            .into_iter()
            .filter_map(|turn| match turn {
                RefreshTurn::Mine { turn } => Some(turn),
                RefreshTurn::Moved | RefreshTurn::Theirs { .. } => None,
            })
            .collect();
        assert_eq!(turns.len(), 1, "exactly one may ask Google");
        let token = super::credentials::refreshed();
        assert!(fresh.store.finish_refresh(&teacher("t"), version, turns[0], &token, NOW).await.unwrap());
    }
}
