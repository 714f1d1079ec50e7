//! The ports' adapters. SQL and Redis commands live here and nowhere else.
//!
//! Invariant: nothing outside [`crate::context`] names an adapter, and no adapter knows another.

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
    StoreError::Unavailable(match error {
        sqlx::migrate::MigrateError::VersionMissing(version) => format!(
            "the tables are of a newer version of Tributary (they have had migration {version}, which this program does not know): start \
             that version or a newer one, or restore the backup from before it"
        ),
        other => format!("migrations: {other}"),
    })
}
