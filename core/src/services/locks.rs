//! Asking for a lock where the fencing tokens' counter may be forgotten.

use std::time::Duration;

use crate::ports::locks::{Acquired, LockError, Locks};
use crate::ports::store::{Store, StoreError};

/// One try. Where the counter is forgotten, it is seeded with the highest token that the store has seen, so that it never
/// falls behind; so this is never answered with [`Acquired::Forgotten`].
///
/// # Errors
/// The locks' own, inside; the store's, outside.
pub async fn acquire(
    locks: &dyn Locks,
    store: &dyn Store,
    names: &[String],
    ttl: Duration,
    seed: Option<i64>,
) -> Result<Result<Acquired, LockError>, StoreError> {
    match locks.acquire(names, ttl, seed).await {
        Ok(Acquired::Forgotten) => {
            let seed = store.last_fence().await?;
            Ok(locks.acquire(names, ttl, Some(seed)).await)
        }
        answer => Ok(answer),
    }
}
