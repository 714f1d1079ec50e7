//! A server with its workers in the test's own process, on either profile.

#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]

use std::sync::Arc;
use std::time::Duration;

use backends::services::Services;
use server::inside::Monitor;
use server::state::{AppState, Settings};
use sqlx::Connection;
use stack::client::Client;
use stack::system::Access;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tributary_core::adapters::outbound::OutboundSender;
use tributary_core::context::{Backend, Context, Layout};
use tributary_core::domain::addresses::Reach;
use tributary_core::domain::ids::BrandId;
use tributary_core::domain::scopes::Scopes;
use tributary_core::ports::brands::{KeyGrant, KeyKind};
use tributary_core::ports::clock::ManualClock;
use tributary_core::ports::queue::{POLL, QueueSettings};
use tributary_core::ports::world::World;
use tributary_core::services::automations::destinations::{DEFAULT_RATE, Destinations};
use tributary_core::services::automations::runs::Outbound;
use tributary_core::services::health::Alarms;
use tributary_core::services::keys::{Maker, add_key, new_key};
use tributary_core::services::seal::{SecretKey, SecretKeys};
use tributary_core::testing::drain;
use workers::http::Bounds;
use workers::{event, telemetry};

static SERVICES: OnceCell<Services> = OnceCell::const_new();

/// Which profile a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Embedded,
    Services,
}

pub struct TestApp {
    pub url: String,
    pub write_key: String,
    pub secret_key: String,
    pub brand: BrandId,
    pub context: Context,
    pub http: reqwest::Client,
    /// Who looked at what, until it is noted.
    pub looks: Arc<server::audit::Looks>,
    /// How automations reach the world outside: private addresses, and no SMTP unless the test sets it.
    pub outbound: Outbound,
    /// Where the store is, as sqlx opens it.
    pub store: String,
    backend: Backend,
    clock: Option<ManualClock>,
    stop: CancellationToken,
    running: Vec<JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

pub const SHOP: &str = "stack.myshopify.com";
pub const SHOP_SECRET: &str = "test-secret";

impl TestApp {
    /// A server without workers: call [`TestApp::drain`].
    pub async fn start(on: On) -> Self {
        Self::start_with(on, 0, QueueSettings::default()).await
    }

    /// A server with `lanes` of workers.
    pub async fn start_with(on: On, lanes: usize, settings: QueueSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Self::backend(on, &folder).await;
        Self::start_on(&backend, folder, lanes, settings).await
    }

    async fn backend(on: On, folder: &tempfile::TempDir) -> Backend {
        match on {
            On::Embedded => Backend::Embedded { data: folder.path().join("data") },
            On::Services => {
                let services = SERVICES
                    .get_or_init(async || Services::start().await.unwrap_or_else(|error| panic!("{error:#}")))
                    .await;
                services_backend(&services.fresh_database().await.unwrap(), &services.redis_url)
            }
        }
    }

    /// A server on services of the test's own, which it may kill.
    pub async fn start_on(
        backend: &Backend,
        folder: tempfile::TempDir,
        lanes: usize,
        settings: QueueSettings,
    ) -> Self {
        Self::start_by(backend, folder, lanes, settings, None).await
    }

    /// A server whose clock the test has in its hand.
    pub async fn start_at(on: On, clock: &ManualClock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Self::backend(on, &folder).await;
        Self::start_by(&backend, folder, 0, QueueSettings::default(), Some(clock.clone())).await
    }

    /// The same, with other settings of the queue.
    pub async fn start_with_at(on: On, settings: QueueSettings, clock: &ManualClock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Self::backend(on, &folder).await;
        Self::start_by(&backend, folder, 0, settings, Some(clock.clone())).await
    }

    async fn start_by(
        backend: &Backend,
        folder: tempfile::TempDir,
        lanes: usize,
        settings: QueueSettings,
        clock: Option<ManualClock>,
    ) -> Self {
        let world = clock.clone().map_or_else(World::real, World::on);
        let context = Context::open_in(backend, settings, world).await.unwrap();
        let store = match backend {
            Backend::Embedded { data } => format!("sqlite://{}", data.join("store.db").display()),
            Backend::Services { database_url, .. } => database_url.clone(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let brand = context.brand_ports.brands.add_brand("test").await.unwrap();
        let write_key = new_key(&context.brand_ports, &context.world, brand, KeyKind::Write).await.unwrap();
        let secret_key = new_key(&context.brand_ports, &context.world, brand, KeyKind::Secret).await.unwrap();
        context.brand_ports.shops.add_shop(SHOP, brand, SHOP_SECRET).await.unwrap();
        let routes = Settings {
            cache_ttl: Duration::from_secs(300),
            alarms: Alarms { max_lag: Duration::from_secs(60), dead: 1000 },
            connections: Bounds::usual(),
            monitor: Monitor::default(),
            sender_limit: None,
            key_days: None,
        };
        let state = AppState::new(context.clone(), telemetry::no_metrics(), routes);
        let looks = state.looks.clone();
        let serving = server::serve(listener, state, stop.clone());
        let mut running = vec![tokio::spawn(async move { serving.await.unwrap() })];
        if lanes > 0 {
            let options = event::Options { concurrency: lanes, batch: 50, grace: Duration::from_secs(5) };
            running.push(tokio::spawn(event::run(context.clone(), options, stop.clone())));
        }
        let http = reqwest::Client::new();
        let outbound = outbound(None, &url);
        Self {
            outbound,
            url,
            write_key,
            secret_key,
            brand,
            context,
            http,
            store,
            looks,
            backend: backend.clone(),
            clock,
            stop,
            running,
            _folder: folder,
        }
    }

    /// The data folder (embedded).
    pub fn data(&self) -> std::path::PathBuf {
        self._folder.path().join("data")
    }

    /// Runs a statement on the store, past Tributary.
    pub async fn by_hand(&self, statement: &'static str) {
        if self.store.starts_with("sqlite") {
            let mut file = sqlx::SqliteConnection::connect(&self.store).await.unwrap();
            sqlx::query(statement).execute(&mut file).await.unwrap();
        } else {
            let mut database = sqlx::PgConnection::connect(&self.store).await.unwrap();
            sqlx::query(statement).execute(&mut database).await.unwrap();
        }
    }

    /// From now on nothing can be written into the audit log.
    pub async fn break_audit_log(&self) {
        self.by_hand("alter table audit_log rename to audit_log_away").await;
    }

    /// Where a mark stands in whole dumps of PostgreSQL and Redis: `found` says how often.
    pub async fn found_in_services(&self, found: impl Fn(&[u8]) -> usize) -> Vec<String> {
        let Backend::Services { database_url, redis_url, .. } = &self.backend else { return Vec::new() };
        let mut dump = tokio::process::Command::new("pg_dump");
        dump.args(["--inserts", "--enable-row-security", database_url]);
        let dump = dump.env("PGOPTIONS", "-c tributary.every_brand=on").output().await.expect("pg_dump runs");
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        let mut places: Vec<String> = String::from_utf8_lossy(&dump.stdout)
            .lines()
            .filter(|line| found(line.as_bytes()) > 0)
            .map(|line| format!("PostgreSQL: {}", line.chars().take(400).collect::<String>()))
            .collect();
        let address = redis_url.trim_start_matches("redis://").split('/').next().unwrap();
        let mut redis = tokio::net::TcpStream::connect(address).await.unwrap();
        let mut folder = String::new();
        for command in ["CONFIG SET rdbcompression no", "SAVE", "CONFIG GET dir"] {
            redis.write_all(format!("{command}\r\n").as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = redis.read(&mut answer).await.unwrap();
            folder = String::from_utf8_lossy(&answer[..length]).into_owned();
        }
        let folder = folder.lines().last().unwrap().trim();
        let saved = std::fs::read(std::path::Path::new(folder).join("dump.rdb")).expect("what Redis saved");
        // Piece by piece, so that a failure shows what is about it.
        let pieces = saved.chunks(200).filter(|piece| found(piece) > 0);
        places.extend(pieces.map(|piece| format!("Redis: {}", String::from_utf8_lossy(piece))));
        if places.is_empty() && found(&saved) > 0 {
            places.push(format!("Redis: {} times", found(&saved)));
        }
        places
    }

    /// A client that speaks to it as browsers and Shopify do.
    pub fn client(&self) -> Client {
        let access = Access {
            url: self.url.clone(),
            write_key: self.write_key.clone(),
            secret_key: self.secret_key.clone(),
            shop_domain: SHOP.into(),
            shop_secret: SHOP_SECRET.into(),
        };
        Client::new(access).unwrap()
    }

    /// Processes what is due in the test itself, until nothing is left.
    pub async fn drain(&self) {
        let drained = drain(&self.context, &self.outbound);
        match &self.clock {
            Some(clock) => clock.drive(drained).await,
            None => drained.await,
        };
    }

    /// `POST path` with the write key.
    pub fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).basic_auth(&self.write_key, Some("")).body(body)
    }

    /// `GET path` with the secret key.
    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.http.get(format!("{}{path}", self.url)).bearer_auth(&self.secret_key)
    }

    /// Stops server and workers as a signal would.
    pub async fn stop(self) {
        self.stop.cancel();
        for task in self.running {
            tokio::time::timeout(POLL * 10, task).await.expect("it stops in time").unwrap();
        }
    }
}

/// A key with that grant.
pub async fn key_with(context: &Context, grant: KeyGrant) -> String {
    let maker = Maker { actor: "test", key: None, may: Scopes::all(), until: None, limit: None };
    add_key(context, grant, maker).await.unwrap()
}

/// To private addresses, and to a mailbox if there is one.
pub fn outbound(smtp_url: Option<&str>, public_url: &str) -> Outbound {
    let reach = Reach { private: true, http: false };
    Outbound {
        sender: Arc::new(OutboundSender::new(smtp_url, reach).unwrap()),
        sends_mail: smtp_url.is_some(),
        reach,
        destinations: Arc::new(Destinations::new(DEFAULT_RATE, World::real())),
        public_url: Some(public_url.to_owned()),
    }
}

/// A backend on these services, in a key space of its own.
pub fn services_backend(database_url: &str, redis_url: &str) -> Backend {
    Backend::Services {
        database_url: database_url.to_owned(),
        redis_url: redis_url.to_owned(),
        key_space: Services::fresh_key_space(),
        connections: 8,
        layout: Layout::Lists,
        keys: SecretKeys::new(SecretKey::random(&World::real()), Vec::new()),
    }
}

/// Status and JSON of an answer.
pub async fn answer(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
}

/// Compares JSON with a snapshot in `snapshots/`, the same for both profiles. `INSTA_UPDATE=always cargo test` writes what is now.
#[macro_export]
macro_rules! assert_same_json {
    ($name:literal, $value:expr, $redactions:tt) => {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_json_snapshot!($name, $value, $redactions);
        })
    };
}

/// Each test once a profile.
#[macro_export]
macro_rules! on_both_profiles {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
               async fn $test() { super::$test($crate::support::On::Embedded).await } )*
        }
        mod services {
            $( #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
               async fn $test() { super::$test($crate::support::On::Services).await } )*
        }
    };
}
