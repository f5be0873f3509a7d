//! From the stream into the database, beside a consumer that only acknowledges.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use futures_util::StreamExt as _;
use meet_projector::clock::Clock;
use meet_projector::consumer::{ConsumerContext, Health, Pace};
use meet_projector::nats::Connection;
use meet_projector::store::{DatabaseUrl, Store};
use tempfile::TempDir;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::Scale;
use crate::events::{self, lesson, publish, ready};
use crate::process::cpu_ms;
use crate::support::nats::NatsServer;
use crate::support::postgres::fresh_database;
use crate::table::{Samples, Table, Target};

const LEGEND: &str = "events of some 700 bytes from a stream that is full already, until the server has every \
acknowledgement. Bare is a\npull consumer of the same stream that acknowledges and does nothing else (async-nats, requests of \
500). Ours decodes, folds, and\ncommits sessions, documents, results and position in groups. ‘10 versions’: every session \
comes once before any comes again, so that a\ngroup never holds a session twice; ‘distinct’: every event makes a session; \
‘in a row’: the versions of a session follow one\nanother. CPU is that of the consuming \
process, per event.";

const LEGEND_POSTGRES: &str = "the same on PostgreSQL, with fsync=off. CPU is without the server's.";

/// How events are spread over sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spread {
    Versions,
    Distinct,
    InARow,
}

impl Spread {
    const ALL: [Self; 3] = [Self::Versions, Self::Distinct, Self::InARow];

    fn name(self) -> &'static str {
        match self {
            Self::Versions => "10 versions",
            Self::Distinct => "distinct",
            Self::InARow => "in a row",
        }
    }

    /// Session and version of the event at `place`.
    fn event(self, place: usize, count: usize) -> (usize, i64) {
        let sessions = count / 10;
        let (session, version) = match self {
            Self::Versions => (place % sessions, place / sessions),
            Self::Distinct => (place, 0),
            Self::InARow => (place / 10, place % 10),
        };
        (session, i64::try_from(version).unwrap() + 1)
    }
}

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// The embedded one.
    Sqlite,
    /// A server.
    Postgres,
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) per_second: f64,
    pub(crate) cpu_ms_per_event: f64,
}

#[derive(Debug, Default)]
struct Runs {
    per_second: Samples,
    cpu: Samples,
}

impl Runs {
    fn push(&mut self, run: Run) {
        self.per_second.push(run.per_second);
        self.cpu.push(run.cpu_ms_per_event);
    }
}

/// Measures all spreads.
pub(crate) async fn measure(scale: Scale, backend: Backend, table: &mut Table) {
    match backend {
        Backend::Sqlite => table.section("Ingest into SQLite", LEGEND),
        Backend::Postgres if has_postgres() => table.section("Ingest into PostgreSQL", LEGEND_POSTGRES),
        Backend::Postgres => return eprintln!("  without PostgreSQL: .ci/postgres finds none"),
    }
    for spread in Spread::ALL {
        let (nats, connection) = NatsServer::with_definitions().await;
        let now = Clock::system().now();
        let all = (0..scale.events).map(|place| {
            let (session, version) = spread.event(place, scale.events);
            ready(&lesson(session, version, session % 200, now))
        });
        publish(&connection, all).await;
        let (mut bare_runs, mut our_runs) = (Runs::default(), Runs::default());
        for _ in 0..scale.runs {
            bare_runs.push(bare(&nats).await);
            our_runs.push(ours(&nats, backend).await);
        }
        let name = spread.name();
        table.samples(format!("bare pull consumer, {name}"), "events/s", &bare_runs.per_second, Target::None);
        table.samples("  its CPU", "ms", &bare_runs.cpu, Target::None);
        table.samples(format!("ours, {name}"), "events/s", &our_runs.per_second, Target::None);
        table.samples("  its CPU", "ms", &our_runs.cpu, Target::None);
        let ratio = our_runs.per_second.median() / bare_runs.per_second.median();
        table.value("  of bare", "×", ratio, Target::AtLeast(0.6));
    }
}

fn has_postgres() -> bool {
    Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/postgres"))
        .output()
        .is_ok_and(|found| found.status.success())
}

/// A pull consumer that only acknowledges.
pub(crate) async fn bare(nats: &NatsServer) -> Run {
    let connection = nats.connect().await;
    let count = events::last_sequence(&connection).await;
    let context = jetstream::new(connection.client.clone());
    let config = pull::Config {
        durable_name: Some("bare".to_owned()),
        ack_policy: AckPolicy::Explicit,
        deliver_policy: DeliverPolicy::All,
        max_ack_pending: 4_096,
        ..pull::Config::default()
    };
    let (begun, cpu) = (Instant::now(), cpu_ms(std::process::id()));
    let consumer = context.get_stream("BOOKINGS").await.unwrap().create_consumer(config).await.unwrap();
    let mut messages = consumer.stream().max_messages_per_batch(500).messages().await.unwrap();
    for _ in 0..count {
        messages.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    acknowledged(&connection, "bare", count).await;
    let run = run_since(begun, cpu_ms(std::process::id()) - cpu, count);
    connection.delete_consumer("BOOKINGS", "bare").await.unwrap();
    run
}

/// Our consumer, into a new database.
async fn ours(nats: &NatsServer, backend: Backend) -> Run {
    let connection = nats.connect().await;
    let count = events::last_sequence(&connection).await;
    let folder = tempfile::tempdir().unwrap();
    let store = new_store(backend, &folder).await;
    let cancel = CancellationToken::new();
    let context = ConsumerContext {
        nats: nats.config(),
        store: store.clone(),
        clock: Clock::system(),
        wake: Arc::new(Notify::new()),
        health: Arc::new(Health::default()),
        paused: watch::Sender::new(false).subscribe(),
        pace: Pace::default(),
        cancel: cancel.clone(),
    };
    let (begun, cpu) = (Instant::now(), cpu_ms(std::process::id()));
    let consuming = tokio::spawn(meet_projector::consumer::run(context));
    acknowledged(&connection, "meet-projector-e1", count).await;
    let run = run_since(begun, cpu_ms(std::process::id()) - cpu, count);
    cancel.cancel();
    consuming.await.unwrap();
    store.close().await;
    connection.delete_consumer("BOOKINGS", "meet-projector-e1").await.unwrap();
    run
}

async fn new_store(backend: Backend, folder: &TempDir) -> Store {
    let url = match backend {
        Backend::Sqlite => format!("sqlite://{}/meet.db", folder.path().display()),
        Backend::Postgres => fresh_database().await,
    };
    let store = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    store.migrate().await.unwrap();
    store
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
pub(crate) fn run_since(begun: Instant, cpu_ms: f64, count: i64) -> Run {
    Run { per_second: count as f64 / begun.elapsed().as_secs_f64(), cpu_ms_per_event: cpu_ms / count as f64 }
}

/// Waits until the server has the acknowledgement of every message up to `sequence`.
pub(crate) async fn acknowledged(connection: &Connection, consumer: &str, sequence: i64) {
    loop {
        let info = connection.consumer_info("BOOKINGS", consumer).await.unwrap();
        if info.is_some_and(|info| info.ack_floor.stream_seq >= sequence) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
