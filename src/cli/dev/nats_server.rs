//! A NATS server as a child process, ended with its parent.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::LOOK_AGAIN;
use crate::cli::CommandError;

/// Time it gets to answer; a healthy one needs some 50 ms.
const START_MAX: Duration = Duration::from_secs(10);

/// The child; killed when dropped.
#[derive(Debug)]
pub(super) struct NatsServer {
    /// Where clients connect.
    pub(super) url: String,
    child: Child,
}

impl NatsServer {
    /// Starts one with JetStream and its store in `folder`, on a free port of the loopback interface.
    pub(super) async fn start(folder: &Path) -> Result<Self, CommandError> {
        let program = std::env::var("NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
        let failed = |what: String| CommandError::failed(what);
        std::fs::create_dir_all(folder).map_err(|error| failed(format!("{}: {error}", folder.display())))?;
        let log = folder.join("nats-server.log");
        let port = super::free_port(4222).await.map_err(|error| failed(format!("no port for NATS: {error}")))?;
        let mut child = Command::new(&program)
            .args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--jetstream", "--store_dir"])
            .arg(folder)
            .arg("--log")
            .arg(&log)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal goes to the whole group: this child ends when its parent has drained.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                failed(format!(
                    "cannot start {program}: {error}. `make run` finds or fetches a nats-server; else install 2.10.23 or \
                     newer and set NATS_SERVER to it"
                ))
            })?;
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            let ended = child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START_MAX {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                return Err(failed(format!("{program} does not answer on port {port}; it said:\n{said}")));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(Self { url: format!("nats://127.0.0.1:{port}"), child })
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        // It may have ended already, which is just as well.
        self.child.kill().await.ok();
    }
}
