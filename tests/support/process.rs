//! The real binary as a child process, for tests that kill it.

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;

use super::lifeline::Lifeline;
use super::service::World;

/// `meet-projector serve`; killed when dropped.
pub struct Serving {
    /// The process.
    pub child: Child,
    lifeline: Option<Lifeline>,
}

impl Serving {
    /// Starts it on the world's parts. `crash_at`: see `src/crash.rs`.
    pub fn start(world: &World, crash_at: Option<&str>) -> Self {
        Self::start_with(world, &[("CRASH_AT", crash_at.unwrap_or_default())])
    }

    /// Starts it with more variables.
    pub fn start_with(world: &World, variables: &[(&str, &str)]) -> Self {
        let google = world.config.google.as_ref().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
        command
            .arg("serve")
            .env_clear()
            .env("MEET_ENVIRONMENT", &world.config.environment)
            .env("HTTP_ADDR", "127.0.0.1:0")
            .env("DATABASE_URL", world.config.database.0.expose_secret())
            .env("NATS_URL", world.config.nats.url.expose_secret())
            .env("WP_BASE_URL", "https://school.example.com")
            .env("GOOGLE_CLIENT_ID", &google.client_id)
            .env("GOOGLE_CLIENT_SECRET", google.client_secret.expose_secret())
            .env("GOOGLE_ENCRYPTION_KEY", google.encryption_key.expose_secret())
            .env("GOOGLE_TOKEN_URI", google.token_uri.as_str())
            .env("GOOGLE_AUTH_URI", google.auth_uri.as_str())
            .env("GOOGLE_REVOKE_URI", google.revoke_uri.as_str())
            .env("GOOGLE_CALENDAR_API_ROOT", google.calendar_api_root.as_str())
            .env("GOOGLE_RATE_PER_TEACHER", "0")
            .env("GOOGLE_RATE_PER_PROJECT", "0")
            .env("API_RATE_LIMIT", "0")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command.envs(variables.iter().copied().filter(|(_, value)| !value.is_empty()));
        let child = command.spawn().unwrap();
        Self { lifeline: Some(Lifeline::of(&child)), child }
    }

    /// `kill -STOP`: it stands still, and its connections stay.
    pub fn pause(&self) {
        self.signal("-STOP");
    }

    /// `kill -CONT`: it goes on.
    pub fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success(), "kill {signal} failed");
    }

    /// `kill -TERM`: it drains and ends.
    pub async fn drain(mut self) {
        self.signal("-TERM");
        let status = self.ended().await;
        assert!(status.success(), "it ends in order: {status}");
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.lifeline = None;
                return status;
            }
            assert!(begun.elapsed() < Duration::from_mins(1), "the process should have ended by itself");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
