//! The locks on Redis: SET NX PX in one step for all of them, compare-and-extend, compare-and-delete.

use std::time::Duration;

use async_trait::async_trait;
use redis::{RedisResult, Script, Value, from_redis_value};

use super::client::RedisClient;
use super::keys::LockKeys;
use super::ttl_ms;
use crate::adapters::in_time;
use crate::ports::clock::Moment;
use crate::ports::fault::Fault;
use crate::ports::locks::{Acquired, Lock, LockError, Locks, valid_until};
use crate::ports::world::World;

/// How long one call may take. A lock saves work: who waits longer for it is better off without.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The locks in a client's key space.
pub struct RedisLocks {
    redis: RedisClient,
    world: World,
    keys: LockKeys,
    lock: Script,
    extend: Script,
    unlock: Script,
}

impl RedisLocks {
    /// The locks in the client's key space.
    pub fn new(redis: RedisClient, world: World) -> Self {
        let keys = LockKeys::new(redis.space());
        Self {
            redis,
            world,
            keys,
            lock: Script::new(include_str!("scripts/lock.lua")),
            extend: Script::new(include_str!("scripts/extend.lua")),
            unlock: Script::new(include_str!("scripts/unlock.lua")),
        }
    }

    /// For tests that take a guard out of the scripts, to see that its absence is noticed.
    #[doc(hidden)]
    pub fn with_scripts_edited(self, edit: impl Fn(&str) -> String) -> Self {
        Self {
            lock: Script::new(&edit(include_str!("scripts/lock.lua"))),
            extend: Script::new(&edit(include_str!("scripts/extend.lua"))),
            unlock: Script::new(&edit(include_str!("scripts/unlock.lua"))),
            ..self
        }
    }

    pub fn keys(&self) -> &LockKeys {
        &self.keys
    }

    fn locks(&self, names: &[String]) -> Vec<String> {
        names.iter().map(|name| self.keys.lock(name)).collect()
    }

    async fn unlock(&self, names: &[String], token: &str) -> Result<usize, LockError> {
        let keys = self.locks(names);
        let run = self.redis.run(&self.unlock, &keys, |command| {
            command.arg(token);
        });
        answer(run).await
    }
}

#[async_trait]
impl Locks for RedisLocks {
    async fn acquire(
        &self,
        names: &[String],
        ttl: Duration,
        seed: Option<i64>,
    ) -> Result<Acquired, LockError> {
        let token = self.world.token().simple().to_string();
        let mut keys = vec![self.keys.fence()];
        keys.extend(self.locks(names));
        let asked = self.world.monotonic();
        let run = self.redis.run(&self.lock, &keys, |command| {
            command.arg(&token).arg(ttl_ms(ttl)).arg(seed.map(|seed| seed.to_string()).unwrap_or_default());
        });
        match answer::<i64>(run).await {
            Ok(0) => Ok(Acquired::Busy),
            Ok(-1) => Ok(Acquired::Forgotten),
            Ok(fence) => {
                let valid_until = valid_until(asked, ttl);
                Ok(Acquired::Held(Lock { names: names.to_vec(), token, fence, valid_until }))
            }
            Err(error) => {
                // It may be held all the same: nobody else should wait for its time to end.
                let _ = self.unlock(names, &token).await;
                Err(error)
            }
        }
    }

    async fn extend(&self, lock: &Lock, ttl: Duration) -> Result<Option<Moment>, LockError> {
        let keys = self.locks(&lock.names);
        let asked = self.world.monotonic();
        let run = self.redis.run(&self.extend, &keys, |command| {
            command.arg(&lock.token).arg(ttl_ms(ttl));
        });
        Ok((answer::<i64>(run).await? == 1).then(|| valid_until(asked, ttl)))
    }

    async fn release(&self, lock: &Lock) -> Result<bool, LockError> {
        Ok(self.unlock(&lock.names, &lock.token).await? == lock.names.len())
    }
}

async fn answer<T: redis::FromRedisValue>(
    run: impl Future<Output = RedisResult<Value>>,
) -> Result<T, LockError> {
    let answer = in_time(TIMEOUT, run)
        .await
        .map_err(|_| LockError(format!("no answer in {} ms", TIMEOUT.as_millis()).into()))?
        .map_err(|error| LockError(Fault::of(error)))?;
    from_redis_value(answer).map_err(|error| LockError(Fault::of(error)))
}
