//! Asking for a lock where the fencing tokens' counter may be forgotten.

use std::time::Duration;

use crate::ports::locks::{Acquired, Lock, LockError, Locks};
use crate::ports::store::{Store, StoreError};

/// What came of asking for a lock.
pub enum Granted {
    Held(Lock),
    /// Somebody else has it.
    Busy,
    /// The locks did not answer.
    Unreachable(LockError),
}

/// One try. Where the counter is forgotten, it is seeded with the highest token that `store` has seen, so that it never
/// falls behind.
///
/// # Errors
/// The store's own; [`StoreError::Fenced`] where the counter is forgotten and there is no `store` to ask.
pub async fn acquire(
    locks: &dyn Locks,
    store: Option<&dyn Store>,
    names: &[String],
    ttl: Duration,
    seed: Option<i64>,
) -> Result<Granted, StoreError> {
    let mut answer = locks.acquire(names, ttl, seed).await;
    if let Ok(Acquired::Forgotten) = answer {
        let seed = store.ok_or(StoreError::Fenced(0))?.last_fence().await?;
        answer = locks.acquire(names, ttl, Some(seed)).await;
    }
    Ok(match answer {
        Ok(Acquired::Held(lock)) => Granted::Held(lock),
        // Forgotten again, right after it was seeded: another try will tell.
        Ok(Acquired::Busy | Acquired::Forgotten) => Granted::Busy,
        Err(error) => Granted::Unreachable(error),
    })
}
