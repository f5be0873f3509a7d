//! Processes: what they use, and the service as one of its own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::load::Connection;
use crate::support::lifeline::Lifeline;
use crate::support::service::World;

/// Ticks of a second in `/proc`: `USER_HZ`, 100 on every Linux (proc(5)).
const TICKS: f64 = 100.0;

/// What would hang ends after this.
const PATIENCE: Duration = Duration::from_mins(1);

/// User and system time of a process so far, in milliseconds, to 10 ms. NaN where there is no `/proc`.
pub(crate) fn cpu_ms(pid: u32) -> f64 {
    let read = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_whitespace().skip(11);
        let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        Some((user + system) * 1_000.0 / TICKS)
    };
    read().unwrap_or(f64::NAN)
}

/// `VmRSS` or `VmHWM` of a process in MiB.
pub(crate) fn memory_mib(pid: u32, field: &str) -> f64 {
    let read = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
        let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib / 1024.0)
    };
    read().unwrap_or(f64::NAN)
}

/// A child process that answers HTTP; killed when dropped, or when the benchmark is.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    _lifeline: Lifeline,
    /// Where it answers.
    pub(crate) address: SocketAddr,
}

impl Server {
    /// `meet-projector serve` on the world's parts, as soon as it says that it is ready.
    pub(crate) fn service(world: &World) -> Self {
        let address = free_address();
        let mut command = Command::new(env!("CARGO_BIN_EXE_meet-projector"));
        command.arg("serve").env_clear().envs(&world.environment).env("HTTP_ADDR", address.to_string());
        // High, so that the limit takes part and refuses nobody.
        command.env("API_RATE_LIMIT", "1000000");
        command.env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "warn".to_owned()));
        Self::start(command, address, "/readyz")
    }

    /// This program again, as another one.
    pub(crate) fn peer(arguments: &[&str]) -> Self {
        let address = free_address();
        let mut command = peer(arguments);
        command.arg(address.to_string());
        Self::start(command, address, "/readyz")
    }

    fn start(mut command: Command, address: SocketAddr, path: &str) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let this = Self { _lifeline: Lifeline::of(&child), child, address };
        let begun = Instant::now();
        let is_ready = || Connection::open(address).ok()?.get(path, "").ok().map(|answer| answer.status == 200);
        while !is_ready().unwrap_or(false) {
            assert!(begun.elapsed() < PATIENCE, "a child process was not ready within a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
        this
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The command that runs a part of this program as a process of its own.
pub(crate) fn peer(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--peer").args(arguments);
    command
}

/// A free port: the listener is closed a moment before the child takes it.
fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}
