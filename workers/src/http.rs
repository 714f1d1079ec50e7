//! How every process of Tributary serves HTTP: with an end for each connection that only waits, and a bound of them, so that nobody
//! who opens connections keeps others out.
//!
//! A connection that has no request under way may be given up for a new one, the longest waiting first. So the bounds cost who
//! floods, also where all clients have one address, because a reverse proxy stands before the server.

#![cfg_attr(
    not(test),
    expect(
        clippy::disallowed_methods,
        reason = "a socket's other end is another machine, which goes by its own time"
    )
)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{ConnectInfo, Request};
use axum::response::Response;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a client may take for a request's headers: from connecting, or from the first byte after the answer before.
pub const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stay without a request after one was answered; a proxy should give its own up earlier.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one request may take in all, until the last byte of its answer was fetched.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// How often at least a connection looks whether its time is over.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long nobody is let in when the system has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most connections, unless set, where the descriptors allow it.
pub const MAX_CONNECTIONS: usize = 10_000;
/// The descriptors that a process may open where the system does not say.
const USUAL_DESCRIPTORS: usize = 1024;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections: usize,
    pub by_address: usize,
}

impl Bounds {
    /// Half of the descriptors that this process may open, at most [`MAX_CONNECTIONS`]; three quarters of that by address, so that
    /// a proxy may have nearly all, and nobody all.
    pub fn usual() -> Self {
        Self::of(None, None)
    }

    /// What is set; else the usual, by address of the number in all.
    pub fn of(connections: Option<usize>, by_address: Option<usize>) -> Self {
        let connections = connections.unwrap_or_else(|| (descriptors() / 2).clamp(1, MAX_CONNECTIONS));
        let by_address = by_address.unwrap_or_else(|| (connections / 4 * 3).max(1)).min(connections);
        Self { connections, by_address }
    }
}

/// How many descriptors this process may open, as Linux says it.
fn descriptors() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|rest| rest.split_whitespace().next());
    match soft {
        Some("unlimited") => usize::MAX,
        soft => soft.and_then(|soft| soft.parse().ok()).unwrap_or(USUAL_DESCRIPTORS),
    }
}

/// Serves `routes` until `stop`; requests under way are answered first, within `grace`.
///
/// # Errors
/// None at present: what fails in accepting is tried again.
pub async fn serve(
    listener: TcpListener,
    routes: Router,
    bounds: Bounds,
    stop: CancellationToken,
    grace: Duration,
) -> std::io::Result<()> {
    let open = Arc::new(Open::new(bounds));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let Some(place) = open.place(peer.ip()) else { continue };
                    tasks.spawn(drive(socket, peer, routes.clone(), place, stop.clone()));
                }
                // One that has gone again, or no descriptor left: connections that wait come to their end.
                Err(error) => {
                    tracing::debug!(%error, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    // What is still under way afterwards is dropped with the set.
    let _ = timeout(grace, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// One connection, until its client leaves, its time is over, or its place goes to another.
async fn drive(socket: TcpStream, peer: SocketAddr, routes: Router, place: Place, stop: CancellationToken) {
    // Answers are small: waiting to fill a packet only delays them.
    let _ = socket.set_nodelay(true);
    let waits = place.waits.clone();
    let service = service_fn(|request: hyper::Request<Incoming>| {
        let busy = waits.begin();
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        let answer = routes.clone().oneshot(request);
        async move {
            let answer = answer.await?;
            Ok::<Response, Infallible>(answer.map(|body| Body::new(Answer { body, _busy: busy })))
        }
    });
    let socket = TokioIo::new(Heard { socket, waits: waits.clone() });
    let connection = http1::Builder::new().serve_connection(socket, service);
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        let look = waits.end().min(Instant::now() + LOOK_EVERY);
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended");
                }
                return;
            }
            () = waits.given_up.cancelled() => return,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(look) => if Instant::now() >= waits.end() { return },
        }
    }
}

/// The connections that are open.
struct Open {
    bounds: Bounds,
    next: AtomicU64,
    all: Mutex<HashMap<u64, (IpAddr, Arc<Waits>)>>,
}

impl Open {
    fn new(bounds: Bounds) -> Self {
        Self { bounds, next: AtomicU64::default(), all: Mutex::default() }
    }

    /// A place for a new connection: a free one, or that of the one that has waited longest without a request. `None` where all have
    /// requests under way.
    fn place(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let mut all = locked(&self.all);
        let of_address = all.values().filter(|(address, _)| *address == from).count();
        let narrow = of_address >= self.bounds.by_address;
        if narrow || all.len() >= self.bounds.connections {
            metrics::counter!("tributary_connections_over_bound_total").increment(1);
            let waiting = all
                .iter()
                .filter(|(_, (address, _))| !narrow || *address == from)
                .filter_map(|(id, (_, waits))| Some((waits.waiting_since()?, *id)))
                .min()?;
            // Its place is free at once; its socket is closed as soon as its task runs.
            let (_, waits) = all.remove(&waiting.1)?;
            waits.given_up.cancel();
        }
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let waits = Arc::new(Waits::new());
        all.insert(id, (from, waits.clone()));
        Some(Place { open: self.clone(), id, waits })
    }
}

/// A connection's place, which is free again when it is dropped.
struct Place {
    open: Arc<Open>,
    id: u64,
    waits: Arc<Waits>,
}

impl Drop for Place {
    fn drop(&mut self) {
        locked(&self.open.all).remove(&self.id);
    }
}

/// What a connection waits for, and since when.
struct Waits {
    state: Mutex<(For, Instant)>,
    given_up: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Headers,
    Answer,
    NextRequest,
}

impl Waits {
    fn new() -> Self {
        Self { state: Mutex::new((For::Headers, Instant::now())), given_up: CancellationToken::new() }
    }

    /// A request begins; it ends when the answer is dropped.
    fn begin(self: &Arc<Self>) -> Busy {
        *locked(&self.state) = (For::Answer, Instant::now());
        Busy(self.clone())
    }

    /// The client has sent something: between requests, that is the beginning of the next one.
    fn heard(&self) {
        let mut state = locked(&self.state);
        if state.0 == For::NextRequest {
            *state = (For::Headers, Instant::now());
        }
    }

    /// When the connection ends, unless something happens.
    fn end(&self) -> Instant {
        let (what, since) = *locked(&self.state);
        since
            + match what {
                For::Headers => HEADER_TIMEOUT,
                For::Answer => REQUEST_TIMEOUT,
                For::NextRequest => IDLE_TIMEOUT,
            }
    }

    /// Since when it has had no request under way; `None` while it has.
    fn waiting_since(&self) -> Option<Instant> {
        let (what, since) = *locked(&self.state);
        (what != For::Answer).then_some(since)
    }
}

/// A connection's socket, which says when something comes.
struct Heard {
    socket: TcpStream,
    waits: Arc<Waits>,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.waits.heard();
        }
        read
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

/// A request that is under way.
struct Busy(Arc<Waits>);

impl Drop for Busy {
    fn drop(&mut self) {
        *locked(&self.0.state) = (For::NextRequest, Instant::now());
    }
}

/// An answer's body: the request is under way until it is written.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn started(bounds: Bounds) -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let routes = Router::new().route("/", get(async || "here"));
        tokio::spawn(serve(listener, routes, bounds, stop.clone(), Duration::from_secs(1)));
        (address, stop)
    }

    async fn half(to: SocketAddr) -> TcpStream {
        let mut socket = TcpStream::connect(to).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        socket
    }

    async fn asked(to: SocketAddr) -> String {
        let mut socket = half(to).await;
        socket.write_all(b"Connection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn half_a_header_keeps_nobody_out_and_ends() {
        let (address, stop) = started(Bounds { connections: 20, by_address: 20 }).await;
        let mut waiting = Vec::new();
        for _ in 0..40 {
            waiting.push(half(address).await);
        }
        // Also on a connection that has had a request before.
        let mut again = half(address).await;
        again.write_all(b"\r\n").await.unwrap();
        assert!(again.read(&mut [0; 1024]).await.unwrap() > 0);
        again.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n").await.unwrap();
        waiting.push(again);
        assert!(asked(address).await.ends_with("here"), "a stranger is answered while all places wait");
        // All end by themselves: those that gave their place up at once, the others after their time.
        let began = Instant::now();
        for mut socket in waiting {
            let mut rest = Vec::new();
            let read = timeout(HEADER_TIMEOUT * 2, socket.read_to_end(&mut rest)).await;
            assert!(read.is_ok(), "a connection stays open for ever");
        }
        assert!(began.elapsed() < HEADER_TIMEOUT + Duration::from_secs(5));
        stop.cancel();
    }

    #[tokio::test]
    async fn one_address_cannot_have_every_place() {
        let open = Arc::new(Open::new(Bounds { connections: 10, by_address: 6 }));
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut places: Vec<Place> = (0..8).filter_map(|_| open.place(one)).collect();
        assert_eq!(locked(&open.all).len(), 6, "the seventh takes the place of the first");
        assert!(places[0].waits.given_up.is_cancelled() && !places[2].waits.given_up.is_cancelled());
        // Where all have requests under way, a new one waits outside; another address still comes in.
        let busy: Vec<Busy> = places.iter().map(|place| place.waits.begin()).collect();
        assert!(open.place(one).is_none());
        assert!(open.place(other).is_some());
        drop(busy);
        places.clear();
        assert_eq!(locked(&open.all).len(), 0);
    }
}
