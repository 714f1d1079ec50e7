//! The cache in the process, with the same rules as the one on Redis.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use moka::Expiry;
use moka::sync::Cache as Moka;

use crate::ports::cache::{Cache, CacheError};

/// Most bytes of answers held; beyond it the least used go.
pub const MAX_BYTES: u64 = 128 * 1024 * 1024;
/// What an entry costs beside its key and value, about.
const ENTRY_BYTES: usize = 100;

#[derive(Clone)]
struct Held {
    value: Bytes,
    ttl: Duration,
}

struct ByOwnTtl;

impl Expiry<String, Held> for ByOwnTtl {
    fn expire_after_create(&self, _: &String, held: &Held, _: Instant) -> Option<Duration> {
        Some(held.ttl)
    }

    fn expire_after_update(
        &self,
        _: &String,
        held: &Held,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(held.ttl)
    }
}

/// The cache in the process.
pub struct MemoryCache(Arc<Moka<String, Held>>);

impl Default for MemoryCache {
    fn default() -> Self {
        let held = Moka::builder()
            .max_capacity(MAX_BYTES)
            .weigher(|key: &String, held: &Held| {
                u32::try_from(key.len() + held.value.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
            })
            .expire_after(ByOwnTtl);
        Self(Arc::new(held.build()))
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        Ok(self.0.get(key).map(|held| held.value))
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError> {
        self.0.insert(key.to_owned(), Held { value, ttl });
        Ok(())
    }

    async fn remove(&self, keys: &[String]) -> Result<(), CacheError> {
        keys.iter().for_each(|key| self.0.invalidate(key));
        Ok(())
    }

    async fn remove_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        let keys: Vec<String> =
            self.0.iter().map(|(key, _)| key.to_string()).filter(|key| key.starts_with(prefix)).collect();
        self.remove(&keys).await?;
        Ok(keys.len() as u64)
    }

    async fn ping(&self) -> Result<(), CacheError> {
        Ok(())
    }
}
