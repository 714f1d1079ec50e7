//! What a process takes from the machine that it runs on, beside its disk and its network: time and randomness. They are passed in at
//! [`crate::context::Context::open_in`]; nothing else reads a clock or draws a number.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

use super::clock::{Clock, Moment, SystemClock, TimedOut, timeout};
use crate::domain::time::Timestamp;

/// Time and randomness; clones share both.
#[derive(Clone)]
pub struct World {
    clock: Arc<dyn Clock>,
    source: Source,
    last: Arc<Mutex<LastId>>,
}

/// Where randomness comes from.
#[derive(Clone)]
enum Source {
    /// The operating system's, by way of a generator fit for secrets.
    System,
    /// The same numbers for the same seed.
    Seeded(Arc<Mutex<StdRng>>),
}

/// Time and count of the id that was made last: ids of one process are in the order in which they were made.
#[derive(Default)]
struct LastId {
    ms: u64,
    count: u64,
}

/// The bits of an id that count the ids of one millisecond; they begin at a random number of one bit less.
const COUNT_BITS: u32 = 42;

impl World {
    /// The machine's clock, and randomness that nobody can predict.
    pub fn real() -> Self {
        Self::of(Arc::new(SystemClock), Source::System)
    }

    /// Another clock, and randomness that nobody can predict.
    pub fn on(clock: impl Clock + 'static) -> Self {
        Self::of(Arc::new(clock), Source::System)
    }

    /// Another clock, and the same numbers for the same seed. Secrets that are made in it are not secret.
    pub fn seeded(clock: impl Clock + 'static, seed: u64) -> Self {
        let source = Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        Self::of(Arc::new(clock), source)
    }

    fn of(clock: Arc<dyn Clock>, source: Source) -> Self {
        Self { clock, source, last: Arc::default() }
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Milliseconds since 1970, UTC.
    pub fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Now, on the monotonic scale.
    pub fn monotonic(&self) -> Moment {
        self.clock.monotonic()
    }

    /// The same in milliseconds, from the beginning of its clock.
    pub fn uptime_ms(&self) -> i64 {
        i64::try_from(self.monotonic().since_origin().as_millis()).unwrap_or(i64::MAX)
    }

    /// How long ago `then` was, on the monotonic scale.
    pub fn since(&self, then: Moment) -> Duration {
        self.clock.monotonic().since(then)
    }

    pub fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        self.clock.sleep(time)
    }

    /// What `work` returns, if it ends within `time`; it is dropped otherwise.
    ///
    /// # Errors
    /// [`TimedOut`].
    pub async fn timeout<T>(&self, time: Duration, work: impl Future<Output = T>) -> Result<T, TimedOut> {
        timeout(&*self.clock, time, work).await
    }

    /// Fills `bytes` at random.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &self.source {
            #[expect(clippy::disallowed_methods, reason = "the machine's randomness is drawn here alone")]
            Source::System => rand::rng().fill_bytes(bytes),
            Source::Seeded(seeded) => {
                seeded.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
            }
        }
    }

    /// So many random bytes.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// From 0 (included) to 1 (excluded), evenly.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    pub fn fraction(&self) -> f64 {
        (u64::from_le_bytes(self.bytes()) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// An id that nobody can guess: a UUID of version 4.
    pub fn token(&self) -> Uuid {
        uuid::Builder::from_random_bytes(self.bytes()).into_uuid()
    }

    /// An id that is larger than all that were made here before: a UUID of version 7, by the wall clock and a counter (RFC 9562, 6.2).
    pub fn id(&self) -> Uuid {
        let now = u64::try_from(self.clock.now_ms()).unwrap_or(0);
        let (first, rest): ([u8; 8], [u8; 4]) = (self.bytes(), self.bytes());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = last.count + 1 >= 1 << COUNT_BITS;
        if now > last.ms || is_full {
            // A clock that was set back stays where it was.
            last.ms = now.max(last.ms + u64::from(is_full));
            last.count = u64::from_le_bytes(first) >> (64 - COUNT_BITS + 1);
        } else {
            last.count += 1;
        }
        let (ms, count) = (last.ms, last.count);
        drop(last);
        let (high, low) = (count >> 30, count & ((1 << 30) - 1));
        let rest = u64::from(u32::from_le_bytes(rest));
        let id = (u128::from(ms & ((1 << 48) - 1)) << 80)
            | (0x7 << 76)
            | (u128::from(high) << 64)
            | (0b10 << 62)
            | (u128::from(low) << 32)
            | u128::from(rest);
        Uuid::from_u128(id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::ports::clock::ManualClock;

    #[test]
    fn ids_are_in_order_also_within_a_millisecond_and_when_the_clock_is_set_back() {
        let clock = ManualClock::at(1_700_000_000_000);
        let world = World::on(clock.clone());
        let mut ids = Vec::new();
        for step in [0, 0, 1, -5_000, 0, 5_000] {
            clock.advance(step);
            ids.extend((0..100).map(|_| world.id()));
        }
        assert!(ids.is_sorted());
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        assert!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122));
        let (seconds, _) = ids[0].get_timestamp().unwrap().to_unix();
        assert_eq!(seconds, 1_700_000_000);
    }

    #[test]
    fn a_seed_draws_the_same_numbers_and_the_machine_others() {
        let drawn =
            |world: World| (world.id(), world.token(), world.bytes::<8>(), world.fraction().to_bits());
        let seeded = |seed| drawn(World::seeded(ManualClock::at(5), seed));
        assert_eq!(seeded(1), seeded(1));
        assert_ne!(seeded(1), seeded(2));
        let real = || drawn(World::on(ManualClock::at(5)));
        assert_ne!(real(), real());
        assert_eq!(World::real().token().get_version_num(), 4);
    }

    #[test]
    fn fractions_lie_between_0_and_1_and_on_both_sides_of_the_middle() {
        let world = World::seeded(ManualClock::at(0), 3);
        let drawn: Vec<f64> = (0..1000).map(|_| world.fraction()).collect();
        assert!(drawn.iter().all(|at| (0.0..1.0).contains(at)));
        assert!((400..600).contains(&drawn.iter().filter(|at| **at < 0.5).count()));
    }
}
