//! What happened: every request, counters, and how many live events each session ever had at once.
//!
//! The watch over sessions is not a look at the end: every change of a calendar reports to it, so that two events which
//! were live together for a millisecond are found as surely as two that stayed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::faults::Operation;
use crate::model::UnixMillis;

/// How much is kept of the requests. Counters and the watch over sessions are always on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Recording {
    /// The newest so many requests are kept; 0 keeps none, as a benchmark wants.
    pub keep: usize,
    /// Keep the bodies of requests too.
    pub bodies: bool,
}

impl Default for Recording {
    fn default() -> Self {
        Self { keep: 20_000, bodies: true }
    }
}

/// Whether a request took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    /// It changed nothing: a read, a refusal, a fault before the commit.
    None,
    /// It was carried out, whatever the client was told.
    Committed,
    /// It will be carried out later.
    Late,
}

/// One request.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Counts all requests from 1, kept or not.
    pub number: u64,
    /// When it arrived, by the clock of the fake.
    pub at_ms: i64,
    /// When it arrived, for measuring within one process.
    #[serde(skip)]
    pub received: Instant,
    /// HTTP method.
    pub method: &'static str,
    /// What it asked for.
    pub operation: Operation,
    /// The e-mail address of the account whose token it carried.
    pub account: Option<Arc<str>>,
    /// The event id, from path or body.
    pub event: Option<String>,
    /// `mpSession` of that event.
    pub session: Option<Arc<str>>,
    /// The query string.
    pub query: String,
    /// `If-Match`.
    pub if_match: Option<String>,
    /// The body; empty unless bodies are kept. Token requests never have one here: they hold secrets.
    pub body: String,
    /// The status that was answered; 0 where no answer was given.
    pub status: u16,
    /// Google's reason, where it refused.
    pub reason: Option<String>,
    /// Whether it took effect.
    pub effect: Effect,
    /// The fault that was injected.
    pub fault: Option<String>,
}

/// Totals since the start or the last reset.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Requests by operation.
    pub requests: BTreeMap<Operation, u64>,
    /// Those that took effect, by operation; late ones count when they do.
    pub committed: BTreeMap<Operation, u64>,
    /// Answers by status; 0 is "no answer".
    pub statuses: BTreeMap<u16, u64>,
    /// Requests that met a fault.
    pub faults: u64,
    /// Patches and updates that were taken and changed nothing.
    pub no_op_writes: u64,
}

impl Counters {
    /// Requests of `operation`.
    pub fn requests_of(&self, operation: Operation) -> u64 {
        self.requests.get(&operation).copied().unwrap_or_default()
    }

    /// Requests of `operation` that took effect.
    pub fn committed_of(&self, operation: Operation) -> u64 {
        self.committed.get(&operation).copied().unwrap_or_default()
    }

    /// Inserts, patches, updates and deletes that took effect.
    pub fn writes(&self) -> u64 {
        self.committed.iter().filter(|(operation, _)| operation.is_write()).map(|(_, count)| count).sum()
    }
}

#[derive(Debug, Default)]
pub(super) struct Recorder {
    pub(super) recording: Recording,
    pub(super) counters: Counters,
    requests: VecDeque<Recorded>,
    number: u64,
}

impl Recorder {
    pub(super) fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) fn committed(&mut self, operation: Operation) {
        *self.counters.committed.entry(operation).or_insert(0) += 1;
    }

    pub(super) fn count(&mut self, operation: Operation, status: u16, is_faulty: bool) {
        *self.counters.requests.entry(operation).or_insert(0) += 1;
        *self.counters.statuses.entry(status).or_insert(0) += 1;
        self.counters.faults += u64::from(is_faulty);
    }

    pub(super) fn is_keeping(&self) -> bool {
        self.recording.keep > 0
    }

    pub(super) fn keep(&mut self, request: Recorded) {
        while self.requests.len() >= self.recording.keep.max(1) {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    pub(super) fn requests(&self) -> impl DoubleEndedIterator<Item = &Recorded> {
        self.requests.iter()
    }

    pub(super) fn reset(&mut self) {
        self.counters = Counters::default();
        self.requests = VecDeque::new();
    }
}

/// A rule of the service that was broken at Google.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Violation {
    /// When, by the clock of the fake.
    pub at_ms: i64,
    /// The session.
    pub session: Arc<str>,
    /// The event that should not have been made.
    pub event: String,
    /// One sentence.
    pub message: String,
}

/// Live events of one session, now and at most so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveCount {
    /// Now.
    pub now: u32,
    /// At most at any instant so far.
    pub most: u32,
}

impl LiveCount {
    fn add(&mut self) {
        self.now += 1;
        self.most = self.most.max(self.now);
    }
}

/// How many live events carry the marker of a session: over all accounts, and on each account alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionCount {
    /// Over all accounts. Two for a moment is right while a session changes its teacher.
    pub overall: LiveCount,
    /// By number of the account; more than one is never right.
    #[serde(skip)]
    pub(super) accounts: Vec<(usize, LiveCount)>,
}

impl SessionCount {
    fn account(&mut self, account: usize) -> &mut LiveCount {
        let place = self.accounts.iter().position(|(known, _)| *known == account).unwrap_or_else(|| {
            self.accounts.push((account, LiveCount::default()));
            self.accounts.len() - 1
        });
        &mut self.accounts[place].1
    }

    /// The most that one account had at once.
    pub fn most_on_one_account(&self) -> u32 {
        self.accounts.iter().map(|(_, count)| count.most).max().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
pub(super) struct SessionWatch {
    pub(super) sessions: HashMap<Arc<str>, SessionCount>,
    /// The first thousand.
    pub(super) violations: Vec<Violation>,
}

impl SessionWatch {
    pub(super) fn inserted(&mut self, session: &Arc<str>, account: usize, event: &str, now: UnixMillis) {
        let on_account =
            self.sessions.get(session).and_then(|count| count.accounts.iter().find(|(a, _)| *a == account));
        if let Some((_, count)) = on_account.filter(|(_, count)| count.now > 0) {
            let message =
                format!("inserted {event} for session {session} while {} event(s) of it were live there", count.now);
            if self.violations.len() < 1_000 {
                self.violations.push(Violation {
                    at_ms: now.get(),
                    session: Arc::clone(session),
                    event: event.to_owned(),
                    message,
                });
            }
        }
        self.began(session, account);
    }

    pub(super) fn began(&mut self, session: &Arc<str>, account: usize) {
        let count = self.sessions.entry(Arc::clone(session)).or_default();
        count.overall.add();
        count.account(account).add();
    }

    pub(super) fn ended(&mut self, session: &Arc<str>, account: usize) {
        let count = self.sessions.entry(Arc::clone(session)).or_default();
        count.overall.now = count.overall.now.saturating_sub(1);
        let count = count.account(account);
        count.now = count.now.saturating_sub(1);
    }

    /// Forgets the past; what is live now stays counted.
    pub(super) fn reset(&mut self) {
        self.violations = Vec::new();
        self.sessions.retain(|_, count| count.overall.now > 0);
        for count in self.sessions.values_mut() {
            count.overall.most = count.overall.now;
            for (_, count) in &mut count.accounts {
                count.most = count.now;
            }
        }
    }
}
