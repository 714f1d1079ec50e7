//! Running a merge under its lock: [`with_merge_lock`].
//!
//! The lock keeps two workers from doing the same work; the fencing token that comes with it is checked by the store, in the
//! transaction that merges. So when the lock expires, is stolen or cannot be had because Redis is unavailable, work may be done
//! twice, and is committed once.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::domain::ids::{BrandId, ProfileId};
use crate::ports::clock::Moment;
use crate::ports::locks::{Lock, Locks};
use crate::ports::store::{Store, StoreError};
use crate::ports::world::World;
use crate::services::locks::{Granted, acquire};

/// How long a merge's lock lasts without an extension.
pub const MERGE_LOCK_TTL: Duration = Duration::from_secs(10);
/// How often it is extended at most: a merge that takes longer is stuck.
pub const MAX_EXTENSIONS: u32 = 30;
/// The longest wait between two tries for a lock that somebody holds; drawn again each time.
const RETRY_WAIT: Duration = Duration::from_millis(50);

/// The lock's name of a profile.
pub fn lock_name(brand: BrandId, profile: ProfileId) -> String {
    format!("merge:{brand}:{profile}")
}

/// How to take a lock.
#[derive(Clone, Copy, Debug)]
pub struct LockOptions {
    /// How long it lasts without an extension.
    pub ttl: Duration,
    /// How long to wait for somebody else's; zero for one try.
    pub patience: Duration,
    /// The highest fencing token known to have been used, where the counter is known to be behind.
    pub seed: Option<i64>,
    /// A transaction is open: where the counter is forgotten, the store cannot be asked beside it (that would take a second
    /// connection while holding one). The caller gets [`StoreError::Fenced`], and tries again with a seed.
    pub inside_transaction: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        Self { ttl: MERGE_LOCK_TTL, patience: Duration::ZERO, seed: None, inside_transaction: false }
    }
}

/// What the work runs under.
#[derive(Clone)]
pub struct LockGuard {
    world: World,
    /// The fencing token; `None` where there is no lock, because the locks are unavailable: the store draws the next one itself.
    pub fence: Option<i64>,
    valid_until: Arc<Mutex<Option<Moment>>>,
}

impl LockGuard {
    /// To work without a lock.
    pub fn none(world: &World) -> Self {
        Self::under(world, None)
    }

    fn under(world: &World, lock: Option<&Lock>) -> Self {
        Self {
            world: world.clone(),
            fence: lock.map(|lock| lock.fence),
            valid_until: Arc::new(Mutex::new(lock.map(|lock| lock.valid_until))),
        }
    }

    /// Whether the lock's time is not over, as far as this process can know: to be asked just before the commit.
    pub fn is_valid(&self) -> bool {
        let until = *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_none_or(|until| self.world.monotonic() < until)
    }

    fn extend(&self, until: Moment) {
        *self.valid_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}

/// Runs `work` under the locks of `names`, which it sorts, and keeps them alive meanwhile. Work whose lock is lost is dropped where it
/// stands; a transaction in it is undone. Without reachable locks it runs all the same: see the module's text.
///
/// # Errors
/// [`StoreError::Conflict`] when somebody else holds one of them or it was lost; else the work's own.
pub async fn with_merge_lock<T, W>(
    locks: &dyn Locks,
    store: &dyn Store,
    world: &World,
    names: Vec<String>,
    options: LockOptions,
    work: impl FnOnce(LockGuard) -> W,
) -> Result<T, StoreError>
where
    W: Future<Output = Result<T, StoreError>>,
{
    let Some(lock) = acquire_in_time(locks, store, world, names, options).await? else {
        return work(LockGuard::none(world)).await;
    };
    let guard = LockGuard::under(world, Some(&lock));
    let outcome = tokio::select! {
        outcome = work(guard.clone()) => outcome,
        () = lost(locks, &lock, &guard, options.ttl) => {
            Err(StoreError::Conflict("the merge's lock was lost".into()))
        }
    };
    if let Err(error) = locks.release(&lock).await {
        tracing::debug!(%error, "a lock was not released; it expires");
    }
    outcome
}

/// The lock; `None` if the locks cannot be reached.
async fn acquire_in_time(
    locks: &dyn Locks,
    store: &dyn Store,
    world: &World,
    mut names: Vec<String>,
    options: LockOptions,
) -> Result<Option<Lock>, StoreError> {
    names.sort();
    names.dedup();
    let until = world.monotonic() + options.patience;
    loop {
        let store = (!options.inside_transaction).then_some(store);
        match acquire(locks, store, &names, options.ttl, options.seed).await? {
            Granted::Held(lock) => return Ok(Some(lock)),
            Granted::Busy if world.monotonic() < until => {
                world.sleep(RETRY_WAIT.mul_f64(world.fraction().max(0.1))).await;
            }
            Granted::Busy => return Err(StoreError::Conflict("another worker merges them now".into())),
            Granted::Unreachable(error) => {
                tracing::warn!(%error, "merging without a lock");
                return Ok(None);
            }
        }
    }
}

/// Returns when the lock is lost; extends it until then.
async fn lost(locks: &dyn Locks, lock: &Lock, guard: &LockGuard, ttl: Duration) {
    for _ in 0..MAX_EXTENSIONS {
        guard.world.sleep(ttl / 3).await;
        match locks.extend(lock, ttl).await {
            Ok(Some(until)) => guard.extend(until),
            Ok(None) => return,
            // Whether it arrived is unknown; what is known is until when the last one holds.
            Err(_) if guard.is_valid() => {}
            Err(_) => return,
        }
    }
}
