//! Connections: accepting them, ending those that only hold a place, and the drain.
//!
//! Written on hyper itself, since `axum::serve` sets no limit to heads and to clients that say nothing. A timer for each
//! head would cost a tenth of a cached read; here each connection has one that looks every [`TICK`] at what has happened
//! since.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::edge::{Answering, Edge};
use crate::shutdown::Shutdown;

/// Connections at once; more wait to be accepted. Idle ones cost some 10 KiB each.
const CONNECTIONS_MAX: usize = 10_000;

/// Request line and headers; beyond it the answer is 431.
const HEAD_BYTES_MAX: usize = 32 * 1024;

/// Header fields of a request.
const HEADERS_MAX: usize = 64;

/// How often a connection looks at itself.
const TICK: Duration = Duration::from_secs(5);

/// Ticks for the first request to arrive whole, and for the rest of one that began: 10 to 15 seconds.
const TICKS_FOR_A_HEAD: u32 = 3;

/// Ticks between two requests: 75 to 80 seconds, more than the usual 60 of a proxy, which should be the one to close.
const TICKS_IDLE: u32 = 16;

/// Serves until the shutdown was asked for and every connection has ended.
pub(super) async fn serve(listener: TcpListener, edge: Edge, shutdown: Shutdown) {
    let builder = Arc::new(builder());
    let (connections, places) = (TaskTracker::new(), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
    let drain = Drain::default();
    while let Some((stream, peer)) = shutdown.token().run_until_cancelled(accept(&listener)).await {
        let Some(Ok(place)) = shutdown.token().run_until_cancelled(Arc::clone(&places).acquire_owned()).await else {
            break;
        };
        // Small answers must not wait for an acknowledgement (Nagle).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY was refused");
        }
        let (builder, edge, drain) = (Arc::clone(&builder), edge.for_peer(peer.ip()), drain.clone());
        connections.spawn(async move {
            connection(&builder, stream, edge, &drain).await;
            drop(place);
        });
    }
    drop(listener);
    drain.begin();
    connections.close();
    connections.wait().await;
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(HEAD_BYTES_MAX).max_headers(HEADERS_MAX);
    builder.http2().max_header_list_size(u32::try_from(HEAD_BYTES_MAX).expect("32 KiB")).max_concurrent_streams(128);
    builder
}

async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The connection's own fault: the next one may be well.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionAborted
                        | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                // Most likely no file descriptors are left; some are as soon as connections end.
                tracing::error!(%error, "connections cannot be accepted; trying again in a second");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Tells every connection to end. The flag is what they look at, the token what wakes them.
#[derive(Debug, Clone, Default)]
struct Drain {
    is_on: Arc<AtomicBool>,
    wake: CancellationToken,
}

impl Drain {
    fn begin(&self) {
        self.is_on.store(true, Ordering::Release);
        self.wake.cancel();
    }
}

async fn connection(builder: &Builder<TokioExecutor>, stream: TcpStream, edge: Edge, drain: &Drain) {
    let pulse = Arc::new(Pulse::default());
    let io = TokioIo::new(Watched { stream, pulse: Arc::clone(&pulse) });
    let served = builder.serve_connection(io, Watcher { edge, pulse: Arc::clone(&pulse) });
    let (mut served, mut wake) = (pin!(served), pin!(drain.wake.cancelled()));
    let mut alarm = pin!(tokio::time::sleep(TICK));
    let mut idleness = Idleness::default();
    let (mut is_draining, mut is_listening) = (false, false);
    std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = served.as_mut().poll(cx) {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke off");
                }
                return Poll::Ready(());
            }
            // The waker stays the same, so what would wake us is polled once and not with every read.
            if !is_draining && drain.is_on.load(Ordering::Acquire) {
                is_draining = true;
                served.as_mut().graceful_shutdown();
                continue;
            }
            if !is_listening {
                is_listening = true;
                if wake.as_mut().poll(cx).is_ready() {
                    continue;
                }
            }
            if alarm.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            alarm.as_mut().reset(tokio::time::Instant::now() + TICK);
            match idleness.tick(&pulse) {
                Advice::GoOn => {}
                Advice::Close => served.as_mut().graceful_shutdown(),
                Advice::Drop => return Poll::Ready(()),
            }
        }
    })
    .await;
}

/// What happens on a connection, counted; wrapping does no harm.
#[derive(Debug, Default)]
struct Pulse {
    under_way: AtomicU32,
    requests: AtomicU32,
    reads: AtomicU32,
    /// [`Pulse::reads`] when the last request had arrived.
    reads_at_request: AtomicU32,
}

/// Counts requests.
struct Watcher {
    edge: Edge,
    pulse: Arc<Pulse>,
}

impl hyper::service::Service<hyper::Request<Incoming>> for Watcher {
    type Response = hyper::Response<axum::body::Body>;
    type Error = std::convert::Infallible;
    type Future = UnderWay;

    fn call(&self, request: hyper::Request<Incoming>) -> UnderWay {
        let pulse = &self.pulse;
        pulse.requests.fetch_add(1, Ordering::Relaxed);
        pulse.reads_at_request.store(pulse.reads.load(Ordering::Relaxed), Ordering::Relaxed);
        pulse.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay { answering: self.edge.answer(request), pulse: Arc::clone(pulse) }
    }
}

/// A request that counts as under way until it is answered or given up.
struct UnderWay {
    answering: Answering,
    pulse: Arc<Pulse>,
}

impl Future for UnderWay {
    type Output = <Answering as Future>::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answering).poll(cx)
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.pulse.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What to do with a connection.
#[derive(Debug, PartialEq, Eq)]
enum Advice {
    GoOn,
    /// Let it end, saying so where the protocol has words for it.
    Close,
    /// It was told and did not.
    Drop,
}

/// For how many ticks nothing has come of a connection.
#[derive(Debug, Default)]
struct Idleness {
    requests: u32,
    idle: u32,
    in_a_head: u32,
    was_told: bool,
}

impl Idleness {
    fn tick(&mut self, pulse: &Pulse) -> Advice {
        let requests = pulse.requests.load(Ordering::Relaxed);
        // A handler has its own limit of time.
        if requests != self.requests || pulse.under_way.load(Ordering::Relaxed) > 0 {
            *self = Self { requests, ..Self::default() };
            return Advice::GoOn;
        }
        let has_begun = pulse.reads.load(Ordering::Relaxed) != pulse.reads_at_request.load(Ordering::Relaxed);
        self.idle += 1;
        self.in_a_head += u32::from(has_begun || requests == 0);
        if self.idle < TICKS_IDLE && self.in_a_head < TICKS_FOR_A_HEAD {
            return Advice::GoOn;
        }
        if std::mem::replace(&mut self.was_told, true) { Advice::Drop } else { Advice::Close }
    }
}

/// A stream whose reads are counted.
struct Watched {
    stream: TcpStream,
    pulse: Arc<Pulse>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        if into.filled().len() > before {
            self.pulse.reads.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The advice after each of so many ticks in which nothing happened.
    fn advice(idleness: &mut Idleness, pulse: &Pulse, ticks: u32) -> Vec<Advice> {
        (0..ticks).map(|_| idleness.tick(pulse)).filter(|advice| *advice != Advice::GoOn).collect()
    }

    fn count(counter: &AtomicU32) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn a_head_has_to_arrive_and_an_idle_connection_may_stay_longer() {
        let (mut idleness, pulse) = (Idleness::default(), Pulse::default());
        assert_eq!(advice(&mut idleness, &pulse, TICKS_FOR_A_HEAD), [Advice::Close], "it never said anything");

        let mut idleness = Idleness::default();
        count(&pulse.reads);
        count(&pulse.requests);
        pulse.reads_at_request.store(1, Ordering::Relaxed);
        assert_eq!(advice(&mut idleness, &pulse, TICKS_IDLE), [], "a request was answered before the first tick");
        assert_eq!(advice(&mut idleness, &pulse, 2), [Advice::Close, Advice::Drop], "that was long enough");

        let mut idleness = Idleness::default();
        advice(&mut idleness, &pulse, 1);
        count(&pulse.reads);
        assert_eq!(advice(&mut idleness, &pulse, TICKS_FOR_A_HEAD), [Advice::Close], "half a head");
    }

    #[test]
    fn what_works_is_left_alone() {
        let (mut idleness, pulse) = (Idleness::default(), Pulse::default());
        count(&pulse.requests);
        count(&pulse.under_way);
        assert_eq!(advice(&mut idleness, &pulse, 100), [], "a long-poll");
        pulse.under_way.store(0, Ordering::Relaxed);
        for _ in 0..100 {
            count(&pulse.requests);
            assert_eq!(advice(&mut idleness, &pulse, 1), []);
        }
    }
}
