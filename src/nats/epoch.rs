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

pub mod fork;
pub mod sight;
#[cfg(test)]
mod tests;

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
