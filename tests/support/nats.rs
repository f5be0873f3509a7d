//! A real nats-server with JetStream, one for each test, on a free port with files of its own.
//!
//! The server is a child of a shell that waits for the end of its input, whose other end this process holds. However
//! this process ends, killed included, the pipe closes and the shell kills the server.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use meet_projector::config::NatsConfig;
use meet_projector::nats::api::{ConsumerInfo, StreamInfo};
use meet_projector::nats::definitions::{Definitions, apply};
use meet_projector::nats::{Connection, connect};
use secrecy::SecretString;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The program, found or fetched once.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/nats-server");
    let found = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(found.status.success(), "{script} found no nats-server; what it says is above");
    PathBuf::from(String::from_utf8(found.stdout).unwrap().trim())
});

/// How long to wait for what happens within a second when all is well.
const PATIENCE: Duration = Duration::from_mins(1);

/// A shell that kills the server when its input ends, and the server's process id.
struct Running {
    shell: Child,
    pid: String,
}

impl Running {
    fn is_alive(&self) -> bool {
        Command::new("kill").args(["-0", &self.pid]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    /// Returns when it is dead.
    fn kill(mut self) {
        drop(self.shell.stdin.take());
        self.shell.wait().unwrap();
    }
}

/// A port that nobody listens on, below those that systems give to outgoing connections: one of those could be in use
/// when a killed server wants its port back.
pub fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let port = 15_000 + u16::from_be_bytes(random) % 17_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running (or killed) server.
pub struct NatsServer {
    folder: TempDir,
    port: u16,
    config: Option<String>,
    environment: Vec<(String, String)>,
    running: Option<Running>,
}

impl NatsServer {
    /// A server that lets everybody do everything.
    pub async fn start() -> Self {
        Self::start_with(None, &[]).await
    }

    /// A server with more configuration, and environment variables that it may use.
    pub async fn start_with(config: Option<&str>, environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let folder = tempfile::Builder::new().prefix("meet-projector-nats-").tempdir().unwrap();
        let mut this = Self { folder, port: 0, config: config.map(str::to_owned), environment, running: None };
        this.run().await;
        this
    }

    /// Kills it, as a power failure would.
    pub fn kill(&mut self) {
        let running = self.running.take().expect("the server runs");
        running.kill();
    }

    /// Starts it again after [`NatsServer::kill`], on the same port, with the files it left.
    pub async fn run(&mut self) {
        assert!(self.running.is_none(), "the server runs already");
        let is_first = self.port == 0;
        // Another server may have the port, for as long as another test runs.
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if is_first {
                self.port = free_port();
            }
            let running = self.spawn();
            if self.until_it_listens(&running).await {
                self.running = Some(running);
                return;
            }
            running.kill();
        }
        let log = std::fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
        panic!("nats-server does not start:\n{log}");
    }

    fn spawn(&self) -> Running {
        let (file, log) = (self.folder.path().join("server.conf"), self.folder.path().join("server.log"));
        let text = format!(
            "listen: \"127.0.0.1:{}\"\njetstream {{ store_dir: \"{}\" }}\n{}",
            self.port,
            self.store_folder().display(),
            self.config.as_deref().unwrap_or_default()
        );
        std::fs::write(&file, text).unwrap();
        let script = r#""$1" -c "$2" -l "$3" </dev/null & echo $! ; cat >/dev/null ; kill -KILL $! ; wait $!"#;
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&*PROGRAM).arg(&file).arg(&log);
        shell.envs(self.environment.iter().map(|(name, value)| (name, value)));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell = shell.spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(shell.stdout.as_mut().unwrap()).read_line(&mut pid).unwrap();
        Running { shell, pid: pid.trim().to_owned() }
    }

    /// Whether it came to listen; `false` when it ended instead.
    async fn until_it_listens(&self, running: &Running) -> bool {
        let ready = format!("[{}] ", running.pid);
        let log = self.folder.path().join("server.log");
        let is_ready = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().any(|line| line.starts_with(&ready) && line.ends_with("Server is ready"))
        };
        let begun = Instant::now();
        while running.is_alive() && begun.elapsed() < PATIENCE {
            if is_ready() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Kills it and starts it again.
    pub async fn restart(&mut self) {
        self.kill();
        self.run().await;
    }

    /// Where its streams are. Only while it is killed may they be touched.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Keeps a copy of the streams as they are now, like a backup. The server is stopped for it, and runs again.
    pub async fn back_up(&mut self) -> TempDir {
        self.kill();
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&self.store_folder(), copy.path());
        self.run().await;
        copy
    }

    /// Puts a backup in place of the streams.
    pub async fn restore(&mut self, backup: &Path) {
        self.kill();
        std::fs::remove_dir_all(self.store_folder()).unwrap();
        copy_folder(backup, &self.store_folder());
        self.run().await;
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Settings of a client without credentials.
    pub fn config(&self) -> NatsConfig {
        self.config_as(None)
    }

    /// Settings of a client that is that user, with a password of the same text.
    pub fn config_as(&self, user: Option<&str>) -> NatsConfig {
        let user = user.map_or_else(String::new, |user| format!("{user}:{user}@"));
        NatsConfig {
            url: SecretString::from(format!("nats://{user}127.0.0.1:{}", self.port)),
            creds_file: None,
            tls_ca_file: None,
            stream: "BOOKINGS".into(),
            consumer: "meet-projector".into(),
            subjects: "bookings.session.*.*".into(),
            meet_stream: "MEET".into(),
        }
    }

    /// A connection of ours.
    pub async fn connect(&self) -> Connection {
        connect(&self.config(), "test").await.unwrap()
    }

    /// Streams and consumer as defined, and a connection.
    pub async fn with_definitions() -> (Self, Connection) {
        let server = Self::start().await;
        let connection = server.connect().await;
        define(&connection, &server.config()).await;
        (server, connection)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.kill();
        }
    }
}

/// Applies the definitions.
pub async fn define(connection: &Connection, config: &NatsConfig) {
    let definitions = Definitions::load(None, config, None).unwrap();
    apply(connection, config, &definitions).await.unwrap();
}

/// Deletes the stream and makes it again as defined, with its `deny_delete`: only a person can.
pub async fn remake_stream(connection: &Connection, config: &NatsConfig) {
    delete_stream(connection, &config.stream).await;
    let definitions = Definitions::load(None, config, None).unwrap();
    let subject = format!("$JS.API.STREAM.CREATE.{}", config.stream);
    connection.api::<Value>("remaking the stream", &subject, Some(&definitions.bookings)).await.unwrap();
}

/// Deletes a stream.
pub async fn delete_stream(connection: &Connection, stream: &str) {
    let subject = format!("$JS.API.STREAM.DELETE.{stream}");
    connection.api::<Value>("deleting the stream", &subject, None).await.unwrap();
}

/// What the stream is.
pub async fn stream(connection: &Connection, name: &str) -> StreamInfo {
    connection.stream_info(name).await.unwrap().expect("the stream exists")
}

/// What the durable is.
pub async fn durable(connection: &Connection, name: &str) -> Option<ConsumerInfo> {
    connection.consumer_info("BOOKINGS", name).await.unwrap()
}

/// A booking event, structured.
pub fn event(session: &str, change: &str, version: i64) -> Value {
    let word = match change {
        "scheduled" => "Scheduled",
        "rescheduled" => "Rescheduled",
        _ => "Canceled",
    };
    // An hour of its own for every version, so that a reschedule changes something.
    let hour = version.rem_euclid(20);
    json!({
        "specversion": "1.0", "id": format!("{session}-{change}-{version}"), "source": "/services/bookings",
        "type": format!("bookings.Session{word}.v1"), "subject": session, "time": "2026-11-22T20:15:04.211Z",
        "datacontenttype": "application/json",
        "data": {
            "sessionId": session, "version": version, "kind": "private", "teacherId": "tch_42",
            "title": format!("Piano {version}"), "description": null, "startsAt": format!("2096-12-01T{hour:02}:00:00Z"),
            "endsAt": format!("2096-12-01T{:02}:00:00Z", hour + 1), "timeZone": "Europe/Madrid",
            "attendees": [], "url": null
        }
    })
}

/// Publishes a booking event and returns its sequence.
pub async fn publish_event(client: &Client, session: &str, change: &str, version: i64) -> i64 {
    let event = event(session, change, version);
    publish_raw(client, &format!("bookings.session.{session}.{change}"), &event.to_string()).await
}

/// Publishes a text as it is and returns its sequence.
pub async fn publish_raw(client: &Client, subject: &str, payload: &str) -> i64 {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", "application/cloudevents+json");
    let sent = client.request_with_headers(subject.to_owned(), headers, payload.to_owned().into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&sent.payload).unwrap();
    answer["seq"].as_i64().unwrap_or_else(|| panic!("not stored: {answer}"))
}

/// Waits until `condition` holds. A minute without it is a failure that says for what was waited.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
