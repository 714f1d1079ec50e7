//! Locks with a time to live and fencing tokens.
//!
//! A lock saves work; it makes nothing safe. It may expire while its holder is stopped, be lost with Redis, or be granted
//! twice after a failover. What makes a merge safe is the store, which takes a fencing token once: each grant has a higher
//! token than the one before, and the store commits under a token only where the profile's last was strictly lower
//! ([`crate::ports::store::ProfilesTx::fence`]). Where the tokens' counter was forgotten, `acquire` says so, and is asked again
//! with the highest token that the store has seen.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use super::clock::Moment;
use crate::ports::fault::Fault;

/// Part of a lock's time that is not relied on: clocks drift.
const DRIFT_PERCENT: u32 = 1;
/// What is not relied on besides.
const DRIFT: Duration = Duration::from_millis(2);

/// Locks that are held together, under one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What is locked, sorted.
    pub names: Vec<String>,
    /// Known to nobody else: release and extension compare it.
    pub token: String,
    pub fence: i64,
    /// Until when the holder may believe in it, on its own monotonic clock.
    pub valid_until: Moment,
}

/// What came of asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// All of it is held.
    Held(Lock),
    /// Somebody else holds part of it; nothing was taken.
    Busy,
    /// The tokens' counter is lost; nothing was taken. Ask again with the highest token that was ever used.
    Forgotten,
}

/// Why a lock could not be asked for: whether it acted is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockError(pub Fault);

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the locks cannot be reached: {}", self.0)
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

#[async_trait]
pub trait Locks: Send + Sync {
    /// Takes all of `names`, which must be sorted, or nothing. `seed` is the highest token known to have been used, where
    /// the caller knows.
    async fn acquire(
        &self,
        names: &[String],
        ttl: Duration,
        seed: Option<i64>,
    ) -> Result<Acquired, LockError>;

    /// Makes a lock last for `ttl` from now, if all of it is still its holder's; answers until when, or `None` when it is
    /// lost.
    async fn extend(&self, lock: &Lock, ttl: Duration) -> Result<Option<Moment>, LockError>;

    /// Gives up what of it is still its holder's; answers whether all was.
    async fn release(&self, lock: &Lock) -> Result<bool, LockError>;
}

/// Until when a lock may be believed in that was asked for at `asked`.
pub(crate) fn valid_until(asked: Moment, ttl: Duration) -> Moment {
    asked + ttl.saturating_sub(ttl * DRIFT_PERCENT / 100 + DRIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::clock::{Clock, SystemClock};

    #[test]
    fn a_lock_is_believed_in_for_less_than_it_lasts() {
        let asked = SystemClock.monotonic();
        for ttl in [Duration::from_millis(10), Duration::from_secs(10), Duration::from_secs(3600)] {
            let believed = valid_until(asked, ttl).since(asked);
            assert!(believed < ttl && believed + ttl / 100 + DRIFT >= ttl, "{believed:?} of {ttl:?}");
        }
        assert_eq!(valid_until(asked, Duration::from_millis(1)), asked, "too short to be believed in at all");
    }
}
