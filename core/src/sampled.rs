//! Saying now and then, with a count, what senders can make happen as often as they like: nobody fills the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ports::clock::{Clock, Moment, SystemClock};

/// How often one thing is said at most.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// One thing that may happen often.
#[derive(Debug)]
pub struct Sampled(Mutex<(Option<Moment>, u64)>);

impl Sampled {
    /// It has not happened yet.
    pub const fn new() -> Self {
        Self(Mutex::new((None, 0)))
    }

    /// It has happened so many times more. Answers how often since it was last said, when it is to be said again: at first, and then
    /// after 10 s.
    pub fn happened(&self, times: u64) -> Option<u64> {
        // The log is for people, who live by the machine's clock.
        self.happened_at(SystemClock.monotonic(), times)
    }

    fn happened_at(&self, now: Moment, times: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, count) = &mut *state;
        *count += times;
        if said.is_some_and(|at| now.since(at) < SAID_EVERY) {
            return None;
        }
        *said = Some(now);
        Some(std::mem::take(count))
    }
}

impl Default for Sampled {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_often_is_said_now_and_then_with_its_count() {
        let (sampled, began) = (Sampled::new(), SystemClock.monotonic());
        assert_eq!(sampled.happened_at(began, 3), Some(3), "at once");
        for _ in 0..100 {
            assert_eq!(sampled.happened_at(began + Duration::from_secs(5), 2), None);
        }
        assert_eq!(sampled.happened_at(began + SAID_EVERY, 1), Some(201));
        assert_eq!(sampled.happened_at(began + SAID_EVERY, 1), None);
    }
}
