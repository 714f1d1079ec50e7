//! The cache on Redis.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, RedisResult};

use super::client::RedisClient;
use super::{escaped, keys, ttl_ms};
use crate::adapters::in_time;
use crate::ports::cache::{Cache, CacheError};
use crate::ports::fault::Fault;

/// Keys that one step of SCAN looks at.
const SCAN_COUNT: usize = 500;
/// How long a call may take: the cache saves work, and a caller that waits for it longer is better off without.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The cache on Redis.
pub struct RedisCache {
    redis: RedisClient,
}

impl RedisCache {
    /// The cache in the client's key space.
    pub fn new(redis: RedisClient) -> Self {
        Self { redis }
    }

    async fn within<T>(&self, call: impl Future<Output = RedisResult<T>>) -> Result<T, CacheError> {
        match in_time(TIMEOUT, call).await {
            Ok(answer) => answer.map_err(|error| CacheError(Fault::of(error))),
            Err(_) => Err(CacheError(Fault::no_answer(TIMEOUT))),
        }
    }

    fn key(&self, key: &str) -> String {
        keys::cache(self.redis.space(), key)
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn get(&self, key: &str) -> Result<Option<Bytes>, CacheError> {
        let mut command = Cmd::new();
        command.arg("GET").arg(self.key(key));
        let held: Option<Vec<u8>> = self.within(command.query_async(&mut self.redis.shared())).await?;
        Ok(held.map(Bytes::from))
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), CacheError> {
        let mut command = Cmd::new();
        command.arg("SET").arg(self.key(key)).arg(&value[..]).arg("PX").arg(ttl_ms(ttl));
        self.within(command.exec_async(&mut self.redis.shared())).await
    }

    async fn remove(&self, keys: &[String]) -> Result<(), CacheError> {
        if keys.is_empty() {
            return Ok(());
        }
        let mut command = Cmd::new();
        command.arg("UNLINK");
        keys.iter().for_each(|key| {
            command.arg(self.key(key));
        });
        self.within(command.exec_async(&mut self.redis.shared())).await
    }

    async fn remove_prefix(&self, prefix: &str) -> Result<u64, CacheError> {
        let pattern = format!("{}*", escaped(&self.key(prefix)));
        let (mut cursor, mut dropped) = (0_u64, 0_u64);
        loop {
            let mut command = Cmd::new();
            command.arg("SCAN").arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN_COUNT);
            let (next, found): (u64, Vec<String>) =
                self.within(command.query_async(&mut self.redis.shared())).await?;
            if !found.is_empty() {
                let mut command = Cmd::new();
                command.arg("UNLINK").arg(&found);
                self.within(command.exec_async(&mut self.redis.shared())).await?;
                dropped += found.len() as u64;
            }
            if next == 0 {
                return Ok(dropped);
            }
            cursor = next;
        }
    }

    async fn ping(&self) -> Result<(), CacheError> {
        self.within(self.redis.ping()).await
    }
}
