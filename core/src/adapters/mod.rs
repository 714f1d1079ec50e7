//! The ports' adapters. SQL and Redis commands live here and nowhere else.
//!
//! Invariant: nothing outside [`crate::context`] names an adapter, and no adapter knows another.

use std::time::Duration;

use crate::ports::clock::TimedOut;
use crate::ports::fault::Fault;
use crate::ports::store::StoreError;

pub mod folder;
pub mod memory;
pub mod outbound;
pub mod postgres;
pub mod redis;
pub mod sql;
pub mod sqlite;

/// What a migration's error means to a caller.
pub(crate) fn migration(error: sqlx::migrate::MigrateError) -> StoreError {
    let text = match &error {
        sqlx::migrate::MigrateError::VersionMissing(version) => format!(
            "the tables are of a newer version of Tributary (they have had migration {version}, which this program does not know): start \
             that version or a newer one, or restore the backup from before it"
        ),
        other => format!("migrations: {other}"),
    };
    StoreError::Unavailable(Fault::stated(text, error))
}

/// What `work` returns, if it ends within `time` of the machine's own: for what waits for another machine, or for the disk. A clock that
/// stands still must not make a broken connection wait for ever.
///
/// # Errors
/// [`TimedOut`]; the work is dropped.
#[expect(clippy::disallowed_methods, reason = "see the text")]
pub(crate) async fn in_time<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
    tokio::time::timeout(time, work).await.map_err(|_| TimedOut)
}
