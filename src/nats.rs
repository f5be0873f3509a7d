//! NATS as this service uses it: a connection whose silent failures are made audible, the JetStream API as plain JSON
//! requests, and what a stream may have become while we were away.
//!
//! * [`connection`]: connect, and what the connection said about itself since;
//! * [`api`]: one request, one typed answer, and a forbidden subject is named at once instead of timing out;
//! * [`direct`]: messages by sequence or subject without a consumer;
//! * [`definitions`]: the streams and the consumer of `nats/*.json` against what the server has;
//! * [`probe`]: which subjects we need and whether we may use them;
//! * [`epoch`]: whether the stream is still the one we knew.
//!
//! Deliberately absent: async-nats's own JetStream types. They drop the server's exact `created`, know neither TERM
//! reasons nor a pull loop that hands messages back, and fall into the traps that [`crate::consumer`] lists; a request
//! with a JSON body is all there is to it.

use std::time::Duration;

pub mod api;
pub mod connection;
pub mod definitions;
pub mod direct;
pub mod epoch;
pub mod probe;

pub use connection::{Connection, ConnectionEvents, Connectivity, connect, connect_persistently};

/// The oldest server that is accepted: 2.10.20 to 2.10.22 could lose a stream when the process was killed, and older
/// ones silently ignore settings we rely on.
pub const SERVER_MINIMUM: (i64, i64, i64) = (2, 10, 23);

/// Servers from here on repair a consumer that is ahead of its stream and keep a stream's creation time.
pub const SERVER_RECOMMENDED: (i64, i64, i64) = (2, 14, 5);

/// Where the server sends our answers; its own prefix, so that permissions can keep others from reading them.
pub const INBOX_PREFIX: &str = "_INBOX_meet-projector";

/// How long one request to the JetStream API may take. The server answers in milliseconds; elections take seconds.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Why NATS did not do it. Messages are complete sentences for people; none holds a credential.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NatsError {
    /// `NATS_URL`, `NATS_CREDS_FILE` or `NATS_TLS_CA_FILE` cannot be used, or a definition file is wrong.
    #[error("{0}")]
    Configuration(String),
    /// Nothing answers there, or it does not let us in.
    #[error("cannot connect to NATS at {servers}: {reason}")]
    Unreachable {
        /// Hosts and ports, without credentials.
        servers: String,
        /// What the client said.
        reason: String,
    },
    /// The server is older than [`SERVER_MINIMUM`].
    #[error("nats-server {found} is too old: {}.{}.{} or newer is needed", SERVER_MINIMUM.0, SERVER_MINIMUM.1, SERVER_MINIMUM.2)]
    TooOld {
        /// Its version.
        found: String,
    },
    /// The credentials do not allow it.
    #[error("{operation}: these credentials may not use {subject}; nats/permissions.conf lists what is needed")]
    Forbidden {
        /// What was being done.
        operation: String,
        /// The subject.
        subject: String,
    },
    /// JetStream refused.
    #[error("{operation}: {description} (JetStream error {code})")]
    Refused {
        /// What was being done.
        operation: String,
        /// `err_code` of the answer: <https://github.com/nats-io/nats-server/blob/main/server/errors.json>.
        code: u64,
        /// What the server said.
        description: String,
    },
    /// Nobody listens on that subject: JetStream is off, or the stream does not exist (direct get).
    #[error("{operation}: nobody answers on {subject}; is JetStream on, and does the stream exist?")]
    NoResponders {
        /// What was being done.
        operation: String,
        /// The subject.
        subject: String,
    },
    /// No answer in time, or the connection broke.
    #[error("{operation}: no answer from NATS ({reason})")]
    NoAnswer {
        /// What was being done.
        operation: String,
        /// Why.
        reason: String,
    },
    /// An answer that cannot be understood.
    #[error("{operation}: unexpected answer from NATS: {reason}")]
    Garbled {
        /// What was being done.
        operation: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NatsError {
    /// JetStream error `stream not found`.
    pub const STREAM_NOT_FOUND: u64 = 10059;
    /// JetStream error `consumer not found`.
    pub const CONSUMER_NOT_FOUND: u64 = 10014;
    /// JetStream error `consumer already exists`, when one with another configuration does.
    pub const CONSUMER_EXISTS: u64 = 10148;

    /// Whether JetStream refused with that `err_code`.
    pub fn is_refusal(&self, wanted: u64) -> bool {
        matches!(self, Self::Refused { code, .. } if *code == wanted)
    }

    /// The exit code of a command that failed with it: 3 configuration, 4 unreachable, else 1.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Configuration(_) => 3,
            _ if self.is_unreachable() => 4,
            _ => 1,
        }
    }

    /// Whether the other side could not be reached as opposed to: it answered and said no.
    pub const fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NoAnswer { .. } | Self::NoResponders { .. })
    }
}
