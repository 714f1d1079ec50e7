//! The cache in the process, with the same rules as the one on Redis.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use moka::sync::Cache as Moka;

use crate::ports::cache::{Cache, CacheError};
use crate::ports::clock::Moment;
use crate::ports::world::World;

/// Most bytes of answers held; beyond it the least used go.
pub const MAX_BYTES: u64 = 128 * 1024 * 1024;
/// What an entry costs beside its key and value, about.
const ENTRY_BYTES: usize = 100;

#[derive(Clone)]
struct Held {
    value: Bytes,
    until: Moment,
}

/// The cache in the process.
pub struct MemoryCache {
    world: World,
    held: Arc<Moka<String, Held>>,
}

impl MemoryCache {
    /// A cache whose entries end by that world's clock. One that has ended holds its memory until somebody asks for it, or others need the
    /// room.
    pub fn new(world: World) -> Self {
        let held = Moka::builder().max_capacity(MAX_BYTES).weigher(|key: &String, held: &Held| {
            u32::try_from(key.len() + held.value.len() + ENTRY_BYTES).unwrap_or(u32::MAX)
        });
        Self { world, held: Arc::new(held.build()) }
    }
}

#[async_trait]
impl Cache for MemoryCache {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        let Some(held) = self.held.get(key) else { return Ok(None) };
        if self.world.monotonic() < held.until {
            return Ok(Some(held.value));
        }
        self.held.invalidate(key);
        Ok(None)
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError> {
        self.held.insert(key.to_owned(), Held { value, until: self.world.monotonic() + ttl });
        Ok(())
    }

    async fn remove(&self, keys: &[String]) -> Result<(), CacheError> {
        keys.iter().for_each(|key| self.held.invalidate(key));
        Ok(())
    }

    async fn remove_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        let keys: Vec<String> =
            self.held.iter().map(|(key, _)| key.to_string()).filter(|key| key.starts_with(prefix)).collect();
        self.remove(&keys).await?;
        Ok(keys.len() as u64)
    }

    async fn ping(&self) -> Result<(), CacheError> {
        Ok(())
    }
}
