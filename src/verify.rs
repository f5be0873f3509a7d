//! Verify: stream, projection and results are compared, and on request the events at Google too.
//!
//! Three walks, each in bounded memory: along the stream (what is there and was not folded), along the projection (what
//! was folded and is not there, or is not what it says), and along the rows of events (what Google holds). What differs
//! is mended by the ordinary ways: a missing event is folded, a differing event at Google is looked at by the reconciler.

use std::collections::HashMap;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;

use crate::clock::Clock;
use crate::event::SessionEvent;
use crate::model::{Place, SessionId, TeacherId};
use crate::plan::{MeetEvent, Policy, Want};
use crate::projection::{Session, Status, content_hash, details_hash};
use crate::replay::{Selection, Survey, survey};
use crate::run::progress::Progress;
use crate::run::source::{Held, Source};
use crate::run::{WorkError, patiently};
use crate::store::{Known, Range, Store};

pub mod google;

/// Sessions looked at in one go.
const PAGE: i64 = 500;

/// Messages read at once by sequence.
const IN_FLIGHT: usize = 64;

/// Findings that are named; the others are counted.
const NAMED_MAX: usize = 20;

/// Ranges of processed sequences that are looked at: more gaps than that are as good as a broken projection.
const RANGES_MAX: i64 = 10_000;

/// Which sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only this one.
    pub session: Option<SessionId>,
    /// Only this teacher's.
    pub teacher: Option<TeacherId>,
    /// Only so many of a hundred, chosen by their id: the same ones each time. 1 to 100.
    pub percent: Option<u8>,
}

impl Scope {
    /// Whether a session is one of those that are looked at.
    pub fn takes(&self, id: &SessionId) -> bool {
        let Some(percent) = self.percent else { return true };
        let digest = crate::model::digest(&[b"mp/sample/1", id.as_str().as_bytes()]);
        u64::from(u16::from_be_bytes([digest[0], digest[1]])) * 100 < u64::from(percent) << 16
    }

    /// The next page of sessions, after `after`, which moves on; `None` at the end.
    pub async fn page(&self, store: &Store, after: &mut Option<SessionId>) -> Result<Option<Vec<Known>>, WorkError> {
        let ids = match (&self.session, after.is_some()) {
            (Some(_), true) => return Ok(None),
            (Some(session), false) => vec![session.clone()],
            (None, _) => {
                let teacher = self.teacher.as_ref();
                patiently(async || Ok(store.session_ids(after.as_ref(), teacher, PAGE).await?)).await?
            }
        };
        let Some(last) = ids.last() else { return Ok(None) };
        *after = Some(last.clone());
        let ids: Vec<_> = ids.into_iter().filter(|id| self.takes(id)).collect();
        let mut known = patiently(async || Ok(store.known_sessions(&ids).await?)).await?;
        Ok(Some(ids.iter().filter_map(|id| known.remove(id)).collect()))
    }
}

/// Something that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `missing`, `extra`, `different`, `rows`, `unread`, `unkept`, or for Google `deleted`, `changed`, `gone`, `moved`.
    pub kind: &'static str,
    /// The session, where there is one.
    pub session_id: Option<String>,
    /// The stream sequence, where there is one.
    pub sequence: Option<i64>,
    /// What is wrong, in one sentence.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Events of the stream that were looked at.
    pub events: i64,
    /// Sessions of the projection that were looked at.
    pub sessions: i64,
    /// Events that the service has not read yet: no difference, but not compared either.
    pub not_read_yet: i64,
    /// Events in the stream that the projection does not know although it is past them.
    pub missing: i64,
    /// Sequences of the stream that the projection counts as not processed although it is past them.
    pub unread: i64,
    /// Unreadable events that were not kept as dead letters.
    pub unkept: i64,
    /// Sessions of which the event they come from is not in the stream, although it should be.
    pub extra: i64,
    /// Sessions that say something else than the event they come from.
    pub different: i64,
    /// Sessions whose rows for Google are not what their state wants.
    pub rows: i64,
    /// Sessions whose event has aged out or belongs to an earlier stream: they cannot be compared.
    pub expired: i64,
    /// Dead letters that are open: known, and waiting for a person.
    pub dead_letters: i64,
    /// Results that are not published yet.
    pub unpublished: i64,
    /// How old the oldest of those is, in seconds.
    pub oldest_unpublished_seconds: i64,
    /// The first of everything that does not agree.
    pub findings: Vec<Finding>,
    /// Somebody asked to stop before the end.
    pub is_stopped: bool,
}

impl Report {
    /// Whether everything that was compared agrees. Open dead letters are known, and results under way are no fault
    /// until they are five minutes old.
    pub fn agrees(&self) -> bool {
        self.missing + self.unread + self.unkept + self.extra + self.different + self.rows == 0
            && self.oldest_unpublished_seconds < 300
    }

    /// Whether some of it could not be compared.
    pub fn is_partial(&self) -> bool {
        self.is_stopped || self.not_read_yet > 0
    }

    fn find(&mut self, finding: Finding) {
        if self.findings.len() < NAMED_MAX {
            self.findings.push(finding);
        }
    }
}

/// Compares stream, projection and results. Reads only.
pub async fn compare(
    source: &Source,
    store: &Store,
    scope: &Scope,
    policy: &Policy,
    clock: &Clock,
    progress: &mut Progress,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<(Report, Survey), WorkError> {
    let mut report = Report::default();
    let position = store.position(source.record.epoch).await?;
    let history = &source.history;
    // What the service has not read yet is no difference. What it read out of order lies below the highest.
    let read = position.highest.max(position.contiguous).min(history.last);
    let selection = Selection {
        session: scope.session.as_ref().map(ToString::to_string),
        teacher: scope.teacher.as_ref().map(ToString::to_string),
        ..Selection::range(history.first.max(1), read)
    };
    let survey = if scope.percent.is_none() {
        survey(source, store, &selection, policy, clock, progress, is_asked_to_stop).await?
    } else {
        Survey::default()
    };
    report.events = survey.counts.events;
    report.missing = survey.counts.changing;
    report.unkept = survey.counts.unreadable;
    report.is_stopped = survey.is_stopped;
    for (sequence, session) in &survey.missing {
        report.find(Finding {
            kind: "missing",
            session_id: Some(session.to_string()),
            sequence: Some(*sequence),
            what: "the event is in the stream, and the projection does not know it".to_owned(),
        });
    }
    for sequence in &survey.unreadable {
        report.find(Finding {
            kind: "unkept",
            session_id: None,
            sequence: Some(*sequence),
            what: "the event cannot be read, and is not kept as a dead letter".to_owned(),
        });
    }
    if scope.session.is_none() && scope.teacher.is_none() {
        report.not_read_yet = events_between(source, read + 1, history.last).await?;
        find_gaps(source, store, read, &mut report).await?;
    }
    walk_projection(source, store, scope, read, &mut report, is_asked_to_stop).await?;
    let counts = store.counts(clock.now()).await?;
    report.dead_letters = counts.dead_letters;
    report.unpublished = counts.outbox;
    if let Some(oldest) = store.outbox_oldest().await? {
        report.oldest_unpublished_seconds = clock.now().since(oldest).max(0) / 1000;
    }
    Ok((report, survey))
}

/// Messages of ours in that part of the stream, at most a thousand.
async fn events_between(source: &Source, from: i64, to: i64) -> Result<i64, WorkError> {
    if from > to {
        return Ok(0);
    }
    let chunk = source.read(from, to, &source.filter(None), 1_000).await?;
    Ok(i64::try_from(chunk.messages.len()).unwrap_or(i64::MAX))
}

/// Sequences below what was read that were never processed, and that the stream holds.
async fn find_gaps(source: &Source, store: &Store, read: i64, report: &mut Report) -> Result<(), WorkError> {
    let epoch = source.record.epoch;
    let ranges = store.processed_ranges(epoch, RANGES_MAX).await?;
    let mut next = source.record.first_sequence.max(source.history.first);
    let end = Range { first: read + 1, last: read + 1 };
    for range in ranges.into_iter().chain([end]) {
        if range.first > next {
            let last = range.first - 1;
            let chunk = source.read(next, last.min(read), &source.filter(None), 1_000).await?;
            report.unread += i64::try_from(chunk.messages.len()).unwrap_or(i64::MAX);
            for message in chunk.messages.iter().take(NAMED_MAX) {
                report.find(Finding {
                    kind: "unread",
                    session_id: None,
                    sequence: Some(message.sequence),
                    what: "the position is past this event, and it was never processed".to_owned(),
                });
            }
        }
        next = next.max(range.last + 1);
    }
    Ok(())
}

/// Each session against the events it says it comes from, and against its rows.
async fn walk_projection(
    source: &Source,
    store: &Store,
    scope: &Scope,
    read: i64,
    report: &mut Report,
    is_asked_to_stop: &dyn Fn() -> bool,
) -> Result<(), WorkError> {
    let mut after = None;
    while let Some(page) = scope.page(store, &mut after).await? {
        if is_asked_to_stop() {
            report.is_stopped = true;
            return Ok(());
        }
        let mut wanted: Vec<i64> = Vec::new();
        for known in &page {
            for place in places(&known.session) {
                if source.history.holds(place, read) == Held::Within {
                    wanted.push(place.sequence);
                }
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let events = read_events(source, &wanted).await?;
        for known in &page {
            report.sessions += 1;
            check(source, known, &events, read, report);
        }
    }
    Ok(())
}

fn places(session: &Session) -> impl Iterator<Item = Place> {
    let details = session.details.as_ref().map(|(stamp, _)| *stamp);
    std::iter::once(session.head.stamp)
        .chain(details)
        .map(|stamp| Place { epoch: stamp.epoch, sequence: stamp.sequence })
}

async fn read_events(source: &Source, sequences: &[i64]) -> Result<HashMap<i64, SessionEvent>, WorkError> {
    let stream = &source.record.stream;
    let read =
        |sequence: i64| async move { patiently(async || Ok(source.connection.get(stream, sequence).await?)).await };
    let messages: Vec<_> = stream::iter(sequences.iter().copied())
        .map(read)
        .buffered(IN_FLIGHT)
        .try_filter_map(|message| std::future::ready(Ok(message)))
        .try_collect()
        .await?;
    Ok(messages
        .into_iter()
        .filter_map(|message| {
            let incoming = source.incoming(message);
            incoming.decoded.ok().map(|event| (incoming.sequence, event))
        })
        .collect())
}

fn check(source: &Source, known: &Known, events: &HashMap<i64, SessionEvent>, read: i64, report: &mut Report) {
    let session = &known.session;
    let head = session.head.stamp;
    let of_head = source.history.holds(Place { epoch: head.epoch, sequence: head.sequence }, read);
    let finding =
        |kind, sequence, what: String| Finding { kind, session_id: Some(session.id.to_string()), sequence, what };
    let mine = |sequence: i64| events.get(&sequence).filter(|event| event.session == session.id);
    match (of_head, mine(head.sequence)) {
        (Held::Within, None) => {
            report.extra += 1;
            let what = format!("version {} comes from an event that the stream does not hold", head.version);
            report.find(finding("extra", Some(head.sequence), what));
        }
        (Held::Within, Some(event)) => {
            let groups = differences(session, event, mine_details(session, &mine));
            if !groups.is_empty() {
                report.different += 1;
                let what = format!("{} is not what the event says; `rebuild` mends it", groups.join(", "));
                report.find(finding("different", Some(head.sequence), what));
            }
        }
        (Held::Expired, _) => report.expired += 1,
        (Held::Ahead, _) => {}
    }
    if let Some(what) = wrong_rows(session, &known.rows) {
        report.rows += 1;
        report.find(finding("rows", None, what));
    }
}

/// The event from which a session has its details, where the stream holds it.
fn mine_details<'e>(session: &Session, mine: &impl Fn(i64) -> Option<&'e SessionEvent>) -> Option<&'e SessionEvent> {
    mine(session.details.as_ref()?.0.sequence)
}

fn differences(session: &Session, head: &SessionEvent, details: Option<&SessionEvent>) -> Vec<&'static str> {
    let mut groups = Vec::new();
    let status = match head.change {
        crate::event::Change::Scheduled | crate::event::Change::Rescheduled => Status::Scheduled,
        crate::event::Change::Canceled => Status::Canceled,
    };
    if status != session.head.status {
        groups.push("status");
    }
    if head.teacher != session.head.teacher {
        groups.push("teacher");
    }
    if head.version != session.head.stamp.version {
        groups.push("version");
    }
    if groups.is_empty() && content_hash(head) != session.head.content_hash {
        groups.push("content");
    }
    if let (Some((_, known)), Some(event)) = (&session.details, details)
        && event.details.as_ref().is_none_or(|said| details_hash(said) != details_hash(known))
    {
        groups.push("details");
    }
    groups
}

/// A scheduled session has one wanted row, its teacher's; a canceled one has none.
fn wrong_rows(session: &Session, rows: &[MeetEvent]) -> Option<String> {
    let wanted: Vec<_> = rows.iter().filter(|row| row.want == Want::Present).collect();
    match (session.head.status, wanted.as_slice()) {
        (Status::Canceled, []) => None,
        (Status::Canceled, _) => Some("it is canceled, and an event at Google is still wanted".to_owned()),
        (Status::Scheduled, _) if session.details.is_none() => None,
        (Status::Scheduled, [row]) if row.teacher == session.head.teacher => None,
        (Status::Scheduled, [row]) => {
            let (has, wants) = (&row.teacher, &session.head.teacher);
            Some(format!("the event at Google is wanted on the calendar of {has} instead of {wants}"))
        }
        (Status::Scheduled, []) => Some("it takes place, and no event at Google is wanted".to_owned()),
        (Status::Scheduled, several) => Some(format!("{} events at Google are wanted instead of one", several.len())),
    }
}
