//! The command line. Every argument has an environment variable; docs/OPERATIONS.md has the table.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use tributary_core::context::{Backend, EVENTS_QUEUE};
use tributary_core::domain::scopes::Scopes;
use tributary_core::ports::brands::KeyKind;
use tributary_core::ports::queue::{DeadPlace, MAX_DEAD_PAGE};
use tributary_core::services::keys::{MAX_KEY_DAYS, MAX_ROTATION_GRACE, hash};
use workers::http::Bounds;
use workers::settings::{OutboundArgs, QueueArgs, Secret, ServicesArgs, WorkerArgs};

use crate::demo::DEMO_BRAND;
use crate::inside::Monitor;
use crate::routes::settings::MAX_RATE_LIMIT;
use crate::state::Settings;

/// Characters that the monitor's key has at least.
const MIN_MONITOR_KEY: usize = 16;

/// Tributary: merges storefront events and Shopify webhooks into one profile for each customer.
///
/// Serves ingestion and Customer360 over HTTP. With --embedded everything runs in this process, in one data folder;
/// without it, the server needs DATABASE_URL and REDIS_URL, and `workers event` and `workers automation` process what it accepts.
#[derive(Debug, Parser)]
#[command(name = "server", version)]
pub struct Cli {
    /// What the server runs on; also says where an admin command works.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// A command instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the server runs on.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Run everything in this process, without PostgreSQL and Redis
    #[arg(long, env = "TRIBUTARY_EMBEDDED", value_parser = FalseyValueParser::new(), global = true)]
    pub embedded: bool,
    /// The data folder of --embedded
    #[arg(long, env = "TRIBUTARY_DATA", default_value = "data", global = true)]
    pub data: PathBuf,
    /// On the first start in an empty folder, create a brand and print its keys even without a terminal (--embedded)
    #[arg(long)]
    pub demo: bool,
    /// Where to listen
    #[arg(long, env = "TRIBUTARY_BIND", default_value = "127.0.0.1:3000")]
    pub bind: SocketAddr,
    /// Address of /metrics, /readyz and /api/monitoring, which concern all brands. Without it, --bind serves them to clients on this
    /// machine: set it if a reverse proxy runs on this machine
    #[arg(long, env = "TRIBUTARY_MONITOR_BIND")]
    pub monitor_bind: Option<SocketAddr>,
    /// Bearer token of at least 16 characters with which --bind serves these routes, too
    #[arg(long, env = "TRIBUTARY_MONITOR_KEY", hide_env_values = true)]
    pub monitor_key: Option<String>,
    /// A file that holds it
    #[arg(long, env = "TRIBUTARY_MONITOR_KEY_FILE")]
    pub monitor_key_file: Option<PathBuf>,
    /// Most events a second from one write key or shop to this process, unless the key has its own limit; 0 for no limit. An event of
    /// more than 2 KiB counts as several
    #[arg(long, env = "TRIBUTARY_SENDER_LIMIT", default_value_t = 10_000)]
    pub sender_limit: u32,
    /// Most open connections; by default half of the process' limit of open files, at most 10,000
    #[arg(long, env = "TRIBUTARY_MAX_CONNECTIONS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: Option<u16>,
    /// Most open connections from one address, also from a reverse proxy; by default three quarters of all
    #[arg(long, env = "TRIBUTARY_MAX_CONNECTIONS_PER_ADDRESS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections_per_address: Option<u16>,
    /// How long Customer360 answers are cached, in seconds
    #[arg(long, env = "TRIBUTARY_CACHE_TTL_S", default_value_t = 300)]
    pub cache_ttl_s: u64,
    /// Days until a new secret key expires, unless another time is given when it is created; 0 for never
    #[arg(long, env = "TRIBUTARY_API_KEY_DAYS", default_value_t = 0, global = true, value_parser = clap::value_parser!(u32).range(0..=MAX_KEY_DAYS as i64))]
    pub api_key_days: u32,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the struct says it")]
    pub services: ServicesArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the struct says it")]
    pub queue: QueueArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the struct says it")]
    pub worker: WorkerArgs,
    #[command(flatten)]
    #[expect(missing_docs, reason = "the struct says it")]
    pub outbound: OutboundArgs,
}

impl ServeArgs {
    /// The profile that was chosen.
    ///
    /// # Errors
    /// When neither is complete.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        if self.embedded {
            if self.services.names_services() {
                tracing::warn!(
                    "--embedded (TRIBUTARY_EMBEDDED) is set, so DATABASE_URL and REDIS_URL are not used: leave out one or the other"
                );
            }
            Ok(Backend::Embedded { data: self.data.clone() })
        } else {
            self.services.backend()
        }
    }

    /// Refuses to make a data folder where a command was meant for one that is there.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn refuse_missing_folder(&self) -> anyhow::Result<()> {
        if self.embedded && !self.data.join("store.db").exists() {
            bail!(
                "there is no data folder {}: say where it is with --data (TRIBUTARY_DATA). The server makes it at its first start",
                self.data.display()
            );
        }
        Ok(())
    }

    /// Where the data is, for people.
    pub fn place(&self) -> String {
        if self.embedded {
            let data = std::path::absolute(&self.data).unwrap_or_else(|_| self.data.clone());
            format!("embedded, data in {}", data.display())
        } else {
            "on PostgreSQL and Redis".to_owned()
        }
    }

    /// The settings of the routes.
    ///
    /// # Errors
    /// When the monitor's key cannot be read, or is too short.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let key = Secret {
            flag: "--monitor-key",
            variable: "TRIBUTARY_MONITOR_KEY",
            value: self.monitor_key.as_deref(),
            file: self.monitor_key_file.as_deref(),
        };
        let key = key.read()?;
        if key.as_ref().is_some_and(|key| key.len() < MIN_MONITOR_KEY) {
            bail!("--monitor-key (TRIBUTARY_MONITOR_KEY) has fewer than {MIN_MONITOR_KEY} characters");
        }
        Ok(Settings {
            monitor: Monitor { own_port: self.monitor_bind.is_some(), key: key.map(|key| hash(&key)) },
            sender_limit: NonZeroU32::new(self.sender_limit),
            cache_ttl: Duration::from_secs(self.cache_ttl_s.max(1)),
            alarms: self.queue.alarms(),
            connections: Bounds::of(
                self.max_connections.map(usize::from),
                self.max_connections_per_address.map(usize::from),
            ),
            key_days: self.key_days(),
        })
    }

    /// After how many days a new secret key ends, if any number is set.
    pub fn key_days(&self) -> Option<u32> {
        Some(self.api_key_days).filter(|days| *days > 0)
    }
}

/// A command instead of serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Brands, keys and shops
    #[command(subcommand)]
    Admin(Admin),
    /// Queues: statistics, dead letters, pause
    Queues(QueuesArgs),
    /// Import historical orders of a shop
    #[command(subcommand)]
    Import(Import),
    /// Copy the data of a running or stopped server into a new folder (--embedded)
    Backup {
        /// The folder; it must not exist yet
        folder: PathBuf,
    },
    /// Check everything the server needs, and say what is wrong and how to fix it
    Doctor,
    /// Send a running server the signed webhooks of one visitor, as in docs/WALKTHROUGH.md
    Demo(DemoArgs),
}

/// A visitor's part of the walkthrough.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Which part
    pub part: Part,
    /// The brand that gets the shop tributary-demo.myshopify.com
    #[arg(long, default_value = DEMO_BRAND)]
    pub brand: String,
    /// Where the server listens
    #[arg(long, default_value = "http://127.0.0.1:3000")]
    pub url: String,
}

/// What the visitor does at the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Add a mug to the cart cart-1, and start a checkout as ada@example.com
    Cart,
    /// Buy the cart
    Order,
    /// Refund the order
    Refund,
}

/// What can be imported.
#[derive(Debug, Subcommand)]
pub enum Import {
    /// Orders of a Shopify shop. An interrupted import continues where it stopped; a repeated one changes nothing
    ShopifyOrders {
        /// Shopify's order export (.csv), or one order of Shopify's API per line (.ndjson)
        file: PathBuf,
        /// The shop's domain; add it first with `server admin shop add`
        #[arg(long)]
        shop: String,
        /// Start at the beginning of the file, even if an earlier import was interrupted
        #[arg(long)]
        restart: bool,
    },
}

/// Looking after the queues.
#[derive(Debug, Args)]
pub struct QueuesArgs {
    /// Which queue
    #[arg(long, default_value = EVENTS_QUEUE, global = true)]
    pub name: String,
    /// What to do.
    #[command(subcommand)]
    pub command: QueuesCommand,
}

/// What can be done to a queue.
#[derive(Debug, Subcommand)]
pub enum QueuesCommand {
    /// Show the queue's counters, and its rates over two seconds
    Stats,
    /// Dead letters
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Pause the queue: workers fetch nothing until it is resumed, ingestion continues
    Pause,
    /// Resume a paused queue
    Resume,
    /// Find items that the queue protocol has lost track of, and repair them (workers do this every minute)
    Audit,
    /// Show the record of an idempotency key, for example shopify:SHOP:WEBHOOK_ID
    Claim {
        /// The key
        key: String,
    },
}

/// Commands on dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// List dead letters, newest first
    List {
        /// Cursor from the end of the previous page
        #[arg(long, value_parser = place)]
        after: Option<DeadPlace>,
        /// Most dead letters to list
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=MAX_DEAD_PAGE as i64))]
        limit: u8,
    },
    /// Show one dead letter with its body and history
    Show {
        /// Its id
        id: String,
    },
    /// Move dead letters back to pending, with their attempts and losses reset
    Retry(Chosen),
    /// Delete dead letters permanently
    Discard(Chosen),
}

fn scopes(text: &str) -> Result<Scopes, String> {
    let scopes = Scopes::parse(text)
        .map_err(|name| format!("there is no scope {name:?}; there are {}", Scopes::all()))?;
    if scopes.is_empty() { Err(format!("name at least one of {}", Scopes::all())) } else { Ok(scopes) }
}

fn place(text: &str) -> Result<DeadPlace, String> {
    DeadPlace::parse(text).ok_or_else(|| {
        "invalid cursor: it looks like 1768000000000-019b…, and the previous page ends with it".into()
    })
}

/// Which dead letters.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// Their ids
    pub ids: Vec<String>,
    /// All that are there
    #[arg(long)]
    pub all: bool,
}

/// What can be administered.
#[derive(Debug, Subcommand)]
pub enum Admin {
    /// Brands
    #[command(subcommand)]
    Brand(BrandCommand),
    /// API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Shops
    #[command(subcommand)]
    Shop(ShopCommand),
}

/// Commands on brands.
#[derive(Debug, Subcommand)]
pub enum BrandCommand {
    /// Add a brand
    Add {
        /// Its name
        name: String,
    },
    /// List brands
    List,
    /// Print a brand's settings as JSON
    Settings {
        /// Its name
        name: String,
    },
    /// Set the domains that a brand's e-mails may be sent from; without arguments, list them
    Domains {
        /// Its name
        name: String,
        /// For example shop.example: this domain only, no subdomains
        domains: Vec<String>,
        /// Remove all domains: then any domain is allowed while there is no other brand
        #[arg(long, conflicts_with = "domains")]
        clear: bool,
    },
    /// Change a brand's settings: fields left out keep their values, null restores the default
    Set {
        /// Its name
        name: String,
        /// The settings, as JSON, like {"default_country":"DE","limits":{"kinds":{"user_id":1}}}
        settings: String,
        /// Restore the default of each field that is left out
        #[arg(long)]
        all: bool,
    },
}

/// Commands on keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key and print it; it cannot be shown again
    Add {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// write: may send events; secret: may read customers
        #[arg(long)]
        kind: Kind,
        /// Scopes of a secret key: read, write, export, privacy, admin; all by default
        #[arg(long, value_parser = scopes)]
        scopes: Option<Scopes>,
        /// Most events or other requests a second to each server process
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_RATE_LIMIT as i64))]
        rate_limit: Option<u32>,
        /// Days until the key expires; never by default, or as --api-key-days says (secret keys)
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_KEY_DAYS as i64))]
        days: Option<u32>,
    },
    /// List a brand's keys: id, kind, created at, created by, last used, expires, limit per second, scopes
    List {
        /// The brand's name
        #[arg(long)]
        brand: String,
    },
    /// Create a key with the scopes of an old one and print it; the old one expires after a grace period
    Rotate {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The old key's id
        id: String,
        /// Seconds until the old key expires; at most a week
        #[arg(long, default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u32).range(0..=MAX_ROTATION_GRACE.as_secs() as i64))]
        grace_s: u32,
    },
    /// Revoke a key; servers accept it for at most 5 more seconds
    Revoke {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The key's id
        id: String,
        /// Also revoke every key created with it, directly or indirectly
        #[arg(long)]
        cascade: bool,
    },
    /// Limit the events or other requests a second of a key
    Limit {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The key's id
        id: String,
        /// Most events or other requests a second to each server process; by default as --sender-limit says
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_RATE_LIMIT as i64))]
        rate_limit: Option<u32>,
    },
}

/// The kinds of keys.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Kind {
    /// May send events
    Write,
    /// May read customers
    Secret,
}

impl From<Kind> for KeyKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Write => Self::Write,
            Kind::Secret => Self::Secret,
        }
    }
}

/// Commands on shops.
#[derive(Subcommand)]
pub enum ShopCommand {
    /// Add a shop, or rotate its secret; the old secret stays valid until the next rotation
    Add {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The shop's domain, example.myshopify.com
        #[arg(long)]
        domain: String,
        /// The app's client secret, with which Shopify signs webhooks; `-` reads it from standard input
        #[arg(long, env = "TRIBUTARY_SHOP_SECRET", hide_env_values = true)]
        secret: Option<String>,
        /// A file that holds it
        #[arg(long, env = "TRIBUTARY_SHOP_SECRET_FILE")]
        secret_file: Option<PathBuf>,
        /// This server's public URL, https://…
        #[arg(long, default_value = "https://YOUR-SERVER")]
        address: String,
    },
    /// List a brand's shops
    List {
        /// The brand's name
        #[arg(long)]
        brand: String,
    },
}

impl std::fmt::Debug for ShopCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Add { brand, domain, .. } => {
                f.debug_struct("Add").field("brand", brand).field("domain", domain).finish_non_exhaustive()
            }
            Self::List { brand } => f.debug_struct("List").field("brand", brand).finish(),
        }
    }
}
