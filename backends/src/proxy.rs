//! A small TCP proxy that misbehaves on request: it cuts a connection after so many bytes of answers, or lets nothing
//! through at all.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes read at once.
const BUFFER: usize = 16 * 1024;
/// No cut is set.
const NEVER: i64 = i64::MAX;

/// A proxy on a port of its own. Dropping it closes every connection.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    /// Bytes of answers until the next cut; [`NEVER`] for no cut.
    until_cut: AtomicI64,
    cuts: AtomicUsize,
    /// Changed to close every connection that is open.
    sever: watch::Sender<u64>,
    closed: AtomicBool,
}

impl Proxy {
    /// Forwards to `target`.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn to(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            until_cut: AtomicI64::new(NEVER),
            cuts: AtomicUsize::new(0),
            sever: watch::Sender::new(0),
            closed: AtomicBool::new(false),
        });
        let accepting = tokio::spawn(accept(listener, target, shared.clone()));
        Ok(Self { port, shared, accepting })
    }

    /// The port to connect to, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts the connection that carries it after `bytes` more bytes of answers, once; the rest of that answer is lost.
    pub fn cut_answers_after(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(NEVER);
        self.shared.until_cut.store(bytes, Ordering::SeqCst);
    }

    /// Takes a cut back that has not come yet; answers how many have come so far.
    pub fn mend(&self) -> usize {
        self.shared.until_cut.store(NEVER, Ordering::SeqCst);
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Closes every connection that is open, and each that comes, until it is opened again.
    pub fn close(&self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.sever();
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.shared.closed.store(false, Ordering::SeqCst);
    }

    /// Closes every connection that is open.
    pub fn sever(&self) {
        self.shared.sever.send_modify(|times| *times += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.sever();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        if shared.closed.load(Ordering::SeqCst) {
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            let mut severed = shared.sever.subscribe();
            let Ok(server) = TcpStream::connect(target).await else { return };
            tokio::select! {
                () = forward(client, server, &shared) => {}
                _ = severed.changed() => {}
            }
        });
    }
}

/// Forwards both ways until one side ends or a cut comes; both sockets close then.
async fn forward(client: TcpStream, server: TcpStream, shared: &Shared) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let answers = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let count = match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            let passes = shared.pass(count);
            if to_client.write_all(&buffer[..passes]).await.is_err() || passes < count {
                return;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

impl Shared {
    /// How many of so many bytes go through before the cut.
    fn pass(&self, count: usize) -> usize {
        let left = self.until_cut.load(Ordering::SeqCst);
        let wanted = i64::try_from(count).unwrap_or(NEVER);
        if left == NEVER {
            return count;
        }
        if left >= wanted {
            self.until_cut.fetch_sub(wanted, Ordering::SeqCst);
            return count;
        }
        self.until_cut.store(NEVER, Ordering::SeqCst);
        self.cuts.fetch_add(1, Ordering::SeqCst);
        usize::try_from(left).unwrap_or_default()
    }
}
