//! The connection pool, the migrations, and what PostgreSQL's errors mean to a caller.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Postgres, Transaction};

use crate::adapters::{in_time, migration};
use crate::domain::ids::BrandId;
use crate::ports::fault::Fault;
use crate::ports::store::StoreError;

/// How long a caller waits for a free connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one statement may take.
const STATEMENT_TIMEOUT: &str = "30s";
/// How long a statement waits for a lock that another transaction holds.
const LOCK_TIMEOUT: &str = "5s";
/// How long a transaction may stand still before PostgreSQL ends it, and its locks: its process is frozen, or its machine
/// is gone. About a lease: its items have gone to another worker by then.
const IDLE_TIMEOUT: &str = "15s";

/// Opens a pool of at most `connections` and brings the tables up to date.
///
/// # Errors
/// When the server cannot be reached or a migration fails.
pub async fn open(url: &str, connections: u32) -> Result<PgPool, StoreError> {
    let options = PgConnectOptions::from_str(url).map_err(failed)?.application_name("tributary").options([
        ("statement_timeout", STATEMENT_TIMEOUT),
        ("lock_timeout", LOCK_TIMEOUT),
        ("idle_in_transaction_session_timeout", IDLE_TIMEOUT),
        // workers serve all brands at once; who says a brand besides sees that one (migration 0008)
        ("tributary.every_brand", "on"),
        // a peer that vanished is noticed in about as long
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
    ]);
    migrate(&options).await?;
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // one whose commit or rollback failed is closed, and another is opened
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
        .connect_with(options)
        .await
        .map_err(failed)?;
    warn_of_weak_durability(&pool).await?;
    warn_of_a_role_without_wall(&pool).await?;
    Ok(pool)
}

/// Brings the tables up to date, on a connection of its own without limits of time: a large table may take long, and of processes that
/// start together one migrates while the others wait.
async fn migrate(options: &PgConnectOptions) -> Result<(), StoreError> {
    let patient = options.clone().options([("statement_timeout", "0"), ("lock_timeout", "0")]);
    let (host, port) = (options.get_host().to_owned(), options.get_port());
    let connecting = in_time(CONNECT_TIMEOUT, PgConnection::connect_with(&patient)).await;
    let mut connection = connecting
        .map_err(|_| StoreError::Unavailable(format!("PostgreSQL at {host}:{port} gives no answer").into()))?
        .map_err(|error| match error {
            sqlx::Error::Io(error) => {
                let text = format!("PostgreSQL at {host}:{port}: {error}");
                StoreError::Unavailable(Fault::stated(text, error))
            }
            other => failed(other),
        })?;
    sqlx_macros::migrate!("migrations/postgres").run(&mut connection).await.map_err(migration)?;
    connection.close().await.map_err(failed)
}

/// Opens a transaction. In a task of its own: if the caller is dropped while BEGIN is under way, the
/// connection must not go back to the pool with a transaction that nobody knows of, into which others' work would disappear.
pub(in crate::adapters) async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, StoreError> {
    begin_with(pool, "begin".to_owned()).await
}

/// Opens a transaction that sees and changes one brand's rows only, whatever its statements forget (migrations 0004, 0008).
pub(in crate::adapters) async fn begin_for(
    pool: &PgPool,
    brand: BrandId,
) -> Result<Transaction<'static, Postgres>, StoreError> {
    begin_with(pool, format!("begin; set local tributary.brand = '{}'", brand.0)).await
}

/// The same, for reading in one snapshot.
pub(in crate::adapters) async fn begin_reading(
    pool: &PgPool,
    brand: BrandId,
) -> Result<Transaction<'static, Postgres>, StoreError> {
    let begin = "begin isolation level repeatable read read only";
    begin_with(pool, format!("{begin}; set local tributary.brand = '{}'", brand.0)).await
}

async fn begin_with(pool: &PgPool, statement: String) -> Result<Transaction<'static, Postgres>, StoreError> {
    let pool = pool.clone();
    // Made of constants and a number.
    let begun = tokio::spawn(async move { pool.begin_with(AssertSqlSafe(statement)).await });
    begun.await.map_err(|error| StoreError::Unavailable(Fault::of(error)))?.map_err(failed)
}

async fn warn_of_weak_durability(pool: &PgPool) -> Result<(), StoreError> {
    let (commit, fsync): (String, String) =
        sqlx::query_as("select current_setting('synchronous_commit'), current_setting('fsync')")
            .fetch_one(pool)
            .await
            .map_err(failed)?;
    if commit == "off" || fsync == "off" {
        tracing::warn!(
            synchronous_commit = commit,
            fsync,
            "this PostgreSQL may forget committed events in a power cut; with both on it does not"
        );
    }
    Ok(())
}

async fn warn_of_a_role_without_wall(pool: &PgPool) -> Result<(), StoreError> {
    let above: bool =
        sqlx::query_scalar("select rolsuper or rolbypassrls from pg_roles where rolname = current_user")
            .fetch_one(pool)
            .await
            .map_err(failed)?;
    if above {
        tracing::warn!(
            "row-level security does not bind this PostgreSQL role, a superuser; an ordinary role that owns the tables has it \
             as a second barrier between brands"
        );
    }
    Ok(())
}

/// What an error means to a caller.
pub(in crate::adapters) fn failed(error: sqlx::Error) -> StoreError {
    let Some(database) = error.as_database_error() else {
        return match error {
            sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => {
                StoreError::Invalid(error.to_string())
            }
            _ => StoreError::Unavailable(Fault::of(error)),
        };
    };
    let text = database.to_string();
    match database.code().as_deref() {
        // serialization failure, deadlock, lock not available
        Some("40001" | "40P01" | "55P03") => StoreError::Conflict(text),
        // a statement over its time limit: the batch is too much, and must be halved rather than retried as it is
        Some("57014") => StoreError::Invalid(text),
        // the data: out of range, against a constraint, too complex. All else speaks of the server: away, full, read-only
        // after a failover, shutting down, closed to us. That is no fault of an event's.
        Some(code) if ["22", "23", "54"].contains(&&code[..2]) => StoreError::Invalid(text),
        _ => StoreError::Unavailable(Fault::stated(text, error)),
    }
}
