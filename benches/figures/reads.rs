//! Reads per second beside a bare axum handler that answers with the same body.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::service::{Setup, World};
use crate::table::{Table, median, real};

const CONNECTIONS: usize = 32;
const ROUND: Duration = Duration::from_secs(2);

pub async fn run(table: &mut Table) {
    let world = World::start(Setup::sqlite()).await;
    world.publish(&world.lesson("s1", 0)).await;
    let document = world.ready("s1", 1).await.to_string();
    let etag = world.get("/api/google/meet/s1").await.etag.unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bare_address = listener.local_addr().unwrap();
    let app = Router::new().route(
        "/api/google/meet/{id}",
        get(move || std::future::ready(([("content-type", "application/json")], document.clone()))),
    );
    let bare = tokio::spawn(async move { axum::serve(listener, app).await });

    let request = |extra: &str| {
        let token = &world.token;
        format!("GET /api/google/meet/s1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{extra}\r\n")
    };
    let (plain, conditional) = (request(""), request(&format!("if-none-match: {etag}\r\n")));
    let ours = world.service.as_ref().unwrap().address;
    let (mut bare_rates, mut rates, mut not_modified) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..5 {
        bare_rates.push(load(bare_address, &plain).await);
        rates.push(load(ours, &plain).await);
        not_modified.push(load(ours, &conditional).await);
    }
    let (bare_rate, rate, not_modified) = (median(bare_rates), median(rates), median(not_modified));
    let beside = |rate: f64| format!("bare axum {bare_rate:.0}/s: ratio {:.2}", rate / bare_rate);
    table.add("reads, 200 with token and ETag", format!("{rate:.0}/s"), beside(rate), ">= 0.8");
    table.add("reads, 304", format!("{not_modified:.0}/s"), beside(not_modified), "");
    bare.abort();
}

/// Requests per second over keep-alive connections, one request at a time on each.
async fn load(address: SocketAddr, request: &str) -> f64 {
    let until = Instant::now() + ROUND;
    let lanes = (0..CONNECTIONS).map(|_| {
        let request = request.to_owned();
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut buffer = vec![0; 8_192];
            let mut count = 0_usize;
            while Instant::now() < until {
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut filled = 0;
                while !is_whole(&buffer[..filled]) {
                    let read = stream.read(&mut buffer[filled..]).await.unwrap();
                    assert!(read > 0, "the server closed the connection");
                    filled += read;
                }
                count += 1;
            }
            count
        })
    });
    let mut total = 0;
    for lane in lanes.collect::<Vec<_>>() {
        total += lane.await.unwrap();
    }
    real(total) / ROUND.as_secs_f64()
}

/// Whether an answer has arrived: its head, and as much body as the head says.
fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .map_or(0, |length| length.trim().parse::<usize>().unwrap());
    answer.len() >= head + 4 + length
}
