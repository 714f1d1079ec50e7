//! Where parcels go: a destination that is dead, slow or flooded is left alone for a while, so that it holds up nobody else.
//!
//! Each process has its own view, and its own share of the rate.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Failures in a row after which a destination is left alone.
pub const OPENS_AFTER: u32 = 5;
/// How long it is left alone; then one parcel tries.
pub const OPEN_FOR: Duration = Duration::from_secs(30);
/// Most parcels under way to a destination at once.
pub const MAX_IN_FLIGHT: u32 = 200;
/// Most parcels a second to a destination, unless set otherwise.
pub const DEFAULT_RATE: NonZeroU32 = NonZeroU32::new(100).unwrap();
/// How long one that tries may take: the rest waits for it.
const TRIED_FOR: Duration = Duration::from_secs(10);
/// How long a parcel waits that finds no room.
const CROWDED: Duration = Duration::from_millis(250);
/// Destinations beyond which those are forgotten of which nothing is to be said.
const REMEMBERED: usize = 10_000;

#[derive(Clone, Copy, Debug, Default)]
struct State {
    failures: u32,
    in_flight: u32,
    /// Until when it is left alone, in milliseconds since 1970.
    open_until_ms: Option<i64>,
    probing: bool,
    /// When the next parcel that has to wait may come: each gets a time of its own, so that they do not come in a crowd.
    next_free_us: i64,
}

/// All destinations.
pub struct Destinations {
    states: Mutex<HashMap<String, State>>,
    rate: DefaultKeyedRateLimiter<String>,
    /// Between two parcels that have to wait, in microseconds.
    apart_us: i64,
}

/// Why a parcel does not go now, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Later {
    /// How long.
    pub wait: Duration,
    /// Why.
    pub why: String,
}

/// Leave to carry one parcel. Dropped without a word, nothing is known of the destination, and the place is free again.
#[must_use]
pub struct Permit {
    all: Arc<Destinations>,
    destination: String,
    probe: bool,
}

impl Destinations {
    /// With at most `rate` parcels a second to each.
    pub fn new(rate: NonZeroU32) -> Self {
        Self {
            states: Mutex::default(),
            rate: RateLimiter::keyed(Quota::per_second(rate)),
            apart_us: (1_000_000 / i64::from(rate.get())).max(1),
        }
    }

    /// Lets a parcel go, or says when it may.
    ///
    /// # Errors
    /// When to come again.
    pub fn go(self: &Arc<Self>, destination: &str, now_ms: i64) -> Result<Permit, Later> {
        let mut states = self.states.lock().unwrap_or_else(PoisonError::into_inner);
        if states.len() > REMEMBERED {
            states.retain(|_, state| {
                state.failures > 0 || state.in_flight > 0 || state.next_free_us > now_ms * 1000
            });
            self.rate.retain_recent();
        }
        let state = states.entry(destination.to_owned()).or_default();
        let later = |state: &mut State, from_ms: i64, why: String| {
            state.next_free_us = state.next_free_us.max(from_ms.saturating_mul(1000)) + self.apart_us;
            let wait = u64::try_from(state.next_free_us / 1000 - now_ms).unwrap_or_default();
            Err(Later { wait: Duration::from_millis(wait.max(1)), why })
        };
        let mut probe = false;
        if let Some(until) = state.open_until_ms {
            let why = || format!("the destination failed {} times in a row", state.failures);
            if now_ms < until {
                let why = why();
                return later(state, until, why);
            }
            if state.probing {
                let (why, probed) = (why(), now_ms.saturating_add(ms(TRIED_FOR)));
                return later(state, probed, why);
            }
            probe = true;
        } else if state.in_flight >= MAX_IN_FLIGHT {
            let why = format!("{MAX_IN_FLIGHT} parcels are on their way to the destination");
            return later(state, now_ms.saturating_add(ms(CROWDED)), why);
        }
        if self.rate.check_key(&destination.to_owned()).is_err() {
            return later(state, now_ms, "the destination gets no more a second".to_owned());
        }
        state.probing |= probe;
        state.in_flight += 1;
        Ok(Permit { all: self.clone(), destination: destination.to_owned(), probe })
    }
}

impl Permit {
    /// Tells whether the destination was there.
    pub fn tell(self, was_there: bool, now_ms: i64) {
        let mut states = self.all.states.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(state) = states.get_mut(&self.destination) else { return };
        if was_there {
            state.failures = 0;
            state.open_until_ms = None;
            return;
        }
        state.failures = state.failures.saturating_add(1);
        if state.failures >= OPENS_AFTER {
            state.open_until_ms = Some(now_ms.saturating_add(ms(OPEN_FOR)));
            metrics::counter!("tributary_destination_opened_total").increment(1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut states = self.all.states.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = states.get_mut(&self.destination) {
            state.in_flight = state.in_flight.saturating_sub(1);
            state.probing &= !self.probe;
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rate: u32) -> Arc<Destinations> {
        Arc::new(Destinations::new(NonZeroU32::new(rate).unwrap()))
    }

    fn fail(all: &Arc<Destinations>, now_ms: i64) {
        all.go("dead", now_ms).ok().unwrap().tell(false, now_ms);
    }

    #[test]
    fn a_dead_destination_is_left_alone_and_tried_by_one() {
        let all = all(1000);
        for _ in 0..OPENS_AFTER {
            fail(&all, 0);
        }
        let waits: Vec<Duration> = (0..3).map(|_| all.go("dead", 1000).err().unwrap().wait).collect();
        assert!(waits[0] >= Duration::from_secs(29) && waits.is_sorted(), "one after the other: {waits:?}");
        drop(all.go("alive", 1000).ok().unwrap());
        let probe = all.go("dead", 30_000).ok().unwrap();
        assert!(all.go("dead", 30_000).err().unwrap().wait >= TRIED_FOR, "one tries");
        probe.tell(false, 31_000);
        assert!(all.go("dead", 60_000).is_err(), "and leaves it alone again");
        // One that was never carried says nothing, and holds nobody up.
        drop(all.go("dead", 61_000).ok().unwrap());
        all.go("dead", 61_000).ok().unwrap().tell(true, 61_000);
        drop((all.go("dead", 61_000).ok().unwrap(), all.go("dead", 61_000).ok().unwrap()));
    }

    #[test]
    fn a_destination_gets_no_more_than_it_may_and_those_who_wait_come_one_by_one() {
        let busy = all(3);
        let held: Vec<Permit> = (0..3).filter_map(|_| busy.go("busy", 0).ok()).collect();
        assert_eq!(held.len(), 3);
        let waits: Vec<u128> = (0..4).map(|_| busy.go("busy", 0).err().unwrap().wait.as_millis()).collect();
        assert_eq!(waits, [333, 666, 999, 1333]);
        let crowded = all(1_000_000);
        let held: Vec<Permit> = (0..MAX_IN_FLIGHT).filter_map(|_| crowded.go("slow", 0).ok()).collect();
        assert_eq!(held.len(), MAX_IN_FLIGHT as usize);
        assert!(crowded.go("slow", 0).is_err() && crowded.go("other", 0).is_ok());
        drop(held);
        assert!(crowded.go("slow", 0).is_ok());
    }
}
