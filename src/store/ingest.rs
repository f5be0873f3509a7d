//! Folding a group: the one way in which sessions change.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dead_letters::{self, Letter};
use super::epochs;
use super::sql::Tx;
use super::working::Working;
use super::{FoldOutcome, FoldReport, Incoming, Refused, Result, Store};
use crate::event::SessionEvent;
use crate::model::{Epoch, Place, SessionId, UnixMillis};
use crate::projection::{self, Outcome};

/// Class of the dead letter of an event whose version another one has taken.
pub(super) const VERSION_CONFLICT: &str = "version_conflict";

/// Ingest.
impl Store {
    /// Folds a group in one transaction: sessions, rows ([`crate::plan::assign`]), documents, results for stream `MEET`,
    /// dead letters, processed ranges, position and anchors.
    ///
    /// Harmless with any part of it repeated, in any order, and while other processes fold the same messages.
    pub async fn fold(&self, epoch: Epoch, group: &[Incoming], now: UnixMillis) -> Result<FoldReport> {
        let mut tx = self.inner.write("folding a group of messages").await?;
        let report = fold_in(&mut tx, epoch, group, now).await?;
        self.tell_others(&mut tx, &report.changed, report.work_due).await?;
        tx.commit().await?;
        self.announce(&report.changed);
        Ok(report)
    }
}

/// [`Store::fold`] as a part of a transaction.
pub(super) async fn fold_in(tx: &mut Tx, epoch: Epoch, group: &[Incoming], now: UnixMillis) -> Result<FoldReport> {
    let events = || group.iter().filter_map(|incoming| incoming.decoded.as_ref().ok());
    let ids: BTreeSet<&SessionId> = events().map(|event| &event.session).collect();
    let mut working = if ids.is_empty() { Working::default() } else { Working::load(tx, ids).await? };

    let mut outcomes = Vec::with_capacity(group.len());
    let mut letters = Letters { epoch, now, group, by_sequence: BTreeMap::new() };
    for incoming in group {
        let outcome = match incoming.decoded.as_ref().map(|event| (event, nul_in(event))) {
            Err(refused) => {
                letters.refuse(incoming, refused.clone());
                FoldOutcome::DeadLetter(refused.class)
            }
            Ok((event, Some(refused))) => {
                let class = refused.class;
                letters.refuse(incoming, Refused { session: Some(event.session.clone()), ..refused });
                FoldOutcome::DeadLetter(class)
            }
            Ok((event, None)) => {
                match fold_one(&mut working, event, Place { epoch, sequence: incoming.sequence }, incoming.stored_at) {
                    Outcome::Conflict { loser } => {
                        let head = working.get(&event.session).map(|entry| entry.session.head.stamp.sequence);
                        letters.conflict(event, head.unwrap_or(incoming.sequence), loser);
                        if loser == incoming.sequence {
                            FoldOutcome::DeadLetter(VERSION_CONFLICT)
                        } else {
                            FoldOutcome::Folded(Outcome::Conflict { loser })
                        }
                    }
                    outcome => FoldOutcome::Folded(outcome),
                }
            }
        };
        outcomes.push(outcome);
    }
    // A message that lost to a later one of the same group is a dead letter, whatever it was at first.
    let conflicts: HashMap<i64, &'static str> = letters.classes().collect();
    for (incoming, outcome) in group.iter().zip(&mut outcomes) {
        if let Some(class) = conflicts.get(&incoming.sequence) {
            *outcome = FoldOutcome::DeadLetter(class);
        }
    }

    let saved = working.save(tx, now).await?;
    let displaced = letters.keep(tx).await?;
    let sources: BTreeSet<&str> = events().filter_map(|event| event.source.as_deref()).collect();
    epochs::keep_sources(tx, epoch, &sources).await?;
    let position = epochs::advance(tx, epoch, group).await?;
    Ok(FoldReport { outcomes, changed: saved.changed, work_due: saved.work_due, displaced, position })
}

/// Folds one event into the session at hand.
pub(super) fn fold_one(working: &mut Working, event: &SessionEvent, place: Place, stored_at: UnixMillis) -> Outcome {
    let known = working.get(&event.session);
    let before = known.map(|entry| entry.session.clone());
    let origin = known.map(|entry| (entry.traceparent.clone(), entry.published_at)).unwrap_or_default();
    let (after, outcome) = projection::fold(before.clone(), event, place);
    if before.as_ref() != Some(&after) {
        let is_head = before.is_none_or(|before| before.head.stamp != after.head.stamp);
        let (traceparent, published_at) = if is_head { (event.traceparent.clone(), Some(stored_at)) } else { origin };
        working.put(after, traceparent, published_at);
    }
    outcome
}

/// PostgreSQL keeps no NUL in a text, and SQLite cuts one off there in places: refused on both, so that the same event
/// means the same everywhere and never stops a group.
pub(super) fn nul_in(event: &SessionEvent) -> Option<Refused> {
    let details = event.details.as_ref();
    let attendees = details.map(|details| details.attendees.as_slice()).unwrap_or_default();
    let texts = [
        ("source", event.source.as_deref()),
        ("traceparent", event.traceparent.as_deref()),
        ("title", details.map(|details| details.title.as_str())),
        ("description", details.and_then(|details| details.description.as_deref())),
        ("url", details.and_then(|details| details.url.as_deref())),
    ];
    let attendee_texts = attendees.iter().flat_map(|attendee| {
        [
            ("attendees.email", Some(attendee.email.as_str())),
            ("attendees.displayName", attendee.display_name.as_deref()),
        ]
    });
    let (field, _) =
        texts.into_iter().chain(attendee_texts).find(|(_, text)| text.is_some_and(|text| text.contains('\0')))?;
    Some(Refused {
        class: "bad_value",
        reason: format!("{field} holds a NUL character (U+0000), which no database keeps; send it without"),
        session: None,
    })
}

/// Dead letters of a group, one for each sequence.
struct Letters<'a> {
    epoch: Epoch,
    now: UnixMillis,
    group: &'a [Incoming],
    by_sequence: BTreeMap<i64, Letter<'a>>,
}

impl<'a> Letters<'a> {
    fn refuse(&mut self, incoming: &'a Incoming, refused: Refused) {
        let letter = Letter { sequence: incoming.sequence, raw: Some(&incoming.raw), refused };
        self.by_sequence.insert(incoming.sequence, letter);
    }

    /// `event` at one sequence and another one at the other have the same version; `kept` is the lower sequence.
    fn conflict(&mut self, event: &SessionEvent, kept: i64, loser: i64) {
        let reason = format!(
            "session {} version {} came twice with different content; sequence {kept} was kept and sequence {loser} was \
             not: publish the change again with a higher version",
            event.session, event.version
        );
        let raw = self.group.iter().find(|incoming| incoming.sequence == loser).map(|incoming| &incoming.raw);
        let refused = Refused { class: VERSION_CONFLICT, reason, session: Some(event.session.clone()) };
        self.by_sequence.entry(loser).or_insert(Letter { sequence: loser, raw, refused });
    }

    fn classes(&self) -> impl Iterator<Item = (i64, &'static str)> {
        self.by_sequence.iter().map(|(sequence, letter)| (*sequence, letter.refused.class))
    }

    /// Writes them and says which new ones have no message yet.
    async fn keep(self, tx: &mut Tx) -> Result<Vec<i64>> {
        let mut displaced = Vec::new();
        for letter in self.by_sequence.values() {
            if dead_letters::keep(tx, self.epoch, letter, self.now).await? && letter.raw.is_none() {
                displaced.push(letter.sequence);
            }
        }
        Ok(displaced)
    }
}
