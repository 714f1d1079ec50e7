//! The connections to Redis: one shared and multiplexed for commands, and one apart for the command that blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    RedisResult, Script, ServerErrorKind, Value,
};

use crate::adapters::in_time;

/// How long a connection may take to come up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long an answer may take. The crate's own 500 ms is less than a slow disk may need for `appendfsync always`.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a close waits for answers.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries to reconnect that one command waits for, each after twice the wait of the one before (with jitter, from 100 ms).
/// Few, so that an outage is answered soon: whoever can wait - a worker - waits longer from try to try itself.
const RECONNECT_TRIES: usize = 2;
/// The longest wait between two of them.
const RECONNECT_CAP: Duration = Duration::from_secs(2);

/// How long what was sent may stay unacknowledged before the connection is given up: a peer that vanished says nothing.
/// Linux alone can be told.
#[cfg(target_os = "linux")]
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// Lets the system notice a peer that vanished without a word, instead of after its usual quarter of an hour.
fn with_timeouts(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info.tcp_settings().clone().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let settings = settings.set_user_timeout(PEER_TIMEOUT);
    // What `CLIENT LIST` shows of each connection, also of those that come up again.
    let named = info.redis_settings().clone().set_lib_name("tributary", env!("CARGO_PKG_VERSION"));
    info.set_redis_settings(named).set_tcp_settings(settings)
}

/// Why Tributary does not start on a Redis.
#[derive(Debug, thiserror::Error)]
pub enum RedisStartError {
    /// It cannot be reached.
    #[error("Redis cannot be reached: {0}")]
    Unavailable(#[from] RedisError),
    /// It cannot be reached at the start.
    #[error("Redis at {address} cannot be reached: {error}")]
    NoAnswer { address: String, error: RedisError },
    /// It may throw the queue away when memory is short.
    #[error(
        "Redis has maxmemory-policy {0}, which may evict the queue: events would be lost. Set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)."
    )]
    Evicts(String),
    /// Its items would never be fetched.
    #[error(
        "the queue holds items on {holds}, and this process was asked for {asked}: run workers with --queue {holds} until it is empty, then change over"
    )]
    OtherLayout {
        /// What was asked for.
        asked: &'static str,
        holds: &'static str,
    },
}

/// A shared connection to one Redis. Clones share it. It reconnects by itself, with exponential backoff.
#[derive(Clone)]
pub struct RedisClient {
    client: Client,
    shared: ConnectionManager,
    /// What every key begins with.
    space: String,
    /// The bytes that Redis may use; 0 for any.
    max_memory: u64,
    /// Nothing more is to be begun.
    closed: Arc<AtomicBool>,
}

/// How the shared connection comes about, and comes about again.
fn manager() -> ConnectionManagerConfig {
    ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_max_delay(RECONNECT_CAP)
        .set_number_of_retries(RECONNECT_TRIES)
}

impl RedisClient {
    /// Connects to `url`; every key will begin with `space`.
    ///
    /// # Errors
    /// When Redis does not answer, or is set up to evict.
    pub async fn connect(url: &str, space: &str) -> Result<Self, RedisStartError> {
        let client = Client::open(with_timeouts(url.into_connection_info()?))?;
        let address = client.get_connection_info().addr().to_string();
        let shared = client.get_connection_manager_with_config(manager()).await;
        let shared = shared.map_err(|error| RedisStartError::NoAnswer { address, error })?;
        let mut this =
            Self { client, shared, space: space.to_owned(), max_memory: 0, closed: Arc::default() };
        this.max_memory = this.memory().await?;
        this.warn_of_weak_durability().await;
        Ok(this)
    }

    /// For commands that may not need Redis at all: connects when something first does. Nothing is known of its memory then.
    ///
    /// # Errors
    /// When the URL cannot be read.
    pub fn lazily(url: &str, space: &str) -> Result<Self, RedisStartError> {
        let client = Client::open(with_timeouts(url.into_connection_info()?))?;
        let shared = client.get_connection_manager_lazy(manager())?;
        Ok(Self { client, shared, space: space.to_owned(), max_memory: 0, closed: Arc::default() })
    }

    /// What every key begins with.
    pub fn space(&self) -> &str {
        &self.space
    }

    /// The bytes that Redis may use, as it said when this client connected; 0 for any.
    pub fn max_memory(&self) -> u64 {
        self.max_memory
    }

    pub fn shared(&self) -> ConnectionManager {
        self.shared.clone()
    }

    /// A new connection for a command that blocks: without a time limit for the answer, so that the client never gives up
    /// on a command that the server still carries out.
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self) -> RedisResult<MultiplexedConnection> {
        self.refuse_if_closed()?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(None);
        self.client.get_multiplexed_async_connection_with_config(&config).await
    }

    /// Whether Redis answers.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> RedisResult<()> {
        Cmd::new().arg("PING").exec_async(&mut self.shared()).await
    }

    /// Begins nothing more, and returns when what was sent before is answered, or after 2 s. The connections
    /// close with the last clone.
    pub async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Answers come in the order of the requests: this one's comes last.
        let _ = in_time(CLOSE_TIMEOUT, self.ping()).await;
    }

    fn refuse_if_closed(&self) -> RedisResult<()> {
        match self.closed.load(Ordering::SeqCst) {
            true => Err(RedisError::from((ErrorKind::Client, "this client was closed"))),
            false => Ok(()),
        }
    }

    /// Runs `script`, loading it first where Redis does not have it (after a restart, or SCRIPT FLUSH).
    ///
    /// # Errors
    /// Redis' own.
    pub async fn run(
        &self,
        script: &Script,
        keys: &[String],
        args: impl FnOnce(&mut Cmd),
    ) -> RedisResult<Value> {
        self.refuse_if_closed()?;
        let mut command = Cmd::new();
        command.arg("EVALSHA").arg(script.get_hash()).arg(keys.len()).arg(keys);
        args(&mut command);
        let mut connection = self.shared();
        match command.query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                script.load_async(&mut connection).await?;
                command.query_async(&mut connection).await
            }
            answer => answer,
        }
    }

    /// The bytes that Redis may use; refuses one that is set up to evict.
    async fn memory(&self) -> Result<u64, RedisStartError> {
        let info: String = Cmd::new().arg("INFO").arg("memory").query_async(&mut self.shared()).await?;
        let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        match field("maxmemory_policy:") {
            Some(policy) if policy != "noeviction" => Err(RedisStartError::Evicts(policy.into())),
            _ => Ok(field("maxmemory:").and_then(|bytes| bytes.parse().ok()).unwrap_or_default()),
        }
    }

    async fn warn_of_weak_durability(&self) {
        // Hosted Redis may forbid CONFIG; then its operator knows.
        let answer: RedisResult<Vec<String>> =
            redis::cmd("CONFIG").arg("GET").arg("append*").query_async(&mut self.shared()).await;
        let Ok(pairs) = answer else { return };
        let value =
            |name: &str| pairs.chunks(2).find(|p| p[0] == name).map(|p| p[1].clone()).unwrap_or_default();
        let (on, fsync) = (value("appendonly"), value("appendfsync"));
        if on != "yes" || fsync != "always" {
            tracing::warn!(
                appendonly = on,
                appendfsync = fsync,
                "this Redis may forget accepted events in a power cut; with appendonly yes and appendfsync always it does not"
            );
        }
    }
}
