//! The cache of answers. It saves work and is never asked for the truth: whoever reads an answer out of it holds it against what the
//! store says of its revision, so that nothing depends on what became of an entry.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::ports::fault::Fault;

/// Why a cache did not answer. The caller goes on without it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheError(pub Fault);

impl fmt::Display for CacheError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cache cannot be reached: {}", self.0)
    }
}

impl Error for CacheError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// The cache port. Keys begin with the brand they belong to: `{brand}:…`.
#[async_trait]
pub trait Cache: Send + Sync {
    /// What is kept under a key, if it is there and not too old.
    async fn get(&self, key: &str) -> Result<Option<Bytes>, CacheError>;

    /// Keeps something for `ttl`, in place of whatever the key holds.
    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError>;

    /// Drops what is kept under those keys.
    async fn remove(&self, keys: &[String]) -> Result<(), CacheError>;

    /// Drops all whose keys begin with `prefix`; answers how many.
    async fn remove_prefix(&self, prefix: &str) -> Result<u64, CacheError>;

    async fn ping(&self) -> Result<(), CacheError>;
}
