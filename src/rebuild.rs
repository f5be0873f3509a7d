//! Rebuild: the whole stream is folded into a shadow beside what is served, compared with it, and put in its place when a
//! person says so.
//!
//! Live wins over old, never the other way: what the service folded while the shadow was read is newer than the shadow
//! and stays, and what the stream no longer holds cannot be rebuilt and stays too ([`merge`]). Rows of events at Google
//! are not rebuilt at all; they belong to what is, not to what was said.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::clock::Clock;
use crate::model::SessionId;
use crate::plan::Policy;
use crate::projection::canonical::line;
use crate::projection::{Head, Session, Stamp};
use crate::replay::calls_of;
use crate::run::forecast::Calls;
use crate::run::pace::Pace;
use crate::run::progress::Progress;
use crate::run::source::{Held, History, Source};
use crate::run::{HOLD_MS, Run, RunError, WorkError, patiently};
use crate::store::Store;

/// Sessions compared at a time.
const PAGE: i64 = 500;

/// Sessions shown of each kind of difference.
const SAMPLES: usize = 5;

/// Reads on into the shadow from where the run stands to its goal; `Ok(false)` when it was asked to stop before.
pub async fn build(
    source: &Source,
    store: &Store,
    run: &mut Run,
    pace: &mut Pace,
    clock: &Clock,
    progress: &mut Progress,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<bool, WorkError> {
    let filter = source.filter(None);
    while run.cursor < run.goal {
        if is_asked_to_stop() {
            return Ok(false);
        }
        let (from, limit) = (run.cursor + 1, pace.group());
        let chunk = patiently(async || Ok(source.read(from, run.goal, &filter, limit).await?)).await?;
        let begun = Instant::now();
        let messages = chunk.messages.len();
        let mut moved = Run { cursor: chunk.next - 1, ..run.clone() };
        moved.counts.events += i64::try_from(messages).unwrap_or(0);
        let mut events = Vec::with_capacity(messages);
        for incoming in chunk.messages.into_iter().map(|message| source.incoming(message)) {
            match incoming.decoded {
                Ok(event) => events.push((event, source.history.place(incoming.sequence))),
                Err(_) => moved.counts.unreadable += 1,
            }
        }
        moved.counts.applied += i64::try_from(events.len()).unwrap_or(0);
        let is_mine = patiently(async || {
            let now = clock.now();
            Ok(store.fold_into_shadow(&moved, &events, now, now.plus(HOLD_MS)).await?)
        })
        .await?;
        if !is_mine {
            return Err(RunError::TakenOver(run.id.clone()).into());
        }
        *run = moved;
        crate::crash::here("after_rebuilt_group");
        progress.at(run.cursor, run.goal);
        pace.wait(messages, begun.elapsed()).await;
    }
    Ok(true)
}

/// What a served session becomes when a shadow that was read up to `read` takes its place.
///
/// Each register is the shadow's, unless the served one is higher and comes from an event that the shadow cannot have
/// seen: one after `read`, or one that the stream no longer holds.
pub fn merge(live: Option<&Session>, shadow: &Session, history: &History, read: i64) -> Session {
    let Some(live) = live else { return shadow.clone() };
    let unseen = |stamp: Stamp| {
        let place = crate::model::Place { epoch: stamp.epoch, sequence: stamp.sequence };
        history.holds(place, read) != Held::Within
    };
    let keeps_head = live.head.stamp > shadow.head.stamp && unseen(live.head.stamp);
    let head: &Head = if keeps_head { &live.head } else { &shadow.head };
    let details = match (&live.details, &shadow.details) {
        (Some((known, _)), rebuilt) if unseen(*known) && rebuilt.as_ref().is_none_or(|(stamp, _)| stamp < known) => {
            &live.details
        }
        (_, rebuilt) => rebuilt,
    };
    Session { id: shadow.id.clone(), head: head.clone(), details: details.clone() }
}

/// The groups of fields in which two states of a session differ.
pub fn field_groups(live: &Session, rebuilt: &Session) -> Vec<&'static str> {
    let mut groups = Vec::new();
    if live.head.status != rebuilt.head.status {
        groups.push("status");
    }
    if live.head.teacher != rebuilt.head.teacher {
        groups.push("teacher");
    }
    match (live.details.as_ref().map(|(_, details)| details), rebuilt.details.as_ref().map(|(_, details)| details)) {
        (None, None) => {}
        (Some(live), Some(rebuilt)) => {
            if (live.starts_at, live.ends_at, live.time_zone) != (rebuilt.starts_at, rebuilt.ends_at, rebuilt.time_zone)
            {
                groups.push("time");
            }
            if (&live.title, &live.description, &live.url) != (&rebuilt.title, &rebuilt.description, &rebuilt.url) {
                groups.push("text");
            }
            if live.attendees != rebuilt.attendees {
                groups.push("people");
            }
            if live.kind != rebuilt.kind {
                groups.push("kind");
            }
        }
        _ => groups.push("details"),
    }
    if live.head.stamp.version != rebuilt.head.stamp.version || groups.is_empty() {
        groups.push("version");
    }
    groups
}

/// One session that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    /// The session.
    pub session_id: String,
    /// `missing`, `different`, `extra`, `expired` or `newer`.
    pub kind: &'static str,
    /// In which groups of fields.
    pub groups: Vec<&'static str>,
    /// As it is served, in canonical form.
    pub live: Option<String>,
    /// As it was rebuilt.
    pub rebuilt: Option<String>,
}

/// Shadow and served projection, compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Sessions that are served.
    pub live: i64,
    /// Sessions that were rebuilt.
    pub rebuilt: i64,
    /// The same on both sides.
    pub identical: i64,
    /// In the stream and not served: a promotion adds them.
    pub missing: i64,
    /// Not the same: a promotion changes them.
    pub different: i64,
    /// Served, and the stream has no event of them although it should: kept.
    pub extra: i64,
    /// Served, and at least a part of their events is no longer in the stream: that part is kept.
    pub expired: i64,
    /// Changed by events that came after the rebuild had read: kept.
    pub newer: i64,
    /// Of those that are different: how many in which group of fields.
    pub by_group: BTreeMap<&'static str, i64>,
    /// Calls to Google that a promotion means.
    pub calls: Calls,
    /// Some of each kind.
    pub samples: Vec<Sample>,
    /// SHA-256 of all served sessions in canonical form, one a line.
    pub live_sha256: String,
    /// The same of the rebuilt ones.
    pub rebuilt_sha256: String,
}

impl Comparison {
    /// Sessions that a promotion would change.
    pub fn changes(&self) -> i64 {
        self.missing + self.different
    }

    /// Whether nothing differs.
    pub fn agrees(&self) -> bool {
        self.changes() == 0 && self.extra == 0
    }

    fn sample(&mut self, sample: Sample) {
        if self.samples.iter().filter(|known| known.kind == sample.kind).count() < SAMPLES {
            self.samples.push(sample);
        }
    }
}

/// Compares the shadow that was read up to `read` with what is served. With `notes`, writes down which sessions a
/// promotion changes, and marks those whose history has expired.
pub async fn compare(
    source: &Source,
    store: &Store,
    read: i64,
    policy: &Policy,
    clock: &Clock,
    notes: bool,
) -> Result<Comparison, WorkError> {
    let history = &source.history;
    let mut found = Comparison::default();
    if notes {
        store.clear_changes().await?;
    }
    let mut digest = Sha256::new();
    let mut after: Option<SessionId> = None;
    loop {
        let page = patiently(async || Ok(store.shadow_page(after.as_ref(), PAGE).await?)).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.session.id.clone());
        let ids: Vec<_> = page.iter().map(|shadow| shadow.session.id.clone()).collect();
        let live = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;
        let (mut changing, mut changes, mut expired) = (Vec::new(), Vec::new(), Vec::new());
        for shadow in &page {
            digest.update(shadow.text.as_bytes());
            digest.update(b"\n");
            found.rebuilt += 1;
            let id = &shadow.session.id;
            let known = live.get(id).map(|known| &known.session);
            let merged = merge(known, &shadow.session, history, read);
            let Some(known) = known else {
                found.missing += 1;
                found.sample(sample("missing", id, Vec::new(), None, Some(&shadow.session)));
                changes.push(id.clone());
                changing.push((None, merged));
                continue;
            };
            if *known == shadow.session {
                found.identical += 1;
            } else if merged == *known {
                let kind = if is_newer(known, history, read) { "newer" } else { "expired" };
                if kind == "newer" {
                    found.newer += 1;
                } else {
                    found.expired += 1;
                    expired.push(id.clone());
                }
                let groups = field_groups(known, &shadow.session);
                found.sample(sample(kind, id, groups, Some(known), Some(&shadow.session)));
            } else {
                found.different += 1;
                let groups = field_groups(known, &merged);
                for group in &groups {
                    *found.by_group.entry(*group).or_default() += 1;
                }
                found.sample(sample("different", id, groups, Some(known), Some(&merged)));
                changes.push(id.clone());
                changing.push((Some(known.desired_hash()), merged));
            }
        }
        let sessions: Vec<_> = changing.iter().map(|(hash, session)| (hash.clone(), session)).collect();
        if !sessions.is_empty() {
            found.calls.add(&calls_of(store, &sessions, policy, clock.now()).await?);
        }
        if notes {
            store.add_changes(&changes).await?;
            store.mark_history_expired(&expired, clock.now()).await?;
        }
    }
    found.rebuilt_sha256 = hex(digest);
    compare_others(source, store, read, clock, notes, &mut found).await?;
    digest_live(store, &mut found).await?;
    Ok(found)
}

/// Served sessions that the shadow does not have.
async fn compare_others(
    source: &Source,
    store: &Store,
    read: i64,
    clock: &Clock,
    notes: bool,
    found: &mut Comparison,
) -> Result<(), WorkError> {
    let mut after: Option<SessionId> = None;
    loop {
        let ids = patiently(async || Ok(store.ids_without_shadow(after.as_ref(), PAGE).await?)).await?;
        let Some(last) = ids.last() else { return Ok(()) };
        after = Some(last.clone());
        let live = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;
        let mut expired = Vec::new();
        for known in live.values() {
            let (id, stamp) = (&known.session.id, known.session.head.stamp);
            let place = crate::model::Place { epoch: stamp.epoch, sequence: stamp.sequence };
            let kind = match source.history.holds(place, read) {
                Held::Expired => {
                    found.expired += 1;
                    expired.push(id.clone());
                    "expired"
                }
                Held::Ahead => {
                    found.newer += 1;
                    "newer"
                }
                Held::Within => {
                    found.extra += 1;
                    "extra"
                }
            };
            found.sample(sample(kind, id, Vec::new(), Some(&known.session), None));
        }
        if notes {
            store.mark_history_expired(&expired, clock.now()).await?;
        }
    }
}

async fn digest_live(store: &Store, found: &mut Comparison) -> Result<(), WorkError> {
    let mut digest = Sha256::new();
    let mut after: Option<SessionId> = None;
    loop {
        let lines = live_lines(store, &mut after).await?;
        if lines.is_empty() {
            break;
        }
        for text in &lines {
            digest.update(text.as_bytes());
            digest.update(b"\n");
        }
        found.live += i64::try_from(lines.len()).unwrap_or(0);
    }
    found.live_sha256 = hex(digest);
    Ok(())
}

/// The next page of what is served, in canonical form; `after` moves on.
pub async fn live_lines(store: &Store, after: &mut Option<SessionId>) -> Result<Vec<String>, WorkError> {
    let ids = patiently(async || Ok(store.session_ids(after.as_ref(), None, PAGE).await?)).await?;
    let Some(last) = ids.last() else { return Ok(Vec::new()) };
    let live = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;
    *after = Some(last.clone());
    Ok(ids.iter().filter_map(|id| live.get(id)).map(|known| line(&known.session)).collect())
}

fn is_newer(live: &Session, history: &History, read: i64) -> bool {
    let stamps = [Some(live.head.stamp), live.details.as_ref().map(|(stamp, _)| *stamp)];
    stamps.into_iter().flatten().any(|stamp| {
        let place = crate::model::Place { epoch: stamp.epoch, sequence: stamp.sequence };
        history.holds(place, read) == Held::Ahead
    })
}

fn sample(
    kind: &'static str,
    id: &SessionId,
    groups: Vec<&'static str>,
    live: Option<&Session>,
    rebuilt: Option<&Session>,
) -> Sample {
    Sample { session_id: id.as_str().to_owned(), kind, groups, live: live.map(line), rebuilt: rebuilt.map(line) }
}

fn hex(digest: Sha256) -> String {
    data_encoding::HEXLOWER.encode(&digest.finalize())
}
