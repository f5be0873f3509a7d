//! From an event on the stream to READY: everything, with a Google that answers at once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use meet_projector::fake::{DEFAULT_SCOPES, Recording};
use meet_projector::model::Epoch;
use meet_projector::store::Counts;

use crate::Scale;
use crate::events::{last_sequence, lesson, publish, ready};
use crate::process::{Server, cpu_ms, peer};
use crate::support::service::{Setup, World};
use crate::table::{Samples, Table, Target};

/// Teachers, and with them calendars, over which the sessions are spread.
pub(crate) const TEACHERS: usize = 200;

const LEGEND: &str = "the service as a process of its own on SQLite, idle and connected; then all events are published at \
once, and the\ntime ends when every session is READY. Rates are off, Google is the fake of this project in the process of \
the benchmark, without\nlatency or recording, and each session is one insert there. ‘Rescheduled’: the second event \
follows each first at once, and both end in\none insert. Bare: a process that sends inserts to the same fake with the same \
HTTP client, 32 at once, and does nothing else.";

/// A world whose Google answers at once and remembers nothing, with connected teachers.
pub(crate) async fn world(teachers: usize) -> World {
    let world = World::prepare(Setup::sqlite().teachers(teachers)).await;
    world.fake().configure(|settings| settings.recording = Recording { keep: 0, bodies: false });
    world
}

#[derive(Debug, Default)]
struct Runs {
    events: Samples,
    service_cpu: Samples,
    fake_cpu: Samples,
}

/// Measures both kinds of events.
pub(crate) async fn measure(scale: Scale, table: &mut Table) {
    table.section("Sessions to READY", LEGEND);
    let (mut once, mut twice) = (Runs::default(), Runs::default());
    let (mut bare, mut bare_fake_cpu) = (Samples::default(), Samples::default());
    for _ in 0..scale.runs {
        let (per_second, fake_cpu) = inserts(scale.sessions).await;
        bare.push(per_second);
        bare_fake_cpu.push(fake_cpu);
        converge(scale.sessions, 1, &mut once).await;
        converge(scale.sessions, 2, &mut twice).await;
    }
    table.samples("bare inserts", "events/s", &bare, Target::None);
    table.samples("  CPU of the fake", "ms", &bare_fake_cpu, Target::None);
    for (name, runs) in [("scheduled", &once), ("scheduled and rescheduled", &twice)] {
        table.samples(name, "events/s", &runs.events, Target::AtLeast(6_000.0));
        table.samples("  CPU of the service, per event", "ms", &runs.service_cpu, Target::AtMost(0.25));
        table.samples("  CPU of fake and publisher, per event", "ms", &runs.fake_cpu, Target::None);
    }
    table.value("  scheduled, of bare inserts", "×", once.events.median() / bare.median(), Target::None);
}

/// Inserts by a client that does nothing else: how many a second, and the fake's CPU for each.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
async fn inserts(count: usize) -> (f64, f64) {
    let world = world(TEACHERS).await;
    let tokens: Vec<_> =
        (0..TEACHERS).map(|n| world.fake().access_token(world.email(n), &DEFAULT_SCOPES).unwrap()).collect();
    let root = world.google.running.calendar_api_root.to_string();
    let cpu = cpu_ms(std::process::id());
    let output = tokio::task::spawn_blocking(move || {
        peer(&["inserts", root.trim_end_matches('/'), &count.to_string()])
            .args(tokens)
            .stderr(Stdio::inherit())
            .output()
    });
    let output = output.await.unwrap().unwrap();
    let cpu = cpu_ms(std::process::id()) - cpu;
    assert!(output.status.success(), "the bare client failed");
    assert_eq!(world.fake().counters().writes(), count as u64);
    (String::from_utf8(output.stdout).unwrap().trim().parse().unwrap(), cpu / count as f64)
}

/// `events` (1 or 2) of each session, until all are READY.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
async fn converge(sessions: usize, events: i64, runs: &mut Runs) {
    let world = world(TEACHERS).await;
    let now = world.clock.now();
    // A lesson each, so that all calendars have their access token.
    let warm: Vec<_> = (0..TEACHERS).map(|n| ready(&lesson(n, 1, n, now))).collect();
    let of_session =
        |n: usize| (1..=events).map(move |version| ready(&lesson(TEACHERS + n, version, n % TEACHERS, now)));
    let all: Vec<_> = (0..sessions).flat_map(of_session).collect();
    let count = all.len() as f64;

    let service = Server::service(&world);
    publish(&world.connection, warm).await;
    until_ready(&world, TEACHERS).await;
    let writes = world.fake().counters().writes();

    let begun = Instant::now();
    let (service_cpu, fake_cpu) = (cpu_ms(service.pid()), cpu_ms(std::process::id()));
    publish(&world.connection, all).await;
    until_written(&world, writes + sessions as u64).await;
    until_ready(&world, TEACHERS + sessions).await;
    runs.events.push(count / begun.elapsed().as_secs_f64());
    runs.service_cpu.push((cpu_ms(service.pid()) - service_cpu) / count);
    runs.fake_cpu.push((cpu_ms(std::process::id()) - fake_cpu) / count);
    // A reschedule that comes after the insert is one PATCH more; READY of the version before does not count.
    let writes = world.fake().counters().writes() - writes;
    let most = sessions as u64 * u64::try_from(events).unwrap();
    assert!((sessions as u64..=most).contains(&writes), "{writes} writes for {sessions} sessions");
    world.assert_google_was_never_wrong();
}

/// Waits until Google has taken so many writes. Asking the database all the time, which counts thousands of rows, would
/// take a good part of a core from what is measured.
pub(crate) async fn until_written(world: &World, writes: u64) {
    let begun = Instant::now();
    while world.fake().counters().writes() < writes {
        assert!(begun.elapsed() < Duration::from_mins(5), "{} of {writes} writes", world.fake().counters().writes());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until everything is folded and so many sessions are READY; returns what else there is.
pub(crate) async fn until_ready(world: &World, sessions: usize) -> Counts {
    let last = last_sequence(&world.connection).await;
    let wanted = i64::try_from(sessions).unwrap();
    let begun = Instant::now();
    loop {
        let counts = world.store.counts(world.clock.now()).await.unwrap();
        if counts.ready >= wanted && world.store.position(Epoch(1)).await.unwrap().contiguous >= last {
            return counts;
        }
        assert!(begun.elapsed() < Duration::from_mins(5), "{counts:?}, but {wanted} should be ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
