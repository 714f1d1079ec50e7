//! Settings that several programs share: arguments with environment variables behind them, read once in `main`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::FalseyValueParser;
use tributary_core::adapters::outbound::Outbound;
use tributary_core::context::{Backend, KEY_SPACE, Layout};
use tributary_core::ports::queue::{MAX_FETCH, QueueSettings};

use tributary_core::services::automations::destinations::{DEFAULT_RATE, Destinations};
use tributary_core::services::automations::runs::Outside;
use tributary_core::services::health::Alarms;

use crate::lanes::Options;

/// How to reach PostgreSQL and Redis.
#[derive(Args)]
pub struct ServicesArgs {
    /// `postgres://user:password@host/database`
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub database_url: Option<String>,
    /// `redis://host:6379/0`, or `rediss://…` with TLS
    #[arg(long, env = "REDIS_URL", hide_env_values = true, global = true)]
    pub redis_url: Option<String>,
    /// What every key in Redis begins with
    #[arg(long, env = "TRIBUTARY_KEY_SPACE", default_value = KEY_SPACE, global = true)]
    pub key_space: String,
    /// How the queue lies in Redis; every process of one system must be given the same
    #[arg(long, value_enum, env = "TRIBUTARY_QUEUE", default_value_t = QueueKind::Lists, global = true)]
    pub queue: QueueKind,
    /// Most connections to PostgreSQL of this process
    #[arg(long, env = "TRIBUTARY_DATABASE_CONNECTIONS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=500))]
    pub database_connections: u32,
}

/// How the queue lies in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum QueueKind {
    /// Lists with leases
    Lists,
    /// Streams with a consumer group
    Streams,
}

impl From<QueueKind> for Layout {
    fn from(kind: QueueKind) -> Self {
        match kind {
            QueueKind::Lists => Self::Lists,
            QueueKind::Streams => Self::Streams,
        }
    }
}

/// The URLs may hold passwords: they are not shown.
impl std::fmt::Debug for ServicesArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServicesArgs").field("key_space", &self.key_space).finish_non_exhaustive()
    }
}

impl ServicesArgs {
    /// The services backend.
    ///
    /// # Errors
    /// When a URL is missing.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        let missing = |what, flag| {
            anyhow::anyhow!(
                "{what} is not set ({flag} does the same): without services, start the server with --embedded"
            )
        };
        Ok(Backend::Services {
            database_url: self
                .database_url
                .clone()
                .ok_or_else(|| missing("DATABASE_URL", "--database-url"))?,
            redis_url: self.redis_url.clone().ok_or_else(|| missing("REDIS_URL", "--redis-url"))?,
            key_space: self.key_space.clone(),
            connections: self.database_connections,
            layout: self.queue.into(),
        })
    }
}

/// How the events queue behaves. Every process of one system should be given the same.
#[derive(Args, Debug)]
pub struct QueueArgs {
    /// How long a worker may be silent before its items go to another, in milliseconds
    #[arg(long, env = "TRIBUTARY_LEASE_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    pub lease_ms: u64,
    /// How long a webhook's delivery is remembered, in seconds
    #[arg(long, env = "TRIBUTARY_CLAIM_TTL_S", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub claim_ttl_s: u64,
    /// Most events waiting, beyond which ingestion answers 503; 0 for no limit
    #[arg(long, env = "TRIBUTARY_MAX_DEPTH", default_value_t = 1_000_000)]
    pub max_depth: u64,
    /// Age of the oldest waiting event that turns health, in seconds
    #[arg(long, env = "TRIBUTARY_MAX_LAG_S", default_value_t = 60)]
    pub max_lag_s: u64,
    /// Dead letters that turn health; 0 for never
    #[arg(long, env = "TRIBUTARY_DEAD_ALARM", default_value_t = 1000)]
    pub dead_alarm: u64,
}

impl QueueArgs {
    /// The queue's settings.
    pub fn settings(&self) -> QueueSettings {
        QueueSettings {
            lease: Duration::from_millis(self.lease_ms),
            claim_ttl: Duration::from_secs(self.claim_ttl_s),
            max_depth: self.max_depth,
        }
    }

    /// What turns health.
    pub fn alarms(&self) -> Alarms {
        Alarms { max_lag: Duration::from_secs(self.max_lag_s), dead: self.dead_alarm }
    }
}

/// How events are worked off.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Batches worked off at once
    #[arg(long, env = "TRIBUTARY_CONCURRENCY", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// Most events a batch
    #[arg(long, env = "TRIBUTARY_BATCH", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=MAX_FETCH as i64))]
    pub batch: u16,
    /// How long a batch under way may go on after SIGTERM, in milliseconds
    #[arg(long, env = "TRIBUTARY_GRACE_MS", default_value_t = 10_000)]
    pub grace_ms: u64,
}

impl WorkerArgs {
    /// The loop's options.
    pub fn options(&self) -> Options {
        Options {
            concurrency: usize::from(self.concurrency),
            batch: usize::from(self.batch),
            grace: Duration::from_millis(self.grace_ms),
        }
    }
}

/// How automations reach the world outside.
#[derive(Args)]
pub struct OutsideArgs {
    /// The server that e-mails leave by: `smtps://user:password@host`, or `smtp://host:587?tls=required`
    #[arg(long, env = "TRIBUTARY_SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// Where customers reach this system, like `https://events.shop.example`: links to unsubscribe begin with it
    #[arg(long, env = "TRIBUTARY_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// Let automations post to private and local addresses
    #[arg(long, env = "TRIBUTARY_ALLOW_PRIVATE_DESTINATIONS", value_parser = FalseyValueParser::new())]
    pub allow_private_destinations: bool,
    /// Most posts and e-mails a second to one destination, for each process
    #[arg(long, env = "TRIBUTARY_DESTINATION_RATE", default_value_t = DEFAULT_RATE)]
    pub destination_rate: NonZeroU32,
}

/// The URL may hold a password: it is not shown.
impl std::fmt::Debug for OutsideArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutsideArgs").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

impl OutsideArgs {
    /// What carries parcels.
    ///
    /// # Errors
    /// When a URL cannot be read.
    pub fn outside(&self) -> anyhow::Result<Outside> {
        // Compose sets a variable that is not set to nothing.
        let set = |url: &Option<String>| url.clone().filter(|url| !url.is_empty());
        let courier = Outbound::new(set(&self.smtp_url).as_deref(), self.allow_private_destinations)?;
        Ok(Outside {
            courier: Arc::new(courier),
            destinations: Arc::new(Destinations::new(self.destination_rate)),
            public_url: set(&self.public_url),
        })
    }
}
