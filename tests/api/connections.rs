//! What a client may do to a connection, over real sockets: heads and bodies without end, silence, several at once.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use meet_projector::api::serve;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::fixture::{Api, START, api};

/// Served, with a session.
async fn served() -> (Api, std::net::SocketAddr) {
    let api = api().await;
    api.schedule("ses_1", "tch_1", 1, START).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(api.state.clone(), listener, None));
    (api, address)
}

async fn connect(address: std::net::SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// Sends this and reads until the server closes; a server that closes early may make the sending fail.
async fn exchange(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut connection = connect(address).await;
    let (mut reading, mut writing) = connection.split();
    let mut answer = Vec::new();
    let (_sent, _read) = tokio::join!(writing.write_all(request), reading.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

fn with_token(api: &Api, line: &str, rest: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\n{rest}", api.reader).into()
}

#[tokio::test]
async fn heads_have_a_limit() {
    let (api, address) = served().await;
    let good = exchange(address, &with_token(&api, "GET /api/google/meet/ses_1", "\r\n")).await;
    assert!(good.starts_with("HTTP/1.1 200 OK\r\n") && good.contains("\"sessionId\":\"ses_1\""), "{good}");
    let large = format!("x-large: {}\r\n\r\n", "x".repeat(40_000));
    let many = "x-many: 1\r\n".repeat(100) + "\r\n";
    for rest in [large, many] {
        let answer = exchange(address, &with_token(&api, "GET /api/google/meet/ses_1", &rest)).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer:.200}");
    }
    for nonsense in ["\r\n\r\nHELO\r\n\r\n", "GET\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}\r\n\r\n"] {
        let answer = exchange(address, nonsense.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{nonsense:?}: {answer}");
    }
}

#[tokio::test]
async fn bodies_have_a_limit_whether_they_say_their_length_or_not() {
    let (api, address) = served().await;
    let long = format!("content-length: 70000\r\n\r\n{}", "x".repeat(70_000));
    let answer = exchange(address, &with_token(&api, "GET /api/google/meet/ses_1?wait=0", &long)).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("BODY_TOO_LARGE"), "{answer:.300}");
    // What nobody reads is not read on either: the answer comes, and the connection ends.
    let chunks =
        format!("transfer-encoding: chunked\r\n\r\n{}", format!("1000\r\n{}\r\n", "x".repeat(4_096)).repeat(1_000));
    let answer = exchange(address, &with_token(&api, "POST /api/google/meet", &chunks)).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 405 "), "{answer:.300}");
    assert_eq!(api.get("/livez").await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_says_nothing_or_half_of_it_is_let_go_and_who_waits_in_between_is_not() {
    let (api, address) = served().await;
    let begun = Instant::now();
    let mut silent = connect(address).await;
    let mut slow = connect(address).await;
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost").await.unwrap();
    let mut kept = connect(address).await;
    let mut one = async || {
        kept.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 4_096];
        let length = kept.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
    };
    one().await;
    // Drips a byte now and then, which does not help.
    let drip = async {
        let (mut reading, mut writing) = slow.split();
        let mut answer = Vec::new();
        tokio::select! {
            _ended = reading.read_to_end(&mut answer) => {}
            () = async { while writing.write_all(b"x").await.is_ok() { tokio::time::sleep(Duration::from_secs(1)).await } } => {}
        }
    };
    let mut nothing = Vec::new();
    let (_ended, ()) = tokio::join!(silent.read_to_end(&mut nothing), drip);
    assert_eq!(nothing, b"");
    assert!(begun.elapsed() > Duration::from_secs(9), "everybody has some time: {:?}", begun.elapsed());
    one().await;
    drop(api);
}
