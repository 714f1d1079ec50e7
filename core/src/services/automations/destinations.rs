//! Where messages go: a destination that is dead, slow or flooded is left alone for a while, so that it holds up nobody else.
//!
//! A brand has a share besides, since it may name as many destinations as it likes: of messages under way, and of destinations that
//! have not answered yet or answer no more. Each process has its own view, and its own share of the rate.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use crate::domain::ids::BrandId;
use crate::ports::world::World;

/// Failures in a row after which a destination is left alone.
pub const OPENS_AFTER: u32 = 5;
/// How long it is left alone; then one message tries.
pub const OPEN_FOR: Duration = Duration::from_secs(30);
/// Most messages under way to a destination at once.
pub const MAX_IN_FLIGHT: u32 = 200;
/// Most messages of a brand under way at once, wherever they go.
pub const MAX_BRAND_IN_FLIGHT: u32 = 400;
/// Most destinations of a brand that are tried at once without having answered: a message to one may hold up its batch until its
/// time limit.
pub const MAX_UNPROVEN: u32 = 2;
/// Most batches that may wait for messages of one brand for longer than 250 ms: lanes have room for so many besides those that they
/// work on, and it is everybody's.
pub const MAX_SLOW_BATCHES: usize = 4;
/// After which a batch that waits for a message is slow: lanes leave it to go on by itself then.
const SLOW_AFTER: Duration = Duration::from_millis(250);
/// Most messages under way to a destination that has failed and not answered since.
pub const MAX_TO_FAILING: u32 = 10;
/// Most messages a second to a destination, unless set otherwise.
pub const DEFAULT_RATE: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// How long one that tries may take: the rest waits for it.
const TRIED_FOR: Duration = Duration::from_secs(10);
/// How long a message waits that finds no room.
const CROWDED: Duration = Duration::from_millis(250);
/// Between two messages that wait because their brand's destinations are slow, in microseconds: each asks the store before it learns that it
/// has to wait on.
const SLOW_APART_US: i64 = 50_000;
/// Destinations beyond which those are forgotten of which nothing is to be said.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    failures: u32,
    in_flight: u32,
    /// Until when it is left alone, in milliseconds of the world's uptime.
    open_until_ms: Option<i64>,
    probing: bool,
    /// When the next message that has to wait may come: each gets a time of its own, so that they do not come in a crowd.
    next_free_us: i64,
    /// Whether its last message was answered.
    proven: bool,
    /// Whether it counts among its brand's unproven ones: it is being tried.
    counted: bool,
}

/// What a brand has under way.
#[derive(Clone, Debug, Default)]
struct Share {
    in_flight: u32,
    unproven: u32,
    /// See [`State::next_free_us`].
    next_free_us: i64,
    /// The batches that its messages are of: since when, in milliseconds of the world's uptime, and how many.
    batches: BTreeMap<u64, (i64, u32)>,
}

#[derive(Debug, Default)]
struct Known {
    states: HashMap<String, State>,
    shares: HashMap<BrandId, Share>,
}

impl Known {
    /// It is tried no longer, or has answered.
    fn uncount(&mut self, brand: BrandId, destination: &str) {
        if let (Some(state), Some(share)) = (self.states.get_mut(destination), self.shares.get_mut(&brand))
            && std::mem::take(&mut state.counted)
        {
            share.unproven = share.unproven.saturating_sub(1);
        }
    }
}

/// A world's clock, as the rate's limiter reads it.
#[derive(Clone)]
struct WorldClock(World);

impl Clock for WorldClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic().since_origin()
    }
}

pub struct Destinations {
    known: Mutex<Known>,
    rate: RateLimiter<String, DefaultKeyedStateStore<String>, WorldClock, NoOpMiddleware<Duration>>,
    next_batch: AtomicU64,
    /// Between two messages that have to wait, in microseconds.
    apart_us: i64,
}

/// Why a message does not go now, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    pub wait: Duration,
    pub why: String,
}

/// Leave to send one message. Dropped without a word, nothing is known of the destination, and the place is free again.
#[must_use]
pub struct Permit {
    all: Arc<Destinations>,
    brand: BrandId,
    destination: String,
    batch: u64,
    probe: bool,
}

impl Destinations {
    /// With at most `rate` messages to each in a second of that world.
    pub fn new(rate: NonZeroU32, world: World) -> Self {
        Self {
            known: Mutex::default(),
            rate: RateLimiter::new(
                Quota::per_second(rate),
                DefaultKeyedStateStore::default(),
                WorldClock(world),
            ),
            next_batch: AtomicU64::default(),
            apart_us: (1_000_000 / i64::from(rate.get())).max(1),
        }
    }

    /// A name for a batch, whose end waits for its messages.
    pub fn batch(&self) -> u64 {
        self.next_batch.fetch_add(1, Ordering::Relaxed)
    }

    /// Lets a message of a batch and a brand go, or says when it may. `uptime_ms` is [`World::uptime_ms`]: a wall clock that is set back holds up nobody.
    ///
    /// # Errors
    /// When to try again.
    pub fn go(
        self: &Arc<Self>,
        batch: u64,
        brand: BrandId,
        destination: &str,
        uptime_ms: i64,
    ) -> Result<Permit, Later> {
        // A brand's failures are its own.
        let destination = format!("{brand}:{destination}");
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { states, shares } = &mut *known;
        if states.len() > REMEMBERED {
            forget_idle(states, shares, uptime_ms);
            self.rate.retain_recent();
        }
        let state = states.entry(destination.clone()).or_default();
        let share = shares.entry(brand).or_default();
        let mut probe = false;
        if let Some(until) = state.open_until_ms {
            let why = || format!("the destination failed {} times in a row", state.failures);
            if uptime_ms < until {
                let why = why();
                return later(&mut state.next_free_us, self.apart_us, uptime_ms, until, why);
            }
            if state.probing {
                let (why, probed) = (why(), uptime_ms.saturating_add(ms(TRIED_FOR)));
                return later(&mut state.next_free_us, self.apart_us, uptime_ms, probed, why);
            }
            probe = true;
        }
        let crowded = uptime_ms.saturating_add(ms(CROWDED));
        let slow_apart_us = SLOW_APART_US.max(self.apart_us);
        let most = if state.failures > 0 { MAX_TO_FAILING } else { MAX_IN_FLIGHT };
        if state.in_flight >= most {
            let why = format!("{} messages are on their way to the destination", state.in_flight);
            return later(&mut state.next_free_us, self.apart_us, uptime_ms, crowded, why);
        }
        if share.in_flight >= MAX_BRAND_IN_FLIGHT {
            let why = format!("{MAX_BRAND_IN_FLIGHT} messages of the brand are on their way");
            return later(&mut share.next_free_us, self.apart_us, uptime_ms, crowded, why);
        }
        let is_slow = |(since, _): &&(i64, u32)| uptime_ms - since > ms(SLOW_AFTER);
        let waits_anyway = share.batches.contains_key(&batch);
        if !waits_anyway && share.batches.values().filter(is_slow).count() >= MAX_SLOW_BATCHES {
            let why = format!("{MAX_SLOW_BATCHES} batches wait for slow destinations of the brand");
            return later(&mut share.next_free_us, slow_apart_us, uptime_ms, crowded, why);
        }
        let counts = !state.proven && !state.counted;
        if counts && share.unproven >= MAX_UNPROVEN {
            let why =
                format!("{MAX_UNPROVEN} destinations of the brand are being tried that have not answered");
            return later(&mut share.next_free_us, slow_apart_us, uptime_ms, crowded, why);
        }
        if self.rate.check_key(&destination).is_err() {
            let why = "the destination's rate limit is reached".to_owned();
            return later(&mut state.next_free_us, self.apart_us, uptime_ms, uptime_ms, why);
        }
        state.counted |= counts;
        share.unproven += u32::from(counts);
        share.in_flight += 1;
        share.batches.entry(batch).or_insert((uptime_ms, 0)).1 += 1;
        state.probing |= probe;
        state.in_flight += 1;
        Ok(Permit { all: self.clone(), brand, destination, batch, probe })
    }
}

/// Forgets destinations and shares that nothing is known of. Also those that failed, once their time is over: a brand may name any number
/// of them.
fn forget_idle(states: &mut HashMap<String, State>, shares: &mut HashMap<BrandId, Share>, uptime_ms: i64) {
    let later = |us: i64| us > uptime_ms.saturating_mul(1000);
    states.retain(|_, state| {
        let open = state.open_until_ms.is_some_and(|until| until > uptime_ms);
        open || state.in_flight > 0 || later(state.next_free_us)
    });
    shares.retain(|_, share| share.in_flight > 0 || later(share.next_free_us));
}

/// A time of its own for a message that has to wait.
fn later<T>(
    next_free_us: &mut i64,
    apart_us: i64,
    uptime_ms: i64,
    from_ms: i64,
    why: String,
) -> Result<T, Later> {
    *next_free_us = (*next_free_us).max(from_ms.saturating_mul(1000)).saturating_add(apart_us);
    let wait = u64::try_from((*next_free_us / 1000).saturating_sub(uptime_ms)).unwrap_or_default();
    Err(Later { wait: Duration::from_millis(wait.max(1)), why })
}

impl Permit {
    /// Where the message goes.
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// Tells whether the destination was there.
    pub fn tell(self, was_there: bool, uptime_ms: i64) {
        let mut known = self.all.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = known.states.get_mut(&self.destination) else { return };
        state.proven = was_there;
        if was_there {
            state.failures = 0;
            state.open_until_ms = None;
            known.uncount(self.brand, &self.destination);
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= OPENS_AFTER {
            state.open_until_ms = Some(uptime_ms.saturating_add(ms(OPEN_FOR)));
            metrics::counter!("tributary_destination_opened_total").increment(1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut known = self.all.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = known.shares.get_mut(&self.brand) {
            share.in_flight = share.in_flight.saturating_sub(1);
            if let Some((_, messages)) = share.batches.get_mut(&self.batch) {
                *messages -= 1;
                if *messages == 0 {
                    share.batches.remove(&self.batch);
                }
            }
        }
        let Some(state) = known.states.get_mut(&self.destination) else { return };
        state.in_flight = state.in_flight.saturating_sub(1);
        state.probing &= !self.probe;
        if state.in_flight == 0 {
            known.uncount(self.brand, &self.destination);
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BrandId = BrandId(1);

    fn all(rate: u32) -> Arc<Destinations> {
        Arc::new(Destinations::new(NonZeroU32::new(rate).unwrap(), World::real()))
    }

    fn fail(all: &Arc<Destinations>, now_ms: i64) {
        all.go(all.batch(), A, "dead", now_ms).ok().unwrap().tell(false, now_ms);
    }

    #[test]
    fn a_dead_destination_is_left_alone_and_tried_by_one() {
        let all = all(1000);
        for _ in 0..OPENS_AFTER {
            fail(&all, 0);
        }
        let waits: Vec<Duration> =
            (0..3).map(|_| all.go(all.batch(), A, "dead", 1000).err().unwrap().wait).collect();
        assert!(waits[0] >= Duration::from_secs(29) && waits.is_sorted(), "one after the other: {waits:?}");
        drop(all.go(all.batch(), A, "alive", 1000).ok().unwrap());
        let probe = all.go(all.batch(), A, "dead", 30_000).ok().unwrap();
        assert!(all.go(all.batch(), A, "dead", 30_000).err().unwrap().wait >= TRIED_FOR, "one tries");
        probe.tell(false, 31_000);
        assert!(all.go(all.batch(), A, "dead", 60_000).is_err(), "and leaves it alone again");
        // One that was never carried says nothing, and holds nobody up.
        drop(all.go(all.batch(), A, "dead", 61_000).ok().unwrap());
        all.go(all.batch(), A, "dead", 61_000).ok().unwrap().tell(true, 61_000);
        drop((
            all.go(all.batch(), A, "dead", 61_000).ok().unwrap(),
            all.go(all.batch(), A, "dead", 61_000).ok().unwrap(),
        ));
    }

    #[test]
    fn a_destination_gets_no_more_than_it_may_and_those_who_wait_come_one_by_one() {
        let busy = all(3);
        let held: Vec<Permit> = (0..3).filter_map(|_| busy.go(busy.batch(), A, "busy", 0).ok()).collect();
        assert_eq!(held.len(), 3);
        let waits: Vec<u128> =
            (0..4).map(|_| busy.go(busy.batch(), A, "busy", 0).err().unwrap().wait.as_millis()).collect();
        assert_eq!(waits, [333, 666, 999, 1333]);
        let crowded = all(1_000_000);
        let held: Vec<Permit> =
            (0..MAX_IN_FLIGHT).filter_map(|_| crowded.go(crowded.batch(), A, "slow", 0).ok()).collect();
        assert_eq!(held.len(), MAX_IN_FLIGHT as usize);
        assert!(
            crowded.go(crowded.batch(), A, "slow", 0).is_err()
                && crowded.go(crowded.batch(), A, "other", 0).is_ok()
        );
        drop(held);
        assert!(crowded.go(crowded.batch(), A, "slow", 0).is_ok());
    }

    #[test]
    fn a_brand_whose_destinations_never_answer_is_busy_with_few_of_them_and_delays_no_other_brand() {
        let all = all(1000);
        let held: Vec<Permit> =
            (0..40).filter_map(|port| all.go(all.batch(), A, &format!("silent:{port}"), 0).ok()).collect();
        assert_eq!(held.len(), MAX_UNPROVEN as usize);
        let other = all.go(all.batch(), BrandId(2), "silent:1", 0).ok().unwrap();
        other.tell(true, 0);
        drop(held);
        // One that answers is no more among those that are tried, and one that failed is tried by few messages.
        for port in 0..10 {
            all.go(all.batch(), A, &format!("well:{port}"), 0).ok().unwrap().tell(true, 0);
        }
        all.go(all.batch(), A, "failing", 0).ok().unwrap().tell(false, 0);
        let tries: Vec<Permit> = (0..20).filter_map(|_| all.go(all.batch(), A, "failing", 0).ok()).collect();
        assert_eq!(tries.len(), MAX_TO_FAILING as usize);
        let well: Vec<Permit> =
            (0..10).filter_map(|port| all.go(all.batch(), A, &format!("well:{port}"), 0).ok()).collect();
        assert_eq!(well.len(), 10, "those that answer are kept from nothing");
        drop((tries, well));
    }

    #[test]
    fn few_batches_wait_for_a_brand_whose_destinations_answer_late_and_none_of_another_for_it() {
        let all = all(1_000_000);
        all.go(all.batch(), A, "late", 0).ok().unwrap().tell(true, 0);
        // Ten events a second, each a batch of its own.
        let mut held: Vec<Permit> = Vec::new();
        let (batch, mut kept) = (all.batch(), None);
        for at in (0..10_000).step_by(100) {
            held.extend(all.go(all.batch(), A, "late", at).ok());
            kept = kept.or_else(|| all.go(batch, A, "late", at).ok());
            drop(all.go(all.batch(), BrandId(2), "well", at).ok().unwrap());
        }
        assert!(held.len() <= MAX_SLOW_BATCHES + 3, "{}", held.len());
        assert!(all.go(batch, A, "late", 10_000).is_ok(), "a batch that waits anyway may send more");
        held.clear();
        assert!(all.go(all.batch(), A, "late", 10_000).is_ok());
    }

    #[test]
    fn a_brand_has_a_share_of_what_is_under_way() {
        let all = all(1_000_000);
        let mut held = Vec::new();
        for port in 0..4 {
            let name = format!("well:{port}");
            // None is left for the last ones: the brand's share is used up.
            if let Ok(first) = all.go(all.batch(), A, &name, 0) {
                first.tell(true, 0);
            }
            held.extend((0..MAX_IN_FLIGHT).filter_map(|_| all.go(all.batch(), A, &name, 0).ok()));
        }
        assert_eq!(held.len(), MAX_BRAND_IN_FLIGHT as usize);
        assert!(all.go(all.batch(), BrandId(2), "well:0", 0).is_ok());
        held.clear();
        assert!(all.go(all.batch(), A, "well:3", 0).is_ok());
    }

    #[test]
    fn destinations_that_failed_are_forgotten_in_time() {
        let all = all(1000);
        for port in 0..=REMEMBERED as i64 {
            all.go(all.batch(), A, &format!("dead:{port}"), port).ok().unwrap().tell(false, port);
        }
        drop(all.go(all.batch(), A, "one more", 1_000_000).ok().unwrap());
        assert!(all.known.lock().unwrap().states.len() < 10);
    }
}
