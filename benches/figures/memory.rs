//! Resident memory of the real process: idle, and with 100,000 sessions.

use std::time::Duration;

use crate::support::process::Serving;
use crate::support::service::{Setup, World, eventually};
use crate::table::Table;

const SESSIONS: i64 = 100_000;

pub async fn run(table: &mut Table) {
    let world = World::prepare(Setup::sqlite().connected(0)).await;
    let serving = Serving::start(&world, None);
    eventually("the epoch is open", async || !world.store.epochs().await.unwrap().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.add("memory, idle", memory(&serving), "resident, and at its peak", "<= 20 MiB");

    crate::ingest::publish(&world, usize::try_from(SESSIONS).unwrap()).await;
    loop {
        let counts = world.store.counts(world.clock.now()).await.unwrap();
        if counts.error == SESSIONS && counts.outbox == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    table.add("memory, 100,000 sessions", memory(&serving), "after folding and publishing all", "<= 60 MiB");
    serving.kill();
}

/// `VmRSS` and `VmHWM` (proc(5)).
fn memory(serving: &Serving) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", serving.child.id())).unwrap();
    let mib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024
    };
    format!("{} MiB, peak {} MiB", mib("VmRSS"), mib("VmHWM"))
}
