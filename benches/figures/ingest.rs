//! Ingest of 100,000 events beside a bare pull consumer of the same stream, and folding them all once more.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::message::PublishMessage;
use futures_util::StreamExt as _;
use meet_projector::consumer::{self, ConsumerContext, Health, Pace};
use meet_projector::event::{decode, encode, subject};
use meet_projector::model::{Epoch, Place};
use meet_projector::store::{DatabaseUrl, Incoming, Store};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::support::service::{HOUR_MS, Setup, Then as _, World};
use crate::table::{Table, cpu_ms, median, real};

const EVENTS: usize = 100_000;

pub async fn run(table: &mut Table) {
    for (name, sessions) in [("10 events a session", EVENTS / 10), ("1 event a session", EVENTS)] {
        let world = World::prepare(Setup::sqlite()).await;
        publish(&world, sessions).await;
        let (mut bare_rates, mut rates, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..3 {
            bare_rates.push(bare(&world, round).await);
            let (rate, cpu_an_event) = ours(&world, round).await;
            rates.push(rate);
            cpu.push(cpu_an_event);
        }
        let (rate, bare_rate) = (median(rates), median(bare_rates));
        table.add(
            &format!("ingest, SQLite, {name}"),
            format!("{rate:.0} events/s, {:.3} ms CPU each", median(cpu)),
            format!("bare pull consumer {bare_rate:.0}/s: ratio {:.2}", rate / bare_rate),
            ">= 0.6",
        );
        replay(&world, table, name).await;
    }
}

/// Publishes `EVENTS` events of so many sessions, version by version.
pub async fn publish(world: &World, sessions: usize) {
    let stream = jetstream::new(world.connection.client.clone());
    let mut current: Vec<_> = (0..sessions).map(|n| world.lesson(&format!("s{n}"), n % 2)).collect();
    let mut acks = Vec::new();
    for nth in 0..EVENTS {
        let event = &mut current[nth % sessions];
        if nth >= sessions {
            *event = event.moved(HOUR_MS);
        }
        let message = PublishMessage::build()
            .payload(encode(event).to_string().into())
            .header("Content-Type", "application/cloudevents+json");
        acks.push(stream.send_publish(subject(event), message).await.unwrap());
        if acks.len() == 1_000 {
            for ack in acks.drain(..) {
                ack.await.unwrap();
            }
        }
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

/// A pull consumer that does nothing but acknowledge.
async fn bare(world: &World, round: usize) -> f64 {
    let stream = jetstream::new(world.connection.client.clone()).get_stream("BOOKINGS").await.unwrap();
    let name = format!("bare{round}");
    let config = pull::Config { durable_name: Some(name.clone()), max_ack_pending: 4096, ..Default::default() };
    let consumer = stream.create_consumer(config).await.unwrap();
    let begun = Instant::now();
    let mut messages = consumer.stream().max_messages_per_batch(500).messages().await.unwrap();
    for _ in 0..EVENTS {
        messages.next().await.unwrap().unwrap().ack().await.unwrap();
    }
    let rate = real(EVENTS) / begun.elapsed().as_secs_f64();
    drop(messages);
    stream.delete_consumer(&name).await.unwrap();
    rate
}

/// Our consumer into an empty database; the rate and the CPU time of one event in milliseconds.
async fn ours(world: &World, round: usize) -> (f64, f64) {
    let url = format!("sqlite://{}", world.path(&format!("ingest{round}.db")).display());
    let store = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    store.migrate().await.unwrap();
    let health = Arc::new(Health::default());
    let cancel = CancellationToken::new();
    let mut nats = world.config.nats.clone();
    nats.consumer = format!("ours{round}");
    let context = ConsumerContext {
        nats,
        store,
        clock: world.clock.clone(),
        wake: Arc::new(Notify::new()),
        health: Arc::clone(&health),
        paused: watch::Sender::new(false).subscribe(),
        pace: Pace::default(),
        cancel: cancel.clone(),
    };
    let running = tokio::spawn(consumer::run(context));
    while health.snapshot().highest == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (begun, cpu) = (Instant::now(), cpu_ms());
    let first = health.snapshot().contiguous;
    while health.snapshot().contiguous < i64::try_from(EVENTS).unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let events = real(EVENTS) - real(usize::try_from(first).unwrap());
    let figures = (events / begun.elapsed().as_secs_f64(), (cpu_ms() - cpu) / events);
    cancel.cancel();
    running.await.unwrap();
    figures
}

/// All of it once more into the database that has it: decoding and folding of duplicates.
async fn replay(world: &World, table: &mut Table, name: &str) {
    let url = format!("sqlite://{}", world.path("ingest0.db").display());
    let store = Store::open(&DatabaseUrl(url.into())).await.unwrap();
    let mut messages = Vec::with_capacity(EVENTS);
    let mut walk = std::pin::pin!(world.connection.walk("BOOKINGS", 1, i64::try_from(EVENTS).unwrap()));
    while let Some(message) = walk.next().await {
        messages.push(message.unwrap());
    }
    let due = store.counts(world.clock.now()).await.unwrap().due;
    let begun = Instant::now();
    for group in messages.chunks(256) {
        let group: Vec<Incoming> = group
            .iter()
            .map(|message| {
                let place = Place { epoch: Epoch(1), sequence: message.sequence };
                let headers = message.raw.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                Incoming {
                    sequence: message.sequence,
                    stored_at: message.stored_at(),
                    fingerprint: message.fingerprint(),
                    decoded: decode(&message.raw.subject, headers, &message.raw.payload, place),
                    raw: message.raw.clone(),
                }
            })
            .collect();
        store.fold(Epoch(1), &group, world.clock.now()).await.unwrap();
    }
    let rate = real(EVENTS) / begun.elapsed().as_secs_f64();
    let more = store.counts(world.clock.now()).await.unwrap().due - due;
    table.add(
        &format!("replay of all, {name}"),
        format!("{rate:.0} events/s"),
        format!("{more} rows became due at Google"),
        "0 due",
    );
}
