//! What the conformance suites share: one Redis and one PostgreSQL a test process, fresh databases and key spaces a test.

#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]

use std::sync::Arc;
use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use stack::services::Services;
use tokio::sync::OnceCell;
use tributary_core::adapters::memory::cache::MemoryCache;
use tributary_core::adapters::postgres::{self, customers::PgStore, tenants::PgTenants};
use tributary_core::adapters::redis::cache::RedisCache;
use tributary_core::adapters::redis::client::RedisClient;
use tributary_core::adapters::redis::keys::{Layout, QueueKeys};
use tributary_core::adapters::redis::queue::RedisQueue;
use tributary_core::adapters::sqlite::db::Db;
use tributary_core::adapters::sqlite::{customers::SqliteStore, queue::SqliteQueue, tenants::SqliteTenants};
use tributary_core::ports::cache::Cache;
use tributary_core::ports::clock::{ManualClock, SystemClock};
use tributary_core::ports::queue::{Queue, QueueSettings};
use tributary_core::ports::store::Store;
use tributary_core::ports::tenants::Tenants;

static SERVICES: OnceCell<Services> = OnceCell::const_new();

/// The Redis and PostgreSQL of this test process.
pub async fn services() -> &'static Services {
    SERVICES.get_or_init(async || Services::start().await.unwrap_or_else(|error| panic!("{error:#}"))).await
}

/// A queue under test, and how its time passes.
pub struct QueueUnderTest {
    pub queue: Arc<dyn Queue>,
    clock: Option<ManualClock>,
    back_door: BackDoor,
    _folder: Option<tempfile::TempDir>,
}

/// A way to the queue's data past the queue.
enum BackDoor {
    File(std::path::PathBuf),
    Redis(Box<(RedisClient, QueueKeys)>),
}

impl QueueUnderTest {
    /// Loses the leases, as a restore from half a backup would.
    pub async fn forget_leases(&self) {
        match &self.back_door {
            BackDoor::File(path) => {
                let mut file =
                    SqliteConnection::connect(&format!("sqlite://{}", path.display())).await.unwrap();
                sqlx::query("delete from leases").execute(&mut file).await.unwrap();
            }
            BackDoor::Redis(held) => {
                let (redis, keys) = &**held;
                redis::cmd("DEL").arg(keys.leases()).exec_async(&mut redis.shared()).await.unwrap();
            }
        }
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

pub fn settings() -> QueueSettings {
    QueueSettings { lease: LEASE, claim_ttl: Duration::from_secs(60), max_depth: 3000 }
}

pub async fn sqlite_queue() -> QueueUnderTest {
    let folder = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(1_800_000_000_000);
    let path = folder.path().join("queue.db");
    let db = Db::open_queue(&path).await.unwrap();
    let queue = Arc::new(SqliteQueue::new(db, settings(), Arc::new(clock.clone())));
    QueueUnderTest { queue, clock: Some(clock), back_door: BackDoor::File(path), _folder: Some(folder) }
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
    let queue = RedisQueue::new(redis.clone(), "events", layout, settings(), Arc::new(SystemClock));
    let back_door = BackDoor::Redis(Box::new((redis, queue.keys().clone())));
    QueueUnderTest { queue: Arc::new(queue), clock: None, back_door, _folder: None }
}

/// A store under test, with its tenants.
pub struct StoreUnderTest {
    pub store: Arc<dyn Store>,
    pub tenants: Arc<dyn Tenants>,
    _folder: Option<tempfile::TempDir>,
}

pub async fn sqlite_store() -> StoreUnderTest {
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open_store(&folder.path().join("store.db")).await.unwrap();
    StoreUnderTest {
        store: Arc::new(SqliteStore::new(db.clone())),
        tenants: Arc::new(SqliteTenants::new(db)),
        _folder: Some(folder),
    }
}

pub async fn postgres_store() -> StoreUnderTest {
    let url = services().await.fresh_database().await.unwrap();
    let pool = postgres::db::open(&url, 12).await.unwrap();
    StoreUnderTest {
        store: Arc::new(PgStore::new(pool.clone())),
        tenants: Arc::new(PgTenants::new(pool)),
        _folder: None,
    }
}

pub async fn memory_cache() -> Arc<dyn Cache> {
    Arc::new(MemoryCache::default())
}

pub async fn redis_cache() -> Arc<dyn Cache> {
    Arc::new(RedisCache::new(redis().await))
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
                #[tokio::test]
                async fn $test() {
                    let under_test = $make().await;
                    super::$test(&under_test).await;
                }
            )*
        }
    };
}
