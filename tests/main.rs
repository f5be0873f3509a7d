//! Everything that needs more than one module, in one binary: a file a story.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod support;
#[macro_use]
mod story;

mod api;
mod cli;
mod config;
mod connect;
mod dependencies;
mod deploy;
mod fake_google;
mod faults;
mod google_client;
mod nats;
mod operate;
mod replay;
mod schemas;
mod secrets;
mod store;
mod stories;
mod teachers;
mod telemetry;
