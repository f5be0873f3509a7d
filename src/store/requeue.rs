//! Dead letters once a person has looked at them: folded again where the cause is mended, or put aside for good.
//!
//! A letter is never removed. Requeuing decodes the kept message with this program's rules and folds it at its own place,
//! so it ends where it would have ended at first: applied, stale because newer events of the session are known, or still
//! refused, with today's reason. All of it is one transaction, so it works beside a service that runs.

use std::collections::{BTreeMap, BTreeSet};

use super::audit::{self, Action, Actor};
use super::dead_letters::{self, Letter};
use super::ingest::{VERSION_CONFLICT, fold_one, nul_in};
use super::sql::{Sql, Tx, args, both, with_batch};
use super::working::Working;
use super::{DeadLetter, Refused, Result, Store, epochs};
use crate::event::{SessionEvent, decode};
use crate::model::{Epoch, UnixMillis};
use crate::projection::Outcome;

/// Which dead letters; all conditions hold together.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// With this class.
    pub class: Option<String>,
    /// Given up on at or after.
    pub since: Option<UnixMillis>,
    /// That name this session.
    pub session: Option<String>,
    /// `open`, `requeued` or `discarded`; `None` for all.
    pub state: Option<String>,
    /// Older than this id.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: i64,
}

/// What became of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requeued {
    /// There is no such letter.
    Unknown,
    /// It was requeued before; nothing was done.
    Already,
    /// Its message is still being read back from the stream.
    NoMessage,
    /// It changed the session; so many requests to Google may follow.
    Applied {
        /// At most.
        calls: i64,
    },
    /// Readable now, but newer events of the session were applied before, so it changed nothing.
    Stale {
        /// The version that is known.
        version: i64,
        /// Its place in the stream.
        sequence: i64,
    },
    /// The same event was folded before.
    Duplicate,
    /// Still refused; it stays open, with this reason.
    Refused {
        /// The class.
        class: &'static str,
        /// The reason.
        reason: String,
    },
}

impl Requeued {
    /// A word for the audit and for JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Already => "already_requeued",
            Self::NoMessage => "no_message",
            Self::Applied { .. } => "applied",
            Self::Stale { .. } => "stale",
            Self::Duplicate => "duplicate",
            Self::Refused { .. } => "still_refused",
        }
    }

    /// Whether the letter is done with.
    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Already | Self::Applied { .. } | Self::Stale { .. } | Self::Duplicate)
    }
}

/// What became of a letter that was to be put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Discarded {
    /// Put aside.
    Yes,
    /// It was not open.
    NotOpen,
    /// There is no such letter.
    Unknown,
}

/// Everything, so that columns which the letters gain need no change here.
const LIST: Sql = both(
    "SELECT * FROM dead_letter WHERE id < $1 AND at_ms >= $2 AND ($3 = '' OR class = $3) \
     AND ($4 = '' OR session_id = $4) AND ($5 = '' OR state = $5) ORDER BY id DESC LIMIT $6",
);

const SEVERAL: Sql = with_batch!("SELECT * FROM dead_letter WHERE id IN ", [id bigint], "");

const REQUEUED: Sql = both("UPDATE dead_letter SET state = 'requeued' WHERE id = $1");

const STILL_REFUSED: Sql = both(
    "UPDATE dead_letter SET state = 'open', class = $2, reason = $3, session_id = COALESCE($4, session_id) WHERE id = $1",
);

const DISCARD: Sql = both("UPDATE dead_letter SET state = 'discarded' WHERE id = $1 AND state = 'open'");

const CLASSES: Sql = both(
    "SELECT class, COUNT(*) AS number FROM dead_letter WHERE state = 'open' GROUP BY class ORDER BY number DESC, class",
);

/// What follows at Google when what is wanted changes: a look and a write.
const CALLS_OF_A_CHANGE: i64 = 2;

async fn letters(tx: &mut Tx, ids: &[i64]) -> Result<BTreeMap<i64, DeadLetter>> {
    #[derive(serde::Serialize)]
    struct Id {
        id: i64,
    }
    let ids: Vec<_> = ids.iter().map(|id| Id { id: *id }).collect();
    let rows = tx.rows(SEVERAL, vec![super::sql::batch(&ids)]).await?;
    rows.iter().map(|row| dead_letters::read(row).map(|letter| (letter.id, letter))).collect()
}

/// The event of a letter, by today's rules.
fn event_of(letter: &DeadLetter) -> Option<std::result::Result<SessionEvent, Refused>> {
    let raw = letter.raw.as_ref()?;
    let headers = raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let decoded = decode(&raw.subject, headers, &raw.payload, letter.place);
    Some(decoded.and_then(|event| match nul_in(&event) {
        Some(refused) => Err(Refused { session: Some(event.session.clone()), ..refused }),
        None => Ok(event),
    }))
}

/// Folds letters again in the caller's transaction, or only says what would come of it when there is nobody to do it.
async fn requeue_in(
    tx: &mut Tx,
    ids: &[i64],
    by: Option<(&Actor, Option<&str>)>,
    now: UnixMillis,
) -> Result<(Vec<(i64, Requeued)>, Vec<crate::model::SessionId>)> {
    let letters = letters(tx, ids).await?;
    // In the order of the stream, as they would have come.
    let mut in_order: Vec<&DeadLetter> = letters.values().collect();
    in_order.sort_by_key(|letter| letter.place);
    let events: BTreeMap<i64, _> =
        in_order.iter().filter_map(|letter| event_of(letter).map(|event| (letter.id, event))).collect();
    let sessions: BTreeSet<_> = events.values().filter_map(|event| event.as_ref().ok()).map(|e| &e.session).collect();
    let mut working = if sessions.is_empty() { Working::default() } else { Working::load(tx, sessions).await? };

    let mut outcomes = BTreeMap::new();
    let mut displaced = Vec::new();
    for letter in in_order {
        let outcome = match events.get(&letter.id) {
            _ if letter.state == "requeued" => Requeued::Already,
            None => Requeued::NoMessage,
            Some(Err(refused)) => Requeued::Refused { class: refused.class, reason: refused.reason.clone() },
            Some(Ok(event)) => fold_letter(&mut working, letter, event, &mut displaced),
        };
        outcomes.insert(letter.id, outcome);
    }
    let answers = ids.iter().map(|id| (*id, outcomes.get(id).cloned().unwrap_or(Requeued::Unknown))).collect();
    let Some((actor, reason)) = by else { return Ok((answers, Vec::new())) };

    let saved = working.save(tx, now).await?;
    for (epoch, loser) in displaced {
        dead_letters::keep(tx, epoch, &loser, now).await?;
    }
    for (id, outcome) in &outcomes {
        let letter = &letters[id];
        match outcome {
            Requeued::Applied { .. } | Requeued::Stale { .. } | Requeued::Duplicate => {
                tx.execute(REQUEUED, args![*id]).await?;
                let source = events.get(id).and_then(|event| event.as_ref().ok()?.source.as_deref());
                epochs::keep_sources(tx, letter.place.epoch, &source.into_iter().collect()).await?;
            }
            Requeued::Refused { class, reason } => {
                let session = events.get(id).and_then(|event| match event {
                    Ok(event) => Some(event.session.as_str()),
                    Err(refused) => refused.session.as_ref().map(crate::model::SessionId::as_str),
                });
                tx.execute(STILL_REFUSED, args![*id, *class, reason.as_str(), session]).await?;
            }
            Requeued::Unknown | Requeued::Already | Requeued::NoMessage => continue,
        }
        let target = format!("dead letter {id}");
        let action =
            Action { actor, action: "dead-letter requeue", target: &target, reason, outcome: outcome.as_str() };
        audit::keep(tx, &action, now).await?;
    }
    Ok((answers, saved.changed))
}

fn fold_letter(
    working: &mut Working,
    letter: &DeadLetter,
    event: &SessionEvent,
    displaced: &mut Vec<(Epoch, Letter<'_>)>,
) -> Requeued {
    let wanted = |working: &Working| working.get(&event.session).map(|entry| entry.session.desired_hash());
    let before = wanted(working);
    let outcome = fold_one(working, event, letter.place, letter.at);
    let head = working.get(&event.session).map(|entry| entry.session.head.stamp).expect("it was folded a line above");
    let calls = if before == wanted(working) { 0 } else { CALLS_OF_A_CHANGE };
    match outcome {
        Outcome::Applied => Requeued::Applied { calls },
        Outcome::Duplicate => Requeued::Duplicate,
        Outcome::Stale => Requeued::Stale { version: head.version.get(), sequence: head.sequence },
        Outcome::Conflict { loser } if loser == letter.place.sequence => {
            Requeued::Refused { class: VERSION_CONFLICT, reason: conflict(event, head.sequence, loser) }
        }
        Outcome::Conflict { loser } => {
            let reason = conflict(event, letter.place.sequence, loser);
            let refused = Refused { class: VERSION_CONFLICT, reason, session: Some(event.session.clone()) };
            displaced.push((letter.place.epoch, Letter { sequence: loser, raw: None, refused }));
            Requeued::Applied { calls }
        }
    }
}

fn conflict(event: &SessionEvent, kept: i64, loser: i64) -> String {
    format!(
        "session {} version {} came twice with different content; sequence {kept} was kept and sequence {loser} was not: \
         publish the change again with a higher version",
        event.session, event.version
    )
}

/// What people do with dead letters.
impl Store {
    /// Dead letters, newest first.
    pub async fn find_dead_letters(&self, filter: &DeadLetterFilter) -> Result<Vec<DeadLetter>> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let values = args![
            filter.before.unwrap_or(i64::MAX),
            filter.since.map_or(i64::MIN, UnixMillis::get),
            text(&filter.class),
            text(&filter.session),
            text(&filter.state),
            filter.limit,
        ];
        self.inner.rows("listing dead letters", LIST, values).await?.iter().map(dead_letters::read).collect()
    }

    /// Open dead letters by class, most frequent first.
    pub async fn dead_letter_classes(&self) -> Result<Vec<(String, i64)>> {
        let rows = self.inner.rows("counting dead letters", CLASSES, args![]).await?;
        rows.iter().map(|row| Ok((row.get("class")?, row.get("number")?))).collect()
    }

    /// Folds letters again, in the order of the stream, and says of each what came of it, in the order asked for;
    /// audited. One transaction: at most some hundreds at once.
    pub async fn requeue(
        &self,
        ids: &[i64],
        actor: &Actor,
        reason: Option<&str>,
        now: UnixMillis,
    ) -> Result<Vec<(i64, Requeued)>> {
        let mut tx = self.inner.write("requeuing dead letters").await?;
        let (outcomes, changed) = requeue_in(&mut tx, ids, Some((actor, reason)), now).await?;
        tx.commit().await?;
        self.announce(&changed);
        Ok(outcomes)
    }

    /// What [`Store::requeue`] would do; changes nothing.
    pub async fn requeue_plan(&self, ids: &[i64], now: UnixMillis) -> Result<Vec<(i64, Requeued)>> {
        let mut tx = self.inner.snapshot("planning to requeue dead letters").await?;
        requeue_in(&mut tx, ids, None, now).await.map(|(outcomes, _)| outcomes)
    }

    /// Puts letters aside; they are kept, and can be requeued all the same. Audited.
    pub async fn discard(
        &self,
        ids: &[i64],
        actor: &Actor,
        reason: &str,
        now: UnixMillis,
    ) -> Result<Vec<(i64, Discarded)>> {
        let mut tx = self.inner.write("discarding dead letters").await?;
        let known = letters(&mut tx, ids).await?;
        let mut outcomes = Vec::with_capacity(ids.len());
        for id in ids {
            let outcome = if !known.contains_key(id) {
                Discarded::Unknown
            } else if tx.execute(DISCARD, args![*id]).await? == 0 {
                Discarded::NotOpen
            } else {
                let target = format!("dead letter {id}");
                let action = Action {
                    actor,
                    action: "dead-letter discard",
                    target: &target,
                    reason: Some(reason),
                    outcome: "discarded",
                };
                audit::keep(&mut tx, &action, now).await?;
                Discarded::Yes
            };
            outcomes.push((*id, outcome));
        }
        tx.commit().await?;
        Ok(outcomes)
    }
}
