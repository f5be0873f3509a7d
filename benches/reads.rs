//! Reads of the API beside a bare handler.

use std::time::Duration;

use crate::Scale;
use crate::events::{lesson, publish, ready, session};
use crate::load::{Connection, drive};
use crate::process::{Server, cpu_ms};
use crate::sessions::{TEACHERS, until_ready, world};
use crate::table::{Samples, Table, Target};

/// Sessions that are asked for in turn.
const SESSIONS: usize = 1_000;

/// Turns of each.
const TURNS: usize = 5;

const LEGEND: &str = "GET /api/google/meet/{id} with a token, 1,000 sessions in turn, over 48 connections that are kept, one \
request at a time on\neach, by a client of blocking sockets. Bare: an axum handler in a process of its own that gives out \
the same body, or 304, and knows no\ntokens, tags, ids of requests or metrics. CPU is that of the server, per read; it is \
the stricter ratio, as the client takes its share of the cores.";

/// Measures whole documents and 304s.
pub(crate) async fn measure(scale: Scale, table: &mut Table) {
    table.section("Reads", LEGEND);
    let world = world(TEACHERS).await;
    let now = world.clock.now();
    let service = Server::service(&world);
    publish(&world.connection, (0..SESSIONS).map(|n| ready(&lesson(n, 1, n % TEACHERS, now)))).await;
    until_ready(&world, SESSIONS).await;
    let token = format!("authorization: Bearer {}\r\n", world.token);
    let time = Duration::from_millis(scale.reading_ms);

    tokio::task::block_in_place(|| {
        let mut connection = Connection::open(service.address).unwrap();
        let mut get = |n| connection.get(&format!("/api/google/meet/{}", session(n)), &token).unwrap();
        let body = String::from_utf8(get(0).body).unwrap();
        let (mut whole, mut unchanged) = (Vec::new(), Vec::new());
        for n in 0..SESSIONS {
            let (path, etag) = (format!("/api/google/meet/{}", session(n)), get(n).header("etag").unwrap().to_owned());
            whole.push((path.clone(), token.clone()));
            unchanged.push((path, format!("{token}if-none-match: {etag}\r\n")));
        }
        let bare = Server::peer(&["axum", &body]);
        for (name, status, ours, theirs) in
            [("200, the whole document", 200, &whole, "/body/1"), ("304, unchanged", 304, &unchanged, "/same/1")]
        {
            let theirs = [(theirs.to_owned(), token.clone())];
            let (mut our_runs, mut bare_runs) = (Runs::default(), Runs::default());
            for _ in 0..TURNS {
                bare_runs.turn(&bare, &theirs, status, time);
                our_runs.turn(&service, ours, status, time);
            }
            table.samples(format!("bare axum, {name}"), "reads/s", &bare_runs.reads, Target::None);
            table.samples("  its CPU", "µs", &bare_runs.cpu, Target::None);
            table.samples(format!("the API, {name}"), "reads/s", &our_runs.reads, Target::None);
            table.samples("  its CPU", "µs", &our_runs.cpu, Target::None);
            let ratio = our_runs.reads.median() / bare_runs.reads.median();
            table.value("  reads, of bare", "×", ratio, Target::AtLeast(0.8));
            table.value("  CPU, of bare", "×", our_runs.cpu.median() / bare_runs.cpu.median(), Target::None);
        }
    });
}

#[derive(Debug, Default)]
struct Runs {
    reads: Samples,
    cpu: Samples,
}

impl Runs {
    fn turn(&mut self, server: &Server, requests: &[(String, String)], status: u16, time: Duration) {
        let cpu = cpu_ms(server.pid());
        let reads = drive(server.address, requests, status, time);
        self.reads.push(reads);
        self.cpu.push((cpu_ms(server.pid()) - cpu) * 1_000.0 / (reads * time.as_secs_f64()));
    }
}
