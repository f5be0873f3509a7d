//! From the publish of an event to the request at Google, and to the result.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;

use crate::Scale;
use crate::events::{lesson, publish, ready, session};
use crate::process::Server;
use crate::sessions::{until_ready, world};
use crate::table::{Samples, Table, Target};

/// Lessons of one teacher are written one after the other, so an event every 2.5 s for each.
const TEACHERS: usize = 50;

/// 20 events a second.
const EVERY: Duration = Duration::from_millis(50);

/// What Google takes for an answer.
const GOOGLE_MS: u64 = 100;

const LEGEND: &str = "20 new sessions a second for 50 teachers, Google answers after 100 ms. The time begins before the \
publish and ends when the\nrequest is at (the fake) Google, and when the result has come over stream MEET.";

/// Measures it.
pub(crate) async fn measure(scale: Scale, table: &mut Table) {
    table.section("Latency", LEGEND);
    let world = world(TEACHERS).await;
    let now = world.clock.now();
    let service = Server::service(&world);
    publish(&world.connection, (0..TEACHERS).map(|n| ready(&lesson(n, 1, n, now)))).await;
    until_ready(&world, TEACHERS).await;
    world.fake().configure(|settings| {
        settings.latency_ms = GOOGLE_MS;
        settings.recording.keep = scale.latencies * 2;
    });

    let mut results = world.connection.client.subscribe("meet.session.*.ready").await.unwrap();
    world.connection.client.flush().await.unwrap();
    let count = scale.latencies;
    let collecting = tokio::spawn(async move {
        let mut at = HashMap::new();
        while at.len() < count {
            let message = results.next().await.unwrap();
            at.insert(message.subject.split('.').nth(2).unwrap_or_default().to_owned(), Instant::now());
        }
        at
    });
    let mut published = HashMap::new();
    let mut tick = tokio::time::interval(EVERY);
    for n in 0..count {
        let number = TEACHERS + n;
        let event = ready(&lesson(number, 1, n % TEACHERS, now));
        tick.tick().await;
        published.insert(session(number), Instant::now());
        publish(&world.connection, [event]).await;
    }
    let results = collecting.await.unwrap();
    drop(service);

    let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1_000.0;
    let requests: Samples = world
        .fake()
        .recorded()
        .iter()
        .filter_map(|request| Some(ms(*published.get(request.session.as_deref()?)?, request.received)))
        .collect();
    let ready: Samples = results.iter().map(|(session, at)| ms(published[session], *at)).collect();
    table.value("publish → request at Google, p50", "ms", requests.quantile(0.5), Target::AtMost(3.0));
    table.value("publish → request at Google, p99", "ms", requests.quantile(0.99), Target::AtMost(12.0));
    table.value("publish → request at Google, most", "ms", requests.quantile(1.0), Target::None);
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let google = GOOGLE_MS as f64;
    table.value(
        "publish → READY on stream MEET, less Google's 100 ms, p50",
        "ms",
        ready.quantile(0.5) - google,
        Target::None,
    );
    table.value(
        "publish → READY on stream MEET, less Google's 100 ms, p99",
        "ms",
        ready.quantile(0.99) - google,
        Target::None,
    );
}
