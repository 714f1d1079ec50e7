//! The cache of answers. It saves work and is never asked for the truth.
//!
//! The race to mind: a reader reads the store, a worker commits and invalidates, and only then the reader puts its old
//! answer. So `invalidate` leaves a mark behind for [`INVALIDATION_MARK`], and `put` does not write over anything, mark or
//! answer. A reader must therefore give up a read of the store sooner than that.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// How long an invalidated key cannot be filled again.
pub const INVALIDATION_MARK: Duration = Duration::from_secs(5);

/// Why a cache did not answer. The caller goes on without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cache cannot be reached: {0}")]
pub struct CacheError(pub String);

/// The cache port. Keys begin with the brand they belong to: `{brand}:…`.
#[async_trait]
pub trait Cache: Send + Sync {
    /// The answer under a key, if it is there and not too old.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, CacheError>;

    /// Keeps an answer for `ttl`, unless the key holds one or was invalidated just now.
    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError>;

    /// Writes over whatever the key holds.
    async fn replace(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError>;

    /// Drops answers and keeps them from being put back for [`INVALIDATION_MARK`].
    async fn invalidate(&self, keys: &[String]) -> Result<(), CacheError>;

    /// Drops all answers whose keys begin with `prefix`.
    async fn invalidate_prefix(&self, prefix: &str) -> Result<u64, CacheError>;

    /// Whether it answers.
    async fn ping(&self) -> Result<(), CacheError>;
}
