//! Whether the stream is still the one we knew.
//!
//! A stream's name says nothing: it may have been deleted and made again (sequences start over), restored from a backup
//! (its creation time stays, sequences are given out again to other events), cut at its end by a power failure, or be
//! another stream altogether. An acknowledgement carries only names and a sequence, so acting on the wrong incarnation
//! skips events for ever. Three signs together tell: the creation time, a last sequence that must not go back, and
//! fingerprints of messages we read once ([`fingerprint`]).
//!
//! [`judge`] decides and is pure; [`sight`] gathers what it needs.

use std::collections::BTreeSet;

use crate::model::{UnixMillis, digest, short_hex};
use crate::store::{EpochRecord, Position};

pub mod sight;

/// Identifies a stored message: subject, `Nats-Msg-Id`, the server's time in nanoseconds and the payload.
///
/// The sequence is not part of it: that the *same sequence* still holds the *same message* is what is asked.
pub fn fingerprint(subject: &str, message_id: Option<&str>, stored_at_ns: i64, payload: &[u8]) -> String {
    let presence: &[u8] = if message_id.is_some() { b"+" } else { b"-" };
    let id = message_id.unwrap_or_default().as_bytes();
    short_hex(&digest(&[b"mp/message/1", subject.as_bytes(), presence, id, &stored_at_ns.to_be_bytes(), payload]))
}

/// What the database knows of the stream.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The newest epoch; `None` before the first start.
    pub current: Option<EpochRecord>,
    /// How far it was read.
    pub position: Position,
    /// When the newest event folded in any epoch was stored by its server.
    pub last_stored_at: Option<UnixMillis>,
    /// CloudEvent sources seen in any epoch.
    pub sources: BTreeSet<String>,
}

/// What is at a sequence where we once read a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// That message.
    Same,
    /// Another message.
    Different,
    /// Nothing: the stream begins later, as it does when messages age out.
    Expired,
    /// Nothing, although the stream begins before and ends after it.
    Absent,
    /// Nothing: the stream ends before.
    Beyond,
}

/// What the stream looks like now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Its name.
    pub stream: String,
    /// When it was created, verbatim.
    pub created: String,
    /// The first sequence stored; one after the last when there is none.
    pub first_sequence: i64,
    /// The last sequence given out.
    pub last_sequence: i64,
    /// Messages stored.
    pub messages: u64,
    /// What is at the highest sequence we read; `None` when we read nothing.
    pub position: Option<Trace>,
    /// What is at our anchors, newest first.
    pub anchors: Vec<(i64, Trace)>,
    /// CloudEvent sources of its first and last message (`None`: a message without one); empty when it is empty.
    pub sources: Vec<Option<String>>,
    /// When its first message was stored.
    pub first_stored_at: Option<UnixMillis>,
}

/// What follows from a sighting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was known: this is epoch 1.
    First,
    /// The stream we knew.
    Same,
    /// The stream we knew, with another creation time (a promoted mirror; nats-server #8449).
    SameRestamped,
    /// Plainly a new stream: it may be adopted without asking. Says why.
    New(String),
    /// It cannot be told without a person.
    Ambiguous(Ambiguity),
}

/// Why a person has to decide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguity {
    /// What was seen, in one or two sentences.
    pub seen: String,
    /// What to do.
    pub advice: String,
    /// The newest sequence that still holds the message we read there: the histories are the same up to here.
    pub fork: Option<i64>,
}

/// Decides what the stream is.
pub fn judge(known: &Known, seen: &Sighting) -> Verdict {
    let Some(current) = &known.current else { return Verdict::First };
    let evidence = Evidence::of(known, seen);
    if current.stream == seen.stream && current.created == seen.created {
        judge_same_creation(known, seen, &evidence)
    } else {
        judge_other_creation(known, current, seen, &evidence)
    }
}

/// The comparisons, counted.
struct Evidence {
    /// The newest sequence that matched.
    matched: Option<i64>,
    /// The newest sequence that holds another message.
    different: Option<i64>,
    /// Something we read should be there and is not.
    absent: bool,
}

impl Evidence {
    fn of(known: &Known, seen: &Sighting) -> Self {
        let position = seen.position.map(|trace| (known.position.highest, trace));
        let all: Vec<(i64, Trace)> = position.into_iter().chain(seen.anchors.iter().copied()).collect();
        let newest = |wanted| all.iter().filter(|(_, trace)| *trace == wanted).map(|(sequence, _)| *sequence).max();
        Self {
            matched: newest(Trace::Same),
            different: newest(Trace::Different),
            absent: newest(Trace::Absent).is_some(),
        }
    }
}

fn judge_same_creation(known: &Known, seen: &Sighting, evidence: &Evidence) -> Verdict {
    let highest = known.position.highest;
    if seen.last_sequence < highest {
        return ambiguous(
            format!(
                "stream {} ends at sequence {} although we read up to {highest}, and it was not made anew: it was \
                 restored from a backup or lost its end",
                seen.stream, seen.last_sequence
            ),
            RESTORED,
            evidence.matched,
        );
    }
    if let Some(sequence) = evidence.different {
        return ambiguous(
            format!(
                "sequence {sequence} of stream {} holds another message than the one we read there: it was restored \
                 from a backup and went on, so that sequences were given out twice",
                seen.stream
            ),
            RESTORED,
            evidence.matched,
        );
    }
    if evidence.matched.is_none() && evidence.absent {
        return ambiguous(
            format!("none of the messages we read in stream {} is there, and they did not age out", seen.stream),
            RESTORED,
            None,
        );
    }
    Verdict::Same
}

fn judge_other_creation(known: &Known, current: &EpochRecord, seen: &Sighting, evidence: &Evidence) -> Verdict {
    let stream = &seen.stream;
    let highest = known.position.highest;
    if evidence.matched.is_some() && evidence.different.is_none() {
        if seen.last_sequence >= highest {
            return Verdict::SameRestamped;
        }
        let text = format!(
            "stream {stream} holds messages we read, was created at {} instead of {}, and ends at sequence {} \
             although we read up to {highest}: it is an older copy",
            seen.created, current.created, seen.last_sequence
        );
        return ambiguous(text, RESTORED, evidence.matched);
    }
    if let (Some(matched), Some(different)) = (evidence.matched, evidence.different) {
        let text = format!(
            "stream {stream} was created at {} instead of {}; it holds what we read up to sequence {matched}, but \
             another message at {different}: it is a copy that went its own way",
            seen.created, current.created
        );
        return ambiguous(text, RESTORED, Some(matched));
    }
    let Some(last) = known.last_stored_at else {
        return Verdict::New(format!("stream {stream} was made anew before anything had been read from it"));
    };
    let created = UnixMillis::parse_rfc3339(&seen.created).ok();
    if created.is_none_or(|created| created <= last) {
        let text = format!(
            "stream {stream} was created at {} instead of {}, which is before the last event we read was stored \
             ({last}): it is another stream",
            seen.created, current.created
        );
        return ambiguous(text, FOREIGN, None);
    }
    if seen.messages == 0 {
        return Verdict::New(format!("stream {stream} was made anew at {} and is empty", seen.created));
    }
    if seen.first_stored_at.is_some_and(|first| created.is_some_and(|created| first < created)) {
        let text = format!("stream {stream} was created at {} and holds older messages: it is a copy", seen.created);
        return ambiguous(text, FOREIGN, None);
    }
    let strangers: BTreeSet<&str> = seen
        .sources
        .iter()
        .filter(|source| source.as_ref().is_none_or(|name| !known.sources.contains(name)))
        .map(|source| source.as_deref().unwrap_or("(none)"))
        .collect();
    if strangers.is_empty() {
        return Verdict::New(format!(
            "stream {stream} was made anew at {} and holds only events of sources we know",
            seen.created
        ));
    }
    let strangers = strangers.into_iter().collect::<Vec<_>>().join(", ");
    let text = format!(
        "stream {stream} was made anew at {} and holds events of a source we do not know: {strangers}",
        seen.created
    );
    ambiguous(text, FOREIGN, None)
}

const RESTORED: &str = "Compare with the booking database what was lost, let the backend publish it again where it \
    can, then run `meet-projector epoch adopt` to see the plan and `meet-projector epoch adopt --execute --reason …`.";

const FOREIGN: &str = "If NATS_URL and NATS_STREAM are right, run `meet-projector epoch adopt` to see the plan and \
    `meet-projector epoch adopt --execute --reason …`.";

fn ambiguous(seen: String, advice: &str, fork: Option<i64>) -> Verdict {
    Verdict::Ambiguous(Ambiguity { seen, advice: advice.to_owned(), fork })
}

#[cfg(test)]
mod tests {
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
        insta::assert_snapshot!(base);
    }
}
