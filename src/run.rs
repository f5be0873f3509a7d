//! A run: one piece of long work that a person started, which can be stopped, killed and gone on with, is alone of its
//! kind, and ends with a proof of what it did.
//!
//! Where it stands is in the database beside what it changes, written in the same transaction, so that a run that was
//! killed is counted right when it goes on. Deliberately absent: any way to undo one; a replay has nothing to undo, and a
//! rebuild keeps what was before.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Clock;
use crate::model::{Epoch, UnixMillis};
use crate::nats::NatsError;
use crate::store::{Store, StoreError};

pub mod effects;
pub mod forecast;
pub mod pace;
pub mod progress;
pub mod source;

/// How long nobody else may go on with a run after its process last moved it: three times the longest request to NATS.
/// Longer makes people wait after a `kill -9`, shorter lets a second process in while the first one waits for an answer.
pub const HOLD_MS: i64 = 15_000;

/// What kind of work it is; one run of each may be at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `replay`
    Replay,
    /// `rebuild`
    Rebuild,
    /// `verify`
    Verify,
    /// The search for events of ours that a lost or older database does not know of; started by the service itself.
    Leftovers,
}

impl Kind {
    /// All kinds with the word in ids and in the database.
    pub const WORDS: [(Self, &'static str); 4] = [
        (Self::Replay, "replay"),
        (Self::Rebuild, "rebuild"),
        (Self::Verify, "verify"),
        (Self::Leftovers, "leftovers"),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(kind, _)| *kind == self).map_or("replay", |(_, word)| word)
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// A process is at it, or was when it died.
    Running,
    /// Stopped on request; it can be gone on with.
    Stopped,
    /// A rebuild that has read everything: it can be promoted.
    Ready,
    /// A rebuild whose result is served.
    Promoted,
    /// A promoted rebuild that was taken back.
    RolledBack,
    /// It came to its end.
    Finished,
    /// It cannot go on.
    Failed,
    /// Thrown away.
    Discarded,
}

impl State {
    /// All states with the word in the database.
    pub const WORDS: [(Self, &'static str); 8] = [
        (Self::Running, "running"),
        (Self::Stopped, "stopped"),
        (Self::Ready, "ready"),
        (Self::Promoted, "promoted"),
        (Self::RolledBack, "rolled_back"),
        (Self::Finished, "finished"),
        (Self::Failed, "failed"),
        (Self::Discarded, "discarded"),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(state, _)| *state == self).map_or("running", |(_, word)| word)
    }
}

/// What became of the events a run read. The first five are exclusive, so they add up to `events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Read.
    pub events: i64,
    /// Their content is the newest of their session.
    pub applied: i64,
    /// They change (or changed) their session.
    pub changing: i64,
    /// A newer version of their session is known.
    pub stale: i64,
    /// Given up on before: there is a dead letter of them.
    pub dead: i64,
    /// They cannot be read and there is no dead letter of them yet.
    pub unreadable: i64,
    /// Sessions that changed.
    pub sessions_changed: i64,
}

impl Counts {
    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.applied += other.applied;
        self.changing += other.changing;
        self.stale += other.stale;
        self.dead += other.dead;
        self.unreadable += other.unreadable;
        self.sessions_changed += other.sessions_changed;
    }
}

/// A run as it is kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Its name, as commands take it.
    pub id: String,
    /// What kind of work.
    pub kind: Kind,
    /// Where it stands.
    pub state: State,
    /// The epoch of the stream in which it was begun.
    pub epoch: Epoch,
    /// What was asked for.
    pub arguments: Value,
    /// The last stream sequence that is done.
    pub cursor: i64,
    /// The last stream sequence to do.
    pub goal: i64,
    /// What was done so far.
    pub counts: Counts,
    /// Why, as the operator said.
    pub reason: Option<String>,
    /// The closing statement.
    pub proof: Option<Value>,
    /// When it was begun.
    pub started_at: UnixMillis,
    /// When it last moved.
    pub updated_at: UnixMillis,
    /// When it came to its end.
    pub ended_at: Option<UnixMillis>,
    /// The process that works on it.
    pub holder: Option<String>,
    /// Until when nobody else may go on with it.
    pub held_until: UnixMillis,
}

impl Run {
    /// A new run that this process works on. `cursor` is the sequence before the first one to do.
    pub fn new(kind: Kind, epoch: Epoch, arguments: Value, cursor: i64, goal: i64, now: UnixMillis) -> Self {
        Self {
            id: new_id(kind, now),
            kind,
            state: State::Running,
            epoch,
            arguments,
            cursor,
            goal,
            counts: Counts::default(),
            reason: None,
            proof: None,
            started_at: now,
            updated_at: now,
            ended_at: None,
            holder: Some(holder()),
            held_until: now.plus(HOLD_MS),
        }
    }

    /// Whether a process is at it now.
    pub fn is_held(&self, now: UnixMillis) -> bool {
        self.holder.is_some() && self.held_until > now
    }
}

/// `replay-20261122-201506-k3`: says what and when, and is short enough to type.
fn new_id(kind: Kind, now: UnixMillis) -> String {
    let digits: String = now.to_rfc3339().chars().take(19).filter(char::is_ascii_digit).collect();
    let (day, time) = digits.split_at(8);
    let tail = uuid::Uuid::new_v4().simple().to_string();
    format!("{}-{day}-{time}-{}", kind.as_str(), &tail[..4])
}

/// A name for this piece of work in this process that no other has, restarts included.
fn holder() -> String {
    format!("{}-{}", std::process::id(), &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another one of its kind is at work.
    #[error("run {0} is at work; there is one of a kind at a time. Wait for its end, or stop it with Ctrl-C there")]
    Busy(String),
    /// There is none of that name.
    #[error("there is no {kind} of the name {id}", kind = .kind.as_str())]
    Unknown {
        /// What was looked for.
        kind: Kind,
        /// The name.
        id: String,
    },
    /// It is not in a state for that.
    #[error("{0}")]
    NotNow(String),
    /// Another process went on with it.
    #[error("another process has taken run {0} over; nothing more is done here")]
    TakenOver(String),
    /// The database.
    #[error("the database did not answer")]
    Store(#[from] StoreError),
}

/// Why work on the stream and the projection ended early. What was done until then is kept.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// The stream cannot be read as it is.
    #[error(transparent)]
    Source(#[from] source::SourceError),
    /// NATS.
    #[error(transparent)]
    Nats(#[from] NatsError),
    /// The database.
    #[error("the database did not answer")]
    Store(#[from] StoreError),
    /// The run itself.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl WorkError {
    /// The exit code: 3 configuration, 4 unreachable, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Source(error) => error.exit_code(),
            Self::Nats(error) => error.exit_code(),
            Self::Store(error) | Self::Run(RunError::Store(error)) if error.is_transient() => 4,
            _ => 1,
        }
    }

    /// Whether the same may succeed a little later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Nats(error) => error.is_unreachable(),
            Self::Store(error) | Self::Run(RunError::Store(error)) => error.is_transient(),
            _ => false,
        }
    }
}

/// Repeats what may succeed a little later, a few times over half a minute: a server that is started again is no reason
/// to give up on hours of work.
pub async fn patiently<T>(mut work: impl AsyncFnMut() -> Result<T, WorkError>) -> Result<T, WorkError> {
    let mut pause = Duration::from_millis(250);
    loop {
        match work().await {
            Err(error) if error.is_transient() && pause <= Duration::from_secs(16) => {
                tracing::warn!(error = %crate::telemetry::Chain(&error), "trying again");
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            other => return other,
        }
    }
}

/// Begins the run, unless one of its kind is at work.
pub async fn begin(store: &Store, run: &Run, clock: &Clock) -> Result<(), RunError> {
    match store.begin_run(run, clock.now()).await? {
        None => Ok(()),
        Some(busy) => Err(RunError::Busy(busy)),
    }
}

/// Goes on with a run that was stopped or killed. Where its process may be alive it waits until that is certain: a
/// process that works moves its run all the time.
pub async fn resume(store: &Store, kind: Kind, id: &str, clock: &Clock) -> Result<Run, RunError> {
    let known = store.run(id).await?.filter(|run| run.kind == kind);
    let known = known.ok_or_else(|| RunError::Unknown { kind, id: id.to_owned() })?;
    if !matches!(known.state, State::Running | State::Stopped) {
        let state = known.state.as_str();
        return Err(RunError::NotNow(format!("run {id} is {state}: there is nothing to go on with")));
    }
    hold(store, known, clock).await
}

/// Takes hold of a run that nobody works on, in the state it is in. Where its process may be alive it waits until that is
/// certain.
pub async fn hold(store: &Store, known: Run, clock: &Clock) -> Result<Run, RunError> {
    let (id, holder) = (known.id.as_str(), holder());
    let begun = tokio::time::Instant::now();
    loop {
        let now = clock.now();
        if let Some(run) = store.take_run(id, &holder, now, now.plus(HOLD_MS)).await? {
            return Ok(run);
        }
        let at_work = store.run(id).await?.filter(|run| run.updated_at == known.updated_at);
        let hold = Duration::from_millis(u64::try_from(HOLD_MS).unwrap_or_default() + 2_000);
        if at_work.is_none() || begun.elapsed() > hold {
            return Err(RunError::Busy(id.to_owned()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events: {} already applied, {} change something, {} stale, {} dead letters, {} unreadable",
            thousands(self.events),
            thousands(self.applied),
            thousands(self.changing),
            thousands(self.stale),
            thousands(self.dead),
            thousands(self.unreadable)
        )
    }
}

/// `214000` as `214,000`.
pub fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if number < 0 {
        text.push('-');
    }
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_threes() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (214_000, "214,000"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn names_say_what_and_when() {
        let id = new_id(Kind::Replay, UnixMillis::parse_rfc3339("2026-11-22T20:15:06Z").unwrap());
        assert!(id.starts_with("replay-20261122-201506-"), "{id}");
        assert_eq!(id.len(), "replay-20261122-201506-abcd".len());
    }
}
