//! From the publish of an event to the request at Google, and to READY, at 20 events a second.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::support::service::{Setup, World, eventually};
use crate::table::{Table, percentile};

const EVENTS: usize = 200;
const GOOGLE_MS: u64 = 100;

pub async fn run(table: &mut Table) {
    let world = World::start(Setup::sqlite().teachers(20)).await;
    world.until_ready().await;
    // One lesson for each teacher first, so that access tokens and connections are there.
    for n in 0..20 {
        world.publish(&world.lesson(&format!("warm{n}"), n)).await;
    }
    eventually("it is warm", async || world.store.counts(world.clock.now()).await.unwrap().ready == 20).await;
    world.fake().configure(|settings| settings.latency_ms = GOOGLE_MS);

    let mut published = HashMap::new();
    let mut changes = world.service.as_ref().unwrap().store.changes();
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    let watched = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 2 * EVENTS {
            if let Ok(session) = changes.recv().await {
                seen.push((session.to_string(), Instant::now()));
            }
        }
        seen
    });
    for n in 0..EVENTS {
        ticks.tick().await;
        let lesson = world.lesson(&format!("s{n}"), n % 20);
        published.insert(format!("s{n}"), Instant::now());
        world.publish(&lesson).await;
    }
    let seen = watched.await.unwrap();
    let ms = |from: Instant, to: Instant| to.duration_since(from).as_secs_f64() * 1_000.0;
    let to_google: Vec<f64> = world
        .fake()
        .recorded()
        .iter()
        .filter_map(|call| Some(ms(*published.get(call.session.as_deref()?)?, call.received)))
        .collect();
    // The first change of a document is PENDING, the second READY.
    let mut last = HashMap::new();
    for (session, at) in seen {
        last.insert(session, at);
    }
    let to_ready: Vec<f64> =
        published.iter().filter_map(|(session, from)| Some(ms(*from, *last.get(session)?))).collect();
    table.add(
        "publish to request at Google, 20 events/s",
        format!("p50 {:.1} ms, p99 {:.1} ms", percentile(to_google.clone(), 50), percentile(to_google, 99)),
        format!("{EVENTS} sessions"),
        "<= 3 ms, <= 12 ms",
    );
    table.add(
        "publish to READY, 20 events/s",
        format!("p50 {:.1} ms, p99 {:.1} ms", percentile(to_ready.clone(), 50), percentile(to_ready, 99)),
        format!("Google takes {GOOGLE_MS} ms of it"),
        "",
    );
}
