//! Opening a file, the migrations, statements over many rows, and what SQLite's errors mean to a caller.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePoolOptions,
    SqliteQueryResult, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Sqlite, SqlitePool, Transaction};
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;

use crate::adapters::{in_time, migration};
use crate::ports::fault::Fault;
use crate::ports::store::StoreError;

/// How long a transaction waits for another process (an `admin` command) that writes to the same file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that read. Readers never wait for the writer.
const READERS: u32 = 4;
/// Rows of a statement with many rows: few sizes, so that few statements are prepared.
const ROWS: [usize; 4] = [100, 25, 5, 1];

/// Pages of the write-ahead log beyond which it is folded into the file, beside the writer: a commit that has to do it itself, at
/// SQLite's own bound, holds up whoever waits for its turn.
const FOLD_PAGES: i64 = 1000;
/// How often its length is looked at.
const FOLD_EVERY: Duration = Duration::from_millis(500);
/// Pages at which the writer folds it after all.
const FOLD_AT_LAST: i64 = 16_000;
/// The version of files in which nothing is left of deleted rows.
const SCRUBBED: i64 = 1;

/// One SQLite file: one connection that writes, some that read.
///
/// Write-ahead log with `synchronous = FULL`: a commit is on the disk when it returns, and a power cut loses nothing.
#[derive(Clone)]
pub struct Db {
    write: SqlitePool,
    pub(super) read: SqlitePool,
    folding: Arc<Folding>,
}

/// What folds the log, until it is dropped.
struct Folding {
    /// One at a time: a second is refused.
    turn: Arc<Mutex<()>>,
    task: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Db {
    async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            // what is deleted is written over: an erasure is to be one on the disk, too
            .pragma("secure_delete", "on")
            .pragma("temp_store", "memory")
            .pragma("cache_size", "-65536")
            .pragma("wal_autocheckpoint", FOLD_AT_LAST.to_string());
        // The writer comes first: it makes the file, and the readers find it in WAL mode.
        let write = pool().max_connections(1).connect_with(options.clone()).await?;
        let read = pool().max_connections(READERS).connect_with(options.clone()).await?;
        let turn = Arc::new(Mutex::new(()));
        let (until, ended) = oneshot::channel();
        let task = tokio::spawn(fold(options.connect().await?, turn.clone(), ended));
        let folding = Folding { turn, task: Mutex::new(Some((until, task))) };
        Ok(Self { write, read, folding: Arc::new(folding) })
    }

    /// Opens the store's file and brings its tables up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open_store(path: &Path) -> Result<Self, StoreError> {
        let db = Self::open(path).await.map_err(failed)?;
        db.scrub_once().await?;
        sqlx_macros::migrate!("migrations/sqlite").run(&db.write).await.map_err(migration)?;
        Ok(db)
    }

    /// Opens the queue's file and brings its tables up to date.
    ///
    /// # Errors
    /// When the file cannot be opened or a migration fails.
    pub async fn open_queue(path: &Path) -> Result<Self, StoreError> {
        let db = Self::open(path).await.map_err(failed)?;
        db.scrub_once().await?;
        sqlx_macros::migrate!("migrations/sqlite_queue").run(&db.write).await.map_err(migration)?;
        Ok(db)
    }

    /// Leaves nothing of what was deleted: the write-ahead log, which holds pages as they were, is folded into the file and emptied.
    ///
    /// # Errors
    /// When another process reads or writes all the while.
    pub async fn scrub(&self) -> Result<(), StoreError> {
        let _turn = self.folding.turn.lock().await;
        let (busy, _, _): (i64, i64, i64) =
            sqlx::query_as("pragma wal_checkpoint(truncate)").fetch_one(&self.write).await.map_err(failed)?;
        match busy {
            0 => Ok(()),
            _ => Err(StoreError::Unavailable("the write-ahead log is in use".into())),
        }
    }

    /// A file from before deleted rows were written over holds them in its free pages: it is written again, once.
    async fn scrub_once(&self) -> Result<(), StoreError> {
        let done: i64 =
            sqlx::query_scalar("pragma user_version").fetch_one(&self.write).await.map_err(failed)?;
        if done >= SCRUBBED {
            return Ok(());
        }
        let tables: i64 = sqlx::query_scalar("select count(*) from sqlite_schema")
            .fetch_one(&self.write)
            .await
            .map_err(failed)?;
        if tables > 0 {
            tracing::info!(
                "a database file of an older version is rewritten once; the time it takes grows with the file's size"
            );
            self.execute(sqlx::query("vacuum")).await?;
            self.scrub().await?;
        }
        // a constant
        self.execute(sqlx::query(AssertSqlSafe(format!("pragma user_version = {SCRUBBED}")))).await?;
        Ok(())
    }

    /// Closes the file: its log is folded into it.
    pub async fn close(&self) {
        if let Some((until, task)) = self.folding.task.lock().await.take() {
            drop(until);
            let _ = task.await;
        }
        self.read.close().await;
        self.write.close().await;
    }

    /// Runs one statement that writes: a transaction of its own.
    pub(super) async fn execute(
        &self,
        statement: Query<'_, Sqlite, SqliteArguments>,
    ) -> Result<SqliteQueryResult, StoreError> {
        statement.execute(&self.write).await.map_err(failed)
    }

    /// A transaction that writes. There is one at a time; it never has to be undone for another's sake.
    pub(in crate::adapters) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.write.begin_with("begin immediate").await
    }

    /// A transaction that reads, in one state, and holds up nobody who writes.
    pub(in crate::adapters) async fn begin_reading(
        &self,
    ) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.read.begin_with("begin").await
    }

    /// The connection that writes, for one statement: a transaction of its own.
    pub(in crate::adapters) async fn writer(&self) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        self.write.acquire().await
    }

    /// A connection that reads, for one statement.
    pub(in crate::adapters) async fn reader(&self) -> Result<PoolConnection<Sqlite>, sqlx::Error> {
        self.read.acquire().await
    }
}

/// A pool that hands out no connection that is within a transaction: one whose commit failed, on a full disk, and whose rollback failed
/// then, because SQLite had undone it already, would refuse everybody from then on. It is closed, and another is opened.
fn pool() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .idle_timeout(None)
        .max_lifetime(None)
        .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
}

/// Folds a write-ahead log into its file whenever it has grown, until the file is closed.
async fn fold(mut file: SqliteConnection, turn: Arc<Mutex<()>>, mut closed: oneshot::Receiver<()>) {
    while in_time(FOLD_EVERY, &mut closed).await.is_err() {
        let _turn = turn.lock().await;
        // Where it cannot be done now, it is done later, at last by the writer.
        if let Err(error) = fold_once(&mut file).await {
            tracing::debug!(%error, "a write-ahead log is folded later");
        }
    }
    let _ = file.close().await;
}

async fn fold_once(file: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let length = "pragma wal_checkpoint(noop)";
    let (_, pages, folded): (i64, i64, i64) = sqlx::query_as(length).fetch_one(&mut *file).await?;
    if pages - folded >= FOLD_PAGES {
        sqlx::query("pragma wal_checkpoint(passive)").execute(&mut *file).await?;
    }
    Ok(())
}

/// Cuts rows into pieces of few different sizes.
pub(in crate::adapters) fn pieces<T>(mut rows: &[T]) -> Vec<&[T]> {
    let mut cut = Vec::new();
    for size in ROWS {
        while rows.len() >= size {
            let (piece, rest) = rows.split_at(size);
            cut.push(piece);
            rows = rest;
        }
    }
    cut
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
    // The low byte is the primary result code: 18 too big, 19 constraint, 20 mismatch, 25 range speak of the data; what
    // is left - busy, full, I/O, read-only - of the machine.
    match database.code().and_then(|code| code.parse::<u32>().ok()).map(|code| code & 0xff) {
        Some(1 | 18 | 19 | 20 | 25) => StoreError::Invalid(database.to_string()),
        _ => StoreError::Unavailable(Fault::stated(database.to_string(), error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_on_the_disk_when_it_returns() {
        let folder = tempfile::tempdir().unwrap();
        for db in [
            Db::open_store(&folder.path().join("store.db")).await.unwrap(),
            Db::open_queue(&folder.path().join("queue.db")).await.unwrap(),
        ] {
            let mut tx = db.begin().await.unwrap();
            let synchronous: i64 =
                sqlx::query_scalar("pragma synchronous").fetch_one(&mut *tx).await.unwrap();
            let journal: String =
                sqlx::query_scalar("pragma journal_mode").fetch_one(&mut *tx).await.unwrap();
            assert_eq!((synchronous, journal.as_str()), (2, "wal"), "FULL, in the connection that writes");
        }
    }

    #[tokio::test]
    async fn a_connection_that_a_failed_commit_left_in_its_transaction_is_not_handed_out() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open_store(&folder.path().join("store.db")).await.unwrap();
        for ends in ["rollback", "commit"] {
            let mut tx = db.begin().await.unwrap();
            sqlx::query("pragma user_version = 9").execute(&mut *tx).await.unwrap();
            // As SQLite does by itself when the disk is full.
            sqlx::query(ends).execute(&mut *tx).await.unwrap();
            assert!(tx.commit().await.is_err(), "there is nothing to commit any more");
            db.begin().await.unwrap().commit().await.unwrap();
        }
        let reading = db.read.begin_with("begin").await.unwrap();
        drop(reading);
        db.read.begin_with("begin").await.unwrap().rollback().await.unwrap();
    }

    #[test]
    fn pieces_hold_every_row_once_and_in_order() {
        for count in [0, 1, 4, 5, 99, 100, 131, 512] {
            let rows: Vec<usize> = (0..count).collect();
            assert_eq!(pieces(&rows).concat(), rows);
            assert!(pieces(&rows).iter().all(|piece| ROWS.contains(&piece.len())));
        }
    }
}
