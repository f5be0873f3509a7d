//! What is concluded from what is seen.

use super::*;
use crate::model::Epoch;

const CREATED: &str = "2026-01-01T00:00:00.123456789Z";
const LATER: &str = "2026-06-01T00:00:00Z";
const EARLIER: &str = "2025-06-01T00:00:00Z";

fn known() -> Known {
    Known {
        current: Some(EpochRecord {
            epoch: Epoch(1),
            stream: "BOOKINGS".into(),
            created: CREATED.into(),
            first_sequence: 1,
            consumer: "meet-projector-e1".into(),
            opened_at: UnixMillis::new(0),
            reason: "first start".into(),
            sources: vec!["/services/bookings".into()],
        }),
        position: Position { contiguous: 900, highest: 900, highest_stored_at: None, highest_fingerprint: None },
        last_stored_at: Some(UnixMillis::parse_rfc3339("2026-05-01T00:00:00Z").unwrap()),
        sources: ["/services/bookings".to_owned()].into(),
    }
}

/// The stream as it should be: 1 to 1,000, ours at 900, 768 and 512.
fn healthy() -> Sighting {
    Sighting {
        stream: "BOOKINGS".into(),
        created: CREATED.into(),
        first_sequence: 1,
        last_sequence: 1000,
        messages: 1000,
        position: Some(Trace::Same),
        anchors: vec![(768, Trace::Same), (512, Trace::Same)],
        sources: vec![Some("/services/bookings".into()); 2],
        first_stored_at: Some(UnixMillis::parse_rfc3339(CREATED).unwrap()),
    }
}

/// Made anew after our last event: `messages` events, sequences from 1.
fn remade(messages: i64) -> Sighting {
    let there = |sequence| if sequence <= messages { Trace::Different } else { Trace::Beyond };
    Sighting {
        created: LATER.into(),
        last_sequence: messages,
        messages: messages.unsigned_abs(),
        position: Some(there(900)),
        anchors: vec![(768, there(768)), (512, there(512))],
        sources: if messages == 0 { vec![] } else { vec![Some("/services/bookings".into()); 2] },
        first_stored_at: (messages > 0).then(|| UnixMillis::parse_rfc3339(LATER).unwrap()),
        ..healthy()
    }
}

fn fork_of(verdict: Verdict) -> Option<i64> {
    match verdict {
        Verdict::Ambiguous(ambiguity) => {
            assert!(ambiguity.advice.contains("epoch adopt --execute --reason"));
            ambiguity.fork
        }
        other => panic!("not ambiguous: {other:?}"),
    }
}

#[test]
fn a_database_that_knows_nothing_starts_epoch_one() {
    assert_eq!(judge(&Known::default(), &healthy()), Verdict::First);
    assert_eq!(judge(&Known::default(), &remade(0)), Verdict::First);
}

#[test]
fn the_stream_we_knew() {
    assert_eq!(judge(&known(), &healthy()), Verdict::Same);
    let all_aged_out = Sighting {
        first_sequence: 1001,
        messages: 0,
        position: Some(Trace::Expired),
        anchors: vec![(768, Trace::Expired), (512, Trace::Expired)],
        sources: vec![],
        first_stored_at: None,
        ..healthy()
    };
    assert_eq!(judge(&known(), &all_aged_out), Verdict::Same, "aging out is no disaster");
    let one_deleted = Sighting { position: Some(Trace::Absent), ..healthy() };
    assert_eq!(judge(&known(), &one_deleted), Verdict::Same, "one message removed by an operator");
    let nothing_read = Known { position: Position::default(), last_stored_at: None, ..known() };
    let sighting = Sighting { position: None, anchors: vec![], ..healthy() };
    assert_eq!(judge(&nothing_read, &sighting), Verdict::Same);
}

#[test]
fn another_creation_time_with_our_messages_is_the_same_stream() {
    for created in [LATER, EARLIER] {
        assert_eq!(judge(&known(), &Sighting { created: created.into(), ..healthy() }), Verdict::SameRestamped);
    }
    let position_aged_out = Sighting {
        created: LATER.into(),
        position: Some(Trace::Absent),
        anchors: vec![(768, Trace::Same), (512, Trace::Expired)],
        ..healthy()
    };
    assert_eq!(judge(&known(), &position_aged_out), Verdict::SameRestamped);
}

#[test]
fn plainly_new_streams_are_adopted() {
    for messages in [0, 5, 1200] {
        let verdict = judge(&known(), &remade(messages));
        assert!(matches!(verdict, Verdict::New(_)), "{messages} messages: {verdict:?}");
    }
    let nothing_read = Known { position: Position::default(), last_stored_at: None, ..known() };
    for created in [LATER, EARLIER] {
        let sighting = Sighting { created: created.into(), position: None, anchors: vec![], ..remade(5) };
        assert!(matches!(judge(&nothing_read, &sighting), Verdict::New(_)), "there is nothing to lose");
    }
}

#[test]
fn a_new_stream_with_strangers_waits() {
    for stranger in [Some("/services/other".to_owned()), None] {
        let sighting = Sighting { sources: vec![Some("/services/bookings".into()), stranger], ..remade(5) };
        assert_eq!(fork_of(judge(&known(), &sighting)), None);
    }
}

#[test]
fn a_stream_older_than_our_last_event_is_another_one() {
    for created in [EARLIER, "2026-05-01T00:00:00Z", "garbage"] {
        let sighting = Sighting { created: created.into(), ..remade(5) };
        assert_eq!(fork_of(judge(&known(), &sighting)), None, "{created}");
        let sighting = Sighting { created: created.into(), ..remade(0) };
        assert_eq!(fork_of(judge(&known(), &sighting)), None, "{created}");
    }
}

#[test]
fn a_new_stream_filled_with_old_messages_waits() {
    let first = UnixMillis::parse_rfc3339(CREATED).unwrap();
    let sighting = Sighting { first_stored_at: Some(first), ..remade(1200) };
    assert_eq!(fork_of(judge(&known(), &sighting)), None);
}

#[test]
fn a_last_sequence_that_went_back_waits() {
    let truncated = Sighting {
        last_sequence: 800,
        position: Some(Trace::Beyond),
        anchors: vec![(768, Trace::Same), (512, Trace::Same)],
        ..healthy()
    };
    assert_eq!(fork_of(judge(&known(), &truncated)), Some(768));
    let emptied = Sighting {
        first_sequence: 1,
        last_sequence: 0,
        messages: 0,
        position: Some(Trace::Beyond),
        anchors: vec![(768, Trace::Beyond), (512, Trace::Beyond)],
        ..healthy()
    };
    assert_eq!(fork_of(judge(&known(), &emptied)), None);
    // The same copy, restored under another creation time.
    assert_eq!(fork_of(judge(&known(), &Sighting { created: LATER.into(), ..truncated })), Some(768));
}

#[test]
fn sequences_given_out_twice_wait() {
    let restored_and_went_on = Sighting {
        position: Some(Trace::Different),
        anchors: vec![(768, Trace::Different), (512, Trace::Same)],
        ..healthy()
    };
    assert_eq!(fork_of(judge(&known(), &restored_and_went_on)), Some(512));
    let nothing_left = Sighting {
        position: Some(Trace::Different),
        anchors: vec![(768, Trace::Different), (512, Trace::Different)],
        ..healthy()
    };
    assert_eq!(fork_of(judge(&known(), &nothing_left)), None);
    let only_an_anchor = Sighting { anchors: vec![(768, Trace::Different), (512, Trace::Same)], ..healthy() };
    assert_eq!(fork_of(judge(&known(), &only_an_anchor)), Some(900));
    assert_eq!(
        fork_of(judge(&known(), &Sighting { created: LATER.into(), ..restored_and_went_on })),
        Some(512),
        "a copy that went its own way"
    );
}

#[test]
fn messages_that_vanished_without_aging_wait() {
    let gone = Sighting {
        position: Some(Trace::Absent),
        anchors: vec![(768, Trace::Absent), (512, Trace::Expired)],
        ..healthy()
    };
    assert_eq!(fork_of(judge(&known(), &gone)), None);
}

#[test]
fn another_stream_name_is_never_the_same_by_creation_time() {
    let renamed = Sighting { stream: "OTHER".into(), ..healthy() };
    assert_eq!(judge(&known(), &renamed), Verdict::SameRestamped, "our messages are there: a renamed copy");
    let other = Sighting { stream: "OTHER".into(), created: CREATED.into(), ..remade(5) };
    assert_eq!(fork_of(judge(&known(), &other)), None);
}

/// {stream, database} × {intact, old backup, lost or made anew}: what a start finds, and what it does.
#[test]
fn the_restore_matrix() {
    let databases = [
        ("intact", known()),
        ("old backup", {
            let position = Position { contiguous: 500, highest: 500, ..Position::default() };
            Known { position, last_stored_at: UnixMillis::parse_rfc3339("2026-03-01T00:00:00Z").ok(), ..known() }
        }),
        ("lost", Known::default()),
    ];
    let mut rows = String::new();
    for (name, known) in &databases {
        let highest = known.position.highest;
        // In the old backup of the stream (it ends at 700 and went on to 750), sequences above 700 are others.
        let copy = |last: i64, sequence: i64| match sequence {
            sequence if sequence > last => Trace::Beyond,
            sequence if sequence > 700 => Trace::Different,
            _ => Trace::Same,
        };
        let anchors = |trace: &dyn Fn(i64) -> Trace| {
            [768, 512, 256].into_iter().filter(|at| *at <= highest).map(|at| (at, trace(at))).collect::<Vec<_>>()
        };
        let restored = |last: i64| Sighting {
            last_sequence: last,
            position: Some(copy(last, highest)),
            anchors: anchors(&|at| copy(last, at)),
            ..healthy()
        };
        let anew = Sighting { anchors: anchors(&|_| Trace::Beyond), ..remade(5) };
        let streams = [
            ("intact", Sighting { anchors: anchors(&|_| Trace::Same), ..healthy() }),
            ("old backup", restored(700)),
            ("old backup that went on", restored(950)),
            ("made anew", anew),
        ];
        for (stream, sighting) in streams {
            let verdict = match judge(known, &sighting) {
                Verdict::Ambiguous(ambiguity) => format!("waits, fork {:?}", ambiguity.fork),
                Verdict::New(_) => "new epoch".to_owned(),
                other => format!("{other:?}"),
            };
            rows += &format!("database {name}, stream {stream}: {verdict}\n");
        }
    }
    insta::assert_snapshot!(rows, @r"
    database intact, stream intact: Same
    database intact, stream old backup: waits, fork Some(512)
    database intact, stream old backup that went on: waits, fork Some(512)
    database intact, stream made anew: new epoch
    database old backup, stream intact: Same
    database old backup, stream old backup: Same
    database old backup, stream old backup that went on: Same
    database old backup, stream made anew: new epoch
    database lost, stream intact: First
    database lost, stream old backup: First
    database lost, stream old backup that went on: First
    database lost, stream made anew: First
    ");
}

#[test]
fn fingerprints_tell_messages_apart() {
    let base = fingerprint("a.b", Some("id"), 1, b"x");
    let others = [
        fingerprint("a.c", Some("id"), 1, b"x"),
        fingerprint("a.b", Some("ie"), 1, b"x"),
        fingerprint("a.b", None, 1, b"x"),
        fingerprint("a.b", Some("id"), 2, b"x"),
        fingerprint("a.b", Some("id"), 1, b"y"),
    ];
    assert!(others.iter().all(|other| *other != base));
    assert_ne!(fingerprint("a", None, 1, b""), fingerprint("a", Some(""), 1, b""));
    // Stored in databases: must never change between releases.
    assert_eq!(base, "b5472aa7a10a46dd234a6107899a6e9e");
}
