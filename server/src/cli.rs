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
use tributary_core::ports::queue::{DeadPlace, MAX_DEAD_PAGE};
use tributary_core::ports::tenants::KeyKind;
use tributary_core::services::tenants::{MAX_KEY_DAYS, MAX_ROTATION_GRACE, hash};
use workers::http::Bounds;
use workers::settings::{OutboundArgs, QueueArgs, Secret, ServicesArgs, WorkerArgs};

use crate::demo::DEMO_BRAND;
use crate::inside::Monitor;
use crate::routes::settings::MAX_RATE_LIMIT;
use crate::state::Settings;

/// Characters that the monitor's key has at least.
const MIN_MONITOR_KEY: usize = 16;

/// Tributary: many streams of events run into one profile for each customer.
///
/// Serves ingestion and Customer360 over HTTP. With --embedded everything runs in this process, in one data folder;
/// without, it takes DATABASE_URL and REDIS_URL, and `workers event` and `workers automation` work off what it takes in.
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
    /// On the first start of an empty folder, make a brand and print its keys also where no terminal is (--embedded)
    #[arg(long)]
    pub demo: bool,
    /// Where to listen
    #[arg(long, env = "TRIBUTARY_BIND", default_value = "127.0.0.1:3000")]
    pub bind: SocketAddr,
    /// Where to answer what concerns all brands (/metrics, /readyz, /api/monitoring). Without it, --bind answers that to whoever asks
    /// from this machine itself: give it where a reverse proxy stands there
    #[arg(long, env = "TRIBUTARY_MONITOR_BIND")]
    pub monitor_bind: Option<SocketAddr>,
    /// A key of at least 16 characters with which --bind answers that, too, as a Bearer token
    #[arg(long, env = "TRIBUTARY_MONITOR_KEY", hide_env_values = true)]
    pub monitor_key: Option<String>,
    /// A file that holds it
    #[arg(long, env = "TRIBUTARY_MONITOR_KEY_FILE")]
    pub monitor_key_file: Option<PathBuf>,
    /// Events a second that a write key, or a shop, may send to this process, unless its own limit is set; 0 for any number. An event of
    /// more than 2 KiB counts as several
    #[arg(long, env = "TRIBUTARY_SENDER_LIMIT", default_value_t = 10_000)]
    pub sender_limit: u32,
    /// Most connections at once; half of the open files that the process may have, unless given, at most 10,000
    #[arg(long, env = "TRIBUTARY_MAX_CONNECTIONS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections: Option<u16>,
    /// Most connections from one address, also a reverse proxy's; three quarters of all, unless given
    #[arg(long, env = "TRIBUTARY_MAX_CONNECTIONS_PER_ADDRESS", value_parser = clap::value_parser!(u16).range(1..))]
    pub max_connections_per_address: Option<u16>,
    /// How long Customer360 answers are cached, in seconds
    #[arg(long, env = "TRIBUTARY_CACHE_TTL_S", default_value_t = 300)]
    pub cache_ttl_s: u64,
    /// After how many days a new secret key ends, unless it is made with another time; 0 for never
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
    /// The queues: numbers, dead letters, pause
    Queues(QueuesArgs),
    /// Brings in what happened before Tributary did
    #[command(subcommand)]
    Import(Import),
    /// Copies the data of a running or stopped server into a new folder (--embedded)
    Backup {
        /// The folder, which must not be there yet
        folder: PathBuf,
    },
    /// Looks at everything that the server needs, and says what is wrong and how to mend it
    Doctor,
    /// Sends a running server what Shopify would send of a visitor, signed, as in docs/WALKTHROUGH.md
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
    /// Puts a mug into the cart cart-1, and begins a checkout as ada@example.com
    Cart,
    /// Buys what is in the cart
    Order,
    /// Gets the money back
    Refund,
}

/// What can be imported.
#[derive(Debug, Subcommand)]
pub enum Import {
    /// Orders of a Shopify shop. Stopped, it goes on where it was; run again, it changes nothing
    ShopifyOrders {
        /// Shopify's order export (.csv), or orders as the API gives them, one a line (.ndjson)
        file: PathBuf,
        /// The shop's domain; it must have been added
        #[arg(long)]
        shop: String,
        /// Begin at the beginning, also where an earlier run was stopped
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
    /// Shows the queue in numbers, with its rates over two seconds
    Stats,
    /// Dead letters
    #[command(subcommand)]
    Dead(DeadCommand),
    /// Lets nobody fetch until it is resumed; all else goes on
    Pause,
    /// Ends a pause
    Resume,
    /// Looks for items that no step of the protocol would find again, and repairs them (workers do each minute)
    Audit,
    /// Shows what is remembered of an idempotency key, for example shopify:SHOP:WEBHOOK_ID
    Claim {
        /// The key
        key: String,
    },
}

/// Commands on dead letters.
#[derive(Debug, Subcommand)]
pub enum DeadCommand {
    /// Lists them, newest first
    List {
        /// Those after this place, which the page before says
        #[arg(long, value_parser = place)]
        after: Option<DeadPlace>,
        /// At most so many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=MAX_DEAD_PAGE as i64))]
        limit: u8,
    },
    /// Shows one whole, with its history
    Show {
        /// Its id
        id: String,
    },
    /// Puts them back to pending, with attempts and losses forgiven
    Retry(Chosen),
    /// Discards them for good
    Discard(Chosen),
}

fn scopes(text: &str) -> Result<Scopes, String> {
    let scopes = Scopes::parse(text)
        .map_err(|name| format!("there is no scope {name:?}; there are {}", Scopes::all()))?;
    if scopes.is_empty() { Err(format!("name at least one of {}", Scopes::all())) } else { Ok(scopes) }
}

fn place(text: &str) -> Result<DeadPlace, String> {
    DeadPlace::parse(text)
        .ok_or_else(|| "a place looks like 1768000000000-019b…: the page before says it".into())
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
    /// Adds a brand
    Add {
        /// Its name
        name: String,
    },
    /// Lists brands
    List,
    /// Prints a brand's settings, as JSON
    Settings {
        /// Its name
        name: String,
    },
    /// Names the domains that a brand's e-mails may come from; without any, lists them
    Domains {
        /// Its name
        name: String,
        /// Like shop.example: this domain alone, none beneath it
        domains: Vec<String>,
        /// Names none any more: then any domain will do while there is no other brand
        #[arg(long, conflicts_with = "domains")]
        clear: bool,
    },
    /// Changes a brand's settings: what is left out stays, null gives the usual value
    Set {
        /// Its name
        name: String,
        /// The settings, as JSON, like {"default_country":"DE","limits":{"kinds":{"user_id":1}}}
        settings: String,
        /// Gives what is left out its usual value
        #[arg(long)]
        all: bool,
    },
}

/// Commands on keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Makes a key and prints it: it is not shown again
    Add {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// write: may send events; secret: may read customers
        #[arg(long)]
        kind: Kind,
        /// What a secret key may do, of read, write, export, privacy, admin; all, unless given
        #[arg(long, value_parser = scopes)]
        scopes: Option<Scopes>,
        /// Events a second that it may send, or other requests that it may make, for each server process
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_RATE_LIMIT as i64))]
        rate_limit: Option<u32>,
        /// After how many days it ends; never, unless given or set by --api-key-days (for secret keys)
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MAX_KEY_DAYS as i64))]
        days: Option<u32>,
    },
    /// Lists a brand's keys: id, kind, made, by which key, last used, ends, limit a second, scopes
    List {
        /// The brand's name
        #[arg(long)]
        brand: String,
    },
    /// Makes a key like an old one and prints it; the old one ends after a grace
    Rotate {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The old key's id
        id: String,
        /// How long the old one stays good, in seconds; a week at most
        #[arg(long, default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u32).range(0..=MAX_ROTATION_GRACE.as_secs() as i64))]
        grace_s: u32,
    },
    /// Ends a key: it works for 5 s at most
    Revoke {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The key's id
        id: String,
        /// Ends every key that it made, too, and those that these made
        #[arg(long)]
        cascade: bool,
    },
    /// Limits how many events or other requests a second a key may send
    Limit {
        /// The brand's name
        #[arg(long)]
        brand: String,
        /// The key's id
        id: String,
        /// Events or other requests a second, for each server process; as --sender-limit says, unless given
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
    /// Adds a shop, or gives it a new secret; the old one stays good until the next rotation
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
        /// The address at which Shopify reaches this server, https://…
        #[arg(long, default_value = "https://YOUR-SERVER")]
        address: String,
    },
    /// Lists a brand's shops
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
