//! Settings that several programs share: arguments with environment variables behind them, read once in `main`.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use clap::builder::FalseyValueParser;
use tributary_core::adapters::outbound::OutboundSender;
use tributary_core::adapters::outbound::smtp::refuse_plain_password;
use tributary_core::context::{Backend, KEY_SPACE, Layout};
use tributary_core::domain::addresses::Reach;
use tributary_core::ports::queue::{MAX_FETCH, QueueSettings};
use tributary_core::ports::world::World;

use tributary_core::services::automations::destinations::{DEFAULT_RATE, Destinations};
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::health::Alarms;
use tributary_core::services::seal::{SecretKey, SecretKeys};

use crate::lanes::Options;

/// A setting that is a secret. Everybody on the machine can read a process' arguments, so there is a file for each: what mounts
/// secrets as files (compose, Kubernetes, systemd) needs neither arguments nor the environment.
#[derive(Clone, Copy)]
pub struct Secret<'a> {
    pub flag: &'static str,
    pub variable: &'static str,
    /// The secret itself; `-` for a line of standard input.
    pub value: Option<&'a str>,
    /// The file that holds it.
    pub file: Option<&'a Path>,
}

impl Secret<'_> {
    /// The secret; `None` where neither is given. What is empty is not given: compose sets what is not set to nothing.
    ///
    /// # Errors
    /// When both are given, or the file cannot be read or is empty.
    pub fn read(&self) -> anyhow::Result<Option<String>> {
        let Self { flag, variable, .. } = self;
        let file = self.file.filter(|path| !path.as_os_str().is_empty());
        match (self.value.filter(|value| !value.is_empty()), file) {
            (Some(_), Some(_)) => {
                bail!(
                    "{flag} ({variable}) and {flag}-file ({variable}_FILE) are both given: name one of them"
                )
            }
            (Some("-"), None) => {
                let mut line = String::new();
                std::io::stdin().read_line(&mut line).with_context(|| format!("{flag} -: standard input"))?;
                Self::some(line, || format!("{flag} -: standard input is empty"))
            }
            (Some(value), None) => {
                if self.is_argument(value) && tells(value) {
                    let warning = format!(
                        "warning: whoever is on this machine can read what follows {flag} while the process runs; give it by \
                         {flag}-file, {flag} - (standard input) or {variable}"
                    );
                    // Whether anybody reads it or not, the process goes on.
                    let _ = writeln!(std::io::stderr(), "{warning}");
                }
                Ok(Some(value.to_owned()))
            }
            (None, Some(path)) => {
                let what_failed = || format!("{flag}-file ({variable}_FILE): {}", path.display());
                let text = std::fs::read_to_string(path).with_context(what_failed)?;
                Self::some(text, || format!("{} is empty", what_failed()))
            }
            (None, None) => Ok(None),
        }
    }

    /// Whether the value stands in the arguments, not in the environment.
    fn is_argument(&self, value: &str) -> bool {
        std::env::var_os(self.variable).is_none_or(|held| held != value)
    }

    fn some(text: String, empty: impl Fn() -> String) -> anyhow::Result<Option<String>> {
        let text = text.trim();
        if text.is_empty() { Err(anyhow!(empty())) } else { Ok(Some(text.to_owned())) }
    }
}

/// Whether whoever reads it learns something: an address without a password says nothing.
fn tells(value: &str) -> bool {
    url::Url::parse(value).map_or(true, |url| url.cannot_be_a_base() || url.password().is_some())
}

/// How to reach PostgreSQL and Redis.
#[derive(Args)]
pub struct ServicesArgs {
    /// `postgres://user:password@host/database`; `-` reads it from standard input
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true)]
    pub database_url: Option<String>,
    /// A file that holds it
    #[arg(long, env = "DATABASE_URL_FILE", global = true)]
    pub database_url_file: Option<PathBuf>,
    /// `redis://host:6379/0`, or `rediss://…` with TLS; `-` reads it from standard input
    #[arg(long, env = "REDIS_URL", hide_env_values = true, global = true)]
    pub redis_url: Option<String>,
    /// A file that holds it
    #[arg(long, env = "REDIS_URL_FILE", global = true)]
    pub redis_url_file: Option<PathBuf>,
    /// Key that encrypts secrets in the store: 32 bytes in base64 (head -c 32 /dev/urandom | base64). Without it they cannot be read
    #[arg(long, env = "TRIBUTARY_SECRET_KEY", hide_env_values = true, global = true)]
    pub secret_key: Option<String>,
    /// A file that holds it
    #[arg(long, env = "TRIBUTARY_SECRET_KEY_FILE", global = true)]
    pub secret_key_file: Option<PathBuf>,
    /// The previous key: secrets sealed with it are sealed with the new one at startup
    #[arg(long, env = "TRIBUTARY_SECRET_KEY_PREVIOUS", hide_env_values = true, global = true)]
    pub secret_key_previous: Option<String>,
    /// A file that holds it
    #[arg(long, env = "TRIBUTARY_SECRET_KEY_PREVIOUS_FILE", global = true)]
    pub secret_key_previous_file: Option<PathBuf>,
    /// Prefix of every key in Redis
    #[arg(long, env = "TRIBUTARY_KEY_SPACE", default_value = KEY_SPACE, global = true)]
    pub key_space: String,
    /// How the queue is stored in Redis; all processes of a system need the same value
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
    /// When a URL or the key is missing or cannot be read.
    pub fn backend(&self) -> anyhow::Result<Backend> {
        let [database, redis, key, previous] = self.secrets();
        let missing = |secret: Secret<'_>| {
            let Secret { flag, variable, .. } = secret;
            anyhow!(
                "{variable} is not set ({flag}, {flag}-file and {variable}_FILE do the same): without services, start the \
                 server with --embedded"
            )
        };
        let database_url = database.read()?.ok_or_else(|| missing(database))?;
        let redis_url = redis.read()?.ok_or_else(|| missing(redis))?;
        is_of(database.variable, &database_url, &["postgres://", "postgresql://"])?;
        is_of(redis.variable, &redis_url, &["redis://", "rediss://"])?;
        Ok(Backend::Services {
            database_url,
            redis_url,
            key_space: self.key_space.clone(),
            connections: self.database_connections,
            layout: self.queue.into(),
            keys: keys(key, previous)?,
        })
    }

    /// Whether any service is named.
    pub fn names_services(&self) -> bool {
        [&self.database_url, &self.redis_url]
            .iter()
            .any(|url| url.as_deref().is_some_and(|url| !url.is_empty()))
    }

    fn secrets(&self) -> [Secret<'_>; 4] {
        [
            Secret {
                flag: "--database-url",
                variable: "DATABASE_URL",
                value: self.database_url.as_deref(),
                file: self.database_url_file.as_deref(),
            },
            Secret {
                flag: "--redis-url",
                variable: "REDIS_URL",
                value: self.redis_url.as_deref(),
                file: self.redis_url_file.as_deref(),
            },
            Secret {
                flag: "--secret-key",
                variable: "TRIBUTARY_SECRET_KEY",
                value: self.secret_key.as_deref(),
                file: self.secret_key_file.as_deref(),
            },
            Secret {
                flag: "--secret-key-previous",
                variable: "TRIBUTARY_SECRET_KEY_PREVIOUS",
                value: self.secret_key_previous.as_deref(),
                file: self.secret_key_previous_file.as_deref(),
            },
        ]
    }
}

fn keys(key: Secret<'_>, previous: Secret<'_>) -> anyhow::Result<SecretKeys> {
    let parsed = |secret: Secret<'_>| -> anyhow::Result<Option<SecretKey>> {
        let text = secret.read()?;
        text.map(|text| {
            SecretKey::parse(&text).with_context(|| format!("{} cannot be read", secret.variable))
        })
        .transpose()
    };
    let current = parsed(key)?.with_context(|| {
        format!(
            "{} is not set: it seals secrets in the store. Make one with: head -c 32 /dev/urandom | base64, and give every \
             process the same",
            key.variable
        )
    })?;
    Ok(SecretKeys::new(current, parsed(previous)?.into_iter().collect()))
}

/// Whether something follows one of these schemes.
fn begins_with(url: &str, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme))
}

/// Refuses a URL of another service. It may hold a password, so it is not shown.
fn is_of(variable: &str, url: &str, begins: &[&str]) -> anyhow::Result<()> {
    if begins_with(url, begins) {
        return Ok(());
    }
    bail!("{variable} must be a URL like {}user:password@host:port/name", begins[0])
}

/// How the events queue behaves. Every process of one system should be given the same.
#[derive(Args, Debug)]
pub struct QueueArgs {
    /// Lease: milliseconds without a heartbeat after which a worker's items are redelivered
    #[arg(long, env = "TRIBUTARY_LEASE_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(100..=3_600_000))]
    pub lease_ms: u64,
    /// Seconds for which the idempotency key of a webhook is remembered
    #[arg(long, env = "TRIBUTARY_CLAIM_TTL_S", default_value_t = 24 * 60 * 60, value_parser = clap::value_parser!(u64).range(60..=315_360_000))]
    pub claim_ttl_s: u64,
    /// Most events in the queue, beyond which ingestion answers 503; 0 for no limit. A brand may hold four times the room that is free,
    /// what a public key sent as much as is free; beyond, 429
    #[arg(long, env = "TRIBUTARY_MAX_DEPTH", default_value_t = QueueSettings::default().max_depth)]
    pub max_depth: u64,
    /// Most bytes in the queue, shared alike; 0 for no limit. On Redis at most a quarter of its maxmemory
    #[arg(long, env = "TRIBUTARY_MAX_BYTES", default_value_t = QueueSettings::default().max_bytes)]
    pub max_bytes: u64,
    /// Most dead letters of a brand; beyond, its oldest are deleted
    #[arg(long, env = "TRIBUTARY_MAX_DEAD", default_value_t = QueueSettings::default().max_dead, value_parser = clap::value_parser!(u64).range(1..))]
    pub max_dead: u64,
    /// Most bytes of a brand's dead letters. On Redis at most 1/32 of its maxmemory
    #[arg(long, env = "TRIBUTARY_MAX_DEAD_BYTES", default_value_t = QueueSettings::default().max_dead_bytes)]
    pub max_dead_bytes: u64,
    /// Age of the oldest pending event, in seconds, above which health is degraded
    #[arg(long, env = "TRIBUTARY_MAX_LAG_S", default_value_t = 60)]
    pub max_lag_s: u64,
    /// Number of dead letters above which health is degraded; 0 for never
    #[arg(long, env = "TRIBUTARY_DEAD_ALARM", default_value_t = 1000)]
    pub dead_alarm: u64,
}

impl QueueArgs {
    pub fn settings(&self) -> QueueSettings {
        QueueSettings {
            lease: Duration::from_millis(self.lease_ms),
            claim_ttl: Duration::from_secs(self.claim_ttl_s),
            max_depth: self.max_depth,
            max_bytes: self.max_bytes,
            backlog: QueueSettings::default().backlog,
            low_batch: QueueSettings::default().low_batch,
            low_bytes: QueueSettings::default().low_bytes,
            max_dead: self.max_dead,
            max_dead_bytes: self.max_dead_bytes,
        }
    }

    pub fn alarms(&self) -> Alarms {
        Alarms { max_lag: Duration::from_secs(self.max_lag_s), dead: self.dead_alarm }
    }
}

/// How batches are processed.
#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Batches processed concurrently
    #[arg(long, env = "TRIBUTARY_CONCURRENCY", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub concurrency: u16,
    /// Most items per batch
    #[arg(long, env = "TRIBUTARY_BATCH", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=MAX_FETCH as i64))]
    pub batch: u16,
    /// Milliseconds that a batch may take to finish after SIGTERM
    #[arg(long, env = "TRIBUTARY_GRACE_MS", default_value_t = 10_000)]
    pub grace_ms: u64,
}

impl WorkerArgs {
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
pub struct OutboundArgs {
    /// The SMTP server: `smtps://user:password@host`, or `smtp://host:587?tls=required`
    #[arg(long, global = true, env = "TRIBUTARY_SMTP_URL", hide_env_values = true)]
    pub smtp_url: Option<String>,
    /// A file that holds it
    #[arg(long, global = true, env = "TRIBUTARY_SMTP_URL_FILE")]
    pub smtp_url_file: Option<PathBuf>,
    /// Allow sending the password to the SMTP server in clear text
    #[arg(long, global = true, env = "TRIBUTARY_ALLOW_PLAIN_SMTP", value_parser = FalseyValueParser::new())]
    pub allow_plain_smtp: bool,
    /// This system's public URL, for example `https://events.shop.example`: unsubscribe links begin with it
    #[arg(long, global = true, env = "TRIBUTARY_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// Allow automations to post to private and local addresses
    #[arg(long, global = true, env = "TRIBUTARY_ALLOW_PRIVATE_DESTINATIONS", value_parser = FalseyValueParser::new())]
    pub allow_private_destinations: bool,
    /// Allow automations to post to http:// addresses, in clear text
    #[arg(long, global = true, env = "TRIBUTARY_ALLOW_HTTP_DESTINATIONS", value_parser = FalseyValueParser::new())]
    pub allow_http_destinations: bool,
    /// Most webhooks and e-mails a second to one destination from each process
    #[arg(long, env = "TRIBUTARY_DESTINATION_RATE", default_value_t = DEFAULT_RATE)]
    pub destination_rate: NonZeroU32,
}

/// The URL may hold a password: it is not shown.
impl std::fmt::Debug for OutboundArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboundArgs").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

impl OutboundArgs {
    /// The SMTP server's URL, if one is set.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn smtp_url(&self) -> anyhow::Result<Option<String>> {
        let smtp = Secret {
            flag: "--smtp-url",
            variable: "TRIBUTARY_SMTP_URL",
            value: self.smtp_url.as_deref(),
            file: self.smtp_url_file.as_deref(),
        };
        smtp.read()
    }

    /// Where webhooks and chats may go.
    pub fn reach(&self) -> Reach {
        Reach { private: self.allow_private_destinations, http: self.allow_http_destinations }
    }

    /// What sends messages.
    ///
    /// # Errors
    /// When a URL cannot be read.
    pub fn outbound(&self, world: &World) -> anyhow::Result<Outbound> {
        let smtp_url = self.smtp_url()?;
        if let Some(url) = smtp_url.as_deref().filter(|_| !self.allow_plain_smtp) {
            refuse_plain_password(url)?;
        }
        let reach = self.reach();
        if let Some(url) = self.public_url.as_deref().filter(|url| !url.is_empty())
            && !begins_with(url, &["https://", "http://"])
        {
            bail!(
                "--public-url (TRIBUTARY_PUBLIC_URL) is {url:?}; it must be like https://events.shop.example"
            );
        }
        let sender = OutboundSender::new(smtp_url.as_deref(), reach)?;
        if self.public_url.as_deref().is_some_and(|url| url.starts_with("http://")) {
            tracing::warn!(
                "--public-url is not https: mail services do not offer to unsubscribe by such a link, and may refuse the mail"
            );
        }
        Ok(Outbound {
            sender: Arc::new(sender),
            destinations: Arc::new(Destinations::new(self.destination_rate, world.clone())),
            // Compose sets a variable that is not set to nothing.
            public_url: self.public_url.clone().filter(|url| !url.is_empty()),
            sends_mail: smtp_url.is_some(),
            reach,
        })
    }
}
