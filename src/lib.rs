//! Booking events in, Google Meet links out.
//!
//! ```text
//! NATS ─▶ consumer ─▶ store ◀─ reconciler ─▶ Google          three loops that never call one another;
//!                       ▲  └──▶ outbox ─▶ NATS (results)      they meet in the store, and may send a wake-up
//!                       └─ api ─▶ WordPress, NestJS, people   that carries no data
//! ```
//!
//! The modules stand here in reading order: values, the two pure halves ([`projection`] and [`plan`]), what they are
//! stored in, the three loops, and the way in from the command line. Invariants worth knowing as absences: the consumer
//! never calls Google; the reconciler never reads the stream; the api never writes a session; `projection`, `plan` and
//! `status` are not async and know no clock; no transaction is open across a network call.

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connect;
pub mod consumer;
pub mod crash;
pub mod credential;
pub mod event;
#[cfg(feature = "dev")]
pub mod fake;
pub mod google;
pub mod model;
pub mod nats;
pub mod notices;
pub mod outbox;
pub mod plan;
pub mod presence;
pub mod projection;
pub mod rebuild;
pub mod reconciler;
pub mod refresh;
pub mod replay;
pub mod retry;
pub mod run;
pub mod service;
pub mod shutdown;
pub mod status;
pub mod store;
pub mod telemetry;
pub mod verify;
