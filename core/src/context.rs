//! Where the profile is chosen: the one `match` that knows embedded from services. Everything else sees ports.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::adapters::in_time;
use crate::adapters::memory::cache::MemoryCache;
use crate::adapters::memory::locks::MemoryLocks;
use crate::adapters::redis::cache::RedisCache;
use crate::adapters::redis::client::{RedisClient, RedisStartError};
pub use crate::adapters::redis::keys::Layout;
use crate::adapters::redis::locks::RedisLocks;
use crate::adapters::redis::queue::RedisQueue;
use crate::adapters::sql::{
    Database, SqlAutomations, SqlBrands, SqlCustomerSearch, SqlOutbox, SqlPrivacy, SqlStore,
};
use crate::adapters::sqlite::queue::SqliteQueue;
use crate::adapters::{folder, postgres, sqlite};
use crate::domain::ids::BrandId;
use crate::ports::automations::Automations;
use crate::ports::brands::{BrandPorts, BrandSecrets};
use crate::ports::cache::Cache;
use crate::ports::customer_search::CustomerSearch;
use crate::ports::locks::Locks;
use crate::ports::outbox::{Outbox, OutboxTargets};
use crate::ports::privacy::Privacy;
use crate::ports::queue::{Queue, QueueSettings};
use crate::ports::store::{Store, StoreError, SuppressionKey};
use crate::ports::world::World;
use crate::remembered::Remembered;
use crate::services::automations::languages::Languages;
use crate::services::brand_cache::BrandCache;
use crate::services::rounds::Rounds;
use crate::services::seal::{SecretKeys, is_sealed};
use crate::services::sealed;
use crate::services::spool::SpooledQueue;
use crate::services::store_health::StoreHealth;

/// The queue that events wait in.
pub const EVENTS_QUEUE: &str = "events";
/// The queue that the jobs of segments and automations wait in.
pub const AUTOMATIONS_QUEUE: &str = "automations";
/// Most brands of which services remember something.
const BRANDS_KNOWN: u64 = 10_000;
/// How long closing may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// What every key in Redis begins with, unless set otherwise.
pub const KEY_SPACE: &str = "tributary";

/// What Tributary runs on.
#[derive(Clone)]
pub enum Backend {
    /// One process, one data folder, no services.
    Embedded {
        /// The folder; made if it is missing.
        data: PathBuf,
    },
    /// PostgreSQL and Redis, any number of processes.
    Services {
        database_url: String,
        redis_url: String,
        /// What every key in Redis begins with.
        key_space: String,
        /// Most connections to PostgreSQL of this process.
        connections: u32,
        /// How the queue lies in Redis.
        layout: Layout,
        /// What seals secrets in the store.
        keys: SecretKeys,
    },
}

/// Both URLs may hold passwords: they are not shown.
impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded { data } => f.debug_struct("Embedded").field("data", data).finish(),
            Self::Services { key_space, connections, layout, .. } => f
                .debug_struct("Services")
                .field("layout", layout)
                .field("key_space", key_space)
                .field("connections", connections)
                .finish_non_exhaustive(),
        }
    }
}

/// Why Tributary cannot run on a backend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Redis(#[from] RedisStartError),
    /// The store, or the queue's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the data folder {path} cannot be used: {error}")]
    Folder { path: PathBuf, error: std::io::Error },
    /// The key that seals secrets is gone.
    #[error(
        "the store in {path} holds sealed secrets, and {file} is not there: bring it back from the backup. Without it shops' and \
         signing secrets cannot be read"
    )]
    NoKey {
        path: PathBuf,
        /// The file that is missing.
        file: &'static str,
    },
}

/// The ports, built once in `main` and passed on.
#[derive(Clone)]
pub struct Context {
    pub store: Arc<dyn Store>,
    pub customer_search: Arc<dyn CustomerSearch>,
    /// Requests in the name of privacy.
    pub privacy: Arc<dyn Privacy>,
    /// What keys the hashes that are kept of identifiers.
    pub suppression: SuppressionKey,
    /// Brands, keys and shops.
    pub brand_ports: BrandPorts,
    /// Segments, automations and runs.
    pub automations: Arc<dyn Automations>,
    pub queue: Arc<dyn Queue>,
    pub automation_queue: Arc<dyn Queue>,
    /// What waits in the store for a queue.
    pub outbox: Arc<dyn Outbox>,
    /// Whether items that come while the queue is unavailable wait there, too.
    pub spools: bool,
    pub outbox_targets: OutboxTargets,
    pub locks: Arc<dyn Locks>,
    pub cache: Arc<dyn Cache>,
    /// The settings of brands.
    pub brand_cache: BrandCache,
    /// When the housekeeping of this process last came round.
    pub rounds: Arc<Rounds>,
    /// When the store was last found unavailable.
    pub store_health: Arc<StoreHealth>,
    /// Where expressions and templates run.
    pub languages: Languages,
    /// Where time, ids and randomness come from.
    pub world: World,
    pub(crate) known: Arc<Known>,
    open: Open,
}

/// What services remember for a while of this store.
pub(crate) struct Known {
    pub(crate) secrets: Remembered<BrandId, BrandSecrets>,
    /// How many test e-mails a brand has asked for in the hour since the first.
    pub(crate) trials: Remembered<BrandId, Arc<AtomicU32>>,
}

impl Known {
    fn new(world: &World) -> Self {
        Self {
            secrets: Remembered::new(world.clone(), BRANDS_KNOWN),
            trials: Remembered::new(world.clone(), BRANDS_KNOWN),
        }
    }
}

/// What is to be closed.
#[derive(Clone)]
enum Open {
    Embedded { store: sqlite::db::Db, queues: [sqlite::db::Db; 2] },
    Services { redis: Box<RedisClient>, pool: sqlx::PgPool },
}

/// Where the services of that profile are.
struct Services<'a> {
    database_url: &'a str,
    redis_url: &'a str,
    key_space: &'a str,
    connections: u32,
    layout: Layout,
    keys: &'a SecretKeys,
}

/// What each profile has of its own.
struct Parts {
    open: Open,
    outbox: Arc<dyn Outbox>,
    spools: bool,
    /// The queue of events and that of automations, without what stands before them.
    outbox_targets: [Arc<dyn Queue>; 2],
    locks: Arc<dyn Locks>,
    queue: Arc<dyn Queue>,
    automation_queue: Arc<dyn Queue>,
    cache: Arc<dyn Cache>,
    world: World,
}

impl Context {
    /// Closes the connections, after what is under way on them. For the end of a process: nothing works afterwards.
    pub async fn close(&self) {
        let close = async {
            match &self.open {
                Open::Embedded { store, queues } => {
                    for queue in queues {
                        queue.close().await;
                    }
                    store.close().await;
                }
                Open::Services { redis, pool } => {
                    redis.close().await;
                    pool.close().await;
                }
            }
        };
        // A service that is unavailable must not hold up the end.
        let _ = in_time(CLOSE_TIMEOUT, close).await;
    }

    /// Leaves nothing on the disk of what was deleted, as far as this process can see to that: embedded, the files' logs are emptied.
    /// PostgreSQL and Redis do it by themselves (docs/OPERATIONS.md). Best effort: what is busy is emptied by the next erasure.
    pub async fn scrub(&self) {
        let Open::Embedded { store, queues } = &self.open else { return };
        for file in [store, &queues[0], &queues[1]] {
            if let Err(error) = file.scrub().await {
                tracing::warn!(%error, "a log still holds what was deleted; it is emptied after the next erasure");
            }
        }
    }

    /// The queue of that name.
    pub fn queue_named(&self, name: &str) -> Option<&Arc<dyn Queue>> {
        match name {
            EVENTS_QUEUE => Some(&self.queue),
            AUTOMATIONS_QUEUE => Some(&self.automation_queue),
            _ => None,
        }
    }

    /// All queues, by name.
    pub fn queues(&self) -> [(&'static str, &Arc<dyn Queue>); 2] {
        [(EVENTS_QUEUE, &self.queue), (AUTOMATIONS_QUEUE, &self.automation_queue)]
    }

    /// Opens a backend: connects, brings tables up to date, refuses what could lose events.
    ///
    /// # Errors
    /// When any of it fails.
    pub async fn open(backend: &Backend, settings: QueueSettings) -> Result<Self, OpenError> {
        Self::open_in(backend, settings, World::real()).await
    }

    /// The same, in another world: embedded, everything goes by its clock and its randomness. On services, PostgreSQL and Redis have clocks
    /// of their own: leases, and the times at which the queue lets items go, are by Redis'.
    ///
    /// # Errors
    /// As [`Context::open`].
    pub async fn open_in(
        backend: &Backend,
        settings: QueueSettings,
        world: World,
    ) -> Result<Self, OpenError> {
        Self::open_with(backend, settings, world, true).await
    }

    /// The same, for a command of an operator: where Redis cannot be reached, what needs it fails, and the rest works. Keys can be revoked
    /// while Redis is unavailable.
    ///
    /// # Errors
    /// As [`Context::open`], but for a Redis that cannot be reached.
    pub async fn open_for_command(backend: &Backend, settings: QueueSettings) -> Result<Self, OpenError> {
        Self::open_with(backend, settings, World::real(), false).await
    }

    async fn open_with(
        backend: &Backend,
        settings: QueueSettings,
        world: World,
        needs_redis: bool,
    ) -> Result<Self, OpenError> {
        match backend {
            Backend::Embedded { data } => Self::open_embedded(data, settings, world).await,
            Backend::Services { database_url, redis_url, key_space, connections, layout, keys } => {
                let services = Services {
                    database_url,
                    redis_url,
                    key_space,
                    connections: *connections,
                    layout: *layout,
                    keys,
                };
                Self::open_services(services, settings, world, needs_redis).await
            }
        }
    }

    async fn open_embedded(data: &Path, settings: QueueSettings, world: World) -> Result<Self, OpenError> {
        let fault = |error| OpenError::Folder { path: data.to_owned(), error };
        folder::make(data).map_err(fault)?;
        let [store, queue, jobs] = ["store.db", "queue.db", "automations.db"].map(|name| data.join(name));
        if !store.exists() && [&queue, &jobs].iter().any(|file| file.exists()) {
            let error = "store.db is missing, and the queues are there: restore the whole backup";
            return Err(fault(std::io::Error::other(error)));
        }
        for file in [&queue, &jobs].into_iter().filter(|file| store.exists() && !file.exists()) {
            tracing::warn!(file = %file.display(), "a queue's file is missing: the items in it are lost");
        }
        for file in [&store, &queue, &jobs] {
            folder::own_file(file).map_err(fault)?;
        }
        let store = sqlite::db::Db::open_store(&store).await?;
        let queue = sqlite::db::Db::open_queue(&queue).await?;
        let jobs = sqlite::db::Db::open_queue(&jobs).await?;
        let open = Open::Embedded { store: store.clone(), queues: [queue.clone(), jobs.clone()] };
        let queue: Arc<dyn Queue> = Arc::new(SqliteQueue::new(queue, settings, world.clone()));
        let jobs: Arc<dyn Queue> = Arc::new(SqliteQueue::new(jobs, settings, world.clone()));
        let db = Database::sqlite(store, world.clone());
        let plain: BrandPorts = SqlBrands::ports(db.clone());
        let keys = match folder::keys(data).map_err(fault)? {
            Some(keys) => keys,
            None if plain.secrets.stored_secrets().await?.iter().any(|secret| is_sealed(&secret.held)) => {
                return Err(OpenError::NoKey { path: data.to_owned(), file: folder::KEY_FILE });
            }
            None => folder::make_key(data, &world).map_err(fault)?,
        };
        let brand_ports = sealed(plain, keys).await?;
        let parts = Parts {
            open,
            outbox: Arc::new(SqlOutbox::new(db.clone())),
            // the queue is a file beside the store's: neither is unavailable without the other
            spools: false,
            outbox_targets: [queue.clone(), jobs.clone()],
            locks: Arc::new(MemoryLocks::new(world.clone())),
            queue,
            automation_queue: jobs,
            cache: Arc::new(MemoryCache::new(world.clone())),
            world,
        };
        Self::over(db, brand_ports, parts).await
    }

    async fn open_services(
        services: Services<'_>,
        settings: QueueSettings,
        world: World,
        needs_redis: bool,
    ) -> Result<Self, OpenError> {
        let Services { database_url, redis_url, key_space, connections, layout, keys } = services;
        let (redis, is_there) = match RedisClient::connect(redis_url, key_space).await {
            Ok(redis) => (redis, true),
            Err(error @ RedisStartError::NoAnswer { .. }) if !needs_redis => {
                tracing::warn!("{error}; what needs it fails");
                (RedisClient::lazily(redis_url, key_space)?, false)
            }
            Err(error) => return Err(error.into()),
        };
        let queue = RedisQueue::new(redis.clone(), EVENTS_QUEUE, layout, settings, world.clone());
        let jobs = RedisQueue::new(redis.clone(), AUTOMATIONS_QUEUE, layout, settings, world.clone());
        if is_there {
            queue.refuse_other_layout(EVENTS_QUEUE).await?;
            jobs.refuse_other_layout(AUTOMATIONS_QUEUE).await?;
        }
        let jobs: Arc<dyn Queue> = Arc::new(jobs);
        let pool = postgres::db::open(database_url, connections).await?;
        let db = Database::postgres(pool.clone(), world.clone());
        let direct: Arc<dyn Queue> = Arc::new(queue);
        let outbox: Arc<dyn Outbox> = Arc::new(SqlOutbox::new(db.clone()));
        let brand_ports = sealed(SqlBrands::ports(db.clone()), keys.clone()).await?;
        let queue = SpooledQueue::new(
            direct.clone(),
            EVENTS_QUEUE,
            outbox.clone(),
            world.clone(),
            settings.max_depth,
        );
        let parts = Parts {
            open: Open::Services { redis: Box::new(redis.clone()), pool },
            outbox,
            spools: true,
            outbox_targets: [direct, jobs.clone()],
            locks: Arc::new(RedisLocks::new(redis.clone(), world.clone())),
            queue: Arc::new(queue),
            automation_queue: jobs,
            cache: Arc::new(RedisCache::new(redis)),
            world,
        };
        Self::over(db, brand_ports, parts).await
    }

    /// What both profiles have over their database, beside what each has of its own.
    async fn over(db: Database, brand_ports: BrandPorts, parts: Parts) -> Result<Self, OpenError> {
        let world = parts.world;
        let suppression = suppression_key(&brand_ports, &world).await?;
        let privacy = SqlPrivacy::new(db.clone(), suppression.clone());
        key_suppressions(&privacy).await?;
        let automations: Arc<dyn Automations> = Arc::new(SqlAutomations::new(db.clone()));
        let [events, jobs] = parts.outbox_targets;
        Ok(Self {
            open: parts.open,
            outbox: parts.outbox,
            spools: parts.spools,
            outbox_targets: OutboxTargets(vec![(EVENTS_QUEUE, events), (AUTOMATIONS_QUEUE, jobs)]),
            locks: parts.locks,
            customer_search: Arc::new(SqlCustomerSearch::new(db.clone())),
            privacy: Arc::new(privacy),
            store: Arc::new(SqlStore::new(db, suppression.clone())),
            suppression,
            brand_cache: BrandCache::new(brand_ports.clone(), automations.clone(), &world),
            rounds: Arc::new(Rounds::new(world.clone())),
            store_health: Arc::new(StoreHealth::new(world.clone())),
            languages: Languages::new(world.clone()),
            automations,
            brand_ports,
            queue: parts.queue,
            automation_queue: parts.automation_queue,
            cache: parts.cache,
            known: Arc::new(Known::new(&world)),
            world,
        })
    }
}

/// Suppressions from before there was a key that are keyed in one transaction.
const SUPPRESSIONS: i64 = 500;

/// The system's suppression key, made at the first start.
async fn suppression_key(brand_ports: &BrandPorts, world: &World) -> Result<SuppressionKey, StoreError> {
    let held = brand_ports.secrets.suppression_key(&STANDARD.encode(world.bytes::<32>())).await?;
    let key = STANDARD.decode(held).ok().and_then(|bytes| bytes.try_into().ok());
    key.map(SuppressionKey::new)
        .ok_or_else(|| StoreError::Invalid("the suppression key is not 32 bytes".into()))
}

/// Keys what was kept of erased customers before there was a key.
async fn key_suppressions(privacy: &dyn Privacy) -> Result<(), StoreError> {
    while privacy.key_suppressions(SUPPRESSIONS).await? > 0 {}
    Ok(())
}

/// The ports of brands, with their secrets sealed; those from before are sealed now.
async fn sealed(plain: BrandPorts, keys: SecretKeys) -> Result<BrandPorts, StoreError> {
    let (brand_ports, count) = sealed::open(plain, keys).await?;
    if count > 0 {
        tracing::info!(count, "sealed secrets that lay plain in the store, or under an older key");
    }
    Ok(brand_ports)
}
