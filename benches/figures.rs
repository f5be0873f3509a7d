//! Figures of the service on this machine, as ratios within one run: `make bench`.
//!
//! A number of events per second says more about a machine and what else it does than about a program. So every figure
//! stands beside a bare one of the same run that does the same I/O and no work, in turns (A B A B …), and the ratio of
//! the medians is what holds from one machine to the next. Nothing here fails because it is slow; what it measures is
//! also checked (every session READY, one write each, none in a replay), and that does fail.
//!
//! ```text
//! make bench                     everything, some four minutes
//! make bench ONLY=ingest,reads   some: ingest ingest-postgres sessions latency reads memory
//! make bench QUICK=1             small numbers, some forty seconds
//! ```

#![expect(clippy::unwrap_used, reason = "a measurement that cannot go on says where")]

use std::process::ExitCode;

use ingest::Backend;
use table::Table;

mod events;
mod ingest;
mod latency;
mod load;
mod memory;
mod peers;
mod process;
mod reads;
mod sessions;
#[expect(dead_code, unreachable_pub, reason = "the parts of the tests, of which a benchmark needs some")]
#[path = "../tests/support/mod.rs"]
mod support;
mod table;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// Events of the ingest, and sessions of memory and replay.
    pub(crate) events: usize,
    /// Sessions that become READY in one run.
    pub(crate) sessions: usize,
    /// Runs of which the median is taken.
    pub(crate) runs: usize,
    /// Events of the latency.
    pub(crate) latencies: usize,
    /// Milliseconds of one turn of reading.
    pub(crate) reading_ms: u64,
}

const FULL: Scale = Scale { events: 100_000, sessions: 5_000, runs: 3, latencies: 400, reading_ms: 1_500 };
const QUICK: Scale = Scale { events: 10_000, sessions: 1_000, runs: 3, latencies: 60, reading_ms: 250 };

const FIGURES: [&str; 6] = ["ingest", "ingest-postgres", "sessions", "latency", "reads", "memory"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--peer", arguments)) = arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        peers::run(arguments);
        return ExitCode::SUCCESS;
    }
    let is_set = |name: &str| std::env::var(name).is_ok_and(|value| !matches!(value.as_str(), "" | "0"));
    let scale = if is_set("QUICK") || arguments.iter().any(|argument| argument == "--quick") { QUICK } else { FULL };
    // Cargo itself adds `--bench`.
    let named = arguments.iter().filter(|argument| !argument.starts_with("--")).cloned();
    let only = std::env::var("ONLY").unwrap_or_default();
    let wanted: Vec<String> =
        named.chain(only.split([',', ' ']).map(str::to_owned)).filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = wanted.iter().find(|name| !FIGURES.contains(&name.as_str())) {
        eprintln!("there is no figure {unknown}; there are: {}", FIGURES.join(" "));
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut table = Table::default();
        for figure in FIGURES.into_iter().filter(|figure| wanted.is_empty() || wanted.iter().any(|name| name == figure))
        {
            eprintln!("measuring: {figure}");
            // Boxed, since each of them is a large state machine.
            match figure {
                "ingest" => Box::pin(ingest::measure(scale, Backend::Sqlite, &mut table)).await,
                "ingest-postgres" => Box::pin(ingest::measure(scale, Backend::Postgres, &mut table)).await,
                "sessions" => Box::pin(sessions::measure(scale, &mut table)).await,
                "latency" => Box::pin(latency::measure(scale, &mut table)).await,
                "reads" => Box::pin(reads::measure(scale, &mut table)).await,
                _ => Box::pin(memory::measure(scale, &mut table)).await,
            }
        }
        println!("{table}");
    });
    ExitCode::SUCCESS
}
