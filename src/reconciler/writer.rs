//! One writer for all calendars: what they bring while a transaction runs goes into the next one together.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::Context;
use super::claims::{Claims, Place};
use crate::model::TeacherId;
use crate::store::{RowWrite, StoreError, Turn, Written};

/// Requests taken into one transaction at most: enough for every calendar worked on at once.
const GROUP_MAX: usize = 256;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// A calendar given back, and the place that it frees.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) teacher: TeacherId,
    pub(super) token: i64,
    pub(super) place: Place,
}

/// What one calendar brings.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// Results so far.
    pub(super) records: Vec<RowWrite>,
    /// The intent of the next call.
    pub(super) begin: Option<RowWrite>,
    /// The end of the work on it.
    pub(super) leaving: Option<Leaving>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Kept {
    /// Of each result.
    pub(super) records: Vec<Written>,
    /// Of the intent, if there was one.
    pub(super) begin: Option<Written>,
}

#[derive(Debug)]
enum Request {
    Keep(Box<Brought>, Reply<Kept>),
    Look(Reply<()>),
}

/// A handle on the writer; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    requests: mpsc::Sender<Request>,
}

impl Writer {
    pub(super) fn start(context: Arc<Context>, claims: Claims) -> Self {
        let (requests, mut inbox) = mpsc::channel(GROUP_MAX);
        let committer = Committer { context, claims };
        tokio::spawn(async move {
            let mut group = Vec::with_capacity(GROUP_MAX);
            while inbox.recv_many(&mut group, GROUP_MAX).await > 0 {
                committer.commit(&mut group).await;
            }
        });
        Self { requests }
    }

    /// Commits what a calendar brings, all or nothing of it.
    pub(super) async fn keep(&self, brought: Brought) -> Result<Kept, StoreError> {
        self.ask(|reply| Request::Keep(Box::new(brought), reply)).await
    }

    /// Claims what is due, if there is room; the loop gets it before this returns.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        self.ask(Request::Look).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let stopped = || StoreError::Configuration("the reconciler's writer has stopped".into());
        self.requests.send(request(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

/// A request whose parts went into a [`Turn`].
struct Part {
    records: usize,
    begins: usize,
    releases: usize,
    reply: Reply<Kept>,
}

struct Committer {
    context: Arc<Context>,
    claims: Claims,
}

impl Committer {
    /// Commits a group. Where it is refused for good, what is wrong with one must not harm the others: first the claim
    /// is left out, then each request is tried alone.
    async fn commit(&self, group: &mut Vec<Request>) {
        let mut turn = Turn::default();
        let (mut parts, mut looks) = (Vec::with_capacity(group.len()), Vec::new());
        for request in group.drain(..) {
            match request {
                Request::Look(reply) => looks.push(reply),
                Request::Keep(brought, reply) => parts.push(take(&mut turn, *brought, reply)),
            }
        }
        // Whoever gives a calendar back makes room for another one, in the same transaction.
        if !looks.is_empty() || !turn.releases.is_empty() {
            turn.claim = self.claims.wanted();
        }
        let is_empty = parts.is_empty() && turn.claim.is_none();
        let mut outcome = if is_empty { Ok(Vec::new()) } else { self.attempt(&turn, &parts).await };
        let mut looked = outcome.as_ref().map(drop).map_err(share);
        if let Err(error) = &outcome
            && !error.is_transient()
            && turn.claim.take().is_some()
        {
            looked = Err(share(error));
            outcome = self.attempt(&turn, &parts).await;
        }
        for reply in looks {
            answer(reply, looked.as_ref().copied().map_err(share));
        }
        match outcome {
            Ok(kept) => {
                for (part, kept) in parts.into_iter().zip(kept) {
                    answer(part.reply, Ok(kept));
                }
            }
            Err(error) if error.is_transient() || parts.len() < 2 => {
                for part in parts {
                    answer(part.reply, Err(share(&error)));
                }
            }
            Err(_) => {
                for part in parts {
                    let alone = Turn {
                        records: turn.records.drain(..part.records).collect(),
                        begins: turn.begins.drain(..part.begins).collect(),
                        releases: turn.releases.drain(..part.releases).collect(),
                        claim: None,
                    };
                    let kept = self.attempt(&alone, std::slice::from_ref(&part)).await;
                    answer(part.reply, kept.map(|mut kept| kept.remove(0)));
                }
            }
        }
    }

    /// Commits a turn and says what became of each part of it.
    async fn attempt(&self, turn: &Turn, parts: &[Part]) -> Result<Vec<Kept>, StoreError> {
        let now = self.context.clock.now();
        let mut opened = HashMap::new();
        let turned = self.context.store.turn(turn, now, &mut |lease| self.claims.open(&mut opened, lease, now)).await?;
        self.claims.hand_over(turned.leases, opened);
        let (mut records, mut begins) = (turned.records.into_iter(), turned.begins.into_iter());
        Ok(parts
            .iter()
            .map(|part| Kept {
                records: records.by_ref().take(part.records).collect(),
                begin: begins.by_ref().take(part.begins).next(),
            })
            .collect())
    }
}

fn take(turn: &mut Turn, brought: Brought, reply: Reply<Kept>) -> Part {
    let Brought { records, begin, leaving } = brought;
    let part = Part {
        records: records.len(),
        begins: usize::from(begin.is_some()),
        releases: usize::from(leaving.is_some()),
        reply,
    };
    turn.records.extend(records);
    turn.begins.extend(begin);
    if let Some(Leaving { teacher, token, place }) = leaving {
        turn.releases.push((teacher, token));
        // Free for what is claimed in the same transaction.
        drop(place);
    }
    part
}

fn answer<T>(reply: Reply<T>, outcome: Result<T, StoreError>) {
    // A requester that went away in the meantime does not want its answer.
    reply.send(outcome).ok();
}

/// One failure told to several.
fn share(error: &StoreError) -> StoreError {
    let source = crate::telemetry::Chain(error).to_string().into();
    if error.is_transient() {
        StoreError::Unavailable { operation: "commit a group of results", source }
    } else {
        StoreError::Failed { operation: "commit a group of results", source }
    }
}
