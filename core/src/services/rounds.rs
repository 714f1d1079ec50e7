//! When each loop of the housekeeping last came round: a loop that stands still looks, from outside, like one that has nothing to do.
//!
//! Each process knows of its own loops alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ports::clock::Moment;
use crate::ports::world::World;

#[derive(Clone, Copy, Debug)]
struct Known {
    at: Moment,
    within: Duration,
}

/// The loops of this process.
pub struct Rounds {
    world: World,
    loops: Mutex<BTreeMap<&'static str, Known>>,
}

impl Rounds {
    /// Rounds whose times are by that world's clock.
    pub fn new(world: World) -> Self {
        Self { world, loops: Mutex::default() }
    }

    /// A loop begins, and is to complete a round within that time, again and again.
    pub fn begin(&self, name: &'static str, within: Duration) {
        let known = Known { at: self.world.monotonic(), within };
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).insert(name, known);
    }

    /// A loop has completed a round.
    pub fn done(&self, name: &'static str) {
        let mut loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loops.get_mut(name) {
            known.at = self.world.monotonic();
        }
    }

    /// A loop ends, because it was told to.
    pub fn end(&self, name: &'static str) {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The loops that have completed no round in their time, and for how long.
    pub fn late(&self) -> Vec<(&'static str, Duration)> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let since = loops.iter().map(|(name, known)| (*name, self.world.since(known.at), known.within));
        since.filter(|(_, since, within)| since > within).map(|(name, since, _)| (name, since)).collect()
    }
}

/// Counts a panic that a loop has caught.
pub fn panicked(name: &'static str) {
    metrics::counter!("tributary_housekeeping_panics_total", "loop" => name).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::clock::ManualClock;

    #[test]
    fn a_loop_that_completes_no_round_is_late_and_another_is_not() {
        let clock = ManualClock::at(0);
        let rounds = Rounds::new(World::on(clock.clone()));
        rounds.begin("stuck", Duration::ZERO);
        rounds.begin("well", Duration::from_secs(60));
        clock.advance(1);
        let late: Vec<&str> = rounds.late().into_iter().map(|(name, _)| name).collect();
        assert_eq!(late, ["stuck"]);
        rounds.end("stuck");
        assert!(rounds.late().is_empty());
    }
}
