//! Signals: the first one drains, the second one stops at once. On the real program, as a child process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, Command, Stdio};

use meet_projector::fake::Operation::Insert;
use meet_projector::fake::{Ending, Fault, Rule};
use serde_json::Value;

use crate::support::lifeline::Lifeline;
use crate::support::service::{Setup, World, eventually};

/// A `serve` whose log is read.
pub(super) struct Serving {
    child: Child,
    lifeline: Option<Lifeline>,
    log: std::io::Lines<BufReader<ChildStderr>>,
}

impl Serving {
    /// Starts it and waits until it serves.
    pub(super) fn start(world: &World) -> Self {
        Self::start_with(world, &[])
    }

    /// The same with other settings.
    pub(super) fn start_with(world: &World, settings: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_meet-projector"))
            .arg("serve")
            .env_clear()
            .envs(&world.environment)
            .env("RUST_LOG", "info")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut this = Self { lifeline: Some(Lifeline::of(&child)), child, log };
        this.until_logged("serving");
        this
    }

    /// Reads the log up to a line with this message; panics with what was said when the log ends before.
    pub(super) fn until_logged(&mut self, message: &str) {
        let mut said = Vec::new();
        for line in self.log.by_ref().map(Result::unwrap) {
            let found = serde_json::from_str::<Value>(&line)
                .is_ok_and(|line| line["message"].as_str().is_some_and(|text| text.contains(message)));
            if found {
                return;
            }
            said.push(line);
        }
        panic!("the log ended without {message:?}:\n{}", said.join("\n"));
    }

    pub(super) fn terminate(&self) {
        let killed = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(killed.success());
    }

    /// Reads the rest of the log, so that the process is not held up by a full pipe, and returns the exit code.
    pub(super) fn ended(mut self) -> Option<i32> {
        let rest: Vec<String> = self.log.by_ref().map_while(Result::ok).collect();
        self.lifeline = None;
        let status = self.child.wait().unwrap();
        println!("{status}; the end of the log:\n{}", rest.join("\n"));
        status.code()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It has ended already unless an assertion failed.
        self.child.kill().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_signal_drains_and_loses_nothing() {
    let mut world = World::prepare(Setup::sqlite()).await;
    world.fake().configure(|settings| settings.latency_ms = 150);
    let mut serving = Serving::start(&world);
    let sessions: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    for (n, session) in sessions.iter().enumerate() {
        world.publish(&world.lesson(session, n % 2)).await;
    }
    eventually("Google was asked", async || world.fake().counters().committed_of(Insert) > 1).await;
    serving.terminate();
    serving.until_logged("draining");
    assert_eq!(serving.ended(), Some(0));
    let done = world.fake().counters().committed_of(Insert);
    assert!(done < 20, "the signal came in the middle of the work");
    let recorded = world.fake().recorded().len();

    world.fake().configure(|settings| settings.latency_ms = 0);
    world.serve().await;
    for session in &sessions {
        world.ready(session, 1).await;
    }
    assert_eq!(world.fake().counters().committed_of(Insert), 20, "nothing twice, after {recorded} requests before");
    let reads = world.fake().counters().requests_of(meet_projector::fake::Operation::Get);
    assert_eq!(reads, 0, "a drain leaves nothing in doubt");
    world.assert_google_was_never_wrong();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_signal_stops_at_once() {
    let mut world = World::prepare(Setup::sqlite()).await;
    let hang = Fault::new(meet_projector::fake::Commit::Now, Ending::Hang(600_000));
    world.fake().add_fault(Rule::once(Insert, hang));
    let mut serving = Serving::start(&world);
    world.publish(&world.lesson("s1", 0)).await;
    eventually("Google was asked", async || world.fake().counters().requests_of(Insert) > 0).await;
    serving.terminate();
    serving.until_logged("draining");
    serving.terminate();
    assert_eq!(serving.ended(), Some(128 + 15));

    // The answer was lost, the event is there: it is found, not made again.
    world.clock = meet_projector::clock::Clock::fixed(world.clock.now().plus(5 * 60_000));
    world.serve().await;
    world.ready("s1", 1).await;
    assert_eq!(world.fake().counters().committed_of(Insert), 1);
    world.assert_google_was_never_wrong();
}
