//! A client for HTTP that costs as little as one can: blocking sockets, one request after the other on each, and answers
//! of a length that is known after the first.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections of one run, spread over [`THREADS`].
const CONNECTIONS: usize = 48;

/// Threads that drive them. While one waits for an answer the answers of its other connections come in.
const THREADS: usize = 2;

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its head, as it was sent.
    pub(crate) head: String,
    /// Its body.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// A header by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }

    fn bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Connection(TcpStream);

impl Connection {
    /// Connects.
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_mins(1)))?;
        Ok(Self(stream))
    }

    /// One request. `headers` are whole lines, each with its end.
    pub(crate) fn get(&mut self, path: &str, headers: &str) -> io::Result<Answer> {
        self.0.write_all(&request(path, headers))?;
        let mut bytes = Vec::new();
        let head_end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            self.read_some(&mut bytes)?;
        };
        let head = String::from_utf8(bytes[..head_end].to_vec()).map_err(io::Error::other)?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut answer = Answer { status, head, body: bytes[head_end..].to_vec() };
        let length: usize = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        while answer.body.len() < length {
            self.read_some(&mut answer.body)?;
        }
        Ok(answer)
    }

    fn read_some(&mut self, bytes: &mut Vec<u8>) -> io::Result<()> {
        let mut buffer = [0; 4_096];
        match self.0.read(&mut buffer)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                bytes.extend_from_slice(&buffer[..read]);
                Ok(())
            }
        }
    }
}

fn request(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n").into_bytes()
}

/// Asks for `paths` in turn on [`CONNECTIONS`] connections for `time`; answers per second. `headers` are those of each
/// path. Every answer must be as long as the first for that path and begin with the same status.
pub(crate) fn drive(address: SocketAddr, requests: &[(String, String)], status: u16, time: Duration) -> f64 {
    let (answers, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    let requests: Vec<(Vec<u8>, usize)> = requests
        .iter()
        .map(|(path, headers)| {
            let answer = Connection::open(address).unwrap().get(path, headers).unwrap();
            assert_eq!(answer.status, status, "{path}: {}", answer.head);
            (request(path, headers), answer.bytes())
        })
        .collect();
    let status = format!("HTTP/1.1 {status} ");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (requests, status, answers, stop) = (&requests, status.as_bytes(), &answers, &stop);
            scope.spawn(move || {
                let count = drive_thread(address, requests, thread, status, stop);
                answers.fetch_add(count, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    #[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are small")]
    let answers = answers.load(Ordering::Relaxed) as f64;
    answers / begun.elapsed().as_secs_f64()
}

fn drive_thread(
    address: SocketAddr,
    requests: &[(Vec<u8>, usize)],
    thread: usize,
    status: &[u8],
    stop: &AtomicBool,
) -> u64 {
    let mut connections: Vec<(Connection, usize)> =
        (0..CONNECTIONS / THREADS).map(|_| (Connection::open(address).unwrap(), 0)).collect();
    let mut next = thread * requests.len() / THREADS;
    let mut send = |connection: &mut Connection| {
        let (bytes, expected) = &requests[next % requests.len()];
        next += 1;
        connection.0.write_all(bytes).unwrap();
        *expected
    };
    for (connection, expected) in &mut connections {
        *expected = send(connection);
    }
    let mut buffer = vec![0; 16 * 1_024];
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for (connection, expected) in &mut connections {
            connection.0.read_exact(&mut buffer[..*expected]).unwrap();
            assert!(buffer.starts_with(status), "{}", String::from_utf8_lossy(&buffer[..*expected]));
            count += 1;
            *expected = send(connection);
        }
    }
    count
}
