//! What the conformance suites share: one Redis and one PostgreSQL a test process, fresh databases and key spaces a test.

#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]

pub mod back_door;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use back_door::BackDoor;
use backends::services::Services;
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};
use tokio::sync::OnceCell;
use tributary_core::adapters::memory::cache::MemoryCache;
use tributary_core::adapters::memory::locks::MemoryLocks;
use tributary_core::adapters::postgres;
use tributary_core::adapters::redis::cache::RedisCache;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::keys::{Layout, LockKeys};
use tributary_core::adapters::redis::locks::RedisLocks;
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sql::{Database, SqlBrands, SqlStore};
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::queue::SqliteQueue;
use tributary_core::context::{Backend, Context, OpenError};
use tributary_core::domain::ids::{BrandId, ProfileId};
use tributary_core::domain::settings::{BrandSettings, Limits};
use tributary_core::ports::brands::BrandPorts;
use tributary_core::ports::cache::Cache;
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::locks::Locks;
use tributary_core::ports::outbox::Staged;
use tributary_core::ports::queue::{Queue, QueueSettings};
use tributary_core::ports::store::{Store, SuppressionKey};
use tributary_core::ports::world::World;
use tributary_core::services::brand_cache::BrandRules;
use tributary_core::services::seal::{SecretKey, SecretKeys};

static SERVICES: OnceCell<Services> = OnceCell::const_new();

/// The Redis and PostgreSQL of this test process.
pub async fn services() -> &'static Services {
    SERVICES.get_or_init(async || Services::start().await.unwrap_or_else(|error| panic!("{error:#}"))).await
}

/// A queue under test, and how its time passes.
pub struct QueueUnderTest {
    pub queue: Arc<dyn Queue>,
    clock: Option<ManualClock>,
    pub back_door: BackDoor,
}

impl QueueUnderTest {
    /// Loses the leases, as a restore from half a backup would.
    pub async fn forget_leases(&self) {
        self.back_door.forget_leases().await;
    }

    /// Lets time pass: SQLite's clock is moved, Redis has its own.
    pub async fn pass(&self, time: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(i64::try_from(time.as_millis()).unwrap()),
            None => tokio::time::sleep(time).await,
        }
    }
}

/// A lease long enough for a slow machine between two lines of a test, short enough to wait for.
pub const LEASE: Duration = Duration::from_millis(1200);

/// In how many steps time passes for locks.
const STEPS: i64 = 50;

pub fn settings() -> QueueSettings {
    QueueSettings {
        lease: LEASE,
        claim_ttl: Duration::from_secs(60),
        max_depth: 3000,
        max_dead: 50,
        max_dead_bytes: 1_000_000,
        ..QueueSettings::default()
    }
}

pub async fn sqlite_queue() -> QueueUnderTest {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(1_800_000_000_000);
    let path = folder.path().join("queue.db");
    let db = Db::open_queue(&path).await.unwrap();
    let queue = Arc::new(SqliteQueue::new(db, settings(), World::on(clock.clone())));
    let back_door = BackDoor::file(path, folder).await;
    QueueUnderTest { queue, clock: Some(clock), back_door }
}

pub async fn redis() -> RedisClient {
    RedisClient::connect(&services().await.redis_url, &Services::fresh_key_space()).await.unwrap()
}

pub async fn redis_lists() -> QueueUnderTest {
    redis_queue(Layout::Lists).await
}

pub async fn redis_streams() -> QueueUnderTest {
    redis_queue(Layout::Streams).await
}

async fn redis_queue(layout: Layout) -> QueueUnderTest {
    let redis = redis().await;
    let queue = RedisQueue::new(redis.clone(), "events", layout, settings(), World::real());
    let back_door = BackDoor::redis(redis, queue.keys().clone(), layout);
    QueueUnderTest { queue: Arc::new(queue), clock: None, back_door }
}

/// How many cases a property runs: `PROPTEST_CASES`, or the test's own number.
pub fn cases(usual: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(usual)
}

/// The locks of one process, or Redis', and how their time passes.
pub struct LocksUnderTest {
    pub locks: Arc<dyn Locks>,
    pub world: World,
    clock: Option<ManualClock>,
    back_door: LocksDoor,
}

enum LocksDoor {
    Memory(Arc<MemoryLocks>),
    Redis(Box<(RedisClient, LockKeys)>),
}

impl LocksUnderTest {
    /// Lets time pass, in steps: who sleeps wakes in between. Redis has its own.
    pub async fn pass(&self, time: Duration) {
        let Some(clock) = &self.clock else { return tokio::time::sleep(time).await };
        for _ in 0..STEPS {
            clock.advance(i64::try_from(time.as_millis()).unwrap() / STEPS);
            tokio::task::yield_now().await;
        }
    }

    /// Ends a lock's time.
    pub async fn end(&self, name: &str) {
        match &self.back_door {
            LocksDoor::Memory(locks) => locks.end(name),
            LocksDoor::Redis(held) => {
                let (redis, keys) = &**held;
                redis::cmd("DEL").arg(keys.lock(name)).exec_async(&mut redis.shared()).await.unwrap();
            }
        }
    }

    /// Forgets the tokens' counter.
    pub async fn forget(&self) {
        match &self.back_door {
            LocksDoor::Memory(locks) => locks.forget(),
            LocksDoor::Redis(held) => {
                let (redis, keys) = &**held;
                redis::cmd("DEL").arg(keys.fence()).exec_async(&mut redis.shared()).await.unwrap();
            }
        }
    }

    /// Frees every lock that the properties use.
    pub async fn clear(&self) {
        for name in ["a", "b", "c", "d"] {
            self.end(name).await;
        }
    }
}

pub async fn memory_locks() -> LocksUnderTest {
    let clock = ManualClock::at(0);
    let world = World::on(clock.clone());
    let locks = Arc::new(MemoryLocks::new(world.clone()));
    LocksUnderTest { locks: locks.clone(), world, clock: Some(clock), back_door: LocksDoor::Memory(locks) }
}

pub async fn redis_locks() -> LocksUnderTest {
    redis_locks_edited(str::to_owned).await
}

pub async fn redis_locks_edited(edit: impl Fn(&str) -> String) -> LocksUnderTest {
    let redis = redis().await;
    let locks = RedisLocks::new(redis.clone(), World::real()).with_scripts_edited(edit);
    let back_door = LocksDoor::Redis(Box::new((redis, locks.keys().clone())));
    LocksUnderTest { locks: Arc::new(locks), world: World::real(), clock: None, back_door }
}

/// Everything, on one profile.
pub struct ContextUnderTest {
    pub context: Context,
    store: String,
    backend: Backend,
    _folder: Option<tempfile::TempDir>,
}

impl ContextUnderTest {
    /// Where the store is, as sqlx reads it.
    pub fn store_url(&self) -> &str {
        &self.store
    }

    /// The same, with other settings, as another process would open it.
    pub async fn reopened(&self, settings: QueueSettings) -> Context {
        Context::open(&self.backend, settings).await.unwrap()
    }

    /// The same, with other keys, as a process with other settings would open it.
    pub async fn with_keys(&self, keys: &SecretKeys) -> Result<Context, OpenError> {
        let mut backend = self.backend.clone();
        match &mut backend {
            Backend::Services { keys: own, .. } => *own = keys.clone(),
            Backend::Embedded { .. } => unreachable!("its keys are in its folder"),
        }
        Context::open(&backend, QueueSettings::default()).await
    }

    /// The same, as it is now.
    pub async fn opened(&self) -> Result<Context, OpenError> {
        Context::open(&self.backend, QueueSettings::default()).await
    }

    /// The data folder (embedded).
    pub fn data(&self) -> Option<&std::path::Path> {
        match &self.backend {
            Backend::Embedded { data } => Some(data),
            Backend::Services { .. } => None,
        }
    }

    /// Runs a statement on the store, past Tributary.
    pub async fn by_hand(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        if self.store.starts_with("sqlite") {
            let mut file = SqliteConnection::connect(&self.store).await.unwrap();
            sqlx::query(statement).execute(&mut file).await.unwrap();
        } else {
            let mut database = sqlx::PgConnection::connect(&self.store).await.unwrap();
            sqlx::query(statement).execute(&mut database).await.unwrap();
        }
    }

    /// Loses what the queues hold, as a Redis without its file would, or a queue's file that was not restored.
    pub async fn forget_queues(&self) {
        match &self.backend {
            Backend::Embedded { data } => {
                let file = format!("sqlite://{}", data.join("queue.db").display());
                let mut file = SqliteConnection::connect(&file).await.unwrap();
                for table in ["items", "bodies", "leases", "claims", "dead", "shares"] {
                    let statement = AssertSqlSafe(format!("delete from {table}"));
                    sqlx::query(statement).execute(&mut file).await.unwrap();
                }
            }
            Backend::Services { key_space, .. } => {
                let mut redis = redis().await.shared();
                let keys: Vec<String> =
                    redis::cmd("KEYS").arg(format!("*{key_space}*")).query_async(&mut redis).await.unwrap();
                redis::cmd("UNLINK").arg(keys).exec_async(&mut redis).await.unwrap();
            }
        }
    }

    /// All that a dump of the tables of brands and of what is kept of the erased shows; embedded, all that lies in the folder.
    pub async fn dump(&self) -> String {
        if let Some(data) = self.data() {
            let files =
                std::fs::read_dir(data).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
            let text: String = files.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).collect();
            let mut file = SqliteConnection::connect(&self.store).await.unwrap();
            let kept: Vec<String> =
                sqlx::query_scalar("select hex(hash) from suppressed").fetch_all(&mut file).await.unwrap();
            return format!("{text}\n{}", kept.join("\n"));
        }
        let mut database = sqlx::PgConnection::connect(&self.store).await.unwrap();
        let rows: Vec<String> =
            sqlx::query_scalar("select shops::text from shops union all select brands::text from brands
                union all select suppressed::text from suppressed union all select system_secrets::text from system_secrets")
                .fetch_all(&mut database)
                .await
                .unwrap();
        rows.join("\n")
    }

    /// Puts items back into the outbox that were enqueued, under their own ids.
    pub async fn put_back(&self, items: &[Staged]) {
        for Staged { id, queue, item, staged_ms } in items {
            let id =
                if self.store.starts_with("sqlite") { format!("'{id}'") } else { format!("'{id}'::uuid") };
            let payload = hex::encode(&item.payload);
            let payload = if self.store.starts_with("sqlite") {
                format!("x'{payload}'")
            } else {
                format!("'\\x{payload}'::bytea")
            };
            let insert = format!(
                "insert into outbox (id, queue, priority, delay_ms, keys, payload, staged_ms)
                values ({id}, '{queue}', 1, 0, '[]', {payload}, {staged_ms})
                on conflict (id) do update set check_ms = null"
            );
            if self.store.starts_with("sqlite") {
                let mut file = SqliteConnection::connect(&self.store).await.unwrap();
                sqlx::query(AssertSqlSafe(insert)).execute(&mut file).await.unwrap();
            } else {
                let mut database = sqlx::PgConnection::connect(&self.store).await.unwrap();
                sqlx::query(AssertSqlSafe(insert)).execute(&mut database).await.unwrap();
            }
        }
    }
}

pub async fn embedded_context() -> ContextUnderTest {
    let folder = tempfile::tempdir().unwrap();
    let backend = Backend::Embedded { data: folder.path().to_owned() };
    let context = Context::open(&backend, QueueSettings::default()).await.unwrap();
    let store = format!("sqlite://{}", folder.path().join("store.db").display());
    ContextUnderTest { context, store, backend, _folder: Some(folder) }
}

pub async fn services_context() -> ContextUnderTest {
    let store = services().await.fresh_database().await.unwrap();
    let backend = Backend::Services {
        database_url: store.clone(),
        redis_url: services().await.redis_url.clone(),
        key_space: Services::fresh_key_space(),
        connections: 8,
        layout: Layout::Lists,
        keys: SecretKeys::new(SecretKey::random(&World::real()), Vec::new()),
    };
    let context = Context::open(&backend, QueueSettings::default()).await.unwrap();
    ContextUnderTest { context, store, backend, _folder: None }
}

pub fn unlimited(brand: BrandId) -> BrandRules {
    let settings = BrandSettings { limits: Limits::none(), ..BrandSettings::default() };
    BrandRules { settings: HashMap::from([(brand, Arc::new(settings))]), ..BrandRules::default() }
}

/// A store under test, with its ports of brands and the locks of its profile.
pub struct StoreUnderTest {
    pub store: Arc<dyn Store>,
    pub locks: Arc<dyn Locks>,
    pub brand_ports: BrandPorts,
    _folder: Option<tempfile::TempDir>,
}

pub async fn sqlite_store() -> StoreUnderTest {
    let folder = tempfile::tempdir().unwrap();
    let db = Database::sqlite(Db::open_store(&folder.path().join("store.db")).await.unwrap(), World::real());
    StoreUnderTest {
        store: Arc::new(SqlStore::new(db.clone(), SuppressionKey::new([7; 32]))),
        locks: Arc::new(MemoryLocks::new(World::real())),
        brand_ports: SqlBrands::ports(db),
        _folder: Some(folder),
    }
}

pub async fn postgres_store() -> StoreUnderTest {
    let url = services().await.fresh_database().await.unwrap();
    let pool = postgres::db::open(&url, 12).await.unwrap();
    StoreUnderTest::on(pool, Arc::new(RedisLocks::new(redis().await, World::real())))
}

impl StoreUnderTest {
    /// PostgreSQL, with these locks.
    pub fn on(pool: sqlx::PgPool, locks: Arc<dyn Locks>) -> Self {
        let db = Database::postgres(pool, World::real());
        Self {
            store: Arc::new(SqlStore::new(db.clone(), SuppressionKey::new([7; 32]))),
            locks,
            brand_ports: SqlBrands::ports(db),
            _folder: None,
        }
    }
}

/// A cache, and how its time passes.
pub struct CacheUnderTest {
    pub cache: Arc<dyn Cache>,
    clock: Option<ManualClock>,
}

impl CacheUnderTest {
    /// Lets time pass: the cache of a process goes by the clock that it is given, Redis by its own.
    pub async fn pass(&self, time: Duration) {
        match &self.clock {
            Some(clock) => clock.advance(i64::try_from(time.as_millis()).unwrap()),
            None => tokio::time::sleep(time).await,
        }
    }
}

pub async fn memory_cache() -> CacheUnderTest {
    let clock = ManualClock::at(0);
    CacheUnderTest { cache: Arc::new(MemoryCache::new(World::on(clock.clone()))), clock: Some(clock) }
}

pub async fn redis_cache() -> CacheUnderTest {
    CacheUnderTest { cache: Arc::new(RedisCache::new(redis().await)), clock: None }
}

/// One suite, once an adapter: each test becomes a test of every adapter's module.
#[macro_export]
macro_rules! on_every_adapter {
    ({ $($adapter:ident: $make:path),* $(,)? } $tests:tt) => {
        $( $crate::on_every_adapter!(@one $adapter, $make, $tests); )*
    };
    (@one $adapter:ident, $make:path, [ $($test:ident),* $(,)? ]) => {
        mod $adapter {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let under_test = $make().await;
                    super::$test(&under_test).await;
                }
            )*
        }
    };
}

/// All that is held on a customer, read to its end.
pub async fn exported(context: &Context, brand: BrandId, id: ProfileId) -> Option<serde_json::Value> {
    let mut pieces = tributary_core::services::export::export(context, brand, id, "test").await.unwrap()?;
    let mut text = Vec::new();
    while let Some(piece) = pieces.recv().await {
        text.extend_from_slice(&piece.unwrap());
    }
    Some(serde_json::from_slice(&text).unwrap())
}
