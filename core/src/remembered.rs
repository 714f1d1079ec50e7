//! What was found a while ago, believed for some time by a world's clock.

use std::hash::Hash;
use std::time::Duration;

use moka::sync::Cache;

use crate::ports::clock::Moment;
use crate::ports::fault::Fault;
use crate::ports::store::StoreError;
use crate::ports::world::World;

/// How long what the store said - settings, keys, shops - is believed while the store is unavailable.
pub const OUTAGE_TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// How long the store may take to refresh what is remembered.
const REFRESH_PATIENCE: Duration = Duration::from_millis(500);
/// How long after it did not answer it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Values by key. The least used go where there are too many.
pub struct Remembered<K, V> {
    world: World,
    found: Cache<K, Found<V>>,
}

impl<K, V> Clone for Remembered<K, V> {
    /// The same values, not a copy of them.
    fn clone(&self) -> Self {
        Self { world: self.world.clone(), found: self.found.clone() }
    }
}

#[derive(Clone)]
struct Found<V> {
    value: V,
    fresh_until: Moment,
    kept_until: Moment,
}

impl<K, V> Remembered<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Nothing yet, and at most `most` values.
    pub fn new(world: World, most: u64) -> Self {
        Self { world, found: Cache::new(most) }
    }

    /// The value, while it is believed without asking.
    pub fn fresh(&self, key: &K) -> Option<V> {
        self.found
            .get(key)
            .filter(|found| self.world.monotonic() < found.fresh_until)
            .map(|found| found.value)
    }

    /// The value, also where it would have to be asked for again: it serves while nobody can be asked.
    pub fn kept(&self, key: &K) -> Option<V> {
        self.found.get(key).filter(|found| self.world.monotonic() < found.kept_until).map(|found| found.value)
    }

    /// Remembers a value: `fresh` for so long, and kept for so long in all.
    pub fn put(&self, key: K, value: V, fresh: Duration, kept: Duration) {
        let now = self.world.monotonic();
        self.found.insert(key, Found { value, fresh_until: now + fresh, kept_until: now + kept.max(fresh) });
    }

    /// Believes a value for so long again, without keeping it for longer: nobody can be asked.
    pub fn trust(&self, key: K, fresh: Duration) {
        if let Some(found) = self.found.get(&key) {
            self.found.insert(key, Found { fresh_until: self.world.monotonic() + fresh, ..found });
        }
    }

    /// The value while it is believed, for `ttl`; else what `ask` finds in the store now. While the store is unavailable, what was
    /// found before is good for [`OUTAGE_TTL`]. What is not found is asked for every time, so that what is new holds at once.
    ///
    /// # Errors
    /// The store's own; [`StoreError::Unavailable`] only where nothing is remembered.
    pub async fn refreshed(
        &self,
        key: K,
        ttl: Duration,
        ask: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<V>, StoreError> {
        if let Some(value) = self.fresh(&key) {
            return Ok(Some(value));
        }
        let held = self.kept(&key);
        // With a copy in hand nobody waits long: a store that is unavailable may take its time to say so.
        let asked = match &held {
            Some(_) => self
                .world
                .timeout(REFRESH_PATIENCE, ask)
                .await
                .unwrap_or_else(|_| Err(StoreError::Unavailable(Fault::no_answer(REFRESH_PATIENCE)))),
            None => ask.await,
        };
        match (asked, held) {
            (Ok(Some(value)), _) => {
                self.put(key, value.clone(), ttl, OUTAGE_TTL);
                Ok(Some(value))
            }
            (Ok(None), _) => {
                self.forget(&key);
                Ok(None)
            }
            (Err(StoreError::Unavailable(_)), Some(held)) => {
                self.trust(key, ASK_AGAIN);
                Ok(Some(held))
            }
            (Err(error), _) => Err(error),
        }
    }

    pub fn forget(&self, key: &K) {
        self.found.invalidate(key);
    }

    pub fn forget_all(&self) {
        self.found.invalidate_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::clock::ManualClock;

    #[test]
    fn a_value_is_fresh_for_a_while_kept_for_longer_and_then_gone() {
        let clock = ManualClock::at(0);
        let remembered = Remembered::new(World::on(clock.clone()), 10);
        remembered.put("a", 1, Duration::from_millis(10), Duration::from_millis(20));
        assert_eq!(
            (remembered.fresh(&"a"), remembered.kept(&"a"), remembered.kept(&"b")),
            (Some(1), Some(1), None)
        );
        clock.advance(10);
        assert_eq!((remembered.fresh(&"a"), remembered.kept(&"a")), (None, Some(1)));
        clock.advance(10);
        assert_eq!(remembered.kept(&"a"), None);
        remembered.put("a", 2, Duration::from_secs(1), Duration::ZERO);
        assert_eq!((remembered.fresh(&"a"), remembered.kept(&"a")), (Some(2), Some(2)));
        remembered.forget(&"a");
        assert_eq!(remembered.kept(&"a"), None);
    }

    #[tokio::test]
    async fn a_store_that_hangs_holds_nobody_up_who_has_a_copy() {
        let clock = ManualClock::at(0);
        let remembered = Remembered::new(World::on(clock.clone()), 10);
        let ttl = Duration::from_secs(5);
        let asked = |answer| remembered.refreshed("a", ttl, std::future::ready(answer));
        assert_eq!(asked(Ok(None)).await.unwrap(), None);
        assert_eq!(asked(Ok(Some(1))).await.unwrap(), Some(1), "what was not found is asked for again");
        assert_eq!(asked(Ok(Some(2))).await.unwrap(), Some(1), "it is believed");

        clock.advance(5_000);
        let hangs = remembered.refreshed("a", ttl, std::future::pending());
        assert_eq!(clock.drive(hangs).await.unwrap(), Some(1));
        let unavailable = || Err(StoreError::Unavailable(Fault::no_answer(ttl)));
        assert_eq!(asked(Ok(Some(3))).await.unwrap(), Some(1), "for a while it is not asked again");
        clock.advance(5_000);
        assert_eq!(asked(unavailable()).await.unwrap(), Some(1));
        clock.advance(5_000);
        assert_eq!(asked(Ok(Some(3))).await.unwrap(), Some(3));
        clock.advance(5_000);
        assert_eq!(asked(Ok(None)).await.unwrap(), None);
        assert!(asked(unavailable()).await.is_err(), "what the store does not know any more is forgotten");
    }
}
