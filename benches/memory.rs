//! What the service keeps resident, idle and with many sessions; and what a replay of those costs.

use std::time::{Duration, Instant};

use meet_projector::nats::definitions::Definitions;

use crate::Scale;
use crate::events::{last_sequence, lesson, publish, ready};
use crate::ingest::{acknowledged, bare, run_since};
use crate::process::{Server, cpu_ms, memory_mib};
use crate::sessions::{TEACHERS, until_ready, until_written, world};
use crate::table::{Table, Target};

const LEGEND: &str = "VmRSS and VmHWM of the service on SQLite, as a process of its own: two seconds after it was ready, \
and after it brought as\nmany new sessions as there are events in ‘ingest’ to READY without a pause. Then it is started \
again with a durable consumer that hands out\nthe whole stream: every event is folded once more and is a duplicate, and \
nothing may be written at Google. Bare is the consumer of ‘ingest’.";

/// How often the durable is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Measures both.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
pub(crate) async fn measure(scale: Scale, table: &mut Table) {
    table.section("Memory and replay", LEGEND);
    let world = world(TEACHERS).await;
    let service = Server::service(&world);
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.value("resident, idle", "MiB", memory_mib(service.pid(), "VmRSS"), Target::AtMost(20.0));

    let now = world.clock.now();
    let count = scale.events;
    let begun = Instant::now();
    let cpu = cpu_ms(service.pid());
    let all = (0..count).map(|n| ready(&lesson(n, 1, n % TEACHERS, now)));
    publish(&world.connection, all).await;
    until_written(&world, count as u64).await;
    until_ready(&world, count).await;
    let (seconds, cpu) = (begun.elapsed().as_secs_f64(), cpu_ms(service.pid()) - cpu);
    table.value(format!("to READY, {count} sessions at once"), "events/s", count as f64 / seconds, Target::None);
    table.value("  CPU of the service, per event", "ms", cpu / count as f64, Target::None);
    table.value("  most resident meanwhile", "MiB", memory_mib(service.pid(), "VmHWM"), Target::AtMost(60.0));
    tokio::time::sleep(Duration::from_secs(2)).await;
    table.value("  resident afterwards", "MiB", memory_mib(service.pid(), "VmRSS"), Target::AtMost(60.0));
    let counts = world.store.counts(world.clock.now()).await.unwrap();
    assert_eq!((counts.ready, counts.due), (i64::try_from(count).unwrap(), 0));
    drop(service);

    // A durable as after `nats consumer add`: it hands out everything from the start.
    let config = world.nats.config();
    let definition = Definitions::load(None, &config, None).unwrap().consumer("meet-projector-e1");
    world.connection.delete_consumer("BOOKINGS", "meet-projector-e1").await.unwrap();
    world.connection.write_consumer("BOOKINGS", &definition, "create").await.unwrap();
    let writes = world.fake().counters().writes();
    let last = last_sequence(&world.connection).await;
    let service = Server::service(&world);
    let (begun, first) = loop {
        let info = world.connection.consumer_info("BOOKINGS", "meet-projector-e1").await.unwrap().unwrap();
        if info.delivered.stream_seq > 0 {
            break (Instant::now(), info.ack_floor.stream_seq);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let cpu = cpu_ms(service.pid());
    acknowledged(&world.connection, "meet-projector-e1", last).await;
    let replay = run_since(begun, cpu_ms(service.pid()) - cpu, last - first);
    let bare = bare(&world.nats).await;
    table.value("bare pull consumer", "events/s", bare.per_second, Target::None);
    table.value("replay of all events", "events/s", replay.per_second, Target::None);
    table.value("  CPU of the service, per event", "ms", replay.cpu_ms_per_event, Target::None);
    table.value("  of bare", "×", replay.per_second / bare.per_second, Target::AtLeast(0.6));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let written = world.fake().counters().writes() - writes;
    table.value("  writes at Google", "", written as f64, Target::AtMost(0.0));
    assert_eq!(written, 0, "a replay of a settled stream writes nothing");
}
