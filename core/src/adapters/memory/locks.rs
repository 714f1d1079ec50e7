//! The locks of one process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use crate::ports::clock::Moment;
use crate::ports::locks::{Acquired, Lock, LockError, Locks, valid_until};
use crate::ports::world::World;

/// Locks that are remembered before those whose time is over are cleared away.
const SWEPT_AT: usize = 1000;

/// The locks of one process. Its tokens' counter is forgotten with the process.
pub struct MemoryLocks {
    world: World,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Who holds what, until when.
    locks: HashMap<String, (String, Moment)>,
    fence: Option<i64>,
}

impl Held {
    fn holder(&self, name: &str, now: Moment) -> Option<&str> {
        self.locks.get(name).filter(|(_, until)| *until > now).map(|(token, _)| token.as_str())
    }

    fn is_all_of(&self, lock: &Lock, now: Moment) -> bool {
        lock.names.iter().all(|name| self.holder(name, now) == Some(&lock.token))
    }
}

impl MemoryLocks {
    /// Locks whose time goes by that world's clock.
    pub fn new(world: World) -> Self {
        Self { world, held: Mutex::default() }
    }

    /// For tests: ends a lock's time.
    #[doc(hidden)]
    pub fn end(&self, name: &str) {
        self.held().locks.remove(name);
    }

    /// For tests: forgets everything, as a restart does.
    #[doc(hidden)]
    pub fn forget(&self) {
        *self.held() = Held::default();
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Locks for MemoryLocks {
    async fn acquire(
        &self,
        names: &[String],
        ttl: Duration,
        seed: Option<i64>,
    ) -> Result<Acquired, LockError> {
        let now = self.world.monotonic();
        let mut held = self.held();
        if names.iter().any(|name| held.holder(name, now).is_some()) {
            return Ok(Acquired::Busy);
        }
        let Some(last) = held.fence.max(seed) else { return Ok(Acquired::Forgotten) };
        let fence = last + 1;
        held.fence = Some(fence);
        if held.locks.len() >= SWEPT_AT {
            held.locks.retain(|_, (_, until)| *until > now);
        }
        let token = self.world.token().simple().to_string();
        for name in names {
            held.locks.insert(name.clone(), (token.clone(), now + ttl));
        }
        Ok(Acquired::Held(Lock { names: names.to_vec(), token, fence, valid_until: valid_until(now, ttl) }))
    }

    async fn extend(&self, lock: &Lock, ttl: Duration) -> Result<Option<Moment>, LockError> {
        let now = self.world.monotonic();
        let mut held = self.held();
        if !held.is_all_of(lock, now) {
            return Ok(None);
        }
        for name in &lock.names {
            held.locks.insert(name.clone(), (lock.token.clone(), now + ttl));
        }
        Ok(Some(valid_until(now, ttl)))
    }

    async fn release(&self, lock: &Lock) -> Result<bool, LockError> {
        let now = self.world.monotonic();
        let mut held = self.held();
        let all = held.is_all_of(lock, now);
        for name in &lock.names {
            if held.holder(name, now) == Some(&lock.token) {
                held.locks.remove(name);
            }
        }
        Ok(all)
    }
}
