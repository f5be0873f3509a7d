//! Folding a group: the one way in which sessions change.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::dead_letters::{self, Letter};
use super::epochs;
use super::rows::Known;
use super::sql::Tx;
use super::working::Working;
use super::{FoldOutcome, FoldReport, Incoming, Refused, Result, Store};
use crate::event::SessionEvent;
use crate::model::{Epoch, Place, SessionId, UnixMillis};
use crate::projection::{self, Outcome, Ranks, Session, Stamp};

/// Class of the dead letter of an event whose version another one has taken.
pub(super) const VERSION_CONFLICT: &str = "version_conflict";

/// Ingest.
impl Store {
    /// Folds a group in one transaction: sessions, rows ([`crate::plan::assign`]), documents, results for stream `MEET`,
    /// dead letters, processed ranges, position and anchors.
    ///
    /// Harmless with any part of it repeated, in any order, and while other processes fold the same messages.
    pub async fn fold(&self, epoch: Epoch, group: &[Incoming], now: UnixMillis) -> Result<FoldReport> {
        // Before the transaction, during which nobody else writes.
        let items: Vec<_> = group.iter().map(Item::of).collect();
        let mut tx = self.inner.write("folding a group of messages").await?;
        let report = fold_in(&mut tx, epoch, group, &items, now).await?;
        self.tell_others(&mut tx, &report.changed, report.work_due).await?;
        tx.commit().await?;
        self.announce(&report.changed);
        Ok(report)
    }
}

/// One message as the fold looks at it: made before the transaction, during which nobody else writes.
pub(super) enum Item<'a> {
    Refused(Refused),
    Event { event: &'a SessionEvent, content_hash: String },
}

impl<'a> Item<'a> {
    pub(super) fn of(incoming: &'a Incoming) -> Self {
        match &incoming.decoded {
            Err(refused) => Self::Refused(refused.clone()),
            Ok(event) => match nul_in(event) {
                Some(refused) => Self::Refused(Refused { session: Some(event.session.clone()), ..refused }),
                None => Self::Event { event, content_hash: projection::content_hash(event) },
            },
        }
    }
}

/// What a group does to a session: which messages of it, by index, the registers come from in the end.
#[derive(Default)]
struct Change {
    head: Option<usize>,
    details: Option<usize>,
}

/// The group is folded over the ranks of its sessions first. Sessions of which nothing changes are neither read nor
/// written, and those that many messages change are written once.
pub(super) async fn fold_in(
    tx: &mut Tx,
    epoch: Epoch,
    group: &[Incoming],
    items: &[Item<'_>],
    now: UnixMillis,
) -> Result<FoldReport> {
    let events = || items.iter().filter_map(Item::event);
    let ids: BTreeSet<&SessionId> = events().map(|event| &event.session).collect();
    let mut known = if ids.is_empty() { HashMap::new() } else { Known::load(tx, &ids).await? };

    let mut outcomes = Vec::with_capacity(group.len());
    let mut letters = Letters { epoch, now, group, by_sequence: BTreeMap::new() };
    let mut ranks: HashMap<&SessionId, Ranks> =
        ids.iter().filter_map(|id| Some((*id, known.get(*id)?.ranks.clone()))).collect();
    let mut changes: HashMap<&SessionId, Change> = HashMap::new();
    // In the order in which they were changed first, so that results come out in the order of the group.
    let mut changed = Vec::new();
    for (index, (incoming, item)) in group.iter().zip(items).enumerate() {
        let (event, content_hash) = match item {
            Item::Refused(refused) => {
                letters.refuse(incoming, refused.clone());
                outcomes.push(FoldOutcome::DeadLetter(refused.class));
                continue;
            }
            Item::Event { event, content_hash } => (*event, content_hash),
        };
        let stamp = Stamp::of(event, Place { epoch, sequence: incoming.sequence });
        let step = match ranks.entry(&event.session) {
            Entry::Occupied(mut known) => known.get_mut().fold(stamp, content_hash, event.details.is_some()),
            Entry::Vacant(unknown) => {
                let (ranks, step) = Ranks::first(stamp, content_hash.clone(), event.details.is_some());
                unknown.insert(ranks);
                step
            }
        };
        if step.takes_head || step.takes_details {
            let change = changes.entry(&event.session).or_insert_with(|| {
                changed.push(&event.session);
                Change::default()
            });
            change.head = if step.takes_head { Some(index) } else { change.head };
            change.details = if step.takes_details { Some(index) } else { change.details };
        }
        outcomes.push(match step.outcome {
            Outcome::Conflict { loser } => {
                letters.conflict(event, ranks[&event.session].head.sequence, loser);
                FoldOutcome::Folded(Outcome::Conflict { loser })
            }
            outcome => FoldOutcome::Folded(outcome),
        });
    }
    // A message that lost, be it to a later one of the same group, is a dead letter, whatever it was at first.
    if !letters.by_sequence.is_empty() {
        let classes: HashMap<i64, &'static str> = letters.classes().collect();
        for (incoming, outcome) in group.iter().zip(&mut outcomes) {
            if let Some(class) = classes.get(&incoming.sequence) {
                *outcome = FoldOutcome::DeadLetter(class);
            }
        }
    }

    let mut working = load(tx, &mut known, &changed, &changes, items).await?;
    for id in &changed {
        apply(&mut working, &changes[id], epoch, group, items);
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

impl<'a> Item<'a> {
    fn event(&self) -> Option<&'a SessionEvent> {
        match self {
            Self::Refused(_) => None,
            Self::Event { event, .. } => Some(event),
        }
    }
}

/// Loads what is needed of the sessions that change. Of one whose registers both come from the group, and that gets
/// another version, only the rows.
async fn load(
    tx: &mut Tx,
    known: &mut HashMap<SessionId, Known>,
    changed: &[&SessionId],
    changes: &HashMap<&SessionId, Change>,
    items: &[Item<'_>],
) -> Result<Working> {
    let mut whole = Vec::new();
    let mut replaced = Vec::new();
    for id in changed {
        let Some(known) = known.remove(*id) else { continue };
        let head = changes[id].head.and_then(|index| items[index].event());
        let is_replaced =
            changes[id].details.is_some() && head.is_some_and(|event| event.version != known.ranks.head.version);
        if is_replaced {
            replaced.push(((*id).clone(), known));
        } else {
            whole.push(*id);
        }
    }
    let mut working = if whole.is_empty() { Working::default() } else { Working::load(tx, whole).await? };
    working.load_replaced(tx, replaced).await?;
    Ok(working)
}

/// Puts what the group says of a session into its registers.
fn apply(working: &mut Working, change: &Change, epoch: Epoch, group: &[Incoming], items: &[Item<'_>]) {
    let at = |index: usize| {
        let Item::Event { event, content_hash } = &items[index] else { unreachable!("only events change a session") };
        (*event, content_hash, Stamp::of(event, Place { epoch, sequence: group[index].sequence }))
    };
    let details = change.details.map(at).and_then(|(event, _, stamp)| Some((stamp, event.details.clone()?)));
    let (id, head) = match (change.head.map(at), change.details.map(at)) {
        (Some((event, hash, stamp)), _) => {
            let published_at = change.head.map(|index| group[index].stored_at);
            let origin = (event.traceparent.clone(), published_at);
            (&event.session, Some((projection::head(event, stamp, hash.clone()), origin)))
        }
        (None, Some((event, ..))) => (&event.session, None),
        (None, None) => unreachable!("a change has a head or details"),
    };
    let before = working.get(id).map(|entry| &entry.session);
    let details = details.or_else(|| before.and_then(|session| session.details.clone()));
    let (head, (traceparent, published_at)) = head.unwrap_or_else(|| {
        let before = before.expect("the first event of a session gives it its head, so there is one before");
        let origin = working.get(id).map(|entry| (entry.traceparent.clone(), entry.published_at));
        (before.head.clone(), origin.unwrap_or_default())
    });
    working.put(Session { id: id.clone(), head, details }, traceparent, published_at);
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
