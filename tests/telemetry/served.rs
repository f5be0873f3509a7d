//! `meet-projector serve` as a child process whose log is kept.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::service::{World, eventually};

/// A running service.
pub struct Served {
    child: Child,
    log: PathBuf,
}

impl Served {
    /// Starts it on the world's parts with more variables, and waits until it serves.
    pub async fn start(world: &World, variables: &[(&str, &str)]) -> Self {
        let log = world.path("log.jsonl");
        let child = Command::new(env!("CARGO_BIN_EXE_meet-projector"))
            .arg("serve")
            .env_clear()
            .envs(&world.environment)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let this = Self { child, log };
        eventually("the service says that it serves", async || this.address().is_some()).await;
        this
    }

    /// Where its API listens.
    pub fn address(&self) -> Option<String> {
        let line = self.lines().into_iter().find(|line| line["message"] == "serving")?;
        Some(line["address"].as_str().unwrap().to_owned())
    }

    /// Its log as text.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// The log's whole lines.
    pub fn lines(&self) -> Vec<Value> {
        let log = self.log();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// SIGTERM, and waits until it has ended well.
    pub async fn stop(&mut self) {
        self.terminate();
        self.ended().await;
    }

    /// Waits until it has ended well.
    pub async fn ended(&mut self) {
        eventually("the service ends", async || self.child.try_wait().unwrap().is_some()).await;
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It has ended already unless an assertion failed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
