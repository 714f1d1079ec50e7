//! Where Redis and PostgreSQL come from: the URLs in `TEST_REDIS_URL` and `TEST_DATABASE_URL`, private instances of the
//! programs on this machine, or containers. A machine that offers none of these is an error that says what to do.

use anyhow::Context;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use crate::postgres::Postgres;
use crate::redis::{Fsync, Redis};

/// Names a Redis for the tests.
pub const TEST_REDIS_URL: &str = "TEST_REDIS_URL";
/// Names a PostgreSQL for the tests, of a user who may create databases.
pub const TEST_DATABASE_URL: &str = "TEST_DATABASE_URL";

/// A Redis and a PostgreSQL, kept up as long as this is held.
pub struct Services {
    pub redis_url: String,
    /// Where PostgreSQL is: a user who may create databases, in a database that is there.
    pub database_url: String,
    _held: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

impl Services {
    /// Finds or starts both.
    ///
    /// # Errors
    /// With instructions, when one can be neither found nor started.
    pub async fn start() -> anyhow::Result<Self> {
        let mut held: Vec<Box<dyn std::any::Any + Send + Sync>> = Vec::new();
        let redis_url = match std::env::var(TEST_REDIS_URL) {
            Ok(url) => url,
            Err(_) if crate::redis::program().is_some() => {
                let redis = Redis::start(Fsync::Always).await?;
                let url = redis.url();
                held.push(Box::new(redis));
                url
            }
            Err(_) => {
                containers::redis(&mut held).await.context(how_to("Redis", TEST_REDIS_URL, "redis-server"))?
            }
        };
        let database_url = match std::env::var(TEST_DATABASE_URL) {
            Ok(url) => url,
            Err(_) if crate::postgres::programs().is_some() => {
                let postgres = Postgres::start().await?;
                let url = postgres.url();
                held.push(Box::new(postgres));
                url
            }
            Err(_) => containers::postgres(&mut held).await.context(how_to(
                "PostgreSQL",
                TEST_DATABASE_URL,
                "postgresql",
            ))?,
        };
        Ok(Self { redis_url, database_url, _held: held })
    }

    /// Makes an empty database, and answers its URL.
    ///
    /// # Errors
    /// When PostgreSQL refuses.
    pub async fn fresh_database(&self) -> anyhow::Result<String> {
        let name = format!("tributary_{}", Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(&self.database_url).await?;
        connection.execute(AssertSqlSafe(format!("create database {name}"))).await?;
        let (base, query) = self.database_url.split_once('?').unwrap_or((&self.database_url, ""));
        let base = base.rsplit_once('/').map_or(base, |(base, _)| base);
        Ok(if query.is_empty() { format!("{base}/{name}") } else { format!("{base}/{name}?{query}") })
    }

    /// A key space in Redis that nobody else uses.
    pub fn fresh_key_space() -> String {
        format!("test-{}", Uuid::new_v4().simple())
    }
}

fn how_to(what: &str, variable: &str, package: &str) -> String {
    let docker = if cfg!(feature = "containers") { ", or start Docker" } else { "" };
    format!(
        "the tests need a real {what}: install the package {package} (ci/setup does), or name one in {variable}{docker}"
    )
}

#[cfg(feature = "containers")]
mod containers {
    use testcontainers::core::{IntoContainerPort, WaitFor};
    use testcontainers::runners::AsyncRunner;
    use testcontainers::{GenericImage, ImageExt};

    type Held = Vec<Box<dyn std::any::Any + Send + Sync>>;

    pub(super) async fn redis(held: &mut Held) -> anyhow::Result<String> {
        let container = GenericImage::new("redis", "7-alpine")
            .with_exposed_port(6379.tcp())
            .with_wait_for(WaitFor::message_on_stdout("Ready to accept connections"))
            .with_cmd(["redis-server", "--appendonly", "yes", "--appendfsync", "always"])
            .start()
            .await?;
        let url = format!(
            "redis://{}:{}/0",
            container.get_host().await?,
            container.get_host_port_ipv4(6379).await?
        );
        held.push(Box::new(container));
        Ok(url)
    }

    pub(super) async fn postgres(held: &mut Held) -> anyhow::Result<String> {
        let container = GenericImage::new("postgres", "17-alpine")
            .with_exposed_port(5432.tcp())
            // The image starts twice: the first time only to set itself up.
            .with_wait_for(WaitFor::message_on_stdout("PostgreSQL init process complete"))
            .with_wait_for(WaitFor::message_on_stderr("database system is ready to accept connections"))
            .with_env_var("POSTGRES_PASSWORD", "tributary")
            .start()
            .await?;
        let (host, port) = (container.get_host().await?, container.get_host_port_ipv4(5432).await?);
        held.push(Box::new(container));
        Ok(format!("postgres://postgres:tributary@{host}:{port}/postgres"))
    }
}

#[cfg(not(feature = "containers"))]
mod containers {
    type Held = Vec<Box<dyn std::any::Any + Send + Sync>>;

    pub(super) async fn redis(_: &mut Held) -> anyhow::Result<String> {
        anyhow::bail!("this program starts no containers")
    }

    pub(super) async fn postgres(_: &mut Held) -> anyhow::Result<String> {
        anyhow::bail!("this program starts no containers")
    }
}
