//! What survives a restart. Methods are named for what the service does, each is one transaction, and no pool, row or
//! transaction type shows: only this module and those below it name sqlx.
//!
//! One body of SQL serves SQLite and PostgreSQL; where the dialects differ, both texts stand side by side.
//! Writes are serialised on both (`BEGIN IMMEDIATE`; an advisory transaction lock on PostgreSQL), because a group commit
//! of hundreds of rows costs a few milliseconds and a single writer makes races impossible instead of unlikely.
//! Deliberately absent: a transaction that stays open across a network call.
//!
//! The types stand here; the methods of [`Store`] by their nouns in the files below: opening, ingest (with dead letters
//! and epochs), reconcile (with the queue of calendars and what was called), credentials, documents, outbox, tokens; and
//! what operators see and do: overview, retry, requeue, control (pauses), process, audit. Those bring their own types.

use std::sync::Arc;

use secrecy::SecretString;

use crate::event::SessionEvent;
use crate::model::{Epoch, GoogleSub, Place, SessionId, TeacherId, UnixMillis};
use crate::plan::{Code, MeetEvent, Sibling};
use crate::projection::{Outcome, Session};
use crate::status::MeetStatus;

pub mod audit;
mod calls;
mod connections;
mod control;
mod credentials;
mod dead_letters;
mod disconnections;
mod documents;
mod epochs;
mod gauges;
mod idempotency;
mod ingest;
mod intents;
mod many;
pub mod notices;
mod oauth_flows;
mod opening;
mod outbox;
mod overview;
mod postgres;
mod process;
mod queue;
mod reconcile;
mod requeue;
mod retry;
mod rows;
mod runs;
pub mod sealed;
mod shadow;
mod sql;
mod sqlite;
mod suspicion;
pub mod teachers;
mod tokens;
mod wakeups;
mod walk;
mod working;

pub use audit::{Acted, ActedFilter, Action, Actor};
pub use calls::{CallOutcome, GoogleCall};
pub use connections::{Connected, NewConnection};
pub use control::{HeldCalendar, Pause, Scope};
pub use disconnections::{
    DisconnectOutcome, DisconnectPhase, DisconnectWork, Disconnection, REMOVING_MAX_MS, REVOKING_MAX_MS, Revocation,
};
pub use gauges::{Gauges, OpenRun, PoolState};
pub use idempotency::{Idempotency, RetryAnswer};
pub use oauth_flows::{Consumed, Flow, NewFlow};
pub use overview::{BlockedTeacher, Endangered, Overview, PendingSession};
pub use process::{PROCESS_GONE_AFTER_MS, ProcessRecord};
pub use requeue::{DeadLetterFilter, Discarded, Requeued};
pub use retry::{FailedFilter, RetryOutcome};
pub use runs::Effects;
pub use shadow::{Promoted, RolledBack, Shadow};
pub use walk::{Known, Range, RowKey};

/// A handle on the database, cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<sql::Database>,
}

/// Why the database did not do it. The message names the operation; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `DATABASE_URL` is of neither kind or names nothing that can be opened.
    #[error("{0}")]
    Configuration(String),
    /// The database cannot be reached or broke off; worth another try.
    #[error("{operation}: the database is not reachable")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another process holds this SQLite file.
    #[error("{0}")]
    InUse(String),
    /// The schema is older or newer than this program.
    #[error("{0}")]
    Schema(String),
    /// The statement failed; another try will not help.
    #[error("{operation}: the database refused")]
    Failed {
        /// What was being done.
        operation: &'static str,
        /// What the driver said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl StoreError {
    /// Whether the same call may succeed a little later.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

// ---------------------------------------------------------------------------------------------------------------- ingest

/// A message as it was on the stream, kept where it may become a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// The subject.
    pub subject: String,
    /// Headers as `name: value` pairs, in order.
    pub headers: Vec<(String, String)>,
    /// The payload, at most what the server lets through; [`DeadLetter`] keeps it whole up to 8 MiB.
    pub payload: bytes::Bytes,
}

/// One message of a group, decoded or refused.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Its stream sequence.
    pub sequence: i64,
    /// When the server stored it.
    pub stored_at: UnixMillis,
    /// [`crate::nats::epoch::fingerprint`] of it.
    pub fingerprint: String,
    /// The message itself.
    pub raw: RawMessage,
    /// The event, or why it breaks a rule.
    pub decoded: std::result::Result<SessionEvent, Refused>,
}

/// Why a message cannot become an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// A word for filters and metrics, snake_case: `not_json`, `missing_field`, `bad_value`, `ends_before_start`, …
    pub class: &'static str,
    /// One sentence that names the field and says what to fix.
    pub reason: String,
    /// The session, where the subject or the body names one.
    pub session: Option<SessionId>,
}

/// What a committed group did, in the order of the group.
#[derive(Debug, Clone, Default)]
pub struct FoldReport {
    /// One per message.
    pub outcomes: Vec<FoldOutcome>,
    /// Sessions whose document changed.
    pub changed: Vec<SessionId>,
    /// Whether any row became due, so that the reconciler is worth waking.
    pub work_due: bool,
    /// Sequences of messages that lost a version conflict although they had been folded before; their dead letters hold
    /// no payload yet, see [`Store::complete_dead_letter`].
    pub displaced: Vec<i64>,
    /// The position after the group.
    pub position: Position,
}

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoldOutcome {
    /// Folded; see [`Outcome`].
    Folded(Outcome),
    /// Kept as a dead letter, with this class.
    DeadLetter(&'static str),
}

impl FoldOutcome {
    /// The word in metrics and spans: `applied`, `stale`, `duplicate`, `conflict`, `dead_letter`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Folded(Outcome::Applied) => "applied",
            Self::Folded(Outcome::Stale) => "stale",
            Self::Folded(Outcome::Duplicate) => "duplicate",
            Self::Folded(Outcome::Conflict { .. }) => "conflict",
            Self::DeadLetter(_) => "dead_letter",
        }
    }

    /// The class of a dead letter.
    pub const fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::DeadLetter(class) => Some(class),
            Self::Folded(_) => None,
        }
    }
}

/// How far an epoch was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Position {
    /// Everything up to here was folded or became a dead letter. A consumer is recreated at the next one.
    pub contiguous: i64,
    /// The highest sequence that was; above `contiguous` when replicas interleave.
    pub highest: i64,
    /// When the message at `highest` was stored by the server.
    pub highest_stored_at: Option<UnixMillis>,
    /// Fingerprint of the message at `highest`.
    pub highest_fingerprint: Option<String>,
}

/// A stream message that was read once and whose identity is kept, to know the stream again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// Where it stands.
    pub sequence: i64,
    /// When the server stored it.
    pub stored_at: UnixMillis,
    /// [`crate::nats::epoch::fingerprint`].
    pub fingerprint: String,
}

/// One incarnation of the stream, as known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRecord {
    /// Its number, from 1.
    pub epoch: Epoch,
    /// The stream's name.
    pub stream: String,
    /// The stream's creation time as the server gave it (RFC 3339 with nanoseconds, verbatim).
    pub created: String,
    /// The first sequence that belongs to this epoch.
    pub first_sequence: i64,
    /// The durable consumer's name.
    pub consumer: String,
    /// When we opened it.
    pub opened_at: UnixMillis,
    /// Why: `first start`, `adopted: …`.
    pub reason: String,
    /// CloudEvent sources seen in it, sorted.
    pub sources: Vec<String>,
}

/// A message given up on, with all that is needed to mend and requeue it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its own id.
    pub id: i64,
    /// Where it stands in the stream.
    pub place: Place,
    /// The message; `None` while it has to be read back from the stream.
    pub raw: Option<RawMessage>,
    /// Why.
    pub refused: Refused,
    /// When.
    pub at: UnixMillis,
    /// `open`, `requeued` or `discarded`.
    pub state: String,
}

// ------------------------------------------------------------------------------------------------------------- reconciler

/// Exclusive work on one teacher's calendar, for all replicas: one write in flight per calendar follows from it.
#[derive(Debug, Clone)]
pub struct TeacherLease {
    /// The teacher.
    pub teacher: TeacherId,
    /// Fencing token; every claim makes a new one.
    pub token: i64,
    /// Until when nobody else may claim it.
    pub until: UnixMillis,
    /// The credential, when the teacher has one.
    pub credential: Option<Credential>,
    /// Rows that are due, sessions that start soonest first.
    pub jobs: Vec<Arc<Job>>,
}

/// One due row with all that [`crate::plan::plan`] needs.
#[derive(Debug, Clone)]
pub struct Job {
    /// The session as folded.
    pub session: Session,
    /// The row.
    pub row: MeetEvent,
    /// The other rows of the session.
    pub siblings: Vec<Sibling>,
    /// The trace context of the event that the head comes from.
    pub traceparent: Option<String>,
    /// When the server stored that event.
    pub published_at: Option<UnixMillis>,
    /// The document as it was then: what has not changed since need not be read again to be written.
    pub(crate) document: Option<rows::KeptDocument>,
}

/// A row to be written under a lease.
#[derive(Debug, Clone)]
pub struct RowWrite {
    /// The lease under which it was planned.
    pub token: i64,
    /// What it was planned from, where that is at hand. With it little has to be read and written for the usual case that
    /// nothing else happened to the session meanwhile; without it the outcome is the same.
    pub from: Option<Origin>,
    /// The row as it should be. `want` and `desired_revision` of an existing row are *not* written unless
    /// `successor` is there (an account change): [`assign`](crate::plan::assign) owns them.
    pub row: MeetEvent,
    /// A new row of the same session that takes over (`ordinal` as planned; inserted only if it does not exist).
    pub successor: Option<MeetEvent>,
}

/// What the calendars of one process have for the database at one moment: [`Store::turn`] commits it together.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// Results, see [`Store::record`].
    pub records: Vec<RowWrite>,
    /// Intents, see [`Store::begin`].
    pub begins: Vec<RowWrite>,
    /// Calendars to give back, with their tokens, see [`Store::release`].
    pub releases: Vec<(TeacherId, i64)>,
    /// Calendars to claim after that, see [`Store::claim`].
    pub claim: Option<Claim>,
}

/// How much to claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// How long the leases last, in milliseconds.
    pub lease_ms: i64,
    /// At most so many calendars.
    pub teachers: i64,
    /// At most so many rows of each.
    pub rows_per_teacher: i64,
}

/// What became of a [`Turn`].
#[derive(Debug, Clone, Default)]
pub struct Turned {
    /// Of each result.
    pub records: Vec<Written>,
    /// Of each intent.
    pub begins: Vec<Written>,
    /// The calendars claimed.
    pub leases: Vec<TeacherLease>,
}

/// What a row was planned from.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The job, as it was claimed.
    pub job: Arc<Job>,
    /// The row with the intent that was kept since under the same lease; `None` where none was.
    pub begun: Option<MeetEvent>,
}

impl Origin {
    /// The row as the database holds it, unless somebody else has changed it.
    pub fn row(&self) -> &MeetEvent {
        self.begun.as_ref().unwrap_or(&self.job.row)
    }
}

/// What became of a [`RowWrite`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// Written.
    Yes,
    /// Written, but what is wanted moved meanwhile: the row stays due at once and unsettled.
    WantMoved,
    /// Somebody else holds the lease, or (for an intent) what is wanted moved: nothing was written.
    No,
}

// ------------------------------------------------------------------------------------------------------------ credentials

/// `tokenStatus` of a teacher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenStatus {
    /// Usable.
    Connected,
    /// The grant died (`invalid_grant`).
    ReconnectRequired,
    /// The calendar scope is missing.
    ScopeMissing,
    /// `admin_policy_enforced`.
    AdminBlocked,
    /// Usable for removing events alone: they go first, then the grant.
    Disconnecting,
    /// Disconnected on purpose.
    Disconnected,
}

impl TokenStatus {
    /// All states with the word in documents and in the database.
    pub const WORDS: [(Self, &'static str); 6] = [
        (Self::Connected, "CONNECTED"),
        (Self::ReconnectRequired, "RECONNECT_REQUIRED"),
        (Self::ScopeMissing, "SCOPE_MISSING"),
        (Self::AdminBlocked, "ADMIN_BLOCKED"),
        (Self::Disconnecting, "DISCONNECTING"),
        (Self::Disconnected, "DISCONNECTED"),
    ];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(status, _)| *status == self).map_or("DISCONNECTED", |(_, word)| word)
    }
}

/// A teacher's grant, tokens still sealed.
#[derive(Debug, Clone)]
pub struct Credential {
    /// The teacher.
    pub teacher: TeacherId,
    /// The Google account.
    pub account: GoogleSub,
    /// Its address, for people.
    pub email: Option<String>,
    /// The calendar to write to, `primary` unless chosen otherwise.
    pub calendar: String,
    /// Usable or why not.
    pub status: TokenStatus,
    /// Grows with every change of the tokens or the status; compare-and-set is on this.
    pub token_version: i64,
    /// Sealed refresh token ([`crate::credential`]).
    pub refresh_token: Option<Vec<u8>>,
    /// Sealed access token.
    pub access_token: Option<Vec<u8>>,
    /// When the access token ends.
    pub access_expires_at: Option<UnixMillis>,
    /// Granted scopes, space-separated.
    pub scopes: String,
    /// No writes before this.
    pub cool_down_until: Option<UnixMillis>,
    /// How many cool-downs in a row: 1 h, 2 h, 6 h.
    pub cool_down_step: i64,
    /// First connect.
    pub connected_at: UnixMillis,
    /// Last time Google gave an access token.
    pub last_refresh_at: Option<UnixMillis>,
    /// Why the last refresh failed, without secrets.
    pub last_error: Option<String>,
}

/// What a seed or a finished consent stores.
#[derive(Debug, Clone)]
pub struct NewCredential {
    /// The teacher.
    pub teacher: TeacherId,
    /// The Google account.
    pub account: GoogleSub,
    /// Its address.
    pub email: Option<String>,
    /// The calendar; `primary` by default.
    pub calendar: String,
    /// Sealed refresh token.
    pub refresh_token: Vec<u8>,
    /// Granted scopes, space-separated.
    pub scopes: String,
}

/// What a refresh brought.
#[derive(Debug, Clone)]
pub struct RefreshedToken {
    /// Sealed access token.
    pub access_token: Vec<u8>,
    /// When it ends.
    pub access_expires_at: UnixMillis,
    /// Sealed new refresh token, in the rare case that Google sent one.
    pub refresh_token: Option<Vec<u8>>,
    /// Granted scopes as the response said.
    pub scopes: Option<String>,
    /// When the refresh token ends, for grants that end by themselves; kept as it was where the response is silent.
    pub refresh_expires_at: Option<UnixMillis>,
    /// When the grant is used again if nothing else uses it.
    pub touch_at: UnixMillis,
}

/// The answer to "may I refresh this teacher's token?" across all replicas.
#[derive(Debug, Clone)]
pub enum RefreshTurn {
    /// Yes: nobody else does until `until`; finish with [`Store::finish_refresh`].
    Mine {
        /// Fencing token of the turn.
        turn: i64,
    },
    /// The token version moved: read again.
    Moved,
    /// Another process is at it until then.
    Theirs {
        /// When its turn ends at the latest.
        until: UnixMillis,
    },
}

// ----------------------------------------------------------------------------------------------------------- api, outbox

/// A stored status document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredDocument {
    /// The JSON of the status document, `updatedAt` included, ready to send.
    pub json: String,
    /// Grows by one with every change of the document; the strong ETag is made of it.
    pub revision: i64,
    /// Its status.
    pub status: MeetStatus,
}

/// Filters of the list form; all optional, combined with *and*. Pages are ordered by `(starts_at, session_id)`;
/// sessions without a start come first.
#[derive(Debug, Clone, Default)]
pub struct DocumentFilter {
    /// Whose.
    pub teacher: Option<TeacherId>,
    /// In which states (empty: all).
    pub statuses: Vec<MeetStatus>,
    /// Start at or after.
    pub starts_from: Option<UnixMillis>,
    /// Start before.
    pub starts_to: Option<UnixMillis>,
    /// 1 to 100.
    pub limit: i64,
    /// The last row of the page before: start (`i64::MIN` for none) and session.
    pub after: Option<(i64, SessionId)>,
}

/// One page.
#[derive(Debug, Clone, Default)]
pub struct DocumentPage {
    /// The documents.
    pub items: Vec<StoredDocument>,
    /// Where the next page begins, when there is one.
    pub next: Option<(i64, SessionId)>,
}

/// A result that still has to be published to stream `MEET`.
#[derive(Debug, Clone)]
pub struct OutboxMessage {
    /// Order of commit.
    pub id: i64,
    /// `Nats-Msg-Id` and CloudEvent id.
    pub message_id: String,
    /// Messages with the same key keep their order: the session id, or `teacher:` and the teacher's.
    pub key: String,
    /// `meet.session.<sessionId>.<status>` or `meet.teacher.<teacherId>.<status>`.
    pub subject: String,
    /// The CloudEvent.
    pub payload: String,
    /// The publisher's trace context, passed on.
    pub traceparent: Option<String>,
}

/// Roles of API tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Reads statuses.
    Reader,
    /// Also presses retry.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    /// All roles with the word.
    pub const WORDS: [(Self, &'static str); 3] =
        [(Self::Reader, "reader"), (Self::Operator, "operator"), (Self::Admin, "admin")];

    /// The word.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(role, _)| *role == self).map_or("reader", |(_, word)| word)
    }

    /// The role of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(_, known)| *known == word).map(|(role, _)| *role)
    }
}

/// A stored API token, without its secret.
#[derive(Debug, Clone)]
pub struct ApiToken {
    /// The public part, as in `mp_<id>_<secret>`.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// SHA-256 of the secret.
    pub secret_sha256: [u8; 32],
    /// When made.
    pub created_at: UnixMillis,
    /// Last use, to the minute.
    pub last_used_at: Option<UnixMillis>,
    /// When revoked.
    pub revoked_at: Option<UnixMillis>,
}

/// Counts for readiness, metrics and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Sessions by `meetStatus`: pending, ready, error, canceled.
    pub pending: i64,
    /// See `pending`.
    pub ready: i64,
    /// See `pending`.
    pub error: i64,
    /// See `pending`.
    pub canceled: i64,
    /// Open dead letters.
    pub dead_letters: i64,
    /// Results not published yet.
    pub outbox: i64,
    /// Rows that are not settled and are due by the time asked for.
    pub due: i64,
    /// Calendars that are due by the time asked for, looks at settled events included, or are being worked on.
    pub busy: i64,
}

/// Where the database is.
#[derive(Debug, Clone)]
pub struct DatabaseUrl(pub SecretString);

/// The parts of a credential's status change that readers may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusChange {
    /// The new status.
    pub status: TokenStatus,
    /// Why, without secrets.
    pub reason: Option<String>,
    /// The code that the teacher's sessions get.
    pub code: Option<Code>,
}

type Result<T> = std::result::Result<T, StoreError>;
