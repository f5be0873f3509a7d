//! What systemd is told: ready, alive, stopping.
//! <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>
//!
//! A few lines of our own: it is one datagram. Outside of systemd (`NOTIFY_SOCKET` unset) nothing is done.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use super::probe;
use super::pulse::Pulses;
use crate::shutdown::Shutdown;

/// How long `/livez` may take: it only has to be answered at all.
const ANSWER: Duration = Duration::from_secs(5);

/// The socket that systemd listens on, and what it expects.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    /// How often it wants a sign of life; it kills after twice this time.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; `None` when systemd did not start us.
    ///
    /// # Errors
    /// When there is a socket and it cannot be used.
    pub fn from_environment(environment: &BTreeMap<String, String>) -> io::Result<Option<Self>> {
        let Some(path) = environment.get("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return Ok(None) };
        let socket = UnixDatagram::unbound()?;
        // systemd reads all the time; where it does not, we are not held up.
        socket.set_nonblocking(true)?;
        connect(&socket, path)?;
        let is_ours = environment.get("WATCHDOG_PID").is_none_or(|pid| *pid == std::process::id().to_string());
        let watchdog = environment
            .get("WATCHDOG_USEC")
            .filter(|_| is_ours)
            .and_then(|micros| micros.parse().ok())
            .filter(|micros| *micros > 0)
            .map(|micros| Duration::from_micros(micros) / 2);
        Ok(Some(Self { socket, watchdog }))
    }

    /// Tells the story of one life, up to the drain.
    pub async fn run(self, health: SocketAddr, pulses: Pulses, shutdown: Shutdown) {
        self.tell("STATUS=waiting for the database");
        tokio::select! {
            true = pulses.until_started() => self.tell("READY=1\nSTATUS=serving"),
            () = shutdown.asked() => {}
        }
        let mut was_alive = true;
        while let Some(pause) = self.watchdog
            && !shutdown.is_asked()
        {
            match proof_of_life(health, &pulses).await {
                Ok(()) => self.tell("WATCHDOG=1\nSTATUS=serving"),
                // No sign of life: unless the next look finds one, systemd starts us again.
                Err(fault) if was_alive && !shutdown.is_asked() => {
                    tracing::error!(%fault, "no sign of life for systemd's watchdog");
                    self.tell(&format!("STATUS={fault}"));
                    was_alive = false;
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.asked() => {}
            }
        }
        shutdown.asked().await;
        self.tell("STOPPING=1\nSTATUS=finishing what is under way");
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send(state.as_bytes()) {
            tracing::warn!(%error, state, "systemd could not be told");
        }
    }
}

/// The API answers, and no loop is dead.
async fn proof_of_life(health: SocketAddr, pulses: &Pulses) -> Result<(), String> {
    if let Some(dead) = pulses.dead().first() {
        return Err(dead.clone());
    }
    match probe::get(health, "/livez", ANSWER).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("/livez answers {}", answer.status)),
        Err(error) => Err(format!("/livez does not answer: {error}")),
    }
}

/// A path, or `@name` of Linux's abstract namespace.
fn connect(socket: &UnixDatagram, path: &str) -> io::Result<()> {
    match path.strip_prefix('@') {
        None => socket.connect(path),
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}
