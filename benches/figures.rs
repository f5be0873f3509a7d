//! `make bench`: the figures of this machine, as ratios within one run where something bare can be put beside them.
//!
//! `make bench ONLY=ingest` runs one of: ingest, converge, latency, reads, memory. Absolute numbers vary with the machine and
//! with what else it does; the ratios hold better. Nothing here is a test: no figure fails anything.

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on says where")]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the stories use more of it")]
mod support;

#[path = "figures/converge.rs"]
mod converge;
#[path = "figures/ingest.rs"]
mod ingest;
#[path = "figures/latency.rs"]
mod latency;
#[path = "figures/memory.rs"]
mod memory;
#[path = "figures/reads.rs"]
mod reads;
#[path = "figures/table.rs"]
mod table;

use table::Table;

fn main() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted = |name: &str| only.is_empty() || only == name;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut table = Table::default();
    runtime.block_on(async {
        if wanted("ingest") {
            ingest::run(&mut table).await;
        }
        if wanted("converge") {
            converge::run(&mut table).await;
        }
        if wanted("latency") {
            latency::run(&mut table).await;
        }
        if wanted("reads") {
            reads::run(&mut table).await;
        }
        if wanted("memory") {
            memory::run(&mut table).await;
        }
    });
    table.print();
}
